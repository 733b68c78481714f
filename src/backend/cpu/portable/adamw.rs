//! AdamW and Adam on units of a chunk, a register at a time, for the states of `registers.rs`, `rank1.rs` and
//! `factored.rs`. What else there is takes the way of
//! [`super::apply_unit`], to the same bits.
//!
//! Rounding steps are numbered as in `optimizer/adamw.rs`.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;

use super::elements::{Ahead, Elements, Kind, lanes, with_decay};
use super::factored::Factored;
use super::rank1::{Memory, RankOne};
use super::registers::{
    Blocks, Kernel, Moment, Plain, Updated, Values, Work, largest_of, skips, step_on,
};
use super::run::Run;
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{
    Beside, BesideCodes, CHUNK, Chunk, Lanes, Part, Random, Vector, few, registers,
};
use crate::numerics::Scalars;
use crate::optimizer::Adamw;
use crate::plan::{Format, Pass};

/// Updates units of a chunk; returns how many were skipped, or `None` for a tensor that this is
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
                Some(on_elements::<L, _>(call, units, Unscaled { scalars, m, v }))
            }
            (Format::F32, Format::Factored(factors)) => {
                let (m, v) = (Plain::of(call, 0), Factored::of(call, factors)?);
                Some(on_elements::<L, _>(call, units, Unscaled { scalars, m, v }))
            }
            (Format::Codes(m), Format::Codes(v)) => {
                let m = Blocks::<L::Vector>::of(call, 0, m)?;
                if let Some(v) = Blocks::of(call, 1, v) {
                    return Some(on_elements::<L, _>(call, units, Moments { scalars, m, v }));
                }
                let mut memory = Memory::UNSET;
                let v = RankOne::of::<L>(call, 1, v, Pass::Apply, &mut memory)?;
                Some(on_elements::<L, _>(call, units, Moments { scalars, m, v }))
            }
            (Format::Codes(m), Format::Factored(factors)) => {
                let m = Blocks::<L::Vector>::of(call, 0, m)?;
                let v = Factored::of(call, factors)?;
                Some(on_elements::<L, _>(call, units, Moments { scalars, m, v }))
            }
            _ => None,
        }
    }
}

/// [`super::registers::step`], or with Adam's decay.
///
/// # Safety
/// As for [`super::apply`].
#[inline(always)]
unsafe fn on_elements<L: Lanes, K: Kernel<L>>(
    call: &TensorCall<'_>,
    units: Range<i64>,
    kernel: K,
) -> i64 {
    // SAFETY: the caller's promise.
    unsafe { with_decay!(call, Kind::of(call), E => step_on::<L, K, E>(call, units, kernel)) }
}

/// The rule on registers.
#[derive(Clone, Copy)]
pub(super) struct Splat<V: Vector> {
    grad_scale: V,
    beta1: V,
    one_minus_beta1: V,
    beta2: V,
    one_minus_beta2: V,
    inv_sqrt_bc2: V,
    eps: V,
    lr_bc1: V,
    lr_wd: V,
}

impl<V: Vector> Splat<V> {
    #[inline(always)]
    pub(super) unsafe fn new<L: Lanes<Vector = V>, E: Elements<L>>(
        call: &TensorCall<'_>,
        scalars: &Scalars,
    ) -> Self {
        // SAFETY: the kernels are used on processors that have the instructions.
        unsafe {
            Self {
                grad_scale: V::splat(E::grad_scale(call)),
                beta1: V::splat(scalars.beta1),
                one_minus_beta1: V::splat(scalars.one_minus_beta1),
                beta2: V::splat(scalars.beta2),
                one_minus_beta2: V::splat(scalars.one_minus_beta2),
                inv_sqrt_bc2: V::splat(scalars.inv_sqrt_bc2),
                eps: V::splat(scalars.eps),
                lr_bc1: V::splat(scalars.lr_bc1),
                lr_wd: V::splat(scalars.lr_wd),
            }
        }
    }

    /// The new m and v, given the gradient and the old ones; v may be [`Moment::IS_NEW`].
    #[inline(always)]
    pub(super) unsafe fn moments(&self, g: V, m: V, v: V, is_new: bool) -> (V, V) {
        // SAFETY: as above.
        unsafe {
            let g = g.mul(self.grad_scale); // R1
            let m = self.beta1.mul_add(m, self.one_minus_beta1.mul(g)); // R3
            if is_new {
                return (m, v);
            }
            let w = g.mul(g); // R2
            (m, self.beta2.mul_add(v, self.one_minus_beta2.mul(w))) // R4
        }
    }

