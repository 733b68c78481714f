//! A plan: what every tensor got, where every state buffer lies, how much memory that takes.
//!
//! Made once from a context, a spec and tensor descriptors; immutable afterwards and shareable
//! between threads. Everything that can fail for reasons of shape or configuration fails here.

mod build;
mod format;
mod stages;

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use crate::backend::Context;
use crate::dtype::Dtype;
use crate::error::{Result, invalid};
use crate::layout::Grid;
use crate::numerics::FpEnv;
use crate::reserve;
use crate::spec::Spec;
use crate::step::OverlapCheck;
use crate::weights::Weights;

use build::Builder;
pub use format::{Codes, Factor, Format, Maxima, RmsPlan, Scales, StatePlan};
pub(crate) use stages::{Pass, Scratch};
pub use stages::{Reduce, StageInfo};

/// The most axes a tensor may have.
pub const MAX_AXES: usize = 16;

/// The most groups of hyper-parameters a plan may have.
pub const MAX_GROUPS: usize = 1 << 16;

/// A tensor as the trainer describes it.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Unique in the plan; matched by the spec's overrides and written to checkpoints.
    pub name: String,
    /// Extents here, outermost first (C order). Empty for a scalar.
    pub shape: Vec<i64>,
    /// f32, bf16 or f16.
    pub param_dtype: Dtype,
    /// f32, bf16 or f16; need not equal `param_dtype`.
    pub grad_dtype: Dtype,
    /// What is kept beside a 16-bit parameter.
    pub weights: Weights,
    /// Which of the step's blocks of hyper-parameters is this tensor's, from 0.
    pub group: usize,
    /// For a shard: extents of the global tensor. `None`: the tensor is whole.
    pub global_shape: Option<Vec<i64>>,
    /// For a shard: index of its first element along each axis. `None`: the origin.
    pub offset: Option<Vec<i64>>,
}

impl TensorInfo {
    /// A whole tensor with one dtype for parameter and gradient.
    pub fn new(name: impl Into<String>, shape: &[i64], dtype: Dtype) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            param_dtype: dtype,
            grad_dtype: dtype,
            weights: Weights::Plain,
            group: 0,
            global_shape: None,
            offset: None,
        }
    }
}

/// One tensor of a plan.
#[derive(Clone, Debug)]
pub struct TensorPlan {
    /// As described by the trainer.
    pub info: TensorInfo,
    /// Extents of the global tensor (`info.shape` unless it is a shard).
    pub global_shape: Vec<i64>,
    /// Place in the global tensor, zeros unless it is a shard.
    pub offset: Vec<i64>,
    /// Elements here.
    pub numel: i64,
    /// Its rows and blocks.
    pub grid: Grid,
    /// In the order of `Spec::states`.
    pub states: Vec<StatePlan>,
    /// Why it got these quantizers.
    pub reason: String,
    /// Its first buffer in the plan's list.
    pub first_buffer: usize,
    /// How many buffers it has; the last one is what is kept beside the parameter, if anything.
    pub buffer_count: usize,
    pub(crate) rms: Option<RmsPlan>,
    /// Of the name, for random numbers.
    pub(crate) hash: u32,
}

impl TensorPlan {
    /// Where its buffers are in the plan's list.
    #[must_use]
    pub fn buffers(&self) -> Range<usize> {
        self.first_buffer..self.first_buffer + self.buffer_count
    }

    /// Where the buffers of its state number `state` are in the plan's list.
    #[must_use]
    #[inline(always)]
    pub fn state_buffers(&self, state: usize) -> Range<usize> {
        let state = &self.states[state];
        let first = self.first_buffer + state.first_buffer;
        first..first + state.buffer_count
    }

    /// Whether this is a proper part of its global tensor.
    #[must_use]
    pub fn is_shard(&self) -> bool {
        self.info.shape != self.global_shape
    }

    /// Whether its update needs statistics of the whole tensor, so that a single block cannot be
    /// skipped.
    #[must_use]
    pub fn needs_statistics(&self) -> bool {
        self.rms.is_some() || self.states.iter().any(StatePlan::is_global)
    }

