//! Between C and Rust: no panic crosses, every error leaves its text, broken handles are refused.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use super::null;
use super::types::{LOWBIT_STATUS_OK, lowbit_status_t};
use crate::error::{Error, Result, Status};

/// Bytes kept of an error's text.
const CAPACITY: usize = 1024;

struct Text {
    bytes: [u8; CAPACITY],
    length: usize,
}

thread_local! {
    // A plain array: a thread-local with a destructor would keep the library mapped after dlclose.
    static LAST: RefCell<Text> = const { RefCell::new(Text { bytes: [0; CAPACITY], length: 0 }) };
}

fn remember(text: &str) {
    // Cut at a character's end.
    let length = (0..=text.len().min(CAPACITY))
        .rev()
        .find(|&end| text.is_char_boundary(end));
    let length = length.unwrap_or(0);
    LAST.with_borrow_mut(|last| {
        last.bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        last.length = length;
    });
}

/// Calls `body` with the text of this thread's last error.
pub(super) fn last_error<T>(body: impl FnOnce(&[u8]) -> T) -> T {
    LAST.with_borrow(|last| body(&last.bytes[..last.length]))
}

/// The default hook prints to the host's stderr; this one keeps message and place as the error's
/// text. A cdylib has a std of its own, so the host's hook is not touched.
fn install_quiet_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let payload = info.payload();
            let message = payload
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("panic");
            let place = info
                .location()
                .map_or_else(String::new, ToString::to_string);
            remember(&format!(
                "internal error (a panic was caught): {message}, at {place}"
            ));
        }));
    });
}

/// Runs a body so that a panic becomes an error with its text: nothing unwinds, nothing is printed.
pub(crate) fn contain(body: impl FnOnce() -> Result<()>) -> Result<()> {
    install_quiet_hook();
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        // The hook has kept the text.
        let text = last_error(|text| String::from_utf8_lossy(text).into_owned());
        Err(Error::new(Status::Internal, text))
    })
}

/// Runs the body of an exported function.
pub(super) fn guard(body: impl FnOnce() -> Result<()>) -> lowbit_status_t {
    match contain(body) {
        Ok(()) => LOWBIT_STATUS_OK,
        Err(error) => {
            remember(&error.to_string());
            error.status() as lowbit_status_t
        }
    }
}

/// Runs the body of an exported function that works on a handle. A panic poisons the handle.
///
/// # Safety
/// `handle` is null or was given out by this library.
pub(super) unsafe fn guard_handle<T: Handle>(
    handle: *const T,
    body: impl FnOnce(&T) -> Result<()>,
) -> lowbit_status_t {
    guard(|| {
        // SAFETY: the caller's promise.
        let object = unsafe { object(handle) }?;
        let unwound = catch_unwind(AssertUnwindSafe(|| body(&object.handle)));
        unwound.unwrap_or_else(|panic| {
            object.tag.poisoned.store(true, Ordering::Relaxed);
            std::panic::resume_unwind(panic)
        })
    })
}

/// A handle argument, checked.
///
/// # Safety
/// `handle` is null or was given out by this library.
pub(super) unsafe fn borrow<'a, T: Handle + 'a>(handle: *const T) -> Result<&'a T> {
    // SAFETY: the caller's promise.
    unsafe { object(handle) }.map(|object| &object.handle)
}

/// # Safety
/// As for [`borrow`].
unsafe fn object<'a, T: Handle + 'a>(handle: *const T) -> Result<&'a Object<T>> {
    if handle.is_null() {
        return Err(null(T::NAME));
    }
    let object = handle.cast::<Object<T>>();
    if !object.is_aligned() {
        return Err(crate::error::invalid(format!(
            "{} is at {handle:p}, which is no handle",
            T::NAME
        )));
    }
    // SAFETY: the caller's promise. Every kind of object begins with its tag, so this reads inside
    // the object whatever its kind.
    let tag = unsafe { &*object.cast::<Tag>() };
    if tag.magic != T::MAGIC {
        return Err(crate::error::invalid(format!(
            "{} is a handle of another kind, or was destroyed",
            T::NAME
        )));
    }
    if tag.poisoned.load(Ordering::Relaxed) {
        return Err(Error::new(
            Status::Internal,
            format!(
                "{} was poisoned by an earlier internal error; destroy it",
                T::NAME
            ),
        ));
    }
    // SAFETY: alive and of this kind.
    Ok(unsafe { &*object })
}

/// Which kind a handle is, and whether a panic left it in doubt.
#[repr(C)]
struct Tag {
    magic: u64,
    poisoned: AtomicBool,
}

/// What the pointer that C holds as a `*mut T` points to. In the order of C, so that the tag is
/// found in a handle of the wrong kind too.
#[repr(C)]
struct Object<T> {
    tag: Tag,
    handle: T,
}

/// An opaque object of the C ABI.
pub(super) trait Handle {
    /// The argument's name in messages.
    const NAME: &'static str;
    /// Eight letters that tell the kinds apart.
    const MAGIC: u64;
}

/// Hands an object over to C.
///
/// # Safety
/// `out` is valid.
pub(super) unsafe fn give<T: Handle>(out: *mut *mut T, handle: T) {
    let object = Box::new(Object {
        tag: Tag {
            magic: T::MAGIC,
            poisoned: AtomicBool::new(false),
        },
        handle,
    });
    // SAFETY: the caller's promise.
    unsafe { *out = Box::into_raw(object).cast() };
}

/// Takes an object back, poisoned or not; null, foreign and destroyed handles give `None`.
///
/// # Safety
/// `handle` is null or was given out by this library, and is not used by anybody else.
pub(super) unsafe fn take<T: Handle>(handle: *mut T) -> Option<T> {
    let object = handle.cast::<Object<T>>();
    if object.is_null() || !object.is_aligned() {
        return None;
    }
    // SAFETY: the caller's promise; every kind of object begins with its tag.
    let magic = unsafe { &raw mut (*object.cast::<Tag>()).magic };
    // SAFETY: as above.
    if unsafe { magic.read() } != T::MAGIC {
        return None;
    }
    // So that a second destroy, of memory that was not reused yet, is seen. Volatile, because a
    // plain store into memory about to be freed would be removed.
    // SAFETY: as above.
    unsafe { magic.write_volatile(0) };
    // SAFETY: made by `give`.
    Some(unsafe { Box::from_raw(object) }.handle)
}

/// Declares a handle: its name as an argument, and its eight letters.
macro_rules! handle {
    ($type:ty, $name:literal, $magic:literal) => {
        impl crate::capi::guard::Handle for $type {
            const NAME: &'static str = $name;
            const MAGIC: u64 = u64::from_le_bytes(*$magic);
        }
    };
}
pub(super) use handle;
