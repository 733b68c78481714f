//! Offload: the states of a plan are in pinned host memory, while parameters and gradients are on a
//! CUDA device. A step goes through the tensors in chunks, and the copies of one chunk run beside the
//! step of another.
//!
//! A plan of a CPU context is stepped on the host: gradients come to two slots of pinned memory,
//! parameters (of which the host keeps a copy, with the master weights among the states) go back. A
//! plan of a CUDA context is stepped on the device: states come to two slots of device memory and
//! go back. Each chunk is stepped by a plan of its own, made of the same descriptors; random
//! numbers, thresholds and overrides depend on nothing else, so the bits are those of one step of
//! all tensors.

#![expect(unsafe_code, reason = "copies and steps the caller's raw buffers")]

use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::{Arena, Context, CudaContext, Lanes, Mark, Pinned};
use crate::error::{Error, Result, Status, invalid, unsupported};
use crate::layout::{div_ceil, index};
use crate::plan::{ARENA_ALIGN, Plan, TensorPlan};
use crate::reserve;
use crate::spec::Optimizer;
use crate::step::{Buffer, HyperSource, NonFinite, Stage, StepArgs};

/// While one slot is stepped, the other is filled or emptied.
const SLOTS: usize = 2;

/// Consecutive tensors that share a slot of the staging memory.
#[derive(Debug)]
struct Chunk {
    /// Of these tensors alone.
    plan: Plan,
    tensors: Range<usize>,
    /// Their buffers in the whole plan's list.
    buffers: Range<usize>,
    /// In the chunk's slot: gradients (stepped on the host), or state buffers.
    staged: Vec<Buffer>,
}

/// Memory of a context; freed on drop.
#[derive(Debug)]
struct Memory {
    context: Arc<Context>,
    arena: Option<Arena>,
    bytes: i64,
}

impl Memory {
    fn new(context: &Arc<Context>, bytes: i64) -> Result<Self> {
        Ok(Self {
            context: Arc::clone(context),
            arena: Some(context.allocate(bytes, std::ptr::null_mut())?),
            bytes,
        })
    }

    fn buffer(&self) -> Buffer {
        Buffer {
            data: self
                .arena
                .as_ref()
                .map_or(std::ptr::null_mut(), Arena::data),
            bytes: self.bytes,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(arena) = self.arena.take() {
            self.context.free(arena, std::ptr::null_mut());
        }
    }
}

/// The two slots, in the memory where the step runs.
#[derive(Debug)]
enum Staging {
    Host(Pinned),
    Device(Memory),
}

impl Staging {
    fn data(&self) -> *mut c_void {
        match self {
            Self::Host(pinned) => pinned.data(),
            Self::Device(memory) => memory.buffer().data,
        }
    }
}

/// What a step through an offload takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadInfo {
    /// Whether the step runs on the host.
    pub on_host: bool,
    /// Chunks of a step.
    pub chunks: usize,
    /// Of both slots together: pinned memory where the step runs on the host, else device memory.
    pub staging_bytes: i64,
    /// Pinned memory of the states and, where the step runs on the host, of the parameters.
    pub host_bytes: i64,
    /// What a step copies to the device.
    pub bytes_to_device: i64,
    /// What a step copies to the host.
    pub bytes_to_host: i64,
    /// Tensors of the last call, from the first on, whose step was done (on the host) or enqueued:
    /// all of them unless it failed.
    pub stepped: usize,
}

/// See the module's page.
#[derive(Debug)]
pub struct Offload {
    plan: Arc<Plan>,
    chunks: Vec<Chunk>,
    /// One per tensor: the host's copies. None where the step runs on the device.
    params: Vec<Buffer>,
    /// One per state buffer of the plan, on the host.
    state: Vec<Buffer>,
    // Dropped in this order, after `drop` has waited for the lanes.
    lanes: Lanes,
    scratch: Memory,
    _staging: Staging,
    _host: Pinned,
    info: OffloadInfo,
    /// As in [`OffloadInfo`]; locked during a step, as there is one staging memory.
    stepped: Mutex<usize>,
}

