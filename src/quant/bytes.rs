//! Tables of eight bits whose codes can be computed: the midpoints lie on a few straight lines, and
//! the levels are quotients of small integers. Backends compute a code where the definition would
//! search for it, and check it where a line passes so near to an integer that rounding could matter.

/// The lines that midpoints, as a function of the code, lie on.
///
/// `position(y) = slope y + offset`, with the line that holds for y, is below i under midpoint i - 1
/// and above i above it. So the code of x under the scale s is the floor of `position(x / s)`, unless
/// that is within [`Lines::NEAR`] of an integer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lines {
    /// Line k holds from `breaks[k - 1]` to `breaks[k]`; behind the last one they are infinite.
    pub(crate) breaks: [f32; 16],
    pub(crate) slopes: [f32; 16],
    pub(crate) offsets: [f32; 16],
    /// The code of the level 0 of a signed table, whose negative half mirrors the positive one;
    /// positions are those of magnitudes, counted from it.
    pub(crate) zero: Option<u8>,
}

impl Lines {
    /// More than the distance of a position, computed in f32, from an integer at a midpoint. With
    /// `y = RN(x RN(1 / s))` and the midpoint `RN(mid s)` a position is off by at most four roundings of
    /// `slope y` and one of itself, and by what a midpoint is off its line; [`Lines::of`] checks
    /// their sum.
    pub(crate) const NEAR: f32 = 1.0 / 8192.0;

    /// The scales for which neither a product with a midpoint nor the reciprocal is subnormal.
    #[inline(always)]
    pub(crate) fn cover(scale: f32) -> bool {
        const LEAST: f32 = f32::MIN_POSITIVE * (1_u32 << 26) as f32;
        (LEAST..=0.25 / f32::MIN_POSITIVE).contains(&scale)
    }

    /// The lines of a table, if 16 are enough.
    pub(super) fn of(levels: &[f32], midpoints: &[f32]) -> Option<Self> {
        let zero = if levels[0] < 0.0 {
            Some(levels.iter().position(|level| *level == 0.0)?)
        } else {
            None
        };
        let (negative, positive) = midpoints.split_at(zero.unwrap_or(0));
        let mirrored = negative.iter().rev().zip(positive).all(|(a, b)| *a == -*b);
        if midpoints.len() < 16 || !mirrored || negative.len() > positive.len() {
            return None;
        }
        // A product of a midpoint and a scale must not be subnormal.
        if positive[0] < 1.0 / (1_u32 << 26) as f32 {
            return None;
        }
        let ends: Vec<f64> = positive.iter().map(|mid| f64::from(*mid)).collect();
        let mut lines = Self {
            breaks: [f32::INFINITY; 16],
            slopes: [0.0; 16],
            offsets: [0.0; 16],
            zero: zero.map(|zero| zero as u8),
        };
        let mut count = 0;
        let mut last: Option<(Line, usize)> = None;
        while last.is_none_or(|(_, end)| end + 1 < ends.len()) {
            let (line, end) = match last {
                None => Line::through(&ends, 0),
                Some((left, end)) => {
                    // A line that begins behind the gap, or at worst with the gap.
                    let (line, next) = Line::through(&ends, end + 1);
                    match left.meet(line, &ends, end) {
                        Some(_) if next > end + 1 => (line, next),
                        _ => Line::through(&ends, end),
                    }
                }
            };
            if count == 16 {
                return None;
            }
            if let Some((left, end)) = last {
                lines.breaks[count - 1] = left.meet(line, &ends, end)? as f32;
            }
            (lines.slopes[count], lines.offsets[count]) = (line.slope as f32, line.offset as f32);
            last = Some((line, end));
            count += 1;
        }
        lines.hold(&ends).then_some(lines)
    }

