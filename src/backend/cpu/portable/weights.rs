//! Parameters in their forms.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use half::{bf16, f16};

use super::run::{Run, draws, load_run, store_run};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Lanes, Random, Vector};
use crate::dtype::Dtype;
use crate::rng::Purpose;
use crate::weights::{
    Weights, from_master, join_correction, join_remainder, narrow_bf16, round_f16,
    split_correction, split_remainder, widen_bf16,
};

/// The f32 values of a run of at most a chunk of parameters, zeros behind them.
#[inline(always)]
pub(super) unsafe fn load_weights<L: Lanes>(call: &TensorCall<'_>, run: Run, out: &mut Chunk) {
    let weight = call.weight;
    // SAFETY: the caller's run lies in the tensor.
    unsafe {
        match weight.form {
            Weights::Plain | Weights::Stochastic => {
                load_run::<L>(weight.data, weight.dtype, run, out);
            }
            Weights::Master if weight.dtype == Dtype::F16 => {
                let (mut b, mut rounded) = (Chunk::ZERO, Chunk::ZERO);
                load_run::<L>(weight.data, Dtype::F16, run, &mut b);
                load_run::<L>(weight.beside, Dtype::F32, run, out);
                let mut halves = [f16::ZERO; CHUNK];
                L::store_f16(out, halves.as_mut_ptr());
                L::load_f16(halves.as_ptr(), &mut rounded);
                for ((out, b), rounded) in out.iter_mut().zip(&*b).zip(&*rounded) {
                    *out = from_master(*b, *out, *rounded);
                }
            }
            Weights::Master => {
                let (mut b, mut master) = ([bf16::ZERO; CHUNK], [0.0; CHUNK]);
                let b = elements(weight.data, run, &mut b);
                let master = elements(weight.beside, run, &mut master);
                for i in 0..CHUNK {
                    let [b, rounded] = [b[i], narrow_bf16(master[i])].map(widen_bf16);
                    out[i] = from_master(b, master[i], rounded);
                }
            }
            Weights::Remainder16 => {
                let (mut b, mut low) = ([bf16::ZERO; CHUNK], [0_u16; CHUNK]);
                let b = elements(weight.data, run, &mut b);
                let low = elements(weight.beside, run, &mut low);
                for i in 0..CHUNK {
                    out[i] = join_remainder(b[i], low[i]);
                }
            }
            Weights::Correction8 => {
                let (mut b, mut correction) = ([bf16::ZERO; CHUNK], [0_i8; CHUNK]);
                let b = elements(weight.data, run, &mut b);
                let correction = elements(weight.beside, run, &mut correction);
                for i in 0..CHUNK {
                    out[i] = join_correction(b[i], correction[i]);
                }
            }
        }
    }
}

/// The elements of a run of at most a chunk: where they lie, or, for less than one, in a copy, with what is
/// in it behind them.
#[inline(always)]
unsafe fn elements<T: Copy>(from: *const u8, run: Run, copy: &mut [T; CHUNK]) -> &[T; CHUNK] {
    // SAFETY: the caller's run lies in the tensor, whose elements are of this type and aligned for it; no one
    // writes them while they are borrowed.
    unsafe {
        let from = from.cast::<T>().add(run.first);
        if run.len == CHUNK {
            return &*from.cast();
        }
        std::ptr::copy_nonoverlapping(from, copy.as_mut_ptr(), run.len);
    }
    copy
}

/// Stores the elements of a run of at most a chunk.
#[inline(always)]
unsafe fn put<T: Copy>(values: &[T; CHUNK], to: *mut u8, run: Run) {
    // SAFETY: the caller's run lies in the tensor, whose elements are of this type.
    unsafe {
        let to = to.cast::<T>().add(run.first);
        if run.len == CHUNK {
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, CHUNK);
        } else {
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, run.len);
        }
    }
}

/// Stores the f32 values of a run of at most a chunk of parameters in their form.
#[inline(always)]
pub(super) unsafe fn store_weights<L: Lanes>(call: &TensorCall<'_>, run: Run, values: &Chunk) {
    let weight = call.weight;
    // SAFETY: the caller's run lies in the tensor.
    unsafe {
        match weight.form {
            Weights::Plain => store_run::<L>(weight.data, weight.dtype, run, values),
            Weights::Stochastic => {
                let mut random = Random::ZERO;
                L::draw(&draws(call, Purpose::Weight, run), &mut random.0);
                let random = random.0;
                if weight.dtype == Dtype::F16 {
                    let mut rounded = Chunk::ZERO;
                    for i in 0..CHUNK {
                        rounded[i] = round_f16(values[i], random[i]);
                    }
                    store_run::<L>(weight.data, weight.dtype, run, &rounded);
                } else {
                    let mut rounded = [bf16::ZERO; CHUNK];
                    for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                        let (draws, to) = (&raw const random[at], &raw mut rounded[at]);
                        let x = L::Vector::load(values.as_ptr().add(at));
                        x.round_bf16(draws, to, L::Vector::WIDTH);
                    }
                    put(&rounded, weight.data, run);
                }
            }
            Weights::Master => {
                store_run::<L>(weight.data, weight.dtype, run, values);
                store_run::<L>(weight.beside, Dtype::F32, run, values);
            }
            Weights::Remainder16 => {
                let (mut b, mut low) = ([bf16::ZERO; CHUNK], [0; CHUNK]);
                for i in 0..CHUNK {
                    (b[i], low[i]) = split_remainder(values[i]);
                }
                put(&b, weight.data, run);
                put(&low, weight.beside, run);
            }
            Weights::Correction8 => {
                let (mut b, mut correction) = ([bf16::ZERO; CHUNK], [0; CHUNK]);
                for i in 0..CHUNK {
                    (b[i], correction[i]) = split_correction(values[i]);
                }
                put(&b, weight.data, run);
                put(&correction, weight.beside, run);
            }
        }
    }
}
