//! Offload on the mock driver, whose streams do their work late or early, so that a wait that is
//! missing changes the bits; the oracle is one step of all tensors by the CPU's reference.

use std::ffi::c_void;
use std::sync::Arc;

use lowbit::dtype::Dtype;
use lowbit::error::{Result, Status};
use lowbit::offload::Offload;
use lowbit::plan::{Plan, TensorInfo};
use lowbit::spec::Spec;
use lowbit::step::{Buffer, HyperSource, NonFinite, Stage, StepArgs};
use lowbit::weights::Weights;
use lowbit::{Context, CpuContext, CudaContext, Hyper, Variant};

use super::{DRIVER, MOCK, calls, run, stream};

const STEPS: i32 = 3;

// ---- parents -----------------------------------------------------------------------------------

#[test]
fn steps_equal_the_reference_whenever_copies_run() {
    for place in ["host", "device"] {
        for preset in ["adamw4-block", "adamw4"] {
            for order in ["late", "early"] {
                // The least staging memory, and some in which small tensors share a slot.
                for staging in ["0", "100000"] {
                    let variables = [
                        ("LOWBIT_MOCK_PLACE", place),
                        ("LOWBIT_MOCK_PRESET", preset),
                        ("LOWBIT_MOCK_STAGING", staging),
                        ("MOCK_ORDER", order),
                    ];
                    let said = run(&DRIVER, "offload", &variables);
                    assert_eq!(said, "ok", "{variables:?}");
                }
            }
        }
    }
}

#[test]
fn failures_leave_whole_tensors_and_no_work() {
    // The parts are a; b, c, none; d, e; ... on the host, and a, b; c, none; ... on the device. The
    // fourth gradient that is copied is d's, when a has been stepped; the second parameter is b's.
    for (place, fail, at, text) in [
        ("host", "cuMemcpyDtoHAsync_v2=700", "4", "1 of 9"),
        ("host", "cuMemcpyHtoDAsync_v2=700", "2", "4 of 9"),
        ("host", "cuEventRecord=700", "1", "0 of 9"),
        ("device", "cuStreamWaitEvent=700", "4", "2 of 9"),
    ] {
        let variables = [
            ("LOWBIT_MOCK_PLACE", place),
            ("MOCK_ORDER", "late"),
            ("MOCK_FAIL", fail),
            ("MOCK_FAIL_AT", at),
        ];
        let said = run(&DRIVER, "offload_fails", &variables);
        let name = fail.split(['=', '_']).next().unwrap();
        let expected = format!("CudaError: {text} tensors were stepped: {name}");
        assert!(said.starts_with(&expected), "{fail}: {said}");
    }
}

#[test]
fn failures_of_creation_leave_nothing() {
    for (fail, at, status) in [
        ("cuMemHostAlloc=2", "1", "OutOfMemory: "),
        ("cuMemHostAlloc=2", "2", "OutOfMemory: "),
        ("cuStreamCreate=700", "2", "CudaError: cuStreamCreate"),
        ("cuEventCreate=700", "5", "CudaError: cuEventCreate"),
    ] {
        let variables = [
            ("LOWBIT_MOCK_PLACE", "host"),
            ("MOCK_FAIL", fail),
            ("MOCK_FAIL_AT", at),
        ];
        let said = run(&DRIVER, "offload", &variables);
        assert!(said.starts_with(status), "{fail}: {said}");
    }
}

#[test]
fn what_cannot_be_stepped_in_parts_is_refused() {
    for place in ["host", "device"] {
        let variables = [("LOWBIT_MOCK_PLACE", place)];
        assert_eq!(run(&DRIVER, "offload_refuses", &variables), "ok");
    }
}

// ---- the child ---------------------------------------------------------------------------------

/// A task of a parent's; with nothing left of the offload, whatever it returns.
pub(super) fn child(task: &str) -> Result<()> {
    let result = match task {
        "offload" => steps(),
        "offload_fails" => fails(),
        _ => refuses(),
    };
    // SAFETY: a function of the mock.
    assert_eq!(unsafe { (MOCK.left)() }, 0, "streams, events or memory");
    result
}

