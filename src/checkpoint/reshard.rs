//! Checkpoints of other meshes, written from files alone: nothing is decoded, and memory stays
//! bounded.

use std::path::{Path, PathBuf};

use super::gather::Gather;
use super::place::Place;
use super::read::Checkpoint;
use super::{Meter, Progress, file, write, write_index};
use crate::error::{Result, invalid};
use crate::layout::Grid;
use crate::plan::{Plan, TensorInfo};

impl Plan {
    /// Writes the checkpoint file of this plan's tensors (whole, or any shards of them) from a
    /// checkpoint of any mesh. `subset`: it may have further tensors. The plan's context is not used.
    ///
    /// # Errors
    /// As for [`Plan::read_checkpoint`] and [`Plan::save_checkpoint`].
    pub fn reshard_checkpoint(
        &self,
        from: &Checkpoint<'_>,
        path: &Path,
        subset: bool,
        mut progress: Option<Progress<'_>>,
    ) -> Result<()> {
        let sources = from.sources(self, subset)?;
        let source_bytes = from.source_bytes(&sources);
        let total = source_bytes + self.checkpoint_bytes(from.step())?;
        {
            let mut reading = |done, _| progress.as_mut().is_none_or(|report| report(done, total));
            let mut meter = Meter::new(Some(&mut reading), total);
            from.verify_sources(&sources, &mut meter)?;
        }
        let mut writing = |done, _| {
            progress
                .as_mut()
                .is_none_or(|report| report(source_bytes + done, total))
        };
        let mut gather = None;
        let fill = |buffer: usize, at: usize, chunk: &mut [u8]| {
            if at == 0 {
                gather = None;
            }
            match &mut gather {
                Some(gather) => Gather::fill(gather, chunk),
                None => gather
                    .insert(from.gather(self, &self.buffers[buffer])?)
                    .fill(chunk),
            }
        };
        file::replace(path, |out| {
            write::write(self, from.step(), out, Some(&mut writing), fill)
        })
    }
}

/// Writes all tensors of a checkpoint, whole, into one file.
///
/// # Errors
/// As for [`Plan::reshard_checkpoint`]; `FormatMismatch` where a part of a tensor is in no file.
pub fn merge(from: &Checkpoint<'_>, path: &Path, progress: Option<Progress<'_>>) -> Result<()> {
    let plan = from.plan(from.tensors())?;
    plan.reshard_checkpoint(from, path, false, progress)
}

/// Cuts every tensor of a checkpoint along `axis` into `parts`, as even as the block grid allows,
/// and writes one file for each part beside the index at `path`: for `state.json`,
/// `state-00001-of-00004.safetensors` and so on. Tensors that cannot be cut along that axis are whole
/// in every part. Returns the files.
///
/// # Errors
/// `InvalidArgument` for no parts; otherwise as for [`Plan::reshard_checkpoint`].
pub fn split(
    from: &Checkpoint<'_>,
    axis: usize,
    parts: usize,
    path: &Path,
    mut progress: Option<Progress<'_>>,
) -> Result<Vec<PathBuf>> {
    const MOST: usize = 99_999;
    if !(1..=MOST).contains(&parts) {
        return Err(invalid(format!("parts is {parts}; it must be 1 to {MOST}")));
    }
    let whole = from.plan(from.tensors())?;
    let stem = path.with_extension("");
    let stem = stem.file_name().map(|stem| stem.to_string_lossy());
    let stem = stem.ok_or_else(|| invalid(format!("{} names no file", path.display())))?;
    let mut files = Vec::with_capacity(parts);
    for part in 0..parts {
        let tensors = whole.tensors.iter().map(|tensor| {
            let cut = cut(&tensor.global_shape, axis, tensor.grid.block, part, parts);
            TensorInfo {
                shape: cut.shape,
                global_shape: Some(tensor.global_shape.clone()),
                offset: Some(cut.offset),
                ..tensor.info.clone()
            }
        });
        let plan = from.plan(tensors.collect())?;
        let name = format!("{stem}-{:05}-of-{parts:05}.safetensors", part + 1);
        let file = file::folder(path).join(name);
        // All parts count alike: as the bytes of the source.
        let each = from.bytes();
        let mut report = |done: u64, total: u64| {
            let here = u128::from(each) * u128::from(done) / u128::from(total.max(1));
            let done = each * part as u64 + here as u64;
            progress
                .as_mut()
                .is_none_or(|report| report(done, each * parts as u64))
        };
        plan.reshard_checkpoint(from, &file, false, Some(&mut report))?;
        files.push(file);
    }
    let list: Vec<_> = files.iter().map(PathBuf::as_path).collect();
    write_index(&list, path)?;
    Ok(files)
}

/// Part `part` of a tensor.
fn cut(global: &[i64], axis: usize, block: i64, part: usize, parts: usize) -> Place {
    let mut place = Place {
        offset: vec![0; global.len()],
        shape: global.to_vec(),
    };
    let Some(each) = step(global, axis, block) else {
        return place;
    };
    let steps = crate::layout::div_ceil(global[axis], each);
    // Both are small: an axis has fewer than 2^58 elements, and parts fewer than 2^17.
    let end = |part: usize| {
        let end = i128::from(steps) * part as i128 / parts as i128;
        (end as i64 * each).min(global[axis])
    };
    place.offset[axis] = end(part);
    place.shape[axis] = end(part + 1) - end(part);
    place
}

/// Cuts of an axis are allowed at multiples of this; `None` where there are none.
fn step(global: &[i64], axis: usize, block: i64) -> Option<i64> {
    if axis < Grid::lead_axes(global, block) {
        return Some(1);
    }
    let (cut, each) = Grid::cut_axis(global, block)?;
    (axis == cut && !global[cut + 1..].contains(&0)).then_some(each)
}
