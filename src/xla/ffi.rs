//! XLA's C structs for typed FFI handlers, as far as a stateless handler needs them.
//!
//! A mirror of `xla/ffi/api/c_api.h`, so that a handler needs no C++ at build or install time. The
//! part mirrored here has had the same layout in every API version from 0.1 (jaxlib 0.4.36) on;
//! the handler therefore declares 0.1, the oldest that runtimes accept. Structs that XLA makes
//! are only read up to the fields named here; they may be longer.

#![expect(unsafe_code, reason = "reads the structs that XLA passes by pointer")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use crate::dtype::Dtype;
use crate::error::{Error, Result, Status, invalid};
use crate::step;

/// The API version that the handler declares.
const API_VERSION: (c_int, c_int) = (0, 1);

/// `XLA_FFI_Extension_Metadata`.
const EXTENSION_METADATA: c_int = 1;
/// `XLA_FFI_ExecutionStage_INITIALIZE`.
const STAGE_INITIALIZE: c_int = 2;
/// `XLA_FFI_ExecutionStage_EXECUTE`.
const STAGE_EXECUTE: c_int = 3;
/// `XLA_FFI_ArgType_BUFFER` and `XLA_FFI_RetType_BUFFER`.
const TYPE_BUFFER: c_int = 1;
/// `XLA_FFI_AttrType_SCALAR`.
const ATTR_SCALAR: c_int = 3;
/// `XLA_FFI_AttrType_STRING`.
const ATTR_STRING: c_int = 4;
/// `XLA_FFI_DataType_S32`.
const DTYPE_S32: c_int = 4;

/// `XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE`: a call may be captured and replayed.
pub(super) const COMMAND_BUFFER_COMPATIBLE: u32 = 1;

/// What XLA calls a handler for, as far as there is something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before each execution, outside of any capture; buffers may not be read.
    Initialize,
    Execute,
}

/// `XLA_FFI_CallFrame`, without what follows the attributes.
#[repr(C)]
pub(super) struct CallFrame {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    api: *const Api,
    ctx: *mut c_void,
    stage: c_int,
    args: Args,
    rets: Args,
    attrs: Attrs,
}

/// `XLA_FFI_Extension_Base`.
#[repr(C)]
struct ExtensionBase {
    struct_size: usize,
    kind: c_int,
    next: *mut ExtensionBase,
}

/// `XLA_FFI_Metadata_Extension`.
#[repr(C)]
struct MetadataExtension {
    base: ExtensionBase,
    metadata: *mut Metadata,
}

/// `XLA_FFI_Metadata`, without the state's type id that 0.2 added.
#[repr(C)]
struct Metadata {
    struct_size: usize,
    api_version: ApiVersion,
    traits: u32,
}

/// `XLA_FFI_Api_Version`.
#[repr(C)]
struct ApiVersion {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    major: c_int,
    minor: c_int,
}

/// `XLA_FFI_Api`, up to the last function used here.
#[repr(C)]
struct Api {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    api_version: ApiVersion,
    internal_api: *const c_void,
    error_create: unsafe extern "C" fn(*mut ErrorCreateArgs) -> *mut c_void,
    error_get_message: unsafe extern "C" fn(*mut ErrorGetMessageArgs),
    error_destroy: unsafe extern "C" fn(*mut ErrorDestroyArgs),
    handler_register: *const c_void,
    stream_get: unsafe extern "C" fn(*mut StreamGetArgs) -> *mut c_void,
}

/// `XLA_FFI_Error_GetMessage_Args`.
#[repr(C)]
struct ErrorGetMessageArgs {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    error: *mut c_void,
    message: *const c_char,
}

/// `XLA_FFI_Error_Destroy_Args`.
#[repr(C)]
struct ErrorDestroyArgs {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    error: *mut c_void,
}

/// `XLA_FFI_Stream_Get_Args`.
#[repr(C)]
struct StreamGetArgs {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    ctx: *mut c_void,
    stream: *mut c_void,
}

