/*
 * lowbit: optimizer state in 4 bits, stepped by fused kernels.
 *
 * Generated from src/capi by `LOWBIT_BLESS=1 cargo test --test header`; do not edit.
 *
 * Rules that hold for every function:
 * - It returns a lowbit_status_t, 0 for OK, unless it says otherwise. On failure nothing was done,
 *   outputs are untouched (handles are set to NULL), and lowbit_last_error has a text that names
 *   the argument and its value. Nothing is printed, no panic or exception crosses.
 * - Structs begin with struct_size: start from their LOWBIT_..._INIT macro. Fields may be added at
 *   the end; zero then means what it meant before.
 * - Counts are int64_t, bytes size_t or int64_t, flags uint64_t (unknown bits are refused).
 * - A const object may be used by several threads at once; others need exclusive use.
 * - Device calls take a stream (CUstream or cudaStream_t, NULL is the legacy default stream) and
 *   return when the work is enqueued. Functions that wait say so first in their Stream paragraph.
 * - destroy(NULL) does nothing.
 */


#ifndef LOWBIT_H
#define LOWBIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LOWBIT_QUANTIZER_INFO_INIT { sizeof(lowbit_quantizer_info_t), 4, LOWBIT_NORMALIZATION_BLOCK, LOWBIT_MAPPING_DE, LOWBIT_ROUNDING_NEAREST, 128, 0, NULL, 0, 0, 0 }
#define LOWBIT_OVERRIDE_INFO_INIT { sizeof(lowbit_override_info_t), NULL, NULL, NULL, NULL }
/* The options of Adafactor's paper. */
#define LOWBIT_ADAFACTOR_INFO_INIT { sizeof(lowbit_adafactor_info_t), LOWBIT_ADAFACTOR_RELATIVE_STEP | LOWBIT_ADAFACTOR_SCALE_PARAMETER, 1.0f, 0.8f, 1e-3f, 0 }
#define LOWBIT_SPEC_INFO_INIT { sizeof(lowbit_spec_info_t), 0, NULL, 0, 0, 0, NULL, NULL, NULL, NULL, 0, 0, 0.0f, 0, NULL }
#define LOWBIT_CPU_INFO_INIT { sizeof(lowbit_cpu_info_t), 0, 0, LOWBIT_CPU_VARIANT_AUTO, 0, NULL, NULL }
#define LOWBIT_CUDA_INFO_INIT { sizeof(lowbit_cuda_info_t), 0, 0, 0 }
#define LOWBIT_TENSOR_INFO_INIT { sizeof(lowbit_tensor_info_t), 0, NULL, NULL, 0, LOWBIT_DTYPE_F32, 0, LOWBIT_WEIGHTS_PLAIN, NULL, NULL, 0 }
#define LOWBIT_PLAN_INFO_INIT { sizeof(lowbit_plan_info_t), 0, 0, 0, 0, 0, 0, 0, 0 }
#define LOWBIT_TENSOR_REPORT_INIT { sizeof(lowbit_tensor_report_t), NULL, NULL, NULL, 0, 0, 0, 0 }
#define LOWBIT_BUFFER_INFO_INIT { sizeof(lowbit_buffer_info_t), 0, NULL, NULL, 0, 0, NULL, 0, 0 }
#define LOWBIT_STAGE_INFO_INIT { sizeof(lowbit_stage_info_t), 0, 0, 0, 0 }
/* Defaults: lr 1e-3, betas 0.9 and 0.999, eps 1e-8, weight decay 0.01, scales 1, step 1. */
#define LOWBIT_STEP_ARGS_INIT { sizeof(lowbit_step_args_t), 0, 0, NULL, NULL, NULL, 0, NULL, { NULL, 0 }, 1e-3f, 0.9f, 0.999f, 1e-8f, 0.01f, 1.0f, 1.0f, 0.0f, 1, LOWBIT_NONFINITE_DEFAULT, NULL, NULL, NULL, NULL }
#define LOWBIT_OFFLOAD_INFO_INIT { sizeof(lowbit_offload_info_t), 0, 0, 0, 0, 0, 0, 0, 0 }
#define LOWBIT_EMA_ARGS_INIT { sizeof(lowbit_ema_args_t), 0, NULL, 0, NULL, NULL, 0, NULL, 0.9f, 0.1f, 1, 0 }
#define LOWBIT_NORM_ARGS_INIT { sizeof(lowbit_norm_args_t), 0, 0, NULL, { NULL, 0 }, 1.0f, 1.0f }
#define LOWBIT_CHECKPOINT_INFO_INIT { sizeof(lowbit_checkpoint_info_t), 0 }
#define LOWBIT_SAVE_ARGS_INIT { sizeof(lowbit_save_args_t), 0, 0, NULL, 0, NULL, NULL, NULL, 0, 0, NULL, NULL }
#define LOWBIT_LOAD_ARGS_INIT { sizeof(lowbit_load_args_t), 0, 0, NULL, NULL, NULL, NULL, 0, 0, 0, NULL, NULL }
/* Number of f32 values in lowbit_step_args_t.hyper for each group of the plan. */
#define LOWBIT_HYPER_COUNT 8

/**
 * Set in lowbit_quantizer_info_t.flags: block scales are corrected after coding (EDEN).
 */
#define LOWBIT_QUANTIZER_SCALE_CORRECTION 1

/**
 * Set in lowbit_quantizer_info_t.flags: subtractive dither, one random offset per block.
 */
#define LOWBIT_QUANTIZER_DITHER 2

/**
 * Set in lowbit_spec_info_t.flags: threshold holds a value; otherwise it is the preset's, or 4096.
 */
#define LOWBIT_SPEC_THRESHOLD 1

/**
 * Adam and AdamW: the largest v so far divides (AMSGrad).
 */
#define LOWBIT_SPEC_AMSGRAD 2

/**
 * Gradients are negated.
 */
#define LOWBIT_SPEC_MAXIMIZE 4

/**
 * SGD: the step follows g + beta1 m instead of m.
 */
#define LOWBIT_SPEC_NESTEROV 8

/**
 * SGD: weight decay is decoupled, as in AdamW, instead of part of the gradient.
 */
#define LOWBIT_SPEC_DECOUPLED 16

/**
 * Set in lowbit_adafactor_info_t.flags: the step size is min(lr, 1/sqrt(t)) instead of lr.
 */
#define LOWBIT_ADAFACTOR_RELATIVE_STEP 1

/**
 * Set in lowbit_adafactor_info_t.flags: the step size is multiplied by max(eps2, RMS(parameter)).
 */
#define LOWBIT_ADAFACTOR_SCALE_PARAMETER 2

/**
 * Set in lowbit_step_args_t.flags: step_number rises by 1 when the work is done, unless the whole step
 * was skipped (by a skip flag, or by LOWBIT_NONFINITE_SKIP_STEP).
 */
#define LOWBIT_STEP_COUNTED 1

/**
 * Bytes of the scratch of lowbit_norm.
 */
#define LOWBIT_NORM_SCRATCH 24

/**
 * Set in lowbit_save_args_t.flags: write to fd, which may be a pipe.
 */
#define LOWBIT_SAVE_FD 1

/**
 * Set in lowbit_load_args_t.flags: read from fd, a regular file.
 */
#define LOWBIT_LOAD_FD 1

/**
 * Set in lowbit_load_args_t.flags: the checkpoint may have tensors that the plan lacks.
 */
#define LOWBIT_LOAD_SUBSET 2

/**
 * Raised when a call that worked could fail or mean something else.
 */
#define LOWBIT_ABI_MAJOR 0

/**
 * Raised with every addition.
 */
#define LOWBIT_ABI_MINOR 1

/**
 * One backend instance: the CPU with its threads, or a CUDA device.
 */
typedef struct lowbit_context_t lowbit_context_t;

/**
 * States in pinned host memory for parameters and gradients on a CUDA device, and the staging
 * memory and streams through which a step moves them.
 */
typedef struct lowbit_offload_t lowbit_offload_t;

/**
 * What every tensor got and where every state buffer lies.
 */
typedef struct lowbit_plan_t lowbit_plan_t;

/**
 * How well the codes hold the states, per tensor and quantized state.
 */
typedef struct lowbit_report_t lowbit_report_t;

/**
 * Which optimizer, with which quantizer for each of its states.
 */
typedef struct lowbit_spec_t lowbit_spec_t;

/**
 * Owned state buffers, for trainers that do not bring their own memory.
 */
typedef struct lowbit_state_t lowbit_state_t;

/**
 * What a function returns: LOWBIT_STATUS_OK or the reason why nothing was done.
 * Ranges: 1-19 the caller's arguments, 20-39 not possible here, 40-59 bytes of a file,
 * 60-79 the device, 80-99 host resources, 100 a fault of this library. Numbers are never reused.
 */
typedef int32_t lowbit_status_t;

/**
 * Which update the states belong to.
 */
typedef int32_t lowbit_optimizer_t;

/**
 * How the scales of a state are found.
 */
typedef int32_t lowbit_normalization_t;

/**
 * Which levels the codes stand for.
 */
typedef int32_t lowbit_mapping_t;

/**
 * How a value becomes a code.
 */
typedef int32_t lowbit_rounding_t;

/**
 * Which axes a factored v keeps.
 */
typedef int32_t lowbit_factor_axes_t;

/**
 * One state's quantizer.
 */
typedef struct lowbit_quantizer_info_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * 2 to 8, or 32 for f32 states (the other fields are then 0, but for a factored v).
   */
  int32_t bits;
  /**
   * How the scales are found.
   */
  lowbit_normalization_t normalization;
  /**
   * Which levels the codes stand for.
   */
  lowbit_mapping_t mapping;
  /**
   * How a value becomes a code.
   */
  lowbit_rounding_t rounding;
  /**
   * Elements of a block: a power of two from 32 to 4096; 0 means 128.
   */
  int64_t block;
  /**
   * LOWBIT_QUANTIZER_SCALE_CORRECTION, LOWBIT_QUANTIZER_DITHER.
   */
  uint64_t flags;
  /**
   * For LOWBIT_MAPPING_TABLE: increasing levels in [-1, 1], for v in [0, 1].
   */
  const float *levels;
  /**
   * Their number, at most 2^bits.
   */
  int64_t level_count;
  /**
   * For LOWBIT_NORMALIZATION_FACTORED.
   */
  lowbit_factor_axes_t factor_axes;
  /**
   * Zero.
   */
  int32_t reserved;
} lowbit_quantizer_info_t;

/**
 * Other quantizers for the tensors whose name matches; also lifts the threshold for them.
 */
