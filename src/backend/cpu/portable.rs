//! The threaded CPU kernels: the reference's arithmetic over short runs of elements, in loops
//! that the compiler turns into vectors. Instantiated twice: for the processor's baseline, and
//! with AVX2, FMA and F16C, since without a hardware `fma` every multiply-add is a library call.
//!
//! The unit of work is one block of one row (`Grid::unit`): its states are decoded into arrays on
//! the stack, updated, and coded again. Comments R1 … R8 are the rounding steps of `reference.rs`.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;

use super::TensorCall;
use super::memory::{load, load_code, store};
use crate::dtype::Dtype;
use crate::layout::{Grid, div_ceil, index};
use crate::numerics::{INF_BITS, Scalars, canonical, canonical_magnitude, magnitude};
use crate::plan::{Format, TensorPlan};
use crate::step::Buffer;

/// The largest block; arrays on the stack have this many elements.
const LONGEST: usize = 4096;

/// Elements of one coding run: short enough for the thresholds' loop to stay in registers and L1.
const RUN: usize = 128;

/// Columns of one task of [`stats`].
pub(super) const STATS_COLUMNS: i64 = LONGEST as i64;

/// The kernels of one instantiation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub(super) apply: unsafe fn(&TensorCall<'_>, Range<i64>) -> i64,
    pub(super) stats: unsafe fn(&TensorCall<'_>, Range<i64>, Range<i64>),
    pub(super) scan: unsafe fn(&TensorCall<'_>, Range<i64>) -> bool,
    pub(super) compress: unsafe fn(&TensorCall<'_>, usize, Range<i64>),
    pub(super) decompress: unsafe fn(&TensorCall<'_>, usize, Range<i64>),
}

/// For the baseline of the target.
pub(super) const BASELINE: Kernels = Kernels {
    apply,
    stats,
    scan,
    compress,
    decompress,
};

/// For processors with AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
pub(super) const AVX2: Kernels = {
    // The bodies are `inline(always)`, so each wrapper is compiled as a whole with its features.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn apply_avx2(call: &TensorCall<'_>, units: Range<i64>) -> i64 {
        // SAFETY: the caller's promise.
        unsafe { apply(call, units) }
    }
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn stats_avx2(call: &TensorCall<'_>, rows: Range<i64>, columns: Range<i64>) {
        // SAFETY: the caller's promise.
        unsafe { stats(call, rows, columns) }
    }
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scan_avx2(call: &TensorCall<'_>, elements: Range<i64>) -> bool {
        // SAFETY: the caller's promise.
        unsafe { scan(call, elements) }
    }
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn compress_avx2(call: &TensorCall<'_>, state: usize, units: Range<i64>) {
        // SAFETY: the caller's promise.
        unsafe { compress(call, state, units) }
    }
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn decompress_avx2(call: &TensorCall<'_>, state: usize, units: Range<i64>) {
        // SAFETY: the caller's promise.
        unsafe { decompress(call, state, units) }
    }
    Kernels {
        apply: apply_avx2,
        stats: stats_avx2,
        scan: scan_avx2,
        compress: compress_avx2,
        decompress: decompress_avx2,
    }
};

/// Updates the units of one tensor; returns how many were skipped for a non-finite gradient.
///
/// # Safety
/// The pointers of `call` are valid for its plan; the statistics are complete; no other thread
/// works on these units.
#[inline(always)]
unsafe fn apply(call: &TensorCall<'_>, units: Range<i64>) -> i64 {
    let tensor = call.tensor;
    let (mut p, mut g) = ([0.0_f32; LONGEST], [0.0_f32; LONGEST]);
    let (mut m, mut v) = ([0.0_f32; LONGEST], [0.0_f32; LONGEST]);
    let mut skipped = 0;
    for unit in units {
        let run = Run::of(&tensor.grid, unit);
        let (p, g) = (&mut p[..run.len], &mut g[..run.len]);
        let (m, v) = (&mut m[..run.len], &mut v[..run.len]);
        // SAFETY: the run lies in the tensor.
        unsafe {
            load_run(call.grad, tensor.info.grad_dtype, run.first, g);
            load_run(call.param, tensor.info.param_dtype, run.first, p);
        }
        g.iter_mut().for_each(|g| *g *= call.scalars.grad_scale); // R1
        if call.skip_blocks && any_non_finite(g) {
            skipped += 1;
            if !call.in_place() {
                // SAFETY: the run lies in the tensor.
                unsafe { fill_zero(call.update, tensor.info.param_dtype, run) };
            }
            continue;
        }
        // SAFETY: the run lies in the tensor.
        unsafe {
            decode_run(call, 0, run, m);
            decode_run(call, 1, run, v);
        }
        // From here g holds the update.
        adamw(p, g, m, v, call.scalars);
        // SAFETY: the run lies in the tensor; the gradient was read before its update is written.
        unsafe {
            if call.in_place() {
                p.iter_mut().zip(&*g).for_each(|(p, u)| *p += u); // R8
                store_run(call.param, tensor.info.param_dtype, run.first, p);
            } else {
                store_run(call.update, tensor.info.param_dtype, run.first, g);
            }
            encode_run(call, 0, run, m, Maxima::New);
            encode_run(call, 1, run, v, Maxima::New);
        }
    }
    skipped
}

/// R2 … R7 on a run: `g` becomes the update, `m` and `v` the new states.
#[inline(always)]
fn adamw(p: &[f32], g: &mut [f32], m: &mut [f32], v: &mut [f32], s: &Scalars) {
    for (((p, g), m), v) in p.iter().zip(g).zip(m).zip(v) {
        let w = *g * *g; // R2
        *m = s.beta1.mul_add(*m, s.one_minus_beta1 * *g); // R3
        *v = s.beta2.mul_add(*v, s.one_minus_beta2 * w); // R4
        let d = v.sqrt().mul_add(s.inv_sqrt_bc2, s.eps); // R5
        let q = *m / d; // R6
        *g = -s.lr_bc1.mul_add(q, s.lr_wd * p); // R7
    }
}

/// Writes zero updates for a tensor that is skipped as a whole.
///
/// # Safety
/// `call.update` is valid for the plan.
pub(super) unsafe fn zero_update(call: &TensorCall<'_>, units: Range<i64>) {
    for unit in units {
        let run = Run::of(&call.tensor.grid, unit);
        // SAFETY: the run lies in the tensor.
        unsafe { fill_zero(call.update, call.tensor.info.param_dtype, run) };
    }
}

/// Raises the maxima of a rank-1 tensor by the new v of a box: `rows` of the tensor seen as
/// (product of the leading axes, last axis), and at most [`STATS_COLUMNS`] columns.
///
/// # Safety
/// As for [`apply`]; any number of threads may raise the same maxima.
#[inline(always)]
unsafe fn stats(call: &TensorCall<'_>, rows: Range<i64>, columns: Range<i64>) {
    let tensor = call.tensor;
    let Some(first_word) = tensor.stats_offset else {
        return;
    };
    let shape = &tensor.info.shape;
    let last = shape.len() - 1;
    let width = index(columns.end - columns.start);
    let (mut g, mut v) = ([0.0_f32; LONGEST], [0.0_f32; LONGEST]);
    let (g, v) = (&mut g[..width], &mut v[..width]);
    let mut column_maxima = [0_i32; LONGEST];
    let column_maxima = &mut column_maxima[..width];
    let mut all_finite = true;
    for row in rows {
        let run = Run::new(&tensor.grid, row * shape[last] + columns.start, width);
        // SAFETY: the run lies in the tensor and in one row of the grid.
        unsafe {
            load_run(call.grad, tensor.info.grad_dtype, run.first, g);
            g.iter_mut().for_each(|g| *g *= call.scalars.grad_scale); // R1
            decode_run(call, 1, run, v);
        }
        all_finite &= !any_non_finite(g);
        let s = call.scalars;
        let mut row_maximum = 0;
        for ((g, v), maximum) in g.iter().zip(&*v).zip(&mut *column_maxima) {
            let w = g * g; // R2
            let bits = magnitude(s.beta2.mul_add(*v, s.one_minus_beta2 * w)); // R4
            *maximum = bits.max(*maximum);
            row_maximum = bits.max(row_maximum);
        }
        // Every axis but the last has one position for the whole run.
        let (mut word, mut rest) = (first_word, row);
        for axis in 0..last {
            word += index(tensor.global_shape[axis]);
        }
        for axis in (0..last).rev() {
            word -= index(tensor.global_shape[axis]);
            call.raise(
                word + index(rest % shape[axis]) + call.offset_of(axis),
                row_maximum,
            );
            rest /= shape[axis];
        }
    }
    let first_column = first_word
        + tensor.global_shape[..last]
            .iter()
            .map(|axis| index(*axis))
            .sum::<usize>()
        + call.offset_of(last)
        + index(columns.start);
    for (column, maximum) in column_maxima.iter().enumerate() {
        call.raise(first_column + column, *maximum);
    }
    if !all_finite {
        call.flag().store(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Whether any gradient among the elements is non-finite.
///
/// # Safety
/// `call.grad` is valid for the plan.
#[inline(always)]
unsafe fn scan(call: &TensorCall<'_>, elements: Range<i64>) -> bool {
    let mut g = [0.0_f32; LONGEST];
    let (mut first, end) = (index(elements.start), index(elements.end));
    while first < end {
        let g = &mut g[..LONGEST.min(end - first)];
        // SAFETY: the elements lie in the tensor.
        unsafe { load_run(call.grad, call.tensor.info.grad_dtype, first, g) };
        g.iter_mut().for_each(|g| *g *= call.scalars.grad_scale); // R1
        if any_non_finite(g) {
            return true;
        }
        first += g.len();
    }
    false
}

/// Quantizes the f32 values at `call.param`; rank-1 maxima are in the state's axis buffers.
///
/// # Safety
/// As for [`apply`].
#[inline(always)]
unsafe fn compress(call: &TensorCall<'_>, state: usize, units: Range<i64>) {
    let mut values = [0.0_f32; LONGEST];
    for unit in units {
        let run = Run::of(&call.tensor.grid, unit);
        let values = &mut values[..run.len];
        // SAFETY: the run lies in the tensor.
        unsafe {
            load_run(call.param, Dtype::F32, run.first, values);
            encode_run(call, state, run, values, Maxima::Stored);
        }
    }
}

/// Restores f32 values at `call.param`.
///
/// # Safety
/// As for [`apply`].
#[inline(always)]
unsafe fn decompress(call: &TensorCall<'_>, state: usize, units: Range<i64>) {
    let mut values = [0.0_f32; LONGEST];
    for unit in units {
        let run = Run::of(&call.tensor.grid, unit);
        let values = &mut values[..run.len];
        // SAFETY: the run lies in the tensor.
        unsafe {
            decode_run(call, state, run, values);
            store_run(call.param, Dtype::F32, run.first, values);
        }
    }
}

/// Finds the rank-1 maxima of the values at `call.param` and stores them as the state's axis
/// vectors. Serial: it runs when states are imported, not in a step.
///
/// # Safety
/// As for [`apply`].
pub(super) unsafe fn rank1_maxima(call: &TensorCall<'_>, state: usize) {
    let tensor = call.tensor;
    let axes = &call.state_buffers(state)[1..];
    for axis in axes {
        // SAFETY: the axis vectors are valid for the plan.
        unsafe { std::ptr::write_bytes(axis.data.cast::<u8>(), 0, index(axis.bytes)) };
    }
    for element in 0..tensor.numel {
        // SAFETY: the element and its positions lie in the tensor. Maxima are raised as integers.
        unsafe {
            let bits = magnitude(load(call.param, Dtype::F32, index(element)));
            let mut rest = element;
            for (axis, extent) in axes.iter().zip(&tensor.info.shape).rev() {
                let slot = axis.data.cast::<i32>().add(index(rest % extent));
                *slot = canonical_magnitude(bits).max(*slot);
                rest /= extent;
            }
        }
    }
}

/// Copies the reduced maxima into the state's axis vectors, once all its units are coded.
///
/// # Safety
/// As for [`apply`], with no other thread at work on the tensor.
pub(super) unsafe fn store_maxima(call: &TensorCall<'_>) {
    let tensor = call.tensor;
    let (Some(mut word), Some(state)) = (
        tensor.stats_offset,
        tensor
            .states
            .iter()
            .position(|s| matches!(s.format, Format::Rank1 { .. })),
    ) else {
        return;
    };
    for (axis, buffer) in call.state_buffers(state)[1..].iter().enumerate() {
        for position in 0..index(tensor.info.shape[axis]) {
            let maximum = call.statistic(word + call.offset_of(axis) + position);
            // SAFETY: the position lies in the axis vector.
            unsafe {
                *buffer.data.cast::<i32>().add(position) = canonical_magnitude(maximum);
            }
        }
        word += index(tensor.global_shape[axis]);
    }
}

/// A run of elements inside one row of the grid.
#[derive(Clone, Copy)]
struct Run {
    /// Counted from the tensor's first element.
    first: usize,
    row: usize,
    col: usize,
    len: usize,
}

impl Run {
    #[inline(always)]
    fn of(grid: &Grid, unit: i64) -> Self {
        let (row, col, len) = grid.unit(unit);
        Self {
            first: index(row * grid.cols + col),
            row: index(row),
            col: index(col),
            len: index(len),
        }
    }

    #[inline(always)]
    fn new(grid: &Grid, first: i64, len: usize) -> Self {
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
    fn part(self, at: usize, len: usize) -> Self {
        Self {
            first: self.first + at,
            col: self.col + at,
            len: len.min(self.len - at),
            ..self
        }
    }
}

#[inline(always)]
unsafe fn load_run(data: *const u8, dtype: Dtype, first: usize, out: &mut [f32]) {
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
        _ => each!(Dtype::F32),
    }
}

#[inline(always)]
unsafe fn store_run(data: *mut u8, dtype: Dtype, first: usize, values: &[f32]) {
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
        _ => each!(Dtype::F32),
    }
}

#[inline(always)]
unsafe fn fill_zero(data: *mut u8, dtype: Dtype, run: Run) {
    let size = dtype.size();
    // SAFETY: the caller's run lies in the tensor; zero bytes are 0.0 in every dtype.
    unsafe { std::ptr::write_bytes(data.add(run.first * size), 0, run.len * size) };
}

/// A gradient is non-finite when its square is.
#[inline(always)]
fn any_non_finite(g: &[f32]) -> bool {
    let largest = g.iter().fold(0, |largest, g| magnitude(g * g).max(largest));
    largest >= INF_BITS.cast_signed()
}

/// Decodes a run of a state.
#[inline(always)]
unsafe fn decode_run(call: &TensorCall<'_>, state: usize, run: Run, out: &mut [f32]) {
    let tensor = call.tensor;
    let buffers = call.state_buffers(state);
    // SAFETY: the run lies in the tensor, so its codes and scales lie in the buffers.
    unsafe {
        match tensor.states[state].format {
            Format::F32 => load_run(buffers[0].data.cast(), Dtype::F32, run.first, out),
            Format::Block { block, table } => {
                let scales = scale_row(tensor, buffers[1], block, run.row);
                let codes = code_row(tensor, buffers[0], run.row);
                let mut at = 0;
                while at < run.len {
                    // Runs of `stats` may begin inside a block; those of units never do.
                    let col = run.col + at;
                    let len = (index(block) - col % index(block)).min(run.len - at);
                    let scale = *scales.add(col / index(block));
                    let mut values = [0.0_f32; 16];
                    for (value, level) in values.iter_mut().zip(&table.levels) {
                        *value = level * scale;
                    }
                    for (i, out) in out[at..at + len].iter_mut().enumerate() {
                        *out = values[usize::from(load_code(codes, col + i))];
                    }
                    at += len;
                }
            }
            Format::Rank1 { table } => {
                let codes = code_row(tensor, buffers[0], run.row);
                rank1_scales(call, run, Source::Stored(&buffers[1..]), out);
                for (i, out) in out.iter_mut().enumerate() {
                    *out *= table.levels[usize::from(load_code(codes, run.col + i))];
                }
            }
        }
    }
}

/// Where a rank-1 state's maxima are.
#[derive(Clone, Copy)]
enum Maxima {
    /// In the statistics of this step.
    New,
    /// In the state's axis vectors.
    Stored,
}

/// Codes a run of a state that begins at a block's first element.
#[inline(always)]
unsafe fn encode_run(
    call: &TensorCall<'_>,
    state: usize,
    run: Run,
    values: &[f32],
    maxima: Maxima,
) {
    let tensor = call.tensor;
    let buffers = call.state_buffers(state);
    // SAFETY: the run lies in the tensor, so its codes and scales lie in the buffers.
    unsafe {
        match tensor.states[state].format {
            Format::F32 => store_run(buffers[0].data.cast(), Dtype::F32, run.first, values),
            Format::Block { block, table } => {
                let scales = scale_row(tensor, buffers[1], block, run.row).cast_mut();
                let codes = code_row(tensor, buffers[0], run.row).cast_mut();
                for (b, values) in values.chunks(index(block)).enumerate() {
                    let col = run.col + b * index(block);
                    let largest = values
                        .iter()
                        .fold(0, |largest, x| magnitude(*x).max(largest));
                    let scale = super::reference::block_scale(largest);
                    let thresholds = table.midpoints.map(|mid| mid * scale);
                    for (r, values) in values.chunks(RUN).enumerate() {
                        let mut out = [0_i32; RUN];
                        for threshold in thresholds {
                            for (code, x) in out.iter_mut().zip(values) {
                                *code += i32::from(*x > threshold);
                            }
                        }
                        store_codes(codes, col + r * RUN, &out[..values.len()]);
                    }
                    *scales.add(col / index(block)) = scale;
                }
            }
            Format::Rank1 { table } => {
                let codes = code_row(tensor, buffers[0], run.row).cast_mut();
                let source = match maxima {
                    Maxima::New => Source::Statistics,
                    Maxima::Stored => Source::Stored(&buffers[1..]),
                };
                for (r, values) in values.chunks(RUN).enumerate() {
                    let part = run.part(r * RUN, RUN);
                    let mut scales = [0.0_f32; RUN];
                    let scales = &mut scales[..part.len];
                    rank1_scales(call, part, source, scales);
                    let mut out = [0_i32; RUN];
                    for mid in table.midpoints {
                        for ((code, x), scale) in out.iter_mut().zip(values).zip(&*scales) {
                            *code += i32::from(*x > mid * scale);
                        }
                    }
                    store_codes(codes, part.col, &out[..part.len]);
                }
            }
        }
    }
}

/// Packs codes, the even column in the low nibble; `col` is even, and an odd count ends a row,
/// whose pad nibble becomes 0.
#[inline(always)]
unsafe fn store_codes(row: *mut u8, col: usize, codes: &[i32]) {
    for (i, pair) in codes.chunks(2).enumerate() {
        let high = pair.get(1).copied().unwrap_or(0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 15 each"
        )]
        let byte = (pair[0] | (high << 4)) as u8;
        // SAFETY: the columns lie in the row.
        unsafe { *row.add(col / 2 + i) = byte };
    }
}

#[inline(always)]
unsafe fn code_row(tensor: &TensorPlan, codes: Buffer, row: usize) -> *const u8 {
    // SAFETY: the row lies in the tensor.
    unsafe {
        codes
            .data
            .cast::<u8>()
            .add(row * index(tensor.grid.code_bytes()))
    }
}

#[inline(always)]
unsafe fn scale_row(tensor: &TensorPlan, scales: Buffer, block: i64, row: usize) -> *const f32 {
    // SAFETY: the row lies in the tensor.
    unsafe {
        scales
            .data
            .cast::<f32>()
            .add(row * index(div_ceil(tensor.grid.cols, block)))
    }
}

/// Where [`rank1_scales`] takes the maxima from.
#[derive(Clone, Copy)]
enum Source<'a> {
    Statistics,
    Stored(&'a [Buffer]),
}

impl Source<'_> {
    /// The maximum of axis `axis` (whose statistics begin at `word`) at `position`, as an integer.
    #[inline(always)]
    unsafe fn at(self, call: &TensorCall<'_>, word: usize, axis: usize, position: usize) -> i32 {
        match self {
            Source::Statistics => {
                canonical_magnitude(call.statistic(word + call.offset_of(axis) + position))
            }
            // SAFETY: the position lies in the axis vector.
            Source::Stored(axes) => unsafe { *axes[axis].data.cast::<i32>().add(position) },
        }
    }
}

/// The scale of every element of a run: the smallest of its slices' maxima.
#[inline(always)]
unsafe fn rank1_scales(call: &TensorCall<'_>, run: Run, source: Source<'_>, out: &mut [f32]) {
    let tensor = call.tensor;
    let shape = &tensor.info.shape;
    let last = shape.len() - 1;
    let width = index(shape[last]);
    let word = tensor.stats_offset.unwrap_or(0);
    let last_word = word
        + tensor.global_shape[..last]
            .iter()
            .map(|e| index(*e))
            .sum::<usize>();
    let mut at = 0;
    // One stretch of the last axis after the other.
    while at < run.len {
        let (row, col) = ((run.first + at) / width, (run.first + at) % width);
        let len = (width - col).min(run.len - at);
        let (mut axis_word, mut rest, mut outer) = (last_word, row, i32::MAX);
        for axis in (0..last).rev() {
            let extent = index(shape[axis]);
            axis_word -= index(tensor.global_shape[axis]);
            // SAFETY: the position lies in the axis.
            outer = outer.min(unsafe { source.at(call, axis_word, axis, rest % extent) });
            rest /= extent;
        }
        for (i, out) in out[at..at + len].iter_mut().enumerate() {
            // SAFETY: the position lies in the axis.
            let bits = outer.min(unsafe { source.at(call, last_word, last, col + i) });
            *out = f32::from_bits(bits.cast_unsigned());
        }
        at += len;
    }
    debug_assert!(
        out.iter()
            .all(|scale| canonical(*scale).to_bits() == scale.to_bits())
    );
}
