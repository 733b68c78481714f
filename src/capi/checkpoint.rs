//! Checkpoints to files, to memory, and to the caller's callbacks.

use std::ffi::{c_char, c_void};
use std::fs::File;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::path::Path;

use super::guard::guard_handle;
use super::plan::lowbit_plan_t;
use super::sized::{read, size_of_caller, write};
use super::spec::{reserved, unknown_flag};
use super::types::*;
use super::{array, buffers, null, output, text};
use crate::checkpoint::{Checkpoint, Source};
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
/// OK, NULL_POINTER, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED, OUT_OF_MEMORY, IO (`path` is as it
/// was, or, if only its folder could not be synced, the new file).
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
            let path = Path::new(text(path, "path")?);
            plan.plan
                .save_checkpoint(state, done(step)?, path, 0, None, stream)
        })
    }
}

/// Reads a checkpoint file, or an index of several, written under the same spec for the same tensors
/// or any shards of them.
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
/// state is untouched); NULL_POINTER, BUFFER_SIZE, MISALIGNED, STRUCT_SIZE, OUT_OF_MEMORY.
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
/// OK, NULL_POINTER, INVALID_ARGUMENT, BUFFER_SIZE (also if `cap` is too small), MISALIGNED,
/// OUT_OF_MEMORY.
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
            plan.plan
                .write_checkpoint(state, step, &mut out, None, stream)
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
            let from = Checkpoint::of(Box::new(data))?;
            let info = plan
                .plan
                .read_checkpoint(&from, state, false, None, stream)?;
            report(out, info.step)
        })
    }
}

/// Writes a checkpoint to a path, a file descriptor or a callback, with progress.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `args` (in, host, not NULL): state, step and where they go.
/// - `stream` (in): ignored by CPU contexts.
/// # Returns
/// OK, NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT (also none or several targets),
/// BUFFER_SIZE, MISALIGNED, UNSUPPORTED (no file descriptors on this system), OUT_OF_MEMORY, IO,
/// CANCELLED. After a failure a path is as it was; a descriptor or callback has got a part.
/// # Threads
/// Any, while nobody changes the state. Callbacks are called on the calling thread.
/// # Stream
/// Synchronises `stream`.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes in the plan's memory space; callbacks return.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_checkpoint_write(
    plan: *const lowbit_plan_t,
    args: *const lowbit_save_args_t,
    stream: *mut c_void,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let args = read(args, "args")?;
            let known = args.flags & LOWBIT_SAVE_FD;
            if args.flags != known {
                return Err(unknown_flag("args.flags", args.flags & !known));
            }
            one_of(args.path.is_null(), args.write.is_none(), known == 0)?;
            let state = buffers(array(args.state, args.buffer_count, "args.state")?);
            let step = done(args.step)?;
            let keep = usize::try_from(args.keep)
                .map_err(|_| invalid(format!("args.keep is {}", args.keep)))?;
            if keep > 0 && args.path.is_null() {
                return Err(invalid("args.keep needs args.path"));
            }
            let mut report = progress(args.progress, args.progress_user);
            let report: crate::checkpoint::Progress<'_> = &mut report;
            let plan = &plan.plan;
            if let Some(write) = args.write {
                let user = args.write_user;
                let mut out = Callback { write, user };
                return plan.write_checkpoint(state, step, &mut out, Some(report), stream);
            }
            if args.path.is_null() {
                let mut out = descriptor(args.fd)?;
                return plan.write_checkpoint(state, step, &mut *out, Some(report), stream);
            }
            let path = Path::new(text(args.path, "args.path")?);
            plan.save_checkpoint(state, step, path, keep, Some(report), stream)
        })
    }
}

