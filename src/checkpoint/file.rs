//! Replacing a file whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::{CHUNK, io};
use crate::error::Result;

/// Writes a temporary file in `path`'s folder, syncs it, renames it to `path`, syncs the folder.
/// On an error `path` is as it was and the temporary file is gone (if only the folder could not be
/// synced, `path` is the new file, whole). A process that dies may leave a `.lowbit-*.partial`, which
/// nothing reads.
pub(super) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let folder = folder(path);
    let name = |error| io(error).within(&path.display().to_string());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".lowbit-").suffix(".partial");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        // What an ordinary new file gets; the process's umask applies.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let file = builder.tempfile_in(folder).map_err(name)?;
    let mut out = BufWriter::with_capacity(CHUNK, file);
    write(&mut out).map_err(|error| error.within(&path.display().to_string()))?;
    let file = out.into_inner().map_err(|error| name(error.into_error()))?;
    file.as_file().sync_all().map_err(name)?;
    file.persist(path).map_err(|error| name(error.error))?;
    #[cfg(unix)]
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(name)?;
    Ok(())
}

/// The folder that a file lies in.
pub(super) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
