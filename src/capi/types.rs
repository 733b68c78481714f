//! Constants and structs of the C ABI. Field comments become the header's.

use std::ffi::{c_char, c_void};

use super::sized::CStruct;
use crate::dtype::Dtype;
use crate::error::Status;
use crate::plan::{Reduce, StageInfo};
use crate::quant::{Mapping, Rounding};
use crate::spec::{FactorAxes, Normalization, Optimizer};
use crate::step::Buffer;
use crate::weights::Weights;

/// What a function returns: LOWBIT_STATUS_OK or the reason why nothing was done.
/// Ranges: 1-19 the caller's arguments, 20-39 not possible here, 40-59 bytes of a file,
/// 60-79 the device, 80-99 host resources, 100 a fault of this library. Numbers are never reused.
pub type lowbit_status_t = i32;
/// Done.
pub const LOWBIT_STATUS_OK: lowbit_status_t = 0;
/// A required pointer is null.
pub const LOWBIT_STATUS_NULL_POINTER: lowbit_status_t = 1;
/// An argument has a value that is not allowed.
pub const LOWBIT_STATUS_INVALID_ARGUMENT: lowbit_status_t = 2;
/// struct_size is too small, or fields that this library does not know are not zero.
pub const LOWBIT_STATUS_STRUCT_SIZE: lowbit_status_t = 3;
/// A flag bit that this library does not know is set.
pub const LOWBIT_STATUS_UNKNOWN_FLAG: lowbit_status_t = 4;
/// A buffer has another size than the plan says, or is too small for an output.
pub const LOWBIT_STATUS_BUFFER_SIZE: lowbit_status_t = 5;
/// A pointer is not aligned for its data type.
pub const LOWBIT_STATUS_MISALIGNED: lowbit_status_t = 6;
/// Two buffers overlap that must not.
pub const LOWBIT_STATUS_OVERLAP: lowbit_status_t = 7;
/// Well-formed, but not implemented by this version or this backend; the text says what is.
pub const LOWBIT_STATUS_UNSUPPORTED: lowbit_status_t = 20;
/// Not a lowbit checkpoint.
pub const LOWBIT_STATUS_FORMAT_MAGIC: lowbit_status_t = 40;
/// A checkpoint of a format version that this library does not read.
pub const LOWBIT_STATUS_FORMAT_VERSION: lowbit_status_t = 41;
/// The bytes end before the checkpoint does.
pub const LOWBIT_STATUS_FORMAT_TRUNCATED: lowbit_status_t = 42;
/// A checksum differs or the container is malformed.
pub const LOWBIT_STATUS_FORMAT_CORRUPT: lowbit_status_t = 43;
/// A sound checkpoint of another plan.
pub const LOWBIT_STATUS_FORMAT_MISMATCH: lowbit_status_t = 44;
/// No CUDA driver, device or kernel can be used here; the text says why.
pub const LOWBIT_STATUS_CUDA_UNAVAILABLE: lowbit_status_t = 60;
/// The device's memory is exhausted.
pub const LOWBIT_STATUS_CUDA_OUT_OF_MEMORY: lowbit_status_t = 62;
/// A CUDA call failed.
pub const LOWBIT_STATUS_CUDA_ERROR: lowbit_status_t = 63;
/// The host's memory is exhausted.
pub const LOWBIT_STATUS_OUT_OF_MEMORY: lowbit_status_t = 80;
/// A file operation, or a callback that stands for one, failed.
pub const LOWBIT_STATUS_IO: lowbit_status_t = 81;
/// A progress callback asked to stop.
pub const LOWBIT_STATUS_CANCELLED: lowbit_status_t = 82;
/// A panic was caught; the handle it came from refuses all further calls but destroy.
pub const LOWBIT_STATUS_INTERNAL: lowbit_status_t = 100;

/// The type of one element.
pub type lowbit_dtype_t = i32;
/// IEEE-754 binary32.
pub const LOWBIT_DTYPE_F32: lowbit_dtype_t = 1;
/// The upper half of a binary32.
pub const LOWBIT_DTYPE_BF16: lowbit_dtype_t = 2;
/// IEEE-754 binary16.
pub const LOWBIT_DTYPE_F16: lowbit_dtype_t = 3;
/// Packed codes: one of 5 to 8 bits, two of 3 or 4, four of 2 bits in a byte, the first element in
/// the lowest bits.
pub const LOWBIT_DTYPE_U8: lowbit_dtype_t = 4;
/// Statistics whose maximum is taken.
pub const LOWBIT_DTYPE_I32: lowbit_dtype_t = 5;
/// Statistics that are added.
pub const LOWBIT_DTYPE_I64: lowbit_dtype_t = 6;
/// The lower half of a parameter's f32 value.
pub const LOWBIT_DTYPE_U16: lowbit_dtype_t = 7;
/// The correction of a bf16 parameter.
pub const LOWBIT_DTYPE_I8: lowbit_dtype_t = 8;

