//! Checkpoints: the state buffers of a plan in one safetensors file.
//!
//! The container is the safetensors format, readable from every language without this library.
//! One entry per state buffer, `<tensor>/<state>/<part>`, entries with larger elements first; the metadata
//! key `lowbit` holds a JSON text with format version, spec, step and tensors. The last entry,
//! `lowbit/crc32`, has shape (1 + entries, 4): little-endian CRC-32 checksums (as in zlib) of the
//! header and of each entry, in file order, so that one pass writes the file.
//!
//! Reading verifies everything before the first byte of state is written: a file that is refused
//! leaves the state as it was. A file is written beside its target and renamed over it: there is
//! always the old checkpoint or the new one.

mod file;
mod header;

use std::ffi::c_void;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::{Error, Result, Status};
use crate::layout::index;
use crate::plan::Plan;
use crate::step::Buffer;
use header::Header;

/// Bytes moved at a time, also the extra memory that saving and loading take.
const CHUNK: usize = 1 << 20;

/// What a checkpoint says besides the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// Number of steps done when it was written.
    pub step: i64,
}

impl Plan {
    /// Exact size of a checkpoint written at `step`.
    ///
    /// # Errors
    /// As for [`Plan::write_checkpoint`], the writer aside.
    pub fn checkpoint_bytes(&self, step: i64) -> Result<u64> {
        let header = Header::new(self, step)?;
        Ok(header.bytes.len() as u64 + header.data_bytes)
    }

    /// Writes the states to `out` in one pass. Synchronises `stream` on CUDA contexts.
    ///
    /// # Errors
    /// `Io` from the writer; misfits of `state` as for [`Plan::step`].
    ///
    /// # Safety
    /// `state` is valid memory of the plan's context, and nobody changes it meanwhile.
    #[expect(unsafe_code, reason = "reads the caller's raw buffers")]
    pub unsafe fn write_checkpoint(
        &self,
        state: &[Buffer],
        step: i64,
        out: &mut dyn Write,
        stream: *mut c_void,
    ) -> Result<()> {
        self.check_state(state)?;
        let header = Header::new(self, step)?;
        let mut sums = Vec::with_capacity(4 * (1 + header.order.len()));
        sums.extend(crc32fast::hash(&header.bytes).to_le_bytes());
        out.write_all(&header.bytes).map_err(io)?;
        let mut chunk = vec![0_u8; CHUNK];
        for &buffer in &header.order {
            let mut hasher = crc32fast::Hasher::new();
            let (data, bytes) = (state[buffer].data.cast::<u8>(), index(state[buffer].bytes));
            for at in (0..bytes).step_by(CHUNK) {
                let chunk = &mut chunk[..CHUNK.min(bytes - at)];
                // SAFETY: the chunk lies in the buffer, by the caller's promise valid.
                unsafe {
                    self.context
                        .read(data.add(at), chunk.as_mut_ptr(), chunk.len(), stream)?;
                }
                hasher.update(chunk);
                out.write_all(chunk).map_err(io)?;
            }
            sums.extend(hasher.finalize().to_le_bytes());
        }
        out.write_all(&sums).map_err(io)
    }

    /// Reads states written by [`Plan::write_checkpoint`] under a plan with the same spec and tensors,
    /// in any order.
    ///
    /// # Errors
    /// `Format…` for bytes that are not a sound checkpoint of this plan, `Io` from the reader.
    /// The state is untouched unless the whole file was verified.
    ///
    /// # Safety
    /// `state` is valid memory of the plan's context, and nobody uses it meanwhile.
    #[expect(unsafe_code, reason = "writes the caller's raw buffers")]
    pub unsafe fn read_checkpoint<R: Read + Seek>(
        &self,
        source: &mut R,
        state: &[Buffer],
        stream: *mut c_void,
    ) -> Result<CheckpointInfo> {
        self.check_state(state)?;
        let length = source.seek(SeekFrom::End(0)).map_err(io)?;
        source.rewind().map_err(io)?;
        let (header, step) = Header::read(self, source, length)?;
        let mut chunk = vec![0_u8; CHUNK];
        self.verify(&header, source, &mut chunk)?;
        source
            .seek(SeekFrom::Start(header.bytes.len() as u64))
            .map_err(io)?;
        for &buffer in &header.order {
            let (data, bytes) = (state[buffer].data.cast::<u8>(), index(state[buffer].bytes));
            for at in (0..bytes).step_by(CHUNK) {
                let chunk = &mut chunk[..CHUNK.min(bytes - at)];
                source.read_exact(chunk).map_err(io)?;
                // SAFETY: the chunk lies in the buffer, by the caller's promise valid.
                unsafe {
                    self.context
                        .write(chunk.as_ptr(), data.add(at), chunk.len(), stream)?
                };
            }
        }
        Ok(CheckpointInfo { step })
    }

    /// Compares all checksums; the reader stands behind the header.
    fn verify(&self, header: &Header, source: &mut dyn Read, chunk: &mut [u8]) -> Result<()> {
        let mut found = vec![crc32fast::hash(&header.bytes)];
        for &buffer in &header.order {
            let mut hasher = crc32fast::Hasher::new();
            let bytes = index(self.buffers[buffer].bytes);
            for at in (0..bytes).step_by(CHUNK) {
                let chunk = &mut chunk[..CHUNK.min(bytes - at)];
                source.read_exact(chunk).map_err(io)?;
                hasher.update(chunk);
            }
            found.push(hasher.finalize());
        }
        for (i, found) in found.into_iter().enumerate() {
            let mut stored = [0; 4];
            source.read_exact(&mut stored).map_err(io)?;
            if u32::from_le_bytes(stored) != found {
                let what = match i {
                    0 => "the header".to_owned(),
                    i => self.buffer_name(&self.buffers[header.order[i - 1]]),
                };
                return Err(Error::new(
                    Status::FormatCorrupt,
                    format!("checkpoint: the checksum of {what} differs: the file was altered"),
                ));
            }
        }
        Ok(())
    }

    /// Writes a checkpoint file whole or not at all: into a temporary file of the same folder,
    /// synced, then renamed over `path`. Synchronises `stream` on CUDA contexts.
    ///
    /// # Errors
    /// As for [`Plan::write_checkpoint`]; `path` is then as it was.
    ///
    /// # Safety
    /// As for [`Plan::write_checkpoint`].
    #[expect(unsafe_code, reason = "reads the caller's raw buffers")]
    pub unsafe fn save_checkpoint(
        &self,
        state: &[Buffer],
        step: i64,
        path: &Path,
        stream: *mut c_void,
    ) -> Result<()> {
        file::replace(path, |out| {
            // SAFETY: the caller's promise.
            unsafe { self.write_checkpoint(state, step, out, stream) }
        })
    }

    /// Reads a checkpoint file.
    ///
    /// # Errors
    /// As for [`Plan::read_checkpoint`].
    ///
    /// # Safety
    /// As for [`Plan::read_checkpoint`].
    #[expect(unsafe_code, reason = "writes the caller's raw buffers")]
    pub unsafe fn load_checkpoint(
        &self,
        path: &Path,
        state: &[Buffer],
        stream: *mut c_void,
    ) -> Result<CheckpointInfo> {
        let mut source = std::fs::File::open(path)
            .map_err(|error| io(error).within(&path.display().to_string()))?;
        // SAFETY: the caller's promise.
        unsafe { self.read_checkpoint(&mut source, state, stream) }
            .map_err(|error| error.within(&path.display().to_string()))
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err takes"
)]
fn io(error: std::io::Error) -> Error {
    Error::new(Status::Io, error.to_string())
}