impl Offload {
    /// Allocates the host's memory, set to zero, and the staging memory, and prepares the chunks.
    ///
    /// `device` is where parameters and gradients are: a CUDA context, which may be left out if the
    /// plan has one. `staging_bytes` limits both slots together; 0 stands for the least, twice the
    /// largest tensor's gradient (stepped on the host) or states (on the device).
    ///
    /// # Errors
    /// `InvalidArgument` for a limit below the least, a device that is not the plan's or a missing
    /// one; `Unsupported` for a plan without a step; `OutOfMemory`, `CudaOutOfMemory`, `CudaError`.
    pub fn new(plan: Arc<Plan>, device: Option<Arc<Context>>, staging_bytes: i64) -> Result<Self> {
        if plan.spec.optimizer == Optimizer::None {
            return Err(unsupported(
                "the plan's optimizer is none: it has no step that could be offloaded",
            ));
        }
        let on_host = matches!(*plan.context, Context::Cpu(_));
        let device = device_of(&plan, device)?;
        let cuda = cuda(&device)?;
        let slot = slot_bytes(&plan, on_host, staging_bytes)?;
        let of_params = |tensor: &TensorPlan| {
            if on_host {
                padded(param_bytes(tensor))
            } else {
                0
            }
        };
        let host_bytes = plan.arena_bytes + plan.tensors.iter().map(of_params).sum::<i64>();
        let lanes = cuda.lanes()?;
        let host = cuda.pinned(host_bytes)?;
        let total = SLOTS as i64 * slot;
        let staging = if on_host {
            Staging::Host(cuda.pinned(total)?)
        } else {
            Staging::Device(Memory::new(&plan.context, total)?)
        };
        let chunks = chunks(&plan, on_host, slot, staging.data())?;
        let at = |offset: i64, bytes: i64| Buffer {
            data: host.data().wrapping_byte_add(index(offset)),
            bytes,
        };
        let mut state = reserve::list(plan.buffers.len())?;
        state.extend(
            plan.buffers
                .iter()
                .map(|info| at(info.arena_offset, info.bytes)),
        );
        let mut params = reserve::list(if on_host { plan.tensors.len() } else { 0 })?;
        if on_host {
            let mut offset = plan.arena_bytes;
            for tensor in &plan.tensors {
                let bytes = param_bytes(tensor);
                params.push(at(offset, bytes));
                offset += padded(bytes);
            }
        }
        let of_chunks = chunks.iter().map(|chunk| chunk.plan.scratch_bytes()).max();
        let scratch_bytes = plan.scratch_bytes().max(of_chunks.unwrap_or(0));
        let scratch = Memory::new(&plan.context, scratch_bytes)?;
        // Device memory is zeroed there, and steps are not ordered with it.
        lanes.synchronize(std::ptr::null_mut())?;
        let sum = |buffers: &[Buffer]| buffers.iter().map(|buffer| buffer.bytes).sum::<i64>();
        let (bytes_to_device, bytes_to_host) = if on_host {
            let grads = chunks.iter().map(|chunk| sum(&chunk.staged)).sum();
            (sum(&params), grads)
        } else {
            (plan.arena_bytes, plan.arena_bytes)
        };
        Ok(Self {
            info: OffloadInfo {
                on_host,
                chunks: chunks.len(),
                staging_bytes: total,
                host_bytes,
                bytes_to_device,
                bytes_to_host,
                stepped: 0,
            },
            scratch,
            plan,
            chunks,
            params,
            state,
            lanes,
            _staging: staging,
            _host: host,
            stepped: Mutex::new(0),
        })
    }

    /// The plan that it was made from.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Sizes, and how far the last step came.
    #[must_use]
    pub fn info(&self) -> OffloadInfo {
        let stepped = *self.stepped.lock().unwrap_or_else(PoisonError::into_inner);
        OffloadInfo {
            stepped,
            ..self.info
        }
    }

    /// The host's copies of the parameters, one per tensor; empty where the step runs on the device.
    /// They are what is stepped: the caller copies the initial parameters there.
    #[must_use]
    pub fn params(&self) -> &[Buffer] {
        &self.params
    }

    /// The state buffers on the host, in the plan's order. All zero at first.
    #[must_use]
    pub fn state(&self) -> &[Buffer] {
        &self.state
    }

