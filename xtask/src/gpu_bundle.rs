//! `cargo xtask gpu-bundle`: what a machine with a GPU, Python and PyTorch, but no Rust, needs to
//! run `tests/gpu/run.sh`. Paths in the bundle are those of the checkout.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};
use crate::shell::Shell;
use crate::{build, env};

/// Whole files and, of folders, the files that lie in them; subfolders are left out.
const CONTENT: [&str; 16] = [
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "bindings/cpp/lowbit.hpp",
    "bindings/python/lowbit",
    "bindings/python/lowbit/torch",
    "cuda/instructions.json",
    "examples/cpp",
    "examples/cuda",
    "examples/experiments",
    "examples/torch/adapters.py",
    "include/lowbit.h",
    "tests/common/README.md",
    "tests/common/cases.txt",
    "tests/common/conformance.txt",
    "tests/common/protocol.py",
    "tests/gpu",
];

/// Of the archive: it is to fit wherever such a machine takes its files from.
const MOST_BYTES: u64 = 50_000_000;

pub(crate) struct Bundle {
    pub(crate) dir: PathBuf,
    pub(crate) archive: PathBuf,
}

pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    if let Some(unknown) = args.first() {
        return Err(Error::Usage(format!(
            "gpu-bundle takes no argument `{unknown}`"
        )));
    }
    let bundle = create(sh)?;
    print!("{}", read(&bundle.dir.join("manifest.txt"))?);
    Ok(())
}

/// Builds the library and lays out the bundle, as a folder and as an archive of that.
pub(crate) fn create(sh: &Shell) -> Result<Bundle> {
    let library = build::library(sh)?;
    let bundle = Bundle {
        dir: sh.path("target/gpu-bundle"),
        archive: sh.path("target/gpu-bundle.tar.gz"),
    };
    env::remove(&bundle.dir)?;
    let mut files = Vec::new();
    for content in CONTENT {
        for file in listed(sh, Path::new(content))? {
            copy(&sh.path(&file), &bundle.dir.join(&file))?;
            files.push(file);
        }
    }

    let place = PathBuf::from("lib/liblowbit.so");
    make_parent(&bundle.dir.join(&place))?;
    let mut strip = Command::new("strip");
    strip.arg("--strip-unneeded").arg("-o");
    sh.quiet(strip.arg(bundle.dir.join(&place)).arg(&library))?;
    files.push(place);

    let others = env::gpu::ensure(sh)?;
    for folder in ["packages", "sanitizer"] {
        for file in tree(&others, Path::new(folder))? {
            copy(&others.join(&file), &bundle.dir.join(&file))?;
            files.push(file);
        }
    }

    write(&bundle.dir.join("manifest.txt"), &manifest(sh)?)?;
    files.push("manifest.txt".into());
    files.sort();
    let mut sums = Command::new("sha256sum");
    let sums = sh.read(sums.args(&files).current_dir(&bundle.dir))? + "\n";
    write(&bundle.dir.join("SHA256SUMS"), &sums)?;
    files.push("SHA256SUMS".into());

    // The same bytes from the same files.
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.args(["--mode=u=rwX,go=rX", "--mtime=@0", "-czf"]);
    tar.arg(&bundle.archive).arg("-C").arg(sh.path("target"));
    sh.quiet(tar.arg("gpu-bundle"))?;
    limit(&bundle, &files)?;
    Ok(bundle)
}

/// A path that is a file, or the files in the folder that it is.
fn listed(sh: &Shell, path: &Path) -> Result<Vec<PathBuf>> {
    let absolute = sh.path(path);
    if absolute.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(&absolute).context(absolute.display())? {
        let entry = entry.context(absolute.display())?;
        if entry.path().is_file() {
            files.push(path.join(entry.file_name()));
        }
    }
    Ok(files)
}

/// All files below a folder of `root`.
fn tree(root: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let absolute = root.join(folder);
    let mut files = Vec::new();
    for entry in fs::read_dir(&absolute).context(absolute.display())? {
        let entry = entry.context(absolute.display())?;
        let path = folder.join(entry.file_name());
        if entry.path().is_dir() {
            files.extend(tree(root, &path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// What was built from what: a name and a value on each line.
fn manifest(sh: &Shell) -> Result<String> {
    let commit =
        sh.read(Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=40"]));
    let rustc = sh.read(Command::new("rustc").arg("--version"))?;
    Ok(format!(
        "lowbit {}\ncommit {}\nrustc {}\nkernels {}\n",
        env!("CARGO_PKG_VERSION"),
        commit.as_deref().unwrap_or("unknown"),
        rustc.trim_start_matches("rustc "),
        env::nvrtc::NVRTC,
    ))
}

/// Prints the sizes; an error if one is too large.
fn limit(bundle: &Bundle, files: &[PathBuf]) -> Result<()> {
    let size = |path: &Path| Ok(fs::metadata(path).context(path.display())?.len());
    let mut unpacked = 0;
    for file in files {
        unpacked += size(&bundle.dir.join(file))?;
    }
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let archive = size(&bundle.archive)?;
    for (path, bytes) in [(&bundle.dir, unpacked), (&bundle.archive, archive)] {
        println!("{:6.2} MB  {}", megabytes(bytes), path.display());
    }
    if archive > MOST_BYTES {
        return Err(Error::Failed(format!(
            "{} has {:.2} MB; at most {} MB are allowed",
            bundle.archive.display(),
            megabytes(archive),
            megabytes(MOST_BYTES),
        )));
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    // Also the permissions: run.sh is to be executable.
    fs::copy(from, to).context(from.display()).map(drop)
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).context(parent.display())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).context(path.display())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).context(path.display())
}
