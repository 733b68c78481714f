//! Checkpoints: the state buffers of a plan in a safetensors file, or in several.
//!
//! `include/CHECKPOINT.md` specifies the bytes. A file describes itself: what each state is, where
//! its tensor lies in the global tensor, and the levels of its codes, with a CRC-32 checksum of the
//! header and of every entry last, so that one pass writes it. Several files, each with the shards of
//! one process, are one checkpoint by an index ([`write_index`]).
//!
//! Reading verifies everything that is read before the first byte of state is written: a file that
//! is refused leaves the state as it was. A file is written beside its target and renamed over it:
//! there is always the old checkpoint or the new one. Memory beyond the states is a few MiB, whatever
//! their size.
//!
//! What is loaded need not have the shards of what was saved: the parts of a plan's tensors are put
//! together from whichever files have them.

mod file;
mod gather;
mod header;
mod index;
mod keep;
mod meta;
mod place;
mod read;
mod reshard;
mod source;
mod statistics;
mod values;
mod write;

use std::ffi::c_void;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result, Status};
use crate::plan::Plan;
use crate::reserve::zeros;
use crate::step::Buffer;
use header::Header;

pub use index::write_index;
pub use read::Checkpoint;
pub use reshard::{merge, split};
pub use source::Source;
pub use statistics::StateStatistics;

/// Bytes moved at a time.
const CHUNK: usize = 1 << 20;