/// `XLA_FFI_Error_Create_Args`.
#[repr(C)]
struct ErrorCreateArgs {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    message: *const c_char,
    code: c_int,
}

/// `XLA_FFI_Args` and `XLA_FFI_Rets`, which have the same fields.
#[repr(C)]
struct Args {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    size: i64,
    types: *const c_int,
    values: *const *mut c_void,
}

/// `XLA_FFI_Attrs`.
#[repr(C)]
struct Attrs {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    size: i64,
    types: *const c_int,
    names: *const *const ByteSpan,
    values: *const *const c_void,
}

/// `XLA_FFI_ByteSpan`: not NUL-terminated.
#[repr(C)]
struct ByteSpan {
    data: *const u8,
    len: usize,
}

/// `XLA_FFI_Scalar`.
#[repr(C)]
struct Scalar {
    dtype: c_int,
    value: *const c_void,
}

/// `XLA_FFI_Buffer`.
#[repr(C)]
struct RawBuffer {
    struct_size: usize,
    extension_start: *mut ExtensionBase,
    dtype: c_int,
    data: *mut c_void,
    rank: i64,
    dims: *const i64,
}

/// An operand or a result of the call.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    dtype: c_int,
    data: *mut c_void,
    dims: &'a [i64],
}

impl Operand<'_> {
    /// The memory, if it is a vector of at least `words` i32.
    pub(super) fn check_words(&self, words: i64, name: &str) -> Result<step::Buffer> {
        match self.dims {
            [len] if *len >= words => self.check(Dtype::I32, self.dims, || name.to_owned()),
            dims => Err(Error::new(
                Status::BufferSize,
                format!("{name} has shape {dims:?}; the plan needs [{words}] or more"),
            )),
        }
    }

    /// The memory, if dtype and shape are what the plan has; `name` is for the error's text.
    pub(super) fn check(
        &self,
        dtype: Dtype,
        shape: &[i64],
        name: impl Fn() -> String,
    ) -> Result<step::Buffer> {
        if self.dtype != xla_dtype(dtype) {
            return Err(invalid(format!(
                "{} has XLA's data type {}; the plan has {} ({})",
                name(),
                self.dtype,
                dtype.name(),
                xla_dtype(dtype)
            )));
        }
        if self.dims != shape {
            return Err(Error::new(
                Status::BufferSize,
                format!(
                    "{} has shape {:?}; the plan has {shape:?}",
                    name(),
                    self.dims
                ),
            ));
        }
        Ok(step::Buffer {
            data: self.data,
            // XLA has allocated it, so the product fits.
            bytes: self.dims.iter().product::<i64>() * dtype.size() as i64,
        })
    }
}

/// `XLA_FFI_DataType`.
fn xla_dtype(dtype: Dtype) -> c_int {
    match dtype {
        Dtype::F32 => 11,
        Dtype::Bf16 => 16,
        Dtype::F16 => 10,
        Dtype::U8 => 6,
        Dtype::I32 => DTYPE_S32,
        Dtype::I64 => 5,
        Dtype::U16 => 7,
        Dtype::I8 => 2,
    }
}

impl CallFrame {
    /// Whether XLA asks what the handler is instead of calling it; answers if so, with `traits`.
    ///
    /// # Safety
    /// `self` was made by XLA for this call.
    pub(super) unsafe fn answer_metadata(&self, traits: u32) -> bool {
        // SAFETY: an extension begins with its base; of this kind it is a metadata extension,
        // whose struct is XLA's to be filled in.
        unsafe {
            if self.extension_start.is_null() || (*self.extension_start).kind != EXTENSION_METADATA
            {
                return false;
            }
            let metadata = (*self.extension_start.cast::<MetadataExtension>()).metadata;
            ((*metadata).api_version.major, (*metadata).api_version.minor) = API_VERSION;
            (*metadata).traits = traits;
        }
        true
    }

