//! The CPU backend: cuts a step into tasks, runs them on its threads (or the host's), and picks
//! the kernels once, when the context is made.

#![expect(
    unsafe_code,
    reason = "works on the caller's raw buffers and callbacks"
)]

mod call;
mod lanes;
mod memory;
mod pool;
mod portable;
mod reference;
mod step;

use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::codec::EmaArgs;
use crate::error::{Error, Result, Status, invalid, unsupported};
use crate::layout::{div_ceil, index};
use crate::norm::{self, NormArgs};
use crate::numerics::{FpEnv, Hyper, canonical};
use crate::optimizer::Update;
use crate::plan::{Format, Plan};
use crate::quant::Preconditioner;
use crate::rng;
use crate::step::Buffer;

use super::Call;
use call::TensorCall;
use memory::{Weight, load};
use pool::Pool;
use portable::Kernels;
pub(crate) use step::Schedule;
use step::{Step, TASK_ELEMENTS, part, units_per_task};

/// Which code does the work. All give the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum Variant {
    /// The best that this processor can run.
    #[default]
    Auto = 0,
    /// The definition, one element at a time on one thread. For tests.
    Reference = 1,
    /// Portable code for the target's baseline.
    Portable = 2,
    /// The same code with AVX2, FMA and F16C.
    Avx2 = 3,
    /// The same code with AVX-512 (F, BW, VL, DQ).
    Avx512 = 4,
}

/// A host's own thread pool: calls `body(body_arg, i)` for every `0 <= i < count` and returns
/// when all are done.
#[derive(Clone, Copy, Debug)]
pub struct ParallelFor {
    /// `run(user, count, body, body_arg)`.
    pub run: unsafe extern "C" fn(
        user: *mut c_void,
        count: i64,
        body: unsafe extern "C" fn(body_arg: *mut c_void, index: i64),
        body_arg: *mut c_void,
    ),
    /// Passed through.
    pub user: *mut c_void,
}

// SAFETY: whoever gives a callback promises that it may be called from any thread.
unsafe impl Send for ParallelFor {}
// SAFETY: as above.
unsafe impl Sync for ParallelFor {}

#[derive(Debug)]
enum Threads {
    Own(Pool),
    Host(ParallelFor),
}

/// See the module's page.
#[derive(Debug)]
pub struct CpuContext {
    threads: Threads,
    /// `None`: the reference.
    kernels: Option<Kernels>,
}

impl CpuContext {
    /// A context with its own pool of `threads` threads, the caller's among them (0: as many as
    /// the process may use).
    ///
    /// # Errors
    /// `InvalidArgument` for more than 1024 threads, `OutOfMemory` where they cannot be started,
    /// `Unsupported` for a variant that this processor cannot run.
    pub fn new(threads: usize, variant: Variant) -> Result<Self> {
        if threads > 1024 {
            return Err(invalid(format!("threads is {threads}; at most 1024")));
        }
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        let pool = Pool::new(if variant == Variant::Reference {
            1
        } else {
            threads
        })
        .map_err(|error| Error::new(Status::OutOfMemory, format!("threads: {error}")))?;
        Ok(Self {
            threads: Threads::Own(pool),
            kernels: kernels(variant)?,
        })
    }

    /// A context without threads of its own.
    ///
    /// # Errors
    /// `Unsupported` for a variant that this processor cannot run.
    pub fn with_host_threads(parallel_for: ParallelFor, variant: Variant) -> Result<Self> {
        Ok(Self {
            threads: Threads::Host(parallel_for),
            kernels: kernels(variant)?,
        })
    }

    /// How many threads work on a step: a host that has them does not say, and may have many.
    pub(crate) fn threads(&self) -> i64 {
        match &self.threads {
            Threads::Own(pool) => pool.threads() as i64,
            Threads::Host(_) => i64::MAX,
        }
    }

