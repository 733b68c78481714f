// SplitMix64 (Steele, Lea, Flood 2014): a 64-bit random generator in three lines of arithmetic.
//
// The distributions of <random> may give different numbers with every standard library; these give
// the same ones everywhere, so initial weights and batches do too.
// Used by gpt.hpp (initial weights) and text.hpp (order of files, batches).

#pragma once

#include <cstdint>

class splitmix64 {
 public:
  explicit splitmix64(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

  // In [0, n). The bias of the remainder is below n / 2^64: nothing for the n used here.
  std::uint64_t below(std::uint64_t n) { return next() % n; }

  // In [0, 1), a multiple of 2^-53.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

  // Mean 0, variance 1. A sum of twelve uniforms is close enough to a normal distribution for
  // initial weights, and needs no logarithm or cosine from the mathematics library.
  double normal() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) {
      sum += uniform();
    }
    return sum;
  }

 private:
  std::uint64_t state_;
};
