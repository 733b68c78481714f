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

// Scales for which nibbles.cuh and bytes.cuh find codes by an estimate and one comparison.
__device__ __forceinline__ bool is_usual_scale(float scale) {
  return scale >= 0x1p-100f && scale <= 0x1p100f;
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

// Item i of four in registers.
template <typename Item>
__device__ __forceinline__ Item chosen(const Item (&items)[4], int i) {
  return i < 2 ? i == 0 ? items[0] : items[1] : i == 2 ? items[2] : items[3];
}

// The four results of a function that is too long to be there four times.
template <typename Function>
__device__ __forceinline__ void for_each_of_four(Function function, unsigned (&result)[4]) {
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    const unsigned last = function(i);
    result[0] = result[1];
    result[1] = result[2];
    result[2] = result[3];
    result[3] = last;
  }
}

// The nearest codes of four values, whose comparisons do not wait for each other.
__device__ __forceinline__ void nearest_codes(const float (&x)[4], const float (&scale)[4],
                                              const Codebook& book, unsigned half,
                                              unsigned (&code)[4]) {
  bool infinite = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    infinite = infinite || __float_as_uint(scale[i]) == INF_BITS;
    code[i] = 0;
  }
  if (infinite) {
    for_each_of_four([&](int i) { return nearest_code(chosen(x, i), chosen(scale, i), book, half); },
                     code);
    return;
  }
  for (; half != 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float midpoint = __fmul_rn(book.midpoints[code[i] + half - 1], scale[i]);
      code[i] += x[i] > midpoint ? half : 0;
    }
  }
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
