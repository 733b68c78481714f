//! Versions, names of statuses, the last error.

use std::ffi::{CStr, c_char};

use super::guard::{guard, last_error};
use super::types::*;
use super::{copy_text, output};

/// Raised when a call that worked could fail or mean something else.
pub const LOWBIT_ABI_MAJOR: u32 = 0;
/// Raised with every addition.
pub const LOWBIT_ABI_MINOR: u32 = 1;

/// The ABI that this library implements; compare it with LOWBIT_ABI_MAJOR (must be equal) and
/// LOWBIT_ABI_MINOR (must be at least that) of the header you compiled with.
///
/// # Parameters
/// - `major` (out, host, not NULL), `minor` (out, host, not NULL).
/// # Returns
/// OK, NULL_POINTER, MISALIGNED.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// The pointers are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_abi_version(major: *mut u32, minor: *mut u32) -> lowbit_status_t {
    guard(|| {
        let (major, minor) = (output(major, "major")?, output(minor, "minor")?);
        // SAFETY: checked above.
        unsafe {
            *major = LOWBIT_ABI_MAJOR;
            *minor = LOWBIT_ABI_MINOR;
        }
        Ok(())
    })
}

/// The library's own version, as "0.1.0".
///
/// # Parameters
/// None.
/// # Returns
/// A static text, never NULL.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// The library's.
/// # Since
/// ABI 0.1
/// # Safety
/// Nothing to check.
#[unsafe(no_mangle)]
pub extern "C" fn lowbit_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The name of a status, as "INVALID_ARGUMENT"; "UNKNOWN" for numbers that are none.
///
/// # Parameters
/// - `status` (in).
/// # Returns
/// A static text, never NULL.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// The library's.
/// # Since
/// ABI 0.1
/// # Safety
/// Nothing to check.
#[unsafe(no_mangle)]
pub extern "C" fn lowbit_status_name(status: lowbit_status_t) -> *const c_char {
    name(status).as_ptr()
}

const fn name(status: lowbit_status_t) -> &'static CStr {
    match status {
        LOWBIT_STATUS_OK => c"OK",
        LOWBIT_STATUS_NULL_POINTER => c"NULL_POINTER",
        LOWBIT_STATUS_INVALID_ARGUMENT => c"INVALID_ARGUMENT",
        LOWBIT_STATUS_STRUCT_SIZE => c"STRUCT_SIZE",
        LOWBIT_STATUS_UNKNOWN_FLAG => c"UNKNOWN_FLAG",
        LOWBIT_STATUS_BUFFER_SIZE => c"BUFFER_SIZE",
        LOWBIT_STATUS_MISALIGNED => c"MISALIGNED",
        LOWBIT_STATUS_OVERLAP => c"OVERLAP",
        LOWBIT_STATUS_UNSUPPORTED => c"UNSUPPORTED",
        LOWBIT_STATUS_FORMAT_MAGIC => c"FORMAT_MAGIC",
        LOWBIT_STATUS_FORMAT_VERSION => c"FORMAT_VERSION",
        LOWBIT_STATUS_FORMAT_TRUNCATED => c"FORMAT_TRUNCATED",
        LOWBIT_STATUS_FORMAT_CORRUPT => c"FORMAT_CORRUPT",
        LOWBIT_STATUS_FORMAT_MISMATCH => c"FORMAT_MISMATCH",
        LOWBIT_STATUS_CUDA_UNAVAILABLE => c"CUDA_UNAVAILABLE",
        LOWBIT_STATUS_CUDA_OUT_OF_MEMORY => c"CUDA_OUT_OF_MEMORY",
        LOWBIT_STATUS_CUDA_ERROR => c"CUDA_ERROR",
        LOWBIT_STATUS_OUT_OF_MEMORY => c"OUT_OF_MEMORY",
        LOWBIT_STATUS_IO => c"IO",
        LOWBIT_STATUS_CANCELLED => c"CANCELLED",
        LOWBIT_STATUS_INTERNAL => c"INTERNAL",
        _ => c"UNKNOWN",
    }
}

/// The text of the last call on this thread that failed: which argument, which value. A call that
/// succeeds leaves it alone, so read it at once.
///
/// # Parameters
/// - `buf` (out, host): receives the text and a NUL; may be NULL if `cap` is 0.
/// - `cap` (in): bytes of `buf`.
/// - `needed` (out, host): bytes of the text with its NUL; may be NULL. At most 1025.
/// # Returns
/// OK; BUFFER_SIZE if `cap` is too small; NULL_POINTER if both pointers are NULL.
/// # Threads
/// Any; each thread has its own text.
/// # Stream
/// None.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// `buf` has `cap` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_last_error(
    buf: *mut c_char,
    cap: usize,
    needed: *mut usize,
) -> lowbit_status_t {
    // Not through `guard`: a failure here must not replace the text that is asked for.
    // SAFETY: the caller's promise.
    match last_error(|text| unsafe { copy_text(text, buf, cap, needed) }) {
        Ok(()) => LOWBIT_STATUS_OK,
        Err(error) => error.status() as lowbit_status_t,
    }
}
