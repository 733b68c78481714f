//! Hugging Face's Trainer, in a folder of its own beside PyTorch's environment.

use std::path::PathBuf;

use super::{Install, python, torch};
use crate::error::Result;
use crate::shell::Shell;

/// Returns a folder for `PYTHONPATH` of PyTorch's Python.
pub(crate) fn packages(sh: &Shell) -> Result<PathBuf> {
    let install = Install {
        name: "huggingface",
        what: "transformers, accelerate and matplotlib (50 MB from PyPI, 170 MB on disk)",
        stamp: include_str!("../../requirements-huggingface.txt"),
    };
    python::packages(
        sh,
        &torch::ensure(sh)?,
        &install,
        "xtask/requirements-huggingface.txt",
        "import accelerate, matplotlib, transformers.trainer",
    )
}
