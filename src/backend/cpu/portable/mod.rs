//! The threaded CPU kernels: the reference's arithmetic over chunks of elements, in loops that the
//! compiler turns into vectors, and in the few of `lanes/` that it does not. Instantiated for the
//! processor's baseline, for AVX2 with FMA and F16C (without a hardware `fma` every multiply-add is
//! a library call), and for AVX-512.
//!
//! The unit of work is one block of one row (`Grid::unit`), or a few that are short: its states are decoded
//! into chunks on the stack, updated by the rules of `optimizer/`, and coded again.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

mod adafactor;
mod adamw;
mod adamw8;
mod bytes;
mod collect;
mod decode;
mod elements;
mod encode;
mod factored;
mod inverses;
mod maxima;
mod momentum;
mod momentum8;
mod rank1;
mod registers;
mod rows;
mod run;
mod sums;
mod weights;

use std::ops::Range;

use super::call::TensorCall;
use super::lanes::{CHUNK, Chunk, Lanes, Portable};
use crate::dtype::Dtype;
use crate::layout::index;
use crate::optimizer::{Input, MAX_STATES, Rule, Update, with_rule};
use crate::plan::Pass;

use collect::collect;
pub(super) use collect::{MAXIMA_COLUMNS, SUMS_COLUMNS, refresh, store_statistics};
use decode::{Factors, Source, decode_run};
use encode::encode_unit;
use run::{Run, any_non_finite, fill_zero, load_run, store_run};
use weights::{load_weights, store_weights};

/// Chunks of the largest block.
const MOST_CHUNKS: usize = 4096 / CHUNK;

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
    scan: scan::<Portable>,
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
                unsafe { super::scan::<$lanes>(call, elements) }
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

/// The chunks of one unit, on the stack.
struct Unit<const CHUNKS: usize> {
    p: [Chunk; CHUNKS],
    /// The gradient, then the update.
    g: [Chunk; CHUNKS],
    states: [[Chunk; CHUNKS]; MAX_STATES],
}

impl<const CHUNKS: usize> Unit<CHUNKS> {
    const ZERO: Self = Self {
        p: [Chunk::ZERO; CHUNKS],
        g: [Chunk::ZERO; CHUNKS],
        states: [[Chunk::ZERO; CHUNKS]; MAX_STATES],
    };
}

/// Updates the units of one tensor; returns how many were skipped for a non-finite gradient.
///
/// # Safety
/// The pointers of `call` are valid for its plan; the statistics are complete; no other thread
/// works on these units.
#[inline(always)]
unsafe fn apply<L: Lanes>(call: &TensorCall<'_>, units: Range<i64>) -> i64 {
    let grid = &call.tensor.grid;
    let mut skipped = 0;
    // SAFETY: the caller's promise; the units lie in the tensor.
    unsafe {
        if let Some(skipped) = in_registers::<L>(call, units.clone()) {
            return skipped;
        }
        // Most blocks are one chunk, and their arrays stay in the nearest cache.
        if index(grid.block) <= CHUNK {
            let mut work = Unit::<1>::ZERO;
            let block = index(grid.block);
            // Several units are one run, unless some are to be skipped.
            let apart = block < CHUNK && call.skip_blocks && scan::<L>(call, units.clone());
            for run in Run::of_length(grid, units, if apart { block } else { CHUNK }) {
                skipped += apply_unit::<L, 1>(call, run, &mut work);
            }
        } else {
            let mut work = Unit::<MOST_CHUNKS>::ZERO;
            for run in Run::of_units(grid, units) {
                skipped += apply_unit::<L, MOST_CHUNKS>(call, run, &mut work);
            }
        }
    }
    skipped
}

