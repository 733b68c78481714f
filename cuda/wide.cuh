// Units of four elements a lane, 128 at a time: what unit.cuh does for one element, for tensors whose rows
// allow it. Codes, values and parameters are read and written by one access for the four, and what does not
// change along a row is found once for them.

#pragma once

#include "unit.cuh"

namespace lowbit {

constexpr int FOUR = 4;
constexpr int CHUNK = FOUR * LANES;

// Whether a tensor's rows consist of whole fours that lie together in memory, and its states have scales
// that can be found four at a time.
__device__ inline bool is_wide(const Launch& launch, const Tensor& t) {
  unsigned long long places = launch.words[t.words + PARAM] | launch.words[t.words + GRAD] |
                              launch.words[t.words + UPDATE] | launch.words[t.words + BESIDE];
  bool wide = (t.cols | t.first_col) % FOUR == 0;
  for (int i = 0; i < t.states; ++i) {
    const State& state = t.state[i];
    const bool along_axes = state.kind == FACTORS || (has_maxima(state) && state.scaling == PER_AXES);
    wide = wide && state.option == 0 && !(along_axes && t.axes > t.lead + 1);
    places |= state.kind == CODES || state.kind == VALUES ? launch.words[t.words + state.buffer] : 0;
  }
  return wide && places % (FOUR * sizeof(float)) == 0;
}

struct WideUnit : Unit {
  __device__ __forceinline__ explicit WideUnit(const Unit& unit) : Unit(unit) {}

  __device__ __forceinline__ void gradients(int at, float (&g)[FOUR]) const {
    const Tensor& t = shared.tensor;
    load_values(pointer<const void>(launch, t, GRAD), t.grad_dtype, element(at), g);
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      g[i] = scale_gradient(g[i], shared.scalars);  // R1
    }
  }

