//! Sums whose result does not depend on the order of their terms: every term is rounded once, to a
//! multiple of a common unit that the largest term decides, and the multiples are added as
//! integers. Threads, shards and atomics give the same bits.

use super::INF_BITS;

/// A term has at most this many bits.
const BITS: i32 = 61;

const LOW: u32 = Limbs::LOW;

/// The power of two above the largest magnitude of a set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exponent(i32);

impl Exponent {
    /// Of the set whose largest magnitude has these bits; `None` if it is not finite.
    #[inline(always)]
    pub(crate) fn above(largest: i32) -> Option<Self> {
        let finite = largest < INF_BITS.cast_signed();
        // A subnormal is below 2^-126, a normal number with the biased exponent b below 2^(b-126).
        finite.then_some(Self((largest >> 23) - 126))
    }

    /// The same for the squares of the set.
    #[inline(always)]
    pub(crate) fn squared(self) -> Self {
        Self(2 * self.0)
    }

    /// The sum of the squares of values that this exponent is above.
    #[inline(always)]
    pub(crate) fn sum_of_squares(self, values: impl Iterator<Item = f32>) -> Limbs {
        let exponent = self.squared();
        let mut sum = Limbs::ZERO;
        values.for_each(|x| sum.add(exponent.limbs(f64::from(x) * f64::from(x))));
        sum
    }

    /// `RNE(term 2^(61 - e))`, where `term < 2^e`.
    #[inline(always)]
    pub(crate) fn limbs(self, term: f64) -> Limbs {
        let scaled = (term * power_of_two(BITS - self.0)).round_ties_even() as i64;
        Limbs {
            high: scaled >> LOW,
            low: scaled & ((1 << LOW) - 1),
        }
    }

    /// The same as a factor.
    #[inline(always)]
    pub(crate) fn unit(self) -> Unit {
        Unit(power_of_two(BITS - self.0))
    }

    /// The sum that the limbs of its terms add up to, however they were split.
    #[inline(always)]
    pub(crate) fn value(self, sum: Limbs) -> f64 {
        let (high, low) = (sum.high + (sum.low >> LOW), sum.low & ((1 << LOW) - 1));
        let whole = (high as f64).mul_add((1_u64 << LOW) as f64, low as f64);
        whole * power_of_two(self.0 - BITS)
    }
}

/// How many units a term of 1 has.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Unit(f64);

impl Unit {
    /// For sums that are not finite: nothing is added.
    pub(crate) const NONE: Self = Self(0.0);

    /// Units of the high limb.
    pub(crate) const HIGH_LIMB: f64 = (1_u64 << LOW) as f64;

    /// From 2^52 to 2^53, f64 are the integers: so the bits of this and an integer from 0 on less its own are the
    /// integer's.
    pub(crate) const HIGH: f64 = (1_u64 << 52) as f64;

    /// The same for integers of both signs.
    pub(crate) const SIGNED: f64 = (3_u64 << 51) as f64;

    /// Whether it is [`Unit::NONE`].
    pub(crate) fn is_none(self) -> bool {
        self.0 == 0.0
    }

    /// As many units as [`Exponent::limbs`], split at another place, without conversions from f64 to i64, which few processors
    /// have for vectors. Of a term that is not finite any limbs: its sum is not finite either, and [`Unit::NONE`]
    /// is its unit.
    #[inline(always)]
    pub(crate) fn limbs(self, term: f64) -> Limbs {
        let integer = |x: f64, zero: f64| x.to_bits().wrapping_sub(zero.to_bits()).cast_signed();
        let scaled = term * self.0;
        let high = scaled * (1.0 / Self::HIGH_LIMB) + Self::HIGH;
        let low = scaled - (high - Self::HIGH) * Self::HIGH_LIMB;
        Limbs {
            high: integer(high, Self::HIGH),
            low: integer(low + Self::SIGNED, Self::SIGNED),
        }
    }

    /// As a factor.
    #[inline(always)]
    pub(crate) fn factor(self) -> f64 {
        self.0
    }
}

/// A term, or a sum of up to 2^32 terms: `high 2^31 + low` units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limbs {
    pub(crate) high: i64,
    pub(crate) low: i64,
}

impl Limbs {
    pub(crate) const ZERO: Self = Self { high: 0, low: 0 };

    /// Bits of the low limb.
    pub(crate) const LOW: u32 = 31;

    /// So many terms add up to less than 2^64 units.
    pub(crate) const TERMS: usize = 1 << (64 - BITS);

    #[inline(always)]
    pub(crate) fn add(&mut self, other: Self) {
        self.high = self.high.wrapping_add(other.high);
        self.low = self.low.wrapping_add(other.low);
    }
}

/// `2^n` for `|n| <= 1022`.
#[inline(always)]
fn power_of_two(n: i32) -> f64 {
    f64::from_bits((i64::from(n + 1023) << 52).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numerics::magnitude;

    #[test]
    fn sums_are_those_of_f64_in_any_order() {
        for scale in [1.0, 1e-44, 3e38, 1e-20] {
            let terms: Vec<f32> = (1..5000_u16).map(|i| scale / f32::from(i)).collect();
            let largest = terms.iter().map(|x| magnitude(*x)).max().unwrap();
            for squares in [false, true] {
                let exponent = Exponent::above(largest).unwrap();
                let exponent = if squares {
                    exponent.squared()
                } else {
                    exponent
                };
                let term = |x: &f32| {
                    let x = f64::from(*x);
                    if squares { x * x } else { x }
                };
                let sum = |terms: &mut dyn Iterator<Item = &f32>| {
                    let mut sum = Limbs::ZERO;
                    terms.for_each(|x| sum.add(exponent.limbs(term(x))));
                    exponent.value(sum)
                };
                let forward = sum(&mut terms.iter());
                assert_eq!(forward, sum(&mut terms.iter().rev()));
                for x in &terms {
                    let [limbs, same] = [exponent.limbs(term(x)), exponent.unit().limbs(term(x))]
                        .map(|limbs| (limbs.high << LOW) + limbs.low);
                    assert_eq!(limbs, same, "{x:e}");
                }
                // Of 2^27 terms that are split one way or the other.
                let many = |limbs: &dyn Fn(f64) -> Limbs| {
                    let mut sum = Limbs::ZERO;
                    terms.iter().for_each(|x| sum.add(limbs(term(x))));
                    exponent.value(Limbs {
                        high: sum.high << 15,
                        low: sum.low << 15,
                    })
                };
                let unit = exponent.unit();
                assert_eq!(many(&|x| exponent.limbs(x)), many(&|x| unit.limbs(x)));
                let want: f64 = terms.iter().map(term).sum();
                assert!((forward / want - 1.0).abs() < 1e-12, "{forward:e} {want:e}");
            }
        }
        assert!(Exponent::above(magnitude(f32::INFINITY)).is_none());
        assert_eq!(Unit::NONE.limbs(1e300), Limbs::ZERO);
        let zero = Exponent::above(0).unwrap();
        assert_eq!(zero.value(zero.limbs(0.0)), 0.0);
    }
}
