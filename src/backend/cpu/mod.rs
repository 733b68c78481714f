//! The CPU backend: cuts a step into tasks, runs them on its threads (or the host's), and picks
//! the kernels once, when the context is made.

#![expect(
    unsafe_code,
    reason = "works on the caller's raw buffers and callbacks"
)]

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
use crate::numerics::{FpEnv, Hyper, Scalars};
use crate::plan::{Plan, TensorPlan};
use crate::step::{Buffer, HyperSource, NonFinite, Stage};

use super::Call;
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
    /// The same code compiled for AVX2, FMA and F16C.
    Avx2 = 3,
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
        let scalars = match call.args.hyper {
            HyperSource::Host(hyper, step) => Scalars::new(&hyper, step),
            // SAFETY: the caller's promise; alignment was checked.
            HyperSource::Memory { hyper, step } => unsafe {
                Scalars::new(&hyper.cast::<Hyper>().read(), step.read())
            },
        };
        let step = Step {
            context: self,
            call,
            scalars: &scalars,
        };
        if matches!(call.stage, Stage::Stats | Stage::Both) {
            // SAFETY: the caller's promise.
            unsafe { step.stats() };
        }
        if matches!(call.stage, Stage::Apply | Stage::Both) {
            // SAFETY: the caller's promise.
            unsafe { step.apply() };
        }
        Ok(())
    }

    /// # Safety
    /// The arguments were validated; the buffers are valid host memory.
    pub(crate) unsafe fn compress(
        &self,
        plan: &Plan,
        state: usize,
        values: &[Buffer],
        buffers: &[Buffer],
    ) {
        let _env = FpEnv::ieee();
        self.codec(
            plan,
            values,
            buffers,
            |kernels, call, units| {
                // SAFETY: the caller's promise; the tasks' units are disjoint.
                unsafe {
                    match kernels {
                        None => reference::compress(call, state),
                        Some(kernels) => (kernels.compress)(call, state, units),
                    }
                }
            },
            |call| {
                let rank1 = matches!(
                    call.tensor.states[state].format,
                    crate::plan::Format::Rank1 { .. }
                );
                if rank1 && self.kernels.is_some() {
                    // SAFETY: the caller's promise.
                    unsafe { portable::rank1_maxima(call, state) };
                }
            },
        );
    }

    /// # Safety
    /// As for [`CpuContext::compress`].
    pub(crate) unsafe fn decompress(
        &self,
        plan: &Plan,
        state: usize,
        buffers: &[Buffer],
        values: &[Buffer],
    ) {
        let _env = FpEnv::ieee();
        self.codec(
            plan,
            values,
            buffers,
            |kernels, call, units| {
                // SAFETY: the caller's promise; the tasks' units are disjoint.
                unsafe {
                    match kernels {
                        None => reference::decompress(call, state),
                        Some(kernels) => (kernels.decompress)(call, state, units),
                    }
                }
            },
            |_| (),
        );
    }

    /// Runs `work` over the units of every tensor, after `prepare` has seen the tensor.
    fn codec(
        &self,
        plan: &Plan,
        values: &[Buffer],
        buffers: &[Buffer],
        work: impl Fn(Option<Kernels>, &TensorCall<'_>, Range<i64>) + Sync,
        prepare: impl Fn(&TensorCall<'_>),
    ) {
        let scalars = Scalars::new(&Hyper::default(), 1);
        for (i, tensor) in plan.tensors.iter().enumerate() {
            let call = TensorCall {
                tensor,
                index: i,
                param: values[i].data.cast(),
                grad: std::ptr::null(),
                update: std::ptr::null_mut(),
                state: buffers,
                stats: std::ptr::null_mut(),
                offset: &tensor.offset,
                scalars: &scalars,
                skip: false,
                skip_blocks: false,
            };
            prepare(&call);
            match self.kernels {
                None => work(None, &call, 0..0),
                Some(_) => {
                    let (units, each) = (tensor.grid.units(), units_per_task(tensor));
                    self.run(div_ceil(units, each), &|task| {
                        work(self.kernels, &call, part(units, each, task));
                    });
                }
            }
        }
    }
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

/// The kernels of a variant, where this processor can run them.
fn kernels(variant: Variant) -> Result<Option<Kernels>> {
    #[cfg(target_arch = "x86_64")]
    let avx2 = (std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c"))
    .then_some(portable::AVX2);
    #[cfg(not(target_arch = "x86_64"))]
    let avx2: Option<Kernels> = None;
    match variant {
        Variant::Auto => Ok(Some(avx2.unwrap_or(portable::BASELINE))),
        Variant::Reference => Ok(None),
        Variant::Portable => Ok(Some(portable::BASELINE)),
        Variant::Avx2 => match avx2 {
            Some(kernels) => Ok(Some(kernels)),
            None => Err(unsupported(
                "variant is AVX2; this processor lacks AVX2, FMA or F16C",
            )),
        },
    }
}

/// One tensor of one call: raw pointers whose sizes were checked.
pub(crate) struct TensorCall<'a> {
    tensor: &'a TensorPlan,
    index: usize,
    param: *mut u8,
    grad: *const u8,
    /// Null: in place.
    update: *mut u8,
    /// All state buffers of the plan.
    state: &'a [Buffer],
    /// The plan's statistics: one flag per tensor, then rank-1 maxima.
    stats: *mut i32,
    /// Place in the global tensor.
    offset: &'a [i64],
    scalars: &'a Scalars,
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
        let first = self.tensor.first_buffer + self.tensor.states[state].first_buffer;
        let end = match self.tensor.states.get(state + 1) {
            Some(next) => self.tensor.first_buffer + next.first_buffer,
            None => self.tensor.first_buffer + self.tensor.buffer_count,
        };
        &self.state[first..end]
    }

    #[inline(always)]
    fn offset_of(&self, axis: usize) -> usize {
        index(self.offset[axis])
    }

    #[inline(always)]
    fn word(&self, word: usize) -> &AtomicI32 {
        // SAFETY: the statistics have all words of the plan, aligned, and during a call they are
        // accessed through atomics only.
        unsafe { AtomicI32::from_ptr(self.stats.add(word)) }
    }

    /// The tensor's non-finite flag.
    fn flag(&self) -> &AtomicI32 {
        self.word(self.index)
    }

    #[inline(always)]
    fn statistic(&self, word: usize) -> i32 {
        self.word(word).load(Ordering::Relaxed)
    }

    /// Raises a maximum; the load first, as most values are no new maximum.
    #[inline(always)]
    fn raise(&self, word: usize, value: i32) {
        let slot = self.word(word);
        if value > slot.load(Ordering::Relaxed) {
            slot.fetch_max(value, Ordering::Relaxed);
        }
    }
}

/// Elements of one task: large enough to hide the hand-out, small enough to balance.
const TASK_ELEMENTS: i64 = 1 << 16;

fn units_per_task(tensor: &TensorPlan) -> i64 {
    (TASK_ELEMENTS / tensor.grid.block).max(1)
}

/// Rows per task of the statistics, with the tensor seen as (leading axes, last axis).
fn stats_rows(tensor: &TensorPlan) -> (i64, i64, i64) {
    let width = tensor.info.shape.last().copied().unwrap_or(0).max(1);
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
            stats: prefix(&|tensor| match tensor.rank1() {
                Some(_) if tensor.numel > 0 => {
                    let (rows, width, per_task) = stats_rows(tensor);
                    div_ceil(rows, per_task) * div_ceil(width, portable::STATS_COLUMNS)
                }
                _ => 0,
            }),
            scan: prefix(&|tensor| match tensor.rank1() {
                Some(_) => 0,
                None => div_ceil(tensor.numel, TASK_ELEMENTS),
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
    scalars: &'a Scalars,
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

    fn tensor(&self, i: usize) -> TensorCall<'_> {
        let (plan, args) = (self.call.plan, self.call.args);
        let tensor = &plan.tensors[i];
        TensorCall {
            tensor,
            index: i,
            param: args.params[i].data.cast(),
            grad: args.grads[i].data.cast(),
            update: args
                .updates
                .map_or(std::ptr::null_mut(), |updates| updates[i].data.cast()),
            state: args.state,
            stats: args.stats.data.cast(),
            offset: args
                .offsets
                .and_then(|offsets| offsets[i])
                .unwrap_or(&tensor.offset),
            scalars: self.scalars,
            skip: false,
            skip_blocks: match args.nonfinite {
                NonFinite::SkipBlock => true,
                NonFinite::Default => tensor.rank1().is_none(),
                NonFinite::SkipTensor | NonFinite::SkipStep | NonFinite::Propagate => false,
            },
        }
    }

    /// Whether a tensor stays as it is, given the flags of all tensors.
    fn skips(&self, call: &TensorCall<'_>) -> bool {
        match self.call.args.nonfinite {
            NonFinite::Default => call.tensor.rank1().is_some() && call.statistic(call.index) != 0,
            NonFinite::SkipTensor => call.statistic(call.index) != 0,
            NonFinite::SkipStep | NonFinite::SkipBlock | NonFinite::Propagate => false,
        }
    }

    /// Whether no tensor changes, given the flags of all.
    fn skips_all(&self) -> bool {
        let any = || (0..self.call.plan.tensors.len()).any(|i| self.tensor(i).statistic(i) != 0);
        self.scalars.skip != 0 || (self.call.args.nonfinite == NonFinite::SkipStep && any())
    }

    /// # Safety
    /// The call's buffers are valid.
    unsafe fn stats(&self) {
        let (plan, args) = (self.call.plan, self.call.args);
        // SAFETY: the size was checked.
        unsafe { std::ptr::write_bytes(args.stats.data.cast::<i32>(), 0, plan.stats_words) };
        let scan = matches!(args.nonfinite, NonFinite::SkipTensor | NonFinite::SkipStep);
        let (Some(kernels), Some(schedule)) = (self.context.kernels, self.schedule()) else {
            for (i, tensor) in plan.tensors.iter().enumerate() {
                if scan || tensor.rank1().is_some() {
                    // SAFETY: the caller's promise.
                    unsafe { reference::stats(&self.tensor(i)) };
                }
            }
            return;
        };
        self.context.run(total(&schedule.stats), &|task| {
            let (i, task) = locate(&schedule.stats, task);
            let call = self.tensor(i);
            let (rows, width, per_task) = stats_rows(call.tensor);
            let bands = div_ceil(rows, per_task);
            let rows = part(rows, per_task, task % bands);
            let columns = part(width, portable::STATS_COLUMNS, task / bands);
            // SAFETY: the caller's promise.
            unsafe { (kernels.stats)(&call, rows, columns) };
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

    /// # Safety
    /// The call's buffers are valid; the statistics are complete.
    unsafe fn apply(&self) {
        let (plan, args) = (self.call.plan, self.call.args);
        let blocks = AtomicI64::new(0);
        let skip_all = self.skips_all();
        let of = |i| {
            let mut call = self.tensor(i);
            call.skip = skip_all || self.skips(&call);
            call
        };
        let mut tensors_skipped = 0;
        match (self.context.kernels, self.schedule()) {
            (Some(kernels), Some(schedule)) => {
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
                        unsafe { portable::store_maxima(&call) };
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
