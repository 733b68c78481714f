//! `cargo xtask checkpoints`: times saving and loading against `cp` and `torch.save`.

use std::process::Command;

use crate::env;
use crate::error::Result;
use crate::shell::Shell;

/// Arguments go to the script; `cargo xtask checkpoints --help` lists them.
pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    // Nothing runs on a GPU here.
    sh.run(Command::new("cargo").args(["build", "--release", "--package", "lowbit"]))?;
    sh.run(
        env::peers::python(sh)?
            .arg(sh.path("tests/bench/checkpoint.py"))
            .args(args)
            .env("LOWBIT_LIBRARY", sh.path("target/release/liblowbit.so"))
            .env("PYTHONPATH", sh.path("bindings/jax")),
    )
}
