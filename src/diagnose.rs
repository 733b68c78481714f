//! How well the codes hold the states: what a step would make of them, measured before it is taken.
//!
//! Nothing of the caller's is written. Tensor by tensor, the step runs on copies, and the coded
//! states are compared with the fresh ones that they stand for. Off the hot path: it takes the
//! time of the scalar reference and some copies of the largest tensor, all on the host, also where
//! the tensors are on a device.

use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;

use serde::Serialize;

use crate::backend::{Call, Context, CpuContext, Variant};
use crate::counts::Counts;
use crate::error::{Error, Result, Status, unsupported};
use crate::layout::index;
use crate::numerics::{Hyper, power};
use crate::plan::{Format, Plan, TensorPlan};
use crate::reserve::zeros;
use crate::step::{Buffer, HyperSource, NonFinite, Stage, StepArgs};

/// What [`Plan::diagnose`] finds. Numbers that a state does not have are `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnostics {
    /// One per tensor and quantized state.
    pub states: Vec<StateDiagnostics>,
}

/// One quantized state of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StateDiagnostics {
    /// The tensor's name.
    pub tensor: String,
    /// `m`, `v`, ...
    pub state: String,
    /// As in the plan's report.
    pub quantizer: String,
    /// Norm of the error over norm of the state.
    pub relative_error: f64,
    /// Share of elements with the lowest code, among those whose scale is not 0.
    pub lowest_codes: Option<f64>,
    /// Share with the highest code.
    pub highest_codes: Option<f64>,
    /// Blocks whose scale is 0.
    pub dead_blocks: Option<i64>,
    /// All blocks.
    pub blocks: Option<i64>,
    /// For second moments: `1 / (sqrt(v / (1 - beta2^t)) + eps)` of the coded over the fresh
    /// value; the 1 %, 50 % and 99 % quantiles.
    pub preconditioner_ratio: Option<[f64; 3]>,
    /// For first moments: how much longer the coded state is along the fresh one:
    /// `<coded, fresh> / <fresh, fresh> - 1`.
    pub radial_bias: Option<f64>,
}

impl Plan {
    /// Measures, for every quantized state, what coding loses in the step that `args` describe.
    ///
    /// # Errors
    /// As for [`Plan::step`]; `OutOfMemory` of the host; `Unsupported` for shards with scales or
    /// factors of the global tensor.
    ///
    /// On a CUDA context it waits for all of the device's work and copies one tensor after another.
    ///
    /// # Safety
    /// As for [`Plan::step`]; nothing is written.
    #[expect(unsafe_code, reason = "reads the caller's raw buffers")]
    pub unsafe fn diagnose(&self, args: &StepArgs<'_>) -> Result<Diagnostics> {
        self.check_step(args)?;
        let host = match self.context.as_ref() {
            Context::Cpu(_) => Arc::clone(&self.context),
            Context::Cuda(_) => Arc::new(Context::Cpu(CpuContext::new(1, Variant::Auto)?)),
        };
        self.context.synchronize()?;
        let mut states = Vec::new();
        for (i, tensor) in self.tensors.iter().enumerate() {
            if tensor.needs_statistics() && tensor.is_shard() {
                return Err(unsupported(format!(
                    "{} is a shard whose scales or factors belong to the global tensor",
                    tensor.info.name
                )));
            }
            // SAFETY: the caller's promise.
            states.extend(unsafe { self.diagnose_tensor(&host, args, i)? });
        }
        Ok(Diagnostics { states })
    }

