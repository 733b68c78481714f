//! Runs of elements inside one row of the grid, and the memory they lie in.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;

use half::bf16;

use super::super::call::TensorCall;
use super::super::lanes::{CHUNK, Chunk, Lanes, Vector};
use crate::dtype::Dtype;
use crate::layout::{Grid, div_ceil, index};
use crate::numerics::{INF_BITS, canonical, magnitude};
use crate::plan::{Codes, MAX_AXES, Maxima, TensorPlan};
use crate::rng::{Draws, Purpose};
use crate::step::Buffer;
use crate::weights::widen_bf16;

/// A run of elements inside one row of the grid.
///
/// Loops over elements are `for` loops throughout this module: a closure is a function of its own,
/// and where it is not inlined it has none of the instructions that its caller was compiled for.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// Counted from the tensor's first element.
    pub(super) first: usize,
    pub(super) row: usize,
    pub(super) col: usize,
    pub(super) len: usize,
}

impl Run {
    /// No elements.
    pub(super) const NONE: Self = Self {
        first: 0,
        row: 0,
        col: 0,
        len: 0,
    };

    /// The run of `len` elements from a place on.
    #[inline(always)]
    pub(super) fn at(grid: &Grid, row: i64, col: i64, len: i64) -> Self {
        Self {
            first: index(row * grid.cols + col),
            row: index(row),
            col: index(col),
            len: index(len),
        }
    }

    /// The runs of consecutive units, of those shorter than a chunk a chunk's together.
    #[inline(always)]
    pub(super) fn of_units(grid: &Grid, units: Range<i64>) -> impl Iterator<Item = Self> {
        Self::of_length(grid, units, index(grid.block).max(CHUNK))
    }

    /// The runs of at most this length of consecutive units.
    #[inline(always)]
    pub(super) fn of_length(
        grid: &Grid,
        units: Range<i64>,
        len: usize,
    ) -> impl Iterator<Item = Self> {
        Self::of_rows(grid, units).flat_map(move |row| row.parts(len))
    }

    /// The runs of consecutive units, those of a row together.
    #[inline(always)]
    pub(super) fn of_rows(grid: &Grid, units: Range<i64>) -> impl Iterator<Item = Self> {
        let (mut row, mut col, _) = if units.is_empty() {
            (0, 0, 0)
        } else {
            grid.unit(units.start)
        };
        let (mut left, mut in_row) = (units, grid.blocks - col / grid.block);
        std::iter::from_fn(move || {
            if left.is_empty() {
                return None;
            }
            let count = in_row.min(left.end - left.start);
            let run = Self::at(grid, row, col, (count * grid.block).min(grid.cols - col));
            left.start += count;
            (row, col, in_row) = (row + 1, 0, grid.blocks);
            Some(run)
        })
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

    /// The run in pieces of at most `len` elements.
    #[inline(always)]
    pub(super) fn parts(self, len: usize) -> impl Iterator<Item = Self> {
        (0..self.len).step_by(len).map(move |at| self.part(at, len))
    }
}

/// The elements of a run of at most a chunk as f32, zeros behind them.
#[inline(always)]
pub(super) unsafe fn load_run<L: Lanes>(data: *const u8, dtype: Dtype, run: Run, out: &mut Chunk) {
    // SAFETY: the caller's run lies in the tensor.
    unsafe {
        let data = data.add(run.first * dtype.size());
        if run.len == CHUNK {
            return load_chunk::<L>(data, dtype, out);
        }
        let mut copy = Chunk::ZERO;
        let to = copy.as_mut_ptr().cast();
        L::read::<{ 4 * CHUNK }>(data, run.len * dtype.size(), to);
        load_chunk::<L>(copy.as_ptr().cast(), dtype, out);
    }
}

#[inline(always)]
unsafe fn load_chunk<L: Lanes>(data: *const u8, dtype: Dtype, out: &mut Chunk) {
    // SAFETY: the caller's memory has a chunk's elements; the dtype is matched outside the loops,
    // so that each is one of vectors.
    unsafe {
        match dtype {
            Dtype::Bf16 => {
                let data = data.cast::<bf16>();
                for (i, out) in out.iter_mut().enumerate() {
                    *out = widen_bf16(*data.add(i));
                }
            }
            Dtype::F16 => L::load_f16(data.cast(), out),
            _ => **out = *data.cast::<[f32; CHUNK]>(),
        }
    }
}

/// Stores a run of at most a chunk in its dtype, NaN in canonical form.
#[inline(always)]
pub(super) unsafe fn store_run<L: Lanes>(data: *mut u8, dtype: Dtype, run: Run, values: &Chunk) {
    // SAFETY: the caller's run lies in the tensor.
    unsafe {
        let data = data.add(run.first * dtype.size());
        if run.len == CHUNK {
            return store_chunk::<L>(data, dtype, values);
        }
        let mut copy = Chunk::ZERO;
        store_chunk::<L>(copy.as_mut_ptr().cast(), dtype, values);
        let from = copy.as_ptr().cast();
        L::write::<{ 4 * CHUNK }>(from, data, run.len * dtype.size());
    }
}

#[inline(always)]
unsafe fn store_chunk<L: Lanes>(data: *mut u8, dtype: Dtype, values: &Chunk) {
    // SAFETY: the caller's memory has room for a chunk.
    unsafe {
        match dtype {
            Dtype::Bf16 => store_bf16::<L::Vector>(values, data.cast()),
            Dtype::F16 => L::store_f16(values, data.cast()),
            _ => {
                let data = data.cast::<f32>();
                for (i, value) in values.iter().enumerate() {
                    *data.add(i) = canonical(*value);
                }
            }
        }
    }
}

/// Rounds a chunk to bf16.
#[inline(always)]
unsafe fn store_bf16<V: Vector>(values: &Chunk, to: *mut bf16) {
    for at in (0..CHUNK).step_by(V::WIDTH) {
        // SAFETY: the caller's memory has room for a chunk.
        unsafe { V::load(values.as_ptr().add(at)).store_bf16(to.add(at), V::WIDTH) };
    }
}

/// The random numbers of a run of at most a chunk.
#[inline(always)]
pub(super) fn draws<'a>(call: &'a TensorCall<'_>, purpose: Purpose, run: Run) -> Draws<'a> {
    let (row, col) = global(call, run);
    // Rows are cut between blocks, and blocks begin where a group of eight does.
    debug_assert!(col.is_multiple_of(8), "column {col}");
    Draws {
        stream: &call.rng,
        purpose,
        row,
        group: col / 8,
    }
}

/// Index of the first element of a row of the grid.
#[inline(always)]
pub(super) fn first_of_row(call: &TensorCall<'_>, run: Run) -> [i64; MAX_AXES] {
    let mut position = [0; MAX_AXES];
    let mut row = run.row as i64;
    let lead = &call.tensor.grid.lead;
    for axis in (1..lead.len()).rev() {
        position[axis] = row % lead[axis];
        row /= lead[axis];
    }
    position[0] = row;
    position
}

/// Whether a row of the grid has one of these maxima.
#[inline(always)]
pub(super) fn is_before_row(tensor: &TensorPlan, maxima: &Maxima) -> bool {
    let axes = maxima.projection.axes();
    axes.iter().all(|axis| *axis < tensor.grid.lead.len())
}

/// Whether these are the maxima of the grid's columns.
#[inline(always)]
pub(super) fn is_of_columns(tensor: &TensorPlan, maxima: &Maxima) -> bool {
    let axes = maxima.projection.axes().iter().copied();
    axes.eq(tensor.grid.lead.len()..tensor.info.shape.len())
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
    let mut largest = 0;
    for g in g {
        largest = magnitude(g * g).max(largest);
    }
    largest >= INF_BITS.cast_signed()
}

/// The largest magnitude.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> i32 {
    let mut largest = 0;
    for x in values {
        largest = magnitude(*x).max(largest);
    }
    largest
}

