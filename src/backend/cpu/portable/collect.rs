//! The statistics of a step's collecting passes, and what becomes of them.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::decode::{Factors, decode_run};
use super::run::{Run, any_non_finite, largest, load_run, load_weights, position};
use super::{LONGEST, States, update};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::Lanes;
use crate::layout::index;
use crate::numerics::{Limbs, canonical_magnitude, magnitude};
use crate::optimizer::{MAX_STATES, Update, with_rule};
use crate::plan::{Format, MAX_AXES, Maxima, Pass, TensorPlan};

/// Collects the statistics of a box: `rows` of the tensor seen as (product of the leading axes,
/// last axis), and at most [`super::STATS_COLUMNS`] columns.
///
/// # Safety
/// As for [`super::apply`]; any number of threads may raise the same statistics.
#[inline(always)]
pub(super) unsafe fn collect<L: Lanes>(
    call: &TensorCall<'_>,
    pass: Pass,
    rows: Range<i64>,
    columns: Range<i64>,
) {
    let tensor = call.tensor;
    let width = index(columns.end - columns.start);
    let (mut p, mut g) = ([0.0_f32; LONGEST], [0.0_f32; LONGEST]);
    let (p, g) = (&mut p[..width], &mut g[..width]);
    let mut states: States = [[0.0; LONGEST]; MAX_STATES];
    let mut columns_of = Columns::new();
    let mut all_finite = true;
    let last = tensor.info.shape.last().copied().unwrap_or(1);
    for row in rows.clone() {
        let run = Run::new(&tensor.grid, row * last + columns.start, width);
        let position = position(&tensor.info.shape, run.first);
        // SAFETY: the run lies in the tensor and in one row of the grid.
        unsafe {
            load_run(call.grad, tensor.info.grad_dtype, run.first, g);
            g.iter_mut().for_each(|g| *g *= call.grad_scale); // R1
            match pass {
                Pass::Maxima => {
                    all_finite &= !any_non_finite(g);
                    new_states::<L>(call, run, p, g, &mut states);
                    raise_maxima(call, &position, p, g, &states, &mut columns_of);
                }
                Pass::Sums => {
                    load_needed_weights(call, run.first, p);
                    add_sums(call, &position, p, g, &mut columns_of);
                }
                Pass::UpdateMaxima | Pass::UpdateSums => {
                    decode_run::<L>(call, 0, run, Factors::Fresh, &mut states[0][..width]);
                    collect_updates(call, pass, g, &states[0][..width]);
                }
                Pass::Apply => {}
            }
        }
    }
    if !rows.is_empty() {
        let run = Run::new(&tensor.grid, rows.start * last + columns.start, width);
        let position = position(&tensor.info.shape, run.first);
        columns_of.flush(call, pass, &position, width);
    }
    if !all_finite {
        call.flag().store(1, Ordering::Relaxed);
    }
}

/// The states after the step, as far as their maxima are needed; `p` is loaded where they or other
/// statistics need it.
///
/// # Safety
/// As for [`super::apply`].
#[inline(always)]
unsafe fn new_states<L: Lanes>(
    call: &TensorCall<'_>,
    run: Run,
    p: &mut [f32],
    g: &[f32],
    states: &mut States,
) {
    let tensor = call.tensor;
    let wanted = |state: usize| {
        let state = tensor.states.get(state);
        state.is_some_and(|state| !state.maxima().is_empty())
    };
    // SAFETY: the run lies in the tensor.
    unsafe {
        load_needed_weights(call, run.first, p);
        match &call.rule {
            // The paper's 4-bit AdamW: v's maxima alone.
            Update::Adamw(rule) if wanted(1) && !wanted(0) && !wanted(2) => {
                let v = &mut states[1][..run.len];
                decode_run::<L>(call, 1, run, Factors::Fresh, v);
                for ((v, g), p) in v.iter_mut().zip(g).zip(&*p) {
                    *v = rule.second_moment(rule.gradient(*p, *g), *v);
                }
            }
            _ if (0..MAX_STATES).any(wanted) => {
                for (state, values) in states.iter_mut().enumerate().take(tensor.states.len()) {
                    // A factored state's maxima are its squares'; no other state depends on it.
                    if !matches!(tensor.states[state].format, Format::Factored(_)) {
                        let values = &mut values[..run.len];
                        decode_run::<L>(call, state, run, Factors::Stored, values);
                    }
                }
                let mut scratch = [0.0_f32; LONGEST];
                let scratch = &mut scratch[..run.len];
                scratch.copy_from_slice(g);
                with_rule!(&call.rule, rule => update(rule, p, scratch, states));
            }
            _ => {}
        }
    }
}

