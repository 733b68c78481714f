//! States as f32 values: the primitives under every optimizer (the paper's Algorithm 1 takes any),
//! import and export, and the change of a quantizer during training.

use std::ffi::c_void;

use crate::backend::{Codec, Context};
use crate::dtype::Dtype;
use crate::error::{Result, invalid, unsupported};
use crate::layout::index;
use crate::plan::{Plan, StatePlan};
use crate::reserve::zeros;
use crate::step::{Buffer, check, count};

/// What [`Plan::ema`] takes besides state and stream. Slices are in the plan's order.
#[derive(Clone, Copy, Debug)]
pub struct EmaArgs<'a> {
    /// One per tensor, in its gradient's dtype.
    pub inputs: &'a [Buffer],
    /// One per tensor, f32: receives the new average.
    pub outputs: &'a [Buffer],
    /// One per state buffer of the plan.
    pub state: &'a [Buffer],
    /// Factor of the old average.
    pub decay: f32,
    /// Factor of the input.
    pub weight: f32,
    /// Number of this step, for random numbers.
    pub step: i32,
}

impl Plan {
    /// Quantizes f32 values into one state of every tensor (`state` counts from 0 in the order of
    /// `Spec::states`). Random roundings draw as in step 0.
    ///
    /// # Errors
    /// As for [`Plan::step`]; `Unsupported` for a state of a shard whose scales or factors belong
    /// to the global tensor.
    ///
    /// # Safety
    /// As for [`Plan::step`].
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub unsafe fn compress(
        &self,
        state: usize,
        values: &[Buffer],
        buffers: &[Buffer],
        stream: *mut c_void,
    ) -> Result<()> {
        self.check_codec(state, values, buffers, true)?;
        self.overlap.check_codec(self, &[], values, buffers, true)?;
        // SAFETY: the caller's promise; sizes, alignment and overlap were checked above.
        unsafe {
            self.context
                .compress(&self.codec(state, values, buffers), stream)
        }
    }

    /// The reverse of [`Plan::compress`].
    ///
    /// # Errors
    /// As for [`Plan::step`].
    ///
    /// # Safety
    /// As for [`Plan::step`].
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub unsafe fn decompress(
        &self,
        state: usize,
        buffers: &[Buffer],
        values: &[Buffer],
        stream: *mut c_void,
    ) -> Result<()> {
        self.check_codec(state, values, buffers, false)?;
        self.overlap
            .check_codec(self, &[], values, buffers, false)?;
        // SAFETY: the caller's promise; sizes, alignment and overlap were checked above.
        unsafe {
            self.context
                .decompress(&self.codec(state, values, buffers), stream)
        }
    }

    /// Averages inputs into one state of every tensor: `x' = fma(decay, x, RN(weight input))`
    /// leaves in f32, and its coded form is kept. For optimizers that live in the trainer: Muon's
    /// momentum, Shampoo's statistics.
    ///
    /// # Errors
    /// As for [`Plan::compress`]; `InvalidArgument` for factors that are not finite.
    ///
    /// # Safety
    /// As for [`Plan::step`].
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub unsafe fn ema(&self, state: usize, args: &EmaArgs<'_>, stream: *mut c_void) -> Result<()> {
        for (name, value) in [("decay", args.decay), ("weight", args.weight)] {
            if !value.is_finite() {
                return Err(invalid(format!("{name} is {value}; it must be finite")));
            }
        }
        self.check_codec(state, args.outputs, args.state, true)?;
        count("inputs", args.inputs.len(), self.tensors.len())?;
        for (i, tensor) in self.tensors.iter().enumerate() {
            let dtype = tensor.info.grad_dtype;
            let bytes = tensor.numel * dtype.size() as i64;
            check(args.inputs[i], bytes, dtype, || {
                format!("inputs[{i}] ({})", tensor.info.name)
            })?;
        }
        self.overlap
            .check_codec(self, args.inputs, args.outputs, args.state, true)?;
        // SAFETY: the caller's promise; everything was checked above.
        unsafe { self.context.ema(self, state, args, stream) }
    }

