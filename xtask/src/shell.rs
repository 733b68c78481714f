//! Runs other programs, and shows what it runs.

use std::borrow::Cow;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};

/// The checkout that the commands work on. Programs start in its root unless told otherwise.
///
/// What is run is shown on standard error, so that standard output is the programs' own.
#[derive(Debug)]
pub(crate) struct Shell {
    root: PathBuf,
    /// The programs' `LD_LIBRARY_PATH`.
    library_path: Option<OsString>,
}

impl Shell {
    /// The checkout that this program was built from, whatever folder it was started in.
    pub(crate) fn new() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .ok_or_else(|| Error::failed("xtask is not in a checkout"))?
            .to_path_buf();
        env::set_current_dir(&root).context(root.display())?;
        Ok(Self {
            root,
            library_path: library_path(),
        })
    }

    /// A folder that stands for a checkout.
    #[cfg(test)]
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            library_path: None,
        }
    }

    /// The absolute path of something in the checkout.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Runs a command whose output is of interest, and lets it through.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let line = self.line(command);
        eprintln!("    $ {line}");
        let start = Instant::now();
        let status = self
            .prepare(command)
            .status()
            .map_err(|error| no_start(&line, &error))?;
        eprintln!("    ({})", seconds(start.elapsed()));
        judge(&line, status, "")
    }

    /// Runs a command whose output is of interest only if it fails; the error then has it.
    pub(crate) fn quiet(&self, command: &mut Command) -> Result<()> {
        eprint!("    $ {}", self.line(command));
        let start = Instant::now();
        let result = self.read(command);
        eprintln!("  ({})", seconds(start.elapsed()));
        result.map(drop)
    }

    /// Runs a command for what it prints, without showing it. Returns that without the last line
    /// break.
    pub(crate) fn read(&self, command: &mut Command) -> Result<String> {
        let output = self.output(command)?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        judge(&self.line(command), output.status, &both(&output))?;
        Ok(stdout.trim_end().to_owned())
    }

    /// Runs a command that may fail. Returns whether it did not, and all that it printed.
    pub(crate) fn attempt(&self, command: &mut Command) -> Result<(bool, String)> {
        let output = self.output(command)?;
        Ok((output.status.success(), both(&output)))
    }

    fn output(&self, command: &mut Command) -> Result<Output> {
        let line = self.line(command);
        self.prepare(command)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| no_start(&line, &error))
    }

    fn prepare<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if command.get_envs().any(|(name, _)| name == LIBRARY_PATH) {
            return command;
        }
        match &self.library_path {
            Some(path) => command.env(LIBRARY_PATH, path),
            None => command.env_remove(LIBRARY_PATH),
        }
    }

    /// The command as one would type it in the root of the checkout.
    fn line(&self, command: &Command) -> String {
        let mut line = String::new();
        let mut base = self.root.as_path();
        if let Some(dir) = command.get_current_dir() {
            let _ = write!(line, "cd {} && ", word(dir.as_os_str(), base));
            base = dir;
        }
        for (name, value) in command.get_envs() {
            let name = name.to_string_lossy();
            let _ = match value {
                Some(value) => write!(line, "{name}={} ", word(value, base)),
                None => write!(line, "env -u {name} "),
            };
        }
        line += &word(command.get_program(), base);
        for arg in command.get_args() {
            let _ = write!(line, " {}", word(arg, base));
        }
        line
    }
}

/// One word of a command line: a path relative to `base` if it is inside, and quoted where a shell
/// would need it.
fn word(word: &OsStr, base: &Path) -> String {
    let word = match Path::new(word).strip_prefix(base) {
        Ok(relative) if relative.as_os_str().is_empty() => Cow::Borrowed("."),
        Ok(relative) => relative.to_string_lossy(),
        Err(_) => word.to_string_lossy(),
    };
    let plain = |c: char| c.is_alphanumeric() || "_-+=./:,@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// This program's `LD_LIBRARY_PATH` without the folders of debug builds that `cargo run` puts
/// there: a test that is linked with the release library would be run with the debug one.
fn library_path() -> Option<OsString> {
    let inherited = env::var_os(LIBRARY_PATH)?;
    let exe = env::current_exe().ok()?;
    let build = exe.parent()?;
    let kept: Vec<PathBuf> = env::split_paths(&inherited)
        .filter(|path| !path.starts_with(build))
        .collect();
    if kept.is_empty() {
        None
    } else {
        env::join_paths(kept).ok()
    }
}

/// Standard output, then standard error.
fn both(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn no_start(line: &str, error: &io::Error) -> Error {
    Error::Failed(format!("`{line}` did not start: {error}"))
}

fn judge(line: &str, status: ExitStatus, output: &str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let mut message = format!("`{line}` failed ({status})");
    for line in output.trim_end().lines() {
        let _ = write!(message, "\n    {line}");
    }
    Err(Error::Failed(message))
}

/// A time as the commands print it.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Finds a program on `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let executable = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(executable)
}

/// A line of progress.
pub(crate) fn announce(text: &str) {
    eprintln!("==> {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_can_be_pasted() {
        let sh = Shell::at("/here");
        let mut command = Command::new("/here/target/tool");
        command
            .args(["--into", "/here", "it's", "", "a b", "x>=1"])
            .env("A", "/here/b c");
        assert_eq!(
            sh.line(&command),
            r"A='b c' target/tool --into . 'it'\''s' '' 'a b' 'x>=1'",
        );
    }

    #[test]
    fn paths_are_relative_to_where_the_command_starts() {
        let sh = Shell::at("/here");
        let mut command = Command::new("/here/target/tool");
        command.current_dir("/here/sub").arg("/here/sub/file");
        assert_eq!(sh.line(&command), "cd sub && /here/target/tool file");
    }

    #[test]
    fn failure_shows_the_output() {
        let sh = Shell::at("/here");
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let message = sh.quiet(&mut command).unwrap_err().to_string();
        assert!(message.contains("exit status: 3"), "{message}");
        assert!(message.contains("\n    out\n    err"), "{message}");
    }

    #[test]
    fn read_returns_standard_output_only() {
        let sh = Shell::at("/here");
        let mut command = Command::new("sh");
        command.args(["-c", "echo err >&2; echo out"]);
        assert_eq!(sh.read(&mut command).unwrap(), "out");
    }

    #[test]
    fn missing_program_is_named() {
        let sh = Shell::at("/here");
        let message = sh
            .run(&mut Command::new("/here/no-such"))
            .unwrap_err()
            .to_string();
        assert!(message.starts_with("`no-such` did not start"), "{message}");
    }
}
