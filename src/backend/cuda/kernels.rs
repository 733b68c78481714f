//! The kernels: what was embedded, their names, and which of them a tensor gets.

use std::ffi::CStr;

use crate::dtype::Dtype;
use crate::error::{Error, Result, Status};
use crate::plan::{Format, Scales, TensorPlan};
use crate::quant::{Mapping, Rounding};
use crate::spec::{Normalization, Optimizer, Quantizer, Spec};
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

/// Module and symbol of every kernel: those of [`COMMON`] and [`OTHERS`], then two of each optimizer, then
/// four of each that steps a factored v.
pub(super) const KERNELS: [(&str, &CStr); ANY_FACTORED + 4 * FACTORED.len()] = {
    let mut all = [("", c""); ANY_FACTORED + 4 * FACTORED.len()];
    let mut i = 0;
    while i < OTHER {
        all[i] = COMMON[i / FORMS.len()][i % FORMS.len()];
        i += 1;
    }
    while i < ANY {
        all[i] = OTHERS[i - OTHER];
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

/// The number of the first kernel that is not for common tensors.
const OTHER: usize = COMMON.len() * FORMS.len();

/// Of the first optimizer's kernel.
const ANY: usize = OTHER + OTHERS.len();

/// And of the first one for a factored v.
const ANY_FACTORED: usize = ANY + 2 * OPTIMIZERS.len();

/// The kernels of a module for common tensors of an optimizer, with one form of its states, in the order of
/// [`FORMS`].
macro_rules! common {
    ($module:literal, $optimizer:literal, $states:literal) => {
        common!(
            $module, $optimizer, $states: "f32_f32", "f32_bf16", "bf16_f32", "bf16_bf16", "f16_f32",
            "f16_f16", "bf16stochastic_f32", "bf16stochastic_bf16", "bf16correction8_f32",
            "bf16correction8_bf16"
        )
    };
    ($module:literal, $optimizer:literal, $states:literal: $($form:literal),*) => {
        [$((
            $module,
            symbol(concat!("lowbit_k_", $optimizer, "_", $form, "_", $states, "\0")),
        )),*]
    };
}

#[expect(clippy::panic, reason = "while it is compiled")]
const fn symbol(text: &str) -> &CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(symbol) => symbol,
        Err(_) => panic!("a symbol ends with its only NUL"),
    }
}

/// The kernels for common tensors.
const COMMON: [[(&str, &CStr); FORMS.len()]; 10] = [
    common!("adamw_block4", "adamw", "block4"),
    common!("adamw_f32", "adamw", "f32"),
    common!("adamw_block8", "adamw", "block8"),
    common!("sgdm", "sgdm", "block4"),
    common!("sgdm", "sgdm", "block8"),
    common!("lion", "lion", "block4"),
    common!("lion", "lion", "block8"),
    common!("adamw_factor4", "adamw", "factor4"),
    common!("adamw_rank1", "adamw", "rank1"),
    common!("adamw_rank1_robust", "adamw", "robust"),
];

