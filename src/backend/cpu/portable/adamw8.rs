//! AdamW without options on moments of eight bits whose codes are computed (`lanes/bytes.rs`), in blocks of
//! whole chunks: the new moments of a block wait on the stack for its scales.
//!
//! Rounding steps are numbered as in `optimizer/adamw.rs`.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;

use super::decode::Source;
use super::encode::encode_unit;
use super::registers::{
    any_square_not_finite, gradient, is_f32_in_place, parameters, store_result,
};
use super::run::Run;
use super::{MOST_CHUNKS, skip};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Decoder, Encoder, Lanes, Vector, load};
use crate::backend::cpu::reference::block_scale;
use crate::layout::index;
use crate::numerics::Scalars;
use crate::optimizer::Adamw;
use crate::plan::{Codes, Format, Scales};
use crate::quant::{Lines, Rounding};

/// Updates units; returns how many were skipped, or `None` for a tensor that this is not for.
///
/// # Safety
/// As for [`super::apply`].
#[inline(always)]
pub(super) unsafe fn in_registers<L: Lanes>(
    call: &TensorCall<'_>,
    rule: &Adamw,
    units: Range<i64>,
) -> Option<i64> {
    let scalars = rule.scalars()?;
    let [m, v] = call.tensor.states.as_slice() else {
        return None;
    };
    let (Format::Codes(m), Format::Codes(v)) = (&m.format, &v.format) else {
        return None;
    };
    // SAFETY: the caller's promise; the units lie in the tensor.
    unsafe {
        let moments = [Bytes::<L::Vector>::of(call, 0, m)?, Bytes::of(call, 1, v)?];
        Some(if is_f32_in_place(call) {
            step::<L, true>(call, scalars, &moments, units)
        } else {
            step::<L, false>(call, scalars, &moments, units)
        })
    }
}

