//! The CPU backend: cuts a step into tasks, runs them on its threads (or the host's), and picks
//! the kernels once, when the context is made.

#![expect(
    unsafe_code,
    reason = "works on the caller's raw buffers and callbacks"
)]

mod lanes;
mod memory;
mod pool;
mod portable;
mod reference;

use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, Ordering};

use crate::error::{Error, Result, Status, invalid, unsupported};
use crate::layout::{div_ceil, index};
use crate::numerics::{Exponent, FpEnv, Hyper, Limbs, canonical, power};
use crate::optimizer::Update;
use crate::plan::{Factor, Format, Pass, Plan, TensorPlan};
use crate::quant::Preconditioner;
use crate::rng;
use crate::step::{Buffer, HyperSource, NonFinite};

use super::Call;
use crate::codec::EmaArgs;
use crate::norm::{self, NormArgs};
use memory::{Weight, load};
use pool::Pool;
use portable::Kernels;

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
        unsafe {
            for pass in [
                Pass::Maxima,
                Pass::Sums,
                Pass::UpdateMaxima,
                Pass::UpdateSums,
            ] {
                if call.pass.is_none_or(|only| only == pass) {
                    step.collect(pass);
                }
            }
            if call.pass.is_none_or(|only| only == Pass::Apply) {
                step.apply();
            }
        }
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
                    let (units, each) = (tensor.grid.units(), units_per_task(tensor));
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

/// One tensor of one call: raw pointers whose sizes were checked.
pub(crate) struct TensorCall<'a> {
    tensor: &'a TensorPlan,
    index: usize,
    weight: Weight,
    grad: *const u8,
    /// Null: in place.
    update: *mut u8,
    /// All state buffers of the plan.
    state: &'a [Buffer],
    /// The regions of the scratch.
    scratch: [*mut u8; 5],
    /// Place in the global tensor.
    offset: &'a [i64],
    /// `RN(grad_scale clip_factor)`, negated to maximize.
    grad_scale: f32,
    rule: Update,
    preconditioner: Preconditioner,
    rng: rng::Stream,
    /// The tensor stays as it is.
    skip: bool,
    /// Blocks with a non-finite gradient stay as they are.
    skip_blocks: bool,
}

// SAFETY: tasks of one call touch disjoint elements, and the statistics through atomics.
unsafe impl Sync for TensorCall<'_> {}

