//! `cargo xtask install --prefix FOLDER`: library, headers, pkg-config and CMake files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build;
use crate::error::{Context, Error, Result};
use crate::shell::Shell;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    let [flag, prefix] = args else {
        return Err(Error::Usage("install takes `--prefix FOLDER`".into()));
    };
    if flag != "--prefix" {
        return Err(Error::Usage(format!("install takes no argument `{flag}`")));
    }
    build::library(sh)?;
    let prefix = std::path::absolute(prefix).context(prefix)?;
    install(sh, &prefix)?;
    println!("lowbit {VERSION} is installed in {}", prefix.display());
    Ok(())
}

/// Installs what is in `target/release`.
pub(crate) fn install(sh: &Shell, prefix: &Path) -> Result<()> {
    let archive = sh.path("target/release/liblowbit.a");
    let lib = folder(prefix.join("lib"))?;
    copy(&archive, &lib.join("liblowbit.a"))?;
    shared(sh, &archive, &lib)?;
    let include = folder(prefix.join("include"))?;
    copy(&sh.path("include/lowbit.h"), &include.join("lowbit.h"))?;
    copy(
        &sh.path("bindings/cpp/lowbit.hpp"),
        &include.join("lowbit.hpp"),
    )?;
    for (template, to) in [
        ("lowbit.pc", lib.join("pkgconfig")),
        ("lowbitConfig.cmake", lib.join("cmake/lowbit")),
        ("lowbitConfigVersion.cmake", lib.join("cmake/lowbit")),
    ] {
        let from = sh.path(format!("bindings/cpp/cmake/{template}.in"));
        let text = fs::read_to_string(&from).context(from.display())?;
        let to = folder(to)?.join(template);
        fs::write(&to, fill(&text)?).context(to.display())?;
    }
    Ok(())
}

/// Before 1.0 the ABI may change with a minor version, so that is in the name.
fn soname() -> Result<String> {
    let [major, minor] = numbers()?;
    Ok(match major {
        "0" => format!("liblowbit.so.0.{minor}"),
        _ => format!("liblowbit.so.{major}"),
    })
}

fn numbers() -> Result<[&'static str; 2]> {
    let mut parts = VERSION.split('.');
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => Ok([major, minor]),
        _ => Err(Error::failed("the version has no minor")),
    }
}

fn fill(text: &str) -> Result<String> {
    let [major, minor] = numbers()?;
    Ok(text
        .replace("@VERSION@", VERSION)
        .replace("@MAJOR@", major)
        .replace("@MINOR@", minor)
        .replace("@SONAME@", &soname()?))
}

/// Links the archive anew, as the library that cargo makes has no SONAME: with one, programs of the
/// source tree would not find the library under its name there. Exports are those of
/// `include/lowbit.symbols`, and the unwinder is linked statically (see build.rs).
fn shared(sh: &Shell, archive: &Path, lib: &Path) -> Result<()> {
    let symbols = sh.path("include/lowbit.symbols");
    let symbols = fs::read_to_string(&symbols).context(symbols.display())?;
    let mut script = String::from("{ global:\n");
    for name in symbols.lines().filter(|line| !line.starts_with('#')) {
        script.push_str(name);
        script.push_str(";\n");
    }
    script.push_str("local: *; };\n");
    let exports = folder(sh.path("target/install"))?.join("exports");
    fs::write(&exports, script).context(exports.display())?;

    let soname = soname()?;
    let real = format!("liblowbit.so.{VERSION}");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut link = Command::new(compiler);
    link.args(["-shared", "-static-libgcc", "-Wl,--gc-sections", "-s"])
        .arg(format!("-Wl,-soname,{soname}"))
        .arg(format!("-Wl,--version-script={}", exports.display()))
        .arg("-Wl,--whole-archive")
        .arg(archive)
        .args([
            "-Wl,--no-whole-archive",
            "-lgcc_eh",
            "-lpthread",
            "-ldl",
            "-lm",
        ])
        .arg("-o")
        .arg(lib.join(&real));
    sh.quiet(&mut link)?;
    for name in ["liblowbit.so", &soname] {
        let link = lib.join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&real, &link).context(link.display())?;
    }
    Ok(())
}

fn folder(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).context(path.display())?;
    Ok(path)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).context(from.display())
}
