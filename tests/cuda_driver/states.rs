//! Reports and conversion on the mock driver: they take no stream, so they must wait for whatever the
//! caller's streams still have to do to what they read, and have done their own work on return. The
//! oracle is the CPU.

use std::sync::Arc;

use lowbit::dtype::Dtype;
use lowbit::error::{Result, Status};
use lowbit::plan::{Plan, TensorInfo};
use lowbit::spec::Spec;
use lowbit::step::{Buffer, HyperSource, NonFinite, Stage, StepArgs};
use lowbit::weights::Weights;
use lowbit::{Context, CpuContext, CudaContext, Hyper, Variant};

use super::{DRIVER, MOCK, calls, run, stream};

// ---- parents -----------------------------------------------------------------------------------

const ORDERS: [&str; 2] = ["late", "early"];

#[test]
fn reports_equal_those_of_the_cpu_whenever_the_device_works() {
    for order in ORDERS {
        assert_eq!(
            run(&DRIVER, "states_report", &[("MOCK_ORDER", order)]),
            "ok"
        );
    }
}

#[test]
fn converted_states_equal_those_of_the_cpu_whenever_the_device_works() {
    for order in ORDERS {
        let said = run(&DRIVER, "states_convert", &[("MOCK_ORDER", order)]);
        assert_eq!(said, "ok");
    }
}

#[test]
fn what_fails_while_states_are_read_is_a_status() {
    for (task, fail, at, line) in [
        (
            "states_report",
            "cuCtxSynchronize=700",
            "1",
            "CudaError: cuCtxSynchronize",
        ),
        (
            "states_report",
            "cuMemcpyDtoHAsync_v2=700",
            "4",
            "CudaError: cuMemcpyDtoHAsync",
        ),
        (
            "states_convert",
            "cuCtxSynchronize=700",
            "2",
            "CudaError: cuCtxSynchronize",
        ),
        // Behind the tables of two plans for each tensor.
        (
            "states_convert",
            "cuMemAllocAsync=2",
            "7",
            "CudaOutOfMemory: ",
        ),
    ] {
        let variables = [("MOCK_FAIL", fail), ("MOCK_FAIL_AT", at)];
        let said = run(&DRIVER, task, &variables);
        assert!(said.starts_with(line), "{fail}: {said}");
    }
}

#[test]
fn states_in_two_memories_are_not_converted() {
    assert_eq!(run(&DRIVER, "states_apart", &[]), "ok");
}

// ---- the child ---------------------------------------------------------------------------------

pub(super) fn child(task: &str) -> Result<()> {
    match task {
        "states_report" => reports(),
        "states_convert" => conversions(),
        _ => apart(),
    }
}

/// Zeroed memory, aligned for everything.
struct Memory {
    words: Vec<u64>,
    bytes: usize,
}

impl Memory {
    fn zeroed(bytes: i64) -> Self {
        let bytes = usize::try_from(bytes).unwrap();
        let words = vec![0; bytes.div_ceil(8)];
        Self { words, bytes }
    }

    fn of<T: Copy>(values: &[T]) -> Self {
        let memory = Self::zeroed(size_of_val(values) as i64);
        // SAFETY: as many bytes on both sides.
        unsafe {
            let to = memory.words.as_ptr().cast_mut().cast::<T>();
            to.copy_from_nonoverlapping(values.as_ptr(), values.len());
        }
        memory
    }

    fn buffer(&self) -> Buffer {
        Buffer {
            data: self.words.as_ptr().cast_mut().cast(),
            bytes: self.bytes as i64,
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: its own memory, to which nobody writes meanwhile.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.bytes) }
    }

    /// As much memory that holds other bytes, until `stream` has copied these.
    fn brought(&self) -> Self {
        let other = Self {
            words: vec![0x5a5a_5a5a_5a5a_5a5a; self.words.len()],
            bytes: self.bytes,
        };
        // SAFETY: as many bytes on both sides; a function of the mock.
        unsafe {
            let to = other.buffer().data;
            (MOCK.copy)(to, self.words.as_ptr().cast(), self.bytes, stream());
        }
        other
    }
}

