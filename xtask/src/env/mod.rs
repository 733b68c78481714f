//! Sets up the tools that the demo and the tests need.
//!
//! Each tool has a function `ensure` that uses what is there and works, or else installs it into
//! `target/env/<tool>` after saying so.

mod apt;
pub(crate) mod cmake;
pub(crate) mod docs;
pub(crate) mod experiments;
pub(crate) mod fuzz;
pub(crate) mod gpu;
pub(crate) mod huggingface;
pub(crate) mod julia;
pub(crate) mod mpi;
pub(crate) mod nvcc;
pub(crate) mod nvrtc;
pub(crate) mod peers;
pub(crate) mod python;
pub(crate) mod torch;
pub(crate) mod valgrind;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};
use crate::shell::{Shell, announce};

type Ensure = fn(&Shell) -> Result<PathBuf>;

const TOOLS: [(&str, Ensure); 7] = [
    ("python", python::ensure),
    ("torch", torch::ensure),
    ("julia", julia::ensure),
    ("nvrtc", nvrtc::ensure),
    ("nvcc", nvcc::ensure),
    ("valgrind", valgrind::ensure),
    ("mpi", |sh| mpi::ensure(sh).map(|mpi| mpi.launcher)),
];

/// `cargo xtask env`: all tools and where they are, or the path of one alone for use in scripts.
pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    match args {
        [] => {
            for (name, ensure) in TOOLS {
                println!("{name:<10}{}", ensure(sh)?.display());
            }
        }
        [name] => {
            let Some((_, ensure)) = TOOLS.iter().find(|(tool, _)| tool == name) else {
                return Err(Error::Usage(format!("there is no tool `{name}`")));
            };
            println!("{}", ensure(sh)?.display());
        }
        _ => return Err(Error::Usage("`env` takes at most one tool".into())),
    }
    Ok(())
}

/// Where everything is installed. `build.rs` looks for the CUDA compiler there.
fn envs(sh: &Shell) -> PathBuf {
    sh.path("target/env")
}

/// Something that is installed into a folder of its own.
struct Install<'a> {
    /// The folder's name in `target/env`.
    name: &'a str,
    /// What is installed, from where, and about how large it is, for the person who waits.
    what: &'a str,
    /// The versions. Another text than that of an earlier install is a reason for a new one.
    stamp: &'a str,
}

impl Install<'_> {
    /// Returns the folder, with the tool in it.
    ///
    /// `build` fills the empty folder; `works` then tells whether it did, and later whether it
    /// still does (the folder may have been copied, or what it relies on removed). The stamp is
    /// written last, so that an install that was cut short is done again.
    fn ensure(
        &self,
        sh: &Shell,
        build: impl FnOnce(&Path) -> Result<()>,
        works: impl Fn(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let envs = envs(sh);
        let dir = envs.join(self.name);
        let stamp = dir.join("stamp");
        let there = || fs::read_to_string(&stamp).is_ok_and(|old| old == self.stamp);
        if there() && works(&dir).is_ok() {
            return Ok(dir);
        }

        // Two commands may be at it at the same time: the second waits and finds the work done.
        fs::create_dir_all(&envs).context(envs.display())?;
        let lock = envs.join(format!("{}.lock", self.name));
        let file = File::create(&lock).context(lock.display())?;
        file.lock().context(lock.display())?;
        if there() && works(&dir).is_ok() {
            return Ok(dir);
        }

        announce(&format!(
            "installing {} into target/env/{}",
            self.what, self.name
        ));
        remove(&dir)?;
        fs::create_dir(&dir).context(dir.display())?;
        build(&dir)
            .and_then(|()| works(&dir))
            .context(format_args!("target/env/{} could not be set up", self.name))?;
        fs::write(&stamp, self.stamp).context(stamp.display())?;
        Ok(dir)
    }
}

/// Runs a script of `xtask/scripts` that fills a folder.
fn script(sh: &Shell, name: &str, dir: &Path) -> Result<()> {
    let path = sh.path(format!("xtask/scripts/{name}"));
    sh.quiet(Command::new("sh").arg(path).arg(dir))
}

/// Removes a folder if it is there.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context(dir.display()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn only_a_finished_install_of_the_same_versions_is_used_again() {
        let root = std::env::temp_dir().join(format!("xtask-install-{}", std::process::id()));
        let sh = Shell::at(&root);
        let builds = Cell::new(0);
        let ensure = |stamp: &str, build_ok: bool, works: bool| {
            let install = Install {
                name: "tool",
                what: "a tool",
                stamp,
            };
            let build = |dir: &Path| {
                builds.set(builds.get() + 1);
                assert_eq!(
                    fs::read_dir(dir).unwrap().count(),
                    0,
                    "the folder is not empty"
                );
                fs::write(dir.join("file"), "").unwrap();
                if build_ok {
                    Ok(())
                } else {
                    Err(Error::failed("no network"))
                }
            };
            let works = |_: &Path| {
                if works {
                    Ok(())
                } else {
                    Err(Error::failed("crash"))
                }
            };
            install.ensure(&sh, build, works)
        };

        let message = ensure("1", false, true).unwrap_err().to_string();
        assert_eq!(message, "target/env/tool could not be set up: no network");
        ensure("1", true, false).unwrap_err();
        assert_eq!(
            ensure("1", true, true).unwrap(),
            root.join("target/env/tool")
        );
        assert_eq!(builds.get(), 3);
        ensure("1", false, true).unwrap();
        assert_eq!(builds.get(), 3, "nothing to do");
        ensure("2", true, true).unwrap();
        assert_eq!(builds.get(), 4, "another version");
        ensure("2", true, false).unwrap_err();
        assert_eq!(builds.get(), 5, "it no longer works");
        fs::remove_dir_all(root).unwrap();
    }
}
