//! Runs of elements, and the memory they lie in: parameters, scales of slices, random numbers.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use super::super::call::TensorCall;
use super::super::memory::{load, store};
use crate::dtype::Dtype;
use crate::layout::{Grid, div_ceil, index};
use crate::numerics::{INF_BITS, canonical_magnitude, magnitude};
use crate::plan::{Codes, MAX_AXES, Maxima, TensorPlan};
use crate::rng::Purpose;
use crate::step::Buffer;
use crate::weights::Weights;

/// A run of elements inside one row of the grid.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// Counted from the tensor's first element.
    pub(super) first: usize,
    pub(super) row: usize,
    pub(super) col: usize,
    pub(super) len: usize,
}

impl Run {
    #[inline(always)]
    pub(super) fn of(grid: &Grid, unit: i64) -> Self {
        let (row, col, len) = grid.unit(unit);
        Self {
            first: index(row * grid.cols + col),
            row: index(row),
            col: index(col),
            len: index(len),
        }
    }

    #[inline(always)]
    pub(super) fn new(grid: &Grid, first: i64, len: usize) -> Self {
        let (row, col) = (index(first / grid.cols), index(first % grid.cols));
        Self {
            first: index(first),
            row,
            col,
            len,
        }
    }

    /// The run from `at` on, at most `len` elements.
    #[inline(always)]
    pub(super) fn part(self, at: usize, len: usize) -> Self {
        Self {
            first: self.first + at,
            col: self.col + at,
            len: len.min(self.len - at),
            ..self
        }
    }
}

#[inline(always)]
pub(super) unsafe fn load_run(data: *const u8, dtype: Dtype, first: usize, out: &mut [f32]) {
    // The dtype is matched outside the loop, so that each loop is a vector loop.
    macro_rules! each {
        ($dtype:expr) => {
            for (i, out) in out.iter_mut().enumerate() {
                // SAFETY: the caller's run lies in the tensor.
                *out = unsafe { load(data, $dtype, first + i) };
            }
        };
    }
    match dtype {
        Dtype::Bf16 => each!(Dtype::Bf16),
        Dtype::F16 => each!(Dtype::F16),
        _ => each!(Dtype::F32),
    }
}

#[inline(always)]
pub(super) unsafe fn store_run(data: *mut u8, dtype: Dtype, first: usize, values: &[f32]) {
    macro_rules! each {
        ($dtype:expr) => {
            for (i, value) in values.iter().enumerate() {
                // SAFETY: the caller's run lies in the tensor.
                unsafe { store(data, $dtype, first + i, *value) };
            }
        };
    }
    match dtype {
        Dtype::Bf16 => each!(Dtype::Bf16),
        Dtype::F16 => each!(Dtype::F16),
        _ => each!(Dtype::F32),
    }
}

/// The f32 values of a run of parameters.
#[inline(always)]
pub(super) unsafe fn load_weights(call: &TensorCall<'_>, first: usize, out: &mut [f32]) {
    let weight = call.weight;
    if weight.beside.is_null() {
        // SAFETY: the caller's run lies in the tensor.
        return unsafe { load_run(weight.data, weight.dtype, first, out) };
    }
    for (i, out) in out.iter_mut().enumerate() {
        // SAFETY: as above.
        *out = unsafe { weight.load(first + i) };
    }
}

/// Stores the f32 values of a run of parameters in their form.
#[inline(always)]
pub(super) unsafe fn store_weights(call: &TensorCall<'_>, run: Run, values: &[f32]) {
    let weight = call.weight;
    if weight.form == Weights::Plain {
        // SAFETY: the caller's run lies in the tensor.
        return unsafe { store_run(weight.data, weight.dtype, run.first, values) };
    }
    let mut draws = Draws::new(call, Purpose::Weight, run);
    for (i, value) in values.iter().enumerate() {
        let draw = if weight.form == Weights::Stochastic {
            draws.next()
        } else {
            0
        };
        // SAFETY: as above.
        unsafe { weight.store(run.first + i, *value, draw) };
    }
}

/// The random numbers of a run, in the order of its elements.
pub(super) struct Draws<'a> {
    call: &'a TensorCall<'a>,
    purpose: Purpose,
    row: usize,
    col: usize,
    eight: [u16; 8],
}

impl<'a> Draws<'a> {
    pub(super) fn new(call: &'a TensorCall<'a>, purpose: Purpose, run: Run) -> Self {
        let (row, col) = global(call, run);
        Self {
            call,
            purpose,
            row,
            col,
            eight: call.rng.eight(purpose, row, col / 8),
        }
    }

    #[inline(always)]
    pub(super) fn next(&mut self) -> u16 {
        if self.col.is_multiple_of(8) {
            self.eight = self.call.rng.eight(self.purpose, self.row, self.col / 8);
        }
        let draw = self.eight[self.col % 8];
        self.col += 1;
        draw
    }
}

