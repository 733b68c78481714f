//! A step cut into tasks, and its passes run in their order.

#![expect(unsafe_code, reason = "works on the caller's raw buffers")]

use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};

use super::call::TensorCall;
use super::memory::Weight;
use super::{CpuContext, Kernels, portable, reference};
use crate::backend::Call;
use crate::layout::{div_ceil, index};
use crate::numerics::{Hyper, power};
use crate::optimizer::Update;
use crate::plan::{Pass, TensorPlan};
use crate::quant::Preconditioner;
use crate::rng;
use crate::step::{HyperSource, NonFinite};

/// Elements of one task where there are few of them: large enough to hide the hand-out, small enough to balance.
pub(super) const TASK_ELEMENTS: i64 = 1 << 16;

/// As many tasks balance among threads: where there are more elements tasks are larger. Each begins with
/// memory that was not asked for.
const BALANCED_TASKS: i64 = 256;

/// A task is no larger.
const LARGEST_TASK: i64 = 1 << 20;

/// How many times as large tasks of the statistics are: one begins and ends with a row of column maxima.
const STATS_TASKS: i64 = 4;

/// Rows of one, at least, where there are so many and each has one axis: to raise the maximum of a column in the
/// shared statistics, where others do, takes as long as some elements.
const TALL: i64 = 128;

/// Elements of tensors whose passes follow each other before the next tensors' first, for each thread: enough for
/// many small tensors to share the threads, and few enough for what one pass has read, and has asked for, to be
/// found in a cache by the next.
const WAVE_ELEMENTS: i64 = 1 << 19;

/// There are no more of them.
const LARGEST_WAVE: i64 = 1 << 22;

/// Elements of a task, of tensors that go through all passes together with as many.
fn task_elements(elements: i64) -> i64 {
    let each = (elements / BALANCED_TASKS).clamp(TASK_ELEMENTS, LARGEST_TASK);
    // A power of two, as blocks and cache lines are.
    1 << each.ilog2()
}

pub(super) fn units_per_task(tensor: &TensorPlan, task_elements: i64) -> i64 {
    (task_elements / tensor.grid.block).max(1)
}

/// How the grid of a tensor is cut into the tasks of a pass over the statistics.
struct Parts {
    rows: i64,
    columns: i64,
    /// Parts below each other.
    bands: i64,
}

impl Parts {
    fn of(tensor: &TensorPlan, pass: Pass, task_elements: i64) -> Self {
        let elements = STATS_TASKS * task_elements;
        let cols = tensor.grid.cols;
        let most = match pass {
            Pass::Sums => portable::SUMS_COLUMNS,
            _ if tensor.info.shape.last() == Some(&cols) => {
                portable::MAXIMA_COLUMNS.min(elements / TALL)
            }
            // Maxima of several axes are brought to theirs from whole rows.
            _ => portable::MAXIMA_COLUMNS,
        };
        let columns = cols.min(most).max(1);
        let rows = (elements / columns).max(1);
        let bands = div_ceil(tensor.grid.rows, rows);
        Self {
            rows,
            columns,
            bands,
        }
    }

    fn count(&self, tensor: &TensorPlan) -> i64 {
        self.bands * div_ceil(tensor.grid.cols, self.columns)
    }
}

pub(super) fn part(count: i64, each: i64, task: i64) -> Range<i64> {
    task * each..count.min((task + 1) * each)
}

/// How many tasks the tensors before each tensor have: task numbers of a whole call are mapped to
/// tensors by binary search, so that many small tensors and one large one balance alike.
#[derive(Debug)]
pub(crate) struct Schedule {
    apply: Vec<i64>,
    sums: Vec<i64>,
    /// Of the other passes over the statistics.
    maxima: Vec<i64>,
    /// Of the maxima where gradients of tensors without statistics are looked at, too.
    scan: Vec<i64>,
    /// Tensors that go through all passes together.
    waves: Vec<Range<usize>>,
    /// [`task_elements`] of each tensor.
    task_elements: Vec<i64>,
    /// How many bytes of gradients the tensors with statistics before each tensor have.
    gradients: Vec<i64>,
    /// How many of the next wave are asked for.
    asked: i64,
}