typedef struct lowbit_override_info_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * Shell pattern: *, ?, sets in brackets. The first override that matches a tensor wins.
   */
  const char *pattern;
  /**
   * For m; NULL keeps the spec's.
   */
  const struct lowbit_quantizer_info_t *m;
  /**
   * For v; NULL keeps the spec's.
   */
  const struct lowbit_quantizer_info_t *v;
  /**
   * For x; NULL keeps the spec's.
   */
  const struct lowbit_quantizer_info_t *x;
} lowbit_override_info_t;

/**
 * Options of Adafactor.
 */
typedef struct lowbit_adafactor_info_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * LOWBIT_ADAFACTOR_RELATIVE_STEP, LOWBIT_ADAFACTOR_SCALE_PARAMETER.
   */
  uint64_t flags;
  /**
   * The update is divided by max(1, RMS(update) / clip_threshold); 0: no clipping.
   */
  float clip_threshold;
  /**
   * v decays by 1 - t^-decay_rate.
   */
  float decay_rate;
  /**
   * The smallest RMS that a parameter counts with.
   */
  float eps2;
  /**
   * Zero.
   */
  int32_t reserved;
} lowbit_adafactor_info_t;

/**
 * A spec, field by field.
 */
typedef struct lowbit_spec_info_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * LOWBIT_SPEC_*; those of the preset hold as well.
   */
  uint64_t flags;
  /**
   * Where the fields below that are not given come from; NULL: no preset.
   */
  const char *preset;
  /**
   * 0: the preset's.
   */
  lowbit_optimizer_t optimizer;
  /**
   * Zero.
   */
  int32_t reserved;
  /**
   * Tensors with at most this many elements (of the global tensor) keep f32 states.
   */
  int64_t threshold;
  /**
   * Quantizer of m; NULL: the preset's.
   */
  const struct lowbit_quantizer_info_t *m;
  /**
   * Quantizer of v; NULL: the preset's.
   */
  const struct lowbit_quantizer_info_t *v;
  /**
   * Quantizer of x; NULL: the preset's.
   */
  const struct lowbit_quantizer_info_t *x;
  /**
   * Array; may be NULL if override_count is 0.
   */
  const struct lowbit_override_info_t *overrides;
  /**
   * Its length.
   */
  int64_t override_count;
  /**
   * Seed of stochastic rounding and dither.
   */
  uint64_t seed;
  /**
   * SGD: from the second step on the gradient enters m times 1 - dampening.
   */
  float dampening;
  /**
   * Zero.
   */
  int32_t reserved2;
  /**
   * Options of Adafactor; NULL: those of the paper.
   */
  const struct lowbit_adafactor_info_t *adafactor;
} lowbit_spec_info_t;

/**
 * Which CPU code does the work; all give the same bits.
 */
typedef int32_t lowbit_cpu_variant_t;

/**
 * A host's own thread pool: calls body(body_arg, i) once for every 0 <= i < count, on any of its
 * threads, and returns when all have returned.
 */
typedef void (*lowbit_parallel_for_t)(void *user,
                                      int64_t count,
                                      void (*body)(void *body_arg,
                                                   int64_t index),
                                      void *body_arg);

/**
 * A CPU context.
 */
typedef struct lowbit_cpu_info_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * Zero.
   */
  uint64_t flags;
  /**
   * Threads that work, the caller's among them; 0: as many as the process may use.
   */
  int64_t threads;
  /**
   * Which code does the work.
   */
  lowbit_cpu_variant_t variant;
  /**
   * Zero.
   */
  int32_t reserved;
  /**
   * NULL, or the host's threads, which then replace the context's own.
   */
  lowbit_parallel_for_t parallel_for;
  /**
   * Passed to parallel_for.
   */
  void *parallel_for_user;
} lowbit_cpu_info_t;

/**
 * A CUDA context.
 */
typedef struct lowbit_cuda_info_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * Zero.
   */
  uint64_t flags;
  /**
   * Ordinal of the device. Its primary context is used, as by torch, JAX and the CUDA runtime.
   */
  int32_t device;
  /**
   * Zero.
   */
  int32_t reserved;
} lowbit_cuda_info_t;

/**
 * The type of one element.
 */
typedef int32_t lowbit_dtype_t;

/**
 * What is kept beside a 16-bit parameter so that small updates are not lost.
 */
typedef int32_t lowbit_weights_t;

/**
 * A tensor of a plan.
 */
typedef struct lowbit_tensor_info_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * Zero.
   */
  uint64_t flags;
  /**
   * Unique in the plan.
   */
  const char *name;
  /**
   * Extents, outermost first; may be NULL if ndim is 0.
   */
  const int64_t *shape;
  /**
   * Number of axes, at most 16.
   */
  int32_t ndim;
  /**
   * LOWBIT_DTYPE_F32, LOWBIT_DTYPE_BF16 or LOWBIT_DTYPE_F16.
   */
  lowbit_dtype_t param_dtype;
  /**
   * The same choice; 0: as param_dtype.
   */
  lowbit_dtype_t grad_dtype;
  /**
   * What is kept beside a 16-bit parameter.
   */
  lowbit_weights_t weights;
  /**
   * For a shard: extents of the global tensor (ndim of them); NULL: the tensor is whole.
   */
  const int64_t *global_shape;
  /**
   * For a shard: index of its first element along each axis; NULL: the origin.
   */
  const int64_t *offset;
  /**
   * Which block of hyper-parameters is this tensor's: see lowbit_step_args_t.hyper.
   */
  int64_t group;
} lowbit_tensor_info_t;

/**
 * Sizes of a plan.
 */
typedef struct lowbit_plan_info_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * Tensors.
   */
  int64_t tensor_count;
  /**
   * State buffers of all tensors.
   */
  int64_t buffer_count;
  /**
   * Exact bytes of all state buffers.
   */
  int64_t state_bytes;
  /**
   * Bytes of one arena that holds all state buffers at their arena_offset.
   */
  int64_t arena_bytes;
  /**
   * Alignment of the buffers in that arena.
   */
  int64_t arena_align;
  /**
   * Bytes of a step's scratch; aligned to 8. One scratch per call in flight.
   */
  int64_t scratch_bytes;
  /**
   * Stages whose statistics shards all-reduce before the next: see lowbit_plan_stage.
   */
  int64_t stage_count;
  /**
   * Blocks of hyper-parameters that a step takes: 1 + the largest group of a tensor.
   */
  int64_t group_count;
} lowbit_plan_info_t;

/**
 * What one tensor got. Pointers live as long as the plan.
 */
typedef struct lowbit_tensor_report_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * As given.
   */
  const char *name;
  /**
   * Each state's quantizer, as text: "m 4-bit block(128)/de, v 4-bit rank1/linear".
   */
  const char *quantizers;
  /**
   * Why: "spec", "64 elements <= threshold 4096", "override \"*embed*\"".
   */
  const char *reason;
  /**
   * Elements here.
   */
  int64_t numel;
  /**
   * Bytes of its state buffers.
   */
  int64_t state_bytes;
  /**
   * Index of its first state buffer.
   */
  int64_t first_buffer;
  /**
   * Number of its state buffers.
   */
  int64_t buffer_count;
} lowbit_tensor_report_t;

/**
 * One state buffer. Pointers live as long as the plan.
 */
typedef struct lowbit_buffer_info_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * Index of its tensor.
   */
  int64_t tensor;
  /**
   * "m", "v", "vmax", "x", or "weights" for what is kept beside the parameter.
   */
  const char *state;
  /**
   * "value", "codes", "scales", "axis0", "rows", "master", ...
   */
  const char *part;
  /**
   * LOWBIT_DTYPE_F32, LOWBIT_DTYPE_U8, LOWBIT_DTYPE_U16 or LOWBIT_DTYPE_I8.
   */
  lowbit_dtype_t dtype;
  /**
   * Number of axes.
   */
  int32_t ndim;
  /**
   * Extents, outermost first.
   */
  const int64_t *shape;
  /**
   * Size.
   */
  int64_t bytes;
  /**
   * Its place in one arena.
   */
  int64_t arena_offset;
} lowbit_buffer_info_t;

/**
 * How shards combine their statistics.
 */
typedef int32_t lowbit_reduce_t;

/**
 * Statistics of one stage, which shards combine before the next.
 */
typedef struct lowbit_stage_info_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * LOWBIT_DTYPE_I32 or LOWBIT_DTYPE_I64.
   */
  lowbit_dtype_t dtype;
  /**
   * LOWBIT_REDUCE_MAX or LOWBIT_REDUCE_SUM.
   */
  lowbit_reduce_t reduce;
  /**
   * Where they begin in the scratch, in bytes.
   */
  int64_t offset;
  /**
   * Number of elements, the same for all shards of a model.
   */
  int64_t count;
} lowbit_stage_info_t;

/**
 * A piece of the caller's memory, in the memory space of the plan's context. This struct never
 * changes.
 */
typedef struct lowbit_buffer_t {
  /**
   * First byte; may be NULL if bytes is 0.
   */
  void *data;
  /**
   * Size in bytes.
   */
  int64_t bytes;
} lowbit_buffer_t;

/**
 * What happens when a gradient, scaled, has a square that is not finite in f32.
 */
typedef int32_t lowbit_nonfinite_t;

/**
 * One step. Arrays are in the plan's order and are read before the call returns.
 */
typedef struct lowbit_step_args_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * LOWBIT_STEP_COUNTED or 0.
   */
  uint64_t flags;
  /**
   * Length of params, grads and updates.
   */
  int64_t tensor_count;
  /**
   * Parameters; updated in place unless updates is given.
   */
  const struct lowbit_buffer_t *params;
  /**
   * Gradients.
   */
  const struct lowbit_buffer_t *grads;
  /**
   * NULL, or where the update u goes (in the parameter's dtype) instead of p becoming p + u; may
   * be the gradient's own buffer where the dtypes agree.
   */
  const struct lowbit_buffer_t *updates;
  /**
   * Length of state.
   */
  int64_t buffer_count;
  /**
   * State buffers.
   */
  const struct lowbit_buffer_t *state;
  /**
   * At least scratch_bytes of the plan; its content need not be kept between steps.
   */
  struct lowbit_buffer_t scratch;
  /**
   * Learning rate.
   */
  float lr;
  /**
   * Decay of the first moment, in [0, 1).
   */
  float beta1;
  /**
   * Decay of the second moment, in [0, 1).
   */
  float beta2;
  /**
   * Added to the root of the second moment; positive.
   */
  float eps;
  /**
   * Decoupled weight decay, multiplied by lr.
   */
  float weight_decay;
  /**
   * Gradients are multiplied by this: 1 / loss scale.
   */
  float grad_scale;
  /**
   * And by this: clipping by global norm.
   */
  float clip_factor;
  /**
   * Non-zero: nothing changes (updates become 0).
   */
  float skip;
  /**
   * Number of this step, from 1.
   */
  int32_t step;
  /**
   * What to do about NaN and infinity in gradients.
   */
  lowbit_nonfinite_t nonfinite;
  /**
   * NULL, or for each group of the plan the eight f32 above (lr ... skip), in that order, in the
   * tensors' own memory space; they then replace the fields, cannot be checked, and step_number
   * must be given too. Needed if the plan has more than one group.
   */
  const float *hyper;
  /**
   * NULL, or the step as one int32 in the tensors' own memory space; written only under
   * LOWBIT_STEP_COUNTED.
   */
  const int32_t *step_number;
  /**
   * NULL, or for each tensor NULL or its offset in the global tensor, instead of the plan's.
   */
  const int64_t *const *offsets;
  /**
   * NULL, or two int64 counters in the tensors' own memory space that rise by the number of
   * blocks and of tensors that were skipped.
   */
  int64_t *skipped;
} lowbit_step_args_t;

