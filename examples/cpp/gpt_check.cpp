// Checks of the example's own parts: the model's gradients, that neither the number of threads nor
// a second run changes a bit, the batches, and the plot.
//
//   g++ -std=c++17 -O3 -pthread gpt_check.cpp -o gpt_check && ./gpt_check
//
// Prints what failed and "N passed, M failed"; exits with 1 if anything failed.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "gpt.hpp"
#include "plot.hpp"
#include "text.hpp"

namespace {

namespace fs = std::filesystem;

int passed = 0, failed = 0;

void expect(bool ok, const std::string& what) {
  ++(ok ? passed : failed);
  if (!ok) {
    std::printf("FAILED: %s\n", what.c_str());
  }
}

template <class F>
bool throws(F f) {
  try {
    f();
  } catch (const std::exception&) {
    return true;
  }
  return false;
}

std::vector<std::uint8_t> random_bytes(std::size_t size, int below, std::uint64_t seed) {
  splitmix64 random(seed);
  std::vector<std::uint8_t> bytes(size);
  for (std::uint8_t& b : bytes) {
    b = static_cast<std::uint8_t>(random.below(below));
  }
  return bytes;
}

// At the initial weights some gradients are tiny (the biases are all zero, attention is nearly
// uniform); away from them every term of every formula counts.
template <class T>
void perturb(gpt::model<T>& model, double deviation) {
  splitmix64 random(7);
  for (gpt::tensor<T>& t : model.tensors()) {
    for (T& v : t.value) {
      v += T(deviation * random.normal());
    }
  }
}

double norm(const std::vector<double>& v) {
  double sum = 0;
  for (double x : v) {
    sum += x * x;
  }
  return std::sqrt(sum);
}

// The matrix product against its definition, at sizes that leave a part of every block over.
void check_matmul() {
  for (int columns : {1, 7, 8, 130, 515}) {
    const int m = 6, k = 76, n = columns;
    splitmix64 random(1);
    std::vector<double> a(m * k), b(k * n), c(m * n, 0.5), transposed(m * n, 0.5), want(m * n, 0.5);
    for (std::vector<double>* v : {&a, &b}) {
      for (double& x : *v) {
        x = random.normal();
      }
    }
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < n; ++j) {
        for (int p = 0; p < k; ++p) {
          want[i * n + j] += a[i * k + p] * b[p * n + j];
        }
      }
    }
    std::vector<double> at(m * k);
    gpt::transpose<double>(m, k, a.data(), k, at.data());
    gpt::matmul_add(m, n, k, a.data(), k, 1, b.data(), n, c.data(), n);
    gpt::matmul_add(m, n, k, at.data(), 1, m, b.data(), n, transposed.data(), n);
    double error = 0;
    for (int i = 0; i < m * n; ++i) {
      error = std::max(error, std::abs(c[i] - want[i]));
    }
    expect(error < 1e-12, "matmul of " + std::to_string(n) + " columns");
    expect(c == transposed, "matmul, transposed, of " + std::to_string(n) + " columns");
  }
}

// Every element of every tensor of a small model, in double precision, against
// (loss(w + h) - loss(w - h)) / 2h. The error of the difference is about h^2 + 1e-16 / h.
void check_every_gradient() {
  gpt::config cfg;
  cfg.vocab = 12, cfg.context = 16, cfg.layers = 2, cfg.heads = 2, cfg.width = 8;
  constexpr int batch = 2;
  constexpr double h = 1e-5;
  gpt::model<double> model(cfg, 1);
  perturb(model, 0.2);
  const auto tokens = random_bytes(batch * cfg.context, cfg.vocab, 3);
  const auto targets = random_bytes(batch * cfg.context, cfg.vocab, 4);
  model.forward_backward(tokens, targets, batch);
  double worst = 0;
  for (gpt::tensor<double>& t : model.tensors()) {
    std::vector<double> difference = t.grad;
    for (std::size_t i = 0; i < t.value.size(); ++i) {
      const double value = t.value[i];
      t.value[i] = value + h;
      const double above = model.evaluate(tokens, targets, batch);
      t.value[i] = value - h;
      const double below = model.evaluate(tokens, targets, batch);
      t.value[i] = value;
      difference[i] -= (above - below) / (2 * h);
    }
    const double error = norm(difference) / norm(t.grad);
    worst = std::max(worst, error);
    expect(error < 1e-7, "gradient of " + t.name + ": relative error " + std::to_string(error));
  }
  std::printf("small model, every element: largest relative error %.1e\n", worst);
}

