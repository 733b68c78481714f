//! `lowbit merge`, `split` and `index`: other meshes of a checkpoint.

use std::path::{Path, PathBuf};

use lowbit::checkpoint::{self, Checkpoint};
use serde_json::json;

use crate::output::Output;
use crate::{Arguments, Failure};

pub(crate) fn merge(arguments: &Arguments, output: &Output) -> Result<bool, Failure> {
    let [from, to] = two(&arguments.paths);
    let from = Checkpoint::open(from)?;
    let mut progress = output.progress("merging");
    checkpoint::merge(
        &from,
        to,
        Some(&mut |done, total| progress.report(done, total)),
    )?;
    wrote(&[to.to_owned()], output);
    Ok(true)
}

pub(crate) fn split(arguments: &Arguments, output: &Output) -> Result<bool, Failure> {
    let [from, to] = two(&arguments.paths);
    let parts = arguments.parts;
    let parts = parts.ok_or_else(|| Failure::Usage("split needs --parts".to_owned()))?;
    let from = Checkpoint::open(from)?;
    let mut progress = output.progress("splitting");
    let mut report = |done, total| progress.report(done, total);
    let axis = arguments.axis.unwrap_or(0);
    let mut files = checkpoint::split(&from, axis, parts, to, Some(&mut report))?;
    files.push(to.to_owned());
    wrote(&files, output);
    Ok(true)
}

pub(crate) fn index(arguments: &Arguments, output: &Output) -> Result<bool, Failure> {
    let (index, files) = (&arguments.paths[0], &arguments.paths[1..]);
    let files: Vec<_> = files.iter().map(PathBuf::as_path).collect();
    checkpoint::write_index(&files, index)?;
    wrote(std::slice::from_ref(index), output);
    Ok(true)
}

/// The command line has as many.
fn two(paths: &[PathBuf]) -> [&Path; 2] {
    [&paths[0], &paths[1]]
}

pub(crate) fn wrote(files: &[PathBuf], output: &Output) {
    let list: Vec<_> = files.iter().map(|file| file.to_string_lossy()).collect();
    let lines = list.iter().map(|file| format!("wrote {file}\n"));
    output.result(&json!({"written": list}), &lines.collect::<String>());
}
