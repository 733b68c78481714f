//! NVIDIA's compiler of CUDA C++ programs, which needs neither a GPU nor a driver.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Install, python, remove};
use crate::error::Result;
use crate::shell::Shell;

/// Front end, its headers, optimizer, runtime, and what the runtime's headers include. 13.0 is the first version that PyPI has whole.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// Returns the compiler; what else it needs lies where it looks.
pub(crate) fn ensure(sh: &Shell) -> Result<PathBuf> {
    let install = Install {
        name: "nvcc",
        what: "nvcc 13.0 (100 MB from PyPI, 270 MB on disk)",
        stamp: &PACKAGES.map(|package| format!("{package}\n")).concat(),
    };
    Ok(compiler(&install.ensure(
        sh,
        |dir| build(sh, dir),
        |dir| works(sh, dir),
    )?))
}

fn compiler(dir: &Path) -> PathBuf {
    dir.join("nvidia/cu13/bin/nvcc")
}

fn build(sh: &Shell, dir: &Path) -> Result<()> {
    // A pip of its own, as the machine's Python need not have one.
    let pip = dir.join("pip");
    python::venv(sh, &pip)?;
    let mut command = python::pip_install(&pip);
    sh.quiet(
        command
            .args(["--no-deps", "--target"])
            .arg(dir)
            .args(PACKAGES),
    )?;
    remove(&pip)
}

fn works(sh: &Shell, dir: &Path) -> Result<()> {
    sh.read(Command::new(compiler(dir)).arg("--version"))
        .map(drop)
}
