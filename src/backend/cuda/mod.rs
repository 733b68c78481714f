//! The CUDA backend: one device's primary context, its kernels, work enqueued on the caller's
//! stream.
//!
//! `driver.rs` speaks to the driver; `kernels.rs` knows the kernels, `table.rs` what a plan prepares
//! for them, `launch.rs` what a call launches, `params.rs` what a kernel is told; the kernels are in
//! `cuda/`. A step launches and returns: it never allocates, copies, waits, loads or changes the
//! caller's current context, so it can be captured in a graph.

#![expect(unsafe_code, reason = "calls the driver with device pointers")]

mod driver;
#[cfg(test)]
mod emulation;
mod kernels;
mod lanes;
mod launch;
mod params;
mod table;

use std::ffi::c_void;
use std::sync::Arc;

use crate::codec::EmaArgs;
use crate::error::{Error, Result, Status};
use crate::layout::index;
use crate::norm::{self, NormArgs};
use crate::plan::{Plan, TensorPlan};
use crate::spec::Spec;

use super::{Call, Codec};
use driver::Device;
pub(crate) use lanes::{Lanes, Mark, Pinned};
use launch::{Direction, Work};
use table::Lists;

/// Whether a device can be used; does not make a context on it.
///
/// # Errors
/// `CudaUnavailable` with the reason; `InvalidArgument` for a device that does not exist.
pub(crate) fn probe(device: i32) -> Result<()> {
    driver::find(device).map(drop)
}

/// The device of a stream, for callers that are given nothing else. [`probe`] has succeeded before.
///
/// # Errors
/// `CudaError`.
pub(crate) fn device_of(stream: *mut c_void) -> Result<i32> {
    driver::device_of(stream)
}

/// One CUDA device.
#[derive(Debug)]
pub struct CudaContext {
    device: Arc<Device>,
}

/// What a plan has prepared: its launches, and the table that their kernels read.
#[derive(Debug)]
pub(crate) struct Schedule {
    device: Arc<Device>,
    table: DeviceArena,
    lists: Lists,
}

impl Schedule {
    /// Bytes of the scratch behind the statistics.
    pub(crate) fn scratch_bytes(&self, tensors: usize) -> usize {
        self.lists.scratch_bytes(tensors)
    }
}

impl Drop for Schedule {
    fn drop(&mut self) {
        // In the order of the legacy stream, behind whatever still runs. A failure is dropped: the
        // device is then beyond use anyway.
        let _ = self.device.with(|active| {
            // SAFETY: allocated for this plan, of which no step is in flight.
            unsafe { active.free(self.table.data, std::ptr::null_mut()) }
        });
    }
}

/// Device memory, freed by [`CudaContext::free`].
#[derive(Debug)]
pub(crate) struct DeviceArena {
    data: *mut c_void,
}

// SAFETY: an address in device memory.
unsafe impl Send for DeviceArena {}
// SAFETY: as above.
unsafe impl Sync for DeviceArena {}

impl DeviceArena {
    pub(crate) fn data(&self) -> *mut c_void {
        self.data
    }
}

impl CudaContext {
    /// Opens a device: its primary context. Kernels are loaded by the plans that need them.
    ///
    /// # Errors
    /// `CudaUnavailable` with the reason; `InvalidArgument` for a device that does not exist.
    pub fn new(device: i32) -> Result<Self> {
        let device = Arc::new(Device::open(device)?);
        Ok(Self { device })
    }

    /// The device's number.
    pub(crate) fn ordinal(&self) -> i32 {
        self.device.ordinal()
    }

    /// Two streams for copies to and from pinned memory.
    pub(crate) fn lanes(&self) -> Result<Lanes> {
        Lanes::new(&self.device)
    }

    /// Zeroed memory of the host that the device copies from and to without the host's help.
    pub(crate) fn pinned(&self, bytes: i64) -> Result<Pinned> {
        Pinned::zeroed(&self.device, index(bytes).max(1))
    }

    pub(crate) fn schedule(&self, spec: &Spec, tensors: &[TensorPlan]) -> Result<Schedule> {
        let (bytes, lists) = table::build(spec, tensors, &|kernel| self.device.resident(kernel))?;
        for kernel in kernels::WITHOUT_LISTS {
            self.device.resident(kernel)?;
        }
        // Plans are made outside of captures, so the legacy stream will do.
        let stream = std::ptr::null_mut();
        let schedule = Schedule {
            device: Arc::clone(&self.device),
            table: self.allocate(bytes.len() as i64, stream)?,
            lists,
        };
        // SAFETY: as many bytes on both sides.
        unsafe {
            self.write(
                bytes.as_ptr(),
                schedule.table.data.cast(),
                bytes.len(),
                stream,
            )?
        };
        Ok(schedule)
    }

    /// # Safety
    /// The call was validated; its buffers are valid device memory, its stream belongs to the
    /// device's primary context.
    pub(crate) unsafe fn step(&self, call: &Call<'_>) -> Result<()> {
        let schedule = schedule_of(call.plan)?;
        self.run(call.stream, |run| {
            launch::step(call, &schedule.lists, schedule.table.data, run)
        })
    }

    /// # Safety
    /// As for [`CudaContext::step`].
    pub(crate) unsafe fn compress(&self, codec: &Codec<'_>, stream: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.codec(codec, Direction::Compress, None, stream) }
    }

