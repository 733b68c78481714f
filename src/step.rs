//! The optimizer step: arguments, their validation, and its stages.
//!
//! The collecting stages reduce what must be known of whole tensors before any state is coded
//! (flags of non-finite gradients, maxima, sums of squares) into integers; the last stage updates
//! parameters and states. A trainer whose tensors are sharded all-reduces each stage's integers and
//! gets the bits of one device.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use crate::backend::{Call, Context};
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status, invalid, unsupported};
use crate::layout::Grid;
use crate::numerics::{FpEnv, Hyper};
use crate::plan::{BufferInfo, Pass, Plan, StatePlan};
use crate::spec::Optimizer;
use crate::weights::Weights;

/// A piece of the caller's memory, in the memory space of the plan's context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Buffer {
    /// First byte; may be null if `bytes` is 0.
    pub data: *mut c_void,
    /// Size.
    pub bytes: i64,
}

impl Buffer {
    /// No memory.
    pub const NONE: Self = Self {
        data: std::ptr::null_mut(),
        bytes: 0,
    };
}

// SAFETY: an address and a size; whoever dereferences it answers for it.
#[expect(unsafe_code, reason = "a raw address is handed to worker threads")]
unsafe impl Send for Buffer {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a raw address is handed to worker threads")]
unsafe impl Sync for Buffer {}

/// What happens when a gradient is not finite. A gradient counts as non-finite when its square,
/// after scaling, is not finite in f32, since v could not hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum NonFinite {
    /// `SkipTensor` for tensors whose update needs statistics of the whole tensor (which find out
    /// anyway), `SkipBlock` for all others.
    #[default]
    Default = 0,
    /// The block's parameters, codes and scales stay. Refused where scales reach across blocks.
    SkipBlock = 1,
    /// The tensor stays; costs one more read of its gradient unless it has statistics.
    SkipTensor = 2,
    /// All tensors stay; costs one more read of every gradient.
    SkipStep = 3,
    /// NaN spreads into parameters and states, in canonical form.
    Propagate = 4,
}

/// Where the hyper-parameters and the step number are.
#[derive(Clone, Copy, Debug)]
pub enum HyperSource<'a> {
    /// Given by value, one block for each group of the plan, and the number of this step; checked.
    Host(&'a [Hyper], i32),
    /// In the tensors' memory space: for each group eight f32 in the order of [`Hyper`], and an
    /// i32. They are read when the work runs and cannot be checked.
    Memory {
        /// `Hyper::COUNT` values for each group.
        hyper: *const f32,
        /// The number of this step, from 1.
        step: *const i32,
    },
    /// The same, and the number rises by 1 when the work is done, unless the whole step was
    /// skipped: by a skip flag, or by [`NonFinite::SkipStep`].
    Counted {
        /// `Hyper::COUNT` values for each group.
        hyper: *const f32,
        /// The number of this step, from 1; then of the next.
        step: *mut i32,
    },
}

impl HyperSource<'_> {
    /// Where in memory both are, if they are.
    pub(crate) fn memory(&self) -> Option<(*const f32, *const i32)> {
        match *self {
            Self::Host(..) => None,
            Self::Memory { hyper, step } => Some((hyper, step)),
            Self::Counted { hyper, step } => Some((hyper, step.cast_const())),
        }
    }
}

/// Everything a step takes besides the plan and the stream. Slices are in the plan's order.
#[derive(Clone, Copy, Debug)]
pub struct StepArgs<'a> {
    /// One per tensor: the parameter, updated in place unless `updates` is given.
    pub params: &'a [Buffer],
    /// One per tensor.
    pub grads: &'a [Buffer],
    /// One per tensor, in the parameter's dtype: receives the update u instead of p becoming
    /// p + u. May be the gradient's own buffer where the dtypes agree.
    pub updates: Option<&'a [Buffer]>,
    /// One per state buffer of the plan.
    pub state: &'a [Buffer],
    /// At least `Plan::scratch_bytes`, aligned to 8.
    pub scratch: Buffer,
    /// Learning rate and the like.
    pub hyper: HyperSource<'a>,
    /// What to do about NaN and infinity.
    pub nonfinite: NonFinite,
    /// Other places in the global tensors than the plan's, one per tensor (`None`: the plan's).
    pub offsets: Option<&'a [Option<&'a [i64]>]>,
    /// Null, or two i64 counters that rise: blocks skipped, tensors skipped.
    pub skipped: *mut i64,
}

