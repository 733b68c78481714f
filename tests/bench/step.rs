//! Time of one optimizer step on the CPU, per preset, with the memory bandwidth of the same run:
//! `cargo bench --bench step`. `README.md` says how to read it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]
#![allow(missing_docs, reason = "criterion's macros make public items")]

#[path = "../common/mod.rs"]
mod common;

use common::Model;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lowbit::Variant;
use lowbit::dtype::Dtype;
use lowbit::plan::TensorInfo;
use lowbit::spec::Spec;

/// 64 Mi elements: 512 MiB of parameters and gradients in f32.
const SHAPE: [i64; 2] = [8192, 8192];

fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    group.sample_size(15);
    let elements = SHAPE.iter().product::<i64>().unsigned_abs();
    // Read and written: what the yardstick moves is counted like what a step moves.
    group.throughput(Throughput::Bytes(8 * elements));
    let mut memory = vec![1.0_f32; usize::try_from(elements).unwrap()];
    group.bench_function("in-place read-modify-write, one thread", |bencher| {
        bencher.iter(|| memory.iter_mut().for_each(|x| *x *= 0.999));
    });
    for threads in [1, 2] {
        for preset in ["adamw32", "adamw4", "adamw4-block"] {
            let tensor = TensorInfo::new("w", &SHAPE, Dtype::F32);
            let spec = Spec::preset(preset).unwrap();
            let mut model = Model::new(Variant::Auto, threads, &spec, vec![tensor]);
            model.fill_params();
            model.fill_grads(1);
            // Parameter read and written, gradient read, states read and written.
            let state = model.plan.state_bytes().unsigned_abs();
            group.throughput(Throughput::Bytes(12 * elements + 2 * state));
            group.bench_function(format!("{preset}, {threads} threads"), |bencher| {
                bencher.iter(|| model.run().unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
