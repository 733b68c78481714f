//! AdamW and Adam on moments of eight bits (`bytes.rs`).
//!
//! Rounding steps are numbered as in `optimizer/adamw.rs`.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::marker::PhantomData;
use std::ops::Range;

use super::bytes::{Bytes, any_not_finite};
use super::elements::{Ahead, Elements, Kind, lanes, with_decay};
use super::run::Run;
use super::{MOST_CHUNKS, skip};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Compiled, Lanes, Random, Vector, load};
use crate::layout::index;
use crate::numerics::Scalars;
use crate::optimizer::Adamw;
use crate::plan::Format;

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
        Some(
            with_decay!(call, Kind::of(call), E => L::run(Units::<L, E> {
                call,
                scalars,
                moments,
                units,
                elements: PhantomData,
            })),
        )
    }
}

/// Units of a tensor.
struct Units<'a, L: Lanes, E> {
    call: &'a TensorCall<'a>,
    scalars: &'a Scalars,
    moments: [Bytes<'a, L::Vector>; 2],
    units: Range<i64>,
    elements: PhantomData<E>,
}

impl<L: Lanes, E: Elements<L>> Compiled for Units<'_, L, E> {
    type Output = i64;

    #[inline(always)]
    unsafe fn run(self) -> i64 {
        let grid = &self.call.tensor.grid;
        let mut work = Work::ZERO;
        let mut skipped = 0;
        for row in Run::of_rows(grid, self.units) {
            for unit in row.parts(index(grid.block)) {
                // SAFETY: the caller's promise; the units lie in the tensor.
                skipped +=
                    unsafe { work.step::<L, E>(self.call, self.scalars, &self.moments, unit) };
            }
        }
        skipped
    }
}

/// What of a unit is not in registers.
struct Work {
    p: Chunk,
    g: Chunk,
    random: Random,
    codes: [[u8; CHUNK]; 2],
    scales: [f32; 2],
    new: [[Chunk; MOST_CHUNKS]; 2],
}

impl Work {
    const ZERO: Self = Self {
        p: Chunk::ZERO,
        g: Chunk::ZERO,
        random: Random::ZERO,
        codes: [[0; CHUNK]; 2],
        scales: [0.0; 2],
        new: [[Chunk::ZERO; MOST_CHUNKS]; 2],
    };

    /// Updates a unit; returns 1 if it was skipped.
    #[inline(always)]
    unsafe fn step<L: Lanes, E: Elements<L>>(
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
                largest = self.advance::<L, E>(call, scalars, moments, run, c, largest);
            }
            // As in `adamw.rs`.
            if !largest[1].all_usual() {
                if call.skip_blocks && any_not_finite::<L, E>(call, unit, &mut self.g) {
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
            let [m, v] = moments;
            let scales = [m.rescale(unit, largest[0]), v.rescale(unit, largest[1])];
            for (c, run) in unit.parts(CHUNK).enumerate() {
                self.update::<L, E>(call, scalars, run, c);
            }
            for ((moment, new), scale) in moments.iter().zip(&self.new).zip(scales) {
                moment.close::<L>(call, unit, &new[..chunks], scale);
            }
        }
        0
    }

    /// Makes the new moments of a run, chunk `c` of the unit, zeros behind it; returns the largest
    /// magnitudes of m and the highest of v in each lane, given those of the chunks before.
    #[inline(always)]
    unsafe fn advance<L: Lanes, E: Elements<L>>(
        &mut self,
        call: &TensorCall<'_>,
        scalars: &Scalars,
        moments: &[Bytes<'_, L::Vector>; 2],
        run: Run,
        c: usize,
        [mut largest_m, mut largest_v]: [L::Vector; 2],
    ) -> [L::Vector; 2] {
        let [m, v] = moments;
        let [new_m, new_v] = self.new.each_mut().map(|new| &mut new[c]);
        // SAFETY: the run lies in the tensor.
        unsafe {
            let gradients = E::gradients(call, run, &mut self.g);
            let ahead = Ahead::of_both::<L, E>(call, run);
            let splat = |x| L::Vector::splat(x);
            let (grad_scale, zero) = (splat(E::grad_scale(call)), splat(0.0));
            let (beta1, one_minus_beta1) = (splat(scalars.beta1), splat(scalars.one_minus_beta1));
            let (beta2, one_minus_beta2) = (splat(scalars.beta2), splat(scalars.one_minus_beta2));
            let (scale_m, scale_v) = (splat(self.scales[0]), splat(self.scales[1]));
            let [room_m, room_v] = &mut self.codes;
            let (codes_m, codes_v) = (m.open(run, room_m), v.open(run, room_v));
            for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                let lanes = lanes::<L::Vector>(run, at);
                if lanes == 0 {
                    zero.store(new_m.as_mut_ptr().add(at));
                    zero.store(new_v.as_mut_ptr().add(at));
                    continue;
                }
                E::ask(ahead, at);
                let g = E::gradient(gradients, at, lanes).mul(grad_scale); // R1
                let w = g.mul(g); // R2
                let m = m.decoder.decode(codes_m.add(at)).mul(scale_m);
                let v = v.decoder.decode(codes_v.add(at)).mul(scale_v);
                let m = beta1.mul_add(m, one_minus_beta1.mul(g)); // R3
                let v = beta2.mul_add(v, one_minus_beta2.mul(w)); // R4
                let (m, v) = (m.keep(lanes), v.keep(lanes));
                m.store(new_m.as_mut_ptr().add(at));
                v.store(new_v.as_mut_ptr().add(at));
                largest_m = largest_m.largest(m);
                largest_v = largest_v.highest(v);
            }
            if E::hides_non_finite(gradients) {
                largest_v = splat(f32::NAN);
            }
            [largest_m, largest_v]
        }
    }

    /// Updates the parameters of a run, chunk `c` of the unit.
    #[inline(always)]
    unsafe fn update<L: Lanes, E: Elements<L>>(
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
            E::draw(call, run, &mut self.random);
            let p = E::parameters(call, run, &mut self.p, &self.random);
            for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                let lanes = lanes::<L::Vector>(run, at);
                if lanes == 0 {
                    break;
                }
                let (m, v) = (L::Vector::load(m.add(at)), L::Vector::load(v.add(at)));
                let d = v.sqrt().mul_add(inv_sqrt_bc2, eps); // R5
                let q = m.div(d); // R6
                let old = E::parameter(p, at, lanes);
                let decay = if E::DECAYED {
                    splat(0.0)
                } else {
                    lr_wd.mul(old)
                };
                let result = E::base(p, at, old).sub(lr_bc1.mul_add(q, decay)); // R7, R8
                E::replace(p, at, lanes, result);
            }
            E::end(call, run, p);
        }
    }
}
