//! Work on checkpoint files: what is in them, and other meshes of them.

use std::ffi::{c_char, c_void};
use std::path::Path;

use super::checkpoint::progress;
use super::guard::{guard, guard_handle};
use super::plan::lowbit_plan_t;
use super::types::*;
use super::{array, copy_text, text};
use crate::checkpoint::{self, Checkpoint};
use crate::error::{Error, Result, Status, invalid};

/// Writes the index of a checkpoint in several files: one from each process, with its shards. To be
/// called by one process when all have saved theirs; the index is what is then loaded. The files
/// must be of one step and spec and together have every element; shards that have the same part must
/// have the same bytes.
///
/// # Parameters
/// - `paths` (in, host): array of `path_count` texts, UTF-8: files in the folder of the index.
/// - `path_count` (in): 1 or more.
/// - `path` (in, host, not NULL): UTF-8; the index, replaced whole or not at all.
/// # Returns
/// OK, NULL_POINTER, INVALID_ARGUMENT (a file elsewhere), IO, FORMAT_..., FORMAT_MISMATCH (the text
/// says what does not fit or is missing), OUT_OF_MEMORY.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// Texts end with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_checkpoint_index(
    paths: *const *const c_char,
    path_count: i64,
    path: *const c_char,
) -> lowbit_status_t {
    guard(|| {
        // SAFETY: the caller's promise.
        let files = unsafe { array(paths, path_count, "paths") }?
            .iter()
            .enumerate()
            // SAFETY: the caller's promise.
            .map(|(i, file)| unsafe { text(*file, &format!("paths[{i}]")) }.map(Path::new))
            .collect::<Result<Vec<_>>>()?;
        // SAFETY: the caller's promise.
        checkpoint::write_index(&files, Path::new(unsafe { text(path, "path") }?))
    })
}

/// Writes all tensors of a checkpoint, whole, into one file. Memory stays at a few MiB.
///
/// # Parameters
/// - `from` (in, host, not NULL): UTF-8; a checkpoint file or an index.
/// - `path` (in, host, not NULL): UTF-8; replaced whole or not at all.
/// - `progress` (in): may be NULL.
/// - `user` (in): passed to `progress`.
/// # Returns
/// OK, NULL_POINTER, IO, FORMAT_..., OUT_OF_MEMORY, CANCELLED.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// Texts end with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_checkpoint_merge(
    from: *const c_char,
    path: *const c_char,
    progress: lowbit_progress_t,
    user: *mut c_void,
) -> lowbit_status_t {
    guard(|| {
        // SAFETY: the caller's promise.
        let (from, path, mut report) = unsafe {
            (
                text(from, "from")?,
                text(path, "path")?,
                self::progress(progress, user),
            )
        };
        let from = Checkpoint::open(Path::new(from))?;
        checkpoint::merge(&from, Path::new(path), Some(&mut report))
    })
}

/// Cuts every tensor of a checkpoint along one axis, as even as the block grid allows, and writes
/// one file for each part beside an index: for "state.json", "state-00001-of-00004.safetensors" and
/// so on. Tensors that cannot be cut along that axis are whole in every part. For other meshes:
/// lowbit_checkpoint_reshard.
///
/// # Parameters
/// - `from` (in, host, not NULL): UTF-8; a checkpoint file or an index.
/// - `axis` (in): 0 or more.
/// - `parts` (in): 1 to 99999.
/// - `path` (in, host, not NULL): UTF-8; the index.
/// - `progress` (in): may be NULL.
/// - `user` (in): passed to `progress`.
/// # Returns
/// As lowbit_checkpoint_merge; also INVALID_ARGUMENT.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// Texts end with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_checkpoint_split(
    from: *const c_char,
    axis: i32,
    parts: i64,
    path: *const c_char,
    progress: lowbit_progress_t,
    user: *mut c_void,
) -> lowbit_status_t {
    guard(|| {
        // SAFETY: the caller's promise.
        let (from, path, mut report) = unsafe {
            (
                text(from, "from")?,
                text(path, "path")?,
                self::progress(progress, user),
            )
        };
        let axis = usize::try_from(axis).map_err(|_| invalid(format!("axis is {axis}")))?;
        let parts = usize::try_from(parts).map_err(|_| invalid(format!("parts is {parts}")))?;
        let from = Checkpoint::open(Path::new(from))?;
        checkpoint::split(&from, axis, parts, Path::new(path), Some(&mut report)).map(drop)
    })
}

