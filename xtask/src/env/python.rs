//! A Python with JAX, as a virtual environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Install, apt};
use crate::error::{Error, Result};
use crate::shell::Shell;

/// Where a Python is looked for, in this order.
const CANDIDATES: [&str; 5] = [
    "python3",
    "python3.14",
    "python3.13",
    "python3.12",
    "python3.11",
];

const NO_BASE: &str = "there is no Python 3.11 to 3.14 with venv and ensurepip on PATH";

/// Returns the environment's Python, which has all that `xtask/requirements.txt` names.
pub(crate) fn ensure(sh: &Shell) -> Result<PathBuf> {
    let install = Install {
        name: "python",
        what: "JAX for the CPU, optax, orbax, NumPy and safetensors (170 MB from PyPI, 750 MB on disk)",
        stamp: include_str!("../../requirements.txt"),
    };
    let imports = "import jaxlib, ml_dtypes, safetensors";
    environment(sh, &install, "xtask/requirements.txt", imports)
}

/// Returns the Python of an environment with the oldest JAX that the package supports.
pub(crate) fn ensure_oldest(sh: &Shell) -> Result<PathBuf> {
    let install = Install {
        name: "python-oldest",
        what: "the oldest supported JAX, for the CPU (120 MB from PyPI, 550 MB on disk)",
        stamp: include_str!("../../requirements-oldest.txt"),
    };
    let imports = "import jaxlib, optax";
    environment(sh, &install, "xtask/requirements-oldest.txt", imports)
}

/// An environment with what a file of requirements names; it works if the `imports` do.
fn environment(
    sh: &Shell,
    install: &Install<'_>,
    requirements: &str,
    imports: &str,
) -> Result<PathBuf> {
    let dir = install.ensure(
        sh,
        |dir| {
            venv(sh, dir)?;
            let mut pip = pip_install(dir);
            sh.quiet(pip.arg("--requirement").arg(sh.path(requirements)))
        },
        |dir| {
            let mut python = Command::new(python(dir));
            sh.read(python.args(["-I", "-c", imports])).map(drop)
        },
    )?;
    Ok(python(&dir))
}

/// A folder for `PYTHONPATH` of an environment's Python with what a file of requirements names, and
/// nothing that this asks for; it works if the `imports` do.
pub(super) fn packages(
    sh: &Shell,
    python: &Path,
    install: &Install<'_>,
    requirements: &str,
    imports: &str,
) -> Result<PathBuf> {
    install.ensure(
        sh,
        |dir| {
            let mut pip = pip(python);
            pip.args(["--no-deps", "--no-compile", "--target"]).arg(dir);
            sh.quiet(pip.arg("--requirement").arg(sh.path(requirements)))
        },
        |dir| {
            let mut check = Command::new(python);
            sh.read(check.env("PYTHONPATH", dir).args(["-c", imports]))
                .map(drop)
        },
    )
}

/// A Python that imports this tree's package with the library.
pub(crate) fn command(sh: &Shell, python: &Path, library: &Path) -> Command {
    let mut command = Command::new(python);
    command
        .env("PYTHONPATH", sh.path("bindings/python"))
        .env("LOWBIT_LIBRARY", library);
    command
}

/// The same with the packages of more folders.
pub(crate) fn command_with(
    sh: &Shell,
    python: &Path,
    library: &Path,
    packages: impl IntoIterator<Item = PathBuf>,
) -> Result<Command> {
    let folders = std::iter::once(sh.path("bindings/python")).chain(packages);
    let path = std::env::join_paths(folders)
        .map_err(|error| Error::Failed(format!("PYTHONPATH: {error}")))?;
    let mut command = command(sh, python, library);
    command.env("PYTHONPATH", path);
    Ok(command)
}

/// Makes a virtual environment from the machine's Python.
pub(crate) fn venv(sh: &Shell, dir: &Path) -> Result<()> {
    let python = match base(sh) {
        Some(python) => python,
        None => {
            apt::install(sh, "python3-venv", NO_BASE)?;
            base(sh).ok_or_else(|| Error::failed(NO_BASE))?
        }
    };
    sh.quiet(Command::new(python).args(["-m", "venv"]).arg(dir))
}

/// The environment's `pip install`, to which the caller adds what.
///
/// Only wheels, as compiling one of these packages from source would take hours, and no cache, as
/// nothing is to be written outside the checkout.
pub(crate) fn pip_install(dir: &Path) -> Command {
    pip(&python(dir))
}

/// The same by an environment's Python.
pub(crate) fn pip(python: &Path) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-I", "-m", "pip", "install", "--disable-pip-version-check"]);
    pip.args(["--no-input", "--no-cache-dir", "--only-binary", ":all:"]);
    pip
}

fn python(dir: &Path) -> PathBuf {
    dir.join("bin/python")
}

/// The first Python on `PATH` that the pinned versions have wheels for, and that can put a pip into
/// an environment, which Debian's cannot without a package.
fn base(sh: &Shell) -> Option<&'static str> {
    const CHECK: &str = "\
        import ensurepip, sys, venv; ensurepip.version(); \
        sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))";
    CANDIDATES
        .into_iter()
        .find(|name| sh.read(Command::new(name).args(["-c", CHECK])).is_ok())
}
