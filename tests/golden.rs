//! Files of format 1 that never change, and files that every version refuses.
//!
//! `LOWBIT_BLESS=1 cargo test --test golden` writes those that are missing, and never touches one that
//! is there.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]
#![allow(unsafe_code, reason = "checkpoints work on raw buffers")]

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use common::{Case, Model, cases};
use lowbit::Variant;
use lowbit::checkpoint::{Checkpoint, merge, split};
use lowbit::dtype::Dtype;
use lowbit::error::Result;
use lowbit::plan::TensorInfo;
use lowbit::weights::Weights;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn blessing() -> bool {
    std::env::var_os("LOWBIT_BLESS").is_some()
}

/// Of every rank, with tails, empty, below the threshold and above.
fn golden_tensors(case: &Case) -> Vec<TensorInfo> {
    let shapes: [&[i64]; 8] = [
        &[],
        &[1],
        &[200],
        &[20, 33],
        &[3, 2, 5, 7],
        &[4, 160],
        &[0, 4],
        &[6, 64],
    ];
    let info = |(i, shape): (usize, &&[i64])| TensorInfo {
        grad_dtype: case.grad,
        weights: case.weights,
        ..TensorInfo::new(format!("t{i}"), shape, case.param)
    };
    shapes.iter().enumerate().map(info).collect()
}

/// Writes what is missing of the goldens.
fn bless() {
    let v1 = folder("v1");
    let mut written = Vec::new();
    for mut case in cases() {
        let name = format!("{}.safetensors", case.name.replace('/', "-"));
        written.push(name.clone());
        if v1.join(&name).exists() {
            continue;
        }
        case.spec.threshold = 64;
        case.spec.seed = 0x0123_4567_89ab_cdef;
        let mut model = Model::new(Variant::Auto, 2, &case.spec, golden_tensors(&case));
        model.fill_params();
        for t in 1..=3 {
            model.fill_grads(t);
            model.run().unwrap();
        }
        // SAFETY: all memory is the model's.
        unsafe {
            model
                .plan
                .save_checkpoint(
                    &model.buffers(),
                    3,
                    &v1.join(name),
                    0,
                    None,
                    std::ptr::null_mut(),
                )
                .unwrap();
        }
    }
    for (name, axis, parts) in [("adamw4-f32", 0, 3), ("dither", 1, 2), ("factor4", 0, 2)] {
        let index = v1.join(format!("{name}-shards.json"));
        if !index.exists() {
            let whole = Checkpoint::open(&v1.join(format!("{name}.safetensors"))).unwrap();
            split(&whole, axis, parts, &index, None).unwrap();
        }
    }
    let (mut values, mut manifest) = (String::new(), String::new());
    for path in files(&v1) {
        let name = path.file_name().unwrap().to_str().unwrap();
        writeln!(manifest, "{}  {name}", hash(&std::fs::read(&path).unwrap())).unwrap();
        if name.ends_with(".safetensors") {
            values += &values_of(&path);
        }
    }
    std::fs::write(v1.join("values.txt"), values).unwrap();
    std::fs::write(v1.join("SHA256SUMS"), manifest).unwrap();
}

/// The checkpoints and indices of a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut list: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end != "txt"))
        .collect();
    list.sort();
    list
}

