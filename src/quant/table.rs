//! Code tables: the levels that codes stand for, and the midpoints between them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bytes::{Lines, Quotients};
use super::cells::Cells;
use crate::error::{Result, invalid, unsupported};
use crate::numerics::exp2;

/// Maps a value divided by its scale to one of the levels of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(i32)]
pub enum Mapping {
    /// Dynamic exponent (paper, appendix E.2; Dettmers 2016).
    De = 1,
    /// Zero-free linear: `(i + 1) / 2^bits` (paper, section 4.1); signed `±(i + 1) / 2^(bits-1)`.
    Linear = 2,
    /// Dynamic exponent without its zero, one level fewer (paper, section 4.1); unsigned only.
    De0 = 3,
    /// Linear from 0 on, `i / (2^bits - 1)`, the control of the zero-point experiment; signed
    /// `i / (2^(bits-1) - 1)`, symmetric, one level fewer.
    LinearWithZero = 4,
    /// The squares of `linear`, with its sign.
    Power2 = 5,
    /// The cubes of `linear`, with its sign.
    Power3 = 6,
    /// NormalFloat (Dettmers et al. 2023, QLoRA): 4 bits, signed only.
    Nf4 = 7,
    /// `10^(-4 k / (2^bits - 1))`: log-spaced over four decades, zero-free; unsigned only.
    Geometric = 8,
    /// The levels given in the quantizer.
    Table = 9,
}

/// The levels of a table and the midpoints between neighbours.
#[derive(Debug, PartialEq)]
pub struct Table {
    /// Increasing levels, at most 256; code `i` stands for `levels[i] * scale`.
    pub levels: Vec<f32>,
    /// `RN((levels[i] + levels[i + 1]) / 2)`, a single rounding.
    pub midpoints: Vec<f32>,
    /// The level of every byte: a damaged buffer may hold codes beyond a table that does not fill
    /// its bits, and they stand for the highest level.
    pub(crate) by_code: [f32; 256],
    /// The level above each of the first 16 codes, infinite where there is none.
    pub(crate) next: [f32; 16],
    /// The first 16 levels, minus infinity in place of the lowest.
    pub(crate) reached: [f32; 16],
    /// The number n of levels, where they are `(i + 1) / n` and n is a power of two: codes can then
    /// be computed.
    pub(crate) linear: Option<f32>,
    /// The same where they are `((i + 1) / n)^2`.
    pub(crate) square: Option<f32>,
    /// How codes of four bits are looked up, where they can be.
    pub(crate) cells: Option<Cells>,
    /// The same for the highest levels that are reached (NF4; dynamic exponent has two in a cell).
    pub(crate) level_cells: Option<Cells>,
    /// How codes of eight bits are computed, where they can be.
    pub(crate) lines: Option<Lines>,
    /// How levels of eight bits are computed, where they can be.
    pub(crate) quotients: Option<Quotients>,
}

impl Table {
    fn new(levels: Vec<f32>) -> Arc<Self> {
        let midpoints: Vec<f32> = levels
            .windows(2)
            .map(|pair| (pair[0] + pair[1]) * 0.5)
            .collect();
        let (cells, level_cells) = (Cells::of(&midpoints), Cells::of(&levels[1..]));
        let lines = Lines::of(&levels, &midpoints);
        let quotients = Quotients::of(&levels);
        let by_code: [f32; 256] = std::array::from_fn(|code| levels[code.min(levels.len() - 1)]);
        let next =
            std::array::from_fn(|code| levels.get(code + 1).copied().unwrap_or(f32::INFINITY));
        let mut reached = [f32::NEG_INFINITY; 16];
        reached[1..].copy_from_slice(&by_code[1..16]);
        let count = levels.len() as f32;
        let all = |level_of: fn(f32) -> f32| {
            let even = levels.len().is_power_of_two()
                && (1_u16..)
                    .zip(&levels)
                    .all(|(i, level)| *level == level_of(f32::from(i) / count));
            even.then_some(count)
        };
        let (linear, square) = (all(|x| x), all(|x| x * x));
        Arc::new(Self {
            levels,
            midpoints,
            by_code,
            next,
            reached,
            linear,
            square,
            cells,
            level_cells,
            lines,
            quotients,
        })
    }

    /// The first 16 levels, with the highest in place of those that there are not.
    #[inline(always)]
    pub(crate) fn first(&self) -> [f32; 16] {
        *self.by_code.first_chunk().unwrap_or(&[0.0; 16])
    }

