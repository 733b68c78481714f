// Checks of the trainer: its gradients against those of ../cpp/gpt.hpp, graphs, gradient release,
// and checkpoints that go from the CPU to the GPU and back.
//
//   check [PART...]    gradients, wide, graph, release, checkpoint; none named: all
//
// `wide` is `gradients` at a size that fills blocks; the others are small enough for an emulated
// GPU.
//
// Prints PASS or FAIL with the numbers of each; exits with 1 if anything failed.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "lowbit.hpp"

#include "../cpp/gpt.hpp"
#include "../cpp/run.hpp"
#include "../cpp/text.hpp"
#include "trainer.cuh"

namespace {

namespace fs = std::filesystem;
using bytes = std::vector<std::uint8_t>;
using tensors = std::vector<gpt::tensor<float>>;

int failed = 0;

void expect(bool ok, const std::string& what) {
  failed += ok ? 0 : 1;
  std::printf("%s  %s\n", ok ? "PASS" : "FAIL", what.c_str());
  std::fflush(stdout);
}

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", x);
  return text;
}

// Sizes that fill neither a warp nor a block.
gpt::config small_config() {
  gpt::config c;
  c.vocab = 100, c.context = 20, c.layers = 2, c.heads = 3, c.width = 48;
  return c;
}

constexpr int batch_size = 3;

text::batch draw(const gpt::config& c, int step) {
  splitmix64 random(5);
  bytes data(4096);
  for (std::uint8_t& b : data) {
    // Half of them alike, so that there is something to learn.
    b = static_cast<std::uint8_t>(random.below(2) == 0 ? 7 : random.below(c.vocab));
  }
  return text::draw(data, batch_size, c.context, 1, static_cast<std::uint64_t>(step));
}

// At the initial weights some gradients are tiny; away from them every term of every formula
// counts.
template <class T>
tensors perturbed(const gpt::config& c) {
  gpt::model<float> model(c, 1);
  splitmix64 random(7);
  for (gpt::tensor<float>& t : model.tensors()) {
    for (float& v : t.value) {
      v = gpu::to_float(gpu::from_float<T>(v + static_cast<float>(0.1 * random.normal())));
    }
  }
  return model.tensors();
}

// ---- gradients ----

// Against the model on the CPU in double, from the same parameters: |difference| / |gradient| of
// each tensor is at most `tolerance`. In bf16 every activation is rounded to 8 bits.
template <class T>
void gradients(const char* name, const gpt::config& c, double tolerance) {
  const tensors start = perturbed<T>(c);
  gpt::model<double> oracle(c);
  for (std::size_t i = 0; i < start.size(); ++i) {
    oracle.tensors()[i].value.assign(start[i].value.begin(), start[i].value.end());
  }
  const text::batch batch = draw(c, 0);
  const double loss = oracle.forward_backward(batch.tokens, batch.targets, batch_size);

  gpu::settings s;
  s.batch = batch_size, s.captured = false;
  gpu::trainer<T> run(s, c, start);
  const double own_loss = run.evaluate(batch);
  expect(std::abs(own_loss - loss) < tolerance * loss,
         std::string(name) + " loss: " + number(own_loss) + ", on the CPU " + number(loss) +
             ", relative difference " + number(std::abs(own_loss - loss) / loss));
  const std::vector<gpt::array<float>> grads = run.gradients(batch);
  double worst = 0;
  std::string of;
  for (std::size_t i = 0; i < grads.size(); ++i) {
    const gpt::tensor<double>& t = oracle.tensors()[i];
    double difference = 0, size = 0;
    for (std::size_t j = 0; j < t.grad.size(); ++j) {
      const double off = static_cast<double>(grads[i][j]) - t.grad[j];
      difference += off * off;
      size += t.grad[j] * t.grad[j];
    }
    const double error = std::sqrt(difference / size);
    if (!(error <= tolerance)) {
      expect(false, std::string(name) + " gradient of " + t.name + ": error " + number(error));
    }
    if (!(error <= worst)) {
      worst = error;
      of = t.name;
    }
  }
  expect(worst <= tolerance, std::string(name) + " gradients of " + std::to_string(grads.size()) +
                                 " tensors: largest relative error " + number(worst) + " (" + of +
                                 "), at most " + number(tolerance));
}