fn hash(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A model with the very tensors of a file, and its states.
fn load(path: &Path) -> (Model, i64) {
    let from = Checkpoint::open(path).unwrap();
    let tensors = from.tensors().into_iter().map(|info| {
        let (offset, shape) = from.places(&info.name).remove(0);
        TensorInfo {
            shape,
            offset: Some(offset),
            global_shape: Some(info.shape.clone()),
            ..info
        }
    });
    let model = Model::of(from.plan(tensors.collect()).unwrap());
    // SAFETY: all memory is the model's.
    let info = unsafe {
        model
            .plan
            .read_checkpoint(&from, &model.buffers(), false, None, std::ptr::null_mut())
            .unwrap()
    };
    (model, info.step)
}

/// Lines of values.txt.
fn values_of(path: &Path) -> String {
    let (model, _) = load(path);
    let mut text = String::new();
    let decoded: Vec<_> = (0..model.plan.spec().states().len())
        .map(|state| model.decompress(state))
        .collect();
    for (i, tensor) in model.plan.tensors().iter().enumerate() {
        for (values, state) in decoded.iter().zip(&tensor.states) {
            let bytes: Vec<_> = values[i].iter().flat_map(|x| x.to_le_bytes()).collect();
            let file = path.file_name().unwrap().to_str().unwrap();
            let (name, state, hash) = (&tensor.info.name, state.name, hash(&bytes));
            writeln!(text, "{file} {name} {state} {hash}").unwrap();
        }
    }
    text
}

#[test]
fn goldens_read_and_are_what_is_written_today() {
    let v1 = folder("v1");
    if blessing() {
        bless();
    }
    let manifest = std::fs::read_to_string(v1.join("SHA256SUMS")).unwrap();
    let expected = std::fs::read_to_string(v1.join("values.txt")).unwrap();
    let (mut values, mut specs, mut count) = (String::new(), Vec::new(), 0);
    for line in manifest.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        let path = v1.join(name);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(hash(&bytes), sum, "{name}: goldens are never changed");
        count += 1;
        let from = Checkpoint::open(&path).unwrap();
        from.verify(None).unwrap();
        if !name.ends_with(".safetensors") {
            continue;
        }
        let (model, step) = load(&path);
        let mut written = Vec::new();
        // SAFETY: all memory is the model's.
        unsafe {
            model
                .plan
                .write_checkpoint(
                    &model.buffers(),
                    step,
                    &mut written,
                    None,
                    std::ptr::null_mut(),
                )
                .unwrap();
        }
        assert!(written == bytes, "{name} is written otherwise now");
        values += &values_of(&path);
        specs.push(from.spec().to_json().unwrap());
    }
    assert!(values == expected, "values differ from values.txt");
    assert_eq!(
        files(&v1).len(),
        count,
        "files without a line in SHA256SUMS"
    );
    let all = specs.concat();
    let mut wanted: BTreeSet<String> = ["adamw", "adam", "sgdm", "lion", "adafactor", "sm3"]
        .map(|optimizer| format!("\"optimizer\":\"{optimizer}\""))
        .into();
    for normalization in ["block", "rank1", "tensor", "row", "column", "factored"] {
        wanted.insert(format!("\"normalization\":\"{normalization}\""));
    }
    wanted.extend((2..=8).chain([32]).map(|bits| format!("\"bits\":{bits}")));
    for word in &wanted {
        assert!(all.contains(word), "no golden has {word}");
    }
    println!("{count} goldens");
}

#[test]
fn shards_merge_into_the_whole_file() {
    let v1 = folder("v1");
    let out = tempfile::tempdir().unwrap();
    for name in ["adamw4-f32", "dither", "factor4"] {
        let shards = Checkpoint::open(&v1.join(format!("{name}-shards.json"))).unwrap();
        let merged = out.path().join(name);
        merge(&shards, &merged, None).unwrap();
        let whole = std::fs::read(v1.join(format!("{name}.safetensors"))).unwrap();
        assert!(std::fs::read(merged).unwrap() == whole, "{name}");
    }
}

// --- malformed files -----------------------------------------------------------------------------

/// A small sound file, taken apart.
struct Parts {
    header: Value,
    data: Vec<u8>,
}

impl Parts {
    fn sound() -> Self {
        let bytes =
            std::fs::read(folder("v1/adamw4-f32-shards-00002-of-00003.safetensors")).unwrap();
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        Self {
            header: serde_json::from_slice(&bytes[8..end]).unwrap(),
            data: bytes[end..].to_vec(),
        }
    }

    fn meta(&self) -> Value {
        let text = self.header["__metadata__"]["lowbit"].as_str().unwrap();
        serde_json::from_str(text).unwrap()
    }

    fn with_meta(mut self, change: impl FnOnce(&mut Value)) -> Self {
        let mut meta = self.meta();
        change(&mut meta);
        self.header["__metadata__"]["lowbit"] = json!(meta.to_string());
        self
    }

    fn with_header(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.header);
        self
    }

    /// A file whose header has the right checksum, where there is a place for it.
    fn file(mut self) -> Vec<u8> {
        let mut json = self.header.to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json);
        let offsets = &self.header["lowbit/crc32"]["data_offsets"];
        if let Some(start) = offsets[0].as_u64() {
            let sum = crc32fast::hash(&bytes).to_le_bytes();
            if let Some(place) = self.data.get_mut(start as usize..start as usize + 4) {
                place.copy_from_slice(&sum);
            }
        }
        bytes.extend(self.data);
        bytes
    }
}

