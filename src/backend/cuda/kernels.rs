//! The kernels: what was embedded, their names, and which of them a tensor gets.

use std::ffi::CStr;

use crate::error::{Error, Result, Status};
use crate::plan::TensorPlan;
use crate::spec::Spec;

/// The kernels as `build.rs` compiled them.
pub(super) struct Embedded {
    /// CUDA version of the compiler, 12010 for 12.1: what the driver must at least be.
    pub(super) cuda: i32,
    /// Name and PTX, NUL-terminated, of every `.cu` file.
    pub(super) modules: &'static [(&'static str, &'static [u8])],
}

include!(concat!(env!("OUT_DIR"), "/cuda_kernels.rs"));

pub(super) fn embedded() -> Result<Embedded> {
    EMBEDDED.map_err(|reason| Error::new(Status::CudaUnavailable, reason))
}

/// A kernel, by its place in [`KERNELS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kernel(pub(super) usize);

/// Module and symbol of every kernel.
pub(super) const KERNELS: [(&str, &CStr); 3] = [
    ("adamw_any", c"lowbit_k_collect"),
    ("adamw_any", c"lowbit_k_finish"),
    ("adamw_any", c"lowbit_k_adamw_any"),
];

pub(super) const COLLECT: Kernel = Kernel(0);
pub(super) const FINISH: Kernel = Kernel(1);
pub(super) const ANY: Kernel = Kernel(2);

/// Threads of a thread block (`THREADS` in tasks.cuh).
pub(super) const THREADS: u32 = 256;

pub(super) fn all() -> impl Iterator<Item = Kernel> {
    (0..KERNELS.len()).map(Kernel)
}

impl Kernel {
    /// The kernel that steps a tensor.
    pub(super) fn of(_spec: &Spec, _tensor: &TensorPlan) -> Self {
        ANY
    }
}
