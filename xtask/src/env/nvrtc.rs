//! NVIDIA's run-time compiler and assembler, which need neither a GPU nor a driver.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Install, envs, python, remove};
use crate::error::{Context, Result};
use crate::shell::Shell;

const NAME: &str = "nvrtc";

/// Compiles CUDA C++ to PTX. The embedded PTX runs on every driver from this version on, and 12.1
/// is the oldest that takes kernel parameters of more than 4 KiB.
pub(crate) const NVRTC: &str = "nvidia-cuda-nvrtc-cu12==12.1.105";

/// Has `ptxas`, and no other compiler. It is here to check what PTX becomes, also on GPUs that the
/// compiler above does not know.
const NVCC: &str = "nvidia-cuda-nvcc-cu12==12.9.86";

/// Has `nvdisasm`, which shows what the assembler made.
const NVDISASM: &str = "nvidia-cuda-nvdisasm==13.5.37";

/// The compiler, which finds its second library by itself, in the folder that `ensure` returns.
pub(crate) const LIBRARY: &str = "lib/libnvrtc.so.12";

/// The assembler, in the same folder.
pub(crate) const PTXAS: &str = "bin/ptxas";

/// The few files that are kept, by their place in the packages and in the folder.
const FILES: [(&str, &str); 4] = [
    ("nvidia/cuda_nvrtc/lib/libnvrtc.so.12", LIBRARY),
    (
        "nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.1",
        "lib/libnvrtc-builtins.so.12.1",
    ),
    ("nvidia/cuda_nvcc/bin/ptxas", PTXAS),
    ("nvidia/cu13/bin/nvdisasm", "bin/nvdisasm"),
];

/// Whether an earlier command has installed it.
pub(crate) fn is_there(sh: &Shell) -> bool {
    envs(sh).join(NAME).is_dir()
}

/// Returns the folder with the compiler and the assembler.
pub(crate) fn ensure(sh: &Shell) -> Result<PathBuf> {
    let install = Install {
        name: NAME,
        what: "NVRTC 12.1, ptxas 12.9 and nvdisasm (70 MB from PyPI, 105 MB on disk)",
        stamp: &format!("{NVRTC}\n{NVCC}\n{NVDISASM}\n"),
    };
    install.ensure(sh, |dir| build(sh, dir), |dir| works(sh, dir))
}

fn build(sh: &Shell, dir: &Path) -> Result<()> {
    // A pip of its own, as the machine's Python need not have one.
    let (pip, packages) = (dir.join("pip"), dir.join("packages"));
    python::venv(sh, &pip)?;
    let mut command = python::pip_install(&pip);
    sh.quiet(
        command
            .args(["--no-deps", "--target"])
            .arg(&packages)
            .args([NVRTC, NVCC, NVDISASM]),
    )?;
    for sub in ["lib", "bin"] {
        fs::create_dir(dir.join(sub)).context(sub)?;
    }
    for (from, to) in FILES {
        fs::rename(packages.join(from), dir.join(to)).context(from)?;
    }
    remove(&packages)?;
    remove(&pip)
}

fn works(sh: &Shell, dir: &Path) -> Result<()> {
    for (_, file) in FILES {
        fs::metadata(dir.join(file)).context(file)?;
    }
    sh.read(Command::new(dir.join(PTXAS)).arg("--version"))
        .map(drop)
}
