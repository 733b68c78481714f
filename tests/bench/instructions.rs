//! Instructions that a step executes per element, for some kernels and every variant that this
//! processor can run: `cargo bench --bench instructions`. They do not depend on the machine's load,
//! as times do. Linux only: a child process does one step, and its parent counts by single steps.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark"
)]
#![allow(unsafe_code, reason = "ptrace")]

#[path = "../common/mod.rs"]
mod common;

use common::Model;
use lowbit::Variant;
use lowbit::dtype::Dtype;
use lowbit::plan::TensorInfo;
use lowbit::spec::Spec;
use lowbit::weights::Weights;

/// `adamw4-block` and `adamw4` with states rounded at random.
const BLOCK_AT_RANDOM: &str = r#"{"optimizer": "adamw",
    "m": {"bits": 4, "normalization": "block", "mapping": "de", "rounding": "stochastic"},
    "v": {"bits": 4, "normalization": "block", "mapping": "linear", "rounding": "stochastic"}}"#;
const RANK_ONE_AT_RANDOM: &str = r#"{"optimizer": "adamw",
    "m": {"bits": 4, "normalization": "block", "mapping": "de", "rounding": "stochastic"},
    "v": {"bits": 4, "normalization": "rank1", "mapping": "linear", "rounding": "stochastic"}}"#;

/// Kernels with presets, or specs as JSON.
const KERNELS: [(&str, &str, Dtype, Weights); 11] = [
    ("adamw32, f32", "adamw32", Dtype::F32, Weights::Plain),
    (
        "adamw4-block, f32",
        "adamw4-block",
        Dtype::F32,
        Weights::Plain,
    ),
    ("adamw4, f32", "adamw4", Dtype::F32, Weights::Plain),
    (
        "adamw4-block, bf16 rounded at random",
        "adamw4-block",
        Dtype::Bf16,
        Weights::Stochastic,
    ),
    (
        "adamw4-block, f32, states rounded at random",
        BLOCK_AT_RANDOM,
        Dtype::F32,
        Weights::Plain,
    ),
    (
        "adamw4, f32, states rounded at random",
        RANK_ONE_AT_RANDOM,
        Dtype::F32,
        Weights::Plain,
    ),
    (
        "adamw4-robust, f32",
        "adamw4-robust",
        Dtype::F32,
        Weights::Plain,
    ),
    ("adamw8, f32", "adamw8", Dtype::F32, Weights::Plain),
    ("factor4, f32", "factor4", Dtype::F32, Weights::Plain),
    ("sgdm4, f32", "sgdm4", Dtype::F32, Weights::Plain),
    ("lion4, f32", "lion4", Dtype::F32, Weights::Plain),
];

/// Rows of the small tensor, just large enough to be quantized and factored, and of the large one; what a
/// step does once is in both counts. The difference is whole groups of the rows that are taken together.
const ROWS: [i64; 2] = [9, 17];
const COLUMNS: i64 = 1024;

/// Instructions of the second step of a tensor with so many rows.
fn count(variant: Variant, spec: &str, dtype: Dtype, weights: Weights, rows: i64) -> u64 {
    let tensor = TensorInfo {
        weights,
        ..TensorInfo::new("w", &[rows, COLUMNS], dtype)
    };
    let spec = if spec.starts_with('{') {
        Spec::from_json(spec)
    } else {
        Spec::preset(spec)
    };
    let mut model = Model::new(variant, 1, &spec.unwrap(), vec![tensor]);
    model.fill_params();
    model.fill_grads(1);
    model.run().unwrap();
    model.fill_grads(2);
    // SAFETY: the child, of a process with one thread, computes, stops twice and ends; the parent
    // waits for it.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
        if child == 0 {
            let traced = libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
            let stepped = model.run().is_ok();
            libc::raise(libc::SIGSTOP);
            libc::_exit(i32::from(traced != 0 || !stepped));
        }
        let wait = || {
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            assert!(libc::WIFSTOPPED(status), "the child ended: {status:#x}");
            libc::WSTOPSIG(status)
        };
        assert_eq!(wait(), libc::SIGSTOP);
        let mut instructions = 0;
        loop {
            assert_eq!(libc::ptrace(libc::PTRACE_SINGLESTEP, child, 0, 0), 0);
            if wait() == libc::SIGSTOP {
                break;
            }
            instructions += 1;
        }
        libc::ptrace(libc::PTRACE_CONT, child, 0, 0);
        let mut status = 0;
        libc::waitpid(child, &raw mut status, 0);
        assert_eq!(status, 0, "the child's step failed");
        instructions
    }
}

fn main() {
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let variants = [
        ("AVX-512", Variant::Avx512),
        ("AVX2", Variant::Avx2),
        ("portable", Variant::Portable),
    ];
    println!("| instructions per element | AVX-512 | AVX2 | portable |\n|---|--:|--:|--:|");
    for (name, spec, dtype, weights) in KERNELS {
        if wanted.as_ref().is_some_and(|part| !name.contains(part)) {
            continue;
        }
        let mut line = format!("| {name} |");
        for (_, variant) in variants {
            if common::variants().contains(&variant) {
                let [small, large] = ROWS.map(|rows| count(variant, spec, dtype, weights, rows));
                let elements = (ROWS[1] - ROWS[0]) * COLUMNS;
                let each = (large - small) as f64 / elements as f64;
                line += &format!(" {each:.2} |");
            } else {
                line += " not here |";
            }
        }
        println!("{line}");
    }
}
