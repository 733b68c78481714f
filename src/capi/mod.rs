//! The C ABI: guard, validate, convert, call, convert back. `include/lowbit.h` is generated from
//! these files, so the doc comments are written for a reader of C; the rules that hold for every
//! function are on the header's first page (`cbindgen.toml`) and in `include/README.md`.

#![expect(unsafe_code, reason = "C callers hand over raw pointers")]
#![expect(non_camel_case_types, reason = "the names are those of C")]
#![expect(unreachable_pub, reason = "exported by symbol, not by path")]

mod checkpoint;
mod checkpoint_files;
mod codec;
mod context;
mod guard;
mod norm;
mod offload;
mod plan;
mod report;
mod sized;
mod spec;
mod state;
mod step;
#[cfg(feature = "test-hooks")]
mod test_hooks;
mod types;
mod version;

use std::ffi::{CStr, c_char};

pub(crate) use guard::contain;

use crate::error::{Error, Result, Status};
use crate::step::Buffer;

fn null(name: &str) -> Error {
    Error::new(Status::NullPointer, format!("{name} is null"))
}

/// A text argument.
///
/// # Safety
/// `text` is null or NUL-terminated.
unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<&'a str> {
    if text.is_null() {
        return Err(null(name));
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }
        .to_str()
        .map_err(|error| crate::error::invalid(format!("{name} is not UTF-8: {error}")))
}

/// An array argument of `count` elements.
///
/// # Safety
/// `data` is null or points to that many.
unsafe fn array<'a, T>(data: *const T, count: i64, name: &str) -> Result<&'a [T]> {
    // No slice may be larger than the address space's half, even one whose length is refused later.
    let length = usize::try_from(count)
        .ok()
        .filter(|length| *length <= isize::MAX.unsigned_abs() / size_of::<T>())
        .ok_or_else(|| crate::error::invalid(format!("the number of {name} is {count}")))?;
    if length == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(null(name));
    }
    if !data.is_aligned() {
        return Err(Error::new(
            Status::Misaligned,
            format!("{name} is at {data:p}"),
        ));
    }
    // SAFETY: not null, aligned; the length is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(data, length) })
}

/// Where a single output goes.
fn output<T>(out: *mut T, name: &str) -> Result<*mut T> {
    if out.is_null() {
        return Err(null(name));
    }
    if !out.is_aligned() {
        return Err(Error::new(
            Status::Misaligned,
            format!("{name} is at {out:p}"),
        ));
    }
    Ok(out)
}

/// Copies `bytes` and a NUL into the caller's buffer; the size with NUL goes to `needed`. A null
/// `buf` with capacity 0 asks for the size.
///
/// # Safety
/// `buf` is null or has `cap` bytes; `needed` is null or valid.
unsafe fn copy_text(bytes: &[u8], buf: *mut c_char, cap: usize, needed: *mut usize) -> Result<()> {
    let size = bytes.len() + 1;
    if !needed.is_null() {
        // SAFETY: the caller's promise.
        unsafe { needed.write_unaligned(size) };
    }
    if buf.is_null() && cap == 0 {
        return if needed.is_null() {
            Err(null("needed (and buf)"))
        } else {
            Ok(())
        };
    }
    if buf.is_null() {
        return Err(null("buf"));
    }
    if cap < size {
        return Err(Error::new(
            Status::BufferSize,
            format!("cap is {cap}, the text needs {size} bytes"),
        ));
    }
    // SAFETY: the text fits.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), buf.cast(), bytes.len());
        *buf.add(bytes.len()) = 0;
    }
    Ok(())
}

/// `lowbit_buffer_t` and [`Buffer`] are one layout (asserted in `types.rs`).
fn buffers(list: &[types::lowbit_buffer_t]) -> &[Buffer] {
    // SAFETY: equal size, alignment and fields.
    unsafe { std::slice::from_raw_parts(list.as_ptr().cast(), list.len()) }
}
