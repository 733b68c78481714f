//! Time of one optimizer step on the CPU, with the memory bandwidth of the same run:
//! `cargo bench --bench step`. `README.md` says how to read it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    unsafe_code,
    reason = "a test"
)]
#![allow(missing_docs, reason = "criterion's macros make public items")]

#[path = "../common/mod.rs"]
mod common;

use std::sync::Arc;

use common::{Memory, Model};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lowbit::dtype::Dtype;
use lowbit::plan::{Plan, TensorInfo};
use lowbit::spec::Spec;
use lowbit::weights::Weights;
use lowbit::{Context, CpuContext, Variant};

/// 64 Mi elements: 512 MiB of parameters and gradients in f32.
const SHAPE: [i64; 2] = [8192, 8192];

/// Name, preset, dtype of parameters and gradients, weight form.
const CASES: [(&str, &str, Dtype, Weights); 15] = [
    ("adamw32", "adamw32", Dtype::F32, Weights::Plain),
    ("adamw4-block", "adamw4-block", Dtype::F32, Weights::Plain),
    ("adamw4", "adamw4", Dtype::F32, Weights::Plain),
    ("adamw4-robust", "adamw4-robust", Dtype::F32, Weights::Plain),
    ("adamw8", "adamw8", Dtype::F32, Weights::Plain),
    ("factor4", "factor4", Dtype::F32, Weights::Plain),
    ("sgdm4", "sgdm4", Dtype::F32, Weights::Plain),
    ("lion4", "lion4", Dtype::F32, Weights::Plain),
    ("sgdm8", "sgdm8", Dtype::F32, Weights::Plain),
    ("lion8", "lion8", Dtype::F32, Weights::Plain),
    (
        "adamw4-block bf16",
        "adamw4-block",
        Dtype::Bf16,
        Weights::Plain,
    ),
    (
        "adamw4-block f16",
        "adamw4-block",
        Dtype::F16,
        Weights::Plain,
    ),
    (
        "adamw4-block bf16 stochastic",
        "adamw4-block",
        Dtype::Bf16,
        Weights::Stochastic,
    ),
    (
        "adamw4-block bf16 remainder16",
        "adamw4-block",
        Dtype::Bf16,
        Weights::Remainder16,
    ),
    (
        "adamw4-block bf16 correction8",
        "adamw4-block",
        Dtype::Bf16,
        Weights::Correction8,
    ),
];

/// Values that repeat: making as many random ones would take longer than the measurement.
fn fill(memory: &mut Memory, dtype: Dtype, value: impl Fn(u64, u64) -> f32) {
    let pattern = common::bytes((0..65_521).map(|i| value(1, i)), dtype);
    for chunk in memory.as_mut().chunks_mut(pattern.len()) {
        chunk.copy_from_slice(&pattern[..chunk.len()]);
    }
}

/// In the widest registers that there are: with those of the baseline a core moves up to a third less.
fn multiply(memory: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(memory: &mut [f32]) {
            for x in memory {
                *x *= 0.999;
            }
        }
        #[target_feature(enable = "avx2")]
        fn avx2(memory: &mut [f32]) {
            for x in memory {
                *x *= 0.999;
            }
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has it.
            return unsafe { avx512(memory) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(memory) };
        }
    }
    memory.iter_mut().for_each(|x| *x *= 0.999);
}

/// The yardsticks: memory read and written in place, and copied.
fn bandwidth(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    threads: usize,
    elements: usize,
) {
    let mut memory = vec![1.0_f32; elements];
    let (from, to) = memory.split_at_mut(elements / 2);
    let part = elements / 2 / threads;
    // What is moved is counted as for a step.
    group.throughput(Throughput::Bytes(8 * elements as u64));
    group.bench_function(format!("in place, {threads} threads"), |bencher| {
        bencher.iter(|| {
            std::thread::scope(|scope| {
                for (from, to) in from.chunks_mut(part).zip(to.chunks_mut(part)) {
                    scope.spawn(|| {
                        multiply(from);
                        multiply(to);
                    });
                }
            });
        });
    });
    group.throughput(Throughput::Bytes(4 * elements as u64));
    group.bench_function(format!("copy, {threads} threads"), |bencher| {
        bencher.iter(|| {
            std::thread::scope(|scope| {
                for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
                    scope.spawn(|| to.copy_from_slice(from));
                }
            });
        });
    });
}

fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    group.sample_size(15);
    let elements = SHAPE.iter().product::<i64>().unsigned_abs();
    for threads in [1, 2] {
        bandwidth(&mut group, threads, usize::try_from(elements).unwrap());
        for (name, preset, dtype, weights) in CASES {
            let tensor = TensorInfo {
                weights,
                ..TensorInfo::new("w", &SHAPE, dtype)
            };
            let spec = Spec::preset(preset).unwrap();
            let context = CpuContext::new(threads, Variant::Auto).unwrap();
            let context = Arc::new(Context::Cpu(context));
            let plan = Plan::new(context, &spec, vec![tensor]).unwrap();
            // Parameter read and written, gradient read, states read and written.
            let state = plan.state_bytes().unsigned_abs();
            let bytes = 3 * dtype.size() as u64 * elements + 2 * state;
            group.throughput(Throughput::Bytes(bytes));
            // Memory is filled when it is measured, so that a filter saves time.
            let mut plan = Some(plan);
            let mut model = None;
            group.bench_function(format!("{name}, {threads} threads"), |bencher| {
                let model = model.get_or_insert_with(|| {
                    let mut model = Model::of(plan.take().unwrap());
                    fill(&mut model.params[0], dtype, common::param);
                    fill(&mut model.grads[0], dtype, common::grad);
                    model
                });
                bencher.iter(|| model.run().unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
