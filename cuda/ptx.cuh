// Instructions that CUDA C++ has no function for without the toolkit's headers. On the host the shim
// has them (`tests/cuda/shim.hpp`).

#pragma once

#ifndef LOWBIT_SHIM

namespace lowbit {

__device__ __forceinline__ float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float approximate_reciprocal_root(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The larger one, NaN if either is.
__device__ __forceinline__ float max_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// sum, and `more` if x > y: one comparison and one predicated addition.
__device__ __forceinline__ unsigned add_if_greater(unsigned sum, unsigned more, float x, float y) {
  asm("{.reg .pred greater; setp.gt.f32 greater, %1, %2; @greater add.u32 %0, %0, %3;}"
      : "+r"(sum)
      : "f"(x), "f"(y), "r"(more));
  return sum;
}

// Two values rounded to bf16, to nearest even, the first in the low half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
  unsigned y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// The same to f16.
__device__ __forceinline__ unsigned pack_f16(float low, float high) {
  unsigned y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// Exact, subnormals too; of a NaN only that it is one.
__device__ __forceinline__ float f16_to_f32(unsigned bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(static_cast<unsigned short>(bits)));
  return y;
}

}  // namespace lowbit

#endif
