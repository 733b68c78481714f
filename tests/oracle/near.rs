//! Running error analysis: a number in f64 together with how far an f32 evaluation of the same
//! formula may be from it. Every operation passes the errors of its operands on and adds one
//! rounding, so a published equation written with [`Near`] also states the bound that a 32-bit
//! implementation must keep, as long as it has no more roundings than the equation has operations.

use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::EPS;

/// Half of the smallest subnormal f32.
const TINY: f64 = 7.006_492_321_624_085e-46;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Near {
    pub(crate) value: f64,
    pub(crate) error: f64,
}

impl Near {
    /// A number that both have exactly.
    pub(crate) fn exact(value: f64) -> Self {
        Self { value, error: 0.0 }
    }

    /// A result, rounded to f32, of operands that are off by `error` together. Where the errors
    /// grow without end (0 times infinity on the way), nothing is known.
    pub(crate) fn rounded(value: f64, error: f64) -> Self {
        // An exact zero stays one; results near the subnormals also have an absolute error.
        let tiny = if value == 0.0 && error == 0.0 {
            0.0
        } else {
            TINY
        };
        let error = error + EPS * (value.abs() + error) + tiny;
        Self {
            value,
            error: if error.is_nan() { f64::INFINITY } else { error },
        }
    }

    /// The sum, which the library rounds once.
    pub(crate) fn sum(terms: impl Iterator<Item = Self>) -> Self {
        let (mut value, mut error) = (0.0, 0.0);
        for term in terms {
            value += term.value;
            error += term.error;
        }
        Self::rounded(value, error)
    }

    pub(crate) fn sqrt(self) -> Self {
        let root = self.value.sqrt();
        let least = (self.value - self.error).max(0.0).sqrt();
        let error = if self.error == 0.0 {
            0.0
        } else {
            self.error / (root + least)
        };
        Self::rounded(root, error)
    }

    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            value: self.value.max(other.value),
            error: self.error.max(other.error),
        }
    }

    pub(crate) fn min(self, other: Self) -> Self {
        Self {
            value: self.value.min(other.value),
            error: self.error.max(other.error),
        }
    }

    /// -1, 0 or 1; anything between -1 and 1 where the error reaches over 0.
    pub(crate) fn sign(self) -> Self {
        if self.value.abs() > self.error || self.error == 0.0 {
            let sign = if self.value == 0.0 {
                0.0
            } else {
                self.value.signum()
            };
            Self::exact(sign)
        } else {
            Self {
                value: 0.0,
                error: 1.0,
            }
        }
    }
}

impl Add for Near {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self::rounded(self.value + other.value, self.error + other.error)
    }
}

impl Sub for Near {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Neg for Near {
    type Output = Self;
    fn neg(self) -> Self {
        Self {
            value: -self.value,
            error: self.error,
        }
    }
}

impl Mul for Near {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let error = self.value.abs() * other.error
            + other.value.abs() * self.error
            + self.error * other.error;
        Self::rounded(self.value * other.value, error)
    }
}

impl Div for Near {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let least = other.value.abs() - other.error;
        let quotient = self.value / other.value;
        let error = if least > 0.0 {
            (quotient.abs() * other.error + self.error) / least
        } else {
            f64::INFINITY
        };
        Self::rounded(quotient, error)
    }
}

#[test]
fn bounds_hold_for_f32_and_are_not_slack() {
    // A recurrence with cancellation, a root and a quotient, in f32 and with bounds.
    let (mut x, mut near) = (0.0_f32, Near::default());
    let mut tightest = f64::MAX;
    for i in 1..2000_u16 {
        let g = (f32::from(i) * 0.7).sin();
        x = 0.9 * x + (1.0 - 0.9_f32) * g / (g * g + 0.01).sqrt();
        let (g, decay) = (Near::exact(f64::from(g)), Near::exact(f64::from(0.9_f32)));
        let hundredth = Near::exact(f64::from(0.01_f32));
        near = decay * near + (Near::exact(1.0) - decay) * g / (g * g + hundredth).sqrt();
        let off = (f64::from(x) - near.value).abs();
        assert!(off <= near.error, "{i}: {off:e} {:e}", near.error);
        tightest = tightest.min(near.error / off.max(1e-30));
    }
    assert!(tightest < 20.0, "the bounds are {tightest} times the error");
    assert!(near.error < 40.0 * EPS, "{:e}", near.error);
}
