//! AdamW without options on units of a chunk, in registers from load to store, for the states of
//! `registers.rs`, `rank1.rs` and `factored.rs`. What else there is takes the way of
//! [`super::apply_unit`], to the same bits.
//!
//! Rounding steps are numbered as in `optimizer/adamw.rs`.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;

use super::factored::Factored;
use super::rank1::{Period, RankOne};
use super::registers::{
    Blocks, Kernel, Moment, Plain, Work, any_square_not_finite, clear_behind, gradient, parameters,
    step, store_result,
};
use super::run::Run;
use super::skip;
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Lanes, Vector, registers};
use crate::numerics::Scalars;
use crate::optimizer::Adamw;
use crate::plan::{Format, Pass};

/// Updates units of at most a chunk; returns how many were skipped, or `None` for a tensor that this is
/// not for.
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
    // SAFETY: the caller's promise; the formats are the states'.
    unsafe {
        match (&m.format, &v.format) {
            (Format::F32, Format::F32) => {
                let (m, v) = (Plain::of(call, 0), Plain::of(call, 1));
                Some(step::<L, _>(call, units, Moments { scalars, m, v }))
            }
            (Format::F32, Format::Factored(factors)) => {
                let (m, v) = (Plain::of(call, 0), Factored::of(call, factors)?);
                Some(step::<L, _>(call, units, Moments { scalars, m, v }))
            }
            (Format::Codes(m), Format::Codes(v)) => {
                let m = Blocks::<L::Vector>::of(call, 0, m)?;
                if let Some(v) = Blocks::of(call, 1, v) {
                    return Some(step::<L, _>(call, units, Moments { scalars, m, v }));
                }
                let mut period = Period::MEMORY;
                let v = RankOne::of(call, 1, v, Pass::Apply, &mut period)?;
                Some(step::<L, _>(call, units, Moments { scalars, m, v }))
            }
            (Format::Codes(m), Format::Factored(factors)) => {
                let m = Blocks::<L::Vector>::of(call, 0, m)?;
                let v = Factored::of(call, factors)?;
                Some(step::<L, _>(call, units, Moments { scalars, m, v }))
            }
            _ => None,
        }
    }
}

/// AdamW on two states.
struct Moments<'a, M, V> {
    scalars: &'a Scalars,
    m: M,
    v: V,
}

impl<L: Lanes, M: Moment<L>, V: Moment<L>> Kernel<L> for Moments<'_, M, V> {
    #[inline(always)]
    unsafe fn enter(&mut self, call: &TensorCall<'_>, run: Run) {
        // SAFETY: the caller's promise.
        unsafe {
            self.m.enter(call, run);
            self.v.enter(call, run);
        }
    }

    #[inline(always)]
    unsafe fn chunk<const F32_IN_PLACE: bool>(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        work: &mut Work,
    ) -> i64 {
        let Self { scalars, m, v } = self;
        let Work {
            p,
            g,
            states: [room_m, room_v],
        } = work;
        // SAFETY: the run lies in the tensor.
        unsafe {
            let gradient = gradient::<L>(call, run, g, F32_IN_PLACE);
            let splat = |x| L::Vector::splat(x);
            let (grad_scale, zero) = (splat(call.grad_scale), splat(0.0));
            let (beta1, one_minus_beta1) = (splat(scalars.beta1), splat(scalars.one_minus_beta1));
            let (beta2, one_minus_beta2) = (splat(scalars.beta2), splat(scalars.one_minus_beta2));
            let (inv_sqrt_bc2, eps) = (splat(scalars.inv_sqrt_bc2), splat(scalars.eps));
            let (lr_bc1, lr_wd) = (splat(scalars.lr_bc1), splat(scalars.lr_wd));
            let (old_m, old_v) = (m.open(run, room_m), v.open(run, room_v));
            let (mut new_m, mut new_v) = (L::Vector::ZEROS, L::Vector::ZEROS);
            let (mut largest_m, mut largest_v) = (zero, zero);
            for j in 0..registers::<L::Vector>() {
                let at = j * L::Vector::WIDTH;
                let g = L::Vector::load(gradient.add(at)).mul(grad_scale); // R1
                let w = g.mul(g); // R2
                let m = beta1.mul_add(m.decode(old_m, at), one_minus_beta1.mul(g)); // R3
                let old = v.decode(old_v, at);
                let v = if V::IS_NEW {
                    old
                } else {
                    beta2.mul_add(old, one_minus_beta2.mul(w)) // R4
                };
                new_m.as_mut()[j] = m;
                new_v.as_mut()[j] = v;
                largest_m = largest_m.largest(m);
                largest_v = largest_v.highest(v);
            }
            if run.len < CHUNK {
                clear_behind::<L::Vector>(&mut new_m, run.len);
                clear_behind::<L::Vector>(&mut new_v, run.len);
                (largest_m, largest_v) = (zero, zero);
                for (m, v) in new_m.as_ref().iter().zip(new_v.as_ref()) {
                    largest_m = largest_m.largest(*m);
                    largest_v = largest_v.highest(*v);
                }
            }
            // What a finite square leaves of a v that was not negative is not negative either, and v is not
            // finite where the square is not.
            let usual = largest_v.all_usual();
            if !usual {
                if call.skip_blocks && any_square_not_finite(gradient, grad_scale) {
                    skip(call, run);
                    return 1;
                }
                largest_v = zero;
                for v in new_v.as_ref() {
                    largest_v = largest_v.largest(*v);
                }
            }

            let (scale_m, scale_v) = (m.rescale(run, largest_m), v.rescale(run, largest_v));
            let (p, base) = parameters::<L>(call, run, p, F32_IN_PLACE);
            for j in 0..registers::<L::Vector>() {
                let at = j * L::Vector::WIDTH;
                let d = new_v.as_ref()[j].sqrt().mul_add(inv_sqrt_bc2, eps); // R5
                let q = new_m.as_ref()[j].div(d); // R6
                let decay = lr_wd.mul(L::Vector::load(p.add(at)));
                let base = L::Vector::load(base.add(at));
                let result = base.sub(lr_bc1.mul_add(q, decay)); // R7, R8
                result.canonical().store(p.add(at));
            }
            store_result::<L>(call, run, p, F32_IN_PLACE);
            m.close(call, run, old_m, &new_m, scale_m, false);
            v.close(call, run, old_v, &new_v, scale_v, usual);
        }
        0
    }
}