#[inline(always)]
unsafe fn step<L: Lanes, const F32_IN_PLACE: bool>(
    call: &TensorCall<'_>,
    scalars: &Scalars,
    moments: &[Bytes<'_, L::Vector>; 2],
    units: Range<i64>,
) -> i64 {
    let mut work = Work::ZERO;
    let mut skipped = 0;
    for unit in Run::of_units(&call.tensor.grid, units) {
        // SAFETY: the unit lies in the tensor.
        skipped += unsafe { work.step::<L, F32_IN_PLACE>(call, scalars, moments, unit) };
    }
    skipped
}

/// Whether the square of any gradient of a unit is not finite.
#[inline(always)]
unsafe fn any_not_finite<L: Lanes>(call: &TensorCall<'_>, unit: Run, g: &mut Chunk) -> bool {
    let mut any = false;
    for run in unit.parts(CHUNK) {
        // SAFETY: the run lies in the tensor.
        unsafe {
            let gradient = gradient::<L, false>(call, run, g);
            any |= any_square_not_finite(gradient, L::Vector::splat(call.grad_scale));
        }
    }
    any
}

/// What of a unit is not in registers.
struct Work {
    p: Chunk,
    g: Chunk,
    codes: [[u8; CHUNK]; 2],
    scales: [f32; 2],
    new: [[Chunk; MOST_CHUNKS]; 2],
}

impl Work {
    const ZERO: Self = Self {
        p: Chunk::ZERO,
        g: Chunk::ZERO,
        codes: [[0; CHUNK]; 2],
        scales: [0.0; 2],
        new: [[Chunk::ZERO; MOST_CHUNKS]; 2],
    };

    /// Updates a unit; returns 1 if it was skipped. `F32_IN_PLACE` is for its whole chunks.
    #[inline(always)]
    unsafe fn step<L: Lanes, const F32_IN_PLACE: bool>(
        &mut self,
        call: &TensorCall<'_>,
        scalars: &Scalars,
        moments: &[Bytes<'_, L::Vector>; 2],
        unit: Run,
    ) -> i64 {
        let chunks = unit.len.div_ceil(CHUNK);
        // SAFETY: the runs lie in the tensor.
        unsafe {
            let zero = L::Vector::splat(0.0);
            let mut largest = [zero; 2];
            self.scales = [*moments[0].scale(unit), *moments[1].scale(unit)];
            for (c, run) in unit.parts(CHUNK).enumerate() {
                largest = if run.len == CHUNK {
                    // So that the compiler knows it.
                    let run = Run { len: CHUNK, ..run };
                    self.advance::<L, F32_IN_PLACE>(call, scalars, moments, run, c, largest)
                } else {
                    self.advance::<L, false>(call, scalars, moments, run, c, largest)
                };
            }
            // As in `adamw.rs`.
            if !largest[1].all_usual() {
                if call.skip_blocks && any_not_finite::<L>(call, unit, &mut self.g) {
                    skip(call, unit);
                    return 1;
                }
                largest[1] = zero;
                for v in &self.new[1][..chunks] {
                    for v in load::<L::Vector>(v).as_ref() {
                        largest[1] = largest[1].largest(*v);
                    }
                }
            }
            for (c, run) in unit.parts(CHUNK).enumerate() {
                if run.len == CHUNK {
                    let run = Run { len: CHUNK, ..run };
                    self.update::<L, F32_IN_PLACE>(call, scalars, run, c);
                } else {
                    self.update::<L, false>(call, scalars, run, c);
                }
            }
            for ((moment, new), largest) in moments.iter().zip(&self.new).zip(largest) {
                moment.close::<L>(call, unit, &new[..chunks], largest.reduce_largest());
            }
        }
        0
    }

    /// Makes the new moments of a run, chunk `c` of the unit, zeros behind it; returns the largest
    /// magnitudes of m and the highest of v in each lane, given those of the chunks before.
    #[inline(always)]
    unsafe fn advance<L: Lanes, const F32_IN_PLACE: bool>(
        &mut self,
        call: &TensorCall<'_>,
        scalars: &Scalars,
        moments: &[Bytes<'_, L::Vector>; 2],
        run: Run,
        c: usize,
        before: [L::Vector; 2],
    ) -> [L::Vector; 2] {
        let [m, v] = moments;
        let [new_m, new_v] = self.new.each_mut().map(|new| &mut new[c]);
        // SAFETY: the run lies in the tensor.
        unsafe {
            let gradient = gradient::<L, F32_IN_PLACE>(call, run, &mut self.g);
            let splat = |x| L::Vector::splat(x);
            let grad_scale = splat(call.grad_scale);
            let (beta1, one_minus_beta1) = (splat(scalars.beta1), splat(scalars.one_minus_beta1));
            let (beta2, one_minus_beta2) = (splat(scalars.beta2), splat(scalars.one_minus_beta2));
            let [scale_m, scale_v] = self.scales.map(splat);
            let [room_m, room_v] = &mut self.codes;
            let (codes_m, codes_v) = (m.open(run, room_m), v.open(run, room_v));
            let [mut largest_m, mut largest_v] = before;
            for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                let g = L::Vector::load(gradient.add(at)).mul(grad_scale); // R1
                let w = g.mul(g); // R2
                let m = m.decoder.decode(codes_m.add(at)).mul(scale_m);
                let v = v.decoder.decode(codes_v.add(at)).mul(scale_v);
                let m = beta1.mul_add(m, one_minus_beta1.mul(g)); // R3
                let v = beta2.mul_add(v, one_minus_beta2.mul(w)); // R4
                m.store(new_m.as_mut_ptr().add(at));
                v.store(new_v.as_mut_ptr().add(at));
                largest_m = largest_m.largest(m);
                largest_v = largest_v.highest(v);
            }
            if run.len < CHUNK {
                new_m[run.len..].fill(0.0);
                new_v[run.len..].fill(0.0);
                [largest_m, largest_v] = before;
                let (m, v) = (load::<L::Vector>(new_m), load::<L::Vector>(new_v));
                for (m, v) in m.as_ref().iter().zip(v.as_ref()) {
                    largest_m = largest_m.largest(*m);
                    largest_v = largest_v.highest(*v);
                }
            }
            [largest_m, largest_v]
        }
    }

    /// Updates the parameters of a run, chunk `c` of the unit.
    #[inline(always)]
    unsafe fn update<L: Lanes, const F32_IN_PLACE: bool>(
        &mut self,
        call: &TensorCall<'_>,
        scalars: &Scalars,
        run: Run,
        c: usize,
    ) {
        let [m, v] = self.new.each_ref().map(|new| new[c].as_ptr());
        // SAFETY: the run lies in the tensor.
        unsafe {
            let splat = |x| L::Vector::splat(x);
            let (inv_sqrt_bc2, eps) = (splat(scalars.inv_sqrt_bc2), splat(scalars.eps));
            let (lr_bc1, lr_wd) = (splat(scalars.lr_bc1), splat(scalars.lr_wd));
            let (p, base) = parameters::<L, F32_IN_PLACE>(call, run, &mut self.p);
            for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                let (m, v) = (L::Vector::load(m.add(at)), L::Vector::load(v.add(at)));
                let d = v.sqrt().mul_add(inv_sqrt_bc2, eps); // R5
                let q = m.div(d); // R6
                let decay = lr_wd.mul(L::Vector::load(p.add(at)));
                let base = L::Vector::load(base.add(at));
                let result = base.sub(lr_bc1.mul_add(q, decay)); // R7, R8
                result.canonical().store(p.add(at));
            }
            store_result::<L, F32_IN_PLACE>(call, run, p);
        }
    }
}

/// A moment of eight bits in blocks that are units.
struct Bytes<'a, V: Vector> {
    state: usize,
    codes: *mut u8,
    scales: *mut f32,
    in_row: usize,
    block: usize,
    decoder: Decoder<V>,
    encoder: Encoder<'a, V>,
}