    /// What the call is for; `None` for stages in which a handler has nothing to do.
    pub(super) fn stage(&self) -> Option<Stage> {
        match self.stage {
            STAGE_INITIALIZE => Some(Stage::Initialize),
            STAGE_EXECUTE => Some(Stage::Execute),
            _ => None,
        }
    }

    /// The CUDA stream of the call.
    ///
    /// # Errors
    /// `InvalidArgument` with XLA's reason where there is none.
    ///
    /// # Safety
    /// `self` was made by XLA for this call.
    pub(super) unsafe fn stream(&self) -> Result<*mut c_void> {
        let mut args = StreamGetArgs {
            struct_size: size_of::<StreamGetArgs>(),
            extension_start: std::ptr::null_mut(),
            ctx: self.ctx,
            stream: std::ptr::null_mut(),
        };
        // SAFETY: the table is XLA's, and so is the context.
        let error = unsafe { ((*self.api).stream_get)(&raw mut args) };
        if error.is_null() {
            return Ok(args.stream);
        }
        let mut text = ErrorGetMessageArgs {
            struct_size: size_of::<ErrorGetMessageArgs>(),
            extension_start: std::ptr::null_mut(),
            error,
            message: std::ptr::null(),
        };
        let mut end = ErrorDestroyArgs {
            struct_size: size_of::<ErrorDestroyArgs>(),
            extension_start: std::ptr::null_mut(),
            error,
        };
        // SAFETY: the error is ours to destroy; its text lives until then.
        let reason = unsafe {
            ((*self.api).error_get_message)(&raw mut text);
            let reason = (!text.message.is_null())
                .then(|| CStr::from_ptr(text.message).to_string_lossy().into_owned());
            ((*self.api).error_destroy)(&raw mut end);
            reason
        };
        Err(invalid(format!(
            "the call has no stream: {}",
            reason.unwrap_or_default()
        )))
    }

    /// The operands.
    ///
    /// # Errors
    /// `InvalidArgument` where one is no buffer.
    ///
    /// # Safety
    /// `self` was made by XLA for this call.
    pub(super) unsafe fn operands(&self) -> Result<Vec<Operand<'_>>> {
        // SAFETY: the caller's promise.
        unsafe { self.args.buffers("operand") }
    }

    /// The results.
    ///
    /// # Errors
    /// As for [`CallFrame::operands`].
    ///
    /// # Safety
    /// As for [`CallFrame::operands`].
    pub(super) unsafe fn results(&self) -> Result<Vec<Operand<'_>>> {
        // SAFETY: the caller's promise.
        unsafe { self.rets.buffers("result") }
    }

    /// The string attribute `name`.
    ///
    /// # Errors
    /// `InvalidArgument` where it is missing, of another type or not UTF-8.
    ///
    /// # Safety
    /// As for [`CallFrame::operands`].
    pub(super) unsafe fn string_attribute(&self, name: &str) -> Result<&str> {
        // SAFETY: the caller's promise; the type says what the value points to.
        unsafe {
            match self.attribute(name)? {
                (ATTR_STRING, value) => std::str::from_utf8((*value.cast::<ByteSpan>()).bytes())
                    .map_err(|error| invalid(format!("attribute {name}: {error}"))),
                (kind, _) => Err(invalid(format!(
                    "attribute {name} has type {kind}; it must be a string"
                ))),
            }
        }
    }

    /// The attribute `name`, an i32 scalar.
    ///
    /// # Errors
    /// `InvalidArgument` where it is missing or of another type.
    ///
    /// # Safety
    /// As for [`CallFrame::operands`].
    pub(super) unsafe fn i32_attribute(&self, name: &str) -> Result<i32> {
        // SAFETY: the caller's promise; the types say what the values point to.
        unsafe {
            if let (ATTR_SCALAR, value) = self.attribute(name)? {
                let scalar = &*value.cast::<Scalar>();
                if scalar.dtype == DTYPE_S32 {
                    return Ok(scalar.value.cast::<i32>().read_unaligned());
                }
            }
        }
        Err(invalid(format!("attribute {name} must be an int32 scalar")))
    }

    /// Type and value of an attribute.
    ///
    /// # Safety
    /// As for [`CallFrame::operands`].
    unsafe fn attribute(&self, name: &str) -> Result<(c_int, *const c_void)> {
        let attrs = &self.attrs;
        for i in 0..usize::try_from(attrs.size).unwrap_or(0) {
            // SAFETY: the three arrays have `size` elements.
            unsafe {
                if (**attrs.names.add(i)).bytes() == name.as_bytes() {
                    return Ok((*attrs.types.add(i), *attrs.values.add(i)));
                }
            }
        }
        Err(invalid(format!("attribute {name} is missing")))
    }

    /// An `XLA_FFI_Error` with the text of `error`. XLA destroys it.
    ///
    /// # Safety
    /// As for [`CallFrame::operands`].
    pub(super) unsafe fn error(&self, error: &Error) -> *mut c_void {
        let message = error.to_string().replace('\0', " ");
        let message = CString::new(message).unwrap_or_default();
        let mut args = ErrorCreateArgs {
            // Up to the last field, as XLA counts: without the padding at the end.
            struct_size: std::mem::offset_of!(ErrorCreateArgs, code) + size_of::<c_int>(),
            extension_start: std::ptr::null_mut(),
            message: message.as_ptr(),
            code: error_code(error.status()),
        };
        // SAFETY: the table is XLA's; the call copies the message.
        unsafe { ((*self.api).error_create)(&raw mut args) }
    }
}

