// Common tensors of optimizers whose one state is m in 8 bits, one scale for each block of 256: m
// block(256)/de (presets `sgdm8`, `lion8`). The rule is that of any.cuh.
//
//   m = level[c] s        s = max |m'| over the block; c = the nearest level
//
// Bytes moved per element: parameter read and written, gradient read, codes read and written (2), scales
// read and written (2 x 4/256): 8.03 for bf16 parameters and gradients, 14.03 for f32. Everything is
// read once and written once.
//
// Launch: as adamw_block8.cu.
//
// Rounding steps: R1 and R8 in common.cuh, the others in the rule; codes in bytes.cuh.

#pragma once

#include "bytes.cuh"
#include "momentum.cuh"

namespace lowbit {

struct Momentum8Tables {
  const ByteTable* m;

  __device__ __forceinline__ void fill(const Launch& launch, const Tensor& t) {
    __shared__ ByteTable table;
    table.fill(*in_table<Codebook>(launch, t.state[0].codebook));
    m = &table;
  }
};

template <typename RuleOfFour>
struct Momentum8States : CodedM<Momentum8Tables, signed char> {
  using Rule = RuleOfFour;
  using OfOneBlock = Momentum8States;
  using Tables = Momentum8Tables;
  using Scales = ScaleOfM;

  static constexpr int PARTS = 2;
  static constexpr int SHARING = 2;
  // Units on their way to shared memory while one is computed.
  static constexpr int MOST_AHEAD = 3;
  static constexpr int TABLES = sizeof(ByteTable);  // bytes of shared memory
  // A gradient whose square is not finite may leave m finite.
  static constexpr bool V_SHOWS_NON_FINITE = false;
  static constexpr bool GLOBAL = false;
  static constexpr bool DRAWS = false;

  using CodedM<Tables, signed char>::CodedM;

  // Blocks, and lanes, of a single row on.
  __device__ __forceinline__ void advance(long long blocks, int lanes) {
    codes += blocks * (PARTS * BLOCK) + lanes * EACH;
    scales += blocks;
  }

  __device__ __forceinline__ bool aligned() const { return is_aligned(codes, EACH); }

  struct Fetched {
    unsigned codes;
    float scale;
  };

  template <bool Wide>
  __device__ __forceinline__ Fetched fetch(const Place& place) const {
    return {load_bytes<Wide>(codes + place.element, place.count()), scales[place.block_at]};
  }

  // The same of a warp's block in shared memory: codes and scale.
  static constexpr int SCALE = PARTS * BLOCK;
  static constexpr int STAGE = SCALE + 16;

  __device__ __forceinline__ void copy(SharedAddress to, const Place& place) const {
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      copy_async<EACH>(to + i * BLOCK + EACH * lane_index(), codes + place.part(i).element);
    }
    if (lane_index() == 0) {
      copy_async<4>(to + SCALE, scales + place.block_at);
    }
  }

  __device__ static __forceinline__ Fetched fetch(SharedAddress from, int part) {
    Fetched fetched{};
    load_shared(from + part * BLOCK + EACH * lane_index(), fetched.codes);
    load_shared(from + SCALE, fetched.scale);
    return fetched;
  }

  __device__ __forceinline__ void decode(const Fetched& from, float (&m)[EACH],
                                         float (&v)[EACH]) const {
    tables.m->decode(from.codes, from.scale, m);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      v[i] = 0.0f;
    }
  }

  template <bool Wide, typename Draws>
  __device__ __forceinline__ void store(const Place& place, const Quad (&all)[PARTS],
                                        const Scales (&scale)[1], Staying staying, bool,
                                        Draws) const {
    if (staying.has(0)) {
      return;
    }
    const Codebook& of_m = book();
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      const Place part = place.part(i);
      store_bytes<Wide>(codes + part.element, part.count(),
                        tables.m->encode(all[i].m, scale[0].m, of_m));
    }
    if (lane_index() == 0) {
      scales[place.block_at] = scale[0].m;
    }
  }
};

}  // namespace lowbit

// The kernels for common tensors of an optimizer with such a state.
#define LOWBIT_MOMENTUM8(RULE, OPTIMIZER) \
  LOWBIT_COMMON_KERNELS(OPTIMIZER, block8, step_tensors, lowbit::Momentum8States<lowbit::OfFour<RULE>>, 2)
