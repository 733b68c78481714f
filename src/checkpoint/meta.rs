//! The JSON in a checkpoint's metadata: what the bytes of the entries mean, spelled out so that a
//! reader needs neither the rules of the spec nor the formulas of the code tables
//! (`include/CHECKPOINT.md`).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::{Context, CpuContext, Variant};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::plan::{Codes, Factor, Format, Maxima, Plan, Scales, StatePlan, TensorInfo, TensorPlan};
use crate::spec::Spec;
use crate::weights::Weights;

/// Raised when an older reader could misread a newer file.
pub(super) const FORMAT: i64 = 1;

/// The JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) format: i64,
    /// Steps done.
    pub(super) step: i64,
    pub(super) spec: Spec,
    /// The code tables in use: increasing levels.
    tables: Vec<Vec<f32>>,
    pub(super) tensors: Vec<TensorMeta>,
}

/// One tensor, or one shard of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct TensorMeta {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    pub(super) global_shape: Vec<i64>,
    pub(super) offset: Vec<i64>,
    /// How many axes come before the row.
    row_axis: usize,
    /// Only if something is kept beside the parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) weights: Option<Weights>,
    states: Vec<StateMeta>,
}

/// How one state is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StateMeta {
    name: String,
    kind: Kind,
    /// Codes: bits that one takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    width: Option<i64>,
    /// Codes: index of the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<usize>,
    /// Codes with a scale per block: its elements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    block: Option<i64>,
    /// Codes with subtractive dither: the distance of levels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dither: Option<f32>,
    /// Vectors of maxima or means, and the axes that each keeps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    vectors: Vec<VectorMeta>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Value,
    Codes,
    Factored,
    Cover,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct VectorMeta {
    part: String,
    axes: Vec<usize>,
}

impl Meta {
    pub(super) fn new(plan: &Plan, step: i64) -> Self {
        let mut tables = Vec::new();
        let tensors = plan
            .tensors
            .iter()
            .map(|tensor| TensorMeta::new(tensor, &mut tables))
            .collect();
        Self {
            format: FORMAT,
            step,
            spec: plan.spec.clone(),
            tables,
            tensors,
        }
    }

    /// A plan of the tensors that the file has, on the CPU. Nothing of their size is allocated.
    pub(super) fn plan(&self) -> Result<Plan> {
        let tensors = self.tensors.iter().map(TensorMeta::info).collect();
        self.spec.validate()?;
        Plan::new(host()?, &self.spec, tensors)
    }
}

/// Where plans of files are made: one thread, no settings from the environment.
pub(super) fn host() -> Result<Arc<Context>> {
    CpuContext::new(1, Variant::Portable).map(|cpu| Arc::new(Context::Cpu(cpu)))
}

impl TensorMeta {
    fn new(tensor: &TensorPlan, tables: &mut Vec<Vec<f32>>) -> Self {
        Self {
            name: tensor.info.name.clone(),
            shape: tensor.info.shape.clone(),
            global_shape: tensor.global_shape.clone(),
            offset: tensor.offset.clone(),
            row_axis: tensor.grid.lead.len(),
            weights: kept(tensor.info.weights),
            states: tensor
                .states
                .iter()
                .map(|state| StateMeta::new(state, tables))
                .collect(),
        }
    }

    pub(super) fn info(&self) -> TensorInfo {
        // What is kept does not depend on the parameter's dtype otherwise.
        let dtype = if self.weights.is_some() {
            Dtype::Bf16
        } else {
            Dtype::F32
        };
        TensorInfo {
            weights: self.weights.unwrap_or_default(),
            global_shape: Some(self.global_shape.clone()),
            offset: Some(self.offset.clone()),
            ..TensorInfo::new(&self.name, &self.shape, dtype)
        }
    }
}

/// A weight form, if it keeps anything.
pub(super) fn kept(weights: Weights) -> Option<Weights> {
    weights.beside().map(|_| weights)
}

impl StateMeta {
    fn new(state: &StatePlan, tables: &mut Vec<Vec<f32>>) -> Self {
        let meta = |kind, vectors: &[Maxima]| Self {
            name: state.name.to_owned(),
            kind,
            width: None,
            table: None,
            block: None,
            dither: None,
            vectors: vectors.iter().map(VectorMeta::new).collect(),
        };
        match &state.format {
            Format::F32 => meta(Kind::Value, &[]),
            Format::Cover(maxima) => meta(Kind::Cover, maxima),
            Format::Factored(factors) => {
                let maxima = |factor: &Factor| factor.maxima.clone();
                meta(Kind::Factored, &factors.each_ref().map(maxima))
            }
            Format::Codes(codes) => {
                let (block, maxima) = match &codes.scales {
                    Scales::Block(block) => (Some(*block), &[][..]),
                    Scales::Maxima(maxima) => (None, maxima.as_slice()),
                };
                Self {
                    width: Some(8 / codes.per_byte),
                    table: Some(table(codes, tables)),
                    block,
                    dither: codes.dither,
                    ..meta(Kind::Codes, maxima)
                }
            }
        }
    }
}

/// The index of a table in the file's list.
fn table(codes: &Codes, tables: &mut Vec<Vec<f32>>) -> usize {
    let levels = &codes.table.levels;
    tables
        .iter()
        .position(|table| table == levels)
        .unwrap_or_else(|| {
            tables.push(levels.clone());
            tables.len() - 1
        })
}

impl VectorMeta {
    fn new(maxima: &Maxima) -> Self {
        Self {
            part: maxima.part.clone(),
            axes: maxima.projection.axes().to_vec(),
        }
    }
}
