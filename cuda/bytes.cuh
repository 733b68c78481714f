// 8-bit codes of four elements a lane, by tables in shared memory: the level of a code, and of a value
// the one midpoint that decides its code.
//
// A cell is the magnitudes y = |x| / (0.78 s) that share exponent and first seven fraction bits. A table
// must have at most one midpoint in each cell, all of them far from the cell's ends, so that an estimate
// of y may be a little off, and its negative midpoints must be those above 0 mirrored, as far as there
// are any. That is so for dynamic exponent; `kernels.rs` asks for it.

#pragma once

#include "approx.cuh"
#include "codes.cuh"
#include "warp.cuh"

namespace lowbit {

struct ByteTable {
  static constexpr float WIDTH = 1.0f / 0.78f;
  static constexpr int FRACTION_BITS = 7;
  // Cells from 2^-23 to 2; what is below counts to the first, and has no midpoint.
  static constexpr int FIRST = (127 - 23) << FRACTION_BITS;
  static constexpr int CELLS = 24 << FRACTION_BITS;

  float levels[256];
  float midpoints[256];        // those above 0, and infinity behind them
  unsigned char below[CELLS];  // midpoints above 0 and below the cell
  int zero;                    // the negative ones: the code of 0

  __device__ static __forceinline__ int cell_of(float x, float over_scale) {
    const unsigned bits = magnitude(__fmul_rn(x, over_scale));
    const int cell = static_cast<int>(bits >> (23 - FRACTION_BITS)) - FIRST;
    // Above are only the values that a lane computes behind the end of a row.
    return cell < 0 ? 0 : cell < CELLS ? cell : CELLS - 1;
  }

  // How many of 255 midpoints times `width` are below an edge.
  __device__ static __forceinline__ int count_below(const float* midpoints, float width, float edge) {
    int count = 0;
    for (int half = 128; half != 0; half /= 2) {
      count += __fmul_rn(midpoints[count + half - 1], width) < edge ? half : 0;
    }
    return count;
  }

  // All threads of a thread block call it together.
  __device__ inline void fill(const Codebook& from) {
    const int negative = count_below(from.midpoints, 1.0f, 0.0f);
    if (threadIdx.x == 0) {
      zero = negative;
    }
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += blockDim.x) {
      levels[i] = from.by_code[i];
      midpoints[i] = i + negative < 256 ? from.midpoints[i + negative] : __uint_as_float(INF_BITS);
    }
    __syncthreads();
    for (int cell = static_cast<int>(threadIdx.x); cell < CELLS; cell += blockDim.x) {
      // The least y of the cell.
      const float edge =
          __uint_as_float(static_cast<unsigned>(FIRST + cell) << (23 - FRACTION_BITS));
      below[cell] =
          static_cast<unsigned char>(cell == 0 ? 0 : count_below(midpoints, WIDTH, edge));
    }
    __syncthreads();
  }

  __device__ __forceinline__ void decode(unsigned codes, float scale, float (&x)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = __fmul_rn(levels[codes >> 8 * i & 0xff], scale);
    }
  }

  // For a usual scale. Below 0 a midpoint counts from equality on, as it is
  // the mirrored one that x is not above.
  __device__ __forceinline__ unsigned encode(const float (&x)[4], float scale) const {
    const float over_scale = __fmul_rn(approximate_reciprocal(scale), WIDTH);
    unsigned codes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int count = below[cell_of(x[i], over_scale)];
      const unsigned midpoint = __float_as_uint(__fmul_rn(midpoints[count], scale));
      const unsigned negative = __float_as_uint(x[i]) >> 31;
      const int above = count + (magnitude(x[i]) + negative > midpoint ? 1 : 0);
      const int code = negative ? zero - above : zero + above;
      codes |= static_cast<unsigned>(code > 0 ? code : 0) << 8 * i;
    }
    return codes;
  }

  // For any scale.
  __device__ __forceinline__ unsigned encode(const float (&x)[4], float scale,
                                             const Codebook& book) const {
    if (is_usual_scale(scale)) {
      return encode(x, scale);
    }
    unsigned code[4] = {};
    for_each_of_four([&](int i) { return nearest_code(chosen(x, i), scale, book, 128); }, code);
    return code[0] | code[1] << 8 | code[2] << 16 | code[3] << 24;
  }
};

}  // namespace lowbit
