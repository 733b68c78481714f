//! A checkpoint of any mesh loads on any other, from one file or several, with equal bits.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]
#![allow(unsafe_code, reason = "checkpoints work on raw buffers")]

mod common;

use std::path::{Path, PathBuf};

use common::{Case, Model, cases};
use lowbit::Variant;
use lowbit::checkpoint::{Checkpoint, merge, split, write_index};
use lowbit::dtype::Dtype;
use lowbit::error::{Result, Status};
use lowbit::plan::TensorInfo;
use lowbit::spec::Spec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn save(model: &Model, path: &Path) {
    // SAFETY: all memory is the model's.
    unsafe {
        model
            .plan
            .save_checkpoint(&model.buffers(), 3, path, 0, None, std::ptr::null_mut())
            .unwrap();
    }
}

fn load(model: &Model, path: &Path) -> Result<()> {
    let state = model.buffers();
    // SAFETY: all memory is the model's.
    unsafe {
        model
            .plan
            .load_checkpoint(path, &state, std::ptr::null_mut())
    }
    .map(drop)
}

/// One tensor of each kind of row: several axes merged, rows of their own, one axis.
const SHAPES: [&[i64]; 5] = [&[24, 40], &[6, 4, 200], &[12, 384], &[1000], &[5]];

fn tensors(case: &Case) -> Vec<TensorInfo> {
    let info = |(i, shape): (usize, &&[i64])| TensorInfo {
        weights: case.weights,
        grad_dtype: case.grad,
        ..TensorInfo::new(format!("layer.{i}"), shape, case.param)
    };
    SHAPES.iter().enumerate().map(info).collect()
}

/// A trained model of one device. The states of shards are its parts: tests/sharding.rs.
fn trained(case: &Case) -> Model {
    let spec = Spec {
        threshold: 8,
        ..case.spec.clone()
    };
    let mut model = Model::new(Variant::Auto, 1, &spec, tensors(case));
    model.fill_params();
    for t in 1..=3 {
        model.fill_grads(t);
        model.run().unwrap();
    }
    model
}

/// Boundaries of `parts` parts of an axis, at multiples of `each`, by numbers from 0 to 99.
fn cuts(extent: i64, each: i64, shares: &[u32]) -> Vec<i64> {
    let mut cuts: Vec<_> = shares
        .iter()
        .map(|share| (extent * i64::from(*share) / 100 / each * each).min(extent))
        .collect();
    cuts.extend([0, extent]);
    cuts.sort_unstable();
    cuts
}

/// The parts of all tensors on every device of a mesh that cuts each along one or two axes.
fn mesh(whole: &[TensorInfo], rows: &[u32], columns: &[u32], block: i64) -> Vec<Vec<TensorInfo>> {
    let count = (rows.len() + 1) * (columns.len() + 1);
    (0..count)
        .map(|device| {
            let (i, j) = (device / (columns.len() + 1), device % (columns.len() + 1));
            let part = |info: &TensorInfo| {
                let mut offset = vec![0; info.shape.len()];
                let mut shape = info.shape.clone();
                // As the shapes above have it for blocks of 128 or less.
                let plans: &[(usize, i64, usize, &[u32])] = match info.shape.as_slice() {
                    [24, 40] => &[(0, 16 * block / 128, i, rows)],
                    [6, 4, 200] => &[(0, 1, i, rows), (1, 1, j, columns)],
                    [12, 384] => &[(0, 1, i, rows), (1, block, j, columns)],
                    [1000] => &[(0, block, j, columns)],
                    // Everywhere.
                    _ => &[],
                };
                for &(axis, each, index, shares) in plans {
                    let cuts = cuts(info.shape[axis], each.max(1), shares);
                    offset[axis] = cuts[index];
                    shape[axis] = cuts[index + 1] - cuts[index];
                }
                TensorInfo {
                    shape,
                    offset: Some(offset),
                    global_shape: Some(info.shape.clone()),
                    ..info.clone()
                }
            };
            whole.iter().map(part).collect()
        })
        .collect()
}

/// Writes `from` on every device of a mesh and the index.
fn write_mesh(from: &Path, folder: &Path, name: &str, devices: Vec<Vec<TensorInfo>>) -> PathBuf {
    let whole = Checkpoint::open(from).unwrap();
    let mut files = Vec::new();
    for (i, tensors) in devices.into_iter().enumerate() {
        // Through memory and not file to file, as a trainer has it.
        let model = Model::of(whole.plan(tensors).unwrap());
        load(&model, from).unwrap();
        let file = folder.join(format!("{name}-{i}.safetensors"));
        save(&model, &file);
        files.push(file);
    }
    let index = folder.join(format!("{name}.json"));
    let list: Vec<_> = files.iter().map(PathBuf::as_path).collect();
    write_index(&list, &index).unwrap();
    index
}

