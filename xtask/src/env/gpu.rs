//! What `tests/gpu` runs beside lowbit on a GPU: NVIDIA's compute-sanitizer, and peers' packages. It
//! all goes into the bundle, as such a machine may have no network; nothing of it runs here.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Install, python, remove};
use crate::error::{Context, Result};
use crate::shell::Shell;

/// Of CUDA 13.5, which works with the drivers for 13.0 of today's GPU machines; the wheels for 13.0
/// lack programs that it starts others by.
const SANITIZER: &str = "nvidia-cuda-sanitizer-api==13.5.25";

/// The versions of `requirements-peers.txt`, and what they import and torch does not bring.
const PEERS: [&str; 3] = ["bitsandbytes==0.50.2", "packaging==26.4", "torchao==0.18.0"];

/// Of bitsandbytes' libraries, the one for torch with CUDA 13.0; each of the others has 20 MB.
const LIBRARY: &str = "libbitsandbytes_cuda130.so";

/// Returns the folder, in which are the folders `packages` and `sanitizer`.
pub(crate) fn ensure(sh: &Shell) -> Result<PathBuf> {
    let install = Install {
        name: "gpu",
        what: "compute-sanitizer, bitsandbytes and torchao for the GPU bundle (70 MB from PyPI)",
        stamp: &format!("{SANITIZER}\n{}\n", PEERS.join("\n")),
    };
    install.ensure(sh, |dir| build(sh, dir), works)
}

fn build(sh: &Shell, dir: &Path) -> Result<()> {
    // A pip of its own, as the machine's Python need not have one.
    let (pip, packages, tool) = (dir.join("pip"), dir.join("packages"), dir.join("tool"));
    python::venv(sh, &pip)?;
    for (target, names) in [(&packages, &PEERS[..]), (&tool, &[SANITIZER][..])] {
        let mut command = python::pip_install(&pip);
        sh.quiet(
            command
                .args(["--no-deps", "--no-compile", "--target"])
                .arg(target)
                .args(names),
        )?;
    }
    // torchao's wheel brings its tests, as a package of that name.
    remove(&packages.join("test"))?;
    // What was compiled is for other versions of torch or of CUDA; torchao does without.
    prune(&packages, &|name| name == LIBRARY || !name.ends_with(".so"))?;

    let sanitizer = dir.join("sanitizer");
    let from = tool.join("nvidia/cu13/compute-sanitizer");
    fs::rename(&from, &sanitizer).context(from.display())?;
    // Documentation, headers, and what checks 32-bit programs.
    for folder in ["docs", "include", "x86"] {
        remove(&sanitizer.join(folder))?;
    }
    let licence = "nvidia_cuda_sanitizer_api-13.5.25.dist-info/licenses/License.txt";
    fs::rename(tool.join(licence), sanitizer.join("License.txt")).context(licence)?;
    remove(&tool)?;
    remove(&pip)
}

fn works(dir: &Path) -> Result<()> {
    for file in [
        "sanitizer/compute-sanitizer",
        "sanitizer/TreeLauncherSubreaper",
        "sanitizer/TreeLauncherTargetLdPreloadHelper",
        "packages/torchao/optim/__init__.py",
        "packages/bitsandbytes/libbitsandbytes_cuda130.so",
    ] {
        fs::metadata(dir.join(file)).context(file)?;
    }
    Ok(())
}

/// Removes the files in a folder and those below that are not to be kept.
fn prune(dir: &Path, keep: &dyn Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(dir).context(dir.display())? {
        let path = entry.context(dir.display())?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            prune(&path, keep)?;
        } else if !keep(&name) {
            fs::remove_file(&path).context(path.display())?;
        }
    }
    Ok(())
}