// At full width, where matrices span several cache blocks, every tensor along one random direction;
// and the float gradients against the double ones.
void check_full_width() {
  gpt::config cfg;
  cfg.layers = 2;
  constexpr int batch = 2;
  constexpr double h = 1e-5;
  gpt::model<double> model(cfg, 2);
  gpt::model<float> single(cfg, 2);
  perturb(model, 0.02);
  const auto tokens = random_bytes(batch * cfg.context, cfg.vocab, 3);
  const auto targets = random_bytes(batch * cfg.context, cfg.vocab, 4);
  model.forward_backward(tokens, targets, batch);
  double worst = 0, worst_single = 0;
  for (std::size_t i = 0; i < model.tensors().size(); ++i) {
    const std::vector<double>& value = model.tensors()[i].value;
    single.tensors()[i].value.assign(value.begin(), value.end());
  }
  single.forward_backward(tokens, targets, batch);
  splitmix64 random(11);
  for (std::size_t i = 0; i < model.tensors().size(); ++i) {
    gpt::tensor<double>& t = model.tensors()[i];
    const std::vector<double> value = t.value;
    std::vector<double> direction(value.size());
    const double length = norm(t.grad);
    double slope = 0;
    for (std::size_t j = 0; j < value.size(); ++j) {
      // Half the gradient's own direction, half a random one: never nearly at right angles to it.
      direction[j] =
          t.grad[j] / length + random.normal() / std::sqrt(static_cast<double>(value.size()));
      slope += direction[j] * t.grad[j];
    }
    const auto loss_at = [&](double step) {
      for (std::size_t j = 0; j < value.size(); ++j) {
        t.value[j] = value[j] + step * direction[j];
      }
      return model.evaluate(tokens, targets, batch);
    };
    const double measured = (loss_at(h) - loss_at(-h)) / (2 * h);
    t.value = value;
    const double error = std::abs(measured - slope) / std::abs(slope);
    worst = std::max(worst, error);
    expect(error < 1e-6, "slope of " + t.name + ": relative error " + std::to_string(error));

    std::vector<double> difference = t.grad;
    for (std::size_t j = 0; j < difference.size(); ++j) {
      difference[j] -= static_cast<double>(single.tensors()[i].grad[j]);
    }
    const double error_single = norm(difference) / length;
    worst_single = std::max(worst_single, error_single);
    expect(error_single < 1e-4,
           "float gradient of " + t.name + ": relative error " + std::to_string(error_single));
  }
  std::printf("full width, one direction a tensor: largest relative error %.1e\n", worst);
  std::printf("full width, float against double: largest relative error %.1e\n", worst_single);
}

// The bytes of the losses and gradients of a few plain descent steps.
std::string training_bytes(int threads) {
  gpt::config cfg;
  cfg.layers = 2;
  constexpr int batch = 3;
  gpt::model<float> model(cfg, threads);
  const auto data = random_bytes(4096, 256, 5);
  std::string bytes;
  const auto append = [&](const void* from, std::size_t size) {
    bytes.append(static_cast<const char*>(from), size);
  };
  for (int step = 0; step < 3; ++step) {
    const text::batch b = text::draw(data, batch, cfg.context, 1, step);
    const float loss = model.forward_backward(b.tokens, b.targets, batch);
    append(&loss, sizeof loss);
    for (gpt::tensor<float>& t : model.tensors()) {
      append(t.grad.data(), t.grad.size() * sizeof(float));
      for (std::size_t i = 0; i < t.value.size(); ++i) {
        t.value[i] -= 0.1f * t.grad[i];
      }
    }
  }
  return bytes;
}

