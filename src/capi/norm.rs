//! The global norm of gradients.

use std::ffi::c_void;

use super::guard::guard_handle;
use super::plan::lowbit_plan_t;
use super::sized::{read, write};
use super::spec::unknown_flag;
use super::types::*;
use super::{array, buffers, output};
use crate::error::{Result, invalid};
use crate::norm::{NormArgs, Stage};
use crate::plan::Plan;
use crate::step::Buffer;

/// The global norm of a plan's gradients, and the factor that clips it: exact sums, so that threads,
/// shards and backends give the same bits. Call it before lowbit_step and pass the factor as
/// clip_factor, since the statistics of a step are of the clipped gradient.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `args` (in, host, not NULL): start from LOWBIT_NORM_ARGS_INIT.
/// - `stream` (in): a CUstream or cudaStream_t for CUDA contexts, ignored by CPU contexts.
/// - `norm` (out, host, not NULL): infinite or NaN if a gradient is.
/// - `clip_factor` (out, host, not NULL): min(1, max_norm / norm), and 1 if the norm is not finite:
///   the step's own policy then decides.
/// # Returns
/// OK; NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED;
/// UNSUPPORTED on CUDA contexts, which would have to wait: lowbit_norm_clip leaves the results there.
/// # Threads
/// Several threads may use one plan at once with different scratch.
/// # Stream
/// On a CPU context the work is done on return.
/// # Ownership
/// All memory stays the caller's.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes in the plan's memory space.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_norm(
    plan: *const lowbit_plan_t,
    args: *const lowbit_norm_args_t,
    stream: *mut c_void,
    norm: *mut f32,
    clip_factor: *mut f32,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let (norm, clip_factor) = (output(norm, "norm")?, output(clip_factor, "clip_factor")?);
            let found = with_args(args, |args| plan.plan.norm(args, stream))?;
            (*norm, *clip_factor) = (found.norm, found.clip_factor);
            Ok(())
        })
    }
}

/// One of the two collecting stages of lowbit_norm, for trainers with shards: each is all-reduced as
/// lowbit_norm_stage says before the next.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `args` (in, host, not NULL): as for lowbit_norm.
/// - `stage` (in): 0, then 1.
/// - `stream` (in): as for lowbit_norm.
/// # Returns
/// As lowbit_norm.
/// # Threads
/// As lowbit_norm.
/// # Stream
/// As lowbit_norm.
/// # Ownership
/// As lowbit_norm.
/// # Since
/// ABI 0.1
/// # Safety
/// As lowbit_norm.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_norm_stats(
    plan: *const lowbit_plan_t,
    args: *const lowbit_norm_args_t,
    stage: i64,
    stream: *mut c_void,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let stage = norm_stage(stage)?;
            with_args(args, |args| plan.plan.collect_norm(args, stage, stream))
        })
    }
}

/// The end of lowbit_norm, given the (reduced) statistics of both stages in the scratch.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `args` (in, host, not NULL): as for lowbit_norm.
/// - `norm` (out, host, not NULL), `clip_factor` (out, host, not NULL): as for lowbit_norm.
/// # Returns
/// As lowbit_norm.
/// # Threads
/// As lowbit_norm.
/// # Stream
/// None.
/// # Ownership
/// As lowbit_norm.
/// # Since
/// ABI 0.1
/// # Safety
/// As lowbit_norm.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_norm_finish(
    plan: *const lowbit_plan_t,
    args: *const lowbit_norm_args_t,
    norm: *mut f32,
    clip_factor: *mut f32,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let (norm, clip_factor) = (output(norm, "norm")?, output(clip_factor, "clip_factor")?);
            let found = with_args(args, |args| plan.plan.finish_norm(args))?;
            (*norm, *clip_factor) = (found.norm, found.clip_factor);
            Ok(())
        })
    }
}

/// The end of lowbit_norm in the order of a stream, with the results in the plan's memory space, given
/// the (reduced) statistics of both stages in the scratch: for CUDA contexts, captured or not, where
/// the factor may go straight to the clip_factor of lowbit_step_args_t.hyper.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `args` (in, host, not NULL): as for lowbit_norm.
/// - `stream` (in): as for lowbit_norm.
/// - `norm` (out, memory space of the plan, may be NULL), `clip_factor` (out, memory space of the plan,
///   may be NULL): as for lowbit_norm.
/// # Returns
/// OK; NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED; CUDA_ERROR.
/// # Threads
/// As lowbit_norm.
/// # Stream
/// The call returns when the work has been enqueued on `stream`. No allocation, copy, event or
/// synchronisation. On a CPU context the work is done on return.
/// # Ownership
/// As lowbit_norm.
/// # Since
/// ABI 0.1
/// # Safety
/// As lowbit_norm.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_norm_clip(
    plan: *const lowbit_plan_t,
    args: *const lowbit_norm_args_t,
    stream: *mut c_void,
    norm: *mut f32,
    clip_factor: *mut f32,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            with_args(args, |args| plan.plan.clip(args, norm, clip_factor, stream))
        })
    }
}

/// What shards combine after a stage of lowbit_norm_stats, and how.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `stage` (in): 0 or 1.
/// - `out` (out, host, not NULL): its struct_size is read; offset counts from the scratch's begin.
/// # Returns
/// OK, NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT.
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
pub unsafe extern "C" fn lowbit_norm_stage(
    plan: *const lowbit_plan_t,
    stage: i64,
    out: *mut lowbit_stage_info_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |_| {
            write(out, "out", &Plan::norm_stage(norm_stage(stage)?).into())
        })
    }
}

fn norm_stage(stage: i64) -> Result<Stage> {
    match stage {
        0 => Ok(Stage::Max),
        1 => Ok(Stage::Sum),
        other => Err(invalid(format!("stage is {other}; a norm has 0 and 1"))),
    }
}

/// # Safety
/// The pointers in `args` are valid.
unsafe fn with_args<T>(
    args: *const lowbit_norm_args_t,
    body: impl FnOnce(&NormArgs<'_>) -> Result<T>,
) -> Result<T> {
    // SAFETY: the caller's promise.
    unsafe {
        let args = read(args, "args")?;
        if args.flags != 0 {
            return Err(unknown_flag("args.flags", args.flags));
        }
        body(&NormArgs {
            grads: buffers(array(args.grads, args.tensor_count, "args.grads")?),
            scratch: Buffer {
                data: args.scratch.data,
                bytes: args.scratch.bytes,
            },
            grad_scale: args.grad_scale,
            max_norm: args.max_norm,
        })
    }
}
