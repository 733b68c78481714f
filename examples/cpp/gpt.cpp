// Trains a byte-level GPT on real text three times, with full-precision and with 4-bit optimizer
// state, and compares them. One of the runs is also stopped, and resumed by another process.
//
//   cargo build --release -p lowbit
//   g++ -std=c++17 -O3 -Iinclude -Ibindings/cpp examples/cpp/gpt.cpp -o gpt
//       -Ltarget/release -llowbit -pthread -Wl,-rpath,$PWD/target/release        (in one line)
//   ./gpt --help
//
// `trainer` is what any trainer that uses the library looks like; the rest is the comparison.
// Where to read next: bindings/cpp/lowbit.hpp, the library; gpt.hpp, the model;
// ../cuda, the same on a GPU.

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "lowbit.hpp"

#include "../../tests/common/sha256.h"
#include "gpt.hpp"
#include "options.hpp"
#include "plot.hpp"
#include "run.hpp"
#include "text.hpp"

namespace {

namespace fs = std::filesystem;
using bytes = std::vector<unsigned char>;

const char* const help =
    R"(Trains a byte-level GPT with several optimizers and compares them.

  --text PATH        file or folder to train on (default: the Python standard library)
  --out FOLDER       where the table, the plot and the checkpoints go (gpt-out)
  --optimizers LIST  names with commas between (adamw32,adamw4,adamw4-robust,adamw4-block)
  --steps N          training steps (300)
  --batch N          sequences in a step, of 128 bytes each (8)
  --lr X             highest learning rate (0.002)
  --weight-decay X   decoupled weight decay (0.1)
  --clip X           largest global norm of the gradients; 0: any (1)
  --seed N           of the initial weights and the batches (1)
  --threads N        all that there are
  --handover FOLDER  leave there what other languages go on from (tests/common/README.md)

One run, stopped and resumed:
  --stop-at N        end the first optimizer's run after step N, with a checkpoint in --out
  --resume FOLDER    go on from such a checkpoint up to --steps; the last one goes to --out

Exits with 1 if the resumed run differs in any bit from the uninterrupted one, or if the final
validation loss of adamw4 is more than 2 % above that of adamw32.
)";

struct arguments {
  std::string text, out = "gpt-out", handover, resume;
  std::vector<std::string> optimizers{"adamw32", "adamw4", "adamw4-robust", "adamw4-block"};
  int steps = 300, batch = 8, stop_at = 0;
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  float lr = 2e-3f, weight_decay = 0.1f, clip = 1;
  std::uint64_t seed = 1;
};

std::string formatted(double x, const char* format) {
  char text[64];
  std::snprintf(text, sizeof text, format, x);
  return text;
}

arguments parse(int argc, char** argv) {
  using options::into;
  arguments o;
  options::read(argc, argv, help, {
      {"--text", into(o.text)},
      {"--out", into(o.out)},
      {"--optimizers", into(o.optimizers)},
      {"--steps", into(o.steps)},
      {"--batch", into(o.batch)},
      {"--lr", into(o.lr)},
      {"--weight-decay", into(o.weight_decay)},
      {"--clip", into(o.clip)},
      {"--seed", [&](const std::string& s) { o.seed = std::stoull(s); }},
      {"--threads", into(o.threads)},
      {"--handover", into(o.handover)},
      {"--stop-at", into(o.stop_at)},
      {"--resume", into(o.resume)}});
  if (o.steps < 2 || o.batch < 1 || o.threads < 1 || o.stop_at < 0 || o.stop_at > o.steps) {
    throw std::invalid_argument("--steps >= 2, --batch >= 1, --threads >= 1, --stop-at <= --steps");
  }
  return o;
}

double now_ms() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(time).count();
}

void write_file(const fs::path& path, const void* data, std::size_t size) {
  std::ofstream out(path, std::ios::binary);
  out.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  if (!out.flush()) {
    throw std::runtime_error("cannot write " + path.string());
  }
}

void write_file(const fs::path& path, const std::string& text) {
  write_file(path, text.data(), text.size());
}

bytes join(lowbit::buffers list) {
  bytes all;
  for (const lowbit::buffer& b : list) {
    const auto* data = static_cast<const unsigned char*>(b.data);
    all.insert(all.end(), data, data + b.bytes);
  }
  return all;
}