    /// What the new m is to be divided by.
    #[inline(always)]
    unsafe fn divisor(&self, v: V) -> V {
        // SAFETY: as above.
        unsafe { v.sqrt().mul_add(self.inv_sqrt_bc2, self.eps) } // R5
    }

    /// Replaces the parameters of the register at an element of a run, of so many lanes, given the quotient of
    /// the new m and its divisor, R6.
    #[inline(always)]
    pub(super) unsafe fn update<L: Lanes<Vector = V>, E: Elements<L>>(
        &self,
        q: V,
        p: E::Parameters,
        at: usize,
        lanes: usize,
    ) {
        // SAFETY: as above; the caller's run has the parameters.
        unsafe {
            let old = E::parameter(p, at, lanes);
            let decay = if E::DECAYED {
                V::splat(0.0)
            } else {
                self.lr_wd.mul(old)
            };
            let result = E::base(p, at, old).sub(self.lr_bc1.mul_add(q, decay)); // R7, R8
            E::replace(p, at, lanes, result);
        }
    }
}

/// AdamW on two states without scales: nothing waits, and all is done in the first half.
struct Unscaled<'a, M, V> {
    scalars: &'a Scalars,
    m: M,
    v: V,
}

impl<L: Lanes, M: Values<L>, V: Values<L>> Kernel<L> for Unscaled<'_, M, V> {
    type Left = ();

    #[inline(always)]
    unsafe fn enter(&mut self, call: &TensorCall<'_>, run: Run) {
        // SAFETY: the caller's promise.
        unsafe {
            self.m.enter(call, run);
            self.v.enter(call, run);
        }
    }

    #[inline(always)]
    unsafe fn first<E: Elements<L>>(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        work: &mut Work,
    ) -> Option<()> {
        let Self { scalars, m, v } = self;
        // SAFETY: the run lies in the tensor.
        unsafe {
            let gradients = E::gradients(call, run, &mut work.g);
            let ahead = Ahead::of_both::<L, E>(call, run);
            let rule = Splat::<L::Vector>::new::<L, E>(call, scalars);
            let [room_m, room_v] = &mut work.states;
            let open_m = m.open(run, room_m);
            let open_v = v.open(run, room_v);
            let (mut new_m, mut new_v) = (L::Vector::ZEROS, L::Vector::ZEROS);
            let mut highest = L::Vector::splat(0.0);
            let few = few::<L::Vector>();
            for first in (0..registers::<L::Vector>()).step_by(few) {
                let at = first * L::Vector::WIDTH;
                let old = [m.decode(open_m, at), v.decode(open_v, at)];
                for i in 0..few {
                    let (j, at) = (first + i, at + i * L::Vector::WIDTH);
                    let lanes = lanes::<L::Vector>(run, at);
                    if lanes == 0 {
                        break;
                    }
                    E::ask(ahead, at);
                    let g = E::gradient(gradients, at, lanes);
                    let [old_m, old_v] = old.each_ref().map(|old| old.as_ref()[i]);
                    let (m, v) = rule.moments(g, old_m, old_v, V::IS_NEW);
                    new_m.as_mut()[j] = m;
                    new_v.as_mut()[j] = v;
                    highest = highest.highest(v);
                }
            }
            // As below. Behind the run there is whatever was read.
            let usual = highest.all_usual() && !E::hides_non_finite(gradients);
            if !usual && skips::<L, E>(call, run, gradients) {
                return None;
            }
            E::draw(call, run, &mut work.random);
            let p = E::parameters(call, run, &mut work.p, &work.random);
            for j in 0..registers::<L::Vector>() {
                let at = j * L::Vector::WIDTH;
                let lanes = lanes::<L::Vector>(run, at);
                if lanes == 0 {
                    break;
                }
                let (m, v) = (new_m.as_ref()[j], new_v.as_ref()[j]);
                rule.update::<L, E>(m.div(rule.divisor(v)), p, at, lanes);
            }
            E::end(call, run, p);
            for (j, (x, y)) in new_m.as_ref().iter().zip(new_v.as_ref()).enumerate() {
                m.put(open_m, *x, j * L::Vector::WIDTH);
                v.put(open_v, *y, j * L::Vector::WIDTH);
            }
            m.end(run, open_m);
            v.end(run, open_v);
        }
        Some(())
    }

    #[inline(always)]
    unsafe fn second<E: Elements<L>>(&self, _: &TensorCall<'_>, _: Run, _: &mut Work, (): ()) {}
}

