//! States as f32 values: the primitives under every optimizer (the paper's Algorithm 1 takes any),
//! import and export, and the change of a quantizer during training.

use std::ffi::c_void;
use std::sync::Arc;

use crate::backend::{Codec, Context};
use crate::dtype::Dtype;
use crate::error::{Result, invalid, unsupported};
use crate::layout::index;
use crate::plan::{Plan, StatePlan};
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
    /// the parameter counts. Takes 4 bytes for each element of the largest tensor that is coded
    /// again, where the states are. On a CUDA device it waits for all work, does its own and waits
    /// for that.
    ///
    /// # Errors
    /// `InvalidArgument` if the tensors differ; `Unsupported` unless the states of both plans are in
    /// the host's memory, or on one device; `OutOfMemory`, `CudaOutOfMemory`; otherwise as for
    /// [`Plan::compress`].
    ///
    /// # Safety
    /// As for [`Plan::step`], for both lists of state buffers, which do not overlap.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub unsafe fn convert_from(&self, from: &Self, old: &[Buffer], new: &[Buffer]) -> Result<()> {
        from.check_state(old)?;
        self.check_state(new)?;
        count("tensors", from.tensors.len(), self.tensors.len())?;
        let memories = [from, self].map(|plan| plan.context.memory());
        if memories[0] != memories[1] {
            let [old, new] = memories.map(|device| match device {
                Some(device) => format!("on CUDA device {device}"),
                None => "in the host's memory".to_owned(),
            });
            return Err(unsupported(format!(
                "the old states are {old}, the new ones {new}: convert does not copy between \
                 memories, as checkpoints do"
            )));
        }
        // Everything that can be refused is refused before anything is written.
        let pairs = (0..self.tensors.len())
            .map(|i| self.pair(from, i))
            .collect::<Result<Vec<_>>>()?;
        self.overlap.check_codec(self, old, &[], new, true)?;
        let largest = (pairs.iter())
            .filter(|(source, target)| target.codes_again(source))
            .map(|(_, target)| target.tensors[0].numel)
            .max();
        let stream = std::ptr::null_mut();
        self.context.synchronize()?;
        let arena = (self.context).allocate(4 * largest.unwrap_or(0), stream)?;
        let converted = pairs
            .iter()
            .enumerate()
            .try_for_each(|(i, (source, target))| {
                let old = part(old, from.tensors[i].first_buffer, source.buffers.len());
                let new = part(new, self.tensors[i].first_buffer, target.buffers.len());
                let values = Buffer {
                    data: arena.data(),
                    bytes: 4 * target.tensors[0].numel,
                };
                // SAFETY: the caller's promise.
                unsafe { target.convert_tensor(source, old, new, values) }
            });
        self.context.free(arena, stream);
        converted?;
        self.context.synchronize()
    }

    /// Whether a state of the one tensor is decoded from the other plan's and coded again.
    fn codes_again(&self, from: &Self) -> bool {
        self.tensors[0].states.iter().any(|state| {
            let mut states = from.tensors[0].states.iter();
            let found = states.find(|other| other.name == state.name);
            found.is_some_and(|other| !same_layout(other, state))
        })
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
    fn alone(&self, i: usize) -> Result<Self> {
        self.alone_on(&self.context, i)
    }

    /// The same on another context.
    pub(crate) fn alone_on(&self, context: &Arc<Context>, i: usize) -> Result<Self> {
        let info = crate::plan::TensorInfo {
            group: 0,
            ..self.tensors[i].info.clone()
        };
        Self::new(Arc::clone(context), &self.spec, vec![info])
    }

    /// # Safety
    /// As for [`Plan::convert_from`]; both plans have the same one tensor. `values` is memory of the
    /// context for its elements in f32, if a state is coded again.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    unsafe fn convert_tensor(
        &self,
        from: &Self,
        old: &[Buffer],
        new: &[Buffer],
        values: Buffer,
    ) -> Result<()> {
        let (source, target) = (&from.tensors[0], &self.tensors[0]);
        let (context, stream) = (&self.context, std::ptr::null_mut());
        for buffer in new.iter().filter(|buffer| buffer.bytes > 0) {
            // SAFETY: the caller's promise.
            unsafe { context.zero(buffer.data, index(buffer.bytes), stream)? };
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
                    let old = part(old, source.states[j].first_buffer, state.buffer_count);
                    let new = part(new, state.first_buffer, state.buffer_count);
                    copy(context, old, new)?;
                    continue;
                }
                from.decompress(j, old, &[values], stream)?;
                self.compress(i, &[values], new, stream)?;
            }
        }
        if source.info.weights == target.info.weights
            && source.info.param_dtype == target.info.param_dtype
            && target.info.weights.beside().is_some()
        {
            // SAFETY: the caller's promise.
            unsafe { copy(context, &old[old.len() - 1..], &new[new.len() - 1..])? };
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
/// Pairs of valid buffers of the context, of one size.
#[expect(unsafe_code, reason = "works on the caller's raw buffers")]
unsafe fn copy(context: &Context, from: &[Buffer], to: &[Buffer]) -> Result<()> {
    let pairs = from.iter().zip(to).filter(|(_, to)| to.bytes > 0);
    for (from, to) in pairs {
        // SAFETY: the caller's promise.
        unsafe { context.copy(from.data, to.data, index(to.bytes), std::ptr::null_mut())? };
    }
    Ok(())
}
