//! What must hold for every quantizer and every input: bounds of a round trip, order, scale, and
//! that a tensor's bits do not depend on its neighbours in the plan.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

mod common;

use common::{Model, bytes};
use lowbit::Variant;
use lowbit::dtype::Dtype;
use lowbit::plan::TensorInfo;
use lowbit::quant::{Mapping, Rounding, Table};
use lowbit::spec::{Normalization, Quantizer, Spec};
use proptest::prelude::*;
use proptest::sample::select;

/// Any quantizer with codes that exists for v (`signed` is false) or for m.
fn quantizer(signed: bool) -> impl Strategy<Value = Quantizer> {
    let mappings = if signed {
        vec![
            Mapping::De,
            Mapping::Linear,
            Mapping::LinearWithZero,
            Mapping::Power2,
            Mapping::Power3,
            Mapping::Nf4,
        ]
    } else {
        vec![
            Mapping::De,
            Mapping::De0,
            Mapping::Linear,
            Mapping::LinearWithZero,
            Mapping::Power2,
            Mapping::Power3,
            Mapping::Geometric,
        ]
    };
    let normalizations = vec![
        Normalization::Block,
        Normalization::Rank1,
        Normalization::Tensor,
        Normalization::Row,
        Normalization::Column,
    ];
    let parts = (
        2_u32..=8,
        select(normalizations),
        select(mappings),
        5_u32..=12,
        any::<bool>(),
    );
    parts.prop_map(|(bits, normalization, mapping, block, stochastic)| {
        let bits = if mapping == Mapping::Nf4 { 4 } else { bits };
        Quantizer {
            block: if normalization == Normalization::Block {
                1 << block
            } else {
                128
            },
            rounding: if stochastic {
                Rounding::Stochastic
            } else {
                Rounding::Nearest
            },
            ..Quantizer::codes(bits, normalization, mapping)
        }
    })
}

/// A quantizer with whether it is m's.
fn signed_quantizer() -> impl Strategy<Value = (bool, Quantizer)> {
    any::<bool>().prop_flat_map(|signed| (Just(signed), quantizer(signed)))
}

fn model(signed: bool, quantizer: &Quantizer, shape: &[i64]) -> Model {
    let other = Some(Quantizer::f32());
    let (m, v) = if signed {
        (Some(quantizer.clone()), other)
    } else {
        (other, Some(quantizer.clone()))
    };
    let spec = Spec {
        threshold: 0,
        m,
        v,
        ..Spec::preset("adamw32").unwrap()
    };
    let info = TensorInfo::new("w", shape, Dtype::F32);
    Model::new(Variant::Auto, 1, &spec, vec![info])
}

/// Values of all magnitudes within `decades`, some of them zero, in runs of the same kind.
fn values(signed: bool, count: usize, seed: u64, decades: f64) -> Vec<f32> {
    let value = |i: usize| {
        let h = common::word(seed, i as u64);
        let run = common::word(seed + 1, i as u64 / 61);
        if run.is_multiple_of(7) || h.is_multiple_of(11) {
            return 0.0;
        }
        let uniform = |bits: u64| (bits & 0xffff) as f64 / 65536.0;
        let exponent = decades * (uniform(run >> 16) + 0.3 * uniform(h >> 16) - 0.65);
        let sign = if signed && h >> 40 & 1 == 1 {
            -1.0
        } else {
            1.0
        };
        (sign * 10_f64.powf(exponent)) as f32
    };
    (0..count).map(value).collect()
}

fn round_trip(model: &mut Model, signed: bool, values: &[f32]) -> Vec<f32> {
    let state = usize::from(!signed);
    model.compress(state, &[values.to_vec()]).unwrap();
    model.decompress(state).swap_remove(0)
}