/// Which update the states belong to.
pub type lowbit_optimizer_t = i32;
/// AdamW: states m, v; with AMSGrad vmax.
pub const LOWBIT_OPTIMIZER_ADAMW: lowbit_optimizer_t = 1;
/// No update, one state x: for compress and decompress alone.
pub const LOWBIT_OPTIMIZER_NONE: lowbit_optimizer_t = 2;

/// Adam, with the decay in the gradient (L2): states as AdamW.
pub const LOWBIT_OPTIMIZER_ADAM: lowbit_optimizer_t = 3;
/// SGD with momentum: state m.
pub const LOWBIT_OPTIMIZER_SGDM: lowbit_optimizer_t = 4;
/// Lion: state m.
pub const LOWBIT_OPTIMIZER_LION: lowbit_optimizer_t = 5;
/// Adafactor: states v, and m if the spec has a quantizer for it.
pub const LOWBIT_OPTIMIZER_ADAFACTOR: lowbit_optimizer_t = 6;
/// SM3: states v (one vector of maxima per axis), and m if the spec has a quantizer for it.
pub const LOWBIT_OPTIMIZER_SM3: lowbit_optimizer_t = 7;

/// How the scales of a state are found.
pub type lowbit_normalization_t = i32;
/// The largest magnitude of each block of a row.
pub const LOWBIT_NORMALIZATION_BLOCK: lowbit_normalization_t = 1;
/// The smallest, over the axes, of the slice maxima; blocks of 128 for one-axis tensors.
pub const LOWBIT_NORMALIZATION_RANK1: lowbit_normalization_t = 2;
/// The largest magnitude of the tensor.
pub const LOWBIT_NORMALIZATION_TENSOR: lowbit_normalization_t = 3;
/// The largest magnitude of each row of the block grid.
pub const LOWBIT_NORMALIZATION_ROW: lowbit_normalization_t = 4;
/// The largest magnitude of each column of the block grid.
pub const LOWBIT_NORMALIZATION_COLUMN: lowbit_normalization_t = 5;
/// No codes: row and column means (for v); tensors with at most one axis, and those whose means
/// would take more bytes, are coded in blocks of 128.
pub const LOWBIT_NORMALIZATION_FACTORED: lowbit_normalization_t = 6;

/// Which levels the codes stand for.
pub type lowbit_mapping_t = i32;
/// Dynamic exponent, signed for m and x, unsigned for v.
pub const LOWBIT_MAPPING_DE: lowbit_mapping_t = 1;
/// Zero-free linear, (i + 1) / 2^bits; signed +-(i + 1) / 2^(bits - 1).
pub const LOWBIT_MAPPING_LINEAR: lowbit_mapping_t = 2;
/// Dynamic exponent without its zero; for v only.
pub const LOWBIT_MAPPING_DE0: lowbit_mapping_t = 3;
/// Linear from 0 on, i / (2^bits - 1).
pub const LOWBIT_MAPPING_LINEAR_WITH_ZERO: lowbit_mapping_t = 4;
/// The squares of linear.
pub const LOWBIT_MAPPING_POWER2: lowbit_mapping_t = 5;
/// The cubes of linear.
pub const LOWBIT_MAPPING_POWER3: lowbit_mapping_t = 6;
/// NormalFloat, 4 bits; for m and x only.
pub const LOWBIT_MAPPING_NF4: lowbit_mapping_t = 7;
/// 10^(-4 k / (2^bits - 1)); for v only.
pub const LOWBIT_MAPPING_GEOMETRIC: lowbit_mapping_t = 8;
/// The quantizer's own levels.
pub const LOWBIT_MAPPING_TABLE: lowbit_mapping_t = 9;

/// How a value becomes a code.
pub type lowbit_rounding_t = i32;
/// The nearest level, ties to the lower one.
pub const LOWBIT_ROUNDING_NEAREST: lowbit_rounding_t = 0;
/// Up or down at random, unbiased in the state.
pub const LOWBIT_ROUNDING_STOCHASTIC: lowbit_rounding_t = 1;
/// Unbiased in the logarithm of v.
pub const LOWBIT_ROUNDING_STOCHASTIC_LOG: lowbit_rounding_t = 2;
/// Unbiased in 1 / (sqrt(v) + eps).
pub const LOWBIT_ROUNDING_STOCHASTIC_PRECONDITIONER: lowbit_rounding_t = 3;

/// Which axes a factored v keeps.
pub type lowbit_factor_axes_t = i32;
/// The contiguous split of all axes into rows and columns that takes the fewest bytes.
pub const LOWBIT_FACTOR_AXES_MERGED: lowbit_factor_axes_t = 0;
/// The last two; the axes before them are a batch.
pub const LOWBIT_FACTOR_AXES_LAST_TWO: lowbit_factor_axes_t = 1;
/// The two largest; all others are a batch.
pub const LOWBIT_FACTOR_AXES_LARGEST_TWO: lowbit_factor_axes_t = 2;

