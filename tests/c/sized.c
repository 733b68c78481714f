/*
 * Sized structs: a program compiled against ABI 0.1 for ever (its structs are copied here and never
 * change), and one compiled against a header of the future, whose structs are longer.
 */

#include "model.h"

/* --- the structs of ABI 0.1, frozen --- */

typedef struct v0_1_quantizer_info_t {
  size_t struct_size;
  int32_t bits, normalization, mapping, rounding;
  int64_t block;
  uint64_t flags;
  const float *levels;
  int64_t level_count;
  int32_t factor_axes, reserved;
} v0_1_quantizer_info_t;

typedef struct v0_1_adafactor_info_t {
  size_t struct_size;
  uint64_t flags;
  float clip_threshold, decay_rate, eps2;
  int32_t reserved;
} v0_1_adafactor_info_t;

typedef struct v0_1_override_info_t {
  size_t struct_size;
  const char *pattern;
  const v0_1_quantizer_info_t *m, *v, *x;
} v0_1_override_info_t;

typedef struct v0_1_spec_info_t {
  size_t struct_size;
  uint64_t flags;
  const char *preset;
  int32_t optimizer, reserved;
  int64_t threshold;
  const v0_1_quantizer_info_t *m, *v, *x;
  const v0_1_override_info_t *overrides;
  int64_t override_count;
  uint64_t seed;
  float dampening;
  int32_t reserved2;
  const v0_1_adafactor_info_t *adafactor;
} v0_1_spec_info_t;

typedef struct v0_1_cpu_info_t {
  size_t struct_size;
  uint64_t flags;
  int64_t threads;
  int32_t variant, reserved;
  void (*parallel_for)(void *, int64_t, void (*)(void *, int64_t), void *);
  void *parallel_for_user;
} v0_1_cpu_info_t;

typedef struct v0_1_tensor_info_t {
  size_t struct_size;
  uint64_t flags;
  const char *name;
  const int64_t *shape;
  int32_t ndim, param_dtype, grad_dtype, weights;
  const int64_t *global_shape, *offset;
  int64_t group;
} v0_1_tensor_info_t;

typedef struct v0_1_plan_info_t {
  size_t struct_size;
  int64_t tensor_count, buffer_count, state_bytes, arena_bytes, arena_align, scratch_bytes,
      stage_count, group_count;
} v0_1_plan_info_t;

typedef struct v0_1_tensor_report_t {
  size_t struct_size;
  const char *name, *quantizers, *reason;
  int64_t numel, state_bytes, first_buffer, buffer_count;
} v0_1_tensor_report_t;

typedef struct v0_1_buffer_info_t {
  size_t struct_size;
  int64_t tensor;
  const char *state, *part;
  int32_t dtype, ndim;
  const int64_t *shape;
  int64_t bytes, arena_offset;
} v0_1_buffer_info_t;

typedef struct v0_1_stage_info_t {
  size_t struct_size;
  int32_t dtype, reduce;
  int64_t offset, count;
} v0_1_stage_info_t;

typedef struct v0_1_buffer_t {
  void *data;
  int64_t bytes;
} v0_1_buffer_t;

typedef struct v0_1_step_args_t {
  size_t struct_size;
  uint64_t flags;
  int64_t tensor_count;
  const v0_1_buffer_t *params, *grads, *updates;
  int64_t buffer_count;
  const v0_1_buffer_t *state;
  v0_1_buffer_t scratch;
  float lr, beta1, beta2, eps, weight_decay, grad_scale, clip_factor, skip;
  int32_t step, nonfinite;
  const float *hyper;
  const int32_t *step_number;
  const int64_t *const *offsets;
  int64_t *skipped;
} v0_1_step_args_t;

typedef struct v0_1_checkpoint_info_t {
  size_t struct_size;
  int64_t step;
} v0_1_checkpoint_info_t;

/* The functions take today's types; the pointers are what an old program would pass. */
#define AS(type, pointer) ((type *)(void *)(pointer))
#define AS_CONST(type, pointer) ((const type *)(const void *)(pointer))

