// 4-bit codes of 128 elements by one warp, four a lane: tables are spread over the lanes and read by
// shuffles. All lanes call these functions together.

#pragma once

#include "approx.cuh"
#include "codes.cuh"
#include "warp.cuh"

namespace lowbit {

// Scales for which codes are found by estimate and one comparison; under others, all midpoints are
// compared.
__device__ __forceinline__ bool is_usual_scale(float scale) {
  return scale >= 0x1p-100f && scale <= 0x1p100f;
}

// Every midpoint, for the scales that are not usual.
__device__ inline unsigned count_midpoints(const float (&x)[4], float scale, const Codebook& book) {
  unsigned codes = 0;
#pragma unroll 1
  for (int k = 0; k < 15; ++k) {
    const float midpoint = __fmul_rn(book.midpoints[k], scale);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      codes += x[i] > midpoint ? 1u << 4 * i : 0;
    }
  }
  return codes;
}

// A signed table that has at most one midpoint in each cell of [-1, 1]: a cell is the values x of one
// sign whose (|x| + 1/100) / 0.87 share exponent and first fraction bit. That is so for dynamic
// exponent; `kernels.rs` asks for it.
//
// The lane of a cell holds its midpoint and the number of midpoints below the cell. One estimate of
// x / s finds the cell (cells end far from midpoints, so that an estimate may be a little off), one
// exact comparison with the scaled midpoint the code.
struct SignedTable {
  float level;     // of code lane mod 16
  float midpoint;  // infinity in cells without one
  unsigned below;

  static constexpr float WIDTH = 1.0f / 0.87f;
  static constexpr float SHIFT = 0.01f / 0.87f;

  // The exponents of cells are 120 to 127; a positive cell c is in lane c + 23, a negative one in
  // lane c + 7, modulo 32.
  __device__ static __forceinline__ unsigned cell_of(float x, float over_scale) {
    const float shift = __uint_as_float((__float_as_uint(x) & 0x80000000) | __float_as_uint(SHIFT));
    const unsigned bits = __float_as_uint(__fmaf_rn(x, over_scale, shift));
    return (bits >> 22) + (bits >> 27);
  }

  __device__ __forceinline__ void fill(const Codebook& from) {
    const unsigned lane = static_cast<unsigned>(lane_index());
    level = from.by_code[lane % 16];
    midpoint = __uint_as_float(INF_BITS);
    below = 0;
    // The edge of the cell that is nearer to -1.
    const bool positive = ((lane - 23) & 31) < 16;
    const unsigned cell = positive ? (lane - 23) & 31 : (lane - 7) & 31;
    const unsigned edge = (240 + cell + (positive ? 0 : 1)) << 22;
    for (int i = 0; i < 15; ++i) {
      const float x = from.midpoints[i];
      const float y = __fmaf_rn(__uint_as_float(magnitude(x)), WIDTH, SHIFT);
      const bool under = positive ? x < 0.0f || y < __uint_as_float(edge)
                                  : x < 0.0f && y >= __uint_as_float(edge);
      below += under ? 1 : 0;
      if ((cell_of(x, WIDTH) & 31) == lane) {
        midpoint = x;
      }
    }
  }

  // Levels times scale, in the lanes of their codes modulo 16.
  __device__ __forceinline__ float scaled_levels(float scale) const { return __fmul_rn(level, scale); }

  // The four codes in the low 16 bits, for a usual scale.
  __device__ __forceinline__ unsigned encode(const float (&x)[4], float scale) const {
    const float over_scale = __fmul_rn(approximate_reciprocal(scale), WIDTH);
    const float scaled = __fmul_rn(midpoint, scale);
    unsigned codes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int cell = static_cast<int>(cell_of(x[i], over_scale));
      const float tested = __shfl_sync(ALL_LANES, scaled, cell);
      codes += __shfl_sync(ALL_LANES, below, cell) << 4 * i;
      codes = add_if_greater(codes, 1u << 4 * i, x[i], tested);
    }
    return codes;
  }
};

// Zero-free linear, level_c = (c + 1) / 16, of values that are not negative.
//
// With t = floor(16 x / s), estimated, the code is t - 1 or t: the midpoint (t + 1/2) / 16 decides.
// An estimate that is a little off changes t only where x is far from every midpoint.
struct LinearTable {
  float level;     // of code lane mod 16
  float midpoint;  // that decides in lane t; code 0 for t = 0, 15 for t = 16