/**
 * What steps through an offload take.
 */
typedef struct lowbit_offload_info_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * 1 if steps run on the host (a plan of a CPU context), 0 if on the device.
   */
  int32_t on_host;
  /**
   * 0.
   */
  int32_t reserved;
  /**
   * Parts of a step: consecutive tensors that share a slot of the staging memory.
   */
  int64_t chunk_count;
  /**
   * Both slots together: pinned host memory if steps run on the host, else device memory.
   */
  int64_t staging_bytes;
  /**
   * Pinned host memory of the states and, if steps run on the host, of the parameters.
   */
  int64_t host_bytes;
  /**
   * What a step copies to the device.
   */
  int64_t bytes_to_device;
  /**
   * What a step copies to the host.
   */
  int64_t bytes_to_host;
  /**
   * Tensors of the last call, from the first on, that were stepped (on the device: whose step was
   * enqueued): all, unless it failed.
   */
  int64_t stepped;
} lowbit_offload_info_t;

/**
 * One call of lowbit_norm and its stages. Arrays are read before the call returns.
 */
typedef struct lowbit_norm_args_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * Zero.
   */
  uint64_t flags;
  /**
   * Length of grads.
   */
  int64_t tensor_count;
  /**
   * Gradients; { NULL, 0 } for a tensor that another shard counts.
   */
  const struct lowbit_buffer_t *grads;
  /**
   * LOWBIT_NORM_SCRATCH bytes, aligned to 8.
   */
  struct lowbit_buffer_t scratch;
  /**
   * Gradients are multiplied by this: 1 / loss scale.
   */
  float grad_scale;
  /**
   * The norm to clip to; positive.
   */
  float max_norm;
} lowbit_norm_args_t;

/**
 * How lowbit_report_text prints.
 */
typedef int32_t lowbit_report_format_t;

/**
 * One call of lowbit_ema. Arrays are in the plan's order and are read before the call returns.
 */
typedef struct lowbit_ema_args_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * Zero.
   */
  uint64_t flags;
  /**
   * The state that is averaged: "x" under the optimizer none.
   */
  const char *state_name;
  /**
   * Length of inputs and outputs.
   */
  int64_t tensor_count;
  /**
   * What is averaged, in the gradients' dtypes.
   */
  const struct lowbit_buffer_t *inputs;
  /**
   * Where the new averages go, f32.
   */
  const struct lowbit_buffer_t *outputs;
  /**
   * Length of state.
   */
  int64_t buffer_count;
  /**
   * State buffers.
   */
  const struct lowbit_buffer_t *state;
  /**
   * Factor of the old average.
   */
  float decay;
  /**
   * Factor of the input: 1 - decay, or 1.
   */
  float weight;
  /**
   * Number of this step, for stochastic rounding.
   */
  int32_t step;
  /**
   * Zero.
   */
  int32_t reserved;
} lowbit_ema_args_t;

/**
 * What a checkpoint says besides the states.
 */
typedef struct lowbit_checkpoint_info_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * Steps done when it was written.
   */
  int64_t step;
} lowbit_checkpoint_info_t;

/**
 * Takes the next bytes of a checkpoint; 0 for OK, anything else fails the call with IO.
 */
typedef int32_t (*lowbit_write_t)(void *user,
                                  const void *data,
                                  size_t bytes);

/**
 * Is told the bytes that are done and how many there are; anything but 0 ends the call with
 * CANCELLED, unless a state is being written already.
 */
typedef int32_t (*lowbit_progress_t)(void *user,
                                     int64_t done,
                                     int64_t total);

/**
 * Where a checkpoint goes: path, write, or fd with its flag, exactly one of them.
 */
typedef struct lowbit_save_args_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * LOWBIT_SAVE_... bits.
   */
  uint64_t flags;
  /**
   * Number of state buffers; that of the plan.
   */
  int64_t buffer_count;
  /**
   * All state buffers (array on the host).
   */
  const struct lowbit_buffer_t *state;
  /**
   * Steps done; 0 or more.
   */
  int64_t step;
  /**
   * UTF-8: the file is replaced whole or not at all. NULL otherwise.
   */
  const char *path;
  /**
   * Gets the bytes in their order. NULL otherwise.
   */
  lowbit_write_t write;
  /**
   * Passed to write.
   */
  void *write_user;
  /**
   * A file descriptor that is open for writing; the caller's to sync and close.
   */
  int32_t fd;
  /**
   * With path: its file's name has "{step}" in it, which is replaced by the number, and of the
   * files with such names this many, the newest, stay. 0: nothing is replaced or removed.
   */
  int32_t keep;
  /**
   * NULL, or called about once for each MiB.
   */
  lowbit_progress_t progress;
  /**
   * Passed to progress.
   */
  void *progress_user;
} lowbit_save_args_t;

/**
 * Fills `data` with the bytes of a checkpoint from byte `offset` on; 0 for OK, anything else fails
 * the call with IO.
 */
typedef int32_t (*lowbit_read_t)(void *user,
                                 int64_t offset,
                                 void *data,
                                 size_t bytes);

/**
 * Where a checkpoint comes from: path, read, or fd with its flag, exactly one of them.
 */
typedef struct lowbit_load_args_t {
  /**
   * sizeof of this struct.
   */
  size_t struct_size;
  /**
   * LOWBIT_LOAD_... bits.
   */
  uint64_t flags;
  /**
   * Number of state buffers; that of the plan.
   */
  int64_t buffer_count;
  /**
   * All state buffers (array on the host), which are written only after what they are read from
   * was verified.
   */
  const struct lowbit_buffer_t *state;
  /**
   * UTF-8: a checkpoint file, or an index of several. NULL otherwise.
   */
  const char *path;
  /**
   * Gives bytes at any place, each twice: first to verify them. NULL otherwise.
   */
  lowbit_read_t read;
  /**
   * Passed to read.
   */
  void *read_user;
  /**
   * With read: the size of the checkpoint. 0 otherwise.
   */
  int64_t bytes;
  /**
   * A file descriptor that is open for reading; its position is not used or changed.
   */
  int32_t fd;
  /**
   * Zero.
   */
  int32_t reserved;
  /**
   * NULL, or called about once for each MiB.
   */
  lowbit_progress_t progress;
  /**
   * Passed to progress.
   */
  void *progress_user;
} lowbit_load_args_t;

/**
 * Done.
 */
#define LOWBIT_STATUS_OK 0

/**
 * A required pointer is null.
 */
#define LOWBIT_STATUS_NULL_POINTER 1

/**
 * An argument has a value that is not allowed.
 */
#define LOWBIT_STATUS_INVALID_ARGUMENT 2

/**
 * struct_size is too small, or fields that this library does not know are not zero.
 */
#define LOWBIT_STATUS_STRUCT_SIZE 3

/**
 * A flag bit that this library does not know is set.
 */
#define LOWBIT_STATUS_UNKNOWN_FLAG 4

/**
 * A buffer has another size than the plan says, or is too small for an output.
 */
#define LOWBIT_STATUS_BUFFER_SIZE 5

/**
 * A pointer is not aligned for its data type.
 */
#define LOWBIT_STATUS_MISALIGNED 6

/**
 * Two buffers overlap that must not.
 */
#define LOWBIT_STATUS_OVERLAP 7

/**
 * Well-formed, but not implemented by this version or this backend; the text says what is.
 */
#define LOWBIT_STATUS_UNSUPPORTED 20

/**
 * Not a lowbit checkpoint.
 */
#define LOWBIT_STATUS_FORMAT_MAGIC 40

/**
 * A checkpoint of a format version that this library does not read.
 */
#define LOWBIT_STATUS_FORMAT_VERSION 41

/**
 * The bytes end before the checkpoint does.
 */
#define LOWBIT_STATUS_FORMAT_TRUNCATED 42

/**
 * A checksum differs or the container is malformed.
 */
#define LOWBIT_STATUS_FORMAT_CORRUPT 43

/**
 * A sound checkpoint of another plan.
 */
#define LOWBIT_STATUS_FORMAT_MISMATCH 44

/**
 * No CUDA driver, device or kernel can be used here; the text says why.
 */
#define LOWBIT_STATUS_CUDA_UNAVAILABLE 60

/**
 * The device's memory is exhausted.
 */
#define LOWBIT_STATUS_CUDA_OUT_OF_MEMORY 62

/**
 * A CUDA call failed.
 */
#define LOWBIT_STATUS_CUDA_ERROR 63

/**
 * The host's memory is exhausted.
 */
#define LOWBIT_STATUS_OUT_OF_MEMORY 80

/**
 * A file operation, or a callback that stands for one, failed.
 */
#define LOWBIT_STATUS_IO 81

/**
 * A progress callback asked to stop.
 */
#define LOWBIT_STATUS_CANCELLED 82

/**
 * A panic was caught; the handle it came from refuses all further calls but destroy.
 */
#define LOWBIT_STATUS_INTERNAL 100

/**
 * IEEE-754 binary32.
 */
#define LOWBIT_DTYPE_F32 1

/**
 * The upper half of a binary32.
 */
#define LOWBIT_DTYPE_BF16 2

/**
 * IEEE-754 binary16.
 */
#define LOWBIT_DTYPE_F16 3

/**
 * Packed codes: one of 5 to 8 bits, two of 3 or 4, four of 2 bits in a byte, the first element in
 * the lowest bits.
 */
#define LOWBIT_DTYPE_U8 4

/**
 * Statistics whose maximum is taken.
 */