/// Row and column, in the grid of the global tensor, of a run's first element.
#[inline(always)]
pub(super) fn global(call: &TensorCall<'_>, run: Run) -> (usize, usize) {
    let grid = &call.tensor.grid;
    let (row, col) = grid.global(run.row as i64, run.col as i64, call.offset);
    (index(row), index(col))
}

#[inline(always)]
pub(super) unsafe fn fill_zero(data: *mut u8, dtype: Dtype, run: Run) {
    let size = dtype.size();
    // SAFETY: the caller's run lies in the tensor; zero bytes are 0.0 in every dtype.
    unsafe { std::ptr::write_bytes(data.add(run.first * size), 0, run.len * size) };
}

/// A gradient is non-finite when its square is.
#[inline(always)]
pub(super) fn any_non_finite(g: &[f32]) -> bool {
    let largest = g.iter().fold(0, |largest, g| magnitude(g * g).max(largest));
    largest >= INF_BITS.cast_signed()
}

/// The largest magnitude.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> i32 {
    values
        .iter()
        .fold(0, |largest, x| magnitude(*x).max(largest))
}

/// Index along every axis of element `first`; axes beyond the tensor's are 0.
#[inline(always)]
pub(super) fn position(shape: &[i64], first: usize) -> [i64; MAX_AXES] {
    let mut position = [0; MAX_AXES];
    let mut rest = first as i64;
    for (slot, extent) in position.iter_mut().zip(shape).rev() {
        *slot = rest % extent;
        rest /= extent;
    }
    position
}

/// Where the maxima of a state are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// In the statistics of this step.
    Statistics,
    /// In the state's buffers.
    Stored,
}

#[inline(always)]
pub(super) unsafe fn code_row(
    tensor: &TensorPlan,
    codes: &Codes,
    buffer: Buffer,
    row: usize,
) -> *const u8 {
    let bytes = index(tensor.grid.code_bytes(codes.per_byte));
    // SAFETY: the row lies in the tensor.
    unsafe { buffer.data.cast::<u8>().add(row * bytes) }
}

#[inline(always)]
pub(super) unsafe fn scale_row(
    tensor: &TensorPlan,
    scales: Buffer,
    block: usize,
    row: usize,
) -> *const f32 {
    // SAFETY: the row lies in the tensor.
    unsafe {
        scales
            .data
            .cast::<f32>()
            .add(row * index(div_ceil(tensor.grid.cols, block as i64)))
    }
}

/// Calls `body` with place and length, in a run, of its parts that lie along the last axis, and the
/// index of their first elements.
#[inline(always)]
pub(super) fn for_each_stretch(
    call: &TensorCall<'_>,
    run: Run,
    mut body: impl FnMut(usize, usize, &[i64]),
) {
    let shape = &call.tensor.info.shape;
    let width = shape.last().map_or(1, |extent| index(*extent));
    let mut at = 0;
    while at < run.len {
        let first = run.first + at;
        let len = (width - first % width).min(run.len - at);
        body(at, len, &position(shape, first)[..shape.len()]);
        at += len;
    }
}

/// For every element of a run the smallest of its slices' maxima.
#[inline(always)]
pub(super) unsafe fn smallest(
    call: &TensorCall<'_>,
    maxima: &[Maxima],
    buffers: &[Buffer],
    run: Run,
    source: Source,
    out: &mut [f32],
) {
    for_each_stretch(call, run, |at, len, position| {
        let out = &mut out[at..at + len];
        // As integers, so that NaN is the largest.
        out.fill(f32::from_bits(i32::MAX.cast_unsigned()));
        let lower = |out: &mut f32, bits: i32| {
            let bits = canonical_magnitude(bits).min(out.to_bits().cast_signed());
            *out = f32::from_bits(bits.cast_unsigned());
        };
        for (maxima, buffer) in maxima.iter().zip(buffers) {
            let projection = &maxima.projection;
            // SAFETY: the positions lie in the buffers. No statistic changes while it is read.
            unsafe {
                let values = match source {
                    Source::Stored => {
                        let values = buffer.data.cast_const().cast::<i32>();
                        values.add(projection.position(position))
                    }
                    Source::Statistics => {
                        let words = call.scratch[0].cast_const().cast::<i32>();
                        let at = projection.global_position(position, call.offset);
                        words.add(maxima.word + at)
                    }
                };
                if projection.varies() {
                    for (i, out) in out.iter_mut().enumerate() {
                        lower(out, *values.add(i));
                    }
                } else {
                    let value = *values;
                    out.iter_mut().for_each(|out| lower(out, value));
                }
            }
        }
    });
}
