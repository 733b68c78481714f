//! A Julia: the machine's own, or else Debian's.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Install, apt, script};
use crate::error::Result;
use crate::shell::{Shell, find_program};

/// The recipe is the stamp as well: another recipe is another install.
const RECIPE: &str = concat!(
    include_str!("../../scripts/julia.sh"),
    include_str!("../../scripts/apt.sh")
);

/// Returns a Julia of version 1.5 or later.
pub(crate) fn ensure(sh: &Shell) -> Result<PathBuf> {
    if let Some(julia) = find_program("julia").filter(|julia| works(sh, julia).is_ok()) {
        return Ok(julia);
    }
    apt::unpacks(
        "no working Julia 1.5 or later on PATH, and no apt-get to fetch Debian's with: \
        install Julia and run this again",
    )?;
    let install = Install {
        name: "julia",
        what: "Debian's Julia 1.5.3 (80 MB from the machine's Debian mirror, 350 MB on disk)",
        stamp: RECIPE,
    };
    let dir = install.ensure(
        sh,
        |dir| script(sh, "julia.sh", dir),
        |dir| works(sh, &julia(dir)),
    )?;
    Ok(julia(&dir))
}

/// A program of this repository in Julia, with the package and the library.
pub(crate) fn command(sh: &Shell, julia: &Path, library: &Path, script: &str) -> Command {
    let mut command = Command::new(julia);
    command
        .arg(format!("--project={}", sh.path("bindings/julia").display()))
        .arg(sh.path(script))
        .env("LOWBIT_LIBRARY", library);
    if std::env::var_os("JULIA_DEPOT_PATH").is_none() {
        command.env("JULIA_DEPOT_PATH", sh.path("target/env/julia-depot"));
    }
    command
}

fn julia(dir: &Path) -> PathBuf {
    dir.join("bin/julia")
}

/// It must start, be new enough and survive an exception, which not every mixture of Julia and
/// system libraries does.
fn works(sh: &Shell, julia: &Path) -> Result<()> {
    let check = r#"try error() catch; exit(VERSION >= v"1.5" ? 0 : 1) end"#;
    sh.read(Command::new(julia).args(["--startup-file=no", "-e", check]))
        .map(drop)
}
