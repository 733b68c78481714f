//! The definition of every operation on tensors: one element at a time, whole tensors, no threads,
//! no cleverness. All other code (portable, SIMD, CUDA) equals it bit for bit.
//!
//! What one element's step is, is defined in `optimizer/`; what a code means, in `quant/`; what is
//! kept beside a parameter, in `weights.rs`. Here they are put together. It allocates whole f32
//! states and is meant for tests.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]
#![expect(
    clippy::needless_range_loop,
    reason = "element i of several arrays, as in the formulas"
)]

use super::call::TensorCall;
use super::memory::{load, load_code, store};
use crate::dtype::Dtype;
use crate::layout::{Grid, div_ceil, index as extent};
use crate::numerics::{Exponent, INF_BITS, Limbs, NAN_BITS, canonical_magnitude, magnitude};
use crate::optimizer::{Element, Input, MAX_STATES, Update};
use crate::plan::{Codes, Factor, Format, MAX_AXES, Maxima, Pass, Scales, TensorPlan};
use crate::quant::{Rounding, corrected_scale, decode, nearest, stochastic, uniform};
use crate::rng::Purpose;
use crate::step::Buffer;
use crate::weights::Weights;

/// Whether a scaled gradient counts as non-finite: its square does not fit in f32.
pub(crate) fn non_finite(g: f32) -> bool {
    !(g * g).is_finite()
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

/// v of an element under its factors: `RN(RN(row / mean) column)`, 0 where the mean is 0.
#[inline(always)]
pub(crate) fn factored(row: f32, column: f32, mean: f32) -> f32 {
    if mean == 0.0 {
        0.0
    } else {
        row / mean * column
    }
}

/// Collects the statistics of one pass; those of the passes before are complete.
///
/// # Safety
/// The pointers of `call` are valid for the sizes of its plan; the pass's statistics were zeroed.
pub(crate) unsafe fn collect(call: &TensorCall<'_>, pass: Pass) {
    let tensor = call.tensor;
    // SAFETY: the caller's promise.
    let old = unsafe { old_states(call, pass != Pass::Maxima) };
    for i in 0..elements(tensor) {
        let position = multi_index(tensor, i);
        // SAFETY: the caller's promise.
        let x = unsafe { input(call, i, &old) };
        match pass {
            Pass::Maxima => maxima(call, x, &position),
            Pass::Sums => sums(call, x, &position),
            Pass::UpdateMaxima | Pass::UpdateSums => {
                let (Update::Adafactor(rule), Some(rms)) = (&call.rule, tensor.rms) else {
                    continue;
                };
                let (_, q) = rule.unclipped(x.g, x.old[0]);
                if !rule.needs_rms().1 {
                } else if pass == Pass::UpdateMaxima {
                    call.raise_update(rms.update_max, magnitude(q));
                } else if let Some(exponent) = call.update_exponent(rms.update_max) {
                    let term = f64::from(q) * f64::from(q);
                    call.add_update(rms.update_sum, exponent.squared().limbs(term));
                }
            }
            Pass::Apply => {}
        }
    }
}

/// The tensor's non-finite flag, and all maxima, raised by one element.
fn maxima(call: &TensorCall<'_>, x: Input, position: &[i64]) {
    let tensor = call.tensor;
    if non_finite(x.g) {
        call.flag().store(1, std::sync::atomic::Ordering::Relaxed);
    }
    let new = call.rule.element(x).new;
    for (state, new) in tensor.states.iter().zip(new) {
        for maxima in state.maxima() {
            let at = maxima.projection.global_position(position, call.offset);
            call.raise(maxima.word + at, magnitude(new));
        }
    }
    if let Some((_, factors)) = tensor.factored() {
        let w = call.rule.square(x.p, x.g);
        for Factor { maxima, .. } in factors {
            let at = maxima.projection.global_position(position, call.offset);
            call.raise(maxima.word + at, magnitude(w));
        }
    }
    if let Some(rms) = tensor.rms {
        call.raise(rms.param_max, magnitude(x.p));
    }
}

/// All exact sums, raised by one element.
fn sums(call: &TensorCall<'_>, x: Input, position: &[i64]) {
    if let Some((_, factors)) = call.tensor.factored() {
        let w = f64::from(call.rule.square(x.p, x.g));
        for factor in factors {
            let projection = &factor.maxima.projection;
            let at = projection.global_position(position, call.offset);
            if let Some(exponent) = call.exponent(factor.maxima.word + at) {
                call.add(factor.sum + 2 * at, exponent.limbs(w));
            }
        }
    }
    if let Some(rms) = call.tensor.rms
        && let Some(exponent) = call.exponent(rms.param_max)
    {
        let term = f64::from(x.p) * f64::from(x.p);
        call.add(rms.param_sum, exponent.squared().limbs(term));
    }
}

/// The states after the step before they are coded: what diagnostics compare the codes with.
///
/// # Safety
/// As for [`collect`]; all statistics are complete.
pub(crate) unsafe fn fresh_states(call: &TensorCall<'_>) -> Vec<Vec<f32>> {
    let tensor = call.tensor;
    // SAFETY: the caller's promise.
    let mut states = unsafe { old_states(call, true) };
    for i in 0..elements(tensor) {
        // SAFETY: as above.
        let new = call.rule.element(unsafe { input(call, i, &states) }).new;
        for (state, new) in states.iter_mut().zip(new) {
            state[i] = new;
        }
    }
    states
}

/// Parameters (or updates) and states. Returns how many blocks were skipped.
///
/// # Safety
/// As for [`collect`]; all statistics are complete.
pub(crate) unsafe fn apply(call: &TensorCall<'_>) -> i64 {
    let tensor = call.tensor;
    let param_dtype = tensor.info.param_dtype;
    let grid = &tensor.grid;
    let rule = call.rule;
    // SAFETY: the caller's promise.
    let mut states = unsafe { old_states(call, true) };
    let mut kept = vec![call.skip; extent(grid.units())];
    for (unit, kept) in kept.iter_mut().enumerate() {
        let first = start(grid, unit);
        let indices = first..first + length(grid, unit);
        // SAFETY: the caller's promise.
        let finite = |i| unsafe { !non_finite(input(call, i, &states).g) };
        if call.skip_blocks && !indices.clone().all(finite) {
            *kept = true;
        }
        for i in indices {
            // SAFETY: the caller's promise; the gradient of element i is read before its update,
            // which may take its place, is written.
            unsafe {
                let x = input(call, i, &states);
                let Element { update, new } = rule.element(x);
                if !*kept {
                    for (state, new) in states.iter_mut().zip(new) {
                        state[i] = new;
                    }
                }
                match (call.in_place(), *kept) {
                    (true, false) => call.weight.store(i, x.p + update, draw(call, i)), // R8
                    (true, true) => {}
                    (false, false) => store(call.update, param_dtype, i, update),
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
        store_statistics(call);
        for (state, values) in states.iter().enumerate() {
            encode(call, state, values, &kept);
        }
    }
    kept.iter().map(|kept| i64::from(*kept)).sum()
}

/// The random number that rounds a parameter, where that is wanted.
fn draw(call: &TensorCall<'_>, i: usize) -> u16 {
    if call.weight.form != Weights::Stochastic {
        return 0;
    }
    let (row, col) = global(call, i);
    call.rng.draw(Purpose::Weight, row, col)
}

/// Copies new maxima and factors into the states that keep them.
unsafe fn store_statistics(call: &TensorCall<'_>) {
    for (state, plan) in call.tensor.states.iter().enumerate() {
        let first = usize::from(matches!(plan.format, Format::Codes(_)));
        let buffers = &call.state_buffers(state)[first..];
        for (maxima, buffer) in plan.maxima().iter().zip(buffers) {
            for position in 0..maxima.projection.extent() {
                let at = maxima.projection.globalize(position, call.offset);
                let bits = canonical_magnitude(call.statistic(maxima.word + at));
                // SAFETY: the caller's promise.
                unsafe {
                    put(
                        *buffer,
                        extent(position),
                        f32::from_bits(bits.cast_unsigned()),
                    );
                }
            }
        }
        if let Format::Factored(factors) = &plan.format {
            for (factor, buffer) in factors.iter().zip(buffers) {
                for position in 0..factor.maxima.projection.extent() {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let fresh = call.fresh_mean(factor, *buffer, position);
                        put(*buffer, extent(position), fresh);
                    }
                }
            }
        }
    }
}

/// Quantizes the f32 values at `call.weight` into a state.
///
/// # Safety
/// As for [`collect`].
pub(crate) unsafe fn compress(call: &TensorCall<'_>, state: usize) {
    let tensor = call.tensor;
    let values: Vec<f32> = (0..elements(tensor))
        // SAFETY: the caller's promise.
        .map(|i| unsafe { load(call.weight.data, Dtype::F32, i) })
        .collect();
    // SAFETY: the caller's promise.
    unsafe {
        store_maxima(call, state);
        if let Format::Factored(factors) = &tensor.states[state].format {
            store_means(call, state, factors, &values);
        }
        encode(
            call,
            state,
            &values,
            &vec![false; extent(tensor.grid.units())],
        );
    }
}

/// Finds and stores the maxima of the f32 values at `call.weight`, if the state has some.
///
/// # Safety
/// As for [`collect`].
pub(crate) unsafe fn store_maxima(call: &TensorCall<'_>, state: usize) {
    let tensor = call.tensor;
    let plan = &tensor.states[state];
    let first = usize::from(matches!(plan.format, Format::Codes(_)));
    for (maxima, buffer) in plan
        .maxima()
        .iter()
        .zip(&call.state_buffers(state)[first..])
    {
        let mut largest = vec![0; extent(maxima.projection.extent())];
        for i in 0..elements(tensor) {
            // SAFETY: the caller's promise.
            let value = unsafe { load(call.weight.data, Dtype::F32, i) };
            let slot = &mut largest[maxima.projection.position(&multi_index(tensor, i))];
            *slot = (*slot).max(magnitude(value));
        }
        for (position, bits) in largest.into_iter().enumerate() {
            let value = f32::from_bits(canonical_magnitude(bits).cast_unsigned());
            // SAFETY: the caller's promise.
            unsafe { put(*buffer, position, value) };
        }
    }
}

/// The means of v's values: exact sums, so that no order of the elements is meant, over their count,
/// rounded once to f32.
unsafe fn store_means(call: &TensorCall<'_>, state: usize, factors: &[Factor; 3], values: &[f32]) {
    for (factor, buffer) in factors.iter().zip(call.state_buffers(state)) {
        let projection = &factor.maxima.projection;
        let place = |i| projection.position(&multi_index(call.tensor, i));
        let mut largest = vec![0; extent(projection.extent())];
        for (i, value) in values.iter().enumerate() {
            let slot = &mut largest[place(i)];
            *slot = (*slot).max(magnitude(*value));
        }
        let mut sums = vec![Limbs::ZERO; largest.len()];
        for (i, value) in values.iter().enumerate() {
            let at = place(i);
            if let Some(exponent) = Exponent::above(largest[at]) {
                sums[at].add(exponent.limbs(f64::from(*value)));
            }
        }
        for (position, (largest, sum)) in largest.into_iter().zip(sums).enumerate() {
            let sum = Exponent::above(largest).map_or(f64::NAN, |exponent| exponent.value(sum));
            // SAFETY: the caller's promise.
            unsafe { put(*buffer, position, (sum / factor.count as f64) as f32) };
        }
    }
}

/// Restores a state as f32 values at `call.weight`.
///
/// # Safety
/// As for [`collect`].
pub(crate) unsafe fn decompress(call: &TensorCall<'_>, state: usize) {
    // SAFETY: the caller's promise.
    let values = unsafe { decode_state(call, state, false) };
    for (i, value) in values.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { store(call.weight.data, Dtype::F32, i, value) };
    }
}

/// One element before the step.
unsafe fn input(call: &TensorCall<'_>, i: usize, old: &[Vec<f32>]) -> Input {
    let mut states = [0.0; MAX_STATES];
    for (slot, state) in states.iter_mut().zip(old) {
        *slot = state[i];
    }
    // SAFETY: the caller's promise.
    unsafe {
        Input {
            p: call.weight.load(i),
            g: call.grad_scale * load(call.grad, call.tensor.info.grad_dtype, i), // R1
            old: states,
        }
    }
}

/// All states; a factored one is made of the new factors once those are known.
unsafe fn old_states(call: &TensorCall<'_>, fresh: bool) -> Vec<Vec<f32>> {
    (0..call.tensor.states.len())
        // SAFETY: the caller's promise.
        .map(|state| unsafe { decode_state(call, state, fresh) })
        .collect()
}

/// All values of a state, in the order of the tensor's elements.
unsafe fn decode_state(call: &TensorCall<'_>, state: usize, fresh: bool) -> Vec<f32> {
    let tensor = call.tensor;
    let buffers = call.state_buffers(state);
    (0..elements(tensor))
        .map(|i| {
            let position = multi_index(tensor, i);
            // SAFETY: the caller's promise.
            unsafe {
                match &tensor.states[state].format {
                    Format::F32 => get(buffers[0], i),
                    Format::Codes(codes) => {
                        let scale = stored_scale(tensor, codes, &buffers[1..], i);
                        let value = decode(code(tensor, codes, buffers[0], i), scale, &codes.table);
                        match codes.dither {
                            Some(spacing) => value - dither(call, state, codes, spacing, scale, i),
                            None => value,
                        }
                    }
                    Format::Cover(maxima) => smallest(maxima, buffers, &position),
                    Format::Factored(factors) => {
                        let [row, column, mean] = [0, 1, 2].map(|f| {
                            let at = factors[f].maxima.projection.position(&position);
                            if fresh {
                                call.fresh_mean(&factors[f], buffers[f], at as i64)
                            } else {
                                get(buffers[f], at)
                            }
                        });
                        factored(row, column, mean)
                    }
                }
            }
        })
        .collect()
}

/// Codes and block scales of all units but those in `kept`; maxima are in their buffers already.
unsafe fn encode(call: &TensorCall<'_>, state: usize, values: &[f32], kept: &[bool]) {
    let tensor = call.tensor;
    let buffers = call.state_buffers(state);
    let grid = &tensor.grid;
    for (unit, _) in kept.iter().enumerate().filter(|(_, kept)| !**kept) {
        let first = start(grid, unit);
        let end = first + length(grid, unit);
        match &tensor.states[state].format {
            Format::F32 => {
                for i in first..end {
                    // SAFETY: the caller's promise.
                    unsafe { put(buffers[0], i, values[i]) };
                }
            }
            Format::Codes(codes) => {
                let block = match codes.scales {
                    Scales::Block(block) => extent(block),
                    Scales::Maxima(_) => end - first,
                };
                for begin in (first..end).step_by(block) {
                    let range = begin..end.min(begin + block);
                    // SAFETY: the caller's promise.
                    unsafe { encode_block(call, state, codes, values, range) };
                }
            }
            Format::Factored(_) | Format::Cover(_) => {}
        }
    }
}

/// Codes of the elements `range`, which lie in one block.
unsafe fn encode_block(
    call: &TensorCall<'_>,
    state: usize,
    codes: &Codes,
    values: &[f32],
    range: std::ops::Range<usize>,
) {
    let tensor = call.tensor;
    let buffers = call.state_buffers(state);
    let first = range.start;
    // SAFETY: the caller's promise.
    unsafe {
        if let Scales::Block(block) = codes.scales {
            let largest = values[range.clone()].iter().map(|x| magnitude(*x)).max();
            let scale = block_scale(largest.unwrap_or(0));
            put(buffers[1], scale_index(tensor, block, first), scale);
        }
        for i in range.clone() {
            let scale = stored_scale(tensor, codes, &buffers[1..], i);
            let code = match (codes.rounding, codes.dither) {
                (Rounding::Nearest, None) => nearest(values[i], scale, &codes.table),
                (Rounding::Nearest, Some(spacing)) => {
                    let offset = dither(call, state, codes, spacing, scale, i);
                    nearest(values[i] + offset, scale, &codes.table)
                }
                (rounding, _) => {
                    let (row, col) = global(call, i);
                    let u = uniform(call.rng.draw(Purpose::State(state), row, col));
                    stochastic(
                        values[i],
                        scale,
                        &codes.table,
                        rounding,
                        call.preconditioner,
                        u,
                    )
                }
            };
            put_code(tensor, codes, buffers[0], i, code);
        }
        if let (Scales::Block(block), true) = (&codes.scales, codes.scale_correction) {
            let scale = stored_scale(tensor, codes, &buffers[1..], first);
            let corrected = corrected_scale::<4096>(scale, &values[range], |i| {
                decode(
                    code(tensor, codes, buffers[0], first + i),
                    scale,
                    &codes.table,
                )
            });
            put(buffers[1], scale_index(tensor, *block, first), corrected);
        }
    }
}

/// What subtractive dither adds to the elements of a block: `RN(RN((u - 1/2) spacing) scale)`.
fn dither(
    call: &TensorCall<'_>,
    state: usize,
    codes: &Codes,
    spacing: f32,
    scale: f32,
    i: usize,
) -> f32 {
    let (row, col) = global(call, i);
    let block = match codes.scales {
        Scales::Block(block) => extent(block),
        Scales::Maxima(_) => 1,
    };
    let draw = call.rng.dither(state, row, col / block, scale);
    (uniform(draw) - 0.5) * spacing * scale
}

/// The scale that is stored for element `i`.
unsafe fn stored_scale(tensor: &TensorPlan, codes: &Codes, buffers: &[Buffer], i: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        match &codes.scales {
            Scales::Block(block) => get(buffers[0], scale_index(tensor, *block, i)),
            Scales::Maxima(maxima) => smallest(maxima, buffers, &multi_index(tensor, i)),
        }
    }
}

/// The smallest of the maxima of the slices that an element lies in; as integers, so that NaN is
/// the largest.
unsafe fn smallest(maxima: &[Maxima], buffers: &[Buffer], position: &[i64]) -> f32 {
    let values = maxima.iter().zip(buffers);
    // SAFETY: the caller's promise.
    let bits = values
        .map(|(maxima, buffer)| unsafe { get(*buffer, maxima.projection.position(position)) })
        .map(f32::to_bits)
        .min();
    f32::from_bits(bits.unwrap_or(0))
}

unsafe fn code(tensor: &TensorPlan, codes: &Codes, buffer: Buffer, i: usize) -> u8 {
    let (row, col) = row_col(tensor, i);
    let bytes = extent(tensor.grid.code_bytes(codes.per_byte));
    // SAFETY: the caller's promise.
    unsafe {
        let row = buffer.data.cast::<u8>().add(row * bytes);
        load_code(row, extent(codes.per_byte), col)
    }
}

unsafe fn put_code(tensor: &TensorPlan, codes: &Codes, buffer: Buffer, i: usize, code: u8) {
    let (row, col) = row_col(tensor, i);
    let per_byte = extent(codes.per_byte);
    let bytes = extent(tensor.grid.code_bytes(codes.per_byte));
    let shift = col % per_byte * (8 / per_byte);
    // SAFETY: the caller's promise.
    unsafe {
        let byte = buffer.data.cast::<u8>().add(row * bytes + col / per_byte);
        // The first element of a byte clears the others, the pad bits of a row's end among them.
        let before = if shift == 0 {
            0
        } else {
            *byte & ((1 << shift) - 1)
        };
        *byte = before | (code << shift);
    }
}

unsafe fn get(buffer: Buffer, index: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { load(buffer.data.cast(), Dtype::F32, index) }
}

unsafe fn put(buffer: Buffer, index: usize, value: f32) {
    // SAFETY: the caller's promise.
    unsafe { store(buffer.data.cast(), Dtype::F32, index, value) };
}

fn scale_index(tensor: &TensorPlan, block: i64, index: usize) -> usize {
    let (row, col) = row_col(tensor, index);
    row * extent(div_ceil(tensor.grid.cols, block)) + col / extent(block)
}

fn row_col(tensor: &TensorPlan, index: usize) -> (usize, usize) {
    let cols = extent(tensor.grid.cols);
    (index / cols, index % cols)
}

/// Row and column in the grid of the global tensor.
fn global(call: &TensorCall<'_>, index: usize) -> (usize, usize) {
    let (row, col) = row_col(call.tensor, index);
    let (row, col) = call.tensor.grid.global(row as i64, col as i64, call.offset);
    (extent(row), extent(col))
}

/// Index along every axis (here, not in the global tensor).
fn multi_index(tensor: &TensorPlan, index: usize) -> Position {
    let mut rest = index as i64;
    let mut position = Position {
        index: [0; MAX_AXES],
        axes: tensor.info.shape.len(),
    };
    for (slot, axis) in position.index.iter_mut().zip(&tensor.info.shape).rev() {
        *slot = rest % axis;
        rest /= axis;
    }
    position
}

/// Index along every axis.
struct Position {
    index: [i64; MAX_AXES],
    axes: usize,
}

impl std::ops::Deref for Position {
    type Target = [i64];

    fn deref(&self) -> &[i64] {
        &self.index[..self.axes]
    }
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
