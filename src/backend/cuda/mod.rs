//! The CUDA backend.

use std::ffi::c_void;

use crate::error::{Error, Result, Status};
use crate::plan::TensorPlan;
use crate::spec::Spec;

use super::Call;

/// One CUDA device.
#[derive(Debug)]
pub struct CudaContext {}

/// Per-plan launch tables.
#[derive(Debug)]
pub(crate) struct Schedule {}

/// Device memory.
#[derive(Debug)]
pub(crate) struct DeviceArena {}

impl DeviceArena {
    pub(crate) fn data(&self) -> *mut c_void {
        std::ptr::null_mut()
    }
}

fn unavailable() -> Error {
    Error::new(Status::CudaUnavailable, "this build has no CUDA kernels")
}

/// Whether a device can be used.
///
/// # Errors
/// `CudaUnavailable` with the reason.
pub fn probe(_device: i32) -> Result<()> {
    Err(unavailable())
}

impl CudaContext {
    /// Opens a device.
    ///
    /// # Errors
    /// `CudaUnavailable` with the reason.
    pub fn new(_device: i32) -> Result<Self> {
        Err(unavailable())
    }

    pub(crate) fn schedule(&self, _spec: &Spec, _tensors: &[TensorPlan]) -> Result<Schedule> {
        Err(unavailable())
    }

    #[expect(unsafe_code, reason = "device pointers")]
    pub(crate) unsafe fn step(&self, _call: &Call<'_>) -> Result<()> {
        Err(unavailable())
    }

    pub(crate) fn allocate(&self, _bytes: i64, _stream: *mut c_void) -> Result<DeviceArena> {
        Err(unavailable())
    }

    pub(crate) fn free(&self, _arena: DeviceArena, _stream: *mut c_void) {}

    #[expect(unsafe_code, reason = "device pointers")]
    pub(crate) unsafe fn read(
        &self,
        _from: *const u8,
        _to: *mut u8,
        _bytes: usize,
        _stream: *mut c_void,
    ) -> Result<()> {
        Err(unavailable())
    }

    #[expect(unsafe_code, reason = "device pointers")]
    pub(crate) unsafe fn write(
        &self,
        _from: *const u8,
        _to: *mut u8,
        _bytes: usize,
        _stream: *mut c_void,
    ) -> Result<()> {
        Err(unavailable())
    }
}