/// What is kept beside a 16-bit parameter so that small updates are not lost.
pub type lowbit_weights_t = i32;
/// Nothing; rounded to nearest, so that updates below half a last place vanish.
pub const LOWBIT_WEIGHTS_PLAIN: lowbit_weights_t = 0;
/// Nothing; rounded up or down at random, so that the mean is right.
pub const LOWBIT_WEIGHTS_STOCHASTIC: lowbit_weights_t = 1;
/// An f32 master. Zeros, or a master that does not round to the parameter, mean the parameter.
pub const LOWBIT_WEIGHTS_MASTER: lowbit_weights_t = 2;
/// The lower 16 bits of the f32 value; for bf16.
pub const LOWBIT_WEIGHTS_REMAINDER16: lowbit_weights_t = 3;
/// 8 bits of correction; for bf16.
pub const LOWBIT_WEIGHTS_CORRECTION8: lowbit_weights_t = 4;

/// Which CPU code does the work; all give the same bits.
pub type lowbit_cpu_variant_t = i32;
/// The best that this processor can run, or what the environment variable LOWBIT_CPU_VARIANT names:
/// reference, portable, avx2 or avx512.
pub const LOWBIT_CPU_VARIANT_AUTO: lowbit_cpu_variant_t = 0;
/// The definition, one element at a time on one thread; for tests.
pub const LOWBIT_CPU_VARIANT_REFERENCE: lowbit_cpu_variant_t = 1;
/// Code for the target's baseline instructions.
pub const LOWBIT_CPU_VARIANT_PORTABLE: lowbit_cpu_variant_t = 2;
/// Code for AVX2, FMA and F16C.
pub const LOWBIT_CPU_VARIANT_AVX2: lowbit_cpu_variant_t = 3;
/// Code for AVX-512 (F, BW, VL, DQ).
pub const LOWBIT_CPU_VARIANT_AVX512: lowbit_cpu_variant_t = 4;

/// What happens when a gradient, scaled, has a square that is not finite in f32.
pub type lowbit_nonfinite_t = i32;
/// SKIP_TENSOR for tensors whose update needs statistics of the whole tensor, SKIP_BLOCK for all
/// others.
pub const LOWBIT_NONFINITE_DEFAULT: lowbit_nonfinite_t = 0;
/// The block's parameters, codes and scales stay. Refused where scales reach across blocks.
pub const LOWBIT_NONFINITE_SKIP_BLOCK: lowbit_nonfinite_t = 1;
/// The tensor stays; one more read of its gradient unless it has statistics anyway.
pub const LOWBIT_NONFINITE_SKIP_TENSOR: lowbit_nonfinite_t = 2;
/// All tensors stay; one more read of every gradient.
pub const LOWBIT_NONFINITE_SKIP_STEP: lowbit_nonfinite_t = 3;
/// NaN spreads into parameters and states, in canonical form.
pub const LOWBIT_NONFINITE_PROPAGATE: lowbit_nonfinite_t = 4;

/// How shards combine their statistics.
pub type lowbit_reduce_t = i32;
/// Element-wise maximum, as signed integers.
pub const LOWBIT_REDUCE_MAX: lowbit_reduce_t = 1;
/// Element-wise sum, as signed integers.
pub const LOWBIT_REDUCE_SUM: lowbit_reduce_t = 2;

/// A piece of the caller's memory, in the memory space of the plan's context. This struct never
/// changes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_buffer_t {
    /// First byte; may be NULL if bytes is 0.
    pub data: *mut c_void,
    /// Size in bytes.
    pub bytes: i64,
}

const _: () = assert!(size_of::<lowbit_buffer_t>() == size_of::<Buffer>());
const _: () = assert!(align_of::<lowbit_buffer_t>() == align_of::<Buffer>());

/// Set in lowbit_quantizer_info_t.flags: block scales are corrected after coding (EDEN).
pub const LOWBIT_QUANTIZER_SCALE_CORRECTION: u64 = 1;
/// Set in lowbit_quantizer_info_t.flags: subtractive dither, one random offset per block.
pub const LOWBIT_QUANTIZER_DITHER: u64 = 2;

/// One state's quantizer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_quantizer_info_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// 2 to 8, or 32 for f32 states (the other fields are then 0, but for a factored v).
    pub bits: i32,
    /// How the scales are found.
    pub normalization: lowbit_normalization_t,
    /// Which levels the codes stand for.
    pub mapping: lowbit_mapping_t,
    /// How a value becomes a code.
    pub rounding: lowbit_rounding_t,
    /// Elements of a block: a power of two from 32 to 4096; 0 means 128.
    pub block: i64,
    /// LOWBIT_QUANTIZER_SCALE_CORRECTION, LOWBIT_QUANTIZER_DITHER.
    pub flags: u64,
    /// For LOWBIT_MAPPING_TABLE: increasing levels in [-1, 1], for v in [0, 1].
    pub levels: *const f32,
    /// Their number, at most 2^bits.
    pub level_count: i64,
    /// For LOWBIT_NORMALIZATION_FACTORED.
    pub factor_axes: lowbit_factor_axes_t,
    /// Zero.
    pub reserved: i32,
}

