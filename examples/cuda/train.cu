// Trains the model of ../cpp/gpt.cpp on a GPU, with several optimizers or one.
//
//   examples/cuda/build.sh BUILD_FOLDER LIBRARY_FOLDER    (README.md)
//   BUILD_FOLDER/train --help
//
// Where to read next: trainer.cuh.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../cpp/gpt.hpp"
#include "../cpp/options.hpp"
#include "../cpp/text.hpp"
#include "trainer.cuh"

namespace {

const char* const help =
    R"(Trains a byte-level GPT on a GPU with several optimizers.

  --text PATH        file or folder to train on (default: the Python standard library)
  --optimizers LIST  the library's presets, with commas between (adamw32,adamw4,adamw4-block)
  --dtype NAME       of parameters, gradients and activations: bf16 or f32 (bf16)
  --weights NAME     what is kept beside bf16 parameters: correction8, stochastic, remainder16,
                     master, plain (correction8)
  --graph 0|1        steps are captured in a CUDA graph and replayed (1)
  --release 0|1      step tensors as soon as the backward pass has their gradients, and reuse the
                     gradients' memory; needs --clip 0 (0)
  --json FILE        where the results go as well

  --steps N          training steps (300)
  --batch N          sequences in a step (8)
  --context N        bytes of each (64)
  --layers N         (4)
  --heads N          (4)
  --width N          (128)
  --lr X             highest learning rate (0.002)
  --weight-decay X   decoupled weight decay (0.1)
  --clip X           largest global norm of the gradients; 0: any (1)
  --seed N           of the initial weights and the batches (1)

One run, stopped and resumed, here or by ../cpp/gpt.cpp (with --dtype f32):
  --out FOLDER       where the first optimizer's run leaves a checkpoint
  --stop-at N        end it after step N
  --resume FOLDER    go on from such a checkpoint up to --steps
)";

struct arguments {
  std::string text, dtype = "bf16", json, out, resume;
  std::vector<std::string> optimizers{"adamw32", "adamw4", "adamw4-block"};
  gpt::config config;
  gpu::settings settings;
  int stop_at = 0;
};

const std::map<std::string, lowbit::weights> weights{{"plain", lowbit::weights::plain},
                                                     {"stochastic", lowbit::weights::stochastic},
                                                     {"master", lowbit::weights::master},
                                                     {"remainder16", lowbit::weights::remainder16},
                                                     {"correction8", lowbit::weights::correction8}};

arguments parse(int argc, char** argv) {
  using options::into;
  arguments o;
  options::read(argc, argv, help, {
      {"--text", into(o.text)},
      {"--optimizers", into(o.optimizers)},
      {"--dtype", into(o.dtype)},
      {"--weights", [&](const std::string& s) { o.settings.weights = weights.at(s); }},
      {"--graph", into(o.settings.captured)},
      {"--release", into(o.settings.release)},
      {"--json", into(o.json)},
      {"--steps", into(o.settings.steps)},
      {"--batch", into(o.settings.batch)},
      {"--context", into(o.config.context)},
      {"--layers", into(o.config.layers)},
      {"--heads", into(o.config.heads)},
      {"--width", into(o.config.width)},
      {"--lr", into(o.settings.lr)},
      {"--weight-decay", into(o.settings.weight_decay)},
      {"--clip", into(o.settings.clip)},
      {"--seed", [&](const std::string& s) { o.config.seed = std::stoull(s); }},
      {"--out", into(o.out)},
      {"--stop-at", into(o.stop_at)},
      {"--resume", into(o.resume)}});
  if (o.settings.steps < 2 || o.settings.batch < 1 || o.stop_at < 0 ||
      o.stop_at > o.settings.steps || (o.dtype != "bf16" && o.dtype != "f32")) {
    throw std::invalid_argument(
        "--steps >= 2, --batch >= 1, --stop-at <= --steps, --dtype bf16 or f32");
  }
  return o;
}

double now_ms() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(time).count();
}

// Device memory that all processes use.
gpu::int64_t device_used() {
  std::size_t free = 0, total = 0;
  gpu::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<gpu::int64_t>(total - free);
}

struct row {
  std::string optimizer;
  double loss = 0, step_ms = 0;
  gpu::memory_use memory;
  gpu::int64_t device = 0;  // what cudaMemGetInfo says of the same
};

// Trains with one optimizer from the initial values, or goes on from a checkpoint.
template <class T>
row train(const arguments& o, const std::string& optimizer, const text::corpus& corpus,
          const std::vector<gpt::tensor<float>>& initial) {
  gpu::settings settings = o.settings;
  settings.optimizer = optimizer;
  row result;
  result.optimizer = optimizer;
  const gpu::int64_t before = device_used();
  gpu::trainer<T> run(settings, o.config, initial);
  result.memory = run.memory_used();
  result.device = device_used() - before;
  if (!o.resume.empty()) {
    run.load(o.resume);
    std::printf("%s resumes after step %d\n", optimizer.c_str(), run.steps());
  }
  const auto validate = [&](int batches) {
    double total = 0;
    for (int i = 0; i < batches; ++i) {
      total += run.evaluate(text::draw(corpus.validation, settings.batch, o.config.context,
                                       ~o.config.seed, static_cast<std::uint64_t>(i)));
    }
    return total / batches;
  };
  const int last = o.stop_at > 0 ? o.stop_at : settings.steps;
  const int interval = std::max(1, settings.steps / 10);
  double loss = 0;
  int timed = 0;
  for (int since = 0; run.steps() < last;) {
    const text::batch batch = text::draw(corpus.train, settings.batch, o.config.context,
                                         o.config.seed, static_cast<std::uint64_t>(run.steps()));
    const double start = now_ms();
    loss += run.step(batch);
    result.step_ms += now_ms() - start;
    ++since;
    ++timed;
    if (run.steps() % interval == 0 || run.steps() == last) {
      std::printf("%-13s step %4d/%d  training loss %.4f  validation loss %.4f  %.2f ms/step\n",
                  optimizer.c_str(), run.steps(), settings.steps, loss / since, validate(4),
                  result.step_ms / timed);
      std::fflush(stdout);
      loss = since = 0;
    }
  }
  result.step_ms /= std::max(1, timed);
  result.loss = validate(16);
  if (!o.out.empty()) {
    run.save(o.out);
  }
  return result;
}

