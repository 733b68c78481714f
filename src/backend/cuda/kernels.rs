//! Which kernel a tensor gets, with which launch shape and parameters. Pure functions: the tests
//! run the same launches on the host (`emulation.rs`).

use std::ffi::{CStr, c_void};

use super::params::AdamwParams;
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status, unsupported};
use crate::layout::div_ceil;
use crate::numerics::Scalars;
use crate::plan::{Format, TensorPlan};
use crate::quant::Mapping;
use crate::spec::Quantizer;
use crate::step::{HyperSource, NonFinite, StepArgs};
use crate::weights::Weights;

// ---- what was embedded -------------------------------------------------------------------------

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

// ---- the kernels -------------------------------------------------------------------------------

/// A kernel, by its place in [`KERNELS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kernel(pub(super) usize);

/// Module and symbol of every kernel. The bits of an index are: f32 states; bf16 parameter; bf16
/// gradient.
pub(super) const KERNELS: [(&str, &CStr); 8] = [
    ("adamw_block4", c"lowbit_k_adamw_f32_f32_block4"),
    ("adamw_block4", c"lowbit_k_adamw_f32_bf16_block4"),
    ("adamw_block4", c"lowbit_k_adamw_bf16_f32_block4"),
    ("adamw_block4", c"lowbit_k_adamw_bf16_bf16_block4"),
    ("adamw_f32", c"lowbit_k_adamw_f32_f32_f32"),
    ("adamw_f32", c"lowbit_k_adamw_f32_bf16_f32"),
    ("adamw_f32", c"lowbit_k_adamw_bf16_f32_f32"),
    ("adamw_f32", c"lowbit_k_adamw_bf16_bf16_f32"),
];

/// The block that the kernels are written for (`BLOCK` in adamw.cuh).
const BLOCK: i64 = 128;

/// Threads of a thread block (`THREADS` in adamw.cuh).
pub(super) const THREADS: u32 = 256;

/// Blocks of elements that a thread block has at once: one per warp.
const UNITS: i64 = THREADS as i64 / 32;

impl Kernel {
    /// The kernel for the states of an AdamW tensor.
    fn of(tensor: &TensorPlan) -> Result<Self> {
        let info = &tensor.info;
        for dtype in [info.param_dtype, info.grad_dtype] {
            if dtype == Dtype::F16 {
                return Err(unsupported(format!(
                    "tensor {:?} has f16 values, for which this version has no CUDA kernel",
                    info.name
                )));
            }
        }
        if info.weights != Weights::Plain {
            return Err(unsupported(format!(
                "tensor {:?} has weights {}, for which this version has no CUDA kernel",
                info.name,
                info.weights.name()
            )));
        }
        let kept = [0, 1].map(|i| &tensor.states[i]);
        let coded = |i: usize, mapping| {
            matches!(kept[i].format, Format::Codes(_))
                && kept[i].quantizer == Quantizer::block(128, mapping)
        };
        let f32_states = if kept.iter().all(|state| state.format == Format::F32) {
            true
        } else if coded(0, Mapping::De) && coded(1, Mapping::Linear) {
            false
        } else {
            return Err(unsupported(format!(
                "tensor {:?} has m {} and v {}; this version has CUDA kernels for m 4-bit \
                 block(128)/de with v 4-bit block(128)/linear, and for f32 states",
                info.name,
                kept[0].describe(),
                kept[1].describe()
            )));
        };
        let bf16 = |dtype| usize::from(dtype == Dtype::Bf16);
        let (param, grad) = (bf16(tensor.info.param_dtype), bf16(tensor.info.grad_dtype));
        Ok(Self(4 * usize::from(f32_states) + 2 * param + grad))
    }
}

// ---- launches ----------------------------------------------------------------------------------

/// The part of a tensor's launch that is the same in every step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    pub(super) kernel: Kernel,
    /// Thread blocks.
    pub(super) grid: u32,
    rows: i64,
    cols: i64,
    blocks: i64,
}

impl Launch {
    /// `resident` says how many thread blocks of a kernel the device holds at once. There is
    /// always one, as it also counts a skipped tensor.
    pub(super) fn new(tensor: &TensorPlan, resident: impl Fn(Kernel) -> u32) -> Result<Self> {
        let kernel = Kernel::of(tensor)?;
        let grid = &tensor.grid;
        // Rows of whole blocks are one row to the kernel: nothing lies between them.
        let (rows, cols) = if grid.cols % BLOCK == 0 {
            (1, grid.rows * grid.cols)
        } else {
            (grid.rows, grid.cols)
        };
        let blocks = div_ceil(cols, BLOCK);
        let most = i64::from(resident(kernel)).max(1);
        let wanted = div_ceil(rows * blocks, UNITS).clamp(1, most);
        Ok(Self {
            kernel,
            grid: u32::try_from(wanted).unwrap_or(u32::MAX),
            rows,
            cols,
            blocks,
        })
    }

    /// The parameters of one step's launch for `tensor`, the `index`th of its plan.
    pub(super) fn params(
        &self,
        tensor: &TensorPlan,
        index: usize,
        args: &StepArgs<'_>,
        scalars: &Scalars,
    ) -> AdamwParams {
        let state = |part: usize| args.state[tensor.first_buffer + part].data;
        let v = tensor.states[1].first_buffer;
        let coded = tensor.states[0].format != Format::F32;
        let scales = |part: usize| {
            if coded {
                state(part + 1)
            } else {
                std::ptr::null_mut()
            }
        };
        let (hyper, step) = match args.hyper {
            HyperSource::Host(..) => (std::ptr::null(), std::ptr::null()),
            HyperSource::Memory { hyper, step } => (hyper, step),
        };
        let mut params = AdamwParams {
            param: args.params[index].data,
            grad: args.grads[index].data,
            update: args
                .updates
                .map_or(std::ptr::null_mut(), |updates| updates[index].data),
            m: state(0),
            v: state(v),
            m_scales: scales(0),
            v_scales: scales(v),
            hyper,
            step,
            skipped: args.skipped,
            rows: self.rows,
            cols: self.cols,
            blocks: self.blocks,
            scalars: *scalars,
            skip_blocks: i32::from(args.nonfinite != NonFinite::Propagate),
            wide: 0,
        };
        params.wide = i32::from(self.wide(tensor, &params));
        params
    }

    /// Whether four elements at a column that is a multiple of four are aligned in every row.
    fn wide(&self, tensor: &TensorPlan, params: &AdamwParams) -> bool {
        let multiple = |data: *const c_void, bytes| (data as usize).is_multiple_of(bytes);
        let param = 4 * tensor.info.param_dtype.size();
        let grad = 4 * tensor.info.grad_dtype.size();
        let state = match tensor.states[0].format {
            Format::F32 => 4 * Dtype::F32.size(),
            // Two bytes of codes.
            _ => 2,
        };
        (self.rows == 1 || self.cols % 4 == 0)
            && multiple(params.param, param)
            && multiple(params.update, param)
            && multiple(params.grad, grad)
            && multiple(params.m, state)
            && multiple(params.v, state)
    }
}

/// Refuses what a step's arguments ask for and no kernel does.
pub(super) fn check(args: &StepArgs<'_>) -> Result<()> {
    match args.nonfinite {
        NonFinite::Default | NonFinite::SkipBlock | NonFinite::Propagate => Ok(()),
        NonFinite::SkipTensor | NonFinite::SkipStep => Err(unsupported(
            "nonfinite is SKIP_TENSOR or SKIP_STEP, for which this version has no CUDA kernel; \
             use DEFAULT, SKIP_BLOCK or PROPAGATE",
        )),
    }
}
