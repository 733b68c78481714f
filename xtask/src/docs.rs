//! `cargo xtask docs`: the pages, and a reference for each language made from its docstrings.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};
use crate::shell::Shell;
use crate::{build, env};

pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    if let Some(unknown) = args.first() {
        return Err(Error::Usage(format!("docs takes no argument `{unknown}`")));
    }
    let library = build::library_for_cpu(sh)?;
    let out = write(sh, &library, Command::new("cargo"))?;
    println!("{}", out.join("index.html").display());
    Ok(())
}

/// Writes `target/docs`. A warning of any of the programs is an error.
///
/// `cargo`: in the environment that the library was built in, so that it is not built again.
pub(crate) fn write(sh: &Shell, library: &Path, cargo: Command) -> Result<PathBuf> {
    let out = sh.path("target/docs");
    env::remove(&out)?;
    std::fs::create_dir_all(&out).context(out.display())?;
    rust(sh, cargo, &out)?;
    headers(sh, &out)?;
    python(sh, library, &out)?;
    julia(sh, library, &out)?;
    let mut pages = Command::new(env::python::ensure(sh)?);
    pages
        .env("PYTHONPATH", env::docs::pdoc(sh)?)
        .arg(sh.path("xtask/scripts/pages.py"))
        .arg(sh.path(""))
        .arg(&out);
    sh.quiet(&mut pages)?;
    Ok(out)
}

fn rust(sh: &Shell, mut cargo: Command, out: &Path) -> Result<()> {
    cargo.env("RUSTDOCFLAGS", "-D warnings");
    sh.run(cargo.args(["doc", "--release", "--package", "lowbit", "--no-deps"]))?;
    let mut copy = Command::new("cp");
    copy.arg("-R").arg(sh.path("target/doc"));
    sh.quiet(copy.arg(out.join("rust")))
}

fn headers(sh: &Shell, out: &Path) -> Result<()> {
    let doxygen = env::docs::doxygen(sh)?;
    let settings = sh.path("xtask/scripts/Doxyfile");
    let mut settings = std::fs::read_to_string(&settings).context(settings.display())?;
    settings += &format!(
        "OUTPUT_DIRECTORY = \"{}\"\nHTML_OUTPUT = c\n",
        out.display()
    );
    let file = out.join("Doxyfile");
    std::fs::write(&file, settings).context(file.display())?;
    sh.quiet(Command::new(doxygen).arg(&file))?;
    std::fs::remove_file(&file).context(file.display())
}

fn python(sh: &Shell, library: &Path, out: &Path) -> Result<()> {
    let torch = env::torch::packages(sh)?;
    let mut pdoc = env::python::command_with(
        sh,
        &env::python::ensure(sh)?,
        library,
        [env::docs::pdoc(sh)?, torch],
    )?;
    pdoc.env("JAX_PLATFORMS", "cpu")
        .args(["-W", "error", "-m", "pdoc", "--output-directory"])
        .arg(out.join("python"))
        // `checkpoint` is found as a member of `lowbit`.
        .args([
            "lowbit",
            "lowbit.core",
            "lowbit.jax",
            "lowbit.torch",
            "lowbit.convert",
        ]);
    sh.quiet(&mut pdoc)
}

fn julia(sh: &Shell, library: &Path, out: &Path) -> Result<()> {
    let script = "bindings/julia/docs/reference.jl";
    let mut julia = env::julia::command(sh, &env::julia::ensure(sh)?, library, script);
    sh.quiet(julia.arg(out.join("julia.html")))
}
