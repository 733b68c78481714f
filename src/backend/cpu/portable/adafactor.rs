//! Adafactor with a factored v a register at a time, without momentum, or with one in f32, or in
//! 4 bits in blocks of a chunk. What else there is takes the way of [`super::apply_unit`], to the same bits.
//!
//! Rounding steps are numbered as in `optimizer/adafactor.rs`.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;

use super::elements::{Ahead, Elements, lanes};
use super::factored::Factored;
use super::registers::{Blocks, Kernel, Moment, Plain, Room, Updated, Work, skips, step};
use super::run::{Run, load_run};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{Beside, Chunk, Lanes, Vector, each_few};
use crate::optimizer::Adafactor;
use crate::plan::Format;

/// Updates units of a chunk; returns how many were skipped, or `None` for a tensor that this is
/// not for.
///
/// # Safety
/// As for [`super::apply`].
#[inline(always)]
pub(super) unsafe fn in_registers<L: Lanes>(
    call: &TensorCall<'_>,
    rule: &Adafactor,
    units: Range<i64>,
) -> Option<i64> {
    let (_, factors) = call.tensor.factored()?;
    let v = Factored::of(call, factors)?;
    // SAFETY: the caller's promise; the format is the state's.
    unsafe {
        match call.tensor.states.get(1).map(|m| &m.format) {
            None => Some(step::<L, _>(call, units, Clipped { rule, v, m: Absent })),
            Some(Format::F32) => {
                let m = Plain::of(call, 1);
                Some(step::<L, _>(call, units, Clipped { rule, v, m }))
            }
            Some(Format::Codes(codes)) => {
                let m = Blocks::<L::Vector>::of(call, 1, codes)?;
                Some(step::<L, _>(call, units, Clipped { rule, v, m }))
            }
            Some(_) => None,
        }
    }
}

/// No momentum.
struct Absent;

impl<L: Lanes> Moment<L> for Absent {
    type Open = ();
    type Scale = ();

    #[inline(always)]
    unsafe fn enter(&mut self, _: &TensorCall<'_>, _: Run) {}

    #[inline(always)]
    unsafe fn open(&self, _: Run, _: &mut Room) {}

    #[inline(always)]
    unsafe fn decode(&self, (): (), _: usize) -> <L::Vector as Vector>::Few {
        L::Vector::FEW
    }

    #[inline(always)]
    unsafe fn rescale(&self, _: Run, _: L::Vector) {}

    #[inline(always)]
    unsafe fn close(
        &self,
        _: &TensorCall<'_>,
        _: Run,
        (): (),
        _: Updated<'_>,
        (): (),
        beside: impl Beside<L::Vector>,
    ) {
        // SAFETY: the caller's promise.
        unsafe { beside.all(1) };
    }
}

/// The rule on its states.
struct Clipped<'a, M> {
    rule: &'a Adafactor,
    v: Factored<'a>,
    m: M,
}

impl<L: Lanes, M: Moment<L>> Kernel<L> for Clipped<'_, M> {
    type Left = (M::Open, M::Scale);

    #[inline(always)]
    unsafe fn enter(&mut self, call: &TensorCall<'_>, run: Run) {
        // SAFETY: the caller's promise.
        unsafe {
            Moment::<L>::enter(&mut self.v, call, run);
            self.m.enter(call, run);
        }
    }

    #[inline(always)]
    unsafe fn first<E: Elements<L>>(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        work: &mut Work,
    ) -> Option<Self::Left> {
        let Self { rule, v, m } = self;
        // SAFETY: the run lies in the tensor.
        unsafe {
            let gradients = E::gradients(call, run, &mut work.g);
            let splat = |x| L::Vector::splat(x);
            let grad_scale = splat(call.grad_scale);
            if skips::<L, E>(call, run, gradients) {
                return None;
            }
            let (beta1, one_minus_beta1) = (splat(rule.beta1), splat(rule.one_minus_beta1));
            let (clip, alpha, rho_wd) = (splat(rule.clip), splat(rule.alpha), splat(rule.rho_wd));
            E::draw(call, run, &mut work.random);
            let p = E::parameters(call, run, &mut work.p, &work.random);
            let ahead = Ahead::of_both::<L, E>(call, run);
            let [room_v, room_m] = &mut work.states;
            let v_of_run = Moment::<L>::open(v, run, room_v);
            let open = m.open(run, room_m);
            let new = &mut work.new[0];
            let zero = splat(0.0);
            let mut largest = zero;
            for first in each_few::<L::Vector>() {
                let of_v = Moment::<L>::decode(v, v_of_run, first);
                let of_m = m.decode(open, first);
                let registers = of_v.as_ref().iter().zip(of_m.as_ref()).enumerate();
                for (i, (v, m)) in registers {
                    let at = first + i * L::Vector::WIDTH;
                    let lanes = lanes::<L::Vector>(run, at);
                    if lanes == 0 {
                        zero.store(new.as_mut_ptr().add(at));
                        continue;
                    }
                    E::ask(ahead, at);
                    let g = E::gradient(gradients, at, lanes).mul(grad_scale); // R1
                    let d = v.sqrt(); // R5
                    let q = g.div(d).mul(clip); // R6
                    let m = beta1.mul_add(*m, one_minus_beta1.mul(q)); // R3
                    let q = if rule.momentum { m } else { q };
                    let m = m.keep(lanes);
                    m.store(new.as_mut_ptr().add(at));
                    largest = largest.largest(m);
                    let old = E::parameter(p, at, lanes);
                    let decay = rho_wd.mul(old);
                    let result = E::base(p, at, old).sub(alpha.mul_add(q, decay)); // R7, R8
                    E::replace(p, at, lanes, result);
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

/// `RN(g / d)` of a run of at most a chunk; behind it, any numbers.
///
/// # Safety
/// The run lies in the tensor, in the row that v has entered.
#[inline(always)]
pub(super) unsafe fn unclipped<L: Lanes>(
    call: &TensorCall<'_>,
    v: &Factored<'_>,
    run: Run,
    room: &mut Room,
    out: &mut Chunk,
) {
    // SAFETY: the caller's promise.
    unsafe {
        load_run::<L>(call.grad, call.tensor.info.grad_dtype, run, out);
        let columns = Moment::<L>::open(v, run, room);
        let grad_scale = L::Vector::splat(call.grad_scale);
        for first in each_few::<L::Vector>() {
            let of_v = Moment::<L>::decode(v, columns, first);
            for (i, v) in of_v.as_ref().iter().enumerate() {
                let to = out.as_mut_ptr().add(first + i * L::Vector::WIDTH);
                let g = L::Vector::load(to).mul(grad_scale); // R1
                let d = v.sqrt(); // R5
                g.div(d).store(to); // R6
            }
        }
    }
}