/// Of [`BesideCodes::Divisors`], those made beside v's codes, which take less than m's.
const BESIDE_V: usize = 3 * CHUNK / 8;

/// AdamW on two states.
struct Moments<'a, M, V> {
    scalars: &'a Scalars,
    m: M,
    v: V,
}

/// What was opened, the scales, and whether no v is negative, infinite or NaN.
type Left<L, M, V> = (
    (<M as Moment<L>>::Open, <M as Moment<L>>::Scale),
    (<V as Moment<L>>::Open, <V as Moment<L>>::Scale),
    bool,
);

/// A run in its first half.
struct First<'w, L: Lanes, E: Elements<L>, M: Moment<L>, V: Moment<L>> {
    run: Run,
    gradients: E::Gradients,
    ahead: [Ahead; 2],
    next: Ahead<true>,
    open: (M::Open, V::Open),
    new: &'w mut [Chunk; 2],
    quotients: &'w mut Chunk,
    /// Of the new m's magnitudes, and of the new v.
    largest: [L::Vector; 2],
    random: &'w mut Random,
}

impl<L: Lanes, E: Elements<L>, M: Moment<L>, V: Moment<L>> First<'_, L, E, M, V> {
    #[inline(always)]
    fn divisors<'a>(&'a mut self, rule: &'a Splat<L::Vector>) -> Divisors<'a, L::Vector> {
        Divisors {
            rule,
            v: std::slice::from_ref(&self.new[1]),
            to: std::slice::from_mut(self.quotients),
        }
    }

    #[inline(always)]
    fn quotients(&mut self) -> Quotients<'_> {
        Quotients {
            m: std::slice::from_ref(&self.new[0]),
            divisors: std::slice::from_mut(self.quotients),
        }
    }
}

/// A run in its second half.
struct Second<'w, L: Lanes, E: Elements<L>> {
    run: Run,
    p: E::Parameters,
    new: &'w [Chunk; 2],
    /// Or divisors, if they are made before ([`Lanes::BESIDE_CODES`]).
    quotients: &'w Chunk,
}

/// The divisors of chunks, made beside other chunks' codes.
pub(super) struct Divisors<'a, V: Vector> {
    pub(super) rule: &'a Splat<V>,
    pub(super) v: &'a [Chunk],
    pub(super) to: &'a mut [Chunk],
}

impl<V: Vector> Beside<V> for Divisors<'_, V> {
    #[inline(always)]
    unsafe fn register(&mut self, at: usize) {
        let (v, to) = (self.v.as_ptr(), self.to.as_mut_ptr());
        // SAFETY: the caller's register lies in the chunks.
        unsafe {
            let v = V::load(v.cast::<f32>().add(at));
            self.rule.divisor(v).store(to.cast::<f32>().add(at));
        }
    }
}

/// The quotients of chunks, in place of their divisors.
pub(super) struct Quotients<'a> {
    pub(super) m: &'a [Chunk],
    pub(super) divisors: &'a mut [Chunk],
}

impl<V: Vector> Beside<V> for Quotients<'_> {
    #[inline(always)]
    unsafe fn register(&mut self, at: usize) {
        let (m, divisors) = (self.m.as_ptr(), self.divisors.as_mut_ptr());
        // SAFETY: as above.
        unsafe {
            let m = V::load(m.cast::<f32>().add(at));
            let quotients = divisors.cast::<f32>().add(at);
            m.div(V::load(quotients)).store(quotients);
        }
    }
}

