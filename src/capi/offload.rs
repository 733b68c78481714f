//! `lowbit_offload_t`.

use std::ffi::c_void;
use std::sync::Arc;

use super::context::lowbit_context_t;
use super::guard::{borrow, give, guard, guard_handle, handle, take};
use super::output;
use super::plan::lowbit_plan_t;
use super::sized::write;
use super::step::with_args;
use super::types::*;
use crate::error::{Error, Result, Status};
use crate::offload::Offload;
use crate::step::Buffer;

/// States in pinned host memory for parameters and gradients on a CUDA device, and the staging
/// memory and streams through which a step moves them.
pub struct lowbit_offload_t {
    offload: Offload,
}

handle!(lowbit_offload_t, "offload", b"lb.offl\0");

/// Prepares steps of a plan whose states are on the host, while parameters and gradients are on a
/// CUDA device. The plan's context says where the step runs. On a CPU context, gradients come to the
/// host, which steps its copy of the parameters and its states (with the master weights), and
/// parameters go back. On a CUDA context, states come to the device and go back. Either way the
/// tensors are stepped in parts that share two slots of staging memory, so that copies run beside
/// steps, with the bits of lowbit_step.
///
/// # Parameters
/// - `plan` (in, not NULL): not kept as a handle; may be destroyed.
/// - `device` (in): the CUDA context where parameters and gradients are, not kept as a handle; may be
///   NULL if the plan's context is one.
/// - `staging_bytes` (in): the most that both slots may take together; 0 means the least, twice the
///   largest tensor's gradient (step on the host) or states (on the device). Small tensors share a
///   slot, and larger slots make fewer parts.
/// - `out` (out, host, not NULL): the offload, or NULL on failure.
/// # Returns
/// OK, NULL_POINTER, INVALID_ARGUMENT (staging_bytes is too small, `device` is not the plan's),
/// UNSUPPORTED (a plan without an optimizer), OUT_OF_MEMORY (also of memory that can be pinned),
/// CUDA_OUT_OF_MEMORY, CUDA_ERROR.
/// # Threads
/// Any.
/// # Stream
/// Synchronises the legacy default stream. Allocates all that steps need: pinned and staging memory,
/// two streams, events.
/// # Ownership
/// The caller destroys the offload by lowbit_offload_destroy.
/// # Since
/// ABI 0.1
/// # Safety
/// The handles are alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_offload_create(
    plan: *const lowbit_plan_t,
    device: *const lowbit_context_t,
    staging_bytes: i64,
    out: *mut *mut lowbit_offload_t,
) -> lowbit_status_t {
    guard(|| {
        let out = output(out, "out")?;
        // SAFETY: the caller's promise; `out` was checked.
        unsafe {
            *out = std::ptr::null_mut();
            let plan = Arc::clone(&borrow(plan)?.plan);
            let device = if device.is_null() {
                None
            } else {
                Some(Arc::clone(&borrow(device)?.context))
            };
            let offload = Offload::new(plan, device, staging_bytes)?;
            give(out, lowbit_offload_t { offload });
        }
        Ok(())
    })
}

/// Sizes of an offload, the bytes that a step moves, and how far the last step came.
///
/// # Parameters
/// - `offload` (in, not NULL).
/// - `out` (out, host, not NULL): its struct_size is read.
/// # Returns
/// OK, NULL_POINTER, STRUCT_SIZE.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// `out` has struct_size bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_offload_info(
    offload: *const lowbit_offload_t,
    out: *mut lowbit_offload_info_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(offload, |handle| {
            let info = handle.offload.info();
            let info = lowbit_offload_info_t {
                struct_size: 0,
                on_host: i32::from(info.on_host),
                reserved: 0,
                chunk_count: info.chunks.cast_signed() as i64,
                staging_bytes: info.staging_bytes,
                host_bytes: info.host_bytes,
                bytes_to_device: info.bytes_to_device,
                bytes_to_host: info.bytes_to_host,
                stepped: info.stepped.cast_signed() as i64,
            };
            write(out, "out", &info)
        })
    }
}

