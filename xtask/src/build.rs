//! Builds the library and programs that use it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::env;
use crate::error::{Context, Result};
use crate::shell::Shell;

/// The cdylib with its CUDA kernels, as it would be released.
pub(crate) fn library(sh: &Shell) -> Result<PathBuf> {
    let mut cargo = cargo(sh)?;
    sh.run(cargo.args(["build", "--release", "--package", "lowbit"]))?;
    Ok(sh.path("target/release/liblowbit.so"))
}

/// The cdylib for the CPU alone: no compiler of CUDA is fetched, and the build is short. Where one has been, it
/// is that of [`library`], which need not be built again.
pub(crate) fn library_for_cpu(sh: &Shell) -> Result<PathBuf> {
    let mut cargo = if env::nvrtc::is_there(sh) {
        cargo(sh)?
    } else {
        Command::new("cargo")
    };
    sh.run(cargo.args(["build", "--release", "--package", "lowbit"]))?;
    Ok(sh.path("target/release/liblowbit.so"))
}

/// [`library`] with functions that misbehave on request, in the folder where the tests in Rust build it too
/// (`tests/c/library.rs`): the second build of the two finds it done.
pub(crate) fn library_with_hooks(sh: &Shell) -> Result<PathBuf> {
    let mut cargo = cargo(sh)?;
    cargo.args([
        "build",
        "--release",
        "--package",
        "lowbit",
        "--features",
        "test-hooks",
    ]);
    sh.run(cargo.arg("--target-dir").arg(sh.path("target/capi-hooks")))?;
    Ok(sh.path("target/capi-hooks/release/liblowbit.so"))
}

/// Cargo with the CUDA compiler in reach, failing rather than building without kernels.
pub(crate) fn cargo(sh: &Shell) -> Result<Command> {
    let mut cargo = Command::new("cargo");
    cargo.env("LOWBIT_NVRTC", env::nvrtc::ensure(sh)?);
    cargo.env("LOWBIT_REQUIRE_CUDA_KERNELS", "1");
    cargo.env("LOWBIT_KERNEL_CACHE", sh.path("target/kernels"));
    Ok(cargo)
}

/// Compiles one C or C++ source and links it with the library in `target/release`, as an outside
/// trainer would. The program lands in `target/cxx`.
pub(crate) fn program(sh: &Shell, source: &str, name: &str, flags: &[&str]) -> Result<PathBuf> {
    let (variable, default) = if is_cpp(source) {
        ("CXX", "g++")
    } else {
        ("CC", "cc")
    };
    let compiler = std::env::var_os(variable).unwrap_or_else(|| default.into());
    program_by(Path::new(&compiler), sh, source, name, flags)
}

fn is_cpp(source: &str) -> bool {
    let extension = Path::new(source).extension();
    extension.is_some_and(|extension| extension == "cpp")
}

/// The same by this compiler.
pub(crate) fn program_by(
    compiler: &Path,
    sh: &Shell,
    source: &str,
    name: &str,
    flags: &[&str],
) -> Result<PathBuf> {
    let standard = if is_cpp(source) {
        "-std=c++17"
    } else {
        "-std=c99"
    };
    let folder = sh.path("target/cxx");
    std::fs::create_dir_all(&folder).context(folder.display())?;
    let output = folder.join(name);
    let library = sh.path("target/release");
    let mut compiler = Command::new(compiler);
    compiler
        .args([
            standard,
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Wshadow",
            "-Werror",
        ])
        .args(flags)
        .arg("-I")
        .arg(sh.path("include"))
        .arg("-I")
        .arg(sh.path("bindings/cpp"))
        .arg(sh.path(source))
        .arg("-L")
        .arg(&library)
        .args(["-llowbit", "-pthread"])
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .arg("-o")
        .arg(&output);
    sh.run(&mut compiler)?;
    Ok(output)
}

/// A folder with a libcuda for tests without a GPU: the kernels run on the host. To be put on
/// `LD_LIBRARY_PATH`.
pub(crate) fn mock_driver(sh: &Shell) -> Result<PathBuf> {
    let folder = sh.path("target/mock-driver");
    env::remove(&folder)?;
    std::fs::create_dir_all(&folder).context(folder.display())?;
    let mut compiler = emulating();
    compiler
        .args(["-fPIC", "-shared", "-I"])
        .arg(sh.path("cuda"))
        .arg(sh.path("tests/cuda/mock_driver.cpp"))
        .arg("-o")
        .arg(folder.join("libcuda.so.1"));
    sh.run(&mut compiler)?;
    // The loader is asked for this name first.
    let link = folder.join("libcuda.so");
    std::os::unix::fs::symlink("libcuda.so.1", &link).context(link.display())?;
    Ok(folder)
}

/// The checks of `examples/cuda` for tests without a GPU: the kernels run on the host. Beside the
/// program lies a libcublas; its folder and the mock driver's are to be on `LD_LIBRARY_PATH`.
pub(crate) fn emulated_cuda_example(sh: &Shell) -> Result<PathBuf> {
    let folder = sh.path("target/cuda-emulated");
    std::fs::create_dir_all(&folder).context(folder.display())?;
    let headers = sh.path("tests/cuda/host");
    let mut cublas = emulating();
    cublas
        .args(["-fPIC", "-shared"])
        .arg(headers.join("cublas.cpp"))
        .arg("-o")
        .arg(folder.join("libcublas.so.13"));
    sh.run(&mut cublas)?;
    let (program, library) = (folder.join("check"), sh.path("target/release"));
    let mut compiler = emulating();
    compiler
        .args(["-x", "c++", "-I"])
        .arg(&headers)
        .arg("-I")
        .arg(sh.path("include"))
        .arg("-I")
        .arg(sh.path("bindings/cpp"))
        .arg(sh.path("examples/cuda/check.cu"))
        .arg("-L")
        .arg(&library)
        .args(["-llowbit", "-pthread", "-ldl"])
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .arg("-o")
        .arg(&program);
    sh.run(&mut compiler)?;
    Ok(program)
}

/// The compiler for what runs kernels on the host.
fn emulating() -> Command {
    let mut compiler = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "g++".into()));
    compiler
        .args(["-std=c++17", "-O1", "-ffp-contract=off"])
        .args(["-fno-strict-aliasing", "-U_FORTIFY_SOURCE"])
        .args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]);
    compiler
}