/// Other quantizers for the tensors whose name matches; also lifts the threshold for them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_override_info_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// Shell pattern: *, ?, sets in brackets. The first override that matches a tensor wins.
    pub pattern: *const c_char,
    /// For m; NULL keeps the spec's.
    pub m: *const lowbit_quantizer_info_t,
    /// For v; NULL keeps the spec's.
    pub v: *const lowbit_quantizer_info_t,
    /// For x; NULL keeps the spec's.
    pub x: *const lowbit_quantizer_info_t,
}

/// Set in lowbit_spec_info_t.flags: threshold holds a value; otherwise it is the preset's, or 4096.
pub const LOWBIT_SPEC_THRESHOLD: u64 = 1;
/// Adam and AdamW: the largest v so far divides (AMSGrad).
pub const LOWBIT_SPEC_AMSGRAD: u64 = 2;
/// Gradients are negated.
pub const LOWBIT_SPEC_MAXIMIZE: u64 = 4;
/// SGD: the step follows g + beta1 m instead of m.
pub const LOWBIT_SPEC_NESTEROV: u64 = 8;
/// SGD: weight decay is decoupled, as in AdamW, instead of part of the gradient.
pub const LOWBIT_SPEC_DECOUPLED: u64 = 16;

/// Set in lowbit_adafactor_info_t.flags: the step size is min(lr, 1/sqrt(t)) instead of lr.
pub const LOWBIT_ADAFACTOR_RELATIVE_STEP: u64 = 1;
/// Set in lowbit_adafactor_info_t.flags: the step size is multiplied by max(eps2, RMS(parameter)).
pub const LOWBIT_ADAFACTOR_SCALE_PARAMETER: u64 = 2;

/// Options of Adafactor.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_adafactor_info_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// LOWBIT_ADAFACTOR_RELATIVE_STEP, LOWBIT_ADAFACTOR_SCALE_PARAMETER.
    pub flags: u64,
    /// The update is divided by max(1, RMS(update) / clip_threshold); 0: no clipping.
    pub clip_threshold: f32,
    /// v decays by 1 - t^-decay_rate.
    pub decay_rate: f32,
    /// The smallest RMS that a parameter counts with.
    pub eps2: f32,
    /// Zero.
    pub reserved: i32,
}

/// A spec, field by field.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_spec_info_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// LOWBIT_SPEC_*; those of the preset hold as well.
    pub flags: u64,
    /// Where the fields below that are not given come from; NULL: no preset.
    pub preset: *const c_char,
    /// 0: the preset's.
    pub optimizer: lowbit_optimizer_t,
    /// Zero.
    pub reserved: i32,
    /// Tensors with at most this many elements (of the global tensor) keep f32 states.
    pub threshold: i64,
    /// Quantizer of m; NULL: the preset's.
    pub m: *const lowbit_quantizer_info_t,
    /// Quantizer of v; NULL: the preset's.
    pub v: *const lowbit_quantizer_info_t,
    /// Quantizer of x; NULL: the preset's.
    pub x: *const lowbit_quantizer_info_t,
    /// Array; may be NULL if override_count is 0.
    pub overrides: *const lowbit_override_info_t,
    /// Its length.
    pub override_count: i64,
    /// Seed of stochastic rounding and dither.
    pub seed: u64,
    /// SGD: from the second step on the gradient enters m times 1 - dampening.
    pub dampening: f32,
    /// Zero.
    pub reserved2: i32,
    /// Options of Adafactor; NULL: those of the paper.
    pub adafactor: *const lowbit_adafactor_info_t,
}

/// A host's own thread pool: calls body(body_arg, i) once for every 0 <= i < count, on any of its
/// threads, and returns when all have returned.
pub type lowbit_parallel_for_t = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        count: i64,
        body: unsafe extern "C" fn(body_arg: *mut c_void, index: i64),
        body_arg: *mut c_void,
    ),
>;

/// A CPU context.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_cpu_info_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// Zero.
    pub flags: u64,
    /// Threads that work, the caller's among them; 0: as many as the process may use.
    pub threads: i64,
    /// Which code does the work.
    pub variant: lowbit_cpu_variant_t,
    /// Zero.
    pub reserved: i32,
    /// NULL, or the host's threads, which then replace the context's own.
    pub parallel_for: lowbit_parallel_for_t,
    /// Passed to parallel_for.
    pub parallel_for_user: *mut c_void,
}

/// A CUDA context.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_cuda_info_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// Zero.
    pub flags: u64,
    /// Ordinal of the device. Its primary context is used, as by torch, JAX and the CUDA runtime.
    pub device: i32,
    /// Zero.
    pub reserved: i32,
}