fn buffers(memory: &[Memory]) -> Vec<Buffer> {
    memory.iter().map(Memory::buffer).collect()
}

fn brought(memory: &[Memory]) -> Vec<Memory> {
    memory.iter().map(Memory::brought).collect()
}

fn require_same(want: &[Memory], got: &[Memory], what: &str) {
    for (i, (want, got)) in want.iter().zip(got).enumerate() {
        assert!(want.bytes() == got.bytes(), "{what} {i}");
    }
}

fn cpu() -> Result<Arc<Context>> {
    Ok(Arc::new(Context::Cpu(CpuContext::new(1, Variant::Auto)?)))
}

fn cuda() -> Result<Arc<Context>> {
    Ok(Arc::new(Context::Cuda(CudaContext::new(0)?)))
}

fn plan(context: &Arc<Context>, preset: &str) -> Result<Plan> {
    let tensors = [vec![70, 130], vec![101], vec![3, 1400]];
    let infos = tensors.iter().enumerate().map(|(i, shape)| TensorInfo {
        grad_dtype: Dtype::F32,
        weights: Weights::Correction8,
        group: i % 2,
        ..TensorInfo::new(format!("t{i}"), shape, Dtype::Bf16)
    });
    Plan::new(Arc::clone(context), &Spec::preset(preset)?, infos.collect())
}

/// A model in the host's memory.
struct Model {
    params: Vec<Memory>,
    grads: Vec<Memory>,
    state: Vec<Memory>,
    scratch: Memory,
    hyper: [Hyper; 2],
}

impl Model {
    /// After two steps, with the gradient of the third.
    fn trained(plan: &Plan) -> Result<Self> {
        let numels = plan.tensors().iter().map(|tensor| tensor.numel);
        let bits = |i: i64| (i * 37) as u16 & 0xbfff;
        let params = numels.map(|n| Memory::of(&(0..n).map(bits).collect::<Vec<_>>()));
        let lr = |lr: f32| Hyper {
            lr,
            ..Hyper::default()
        };
        let mut model = Self {
            params: params.collect(),
            grads: Self::gradients(plan, 1),
            state: zeroed(plan),
            scratch: Memory::zeroed(plan.scratch_bytes()),
            hyper: [lr(1e-2), lr(2e-3)],
        };
        for t in [1, 2] {
            model.with_args(HyperSource::Host(&model.hyper, t), |args| {
                // SAFETY: all memory is the model's.
                unsafe { plan.step(args, Stage::All, std::ptr::null_mut()) }
            })?;
            model.grads = Self::gradients(plan, i64::from(t) + 1);
        }
        Ok(model)
    }

    fn gradients(plan: &Plan, t: i64) -> Vec<Memory> {
        let value = |i: i64| ((i * 7919 + t * 31) % 2003 - 1001) as f32 * 1e-4;
        let numels = plan.tensors().iter().map(|tensor| tensor.numel);
        let values = numels.map(|n| (0..n).map(value).collect::<Vec<_>>());
        values.map(|values| Memory::of(&values)).collect()
    }

    fn with_args<T>(&self, hyper: HyperSource<'_>, body: impl FnOnce(&StepArgs<'_>) -> T) -> T {
        body(&StepArgs {
            params: &buffers(&self.params),
            grads: &buffers(&self.grads),
            updates: None,
            state: &buffers(&self.state),
            scratch: self.scratch.buffer(),
            hyper,
            nonfinite: NonFinite::Default,
            offsets: None,
            skipped: std::ptr::null_mut(),
        })
    }
}

fn zeroed(plan: &Plan) -> Vec<Memory> {
    let sizes = plan.buffers().iter().map(|buffer| buffer.bytes);
    sizes.map(Memory::zeroed).collect()
}

