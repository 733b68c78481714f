// 4-bit codes of 128 elements by one warp, four a lane: tables are spread over the lanes and read by
// shuffles. All lanes call these functions together.

#pragma once

#include "approx.cuh"
#include "codes.cuh"
#include "warp.cuh"

namespace lowbit {

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

// The same of values that have a scale each.
__device__ inline unsigned count_midpoints(const float (&x)[4], const unsigned (&scales)[4],
                                           const Codebook& book) {
  unsigned codes = 0;
#pragma unroll 1
  for (int k = 0; k < 15; ++k) {
    const float midpoint = book.midpoints[k];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float tested = __fmul_rn(midpoint, __uint_as_float(scales[i]));
      codes += x[i] > tested ? 1u << 4 * i : 0;
    }
  }
  return codes;
}

// Codes rounded at random, under a scale that is not usual.
__device__ inline unsigned stochastic_nibbles(const float (&x)[4], float scale,
                                              const Codebook& book, uint2 draws) {
  const unsigned drawn[4] = {draws.x & 0xffff, draws.x >> 16, draws.y & 0xffff, draws.y >> 16};
  unsigned code[4] = {};
  for_each_of_four(
      [&](int i) {
        return stochastic_code(chosen(x, i), scale, book, 8, STOCHASTIC, Scalars{},
                               uniform(chosen(drawn, i)));
      },
      code);
  return code[0] | code[1] << 4 | code[2] << 8 | code[3] << 12;
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

  // For any scale, of all lanes; there is nothing to draw.
  template <typename Draws>
  __device__ __forceinline__ unsigned encode(const float (&x)[4], float scale,
                                             const Codebook& book, Draws) const {
    const unsigned codes = encode(x, scale);
    return is_usual_scale(scale) ? codes : count_midpoints(x, scale, book);
  }
};

// NF4, rounded at random: the lower neighbour of x, low, or the upper one, which is a step above, if
// RN(u step) < RN(x - low) for the number u that is drawn.
//
// A cell is the values x whose x / s times WIDTH is rounded to the same integer, from -13 to 13. The
// levels above the lowest are in cells of their own, and 0.136 or more of a cell's width from its
// edges, so that an estimate finds the cell: one that is off has no level between it and x. The lane
// of a cell holds a level that decides: the cell's, or where there is none the next below, or above
// the lowest; then one exact comparison with the scaled level finds the lower neighbour.
struct Nf4Table {
  float level;     // of code lane mod 16
  float next;      // of code lane + 1; the highest behind the highest
  float decides;   // in cell lane, modulo 32
  unsigned below;  // the code of what is less than that

  static constexpr float WIDTH = 12.79f;
  // Added to a number below 2^22, it leaves that rounded to an integer in the low bits.
  static constexpr float TO_INTEGER = 12582912.0f;  // 3 x 2^22

  __device__ __forceinline__ void fill(const Codebook& from) {
    const int lane = lane_index();
    const int cell = (lane ^ 16) - 16;
    level = from.by_code[lane % 16];
    next = from.by_code[lane + 1];
    below = 0;
    for (int code = 2; code < 16; ++code) {
      below += __float2int_rn(__fmul_rn(from.by_code[code], WIDTH)) <= cell ? 1 : 0;
    }
    decides = from.by_code[below + 1];
  }

  __device__ __forceinline__ float scaled_levels(float scale) const { return __fmul_rn(level, scale); }

