//! A Python with PyTorch for the CPU, as a virtual environment of its own: it is ten times the size
//! of JAX.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Install, python, script};
use crate::error::Result;
use crate::shell::Shell;

/// The packages and their versions, and what makes torch run without CUDA's libraries.
const RECIPE: &str = concat!(
    include_str!("../../requirements-torch.txt"),
    include_str!("../../scripts/torch_stubs.py")
);

/// Returns the environment's Python, which has all that `xtask/requirements-torch.txt` names.
pub(crate) fn ensure(sh: &Shell) -> Result<PathBuf> {
    let install = Install {
        name: "torch",
        what: "PyTorch for the CPU (530 MB from PyPI, 1.3 GB on disk)",
        stamp: RECIPE,
    };
    let dir = install.ensure(sh, |dir| build(sh, dir), |dir| works(sh, dir))?;
    Ok(dir.join("bin/python"))
}

/// Returns the folder of the environment's packages: for `PYTHONPATH` of another Python, or with
/// `torch/include` and `torch/lib` for C++.
pub(crate) fn packages(sh: &Shell) -> Result<PathBuf> {
    const PURELIB: &str = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let python = ensure(sh)?;
    Ok(sh
        .read(Command::new(python).args(["-I", "-c", PURELIB]))?
        .into())
}

/// Returns Debian's Python with the oldest PyTorch that the package supports.
pub(crate) fn ensure_oldest(sh: &Shell) -> Result<PathBuf> {
    let install = Install {
        name: "torch-oldest",
        what: "PyTorch 1.13 of Debian bookworm (260 MB, 0.9 GB on disk)",
        stamp: concat!(
            include_str!("../../scripts/torch_oldest.sh"),
            include_str!("../../scripts/apt.sh")
        ),
    };
    let python = |dir: &Path| dir.join("run/python");
    let dir = install.ensure(
        sh,
        |dir| script(sh, "torch_oldest.sh", dir),
        |dir| {
            let mut import = Command::new(python(dir));
            sh.read(import.args(["-c", "import numpy, torch"]))
                .map(drop)
        },
    )?;
    Ok(python(&dir))
}

fn build(sh: &Shell, dir: &Path) -> Result<()> {
    python::venv(sh, dir)?;
    sh.quiet(
        python::pip_install(dir)
            .args(["--no-deps", "--no-compile", "--requirement"])
            .arg(sh.path("xtask/requirements-torch.txt")),
    )?;
    const LIBRARIES: &str = "import sysconfig; print(sysconfig.get_path('purelib') + '/torch/lib')";
    let libraries = sh.read(Command::new(dir.join("bin/python")).args(["-I", "-c", LIBRARIES]))?;
    let mut stubs = Command::new(dir.join("bin/python"));
    sh.quiet(
        stubs
            .arg(sh.path("xtask/scripts/torch_stubs.py"))
            .arg(libraries),
    )
}

fn works(sh: &Shell, dir: &Path) -> Result<()> {
    const IMPORTS: &str = "import torch.testing._internal.common_optimizers";
    let mut python = Command::new(dir.join("bin/python"));
    sh.read(python.args(["-I", "-c", IMPORTS])).map(drop)
}
