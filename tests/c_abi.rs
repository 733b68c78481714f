//! Compiles the C programs of `tests/c` against `include/lowbit.h` and the release build of the
//! library, and runs them: once as they are, once under valgrind on smaller inputs.
//!
//! Needs a C and a C++ compiler (`CC`, `CXX`; else `cc`, `c++`) and valgrind. Without them the tests
//! fail; nothing is skipped.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking, and say what is not run"
)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "c/library.rs"]
mod library;

const WARNINGS: [&str; 6] = [
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wshadow",
    "-Werror",
];

/// What leaves valgrind's quiet mode with another status than the program's own.
const VALGRIND: [&str; 5] = [
    "-q",
    "--leak-check=full",
    "--show-leak-kinds=definite",
    "--errors-for-leak-kinds=definite",
    "--error-exitcode=7",
];

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A new, empty folder under the target folder.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("c_abi")
        .join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).unwrap();
    }
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Runs a command that must succeed without a word on stderr; its stdout.
fn run(command: &mut Command, hint: &str) -> String {
    // The programs find the library by its path; cargo's own search path leads to debug builds.
    let output = command
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; {hint}"));
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stderr.is_empty(),
        "{command:?}: {}\n{stdout}{stderr}",
        output.status
    );
    stdout.into_owned()
}

fn compiler(variable: &str, default: &str) -> Command {
    let mut command = Command::new(std::env::var_os(variable).unwrap_or_else(|| default.into()));
    command
        .args(WARNINGS)
        .arg("-I")
        .arg(root("include"))
        .arg("-I")
        .arg(root("tests/common"));
    command
}

const COMPILER_HINT: &str =
    "a C and a C++ compiler are needed: Debian's package is build-essential";

/// Compiles `tests/c/<name>.c` and links it by the library's path, so that no other can be found.
fn compile(name: &str, library: Option<&Path>) -> PathBuf {
    let program = folder(name).join(name);
    let mut cc = compiler("CC", "cc");
    cc.args(["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-O1", "-g"])
        .arg(root(&format!("tests/c/{name}.c")))
        .args(library)
        .args(["-pthread", "-ldl", "-lm"])
        .arg("-o")
        .arg(&program);
    run(&mut cc, COMPILER_HINT);
    program
}

/// The last line of a program of checks: some passed, none failed.
fn assert_passed(command: &Command, stdout: &str) {
    let last = stdout.lines().last().unwrap_or_default();
    let passed = last.strip_suffix(" passed, 0 failed");
    let passed: u64 = passed.and_then(|n| n.parse().ok()).unwrap_or(0);
    assert!(passed > 0, "{command:?} ended with {last:?}");
}

fn passes<A: AsRef<OsStr>>(program: &Path, arguments: &[A]) {
    let mut command = Command::new(program);
    let stdout = run(command.args(arguments), "");
    assert_passed(&command, &stdout);
}

fn valgrind() -> Command {
    let mut command = Command::new("valgrind");
    command.args(VALGRIND);
    command
}

fn passes_under_valgrind<A: AsRef<OsStr>>(program: &Path, arguments: &[A]) {
    let mut command = valgrind();
    command.arg(program).args(arguments);
    let stdout = run(&mut command, "Debian's package is valgrind");
    assert_passed(&command, &stdout);
}

// --- the header ----------------------------------------------------------------------------------

#[test]
fn header_compiles_in_every_standard_without_a_warning() {
    let folder = folder("header");
    let library = &library::released().shared;
    let standards = [
        ("CC", "cc", "c", &["c99", "c11", "c17", "c2x"][..]),
        (
            "CXX",
            "c++",
            "c++",
            &["c++11", "c++14", "c++17", "c++20"][..],
        ),
    ];
    for (variable, default, language, standards) in standards {
        for standard in standards {
            // Alone and first, with nothing before it.
            let mut alone = compiler(variable, default);
            alone.arg(format!("-std={standard}"));
            alone.args(["-fsyntax-only", "-include", "lowbit.h", "-x", language]);
            run(alone.arg("/dev/null"), COMPILER_HINT);

            // Twice in each of two units.
            let program = folder.join(standard);
            let mut linked = compiler(variable, default);
            linked
                .arg(format!("-std={standard}"))
                .args(["-x", language])
                .arg(root("tests/c/header.c"))
                .arg(root("tests/c/header_again.c"))
                .args(["-x", "none"])
                .arg(library)
                .arg("-o")
                .arg(&program);
            run(&mut linked, COMPILER_HINT);
            run(&mut Command::new(&program), "");
        }
    }
}

