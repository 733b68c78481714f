//! Quantizers element by element: what a code means and how it is found. This is the definition;
//! backends find the same codes faster.
//!
//! A value `x` with scale `s` has the nearest code `#{i : x > RN(mid_i s)}` with
//! `mid_i = (T_i + T_(i+1)) / 2`: ties to the lower level, and no division by `s` (whose
//! reciprocal overflows below 2^-128). A code `c` decodes to `RN(T_c s)`.

mod bytes;
mod cells;
mod table;

use serde::{Deserialize, Serialize};

use crate::numerics::log2;

pub(crate) use bytes::{Lines, Quotients};
pub(crate) use cells::Cells;
pub use table::{Mapping, Table};

/// How a value between two levels becomes one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(i32)]
pub enum Rounding {
    /// The nearest level, ties to the lower one.
    #[default]
    Nearest = 0,
    /// Up with a probability that makes the state unbiased (paper, appendix E.3).
    Stochastic = 1,
    /// Unbiased in the logarithm of the state; zero-free unsigned tables only.
    StochasticLog = 2,
    /// Unbiased in `1 / (sqrt(v / (1 - beta2^t)) + eps)`, which multiplies the step (ZIP-SR,
    /// arXiv 2610.12444); v only.
    StochasticPreconditioner = 3,
}

/// A draw of 16 bits as a number in (0, 1): the middle of its 2^-16.
pub(crate) fn uniform(draw: u16) -> f32 {
    (f32::from(draw) + 0.5) * (1.0 / 65536.0)
}

/// What [`Rounding::StochasticPreconditioner`] needs of the step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preconditioner {
    /// `RN(1 / (1 - beta2^t))`.
    pub(crate) inv_bc2: f32,
    pub(crate) eps: f32,
}

impl Preconditioner {
    #[inline(always)]
    pub(crate) fn of(self, v: f32) -> f32 {
        1.0 / ((v * self.inv_bc2).sqrt() + self.eps)
    }
}

/// The nearest code.
pub(crate) fn nearest(x: f32, scale: f32, table: &Table) -> u8 {
    // At most 255 midpoints.
    table
        .midpoints
        .iter()
        .map(|mid| u8::from(x > mid * scale))
        .sum()
}

/// One of the two neighbouring codes, by the number `u` in (0, 1). Values beyond the ends get the
/// end's code; everything under a scale of 0 or NaN gets code 0.
pub(crate) fn stochastic(
    x: f32,
    scale: f32,
    table: &Table,
    rounding: Rounding,
    preconditioner: Preconditioner,
    u: f32,
) -> u8 {
    if scale.is_nan() || scale <= 0.0 {
        return 0;
    }
    // At most 255 levels above the lowest.
    let below: u8 = table.levels[1..]
        .iter()
        .map(|level| u8::from(x >= level * scale))
        .sum();
    let code = usize::from(below);
    let Some(next) = table.levels.get(code + 1) else {
        return below;
    };
    let (low, high) = (table.levels[code] * scale, next * scale);
    // How far x is from the lower level, and how far the upper one is.
    let (part, whole) = match rounding {
        Rounding::StochasticLog => {
            let base = log2(low);
            (log2(x) - base, log2(high) - base)
        }
        Rounding::StochasticPreconditioner => {
            let base = preconditioner.of(low);
            (base - preconditioner.of(x), base - preconditioner.of(high))
        }
        Rounding::Nearest | Rounding::Stochastic => (x - low, high - low),
    };
    below + u8::from(u * whole < part)
}

/// The value of a code.
#[inline(always)]
pub(crate) fn decode(code: u8, scale: f32, table: &Table) -> f32 {
    table.by_code[usize::from(code)] * scale
}

/// The scale that makes `sum(x q)` equal `sum(x^2)` (EDEN's correction, as in ZE-EDEN, arXiv
/// 2610.12444): `scale sum(x^2) / max(sum(x q), tiny)`, in f64, sums as a zero-padded halving tree.
///
/// There are at most `N` values.
#[inline(always)]
pub(crate) fn corrected_scale<const N: usize>(
    scale: f32,
    values: &[f32],
    decoded: impl Fn(usize) -> f32,
) -> f32 {
    let squares = tree_sum::<N>(values.len(), |i| {
        f64::from(values[i]) * f64::from(values[i])
    });
    let products = tree_sum::<N>(values.len(), |i| {
        f64::from(values[i]) * f64::from(decoded(i))
    });
    crate::numerics::canonical(
        (f64::from(scale) * (squares / products.max(f64::MIN_POSITIVE))) as f32,
    )
}

/// Halves the list, padded with zeros to a power of two, until one number is left: element `i` is
/// added to element `i + half`. There are at most `N`.
#[inline(always)]
fn tree_sum<const N: usize>(count: usize, term: impl Fn(usize) -> f64) -> f64 {
    let mut terms = [0.0_f64; N];
    for (i, slot) in terms[..count].iter_mut().enumerate() {
        *slot = term(i);
    }
    let mut half = count.next_power_of_two() / 2;
    while half > 0 {
        for i in 0..half {
            terms[i] += terms[i + half];
        }
        half /= 2;
    }
    terms[0]
}
