//! The step.

use std::ffi::c_void;

use super::guard::guard_handle;
use super::plan::lowbit_plan_t;
use super::sized::read;
use super::spec::unknown_flag;
use super::types::*;
use super::{array, buffers};
use crate::error::{Result, invalid};
use crate::numerics::Hyper;
use crate::plan::{MAX_AXES, Plan};
use crate::step::{Buffer, HyperSource, NonFinite, Stage, StepArgs};

/// Updates all tensors of a plan: parameters (or updates) and states.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `args` (in, host, not NULL): start from LOWBIT_STEP_ARGS_INIT.
/// - `stream` (in): a CUstream or cudaStream_t for CUDA contexts, ignored by CPU contexts.
/// # Returns
/// OK; NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED, OVERLAP
/// (nothing was written); UNSUPPORTED; CUDA_ERROR; INTERNAL.
/// # Threads
/// Several threads may step one plan at once on different buffers and scratch.
/// # Stream
/// The call returns when the work has been enqueued on `stream`. No allocation, copy, event or
/// synchronisation. On a CPU context the work is done on return.
/// # Ownership
/// All memory stays the caller's and must not be touched until the work is done.
/// # Since
/// ABI 0.1
/// # Safety
/// Buffers are valid memory of their sizes in the plan's memory space.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_step(
    plan: *const lowbit_plan_t,
    args: *const lowbit_step_args_t,
    stream: *mut c_void,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe { guard_handle(plan, |plan| run(&plan.plan, args, Stage::All, stream)) }
}

/// One collecting stage of lowbit_step: fills the scratch with the statistics of lowbit_plan_stage,
/// which a trainer with shards all-reduces before the next stage. After the last of them comes
/// lowbit_step_apply.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `args` (in, host, not NULL): as for lowbit_step, the same in all stages; only scratch is
///   written.
/// - `stage` (in): index, less than the plan's stage_count; those before it have been run and
///   reduced.
/// - `stream` (in): as for lowbit_step.
/// # Returns
/// As lowbit_step.
/// # Threads
/// As lowbit_step.
/// # Stream
/// As lowbit_step.
/// # Ownership
/// As lowbit_step.
/// # Since
/// ABI 0.1
/// # Safety
/// As lowbit_step.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_step_stats(
    plan: *const lowbit_plan_t,
    args: *const lowbit_step_args_t,
    stage: i64,
    stream: *mut c_void,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |plan| {
            let stage = usize::try_from(stage)
                .map_err(|_| invalid(format!("stage is {stage}; stages count from 0")))?;
            run(&plan.plan, args, Stage::Collect(stage), stream)
        })
    }
}

/// The last stage of lowbit_step: updates parameters and states, given the (reduced) statistics in
/// the scratch.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `args` (in, host, not NULL): the same as for lowbit_step_stats.
/// - `stream` (in): as for lowbit_step.
/// # Returns
/// As lowbit_step.
/// # Threads
/// As lowbit_step.
/// # Stream
/// As lowbit_step.
/// # Ownership
/// As lowbit_step.
/// # Since
/// ABI 0.1
/// # Safety
/// As lowbit_step.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_step_apply(
    plan: *const lowbit_plan_t,
    args: *const lowbit_step_args_t,
    stream: *mut c_void,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe { guard_handle(plan, |plan| run(&plan.plan, args, Stage::Apply, stream)) }
}

/// # Safety
/// The pointers in `args` are valid.
unsafe fn run(
    plan: &Plan,
    args: *const lowbit_step_args_t,
    stage: Stage,
    stream: *mut c_void,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { with_args(plan, args, |args| plan.step(args, stage, stream)) }
}

/// Calls `body` with the Rust form of a step's arguments.
///
/// # Safety
/// The pointers in `args` are valid.
pub(super) unsafe fn with_args<T>(
    plan: &Plan,
    args: *const lowbit_step_args_t,
    body: impl FnOnce(&StepArgs<'_>) -> Result<T>,
) -> Result<T> {
    // SAFETY: the caller's promise.
    let args = unsafe { read(args, "args") }?;
    if args.flags & !LOWBIT_STEP_COUNTED != 0 {
        return Err(unknown_flag("args.flags", args.flags));
    }
    let counted = args.flags & LOWBIT_STEP_COUNTED != 0;
    let nonfinite = match args.nonfinite {
        LOWBIT_NONFINITE_DEFAULT => NonFinite::Default,
        LOWBIT_NONFINITE_SKIP_BLOCK => NonFinite::SkipBlock,
        LOWBIT_NONFINITE_SKIP_TENSOR => NonFinite::SkipTensor,
        LOWBIT_NONFINITE_SKIP_STEP => NonFinite::SkipStep,
        LOWBIT_NONFINITE_PROPAGATE => NonFinite::Propagate,
        other => return Err(invalid(format!("args.nonfinite is {other}; 0 to 4 exist"))),
    };
    let hyper = [Hyper {
        lr: args.lr,
        beta1: args.beta1,
        beta2: args.beta2,
        eps: args.eps,
        weight_decay: args.weight_decay,
        grad_scale: args.grad_scale,
        clip_factor: args.clip_factor,
        skip: args.skip,
    }];
    let hyper = if counted {
        HyperSource::Counted {
            hyper: args.hyper,
            step: args.step_number.cast_mut(),
        }
    } else if args.hyper.is_null() && args.step_number.is_null() {
        HyperSource::Host(&hyper, args.step)
    } else {
        HyperSource::Memory {
            hyper: args.hyper,
            step: args.step_number,
        }
    };
    // SAFETY: the caller's promise.
    unsafe {
        let tensors = |data, name| array(data, args.tensor_count, name).map(buffers);
        let call = StepArgs {
            params: tensors(args.params, "args.params")?,
            grads: tensors(args.grads, "args.grads")?,
            updates: if args.updates.is_null() {
                None
            } else {
                Some(tensors(args.updates, "args.updates")?)
            },
            state: array(args.state, args.buffer_count, "args.state").map(buffers)?,
            scratch: Buffer {
                data: args.scratch.data,
                bytes: args.scratch.bytes,
            },
            hyper,
            nonfinite,
            offsets: None,
            skipped: args.skipped,
        };
        if args.offsets.is_null() {
            return body(&call);
        }
        // Only sharded trainers that move their offsets come here, and they pay an allocation.
        let count = args.tensor_count.min(plan.tensors.len() as i64);
        let pointers = array(args.offsets, count, "args.offsets")?;
        let offsets = pointers
            .iter()
            .zip(&plan.tensors)
            .map(|(pointer, tensor)| {
                debug_assert!(tensor.offset.len() <= MAX_AXES);
                if pointer.is_null() {
                    return Ok(None);
                }
                array(*pointer, tensor.offset.len() as i64, "args.offsets[]").map(Some)
            })
            .collect::<Result<Vec<_>>>()?;
        body(&StepArgs {
            offsets: Some(&offsets),
            ..call
        })
    }
}