impl TensorCall<'_> {
    #[inline(always)]
    fn in_place(&self) -> bool {
        self.update.is_null()
    }

    /// The buffers of one state, as the plan lists them.
    #[inline(always)]
    fn state_buffers(&self, state: usize) -> &[Buffer] {
        let state = &self.tensor.states[state];
        let first = self.tensor.first_buffer + state.first_buffer;
        &self.state[first..first + state.buffer_count]
    }

    /// A word of a region of maxima.
    #[inline(always)]
    fn word(&self, region: *mut u8, word: usize) -> &AtomicI32 {
        // SAFETY: the region has all words of the plan, aligned, and while maxima are raised they
        // are accessed through atomics only.
        unsafe { AtomicI32::from_ptr(region.cast::<i32>().add(word)) }
    }

    /// The tensor's non-finite flag.
    fn flag(&self) -> &AtomicI32 {
        self.word(self.scratch[0], self.index)
    }

    #[inline(always)]
    fn statistic(&self, word: usize) -> i32 {
        self.word(self.scratch[0], word).load(Ordering::Relaxed)
    }

    /// Raises a maximum; the load first, as most values are no new maximum.
    #[inline(always)]
    fn raise(&self, word: usize, value: i32) {
        raise(self.word(self.scratch[0], word), value);
    }

    fn raise_update(&self, word: usize, value: i32) {
        raise(self.word(self.scratch[2], word), value);
    }

    /// The unit of the sums whose largest term has this word; `None` if it is not finite.
    #[inline(always)]
    fn exponent(&self, word: usize) -> Option<Exponent> {
        Exponent::above(self.statistic(word))
    }

    fn update_exponent(&self, word: usize) -> Option<Exponent> {
        Exponent::above(self.word(self.scratch[2], word).load(Ordering::Relaxed))
    }

    #[inline(always)]
    fn add(&self, sum: usize, term: Limbs) {
        add(self.scratch[1], sum, term);
    }

    fn add_update(&self, sum: usize, term: Limbs) {
        add(self.scratch[3], sum, term);
    }

    /// The new mean of a factored v at `position` (here): R4 of the old mean, in `buffer`, and the
    /// exact mean of this step's squares, rounded once to f32.
    fn fresh_mean(&self, factor: &Factor, buffer: Buffer, position: i64) -> f32 {
        let at = factor.maxima.projection.globalize(position, self.offset);
        let mean = match self.exponent(factor.maxima.word + at) {
            Some(exponent) => {
                let sum = exponent.value(sum(self.scratch[1], factor.sum + 2 * at));
                (sum / factor.count as f64) as f32
            }
            None => f32::NAN,
        };
        // SAFETY: the position lies in the buffer.
        let old = unsafe {
            load(
                buffer.data.cast(),
                crate::dtype::Dtype::F32,
                index(position),
            )
        };
        canonical(self.rule.average(old, mean))
    }

    /// The rule with everything that it needs of the whole tensor.
    fn complete_rule(&self) -> Update {
        let mut rule = self.rule;
        if let (Update::Adafactor(adafactor), Some(rms)) = (&mut rule, self.tensor.rms) {
            let numel = self.tensor.global_shape.iter().product::<i64>().max(1) as f64;
            let rms_of = |exponent: Option<Exponent>, sum: Limbs| match exponent {
                Some(exponent) => (exponent.squared().value(sum) / numel).sqrt(),
                None => f64::NAN,
            };
            let (param, update) = adafactor.needs_rms();
            let param = param.then(|| {
                rms_of(
                    self.exponent(rms.param_max),
                    sum(self.scratch[1], rms.param_sum),
                )
            });
            let update = update.then(|| {
                rms_of(
                    self.update_exponent(rms.update_max),
                    sum(self.scratch[3], rms.update_sum),
                )
            });
            adafactor.set_rms(param, update);
        }
        rule
    }
}

#[inline(always)]
fn raise(slot: &AtomicI32, value: i32) {
    if value > slot.load(Ordering::Relaxed) {
        slot.fetch_max(value, Ordering::Relaxed);
    }
}

/// Limb `at` of a region of sums.
#[inline(always)]
fn limb<'a>(region: *mut u8, at: usize) -> &'a AtomicI64 {
    // SAFETY: the region has all limbs of the plan, aligned, accessed through atomics only.
    unsafe { AtomicI64::from_ptr(region.cast::<i64>().add(at)) }
}

#[inline(always)]
fn add(region: *mut u8, sum: usize, term: Limbs) {
    limb(region, sum).fetch_add(term.high, Ordering::Relaxed);
    limb(region, sum + 1).fetch_add(term.low, Ordering::Relaxed);
}

#[inline(always)]
fn sum(region: *mut u8, sum: usize) -> Limbs {
    Limbs {
        high: limb(region, sum).load(Ordering::Relaxed),
        low: limb(region, sum + 1).load(Ordering::Relaxed),
    }
}

/// Elements of one task: large enough to hide the hand-out, small enough to balance.
const TASK_ELEMENTS: i64 = 1 << 16;

fn units_per_task(tensor: &TensorPlan) -> i64 {
    (TASK_ELEMENTS / tensor.grid.block).max(1)
}

/// Rows per task of the statistics, with the tensor seen as (leading axes, last axis).
fn stats_rows(tensor: &TensorPlan) -> (i64, i64, i64) {
    let width = tensor.info.shape.last().copied().unwrap_or(1).max(1);
    let rows = tensor.numel / width;
    let per_task = (TASK_ELEMENTS / width.min(portable::STATS_COLUMNS)).max(16);
    (rows, width, per_task)
}

