//! `cargo xtask data` and `cargo xtask experiment`: the experiments and what they run on.

use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};
use crate::shell::Shell;
use crate::{build, env};

/// Unpacks one data set, or all, from packages in a folder if one is given.
pub(crate) fn data(sh: &Shell, args: &[String]) -> Result<()> {
    let (names, from) = match args {
        [names @ .., flag, folder] if flag == "--from" => (names, Some(Path::new(folder))),
        names => (names, None),
    };
    let all = env::experiments::DATA.map(|(name, _)| name.to_owned());
    for name in if names.is_empty() { &all } else { names } {
        let folder = env::experiments::data(sh, name, from)?;
        println!("{name:<10}{}", folder.display());
    }
    Ok(())
}

/// Runs `examples/experiments/run.py` with the data that the experiment needs.
pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    let needed: &[&str] = match (args.first().map(String::as_str), args.get(1)) {
        (None, _) => return Err(Error::Usage("`experiment` needs its name: e1 to e7".into())),
        (Some("e1" | "e4" | "e5" | "miniature"), _) => &["text"],
        (Some("e2"), _) => &["wordnet", "minilm"],
        (Some("e3"), Some(case)) if case == "glyphs" => &["fonts"],
        _ => &[],
    };
    for name in needed {
        env::experiments::data(sh, name, None)?;
    }
    let library = build::library_for_cpu(sh)?;
    sh.run(python(sh, &library)?.arg("run.py").args(args))
}

/// Python in the folder of the experiments, with all that they import.
pub(crate) fn python(sh: &Shell, library: &Path) -> Result<Command> {
    let packages = env::experiments::packages(sh)?;
    let mut command =
        env::python::command_with(sh, &env::python::ensure(sh)?, library, [packages])?;
    command.current_dir(sh.path("examples/experiments"));
    Ok(command)
}