// Everything that changes during training: the model, and the optimizer's states in `stepper`.
class trainer {
 public:
  trainer(const arguments& o, const std::string& optimizer, const text::corpus& corpus)
      : o_(o),
        corpus_(corpus),
        model_(config(o), o.threads),
        spec_(lowbit::spec::preset(optimizer)),
        stepper_(make_stepper()) {
    for (auto& t : model_.tensors()) {
      params_.push_back(lowbit::buffer_of(t.value));
      grads_.push_back(lowbit::buffer_of(t.grad));
    }
    stepper_.bind(params_, grads_);
  }

  // One step; returns the loss of its batch.
  double step() {
    const double start = now_ms();
    const double loss = forward_backward();
    lowbit::hyper hyper = this->hyper();
    const double norm = gradient_norm();
    if (o_.clip > 0 && norm > o_.clip) {
      hyper.clip_factor = static_cast<float>(o_.clip / norm);
    }
    const double middle = now_ms();
    stepper_.step(hyper);
    optimizer_ms_ += now_ms() - middle;
    step_ms_ += now_ms() - start;
    ++timed_steps_;
    return loss;
  }

  // On the same batches for every optimizer.
  double validation_loss(int batches) {
    double total = 0;
    for (int i = 0; i < batches; ++i) {
      const text::batch b = draw(corpus_.validation, ~o_.seed, i);
      total += model_.evaluate(b.tokens, b.targets, o_.batch);
    }
    return total / batches;
  }

  void save(const fs::path& folder) {
    gpt::save_params(folder, model_.tensors());
    stepper_.save(gpt::state_file(folder).string());
  }

  void load(const fs::path& folder) {
    gpt::load_params(folder, model_.tensors());
    stepper_.load(gpt::state_file(folder).string());
  }

  // All bits that training has changed: parameters, then states.
  bytes bits() const {
    bytes all = join(params_);
    const bytes state = join(stepper_.state());
    all.insert(all.end(), state.begin(), state.end());
    return all;
  }

  // Leaves the folder described in tests/common/README.md, and goes five steps on.
  void hand_over(const fs::path& folder) {
    save(folder);
    write_file(folder / "spec.json", spec_.json() + "\n");
    std::string lines;
    for (const auto& t : model_.tensors()) {
      lines += t.name;
      for (std::int64_t extent : t.shape) {
        lines += " " + std::to_string(extent);
      }
      lines += "\n";
    }
    write_file(folder / "tensors.txt", lines);
    lowbit::hyper h = hyper();
    h.clip_factor = 0.75f;
    lines.clear();
    for (float x :
         {h.lr, h.beta1, h.beta2, h.eps, h.weight_decay, h.grad_scale, h.clip_factor, h.skip}) {
      lines += (lines.empty() ? "" : " ") + formatted(x, "%.9g");
    }
    write_file(folder / "hyper.txt", lines + "\n");
    for (int i = 1; i <= 5; ++i) {
      forward_backward();
      const bytes grads = join(grads_);
      write_file(folder / ("grad" + std::to_string(i) + ".f32"), grads.data(), grads.size());
      stepper_.step(h);
    }
    const bytes all = bits();
    sha256_t hash;
    char hex[65];
    sha256_begin(&hash);
    sha256_add(&hash, all.data(), all.size());
    sha256_end(&hash, hex);
    write_file(folder / "expected.txt", std::string(hex) + "\n");
  }

  int steps() const { return static_cast<int>(stepper_.steps()); }
  const lowbit::plan& plan() const { return stepper_.plan(); }
  double step_ms() const { return step_ms_ / timed_steps_; }
  double optimizer_ms() const { return optimizer_ms_ / timed_steps_; }

 private:
  static gpt::config config(const arguments& o) {
    gpt::config c;
    c.seed = o.seed;
    return c;
  }

  lowbit::stepper make_stepper() {
    std::vector<lowbit::tensor> tensors;
    for (const auto& t : model_.tensors()) {
      tensors.push_back({t.name, t.shape});
    }
    return lowbit::stepper::make(
        lowbit::plan::make(lowbit::context::cpu({o_.threads}), spec_, tensors));
  }

  text::batch draw(const std::vector<std::uint8_t>& from, std::uint64_t seed, int number) const {
    return text::draw(from, o_.batch, config(o_).context, seed,
                      static_cast<std::uint64_t>(number));
  }

  double forward_backward() {
    const text::batch b = draw(corpus_.train, o_.seed, steps());
    return model_.forward_backward(b.tokens, b.targets, o_.batch);
  }