impl Schedule {
    /// For a context of so many threads.
    pub(crate) fn new(tensors: &[TensorPlan], threads: i64) -> Self {
        let wave_elements = WAVE_ELEMENTS.saturating_mul(threads).min(LARGEST_WAVE);
        let waves = waves(tensors, wave_elements);
        let mut each = Vec::with_capacity(tensors.len());
        for wave in &waves {
            let tensors = &tensors[wave.clone()];
            let elements = tensors.iter().map(|tensor| tensor.numel);
            let elements = elements.fold(0, i64::saturating_add);
            each.extend(tensors.iter().map(|_| task_elements(elements)));
        }
        let prefix = |tasks: &dyn Fn(&TensorPlan, i64) -> i64| {
            let mut sums = vec![0_i64];
            for (tensor, each) in tensors.iter().zip(&each) {
                sums.push(sums[sums.len() - 1].saturating_add(tasks(tensor, *each)));
            }
            sums
        };
        let apply =
            |tensor: &TensorPlan, each| div_ceil(tensor.grid.units(), units_per_task(tensor, each));
        let statistics = |tensor: &TensorPlan, pass, each| {
            if tensor.numel == 0 || !tensor.needs_statistics() {
                return 0;
            }
            Parts::of(tensor, pass, each).count(tensor)
        };
        Self {
            apply: prefix(&apply),
            sums: prefix(&|tensor, each| statistics(tensor, Pass::Sums, each)),
            maxima: prefix(&|tensor, each| statistics(tensor, Pass::Maxima, each)),
            scan: prefix(&|tensor, each| {
                if tensor.needs_statistics() {
                    statistics(tensor, Pass::Maxima, each)
                } else {
                    apply(tensor, each)
                }
            }),
            gradients: prefix(&|tensor, _| {
                if tensor.needs_statistics() {
                    let size = tensor.info.grad_dtype.size() as i64;
                    tensor.numel.saturating_mul(size)
                } else {
                    0
                }
            }),
            asked: wave_elements * size_of::<f32>() as i64,
            waves,
            task_elements: each,
        }
    }

    /// The units of a tensor that are a task of [`Pass::Apply`], or of the scan for gradients that are not finite.
    fn units(&self, tensor: &TensorPlan, index: usize, task: i64) -> Range<i64> {
        let each = units_per_task(tensor, self.task_elements[index]);
        part(tensor.grid.units(), each, task)
    }

    /// Which tensor of the next wave has the gradients to be asked for beside those of a tensor from byte `at` on,
    /// and how far into it they begin: as far into that wave as these are into theirs, which goes backwards, so
    /// that what is read first was asked for last.
    fn next_gradients(
        &self,
        tensor: usize,
        at: i64,
        wave: &Range<usize>,
        next: &Range<usize>,
    ) -> Option<(usize, i64)> {
        let at = self.gradients[tensor] - self.gradients[wave.start] + at;
        let of_next = self.gradients[next.start] + at;
        (at < self.asked && of_next < self.gradients[next.end])
            .then(|| locate(&self.gradients, of_next))
    }
}

/// Tensors without statistics have one pass and join whatever wave they come in.
fn waves(tensors: &[TensorPlan], wave_elements: i64) -> Vec<Range<usize>> {
    let (mut waves, mut start, mut elements) = (Vec::new(), 0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        if tensor.needs_statistics() {
            elements += tensor.numel;
        }
        if elements >= wave_elements {
            waves.push(start..i + 1);
            (start, elements) = (i + 1, 0);
        }
    }
    if start < tensors.len() {
        waves.push(start..tensors.len());
    }
    waves
}