#define LOWBIT_DTYPE_I32 5

/**
 * Statistics that are added.
 */
#define LOWBIT_DTYPE_I64 6

/**
 * The lower half of a parameter's f32 value.
 */
#define LOWBIT_DTYPE_U16 7

/**
 * The correction of a bf16 parameter.
 */
#define LOWBIT_DTYPE_I8 8

/**
 * AdamW: states m, v; with AMSGrad vmax.
 */
#define LOWBIT_OPTIMIZER_ADAMW 1

/**
 * No update, one state x: for compress and decompress alone.
 */
#define LOWBIT_OPTIMIZER_NONE 2

/**
 * Adam, with the decay in the gradient (L2): states as AdamW.
 */
#define LOWBIT_OPTIMIZER_ADAM 3

/**
 * SGD with momentum: state m.
 */
#define LOWBIT_OPTIMIZER_SGDM 4

/**
 * Lion: state m.
 */
#define LOWBIT_OPTIMIZER_LION 5

/**
 * Adafactor: states v, and m if the spec has a quantizer for it.
 */
#define LOWBIT_OPTIMIZER_ADAFACTOR 6

/**
 * SM3: states v (one vector of maxima per axis), and m if the spec has a quantizer for it.
 */
#define LOWBIT_OPTIMIZER_SM3 7

/**
 * The largest magnitude of each block of a row.
 */
#define LOWBIT_NORMALIZATION_BLOCK 1

/**
 * The smallest, over the axes, of the slice maxima; blocks of 128 for one-axis tensors.
 */
#define LOWBIT_NORMALIZATION_RANK1 2

/**
 * The largest magnitude of the tensor.
 */
#define LOWBIT_NORMALIZATION_TENSOR 3

/**
 * The largest magnitude of each row of the block grid.
 */
#define LOWBIT_NORMALIZATION_ROW 4

/**
 * The largest magnitude of each column of the block grid.
 */
#define LOWBIT_NORMALIZATION_COLUMN 5

/**
 * No codes: row and column means (for v); tensors with at most one axis, and those whose means
 * would take more bytes, are coded in blocks of 128.
 */
#define LOWBIT_NORMALIZATION_FACTORED 6

/**
 * Dynamic exponent, signed for m and x, unsigned for v.
 */
#define LOWBIT_MAPPING_DE 1

/**
 * Zero-free linear, (i + 1) / 2^bits; signed +-(i + 1) / 2^(bits - 1).
 */
#define LOWBIT_MAPPING_LINEAR 2

/**
 * Dynamic exponent without its zero; for v only.
 */
#define LOWBIT_MAPPING_DE0 3

/**
 * Linear from 0 on, i / (2^bits - 1).
 */
#define LOWBIT_MAPPING_LINEAR_WITH_ZERO 4

/**
 * The squares of linear.
 */
#define LOWBIT_MAPPING_POWER2 5

/**
 * The cubes of linear.
 */
#define LOWBIT_MAPPING_POWER3 6

/**
 * NormalFloat, 4 bits; for m and x only.
 */
#define LOWBIT_MAPPING_NF4 7

/**
 * 10^(-4 k / (2^bits - 1)); for v only.
 */
#define LOWBIT_MAPPING_GEOMETRIC 8

/**
 * The quantizer's own levels.
 */
#define LOWBIT_MAPPING_TABLE 9

/**
 * The nearest level, ties to the lower one.
 */
#define LOWBIT_ROUNDING_NEAREST 0

/**
 * Up or down at random, unbiased in the state.
 */
#define LOWBIT_ROUNDING_STOCHASTIC 1

/**
 * Unbiased in the logarithm of v.
 */
#define LOWBIT_ROUNDING_STOCHASTIC_LOG 2

/**
 * Unbiased in 1 / (sqrt(v) + eps).
 */
#define LOWBIT_ROUNDING_STOCHASTIC_PRECONDITIONER 3

/**
 * The contiguous split of all axes into rows and columns that takes the fewest bytes.
 */
#define LOWBIT_FACTOR_AXES_MERGED 0

/**
 * The last two; the axes before them are a batch.
 */
#define LOWBIT_FACTOR_AXES_LAST_TWO 1

/**
 * The two largest; all others are a batch.
 */
#define LOWBIT_FACTOR_AXES_LARGEST_TWO 2

/**
 * Nothing; rounded to nearest, so that updates below half a last place vanish.
 */
#define LOWBIT_WEIGHTS_PLAIN 0

/**
 * Nothing; rounded up or down at random, so that the mean is right.
 */
#define LOWBIT_WEIGHTS_STOCHASTIC 1

/**
 * An f32 master. Zeros, or a master that does not round to the parameter, mean the parameter.
 */
#define LOWBIT_WEIGHTS_MASTER 2

/**
 * The lower 16 bits of the f32 value; for bf16.
 */
#define LOWBIT_WEIGHTS_REMAINDER16 3

/**
 * 8 bits of correction; for bf16.
 */
#define LOWBIT_WEIGHTS_CORRECTION8 4

/**
 * The best that this processor can run, or what the environment variable LOWBIT_CPU_VARIANT names:
 * reference, portable, avx2 or avx512.
 */
#define LOWBIT_CPU_VARIANT_AUTO 0

/**
 * The definition, one element at a time on one thread; for tests.
 */
#define LOWBIT_CPU_VARIANT_REFERENCE 1

/**
 * Code for the target's baseline instructions.
 */
#define LOWBIT_CPU_VARIANT_PORTABLE 2

/**
 * Code for AVX2, FMA and F16C.
 */
#define LOWBIT_CPU_VARIANT_AVX2 3

/**
 * Code for AVX-512 (F, BW, VL, DQ).
 */
#define LOWBIT_CPU_VARIANT_AVX512 4

/**
 * SKIP_TENSOR for tensors whose update needs statistics of the whole tensor, SKIP_BLOCK for all
 * others.
 */
#define LOWBIT_NONFINITE_DEFAULT 0

/**
 * The block's parameters, codes and scales stay. Refused where scales reach across blocks.
 */
#define LOWBIT_NONFINITE_SKIP_BLOCK 1

/**
 * The tensor stays; one more read of its gradient unless it has statistics anyway.
 */
#define LOWBIT_NONFINITE_SKIP_TENSOR 2

/**
 * All tensors stay; one more read of every gradient.
 */
#define LOWBIT_NONFINITE_SKIP_STEP 3

/**
 * NaN spreads into parameters and states, in canonical form.
 */
#define LOWBIT_NONFINITE_PROPAGATE 4

/**
 * Element-wise maximum, as signed integers.
 */
#define LOWBIT_REDUCE_MAX 1

/**
 * Element-wise sum, as signed integers.
 */
#define LOWBIT_REDUCE_SUM 2

/**
 * A table for people.
 */
#define LOWBIT_REPORT_TABLE 0

/**
 * An object with the key "states", one element per tensor and quantized state.
 */
#define LOWBIT_REPORT_JSON 1

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The ABI that this library implements; compare it with LOWBIT_ABI_MAJOR (must be equal) and
 * LOWBIT_ABI_MINOR (must be at least that) of the header you compiled with.
 *
 * # Parameters
 * - `major` (out, host, not NULL), `minor` (out, host, not NULL).
 * # Returns
 * OK, NULL_POINTER, MISALIGNED.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * The pointers are valid.
 */
lowbit_status_t lowbit_abi_version(uint32_t *major,
                                   uint32_t *minor);

/**
 * The library's own version, as "0.1.0".
 *
 * # Parameters
 * None.
 * # Returns
 * A static text, never NULL.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * The library's.
 * # Since
 * ABI 0.1
 * # Safety
 * Nothing to check.
 */
const char *lowbit_version(void);

/**
 * The name of a status, as "INVALID_ARGUMENT"; "UNKNOWN" for numbers that are none.
 *
 * # Parameters
 * - `status` (in).
 * # Returns
 * A static text, never NULL.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * The library's.
 * # Since
 * ABI 0.1
 * # Safety
 * Nothing to check.
 */
const char *lowbit_status_name(lowbit_status_t status);

/**
 * The text of the last call on this thread that failed: which argument, which value. A call that
 * succeeds leaves it alone, so read it at once.
 *
 * # Parameters
 * - `buf` (out, host): receives the text and a NUL; may be NULL if `cap` is 0.
 * - `cap` (in): bytes of `buf`.
 * - `needed` (out, host): bytes of the text with its NUL; may be NULL. At most 1025.
 * # Returns
 * OK; BUFFER_SIZE if `cap` is too small; NULL_POINTER if both pointers are NULL.
 * # Threads
 * Any; each thread has its own text.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * `buf` has `cap` bytes.
 */
lowbit_status_t lowbit_last_error(char *buf,
                                  size_t cap,
                                  size_t *needed);

/**
 * Makes a spec from its name.
 *
 * # Parameters
 * - `name` (in, host, not NULL): "adamw32", "adamw8", "adamw4" (the paper's 4-bit AdamW, rank-1
 *   v), "adamw4-block" (both moments in blocks of 128), "adamw4-robust" (rank-1 v under squares, m
 *   rounded at random), "factor32", "factor4", "sgdm32", "sgdm8", "sgdm4", "lion32", "lion8",
 *   "lion4", "adafactor" or "sm3".
 * - `out` (out, host, not NULL): the spec, or NULL on failure.
 * # Returns
 * OK, NULL_POINTER, INVALID_ARGUMENT (the text lists the names).
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * The caller destroys the spec by lowbit_spec_destroy.
 * # Since
 * ABI 0.1
 * # Safety
 * `name` is NUL-terminated.
 */
lowbit_status_t lowbit_spec_create_preset(const char *name,
                                          struct lowbit_spec_t **out);

/**
 * Makes a spec from its JSON form.
 *
 * # Parameters
 * - `json` (in, host, not NULL): as printed by lowbit_spec_json. Unknown keys are refused.
 * - `out` (out, host, not NULL): the spec, or NULL on failure.
 * # Returns
 * OK, NULL_POINTER, INVALID_ARGUMENT (the text names the key), UNSUPPORTED.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * The caller destroys the spec by lowbit_spec_destroy.
 * # Since
 * ABI 0.1
 * # Safety
 * `json` is NUL-terminated.
 */
lowbit_status_t lowbit_spec_create_json(const char *json,
                                        struct lowbit_spec_t **out);

/**
 * Makes a spec field by field.
 *
 * # Parameters
 * - `info` (in, host, not NULL): fields that are NULL or 0 come from its preset.
 * - `out` (out, host, not NULL): the spec, or NULL on failure.
 * # Returns
 * OK, NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT, UNSUPPORTED.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * The caller destroys the spec by lowbit_spec_destroy; `info` is not kept.
 * # Since
 * ABI 0.1
 * # Safety
 * The pointers in `info` are valid.
 */
