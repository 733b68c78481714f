//! Every CPU variant equals the reference bit for bit: parameters, updates, states, counters.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

mod common;

use common::{Memory, Model, bytes, variants};
use lowbit::dtype::Dtype;
use lowbit::plan::TensorInfo;
use lowbit::quant::{Mapping, Rounding};
use lowbit::spec::{FactorAxes, Normalization, Optimizer, Quantizer, SgdmOptions, Spec};
use lowbit::step::NonFinite;
use lowbit::{Hyper, Variant};
use proptest::prelude::*;

/// All that a step writes.
fn written(model: &Model) -> (Vec<Memory>, Option<Vec<Memory>>, Vec<Memory>, [i64; 2]) {
    (
        model.params.clone(),
        model.updates.clone(),
        model.state.clone(),
        model.skipped,
    )
}

/// A spec with no threshold, so that every size is quantized.
fn spec(m: Quantizer, v: Quantizer) -> Spec {
    Spec {
        threshold: 0,
        m: Some(m),
        v: Some(v),
        ..Spec::preset("adamw32").unwrap()
    }
}

fn at_random(quantizer: Quantizer) -> Quantizer {
    Quantizer {
        rounding: Rounding::Stochastic,
        ..quantizer
    }
}

fn of_bits(bits: u32, quantizer: Quantizer) -> Quantizer {
    Quantizer { bits, ..quantizer }
}

fn corrected(quantizer: Quantizer) -> Quantizer {
    Quantizer {
        scale_correction: true,
        ..quantizer
    }
}

fn dithered(quantizer: Quantizer) -> Quantizer {
    Quantizer {
        dither: true,
        ..quantizer
    }
}

fn specs() -> Vec<Spec> {
    let de = |block| Quantizer::block(block, Mapping::De);
    let linear = |block| Quantizer::block(block, Mapping::Linear);
    vec![
        spec(Quantizer::f32(), Quantizer::f32()),
        spec(de(128), Quantizer::rank1(Mapping::Linear)),
        spec(de(128), Quantizer::rank1(Mapping::De)),
        spec(de(128), linear(128)),
        spec(de(32), linear(4096)),
        spec(de(2048), de(64)),
        spec(Quantizer::f32(), Quantizer::rank1(Mapping::Linear)),
        spec(de(256), Quantizer::f32()),
        spec(at_random(de(128)), at_random(linear(128))),
        spec(
            at_random(de(128)),
            at_random(Quantizer::rank1(Mapping::Linear)),
        ),
        spec(
            at_random(Quantizer::block(128, Mapping::Nf4)),
            Quantizer::rank1(Mapping::Power2),
        ),
        spec(de(128), at_random(Quantizer::rank1(Mapping::Power2))),
        adam(spec(de(128), linear(128))),
        adam(spec(de(128), Quantizer::rank1(Mapping::Linear))),
        adam(factored(FactorAxes::Merged)),
        Spec {
            m: Some(Quantizer::f32()),
            ..factored(FactorAxes::Merged)
        },
        factored(FactorAxes::Merged),
        factored(FactorAxes::LastTwo),
        factored(FactorAxes::LargestTwo),
        of_m(Optimizer::Sgdm, Quantizer::f32()),
        of_m(
            Optimizer::Sgdm,
            at_random(Quantizer::block(128, Mapping::Nf4)),
        ),
        Spec {
            sgdm: Some(SgdmOptions {
                nesterov: true,
                dampening: 0.0,
                decoupled: true,
            }),
            ..of_m(Optimizer::Sgdm, de(128))
        },
        Spec {
            sgdm: Some(SgdmOptions {
                nesterov: false,
                dampening: 0.25,
                decoupled: false,
            }),
            ..of_m(Optimizer::Sgdm, de(128))
        },
        of_m(Optimizer::Lion, Quantizer::f32()),
        of_m(Optimizer::Lion, de(128)),
        of_m(
            Optimizer::Lion,
            at_random(Quantizer::block(128, Mapping::Nf4)),
        ),
        with_m("adafactor", None),
        with_m("adafactor", Some(Quantizer::f32())),
        with_m("adafactor", Some(at_random(de(128)))),
        with_m("sm3", None),
        with_m("sm3", Some(Quantizer::f32())),
        Spec {
            amsgrad: true,
            ..spec(de(128), linear(128))
        },
        everywhere("adamw8"),
        everywhere("sgdm8"),
        everywhere("lion8"),
        spec(de(32), linear(32)),
        spec(at_random(de(64)), at_random(linear(32))),
        spec(corrected(de(64)), dithered(linear(64))),
        spec(corrected(de(32)), corrected(linear(256))),
        spec(of_bits(8, de(64)), of_bits(8, linear(32))),
        spec(
            of_bits(2, Quantizer::block(64, Mapping::LinearWithZero)),
            dithered(of_bits(8, linear(32))),
        ),
        adam(spec(Quantizer::f32(), Quantizer::f32())),
        adam(everywhere("adamw8")),
        adam(everywhere("adamw4-robust")),
        adam(Spec {
            m: Some(Quantizer::f32()),
            ..factored(FactorAxes::Merged)
        }),
    ]
}

