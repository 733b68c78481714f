//! The CUDA driver: the only file that names cudarc.
//!
//! cudarc loads libcuda when a function is first called, and panics where the library or one of
//! its symbols is missing. So [`find`] looks for the library and for every symbol of [`SYMBOLS`]
//! before anything else, and no other function may be called before it. The context that a caller
//! has current on a thread is current again when a function here returns.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::panic::catch_unwind;
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUresult};

use super::kernels::{KERNELS, Kernel, Module, THREADS, embedded};
use crate::error::{Error, Result, Status, invalid};

/// Every symbol that is used below, as the library exports it.
const SYMBOLS: [&str; 36] = [
    "cuCtxGetDevice",
    "cuCtxPopCurrent_v2",
    "cuCtxPushCurrent_v2",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamGetCtx",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// `CU_MEMHOSTALLOC_PORTABLE`: pinned for all contexts.
const PORTABLE: u32 = 1;

/// The kernels are compiled for compute capability 8.0 and later.
const OLDEST_CAPABILITY: (c_int, c_int) = (8, 0);

// ---- errors ------------------------------------------------------------------------------------

fn unavailable(reason: impl Into<String>) -> Error {
    Error::new(Status::CudaUnavailable, reason)
}

/// The result of the driver function `name`.
fn check(name: &str, result: CUresult) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(Error::new(
            Status::CudaOutOfMemory,
            format!("{name}: the device's memory is exhausted"),
        )),
        _ => Err(Error::new(
            Status::CudaError,
            format!("{name}: {}", describe(result)),
        )),
    }
}

/// `CUDA_ERROR_NO_DEVICE (100): no CUDA-capable device is detected`.
fn describe(result: CUresult) -> String {
    let text = |get: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: a live pointer; the driver stores null for a number that it does not know, else
        // a static string.
        unsafe {
            let _ = get(result, &raw mut text);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy())
        }
    };
    let number = result as u32;
    match (text(sys::cuGetErrorName), text(sys::cuGetErrorString)) {
        (Some(name), Some(string)) => format!("{name} ({number}): {string}"),
        _ => format!("CUDA error {number}"),
    }
}

// ---- finding a device --------------------------------------------------------------------------

/// Finds out whether a device can be used, without making a context on it.
///
/// # Errors
/// `CudaUnavailable` with the reason; `InvalidArgument` for a device that does not exist.
pub(super) fn find(device: i32) -> Result<sys::CUdevice> {
    // What is not foreseen here must not be a panic in a trainer that can do without CUDA.
    catch_unwind(|| search(device))
        .unwrap_or_else(|_| Err(unavailable("looking for a CUDA driver ended in a panic")))
}

fn search(device: i32) -> Result<sys::CUdevice> {
    // SAFETY: loads libcuda, whose initialisers are the driver's business.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable(
            "no CUDA driver: libcuda.so.1 was not found or could not be loaded",
        ));
    }
    for symbol in SYMBOLS {
        // SAFETY: the address is not used.
        if unsafe { sys::culib().get::<unsafe extern "C" fn()>(symbol.as_bytes()) }.is_err() {
            return Err(unavailable(format!(
                "the CUDA driver cannot be used: libcuda has no symbol {symbol}"
            )));
        }
    }
    let needed = embedded()?.cuda;
    let mut version = 0;
    // SAFETY: a live integer; may be called before `cuInit`.
    check("cuDriverGetVersion", unsafe {
        sys::cuDriverGetVersion(&raw mut version)
    })
    .map_err(|error| unavailable(error.to_string()))?;
    if version < needed {
        return Err(unavailable(format!(
            "the CUDA driver is for CUDA {}; the kernels need CUDA {} or later",
            dotted(version),
            dotted(needed)
        )));
    }
    // SAFETY: takes no pointers.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            return Err(unavailable(
                "the libcuda that was found is the toolkit's stub for linking, not a driver \
                 (CUDA_ERROR_STUB_LIBRARY)",
            ));
        }
        result => return Err(unavailable(format!("cuInit: {}", describe(result)))),
    }
    let count = read("cuDeviceGetCount", |count| {
        // SAFETY: `read` passes a live integer.
        unsafe { sys::cuDeviceGetCount(count) }
    })?;
    if count == 0 {
        return Err(unavailable("the CUDA driver finds no device"));
    }
    if !(0..count).contains(&device) {
        return Err(invalid(format!(
            "device is {device}; there are {count}, counted from 0"
        )));
    }
    let handle = read("cuDeviceGet", |handle| {
        // SAFETY: as above.
        unsafe { sys::cuDeviceGet(handle, device) }
    })?;
    let capability = (
        attribute(handle, CAPABILITY_MAJOR)?,
        attribute(handle, CAPABILITY_MINOR)?,
    );
    if capability < OLDEST_CAPABILITY {
        let ((major, minor), (need_major, need_minor)) = (capability, OLDEST_CAPABILITY);
        return Err(unavailable(format!(
            "device {device} has compute capability {major}.{minor}; the kernels need \
             {need_major}.{need_minor}"
        )));
    }
    Ok(handle)
}

