//! XLA typed-FFI handlers: how JAX calls this library, without any C++.
//!
//! `ffi` mirrors XLA's C structs, `step` and `shard` are the handlers' work, `cache` finds their
//! plan.

#![expect(unsafe_code, reason = "exported to XLA by symbol name")]
#![expect(unreachable_pub, reason = "exported by symbol, not by path")]

mod cache;
mod ffi;
mod shard;
mod step;

use std::ffi::c_void;

use crate::capi::contain;
use crate::error::Result;
use ffi::{COMMAND_BUFFER_COMPATIBLE, CallFrame, Stage};
use step::Platform;

/// One optimizer step as an XLA custom call on the CPU (typed FFI, API 0.1, stateless).
///
/// Registered by `jax.ffi.register_ffi_target`; not for other callers. `src/xla/step.rs` lists
/// operands and results. The attributes are `plan` (string: JSON of spec, tensors and threads),
/// `output` (string: `param` or `update`) and `nonfinite` (int32: `LOWBIT_NONFINITE_...`).
///
/// # Parameters
/// - `frame`: in, not NULL, an `XLA_FFI_CallFrame` that is valid during the call.
///
/// # Returns
/// NULL, or an `XLA_FFI_Error` with the text of what is wrong.
///
/// # Threads
/// May be called by several threads at once.
///
/// # Stream
/// None: the work is done on return.
///
/// # Ownership
/// The error is XLA's to destroy. The plan made from the attribute is kept until the process ends.
///
/// # Since
/// 0.1
///
/// # Safety
/// Only XLA's runtime may call it, with a frame that it made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_xla_step(frame: *mut c_void) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe {
        handle(frame, 0, |frame, stage| match stage {
            Stage::Execute => step::step(frame, Platform::Cpu),
            Stage::Initialize => Ok(()),
        })
    }
}

/// One stage of an optimizer step on shards as an XLA custom call on the CPU; otherwise as
/// lowbit_xla_step.
///
/// `src/xla/shard.rs` lists operands and results. To the attributes of lowbit_xla_step comes `stage`
/// (int32: the index of a collecting stage, or -1 for the last one).
///
/// # Parameters
/// - `frame`: as for lowbit_xla_step.
///
/// # Returns
/// As lowbit_xla_step.
///
/// # Threads
/// As lowbit_xla_step.
///
/// # Stream
/// None: the work is done on return.
///
/// # Ownership
/// As lowbit_xla_step.
///
/// # Since
/// 0.1
///
/// # Safety
/// As lowbit_xla_step.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_xla_shard(frame: *mut c_void) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe {
        handle(frame, 0, |frame, stage| match stage {
            Stage::Execute => shard::shard(frame),
            Stage::Initialize => Ok(()),
        })
    }
}

/// lowbit_xla_step on a CUDA device (platform `CUDA`), to be registered for the stages `initialize`
/// and `execute`. It may be captured in a command buffer.
///
/// # Parameters
/// - `frame`: as for lowbit_xla_step.
///
/// # Returns
/// As lowbit_xla_step.
///
/// # Threads
/// As lowbit_xla_step.
///
/// # Stream
/// The call's. `execute` only enqueues; `initialize` loads kernels and waits, the first time that it
/// sees a plan on a device.
///
/// # Ownership
/// As lowbit_xla_step.
///
/// # Since
/// 0.1
///
/// # Safety
/// As lowbit_xla_step.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_xla_step_cuda(frame: *mut c_void) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe {
        handle(
            frame,
            COMMAND_BUFFER_COMPATIBLE,
            |frame, stage| match stage {
                Stage::Execute => step::step(frame, Platform::Cuda),
                Stage::Initialize => step::initialize(frame),
            },
        )
    }
}

/// Answers what XLA asks about the handler, and calls `work` in the stages that it knows.
///
/// # Safety
/// `frame` is null or was made by XLA for this call, on the platform that `work` is for.
unsafe fn handle(
    frame: *mut c_void,
    traits: u32,
    work: unsafe fn(&CallFrame, Stage) -> Result<()>,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let Some(frame) = (unsafe { frame.cast::<CallFrame>().as_ref() }) else {
        // Without a frame there is no way to make an error.
        return std::ptr::null_mut();
    };
    // SAFETY: the caller's promise.
    let run = || unsafe {
        if frame.answer_metadata(traits) {
            return Ok(());
        }
        match frame.stage() {
            Some(stage) => work(frame, stage),
            None => Ok(()),
        }
    };
    // Nothing may unwind into XLA. The step leaves no broken state of the library behind: what it
    // shares is immutable or behind locks that recover.
    match contain(run) {
        Ok(()) => std::ptr::null_mut(),
        // SAFETY: the caller's promise.
        Err(error) => unsafe { frame.error(&error.within("lowbit")) },
    }
}
