// Root and quotient without a check of each operand's range: operation by operation what NVIDIA's
// compiler makes of sqrt.rn and div.rn where its own checks pass, for operands that are known to be
// far from the ends of binary32's range (where these operations scale exactly, so that its guarantee
// of correct rounding holds for all of them). A test tries roots of all significands and many
// quotients on the host, where the approximate reciprocal is off by up to one unit at random.

#pragma once

#include "numerics.cuh"
#include "ptx.cuh"

namespace lowbit {

// RN(sqrt(x)) for 2^-100 <= x <= 2^100.
__device__ __forceinline__ float root_in_range(float x) {
  const float y = approximate_reciprocal_root(x);
  const float s = __fmul_rn(x, y);
  const float h = __fmul_rn(y, 0.5f);
  return __fmaf_rn(__fmaf_rn(-s, s, x), h, s);
}

// RN(n / d) where d, the quotient and n 2^-48 are well within the range, or n is +0.
__device__ __forceinline__ float quotient_in_range(float n, float d) {
  const float estimate = approximate_reciprocal(d);
  const float r = __fmaf_rn(estimate, __fmaf_rn(-d, estimate, 1.0f), estimate);
  const float q = __fmul_rn(n, r);
  return __fmaf_rn(r, __fmaf_rn(-d, q, n), q);
}

// What must hold of the operands of a step for `update_in_range`: first of its scalars, then of the
// new moments. The divisor is then in [2^-60, 2^51], the quotient in [2^-121, 2^120] or 0.
__device__ __forceinline__ bool scalars_in_range(const Scalars& s) {
  return s.eps >= 0x1p-60f && s.eps <= 0x1p40f && s.inv_sqrt_bc2 >= 1.0f && s.inv_sqrt_bc2 <= 0x1p20f;
}
constexpr float LEAST_M = 0x1p-70f;
constexpr float LEAST_V = 0x1p-100f;
constexpr float LARGEST_MOMENT = 0x1p60f;

// R5 to R7 as `update_of` does them.
__device__ __forceinline__ float update_in_range(float m, float v, float decay, const Scalars& s) {
  const float d = __fmaf_rn(root_in_range(v), s.inv_sqrt_bc2, s.eps);  // R5
  return -__fmaf_rn(s.lr_bc1, quotient_in_range(m, d), decay);         // R6, R7
}

}  // namespace lowbit