/// Which part of a step to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Fill the statistics of `Plan::stages` with this index; those before it are reduced.
    Collect(usize),
    /// Update, given all statistics.
    Apply,
    /// All of it.
    All,
}

impl Plan {
    /// Runs one step, or one stage of it, on the caller's memory. On a CUDA context the work is
    /// enqueued on `stream`; on the CPU it is done on return.
    ///
    /// # Errors
    /// Any misfit between the arguments and the plan, before anything is written.
    ///
    /// # Safety
    /// Every buffer must be valid memory of its size in the context's memory space, not accessed
    /// by others until the work is done; `hyper`, `step` and `skipped` likewise.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub unsafe fn step(
        &self,
        args: &StepArgs<'_>,
        stage: Stage,
        stream: *mut c_void,
    ) -> Result<()> {
        if self.spec.optimizer == Optimizer::None {
            return Err(unsupported(
                "the plan's optimizer is none: it has no step, only compress and decompress",
            ));
        }
        // Hyper-parameters are judged, and scalars derived, by the same arithmetic on every host.
        let _env = FpEnv::ieee();
        let pass = self.pass(stage)?;
        self.check_step(args)?;
        let call = Call {
            plan: self,
            args,
            pass,
            stream,
        };
        // SAFETY: the caller's promise; sizes, alignment and overlap were checked above.
        unsafe {
            match self.context.as_ref() {
                Context::Cpu(cpu) => {
                    cpu.step(&call)?;
                    if pass.is_none_or(|pass| pass == Pass::Apply) {
                        self.count_step(args);
                    }
                    Ok(())
                }
                Context::Cuda(cuda) => cuda.step(&call),
            }
        }
    }

    /// Raises a step number in host memory, unless the whole step was skipped.
    ///
    /// # Safety
    /// The memory of `args` is valid, its statistics are complete.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    unsafe fn count_step(&self, args: &StepArgs<'_>) {
        let HyperSource::Counted { hyper, step } = args.hyper else {
            return;
        };
        // SAFETY: the caller's promise; a flag for each tensor comes first in the scratch.
        unsafe {
            let asked =
                (0..self.groups).any(|group| (*hyper.cast::<Hyper>().add(group)).skip != 0.0);
            let flags = args.scratch.data.cast::<i32>();
            let found = args.nonfinite == NonFinite::SkipStep
                && (0..self.tensors.len()).any(|i| *flags.add(i) != 0);
            if !asked && !found {
                *step = (*step).wrapping_add(1);
            }
        }
    }

    /// The one pass of a stage, `None` for all.
    fn pass(&self, stage: Stage) -> Result<Option<Pass>> {
        match stage {
            Stage::All => Ok(None),
            Stage::Apply => Ok(Some(Pass::Apply)),
            Stage::Collect(index) => match self.passes().nth(index) {
                Some((pass, ..)) => Ok(Some(pass)),
                None => Err(invalid(format!(
                    "stage is {index}; the plan has {} collecting stages",
                    self.passes().count()
                ))),
            },
        }
    }

    /// Checks a list of all state buffers against the plan.
    ///
    /// # Errors
    /// A null, misaligned or wrongly sized buffer, named by tensor, state and part.
    pub(crate) fn check_state(&self, state: &[Buffer]) -> Result<()> {
        count("state buffers", state.len(), self.buffers.len())?;
        for (buffer, info) in state.iter().zip(&self.buffers) {
            check(*buffer, info.bytes, info.dtype, || self.buffer_name(info))?;
        }
        Ok(())
    }

    /// `state h0.attn.weight/m/codes`.
    pub(crate) fn buffer_name(&self, info: &BufferInfo) -> String {
        format!("state {}", self.entry_name(info))
    }

    /// `h0.attn.weight/m/codes`: as in checkpoints.
    pub(crate) fn entry_name(&self, info: &BufferInfo) -> String {
        format!(
            "{}/{}/{}",
            self.tensors[info.tensor].info.name, info.state, info.part
        )
    }

    pub(crate) fn check_step(&self, args: &StepArgs<'_>) -> Result<()> {
        count("params", args.params.len(), self.tensors.len())?;
        count("grads", args.grads.len(), self.tensors.len())?;
        self.check_state(args.state)?;
        if let Some(updates) = args.updates {
            count("updates", updates.len(), self.tensors.len())?;
        }
        for (i, tensor) in self.tensors.iter().enumerate() {
            let name = &tensor.info.name;
            let size = |dtype: Dtype| tensor.numel * dtype.size() as i64;
            let (p, g) = (tensor.info.param_dtype, tensor.info.grad_dtype);
            check(args.params[i], size(p), p, || {
                format!("params[{i}] ({name})")
            })?;
            check(args.grads[i], size(g), g, || format!("grads[{i}] ({name})"))?;
            if let Some(updates) = args.updates {
                check(updates[i], size(p), p, || format!("updates[{i}] ({name})"))?;
            }
            if args.nonfinite == NonFinite::SkipBlock && tensor.needs_statistics() {
                return Err(unsupported(format!(
                    "nonfinite is SKIP_BLOCK, but the update of {name} reaches across blocks \
                     (rank-1 and other scales, factors); use DEFAULT or SKIP_TENSOR"
                )));
            }
            if args.updates.is_some() && tensor.info.weights != Weights::Plain {
                return Err(unsupported(format!(
                    "updates are given, but {name} has weights {}, which are stepped in place",
                    tensor.info.weights.name()
                )));
            }
        }
        let scratch = args.scratch;
        if scratch.bytes < self.scratch_bytes() {
            return Err(Error::new(
                Status::BufferSize,
                format!(
                    "scratch has {} bytes, the plan needs {}",
                    scratch.bytes,
                    self.scratch_bytes()
                ),
            ));
        }
        check(scratch, scratch.bytes, Dtype::I64, || "scratch".to_owned())?;
        if !args.skipped.is_aligned() {
            return Err(misaligned("skipped", args.skipped as usize, 8));
        }
        self.check_hyper(&args.hyper)?;
        self.check_offsets(args.offsets)?;
        self.overlap.check(self, args)
    }

    fn check_hyper(&self, source: &HyperSource) -> Result<()> {
        match *source {
            HyperSource::Memory { .. } | HyperSource::Counted { .. } => {
                let Some((hyper, step)) = source.memory() else {
                    return Ok(());
                };
                for (name, address) in [("hyper", hyper as usize), ("step", step as usize)] {
                    if address == 0 {
                        return Err(Error::new(
                            Status::NullPointer,
                            format!("{name} is null; hyper and step in memory come together"),
                        ));
                    }
                    if !address.is_multiple_of(4) {
                        return Err(misaligned(name, address, 4));
                    }
                }
                Ok(())
            }
            HyperSource::Host(groups, step) => {
                if groups.len() != self.groups {
                    return Err(invalid(format!(
                        "{} blocks of hyper-parameters are given; the plan's tensors have {} \
                         groups",
                        groups.len(),
                        self.groups
                    )));
                }
                groups.iter().try_for_each(check_values)?;
                if step < 1 {
                    return Err(invalid(format!("step is {step}; steps count from 1")));
                }
                Ok(())
            }
        }
    }

    fn check_offsets(&self, offsets: Option<&[Option<&[i64]>]>) -> Result<()> {
        let Some(offsets) = offsets else {
            return Ok(());
        };
        count("offsets", offsets.len(), self.tensors.len())?;
        for (tensor, offset) in self.tensors.iter().zip(offsets) {
            let Some(offset) = offset else { continue };
            let name = &tensor.info.name;
            count(
                &format!("axes of the offset of {name}"),
                offset.len(),
                tensor.offset.len(),
            )?;
            for (axis, &start) in offset.iter().enumerate() {
                let (extent, global) = (tensor.info.shape[axis], tensor.global_shape[axis]);
                if start < 0 || start > global - extent {
                    return Err(invalid(format!(
                        "offset of {name}: axis {axis} starts at {start}, but extent {extent} must \
                         lie in {global}"
                    )));
                }
            }
            if *offset != tensor.offset.as_slice() {
                // Nothing but the plan tells a later decompress where the codes were made.
                let dithered = |state: &StatePlan| state.quantizer.dither;
                if tensor.states.iter().any(dithered) {
                    return Err(unsupported(format!(
                        "offset of {name}: a state with dither, which depends on the place, cannot \
                         move from the plan's"
                    )));
                }
                Grid::new(
                    &tensor.global_shape,
                    offset,
                    &tensor.info.shape,
                    tensor.grid.block,
                )
                .map_err(|error| error.within(&format!("offset of {name}")))?;
            }
        }
        Ok(())
    }
}

