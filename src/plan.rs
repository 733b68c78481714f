//! A plan: what every tensor got, where every state buffer lies, how much memory that takes.
//!
//! Made once from a context, a spec and tensor descriptors; immutable afterwards and shareable
//! between threads. Everything that can fail for reasons of shape or configuration fails here.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::backend::Context;
use crate::dtype::Dtype;
use crate::error::{Result, invalid};
use crate::layout::{Grid, Projection, div_ceil};
use crate::numerics::FpEnv;
use crate::quant::{Rounding, Table};
use crate::rng::name_hash;
use crate::spec::{DEFAULT_BLOCK, FactorAxes, Normalization, Optimizer, Quantizer, Spec};
use crate::step::OverlapCheck;
use crate::weights::Weights;

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

/// How a state is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Plain f32; one buffer, `value`.
    F32,
    /// Codes with scales; buffers `codes`, then `scales` or one per maximum.
    Codes(Codes),
    /// No codes: means of v over rows and columns; buffers `rows`, `columns`, `mean`.
    Factored(Box<[Factor; 3]>),
    /// No codes: maxima of the slices along every axis (SM3); one buffer per axis.
    Cover(Vec<Maxima>),
}

/// Codes of a state.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// Levels of the codes.
    pub table: Arc<Table>,
    /// Codes in a byte: 1, 2 or 4.
    pub per_byte: i64,
    /// Where an element's scale comes from.
    pub scales: Scales,
    /// How a value between two levels becomes one of them.
    pub rounding: Rounding,
    /// Whether block scales are corrected after coding.
    pub scale_correction: bool,
    /// For subtractive dither: the distance of levels.
    pub dither: Option<f32>,
}

/// Where the scales of codes come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// One for each block of this many elements of a row.
    Block(i64),
    /// The smallest of the maxima of the slices that an element lies in.
    Maxima(Vec<Maxima>),
}

/// Maxima of a state's magnitudes over the axes that a projection drops.
#[derive(Clone, Debug, PartialEq)]
pub struct Maxima {
    /// Name of the buffer.
    pub part: String,
    /// Which axes are kept.
    pub projection: Projection,
    /// First word of the new maxima in the statistics (global extents).
    pub word: usize,
}

/// Means of a factored v over the axes that a projection drops.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// Largest squares, from which the unit of the exact sums follows.
    pub maxima: Maxima,
    /// Elements of the global tensor that a mean is over.
    pub count: i64,
    /// First of the sums, two i64 limbs each (global extents).
    pub sum: usize,
    /// First of the new means among the fresh values (extents here).
    pub fresh: usize,
}

/// Where Adafactor's sums over a whole tensor are in the scratch.
#[derive(Clone, Copy, Debug)]
pub struct RmsPlan {
    /// Word of the largest magnitude of the parameter.
    pub(crate) param_max: usize,
    /// Its squares' sum.
    pub(crate) param_sum: usize,
    /// Word of the largest magnitude of the update.
    pub(crate) update_max: usize,
    /// Its squares' sum.
    pub(crate) update_sum: usize,
}

/// One state of one tensor.
#[derive(Clone, Debug)]
pub struct StatePlan {
    /// `m`, `v`, `vmax` or `x`.
    pub name: &'static str,
    /// The quantizer after threshold and overrides.
    pub quantizer: Quantizer,
    /// How it is kept.
    pub format: Format,
    /// Its first buffer, counted from the tensor's first.
    pub first_buffer: usize,
    /// How many buffers it has.
    pub buffer_count: usize,
}

impl StatePlan {
    /// The maxima that decide its scales, or that it consists of.
    pub(crate) fn maxima(&self) -> &[Maxima] {
        match &self.format {
            Format::Codes(Codes {
                scales: Scales::Maxima(maxima),
                ..
            })
            | Format::Cover(maxima) => maxima,
            _ => &[],
        }
    }

    /// For reports: as the quantizer says, but for SM3's v.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.format {
            Format::Cover(_) => "f32 axis maxima".to_owned(),
            _ => self.quantizer.describe(),
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
    /// Whether this is a proper part of its global tensor.
    #[must_use]
    pub fn is_shard(&self) -> bool {
        self.info.shape != self.global_shape
    }

