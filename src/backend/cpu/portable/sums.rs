//! The exact sums of a step: squares over rows, columns and all of a tensor with a factored v.

#![expect(unsafe_code, reason = "reads the caller's raw buffers")]

use super::collect::{Part, SEGMENT, STATS_COLUMNS, flat};
use super::load_gradient;
use super::run::{Stretch, Stretches};
use super::weights::load_weights;
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Lanes};
use crate::layout::index;
use crate::numerics::{Exponent, Limbs, Unit};

/// # Safety
/// As for [`super::collect()`].
#[inline(always)]
pub(super) unsafe fn collect_sums<L: Lanes>(call: &TensorCall<'_>, of: &Part) {
    let tensor = call.tensor;
    let weights = call.needs_weights();
    let mut g = Chunk::ZERO;
    let mut p = [Chunk::ZERO; SEGMENT];
    let mut squares = [Chunk::ZERO; SEGMENT];
    let last_axis = of.last_axis(tensor);
    let (start, width) = (
        index(last_axis.start),
        index(last_axis.end - last_axis.start),
    );
    let mut columns = Columns::new(call, start, width);
    for segment in of.segments(tensor) {
        for (c, run) in segment.parts(CHUNK).enumerate() {
            // SAFETY: the run lies in the tensor.
            unsafe {
                load_gradient::<L>(call, run, &mut g);
                if weights {
                    load_weights::<L>(call, run, &mut p[c]);
                }
            }
            for ((w, p), g) in squares[c].iter_mut().zip(&*p[c]).zip(&*g) {
                *w = call.rule.square(*p, *g);
            }
        }
        if tensor.factored().is_some() {
            let shape = &tensor.info.shape;
            for Stretch { at, len, position } in Stretches::of(shape, segment) {
                let position = &position[..shape.len()];
                add(call, &flat(&squares)[at..at + len], position, &mut columns);
            }
        }
        if let Some(rms) = tensor.rms
            && let Some(exponent) = call.exponent(rms.param_max)
        {
            let sum = sum_of_squares(exponent, &flat(&p)[..segment.len]);
            call.add(rms.param_sum, sum);
        }
    }
    columns.flush(call);
}

/// [`Exponent::sum_of_squares`] in loops of vectors.
#[inline(always)]
pub(super) fn sum_of_squares(exponent: Exponent, values: &[f32]) -> Limbs {
    let unit = exponent.squared().unit();
    let mut sum = Limbs::default();
    for x in values {
        sum.add(unit.limbs(f64::from(*x) * f64::from(*x)));
    }
    sum
}

/// Adds a stretch of the last axis that begins at `position` to all sums.
#[inline(always)]
fn add(call: &TensorCall<'_>, squares: &[f32], position: &[i64], columns: &mut Columns) {
    let Some((_, factors)) = call.tensor.factored() else {
        return;
    };
    let column = position.last().map_or(0, |column| index(*column));
    for factor in factors {
        let projection = &factor.maxima.projection;
        if projection.is_last_axis() {
            columns.add(column, squares);
            continue;
        }
        let first = projection.global_position(position, call.offset);
        if projection.varies() {
            for (i, w) in squares.iter().enumerate() {
                if let Some(exponent) = call.exponent(factor.maxima.word + first + i) {
                    call.add(factor.sum + 2 * (first + i), exponent.limbs(f64::from(*w)));
                }
            }
        } else if let Some(exponent) = call.exponent(factor.maxima.word + first) {
            let unit = exponent.unit();
            let mut sum = Limbs::default();
            for w in squares {
                sum.add(unit.limbs(f64::from(*w)));
            }
            call.add(factor.sum + 2 * first, sum);
        }
    }
}

/// Sums of the columns of a box, where one factor keeps the last axis alone: added to here row by
/// row, and to the shared statistics once.
struct Columns {
    units: [Unit; STATS_COLUMNS as usize],
    sums: [Limbs; STATS_COLUMNS as usize],
    /// The index along the last axis that comes first.
    start: usize,
    width: usize,
}

impl Columns {
    #[inline(always)]
    fn new(call: &TensorCall<'_>, start: usize, width: usize) -> Self {
        let mut columns = Self {
            units: [Unit::NONE; STATS_COLUMNS as usize],
            sums: [Limbs::default(); STATS_COLUMNS as usize],
            start,
            width,
        };
        if let Some((word, _)) = on_last_axis(call, start) {
            for (i, unit) in columns.units[..width].iter_mut().enumerate() {
                let exponent = call.exponent(word + i);
                *unit = exponent.map_or(Unit::NONE, Exponent::unit);
            }
        }
        columns
    }

    #[inline(always)]
    fn add(&mut self, column: usize, squares: &[f32]) {
        let at = column - self.start;
        let slots = self.sums[at..].iter_mut().zip(&self.units[at..]);
        for ((sum, unit), w) in slots.zip(squares) {
            sum.add(unit.limbs(f64::from(*w)));
        }
    }

    /// Brings what was collected to the shared statistics.
    #[inline(always)]
    fn flush(&self, call: &TensorCall<'_>) {
        if let Some((_, first)) = on_last_axis(call, self.start) {
            for (i, sum) in self.sums[..self.width].iter().enumerate() {
                call.add(first + 2 * i, *sum);
            }
        }
    }
}

/// The first word and the first sum, for a column, of the factor that keeps the last axis alone.
#[inline(always)]
fn on_last_axis(call: &TensorCall<'_>, column: usize) -> Option<(usize, usize)> {
    let (_, factors) = call.tensor.factored()?;
    let mut factors = factors.iter();
    let factor = factors.find(|factor| factor.maxima.projection.is_last_axis())?;
    let first = call.on_last_axis(&factor.maxima.projection, column);
    Some((factor.maxima.word + first, factor.sum + 2 * first))
}
