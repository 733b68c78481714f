//! `lowbit_plan_t`.

use std::ffi::{CString, c_char};
use std::sync::Arc;

use super::context::lowbit_context_t;
use super::guard::{borrow, give, guard, guard_handle, handle, take};
use super::sized::{read_element, write};
use super::spec::{lowbit_spec_t, unknown_flag};
use super::types::*;
use super::{array, copy_text, output, text};
use crate::dtype::Dtype;
use crate::error::{Result, invalid};
use crate::plan::{ARENA_ALIGN, MAX_GROUPS, Plan, TensorInfo, TensorPlan};
use crate::reserve;
use crate::weights::Weights;

/// What every tensor got and where every state buffer lies.
pub struct lowbit_plan_t {
    pub(super) plan: Arc<Plan>,
    /// Texts that the info structs point to.
    names: Vec<CString>,
    quantizers: Vec<CString>,
    reasons: Vec<CString>,
    states: Vec<CString>,
    parts: Vec<CString>,
}

handle!(lowbit_plan_t, "plan", b"lb.plan\0");

/// Lays out the states of a list of tensors. Everything that depends on shapes and configuration
/// is checked, compiled and allocated here, so that steps are only work.
///
/// # Parameters
/// - `context` (in, not NULL), `spec` (in, not NULL): not kept as handles; both may be destroyed.
/// - `tensors` (in, host): array of `tensor_count` structs, each of the struct_size that the first
///   one says; may be NULL if `tensor_count` is 0.
/// - `tensor_count` (in): 0 or more.
/// - `out` (out, host, not NULL): the plan, or NULL on failure.
/// # Returns
/// OK, NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT (the text names tensor and field),
/// UNSUPPORTED (the backend has no kernel for what a tensor would get), OUT_OF_MEMORY.
/// # Threads
/// Any. A plan may be used by several threads at once.
/// # Stream
/// None.
/// # Ownership
/// The caller destroys the plan by lowbit_plan_destroy; `tensors` is not kept.
/// # Since
/// ABI 0.1
/// # Safety
/// The pointers in `tensors` are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_plan_create(
    context: *const lowbit_context_t,
    spec: *const lowbit_spec_t,
    tensors: *const lowbit_tensor_info_t,
    tensor_count: i64,
    out: *mut *mut lowbit_plan_t,
) -> lowbit_status_t {
    guard(|| {
        let out = output(out, "out")?;
        // SAFETY: the caller's promise; `out` was checked.
        unsafe {
            *out = std::ptr::null_mut();
            let (context, spec) = (borrow(context)?, borrow(spec)?);
            let count = usize::try_from(tensor_count)
                .map_err(|_| invalid(format!("tensor_count is {tensor_count}")))?;
            let mut infos = reserve::list(count)?;
            for i in 0..count {
                infos.push(tensor(tensors, i)?);
            }
            let plan = Plan::new(Arc::clone(&context.context), &spec.spec, infos)?;
            give(out, lowbit_plan_t::new(plan)?);
        }
        Ok(())
    })
}

/// Sizes of a plan: what to allocate before training starts.
///
/// # Parameters
/// - `plan` (in, not NULL).
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
pub unsafe extern "C" fn lowbit_plan_info(
    plan: *const lowbit_plan_t,
    out: *mut lowbit_plan_info_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |handle| {
            let plan = &handle.plan;
            let info = lowbit_plan_info_t {
                struct_size: 0,
                tensor_count: count(plan.tensors.len()),
                buffer_count: count(plan.buffers.len()),
                state_bytes: plan.state_bytes,
                arena_bytes: plan.arena_bytes,
                arena_align: ARENA_ALIGN,
                scratch_bytes: plan.scratch_bytes(),
                stage_count: count(plan.stages().len()),
                group_count: count(plan.groups()),
            };
            write(out, "out", &info)
        })
    }
}

