//! The definition of every operation: one element at a time, whole tensors, no threads, no
//! cleverness. All other code (portable, SIMD, CUDA) equals it bit for bit.
//!
//! The rounding steps of AdamW's element, numbered alike in every backend; RN is rounding to
//! nearest even in f32, `fma(a, b, c) = RN(a b + c)`:
//!
//! ```text
//! R1  g  = RN(g_raw grad_scale)
//! R2  w  = RN(g g)
//! R3  m' = fma(beta1, m, RN((1 - beta1) g))
//! R4  v' = fma(beta2, v, RN((1 - beta2) w))
//! R5  d  = fma(RN(sqrt(v')), 1/sqrt(1 - beta2^t), eps)
//! R6  q  = RN(m' / d)
//! R7  u  = -fma(lr/(1 - beta1^t), q, RN(lr wd p))
//! R8  p' = RN(p + u), then rounded to the parameter's dtype
//! ```
//!
//! The update uses the fresh m' and v' (paper, Algorithm 1); what is carried on is their coded
//! form. It allocates whole f32 states and is meant for tests.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]
#![expect(
    clippy::needless_range_loop,
    reason = "element i of several arrays, as in the formulas"
)]

use super::TensorCall;
use super::memory::{load, load_code, store};
use crate::layout::{Grid, div_ceil, index as extent};
use crate::numerics::{INF_BITS, NAN_BITS, Scalars, canonical_magnitude, magnitude};
use crate::plan::{Format, TensorPlan};
use crate::quant::Table;
use crate::step::Buffer;

/// One element's new parameter, update and states.
pub(crate) struct Element {
    pub(crate) param: f32,
    pub(crate) update: f32,
    pub(crate) m: f32,
    pub(crate) v: f32,
}

/// AdamW on one element; `g` has been through R1.
pub(crate) fn adamw(p: f32, g: f32, m: f32, v: f32, s: &Scalars) -> Element {
    let w = g * g; // R2
    let m = s.beta1.mul_add(m, s.one_minus_beta1 * g); // R3
    let v = s.beta2.mul_add(v, s.one_minus_beta2 * w); // R4
    let d = v.sqrt().mul_add(s.inv_sqrt_bc2, s.eps); // R5
    let q = m / d; // R6
    let update = -s.lr_bc1.mul_add(q, s.lr_wd * p); // R7
    Element {
        param: p + update,
        update,
        m,
        v,
    } // R8
}

/// Whether a scaled gradient counts as non-finite: its square does not fit in f32.
pub(crate) fn non_finite(g: f32) -> bool {
    !(g * g).is_finite()
}

/// The number of scaled midpoints below `x`.
pub(crate) fn encode(x: f32, scale: f32, table: &Table) -> u8 {
    table
        .midpoints
        .iter()
        .map(|mid| u8::from(x > mid * scale))
        .sum()
}

/// The value of a code.
pub(crate) fn decode(code: u8, scale: f32, table: &Table) -> f32 {
    table.levels[usize::from(code)] * scale
}

/// The scale of a block whose largest magnitude is `maximum`: itself, or NaN if not finite.
pub(crate) fn block_scale(maximum: i32) -> f32 {
    let finite = maximum < INF_BITS.cast_signed();
    f32::from_bits(if finite {
        maximum.cast_unsigned()
    } else {
        NAN_BITS
    })
}

/// Stage 1: the non-finite flag of the tensor, and the maxima of the new v along every axis.
///
/// # Safety
/// The pointers of `call` are valid for the sizes of its plan; `call.stats` was zeroed.
pub(crate) unsafe fn stats(call: &TensorCall<'_>) {
    let tensor = call.tensor;
    let rank1 = tensor.rank1();
    let old = rank1.map(|_| {
        // SAFETY: the caller's promise.
        unsafe { decode_state(call, 1) }
    });
    for index in 0..elements(tensor) {
        // SAFETY: the caller's promise.
        let g = call.scalars.grad_scale * unsafe { load(call.grad, tensor.info.grad_dtype, index) };
        if non_finite(g) {
            call.flag().store(1, std::sync::atomic::Ordering::Relaxed);
        }
        if let (Some(old), Some(first)) = (&old, tensor.stats_offset) {
            // R2 and R4 alone; the other results do not matter here.
            let v = adamw(0.0, g, 0.0, old[index], call.scalars).v;
            let mut word = first;
            for (axis, position) in multi_index(tensor, index).into_iter().enumerate() {
                call.raise(word + position + call.offset_of(axis), magnitude(v));
                word += extent(tensor.global_shape[axis]);
            }
        }
    }
}

