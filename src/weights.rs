//! Weight forms: what is kept beside a 16-bit parameter so that small updates are not lost.
//! theta is the f32 value that a step updates; b is the parameter, theta rounded.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::dtype::Dtype;
use crate::error::{Result, unsupported};
use crate::numerics::{NAN_BITS, canonical};
use crate::quant::uniform;

/// How a parameter is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(i32)]
pub enum Weights {
    /// In its dtype alone, rounded to nearest: updates below half a last place vanish.
    #[default]
    Plain = 0,
    /// In its dtype alone, rounded up or down at random so that the mean is right.
    Stochastic = 1,
    /// With an f32 master beside it.
    Master = 2,
    /// bf16 with the lower 16 bits of theta beside it: an exact f32 in 4 bytes.
    Remainder16 = 3,
    /// bf16 with 8 bits of correction beside it (after FlashOptim, arXiv 2602.23349).
    Correction8 = 4,
}

impl Weights {
    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Stochastic => "stochastic",
            Self::Master => "master",
            Self::Remainder16 => "remainder16",
            Self::Correction8 => "correction8",
        }
    }

    /// The form of a C constant.
    #[must_use]
    pub const fn from_raw(raw: i32) -> Option<Self> {
        match raw {
            0 => Some(Self::Plain),
            1 => Some(Self::Stochastic),
            2 => Some(Self::Master),
            3 => Some(Self::Remainder16),
            4 => Some(Self::Correction8),
            _ => None,
        }
    }

    /// Part name and dtype of what is kept beside the parameter.
    pub(crate) const fn beside(self) -> Option<(&'static str, Dtype)> {
        match self {
            Self::Plain | Self::Stochastic => None,
            Self::Master => Some(("master", Dtype::F32)),
            Self::Remainder16 => Some(("remainder", Dtype::U16)),
            Self::Correction8 => Some(("correction", Dtype::I8)),
        }
    }

    /// # Errors
    /// `Unsupported` where the form does not exist for the dtype.
    pub(crate) fn check(self, dtype: Dtype) -> Result<()> {
        let fits = match self {
            Self::Plain => true,
            Self::Stochastic | Self::Master => matches!(dtype, Dtype::Bf16 | Dtype::F16),
            Self::Remainder16 | Self::Correction8 => dtype == Dtype::Bf16,
        };
        if fits {
            return Ok(());
        }
        Err(unsupported(format!(
            "weights {} do not exist for {} parameters; f32 ones need nothing beside them, and \
             remainder16 and correction8 are for bf16",
            self.name(),
            dtype.name()
        )))
    }
}

/// The value of b, NaN as it is.
#[inline(always)]
pub(crate) fn widen_bf16(b: bf16) -> f32 {
    f32::from_bits(u32::from(b.to_bits()) << 16)
}

/// `x` rounded to the nearest bf16, NaN in canonical form, without a branch.
#[inline(always)]
pub(crate) fn narrow_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    // A carry into the upper half, on ties only where that is odd.
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    bf16::from_bits(if x.is_nan() {
        (NAN_BITS >> 16) as u16
    } else {
        rounded
    })
}

/// `x` rounded to bf16 by a draw: the mean over all draws is `x`.
#[inline(always)]
pub(crate) fn stochastic_bf16(x: f32, draw: u16) -> bf16 {
    let bits = x.to_bits();
    // The lower half of infinity is 0: nothing is carried.
    let rounded = (bits.wrapping_add(draw.into()) >> 16) as u16;
    bf16::from_bits(if x.is_nan() {
        (NAN_BITS >> 16) as u16
    } else {
        rounded
    })
}

/// `x` rounded to f16 by a draw.
#[inline(always)]
pub(crate) fn stochastic_f16(x: f32, draw: u16) -> f16 {
    f16::from_f32(round_f16(x, draw))
}

