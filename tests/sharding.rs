//! Shards with an all-reduce between the stages give the bits of one device.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

mod common;

use common::{Case, Memory, Model};
use lowbit::Variant;
use lowbit::dtype::Dtype;
use lowbit::plan::{Reduce, StageInfo, TensorInfo};
use lowbit::spec::Spec;
use lowbit::step::{NonFinite, Stage};

/// A box of a global tensor.
#[derive(Clone, Debug)]
struct Place {
    offset: Vec<i64>,
    shape: Vec<i64>,
}

/// Linear indices, in the global tensor, of the elements of a box.
fn indices(global: &[i64], place: &Place) -> Vec<usize> {
    let numel: i64 = place.shape.iter().product();
    let index = |element: i64| {
        let (mut rest, mut linear, mut stride) = (element, 0, 1);
        for axis in (0..global.len()).rev() {
            linear += (rest % place.shape[axis] + place.offset[axis]) * stride;
            rest /= place.shape[axis];
            stride *= global[axis];
        }
        linear as usize
    };
    (0..numel).map(index).collect()
}

fn gather(from: &Memory, indices: &[usize], size: usize) -> Vec<u8> {
    let bytes = from.as_ref();
    indices
        .iter()
        .flat_map(|i| bytes[i * size..(i + 1) * size].to_vec())
        .collect()
}

/// How a split is stepped.
#[derive(Clone, Copy, Debug, Default)]
struct Manner {
    /// The places are given with each call, not with the plan.
    per_call: bool,
    /// A gradient of step 3 holds a NaN.
    nan: bool,
}

/// Runs four steps on the whole tensor and on shards, comparing parameters, decoded states and what
/// is kept beside the parameters.
fn check(case: &Case, global: &[i64], places: &[Place], manner: Manner) {
    let Manner { per_call, nan } = manner;
    let info = TensorInfo {
        grad_dtype: case.grad,
        weights: case.weights,
        ..TensorInfo::new("w", global, case.param)
    };
    let mut whole = Model::new(Variant::Reference, 1, &case.spec, vec![info.clone()]);
    whole.fill_params();
    let mut shards: Vec<Model> = places
        .iter()
        .map(|place| {
            // With offsets per call the plan is made for an allowed place of the same extents.
            let offset = if per_call {
                vec![0; global.len()]
            } else {
                place.offset.clone()
            };
            let info = TensorInfo {
                shape: place.shape.clone(),
                global_shape: Some(global.to_vec()),
                offset: Some(offset),
                ..info.clone()
            };
            let mut shard = Model::new(Variant::Auto, 2, &case.spec, vec![info]);
            let indices = indices(global, place);
            let bytes = gather(&whole.params[0], &indices, case.param.size());
            shard.params[0].as_mut().copy_from_slice(&bytes);
            shard
        })
        .collect();
    let offsets: Vec<_> = places
        .iter()
        .map(|place| [Some(place.offset.as_slice())])
        .collect();
    let offsets = |i: usize| per_call.then_some(&offsets[i][..]);
    for t in 1..=4 {
        whole.fill_grads(t);
        if nan && t == 3 {
            // Ones in all bits are a NaN in every dtype.
            whole.grads[0].as_mut()[..case.grad.size()].fill(0xff);
        }
        for (shard, place) in shards.iter_mut().zip(places) {
            let indices = indices(global, place);
            let bytes = gather(&whole.grads[0], &indices, case.grad.size());
            shard.grads[0].as_mut().copy_from_slice(&bytes);
            shard.step += 1;
        }
        for (stage, info) in whole.plan.stages().into_iter().enumerate() {
            for (i, shard) in shards.iter_mut().enumerate() {
                assert_eq!(shard.plan.stages()[stage], info);
                shard.stage(Stage::Collect(stage), offsets(i)).unwrap();
            }
            all_reduce(&mut shards, info);
        }
        for (i, shard) in shards.iter_mut().enumerate() {
            shard.stage(Stage::Apply, offsets(i)).unwrap();
        }
        whole.run().unwrap();
        for (shard, place) in shards.iter().zip(places) {
            let at = format!(
                "{}, {place:?} of {global:?}, {manner:?}, step {t}",
                case.name
            );
            compare(case, &whole, shard, &indices(global, place), &at);
        }
    }
}

/// The trainer's all-reduce of one stage: element by element, nothing but what the plan names.
fn all_reduce(shards: &mut [Model], stage: StageInfo) {
    let size = stage.dtype.size();
    let region = stage.offset as usize..stage.offset as usize + stage.count as usize * size;
    let mut reduced: Vec<i64> = Vec::new();
    for shard in &*shards {
        let elements = shard.scratch.as_ref()[region.clone()].chunks(size);
        let elements: Vec<i64> = elements
            .map(|bytes| match stage.dtype {
                Dtype::I32 => i64::from(i32::from_le_bytes(bytes.try_into().unwrap())),
                Dtype::I64 => i64::from_le_bytes(bytes.try_into().unwrap()),
                other => panic!("{other:?}"),
            })
            .collect();
        if reduced.is_empty() {
            reduced = elements;
            continue;
        }
        for (sum, element) in reduced.iter_mut().zip(elements) {
            *sum = match stage.reduce {
                Reduce::Max => (*sum).max(element),
                Reduce::Sum => sum.checked_add(element).unwrap(),
            };
        }
    }
    let bytes: Vec<u8> = reduced
        .iter()
        .flat_map(|value| value.to_le_bytes()[..size].to_vec())
        .collect();
    for shard in shards {
        shard.scratch.as_mut()[region.clone()].copy_from_slice(&bytes);
    }
}

fn compare(case: &Case, whole: &Model, shard: &Model, indices: &[usize], at: &str) {
    let size = case.param.size();
    let same = gather(&whole.params[0], indices, size) == shard.params[0].as_ref();
    assert!(same, "{at}: parameters");
    let states = case.spec.states();
    for (state, name) in states.iter().enumerate() {
        let (all, part) = (&whole.decompress(state)[0], &shard.decompress(state)[0]);
        let want: Vec<u32> = indices.iter().map(|i| all[*i].to_bits()).collect();
        let got: Vec<u32> = part.iter().map(|x| x.to_bits()).collect();
        assert!(want == got, "{at}: state {name}");
    }
    let pairs = whole.plan.buffers().iter().zip(&whole.state);
    for (i, (info, memory)) in pairs.enumerate() {
        if info.state == "weights" {
            let want = gather(memory, indices, info.dtype.size());
            assert!(want == shard.state[i].as_ref(), "{at}: {}", info.part);
        }
    }
}

fn is_dithered(case: &Case) -> bool {
    let quantizers = [&case.spec.m, &case.spec.v];
    quantizers.into_iter().flatten().any(|q| q.dither)
}

#[test]
fn dithered_states_do_not_move_from_the_plans_place() {
    let cases = common::cases();
    let case = cases.iter().find(|case| is_dithered(case)).unwrap();
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

fn place(offset: &[i64], shape: &[i64]) -> Place {
    Place {
        offset: offset.to_vec(),
        shape: shape.to_vec(),
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
fn any_allowed_split_gives_the_bits_of_one_device() {
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
            if per_call && is_dithered(case) {
                continue;
            }
            for nan in [false, true] {
                // With a NaN, block-wise states skip one block in both, others the whole tensor.
                check(case, &[6, 2, 1100], &rows, Manner { per_call, nan });
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
