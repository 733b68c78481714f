//! Checkpoints: going on is bit-equal to not having stopped; refused bytes change nothing.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]
#![allow(unsafe_code, reason = "checkpoints work on raw buffers")]

mod common;

use common::{Model, tensors};
use lowbit::Variant;
use lowbit::checkpoint::Checkpoint;
use lowbit::dtype::Dtype;
use lowbit::error::{Error, Status};
use lowbit::plan::TensorInfo;
use lowbit::spec::Spec;

fn write(model: &Model, step: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    // SAFETY: all memory is the model's.
    unsafe {
        model.plan.write_checkpoint(
            &model.buffers(),
            step,
            &mut bytes,
            None,
            std::ptr::null_mut(),
        )
    }
    .unwrap();
    assert_eq!(
        bytes.len() as u64,
        model.plan.checkpoint_bytes(step).unwrap()
    );
    bytes
}

fn read(model: &Model, bytes: &[u8]) -> Result<i64, Error> {
    let from = Checkpoint::of(Box::new(bytes))?;
    // SAFETY: all memory is the model's.
    let info = unsafe {
        model
            .plan
            .read_checkpoint(&from, &model.buffers(), false, None, std::ptr::null_mut())
    }?;
    Ok(info.step)
}

fn trained(preset: &str, list: Vec<TensorInfo>, steps: u64) -> Model {
    let mut model = Model::new(Variant::Auto, 2, &Spec::preset(preset).unwrap(), list);
    model.fill_params();
    go_on(&mut model, 1, steps);
    model
}

fn go_on(model: &mut Model, from: u64, to: u64) {
    for t in from..=to {
        model.fill_grads(t);
        model.run().unwrap();
    }
}

/// Small, with every kind of buffer.
fn small() -> Vec<TensorInfo> {
    vec![
        TensorInfo::new("a", &[70, 80], Dtype::F32),
        TensorInfo::new("b", &[5000], Dtype::Bf16),
        TensorInfo::new("c", &[3, 4], Dtype::F32),
        TensorInfo::new("empty", &[0, 4], Dtype::F32),
    ]
}

