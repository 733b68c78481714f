//! `cargo xtask test`.

use std::process::Command;

use crate::error::{Error, Result};
use crate::shell::Shell;
use crate::steps::Steps;

pub(crate) fn run(sh: &Shell, _args: &[String]) -> Result<()> {
    let mut steps = Steps::default();
    steps.run("xtask", || {
        sh.run(Command::new("cargo").args(["test", "--package", "xtask"]))
    });
    steps.run("everything else", || {
        Err::<(), _>(Error::failed("it is not written yet"))
    });
    steps.finish()
}
