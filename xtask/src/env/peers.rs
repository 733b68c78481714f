//! A Python with the optimizers that lowbit is compared with. Nothing but `cargo xtask peers` asks
//! for it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Install, python};
use crate::error::{Context, Error, Result};
use crate::shell::{Shell, announce};

/// The packages and their versions.
const REQUIREMENTS: &str = include_str!("../../requirements-peers.txt");

/// Returns a command that runs the environment's Python, to which the caller adds what.
pub(crate) fn python(sh: &Shell) -> Result<Command> {
    let install = Install {
        name: "peers",
        what: "PyTorch, torchao, bitsandbytes, DeepSpeed, JAX and optax for the CPU \
               (850 MB from PyPI, 2.1 GB on disk, some minutes)",
        stamp: REQUIREMENTS,
    };
    let dir = install.ensure(sh, |dir| build(sh, dir), |dir| works(sh, dir))?;
    command(&dir)
}

fn build(sh: &Shell, dir: &Path) -> Result<()> {
    python::venv(sh, dir)?;
    // DeepSpeed is published as source only. What it compiles is compiled below.
    sh.quiet(
        python::pip_install(dir)
            .args(["--no-deps", "--no-binary", "deepspeed", "--requirement"])
            .arg(sh.path("xtask/requirements-peers.txt")),
    )?;
    let mut stubs = command(dir)?;
    sh.quiet(
        stubs
            .arg(sh.path("xtask/scripts/torch_stubs.py"))
            .arg(package(sh, dir, "torch")?.join("lib")),
    )?;
    // Kernels for GPUs, which are not called here, are most of it.
    let bitsandbytes = package(sh, dir, "bitsandbytes")?;
    for entry in fs::read_dir(&bitsandbytes).context(bitsandbytes.display())? {
        let path = entry.context(bitsandbytes.display())?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".so") && name != "libbitsandbytes_cpu.so" {
            fs::remove_file(&path).context(path.display())?;
        }
    }
    // Where it does not compile, the results say why in the place of its times.
    let mut compile = command(dir)?;
    compile.args([
        "-c",
        "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load()",
    ]);
    let (compiled, output) = sh.attempt(&mut compile)?;
    if !compiled {
        announce(&format!("DeepSpeed's CPUAdam does not compile:\n{output}"));
    }
    Ok(())
}

fn works(sh: &Shell, dir: &Path) -> Result<()> {
    const IMPORTS: &str = "import torch, torchao.optim, bitsandbytes, deepspeed, optax, matplotlib";
    sh.read(command(dir)?.args(["-c", IMPORTS])).map(drop)
}

/// The environment's Python. What torch, XLA and DeepSpeed compile stays in the environment.
fn command(dir: &Path) -> Result<Command> {
    // They look for ninja on PATH.
    let mut path = vec![dir.join("bin")];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let path: OsString =
        env::join_paths(path).map_err(|error| Error::Failed(format!("PATH: {error}")))?;
    let mut python = Command::new(dir.join("bin/python"));
    python
        .env("PATH", path)
        .env("TORCH_EXTENSIONS_DIR", dir.join("extensions"))
        .env("TORCHINDUCTOR_CACHE_DIR", dir.join("inductor"))
        .env("TORCHINDUCTOR_COMPILE_THREADS", "1")
        .env("JAX_COMPILATION_CACHE_DIR", dir.join("xla"))
        .env("DS_ACCELERATOR", "cpu");
    Ok(python)
}

/// The folder of an installed package.
fn package(sh: &Shell, dir: &Path, name: &str) -> Result<PathBuf> {
    const WHERE: &str = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let packages = sh.read(command(dir)?.args(["-c", WHERE]))?;
    Ok(Path::new(&packages).join(name))
}