/// 12.1 for 12010.
fn dotted(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

const CAPABILITY_MAJOR: sys::CUdevice_attribute =
    sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
const CAPABILITY_MINOR: sys::CUdevice_attribute =
    sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
const MULTIPROCESSORS: sys::CUdevice_attribute =
    sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;

fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<c_int> {
    read("cuDeviceGetAttribute", |value| {
        // SAFETY: `read` passes a live integer.
        unsafe { sys::cuDeviceGetAttribute(value, attribute, device) }
    })
}

/// What the driver function `name` stores.
fn read<T>(name: &str, get: impl FnOnce(*mut T) -> CUresult) -> Result<T> {
    let mut value = MaybeUninit::uninit();
    check(name, get(value.as_mut_ptr()))?;
    // SAFETY: a driver function that succeeds has stored its result.
    Ok(unsafe { value.assume_init() })
}

/// The device of a stream. Changes nothing, so it may be called in a capture.
pub(super) fn device_of(stream: *mut c_void) -> Result<i32> {
    let context = read("cuStreamGetCtx", |context| {
        // SAFETY: `read` passes a live pointer; a stream of the caller, or null for the legacy one.
        unsafe { sys::cuStreamGetCtx(stream.cast(), context) }
    })?;
    let _current = Current::push(context)?;
    // A device's handle is its ordinal; `Device::open` has made sure.
    read("cuCtxGetDevice", |device| {
        // SAFETY: as above.
        unsafe { sys::cuCtxGetDevice(device) }
    })
}

// ---- one device --------------------------------------------------------------------------------

/// A device's primary context (the one that torch and JAX use). Kernels are loaded by the first plan
/// that needs them.
#[derive(Debug)]
pub(super) struct Device {
    device: sys::CUdevice,
    context: sys::CUcontext,
    capability: (c_int, c_int),
    multiprocessors: u32,
    loaded: Mutex<Loaded>,
    /// In the order of [`KERNELS`].
    functions: [OnceLock<Function>; KERNELS.len()],
}

/// Modules by name; unloaded on drop.
type Loaded = Vec<(&'static str, sys::CUmodule)>;

#[derive(Clone, Copy, Debug)]
struct Function {
    handle: sys::CUfunction,
    /// Thread blocks that the device holds at once.
    resident: u32,
}

// SAFETY: driver handles may be used from any thread; contexts are made current per call.
unsafe impl Send for Device {}
// SAFETY: as above; the driver locks its own state.
unsafe impl Sync for Device {}

/// Makes a context current until dropped.
struct Current;

impl Current {
    fn push(context: sys::CUcontext) -> Result<Self> {
        // SAFETY: a primary context that is retained.
        check("cuCtxPushCurrent", unsafe {
            sys::cuCtxPushCurrent_v2(context)
        })?;
        Ok(Self)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: pops what `push` pushed on this thread (guards do not leave a function).
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut popped) };
    }
}