static void an_old_program_runs(void) {
  v0_1_cpu_info_t cpu = {sizeof cpu, 0, 1, LOWBIT_CPU_VARIANT_PORTABLE, 0, NULL, NULL};
  lowbit_context_t *context = NULL;
  OK(lowbit_context_create_cpu(AS_CONST(lowbit_cpu_info_t, &cpu), &context));

  v0_1_quantizer_info_t f32 = {sizeof f32, 32, 0, 0, 0, 0, 0, NULL, 0, 0, 0};
  v0_1_quantizer_info_t block = {sizeof block, 4, LOWBIT_NORMALIZATION_BLOCK,
                                 LOWBIT_MAPPING_LINEAR, LOWBIT_ROUNDING_NEAREST, 64,
                                 0, NULL, 0, 0, 0};
  v0_1_override_info_t rules[2] = {{sizeof rules[0], "embed*", &f32, &f32, NULL},
                                   {sizeof rules[1], "head", NULL, &block, NULL}};
  v0_1_spec_info_t info = {sizeof info, LOWBIT_SPEC_THRESHOLD, "adamw4", 0, 0, 0,    NULL, NULL,
                           NULL,        rules,                 2,        7, 0, 0, NULL};
  lowbit_spec_t *spec = NULL;
  OK(lowbit_spec_create(AS_CONST(lowbit_spec_info_t, &info), &spec));

  const int64_t shape[2] = {4, 32};
  const int64_t length[1] = {48};
  v0_1_tensor_info_t tensors[2] = {
      {sizeof tensors[0], 0, "embedding", shape, 2, LOWBIT_DTYPE_F32, 0, 0, NULL, NULL, 0},
      {sizeof tensors[1], 0, "head", length, 1, LOWBIT_DTYPE_F32, 0, 0, NULL, NULL, 0}};
  lowbit_plan_t *plan = NULL;
  OK(lowbit_plan_create(context, spec, AS_CONST(lowbit_tensor_info_t, tensors), 2, &plan));
  REQUIRE(plan != NULL);

  v0_1_plan_info_t sizes = {sizeof sizes, 0, 0, 0, 0, 0, 0, 0, 0};
  OK(lowbit_plan_info(plan, AS(lowbit_plan_info_t, &sizes)));
  CHECK(sizes.struct_size == sizeof sizes && sizes.tensor_count == 2);
  CHECK(sizes.stage_count == 1 && sizes.group_count == 1);
  /* embedding: m, v; head: codes and scales of both */
  CHECK(sizes.buffer_count == 6);
  CHECK(sizes.state_bytes == 2 * 4 * 128 + 2 * (24 + 4));

  v0_1_tensor_report_t report = {sizeof report, NULL, NULL, NULL, 0, 0, 0, 0};
  OK(lowbit_plan_tensor(plan, 1, AS(lowbit_tensor_report_t, &report)));
  CHECK(strcmp(report.name, "head") == 0 && report.numel == 48 && report.first_buffer == 2);
  CHECK(strstr(report.reason, "head") != NULL && strstr(report.quantizers, "block(64)") != NULL);

  v0_1_buffer_info_t buffer = {sizeof buffer, 0, NULL, NULL, 0, 0, NULL, 0, 0};
  OK(lowbit_plan_buffer(plan, 2, AS(lowbit_buffer_info_t, &buffer)));
  CHECK(buffer.tensor == 1 && strcmp(buffer.part, "codes") == 0 && buffer.bytes == 24);

  v0_1_stage_info_t stage = {sizeof stage, 0, 0, 0, 0};
  OK(lowbit_plan_stage(plan, 0, AS(lowbit_stage_info_t, &stage)));
  CHECK(stage.dtype == LOWBIT_DTYPE_I32 && stage.reduce == LOWBIT_REDUCE_MAX);

  lowbit_state_t *state = NULL;
  v0_1_buffer_t states[6];
  OK(lowbit_state_create(plan, NULL, &state));
  OK(lowbit_state_buffers(state, AS(lowbit_buffer_t, states), 6));

  float param[128 + 48] = {0};
  float grad[128 + 48];
  for (int i = 0; i < 128 + 48; i++) grad[i] = (float)(i - 80);
  int64_t scratch[32];
  v0_1_buffer_t params[2] = {{param, 4 * 128}, {param + 128, 4 * 48}};
  v0_1_buffer_t grads[2] = {{grad, 4 * 128}, {grad + 128, 4 * 48}};
  CHECK(sizes.scratch_bytes <= (int64_t)sizeof scratch);
  v0_1_step_args_t args = {sizeof args, 0,      2,       params, grads, NULL, 6,
                           states,      {scratch, sizeof scratch},
                           0.5f,        0.9f,   0.999f,  1e-8f,  0.0f,  1.0f, 1.0f,
                           0.0f,        1,      LOWBIT_NONFINITE_DEFAULT,
                           NULL,        NULL,   NULL,    NULL};
  OK(lowbit_step(plan, AS_CONST(lowbit_step_args_t, &args), NULL));
  /* The first step of Adam moves each parameter by lr against the gradient's sign. */
  CHECK(param[0] > 0.499f && param[0] < 0.501f && param[127] < -0.499f && param[80] == 0.0f);

  unsigned char bytes[8192];
  size_t needed = 0;
  OK(lowbit_checkpoint_serialize(plan, AS_CONST(lowbit_buffer_t, states), 6, 1, NULL, bytes,
                                 sizeof bytes, &needed));
  v0_1_checkpoint_info_t checkpoint = {sizeof checkpoint, 0};
  OK(lowbit_checkpoint_deserialize(plan, bytes, needed, AS_CONST(lowbit_buffer_t, states), 6, NULL,
                                   AS(lowbit_checkpoint_info_t, &checkpoint)));
  CHECK(checkpoint.step == 1);

  lowbit_state_destroy(state, NULL);
  lowbit_plan_destroy(plan);
  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
}

