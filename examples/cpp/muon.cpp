// An optimizer that lives in the trainer, with its momentum in 4 bits.
//
//   cargo build --release -p lowbit
//   g++ -std=c++17 -O3 -Iinclude -Ibindings/cpp examples/cpp/muon.cpp -o muon
//       -Ltarget/release -llowbit -pthread -Wl,-rpath,$PWD/target/release        (in one line)
//   ./muon [--steps N] [--text PATH]
//
// Muon (Jordan et al. 2024) steps the matrices inside the blocks along their momentum, made
// orthogonal by a Newton-Schulz iteration. The library knows nothing of it: `muon` below keeps the
// momentum by `lowbit_ema`, which decodes it, averages the gradient into it, hands the average over
// in f32 and keeps its quantized form (the paper's Algorithm 1 takes any optimizer). All other
// parameters are stepped by the library's AdamW.
//
// The byte-level GPT of gpt.hpp is trained from one seed with the momentum in 32, 8 and 4 bits.
// Orthogonalizing lifts small singular values, and what coding did to them, to the size of the
// large ones: Muon pays more for 4 bits than Adam does. Exits with 1 if 8 bits end more than 1 %
// above 32, or 4 bits more than 5 %.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "lowbit.hpp"

#include "gpt.hpp"
#include "text.hpp"

namespace {

using matrix = std::vector<float>;

void check(lowbit_status_t code) {
  const lowbit::status done = lowbit::status::of(code);
  if (!done) {
    throw lowbit::error(done);
  }
}

// ---- Newton-Schulz: x (rows, columns) becomes nearly orthogonal ----

// Five steps of x = a x + (b x xT + c (x xT)^2) x, which bring all singular values near 1.
void orthogonalize(std::int64_t rows, std::int64_t columns, matrix& x) {
  const bool tall = rows > columns;
  matrix other(x.size());
  if (tall) {  // the product x xT is smaller the other way round
    gpt::transpose(rows, columns, x.data(), columns, other.data());
    x.swap(other);
    std::swap(rows, columns);
  }
  double squares = 0;
  for (float value : x) {
    squares += static_cast<double>(value) * value;
  }
  const float scale = static_cast<float>(1 / (std::sqrt(squares) + 1e-7));
  for (float& value : x) {
    value *= scale;
  }
  matrix transposed(x.size()), gram(rows * rows), poly(rows * rows);
  for (int i = 0; i < 5; ++i) {
    gpt::transpose(rows, columns, x.data(), columns, transposed.data());
    std::fill(gram.begin(), gram.end(), 0.0f);
    gpt::matmul_add(rows, rows, columns, x.data(), columns, std::int64_t{1}, transposed.data(),
                    rows, gram.data(), rows);
    std::fill(poly.begin(), poly.end(), 0.0f);
    gpt::matmul_add(rows, rows, rows, gram.data(), rows, std::int64_t{1}, gram.data(), rows,
                    poly.data(), rows);
    for (std::size_t j = 0; j < poly.size(); ++j) {
      poly[j] = -4.7750f * gram[j] + 2.0315f * poly[j];
    }
    std::transform(x.begin(), x.end(), other.begin(), [](float v) { return 3.4445f * v; });
    gpt::matmul_add(rows, columns, rows, poly.data(), rows, std::int64_t{1}, x.data(), columns,
                    other.data(), columns);
    x.swap(other);
  }
  if (tall) {
    gpt::transpose(rows, columns, x.data(), columns, other.data());
    x.swap(other);
  }
}

// ---- the optimizer ----

class muon {
 public:
  muon(std::vector<gpt::tensor<float>*> tensors, const std::string& momentum, int threads)
      : tensors_(std::move(tensors)),
        threads_(threads),
        plan_(make_plan(tensors_, momentum, threads)),
        state_(lowbit::state::make(plan_)) {
    for (gpt::tensor<float>* t : tensors_) {
      grads_.push_back(lowbit::buffer_of(t->grad));
      averages_.emplace_back(t->grad.size());
      outputs_.push_back(lowbit::buffer_of(averages_.back()));
    }
  }

  void step(float lr, float weight_decay) {
    lowbit_ema_args_t args = LOWBIT_EMA_ARGS_INIT;
    args.state_name = "x";
    args.tensor_count = static_cast<std::int64_t>(tensors_.size());
    args.inputs = grads_.data();
    args.outputs = outputs_.data();
    args.buffer_count = state_.buffers().count();
    args.state = state_.buffers().data();
    args.decay = beta;
    args.weight = 1 - beta;
    args.step = ++steps_;
    check(lowbit_ema(plan_.get(), &args, nullptr));
    // Matrix by matrix, as each is a task of its own.
    gpt::parallel(threads_, args.tensor_count, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        update(*tensors_[i], averages_[i], lr, weight_decay);
      }
    });
  }

  std::int64_t state_bytes() const { return plan_.state_bytes(); }

 private:
  static constexpr float beta = 0.95f;

  static lowbit::plan make_plan(const std::vector<gpt::tensor<float>*>& tensors,
                                const std::string& momentum, int threads) {
    std::vector<lowbit::tensor> list;
    for (const gpt::tensor<float>* t : tensors) {
      list.push_back({t->name, t->shape});
    }
    const std::string json = R"({"optimizer":"none","threshold":0,"x":)" + momentum + "}";
    return lowbit::plan::make(lowbit::context::cpu({threads}), lowbit::spec::from_json(json), list);
  }

  static void update(gpt::tensor<float>& t, const matrix& average, float lr, float weight_decay) {
    const std::int64_t rows = t.shape[0], columns = t.shape[1];
    matrix x(average.size());
    for (std::size_t j = 0; j < x.size(); ++j) {  // Nesterov's look ahead
      x[j] = (1 - beta) * t.grad[j] + beta * average[j];
    }
    orthogonalize(rows, columns, x);
    const float ratio = static_cast<float>(rows) / static_cast<float>(columns);
    const float rate = lr * std::sqrt(std::max(1.0f, ratio));
    for (std::size_t j = 0; j < x.size(); ++j) {
      t.value[j] -= lr * weight_decay * t.value[j] + rate * x[j];
    }
  }

  std::vector<gpt::tensor<float>*> tensors_;
  int threads_;
  lowbit::plan plan_;
  lowbit::state state_;
  std::vector<lowbit::buffer> grads_, outputs_;
  std::vector<matrix> averages_;
  int steps_ = 0;
};

