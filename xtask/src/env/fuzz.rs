//! cargo-fuzz, from crates.io. Nothing but `cargo xtask fuzz` asks for it.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use super::Install;
use crate::error::{Error, Result};
use crate::shell::Shell;

const VERSION: &str = "0.13.2";

/// Returns a `PATH` on which `cargo fuzz` is.
pub(crate) fn path(sh: &Shell) -> Result<OsString> {
    let install = Install {
        name: "fuzz",
        what: "cargo-fuzz (from crates.io, a minute)",
        stamp: VERSION,
    };
    let dir = install.ensure(sh, |dir| build(sh, dir), |dir| works(sh, dir))?;
    let mut path = vec![dir.join("bin")];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    std::env::join_paths(path).map_err(|error| Error::Failed(format!("PATH: {error}")))
}

fn build(sh: &Shell, dir: &Path) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["install", "cargo-fuzz", "--locked", "--version", VERSION]);
    sh.quiet(cargo.arg("--root").arg(dir))
}

fn works(sh: &Shell, dir: &Path) -> Result<()> {
    sh.read(Command::new(dir.join("bin/cargo-fuzz")).arg("--version"))
        .map(drop)
}