    /// Whether its update needs statistics of the whole tensor, so that a single block cannot be
    /// skipped.
    #[must_use]
    pub fn needs_statistics(&self) -> bool {
        self.rms.is_some()
            || self.factored().is_some()
            || self.states.iter().any(|state| !state.maxima().is_empty())
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

/// How shards combine statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Reduce {
    /// Element-wise maximum, as signed integers.
    Max = 1,
    /// Element-wise sum, as signed integers.
    Sum = 2,
}

/// The passes of a step over its tensors, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pass {
    /// Non-finite flags, and maxima of everything whose maximum is needed.
    Maxima,
    /// Exact sums, with the units that the maxima decide.
    Sums,
    /// Adafactor: the largest unclipped update.
    UpdateMaxima,
    /// Adafactor: its sum of squares.
    UpdateSums,
    /// Parameters (or updates) and states.
    Apply,
}

/// Statistics that one stage of a step collects and shards combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageInfo {
    /// i32 or i64.
    pub dtype: Dtype,
    /// How shards combine them.
    pub reduce: Reduce,
    /// Where they begin in the scratch, in bytes.
    pub offset: i64,
    /// How many, the same for all shards of a model.
    pub count: i64,
}

/// The regions of a step's scratch, in the order of the stages that fill them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scratch {
    /// i32: one non-finite flag per tensor, then maxima.
    pub(crate) maxima: usize,
    /// i64 limbs: sums.
    pub(crate) sums: usize,
    /// i32: maxima of updates.
    pub(crate) update_maxima: usize,
    /// i64 limbs: sums of updates.
    pub(crate) update_sums: usize,
    /// f32, not combined: new factors.
    pub(crate) fresh: usize,
}

impl Scratch {
    /// First bytes of the regions, all multiples of 8, and the end.
    pub(crate) fn offsets(&self) -> [usize; 6] {
        let mut at = 0;
        let sizes = [
            4 * self.maxima,
            8 * self.sums,
            4 * self.update_maxima,
            8 * self.update_sums,
            4 * self.fresh,
        ];
        let starts = sizes.map(|size| {
            let start = at;
            at += size.next_multiple_of(8);
            start
        });
        [starts[0], starts[1], starts[2], starts[3], starts[4], at]
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
        self.scratch.offsets()[5] as i64
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

struct Builder<'a> {
    spec: &'a Spec,
    patterns: Vec<glob::Pattern>,
    buffers: Vec<BufferInfo>,
    arena: i64,
    scratch: Scratch,
}

/// One tensor while its states are laid out.
struct Place<'a> {
    index: usize,
    shape: &'a [i64],
    global: &'a [i64],
    grid: &'a Grid,
}

