//! What renders documentation: Debian's doxygen for the headers, pdoc for Python.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Install, apt, python, script};
use crate::error::Result;
use crate::shell::Shell;

/// The recipe is the stamp as well: another recipe is another install.
const RECIPE: &str = concat!(
    include_str!("../../scripts/doxygen.sh"),
    include_str!("../../scripts/apt.sh")
);

/// Returns doxygen: always Debian's, as its warnings differ from version to version.
pub(crate) fn doxygen(sh: &Shell) -> Result<PathBuf> {
    apt::unpacks("there is no apt-get to fetch Debian's doxygen with")?;
    let program = |dir: &Path| dir.join("bin/doxygen");
    let install = Install {
        name: "doxygen",
        what: "Debian's doxygen 1.9 (63 MB from the machine's Debian mirror, 270 MB on disk)",
        stamp: RECIPE,
    };
    let dir = install.ensure(
        sh,
        |dir| script(sh, "doxygen.sh", dir),
        |dir| {
            sh.read(Command::new(program(dir)).arg("--version"))
                .map(drop)
        },
    )?;
    Ok(program(&dir))
}

/// Returns a folder for `PYTHONPATH` that has pdoc.
pub(crate) fn pdoc(sh: &Shell) -> Result<PathBuf> {
    let install = Install {
        name: "pdoc",
        what: "pdoc (2 MB from PyPI, 10 MB on disk)",
        stamp: include_str!("../../requirements-docs.txt"),
    };
    let python = python::ensure(sh)?;
    let requirements = "xtask/requirements-docs.txt";
    python::packages(sh, &python, &install, requirements, "import pdoc")
}