    /// Whether positions are on the right side of every integer, and near it only at midpoints.
    fn hold(&self, ends: &[f64]) -> bool {
        const ULP: f64 = 1.0 / (1 << 24) as f64;
        let line = |k: usize| Line {
            slope: f64::from(self.slopes[k]),
            offset: f64::from(self.offsets[k]),
        };
        let at = |y: f64| line(self.breaks.iter().filter(|b| y > f64::from(**b)).count());
        let midpoints = ends.iter().enumerate().all(|(i, end)| {
            let line = at(*end);
            let off = (line.at(*end) - (i + 1) as f64).abs();
            let rounded = 4.0 * line.slope * end * ULP + 0.5 * line.at(*end) * ULP;
            off + rounded < 0.75 * f64::from(Self::NEAR)
        });
        let inside = |line: Line, y: f64| {
            let cell = ends.iter().filter(|end| y > **end).count() as f64;
            line.at(y) > cell + 0.05 && line.at(y) < cell + 0.95
        };
        let breaks = self.breaks.iter().enumerate().all(|(k, b)| {
            b.is_infinite() || {
                let b = f64::from(*b);
                inside(line(k), b) && inside(line(k + 1), b)
            }
        });
        let top = at(1.0).at(1.0) < ends.len() as f64 + 0.95;
        // What is below 0 becomes 0; without a sign, anything may be.
        let bottom = self.zero.is_none() || at(0.0).at(0.0) > -0.95;
        midpoints && breaks && top && bottom
    }
}

/// `slope y + offset`.
#[derive(Clone, Copy)]
struct Line {
    slope: f64,
    offset: f64,
}

impl Line {
    /// The line through midpoints from `first` on, and the last of them: as many as lie on one.
    fn through(ends: &[f64], first: usize) -> (Self, usize) {
        let mut found = (
            Self {
                slope: 0.0,
                offset: (first + 1) as f64,
            },
            first,
        );
        for last in first + 1..ends.len() {
            let slope = (last - first) as f64 / (ends[last] - ends[first]);
            let line = Self {
                slope,
                offset: (first + 1) as f64 - slope * ends[first],
            };
            let straight = (first..last)
                .all(|i| (line.at(ends[i]) - (i + 1) as f64).abs() < f64::from(Lines::NEAR) / 4.0);
            if !straight {
                break;
            }
            found = (line, last);
        }
        found
    }

    fn at(self, y: f64) -> f64 {
        self.slope.mul_add(y, self.offset)
    }

    /// Where to go from this line, which ends with midpoint `end`, to the next: in a cell in which
    /// both have the same floor.
    fn meet(self, next: Self, ends: &[f64], end: usize) -> Option<f64> {
        let code = (end + 1) as f64;
        let from = ends[end].max((code - next.offset) / next.slope);
        let to = ends[end + 1].min((code + 1.0 - self.offset) / self.slope);
        (from < to).then_some(0.5 * (from + to))
    }
}

/// The levels of dynamic exponent as quotients. The magnitude of a level depends on the distance a of
/// its code from that of 0: where `2^j <= a < 2^(j+1)` it is `(18 a + offset_j) / divisor_j`, which are
/// integers below 2^24, or such an integer times a power of two.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Quotients {
    /// The code of 0. One below the first where the lowest level is not counted from 0.
    pub(crate) zero: f32,
    /// By the lowest three bits of the exponent of a as an f32. Level 0 shares them with another group, whose
    /// offset makes its integer negative: then it is 0.
    pub(crate) offsets: [f32; 8],
    pub(crate) divisors: [f32; 8],
    pub(crate) reciprocals: [f32; 8],
}

