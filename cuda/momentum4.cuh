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

#include "any.cuh"
#include "common.cuh"
#include "nibbles.cuh"

namespace lowbit {

// Four elements by the rule of one.
template <typename One>
struct OfFour {
  __device__ static Scalars scalars(const Launch& launch, const float* hyper, int step) {
    return One::scalars(launch, hyper, step);
  }

  __device__ static __forceinline__ void complete(const Launch&, const Tensor&, Shared&) {}

  __device__ static __forceinline__ bool in_range(const Scalars&) { return true; }

  // The rule does it.
  __device__ static __forceinline__ void couple(Quad&, const Scalars&) {}

  __device__ static __forceinline__ bool moments(Quad& x, const Shared& shared, int flags) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      Input input{};
      input.p = x.p[i];
      input.g = x.g[i];
      input.old[0] = x.m[i];
      const Element e = One::element(input, shared, flags);
      x.g[i] = e.update;
      x.m[i] = e.next[0];
    }
    return true;
  }

  // `moments` has put it there.
  __device__ static __forceinline__ void updates(Quad&, bool, bool, const Scalars&) {}
};

template <typename RuleOfFour>
struct Momentum4States {
  using Rule = RuleOfFour;

  static constexpr int PARTS = 1;
  // Units on their way to shared memory while one is computed.
  static constexpr int MOST_AHEAD = 3;
  static constexpr int TABLES = 0;  // bytes of shared memory
  // A gradient whose square is not finite may leave m finite.
  static constexpr bool V_SHOWS_NON_FINITE = false;
  static constexpr bool GLOBAL = false;
  static constexpr bool DRAWS = true;

  struct Tables {
    Nf4Table m;

    __device__ __forceinline__ void fill(const Launch& launch, const Tensor& t) {
      m.fill(*in_table<Codebook>(launch, t.state[0].codebook));
    }
  };

  const Launch& launch;
  const Tensor& tensor;
  const Tables& tables;
  unsigned char* codes;
  float* scales;

  __device__ __forceinline__ Momentum4States(const Launch& launch, const Shared& shared,
                                             const Tables& tables)
      : launch(launch),
        tensor(shared.tensor),
        tables(tables),
        codes(pointer<unsigned char>(launch, tensor, tensor.state[0].buffer)),
        scales(pointer<float>(launch, tensor, tensor.state[0].buffer + 1)) {}

  // Units, and lanes, of a single row on.
  __device__ __forceinline__ void advance(long long units, int lanes) {
    codes += units * (BLOCK / 2) + lanes * (EACH / 2);
    scales += units;
  }

  __device__ __forceinline__ bool aligned() const { return is_aligned(codes, 4); }

  struct Fetched {
    unsigned codes;
    float scale;
  };

  template <bool Wide>
  __device__ __forceinline__ Fetched fetch(const Place& place) const {
    return {load_nibbles<Wide>(codes + place.byte, place.count()), scales[place.unit]};
  }

  // The same of a warp's block in shared memory: codes and scale.
  static constexpr int STAGE = NIBBLES + 16;

  __device__ __forceinline__ void copy(SharedAddress to, const Place& place) const {
    copy_nibbles(to, codes + place.byte);
    if (lane_index() == 0) {
      copy_async<4>(to + NIBBLES, scales + place.unit);
    }
  }

  __device__ static __forceinline__ Fetched fetch(SharedAddress from) {
    Fetched fetched{own_nibbles(from), 0.0f};
    load_shared(from + NIBBLES, fetched.scale);
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

  struct Scales {
    float m;

    __device__ static __forceinline__ Scales of(float largest, unsigned) {
      return {block_scale(warp_max(__float_as_uint(largest)))};
    }
  };

  template <bool Wide, typename Draws>
  __device__ __forceinline__ void store(const Place& place, const Quad& x, const Scales& scale,
                                        bool, Draws draws) const {
    const unsigned code =
        tables.m.encode(x.m, scale.m, *in_table<Codebook>(launch, tensor.state[0].codebook),
                        [&] { return draws(0); });
    store_nibbles<Wide>(codes + place.byte, place.count(), code);
  }

  __device__ __forceinline__ void store_scales(const Place& place, const Scales& scale) const {
    if (lane_index() == 0) {
      scales[place.unit] = scale.m;
    }
  }
};

}  // namespace lowbit

// The kernels for common tensors of an optimizer with such a state.
#define LOWBIT_MOMENTUM4(RULE, OPTIMIZER) \
  LOWBIT_COMMON_KERNELS(OPTIMIZER, block4, step_tensors, lowbit::Momentum4States<lowbit::OfFour<RULE>>, 3, 2)
