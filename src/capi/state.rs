//! `lowbit_state_t`.

use std::ffi::c_void;

use super::guard::{give, guard, guard_handle, handle, take};
use super::output;
use super::plan::lowbit_plan_t;
use super::types::*;
use crate::error::{Error, Status};
use crate::state::State;

/// Owned state buffers, for trainers that do not bring their own memory.
pub struct lowbit_state_t {
    state: State,
}

handle!(lowbit_state_t, "state", b"lb.stat\0");

/// Allocates the state buffers of a plan and sets them to zero, the state before the first step.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `stream` (in): a CUstream or cudaStream_t for CUDA contexts, ignored by CPU contexts.
/// - `out` (out, host, not NULL): the state, or NULL on failure.
/// # Returns
/// OK, NULL_POINTER, OUT_OF_MEMORY, CUDA_OUT_OF_MEMORY, CUDA_ERROR.
/// # Threads
/// Any.
/// # Stream
/// Zeroing is enqueued on `stream`.
/// # Ownership
/// The caller destroys the state by lowbit_state_destroy. The plan may be destroyed before.
/// # Since
/// ABI 0.1
/// # Safety
/// `stream` is a stream of the plan's device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_state_create(
    plan: *const lowbit_plan_t,
    stream: *mut c_void,
    out: *mut *mut lowbit_state_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        // Before the plan is looked at: NULL on every failure.
        if let Ok(out) = output(out, "out") {
            *out = std::ptr::null_mut();
        }
        guard_handle(plan, |plan| {
            let out = output(out, "out")?;
            let state = State::new(&plan.plan, stream)?;
            give(out, lowbit_state_t { state });
            Ok(())
        })
    }
}

/// The buffers of a state, to be passed to steps and checkpoints.
///
/// # Parameters
/// - `state` (in, not NULL).
/// - `buffers` (out, host, not NULL): array of `buffer_count` elements.
/// - `buffer_count` (in): buffer_count of the plan.
/// # Returns
/// OK, NULL_POINTER, BUFFER_SIZE (another count).
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// The memory is the state's and lives as long as it does.
/// # Since
/// ABI 0.1
/// # Safety
/// `buffers` has that many elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_state_buffers(
    state: *const lowbit_state_t,
    buffers: *mut lowbit_buffer_t,
    buffer_count: i64,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(state, |state| {
            let list = state.state.buffers();
            if usize::try_from(buffer_count) != Ok(list.len()) {
                return Err(Error::new(
                    Status::BufferSize,
                    format!(
                        "buffer_count is {buffer_count}, the state has {}",
                        list.len()
                    ),
                ));
            }
            if list.is_empty() {
                return Ok(());
            }
            let buffers = output(buffers, "buffers")?;
            for (i, buffer) in list.iter().enumerate() {
                *buffers.add(i) = lowbit_buffer_t {
                    data: buffer.data,
                    bytes: buffer.bytes,
                };
            }
            Ok(())
        })
    }
}

/// Frees a state and its memory.
///
/// # Parameters
/// - `state` (in): may be NULL.
/// - `stream` (in): as for lowbit_state_create.
/// # Returns
/// Nothing.
/// # Threads
/// No other thread uses `state` or its buffers.
/// # Stream
/// The memory is freed when work enqueued on `stream` before has finished.
/// # Ownership
/// Ends the caller's.
/// # Since
/// ABI 0.1
/// # Safety
/// `state` was not destroyed before; work on other streams that uses it has finished.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_state_destroy(state: *mut lowbit_state_t, stream: *mut c_void) {
    guard(|| {
        // SAFETY: the caller's promise.
        if let Some(state) = unsafe { take(state) } {
            state.state.destroy(stream);
        }
        Ok(())
    });
}
