//! Checkpoints to files and to memory.

use std::ffi::{c_char, c_void};
use std::io::Cursor;
use std::path::Path;

use super::guard::guard_handle;
use super::plan::lowbit_plan_t;
use super::sized::{size_of_caller, write};
use super::types::*;
use super::{array, buffers, null, output, text};
use crate::error::{Error, Result, Status, invalid};

/// Writes a checkpoint file whole or not at all: into a temporary file of the same folder, synced,
/// then renamed over `path`.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `state` (in): array on the host of all `buffer_count` state buffers.
/// - `buffer_count` (in): that of the plan.
/// - `step` (in): steps done; 0 or more.
/// - `path` (in, host, not NULL): UTF-8.
/// - `stream` (in): ignored by CPU contexts.
/// # Returns
/// OK, NULL_POINTER, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED, IO (`path` is as it was).
/// # Threads
/// Any, while nobody changes the state.
/// # Stream
/// Synchronises `stream`.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes in the plan's memory space.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_checkpoint_save(
    plan: *const lowbit_plan_t,
    state: *const lowbit_buffer_t,
    buffer_count: i64,
    step: i64,
    path: *const c_char,
    stream: *mut c_void,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let state = buffers(array(state, buffer_count, "state")?);
            plan.plan
                .save_checkpoint(state, done(step)?, Path::new(text(path, "path")?), stream)
        })
    }
}

/// Reads a checkpoint file written under an equal plan (spec, tensors, places).
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `path` (in, host, not NULL): UTF-8.
/// - `state` (out): array on the host of all `buffer_count` state buffers. They are written only
///   after the whole file was verified.
/// - `buffer_count` (in): that of the plan.
/// - `stream` (in): ignored by CPU contexts.
/// - `out` (out, host): may be NULL; its struct_size is read.
/// # Returns
/// OK; IO, FORMAT_MAGIC, FORMAT_VERSION, FORMAT_TRUNCATED, FORMAT_CORRUPT, FORMAT_MISMATCH (the
/// state is untouched); NULL_POINTER, BUFFER_SIZE, MISALIGNED, STRUCT_SIZE.
/// # Threads
/// Nobody else uses the state.
/// # Stream
/// Synchronises `stream`.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes in the plan's memory space.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_checkpoint_load(
    plan: *const lowbit_plan_t,
    path: *const c_char,
    state: *const lowbit_buffer_t,
    buffer_count: i64,
    stream: *mut c_void,
    out: *mut lowbit_checkpoint_info_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let state = buffers(array(state, buffer_count, "state")?);
            let path = Path::new(text(path, "path")?);
            check_report(out)?;
            let info = plan.plan.load_checkpoint(path, state, stream)?;
            report(out, info.step)
        })
    }
}

/// Writes a checkpoint into the caller's memory.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `state` (in): array on the host of all `buffer_count` state buffers.
/// - `buffer_count` (in): that of the plan.
/// - `step` (in): steps done; 0 or more.
/// - `stream` (in): ignored by CPU contexts.
/// - `buf` (out, host): receives the bytes; may be NULL if `cap` is 0.
/// - `cap` (in): bytes of `buf`.
/// - `needed` (out, host, not NULL): exact size of the checkpoint.
/// # Returns
/// OK, NULL_POINTER, INVALID_ARGUMENT, BUFFER_SIZE (also if `cap` is too small), MISALIGNED.
/// # Threads
/// Any, while nobody changes the state.
/// # Stream
/// Synchronises `stream`.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes; `buf` has `cap` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_checkpoint_serialize(
    plan: *const lowbit_plan_t,
    state: *const lowbit_buffer_t,
    buffer_count: i64,
    step: i64,
    stream: *mut c_void,
    buf: *mut c_void,
    cap: usize,
    needed: *mut usize,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let needed = output(needed, "needed")?;
            let step = done(step)?;
            let size = usize::try_from(plan.plan.checkpoint_bytes(step)?)
                .map_err(|error| invalid(error.to_string()))?;
            *needed = size;
            if buf.is_null() && cap == 0 {
                return Ok(());
            }
            if buf.is_null() {
                return Err(null("buf"));
            }
            if cap < size {
                return Err(Error::new(
                    Status::BufferSize,
                    format!("cap is {cap}, the checkpoint has {size} bytes"),
                ));
            }
            let state = buffers(array(state, buffer_count, "state")?);
            let mut out = std::slice::from_raw_parts_mut(buf.cast::<u8>(), size);
            plan.plan.write_checkpoint(state, step, &mut out, stream)
        })
    }
}

/// Reads a checkpoint from the caller's memory.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `data` (in, host, not NULL), `bytes` (in): as written by lowbit_checkpoint_serialize or read
///   from a file.
/// - `state` (out): array on the host of all `buffer_count` state buffers. They are written only
///   after all bytes were verified.
/// - `buffer_count` (in): that of the plan.
/// - `stream` (in): ignored by CPU contexts.
/// - `out` (out, host): may be NULL; its struct_size is read.
/// # Returns
/// As lowbit_checkpoint_load.
/// # Threads
/// Nobody else uses the state.
/// # Stream
/// Synchronises `stream`.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes; `data` has `bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_checkpoint_deserialize(
    plan: *const lowbit_plan_t,
    data: *const c_void,
    bytes: usize,
    state: *const lowbit_buffer_t,
    buffer_count: i64,
    stream: *mut c_void,
    out: *mut lowbit_checkpoint_info_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let length = i64::try_from(bytes).map_err(|error| invalid(error.to_string()))?;
            let data = array(data.cast::<u8>(), length, "data")?;
            let state = buffers(array(state, buffer_count, "state")?);
            check_report(out)?;
            let info = plan
                .plan
                .read_checkpoint(&mut Cursor::new(data), state, stream)?;
            report(out, info.step)
        })
    }
}

fn done(step: i64) -> Result<i64> {
    if step < 0 {
        Err(invalid(format!("step is {step}; it must be >= 0")))
    } else {
        Ok(step)
    }
}

/// Refuses what `report` could not write to, while the state is still untouched.
///
/// # Safety
/// `out` is null or has struct_size bytes.
unsafe fn check_report(out: *mut lowbit_checkpoint_info_t) -> Result<()> {
    if out.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe { size_of_caller(out, "out") }.map(drop)
}

/// # Safety
/// `out` is null or has struct_size bytes.
unsafe fn report(out: *mut lowbit_checkpoint_info_t, step: i64) -> Result<()> {
    if out.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    unsafe {
        write(
            out,
            "out",
            &lowbit_checkpoint_info_t {
                struct_size: 0,
                step,
            },
        )
    }
}
