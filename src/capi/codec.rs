//! The primitives under every optimizer: f32 values to a state and back, averages, conversion.

use std::ffi::{c_char, c_void};

use super::guard::{borrow, guard_handle};
use super::plan::lowbit_plan_t;
use super::sized::read;
use super::spec::{reserved, unknown_flag};
use super::types::*;
use super::{array, buffers, text};
use crate::codec::EmaArgs;
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
/// UNSUPPORTED (rank-1 state of a shard).
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

/// Averages inputs into one state of every tensor of a plan: x' = decay x + weight input leaves in
/// f32 and its quantized form is kept. The primitive of optimizers that live in the trainer, such as
/// Muon's momentum; with a decay of 0 and a weight of 1 it is lowbit_compress with random numbers of
/// the step.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `args` (in, host, not NULL): start from LOWBIT_EMA_ARGS_INIT.
/// - `stream` (in): ignored by CPU contexts.
/// # Returns
/// As lowbit_compress; STRUCT_SIZE, UNKNOWN_FLAG.
/// # Threads
/// Several threads may use one plan at once on different buffers.
/// # Stream
/// On a CPU context the work is done on return.
/// # Ownership
/// All memory stays the caller's.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes in the plan's memory space.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_ema(
    plan: *const lowbit_plan_t,
    args: *const lowbit_ema_args_t,
    stream: *mut c_void,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let args = read(args, "args")?;
            if args.flags != 0 {
                return Err(unknown_flag("args.flags", args.flags));
            }
            reserved("args.reserved", args.reserved)?;
            let index = state_index(&plan.plan, args.state_name)?;
            let tensors = |data, name| array(data, args.tensor_count, name).map(buffers);
            plan.plan.ema(
                index,
                &EmaArgs {
                    inputs: tensors(args.inputs, "args.inputs")?,
                    outputs: tensors(args.outputs, "args.outputs")?,
                    state: buffers(array(args.state, args.buffer_count, "args.state")?),
                    decay: args.decay,
                    weight: args.weight,
                    step: args.step,
                },
                stream,
            )
        })
    }
}

/// Converts the states of one plan into those of another for the same tensors: another quantizer or
/// optimizer, at any step of training. States that are kept alike are copied, others decoded and
/// coded again; states that the old plan does not have become zero. What is kept beside a parameter
/// is copied under the same weight form and else becomes zero, so that the parameter counts. Takes
/// 4 bytes for each element of the largest tensor that is coded again, where the states are.
///
/// # Parameters
/// - `from` (in, not NULL): the old plan.
/// - `old_state` (in): array on the host of its `old_count` state buffers.
/// - `old_count` (in): buffer_count of `from`.
/// - `to` (in, not NULL): the new plan; its tensors have the names, shapes and places of the old, its
///   states lie in the same memory: the host's or one device's.
/// - `new_state` (out): array on the host of its `new_count` state buffers.
/// - `new_count` (in): buffer_count of `to`.
/// # Returns
/// As lowbit_compress; UNSUPPORTED (states in two memories); OUT_OF_MEMORY, CUDA_OUT_OF_MEMORY.
/// # Threads
/// As lowbit_step.
/// # Stream
/// Synchronises the device of CUDA contexts: waits for all of its streams, then for its own work.
/// # Ownership
/// All memory stays the caller's.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_convert(
    from: *const lowbit_plan_t,
    old_state: *const lowbit_buffer_t,
    old_count: i64,
    to: *const lowbit_plan_t,
    new_state: *const lowbit_buffer_t,
    new_count: i64,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(to, |to| {
            let from = borrow(from)?;
            let old = buffers(array(old_state, old_count, "old_state")?);
            let new = buffers(array(new_state, new_count, "new_state")?);
            to.plan.convert_from(&from.plan, old, new)
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