/// Stage 2: parameters (or updates) and states. Returns how many blocks were skipped.
///
/// # Safety
/// As for [`stats`]; the statistics are complete.
pub(crate) unsafe fn apply(call: &TensorCall<'_>) -> i64 {
    let tensor = call.tensor;
    let (param_dtype, grad_dtype) = (tensor.info.param_dtype, tensor.info.grad_dtype);
    let grid = &tensor.grid;
    // SAFETY: the caller's promise.
    let (mut m, mut v) = unsafe { (decode_state(call, 0), decode_state(call, 1)) };
    let mut kept = vec![call.skip; extent(grid.units())];
    for (unit, kept) in kept.iter_mut().enumerate() {
        let first = start(grid, unit);
        let indices = first..first + length(grid, unit);
        // SAFETY: the caller's promise.
        let grad = |i| call.scalars.grad_scale * unsafe { load(call.grad, grad_dtype, i) }; // R1
        if call.skip_blocks && indices.clone().any(|i| non_finite(grad(i))) {
            *kept = true;
        }
        for i in indices {
            // SAFETY: the caller's promise; the gradient of element i is read before its update,
            // which may take its place, is written.
            unsafe {
                let p = load(call.param, param_dtype, i);
                let new = adamw(p, grad(i), m[i], v[i], call.scalars);
                if !*kept {
                    (m[i], v[i]) = (new.m, new.v);
                }
                match (call.in_place(), *kept) {
                    (true, false) => store(call.param, param_dtype, i, new.param),
                    (true, true) => {}
                    (false, false) => store(call.update, param_dtype, i, new.update),
                    (false, true) => store(call.update, param_dtype, i, 0.0),
                }
            }
        }
    }
    if call.skip {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe {
        encode_state(call, 0, &m, &kept);
        encode_state(call, 1, &v, &kept);
    }
    kept.iter().map(|kept| i64::from(*kept)).sum()
}

/// Quantizes `values` into a state. Rank-1 maxima are found here.
///
/// # Safety
/// As for [`stats`], with `values` f32 in `call.param`.
pub(crate) unsafe fn compress(call: &TensorCall<'_>, state: usize) {
    let tensor = call.tensor;
    let values: Vec<f32> = (0..elements(tensor))
        // SAFETY: the caller's promise.
        .map(|i| unsafe { load(call.param, crate::dtype::Dtype::F32, i) })
        .collect();
    if matches!(tensor.states[state].format, Format::Rank1 { .. }) {
        let buffers = call.state_buffers(state);
        for axis in 0..tensor.info.shape.len() {
            let mut maxima = vec![0_i32; extent(tensor.info.shape[axis])];
            for (i, value) in values.iter().enumerate() {
                let slot = &mut maxima[multi_index(tensor, i)[axis]];
                *slot = (*slot).max(magnitude(*value));
            }
            for (position, maximum) in maxima.into_iter().enumerate() {
                let bits = canonical_magnitude(maximum).cast_unsigned();
                // SAFETY: the caller's promise.
                unsafe { put(buffers[1 + axis], position, f32::from_bits(bits)) };
            }
        }
    }
    let kept = vec![false; extent(tensor.grid.units())];
    // SAFETY: the caller's promise.
    unsafe { encode_values(call, state, &values, &kept) };
}

/// Restores a state as f32 values.
///
/// # Safety
/// As for [`stats`], with the f32 output in `call.param`.
pub(crate) unsafe fn decompress(call: &TensorCall<'_>, state: usize) {
    // SAFETY: the caller's promise.
    let values = unsafe { decode_state(call, state) };
    for (i, value) in values.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { store(call.param, crate::dtype::Dtype::F32, i, value) };
    }
}

/// All values of a state, in the order of the tensor's elements.
unsafe fn decode_state(call: &TensorCall<'_>, state: usize) -> Vec<f32> {
    let tensor = call.tensor;
    let buffers = call.state_buffers(state);
    (0..elements(tensor))
        .map(|i| {
            // SAFETY: the caller's promise.
            unsafe {
                match tensor.states[state].format {
                    Format::F32 => get(buffers[0], i),
                    Format::Block { block, table } => decode(
                        code(tensor, buffers, i),
                        get(buffers[1], scale_index(tensor, block, i)),
                        table,
                    ),
                    Format::Rank1 { table } => decode(
                        code(tensor, buffers, i),
                        rank1_scale(tensor, buffers, i),
                        table,
                    ),
                }
            }
        })
        .collect()
}

/// Codes `values`, leaving the units in `kept`; rank-1 maxima come from the statistics.
unsafe fn encode_state(call: &TensorCall<'_>, state: usize, values: &[f32], kept: &[bool]) {
    let tensor = call.tensor;
    if let (Format::Rank1 { .. }, Some(first)) = (tensor.states[state].format, tensor.stats_offset)
    {
        let mut word = first;
        for axis in 0..tensor.info.shape.len() {
            for position in 0..extent(tensor.info.shape[axis]) {
                let maximum = call.statistic(word + position + call.offset_of(axis));
                let bits = canonical_magnitude(maximum).cast_unsigned();
                // SAFETY: the caller's promise.
                unsafe {
                    put(
                        call.state_buffers(state)[1 + axis],
                        position,
                        f32::from_bits(bits),
                    )
                };
            }
            word += extent(tensor.global_shape[axis]);
        }
    }
    // SAFETY: the caller's promise.
    unsafe { encode_values(call, state, values, kept) };
}