/// Tensor and task within it, of task `task` of a call; or other things that there are so many of.
fn locate(prefix: &[i64], task: i64) -> (usize, i64) {
    let tensor = prefix.partition_point(|sum| *sum <= task) - 1;
    (tensor, task - prefix[tensor])
}

/// The tasks of some tensors, in the order in which they are handed out.
struct Tasks<'a> {
    before: &'a [i64],
    all: Range<i64>,
    order: Order,
}

#[derive(Clone, Copy)]
enum Order {
    Forward,
    Reverse,
}

impl<'a> Tasks<'a> {
    fn of(before: &'a [i64], wave: &Range<usize>, order: Order) -> Self {
        Self {
            before,
            all: before[wave.start]..before[wave.end],
            order,
        }
    }

    fn count(&self) -> i64 {
        self.all.end - self.all.start
    }

    /// Tensor and task within it.
    fn get(&self, task: i64) -> (usize, i64) {
        let task = match self.order {
            Order::Forward => self.all.start + task,
            Order::Reverse => self.all.end - 1 - task,
        };
        locate(self.before, task)
    }
}

/// One step on this backend.
pub(super) struct Step<'a> {
    pub(super) context: &'a CpuContext,
    pub(super) call: &'a Call<'a>,
}

// SAFETY: raw pointers of a validated call, shared by the tasks that `TensorCall` is made for.
unsafe impl Sync for Step<'_> {}