impl Quotients {
    /// For the 256 levels of dynamic exponent; `None` if they are others.
    pub(super) fn of(levels: &[f32]) -> Option<Self> {
        let signed = levels[0] < 0.0;
        // Unsigned, code 0 is level 0 and a = 1 + code, so that every group has 2^j codes.
        let zero = if signed { 127.0 } else { -1.0 };
        let decades = if signed { 7 } else { 8 };
        let mut table = Self {
            zero,
            offsets: [0.0; 8],
            divisors: [1.0; 8],
            reciprocals: [1.0; 8],
        };
        let mut set = |a: f32, offset: f32, divisor: f32| {
            let at = (a.to_bits() >> 23 & 7) as usize;
            table.offsets[at] = offset;
            table.divisors[at] = divisor;
            table.reciprocals[at] = 1.0 / divisor;
        };
        for j in 0..decades {
            let two = (1_u32 << j) as f32;
            let divisor = 2.0 * two * 10_f32.powi(decades - j);
            set(two, 9.0 - 16.0 * two, divisor);
        }
        // The level 1.
        let last = if signed { 128.0 } else { 256.0 };
        set(last, 1.0 - 18.0 * last, 1.0);
        let same = levels.len() == 256
            && (0..=255_u8)
                .zip(levels)
                .all(|(code, level)| table.level(code).to_bits() == level.to_bits());
        same.then_some(table)
    }

    /// The level of a code: a division of integers, by a reciprocal that is corrected (Markstein 1990,
    /// "Computation of elementary functions on the IBM RISC System/6000 processor").
    fn level(&self, code: u8) -> f32 {
        let distance = f32::from(code) - self.zero;
        let a = distance.abs();
        let at = (a.to_bits() >> 23 & 7) as usize;
        let integer = a.mul_add(18.0, self.offsets[at]).max(0.0);
        let quotient = integer * self.reciprocals[at];
        let rest = (-quotient).mul_add(self.divisors[at], integer);
        let level = rest.mul_add(self.reciprocals[at], quotient);
        // A level of 0 has no sign, as its distance has none.
        level.copysign(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Mapping, Table};

    /// What positions are computed by: one way for all backends.
    fn position(lines: &Lines, y: f32) -> f32 {
        let k = lines.breaks.iter().filter(|b| y > **b).count();
        lines.slopes[k].mul_add(y, lines.offsets[k])
    }

    #[test]
    fn dynamic_exponent_of_eight_bits_has_both_forms() {
        for signed in [false, true] {
            let table = Table::of(Mapping::De, 8, signed, &[]).unwrap();
            assert!(table.lines.is_some(), "{signed}");
            assert!(table.quotients.is_some(), "{signed}");
        }
        for (mapping, signed) in [
            (Mapping::Linear, false),
            (Mapping::LinearWithZero, true),
            (Mapping::De0, false),
        ] {
            let table = Table::of(mapping, 8, signed, &[]).unwrap();
            assert!(table.lines.is_some(), "{mapping:?}");
            assert!(table.quotients.is_none(), "{mapping:?}");
        }
        for (mapping, bits) in [
            (Mapping::Power2, 8),
            (Mapping::Geometric, 8),
            (Mapping::De, 4),
        ] {
            let table = Table::of(mapping, bits, false, &[]).unwrap();
            assert!(table.lines.is_none(), "{mapping:?} {bits}");
        }
    }

    /// The sum of errors that [`Lines::NEAR`] must be above, as it is at 2^24 values of y.
    #[test]
    fn positions_far_from_integers_have_the_codes_as_floors() {
        for (mapping, signed) in [
            (Mapping::De, false),
            (Mapping::De, true),
            (Mapping::De0, false),
        ] {
            let table = Table::of(mapping, 8, signed, &[]).unwrap();
            let lines = table.lines.as_ref().unwrap();
            let positive = &table.midpoints[usize::from(lines.zero.unwrap_or(0))..];
            let one = 1.0_f32.to_bits();
            let mut code = 0;
            // Every 23rd f32 from 2^-46 to 1.
            for bits in (one - (46 << 23)..=one).step_by(23) {
                let y = f32::from_bits(bits);
                while code < positive.len() && y > positive[code] {
                    code += 1;
                }
                let position = position(lines, y);
                if (position - position.round()).abs() > Lines::NEAR {
                    let floor = position.floor().max(0.0);
                    assert_eq!(floor, code as f32, "{mapping:?} {signed} {y:e}");
                }
            }
        }
    }
}
