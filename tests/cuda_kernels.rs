//! What NVIDIA's assembler makes of the embedded kernels: no spills and no local memory, the table in
//! `cuda/README.md`, and the instructions that steps execute, which `tests/gpu` compares times with
//! (`cuda/instructions.json`). Needs no GPU.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "cuda/inline_ptx.rs"]
mod inline_ptx;
#[path = "cuda/sass.rs"]
mod sass;

/// Those of A100, of H100 and H200. The build itself assembles for all architectures, and refuses
/// spills and local memory there.
const LISTED: [&str; 2] = ["sm_80", "sm_90"];

/// Threads of a thread block (`THREADS` in tasks.cuh).
const THREADS: u32 = 256;

/// Of a multiprocessor of the architectures listed.
const REGISTERS: u32 = 65536;
const MOST_THREADS: u32 = 2048;

/// Elements that a thread does of each part of a unit, in one turn of the loop of a kernel for common
/// tensors (`EACH` in common.cuh).
const EACH: f64 = 4.0;

/// What an H200 can do: lanes x instructions in a second, and bytes at nine tenths of its nominal
/// bandwidth.
const ISSUES: f64 = 132.0 * 4.0 * 32.0 * 1.98e9;
const BANDWIDTH: f64 = 4.3e12;

/// What `ptxas` and `nvdisasm` say about one kernel.
#[derive(Debug, PartialEq)]
struct Usage {
    kernel: String,
    registers: u32,
    shared: u32,
    /// Executed for an element, on the usual path.
    instructions: Option<f64>,
}

impl Usage {
    /// Thread blocks that a multiprocessor has registers for.
    fn resident(&self) -> u32 {
        // A thread gets a multiple of eight registers.
        let block = self.registers.next_multiple_of(8) * THREADS;
        (REGISTERS / block).min(MOST_THREADS / THREADS)
    }
}

/// A tool beside the compiler, or on `PATH`.
fn tool(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let asked = std::env::var_os("LOWBIT_NVRTC").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    [asked, Some(root.join("target/env/nvrtc"))]
        .into_iter()
        .flatten()
        .map(|dir| dir.join("bin"))
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
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

/// What the build's assembler said of a module for an architecture, and what is executed of it; panics unless
/// every function does without local memory.
fn usages(nvdisasm: &Path, name: &str, ptx: &str, architecture: &str) -> Vec<Usage> {
    let number = architecture.strip_prefix("sm_").unwrap();
    let cubin = Path::new(env!("OUT_DIR")).join(format!("{name}.{number}.cubin"));
    let text = std::fs::read_to_string(format!("{}.txt", cubin.display()))
        .unwrap_or_else(|error| panic!("{}: {error}; the build had no ptxas", cubin.display()));
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
            let (registers, rest) = rest.split_once(" registers").unwrap();
            let shared = rest
                .split(", ")
                .find_map(|part| part.strip_suffix(" bytes smem"));
            usages.push(Usage {
                kernel: kernel.take().unwrap(),
                registers: registers.parse().unwrap(),
                shared: shared.map_or(0, |bytes| bytes.parse().unwrap()),
                instructions: None,
            });
        }
    }
    assert_eq!(
        usages.len(),
        ptx.matches(".entry ").count(),
        "not every kernel of {name} is reported:\n{text}"
    );
    usages.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    let output = Command::new(nvdisasm)
        .arg("-c")
        .arg(&cubin)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let functions = sass::functions(&String::from_utf8(output.stdout).unwrap());
    for usage in &mut usages {
        let function = functions.iter().find(|found| found.name == usage.kernel);
        usage.instructions = executed(function.unwrap());
    }
    usages
}