/// The parameters, if any statistic depends on them: one read less of the tensor in most steps.
///
/// # Safety
/// As for [`super::apply`].
#[inline(always)]
unsafe fn load_needed_weights(call: &TensorCall<'_>, first: usize, p: &mut [f32]) {
    if call.tensor.rms.is_some() || call.rule.gradient_has_param() {
        // SAFETY: the caller's promise.
        unsafe { load_weights(call, first, p) };
    }
}

/// Statistics of the columns of a box, for the projections that keep the last axis alone: raised
/// here row by row, and in the shared statistics once.
struct Columns {
    maxima: [[i32; LONGEST]; Self::COUNT],
    sums: [Limbs; LONGEST],
    used: usize,
}

impl Columns {
    /// As many projections as v and m under rank-1 have.
    const COUNT: usize = 2;

    #[inline(always)]
    fn new() -> Self {
        Self {
            maxima: [[0; LONGEST]; Self::COUNT],
            sums: [Limbs::default(); LONGEST],
            used: 0,
        }
    }

    /// The next array, as long as there is one; callers ask in the same order for every row.
    #[inline(always)]
    fn next(&mut self) -> Option<&mut [i32; LONGEST]> {
        let array = self.maxima.get_mut(self.used);
        self.used += 1;
        array
    }

    /// Brings what was collected to the shared statistics.
    #[inline(always)]
    fn flush(
        &mut self,
        call: &TensorCall<'_>,
        pass: Pass,
        position: &[i64; MAX_AXES],
        width: usize,
    ) {
        let position = &position[..call.tensor.info.shape.len()];
        self.used = 0;
        if pass == Pass::Maxima {
            for_each_maxima(call.tensor, |_, maxima| {
                if !maxima.projection.is_last_axis() {
                    return;
                }
                let first = maxima.projection.global_position(position, call.offset);
                if let Some(array) = self.next() {
                    for (i, largest) in array[..width].iter().enumerate() {
                        call.raise(maxima.word + first + i, *largest);
                    }
                }
            });
        } else if pass == Pass::Sums
            && let Some((_, factors)) = call.tensor.factored()
        {
            for factor in factors {
                let projection = &factor.maxima.projection;
                if projection.is_last_axis() {
                    let first = projection.global_position(position, call.offset);
                    for (i, sum) in self.sums[..width].iter().enumerate() {
                        call.add(factor.sum + 2 * (first + i), *sum);
                    }
                }
            }
        }
    }
}

/// What is reduced to a maximum.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    State(usize),
    Squares,
}

/// All maxima of a tensor but its RMS's, in a fixed order.
#[inline(always)]
fn for_each_maxima(tensor: &TensorPlan, mut body: impl FnMut(Of, &Maxima)) {
    for (state, plan) in tensor.states.iter().enumerate() {
        plan.maxima()
            .iter()
            .for_each(|maxima| body(Of::State(state), maxima));
    }
    if let Some((_, factors)) = tensor.factored() {
        factors
            .iter()
            .for_each(|factor| body(Of::Squares, &factor.maxima));
    }
}

/// Raises all maxima by a run of the last axis that begins at `position`.
#[inline(always)]
fn raise_maxima(
    call: &TensorCall<'_>,
    position: &[i64; MAX_AXES],
    p: &[f32],
    g: &[f32],
    states: &States,
    columns: &mut Columns,
) {
    let tensor = call.tensor;
    let position = &position[..tensor.info.shape.len()];
    let mut squares = [0.0_f32; LONGEST];
    let squares = &mut squares[..p.len()];
    if tensor.factored().is_some() {
        for ((w, p), g) in squares.iter_mut().zip(p).zip(g) {
            *w = call.rule.square(*p, *g);
        }
    }
    columns.used = 0;
    for_each_maxima(tensor, |of, maxima| {
        let values = match of {
            Of::State(state) => &states[state][..p.len()],
            Of::Squares => &*squares,
        };
        let first = maxima.word + maxima.projection.global_position(position, call.offset);
        if !maxima.projection.varies() {
            call.raise(first, largest(values));
            return;
        }
        if maxima.projection.is_last_axis()
            && let Some(array) = columns.next()
        {
            for (slot, value) in array.iter_mut().zip(values) {
                *slot = magnitude(*value).max(*slot);
            }
            return;
        }
        for (i, value) in values.iter().enumerate() {
            call.raise(first + i, magnitude(*value));
        }
    });
    if let Some(rms) = tensor.rms {
        call.raise(rms.param_max, largest(p));
    }
}

