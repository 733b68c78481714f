//! `include/lowbit.h` is what cbindgen makes of `src/capi`; every function documents the same
//! headings and all of its parameters.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

use std::path::Path;

const HEADINGS: [&str; 7] = [
    "Parameters",
    "Returns",
    "Threads",
    "Stream",
    "Ownership",
    "Since",
    "Safety",
];

/// The files in the order of the header.
const SOURCES: [&str; 11] = [
    "types", "version", "spec", "context", "plan", "state", "step", "offload", "norm", "report",
    "codec",
];

fn generate() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES
        .into_iter()
        .chain(["checkpoint", "checkpoint_files"])
    {
        builder = builder.with_src(root.join(format!("src/capi/{source}.rs")));
    }
    builder = builder.with_src(root.join("src/xla/step.rs"));
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn header_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/lowbit.h");
    let text = generate();
    if std::env::var_os("LOWBIT_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "include/lowbit.h is stale; run: LOWBIT_BLESS=1 cargo test --test header"
    );
}

#[test]
fn every_function_documents_headings_and_parameters() {
    let text = generate();
    let mut functions = 0;
    for (comment, declaration) in declarations(&text) {
        let Some((name, parameters)) = function(declaration) else {
            continue;
        };
        functions += 1;
        let mut rest = comment;
        for heading in HEADINGS {
            let at = rest.find(&format!("# {heading}"));
            rest = &rest[at.unwrap_or_else(|| panic!("{name}: no {heading}, or out of order"))..];
        }
        for parameter in parameters {
            assert!(
                comment.contains(&format!("`{parameter}`")),
                "{name}: {parameter} undocumented"
            );
        }
    }
    assert!(functions >= 28, "only {functions} functions were found");
}

/// Each comment with the text up to the next one.
fn declarations(text: &str) -> Vec<(&str, &str)> {
    let (_, body) = text.split_once("#endif").unwrap_or(("", text));
    let body = if body.contains("/*") { body } else { text };
    body.split("/*")
        .skip(1)
        .filter_map(|chunk| chunk.split_once("*/"))
        .collect()
}

/// Name and parameter names of a function declaration.
fn function(declaration: &str) -> Option<(&str, Vec<&str>)> {
    let declaration = declaration.trim_start();
    let (head, rest) = declaration.split_once('(')?;
    let name = head.split_whitespace().last()?.trim_start_matches('*');
    if !name.starts_with("lowbit_") || head.contains("typedef") || head.contains("#define") {
        return None;
    }
    let (list, _) = rest.split_once(");")?;
    let names = list
        .split(',')
        .filter(|parameter| parameter.trim() != "void")
        .filter_map(|parameter| parameter.split_whitespace().last())
        .map(|name| name.trim_start_matches('*'));
    Some((name, names.collect()))
}

#[test]
fn pages_show_the_code_that_is_compiled() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (page, source, begin, end) in [
        (
            "README.md",
            "examples/c/adamw.c",
            "/* [readme] */",
            "/* [/readme] */",
        ),
        (
            "bindings/cpp/README.md",
            "examples/cpp/adamw.cpp",
            "// [page]",
            "// [/page]",
        ),
        (
            "bindings/cpp/README.md",
            "bindings/cpp/tests/llmc.cpp",
            "// [page]",
            "// [/page]",
        ),
    ] {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        let code = std::fs::read_to_string(root.join(source)).unwrap();
        let (_, rest) = code.split_once(begin).unwrap();
        let (code, _) = rest.split_once(end).unwrap();
        assert!(text.contains(code.trim()), "{page} differs from {source}");
    }
}
