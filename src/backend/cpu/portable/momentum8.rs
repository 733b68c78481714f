//! SGD with momentum and Lion on a momentum of eight bits (`bytes.rs`).
//!
//! Rounding steps are numbered as in `optimizer/sgdm.rs` and `lion.rs`.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::marker::PhantomData;
use std::ops::Range;

use super::bytes::{Bytes, any_not_finite};
use super::elements::{Ahead, Elements, Kind, lanes, with_elements};
use super::momentum::Step;
use super::run::Run;
use super::{MOST_CHUNKS, skip};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Compiled, Lanes, Random, Vector};
use crate::layout::index;
use crate::plan::Format;

/// Updates units; returns how many were skipped, or `None` for a tensor that this is not for.
///
/// # Safety
/// As for [`super::apply`].
#[inline(always)]
pub(super) unsafe fn in_registers<L: Lanes, R: Step>(
    call: &TensorCall<'_>,
    rule: &R,
    units: Range<i64>,
) -> Option<i64> {
    let [m] = call.tensor.states.as_slice() else {
        return None;
    };
    let Format::Codes(m) = &m.format else {
        return None;
    };
    // SAFETY: the caller's promise; the units lie in the tensor.
    unsafe {
        let m = Bytes::<L::Vector>::of(call, 0, m)?;
        Some(
            with_elements!(Kind::of(call), E => L::run(Units::<L, R, E> {
                call,
                rule,
                m,
                units,
                elements: PhantomData,
            })),
        )
    }
}

/// Units of a tensor.
struct Units<'a, L: Lanes, R, E> {
    call: &'a TensorCall<'a>,
    rule: &'a R,
    m: Bytes<'a, L::Vector>,
    units: Range<i64>,
    elements: PhantomData<E>,
}

impl<L: Lanes, R: Step, E: Elements<L>> Compiled for Units<'_, L, R, E> {
    type Output = i64;

    #[inline(always)]
    unsafe fn run(self) -> i64 {
        let grid = &self.call.tensor.grid;
        let mut work = Work::ZERO;
        let mut skipped = 0;
        for row in Run::of_rows(grid, self.units) {
            for unit in row.parts(index(grid.block)) {
                // SAFETY: the caller's promise; the units lie in the tensor.
                skipped += unsafe { work.step::<L, R, E>(self.call, self.rule, &self.m, unit) };
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
    codes: [u8; CHUNK],
    scale: f32,
    new: [Chunk; MOST_CHUNKS],
}

impl Work {
    const ZERO: Self = Self {
        p: Chunk::ZERO,
        g: Chunk::ZERO,
        random: Random::ZERO,
        codes: [0; CHUNK],
        scale: 0.0,
        new: [Chunk::ZERO; MOST_CHUNKS],
    };

    /// Updates a unit; returns 1 if it was skipped.
    #[inline(always)]
    unsafe fn step<L: Lanes, R: Step, E: Elements<L>>(
        &mut self,
        call: &TensorCall<'_>,
        rule: &R,
        m: &Bytes<'_, L::Vector>,
        unit: Run,
    ) -> i64 {
        // SAFETY: the runs lie in the tensor.
        unsafe {
            if call.skip_blocks && any_not_finite::<L, E>(call, unit, &mut self.g) {
                skip(call, unit);
                return 1;
            }
            let mut largest = L::Vector::splat(0.0);
            self.scale = *m.scale(unit);
            for (c, run) in unit.parts(CHUNK).enumerate() {
                largest = self.update::<L, R, E>(call, rule, m, run, c, largest);
            }
            let new = &self.new[..unit.len.div_ceil(CHUNK)];
            let scale = m.rescale(unit, largest);
            m.close::<L>(call, unit, new, scale, ());
        }
        0
    }

    /// Updates a run, chunk `c` of the unit, and makes its new momentum, zeros behind it; returns the largest
    /// magnitude in each lane, given those of the chunks before.
    #[inline(always)]
    unsafe fn update<L: Lanes, R: Step, E: Elements<L>>(
        &mut self,
        call: &TensorCall<'_>,
        rule: &R,
        m: &Bytes<'_, L::Vector>,
        run: Run,
        c: usize,
        mut largest: L::Vector,
    ) -> L::Vector {
        let new = &mut self.new[c];
        let rule = *rule; // A copy, which what is stored cannot change.
        // SAFETY: the run lies in the tensor.
        unsafe {
            let gradients = E::gradients(call, run, &mut self.g);
            E::draw(call, run, &mut self.random);
            let p = E::parameters(call, run, &mut self.p, &self.random);
            let ahead = Ahead::of_both::<L, E>(call, run);
            let codes = m.open(run, &mut self.codes);
            let (grad_scale, scale) = (
                L::Vector::splat(call.grad_scale),
                L::Vector::splat(self.scale),
            );
            let zero = L::Vector::splat(0.0);
            for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                let lanes = lanes::<L::Vector>(run, at);
                if lanes == 0 {
                    zero.store(new.as_mut_ptr().add(at));
                    continue;
                }
                E::ask(ahead, at);
                let g = E::gradient(gradients, at, lanes).mul(grad_scale); // R1
                let p_old = E::parameter(p, at, lanes);
                let m_old = m.decoder.decode(codes.add(at)).mul(scale);
                let (m, change) = rule.step(p_old, g, m_old);
                let m = m.keep(lanes);
                m.store(new.as_mut_ptr().add(at));
                largest = largest.largest(m);
                E::replace(p, at, lanes, E::base(p, at, p_old).sub(change)); // R8
            }
            E::end(call, run, p);
            largest
        }
    }
}