// ---- the comparison ----

struct options {
  std::string text;
  int steps = 150;
};

struct outcome {
  double loss;
  std::int64_t momentum_bytes, elements;
};

outcome train(const options& o, const text::corpus& corpus, const std::string& name,
              const std::string& momentum) {
  constexpr int batch = 8;
  constexpr std::uint64_t seed = 1;
  const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const gpt::config config;
  gpt::model<float> model(config, threads);
  std::vector<gpt::tensor<float>*> matrices;
  std::vector<lowbit::tensor> others;
  std::vector<lowbit::buffer> params, grads;
  outcome result{};
  for (gpt::tensor<float>& t : model.tensors()) {
    if (t.shape.size() == 2 && t.name[0] == 'h') {
      matrices.push_back(&t);
      result.elements += static_cast<std::int64_t>(t.value.size());
    } else {
      others.push_back({t.name, t.shape});
      params.push_back(lowbit::buffer_of(t.value));
      grads.push_back(lowbit::buffer_of(t.grad));
    }
  }
  muon inner(matrices, momentum, threads);
  lowbit::stepper adamw = lowbit::stepper::make(lowbit::plan::make(
      lowbit::context::cpu({threads}), lowbit::spec::preset("adamw4"), others));
  adamw.bind(params, grads);
  result.momentum_bytes = inner.state_bytes();

  const auto validate = [&](int batches) {
    double total = 0;
    for (int i = 0; i < batches; ++i) {
      const text::batch b = text::draw(corpus.validation, batch, config.context, ~seed,
                                       static_cast<std::uint64_t>(i));
      total += model.evaluate(b.tokens, b.targets, batch);
    }
    return total / batches;
  };
  for (int step = 1; step <= o.steps; ++step) {
    const text::batch b = text::draw(corpus.train, batch, config.context, seed,
                                     static_cast<std::uint64_t>(step));
    const double loss = model.forward_backward(b.tokens, b.targets, batch);
    // Linear warm-up over a tenth of the steps, then down to a tenth of the rate.
    const float done = static_cast<float>(step) / static_cast<float>(o.steps);
    const float rate = done < 0.1f ? 10 * done : 1.1f - done;
    lowbit::hyper hyper;
    hyper.lr = 2e-3f * rate;
    hyper.weight_decay = 0.1f;
    adamw.step(hyper);
    inner.step(0.02f * rate, 0.1f);
    if (step % std::max(1, o.steps / 10) == 0) {
      std::printf("%-6s momentum  step %4d/%d  training loss %.4f\n", name.c_str(), step, o.steps,
                  loss);
      std::fflush(stdout);
    }
  }
  result.loss = validate(16);
  return result;
}

options parse(int argc, char** argv) {
  options o;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 < argc && name == "--steps") {
      o.steps = std::max(1, std::stoi(argv[i + 1]));
    } else if (i + 1 < argc && name == "--text") {
      o.text = argv[i + 1];
    } else {
      throw std::invalid_argument(name + ": the options are --steps N and --text PATH");
    }
  }
  return o;
}

int run(const options& o) {
  const text::corpus corpus = text::load(o.text.empty() ? text::python_stdlib() : o.text);
  struct arm {
    const char *name, *momentum;
    double most;  // validation loss over that of 32 bits, less 1
  };
  const arm arms[] = {
      {"32-bit", R"({"bits":32})", 0},
      {"8-bit", R"({"bits":8,"normalization":"block","block":256,"mapping":"de"})", 0.01},
      {"4-bit", R"({"bits":4,"normalization":"block","block":128,"mapping":"de"})", 0.05}};
  std::vector<outcome> results;
  for (const arm& a : arms) {
    results.push_back(train(o, corpus, a.name, a.momentum));
  }
  std::printf("\n| momentum | validation loss | to 32-bit | momentum bytes | B/param |\n");
  std::printf("|----------|-----------------|-----------|----------------|---------|\n");
  bool good = true;
  for (std::size_t i = 0; i < results.size(); ++i) {
    const outcome& r = results[i];
    const double change = r.loss / results[0].loss - 1;
    good = good && change <= arms[i].most;
    std::printf("| %-8s | %15.4f | %+7.2f %% | %14lld | %7.3f |\n", arms[i].name, r.loss,
                100 * change, static_cast<long long>(r.momentum_bytes),
                static_cast<double>(r.momentum_bytes) / static_cast<double>(r.elements));
  }
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "muon: %s\n", e.what());
    return 2;
  }
}