/// A tensor of a plan.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_tensor_info_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// Zero.
    pub flags: u64,
    /// Unique in the plan.
    pub name: *const c_char,
    /// Extents, outermost first; may be NULL if ndim is 0.
    pub shape: *const i64,
    /// Number of axes, at most 16.
    pub ndim: i32,
    /// LOWBIT_DTYPE_F32, LOWBIT_DTYPE_BF16 or LOWBIT_DTYPE_F16.
    pub param_dtype: lowbit_dtype_t,
    /// The same choice; 0: as param_dtype.
    pub grad_dtype: lowbit_dtype_t,
    /// What is kept beside a 16-bit parameter.
    pub weights: lowbit_weights_t,
    /// For a shard: extents of the global tensor (ndim of them); NULL: the tensor is whole.
    pub global_shape: *const i64,
    /// For a shard: index of its first element along each axis; NULL: the origin.
    pub offset: *const i64,
    /// Which block of hyper-parameters is this tensor's: see lowbit_step_args_t.hyper.
    pub group: i64,
}

/// Sizes of a plan.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_plan_info_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// Tensors.
    pub tensor_count: i64,
    /// State buffers of all tensors.
    pub buffer_count: i64,
    /// Exact bytes of all state buffers.
    pub state_bytes: i64,
    /// Bytes of one arena that holds all state buffers at their arena_offset.
    pub arena_bytes: i64,
    /// Alignment of the buffers in that arena.
    pub arena_align: i64,
    /// Bytes of a step's scratch; aligned to 8. One scratch per call in flight.
    pub scratch_bytes: i64,
    /// Stages whose statistics shards all-reduce before the next: see lowbit_plan_stage.
    pub stage_count: i64,
    /// Blocks of hyper-parameters that a step takes: 1 + the largest group of a tensor.
    pub group_count: i64,
}

/// What one tensor got. Pointers live as long as the plan.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_tensor_report_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// As given.
    pub name: *const c_char,
    /// Each state's quantizer, as text: "m 4-bit block(128)/de, v 4-bit rank1/linear".
    pub quantizers: *const c_char,
    /// Why: "spec", "64 elements <= threshold 4096", "override \"*embed*\"".
    pub reason: *const c_char,
    /// Elements here.
    pub numel: i64,
    /// Bytes of its state buffers.
    pub state_bytes: i64,
    /// Index of its first state buffer.
    pub first_buffer: i64,
    /// Number of its state buffers.
    pub buffer_count: i64,
}

/// One state buffer. Pointers live as long as the plan.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_buffer_info_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// Index of its tensor.
    pub tensor: i64,
    /// "m", "v", "vmax", "x", or "weights" for what is kept beside the parameter.
    pub state: *const c_char,
    /// "value", "codes", "scales", "axis0", "rows", "master", ...
    pub part: *const c_char,
    /// LOWBIT_DTYPE_F32, LOWBIT_DTYPE_U8, LOWBIT_DTYPE_U16 or LOWBIT_DTYPE_I8.
    pub dtype: lowbit_dtype_t,
    /// Number of axes.
    pub ndim: i32,
    /// Extents, outermost first.
    pub shape: *const i64,
    /// Size.
    pub bytes: i64,
    /// Its place in one arena.
    pub arena_offset: i64,
}

/// Statistics of one stage, which shards combine before the next.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_stage_info_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// LOWBIT_DTYPE_I32 or LOWBIT_DTYPE_I64.
    pub dtype: lowbit_dtype_t,
    /// LOWBIT_REDUCE_MAX or LOWBIT_REDUCE_SUM.
    pub reduce: lowbit_reduce_t,
    /// Where they begin in the scratch, in bytes.
    pub offset: i64,
    /// Number of elements, the same for all shards of a model.
    pub count: i64,
}

/// Set in lowbit_step_args_t.flags: step_number rises by 1 when the work is done, unless the whole step
/// was skipped (by a skip flag, or by LOWBIT_NONFINITE_SKIP_STEP).
pub const LOWBIT_STEP_COUNTED: u64 = 1;

