//! `cargo xtask checkpoints`: times saving and loading against `cp` and `torch.save`.

use crate::error::Result;
use crate::peers;
use crate::shell::Shell;

/// Arguments go to the script; `cargo xtask checkpoints --help` lists them.
pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    let mut python = peers::python(sh)?;
    sh.run(python.arg(sh.path("tests/bench/checkpoint.py")).args(args))
}