fn variable(name: &str, otherwise: &str) -> String {
    std::env::var(name).unwrap_or(otherwise.to_owned())
}

/// Above and below the threshold, of all sizes, with states beside and without.
fn tensors() -> Vec<TensorInfo> {
    let tensor = |name, shape: &[i64], weights, group| TensorInfo {
        grad_dtype: Dtype::F32,
        weights,
        group,
        ..TensorInfo::new(name, shape, Dtype::Bf16)
    };
    vec![
        tensor("a", &[64, 130], Weights::Stochastic, 0),
        tensor("b", &[101], Weights::Plain, 1),
        tensor("c", &[34, 130], Weights::Master, 0),
        tensor("none", &[0, 5], Weights::Plain, 0),
        tensor("d", &[80, 100], Weights::Correction8, 1),
        tensor("e", &[7], Weights::Stochastic, 0),
        tensor("f", &[3000], Weights::Plain, 0),
        tensor("g", &[8000], Weights::Plain, 1),
        tensor("h", &[81, 100], Weights::Stochastic, 0),
    ]
}

/// Memory of the caller's, of the device or of the reference: bits of bf16 and f32.
struct Model {
    params: Vec<Vec<u16>>,
    grads: Vec<Vec<f32>>,
    skipped: [i64; 2],
}

fn buffers<T>(lists: &mut [Vec<T>]) -> Vec<Buffer> {
    let buffer = |list: &mut Vec<T>| Buffer {
        data: list.as_mut_ptr().cast(),
        bytes: size_of_val(list.as_slice()) as i64,
    };
    lists.iter_mut().map(buffer).collect()
}

fn bytes_of(buffer: &Buffer) -> Vec<u8> {
    // SAFETY: memory of this size, or none.
    unsafe { std::slice::from_raw_parts(buffer.data.cast(), buffer.bytes as usize) }.to_vec()
}

fn numels() -> Vec<i64> {
    let tensors = tensors();
    tensors.iter().map(|t| t.shape.iter().product()).collect()
}

impl Model {
    fn new() -> Self {
        let values = |n: i64| (0..n).map(|i| (i * 37) as u16 & 0xbfff).collect();
        Self {
            params: numels().into_iter().map(values).collect(),
            grads: gradients(0),
            skipped: [0; 2],
        }
    }
}

/// Of step `t`; the second has a NaN.
fn gradients(t: i32) -> Vec<Vec<f32>> {
    let value = |i: i64| ((i * 7919 + i64::from(t) * 31) % 2003 - 1001) as f32 * 1e-4;
    let mut grads: Vec<Vec<_>> = numels()
        .iter()
        .map(|n| (0..*n).map(value).collect())
        .collect();
    if t == 2 {
        grads[2][777] = f32::NAN;
    }
    grads
}

fn hyper(t: i32) -> [Hyper; 2] {
    let of = |lr| Hyper {
        lr,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_scale: 0.5,
        clip_factor: 0.5,
        skip: 0.0,
    };
    [of(1e-2), of(2e-2 / t as f32)]
}

/// What the reference has after `count` steps: parameters and state bytes.
fn expected(spec: &Spec, count: i32) -> Result<(Model, Vec<Vec<u8>>)> {
    let cpu = Context::Cpu(CpuContext::new(1, Variant::Reference)?);
    let plan = Plan::new(Arc::new(cpu), spec, tensors())?;
    let state = lowbit::state::State::new(&plan, std::ptr::null_mut())?;
    let mut model = Model::new();
    let mut scratch = vec![0_i64; plan.scratch_bytes() as usize / 8];
    for t in 1..=count {
        model.grads = gradients(t);
        let (params, grads) = (buffers(&mut model.params), buffers(&mut model.grads));
        let hyper = hyper(t);
        let hyper = HyperSource::Host(&hyper, t);
        let args = StepArgs {
            state: state.buffers(),
            scratch: Buffer {
                data: scratch.as_mut_ptr().cast(),
                bytes: 8 * scratch.len() as i64,
            },
            ..args(&params, &grads, hyper, &mut model.skipped)
        };
        // SAFETY: live memory.
        unsafe { plan.step(&args, Stage::All, std::ptr::null_mut()) }?;
    }
    let bytes = state.buffers().iter().map(bytes_of).collect();
    state.destroy(std::ptr::null_mut());
    Ok((model, bytes))
}

