//! Random tensors, specs and meshes. `PROPTEST_CASES=20000` makes a long run of it.

use std::collections::BTreeMap;

use lowbit::dtype::Dtype;
use lowbit::plan::TensorInfo;
use lowbit::quant::{Mapping, Rounding};
use lowbit::spec::{
    AdafactorOptions, FactorAxes, Normalization, Optimizer, Quantizer, SgdmOptions, Spec,
};
use lowbit::step::NonFinite;
use lowbit::weights::Weights;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use crate::common::word;
use crate::cuts::allowed;
use crate::is_dithered;
use crate::shards::{self, Manner, Place, Split};

/// Cases in `cargo test`.
const CASES: u32 = 300;

/// A quantizer that exists for m or for v.
fn quantizer(state: char) -> impl Strategy<Value = Quantizer> {
    let normalizations = vec![
        Normalization::Block,
        Normalization::Rank1,
        Normalization::Tensor,
        Normalization::Row,
        Normalization::Column,
        Normalization::Factored,
    ];
    let mappings = vec![
        Mapping::De,
        Mapping::De0,
        Mapping::Linear,
        Mapping::LinearWithZero,
        Mapping::Power2,
        Mapping::Power3,
        Mapping::Nf4,
        Mapping::Geometric,
        Mapping::Table,
    ];
    let roundings = vec![
        Rounding::Nearest,
        Rounding::Stochastic,
        Rounding::StochasticLog,
        Rounding::StochasticPreconditioner,
    ];
    let parts = (
        prop_oneof![4 => 2_u32..=8, 1 => Just(32)],
        select(normalizations),
        select(mappings),
        5_u32..=9,
        select(roundings),
        prop::bool::weighted(0.3),
        select(vec![
            FactorAxes::Merged,
            FactorAxes::LastTwo,
            FactorAxes::LargestTwo,
        ]),
    );
    let any = parts.prop_map(
        move |(bits, normalization, mapping, block, rounding, correction, axes)| {
            let blocks = normalization == Normalization::Block;
            let factored = normalization == Normalization::Factored;
            if bits == 32 {
                Quantizer {
                    normalization: factored.then_some(normalization),
                    factor_axes: if factored { axes } else { FactorAxes::Merged },
                    ..Quantizer::f32()
                }
            } else {
                Quantizer {
                    block: if blocks { 1 << block } else { 128 },
                    levels: if mapping == Mapping::Table {
                        [0.125, 0.5, 1.0].into()
                    } else {
                        [].into()
                    },
                    rounding,
                    scale_correction: correction && blocks,
                    factor_axes: if factored { axes } else { FactorAxes::Merged },
                    ..Quantizer::codes(bits, normalization, mapping)
                }
            }
        },
    );
    let dithered = (2_u32..=8, 5_u32..=9).prop_map(|(bits, block)| Quantizer {
        block: 1 << block,
        dither: true,
        ..Quantizer::codes(bits, Normalization::Block, Mapping::LinearWithZero)
    });
    // Which of them exist is the spec's to say.
    prop_oneof![9 => any, 1 => dithered].prop_filter("no such quantizer", move |quantizer| {
        let mut spec = Spec::preset("adamw32").unwrap();
        if state == 'm' {
            spec.m = Some(quantizer.clone());
        } else {
            spec.v = Some(quantizer.clone());
        }
        spec.validate().is_ok()
    })
}

/// A spec of any optimizer; tensors of up to 100 or 1000 elements keep f32 states.
fn spec() -> impl Strategy<Value = Spec> {
    let optimizers = vec![
        Optimizer::Adamw,
        Optimizer::Adam,
        Optimizer::Sgdm,
        Optimizer::Lion,
        Optimizer::Adafactor,
        Optimizer::Sm3,
    ];
    let parts = (
        select(optimizers),
        quantizer('m'),
        quantizer('v'),
        any::<[bool; 4]>(),
        select(vec![100_i64, 1000]),
        any::<u64>(),
    );
    parts.prop_filter_map(
        "no such spec",
        |(optimizer, m, v, flags, threshold, seed)| {
            let [a, b, c, d] = flags;
            let second = matches!(
                optimizer,
                Optimizer::Adamw | Optimizer::Adam | Optimizer::Adafactor
            );
            let first = a || !matches!(optimizer, Optimizer::Adafactor | Optimizer::Sm3);
            let spec = Spec {
                optimizer,
                threshold,
                m: first.then_some(m),
                v: second.then_some(v),
                x: None,
                amsgrad: b && matches!(optimizer, Optimizer::Adamw | Optimizer::Adam),
                maximize: c,
                sgdm: (optimizer == Optimizer::Sgdm && d).then_some(SgdmOptions {
                    nesterov: b,
                    dampening: if b { 0.0 } else { 0.25 },
                    decoupled: a,
                }),
                adafactor: (optimizer == Optimizer::Adafactor && d).then_some(AdafactorOptions {
                    relative_step: b,
                    scale_parameter: c,
                    clip_threshold: if a { 1.0 } else { 0.5 },
                    ..AdafactorOptions::default()
                }),
                seed,
                overrides: Vec::new(),
            };
            spec.validate().is_ok().then_some(spec)
        },
    )
}