/// `XLA_FFI_Error_Code`.
fn error_code(status: Status) -> c_int {
    const INVALID_ARGUMENT: c_int = 3;
    const RESOURCE_EXHAUSTED: c_int = 8;
    const FAILED_PRECONDITION: c_int = 9;
    const UNIMPLEMENTED: c_int = 12;
    const INTERNAL: c_int = 13;
    match status {
        Status::CudaUnavailable => FAILED_PRECONDITION,
        Status::Unsupported => UNIMPLEMENTED,
        Status::OutOfMemory | Status::CudaOutOfMemory => RESOURCE_EXHAUSTED,
        Status::Internal | Status::CudaError => INTERNAL,
        _ => INVALID_ARGUMENT,
    }
}

impl Args {
    /// # Safety
    /// Made by XLA for this call.
    unsafe fn buffers(&self, what: &str) -> Result<Vec<Operand<'_>>> {
        (0..usize::try_from(self.size).unwrap_or(0))
            .map(|i| {
                // SAFETY: both arrays have `size` elements; a value of type buffer points to one,
                // whose `dims` has `rank` elements.
                unsafe {
                    let kind = *self.types.add(i);
                    if kind != TYPE_BUFFER {
                        return Err(invalid(format!("{what} {i} has type {kind}, not a buffer")));
                    }
                    let raw = &*(*self.values.add(i)).cast::<RawBuffer>();
                    Ok(Operand {
                        dtype: raw.dtype,
                        data: raw.data,
                        dims: slice(raw.dims, usize::try_from(raw.rank).unwrap_or(0)),
                    })
                }
            })
            .collect()
    }
}

impl ByteSpan {
    /// # Safety
    /// Made by XLA for this call.
    unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: the caller's promise.
        unsafe { slice(self.data, self.len) }
    }
}

/// A slice whose pointer may be null where it is empty.
///
/// # Safety
/// As for `std::slice::from_raw_parts`, but for that.
unsafe fn slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(data, len) }
}

