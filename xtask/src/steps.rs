//! The steps of a long command: each is timed, all are run, and a table at the end says how each
//! went.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::shell::seconds;

#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    name: String,
    passed: bool,
    time: Duration,
}

impl Steps {
    /// Runs one step. A failure is printed and counted, and later steps still run.
    pub(crate) fn run<T>(
        &mut self,
        name: impl Into<String>,
        step: impl FnOnce() -> Result<T>,
    ) -> Option<T> {
        let name = name.into();
        println!("\n==> {name}");
        let start = Instant::now();
        let result = step();
        let time = start.elapsed();
        match &result {
            Ok(_) => println!("==> {name}  passed ({})", seconds(time)),
            Err(error) => println!("{error}\n==> {name}  FAILED ({})", seconds(time)),
        }
        self.done.push(Step {
            name,
            passed: result.is_ok(),
            time,
        });
        result.ok()
    }

    /// Prints the table. An error unless there were steps and all of them passed.
    pub(crate) fn finish(self) -> Result<()> {
        println!("\n{}", self.table());
        match self.done.iter().filter(|step| !step.passed).count() {
            0 if self.done.is_empty() => Err(Error::failed("nothing was run")),
            0 => Ok(()),
            1 => Err(Error::failed("a step failed")),
            failed => Err(Error::Failed(format!("{failed} steps failed"))),
        }
    }

    fn table(&self) -> String {
        let mut table = String::new();
        for Step { name, passed, time } in &self.done {
            let outcome = if *passed { "passed" } else { "FAILED" };
            let _ = writeln!(table, "{outcome}  {:>9}  {name}", seconds(*time));
        }
        let passed = self.done.iter().filter(|step| step.passed).count();
        let total = self.done.iter().map(|step| step.time).sum();
        let failed = self.done.len() - passed;
        let _ = write!(
            table,
            "{passed} passed, {failed} failed  ({})",
            seconds(total)
        );
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_after_a_failure_run_and_the_whole_fails() {
        let mut steps = Steps::default();
        assert_eq!(steps.run("one", || Ok(1)), Some(1));
        assert_eq!(steps.run("two", || Err::<(), _>(Error::failed("no"))), None);
        assert_eq!(steps.run("three", || Ok(3)), Some(3));
        let table = steps.table();
        assert!(
            table.starts_with("passed      0.0 s  one\nFAILED      0.0 s  two\n"),
            "{table}"
        );
        assert!(table.contains("2 passed, 1 failed"), "{table}");
        assert_eq!(steps.finish().unwrap_err().to_string(), "a step failed");
    }

    #[test]
    fn no_steps_is_no_success() {
        assert!(Steps::default().finish().is_err());
    }
}
