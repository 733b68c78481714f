/* The README's example: three steps of 4-bit AdamW on one matrix, and a checkpoint.
 *
 *   cc -std=c99 -Iinclude examples/c/adamw.c -Ltarget/release -llowbit -Wl,-rpath,$PWD/target/release
 */

/* [readme] */
#include <lowbit.h>
#include <stdio.h>

static float p[300 * 257], g[300 * 257];
static int check(lowbit_status_t status) {
  char text[1025] = "";
  if (status != LOWBIT_STATUS_OK) {
    lowbit_last_error(text, sizeof text, NULL);
    fprintf(stderr, "%s: %s\n", lowbit_status_name(status), text);
  }
  return status == LOWBIT_STATUS_OK;
}

int main(void) {
  const int64_t shape[] = {300, 257};
  lowbit_tensor_info_t tensor = LOWBIT_TENSOR_INFO_INIT;
  lowbit_plan_info_t sizes = LOWBIT_PLAN_INFO_INIT;
  lowbit_context_t* context = NULL;
  lowbit_spec_t* spec = NULL;
  lowbit_plan_t* plan = NULL;
  lowbit_state_t* state = NULL;
  static int64_t scratch[(1 + 300 + 257) / 2];
  lowbit_buffer_t params = {p, sizeof p}, grads = {g, sizeof g}, buffers[5];
  lowbit_step_args_t args = LOWBIT_STEP_ARGS_INIT;
  tensor.name = "w", tensor.shape = shape, tensor.ndim = 2;
  int ok = check(lowbit_context_create_cpu(NULL, &context)) &&
           check(lowbit_spec_create_preset("adamw4", &spec)) &&
           check(lowbit_plan_create(context, spec, &tensor, 1, &plan)) &&
           check(lowbit_plan_info(plan, &sizes)) && check(lowbit_state_create(plan, NULL, &state)) &&
           check(lowbit_state_buffers(state, buffers, sizes.buffer_count));
  args.tensor_count = 1, args.params = &params, args.grads = &grads;
  args.buffer_count = sizes.buffer_count, args.state = buffers;
  args.scratch.data = scratch, args.scratch.bytes = sizeof scratch;
  for (args.step = 1; ok && args.step <= 3; args.step++) {
    for (int i = 0; i < 300 * 257; i++) g[i] = p[i] - 1; /* the gradient of (p - 1)^2 / 2 */
    ok = check(lowbit_step(plan, &args, NULL));
  }
  ok = ok && check(lowbit_checkpoint_save(plan, buffers, sizes.buffer_count, 3, "w.safetensors", NULL));
  if (ok) printf("p = %.6f after 3 steps, %lld bytes of state\n", p[0], (long long)sizes.state_bytes);
  lowbit_state_destroy(state, NULL);
  lowbit_plan_destroy(plan);
  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
  return ok ? 0 : 1;
}
/* [/readme] */