impl Step<'_> {
    fn schedule(&self) -> Option<&Schedule> {
        match &self.call.plan.schedule {
            crate::backend::Schedule::Cpu(schedule) => Some(schedule),
            crate::backend::Schedule::Cuda(_) => None,
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
            // SAFETY: as above.
            HyperSource::Counted { hyper, step } => unsafe {
                (hyper.cast::<Hyper>().add(group).read(), step.read())
            },
        }
    }

    pub(super) fn tensor(&self, i: usize) -> TensorCall<'_> {
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
            next_grad: std::ptr::null()..std::ptr::null(),
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

    /// Runs the passes that the call asks for.
    ///
    /// # Safety
    /// The call's buffers are valid; the statistics of passes before them are complete.
    pub(super) unsafe fn run(&self) {
        const COLLECTING: [Pass; 4] = [
            Pass::Maxima,
            Pass::Sums,
            Pass::UpdateMaxima,
            Pass::UpdateSums,
        ];
        let (plan, args) = (self.call.plan, self.call.args);
        let asked = |pass: Pass| self.call.pass.is_none_or(|only| only == pass);
        for pass in COLLECTING.into_iter().filter(|pass| asked(*pass)) {
            let offsets = plan.scratch.offsets();
            let (begin, end) = (offsets[pass as usize], offsets[pass as usize + 1]);
            // SAFETY: the size was checked.
            unsafe {
                let scratch = args.scratch.data.cast::<u8>().wrapping_add(begin);
                std::ptr::write_bytes(scratch, 0, end - begin);
            }
        }
        let all = 0..plan.tensors.len();
        let mut skipped = [0; 2];
        let waves = match self.schedule() {
            // Whether a step is skipped is known when all flags are.
            Some(schedule) if self.call.pass.is_none() && args.nonfinite != NonFinite::SkipStep => {
                schedule.waves.as_slice()
            }
            _ => std::slice::from_ref(&all),
        };
        for (i, wave) in waves.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                for pass in COLLECTING.into_iter().filter(|pass| asked(*pass)) {
                    if i == 0 || pass != Pass::Maxima {
                        self.collect(pass, wave);
                    }
                }
                if asked(Pass::Apply) {
                    let wave = self.apply(wave, waves.get(i + 1));
                    skipped = [skipped[0] + wave[0], skipped[1] + wave[1]];
                }
            }
        }
        if !args.skipped.is_null() {
            // SAFETY: two counters of the caller; alignment was checked.
            unsafe {
                *args.skipped += skipped[0];
                *args.skipped.add(1) += skipped[1];
            }
        }
    }

    /// Whether gradients of tensors without statistics are looked at with the maxima of the others.
    fn scans(&self) -> bool {
        matches!(
            self.call.args.nonfinite,
            NonFinite::SkipTensor | NonFinite::SkipStep
        )
    }

    /// The tasks of a pass over the statistics.
    fn tasks<'a>(&self, schedule: &'a Schedule, pass: Pass, wave: &Range<usize>) -> Tasks<'a> {
        let before = match pass {
            Pass::Sums => &schedule.sums,
            Pass::Maxima if self.scans() => &schedule.scan,
            _ => &schedule.maxima,
        };
        Tasks::of(before, wave, Order::Forward)
    }

    /// Does one of [`Step::tasks`].
    ///
    /// # Safety
    /// As for [`Step::collect`].
    unsafe fn collect_task(
        &self,
        kernels: &Kernels,
        schedule: &Schedule,
        pass: Pass,
        (i, task): (usize, i64),
    ) {
        let call = self.tensor(i);
        let grid = &call.tensor.grid;
        // SAFETY: the caller's promise.
        unsafe {
            if call.tensor.needs_statistics() {
                let parts = Parts::of(call.tensor, pass, schedule.task_elements[i]);
                let rows = part(grid.rows, parts.rows, task % parts.bands);
                let columns = part(grid.cols, parts.columns, task / parts.bands);
                (kernels.collect)(&call, pass, rows, columns);
            } else if (kernels.scan)(&call, schedule.units(call.tensor, i, task)) {
                call.flag().store(1, Ordering::Relaxed);
            }
        }
    }

    /// # Safety
    /// The call's buffers are valid; the statistics of the passes before are complete, and this
    /// one's were zeroed.
    unsafe fn collect(&self, pass: Pass, wave: &Range<usize>) {
        let plan = self.call.plan;
        let offsets = plan.scratch.offsets();
        if pass != Pass::Maxima && offsets[pass as usize] == offsets[pass as usize + 1] {
            return;
        }
        let (Some(kernels), Some(schedule)) = (&self.context.kernels, self.schedule()) else {
            let scans = pass == Pass::Maxima && self.scans();
            for i in wave.clone() {
                if scans || plan.tensors[i].needs_statistics() {
                    // SAFETY: the caller's promise.
                    unsafe { reference::collect(&self.tensor(i), pass) };
                }
            }
            return;
        };
        if matches!(pass, Pass::UpdateMaxima | Pass::UpdateSums) {
            // SAFETY: the caller's promise.
            unsafe { self.refresh(wave) };
        }
        let tasks = self.tasks(schedule, pass, wave);
        self.context.run(tasks.count(), &|task| {
            // SAFETY: the caller's promise.
            unsafe { self.collect_task(kernels, schedule, pass, tasks.get(task)) };
        });
    }

    /// Computes the new factors of a wave's tensors.
    ///
    /// # Safety
    /// As for [`Step::collect`].
    unsafe fn refresh(&self, wave: &Range<usize>) {
        if self.call.plan.scratch.fresh > 0 {
            self.context.run(wave.len() as i64, &|i| {
                // SAFETY: the caller's promise; one task per tensor.
                unsafe { portable::refresh(&self.tensor(wave.start + index(i))) };
            });
        }
    }

    /// Updates the tensors of a wave, and collects the maxima of the next one, which need not wait for that.
    /// Returns how many blocks and how many tensors were skipped.
    ///
    /// # Safety
    /// The call's buffers are valid; the statistics are complete, and the next wave's maxima were zeroed.
    unsafe fn apply(&self, wave: &Range<usize>, next: Option<&Range<usize>>) -> [i64; 2] {
        let blocks = AtomicI64::new(0);
        let skip_all = self.skips_all();
        let of = |i| {
            let mut call = self.tensor(i);
            call.skip = skip_all || self.skips(&call);
            call.rule = call.complete_rule();
            call
        };
        let mut tensors_skipped = 0;
        match (&self.context.kernels, self.schedule()) {
            (Some(kernels), Some(schedule)) => {
                // SAFETY: the caller's promise.
                unsafe { self.refresh(wave) };
                // What the statistics have read last is still in a cache.
                let tasks = Tasks::of(&schedule.apply, wave, Order::Reverse);
                let maxima = next.map(|next| self.tasks(schedule, Pass::Maxima, next));
                let count = tasks.count();
                let all = count + maxima.as_ref().map_or(0, Tasks::count);
                self.context.run(all, &|task| {
                    if let Some(maxima) = &maxima
                        && task >= count
                    {
                        let task = maxima.get(task - count);
                        // SAFETY: the caller's promise.
                        unsafe { self.collect_task(kernels, schedule, Pass::Maxima, task) };
                        return;
                    }
                    let (i, task) = tasks.get(task);
                    let mut call = of(i);
                    let units = schedule.units(call.tensor, i, task);
                    if let Some(next) = next {
                        call.next_grad = self.next_gradients(schedule, &call, &units, wave, next);
                    }
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
                for i in wave.clone() {
                    let call = of(i);
                    tensors_skipped += i64::from(call.skip);
                    if !call.skip {
                        // SAFETY: the caller's promise; all tasks are done.
                        unsafe { portable::store_statistics(&call) };
                    }
                }
            }
            _ => {
                for i in wave.clone() {
                    let call = of(i);
                    tensors_skipped += i64::from(call.skip);
                    // SAFETY: the caller's promise.
                    blocks.fetch_add(unsafe { reference::apply(&call) }, Ordering::Relaxed);
                }
                if let Some(next) = next {
                    // SAFETY: the caller's promise.
                    unsafe { self.collect(Pass::Maxima, next) };
                }
            }
        }
        [blocks.into_inner(), tensors_skipped]
    }

    /// [`TensorCall::next_grad`] for units of a tensor.
    fn next_gradients(
        &self,
        schedule: &Schedule,
        call: &TensorCall<'_>,
        units: &Range<i64>,
        wave: &Range<usize>,
        next: &Range<usize>,
    ) -> Range<*const u8> {
        let (row, col, _) = call.tensor.grid.unit(units.start);
        let element = row * call.tensor.grid.cols + col;
        let at = element * call.tensor.info.grad_dtype.size() as i64;
        let Some((i, from)) = schedule.next_gradients(call.index, at, wave, next) else {
            return std::ptr::null()..std::ptr::null();
        };
        let gradients = &self.call.args.grads[i];
        let first = gradients.data.cast::<u8>().cast_const();
        // As if the tensor began where its first element's would be.
        let begin = first.wrapping_offset((from - at) as isize);
        begin..first.wrapping_add(index(gradients.bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::Context;
    use crate::backend::cpu::Variant;
    use crate::dtype::Dtype;
    use crate::plan::{Plan, TensorInfo};
    use crate::spec::Spec;

    fn schedule(preset: &str, shapes: &[&[i64]]) -> (Plan, Schedule) {
        let context = Arc::new(Context::Cpu(CpuContext::new(1, Variant::Portable).unwrap()));
        let tensors = shapes.iter().enumerate();
        let tensors = tensors.map(|(i, shape)| TensorInfo::new(format!("{i}"), shape, Dtype::F32));
        let spec = Spec::preset(preset).unwrap();
        let plan = Plan::new(context, &spec, tensors.collect()).unwrap();
        let schedule = Schedule::new(&plan.tensors, 1);
        (plan, schedule)
    }

    #[test]
    fn tasks_grow_with_the_elements_that_go_through_all_passes_together() {
        for (elements, each) in [
            (0, 1 << 16),
            (1 << 24, 1 << 16),
            ((1 << 25) - 1, 1 << 16),
            (1 << 25, 1 << 17),
            (8192 * 8192, 1 << 18),
            (i64::MAX, 1 << 20),
        ] {
            assert_eq!(task_elements(elements), each, "{elements} elements");
        }
    }

    #[test]
    fn waves_grow_with_the_threads_up_to_a_largest_one() {
        let shapes: [&[i64]; 9] = [&[512, 1024]; 9];
        let (plan, one) = schedule("adamw4", &shapes);
        assert_eq!(one.waves.len(), 9);
        // Those of a host are not known.
        for (threads, waves) in [
            (2, vec![2, 2, 2, 2, 1]),
            (8, vec![8, 1]),
            (i64::MAX, vec![8, 1]),
        ] {
            let schedule = Schedule::new(&plan.tensors, threads);
            let lengths: Vec<_> = schedule.waves.iter().map(ExactSizeIterator::len).collect();
            assert_eq!(lengths, waves, "{threads} threads");
        }
    }

    #[test]
    fn gradients_that_are_asked_for_are_as_far_into_the_next_wave() {
        let shapes: [&[i64]; 5] = [&[640, 1000], &[5], &[640, 1000], &[7], &[1000, 1000]];
        let (plan, schedule) = schedule("adamw4", &shapes);
        let waves = &schedule.waves;
        assert_eq!(waves.as_slice(), [0..1, 1..3, 3..5]);
        let next = |tensor, at, wave: usize| {
            schedule.next_gradients(tensor, at, &waves[wave], &waves[wave + 1])
        };
        let most = WAVE_ELEMENTS * 4;
        // The small tensor has none.
        assert_eq!(next(0, 0, 0), Some((2, 0)));
        assert_eq!(next(0, 4096, 0), Some((2, 4096)));
        assert_eq!(next(2, 4096, 1), Some((4, 4096)));
        // No more than a cache holds of them.
        assert_eq!(next(2, most - 4, 1), Some((4, most - 4)));
        assert_eq!(next(2, most, 1), None);
        assert_eq!(
            schedule.gradients[plan.tensors.len()],
            4 * (2 * 640_000 + 1_000_000)
        );
    }

    #[test]
    fn every_unit_and_every_place_of_the_grid_is_in_one_task() {
        let shapes: [&[i64]; 6] = [
            &[8192, 8192],
            &[3, 5],
            &[0, 7],
            &[9000, 9000],
            &[1_000_001],
            &[64, 3, 3, 3],
        ];
        for preset in ["adamw4-block", "adamw4", "adamw8", "factor4"] {
            let (plan, schedule) = schedule(preset, &shapes);
            for (i, tensor) in plan.tensors.iter().enumerate() {
                let mut next = 0;
                for task in 0..schedule.apply[i + 1] - schedule.apply[i] {
                    let units = schedule.units(tensor, i, task);
                    assert!(
                        units.start == next && units.end > next,
                        "{preset}, {units:?}"
                    );
                    next = units.end;
                }
                assert_eq!(
                    next,
                    tensor.grid.units(),
                    "{preset}, {:?}",
                    tensor.info.shape
                );
                if !tensor.needs_statistics() || tensor.numel == 0 {
                    continue;
                }
                for (pass, tasks) in [
                    (Pass::Maxima, &schedule.maxima),
                    (Pass::Sums, &schedule.sums),
                ] {
                    let parts = Parts::of(tensor, pass, schedule.task_elements[i]);
                    let places: i64 = (0..tasks[i + 1] - tasks[i])
                        .map(|task| {
                            let rows = part(tensor.grid.rows, parts.rows, task % parts.bands);
                            let columns = part(tensor.grid.cols, parts.columns, task / parts.bands);
                            assert!(
                                !rows.is_empty() && !columns.is_empty(),
                                "{preset}, {pass:?}"
                            );
                            (rows.end - rows.start) * (columns.end - columns.start)
                        })
                        .sum();
                    assert_eq!(places, tensor.numel, "{preset}, {pass:?}");
                }
            }
        }
    }
}