impl Device {
    /// Opens a device.
    pub(super) fn open(device: i32) -> Result<Self> {
        let handle = find(device)?;
        if handle != device {
            let text = format!("device {device} has the handle {handle}, not its ordinal");
            return Err(Error::new(Status::Internal, text));
        }
        Ok(Self {
            device: handle,
            capability: (
                attribute(handle, CAPABILITY_MAJOR)?,
                attribute(handle, CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(handle, MULTIPROCESSORS)?.unsigned_abs(),
            loaded: Mutex::default(),
            functions: [const { OnceLock::new() }; KERNELS.len()],
            // Last, as dropping a device releases it.
            context: read("cuDevicePrimaryCtxRetain", |context| {
                // SAFETY: `read` passes a live pointer.
                unsafe { sys::cuDevicePrimaryCtxRetain(context, handle) }
            })?,
        })
    }

    /// Its number, which is its handle too.
    pub(super) fn ordinal(&self) -> i32 {
        self.device
    }

    /// How many thread blocks of a kernel the device holds at once. Loads the kernel, so that its
    /// first launch can be captured in a graph.
    pub(super) fn resident(&self, kernel: Kernel) -> Result<u32> {
        if let Some(function) = self.functions[kernel.0].get() {
            return Ok(function.resident);
        }
        let (name, symbol) = KERNELS[kernel.0];
        let _current = Current::push(self.context)?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let known = loaded.iter().find(|(known, _)| *known == name);
        let module = match known {
            Some((_, module)) => *module,
            None => {
                let modules = embedded()?.modules;
                let module = modules.iter().find(|module| module.name == name);
                let module = module.ok_or_else(|| {
                    unavailable(format!("the library has no module {name} of kernels"))
                })?;
                let handle = load_module(module, self.capability)?;
                loaded.push((name, handle));
                handle
            }
        };
        let function = Function::load(module, symbol, self.multiprocessors)?;
        Ok(self.functions[kernel.0].get_or_init(|| function).resident)
    }

    /// Runs `body` with the device's context current.
    pub(super) fn with<T>(&self, body: impl FnOnce(&Active<'_>) -> Result<T>) -> Result<T> {
        let _current = Current::push(self.context)?;
        body(&Active(self))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(_current) = Current::push(self.context) {
            let loaded = self
                .loaded
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner);
            for (_, module) in loaded {
                // SAFETY: loaded here; whoever drops a context has no work queued.
                let _ = unsafe { sys::cuModuleUnload(*module) };
            }
        }
        // SAFETY: retained by `open`. Fails harmlessly in a process that is ending.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// Loads the module for the current device, whose driver may have to compile it.
fn load_module(module: &Module, capability: (c_int, c_int)) -> Result<sys::CUmodule> {
    let (name, image) = (module.name, module.image(capability)?);
    let mut log = [0_u8; 2048];
    let mut options = [
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    // The second value is a number in a pointer's place.
    let mut values: [*mut c_void; 2] = [
        log.as_mut_ptr().cast(),
        std::ptr::without_provenance_mut(log.len()),
    ];
    read("cuModuleLoadDataEx", |module| {
        // SAFETY: an image, or NUL-terminated PTX, which the driver copies; two options with the
        // values they take; a live pointer.
        unsafe {
            sys::cuModuleLoadDataEx(
                module,
                image.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        }
    })
    .map_err(|error| {
        let text = CStr::from_bytes_until_nul(&log).unwrap_or_default();
        unavailable(format!(
            "the driver does not take the kernels {name}: {error} {}",
            text.to_string_lossy().trim()
        ))
    })
}

impl Function {
    fn load(module: sys::CUmodule, symbol: &CStr, multiprocessors: u32) -> Result<Self> {
        let name = CString::from(symbol);
        let handle = read("cuModuleGetFunction", |function| {
            // SAFETY: a loaded module, a NUL-terminated name, a live pointer.
            unsafe { sys::cuModuleGetFunction(function, module, name.as_ptr()) }
        })
        .map_err(|error| unavailable(format!("kernel {}: {error}", symbol.to_string_lossy())))?;
        // Both questions make a driver that loads lazily load the kernel now.
        let _registers: c_int = read("cuFuncGetAttribute", |registers| {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
            // SAFETY: a live integer and a function of the module.
            unsafe { sys::cuFuncGetAttribute(registers, attribute, handle) }
        })?;
        let each: c_int = read("cuOccupancyMaxActiveBlocksPerMultiprocessor", |each| {
            // SAFETY: as above.
            unsafe {
                sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    each,
                    handle,
                    THREADS.cast_signed(),
                    0,
                )
            }
        })?;
        Ok(Self {
            handle,
            resident: each.unsigned_abs() * multiprocessors,
        })
    }
}

// ---- work on a stream --------------------------------------------------------------------------

/// A device whose context is current.
pub(super) struct Active<'a>(&'a Device);

impl Active<'_> {
    /// Enqueues a kernel.
    ///
    /// # Safety
    /// `params` is what the kernel takes, its pointers are valid until the work is done, and
    /// `stream` belongs to the device's primary context.
    pub(super) unsafe fn launch<P>(
        &self,
        kernel: Kernel,
        grid: u32,
        params: &P,
        stream: *mut c_void,
    ) -> Result<()> {
        let Some(function) = self.0.functions[kernel.0].get() else {
            let text = format!("kernel {:?} was not loaded", KERNELS[kernel.0].1);
            return Err(Error::new(Status::Internal, text));
        };
        let mut pointers = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: the driver copies the parameters before it returns; the caller's promise.
        let result = unsafe {
            sys::cuLaunchKernel(
                function.handle,
                grid,
                1,
                1,
                THREADS,
                1,
                1,
                0,
                stream.cast(),
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", result).map_err(|error| {
            // The driver reports failures of whatever ran before, here or in the host program.
            error.within("launch (or earlier work on the device)")
        })
    }

    /// Enqueues the zeroing of device memory.
    ///
    /// # Safety
    /// The range is valid until the work is done; `stream` as for [`Active::launch`].
    pub(super) unsafe fn zero(
        &self,
        data: *mut c_void,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(address(data), 0, bytes, stream.cast())
        })
    }

    /// Memory from the device's pool, in the order of the stream.
    ///
    /// # Safety
    /// `stream` as for [`Active::launch`].
    pub(super) unsafe fn allocate(&self, bytes: usize, stream: *mut c_void) -> Result<*mut c_void> {
        let data = read("cuMemAllocAsync", |data| {
            // SAFETY: `read` passes a live pointer; the caller's promise.
            unsafe { sys::cuMemAllocAsync(data, bytes, stream.cast()) }
        })
        .map_err(|error| error.within(&format!("{bytes} bytes")))?;
        Ok(std::ptr::with_exposed_provenance_mut(data as usize))
    }

    /// Enqueues a copy from device memory to device memory.
    ///
    /// # Safety
    /// Both ranges are valid until the work is done; `stream` as for [`Active::launch`].
    pub(super) unsafe fn copy(
        &self,
        from: *const c_void,
        to: *mut c_void,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuMemcpyDtoDAsync", unsafe {
            sys::cuMemcpyDtoDAsync_v2(address(to), address(from), bytes, stream.cast())
        })
    }

    /// Frees memory of [`Active::allocate`] when the stream's work is done.
    ///
    /// # Safety
    /// The memory is not used afterwards; `stream` as for [`Active::launch`].
    pub(super) unsafe fn free(&self, data: *mut c_void, stream: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuMemFreeAsync", unsafe {
            sys::cuMemFreeAsync(address(data), stream.cast())
        })
    }

    /// Copies to host memory. Synchronises.
    ///
    /// # Safety
    /// Both ranges are valid.
    pub(super) unsafe fn read(
        &self,
        from: *const u8,
        to: *mut u8,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.copy_to_host(from, to, bytes, stream) }?;
        self.synchronize(stream)
    }

    /// Copies from host memory. Synchronises.
    ///
    /// # Safety
    /// Both ranges are valid.
    pub(super) unsafe fn write(
        &self,
        from: *const u8,
        to: *mut u8,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.copy_from_host(from, to, bytes, stream) }?;
        self.synchronize(stream)
    }

    /// Enqueues a copy to host memory.
    ///
    /// # Safety
    /// Both ranges are valid until the work is done; `stream` as for [`Active::launch`].
    pub(super) unsafe fn copy_to_host(
        &self,
        from: *const u8,
        to: *mut u8,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.cast(), address(from.cast()), bytes, stream.cast())
        })
    }

    /// Enqueues a copy from host memory.
    ///
    /// # Safety
    /// As for [`Active::copy_to_host`].
    pub(super) unsafe fn copy_from_host(
        &self,
        from: *const u8,
        to: *mut u8,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(address(to.cast()), from.cast(), bytes, stream.cast())
        })
    }

    /// Waits until the stream's work is done.
    pub(super) fn synchronize(&self, stream: *mut c_void) -> Result<()> {
        // SAFETY: a stream of the caller, or null for the legacy default stream.
        check("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(stream.cast())
        })
    }

    /// Waits until the work of all streams of the context is done.
    pub(super) fn synchronize_all(&self) -> Result<()> {
        // SAFETY: the device's context is current.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }

    // ---- what the library keeps beside the caller's stream: pinned memory, streams, events --------

    /// Page-locked host memory, which the device copies while the host goes on. Not zeroed.
    pub(super) fn allocate_pinned(&self, bytes: usize) -> Result<*mut c_void> {
        let what = "cuMemHostAlloc";
        let mut data = std::ptr::null_mut();
        // SAFETY: a live pointer.
        let result = unsafe { sys::cuMemHostAlloc(&raw mut data, bytes, PORTABLE) };
        let result = match result {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(Error::new(
                Status::OutOfMemory,
                format!("{what}: the host's memory that can be pinned is exhausted"),
            )),
            _ => check(what, result),
        };
        result.map_err(|error| error.within(&format!("{bytes} bytes")))?;
        Ok(data)
    }

    /// # Safety
    /// `data` is of [`Active::allocate_pinned`], and no work uses it.
    pub(super) unsafe fn free_pinned(&self, data: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuMemFreeHost", unsafe { sys::cuMemFreeHost(data) })
    }

    /// A stream that is not ordered with the legacy default stream.
    pub(super) fn create_stream(&self) -> Result<*mut c_void> {
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        read("cuStreamCreate", |stream| {
            // SAFETY: `read` passes a live pointer.
            unsafe { sys::cuStreamCreate(stream, flags) }
        })
        .map(<*mut _>::cast)
    }

    /// # Safety
    /// `stream` is of [`Active::create_stream`] and not used afterwards.
    pub(super) unsafe fn destroy_stream(&self, stream: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuStreamDestroy", unsafe {
            sys::cuStreamDestroy_v2(stream.cast())
        })
    }

    /// An event that takes no times.
    pub(super) fn create_event(&self) -> Result<*mut c_void> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        read("cuEventCreate", |event| {
            // SAFETY: `read` passes a live pointer.
            unsafe { sys::cuEventCreate(event, flags) }
        })
        .map(<*mut _>::cast)
    }

    /// # Safety
    /// `event` is of [`Active::create_event`] and not used afterwards.
    pub(super) unsafe fn destroy_event(&self, event: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuEventDestroy", unsafe {
            sys::cuEventDestroy_v2(event.cast())
        })
    }

    /// Lets `event` stand for the work that `stream` has got so far.
    ///
    /// # Safety
    /// `event` is of [`Active::create_event`]; `stream` as for [`Active::launch`].
    pub(super) unsafe fn record(&self, event: *mut c_void, stream: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuEventRecord", unsafe {
            sys::cuEventRecord(event.cast(), stream.cast())
        })
    }

    /// Lets `stream` wait for the work that `event` now stands for.
    ///
    /// # Safety
    /// As for [`Active::record`].
    pub(super) unsafe fn wait(&self, stream: *mut c_void, event: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(stream.cast(), event.cast(), 0)
        })
    }

    /// Waits on the host for the work that `event` stands for.
    ///
    /// # Safety
    /// `event` is of [`Active::create_event`].
    pub(super) unsafe fn wait_on_host(&self, event: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        check("cuEventSynchronize", unsafe {
            sys::cuEventSynchronize(event.cast())
        })
    }
}

fn address(data: *const c_void) -> sys::CUdeviceptr {
    data as sys::CUdeviceptr
}