lowbit_status_t lowbit_spec_create(const struct lowbit_spec_info_t *info,
                                   struct lowbit_spec_t **out);

/**
 * Prints a spec as JSON: one line, the same text for equal specs.
 *
 * # Parameters
 * - `spec` (in, not NULL).
 * - `buf` (out, host): receives the text and a NUL; may be NULL if `cap` is 0.
 * - `cap` (in): bytes of `buf`.
 * - `needed` (out, host): bytes of the text with its NUL; may be NULL.
 * # Returns
 * OK, NULL_POINTER, BUFFER_SIZE if `cap` is too small.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * `buf` has `cap` bytes.
 */
lowbit_status_t lowbit_spec_json(const struct lowbit_spec_t *spec,
                                 char *buf,
                                 size_t cap,
                                 size_t *needed);

/**
 * Frees a spec. Plans made from it keep what they need.
 *
 * # Parameters
 * - `spec` (in): may be NULL.
 * # Returns
 * Nothing.
 * # Threads
 * No other thread uses `spec`.
 * # Stream
 * None.
 * # Ownership
 * Ends the caller's.
 * # Since
 * ABI 0.1
 * # Safety
 * `spec` was not destroyed before.
 */
void lowbit_spec_destroy(struct lowbit_spec_t *spec);

/**
 * Makes a CPU context.
 *
 * # Parameters
 * - `info` (in, host): NULL means all defaults.
 * - `out` (out, host, not NULL): the context, or NULL on failure.
 * # Returns
 * OK, NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT, UNSUPPORTED (the processor lacks
 * the variant), OUT_OF_MEMORY (threads could not be started).
 * # Threads
 * Any. Threads that it starts are joined by lowbit_context_destroy.
 * # Stream
 * None.
 * # Ownership
 * The caller destroys the context by lowbit_context_destroy; parallel_for must live until then
 * and until all plans made from it are destroyed.
 * # Since
 * ABI 0.1
 * # Safety
 * `info` is valid; parallel_for does what its type says.
 */
lowbit_status_t lowbit_context_create_cpu(const struct lowbit_cpu_info_t *info,
                                          struct lowbit_context_t **out);

/**
 * Opens a CUDA device; plans load the kernels that they need.
 *
 * # Parameters
 * - `info` (in, host): NULL means device 0.
 * - `out` (out, host, not NULL): the context, or NULL on failure.
 * # Returns
 * OK, NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, CUDA_UNAVAILABLE (the text says why), CUDA_ERROR.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * The caller destroys the context by lowbit_context_destroy. It holds the device's primary
 * context.
 * # Since
 * ABI 0.1
 * # Safety
 * `info` is valid.
 */
lowbit_status_t lowbit_context_create_cuda(const struct lowbit_cuda_info_t *info,
                                           struct lowbit_context_t **out);

/**
 * Says whether a CUDA device can be used, and if not, why.
 *
 * # Parameters
 * - `device` (in): ordinal.
 * - `buf` (out, host): receives "available" or the reason, and a NUL; may be NULL if `cap`
 *   is 0.
 * - `cap` (in): bytes of `buf`.
 * - `needed` (out, host): bytes of the text with its NUL; may be NULL.
 * # Returns
 * OK if lowbit_context_create_cuda would find driver, device and kernels; CUDA_UNAVAILABLE with
 * the reason in `buf` (if it fits) and in lowbit_last_error.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * `buf` has `cap` bytes.
 */
lowbit_status_t lowbit_cuda_probe(int32_t device,
                                  char *buf,
                                  size_t cap,
                                  size_t *needed);

/**
 * Destroys a context: threads are joined, the device's primary context is released. Plans made
 * from it keep it alive until they are destroyed.
 *
 * # Parameters
 * - `context` (in): may be NULL.
 * # Returns
 * Nothing.
 * # Threads
 * No other thread uses `context`.
 * # Stream
 * None.
 * # Ownership
 * Ends the caller's.
 * # Since
 * ABI 0.1
 * # Safety
 * `context` was not destroyed before.
 */
void lowbit_context_destroy(struct lowbit_context_t *context);

/**
 * Lays out the states of a list of tensors. Everything that depends on shapes and configuration
 * is checked, compiled and allocated here, so that steps are only work.
 *
 * # Parameters
 * - `context` (in, not NULL), `spec` (in, not NULL): not kept as handles; both may be destroyed.
 * - `tensors` (in, host): array of `tensor_count` structs, each of the struct_size that the first
 *   one says; may be NULL if `tensor_count` is 0.
 * - `tensor_count` (in): 0 or more.
 * - `out` (out, host, not NULL): the plan, or NULL on failure.
 * # Returns
 * OK, NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT (the text names tensor and field),
 * UNSUPPORTED (the backend has no kernel for what a tensor would get), OUT_OF_MEMORY.
 * # Threads
 * Any. A plan may be used by several threads at once.
 * # Stream
 * None.
 * # Ownership
 * The caller destroys the plan by lowbit_plan_destroy; `tensors` is not kept.
 * # Since
 * ABI 0.1
 * # Safety
 * The pointers in `tensors` are valid.
 */
lowbit_status_t lowbit_plan_create(const struct lowbit_context_t *context,
                                   const struct lowbit_spec_t *spec,
                                   const struct lowbit_tensor_info_t *tensors,
                                   int64_t tensor_count,
                                   struct lowbit_plan_t **out);

/**
 * Sizes of a plan: what to allocate before training starts.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `out` (out, host, not NULL): its struct_size is read.
 * # Returns
 * OK, NULL_POINTER, STRUCT_SIZE.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * `out` has struct_size bytes.
 */
lowbit_status_t lowbit_plan_info(const struct lowbit_plan_t *plan,
                                 struct lowbit_plan_info_t *out);

/**
 * What one tensor got, and why.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `tensor` (in): index.
 * - `out` (out, host, not NULL): its struct_size is read; its pointers live as long as the plan.
 * # Returns
 * OK, NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * The texts are the plan's.
 * # Since
 * ABI 0.1
 * # Safety
 * `out` has struct_size bytes.
 */
lowbit_status_t lowbit_plan_tensor(const struct lowbit_plan_t *plan,
                                   int64_t tensor,
                                   struct lowbit_tensor_report_t *out);

/**
 * Type, shape, size and place of one state buffer.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `buffer` (in): index.
 * - `out` (out, host, not NULL): its struct_size is read; its pointers live as long as the plan.
 * # Returns
 * OK, NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * The texts and the shape are the plan's.
 * # Since
 * ABI 0.1
 * # Safety
 * `out` has struct_size bytes.
 */
lowbit_status_t lowbit_plan_buffer(const struct lowbit_plan_t *plan,
                                   int64_t buffer,
                                   struct lowbit_buffer_info_t *out);

/**
 * The statistics that lowbit_step_stats fills in one stage, and how shards combine them before the
 * next stage.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `stage` (in): index, less than the plan's stage_count.
 * - `out` (out, host, not NULL): its struct_size is read.
 * # Returns
 * OK, NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * `out` has struct_size bytes.
 */
lowbit_status_t lowbit_plan_stage(const struct lowbit_plan_t *plan,
                                  int64_t stage,
                                  struct lowbit_stage_info_t *out);

/**
 * A table for people: per tensor its shape, bytes, quantizers and why, and the totals.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `buf` (out, host): receives the text and a NUL; may be NULL if `cap` is 0.
 * - `cap` (in): bytes of `buf`.
 * - `needed` (out, host): bytes of the text with its NUL; may be NULL.
 * # Returns
 * OK, NULL_POINTER, BUFFER_SIZE if `cap` is too small.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * `buf` has `cap` bytes.
 */
lowbit_status_t lowbit_plan_report(const struct lowbit_plan_t *plan,
                                   char *buf,
                                   size_t cap,
                                   size_t *needed);

/**
 * Frees a plan. States made from it stay valid.
 *
 * # Parameters
 * - `plan` (in): may be NULL.
 * # Returns
 * Nothing.
 * # Threads
 * No other thread uses `plan`.
 * # Stream
 * None.
 * # Ownership
 * Ends the caller's.
 * # Since
 * ABI 0.1
 * # Safety
 * `plan` was not destroyed before.
 */
void lowbit_plan_destroy(struct lowbit_plan_t *plan);

/**
 * Allocates the state buffers of a plan and sets them to zero, the state before the first step.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `stream` (in): a CUstream or cudaStream_t for CUDA contexts, ignored by CPU contexts.
 * - `out` (out, host, not NULL): the state, or NULL on failure.
 * # Returns
 * OK, NULL_POINTER, OUT_OF_MEMORY, CUDA_OUT_OF_MEMORY, CUDA_ERROR.
 * # Threads
 * Any.
 * # Stream
 * Zeroing is enqueued on `stream`.
 * # Ownership
 * The caller destroys the state by lowbit_state_destroy. The plan may be destroyed before.
 * # Since
 * ABI 0.1
 * # Safety
 * `stream` is a stream of the plan's device.
 */
lowbit_status_t lowbit_state_create(const struct lowbit_plan_t *plan,
                                    void *stream,
                                    struct lowbit_state_t **out);

/**
 * The buffers of a state, to be passed to steps and checkpoints.
 *
 * # Parameters
 * - `state` (in, not NULL).
 * - `buffers` (out, host, not NULL): array of `buffer_count` elements.
 * - `buffer_count` (in): buffer_count of the plan.
 * # Returns
 * OK, NULL_POINTER, BUFFER_SIZE (another count).
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * The memory is the state's and lives as long as it does.
 * # Since
 * ABI 0.1
 * # Safety
 * `buffers` has that many elements.
 */
lowbit_status_t lowbit_state_buffers(const struct lowbit_state_t *state,
                                     struct lowbit_buffer_t *buffers,
                                     int64_t buffer_count);

/**
 * Frees a state and its memory.
 *
 * # Parameters
 * - `state` (in): may be NULL.
 * - `stream` (in): as for lowbit_state_create.
 * # Returns
 * Nothing.
 * # Threads
 * No other thread uses `state` or its buffers.
 * # Stream
 * The memory is freed when work enqueued on `stream` before has finished.
 * # Ownership
 * Ends the caller's.
 * # Since
 * ABI 0.1
 * # Safety
 * `state` was not destroyed before; work on other streams that uses it has finished.
 */
void lowbit_state_destroy(struct lowbit_state_t *state,
                          void *stream);