/// Writes the checkpoint file of a plan's tensors, whole or any shards of them, from a checkpoint of
/// any mesh. Nothing is decoded, and memory stays at a few MiB; the plan's device is not used.
///
/// # Parameters
/// - `plan` (in, not NULL): its tensors may be some of the checkpoint's.
/// - `from` (in, host, not NULL): UTF-8; a checkpoint file or an index.
/// - `path` (in, host, not NULL): UTF-8; replaced whole or not at all.
/// - `progress` (in): may be NULL.
/// - `user` (in): passed to `progress`.
/// # Returns
/// As lowbit_checkpoint_merge; FORMAT_MISMATCH also for a plan of another spec or other tensors.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// Texts end with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_checkpoint_reshard(
    plan: *const lowbit_plan_t,
    from: *const c_char,
    path: *const c_char,
    progress: lowbit_progress_t,
    user: *mut c_void,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let (from, path) = (text(from, "from")?, text(path, "path")?);
            let mut report = self::progress(progress, user);
            let from = Checkpoint::open(Path::new(from))?;
            plan.plan
                .reshard_checkpoint(&from, Path::new(path), true, Some(&mut report))
        })
    }
}

/// What a checkpoint has: step, spec, and the global tensors with the places of their shards, as
/// JSON. Only headers are read and verified.
///
/// # Parameters
/// - `from` (in, host, not NULL): UTF-8; a checkpoint file or an index.
/// - `buf` (out, host): receives the text and a NUL; may be NULL if `cap` is 0.
/// - `cap` (in): bytes of `buf`.
/// - `needed` (out, host): bytes of the text with its NUL; may be NULL.
/// # Returns
/// OK, NULL_POINTER, BUFFER_SIZE (`cap` is too small), IO, FORMAT_..., OUT_OF_MEMORY.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// `from` ends with NUL; `buf` has `cap` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_checkpoint_json(
    from: *const c_char,
    buf: *mut c_char,
    cap: usize,
    needed: *mut usize,
) -> lowbit_status_t {
    guard(|| {
        // SAFETY: the caller's promise.
        let from = Checkpoint::open(Path::new(unsafe { text(from, "from") }?))?;
        // SAFETY: the caller's promise.
        unsafe { copy_text(from.to_json()?.as_bytes(), buf, cap, needed) }
    })
}

/// The f32 values of one state of one tensor, or of a slice of it, without reading the rest. The
/// checksums of headers are verified, those of the data are not: that needs all of an entry.
///
/// # Parameters
/// - `from` (in, host, not NULL): UTF-8; a checkpoint file or an index.
/// - `tensor` (in, host, not NULL): its name.
/// - `state_name` (in, host, not NULL): "m", "v", "vmax" or "x".
/// - `offset` (in, host), `shape` (in, host): arrays of `ndim` numbers: the slice of the global
///   tensor. May be NULL if `ndim` is 0.
/// - `ndim` (in): number of axes of the tensor.
/// - `values` (out, host): receives the values in C order; may be NULL if `bytes` is 0.
/// - `bytes` (in): 4 for each element of the slice.
/// # Returns
/// OK, NULL_POINTER, INVALID_ARGUMENT (no such tensor, state or slice), BUFFER_SIZE, MISALIGNED, IO,
/// FORMAT_..., OUT_OF_MEMORY.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// Arrays have their sizes; texts end with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_checkpoint_values(
    from: *const c_char,
    tensor: *const c_char,
    state_name: *const c_char,
    offset: *const i64,
    shape: *const i64,
    ndim: i32,
    values: *mut f32,
    bytes: i64,
) -> lowbit_status_t {
    guard(|| {
        // SAFETY: the caller's promise.
        let (from, tensor, state, offset, shape) = unsafe {
            (
                text(from, "from")?,
                text(tensor, "tensor")?,
                text(state_name, "state_name")?,
                array(offset, i64::from(ndim), "offset")?,
                array(shape, i64::from(ndim), "shape")?,
            )
        };
        let count = shape
            .iter()
            .try_fold(1_i64, |count, extent| count.checked_mul(*extent));
        if count.and_then(|count| count.checked_mul(4)) != Some(bytes) {
            return Err(Error::new(
                Status::BufferSize,
                format!("values has {bytes} bytes, the slice {shape:?} of f32 has others"),
            ));
        }
        // Before the file is opened: is there somewhere to write to?
        // SAFETY: the caller's promise.
        let out = unsafe { array(values.cast_const(), bytes / 4, "values") }?;
        let from = Checkpoint::open(Path::new(from))?;
        let found = from.values(tensor, state, offset, shape)?;
        // SAFETY: as many were asked for.
        unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), values, out.len()) };
        Ok(())
    })
}
