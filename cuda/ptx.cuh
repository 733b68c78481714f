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

// The same unless x < y, neither of them NaN.
__device__ __forceinline__ unsigned add_unless_less(unsigned sum, unsigned more, float x, float y) {
  asm("{.reg .pred reached; setp.ge.f32 reached, %1, %2; @reached add.u32 %0, %0, %3;}"
      : "+r"(sum)
      : "f"(x), "f"(y), "r"(more));
  return sum;
}

// The whole product. Of that of 64-bit numbers ptxas leaves additions of upper halves that are 0.
__device__ __forceinline__ unsigned long long multiply_wide(unsigned x, unsigned y) {
  unsigned long long z;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(z) : "r"(x), "r"(y));
  return z;
}

// The significand of a normal number that is not negative, as an integer of 24 bits: one operation.
__device__ __forceinline__ unsigned significand_of(unsigned bits) {
  unsigned y;
  // 0xea is (a & b) | c: a bit of it for each three bits of a, b and c.
  asm("lop3.b32 %0, %1, 0x7fffff, %2, 0xea;" : "=r"(y) : "r"(bits), "r"(0x800000));
  return y;
}

// x 2^places, 0 for 64 places or more and for fewer than none.
__device__ __forceinline__ unsigned long long shift_left(unsigned x, int places) {
  unsigned long long y;
  asm("{.reg .u64 wide; cvt.u64.u32 wide, %1; shl.b64 %0, wide, %2;}"
      : "=l"(y)
      : "r"(x), "r"(places));
  return y;
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

// An address in shared memory: arithmetic with it takes half the instructions of that with pointers.
using SharedAddress = unsigned;

__device__ __forceinline__ SharedAddress shared_address(const void* shared) {
  SharedAddress address;
  asm("{.reg .u64 to; cvta.to.shared.u64 to, %1; cvt.u32.u64 %0, to;}"
      : "=r"(address)
      : "l"(shared));
  return address;
}

// Starts a copy of 4, 8 or 16 bytes, aligned to their number, from device to shared memory. It is done
// when `await_copies` has returned, for the thread that started it.
template <int BYTES>
__device__ __forceinline__ void copy_async(SharedAddress to, const void* from) {
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES)
                 : "memory");
  }
}

// The same, or zeros from nowhere.
template <int BYTES>
__device__ __forceinline__ void copy_or_zero_async(SharedAddress to, const void* from, bool there) {
  const int bytes = there ? BYTES : 0;
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES),
                 "r"(bytes)
                 : "memory");
  }
}

// What was started since the last call is one group.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all but the last N groups.
template <int N>
__device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Reads what copies have brought.
__device__ __forceinline__ void load_shared(SharedAddress from, unsigned short& to) {
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(to) : "r"(from) : "memory");
}
__device__ __forceinline__ void load_shared(SharedAddress from, unsigned& to) {
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(to) : "r"(from) : "memory");
}
__device__ __forceinline__ void load_shared(SharedAddress from, float& to) {
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(to) : "r"(from) : "memory");
}
__device__ __forceinline__ void load_shared(SharedAddress from, uint2& to) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(to.x), "=r"(to.y) : "r"(from) : "memory");
}
__device__ __forceinline__ void load_shared(SharedAddress from, uint4& to) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
               : "r"(from)
               : "memory");
}

}  // namespace lowbit

#endif