#[test]
fn any_mesh_loads_on_any_mesh() {
    let all = cases();
    let kinds = [
        "adamw4/f32",
        "factor4-last-two",
        "adafactor",
        "sm3",
        "row",
        "column",
        "tensor",
        "bits2",
        "dither",
        "weights-remainder16",
        "weights-master-bf16",
        "weights-correction8",
        "amsgrad",
        "adamw32/f32",
    ];
    let models: Vec<_> = kinds
        .iter()
        .map(|name| trained(all.iter().find(|case| case.name == *name).unwrap()))
        .collect();
    let shares = || prop::collection::vec(0_u32..100, 0..3);
    let strategy = (0..kinds.len(), shares(), shares(), shares(), shares());
    let runs = if std::env::var_os("LOWBIT_LONG").is_some() {
        2000
    } else {
        60
    };
    let config = Config {
        cases: runs,
        failure_persistence: None,
        ..Config::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let mut runner = TestRunner::new(config);
    runner
        .run(&strategy, |(kind, rows, columns, rows2, columns2)| {
            let model = &models[kind];
            let folder = tempfile::tempdir_in(&folder).unwrap();
            let whole = folder.path().join("whole.safetensors");
            save(model, &whole);
            let infos: Vec<_> = model
                .plan
                .tensors()
                .iter()
                .map(|t| t.info.clone())
                .collect();
            let block = model.plan.tensors()[0].grid.block;
            let one = mesh(&infos, &rows, &columns, block);
            let two = mesh(&infos, &rows2, &columns2, block);
            // Whole to the first mesh, to the second, and back.
            let first = write_mesh(&whole, folder.path(), "first", one);
            let second = write_mesh(&first, folder.path(), "second", two);
            let back = Model::new(Variant::Auto, 1, model.plan.spec(), infos);
            load(&back, &second).unwrap();
            prop_assert!(back.state == model.state, "{}", kinds[kind]);
            let merged = folder.path().join("merged.safetensors");
            merge(&Checkpoint::open(&second).unwrap(), &merged, None).unwrap();
            let bytes = std::fs::read(&whole).unwrap();
            prop_assert!(std::fs::read(merged).unwrap() == bytes, "{}", kinds[kind]);
            Ok(())
        })
        .unwrap();
    println!("{runs} pairs of meshes");
}

#[test]
fn split_parts_merge_again() {
    let folder = tempfile::tempdir().unwrap();
    let case = &cases()[3];
    let model = trained(case);
    let whole = folder.path().join("whole.safetensors");
    save(&model, &whole);
    let from = Checkpoint::open(&whole).unwrap();
    for (axis, parts) in [(0, 1), (0, 3), (1, 4), (2, 2), (7, 2)] {
        let index = folder.path().join(format!("split {axis} ä.json"));
        let files = split(&from, axis, parts, &index, None).unwrap();
        assert_eq!(files.len(), parts);
        let shards = Checkpoint::open(&index).unwrap();
        let back = folder.path().join("back");
        merge(&shards, &back, None).unwrap();
        assert!(std::fs::read(&back).unwrap() == std::fs::read(&whole).unwrap());
        // One file of a split is a checkpoint of its shards.
        Checkpoint::open(&files[0]).unwrap().verify(None).unwrap();
    }
    let error = split(&from, 0, 0, &folder.path().join("x"), None).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
}

#[test]
fn sets_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained(&cases()[3]);
    let at = |name: &str| folder.path().join(name);
    save(&model, &at("whole"));
    let from = Checkpoint::open(&at("whole")).unwrap();
    let files = split(&from, 0, 2, &at("a.json"), None).unwrap();
    let index = |files: &[&Path], word: &str| {
        let error = write_index(files, &at("b.json")).unwrap_err();
        assert_eq!(error.status(), Status::FormatMismatch, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(!at("b.json").exists());
    };
    index(&[&files[0]], "is in no file");
    index(&[], "without files");
    // A file twice adds nothing, and does no harm.
    write_index(&[&files[0], &files[1], &files[0]], &at("twice.json")).unwrap();
    load(&model, &at("twice.json")).unwrap();
    // A shard of another step.
    let state = model.buffers();
    // SAFETY: all memory is the model's.
    unsafe {
        model
            .plan
            .save_checkpoint(&state, 4, &at("later"), 0, None, std::ptr::null_mut())
            .unwrap();
    }
    let later = Checkpoint::open(&at("later")).unwrap();
    let later = split(&later, 0, 2, &at("later.json"), None).unwrap();
    index(&[&files[0], &later[1]], "step");
    // Shards that disagree about maxima: those of another training.
    let mut other = trained(&cases()[3]);
    other.fill_grads(9);
    other.run().unwrap();
    save(&other, &at("other"));
    let other = Checkpoint::open(&at("other")).unwrap();
    let other = split(&other, 0, 2, &at("other.json"), None).unwrap();
    index(&[&files[0], &other[1]], "disagree");
    // The index knows its files: one that was replaced is seen.
    std::fs::copy(&later[0], &files[0]).unwrap();
    let error = Checkpoint::open(&at("a.json")).unwrap_err();
    assert_eq!(error.status(), Status::FormatMismatch, "{error}");
    assert!(error.to_string().contains("index"), "{error}");
    // An index is for files beside it.
    std::fs::create_dir(at("sub")).unwrap();
    let error = write_index(&[&later[0], &later[1]], &at("sub/index.json")).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument, "{error}");
}

