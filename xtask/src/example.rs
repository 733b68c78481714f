//! `cargo xtask example`: examples that need more than a compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::shell::Shell;
use crate::{build, env, experiment};

/// Arguments after the name go to the example.
pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    let Some((name, args)) = args.split_first() else {
        return Err(Error::Usage(
            "`example` needs a name: jax, libtorch, trainer".into(),
        ));
    };
    let mut example = match name.as_str() {
        "jax" => jax(sh, &build::library_for_cpu(sh)?)?,
        "libtorch" => {
            build::library_for_cpu(sh)?;
            Command::new(libtorch(sh)?)
        }
        "trainer" => trainer(sh, &build::library_for_cpu(sh)?)?,
        unknown => return Err(Error::Usage(format!("there is no example `{unknown}`"))),
    };
    sh.run(example.args(args))
}

/// The language model of the experiments under optax.adamw and what takes its place.
pub(crate) fn jax(sh: &Shell, library: &Path) -> Result<Command> {
    env::experiments::data(sh, "text", None)?;
    let mut python = experiment::python(sh, library)?;
    python
        .arg(sh.path("examples/jax/train.py"))
        .current_dir(sh.path(""));
    Ok(python)
}

/// A C++ trainer with the libtorch that lies in PyTorch's wheel; returns the program.
pub(crate) fn libtorch(sh: &Shell) -> Result<PathBuf> {
    let torch = env::torch::packages(sh)?.join("torch");
    let library = torch.join("lib");
    let flags = [
        "-std=c++20".into(),
        "-O2".into(),
        format!("-isystem{}", torch.join("include").display()),
        format!(
            "-isystem{}",
            torch.join("include/torch/csrc/api/include").display()
        ),
        format!("-L{}", library.display()),
        format!("-Wl,-rpath,{}", library.display()),
        // Named before the source that needs them.
        "-Wl,--no-as-needed".into(),
        "-ltorch".into(),
        "-ltorch_cpu".into(),
        "-lc10".into(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    build::program(sh, "examples/cpp/torch.cpp", "libtorch", &flags)
}

/// Hugging Face's Trainer with torch's AdamW and with what takes its place.
fn trainer(sh: &Shell, library: &Path) -> Result<Command> {
    for name in ["wordnet", "minilm"] {
        env::experiments::data(sh, name, None)?;
    }
    let mut python = with_transformers(sh, library)?;
    python.arg(sh.path("examples/torch/trainer.py"));
    Ok(python)
}

/// PyTorch's Python with the Trainer and this library.
pub(crate) fn with_transformers(sh: &Shell, library: &Path) -> Result<Command> {
    let packages = env::huggingface::packages(sh)?;
    env::python::command_with(sh, &env::torch::ensure(sh)?, library, [packages])
}
