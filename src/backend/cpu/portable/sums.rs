//! The exact sums of a step: squares over rows, columns and all of a tensor with a factored v.

#![expect(unsafe_code, reason = "reads the caller's raw buffers")]

use super::collect::{Part, SUMS_COLUMNS, flat};
use super::factored::by_row;
use super::rows::ahead;
use super::run::{Run, Stretch, Stretches, first_of_row, is_of_columns};
use super::weights::load_weights;
use super::{load_gradient, prefetch};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Lanes};
use crate::layout::index;
use crate::numerics::{Exponent, Limbs, Unit};
use crate::plan::{Factor, MAX_AXES};

/// Rows that are added together.
const ROWS: usize = Limbs::TERMS;

/// Chunks of each row: the squares of all rows stay in the nearest cache.
const SEGMENT: usize = 4;

/// # Safety
/// As for [`super::collect()`].
#[inline(always)]
pub(super) unsafe fn collect_sums<L: Lanes>(call: &TensorCall<'_>, of: &Part) {
    let tensor = call.tensor;
    let shape = &tensor.info.shape;
    let weights = call.needs_weights();
    let mut squares = [[Chunk::ZERO; SEGMENT]; ROWS];
    let mut sums = Sums::new(call, of);
    for (rows, count) in of.groups::<ROWS>(tensor) {
        for at in (0..rows[0].len).step_by(SEGMENT * CHUNK) {
            let runs = rows.map(|row| row.part(at, SEGMENT * CHUNK));
            let (runs, len) = (&runs[..count], runs[0].len);
            let ahead = ahead(call, rows[0].len, at, count);
            for (run, squares) in runs.iter().zip(&mut squares) {
                prefetch::<L>(call.grad, tensor.info.grad_dtype.size(), *run, ahead);
                if weights {
                    let size = tensor.info.param_dtype.size();
                    prefetch::<L>(call.weight.data, size, *run, ahead);
                }
                // SAFETY: the run lies in the tensor.
                unsafe { load_squares::<L>(call, *run, weights, squares, &mut sums.rms) };
            }
            if tensor.factored().is_none() {
                continue;
            }
            if sums.columns.of_grid {
                let (mut terms, mut positions) = ([&[][..]; ROWS], [[0; MAX_AXES]; ROWS]);
                for (r, run) in runs.iter().enumerate() {
                    terms[r] = &flat(&squares[r])[..len];
                    positions[r] = first_of_row(call, *run);
                }
                sums.add::<L>(call, runs[0].col, &terms[..count], &positions);
                continue;
            }
            for (run, squares) in runs.iter().zip(&squares) {
                for Stretch { at, len, position } in Stretches::of(shape, *run) {
                    let column = index(position[shape.len() - 1]);
                    let terms = &flat(squares)[at..at + len];
                    sums.add::<L>(call, column, &[terms], &[position]);
                }
            }
        }
    }
    sums.flush(call);
}

/// The squares of a run of at most a segment, and the sum of the parameters' where their RMS is wanted.
///
/// # Safety
/// As for [`super::collect()`].
#[inline(always)]
unsafe fn load_squares<L: Lanes>(
    call: &TensorCall<'_>,
    run: Run,
    weights: bool,
    squares: &mut [Chunk; SEGMENT],
    rms: &mut Limbs,
) {
    let (mut g, mut p) = (Chunk::ZERO, Chunk::ZERO);
    for (run, squares) in run.parts(CHUNK).zip(squares) {
        // SAFETY: the run lies in the tensor.
        unsafe {
            load_gradient::<L>(call, run, &mut g);
            if weights {
                load_weights::<L>(call, run, &mut p);
            }
        }
        for ((w, p), g) in squares.iter_mut().zip(&*p).zip(&*g) {
            *w = call.rule.square(*p, *g);
        }
        if let Some(plan) = call.tensor.rms
            && let Some(exponent) = call.exponent(plan.param_max)
        {
            // SAFETY: the kernels are used on processors that have the instructions.
            rms.add(unsafe { L::sum::<true>(&p[..run.len], exponent.squared().unit()) });
        }
    }
}

/// Sums of a part, brought to the shared statistics as late as possible.
struct Sums {
    columns: Columns,
    /// Of each factor and each of the rows that are added together.
    rows: [[Sum; ROWS]; 3],
    /// Of the parameters' squares.
    rms: Limbs,
}

/// A sum of a factor that is the same for all columns.
#[derive(Clone, Copy)]
struct Sum {
    /// Its place in the factor, if it has one.
    at: Option<usize>,
    unit: Unit,
    sum: Limbs,
}

impl Sums {
    #[inline(always)]
    fn new(call: &TensorCall<'_>, of: &Part) -> Self {
        const NOWHERE: Sum = Sum {
            at: None,
            unit: Unit::NONE,
            sum: Limbs::ZERO,
        };
        Self {
            columns: Columns::new(call, of),
            rows: [[NOWHERE; ROWS]; 3],
            rms: Limbs::ZERO,
        }
    }

