// 4-bit codes, four per lane. A value x with scale s has the code #{i : x > RN(mid_i s)}, where
// mid_i is the midpoint of the levels i and i + 1; a code c decodes to RN(level_c s).

#pragma once

#include "numerics.cuh"
#include "warp.cuh"

namespace lowbit {

// Signed dynamic exponent (`quant::DE_SIGNED`).
__constant__ const float DE_SIGNED[16] = {-0.8875f, -0.6625f, -0.4375f, -0.2125f,
                                          -0.0775f, -0.0325f, -0.0055f, 0.0f,
                                          0.0055f,  0.0325f,  0.0775f,  0.2125f,
                                          0.4375f,  0.6625f,  0.8875f,  1.0f};

// The scale of a block whose largest magnitude is `maximum`: itself, or NaN if not finite.
__device__ __forceinline__ float block_scale(unsigned maximum) {
  return __uint_as_float(maximum < INF_BITS ? maximum : NAN_BITS);
}

// Any table of 16 levels, spread over the warp: lane i holds level and midpoint i mod 16.
// All lanes must call its functions together.
struct LaneTable {
  float level;
  float midpoint;

  __device__ explicit LaneTable(const float (&levels)[16]) {
    const int i = lane_index() % 16;
    level = levels[i];
    // Lane 15's is not used.
    midpoint = __fmul_rn(__fadd_rn(level, levels[i < 15 ? i + 1 : i]), 0.5f);
  }

  __device__ __forceinline__ float decode(unsigned code, float scale) const {
    return __fmul_rn(__shfl_sync(ALL_LANES, level, static_cast<int>(code)), scale);
  }

  // Binary search: the scaled midpoints do not decrease, as rounding keeps order. A NaN on either
  // side makes all comparisons false: code 0.
  __device__ __forceinline__ void encode(const float (&x)[4], float scale,
                                         unsigned (&codes)[4]) const {
    const float scaled = __fmul_rn(midpoint, scale);
    for (int i = 0; i < 4; ++i) {
      unsigned code = 0;
      for (unsigned half = 8; half != 0; half /= 2) {
        const float tested = __shfl_sync(ALL_LANES, scaled, static_cast<int>(code + half - 1));
        code += x[i] > tested ? half : 0;
      }
      codes[i] = code;
    }
  }
};

// Zero-free linear, level_c = (c + 1) / 16 (`quant::LINEAR`), by arithmetic.
struct Linear {
  // The code in the upper bits of the fraction of 1 + c/16; the difference is exact.
  __device__ __forceinline__ float decode(unsigned code, float scale) const {
    const float level = __fadd_rn(__uint_as_float(0x3f800000 | code << 19), -0.9375f);
    return __fmul_rn(level, scale);
  }

  // mid_i = (i + 3/2) / 16, so but for rounding the code is ceil(e) within 0 .. 15, where
  // e = 16 x/s - 3/2. With k = round(e) it is k or k + 1, even if e is off by almost 1/2 (it is by
  // about 2^-19, as |x| <= s), and the midpoint k decides. A scale near or below the smallest
  // normal number has no usable reciprocal: there, and for 0 and NaN, all midpoints are compared.
  __device__ __forceinline__ void encode(const float (&x)[4], float scale,
                                         unsigned (&codes)[4]) const {
    if (scale >= 0x1p-120f) {
      const float reciprocal = __fdiv_rn(16.0f, scale);
      for (int i = 0; i < 4; ++i) {
        const float estimate = __fmaf_rn(x[i], reciprocal, -1.5f);
        // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
        const float shifted = __fadd_rn(fmaxf(estimate, 0.0f), 12582912.0f);
        const float k = __fadd_rn(shifted, -12582912.0f);
        const float tested = __fmul_rn(__fmaf_rn(k, 0.0625f, 0.09375f), scale);
        codes[i] = (__float_as_uint(shifted) & 15) + (x[i] > tested ? 1 : 0);
      }
    } else {
      for (int i = 0; i < 4; ++i) {
        codes[i] = 0;
        for (int k = 0; k < 15; ++k) {
          const float midpoint = 0.09375f + 0.0625f * k;  // exact
          codes[i] += x[i] > __fmul_rn(midpoint, scale) ? 1 : 0;
        }
      }
    }
  }
};

// Reads the codes of four elements, two bytes, even elements in the low nibbles. Wide: as one
// access. Else byte by byte, and the codes of elements from `count` on are 0.
template <bool Wide>
__device__ __forceinline__ unsigned load_codes(const unsigned char* at, int count) {
  if constexpr (Wide) {
    return *reinterpret_cast<const unsigned short*>(at);
  } else {
    return (count > 0 ? at[0] : 0u) | (count > 2 ? at[1] : 0u) << 8;
  }
}

// The reverse; the pad nibble of a row that ends with an even element becomes 0.
template <bool Wide>
__device__ __forceinline__ void store_codes(unsigned char* at, int count,
                                            const unsigned (&codes)[4]) {
  if constexpr (Wide) {
    *reinterpret_cast<unsigned short*>(at) = static_cast<unsigned short>(
        codes[0] | codes[1] << 4 | codes[2] << 8 | codes[3] << 12);
  } else {
    for (int i = 0; i < 4; i += 2) {
      if (i < count) {
        const unsigned high = i + 1 < count ? codes[i + 1] : 0;
        at[i / 2] = static_cast<unsigned char>(codes[i] | high << 4);
      }
    }
  }
}

}  // namespace lowbit
