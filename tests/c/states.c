/*
 * What is done with states and gradients beside the step: averages, conversion to another spec,
 * norms, reports.
 */

#include <math.h>

#include "model.h"

static const model_tensor_t tensors[2] = {
    {"matrix", 2, {40, 130, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN},
    {"bias", 1, {261, 0, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN}};
enum { TENSORS = 2 };

static lowbit_spec_t *spec_from(const char *json) {
  lowbit_spec_t *spec = NULL;
  OK(lowbit_spec_create_json(json, &spec));
  REQUIRE(spec != NULL);
  return spec;
}

/* x' = decay x + weight g in f32, by hand. */
static void averages(const lowbit_context_t *context) {
  lowbit_spec_t *spec = spec_from("{\"optimizer\":\"none\",\"threshold\":0,\"x\":{\"bits\":32}}");
  model_t model;
  model_create(&model, context, spec, tensors, TENSORS);
  lowbit_ema_args_t args = LOWBIT_EMA_ARGS_INIT;
  args.state_name = "x";
  args.tensor_count = TENSORS;
  args.inputs = model.grads;
  args.outputs = model.values;
  args.buffer_count = model.info.buffer_count;
  args.state = model.state;
  args.decay = 0.5f;
  args.weight = 2.0f;
  OK(lowbit_ema(model.plan, &args, NULL));
  const float *g = model.grads[1].data;
  const float *out = model.values[1].data;
  const float first = out[7];
  CHECK(first == 2.0f * g[7] && first != 0.0f);
  OK(lowbit_ema(model.plan, &args, NULL));
  CHECK(out[7] == fmaf(0.5f, first, 2.0f * g[7]));
  CHECK(memcmp(out, model.state[1].data, (size_t)model.state[1].bytes) == 0);

  model_remember(&model);
  args.outputs = model.grads;
  FAILS(lowbit_ema(model.plan, &args, NULL), OVERLAP, "inputs[0]|values[0]");
  args.outputs = model.values;
  args.decay = NAN;
  FAILS(lowbit_ema(model.plan, &args, NULL), INVALID_ARGUMENT, "decay");
  args.decay = 0.5f;
  args.state_name = "m";
  FAILS(lowbit_ema(model.plan, &args, NULL), INVALID_ARGUMENT, "\"m\"");
  args.state_name = "x";
  args.flags = 4;
  FAILS(lowbit_ema(model.plan, &args, NULL), UNKNOWN_FLAG, "0x4");
  FAILS(lowbit_ema(model.plan, NULL, NULL), NULL_POINTER, "args");
  CHECK(model_is_as_remembered(&model));
  model_destroy(&model);
  lowbit_spec_destroy(spec);
}

static lowbit_step_args_t step_args(model_t *model) {
  lowbit_step_args_t args = model_args(model);
  args.updates = NULL;
  return args;
}

/* 4-bit states become 32-bit ones that decode to the same values, and back to the same bytes. */
static void conversion(const lowbit_context_t *context) {
  lowbit_spec_t *specs[2] = {spec_without_threshold("adamw4"), spec_without_threshold("adamw32")};
  model_t models[3];
  for (int i = 0; i < 3; i++) model_create(&models[i], context, specs[i % 2], tensors, TENSORS);
  lowbit_step_args_t args = step_args(&models[0]);
  OK(lowbit_step(models[0].plan, &args, NULL));
  for (int i = 0; i < 2; i++) {
    OK(lowbit_convert(models[i].plan, models[i].state, models[i].info.buffer_count,
                      models[i + 1].plan, models[i + 1].state, models[i + 1].info.buffer_count));
  }
  OK(lowbit_decompress(models[0].plan, "v", models[0].state, models[0].info.buffer_count,
                       models[0].values, TENSORS, NULL));
  lowbit_buffer_info_t v = LOWBIT_BUFFER_INFO_INIT;
  OK(lowbit_plan_buffer(models[1].plan, 1, &v));
  CHECK(strcmp(v.state, "v") == 0);
  CHECK(memcmp(models[0].values[0].data, models[1].state[1].data, (size_t)v.bytes) == 0);
  for (int64_t i = 0; i < models[0].info.buffer_count; i++) {
    lowbit_buffer_info_t info = LOWBIT_BUFFER_INFO_INIT;
    OK(lowbit_plan_buffer(models[0].plan, i, &info));
    /* m's table has no -1: a block whose largest magnitude is negative shrinks when coded anew. */
    if (strcmp(info.state, "v") == 0 && strcmp(info.part, "codes") == 0) {
      CHECK(memcmp(models[0].state[i].data, models[2].state[i].data, (size_t)info.bytes) == 0);
    }
  }
  FAILS(lowbit_convert(models[0].plan, models[0].state, 1, models[1].plan, models[1].state,
                       models[1].info.buffer_count),
        INVALID_ARGUMENT, "state buffers|1 given");
  FAILS(lowbit_convert(NULL, models[0].state, 1, models[1].plan, models[1].state,
                       models[1].info.buffer_count),
        NULL_POINTER, "plan");
  for (int i = 0; i < 3; i++) model_destroy(&models[i]);
  for (int i = 0; i < 2; i++) lowbit_spec_destroy(specs[i]);
}

static void norms(const lowbit_context_t *context) {
  lowbit_spec_t *spec = spec_without_threshold("adamw32");
  model_t model;
  model_create(&model, context, spec, tensors, TENSORS);
  double squares = 0;
  for (int i = 0; i < TENSORS; i++) {
    const float *g = model.grads[i].data;
    const size_t numel = model_numel(&tensors[i]);
    for (size_t j = 0; j < numel; j++) squares += (double)g[j] * g[j];
  }
  int64_t scratch[3] = {-1, -1, -1};
  lowbit_norm_args_t args = LOWBIT_NORM_ARGS_INIT;
  args.tensor_count = TENSORS;
  args.grads = model.grads;
  args.scratch.data = scratch;
  args.scratch.bytes = LOWBIT_NORM_SCRATCH;
  args.max_norm = 0.001f;
  float norm = -1.0f;
  float clip = -1.0f;
  OK(lowbit_norm(model.plan, &args, NULL, &norm, &clip));
  CHECK(fabs(norm / sqrt(squares) - 1.0) < 6e-8);
  CHECK(clip == 0.001f / norm);

  float staged[2] = {0, 0};
  for (int64_t stage = 0; stage < 2; stage++) {
    lowbit_stage_info_t info = LOWBIT_STAGE_INFO_INIT;
    OK(lowbit_norm_stage(model.plan, stage, &info));
    CHECK(info.dtype == LOWBIT_DTYPE_I64 && info.offset + 8 * info.count <= LOWBIT_NORM_SCRATCH);
    CHECK(info.reduce == (stage == 0 ? LOWBIT_REDUCE_MAX : LOWBIT_REDUCE_SUM));
    OK(lowbit_norm_stats(model.plan, &args, stage, NULL));
  }
  OK(lowbit_norm_finish(model.plan, &args, &staged[0], &staged[1]));
  CHECK(staged[0] == norm && staged[1] == clip);

  FAILS(lowbit_norm_stats(model.plan, &args, 2, NULL), INVALID_ARGUMENT, "stage is 2");
  FAILS(lowbit_norm(model.plan, &args, NULL, NULL, &clip), NULL_POINTER, "norm");
  args.max_norm = 0.0f;
  FAILS(lowbit_norm(model.plan, &args, NULL, &norm, &clip), INVALID_ARGUMENT, "max_norm is 0");
  args.max_norm = 1.0f;
  args.scratch.bytes = 16;
  FAILS(lowbit_norm(model.plan, &args, NULL, &norm, &clip), BUFFER_SIZE, "16");
  args.scratch.bytes = LOWBIT_NORM_SCRATCH;
  args.scratch.data = (char *)scratch + 4;
  FAILS(lowbit_norm(model.plan, &args, NULL, &norm, &clip), MISALIGNED, "scratch");
  model_destroy(&model);
  lowbit_spec_destroy(spec);
}

static void reports(const lowbit_context_t *context) {
  lowbit_spec_t *spec = spec_without_threshold("adamw4");
  model_t model;
  model_create(&model, context, spec, tensors, TENSORS);
  lowbit_step_args_t args = step_args(&model);
  model_remember(&model);
  lowbit_report_t *report = NULL;
  OK(lowbit_report_create(model.plan, &args, &report));
  REQUIRE(report != NULL);
  CHECK(model_is_as_remembered(&model));
  static char text[1 << 14];
  size_t needed = 0;
  OK(lowbit_report_text(report, LOWBIT_REPORT_TABLE, NULL, 0, &needed));
  CHECK(needed > 100 && needed < sizeof text);
  OK(lowbit_report_text(report, LOWBIT_REPORT_TABLE, text, sizeof text, NULL));
  CHECK(strlen(text) + 1 == needed);
  CHECK(strstr(text, "matrix") != NULL && strstr(text, "4-bit rank1/linear") != NULL);
  OK(lowbit_report_text(report, LOWBIT_REPORT_JSON, text, sizeof text, NULL));
  CHECK(strstr(text, "{\"states\":[{\"tensor\":\"matrix\",\"state\":\"m\"") == text);
  FAILS(lowbit_report_text(report, 9, text, sizeof text, NULL), INVALID_ARGUMENT, "format is 9");
  FAILS(lowbit_report_text(report, LOWBIT_REPORT_JSON, text, 5, NULL), BUFFER_SIZE, "cap is 5");
  lowbit_report_destroy(report);
  lowbit_report_destroy(NULL);
  args.tensor_count = 1;
  FAILS(lowbit_report_create(model.plan, &args, &report), INVALID_ARGUMENT, "params");
  CHECK(report == NULL);
  model_destroy(&model);
  lowbit_spec_destroy(spec);
}

int main(void) {
  lowbit_context_t *context = cpu_context(2, LOWBIT_CPU_VARIANT_AUTO);
  averages(context);
  conversion(context);
  norms(context);
  reports(context);
  lowbit_context_destroy(context);
  return check_end();
}
