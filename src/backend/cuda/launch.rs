//! One call of a plan: its launches in their order, with their parameters. What runs them is given,
//! the driver or the tests' host.

use std::ffi::c_void;

use super::kernels::Kernel;
use super::params::{
    ADAM, AMSGRAD, LAUNCH_WORDS, Launch, MAXIMIZE, SKIP_ALL, SKIP_BLOCKS, SKIP_GLOBAL, SKIP_STEP,
    SKIP_TENSORS, STATES, Scalars, UPDATES,
};
use super::table::{List, Lists};
use crate::backend::Call;
use crate::error::{Result, unsupported};
use crate::numerics::FpEnv;
use crate::plan::{Pass, Plan, TensorPlan};
use crate::spec::{Optimizer, Spec};
use crate::step::{HyperSource, NonFinite, StepArgs};

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
    mut run: impl FnMut(Work<'_>) -> Result<()>,
) -> Result<()> {
    let (plan, args) = (call.plan, call.args);
    check(plan, args)?;
    let scan = matches!(args.nonfinite, NonFinite::SkipTensor | NonFinite::SkipStep);
    let global = !lists.collect_global.is_empty();
    let mut launch = Filled::new(plan, args, table);
    if call.pass == Some(Pass::Maxima) || (call.pass.is_none() && (scan || global)) {
        run(Work::Zero {
            data: args.scratch.data,
            bytes: 4 * plan.scratch.maxima,
        })?;
        let rest = if scan { &lists.collect_rest[..] } else { &[] };
        for list in lists.collect_global.iter().chain(rest) {
            run(launch.of(list))?;
        }
    }
    if call.pass.is_none_or(|pass| pass == Pass::Apply) {
        for list in lists.apply.iter().chain(&lists.finish) {
            run(launch.of(list))?;
        }
    }
    Ok(())
}

/// Refuses what a step's arguments ask for and no kernel does.
fn check(plan: &Plan, args: &StepArgs<'_>) -> Result<()> {
    for (tensor, offset) in plan.tensors.iter().zip(args.offsets.unwrap_or_default()) {
        if offset.is_some_and(|offset| offset != tensor.offset) {
            return Err(unsupported(format!(
                "offset of {}: this version's CUDA kernels take the plan's offsets",
                tensor.info.name
            )));
        }
    }
    Ok(())
}

/// Flags of a spec.
fn flags_of(spec: &Spec) -> i32 {
    let flag = |set: bool, flag: i32| if set { flag } else { 0 };
    flag(spec.optimizer == Optimizer::Adam, ADAM)
        | flag(spec.amsgrad, AMSGRAD)
        | flag(spec.maximize, MAXIMIZE)
}

/// A launch's parameters, filled anew for each list.
struct Filled<'a> {
    plan: &'a Plan,
    args: &'a StepArgs<'a>,
    launch: Launch,
}

impl<'a> Filled<'a> {
    fn new(plan: &'a Plan, args: &'a StepArgs<'a>, table: *const c_void) -> Self {
        let (hyper, step_number, step) = match args.hyper {
            HyperSource::Host(_, step) => (std::ptr::null(), std::ptr::null(), step),
            HyperSource::Memory { hyper, step } => (hyper, step, 0),
        };
        let skip = match args.hyper {
            HyperSource::Host(groups, _) => groups.iter().any(|hyper| hyper.skip != 0.0),
            HyperSource::Memory { .. } => false,
        };
        let policy = match args.nonfinite {
            NonFinite::Default => SKIP_BLOCKS | SKIP_GLOBAL,
            NonFinite::SkipBlock => SKIP_BLOCKS,
            NonFinite::SkipTensor => SKIP_TENSORS,
            NonFinite::SkipStep => SKIP_STEP,
            NonFinite::Propagate => 0,
        };
        Self {
            plan,
            args,
            launch: Launch {
                table,
                tensors: 0,
                segments: 0,
                tasks: 0,
                hyper,
                step_number,
                skipped: args.skipped,
                statistics: args.scratch.data.cast(),
                tickets: std::ptr::null_mut(),
                seed: plan.spec.seed,
                step,
                flags: flags_of(&plan.spec)
                    | policy
                    | if args.updates.is_some() { UPDATES } else { 0 }
                    | if skip { SKIP_ALL } else { 0 },
                // At most 2^16 groups, and what `table::narrow` allows.
                groups: plan.groups as i32,
                tensor_count: plan.tensors.len() as i32,
                words: [0; LAUNCH_WORDS],
            },
        }
    }

    fn of(&mut self, list: &List) -> Work<'_> {
        let _env = FpEnv::ieee();
        self.launch.tensors = list.tensors;
        self.launch.segments = list.segments;
        self.launch.tasks = list.tasks;
        if let HyperSource::Host(groups, step) = self.args.hyper {
            for &(group, word) in &list.groups {
                let scalars = Scalars::new(&groups[group], step, self.launch.flags);
                let to = self.launch.words[word..].as_mut_ptr().cast::<Scalars>();
                // SAFETY: the plan has left words for them; both are aligned to 4.
                unsafe { to.write(scalars) };
            }
        }
        for &(i, word) in &list.members {
            self.pointers(i, word);
        }
        Work::Kernel {
            kernel: list.kernel,
            grid: list.grid,
            launch: &self.launch,
        }
    }

    fn pointers(&mut self, i: usize, word: usize) {
        let (args, tensor): (_, &TensorPlan) = (self.args, &self.plan.tensors[i]);
        let buffers = &args.state[tensor.first_buffer..tensor.first_buffer + tensor.buffer_count];
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