    /// # Safety
    /// As for [`CudaContext::step`].
    pub(crate) unsafe fn decompress(&self, codec: &Codec<'_>, stream: *mut c_void) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.codec(codec, Direction::Decompress, None, stream) }
    }

    /// # Safety
    /// As for [`CudaContext::step`].
    pub(crate) unsafe fn ema(
        &self,
        plan: &Plan,
        state: usize,
        args: &EmaArgs<'_>,
        stream: *mut c_void,
    ) -> Result<()> {
        let codec = Codec {
            plan,
            state,
            step: args.step,
            values: args.outputs,
            buffers: args.state,
        };
        // SAFETY: the caller's promise.
        unsafe {
            self.codec(&codec, Direction::Decompress, Some(args), stream)?;
            self.codec(&codec, Direction::Compress, None, stream)
        }
    }

    /// # Safety
    /// As for [`CudaContext::step`].
    unsafe fn codec(
        &self,
        codec: &Codec<'_>,
        direction: Direction,
        ema: Option<&EmaArgs<'_>>,
        stream: *mut c_void,
    ) -> Result<()> {
        let schedule = schedule_of(codec.plan)?;
        self.run(stream, |run| {
            let table = schedule.table.data;
            launch::codec(codec, direction, ema, &schedule.lists, table, run)
        })
    }

    /// One stage of the norm.
    ///
    /// # Safety
    /// As for [`CudaContext::step`].
    pub(crate) unsafe fn norm(
        &self,
        plan: &Plan,
        args: &NormArgs<'_>,
        stage: norm::Stage,
        stream: *mut c_void,
    ) -> Result<()> {
        let schedule = schedule_of(plan)?;
        self.run(stream, |run| {
            launch::norm(plan, args, stage, &schedule.lists, schedule.table.data, run)
        })
    }

    /// The norm's end, to device memory.
    ///
    /// # Safety
    /// As for [`CudaContext::step`], also for the two outputs.
    pub(crate) unsafe fn clip(
        &self,
        args: &NormArgs<'_>,
        norm: *mut f32,
        clip_factor: *mut f32,
        stream: *mut c_void,
    ) -> Result<()> {
        self.run(stream, |run| launch::clip(args, norm, clip_factor, run))
    }

    /// Calls `body` with what enqueues work on `stream`.
    fn run(
        &self,
        stream: *mut c_void,
        body: impl FnOnce(&mut dyn FnMut(Work<'_>) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        self.device.with(|active| {
            body(&mut |work| {
                // SAFETY: every kernel takes a `Launch`; the promise of whoever called with
                // pointers and this stream.
                unsafe {
                    match work {
                        Work::Zero { data, bytes } => active.zero(data, bytes, stream),
                        Work::Kernel {
                            kernel,
                            grid,
                            launch,
                        } => active.launch(kernel, grid, launch, stream),
                    }
                }
            })
        })
    }

    /// Zeroed memory; the zeroing is ordered on `stream`.
    pub(crate) fn allocate(&self, bytes: i64, stream: *mut c_void) -> Result<DeviceArena> {
        let bytes = index(bytes).max(1);
        self.device.with(|active| {
            // SAFETY: a stream of the caller's.
            let data = unsafe { active.allocate(bytes, stream)? };
            // SAFETY: memory of this size, made just now.
            if let Err(error) = unsafe { active.zero(data, bytes, stream) } {
                // SAFETY: nobody has the address yet.
                let _ = unsafe { active.free(data, stream) };
                return Err(error);
            }
            Ok(DeviceArena { data })
        })
    }

    /// In the order of `stream`. A failure is dropped: the device is then beyond use anyway.
    pub(crate) fn free(&self, arena: DeviceArena, stream: *mut c_void) {
        let _ = self.device.with(|active| {
            // SAFETY: the arena was made by `allocate` and is consumed here.
            unsafe { active.free(arena.data, stream) }
        });
    }

    /// Waits for all work of the device's primary context.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.device.with(|active| active.synchronize_all())
    }

    /// Enqueues zeroing.
    ///
    /// # Safety
    /// As for [`CudaContext::step`].
    pub(crate) unsafe fn zero(
        &self,
        data: *mut c_void,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.device
            .with(|active| unsafe { active.zero(data, bytes, stream) })
    }

    /// Enqueues a copy within device memory.
    ///
    /// # Safety
    /// As for [`CudaContext::step`].
    pub(crate) unsafe fn copy(
        &self,
        from: *const c_void,
        to: *mut c_void,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.device
            .with(|active| unsafe { active.copy(from, to, bytes, stream) })
    }

    /// # Safety
    /// Both ranges are valid: `from` in device memory, `to` on the host.
    pub(crate) unsafe fn read(
        &self,
        from: *const u8,
        to: *mut u8,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.device
            .with(|active| unsafe { active.read(from, to, bytes, stream) })
    }

    /// # Safety
    /// Both ranges are valid: `from` on the host, `to` in device memory.
    pub(crate) unsafe fn write(
        &self,
        from: *const u8,
        to: *mut u8,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.device
            .with(|active| unsafe { active.write(from, to, bytes, stream) })
    }
}

fn schedule_of(plan: &Plan) -> Result<&Schedule> {
    match &plan.schedule {
        super::Schedule::Cuda(schedule) => Ok(schedule),
        super::Schedule::Cpu(_) => Err(Error::new(Status::Internal, "the plan has a CPU schedule")),
    }
}
