// Goes on from a trainer of another language: five steps, to that trainer's bits.
//
//   handover FOLDER
//
// The folder is described in tests/common/README.md. Prints the hash; exits with 1 if it is not the
// expected one.

#include "lowbit.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../../../tests/common/sha256.h"

namespace {

using bytes = std::vector<char>;

bytes read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    throw std::runtime_error("cannot read " + path);
  }
  return bytes(std::istreambuf_iterator<char>(in), {});
}

std::vector<lowbit::tensor> read_tensors(const std::string& path) {
  std::vector<lowbit::tensor> tensors;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    tensors.push_back({name, {std::istream_iterator<std::int64_t>(words), {}}});
  }
  return tensors;
}

// Where the tensors lie in one file of concatenated f32 values.
std::vector<lowbit::buffer> cut(bytes& all, const std::vector<lowbit::tensor>& tensors) {
  std::vector<lowbit::buffer> buffers;
  std::size_t at = 0;
  for (const lowbit::tensor& t : tensors) {
    std::size_t size = sizeof(float);
    for (const std::int64_t extent : t.shape) {
      size *= static_cast<std::size_t>(extent);
    }
    buffers.push_back({all.data() + at, static_cast<std::int64_t>(size)});
    at += size;
  }
  if (at != all.size()) {
    throw std::runtime_error("a file of values has another size than the tensors");
  }
  return buffers;
}

lowbit::hyper read_hyper(const std::string& path) {
  lowbit::hyper h;
  std::ifstream in(path);
  in >> h.lr >> h.beta1 >> h.beta2 >> h.eps >> h.weight_decay >> h.grad_scale >> h.clip_factor >>
      h.skip;
  if (!in) {
    throw std::runtime_error("cannot read " + path);
  }
  return h;
}

std::string continued(const std::string& folder) {
  const auto context = lowbit::context::cpu();
  const bytes json = read(folder + "/spec.json");
  const auto spec = lowbit::spec::from_json(std::string(json.begin(), json.end()).c_str());
  const auto tensors = read_tensors(folder + "/tensors.txt");
  bytes values = read(folder + "/params.f32");
  bytes gradients(values.size());
  const auto params = cut(values, tensors);
  const auto grads = cut(gradients, tensors);
  auto stepper = lowbit::stepper::make(lowbit::plan::make(context, spec, tensors));
  stepper.bind(params, grads);
  stepper.load(folder + "/state.safetensors");
  const lowbit::hyper hyper = read_hyper(folder + "/hyper.txt");
  for (int i = 1; i <= 5; ++i) {
    const bytes next = read(folder + "/grad" + std::to_string(i) + ".f32");
    if (next.size() != gradients.size()) {
      throw std::runtime_error("a file of gradients has another size than the tensors");
    }
    std::copy(next.begin(), next.end(), gradients.begin());
    stepper.step(hyper);
  }
  sha256_t hash;
  char hex[65];
  sha256_begin(&hash);
  for (const lowbit::buffers list : {lowbit::buffers(params), stepper.state()}) {
    for (const lowbit::buffer& b : list) {
      sha256_add(&hash, b.data, static_cast<std::size_t>(b.bytes));
    }
  }
  sha256_end(&hash, hex);
  return hex;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) {
    std::fprintf(stderr, "usage: handover FOLDER\n");
    return 2;
  }
  const std::string folder = argv[1];
  const std::string found = continued(folder);
  std::printf("%s\n", found.c_str());
  std::string expected;
  std::ifstream(folder + "/expected.txt") >> expected;
  if (found != expected) {
    std::fprintf(stderr, "expected %s\n", expected.c_str());
    return 1;
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