    /// # Safety
    /// As for [`Plan::diagnose`].
    #[expect(unsafe_code, reason = "reads the caller's raw buffers")]
    unsafe fn diagnose_tensor(
        &self,
        host: &Arc<Context>,
        args: &StepArgs<'_>,
        i: usize,
    ) -> Result<Vec<StateDiagnostics>> {
        let tensor = &self.tensors[i];
        let plan = self.alone_on(host, i)?;
        let Context::Cpu(cpu) = host.as_ref() else {
            let text = "diagnostics are computed on the host";
            return Err(Error::new(Status::Internal, text));
        };
        // SAFETY: the caller's promise: everything can be read.
        let (hyper, t, mut param, mut grad, mut copies) = unsafe {
            let group = tensor.info.group;
            let in_memory = |hyper: *const f32, step: *const i32| -> Result<(Hyper, i32)> {
                let hyper = hyper.cast::<Hyper>().wrapping_add(group);
                Ok((self.read(hyper)?, self.read(step)?))
            };
            let (hyper, t) = match args.hyper {
                HyperSource::Host(groups, t) => (groups[group], t),
                HyperSource::Memory { hyper, step } => in_memory(hyper, step)?,
                HyperSource::Counted { hyper, step } => in_memory(hyper, step)?,
            };
            let state = &args.state[tensor.buffers()];
            let copies = state.iter().map(|buffer| Copy::of(&self.context, *buffer));
            (
                hyper,
                t,
                Copy::of(&self.context, args.params[i])?,
                Copy::of(&self.context, args.grads[i])?,
                copies.collect::<Result<Vec<_>>>()?,
            )
        };
        let mut scratch = Copy::zeroed(plan.scratch_bytes())?;
        let state: Vec<_> = copies.iter_mut().map(Copy::buffer).collect();
        let hyper = [Hyper { skip: 0.0, ..hyper }];
        let call = StepArgs {
            params: &[param.buffer()],
            grads: &[grad.buffer()],
            updates: None,
            state: &state,
            scratch: scratch.buffer(),
            hyper: HyperSource::Host(&hyper, t),
            nonfinite: NonFinite::Propagate,
            offsets: None,
            skipped: std::ptr::null_mut(),
        };
        let none = std::ptr::null_mut();
        let mut found = Vec::new();
        // SAFETY: copies of the caller's memory.
        unsafe {
            for stage in 0..plan.passes().count() {
                plan.step(&call, Stage::Collect(stage), none)?;
            }
            let fresh = cpu.fresh_states(&Call {
                plan: &plan,
                args: &call,
                pass: None,
                stream: none,
            });
            plan.step(&call, Stage::Apply, none)?;
            for (s, fresh) in fresh.iter().enumerate() {
                if plan.tensors[0].states[s].format == Format::F32 {
                    continue;
                }
                let mut coded: Vec<f32> = zeros(index(tensor.numel))?;
                let buffer = [Buffer {
                    data: coded.as_mut_ptr().cast(),
                    bytes: 4 * tensor.numel,
                }];
                plan.decompress(s, &state, &buffer, none)?;
                found.push(compare(
                    &plan.tensors[0],
                    s,
                    fresh,
                    &coded,
                    &state,
                    &hyper[0],
                    t,
                ));
            }
        }
        Ok(found)
    }

    /// A value in the context's memory.
    ///
    /// # Safety
    /// It can be read, and any bytes are a `T`.
    #[expect(unsafe_code, reason = "reads the caller's raw buffers")]
    unsafe fn read<T>(&self, from: *const T) -> Result<T> {
        let mut value = MaybeUninit::<T>::uninit();
        let (to, bytes) = (value.as_mut_ptr().cast(), size_of::<T>());
        // SAFETY: as many bytes on both sides; the caller's promise.
        unsafe {
            (self.context).read(from.cast(), to, bytes, std::ptr::null_mut())?;
            Ok(value.assume_init())
        }
    }
}

/// What one state's codes make of its values.
fn compare(
    tensor: &TensorPlan,
    s: usize,
    fresh: &[f32],
    coded: &[f32],
    buffers: &[Buffer],
    hyper: &Hyper,
    t: i32,
) -> StateDiagnostics {
    let plan = &tensor.states[s];
    let sum = |term: &dyn Fn(f64, f64) -> f64| -> f64 {
        let pairs = fresh.iter().zip(coded);
        pairs.map(|(x, q)| term(f64::from(*x), f64::from(*q))).sum()
    };
    let squares = sum(&|x, _| x * x);
    let second = plan.name.starts_with('v');
    let counts = match &plan.format {
        Format::Codes(codes) => {
            let buffers = buffers[tensor.state_buffers(s)].iter();
            // SAFETY: copies of the state's buffers, which nobody writes to meanwhile.
            #[expect(unsafe_code, reason = "reads raw copies")]
            let bytes: Vec<_> = buffers
                .map(|buffer| unsafe {
                    std::slice::from_raw_parts(buffer.data.cast::<u8>(), index(buffer.bytes))
                })
                .collect();
            Some(Counts::of(tensor, codes, &bytes))
        }
        _ => None,
    };
    let share = |count: fn(&Counts) -> i64| {
        let counts = counts.as_ref()?;
        let scaled = (tensor.numel - counts.unscaled).max(1);
        Some(count(counts) as f64 / scaled as f64)
    };
    let blocks = counts.as_ref().and_then(|counts| counts.blocks);
    StateDiagnostics {
        tensor: tensor.info.name.clone(),
        state: plan.name.to_owned(),
        quantizer: plan.describe(),
        relative_error: relative_error(fresh, coded),
        lowest_codes: share(|counts| counts.lowest),
        highest_codes: share(|counts| counts.highest),
        dead_blocks: blocks.map(|(dead, _)| dead),
        blocks: blocks.map(|(_, all)| all),
        preconditioner_ratio: second.then(|| quantiles(fresh, coded, hyper, t)).flatten(),
        radial_bias: (!second && squares > 0.0).then(|| sum(&|x, q| x * q) / squares - 1.0),
    }
}

