//! One call of a plan: its launches in their order, with their parameters. What runs them is given,
//! the driver or the tests' host.

use std::ffi::c_void;

use super::kernels::{self, Kernel};
use super::params::{
    AMSGRAD, COUPLED, FUSED, LAUNCH_WORDS, Launch, MAXIMIZE, NESTEROV, RELATIVE_STEP,
    SCALARS_WORDS, SCALE_PARAMETER, SKIP_ALL, SKIP_BLOCKS, SKIP_GLOBAL, SKIP_STEP, SKIP_TENSORS,
    STATES, Scalars, Tensor, UPDATES, is_coupled,
};
use super::table::{List, Lists};
use crate::backend::{Call, Codec};
use crate::codec::EmaArgs;
use crate::error::Result;
use crate::layout::index;
use crate::norm::{self, NormArgs};
use crate::numerics::FpEnv;
use crate::plan::{Format, MAX_AXES, Pass, Plan, StatePlan, TensorPlan};
use crate::rng::round_keys;
use crate::spec::Spec;
use crate::step::{Buffer, HyperSource, NonFinite, StepArgs};

/// What is enqueued.
pub(super) enum Work<'a> {
    /// Zeroing of device memory.
    Zero { data: *mut c_void, bytes: usize },
    Kernel {
        kernel: Kernel,
        /// Thread blocks.
        grid: u32,
        launch: &'a Launch,
    },
}

