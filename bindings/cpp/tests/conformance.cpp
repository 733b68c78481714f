// Prints the lines of tests/common/conformance.txt, made through lowbit.hpp.
//
//   conformance CASES [threads]
//
// CASES is tests/common/cases.txt.

#include "lowbit.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <utility>
#include <vector>

#include "../../../tests/common/conformance.h"
#include "../../../tests/common/sha256.h"

namespace {

std::vector<unsigned char> memory_of(std::size_t elements, std::int32_t dtype) {
  return std::vector<unsigned char>(elements * conformance_dtype_size(dtype));
}

void run_case(const lowbit::context& context, const conformance_case_t& line) {
  std::vector<lowbit::tensor> tensors;
  std::vector<std::vector<unsigned char>> params, grads;
  for (std::size_t i = 0; i < CONFORMANCE_TENSORS; ++i) {
    const conformance_tensor_t& t = conformance_tensors()[i];
    tensors.push_back({t.name,
                       {t.shape, t.shape + t.ndim},
                       static_cast<lowbit::dtype>(line.param_dtype),
                       static_cast<lowbit::dtype>(line.grad_dtype)});
    tensors.back().weights = static_cast<lowbit::weights>(line.weights);
    params.push_back(memory_of(conformance_numel(&t), line.param_dtype));
    grads.push_back(memory_of(conformance_numel(&t), line.grad_dtype));
    conformance_params(params[i].data(), line.param_dtype, i, conformance_numel(&t));
  }

  const auto spec = lowbit::spec::from_json(line.spec);
  auto stepper = lowbit::stepper::make(lowbit::plan::make(context, spec, tensors));
  std::vector<lowbit::buffer> param_buffers, grad_buffers;
  for (std::size_t i = 0; i < CONFORMANCE_TENSORS; ++i) {
    param_buffers.push_back(lowbit::buffer_of(params[i]));
    grad_buffers.push_back(lowbit::buffer_of(grads[i]));
  }
  stepper.bind(param_buffers, grad_buffers);

  lowbit::hyper hyper;
  hyper.lr = CONFORMANCE_LR;
  hyper.beta1 = CONFORMANCE_BETA1;
  hyper.beta2 = CONFORMANCE_BETA2;
  hyper.eps = CONFORMANCE_EPS;
  hyper.weight_decay = CONFORMANCE_WEIGHT_DECAY;
  for (int t = 1; t <= line.steps; ++t) {
    for (std::size_t i = 0; i < CONFORMANCE_TENSORS; ++i) {
      conformance_grads(grads[i].data(), line.grad_dtype,
                        conformance_grad_stream(static_cast<std::uint64_t>(t), i),
                        conformance_numel(&conformance_tensors()[i]));
    }
    stepper.step(hyper);
  }

  sha256_t hash;
  char hex[65];
  sha256_begin(&hash);
  for (const lowbit::buffers list : {lowbit::buffers(param_buffers), stepper.state()}) {
    for (const lowbit::buffer& b : list) {
      sha256_add(&hash, b.data, static_cast<std::size_t>(b.bytes));
    }
  }
  sha256_end(&hash, hex);
  std::printf("%s %s\n", line.name, hex);
}

}  // namespace

int main(int argc, char** argv) try {
  std::FILE* const cases = argc > 1 ? std::fopen(argv[1], "r") : nullptr;
  if (cases == nullptr) {
    std::fprintf(stderr, "usage: conformance CASES [threads]\n");
    return 2;
  }
  const auto context = lowbit::context::cpu({argc > 2 ? std::atoi(argv[2]) : 0});
  conformance_case_t line;
  while (conformance_next(cases, &line) != 0) {
    run_case(context, line);
  }
  std::fclose(cases);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "conformance: %s\n", e.what());
  return 1;
}