    /// Index and factors (rows, columns, mean) of the factored state, if any.
    pub(crate) fn factored(&self) -> Option<(usize, &[Factor; 3])> {
        let mut states = self.states.iter().enumerate();
        states.find_map(|(i, state)| match &state.format {
            Format::Factored(factors) => Some((i, factors.as_ref())),
            _ => None,
        })
    }
}

/// One state buffer of a plan.
#[derive(Clone, Debug)]
pub struct BufferInfo {
    /// Index of the tensor.
    pub tensor: usize,
    /// `m`, `v`, `vmax`, `x`, or `weights` for what is kept beside the parameter.
    pub state: &'static str,
    /// `value`, `codes`, `scales`, `axis0`, `rows`, `master`, ...
    pub part: String,
    /// f32, u8, u16 or i8.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<i64>,
    /// Exact size.
    pub bytes: i64,
    /// Where it lies if all buffers are placed in one arena of [`Plan::arena_bytes`].
    pub arena_offset: i64,
}

/// See the module's page.
#[derive(Debug)]
pub struct Plan {
    pub(crate) context: Arc<Context>,
    pub(crate) spec: Spec,
    pub(crate) tensors: Vec<TensorPlan>,
    pub(crate) buffers: Vec<BufferInfo>,
    pub(crate) state_bytes: i64,
    pub(crate) arena_bytes: i64,
    pub(crate) scratch: Scratch,
    pub(crate) groups: usize,
    pub(crate) schedule: crate::backend::Schedule,
    pub(crate) overlap: OverlapCheck,
}

/// Buffers start at multiples of this in an arena; enough for any vector load.
pub const ARENA_ALIGN: i64 = 256;

