//! Tables of at most 16 levels whose codes are found by a look-up and one comparison.

/// Cells of the numbers from -1 to 1, of which each has one threshold at most: a midpoint of a table, or a level.
///
/// The cell of y is told by bits of `u = FACTOR |y| + OFFSET`, which goes through four octaves, up to 1: the
/// last two of the exponent and the first two of the fraction; and above these four by y's sign. So cells are
/// the wider the farther they are from 0, as the levels of most tables for a first moment are.
///
/// The code of x under the scale s is that of the cell of `x / s`, or one more if x is above the cell's
/// midpoint times s, or reaches its level. What u is off by rounding, also of `1 / s`, and what a threshold
/// times s is off, are less than `MARGIN`, by which cells overlap here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cells {
    /// The code below the threshold, in the cells of positive numbers and of negative ones.
    pub(crate) codes: [[u8; 16]; 2],
    /// Infinite where there is none.
    pub(crate) thresholds: [[f32; 16]; 2],
}

impl Cells {
    pub(crate) const OFFSET: f32 = 1.0 / 16.0;
    /// Short of what would bring u to 1, where the cells begin again.
    pub(crate) const FACTOR: f32 = 1.0 - Self::OFFSET - 1.0 / 1024.0;
    const MARGIN: f64 = 1.0 / 65536.0;

    /// The cells of increasing thresholds, unless one has two.
    pub(super) fn of(thresholds: &[f32]) -> Option<Self> {
        if thresholds.len() > 15 {
            return None;
        }
        let mut cells = Self {
            codes: [[0; 16]; 2],
            thresholds: [[f32::INFINITY; 16]; 2],
        };
        // Steps of u through its octaves.
        let first = Self::OFFSET.to_bits() >> 21;
        let magnitude = |step: u32| {
            let u = f64::from(f32::from_bits(step << 21));
            (u - f64::from(Self::OFFSET)) / f64::from(Self::FACTOR)
        };
        for step in first..first + 16 {
            let (near, far) = (magnitude(step), magnitude(step + 1));
            for (sign, [from, to]) in [[near, far], [-far, -near]].into_iter().enumerate() {
                let at = (step & 15) as usize;
                let below = |end: f64| {
                    thresholds
                        .iter()
                        .filter(|threshold| f64::from(**threshold) < end)
                        .count()
                };
                let (code, end) = (below(from - Self::MARGIN), below(to + Self::MARGIN));
                cells.codes[sign][at] = code as u8;
                match end - code {
                    0 => {}
                    1 => cells.thresholds[sign][at] = thresholds[code],
                    _ => return None,
                }
            }
        }
        Some(cells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Mapping, Table};

    /// The code of x as a backend computes it, by levels that are reached or midpoints that are passed.
    fn code(cells: &Cells, reached: bool, x: f32, scale: f32) -> usize {
        let factor = Cells::FACTOR * (1.0 / scale);
        let u = x.abs().mul_add(factor, Cells::OFFSET);
        let at = (u.to_bits() >> 21 & 15) as usize;
        let sign = usize::from(x.is_sign_negative());
        let threshold = cells.thresholds[sign][at] * scale;
        let above = x > threshold || reached && x == threshold;
        usize::from(cells.codes[sign][at]) + usize::from(above)
    }

    #[test]
    fn codes_are_numbers_of_thresholds_passed_or_reached() {
        let mut checked = 0;
        for (mapping, bits, reached) in [
            (Mapping::De, 4, false),
            (Mapping::De, 3, false),
            (Mapping::Nf4, 4, false),
            (Mapping::LinearWithZero, 4, false),
            (Mapping::Nf4, 4, true),
        ] {
            let table = Table::of(mapping, bits, true, &[]).unwrap();
            let (cells, thresholds) = if reached {
                (&table.level_cells, &table.levels[1..])
            } else {
                (&table.cells, &table.midpoints[..])
            };
            let Some(cells) = cells else {
                panic!("{mapping:?} {bits}");
            };
            for scale in [1.0, 0.7, 1.0 / 3.0, 1.5e-36, 3.0e38, f32::MIN_POSITIVE] {
                let defined = |x: f32| {
                    thresholds
                        .iter()
                        .filter(|t| x > **t * scale || reached && x == **t * scale)
                        .count()
                };
                let mut check = |x: f32| {
                    if x.abs() <= scale {
                        assert_eq!(
                            code(cells, reached, x, scale),
                            defined(x),
                            "{mapping:?} {x} of {scale}"
                        );
                        checked += 1;
                    }
                };
                for threshold in thresholds {
                    let mut x = threshold * scale;
                    for _ in 0..40 {
                        x = x.next_down();
                    }
                    for _ in 0..80 {
                        check(x);
                        x = x.next_up();
                    }
                }
                for i in -20_000_i16..=20_000 {
                    check(f32::from(i) / 20_000.0 * scale);
                }
                check(-0.0);
            }
        }
        assert!(checked > 900_000, "{checked}");
    }

    #[test]
    fn two_thresholds_in_a_cell_are_refused() {
        assert_eq!(Cells::of(&[0.8, 0.81]), None);
        assert_eq!(Cells::of(&[0.01, 0.012]), None);
        assert!(Cells::of(&[-0.7, 0.01, 0.7]).is_some());
    }
}
