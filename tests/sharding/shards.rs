//! A mesh of processes in one: the same tensors whole and as shards, stepped side by side.

use lowbit::Variant;
use lowbit::dtype::Dtype;
use lowbit::plan::{Reduce, StageInfo, TensorInfo};
use lowbit::spec::Spec;
use lowbit::step::{NonFinite, Stage};

use crate::common::{Memory, Model};

/// A box of a global tensor.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) offset: Vec<i64>,
    pub(crate) shape: Vec<i64>,
}

pub(crate) fn place(offset: &[i64], shape: &[i64]) -> Place {
    Place {
        offset: offset.to_vec(),
        shape: shape.to_vec(),
    }
}

/// One tensor of a split.
pub(crate) struct Split {
    /// The whole.
    pub(crate) info: TensorInfo,
    /// The shape of the whole by which shards describe it: that of `info`, or with axes merged.
    pub(crate) global: Vec<i64>,
    /// What each shard has of it; together everything, once.
    pub(crate) places: Vec<Place>,
}

impl Split {
    pub(crate) fn new(info: TensorInfo, places: &[Place]) -> Self {
        Self {
            global: info.shape.clone(),
            places: places.to_vec(),
            info,
        }
    }
}

/// How a split is stepped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// The places are given with each call; the plan is made for the origin.
    pub(crate) per_call: bool,
    /// The update is handed out instead of added.
    pub(crate) updates: bool,
    /// The first tensor's gradient of this step holds a NaN.
    pub(crate) nan: Option<u64>,
    pub(crate) nonfinite: NonFinite,
}

/// Steps the tensors whole, by the reference, and as shards, and compares parameters (or updates),
/// decoded states and what is kept beside the parameters after every step. Returns how many stages
/// of a step had an all-reduce.
pub(crate) fn check(
    name: &str,
    spec: &Spec,
    steps: u64,
    splits: &[Split],
    manner: Manner,
) -> usize {
    let infos = splits.iter().map(|split| split.info.clone()).collect();
    let mut whole = Model::new(Variant::Reference, 1, spec, infos);
    whole.fill_params();
    let mut shards: Vec<Model> = (0..splits[0].places.len())
        .map(|shard| make_shard(spec, splits, shard, &whole, manner))
        .collect();
    for model in shards.iter_mut().chain([&mut whole]) {
        model.nonfinite = manner.nonfinite;
    }
    if manner.updates {
        whole = whole.with_updates();
        shards = shards.into_iter().map(Model::with_updates).collect();
    }
    for t in 1..=steps {
        whole.fill_grads(t);
        if manner.nan == Some(t) {
            // Ones in all bits are a NaN in every dtype.
            let size = splits[0].info.grad_dtype.size();
            whole.grads[0].as_mut()[..size].fill(0xff);
        }
        for (i, shard) in shards.iter_mut().enumerate() {
            for (j, split) in splits.iter().enumerate() {
                let indices = indices(&split.global, &split.places[i]);
                let bytes = gather(&whole.grads[j], &indices, split.info.grad_dtype.size());
                shard.grads[j].as_mut().copy_from_slice(&bytes);
            }
            shard.step += 1;
        }
        step(&mut shards, splits, manner);
        whole.run().unwrap();
        let states = decoded(&whole);
        for (i, shard) in shards.iter().enumerate() {
            let parts = decoded(shard);
            for (j, split) in splits.iter().enumerate() {
                let (shape, place) = (&split.global, &split.places[i]);
                let at = format!("{name}, {place:?} of {shape:?}, {manner:?}, step {t}");
                let indices = indices(shape, place);
                compare(&whole, shard, j, &indices, &at);
                for (state, (whole, part)) in states.iter().zip(&parts).enumerate() {
                    let want: Vec<_> = indices.iter().map(|i| whole[j][*i]).collect();
                    assert!(want == part[j], "{at}: state {state}");
                }
            }
        }
    }
    whole.plan.stages().len()
}

fn make_shard(spec: &Spec, splits: &[Split], shard: usize, whole: &Model, manner: Manner) -> Model {
    let infos = splits.iter().map(|split| {
        let place = &split.places[shard];
        let axes = split.global.len();
        TensorInfo {
            shape: place.shape.clone(),
            global_shape: Some(split.global.clone()),
            offset: Some(if manner.per_call {
                vec![0; axes]
            } else {
                place.offset.clone()
            }),
            ..split.info.clone()
        }
    });
    let mut model = Model::new(Variant::Auto, 2, spec, infos.collect());
    for (j, split) in splits.iter().enumerate() {
        let indices = indices(&split.global, &split.places[shard]);
        let bytes = gather(&whole.params[j], &indices, split.info.param_dtype.size());
        model.params[j].as_mut().copy_from_slice(&bytes);
    }
    model
}

/// One step of all shards, stage by stage, with an all-reduce after each.
fn step(shards: &mut [Model], splits: &[Split], manner: Manner) {
    let of_shard = |i: usize| -> Vec<Option<&[i64]>> {
        let splits = splits.iter();
        splits
            .map(|split| Some(split.places[i].offset.as_slice()))
            .collect()
    };
    let offsets: Vec<_> = (0..shards.len()).map(of_shard).collect();
    let offsets = |i: usize| manner.per_call.then_some(&offsets[i][..]);
    let stages = shards[0].plan.stages();
    for (stage, info) in stages.into_iter().enumerate() {
        for (i, shard) in shards.iter_mut().enumerate() {
            assert_eq!(shard.plan.stages()[stage], info);
            shard.stage(Stage::Collect(stage), offsets(i)).unwrap();
        }
        all_reduce(shards, info);
    }
    for (i, shard) in shards.iter_mut().enumerate() {
        shard.stage(Stage::Apply, offsets(i)).unwrap();
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

/// The bits of all states, tensor by tensor, as f32.
fn decoded(model: &Model) -> Vec<Vec<Vec<u32>>> {
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    (0..model.plan.spec().states().len())
        .map(|state| model.decompress(state).into_iter().map(bits).collect())
        .collect()
}

/// Compares one tensor of a shard with its part of the whole, but for the states.
fn compare(whole: &Model, shard: &Model, tensor: usize, indices: &[usize], at: &str) {
    let size = whole.plan.tensors()[tensor].info.param_dtype.size();
    let pairs = [
        ("parameters", &whole.params, &shard.params),
        (
            "updates",
            whole.updates.as_ref().unwrap_or(&whole.params),
            shard.updates.as_ref().unwrap_or(&shard.params),
        ),
    ];
    for (what, whole, shard) in pairs {
        let same = gather(&whole[tensor], indices, size) == shard[tensor].as_ref();
        assert!(same, "{at}: {what}");
    }
    let pairs = whole.plan.buffers().iter().zip(&whole.state);
    for (i, (info, memory)) in pairs.enumerate() {
        if info.tensor == tensor && info.state == "weights" {
            let want = gather(memory, indices, info.dtype.size());
            assert!(want == shard.state[i].as_ref(), "{at}: {}", info.part);
        }
    }
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