/// One step. Arrays are in the plan's order and are read before the call returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_step_args_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// LOWBIT_STEP_COUNTED or 0.
    pub flags: u64,
    /// Length of params, grads and updates.
    pub tensor_count: i64,
    /// Parameters; updated in place unless updates is given.
    pub params: *const lowbit_buffer_t,
    /// Gradients.
    pub grads: *const lowbit_buffer_t,
    /// NULL, or where the update u goes (in the parameter's dtype) instead of p becoming p + u; may
    /// be the gradient's own buffer where the dtypes agree.
    pub updates: *const lowbit_buffer_t,
    /// Length of state.
    pub buffer_count: i64,
    /// State buffers.
    pub state: *const lowbit_buffer_t,
    /// At least scratch_bytes of the plan; its content need not be kept between steps.
    pub scratch: lowbit_buffer_t,
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment, in [0, 1).
    pub beta1: f32,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f32,
    /// Added to the root of the second moment; positive.
    pub eps: f32,
    /// Decoupled weight decay, multiplied by lr.
    pub weight_decay: f32,
    /// Gradients are multiplied by this: 1 / loss scale.
    pub grad_scale: f32,
    /// And by this: clipping by global norm.
    pub clip_factor: f32,
    /// Non-zero: nothing changes (updates become 0).
    pub skip: f32,
    /// Number of this step, from 1.
    pub step: i32,
    /// What to do about NaN and infinity in gradients.
    pub nonfinite: lowbit_nonfinite_t,
    /// NULL, or for each group of the plan the eight f32 above (lr ... skip), in that order, in the
    /// tensors' own memory space; they then replace the fields, cannot be checked, and step_number
    /// must be given too. Needed if the plan has more than one group.
    pub hyper: *const f32,
    /// NULL, or the step as one int32 in the tensors' own memory space; written only under
    /// LOWBIT_STEP_COUNTED.
    pub step_number: *const i32,
    /// NULL, or for each tensor NULL or its offset in the global tensor, instead of the plan's.
    pub offsets: *const *const i64,
    /// NULL, or two int64 counters in the tensors' own memory space that rise by the number of
    /// blocks and of tensors that were skipped.
    pub skipped: *mut i64,
}

/// What steps through an offload take.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_offload_info_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// 1 if steps run on the host (a plan of a CPU context), 0 if on the device.
    pub on_host: i32,
    /// 0.
    pub reserved: i32,
    /// Parts of a step: consecutive tensors that share a slot of the staging memory.
    pub chunk_count: i64,
    /// Both slots together: pinned host memory if steps run on the host, else device memory.
    pub staging_bytes: i64,
    /// Pinned host memory of the states and, if steps run on the host, of the parameters.
    pub host_bytes: i64,
    /// What a step copies to the device.
    pub bytes_to_device: i64,
    /// What a step copies to the host.
    pub bytes_to_host: i64,
    /// Tensors of the last call, from the first on, that were stepped (on the device: whose step was
    /// enqueued): all, unless it failed.
    pub stepped: i64,
}

/// One call of lowbit_ema. Arrays are in the plan's order and are read before the call returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_ema_args_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// Zero.
    pub flags: u64,
    /// The state that is averaged: "x" under the optimizer none.
    pub state_name: *const c_char,
    /// Length of inputs and outputs.
    pub tensor_count: i64,
    /// What is averaged, in the gradients' dtypes.
    pub inputs: *const lowbit_buffer_t,
    /// Where the new averages go, f32.
    pub outputs: *const lowbit_buffer_t,
    /// Length of state.
    pub buffer_count: i64,
    /// State buffers.
    pub state: *const lowbit_buffer_t,
    /// Factor of the old average.
    pub decay: f32,
    /// Factor of the input: 1 - decay, or 1.
    pub weight: f32,
    /// Number of this step, for stochastic rounding.
    pub step: i32,
    /// Zero.
    pub reserved: i32,
}

/// One call of lowbit_norm and its stages. Arrays are read before the call returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_norm_args_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// Zero.
    pub flags: u64,
    /// Length of grads.
    pub tensor_count: i64,
    /// Gradients; { NULL, 0 } for a tensor that another shard counts.
    pub grads: *const lowbit_buffer_t,
    /// LOWBIT_NORM_SCRATCH bytes, aligned to 8.
    pub scratch: lowbit_buffer_t,
    /// Gradients are multiplied by this: 1 / loss scale.
    pub grad_scale: f32,
    /// The norm to clip to; positive.
    pub max_norm: f32,
}

/// Bytes of the scratch of lowbit_norm.
pub const LOWBIT_NORM_SCRATCH: i64 = 24;
const _: () = assert!(LOWBIT_NORM_SCRATCH == crate::plan::Plan::NORM_BYTES);

/// How lowbit_report_text prints.
pub type lowbit_report_format_t = i32;
/// A table for people.
pub const LOWBIT_REPORT_TABLE: lowbit_report_format_t = 0;
/// An object with the key "states", one element per tensor and quantized state.
pub const LOWBIT_REPORT_JSON: lowbit_report_format_t = 1;

/// What a checkpoint says besides the states.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_checkpoint_info_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// Steps done when it was written.
    pub step: i64,
}

/// Takes the next bytes of a checkpoint; 0 for OK, anything else fails the call with IO.
pub type lowbit_write_t =
    Option<unsafe extern "C" fn(user: *mut c_void, data: *const c_void, bytes: usize) -> i32>;

/// Fills `data` with the bytes of a checkpoint from byte `offset` on; 0 for OK, anything else fails
/// the call with IO.
pub type lowbit_read_t = Option<
    unsafe extern "C" fn(user: *mut c_void, offset: i64, data: *mut c_void, bytes: usize) -> i32,
>;

/// Is told the bytes that are done and how many there are; anything but 0 ends the call with
/// CANCELLED, unless a state is being written already.
pub type lowbit_progress_t =
    Option<unsafe extern "C" fn(user: *mut c_void, done: i64, total: i64) -> i32>;