/**
 * Updates all tensors of a plan: parameters (or updates) and states.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `args` (in, host, not NULL): start from LOWBIT_STEP_ARGS_INIT.
 * - `stream` (in): a CUstream or cudaStream_t for CUDA contexts, ignored by CPU contexts.
 * # Returns
 * OK; NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED, OVERLAP
 * (nothing was written); UNSUPPORTED; CUDA_ERROR; INTERNAL.
 * # Threads
 * Several threads may step one plan at once on different buffers and scratch.
 * # Stream
 * The call returns when the work has been enqueued on `stream`. No allocation, copy, event or
 * synchronisation. On a CPU context the work is done on return.
 * # Ownership
 * All memory stays the caller's and must not be touched until the work is done.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes in the plan's memory space.
 */
lowbit_status_t lowbit_step(const struct lowbit_plan_t *plan,
                            const struct lowbit_step_args_t *args,
                            void *stream);

/**
 * One collecting stage of lowbit_step: fills the scratch with the statistics of lowbit_plan_stage,
 * which a trainer with shards all-reduces before the next stage. After the last of them comes
 * lowbit_step_apply.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `args` (in, host, not NULL): as for lowbit_step, the same in all stages; only scratch is
 *   written.
 * - `stage` (in): index, less than the plan's stage_count; those before it have been run and
 *   reduced.
 * - `stream` (in): as for lowbit_step.
 * # Returns
 * As lowbit_step.
 * # Threads
 * As lowbit_step.
 * # Stream
 * As lowbit_step.
 * # Ownership
 * As lowbit_step.
 * # Since
 * ABI 0.1
 * # Safety
 * As lowbit_step.
 */
lowbit_status_t lowbit_step_stats(const struct lowbit_plan_t *plan,
                                  const struct lowbit_step_args_t *args,
                                  int64_t stage,
                                  void *stream);

/**
 * The last stage of lowbit_step: updates parameters and states, given the (reduced) statistics in
 * the scratch.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `args` (in, host, not NULL): the same as for lowbit_step_stats.
 * - `stream` (in): as for lowbit_step.
 * # Returns
 * As lowbit_step.
 * # Threads
 * As lowbit_step.
 * # Stream
 * As lowbit_step.
 * # Ownership
 * As lowbit_step.
 * # Since
 * ABI 0.1
 * # Safety
 * As lowbit_step.
 */
lowbit_status_t lowbit_step_apply(const struct lowbit_plan_t *plan,
                                  const struct lowbit_step_args_t *args,
                                  void *stream);

/**
 * Prepares steps of a plan whose states are on the host, while parameters and gradients are on a
 * CUDA device. The plan's context says where the step runs. On a CPU context, gradients come to the
 * host, which steps its copy of the parameters and its states (with the master weights), and
 * parameters go back. On a CUDA context, states come to the device and go back. Either way the
 * tensors are stepped in parts that share two slots of staging memory, so that copies run beside
 * steps, with the bits of lowbit_step.
 *
 * # Parameters
 * - `plan` (in, not NULL): not kept as a handle; may be destroyed.
 * - `device` (in): the CUDA context where parameters and gradients are, not kept as a handle; may be
 *   NULL if the plan's context is one.
 * - `staging_bytes` (in): the most that both slots may take together; 0 means the least, twice the
 *   largest tensor's gradient (step on the host) or states (on the device). Small tensors share a
 *   slot, and larger slots make fewer parts.
 * - `out` (out, host, not NULL): the offload, or NULL on failure.
 * # Returns
 * OK, NULL_POINTER, INVALID_ARGUMENT (staging_bytes is too small, `device` is not the plan's),
 * UNSUPPORTED (a plan without an optimizer), OUT_OF_MEMORY (also of memory that can be pinned),
 * CUDA_OUT_OF_MEMORY, CUDA_ERROR.
 * # Threads
 * Any.
 * # Stream
 * Synchronises the legacy default stream. Allocates all that steps need: pinned and staging memory,
 * two streams, events.
 * # Ownership
 * The caller destroys the offload by lowbit_offload_destroy.
 * # Since
 * ABI 0.1
 * # Safety
 * The handles are alive.
 */
lowbit_status_t lowbit_offload_create(const struct lowbit_plan_t *plan,
                                      const struct lowbit_context_t *device,
                                      int64_t staging_bytes,
                                      struct lowbit_offload_t **out);

/**
 * Sizes of an offload, the bytes that a step moves, and how far the last step came.
 *
 * # Parameters
 * - `offload` (in, not NULL).
 * - `out` (out, host, not NULL): its struct_size is read.
 * # Returns
 * OK, NULL_POINTER, STRUCT_SIZE.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * `out` has struct_size bytes.
 */
lowbit_status_t lowbit_offload_info(const struct lowbit_offload_t *offload,
                                    struct lowbit_offload_info_t *out);

/**
 * The host's memory of an offload: its parameters, if steps run on the host, and its states, as a
 * plan of a CPU context takes them (for checkpoints). All bytes are 0 at first, which is the initial
 * state; the initial parameters are the caller's to copy.
 *
 * # Parameters
 * - `offload` (in, not NULL).
 * - `params` (out, host): array of `tensor_count` elements, one per tensor; NULL if steps run on
 *   the device.
 * - `tensor_count` (in): tensor_count of the plan, or 0 if steps run on the device.
 * - `state` (out, host, not NULL): array of `buffer_count` elements, in the plan's order.
 * - `buffer_count` (in): buffer_count of the plan.
 * # Returns
 * OK, NULL_POINTER, MISALIGNED, BUFFER_SIZE (other counts).
 * # Threads
 * Any.
 * # Stream
 * None. The memory may be read and written when the stream of the last step has been synchronised;
 * if steps run on the host, it may be read as soon as the step has returned.
 * # Ownership
 * The memory is the offload's and lives as long as it does.
 * # Since
 * ABI 0.1
 * # Safety
 * The arrays have that many elements.
 */
lowbit_status_t lowbit_offload_buffers(const struct lowbit_offload_t *offload,
                                       struct lowbit_buffer_t *params,
                                       int64_t tensor_count,
                                       struct lowbit_buffer_t *state,
                                       int64_t buffer_count);

/**
 * Updates all tensors of the plan in the order of `stream`: a gradient is read when the work
 * enqueued there before has finished, and what is enqueued later finds the new parameters.
 *
 * # Parameters
 * - `offload` (in, not NULL).
 * - `args` (in, host, not NULL): as for lowbit_step, with params and grads in device memory, and
 *   hyper, step_number and skipped in the memory space of the plan. state, buffer_count and scratch
 *   are the offload's own: NULL and 0. updates, offsets, LOWBIT_STEP_COUNTED and
 *   LOWBIT_NONFINITE_SKIP_STEP (which would need all gradients before the first tensor) are not
 *   possible.
 * - `stream` (in): a CUstream or cudaStream_t of the device, always the same one, or one that the
 *   caller has ordered behind the last.
 * # Returns
 * OK; NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED, OVERLAP,
 * UNSUPPORTED (nothing was done); CUDA_ERROR: the text and lowbit_offload_info say how many tensors,
 * from the first on, were stepped; no work is left behind. If steps run on the host, its parameters
 * and states are then whole: those tensors' after the step, all others' before it.
 * # Threads
 * No other thread uses `offload` or its memory.
 * # Stream
 * Waits for `stream`, if steps run on the host: on return they are done, and only copies of
 * parameters are enqueued. Else the call returns when all is enqueued. `stream` waits for copies on
 * two streams of the offload's. No allocation. Not to be captured.
 * # Ownership
 * All memory in `args` stays the caller's and must not be touched until the work is done.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes.
 */
lowbit_status_t lowbit_offload_step(struct lowbit_offload_t *offload,
                                    const struct lowbit_step_args_t *args,
                                    void *stream);

/**
 * Waits for the copies of an offload and frees it with its memory.
 *
 * # Parameters
 * - `offload` (in): may be NULL.
 * # Returns
 * Nothing.
 * # Threads
 * No other thread uses `offload` or its memory.
 * # Stream
 * Synchronises the offload's own streams, so steps have finished.
 * # Ownership
 * Ends the caller's.
 * # Since
 * ABI 0.1
 * # Safety
 * `offload` was not destroyed before.
 */
void lowbit_offload_destroy(struct lowbit_offload_t *offload);

/**
 * The global norm of a plan's gradients, and the factor that clips it: exact sums, so that threads,
 * shards and backends give the same bits. Call it before lowbit_step and pass the factor as
 * clip_factor, since the statistics of a step are of the clipped gradient.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `args` (in, host, not NULL): start from LOWBIT_NORM_ARGS_INIT.
 * - `stream` (in): a CUstream or cudaStream_t for CUDA contexts, ignored by CPU contexts.
 * - `norm` (out, host, not NULL): infinite or NaN if a gradient is.
 * - `clip_factor` (out, host, not NULL): min(1, max_norm / norm), and 1 if the norm is not finite:
 *   the step's own policy then decides.
 * # Returns
 * OK; NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED;
 * UNSUPPORTED on CUDA contexts, which would have to wait: lowbit_norm_clip leaves the results there.
 * # Threads
 * Several threads may use one plan at once with different scratch.
 * # Stream
 * On a CPU context the work is done on return.
 * # Ownership
 * All memory stays the caller's.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes in the plan's memory space.
 */
lowbit_status_t lowbit_norm(const struct lowbit_plan_t *plan,
                            const struct lowbit_norm_args_t *args,
                            void *stream,
                            float *norm,
                            float *clip_factor);

/**
 * One of the two collecting stages of lowbit_norm, for trainers with shards: each is all-reduced as
 * lowbit_norm_stage says before the next.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `args` (in, host, not NULL): as for lowbit_norm.
 * - `stage` (in): 0, then 1.
 * - `stream` (in): as for lowbit_norm.
 * # Returns
 * As lowbit_norm.
 * # Threads
 * As lowbit_norm.
 * # Stream
 * As lowbit_norm.
 * # Ownership
 * As lowbit_norm.
 * # Since
 * ABI 0.1
 * # Safety
 * As lowbit_norm.
 */
lowbit_status_t lowbit_norm_stats(const struct lowbit_plan_t *plan,
                                  const struct lowbit_norm_args_t *args,
                                  int64_t stage,
                                  void *stream);

/**
 * The end of lowbit_norm, given the (reduced) statistics of both stages in the scratch.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `args` (in, host, not NULL): as for lowbit_norm.
 * - `norm` (out, host, not NULL), `clip_factor` (out, host, not NULL): as for lowbit_norm.
 * # Returns
 * As lowbit_norm.
 * # Threads
 * As lowbit_norm.
 * # Stream
 * None.
 * # Ownership
 * As lowbit_norm.
 * # Since
 * ABI 0.1
 * # Safety
 * As lowbit_norm.
 */
