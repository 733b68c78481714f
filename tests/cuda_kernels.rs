//! What NVIDIA's assembler makes of the embedded kernels: no spills and no local memory on any
//! architecture, and the table of registers in `cuda/README.md`. Needs no GPU.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The common ones since the oldest that the kernels run on.
const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"];

/// Those of A100, of H100 and H200.
const LISTED: [&str; 2] = ["sm_80", "sm_90"];

/// Threads of a thread block (`THREADS` in tasks.cuh).
const THREADS: u32 = 256;

/// Of a multiprocessor of the architectures listed.
const REGISTERS: u32 = 65536;
const MOST_THREADS: u32 = 2048;

/// What `ptxas` says about one kernel.
#[derive(Debug, PartialEq)]
struct Usage {
    kernel: String,
    registers: u32,
}

impl Usage {
    /// Thread blocks that a multiprocessor has registers for.
    fn resident(&self) -> u32 {
        // A thread gets a multiple of eight registers.
        let block = self.registers.next_multiple_of(8) * THREADS;
        (REGISTERS / block).min(MOST_THREADS / THREADS)
    }
}

/// The assembler beside the compiler, or on `PATH`.
fn ptxas() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let asked = std::env::var_os("LOWBIT_NVRTC").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    [asked, Some(root.join("target/env/nvrtc"))]
        .into_iter()
        .flatten()
        .map(|dir| dir.join("bin"))
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join("ptxas"))
        .find(|file| file.is_file())
}

/// The PTX of every `.cu` file, as `build.rs` embeds it; empty if it found no compiler.
fn modules() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let mut modules = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let source = entry.unwrap().path();
        let name = source.file_stem().unwrap().to_str().unwrap().to_owned();
        let ptx = Path::new(env!("OUT_DIR")).join(format!("{name}.ptx"));
        if source
            .extension()
            .is_some_and(|extension| extension == "cu")
            && ptx.is_file()
        {
            modules.push((name, std::fs::read_to_string(ptx).unwrap()));
        }
    }
    modules.sort();
    modules
}

/// Assembles a module; panics unless every function of it does without local memory.
fn assemble(ptxas: &Path, name: &str, ptx: &str, architecture: &str) -> Vec<Usage> {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.ptx");
    std::fs::write(&input, ptx).unwrap();
    let output = Command::new(ptxas)
        .args([
            "--verbose",
            "--warn-on-spills",
            "--warn-on-local-memory-usage",
        ])
        .args(["--warning-as-error", "--gpu-name", architecture, "-o"])
        .args([&dir.path().join("out.cubin"), &input])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success(),
        "{name} for {architecture}:\n{text}"
    );

    let (mut kernel, mut usages) = (None, Vec::new());
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split_once('\'').map(|(symbol, _)| symbol.to_owned());
        } else if line.contains("stack frame") {
            assert_eq!(
                line.trim(),
                "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads",
                "{kernel:?} for {architecture}"
            );
        } else if let Some((_, rest)) = line.split_once("Used ") {
            let (registers, _) = rest.split_once(" registers").unwrap();
            usages.push(Usage {
                kernel: kernel.take().unwrap(),
                registers: registers.parse().unwrap(),
            });
        }
    }
    assert_eq!(
        usages.len(),
        ptx.matches(".entry ").count(),
        "not every kernel of {name} is reported:\n{text}"
    );
    usages.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    usages
}

/// "12.1.105" in what NVIDIA's tools print about themselves.
fn version(text: &str) -> &str {
    let (_, rest) = text.split_once("Cuda compilation tools, ").unwrap();
    let (_, rest) = rest.split_once(", V").unwrap();
    rest.split_whitespace().next().unwrap()
}

const BEGIN: &str = "<!-- LOWBIT_BLESS=1 cargo test --test cuda_kernels -->\n";
const END: &str = "<!-- end -->";

/// Another compiler makes other code: the table is compared if both tools are those that it names.
fn compare(tools: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    let expected = format!("{tools}\n\n{table}");
    if std::env::var_os("LOWBIT_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
    } else if found.starts_with(tools) {
        assert_eq!(
            found, expected,
            "cuda/README.md is stale; run: LOWBIT_BLESS=1 cargo test --test cuda_kernels"
        );
    }
}

#[test]
fn kernels_use_no_local_memory() {
    let modules = modules();
    let (Some(ptxas), false) = (ptxas(), modules.is_empty()) else {
        let required = std::env::var_os("LOWBIT_REQUIRE_CUDA_KERNELS");
        assert!(
            required.is_none_or(|value| value != "1"),
            "LOWBIT_REQUIRE_CUDA_KERNELS is 1, but there are no kernels or no ptxas"
        );
        println!(
            "skipped: no kernels or no ptxas; `cargo xtask env nvrtc` installs what is needed"
        );
        return;
    };
    let mut table = String::from("| kernel |");
    for architecture in LISTED {
        let _ = write!(table, " {architecture} registers | blocks |");
    }
    let _ = writeln!(table, "\n|---|{}", "--:|--:|".repeat(LISTED.len()));
    for (name, ptx) in &modules {
        let columns = ARCHITECTURES.map(|architecture| {
            let usages = assemble(&ptxas, name, ptx, architecture);
            (architecture, usages)
        });
        for row in 0..columns[0].1.len() {
            let _ = write!(table, "| `{}` |", columns[0].1[row].kernel);
            for (architecture, column) in &columns {
                let usage = &column[row];
                assert!(usage.resident() > 0, "{usage:?}: does not fit");
                if !LISTED.contains(architecture) {
                    continue;
                }
                let _ = write!(table, " {} | {} |", usage.registers, usage.resident());
            }
            table.push('\n');
        }
    }
    let about = Command::new(&ptxas).arg("--version").output().unwrap();
    let tools = format!(
        "PTX by the compiler of CUDA {}, assembled by ptxas {}:",
        version(&modules[0].1),
        version(&String::from_utf8(about.stdout).unwrap())
    );
    println!("{tools}\n\n{table}");
    compare(&tools, &table);
}
