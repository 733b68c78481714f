//! The stages of a step on shards, as custom calls of one SPMD program: operands and results in,
//! [`crate::step::StepArgs`] out.
//!
//! ```text
//! operands  hyper f32[8 groups], step i32[], offsets i32[axes]; then per tensor params, grads; then
//!           all state buffers; scratch i32[words]
//! results   collecting: scratch
//!           applying: per tensor params or updates; all state buffers; skipped i32[2, 2]
//! ```
//!
//! Every device runs the same program with the same plan, so where a shard lies is data: `offsets`
//! has, for all axes of all tensors one after the other, the index of the shard's first element in
//! the global tensor. The statistics are in the coordinates of the global tensors; between the calls
//! the program combines them, as `lowbit_plan_stage` says, over the devices that have a part of the
//! tensors. Callers alias as for a whole step, and the scratch with its result.

#![expect(unsafe_code, reason = "works on XLA's raw buffers")]

use crate::dtype::Dtype;
use crate::error::{Result, invalid};
use crate::layout::index;
use crate::numerics::Hyper;
use crate::step::{HyperSource, Stage, StepArgs};

use super::cache::{self, Place};
use super::ffi::CallFrame;
use super::step::{
    Output, check_count, check_grads, check_params, check_states, copy, nonfinite, output,
};

/// Runs one stage.
///
/// # Errors
/// What the plan's JSON, the attributes or the buffers have wrong, before anything is written.
///
/// # Safety
/// `frame` was made by XLA for this call, in the execute stage, on host memory.
pub(super) unsafe fn shard(frame: &CallFrame) -> Result<()> {
    // SAFETY: the caller's promise.
    let (plan, stage, output, nonfinite, operands, results) = unsafe {
        (
            cache::plan(Place::Cpu, frame.string_attribute("plan")?)?,
            stage(frame.i32_attribute("stage")?)?,
            output(frame.string_attribute("output")?)?,
            nonfinite(frame.i32_attribute("nonfinite")?)?,
            frame.operands()?,
            frame.results()?,
        )
    };
    let no_stream = std::ptr::null_mut();
    let (tensors, buffers) = (plan.tensors().len(), plan.buffers().len());
    check_count("operands", operands.len(), 4 + 2 * tensors + buffers)?;
    let (scalars, operands) = operands.split_at(3);
    let (params, operands) = operands.split_at(tensors);
    let (grads, operands) = operands.split_at(tensors);
    let (states, scratch) = operands.split_at(buffers);

    let groups = (plan.groups() * Hyper::COUNT) as i64;
    let hyper = scalars[0].check(Dtype::F32, &[groups], || "hyper".to_owned())?;
    let step = scalars[1].check(Dtype::I32, &[], || "step".to_owned())?;
    let ranks = plan.tensors().iter().map(|tensor| tensor.offset.len());
    let axes: usize = ranks.clone().sum();
    let offsets = scalars[2].check(Dtype::I32, &[axes as i64], || "offsets".to_owned())?;
    let offsets: Vec<i64> = (0..axes)
        // SAFETY: the operand has as many elements; its alignment is not promised.
        .map(|i| i64::from(unsafe { offsets.data.cast::<i32>().add(i).read_unaligned() }))
        .collect();
    let offsets: Vec<Option<&[i64]>> = ranks
        .scan(offsets.as_slice(), |rest, rank| {
            let (offset, after) = rest.split_at(rank);
            *rest = after;
            Some(Some(offset))
        })
        .collect();
    let words = plan.scratch_bytes() / 4;
    let scratch = scratch[0].check(Dtype::I32, &[words], || "scratch".to_owned())?;
    let params = check_params(&plan, params, "params")?;
    let grads = check_grads(&plan, grads)?;
    let states = check_states(&plan, states, "operand")?;
    let args = StepArgs {
        params: &params,
        grads: &grads,
        updates: None,
        state: &states,
        scratch,
        hyper: HyperSource::Memory {
            hyper: hyper.data.cast(),
            step: step.data.cast(),
        },
        nonfinite,
        offsets: Some(&offsets),
        skipped: std::ptr::null_mut(),
    };

    if stage != Stage::Apply {
        check_count("results", results.len(), 1)?;
        let collected = results[0].check(Dtype::I32, &[words], || "scratch".to_owned())?;
        // SAFETY: the buffers are XLA's, of one size, valid and not accessed by others for the call.
        return unsafe {
            copy(&plan, &[scratch], &[collected], no_stream)?;
            let args = StepArgs {
                scratch: collected,
                ..args
            };
            plan.step(&args, stage, no_stream)
        };
    }

    check_count("results", results.len(), tensors + buffers + 1)?;
    let (outputs, results) = results.split_at(tensors);
    let (new_states, skipped) = results.split_at(buffers);
    let outputs = check_params(&plan, outputs, "result")?;
    let new_states = check_states(&plan, new_states, "result")?;
    let skipped = skipped[0].check(Dtype::I32, &[2, 2], || "skipped".to_owned())?;
    let args = StepArgs {
        state: &new_states,
        skipped: skipped.data.cast(),
        ..args
    };
    // SAFETY: the buffers are XLA's, pairs of one size, valid and not accessed by others for the call.
    unsafe {
        copy(&plan, &states, &new_states, no_stream)?;
        let bytes = index(skipped.bytes);
        plan.context.zero(skipped.data, bytes, no_stream)?;
        let args = match output {
            Output::Param => {
                copy(&plan, &params, &outputs, no_stream)?;
                StepArgs {
                    params: &outputs,
                    ..args
                }
            }
            Output::Update => StepArgs {
                updates: Some(&outputs),
                ..args
            },
        };
        plan.step(&args, stage, no_stream)
    }
}

/// -1 for the last stage, otherwise the index of a collecting one.
fn stage(raw: i32) -> Result<Stage> {
    match usize::try_from(raw) {
        Ok(index) => Ok(Stage::Collect(index)),
        Err(_) if raw == -1 => Ok(Stage::Apply),
        Err(_) => Err(invalid(format!(
            "attribute stage is {raw}; it must be a stage's index, or -1 to apply"
        ))),
    }
}
