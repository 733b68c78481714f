//! Where the work is done. A backend knows plans and raw memory, nothing of handles or files.

pub(crate) mod cpu;
pub(crate) mod cuda;

use std::ffi::c_void;

use crate::codec::EmaArgs;
use crate::error::Result;
use crate::plan::{Pass, Plan, TensorPlan};
use crate::spec::Spec;
use crate::step::StepArgs;

pub(crate) use cpu::Codec;
pub use cpu::{CpuContext, ParallelFor, Variant};
pub use cuda::CudaContext;
pub(crate) use cuda::{Lanes, Mark, Pinned};
pub(crate) use cuda::{device_of as cuda_device_of, probe as probe_cuda};

/// One backend instance.
#[derive(Debug)]
pub enum Context {
    /// Host memory, host threads.
    Cpu(CpuContext),
    /// Memory and streams of one CUDA device.
    Cuda(CudaContext),
}

/// What a backend prepares when a plan is made.
#[derive(Debug)]
pub(crate) enum Schedule {
    Cpu(cpu::Schedule),
    Cuda(Box<cuda::Schedule>),
}

impl Schedule {
    /// Bytes that the backend needs in a step's scratch behind the statistics.
    pub(crate) fn scratch_bytes(&self, tensors: usize) -> usize {
        match self {
            Self::Cpu(_) => 0,
            Self::Cuda(schedule) => schedule.scratch_bytes(tensors),
        }
    }
}

/// One validated call of `step`.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) args: &'a StepArgs<'a>,
    /// `None`: all passes.
    pub(crate) pass: Option<Pass>,
    pub(crate) stream: *mut c_void,
}

/// Zeroed memory of one context.
#[derive(Debug)]
pub(crate) enum Arena {
    Host(cpu::HostArena),
    Device(cuda::DeviceArena),
}

impl Arena {
    pub(crate) fn data(&self) -> *mut c_void {
        match self {
            Self::Host(arena) => arena.data(),
            Self::Device(arena) => arena.data(),
        }
    }
}

impl Context {
    /// Prepares `tensors`, refusing what this backend has no kernel for.
    pub(crate) fn schedule(&self, spec: &Spec, tensors: &[TensorPlan]) -> Result<Schedule> {
        match self {
            Self::Cpu(cpu) => {
                let schedule = cpu::Schedule::new(tensors, cpu.threads());
                Ok(Schedule::Cpu(schedule))
            }
            Self::Cuda(cuda) => {
                let schedule = cuda.schedule(spec, tensors)?;
                Ok(Schedule::Cuda(Box::new(schedule)))
            }
        }
    }

    pub(crate) fn allocate(&self, bytes: i64, stream: *mut c_void) -> Result<Arena> {
        match self {
            Self::Cpu(_) => cpu::HostArena::zeroed(bytes).map(Arena::Host),
            Self::Cuda(cuda) => cuda.allocate(bytes, stream).map(Arena::Device),
        }
    }

    pub(crate) fn free(&self, arena: Arena, stream: *mut c_void) {
        match (self, arena) {
            (Self::Cuda(cuda), Arena::Device(arena)) => cuda.free(arena, stream),
            (_, arena) => drop(arena),
        }
    }

    /// # Safety
    /// As for `Plan::compress`, which has checked the arguments.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub(crate) unsafe fn compress(&self, codec: &Codec<'_>, stream: *mut c_void) -> Result<()> {
        match self {
            Self::Cpu(cpu) => {
                // SAFETY: the caller's promise.
                unsafe { cpu.compress(codec) };
                Ok(())
            }
            // SAFETY: the caller's promise.
            Self::Cuda(cuda) => unsafe { cuda.compress(codec, stream) },
        }
    }

    /// # Safety
    /// As for `Plan::decompress`, which has checked the arguments.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub(crate) unsafe fn decompress(&self, codec: &Codec<'_>, stream: *mut c_void) -> Result<()> {
        match self {
            Self::Cpu(cpu) => {
                // SAFETY: the caller's promise.
                unsafe { cpu.decompress(codec) };
                Ok(())
            }
            // SAFETY: the caller's promise.
            Self::Cuda(cuda) => unsafe { cuda.decompress(codec, stream) },
        }
    }

    /// # Safety
    /// As for `Plan::ema`, which has checked the arguments.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub(crate) unsafe fn ema(
        &self,
        plan: &Plan,
        state: usize,
        args: &EmaArgs<'_>,
        stream: *mut c_void,
    ) -> Result<()> {
        match self {
            Self::Cpu(cpu) => {
                // SAFETY: the caller's promise.
                unsafe { cpu.ema(plan, state, args) };
                Ok(())
            }
            // SAFETY: the caller's promise.
            Self::Cuda(cuda) => unsafe { cuda.ema(plan, state, args, stream) },
        }
    }

    /// Whose memory it works on: a CUDA device's, `None` for the host's.
    pub(crate) fn memory(&self) -> Option<i32> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(cuda) => Some(cuda.ordinal()),
        }
    }

    /// Waits for all work on this context's memory, whatever its stream: for calls off the hot path
    /// that take none.
    pub(crate) fn synchronize(&self) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Cuda(cuda) => cuda.synchronize(),
        }
    }

    /// Zeroes memory of this context, in the order of `stream`.
    ///
    /// # Safety
    /// The range must be valid until the work is done.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub(crate) unsafe fn zero(
        &self,
        data: *mut c_void,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        match self {
            Self::Cpu(_) => {
                // SAFETY: the caller's promise.
                unsafe { data.cast::<u8>().write_bytes(0, bytes) };
                Ok(())
            }
            // SAFETY: the caller's promise.
            Self::Cuda(cuda) => unsafe { cuda.zero(data, bytes, stream) },
        }
    }

    /// Copies within this context's memory, in the order of `stream`.
    ///
    /// # Safety
    /// Both ranges must be valid until the work is done.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub(crate) unsafe fn copy(
        &self,
        from: *const c_void,
        to: *mut c_void,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        match self {
            Self::Cpu(_) => {
                // SAFETY: the caller's promise.
                unsafe { std::ptr::copy(from.cast::<u8>(), to.cast(), bytes) };
                Ok(())
            }
            // SAFETY: the caller's promise.
            Self::Cuda(cuda) => unsafe { cuda.copy(from, to, bytes, stream) },
        }
    }

    /// Copies `bytes` from `from` in this context's memory to host memory at `to`.
    /// Synchronises `stream`.
    ///
    /// # Safety
    /// Both ranges must be valid.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub(crate) unsafe fn read(
        &self,
        from: *const u8,
        to: *mut u8,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        match self {
            Self::Cpu(_) => {
                // SAFETY: the caller's promise.
                unsafe { std::ptr::copy(from, to, bytes) };
                Ok(())
            }
            // SAFETY: the caller's promise.
            Self::Cuda(cuda) => unsafe { cuda.read(from, to, bytes, stream) },
        }
    }

    /// Copies host memory into this context's memory. Synchronises `stream`.
    ///
    /// # Safety
    /// Both ranges must be valid.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub(crate) unsafe fn write(
        &self,
        from: *const u8,
        to: *mut u8,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        match self {
            Self::Cpu(_) => {
                // SAFETY: the caller's promise.
                unsafe { std::ptr::copy(from, to, bytes) };
                Ok(())
            }
            // SAFETY: the caller's promise.
            Self::Cuda(cuda) => unsafe { cuda.write(from, to, bytes, stream) },
        }
    }
}