/// [`apply`] for what has a kernel of its own; `None` for what has none.
#[inline(always)]
unsafe fn in_registers<L: Lanes>(call: &TensorCall<'_>, units: Range<i64>) -> Option<i64> {
    use std::cmp::Ordering::{Equal, Greater};
    // SAFETY: the caller's promise.
    unsafe {
        match (&call.rule, index(call.tensor.grid.block).cmp(&CHUNK)) {
            (Update::Adamw(rule), Equal) => adamw::in_registers::<L>(call, rule, units),
            (Update::Adamw(rule), Greater) => adamw8::in_registers::<L>(call, rule, units),
            (Update::Sgdm(rule), Equal) => momentum::in_registers::<L, _>(call, rule, units),
            (Update::Sgdm(rule), Greater) => momentum8::in_registers::<L, _>(call, rule, units),
            (Update::Adafactor(rule), Equal) => adafactor::in_registers::<L>(call, rule, units),
            (Update::Lion(rule), Equal) => momentum::in_registers::<L, _>(call, rule, units),
            (Update::Lion(rule), Greater) => momentum8::in_registers::<L, _>(call, rule, units),
            _ => None,
        }
    }
}

/// Updates one unit; returns 1 if it was skipped.
#[inline(always)]
unsafe fn apply_unit<L: Lanes, const CHUNKS: usize>(
    call: &TensorCall<'_>,
    unit: Run,
    work: &mut Unit<CHUNKS>,
) -> i64 {
    let tensor = call.tensor;
    let states = tensor.states.len();
    let chunks = if CHUNKS == 1 {
        1
    } else {
        unit.len.div_ceil(CHUNK)
    };
    let (param, grad) = (tensor.info.param_dtype, tensor.info.grad_dtype);
    prefetch::<L>(call.weight.data, param.size(), unit, AHEAD);
    prefetch::<L>(call.grad, grad.size(), unit, AHEAD);
    // SAFETY: the runs lie in the tensor.
    unsafe {
        for (run, g) in unit.parts(CHUNK).zip(&mut work.g) {
            load_gradient::<L>(call, run, g);
        }
        if call.skip_blocks {
            for g in &work.g[..chunks] {
                if any_non_finite(&**g) {
                    skip(call, unit);
                    return 1;
                }
            }
        }
        for (c, run) in unit.parts(CHUNK).enumerate() {
            let (p, g) = (&mut work.p[c], &mut work.g[c]);
            load_weights::<L>(call, run, p);
            for (state, values) in work.states.iter_mut().enumerate().take(states) {
                decode_run::<L>(call, state, run, Factors::Fresh, &mut values[c]);
            }
            update(
                &call.rule,
                p,
                g,
                work.states.each_mut().map(|state| &mut state[c]),
            );
            // The gradient was read before its update is written.
            if call.in_place() {
                for (p, u) in p.iter_mut().zip(&**g) {
                    *p += u; // R8
                }
                store_weights::<L>(call, run, p);
            } else {
                store_run::<L>(call.update, tensor.info.param_dtype, run, g);
            }
            if run.len < CHUNK {
                for values in work.states.iter_mut().take(states) {
                    values[c][run.len..].fill(0.0);
                }
            }
        }
        for (state, values) in work.states.iter().enumerate().take(states) {
            encode_unit::<L>(call, state, unit, &values[..chunks], Source::Statistics);
        }
    }
    0
}

/// Leaves a unit as it is: its update, where one is wanted, is zero.
#[inline(always)]
unsafe fn skip(call: &TensorCall<'_>, unit: Run) {
    if !call.in_place() {
        // SAFETY: the unit lies in the tensor.
        unsafe { fill_zero(call.update, call.tensor.info.param_dtype, unit) };
    }
}

/// How far ahead elements are asked for, where they are used in their order.
const AHEAD: usize = 6 * CHUNK;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for elements of parameters or gradients that are as much ahead of a run: a chunk's instructions
/// are more than a processor looks ahead, and its own prefetching ends with a page. Where registers are taken
/// in turn, each asks for a line (`Elements::ask`): of many at once each waits for those before.
#[inline(always)]
fn prefetch<L: Lanes>(data: *const u8, size: usize, run: Run, ahead: usize) {
    let first = data.wrapping_add((run.first + ahead) * size);
    for at in (0..run.len * size).step_by(LINE) {
        L::prefetch(first.wrapping_add(at));
    }
}

/// The scaled gradient of a run of at most a chunk.
#[inline(always)]
unsafe fn load_gradient<L: Lanes>(call: &TensorCall<'_>, run: Run, g: &mut Chunk) {
    // SAFETY: the caller's run lies in the tensor.
    unsafe { load_run::<L>(call.grad, call.tensor.info.grad_dtype, run, g) };
    for g in g.iter_mut() {
        *g *= call.grad_scale; // R1
    }
}

