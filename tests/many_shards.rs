//! A checkpoint of more files than a process may have open.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]
#![allow(unsafe_code, reason = "checkpoints work on raw buffers")]

mod common;

use common::Model;
use lowbit::Variant;
use lowbit::checkpoint::{Checkpoint, merge, split};
use lowbit::dtype::Dtype;
use lowbit::error::Status;
use lowbit::plan::TensorInfo;
use lowbit::spec::Spec;

const SHARDS: usize = 1500;

/// The default of some systems. Four checkpoints are open at a time below.
const MOST_OPEN: u64 = 256;

fn model() -> Model {
    let spec = Spec::preset("adamw4").unwrap();
    // Row and column maxima: the latter are in every shard.
    let tensors = vec![
        TensorInfo::new("w", &[3100, 130], Dtype::F32),
        TensorInfo::new("b", &[64], Dtype::F32),
    ];
    Model::new(Variant::Auto, 1, &spec, tensors)
}

#[test]
fn more_shards_than_open_files() {
    let limit = libc::rlimit {
        rlim_cur: MOST_OPEN,
        rlim_max: MOST_OPEN,
    };
    // SAFETY: a valid struct.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut written = model();
    written.fill_params();
    written.fill_grads(1);
    written.run().unwrap();
    let (plan, none) = (&written.plan, std::ptr::null_mut());
    // SAFETY: all memory is the model's.
    unsafe { plan.save_checkpoint(&written.buffers(), 1, &path("whole"), 0, None, none) }.unwrap();

    let whole = Checkpoint::open(&path("whole")).unwrap();
    let files = split(&whole, 0, SHARDS, &path("many.json"), None).unwrap();
    let many = Checkpoint::open(&path("many.json")).unwrap();
    assert_eq!((files.len(), many.files()), (SHARDS, SHARDS));
    many.verify(None).unwrap();

    // Into one file, on one device, and on another number of shards.
    merge(&many, &path("merged"), None).unwrap();
    split(&many, 0, 7, &path("seven.json"), None).unwrap();
    let seven = Checkpoint::open(&path("seven.json")).unwrap();
    merge(&seven, &path("again"), None).unwrap();
    let bytes = |name| std::fs::read(path(name)).unwrap();
    assert!(bytes("merged") == bytes("whole") && bytes("again") == bytes("whole"));
    let loaded = model();
    let state = loaded.buffers();
    // SAFETY: all memory is the model's.
    unsafe {
        loaded
            .plan
            .load_checkpoint(&path("many.json"), &state, none)
    }
    .unwrap();
    assert!(loaded.state == written.state);

    // The first file was closed meanwhile; another one, even of the same bytes, is not read for it.
    std::fs::copy(&files[0], path("copy")).unwrap();
    std::fs::rename(path("copy"), &files[0]).unwrap();
    let error = many.verify(None).unwrap_err();
    assert_eq!(error.status(), Status::Io);
    assert!(error.to_string().contains("many-00001-of-01500"), "{error}");
    println!("{SHARDS} shards with at most {MOST_OPEN} open files: merged, cut in 7, loaded");
}
