//! Keeping the newest of the checkpoints that a run has written.

use std::path::{Path, PathBuf};

use super::{file, io};
use crate::error::{Error, Result, invalid};

/// Stands for the number of the step in a path.
const STEP: &str = "{step}";

/// A path with `{step}` in its file's name: `runs/a/step-{step}.safetensors`.
pub(super) struct Pattern<'a> {
    folder: &'a Path,
    before: &'a str,
    after: &'a str,
}

impl<'a> Pattern<'a> {
    pub(super) fn new(path: &'a Path) -> Result<Self> {
        let name = path.file_name().and_then(std::ffi::OsStr::to_str);
        let parts = name.and_then(|name| name.split_once(STEP));
        let Some((before, after)) = parts.filter(|(_, after)| !after.contains(STEP)) else {
            return Err(invalid(format!(
                "path is {}; with keep its file's name must have {STEP} once",
                path.display()
            )));
        };
        Ok(Self {
            folder: file::folder(path),
            before,
            after,
        })
    }

    /// The path of a step.
    pub(super) fn path(&self, step: i64) -> PathBuf {
        self.folder
            .join(format!("{}{step}{}", self.before, self.after))
    }

    /// Removes all but `keep` of the files with such names, `newest` among those that stay. They are
    /// told apart by when they were written: after a return to an earlier step the higher numbers are
    /// the old ones.
    pub(super) fn prune(&self, keep: usize, newest: i64) -> Result<()> {
        let within = |error: std::io::Error, path: &Path| -> Error {
            io(error).within(&format!(
                "the checkpoint was written, but older ones could not be removed: {}",
                path.display()
            ))
        };
        let mut found = Vec::new();
        let entries = std::fs::read_dir(self.folder).map_err(|e| within(e, self.folder))?;
        for entry in entries {
            let entry = entry.map_err(|e| within(e, self.folder))?;
            let Some(step) = entry.file_name().to_str().and_then(|name| self.step(name)) else {
                continue;
            };
            let metadata = entry.metadata().map_err(|e| within(e, &entry.path()))?;
            let written = metadata.modified().map_err(|e| within(e, &entry.path()))?;
            if step != newest && metadata.is_file() {
                found.push((written, step, entry.path()));
            }
        }
        found.sort();
        let old = found.len().saturating_sub(keep.saturating_sub(1));
        for (.., path) in &found[..old] {
            match std::fs::remove_file(path) {
                // Another process removes the same ones.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(within(error, path));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The step in a file's name, if it is one that [`Pattern::path`] gives.
    fn step(&self, name: &str) -> Option<i64> {
        let number = name.strip_prefix(self.before)?.strip_suffix(self.after)?;
        let step = number.parse().ok()?;
        (format!("{step}") == number).then_some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_pattern_count() {
        let pattern = Pattern::new(Path::new("a/run-{step}.safetensors")).unwrap();
        assert_eq!(pattern.path(12), Path::new("a/run-12.safetensors"));
        assert_eq!(pattern.step("run-12.safetensors"), Some(12));
        for other in [
            "run-012.safetensors",
            "run-.safetensors",
            "run-12.safetensors.bak",
            "run-best.safetensors",
            "best.safetensors",
        ] {
            assert_eq!(pattern.step(other), None, "{other}");
        }
        for bad in ["a/run.safetensors", "{step}/{step}{step}", "{step}/run"] {
            assert!(Pattern::new(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
