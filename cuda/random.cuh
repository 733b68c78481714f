// Counter-based random numbers, `src/rng.rs`: Philox4x32-10, keyed by the seed, the global element,
// the step and the purpose.

#pragma once

#include "params.cuh"
#include "ptx.cuh"
#include "warp.cuh"

namespace lowbit {

constexpr unsigned WEIGHT_DRAW = 0;
constexpr unsigned STATE_DRAW = 1;   // plus the state's index
constexpr unsigned DITHER_DRAW = 8;  // plus the state's index

struct Stream {
  static constexpr unsigned MULTIPLIERS[2] = {0xd2511f53, 0xcd9e8d57};
  static constexpr int GROUP = 8;  // columns of a counter

  const unsigned (&keys)[RNG_ROUNDS][2];
  unsigned tensor;  // 28 bits
  unsigned step;

  // The draw of a column.
  __device__ __forceinline__ unsigned draw(unsigned purpose, long long row, long long col) const {
    const int which = static_cast<int>(col % 8) / 2;
    const uint2 words = pair(purpose, row, col / 8, step, which / 2);
    const unsigned word = which & 1 ? words.y : words.x;
    return col & 1 ? word >> 16 : word & 0xffff;
  }

  // Those of four columns from `col`, a multiple of four, on: 16 bits each, the first in the lowest.
  __device__ __forceinline__ uint2 draws(unsigned purpose, long long row, long long col) const {
    return pair(purpose, row, col / 8, step, static_cast<int>(col / 4 & 1));
  }

  // The same at two places by all lanes of a warp together, where columns follow each other from lane to
  // lane: the two lanes that want a counter's words make those of one place each, and exchange halves. Rows
  // and groups of columns count modulo 2^32.
  __device__ __forceinline__ void draws_of_warp(unsigned purpose, const unsigned (&rows)[2],
                                                const unsigned (&groups)[2],
                                                uint2 (&drawn)[2]) const {
    const bool odd = lane_index() % 2 != 0;
    const uint4 own = four(purpose, odd ? rows[1] : rows[0], odd ? groups[1] : groups[0], step);
    const unsigned first = __shfl_xor_sync(ALL_LANES, odd ? own.x : own.z, 1);
    const unsigned second = __shfl_xor_sync(ALL_LANES, odd ? own.y : own.w, 1);
    drawn[0] = odd ? make_uint2(first, second) : make_uint2(own.x, own.y);
    drawn[1] = odd ? make_uint2(own.z, own.w) : make_uint2(first, second);
  }

  // The draw of a block for subtractive dither, keyed by the block's scale instead of the step.
  __device__ __forceinline__ unsigned dither(unsigned state, long long row, long long block,
                                             float scale) const {
    return pair(DITHER_DRAW + state, row, block, __float_as_uint(scale), 0).x & 0xffff;
  }

  // The first or the second pair of a counter's four words.
  __device__ inline uint2 pair(unsigned purpose, long long row, long long group, unsigned third,
                               int which) const {
    const uint4 words = four(purpose, static_cast<unsigned>(row), static_cast<unsigned>(group), third);
    return which == 0 ? make_uint2(words.x, words.y) : make_uint2(words.z, words.w);
  }

  // A counter's four words.
  __device__ __forceinline__ uint4 four(unsigned purpose, unsigned row, unsigned group,
                                        unsigned third) const {
    unsigned c0 = group, c1 = row, c2 = third, c3 = tensor | purpose << 28;
#pragma unroll
    for (int round = 0; round < RNG_ROUNDS; ++round) {
      const unsigned long long first = multiply_wide(c0, MULTIPLIERS[0]);
      const unsigned long long second = multiply_wide(c2, MULTIPLIERS[1]);
      c0 = static_cast<unsigned>(second >> 32) ^ c1 ^ keys[round][0];
      c1 = static_cast<unsigned>(second);
      c2 = static_cast<unsigned>(first >> 32) ^ c3 ^ keys[round][1];
      c3 = static_cast<unsigned>(first);
    }
    return make_uint4(c0, c1, c2, c3);
  }
};

// Draws at a warp's places one after the other, made for two of them at once.
struct DrawsAhead {
  uint2 next = {};
  bool kept = false;

  // Those of the place at hand. `places(rows, groups)` says where that and the next one are.
  template <typename Places>
  __device__ __forceinline__ uint2 draw(const Stream& stream, unsigned purpose, Places places) {
    if (kept) {
      kept = false;
      return next;
    }
    unsigned rows[2], groups[2];
    places(rows, groups);
    uint2 drawn[2];
    stream.draws_of_warp(purpose, rows, groups, drawn);
    next = drawn[1];
    kept = true;
    return drawn[0];
  }
};

// A draw as a number in (0, 1): the middle of its 2^-16.
__device__ __forceinline__ float uniform(unsigned draw) {
  return __fmul_rn(__fadd_rn(static_cast<float>(draw), 0.5f), 1.0f / 65536.0f);
}

// 65536 uniform(), of the draw in the lower or the upper half of a word.
__device__ __forceinline__ float scaled_uniform(unsigned word, bool upper) {
  // The bits of 2^23 + draw.
  const unsigned bits = __byte_perm(word, 0x4b000000, upper ? 0x7632 : 0x7610);
  return __fadd_rn(__uint_as_float(bits), -8388607.5f);
}

}  // namespace lowbit