fn part(count: i64, each: i64, task: i64) -> Range<i64> {
    task * each..count.min((task + 1) * each)
}

/// How many tasks the tensors before each tensor have: task numbers of a whole call are mapped to
/// tensors by binary search, so that many small tensors and one large one balance alike.
#[derive(Debug)]
pub(crate) struct Schedule {
    apply: Vec<i64>,
    stats: Vec<i64>,
    scan: Vec<i64>,
}

impl Schedule {
    pub(crate) fn new(tensors: &[TensorPlan]) -> Self {
        let prefix = |tasks: &dyn Fn(&TensorPlan) -> i64| {
            let mut sums = vec![0];
            for tensor in tensors {
                sums.push(sums[sums.len() - 1] + tasks(tensor));
            }
            sums
        };
        Self {
            apply: prefix(&|tensor| div_ceil(tensor.grid.units(), units_per_task(tensor))),
            stats: prefix(&|tensor| {
                if tensor.numel == 0 || !tensor.needs_statistics() {
                    return 0;
                }
                let (rows, width, per_task) = stats_rows(tensor);
                div_ceil(rows, per_task) * div_ceil(width, portable::STATS_COLUMNS)
            }),
            scan: prefix(&|tensor| {
                if tensor.needs_statistics() {
                    0
                } else {
                    div_ceil(tensor.numel, TASK_ELEMENTS)
                }
            }),
        }
    }
}

/// Tensor and task within it, of task `task` of a call.
fn locate(prefix: &[i64], task: i64) -> (usize, i64) {
    let tensor = prefix.partition_point(|sum| *sum <= task) - 1;
    (tensor, task - prefix[tensor])
}

/// One step on this backend.
struct Step<'a> {
    context: &'a CpuContext,
    call: &'a Call<'a>,
}

// SAFETY: raw pointers of a validated call, shared by the tasks that `TensorCall` is made for.
unsafe impl Sync for Step<'_> {}