/// Reads a checkpoint, whatever the mesh that wrote it, from a path, a file descriptor or a
/// callback, with progress.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `args` (in, host, not NULL): where it comes from, and the state (out).
/// - `stream` (in): ignored by CPU contexts.
/// - `out` (out, host): may be NULL; its struct_size is read.
/// # Returns
/// As lowbit_checkpoint_load; also UNKNOWN_FLAG, INVALID_ARGUMENT (none or several sources),
/// UNSUPPORTED, OUT_OF_MEMORY, CANCELLED. The state is untouched unless all that it is read from was
/// verified; only a source that fails or changes after that leaves it in part written, and the
/// text then says so.
/// # Threads
/// Nobody else uses the state. Callbacks are called on the calling thread.
/// # Stream
/// Synchronises `stream`.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes in the plan's memory space; callbacks return.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_checkpoint_read(
    plan: *const lowbit_plan_t,
    args: *const lowbit_load_args_t,
    stream: *mut c_void,
    out: *mut lowbit_checkpoint_info_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let args = read(args, "args")?;
            let known = args.flags & (LOWBIT_LOAD_FD | LOWBIT_LOAD_SUBSET);
            if args.flags != known {
                return Err(unknown_flag("args.flags", args.flags & !known));
            }
            reserved("args.reserved", args.reserved)?;
            let no_fd = known & LOWBIT_LOAD_FD == 0;
            one_of(args.path.is_null(), args.read.is_none(), no_fd)?;
            let state = buffers(array(args.state, args.buffer_count, "args.state")?);
            check_report(out)?;
            let mut report_progress = progress(args.progress, args.progress_user);
            let subset = known & LOWBIT_LOAD_SUBSET != 0;
            // Outlives what reads from it.
            let file;
            let from = if let Some(read) = args.read {
                Checkpoint::of(Box::new(Callbacks {
                    read,
                    user: args.read_user,
                    bytes: u64::try_from(args.bytes)
                        .map_err(|_| invalid(format!("args.bytes is {}", args.bytes)))?,
                }))?
            } else if args.path.is_null() {
                file = descriptor(args.fd)?;
                Checkpoint::of(Box::new(regular(&file, args.fd)?))?
            } else {
                Checkpoint::open(Path::new(text(args.path, "args.path")?))?
            };
            let info = plan.plan.read_checkpoint(
                &from,
                state,
                subset,
                Some(&mut report_progress),
                stream,
            )?;
            report(out, info.step)
        })
    }
}

/// Exactly one of three ways.
fn one_of(no_path: bool, no_callback: bool, no_fd: bool) -> Result<()> {
    match usize::from(!no_path) + usize::from(!no_callback) + usize::from(!no_fd) {
        1 => Ok(()),
        given => Err(invalid(format!(
            "args has {given} of path, callback and fd; it must be one"
        ))),
    }
}

/// A progress callback of C.
///
/// # Safety
/// `progress` is null or does what its type says.
pub(super) unsafe fn progress(
    progress: lowbit_progress_t,
    user: *mut c_void,
) -> impl FnMut(u64, u64) -> bool {
    move |done, total| match progress {
        // SAFETY: the caller's promise.
        Some(progress) => unsafe { progress(user, done.cast_signed(), total.cast_signed()) == 0 },
        None => true,
    }
}

/// Writes by a callback.
struct Callback {
    write: unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> i32,
    user: *mut c_void,
}

impl Write for Callback {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // SAFETY: whoever gave the callback promises that it takes valid bytes.
        match unsafe { (self.write)(self.user, bytes.as_ptr().cast(), bytes.len()) } {
            0 => Ok(bytes.len()),
            code => Err(std::io::Error::other(format!(
                "the write callback returned {code}"
            ))),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads by a callback.
struct Callbacks {
    read: unsafe extern "C" fn(*mut c_void, i64, *mut c_void, usize) -> i32,
    user: *mut c_void,
    bytes: u64,
}

impl Source for Callbacks {
    fn length(&self) -> Result<u64> {
        Ok(self.bytes)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let (data, bytes) = (into.as_mut_ptr().cast(), into.len());
        // SAFETY: whoever gave the callback promises that it fills valid bytes.
        match unsafe { (self.read)(self.user, offset.cast_signed(), data, bytes) } {
            0 => Ok(()),
            code => Err(Error::new(
                Status::Io,
                format!("the read callback returned {code}"),
            )),
        }
    }
}

/// A file of the caller's, not closed here.
///
/// # Safety
/// `fd` is open, or is none.
#[cfg(unix)]
unsafe fn descriptor(fd: i32) -> Result<ManuallyDrop<File>> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: only asks about a number.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
        return Err(invalid(format!("args.fd is {fd}, which is not open")));
    }
    // SAFETY: open; the caller keeps it so.
    Ok(ManuallyDrop::new(unsafe { File::from_raw_fd(fd) }))
}

/// # Safety
/// None.
#[cfg(not(unix))]
unsafe fn descriptor(_: i32) -> Result<ManuallyDrop<File>> {
    Err(crate::error::unsupported(
        "this system has no file descriptors; use path or a callback",
    ))
}

/// What can be read at any place.
fn regular(file: &File, fd: i32) -> Result<&File> {
    let metadata = file
        .metadata()
        .map_err(|error| Error::new(Status::Io, format!("args.fd: {error}")))?;
    if metadata.is_file() {
        Ok(file)
    } else {
        Err(invalid(format!(
            "args.fd is {fd}, which is no regular file; others are read by a callback"
        )))
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
