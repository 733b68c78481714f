//! Writing a checkpoint in one pass.

use std::io::Write;

use super::header::Header;
use super::{CHUNK, Meter, Progress, io};
use crate::error::Result;
use crate::layout::index;
use crate::plan::Plan;
use crate::reserve::zeros;

/// Writes the checkpoint of `plan`; `fill(buffer, at, chunk)` gives the bytes of a buffer from its
/// byte `at` on, buffer by buffer and chunk by chunk.
pub(super) fn write(
    plan: &Plan,
    step: i64,
    out: &mut dyn Write,
    progress: Option<Progress<'_>>,
    mut fill: impl FnMut(usize, usize, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let header = Header::new(plan, step)?;
    let mut meter = Meter::new(progress, header.file_bytes());
    let mut sums = zeros(header.sums_bytes())?;
    let (first, others) = sums.split_at_mut(4);
    first.copy_from_slice(&crc32fast::hash(&header.bytes).to_le_bytes());
    out.write_all(&header.bytes).map_err(io)?;
    meter.add(header.bytes.len())?;
    let mut chunk = zeros(CHUNK)?;
    for ((buffer, _), sum) in header.entries.iter().zip(others.chunks_mut(4)) {
        let bytes = index(plan.buffers[*buffer].bytes);
        let mut hasher = crc32fast::Hasher::new();
        for at in (0..bytes).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(bytes - at)];
            fill(*buffer, at, chunk)?;
            hasher.update(chunk);
            out.write_all(chunk).map_err(io)?;
            meter.add(chunk.len())?;
        }
        sum.copy_from_slice(&hasher.finalize().to_le_bytes());
    }
    out.write_all(&sums).map_err(io)?;
    meter.add(sums.len())
}
