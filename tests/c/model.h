/*
 * A plan and all memory that its steps touch. The memory is one block with gaps between the buffers,
 * so that "nothing else was written" is one comparison.
 */

#ifndef LOWBIT_TESTS_MODEL_H
#define LOWBIT_TESTS_MODEL_H

#include "check.h"
#include "conformance.h"

enum { MODEL_TENSORS = 8, MODEL_BUFFERS = 64, MODEL_GAP = 64 };

typedef struct model_tensor_t {
  const char *name;
  int32_t ndim;
  int64_t shape[CONFORMANCE_AXES];
  lowbit_dtype_t param_dtype;
  lowbit_dtype_t grad_dtype;
  lowbit_weights_t weights;
} model_tensor_t;

typedef struct model_t {
  lowbit_plan_t *plan;
  lowbit_plan_info_t info;
  model_tensor_t tensors[MODEL_TENSORS];
  lowbit_buffer_t params[MODEL_TENSORS];
  lowbit_buffer_t grads[MODEL_TENSORS];
  lowbit_buffer_t updates[MODEL_TENSORS];
  lowbit_buffer_t values[MODEL_TENSORS]; /* f32, for compress and decompress */
  lowbit_buffer_t state[MODEL_BUFFERS];
  lowbit_buffer_t scratch;
  int64_t *skipped;
  unsigned char *memory;
  unsigned char *copy;
  size_t bytes;
} model_t;

static inline size_t model_numel(const model_tensor_t *tensor) {
  size_t numel = 1;
  for (int32_t axis = 0; axis < tensor->ndim; axis++) numel *= (size_t)tensor->shape[axis];
  return numel;
}

static inline lowbit_plan_t *model_plan(const lowbit_context_t *context, const lowbit_spec_t *spec,
                                        const model_tensor_t *tensors, int64_t count) {
  lowbit_tensor_info_t infos[MODEL_TENSORS];
  for (int64_t i = 0; i < count; i++) {
    const lowbit_tensor_info_t info = LOWBIT_TENSOR_INFO_INIT;
    infos[i] = info;
    infos[i].name = tensors[i].name;
    infos[i].shape = tensors[i].shape;
    infos[i].ndim = tensors[i].ndim;
    infos[i].param_dtype = tensors[i].param_dtype;
    infos[i].grad_dtype = tensors[i].grad_dtype;
    infos[i].weights = tensors[i].weights;
  }
  lowbit_plan_t *plan = NULL;
  OK(lowbit_plan_create(context, spec, infos, count, &plan));
  REQUIRE(plan != NULL);
  return plan;
}

/* A place for `bytes` bytes at offset *at; without memory it only counts. */
static inline lowbit_buffer_t model_place(unsigned char *memory, size_t *at, size_t bytes) {
  lowbit_buffer_t buffer;
  buffer.data = memory == NULL ? NULL : memory + *at;
  buffer.bytes = (int64_t)bytes;
  *at += (bytes + MODEL_GAP - 1) / MODEL_GAP * MODEL_GAP + MODEL_GAP;
  return buffer;
}

static inline void model_layout(model_t *model) {
  size_t at = MODEL_GAP;
  for (int64_t i = 0; i < model->info.tensor_count; i++) {
    const model_tensor_t *tensor = &model->tensors[i];
    const size_t numel = model_numel(tensor);
    const size_t param_bytes = numel * conformance_dtype_size(tensor->param_dtype);
    const size_t grad_bytes = numel * conformance_dtype_size(tensor->grad_dtype);
    model->params[i] = model_place(model->memory, &at, param_bytes);
    model->grads[i] = model_place(model->memory, &at, grad_bytes);
    model->updates[i] = model_place(model->memory, &at, param_bytes);
    model->values[i] = model_place(model->memory, &at, numel * sizeof(float));
  }
  for (int64_t i = 0; i < model->info.buffer_count; i++) {
    lowbit_buffer_info_t buffer = LOWBIT_BUFFER_INFO_INIT;
    OK(lowbit_plan_buffer(model->plan, i, &buffer));
    model->state[i] = model_place(model->memory, &at, (size_t)buffer.bytes);
  }
  model->scratch = model_place(model->memory, &at, (size_t)model->info.scratch_bytes);
  model->skipped = (int64_t *)model_place(model->memory, &at, 2 * sizeof(int64_t)).data;
  model->bytes = at;
}