/// Set in lowbit_save_args_t.flags: write to fd, which may be a pipe.
pub const LOWBIT_SAVE_FD: u64 = 1;
/// Set in lowbit_load_args_t.flags: read from fd, a regular file.
pub const LOWBIT_LOAD_FD: u64 = 1;
/// Set in lowbit_load_args_t.flags: the checkpoint may have tensors that the plan lacks.
pub const LOWBIT_LOAD_SUBSET: u64 = 2;

/// Where a checkpoint goes: path, write, or fd with its flag, exactly one of them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_save_args_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// LOWBIT_SAVE_... bits.
    pub flags: u64,
    /// Number of state buffers; that of the plan.
    pub buffer_count: i64,
    /// All state buffers (array on the host).
    pub state: *const lowbit_buffer_t,
    /// Steps done; 0 or more.
    pub step: i64,
    /// UTF-8: the file is replaced whole or not at all. NULL otherwise.
    pub path: *const c_char,
    /// Gets the bytes in their order. NULL otherwise.
    pub write: lowbit_write_t,
    /// Passed to write.
    pub write_user: *mut c_void,
    /// A file descriptor that is open for writing; the caller's to sync and close.
    pub fd: i32,
    /// With path: its file's name has "{step}" in it, which is replaced by the number, and of the
    /// files with such names this many, the newest, stay. 0: nothing is replaced or removed.
    pub keep: i32,
    /// NULL, or called about once for each MiB.
    pub progress: lowbit_progress_t,
    /// Passed to progress.
    pub progress_user: *mut c_void,
}

/// Where a checkpoint comes from: path, read, or fd with its flag, exactly one of them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lowbit_load_args_t {
    /// sizeof of this struct.
    pub struct_size: usize,
    /// LOWBIT_LOAD_... bits.
    pub flags: u64,
    /// Number of state buffers; that of the plan.
    pub buffer_count: i64,
    /// All state buffers (array on the host), which are written only after what they are read from
    /// was verified.
    pub state: *const lowbit_buffer_t,
    /// UTF-8: a checkpoint file, or an index of several. NULL otherwise.
    pub path: *const c_char,
    /// Gives bytes at any place, each twice: first to verify them. NULL otherwise.
    pub read: lowbit_read_t,
    /// Passed to read.
    pub read_user: *mut c_void,
    /// With read: the size of the checkpoint. 0 otherwise.
    pub bytes: i64,
    /// A file descriptor that is open for reading; its position is not used or changed.
    pub fd: i32,
    /// Zero.
    pub reserved: i32,
    /// NULL, or called about once for each MiB.
    pub progress: lowbit_progress_t,
    /// Passed to progress.
    pub progress_user: *mut c_void,
}

impl From<StageInfo> for lowbit_stage_info_t {
    fn from(stage: StageInfo) -> Self {
        Self {
            struct_size: 0,
            dtype: stage.dtype as lowbit_dtype_t,
            reduce: stage.reduce as lowbit_reduce_t,
            offset: stage.offset,
            count: stage.count,
        }
    }
}

macro_rules! c_struct {
    ($($type:ident $first_size:literal),* $(,)?) => {$(
        // SAFETY: repr(C), begins with its size; integers, floats and nullable pointers.
        unsafe impl CStruct for $type {
            const NAME: &'static str = stringify!($type);
            const FIRST_SIZE: usize = $first_size;
        }
        const _: () = assert!(size_of::<$type>() >= $first_size);
    )*};
}

// Sizes on 64-bit targets at ABI 0.1; they stay when a struct grows.
c_struct! {
    lowbit_quantizer_info_t 64,
    lowbit_adafactor_info_t 32,
    lowbit_override_info_t 40,
    lowbit_spec_info_t 104,
    lowbit_cpu_info_t 48,
    lowbit_cuda_info_t 24,
    lowbit_tensor_info_t 72,
    lowbit_plan_info_t 72,
    lowbit_tensor_report_t 64,
    lowbit_buffer_info_t 64,
    lowbit_stage_info_t 32,
    lowbit_step_args_t 152,
    lowbit_offload_info_t 64,
    lowbit_ema_args_t 80,
    lowbit_norm_args_t 56,
    lowbit_checkpoint_info_t 16,
    lowbit_save_args_t 88,
    lowbit_load_args_t 88,
}

/// The constants of C are the discriminants of the Rust enums.
macro_rules! same {
    ($($constant:ident => $variant:expr),* $(,)?) => {$(
        const _: () = assert!($constant == $variant as i32);
    )*};
}

