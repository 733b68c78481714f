/*
 * Handles that were destroyed. To use one is undefined, as the header says under Safety; yet as long
 * as its memory was not given out again, the library sees it and refuses. Not for valgrind, which
 * rightly reports the read.
 */

#include "model.h"

static const model_tensor_t tensors[1] = {
    {"w", 2, {5, 7, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN}};

int main(void) {
  const char *const words = "was destroyed";
  lowbit_context_t *context = cpu_context(1, LOWBIT_CPU_VARIANT_AUTO);
  lowbit_spec_t *spec = spec_without_threshold("adamw4");
  model_t model;
  model_create(&model, context, spec, tensors, 1);
  lowbit_state_t *state = NULL;
  OK(lowbit_state_create(model.plan, NULL, &state));
  const lowbit_step_args_t args = model_args(&model);
  lowbit_plan_info_t info = LOWBIT_PLAN_INFO_INIT;
  lowbit_buffer_t buffers[MODEL_BUFFERS];
  char text[8];

  /* Through volatile pointers: compilers know what free does to a pointer's value. */
  lowbit_state_t *volatile old_state = state;
  lowbit_state_destroy(state, NULL);
  FAILS(lowbit_state_buffers(old_state, buffers, model.info.buffer_count), INVALID_ARGUMENT, words);
  lowbit_state_destroy(old_state, NULL);

  lowbit_plan_t *volatile old_plan = model.plan;
  model_remember(&model);
  lowbit_plan_destroy(model.plan);
  model.plan = NULL;
  FAILS(lowbit_step(old_plan, &args, NULL), INVALID_ARGUMENT, words);
  FAILS(lowbit_plan_info(old_plan, &info), INVALID_ARGUMENT, words);
  CHECK(model_is_as_remembered(&model) && info.tensor_count == 0);
  lowbit_plan_destroy(old_plan);

  lowbit_spec_t *volatile old_spec = spec;
  lowbit_spec_destroy(spec);
  FAILS(lowbit_spec_json(old_spec, text, sizeof text, NULL), INVALID_ARGUMENT, words);
  lowbit_spec_destroy(old_spec);

  lowbit_context_t *volatile old_context = context;
  lowbit_tensor_info_t tensor = LOWBIT_TENSOR_INFO_INIT;
  lowbit_plan_t *plan = NULL;
  spec = spec_without_threshold("adamw4");
  lowbit_context_destroy(context);
  tensor.name = "w";
  FAILS(lowbit_plan_create(old_context, spec, &tensor, 1, &plan), INVALID_ARGUMENT, words);
  lowbit_context_destroy(old_context);

  lowbit_spec_destroy(spec);
  model_destroy(&model);
  return check_end();
}