/// The host's memory of an offload: its parameters, if steps run on the host, and its states, as a
/// plan of a CPU context takes them (for checkpoints). All bytes are 0 at first, which is the initial
/// state; the initial parameters are the caller's to copy.
///
/// # Parameters
/// - `offload` (in, not NULL).
/// - `params` (out, host): array of `tensor_count` elements, one per tensor; NULL if steps run on
///   the device.
/// - `tensor_count` (in): tensor_count of the plan, or 0 if steps run on the device.
/// - `state` (out, host, not NULL): array of `buffer_count` elements, in the plan's order.
/// - `buffer_count` (in): buffer_count of the plan.
/// # Returns
/// OK, NULL_POINTER, MISALIGNED, BUFFER_SIZE (other counts).
/// # Threads
/// Any.
/// # Stream
/// None. The memory may be read and written when the stream of the last step has been synchronised;
/// if steps run on the host, it may be read as soon as the step has returned.
/// # Ownership
/// The memory is the offload's and lives as long as it does.
/// # Since
/// ABI 0.1
/// # Safety
/// The arrays have that many elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_offload_buffers(
    offload: *const lowbit_offload_t,
    params: *mut lowbit_buffer_t,
    tensor_count: i64,
    state: *mut lowbit_buffer_t,
    buffer_count: i64,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(offload, |handle| {
            let (from_params, from_state) = (handle.offload.params(), handle.offload.state());
            let params = room(
                params,
                tensor_count,
                from_params.len(),
                ["params", "tensor_count"],
            )?;
            let state = room(
                state,
                buffer_count,
                from_state.len(),
                ["state", "buffer_count"],
            )?;
            for (to, from) in [(params, from_params), (state, from_state)] {
                for (i, &Buffer { data, bytes }) in from.iter().enumerate() {
                    *to.add(i) = lowbit_buffer_t { data, bytes };
                }
            }
            Ok(())
        })
    }
}

/// Updates all tensors of the plan in the order of `stream`: a gradient is read when the work
/// enqueued there before has finished, and what is enqueued later finds the new parameters.
///
/// # Parameters
/// - `offload` (in, not NULL).
/// - `args` (in, host, not NULL): as for lowbit_step, with params and grads in device memory, and
///   hyper, step_number and skipped in the memory space of the plan. state, buffer_count and scratch
///   are the offload's own: NULL and 0. updates, offsets, LOWBIT_STEP_COUNTED and
///   LOWBIT_NONFINITE_SKIP_STEP (which would need all gradients before the first tensor) are not
///   possible.
/// - `stream` (in): a CUstream or cudaStream_t of the device, always the same one, or one that the
///   caller has ordered behind the last.
/// # Returns
/// OK; NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED, OVERLAP,
/// UNSUPPORTED (nothing was done); CUDA_ERROR: the text and lowbit_offload_info say how many tensors,
/// from the first on, were stepped; no work is left behind. If steps run on the host, its parameters
/// and states are then whole: those tensors' after the step, all others' before it.
/// # Threads
/// No other thread uses `offload` or its memory.
/// # Stream
/// Waits for `stream`, if steps run on the host: on return they are done, and only copies of
/// parameters are enqueued. Else the call returns when all is enqueued. `stream` waits for copies on
/// two streams of the offload's. No allocation. Not to be captured.
/// # Ownership
/// All memory in `args` stays the caller's and must not be touched until the work is done.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_offload_step(
    offload: *mut lowbit_offload_t,
    args: *const lowbit_step_args_t,
    stream: *mut c_void,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(offload, |handle| {
            let offload = &handle.offload;
            with_args(offload.plan(), args, |args| offload.step(args, stream))
        })
    }
}

/// Waits for the copies of an offload and frees it with its memory.
///
/// # Parameters
/// - `offload` (in): may be NULL.
/// # Returns
/// Nothing.
/// # Threads
/// No other thread uses `offload` or its memory.
/// # Stream
/// Synchronises the offload's own streams, so steps have finished.
/// # Ownership
/// Ends the caller's.
/// # Since
/// ABI 0.1
/// # Safety
/// `offload` was not destroyed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_offload_destroy(offload: *mut lowbit_offload_t) {
    guard(|| {
        // SAFETY: the caller's promise.
        drop(unsafe { take(offload) });
        Ok(())
    });
}

/// An array for `needed` buffers.
fn room(
    array: *mut lowbit_buffer_t,
    count: i64,
    needed: usize,
    [name, count_name]: [&str; 2],
) -> Result<*mut lowbit_buffer_t> {
    if usize::try_from(count) != Ok(needed) {
        return Err(Error::new(
            Status::BufferSize,
            format!("{count_name} is {count}, the offload has {needed}"),
        ));
    }
    if needed == 0 {
        return Ok(array);
    }
    output(array, name)
}