#[test]
fn some_tensors_of_a_checkpoint_load_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let whole = trained(&cases()[3]);
    let path = folder.path().join("whole");
    save(&whole, &path);
    let infos: Vec<_> = whole.plan.tensors()[1..3]
        .iter()
        .map(|t| t.info.clone())
        .collect();
    let some = Model::new(Variant::Auto, 1, whole.plan.spec(), infos);
    let error = load(&some, &path).unwrap_err();
    assert_eq!(error.status(), Status::FormatMismatch, "{error}");
    let from = Checkpoint::open(&path).unwrap();
    // SAFETY: all memory is the model's.
    unsafe {
        some.plan
            .read_checkpoint(&from, &some.buffers(), true, None, std::ptr::null_mut())
            .unwrap();
    }
    let first = whole.plan.tensors()[1].first_buffer;
    assert!(some.state[..] == whole.state[first..first + some.state.len()]);
}

#[test]
fn slices_are_slices_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["adamw4/f32", "dither", "factor4", "sm3", "bits2", "row"] {
        let case = cases().into_iter().find(|case| case.name == name).unwrap();
        let model = trained(&case);
        let path = folder.path().join("whole");
        save(&model, &path);
        let from = Checkpoint::open(&path).unwrap();
        split(&from, 0, 3, &folder.path().join("index.json"), None).unwrap();
        let shards = Checkpoint::open(&folder.path().join("index.json")).unwrap();
        for (number, state) in model.plan.spec().states().iter().enumerate() {
            let whole = model.decompress(number);
            for (tensor, offset, shape) in [
                (0, &[5, 3][..], &[7, 30][..]),
                (0, &[0, 0], &[24, 40]),
                (1, &[2, 1, 3], &[3, 2, 190]),
                (2, &[11, 100], &[1, 200]),
                (2, &[11, 100], &[0, 200]),
                (3, &[999], &[1]),
                (4, &[0], &[5]),
            ] {
                let extents = &model.plan.tensors()[tensor].info.shape;
                let name = format!("layer.{tensor}");
                let expected: Vec<_> = whole[tensor]
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| {
                        let mut rest = *i as i64;
                        (0..extents.len()).rev().all(|axis| {
                            let index = rest % extents[axis];
                            rest /= extents[axis];
                            (offset[axis]..offset[axis] + shape[axis]).contains(&index)
                        })
                    })
                    .map(|(_, value)| value.to_bits())
                    .collect();
                for from in [&from, &shards] {
                    let found = from.values(&name, state, offset, shape).unwrap();
                    let found: Vec<_> = found.iter().map(|value| value.to_bits()).collect();
                    assert_eq!(found, expected, "{} {name} {state} {offset:?}", case.name);
                }
            }
        }
        for (tensor, state, offset, shape) in [
            ("layer.9", "m", &[0][..], &[1][..]),
            ("layer.3", "z", &[0], &[1]),
            ("layer.3", "m", &[0], &[1001]),
            ("layer.3", "m", &[-1], &[1]),
            ("layer.3", "m", &[i64::MAX], &[i64::MAX]),
            ("layer.3", "m", &[0, 0], &[1, 1]),
        ] {
            let state = if name == "sm3" && state == "m" {
                "v"
            } else {
                state
            };
            let error = from.values(tensor, state, offset, shape).unwrap_err();
            assert_eq!(error.status(), Status::InvalidArgument, "{error}");
        }
    }
}

#[test]
fn dtypes_of_parameters_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained(&cases()[3]);
    let path = folder.path().join("whole");
    save(&model, &path);
    let infos: Vec<_> = model
        .plan
        .tensors()
        .iter()
        .map(|t| TensorInfo {
            param_dtype: Dtype::Bf16,
            ..t.info.clone()
        })
        .collect();
    let other = Model::new(Variant::Auto, 1, model.plan.spec(), infos);
    load(&other, &path).unwrap();
    assert!(other.state == model.state);
}