/// What one tensor got, and why.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `tensor` (in): index.
/// - `out` (out, host, not NULL): its struct_size is read; its pointers live as long as the plan.
/// # Returns
/// OK, NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// The texts are the plan's.
/// # Since
/// ABI 0.1
/// # Safety
/// `out` has struct_size bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_plan_tensor(
    plan: *const lowbit_plan_t,
    tensor: i64,
    out: *mut lowbit_tensor_report_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |handle| {
            let i = position("tensor", tensor, handle.plan.tensors.len())?;
            let tensor = &handle.plan.tensors[i];
            let buffers = &handle.plan.buffers[tensor.buffers()];
            let report = lowbit_tensor_report_t {
                struct_size: 0,
                name: handle.names[i].as_ptr(),
                quantizers: handle.quantizers[i].as_ptr(),
                reason: handle.reasons[i].as_ptr(),
                numel: tensor.numel,
                state_bytes: buffers.iter().map(|buffer| buffer.bytes).sum(),
                first_buffer: count(tensor.first_buffer),
                buffer_count: count(tensor.buffer_count),
            };
            write(out, "out", &report)
        })
    }
}

/// Type, shape, size and place of one state buffer.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `buffer` (in): index.
/// - `out` (out, host, not NULL): its struct_size is read; its pointers live as long as the plan.
/// # Returns
/// OK, NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// The texts and the shape are the plan's.
/// # Since
/// ABI 0.1
/// # Safety
/// `out` has struct_size bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_plan_buffer(
    plan: *const lowbit_plan_t,
    buffer: i64,
    out: *mut lowbit_buffer_info_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |handle| {
            let i = position("buffer", buffer, handle.plan.buffers.len())?;
            let buffer = &handle.plan.buffers[i];
            let info = lowbit_buffer_info_t {
                struct_size: 0,
                tensor: count(buffer.tensor),
                state: handle.states[i].as_ptr(),
                part: handle.parts[i].as_ptr(),
                dtype: buffer.dtype as lowbit_dtype_t,
                ndim: axes(buffer.shape.len()),
                shape: buffer.shape.as_ptr(),
                bytes: buffer.bytes,
                arena_offset: buffer.arena_offset,
            };
            write(out, "out", &info)
        })
    }
}

/// The statistics that lowbit_step_stats fills in one stage, and how shards combine them before the
/// next stage.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `stage` (in): index, less than the plan's stage_count.
/// - `out` (out, host, not NULL): its struct_size is read.
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
pub unsafe extern "C" fn lowbit_plan_stage(
    plan: *const lowbit_plan_t,
    stage: i64,
    out: *mut lowbit_stage_info_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |handle| {
            let stages = handle.plan.stages();
            let stage = stages[position("stage", stage, stages.len())?];
            write(out, "out", &stage.into())
        })
    }
}

/// A table for people: per tensor its shape, bytes, quantizers and why, and the totals.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `buf` (out, host): receives the text and a NUL; may be NULL if `cap` is 0.
/// - `cap` (in): bytes of `buf`.
/// - `needed` (out, host): bytes of the text with its NUL; may be NULL.
/// # Returns
/// OK, NULL_POINTER, BUFFER_SIZE if `cap` is too small.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// `buf` has `cap` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_plan_report(
    plan: *const lowbit_plan_t,
    buf: *mut c_char,
    cap: usize,
    needed: *mut usize,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(plan, |handle| {
            copy_text(handle.plan.report().as_bytes(), buf, cap, needed)
        })
    }
}

/// Frees a plan. States made from it stay valid.
///
/// # Parameters
/// - `plan` (in): may be NULL.
/// # Returns
/// Nothing.
/// # Threads
/// No other thread uses `plan`.
/// # Stream
/// None.
/// # Ownership
/// Ends the caller's.
/// # Since
/// ABI 0.1
/// # Safety
/// `plan` was not destroyed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_plan_destroy(plan: *mut lowbit_plan_t) {
    guard(|| {
        // SAFETY: the caller's promise.
        drop(unsafe { take(plan) });
        Ok(())
    });
}

