// Prints the lines of tests/common/conformance.txt, made through lowbit.hpp.
//
//   conformance [threads]

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

std::vector<unsigned char> memory_of(std::size_t elements, bool is_bf16) {
  return std::vector<unsigned char>(elements * (is_bf16 ? 2 : 4));
}

void run_case(const lowbit::context& context, const char* preset,
              const conformance_dtype_t& dtype) {
  const bool param_is_bf16 = dtype.param_is_bf16 != 0, grad_is_bf16 = dtype.grad_is_bf16 != 0;
  std::vector<lowbit::tensor> tensors;
  std::vector<std::vector<unsigned char>> params, grads;
  for (std::size_t i = 0; i < CONFORMANCE_TENSORS; ++i) {
    const conformance_tensor_t& t = conformance_tensors()[i];
    tensors.push_back({t.name,
                       {t.shape, t.shape + t.ndim},
                       param_is_bf16 ? lowbit::dtype::bf16 : lowbit::dtype::f32,
                       grad_is_bf16 ? lowbit::dtype::bf16 : lowbit::dtype::f32});
    params.push_back(memory_of(conformance_numel(&t), param_is_bf16));
    grads.push_back(memory_of(conformance_numel(&t), grad_is_bf16));
    conformance_params(params[i].data(), param_is_bf16, i, conformance_numel(&t));
  }

  auto stepper =
      lowbit::stepper::make(lowbit::plan::make(context, lowbit::spec::preset(preset), tensors));
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
  for (std::uint64_t t = 1; t <= CONFORMANCE_STEPS; ++t) {
    for (std::size_t i = 0; i < CONFORMANCE_TENSORS; ++i) {
      conformance_grads(grads[i].data(), grad_is_bf16, conformance_grad_stream(t, i),
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
  std::printf("%s %s %s\n", preset, dtype.name, hex);
}

}  // namespace

int main(int argc, char** argv) try {
  const auto context = lowbit::context::cpu({argc > 1 ? std::atoi(argv[1]) : 0});
  for (int preset = 0; preset < CONFORMANCE_PRESETS; ++preset) {
    for (int dtype = 0; dtype < CONFORMANCE_DTYPES; ++dtype) {
      run_case(context, conformance_preset(preset), conformance_dtypes()[dtype]);
    }
  }
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "conformance: %s\n", e.what());
  return 1;
}
