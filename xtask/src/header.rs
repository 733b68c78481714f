//! `cargo xtask header`: writes everything that is generated from `src/capi`.

use std::process::Command;

use crate::error::{Error, Result};
use crate::shell::Shell;

pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    if let Some(unknown) = args.first() {
        return Err(Error::Usage(format!(
            "header takes no argument `{unknown}`"
        )));
    }
    let mut cargo = Command::new("cargo");
    cargo.args([
        "test",
        "--release",
        "--package",
        "lowbit",
        "--test",
        "header",
    ]);
    sh.run(cargo.env("LOWBIT_BLESS", "1"))?;
    sh.run(Command::new("python3").arg(sh.path("bindings/generate.py")))
}