  __device__ __forceinline__ void parameters(int at, float (&p)[FOUR]) const {
    const Tensor& t = shared.tensor;
    if (beside_bytes(t.weights) == 0) {
      load_values(pointer<const void>(launch, t, PARAM), t.param_dtype, element(at), p);
      return;
    }
    unsigned bits[FOUR], beside[FOUR];
    load_four(pointer<const void>(launch, t, PARAM), value_bytes(t.param_dtype), element(at), bits);
    load_four(pointer<const void>(launch, t, BESIDE), beside_bytes(t.weights), element(at), beside);
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      p[i] = join_weight({bits[i], beside[i]}, t.param_dtype, t.weights);
    }
  }

  // The draws of four elements.
  __device__ __forceinline__ void draws(unsigned purpose, int at, unsigned (&drawn)[FOUR]) const {
    const uint2 pair = random().draws(purpose, global_row, global_col + at);
    drawn[0] = pair.x & 0xffff;
    drawn[1] = pair.x >> 16;
    drawn[2] = pair.y & 0xffff;
    drawn[3] = pair.y >> 16;
  }

  // Stores parameters, or their updates.
  __device__ __forceinline__ void store(int at, const float (&p)[FOUR],
                                        const float (&update)[FOUR]) const {
    const Tensor& t = shared.tensor;
    const bool updates = (launch.flags & UPDATES) != 0;
    float theta[FOUR];
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      theta[i] = updates ? update[i] : __fadd_rn(p[i], update[i]);  // R8
    }
    if (updates || t.weights == PLAIN) {
      store_values(pointer<void>(launch, t, updates ? UPDATE : PARAM), t.param_dtype, element(at),
                   theta);
      return;
    }
    unsigned bits[FOUR], beside[FOUR], drawn[FOUR] = {};
    if (t.weights == STOCHASTIC_WEIGHTS) {
      draws(WEIGHT_DRAW, at, drawn);
    }
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      const Stored stored = split_weight(theta[i], t.param_dtype, t.weights, drawn[i]);
      bits[i] = stored.param;
      beside[i] = stored.beside;
    }
    store_four(pointer<void>(launch, t, PARAM), value_bytes(t.param_dtype), element(at), bits);
    store_four(pointer<void>(launch, t, BESIDE), beside_bytes(t.weights), element(at), beside);
  }

  // ---- scales ----------------------------------------------------------------------------------

  // Whether the maxima of a part change along a row.
  __device__ __forceinline__ bool along_row(const State& state, int part) const {
    return state.scaling == PER_COLUMN ||
           (state.scaling == PER_AXES && part == shared.tensor.axes - 1);
  }

  // The smallest maxima of four elements.
  __device__ __forceinline__ void smallest_of(const State& state, int at, Source source,
                                              float (&scale)[FOUR]) const {
    unsigned least[FOUR] = {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff};
    each_maximum(state, at, [&](int part, long long position, long long word) {
      const int* maxima = maxima_at(state, part, position, word, source);
      const bool along = along_row(state, part);
#pragma unroll
      for (int i = 0; i < FOUR; ++i) {
        least[i] = lesser(least[i], maxima[along ? i : 0], source);
      }
    });
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      scale[i] = __uint_as_float(least[i]);
    }
  }

  // Raises maxima by four elements, one each if they lie along the row; what the row shares is raised
  // once. All lanes call it together.
  __device__ __forceinline__ void raise_by(int* maxima, bool along, int at,
                                           const float (&x)[FOUR]) const {
    unsigned value[FOUR], largest = 0;
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      value[i] = at < length ? canonical_magnitude(magnitude(x[i])) : 0;
      largest = value[i] > largest ? value[i] : largest;
    }
    if (!along) {
      largest = warp_max(largest);
      if (lane_index() == 0) {
        raise_maximum(maxima, static_cast<int>(largest));
      }
    } else if (at < length) {
#pragma unroll
      for (int i = 0; i < FOUR; ++i) {
        raise_maximum(maxima + i, static_cast<int>(value[i]));
      }
    }
  }

  __device__ __forceinline__ void raise_maxima_of(const State& state, int at,
                                                  const float (&x)[FOUR]) const {
    each_maximum(state, at, [&](int part, long long position, long long word) {
      raise_by(maxima_at(state, part, position, word, Source::statistics), along_row(state, part), at,
               x);
    });
  }

  // ---- states ----------------------------------------------------------------------------------

  __device__ __forceinline__ void decode(int which, int at, float (&x)[FOUR]) const {
    const State& state = shared.tensor.state[which];
    if (state.kind == VALUES) {
      unsigned bits[FOUR];
      load_four(buffer<const void>(state, 0), sizeof(float), element(at), bits);
#pragma unroll
      for (int i = 0; i < FOUR; ++i) {
        x[i] = __uint_as_float(bits[i]);
      }
      return;
    }
    const unsigned codes =
        load_bits(buffer<const void>(state, 0), FOUR / state.per_byte, element(at) / FOUR);
    const int bits = 8 / state.per_byte;
    const unsigned mask = 0xffu >> (8 - bits);
    float scale[FOUR];
    if (state.scaling == PER_BLOCK) {
      scale[0] = scale[1] = scale[2] = scale[3] = block_scales(state)[block_of(state, at)];
    } else {
      smallest_of(state, at, Source::stored, scale);
    }
    const Codebook& book = *in_table<Codebook>(launch, state.codebook);
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      x[i] = __fmul_rn(book.by_code[codes >> i * bits & mask], scale[i]);
    }
  }

  // v of four elements under its factors.
  __device__ __forceinline__ void decode_factors(int which, int at, Source source,
                                                 float (&v)[FOUR]) const {
    const State& state = shared.tensor.state[which];
    const Factor* factors = in_table<Factor>(launch, state.codebook);
    const float* mean[FACTOR_COUNT];
    bool along[FACTOR_COUNT];
#pragma unroll
    for (int f = 0; f < FACTOR_COUNT; ++f) {
      const long long position = factor_position<false>(factors[f], at);
      mean[f] = source == Source::statistics ? launch.fresh + factors[f].fresh + position
                                             : buffer<const float>(state, f) + position;
      along[f] = lowbit::along_row(shared.tensor, factors[f]);
    }
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      v[i] = factored_value(mean[0][along[0] ? i : 0], mean[1][along[1] ? i : 0],
                            mean[2][along[2] ? i : 0]);
    }
  }

  // Codes and stores the values of four elements; `maxima` are those of the unit's blocks.
  __device__ __forceinline__ void encode(int which, int at, const float (&x)[FOUR],
                                         const unsigned* maxima) const {
    const State& state = shared.tensor.state[which];
    if (state.kind == VALUES) {
      unsigned bits[FOUR];
#pragma unroll
      for (int i = 0; i < FOUR; ++i) {
        bits[i] = __float_as_uint(canonical(x[i]));
      }
      store_four(buffer<void>(state, 0), sizeof(float), element(at), bits);
      return;
    }
    float scale[FOUR];
    if (state.scaling == PER_BLOCK) {
      scale[0] = scale[1] = scale[2] = scale[3] = block_scale(maxima[block_of(state, at)]);
    } else {
      smallest_of(state, at, Source::statistics, scale);
    }
    const Codebook& book = *in_table<Codebook>(launch, state.codebook);
    const unsigned half = 128u >> (8 - 8 / state.per_byte);
    unsigned code[FOUR];
    if (state.rounding == NEAREST) {
      nearest_codes(x, scale, book, half, code);
    } else {
      unsigned drawn[FOUR];
      draws(STATE_DRAW + which, at, drawn);
      for_each_of_four([&](int i) {
        const float u = uniform(chosen(drawn, i));
        return stochastic_code(chosen(x, i), chosen(scale, i), book, half, state.rounding,
                               shared.scalars, u);
      }, code);
    }
    const int bits = 8 / state.per_byte;
    const unsigned codes =
        code[0] | code[1] << bits | code[2] << 2 * bits | code[3] << 3 * bits;
    store_bits(buffer<void>(state, 0), FOUR / state.per_byte, element(at) / FOUR, codes);
  }
};

// Says so to all threads.
__device__ inline void note_width(const Launch& launch, const Tensor& t, Shared& shared) {
  shared.wide = is_wide(launch, t);
}

// Raises the maxima of the blocks that 128 values lie in.
__device__ __forceinline__ void raise_blocks(const State& state, int chunk, const float (&x)[FOUR],
                                             unsigned* maxima) {
  unsigned largest = 0;
#pragma unroll
  for (int i = 0; i < FOUR; ++i) {
    largest = magnitude(x[i]) > largest ? magnitude(x[i]) : largest;
  }
  if (state.block >= CHUNK) {
    raise_block(state, chunk, largest, maxima);
    return;
  }
  const int lanes = state.block / FOUR;
  for (int half = lanes / 2; half != 0; half /= 2) {
    const unsigned other = __shfl_sync(ALL_LANES, largest, lane_index() ^ half);
    largest = other > largest ? other : largest;
  }
  if ((lane_index() & (lanes - 1)) == 0) {
    maxima[block_of(state, chunk + FOUR * lane_index())] = largest;
  }
}

}  // namespace lowbit