impl Step<'_> {
    fn schedule(&self) -> Option<&Schedule> {
        match &self.call.plan.schedule {
            super::Schedule::Cpu(schedule) => Some(schedule),
            super::Schedule::Cuda(_) => None,
        }
    }

    /// The hyper-parameters of a group, and the step number.
    fn hyper(&self, group: usize) -> (Hyper, i32) {
        match self.call.args.hyper {
            HyperSource::Host(groups, step) => (groups[group], step),
            // SAFETY: the caller's promise; alignment was checked.
            HyperSource::Memory { hyper, step } => unsafe {
                (hyper.cast::<Hyper>().add(group).read(), step.read())
            },
        }
    }

    fn tensor(&self, i: usize) -> TensorCall<'_> {
        let (plan, args) = (self.call.plan, self.call.args);
        let tensor = &plan.tensors[i];
        let (hyper, step) = self.hyper(tensor.info.group);
        let grad_scale = hyper.grad_scale * hyper.clip_factor;
        let scratch = args.scratch.data.cast::<u8>();
        let [maxima, sums, update_maxima, update_sums, fresh, _] = plan.scratch.offsets();
        let beside = tensor.first_buffer + tensor.buffer_count - 1;
        let bc2 = 1.0 - power(hyper.beta2, step.max(1).cast_unsigned());
        TensorCall {
            tensor,
            index: i,
            weight: Weight {
                data: args.params[i].data.cast(),
                dtype: tensor.info.param_dtype,
                form: tensor.info.weights,
                beside: match tensor.info.weights.beside() {
                    Some(_) => args.state[beside].data.cast(),
                    None => std::ptr::null_mut(),
                },
            },
            grad: args.grads[i].data.cast(),
            update: args
                .updates
                .map_or(std::ptr::null_mut(), |updates| updates[i].data.cast()),
            state: args.state,
            scratch: [maxima, sums, update_maxima, update_sums, fresh]
                .map(|offset| scratch.wrapping_add(offset)),
            offset: args
                .offsets
                .and_then(|offsets| offsets[i])
                .unwrap_or(&tensor.offset),
            grad_scale: if plan.spec.maximize {
                -grad_scale
            } else {
                grad_scale
            },
            rule: Update::new(&plan.spec, tensor, &hyper, step),
            preconditioner: Preconditioner {
                inv_bc2: (1.0 / bc2) as f32,
                eps: hyper.eps,
            },
            rng: rng::Stream::new(plan.spec.seed, tensor.hash, step),
            skip: false,
            skip_blocks: match args.nonfinite {
                NonFinite::SkipBlock => true,
                NonFinite::Default => !tensor.needs_statistics(),
                NonFinite::SkipTensor | NonFinite::SkipStep | NonFinite::Propagate => false,
            },
        }
    }

    /// Whether a tensor stays as it is, given the flags of all tensors. The skip flag of any group
    /// stops all, as a step is skipped as a whole.
    fn skips(&self, call: &TensorCall<'_>) -> bool {
        match self.call.args.nonfinite {
            NonFinite::Default => call.tensor.needs_statistics() && call.statistic(call.index) != 0,
            NonFinite::SkipTensor => call.statistic(call.index) != 0,
            NonFinite::SkipStep | NonFinite::SkipBlock | NonFinite::Propagate => false,
        }
    }

    /// Whether no tensor changes, given the flags of all.
    fn skips_all(&self) -> bool {
        let flag = |i| {
            let flags = self.call.args.scratch.data.cast::<i32>();
            // SAFETY: the scratch begins with a flag per tensor, which no one changes now.
            unsafe { *flags.add(i) != 0 }
        };
        let any = || (0..self.call.plan.tensors.len()).any(flag);
        let skip = |group| self.hyper(group).0.skip != 0.0;
        (0..self.call.plan.groups).any(skip)
            || (self.call.args.nonfinite == NonFinite::SkipStep && any())
    }

    /// # Safety
    /// The call's buffers are valid; the statistics of the passes before are complete.
    unsafe fn collect(&self, pass: Pass) {
        let (plan, args) = (self.call.plan, self.call.args);
        let offsets = plan.scratch.offsets();
        let (begin, end) = (offsets[pass as usize], offsets[pass as usize + 1]);
        // SAFETY: the size was checked.
        unsafe {
            let scratch = args.scratch.data.cast::<u8>().wrapping_add(begin);
            std::ptr::write_bytes(scratch, 0, end - begin);
        }
        if pass != Pass::Maxima && begin == end {
            return;
        }
        let scan = pass == Pass::Maxima
            && matches!(args.nonfinite, NonFinite::SkipTensor | NonFinite::SkipStep);
        let (Some(kernels), Some(schedule)) = (self.context.kernels, self.schedule()) else {
            for (i, tensor) in plan.tensors.iter().enumerate() {
                if scan || tensor.needs_statistics() {
                    // SAFETY: the caller's promise.
                    unsafe { reference::collect(&self.tensor(i), pass) };
                }
            }
            return;
        };
        if matches!(pass, Pass::UpdateMaxima | Pass::UpdateSums) {
            // SAFETY: the caller's promise.
            unsafe { self.refresh() };
        }
        self.context.run(total(&schedule.stats), &|task| {
            let (i, task) = locate(&schedule.stats, task);
            let call = self.tensor(i);
            let (rows, width, per_task) = stats_rows(call.tensor);
            let bands = div_ceil(rows, per_task);
            let rows = part(rows, per_task, task % bands);
            let columns = part(width, portable::STATS_COLUMNS, task / bands);
            // SAFETY: the caller's promise.
            unsafe { (kernels.collect)(&call, pass, rows, columns) };
        });
        if scan {
            self.context.run(total(&schedule.scan), &|task| {
                let (i, task) = locate(&schedule.scan, task);
                let call = self.tensor(i);
                let elements = part(call.tensor.numel, TASK_ELEMENTS, task);
                // SAFETY: the caller's promise.
                if unsafe { (kernels.scan)(&call, elements) } {
                    call.flag().store(1, Ordering::Relaxed);
                }
            });
        }
    }

    /// Computes the new factors of all tensors.
    ///
    /// # Safety
    /// As for [`Step::collect`].
    unsafe fn refresh(&self) {
        let tensors = self.call.plan.tensors.len();
        if self.call.plan.scratch.fresh > 0 {
            self.context.run(tensors as i64, &|i| {
                // SAFETY: the caller's promise; one task per tensor.
                unsafe { portable::refresh(&self.tensor(index(i))) };
            });
        }
    }

    /// # Safety
    /// The call's buffers are valid; the statistics are complete.
    unsafe fn apply(&self) {
        let (plan, args) = (self.call.plan, self.call.args);
        let blocks = AtomicI64::new(0);
        let skip_all = self.skips_all();
        let of = |i| {
            let mut call = self.tensor(i);
            call.skip = skip_all || self.skips(&call);
            call.rule = call.complete_rule();
            call
        };
        let mut tensors_skipped = 0;
        match (self.context.kernels, self.schedule()) {
            (Some(kernels), Some(schedule)) => {
                // SAFETY: the caller's promise.
                unsafe { self.refresh() };
                self.context.run(total(&schedule.apply), &|task| {
                    let (i, task) = locate(&schedule.apply, task);
                    let call = of(i);
                    let units = part(call.tensor.grid.units(), units_per_task(call.tensor), task);
                    // SAFETY: the caller's promise; tasks have disjoint units.
                    unsafe {
                        if !call.skip {
                            let skipped = (kernels.apply)(&call, units);
                            blocks.fetch_add(skipped, Ordering::Relaxed);
                        } else if !call.in_place() {
                            portable::zero_update(&call, units);
                        }
                    }
                });
                for i in 0..plan.tensors.len() {
                    let call = of(i);
                    tensors_skipped += i64::from(call.skip);
                    if !call.skip {
                        // SAFETY: the caller's promise; all tasks are done.
                        unsafe { portable::store_statistics(&call) };
                    }
                }
            }
            _ => {
                for i in 0..plan.tensors.len() {
                    let call = of(i);
                    tensors_skipped += i64::from(call.skip);
                    // SAFETY: the caller's promise.
                    blocks.fetch_add(unsafe { reference::apply(&call) }, Ordering::Relaxed);
                }
            }
        }
        if !args.skipped.is_null() {
            // SAFETY: two counters of the caller; alignment was checked.
            unsafe {
                *args.skipped += blocks.into_inner();
                *args.skipped.add(1) += tensors_skipped;
            }
        }
    }
}

