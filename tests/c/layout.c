/*
 * Struct layouts as C sees them, against those that the library was built with (test hook), and the
 * values of the INIT macros, which are written by hand.
 */

#include <stdarg.h>
#include <stddef.h>

#include "check.h"

lowbit_status_t lowbit_test_layout(char *buf, size_t cap, size_t *needed);

static char text[1 << 14];
static size_t length;

static void line(const char *format, ...) {
  va_list values;
  va_start(values, format);
  const int written = vsnprintf(text + length, sizeof text - length, format, values);
  va_end(values);
  REQUIRE(written > 0 && (size_t)written < sizeof text - length);
  length += (size_t)written;
}

/* C99 has no alignof: the offset behind one char is the alignment. */
#define STRUCT(type)                                                                  \
  do {                                                                                \
    struct probe {                                                                    \
      char c;                                                                         \
      type value;                                                                     \
    };                                                                                \
    line("%s %zu %zu\n", #type, sizeof(type), offsetof(struct probe, value));         \
  } while (0)
#define FIELD(type, field) \
  line("%s.%s %zu %zu\n", #type, #field, offsetof(type, field), sizeof(((type *)0)->field))

static void layouts(void) {
  STRUCT(lowbit_buffer_t);
  FIELD(lowbit_buffer_t, data);
  FIELD(lowbit_buffer_t, bytes);

  STRUCT(lowbit_quantizer_info_t);
  FIELD(lowbit_quantizer_info_t, struct_size);
  FIELD(lowbit_quantizer_info_t, bits);
  FIELD(lowbit_quantizer_info_t, normalization);
  FIELD(lowbit_quantizer_info_t, mapping);
  FIELD(lowbit_quantizer_info_t, rounding);
  FIELD(lowbit_quantizer_info_t, block);
  FIELD(lowbit_quantizer_info_t, flags);
  FIELD(lowbit_quantizer_info_t, levels);
  FIELD(lowbit_quantizer_info_t, level_count);
  FIELD(lowbit_quantizer_info_t, factor_axes);
  FIELD(lowbit_quantizer_info_t, reserved);

  STRUCT(lowbit_override_info_t);
  FIELD(lowbit_override_info_t, struct_size);
  FIELD(lowbit_override_info_t, pattern);
  FIELD(lowbit_override_info_t, m);
  FIELD(lowbit_override_info_t, v);
  FIELD(lowbit_override_info_t, x);

  STRUCT(lowbit_spec_info_t);
  FIELD(lowbit_spec_info_t, struct_size);
  FIELD(lowbit_spec_info_t, flags);
  FIELD(lowbit_spec_info_t, preset);
  FIELD(lowbit_spec_info_t, optimizer);
  FIELD(lowbit_spec_info_t, reserved);
  FIELD(lowbit_spec_info_t, threshold);
  FIELD(lowbit_spec_info_t, m);
  FIELD(lowbit_spec_info_t, v);
  FIELD(lowbit_spec_info_t, x);
  FIELD(lowbit_spec_info_t, overrides);
  FIELD(lowbit_spec_info_t, override_count);
  FIELD(lowbit_spec_info_t, seed);
  FIELD(lowbit_spec_info_t, dampening);
  FIELD(lowbit_spec_info_t, reserved2);
  FIELD(lowbit_spec_info_t, adafactor);

  STRUCT(lowbit_adafactor_info_t);
  FIELD(lowbit_adafactor_info_t, struct_size);
  FIELD(lowbit_adafactor_info_t, flags);
  FIELD(lowbit_adafactor_info_t, clip_threshold);
  FIELD(lowbit_adafactor_info_t, decay_rate);
  FIELD(lowbit_adafactor_info_t, eps2);
  FIELD(lowbit_adafactor_info_t, reserved);

  STRUCT(lowbit_cpu_info_t);
  FIELD(lowbit_cpu_info_t, struct_size);
  FIELD(lowbit_cpu_info_t, flags);
  FIELD(lowbit_cpu_info_t, threads);
  FIELD(lowbit_cpu_info_t, variant);
  FIELD(lowbit_cpu_info_t, reserved);
  FIELD(lowbit_cpu_info_t, parallel_for);
  FIELD(lowbit_cpu_info_t, parallel_for_user);

  STRUCT(lowbit_cuda_info_t);
  FIELD(lowbit_cuda_info_t, struct_size);
  FIELD(lowbit_cuda_info_t, flags);
  FIELD(lowbit_cuda_info_t, device);
  FIELD(lowbit_cuda_info_t, reserved);

  STRUCT(lowbit_tensor_info_t);
  FIELD(lowbit_tensor_info_t, struct_size);
  FIELD(lowbit_tensor_info_t, flags);
  FIELD(lowbit_tensor_info_t, name);
  FIELD(lowbit_tensor_info_t, shape);
  FIELD(lowbit_tensor_info_t, ndim);
  FIELD(lowbit_tensor_info_t, param_dtype);
  FIELD(lowbit_tensor_info_t, grad_dtype);
  FIELD(lowbit_tensor_info_t, weights);
  FIELD(lowbit_tensor_info_t, global_shape);
  FIELD(lowbit_tensor_info_t, offset);
  FIELD(lowbit_tensor_info_t, group);

  STRUCT(lowbit_plan_info_t);
  FIELD(lowbit_plan_info_t, struct_size);
  FIELD(lowbit_plan_info_t, tensor_count);
  FIELD(lowbit_plan_info_t, buffer_count);
  FIELD(lowbit_plan_info_t, state_bytes);
  FIELD(lowbit_plan_info_t, arena_bytes);
  FIELD(lowbit_plan_info_t, arena_align);
  FIELD(lowbit_plan_info_t, scratch_bytes);
  FIELD(lowbit_plan_info_t, stage_count);
  FIELD(lowbit_plan_info_t, group_count);

  STRUCT(lowbit_tensor_report_t);
  FIELD(lowbit_tensor_report_t, struct_size);
  FIELD(lowbit_tensor_report_t, name);
  FIELD(lowbit_tensor_report_t, quantizers);
  FIELD(lowbit_tensor_report_t, reason);
  FIELD(lowbit_tensor_report_t, numel);
  FIELD(lowbit_tensor_report_t, state_bytes);
  FIELD(lowbit_tensor_report_t, first_buffer);
  FIELD(lowbit_tensor_report_t, buffer_count);

  STRUCT(lowbit_buffer_info_t);
  FIELD(lowbit_buffer_info_t, struct_size);
  FIELD(lowbit_buffer_info_t, tensor);
  FIELD(lowbit_buffer_info_t, state);
  FIELD(lowbit_buffer_info_t, part);
  FIELD(lowbit_buffer_info_t, dtype);
  FIELD(lowbit_buffer_info_t, ndim);
  FIELD(lowbit_buffer_info_t, shape);
  FIELD(lowbit_buffer_info_t, bytes);
  FIELD(lowbit_buffer_info_t, arena_offset);

  STRUCT(lowbit_stage_info_t);
  FIELD(lowbit_stage_info_t, struct_size);
  FIELD(lowbit_stage_info_t, dtype);
  FIELD(lowbit_stage_info_t, reduce);
  FIELD(lowbit_stage_info_t, offset);
  FIELD(lowbit_stage_info_t, count);

  STRUCT(lowbit_step_args_t);
  FIELD(lowbit_step_args_t, struct_size);
  FIELD(lowbit_step_args_t, flags);
  FIELD(lowbit_step_args_t, tensor_count);
  FIELD(lowbit_step_args_t, params);
  FIELD(lowbit_step_args_t, grads);
  FIELD(lowbit_step_args_t, updates);
  FIELD(lowbit_step_args_t, buffer_count);
  FIELD(lowbit_step_args_t, state);
  FIELD(lowbit_step_args_t, scratch);
  FIELD(lowbit_step_args_t, lr);
  FIELD(lowbit_step_args_t, beta1);
  FIELD(lowbit_step_args_t, beta2);
  FIELD(lowbit_step_args_t, eps);
  FIELD(lowbit_step_args_t, weight_decay);
  FIELD(lowbit_step_args_t, grad_scale);
  FIELD(lowbit_step_args_t, clip_factor);
  FIELD(lowbit_step_args_t, skip);
  FIELD(lowbit_step_args_t, step);
  FIELD(lowbit_step_args_t, nonfinite);
  FIELD(lowbit_step_args_t, hyper);
  FIELD(lowbit_step_args_t, step_number);
  FIELD(lowbit_step_args_t, offsets);
  FIELD(lowbit_step_args_t, skipped);

  STRUCT(lowbit_offload_info_t);
  FIELD(lowbit_offload_info_t, struct_size);
  FIELD(lowbit_offload_info_t, on_host);
  FIELD(lowbit_offload_info_t, reserved);
  FIELD(lowbit_offload_info_t, chunk_count);
  FIELD(lowbit_offload_info_t, staging_bytes);
  FIELD(lowbit_offload_info_t, host_bytes);
  FIELD(lowbit_offload_info_t, bytes_to_device);
  FIELD(lowbit_offload_info_t, bytes_to_host);
  FIELD(lowbit_offload_info_t, stepped);

  STRUCT(lowbit_ema_args_t);
  FIELD(lowbit_ema_args_t, struct_size);
  FIELD(lowbit_ema_args_t, flags);
  FIELD(lowbit_ema_args_t, state_name);
  FIELD(lowbit_ema_args_t, tensor_count);
  FIELD(lowbit_ema_args_t, inputs);
  FIELD(lowbit_ema_args_t, outputs);
  FIELD(lowbit_ema_args_t, buffer_count);
  FIELD(lowbit_ema_args_t, state);
  FIELD(lowbit_ema_args_t, decay);
  FIELD(lowbit_ema_args_t, weight);
  FIELD(lowbit_ema_args_t, step);
  FIELD(lowbit_ema_args_t, reserved);

  STRUCT(lowbit_norm_args_t);
  FIELD(lowbit_norm_args_t, struct_size);
  FIELD(lowbit_norm_args_t, flags);
  FIELD(lowbit_norm_args_t, tensor_count);
  FIELD(lowbit_norm_args_t, grads);
  FIELD(lowbit_norm_args_t, scratch);
  FIELD(lowbit_norm_args_t, grad_scale);
  FIELD(lowbit_norm_args_t, max_norm);

  STRUCT(lowbit_checkpoint_info_t);
  FIELD(lowbit_checkpoint_info_t, struct_size);
  FIELD(lowbit_checkpoint_info_t, step);

  STRUCT(lowbit_save_args_t);
  FIELD(lowbit_save_args_t, struct_size);
  FIELD(lowbit_save_args_t, flags);
  FIELD(lowbit_save_args_t, buffer_count);
  FIELD(lowbit_save_args_t, state);
  FIELD(lowbit_save_args_t, step);
  FIELD(lowbit_save_args_t, path);
  FIELD(lowbit_save_args_t, write);
  FIELD(lowbit_save_args_t, write_user);
  FIELD(lowbit_save_args_t, fd);
  FIELD(lowbit_save_args_t, keep);
  FIELD(lowbit_save_args_t, progress);
  FIELD(lowbit_save_args_t, progress_user);

  STRUCT(lowbit_load_args_t);
  FIELD(lowbit_load_args_t, struct_size);
  FIELD(lowbit_load_args_t, flags);
  FIELD(lowbit_load_args_t, buffer_count);
  FIELD(lowbit_load_args_t, state);
  FIELD(lowbit_load_args_t, path);
  FIELD(lowbit_load_args_t, read);
  FIELD(lowbit_load_args_t, read_user);
  FIELD(lowbit_load_args_t, bytes);
  FIELD(lowbit_load_args_t, fd);
  FIELD(lowbit_load_args_t, reserved);
  FIELD(lowbit_load_args_t, progress);
  FIELD(lowbit_load_args_t, progress_user);
}

static void compare(void) {
  static char rust[1 << 14];
  OK(lowbit_test_layout(rust, sizeof rust, NULL));
  const char *theirs = rust;
  const char *ours = text;
  while (*theirs != '\0' || *ours != '\0') {
    const size_t their_length = strcspn(theirs, "\n");
    const size_t our_length = strcspn(ours, "\n");
    if (!CHECK(their_length == our_length && strncmp(theirs, ours, our_length) == 0)) {
      printf("  C:    %.*s\n  Rust: %.*s\n", (int)our_length, ours, (int)their_length, theirs);
    }
    theirs += their_length + (theirs[their_length] != '\0');
    ours += our_length + (ours[our_length] != '\0');
  }
}

/* Every macro gives its struct's size, and the fields that are not zero are the documented ones. */
static void initial_values(void) {
  const lowbit_quantizer_info_t quantizer = LOWBIT_QUANTIZER_INFO_INIT;
  CHECK(quantizer.struct_size == sizeof quantizer && quantizer.bits == 4);
  CHECK(quantizer.normalization == LOWBIT_NORMALIZATION_BLOCK);
  CHECK(quantizer.mapping == LOWBIT_MAPPING_DE && quantizer.rounding == LOWBIT_ROUNDING_NEAREST);
  CHECK(quantizer.block == 128 && quantizer.flags == 0 && quantizer.reserved == 0);
  CHECK(quantizer.levels == NULL && quantizer.level_count == 0);
  CHECK(quantizer.factor_axes == LOWBIT_FACTOR_AXES_MERGED);

  const lowbit_override_info_t rule = LOWBIT_OVERRIDE_INFO_INIT;
  CHECK(rule.struct_size == sizeof rule && rule.pattern == NULL);
  CHECK(rule.m == NULL && rule.v == NULL && rule.x == NULL);

  const lowbit_spec_info_t spec = LOWBIT_SPEC_INFO_INIT;
  CHECK(spec.struct_size == sizeof spec && spec.flags == 0 && spec.preset == NULL);
  CHECK(spec.optimizer == 0 && spec.reserved == 0 && spec.threshold == 0);
  CHECK(spec.m == NULL && spec.v == NULL && spec.x == NULL);
  CHECK(spec.overrides == NULL && spec.override_count == 0 && spec.seed == 0);
  CHECK(spec.dampening == 0.0f && spec.reserved2 == 0 && spec.adafactor == NULL);

  const lowbit_adafactor_info_t adafactor = LOWBIT_ADAFACTOR_INFO_INIT;
  CHECK(adafactor.struct_size == sizeof adafactor && adafactor.reserved == 0);
  CHECK(adafactor.flags == (LOWBIT_ADAFACTOR_RELATIVE_STEP | LOWBIT_ADAFACTOR_SCALE_PARAMETER));
  CHECK(adafactor.clip_threshold == 1.0f && adafactor.decay_rate == 0.8f);
  CHECK(adafactor.eps2 == 1e-3f);

  const lowbit_cpu_info_t cpu = LOWBIT_CPU_INFO_INIT;
  CHECK(cpu.struct_size == sizeof cpu && cpu.flags == 0 && cpu.threads == 0);
  CHECK(cpu.variant == LOWBIT_CPU_VARIANT_AUTO && cpu.reserved == 0);
  CHECK(cpu.parallel_for == NULL && cpu.parallel_for_user == NULL);

  const lowbit_cuda_info_t cuda = LOWBIT_CUDA_INFO_INIT;
  CHECK(cuda.struct_size == sizeof cuda && cuda.flags == 0);
  CHECK(cuda.device == 0 && cuda.reserved == 0);

  const lowbit_tensor_info_t tensor = LOWBIT_TENSOR_INFO_INIT;
  CHECK(tensor.struct_size == sizeof tensor && tensor.flags == 0 && tensor.name == NULL);
  CHECK(tensor.shape == NULL && tensor.ndim == 0 && tensor.param_dtype == LOWBIT_DTYPE_F32);
  CHECK(tensor.grad_dtype == 0 && tensor.weights == LOWBIT_WEIGHTS_PLAIN && tensor.group == 0);
  CHECK(tensor.global_shape == NULL && tensor.offset == NULL);

  const lowbit_ema_args_t ema = LOWBIT_EMA_ARGS_INIT;
  CHECK(ema.struct_size == sizeof ema && ema.flags == 0 && ema.state_name == NULL);
  CHECK(ema.tensor_count == 0 && ema.inputs == NULL && ema.outputs == NULL);
  CHECK(ema.buffer_count == 0 && ema.state == NULL && ema.reserved == 0);
  CHECK(ema.decay == 0.9f && ema.weight == 0.1f && ema.step == 1);

  const lowbit_norm_args_t norm = LOWBIT_NORM_ARGS_INIT;
  CHECK(norm.struct_size == sizeof norm && norm.flags == 0 && norm.tensor_count == 0);
  CHECK(norm.grads == NULL && norm.scratch.data == NULL && norm.scratch.bytes == 0);
  CHECK(norm.grad_scale == 1.0f && norm.max_norm == 1.0f);

  const lowbit_plan_info_t plan = LOWBIT_PLAN_INFO_INIT;
  CHECK(plan.struct_size == sizeof plan && plan.tensor_count == 0 && plan.group_count == 0);
  const lowbit_tensor_report_t report = LOWBIT_TENSOR_REPORT_INIT;
  CHECK(report.struct_size == sizeof report && report.name == NULL && report.buffer_count == 0);
  const lowbit_buffer_info_t buffer = LOWBIT_BUFFER_INFO_INIT;
  CHECK(buffer.struct_size == sizeof buffer && buffer.tensor == 0 && buffer.arena_offset == 0);
  const lowbit_stage_info_t stage = LOWBIT_STAGE_INFO_INIT;
  CHECK(stage.struct_size == sizeof stage && stage.dtype == 0 && stage.count == 0);
  const lowbit_offload_info_t offload = LOWBIT_OFFLOAD_INFO_INIT;
  CHECK(offload.struct_size == sizeof offload && offload.on_host == 0 && offload.stepped == 0);
  const lowbit_checkpoint_info_t checkpoint = LOWBIT_CHECKPOINT_INFO_INIT;
  CHECK(checkpoint.struct_size == sizeof checkpoint && checkpoint.step == 0);

  const lowbit_step_args_t args = LOWBIT_STEP_ARGS_INIT;
  CHECK(args.struct_size == sizeof args && args.flags == 0 && args.tensor_count == 0);
  CHECK(args.params == NULL && args.grads == NULL && args.updates == NULL);
  CHECK(args.buffer_count == 0 && args.state == NULL);
  CHECK(args.scratch.data == NULL && args.scratch.bytes == 0);
  CHECK(args.lr == 1e-3f && args.beta1 == 0.9f && args.beta2 == 0.999f && args.eps == 1e-8f);
  CHECK(args.weight_decay == 0.01f && args.grad_scale == 1.0f && args.clip_factor == 1.0f);
  CHECK(args.skip == 0.0f && args.step == 1 && args.nonfinite == LOWBIT_NONFINITE_DEFAULT);
  CHECK(args.hyper == NULL && args.step_number == NULL && args.offsets == NULL);
  CHECK(args.skipped == NULL);
  /* lr ... skip are one block of f32, as `hyper` promises. */
  CHECK(offsetof(lowbit_step_args_t, skip) - offsetof(lowbit_step_args_t, lr) ==
        (LOWBIT_HYPER_COUNT - 1) * sizeof(float));
}

int main(void) {
  layouts();
  compare();
  initial_values();
  return check_end();
}