  lowbit::hyper hyper() const {
    lowbit::hyper h;
    h.lr = gpt::learning_rate(o_.lr, steps() + 1, o_.steps);
    h.weight_decay = o_.weight_decay;
    return h;
  }

  double gradient_norm() {
    double sum = 0;
    for (const auto& t : model_.tensors()) {
      for (double g : t.grad) {
        sum += g * g;
      }
    }
    return std::sqrt(sum);
  }

  const arguments& o_;
  const text::corpus& corpus_;
  gpt::model<float> model_;
  lowbit::spec spec_;
  lowbit::stepper stepper_;
  std::vector<lowbit::buffer> params_, grads_;
  double step_ms_ = 0, optimizer_ms_ = 0;
  int timed_steps_ = 0;
};

// Up to the end, or up to a step; adds to the curve of validation losses.
void train(trainer& run, const arguments& o, const std::string& name, plot::series& curve) {
  const int last = o.stop_at > 0 ? o.stop_at : o.steps;
  const int interval = std::max(1, o.steps / 15);
  double loss = 0;
  for (int since = 0; run.steps() < last;) {
    loss += run.step();
    ++since;
    if (run.steps() % interval == 0 || run.steps() == last) {
      const double validation = run.validation_loss(4);
      curve.points.emplace_back(run.steps(), validation);
      std::printf("%-13s step %4d/%d  training loss %.4f  validation loss %.4f  %5.1f ms/step\n",
                  name.c_str(), run.steps(), o.steps, loss / since, validation, run.step_ms());
      std::fflush(stdout);
      loss = since = 0;
    }
  }
}

struct row {
  std::string optimizer;
  double loss = 0, optimizer_ms = 0, step_ms = 0;
  double bytes = 0, elements = 0, quantized_bytes = 0, quantized_elements = 0;
};

row measure(const std::string& name, trainer& run) {
  row r;
  r.optimizer = name;
  r.loss = run.validation_loss(32);
  r.optimizer_ms = run.optimizer_ms();
  r.step_ms = run.step_ms();
  for (std::int64_t i = 0; i < run.plan().tensor_count(); ++i) {
    const lowbit_tensor_report_t t = run.plan().tensor_report(i);
    const double size = static_cast<double>(t.state_bytes), count = static_cast<double>(t.numel);
    const bool quantized = std::string(t.quantizers).find("4-bit") != std::string::npos;
    r.bytes += size;
    r.elements += count;
    r.quantized_bytes += quantized ? size : 0;
    r.quantized_elements += quantized ? count : 0;
  }
  return r;
}

// For people (and for a README), and for programs.
void write_table(const std::vector<row>& rows, bool resumed_equals, const fs::path& folder) {
  std::string table =
      "| optimizer     | validation loss | to adamw32 | state bytes | B/param | quantized tensors |"
      " optimizer ms/step | ms/step |\n"
      "|---------------|----------------:|-----------:|------------:|--------:|------------------:|"
      "------------------:|--------:|\n";
  std::string json;
  for (const row& r : rows) {
    const bool has_base = rows[0].optimizer == "adamw32";
    const double percent = 100 * (r.loss / rows[0].loss - 1);
    const std::string difference = has_base ? formatted(percent, "%+.2f %%") : "";
    const double quantized = r.quantized_bytes / r.quantized_elements;  // NaN for none
    const std::string per_param =
        r.quantized_elements > 0 ? formatted(quantized, "%.3f B/param") : "none";
    char line[256];
    std::snprintf(line, sizeof line,
                  "| %-13s | %15.4f | %10s | %11.0f | %7.3f | %17s | %17.2f | %7.1f |\n",
                  r.optimizer.c_str(), r.loss, difference.c_str(), r.bytes, r.bytes / r.elements,
                  per_param.c_str(), r.optimizer_ms, r.step_ms);
    table += line;
    std::snprintf(
        line, sizeof line,
        "%s\n    {\"optimizer\": \"%s\", \"validation_loss\": %.6f, \"state_bytes\": %.0f, "
        "\"parameters\": %.0f, \"optimizer_ms\": %.3f, \"step_ms\": %.3f}",
        json.empty() ? "" : ",", r.optimizer.c_str(), r.loss, r.bytes, r.elements, r.optimizer_ms,
        r.step_ms);
    json += line;
  }
  std::printf("\n%s\n", table.c_str());
  write_file(folder / "table.md", table);
  write_file(folder / "table.json",
             "{\n  \"resumed_equals\": " + std::string(resumed_equals ? "true" : "false") +
                 ",\n  \"runs\": [" + json + "\n  ]\n}\n");
}