lowbit_status_t lowbit_norm_finish(const struct lowbit_plan_t *plan,
                                   const struct lowbit_norm_args_t *args,
                                   float *norm,
                                   float *clip_factor);

/**
 * The end of lowbit_norm in the order of a stream, with the results in the plan's memory space, given
 * the (reduced) statistics of both stages in the scratch: for CUDA contexts, captured or not, where
 * the factor may go straight to the clip_factor of lowbit_step_args_t.hyper.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `args` (in, host, not NULL): as for lowbit_norm.
 * - `stream` (in): as for lowbit_norm.
 * - `norm` (out, memory space of the plan, may be NULL), `clip_factor` (out, memory space of the plan,
 *   may be NULL): as for lowbit_norm.
 * # Returns
 * OK; NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED; CUDA_ERROR.
 * # Threads
 * As lowbit_norm.
 * # Stream
 * The call returns when the work has been enqueued on `stream`. No allocation, copy, event or
 * synchronisation. On a CPU context the work is done on return.
 * # Ownership
 * As lowbit_norm.
 * # Since
 * ABI 0.1
 * # Safety
 * As lowbit_norm.
 */
lowbit_status_t lowbit_norm_clip(const struct lowbit_plan_t *plan,
                                 const struct lowbit_norm_args_t *args,
                                 void *stream,
                                 float *norm,
                                 float *clip_factor);

/**
 * What shards combine after a stage of lowbit_norm_stats, and how.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `stage` (in): 0 or 1.
 * - `out` (out, host, not NULL): its struct_size is read; offset counts from the scratch's begin.
 * # Returns
 * OK, NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * `out` has struct_size bytes.
 */
lowbit_status_t lowbit_norm_stage(const struct lowbit_plan_t *plan,
                                  int64_t stage,
                                  struct lowbit_stage_info_t *out);

/**
 * Measures what coding would lose in the step that `args` describe, without taking it: relative
 * error of every quantized state, shares of the lowest and highest codes, dead blocks,
 * preconditioner ratio, radial bias of m. Off the hot path: it takes copies of the largest tensor
 * on the host, some f32 values for each of its elements, and the time of the scalar reference, also
 * for tensors on a CUDA device, which are copied one after another.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `args` (in, host, not NULL): as for lowbit_step; nothing is written.
 * - `out` (out, host, not NULL): the report, or NULL on failure.
 * # Returns
 * As lowbit_step; OUT_OF_MEMORY (the host's); UNSUPPORTED (shards with scales or factors of the
 * global tensor).
 * # Threads
 * As lowbit_step.
 * # Stream
 * Synchronises the device of CUDA contexts: waits for all of its streams before it copies.
 * # Ownership
 * The caller destroys the report by lowbit_report_destroy.
 * # Since
 * ABI 0.1
 * # Safety
 * As lowbit_step.
 */
lowbit_status_t lowbit_report_create(const struct lowbit_plan_t *plan,
                                     const struct lowbit_step_args_t *args,
                                     struct lowbit_report_t **out);

/**
 * Prints a report.
 *
 * # Parameters
 * - `report` (in, not NULL).
 * - `format` (in): LOWBIT_REPORT_TABLE or LOWBIT_REPORT_JSON.
 * - `buf` (out, host): receives the text and a NUL; may be NULL if `cap` is 0.
 * - `cap` (in): bytes of `buf`.
 * - `needed` (out, host): bytes of the text with its NUL; may be NULL.
 * # Returns
 * OK, NULL_POINTER, INVALID_ARGUMENT, BUFFER_SIZE if `cap` is too small.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * `buf` has `cap` bytes.
 */
lowbit_status_t lowbit_report_text(const struct lowbit_report_t *report,
                                   lowbit_report_format_t format,
                                   char *buf,
                                   size_t cap,
                                   size_t *needed);

/**
 * Frees a report.
 *
 * # Parameters
 * - `report` (in): may be NULL.
 * # Returns
 * Nothing.
 * # Threads
 * No other thread uses `report`.
 * # Stream
 * None.
 * # Ownership
 * Ends the caller's.
 * # Since
 * ABI 0.1
 * # Safety
 * `report` was not destroyed before.
 */
void lowbit_report_destroy(struct lowbit_report_t *report);

/**
 * Quantizes f32 values into one state of every tensor of a plan: to import a full-precision state,
 * or as the primitive of an optimizer that lives in the trainer (a spec with the optimizer "none"
 * and its state "x").
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `state_name` (in, host, not NULL): "m", "v" or "x".
 * - `values` (in): array on the host of `tensor_count` f32 buffers, in the tensors' shapes.
 * - `tensor_count` (in): that of the plan.
 * - `state` (out): array on the host of all `buffer_count` state buffers; those of other states
 *   are not written.
 * - `buffer_count` (in): that of the plan.
 * - `stream` (in): ignored by CPU contexts.
 * # Returns
 * OK; NULL_POINTER, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED, OVERLAP (nothing was written);
 * UNSUPPORTED (rank-1 state of a shard).
 * # Threads
 * As lowbit_step.
 * # Stream
 * The call returns when the work has been enqueued on `stream`.
 * # Ownership
 * All memory stays the caller's.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes in the plan's memory space.
 */
lowbit_status_t lowbit_compress(const struct lowbit_plan_t *plan,
                                const char *state_name,
                                const struct lowbit_buffer_t *values,
                                int64_t tensor_count,
                                const struct lowbit_buffer_t *state,
                                int64_t buffer_count,
                                void *stream);

/**
 * Restores one state of every tensor of a plan as f32 values.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `state_name` (in, host, not NULL): "m", "v" or "x".
 * - `state` (in): array on the host of all `buffer_count` state buffers.
 * - `buffer_count` (in): that of the plan.
 * - `values` (out): array on the host of `tensor_count` f32 buffers, in the tensors' shapes.
 * - `tensor_count` (in): that of the plan.
 * - `stream` (in): ignored by CPU contexts.
 * # Returns
 * As lowbit_compress.
 * # Threads
 * As lowbit_step.
 * # Stream
 * The call returns when the work has been enqueued on `stream`.
 * # Ownership
 * All memory stays the caller's.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes in the plan's memory space.
 */
lowbit_status_t lowbit_decompress(const struct lowbit_plan_t *plan,
                                  const char *state_name,
                                  const struct lowbit_buffer_t *state,
                                  int64_t buffer_count,
                                  const struct lowbit_buffer_t *values,
                                  int64_t tensor_count,
                                  void *stream);

/**
 * Averages inputs into one state of every tensor of a plan: x' = decay x + weight input leaves in
 * f32 and its quantized form is kept. The primitive of optimizers that live in the trainer, such as
 * Muon's momentum; with a decay of 0 and a weight of 1 it is lowbit_compress with random numbers of
 * the step.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `args` (in, host, not NULL): start from LOWBIT_EMA_ARGS_INIT.
 * - `stream` (in): ignored by CPU contexts.
 * # Returns
 * As lowbit_compress; STRUCT_SIZE, UNKNOWN_FLAG.
 * # Threads
 * Several threads may use one plan at once on different buffers.
 * # Stream
 * On a CPU context the work is done on return.
 * # Ownership
 * All memory stays the caller's.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes in the plan's memory space.
 */
lowbit_status_t lowbit_ema(const struct lowbit_plan_t *plan,
                           const struct lowbit_ema_args_t *args,
                           void *stream);

/**
 * Converts the states of one plan into those of another for the same tensors: another quantizer or
 * optimizer, at any step of training. States that are kept alike are copied, others decoded and
 * coded again; states that the old plan does not have become zero. What is kept beside a parameter
 * is copied under the same weight form and else becomes zero, so that the parameter counts. Takes
 * 4 bytes for each element of the largest tensor that is coded again, where the states are.
 *
 * # Parameters
 * - `from` (in, not NULL): the old plan.
 * - `old_state` (in): array on the host of its `old_count` state buffers.
 * - `old_count` (in): buffer_count of `from`.
 * - `to` (in, not NULL): the new plan; its tensors have the names, shapes and places of the old, its
 *   states lie in the same memory: the host's or one device's.
 * - `new_state` (out): array on the host of its `new_count` state buffers.
 * - `new_count` (in): buffer_count of `to`.
 * # Returns
 * As lowbit_compress; UNSUPPORTED (states in two memories); OUT_OF_MEMORY, CUDA_OUT_OF_MEMORY.
 * # Threads
 * As lowbit_step.
 * # Stream
 * Synchronises the device of CUDA contexts: waits for all of its streams, then for its own work.
 * # Ownership
 * All memory stays the caller's.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes.
 */
lowbit_status_t lowbit_convert(const struct lowbit_plan_t *from,
                               const struct lowbit_buffer_t *old_state,
                               int64_t old_count,
                               const struct lowbit_plan_t *to,
                               const struct lowbit_buffer_t *new_state,
                               int64_t new_count);

/**
 * Writes a checkpoint file whole or not at all: into a temporary file of the same folder, synced,
 * then renamed over `path`.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `state` (in): array on the host of all `buffer_count` state buffers.
 * - `buffer_count` (in): that of the plan.
 * - `step` (in): steps done; 0 or more.
 * - `path` (in, host, not NULL): UTF-8.
 * - `stream` (in): ignored by CPU contexts.
 * # Returns
 * OK, NULL_POINTER, INVALID_ARGUMENT, BUFFER_SIZE, MISALIGNED, OUT_OF_MEMORY, IO (`path` is as it
 * was, or, if only its folder could not be synced, the new file).
 * # Threads
 * Any, while nobody changes the state.
 * # Stream
 * Synchronises `stream`.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes in the plan's memory space.
 */
lowbit_status_t lowbit_checkpoint_save(const struct lowbit_plan_t *plan,
                                       const struct lowbit_buffer_t *state,
                                       int64_t buffer_count,
                                       int64_t step,
                                       const char *path,
                                       void *stream);

/**
 * Reads a checkpoint file, or an index of several, written under the same spec for the same tensors
 * or any shards of them.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `path` (in, host, not NULL): UTF-8.
 * - `state` (out): array on the host of all `buffer_count` state buffers. They are written only
 *   after the whole file was verified.
 * - `buffer_count` (in): that of the plan.
 * - `stream` (in): ignored by CPU contexts.
 * - `out` (out, host): may be NULL; its struct_size is read.
 * # Returns
 * OK; IO, FORMAT_MAGIC, FORMAT_VERSION, FORMAT_TRUNCATED, FORMAT_CORRUPT, FORMAT_MISMATCH (the
 * state is untouched); NULL_POINTER, BUFFER_SIZE, MISALIGNED, STRUCT_SIZE, OUT_OF_MEMORY.
 * # Threads
 * Nobody else uses the state.
 * # Stream
 * Synchronises `stream`.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes in the plan's memory space.
 */
