//! The kernels: what was embedded, their names, and which of them a tensor gets.

use std::ffi::CStr;

use crate::dtype::Dtype;
use crate::error::{Error, Result, Status};
use crate::plan::{Format, Scales, TensorPlan};
use crate::quant::Mapping;
use crate::spec::{Optimizer, Quantizer, Spec};
use crate::weights::Weights;

/// The kernels as `build.rs` compiled them.
pub(super) struct Embedded {
    /// CUDA version of the compiler, 12010 for 12.1: what the driver must at least be.
    pub(super) cuda: i32,
    /// Every `.cu` file.
    pub(super) modules: &'static [Module],
}

/// What was made of one `.cu` file, all of it deflated.
#[derive(Clone, Copy)]
pub(super) struct Module {
    pub(super) name: &'static str,
    /// NUL-terminated PTX for the oldest architecture.
    pub(super) ptx: &'static [u8],
    /// Code for architectures, 90 for 9.0.
    pub(super) images: &'static [(u32, &'static [u8])],
}

impl Module {
    /// What a device loads fastest: code for its own major architecture, the newest that is not
    /// newer than it, else PTX, which its driver compiles.
    pub(super) fn image(&self, capability: (i32, i32)) -> Result<Vec<u8>> {
        let (major, minor) = (capability.0.unsigned_abs(), capability.1.unsigned_abs());
        let fits = |number: &u32| number / 10 == major && number % 10 <= minor;
        let images = self.images.iter().filter(|(number, _)| fits(number));
        let deflated = images
            .max_by_key(|(number, _)| number)
            .map_or(self.ptx, |(_, image)| *image);
        miniz_oxide::inflate::decompress_to_vec(deflated).map_err(|error| {
            let text = format!("the embedded kernels {} are damaged: {error}", self.name);
            Error::new(Status::Internal, text)
        })
    }
}

include!(concat!(env!("OUT_DIR"), "/cuda_kernels.rs"));

pub(super) fn embedded() -> Result<Embedded> {
    EMBEDDED.map_err(|reason| Error::new(Status::CudaUnavailable, reason))
}

/// A kernel, by its place in [`KERNELS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kernel(pub(super) usize);

/// The optimizers: who has it, its module, its kernels that step any tensor and that collect
/// statistics.
const OPTIMIZERS: [(&[Optimizer], &str, [&CStr; 2]); 4] = [
    (
        &[Optimizer::Adamw, Optimizer::Adam],
        "adamw_any",
        [c"lowbit_k_adamw_any", c"lowbit_k_adamw_collect"],
    ),
    (
        &[Optimizer::Sgdm],
        "sgdm",
        [c"lowbit_k_sgdm", c"lowbit_k_sgdm_collect"],
    ),
    (
        &[Optimizer::Lion],
        "lion",
        [c"lowbit_k_lion", c"lowbit_k_lion_collect"],
    ),
    (
        &[Optimizer::Sm3],
        "sm3",
        [c"lowbit_k_sm3", c"lowbit_k_sm3_collect"],
    ),
];

/// The optimizers that step tensors with a factored v: who does, the module, and the kernels in the
/// order of [`FactoredKernels`]. Adafactor's step all its tensors.
const FACTORED: [(&[Optimizer], &str, [&CStr; 4]); 2] = [
    (
        &[Optimizer::Adamw, Optimizer::Adam],
        "adamw_factored",
        [
            c"lowbit_k_adamw_factored",
            c"lowbit_k_adamw_factored_collect",
            c"lowbit_k_adamw_factored_sum",
            c"lowbit_k_adamw_factored_refresh",
        ],
    ),
    (
        &[Optimizer::Adafactor],
        "adafactor",
        [
            c"lowbit_k_adafactor",
            c"lowbit_k_adafactor_collect",
            c"lowbit_k_adafactor_sum",
            c"lowbit_k_adafactor_refresh",
        ],
    ),
];