/* --- a header of the future --- */

/* Today's struct with eight fields that this library does not know. */
#define LONGER(type) \
  struct {           \
    type known;      \
    uint64_t tail[8]; \
  }

#define LENGTHEN(variable, init)                            \
  do {                                                      \
    memset(&(variable), 0, sizeof(variable));               \
    memcpy(&(variable).known, &(init), sizeof(init));       \
    (variable).known.struct_size = sizeof(variable);        \
  } while (0)

static const model_tensor_t tensors[2] = {
    {"w", 2, {3, 40, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN},
    {"b", 1, {7, 0, 0, 0, 0}, LOWBIT_DTYPE_BF16, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN}};

static void longer_inputs(void) {
  const lowbit_cpu_info_t cpu_init = LOWBIT_CPU_INFO_INIT;
  LONGER(lowbit_cpu_info_t) cpu;
  LENGTHEN(cpu, cpu_init);
  cpu.known.threads = 1;
  lowbit_context_t *context = NULL;
  cpu.tail[7] = 1;
  FAILS(lowbit_context_create_cpu(&cpu.known, &context), STRUCT_SIZE,
        "info|lowbit_cpu_info_t|newer");
  CHECK(context == NULL);
  cpu.tail[7] = 0;
  OK(lowbit_context_create_cpu(&cpu.known, &context));

  const lowbit_quantizer_info_t quantizer_init = LOWBIT_QUANTIZER_INFO_INIT;
  LONGER(lowbit_quantizer_info_t) quantizer;
  LENGTHEN(quantizer, quantizer_init);
  const lowbit_override_info_t rule_init = LOWBIT_OVERRIDE_INFO_INIT;
  LONGER(lowbit_override_info_t) rules[3];
  for (int i = 0; i < 3; i++) {
    LENGTHEN(rules[i], rule_init);
    rules[i].known.pattern = i == 2 ? "b" : "nothing";
    rules[i].known.m = &quantizer.known;
  }
  const lowbit_spec_info_t spec_init = LOWBIT_SPEC_INFO_INIT;
  LONGER(lowbit_spec_info_t) info;
  LENGTHEN(info, spec_init);
  info.known.preset = "adamw32";
  info.known.overrides = &rules[0].known;
  info.known.override_count = 3;
  lowbit_spec_t *spec = NULL;
  info.tail[0] = 1;
  FAILS(lowbit_spec_create(&info.known, &spec), STRUCT_SIZE, "info|lowbit_spec_info_t|byte 104");
  info.tail[0] = 0;
  rules[1].tail[3] = 1;
  FAILS(lowbit_spec_create(&info.known, &spec), STRUCT_SIZE, "info.overrides[1]");
  rules[1].tail[3] = 0;
  quantizer.tail[2] = 1;
  FAILS(lowbit_spec_create(&info.known, &spec), STRUCT_SIZE, "info.overrides[0].m");
  quantizer.tail[2] = 0;
  rules[2].known.struct_size = sizeof(lowbit_override_info_t);
  FAILS(lowbit_spec_create(&info.known, &spec), STRUCT_SIZE,
        "info.overrides[2]|struct_size is 40|104");
  rules[2].known.struct_size = sizeof rules[2];
  CHECK(spec == NULL);
  OK(lowbit_spec_create(&info.known, &spec));

  const lowbit_tensor_info_t tensor_init = LOWBIT_TENSOR_INFO_INIT;
  LONGER(lowbit_tensor_info_t) infos[2];
  for (int i = 0; i < 2; i++) {
    LENGTHEN(infos[i], tensor_init);
    infos[i].known.name = tensors[i].name;
    infos[i].known.shape = tensors[i].shape;
    infos[i].known.ndim = tensors[i].ndim;
    infos[i].known.param_dtype = tensors[i].param_dtype;
    infos[i].known.grad_dtype = tensors[i].grad_dtype;
  }
  lowbit_plan_t *plan = NULL;
  infos[1].tail[5] = 1;
  FAILS(lowbit_plan_create(context, spec, &infos[0].known, 2, &plan), STRUCT_SIZE, "tensors[1]");
  CHECK(plan == NULL);
  infos[1].tail[5] = 0;
  OK(lowbit_plan_create(context, spec, &infos[0].known, 2, &plan));
  lowbit_tensor_report_t report = LOWBIT_TENSOR_REPORT_INIT;
  OK(lowbit_plan_tensor(plan, 1, &report));
  CHECK(strcmp(report.name, "b") == 0 && strcmp(report.reason, "override \"b\"") == 0);
  lowbit_plan_destroy(plan);

  model_t model;
  model_create(&model, context, spec, tensors, 2);
  LONGER(lowbit_step_args_t) args;
  const lowbit_step_args_t args_now = model_args(&model);
  LENGTHEN(args, args_now);
  args.tail[1] = 1;
  model_remember(&model);
  FAILS(lowbit_step(model.plan, &args.known, NULL), STRUCT_SIZE, "args|lowbit_step_args_t");
  CHECK(model_is_as_remembered(&model));
  args.tail[1] = 0;
  OK(lowbit_step(model.plan, &args.known, NULL));
  CHECK(!model_is_as_remembered(&model));
  model_destroy(&model);

  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
}

/* Everything behind what the library knows becomes zero. */
#define CHECK_ZERO_TAIL(variable)                                    \
  do {                                                               \
    CHECK((variable).known.struct_size == sizeof(variable));         \
    for (int k = 0; k < 8; k++) CHECK((variable).tail[k] == 0);      \
  } while (0)

#define FILL(variable)                                     \
  do {                                                     \
    memset(&(variable), 0xee, sizeof(variable));           \
    (variable).known.struct_size = sizeof(variable);       \
  } while (0)

/* One byte less than the first version had: refused, and nothing is written. */
#define TOO_SMALL(variable, call, name)                                          \
  do {                                                                           \
    memset(&(variable), 0xee, sizeof(variable));                                 \
    (variable).known.struct_size = sizeof((variable).known) - 1;                 \
    FAILS(call, STRUCT_SIZE, "out: struct_size is|" name);                       \
    CHECK(((unsigned char *)&(variable))[sizeof(size_t)] == 0xee);               \
  } while (0)

static void longer_and_shorter_outputs(void) {
  lowbit_context_t *context = cpu_context(1, LOWBIT_CPU_VARIANT_AUTO);
  lowbit_spec_t *spec = spec_without_threshold("adamw4");
  model_t model;
  model_create(&model, context, spec, tensors, 2);

  LONGER(lowbit_plan_info_t) info;
  FILL(info);
  OK(lowbit_plan_info(model.plan, &info.known));
  CHECK_ZERO_TAIL(info);
  CHECK(info.known.tensor_count == 2);
  TOO_SMALL(info, lowbit_plan_info(model.plan, &info.known), "lowbit_plan_info_t");

  LONGER(lowbit_tensor_report_t) report;
  FILL(report);
  OK(lowbit_plan_tensor(model.plan, 0, &report.known));
  CHECK_ZERO_TAIL(report);
  CHECK(report.known.numel == 120);
  TOO_SMALL(report, lowbit_plan_tensor(model.plan, 0, &report.known), "lowbit_tensor_report_t");

  LONGER(lowbit_buffer_info_t) buffer;
  FILL(buffer);
  OK(lowbit_plan_buffer(model.plan, 0, &buffer.known));
  CHECK_ZERO_TAIL(buffer);
  CHECK(buffer.known.bytes == 60);
  TOO_SMALL(buffer, lowbit_plan_buffer(model.plan, 0, &buffer.known), "lowbit_buffer_info_t");

  LONGER(lowbit_stage_info_t) stage;
  FILL(stage);
  OK(lowbit_plan_stage(model.plan, 0, &stage.known));
  CHECK_ZERO_TAIL(stage);
  /* A flag for each tensor; rows and columns of v. */
  CHECK(stage.known.count == 2 + 3 + 40);
  TOO_SMALL(stage, lowbit_plan_stage(model.plan, 0, &stage.known), "lowbit_stage_info_t");

  unsigned char bytes[8192];
  size_t needed = 0;
  OK(lowbit_checkpoint_serialize(model.plan, model.state, model.info.buffer_count, 5, NULL, bytes,
                                 sizeof bytes, &needed));
  LONGER(lowbit_checkpoint_info_t) checkpoint;
  FILL(checkpoint);
  OK(lowbit_checkpoint_deserialize(model.plan, bytes, needed, model.state,
                                   model.info.buffer_count, NULL, &checkpoint.known));
  CHECK_ZERO_TAIL(checkpoint);
  CHECK(checkpoint.known.step == 5);
  /* The state is another now: a refused `out` must leave it alone. */
  memset(model.state[0].data, 0x11, (size_t)model.state[0].bytes);
  model_remember(&model);
  TOO_SMALL(checkpoint,
            lowbit_checkpoint_deserialize(model.plan, bytes, needed, model.state,
                                          model.info.buffer_count, NULL, &checkpoint.known),
            "lowbit_checkpoint_info_t");
  CHECK(model_is_as_remembered(&model));

  model_destroy(&model);
  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
}

/* Sizes of 0, of less than the first version, and of what must be uninitialised memory. */
static void impossible_inputs(void) {
  const size_t wrong[] = {0, 1, sizeof(size_t), (size_t)1 << 40, SIZE_MAX};
  lowbit_context_t *context = cpu_context(1, LOWBIT_CPU_VARIANT_AUTO);
  lowbit_spec_t *spec = spec_without_threshold("adamw4");
  model_t model;
  model_create(&model, context, spec, tensors, 2);
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    lowbit_cpu_info_t cpu = LOWBIT_CPU_INFO_INIT;
    cpu.struct_size = wrong[i];
    lowbit_context_t *no_context = context;
    FAILS(lowbit_context_create_cpu(&cpu, &no_context), STRUCT_SIZE, "info|INIT macro");
    CHECK(no_context == NULL);

    lowbit_cuda_info_t cuda = LOWBIT_CUDA_INFO_INIT;
    cuda.struct_size = wrong[i];
    FAILS(lowbit_context_create_cuda(&cuda, &no_context), STRUCT_SIZE, "lowbit_cuda_info_t");

    lowbit_quantizer_info_t quantizer = LOWBIT_QUANTIZER_INFO_INIT;
    lowbit_spec_info_t info = LOWBIT_SPEC_INFO_INIT;
    lowbit_spec_t *no_spec = spec;
    info.preset = "adamw4";
    info.m = &quantizer;
    quantizer.struct_size = wrong[i];
    FAILS(lowbit_spec_create(&info, &no_spec), STRUCT_SIZE, "info.m|lowbit_quantizer_info_t");
    info.struct_size = wrong[i];
    FAILS(lowbit_spec_create(&info, &no_spec), STRUCT_SIZE, "info|lowbit_spec_info_t");
    CHECK(no_spec == NULL);

    lowbit_tensor_info_t tensor = LOWBIT_TENSOR_INFO_INIT;
    tensor.name = "t";
    tensor.struct_size = wrong[i];
    lowbit_plan_t *no_plan = model.plan;
    FAILS(lowbit_plan_create(context, spec, &tensor, 1, &no_plan), STRUCT_SIZE, "tensors");
    CHECK(no_plan == NULL);

    lowbit_step_args_t args = model_args(&model);
    args.struct_size = wrong[i];
    model_remember(&model);
    FAILS(lowbit_step(model.plan, &args, NULL), STRUCT_SIZE, "args|lowbit_step_args_t");
    CHECK(model_is_as_remembered(&model));
  }
  model_destroy(&model);
  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
}

int main(void) {
  an_old_program_runs();
  longer_inputs();
  longer_and_shorter_outputs();
  impossible_inputs();
  return check_end();
}