/// Codes and block scales; rank-1 maxima are in the state's axis buffers already.
unsafe fn encode_values(call: &TensorCall<'_>, state: usize, values: &[f32], kept: &[bool]) {
    let tensor = call.tensor;
    let buffers = call.state_buffers(state);
    let grid = &tensor.grid;
    for (unit, _) in kept.iter().enumerate().filter(|(_, kept)| !**kept) {
        let first = start(grid, unit);
        let unit_end = first + length(grid, unit);
        match tensor.states[state].format {
            Format::F32 => {
                for i in first..unit_end {
                    // SAFETY: the caller's promise.
                    unsafe { put(buffers[0], i, values[i]) };
                }
            }
            Format::Block { block, table } => {
                let mut begin = first;
                while begin < unit_end {
                    let end = (begin + extent(block)).min(unit_end);
                    let maximum = values[begin..end].iter().map(|x| magnitude(*x)).max();
                    let scale = block_scale(maximum.unwrap_or(0));
                    // SAFETY: the caller's promise.
                    unsafe {
                        put(buffers[1], scale_index(tensor, block, begin), scale);
                        for i in begin..end {
                            put_code(tensor, buffers, i, encode(values[i], scale, table));
                        }
                    }
                    begin = end;
                }
            }
            Format::Rank1 { table } => {
                for i in first..unit_end {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let scale = rank1_scale(tensor, buffers, i);
                        put_code(tensor, buffers, i, encode(values[i], scale, table));
                    }
                }
            }
        }
    }
}

/// The smallest, over the axes, of the maxima of the slices that element `index` lies in; as
/// integers, so that NaN is the largest.
unsafe fn rank1_scale(tensor: &TensorPlan, buffers: &[Buffer], index: usize) -> f32 {
    let axes = multi_index(tensor, index).into_iter().zip(&buffers[1..]);
    // SAFETY: the caller's promise.
    let bits = axes
        .map(|(position, axis)| unsafe { get(*axis, position) }.to_bits())
        .min();
    f32::from_bits(bits.unwrap_or(0))
}

unsafe fn code(tensor: &TensorPlan, buffers: &[Buffer], index: usize) -> u8 {
    let (row, col) = row_col(tensor, index);
    // SAFETY: the caller's promise.
    unsafe {
        load_code(
            buffers[0]
                .data
                .cast::<u8>()
                .add(row * extent(tensor.grid.code_bytes())),
            col,
        )
    }
}

unsafe fn put_code(tensor: &TensorPlan, buffers: &[Buffer], index: usize, code: u8) {
    let (row, col) = row_col(tensor, index);
    // SAFETY: the caller's promise.
    unsafe {
        let byte = buffers[0]
            .data
            .cast::<u8>()
            .add(row * extent(tensor.grid.code_bytes()) + col / 2);
        // The even element clears the pad nibble of an odd row's end.
        *byte = if col.is_multiple_of(2) {
            code
        } else {
            (*byte & 15) | (code << 4)
        };
    }
}

unsafe fn get(buffer: Buffer, index: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { load(buffer.data.cast(), crate::dtype::Dtype::F32, index) }
}

unsafe fn put(buffer: Buffer, index: usize, value: f32) {
    // SAFETY: the caller's promise.
    unsafe { store(buffer.data.cast(), crate::dtype::Dtype::F32, index, value) };
}

fn scale_index(tensor: &TensorPlan, block: i64, index: usize) -> usize {
    let (row, col) = row_col(tensor, index);
    row * extent(div_ceil(tensor.grid.cols, block)) + col / extent(block)
}

fn row_col(tensor: &TensorPlan, index: usize) -> (usize, usize) {
    let cols = extent(tensor.grid.cols);
    (index / cols, index % cols)
}

/// Index along every axis (here, not in the global tensor).
fn multi_index(tensor: &TensorPlan, index: usize) -> Vec<usize> {
    let mut rest = index;
    let mut position = vec![0; tensor.info.shape.len()];
    for (slot, axis) in position.iter_mut().zip(&tensor.info.shape).rev() {
        *slot = rest % extent(*axis);
        rest /= extent(*axis);
    }
    position
}

fn start(grid: &Grid, unit: usize) -> usize {
    let (row, col, _) = grid.unit(unit as i64);
    extent(row * grid.cols + col)
}

fn length(grid: &Grid, unit: usize) -> usize {
    extent(grid.unit(unit as i64).2)
}

fn elements(tensor: &TensorPlan) -> usize {
    extent(tensor.numel)
}
