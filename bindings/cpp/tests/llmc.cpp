// A trainer in the style of llm.c, whose update is the one that bindings/cpp/README.md shows, against the
// loop that it replaces.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "lowbit.hpp"

#include "check.hpp"

namespace {

constexpr int NUM_PARAMETER_TENSORS = 4;
const char* const names[] = {"wte", "qkvw", "qkvb", "lnfw"};
const std::vector<std::int64_t> shapes[] = {{300, 64}, {2, 192, 64}, {2, 192}, {64}};

// Parameters in one block of memory, gradients in another, tensor after tensor.
struct GPT2 {
  float *params_memory, *grads_memory;
  std::size_t param_sizes[NUM_PARAMETER_TENSORS];
  const char* preset;
  std::optional<lowbit::stepper> optimizer;  // in the place of m_memory and v_memory
};

// [page]
void gpt2_update(GPT2* model, float lr, float beta1, float beta2, float eps, float weight_decay) {
  if (!model->optimizer) {  // where m_memory and v_memory were allocated
    std::vector<lowbit::tensor> tensors;
    std::vector<lowbit::buffer> params, grads;
    std::size_t at = 0;
    for (int i = 0; i < NUM_PARAMETER_TENSORS; at += model->param_sizes[i++]) {
      tensors.push_back({names[i], shapes[i]});
      params.push_back(lowbit::buffer_of(model->params_memory + at, model->param_sizes[i]));
      grads.push_back(lowbit::buffer_of(model->grads_memory + at, model->param_sizes[i]));
    }
    auto plan = lowbit::plan::make(lowbit::context::cpu(), lowbit::spec::preset(model->preset),
                                   tensors);
    model->optimizer.emplace(lowbit::stepper::make(std::move(plan)));
    model->optimizer->bind(params, grads);
  }
  // Where the loop over m and v was. The stepper counts the steps.
  model->optimizer->step({lr, beta1, beta2, eps, weight_decay});
}
// [/page]

// What it replaces.
void update_by_loop(std::vector<float>& p, const std::vector<float>& g, std::vector<float>& m,
                    std::vector<float>& v, float lr, float beta1, float beta2, float eps,
                    float weight_decay, int t) {
  for (std::size_t i = 0; i < p.size(); i++) {
    m[i] = beta1 * m[i] + (1 - beta1) * g[i];
    v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
    const float m_hat = m[i] / (1 - std::pow(beta1, static_cast<float>(t)));
    const float v_hat = v[i] / (1 - std::pow(beta2, static_cast<float>(t)));
    p[i] -= lr * (m_hat / (std::sqrt(v_hat) + eps) + weight_decay * p[i]);
  }
}

// The largest difference of a parameter after 20 steps down a quadratic, under both; and the bytes of
// state.
std::pair<float, std::int64_t> difference(const char* preset) {
  GPT2 model{};
  std::size_t count = 0;
  for (int i = 0; i < NUM_PARAMETER_TENSORS; i++) {
    model.param_sizes[i] = 1;
    for (const std::int64_t extent : shapes[i]) {
      model.param_sizes[i] *= static_cast<std::size_t>(extent);
    }
    count += model.param_sizes[i];
  }
  std::vector<float> params(count), grads(count), target(count), m(count), v(count), slopes(count);
  for (std::size_t i = 0; i < count; i++) {
    params[i] = std::sin(static_cast<float>(i));
    target[i] = std::cos(3 * static_cast<float>(i));
  }
  std::vector<float> looped = params;
  model.params_memory = params.data();
  model.grads_memory = grads.data();
  model.preset = preset;
  for (int t = 1; t <= 20; t++) {
    for (std::size_t i = 0; i < count; i++) {
      grads[i] = params[i] - target[i];
      slopes[i] = looped[i] - target[i];
    }
    gpt2_update(&model, 1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f);
    update_by_loop(looped, slopes, m, v, 1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f, t);
  }
  float largest = 0;
  for (std::size_t i = 0; i < count; i++) {
    largest = std::max(largest, std::abs(params[i] - looped[i]));
  }
  CHECK(model.optimizer->steps() == 20);
  return {largest, model.optimizer->plan().state_bytes()};
}

}  // namespace

int main() {
  const auto [exact, bytes] = difference("adamw32");
  CHECK(exact < 1e-5f);
  const auto [rough, fewer] = difference("adamw4");
  CHECK(rough > 1e-5f && rough < 0.2f);  // 0.2: as far as 20 steps go
  CHECK(fewer < bytes / 6);
  return check::end();
}
