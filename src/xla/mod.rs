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
use ffi::CallFrame;

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
    unsafe { handle(frame, step::step) }
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
    unsafe { handle(frame, shard::shard) }
}

/// # Safety
/// `frame` is null or was made by XLA for this call, on host memory.
unsafe fn handle(frame: *mut c_void, work: unsafe fn(&CallFrame) -> Result<()>) -> *mut c_void {
    // SAFETY: the caller's promise.
    let Some(frame) = (unsafe { frame.cast::<CallFrame>().as_ref() }) else {
        // Without a frame there is no way to make an error.
        return std::ptr::null_mut();
    };
    // SAFETY: the caller's promise.
    let run = || unsafe {
        if frame.answer_metadata() || !frame.is_execute() {
            return Ok(());
        }
        work(frame)
    };
    // Nothing may unwind into XLA. The step leaves no broken state of the library behind: what it
    // shares is immutable or behind locks that recover.
    match contain(run) {
        Ok(()) => std::ptr::null_mut(),
        // SAFETY: the caller's promise.
        Err(error) => unsafe { frame.error(&error.within("lowbit")) },
    }
}