const OTHERS: [(&str, &CStr); 13] = [
    ("finish", c"lowbit_k_finish"),
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

/// The first kernels of the forms of [`COMMON`].
const ADAMW_BLOCK4: Kernel = Kernel(0);
const ADAMW_F32: Kernel = Kernel(FORMS.len());
const ADAMW_BLOCK8: Kernel = Kernel(2 * FORMS.len());
const SGDM_BLOCK4: Kernel = Kernel(3 * FORMS.len());
const SGDM_BLOCK8: Kernel = Kernel(4 * FORMS.len());
const LION_BLOCK4: Kernel = Kernel(5 * FORMS.len());
const LION_BLOCK8: Kernel = Kernel(6 * FORMS.len());
const ADAMW_FACTOR4: Kernel = Kernel(7 * FORMS.len());
const ADAMW_RANK1: Kernel = Kernel(8 * FORMS.len());
const ADAMW_ROBUST: Kernel = Kernel(9 * FORMS.len());

/// Those of [`OTHERS`].
pub(super) const FINISH: Kernel = Kernel(OTHER);
pub(super) const CLEAR_MAXIMA: Kernel = Kernel(OTHER + 1);
pub(super) const RAISE_MAXIMA: Kernel = Kernel(OTHER + 2);
pub(super) const COMPRESS: Kernel = Kernel(OTHER + 3);
pub(super) const COMPRESS_MEANS: Kernel = Kernel(OTHER + 4);
pub(super) const DECOMPRESS: Kernel = Kernel(OTHER + 5);
pub(super) const NORM_MAX: Kernel = Kernel(OTHER + 6);
pub(super) const NORM_SUM: Kernel = Kernel(OTHER + 7);
pub(super) const NORM_FINISH: Kernel = Kernel(OTHER + 8);
pub(super) const COUNT_STEP: Kernel = Kernel(OTHER + 9);
pub(super) const PLACE: Kernel = Kernel(OTHER + 10);
pub(super) const UPDATE_MAXIMA: Kernel = Kernel(OTHER + 11);
pub(super) const UPDATE_SUMS: Kernel = Kernel(OTHER + 12);

/// Those that plans launch without a list.
pub(super) const WITHOUT_LISTS: [Kernel; 2] = [NORM_FINISH, COUNT_STEP];

/// The blocks that the kernels for common tensors are written for: of 4 bits and f32 (`BLOCK` in
/// common.cuh), and of 8 bits.
const BLOCK: u32 = 128;
const BLOCK8: u32 = 256;

/// Threads of a thread block (`THREADS` in tasks.cuh).
pub(super) const THREADS: u32 = 256;

/// Those that step tensors.
pub(super) fn steps() -> impl Iterator<Item = Kernel> {
    let any = (ANY..ANY_FACTORED).step_by(2);
    let factored = (ANY_FACTORED..KERNELS.len()).step_by(4);
    (0..OTHER).chain(any).chain(factored).map(Kernel)
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
        // Random numbers are drawn by the row in the global tensor, which these kernels count on from the
        // first one's. Boxes with gaps between their rows would take divisions, registers and
        // instructions that whole tensors had to pay for as well.
        let placed = tensor.grid.has_consecutive_rows();
        let common = !spec.amsgrad && (info.weights != Weights::Stochastic || placed);
        let form = FORMS.iter().position(|form| *form == wanted);
        let (Some(form), true) = (form, common) else {
            return any;
        };
        let coded = |state: usize, wanted: Quantizer| {
            let state = &tensor.states[state];
            let block = i64::from(wanted.block);
            // A one-axis tensor under rank-1 has blocks as well.
            let quantizer = Quantizer {
                normalization: Some(Normalization::Block),
                block: wanted.block,
                ..state.quantizer.clone()
            };
            matches!(&state.format, Format::Codes(codes) if codes.scales == Scales::Block(block))
                && tensor.grid.block == block
                && quantizer == wanted
        };
        let coded4 = |state, mapping| coded(state, Quantizer::block(BLOCK, mapping));
        let coded8 = |state, mapping| {
            let codes = Quantizer::codes(8, Normalization::Block, mapping);
            let block = BLOCK8;
            coded(state, Quantizer { block, ..codes })
        };
        let drawn4 = |state, mapping| {
            let drawn = Quantizer {
                rounding: Rounding::Stochastic,
                ..Quantizer::block(BLOCK, mapping)
            };
            placed && coded(state, drawn)
        };
        let in_f32 = || {
            let mut states = tensor.states.iter();
            tensor.grid.block == i64::from(BLOCK) && states.all(|state| state.format == Format::F32)
        };
        let rank_one = |state: usize, mapping| {
            let state = &tensor.states[state];
            matches!(&state.format, Format::Codes(codes) if matches!(codes.scales, Scales::Maxima(_)))
                && state.quantizer == Quantizer::rank1(mapping)
                && tensor.grid.lead.len() + 1 == info.shape.len()
                // Columns are counted in 32 bits.
                && tensor.grid.cols < 1 << 31
        };
        // Rows and columns of the means are those of the grid.
        let factored = |state: usize| {
            let lead = tensor.grid.lead.len();
            let axes: Vec<_> = (0..info.shape.len()).collect();
            let wanted = [&axes[..lead], &axes[lead..], &[]];
            matches!(&tensor.states[state].format, Format::Factored(factors)
                if factors.each_ref().map(|factor| factor.maxima.projection.axes()) == wanted)
        };
        let first = match spec.optimizer {
            Optimizer::Adamw | Optimizer::Adam if in_f32() => ADAMW_F32,
            Optimizer::Adamw | Optimizer::Adam
                if coded4(0, Mapping::De) && coded4(1, Mapping::Linear) =>
            {
                ADAMW_BLOCK4
            }
            Optimizer::Adamw | Optimizer::Adam
                if coded8(0, Mapping::De) && coded8(1, Mapping::De) =>
            {
                ADAMW_BLOCK8
            }
            Optimizer::Adamw | Optimizer::Adam if drawn4(0, Mapping::Nf4) && factored(1) => {
                ADAMW_FACTOR4
            }
            Optimizer::Adamw if coded4(0, Mapping::De) && rank_one(1, Mapping::Linear) => {
                ADAMW_RANK1
            }
            Optimizer::Adamw if drawn4(0, Mapping::Nf4) && rank_one(1, Mapping::Power2) => {
                ADAMW_ROBUST
            }
            Optimizer::Sgdm if drawn4(0, Mapping::Nf4) => SGDM_BLOCK4,
            Optimizer::Sgdm if coded8(0, Mapping::De) => SGDM_BLOCK8,
            Optimizer::Lion if drawn4(0, Mapping::Nf4) => LION_BLOCK4,
            Optimizer::Lion if coded8(0, Mapping::De) => LION_BLOCK8,
            _ => return any,
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
        (ADAMW_RANK1.0..OTHER).contains(&self.0)
    }

    /// Whether rows of whole blocks may be one row to it: nothing lies between them, and where random
    /// numbers ask for the row it is counted by the shape.
    pub(super) fn merges_rows(self) -> bool {
        (0..ADAMW_RANK1.0).contains(&self.0)
    }
}
