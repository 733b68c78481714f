//! The command-line tool, as people run it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowbit"));
    command.args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Exit code 0; what it printed.
fn works(arguments: &[&str]) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
    assert!(stderr.is_empty(), "{arguments:?}: {stderr}");
    stdout(&output)
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&works(&[arguments, &["--json"]].concat())).unwrap()
}

/// Another exit code; what it said on standard error.
fn fails(arguments: &[&str], code: i32, word: &str) {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(stderr.contains(word), "{arguments:?}: {stderr}");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn inspect_tells_what_a_checkpoint_has() {
    let file = golden("v1/adamw4-f32.safetensors");
    let text = works(&["inspect", path(&file)]);
    for word in [
        "step 3",
        "t3",
        "[20, 33]",
        "4-bit rank1/linear",
        "B/parameter",
        "x as many",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let found = json(&["inspect", path(&file)]);
    assert_eq!(found["step"], 3);
    assert_eq!(found["tensors"].as_array().unwrap().len(), 8);
    let numel = 1 + 1 + 200 + 20 * 33 + 3 * 2 * 5 * 7 + 4 * 160 + 6 * 64;
    assert_eq!(found["elements"], numel);
    assert_eq!(found["f32_bytes"], 8 * numel);
    let m = &found["tensors"][3]["states"][0];
    let error = m["estimated_error"].as_f64().unwrap();
    // 4 bits of a dynamic exponent: some per cent.
    assert!((0.01..0.5).contains(&error), "{m}");
    assert_eq!(m["nonfinite"], 0);
    assert!(found["tensors"][0]["states"][0]["estimated_error"].is_null());
    let headers = json(&["inspect", "--headers", path(&file)]);
    assert_eq!(headers["state_bytes"], found["state_bytes"]);
    assert!(headers["tensors"][3]["states"][0].get("rms").is_none());
    let shards = json(&["inspect", path(&golden("v1/adamw4-f32-shards.json"))]);
    assert_eq!(
        (&shards["files"], &shards["elements"]),
        (&3.into(), &found["elements"])
    );
    let weights = works(&[
        "inspect",
        path(&golden("v1/weights-master-bf16.safetensors")),
    ]);
    assert!(weights.contains("master"), "{weights}");
}

#[test]
fn verify_looks_at_every_file() {
    let good = golden("v1/lion.safetensors");
    let bad = golden("bad/data-altered");
    assert!(works(&["verify", path(&good)]).contains("sound"));
    fails(&["verify", path(&good), path(&bad)], 3, "checksum");
    let output = run(&["verify", path(&bad), path(&good), "--json"]);
    let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(found["files"][0]["status"], "FormatCorrupt");
    assert_eq!(found["files"][1]["sound"], true);
    fails(&["verify", "/nowhere/x"], 3, "/nowhere/x");
}

#[test]
fn split_merge_index_and_diff() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let whole = golden("v1/adamw4-f32.safetensors");
    let whole = path(&whole);
    let written = json(&[
        "split",
        whole,
        &at("ä b.json"),
        "--parts",
        "2",
        "--axis",
        "0",
    ]);
    assert_eq!(written["written"].as_array().unwrap().len(), 3);
    works(&["merge", &at("ä b.json"), &at("merged")]);
    assert!(std::fs::read(at("merged")).unwrap() == std::fs::read(whole).unwrap());
    works(&[
        "index",
        &at("again.json"),
        &at("ä b-00002-of-00002.safetensors"),
        &at("ä b-00001-of-00002.safetensors"),
    ]);
    assert!(works(&["diff", &at("again.json"), whole]).contains("equal"));
    fails(
        &[
            "index",
            &at("half.json"),
            &at("ä b-00002-of-00002.safetensors"),
        ],
        3,
        "is in no file",
    );

    let other = golden("v1/adamw4-block-f32.safetensors");
    let output = run(&["diff", whole, path(&other), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(
        (&found["equal"], &found["same_spec"]),
        (&false.into(), &false.into())
    );
    // m is kept alike in both; v is not.
    let differences = found["differences"].as_array().unwrap();
    assert!(!differences.is_empty());
    assert!(
        differences.iter().all(|line| line["state"] == "v"),
        "{found}"
    );
    let output = run(&["diff", whole, path(&other)]);
    assert!(stdout(&output).contains("the checkpoints differ"));
}

#[test]
fn convert_says_what_it_loses() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let from = golden("v1/adamw32-f32.safetensors");
    let found = json(&["convert", path(&from), &at("eight"), "--spec", "adamw8"]);
    let states = found["states"].as_array().unwrap();
    // Below the threshold nothing is lost.
    assert!(
        states.iter().all(|state| state["relative_error"] == 0.0),
        "{found}"
    );
    let spec = r#"{"optimizer":"adamw","threshold":100,
        "m":{"bits":8,"normalization":"block","mapping":"de"},
        "v":{"bits":8,"normalization":"block","mapping":"de"}}"#;
    std::fs::write(at("spec.json"), spec).unwrap();
    let found = json(&[
        "convert",
        path(&from),
        &at("eight"),
        "--spec",
        &format!("@{}", at("spec.json")),
    ]);
    let states = found["states"].as_array().unwrap();
    let errors = states
        .iter()
        .map(|state| state["relative_error"].as_f64().unwrap());
    let largest = errors.fold(0.0, f64::max);
    assert!(largest > 0.0 && largest < 0.02, "{largest}");
    works(&["verify", &at("eight")]);
    let text = works(&["convert", path(&from), &at("lion"), "--spec", "lion4"]);
    assert!(text.contains("wrote"), "{text}");
    fails(
        &["convert", path(&from), &at("x"), "--spec", "adamw9"],
        3,
        "adamw9",
    );
    fails(
        &["convert", path(&from), &at("x"), "--spec", "@/nowhere"],
        3,
        "/nowhere",
    );
    assert!(!Path::new(&at("x")).exists());
}

#[test]
fn wrong_command_lines_say_so() {
    assert!(works(&["--help"]).contains("usage: lowbit"));
    assert!(works(&["--version"]).starts_with("lowbit "));
    fails(&[], 2, "no command");
    fails(&["inspekt"], 2, "inspekt");
    fails(&["inspect"], 2, "0 paths");
    fails(&["inspect", "a", "b"], 2, "2 paths");
    fails(&["merge", "a", "b", "--parts", "2"], 2, "--parts");
    fails(&["split", "a", "b"], 2, "--parts");
    fails(&["split", "a", "b", "--parts", "many"], 2, "many");
    fails(&["convert", "a", "b"], 2, "--spec");
    fails(&["verify", "a", "--fast"], 2, "--fast");
}