/// Runs a step, or one of its stages; `table` is where the plan's table lies.
pub(super) fn step(
    call: &Call<'_>,
    lists: &Lists,
    table: *const c_void,
    run: &mut dyn FnMut(Work<'_>) -> Result<()>,
) -> Result<()> {
    let (plan, args) = (call.plan, call.args);
    let scan = matches!(args.nonfinite, NonFinite::SkipTensor | NonFinite::SkipStep);
    let fuse = call.pass.is_none() && !scan && !lists.fused.is_empty();
    let global = fuse || !lists.collect_global.is_empty();
    let none = Vec::new();
    let offsets = plan.scratch.offsets();
    let tickets = 4 * lists.ticket_words(plan.tensors.len());
    let placed = args.scratch.data.wrapping_byte_add(offsets[5] + tickets);
    let mut launch = Filled::new(plan, args, table, placed);
    if call.pass == Some(Pass::Maxima) || (call.pass.is_none() && (scan || global)) {
        run(Work::Zero {
            data: args.scratch.data,
            bytes: if fuse {
                offsets[5] + tickets
            } else if call.pass.is_none() && !lists.sums.is_empty() {
                offsets[Pass::Apply as usize]
            } else {
                4 * plan.scratch.maxima
            },
        })?;
        let fusible = if fuse { &none } else { &lists.collect_fusible };
        let rest = if scan { &lists.collect_rest } else { &none };
        for list in lists.collect_global.iter().chain(fusible).chain(rest) {
            launch.enqueue(list, run)?;
        }
    }
    if let Some(pass @ (Pass::Sums | Pass::UpdateMaxima | Pass::UpdateSums)) = call.pass {
        let begin = offsets[pass as usize];
        run(Work::Zero {
            data: args.scratch.data.wrapping_byte_add(begin),
            bytes: offsets[pass as usize + 1] - begin,
        })?;
    }
    let asked = |pass| call.pass.is_none_or(|only| only == pass);
    for (wanted, lists) in [
        (asked(Pass::Sums), &lists.sums),
        // Shards do not combine the new means: every stage behind the sums makes them.
        (
            call.pass.is_none_or(|pass| pass > Pass::Sums),
            &lists.refresh,
        ),
        (asked(Pass::UpdateMaxima), &lists.update_maxima),
        (asked(Pass::UpdateSums), &lists.update_sums),
    ] {
        for list in lists.iter().filter(|_| wanted) {
            launch.enqueue(list, run)?;
        }
    }
    if asked(Pass::Apply) {
        if fuse {
            for (number, list) in lists.fused.iter().enumerate() {
                launch.enqueue_fused(list, number, run)?;
            }
        }
        let fusible = if fuse { &none } else { &lists.apply_fusible };
        for list in fusible.iter().chain(&lists.apply).chain(&lists.finish) {
            launch.enqueue(list, run)?;
        }
        if matches!(args.hyper, HyperSource::Counted { .. }) {
            run(Work::Kernel {
                kernel: kernels::COUNT_STEP,
                grid: 1,
                launch: &launch.launch,
            })?;
        }
    }
    Ok(())
}

/// Where the elements of a tensor are, besides its states.
type Elements<'a> = &'a dyn Fn(usize) -> [*mut c_void; 2];

/// The launches of some lists with one or two buffers for each tensor, and perhaps states.
fn run_lists(
    launch: &mut Launch,
    plan: &Plan,
    lists: &[List],
    state: &[Buffer],
    elements: Elements<'_>,
    run: &mut dyn FnMut(Work<'_>) -> Result<()>,
) -> Result<()> {
    for list in lists {
        list.put(launch);
        for &(_, word) in &list.groups {
            write_scalars(launch, word, &Scalars::outside_of_a_step(&plan.spec));
        }
        for &(i, word) in &list.members {
            let tensor = &plan.tensors[i];
            let words = &mut launch.words[word..word + STATES + tensor.buffer_count];
            let [first, second] = elements(i);
            words[..STATES].copy_from_slice(&[first as u64, second as u64, 0, 0]);
            let buffers = state.iter().skip(tensor.first_buffer);
            for (word, buffer) in words[STATES..].iter_mut().zip(buffers) {
                *word = buffer.data as u64;
            }
        }
        run(Work::Kernel {
            kernel: list.kernel,
            grid: list.grid,
            launch,
        })?;
    }
    Ok(())
}

/// What [`codec`] does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Compress,
    Decompress,
}

/// One state of all tensors to f32 values or back; with `ema`, decompression averages its inputs in.
pub(super) fn codec(
    codec: &Codec<'_>,
    direction: Direction,
    ema: Option<&EmaArgs<'_>>,
    lists: &Lists,
    table: *const c_void,
    run: &mut dyn FnMut(Work<'_>) -> Result<()>,
) -> Result<()> {
    let plan = codec.plan;
    let mut launch = Launch {
        keys: round_keys(plan.spec.seed),
        step: codec.step,
        state: codec.state as i32,
        decay: ema.map_or(0.0, |ema| ema.decay),
        weight: ema.map_or(0.0, |ema| ema.weight),
        ..Launch::new(table)
    };
    let compress = direction == Direction::Compress;
    let any = |what: &dyn Fn(&StatePlan) -> bool| {
        let mut states = plan
            .tensors
            .iter()
            .filter_map(|t| t.states.get(codec.state));
        compress && states.any(what)
    };
    let maxima = any(&|state| !state.maxima().is_empty());
    let means = any(&|state| matches!(state.format, Format::Factored(_)));
    let lists = [
        (maxima, &lists.clear_maxima),
        (maxima, &lists.raise_maxima),
        (means, &lists.compress_means),
        (compress, &lists.compress),
        (!compress, &lists.decompress),
    ];
    let elements = |i: usize| {
        let input = ema.map_or(std::ptr::null_mut(), |ema| ema.inputs[i].data);
        [codec.values[i].data, input]
    };
    for (_, list) in lists.into_iter().filter(|(wanted, _)| *wanted) {
        run_lists(&mut launch, plan, list, codec.buffers, &elements, run)?;
    }
    Ok(())
}

/// One stage of the global norm.
pub(super) fn norm(
    plan: &Plan,
    args: &NormArgs<'_>,
    stage: norm::Stage,
    lists: &Lists,
    table: *const c_void,
    run: &mut dyn FnMut(Work<'_>) -> Result<()>,
) -> Result<()> {
    let info = Plan::norm_stage(stage);
    run(Work::Zero {
        data: args.scratch.data.wrapping_byte_add(index(info.offset)),
        bytes: 8 * index(info.count),
    })?;
    let mut launch = Launch {
        statistics: args.scratch.data.cast(),
        grad_scale: args.grad_scale,
        ..Launch::new(table)
    };
    let lists = match stage {
        norm::Stage::Max => &lists.norm_max,
        norm::Stage::Sum => &lists.norm_sum,
    };
    let elements = |i: usize| [std::ptr::null_mut(), args.grads[i].data];
    run_lists(&mut launch, plan, lists, &[], &elements, run)
}

/// Norm and clip factor to device memory.
pub(super) fn clip(
    args: &NormArgs<'_>,
    norm: *mut f32,
    clip_factor: *mut f32,
    run: &mut dyn FnMut(Work<'_>) -> Result<()>,
) -> Result<()> {
    run(Work::Kernel {
        kernel: kernels::NORM_FINISH,
        grid: 1,
        launch: &Launch {
            statistics: args.scratch.data.cast(),
            max_norm: args.max_norm,
            norm,
            clip_factor,
            ..Launch::new(std::ptr::null())
        },
    })
}

impl List {
    fn put(&self, launch: &mut Launch) {
        launch.tensors = self.tensors;
        launch.segments = self.segments;
        launch.tasks = self.tasks;
    }
}

fn write_scalars(launch: &mut Launch, word: usize, scalars: &Scalars) {
    let to = &mut launch.words[word..word + SCALARS_WORDS];
    // SAFETY: as many words as the scalars take; both are aligned to 4.
    unsafe { to.as_mut_ptr().cast::<Scalars>().write(*scalars) };
}

/// Flags of a spec.
fn flags_of(spec: &Spec) -> i32 {
    let flag = |set: bool, flag: i32| if set { flag } else { 0 };
    flag(is_coupled(spec), COUPLED)
        | flag(spec.sgdm.unwrap_or_default().nesterov, NESTEROV)
        | flag(spec.amsgrad, AMSGRAD)
        | flag(spec.maximize, MAXIMIZE)
        | flag(
            spec.adafactor.unwrap_or_default().relative_step,
            RELATIVE_STEP,
        )
        | flag(
            spec.adafactor.unwrap_or_default().scale_parameter,
            SCALE_PARAMETER,
        )
}

/// Words of a tensor's place: its first column, its first row and its offset (`PLACE_WORDS` in place.cu).
const PLACE_WORDS: usize = 2 + MAX_AXES;

/// Tensors whose places a launch has words for, behind one address.
const PLACES: usize = (LAUNCH_WORDS - 1) / PLACE_WORDS;

/// A launch's parameters, filled anew for each list.
struct Filled<'a> {
    plan: &'a Plan,
    args: &'a StepArgs<'a>,
    launch: Launch,
    /// Room for the tensors of a launch, at other places than the table says.
    placed: *mut c_void,
}

impl<'a> Filled<'a> {
    fn new(
        plan: &'a Plan,
        args: &'a StepArgs<'a>,
        table: *const c_void,
        placed: *mut c_void,
    ) -> Self {
        let (hyper, step_number, step) = match args.hyper {
            HyperSource::Host(_, step) => (std::ptr::null(), std::ptr::null(), step),
            HyperSource::Memory { hyper, step } => (hyper, step, 0),
            HyperSource::Counted { hyper, step } => (hyper, step.cast_const(), 0),
        };
        let skip = match args.hyper {
            HyperSource::Host(groups, _) => groups.iter().any(|hyper| hyper.skip != 0.0),
            HyperSource::Memory { .. } | HyperSource::Counted { .. } => false,
        };
        let policy = match args.nonfinite {
            NonFinite::Default => SKIP_BLOCKS | SKIP_GLOBAL,
            NonFinite::SkipBlock => SKIP_BLOCKS,
            NonFinite::SkipTensor => SKIP_TENSORS,
            NonFinite::SkipStep => SKIP_STEP,
            NonFinite::Propagate => 0,
        };
        let adafactor = plan.spec.adafactor.unwrap_or_default();
        let offsets = plan.scratch.offsets();
        let region = |pass: usize| args.scratch.data.wrapping_byte_add(offsets[pass]);
        Self {
            plan,
            args,
            placed,
            launch: Launch {
                hyper,
                step_number,
                skipped: args.skipped,
                statistics: args.scratch.data.cast(),
                sums: region(Pass::Sums as usize).cast(),
                fresh: region(Pass::Apply as usize).cast(),
                update_maxima: region(Pass::UpdateMaxima as usize).cast(),
                update_sums: region(Pass::UpdateSums as usize).cast(),
                keys: round_keys(plan.spec.seed),
                step,
                flags: flags_of(&plan.spec)
                    | policy
                    | if args.updates.is_some() { UPDATES } else { 0 }
                    | if skip { SKIP_ALL } else { 0 },
                // At most 2^16 groups, and what `table::narrow` allows.
                groups: plan.groups as i32,
                dampening: plan.spec.sgdm.unwrap_or_default().dampening,
                decay_rate: adafactor.decay_rate,
                eps2: adafactor.eps2,
                clip_threshold: adafactor.clip_threshold,
                tensor_count: plan.tensors.len() as i32,
                ..Launch::new(table)
            },
        }
    }

    /// A list whose tasks are taken by tickets; `number` counts such launches.
    fn enqueue_fused(
        &mut self,
        list: &List,
        number: usize,
        run: &mut dyn FnMut(Work<'_>) -> Result<()>,
    ) -> Result<()> {
        let tickets = self
            .args
            .scratch
            .data
            .wrapping_byte_add(self.plan.scratch.offsets()[5]);
        self.launch.done = tickets.cast();
        self.launch.ticket = self
            .launch
            .done
            .wrapping_add(self.plan.tensors.len() + number);
        self.launch.flags |= FUSED;
        let enqueued = self.enqueue(list, run);
        self.launch.flags &= !FUSED;
        enqueued
    }

    fn enqueue(&mut self, list: &List, run: &mut dyn FnMut(Work<'_>) -> Result<()>) -> Result<()> {
        let _env = FpEnv::ieee();
        list.put(&mut self.launch);
        if list.members.iter().any(|(i, _)| self.is_moved(*i)) {
            self.place(list, run)?;
        }
        if let HyperSource::Host(groups, step) = self.args.hyper {
            for &(group, word) in &list.groups {
                let scalars = Scalars::new(&self.plan.spec, &groups[group], step);
                write_scalars(&mut self.launch, word, &scalars);
            }
        }
        for &(i, word) in &list.members {
            self.pointers(i, word);
        }
        run(Work::Kernel {
            kernel: list.kernel,
            grid: list.grid,
            launch: &self.launch,
        })
    }

    /// Where a tensor lies in the global one.
    fn offset(&self, i: usize) -> &'a [i64] {
        let given = self.args.offsets.and_then(|offsets| offsets[i]);
        given.unwrap_or(&self.plan.tensors[i].offset)
    }

    fn is_moved(&self, i: usize) -> bool {
        let given = self.args.offsets.and_then(|offsets| offsets[i]);
        given.is_some_and(|offset| offset != self.plan.tensors[i].offset)
    }

    /// Brings the tensors of a list, at their places, to the scratch, where its launch then finds them.
    fn place(&mut self, list: &List, run: &mut dyn FnMut(Work<'_>) -> Result<()>) -> Result<()> {
        for (number, members) in list.members.chunks(PLACES).enumerate() {
            let first = number * PLACES * size_of::<Tensor>();
            let mut launch = Launch {
                tensors: list.tensors + first as i64,
                ..Launch::new(self.launch.table)
            };
            launch.words[0] = self.placed as u64 + first as u64;
            let places = launch.words[1..].chunks_mut(PLACE_WORDS);
            for (words, &(i, _)) in places.zip(members) {
                let (grid, offset) = (&self.plan.tensors[i].grid, self.offset(i));
                let (first_row, first_col) = grid.first(offset);
                words[0] = first_col.cast_unsigned();
                words[1] = first_row.cast_unsigned();
                for (word, start) in words[2..].iter_mut().zip(offset) {
                    *word = start.cast_unsigned();
                }
            }
            run(Work::Kernel {
                kernel: kernels::PLACE,
                // At most as many as there are words.
                grid: members.len() as u32,
                launch: &launch,
            })?;
        }
        // Kernels count from the table.
        self.launch.tensors = (self.placed as i64).wrapping_sub(self.launch.table as i64);
        Ok(())
    }

    fn pointers(&mut self, i: usize, word: usize) {
        let (args, tensor): (_, &TensorPlan) = (self.args, &self.plan.tensors[i]);
        let buffers = &args.state[tensor.buffers()];
        let address = |data: *mut c_void| data as u64;
        let words = &mut self.launch.words[word..word + STATES + buffers.len()];
        words[0] = address(args.params[i].data);
        words[1] = address(args.grads[i].data);
        words[2] = args.updates.map_or(0, |updates| address(updates[i].data));
        words[3] = match (tensor.info.weights.beside(), buffers.last()) {
            (Some(_), Some(beside)) => address(beside.data),
            _ => 0,
        };
        for (word, buffer) in words[STATES..].iter_mut().zip(buffers) {
            *word = address(buffer.data);
        }
    }
}