    /// Adds parts of rows of the grid, or of the last axis, which have one length and begin in one column, at
    /// these positions but for that.
    #[inline(always)]
    fn add<L: Lanes>(
        &mut self,
        call: &TensorCall<'_>,
        column: usize,
        terms: &[&[f32]],
        positions: &[[i64; MAX_AXES]],
    ) {
        let Some((_, factors)) = call.tensor.factored() else {
            return;
        };
        let axes = call.tensor.info.shape.len();
        for (factor, sums) in factors.iter().zip(&mut self.rows) {
            let projection = &factor.maxima.projection;
            if self.columns.are_of(call, factor) {
                self.columns.add::<L>(column, terms);
                continue;
            }
            for ((terms, position), sum) in terms.iter().zip(positions).zip(sums) {
                let first = projection.global_position(&position[..axes], call.offset);
                if projection.varies() {
                    for (i, w) in terms.iter().enumerate() {
                        if let Some(exponent) = call.exponent(factor.maxima.word + first + i) {
                            call.add(factor.sum + 2 * (first + i), exponent.limbs(f64::from(*w)));
                        }
                    }
                } else {
                    if sum.at != Some(first) {
                        sum.flush(call, factor);
                        let exponent = call.exponent(factor.maxima.word + first);
                        *sum = Sum {
                            at: Some(first),
                            unit: exponent.map_or(Unit::NONE, Exponent::unit),
                            sum: Limbs::ZERO,
                        };
                    }
                    // SAFETY: the kernels are used on processors that have the instructions.
                    sum.sum.add(unsafe { L::sum::<false>(terms, sum.unit) });
                }
            }
        }
    }

    #[inline(always)]
    fn flush(&self, call: &TensorCall<'_>) {
        self.columns.flush(call);
        if let Some((_, factors)) = call.tensor.factored() {
            for (factor, sums) in factors.iter().zip(&self.rows) {
                for sum in sums {
                    sum.flush(call, factor);
                }
            }
        }
        if let Some(rms) = call.tensor.rms {
            call.add(rms.param_sum, self.rms);
        }
    }
}

impl Sum {
    #[inline(always)]
    fn flush(&self, call: &TensorCall<'_>, factor: &Factor) {
        if let Some(at) = self.at
            && !self.unit.is_none()
        {
            call.add(factor.sum + 2 * at, self.sum);
        }
    }
}

/// Sums of the columns of a part, for the factor of the grid's columns, or one that keeps the last axis
/// alone.
struct Columns {
    of_grid: bool,
    units: [Unit; SUMS_COLUMNS as usize],
    high: [i64; SUMS_COLUMNS as usize],
    low: [i64; SUMS_COLUMNS as usize],
    /// The column that comes first.
    start: usize,
    width: usize,
}

impl Columns {
    #[inline(always)]
    fn new(call: &TensorCall<'_>, of: &Part) -> Self {
        let factored = call.tensor.factored();
        let of_grid = factored.is_some_and(|(_, factors)| by_row(call, factors).is_some());
        let (start, width) = if of_grid {
            of.columns()
        } else {
            let last_axis = of.last_axis(call.tensor);
            let width = index(last_axis.end - last_axis.start);
            (index(last_axis.start), width)
        };
        let mut columns = Self {
            of_grid,
            units: [Unit::NONE; SUMS_COLUMNS as usize],
            high: [0; SUMS_COLUMNS as usize],
            low: [0; SUMS_COLUMNS as usize],
            start,
            width,
        };
        if let Some((word, _)) = columns.first(call) {
            for (i, unit) in columns.units[..width].iter_mut().enumerate() {
                let exponent = call.exponent(word + i);
                *unit = exponent.map_or(Unit::NONE, Exponent::unit);
            }
        }
        columns
    }

    /// Adds rows from a column on.
    #[inline(always)]
    fn add<L: Lanes>(&mut self, column: usize, rows: &[&[f32]]) {
        let at = column - self.start;
        let columns = at..at + rows[0].len();
        let (high, low) = (
            &mut self.high[columns.clone()],
            &mut self.low[columns.clone()],
        );
        // SAFETY: the kernels are used on processors that have the instructions.
        unsafe { L::add_rows(rows, &self.units[columns], high, low) };
    }

    #[inline(always)]
    fn flush(&self, call: &TensorCall<'_>) {
        if let Some((_, first)) = self.first(call) {
            for i in 0..self.width {
                if !self.units[i].is_none() {
                    let (high, low) = (self.high[i], self.low[i]);
                    call.add(first + 2 * i, Limbs { high, low });
                }
            }
        }
    }

    /// Whether they are a factor's.
    #[inline(always)]
    fn are_of(&self, call: &TensorCall<'_>, factor: &Factor) -> bool {
        if self.of_grid {
            is_of_columns(call.tensor, &factor.maxima)
        } else {
            factor.maxima.projection.is_last_axis()
        }
    }

    /// The word and the sum of the first one.
    #[inline(always)]
    fn first(&self, call: &TensorCall<'_>) -> Option<(usize, usize)> {
        let (_, factors) = call.tensor.factored()?;
        let factor = factors.iter().find(|factor| self.are_of(call, factor))?;
        let first = call.on_columns(&factor.maxima.projection, self.start);
        Some((factor.maxima.word + first, factor.sum + 2 * first))
    }
}