// This program again, in a process of its own, with the arguments of this one and some more.
void run_again(int argc, char** argv, std::vector<std::string> more) {
  std::vector<char*> arguments(argv, argv + argc);
  for (std::string& argument : more) {
    arguments.push_back(argument.data());
  }
  arguments.push_back(nullptr);
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    execvp(argv[0], arguments.data());
    _exit(127);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
    throw std::runtime_error("the run in another process failed");
  }
}

// Trains once more in two other processes, of which the second has only the files of the first, and
// says whether the bits at the end are those of the uninterrupted run.
bool resume_check(int argc, char** argv, const arguments& o, const std::string& optimizer,
                  const text::corpus& corpus, const bytes& uninterrupted) {
  const std::string stopped = (fs::path(o.out) / "stopped").string();
  const std::string resumed = (fs::path(o.out) / "resumed").string();
  run_again(
      argc, argv,
      {"--optimizers", optimizer, "--out", stopped, "--stop-at", std::to_string(o.steps / 2)});
  run_again(argc, argv, {"--optimizers", optimizer, "--out", resumed, "--resume", stopped});
  trainer run(o, optimizer, corpus);
  run.load(resumed);
  const bool equal = run.steps() == o.steps && run.bits() == uninterrupted;
  std::printf("\nresumed run equals the uninterrupted one: %s\n", equal ? "yes" : "no");
  return equal;
}

// What --stop-at and --resume do.
void train_part(const arguments& o, const text::corpus& corpus) {
  const std::string& optimizer = o.optimizers[0];
  trainer run(o, optimizer, corpus);
  if (!o.resume.empty()) {
    run.load(o.resume);
    std::printf("%s resumes after step %d\n", optimizer.c_str(), run.steps());
  }
  plot::series curve;
  train(run, o, optimizer, curve);
  run.save(o.out);
}

bool compare(int argc, char** argv, const arguments& o, const text::corpus& corpus) {
  const auto has = [&](const char* name) {
    return std::find(o.optimizers.begin(), o.optimizers.end(), name) != o.optimizers.end();
  };
  const std::string to_resume = has("adamw4") ? "adamw4" : o.optimizers.back();
  std::vector<row> rows;
  std::vector<plot::series> curves;
  bytes final_bits;
  for (const std::string& optimizer : o.optimizers) {
    trainer run(o, optimizer, corpus);
    curves.push_back({optimizer, {}});
    train(run, o, optimizer, curves.back());
    rows.push_back(measure(optimizer, run));
    if (optimizer == to_resume) {
      write_file(fs::path(o.out) / "plan.txt", run.plan().report());
      final_bits = run.bits();
      if (!o.handover.empty()) {
        run.hand_over(o.handover);
      }
    }
  }
  const bool equal = resume_check(argc, argv, o, to_resume, corpus, final_bits);
  write_table(rows, equal, o.out);
  plot::write_svg((fs::path(o.out) / "loss.svg").string(), "Validation loss, byte-level GPT",
                  "step", "nats per byte", curves);
  std::printf("table, plot and checkpoints are in %s\n", o.out.c_str());

  std::map<std::string, double> loss;
  for (const row& r : rows) {
    loss[r.optimizer] = r.loss;
  }
  const bool close = !has("adamw32") || !has("adamw4") || loss["adamw4"] <= 1.02 * loss["adamw32"];
  if (!close) {
    std::printf("adamw4's loss is more than 2 %% above adamw32's\n");
  }
  return equal && close;
}

}  // namespace

int main(int argc, char** argv) try {
  arguments o = parse(argc, argv);
  if (o.text.empty()) {
    o.text = text::python_stdlib();
  }
  const text::corpus corpus = text::load(o.text);
  fs::create_directories(o.out);
  if (o.stop_at > 0 || !o.resume.empty()) {
    train_part(o, corpus);
    return 0;
  }
  std::printf("lowbit %s; %.1f MB of text in %zu files of %s\n", lowbit::version(),
              static_cast<double>(corpus.train.size() + corpus.validation.size()) / 1e6,
              corpus.files, o.text.c_str());
  return compare(argc, argv, o, corpus) ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "gpt: %s\n", e.what());
  return 1;
}
