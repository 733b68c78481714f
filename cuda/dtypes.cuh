// Parameters and gradients to and from f32. Conversions are integer arithmetic or single instructions,
// so that no toolkit headers are needed; NaN leaves in canonical form.

#pragma once

#include "numerics.cuh"
#include "ptx.cuh"

namespace lowbit {

// FORM: what is kept beside a parameter of this type (weights.cuh has the others).
struct F32 {
  static constexpr int FORM = PLAIN;
  using Storage = unsigned;
  __device__ static __forceinline__ float decode(unsigned bits) { return __uint_as_float(bits); }
  __device__ static __forceinline__ unsigned encode(float x) { return __float_as_uint(canonical(x)); }
};

struct Bf16 {
  static constexpr int FORM = PLAIN;
  using Storage = unsigned short;
  __device__ static __forceinline__ float decode(unsigned bits) {
    return __uint_as_float(bits << 16);
  }
  // To nearest, ties to even.
  __device__ static __forceinline__ unsigned encode(float x) {
    const unsigned bits = __float_as_uint(x);
    return magnitude(x) > INF_BITS ? NAN_BITS >> 16
                                   : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
  __device__ static __forceinline__ unsigned pack(float low, float high) {
    return pack_bf16(low, high);
  }
};

struct F16 {
  static constexpr int FORM = PLAIN;
  using Storage = unsigned short;
  __device__ static __forceinline__ float decode(unsigned bits) { return f16_to_f32(bits); }
  __device__ static __forceinline__ unsigned pack(float low, float high) {
    return pack_f16(low, high);
  }
  // To nearest, ties to even.
  __device__ static __forceinline__ unsigned encode(float x) {
    const unsigned bits = magnitude(x);
    const unsigned sign = __float_as_uint(x) >> 16 & 0x8000;
    if (bits > INF_BITS) {
      return 0x7fff;
    }
    if (bits >= 0x477ff000) {  // 65520, half-way beyond the largest
      return sign | 0x7c00;
    }
    if (bits < 0x38800000) {  // below 2^-14: the last place of 0.5 is that of a subnormal
      const float moved = __fadd_rn(__uint_as_float(bits), 0.5f);
      return sign | (__float_as_uint(moved) - 0x3f000000);
    }
    return sign | ((bits + 0xfff + (bits >> 13 & 1)) - 0x38000000) >> 13;
  }
};

// The same for dtypes that are known when the kernel runs.
__device__ __forceinline__ int value_bytes(int dtype) { return dtype == DTYPE_F32 ? 4 : 2; }

__device__ __forceinline__ float decode_value(unsigned bits, int dtype) {
  return dtype == DTYPE_F32    ? F32::decode(bits)
         : dtype == DTYPE_BF16 ? Bf16::decode(bits)
                               : F16::decode(bits);
}

__device__ __forceinline__ unsigned encode_value(float x, int dtype) {
  return dtype == DTYPE_F32    ? F32::encode(x)
         : dtype == DTYPE_BF16 ? Bf16::encode(x)
                               : F16::encode(x);
}

// Item `at` of an array whose items have 1, 2 or 4 bytes; 0: there is none.
__device__ __forceinline__ unsigned load_bits(const void* from, int bytes, long long at) {
  return bytes == 4   ? static_cast<const unsigned*>(from)[at]
         : bytes == 2 ? static_cast<const unsigned short*>(from)[at]
         : bytes == 1 ? static_cast<const unsigned char*>(from)[at]
                      : 0u;
}

__device__ __forceinline__ void store_bits(void* to, int bytes, long long at, unsigned bits) {
  if (bytes == 4) {
    static_cast<unsigned*>(to)[at] = bits;
  } else if (bytes == 2) {
    static_cast<unsigned short*>(to)[at] = static_cast<unsigned short>(bits);
  } else if (bytes == 1) {
    static_cast<unsigned char*>(to)[at] = static_cast<unsigned char>(bits);
  }
}

// Items at .. at + 3 as one access, which `at` must be aligned for.
__device__ __forceinline__ void load_four(const void* from, int bytes, long long at,
                                          unsigned (&bits)[4]) {
  if (bytes == 4) {
    const uint4 words = reinterpret_cast<const uint4*>(from)[at / 4];
    bits[0] = words.x;
    bits[1] = words.y;
    bits[2] = words.z;
    bits[3] = words.w;
  } else if (bytes == 2) {
    const uint2 words = reinterpret_cast<const uint2*>(from)[at / 4];
    bits[0] = words.x & 0xffff;
    bits[1] = words.x >> 16;
    bits[2] = words.y & 0xffff;
    bits[3] = words.y >> 16;
  } else {
    const unsigned word = bytes == 1 ? reinterpret_cast<const unsigned*>(from)[at / 4] : 0u;
    for (int i = 0; i < 4; ++i) {
      bits[i] = word >> 8 * i & 0xff;
    }
  }
}

__device__ __forceinline__ void store_four(void* to, int bytes, long long at,
                                           const unsigned (&bits)[4]) {
  if (bytes == 4) {
    reinterpret_cast<uint4*>(to)[at / 4] = make_uint4(bits[0], bits[1], bits[2], bits[3]);
  } else if (bytes == 2) {
    reinterpret_cast<uint2*>(to)[at / 4] =
        make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
  } else if (bytes == 1) {
    reinterpret_cast<unsigned*>(to)[at / 4] =
        bits[0] | bits[1] << 8 | bits[2] << 16 | bits[3] << 24;
  }
}

// Element `at` of a tensor.
__device__ __forceinline__ float load_value(const void* tensor, int dtype, long long at) {
  return decode_value(load_bits(tensor, value_bytes(dtype), at), dtype);
}

__device__ __forceinline__ void store_value(void* tensor, int dtype, long long at, float x) {
  store_bits(tensor, value_bytes(dtype), at, encode_value(x, dtype));
}

// Four elements as they lie in memory.
template <int BYTES>
struct PackedWords {
  using Type = uint2;
};
template <>
struct PackedWords<4> {
  using Type = uint4;
};
template <typename Dtype>
using Packed = typename PackedWords<sizeof(typename Dtype::Storage)>::Type;

// Reads elements at .. at + 3 of a tensor. Wide: as one access, which `at` must be aligned for.
// Else one by one, and those from `count` on are 0.
template <typename Dtype, bool Wide>
__device__ __forceinline__ Packed<Dtype> fetch(const void* tensor, long long at, int count) {
  using Storage = typename Dtype::Storage;
  const Storage* from = static_cast<const Storage*>(tensor) + at;
  if constexpr (Wide) {
    return *reinterpret_cast<const Packed<Dtype>*>(from);
  } else {
    unsigned bits[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      bits[i] = i < count ? from[i] : 0;
    }
    if constexpr (sizeof(Storage) == 4) {
      return make_uint4(bits[0], bits[1], bits[2], bits[3]);
    } else {
      return make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16);
    }
  }
}

template <typename Dtype>
__device__ __forceinline__ void unpack(const Packed<Dtype>& bits, float (&x)[4]) {
  if constexpr (sizeof(typename Dtype::Storage) == 4) {
    x[0] = Dtype::decode(bits.x);
    x[1] = Dtype::decode(bits.y);
    x[2] = Dtype::decode(bits.z);
    x[3] = Dtype::decode(bits.w);
  } else {
    x[0] = Dtype::decode(bits.x & 0xffff);
    x[1] = Dtype::decode(bits.x >> 16);
    x[2] = Dtype::decode(bits.y & 0xffff);
    x[3] = Dtype::decode(bits.y >> 16);
  }
}

template <typename Dtype, bool Wide>
__device__ __forceinline__ void load(const void* tensor, long long at, int count, float (&x)[4]) {
  unpack<Dtype>(fetch<Dtype, Wide>(tensor, at, count), x);
}

// The same with a dtype that is known when the kernel runs, by one access.
__device__ __forceinline__ void load_values(const void* tensor, int dtype, long long at,
                                            float (&x)[4]) {
  if (dtype == DTYPE_F32) {
    load<F32, true>(tensor, at, 4, x);
  } else if (dtype == DTYPE_BF16) {
    load<Bf16, true>(tensor, at, 4, x);
  } else {
    load<F16, true>(tensor, at, 4, x);
  }
}

// Four bytes, the first in the lowest; those from `count` on are 0.
template <bool Wide>
__device__ __forceinline__ unsigned load_bytes(const signed char* at, int count) {
  if constexpr (Wide) {
    return *reinterpret_cast<const unsigned*>(at);
  } else {
    unsigned bytes = 0;
    for (int i = 0; i < 4; ++i) {
      bytes |= i < count ? (static_cast<unsigned>(at[i]) & 0xff) << 8 * i : 0;
    }
    return bytes;
  }
}

template <bool Wide>
__device__ __forceinline__ void store_bytes(signed char* at, int count, unsigned bytes) {
  if constexpr (Wide) {
    *reinterpret_cast<unsigned*>(at) = bytes;
  } else {
    for (int i = 0; i < 4; ++i) {
      if (i < count) {
        at[i] = static_cast<signed char>(bytes >> 8 * i);
      }
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
    *reinterpret_cast<uint2*>(to) = make_uint2(Dtype::pack(x[0], x[1]), Dtype::pack(x[2], x[3]));
  } else {
    for (int i = 0; i < 4; ++i) {
      if (i < count) {
        to[i] = static_cast<Storage>(Dtype::encode(x[i]));
      }
    }
  }
}

__device__ __forceinline__ void store_values(void* tensor, int dtype, long long at,
                                             const float (&x)[4]) {
  if (dtype == DTYPE_F32) {
    store<F32, true>(tensor, at, 4, x);
  } else if (dtype == DTYPE_BF16) {
    store<Bf16, true>(tensor, at, 4, x);
  } else {
    store<F16, true>(tensor, at, 4, x);
  }
}

}  // namespace lowbit