/// Instructions executed for an element by the kernels for common tensors: full blocks, aligned,
/// with moments in the range of approx.cuh. None for the others, whose tensors differ too much.
fn executed(function: &sass::Function) -> Option<f64> {
    Traffic::of(&function.name)?;
    let wide = |name: &'static str| {
        move |body: &str| {
            let rest = body.strip_prefix(name).unwrap_or_default();
            rest.starts_with(".E.64") || rest.starts_with(".E.128")
        }
    };
    // Only full blocks are stored so, and copied ahead to shared memory.
    let stores = function.find(wide("STG"));
    let copies = function.find(|body| body.starts_with("LDGSTS"));
    let mut others = Vec::new();
    // Where units are not too large for it.
    if !copies.is_empty() {
        others.push(copies.clone());
    }
    // Bytes of a table that codes are found by: nothing of a block that stays is coded.
    let coded = function.find(|body| body.starts_with("LDS.U8"));
    if !coded.is_empty() {
        others.push(coded);
    }
    let parts = parts(&function.name);
    // A store of each part a turn; the compiler may have made the loop twice.
    let turns: Vec<Vec<usize>> = match parts {
        1 if function.name.ends_with("_factor4") => {
            stores.iter().map(|store| vec![*store]).collect()
        }
        2 => pairs(&stores),
        _ => vec![stores.clone()],
    };
    let loops = turns.iter().filter_map(|turn| {
        let turn = turn.iter().map(|store| vec![*store]);
        let groups: Vec<_> = turn.chain(others.iter().cloned()).collect();
        function.shortest_loop(&groups, &[])
    });
    let mut count = loops.min().unwrap();
    if function.name.ends_with("_rank1") || function.name.ends_with("_robust") {
        // The pass that collects maxima: one of each row by REDUX.
        let maxima = function.find(|body| body.starts_with("REDUX") || body.starts_with("CREDUX"));
        count += function.shortest_loop(&[copies, maxima], &stores).unwrap();
    }
    Some(count as f64 / (parts as f64 * EACH))
}

/// Blocks of 128 that a warp does at once.
fn parts(kernel: &str) -> usize {
    if kernel.ends_with("_block4") || kernel.ends_with("_block8") {
        2
    } else {
        1
    }
}

/// Any two of them.
fn pairs(stores: &[usize]) -> Vec<Vec<usize>> {
    let each = stores.iter().enumerate();
    each.flat_map(|(i, first)| stores[i + 1..].iter().map(|second| vec![*first, *second]))
        .collect()
}

/// Bytes that a kernel for common tensors moves for an element.
struct Traffic {
    /// To and from memory.
    memory: f64,
    /// From the L2 cache: the second reads of two passes, and means of columns.
    cache: f64,
}

impl Traffic {
    fn of(kernel: &str) -> Option<Self> {
        let mut parts = kernel.strip_prefix("lowbit_k_")?.split('_');
        let optimizer = parts.next()?;
        let (param, grad, states) = (parts.next()?, parts.next()?, parts.next()?);
        let size = |dtype: &str| if dtype == "f32" { 4.0 } else { 2.0 };
        let beside = if param.ends_with("correction8") {
            2.0
        } else {
            0.0
        };
        let elements = 2.0 * size(param) + beside + size(grad);
        // Codes, and scales of blocks of 128, are read and written.
        let (codes, scales) = (2.0 * 0.5, 2.0 * 4.0 / 128.0);
        let (states, cache) = match (optimizer, states) {
            ("adamw", "block4") => (2.0 * (codes + scales), 0.0),
            ("adamw", "rank1" | "robust") => (2.0 * codes + scales, size(grad) + 0.5),
            ("adamw", "f32") => (4.0 * 4.0, 0.0),
            ("adamw", "factor4") => (codes + scales, 4.0),
            // 8 bits in blocks of 256 are twice as much.
            ("adamw", "block8") => (4.0 * (codes + scales / 4.0), 0.0),
            ("sgdm" | "lion", "block4") => (codes + scales, 0.0),
            ("sgdm" | "lion", "block8") => (2.0 * (codes + scales / 4.0), 0.0),
            _ => return None,
        };
        Some(Self {
            memory: elements + states,
            cache,
        })
    }