lowbit_status_t lowbit_checkpoint_load(const struct lowbit_plan_t *plan,
                                       const char *path,
                                       const struct lowbit_buffer_t *state,
                                       int64_t buffer_count,
                                       void *stream,
                                       struct lowbit_checkpoint_info_t *out);

/**
 * Writes a checkpoint into the caller's memory.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `state` (in): array on the host of all `buffer_count` state buffers.
 * - `buffer_count` (in): that of the plan.
 * - `step` (in): steps done; 0 or more.
 * - `stream` (in): ignored by CPU contexts.
 * - `buf` (out, host): receives the bytes; may be NULL if `cap` is 0.
 * - `cap` (in): bytes of `buf`.
 * - `needed` (out, host, not NULL): exact size of the checkpoint.
 * # Returns
 * OK, NULL_POINTER, INVALID_ARGUMENT, BUFFER_SIZE (also if `cap` is too small), MISALIGNED,
 * OUT_OF_MEMORY.
 * # Threads
 * Any, while nobody changes the state.
 * # Stream
 * Synchronises `stream`.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes; `buf` has `cap` bytes.
 */
lowbit_status_t lowbit_checkpoint_serialize(const struct lowbit_plan_t *plan,
                                            const struct lowbit_buffer_t *state,
                                            int64_t buffer_count,
                                            int64_t step,
                                            void *stream,
                                            void *buf,
                                            size_t cap,
                                            size_t *needed);

/**
 * Reads a checkpoint from the caller's memory.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `data` (in, host, not NULL), `bytes` (in): as written by lowbit_checkpoint_serialize or read
 *   from a file.
 * - `state` (out): array on the host of all `buffer_count` state buffers. They are written only
 *   after all bytes were verified.
 * - `buffer_count` (in): that of the plan.
 * - `stream` (in): ignored by CPU contexts.
 * - `out` (out, host): may be NULL; its struct_size is read.
 * # Returns
 * As lowbit_checkpoint_load.
 * # Threads
 * Nobody else uses the state.
 * # Stream
 * Synchronises `stream`.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes; `data` has `bytes` bytes.
 */
lowbit_status_t lowbit_checkpoint_deserialize(const struct lowbit_plan_t *plan,
                                              const void *data,
                                              size_t bytes,
                                              const struct lowbit_buffer_t *state,
                                              int64_t buffer_count,
                                              void *stream,
                                              struct lowbit_checkpoint_info_t *out);

/**
 * Writes a checkpoint to a path, a file descriptor or a callback, with progress.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `args` (in, host, not NULL): state, step and where they go.
 * - `stream` (in): ignored by CPU contexts.
 * # Returns
 * OK, NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT (also none or several targets),
 * BUFFER_SIZE, MISALIGNED, UNSUPPORTED (no file descriptors on this system), OUT_OF_MEMORY, IO,
 * CANCELLED. After a failure a path is as it was; a descriptor or callback has got a part.
 * # Threads
 * Any, while nobody changes the state. Callbacks are called on the calling thread.
 * # Stream
 * Synchronises `stream`.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes in the plan's memory space; callbacks return.
 */
lowbit_status_t lowbit_checkpoint_write(const struct lowbit_plan_t *plan,
                                        const struct lowbit_save_args_t *args,
                                        void *stream);

/**
 * Reads a checkpoint, whatever the mesh that wrote it, from a path, a file descriptor or a
 * callback, with progress.
 *
 * # Parameters
 * - `plan` (in, not NULL).
 * - `args` (in, host, not NULL): where it comes from, and the state (out).
 * - `stream` (in): ignored by CPU contexts.
 * - `out` (out, host): may be NULL; its struct_size is read.
 * # Returns
 * As lowbit_checkpoint_load; also UNKNOWN_FLAG, INVALID_ARGUMENT (none or several sources),
 * UNSUPPORTED, OUT_OF_MEMORY, CANCELLED. The state is untouched unless all that it is read from was
 * verified; only a source that fails or changes after that leaves it in part written, and the
 * text then says so.
 * # Threads
 * Nobody else uses the state. Callbacks are called on the calling thread.
 * # Stream
 * Synchronises `stream`.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * Buffers are valid memory of their sizes in the plan's memory space; callbacks return.
 */
lowbit_status_t lowbit_checkpoint_read(const struct lowbit_plan_t *plan,
                                       const struct lowbit_load_args_t *args,
                                       void *stream,
                                       struct lowbit_checkpoint_info_t *out);

/**
 * Writes the index of a checkpoint in several files: one from each process, with its shards. To be
 * called by one process when all have saved theirs; the index is what is then loaded. The files
 * must be of one step and spec and together have every element; shards that have the same part must
 * have the same bytes.
 *
 * # Parameters
 * - `paths` (in, host): array of `path_count` texts, UTF-8: files in the folder of the index.
 * - `path_count` (in): 1 or more.
 * - `path` (in, host, not NULL): UTF-8; the index, replaced whole or not at all.
 * # Returns
 * OK, NULL_POINTER, INVALID_ARGUMENT (a file elsewhere), IO, FORMAT_..., FORMAT_MISMATCH (the text
 * says what does not fit or is missing), OUT_OF_MEMORY.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * Texts end with NUL.
 */
lowbit_status_t lowbit_checkpoint_index(const char *const *paths,
                                        int64_t path_count,
                                        const char *path);

/**
 * Writes all tensors of a checkpoint, whole, into one file. Memory stays at a few MiB.
 *
 * # Parameters
 * - `from` (in, host, not NULL): UTF-8; a checkpoint file or an index.
 * - `path` (in, host, not NULL): UTF-8; replaced whole or not at all.
 * - `progress` (in): may be NULL.
 * - `user` (in): passed to `progress`.
 * # Returns
 * OK, NULL_POINTER, IO, FORMAT_..., OUT_OF_MEMORY, CANCELLED.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * Texts end with NUL.
 */
lowbit_status_t lowbit_checkpoint_merge(const char *from,
                                        const char *path,
                                        lowbit_progress_t progress,
                                        void *user);

/**
 * Cuts every tensor of a checkpoint along one axis, as even as the block grid allows, and writes
 * one file for each part beside an index: for "state.json", "state-00001-of-00004.safetensors" and
 * so on. Tensors that cannot be cut along that axis are whole in every part. For other meshes:
 * lowbit_checkpoint_reshard.
 *
 * # Parameters
 * - `from` (in, host, not NULL): UTF-8; a checkpoint file or an index.
 * - `axis` (in): 0 or more.
 * - `parts` (in): 1 to 99999.
 * - `path` (in, host, not NULL): UTF-8; the index.
 * - `progress` (in): may be NULL.
 * - `user` (in): passed to `progress`.
 * # Returns
 * As lowbit_checkpoint_merge; also INVALID_ARGUMENT.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * Texts end with NUL.
 */
lowbit_status_t lowbit_checkpoint_split(const char *from,
                                        int32_t axis,
                                        int64_t parts,
                                        const char *path,
                                        lowbit_progress_t progress,
                                        void *user);

/**
 * Writes the checkpoint file of a plan's tensors, whole or any shards of them, from a checkpoint of
 * any mesh. Nothing is decoded, and memory stays at a few MiB; the plan's device is not used.
 *
 * # Parameters
 * - `plan` (in, not NULL): its tensors may be some of the checkpoint's.
 * - `from` (in, host, not NULL): UTF-8; a checkpoint file or an index.
 * - `path` (in, host, not NULL): UTF-8; replaced whole or not at all.
 * - `progress` (in): may be NULL.
 * - `user` (in): passed to `progress`.
 * # Returns
 * As lowbit_checkpoint_merge; FORMAT_MISMATCH also for a plan of another spec or other tensors.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * Texts end with NUL.
 */
lowbit_status_t lowbit_checkpoint_reshard(const struct lowbit_plan_t *plan,
                                          const char *from,
                                          const char *path,
                                          lowbit_progress_t progress,
                                          void *user);

/**
 * What a checkpoint has: step, spec, and the global tensors with the places of their shards, as
 * JSON. Only headers are read and verified.
 *
 * # Parameters
 * - `from` (in, host, not NULL): UTF-8; a checkpoint file or an index.
 * - `buf` (out, host): receives the text and a NUL; may be NULL if `cap` is 0.
 * - `cap` (in): bytes of `buf`.
 * - `needed` (out, host): bytes of the text with its NUL; may be NULL.
 * # Returns
 * OK, NULL_POINTER, BUFFER_SIZE (`cap` is too small), IO, FORMAT_..., OUT_OF_MEMORY.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * `from` ends with NUL; `buf` has `cap` bytes.
 */
lowbit_status_t lowbit_checkpoint_json(const char *from,
                                       char *buf,
                                       size_t cap,
                                       size_t *needed);

/**
 * The f32 values of one state of one tensor, or of a slice of it, without reading the rest. The
 * checksums of headers are verified, those of the data are not: that needs all of an entry.
 *
 * # Parameters
 * - `from` (in, host, not NULL): UTF-8; a checkpoint file or an index.
 * - `tensor` (in, host, not NULL): its name.
 * - `state_name` (in, host, not NULL): "m", "v", "vmax" or "x".
 * - `offset` (in, host), `shape` (in, host): arrays of `ndim` numbers: the slice of the global
 *   tensor. May be NULL if `ndim` is 0.
 * - `ndim` (in): number of axes of the tensor.
 * - `values` (out, host): receives the values in C order; may be NULL if `bytes` is 0.
 * - `bytes` (in): 4 for each element of the slice.
 * # Returns
 * OK, NULL_POINTER, INVALID_ARGUMENT (no such tensor, state or slice), BUFFER_SIZE, MISALIGNED, IO,
 * FORMAT_..., OUT_OF_MEMORY.
 * # Threads
 * Any.
 * # Stream
 * None.
 * # Ownership
 * None.
 * # Since
 * ABI 0.1
 * # Safety
 * Arrays have their sizes; texts end with NUL.
 */
lowbit_status_t lowbit_checkpoint_values(const char *from,
                                         const char *tensor,
                                         const char *state_name,
                                         const int64_t *offset,
                                         const int64_t *shape,
                                         int32_t ndim,
                                         float *values,
                                         int64_t bytes);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LOWBIT_H */
