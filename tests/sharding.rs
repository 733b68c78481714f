//! Shards with an all-reduce between the stages give the bits of one device.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

mod common;

use common::{Memory, Model};
use lowbit::Variant;
use lowbit::dtype::Dtype;
use lowbit::plan::TensorInfo;
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

/// Runs `steps` on the whole tensor and on shards, comparing parameters and decoded states.
fn check(spec: &Spec, global: &[i64], places: &[Place], per_call: bool, nan: bool) {
    let info = TensorInfo::new("w", global, Dtype::F32);
    let mut whole = Model::new(Variant::Reference, 1, spec, vec![info.clone()]);
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
            let mut shard = Model::new(Variant::Auto, 2, spec, vec![info]);
            let bytes = gather(&whole.params[0], &indices(global, place), 4);
            shard.params[0].as_mut().copy_from_slice(&bytes);
            shard
        })
        .collect();
    for t in 1..=4 {
        whole.fill_grads(t);
        if nan && t == 3 {
            whole.grads[0].as_mut()[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        for (shard, place) in shards.iter_mut().zip(places) {
            let bytes = gather(&whole.grads[0], &indices(global, place), 4);
            shard.grads[0].as_mut().copy_from_slice(&bytes);
            shard.step += 1;
            let offsets = [Some(place.offset.as_slice())];
            shard
                .stage(Stage::Collect(0), per_call.then_some(&offsets[..]))
                .unwrap();
        }
        // The trainer's all-reduce: element-wise maximum of i32.
        let words = shards[0].scratch.bytes / 4;
        let mut reduced = vec![0_i32; words];
        for shard in &shards {
            for (i, word) in shard.scratch.as_ref().chunks(4).enumerate() {
                reduced[i] = reduced[i].max(i32::from_le_bytes(word.try_into().unwrap()));
            }
        }
        let bytes: Vec<u8> = reduced.iter().flat_map(|word| word.to_le_bytes()).collect();
        for (shard, place) in shards.iter_mut().zip(places) {
            shard.scratch.as_mut().copy_from_slice(&bytes);
            let offsets = [Some(place.offset.as_slice())];
            shard
                .stage(Stage::Apply, per_call.then_some(&offsets[..]))
                .unwrap();
        }
        whole.run().unwrap();
        for (shard, place) in shards.iter().zip(places) {
            let indices = indices(global, place);
            assert!(
                gather(&whole.params[0], &indices, 4) == shard.params[0].as_ref(),
                "parameters of {place:?} of {global:?}, step {t}"
            );
            for state in 0..2 {
                let (all, part) = (&whole.decompress(state)[0], &shard.decompress(state)[0]);
                let want: Vec<u32> = indices.iter().map(|i| all[*i].to_bits()).collect();
                let got: Vec<u32> = part.iter().map(|x| x.to_bits()).collect();
                assert!(
                    want == got,
                    "state {state} of {place:?} of {global:?}, step {t}"
                );
            }
        }
    }
}

fn place(offset: &[i64], shape: &[i64]) -> Place {
    Place {
        offset: offset.to_vec(),
        shape: shape.to_vec(),
    }
}

#[test]
fn any_allowed_split_gives_the_bits_of_one_device() {
    for preset in common::ADAMW {
        let spec = Spec::preset(preset).unwrap();
        for per_call in [false, true] {
            for nan in [false, true] {
                // Rows, evenly and unevenly, one shard empty.
                let rows = [
                    place(&[0, 0], &[37, 300]),
                    place(&[37, 0], &[0, 300]),
                    place(&[37, 0], &[30, 300]),
                ];
                // With a NaN, block-wise states skip one block in both, rank-1 the whole tensor.
                check(&spec, &[67, 300], &rows, per_call, nan);
            }
        }
        // A 2-D mesh that cuts the last axis at a block's end.
        let mesh = [
            place(&[0, 0], &[20, 256]),
            place(&[0, 256], &[20, 300]),
            place(&[20, 0], &[13, 256]),
            place(&[20, 256], &[13, 300]),
        ];
        check(&spec, &[33, 556], &mesh, false, false);
        // Short rows are merged: a cut where a block ends.
        check(
            &spec,
            &[300, 64],
            &[place(&[0, 0], &[100, 64]), place(&[100, 0], &[200, 64])],
            false,
            false,
        );
        check(
            &spec,
            &[6, 5, 7, 40],
            &[
                place(&[0, 0, 0, 0], &[2, 5, 7, 40]),
                place(&[2, 0, 0, 0], &[4, 5, 7, 40]),
            ],
            false,
            false,
        );
    }
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