fn args<'a>(
    params: &'a [Buffer],
    grads: &'a [Buffer],
    hyper: HyperSource<'a>,
    skipped: &mut [i64; 2],
) -> StepArgs<'a> {
    StepArgs {
        params,
        grads,
        updates: None,
        state: &[],
        scratch: Buffer::NONE,
        hyper,
        nonfinite: NonFinite::Default,
        offsets: None,
        skipped: skipped.as_mut_ptr(),
    }
}

fn spec() -> Result<Spec> {
    Spec::preset(&variable("LOWBIT_MOCK_PRESET", "adamw4-block"))
}

fn offload(spec: &Spec, staging: i64) -> Result<Offload> {
    let device = Arc::new(Context::Cuda(CudaContext::new(0)?));
    let context = match variable("LOWBIT_MOCK_PLACE", "").as_str() {
        "host" => Arc::new(Context::Cpu(CpuContext::new(1, Variant::Auto)?)),
        _ => Arc::clone(&device),
    };
    let plan = Plan::new(context, spec, tensors())?;
    let (offload, _) = calls(|| Offload::new(Arc::new(plan), Some(device), staging));
    let offload = offload?;
    for (to, from) in offload.params().iter().zip(&Model::new().params) {
        // SAFETY: as many bytes on both sides.
        unsafe {
            to.data
                .cast::<u16>()
                .copy_from_nonoverlapping(from.as_ptr(), from.len());
        }
    }
    Ok(offload)
}

/// A trainer's step: gradients that its stream brings, then ours.
///
/// # Safety
/// The model lives until the stream's work is done.
unsafe fn step(offload: &Offload, model: &mut Model, t: i32) -> (Result<()>, String) {
    let (params, grads) = (buffers(&mut model.params), buffers(&mut model.grads));
    for (to, from) in grads.iter().zip(&gradients(t)) {
        // SAFETY: as many bytes on both sides; a function of the mock.
        unsafe { (MOCK.copy)(to.data, from.as_ptr().cast(), 4 * from.len(), stream()) };
    }
    let hyper = hyper(t);
    let hyper = HyperSource::Host(&hyper, t);
    let args = args(&params, &grads, hyper, &mut model.skipped);
    // SAFETY: the caller's promise.
    calls(|| unsafe { offload.step(&args, stream()) })
}

fn synchronize() {
    // SAFETY: a function of the mock.
    assert_eq!(unsafe { (MOCK.synchronize)(stream()) }, 0);
}

/// Steps without a wait between them.
fn steps() -> Result<()> {
    let spec = spec()?;
    let staging = variable("LOWBIT_MOCK_STAGING", "0").parse().unwrap();
    let offload = offload(&spec, staging)?;
    let info = offload.info();
    let least = if staging == 0 { 5 } else { 2 };
    assert!(info.chunks >= least, "{info:?}");
    assert!(staging == 0 || info.staging_bytes <= staging, "{info:?}");
    // The device's parameters are written only, where the host has its own.
    let mut model = Model::new();
    if info.on_host {
        model.params.iter_mut().for_each(|list| list.fill(0));
    }
    for t in 1..=STEPS {
        // SAFETY: the model lives until the end.
        let (done, made) = unsafe { step(&offload, &mut model, t) };
        done?;
        for call in [
            "Alloc",
            "Free",
            "Create",
            "Destroy",
            "Load",
            "StreamSynchronize",
        ] {
            assert!(!made.contains(call), "{made}");
        }
        assert_eq!(offload.info().stepped, tensors().len());
    }
    synchronize();
    let (reference, state) = expected(&spec, STEPS)?;
    assert_eq!(model.skipped, reference.skipped);
    assert!(model.skipped != [0, 0]);
    assert!(model.params == reference.params, "parameters differ");
    let found: Vec<_> = offload.state().iter().map(bytes_of).collect();
    assert!(found == state, "states differ");
    for (found, expected) in offload.params().iter().zip(&mut reference.params.clone()) {
        let expected = &buffers(std::slice::from_mut(expected))[0];
        assert!(bytes_of(found) == bytes_of(expected), "the host's differ");
    }
    Ok(())
}