/// Is told the bytes that are done, and how many there are; `false` cancels, unless a state is being
/// written already.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

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
        Ok(Header::new(self, step)?.file_bytes())
    }

    /// Writes the states to `out` in one pass. Synchronises `stream` on CUDA contexts.
    ///
    /// # Errors
    /// `Io` from the writer; `Cancelled` by `progress`; misfits of `state` as for [`Plan::step`].
    ///
    /// # Safety
    /// `state` is valid memory of the plan's context, and nobody changes it meanwhile.
    #[expect(unsafe_code, reason = "reads the caller's raw buffers")]
    pub unsafe fn write_checkpoint(
        &self,
        state: &[Buffer],
        step: i64,
        out: &mut dyn Write,
        progress: Option<Progress<'_>>,
        stream: *mut c_void,
    ) -> Result<()> {
        self.check_state(state)?;
        write::write(self, step, out, progress, |buffer, at, chunk| {
            let data = state[buffer].data.cast::<u8>();
            // SAFETY: the chunk lies in the buffer, by the caller's promise valid.
            unsafe {
                self.context
                    .read(data.add(at), chunk.as_mut_ptr(), chunk.len(), stream)
            }
        })
    }

    /// Reads the states of this plan's tensors from a checkpoint, whatever the mesh that wrote it and
    /// in whatever order. `subset`: the checkpoint may have further tensors. Synchronises `stream` on
    /// CUDA contexts.
    ///
    /// # Errors
    /// `FormatMismatch` for a checkpoint of another model or spec, `FormatCorrupt` for altered bytes,
    /// `Io` from the source, `Cancelled` by `progress`. The state is untouched unless everything that
    /// it is read from was verified; only a source that changes or fails after that leaves it in
    /// part written, and the message says so.
    ///
    /// # Safety
    /// `state` is valid memory of the plan's context, and nobody uses it meanwhile.
    #[expect(unsafe_code, reason = "writes the caller's raw buffers")]
    pub unsafe fn read_checkpoint(
        &self,
        from: &Checkpoint<'_>,
        state: &[Buffer],
        subset: bool,
        progress: Option<Progress<'_>>,
        stream: *mut c_void,
    ) -> Result<CheckpointInfo> {
        self.check_state(state)?;
        let sources = from.sources(self, subset)?;
        let mut chunk = self.chunk()?;
        // Everything is read twice.
        let bytes = from.source_bytes(&sources) + self.state_bytes.unsigned_abs();
        let mut meter = Meter::new(progress, bytes);
        from.verify_sources(&sources, &mut meter)?;
        meter.seal();
        let partly =
            |error: Error| error.within("after verification; the state is in part written");
        for (info, buffer) in self.buffers.iter().zip(state) {
            let mut gather = from.gather(self, info).map_err(partly)?;
            let (data, bytes) = (buffer.data.cast::<u8>(), crate::layout::index(buffer.bytes));
            let copy = gather.copy_of();
            let mut hasher = crc32fast::Hasher::new();
            for at in (0..bytes).step_by(CHUNK) {
                let chunk = &mut chunk[..CHUNK.min(bytes - at)];
                gather.fill(chunk).map_err(partly)?;
                if copy.is_some() {
                    hasher.update(chunk);
                }
                // SAFETY: the chunk lies in the buffer, by the caller's promise valid.
                unsafe {
                    self.context
                        .write(chunk.as_ptr(), data.add(at), chunk.len(), stream)?;
                }
                meter.add(chunk.len())?;
            }
            if let Some((member, source)) = copy {
                let member = &from.members[member];
                member.compare(source, hasher.finalize()).map_err(partly)?;
            }
        }
        Ok(CheckpointInfo { step: from.step() })
    }

    /// Writes a checkpoint file whole or not at all: into a temporary file of the same folder,
    /// synced, then renamed over `path`, and the folder synced. Synchronises `stream` on CUDA contexts.
    ///
    /// With `keep` above 0 the file's name has `{step}` in it, which is replaced, and of the files
    /// with such names the `keep` newest stay.
    ///
    /// # Errors
    /// As for [`Plan::write_checkpoint`]; `path` is then as it was, or, if only its folder could not be
    /// synced, the new file. `InvalidArgument` for `keep` without `{step}`.
    ///
    /// # Safety
    /// As for [`Plan::write_checkpoint`].
    #[expect(unsafe_code, reason = "reads the caller's raw buffers")]
    pub unsafe fn save_checkpoint(
        &self,
        state: &[Buffer],
        step: i64,
        path: &Path,
        keep: usize,
        progress: Option<Progress<'_>>,
        stream: *mut c_void,
    ) -> Result<()> {
        let save = |path: &Path| {
            file::replace(path, |out| {
                // SAFETY: the caller's promise.
                unsafe { self.write_checkpoint(state, step, out, progress, stream) }
            })
        };
        if keep == 0 {
            return save(path);
        }
        let pattern = keep::Pattern::new(path)?;
        save(&pattern.path(step))?;
        pattern.prune(keep, step)
    }

    /// Room for a part of any buffer.
    fn chunk(&self) -> Result<Vec<u8>> {
        let largest = self.buffers.iter().map(|info| info.bytes).max();
        zeros(CHUNK.min(crate::layout::index(largest.unwrap_or(0))))
    }

    /// Reads a checkpoint file, or an index and the files that it lists: [`Checkpoint::open`], then
    /// [`Plan::read_checkpoint`] of all tensors.
    ///
    /// # Errors
    /// As for those two.
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
        let from = Checkpoint::open(path)?;
        // SAFETY: the caller's promise.
        unsafe { self.read_checkpoint(&from, state, false, None, stream) }
            .map_err(|error| error.within(&path.display().to_string()))
    }
}

/// Counts bytes for a progress callback.
struct Meter<'a> {
    progress: Option<Progress<'a>>,
    done: u64,
    total: u64,
    /// From here on it is too late to cancel.
    sealed: bool,
}

impl<'a> Meter<'a> {
    fn new(progress: Option<Progress<'a>>, total: u64) -> Self {
        Self {
            progress,
            done: 0,
            total,
            sealed: false,
        }
    }

    fn add(&mut self, bytes: usize) -> Result<()> {
        self.done += bytes as u64;
        let Some(progress) = &mut self.progress else {
            return Ok(());
        };
        if progress(self.done, self.total) || self.sealed {
            return Ok(());
        }
        let text = "cancelled by progress".to_owned();
        Err(fail(Status::Cancelled, text))
    }

    fn seal(&mut self) {
        self.sealed = true;
    }
}

fn fail(status: Status, text: String) -> Error {
    Error::new(status, format!("checkpoint: {text}"))
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err takes"
)]
fn io(error: std::io::Error) -> Error {
    Error::new(Status::Io, error.to_string())
}
