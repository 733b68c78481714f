//! What a kernel is told: the mirror of `cuda/params.cuh`, where the fields are explained. A test
//! compares the layouts.

use std::ffi::c_void;

use crate::numerics::{self, Hyper, inverse_power, power};
use crate::plan::MAX_AXES;
use crate::rng::RoundKeys;
use crate::spec::{Optimizer, Spec};

pub(super) const MAX_STATES: usize = crate::optimizer::MAX_STATES;

// ---- the table ---------------------------------------------------------------------------------

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Codebook {
    pub(super) by_code: [f32; 256],
    pub(super) midpoints: [f32; 256],
    pub(super) levels: i32,
    pub(super) reserved: i32,
}

pub(super) const VALUES: i32 = 1;
pub(super) const CODES: i32 = 2;
pub(super) const FACTORS: i32 = 3;
pub(super) const COVER: i32 = 4;

pub(super) const SUBTRACTIVE_DITHER: i32 = 1;
pub(super) const SCALE_CORRECTION: i32 = 2;

pub(super) const PER_BLOCK: i32 = 0;
pub(super) const PER_TENSOR: i32 = 1;
pub(super) const PER_ROW: i32 = 2;
pub(super) const PER_COLUMN: i32 = 3;
pub(super) const PER_AXES: i32 = 4;

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct State {
    pub(super) kind: i32,
    pub(super) per_byte: i32,
    pub(super) scaling: i32,
    pub(super) block: i32,
    pub(super) rounding: i32,
    pub(super) option: i32,
    pub(super) spacing: f32,
    pub(super) buffer: i32,
    pub(super) codebook: i64,
    pub(super) word: i64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Factor {
    pub(super) word: i64,
    pub(super) sum: i64,
    pub(super) fresh: i64,
    pub(super) count: i64,
    pub(super) axes: u32,
    pub(super) reserved: i32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Tensor {
    pub(super) rows: i64,
    pub(super) cols: i64,
    pub(super) units: i64,
    pub(super) first_col: i64,
    pub(super) param_max: i64,
    pub(super) param_sum: i64,
    pub(super) update_max: i64,
    pub(super) update_sum: i64,
    pub(super) block: i32,
    pub(super) param_dtype: i32,
    pub(super) grad_dtype: i32,
    pub(super) weights: i32,
    pub(super) group: i32,
    pub(super) scalars: i32,
    pub(super) index: i32,
    pub(super) global: i32,
    pub(super) states: i32,
    pub(super) axes: i32,
    pub(super) lead: i32,
    pub(super) hash: u32,
    pub(super) words: i32,
    pub(super) first_row: u32,
    pub(super) tile_rows: i32,
    pub(super) reserved: i32,
    pub(super) shape: [i64; MAX_AXES],
    pub(super) offset: [i64; MAX_AXES],
    pub(super) global_shape: [i64; MAX_AXES],
    pub(super) state: [State; MAX_STATES],
}

/// Pointers of a tensor before those of its states.
pub(super) const STATES: usize = 4;

pub(super) const COLLECT: i32 = 0;
pub(super) const APPLY: i32 = 1;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Segment {
    pub(super) first: i64,
    pub(super) tensor: i32,
    pub(super) kind: i32,
}

/// Types that are bytes to the device.
///
/// # Safety
/// `repr(C)`, without padding or pointers.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: 4-byte fields.
unsafe impl Plain for Codebook {}
// SAFETY: 4 fields of 8 bytes, then 2 of 4.
unsafe impl Plain for Factor {}
// SAFETY: 8-byte fields, 16 fields of 4 bytes, 8-byte fields, then states of 8 and 2 of those.
unsafe impl Plain for Tensor {}
// SAFETY: 16 bytes of fields.
unsafe impl Plain for Segment {}

// ---- the launch --------------------------------------------------------------------------------

/// The scalars of one step for one group.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Scalars {
    pub(super) common: numerics::Scalars,
    pub(super) l2: f32,
    pub(super) inv_bc2: f32,
}

/// Words that the scalars of a group take.
pub(super) const SCALARS_WORDS: usize = size_of::<Scalars>() / 8;

impl Scalars {
    /// What random rounding needs where there is no step: no bias correction, and the usual eps.
    pub(super) fn outside_of_a_step(spec: &Spec) -> Self {
        Self {
            inv_bc2: 1.0,
            ..Self::new(spec, &Hyper::default(), 1)
        }
    }

    /// What `scalars` of the optimizer's rule (`cuda/any.cuh`) makes of the same numbers.
    pub(super) fn new(spec: &Spec, hyper: &Hyper, step: i32) -> Self {
        let mut common = numerics::Scalars::new(hyper, step);
        let coupled = is_coupled(spec);
        if coupled {
            common.lr_wd = 0.0;
        }
        if spec.maximize {
            common.grad_scale = -common.grad_scale;
        }
        if !matches!(
            spec.optimizer,
            Optimizer::Adamw | Optimizer::Adam | Optimizer::None
        ) {
            common.lr_bc1 = hyper.lr;
        }
        if spec.optimizer == Optimizer::Sgdm {
            common.one_minus_beta1 = 1.0 - spec.sgdm.unwrap_or_default().dampening;
        }
        if spec.optimizer == Optimizer::Adafactor {
            let t = step.max(1);
            let options = spec.adafactor.unwrap_or_default();
            let relative = 1.0 / f64::from(t).sqrt();
            if options.relative_step && relative < f64::from(hyper.lr) {
                common.lr_bc1 = relative as f32;
            }
            common.lr_wd = common.lr_bc1 * hyper.weight_decay;
            let forget = inverse_power(t.cast_unsigned(), options.decay_rate) as f32;
            (common.beta2, common.one_minus_beta2) = (1.0 - forget, forget);
        }
        let bc2 = 1.0 - power(hyper.beta2, step.max(1).cast_unsigned());
        Self {
            common,
            l2: if coupled { hyper.weight_decay } else { 0.0 },
            inv_bc2: (1.0 / bc2) as f32,
        }
    }
}

/// Whether weight decay is part of the gradient.
pub(super) fn is_coupled(spec: &Spec) -> bool {
    match spec.optimizer {
        Optimizer::Adam => true,
        Optimizer::Sgdm => !spec.sgdm.unwrap_or_default().decoupled,
        _ => false,
    }
}

pub(super) const COUPLED: i32 = 1;
pub(super) const AMSGRAD: i32 = 2;
pub(super) const MAXIMIZE: i32 = 4;
pub(super) const SKIP_BLOCKS: i32 = 8;
pub(super) const SKIP_GLOBAL: i32 = 16;
pub(super) const SKIP_TENSORS: i32 = 32;
pub(super) const SKIP_STEP: i32 = 64;
pub(super) const UPDATES: i32 = 128;
pub(super) const SKIP_ALL: i32 = 256;
pub(super) const FUSED: i32 = 512;
pub(super) const NESTEROV: i32 = 1024;
pub(super) const RELATIVE_STEP: i32 = 2048;
pub(super) const SCALE_PARAMETER: i32 = 4096;

pub(super) const LAUNCH_WORDS: usize = 4046;

/// The parameters of every kernel: 32 kB, most of it the words.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Launch {
    pub(super) table: *const c_void,
    pub(super) tensors: i64,
    pub(super) segments: i64,
    pub(super) tasks: i64,
    pub(super) hyper: *const f32,
    pub(super) step_number: *const i32,
    pub(super) skipped: *mut i64,
    pub(super) statistics: *mut i32,
    pub(super) ticket: *mut i32,
    pub(super) done: *mut i32,
    pub(super) sums: *mut i64,
    pub(super) fresh: *mut f32,
    pub(super) update_maxima: *mut i32,
    pub(super) update_sums: *mut i64,
    pub(super) keys: RoundKeys,
    pub(super) step: i32,
    pub(super) flags: i32,
    pub(super) groups: i32,
    pub(super) tensor_count: i32,
    pub(super) state: i32,
    pub(super) decay: f32,
    pub(super) weight: f32,
    pub(super) grad_scale: f32,
    pub(super) max_norm: f32,
    pub(super) dampening: f32,
    pub(super) decay_rate: f32,
    pub(super) eps2: f32,
    pub(super) clip_threshold: f32,
    pub(super) norm: *mut f32,
    pub(super) clip_factor: *mut f32,
    pub(super) words: [u64; LAUNCH_WORDS],
}

impl Launch {
    /// Nothing yet but the table.
    pub(super) fn new(table: *const c_void) -> Self {
        Self {
            table,
            tensors: 0,
            segments: 0,
            tasks: 0,
            hyper: std::ptr::null(),
            step_number: std::ptr::null(),
            skipped: std::ptr::null_mut(),
            statistics: std::ptr::null_mut(),
            ticket: std::ptr::null_mut(),
            done: std::ptr::null_mut(),
            sums: std::ptr::null_mut(),
            fresh: std::ptr::null_mut(),
            update_maxima: std::ptr::null_mut(),
            update_sums: std::ptr::null_mut(),
            keys: RoundKeys::default(),
            step: 0,
            flags: 0,
            groups: 0,
            tensor_count: 0,
            state: 0,
            decay: 0.0,
            weight: 0.0,
            grad_scale: 0.0,
            max_norm: 0.0,
            dampening: 0.0,
            decay_rate: 0.0,
            eps2: 0.0,
            clip_threshold: 0.0,
            norm: std::ptr::null_mut(),
            clip_factor: std::ptr::null_mut(),
            words: [0; LAUNCH_WORDS],
        }
    }
}
