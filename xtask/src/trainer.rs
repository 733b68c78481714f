//! `cargo xtask trainer`: fine-tunes a pretrained model with Hugging Face's Trainer.

use std::path::Path;
use std::process::Command;

use crate::env;
use crate::error::{Error, Result};
use crate::shell::Shell;

/// Arguments go to `examples/torch/trainer.py`.
pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    for name in ["wordnet", "minilm"] {
        env::experiments::data(sh, name, None)?;
    }
    // It runs on the CPU, so no CUDA compiler is fetched.
    sh.run(Command::new("cargo").args(["build", "--release", "--package", "lowbit"]))?;
    let library = sh.path("target/release/liblowbit.so");
    let example = sh.path("examples/torch/trainer.py");
    sh.run(python(sh, &library)?.arg(example).args(args))
}

/// PyTorch's Python with all that the example imports.
pub(crate) fn python(sh: &Shell, library: &Path) -> Result<Command> {
    let mut command = Command::new(env::torch::ensure(sh)?);
    let packages = env::huggingface::packages(sh)?;
    let path = std::env::join_paths([sh.path("bindings/python"), packages])
        .map_err(|error| Error::Failed(format!("PYTHONPATH: {error}")))?;
    command
        .env("PYTHONPATH", path)
        .env("LOWBIT_LIBRARY", library);
    Ok(command)
}
