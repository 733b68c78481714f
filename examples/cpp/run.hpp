// What the trainers of this folder and of ../cuda share besides the model, so that a run goes on on
// the other processor: the learning rate of each step, and the file of the parameters.
//
// A checkpoint is a folder: params.f32, all parameters as f32 in the order of the model's tensors,
// and state.safetensors, the library's file of states and steps.

#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <vector>

#include "gpt.hpp"

namespace gpt {

// Of step `step` (from 1) of `steps`: a linear warm-up over a tenth of them, then half a cosine
// from `highest` down to a tenth of it.
inline float learning_rate(double highest, int step, int steps) {
  const double warm = std::max(1, steps / 10);
  const double rest = std::min(1.0, (step - warm) / (steps - warm));
  return static_cast<float>(
      highest * (step < warm ? step / warm : 0.55 + 0.45 * std::cos(3.14159265358979 * rest)));
}

inline std::filesystem::path params_file(const std::filesystem::path& folder) {
  return folder / "params.f32";
}
inline std::filesystem::path state_file(const std::filesystem::path& folder) {
  return folder / "state.safetensors";
}

inline void save_params(const std::filesystem::path& folder,
                        const std::vector<tensor<float>>& tensors) {
  std::filesystem::create_directories(folder);
  std::ofstream out(params_file(folder), std::ios::binary);
  for (const tensor<float>& t : tensors) {
    out.write(reinterpret_cast<const char*>(t.value.data()),
              static_cast<std::streamsize>(t.value.size() * sizeof(float)));
  }
  if (!out.flush()) {
    throw std::runtime_error("cannot write " + params_file(folder).string());
  }
}

inline void load_params(const std::filesystem::path& folder, std::vector<tensor<float>>& tensors) {
  std::ifstream in(params_file(folder), std::ios::binary);
  for (tensor<float>& t : tensors) {
    in.read(reinterpret_cast<char*>(t.value.data()),
            static_cast<std::streamsize>(t.value.size() * sizeof(float)));
  }
  if (!in || in.peek() != std::ifstream::traits_type::eof()) {
    throw std::runtime_error(params_file(folder).string() + " is not of this model");
  }
}

}  // namespace gpt
