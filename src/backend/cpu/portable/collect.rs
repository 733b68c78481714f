//! The statistics of a step's collecting passes, and what becomes of them.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;

use super::adafactor::unclipped;
use super::decode::{Factors, decode_run};
use super::factored::Factored;
use super::maxima::collect_maxima;
use super::registers::{Moment, Room};
use super::run::{Run, largest};
use super::sums::collect_sums;
use super::{AHEAD, load_gradient, prefetch};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Lanes};
use crate::layout::index;
use crate::numerics::{Limbs, canonical_magnitude};
use crate::optimizer::Update;
use crate::plan::{Format, Pass, TensorPlan};

/// The most columns of a part of [`collect`]: as many maxima as the nearest cache holds, for the
/// longest runs of memory.
pub(in crate::backend::cpu) const MAXIMA_COLUMNS: i64 = 8192;

/// The same for sums, which are brought to the shared ones with two locked instructions for each column:
/// high parts have the fewest.
pub(in crate::backend::cpu) const SUMS_COLUMNS: i64 = 2048;

/// Chunks that are collected at a time, so that what is done once for them counts little.
pub(super) const SEGMENT: usize = 8;

/// Collects the statistics of a part of a tensor: `rows` and `columns` of the grid, at most
/// [`SUMS_COLUMNS`] or [`MAXIMA_COLUMNS`] columns from the beginning of a chunk on.
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
    let of = Part { rows, columns };
    // SAFETY: the caller's promise.
    unsafe {
        match pass {
            Pass::Maxima => collect_maxima::<L>(call, &of),
            Pass::Sums => collect_sums::<L>(call, &of),
            Pass::UpdateMaxima | Pass::UpdateSums => collect_updates::<L>(call, pass, &of),
            Pass::Apply => {}
        }
    }
}

/// A part of a tensor's grid.
pub(super) struct Part {
    rows: Range<i64>,
    columns: Range<i64>,
}

impl Part {
    /// Its runs of up to [`SEGMENT`] chunks, row by row.
    #[inline(always)]
    pub(super) fn segments(&self, tensor: &TensorPlan) -> impl Iterator<Item = Run> {
        let step = SEGMENT * CHUNK;
        let columns = self.columns.clone();
        self.rows.clone().flat_map(move |row| {
            let starts = columns.clone().step_by(step);
            starts.map(move |col| {
                Run::at(&tensor.grid, row, col, (step as i64).min(columns.end - col))
            })
        })
    }

    /// Its rows, up to `N` at a time.
    #[inline(always)]
    pub(super) fn groups<'a, const N: usize>(
        &self,
        tensor: &'a TensorPlan,
    ) -> impl Iterator<Item = ([Run; N], usize)> + use<'a, N> {
        let (col, len) = (self.columns.start, self.columns.end - self.columns.start);
        let rows = self.rows.clone();
        self.rows.clone().step_by(N).map(move |first| {
            let row = |r: usize| Run::at(&tensor.grid, first + r as i64, col, len);
            (
                std::array::from_fn(row),
                index((rows.end - first).min(N as i64)),
            )
        })
    }

    /// Its first column, and how many it has.
    #[inline(always)]
    pub(super) fn columns(&self) -> (usize, usize) {
        let (start, end) = (index(self.columns.start), index(self.columns.end));
        (start, end - start)
    }

    /// Whether no other part has the same columns, nor, in rows of several axes, the same indices along any.
    #[inline(always)]
    pub(super) fn is_alone(&self, tensor: &TensorPlan) -> bool {
        let cols = tensor.grid.cols;
        let apart = tensor.info.shape.last() == Some(&cols) || self.columns == (0..cols);
        apart && self.rows == (0..tensor.grid.rows)
    }

    /// The part of the last axis that its elements lie in. Rows of several axes have whole ones,
    /// shorter than a block.
    #[inline(always)]
    pub(super) fn last_axis(&self, tensor: &TensorPlan) -> Range<i64> {
        let extent = tensor.info.shape.last().copied().unwrap_or(1);
        if extent == tensor.grid.cols {
            self.columns.clone()
        } else {
            0..extent
        }
    }
}

/// The values of chunks that follow each other.
#[inline(always)]
pub(super) fn flat(chunks: &[Chunk]) -> &[f32] {
    // SAFETY: a chunk is its floats, without padding.
    unsafe { std::slice::from_raw_parts(chunks.as_ptr().cast(), chunks.len() * CHUNK) }
}

/// The largest unclipped update of Adafactor, or the sum of squares.
///
/// # Safety
/// As for [`collect`].
#[inline(always)]
unsafe fn collect_updates<L: Lanes>(call: &TensorCall<'_>, pass: Pass, of: &Part) {
    let (Update::Adafactor(rule), Some(rms)) = (&call.rule, call.tensor.rms) else {
        return;
    };
    if !rule.needs_rms().1 {
        return;
    }
    let exponent = match pass {
        Pass::UpdateSums => call.update_exponent(rms.update_max),
        _ => None,
    };
    let factors = call.tensor.factored();
    let mut factored = factors.and_then(|(_, factors)| Factored::of(call, factors));
    let mut room = Room::EMPTY;
    let (mut highest, mut sum) = (0, Limbs::ZERO);
    let (mut g, mut v) = (Chunk::ZERO, Chunk::ZERO);
    for segment in of.segments(call.tensor) {
        if let Some(factored) = &mut factored {
            // SAFETY: the run lies in the tensor.
            unsafe { Moment::<L>::enter(factored, call, segment) };
        }
        for run in segment.parts(CHUNK) {
            // SAFETY: the run lies in the tensor.
            unsafe {
                prefetch::<L>(call.grad, call.tensor.info.grad_dtype.size(), run, AHEAD);
                if let Some(factored) = &factored {
                    unclipped::<L>(call, factored, run, &mut room, &mut g);
                } else {
                    load_gradient::<L>(call, run, &mut g);
                    decode_run::<L>(call, 0, run, Factors::Fresh, &mut v);
                    for (g, v) in g.iter_mut().zip(&*v) {
                        *g = rule.unclipped(*g, *v).1;
                    }
                }
            }
            let updates = &g[..run.len];
            if pass == Pass::UpdateMaxima {
                highest = largest(updates).max(highest);
            } else if let Some(exponent) = exponent {
                // SAFETY: the kernels are used on processors that have the instructions.
                sum.add(unsafe { L::sum::<true>(updates, exponent.squared().unit()) });
            }
        }
    }
    if pass == Pass::UpdateMaxima {
        call.raise_update(rms.update_max, highest);
    } else {
        call.add_update(rms.update_sum, sum);
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
            let projection = &maxima.projection;
            // Neighbours along the last kept axis are neighbours in the global tensor, too.
            let len = projection.shape.last().map_or(1, |extent| index(*extent));
            for first in (0..index(projection.extent())).step_by(len.max(1)) {
                let word = maxima.word + projection.globalize(first as i64, call.offset);
                for i in 0..len {
                    let bits = canonical_magnitude(call.statistic(word + i));
                    // SAFETY: the position lies in the buffer.
                    unsafe { *buffer.data.cast::<i32>().add(first + i) = bits };
                }
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
