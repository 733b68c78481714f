//! Shards with an all-reduce between the stages give the bits of one device: for the conformance
//! cases here, for random tensors, specs and meshes in `random`. What may be cut where is checked
//! in `cuts`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

#[path = "../common/mod.rs"]
mod common;

mod cuts;
mod random;
mod shards;

use common::{Case, Model};
use lowbit::Variant;
use lowbit::dtype::Dtype;
use lowbit::plan::TensorInfo;
use lowbit::spec::{Normalization, Optimizer, Spec};
use lowbit::step::{NonFinite, Stage};
use shards::{Manner, Place, Split, place};

/// Four steps of one tensor.
fn check(case: &Case, global: &[i64], places: &[Place], manner: Manner) {
    let info = TensorInfo {
        grad_dtype: case.grad,
        weights: case.weights,
        ..TensorInfo::new("w", global, case.param)
    };
    let split = Split::new(info, places);
    shards::check(&case.name, &case.spec, 4, &[split], manner);
}

fn is_dithered(spec: &Spec) -> bool {
    let quantizers = [&spec.m, &spec.v];
    quantizers.into_iter().flatten().any(|q| q.dither)
}

#[test]
fn dithered_states_do_not_move_from_the_plans_place() {
    let cases = common::cases();
    let case = cases.iter().find(|case| is_dithered(&case.spec)).unwrap();
    let info = TensorInfo {
        global_shape: Some(vec![64, 300]),
        offset: Some(vec![0, 0]),
        ..TensorInfo::new("w", &[32, 300], Dtype::F32)
    };
    let mut model = Model::new(Variant::Auto, 1, &case.spec, vec![info]);
    model.step = 1;
    for (start, works) in [(0, true), (32, false)] {
        let done = model.stage(Stage::All, Some(&[Some(&[start, 0])]));
        assert_eq!(done.is_ok(), works);
        if let Err(error) = done {
            assert!(error.to_string().contains("dither"), "{error}");
        }
    }
}

/// The largest block of a case's states: what a cut inside a row must be a multiple of.
fn block(case: &Case) -> u32 {
    let states = [&case.spec.m, &case.spec.v];
    states
        .into_iter()
        .flatten()
        .map(|quantizer| quantizer.block)
        .max()
        .unwrap()
}

#[test]
fn allowed_splits_of_every_case_give_the_bits_of_one_device() {
    let cases = common::cases();
    // Rows, evenly and unevenly, one shard empty. Even for blocks of 2048 the first axis is no part
    // of a row.
    let rows = [
        place(&[0, 0, 0], &[3, 2, 1100]),
        place(&[3, 0, 0], &[0, 2, 1100]),
        place(&[3, 0, 0], &[1, 2, 1100]),
        place(&[4, 0, 0], &[2, 2, 1100]),
    ];
    // A 2-D mesh that cuts the last axis at a block's end.
    let mesh = [
        place(&[0, 0], &[10, 256]),
        place(&[0, 256], &[10, 300]),
        place(&[10, 0], &[3, 256]),
        place(&[10, 256], &[3, 300]),
    ];
    // Short rows are merged: a cut where a block ends.
    let merged = [place(&[0, 0], &[40, 64]), place(&[40, 0], &[60, 64])];
    let deep = [
        place(&[0, 0, 0, 0], &[2, 3, 7, 40]),
        place(&[2, 0, 0, 0], &[4, 3, 7, 40]),
    ];
    let mut splits = 0;
    for case in &cases {
        for per_call in [false, true] {
            if per_call && is_dithered(&case.spec) {
                continue;
            }
            for nan in [None, Some(3)] {
                // With a NaN, block-wise states skip one block in both, others the whole tensor.
                let manner = Manner {
                    per_call,
                    nan,
                    ..Manner::default()
                };
                check(case, &[6, 2, 1100], &rows, manner);
                splits += 1;
            }
        }
        if block(case) <= 256 {
            check(case, &[13, 556], &mesh, Manner::default());
            check(case, &[100, 64], &merged, Manner::default());
            check(case, &[6, 3, 7, 40], &deep, Manner::default());
            splits += 3;
        }
    }
    println!("{splits} splits of {} cases", cases.len());
    assert!(splits >= 7 * 50);
}