/// Module and symbol of every kernel: those of [`COMMON`], then two of each optimizer, then four of each
/// that steps a factored v.
pub(super) const KERNELS: [(&str, &CStr); ANY_FACTORED + 4 * FACTORED.len()] = {
    let mut all = [("", c""); ANY_FACTORED + 4 * FACTORED.len()];
    let mut i = 0;
    while i < ANY {
        all[i] = COMMON[i];
        i += 1;
    }
    while i < ANY_FACTORED {
        let (_, module, kernels) = OPTIMIZERS[(i - ANY) / 2];
        all[i] = (module, kernels[(i - ANY) % 2]);
        i += 1;
    }
    while i < all.len() {
        let (_, module, kernels) = FACTORED[(i - ANY_FACTORED) / 4];
        all[i] = (module, kernels[(i - ANY_FACTORED) % 4]);
        i += 1;
    }
    all
};

/// The number of the first optimizer's kernel.
const ANY: usize = COMMON.len();

/// And of the first one for a factored v.
const ANY_FACTORED: usize = ANY + 2 * OPTIMIZERS.len();

/// All other kernels. Those for common tensors come in groups, one for each form of the states, in the
/// order of [`FORMS`].
const COMMON: [(&str, &CStr); 43] = [
    ("finish", c"lowbit_k_finish"),
    ("adamw_block4", c"lowbit_k_adamw_f32_f32_block4"),
    ("adamw_block4", c"lowbit_k_adamw_f32_bf16_block4"),
    ("adamw_block4", c"lowbit_k_adamw_bf16_f32_block4"),
    ("adamw_block4", c"lowbit_k_adamw_bf16_bf16_block4"),
    ("adamw_block4", c"lowbit_k_adamw_f16_f32_block4"),
    ("adamw_block4", c"lowbit_k_adamw_f16_f16_block4"),
    ("adamw_block4", c"lowbit_k_adamw_bf16stochastic_f32_block4"),
    ("adamw_block4", c"lowbit_k_adamw_bf16stochastic_bf16_block4"),
    ("adamw_block4", c"lowbit_k_adamw_bf16correction8_f32_block4"),
    (
        "adamw_block4",
        c"lowbit_k_adamw_bf16correction8_bf16_block4",
    ),
    ("adamw_f32", c"lowbit_k_adamw_f32_f32_f32"),
    ("adamw_f32", c"lowbit_k_adamw_f32_bf16_f32"),
    ("adamw_f32", c"lowbit_k_adamw_bf16_f32_f32"),
    ("adamw_f32", c"lowbit_k_adamw_bf16_bf16_f32"),
    ("adamw_f32", c"lowbit_k_adamw_f16_f32_f32"),
    ("adamw_f32", c"lowbit_k_adamw_f16_f16_f32"),
    ("adamw_f32", c"lowbit_k_adamw_bf16stochastic_f32_f32"),
    ("adamw_f32", c"lowbit_k_adamw_bf16stochastic_bf16_f32"),
    ("adamw_f32", c"lowbit_k_adamw_bf16correction8_f32_f32"),
    ("adamw_f32", c"lowbit_k_adamw_bf16correction8_bf16_f32"),
    ("adamw_rank1", c"lowbit_k_adamw_f32_f32_rank1"),
    ("adamw_rank1", c"lowbit_k_adamw_f32_bf16_rank1"),
    ("adamw_rank1", c"lowbit_k_adamw_bf16_f32_rank1"),
    ("adamw_rank1", c"lowbit_k_adamw_bf16_bf16_rank1"),
    ("adamw_rank1", c"lowbit_k_adamw_f16_f32_rank1"),
    ("adamw_rank1", c"lowbit_k_adamw_f16_f16_rank1"),
    ("adamw_rank1", c"lowbit_k_adamw_bf16stochastic_f32_rank1"),
    ("adamw_rank1", c"lowbit_k_adamw_bf16stochastic_bf16_rank1"),
    ("adamw_rank1", c"lowbit_k_adamw_bf16correction8_f32_rank1"),
    ("adamw_rank1", c"lowbit_k_adamw_bf16correction8_bf16_rank1"),
    ("codec", c"lowbit_k_clear_maxima"),
    ("codec", c"lowbit_k_raise_maxima"),
    ("codec", c"lowbit_k_compress"),
    ("codec", c"lowbit_k_compress_means"),
    ("codec", c"lowbit_k_decompress"),
    ("norm", c"lowbit_k_norm_max"),
    ("norm", c"lowbit_k_norm_sum"),
    ("norm", c"lowbit_k_norm_finish"),
    ("norm", c"lowbit_k_count_step"),
    ("place", c"lowbit_k_place"),
    ("adafactor", c"lowbit_k_adafactor_update_maxima"),
    ("adafactor", c"lowbit_k_adafactor_update_sums"),
];

