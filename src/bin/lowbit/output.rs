//! Tables, JSON and progress.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How a command speaks.
#[derive(Default)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

impl Output {
    /// Prints the result, as JSON or as `text`.
    pub(crate) fn result(&self, json: &Value, text: &str) {
        if self.json {
            println!("{json}");
        } else {
            print!("{text}");
        }
    }

    /// Progress of one piece of work, shown on a terminal after a second.
    pub(crate) fn progress(&self, what: &str) -> Progress {
        Progress {
            what: what.to_owned(),
            shown: !self.quiet && std::io::stderr().is_terminal(),
            start: Instant::now(),
            last: Duration::ZERO,
            line: false,
        }
    }
}

/// A line that is written anew.
pub(crate) struct Progress {
    what: String,
    shown: bool,
    start: Instant,
    last: Duration,
    line: bool,
}

impl Progress {
    /// For the library's callbacks, which count bytes; never cancels.
    pub(crate) fn report(&mut self, done: u64, total: u64) -> bool {
        let rate = done as f64 / self.start.elapsed().as_secs_f64() / 1e6;
        self.show(done, total, &format!("  {rate:.0} MB/s"));
        true
    }

    /// For what is not counted in bytes.
    pub(crate) fn share(&mut self, done: u64, total: u64) {
        self.show(done, total, "");
    }

    fn show(&mut self, done: u64, total: u64, rate: &str) {
        let time = self.start.elapsed();
        if self.shown
            && time > Duration::from_secs(1)
            && time - self.last > Duration::from_millis(200)
        {
            self.last = time;
            self.line = true;
            let percent = 100.0 * done as f64 / total.max(1) as f64;
            eprint!("\r{} {percent:5.1} %{rate} ", self.what);
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.line {
            // The line is blank again.
            eprint!("\r{:width$}\r", "", width = self.what.len() + 30);
        }
    }
}

/// A table: the first row has the names; columns that begin with `>` are set to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let cell = |row: usize, column: usize| rows[row][column].trim_start_matches('>');
    let width = |column: usize| {
        let widths = (0..rows.len()).map(|row| cell(row, column).chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in 0..rows.len() {
        let mut line = String::new();
        for (column, width) in widths.iter().copied().enumerate() {
            let cell = cell(row, column);
            if rows[0][column].starts_with('>') {
                line += &format!("{cell:>width$}  ");
            } else {
                line += &format!("{cell:<width$}  ");
            }
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}