void check_determinism() {
  const std::string one = training_bytes(1);
  expect(one == training_bytes(1), "a second run gives the same bits");
  expect(one == training_bytes(2), "2 threads give the bits of 1");
  expect(one == training_bytes(3), "3 threads give the bits of 1");
  expect(one == training_bytes(8), "8 threads give the bits of 1");
}

void check_model_arguments() {
  gpt::config cfg;
  cfg.vocab = 16, cfg.layers = 1, cfg.width = 16;
  gpt::model<float> model(cfg, 2);
  const auto bytes = random_bytes(cfg.context, cfg.vocab, 1);
  const float loss = model.forward_backward(bytes, bytes, 1);
  expect(loss == model.evaluate(bytes, bytes, 1), "evaluate gives the loss of forward_backward");
  auto outside = bytes;
  outside[3] = 16;
  expect(throws([&] { model.evaluate(outside, bytes, 1); }), "a token beyond vocab is refused");
  expect(throws([&] { model.evaluate(bytes, bytes, 2); }), "a batch of another size is refused");
  cfg.width = 18;
  expect(throws([&] { gpt::model<float> bad(cfg, 1); }), "a width not of 4 heads is refused");
}

void write(const fs::path& path, const std::string& content) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

void check_text(const fs::path& folder) {
  const auto data = random_bytes(10000, 256, 9);
  const text::batch a = text::draw(data, 4, 32, 1, 17), b = text::draw(data, 4, 32, 1, 17);
  expect(a.tokens == b.tokens && a.targets == b.targets, "the same step gives the same batch");
  expect(a.tokens != text::draw(data, 4, 32, 1, 18).tokens, "another step gives another batch");
  expect(a.tokens != text::draw(data, 4, 32, 2, 17).tokens, "another seed gives another batch");
  expect(std::equal(a.tokens.begin() + 1, a.tokens.begin() + 32, a.targets.begin()),
         "a target is the byte after its token");
  expect(throws([&] { text::draw(random_bytes(32, 256, 1), 1, 32, 1, 1); }),
         "too little text is refused");

  write(folder / "b.py", std::string(600, 'b'));
  write(folder / "a" / "a.py", std::string(300, 'a'));
  write(folder / "notes.txt", std::string(100, 'n'));
  write(folder / "site-packages" / "x.py", std::string(100, 'x'));
  write(folder / ".hidden" / "y.py", std::string(100, 'y'));
  text::corpus c = text::load(folder.string());
  expect(c.files == 2 && c.train.size() == 810 && c.validation.size() == 90,
         "a folder gives its Python sources, the last tenth for validation");
  expect(text::load(folder.string()).train == c.train, "a folder gives the same bytes again");
  expect(text::load(folder.string(), 500).train.size() == 450, "the limit on bytes holds");
  expect(text::load((folder / "notes.txt").string()).train.size() == 90, "a single file is read");
  write(folder / "plain" / "one", "some text");
  write(folder / "plain" / "two", std::string("bin\0ary", 7));
  c = text::load((folder / "plain").string());
  expect(c.files == 1 && c.train.size() == 9, "without Python sources, a folder gives its text");
  expect(throws([&] { text::load((folder / "none").string()); }), "a missing file is refused");
}

void check_plot(const fs::path& folder) {
  const std::string path = (folder / "plot.svg").string();
  plot::write_svg(path, "a < b", "step", "loss", {{"one", {{0, 3}, {1, NAN}, {2, 1}}}});
  std::ifstream in(path);
  const std::string svg((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  expect(svg.find("a &lt; b") != std::string::npos && svg.find("</svg>") != std::string::npos &&
             svg.find("nan") == std::string::npos,
         "a plot is written, without what is not finite");
  expect(throws([&] { plot::write_svg(path, "", "", "", {}); }), "an empty plot is refused");
}

}  // namespace

int main() {
  const fs::path folder =
      fs::temp_directory_path() / ("gpt_check." + std::to_string(std::random_device{}()));
  try {
    fs::create_directories(folder);
    check_matmul();
    check_every_gradient();
    check_full_width();
    check_determinism();
    check_model_arguments();
    check_text(folder);
    check_plot(folder);
  } catch (const std::exception& error) {
    expect(false, error.what());
  }
  std::error_code ignored;
  fs::remove_all(folder, ignored);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
