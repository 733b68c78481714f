//! Laying a plan out, tensor by tensor and state by state.

use std::sync::Arc;

use super::stages::FACTOR_ALIGN;
use super::{
    ARENA_ALIGN, BufferInfo, Codes, Factor, Format, MAX_AXES, Maxima, RmsPlan, Scales, Scratch,
    StatePlan, TensorInfo, TensorPlan,
};
use crate::dtype::Dtype;
use crate::error::{Result, invalid};
use crate::layout::{Grid, Projection, div_ceil};
use crate::quant::Table;
use crate::rng::name_hash;
use crate::spec::{DEFAULT_BLOCK, FactorAxes, Normalization, Optimizer, Quantizer, Spec};

/// What has been laid out so far.
pub(super) struct Builder<'a> {
    pub(super) spec: &'a Spec,
    pub(super) patterns: Vec<glob::Pattern>,
    pub(super) buffers: Vec<BufferInfo>,
    pub(super) arena: i64,
    pub(super) scratch: Scratch,
    /// Of the quantizers so far.
    pub(super) tables: Vec<(&'static str, Quantizer, Arc<Table>)>,
}

/// What a plan of these tensors has in use at most while it is made, in bytes. (`tests/hostile.rs` runs
/// out of memory below it.)
pub(super) fn bytes(spec: &Spec, tensors: &[TensorInfo]) -> usize {
    const TABLE: usize = 8 << 10;
    let states = spec.states().len();
    let tensor = |info: &TensorInfo| {
        // More are refused.
        let axes = info.shape.len().min(MAX_AXES);
        768 + 4 * info.name.len() + states * (384 + axes * (448 + 24 * axes))
    };
    let rules = spec.overrides.iter();
    let patterns: usize = rules.map(|rule| 512 + 128 * rule.pattern.len()).sum();
    let tables = states * (1 + spec.overrides.len().min(tensors.len())) * TABLE;
    patterns + tables + tensors.iter().map(tensor).sum::<usize>()
}

/// One tensor while its states are laid out.
struct Place<'a> {
    index: usize,
    shape: &'a [i64],
    global: &'a [i64],
    grid: &'a Grid,
}

impl Builder<'_> {
    pub(super) fn tensor(&mut self, index: usize, info: TensorInfo) -> Result<TensorPlan> {
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
        let (Some(normalization), Some(table)) =
            (quantizer.normalization, self.table(name, quantizer)?)
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

    /// A quantizer's table, one for all tensors that have it.
    fn table(&mut self, name: &'static str, quantizer: &Quantizer) -> Result<Option<Arc<Table>>> {
        let mut tables = self.tables.iter();
        if let Some((.., table)) = tables.find(|(state, of, _)| *state == name && of == quantizer) {
            return Ok(Some(Arc::clone(table)));
        }
        let table = quantizer.table(name)?;
        if let Some(table) = &table {
            let table = Arc::clone(table);
            self.tables.push((name, quantizer.clone(), table));
        }
        Ok(table)
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
            let extent = crate::layout::index(maxima.projection.extent());
            self.scratch.fresh += extent.next_multiple_of(FACTOR_ALIGN);
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
