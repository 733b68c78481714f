//! The threaded CPU kernels: the reference's arithmetic over short runs of elements, in loops
//! that the compiler turns into vectors, and in the few of `lanes/` that it does not. Instantiated
//! for the processor's baseline, for AVX2 with FMA and F16C (without a hardware `fma` every
//! multiply-add is a library call), and for AVX-512.
//!
//! The unit of work is one block of one row (`Grid::unit`): its states are decoded into arrays on
//! the stack, updated by the rules of `optimizer/`, and coded again.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::TensorCall;
use super::lanes::{Lanes, Portable, thresholds};
use super::memory::{load, load_code, store};
use super::reference::{block_scale, factored};
use crate::dtype::Dtype;
use crate::layout::{Grid, div_ceil, index};
use crate::numerics::{Exponent, INF_BITS, Limbs, canonical_magnitude, magnitude};
use crate::optimizer::{Input, MAX_STATES, Rule, Update, with_rule};
use crate::plan::{Codes, Format, MAX_AXES, Maxima, Pass, Scales, TensorPlan};
use crate::quant::{Rounding, Table, corrected_scale, decode, stochastic, uniform};
use crate::rng::Purpose;
use crate::step::Buffer;
use crate::weights::Weights;

/// The largest block; arrays on the stack have this many elements.
const LONGEST: usize = 4096;

/// Elements of one coding run: short enough for the thresholds' loop to stay in registers and L1.
const RUN: usize = 128;

/// Columns of one task of [`collect`].
pub(super) const STATS_COLUMNS: i64 = LONGEST as i64;