/// Adds a run of the last axis that begins at `position` to all sums.
#[inline(always)]
fn add_sums(
    call: &TensorCall<'_>,
    position: &[i64; MAX_AXES],
    p: &[f32],
    g: &[f32],
    columns: &mut Columns,
) {
    let tensor = call.tensor;
    let position = &position[..tensor.info.shape.len()];
    if let Some((_, factors)) = tensor.factored() {
        let square = |i: usize| f64::from(call.rule.square(p[i], g[i]));
        for factor in factors {
            let projection = &factor.maxima.projection;
            let first = projection.global_position(position, call.offset);
            let exponent = |at| call.exponent(factor.maxima.word + at);
            if !projection.varies() {
                if let Some(exponent) = exponent(first) {
                    let mut sum = Limbs::default();
                    (0..p.len()).for_each(|i| sum.add(exponent.limbs(square(i))));
                    call.add(factor.sum + 2 * first, sum);
                }
                continue;
            }
            for i in 0..p.len() {
                let Some(exponent) = exponent(first + i) else {
                    continue;
                };
                let term = exponent.limbs(square(i));
                if projection.is_last_axis() {
                    columns.sums[i].add(term);
                } else {
                    call.add(factor.sum + 2 * (first + i), term);
                }
            }
        }
    }
    if let Some(rms) = tensor.rms
        && let Some(exponent) = call.exponent(rms.param_max)
    {
        call.add(rms.param_sum, exponent.sum_of_squares(p.iter().copied()));
    }
}

/// The largest unclipped update of Adafactor, or the sum of squares, over a run.
#[inline(always)]
fn collect_updates(call: &TensorCall<'_>, pass: Pass, g: &[f32], v: &[f32]) {
    let (Update::Adafactor(rule), Some(rms)) = (&call.rule, call.tensor.rms) else {
        return;
    };
    if !rule.needs_rms().1 {
        return;
    }
    let updates = g.iter().zip(v).map(|(g, v)| rule.unclipped(*g, *v).1);
    if pass == Pass::UpdateMaxima {
        let largest = updates.fold(0, |largest, q| magnitude(q).max(largest));
        call.raise_update(rms.update_max, largest);
    } else if let Some(exponent) = call.update_exponent(rms.update_max) {
        call.add_update(rms.update_sum, exponent.sum_of_squares(updates));
    }
}

/// Computes the new factors of a tensor into the scratch.
///
/// # Safety
/// As for [`super::apply`], with no other thread at work on the tensor.
pub(in crate::backend::cpu) unsafe fn refresh(call: &TensorCall<'_>) {
    let Some((state, factors)) = call.tensor.factored() else {
        return;
    };
    for (factor, buffer) in factors.iter().zip(call.state_buffers(state)) {
        for position in 0..factor.maxima.projection.extent() {
            let fresh = call.fresh_mean(factor, *buffer, position);
            // SAFETY: the scratch has room for every factor.
            unsafe { *fresh_values(call).add(factor.fresh + index(position)) = fresh };
        }
    }
}

pub(super) fn fresh_values(call: &TensorCall<'_>) -> *mut f32 {
    call.scratch[4].cast()
}

/// Copies reduced maxima and new factors into the states, once all units are coded.
///
/// # Safety
/// As for [`super::apply`], with no other thread at work on the tensor.
pub(in crate::backend::cpu) unsafe fn store_statistics(call: &TensorCall<'_>) {
    for (state, plan) in call.tensor.states.iter().enumerate() {
        let first = usize::from(matches!(plan.format, Format::Codes(_)));
        let buffers = &call.state_buffers(state)[first..];
        for (maxima, buffer) in plan.maxima().iter().zip(buffers) {
            for position in 0..maxima.projection.extent() {
                let at = maxima.projection.globalize(position, call.offset);
                let bits = canonical_magnitude(call.statistic(maxima.word + at));
                // SAFETY: the position lies in the buffer.
                unsafe { *buffer.data.cast::<i32>().add(index(position)) = bits };
            }
        }
        if let Format::Factored(factors) = &plan.format {
            for (factor, buffer) in factors.iter().zip(buffers) {
                let len = index(factor.maxima.projection.extent());
                // SAFETY: as many values in the scratch as in the buffer.
                unsafe {
                    let from = fresh_values(call).add(factor.fresh);
                    std::ptr::copy_nonoverlapping(from, buffer.data.cast(), len);
                }
            }
        }
    }
}
