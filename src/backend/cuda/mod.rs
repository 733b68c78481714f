//! The CUDA backend: one device's primary context, its kernels, work enqueued on the caller's
//! stream.
//!
//! `driver.rs` speaks to the driver, `kernels.rs` decides what is launched, `params.rs` is what a
//! kernel is told; the kernels are in `cuda/`. A step launches and returns: it never allocates,
//! copies, waits, loads or changes the caller's current context, so it can be captured in a graph.

#![expect(unsafe_code, reason = "calls the driver with device pointers")]

mod driver;
#[cfg(test)]
mod emulation;
mod kernels;
mod params;

use std::ffi::c_void;

use crate::error::{Error, Result, Status, unsupported};
use crate::layout::index;
use crate::numerics::{FpEnv, Hyper, Scalars};
use crate::plan::{Pass, TensorPlan};
use crate::spec::{Optimizer, Spec};
use crate::step::HyperSource;

use super::Call;
use driver::Device;
use kernels::Launch;

/// Whether a device can be used; does not make a context on it.
///
/// # Errors
/// `CudaUnavailable` with the reason; `InvalidArgument` for a device that does not exist.
pub(crate) fn probe(device: i32) -> Result<()> {
    driver::find(device).map(drop)
}

/// One CUDA device.
#[derive(Debug)]
pub struct CudaContext {
    device: Device,
}

/// One launch per tensor.
#[derive(Debug)]
pub(crate) struct Schedule {
    launches: Vec<Launch>,
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
    /// Opens a device: its primary context, with all kernels loaded.
    ///
    /// # Errors
    /// `CudaUnavailable` with the reason; `InvalidArgument` for a device that does not exist.
    pub fn new(device: i32) -> Result<Self> {
        Device::open(device).map(|device| Self { device })
    }

    pub(crate) fn schedule(&self, spec: &Spec, tensors: &[TensorPlan]) -> Result<Schedule> {
        schedule(spec, tensors, |kernel| self.device.resident(kernel))
    }

    /// # Safety
    /// The call was validated; its buffers are valid device memory, its stream belongs to the
    /// device's primary context.
    pub(crate) unsafe fn step(&self, call: &Call<'_>) -> Result<()> {
        let (plan, args) = (call.plan, call.args);
        kernels::check(args)?;
        let super::Schedule::Cuda(schedule) = &plan.schedule else {
            return Err(Error::new(Status::Internal, "the plan has a CPU schedule"));
        };
        let scalars = scalars(&args.hyper);
        self.device.with(|active| {
            if call.pass == Some(Pass::Maxima) {
                // No kernel reads the statistics, but a trainer that reduces them does.
                // SAFETY: the size was checked; the caller's promise.
                return unsafe {
                    active.zero(args.scratch.data, 4 * plan.scratch.maxima, call.stream)
                };
            }
            for (i, (launch, tensor)) in schedule.launches.iter().zip(&plan.tensors).enumerate() {
                let params = launch.params(tensor, i, args, &scalars);
                // SAFETY: every AdamW kernel takes these parameters; the caller's promise.
                unsafe { active.launch(launch.kernel, launch.grid, params, call.stream) }?;
            }
            Ok(())
        })
    }

    /// Zeroed memory; the zeroing is ordered on `stream`.
    pub(crate) fn allocate(&self, bytes: i64, stream: *mut c_void) -> Result<DeviceArena> {
        let bytes = index(bytes).max(1);
        self.device.with(|active| {
            let data = active.allocate(bytes)?;
            // SAFETY: memory of this size, made just now.
            if let Err(error) = unsafe { active.zero(data, bytes, stream) } {
                // SAFETY: nobody has the address yet.
                let _ = unsafe { active.free(data, stream) };
                return Err(error);
            }
            Ok(DeviceArena { data })
        })
    }

    /// Synchronises `stream`. A failure is dropped: the device is then beyond use anyway.
    pub(crate) fn free(&self, arena: DeviceArena, stream: *mut c_void) {
        let _ = self.device.with(|active| {
            // SAFETY: the arena was made by `allocate` and is consumed here.
            unsafe { active.free(arena.data, stream) }
        });
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

fn schedule(
    spec: &Spec,
    tensors: &[TensorPlan],
    resident: impl Fn(kernels::Kernel) -> u32,
) -> Result<Schedule> {
    if spec.optimizer != Optimizer::Adamw || spec.amsgrad || spec.maximize {
        return Err(unsupported(format!(
            "this version has CUDA kernels for adamw without amsgrad and maximize, none for {}{}{}",
            spec.optimizer.name(),
            if spec.amsgrad { " with amsgrad" } else { "" },
            if spec.maximize { " with maximize" } else { "" },
        )));
    }
    if tensors.iter().any(|tensor| tensor.info.group > 0) {
        return Err(unsupported(
            "this version's CUDA kernels take one group of hyper-parameters",
        ));
    }
    let launches = tensors
        .iter()
        .map(|tensor| Launch::new(tensor, &resident))
        .collect::<Result<_>>()?;
    Ok(Schedule { launches })
}

/// The scalars of a step by value; what it says is not used where they are in device memory.
fn scalars(source: &HyperSource<'_>) -> Scalars {
    let _env = FpEnv::ieee();
    match *source {
        HyperSource::Host(groups, step) => Scalars::new(&groups[0], step),
        HyperSource::Memory { .. } => Scalars::new(&Hyper::default(), 1),
    }
}
