//! `lowbit_context_t`.

use std::ffi::c_char;
use std::sync::Arc;

use super::guard::{give, guard, handle, take};
use super::sized::read;
use super::spec::{reserved, unknown_flag};
use super::types::*;
use super::{copy_text, output};
use crate::backend::{Context, CpuContext, CudaContext, ParallelFor, Variant, probe_cuda};
use crate::error::{Result, invalid};

/// One backend instance: the CPU with its threads, or a CUDA device.
pub struct lowbit_context_t {
    pub(super) context: Arc<Context>,
}

handle!(lowbit_context_t, "context", b"lb.ctxt\0");

/// Makes a CPU context.
///
/// # Parameters
/// - `info` (in, host): NULL means all defaults.
/// - `out` (out, host, not NULL): the context, or NULL on failure.
/// # Returns
/// OK, NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT, UNSUPPORTED (the processor lacks
/// the variant), OUT_OF_MEMORY (threads could not be started).
/// # Threads
/// Any. Threads that it starts are joined by lowbit_context_destroy.
/// # Stream
/// None.
/// # Ownership
/// The caller destroys the context by lowbit_context_destroy; parallel_for must live until then
/// and until all plans made from it are destroyed.
/// # Since
/// ABI 0.1
/// # Safety
/// `info` is valid; parallel_for does what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_context_create_cpu(
    info: *const lowbit_cpu_info_t,
    out: *mut *mut lowbit_context_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    guard(|| unsafe { create(out, || Ok(Context::Cpu(cpu(info)?))) })
}

/// Opens a CUDA device; plans load the kernels that they need.
///
/// # Parameters
/// - `info` (in, host): NULL means device 0.
/// - `out` (out, host, not NULL): the context, or NULL on failure.
/// # Returns
/// OK, NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, CUDA_UNAVAILABLE (the text says why), CUDA_ERROR.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// The caller destroys the context by lowbit_context_destroy. It holds the device's primary
/// context.
/// # Since
/// ABI 0.1
/// # Safety
/// `info` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_context_create_cuda(
    info: *const lowbit_cuda_info_t,
    out: *mut *mut lowbit_context_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    guard(|| unsafe {
        create(out, || {
            let mut device = 0;
            if !info.is_null() {
                let info = read(info, "info")?;
                if info.flags != 0 {
                    return Err(unknown_flag("info.flags", info.flags));
                }
                reserved("info.reserved", info.reserved)?;
                device = info.device;
            }
            Ok(Context::Cuda(CudaContext::new(device)?))
        })
    })
}

/// Says whether a CUDA device can be used, and if not, why.
///
/// # Parameters
/// - `device` (in): ordinal.
/// - `buf` (out, host): receives "available" or the reason, and a NUL; may be NULL if `cap`
///   is 0.
/// - `cap` (in): bytes of `buf`.
/// - `needed` (out, host): bytes of the text with its NUL; may be NULL.
/// # Returns
/// OK if lowbit_context_create_cuda would find driver, device and kernels; CUDA_UNAVAILABLE with
/// the reason in `buf` (if it fits) and in lowbit_last_error.
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
pub unsafe extern "C" fn lowbit_cuda_probe(
    device: i32,
    buf: *mut c_char,
    cap: usize,
    needed: *mut usize,
) -> lowbit_status_t {
    guard(|| {
        let found = probe_cuda(device);
        let text = match &found {
            Ok(()) => "available".to_owned(),
            Err(error) => error.to_string(),
        };
        if !buf.is_null() || !needed.is_null() {
            // SAFETY: the caller's promise.
            let copied = unsafe { copy_text(text.as_bytes(), buf, cap, needed) };
            if found.is_ok() {
                copied?;
            }
        }
        found
    })
}

/// Destroys a context: threads are joined, the device's primary context is released. Plans made
/// from it keep it alive until they are destroyed.
///
/// # Parameters
/// - `context` (in): may be NULL.
/// # Returns
/// Nothing.
/// # Threads
/// No other thread uses `context`.
/// # Stream
/// None.
/// # Ownership
/// Ends the caller's.
/// # Since
/// ABI 0.1
/// # Safety
/// `context` was not destroyed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_context_destroy(context: *mut lowbit_context_t) {
    guard(|| {
        // SAFETY: the caller's promise.
        drop(unsafe { take(context) });
        Ok(())
    });
}

/// # Safety
/// `out` is null or valid.
unsafe fn create(
    out: *mut *mut lowbit_context_t,
    make: impl FnOnce() -> Result<Context>,
) -> Result<()> {
    let out = output(out, "out")?;
    // SAFETY: checked above.
    unsafe {
        *out = std::ptr::null_mut();
        let context = Arc::new(make()?);
        give(out, lowbit_context_t { context });
    }
    Ok(())
}

/// # Safety
/// `info` is null or valid.
unsafe fn cpu(info: *const lowbit_cpu_info_t) -> Result<CpuContext> {
    if info.is_null() {
        return CpuContext::new(0, Variant::Auto);
    }
    // SAFETY: the caller's promise.
    let info = unsafe { read(info, "info") }?;
    if info.flags != 0 {
        return Err(unknown_flag("info.flags", info.flags));
    }
    reserved("info.reserved", info.reserved)?;
    let variant = match info.variant {
        LOWBIT_CPU_VARIANT_AUTO => Variant::Auto,
        LOWBIT_CPU_VARIANT_REFERENCE => Variant::Reference,
        LOWBIT_CPU_VARIANT_PORTABLE => Variant::Portable,
        LOWBIT_CPU_VARIANT_AVX2 => Variant::Avx2,
        LOWBIT_CPU_VARIANT_AVX512 => Variant::Avx512,
        other => return Err(invalid(format!("info.variant is {other}; 0 to 4 exist"))),
    };
    let threads = usize::try_from(info.threads)
        .map_err(|_| invalid(format!("info.threads is {}", info.threads)))?;
    match info.parallel_for {
        Some(run) if threads == 0 => CpuContext::with_host_threads(
            ParallelFor {
                run,
                user: info.parallel_for_user,
            },
            variant,
        ),
        Some(_) => Err(invalid(format!(
            "info.threads is {threads}, but parallel_for brings the host's threads; set it to 0"
        ))),
        None => CpuContext::new(threads, variant),
    }
}