// ---- graph, release ----

struct trained {
  bytes bits;
  std::vector<float> losses;
  gpu::memory_use memory;
};

template <class T>
trained train(gpu::settings s) {
  const gpt::config c = small_config();
  s.batch = batch_size, s.steps = 4;
  gpu::trainer<T> run(s, c, perturbed<T>(c));
  trained result;
  for (int i = 0; i < s.steps; ++i) {
    result.losses.push_back(run.step(draw(c, i)));
  }
  result.bits = run.bits();
  result.memory = run.memory_used();
  return result;
}

template <class T>
void same_bits(const std::string& name, const gpu::settings& one, const gpu::settings& other) {
  const trained a = train<T>(one), b = train<T>(other);
  std::size_t differ = a.bits.size() == b.bits.size() ? 0 : a.bits.size();
  for (std::size_t i = 0; i < std::min(a.bits.size(), b.bits.size()); ++i) {
    differ += a.bits[i] != b.bits[i];
  }
  expect(differ == 0 && a.losses == b.losses && a.losses.back() < a.losses.front(),
         name + ": " + std::to_string(differ) + " of " + std::to_string(a.bits.size()) +
             " bytes differ after 4 steps; loss " + number(a.losses.front()) + " to " +
             number(a.losses.back()) + "; gradients " + std::to_string(a.memory.grads) + " and " +
             std::to_string(b.memory.grads) + " bytes");
}

template <class T>
void captured_and_not(const char* name, const char* optimizer) {
  gpu::settings captured, direct;
  captured.optimizer = direct.optimizer = optimizer;
  direct.captured = false;
  same_bits<T>(std::string(name) + " " + optimizer + ", captured and not", captured, direct);
}

template <class T>
void kept_and_released(const char* name, const char* optimizer,
                       lowbit::weights weights = lowbit::weights::correction8) {
  gpu::settings kept, released;
  kept.optimizer = released.optimizer = optimizer;
  kept.weights = released.weights = weights;
  kept.clip = released.clip = 0;
  released.release = true;
  same_bits<T>(std::string(name) + " " + optimizer + ", gradients kept and released", kept,
               released);
}

void release_refuses_clip() {
  gpu::settings s;
  s.batch = batch_size, s.release = true;
  std::string text;
  try {
    gpu::trainer<float> run(s, small_config(), perturbed<float>(small_config()));
  } catch (const std::invalid_argument& e) {
    text = e.what();
  }
  expect(text.find("clip") != std::string::npos, "release with clipping is refused: " + text);
}

// ---- checkpoint ----

// The trainer of ../cpp/gpt.cpp without its command line.
class host_trainer {
 public:
  host_trainer(const gpu::settings& s, const gpt::config& c)
      : settings_(s), config_(c), model_(c, 2), stepper_(make(s.optimizer, model_)) {
    std::vector<lowbit::buffer> params, grads;
    for (auto& t : model_.tensors()) {
      params.push_back(lowbit::buffer_of(t.value));
      grads.push_back(lowbit::buffer_of(t.grad));
    }
    stepper_.bind(params, grads);
  }

  float step() {
    const int number = static_cast<int>(stepper_.steps());
    const text::batch batch = draw(config_, number);
    const float loss = model_.forward_backward(batch.tokens, batch.targets, batch_size);
    lowbit::hyper hyper;
    hyper.lr = gpt::learning_rate(settings_.lr, number + 1, settings_.steps);
    hyper.weight_decay = settings_.weight_decay;
    stepper_.step(hyper);
    return loss;
  }

  void save(const fs::path& folder) {
    gpt::save_params(folder, model_.tensors());
    stepper_.save(gpt::state_file(folder).string());
  }
  void load(const fs::path& folder) {
    gpt::load_params(folder, model_.tensors());
    stepper_.load(gpt::state_file(folder).string());
  }
  bytes bits() {
    bytes all;
    const auto append = [&](const lowbit::buffer& b) {
      const auto* data = static_cast<const std::uint8_t*>(b.data);
      all.insert(all.end(), data, data + b.bytes);
    };
    for (auto& t : model_.tensors()) {
      append(lowbit::buffer_of(t.value));
    }
    for (const lowbit::buffer& b : stepper_.state()) {
      append(b);
    }
    return all;
  }

