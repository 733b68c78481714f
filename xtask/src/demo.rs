//! `cargo xtask demo`: trains the C++ example's GPT with three optimizers on real text.

use std::process::Command;

use crate::build;
use crate::error::Result;
use crate::shell::Shell;

/// Arguments go to the example; `cargo xtask demo --help` lists them.
pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    build::library_for_cpu(sh)?;
    let gpt = build::program(sh, "examples/cpp/gpt.cpp", "gpt", &["-O3"])?;
    let mut command = Command::new(gpt);
    if !args.iter().any(|arg| arg == "--out") {
        command.arg("--out").arg(sh.path("target/demo"));
    }
    sh.run(command.args(args))
}