    /// The table of a mapping. `levels` belongs to [`Mapping::Table`] and is empty otherwise.
    ///
    /// # Errors
    /// `Unsupported` where the mapping has no such form; `InvalidArgument` for bad levels.
    pub fn of(mapping: Mapping, bits: u32, signed: bool, levels: &[f32]) -> Result<Arc<Self>> {
        let count = 1_u32 << bits;
        let refuse = |form: &str| {
            let name = mapping.name();
            Err(unsupported(format!(
                "mapping {name} has no {form} form of {bits} bits"
            )))
        };
        if mapping != Mapping::Table && !levels.is_empty() {
            return Err(invalid(format!(
                "levels belong to mapping table, not to {}",
                mapping.name()
            )));
        }
        Ok(Self::new(match (mapping, signed) {
            (Mapping::De, false) => dynamic_exponent(bits, bits - 1, true),
            (Mapping::De, true) => {
                let positive = dynamic_exponent(bits, bits - 2, true);
                // The corner codes are 0 and +1, so that -1 is not a level.
                let negative = positive[1..positive.len() - 1].iter().rev().map(|x| -x);
                negative.chain(positive.iter().copied()).collect()
            }
            (Mapping::De0, false) => dynamic_exponent(bits, bits - 1, false),
            (Mapping::Linear | Mapping::Power2 | Mapping::Power3, _) => {
                let power = match mapping {
                    Mapping::Linear => 1,
                    Mapping::Power2 => 2,
                    _ => 3,
                };
                let steps = if signed { count / 2 } else { count };
                let level = |i: u32| (f64::from(i) / f64::from(steps)).powi(power) as f32;
                let positive = (1..=steps).map(level);
                if signed {
                    positive.clone().rev().map(|x| -x).chain(positive).collect()
                } else {
                    positive.collect()
                }
            }
            (Mapping::LinearWithZero, signed) => {
                let top = if signed { count / 2 } else { count } - 1;
                let level = |i: u32| (f64::from(i) / f64::from(top)) as f32;
                let negative = if signed { top } else { 0 };
                let negative = (1..=negative).rev().map(|i| -level(i));
                negative.chain((0..=top).map(level)).collect()
            }
            (Mapping::Nf4, true) if bits == 4 => NF4.to_vec(),
            (Mapping::Geometric, false) => {
                // 10^(-4 k / (n - 1)) = 2^(-4 log2(10) k / (n - 1)).
                let level = |k: u32| {
                    let exponent = 4.0 * std::f64::consts::LOG2_10 * f64::from(k);
                    exp2(-exponent / f64::from(count - 1)) as f32
                };
                (0..count).rev().map(level).collect()
            }
            (Mapping::Table, signed) => {
                check_levels(levels, count, signed)?;
                levels.to_vec()
            }
            (Mapping::Nf4, _) => return refuse(if signed { "signed" } else { "unsigned" }),
            (Mapping::De0 | Mapping::Geometric, true) => return refuse("signed"),
        }))
    }

    /// Whether a level is 0.
    #[must_use]
    pub fn has_zero(&self) -> bool {
        self.levels.contains(&0.0)
    }

    /// The distance of neighbours, where all have the same.
    pub(crate) fn spacing(&self) -> Option<f32> {
        let first = self.levels[1] - self.levels[0];
        let uniform = self
            .levels
            .windows(2)
            .all(|pair| (pair[1] - pair[0] - first).abs() <= first * 1e-5);
        uniform.then_some(first)
    }
}

impl Mapping {
    /// The name in JSON and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::De => "de",
            Self::Linear => "linear",
            Self::De0 => "de0",
            Self::LinearWithZero => "linear-with-zero",
            Self::Power2 => "power2",
            Self::Power3 => "power3",
            Self::Nf4 => "nf4",
            Self::Geometric => "geometric",
            Self::Table => "table",
        }
    }
}

/// NF4 as published in the code of QLoRA.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The levels of dynamic exponent that are not negative: E zeros, an indicator bit, `fraction`
/// minus E fraction bits of value k stand for `10^-E (p_k + p_(k+1)) / 2`, `p_j = 0.1 + 0.9 j /
/// 2^F`; then 0 (if wanted) and 1.
fn dynamic_exponent(bits: u32, fraction: u32, zero: bool) -> Vec<f32> {
    let mut levels = if zero { vec![0.0] } else { vec![] };
    for zeros in (0..=bits - 2).rev() {
        let Some(fraction) = fraction.checked_sub(zeros) else {
            continue;
        };
        // (p_k + p_(k+1)) / 2 = (2^(F+1) + 9 (2 k + 1)) / (10 * 2^(F+1)): one rounding.
        let half = f64::from(2_u32 << fraction);
        for k in 0..1_u32 << fraction {
            let numerator = half + 9.0 * f64::from(2 * k + 1);
            levels.push((numerator / (half * 10_f64.powi(zeros.cast_signed() + 1))) as f32);
        }
    }
    levels.push(1.0);
    levels
}

