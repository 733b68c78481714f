//! States as f32 values: averages for optimizers of the trainer's own, and the change of a
//! quantizer during training.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]
#![allow(unsafe_code, reason = "works on raw buffers")]

mod common;

use common::{Memory, Model, floats, variants};
use lowbit::Variant;
use lowbit::codec::EmaArgs;
use lowbit::dtype::Dtype;
use lowbit::error::Status;
use lowbit::plan::TensorInfo;
use lowbit::quant::{Mapping, Rounding};
use lowbit::spec::{Normalization, Optimizer, Override, Quantizer, Spec};
use lowbit::step::Buffer;

fn buffers(memory: &[Memory]) -> Vec<Buffer> {
    memory.iter().map(Memory::buffer).collect()
}

/// Ten averages of the generator's gradients; the f32 outputs and the states.
fn averages(variant: Variant, x: Quantizer, decay: f32) -> (Vec<Vec<f32>>, Vec<Memory>) {
    let spec = Spec {
        threshold: 0,
        x: Some(x),
        ..Spec::new(Optimizer::None)
    };
    let tensors = vec![
        TensorInfo {
            grad_dtype: Dtype::Bf16,
            ..TensorInfo::new("a", &[40, 130], Dtype::F32)
        },
        TensorInfo::new("b", &[7], Dtype::F32),
    ];
    let mut model = Model::new(variant, 2, &spec, tensors);
    let outputs: Vec<_> = model
        .params
        .iter()
        .map(|p| Memory::zeroed(p.bytes))
        .collect();
    for t in 1..=10 {
        model.fill_grads(t);
        let args = EmaArgs {
            inputs: &buffers(&model.grads),
            outputs: &buffers(&outputs),
            state: &buffers(&model.state),
            decay,
            weight: 1.0 - decay,
            step: i32::try_from(t).unwrap(),
        };
        // SAFETY: all memory is this test's.
        unsafe { model.plan.ema(0, &args, std::ptr::null_mut()).unwrap() };
    }
    let values = outputs.iter().map(|o| floats(o.as_ref())).collect();
    (values, model.state)
}

#[test]
fn averages_are_those_of_f64_in_32_bits() {
    let (found, state) = averages(Variant::Auto, Quantizer::f32(), 0.9);
    assert_eq!(floats(state[0].as_ref()), found[0]);
    let mut largest = 0.0_f64;
    for (j, found) in found[1].iter().enumerate() {
        let mut want = 0.0_f64;
        for t in 1..=10_u64 {
            let g = f64::from(common::grad(1000 * t + 1, j as u64));
            want = f64::from(0.9_f32) * want + f64::from(1.0 - 0.9_f32) * g;
        }
        largest = largest.max((f64::from(*found) - want).abs());
    }
    assert!(largest < 10.0 * 6e-8, "{largest:e}");
}

#[test]
fn averages_have_the_same_bits_on_every_variant() {
    for x in [
        Quantizer::block(128, Mapping::De),
        Quantizer::rank1(Mapping::De),
        Quantizer {
            rounding: Rounding::Stochastic,
            ..Quantizer::codes(8, Normalization::Block, Mapping::Linear)
        },
    ] {
        let want = averages(Variant::Reference, x.clone(), 0.95);
        for variant in variants() {
            assert!(
                averages(variant, x.clone(), 0.95) == want,
                "{variant:?} {x:?}"
            );
        }
    }
}

#[test]
fn stochastic_averages_draw_anew_in_every_step() {
    let x = Quantizer {
        rounding: Rounding::Stochastic,
        ..Quantizer::block(128, Mapping::De)
    };
    let spec = Spec {
        threshold: 0,
        x: Some(x),
        ..Spec::new(Optimizer::None)
    };
    let mut model = Model::new(
        Variant::Auto,
        1,
        &spec,
        vec![TensorInfo::new("a", &[4096], Dtype::F32)],
    );
    let output = Memory::zeroed(4 * 4096);
    model.fill_grads(1);
    let coded = |step| {
        let args = EmaArgs {
            inputs: &buffers(&model.grads),
            outputs: &[output.buffer()],
            state: &buffers(&model.state),
            decay: 0.0,
            weight: 1.0,
            step,
        };
        // SAFETY: all memory is this test's.
        unsafe { model.plan.ema(0, &args, std::ptr::null_mut()).unwrap() };
        model.buffer(0, "x", "codes").to_vec()
    };
    let (first, again, other) = (coded(1), coded(1), coded(2));
    assert!(first == again && first != other);
}

/// Trains under one spec, converts, and goes on under another.
fn trained(spec: &Spec, tensors: &[TensorInfo]) -> Model {
    let mut model = Model::new(Variant::Auto, 2, spec, tensors.to_vec());
    model.fill_params();
    for t in 1..=5 {
        model.fill_grads(t);
        model.run().unwrap();
    }
    model
}

fn converted(from: &Model, spec: &Spec, tensors: &[TensorInfo]) -> Model {
    let mut model = Model::new(Variant::Auto, 2, spec, tensors.to_vec());
    model.params.clone_from(&from.params);
    model.step = from.step;
    let (old, new) = (buffers(&from.state), buffers(&model.state));
    // SAFETY: all memory is this test's.
    unsafe { model.plan.convert_from(&from.plan, &old, &new).unwrap() };
    model
}

fn tensors() -> Vec<TensorInfo> {
    vec![
        TensorInfo::new("embed", &[300, 64], Dtype::F32),
        TensorInfo::new("body", &[80, 128], Dtype::F32),
        TensorInfo::new("bias", &[64], Dtype::F32),
    ]
}