/// A tensor of at most some ten thousand elements, without its name.
fn tensor() -> impl Strategy<Value = TensorInfo> {
    let axis = prop_oneof![2 => 1_i64..12, 2 => 12_i64..80, 2 => 80_i64..700];
    let shape = prop::collection::vec(axis, 1..=4).prop_map(|mut shape| {
        while shape.iter().product::<i64>() > 12_000 {
            let largest = shape.iter_mut().max().unwrap();
            *largest = (*largest + 1) / 2;
        }
        shape
    });
    let forms = prop_oneof![
        4 => Just((Dtype::F32, Weights::Plain)),
        1 => Just((Dtype::Bf16, Weights::Plain)),
        1 => Just((Dtype::F16, Weights::Plain)),
        1 => Just((Dtype::Bf16, Weights::Stochastic)),
        1 => Just((Dtype::F16, Weights::Stochastic)),
        1 => Just((Dtype::Bf16, Weights::Master)),
        1 => Just((Dtype::F16, Weights::Master)),
        1 => Just((Dtype::Bf16, Weights::Remainder16)),
        1 => Just((Dtype::Bf16, Weights::Correction8)),
    ];
    let grads = select(vec![Dtype::F32, Dtype::Bf16, Dtype::F16]);
    (shape, forms, grads).prop_map(|(shape, (param, weights), grad_dtype)| TensorInfo {
        grad_dtype,
        weights,
        ..TensorInfo::new("", &shape, param)
    })
}

/// Extents of a mesh of 1 to 3 axes.
fn mesh() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(2_usize..=3, 1..=3)
}

fn manner() -> impl Strategy<Value = Manner> {
    let nonfinite = select(vec![
        NonFinite::Default,
        NonFinite::SkipTensor,
        NonFinite::SkipStep,
        NonFinite::Propagate,
    ]);
    let nan = prop::option::weighted(0.3, Just(2));
    (any::<bool>(), any::<bool>(), nan, nonfinite).prop_map(
        |(per_call, updates, nan, nonfinite)| Manner {
            per_call,
            updates,
            nan,
            nonfinite,
        },
    )
}

/// The largest block of a tensor's states, which decides its rows; f32 states count as 128.
fn block(spec: &Spec, shape: &[i64]) -> i64 {
    let quantizers = [&spec.m, &spec.v].into_iter().flatten();
    let largest = quantizers.map(|q| i64::from(q.block)).max().unwrap_or(128);
    if shape.iter().product::<i64>() <= spec.threshold {
        128
    } else if spec.optimizer == Optimizer::Sm3 {
        largest.max(128)
    } else {
        largest
    }
}

/// Cuts a tensor for a mesh: each axis of the mesh cuts some axis of the tensor somewhere, perhaps
/// at an end, which leaves shards empty.
fn cut(spec: &Spec, info: TensorInfo, mesh: &[usize], seed: u64) -> Split {
    let shape = &info.shape;
    let block = block(spec, shape);
    let mut draws = (0..).map(|i| word(seed, i) >> 20);
    let mut draw = |below: usize| draws.next().unwrap() as usize % below;
    // Axes that can be cut inside, where there are any.
    let inner = |axis: &usize| allowed(shape, block, *axis).len() > 2;
    let mut axes: Vec<_> = (0..shape.len()).filter(inner).collect();
    if axes.is_empty() {
        axes = (0..shape.len()).collect();
    }
    let mut parts = vec![1; shape.len()];
    for extent in mesh {
        parts[axes[draw(axes.len())]] *= extent;
    }
    let mut places = vec![Place {
        offset: Vec::new(),
        shape: Vec::new(),
    }];
    for (axis, parts) in parts.into_iter().enumerate() {
        let allowed = allowed(shape, block, axis);
        let mut ends = vec![0, shape[axis]];
        for _ in 1..parts {
            // An end makes a shard empty: now and then only, where there is another choice.
            let inner = &allowed[1..allowed.len() - 1];
            let cuts = if inner.is_empty() || draw(5) == 0 {
                &allowed[..]
            } else {
                inner
            };
            ends.push(cuts[draw(cuts.len())]);
        }
        ends.sort_unstable();
        places = places
            .iter()
            .flat_map(|place| {
                ends.windows(2).map(|ends| {
                    let mut place = place.clone();
                    place.offset.push(ends[0]);
                    place.shape.push(ends[1] - ends[0]);
                    place
                })
            })
            .collect();
    }
    Split::new(info, &places)
}

/// Whether the plans may be made for the origin instead: their places must be allowed, too.
fn fits_origin(spec: &Spec, split: &Split) -> bool {
    let block = block(spec, &split.global);
    let fits =
        |place: &Place, axis| allowed(&split.global, block, axis).contains(&place.shape[axis]);
    let mut places = split.places.iter().filter(|p| !p.shape.contains(&0));
    places.all(|place| (0..split.global.len()).all(|axis| fits(place, axis)))
}