fn check_values(hyper: &Hyper) -> Result<()> {
    let finite = [
        ("lr", hyper.lr),
        ("weight_decay", hyper.weight_decay),
        ("grad_scale", hyper.grad_scale),
        ("clip_factor", hyper.clip_factor),
    ];
    for (name, value) in finite {
        if !value.is_finite() {
            return Err(invalid(format!("{name} is {value}; it must be finite")));
        }
    }
    for (name, value) in [("beta1", hyper.beta1), ("beta2", hyper.beta2)] {
        if !(0.0..1.0).contains(&value) {
            return Err(invalid(format!("{name} is {value}; it must be in [0, 1)")));
        }
    }
    if !(hyper.eps > 0.0 && hyper.eps.is_finite()) {
        return Err(invalid(format!(
            "eps is {}; it must be positive",
            hyper.eps
        )));
    }
    if hyper.skip.is_nan() {
        return Err(invalid("skip is NaN; it must be 0 or 1"));
    }
    Ok(())
}

pub(crate) fn count(what: &str, got: usize, want: usize) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(invalid(format!("{what}: {got} given, the plan has {want}")))
}

fn misaligned(name: &str, address: usize, align: usize) -> Error {
    Error::new(
        Status::Misaligned,
        format!("{name} is at {address:#x}, which is not a multiple of {align}"),
    )
}