/// Parameters, what is kept beside them, and gradients of the kernels for common tensors.
pub(super) const FORMS: [(Dtype, Weights, Dtype); 10] = [
    (Dtype::F32, Weights::Plain, Dtype::F32),
    (Dtype::F32, Weights::Plain, Dtype::Bf16),
    (Dtype::Bf16, Weights::Plain, Dtype::F32),
    (Dtype::Bf16, Weights::Plain, Dtype::Bf16),
    (Dtype::F16, Weights::Plain, Dtype::F32),
    (Dtype::F16, Weights::Plain, Dtype::F16),
    (Dtype::Bf16, Weights::Stochastic, Dtype::F32),
    (Dtype::Bf16, Weights::Stochastic, Dtype::Bf16),
    (Dtype::Bf16, Weights::Correction8, Dtype::F32),
    (Dtype::Bf16, Weights::Correction8, Dtype::Bf16),
];

pub(super) const FINISH: Kernel = Kernel(0);
const BLOCK4: Kernel = Kernel(1);
const F32: Kernel = Kernel(BLOCK4.0 + FORMS.len());
const RANK1: Kernel = Kernel(F32.0 + FORMS.len());
pub(super) const CLEAR_MAXIMA: Kernel = Kernel(RANK1.0 + FORMS.len());
pub(super) const RAISE_MAXIMA: Kernel = Kernel(CLEAR_MAXIMA.0 + 1);
pub(super) const COMPRESS: Kernel = Kernel(RAISE_MAXIMA.0 + 1);
pub(super) const COMPRESS_MEANS: Kernel = Kernel(COMPRESS.0 + 1);
pub(super) const DECOMPRESS: Kernel = Kernel(COMPRESS_MEANS.0 + 1);
pub(super) const NORM_MAX: Kernel = Kernel(DECOMPRESS.0 + 1);
pub(super) const NORM_SUM: Kernel = Kernel(NORM_MAX.0 + 1);
pub(super) const NORM_FINISH: Kernel = Kernel(NORM_SUM.0 + 1);
pub(super) const COUNT_STEP: Kernel = Kernel(NORM_FINISH.0 + 1);
pub(super) const PLACE: Kernel = Kernel(COUNT_STEP.0 + 1);
pub(super) const UPDATE_MAXIMA: Kernel = Kernel(PLACE.0 + 1);
pub(super) const UPDATE_SUMS: Kernel = Kernel(UPDATE_MAXIMA.0 + 1);

/// Those that plans launch without a list.
pub(super) const WITHOUT_LISTS: [Kernel; 2] = [NORM_FINISH, COUNT_STEP];

/// The block that the kernels for common tensors are written for (`BLOCK` in adamw.cuh).
const BLOCK: i64 = 128;

/// Threads of a thread block (`THREADS` in tasks.cuh).
pub(super) const THREADS: u32 = 256;

/// Those that step tensors.
pub(super) fn steps() -> impl Iterator<Item = Kernel> {
    let any = (ANY..ANY_FACTORED).step_by(2);
    let factored = (ANY_FACTORED..KERNELS.len()).step_by(4);
    (BLOCK4.0..CLEAR_MAXIMA.0)
        .chain(any)
        .chain(factored)
        .map(Kernel)
}