/// The same as an f32, before a magnitude beyond f16's becomes infinite.
#[inline(always)]
pub(crate) fn round_f16(x: f32, draw: u16) -> f32 {
    // A normal f16 keeps 10 of 23 bits.
    let dropped = u32::from(draw) & 0x1fff;
    let normal = f32::from_bits((x.to_bits().wrapping_add(dropped)) & !0x1fff);
    // A subnormal one is a multiple of 2^-24.
    let multiple = x.abs() * 16_777_216.0;
    let whole = multiple.floor();
    let up = if uniform(draw) < multiple - whole {
        1.0
    } else {
        0.0
    };
    let subnormal = ((whole + up) * (1.0 / 16_777_216.0)).copysign(x);
    let rounded = if x.abs() >= 6.103_515_6e-5 {
        normal
    } else {
        subnormal
    };
    if x.is_finite() { rounded } else { canonical(x) }
}

/// theta of a parameter and its master: the master, unless the parameter was changed by others (or
/// the master was never set): what it was rounded to then differs, and the parameter counts.
#[inline(always)]
pub(crate) fn from_master(b: f32, master: f32, rounded: f32) -> f32 {
    if rounded.to_bits() == b.to_bits() {
        master
    } else {
        b
    }
}

/// b and the lower half of theta. b is rounded half away from zero: on a tie, nearest even would not
/// tell which of two values it came from.
#[inline(always)]
pub(crate) fn split_remainder(theta: f32) -> (bf16, u16) {
    if theta.is_nan() {
        return (bf16::from_bits((NAN_BITS >> 16) as u16), 0);
    }
    let bits = theta.to_bits();
    (bf16::from_bits(((bits + 0x8000) >> 16) as u16), bits as u16)
}

/// theta of b and the lower half. A b that was set to zero by others counts as it is.
#[inline(always)]
pub(crate) fn join_remainder(b: bf16, low: u16) -> f32 {
    let bits = u32::from(b.to_bits()) << 16;
    // From its half on, b was rounded up, and theta is below it.
    let low = i32::from(low.cast_signed());
    let low = if bits & 0x7fff_0000 == 0 {
        low.max(0)
    } else {
        low
    };
    if b.is_nan() {
        f32::from_bits(NAN_BITS)
    } else {
        f32::from_bits(bits.wrapping_add_signed(low))
    }
}

/// b and the correction `RNE(254 (theta - b) / U)`, where U is the last place of b.
#[inline(always)]
pub(crate) fn split_correction(theta: f32) -> (bf16, i8) {
    let b = narrow_bf16(theta);
    let error = theta - widen_bf16(b);
    // By 1 / U, a power of two, in two steps where f32 has none so large.
    let exponent = exponent(b);
    let inverse = f32::from_bits((261 - exponent.max(8)) << 23);
    let rest = f32::from_bits((127 + exponent.max(8) - exponent) << 23);
    let correction = 254.0 * (error * inverse * rest);
    // Where b is not finite the error is NaN or infinite.
    let correction = if b.is_finite() { correction } else { 0.0 };
    // From -127 to 127: the lowest bits of its sum with 1.5 2^23, which is rounded to an integer.
    (b, (correction + 12_582_912.0).to_bits() as i8)
}

/// `RN(b + RN(correction RN(U / 254)))`.
#[inline(always)]
pub(crate) fn join_correction(b: bf16, correction: i8) -> f32 {
    /// The step of exponent 15, the last one whose step is subnormal.
    const SUBNORMAL: u32 = 4_227_330;
    let exponent = exponent(b);
    // Those before it are its halves, rounded: without a tie, as 2^30 / 254 is 4227330.02.
    let halvings = 15_u32.saturating_sub(exponent);
    let step = f32::from_bits(if exponent > 15 {
        (exponent - 7) << 23
    } else {
        (SUBNORMAL + (1 << halvings >> 1)) >> halvings
    });
    // Scaled by a power of two, 1 / 254 is rounded as by itself.
    let step = if exponent > 15 {
        step * (1.0 / 254.0)
    } else {
        step
    };
    let value = widen_bf16(b);
    let theta = value + f32::from(correction) * step;
    canonical(if b.is_finite() { theta } else { value })
}

