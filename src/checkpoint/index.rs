//! The index of a checkpoint in several files: a JSON text that names them and what tells them from
//! the files of another step.

use std::fs::File;
use std::path::Path;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::read::{Checkpoint, Member};
use super::source::{Shard, Source as _};
use super::{fail, file, io};
use crate::error::{Error, Result, Status, invalid};
use crate::reserve::{list, room, zeros};

/// Raised when an older reader could misread a newer index.
const VERSION: i64 = 1;

/// An index of a million files has fewer bytes.
const LONGEST: u64 = 1 << 28;

#[derive(Serialize, Deserialize)]
struct Index {
    lowbit_index: i64,
    step: i64,
    files: Vec<Listed>,
}

/// A file in the index's folder.
#[derive(Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) name: String,
    /// Checksum of its header, which holds step, spec and places.
    pub(super) crc32: u32,
}

/// Step and files of an index; `None` if it is none. (A checkpoint begins with a multiple of 8.)
pub(super) fn read(file: &File) -> Result<Option<(i64, Vec<Listed>)>> {
    let length = file.length()?;
    let mut first = [0];
    if length == 0 {
        return Ok(None);
    }
    file.read_at(0, &mut first)?;
    if first != *b"{" {
        return Ok(None);
    }
    if length > LONGEST {
        return Err(corrupt(format!("an index of {length} bytes")));
    }
    let mut text = zeros(length as usize)?;
    file.read_at(0, &mut text)?;
    // A short name is a list's element of 32 bytes, and a string.
    room(8 * text.len())?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|error| corrupt(format!("index: {error}")))?;
    if index.lowbit_index != VERSION {
        return Err(fail(
            Status::FormatVersion,
            format!(
                "index of version {}; this library reads {VERSION}",
                index.lowbit_index
            ),
        ));
    }
    for listed in &index.files {
        if !is_plain(&listed.name) {
            return Err(corrupt(format!(
                "the index lists {:?}, which is no name of a file in its folder",
                listed.name
            )));
        }
    }
    Ok(Some((index.step, index.files)))
}

/// Writes the index of `files`, which lie in its folder, once they are known to be one complete
/// checkpoint: of one step and spec, every element there, shards that agree. It replaces `path`
/// whole or not at all, so that it is what commits a checkpoint in several files.
///
/// # Errors
/// `InvalidArgument` for a file elsewhere; `FormatMismatch` naming what does not fit; otherwise as for
/// [`Checkpoint::open`].
pub fn write_index(files: &[&Path], path: &Path) -> Result<()> {
    let folder = file::folder(path);
    let open = Rc::default();
    let mut members = list(files.len())?;
    let mut listed = list(files.len())?;
    for file in files {
        let within = |error: Error| error.within(&file.display().to_string());
        let name = file.file_name().and_then(std::ffi::OsStr::to_str);
        let Some(name) = name.filter(|_| same_folder(file::folder(file), folder)) else {
            return Err(within(invalid(format!(
                "does not lie in the index's folder, {}, or has no UTF-8 name",
                folder.display()
            ))));
        };
        let shard = Shard::open(&open, file).map_err(within)?;
        let member = Member::open(Box::new(shard), name).map_err(within)?;
        listed.push(Listed {
            name: name.to_owned(),
            crc32: member.opened.sums[0],
        });
        members.push(member);
    }
    let checkpoint = Checkpoint::of_members(members)?;
    checkpoint.check_complete()?;
    let index = Index {
        lowbit_index: VERSION,
        step: checkpoint.step(),
        files: listed,
    };
    let text = serde_json::to_string_pretty(&index)
        .map_err(|error| Error::new(Status::Internal, error.to_string()))?;
    file::replace(path, |out| {
        out.write_all(text.as_bytes()).map_err(io)?;
        out.write_all(b"\n").map_err(io)
    })
}

fn same_folder(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// An index may not lead out of its folder.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(std::path::Component::Normal(_))) && parts.next().is_none()
}

fn corrupt(text: String) -> Error {
    fail(Status::FormatCorrupt, text)
}
