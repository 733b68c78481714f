//! SGD with momentum and Lion on a momentum of eight bits (`bytes.rs`).
//!
//! Rounding steps are numbered as in `optimizer/sgdm.rs` and `lion.rs`.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;

use super::bytes::{Bytes, any_not_finite};
use super::momentum::Step;
use super::registers::{ask_ahead, gradient, is_f32_in_place, lanes, parameters, store_result};
use super::run::Run;
use super::{MOST_CHUNKS, skip};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Lanes, Vector};
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
        let mut work = Work {
            f32_in_place: is_f32_in_place(call),
            ..Work::ZERO
        };
        let mut skipped = 0;
        for unit in Run::of_units(&call.tensor.grid, units) {
            skipped += work.step::<L, R>(call, rule, &m, unit);
        }
        Some(skipped)
    }
}

/// What of a unit is not in registers.
struct Work {
    f32_in_place: bool,
    p: Chunk,
    g: Chunk,
    codes: [u8; CHUNK],
    scale: f32,
    new: [Chunk; MOST_CHUNKS],
}

impl Work {
    const ZERO: Self = Self {
        f32_in_place: false,
        p: Chunk::ZERO,
        g: Chunk::ZERO,
        codes: [0; CHUNK],
        scale: 0.0,
        new: [Chunk::ZERO; MOST_CHUNKS],
    };

    /// Updates a unit; returns 1 if it was skipped.
    #[inline(always)]
    unsafe fn step<L: Lanes, R: Step>(
        &mut self,
        call: &TensorCall<'_>,
        rule: &R,
        m: &Bytes<'_, L::Vector>,
        unit: Run,
    ) -> i64 {
        // SAFETY: the runs lie in the tensor.
        unsafe {
            if call.skip_blocks && any_not_finite::<L>(call, unit, &mut self.g) {
                skip(call, unit);
                return 1;
            }
            let mut largest = L::Vector::splat(0.0);
            self.scale = *m.scale(unit);
            for (c, run) in unit.parts(CHUNK).enumerate() {
                largest = self.update::<L, R>(call, rule, m, run, c, largest);
            }
            let new = &self.new[..unit.len.div_ceil(CHUNK)];
            let scale = m.rescale(unit, largest);
            m.close::<L>(call, unit, new, scale);
        }
        0
    }

    /// Updates a run, chunk `c` of the unit, and makes its new momentum, zeros behind it; returns the largest
    /// magnitude in each lane, given those of the chunks before.
    #[inline(always)]
    unsafe fn update<L: Lanes, R: Step>(
        &mut self,
        call: &TensorCall<'_>,
        rule: &R,
        m: &Bytes<'_, L::Vector>,
        run: Run,
        c: usize,
        mut largest: L::Vector,
    ) -> L::Vector {
        let new = &mut self.new[c];
        // SAFETY: the run lies in the tensor.
        unsafe {
            let f32_in_place = self.f32_in_place && run.len == CHUNK;
            let gradient = gradient::<L>(call, run, &mut self.g, f32_in_place);
            let (p, base) = parameters::<L>(call, run, &mut self.p, f32_in_place);
            let codes = m.open(run, &mut self.codes);
            let (grad_scale, scale) = (
                L::Vector::splat(call.grad_scale),
                L::Vector::splat(self.scale),
            );
            for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                ask_ahead::<L>(call, run, at, f32_in_place);
                let g = L::Vector::load(gradient.add(at)).mul(grad_scale); // R1
                let p_old = L::Vector::load(p.add(at));
                let m_old = m.decoder.decode(codes.add(at)).mul(scale);
                let (m, change) = rule.step(p_old, g, m_old);
                let m = m.keep(lanes::<L::Vector>(run, at));
                m.store(new.as_mut_ptr().add(at));
                largest = largest.largest(m);
                let result = L::Vector::load(base.add(at)).sub(change); // R8
                result.canonical().store(p.add(at));
            }
            store_result::<L>(call, run, p, f32_in_place);
            largest
        }
    }
}