/// The biased exponent of b; U is `2^(exponent - 134)`.
#[inline(always)]
fn exponent(b: bf16) -> u32 {
    u32::from((b.to_bits() >> 7) & 0xff).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_is_the_crates() {
        for x in values() {
            let (narrow, crates) = (narrow_bf16(x), bf16::from_f32(canonical(x)));
            assert_eq!(narrow.to_bits(), crates.to_bits(), "{x:e}");
        }
    }

    /// Bit patterns of all magnitudes, ties and their neighbours among them.
    fn values() -> impl Iterator<Item = f32> {
        (0..1_u32 << 16).flat_map(|high| {
            [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| f32::from_bits(high << 16 | low))
        })
    }

    #[test]
    fn remainders_are_exact() {
        for theta in values() {
            let (b, low) = split_remainder(theta);
            assert_eq!(
                join_remainder(b, low).to_bits(),
                canonical(theta).to_bits(),
                "{theta:e}"
            );
            if low != 0x8000 && !theta.is_nan() {
                assert_eq!(b, bf16::from_f32(theta), "{theta:e}");
            }
        }
        assert_eq!(
            join_remainder(bf16::from_bits(0x8000), 0x9000).to_bits(),
            1 << 31
        );
    }

    /// The distance of bf16 values in the binade of b.
    fn last_place(b: bf16) -> f32 {
        2_f64.powi(exponent(b).cast_signed() - 134) as f32
    }

    #[test]
    fn corrections_are_those_of_their_formulas() {
        for bits in 0..=u16::MAX {
            let b = bf16::from_bits(bits);
            for correction in i8::MIN..=i8::MAX {
                let step = last_place(b) / 254.0;
                let theta = b.to_f32() + f32::from(correction) * step;
                let theta = if b.is_finite() {
                    theta
                } else {
                    canonical(b.to_f32())
                };
                let joined = join_correction(b, correction).to_bits();
                assert_eq!(joined, theta.to_bits(), "{b:e} {correction}");
            }
        }
        for theta in values().filter(|theta| theta.is_finite()) {
            let (b, correction) = split_correction(theta);
            if b.is_finite() {
                let units = 254.0 * ((theta - b.to_f32()) / last_place(b));
                let nearest = units.round_ties_even() as i8;
                assert_eq!(correction, nearest, "{theta:e}");
            }
        }
    }

    #[test]
    fn remainders_that_fit_no_zero_or_nan_count_for_nothing() {
        for low in 0..=u16::MAX {
            let zero = [0, 0x8000].map(|b| join_remainder(bf16::from_bits(b), low).to_bits());
            let low_alone = if low < 0x8000 { u32::from(low) } else { 0 };
            assert_eq!(zero, [low_alone, 1 << 31 | low_alone]);
            let nan = join_remainder(bf16::from_bits(0xff81), low);
            assert_eq!(nan.to_bits(), NAN_BITS);
        }
    }

    #[test]
    fn corrections_are_within_half_a_254th() {
        for theta in values().filter(|theta| theta.is_finite()) {
            let (b, correction) = split_correction(theta);
            assert_eq!(b, bf16::from_f32(theta));
            if !b.is_finite() {
                continue;
            }
            let error = f64::from(theta) - f64::from(join_correction(b, correction));
            // Half of U / 254, what subnormal steps lose, and the last rounding.
            let unit = f64::from(last_place(b));
            let bound = unit / 508.0 * 1.0001 + 127.0 * 7.1e-46 + f64::from(theta.abs()) * 6e-8;
            assert!(error.abs() <= bound, "{theta:e} {error:e} {bound:e}");
        }
        assert_eq!(split_correction(f32::INFINITY), (bf16::INFINITY, 0));
        // The zero that fresh memory holds is no correction.
        assert_eq!(join_correction(bf16::from_f32(1.5), 0), 1.5);
    }

    #[test]
    fn stochastic_rounding_has_the_right_mean_over_all_draws() {
        for x in [1.234_567_f32, -3e-7, 5.5e-5, 6.2e-5, 1e-3, 60000.0, 0.0] {
            for narrow in [
                (|x, draw| stochastic_bf16(x, draw).to_f32()) as fn(f32, u16) -> f32,
                |x, draw| stochastic_f16(x, draw).to_f32(),
            ] {
                let sum: f64 = (0..=u16::MAX).map(|draw| f64::from(narrow(x, draw))).sum();
                let mean = sum / 65536.0;
                let distance = (narrow(x, u16::MAX) - narrow(x, 0)).abs();
                let error = (mean - f64::from(x)).abs();
                assert!(error <= f64::from(distance) / 65536.0, "{x:e} {mean:e}");
            }
        }
    }
}
