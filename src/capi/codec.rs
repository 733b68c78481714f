//! The primitives under every optimizer: f32 values to a state and back.

use std::ffi::{c_char, c_void};

use super::guard::guard_handle;
use super::plan::lowbit_plan_t;
use super::types::*;
use super::{array, buffers, text};
use crate::error::{Result, invalid};
use crate::plan::Plan;

/// Quantizes f32 values into one state of every tensor of a plan: to import a full-precision state,
/// or as the primitive of an optimizer that lives in the trainer (a spec with the optimizer "none"
/// and its state "x").
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `state_name` (in, host, not NULL): "m", "v" or "x".
/// - `values` (in): array on the host of `tensor_count` f32 buffers, in the tensors' shapes.
/// - `tensor_count` (in): that of the plan.
/// - `state` (out): array on the host of all `buffer_count` state buffers; those of other states
///   are not written.
/// - `buffer_count` (in): that of the plan.
/// - `stream` (in): ignored by CPU contexts.
/// # Returns
/// OK; NULL_POINTER, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED, OVERLAP (nothing was written);
/// UNSUPPORTED (rank-1 state of a shard; CUDA contexts in this version).
/// # Threads
/// As lowbit_step.
/// # Stream
/// The call returns when the work has been enqueued on `stream`.
/// # Ownership
/// All memory stays the caller's.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes in the plan's memory space.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_compress(
    plan: *const lowbit_plan_t,
    state_name: *const c_char,
    values: *const lowbit_buffer_t,
    tensor_count: i64,
    state: *const lowbit_buffer_t,
    buffer_count: i64,
    stream: *mut c_void,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let index = state_index(&plan.plan, state_name)?;
            let values = buffers(array(values, tensor_count, "values")?);
            let state = buffers(array(state, buffer_count, "state")?);
            plan.plan.compress(index, values, state, stream)
        })
    }
}

/// Restores one state of every tensor of a plan as f32 values.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `state_name` (in, host, not NULL): "m", "v" or "x".
/// - `state` (in): array on the host of all `buffer_count` state buffers.
/// - `buffer_count` (in): that of the plan.
/// - `values` (out): array on the host of `tensor_count` f32 buffers, in the tensors' shapes.
/// - `tensor_count` (in): that of the plan.
/// - `stream` (in): ignored by CPU contexts.
/// # Returns
/// As lowbit_compress.
/// # Threads
/// As lowbit_step.
/// # Stream
/// The call returns when the work has been enqueued on `stream`.
/// # Ownership
/// All memory stays the caller's.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes in the plan's memory space.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_decompress(
    plan: *const lowbit_plan_t,
    state_name: *const c_char,
    state: *const lowbit_buffer_t,
    buffer_count: i64,
    values: *const lowbit_buffer_t,
    tensor_count: i64,
    stream: *mut c_void,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let index = state_index(&plan.plan, state_name)?;
            let state = buffers(array(state, buffer_count, "state")?);
            let values = buffers(array(values, tensor_count, "values")?);
            plan.plan.decompress(index, state, values, stream)
        })
    }
}

/// # Safety
/// `name` is null or NUL-terminated.
unsafe fn state_index(plan: &Plan, name: *const c_char) -> Result<usize> {
    // SAFETY: the caller's promise.
    let name = unsafe { text(name, "state_name") }?;
    let states = plan.spec.states();
    states
        .iter()
        .position(|state| *state == name)
        .ok_or_else(|| {
            invalid(format!(
                "state_name is {name:?}; the plan has {}",
                states.join(", ")
            ))
        })
}