impl Builder<'_> {
    fn tensor(&mut self, index: usize, info: TensorInfo) -> Result<TensorPlan> {
        for (what, dtype) in [
            ("param_dtype", info.param_dtype),
            ("grad_dtype", info.grad_dtype),
        ] {
            if !matches!(dtype, Dtype::F32 | Dtype::Bf16 | Dtype::F16) {
                return Err(crate::error::unsupported(format!(
                    "{what} is {}; parameters and gradients are f32, bf16 or f16",
                    dtype.name()
                )));
            }
        }
        info.weights.check(info.param_dtype)?;
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
            .map(|(_, quantizer)| quantizer.block)
            .max()
            .unwrap_or(DEFAULT_BLOCK);
        let grid = Grid::new(&global_shape, &offset, &info.shape, i64::from(block))?;

        let place = Place {
            index,
            shape: &info.shape,
            global: &global_shape,
            grid: &grid,
        };
        let first_buffer = self.buffers.len();
        let mut states = Vec::with_capacity(quantizers.len());
        for (name, quantizer) in quantizers {
            let first = self.buffers.len();
            let format = self.state(&place, name, &quantizer)?;
            states.push(StatePlan {
                name,
                quantizer,
                format,
                first_buffer: first - first_buffer,
                buffer_count: self.buffers.len() - first,
            });
        }
        let rms = (self.spec.optimizer == Optimizer::Adafactor).then(|| self.rms());
        if let Some((part, dtype)) = info.weights.beside() {
            self.buffer(index, "weights", part, dtype, info.shape.clone());
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
            hash: name_hash(&info.name),
            info,
            global_shape,
            offset,
            numel,
            grid,
            states,
            reason,
            first_buffer,
            buffer_count: self.buffers.len() - first_buffer,
            rms,
        })
    }

    /// The quantizer of each state, after override and threshold. An override speaks for the
    /// tensor: it lifts the threshold, also for the states it does not name.
    fn quantizers(&self, rule: Option<usize>, numel: i64) -> Vec<(&'static str, Quantizer)> {
        let rule = rule.map(|rule| &self.spec.overrides[rule]);
        let states = self.spec.states().iter();
        states
            .map(|&name| {
                let base = self.spec.quantizer(name);
                let quantizer = match rule {
                    Some(rule) => rule.quantizer(name).or(base),
                    None if numel <= self.spec.threshold => None,
                    None => base,
                };
                (name, quantizer.cloned().unwrap_or_else(Quantizer::f32))
            })
            .collect()
    }

    /// Adds the buffers of one state.
    fn state(
        &mut self,
        place: &Place<'_>,
        name: &'static str,
        quantizer: &Quantizer,
    ) -> Result<Format> {
        let axes = place.shape.len();
        if self.spec.optimizer == Optimizer::Sm3 && name == "v" {
            return Ok(Format::Cover(self.axis_maxima(place, name)));
        }
        let quantizer = match quantizer.normalization {
            Some(Normalization::Rank1) if axes < 2 => &quantizer.in_blocks(),
            Some(Normalization::Factored) => {
                if let Some(factors) = self.factors(place, name, quantizer) {
                    return Ok(Format::Factored(Box::new(factors)));
                }
                &quantizer.in_blocks()
            }
            _ => quantizer,
        };
        let (Some(normalization), Some(table)) = (quantizer.normalization, quantizer.table(name)?)
        else {
            self.buffer(place.index, name, "value", Dtype::F32, place.shape.to_vec());
            return Ok(Format::F32);
        };
        let per_byte = per_byte(quantizer.bits);
        let shape = place.grid.code_shape(per_byte);
        self.buffer(place.index, name, "codes", Dtype::U8, shape);
        let first = place.grid.lead.len();
        let mut one = |part: &str, axes: std::ops::Range<usize>| {
            let axes: Vec<_> = axes.collect();
            Scales::Maxima(vec![self.maxima(place, name, part, &axes)])
        };
        let scales = match normalization {
            Normalization::Tensor => one("maximum", 0..0),
            Normalization::Row => one("rows", 0..first),
            Normalization::Column => one("columns", first..axes),
            Normalization::Rank1 => Scales::Maxima(self.axis_maxima(place, name)),
            Normalization::Block | Normalization::Factored => {
                let block = i64::from(quantizer.block);
                let shape = place.grid.scale_shape(block);
                self.buffer(place.index, name, "scales", Dtype::F32, shape);
                Scales::Block(block)
            }
        };
        Ok(Format::Codes(Codes {
            dither: if quantizer.dither {
                table.spacing()
            } else {
                None
            },
            table,
            per_byte,
            scales,
            rounding: quantizer.rounding,
            scale_correction: quantizer.scale_correction,
        }))
    }

    /// Maxima along every axis, or of a scalar itself.
    fn axis_maxima(&mut self, place: &Place<'_>, name: &'static str) -> Vec<Maxima> {
        if place.shape.is_empty() {
            return vec![self.maxima(place, name, "maximum", &[])];
        }
        (0..place.shape.len())
            .map(|axis| self.maxima(place, name, &format!("axis{axis}"), &[axis]))
            .collect()
    }

    fn maxima(
        &mut self,
        place: &Place<'_>,
        name: &'static str,
        part: &str,
        axes: &[usize],
    ) -> Maxima {
        let projection = Projection::new(place.global, place.shape, axes);
        let shape = projection.shape.clone();
        self.buffer(place.index, name, part, Dtype::F32, shape);
        let word = self.scratch.maxima;
        self.scratch.maxima += crate::layout::index(projection.global_len);
        Maxima {
            part: part.to_owned(),
            projection,
            word,
        }
    }

    /// Row, column and overall means, unless the tensor has no two axes, or codes take less.
    fn factors(
        &mut self,
        place: &Place<'_>,
        name: &'static str,
        quantizer: &Quantizer,
    ) -> Option<[Factor; 3]> {
        let (rows, columns) = factor_axes(place.global, quantizer.factor_axes)?;
        let batch: Vec<_> = rows
            .iter()
            .filter(|i| columns.contains(i))
            .copied()
            .collect();
        let all = [("rows", rows), ("columns", columns), ("mean", batch)];
        let numel: i64 = place.global.iter().product();
        let length = |axes: &[usize]| axes.iter().map(|&axis| place.global[axis]).product::<i64>();
        let bytes: i64 = all.iter().map(|(_, axes)| 4 * length(axes)).sum();
        let codes = match quantizer.bits {
            32 => 4 * numel,
            bits => numel / per_byte(bits) + numel / i64::from(DEFAULT_BLOCK) * 4,
        };
        if bytes > codes {
            return None;
        }
        Some(all.map(|(part, axes)| {
            let maxima = self.maxima(place, name, part, &axes);
            let (sum, fresh) = (self.scratch.sums, self.scratch.fresh);
            self.scratch.sums += 2 * crate::layout::index(maxima.projection.global_len);
            self.scratch.fresh += crate::layout::index(maxima.projection.extent());
            Factor {
                count: numel / maxima.projection.global_len.max(1),
                maxima,
                sum,
                fresh,
            }
        }))
    }

    fn rms(&mut self) -> RmsPlan {
        let scratch = &mut self.scratch;
        let rms = RmsPlan {
            param_max: scratch.maxima,
            param_sum: scratch.sums,
            update_max: scratch.update_maxima,
            update_sum: scratch.update_sums,
        };
        scratch.maxima += 1;
        scratch.sums += 2;
        scratch.update_maxima += 1;
        scratch.update_sums += 2;
        rms
    }

    fn buffer(
        &mut self,
        tensor: usize,
        state: &'static str,
        part: &str,
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
            part: part.to_owned(),
            dtype,
            shape,
            bytes,
            arena_offset,
        });
    }
}