/// Norm of the difference, relative to that of `exact`; 0 where there is none.
#[must_use]
pub fn relative_error(exact: &[f32], found: &[f32]) -> f64 {
    let sum = |term: &dyn Fn(f64, f64) -> f64| -> f64 {
        let pairs = exact.iter().zip(found);
        pairs.map(|(x, y)| term(f64::from(*x), f64::from(*y))).sum()
    };
    let squares = sum(&|x, y| (x - y) * (x - y));
    if squares == 0.0 {
        0.0
    } else {
        (squares / sum(&|x, _| x * x)).sqrt()
    }
}

/// Quantiles of the ratio of preconditioners.
fn quantiles(fresh: &[f32], coded: &[f32], hyper: &Hyper, t: i32) -> Option<[f64; 3]> {
    let bc2 = 1.0 - power(hyper.beta2, t.max(1).cast_unsigned());
    let h = |v: f32| 1.0 / ((f64::from(v) / bc2).sqrt() + f64::from(hyper.eps));
    let pairs = fresh.iter().zip(coded);
    let mut ratios: Vec<f64> = pairs.map(|(x, q)| h(*q) / h(*x)).collect();
    ratios.sort_by(f64::total_cmp);
    let at = |part: f64| ratios[(part * (ratios.len() - 1) as f64).round() as usize];
    (!ratios.is_empty()).then(|| [at(0.01), at(0.5), at(0.99)])
}

/// The caller's bytes, copied, aligned for every dtype.
struct Copy {
    words: Vec<u64>,
    bytes: i64,
}

impl Copy {
    fn zeroed(bytes: i64) -> Result<Self> {
        let words = zeros(index(bytes).div_ceil(8))?;
        Ok(Self { words, bytes })
    }

    /// # Safety
    /// `buffer` is valid memory of the context.
    #[expect(unsafe_code, reason = "reads the caller's raw buffers")]
    unsafe fn of(context: &Context, buffer: Buffer) -> Result<Self> {
        let mut copy = Self::zeroed(buffer.bytes)?;
        if buffer.bytes > 0 {
            let (from, to) = (buffer.data.cast(), copy.words.as_mut_ptr().cast());
            // SAFETY: the caller's promise; the copy is as large.
            unsafe { context.read(from, to, index(buffer.bytes), std::ptr::null_mut())? };
        }
        Ok(copy)
    }

    fn buffer(&mut self) -> Buffer {
        Buffer {
            data: self.words.as_mut_ptr().cast(),
            bytes: self.bytes,
        }
    }
}

impl Diagnostics {
    /// As JSON: an object with the key `states`.
    #[must_use]
    pub fn to_json(&self) -> String {
        // A value of plain fields always serializes.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl fmt::Display for Diagnostics {
    /// A table for people, one line per tensor and state.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.states.iter().map(|state| state.tensor.len());
        let width = names.max().unwrap_or(0).max(6);
        let kinds = self.states.iter().map(|state| state.quantizer.len());
        let kind = kinds.max().unwrap_or(0).max(9);
        writeln!(
            f,
            "{:width$}  {:5} {:kind$} {:>9} {:>8} {:>8} {:>15} {:>24} {:>8}",
            "tensor",
            "state",
            "quantizer",
            "rel.error",
            "lowest",
            "highest",
            "dead blocks",
            "preconditioner 1/50/99 %",
            "radial",
        )?;
        let percent =
            |share: Option<f64>| share.map_or("-".to_owned(), |x| format!("{:.2} %", 100.0 * x));
        for s in &self.states {
            let dead = match (s.dead_blocks, s.blocks) {
                (Some(dead), Some(all)) => format!("{dead}/{all}"),
                _ => "-".to_owned(),
            };
            let ratio = s
                .preconditioner_ratio
                .map_or("-".to_owned(), |[low, middle, high]| {
                    format!("{low:.3} {middle:.3} {high:.3}")
                });
            writeln!(
                f,
                "{:width$}  {:5} {:kind$} {:>9} {:>8} {:>8} {dead:>15} {ratio:>24} {:>8}",
                s.tensor,
                s.state,
                s.quantizer,
                format!("{:.4}", s.relative_error),
                percent(s.lowest_codes),
                percent(s.highest_codes),
                percent(s.radial_bias),
            )?;
        }
        Ok(())
    }
}