impl<'a, V: Vector> Bytes<'a, V> {
    #[inline(always)]
    unsafe fn of(call: &TensorCall<'_>, state: usize, codes: &'a Codes) -> Option<Self> {
        let grid = &call.tensor.grid;
        if codes.per_byte != 1
            || codes.rounding != Rounding::Nearest
            || codes.scale_correction
            || codes.dither.is_some()
            || codes.table.linear.is_some()
            || codes.scales != Scales::Block(grid.block)
        {
            return None;
        }
        let buffers = call.state_buffers(state);
        // SAFETY: the kernels are used on processors that have the instructions.
        unsafe {
            Some(Self {
                state,
                codes: buffers[0].data.cast(),
                scales: buffers[1].data.cast(),
                in_row: index(grid.blocks),
                block: index(grid.block),
                decoder: Decoder::of(&codes.table)?,
                encoder: Encoder::new(codes.table.lines.as_ref()?, &codes.table.midpoints),
            })
        }
    }

    /// The scale of a unit.
    #[inline(always)]
    fn scale(&self, unit: Run) -> *mut f32 {
        let at = unit.row * self.in_row + unit.col / self.block;
        self.scales.wrapping_add(at)
    }

    /// Where the codes of a run can be read, for a whole chunk.
    #[inline(always)]
    unsafe fn open(&self, run: Run, room: &mut [u8; CHUNK]) -> *const u8 {
        // SAFETY: the caller's run lies in the tensor.
        unsafe {
            let codes = self.codes.add(run.first).cast_const();
            if run.len == CHUNK {
                return codes;
            }
            std::ptr::copy_nonoverlapping(codes, room.as_mut_ptr(), run.len);
        }
        room.as_ptr()
    }

    /// Stores the new values of a unit, zeros behind them, given the bits of the largest magnitude.
    #[inline(always)]
    unsafe fn close<L: Lanes<Vector = V>>(
        &self,
        call: &TensorCall<'_>,
        unit: Run,
        values: &[Chunk],
        largest: i32,
    ) {
        let scale = block_scale(largest);
        // SAFETY: the caller's unit lies in the tensor.
        unsafe {
            if !Lines::cover(scale) {
                return encode_unit::<L>(call, self.state, unit, values, Source::Statistics);
            }
            *self.scale(unit) = scale;
            for (run, values) in unit.parts(CHUNK).zip(values) {
                let values = load::<V>(values);
                let to = self.codes.add(run.first);
                if run.len == CHUNK {
                    self.encoder.encode(values.as_ref(), scale, to);
                } else {
                    let mut codes = [0; CHUNK];
                    self.encoder
                        .encode(values.as_ref(), scale, codes.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(codes.as_ptr(), to, run.len);
                }
            }
        }
    }
}
