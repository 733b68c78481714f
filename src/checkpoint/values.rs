//! Reading one tensor, or a slice of one, as f32 values.

use super::place::{Place, enclosing};
use super::read::Checkpoint;
use crate::error::{Result, invalid};
use crate::layout::index;
use crate::plan::TensorInfo;
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
        let tensors = self.tensors();
        let Some(info) = tensors.iter().find(|info| info.name == name) else {
            return Err(invalid(format!("there is no tensor {name:?}")));
        };
        let states = self.spec().states();
        let Some(number) = states.iter().position(|other| *other == state) else {
            return Err(invalid(format!(
                "there is no state {state:?}; there are {}",
                states.join(", ")
            )));
        };
        let wanted = wanted(&info.shape, offset, shape)?;
        // Once whole, to know the block.
        let whole = self.plan(vec![info.clone()])?;
        let place = enclosing(&info.shape, &wanted, whole.tensors[0].grid.block);
        let plan = self.plan(vec![TensorInfo {
            shape: place.shape.clone(),
            global_shape: Some(info.shape.clone()),
            offset: Some(place.offset.clone()),
            ..info.clone()
        }])?;
        let memory = State::new(&plan, std::ptr::null_mut())?;
        let (first, count) = {
            let state = &plan.tensors[0].states[number];
            (state.first_buffer, state.buffer_count)
        };
        let buffers = plan.buffers.iter().zip(memory.buffers());
        for (info, buffer) in buffers.skip(first).take(count) {
            let bytes = buffer_bytes(*buffer);
            self.gather(&plan, info)?.fill(bytes)?;
        }
        let mut values = crate::codec::values(plan.tensors[0].numel)?;
        let output = [Buffer {
            data: values.as_mut_ptr().cast(),
            bytes: 4 * plan.tensors[0].numel,
        }];
        // SAFETY: the plan's own state, and values of its tensor's size.
        #[expect(unsafe_code, reason = "decodes into memory of this function")]
        unsafe {
            plan.decompress(number, memory.buffers(), &output, std::ptr::null_mut())?;
        }
        Ok(inner(&values, &place, &wanted))
    }
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

/// The memory of a buffer that this module owns.
fn buffer_bytes<'a>(buffer: Buffer) -> &'a mut [u8] {
    if buffer.bytes == 0 {
        return &mut [];
    }
    // SAFETY: of a `State` that nobody else has, alive while the slice is used.
    #[expect(unsafe_code, reason = "a state's arena has raw pointers")]
    unsafe {
        std::slice::from_raw_parts_mut(buffer.data.cast(), index(buffer.bytes))
    }
}

/// The elements of `wanted` among those of `place`.
fn inner(values: &[f32], place: &Place, wanted: &Place) -> Vec<f32> {
    if place == wanted {
        return values.to_vec();
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
