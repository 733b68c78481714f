//! SGD with momentum and Lion on units of a chunk, a register at a time, for m in f32, or in 4
//! bits in blocks of a chunk. What else there is takes the way of [`super::apply_unit`], to the same bits.
//!
//! Rounding steps are numbered as in `optimizer/sgdm.rs` and `optimizer/lion.rs`.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;

use super::elements::{Ahead, Elements, lanes};
use super::registers::{Blocks, Kernel, Moment, Plain, Updated, Work, skips, step};
use super::run::Run;
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{Lanes, Vector, each_few};
use crate::optimizer::{Lion, Sgdm};
use crate::plan::Format;

/// Updates units of a chunk; returns how many were skipped, or `None` for a tensor that this is
/// not for.
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
    // SAFETY: the caller's promise; the format is the state's.
    unsafe {
        match &m.format {
            Format::F32 => {
                let m = Plain::of(call, 0);
                Some(step::<L, _>(call, units, Momentum { rule, m }))
            }
            Format::Codes(codes) => {
                let m = Blocks::<L::Vector>::of(call, 0, codes)?;
                Some(step::<L, _>(call, units, Momentum { rule, m }))
            }
            _ => None,
        }
    }
}

/// A rule on registers.
pub(super) trait Step: Copy {
    /// The new m, and what is taken from the parameter.
    ///
    /// # Safety
    /// As for [`Vector`].
    unsafe fn step<V: Vector>(&self, p: V, g: V, m: V) -> (V, V);
}

impl Step for Sgdm {
    #[inline(always)]
    unsafe fn step<V: Vector>(&self, p: V, g: V, m: V) -> (V, V) {
        // SAFETY: the caller's promise.
        unsafe {
            let g = if self.l2 == 0.0 {
                g
            } else {
                V::splat(self.l2).mul_add(p, g)
            };
            let momentum = V::splat(self.momentum);
            let m = if self.first {
                g
            } else {
                momentum.mul_add(m, V::splat(self.one_minus_dampening).mul(g)) // R3
            };
            let q = if self.nesterov {
                momentum.mul_add(m, g)
            } else {
                m
            }; // R6
            let decay = if self.lr_wd == 0.0 {
                V::splat(0.0)
            } else {
                V::splat(self.lr_wd).mul(p)
            };
            (m, V::splat(self.lr).mul_add(q, decay)) // R7
        }
    }
}

impl Step for Lion {
    #[inline(always)]
    unsafe fn step<V: Vector>(&self, p: V, g: V, m: V) -> (V, V) {
        // SAFETY: the caller's promise.
        unsafe {
            let c = V::splat(self.beta1).mul_add(m, V::splat(self.one_minus_beta1).mul(g));
            let m = V::splat(self.beta2).mul_add(m, V::splat(self.one_minus_beta2).mul(g)); // R3
            let decay = V::splat(self.lr_wd).mul(p);
            (m, V::splat(self.lr).mul_add(c.sign(), decay)) // R6, R7
        }
    }
}

/// A rule on its one state.
struct Momentum<'a, R, M> {
    rule: &'a R,
    m: M,
}

impl<L: Lanes, R: Step, M: Moment<L>> Kernel<L> for Momentum<'_, R, M> {
    type Left = (M::Open, M::Scale);

    #[inline(always)]
    unsafe fn enter(&mut self, call: &TensorCall<'_>, run: Run) {
        // SAFETY: the caller's promise.
        unsafe { self.m.enter(call, run) };
    }

    #[inline(always)]
    unsafe fn first<E: Elements<L>>(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        work: &mut Work,
    ) -> Option<Self::Left> {
        let Self { rule, m } = self;
        let rule = **rule; // A copy, which what is stored cannot change.
        // SAFETY: the run lies in the tensor.
        unsafe {
            let gradients = E::gradients(call, run, &mut work.g);
            let grad_scale = L::Vector::splat(call.grad_scale);
            if skips::<L, E>(call, run, gradients) {
                return None;
            }
            E::draw(call, run, &mut work.random);
            let p = E::parameters(call, run, &mut work.p, &work.random);
            let ahead = Ahead::of_both::<L, E>(call, run);
            let open = m.open(run, &mut work.states[0]);
            let new = &mut work.new[0];
            let zero = L::Vector::splat(0.0);
            let mut largest = zero;
            for first in each_few::<L::Vector>() {
                let old = m.decode(open, first);
                for (i, old) in old.as_ref().iter().enumerate() {
                    let at = first + i * L::Vector::WIDTH;
                    let lanes = lanes::<L::Vector>(run, at);
                    if lanes == 0 {
                        zero.store(new.as_mut_ptr().add(at));
                        continue;
                    }
                    E::ask(ahead, at);
                    let g = E::gradient(gradients, at, lanes).mul(grad_scale); // R1
                    let before = E::parameter(p, at, lanes);
                    let (m, change) = rule.step(before, g, *old);
                    let m = m.keep(lanes);
                    m.store(new.as_mut_ptr().add(at));
                    largest = largest.largest(m);
                    E::replace(p, at, lanes, E::base(p, at, before).sub(change)); // R8
                }
            }
            E::end(call, run, p);
            Some((open, m.rescale(run, largest)))
        }
    }

    #[inline(always)]
    unsafe fn second<E: Elements<L>>(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        work: &mut Work,
        (open, scale): Self::Left,
    ) {
        // SAFETY: the run lies in the tensor.
        unsafe {
            self.m
                .close(call, run, open, Updated::any(&work.new[0]), scale, ())
        };
    }
}
