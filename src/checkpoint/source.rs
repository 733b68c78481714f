//! Where the bytes of a checkpoint are read from.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::io;
use crate::error::{Error, Result, Status};

/// Bytes that can be read at any place: a file, memory, or a caller's callback.
pub trait Source {
    /// How many there are.
    ///
    /// # Errors
    /// `Io`.
    fn length(&self) -> Result<u64>;

    /// Fills `into` from byte `offset` on.
    ///
    /// # Errors
    /// `Io`, also where the bytes end too early.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()>;
}

impl Source for File {
    fn length(&self) -> Result<u64> {
        let metadata = self.metadata().map_err(io)?;
        if metadata.is_dir() {
            return Err(Error::new(Status::Io, "is a folder"));
        }
        Ok(metadata.len())
    }

    #[cfg(unix)]
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, into, offset).map_err(io)
    }

    #[cfg(windows)]
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        use std::os::windows::fs::FileExt as _;
        let mut done = 0;
        while done < into.len() {
            match self.seek_read(&mut into[done..], offset + done as u64) {
                Ok(0) => return Err(Error::new(Status::Io, "the file ended early")),
                Ok(read) => done += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io(error)),
            }
        }
        Ok(())
    }
}

impl Source for &[u8] {
    fn length(&self) -> Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = start
            .checked_add(into.len())
            .and_then(|end| self.get(start..end));
        let bytes = bytes.ok_or_else(|| Error::new(Status::Io, "the bytes ended early"))?;
        into.copy_from_slice(bytes);
        Ok(())
    }
}

impl Source for &File {
    fn length(&self) -> Result<u64> {
        (**self).length()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        (**self).read_at(offset, into)
    }
}

/// How many files of an index are open at a time. Systems let a process open 256 to 1,024.
const MOST_OPEN: usize = 64;

/// The open ones among the files of an index, those that were read last at the end.
#[derive(Default)]
pub(super) struct Files {
    open: RefCell<VecDeque<(PathBuf, File)>>,
}

/// A file of an index, opened when it is read, and closed when [`MOST_OPEN`] others were read since.
pub(super) struct Shard {
    files: Rc<Files>,
    path: PathBuf,
    /// What it was when it was opened first.
    metadata: Metadata,
}

impl Shard {
    pub(super) fn open(files: &Rc<Files>, path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        files.add(path, file);
        Ok(Self {
            files: Rc::clone(files),
            path: path.to_path_buf(),
            metadata,
        })
    }
}

impl Files {
    fn add(&self, path: &Path, file: File) {
        let mut open = self.open.borrow_mut();
        if open.len() == MOST_OPEN {
            open.pop_front();
        }
        open.push_back((path.to_path_buf(), file));
    }
}

impl Source for Shard {
    fn length(&self) -> Result<u64> {
        Ok(self.metadata.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let found = {
            let mut open = self.files.open.borrow_mut();
            let at = open.iter().rposition(|(path, _)| *path == self.path);
            at.and_then(|at| open.remove(at))
        };
        let file = match found {
            Some((_, file)) => file,
            None => {
                let within = |error: Error| error.within(&self.path.display().to_string());
                let file = File::open(&self.path).map_err(|error| within(io(error)))?;
                let metadata = file.metadata().map_err(|error| within(io(error)))?;
                if !is_same(&metadata, &self.metadata) {
                    let text = "another file has taken its place since it was opened";
                    return Err(within(Error::new(Status::Io, text)));
                }
                file
            }
        };
        let result = file.read_at(offset, into);
        self.files.add(&self.path, file);
        result
    }
}

/// Whether these are of one file that was not written to in between.
fn is_same(a: &Metadata, b: &Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        if (a.dev(), a.ino()) != (b.dev(), b.ino()) {
            return false;
        }
    }
    // A system without times of files has nothing to compare.
    a.len() == b.len() && a.modified().ok() == b.modified().ok()
}
