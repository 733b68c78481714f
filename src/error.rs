//! The one error type: a [`Status`] that crosses the C ABI and a text that names the argument.

/// What went wrong, as a number that never changes its meaning.
///
/// The ranges: 1–19 the caller's arguments, 20–39 not possible here, 40–59 bytes of a file,
/// 60–79 the device, 80–99 host resources, 100 a fault of this library. Numbers are append-only;
/// a retired number stays as a comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    /// A required pointer is null.
    NullPointer = 1,
    /// An argument has a value that is not allowed.
    InvalidArgument = 2,
    /// `struct_size` is too small, or a larger struct has a non-zero tail that is not known here.
    StructSize = 3,
    /// A flag bit that this version does not know is set.
    UnknownFlag = 4,
    /// A buffer has fewer (or other) bytes than the plan asks for.
    BufferSize = 5,
    /// A pointer is not aligned for its data type.
    Misaligned = 6,
    /// Two buffers overlap that must not.
    Overlap = 7,
    // next free number: 8
    /// The request is well-formed, but this version or this backend does not implement it.
    Unsupported = 20,
    // next free number: 21
    /// The bytes are not a lowbit checkpoint.
    FormatMagic = 40,
    /// The checkpoint has a format version that this library does not read.
    FormatVersion = 41,
    /// The bytes end before the checkpoint does.
    FormatTruncated = 42,
    /// A checksum differs or the container is malformed.
    FormatCorrupt = 43,
    /// The checkpoint is sound, but belongs to another plan.
    FormatMismatch = 44,
    // next free number: 45
    /// No CUDA driver, device or kernel can be used here; the text says why.
    CudaUnavailable = 60,
    /// The device's memory is exhausted.
    CudaOutOfMemory = 62,
    /// A CUDA call failed.
    CudaError = 63,
    // next free number: 64 (61 is reserved for a missing kernel image)
    /// The host's memory is exhausted.
    OutOfMemory = 80,
    /// A file operation failed.
    Io = 81,
    /// A callback asked to stop.
    Cancelled = 82,
    // next free number: 83
    /// A panic was caught at the C boundary; the handle it came from refuses further calls.
    Internal = 100,
}

/// A status and a text that names the argument and its value.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    status: Status,
    message: String,
}

impl Error {
    /// An error with its text.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// The number that the C ABI returns.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The same error with `context` before its text.
    #[must_use]
    pub fn within(self, context: &str) -> Self {
        Self {
            status: self.status,
            message: format!("{context}: {}", self.message),
        }
    }
}

/// Shorthand for the constructors that are used most.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(Status::InvalidArgument, message)
}

/// An [`Status::Unsupported`] with its reason.
pub(crate) fn unsupported(message: impl Into<String>) -> Error {
    Error::new(Status::Unsupported, message)
}

/// What fallible functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;