    /// Converts the states of another plan for the same tensors into those of this one: another
    /// quantizer, another optimizer. States that are kept alike are copied, others decoded and
    /// coded again, tensor by tensor; those that the other plan does not have become zero. What is
    /// kept beside a parameter is copied under the same weight form and else becomes zero, so that
    /// the parameter counts.
    ///
    /// # Errors
    /// `InvalidArgument` if the tensors differ; otherwise as for [`Plan::compress`].
    ///
    /// # Safety
    /// As for [`Plan::step`], for both lists of state buffers, which do not overlap.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub unsafe fn convert_from(&self, from: &Self, old: &[Buffer], new: &[Buffer]) -> Result<()> {
        from.check_state(old)?;
        self.check_state(new)?;
        count("tensors", from.tensors.len(), self.tensors.len())?;
        if matches!(self.context.as_ref(), Context::Cuda(_))
            || matches!(from.context.as_ref(), Context::Cuda(_))
        {
            return Err(unsupported("convert works on CPU contexts in this version"));
        }
        // Everything that can be refused is refused before anything is written.
        let pairs = (0..self.tensors.len())
            .map(|i| self.pair(from, i))
            .collect::<Result<Vec<_>>>()?;
        self.overlap.check_codec(self, old, &[], new, true)?;
        for (i, (source, target)) in pairs.into_iter().enumerate() {
            let old = part(old, from.tensors[i].first_buffer, source.buffers.len());
            let new = part(new, self.tensors[i].first_buffer, target.buffers.len());
            // SAFETY: the caller's promise.
            unsafe { target.convert_tensor(&source, old, new)? };
        }
        Ok(())
    }

    /// The plans of tensor `i` alone, here and there.
    fn pair(&self, from: &Self, i: usize) -> Result<(Self, Self)> {
        let (source, target) = (&from.tensors[i], &self.tensors[i]);
        let name = &target.info.name;
        let same = source.info.name == *name
            && source.info.shape == target.info.shape
            && source.global_shape == target.global_shape
            && source.offset == target.offset;
        if !same {
            return Err(invalid(format!(
                "tensor {i} is {:?} {:?} in one plan and {name:?} {:?} in the other",
                source.info.name, source.info.shape, target.info.shape
            )));
        }
        for state in &target.states {
            let found = source.states.iter().find(|other| other.name == state.name);
            let coded_anew = found.is_some_and(|other| other.format != state.format);
            let global = !state.maxima().is_empty() || target.factored().is_some();
            if coded_anew && global && target.is_shard() {
                return Err(unsupported(format!(
                    "{name} is a shard whose scales or factors belong to the global tensor"
                )));
            }
        }
        Ok((from.alone(i)?, self.alone(i)?))
    }

    /// A plan for one of the tensors.
    pub(crate) fn alone(&self, i: usize) -> Result<Self> {
        let info = crate::plan::TensorInfo {
            group: 0,
            ..self.tensors[i].info.clone()
        };
        Self::new(std::sync::Arc::clone(&self.context), &self.spec, vec![info])
    }

    /// # Safety
    /// As for [`Plan::convert_from`]; both plans have the same one tensor.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    unsafe fn convert_tensor(&self, from: &Self, old: &[Buffer], new: &[Buffer]) -> Result<()> {
        let (source, target) = (&from.tensors[0], &self.tensors[0]);
        for buffer in new {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::write_bytes(buffer.data.cast::<u8>(), 0, index(buffer.bytes)) };
        }
        for (i, state) in target.states.iter().enumerate() {
            let found = source
                .states
                .iter()
                .position(|other| other.name == state.name);
            let Some(j) = found else { continue };
            // SAFETY: the caller's promise; the values are this function's.
            unsafe {
                if same_layout(&source.states[j], state) {
                    copy(
                        part(old, source.states[j].first_buffer, state.buffer_count),
                        part(new, state.first_buffer, state.buffer_count),
                    );
                    continue;
                }
                let mut values: Vec<f32> = zeros(index(target.numel))?;
                let buffer = [Buffer {
                    data: values.as_mut_ptr().cast(),
                    bytes: 4 * target.numel,
                }];
                from.decompress(j, old, &buffer, std::ptr::null_mut())?;
                self.compress(i, &buffer, new, std::ptr::null_mut())?;
            }
        }
        if source.info.weights == target.info.weights
            && source.info.param_dtype == target.info.param_dtype
            && target.info.weights.beside().is_some()
        {
            // SAFETY: the caller's promise.
            unsafe { copy(&old[old.len() - 1..], &new[new.len() - 1..]) };
        }
        Ok(())
    }

    fn codec<'a>(&'a self, state: usize, values: &'a [Buffer], buffers: &'a [Buffer]) -> Codec<'a> {
        Codec {
            plan: self,
            state,
            step: 0,
            values,
            buffers,
        }
    }

    fn check_codec(
        &self,
        state: usize,
        values: &[Buffer],
        buffers: &[Buffer],
        compress: bool,
    ) -> Result<()> {
        let states = self.spec.states();
        if state >= states.len() {
            return Err(invalid(format!(
                "state is {state}; the plan has {}",
                states.join(", ")
            )));
        }
        count("values", values.len(), self.tensors.len())?;
        self.check_state(buffers)?;
        for (i, tensor) in self.tensors.iter().enumerate() {
            let name = &tensor.info.name;
            check(values[i], tensor.numel * 4, Dtype::F32, || {
                format!("values[{i}] ({name})")
            })?;
            if compress && tensor.states[state].is_global() && tensor.is_shard() {
                return Err(unsupported(format!(
                    "{name} is a shard whose scales or factors belong to the global tensor"
                )));
            }
        }
        Ok(())
    }
}

/// Whether the buffers of two states mean the same, random roundings aside.
fn same_layout(a: &StatePlan, b: &StatePlan) -> bool {
    a.quantizer == b.quantizer && a.format == b.format
}

fn part(list: &[Buffer], first: usize, count: usize) -> &[Buffer] {
    &list[first..first + count]
}

/// # Safety
/// Pairs of valid buffers of one size that do not overlap.
#[expect(unsafe_code, reason = "works on the caller's raw buffers")]
unsafe fn copy(from: &[Buffer], to: &[Buffer]) {
    for (from, to) in from.iter().zip(to) {
        // SAFETY: the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(from.data.cast::<u8>(), to.data.cast(), index(to.bytes));
        }
    }
}