#[cfg(all(test, target_pointer_width = "64"))]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// Offsets as a C compiler gives them for `c_api.h` on a 64-bit machine;
    /// `bindings/python/tests/test_layout.py` compiles the header of the installed jaxlib.
    #[test]
    fn layout_is_that_of_the_header() {
        assert_eq!(
            [
                offset_of!(CallFrame, struct_size),
                offset_of!(CallFrame, extension_start),
                offset_of!(CallFrame, api),
                offset_of!(CallFrame, ctx),
                offset_of!(CallFrame, stage),
                offset_of!(CallFrame, args),
                offset_of!(CallFrame, rets),
                offset_of!(CallFrame, attrs),
                size_of::<CallFrame>(),
            ],
            [0, 8, 16, 24, 32, 40, 80, 120, 168]
        );
        assert_eq!(
            [
                offset_of!(Args, struct_size),
                offset_of!(Args, extension_start),
                offset_of!(Args, size),
                offset_of!(Args, types),
                offset_of!(Args, values),
                size_of::<Args>(),
            ],
            [0, 8, 16, 24, 32, 40]
        );
        assert_eq!(
            [
                offset_of!(Attrs, struct_size),
                offset_of!(Attrs, extension_start),
                offset_of!(Attrs, size),
                offset_of!(Attrs, types),
                offset_of!(Attrs, names),
                offset_of!(Attrs, values),
                size_of::<Attrs>(),
            ],
            [0, 8, 16, 24, 32, 40, 48]
        );
        assert_eq!(
            [
                offset_of!(RawBuffer, struct_size),
                offset_of!(RawBuffer, extension_start),
                offset_of!(RawBuffer, dtype),
                offset_of!(RawBuffer, data),
                offset_of!(RawBuffer, rank),
                offset_of!(RawBuffer, dims),
                size_of::<RawBuffer>(),
            ],
            [0, 8, 16, 24, 32, 40, 48]
        );
        assert_eq!(
            [
                offset_of!(ExtensionBase, struct_size),
                offset_of!(ExtensionBase, kind),
                offset_of!(ExtensionBase, next),
                size_of::<ExtensionBase>(),
                offset_of!(MetadataExtension, base),
                offset_of!(MetadataExtension, metadata),
            ],
            [0, 8, 16, 24, 0, 24]
        );
        assert_eq!(
            [
                offset_of!(Metadata, struct_size),
                offset_of!(Metadata, api_version),
                offset_of!(Metadata, api_version) + offset_of!(ApiVersion, major),
                offset_of!(Metadata, api_version) + offset_of!(ApiVersion, minor),
                offset_of!(Metadata, traits),
                size_of::<ApiVersion>(),
                offset_of!(ApiVersion, struct_size),
                offset_of!(ApiVersion, extension_start),
            ],
            [0, 8, 24, 28, 32, 24, 0, 8]
        );
        assert_eq!(
            [
                offset_of!(Api, struct_size),
                offset_of!(Api, extension_start),
                offset_of!(Api, api_version),
                offset_of!(Api, internal_api),
                offset_of!(Api, error_create),
                offset_of!(Api, error_get_message),
                offset_of!(Api, error_destroy),
                offset_of!(Api, stream_get),
                offset_of!(ErrorCreateArgs, struct_size),
                offset_of!(ErrorCreateArgs, extension_start),
                offset_of!(ErrorCreateArgs, message),
                offset_of!(ErrorCreateArgs, code),
            ],
            [0, 8, 16, 40, 48, 56, 64, 80, 0, 8, 16, 24]
        );
        assert_eq!(
            [
                offset_of!(ErrorGetMessageArgs, error),
                offset_of!(ErrorGetMessageArgs, message),
                size_of::<ErrorGetMessageArgs>(),
                offset_of!(ErrorDestroyArgs, error),
                size_of::<ErrorDestroyArgs>(),
                offset_of!(StreamGetArgs, ctx),
                offset_of!(StreamGetArgs, stream),
                size_of::<StreamGetArgs>(),
            ],
            [16, 24, 32, 16, 24, 16, 24, 32]
        );
        assert_eq!(
            [
                offset_of!(ByteSpan, data),
                offset_of!(ByteSpan, len),
                offset_of!(Scalar, dtype),
                offset_of!(Scalar, value),
            ],
            [0, 8, 0, 8]
        );
    }
}
