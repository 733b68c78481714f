// The arithmetic of `src/optimizer` and `src/numerics`, operation by operation: IEEE-754 binary32,
// round to nearest even, fma exactly where written. The intrinsics say so whatever the compiler's
// options.
//
// NaN: every binary32 operation of the GPU returns 0x7fffffff for it, which is the library's
// canonical NaN, so a result needs no further care; only a sign change keeps what it is given.

#pragma once

#include "params.cuh"

namespace lowbit {

constexpr unsigned NAN_BITS = 0x7fffffff;
constexpr unsigned INF_BITS = 0x7f800000;

// Ordered like |x| for finite values, then infinity, then NaN: maxima do not depend on order.
__device__ __forceinline__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffff; }

__device__ __forceinline__ unsigned canonical_magnitude(unsigned bits) {
  return bits > INF_BITS ? NAN_BITS : bits;
}

__device__ __forceinline__ float canonical(float x) {
  return magnitude(x) > INF_BITS ? __uint_as_float(NAN_BITS) : x;
}

// beta^t by binary powering in binary64: multiplications only.
__device__ inline double power(float beta, unsigned t) {
  double result = 1.0;
  for (double base = beta; t != 0; t >>= 1) {
    if (t & 1) {
      result = __dmul_rn(result, base);
    }
    base = __dmul_rn(base, base);
  }
  return result;
}

// The scalars of a step whose hyper-parameters are in device memory; the same bits as on the host.
__device__ inline Scalars compute_scalars(const float* hyper, int step, int flags) {
  const float lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2];
  const unsigned t = step < 1 ? 1 : step;
  const double bc1 = __dadd_rn(1.0, -power(beta1, t));
  const double bc2 = __dadd_rn(1.0, -power(beta2, t));
  const float grad_scale = __fmul_rn(hyper[5], hyper[6]);
  Scalars s;
  s.beta1 = beta1;
  s.one_minus_beta1 = __fadd_rn(1.0f, -beta1);
  s.beta2 = beta2;
  s.one_minus_beta2 = __fadd_rn(1.0f, -beta2);
  s.eps = hyper[3];
  s.lr_bc1 = __double2float_rn(__ddiv_rn(lr, bc1));
  s.lr_wd = flags & COUPLED ? 0.0f : __fmul_rn(lr, hyper[4]);
  s.inv_sqrt_bc2 = __double2float_rn(__ddiv_rn(1.0, __dsqrt_rn(bc2)));
  s.grad_scale = flags & MAXIMIZE ? -grad_scale : grad_scale;
  s.skip = hyper[7] != 0.0f;
  s.l2 = flags & COUPLED ? hyper[4] : 0.0f;
  s.inv_bc2 = __double2float_rn(__ddiv_rn(1.0, bc2));
  return s;
}

// R1
__device__ __forceinline__ float scale_gradient(float g, const Scalars& s) {
  return __fmul_rn(s.grad_scale, g);
}

// A scaled gradient counts as non-finite when its square does not fit in f32.
__device__ __forceinline__ bool non_finite(float g) {
  return magnitude(__fmul_rn(g, g)) >= INF_BITS;
}

// R3
__device__ __forceinline__ float first_moment(float g, float m, const Scalars& s) {
  return __fmaf_rn(s.beta1, m, __fmul_rn(s.one_minus_beta1, g));
}

// R2, R4
__device__ __forceinline__ float second_moment(float g, float v, const Scalars& s) {
  return __fmaf_rn(s.beta2, v, __fmul_rn(s.one_minus_beta2, __fmul_rn(g, g)));
}

// R5 to R7, given the new m, what divides, and RN(lr wd p).
__device__ __forceinline__ float update_of(float m, float divisor, float decay, const Scalars& s) {
  const float d = __fmaf_rn(__fsqrt_rn(divisor), s.inv_sqrt_bc2, s.eps);  // R5
  const float q = __fdiv_rn(m, d);                                       // R6
  return -__fmaf_rn(s.lr_bc1, q, decay);                                 // R7
}

// `numerics::log2`.
__device__ inline float log2_of(float x) {
  if (x == 0.0f) {
    return -__uint_as_float(INF_BITS);
  }
  if (!(x > 0.0f)) {
    return __uint_as_float(NAN_BITS);
  }
  float bias = 0.0f;
  if (x < 0x1p-126f) {
    x = __fmul_rn(x, 8388608.0f);
    bias = -23.0f;
  }
  const unsigned shifted = __float_as_uint(x) - 0x3f3504f3;
  const float exponent = __fadd_rn(static_cast<float>(static_cast<int>(shifted) >> 23), bias);
  const float f = __uint_as_float((shifted & 0x007fffff) + 0x3f3504f3);
  const float s = __fdiv_rn(__fadd_rn(f, -1.0f), __fadd_rn(f, 1.0f));
  const float z = __fmul_rn(s, s);
  float series = __fmaf_rn(z, 1.0f / 9.0f, 1.0f / 7.0f);
  series = __fmaf_rn(series, z, 1.0f / 5.0f);
  series = __fmaf_rn(series, z, 1.0f / 3.0f);
  series = __fmaf_rn(series, z, 1.0f);
  return __fmaf_rn(__fmul_rn(s, series), 2.88539f, exponent);
}

}  // namespace lowbit