/// Codes in a byte: those of 3 bits lie in nibbles, those of 5 to 7 in bytes.
fn per_byte(bits: u32) -> i64 {
    match bits {
        2 => 4,
        3 | 4 => 2,
        _ => 1,
    }
}

/// The axes that row means keep and those that column means keep; axes that both keep are a batch.
/// `None` for fewer than two axes.
fn factor_axes(global: &[i64], choice: FactorAxes) -> Option<(Vec<usize>, Vec<usize>)> {
    let axes = global.len();
    if axes < 2 {
        return None;
    }
    let (row, column) = match choice {
        FactorAxes::Merged => {
            let extent = |range: std::ops::Range<usize>| global[range].iter().product::<i64>();
            let cost =
                |split: &usize| (extent(0..*split) + extent(*split..axes), extent(0..*split));
            let split = (1..axes).min_by_key(cost)?;
            return Some(((0..split).collect(), (split..axes).collect()));
        }
        FactorAxes::LastTwo => (axes - 2, axes - 1),
        FactorAxes::LargestTwo => {
            let mut order: Vec<_> = (0..axes).collect();
            order.sort_by_key(|&axis| (global[axis], axis));
            // The largest axis is reduced for the row means (optax).
            (order[axes - 2], order[axes - 1])
        }
    };
    let without = |dropped: usize| (0..axes).filter(|&axis| axis != dropped).collect();
    Some((without(column), without(row)))
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
