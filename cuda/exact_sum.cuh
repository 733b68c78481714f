// Sums whose result does not depend on the order of their terms, `src/numerics/exact_sum.rs`: every
// term is rounded once, to a multiple of a unit that the largest term decides, and the multiples are
// added as integers, in two limbs: high 2^31 + low.

#pragma once

#include "numerics.cuh"

namespace lowbit {

constexpr int TERM_BITS = 61;
constexpr int LOW_BITS = 31;

struct Limbs {
  long long high;
  long long low;
};

// 2^n for |n| <= 1022.
__device__ __forceinline__ double power_of_two(int n) {
  return __longlong_as_double(static_cast<long long>(n + 1023) << 52);
}

// Of the power of two above values whose largest magnitude has these bits, which are finite.
__device__ __forceinline__ int exponent_above(int largest) { return (largest >> 23) - 126; }

// How many units a term of 1 has where all terms are below 2^exponent.
__device__ __forceinline__ double units_of_one(int exponent) {
  return power_of_two(TERM_BITS - exponent);
}

__device__ __forceinline__ Limbs limbs_of(double term, double units) {
  const long long scaled = __double2ll_rn(__dmul_rn(term, units));
  return Limbs{scaled >> LOW_BITS, scaled & ((1ll << LOW_BITS) - 1)};
}

// The sum that the limbs of its terms add up to.
__device__ __forceinline__ double value_of_sum(const Limbs& sum, int exponent) {
  const double whole =
      __fma_rn(static_cast<double>(sum.high), 2147483648.0, static_cast<double>(sum.low));
  return __dmul_rn(whole, power_of_two(exponent - TERM_BITS));
}

// The mean of `count` terms, rounded once to f32; NaN where the largest is not finite.
__device__ __forceinline__ float mean_of_sum(const unsigned long long* limbs, int largest,
                                             long long count) {
  if (largest >= static_cast<int>(INF_BITS)) {
    return __uint_as_float(NAN_BITS);
  }
  const Limbs sum{static_cast<long long>(limbs[0]), static_cast<long long>(limbs[1])};
  const double whole = value_of_sum(sum, exponent_above(largest));
  return canonical(__double2float_rn(__ddiv_rn(whole, static_cast<double>(count))));
}

__device__ __forceinline__ void add(Limbs& sum, const Limbs& more) {
  sum.high += more.high;
  sum.low += more.low;
}

// Adds to a sum of the scratch.
__device__ __forceinline__ void add_limbs(unsigned long long* sum, const Limbs& more) {
  atomicAdd(sum, static_cast<unsigned long long>(more.high));
  atomicAdd(sum + 1, static_cast<unsigned long long>(more.low));
}

}  // namespace lowbit