same! {
    LOWBIT_STATUS_NULL_POINTER => Status::NullPointer,
    LOWBIT_STATUS_INVALID_ARGUMENT => Status::InvalidArgument,
    LOWBIT_STATUS_STRUCT_SIZE => Status::StructSize,
    LOWBIT_STATUS_UNKNOWN_FLAG => Status::UnknownFlag,
    LOWBIT_STATUS_BUFFER_SIZE => Status::BufferSize,
    LOWBIT_STATUS_MISALIGNED => Status::Misaligned,
    LOWBIT_STATUS_OVERLAP => Status::Overlap,
    LOWBIT_STATUS_UNSUPPORTED => Status::Unsupported,
    LOWBIT_STATUS_FORMAT_MAGIC => Status::FormatMagic,
    LOWBIT_STATUS_FORMAT_VERSION => Status::FormatVersion,
    LOWBIT_STATUS_FORMAT_TRUNCATED => Status::FormatTruncated,
    LOWBIT_STATUS_FORMAT_CORRUPT => Status::FormatCorrupt,
    LOWBIT_STATUS_FORMAT_MISMATCH => Status::FormatMismatch,
    LOWBIT_STATUS_CUDA_UNAVAILABLE => Status::CudaUnavailable,
    LOWBIT_STATUS_CUDA_OUT_OF_MEMORY => Status::CudaOutOfMemory,
    LOWBIT_STATUS_CUDA_ERROR => Status::CudaError,
    LOWBIT_STATUS_OUT_OF_MEMORY => Status::OutOfMemory,
    LOWBIT_STATUS_IO => Status::Io,
    LOWBIT_STATUS_CANCELLED => Status::Cancelled,
    LOWBIT_STATUS_INTERNAL => Status::Internal,
    LOWBIT_DTYPE_F32 => Dtype::F32,
    LOWBIT_DTYPE_BF16 => Dtype::Bf16,
    LOWBIT_DTYPE_F16 => Dtype::F16,
    LOWBIT_DTYPE_U8 => Dtype::U8,
    LOWBIT_DTYPE_I32 => Dtype::I32,
    LOWBIT_DTYPE_I64 => Dtype::I64,
    LOWBIT_DTYPE_U16 => Dtype::U16,
    LOWBIT_DTYPE_I8 => Dtype::I8,
    LOWBIT_OPTIMIZER_ADAMW => Optimizer::Adamw,
    LOWBIT_OPTIMIZER_NONE => Optimizer::None,
    LOWBIT_OPTIMIZER_ADAM => Optimizer::Adam,
    LOWBIT_OPTIMIZER_SGDM => Optimizer::Sgdm,
    LOWBIT_OPTIMIZER_LION => Optimizer::Lion,
    LOWBIT_OPTIMIZER_ADAFACTOR => Optimizer::Adafactor,
    LOWBIT_OPTIMIZER_SM3 => Optimizer::Sm3,
    LOWBIT_NORMALIZATION_BLOCK => Normalization::Block,
    LOWBIT_NORMALIZATION_RANK1 => Normalization::Rank1,
    LOWBIT_NORMALIZATION_TENSOR => Normalization::Tensor,
    LOWBIT_NORMALIZATION_ROW => Normalization::Row,
    LOWBIT_NORMALIZATION_COLUMN => Normalization::Column,
    LOWBIT_NORMALIZATION_FACTORED => Normalization::Factored,
    LOWBIT_MAPPING_DE => Mapping::De,
    LOWBIT_MAPPING_LINEAR => Mapping::Linear,
    LOWBIT_MAPPING_DE0 => Mapping::De0,
    LOWBIT_MAPPING_LINEAR_WITH_ZERO => Mapping::LinearWithZero,
    LOWBIT_MAPPING_POWER2 => Mapping::Power2,
    LOWBIT_MAPPING_POWER3 => Mapping::Power3,
    LOWBIT_MAPPING_NF4 => Mapping::Nf4,
    LOWBIT_MAPPING_GEOMETRIC => Mapping::Geometric,
    LOWBIT_MAPPING_TABLE => Mapping::Table,
    LOWBIT_ROUNDING_NEAREST => Rounding::Nearest,
    LOWBIT_ROUNDING_STOCHASTIC => Rounding::Stochastic,
    LOWBIT_ROUNDING_STOCHASTIC_LOG => Rounding::StochasticLog,
    LOWBIT_ROUNDING_STOCHASTIC_PRECONDITIONER => Rounding::StochasticPreconditioner,
    LOWBIT_FACTOR_AXES_MERGED => FactorAxes::Merged,
    LOWBIT_FACTOR_AXES_LAST_TWO => FactorAxes::LastTwo,
    LOWBIT_FACTOR_AXES_LARGEST_TWO => FactorAxes::LargestTwo,
    LOWBIT_WEIGHTS_PLAIN => Weights::Plain,
    LOWBIT_WEIGHTS_STOCHASTIC => Weights::Stochastic,
    LOWBIT_WEIGHTS_MASTER => Weights::Master,
    LOWBIT_WEIGHTS_REMAINDER16 => Weights::Remainder16,
    LOWBIT_WEIGHTS_CORRECTION8 => Weights::Correction8,
    LOWBIT_REDUCE_MAX => Reduce::Max,
    LOWBIT_REDUCE_SUM => Reduce::Sum,
}
