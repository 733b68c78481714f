//! How well the codes hold the states: what a step would make of them, measured before it is taken.
//!
//! Nothing of the caller's is written. Tensor by tensor, the step runs on copies, and the coded
//! states are compared with the fresh ones that they stand for. Off the hot path: it takes the
//! time of the scalar reference and some copies of the largest tensor.

use std::fmt;

use serde::Serialize;

use crate::backend::{Call, Context};
use crate::codec::values;
use crate::error::{Result, unsupported};
use crate::layout::index;
use crate::numerics::{Hyper, power};
use crate::plan::{Codes, Format, Plan, Scales, TensorPlan};
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
    /// As for [`Plan::step`]; `OutOfMemory`; `Unsupported` on CUDA contexts and for shards with
    /// scales or factors of the global tensor.
    ///
    /// # Safety
    /// As for [`Plan::step`]; nothing is written.
    #[expect(unsafe_code, reason = "reads the caller's raw buffers")]
    pub unsafe fn diagnose(&self, args: &StepArgs<'_>) -> Result<Diagnostics> {
        self.check_step(args)?;
        let Context::Cpu(_) = self.context.as_ref() else {
            return Err(unsupported(
                "diagnose works on CPU contexts in this version",
            ));
        };
        let mut states = Vec::new();
        for (i, tensor) in self.tensors.iter().enumerate() {
            if tensor.needs_statistics() && tensor.is_shard() {
                return Err(unsupported(format!(
                    "{} is a shard whose scales or factors belong to the global tensor",
                    tensor.info.name
                )));
            }
            // SAFETY: the caller's promise.
            states.extend(unsafe { self.diagnose_tensor(args, i)? });
        }
        Ok(Diagnostics { states })
    }

    /// # Safety
    /// As for [`Plan::diagnose`].
    #[expect(unsafe_code, reason = "reads the caller's raw buffers")]
    unsafe fn diagnose_tensor(
        &self,
        args: &StepArgs<'_>,
        i: usize,
    ) -> Result<Vec<StateDiagnostics>> {
        let tensor = &self.tensors[i];
        let plan = self.alone(i)?;
        // SAFETY: the caller's promise: hyper-parameters, parameter and states can be read.
        let (hyper, t, mut param, mut copies) = unsafe {
            let (hyper, t) = match args.hyper {
                HyperSource::Host(groups, t) => (groups[tensor.info.group], t),
                HyperSource::Memory { hyper, step } => {
                    (hyper.cast::<Hyper>().add(tensor.info.group).read(), *step)
                }
                HyperSource::Counted { hyper, step } => {
                    (hyper.cast::<Hyper>().add(tensor.info.group).read(), *step)
                }
            };
            let state = &args.state[tensor.buffers()];
            let copies = state.iter().map(|buffer| Copy::of(*buffer));
            (
                hyper,
                t,
                Copy::of(args.params[i])?,
                copies.collect::<Result<Vec<_>>>()?,
            )
        };
        let mut scratch = Copy::zeroed(plan.scratch_bytes())?;
        let state: Vec<_> = copies.iter_mut().map(Copy::buffer).collect();
        let hyper = [Hyper { skip: 0.0, ..hyper }];
        let call = StepArgs {
            params: &[param.buffer()],
            grads: &args.grads[i..=i],
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
        // SAFETY: copies of the caller's memory, and its gradient, which is only read.
        unsafe {
            for stage in 0..plan.passes().count() {
                plan.step(&call, Stage::Collect(stage), none)?;
            }
            let fresh = match plan.context.as_ref() {
                Context::Cpu(cpu) => cpu.fresh_states(&Call {
                    plan: &plan,
                    args: &call,
                    pass: None,
                    stream: none,
                }),
                Context::Cuda(_) => return Ok(found),
            };
            plan.step(&call, Stage::Apply, none)?;
            for (s, fresh) in fresh.iter().enumerate() {
                if plan.tensors[0].states[s].format == Format::F32 {
                    continue;
                }
                let mut coded = values(tensor.numel)?;
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
    let error = sum(&|x, q| (x - q) * (x - q));
    let second = plan.name.starts_with('v');
    let codes = match &plan.format {
        Format::Codes(codes) => Some(code_shares(tensor, codes, &buffers[plan.first_buffer..])),
        _ => None,
    };
    StateDiagnostics {
        tensor: tensor.info.name.clone(),
        state: plan.name.to_owned(),
        quantizer: plan.describe(),
        relative_error: if error == 0.0 {
            0.0
        } else {
            (error / squares).sqrt()
        },
        lowest_codes: codes.as_ref().map(|codes| codes.lowest),
        highest_codes: codes.as_ref().map(|codes| codes.highest),
        dead_blocks: codes
            .as_ref()
            .and_then(|codes| codes.blocks)
            .map(|(dead, _)| dead),
        blocks: codes
            .as_ref()
            .and_then(|codes| codes.blocks)
            .map(|(_, all)| all),
        preconditioner_ratio: second.then(|| quantiles(fresh, coded, hyper, t)).flatten(),
        radial_bias: (!second && squares > 0.0).then(|| sum(&|x, q| x * q) / squares - 1.0),
    }
}

/// Shares of the end codes, and dead and all blocks where there are blocks.
struct CodeShares {
    lowest: f64,
    highest: f64,
    blocks: Option<(i64, i64)>,
}

fn code_shares(tensor: &TensorPlan, codes: &Codes, buffers: &[Buffer]) -> CodeShares {
    let grid = &tensor.grid;
    let (per_byte, bytes) = (codes.per_byte, grid.code_bytes(codes.per_byte));
    let highest_code = codes.table.levels.len() - 1;
    let bits = 8 / per_byte;
    let (mut lowest, mut highest, mut alive, mut dead, mut all) = (0_i64, 0_i64, 0_i64, 0, 0);
    for row in 0..grid.rows {
        for col in 0..grid.cols {
            // SAFETY: the copies of the state's buffers, with the plan's sizes.
            #[expect(unsafe_code, reason = "reads raw copies")]
            let (byte, scale) = unsafe {
                let byte = *buffers[0]
                    .data
                    .cast::<u8>()
                    .add(index(row * bytes + col / per_byte));
                let scale = match codes.scales {
                    Scales::Block(block) => {
                        let blocks = crate::layout::div_ceil(grid.cols, block);
                        let at = index(row * blocks + col / block);
                        if col % block == 0 {
                            all += 1;
                            dead += i64::from(*buffers[1].data.cast::<f32>().add(at) == 0.0);
                        }
                        *buffers[1].data.cast::<f32>().add(at)
                    }
                    // Scales of slices: every element counts.
                    Scales::Maxima(_) => 1.0,
                };
                (byte, scale)
            };
            if scale == 0.0 {
                continue;
            }
            let code = usize::from(byte) >> (col % per_byte * bits) & ((1 << bits) - 1);
            alive += 1;
            lowest += i64::from(code == 0);
            highest += i64::from(code == highest_code);
        }
    }
    let share = |count: i64| count as f64 / alive.max(1) as f64;
    CodeShares {
        lowest: share(lowest),
        highest: share(highest),
        blocks: matches!(codes.scales, Scales::Block(_)).then_some((dead, all)),
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
        let mut words = Vec::new();
        let count = index(bytes).div_ceil(8);
        words.try_reserve_exact(count).map_err(|error| {
            crate::error::Error::new(
                crate::error::Status::OutOfMemory,
                format!("{bytes} bytes for a copy: {error}"),
            )
        })?;
        words.resize(count, 0);
        Ok(Self { words, bytes })
    }

    /// # Safety
    /// `buffer` is valid memory.
    #[expect(unsafe_code, reason = "reads the caller's raw buffers")]
    unsafe fn of(buffer: Buffer) -> Result<Self> {
        let mut copy = Self::zeroed(buffer.bytes)?;
        if buffer.bytes > 0 {
            // SAFETY: the caller's promise; the copy is as large.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    buffer.data.cast::<u8>(),
                    copy.words.as_mut_ptr().cast(),
                    index(buffer.bytes),
                );
            }
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
