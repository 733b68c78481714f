// Sums whose result does not depend on the order of their terms, `src/numerics/exact_sum.rs`: every
// term is rounded once, to a multiple of a unit that the largest term decides, and the multiples are
// added as integers, in two limbs: high 2^31 + low.

#pragma once

#include "numerics.cuh"
#include "ptx.cuh"
#include "warp.cuh"

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

// ---- the same without arithmetic in f64, of which some architectures have little ----------------

// A term, or a sum of terms: high 2^32 + low units.
struct Words {
  unsigned long long high = 0;
  unsigned long long low = 0;
};

// significand 2^(exponent - 150): a finite f32 that is not negative.
struct Term {
  unsigned significand;
  int exponent;
};

__device__ __forceinline__ Term term_of(float x) {
  const unsigned bits = __float_as_uint(x), biased = bits >> 23;
  const unsigned exponent = biased > 1 ? biased : 1;  // subnormals have that of the smallest others
  return Term{bits - ((exponent - 1) << 23), static_cast<int>(exponent)};
}

// Places that are so far below that nothing of a term is left.
constexpr int NO_PLACES = -1000;

// What is added to a term's exponent to get the places that its significand moves up to be in units, where
// the largest term has these bits; 0 or more if that takes no rounding. Where a term is not finite nothing
// is added.
__device__ __forceinline__ int places_below(int largest) {
  return largest < static_cast<int>(INF_BITS) ? 37 - (largest >> 23) : NO_PLACES;
}

// Adds a term that moves up by so many places; one that moves down adds nothing here.
__device__ __forceinline__ void add(Words& sum, const Term& term, int places) {
  const unsigned long long words = shift_left(term.significand, places);
  sum.high += words >> 32;
  sum.low += words & 0xffffffff;
}

// Adds a term that moves down, rounded to a whole unit; one that moves up adds nothing here.
__device__ __forceinline__ void add_rounded(Words& sum, const Term& term, int places) {
  if (places < 0) {
    // 25 places are as good as more: less than half a unit is left.
    const unsigned exponent = static_cast<unsigned>(127 + (places > -25 ? places : -25));
    const float factor = __uint_as_float(exponent << 23);  // 2^places
    const float units = __fmul_rn(static_cast<float>(term.significand), factor);
    sum.low += static_cast<unsigned>(__float2int_rn(units));
  }
}

__device__ __forceinline__ Limbs limbs_of(const Words& sum) {
  return Limbs{static_cast<long long>(2 * sum.high + (sum.low >> LOW_BITS)),
               static_cast<long long>(sum.low & ((1u << LOW_BITS) - 1))};
}

__device__ __forceinline__ void add(Words& sum, const Words& more) {
  sum.high += more.high;
  sum.low += more.low;
}

// The words of one number of 64 bits.
__device__ __forceinline__ Words words_of(unsigned long long x) {
  return Words{x >> 32, x & 0xffffffff};
}

// x 2^places, for a result below 2^96.
__device__ __forceinline__ Words moved_up(const Words& x, int places) {
  const unsigned long long high = x.high + (x.low >> 32), low = x.low & 0xffffffff;
  if (places < 32) {
    return Words{high << places, low << places};
  }
  // It is below 2^64 before, and 0 if it moves by more.
  return Words{places < 96 ? (high << 32 | low) << (places - 32) : 0, 0};
}

// The sum of the words of a warp's lanes, which have at most 128 terms each, in three 32-bit sums.
struct WarpSum {
  unsigned high;   // the lowest 32 bits
  unsigned low;    // likewise
  unsigned above;  // 2^17 the sum of the lanes' high 2^-27, rounded down, and the same of low
};

__device__ __forceinline__ WarpSum warp_sum(const Words& x) {
  const unsigned above =
      static_cast<unsigned>(x.high >> 27) << 17 | static_cast<unsigned>(x.low >> 27);
  return WarpSum{warp_add(static_cast<unsigned>(x.high)), warp_add(static_cast<unsigned>(x.low)),
                 warp_add(above)};
}

__device__ __forceinline__ Words words_of(const WarpSum& sum) {
  // What the lanes' parts above 2^27 add up to; the rest is below 32 2^27, so its lowest 32 bits are all.
  const auto whole = [](unsigned above, unsigned lowest) {
    const unsigned long long least = static_cast<unsigned long long>(above) << 27;
    return least + (lowest - static_cast<unsigned>(least));
  };
  return Words{whole(sum.above >> 17, sum.high), whole(sum.above & 0x1ffff, sum.low)};
}

// ---- results ------------------------------------------------------------------------------------

// The sum that the limbs of its terms add up to, however they were split.
__device__ __forceinline__ double value_of_sum(const Limbs& sum, int exponent) {
  const long long high = sum.high + (sum.low >> LOW_BITS), low = sum.low & ((1ll << LOW_BITS) - 1);
  const double whole =
      __fma_rn(static_cast<double>(high), 2147483648.0, static_cast<double>(low));
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
