//! `cargo xtask fuzz`: runs the fuzzers of `fuzz/` under AddressSanitizer until each has done its runs,
//! over as many starts as that takes, and prints what they did.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::env;
use crate::error::{Context, Error, Result};
use crate::shell::{Shell, announce};

const TARGETS: [&str; 3] = ["deserialize", "spec_json", "sized_structs"];

/// Sanitizers want the target's name: build scripts are then built without.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

const RUNS: u64 = 10_000_000;

/// Runs of one start of a fuzzer: what is lost if it is stopped.
const CHUNK: u64 = 250_000;

/// Long inputs are slow, and no seed is longer. Minutes for one run: the machine may be stopped meanwhile.
const OPTIONS: [&str; 8] = [
    "-max_len=3000",
    "-rss_limit_mb=1024",
    "-timeout=600",
    "-report_slow_units=600",
    "-detect_leaks=0",
    "-entropic=0",
    "-print_funcs=0",
    "-print_final_stats=1",
];

/// What finds wrong accesses stays on. What explains them, and looks for leaks, takes nine tenths of the
/// time.
const SANITIZER: &str = "malloc_context_size=0:detect_leaks=0:detect_stack_use_after_return=0:\
                         quarantine_size_mb=8:detect_odr_violation=0";

/// Arguments: `--runs N`, and the targets if not all.
pub(crate) fn run(sh: &Shell, args: &[String]) -> Result<()> {
    let (wanted, targets) = arguments(args)?;
    let fuzzers: Vec<_> = targets
        .iter()
        .map(|target| Fuzzer::new(sh, target))
        .collect::<Result<_>>()?;
    if fuzzers.iter().any(|fuzzer| fuzzer.sum().runs < wanted) {
        build(sh)?;
    }
    for fuzzer in &fuzzers {
        fuzzer.run(sh, wanted)?;
    }
    println!("| target        |       runs | hours | crashes |  edges | inputs kept |");
    println!("| ------------- | ---------: | ----: | ------: | -----: | ----------: |");
    let mut crashes = 0;
    for fuzzer in &fuzzers {
        let sum = fuzzer.sum();
        let (crashed, kept) = (files(&fuzzer.artifacts())?, files(&fuzzer.corpus())?);
        println!(
            "| {:13} | {:10} | {:5.2} | {crashed:7} | {:6} | {kept:11} |",
            fuzzer.target,
            sum.runs,
            sum.seconds / 3600.0,
            sum.edges
        );
        crashes += crashed;
    }
    if crashes > 0 {
        return Err(Error::Failed(format!(
            "{crashes} inputs crash; they lie in target/fuzz/*/artifacts"
        )));
    }
    Ok(())
}

fn arguments(args: &[String]) -> Result<(u64, Vec<&'static str>)> {
    let (mut runs, mut targets) = (RUNS, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--runs" {
            let number = args.next().and_then(|number| number.parse().ok());
            runs = number.ok_or_else(|| Error::Usage("--runs needs a number".into()))?;
        } else if let Some(target) = TARGETS.into_iter().find(|target| target == arg) {
            targets.push(target);
        } else {
            return Err(Error::Usage(format!(
                "there is no fuzzer `{arg}`; there are {}",
                TARGETS.join(", ")
            )));
        }
    }
    if targets.is_empty() {
        targets.extend(TARGETS);
    }
    Ok((runs, targets))
}

fn build(sh: &Shell) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["fuzz", "build", "--target", TRIPLE, "--target-dir"])
        .arg(sh.path("target/fuzz/build"))
        .env("PATH", env::fuzz::path(sh)?)
        // Lets a stable compiler sanitize.
        .env("RUSTC_BOOTSTRAP", "1");
    sh.run(&mut cargo)
}

/// One target, and what its runs have left in `target/fuzz`.
struct Fuzzer {
    target: &'static str,
    folder: PathBuf,
    program: PathBuf,
}

/// What is on record of a fuzzer.
#[derive(Default)]
struct Sum {
    runs: u64,
    seconds: f64,
    /// Of the last start.
    edges: u64,
}