#[test]
fn going_on_from_a_file_equals_not_having_stopped() {
    let folder = tempfile::tempdir().unwrap();
    for preset in Spec::PRESETS {
        let mut whole = trained(preset, tensors(Dtype::F32, Dtype::F32), 6);
        let first = trained(preset, tensors(Dtype::F32, Dtype::F32), 3);
        let path = folder.path().join(format!("{preset} ä.safetensors"));
        // SAFETY: all memory is the model's.
        unsafe {
            first
                .plan
                .save_checkpoint(&first.buffers(), 3, &path, 0, None, std::ptr::null_mut())
                .unwrap();
        }
        let mut second = trained(preset, tensors(Dtype::F32, Dtype::F32), 0);
        second.params.clone_from(&first.params);
        // SAFETY: all memory is the model's.
        let info = unsafe {
            second
                .plan
                .load_checkpoint(&path, &second.buffers(), std::ptr::null_mut())
                .unwrap()
        };
        assert_eq!(info.step, 3);
        second.step = 3;
        go_on(&mut second, 4, 6);
        assert!(
            second.params == whole.params && second.state == whole.state,
            "{preset}"
        );
        // And it is the same file again, byte for byte.
        assert_eq!(write(&first, 3), std::fs::read(&path).unwrap());
        go_on(&mut whole, 7, 7);
        assert!(second.state != whole.state);
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(
        left.len(),
        Spec::PRESETS.len(),
        "temporary files were left: {left:?}"
    );
}

#[test]
fn tensors_may_come_in_another_order() {
    let first = trained("adamw4", small(), 2);
    let mut list = small();
    list.reverse();
    let second = trained("adamw4", list, 0);
    assert_eq!(read(&second, &write(&first, 2)).unwrap(), 2);
    for (i, tensor) in first.plan.tensors().iter().enumerate() {
        let j = first.plan.tensors().len() - 1 - i;
        assert_eq!(second.plan.tensors()[j].info.name, tensor.info.name);
        let of = |model: &Model, i: usize| {
            let tensor = &model.plan.tensors()[i];
            model.state[tensor.first_buffer..tensor.first_buffer + tensor.buffer_count].to_vec()
        };
        assert!(of(&first, i) == of(&second, j), "{}", tensor.info.name);
    }
}

#[test]
fn truncation_at_every_byte_is_refused_and_changes_nothing() {
    let bytes = write(&trained("adamw4", small(), 2), 2);
    let target = trained("adamw4", small(), 1);
    let before = target.state.clone();
    for length in 0..bytes.len() {
        let status = read(&target, &bytes[..length]).unwrap_err().status();
        assert!(
            matches!(
                status,
                Status::FormatTruncated | Status::FormatMagic | Status::FormatCorrupt
            ),
            "{length}: {status:?}"
        );
    }
    assert!(target.state == before);
}

#[test]
fn a_flip_of_any_byte_is_refused_and_changes_nothing() {
    let bytes = write(&trained("adamw4", small(), 2), 2);
    let target = trained("adamw4", small(), 1);
    let before = target.state.clone();
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1 << (at % 8);
        assert!(read(&target, &altered).is_err(), "byte {at}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(
        read(&target, &longer).unwrap_err().status(),
        Status::FormatCorrupt
    );
    assert!(target.state == before);
    assert_eq!(read(&target, &bytes).unwrap(), 2);
}

#[test]
fn another_plan_is_named() {
    let bytes = write(&trained("adamw4", small(), 1), 1);
    let refused = |preset: &str, list: Vec<TensorInfo>, word: &str| {
        let error = read(&trained(preset, list, 0), &bytes).unwrap_err();
        assert_eq!(error.status(), Status::FormatMismatch, "{error}");
        assert!(
            error.to_string().contains(word),
            "{error} should contain {word}"
        );
    };
    refused("adamw4-block", small(), "spec");
    let mut list = small();
    list[0].shape = vec![80, 70];
    refused("adamw4", list, "[80, 70]");
    let mut list = small();
    list[1].name = "x".into();
    refused("adamw4", list, "\"x\"");
    let mut list = small();
    list.pop();
    refused("adamw4", list, "4 tensors");
}

#[test]
fn files_of_others_and_of_the_future_have_their_own_status() {
    let target = trained("adamw4", small(), 0);
    let status = |bytes: &[u8]| read(&target, bytes).unwrap_err().status();
    assert_eq!(
        status(b"PK\x03\x04 a zip file, not a checkpoint"),
        Status::FormatMagic
    );
    let with_header = |json: &str| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes
    };
    assert_eq!(status(&with_header("{}")), Status::FormatMagic);
    let future = r#"{"__metadata__":{"lowbit":"{\"format\":2}"}}"#;
    assert_eq!(status(&with_header(future)), Status::FormatVersion);
    assert_eq!(status(&with_header("{not json}")), Status::FormatCorrupt);
}

#[test]
fn a_file_that_cannot_be_written_leaves_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained("adamw4", small(), 1);
    let save = |path: &std::path::Path| {
        // SAFETY: all memory is the model's.
        unsafe {
            model
                .plan
                .save_checkpoint(&model.buffers(), 1, path, 0, None, std::ptr::null_mut())
        }
    };
    let missing = save(&folder.path().join("missing/x")).unwrap_err();
    assert_eq!(missing.status(), Status::Io);
    assert!(missing.to_string().contains("missing"), "{missing}");
    // A folder in the file's place: the rename fails after everything was written.
    let taken = folder.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("kept"), "old").unwrap();
    assert_eq!(save(&taken).unwrap_err().status(), Status::Io);
    assert_eq!(std::fs::read_to_string(taken.join("kept")).unwrap(), "old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
