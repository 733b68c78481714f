//! Parameters in their forms.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use half::bf16;

use super::run::{Run, draws, load_run, narrow_bf16, store_run};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Lanes};
use crate::dtype::Dtype;
use crate::numerics::canonical;
use crate::rng::Purpose;
use crate::weights::{
    Weights, from_master, join_correction, join_remainder, round_f16, split_correction,
    split_remainder, stochastic_bf16,
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
            Weights::Master => {
                let mut b = Chunk::ZERO;
                load_run::<L>(weight.data, weight.dtype, run, &mut b);
                load_run::<L>(weight.beside, Dtype::F32, run, out);
                let rounded = round_to::<L>(weight.dtype, out);
                for ((out, b), rounded) in out.iter_mut().zip(&*b).zip(&*rounded) {
                    *out = from_master(*b, *out, *rounded);
                }
            }
            Weights::Remainder16 | Weights::Correction8 => {
                let b = weight.data.cast::<bf16>().add(run.first);
                **out = [0.0; CHUNK];
                if weight.form == Weights::Remainder16 {
                    let low = weight.beside.cast::<u16>().add(run.first);
                    for (i, out) in out[..run.len].iter_mut().enumerate() {
                        *out = join_remainder(*b.add(i), *low.add(i));
                    }
                } else {
                    let correction = weight.beside.cast::<i8>().add(run.first);
                    for (i, out) in out[..run.len].iter_mut().enumerate() {
                        *out = join_correction(*b.add(i), *correction.add(i));
                    }
                }
            }
        }
    }
}

/// Values rounded to a dtype of 16 bits, NaN in canonical form.
#[inline(always)]
fn round_to<L: Lanes>(dtype: Dtype, values: &Chunk) -> Chunk {
    let mut rounded = Chunk::ZERO;
    if dtype == Dtype::F16 {
        let mut halves = [half::f16::ZERO; CHUNK];
        for (rounded, value) in rounded.iter_mut().zip(&**values) {
            *rounded = canonical(*value);
        }
        // SAFETY: a chunk of f16; the kernels are used on processors that have the instructions.
        unsafe {
            L::store_f16(&rounded, halves.as_mut_ptr());
            L::load_f16(halves.as_ptr(), &mut rounded);
        }
        return rounded;
    }
    for (rounded, value) in rounded.iter_mut().zip(&**values) {
        *rounded = f32::from_bits(u32::from(narrow_bf16(*value).to_bits()) << 16);
    }
    rounded
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
                let mut random = [0; CHUNK];
                draws(call, Purpose::Weight, run, &mut random);
                let mut rounded = Chunk::ZERO;
                if weight.dtype == Dtype::F16 {
                    for i in 0..CHUNK {
                        rounded[i] = round_f16(values[i], random[i]);
                    }
                } else {
                    for i in 0..CHUNK {
                        let b = stochastic_bf16(values[i], random[i]);
                        rounded[i] = f32::from_bits(u32::from(b.to_bits()) << 16);
                    }
                }
                store_run::<L>(weight.data, weight.dtype, run, &rounded);
            }
            Weights::Master => {
                store_run::<L>(weight.data, weight.dtype, run, values);
                store_run::<L>(weight.beside, Dtype::F32, run, values);
            }
            Weights::Remainder16 => {
                let b = weight.data.cast::<bf16>().add(run.first);
                let low = weight.beside.cast::<u16>().add(run.first);
                for (i, value) in values[..run.len].iter().enumerate() {
                    (*b.add(i), *low.add(i)) = split_remainder(*value);
                }
            }
            Weights::Correction8 => {
                let b = weight.data.cast::<bf16>().add(run.first);
                let correction = weight.beside.cast::<i8>().add(run.first);
                for (i, value) in values[..run.len].iter().enumerate() {
                    (*b.add(i), *correction.add(i)) = split_correction(*value);
                }
            }
        }
    }
}