/// Name, status, and the bytes: what `tests/golden/bad` has.
fn malformed() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let sound = || Parts::sound().file();
    let meta = |change: fn(&mut Value)| Parts::sound().with_meta(change).file();
    let header = |change: fn(&mut Value)| Parts::sound().with_header(change).file();
    let text = |json: &str| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes
    };
    let flipped = |at: fn(&[u8]) -> usize| {
        let mut bytes = sound();
        let at = at(&bytes);
        bytes[at] ^= 1;
        bytes
    };
    let data_start = |bytes: &[u8]| 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    const FIRST: &str = "t1/m/value";
    const CODES: &str = "t2/m/codes";
    let index = |files: &Value| json!({"lowbit_index": 1, "step": 3, "files": files});
    let listed = |name: &str, crc32: u32| json!({"name": name, "crc32": crc32});
    let shard = |part: u32| {
        let name = format!("../v1/adamw4-f32-shards-{part:05}-of-00003.safetensors");
        std::fs::read(folder("bad").join(name)).unwrap()
    };
    let sum = |bytes: &[u8]| crc32fast::hash(&bytes[..data_start(bytes)]);
    vec![
        ("empty", "FORMAT_TRUNCATED", vec![]),
        ("seven-bytes", "FORMAT_TRUNCATED", vec![8; 7]),
        (
            "zip",
            "FORMAT_MAGIC",
            b"PK\x03\x04 some other file".to_vec(),
        ),
        ("length-absurd", "FORMAT_MAGIC", vec![0xff; 64]),
        ("length-beyond-the-file", "FORMAT_TRUNCATED", {
            let mut bytes = sound();
            bytes.truncate(100);
            bytes
        }),
        ("header-no-json", "FORMAT_CORRUPT", text("{not json}")),
        ("header-no-utf8", "FORMAT_CORRUPT", {
            let mut bytes = text("{\"a\": \"..\"}");
            bytes[15] = 0xff;
            bytes
        }),
        ("header-a-list", "FORMAT_CORRUPT", text("[[[[]]]]")),
        (
            "header-nested-deeply",
            "FORMAT_CORRUPT",
            text(&"[".repeat(1000)),
        ),
        ("of-another-program", "FORMAT_MAGIC", text("{}      ")),
        (
            "metadata-no-json",
            "FORMAT_CORRUPT",
            text(r#"{"__metadata__":{"lowbit":"{not json}"}}"#),
        ),
        (
            "metadata-no-format",
            "FORMAT_CORRUPT",
            text(r#"{"__metadata__":{"lowbit":"{}"}}"#),
        ),
        (
            "future",
            "FORMAT_VERSION",
            meta(|meta| meta["format"] = json!(2)),
        ),
        (
            "format-0",
            "FORMAT_VERSION",
            meta(|meta| meta["format"] = json!(0)),
        ),
        ("no-checksums", "FORMAT_CORRUPT", {
            let mut parts = Parts::sound();
            let entry = parts.header.as_object_mut().unwrap().remove("lowbit/crc32");
            let start = entry.unwrap()["data_offsets"][0].as_u64().unwrap();
            parts.data.truncate(start as usize);
            parts.file()
        }),
        (
            "checksums-elsewhere",
            "FORMAT_CORRUPT",
            header(|header| {
                let map = header.as_object_mut().unwrap();
                let entry = map.remove("lowbit/crc32").unwrap();
                map.insert("crc".to_owned(), entry);
            }),
        ),
        (
            "checksum-of-the-header",
            "FORMAT_CORRUPT",
            flipped(|bytes| {
                let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
                let json: Value = serde_json::from_slice(&bytes[8..start]).unwrap();
                start + json["lowbit/crc32"]["data_offsets"][0].as_u64().unwrap() as usize
            }),
        ),
        (
            "checksum-of-an-entry",
            "FORMAT_CORRUPT",
            flipped(|bytes| bytes.len() - 1),
        ),
        (
            "data-altered",
            "FORMAT_CORRUPT",
            flipped(|bytes| 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize),
        ),
        ("data-truncated", "FORMAT_TRUNCATED", {
            let mut bytes = sound();
            bytes.pop();
            bytes
        }),
        ("data-followed", "FORMAT_CORRUPT", {
            let mut bytes = sound();
            bytes.push(0);
            bytes
        }),
        ("entry-missing", "FORMAT_CORRUPT", {
            header(|header| {
                header.as_object_mut().unwrap().remove(CODES);
            })
        }),
        (
            "entry-renamed",
            "FORMAT_CORRUPT",
            header(|header| {
                let map = header.as_object_mut().unwrap();
                let entry = map.remove(CODES).unwrap();
                map.insert("t2/m/code".to_owned(), entry);
            }),
        ),
        (
            "entry-of-another-type",
            "FORMAT_CORRUPT",
            header(|header| header[CODES]["dtype"] = json!("I8")),
        ),
        (
            "entry-of-another-shape",
            "FORMAT_CORRUPT",
            header(|header| {
                let shape = header[CODES]["shape"].as_array_mut().unwrap();
                shape.insert(0, json!(1));
            }),
        ),
        (
            "entry-of-another-size",
            "FORMAT_CORRUPT",
            header(|header| header[CODES]["shape"] = json!([1])),
        ),
        (
            "entry-with-a-shape-that-overflows",
            "FORMAT_CORRUPT",
            header(|header| header[CODES]["shape"] = json!([1_u64 << 40, 1_u64 << 40])),
        ),
        (
            "entries-with-a-hole",
            "FORMAT_CORRUPT",
            header(|header| {
                let end = header[CODES]["data_offsets"][1].as_u64().unwrap();
                header[CODES]["data_offsets"][1] = json!(end - 1);
            }),
        ),
        (
            "entries-that-overlap",
            "FORMAT_CORRUPT",
            header(|header| {
                let start = header[CODES]["data_offsets"][0].as_u64().unwrap();
                header[CODES]["data_offsets"][0] = json!(start - 1);
            }),
        ),
        (
            "entries-in-another-order",
            "FORMAT_CORRUPT",
            header(|header| {
                let (a, b) = (header[FIRST].clone(), header["t1/v/value"].clone());
                header[FIRST] = b;
                header["t1/v/value"] = a;
            }),
        ),
        (
            "metadata-with-an-unknown-key",
            "OK",
            meta(|meta| meta["later"] = json!([1])),
        ),
        (
            "step-negative",
            "FORMAT_CORRUPT",
            meta(|meta| meta["step"] = json!(-1)),
        ),
        ("step-missing", "FORMAT_CORRUPT", {
            meta(|meta| {
                meta.as_object_mut().unwrap().remove("step");
            })
        }),
        (
            "spec-of-the-future",
            "UNSUPPORTED",
            meta(|meta| meta["spec"]["optimizer"] = json!("adamw9")),
        ),
        (
            "spec-that-is-refused",
            "FORMAT_CORRUPT",
            meta(|meta| meta["spec"]["threshold"] = json!(-1)),
        ),
        (
            "spec-of-other-states",
            "FORMAT_CORRUPT",
            meta(|meta| meta["spec"]["m"]["bits"] = json!(8)),
        ),
        (
            "tables-altered",
            "FORMAT_CORRUPT",
            meta(|meta| meta["tables"][0][0] = json!(-0.875)),
        ),
        (
            "row-axis-altered",
            "FORMAT_CORRUPT",
            meta(|meta| meta["tensors"][3]["row_axis"] = json!(1)),
        ),
        (
            "states-missing",
            "FORMAT_CORRUPT",
            meta(|meta| meta["tensors"][3]["states"] = json!([])),
        ),
        (
            "tensor-twice",
            "FORMAT_CORRUPT",
            meta(|meta| meta["tensors"][2]["name"] = json!("t1")),
        ),
        (
            "tensor-missing",
            "FORMAT_CORRUPT",
            meta(|meta| {
                meta["tensors"].as_array_mut().unwrap().pop();
            }),
        ),
        (
            "shape-negative",
            "FORMAT_CORRUPT",
            meta(|meta| meta["tensors"][2]["shape"] = json!([-200])),
        ),
        (
            "shape-that-overflows",
            "FORMAT_CORRUPT",
            meta(|meta| {
                let huge = json!([i64::MAX, i64::MAX]);
                meta["tensors"][2]["shape"] = huge.clone();
                meta["tensors"][2]["global_shape"] = huge;
                meta["tensors"][2]["offset"] = json!([0, 0]);
            }),
        ),
        (
            "shape-huge",
            "FORMAT_CORRUPT",
            meta(|meta| {
                meta["tensors"][2]["shape"] = json!([1_i64 << 57]);
                meta["tensors"][2]["global_shape"] = json!([1_i64 << 57]);
                meta["tensors"][2]["offset"] = json!([0]);
            }),
        ),
        (
            "shape-of-too-many-axes",
            "FORMAT_CORRUPT",
            meta(|meta| {
                let ones = json!(vec![1; 17]);
                meta["tensors"][1]["shape"] = ones.clone();
                meta["tensors"][1]["global_shape"] = ones;
                meta["tensors"][1]["offset"] = json!(vec![0; 17]);
            }),
        ),
        (
            "shard-outside",
            "FORMAT_CORRUPT",
            meta(|meta| meta["tensors"][5]["offset"] = json!([4, 0])),
        ),
        (
            "shard-inside-a-block",
            "FORMAT_CORRUPT",
            meta(|meta| meta["tensors"][2]["offset"] = json!([7])),
        ),
        (
            "weights-without-entries",
            "FORMAT_CORRUPT",
            meta(|meta| meta["tensors"][2]["weights"] = json!("master")),
        ),
        (
            "index-no-json.json",
            "FORMAT_CORRUPT",
            b"{\"lowbit_index\": 1, ".to_vec(),
        ),
        (
            "index-of-the-future.json",
            "FORMAT_VERSION",
            json!({"lowbit_index": 2, "step": 3, "files": []})
                .to_string()
                .into_bytes(),
        ),
        (
            "index-of-nothing.json",
            "FORMAT_MISMATCH",
            index(&json!([])).to_string().into_bytes(),
        ),
        (
            "index-that-leads-out.json",
            "FORMAT_CORRUPT",
            index(&json!([listed("../v1/adamw4-f32.safetensors", 0)]))
                .to_string()
                .into_bytes(),
        ),
        (
            "index-of-a-missing-file.json",
            "IO",
            index(&json!([listed("there-is-none", 0)]))
                .to_string()
                .into_bytes(),
        ),
        (
            "index-of-another-step.json",
            "FORMAT_MISMATCH",
            json!({"lowbit_index": 1, "step": 4, "files": [
                listed("shard-1-of-3", sum(&shard(1))),
                listed("shard-2-of-3", sum(&shard(2))),
                listed("shard-3-of-3", sum(&shard(3))),
            ]})
            .to_string()
            .into_bytes(),
        ),
        ("shard-1-of-3", "OK", shard(1)),
        ("shard-2-of-3", "OK", shard(2)),
        ("shard-3-of-3", "OK", shard(3)),
        (
            "index-of-other-files.json",
            "FORMAT_MISMATCH",
            index(&json!([listed("shard-1-of-3", 7)]))
                .to_string()
                .into_bytes(),
        ),
        (
            "index-with-a-part-missing.json",
            "FORMAT_MISMATCH",
            index(&json!([
                listed("shard-1-of-3", sum(&shard(1))),
                listed("shard-3-of-3", sum(&shard(3)))
            ]))
            .to_string()
            .into_bytes(),
        ),
    ]
}

/// Opens and verifies.
fn read(path: &Path) -> Result<()> {
    Checkpoint::open(path)?.verify(None)
}

fn name_of(result: &Result<()>) -> String {
    let Err(error) = result else {
        return "OK".to_owned();
    };
    // FormatCorrupt -> FORMAT_CORRUPT.
    let mut name = String::new();
    for letter in format!("{:?}", error.status()).chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[test]
fn malformed_files_have_their_own_status() {
    let bad = folder("bad");
    let table = bad.join("statuses.txt");
    if blessing() {
        let mut lines = String::new();
        for (name, status, bytes) in malformed() {
            if !bad.join(name).exists() {
                std::fs::write(bad.join(name), bytes).unwrap();
            }
            writeln!(lines, "{name} {status}").unwrap();
        }
        std::fs::write(&table, lines).unwrap();
    }
    let lines = std::fs::read_to_string(&table).unwrap();
    for line in lines.lines() {
        let (name, status) = line.split_once(' ').unwrap();
        let result = read(&bad.join(name));
        assert_eq!(name_of(&result), status, "{name}: {result:?}");
    }
    let count = lines.lines().count();
    assert!(count >= 50, "only {count} files");
    assert_eq!(std::fs::read_dir(&bad).unwrap().count(), count + 1);
    println!("{count} files");
}

#[test]
fn a_dtype_is_only_that_of_what_is_kept() {
    // Files do not say the parameters' dtypes: a state of f32 parameters serves bf16 ones.
    let case = Case {
        name: String::new(),
        param: Dtype::Bf16,
        grad: Dtype::F32,
        weights: Weights::Stochastic,
        steps: 0,
        spec: load(&folder("v1/adamw4-f32.safetensors"))
            .0
            .plan
            .spec()
            .clone(),
    };
    let model = Model::new(Variant::Auto, 1, &case.spec, golden_tensors(&case));
    let path = folder("v1/adamw4-f32.safetensors");
    // SAFETY: all memory is the model's.
    let info = unsafe {
        model
            .plan
            .load_checkpoint(&path, &model.buffers(), std::ptr::null_mut())
            .unwrap()
    };
    assert_eq!(info.step, 3);
}