/// The groups that an element is in (its block, or its slices along every axis): its scale is the
/// least of their maxima.
fn groups(model: &Model, normalization: Normalization, block: usize) -> Vec<Vec<usize>> {
    let tensor = &model.plan.tensors()[0];
    let shape: Vec<usize> = tensor.info.shape.iter().map(|e| *e as usize).collect();
    let count = shape.iter().product::<usize>();
    let cols = tensor.grid.cols as usize;
    let index =
        |i: usize, axis: usize| i / shape[axis + 1..].iter().product::<usize>() % shape[axis];
    let blocks = |i: usize, block: usize| vec![i / cols * cols.div_ceil(block) + i % cols / block];
    let of = |i: usize| match normalization {
        Normalization::Block => blocks(i, block),
        Normalization::Rank1 if shape.len() < 2 => blocks(i, 128),
        Normalization::Rank1 => (0..shape.len()).map(|axis| index(i, axis)).collect(),
        Normalization::Tensor => vec![0],
        Normalization::Row => vec![i / cols],
        Normalization::Column => vec![i % cols],
        Normalization::Factored => panic!("no codes"),
    };
    (0..count).map(of).collect()
}

/// Scales by their definition.
fn scales(groups: &[Vec<usize>], values: &[f32]) -> Vec<f32> {
    let kinds = groups.first().map_or(0, Vec::len);
    let mut maxima = vec![vec![0.0_f32; 1 + groups.iter().flatten().max().unwrap_or(&0)]; kinds];
    for (group, value) in groups.iter().zip(values) {
        for (maxima, position) in maxima.iter_mut().zip(group) {
            maxima[*position] = maxima[*position].max(value.abs());
        }
    }
    let scale = |group: &Vec<usize>| {
        let scales = maxima
            .iter()
            .zip(group)
            .map(|(maxima, position)| maxima[*position]);
        scales.fold(f32::INFINITY, f32::min)
    };
    groups.iter().map(scale).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nearest: half the largest gap between levels, times the scale; stochastic: one gap. Below the
    /// lowest level and where the table lacks -1, the distance to the end. The levels, their products
    /// with the scale and the midpoints are rounded to f32.
    #[test]
    fn a_round_trip_is_within_the_gaps(
        (signed, quantizer) in signed_quantizer(),
        shape in prop::collection::vec(1_i64..40, 1..4),
        seed in 0_u64..1000,
    ) {
        let mut model = model(signed, &quantizer, &shape);
        let count = shape.iter().product::<i64>() as usize;
        let values = values(signed, count, seed, 6.0);
        let decoded = round_trip(&mut model, signed, &values);
        let table = Table::of(quantizer.mapping.unwrap(), quantizer.bits, signed, &[]).unwrap();
        let gap = table.levels.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f32::max);
        let share = if quantizer.rounding == Rounding::Nearest { 0.5 } else { 1.0 };
        let lowest = if signed { -1.0 } else { 0.0 };
        let bound = f64::from((share * gap).max(table.levels[0] - lowest));
        let groups = groups(&model, quantizer.normalization.unwrap(), quantizer.block as usize);
        for (i, scale) in scales(&groups, &values).into_iter().enumerate() {
            let off = (f64::from(values[i]) - f64::from(decoded[i])).abs();
            prop_assert!(
                off <= (bound + 2e-7) * f64::from(scale),
                "{}: {:e} became {:e} under scale {scale:e}",
                quantizer.describe(), values[i], decoded[i]
            );
            // No level is beyond 1.
            prop_assert!(decoded[i].abs() <= scale);
        }
    }

    /// Under one scale a larger value never gets a lower level.
    #[test]
    fn codes_are_monotonic_within_a_scale(
        (signed, quantizer) in signed_quantizer(),
        columns in 2_i64..300,
        seed in 0_u64..1000,
    ) {
        let quantizer = Quantizer { rounding: Rounding::Nearest, ..quantizer };
        let shape = [5, columns];
        let mut model = model(signed, &quantizer, &shape);
        let values = values(signed, 5 * columns as usize, seed, 3.0);
        let decoded = round_trip(&mut model, signed, &values);
        let groups = groups(&model, quantizer.normalization.unwrap(), quantizer.block as usize);
        let scales = scales(&groups, &values);
        let mut order: Vec<_> = (0..values.len()).collect();
        order.sort_by(|a, b| {
            let key = |i: usize| (scales[i], values[i]);
            key(*a).partial_cmp(&key(*b)).unwrap()
        });
        for pair in order.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            prop_assert!(
                scales[a] != scales[b] || decoded[a] <= decoded[b],
                "{}: {:e} -> {:e}, {:e} -> {:e}",
                quantizer.describe(), values[a], decoded[a], values[b], decoded[b]
            );
        }
    }

    /// A power of two in the values is a power of two in what they decode to, also with a corrected
    /// scale and at random (the draws do not depend on values).
    #[test]
    fn powers_of_two_scale_through(
        (signed, quantizer) in signed_quantizer(),
        shape in prop::collection::vec(1_i64..40, 1..4),
        seed in 0_u64..1000,
        exponent in -60_i32..60,
        correction in any::<bool>(),
    ) {
        let block = quantizer.normalization == Some(Normalization::Block);
        let quantizer = Quantizer { scale_correction: correction && block, ..quantizer };
        let mut model = model(signed, &quantizer, &shape);
        let count = shape.iter().product::<i64>() as usize;
        let values = values(signed, count, seed, 6.0);
        let factor = f64::from(exponent).exp2() as f32;
        let decoded = round_trip(&mut model, signed, &values);
        let scaled: Vec<_> = values.iter().map(|x| x * factor).collect();
        let scaled = round_trip(&mut model, signed, &scaled);
        for (a, b) in decoded.iter().zip(&scaled) {
            prop_assert_eq!((a * factor).to_bits(), b.to_bits(), "{}", quantizer.describe());
        }
    }
}

