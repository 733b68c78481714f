//! The threaded CPU kernels: the reference's arithmetic over short runs of elements, in loops
//! that the compiler turns into vectors, and in the few of `lanes/` that it does not. Instantiated
//! for the processor's baseline, for AVX2 with FMA and F16C (without a hardware `fma` every
//! multiply-add is a library call), and for AVX-512.
//!
//! The unit of work is one block of one row (`Grid::unit`): its states are decoded into arrays on
//! the stack, updated by the rules of `optimizer/`, and coded again.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

mod collect;
mod decode;
mod encode;
mod run;

use std::ops::Range;

use super::call::TensorCall;
use super::lanes::{Lanes, Portable};
use crate::dtype::Dtype;
use crate::layout::index;
use crate::optimizer::{Input, MAX_STATES, Rule, Update, with_rule};
use crate::plan::Pass;

use collect::collect;
pub(super) use collect::{refresh, store_statistics};
use decode::{Factors, decode_run};
use encode::encode_run;
use run::{
    Run, Source, any_non_finite, fill_zero, load_run, load_weights, store_run, store_weights,
};

/// The largest block; arrays on the stack have this many elements.
const LONGEST: usize = 4096;

/// Elements of one coding run: short enough for the thresholds' loop to stay in registers and L1.
const RUN: usize = 128;

/// Columns of one task of [`collect()`].
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
        let plain = match &call.rule {
            Update::Adamw(rule) => rule.plain(),
            _ => None,
        };
        match plain {
            Some(rule) => update(&rule, p, g, &mut states),
            None => with_rule!(&call.rule, rule => update(rule, p, g, &mut states)),
        }
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
fn update<R: Rule>(rule: &R, p: &[f32], g: &mut [f32], states: &mut States) {
    let n = p.len();
    let [a, b, c] = states;
    let (g, a, b, c) = (&mut g[..n], &mut a[..n], &mut b[..n], &mut c[..n]);
    // The comparisons are known when the loop is compiled.
    for i in 0..n {
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
    for unit in units {
        let run = Run::of(&call.tensor.grid, unit);
        // SAFETY: the run lies in the tensor.
        unsafe { fill_zero(call.update, call.tensor.info.param_dtype, run) };
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