fn total(prefix: &[i64]) -> i64 {
    prefix.last().copied().unwrap_or(0)
}

/// Zeroed host memory, aligned like an arena.
#[derive(Debug)]
pub(crate) struct HostArena {
    data: *mut u8,
    layout: std::alloc::Layout,
}

// SAFETY: owned memory; access follows the rules of the state that holds it.
unsafe impl Send for HostArena {}
// SAFETY: as above.
unsafe impl Sync for HostArena {}

impl HostArena {
    pub(crate) fn zeroed(bytes: i64) -> Result<Self> {
        let size = index(bytes).max(1);
        let layout = std::alloc::Layout::from_size_align(size, crate::plan::ARENA_ALIGN as usize)
            .map_err(|error| {
            Error::new(Status::OutOfMemory, format!("{size} bytes: {error}"))
        })?;
        // SAFETY: the size is not zero.
        let data = unsafe { std::alloc::alloc_zeroed(layout) };
        if data.is_null() {
            return Err(Error::new(
                Status::OutOfMemory,
                format!("the state's {size} bytes could not be allocated"),
            ));
        }
        Ok(Self { data, layout })
    }

    pub(crate) fn data(&self) -> *mut c_void {
        self.data.cast()
    }
}

impl Drop for HostArena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.data, self.layout) };
    }
}
