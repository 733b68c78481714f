// Common tensors of optimizers whose one state is m in 4 bits, one scale for each block of 128: m
// block(128)/nf4, rounded at random (presets `sgdm4`, `lion4`). The rule is that of any.cuh.
//
//   m = level[c] s        s = max |m'| over the block; c = one of the two neighbours, by a draw
//
// Bytes moved per element: parameter read and written, gradient read, codes read and written
// (2 x 1/2), scales read and written (2 x 4/128): 7.0625 for bf16 parameters and gradients, 13.0625
// for f32. Everything is read once and written once.
//
// Launch: as adamw_block4.cu.
//
// Rounding steps: R1 and R8 in common.cuh, the others in the rule; codes in nibbles.cuh.

#pragma once

#include "momentum.cuh"
#include "nibbles.cuh"

namespace lowbit {

struct Momentum4Tables {
  Nf4Table m;

  __device__ __forceinline__ void fill(const Launch& launch, const Tensor& t) {
    m.fill(*in_table<Codebook>(launch, t.state[0].codebook));
  }
};

template <typename RuleOfFour, int BLOCKS>
struct Momentum4States : CodedM<Momentum4Tables, unsigned char> {
  using Rule = RuleOfFour;
  using OfOneBlock = Momentum4States<Rule, 1>;
  using Tables = Momentum4Tables;
  using Scales = ScaleOfM;

  static constexpr int PARTS = BLOCKS;
  static constexpr int SHARING = 1;
  // Units on their way to shared memory while one is computed.
  static constexpr int MOST_AHEAD = 3;
  static constexpr int TABLES = 0;  // bytes of shared memory
  // A gradient whose square is not finite may leave m finite.
  static constexpr bool V_SHOWS_NON_FINITE = false;
  static constexpr bool GLOBAL = false;
  static constexpr bool DRAWS = true;

  using CodedM<Tables, unsigned char>::CodedM;

  // Blocks, and lanes, of a single row on.
  __device__ __forceinline__ void advance(long long blocks, int lanes) {
    codes += blocks * (BLOCK / 2) + lanes * (EACH / 2);
    scales += blocks;
  }

  __device__ __forceinline__ bool aligned() const { return is_aligned(codes, 4); }

  struct Fetched {
    unsigned codes;
    float scale;
  };

  template <bool Wide>
  __device__ __forceinline__ Fetched fetch(const Place& place) const {
    return {load_nibbles<Wide>(codes + place.byte, place.count()), scales[place.block_at]};
  }

  // The same of a warp's unit in shared memory: codes and scales.
  static constexpr int SCALES = PARTS * NIBBLES;
  static constexpr int STAGE = SCALES + 16;

  __device__ __forceinline__ void copy(SharedAddress to, const Place& place) const {
    copy_nibbles<PARTS>(to, codes + place.byte);
    if (lane_index() < PARTS) {
      copy_async<4>(to + SCALES + 4 * lane_index(), scales + place.block_at + lane_index());
    }
  }

  __device__ static __forceinline__ Fetched fetch(SharedAddress from, int part) {
    Fetched fetched{own_nibbles(from + part * NIBBLES), 0.0f};
    load_shared(from + SCALES + 4 * part, fetched.scale);
    return fetched;
  }

  __device__ __forceinline__ void decode(const Fetched& from, float (&m)[EACH],
                                         float (&v)[EACH]) const {
    decode_nibbles(from.codes, tables.m.scaled_levels(from.scale), m);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      v[i] = 0.0f;
    }
  }

  template <bool Wide, typename Draws>
  __device__ __forceinline__ void store(const Place& place, const Quad (&all)[PARTS],
                                        const Scales (&scale)[PARTS], Staying staying, bool,
                                        Draws draws) const {
    uint2 drawn[PARTS];
    draws(0, drawn);
    unsigned code[PARTS];
    bool usual = true;
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      code[i] = tables.m.encode(all[i].m, scale[i].m, drawn[i]);
      usual = usual & is_usual_scale(scale[i].m);
    }
    if (!usual) {
#pragma unroll
      for (int i = 0; i < PARTS; ++i) {
        code[i] = stochastic_nibbles(all[i].m, scale[i].m, book(), drawn[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      if (!staying.has(i)) {
        const Place part = place.part(i);
        store_nibbles<Wide>(codes + part.byte, part.count(), code[i]);
      }
    }
    const int block = lane_index();
    if (block < PARTS && !staying.has(block)) {
      scales[place.block_at + block] = block == 0 ? scale[0].m : scale[PARTS - 1].m;
    }
  }
};

// Of a rule for one element.
template <typename One>
using PairsOfBlocks = Momentum4States<OfFour<One>, 2>;

}  // namespace lowbit

// The kernels for common tensors of an optimizer with such a state.
#define LOWBIT_MOMENTUM4(RULE, OPTIMIZER) \
  LOWBIT_COMMON_KERNELS(OPTIMIZER, block4, step_tensors, lowbit::PairsOfBlocks<RULE>, 2)