  __device__ __forceinline__ void fill(const Codebook& from) {
    const int lane = lane_index();
    level = from.by_code[lane % 16];
    midpoint = lane == 0   ? -__uint_as_float(INF_BITS)
               : lane < 16 ? from.midpoints[lane - 1]
                           : __uint_as_float(INF_BITS);
  }

  // The four codes in the low 16 bits, for a usual scale.
  __device__ __forceinline__ unsigned encode(const float (&x)[4], float scale) const {
    const float over_scale = __fmul_rn(approximate_reciprocal(scale), 16.0f);
    const float scaled = __fmul_rn(midpoint, scale);
    unsigned codes = 0u - 0x1111u;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Rounded towards zero at 2^23, the integer part is left in the low bits; the others are
      // shifted beyond the 16 that are stored.
      const unsigned t = __float_as_uint(__fmaf_rz(x[i], over_scale, 8388608.0f));
      const float tested = __shfl_sync(ALL_LANES, scaled, static_cast<int>(t));
      codes += t << 4 * i;
      codes = add_if_greater(codes, 1u << 4 * i, x[i], tested);
    }
    return codes;
  }
};

// The values of four codes, from scaled levels.
__device__ __forceinline__ void decode_nibbles(unsigned codes, float scaled_levels, float (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[i] = __shfl_sync(ALL_LANES, scaled_levels, static_cast<int>(codes >> 4 * i), 16);
  }
}

// The same if only the 16 lanes from FIRST on have the levels.
template <int FIRST>
__device__ __forceinline__ void decode_nibbles_of(unsigned codes, float scaled_levels,
                                                  float (&x)[4]) {
  const unsigned even = (codes & 0x0f0f) | FIRST * 0x0101;
  const unsigned odd = (codes >> 4 & 0x0f0f) | FIRST * 0x0101;
  x[0] = __shfl_sync(ALL_LANES, scaled_levels, static_cast<int>(even));
  x[1] = __shfl_sync(ALL_LANES, scaled_levels, static_cast<int>(odd));
  x[2] = __shfl_sync(ALL_LANES, scaled_levels, static_cast<int>(even >> 8));
  x[3] = __shfl_sync(ALL_LANES, scaled_levels, static_cast<int>(odd >> 8));
}

// Reads the codes of four elements, two bytes, even elements in the low nibbles. Wide: as one
// access. Else byte by byte, and the codes of elements from `count` on are 0.
template <bool Wide>
__device__ __forceinline__ unsigned load_nibbles(const unsigned char* at, int count) {
  if constexpr (Wide) {
    return *reinterpret_cast<const unsigned short*>(at);
  } else {
    return (count > 0 ? at[0] : 0u) | (count > 2 ? at[1] : 0u) << 8;
  }
}

// The reverse, of the low 16 bits; the pad nibble of a row that ends with an even element becomes 0.
template <bool Wide>
__device__ __forceinline__ void store_nibbles(unsigned char* at, int count, unsigned codes) {
  if constexpr (Wide) {
    *reinterpret_cast<unsigned short*>(at) = static_cast<unsigned short>(codes);
  } else {
    if (count > 0) {
      at[0] = static_cast<unsigned char>(codes & (count == 1 ? 0xf : 0xff));
    }
    if (count > 2) {
      at[1] = static_cast<unsigned char>(codes >> 8 & (count == 3 ? 0xf : 0xff));
    }
  }
}

// The codes of a warp's block in shared memory, NIBBLES bytes of them: copied four bytes at a time, those of two
// lanes, and a lane's own.
constexpr int NIBBLES = 64;

__device__ __forceinline__ void copy_nibbles(SharedAddress to, const unsigned char* own) {
  if (lane_index() % 2 == 0) {
    copy_async<4>(to + 2 * lane_index(), own);
  }
}

__device__ __forceinline__ unsigned own_nibbles(SharedAddress from) {
  unsigned short codes;
  load_shared(from + 2 * lane_index(), codes);
  return codes;
}

}  // namespace lowbit
