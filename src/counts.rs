//! How the codes of a state are used, counted from its bytes.

use crate::layout::{div_ceil, index};
use crate::plan::{Codes, Scales, TensorPlan};
use crate::quant::Table;

/// Counts of one state of one tensor.
pub(crate) struct Counts {
    /// Elements with the lowest code, where the scale is not 0.
    pub(crate) lowest: i64,
    /// Elements with the highest code, where the scale is not 0.
    pub(crate) highest: i64,
    /// Elements whose scale is 0.
    pub(crate) unscaled: i64,
    /// Blocks whose scale is 0, and all blocks; `None` where scales are not of blocks.
    pub(crate) blocks: Option<(i64, i64)>,
    /// Sum of squares of the errors by rounding to nearest, if values are spread evenly between the
    /// midpoints of their codes.
    pub(crate) squared_error: f64,
}

impl Counts {
    /// Of a state's buffers: codes, then scales or maxima.
    pub(crate) fn of(tensor: &TensorPlan, codes: &Codes, buffers: &[&[u8]]) -> Self {
        let grid = &tensor.grid;
        let row_bytes = index(grid.code_bytes(codes.per_byte));
        let per_byte = index(codes.per_byte);
        let width = 8 / per_byte;
        let last = codes.table.levels.len() - 1;
        let errors = mean_squares(&codes.table);
        let f32_at = |buffer: &[u8], at: usize| f32::from_le_bytes(buffer.as_chunks::<4>().0[at]);
        let mut counts = Self {
            lowest: 0,
            highest: 0,
            unscaled: 0,
            blocks: match codes.scales {
                Scales::Block(_) => {
                    let scales = buffers[1].len() / 4;
                    let dead = (0..scales).filter(|&at| f32_at(buffers[1], at) == 0.0);
                    Some((dead.count() as i64, scales as i64))
                }
                Scales::Maxima(_) => None,
            },
            squared_error: 0.0,
        };
        let mut position = vec![0; tensor.info.shape.len()];
        let mut element = 0_i64;
        for row in 0..index(grid.rows) {
            for col in 0..index(grid.cols) {
                let scale = match &codes.scales {
                    Scales::Block(block) => {
                        let blocks = index(div_ceil(grid.cols, *block));
                        f32_at(buffers[1], row * blocks + col / index(*block))
                    }
                    Scales::Maxima(maxima) => {
                        let mut rest = element;
                        for axis in (0..position.len()).rev() {
                            position[axis] = rest % tensor.info.shape[axis];
                            rest /= tensor.info.shape[axis];
                        }
                        let bits = maxima.iter().zip(&buffers[1..]).map(|(maxima, buffer)| {
                            f32_at(buffer, maxima.projection.position(&position)).to_bits()
                        });
                        f32::from_bits(bits.min().unwrap_or(0))
                    }
                };
                element += 1;
                if scale == 0.0 {
                    counts.unscaled += 1;
                    continue;
                }
                let byte = usize::from(buffers[0][row * row_bytes + col / per_byte]);
                let code = (byte >> (col % per_byte * width) & ((1 << width) - 1)).min(last);
                counts.lowest += i64::from(code == 0);
                counts.highest += i64::from(code == last);
                if scale.is_finite() {
                    counts.squared_error += errors[code] * f64::from(scale) * f64::from(scale);
                }
            }
        }
        counts
    }
}

/// For each code the mean of `(x - level)^2` over the values x that are nearest to its level.
fn mean_squares(table: &Table) -> Vec<f64> {
    let levels: Vec<_> = table.levels.iter().map(|level| f64::from(*level)).collect();
    let lowest = if levels[0] < 0.0 { -1.0 } else { 0.0 };
    let ends = |i: usize| {
        let below = i.checked_sub(1).map(|i| f64::from(table.midpoints[i]));
        let above = table.midpoints.get(i).map(|above| f64::from(*above));
        (below.unwrap_or(lowest), above.unwrap_or(1.0))
    };
    (0..levels.len())
        .map(|i| {
            let (below, above) = ends(i);
            let (a, b) = (below - levels[i], above - levels[i]);
            if b > a {
                (b.powi(3) - a.powi(3)) / (3.0 * (b - a))
            } else {
                0.0
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Mapping;

    #[test]
    fn cells_of_equal_levels_have_a_twelfth_of_their_square() {
        let table = Table::of(Mapping::LinearWithZero, 4, false, &[]).unwrap();
        let cell = 1.0 / 15.0;
        let errors = mean_squares(&table);
        for error in &errors[1..15] {
            assert!((error - cell * cell / 12.0).abs() < 1e-9, "{error}");
        }
        // Half a cell at each end.
        assert!((errors[0] - cell * cell / 12.0).abs() < 1e-9);
    }
}
