// Four consecutive elements of a tensor, to and from registers. Conversions are integer
// arithmetic, so that no toolkit headers are needed.

#pragma once

#include "numerics.cuh"

namespace lowbit {

struct F32 {
  using Storage = unsigned;
  __device__ static __forceinline__ float decode(unsigned bits) { return __uint_as_float(bits); }
  __device__ static __forceinline__ unsigned encode(float x) { return __float_as_uint(x); }
};

struct Bf16 {
  using Storage = unsigned short;
  __device__ static __forceinline__ float decode(unsigned bits) {
    return __uint_as_float(bits << 16);
  }
  // To nearest, ties to even; the canonical NaN of the wider type becomes that of this one.
  __device__ static __forceinline__ unsigned encode(float x) {
    const unsigned bits = __float_as_uint(x);
    return magnitude(x) > INF_BITS ? NAN_BITS >> 16
                                   : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
};

// Reads elements at .. at + 3 of a tensor. Wide: as one access, which `at` must be aligned for.
// Else one by one, and those from `count` on are 0.
template <typename Dtype, bool Wide>
__device__ __forceinline__ void load(const void* tensor, long long at, int count, float (&x)[4]) {
  using Storage = typename Dtype::Storage;
  const Storage* from = static_cast<const Storage*>(tensor) + at;
  if constexpr (Wide && sizeof(Storage) == 4) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    x[0] = Dtype::decode(bits.x);
    x[1] = Dtype::decode(bits.y);
    x[2] = Dtype::decode(bits.z);
    x[3] = Dtype::decode(bits.w);
  } else if constexpr (Wide) {
    const uint2 bits = *reinterpret_cast<const uint2*>(from);
    x[0] = Dtype::decode(bits.x & 0xffff);
    x[1] = Dtype::decode(bits.x >> 16);
    x[2] = Dtype::decode(bits.y & 0xffff);
    x[3] = Dtype::decode(bits.y >> 16);
  } else {
    for (int i = 0; i < 4; ++i) {
      x[i] = i < count ? Dtype::decode(from[i]) : 0.0f;
    }
  }
}

// The reverse: rounds to the dtype and writes.
template <typename Dtype, bool Wide>
__device__ __forceinline__ void store(void* tensor, long long at, int count, const float (&x)[4]) {
  using Storage = typename Dtype::Storage;
  Storage* to = static_cast<Storage*>(tensor) + at;
  if constexpr (Wide && sizeof(Storage) == 4) {
    *reinterpret_cast<uint4*>(to) = make_uint4(Dtype::encode(x[0]), Dtype::encode(x[1]),
                                               Dtype::encode(x[2]), Dtype::encode(x[3]));
  } else if constexpr (Wide) {
    *reinterpret_cast<uint2*>(to) = make_uint2(Dtype::encode(x[0]) | Dtype::encode(x[1]) << 16,
                                               Dtype::encode(x[2]) | Dtype::encode(x[3]) << 16);
  } else {
    for (int i = 0; i < 4; ++i) {
      if (i < count) {
        to[i] = static_cast<Storage>(Dtype::encode(x[i]));
      }
    }
  }
}

}  // namespace lowbit