pub(crate) fn check(
    buffer: Buffer,
    bytes: i64,
    dtype: Dtype,
    name: impl Fn() -> String,
) -> Result<()> {
    if buffer.bytes != bytes {
        return Err(Error::new(
            Status::BufferSize,
            format!(
                "{} has {} bytes, the plan has {bytes}",
                name(),
                buffer.bytes
            ),
        ));
    }
    if bytes == 0 {
        return Ok(());
    }
    let address = buffer.data as usize;
    if address == 0 {
        return Err(Error::new(
            Status::NullPointer,
            format!("{} is null", name()),
        ));
    }
    if !address.is_multiple_of(dtype.size()) {
        return Err(misaligned(&name(), address, dtype.size()));
    }
    // At most 2^60 bytes, so the end can be computed; memory never wraps round.
    if address.checked_add(bytes.unsigned_abs() as usize).is_none() {
        return Err(invalid(format!("{} ends beyond the address space", name())));
    }
    Ok(())
}

/// Finds overlaps among a call's buffers. Holds the list it sorts, so that steps after the first
/// do not allocate; concurrent calls take turns.
#[derive(Debug)]
pub(crate) struct OverlapCheck {
    intervals: Mutex<Vec<Interval>>,
}

#[derive(Clone, Copy, Debug)]
struct Interval {
    start: usize,
    end: usize,
    written: bool,
    role: Role,
    index: usize,
}

#[derive(Clone, Copy, Debug)]
enum Role {
    Param,
    Grad,
    Update,
    State,
    Input,
    Values,
    Scratch,
    Hyper,
    StepNumber,
    Skipped,
}

impl OverlapCheck {
    pub(crate) fn new(tensors: usize, buffers: usize) -> Self {
        Self {
            intervals: Mutex::new(Vec::with_capacity(3 * tensors + buffers + 4)),
        }
    }