 private:
  static lowbit::stepper make(const std::string& optimizer, gpt::model<float>& model) {
    std::vector<lowbit::tensor> list;
    for (const auto& t : model.tensors()) {
      list.push_back({t.name, t.shape});
    }
    return lowbit::stepper::make(
        lowbit::plan::make(lowbit::context::cpu(), lowbit::spec::preset(optimizer), list));
  }

  const gpu::settings settings_;
  const gpt::config config_;
  gpt::model<float> model_;
  lowbit::stepper stepper_;
};

// 4 steps on the CPU, 4 on the GPU, 4 on the CPU, beside 12 on the CPU.
void checkpoint(const char* optimizer, const fs::path& folder) {
  const gpt::config c = small_config();
  gpu::settings s;
  s.optimizer = optimizer;
  s.batch = batch_size, s.steps = 12, s.clip = 0;
  host_trainer reference(s, c), first(s, c), last(s, c);
  gpu::trainer<float> middle(s, c, gpt::model<float>(c).tensors());
  double worst = 0;
  std::vector<float> losses;
  const auto compare = [&](float loss) {
    losses.push_back(reference.step());
    worst = std::max(worst, static_cast<double>(std::abs(loss - losses.back())));
  };
  for (int i = 0; i < 4; ++i) {
    compare(first.step());
  }
  first.save(folder / "first");
  middle.load(folder / "first");
  expect(middle.steps() == 4 && middle.bits() == first.bits(),
         std::string(optimizer) + ": the GPU has the bits of the CPU's checkpoint");
  for (int i = 4; i < 8; ++i) {
    compare(middle.step(draw(c, i)));
  }
  middle.save(folder / "middle");
  last.load(folder / "middle");
  expect(middle.bits() == last.bits(),
         std::string(optimizer) + ": the CPU has the bits of the GPU's checkpoint");
  for (int i = 8; i < 12; ++i) {
    compare(last.step());
  }
  expect(worst < 1e-2 && losses.back() < losses.front() - 0.1f,
         std::string(optimizer) + ": CPU, GPU, CPU and the CPU alone: loss " +
             number(losses.front()) + " to " + number(losses.back()) +
             ", largest difference of a step " + number(worst) + ", at most 0.01");
}

// ---- all ----

void run(const std::string& part) {
  std::printf("-- %s\n", part.c_str());
  if (part == "gradients") {
    gradients<float>("f32", small_config(), 1e-4);
    gradients<__nv_bfloat16>("bf16", small_config(), 5e-2);
  } else if (part == "wide") {
    gpt::config c;
    c.layers = 2, c.context = 128, c.width = 256;
    gradients<float>("f32, wide", c, 1e-4);
    gradients<__nv_bfloat16>("bf16, wide", c, 5e-2);
  } else if (part == "graph") {
    captured_and_not<float>("f32", "adamw4-block");
    captured_and_not<__nv_bfloat16>("bf16", "adamw4");
  } else if (part == "release") {
    kept_and_released<float>("f32", "adamw4-block");
    kept_and_released<__nv_bfloat16>("bf16", "adamw4");
    kept_and_released<__nv_bfloat16>("bf16, stochastic", "adamw4", lowbit::weights::stochastic);
    release_refuses_clip();
  } else if (part == "checkpoint") {
    const fs::path folder =
        fs::temp_directory_path() / ("check." + std::to_string(std::random_device{}()));
    checkpoint("adamw4", folder);
    checkpoint("adamw4-block", folder);
    fs::remove_all(folder);
  } else {
    throw std::invalid_argument("there is no part " + part);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> parts(argv + 1, argv + argc);
  if (parts.empty()) {
    parts = {"gradients", "wide", "graph", "release", "checkpoint"};
  }
  try {
    for (const std::string& part : parts) {
      run(part);
    }
  } catch (const std::exception& e) {
    expect(false, e.what());
  }
  std::printf("%s\n", failed == 0 ? "all passed" : (std::to_string(failed) + " failed").c_str());
  return failed == 0 ? 0 : 1;
}
