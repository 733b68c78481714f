//! `lowbit_report_t`.

use std::ffi::c_char;

use super::guard::{give, guard, guard_handle, handle, take};
use super::plan::lowbit_plan_t;
use super::step::with_args;
use super::types::*;
use super::{copy_text, output};
use crate::diagnose::Diagnostics;
use crate::error::invalid;

/// How well the codes hold the states, per tensor and quantized state.
pub struct lowbit_report_t {
    report: Diagnostics,
}

handle!(lowbit_report_t, "report", b"lb.rept\0");

/// Measures what coding would lose in the step that `args` describe, without taking it: relative
/// error of every quantized state, shares of the lowest and highest codes, dead blocks,
/// preconditioner ratio, radial bias of m. Off the hot path: it takes copies of the largest tensor
/// on the host, some f32 values for each of its elements, and the time of the scalar reference, also
/// for tensors on a CUDA device, which are copied one after another.
///
/// # Parameters
/// - `plan` (in, not NULL).
/// - `args` (in, host, not NULL): as for lowbit_step; nothing is written.
/// - `out` (out, host, not NULL): the report, or NULL on failure.
/// # Returns
/// As lowbit_step; OUT_OF_MEMORY (the host's); UNSUPPORTED (shards with scales or factors of the
/// global tensor).
/// # Threads
/// As lowbit_step.
/// # Stream
/// Synchronises the device of CUDA contexts: waits for all of its streams before it copies.
/// # Ownership
/// The caller destroys the report by lowbit_report_destroy.
/// # Since
/// ABI 0.1
/// # Safety
/// As lowbit_step.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_report_create(
    plan: *const lowbit_plan_t,
    args: *const lowbit_step_args_t,
    out: *mut *mut lowbit_report_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        // Before the plan is looked at: NULL on every failure.
        if let Ok(out) = output(out, "out") {
            *out = std::ptr::null_mut();
        }
        guard_handle(plan, |plan| {
            let out = output(out, "out")?;
            let report = with_args(&plan.plan, args, |args| plan.plan.diagnose(args))?;
            give(out, lowbit_report_t { report });
            Ok(())
        })
    }
}

/// Prints a report.
///
/// # Parameters
/// - `report` (in, not NULL).
/// - `format` (in): LOWBIT_REPORT_TABLE or LOWBIT_REPORT_JSON.
/// - `buf` (out, host): receives the text and a NUL; may be NULL if `cap` is 0.
/// - `cap` (in): bytes of `buf`.
/// - `needed` (out, host): bytes of the text with its NUL; may be NULL.
/// # Returns
/// OK, NULL_POINTER, INVALID_ARGUMENT, BUFFER_SIZE if `cap` is too small.
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
pub unsafe extern "C" fn lowbit_report_text(
    report: *const lowbit_report_t,
    format: lowbit_report_format_t,
    buf: *mut c_char,
    cap: usize,
    needed: *mut usize,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(report, |report| {
            let text = match format {
                LOWBIT_REPORT_TABLE => report.report.to_string(),
                LOWBIT_REPORT_JSON => report.report.to_json(),
                other => return Err(invalid(format!("format is {other}; 0 and 1 exist"))),
            };
            copy_text(text.as_bytes(), buf, cap, needed)
        })
    }
}

/// Frees a report.
///
/// # Parameters
/// - `report` (in): may be NULL.
/// # Returns
/// Nothing.
/// # Threads
/// No other thread uses `report`.
/// # Stream
/// None.
/// # Ownership
/// Ends the caller's.
/// # Since
/// ABI 0.1
/// # Safety
/// `report` was not destroyed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_report_destroy(report: *mut lowbit_report_t) {
    guard(|| {
        // SAFETY: the caller's promise.
        drop(unsafe { take(report) });
        Ok(())
    });
}
