//! What is measured beside the step: the global norm of gradients, and how well codes hold states.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]
#![allow(unsafe_code, reason = "works on raw buffers")]

mod common;

use common::{Memory, Model, bytes, floats, tensors, variants};
use lowbit::dtype::Dtype;
use lowbit::norm::{Norm, NormArgs, Stage};
use lowbit::plan::{Plan, TensorInfo};
use lowbit::quant::Mapping;
use lowbit::spec::{Quantizer, Spec};
use lowbit::step::{Buffer, HyperSource, NonFinite, StepArgs};
use lowbit::{Hyper, Variant};

fn buffers(memory: &[Memory]) -> Vec<Buffer> {
    memory.iter().map(Memory::buffer).collect()
}

fn norm(model: &Model, grad_scale: f32, max_norm: f32) -> Norm {
    let scratch = Memory::zeroed(Plan::NORM_BYTES as usize);
    let args = NormArgs {
        grads: &buffers(&model.grads),
        scratch: scratch.buffer(),
        grad_scale,
        max_norm,
    };
    // SAFETY: all memory is this test's.
    unsafe { model.plan.norm(&args, std::ptr::null_mut()).unwrap() }
}

#[test]
fn norms_are_those_of_f64_with_the_same_bits_everywhere() {
    let spec = Spec::preset("adamw4").unwrap();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let mut found = Vec::new();
        for variant in variants() {
            for threads in [1, 3] {
                let mut model = Model::new(variant, threads, &spec, tensors(dtype, dtype));
                model.fill_grads(1);
                found.push(norm(&model, 0.5, 1.0));
            }
        }
        assert!(found.iter().all(|norm| *norm == found[0]));
        if dtype == Dtype::F32 {
            let mut model = Model::new(Variant::Auto, 1, &spec, tensors(dtype, dtype));
            model.fill_grads(1);
            let values = model.grads.iter().flat_map(|g| floats(g.as_ref()));
            let squares: f64 = values.map(|g| (0.5 * f64::from(g)).powi(2)).sum();
            let want = squares.sqrt();
            assert!((f64::from(found[0].norm) / want - 1.0).abs() < 6e-8);
            assert_eq!(found[0].clip_factor, 1.0 / found[0].norm);
            assert_eq!(norm(&model, 0.5, 1e9).clip_factor, 1.0);
        }
    }
}

#[test]
fn norms_of_huge_tiny_and_bad_gradients() {
    let spec = Spec::preset("adamw32").unwrap();
    let info = TensorInfo::new("w", &[3], Dtype::F32);
    let of = |values: [f32; 3]| {
        let mut model = Model::new(Variant::Auto, 1, &spec, vec![info.clone()]);
        model.grads[0] = Memory::from(&bytes(values.into_iter(), Dtype::F32));
        norm(&model, 1.0, 1.0)
    };
    assert_eq!(of([3e30, 4e30, 0.0]).norm, 5e30);
    assert_eq!(of([3e-30, 4e-30, 0.0]).norm, 5e-30);
    assert_eq!(of([0.0; 3]).norm, 0.0);
    assert_eq!(of([0.0; 3]).clip_factor, 1.0);
    assert_eq!(of([f32::INFINITY, 1.0, 1.0]).norm, f32::INFINITY);
    assert_eq!(of([f32::INFINITY, 1.0, 1.0]).clip_factor, 1.0);
    assert!(of([f32::NAN, f32::INFINITY, 1.0]).norm.is_nan());
}

#[test]
fn shards_of_a_norm_add_up() {
    let spec = Spec::preset("adamw32").unwrap();
    let mut whole = Model::new(Variant::Auto, 2, &spec, tensors(Dtype::F32, Dtype::F32));
    whole.fill_grads(1);
    let want = norm(&whole, 1.0, 1.0);
    // Every other tensor is another shard's.
    let scratches = [0, 1].map(|_| Memory::zeroed(Plan::NORM_BYTES as usize));
    let all = buffers(&whole.grads);
    let lists = [0, 1].map(|shard| {
        let of = |(i, g): (usize, &Buffer)| if i % 2 == shard { *g } else { Buffer::NONE };
        all.iter().enumerate().map(of).collect::<Vec<_>>()
    });
    let args = [0, 1].map(|shard| NormArgs {
        grads: &lists[shard],
        scratch: scratches[shard].buffer(),
        grad_scale: 1.0,
        max_norm: 1.0,
    });
    let words = |shard: usize| {
        let bytes = scratches[shard].as_ref().chunks(8);
        bytes
            .map(|word| i64::from_le_bytes(word.try_into().unwrap()))
            .collect::<Vec<_>>()
    };
    let write = |i: usize, value: i64| {
        for scratch in &scratches {
            // SAFETY: a word of this test's memory.
            unsafe { *scratch.buffer().data.cast::<i64>().add(i) = value };
        }
    };
    for (stage, range) in [(Stage::Max, 0..1), (Stage::Sum, 1..3)] {
        for args in &args {
            // SAFETY: all memory is this test's.
            unsafe {
                whole
                    .plan
                    .collect_norm(args, stage, std::ptr::null_mut())
                    .unwrap();
            }
        }
        let (a, b) = (words(0), words(1));
        for i in range {
            write(
                i,
                if stage == Stage::Max {
                    a[i].max(b[i])
                } else {
                    a[i] + b[i]
                },
            );
        }
    }
    // SAFETY: as above.
    let found = unsafe { whole.plan.finish_norm(&args[0]).unwrap() };
    assert_eq!(found, want);
}

