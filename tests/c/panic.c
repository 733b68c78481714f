/*
 * A panic inside the library (test hook) becomes a status: nothing is printed, the process lives,
 * the plan refuses everything but destroy, and everything else goes on.
 */

#include <pthread.h>
#include <stdint.h>
#include <unistd.h>

#include "model.h"

lowbit_status_t lowbit_test_panic(const lowbit_plan_t *plan);

static const model_tensor_t tensors[1] = {
    {"w", 2, {5, 7, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN}};

/* Calls the hook with stdout and stderr in a file, and tells how many bytes came. */
static lowbit_status_t panic_quietly(const lowbit_plan_t *plan, long *printed) {
  FILE *file = tmpfile();
  REQUIRE(file != NULL);
  fflush(stdout);
  const int saved_stdout = dup(1);
  const int saved_stderr = dup(2);
  REQUIRE(dup2(fileno(file), 1) == 1 && dup2(fileno(file), 2) == 2);
  const lowbit_status_t status = lowbit_test_panic(plan);
  fflush(stdout);
  fflush(stderr);
  dup2(saved_stdout, 1);
  dup2(saved_stderr, 2);
  close(saved_stdout);
  close(saved_stderr);
  *printed = lseek(fileno(file), 0, SEEK_END);
  fclose(file);
  return status;
}

static void *texts_of_another_thread(void *argument) {
  const lowbit_plan_t *plan = argument;
  char text[1025];
  size_t needed = 0;
  /* A thread that saw no error has an empty text. */
  CHECK(lowbit_last_error(text, sizeof text, &needed) == LOWBIT_STATUS_OK && needed == 1);
  /* Poison is the handle's, not the thread's. */
  lowbit_plan_info_t info = LOWBIT_PLAN_INFO_INIT;
  CHECK(lowbit_plan_info(plan, &info) == LOWBIT_STATUS_INTERNAL);
  CHECK(lowbit_last_error(text, sizeof text, &needed) == LOWBIT_STATUS_OK);
  CHECK(strstr(text, "plan was poisoned") != NULL);
  return NULL;
}

int main(void) {
  lowbit_context_t *context = cpu_context(2, LOWBIT_CPU_VARIANT_AUTO);
  lowbit_spec_t *spec = spec_without_threshold("adamw4");
  model_t model;
  model_create(&model, context, spec, tensors, 1);
  lowbit_state_t *state = NULL;
  OK(lowbit_state_create(model.plan, NULL, &state));
  lowbit_step_args_t args = model_args(&model);
  OK(lowbit_step(model.plan, &args, NULL));

  long printed = -1;
  const lowbit_status_t status = panic_quietly(model.plan, &printed);
  check_fails(status, LOWBIT_STATUS_INTERNAL, "panic was caught|a planned panic|test_hooks.rs",
              "lowbit_test_panic", __FILE__, __LINE__);
  CHECK(printed == 0);

  /* The plan is in doubt: every call on it is refused, and nothing is written. */
  const char *const words = "plan was poisoned|destroy it";
  const lowbit_plan_t *plan = model.plan;
  const int64_t count = model.info.buffer_count;
  lowbit_plan_info_t info = LOWBIT_PLAN_INFO_INIT;
  lowbit_tensor_report_t report = LOWBIT_TENSOR_REPORT_INIT;
  lowbit_buffer_info_t buffer = LOWBIT_BUFFER_INFO_INIT;
  lowbit_stage_info_t stage = LOWBIT_STAGE_INFO_INIT;
  lowbit_state_t *none = state;
  char text[2000];
  size_t needed = 0;
  model_remember(&model);
  FAILS(lowbit_step(plan, &args, NULL), INTERNAL, words);
  FAILS(lowbit_step_stats(plan, &args, 0, NULL), INTERNAL, words);
  FAILS(lowbit_step_apply(plan, &args, NULL), INTERNAL, words);
  FAILS(lowbit_compress(plan, "m", model.values, 1, model.state, count, NULL), INTERNAL, words);
  FAILS(lowbit_decompress(plan, "m", model.state, count, model.values, 1, NULL), INTERNAL, words);
  FAILS(lowbit_plan_info(plan, &info), INTERNAL, words);
  FAILS(lowbit_plan_tensor(plan, 0, &report), INTERNAL, words);
  FAILS(lowbit_plan_buffer(plan, 0, &buffer), INTERNAL, words);
  FAILS(lowbit_plan_stage(plan, 0, &stage), INTERNAL, words);
  FAILS(lowbit_plan_report(plan, text, sizeof text, &needed), INTERNAL, words);
  FAILS(lowbit_state_create(plan, NULL, &none), INTERNAL, words);
  CHECK(none == NULL);
  FAILS(lowbit_checkpoint_save(plan, model.state, count, 1, "/nowhere/x", NULL), INTERNAL, words);
  FAILS(lowbit_checkpoint_load(plan, "/nowhere/x", model.state, count, NULL, NULL), INTERNAL,
        words);
  FAILS(lowbit_checkpoint_serialize(plan, model.state, count, 1, NULL, text, sizeof text, &needed),
        INTERNAL, words);
  FAILS(lowbit_checkpoint_deserialize(plan, text, sizeof text, model.state, count, NULL, NULL),
        INTERNAL, words);
  FAILS(lowbit_test_panic(plan), INTERNAL, words);
  CHECK(model_is_as_remembered(&model) && needed == 0);

  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, texts_of_another_thread, model.plan) == 0);
  pthread_join(thread, NULL);

  /* What it was made from, and what was made from it, are sound. */
  lowbit_buffer_t buffers[MODEL_BUFFERS];
  OK(lowbit_state_buffers(state, buffers, count));
  lowbit_state_destroy(state, NULL);
  model_destroy(&model);
  model_create(&model, context, spec, tensors, 1);
  args = model_args(&model);
  OK(lowbit_step(model.plan, &args, NULL));
  FAILS(lowbit_test_panic(NULL), NULL_POINTER, "plan is null");
  OK(lowbit_step(model.plan, &args, NULL));

  model_destroy(&model);
  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
  return check_end();
}
