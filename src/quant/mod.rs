//! Code tables: what a 4-bit code means.
//!
//! A value `x` with scale `s` has the code `#{i : x > RN(mid_i s)}` with
//! `mid_i = (T_i + T_{i+1}) / 2`: the nearest level, ties to the lower one, and no division by
//! `s` (whose reciprocal overflows below 2^-128). A code `c` decodes to `RN(T_c s)`. Every backend
//! computes exactly this; `backend/cpu/reference.rs` is where it is written element by element.

use serde::{Deserialize, Serialize};

/// Maps a value divided by its scale to one of the levels of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(i32)]
pub enum Mapping {
    /// Dynamic exponent. Signed for states that have a sign (m), unsigned for v.
    De = 1,
    /// Zero-free linear: `(i + 1) / 2^bits`. For states without a sign.
    Linear = 2,
}

/// The levels of one 4-bit table and the midpoints between neighbours.
#[derive(Debug, PartialEq)]
pub struct Table {
    /// Increasing levels; code `i` stands for `levels[i] * scale`.
    pub levels: [f32; 16],
    /// `RN((levels[i] + levels[i + 1]) / 2)`, a single rounding.
    pub midpoints: [f32; 15],
}

impl Table {
    const fn new(levels: [f32; 16]) -> Self {
        let mut midpoints = [0.0; 15];
        let mut i = 0;
        while i < 15 {
            midpoints[i] = (levels[i] + levels[i + 1]) * 0.5;
            i += 1;
        }
        Self { levels, midpoints }
    }
}

/// Signed dynamic exponent (paper, section 3 and appendix E.2): 1 sign bit, E leading zeros, an
/// indicator bit, fractions `(p_k + p_{k+1}) / 2` with `p_j = 0.1 + 0.9 j / 2^F`; the corner codes
/// are 0 and +1, so that -1 is not a level.
pub static DE_SIGNED: Table = Table::new([
    -0.8875, -0.6625, -0.4375, -0.2125, -0.0775, -0.0325, -0.0055, 0.0, 0.0055, 0.0325, 0.0775,
    0.2125, 0.4375, 0.6625, 0.8875, 1.0,
]);

/// Unsigned dynamic exponent (paper, appendix E.2), with a zero level.
pub static DE_UNSIGNED: Table = Table::new([
    0.0, 0.00325, 0.00775, 0.02125, 0.04375, 0.06625, 0.08875, 0.15625, 0.26875, 0.38125, 0.49375,
    0.60625, 0.71875, 0.83125, 0.94375, 1.0,
]);

/// Zero-free linear `(i + 1) / 16` (paper, section 4.1).
pub static LINEAR: Table = Table::new([
    0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.5625, 0.625, 0.6875, 0.75, 0.8125,
    0.875, 0.9375, 1.0,
]);

/// The table of a mapping, `None` where the mapping has no signed form.
#[must_use]
pub fn table(mapping: Mapping, signed: bool) -> Option<&'static Table> {
    match (mapping, signed) {
        (Mapping::De, true) => Some(&DE_SIGNED),
        (Mapping::De, false) => Some(&DE_UNSIGNED),
        (Mapping::Linear, false) => Some(&LINEAR),
        (Mapping::Linear, true) => None,
    }
}
