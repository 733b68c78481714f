//! Reading one tensor, or a slice of one, as f32 values.

use super::place::{Place, enclosing};
use super::read::Checkpoint;
use crate::error::{Result, invalid};
use crate::layout::index;
use crate::plan::{Plan, TensorInfo};
use crate::reserve::zeros;
use crate::state::State;
use crate::step::Buffer;

impl Checkpoint<'_> {
    /// The values of the state `state` (`m`, `v`, `vmax` or `x`) of tensor `name` in the box at
    /// `offset` with extents `shape`, in C order. Only the parts of the files that hold the blocks
    /// of the box are read, so checksums of entries are not compared: [`Checkpoint::verify`] does that.
    ///
    /// # Errors
    /// `InvalidArgument` for a tensor, state or box that is not there; `Io`; `OutOfMemory`.
    pub fn values(
        &self,
        name: &str,
        state: &str,
        offset: &[i64],
        shape: &[i64],
    ) -> Result<Vec<f32>> {
        let states = self.spec().states();
        let Some(number) = states.iter().position(|other| *other == state) else {
            return Err(invalid(format!(
                "there is no state {state:?}; there are {}",
                states.join(", ")
            )));
        };
        let info = self.info(name)?;
        let wanted = wanted(&info.shape, offset, shape)?;
        let part = self.part(name, Some(&wanted))?;
        let values = self.decode(&part, number)?;
        let tensor = &part.plan.tensors[0];
        let place = Place {
            offset: tensor.offset.clone(),
            shape: tensor.info.shape.clone(),
        };
        Ok(inner(values, &place, &wanted))
    }

    fn info(&self, name: &str) -> Result<TensorInfo> {
        self.whole(name)
            .ok_or_else(|| invalid(format!("there is no tensor {name:?}")))
    }

    /// Room for the states of a tensor, or of the shard of it that holds `wanted`.
    pub(super) fn part(&self, name: &str, wanted: Option<&Place>) -> Result<Part> {
        let info = self.info(name)?;
        let mut plan = self.plan(vec![info.clone()])?;
        if let Some(wanted) = wanted {
            let place = enclosing(&info.shape, wanted, plan.tensors[0].grid.block);
            plan = self.plan(vec![TensorInfo {
                shape: place.shape,
                global_shape: Some(info.shape.clone()),
                offset: Some(place.offset),
                ..info
            }])?;
        }
        let state = State::new(&plan, std::ptr::null_mut())?;
        Ok(Part { plan, state })
    }

    /// Reads one state of a part, and decodes it.
    pub(super) fn decode(&self, part: &Part, number: usize) -> Result<Vec<f32>> {
        let (plan, buffers) = (&part.plan, part.state.buffers());
        let tensor = &plan.tensors[0];
        let range = tensor.state_buffers(number);
        for (info, buffer) in plan.buffers[range.clone()].iter().zip(&buffers[range]) {
            self.gather(plan, info)?.fill(memory(*buffer))?;
        }
        let mut values: Vec<f32> = zeros(index(tensor.numel))?;
        let output = [Buffer {
            data: values.as_mut_ptr().cast(),
            bytes: 4 * tensor.numel,
        }];
        // SAFETY: the plan's own state, and values of its tensor's size.
        #[expect(unsafe_code, reason = "decodes into memory of this function")]
        unsafe {
            plan.decompress(number, buffers, &output, std::ptr::null_mut())?;
        }
        Ok(values)
    }
}

/// A plan of one tensor, with a state that nobody else has.
pub(super) struct Part {
    pub(super) plan: Plan,
    pub(super) state: State,
}

fn wanted(global: &[i64], offset: &[i64], shape: &[i64]) -> Result<Place> {
    let fits = offset.len() == global.len()
        && shape.len() == global.len()
        && (0..global.len()).all(|axis| {
            offset[axis] >= 0
                && shape[axis] >= 0
                && offset[axis]
                    .checked_add(shape[axis])
                    .is_some_and(|end| end <= global[axis])
        });
    if !fits {
        return Err(invalid(format!(
            "offset {offset:?} and shape {shape:?} are no box of a tensor {global:?}"
        )));
    }
    Ok(Place {
        offset: offset.to_vec(),
        shape: shape.to_vec(),
    })
}

/// The memory of a buffer of a [`Part`].
pub(super) fn memory<'a>(buffer: Buffer) -> &'a mut [u8] {
    if buffer.bytes == 0 {
        return &mut [];
    }
    // SAFETY: of a part's state, alive and used once at a time while the slice is.
    #[expect(unsafe_code, reason = "a state's arena has raw pointers")]
    unsafe {
        std::slice::from_raw_parts_mut(buffer.data.cast(), index(buffer.bytes))
    }
}

/// The elements of `wanted` among those of `place`.
fn inner(values: Vec<f32>, place: &Place, wanted: &Place) -> Vec<f32> {
    if place == wanted {
        return values;
    }
    let count: i64 = wanted.shape.iter().product();
    let position = |element: i64| {
        let (mut rest, mut at, mut stride) = (element, 0, 1);
        for axis in (0..place.shape.len()).rev() {
            let here = wanted.offset[axis] - place.offset[axis];
            at += (rest % wanted.shape[axis] + here) * stride;
            rest /= wanted.shape[axis];
            stride *= place.shape[axis];
        }
        values[index(at)]
    };
    (0..count).map(position).collect()
}