impl<M, V> Moments<'_, M, V> {
    /// Some registers of both halves, or of one of them, a register of each in turn. Whether there is one is
    /// known when this is compiled, and whether all registers are `WHOLE`.
    #[inline(always)]
    unsafe fn registers<L: Lanes, E: Elements<L>, const WHOLE: bool>(
        &self,
        rule: Splat<L::Vector>,
        registers: Range<usize>,
        first: &mut Option<First<'_, L, E, M, V>>,
        second: &Option<Second<'_, L, E>>,
    ) where
        M: Moment<L>,
        V: Moment<L>,
    {
        let Self { m, v, .. } = self;
        let few = few::<L::Vector>();
        // SAFETY: the runs lie in the tensor.
        unsafe {
            let zero = L::Vector::splat(0.0);
            for j in registers.step_by(few) {
                let mut old = [L::Vector::FEW; 2];
                if let Some(first) = first {
                    let (at, (m_of_run, v_of_run)) = (j * L::Vector::WIDTH, first.open);
                    old = [m.decode(m_of_run, at), v.decode(v_of_run, at)];
                }
                let mut largest = [zero; 2];
                for i in 0..few {
                    let at = (j + i) * L::Vector::WIDTH;
                    if let Some(first) = first {
                        let lanes = if WHOLE {
                            L::Vector::WIDTH
                        } else {
                            lanes::<L::Vector>(first.run, at)
                        };
                        let (m, v) = if lanes == 0 {
                            (zero, zero)
                        } else {
                            E::ask(first.ahead, at);
                            if V::COLLECTED {
                                E::ask([first.next], at);
                            }
                            let g = E::gradient(first.gradients, at, lanes);
                            let [old_m, old_v] = old.each_ref().map(|old| old.as_ref()[i]);
                            let (m, v) = rule.moments(g, old_m, old_v, V::IS_NEW);
                            (m.keep(lanes), v.keep(lanes))
                        };
                        let [new_m, new_v] = &mut *first.new;
                        m.store(new_m.as_mut_ptr().add(at));
                        v.store(new_v.as_mut_ptr().add(at));
                        largest[0] = largest[0].largest(m);
                        largest[1] = largest[1].highest(v);
                    }
                    if let Some(second) = second {
                        let lanes = if WHOLE {
                            L::Vector::WIDTH
                        } else {
                            lanes::<L::Vector>(second.run, at)
                        };
                        if lanes > 0 {
                            let [m, v] = second.new.each_ref().map(|new| new.as_ptr().add(at));
                            let made = L::Vector::load(second.quotients.as_ptr().add(at));
                            let q = match L::BESIDE_CODES {
                                BesideCodes::Nothing => {
                                    L::Vector::load(m).div(rule.divisor(L::Vector::load(v)))
                                }
                                BesideCodes::Divisors => L::Vector::load(m).div(made),
                                BesideCodes::Quotients => made,
                            };
                            rule.update::<L, E>(q, second.p, at, lanes);
                        }
                    }
                }
                if let Some(first) = first {
                    let [largest_m, largest_v] = &mut first.largest;
                    *largest_m = largest_m.largest(largest[0]);
                    *largest_v = largest_v.highest(largest[1]);
                }
            }
        }
    }

    /// Both halves, or one of them. Whether there is one is known when this is compiled.
    #[inline(always)]
    unsafe fn halves<L: Lanes, E: Elements<L>>(
        &self,
        call: &TensorCall<'_>,
        first: Option<(Run, &mut Work)>,
        second: Option<(Run, &mut Work, Left<L, M, V>)>,
    ) -> Option<Left<L, M, V>>
    where
        M: Moment<L>,
        V: Moment<L>,
    {
        let Self { scalars, m, v } = self;
        // SAFETY: the runs lie in the tensor.
        unsafe {
            let rule = Splat::<L::Vector>::new::<L, E>(call, scalars);
            let (mut opened, mut stored, mut left) = (None, None, None);
            let mut whole = CHUNK;
            if let Some((run, work)) = first {
                whole = whole.min(run.len);
                let [room_m, room_v] = &mut work.states;
                opened = Some(First {
                    run,
                    gradients: E::gradients(call, run, &mut work.g),
                    ahead: Ahead::of_both::<L, E>(call, run),
                    next: Ahead::of_next::<L, E>(call, run),
                    open: (m.open(run, room_m), v.open(run, room_v)),
                    new: &mut work.new,
                    quotients: &mut work.quotients,
                    largest: [L::Vector::splat(0.0); 2],
                    random: &mut work.random,
                });
            }
            if let Some((run, work, of_run)) = second {
                whole = whole.min(run.len);
                stored = Some(Second {
                    run,
                    p: E::parameters(call, run, &mut work.p, &work.random),
                    new: &work.new,
                    quotients: &work.quotients,
                });
                // Not in `Second`: with it there f16 takes an eighth longer (Zen 5).
                left = Some(of_run);
            }
            let few = few::<L::Vector>();
            let (whole, all) = (
                whole / L::Vector::WIDTH / few * few,
                registers::<L::Vector>(),
            );
            self.registers::<L, E, true>(rule, 0..whole, &mut opened, &stored);
            self.registers::<L, E, false>(rule, whole..all, &mut opened, &stored);
            if let (Some(Second { run, p, new, .. }), Some(left)) = (stored, left) {
                E::end(call, run, p);
                let ((open_m, scale_m), (open_v, scale_v), usual) = left;
                let values_m = Updated::any(&new[0]);
                let values = &new[1];
                let values_v = Updated { values, usual };
                match (&mut opened, L::BESIDE_CODES) {
                    (None, _) | (_, BesideCodes::Nothing) => {
                        m.close(call, run, open_m, values_m, scale_m, ());
                        v.close(call, run, open_v, values_v, scale_v, ());
                    }
                    (Some(first), BesideCodes::Divisors) => {
                        let divisors = Part::<_, 0, BESIDE_V>(first.divisors(&rule));
                        v.close(call, run, open_v, values_v, scale_v, divisors);
                        let divisors = Part::<_, BESIDE_V, CHUNK>(first.divisors(&rule));
                        m.close(call, run, open_m, values_m, scale_m, divisors);
                    }
                    (Some(first), BesideCodes::Quotients) => {
                        let divisors = first.divisors(&rule);
                        v.close(call, run, open_v, values_v, scale_v, divisors);
                        let quotients = first.quotients();
                        m.close(call, run, open_m, values_m, scale_m, quotients);
                    }
                }
            } else if let Some(first) = &mut opened {
                if L::BESIDE_CODES != BesideCodes::Nothing {
                    first.divisors(&rule).all(1);
                }
                if L::BESIDE_CODES == BesideCodes::Quotients {
                    Beside::<L::Vector>::all(first.quotients(), 1);
                }
            }

            let first = opened?;
            let (run, [largest_m, mut largest_v]) = (first.run, first.largest);
            // What a finite square leaves of a v that was not negative is not negative either, and v is not
            // finite where the square is not.
            let usual = v.is_usual(first.open.1, largest_v);
            if !usual || E::hides_non_finite(first.gradients) {
                if skips::<L, E>(call, run, first.gradients) {
                    return None;
                }
                largest_v = largest_of(&first.new[1]);
            }
            let scale_m = m.rescale(run, largest_m);
            let scale_v = v.rescale(run, largest_v);
            E::draw(call, run, first.random);
            let (open_m, open_v) = first.open;
            Some(((open_m, scale_m), (open_v, scale_v), usual))
        }
    }
}

impl<L: Lanes, M: Moment<L>, V: Moment<L>> Kernel<L> for Moments<'_, M, V> {
    type Left = Left<L, M, V>;

    #[inline(always)]
    unsafe fn enter(&mut self, call: &TensorCall<'_>, run: Run) {
        // SAFETY: the caller's promise.
        unsafe {
            self.m.enter(call, run);
            self.v.enter(call, run);
        }
    }

    #[inline(always)]
    unsafe fn first<E: Elements<L>>(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        work: &mut Work,
    ) -> Option<Self::Left> {
        // SAFETY: the caller's promise.
        unsafe { self.halves::<L, E>(call, Some((run, work)), None) }
    }

    #[inline(always)]
    unsafe fn second<E: Elements<L>>(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        work: &mut Work,
        left: Self::Left,
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.halves::<L, E>(call, None, Some((run, work, left))) };
    }

    #[inline(always)]
    unsafe fn both<E: Elements<L>>(
        &self,
        call: &TensorCall<'_>,
        first: (Run, &mut Work),
        before: Option<(Run, &mut Work, Self::Left)>,
    ) -> Option<Self::Left> {
        // SAFETY: the caller's promise.
        unsafe { self.halves::<L, E>(call, Some(first), before) }
    }
}
