// Trains a byte-level model in libtorch with torch::optim::AdamW, then with lowbit in its place: states
// in f32, which must give the same losses, and in 4 bits.
//
//   cargo build --release -p lowbit
//   TORCH=.../site-packages/torch          (a pip wheel's folder, or libtorch's)
//   g++ -std=c++20 -O2 -Iinclude -Ibindings/cpp -isystem $TORCH/include
//       -isystem $TORCH/include/torch/csrc/api/include examples/cpp/torch.cpp -o torch
//       -Ltarget/release -llowbit -L$TORCH/lib -ltorch -ltorch_cpu -lc10 -pthread
//       -Wl,-rpath,$PWD/target/release -Wl,-rpath,$TORCH/lib                     (in one line)
//   ./torch --steps 300
//
// Torch's tensors are stepped where they are: `adamw` below is all that a libtorch trainer needs. On a
// GPU, plan with context::cuda, give scratch of device memory, and step on at::cuda's current stream.

#include <torch/torch.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "lowbit.hpp"

#include "text.hpp"

namespace {

// AdamW over a module's parameters.
class adamw {
 public:
  adamw(const torch::nn::Module& module, const std::string& preset)
      : params_(module.parameters()), stepper_(make(module, preset)) {}

  void step(const lowbit::hyper& hyper) {
    // Where gradients are may change from step to step.
    std::vector<lowbit::buffer> params, grads;
    for (const at::Tensor& p : params_) {
      TORCH_CHECK(p.grad().defined() && p.grad().is_contiguous(), "a gradient is missing");
      params.push_back(buffer_of(p));
      grads.push_back(buffer_of(p.grad()));
    }
    stepper_.bind(std::move(params), std::move(grads));
    stepper_.step(hyper);
  }

  std::int64_t state_bytes() const { return stepper_.plan().state_bytes(); }
  void save(const std::string& path) const { stepper_.save(path); }
  void load(const std::string& path) { stepper_.load(path); }

 private:
  static lowbit::stepper make(const torch::nn::Module& module, const std::string& preset) {
    std::vector<lowbit::tensor> tensors;
    for (const auto& named : module.named_parameters()) {
      const at::Tensor& p = named.value();
      TORCH_CHECK(p.is_contiguous() && p.device().is_cpu(), named.key(), " is not plain memory");
      tensors.push_back({named.key(), p.sizes().vec(), dtype_of(p)});
    }
    return lowbit::stepper::make(lowbit::plan::make(lowbit::context::cpu(),
                                                    lowbit::spec::preset(preset), tensors));
  }

  static lowbit::dtype dtype_of(const at::Tensor& p) {
    switch (p.scalar_type()) {
      case at::kFloat: return lowbit::dtype::f32;
      case at::kBFloat16: return lowbit::dtype::bf16;
      case at::kHalf: return lowbit::dtype::f16;
      default: TORCH_CHECK(false, "parameters are f32, bf16 or f16, not ", p.scalar_type());
    }
  }

  static lowbit::buffer buffer_of(const at::Tensor& t) {
    return {t.data_ptr(), static_cast<std::int64_t>(t.nbytes())};
  }

  std::vector<at::Tensor> params_;
  lowbit::stepper stepper_;
};

constexpr std::int64_t context = 16, width = 32, hidden = 512, batch = 64;

// The next byte from the 16 before it.
struct model : torch::nn::Module {
  torch::nn::Embedding bytes{nullptr};
  torch::nn::Linear up{nullptr}, down{nullptr};

  model() {
    bytes = register_module("bytes", torch::nn::Embedding(256, width));
    up = register_module("up", torch::nn::Linear(context * width, hidden));
    down = register_module("down", torch::nn::Linear(hidden, 256));
  }

  at::Tensor forward(const at::Tensor& tokens) {
    return down(torch::gelu(up(bytes(tokens).flatten(1))));
  }
};

at::Tensor loss_of(model& m, const std::vector<std::uint8_t>& text, std::uint64_t seed,
                   std::uint64_t step) {
  text::batch drawn = text::draw(text, batch, context, seed, step);
  const auto as_tensor = [](std::vector<std::uint8_t>& bytes) {
    const auto all = torch::from_blob(bytes.data(), {batch, context}, torch::kUInt8);
    return all.to(torch::kLong);
  };
  return torch::nn::functional::cross_entropy(m.forward(as_tensor(drawn.tokens)),
                                              as_tensor(drawn.targets).select(1, context - 1));
}

struct result {
  double loss;
  std::int64_t parameters, state_bytes;
};

// Under torch's AdamW if `preset` is empty.
result train(const text::corpus& corpus, const std::string& preset, int steps) {
  torch::manual_seed(1);
  model m;
  constexpr double lr = 2e-3, decay = 0.01;
  torch::optim::AdamW theirs(m.parameters(), torch::optim::AdamWOptions(lr).weight_decay(decay));
  adamw ours(m, preset.empty() ? "adamw32" : preset);
  lowbit::hyper hyper;
  hyper.lr = static_cast<float>(lr);
  hyper.weight_decay = static_cast<float>(decay);
  for (int step = 0; step < steps; step++) {
    m.zero_grad();
    loss_of(m, corpus.train, 2, static_cast<std::uint64_t>(step)).backward();
    if (preset.empty()) {
      theirs.step();
    } else {
      ours.step(hyper);
    }
  }
  torch::NoGradGuard guard;
  result r{0, 0, preset.empty() ? 0 : ours.state_bytes()};
  constexpr int windows = 50;
  for (std::uint64_t i = 0; i < windows; i++) {
    r.loss += loss_of(m, corpus.validation, 3, i).item<double>() / windows;
  }
  for (const at::Tensor& p : m.parameters()) {
    r.parameters += p.numel();
  }
  for (const auto& entry : theirs.state()) {
    const auto& state = static_cast<const torch::optim::AdamWParamState&>(*entry.second);
    const at::Tensor m1 = state.exp_avg(), m2 = state.exp_avg_sq();
    r.state_bytes += static_cast<std::int64_t>(m1.nbytes() + m2.nbytes());
  }
  return r;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string flag = argc > 1 ? argv[1] : "--steps";
    if (flag != "--steps" || argc > 3) {
      throw std::invalid_argument("the only option is --steps N");
    }
    const int steps = argc > 2 ? std::stoi(argv[2]) : 300;
    const text::corpus corpus = text::load(text::python_stdlib());
    std::printf("| optimizer | validation loss | state bytes | B/param |\n|---|---:|---:|---:|\n");
    double losses[3] = {}, *loss = losses;
    for (const char* preset : {"", "adamw32", "adamw4"}) {
      const result r = train(corpus, preset, steps);
      std::printf("| %s | %.4f | %lld | %.3f |\n", *preset == 0 ? "torch::optim::AdamW" : preset,
                  r.loss, static_cast<long long>(r.state_bytes),
                  static_cast<double>(r.state_bytes) / static_cast<double>(r.parameters));
      *loss++ = r.loss;
    }
    // Untrained, the loss is log 256 = 5.5.
    const bool good = losses[0] < 4 && std::abs(losses[1] - losses[0]) < 0.005 * losses[0] &&
                      losses[2] < 1.03 * losses[0];
    std::printf("%s\n", good ? "in f32 as torch's, in 4 bits within 3 %" : "NOT as torch's");
    return good ? 0 : 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "torch: %s\n", e.what());
    return 2;
  }
}