impl Plan {
    /// Lays out the states of `tensors` under `spec`.
    ///
    /// # Errors
    /// `InvalidArgument` naming tensor and field; `Unsupported` where the backend of `context`
    /// has no kernel for what a tensor would get.
    pub fn new(context: Arc<Context>, spec: &Spec, tensors: Vec<TensorInfo>) -> Result<Self> {
        // Code tables are computed here, perhaps on a thread that flushes or rounds otherwise.
        let _env = FpEnv::ieee();
        spec.validate()?;
        reserve::room(build::bytes(spec, &tensors))?;
        let patterns = spec
            .overrides
            .iter()
            .map(|rule| glob::Pattern::new(&rule.pattern))
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|error| invalid(error.to_string()))?;
        let mut builder = Builder {
            spec,
            patterns,
            buffers: Vec::new(),
            arena: 0,
            scratch: Scratch::default(),
            tables: Vec::new(),
        };
        let mut names = std::collections::HashSet::new();
        let mut plans = Vec::with_capacity(tensors.len());
        // One word for each tensor's non-finite flag comes first in the statistics.
        builder.scratch.maxima = tensors.len();
        for (index, info) in tensors.into_iter().enumerate() {
            let place = format!("tensor {index} ({:?})", info.name);
            if !names.insert(info.name.clone()) {
                return Err(invalid(format!("{place}: the name is used twice")));
            }
            plans.push(
                builder
                    .tensor(index, info)
                    .map_err(|error| error.within(&place))?,
            );
        }
        let schedule = context.schedule(spec, &plans)?;
        let groups = plans.iter().map(|tensor| tensor.info.group).max();
        let state_bytes = builder.buffers.iter().map(|buffer| buffer.bytes).sum();
        Ok(Self {
            overlap: OverlapCheck::new(plans.len(), builder.buffers.len()),
            context,
            spec: spec.clone(),
            tensors: plans,
            state_bytes,
            arena_bytes: builder.arena,
            buffers: builder.buffers,
            scratch: builder.scratch,
            groups: 1 + groups.unwrap_or(0),
            schedule,
        })
    }

    /// The spec it was made from.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The tensors, in the caller's order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorPlan] {
        &self.tensors
    }

    /// All state buffers: tensor by tensor, state by state, part by part.
    #[must_use]
    pub fn buffers(&self) -> &[BufferInfo] {
        &self.buffers
    }

    /// Exact bytes of all state buffers.
    #[must_use]
    pub fn state_bytes(&self) -> i64 {
        self.state_bytes
    }

    /// Bytes of one arena that holds all state buffers, each aligned to [`ARENA_ALIGN`].
    #[must_use]
    pub fn arena_bytes(&self) -> i64 {
        self.arena_bytes
    }

    /// Bytes of a step's scratch, aligned to 8.
    #[must_use]
    pub fn scratch_bytes(&self) -> i64 {
        let backend = self.schedule.scratch_bytes(self.tensors.len());
        (self.scratch.offsets()[5] + backend) as i64
    }

    /// How many blocks of hyper-parameters a step takes.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// The statistics of a step's stages, in their order.
    #[must_use]
    pub fn stages(&self) -> Vec<StageInfo> {
        let info = |(pass, offset, count)| {
            let (dtype, reduce) = match pass {
                Pass::Maxima | Pass::UpdateMaxima => (Dtype::I32, Reduce::Max),
                _ => (Dtype::I64, Reduce::Sum),
            };
            StageInfo {
                dtype,
                reduce,
                offset,
                count,
            }
        };
        self.passes().map(info).collect()
    }

    /// The collecting passes that this plan needs, with place and number of their statistics. A
    /// plan has the first whatever its tensors: the flags.
    pub(crate) fn passes(&self) -> impl Iterator<Item = (Pass, i64, i64)> {
        let offsets = self.scratch.offsets();
        [
            (Pass::Maxima, self.scratch.maxima),
            (Pass::Sums, self.scratch.sums),
            (Pass::UpdateMaxima, self.scratch.update_maxima),
            (Pass::UpdateSums, self.scratch.update_sums),
        ]
        .into_iter()
        .zip(offsets)
        .filter(|((pass, count), _)| *pass == Pass::Maxima || *count > 0)
        .map(|((pass, count), offset)| (pass, offset as i64, count as i64))
    }

    /// A table that says, per tensor, what it got and why, and the bytes.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = String::new();
        let (mut elements, mut quantized, mut quantized_bytes) = (0_i64, 0_i64, 0_i64);
        let width = self
            .tensors
            .iter()
            .map(|t| t.info.name.len())
            .max()
            .unwrap_or(0)
            .max(6);
        let _ = writeln!(
            text,
            "{:width$}  {:20} {:>13} {:>13} {:>8}  states",
            "tensor", "shape", "elements", "state bytes", "B/param"
        );
        for tensor in &self.tensors {
            let buffers = self.buffers[tensor.buffers()].iter();
            let bytes: i64 = buffers.map(|buffer| buffer.bytes).sum();
            elements += tensor.numel;
            if tensor
                .states
                .iter()
                .all(|state| state.format != Format::F32)
            {
                quantized += tensor.numel;
                quantized_bytes += bytes;
            }
            let states: Vec<_> = tensor
                .states
                .iter()
                .map(|state| format!("{} {}", state.name, state.describe()))
                .chain(
                    tensor
                        .info
                        .weights
                        .beside()
                        .map(|(part, dtype)| format!("{part} {}", dtype.name())),
                )
                .collect();
            let _ = writeln!(
                text,
                "{:width$}  {:20} {:>13} {:>13} {:>8}  {} ({})",
                tensor.info.name,
                format!("{:?}", tensor.info.shape),
                tensor.numel,
                bytes,
                per_param(bytes, tensor.numel),
                states.join(", "),
                tensor.reason,
            );
        }
        let _ = writeln!(
            text,
            "quantized: {quantized} elements, {quantized_bytes} B, {} B/param",
            per_param(quantized_bytes, quantized)
        );
        let _ = writeln!(
            text,
            "all: {elements} elements, {} B, {} B/param",
            self.state_bytes,
            per_param(self.state_bytes, elements)
        );
        text
    }
}

#[expect(clippy::cast_precision_loss, reason = "three decimals are printed")]
fn per_param(bytes: i64, elements: i64) -> String {
    if elements == 0 {
        "-".to_owned()
    } else {
        format!("{:.4}", bytes as f64 / elements as f64)
    }
}