#[inline(always)]
pub(super) unsafe fn code_row(
    tensor: &TensorPlan,
    codes: &Codes,
    buffer: Buffer,
    row: usize,
) -> *mut u8 {
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
) -> *mut f32 {
    // SAFETY: the row lies in the tensor.
    unsafe {
        scales
            .data
            .cast::<f32>()
            .add(row * index(div_ceil(tensor.grid.cols, block as i64)))
    }
}

/// The parts of a run that lie along the last axis.
pub(super) struct Stretches<'a> {
    shape: &'a [i64],
    len: usize,
    /// Where the next one begins in the run.
    at: usize,
    /// Index of its first element.
    position: [i64; MAX_AXES],
}

/// A part of a run that lies along the last axis.
pub(super) struct Stretch {
    /// Where it begins in the run.
    pub(super) at: usize,
    pub(super) len: usize,
    /// Index of its first element; axes beyond the tensor's are 0.
    pub(super) position: [i64; MAX_AXES],
}

impl<'a> Stretches<'a> {
    #[inline(always)]
    pub(super) fn of(shape: &'a [i64], run: Run) -> Self {
        let mut position = [0; MAX_AXES];
        let mut rest = run.first as i64;
        for axis in (0..shape.len()).rev() {
            position[axis] = rest % shape[axis];
            rest /= shape[axis];
        }
        Self {
            shape,
            len: run.len,
            at: 0,
            position,
        }
    }
}

impl Iterator for Stretches<'_> {
    type Item = Stretch;

    #[inline(always)]
    fn next(&mut self) -> Option<Stretch> {
        if self.at >= self.len {
            return None;
        }
        let (at, position) = (self.at, self.position);
        let last = self.shape.len().wrapping_sub(1);
        let rest = match self.shape.last() {
            Some(width) => index(width - position[last]),
            None => 1,
        };
        let len = rest.min(self.len - at);
        self.at += len;
        for axis in (0..self.shape.len()).rev() {
            self.position[axis] += if axis == last { len as i64 } else { 1 };
            if self.position[axis] < self.shape[axis] {
                break;
            }
            self.position[axis] = 0;
        }
        Some(Stretch { at, len, position })
    }
}