#[test]
fn random_tensors_specs_and_meshes_give_the_bits_of_one_device() {
    let mut config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let input = (
        spec(),
        prop::collection::vec(tensor(), 1..=2),
        mesh(),
        manner(),
        0_u64..1 << 20,
    );
    let seen = std::cell::RefCell::new(BTreeMap::<String, u32>::new());
    let property = |(spec, tensors, mesh, mut manner, seed): (
        Spec,
        Vec<TensorInfo>,
        Vec<usize>,
        Manner,
        u64,
    )| {
        let splits: Vec<_> = (0..)
            .zip(tensors)
            .map(|(i, info)| {
                let name = format!("t{i}");
                cut(&spec, TensorInfo { name, ..info }, &mesh, seed + i)
            })
            .collect();
        manner.updates &= splits.iter().all(|s| s.info.weights == Weights::Plain);
        manner.per_call &=
            !is_dithered(&spec) && splits.iter().all(|split| fits_origin(&spec, split));
        let name = format!("{} on {mesh:?}", spec.to_json().unwrap());
        let stages = shards::check(&name, &spec, 3, &splits, manner);
        let mut seen = seen.borrow_mut();
        count(&mut seen, &spec, &splits, &mesh, manner);
        *seen.entry(format!("{stages} stages")).or_default() += 1;
        Ok(())
    };
    TestRunner::new(config).run(&input, property).unwrap();
    let seen = seen.into_inner();
    println!("{} random cases, of them", seen["all"]);
    for (what, count) in &seen {
        println!("{count:8} {what}");
    }
    // Each of them is a kind of case that is rare enough to be missed by a wrong generator.
    for what in [
        "optimizer adamw",
        "optimizer adam",
        "optimizer sgdm",
        "optimizer lion",
        "optimizer adafactor",
        "optimizer sm3",
        "normalization Block",
        "normalization Rank1",
        "normalization Tensor",
        "normalization Row",
        "normalization Column",
        "normalization Factored",
        "rounding Stochastic",
        "rounding StochasticLog",
        "rounding StochasticPreconditioner",
        "scale correction",
        "dither",
        "amsgrad",
        "mesh of 1 axes",
        "mesh of 2 axes",
        "mesh of 3 axes",
        "an empty shard",
        "no empty shard",
        "offsets given with the call",
        "updates",
        "a NaN",
        "weights stochastic",
        "weights master",
        "weights remainder16",
        "weights correction8",
        "1 stages",
        "2 stages",
        "4 stages",
    ] {
        assert!(seen.contains_key(what), "no case has {what}");
    }
}

/// Counts what a case has.
fn count(
    seen: &mut BTreeMap<String, u32>,
    spec: &Spec,
    splits: &[Split],
    mesh: &[usize],
    manner: Manner,
) {
    let mut add = |what: String, has: bool| {
        if has {
            *seen.entry(what).or_default() += 1;
        }
    };
    add("all".to_owned(), true);
    add(format!("optimizer {}", spec.optimizer.name()), true);
    add(format!("mesh of {} axes", mesh.len()), true);
    add("amsgrad".to_owned(), spec.amsgrad);
    add("offsets given with the call".to_owned(), manner.per_call);
    add("updates".to_owned(), manner.updates);
    add("a NaN".to_owned(), manner.nan.is_some());
    let empty = |split: &Split| split.places.iter().any(|place| place.shape.contains(&0));
    add("an empty shard".to_owned(), splits.iter().any(empty));
    add("no empty shard".to_owned(), !splits.iter().any(empty));
    let quantized = |split: &Split| split.global.iter().product::<i64>() > spec.threshold;
    for quantizer in [&spec.m, &spec.v].into_iter().flatten() {
        if !splits.iter().any(quantized) {
            continue;
        }
        if let Some(normalization) = quantizer.normalization {
            add(format!("normalization {normalization:?}"), true);
            add(format!("rounding {:?}", quantizer.rounding), true);
        }
        add("scale correction".to_owned(), quantizer.scale_correction);
        add("dither".to_owned(), quantizer.dither);
    }
    for split in splits {
        add(format!("weights {}", split.info.weights.name()), true);
    }
}

/// Three shards have a gradient that is not finite in one sum: had they added anything to it, that might be
/// more than 64 bits hold.
#[test]
fn nothing_is_added_to_sums_that_are_not_finite() {
    let quantizer = |normalization, block, mapping| Quantizer {
        bits: 2,
        normalization: Some(normalization),
        ..Quantizer::block(block, mapping)
    };
    let spec = Spec {
        optimizer: Optimizer::Adam,
        threshold: 100,
        m: Some(quantizer(Normalization::Block, 32, Mapping::Linear)),
        v: Some(quantizer(Normalization::Factored, 128, Mapping::De)),
        ..Spec::preset("adamw32").unwrap()
    };
    let info = TensorInfo::new("t0", &[88, 72], Dtype::F32);
    let manner = Manner {
        per_call: false,
        updates: false,
        nan: Some(2),
        nonfinite: NonFinite::Propagate,
    };
    let splits = [cut(&spec, info, &[3], 13063)];
    shards::check("a random case", &spec, 3, &splits, manner);
}