/// A preset for tensors of any size.
fn everywhere(preset: &str) -> Spec {
    Spec {
        threshold: 0,
        ..Spec::preset(preset).unwrap()
    }
}

/// A preset with another m, likewise.
fn with_m(preset: &str, m: Option<Quantizer>) -> Spec {
    Spec {
        m,
        ..everywhere(preset)
    }
}

/// With the decay added to the gradients.
fn adam(spec: Spec) -> Spec {
    Spec {
        optimizer: Optimizer::Adam,
        ..spec
    }
}

/// A factored v, likewise.
fn factored(factor_axes: FactorAxes) -> Spec {
    let factor4 = Spec::preset("factor4").unwrap();
    Spec {
        threshold: 0,
        v: factor4.v.map(|v| Quantizer { factor_axes, ..v }),
        ..factor4
    }
}

/// An optimizer of m alone, likewise.
fn of_m(optimizer: Optimizer, m: Quantizer) -> Spec {
    Spec {
        threshold: 0,
        m: Some(m),
        ..Spec::new(optimizer)
    }
}

fn shapes() -> Vec<Vec<i64>> {
    let mut shapes: Vec<Vec<i64>> = [
        &[][..],
        &[0],
        &[3, 0],
        &[1],
        &[1, 1],
        &[64, 3, 3, 3],
        &[300, 257],
        &[3, 128],
        &[5, 129],
        &[2, 3, 5, 7, 11],
        &[2, 2, 2, 2, 2, 37],
        &[40, 5000],
        &[2, 9000],
        &[700, 3],
        // Rows of several axes: of 768 and 297 elements, each the period of rank-1 scales, ...
        &[20, 12, 64],
        &[40, 33, 3, 3],
        // ... in rows of 9900, 4550 and 90 elements, periods of 9, 35 and 3, ...
        &[2, 1100, 3, 3],
        &[130, 7, 5],
        &[5, 6, 3],
        // ... and one row of a short axis.
        &[300, 16],
        &[90, 100],
    ]
    .into_iter()
    .map(<[i64]>::to_vec)
    .collect();
    for n in [
        2, 31, 32, 33, 127, 128, 129, 255, 256, 257, 4095, 4096, 4097, 70_001,
    ] {
        shapes.push(vec![n]);
    }
    shapes
}

