//! Where the bytes of a checkpoint are read from.

use std::fs::File;

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