    /// Instructions of an element that an H200 can issue while its bytes move.
    fn budget(&self) -> f64 {
        ISSUES * self.memory / BANDWIDTH
    }
}

/// "12.1.105" in what NVIDIA's tools print about themselves.
fn version(text: &str) -> &str {
    let (_, rest) = text.split_once("Cuda compilation tools, ").unwrap();
    let (_, rest) = rest.split_once(", V").unwrap();
    rest.split_whitespace().next().unwrap()
}

const BEGIN: &str = "<!-- LOWBIT_BLESS=1 cargo test --test cuda_kernels -->\n";
const END: &str = "<!-- end -->";

/// Another compiler makes other code: table and counts are compared if the tools are those that the
/// table names.
fn compare(tools: &str, table: &str, counts: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    let expected = format!("{tools}\n\n{table}");
    let counted = path.with_file_name("instructions.json");
    if std::env::var_os("LOWBIT_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
        std::fs::write(&counted, counts).unwrap();
    } else if found.starts_with(tools) {
        assert_eq!(
            found, expected,
            "cuda/README.md is stale; run: LOWBIT_BLESS=1 cargo test --test cuda_kernels"
        );
        assert_eq!(
            std::fs::read_to_string(&counted).unwrap(),
            counts,
            "and so is instructions.json"
        );
    }
}

