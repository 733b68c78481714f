//! The step as a custom call: operands and results in, [`crate::step::StepArgs`] out.
//!
//! ```text
//! operands  hyper f32[8 groups], step i32[]; then per tensor params, grads; then all state buffers
//! results   per tensor params or updates; all state buffers; scratch i32[words], at least what the
//!           plan needs; skipped i32[2, 2]: two i64 counters, as JAX has no i64 unless it is asked to
//! ```
//!
//! On a CUDA device all of these are device memory, and executing a step only enqueues it: it may be
//! captured in a command buffer, which replays it with what the buffers say by then.
//!
//! Callers alias params and states with their results, and updates with the gradients where the
//! dtypes agree, so that the step runs in place under donation. Without donation XLA copies
//! before the call. Should it not have aliased them after all, the copy is made here.

#![expect(unsafe_code, reason = "works on XLA's raw buffers")]

use std::ffi::c_void;
use std::sync::Arc;

use crate::backend::{cuda_device_of, probe_cuda};
use crate::dtype::Dtype;
use crate::error::{Result, invalid};
use crate::layout::index;
use crate::numerics::Hyper;
use crate::plan::Plan;
use crate::step::{Buffer, HyperSource, NonFinite, Stage, StepArgs};

use super::cache::{self, Place};
use super::ffi::{CallFrame, Operand};

/// XLA's platform that a handler is registered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Platform {
    Cpu,
    Cuda,
}

/// What the first results are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// The new parameters.
    Param,
    /// What is to be added to the parameters.
    Update,
}

/// Makes the plan of a CUDA device with all that a step needs: kernels, and their table in device
/// memory. Only the first call with a plan does anything.
///
/// # Errors
/// What is wrong with the plan's JSON; `CudaUnavailable` with the reason.
///
/// # Safety
/// `frame` was made by XLA for this call, on a CUDA device.
pub(super) unsafe fn initialize(frame: &CallFrame) -> Result<()> {
    // SAFETY: the caller's promise.
    let (json, stream) = unsafe { (frame.string_attribute("plan")?, frame.stream()?) };
    if !cache::has_devices() {
        probe_cuda(0)?;
    }
    cache::plan(Place::Cuda(cuda_device_of(stream)?), json).map(drop)
}

/// The plan that is called, and the stream.
///
/// # Safety
/// `frame` was made by XLA for this call, on the platform.
unsafe fn called(frame: &CallFrame, platform: Platform) -> Result<(Arc<Plan>, *mut c_void)> {
    // SAFETY: the caller's promise.
    let json = unsafe { frame.string_attribute("plan")? };
    if platform == Platform::Cpu {
        return Ok((cache::plan(Place::Cpu, json)?, std::ptr::null_mut()));
    }
    // SAFETY: the caller's promise.
    let stream = unsafe { frame.stream()? };
    // Without a plan there may be no driver to ask.
    let device = if cache::has_devices() {
        cuda_device_of(stream)?
    } else {
        0
    };
    Ok((cache::made(Place::Cuda(device), json)?, stream))
}

