//! The global norm of gradients, for clipping: exact sums of squares, so that threads, shards and
//! backends agree on it to the bit.
//!
//! It is collected in two stages like the statistics of a step, and finished by a third; trainers
//! with shards all-reduce between them. Clipping comes before the statistics of the step, since v
//! holds the clipped gradient's square.

use std::ffi::c_void;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::backend::Context;
use crate::dtype::Dtype;
use crate::error::{Error, Result, Status, invalid, unsupported};
use crate::numerics::{Exponent, FpEnv, INF_BITS, Limbs, magnitude};
use crate::plan::{Plan, Reduce, StageInfo};
use crate::step::{Buffer, check, count};

/// i64 words of the scratch: the largest magnitude, then two limbs of the sum.
pub(crate) const WORDS: usize = 3;

/// What [`Plan::norm`] takes. Slices are in the plan's order.
#[derive(Clone, Copy, Debug)]
pub struct NormArgs<'a> {
    /// One per tensor, in its gradient's dtype; [`Buffer::NONE`] for tensors that another shard
    /// counts.
    pub grads: &'a [Buffer],
    /// Three i64.
    pub scratch: Buffer,
    /// Gradients are multiplied by this: 1 / loss scale.
    pub grad_scale: f32,
    /// The norm to clip to.
    pub max_norm: f32,
}

/// The results of [`Plan::norm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// The square root of the sum of all squares; infinite or NaN if a gradient is.
    pub norm: f32,
    /// `min(1, max_norm / norm)`; 1 if the norm is not finite, so that the step's own policy for
    /// non-finite gradients decides.
    pub clip_factor: f32,
}

/// Which part of the norm to collect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The largest magnitude.
    Max,
    /// The sum of squares.
    Sum,
}

impl Plan {
    /// Bytes of the scratch of [`Plan::norm`], aligned to 8.
    pub const NORM_BYTES: i64 = 8 * WORDS as i64;

    /// What shards combine after each stage of [`Plan::collect_norm`].
    #[must_use]
    pub fn norm_stage(stage: Stage) -> StageInfo {
        let (reduce, offset, count) = match stage {
            Stage::Max => (Reduce::Max, 0, 1),
            Stage::Sum => (Reduce::Sum, 8, 2),
        };
        StageInfo {
            dtype: Dtype::I64,
            reduce,
            offset,
            count,
        }
    }

    /// Both stages and the end.
    ///
    /// # Errors
    /// As for [`Plan::step`]; `Unsupported` on CUDA contexts.
    ///
    /// # Safety
    /// As for [`Plan::step`].
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub unsafe fn norm(&self, args: &NormArgs<'_>, stream: *mut c_void) -> Result<Norm> {
        self.check_on_host()?;
        // SAFETY: the caller's promise.
        unsafe {
            self.collect_norm(args, Stage::Max, stream)?;
            self.collect_norm(args, Stage::Sum, stream)?;
            self.finish_norm(args)
        }
    }

    /// Fills the scratch with the statistics of one stage.
    ///
    /// # Errors
    /// As for [`Plan::norm`].
    ///
    /// # Safety
    /// As for [`Plan::step`].
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub unsafe fn collect_norm(
        &self,
        args: &NormArgs<'_>,
        stage: Stage,
        stream: *mut c_void,
    ) -> Result<()> {
        self.check_norm(args)?;
        // SAFETY: checked above; the caller's promise.
        unsafe {
            match self.context.as_ref() {
                Context::Cpu(cpu) => {
                    Scratch(args.scratch.data.cast()).clear(stage);
                    cpu.norm(self, args, stage);
                    Ok(())
                }
                Context::Cuda(cuda) => cuda.norm(self, args, stage, stream),
            }
        }
    }

    /// [`Plan::finish_norm`] in the order of `stream`, with results in the context's memory: each
    /// null or one f32, which may be a step's clip factor in memory.
    ///
    /// # Errors
    /// As for [`Plan::norm`].
    ///
    /// # Safety
    /// As for [`Plan::step`], also for the two results.
    #[expect(unsafe_code, reason = "works on the caller's raw buffers")]
    pub unsafe fn clip(
        &self,
        args: &NormArgs<'_>,
        norm: *mut f32,
        clip_factor: *mut f32,
        stream: *mut c_void,
    ) -> Result<()> {
        self.check_norm(args)?;
        for (name, result) in [("norm", norm), ("clip_factor", clip_factor)] {
            if !result.is_aligned() {
                return Err(Error::new(
                    Status::Misaligned,
                    format!("{name} is at {result:p}, which is not a multiple of 4"),
                ));
            }
        }
        // SAFETY: checked above; the caller's promise.
        unsafe {
            match self.context.as_ref() {
                Context::Cpu(_) => {
                    let found = self.finish_norm(args)?;
                    if !norm.is_null() {
                        *norm = found.norm;
                    }
                    if !clip_factor.is_null() {
                        *clip_factor = found.clip_factor;
                    }
                    Ok(())
                }
                Context::Cuda(cuda) => cuda.clip(args, norm, clip_factor, stream),
            }
        }
    }

