//! `cargo xtask peers`: times lowbit against the optimizers that others offer on a CPU, and tests
//! the conversion of their states with the packages themselves.

use std::process::Command;

use crate::error::Result;
use crate::shell::Shell;
use crate::{build, env};

/// Arguments go to the harness; `cargo xtask peers --help` lists them. `convert` alone runs the tests
/// of `lowbit.convert` instead, also those that need the packages.
pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    let mut python = python(sh)?;
    if args == ["convert"] {
        python.current_dir(sh.path("bindings/python/tests"));
        python.args(["-m", "unittest", "--verbose", "test_convert"]);
    } else {
        python.arg(sh.path("tests/bench/peers/run.py")).args(args);
    }
    sh.run(&mut python)
}

/// A Python with the peers' packages and this library, which is built first. Only the CPU is timed.
pub(crate) fn python(sh: &Shell) -> Result<Command> {
    let library = build::library_for_cpu(sh)?;
    let mut python = env::peers::python(sh)?;
    python
        .env("LOWBIT_LIBRARY", library)
        .env("PYTHONPATH", sh.path("bindings/python"));
    Ok(python)
}
