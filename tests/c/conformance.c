/*
 * Prints the lines of tests/common/conformance.txt, made through the C ABI.
 *
 *   conformance CASES [threads]
 *
 * CASES is tests/common/cases.txt.
 */

#include "conformance.h"

#include "model.h"
#include "sha256.h"

static void run_case(const lowbit_context_t *context, const conformance_case_t *line) {
  lowbit_spec_t *spec = NULL;
  model_tensor_t tensors[CONFORMANCE_TENSORS];
  model_t model;
  for (int i = 0; i < CONFORMANCE_TENSORS; i++) {
    const conformance_tensor_t *tensor = &conformance_tensors()[i];
    tensors[i].name = tensor->name;
    tensors[i].ndim = tensor->ndim;
    memcpy(tensors[i].shape, tensor->shape, sizeof tensor->shape);
    tensors[i].param_dtype = line->param_dtype;
    tensors[i].grad_dtype = line->grad_dtype;
    tensors[i].weights = line->weights;
  }
  OK(lowbit_spec_create_json(line->spec, &spec));
  model_create(&model, context, spec, tensors, CONFORMANCE_TENSORS);

  lowbit_step_args_t args = model_args(&model);
  args.lr = CONFORMANCE_LR;
  args.beta1 = CONFORMANCE_BETA1;
  args.beta2 = CONFORMANCE_BETA2;
  args.eps = CONFORMANCE_EPS;
  args.weight_decay = CONFORMANCE_WEIGHT_DECAY;
  for (int t = 1; t <= line->steps; t++) {
    for (int i = 0; i < CONFORMANCE_TENSORS; i++) {
      conformance_grads(model.grads[i].data, line->grad_dtype,
                        conformance_grad_stream((uint64_t)t, (uint64_t)i),
                        model_numel(&tensors[i]));
    }
    args.step = t;
    OK(lowbit_step(model.plan, &args, NULL));
  }

  sha256_t hash;
  char hex[65];
  sha256_begin(&hash);
  for (int i = 0; i < CONFORMANCE_TENSORS; i++) {
    sha256_add(&hash, model.params[i].data, (size_t)model.params[i].bytes);
  }
  for (int64_t i = 0; i < model.info.buffer_count; i++) {
    sha256_add(&hash, model.state[i].data, (size_t)model.state[i].bytes);
  }
  sha256_end(&hash, hex);
  printf("%s %s\n", line->name, hex);

  model_destroy(&model);
  lowbit_spec_destroy(spec);
}

int main(int argc, char **argv) {
  FILE *cases = argc > 1 ? fopen(argv[1], "r") : NULL;
  if (cases == NULL) {
    printf("usage: conformance CASES [threads]\n");
    return 2;
  }
  const int64_t threads = argc > 2 ? atoi(argv[2]) : 0;
  lowbit_context_t *context = cpu_context(threads, LOWBIT_CPU_VARIANT_AUTO);
  conformance_case_t line;
  while (conformance_next(cases, &line)) run_case(context, &line);
  lowbit_context_destroy(context);
  fclose(cases);
  return check_failed == 0 ? 0 : 1;
}