#[test]
fn a_quantizer_changes_for_one_tensor_during_training() {
    let before = Spec::preset("adamw4").unwrap();
    let eight = Quantizer {
        block: 256,
        ..Quantizer::codes(8, Normalization::Block, Mapping::De)
    };
    let after = Spec {
        overrides: vec![Override {
            pattern: "embed".into(),
            m: Some(eight.clone()),
            v: Some(eight),
            x: None,
        }],
        ..before.clone()
    };
    let old = trained(&before, &tensors());
    let mut new = converted(&old, &after, &tensors());
    // Tensors that keep their quantizers keep their bytes.
    for part in ["codes", "scales"] {
        assert_eq!(old.buffer(1, "m", part), new.buffer(1, "m", part));
    }
    assert_eq!(old.buffer(1, "v", "axis1"), new.buffer(1, "v", "axis1"));
    assert_eq!(old.buffer(2, "v", "value"), new.buffer(2, "v", "value"));
    // The other is the nearest of 256 levels to what 16 levels stood for.
    for state in 0..2 {
        let (was, is) = (&old.decompress(state)[0], &new.decompress(state)[0]);
        let largest = was.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
        let error = was.iter().zip(is).map(|(a, b)| (a - b).abs());
        // Half the widest gap of signed 8-bit dynamic exponent is 0.9 / 128 of the scale.
        let error = error.fold(0.0_f32, f32::max);
        assert!(
            error <= largest * 0.9 / 128.0 * 1.0001,
            "state {state}: {error} of {largest}"
        );
        assert!(was.iter().any(|x| *x != 0.0));
    }
    // Training goes on, and the checkpoint records the new spec.
    new.fill_grads(6);
    new.run().unwrap();
    let mut file = Vec::new();
    // SAFETY: all memory is this test's.
    unsafe {
        new.plan
            .write_checkpoint(
                &buffers(&new.state),
                6,
                &mut file,
                None,
                std::ptr::null_mut(),
            )
            .unwrap();
    }
    let head = String::from_utf8_lossy(&file[..4000]);
    assert!(head.contains("overrides"), "{head}");
    let mut again = Model::new(Variant::Auto, 1, &after, tensors());
    // SAFETY: as above.
    let info = unsafe {
        let from = lowbit::checkpoint::Checkpoint::of(Box::new(&file[..])).unwrap();
        let state = buffers(&again.state);
        again
            .plan
            .read_checkpoint(&from, &state, false, None, std::ptr::null_mut())
            .unwrap()
    };
    assert_eq!(info.step, 6);
    assert!(again.state == new.state);
    again.state.clear();
}

#[test]
fn states_move_between_32_bits_codes_and_factors() {
    let f32 = trained(&Spec::preset("adamw32").unwrap(), &tensors());
    let factored = converted(&f32, &Spec::preset("factor32").unwrap(), &tensors());
    // The factors are the means of v over rows and columns.
    let v = &f32.decompress(1)[1];
    let rows = floats(factored.buffer(1, "v", "rows"));
    for (row, mean) in rows.iter().enumerate() {
        let sum: f64 = v[row * 128..(row + 1) * 128]
            .iter()
            .map(|x| f64::from(*x))
            .sum();
        assert!((f64::from(*mean) - sum / 128.0).abs() <= sum / 128.0 * 1e-7);
    }
    assert_eq!(
        factored.buffer(0, "m", "value"),
        f32.buffer(0, "m", "value")
    );
    // And back: every element is row times column over the mean.
    let back = converted(&factored, &Spec::preset("adamw32").unwrap(), &tensors());
    let columns = floats(factored.buffer(1, "v", "columns"));
    let mean = floats(factored.buffer(1, "v", "mean"))[0];
    let values = floats(back.buffer(1, "v", "value"));
    for (j, value) in values.iter().enumerate() {
        let want = f64::from(rows[j / 128]) * f64::from(columns[j % 128]) / f64::from(mean);
        assert!((f64::from(*value) - want).abs() <= want * 2e-7);
    }
    // Another optimizer: what it has in common is taken over, the rest is zero.
    let lion = converted(&f32, &Spec::preset("lion32").unwrap(), &tensors());
    assert_eq!(lion.buffer(1, "m", "value"), f32.buffer(1, "m", "value"));
    let amsgrad = Spec {
        amsgrad: true,
        ..Spec::preset("adamw32").unwrap()
    };
    let amsgrad = converted(&f32, &amsgrad, &tensors());
    assert!(
        amsgrad
            .buffer(1, "vmax", "value")
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[test]
fn plans_for_other_tensors_are_refused_and_nothing_is_written() {
    let old = trained(&Spec::preset("adamw4").unwrap(), &tensors());
    let mut other = tensors();
    other[1].shape = vec![128, 80];
    let model = Model::new(Variant::Auto, 1, &Spec::preset("adamw4").unwrap(), other);
    let (from, to) = (buffers(&old.state), buffers(&model.state));
    // SAFETY: all memory is this test's.
    let error = unsafe { model.plan.convert_from(&old.plan, &from, &to).unwrap_err() };
    assert_eq!(error.status(), Status::InvalidArgument);
    assert!(error.to_string().contains("\"body\""), "{error}");
    let same = Model::new(
        Variant::Auto,
        1,
        &Spec::preset("adamw4").unwrap(),
        tensors(),
    );
    // SAFETY: as above.
    let error = unsafe { same.plan.convert_from(&old.plan, &from, &from).unwrap_err() };
    assert_eq!(error.status(), Status::Overlap);
    assert!(
        model
            .state
            .iter()
            .all(|m| m.as_ref().iter().all(|byte| *byte == 0))
    );
}
