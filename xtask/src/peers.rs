//! `cargo xtask peers`: times lowbit against the optimizers that others offer on a CPU.

use std::process::Command;

use crate::env;
use crate::error::Result;
use crate::shell::Shell;

/// Arguments go to the harness; `cargo xtask peers --help` lists them.
pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    // Only the CPU is timed, so this does not fetch a CUDA compiler.
    sh.run(Command::new("cargo").args(["build", "--release", "--package", "lowbit"]))?;
    sh.run(
        env::peers::python(sh)?
            .arg(sh.path("tests/bench/peers/run.py"))
            .args(args)
            .env("LOWBIT_LIBRARY", sh.path("target/release/liblowbit.so"))
            .env("PYTHONPATH", sh.path("bindings/jax")),
    )
}