    /// Steps all tensors, in the order of `stream`: the work enqueued there before has finished
    /// before a gradient is read, and what is enqueued later finds new parameters and, on the host,
    /// new states. On the host the step is done on return, else it is enqueued.
    ///
    /// In `args`, parameters and gradients are device memory; `state` and `scratch` are the
    /// offload's own and empty. Hyper-parameters in memory, and `skipped`, are in the memory space of
    /// the plan.
    ///
    /// # Errors
    /// As for [`Plan::step`]; `Unsupported` for `updates`, `offsets`, a counted step number and
    /// [`NonFinite::SkipStep`]. Nothing is done then, unless the status is `CudaError`: the text and
    /// [`OffloadInfo::stepped`] then say how many tensors were stepped, and no work is left behind.
    ///
    /// # Safety
    /// As for [`Plan::step`]; `stream` is one of the device. Steps on different streams, and uses of
    /// the host's buffers, are ordered by the caller.
    pub unsafe fn step(&self, args: &StepArgs<'_>, stream: *mut c_void) -> Result<()> {
        let mut stepped = self.stepped.lock().unwrap_or_else(PoisonError::into_inner);
        check(args)?;
        let args = StepArgs {
            state: &self.state,
            scratch: self.scratch.buffer(),
            ..*args
        };
        self.plan.check_step(&args)?;
        *stepped = 0;
        // SAFETY: the caller's promise.
        let result = unsafe {
            if self.info.on_host {
                self.step_on_host(&args, stream, &mut stepped)
            } else {
                self.step_on_device(&args, stream, &mut stepped)
            }
        };
        result.map_err(|error| {
            // Kernels of the device's step are on the caller's stream.
            self.lanes.drain((!self.info.on_host).then_some(stream));
            let text = format!(
                "{} of {} tensors were stepped",
                *stepped,
                self.plan.tensors.len()
            );
            error.within(&text)
        })
    }

    /// While a chunk is stepped, the next one's gradients come and the last one's parameters go.
    ///
    /// # Safety
    /// As for [`Offload::step`].
    unsafe fn step_on_host(
        &self,
        args: &StepArgs<'_>,
        stream: *mut c_void,
        stepped: &mut usize,
    ) -> Result<()> {
        let (load, store) = (self.lanes.load(), self.lanes.store());
        // SAFETY: buffers were checked; the staging memory is this step's, see below.
        unsafe {
            self.lanes.record(Mark::Start, stream)?;
            self.lanes.wait(load, Mark::Start)?;
            for number in 0..SLOTS {
                self.fetch(args, number)?;
            }
            for (number, chunk) in self.chunks.iter().enumerate() {
                // Behind it is also what the caller's stream did before: nobody reads the parameters.
                self.lanes.wait_on_host(Mark::Loaded(number % SLOTS))?;
                let params = &self.params[chunk.tensors.clone()];
                let state = &self.state[chunk.buffers.clone()];
                self.step_chunk(chunk, args, [params, &chunk.staged, state], stream)?;
                *stepped = chunk.tensors.end;
                for (from, to) in params.iter().zip(&args.params[chunk.tensors.clone()]) {
                    let bytes = index(from.bytes);
                    self.lanes.to_device(from.data, to.data, bytes, store)?;
                }
                // The step above has read what this overwrites.
                self.fetch(args, number + SLOTS)?;
            }
            // The next step may change the host's parameters only when these copies are done.
            self.lanes.record(Mark::Stored(0), store)?;
            self.lanes.wait(stream, Mark::Stored(0))
        }
    }

    /// Enqueues the copies of a chunk's gradients to its slot, if there is such a chunk.
    ///
    /// # Safety
    /// As for [`Offload::step`]; nobody uses the slot.
    unsafe fn fetch(&self, args: &StepArgs<'_>, number: usize) -> Result<()> {
        let Some(chunk) = self.chunks.get(number) else {
            return Ok(());
        };
        let load = self.lanes.load();
        let grads = &args.grads[chunk.tensors.clone()];
        // SAFETY: the caller's promise.
        unsafe {
            for (from, to) in grads.iter().zip(&chunk.staged) {
                let bytes = index(to.bytes);
                self.lanes.to_host(from.data, to.data, bytes, load)?;
            }
            self.lanes.record(Mark::Loaded(number % SLOTS), load)
        }
    }