#[test]
fn kernels_use_no_local_memory() {
    let modules = modules();
    let tools = (tool("ptxas"), tool("nvdisasm"));
    let ((Some(ptxas), Some(nvdisasm)), false) = (tools, modules.is_empty()) else {
        let required = std::env::var_os("LOWBIT_REQUIRE_CUDA_KERNELS");
        assert!(
            required.is_none_or(|value| value != "1"),
            "LOWBIT_REQUIRE_CUDA_KERNELS is 1, but there are no kernels, no ptxas or no nvdisasm"
        );
        println!(
            "skipped: no kernels, no ptxas or no nvdisasm; `cargo xtask env nvrtc` installs them"
        );
        return;
    };
    let mut table = String::from("| kernel | bytes | budget | shared |");
    for architecture in LISTED {
        let _ = write!(table, " {architecture} registers | blocks | instructions |");
    }
    let _ = writeln!(
        table,
        "\n|---|--:|--:|--:|{}",
        "--:|--:|--:|".repeat(LISTED.len())
    );
    let mut counts: BTreeMap<&str, BTreeMap<String, f64>> = BTreeMap::new();
    for (name, ptx) in &modules {
        let columns = LISTED.map(|architecture| {
            let usages = usages(&nvdisasm, name, ptx, architecture);
            (architecture, usages)
        });
        for row in 0..columns[0].1.len() {
            let kernel = &columns[0].1[row].kernel;
            let _ = write!(table, "| `{kernel}` |");
            let _ = match Traffic::of(kernel) {
                Some(traffic) if traffic.cache > 0.0 => write!(
                    table,
                    " {:.2} + {} | {:.0} |",
                    traffic.memory,
                    traffic.cache,
                    traffic.budget()
                ),
                Some(traffic) => write!(table, " {} | {:.0} |", traffic.memory, traffic.budget()),
                None => write!(table, " | |"),
            };
            let _ = write!(table, " {} |", columns[0].1[row].shared);
            for (architecture, column) in &columns {
                let usage = &column[row];
                assert!(usage.resident() > 0, "{usage:?}: does not fit");
                let _ = write!(table, " {} | {} |", usage.registers, usage.resident());
                if let Some(count) = usage.instructions {
                    let _ = write!(table, " {count:.0}");
                    let of_kernels = counts.entry(architecture).or_default();
                    of_kernels.insert(kernel.clone(), count);
                }
                table.push_str(" |");
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
    let counts = serde_json::to_string_pretty(&counts).unwrap() + "\n";
    compare(&tools, &table, &counts);
}

/// The arithmetic that `cuda/ptx.cuh` writes in PTX, beside what its comments say.
#[test]
fn inline_ptx_computes_what_it_says() {
    /// Approximations, whose results no definition gives.
    const APPROXIMATE: [&str; 2] = ["approximate_reciprocal", "approximate_reciprocal_root"];
    /// An address.
    const NO_ARITHMETIC: [&str; 1] = ["shared_address"];

    let float = |bits: u64| f32::from_bits(bits as u32);
    let nan = |bits: u64| (bits as u32) & 0x7fff_ffff > 0x7f80_0000;
    let bf16 = |bits| u64::from(half::bf16::from_f32(float(bits)).to_bits());
    let f16 = |bits| u64::from(half::f16::from_f32(float(bits)).to_bits());
    let add_if = |condition: bool, a: &[u64]| {
        u64::from((a[0] as u32).wrapping_add(if condition { a[1] as u32 } else { 0 }))
    };
    let expected = |name: &str, a: &[u64]| match name {
        "max_nan" if nan(a[0]) || nan(a[1]) => 0x7fff_ffff,
        // The same, or zeros of either sign.
        "max_nan" if float(a[0]) == float(a[1]) => a[0] & a[1],
        "max_nan" => u64::from(float(a[0]).max(float(a[1])).to_bits()),
        "add_if_greater" => add_if(float(a[2]) > float(a[3]), a),
        "add_unless_less" => add_if(float(a[2]) >= float(a[3]), a),
        "multiply_wide" => a[0] * a[1],
        "significand_of" => a[0] & 0x7f_ffff | 1 << 23,
        "shift_left" if a[1] < 64 => a[0] << a[1],
        "shift_left" => 0,
        "pack_bf16" => bf16(a[1]) << 16 | bf16(a[0]),
        "pack_f16" => f16(a[1]) << 16 | f16(a[0]),
        "f16_to_f32" => u64::from(half::f16::from_bits(a[0] as u16).to_f32().to_bits()),
        _ => panic!("{name}: what it computes is not written here"),
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/ptx.cuh");
    let functions = inline_ptx::functions(&std::fs::read_to_string(path).unwrap());
    let mut compared = 0;
    for function in &functions {
        let name = function.name.as_str();
        if APPROXIMATE.contains(&name) || NO_ARITHMETIC.contains(&name) {
            continue;
        }
        for arguments in operands(function.arity()) {
            assert_eq!(
                function.call(&arguments),
                expected(name, &arguments),
                "{name} of {arguments:x?}"
            );
        }
        compared += 1;
    }
    println!("{compared} functions compared");
    assert_eq!(compared, 9, "functions of ptx.cuh were not found");
}

/// Bit patterns for so many arguments: zeros, ones, infinities, NaN, small integers and what is
/// between.
fn operands(arity: usize) -> Vec<Vec<u64>> {
    const EDGES: [u32; 16] = [
        0,
        1,
        31,
        63,
        64,
        0x3f80_0000,
        0x3f80_8000,
        0x3fff_ffff,
        0x4049_0fdb,
        0x477f_f000,
        0x7f80_0000,
        0x7fc0_0000,
        0x8000_0000,
        0xbf80_0000,
        0xff80_0000,
        0xffff_ffff,
    ];
    let mut random = 1u32;
    let mut drawn = || {
        // Marsaglia's xorshift.
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random
    };
    let mut all = Vec::new();
    for first in EDGES {
        for second in EDGES {
            let mut arguments: Vec<u32> = (0..arity).map(|_| drawn()).collect();
            // The last ones, which are compared, shifted or rounded.
            arguments[arity - 1] = second;
            if arity > 1 {
                arguments[arity - 2] = first;
            }
            all.push(arguments);
        }
    }
    all.extend((0..4096).map(|_| (0..arity).map(|_| drawn()).collect()));
    let wide = |arguments: Vec<u32>| arguments.into_iter().map(u64::from).collect();
    all.into_iter().map(wide).collect()
}
