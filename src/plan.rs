//! A plan: what every tensor got, where every state buffer lies, how much memory that takes.
//!
//! Made once from a context, a spec and tensor descriptors; immutable afterwards and shareable
//! between threads. Everything that can fail for reasons of shape or configuration fails here.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::backend::Context;
use crate::dtype::Dtype;
use crate::error::{Result, invalid};
use crate::layout::{Grid, div_ceil};
use crate::quant::Table;
use crate::spec::{DEFAULT_BLOCK, Normalization, Quantizer, Spec};
use crate::step::OverlapCheck;

/// The most axes a tensor may have.
pub const MAX_AXES: usize = 16;

/// A tensor as the trainer describes it.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Unique in the plan; matched by the spec's overrides and written to checkpoints.
    pub name: String,
    /// Extents here, outermost first (C order). Empty for a scalar.
    pub shape: Vec<i64>,
    /// f32 or bf16.
    pub param_dtype: Dtype,
    /// f32 or bf16; need not equal `param_dtype`.
    pub grad_dtype: Dtype,
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
            global_shape: None,
            offset: None,
        }
    }
}

/// How a state is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    /// Plain f32; one buffer, `value`.
    F32,
    /// 4-bit codes with a scale per block; buffers `codes` and `scales`.
    Block {
        /// Elements of a block.
        block: i64,
        /// Levels of the codes.
        table: &'static Table,
    },
    /// 4-bit codes with one vector of maxima per axis; buffers `codes`, `axis0`, `axis1`, ...
    Rank1 {
        /// Levels of the codes.
        table: &'static Table,
    },
}

/// One state of one tensor.
#[derive(Clone, Debug)]
pub struct StatePlan {
    /// `m`, `v` or `x`.
    pub name: &'static str,
    /// The quantizer after threshold and overrides.
    pub quantizer: Quantizer,
    /// How it is kept.
    pub format: Format,
    /// Its first buffer, counted from the tensor's first.
    pub first_buffer: usize,
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
    /// In the order of `Optimizer::states`.
    pub states: Vec<StatePlan>,
    /// Why it got these quantizers.
    pub reason: String,
    /// Its first buffer in the plan's list.
    pub first_buffer: usize,
    /// How many buffers it has.
    pub buffer_count: usize,
    /// First word of its rank-1 maxima in the statistics (one vector per axis, global extents).
    pub stats_offset: Option<usize>,
}

impl TensorPlan {
    /// Whether this is a proper part of its global tensor.
    #[must_use]
    pub fn is_shard(&self) -> bool {
        self.info.shape != self.global_shape
    }

    /// The state that needs row and column maxima, if any.
    pub(crate) fn rank1(&self) -> Option<&StatePlan> {
        self.states
            .iter()
            .find(|state| matches!(state.format, Format::Rank1 { .. }))
    }
}

