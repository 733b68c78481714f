//! The symbols of the shared library: exactly `include/lowbit.symbols`, and exactly what the header
//! declares. Layouts are compared by `tests/c/layout.c`.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking, and say what is not run"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

#[path = "c/library.rs"]
mod library;

/// Found by XLA, by name. Their argument is a struct of XLA's, so C programs have no use for them.
const NOT_IN_THE_HEADER: &str = "lowbit_xla_";

fn root(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn exported() -> BTreeSet<String> {
    let nm = std::env::var_os("NM").unwrap_or_else(|| "nm".into());
    let output = Command::new(&nm)
        .args(["-D", "--defined-only"])
        .arg(&library::released().shared)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; it is in binutils", nm.display()));
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let symbols = text
        .lines()
        .filter_map(|line| line.split_whitespace().last());
    symbols.map(str::to_owned).collect()
}

fn listed() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root("include/lowbit.symbols")).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// The functions that the header declares: names before a parenthesis, outside of comments.
fn declared() -> BTreeSet<String> {
    let mut text = std::fs::read_to_string(root("include/lowbit.h")).unwrap();
    while let Some(start) = text.find("/*") {
        let end = start + text[start..].find("*/").unwrap() + 2;
        text.replace_range(start..end, " ");
    }
    let mut names = BTreeSet::new();
    for (at, _) in text.match_indices('(') {
        let name = text[..at]
            .rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .next();
        let name = name.unwrap_or_default();
        if name.starts_with("lowbit_") {
            names.insert(name.to_owned());
        }
    }
    names
}

const FIRST_LINES: &str = "\
# The symbols that the shared library exports, and no others. To add one is a new ABI minor, to lose
# one a new major (include/README.md). Rewritten by: LOWBIT_BLESS=1 cargo test --test abi
";

#[test]
fn exports_are_the_listed_symbols() {
    let exported = exported();
    if std::env::var_os("LOWBIT_BLESS").is_some() {
        let mut text = FIRST_LINES.to_owned();
        for symbol in &exported {
            text.push_str(symbol);
            text.push('\n');
        }
        std::fs::write(root("include/lowbit.symbols"), text).unwrap();
    }
    let listed = listed();
    let extra: Vec<_> = exported.difference(&listed).collect();
    let lost: Vec<_> = listed.difference(&exported).collect();
    assert!(
        extra.is_empty() && lost.is_empty(),
        "exported but not in include/lowbit.symbols: {extra:?}; listed but not exported: {lost:?}"
    );
}

#[test]
fn the_header_declares_what_is_exported() {
    let (exported, declared) = (exported(), declared());
    let undeclared: Vec<_> = exported
        .difference(&declared)
        .filter(|name| !name.starts_with(NOT_IN_THE_HEADER))
        .collect();
    let missing: Vec<_> = declared.difference(&exported).collect();
    assert!(undeclared.is_empty(), "not in the header: {undeclared:?}");
    assert!(missing.is_empty(), "declared, not exported: {missing:?}");
    assert!(declared.len() >= 28, "only {declared:?}");
}

#[test]
fn releases_have_no_test_hooks() {
    let hooks = |symbols: BTreeSet<String>| symbols.iter().any(|name| name.contains("test"));
    assert!(!hooks(exported()));
    assert!(!hooks(listed()));
    assert!(!hooks(declared()));
}