fn check(spec: &Spec, tensors: &[TensorInfo], steps: u64, prepare: impl Fn(&mut Model, u64)) {
    for updates in [false, true] {
        let run = |variant, threads| {
            let mut model = Model::new(variant, threads, spec, tensors.to_vec());
            if updates {
                model = model.with_updates();
            }
            model.fill_params();
            for t in 1..=steps {
                model.fill_grads(t);
                prepare(&mut model, t);
                model.run().unwrap();
            }
            written(&model)
        };
        let want = run(Variant::Reference, 1);
        let others = variants().into_iter().filter(|v| *v != Variant::Reference);
        for variant in others {
            for threads in [1, 3] {
                assert!(
                    run(variant, threads) == want,
                    "{variant:?} with {threads} threads, updates {updates}, {}",
                    spec.to_json().unwrap()
                );
            }
        }
    }
}

fn all_tensors(param: Dtype, grad: Dtype) -> Vec<TensorInfo> {
    let of = |(i, shape): (usize, Vec<i64>)| TensorInfo {
        grad_dtype: grad,
        ..TensorInfo::new(format!("t{i}"), &shape, param)
    };
    shapes().into_iter().enumerate().map(of).collect()
}

#[test]
fn all_shapes_dtypes_and_quantizers() {
    for spec in specs() {
        for (param, grad) in [
            (Dtype::F32, Dtype::F32),
            (Dtype::Bf16, Dtype::Bf16),
            (Dtype::F32, Dtype::Bf16),
            (Dtype::Bf16, Dtype::F32),
        ] {
            check(&spec, &all_tensors(param, grad), 3, |_, _| ());
        }
    }
}

#[test]
fn updates_take_the_place_of_gradients() {
    for spec in specs() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let tensors = all_tensors(dtype, dtype);
            let model = |variant, threads| {
                let mut model = Model::new(variant, threads, &spec, tensors.clone());
                model.fill_params();
                model.fill_grads(1);
                model
            };
            let mut apart = model(Variant::Reference, 1).with_updates();
            apart.run().unwrap();
            for variant in variants() {
                let mut there = model(variant, 2);
                there.updates_in_grads = true;
                there.run().unwrap();
                assert!(
                    Some(&there.grads) == apart.updates.as_ref() && there.state == apart.state,
                    "{variant:?}, {}",
                    spec.to_json().unwrap()
                );
            }
        }
    }
}

/// Gradients with everything that floating point has.
fn hostile(model: &mut Model, t: u64) {
    let special = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        -f32::MAX,
        f32::MIN_POSITIVE,
        1e-40,
        -1e-45,
        -0.0,
        2e19,
        1e-20,
        f32::from_bits(0xffc0_1234),
    ];
    for (i, memory) in model.grads.iter_mut().enumerate() {
        let dtype = model.plan.tensors()[i].info.grad_dtype;
        let size = dtype.size();
        for j in 0..memory.bytes / size {
            let h = common::word(77 * t + i as u64, j as u64);
            if h.is_multiple_of(97) {
                let value = special[(h / 97) as usize % special.len()];
                let value = bytes(std::iter::once(value), dtype);
                memory.as_mut()[j * size..(j + 1) * size].copy_from_slice(&value);
            }
        }
    }
}

#[test]
fn non_finite_gradients_under_every_policy() {
    for spec in [1, 3, 4, 8, 9, 28, 30, 31, 32, 35, 37].map(|i| specs().swap_remove(i)) {
        let normalization = spec.v.as_ref().and_then(|v| v.normalization);
        let of_slices = normalization != Some(Normalization::Block);
        for policy in [
            NonFinite::Default,
            NonFinite::SkipBlock,
            NonFinite::SkipTensor,
            NonFinite::SkipStep,
            NonFinite::Propagate,
        ] {
            if of_slices && policy == NonFinite::SkipBlock {
                continue;
            }
            for dtype in [Dtype::F32, Dtype::Bf16] {
                check(&spec, &all_tensors(dtype, dtype), 4, |model, t| {
                    model.nonfinite = policy;
                    if t != 2 {
                        hostile(model, t);
                    }
                });
            }
        }
    }
}