    /// Norm and clip factor, given the (reduced) statistics of both stages.
    ///
    /// # Errors
    /// As for [`Plan::norm`].
    ///
    /// # Safety
    /// As for [`Plan::step`].
    #[expect(unsafe_code, reason = "reads the caller's raw buffers")]
    pub unsafe fn finish_norm(&self, args: &NormArgs<'_>) -> Result<Norm> {
        self.check_norm(args)?;
        self.check_on_host()?;
        let _env = FpEnv::ieee();
        let scratch = Scratch(args.scratch.data.cast());
        let norm = match Exponent::above(scratch.largest()) {
            Some(exponent) => {
                let [_, high, low] = [0, 1, 2].map(|i| scratch.word(i).load(Ordering::Relaxed));
                exponent.squared().value(Limbs { high, low }).sqrt() as f32
            }
            None if scratch.largest() == INF_BITS.cast_signed() => f32::INFINITY,
            None => f32::NAN,
        };
        let ratio = args.max_norm / norm;
        let clip_factor = if norm.is_finite() && ratio < 1.0 {
            ratio
        } else {
            1.0
        };
        Ok(Norm { norm, clip_factor })
    }

    /// Results on the host would have to be waited for.
    fn check_on_host(&self) -> Result<()> {
        match self.context.as_ref() {
            Context::Cpu(_) => Ok(()),
            Context::Cuda(_) => Err(unsupported(
                "the norm of a CUDA context is not brought to the host, which would have to wait; \
                 collect both stages, and clip to device memory",
            )),
        }
    }

    fn check_norm(&self, args: &NormArgs<'_>) -> Result<()> {
        if args.max_norm.is_nan() || args.max_norm <= 0.0 {
            return Err(invalid(format!(
                "max_norm is {}; it must be positive",
                args.max_norm
            )));
        }
        if !args.grad_scale.is_finite() {
            return Err(invalid(format!(
                "grad_scale is {}; it must be finite",
                args.grad_scale
            )));
        }
        count("grads", args.grads.len(), self.tensors.len())?;
        for (i, tensor) in self.tensors.iter().enumerate() {
            if args.grads[i] == Buffer::NONE {
                continue;
            }
            let dtype = tensor.info.grad_dtype;
            let bytes = tensor.numel * dtype.size() as i64;
            check(args.grads[i], bytes, dtype, || {
                format!("grads[{i}] ({})", tensor.info.name)
            })?;
        }
        if args.scratch.bytes < Self::NORM_BYTES {
            return Err(Error::new(
                Status::BufferSize,
                format!(
                    "scratch has {} bytes, a norm needs {}",
                    args.scratch.bytes,
                    Self::NORM_BYTES
                ),
            ));
        }
        check(args.scratch, args.scratch.bytes, Dtype::I64, || {
            "scratch".to_owned()
        })
    }
}

/// The caller's scratch, accessed through atomics.
#[derive(Clone, Copy)]
pub(crate) struct Scratch(pub(crate) *mut i64);

impl Scratch {
    fn word(&self, i: usize) -> &AtomicI64 {
        // SAFETY: the scratch was checked to have all words, aligned.
        #[expect(unsafe_code, reason = "the caller's raw scratch")]
        unsafe {
            AtomicI64::from_ptr(self.0.add(i))
        }
    }

    fn clear(self, stage: Stage) {
        let words = match stage {
            Stage::Max => 0..1,
            Stage::Sum => 1..3,
        };
        words.for_each(|i| self.word(i).store(0, Ordering::Relaxed));
    }

    /// Bits of the largest magnitude.
    fn largest(self) -> i32 {
        i32::try_from(self.word(0).load(Ordering::Relaxed)).unwrap_or(i32::MAX)
    }

    pub(crate) fn collect(self, stage: Stage, values: impl Iterator<Item = f32>) {
        if stage == Stage::Max {
            let largest = values.fold(0, |largest, x| magnitude(x).max(largest));
            self.word(0).fetch_max(largest.into(), Ordering::Relaxed);
        } else if let Some(exponent) = Exponent::above(self.largest()) {
            let sum = exponent.sum_of_squares(values);
            self.word(1).fetch_add(sum.high, Ordering::Relaxed);
            self.word(2).fetch_add(sum.low, Ordering::Relaxed);
        }
    }
}