/// One state buffer of a plan.
#[derive(Clone, Debug)]
pub struct BufferInfo {
    /// Index of the tensor.
    pub tensor: usize,
    /// `m`, `v` or `x`.
    pub state: &'static str,
    /// `value`, `codes`, `scales`, `axis0`, ...
    pub part: String,
    /// f32 or u8.
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
    pub(crate) stats_words: usize,
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
        spec.validate()?;
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
            words: 0,
        };
        let mut names = std::collections::HashSet::new();
        let mut plans = Vec::with_capacity(tensors.len());
        // One word for each tensor's non-finite flag comes first in the statistics.
        builder.words = tensors.len();
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
        let state_bytes = builder.buffers.iter().map(|buffer| buffer.bytes).sum();
        Ok(Self {
            overlap: OverlapCheck::new(plans.len(), builder.buffers.len()),
            context,
            spec: spec.clone(),
            tensors: plans,
            state_bytes,
            arena_bytes: builder.arena,
            buffers: builder.buffers,
            stats_words: builder.words,
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

    /// 32-bit words of the statistics, which are all of a step's scratch.
    #[must_use]
    pub fn stats_words(&self) -> usize {
        self.stats_words
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
            let range = tensor.first_buffer..tensor.first_buffer + tensor.buffer_count;
            let bytes: i64 = self.buffers[range].iter().map(|buffer| buffer.bytes).sum();
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
                .map(|state| format!("{} {}", state.name, state.quantizer.describe()))
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

struct Builder<'a> {
    spec: &'a Spec,
    patterns: Vec<glob::Pattern>,
    buffers: Vec<BufferInfo>,
    arena: i64,
    words: usize,
}

impl Builder<'_> {
    fn tensor(&mut self, index: usize, info: TensorInfo) -> Result<TensorPlan> {
        for (what, dtype) in [
            ("param_dtype", info.param_dtype),
            ("grad_dtype", info.grad_dtype),
        ] {
            if !matches!(dtype, Dtype::F32 | Dtype::Bf16) {
                return Err(crate::error::unsupported(format!(
                    "{what} is {}; this version has f32 and bf16",
                    dtype.name()
                )));
            }
        }
        let numel = elements("shape", &info.shape)?;
        let (global_shape, offset) = place(&info)?;
        let global_numel = elements("global_shape", &global_shape)?;

        let rule = self
            .patterns
            .iter()
            .position(|pattern| pattern.matches(&info.name));
        let quantizers = self.quantizers(rule, global_numel);
        // All states of a tensor share rows made for the largest block among them.
        let block = quantizers
            .iter()
            .map(|(_, quantizer)| match quantizer {
                Quantizer::F32 => i64::from(DEFAULT_BLOCK),
                Quantizer::Bits4 { block, .. } => i64::from(*block),
            })
            .max()
            .unwrap_or(i64::from(DEFAULT_BLOCK));
        let grid = Grid::new(&global_shape, &offset, &info.shape, block)?;

        let first_buffer = self.buffers.len();
        let mut states = Vec::with_capacity(quantizers.len());
        let mut stats_offset = None;
        for (name, quantizer) in quantizers {
            let first = self.buffers.len() - first_buffer;
            let format = self.state(index, name, quantizer, &info, &grid)?;
            if matches!(format, Format::Rank1 { .. }) {
                stats_offset = Some(self.words);
                for extent in &global_shape {
                    self.words += usize::try_from(*extent).map_err(|e| invalid(e.to_string()))?;
                }
            }
            states.push(StatePlan {
                name,
                quantizer,
                format,
                first_buffer: first,
            });
        }
        let reason = match rule {
            Some(rule) => format!("override {:?}", self.spec.overrides[rule].pattern),
            None if global_numel <= self.spec.threshold => {
                format!(
                    "{global_numel} elements <= threshold {}",
                    self.spec.threshold
                )
            }
            None => "spec".to_owned(),
        };
        Ok(TensorPlan {
            info,
            global_shape,
            offset,
            numel,
            grid,
            states,
            reason,
            first_buffer,
            buffer_count: self.buffers.len() - first_buffer,
            stats_offset,
        })
    }

    /// The quantizer of each state, after override and threshold. An override speaks for the
    /// tensor: it lifts the threshold, also for the states it does not name.
    fn quantizers(&self, rule: Option<usize>, numel: i64) -> Vec<(&'static str, Quantizer)> {
        let rule = rule.map(|rule| &self.spec.overrides[rule]);
        self.spec
            .optimizer
            .states()
            .iter()
            .map(|&name| {
                let base = self.spec.quantizer(name).unwrap_or(Quantizer::F32);
                let quantizer = match rule {
                    Some(rule) => rule.quantizer(name).unwrap_or(base),
                    None if numel <= self.spec.threshold => Quantizer::F32,
                    None => base,
                };
                (name, quantizer)
            })
            .collect()
    }

    /// Adds the buffers of one state.
    fn state(
        &mut self,
        tensor: usize,
        name: &'static str,
        quantizer: Quantizer,
        info: &TensorInfo,
        grid: &Grid,
    ) -> Result<Format> {
        let (
            Quantizer::Bits4 {
                normalization,
                block,
                ..
            },
            Some(table),
        ) = (quantizer, quantizer.table(name)?)
        else {
            self.buffer(
                tensor,
                name,
                "value".to_owned(),
                Dtype::F32,
                info.shape.clone(),
            );
            return Ok(Format::F32);
        };
        self.buffer(
            tensor,
            name,
            "codes".to_owned(),
            Dtype::U8,
            grid.code_shape(),
        );
        if normalization == Normalization::Rank1 && info.shape.len() >= 2 {
            for (axis, extent) in info.shape.iter().enumerate() {
                self.buffer(
                    tensor,
                    name,
                    format!("axis{axis}"),
                    Dtype::F32,
                    vec![*extent],
                );
            }
            return Ok(Format::Rank1 { table });
        }
        let block = i64::from(block);
        self.buffer(
            tensor,
            name,
            "scales".to_owned(),
            Dtype::F32,
            grid.scale_shape(block),
        );
        Ok(Format::Block { block, table })
    }

    fn buffer(
        &mut self,
        tensor: usize,
        state: &'static str,
        part: String,
        dtype: Dtype,
        shape: Vec<i64>,
    ) {
        // Cannot overflow: `elements` keeps a tensor below 2^58 elements.
        let bytes = shape.iter().product::<i64>() * dtype.size() as i64;
        let arena_offset = self.arena;
        self.arena += div_ceil(bytes, ARENA_ALIGN) * ARENA_ALIGN;
        self.buffers.push(BufferInfo {
            tensor,
            state,
            part,
            dtype,
            shape,
            bytes,
            arena_offset,
        });
    }
}

/// The product of the extents, checked.
fn elements(what: &str, shape: &[i64]) -> Result<i64> {
    if shape.len() > MAX_AXES {
        return Err(invalid(format!(
            "{what} has {} axes; at most {MAX_AXES}",
            shape.len()
        )));
    }
    if let Some(extent) = shape.iter().find(|extent| **extent < 0) {
        return Err(invalid(format!("{what} has the negative extent {extent}")));
    }
    // Zero extents last: (2^40, 2^40, 0) is refused like (2^40, 2^40), as strides would overflow.
    let mut nonzero = shape.iter().filter(|extent| **extent > 0);
    let product = nonzero.try_fold(1_i64, |product, extent| product.checked_mul(*extent));
    match product {
        Some(product) if product <= 1 << 58 => Ok(if shape.contains(&0) { 0 } else { product }),
        _ => Err(invalid(format!(
            "{what} {shape:?} has more than 2^58 elements"
        ))),
    }
}

/// Global shape and offset of a tensor, checked against its own shape.
fn place(info: &TensorInfo) -> Result<(Vec<i64>, Vec<i64>)> {
    let global = info
        .global_shape
        .clone()
        .unwrap_or_else(|| info.shape.clone());
    let offset = info
        .offset
        .clone()
        .unwrap_or_else(|| vec![0; info.shape.len()]);
    if global.len() != info.shape.len() || offset.len() != info.shape.len() {
        return Err(invalid(format!(
            "shape {:?}, global_shape {global:?} and offset {offset:?} differ in their number of \
             axes",
            info.shape
        )));
    }
    for axis in 0..global.len() {
        let (start, extent) = (offset[axis], info.shape[axis]);
        if start < 0
            || extent < 0
            || start
                .checked_add(extent)
                .is_none_or(|end| end > global[axis])
        {
            return Err(invalid(format!(
                "axis {axis}: offset {start} and extent {extent} leave the global extent {}",
                global[axis]
            )));
        }
    }
    Ok((global, offset))
}
