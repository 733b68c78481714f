//! The arithmetic that every backend shares: scalars of a step, canonical NaN, the floating-point
//! environment. IEEE-754 binary32, round to nearest even, `fma` exactly where written, no libm.

mod exact_sum;
mod fp_env;
mod transcendental;

pub(crate) use exact_sum::{Exponent, Limbs, Unit};
pub(crate) use fp_env::FpEnv;
pub(crate) use transcendental::{exp2, inverse_power, log2};

/// The NaN that is stored: what every f32 operation of an NVIDIA GPU returns (PTX ISA, "NaN
/// payloads are not preserved"). CPUs keep payloads, so they canonicalise before a store.
pub(crate) const NAN_BITS: u32 = 0x7fff_ffff;

/// Bits of +infinity; as integers, the magnitudes of all finite values are below it.
pub(crate) const INF_BITS: u32 = 0x7f80_0000;

/// `x`, with any NaN replaced by the canonical one.
#[inline(always)]
pub(crate) fn canonical(x: f32) -> f32 {
    if x.is_nan() {
        f32::from_bits(NAN_BITS)
    } else {
        x
    }
}

/// Magnitude as an integer: ordered like `|x|` for finite values, then infinity, then NaN (made
/// canonical by [`canonical_magnitude`]). Maxima of these do not depend on order.
#[inline(always)]
pub(crate) fn magnitude(x: f32) -> i32 {
    (x.to_bits() & 0x7fff_ffff).cast_signed()
}

/// A reduced magnitude with every NaN made the canonical one.
#[inline(always)]
pub(crate) fn canonical_magnitude(bits: i32) -> i32 {
    if bits > INF_BITS.cast_signed() {
        NAN_BITS.cast_signed()
    } else {
        bits
    }
}

/// `beta^t` by binary powering in f64: multiplications only, the same on host and device.
#[must_use]
pub fn power(beta: f32, t: u32) -> f64 {
    let (mut result, mut base, mut t) = (1.0_f64, f64::from(beta), t);
    while t != 0 {
        if t & 1 == 1 {
            result *= base;
        }
        base *= base;
        t >>= 1;
    }
    result
}

/// The hyper-parameters of one step as the caller gives them.
///
/// In memory (host or device) they are [`Hyper::COUNT`] f32 values in this order, so that a
/// trainer can keep them beside its tensors; the step number is a separate i32.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Hyper {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay; multiplied by the learning rate.
    pub weight_decay: f32,
    /// Gradients are multiplied by this (1 / loss scale).
    pub grad_scale: f32,
    /// And by this (clipping by global norm).
    pub clip_factor: f32,
    /// Non-zero: the whole step changes nothing.
    pub skip: f32,
}

impl Hyper {
    /// How many f32 values the block in memory has.
    pub const COUNT: usize = 8;
}

impl Default for Hyper {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            grad_scale: 1.0,
            clip_factor: 1.0,
            skip: 0.0,
        }
    }
}

/// What an element's update needs, computed once a step.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scalars {
    /// Decay of the first moment.
    pub beta1: f32,
    /// `RN(1 - beta1)`, exact for `beta1 >= 1/2`.
    pub one_minus_beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// `RN(1 - beta2)`.
    pub one_minus_beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// `RN(lr / (1 - beta1^t))`, divided in f64.
    pub lr_bc1: f32,
    /// `RN(lr weight_decay)`.
    pub lr_wd: f32,
    /// `RN(1 / sqrt(1 - beta2^t))`, root and quotient in f64.
    pub inv_sqrt_bc2: f32,
    /// `RN(grad_scale clip_factor)`.
    pub grad_scale: f32,
    /// Non-zero: the step changes nothing.
    pub skip: i32,
}

impl Scalars {
    /// The scalars of step `t` (counted from 1; anything below counts as 1).
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the rounding to f32 is the definition"
    )]
    pub fn new(hyper: &Hyper, t: i32) -> Self {
        let t = t.max(1).cast_unsigned();
        let bc1 = 1.0 - power(hyper.beta1, t);
        let bc2 = 1.0 - power(hyper.beta2, t);
        Self {
            beta1: hyper.beta1,
            one_minus_beta1: 1.0 - hyper.beta1,
            beta2: hyper.beta2,
            one_minus_beta2: 1.0 - hyper.beta2,
            eps: hyper.eps,
            lr_bc1: (f64::from(hyper.lr) / bc1) as f32,
            lr_wd: hyper.lr * hyper.weight_decay,
            inv_sqrt_bc2: (1.0 / bc2.sqrt()) as f32,
            grad_scale: hyper.grad_scale * hyper.clip_factor,
            skip: i32::from(hyper.skip != 0.0),
        }
    }
}