    /// Runs `body` for every index, each under IEEE floating-point settings whatever the host's
    /// threads have.
    fn run(&self, count: i64, body: &(dyn Fn(i64) + Sync)) {
        let guarded = |i| {
            let _env = FpEnv::ieee();
            body(i);
        };
        match &self.threads {
            Threads::Own(pool) => pool.run(count, &guarded),
            Threads::Host(host) => host.run(count, &guarded),
        }
    }

    /// # Safety
    /// The call was validated; its buffers are valid host memory.
    pub(crate) unsafe fn step(&self, call: &Call<'_>) -> Result<()> {
        let _env = FpEnv::ieee();
        let step = Step {
            context: self,
            call,
        };
        // SAFETY: the caller's promise.
        unsafe { step.run() };
        Ok(())
    }

    /// # Safety
    /// The arguments were validated; the buffers are valid host memory.
    pub(crate) unsafe fn compress(&self, codec: &Codec<'_>) {
        let _env = FpEnv::ieee();
        let state = codec.state;
        self.codec(
            codec,
            |kernels, call, units| {
                // SAFETY: the caller's promise; the tasks' units are disjoint.
                unsafe {
                    match kernels {
                        Some(kernels) => (kernels.compress)(call, state, units),
                        None => reference::compress(call, state),
                    }
                }
            },
            |call| {
                if self.kernels.is_some() {
                    // SAFETY: the caller's promise.
                    unsafe { reference::store_maxima(call, state) };
                }
            },
        );
    }

    /// # Safety
    /// As for [`CpuContext::compress`].
    pub(crate) unsafe fn decompress(&self, codec: &Codec<'_>) {
        let _env = FpEnv::ieee();
        let state = codec.state;
        self.codec(
            codec,
            |kernels, call, units| {
                // SAFETY: the caller's promise; the tasks' units are disjoint.
                unsafe {
                    match kernels {
                        Some(kernels) => (kernels.decompress)(call, state, units),
                        None => reference::decompress(call, state),
                    }
                }
            },
            |_| (),
        );
    }

    /// # Safety
    /// The arguments were validated; the buffers are valid host memory.
    pub(crate) unsafe fn ema(&self, plan: &Plan, state: usize, args: &EmaArgs<'_>) {
        let _env = FpEnv::ieee();
        let codec = Codec {
            plan,
            state,
            step: args.step,
            values: args.outputs,
            buffers: args.state,
        };
        // SAFETY: the caller's promise.
        unsafe {
            self.decompress(&codec);
            for (i, tensor) in plan.tensors.iter().enumerate() {
                self.run(div_ceil(tensor.numel, TASK_ELEMENTS), &|task| {
                    let (input, output) = (args.inputs[i], args.outputs[i]);
                    for i in part(tensor.numel, TASK_ELEMENTS, task) {
                        let i = index(i);
                        let output = output.data.cast::<f32>().add(i);
                        let x = load(input.data.cast(), tensor.info.grad_dtype, i);
                        *output = canonical(args.decay.mul_add(*output, args.weight * x));
                    }
                });
            }
            self.compress(&codec);
        }
    }

    /// The states of the call's only tensor after the step, before they are coded.
    ///
    /// # Safety
    /// As for [`CpuContext::step`]; all statistics are complete.
    pub(crate) unsafe fn fresh_states(&self, call: &Call<'_>) -> Vec<Vec<f32>> {
        let _env = FpEnv::ieee();
        let step = Step {
            context: self,
            call,
        };
        let mut tensor = step.tensor(0);
        tensor.rule = tensor.complete_rule();
        // SAFETY: the caller's promise.
        unsafe { reference::fresh_states(&tensor) }
    }