    fn check(&self, plan: &Plan, args: &StepArgs<'_>) -> Result<()> {
        let mut list = self
            .intervals
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        list.clear();
        for (i, &param) in args.params.iter().enumerate() {
            push(&mut list, param, args.updates.is_none(), Role::Param, i);
            let grad = args.grads[i];
            match args.updates {
                // The update may take the gradient's place: each element is read before it is
                // written. One interval then stands for both.
                Some(updates) if updates[i] == grad => {
                    push(&mut list, grad, true, Role::Update, i);
                }
                Some(updates) => {
                    push(&mut list, grad, false, Role::Grad, i);
                    push(&mut list, updates[i], true, Role::Update, i);
                }
                None => push(&mut list, grad, false, Role::Grad, i),
            }
        }
        for (i, &buffer) in args.state.iter().enumerate() {
            push(&mut list, buffer, true, Role::State, i);
        }
        push(&mut list, args.scratch, true, Role::Scratch, 0);
        if let Some((hyper, step)) = args.hyper.memory() {
            let counted = matches!(args.hyper, HyperSource::Counted { .. });
            let at = |address: *const c_void, bytes| Buffer {
                data: address.cast_mut(),
                bytes,
            };
            push(
                &mut list,
                at(hyper.cast(), (4 * Hyper::COUNT * plan.groups) as i64),
                false,
                Role::Hyper,
                0,
            );
            push(&mut list, at(step.cast(), 4), counted, Role::StepNumber, 0);
        }
        if !args.skipped.is_null() {
            push(
                &mut list,
                Buffer {
                    data: args.skipped.cast(),
                    bytes: 16,
                },
                true,
                Role::Skipped,
                0,
            );
        }
        sweep(plan, &mut list)
    }

    pub(crate) fn check_codec(
        &self,
        plan: &Plan,
        inputs: &[Buffer],
        values: &[Buffer],
        buffers: &[Buffer],
        compress: bool,
    ) -> Result<()> {
        let mut list = self
            .intervals
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        list.clear();
        for (i, &buffer) in inputs.iter().enumerate() {
            push(&mut list, buffer, false, Role::Input, i);
        }
        // An average is both: it leaves in f32 and is coded.
        let written = !compress || !inputs.is_empty();
        for (i, &buffer) in values.iter().enumerate() {
            push(&mut list, buffer, written, Role::Values, i);
        }
        for (i, &buffer) in buffers.iter().enumerate() {
            push(&mut list, buffer, compress, Role::State, i);
        }
        sweep(plan, &mut list)
    }
}

fn push(list: &mut Vec<Interval>, buffer: Buffer, written: bool, role: Role, index: usize) {
    if buffer.bytes > 0 {
        let start = buffer.data as usize;
        let end = start.saturating_add(buffer.bytes.unsigned_abs() as usize);
        list.push(Interval {
            start,
            end,
            written,
            role,
            index,
        });
    }
}

/// Sorted by start, an interval overlaps an earlier one if it starts before the largest end so
/// far; that is an error if either of the two is written.
fn sweep(plan: &Plan, list: &mut [Interval]) -> Result<()> {
    list.sort_unstable_by_key(|interval| interval.start);
    let mut last: Option<Interval> = None;
    let mut last_written: Option<Interval> = None;
    for &interval in list.iter() {
        let earlier = if interval.written { last } else { last_written };
        if let Some(earlier) = earlier.filter(|earlier| interval.start < earlier.end) {
            return Err(Error::new(
                Status::Overlap,
                format!(
                    "{} overlaps {}",
                    describe(plan, earlier),
                    describe(plan, interval)
                ),
            ));
        }
        if last.is_none_or(|last| interval.end > last.end) {
            last = Some(interval);
        }
        if interval.written && last_written.is_none_or(|last| interval.end > last.end) {
            last_written = Some(interval);
        }
    }
    Ok(())
}

fn describe(plan: &Plan, interval: Interval) -> String {
    let i = interval.index;
    let tensor = |what: &str| format!("{what}[{i}] ({})", plan.tensors[i].info.name);
    let what = match interval.role {
        Role::Param => tensor("params"),
        Role::Grad => tensor("grads"),
        Role::Update => tensor("updates"),
        // Of convert, the buffers of the other plan: more than there are tensors.
        Role::Input => format!("inputs[{i}]"),
        Role::Values => tensor("values"),
        Role::State => plan.buffer_name(&plan.buffers[i]),
        Role::Scratch => "scratch".to_owned(),
        Role::Hyper => "hyper".to_owned(),
        Role::StepNumber => "step".to_owned(),
        Role::Skipped => "skipped".to_owned(),
    };
    format!("{what} at {:#x}..{:#x}", interval.start, interval.end)
}