/// Of several presets, with hyper-parameters in the device's memory.
fn reports() -> Result<()> {
    let (host, device) = (cpu()?, cuda()?);
    for preset in ["adamw4", "adamw4-block", "factor4", "sgdm4"] {
        let [on_host, on_device] = [plan(&host, preset)?, plan(&device, preset)?];
        let model = Model::trained(&on_host)?;
        let t = 3;
        let source = HyperSource::Host(&model.hyper, t);
        // SAFETY: all memory is the model's.
        let want = model.with_args(source, |args| unsafe { on_host.diagnose(args) })?;
        assert!(want.states.len() >= 2, "{want:?}");

        let (hyper, number) = (Memory::of(&model.hyper), Memory::of(&[t]));
        let (there, step) = (hyper.brought(), number.brought());
        let copy = Model {
            params: brought(&model.params),
            grads: brought(&model.grads),
            state: brought(&model.state),
            scratch: Memory::zeroed(on_device.scratch_bytes()),
            hyper: model.hyper,
        };
        let source = HyperSource::Memory {
            hyper: there.buffer().data.cast(),
            step: step.buffer().data.cast(),
        };
        // SAFETY: all memory is this function's.
        let diagnose = || copy.with_args(source, |args| unsafe { on_device.diagnose(args) });
        let (got, made) = calls(diagnose);
        assert_eq!(got?, want);
        for call in ["cuMemAlloc", "cuLaunch", "cuMemset", "HtoD", "DtoD"] {
            assert!(!made.contains(call), "{made}");
        }
        require_same(&model.params, &copy.params, "parameter");
        require_same(&model.grads, &copy.grads, "gradient");
        require_same(&model.state, &copy.state, "state buffer");
    }
    Ok(())
}

/// From quantizers and optimizers to others.
fn conversions() -> Result<()> {
    let (host, device) = (cpu()?, cuda()?);
    for (from, to) in [
        ("adamw4", "adamw8"),
        ("adamw8", "factor4"),
        ("factor4", "adamw4-block"),
        ("adamw4", "lion4"),
        ("sgdm4", "adamw4"),
        ("adamw4", "adamw4"),
    ] {
        let old = plan(&host, from)?;
        let (model, want) = (Model::trained(&old)?, zeroed(&plan(&host, to)?));
        let convert = |context: &Arc<Context>, state: &[Memory], new: &[Memory]| {
            let (from, to) = (plan(context, from)?, plan(context, to)?);
            // What making the plans calls does not count.
            // SAFETY: all memory is this function's.
            let (done, _) =
                calls(|| unsafe { to.convert_from(&from, &buffers(state), &buffers(new)) });
            done
        };
        convert(&host, &model.state, &want)?;
        // Nothing of what was there stays.
        let (state, got) = (brought(&model.state), brought(&want));
        got.iter().for_each(|memory| {
            let garbage = Memory {
                words: vec![!0; memory.words.len()],
                bytes: memory.bytes,
            };
            // SAFETY: as many bytes on both sides; a function of the mock.
            unsafe {
                let from = garbage.words.as_ptr().cast();
                (MOCK.copy)(memory.buffer().data, from, memory.bytes, stream());
            }
        });
        convert(&device, &state, &got)?;
        require_same(&want, &got, &format!("{from} to {to}: state buffer"));
        require_same(&model.state, &state, &format!("{from} to {to}: old buffer"));
    }
    Ok(())
}

fn apart() -> Result<()> {
    let (old, new) = (plan(&cpu()?, "adamw4")?, plan(&cuda()?, "adamw4")?);
    let (from, to) = (zeroed(&old), zeroed(&new));
    // SAFETY: refused before anything is done.
    let (result, made) =
        calls(|| unsafe { new.convert_from(&old, &buffers(&from), &buffers(&to)) });
    let error = result.unwrap_err();
    assert_eq!(error.status(), Status::Unsupported, "{error}");
    let text = "the old states are in the host's memory, the new ones on CUDA device 0";
    assert!(error.to_string().contains(text), "{error}");
    assert_eq!(made, "");
    Ok(())
}
