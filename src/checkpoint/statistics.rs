//! What a checkpoint's bytes say of its states, without the values that they were made of.

use serde::Serialize;

use super::read::Checkpoint;
use super::values::{Part, memory};
use crate::counts::Counts;
use crate::error::Result;
use crate::plan::{Format, TensorPlan};

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
            let bytes: Vec<_> = buffers.iter().map(|buffer| &*memory(*buffer)).collect();
            Some(Counts::of(tensor, codes, &bytes))
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
            if codes.squared_error == 0.0 {
                0.0
            } else {
                (codes.squared_error / squares).sqrt()
            }
        }),
        lowest_codes: codes.as_ref().map(|codes| share(codes.lowest)),
        highest_codes: codes.as_ref().map(|codes| share(codes.highest)),
        zero_scales: codes.as_ref().map(|codes| share(codes.unscaled)),
    }
}
