/*
 * What works: compress and decompress, steps on every variant, states owned by the library,
 * checkpoints to memory, to a file and back.
 *
 *   primitives FOLDER
 */

#include <float.h>
#include <math.h>

#include "model.h"

static const model_tensor_t tensors[4] = {
    {"matrix", 2, {9, 130, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN},
    {"kernel", 4, {3, 2, 5, 5, 0}, LOWBIT_DTYPE_BF16, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN},
    {"bias", 1, {261, 0, 0, 0, 0}, LOWBIT_DTYPE_BF16, LOWBIT_DTYPE_BF16,
     LOWBIT_WEIGHTS_PLAIN},
    {"empty", 2, {0, 5, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN}};
enum { TENSORS = 4 };

/* With zero to four collecting stages besides the flags'. */
enum { PRESETS = 6 };
static const char *const presets[PRESETS] = {"adamw32", "adamw4", "adamw4-block",
                                             "factor4", "sm3",    "adafactor"};

/* The variants that this processor can run. */
static int variants(lowbit_cpu_variant_t list[4]) {
  int count = 0;
  for (lowbit_cpu_variant_t variant = 1; variant <= 4; variant++) {
    lowbit_cpu_info_t info = LOWBIT_CPU_INFO_INIT;
    lowbit_context_t *context = NULL;
    info.threads = 1;
    info.variant = variant;
    const lowbit_status_t status = lowbit_context_create_cpu(&info, &context);
    if (status == LOWBIT_STATUS_OK) {
      list[count++] = variant;
    } else {
      CHECK(status == LOWBIT_STATUS_UNSUPPORTED && variant >= LOWBIT_CPU_VARIANT_AVX2);
      printf("not run here: %s\n", last_error());
    }
    lowbit_context_destroy(context);
  }
  CHECK(count >= 2);
  return count;
}

/* --- compress, decompress --- */

/* The reference's codes, whichever variant makes them, and values that are near. */
static void codec_round_trip(lowbit_cpu_variant_t variant) {
  lowbit_context_t *contexts[2] = {cpu_context(1, LOWBIT_CPU_VARIANT_REFERENCE),
                                   cpu_context(2, variant)};
  lowbit_spec_info_t info = LOWBIT_SPEC_INFO_INIT;
  const lowbit_quantizer_info_t quantizer = LOWBIT_QUANTIZER_INFO_INIT;
  lowbit_spec_t *spec = NULL;
  info.optimizer = LOWBIT_OPTIMIZER_NONE;
  info.x = &quantizer;
  info.flags = LOWBIT_SPEC_THRESHOLD;
  OK(lowbit_spec_create(&info, &spec));
  model_t models[2];
  for (int i = 0; i < 2; i++) {
    model_t *model = &models[i];
    model_create(model, contexts[i], spec, tensors, TENSORS);
    const size_t numel = model_numel(&tensors[0]);
    const float *values = model->values[0].data;
    float *before = malloc(numel * sizeof(float));
    REQUIRE(before != NULL);
    memcpy(before, values, numel * sizeof(float));
    OK(lowbit_compress(model->plan, "x", model->values, TENSORS, model->state,
                       model->info.buffer_count, NULL));
    /* What is read is not written. */
    CHECK(memcmp(before, values, numel * sizeof(float)) == 0);
    OK(lowbit_decompress(model->plan, "x", model->state, model->info.buffer_count, model->values,
                         TENSORS, NULL));
    float largest = 0.0f;
    float worst = 0.0f;
    for (size_t j = 0; j < numel; j++) {
      largest = fmaxf(largest, fabsf(before[j]));
      worst = fmaxf(worst, fabsf(before[j] - values[j]));
    }
    /* The widest gap between two levels is below 3/10 of the block's maximum. */
    CHECK(worst > 0.0f && worst < 0.15f * largest);
    free(before);
  }
  CHECK(model_equals(&models[0], &models[1]));
  for (int i = 0; i < TENSORS; i++) {
    CHECK(memcmp(models[0].values[i].data, models[1].values[i].data,
                 (size_t)models[0].values[i].bytes) == 0);
  }
  for (int i = 0; i < 2; i++) {
    model_destroy(&models[i]);
    lowbit_context_destroy(contexts[i]);
  }
  lowbit_spec_destroy(spec);
}

/* A full-precision state can be brought in and taken out; the other state stays. */
static void import_and_export(void) {
  lowbit_context_t *context = cpu_context(1, LOWBIT_CPU_VARIANT_AUTO);
  lowbit_spec_t *spec = spec_without_threshold("adamw32");
  model_t model;
  model_create(&model, context, spec, tensors, TENSORS);
  OK(lowbit_compress(model.plan, "v", model.values, TENSORS, model.state,
                     model.info.buffer_count, NULL));
  for (int64_t i = 0; i < model.info.buffer_count; i++) {
    lowbit_buffer_info_t buffer = LOWBIT_BUFFER_INFO_INIT;
    OK(lowbit_plan_buffer(model.plan, i, &buffer));
    const lowbit_buffer_t *values = &model.values[buffer.tensor];
    const bool is_v = strcmp(buffer.state, "v") == 0;
    const bool same = memcmp(model.state[i].data, values->data, (size_t)values->bytes) == 0;
    CHECK(strcmp(buffer.part, "value") == 0 && (values->bytes == 0 || same == is_v));
  }
  memset(model.values[0].data, 0, (size_t)model.values[0].bytes);
  OK(lowbit_decompress(model.plan, "v", model.state, model.info.buffer_count, model.values,
                       TENSORS, NULL));
  CHECK(((float *)model.values[0].data)[0] == conformance_param(100, 0));
  model_destroy(&model);
  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
}

/* --- steps --- */

static void next_gradients(model_t *model, uint64_t t) {
  for (int64_t i = 0; i < model->info.tensor_count; i++) {
    conformance_grads(model->grads[i].data, model->tensors[i].grad_dtype,
                      conformance_grad_stream(t, (uint64_t)i), model_numel(&model->tensors[i]));
  }
}

/* Every variant, its threads, and the stages of a step give the reference's bytes. */
static void steps_agree(const char *preset, const lowbit_cpu_variant_t *list, int count) {
  lowbit_spec_t *spec = spec_without_threshold(preset);
  model_t first;
  lowbit_context_t *reference = cpu_context(1, LOWBIT_CPU_VARIANT_REFERENCE);
  model_create(&first, reference, spec, tensors, TENSORS);
  lowbit_step_args_t args = model_args(&first);
  for (args.step = 1; args.step <= 3; args.step++) {
    next_gradients(&first, (uint64_t)args.step);
    OK(lowbit_step(first.plan, &args, NULL));
  }
  for (int i = 0; i < count; i++) {
    lowbit_context_t *context = cpu_context(3, list[i]);
    for (int staged = 0; staged < 2; staged++) {
      model_t model;
      model_create(&model, context, spec, tensors, TENSORS);
      args = model_args(&model);
      for (args.step = 1; args.step <= 3; args.step++) {
        next_gradients(&model, (uint64_t)args.step);
        if (staged) {
          for (int64_t stage = 0; stage < model.info.stage_count; stage++) {
            OK(lowbit_step_stats(model.plan, &args, stage, NULL));
          }
          OK(lowbit_step_apply(model.plan, &args, NULL));
        } else {
          OK(lowbit_step(model.plan, &args, NULL));
        }
      }
      CHECK(model_equals(&first, &model));
      model_destroy(&model);
    }
    lowbit_context_destroy(context);
  }

  /* Updates instead of new parameters; hyper-parameters from memory. */
  const float hyper[LOWBIT_HYPER_COUNT] = {args.lr,           args.beta1,      args.beta2,
                                           args.eps,          args.weight_decay,
                                           args.grad_scale,   args.clip_factor, args.skip};
  const int32_t number = 1;
  model_t by_value;
  model_t by_memory;
  model_create(&by_value, reference, spec, tensors, TENSORS);
  model_create(&by_memory, reference, spec, tensors, TENSORS);
  args = model_args(&by_value);
  args.updates = by_value.updates;
  OK(lowbit_step(by_value.plan, &args, NULL));
  args = model_args(&by_memory);
  args.updates = by_memory.updates;
  args.hyper = hyper;
  args.step_number = &number;
  args.lr = NAN;
  args.step = -1;
  OK(lowbit_step(by_memory.plan, &args, NULL));
  CHECK(model_equals(&by_value, &by_memory));
  CHECK(memcmp(by_value.updates[0].data, by_memory.updates[0].data,
               (size_t)by_value.updates[0].bytes) == 0);
  CHECK(((float *)by_value.params[0].data)[1] == conformance_param(0, 1));
  model_destroy(&by_value);
  model_destroy(&by_memory);

  model_destroy(&first);
  lowbit_context_destroy(reference);
  lowbit_spec_destroy(spec);
}

/* Non-finite gradients are counted, and what they belong to stays. */
static void nonfinite_gradients(void) {
  lowbit_context_t *context = cpu_context(2, LOWBIT_CPU_VARIANT_AUTO);
  lowbit_spec_t *spec = spec_without_threshold("adamw4");
  model_t model;
  model_create(&model, context, spec, tensors, TENSORS);
  ((float *)model.grads[0].data)[700] = INFINITY;
  lowbit_step_args_t args = model_args(&model);
  args.skipped = model.skipped;
  OK(lowbit_step(model.plan, &args, NULL));
  CHECK(((float *)model.params[0].data)[0] == conformance_param(0, 0));
  CHECK(model.skipped[1] == 1);
  model_destroy(&model);
  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
}

/* --- states and checkpoints --- */

static void checkpoints(const char *preset, const char *folder) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s.safetensors", folder, preset);
  lowbit_context_t *context = cpu_context(1, LOWBIT_CPU_VARIANT_AUTO);
  lowbit_spec_t *spec = spec_without_threshold(preset);
  model_t model;
  model_create(&model, context, spec, tensors, TENSORS);
  const int64_t count = model.info.buffer_count;

  /* A state that the library owns; it outlives its plan. */
  lowbit_plan_t *plan = model_plan(context, spec, tensors, TENSORS);
  lowbit_state_t *owned = NULL;
  lowbit_buffer_t buffers[MODEL_BUFFERS];
  OK(lowbit_state_create(plan, NULL, &owned));
  OK(lowbit_state_buffers(owned, buffers, count));
  lowbit_plan_destroy(plan);
  for (int64_t i = 0; i < count; i++) {
    CHECK((uintptr_t)buffers[i].data % (uintptr_t)model.info.arena_align == 0);
    CHECK(buffers[i].bytes == model.state[i].bytes);
    CHECK(memcmp(buffers[i].data, model.state[i].data, (size_t)buffers[i].bytes) == 0);
  }

  lowbit_step_args_t args = model_args(&model);
  args.state = buffers;
  OK(lowbit_step(model.plan, &args, NULL));
  size_t bytes = 0;
  OK(lowbit_checkpoint_serialize(model.plan, buffers, count, 41, NULL, NULL, 0, &bytes));
  unsigned char *memory = malloc(bytes);
  REQUIRE(memory != NULL && bytes > (size_t)model.info.state_bytes);
  OK(lowbit_checkpoint_serialize(model.plan, buffers, count, 41, NULL, memory, bytes, &bytes));
  lowbit_checkpoint_info_t info = LOWBIT_CHECKPOINT_INFO_INIT;
  OK(lowbit_checkpoint_deserialize(model.plan, memory, bytes, model.state, count, NULL, &info));
  CHECK(info.step == 41);
  for (int64_t i = 0; i < count; i++) {
    CHECK(memcmp(buffers[i].data, model.state[i].data, (size_t)buffers[i].bytes) == 0);
  }

  /* The file has the same bytes, whatever lay there before. */
  FILE *file = fopen(path, "wb");
  REQUIRE(file != NULL && fputs("an old file", file) >= 0 && fclose(file) == 0);
  OK(lowbit_checkpoint_save(model.plan, buffers, count, 41, path, NULL));
  unsigned char *read = malloc(bytes + 1);
  file = fopen(path, "rb");
  REQUIRE(read != NULL && file != NULL);
  CHECK(fread(read, 1, bytes + 1, file) == bytes && memcmp(read, memory, bytes) == 0);
  fclose(file);
  model_reset(&model);
  info.step = 0;
  OK(lowbit_checkpoint_load(model.plan, path, model.state, count, NULL, &info));
  CHECK(info.step == 41);
  for (int64_t i = 0; i < count; i++) {
    CHECK(memcmp(buffers[i].data, model.state[i].data, (size_t)buffers[i].bytes) == 0);
  }
  CHECK(remove(path) == 0);

  free(read);
  free(memory);
  /* In the order that looks wrong: each keeps what it needs. */
  lowbit_context_destroy(context);
  lowbit_spec_destroy(spec);
  model_destroy(&model);
  lowbit_state_destroy(owned, NULL);
}

/* A plan of no tensors is a plan. */
static void nothing(void) {
  lowbit_context_t *context = cpu_context(0, LOWBIT_CPU_VARIANT_AUTO);
  lowbit_spec_t *spec = spec_without_threshold("adamw4");
  lowbit_plan_t *plan = NULL;
  lowbit_state_t *state = NULL;
  OK(lowbit_plan_create(context, spec, NULL, 0, &plan));
  OK(lowbit_state_create(plan, NULL, &state));
  OK(lowbit_state_buffers(state, NULL, 0));
  const lowbit_step_args_t args = LOWBIT_STEP_ARGS_INIT;
  OK(lowbit_step(plan, &args, NULL));
  size_t bytes = 0;
  OK(lowbit_checkpoint_serialize(plan, NULL, 0, 0, NULL, NULL, 0, &bytes));
  CHECK(bytes > 0);
  lowbit_state_destroy(state, NULL);
  lowbit_plan_destroy(plan);
  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
}

int main(int argc, char **argv) {
  lowbit_cpu_variant_t list[4];
  const int count = variants(list);
  if (argc < 2) {
    printf("usage: primitives FOLDER\n");
    return 2;
  }
  for (int i = 0; i < count; i++) codec_round_trip(list[i]);
  import_and_export();
  for (int i = 0; i < PRESETS; i++) {
    steps_agree(presets[i], list, count);
    checkpoints(presets[i], argv[1]);
  }
  nonfinite_gradients();
  nothing();
  return check_end();
}