fn diagnose(model: &Model) -> lowbit::diagnose::Diagnostics {
    let scratch = Memory::zeroed(model.scratch.bytes);
    let hyper = vec![model.hyper; model.plan.groups()];
    let args = StepArgs {
        params: &buffers(&model.params),
        grads: &buffers(&model.grads),
        updates: None,
        state: &buffers(&model.state),
        scratch: scratch.buffer(),
        hyper: HyperSource::Host(&hyper, model.step + 1),
        nonfinite: NonFinite::Default,
        offsets: None,
        skipped: std::ptr::null_mut(),
    };
    // SAFETY: all memory is this test's.
    unsafe { model.plan.diagnose(&args).unwrap() }
}

#[test]
fn diagnostics_are_what_a_step_then_does_and_change_nothing() {
    for preset in [
        "adamw4",
        "adamw4-block",
        "adamw4-robust",
        "adamw8",
        "factor4",
        "sgdm4",
        "sm3",
    ] {
        let spec = Spec::preset(preset).unwrap();
        let mut model = Model::new(Variant::Auto, 2, &spec, tensors(Dtype::F32, Dtype::F32));
        model.hyper = Hyper::default();
        model.fill_params();
        for t in 1..=3 {
            model.fill_grads(t);
            model.run().unwrap();
        }
        model.fill_grads(4);
        let before = (model.params.clone(), model.state.clone());
        let found = diagnose(&model);
        assert!(before == (model.params.clone(), model.state.clone()));
        println!("{preset}\n{found}");

        // The same errors from outside: f32 states that take the same step from the same values.
        let f32_spec = Spec {
            m: spec.m.as_ref().map(|_| Quantizer::f32()),
            v: spec.v.as_ref().map(|_| Quantizer::f32()),
            ..spec.clone()
        };
        let mut exact = Model::new(Variant::Auto, 2, &f32_spec, tensors(Dtype::F32, Dtype::F32));
        exact.params.clone_from(&model.params);
        exact.grads.clone_from(&model.grads);
        exact.step = model.step;
        let names = model.plan.spec().states();
        for state in 0..names.len() {
            if preset != "sm3" {
                exact.compress(state, &model.decompress(state)).unwrap();
            }
        }
        exact.run().unwrap();
        model.run().unwrap();
        for state in &found.states {
            if preset == "sm3" || (preset == "factor4" && state.state == "v") {
                continue;
            }
            let tensors = model.plan.tensors();
            let i = tensors
                .iter()
                .position(|t| t.info.name == state.tensor)
                .unwrap();
            let s = names.iter().position(|name| *name == state.state).unwrap();
            let (fresh, coded) = (&exact.decompress(s)[i], &model.decompress(s)[i]);
            let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
                let pairs = fresh.iter().zip(coded);
                pairs.map(|(x, q)| f(f64::from(*x), f64::from(*q))).sum()
            };
            let want = (sum(&|x, q| (x - q).powi(2)) / sum(&|x, _| x * x)).sqrt();
            assert!(
                (state.relative_error - want).abs() <= 1e-12,
                "{preset} {state:?}: {want}"
            );
        }
        let json: serde_json::Value = serde_json::from_str(&found.to_json()).unwrap();
        assert_eq!(json["states"].as_array().unwrap().len(), found.states.len());
    }
}

#[test]
fn dead_blocks_end_codes_and_ratios_are_counted() {
    let spec = Spec {
        threshold: 0,
        ..Spec::preset("adamw4-block").unwrap()
    };
    let info = TensorInfo::new("w", &[4, 128], Dtype::F32);
    let mut model = Model::new(Variant::Auto, 1, &spec, vec![info]);
    // Row 0 is zero, row 1 all ones, the others one one and 1e-3: v is (1 - beta2) g^2.
    let value = |j: usize| match (j / 128, j % 128) {
        (0, _) => 0.0,
        (1, _) | (_, 0) => 1.0,
        _ => 1e-3,
    };
    model.grads[0] = Memory::from(&bytes((0..512).map(value), Dtype::F32));
    let found = diagnose(&model);
    let v = found
        .states
        .iter()
        .find(|state| state.state == "v")
        .unwrap();
    assert_eq!((v.dead_blocks, v.blocks), (Some(1), Some(4)));
    // Of 384 live elements 130 are their block's maximum, 254 below the lowest level.
    assert_eq!(v.highest_codes, Some(130.0 / 384.0));
    assert_eq!(v.lowest_codes, Some(254.0 / 384.0));
    // 1e-6 of the scale became 1/16: the preconditioner shrinks to sqrt(16e-6) of what it was.
    let [low, _, high] = v.preconditioner_ratio.unwrap();
    assert!((low / 16e-6_f64.sqrt() - 1.0).abs() < 1e-3, "{low}");
    assert!((high - 1.0).abs() < 1e-6, "{high}");
    let m = found
        .states
        .iter()
        .find(|state| state.state == "m")
        .unwrap();
    // Ones are exact, and the rest is small: m along itself is almost unchanged.
    assert!(m.radial_bias.unwrap().abs() < 1e-3);
    assert_eq!(
        v.quantizer,
        Quantizer::block(128, Mapping::Linear).describe()
    );
}