/// The kernels of one instantiation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub(super) apply: unsafe fn(&TensorCall<'_>, Range<i64>) -> i64,
    pub(super) collect: unsafe fn(&TensorCall<'_>, Pass, Range<i64>, Range<i64>),
    pub(super) scan: unsafe fn(&TensorCall<'_>, Range<i64>) -> bool,
    pub(super) compress: unsafe fn(&TensorCall<'_>, usize, Range<i64>),
    pub(super) decompress: unsafe fn(&TensorCall<'_>, usize, Range<i64>),
}

/// For the baseline of the target.
pub(super) const BASELINE: Kernels = Kernels {
    apply: apply::<Portable>,
    collect: collect::<Portable>,
    scan,
    compress: compress::<Portable>,
    decompress: decompress::<Portable>,
};

/// The kernels compiled for more instructions than the baseline has. The bodies are
/// `inline(always)`, so each wrapper is compiled as a whole with its features.
#[cfg(target_arch = "x86_64")]
macro_rules! instantiate {
    ($name:ident, $lanes:ty, $features:literal) => {
        pub(in crate::backend::cpu) const $name: Kernels = {
            #[target_feature(enable = $features)]
            unsafe fn apply(call: &TensorCall<'_>, units: Range<i64>) -> i64 {
                // SAFETY: the caller's promise.
                unsafe { super::apply::<$lanes>(call, units) }
            }
            #[target_feature(enable = $features)]
            unsafe fn collect(
                call: &TensorCall<'_>,
                pass: Pass,
                rows: Range<i64>,
                columns: Range<i64>,
            ) {
                // SAFETY: the caller's promise.
                unsafe { super::collect::<$lanes>(call, pass, rows, columns) }
            }
            #[target_feature(enable = $features)]
            unsafe fn scan(call: &TensorCall<'_>, elements: Range<i64>) -> bool {
                // SAFETY: the caller's promise.
                unsafe { super::scan(call, elements) }
            }
            #[target_feature(enable = $features)]
            unsafe fn compress(call: &TensorCall<'_>, state: usize, units: Range<i64>) {
                // SAFETY: the caller's promise.
                unsafe { super::compress::<$lanes>(call, state, units) }
            }
            #[target_feature(enable = $features)]
            unsafe fn decompress(call: &TensorCall<'_>, state: usize, units: Range<i64>) {
                // SAFETY: the caller's promise.
                unsafe { super::decompress::<$lanes>(call, state, units) }
            }
            Kernels {
                apply,
                collect,
                scan,
                compress,
                decompress,
            }
        };
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) use instantiated::{AVX2, AVX512};

#[cfg(target_arch = "x86_64")]
mod instantiated {
    use super::super::lanes::{Avx2, Avx512};
    use super::{Kernels, Pass, Range, TensorCall};

    instantiate!(AVX2, Avx2, "avx2,fma,f16c");
    instantiate!(
        AVX512,
        Avx512,
        "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
    );
}

/// One array per state, on the stack.
type States = [[f32; LONGEST]; MAX_STATES];

/// Updates the units of one tensor; returns how many were skipped for a non-finite gradient.
///
/// # Safety
/// The pointers of `call` are valid for its plan; the statistics are complete; no other thread
/// works on these units.
#[inline(always)]
unsafe fn apply<L: Lanes>(call: &TensorCall<'_>, units: Range<i64>) -> i64 {
    let tensor = call.tensor;
    let (mut p, mut g) = ([0.0_f32; LONGEST], [0.0_f32; LONGEST]);
    let mut states: States = [[0.0; LONGEST]; MAX_STATES];
    let mut skipped = 0;
    for unit in units {
        let run = Run::of(&tensor.grid, unit);
        let (p, g) = (&mut p[..run.len], &mut g[..run.len]);
        // SAFETY: the run lies in the tensor.
        unsafe { load_run(call.grad, tensor.info.grad_dtype, run.first, g) };
        g.iter_mut().for_each(|g| *g *= call.grad_scale); // R1
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
            load_weights(call, run.first, p);
            for (state, values) in states.iter_mut().enumerate().take(tensor.states.len()) {
                decode_run::<L>(call, state, run, Factors::Fresh, &mut values[..run.len]);
            }
        }
        // From here g holds the update, and the states are the new ones.
        with_rule!(&call.rule, rule => update(rule, p, g, &mut states));
        // SAFETY: the run lies in the tensor; the gradient was read before its update is written.
        unsafe {
            if call.in_place() {
                p.iter_mut().zip(&*g).for_each(|(p, u)| *p += u); // R8
                store_weights(call, run, p);
            } else {
                store_run(call.update, tensor.info.param_dtype, run.first, g);
            }
            for (state, values) in states.iter().enumerate().take(tensor.states.len()) {
                encode_run::<L>(call, state, run, &values[..run.len], Source::Statistics);
            }
        }
    }
    skipped
}

/// The rule on a run: `g` becomes the update, the states the new ones.
#[inline(always)]
fn update(rule: &impl Rule, p: &[f32], g: &mut [f32], states: &mut States) {
    let n = p.len();
    let [a, b, c] = states;
    let (g, a, b, c) = (&mut g[..n], &mut a[..n], &mut b[..n], &mut c[..n]);
    for i in 0..n {
        let new = rule.element(Input {
            p: p[i],
            g: g[i],
            old: [a[i], b[i], c[i]],
        });
        g[i] = new.update;
        [a[i], b[i], c[i]] = new.new;
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

/// Collects the statistics of a box: `rows` of the tensor seen as (product of the leading axes,
/// last axis), and at most [`STATS_COLUMNS`] columns.
///
/// # Safety
/// As for [`apply`]; any number of threads may raise the same statistics.
#[inline(always)]
unsafe fn collect<L: Lanes>(
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
                    load_weights(call, run.first, p);
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
/// As for [`apply`].
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
        load_weights(call, run.first, p);
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
        call.add(rms.param_sum, sum_of_squares(exponent, p.iter().copied()));
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
        call.add_update(rms.update_sum, sum_of_squares(exponent, updates));
    }
}

#[inline(always)]
fn sum_of_squares(exponent: Exponent, values: impl Iterator<Item = f32>) -> Limbs {
    let exponent = exponent.squared();
    let mut sum = Limbs::default();
    values.for_each(|x| sum.add(exponent.limbs(f64::from(x) * f64::from(x))));
    sum
}

/// Computes the new factors of a tensor into the scratch.
///
/// # Safety
/// As for [`apply`], with no other thread at work on the tensor.
pub(super) unsafe fn refresh(call: &TensorCall<'_>) {
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

fn fresh_values(call: &TensorCall<'_>) -> *mut f32 {
    call.scratch[4].cast()
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
        g.iter_mut().for_each(|g| *g *= call.grad_scale); // R1
        if any_non_finite(g) {
            return true;
        }
        first += g.len();
    }
    false
}

/// Quantizes the f32 values of `call.weight`; maxima are in the state's buffers.
///
/// # Safety
/// As for [`apply`].
#[inline(always)]
unsafe fn compress<L: Lanes>(call: &TensorCall<'_>, state: usize, units: Range<i64>) {
    let mut values = [0.0_f32; LONGEST];
    for unit in units {
        let run = Run::of(&call.tensor.grid, unit);
        let values = &mut values[..run.len];
        // SAFETY: the run lies in the tensor.
        unsafe {
            load_run(call.weight.data, Dtype::F32, run.first, values);
            encode_run::<L>(call, state, run, values, Source::Stored);
        }
    }
}

/// Restores f32 values to `call.weight`.
///
/// # Safety
/// As for [`apply`].
#[inline(always)]
unsafe fn decompress<L: Lanes>(call: &TensorCall<'_>, state: usize, units: Range<i64>) {
    let mut values = [0.0_f32; LONGEST];
    for unit in units {
        let run = Run::of(&call.tensor.grid, unit);
        let values = &mut values[..run.len];
        // SAFETY: the run lies in the tensor.
        unsafe {
            decode_run::<L>(call, state, run, Factors::Stored, values);
            store_run(call.weight.data, Dtype::F32, run.first, values);
        }
    }
}

/// Copies reduced maxima and new factors into the states, once all units are coded.
///
/// # Safety
/// As for [`apply`], with no other thread at work on the tensor.
pub(super) unsafe fn store_statistics(call: &TensorCall<'_>) {
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

/// Index along every axis of element `first`; axes beyond the tensor's are 0.
#[inline(always)]
fn position(shape: &[i64], first: usize) -> [i64; MAX_AXES] {
    let mut position = [0; MAX_AXES];
    let mut rest = first as i64;
    for (slot, extent) in position.iter_mut().zip(shape).rev() {
        *slot = rest % extent;
        rest /= extent;
    }
    position
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
        Dtype::F16 => each!(Dtype::F16),
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
        Dtype::F16 => each!(Dtype::F16),
        _ => each!(Dtype::F32),
    }
}

/// The f32 values of a run of parameters.
#[inline(always)]
unsafe fn load_weights(call: &TensorCall<'_>, first: usize, out: &mut [f32]) {
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
unsafe fn store_weights(call: &TensorCall<'_>, run: Run, values: &[f32]) {
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
struct Draws<'a> {
    call: &'a TensorCall<'a>,
    purpose: Purpose,
    row: usize,
    col: usize,
    eight: [u16; 8],
}

impl<'a> Draws<'a> {
    fn new(call: &'a TensorCall<'a>, purpose: Purpose, run: Run) -> Self {
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
    fn next(&mut self) -> u16 {
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
fn global(call: &TensorCall<'_>, run: Run) -> (usize, usize) {
    let grid = &call.tensor.grid;
    let (row, col) = grid.global(run.row as i64, run.col as i64, call.offset);
    (index(row), index(col))
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

/// The largest magnitude.
#[inline(always)]
fn largest(values: &[f32]) -> i32 {
    values
        .iter()
        .fold(0, |largest, x| magnitude(*x).max(largest))
}

/// Which factors of a factored state are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Factors {
    /// Those of the state.
    Stored,
    /// Those of this step, in the scratch.
    Fresh,
}

/// Where the maxima of a state are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// In the statistics of this step.
    Statistics,
    /// In the state's buffers.
    Stored,
}

/// Decodes a run of a state.
#[inline(always)]
unsafe fn decode_run<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    run: Run,
    factors: Factors,
    out: &mut [f32],
) {
    let buffers = call.state_buffers(state);
    // SAFETY: the run lies in the tensor, so its codes and scales lie in the buffers.
    unsafe {
        match &call.tensor.states[state].format {
            Format::F32 => load_run(buffers[0].data.cast(), Dtype::F32, run.first, out),
            Format::Codes(codes) => match &codes.scales {
                Scales::Block(block) => decode_blocks::<L>(call, state, codes, *block, run, out),
                Scales::Maxima(maxima) => {
                    smallest(call, maxima, &buffers[1..], run, Source::Stored, out);
                    let row = code_row(call.tensor, codes, buffers[0], run.row);
                    if codes.per_byte == 2 {
                        let mut levels = [0.0_f32; 16];
                        levels.copy_from_slice(&codes.table.by_code[..16]);
                        let mut values = [0.0_f32; RUN];
                        for (r, out) in out.chunks_mut(RUN).enumerate() {
                            let values = &mut values[..out.len()];
                            L::lookup(row, run.col + r * RUN, &levels, values);
                            out.iter_mut()
                                .zip(values)
                                .for_each(|(out, level)| *out *= *level);
                        }
                    } else {
                        each_code(row, codes, run.col, out, |code, out| {
                            *out = decode(code, *out, &codes.table);
                        });
                    }
                }
            },
            Format::Cover(maxima) => smallest(call, maxima, buffers, run, Source::Stored, out),
            Format::Factored(all) => {
                for_each_stretch(call, run, |at, len, position| {
                    let sources = [0, 1, 2].map(|f| {
                        let projection = &all[f].maxima.projection;
                        let values = match factors {
                            Factors::Fresh => fresh_values(call).add(all[f].fresh).cast_const(),
                            Factors::Stored => buffers[f].data.cast_const().cast::<f32>(),
                        };
                        let step = usize::from(projection.varies());
                        (values.add(projection.position(position)), step)
                    });
                    let [(rows, r), (columns, c), (means, m)] = sources;
                    for (i, out) in out[at..at + len].iter_mut().enumerate() {
                        let (row, column) = (*rows.add(i * r), *columns.add(i * c));
                        *out = factored(row, column, *means.add(i * m));
                    }
                });
            }
        }
    }
}

/// Decodes a run of a state with block scales.
#[inline(always)]
unsafe fn decode_blocks<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    codes: &Codes,
    block: i64,
    run: Run,
    out: &mut [f32],
) {
    let tensor = call.tensor;
    let buffers = call.state_buffers(state);
    let block = index(block);
    let mut at = 0;
    // SAFETY: the run lies in the tensor, so its codes and scales lie in the buffers.
    unsafe {
        let scales = scale_row(tensor, buffers[1], block, run.row);
        let row = code_row(tensor, codes, buffers[0], run.row);
        while at < run.len {
            // Runs of `collect` may begin inside a block; those of units never do.
            let part = run.part(at, block - (run.col + at) % block);
            let scale = *scales.add(part.col / block);
            let out = &mut out[at..at + part.len];
            if codes.per_byte == 2 {
                let mut values = [0.0_f32; 16];
                for (value, level) in values.iter_mut().zip(&codes.table.by_code) {
                    *value = level * scale;
                }
                L::lookup(row, part.col, &values, out);
            } else {
                each_code(row, codes, part.col, out, |code, out| {
                    *out = decode(code, scale, &codes.table);
                });
            }
            if let Some(spacing) = codes.dither {
                let offset = dither(call, state, part, block, spacing, scale);
                out.iter_mut().for_each(|x| *x -= offset);
            }
            at += part.len;
        }
    }
}

/// Calls `body` with the code of every column from `col` on.
#[inline(always)]
unsafe fn each_code(
    row: *const u8,
    codes: &Codes,
    col: usize,
    out: &mut [f32],
    body: impl Fn(u8, &mut f32),
) {
    // The width is matched outside the loop, so that each loop has constant shifts.
    macro_rules! each {
        ($per_byte:literal) => {
            for (i, out) in out.iter_mut().enumerate() {
                // SAFETY: the columns lie in the row.
                body(unsafe { load_code(row, $per_byte, col + i) }, out);
            }
        };
    }
    match codes.per_byte {
        4 => each!(4),
        2 => each!(2),
        _ => each!(1),
    }
}

/// What subtractive dither adds to a block, of which `run` is a part.
fn dither(
    call: &TensorCall<'_>,
    state: usize,
    run: Run,
    block: usize,
    spacing: f32,
    scale: f32,
) -> f32 {
    let (row, col) = global(call, run);
    let draw = call.rng.dither(state, row, col / block, scale);
    (uniform(draw) - 0.5) * spacing * scale
}

/// Codes a run of a state that begins at a block's first element. States without codes or values
/// of their own are stored by [`store_statistics`].
#[inline(always)]
unsafe fn encode_run<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    run: Run,
    values: &[f32],
    source: Source,
) {
    let buffers = call.state_buffers(state);
    // SAFETY: the run lies in the tensor, so its codes and scales lie in the buffers.
    unsafe {
        match &call.tensor.states[state].format {
            Format::F32 => store_run(buffers[0].data.cast(), Dtype::F32, run.first, values),
            Format::Codes(codes) => match &codes.scales {
                Scales::Block(block) => encode_blocks::<L>(call, state, codes, *block, run, values),
                Scales::Maxima(maxima) => {
                    for (r, values) in values.chunks(RUN).enumerate() {
                        let part = run.part(r * RUN, RUN);
                        let mut scales = [0.0_f32; RUN];
                        let scales = &mut scales[..part.len];
                        smallest(call, maxima, &buffers[1..], part, source, scales);
                        let mut out = [0_u8; RUN];
                        let out = &mut out[..part.len];
                        if codes.rounding == Rounding::Nearest {
                            nearest_scaled::<L>(values, scales, &codes.table, out);
                        } else {
                            stochastic_run(call, state, codes, part, values, |i| scales[i], out);
                        }
                        store_codes::<L>(call, codes, buffers[0], part, out);
                    }
                }
            },
            Format::Factored(_) | Format::Cover(_) => {}
        }
    }
}

/// Codes a run of a state with block scales.
#[inline(always)]
unsafe fn encode_blocks<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    codes: &Codes,
    block: i64,
    run: Run,
    values: &[f32],
) {
    let block = index(block);
    let table = &codes.table;
    let buffers = call.state_buffers(state);
    for (b, values) in values.chunks(block).enumerate() {
        let run = run.part(b * block, block);
        let mut scale = block_scale(largest(values));
        let offset = codes
            .dither
            .map(|spacing| dither(call, state, run, block, spacing, scale));
        // Piece by piece, so that the codes stay in the nearest cache.
        for (r, values) in values.chunks(RUN).enumerate() {
            let part = run.part(r * RUN, RUN);
            let mut out = [0_u8; RUN];
            let out = &mut out[..values.len()];
            if codes.rounding != Rounding::Nearest {
                stochastic_run(call, state, codes, part, values, |_| scale, out);
            } else if let Some(offset) = offset {
                let mut moved = [0.0_f32; RUN];
                let moved = &mut moved[..values.len()];
                moved
                    .iter_mut()
                    .zip(values)
                    .for_each(|(m, x)| *m = x + offset);
                nearest_run::<L>(moved, scale, table, out);
            } else {
                nearest_run::<L>(values, scale, table, out);
            }
            // SAFETY: the run lies in the tensor, so its codes lie in the buffer.
            unsafe { store_codes::<L>(call, codes, buffers[0], part, out) };
        }
        // SAFETY: as above, and for the scales.
        unsafe {
            if codes.scale_correction {
                let row = code_row(call.tensor, codes, buffers[0], run.row);
                let per_byte = index(codes.per_byte);
                scale = corrected_scale(scale, values, |i| {
                    decode(load_code(row, per_byte, run.col + i), scale, table)
                });
            }
            let scales = scale_row(call.tensor, buffers[1], block, run.row).cast_mut();
            *scales.add(run.col / block) = scale;
        }
    }
}

/// The nearest codes under one scale.
#[inline(always)]
fn nearest_run<L: Lanes>(values: &[f32], scale: f32, table: &Table, out: &mut [u8]) {
    // SAFETY: the kernels are used on processors that have the instructions.
    unsafe {
        if table.midpoints.len() <= 15 {
            L::count(values, &thresholds(table, scale), out);
            return;
        }
        // Thresholds do not decrease, as rounding is monotonic.
        let mut many = [f32::INFINITY; 256];
        for (threshold, mid) in many.iter_mut().zip(&table.midpoints) {
            *threshold = mid * scale;
        }
        L::count_many(values, &many, out);
    }
}

/// The nearest codes, each under a scale of its own.
#[inline(always)]
fn nearest_scaled<L: Lanes>(values: &[f32], scales: &[f32], table: &Table, out: &mut [u8]) {
    if table.midpoints.len() <= 15 {
        // SAFETY: as above. Times 1, the midpoints are themselves.
        unsafe { L::count_scaled(values, scales, &thresholds(table, 1.0), out) };
        return;
    }
    for ((x, scale), out) in values.iter().zip(scales).zip(out) {
        let mut code = 0;
        for step in [128, 64, 32, 16, 8, 4, 2, 1] {
            let mid = table.midpoints.get(code + step - 1);
            let above = mid.is_some_and(|mid| *x > mid * scale);
            code += if above { step } else { 0 };
        }
        *out = code as u8;
    }
}

/// Randomly rounded codes.
#[inline(always)]
fn stochastic_run(
    call: &TensorCall<'_>,
    state: usize,
    codes: &Codes,
    run: Run,
    values: &[f32],
    scale: impl Fn(usize) -> f32,
    out: &mut [u8],
) {
    let mut draws = Draws::new(call, Purpose::State(state), run);
    for (i, (x, out)) in values.iter().zip(out).enumerate() {
        let u = uniform(draws.next());
        let (table, rounding) = (&codes.table, codes.rounding);
        *out = stochastic(*x, scale(i), table, rounding, call.preconditioner, u);
    }
}

/// Packs codes. A run begins with a byte's first code and ends with its last, or with the row's,
/// whose pad bits become 0.
#[inline(always)]
unsafe fn store_codes<L: Lanes>(
    call: &TensorCall<'_>,
    codes: &Codes,
    buffer: Buffer,
    run: Run,
    values: &[u8],
) {
    // SAFETY: the columns lie in the row.
    unsafe {
        let row = code_row(call.tensor, codes, buffer, run.row).cast_mut();
        macro_rules! pack {
            ($per_byte:literal) => {
                for (i, group) in values.chunks($per_byte).enumerate() {
                    let mut byte = 0;
                    for (k, code) in group.iter().enumerate() {
                        byte |= code << (k * 8 / $per_byte);
                    }
                    *row.add(run.col / $per_byte + i) = byte;
                }
            };
        }
        match codes.per_byte {
            4 => pack!(4),
            2 => L::pack(values, row.add(run.col / 2)),
            _ => pack!(1),
        }
    }
}

#[inline(always)]
unsafe fn code_row(tensor: &TensorPlan, codes: &Codes, buffer: Buffer, row: usize) -> *const u8 {
    let bytes = index(tensor.grid.code_bytes(codes.per_byte));
    // SAFETY: the row lies in the tensor.
    unsafe { buffer.data.cast::<u8>().add(row * bytes) }
}

#[inline(always)]
unsafe fn scale_row(tensor: &TensorPlan, scales: Buffer, block: usize, row: usize) -> *const f32 {
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
fn for_each_stretch(call: &TensorCall<'_>, run: Run, mut body: impl FnMut(usize, usize, &[i64])) {
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
unsafe fn smallest(
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
