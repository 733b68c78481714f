//! One tensor of one call: its memory, its rule, its statistics.

#![expect(unsafe_code, reason = "works on the caller's raw buffers")]

use std::ops::Range;
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};

use super::memory::{Weight, load};
use crate::dtype::Dtype;
use crate::layout::{Projection, index};
use crate::numerics::{Exponent, Limbs, canonical};
use crate::optimizer::Update;
use crate::plan::{Factor, TensorPlan};
use crate::quant::Preconditioner;
use crate::rng;
use crate::step::Buffer;

/// One tensor of one call: raw pointers whose sizes were checked.
pub(super) struct TensorCall<'a> {
    pub(super) tensor: &'a TensorPlan,
    pub(super) index: usize,
    pub(super) weight: Weight,
    pub(super) grad: *const u8,
    /// What is to be asked for beside each gradient from `grad` on, for the pass that follows, up to an end.
    pub(super) next_grad: Range<*const u8>,
    /// Null: in place.
    pub(super) update: *mut u8,
    /// All state buffers of the plan.
    pub(super) state: &'a [Buffer],
    /// The regions of the scratch.
    pub(super) scratch: [*mut u8; 5],
    /// Place in the global tensor.
    pub(super) offset: &'a [i64],
    /// `RN(grad_scale clip_factor)`, negated to maximize.
    pub(super) grad_scale: f32,
    pub(super) rule: Update,
    pub(super) preconditioner: Preconditioner,
    pub(super) rng: rng::Stream,
    /// The tensor stays as it is.
    pub(super) skip: bool,
    /// Blocks with a non-finite gradient stay as they are.
    pub(super) skip_blocks: bool,
}

// SAFETY: tasks of one call touch disjoint elements, and the statistics through atomics.
unsafe impl Sync for TensorCall<'_> {}