impl lowbit_plan_t {
    fn new(plan: Plan) -> Result<Self> {
        let texts = |tensor: &TensorPlan| 512 + tensor.info.name.len() + tensor.reason.len();
        let bytes: usize = plan.tensors.iter().map(texts).sum();
        reserve::room(bytes + 128 * plan.buffers.len())?;
        let c = |text: String| CString::new(text).map_err(|error| invalid(error.to_string()));
        let quantizers = |tensor: &TensorPlan| {
            let states = tensor.states.iter();
            let texts: Vec<_> = states
                .map(|state| format!("{} {}", state.name, state.describe()))
                .collect();
            texts.join(", ")
        };
        Ok(Self {
            names: plan
                .tensors
                .iter()
                .map(|t| c(t.info.name.clone()))
                .collect::<Result<_>>()?,
            quantizers: plan
                .tensors
                .iter()
                .map(|t| c(quantizers(t)))
                .collect::<Result<_>>()?,
            reasons: plan
                .tensors
                .iter()
                .map(|t| c(t.reason.clone()))
                .collect::<Result<_>>()?,
            states: plan
                .buffers
                .iter()
                .map(|b| c(b.state.to_owned()))
                .collect::<Result<_>>()?,
            parts: plan
                .buffers
                .iter()
                .map(|b| c(b.part.clone()))
                .collect::<Result<_>>()?,
            plan: Arc::new(plan),
        })
    }
}

/// # Safety
/// The pointers in the struct are valid.
unsafe fn tensor(first: *const lowbit_tensor_info_t, i: usize) -> Result<TensorInfo> {
    // SAFETY: the caller's promise.
    let info = unsafe { read_element(first, i, "tensors") }?;
    let field = |name: &str| format!("tensors[{i}].{name}");
    if info.flags != 0 {
        return Err(unknown_flag(&field("flags"), info.flags));
    }
    let weights = Weights::from_raw(info.weights).ok_or_else(|| {
        invalid(format!(
            "{} is {}; 0 to 4 exist",
            field("weights"),
            info.weights
        ))
    })?;
    let group = usize::try_from(info.group)
        .ok()
        .filter(|group| *group < MAX_GROUPS)
        .ok_or_else(|| {
            invalid(format!(
                "{} is {}; 0 to {} exist",
                field("group"),
                info.group,
                MAX_GROUPS - 1
            ))
        })?;
    let dtype = |raw, name: &str| {
        Dtype::from_raw(raw)
            .ok_or_else(|| invalid(format!("{} is {raw}, which is no dtype", field(name))))
    };
    let param_dtype = dtype(info.param_dtype, "param_dtype")?;
    let grad_dtype = match info.grad_dtype {
        0 => param_dtype,
        raw => dtype(raw, "grad_dtype")?,
    };
    let axes = i64::from(info.ndim);
    // SAFETY: the caller's promise.
    unsafe {
        let optional = |data: *const i64, name: &str| {
            if data.is_null() {
                return Ok(None);
            }
            array(data, axes, &field(name)).map(|list| Some(list.to_vec()))
        };
        Ok(TensorInfo {
            name: text(info.name, &field("name"))?.to_owned(),
            shape: array(info.shape, axes, &field("shape"))?.to_vec(),
            param_dtype,
            grad_dtype,
            weights,
            group,
            global_shape: optional(info.global_shape, "global_shape")?,
            offset: optional(info.offset, "offset")?,
        })
    }
}

fn position(name: &str, index: i64, length: usize) -> Result<usize> {
    usize::try_from(index)
        .ok()
        .filter(|index| *index < length)
        .ok_or_else(|| invalid(format!("{name} is {index}; the plan has {length}")))
}

fn count(length: usize) -> i64 {
    length.cast_signed() as i64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "at most 16 axes"
)]
fn axes(length: usize) -> i32 {
    length as i32
}
