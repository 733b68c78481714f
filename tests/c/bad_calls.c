/*
 * Calls that must be refused: each gives its status, a text that names argument and value, and
 * writes nothing.
 *
 *   bad_calls FOLDER [stride]
 *
 * FOLDER is empty and writable. With a stride, checkpoints are cut and altered at every stride-th
 * byte only.
 */

#include <dirent.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model.h"

/* "w" has a rank-1 v, "b" is in blocks. */
static const model_tensor_t tensors[2] = {
    {"w", 2, {3, 40, 0, 0, 0}, LOWBIT_DTYPE_BF16, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN},
    {"b", 1, {130, 0, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN}};
enum { TENSORS = 2, BUFFERS = 9 };

static lowbit_context_t *context;
static lowbit_spec_t *spec;
static model_t model;

static void set_up(void) {
  context = cpu_context(1, LOWBIT_CPU_VARIANT_AUTO);
  spec = spec_without_threshold("adamw4");
  model_create(&model, context, spec, tensors, TENSORS);
  REQUIRE(model.info.buffer_count == BUFFERS);
}

static void tear_down(void) {
  model_destroy(&model);
  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
}

/* An address of the right value for a handle and of no use for anything else. */
static void *unaligned(void *pointer) { return (char *)pointer + 1; }

/* --- versions and texts --- */

static void versions_and_texts(void) {
  uint32_t major = 77;
  uint32_t minor = 77;
  OK(lowbit_abi_version(&major, &minor));
  CHECK(major == LOWBIT_ABI_MAJOR && minor >= LOWBIT_ABI_MINOR);
  major = minor = 77;
  FAILS(lowbit_abi_version(NULL, &minor), NULL_POINTER, "major is null");
  FAILS(lowbit_abi_version(&major, NULL), NULL_POINTER, "minor is null");
  FAILS(lowbit_abi_version(unaligned(&major), &minor), MISALIGNED, "major is at 0x");
  CHECK(major == 77 && minor == 77);
  CHECK(strlen(lowbit_version()) >= 5);
  CHECK(strcmp(lowbit_status_name(LOWBIT_STATUS_OVERLAP), "OVERLAP") == 0);
  CHECK(strcmp(lowbit_status_name(-1), "UNKNOWN") == 0);
  CHECK(strcmp(lowbit_status_name(61), "UNKNOWN") == 0);

  /* The last error's own failures leave the text alone, and so does a call that works. */
  lowbit_spec_t *none = NULL;
  CHECK(lowbit_spec_create_preset("lion", &none) == LOWBIT_STATUS_INVALID_ARGUMENT);
  char text[1025];
  size_t needed = 0;
  memset(text, 'x', sizeof text);
  CHECK(lowbit_last_error(NULL, 0, &needed) == LOWBIT_STATUS_OK);
  CHECK(needed > 20 && needed <= sizeof text);
  CHECK(lowbit_last_error(text, needed - 1, NULL) == LOWBIT_STATUS_BUFFER_SIZE);
  CHECK(text[0] == 'x');
  CHECK(lowbit_last_error(NULL, 0, NULL) == LOWBIT_STATUS_NULL_POINTER);
  CHECK(lowbit_last_error(NULL, 10, &needed) == LOWBIT_STATUS_NULL_POINTER);
  OK(lowbit_abi_version(&major, &minor));
  CHECK(lowbit_last_error(text, needed, NULL) == LOWBIT_STATUS_OK);
  CHECK(strlen(text) + 1 == needed && text[needed] == 'x');
  CHECK(strstr(text, "\"lion\"") != NULL && strstr(text, "adamw4-block") != NULL);

  /* A text longer than what is kept is cut at a character's end. */
  char long_name[4000];
  memset(long_name, 'a', sizeof long_name);
  for (size_t i = 16; i + 1 < sizeof long_name; i += 2) memcpy(long_name + i, "\xc3\xa9", 2);
  long_name[sizeof long_name - 2] = '\0';
  CHECK(lowbit_spec_create_preset(long_name, &none) == LOWBIT_STATUS_INVALID_ARGUMENT);
  OK(lowbit_last_error(text, sizeof text, &needed));
  CHECK(needed == 1024 || needed == 1025);
  CHECK((unsigned char)text[needed - 2] == 0xa9);
}

/* --- specs --- */

static void specs(void) {
  lowbit_spec_t *out = spec;
  FAILS(lowbit_spec_create_preset(NULL, &out), NULL_POINTER, "name is null");
  CHECK(out == NULL);
  FAILS(lowbit_spec_create_preset("adamw4", NULL), NULL_POINTER, "out is null");
  FAILS(lowbit_spec_create_preset("adamw4", unaligned(&out)), MISALIGNED, "out is at 0x");
  FAILS(lowbit_spec_create_preset("\xff", &out), INVALID_ARGUMENT, "name is not UTF-8");
  FAILS(lowbit_spec_create_json(NULL, &out), NULL_POINTER, "json is null");
  FAILS(lowbit_spec_create_json("{", &out), INVALID_ARGUMENT, "");
  FAILS(lowbit_spec_create_json("{\"optimiser\":\"adamw\"}", &out), INVALID_ARGUMENT, "optimiser");

  lowbit_spec_info_t info = LOWBIT_SPEC_INFO_INIT;
  lowbit_quantizer_info_t quantizer = LOWBIT_QUANTIZER_INFO_INIT;
  lowbit_adafactor_info_t adafactor = LOWBIT_ADAFACTOR_INFO_INIT;
  FAILS(lowbit_spec_create(NULL, &out), NULL_POINTER, "info is null");
  FAILS(lowbit_spec_create(unaligned(&info), &out), MISALIGNED, "info is at 0x");
  FAILS(lowbit_spec_create(&info, &out), INVALID_ARGUMENT, "info.optimizer is 0");
  info.preset = "adamw4";
#define SPEC_FAILS(change, restore, status, words)                                     \
  do {                                                                                 \
    change;                                                                            \
    out = spec;                                                                        \
    FAILS(lowbit_spec_create(&info, &out), status, words);                             \
    CHECK(out == NULL);                                                                \
    restore;                                                                           \
  } while (0)
  SPEC_FAILS(info.preset = "adam8", info.preset = "adamw4", INVALID_ARGUMENT, "\"adam8\"|adamw32");
  SPEC_FAILS(info.flags = 96, info.flags = 0, UNKNOWN_FLAG, "info.flags|0x60");
  SPEC_FAILS(info.flags = (uint64_t)1 << 63 | 1, info.flags = 0, UNKNOWN_FLAG,
             "0x8000000000000000");
  SPEC_FAILS(info.optimizer = 9, info.optimizer = 0, INVALID_ARGUMENT, "info.optimizer is 9");
  SPEC_FAILS(info.reserved = -1, info.reserved = 0, INVALID_ARGUMENT, "info.reserved is -1");
  SPEC_FAILS(info.reserved2 = 7, info.reserved2 = 0, INVALID_ARGUMENT, "info.reserved2 is 7");
  SPEC_FAILS(info.flags = LOWBIT_SPEC_NESTEROV, info.flags = 0, INVALID_ARGUMENT, "adamw|sgdm");
  SPEC_FAILS(info.dampening = 0.5f, info.dampening = 0.0f, INVALID_ARGUMENT, "adamw|sgdm");
  SPEC_FAILS(info.adafactor = &adafactor, info.adafactor = NULL, INVALID_ARGUMENT,
             "adamw|adafactor");
  info.adafactor = &adafactor;
  SPEC_FAILS(adafactor.flags = 4, adafactor.flags = 0, UNKNOWN_FLAG, "info.adafactor.flags|0x4");
  SPEC_FAILS(adafactor.reserved = 1, adafactor.reserved = 0, INVALID_ARGUMENT,
             "info.adafactor.reserved is 1");
  info.preset = "adafactor";
  SPEC_FAILS(adafactor.decay_rate = 2.0f, adafactor.decay_rate = 0.8f, INVALID_ARGUMENT,
             "adafactor.decay_rate is 2");
  info.preset = "adamw4";
  info.adafactor = NULL;
  SPEC_FAILS(info.flags = LOWBIT_SPEC_THRESHOLD; info.threshold = -1, info.flags = 0,
             INVALID_ARGUMENT, "threshold|-1");
  SPEC_FAILS(info.override_count = -3, info.override_count = 0, INVALID_ARGUMENT,
             "info.override_count is -3");
  SPEC_FAILS(info.override_count = 1, info.override_count = 0, NULL_POINTER,
             "info.overrides is null");
  info.m = &quantizer;
  SPEC_FAILS(quantizer.bits = 9, quantizer.bits = 4, INVALID_ARGUMENT, "state m is 9");
  SPEC_FAILS(quantizer.bits = -1, quantizer.bits = 4, INVALID_ARGUMENT, "info.m.bits is -1");
  SPEC_FAILS(quantizer.rounding = 4, quantizer.rounding = 0, INVALID_ARGUMENT,
             "info.m.rounding is 4");
  SPEC_FAILS(quantizer.rounding = LOWBIT_ROUNDING_STOCHASTIC_LOG, quantizer.rounding = 0,
             UNSUPPORTED, "stochastic-log|state m");
  SPEC_FAILS(quantizer.flags = 4, quantizer.flags = 0, UNKNOWN_FLAG, "info.m.flags|0x4");
  SPEC_FAILS(quantizer.flags = LOWBIT_QUANTIZER_DITHER, quantizer.flags = 0, UNSUPPORTED,
             "dither|state m");
  SPEC_FAILS(quantizer.reserved = 3, quantizer.reserved = 0, INVALID_ARGUMENT,
             "info.m.reserved is 3");
  SPEC_FAILS(quantizer.factor_axes = 3, quantizer.factor_axes = 0, INVALID_ARGUMENT,
             "info.m.factor_axes is 3");
  SPEC_FAILS(quantizer.level_count = 2, quantizer.level_count = 0, NULL_POINTER,
             "info.m.levels is null");
  SPEC_FAILS(quantizer.normalization = 0, quantizer.normalization = LOWBIT_NORMALIZATION_BLOCK,
             INVALID_ARGUMENT, "info.m.normalization is 0");
  SPEC_FAILS(quantizer.mapping = 10, quantizer.mapping = LOWBIT_MAPPING_DE, INVALID_ARGUMENT,
             "info.m.mapping is 10");
  SPEC_FAILS(quantizer.mapping = LOWBIT_MAPPING_TABLE, quantizer.mapping = LOWBIT_MAPPING_DE,
             INVALID_ARGUMENT, "state m");
  SPEC_FAILS(quantizer.block = 100, quantizer.block = 128, INVALID_ARGUMENT, "100");
  SPEC_FAILS(quantizer.block = -128, quantizer.block = 128, INVALID_ARGUMENT,
             "info.m.block is -128");
  SPEC_FAILS(quantizer.block = (int64_t)1 << 40, quantizer.block = 128, INVALID_ARGUMENT,
             "1099511627776");
  SPEC_FAILS(quantizer.mapping = LOWBIT_MAPPING_GEOMETRIC, quantizer.mapping = LOWBIT_MAPPING_DE,
             UNSUPPORTED, "geometric|state m");
#undef SPEC_FAILS

  lowbit_override_info_t rule = LOWBIT_OVERRIDE_INFO_INIT;
  info.overrides = &rule;
  info.override_count = 1;
  FAILS(lowbit_spec_create(&info, &out), NULL_POINTER, "info.overrides[0].pattern is null");
  rule.pattern = "[";
  FAILS(lowbit_spec_create(&info, &out), INVALID_ARGUMENT, "[");

  char text[2000];
  size_t needed = 0;
  OK(lowbit_spec_json(spec, NULL, 0, &needed));
  memset(text, 'x', sizeof text);
  FAILS(lowbit_spec_json(NULL, text, sizeof text, NULL), NULL_POINTER, "spec is null");
  FAILS(lowbit_spec_json(spec, text, needed - 1, NULL), BUFFER_SIZE, "cap is");
  FAILS(lowbit_spec_json(spec, NULL, 1, &needed), NULL_POINTER, "buf is null");
  FAILS(lowbit_spec_json(spec, NULL, 0, NULL), NULL_POINTER, "needed");
  CHECK(text[0] == 'x');
}

/* --- contexts --- */

static void no_threads(void *user, int64_t count, void (*body)(void *, int64_t), void *body_arg) {
  (void)user;
  for (int64_t i = 0; i < count; i++) body(body_arg, i);
}

static void contexts(void) {
  lowbit_context_t *out = context;
  lowbit_cpu_info_t info = LOWBIT_CPU_INFO_INIT;
  FAILS(lowbit_context_create_cpu(NULL, NULL), NULL_POINTER, "out is null");
  FAILS(lowbit_context_create_cpu(&info, unaligned(&out)), MISALIGNED, "out is at 0x");
  FAILS(lowbit_context_create_cpu(unaligned(&info), &out), MISALIGNED, "info is at 0x");
  CHECK(out == NULL);
#define CONTEXT_FAILS(change, restore, status, words)                \
  do {                                                               \
    change;                                                          \
    out = context;                                                   \
    FAILS(lowbit_context_create_cpu(&info, &out), status, words);    \
    CHECK(out == NULL);                                              \
    restore;                                                         \
  } while (0)
  CONTEXT_FAILS(info.flags = 1, info.flags = 0, UNKNOWN_FLAG, "info.flags|0x1");
  CONTEXT_FAILS(info.reserved = 2, info.reserved = 0, INVALID_ARGUMENT, "info.reserved is 2");
  CONTEXT_FAILS(info.variant = 5, info.variant = 0, INVALID_ARGUMENT, "info.variant is 5");
  CONTEXT_FAILS(info.variant = -1, info.variant = 0, INVALID_ARGUMENT, "info.variant is -1");
  CONTEXT_FAILS(info.threads = -2, info.threads = 0, INVALID_ARGUMENT, "info.threads is -2");
  CONTEXT_FAILS(info.threads = 5000, info.threads = 0, INVALID_ARGUMENT, "threads is 5000");
  CONTEXT_FAILS(info.threads = 2; info.parallel_for = no_threads, info.threads = 0,
                INVALID_ARGUMENT, "info.threads is 2|parallel_for");
#undef CONTEXT_FAILS

  lowbit_cuda_info_t cuda = LOWBIT_CUDA_INFO_INIT;
  out = context;
  FAILS(lowbit_context_create_cuda(NULL, NULL), NULL_POINTER, "out is null");
  cuda.flags = 8;
  FAILS(lowbit_context_create_cuda(&cuda, &out), UNKNOWN_FLAG, "info.flags|0x8");
  CHECK(out == NULL);
  cuda.flags = 0;
  cuda.reserved = 1;
  FAILS(lowbit_context_create_cuda(&cuda, &out), INVALID_ARGUMENT, "info.reserved is 1");
  /* No machine has this device; without a driver or kernels the text says so instead. */
  cuda.reserved = 0;
  cuda.device = 9999;
  out = context;
  const lowbit_status_t status = lowbit_context_create_cuda(&cuda, &out);
  CHECK(status != LOWBIT_STATUS_OK && out == NULL);
  char text[1025];
  CHECK(lowbit_cuda_probe(9999, text, sizeof text, NULL) == LOWBIT_STATUS_CUDA_UNAVAILABLE);
  CHECK(strlen(text) > 10);
}

/* --- plans --- */

static void plans(void) {
  lowbit_plan_t *out = NULL;
  lowbit_tensor_info_t infos[TENSORS];
  const lowbit_tensor_info_t init = LOWBIT_TENSOR_INFO_INIT;
  const int64_t shape[2] = {4, 8};
  for (int i = 0; i < TENSORS; i++) {
    infos[i] = init;
    infos[i].name = i == 0 ? "w" : "b";
    infos[i].shape = shape;
    infos[i].ndim = 2;
  }
  FAILS(lowbit_plan_create(NULL, spec, infos, 2, &out), NULL_POINTER, "context is null");
  FAILS(lowbit_plan_create(context, NULL, infos, 2, &out), NULL_POINTER, "spec is null");
  FAILS(lowbit_plan_create(context, spec, NULL, 2, &out), NULL_POINTER, "tensors is null");
  FAILS(lowbit_plan_create(context, spec, infos, 2, NULL), NULL_POINTER, "out is null");
  FAILS(lowbit_plan_create(context, spec, infos, -1, &out), INVALID_ARGUMENT,
        "tensor_count is -1");
  FAILS(lowbit_plan_create(context, spec, unaligned(infos), 2, &out), MISALIGNED,
        "tensors is at 0x");
#define PLAN_FAILS(change, status, words)                                    \
  do {                                                                       \
    const lowbit_tensor_info_t saved = infos[1];                             \
    change;                                                                  \
    out = model.plan;                                                        \
    FAILS(lowbit_plan_create(context, spec, infos, 2, &out), status, words); \
    CHECK(out == NULL);                                                      \
    infos[1] = saved;                                                        \
  } while (0)
  const int64_t negative[2] = {4, -8};
  const int64_t huge[2] = {(int64_t)1 << 40, (int64_t)1 << 40};
  const int64_t many[17] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const int64_t global[2] = {8, 8};
  const int64_t outside[2] = {5, 0};
  PLAN_FAILS(infos[1].name = NULL, NULL_POINTER, "tensors[1].name is null");
  PLAN_FAILS(infos[1].name = "w", INVALID_ARGUMENT, "\"w\"|twice");
  PLAN_FAILS(infos[1].name = "\xfe", INVALID_ARGUMENT, "tensors[1].name is not UTF-8");
  PLAN_FAILS(infos[1].shape = NULL, NULL_POINTER, "tensors[1].shape is null");
  PLAN_FAILS(infos[1].ndim = -1, INVALID_ARGUMENT, "tensors[1].shape|-1");
  PLAN_FAILS(infos[1].shape = many; infos[1].ndim = 17, INVALID_ARGUMENT, "\"b\"|17 axes");
  PLAN_FAILS(infos[1].shape = negative, INVALID_ARGUMENT, "\"b\"|-8");
  PLAN_FAILS(infos[1].shape = huge, INVALID_ARGUMENT, "\"b\"|1099511627776");
  PLAN_FAILS(infos[1].flags = 2, UNKNOWN_FLAG, "tensors[1].flags|0x2");
  PLAN_FAILS(infos[1].weights = 5, INVALID_ARGUMENT, "tensors[1].weights is 5");
  PLAN_FAILS(infos[1].weights = LOWBIT_WEIGHTS_MASTER, UNSUPPORTED, "\"b\"|master|f32");
  PLAN_FAILS(infos[1].group = -1, INVALID_ARGUMENT, "tensors[1].group is -1");
  PLAN_FAILS(infos[1].group = INT64_MAX, INVALID_ARGUMENT, "tensors[1].group is 9223372036854775807");
  PLAN_FAILS(infos[1].param_dtype = 0, INVALID_ARGUMENT, "tensors[1].param_dtype is 0");
  PLAN_FAILS(infos[1].param_dtype = 77, INVALID_ARGUMENT, "tensors[1].param_dtype is 77");
  PLAN_FAILS(infos[1].grad_dtype = -4, INVALID_ARGUMENT, "tensors[1].grad_dtype is -4");
  PLAN_FAILS(infos[1].param_dtype = LOWBIT_DTYPE_U16, UNSUPPORTED, "\"b\"|param_dtype|u16");
  PLAN_FAILS(infos[1].grad_dtype = LOWBIT_DTYPE_U8, UNSUPPORTED, "\"b\"|grad_dtype|u8");
  PLAN_FAILS(infos[1].global_shape = global; infos[1].offset = outside, INVALID_ARGUMENT,
             "\"b\"|offset 5");
#undef PLAN_FAILS

  lowbit_plan_info_t info = LOWBIT_PLAN_INFO_INIT;
  lowbit_tensor_report_t report = LOWBIT_TENSOR_REPORT_INIT;
  lowbit_buffer_info_t buffer = LOWBIT_BUFFER_INFO_INIT;
  lowbit_stage_info_t stage = LOWBIT_STAGE_INFO_INIT;
  FAILS(lowbit_plan_info(NULL, &info), NULL_POINTER, "plan is null");
  FAILS(lowbit_plan_info(model.plan, NULL), NULL_POINTER, "out is null");
  FAILS(lowbit_plan_info(model.plan, unaligned(&info)), MISALIGNED, "out is at 0x");
  FAILS(lowbit_plan_tensor(NULL, 0, &report), NULL_POINTER, "plan is null");
  FAILS(lowbit_plan_tensor(model.plan, 0, NULL), NULL_POINTER, "out is null");
  FAILS(lowbit_plan_tensor(model.plan, 2, &report), INVALID_ARGUMENT, "tensor is 2|has 2");
  FAILS(lowbit_plan_tensor(model.plan, -1, &report), INVALID_ARGUMENT, "tensor is -1");
  FAILS(lowbit_plan_buffer(NULL, 0, &buffer), NULL_POINTER, "plan is null");
  FAILS(lowbit_plan_buffer(model.plan, 0, NULL), NULL_POINTER, "out is null");
  FAILS(lowbit_plan_buffer(model.plan, 9, &buffer), INVALID_ARGUMENT, "buffer is 9|has 9");
  FAILS(lowbit_plan_buffer(model.plan, INT64_MIN, &buffer), INVALID_ARGUMENT, "buffer is -");
  FAILS(lowbit_plan_stage(NULL, 0, &stage), NULL_POINTER, "plan is null");
  FAILS(lowbit_plan_stage(model.plan, 0, NULL), NULL_POINTER, "out is null");
  FAILS(lowbit_plan_stage(model.plan, 1, &stage), INVALID_ARGUMENT, "stage is 1|has 1");
  CHECK(info.tensor_count == 0 && report.numel == 0 && buffer.bytes == 0 && stage.count == 0);

  char text[4];
  size_t needed = 0;
  FAILS(lowbit_plan_report(NULL, text, sizeof text, &needed), NULL_POINTER, "plan is null");
  FAILS(lowbit_plan_report(model.plan, text, sizeof text, &needed), BUFFER_SIZE, "cap is 4");
  CHECK(needed > 100);
}

/* --- states --- */

static void states(void) {
  lowbit_state_t *out = (lowbit_state_t *)&model;
  FAILS(lowbit_state_create(NULL, NULL, &out), NULL_POINTER, "plan is null");
  CHECK(out == NULL);
  FAILS(lowbit_state_create(model.plan, NULL, NULL), NULL_POINTER, "out is null");
  OK(lowbit_state_create(model.plan, NULL, &out));
  lowbit_buffer_t buffers[BUFFERS];
  memset(buffers, 0, sizeof buffers);
  FAILS(lowbit_state_buffers(NULL, buffers, BUFFERS), NULL_POINTER, "state is null");
  FAILS(lowbit_state_buffers(out, NULL, BUFFERS), NULL_POINTER, "buffers is null");
  FAILS(lowbit_state_buffers(out, unaligned(buffers), BUFFERS), MISALIGNED, "buffers is at 0x");
  FAILS(lowbit_state_buffers(out, buffers, BUFFERS - 1), BUFFER_SIZE, "buffer_count is 8|has 9");
  FAILS(lowbit_state_buffers(out, buffers, -1), BUFFER_SIZE, "buffer_count is -1");
  CHECK(buffers[0].data == NULL && buffers[BUFFERS - 1].data == NULL);
  lowbit_state_destroy(out, NULL);
}

/* --- steps --- */

typedef struct call_t {
  lowbit_step_args_t args;
  lowbit_buffer_t params[TENSORS], grads[TENSORS], updates[TENSORS], state[BUFFERS];
} call_t;

static void call_begin(call_t *call) {
  call->args = model_args(&model);
  memcpy(call->params, model.params, sizeof call->params);
  memcpy(call->grads, model.grads, sizeof call->grads);
  memcpy(call->updates, model.updates, sizeof call->updates);
  memcpy(call->state, model.state, sizeof call->state);
  call->args.params = call->params;
  call->args.grads = call->grads;
  call->args.state = call->state;
}

/* All three entry points refuse, and no byte of the model changes. */
#define STEP_FAILS(change, status, words)                                   \
  do {                                                                      \
    call_t c;                                                               \
    call_begin(&c);                                                         \
    change;                                                                 \
    model_remember(&model);                                                 \
    FAILS(lowbit_step(model.plan, &c.args, NULL), status, words);           \
    FAILS(lowbit_step_stats(model.plan, &c.args, 0, NULL), status, words);  \
    FAILS(lowbit_step_apply(model.plan, &c.args, NULL), status, words);     \
    CHECK(model_is_as_remembered(&model));                                  \
  } while (0)

static void step_pointers_and_sizes(void) {
  lowbit_step_args_t args = model_args(&model);
  FAILS(lowbit_step(NULL, &args, NULL), NULL_POINTER, "plan is null");
  FAILS(lowbit_step(model.plan, NULL, NULL), NULL_POINTER, "args is null");
  FAILS(lowbit_step(model.plan, unaligned(&args), NULL), MISALIGNED, "args is at 0x");
  FAILS(lowbit_step_stats(model.plan, &args, 1, NULL), INVALID_ARGUMENT,
        "stage is 1|1 collecting stages");
  FAILS(lowbit_step_stats(model.plan, &args, -1, NULL), INVALID_ARGUMENT, "stage is -1");

  STEP_FAILS(c.args.flags = 2, UNKNOWN_FLAG, "args.flags|0x2");
  STEP_FAILS(c.args.flags = LOWBIT_STEP_COUNTED, NULL_POINTER, "hyper is null");
  STEP_FAILS(c.args.params = NULL, NULL_POINTER, "args.params is null");
  STEP_FAILS(c.args.grads = NULL, NULL_POINTER, "args.grads is null");
  STEP_FAILS(c.args.state = NULL, NULL_POINTER, "args.state is null");
  STEP_FAILS(c.args.params = unaligned(c.params), MISALIGNED, "args.params is at 0x");
  STEP_FAILS(c.args.state = unaligned(c.state), MISALIGNED, "args.state is at 0x");
  STEP_FAILS(c.args.tensor_count = 1, INVALID_ARGUMENT, "params: 1 given|has 2");
  STEP_FAILS(c.args.tensor_count = 0, INVALID_ARGUMENT, "params: 0 given");
  STEP_FAILS(c.args.tensor_count = -1, INVALID_ARGUMENT, "args.params is -1");
  STEP_FAILS(c.args.tensor_count = INT64_MAX, INVALID_ARGUMENT, "9223372036854775807");
  STEP_FAILS(c.args.buffer_count = BUFFERS - 1, INVALID_ARGUMENT, "state buffers: 8 given|has 9");
  STEP_FAILS(c.args.buffer_count = INT64_MIN, INVALID_ARGUMENT, "args.state is -9223372036854775808");

  STEP_FAILS(c.params[0].data = NULL, NULL_POINTER, "params[0] (w) is null");
  STEP_FAILS(c.grads[1].data = NULL, NULL_POINTER, "grads[1] (b) is null");
  STEP_FAILS(c.state[2].data = NULL, NULL_POINTER, "state w/v/codes is null");
  STEP_FAILS(c.args.updates = c.updates; c.updates[1].data = NULL, NULL_POINTER,
             "updates[1] (b) is null");
  STEP_FAILS(c.args.scratch.data = NULL, NULL_POINTER, "scratch is null");

  STEP_FAILS(c.params[0].bytes += 2, BUFFER_SIZE, "params[0] (w) has 242 bytes|240");
  STEP_FAILS(c.params[1].bytes = 0, BUFFER_SIZE, "params[1] (b) has 0 bytes|520");
  STEP_FAILS(c.grads[0].bytes /= 2, BUFFER_SIZE, "grads[0] (w) has 240 bytes|480");
  STEP_FAILS(c.grads[1].bytes = -1, BUFFER_SIZE, "grads[1] (b) has -1 bytes");
  STEP_FAILS(c.args.updates = c.updates; c.updates[0].bytes = 1, BUFFER_SIZE,
             "updates[0] (w) has 1 bytes");
  STEP_FAILS(c.state[8].bytes -= 1, BUFFER_SIZE, "state b/v/scales has 7 bytes|8");
  STEP_FAILS(c.args.scratch.bytes -= 4, BUFFER_SIZE, "scratch has|the plan needs");

  STEP_FAILS(c.params[0].data = unaligned(c.params[0].data), MISALIGNED,
             "params[0] (w) is at 0x|multiple of 2");
  STEP_FAILS(c.grads[0].data = (char *)c.grads[0].data + 2, MISALIGNED,
             "grads[0] (w) is at 0x|multiple of 4");
  STEP_FAILS(c.state[1].data = (char *)c.state[1].data + 2, MISALIGNED,
             "state w/m/scales is at 0x|multiple of 4");
  STEP_FAILS(c.args.scratch.data = unaligned(c.args.scratch.data), MISALIGNED, "scratch is at 0x");
  STEP_FAILS(c.args.skipped = (int64_t *)(void *)((char *)model.skipped + 4), MISALIGNED,
             "skipped is at 0x|multiple of 8");
  STEP_FAILS(c.params[1].data = (void *)(UINTPTR_MAX - 3), INVALID_ARGUMENT,
             "params[1] (b) ends beyond");
}

static void step_overlap(void) {
  STEP_FAILS(c.params[1].data = (char *)c.state[4].data - 516, OVERLAP,
             "params[1] (b) at 0x|overlaps");
  STEP_FAILS(c.state[0].data = c.state[2].data, OVERLAP, "state w/m/codes|state w/v/codes");
  STEP_FAILS(c.args.scratch.data = c.params[1].data, OVERLAP, "scratch at 0x|params[1] (b)");
  STEP_FAILS(c.grads[1].data = c.params[1].data, OVERLAP, "params[1] (b)|grads[1] (b)");
  STEP_FAILS(c.args.updates = c.updates; c.updates[1].data = c.params[1].data, OVERLAP,
             "updates[1] (b)|params[1] (b)");
  STEP_FAILS(c.args.updates = c.updates; c.updates[1].data = (char *)c.grads[1].data + 4, OVERLAP,
             "updates[1] (b)|grads[1] (b)");
  STEP_FAILS(c.args.skipped = (int64_t *)c.args.scratch.data, OVERLAP, "skipped|scratch");
  float hyper[LOWBIT_HYPER_COUNT] = {1e-3f, 0.9f, 0.999f, 1e-8f, 0.0f, 1.0f, 1.0f, 0.0f};
  int32_t number = 1;
  STEP_FAILS(c.args.hyper = (float *)c.params[1].data; c.args.step_number = &number, OVERLAP,
             "hyper at 0x|params[1] (b)");
  STEP_FAILS(c.args.hyper = hyper; c.args.step_number = (int32_t *)c.state[1].data, OVERLAP,
             "step at 0x|state w/m/scales");

  /* Gradients are only read: two tensors may share one, where nothing writes it. */
  call_t call;
  call_begin(&call);
  model_reset(&model);
  call.grads[0].data = (char *)call.grads[1].data + 4;
  OK(lowbit_step(model.plan, &call.args, NULL));
  /* An update may take its gradient's place, exactly. */
  call_begin(&call);
  call.args.updates = call.updates;
  call.updates[1] = call.grads[1];
  OK(lowbit_step(model.plan, &call.args, NULL));
  model_reset(&model);
}

static void step_hyper(void) {
  const float bad[] = {NAN, INFINITY, -INFINITY};
  const char *const texts[] = {"is NaN", "is inf", "is -inf"};
  for (int i = 0; i < 3; i++) {
    char words[64];
#define HYPER_FAILS(field)                                       \
  do {                                                           \
    snprintf(words, sizeof words, #field " %s", texts[i]);       \
    STEP_FAILS(c.args.field = bad[i], INVALID_ARGUMENT, words);  \
  } while (0)
    HYPER_FAILS(lr);
    HYPER_FAILS(beta1);
    HYPER_FAILS(beta2);
    HYPER_FAILS(eps);
    HYPER_FAILS(weight_decay);
    HYPER_FAILS(grad_scale);
    HYPER_FAILS(clip_factor);
#undef HYPER_FAILS
  }
  STEP_FAILS(c.args.skip = NAN, INVALID_ARGUMENT, "skip is NaN");
  STEP_FAILS(c.args.beta1 = 1.0f, INVALID_ARGUMENT, "beta1 is 1|[0, 1)");
  STEP_FAILS(c.args.beta1 = -0.5f, INVALID_ARGUMENT, "beta1 is -0.5");
  STEP_FAILS(c.args.beta2 = 1.5f, INVALID_ARGUMENT, "beta2 is 1.5");
  STEP_FAILS(c.args.beta2 = -FLT_MIN, INVALID_ARGUMENT, "beta2 is -0.0000");
  STEP_FAILS(c.args.eps = 0.0f, INVALID_ARGUMENT, "eps is 0");
  STEP_FAILS(c.args.eps = -1e-8f, INVALID_ARGUMENT, "eps is -0.00000001");
  STEP_FAILS(c.args.step = 0, INVALID_ARGUMENT, "step is 0");
  STEP_FAILS(c.args.step = INT32_MIN, INVALID_ARGUMENT, "step is -2147483648");
  STEP_FAILS(c.args.nonfinite = 5, INVALID_ARGUMENT, "args.nonfinite is 5");
  STEP_FAILS(c.args.nonfinite = -1, INVALID_ARGUMENT, "args.nonfinite is -1");
  STEP_FAILS(c.args.nonfinite = LOWBIT_NONFINITE_SKIP_BLOCK, UNSUPPORTED, "SKIP_BLOCK|w");

  float hyper[LOWBIT_HYPER_COUNT] = {0};
  int32_t number = 1;
  STEP_FAILS(c.args.hyper = hyper, NULL_POINTER, "step is null");
  STEP_FAILS(c.args.step_number = &number, NULL_POINTER, "hyper is null");
  STEP_FAILS(c.args.hyper = unaligned(hyper); c.args.step_number = &number, MISALIGNED,
             "hyper is at 0x");
  STEP_FAILS(c.args.hyper = hyper; c.args.step_number = unaligned(&number), MISALIGNED,
             "step is at 0x");
}

static void step_offsets(void) {
  const int64_t outside[2] = {1, 0};
  const int64_t *offsets[TENSORS] = {outside, NULL};
  STEP_FAILS(c.args.offsets = offsets, INVALID_ARGUMENT, "offset of w|axis 0 starts at 1");
  STEP_FAILS(c.args.offsets = unaligned(offsets), MISALIGNED, "args.offsets is at 0x");
  offsets[0] = unaligned((void *)(uintptr_t)outside);
  STEP_FAILS(c.args.offsets = offsets, MISALIGNED, "args.offsets[] is at 0x");
}

/* --- compress and decompress --- */

/* What is refused before a device is looked for. */
static void offloads(void) {
  lowbit_offload_t *offload = NULL;
  FAILS(lowbit_offload_create(model.plan, NULL, 0, NULL), NULL_POINTER, "out is null");
  FAILS(lowbit_offload_create(NULL, NULL, 0, &offload), NULL_POINTER, "plan is null");
  FAILS(lowbit_offload_create(model.plan, NULL, 0, &offload), NULL_POINTER, "device is null");
  FAILS(lowbit_offload_create(model.plan, context, 0, &offload), INVALID_ARGUMENT,
        "device is a CPU context");
  CHECK(offload == NULL);
  lowbit_offload_info_t info = LOWBIT_OFFLOAD_INFO_INIT;
  lowbit_step_args_t args = model_args(&model);
  FAILS(lowbit_offload_info(NULL, &info), NULL_POINTER, "offload is null");
  FAILS(lowbit_offload_buffers(NULL, NULL, 0, NULL, 0), NULL_POINTER, "offload is null");
  FAILS(lowbit_offload_step(NULL, &args, NULL), NULL_POINTER, "offload is null");
  lowbit_offload_destroy(NULL);
}

static void codecs(void) {
  const lowbit_plan_t *plan = model.plan;
  lowbit_buffer_t values[TENSORS];
  lowbit_buffer_t state[BUFFERS];
  memcpy(values, model.values, sizeof values);
  memcpy(state, model.state, sizeof state);
  model_remember(&model);
#define CODEC_FAILS(change, status, words)                                                     \
  do {                                                                                         \
    const char *name = "m";                                                                    \
    int64_t tensor_count = TENSORS;                                                            \
    int64_t buffer_count = BUFFERS;                                                            \
    const lowbit_buffer_t *v = values;                                                         \
    const lowbit_buffer_t *s = state;                                                          \
    change;                                                                                    \
    FAILS(lowbit_compress(plan, name, v, tensor_count, s, buffer_count, NULL), status, words); \
    FAILS(lowbit_decompress(plan, name, s, buffer_count, v, tensor_count, NULL), status,       \
          words);                                                                              \
    CHECK(model_is_as_remembered(&model));                                                     \
    memcpy(values, model.values, sizeof values);                                               \
    memcpy(state, model.state, sizeof state);                                                  \
  } while (0)
  CODEC_FAILS(plan = NULL, NULL_POINTER, "plan is null");
  plan = model.plan;
  CODEC_FAILS(name = NULL, NULL_POINTER, "state_name is null");
  CODEC_FAILS(name = "x", INVALID_ARGUMENT, "state_name is \"x\"|m, v");
  CODEC_FAILS(v = NULL, NULL_POINTER, "values is null");
  CODEC_FAILS(s = NULL, NULL_POINTER, "state is null");
  CODEC_FAILS(tensor_count = 1, INVALID_ARGUMENT, "values: 1 given|has 2");
  CODEC_FAILS(tensor_count = -1, INVALID_ARGUMENT, "values is -1");
  CODEC_FAILS(buffer_count = 3, INVALID_ARGUMENT, "state buffers: 3 given|has 9");
  CODEC_FAILS(values[0].bytes = 240, BUFFER_SIZE, "values[0] (w) has 240 bytes|480");
  CODEC_FAILS(values[1].data = NULL, NULL_POINTER, "values[1] (b) is null");
  CODEC_FAILS(values[1].data = unaligned(values[1].data), MISALIGNED, "values[1] (b) is at 0x");
  CODEC_FAILS(state[0].bytes += 1, BUFFER_SIZE, "state w/m/codes has 61 bytes|60");
  CODEC_FAILS(state[3].data = values[0].data, OVERLAP, "state w/v/axis0|values[0] (w)");
#undef CODEC_FAILS

  /* A spec for codecs alone has no step; one of AdamW has no state x, as above. */
  lowbit_spec_info_t info = LOWBIT_SPEC_INFO_INIT;
  const lowbit_quantizer_info_t quantizer = LOWBIT_QUANTIZER_INFO_INIT;
  lowbit_spec_t *none = NULL;
  info.optimizer = LOWBIT_OPTIMIZER_NONE;
  info.x = &quantizer;
  OK(lowbit_spec_create(&info, &none));
  model_t codec;
  model_create(&codec, context, none, tensors, TENSORS);
  const lowbit_step_args_t args = model_args(&codec);
  model_remember(&codec);
  FAILS(lowbit_step(codec.plan, &args, NULL), UNSUPPORTED, "none");
  CHECK(model_is_as_remembered(&codec));
  model_destroy(&codec);
  lowbit_spec_destroy(none);
}

/* --- checkpoints --- */

static void checkpoint_arguments(void) {
  unsigned char bytes[8192];
  size_t needed = 0;
  OK(lowbit_checkpoint_serialize(model.plan, model.state, BUFFERS, 3, NULL, NULL, 0, &needed));
  REQUIRE(needed > 0 && needed <= sizeof bytes);
  memset(bytes, 0x55, sizeof bytes);
  const lowbit_plan_t *plan = model.plan;
  const lowbit_buffer_t *state = model.state;
  size_t size = needed;
  FAILS(lowbit_checkpoint_serialize(NULL, state, BUFFERS, 3, NULL, bytes, size, &needed),
        NULL_POINTER, "plan is null");
  FAILS(lowbit_checkpoint_serialize(plan, NULL, BUFFERS, 3, NULL, bytes, size, &needed),
        NULL_POINTER, "state is null");
  FAILS(lowbit_checkpoint_serialize(plan, state, 2, 3, NULL, bytes, size, &needed),
        INVALID_ARGUMENT, "state buffers: 2 given|has 9");
  FAILS(lowbit_checkpoint_serialize(plan, state, BUFFERS, -1, NULL, bytes, size, &needed),
        INVALID_ARGUMENT, "step is -1");
  FAILS(lowbit_checkpoint_serialize(plan, state, BUFFERS, 3, NULL, NULL, size, &needed),
        NULL_POINTER, "buf is null");
  FAILS(lowbit_checkpoint_serialize(plan, state, BUFFERS, 3, NULL, bytes, size, NULL),
        NULL_POINTER, "needed is null");
  FAILS(lowbit_checkpoint_serialize(plan, state, BUFFERS, 3, NULL, bytes, size, unaligned(&needed)),
        MISALIGNED, "needed is at 0x");
  FAILS(lowbit_checkpoint_serialize(plan, state, BUFFERS, 3, NULL, bytes, size - 1, &needed),
        BUFFER_SIZE, "cap is");
  CHECK(needed == size && bytes[0] == 0x55 && memcmp(bytes, bytes + 1, size) == 0);
  lowbit_buffer_t small[BUFFERS];
  memcpy(small, state, sizeof small);
  small[4].bytes -= 4;
  FAILS(lowbit_checkpoint_serialize(plan, small, BUFFERS, 3, NULL, bytes, size, &needed),
        BUFFER_SIZE, "state w/v/axis1 has 156 bytes|160");
  CHECK(bytes[0] == 0x55);
  OK(lowbit_checkpoint_serialize(plan, state, BUFFERS, 3, NULL, bytes, size, &needed));

  lowbit_checkpoint_info_t info = LOWBIT_CHECKPOINT_INFO_INIT;
  memset(model.state[0].data, 0x77, (size_t)model.state[0].bytes);
  model_remember(&model);
  FAILS(lowbit_checkpoint_deserialize(NULL, bytes, size, state, BUFFERS, NULL, &info),
        NULL_POINTER, "plan is null");
  FAILS(lowbit_checkpoint_deserialize(plan, NULL, size, state, BUFFERS, NULL, &info),
        NULL_POINTER, "data is null");
  FAILS(lowbit_checkpoint_deserialize(plan, bytes, SIZE_MAX, state, BUFFERS, NULL, &info),
        INVALID_ARGUMENT, "");
  FAILS(lowbit_checkpoint_deserialize(plan, bytes, size, NULL, BUFFERS, NULL, &info),
        NULL_POINTER, "state is null");
  FAILS(lowbit_checkpoint_deserialize(plan, bytes, size, small, BUFFERS, NULL, &info),
        BUFFER_SIZE, "state w/v/axis1 has 156 bytes|160");
  FAILS(lowbit_checkpoint_deserialize(plan, bytes, size, state, BUFFERS, NULL, unaligned(&info)),
        MISALIGNED, "out is at 0x");
  CHECK(model_is_as_remembered(&model) && info.step == 0);
}

static void checkpoint_bytes(size_t stride) {
  unsigned char bytes[8192];
  size_t size = 0;
  const lowbit_step_args_t args = model_args(&model);
  model_reset(&model);
  OK(lowbit_step(model.plan, &args, NULL));
  OK(lowbit_checkpoint_serialize(model.plan, model.state, BUFFERS, 1, NULL, bytes, sizeof bytes,
                                 &size));
  /* Another state than the file's, so that a partial load would show. */
  memset(model.state[0].data, 0x77, (size_t)model.state[0].bytes);
  memset(model.state[1].data, 0x00, (size_t)model.state[1].bytes);
  model_remember(&model);
  for (size_t cut = 0; cut < size; cut += stride) {
    /* Memory of exactly this size, so that valgrind sees a read beyond it. */
    unsigned char *part = malloc(cut + (cut == 0));
    REQUIRE(part != NULL);
    memcpy(part, bytes, cut);
    FAILS(lowbit_checkpoint_deserialize(model.plan, part, cut, model.state, BUFFERS, NULL, NULL),
          FORMAT_TRUNCATED, "checkpoint");
    free(part);
  }
  FAILS(lowbit_checkpoint_deserialize(model.plan, bytes, size + 1, model.state, BUFFERS, NULL,
                                      NULL),
        FORMAT_CORRUPT, "1 bytes follow");
  for (size_t at = 0; at < size; at += stride) {
    bytes[at] ^= 1;
    const lowbit_status_t status = lowbit_checkpoint_deserialize(
        model.plan, bytes, size, model.state, BUFFERS, NULL, NULL);
    CHECK(status >= LOWBIT_STATUS_FORMAT_MAGIC && status <= LOWBIT_STATUS_FORMAT_MISMATCH);
    bytes[at] ^= 1;
  }
  CHECK(model_is_as_remembered(&model));

  /* Altered data is named. The last bytes are checksums, before them v/scales of b, then codes. */
  bytes[size - 1] ^= 0x80;
  FAILS(lowbit_checkpoint_deserialize(model.plan, bytes, size, model.state, BUFFERS, NULL, NULL),
        FORMAT_CORRUPT, "checksum|b/v/codes");
  bytes[size - 1] ^= 0x80;
  static const unsigned char nonsense[64] = "PK\x03\x04 certainly no checkpoint";
  FAILS(lowbit_checkpoint_deserialize(model.plan, nonsense, sizeof nonsense, model.state, BUFFERS,
                                      NULL, NULL),
        FORMAT_MAGIC, "safetensors");

  /* A format of the future says so, whatever else it has. */
  static const char future[] =
      "{\"__metadata__\":{\"lowbit\":\"{\\\"format\\\":999}\"},\"x\":{\"dtype\":\"U8\","
      "\"shape\":[0],\"data_offsets\":[0,0]}}";
  unsigned char file[256] = {sizeof future - 1};
  memcpy(file + 8, future, sizeof future - 1);
  FAILS(lowbit_checkpoint_deserialize(model.plan, file, 8 + sizeof future - 1, model.state,
                                      BUFFERS, NULL, NULL),
        FORMAT_VERSION, "999");

  /* Sound checkpoints of other plans. */
  lowbit_spec_t *others[3] = {spec, spec_without_threshold("adamw4-block"), NULL};
  OK(lowbit_spec_create_preset("adamw4", &others[2]));
  for (int i = 0; i < 3; i++) {
    model_tensor_t changed[TENSORS];
    memcpy(changed, tensors, sizeof changed);
    if (i == 0) changed[1].shape[0] = 131;
    model_t other;
    model_create(&other, context, others[i], changed, TENSORS);
    model_remember(&other);
    FAILS(lowbit_checkpoint_deserialize(other.plan, bytes, size, other.state,
                                        other.info.buffer_count, NULL, NULL),
          FORMAT_MISMATCH, i == 0 ? "\"b\" [130]|\"b\" [131]" : "spec");
    CHECK(model_is_as_remembered(&other));
    model_destroy(&other);
    if (i > 0) lowbit_spec_destroy(others[i]);
  }
  OK(lowbit_checkpoint_deserialize(model.plan, bytes, size, model.state, BUFFERS, NULL, NULL));
  CHECK(!model_is_as_remembered(&model));
}

/* Number of files in a folder. */
static int files_in(const char *folder) {
  int count = 0;
  DIR *list = opendir(folder);
  REQUIRE(list != NULL);
  for (const struct dirent *entry = readdir(list); entry != NULL; entry = readdir(list)) {
    count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
  }
  closedir(list);
  return count;
}

static lowbit_status_t save(const char *path) {
  return lowbit_checkpoint_save(model.plan, model.state, BUFFERS, 1, path, NULL);
}

static lowbit_status_t load(const char *path) {
  return lowbit_checkpoint_load(model.plan, path, model.state, BUFFERS, NULL, NULL);
}

static void checkpoint_files(const char *folder) {
  char good[512];
  char missing[512];
  char deep[512];
  snprintf(good, sizeof good, "%s/good.safetensors", folder);
  snprintf(missing, sizeof missing, "%s/missing.safetensors", folder);
  snprintf(deep, sizeof deep, "%s/no/such/folder/x.safetensors", folder);

  FAILS(lowbit_checkpoint_save(NULL, model.state, BUFFERS, 1, good, NULL), NULL_POINTER,
        "plan is null");
  FAILS(lowbit_checkpoint_save(model.plan, NULL, BUFFERS, 1, good, NULL), NULL_POINTER,
        "state is null");
  FAILS(lowbit_checkpoint_save(model.plan, model.state, BUFFERS, -7, good, NULL),
        INVALID_ARGUMENT, "step is -7");
  FAILS(save(NULL), NULL_POINTER, "path is null");
  FAILS(save("\xff\xfe"), INVALID_ARGUMENT, "path is not UTF-8");
  FAILS(save(deep), IO, "no/such/folder");
  FAILS(save(""), IO, "");
  /* A folder is in the way: nothing replaces it. */
  FAILS(save(folder), IO, folder);
  CHECK(files_in(folder) == 0);
  /* No process may make files there, whoever runs it. */
  FAILS(save("/proc/lowbit.safetensors"), IO, "/proc/lowbit.safetensors");
  FAILS(load(NULL), NULL_POINTER, "path is null");
  model_remember(&model);
  FAILS(load(missing), IO, "missing.safetensors");
  FAILS(load(folder), IO, folder);
  CHECK(model_is_as_remembered(&model));

  OK(save(good));
  CHECK(files_in(folder) == 1);
  struct stat before;
  struct stat after;
  REQUIRE(stat(good, &before) == 0);
  /* A disk that fills up meanwhile: the old file stays, the temporary one goes. */
  struct rlimit limit;
  REQUIRE(getrlimit(RLIMIT_FSIZE, &limit) == 0);
  const struct rlimit tight = {256, limit.rlim_max};
  signal(SIGXFSZ, SIG_IGN);
  REQUIRE(setrlimit(RLIMIT_FSIZE, &tight) == 0);
  provoke_another_error();
  const lowbit_status_t status = save(good);
  REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  check_fails(status, LOWBIT_STATUS_IO, "good.safetensors", "save to a full disk", __FILE__,
              __LINE__);
  /* A state that does not fit the plan fails before the file is touched, too. */
  lowbit_buffer_t small[BUFFERS];
  memcpy(small, model.state, sizeof small);
  small[0].bytes = 1;
  FAILS(lowbit_checkpoint_save(model.plan, small, BUFFERS, 1, good, NULL), BUFFER_SIZE,
        "state w/m/codes has 1 bytes");
  REQUIRE(stat(good, &after) == 0);
  CHECK(before.st_ino == after.st_ino && before.st_size == after.st_size);
  CHECK(files_in(folder) == 1);

  /* Files that were cut or altered. */
  memset(model.state[0].data, 0x22, (size_t)model.state[0].bytes);
  model_remember(&model);
  const int file = open(good, O_RDWR);
  REQUIRE(file >= 0);
  const unsigned char changed = 0xc3;
  REQUIRE(pwrite(file, &changed, 1, before.st_size - 100) == 1);
  FAILS(load(good), FORMAT_CORRUPT, "good.safetensors|checksum");
  REQUIRE(ftruncate(file, before.st_size - 5) == 0);
  FAILS(load(good), FORMAT_TRUNCATED, "good.safetensors");
  REQUIRE(ftruncate(file, 0) == 0);
  FAILS(load(good), FORMAT_TRUNCATED, "0 bytes");
  close(file);
  CHECK(model_is_as_remembered(&model));
  /* Saving over the wreck repairs it. */
  OK(save(good));
  OK(load(good));
  CHECK(remove(good) == 0);
  CHECK(files_in(folder) == 0);
}

/* --- handles of another kind --- */

static void handles(void) {
  lowbit_state_t *state = NULL;
  OK(lowbit_state_create(model.plan, NULL, &state));
  void *kinds[4] = {context, spec, model.plan, state};
  lowbit_tensor_info_t info = LOWBIT_TENSOR_INFO_INIT;
  lowbit_plan_info_t sizes = LOWBIT_PLAN_INFO_INIT;
  lowbit_buffer_t buffers[BUFFERS];
  lowbit_step_args_t args = model_args(&model);
  char text[4000];
  info.name = "x";
  model_remember(&model);
  for (int i = 0; i < 4; i++) {
    lowbit_plan_t *plan = NULL;
    const char *const words = "handle of another kind";
    if (i != 0) {
      FAILS(lowbit_plan_create(kinds[i], spec, &info, 1, &plan), INVALID_ARGUMENT, words);
      lowbit_context_destroy(kinds[i]);
    }
    if (i != 1) {
      FAILS(lowbit_plan_create(context, kinds[i], &info, 1, &plan), INVALID_ARGUMENT, words);
      FAILS(lowbit_spec_json(kinds[i], text, sizeof text, NULL), INVALID_ARGUMENT, words);
      lowbit_spec_destroy(kinds[i]);
    }
    if (i != 2) {
      FAILS(lowbit_plan_info(kinds[i], &sizes), INVALID_ARGUMENT, words);
      FAILS(lowbit_step(kinds[i], &args, NULL), INVALID_ARGUMENT, words);
      lowbit_plan_destroy(kinds[i]);
    }
    if (i != 3) {
      FAILS(lowbit_state_buffers(kinds[i], buffers, BUFFERS), INVALID_ARGUMENT, words);
      lowbit_state_destroy(kinds[i], NULL);
    }
    FAILS(lowbit_plan_info(unaligned(kinds[i]), &sizes), INVALID_ARGUMENT, "plan|no handle");
  }
  CHECK(model_is_as_remembered(&model));
  /* All of them are still alive. */
  OK(lowbit_spec_json(spec, text, sizeof text, NULL));
  OK(lowbit_state_buffers(state, buffers, BUFFERS));
  OK(lowbit_step(model.plan, &args, NULL));
  lowbit_state_destroy(state, NULL);
  lowbit_context_destroy(NULL);
  lowbit_spec_destroy(NULL);
  lowbit_plan_destroy(NULL);
  lowbit_state_destroy(NULL, NULL);
}

int main(int argc, char **argv) {
  if (argc < 2) {
    printf("usage: bad_calls FOLDER [stride]\n");
    return 2;
  }
  set_up();
  versions_and_texts();
  specs();
  contexts();
  plans();
  states();
  step_pointers_and_sizes();
  step_overlap();
  step_hyper();
  step_offsets();
  offloads();
  codecs();
  checkpoint_arguments();
  checkpoint_bytes(argc > 2 ? (size_t)atoi(argv[2]) : 1);
  checkpoint_files(argv[1]);
  handles();
  tear_down();
  return check_end();
}