/// The kernels of an optimizer for tensors with a factored v.
#[derive(Clone, Copy)]
pub(super) struct FactoredKernels {
    pub(super) step: Kernel,
    /// Finds the largest squares, and what other statistics a tensor needs.
    pub(super) collect: Kernel,
    pub(super) sum: Kernel,
    /// Makes the new means.
    pub(super) refresh: Kernel,
}

impl FactoredKernels {
    /// `None`: there are none.
    pub(super) fn of(optimizer: Optimizer) -> Option<Self> {
        let row = FACTORED
            .iter()
            .position(|(whose, ..)| whose.contains(&optimizer))?;
        let [step, collect, sum, refresh] =
            [0, 1, 2, 3].map(|which| Kernel(ANY_FACTORED + 4 * row + which));
        Some(Self {
            step,
            collect,
            sum,
            refresh,
        })
    }
}

impl Kernel {
    /// The kernels of an optimizer for any tensor: what steps, what collects. `None`: there are none.
    pub(super) fn any(optimizer: Optimizer) -> Option<[Self; 2]> {
        let row = OPTIMIZERS
            .iter()
            .position(|(whose, ..)| whose.contains(&optimizer));
        match row {
            Some(row) => Some([0, 1].map(|which| Self(ANY + 2 * row + which))),
            None => FactoredKernels::of(optimizer).map(|kernels| [kernels.step, kernels.collect]),
        }
    }

    /// The kernel that steps a tensor; `any` takes all.
    pub(super) fn of(spec: &Spec, tensor: &TensorPlan, any: Self) -> Self {
        let info = &tensor.info;
        let wanted = (info.param_dtype, info.weights, info.grad_dtype);
        let common = matches!(spec.optimizer, Optimizer::Adamw | Optimizer::Adam)
            && !spec.amsgrad
            && tensor.grid.block == BLOCK
            // They draw random numbers by the place in the tensor at hand.
            && (info.weights != Weights::Stochastic || info.shape == tensor.global_shape);
        let form = FORMS.iter().position(|form| *form == wanted);
        let (Some(form), true) = (form, common) else {
            return any;
        };
        // A one-axis tensor under rank-1 has blocks of 128 as well.
        let coded = |state: usize, mapping| {
            let state = &tensor.states[state];
            let plain = Quantizer::block(128, mapping);
            matches!(&state.format, Format::Codes(codes) if codes.scales == Scales::Block(BLOCK))
                && state.quantizer.in_blocks() == plain
        };
        let first = if tensor
            .states
            .iter()
            .all(|state| state.format == Format::F32)
        {
            F32
        } else if coded(0, Mapping::De) && coded(1, Mapping::Linear) {
            BLOCK4
        } else if spec.optimizer == Optimizer::Adamw
            && coded(0, Mapping::De)
            && tensor.states[1].quantizer == Quantizer::rank1(Mapping::Linear)
            && tensor.grid.lead.len() + 1 == info.shape.len()
        {
            RANK1
        } else {
            return any;
        };
        Self(first.0 + form)
    }

    /// Whether it makes the new means of factors.
    pub(super) fn refreshes(self) -> bool {
        self.0 >= ANY_FACTORED && (self.0 - ANY_FACTORED) % 4 == 3
    }

    /// Whether its tasks are tiles: the statistics of tensors with exact sums.
    pub(super) fn takes_tiles(self) -> bool {
        [UPDATE_MAXIMA, UPDATE_SUMS].contains(&self)
            || (self.0 >= ANY_FACTORED && [1, 2].contains(&((self.0 - ANY_FACTORED) % 4)))
    }

    /// Whether it collects statistics and applies them in one launch.
    pub(super) fn is_fused(self) -> bool {
        (RANK1.0..CLEAR_MAXIMA.0).contains(&self.0)
    }

    /// Whether rows of whole blocks may be one row to it: nothing lies between them, and it asks
    /// for no place in the global tensor.
    pub(super) fn merges_rows(self) -> bool {
        (BLOCK4.0..RANK1.0).contains(&self.0)
    }
}