fn check_levels(levels: &[f32], most: u32, signed: bool) -> Result<()> {
    if levels.len() < 2 || levels.len() > most as usize {
        return Err(invalid(format!(
            "levels has {} values; it must have 2 to {most}",
            levels.len()
        )));
    }
    if !levels.windows(2).all(|pair| pair[0] < pair[1]) {
        return Err(invalid("levels must increase"));
    }
    let lowest = if signed { -1.0 } else { 0.0 };
    if levels[0] < lowest || levels[levels.len() - 1] > 1.0 {
        return Err(invalid(format!("levels must lie in [{lowest}, 1]")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(mapping: Mapping, bits: u32, signed: bool) -> Vec<f32> {
        Table::of(mapping, bits, signed, &[])
            .unwrap()
            .levels
            .clone()
    }

    #[test]
    fn four_bit_tables_are_the_papers() {
        assert_eq!(
            levels(Mapping::De, 4, true),
            [
                -0.8875, -0.6625, -0.4375, -0.2125, -0.0775, -0.0325, -0.0055, 0.0, 0.0055, 0.0325,
                0.0775, 0.2125, 0.4375, 0.6625, 0.8875, 1.0
            ]
        );
        let unsigned = [
            0.0, 0.00325, 0.00775, 0.02125, 0.04375, 0.06625, 0.08875, 0.15625, 0.26875, 0.38125,
            0.49375, 0.60625, 0.71875, 0.83125, 0.94375, 1.0,
        ];
        assert_eq!(levels(Mapping::De, 4, false), unsigned);
        assert_eq!(levels(Mapping::De0, 4, false), unsigned[1..]);
        let linear: Vec<f32> = (1..=16_u8).map(|i| f32::from(i) / 16.0).collect();
        assert_eq!(levels(Mapping::Linear, 4, false), linear);
        let control: Vec<f32> = (0..16_u8).map(|i| f32::from(i) / 15.0).collect();
        assert_eq!(levels(Mapping::LinearWithZero, 4, false), control);
        assert_eq!(levels(Mapping::Geometric, 4, false)[15], 1.0);
        assert_eq!(levels(Mapping::Geometric, 4, false)[0], 1e-4);
    }

    #[test]
    fn eight_bit_dynamic_exponent_has_the_papers_ends() {
        let signed = levels(Mapping::De, 8, true);
        assert_eq!((signed.len(), signed[255]), (256, 1.0));
        assert_eq!(signed[0], -0.992_968_75);
        assert_eq!(signed[128], 5.5e-7);
        let unsigned = levels(Mapping::De, 8, false);
        assert_eq!(
            (unsigned.len(), unsigned[0], unsigned[255]),
            (256, 0.0, 1.0)
        );
        assert_eq!(unsigned[1], 3.25e-7);
    }

    #[test]
    fn every_table_increases_and_fits_its_bits() {
        for bits in 2..=8 {
            for signed in [false, true] {
                for mapping in [
                    Mapping::De,
                    Mapping::De0,
                    Mapping::Linear,
                    Mapping::LinearWithZero,
                    Mapping::Power2,
                    Mapping::Power3,
                    Mapping::Nf4,
                    Mapping::Geometric,
                ] {
                    let Ok(table) = Table::of(mapping, bits, signed, &[]) else {
                        continue;
                    };
                    assert!(table.levels.len() <= 1 << bits, "{mapping:?} {bits}");
                    assert!(
                        table.levels.windows(2).all(|pair| pair[0] < pair[1]),
                        "{mapping:?} {bits} {signed}: {:?}",
                        table.levels
                    );
                    assert_eq!(table.levels[table.levels.len() - 1], 1.0);
                    assert_eq!(table.levels[0] < 0.0, signed, "{mapping:?} {bits}");
                }
            }
        }
    }

    #[test]
    fn bad_levels_are_refused() {
        let of = |levels: &[f32]| Table::of(Mapping::Table, 2, false, levels);
        assert!(of(&[0.25, 1.0]).is_ok());
        for levels in [
            &[1.0][..],
            &[0.1, 0.2, 0.3, 0.4, 0.5],
            &[0.5, 0.5],
            &[0.5, f32::NAN],
            &[-0.5, 0.5],
            &[0.5, 1.5],
        ] {
            assert!(of(levels).is_err(), "{levels:?}");
        }
    }
}