/// Tensors by name, and the stream of each.
const TENSORS: [(&str, &[i64], u64); 5] = [
    ("a", &[4097], 0),
    ("b", &[40, 129], 1),
    ("c", &[3, 5, 7, 41], 2),
    ("d", &[66, 65], 3),
    ("small", &[10], 4),
];

/// Bytes of parameters and states by tensor, after three steps of the tensors in this order.
fn by_name(case: &common::Case, order: &[usize]) -> Vec<Vec<u8>> {
    let infos = order.iter().map(|&i| TensorInfo {
        grad_dtype: case.grad,
        weights: case.weights,
        ..TensorInfo::new(TENSORS[i].0, TENSORS[i].1, case.param)
    });
    let mut model = Model::new(Variant::Auto, 2, &case.spec, infos.collect());
    let numel = |i: usize| TENSORS[i].1.iter().product::<i64>() as u64;
    for (memory, &i) in model.params.iter_mut().zip(order) {
        let values = (0..numel(i)).map(|j| common::param(TENSORS[i].2, j));
        memory.as_mut().copy_from_slice(&bytes(values, case.param));
    }
    for t in 1..=3 {
        for (memory, &i) in model.grads.iter_mut().zip(order) {
            let values = (0..numel(i)).map(|j| common::grad(1000 * t + TENSORS[i].2, j));
            memory.as_mut().copy_from_slice(&bytes(values, case.grad));
        }
        model.run().unwrap();
    }
    let mut found = vec![Vec::new(); TENSORS.len()];
    for (memory, &i) in model.params.iter().zip(order) {
        found[i].extend_from_slice(memory.as_ref());
    }
    for (memory, buffer) in model.state.iter().zip(model.plan.buffers()) {
        found[order[buffer.tensor]].extend_from_slice(memory.as_ref());
    }
    found
}

#[test]
fn the_order_and_company_of_tensors_do_not_matter() {
    for case in common::cases() {
        let all = by_name(&case, &[0, 1, 2, 3, 4]);
        assert!(all.iter().all(|bytes| bytes.iter().any(|byte| *byte != 0)));
        assert!(by_name(&case, &[3, 0, 4, 2, 1]) == all, "{}", case.name);
        // Alone, too.
        assert!(by_name(&case, &[2])[2] == all[2], "{}", case.name);
        assert!(by_name(&case, &[3])[3] == all[3], "{}", case.name);
    }
}
