//! Groups of hyper-parameters: each tensor is stepped as if its group were all there is.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]
#![allow(unsafe_code, reason = "works on raw buffers")]

mod common;

use common::{Memory, Model, tensors, variants};
use lowbit::dtype::Dtype;
use lowbit::error::{Result, Status};
use lowbit::spec::Spec;
use lowbit::step::{Buffer, HyperSource, Stage, StepArgs};
use lowbit::{Hyper, Variant};

const GROUPS: [Hyper; 2] = [
    Hyper {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_scale: 1.0,
        clip_factor: 1.0,
        skip: 0.0,
    },
    Hyper {
        lr: 3e-4,
        beta1: 0.8,
        beta2: 0.999,
        eps: 1e-6,
        weight_decay: 0.0,
        grad_scale: 0.5,
        clip_factor: 0.75,
        skip: 0.0,
    },
];

/// Tensor `i` is in group `i % 2`.
fn grouped(variant: Variant, spec: &Spec) -> Model {
    let mut list = tensors(Dtype::F32, Dtype::F32);
    for (i, tensor) in list.iter_mut().enumerate() {
        tensor.group = i % 2;
    }
    let mut model = Model::new(variant, 2, spec, list);
    model.fill_params();
    model
}

fn step(model: &mut Model, hyper: HyperSource<'_>) -> Result<()> {
    let list = |memory: &[Memory]| memory.iter().map(Memory::buffer).collect::<Vec<Buffer>>();
    let args = StepArgs {
        params: &list(&model.params),
        grads: &list(&model.grads),
        updates: None,
        state: &list(&model.state),
        scratch: model.scratch.buffer(),
        hyper,
        nonfinite: model.nonfinite,
        offsets: None,
        skipped: model.skipped.as_mut_ptr(),
    };
    // SAFETY: all memory is the model's.
    unsafe { model.plan.step(&args, Stage::All, std::ptr::null_mut()) }
}

#[test]
fn each_tensor_is_stepped_by_its_group() {
    for preset in [
        "adamw4",
        "adamw4-block",
        "adamw4-robust",
        "factor4",
        "sgdm4",
        "lion8",
        "adafactor",
        "sm3",
    ] {
        let spec = Spec::preset(preset).unwrap();
        for variant in variants() {
            let mut model = grouped(variant, &spec);
            assert_eq!(model.plan.groups(), 2);
            // The same tensors, all under one group's hyper-parameters.
            let mut alone = GROUPS.map(|hyper| {
                let mut model = Model::new(variant, 2, &spec, tensors(Dtype::F32, Dtype::F32));
                model.hyper = hyper;
                model.fill_params();
                model
            });
            for t in 1..=3 {
                model.fill_grads(t);
                let number = i32::try_from(t).unwrap();
                // As values, and as eight floats for each group in the tensors' memory.
                if t % 2 == 0 {
                    let hyper = GROUPS.as_ptr().cast();
                    step(
                        &mut model,
                        HyperSource::Memory {
                            hyper,
                            step: &number,
                        },
                    )
                    .unwrap();
                } else {
                    step(&mut model, HyperSource::Host(&GROUPS, number)).unwrap();
                }
                for model in &mut alone {
                    model.fill_grads(t);
                    model.run().unwrap();
                }
            }
            for i in 0..model.params.len() {
                let want = &alone[i % 2];
                assert!(
                    model.params[i] == want.params[i],
                    "{preset} {variant:?} tensor {i}"
                );
                let buffers = model.plan.buffers().iter().enumerate();
                for (b, info) in buffers.filter(|(_, info)| info.tensor == i) {
                    assert!(
                        model.state[b] == want.state[b],
                        "{preset} {i} {}",
                        info.part
                    );
                }
            }
            // The groups differ, or the comparison would say nothing.
            assert!(alone[0].params[3] != alone[1].params[3], "{preset}");
        }
    }
}

#[test]
fn a_step_takes_a_block_for_each_group() {
    let mut model = grouped(Variant::Auto, &Spec::preset("adamw4").unwrap());
    let error = step(&mut model, HyperSource::Host(&GROUPS[..1], 1)).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    assert!(error.to_string().contains("2 groups"), "{error}");
}

#[test]
fn the_skip_flag_of_one_group_skips_the_step() {
    let mut model = grouped(Variant::Auto, &Spec::preset("adamw4").unwrap());
    model.fill_grads(1);
    let before = (model.params.clone(), model.state.clone());
    let skipped = Hyper {
        skip: 1.0,
        ..GROUPS[1]
    };
    step(&mut model, HyperSource::Host(&[GROUPS[0], skipped], 1)).unwrap();
    assert!(before == (model.params.clone(), model.state.clone()));
    assert_eq!(model.skipped, [0, 7]);
}