    /// Raises the largest magnitude of the scaled gradients, or adds their squares.
    ///
    /// # Safety
    /// As for [`CpuContext::ema`]; the scratch has [`norm::WORDS`] i64.
    pub(crate) unsafe fn norm(&self, plan: &Plan, args: &NormArgs<'_>, stage: norm::Stage) {
        let _env = FpEnv::ieee();
        for (i, tensor) in plan.tensors.iter().enumerate() {
            if args.grads[i].data.is_null() {
                continue;
            }
            self.run(div_ceil(tensor.numel, TASK_ELEMENTS), &|task| {
                let (grad, scratch) = (args.grads[i], args.scratch);
                let scratch = norm::Scratch(scratch.data.cast());
                let elements = part(tensor.numel, TASK_ELEMENTS, task);
                let scaled = |i| {
                    // SAFETY: the caller's promise.
                    args.grad_scale
                        * unsafe { load(grad.data.cast(), tensor.info.grad_dtype, index(i)) }
                };
                scratch.collect(stage, elements.map(scaled));
            });
        }
    }

    /// Runs `work` over the units of every tensor, after `prepare` has seen the tensor. Factors and
    /// covers, which have no codes, are the reference's work: they are not converted in a step.
    fn codec(
        &self,
        codec: &Codec<'_>,
        work: impl Fn(Option<Kernels>, &TensorCall<'_>, Range<i64>) + Sync,
        prepare: impl Fn(&TensorCall<'_>),
    ) {
        let Codec {
            plan,
            state,
            step,
            values,
            buffers,
        } = *codec;
        for (i, tensor) in plan.tensors.iter().enumerate() {
            let call = TensorCall {
                tensor,
                index: i,
                next_grad: std::ptr::null()..std::ptr::null(),
                weight: Weight {
                    data: values[i].data.cast(),
                    dtype: crate::dtype::Dtype::F32,
                    form: crate::weights::Weights::Plain,
                    beside: std::ptr::null_mut(),
                },
                grad: std::ptr::null(),
                update: std::ptr::null_mut(),
                state: buffers,
                scratch: [std::ptr::null_mut(); 5],
                offset: &tensor.offset,
                grad_scale: 1.0,
                rule: Update::new(&plan.spec, tensor, &Hyper::default(), 1),
                // Outside a step: no bias correction, and the usual eps.
                preconditioner: Preconditioner {
                    inv_bc2: 1.0,
                    eps: Hyper::default().eps,
                },
                rng: rng::Stream::new(plan.spec.seed, tensor.hash, step),
                skip: false,
                skip_blocks: false,
            };
            prepare(&call);
            let coded = !matches!(
                tensor.states[state].format,
                Format::Factored(_) | Format::Cover(_)
            );
            match self.kernels.filter(|_| coded) {
                Some(kernels) => {
                    let units = tensor.grid.units();
                    let each = units_per_task(tensor, TASK_ELEMENTS);
                    self.run(div_ceil(units, each), &|task| {
                        work(Some(kernels), &call, part(units, each, task));
                    });
                }
                None => work(None, &call, 0..0),
            }
        }
    }
}

/// States to f32 values or back. Lists are in the plan's order.
#[derive(Clone, Copy)]
pub(crate) struct Codec<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) state: usize,
    /// For random numbers.
    pub(crate) step: i32,
    pub(crate) values: &'a [Buffer],
    pub(crate) buffers: &'a [Buffer],
}

impl ParallelFor {
    fn run(&self, count: i64, body: &(dyn Fn(i64) + Sync)) {
        unsafe extern "C" fn trampoline(body: *mut c_void, index: i64) {
            // SAFETY: `body` is the fat reference below, alive until the callback has returned.
            let body = unsafe { &*body.cast::<&(dyn Fn(i64) + Sync)>() };
            body(index);
        }
        // A panic must not unwind through the host's frames.
        let panicked = AtomicBool::new(false);
        let caught = |i| {
            if catch_unwind(AssertUnwindSafe(|| body(i))).is_err() {
                panicked.store(true, Ordering::Relaxed);
            }
        };
        let mut body: &(dyn Fn(i64) + Sync) = &caught;
        // SAFETY: the host's promise; the trampoline gets what it expects.
        unsafe { (self.run)(self.user, count, trampoline, (&raw mut body).cast()) };
        assert!(!panicked.into_inner(), "a task panicked on a host thread");
    }
}