    /// While a chunk is stepped, the next one's states come and the last one's go.
    ///
    /// # Safety
    /// As for [`Offload::step`].
    unsafe fn step_on_device(
        &self,
        args: &StepArgs<'_>,
        stream: *mut c_void,
        stepped: &mut usize,
    ) -> Result<()> {
        let (load, store) = (self.lanes.load(), self.lanes.store());
        let Some(last) = self.chunks.len().checked_sub(1) else {
            return Ok(());
        };
        // SAFETY: buffers were checked; each use of a slot waits for the one before.
        unsafe {
            self.lanes.record(Mark::Start, stream)?;
            self.lanes.wait(load, Mark::Start)?;
            for (number, chunk) in self.chunks.iter().enumerate() {
                let slot = number % SLOTS;
                if number >= SLOTS {
                    self.lanes.wait(load, Mark::Stored(slot))?;
                }
                let (host, device) = self.places(chunk);
                let bytes = index(chunk.plan.arena_bytes);
                self.lanes.to_device(host, device, bytes, load)?;
                self.lanes.record(Mark::Loaded(slot), load)?;
                self.lanes.wait(stream, Mark::Loaded(slot))?;
                let params = &args.params[chunk.tensors.clone()];
                let grads = &args.grads[chunk.tensors.clone()];
                self.step_chunk(chunk, args, [params, grads, &chunk.staged], stream)?;
                self.lanes.record(Mark::Stepped(slot), stream)?;
                self.lanes.wait(store, Mark::Stepped(slot))?;
                self.lanes.to_host(device, host, bytes, store)?;
                self.lanes.record(Mark::Stored(slot), store)?;
                *stepped = chunk.tensors.end;
            }
            self.lanes.wait(stream, Mark::Stored(last % SLOTS))
        }
    }

    /// Where a chunk's states are on the host, and in its slot. They lie alike in both, since arenas
    /// of plans are laid out buffer by buffer.
    fn places(&self, chunk: &Chunk) -> (*mut c_void, *mut c_void) {
        let first = |list: &[Buffer]| {
            list.first()
                .map_or(std::ptr::null_mut(), |first| first.data)
        };
        (
            first(&self.state[chunk.buffers.clone()]),
            first(&chunk.staged),
        )
    }

    /// # Safety
    /// As for [`Offload::step`]; `memory` is valid where the plan steps.
    unsafe fn step_chunk(
        &self,
        chunk: &Chunk,
        args: &StepArgs<'_>,
        [params, grads, state]: [&[Buffer]; 3],
        stream: *mut c_void,
    ) -> Result<()> {
        let hyper = match args.hyper {
            HyperSource::Host(groups, step) => {
                HyperSource::Host(&groups[..chunk.plan.groups], step)
            }
            memory => memory,
        };
        let args = StepArgs {
            params,
            grads,
            state,
            hyper,
            ..*args
        };
        // SAFETY: the caller's promise.
        unsafe { chunk.plan.step(&args, Stage::All, stream) }
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        self.lanes.drain(None);
    }
}

/// Refuses what a step in chunks cannot do.
fn check(args: &StepArgs<'_>) -> Result<()> {
    if !args.state.is_empty() || args.scratch != Buffer::NONE {
        return Err(invalid(
            "state or scratch is given; an offload has its own, so both are empty",
        ));
    }
    let reason = if args.updates.is_some() {
        "updates are given; an offload steps parameters in place"
    } else if args.offsets.is_some() {
        "offsets are given; an offload takes the plan's"
    } else if matches!(args.hyper, HyperSource::Counted { .. }) {
        "flags has STEP_COUNTED; an offload steps in parts, none of which may raise the number"
    } else if args.nonfinite == NonFinite::SkipStep {
        "nonfinite is SKIP_STEP; an offload has stepped the first tensors before it sees the last \
         gradient (check the norm and use the skip flag)"
    } else {
        return Ok(());
    };
    Err(unsupported(reason))
}