/* Parameters and gradients of step 1 as in the conformance cases, state zero. */
static inline void model_reset(model_t *model) {
  memset(model->memory, 0xa5, model->bytes);
  for (int64_t i = 0; i < model->info.tensor_count; i++) {
    const model_tensor_t *tensor = &model->tensors[i];
    const uint64_t stream = (uint64_t)i;
    conformance_params(model->params[i].data, tensor->param_dtype, stream, model_numel(tensor));
    conformance_grads(model->grads[i].data, tensor->grad_dtype, conformance_grad_stream(1, stream),
                      model_numel(tensor));
    conformance_params(model->values[i].data, CONFORMANCE_F32, 100 + stream, model_numel(tensor));
  }
  for (int64_t i = 0; i < model->info.buffer_count; i++) {
    memset(model->state[i].data, 0, (size_t)model->state[i].bytes);
  }
  model->skipped[0] = 0;
  model->skipped[1] = 0;
}

static inline void model_create(model_t *model, const lowbit_context_t *context,
                                const lowbit_spec_t *spec, const model_tensor_t *tensors,
                                int64_t count) {
  const lowbit_plan_info_t info = LOWBIT_PLAN_INFO_INIT;
  memset(model, 0, sizeof *model);
  REQUIRE(count <= MODEL_TENSORS);
  memcpy(model->tensors, tensors, (size_t)count * sizeof *tensors);
  model->plan = model_plan(context, spec, tensors, count);
  model->info = info;
  OK(lowbit_plan_info(model->plan, &model->info));
  REQUIRE(model->info.tensor_count == count && model->info.buffer_count <= MODEL_BUFFERS);
  model_layout(model);
  model->memory = malloc(model->bytes);
  model->copy = malloc(model->bytes);
  REQUIRE(model->memory != NULL && model->copy != NULL);
  model_layout(model);
  model_reset(model);
}

static inline void model_destroy(model_t *model) {
  lowbit_plan_destroy(model->plan);
  free(model->memory);
  free(model->copy);
  memset(model, 0, sizeof *model);
}

/* In place, with the defaults of the macro. */
static inline lowbit_step_args_t model_args(const model_t *model) {
  lowbit_step_args_t args = LOWBIT_STEP_ARGS_INIT;
  args.tensor_count = model->info.tensor_count;
  args.params = model->params;
  args.grads = model->grads;
  args.buffer_count = model->info.buffer_count;
  args.state = model->state;
  args.scratch = model->scratch;
  return args;
}

static inline void model_remember(model_t *model) {
  memcpy(model->copy, model->memory, model->bytes);
}

static inline bool model_is_as_remembered(const model_t *model) {
  return memcmp(model->copy, model->memory, model->bytes) == 0;
}

/* Whether two models of equal tensors and spec have the same states and parameters. */
static inline bool model_equals(const model_t *a, const model_t *b) {
  if (a->bytes != b->bytes) return false;
  for (int64_t i = 0; i < a->info.tensor_count; i++) {
    const size_t bytes = (size_t)a->params[i].bytes;
    if (memcmp(a->params[i].data, b->params[i].data, bytes) != 0) return false;
  }
  for (int64_t i = 0; i < a->info.buffer_count; i++) {
    const size_t bytes = (size_t)a->state[i].bytes;
    if (memcmp(a->state[i].data, b->state[i].data, bytes) != 0) return false;
  }
  return true;
}

/* --- contexts and specs --- */

static inline lowbit_context_t *cpu_context(int64_t threads, lowbit_cpu_variant_t variant) {
  lowbit_cpu_info_t info = LOWBIT_CPU_INFO_INIT;
  lowbit_context_t *context = NULL;
  info.threads = threads;
  info.variant = variant;
  OK(lowbit_context_create_cpu(&info, &context));
  REQUIRE(context != NULL);
  return context;
}

/* A preset that quantizes tensors of any size, so that tests can be small. */
static inline lowbit_spec_t *spec_without_threshold(const char *preset) {
  lowbit_spec_info_t info = LOWBIT_SPEC_INFO_INIT;
  lowbit_spec_t *spec = NULL;
  info.preset = preset;
  info.flags = LOWBIT_SPEC_THRESHOLD;
  info.threshold = 0;
  OK(lowbit_spec_create(&info, &spec));
  REQUIRE(spec != NULL);
  return spec;
}

#endif
