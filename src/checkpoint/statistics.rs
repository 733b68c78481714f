//! What a checkpoint's bytes say of its states, without the values that they were made of.

use serde::Serialize;

use super::read::Checkpoint;
use super::values::{Part, memory};
use crate::error::Result;
use crate::layout::index;
use crate::plan::{Codes, Format, Scales, TensorPlan};
use crate::quant::Table;

/// One state of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StateStatistics {
    /// `m`, `v`, `vmax` or `x`.
    pub state: String,
    /// As `4-bit block(128)/de`.
    pub quantizer: String,
    /// Of all its buffers.
    pub bytes: i64,
    /// Root of the mean square of the finite values.
    pub rms: f64,
    /// Largest magnitude of the finite values.
    pub largest: f64,
    /// Values that are NaN or infinite.
    pub nonfinite: i64,
    /// Root of the mean square of the errors by rounding to nearest, relative to `rms`, if values are
    /// spread evenly between the midpoints of their codes; `None` without codes.
    pub estimated_error: Option<f64>,
    /// Share of the elements with the lowest code, where the scale is not 0.
    pub lowest_codes: Option<f64>,
    /// Share with the highest.
    pub highest_codes: Option<f64>,
    /// Share of the elements whose scale is 0.
    pub zero_scales: Option<f64>,
}

impl Checkpoint<'_> {
    /// Statistics of all states of one tensor, which is decoded in memory. Checksums are not compared:
    /// [`Checkpoint::verify`] does that.
    ///
    /// # Errors
    /// As for [`Checkpoint::values`].
    pub fn statistics(&self, name: &str) -> Result<Vec<StateStatistics>> {
        let part = self.part(name, None)?;
        let tensor = &part.plan.tensors[0];
        (0..tensor.states.len())
            .map(|number| {
                let values = self.decode(&part, number)?;
                Ok(of(&part, tensor, number, &values))
            })
            .collect()
    }
}

fn of(part: &Part, tensor: &TensorPlan, number: usize, values: &[f32]) -> StateStatistics {
    let state = &tensor.states[number];
    let buffers = &part.state.buffers()[tensor.state_buffers(number)];
    let finite = || values.iter().filter(|value| value.is_finite());
    let squares = finite().fold(0.0, |sum, x| sum + f64::from(*x) * f64::from(*x));
    let count = finite().count();
    let codes = match &state.format {
        Format::Codes(codes) => {
            let bytes: Vec<_> = buffers.iter().map(|buffer| memory(*buffer)).collect();
            Some(code_statistics(tensor, codes, &bytes))
        }
        _ => None,
    };
    let share = |count: i64| count as f64 / tensor.numel.max(1) as f64;
    StateStatistics {
        state: state.name.to_owned(),
        quantizer: state.describe(),
        bytes: buffers.iter().map(|buffer| buffer.bytes).sum(),
        rms: (squares / count.max(1) as f64).sqrt(),
        largest: finite().fold(0.0, |largest, x| largest.max(f64::from(x.abs()))),
        nonfinite: (values.len() - count) as i64,
        estimated_error: codes.as_ref().map(|codes| {
            if codes.error == 0.0 {
                0.0
            } else {
                (codes.error / squares).sqrt()
            }
        }),
        lowest_codes: codes.as_ref().map(|codes| share(codes.lowest)),
        highest_codes: codes.as_ref().map(|codes| share(codes.highest)),
        zero_scales: codes.as_ref().map(|codes| share(codes.zero)),
    }
}

struct CodeStatistics {
    error: f64,
    lowest: i64,
    highest: i64,
    zero: i64,
}

fn code_statistics(tensor: &TensorPlan, codes: &Codes, buffers: &[&mut [u8]]) -> CodeStatistics {
    let grid = &tensor.grid;
    let row_bytes = index(grid.code_bytes(codes.per_byte));
    let per_byte = index(codes.per_byte);
    let width = 8 / per_byte;
    let last = codes.table.levels.len() - 1;
    let errors = mean_squares(&codes.table);
    let mut found = CodeStatistics {
        error: 0.0,
        lowest: 0,
        highest: 0,
        zero: 0,
    };
    let f32_at = |buffer: &[u8], at: usize| -> f32 {
        let bytes = buffer.as_chunks::<4>().0;
        f32::from_le_bytes(bytes[at])
    };
    let mut position = vec![0; tensor.info.shape.len()];
    let mut element = 0_i64;
    for row in 0..index(grid.rows) {
        for col in 0..index(grid.cols) {
            let scale = match &codes.scales {
                Scales::Block(block) => {
                    let blocks = index(crate::layout::div_ceil(grid.cols, *block));
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
                found.zero += 1;
                continue;
            }
            let byte = usize::from(buffers[0][row * row_bytes + col / per_byte]);
            let code = (byte >> (col % per_byte * width) & ((1 << width) - 1)).min(last);
            found.lowest += i64::from(code == 0);
            found.highest += i64::from(code == last);
            if scale.is_finite() {
                found.error += errors[code] * f64::from(scale) * f64::from(scale);
            }
        }
    }
    found
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
