// The arithmetic of `backend/cpu/reference.rs`, operation by operation: IEEE-754 binary32, round to
// nearest even, fma exactly where written. The intrinsics say so whatever the compiler's options.
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
__device__ inline Scalars compute_scalars(const float* hyper, int step) {
  const float lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2];
  const unsigned t = step < 1 ? 1 : step;
  const double bc1 = __dadd_rn(1.0, -power(beta1, t));
  const double bc2 = __dadd_rn(1.0, -power(beta2, t));
  Scalars s;
  s.beta1 = beta1;
  s.one_minus_beta1 = __fadd_rn(1.0f, -beta1);
  s.beta2 = beta2;
  s.one_minus_beta2 = __fadd_rn(1.0f, -beta2);
  s.eps = hyper[3];
  s.lr_bc1 = __double2float_rn(__ddiv_rn(lr, bc1));
  s.lr_wd = __fmul_rn(lr, hyper[4]);
  s.inv_sqrt_bc2 = __double2float_rn(__ddiv_rn(1.0, __dsqrt_rn(bc2)));
  s.grad_scale = __fmul_rn(hyper[5], hyper[6]);
  s.skip = hyper[7] != 0.0f;
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

struct Element {
  float param;
  float update;
  float m;
  float v;
};

// AdamW on one element; g has been through R1.
__device__ __forceinline__ Element adamw(float p, float g, float m, float v, const Scalars& s) {
  Element e;
  const float w = __fmul_rn(g, g);                                          // R2
  e.m = __fmaf_rn(s.beta1, m, __fmul_rn(s.one_minus_beta1, g));             // R3
  e.v = __fmaf_rn(s.beta2, v, __fmul_rn(s.one_minus_beta2, w));             // R4
  const float d = __fmaf_rn(__fsqrt_rn(e.v), s.inv_sqrt_bc2, s.eps);        // R5
  const float q = __fdiv_rn(e.m, d);                                        // R6
  const float u = -__fmaf_rn(s.lr_bc1, q, __fmul_rn(s.lr_wd, p));           // R7
  e.param = __fadd_rn(p, u);                                                // R8
  e.update = canonical(u);
  return e;
}

}  // namespace lowbit
