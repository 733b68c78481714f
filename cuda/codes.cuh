// Codes of any table, `src/quant/mod.rs`. A value x with scale s has the nearest code
// #{i : x > RN(mid_i s)}, where mid_i is the midpoint of the levels i and i + 1; a code c decodes to
// RN(level_c s).

#pragma once

#include "numerics.cuh"
#include "random.cuh"

namespace lowbit {

// The scale of a block whose largest magnitude is `maximum`: itself, or NaN if not finite.
__device__ __forceinline__ float block_scale(unsigned maximum) {
  return __uint_as_float(maximum < INF_BITS ? maximum : NAN_BITS);
}

// Binary search: the scaled midpoints do not decrease, as rounding keeps order, and those behind the
// last are infinite. A NaN on either side makes all comparisons false: code 0. Under an infinite scale
// (maxima keep infinity) a midpoint of 0 is NaN and out of order, so all are counted. `half` is half
// the number of codes that the bits of a code allow.
__device__ __forceinline__ unsigned nearest_code(float x, float scale, const Codebook& book,
                                                 unsigned half) {
  unsigned code = 0;
  if (__float_as_uint(scale) == INF_BITS) {
    for (int i = 0; i < 255; ++i) {
      code += x > __fmul_rn(book.midpoints[i], scale) ? 1 : 0;
    }
    return code;
  }
  for (; half != 0; half /= 2) {
    code += x > __fmul_rn(book.midpoints[code + half - 1], scale) ? half : 0;
  }
  return code;
}

// RN(1 / (sqrt(v / (1 - beta2^t)) + eps)), which multiplies the step.
__device__ __forceinline__ float preconditioner(float v, const Scalars& s) {
  return __fdiv_rn(1.0f, __fadd_rn(__fsqrt_rn(__fmul_rn(v, s.inv_bc2)), s.eps));
}

// One of the two neighbouring codes, by the number u in (0, 1). Values beyond the ends get the end's
// code; everything under a scale of 0 or NaN gets code 0.
__device__ inline unsigned stochastic_code(float x, float scale, const Codebook& book,
                                           unsigned half, int rounding, const Scalars& s, float u) {
  if (!(scale > 0.0f)) {
    return 0;
  }
  unsigned code = 0;
  if (__float_as_uint(scale) == INF_BITS) {
    for (int i = 1; i < book.levels; ++i) {
      code += x >= __fmul_rn(book.by_code[i], scale) ? 1 : 0;
    }
    half = 0;
  }
  for (; half != 0; half /= 2) {
    const unsigned tested = code + half;
    if (tested < static_cast<unsigned>(book.levels) &&
        x >= __fmul_rn(book.by_code[tested], scale)) {
      code = tested;
    }
  }
  if (code + 1 == static_cast<unsigned>(book.levels)) {
    return code;
  }
  const float low = __fmul_rn(book.by_code[code], scale);
  const float high = __fmul_rn(book.by_code[code + 1], scale);
  // How far x is from the lower level, and how far the upper one is.
  float part, whole;
  if (rounding == STOCHASTIC_LOG) {
    const float base = log2_of(low);
    part = __fadd_rn(log2_of(x), -base);
    whole = __fadd_rn(log2_of(high), -base);
  } else if (rounding == STOCHASTIC_PRECONDITIONER) {
    const float base = preconditioner(low, s);
    part = __fadd_rn(base, -preconditioner(x, s));
    whole = __fadd_rn(base, -preconditioner(high, s));
  } else {
    part = __fadd_rn(x, -low);
    whole = __fadd_rn(high, -low);
  }
  return code + (__fmul_rn(u, whole) < part ? 1 : 0);
}

}  // namespace lowbit