/// Where parameters and gradients are.
fn device_of(plan: &Plan, device: Option<Arc<Context>>) -> Result<Arc<Context>> {
    match (&*plan.context, device) {
        (Context::Cpu(_), None) => Err(Error::new(
            Status::NullPointer,
            "device is null; a plan of a CPU context does not say where the gradients are",
        )),
        (Context::Cpu(_), Some(device)) => Ok(device),
        (Context::Cuda(_), None) => Ok(Arc::clone(&plan.context)),
        (Context::Cuda(own), Some(device)) => {
            if cuda(&device)?.ordinal() != own.ordinal() {
                return Err(invalid(format!(
                    "device is number {}, the plan's is {}",
                    cuda(&device)?.ordinal(),
                    own.ordinal()
                )));
            }
            Ok(Arc::clone(&plan.context))
        }
    }
}

fn cuda(context: &Context) -> Result<&CudaContext> {
    match context {
        Context::Cuda(cuda) => Ok(cuda),
        Context::Cpu(_) => Err(invalid(
            "device is a CPU context; parameters and gradients are on a CUDA device",
        )),
    }
}

fn param_bytes(tensor: &TensorPlan) -> i64 {
    tensor.numel * tensor.info.param_dtype.size() as i64
}

fn grad_bytes(tensor: &TensorPlan) -> i64 {
    tensor.numel * tensor.info.grad_dtype.size() as i64
}

fn padded(bytes: i64) -> i64 {
    div_ceil(bytes, ARENA_ALIGN) * ARENA_ALIGN
}

/// What a tensor takes of a slot.
fn staged_bytes(plan: &Plan, on_host: bool, tensor: &TensorPlan) -> i64 {
    if on_host {
        return padded(grad_bytes(tensor));
    }
    let buffers = plan.buffers[tensor.buffers()].iter();
    buffers.map(|buffer| padded(buffer.bytes)).sum()
}

/// The size of a slot under the caller's limit of both.
fn slot_bytes(plan: &Plan, on_host: bool, limit: i64) -> Result<i64> {
    let of = |tensor: &TensorPlan| staged_bytes(plan, on_host, tensor);
    let largest = plan.tensors.iter().max_by_key(|tensor| of(tensor));
    let least = largest.map_or(0, of);
    if limit < 0 {
        return Err(invalid(format!("staging_bytes is {limit}")));
    }
    if limit == 0 {
        return Ok(least);
    }
    let slot = limit / SLOTS as i64 / ARENA_ALIGN * ARENA_ALIGN;
    match largest {
        Some(tensor) if slot < least => Err(invalid(format!(
            "staging_bytes is {limit}; two slots for the largest tensor, {}, take {}",
            tensor.info.name,
            SLOTS as i64 * least
        ))),
        // More than all tensors is of no use.
        _ => Ok(slot.min(plan.tensors.iter().map(of).sum())),
    }
}

/// Cuts a plan into chunks of as many tensors as a slot holds.
fn chunks(plan: &Plan, on_host: bool, slot: i64, staging: *mut c_void) -> Result<Vec<Chunk>> {
    let mut chunks = Vec::new();
    let mut first = 0;
    while first < plan.tensors.len() {
        let (mut end, mut bytes) = (first, 0);
        while let Some(tensor) = plan.tensors.get(end) {
            bytes += staged_bytes(plan, on_host, tensor);
            if bytes > slot {
                break;
            }
            end += 1;
        }
        let tensors = &plan.tensors[first..end];
        let infos = tensors.iter().map(|tensor| tensor.info.clone()).collect();
        let part = Plan::new(Arc::clone(&plan.context), &plan.spec, infos)?;
        let start = staging.wrapping_byte_add(chunks.len() % SLOTS * index(slot));
        let at = |offset: i64, bytes: i64| Buffer {
            data: start.wrapping_byte_add(index(offset)),
            bytes,
        };
        let staged = if on_host {
            let mut offset = 0;
            let mut grad = |tensor: &TensorPlan| {
                let bytes = grad_bytes(tensor);
                let buffer = at(offset, bytes);
                offset += padded(bytes);
                buffer
            };
            tensors.iter().map(&mut grad).collect()
        } else {
            let buffers = part.buffers.iter();
            buffers
                .map(|info| at(info.arena_offset, info.bytes))
                .collect()
        };
        let buffers = plan.tensors[first].first_buffer..plan.tensors[end - 1].buffers().end;
        chunks.push(Chunk {
            plan: part,
            tensors: first..end,
            buffers,
            staged,
        });
        first = end;
    }
    Ok(chunks)
}
