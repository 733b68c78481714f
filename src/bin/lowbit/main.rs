//! `lowbit`: looks into checkpoints and changes their form. Each command is a file of this folder.
//!
//! Results go to standard output, messages and progress to standard error. The exit code is 0 for
//! done, 1 where the answer is no (`diff`), 2 for a wrong command line, 3 for a failure.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program"
)]

mod convert;
mod diff;
mod inspect;
mod output;
mod reshard;
mod verify;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;

use lowbit::error::Error;
use output::Output;

const USAGE: &str = "\
usage: lowbit COMMAND ARGUMENTS [--json] [--quiet]

  inspect FILE [--headers]         tensors, quantizers, bytes and what codes lose
  verify FILE...                   compare all checksums
  convert FROM TO --spec SPEC      other quantizers: a preset's name, JSON, or @FILE with JSON
  merge FROM TO                    all tensors, whole, in one file
  split FROM INDEX --parts N [--axis A]
                                   a file for each of N parts of every tensor, and their index
  index INDEX FILE...              join files of one step, each with its shards, by an index
  diff A B                         whether two checkpoints have the same states, and how far off

  --headers   without decoding states
  --json      results as JSON, one object
  --quiet     no progress
  --version, --help

A FILE is a checkpoint or an index of several. Targets are replaced whole or not at all.
Exit code: 0 done, 1 the checkpoints of `diff` differ, 2 wrong command line, 3 failure.
";

/// Why a command did not do what was asked.
enum Failure {
    /// The command line is wrong.
    Usage(String),
    /// The work failed.
    Failed(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

/// A command: whether the answer is yes.
type Run = fn(&Arguments, &Output) -> Result<bool, Failure>;

/// What a command line has behind the command.
#[derive(Default)]
struct Arguments {
    paths: Vec<PathBuf>,
    spec: Option<String>,
    parts: Option<usize>,
    axis: Option<usize>,
    headers: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure::Usage(text)) => {
            eprint!("error: {text}\n\n{USAGE}");
            ExitCode::from(2)
        }
        Err(Failure::Failed(error)) => {
            eprintln!("error: {error}");
            ExitCode::from(3)
        }
    }
}

fn run() -> Result<bool, Failure> {
    use lexopt::prelude::*;
    let mut parser = lexopt::Parser::from_env();
    let (mut command, mut arguments, mut output) = (None, Arguments::default(), Output::default());
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => {
                print!("{USAGE}");
                return Ok(true);
            }
            Short('V') | Long("version") => {
                println!("lowbit {}", env!("CARGO_PKG_VERSION"));
                return Ok(true);
            }
            Long("json") => output.json = true,
            Long("quiet") => output.quiet = true,
            Long("headers") => arguments.headers = true,
            Long("spec") => arguments.spec = Some(parser.value()?.string()?),
            Long("parts") => arguments.parts = Some(parser.value()?.parse()?),
            Long("axis") => arguments.axis = Some(parser.value()?.parse()?),
            Value(word) if command.is_none() => command = Some(word.string()?),
            Value(path) => arguments.paths.push(path.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    let command = command.ok_or_else(|| Failure::Usage("no command".to_owned()))?;
    // Options that a command would ignore are mistakes.
    let mut given = vec![];
    given.extend(arguments.spec.is_some().then_some("--spec"));
    given.extend(arguments.parts.is_some().then_some("--parts"));
    given.extend(arguments.axis.is_some().then_some("--axis"));
    given.extend(arguments.headers.then_some("--headers"));
    let (run, paths, options): (Run, RangeInclusive<usize>, &[&str]) = match command.as_str() {
        "inspect" => (inspect::run, 1..=1, &["--headers"]),
        "verify" => (verify::run, 1..=usize::MAX, &[]),
        "convert" => (convert::run, 2..=2, &["--spec"]),
        "merge" => (reshard::merge, 2..=2, &[]),
        "split" => (reshard::split, 2..=2, &["--parts", "--axis"]),
        "index" => (reshard::index, 2..=usize::MAX, &[]),
        "diff" => (diff::run, 2..=2, &[]),
        other => return Err(Failure::Usage(format!("there is no command {other:?}"))),
    };
    if let Some(option) = given.iter().find(|option| !options.contains(option)) {
        return Err(Failure::Usage(format!("{command} has no option {option}")));
    }
    if !paths.contains(&arguments.paths.len()) {
        let count = arguments.paths.len();
        return Err(Failure::Usage(format!("{command} with {count} paths")));
    }
    run(&arguments, &output)
}