/// What ZeRO-1 does: each process has a run of elements, wherever axes end. Blocks and random
/// numbers follow the rows of the block grid, so a row may be described as one axis.
#[test]
fn flat_windows_of_a_row_give_the_bits_of_the_whole_tensor() {
    let in_blocks = |case: &&Case| {
        let states = [&case.spec.m, &case.spec.v];
        let mut normalizations = states.into_iter().flatten().map(|q| q.normalization);
        let optimizers = [Optimizer::Adafactor, Optimizer::Sm3];
        normalizations.all(|n| matches!(n, None | Some(Normalization::Block)))
            && !optimizers.contains(&case.spec.optimizer)
            && block(case) <= 256
    };
    let cases = common::cases();
    let cases: Vec<_> = cases.iter().filter(in_blocks).collect();
    for case in &cases {
        let nan = Manner {
            nan: Some(2),
            ..Manner::default()
        };
        // Axes of which no one could be cut anywhere.
        let flat = |name: &str, shape: &[i64], global: &[i64], places: &[Place]| Split {
            global: global.to_vec(),
            ..Split::new(
                TensorInfo {
                    grad_dtype: case.grad,
                    weights: case.weights,
                    ..TensorInfo::new(name, shape, case.param)
                },
                places,
            )
        };
        let convolution = flat(
            "convolution",
            &[65, 5, 5, 3],
            &[4875],
            &[
                place(&[0], &[1280]),
                place(&[1280], &[256]),
                place(&[1536], &[0]),
                place(&[1536], &[3339]),
            ],
        );
        let rows = flat(
            "rows",
            &[7, 30, 31],
            &[7, 930],
            &[
                place(&[0, 0], &[7, 256]),
                place(&[0, 256], &[5, 674]),
                place(&[5, 256], &[2, 512]),
                place(&[5, 768], &[2, 162]),
            ],
        );
        shards::check(&case.name, &case.spec, 4, &[convolution, rows], nan);
    }
    println!("{} cases", cases.len());
    assert!(cases.len() >= 30);
}

/// A window that begins and ends inside rows is up to three boxes, of which each is a shard like any
/// other: a process has a plan for each and combines their statistics as well.
#[test]
fn flat_windows_over_several_rows_are_boxes() {
    let windows = [
        place(&[0, 0], &[3, 556]),
        place(&[3, 0], &[1, 256]),
        place(&[3, 256], &[1, 300]),
        place(&[4, 0], &[5, 556]),
        place(&[9, 0], &[1, 512]),
        place(&[9, 512], &[1, 44]),
        place(&[10, 0], &[3, 556]),
    ];
    let cases = common::cases();
    let cases: Vec<_> = cases.iter().filter(|case| block(case) <= 256).collect();
    for case in &cases {
        check(case, &[13, 556], &windows, Manner::default());
    }
    println!("{} cases", cases.len());
    assert!(cases.len() >= 50);
}

#[test]
fn the_threshold_looks_at_the_global_tensor() {
    let spec = Spec::preset("adamw4-block").unwrap();
    let info = TensorInfo {
        global_shape: Some(vec![64, 128]),
        offset: Some(vec![8, 0]),
        ..TensorInfo::new("w", &[4, 128], Dtype::F32)
    };
    let model = Model::new(Variant::Auto, 1, &spec, vec![info]);
    assert!(
        model.plan.report().contains("4-bit"),
        "{}",
        model.plan.report()
    );
}

#[test]
fn a_nan_on_one_shard_skips_the_tensor_on_all() {
    let spec = Spec::preset("adamw4-block").unwrap();
    let shard = |offset, rows| {
        let info = TensorInfo {
            global_shape: Some(vec![64, 128]),
            offset: Some(vec![offset, 0]),
            ..TensorInfo::new("w", &[rows, 128], Dtype::F32)
        };
        let mut model = Model::new(Variant::Auto, 1, &spec, vec![info]);
        model.nonfinite = NonFinite::SkipTensor;
        model.fill_params();
        model.fill_grads(1);
        model.step = 1;
        model
    };
    let (mut a, mut b) = (shard(0, 32), shard(32, 32));
    a.grads[0].as_mut()[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let before = b.params.clone();
    a.stage(Stage::Collect(0), None).unwrap();
    b.stage(Stage::Collect(0), None).unwrap();
    assert_eq!(a.scratch.as_ref()[..4], [1, 0, 0, 0]);
    assert_eq!(b.scratch.as_ref()[..4], [0; 4]);
    b.scratch.as_mut().copy_from_slice(a.scratch.as_ref());
    b.stage(Stage::Apply, None).unwrap();
    assert!(b.params == before);
    assert_eq!(b.skipped, [0, 1]);
}