/// Runs one step.
///
/// # Errors
/// What the plan's JSON, the attributes or the buffers have wrong, before anything is written.
///
/// # Safety
/// `frame` was made by XLA for this call, in the execute stage, on the platform.
pub(super) unsafe fn step(frame: &CallFrame, platform: Platform) -> Result<()> {
    // SAFETY: the caller's promise.
    let ((plan, stream), output, nonfinite, operands, results) = unsafe {
        (
            called(frame, platform)?,
            output(frame.string_attribute("output")?)?,
            nonfinite(frame.i32_attribute("nonfinite")?)?,
            frame.operands()?,
            frame.results()?,
        )
    };
    let (tensors, states) = (plan.tensors().len(), plan.buffers().len());
    check_count("operands", operands.len(), 2 + 2 * tensors + states)?;
    check_count("results", results.len(), tensors + states + 2)?;
    let (scalars, operands) = operands.split_at(2);
    let (params, operands) = operands.split_at(tensors);
    let (grads, states) = operands.split_at(tensors);
    let (outputs, results) = results.split_at(tensors);
    let (new_states, others) = results.split_at(states.len());

    let groups = (plan.groups() * Hyper::COUNT) as i64;
    let hyper = scalars[0].check(Dtype::F32, &[groups], || "hyper".to_owned())?;
    let step = scalars[1].check(Dtype::I32, &[], || "step".to_owned())?;
    let words = plan.scratch_bytes() / 4;
    let scratch = others[0].check_words(words, "scratch")?;
    let skipped = others[1].check(Dtype::I32, &[2, 2], || "skipped".to_owned())?;
    let params = check_params(&plan, params, "params")?;
    let grads = check_grads(&plan, grads)?;
    let outputs = check_params(&plan, outputs, "result")?;
    let states = check_states(&plan, states, "operand")?;
    let new_states = check_states(&plan, new_states, "result")?;

    // SAFETY: pairs of buffers of one size, and the counters, which XLA keeps valid for the call.
    unsafe {
        if output == Output::Param {
            copy(&plan, &params, &outputs, stream)?;
        }
        copy(&plan, &states, &new_states, stream)?;
        let bytes = index(skipped.bytes);
        plan.context.zero(skipped.data, bytes, stream)?;
    }
    let args = StepArgs {
        params: match output {
            Output::Param => &outputs,
            Output::Update => &params,
        },
        grads: &grads,
        updates: (output == Output::Update).then_some(outputs.as_slice()),
        state: &new_states,
        scratch,
        hyper: HyperSource::Memory {
            hyper: hyper.data.cast(),
            step: step.data.cast(),
        },
        nonfinite,
        offsets: None,
        skipped: skipped.data.cast(),
    };
    // SAFETY: the buffers are XLA's, valid and not accessed by others for the call.
    unsafe { plan.step(&args, Stage::All, stream) }
}

pub(super) fn output(name: &str) -> Result<Output> {
    match name {
        "param" => Ok(Output::Param),
        "update" => Ok(Output::Update),
        #[cfg(feature = "test-hooks")]
        #[expect(clippy::panic, reason = "tests that a panic does not reach XLA")]
        "panic" => panic!("a panic on purpose"),
        _ => Err(invalid(format!(
            "attribute output is {name:?}; it must be \"param\" or \"update\""
        ))),
    }
}

pub(super) fn nonfinite(raw: i32) -> Result<NonFinite> {
    const ALL: [NonFinite; 5] = [
        NonFinite::Default,
        NonFinite::SkipBlock,
        NonFinite::SkipTensor,
        NonFinite::SkipStep,
        NonFinite::Propagate,
    ];
    ALL.into_iter()
        .find(|policy| *policy as i32 == raw)
        .ok_or_else(|| invalid(format!("attribute nonfinite is {raw}; it must be 0 to 4")))
}

pub(super) fn check_count(what: &str, got: usize, want: usize) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(invalid(format!("{got} {what} given; the plan has {want}")))
}

pub(super) fn check_params(
    plan: &Plan,
    operands: &[Operand<'_>],
    what: &str,
) -> Result<Vec<Buffer>> {
    let pairs = plan.tensors().iter().zip(operands).enumerate();
    pairs
        .map(|(i, (tensor, operand))| {
            let info = &tensor.info;
            operand.check(info.param_dtype, &info.shape, || {
                format!("{what}[{i}] ({})", info.name)
            })
        })
        .collect()
}

pub(super) fn check_grads(plan: &Plan, operands: &[Operand<'_>]) -> Result<Vec<Buffer>> {
    let pairs = plan.tensors().iter().zip(operands).enumerate();
    pairs
        .map(|(i, (tensor, operand))| {
            let info = &tensor.info;
            operand.check(info.grad_dtype, &info.shape, || {
                format!("grads[{i}] ({})", info.name)
            })
        })
        .collect()
}

pub(super) fn check_states(
    plan: &Plan,
    operands: &[Operand<'_>],
    what: &str,
) -> Result<Vec<Buffer>> {
    let pairs = plan.buffers().iter().zip(operands);
    pairs
        .map(|(info, operand)| {
            operand.check(info.dtype, &info.shape, || {
                format!("{what} {}", plan.buffer_name(info))
            })
        })
        .collect()
}

/// Brings `from` to `to` where they are not the same memory.
///
/// # Safety
/// Each pair must be valid memory of one size in the plan's memory space.
pub(super) unsafe fn copy(
    plan: &Plan,
    from: &[Buffer],
    to: &[Buffer],
    stream: *mut c_void,
) -> Result<()> {
    for (from, to) in from.iter().zip(to) {
        if from.data != to.data {
            let bytes = index(to.bytes);
            // SAFETY: the caller's promise.
            unsafe { plan.context.copy(from.data, to.data, bytes, stream)? };
        }
    }
    Ok(())
}