// For people, and for programs.
void write_table(const arguments& o, const std::vector<row>& rows, gpu::int64_t elements) {
  std::printf(
      "\n%lld parameters in %s; %s, %s; memory in MB\n\n"
      "| optimizer    | validation loss | ms/step | parameters | gradients | states | activations |"
      " other |  total | of the device |\n"
      "|--------------|----------------:|--------:|-----------:|----------:|-------:|------------:|"
      "------:|-------:|--------------:|\n",
      static_cast<long long>(elements), o.dtype.c_str(),
      o.settings.captured ? "a graph" : "no graph",
      o.settings.release ? "gradients released" : "gradients kept");
  std::string json;
  for (const row& r : rows) {
    const auto mb = [](gpu::int64_t bytes) { return static_cast<double>(bytes) / 1e6; };
    const gpu::memory_use& m = r.memory;
    std::printf(
        "| %-12s | %15.4f | %7.2f | %10.1f | %9.1f | %6.1f | %11.1f | %5.1f | %6.1f | %13.1f |\n",
        r.optimizer.c_str(), r.loss, r.step_ms, mb(m.params), mb(m.grads), mb(m.states),
        mb(m.activations), mb(m.other), mb(m.total()), mb(r.device));
    char line[512];
    std::snprintf(line, sizeof line,
                  "%s\n    {\"optimizer\": \"%s\", \"validation_loss\": %.6f, \"step_ms\": %.4f, "
                  "\"params_bytes\": %lld, \"grads_bytes\": %lld, \"state_bytes\": %lld, "
                  "\"activation_bytes\": %lld, \"other_bytes\": %lld, \"peak_bytes\": %lld, "
                  "\"device_bytes\": %lld}",
                  json.empty() ? "" : ",", r.optimizer.c_str(), r.loss, r.step_ms,
                  static_cast<long long>(m.params), static_cast<long long>(m.grads),
                  static_cast<long long>(m.states), static_cast<long long>(m.activations),
                  static_cast<long long>(m.other), static_cast<long long>(m.total()),
                  static_cast<long long>(r.device));
    json += line;
  }
  if (o.json.empty()) {
    return;
  }
  FILE* file = std::fopen(o.json.c_str(), "wb");
  if (file == nullptr) {
    throw std::runtime_error("cannot write " + o.json);
  }
  const gpu::settings& s = o.settings;
  std::fprintf(file,
               "{\n  \"parameters\": %lld,\n  \"dtype\": \"%s\",\n  \"layers\": %d,\n"
               "  \"width\": %d,\n  \"heads\": %d,\n  \"context\": %d,\n  \"batch\": %d,\n"
               "  \"steps\": %d,\n  \"graph\": %s,\n  \"release\": %s,\n  \"clip\": %g,\n"
               "  \"runs\": [%s\n  ]\n}\n",
               static_cast<long long>(elements), o.dtype.c_str(), o.config.layers, o.config.width,
               o.config.heads, o.config.context, s.batch, s.steps, s.captured ? "true" : "false",
               s.release ? "true" : "false", static_cast<double>(s.clip), json.c_str());
  const bool written = std::ferror(file) == 0;
  if (std::fclose(file) != 0 || !written) {
    throw std::runtime_error("cannot write " + o.json);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  arguments o = parse(argc, argv);
  cudaDeviceProp device = {};
  gpu::check(cudaGetDeviceProperties(&device, 0), "no GPU");
  std::printf("lowbit %s on %s\n", lowbit::version(), device.name);
  if (o.text.empty()) {
    o.text = text::python_stdlib();
  }
  const text::corpus corpus = text::load(o.text);
  gpt::model<float> model(o.config);
  const std::vector<gpt::tensor<float>>& initial = model.tensors();
  if (!o.out.empty() || !o.resume.empty() || o.stop_at > 0) {
    o.optimizers.resize(1);
  }
  std::vector<row> rows;
  for (const std::string& optimizer : o.optimizers) {
    rows.push_back(o.dtype == "f32" ? train<float>(o, optimizer, corpus, initial)
                                    : train<__nv_bfloat16>(o, optimizer, corpus, initial));
  }
  gpu::int64_t elements = 0;
  for (const gpt::tensor<float>& t : initial) {
    elements += static_cast<gpu::int64_t>(t.value.size());
  }
  write_table(o, rows, elements);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "train: %s\n", e.what());
  return 1;
}