// --- programs of checks --------------------------------------------------------------------------

#[test]
fn bad_calls_are_refused() {
    let program = compile("bad_calls", Some(&library::released().shared));
    let folder = folder("bad_calls_files");
    passes(&program, &[&folder]);
    passes_under_valgrind(&program, &[folder.as_os_str(), OsStr::new("31")]);
}

#[test]
fn layouts_are_those_of_the_library() {
    let program = compile("layout", Some(&library::with_test_hooks().shared));
    passes::<&str>(&program, &[]);
    passes_under_valgrind::<&str>(&program, &[]);
}

#[test]
fn structs_of_other_sizes_follow_the_rules() {
    let program = compile("sized", Some(&library::released().shared));
    passes::<&str>(&program, &[]);
    passes_under_valgrind::<&str>(&program, &[]);
}

#[test]
fn primitives_steps_and_checkpoints_work() {
    let program = compile("primitives", Some(&library::released().shared));
    let folder = folder("primitives_files");
    passes(&program, &[&folder]);
    passes_under_valgrind(&program, &[&folder]);
}

#[test]
fn checkpoints_go_everywhere_and_come_back() {
    let program = compile("checkpoints", Some(&library::released().shared));
    let folder = folder("checkpoints_files");
    passes(&program, &[&folder]);
    passes_under_valgrind(&program, &[&folder]);
}

#[test]
fn averages_conversion_norms_and_reports_work() {
    let program = compile("states", Some(&library::released().shared));
    passes::<&str>(&program, &[]);
    passes_under_valgrind::<&str>(&program, &[]);
}

#[test]
fn host_threads_that_flush_subnormals_change_nothing() {
    let program = compile("host_pool", Some(&library::released().shared));
    passes::<&str>(&program, &[]);
    passes_under_valgrind(&program, &["emulated"]);
}

#[test]
fn a_hundred_rounds_of_loading_and_unloading() {
    let program = compile("dlopen", None);
    let folder = folder("dlopen_files");
    let library = library::released().shared.as_os_str();
    passes(&program, &[library, folder.as_os_str()]);
    passes_under_valgrind(&program, &[library, folder.as_os_str(), OsStr::new("2")]);
}

#[test]
fn panics_are_contained() {
    let program = compile("panic", Some(&library::with_test_hooks().shared));
    passes::<&str>(&program, &[]);
    passes_under_valgrind::<&str>(&program, &[]);
}

/// Not under valgrind, which would rightly report that freed memory is read.
#[test]
fn destroyed_handles_are_refused() {
    let program = compile("stale", Some(&library::released().shared));
    passes::<&str>(&program, &[]);
}

/// Not under valgrind, which puts its own allocator in the place of the counting one.
#[test]
fn steps_do_not_allocate() {
    let program = compile("alloc", Some(&library::released().shared));
    passes::<&str>(&program, &[]);
}

/// The archive holds everything but libc.
#[test]
fn static_linking_works() {
    let folder = folder("static");
    let program = folder.join("primitives");
    let mut cc = compiler("CC", "cc");
    cc.args(["-std=c99", "-O1"])
        .arg(root("tests/c/primitives.c"))
        .arg(&library::released().archive)
        .args(["-pthread", "-ldl", "-lm", "-o"])
        .arg(&program);
    run(&mut cc, COMPILER_HINT);
    passes(&program, &[&folder]);
}

#[test]
fn valgrind_sees_errors() {
    let program = compile("faulty", None);
    let mut command = valgrind();
    let output = command.arg(&program).output();
    let output =
        output.unwrap_or_else(|error| panic!("valgrind: {error}; Debian's package is valgrind"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{stderr}");
    assert!(stderr.contains("uninitialised"), "{stderr}");
    assert!(stderr.contains("definitely lost"), "{stderr}");
}

// --- conformance ---------------------------------------------------------------------------------

#[test]
fn conformance_lines_are_those_of_every_language() {
    let cases = root("tests/common/cases.txt");
    let path = root("tests/common/conformance.txt");
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let program = compile("conformance", Some(&library::released().shared));
    // Every variant with any number of threads is compared in tests/conformance.rs.
    for threads in ["1", "3"] {
        let got = run(Command::new(&program).arg(&cases).arg(threads), "");
        assert_eq!(got, expected, "{threads} threads");
    }
}