/// Gradients whose squares are not finite, with parameters whose decay makes them small.
#[test]
fn gradients_that_the_decay_hides() {
    let adam = specs()
        .into_iter()
        .filter(|spec| spec.optimizer == Optimizer::Adam);
    for spec in adam {
        let normalization = spec.v.as_ref().and_then(|v| v.normalization);
        for policy in [
            NonFinite::SkipBlock,
            NonFinite::SkipTensor,
            NonFinite::Propagate,
        ] {
            let of_slices = normalization.is_some_and(|n| n != Normalization::Block);
            if of_slices && policy == NonFinite::SkipBlock {
                continue;
            }
            for dtype in [Dtype::F32, Dtype::Bf16] {
                check(&spec, &all_tensors(dtype, dtype), 2, |model, t| {
                    model.nonfinite = policy;
                    model.hyper.weight_decay = 0.5;
                    let value = |x: f32| bytes(std::iter::once(x), dtype);
                    let (param, grad) = (value(-(2_f32.powi(66))), value(2_f32.powi(65)));
                    let tensors = model.params.iter_mut().zip(&mut model.grads);
                    for (i, (params, grads)) in tensors.enumerate() {
                        for j in 0..params.bytes / param.len() {
                            if common::word(t + 7 * i as u64, j as u64).is_multiple_of(301) {
                                let at = j * param.len()..(j + 1) * param.len();
                                params.as_mut()[at.clone()].copy_from_slice(&param);
                                grads.as_mut()[at].copy_from_slice(&grad);
                            }
                        }
                    }
                });
            }
        }
    }
}

/// States that a step was let spoil, and none that is skipped for them.
#[test]
fn finite_gradients_on_states_that_are_not() {
    for spec in [1, 3, 9, 14, 16].map(|i| specs().swap_remove(i)) {
        let tensors = all_tensors(Dtype::F32, Dtype::F32);
        check(&spec, &tensors, 3, |model, t| {
            if t == 1 {
                model.nonfinite = NonFinite::Propagate;
                hostile(model, t);
            } else {
                model.nonfinite = NonFinite::SkipTensor;
                assert_eq!(model.skipped, [0; 2]);
            }
        });
    }
}

/// Scales that no step leaves, such as a file may have: negative, infinite and subnormal ones among the others.
#[test]
fn states_under_any_scales() {
    let special = [
        f32::NEG_INFINITY,
        -1e-3,
        -0.0,
        0.0,
        1e-40,
        f32::MAX,
        f32::NAN,
        f32::from_bits(0xffc0_1234),
    ];
    for spec in [1, 3, 6, 9, 10, 13].map(|i| specs().swap_remove(i)) {
        let tensors = all_tensors(Dtype::F32, Dtype::F32);
        check(&spec, &tensors, 3, |model, t| {
            model.nonfinite = NonFinite::Propagate;
            let is_scale = |part: &str| part == "scales" || part.starts_with("axis");
            let buffers = model.plan.buffers().iter().zip(&mut model.state);
            for (i, (info, memory)) in buffers.enumerate().filter(|_| t > 1) {
                for (j, scale) in memory.as_mut().chunks_mut(4).enumerate() {
                    let h = common::word(t + 31 * i as u64, j as u64);
                    if is_scale(&info.part) && h.is_multiple_of(29) {
                        let value = special[(h / 29) as usize % special.len()];
                        scale.copy_from_slice(&value.to_ne_bytes());
                    }
                }
            }
        });
    }
}