impl TensorCall<'_> {
    #[inline(always)]
    pub(super) fn in_place(&self) -> bool {
        self.update.is_null()
    }

    /// The buffers of one state, as the plan lists them.
    #[inline(always)]
    pub(super) fn state_buffers(&self, state: usize) -> &[Buffer] {
        &self.state[self.tensor.state_buffers(state)]
    }

    /// Whether any statistic depends on the parameters.
    pub(super) fn needs_weights(&self) -> bool {
        self.tensor.rms.is_some() || self.rule.gradient_has_param()
    }

    /// What of its parameters Adam adds to the gradients.
    #[inline(always)]
    pub(super) fn l2(&self) -> f32 {
        match &self.rule {
            Update::Adamw(rule) => rule.l2,
            _ => 0.0,
        }
    }

    /// The position of a column in the global form of a projection that keeps the last axis alone, or all
    /// axes of the grid's rows.
    pub(super) fn on_columns(&self, projection: &Projection, column: usize) -> usize {
        projection.globalize(column as i64, self.offset)
    }

    /// A word of a region of maxima.
    #[inline(always)]
    fn word(&self, region: *mut u8, word: usize) -> &AtomicI32 {
        // SAFETY: the region has all words of the plan, aligned, and while maxima are raised they
        // are accessed through atomics only.
        unsafe { AtomicI32::from_ptr(region.cast::<i32>().add(word)) }
    }

    /// The tensor's non-finite flag.
    pub(super) fn flag(&self) -> &AtomicI32 {
        self.word(self.scratch[0], self.index)
    }

    #[inline(always)]
    pub(super) fn statistic(&self, word: usize) -> i32 {
        self.word(self.scratch[0], word).load(Ordering::Relaxed)
    }

    /// Raises a maximum; the load first, as most values are no new maximum.
    #[inline(always)]
    pub(super) fn raise(&self, word: usize, value: i32) {
        raise(self.word(self.scratch[0], word), value);
    }

    /// The same; where no other thread does, `alone`, without a locked instruction, which would wait for all
    /// memory that was asked for.
    #[inline(always)]
    pub(super) fn raise_by(&self, word: usize, value: i32, alone: bool) {
        let slot = self.word(self.scratch[0], word);
        if alone {
            slot.store(value.max(slot.load(Ordering::Relaxed)), Ordering::Relaxed);
        } else {
            raise(slot, value);
        }
    }

    pub(super) fn raise_update(&self, word: usize, value: i32) {
        raise(self.word(self.scratch[2], word), value);
    }

    /// The unit of the sums whose largest term has this word; `None` if it is not finite.
    #[inline(always)]
    pub(super) fn exponent(&self, word: usize) -> Option<Exponent> {
        Exponent::above(self.statistic(word))
    }

    pub(super) fn update_exponent(&self, word: usize) -> Option<Exponent> {
        Exponent::above(self.word(self.scratch[2], word).load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(super) fn add(&self, sum: usize, term: Limbs) {
        add(self.scratch[1], sum, term);
    }

    pub(super) fn add_update(&self, sum: usize, term: Limbs) {
        add(self.scratch[3], sum, term);
    }

    /// The new mean of a factored v at `position` (here): R4 of the old mean, in `buffer`, and the
    /// exact mean of this step's squares, rounded once to f32.
    pub(super) fn fresh_mean(&self, factor: &Factor, buffer: Buffer, position: i64) -> f32 {
        let at = factor.maxima.projection.globalize(position, self.offset);
        let mean = match self.exponent(factor.maxima.word + at) {
            Some(exponent) => {
                let sum = exponent.value(sum(self.scratch[1], factor.sum + 2 * at));
                (sum / factor.count as f64) as f32
            }
            None => f32::NAN,
        };
        // SAFETY: the position lies in the buffer.
        let old = unsafe { load(buffer.data.cast(), Dtype::F32, index(position)) };
        canonical(self.rule.average(old, mean))
    }

    /// The rule with everything that it needs of the whole tensor.
    pub(super) fn complete_rule(&self) -> Update {
        let mut rule = self.rule;
        if let (Update::Adafactor(adafactor), Some(rms)) = (&mut rule, self.tensor.rms) {
            let numel = self.tensor.global_shape.iter().product::<i64>().max(1) as f64;
            let rms_of = |exponent: Option<Exponent>, sum: Limbs| match exponent {
                Some(exponent) => (exponent.squared().value(sum) / numel).sqrt(),
                None => f64::NAN,
            };
            let (param, update) = adafactor.needs_rms();
            let param = param.then(|| {
                rms_of(
                    self.exponent(rms.param_max),
                    sum(self.scratch[1], rms.param_sum),
                )
            });
            let update = update.then(|| {
                rms_of(
                    self.update_exponent(rms.update_max),
                    sum(self.scratch[3], rms.update_sum),
                )
            });
            adafactor.set_rms(param, update);
        }
        rule
    }
}

#[inline(always)]
fn raise(slot: &AtomicI32, value: i32) {
    if value > slot.load(Ordering::Relaxed) {
        slot.fetch_max(value, Ordering::Relaxed);
    }
}

/// Limb `at` of a region of sums.
#[inline(always)]
fn limb<'a>(region: *mut u8, at: usize) -> &'a AtomicI64 {
    // SAFETY: the region has all limbs of the plan, aligned, accessed through atomics only.
    unsafe { AtomicI64::from_ptr(region.cast::<i64>().add(at)) }
}

#[inline(always)]
fn add(region: *mut u8, sum: usize, term: Limbs) {
    limb(region, sum).fetch_add(term.high, Ordering::Relaxed);
    limb(region, sum + 1).fetch_add(term.low, Ordering::Relaxed);
}

#[inline(always)]
fn sum(region: *mut u8, sum: usize) -> Limbs {
    Limbs {
        high: limb(region, sum).load(Ordering::Relaxed),
        low: limb(region, sum + 1).load(Ordering::Relaxed),
    }
}