impl Fuzzer {
    /// Makes its folders and fills its corpus.
    fn new(sh: &Shell, target: &'static str) -> Result<Self> {
        let fuzzer = Self {
            target,
            folder: sh.path("target/fuzz").join(target),
            program: sh.path(format!("target/fuzz/build/{TRIPLE}/release/{target}")),
        };
        for folder in [fuzzer.corpus(), fuzzer.artifacts()] {
            fs::create_dir_all(&folder).context(folder.display())?;
        }
        let seeds = sh.path("fuzz/corpus").join(target);
        for entry in fs::read_dir(&seeds).context(seeds.display())? {
            let path = entry.context(seeds.display())?.path();
            let copy = fuzzer.corpus().join(path.file_name().unwrap_or_default());
            fs::copy(&path, &copy).context(copy.display())?;
        }
        Ok(fuzzer)
    }

    fn corpus(&self) -> PathBuf {
        self.folder.join("corpus")
    }

    fn artifacts(&self) -> PathBuf {
        self.folder.join("artifacts")
    }

    /// A line for each start: runs, seconds, edges.
    fn record(&self) -> PathBuf {
        self.folder.join("record")
    }

    fn sum(&self) -> Sum {
        let record = fs::read_to_string(self.record()).unwrap_or_default();
        let mut sum = Sum::default();
        for line in record.lines() {
            let mut fields = line.split(' ');
            let mut field = || fields.next().unwrap_or_default();
            sum.runs += field().parse().unwrap_or(0);
            sum.seconds += field().parse().unwrap_or(0.0);
            sum.edges = field().parse().unwrap_or(0);
        }
        sum
    }

    /// Starts the fuzzer until `wanted` runs are on record, or it finds something.
    fn run(&self, sh: &Shell, wanted: u64) -> Result<()> {
        loop {
            let left = wanted.saturating_sub(self.sum().runs);
            if left == 0 || files(&self.artifacts())? > 0 {
                return Ok(());
            }
            let mut command = Command::new(&self.program);
            command
                .arg(format!("-runs={}", left.min(CHUNK)))
                .arg(format!("-artifact_prefix={}/", self.artifacts().display()))
                .args(OPTIONS)
                .arg(self.corpus())
                .env("ASAN_OPTIONS", SANITIZER);
            let start = Instant::now();
            let (_, output) = sh.attempt(&mut command)?;
            let time = start.elapsed();
            let Some(runs) = after(&output, "stat::number_of_executed_units:") else {
                return Err(Error::Failed(format!("{} says\n{output}", self.target)));
            };
            let edges = after(&output, "cov:").unwrap_or(0);
            self.add(runs, time, edges)?;
            if files(&self.artifacts())? > 0 {
                announce(&format!("{} found something:\n{output}", self.target));
            }
        }
    }

    fn add(&self, runs: u64, time: Duration, edges: u64) -> Result<()> {
        let path = self.record();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let line = format!("{runs} {:.1} {edges}\n", time.as_secs_f64());
        file.and_then(|mut file| file.write_all(line.as_bytes()))
            .context(path.display())?;
        let sum = self.sum();
        announce(&format!(
            "{}: {} runs, {edges} edges, {:.0} runs/s",
            self.target,
            sum.runs,
            runs as f64 / time.as_secs_f64()
        ));
        Ok(())
    }
}

/// The last number behind `label`.
fn after(output: &str, label: &str) -> Option<u64> {
    let (_, rest) = output.rsplit_once(label)?;
    rest.split_whitespace().next()?.parse().ok()
}

fn files(folder: &Path) -> Result<usize> {
    Ok(fs::read_dir(folder).context(folder.display())?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_counts() {
        let output = "#2 INITED cov: 3 ft: 4\n#9 DONE   cov: 15 ft: 20\n";
        assert_eq!(after(output, "cov:"), Some(15));
        assert_eq!(after(output, "stat::"), None);
    }

    #[test]
    fn records_add_up_over_starts() {
        let folder = std::env::temp_dir().join(format!("xtask-fuzz-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let fuzzer = Fuzzer {
            target: "spec_json",
            folder: folder.clone(),
            program: PathBuf::new(),
        };
        assert_eq!(fuzzer.sum().runs, 0);
        fuzzer.add(250, Duration::from_secs(1), 7).unwrap();
        fuzzer.add(750, Duration::from_secs(2), 9).unwrap();
        let sum = fuzzer.sum();
        assert_eq!((sum.runs, sum.seconds, sum.edges), (1000, 3.0, 9));
        fs::remove_dir_all(folder).unwrap();
    }
}