/// Tensors large enough not to go through all passes together with the others, and small ones without
/// statistics between them. Two have gradients that are not finite.
#[test]
fn tensors_that_follow_each_other() {
    let shapes: [&[i64]; 7] = [
        &[100],
        &[520, 1024],
        &[7],
        &[1024, 640],
        &[640, 1000],
        &[3],
        &[640, 1000],
    ];
    let of = |grad| {
        let tensors = shapes.iter().enumerate().map(|(i, shape)| TensorInfo {
            grad_dtype: grad,
            ..TensorInfo::new(format!("t{i}"), shape, Dtype::F32)
        });
        tensors.collect::<Vec<_>>()
    };
    let spoil = |model: &mut Model, tensor: usize, dtype| {
        let value = bytes(std::iter::once(f32::NAN), dtype);
        model.grads[tensor].as_mut()[..value.len()].copy_from_slice(&value);
    };
    for (preset, grad, policy) in [
        ("adamw4", Dtype::F32, NonFinite::SkipTensor),
        ("adamw4-robust", Dtype::Bf16, NonFinite::Default),
        ("factor4", Dtype::F32, NonFinite::Default),
        ("adafactor", Dtype::F32, NonFinite::SkipTensor),
    ] {
        check(&Spec::preset(preset).unwrap(), &of(grad), 1, |model, _| {
            model.nonfinite = policy;
            spoil(model, 2, grad);
            spoil(model, 4, grad);
        });
    }
}

#[test]
fn scales_and_skips() {
    for spec in specs() {
        check(
            &spec,
            &all_tensors(Dtype::F32, Dtype::F32),
            4,
            |model, t| {
                model.hyper = Hyper {
                    grad_scale: 1.0 / 3.0,
                    clip_factor: if t == 3 { 1e-30 } else { 0.7 },
                    skip: f32::from(u8::from(t == 2)),
                    weight_decay: 0.0,
                    beta1: 0.3,
                    ..Hyper::default()
                };
            },
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Any bit pattern in a gradient, any block sizes, any small shape.
    #[test]
    fn any_bits(
        shape in prop::collection::vec(1_i64..40, 0..5),
        bits in prop::collection::vec(any::<u32>(), 64),
        m_block in 5_u32..=12,
        v_block in 5_u32..=12,
        rank1 in any::<bool>(),
        random in any::<bool>(),
        propagate in any::<bool>(),
    ) {
        let m = Quantizer::block(1 << m_block, Mapping::De);
        let v = Quantizer::block(1 << v_block, Mapping::Linear);
        let v = if rank1 { Quantizer::rank1(Mapping::Linear) } else { v };
        let (m, v) = if random { (at_random(m), at_random(v)) } else { (m, v) };
        let tensors = [TensorInfo::new("t", &shape, Dtype::F32)];
        check(&spec(m, v), &tensors, 2, |model, t| {
            model.nonfinite = if propagate { NonFinite::Propagate } else { NonFinite::Default };
            for (j, value) in model.grads[0].as_mut().chunks_mut(4).enumerate() {
                let bits = bits[j % bits.len()].rotate_left(u32::try_from(t).unwrap() * 8);
                value.copy_from_slice(&bits.to_le_bytes());
            }
        });
    }

    /// Compressing and decompressing, too.
    #[test]
    fn codec(
        shape in prop::collection::vec(1_i64..40, 0..5),
        bits in prop::collection::vec(any::<u32>(), 64),
        block in 5_u32..=12,
    ) {
        let spec = Spec {
            threshold: 0,
            x: Some(Quantizer::block(1 << block, Mapping::De)),
            ..Spec::new(Optimizer::None)
        };
        let numel: i64 = shape.iter().product();
        let values: Vec<f32> =
            (0..numel as usize).map(|j| f32::from_bits(bits[j % bits.len()])).collect();
        let run = |variant| {
            let mut model =
                Model::new(variant, 2, &spec, vec![TensorInfo::new("t", &shape, Dtype::F32)]);
            model.compress(0, std::slice::from_ref(&values)).unwrap();
            let restored: Vec<u32> = model.decompress(0)[0].iter().map(|x| x.to_bits()).collect();
            (model.state, restored)
        };
        let want = run(Variant::Reference);
        for variant in variants() {
            prop_assert!(run(variant) == want, "{variant:?}");
        }
    }
}