/// Forces a variant for contexts that leave the choice to the library; for tests and comparisons.
const VARIANT_VARIABLE: &str = "LOWBIT_CPU_VARIANT";

/// The kernels of a variant, where this processor can run them; `None` is the reference.
fn kernels(variant: Variant) -> Result<Option<Kernels>> {
    let variant = match (variant, std::env::var(VARIANT_VARIABLE)) {
        (Variant::Auto, Ok(name)) => match name.as_str() {
            "reference" => Variant::Reference,
            "portable" => Variant::Portable,
            "avx2" => Variant::Avx2,
            "avx512" => Variant::Avx512,
            other => {
                return Err(invalid(format!(
                    "{VARIANT_VARIABLE} is {other:?}; there are reference, portable, avx2, avx512"
                )));
            }
        },
        (variant, _) => variant,
    };
    let (avx2, avx512) = vector_kernels();
    match variant {
        Variant::Auto => Ok(Some(avx512.or(avx2).unwrap_or(portable::BASELINE))),
        Variant::Reference => Ok(None),
        Variant::Portable => Ok(Some(portable::BASELINE)),
        Variant::Avx2 if avx2.is_none() => Err(unsupported(
            "variant is AVX2; this processor lacks AVX2, FMA or F16C",
        )),
        Variant::Avx2 => Ok(avx2),
        Variant::Avx512 if avx512.is_none() => Err(unsupported(
            "variant is AVX512; this processor lacks AVX-512 F, BW, VL or DQ",
        )),
        Variant::Avx512 => Ok(avx512),
    }
}

/// Those for AVX2 and for AVX-512, where this processor has them.
#[cfg(target_arch = "x86_64")]
fn vector_kernels() -> (Option<Kernels>, Option<Kernels>) {
    use std::arch::is_x86_feature_detected;
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    (
        avx2.then_some(portable::AVX2),
        avx512.then_some(portable::AVX512),
    )
}

#[cfg(not(target_arch = "x86_64"))]
fn vector_kernels() -> (Option<Kernels>, Option<Kernels>) {
    (None, None)
}

/// Zeroed host memory, aligned like an arena. Large ones are not touched before they are used, so
/// that on a machine with several memory nodes each page comes to lie near the thread that steps it.
#[derive(Debug)]
pub(crate) struct HostArena {
    data: *mut u8,
    /// What was allocated, which `data` lies in.
    whole: *mut u8,
    layout: std::alloc::Layout,
}

// SAFETY: owned memory; access follows the rules of the state that holds it.
unsafe impl Send for HostArena {}
// SAFETY: as above.
unsafe impl Sync for HostArena {}

impl HostArena {
    pub(crate) fn zeroed(bytes: i64) -> Result<Self> {
        let refused = |reason: &dyn std::fmt::Display| {
            let message = format!("the state's {bytes} bytes could not be allocated: {reason}");
            Error::new(Status::OutOfMemory, message)
        };
        let align = crate::plan::ARENA_ALIGN as usize;
        // Aligned here: an allocator that is asked for more than its own alignment writes the zeros.
        let size = index(bytes).saturating_add(align);
        let layout = std::alloc::Layout::from_size_align(size, size_of::<u128>())
            .map_err(|error| refused(&error))?;
        // SAFETY: the size is not zero.
        let whole = unsafe { std::alloc::alloc_zeroed(layout) };
        if whole.is_null() {
            return Err(refused(&"out of memory"));
        }
        let data = whole.wrapping_add(whole.align_offset(align));
        Ok(Self {
            data,
            whole,
            layout,
        })
    }

    pub(crate) fn data(&self) -> *mut c_void {
        self.data.cast()
    }
}

impl Drop for HostArena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.whole, self.layout) };
    }
}