  // The four codes in the low 16 bits, for a usual scale, by draws of 16 bits each.
  //
  // An estimate of x / s times WIDTH is off by 2^-18, and a scaled level by as little of its cell.
  __device__ __forceinline__ unsigned encode(const float (&x)[4], float scale, uint2 draws) const {
    const float over_scale = __fmul_rn(approximate_reciprocal(scale), WIDTH);
    const float tested = __fmul_rn(decides, scale);
    const float levels = scaled_levels(scale);
    // For `scaled_uniform`; 0 above the highest level, which no value is above.
    const float steps = __fmul_rn(__fadd_rn(__fmul_rn(next, scale), -levels), 0x1p-16f);
    unsigned codes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int cell =
          static_cast<int>(__float_as_uint(__fmaf_rn(x[i], over_scale, TO_INTEGER)));
      const float deciding = __shfl_sync(ALL_LANES, tested, cell);
      unsigned code = __shfl_sync(ALL_LANES, below, cell);
      code = add_unless_less(code, 1, x[i], deciding);
      const float low = __shfl_sync(ALL_LANES, levels, static_cast<int>(code));
      const float step = __shfl_sync(ALL_LANES, steps, static_cast<int>(code));
      const float u = scaled_uniform(i < 2 ? draws.x : draws.y, i % 2 != 0);
      codes += code << 4 * i;
      codes = add_if_greater(codes, 1u << 4 * i, __fadd_rn(x[i], -low), __fmul_rn(u, step));
    }
    return codes;
  }

  // For any scale, of all lanes.
  template <typename Draws>
  __device__ __forceinline__ unsigned encode(const float (&x)[4], float scale,
                                             const Codebook& book, Draws draws) const {
    const uint2 drawn = draws();
    const unsigned codes = encode(x, scale, drawn);
    return is_usual_scale(scale) ? codes : stochastic_nibbles(x, scale, book, drawn);
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

  // Each under its own scale, without the shuffles. Usual: no value is below 2^-100, none above its
  // scale, and no scale above 2^100.
  __device__ __forceinline__ unsigned encode(const float (&x)[4], const unsigned (&scales)[4],
                                             bool usual, const Codebook& book) const {
    unsigned codes = 0u - 0x1111u;
    for (int i = 0; i < 4; ++i) {
      const float scale = __uint_as_float(scales[i]);
      const float over_scale = __fmul_rn(approximate_reciprocal(scale), 16.0f);
      const unsigned found = __float_as_uint(__fmaf_rz(x[i], over_scale, 8388608.0f));
      // The code of everything below the first midpoint is 0.
      const unsigned t = found > 0x4b000001 ? found : 0x4b000001;
      const float floor = __fadd_rn(__uint_as_float(t), -8388608.0f);
      const float tested = __fmul_rn(__fmaf_rn(floor, 0.0625f, 0.03125f), scale);
      codes += t << 4 * i;
      codes = add_if_greater(codes, 1u << 4 * i, x[i], tested);
    }
    return usual ? codes : count_midpoints(x, scales, book);
  }
};

// The squares of those levels, of values that are not negative and no larger than their scales.
//
// With y = 16 sqrt(x / s), the midpoint between the codes t - 1 and t is where y^2 is (t + 1/2)^2 + 1/4,
// so y above t + 1/2, by 1/12 at most: y is above c + 1/2 for a code c > 0, and at most c + 19/12 for
// one below 15. Of an estimate that is too small, by between 0 and 1/60, the floor t is c or c + 1,
// and at most 15; as above, the midpoint below t decides, RN(((t + 1/2)^2 + 1/4) / 256 s).
struct SquareTable {
  float level;  // of code lane mod 16

  // 16 (1 - 2^-10): two roots, off by 2^-22.9 each, and two roundings are a factor of 1 +- 2^-21, so an
  // estimate is less than y, and by less than 16 (2^-10 + 2^-21).
  static constexpr float SHORT_OF_16 = 16.0f - 1.0f / 64.0f;

  __device__ __forceinline__ void fill(const Codebook& from) {
    level = from.by_code[lane_index() % 16];
  }

  // As above.
  __device__ __forceinline__ unsigned encode(const float (&x)[4], const unsigned (&scales)[4],
                                             bool usual, const Codebook& book) const {
    unsigned codes = 0u - 0x1111u;
    for (int i = 0; i < 4; ++i) {
      const float scale = __uint_as_float(scales[i]);
      // As `root_in_range` begins, which the update needs anyway.
      const float root = __fmul_rn(x[i], approximate_reciprocal_root(x[i]));
      const float over_root = __fmul_rn(approximate_reciprocal_root(scale), SHORT_OF_16);
      const unsigned found = __float_as_uint(__fmaf_rz(root, over_root, 8388608.0f));
      // The code of everything below the first midpoint is 0.
      const unsigned t = found > 0x4b000001 ? found : 0x4b000001;
      // (t + 1/2) / 16, of the integer in the low bits.
      const float middle = __fmaf_rn(__uint_as_float(t), 0.0625f, -524287.96875f);
      const float tested = __fmul_rn(__fmaf_rn(middle, middle, 0x1p-10f), scale);
      codes += t << 4 * i;
      codes = add_if_greater(codes, 1u << 4 * i, x[i], tested);
    }
    return usual ? codes : count_midpoints(x, scales, book);
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
// lanes, and a lane's own. Of two blocks behind each other, `own` is the lane's of the first.
constexpr int NIBBLES = 64;

template <int BLOCKS = 1>
__device__ __forceinline__ void copy_nibbles(SharedAddress to, const unsigned char* own) {
  if constexpr (BLOCKS == 2) {
    copy_async<4>(to + 4 * lane_index(), own + 2 * lane_index());
  } else if (lane_index() % 2 == 0) {
    copy_async<4>(to + 2 * lane_index(), own);
  }
}

__device__ __forceinline__ unsigned own_nibbles(SharedAddress from) {
  unsigned short codes;
  load_shared(from + 2 * lane_index(), codes);
  return codes;
}

}  // namespace lowbit