/// The rule on a chunk: `g` becomes the update, the states the new ones.
#[inline(always)]
fn update(rule: &Update, p: &Chunk, g: &mut Chunk, states: [&mut Chunk; MAX_STATES]) {
    let plain = match rule {
        Update::Adamw(rule) => rule.plain(),
        _ => None,
    };
    match plain {
        Some(rule) => update_by(&rule, p, g, states),
        None => with_rule!(rule, rule => update_by(rule, p, g, states)),
    }
}

#[inline(always)]
fn update_by<R: Rule>(rule: &R, p: &Chunk, g: &mut Chunk, states: [&mut Chunk; MAX_STATES]) {
    let [a, b, c] = states;
    // The comparisons are known when the loop is compiled.
    for i in 0..CHUNK {
        let new = rule.element(Input {
            p: p[i],
            g: g[i],
            old: [
                a[i],
                if R::STATES > 1 { b[i] } else { 0.0 },
                if R::STATES > 2 { c[i] } else { 0.0 },
            ],
        });
        g[i] = new.update;
        a[i] = new.new[0];
        if R::STATES > 1 {
            b[i] = new.new[1];
        }
        if R::STATES > 2 {
            c[i] = new.new[2];
        }
    }
}

/// Writes zero updates for a tensor that is skipped as a whole.
///
/// # Safety
/// `call.update` is valid for the plan.
pub(super) unsafe fn zero_update(call: &TensorCall<'_>, units: Range<i64>) {
    for run in Run::of_units(&call.tensor.grid, units) {
        // SAFETY: the run lies in the tensor.
        unsafe { fill_zero(call.update, call.tensor.info.param_dtype, run) };
    }
}

/// Whether any gradient of the units is non-finite.
///
/// # Safety
/// `call.grad` is valid for the plan.
#[inline(always)]
unsafe fn scan<L: Lanes>(call: &TensorCall<'_>, units: Range<i64>) -> bool {
    // SAFETY: the caller's promise; the units lie in the tensor.
    unsafe { any_of_runs_non_finite::<L>(call, Run::of_units(&call.tensor.grid, units)) }
}

/// Whether any gradient of runs is non-finite.
///
/// # Safety
/// As for [`scan`]; the runs lie in the tensor.
#[inline(always)]
unsafe fn any_of_runs_non_finite<L: Lanes>(
    call: &TensorCall<'_>,
    runs: impl Iterator<Item = Run>,
) -> bool {
    let mut g = Chunk::ZERO;
    for run in runs {
        for run in run.parts(CHUNK) {
            // SAFETY: the run lies in the tensor.
            unsafe { load_gradient::<L>(call, run, &mut g) };
            if any_non_finite(&*g) {
                return true;
            }
        }
    }
    false
}

/// Quantizes the f32 values of `call.weight`; maxima are in the state's buffers.
///
/// # Safety
/// As for [`apply`].
#[inline(always)]
unsafe fn compress<L: Lanes>(call: &TensorCall<'_>, state: usize, units: Range<i64>) {
    let mut values = [Chunk::ZERO; MOST_CHUNKS];
    for unit in Run::of_units(&call.tensor.grid, units) {
        // SAFETY: the runs lie in the tensor.
        unsafe {
            for (run, values) in unit.parts(CHUNK).zip(&mut values) {
                load_run::<L>(call.weight.data, Dtype::F32, run, values);
            }
            let values = &values[..unit.len.div_ceil(CHUNK)];
            encode_unit::<L>(call, state, unit, values, Source::Stored);
        }
    }
}

/// Restores f32 values to `call.weight`.
///
/// # Safety
/// As for [`apply`].
#[inline(always)]
unsafe fn decompress<L: Lanes>(call: &TensorCall<'_>, state: usize, units: Range<i64>) {
    let mut values = Chunk::ZERO;
    for unit in Run::of_units(&call.tensor.grid, units) {
        for run in unit.parts(CHUNK) {
            // SAFETY: the run lies in the tensor.
            unsafe {
                decode_run::<L>(call, state, run, Factors::Stored, &mut values);
                store_run::<L>(call.weight.data, Dtype::F32, run, &values);
            }
        }
    }
}