/// A step of which a call fails: before it, or after it, but nothing between.
fn fails() -> Result<()> {
    let spec = spec()?;
    let offload = offload(&spec, 0)?;
    let mut model = Model::new();
    // SAFETY: the model lives until the end.
    let (result, _) = unsafe { step(&offload, &mut model, 1) };
    let error = result.unwrap_err();
    let info = offload.info();
    let (after, after_state) = expected(&spec, 1)?;
    let (before, before_state) = expected(&spec, 0)?;
    // Nothing is left to do, so this is what there is, whether or not anybody waits.
    let state: Vec<_> = offload.state().iter().map(bytes_of).collect();
    for (i, tensor) in offload.plan().tensors().iter().enumerate() {
        let stepped = i < info.stepped;
        let (reference, states) = if stepped {
            (&after, &after_state)
        } else {
            (&before, &before_state)
        };
        let name = &tensor.info.name;
        assert!(
            state[tensor.buffers()] == states[tensor.buffers()],
            "states of {name}"
        );
        let mut expected = reference.params[i].clone();
        let expected = bytes_of(&buffers(std::slice::from_mut(&mut expected))[0]);
        let mut found = model.params[i].clone();
        let found = match offload.params().get(i) {
            Some(host) => bytes_of(host),
            None => bytes_of(&buffers(std::slice::from_mut(&mut found))[0]),
        };
        assert!(found == expected, "parameter {name}");
    }
    Err(error)
}

fn refuses() -> Result<()> {
    let spec = spec()?;
    let error = offload(&spec, 512).err().unwrap();
    assert_eq!(error.status(), Status::InvalidArgument, "{error}");
    assert!(
        error.to_string().contains("staging_bytes is 512"),
        "{error}"
    );
    let offload = offload(&spec, 0)?;
    let mut model = Model::new();
    let (params, grads) = (buffers(&mut model.params), buffers(&mut model.grads));
    let (hyper, mut number) = (hyper(1), 1);
    let good = args(
        &params,
        &grads,
        HyperSource::Host(&hyper, 1),
        &mut model.skipped,
    );
    let counted = HyperSource::Counted {
        hyper: hyper.as_ptr().cast(),
        step: &raw mut number,
    };
    let offsets = vec![None; params.len()];
    let scratch = Buffer {
        data: std::ptr::from_mut::<i32>(&mut number).cast::<c_void>(),
        bytes: 4,
    };
    for (bad, status, text) in [
        (
            StepArgs {
                updates: Some(&params),
                ..good
            },
            Status::Unsupported,
            "updates",
        ),
        (
            StepArgs {
                offsets: Some(&offsets),
                ..good
            },
            Status::Unsupported,
            "offsets",
        ),
        (
            StepArgs {
                hyper: counted,
                ..good
            },
            Status::Unsupported,
            "STEP_COUNTED",
        ),
        (
            StepArgs {
                nonfinite: NonFinite::SkipStep,
                ..good
            },
            Status::Unsupported,
            "SKIP_STEP",
        ),
        (
            StepArgs { scratch, ..good },
            Status::InvalidArgument,
            "scratch",
        ),
        (
            StepArgs {
                grads: &grads[1..],
                ..good
            },
            Status::InvalidArgument,
            "grads",
        ),
        (
            StepArgs {
                params: &grads,
                ..good
            },
            Status::BufferSize,
            "params[0] (a)",
        ),
    ] {
        // SAFETY: refused before anything is done.
        let (result, made) = calls(|| unsafe { offload.step(&bad, stream()) });
        let error = result.unwrap_err();
        assert_eq!(error.status(), status, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(made, "");
    }
    Ok(())
}
