//! Bytes that nobody should trust: every truncation and every flip of a header is refused without a
//! crash, without large allocations, and without a state. And what happens where memory ends.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]
#![allow(unsafe_code, reason = "an allocator, and checkpoints of raw buffers")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};

use common::Model;
use lowbit::Variant;
use lowbit::checkpoint::{Checkpoint, split};
use lowbit::dtype::Dtype;
use lowbit::error::{Result, Status};
use lowbit::plan::TensorInfo;
use lowbit::spec::Spec;
use lowbit::state::State;

/// Counts the bytes in use and their peak on each thread; refuses what is larger than a limit, and what
/// would exceed a budget.
struct Counting;

/// What does not grow with the input (a context, an error's text) may exceed the budget a little:
/// allocations of at most `SMALL` bytes, by `SPARE` bytes.
const SMALL: usize = 1 << 11;
const SPARE: usize = 1 << 14;

thread_local! {
    static USED: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
    static BUDGET: Cell<usize> = const { Cell::new(usize::MAX) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let spare = if layout.size() <= SMALL { SPARE } else { 0 };
        let used = USED.get().wrapping_add(layout.size());
        if layout.size() > LIMIT.get() || used > BUDGET.get().saturating_add(spare) {
            return std::ptr::null_mut();
        }
        USED.set(used);
        PEAK.set(PEAK.get().max(USED.get()));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // Freed by another thread than it came from: this one has used nothing of it.
        USED.set(USED.get().saturating_sub(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Calls `body`; returns the bytes that it had in use at most.
fn peak<T>(body: impl FnOnce() -> T) -> (T, usize) {
    let before = USED.get();
    PEAK.set(before);
    let result = body();
    (result, PEAK.get() - before)
}

/// Calls `body` where no allocation above `limit` bytes works.
fn limited<T>(limit: usize, body: impl FnOnce() -> T) -> T {
    LIMIT.set(limit);
    let result = body();
    LIMIT.set(usize::MAX);
    result
}

/// Calls `body` where no more than `bytes` can be had.
fn budgeted<T>(bytes: usize, body: impl FnOnce() -> T) -> T {
    BUDGET.set(USED.get() + bytes);
    let result = body();
    BUDGET.set(usize::MAX);
    result
}

/// What a reader may have in use for a file of `bytes`: what its JSON may grow to is asked for before it
/// is taken apart, and every tensor's codes have a table.
fn bound(bytes: usize) -> usize {
    24 * bytes + (1 << 16)
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/v1")
        .join(name)
}

fn open_and_verify(bytes: &[u8]) -> Result<()> {
    Checkpoint::of(Box::new(bytes))?.verify(None)
}

fn refused(bytes: &[u8], what: impl Fn() -> String) -> usize {
    refused_within(bound(bytes.len()), bytes, what)
}

fn refused_within(most: usize, bytes: &[u8], what: impl Fn() -> String) -> usize {
    let (result, used) = peak(|| open_and_verify(bytes));
    let Err(error) = result else {
        panic!("{} was accepted", what());
    };
    assert!(
        matches!(
            error.status(),
            Status::FormatMagic
                | Status::FormatVersion
                | Status::FormatTruncated
                | Status::FormatCorrupt
                | Status::Unsupported
        ),
        "{}: {error}",
        what()
    );
    assert!(
        used <= most,
        "{}: {used} bytes were in use for {}",
        what(),
        bytes.len()
    );
    used
}

/// Every golden in the long run, a few in the short one.
fn subjects() -> Vec<PathBuf> {
    if std::env::var_os("LOWBIT_LONG").is_none() {
        return ["adamw4-f32", "factor4", "dither", "weights-master-bf16"]
            .map(|name| golden(&format!("{name}.safetensors")))
            .to_vec();
    }
    let entries = std::fs::read_dir(golden("")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
        .collect()
}

#[test]
fn truncations_and_flips_are_refused() {
    let (mut truncations, mut flips, mut largest) = (0, 0, 0.0_f64);
    for path in subjects() {
        let bytes = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for length in 0..bytes.len() {
            refused(&bytes[..length], || format!("{name}, {length} bytes"));
            truncations += 1;
        }
        let mut altered = bytes.clone();
        // All bits of the length, and one of each other byte in turn; all of them in the long run.
        let long = std::env::var_os("LOWBIT_LONG").is_some();
        for at in 0..bytes.len() {
            let bits = if at < 8 || (long && at < header) {
                0..8
            } else {
                at % 8..at % 8 + 1
            };
            for bit in bits {
                altered[at] ^= 1 << bit;
                let used = refused(&altered, || format!("{name}, bit {bit} of byte {at}"));
                largest = largest.max(used as f64 / bytes.len() as f64);
                altered[at] = bytes[at];
                flips += 1;
            }
        }
        open_and_verify(&bytes).unwrap();
    }
    println!(
        "{truncations} truncations and {flips} flips: 0 accepted, 0 crashes; at most {largest:.1} x \
         the file in use"
    );
}

/// JSON that is short for what it asks.
fn greedy_headers() -> Vec<Vec<u8>> {
    // The checksum is right, so that all of it is read.
    let with = |meta: String| {
        let sums = serde_json::json!({"dtype": "U8", "shape": [1, 4], "data_offsets": [0, 4]});
        let metadata = serde_json::json!({"lowbit": meta});
        let json = serde_json::json!({"__metadata__": metadata, "lowbit/crc32": sums}).to_string();
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        let sum = crc32fast::hash(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    };
    let list = |element: &str| format!("[{}{element}]", format!("{element},").repeat(20_000));
    let spec = |overrides: String| format!(r#"{{"optimizer":"adamw","overrides":{overrides}}}"#);
    let metas = [
        format!(r#""tables":[{}]"#, list("0")),
        format!(r#""tables":{}"#, list("[]")),
        format!(r#""tensors":[{{"shape":{}}}]"#, list("0")),
        format!(
            r#""spec":{},"tables":[],"tensors":[{{"name":"","shape":[],"global_shape":[],"offset":[],
            "row_axis":0,"states":{}}}]"#,
            spec("[]".to_owned()),
            list(r#"{"name":"","kind":"value"}"#)
        ),
        format!(
            r#""spec":{},"tables":[],"tensors":[]"#,
            spec(list(r#"{"match":""}"#))
        ),
        format!(r#""spec":{}"#, spec(list(r#"{"match":"*a?[b]"}"#))),
        format!(r#""unknown":{}"#, list("0")),
        format!(r#""unknown":{}"#, list("{}")),
        format!(r#""unknown":{}{}"#, "[".repeat(20_000), "]".repeat(20_000)),
    ];
    metas
        .map(|meta| with(format!(r#"{{"format":1,"step":0,{meta}}}"#)))
        .to_vec()
}

#[test]
fn headers_that_ask_for_much_get_little() {
    let mut largest = 0.0_f64;
    for (i, bytes) in greedy_headers().iter().enumerate() {
        // Most is asked for ahead, not used.
        let used = refused_within(128 * bytes.len(), bytes, || format!("greedy header {i}"));
        largest = largest.max(used as f64 / bytes.len() as f64);
        // However little there is: a status.
        for part in 1..40 {
            let _ = budgeted(used * part / 40, || open_and_verify(bytes)).unwrap_err();
        }
    }
    println!("greedy headers: at most {largest:.1} x the file asked for");
    for length in [9, 99_999_992, 100_000_000, 100_000_001, u64::MAX] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend([b' '; 64]);
        refused(&bytes, || format!("a length of {length}"));
    }
}

/// Runs out of memory at every size from small to what is asked for.
#[test]
fn without_memory_there_is_a_status() {
    let spec = Spec::preset("adamw4").unwrap();
    let tensors = || vec![TensorInfo::new("w", &[2048, 2048], Dtype::F32)];
    let mut model = Model::new(Variant::Auto, 1, &spec, tensors());
    model.fill_params();
    model.fill_grads(1);
    model.run().unwrap();
    let mut bytes = Vec::new();
    bytes.reserve_exact(8 << 20);
    let state = model.buffers();
    let before = model.state.clone();
    let (mut failed, mut worked) = (0, 0);
    for limit in [
        1 << 16,
        1 << 17,
        1 << 18,
        1 << 19,
        (1 << 20) - 1,
        1 << 20,
        1 << 21,
    ] {
        bytes.clear();
        // SAFETY: all memory is the model's.
        let written = limited(limit, || unsafe {
            model
                .plan
                .write_checkpoint(&state, 1, &mut bytes, None, std::ptr::null_mut())
        });
        // SAFETY: all memory is the model's.
        let read = limited(limit, || {
            let from = Checkpoint::of(Box::new(&bytes[..]))?;
            // SAFETY: all memory is the model's.
            unsafe {
                model
                    .plan
                    .read_checkpoint(&from, &state, false, None, std::ptr::null_mut())
            }
        });
        if limit < 1 << 20 {
            assert_eq!(written.unwrap_err().status(), Status::OutOfMemory);
            // Nothing but a header was written.
            assert_eq!(read.unwrap_err().status(), Status::FormatTruncated);
            failed += 1;
        } else {
            written.unwrap();
            read.unwrap();
            worked += 1;
        }
    }
    for limit in [1 << 16, 1 << 18, (1 << 20) - 1] {
        let read = limited(limit, || {
            let from = Checkpoint::of(Box::new(&bytes[..]))?;
            // SAFETY: all memory is the model's.
            unsafe {
                model
                    .plan
                    .read_checkpoint(&from, &state, false, None, std::ptr::null_mut())
            }
        });
        assert_eq!(read.unwrap_err().status(), Status::OutOfMemory);
        failed += 1;
        let state = limited(limit, || State::new(&model.plan, std::ptr::null_mut()));
        assert_eq!(state.err().unwrap().status(), Status::OutOfMemory);
        failed += 1;
        let values = limited(limit, || {
            Checkpoint::of(Box::new(&bytes[..]))?.values("w", "m", &[0, 0], &[2048, 2048])
        });
        assert_eq!(values.unwrap_err().status(), Status::OutOfMemory);
        failed += 1;
        // A plan of any size takes little.
        let plan = limited(limit, || {
            let huge = vec![TensorInfo::new("w", &[1 << 28, 1 << 28], Dtype::F32)];
            Checkpoint::of(Box::new(&bytes[..])).map(|from| from.plan(huge).map(drop))
        });
        plan.unwrap().unwrap();
    }
    assert!(model.state == before);
    println!("{failed} calls without memory: a status each; {worked} with it");
}

/// Budgets of a sweep.
const PARTS: usize = 100;

/// `body` gives the status wherever memory ends, and works with what it had in use.
fn sweep(what: &str, mut body: impl FnMut() -> Result<()>) {
    body().unwrap();
    let (result, needed) = peak(&mut body);
    result.unwrap();
    for part in 0..PARTS {
        match budgeted(needed * part / PARTS, &mut body) {
            Err(error) => assert_eq!(error.status(), Status::OutOfMemory, "{what}: {error}"),
            Ok(()) => panic!("{what}: worked with {part}/{PARTS} of {needed} bytes"),
        }
    }
    budgeted(needed, &mut body).unwrap();
    println!("{what}: {needed} bytes; a status with any part of them");
}

#[test]
fn wherever_memory_ends_there_is_a_status() {
    let rank1 = r#"{"optimizer":"adamw","amsgrad":true,"threshold":0,
        "m":{"bits":8,"normalization":"rank1","mapping":"de"},
        "v":{"bits":4,"normalization":"rank1","mapping":"linear"}}"#;
    let cases = [
        ("adamw4", Spec::preset("adamw4").unwrap(), vec![70, 64]),
        ("adamw8", Spec::preset("adamw8").unwrap(), vec![70, 64]),
        ("adamw32", Spec::preset("adamw32").unwrap(), vec![]),
        ("factor4", Spec::preset("factor4").unwrap(), vec![70, 64]),
        ("sm3", Spec::preset("sm3").unwrap(), vec![4, 5, 6, 7]),
        ("rank1", Spec::from_json(rank1).unwrap(), vec![1; 16]),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (name, spec, shape) in cases {
        let tensors = || -> Vec<_> {
            (0..if shape.len() > 8 { 20 } else { 200 })
                .map(|i| TensorInfo::new(format!("layers.{i}.weight"), &shape, Dtype::F32))
                .collect()
        };
        let model = Model::new(Variant::Auto, 1, &spec, tensors());
        let (plan, state) = (&model.plan, model.buffers());
        let none = std::ptr::null_mut();
        let mut bytes = Vec::new();
        // SAFETY: all memory is the model's.
        unsafe { plan.write_checkpoint(&state, 1, &mut bytes, None, none) }.unwrap();
        let from = Checkpoint::of(Box::new(&bytes[..])).unwrap();
        // Made before memory ends: two to find out, one for each budget.
        let mut lists: Vec<_> = (0..PARTS + 3).map(|_| tensors()).collect();
        sweep(&format!("{name}: plan"), || {
            from.plan(lists.pop().unwrap()).map(drop)
        });
        sweep(&format!("{name}: header"), || {
            plan.checkpoint_bytes(1).map(drop)
        });
        sweep(&format!("{name}: open and load"), || {
            let from = Checkpoint::of(Box::new(&bytes[..]))?;
            // SAFETY: all memory is the model's.
            unsafe { plan.read_checkpoint(&from, &state, false, None, none) }.map(drop)
        });
        let index = folder.path().join(format!("{name}.json"));
        split(&from, 0, 5, &index, None).unwrap();
        sweep(&format!("{name}: index of 5 files"), || {
            let from = Checkpoint::open(&index)?;
            // SAFETY: all memory is the model's.
            unsafe { plan.read_checkpoint(&from, &state, false, None, none) }.map(drop)
        });
    }
}
