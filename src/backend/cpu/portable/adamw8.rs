//! AdamW and Adam on moments of eight bits (`bytes.rs`), by the rule of `adamw.rs`.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::marker::PhantomData;
use std::ops::Range;

use super::adamw::{Divisors, Quotients, Splat};
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
    quotients: [Chunk; MOST_CHUNKS],
}

impl Work {
    const ZERO: Self = Self {
        p: Chunk::ZERO,
        g: Chunk::ZERO,
        random: Random::ZERO,
        codes: [[0; CHUNK]; 2],
        scales: [0.0; 2],
        new: [[Chunk::ZERO; MOST_CHUNKS]; 2],
        quotients: [Chunk::ZERO; MOST_CHUNKS],
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
            let rule = Splat::<L::Vector>::new::<L, E>(call, scalars);
            let zero = L::Vector::splat(0.0);
            let mut largest = [zero; 2];
            self.scales = [*moments[0].scale(unit), *moments[1].scale(unit)];
            for (c, run) in unit.parts(CHUNK).enumerate() {
                largest = if run.len == CHUNK {
                    // So that the compiler knows it.
                    let run = Run { len: CHUNK, ..run };
                    self.advance::<L, E>(call, rule, moments, run, c, largest)
                } else {
                    self.advance::<L, E>(call, rule, moments, run, c, largest)
                };
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
            let [new_m, new_v] = self.new.each_ref().map(|new| &new[..chunks]);
            // Roots and quotients keep the divider for as long as codes take, which leave it alone.
            let divisors = Divisors {
                rule: &rule,
                v: new_v,
                to: &mut self.quotients[..chunks],
            };
            v.close::<L>(call, unit, new_v, scales[1], divisors);
            let quotients = Quotients {
                m: new_m,
                divisors: &mut self.quotients[..chunks],
            };
            m.close::<L>(call, unit, new_m, scales[0], quotients);
            for (c, run) in unit.parts(CHUNK).enumerate() {
                self.update::<L, E>(call, rule, run, c);
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
        rule: Splat<L::Vector>,
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
            let zero = L::Vector::splat(0.0);
            let [scale_m, scale_v] = self.scales.map(|scale| L::Vector::splat(scale));
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
                let g = E::gradient(gradients, at, lanes);
                let m = m.decoder.decode(codes_m.add(at)).mul(scale_m);
                let v = v.decoder.decode(codes_v.add(at)).mul(scale_v);
                let (m, v) = rule.moments(g, m, v, false);
                let (m, v) = (m.keep(lanes), v.keep(lanes));
                m.store(new_m.as_mut_ptr().add(at));
                v.store(new_v.as_mut_ptr().add(at));
                largest_m = largest_m.largest(m);
                largest_v = largest_v.highest(v);
            }
            if E::hides_non_finite(gradients) {
                largest_v = L::Vector::splat(f32::NAN);
            }
            [largest_m, largest_v]
        }
    }

    /// Updates the parameters of a run, chunk `c` of the unit.
    #[inline(always)]
    unsafe fn update<L: Lanes, E: Elements<L>>(
        &mut self,
        call: &TensorCall<'_>,
        rule: Splat<L::Vector>,
        run: Run,
        c: usize,
    ) {
        // SAFETY: the run lies in the tensor.
        unsafe {
            E::draw(call, run, &mut self.random);
            let p = E::parameters(call, run, &mut self.p, &self.random);
            for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                let lanes = lanes::<L::Vector>(run, at);
                if lanes == 0 {
                    break;
                }
                let q = L::Vector::load(self.quotients[c].as_ptr().add(at));
                rule.update::<L, E>(q, p, at, lanes);
            }
            E::end(call, run, p);
        }
    }
}
