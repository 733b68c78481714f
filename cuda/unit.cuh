// One unit of any tensor: a block of at most 4096 elements of one row, done by one warp, four elements
// a lane where the tensor's rows allow accesses of four (wide.cuh), else one. Everything that a tensor
// may be is decided here when the kernel runs, by branches that all lanes take alike; the kernels for
// common tensors (adamw_*.cu) have it decided when they are compiled.

#pragma once

#include "codes.cuh"
#include "tasks.cuh"
#include "weights.cuh"

namespace lowbit {

constexpr int LONGEST_UNIT = 4096;
constexpr int SHORTEST_BLOCK = 32;

// Largest magnitudes of the blocks of a warp's unit, by state.
using Maxima = unsigned[MAX_STATES][LONGEST_UNIT / SHORTEST_BLOCK];

// What correcting the scales of a warp's unit takes.
struct Correction {
  static constexpr int LEVELS = 8;  // 2^7 chunks in the largest block
  float scales[MAX_STATES][LONGEST_UNIT / SHORTEST_BLOCK];  // the corrected ones
  double pending[LEVELS][LANES];  // sums of 2^level terms that wait for as many more
};

// i with its bits reversed, of as many as numbers below `count`, a power of two, have.
__device__ __forceinline__ int reversed(int i, int count) {
  int result = 0;
  for (; count > 1; count /= 2) {
    result = 2 * result + i % 2;
    i /= 2;
  }
  return result;
}

// a / b of numbers that are mostly small.
__device__ __forceinline__ long long quotient(long long a, long long b) {
  return (a | b) >> 32 == 0 ? static_cast<unsigned>(a) / static_cast<unsigned>(b) : a / b;
}

// The number of a row in the grid of the global tensor.
__device__ inline long long global_row_of(const Tensor& t, long long row) {
  long long global = 0, stride = 1;
  for (int axis = t.lead - 1; axis > 0; --axis) {
    const long long before = quotient(row, t.shape[axis]);
    global += (row - before * t.shape[axis] + t.offset[axis]) * stride;
    row = before;
    stride *= t.global_shape[axis];
  }
  return t.lead == 0 ? 0 : global + (row + t.offset[0]) * stride;
}

// A row, here and in the global tensor.
struct Row {
  long long here = -1;
  long long global;

  // Goes to the row of a unit, behind that of the last one.
  __device__ __forceinline__ void follow(const Tensor& t, long long unit) {
    if (here < 0 || unit >= (here + 1) * t.units) {
      here = quotient(unit, t.units);
      global = global_row_of(t, here);
    }
  }
};

// The length of a factor here.
__device__ inline long long factor_extent(const Tensor& t, const Factor& factor) {
  long long extent = 1;
  for (int axis = 0; axis < t.axes; ++axis) {
    extent *= factor.axes >> axis & 1 ? t.shape[axis] : 1;
  }
  return extent;
}

// The number of the block, a power of two of elements, that an element lies in.
template <typename Index>
__device__ __forceinline__ Index block_of(const State& state, Index at) {
  return at >> (31 - __clz(state.block));
}

// Whether a state has maxima that reach across blocks.
__device__ __forceinline__ bool has_maxima(const State& state) {
  return state.kind == COVER || (state.kind == CODES && state.scaling != PER_BLOCK);
}

// The first buffer of such maxima, among the tensor's pointers.
__device__ __forceinline__ int first_maxima(const State& state) {
  return state.kind == COVER ? state.buffer : state.buffer + 1;
}

__device__ __forceinline__ bool in_blocks(const State& state) {
  return state.kind == CODES && state.scaling == PER_BLOCK;
}

// Whether a factor's means change along the last axis.
__device__ __forceinline__ bool along_row(const Tensor& t, const Factor& factor) {
  return factor.axes >> (t.axes - 1) & 1;
}

// Raises a maximum. Most values are no new one.
__device__ __forceinline__ void raise_maximum(int* slot, int value) {
  if (value > *slot) {
    atomicMax(slot, value);
  }
}

// Whose maxima the scales, or whose means a factored v, are made of.
enum class Source { stored, statistics };

struct Unit {
  const Launch& launch;
  const Shared& shared;
  const bool codec;     // the statistics of `compress` are the state's own buffers
  long long row;
  long long first_col;  // of the row
  int length;
  long long global_row;
  long long global_col;  // of the first element

  template <typename AnyWalker>
  __device__ Unit(const AnyWalker& walker, const Row& at, long long unit, bool codec)
      : launch(walker.launch),
        shared(walker.shared),
        codec(codec),
        row(at.here),
        global_row(at.global) {
    const Tensor& t = shared.tensor;
    first_col = (unit - row * t.units) * t.block;
    const long long left = t.cols - first_col;
    length = left < t.block ? static_cast<int>(left) : t.block;
    global_col = t.first_col + first_col;
  }

  // Part of a row instead of a block of it.
  __device__ __forceinline__ Unit(const Launch& launch, const Shared& shared, long long row,
                                  long long first_col, int length)
      : launch(launch),
        shared(shared),
        codec(false),
        row(row),
        first_col(first_col),
        length(length),
        global_row(global_row_of(shared.tensor, row)),
        global_col(shared.tensor.first_col + first_col) {}

  // Made where it is used, as most units use none.
  __device__ __forceinline__ Stream random() const { return stream_of(launch, shared); }

  __device__ __forceinline__ long long element(int at) const {
    return row * shared.tensor.cols + first_col + at;
  }

  __device__ __forceinline__ float gradient(int at) const {
    const Tensor& t = shared.tensor;
    const void* grad = pointer<const void>(launch, t, GRAD);
    return scale_gradient(load_value(grad, t.grad_dtype, element(at)), shared.scalars);  // R1
  }

  __device__ __forceinline__ float parameter(int at) const {
    const Tensor& t = shared.tensor;
    const void* param = pointer<const void>(launch, t, PARAM);
    const void* beside = pointer<const void>(launch, t, BESIDE);
    const Stored stored{load_bits(param, value_bytes(t.param_dtype), element(at)),
                        load_bits(beside, beside_bytes(t.weights), element(at))};
    return join_weight(stored, t.param_dtype, t.weights);
  }

  template <typename Item>
  __device__ __forceinline__ Item* buffer(const State& state, int part) const {
    return pointer<Item>(launch, shared.tensor, state.buffer + part);
  }

  // Calls `body` with every axis, the last one first, and an element's index along it.
  template <typename Body>
  __device__ __forceinline__ void each_axis(int at, Body body) const {
    const Tensor& t = shared.tensor;
    long long rest = first_col + at;
#pragma unroll 1
    for (int axis = t.axes - 1; axis >= 0; --axis) {
      if (axis == t.lead - 1) {
        rest = row;
      }
      // The outermost axis of what is left needs no division.
      const bool outermost = axis == 0 || axis == t.lead;
      const long long before = outermost ? 0 : quotient(rest, t.shape[axis]);
      body(axis, rest - before * t.shape[axis]);
      rest = before;
    }
  }

  // ---- scales ----------------------------------------------------------------------------------

  // Calls `body` with the part of every maximum that an element has a share in, its position in the
  // state's buffer, and that among the statistics.
  template <typename Body>
  __device__ __forceinline__ void each_maximum(const State& state, int at, Body body) const {
    const Tensor& t = shared.tensor;
    if (state.scaling == PER_TENSOR) {
      body(0, 0ll, 0ll);
    } else if (state.scaling == PER_ROW) {
      body(0, row, global_row);
    } else if (state.scaling == PER_COLUMN) {
      body(0, first_col + at, global_col + at);
    } else {
      long long base = 0;
      for (int axis = 0; axis < t.axes; ++axis) {
        base += t.global_shape[axis];
      }
      each_axis(at, [&](int axis, long long index) {
        base -= t.global_shape[axis];
        body(axis, index, base + index + t.offset[axis]);
      });
    }
  }

  // The maxima from one of them on, of a part of a state: those that it keeps, or the statistics.
  __device__ __forceinline__ int* maxima_at(const State& state, int part, long long position,
                                            long long word, Source source) const {
    return source == Source::statistics && !codec
               ? launch.statistics + state.word + word
               : pointer<int>(launch, shared.tensor, first_maxima(state) + part) + position;
  }

  __device__ static __forceinline__ unsigned lesser(unsigned least, int maximum, Source source) {
    const unsigned read = static_cast<unsigned>(maximum);
    const unsigned bits = source == Source::statistics ? canonical_magnitude(read) : read;
    return bits < least ? bits : least;
  }

  // The smallest of an element's maxima, as integers, so that NaN is the largest.
  __device__ inline float smallest(const State& state, int at, Source source) const {
    unsigned least = 0xffffffff;
    each_maximum(state, at, [&](int part, long long position, long long word) {
      least = lesser(least, *maxima_at(state, part, position, word, source), source);
    });
    return __uint_as_float(least);
  }

  __device__ inline void raise_maxima(const State& state, int at, float x) const {
    const int value = static_cast<int>(canonical_magnitude(magnitude(x)));
    each_maximum(state, at, [&](int part, long long position, long long word) {
      raise_maximum(maxima_at(state, part, position, word, Source::statistics), value);
    });
  }

  __device__ __forceinline__ float* block_scales(const State& state) const {
    const long long blocks = block_of(state, shared.tensor.cols + state.block - 1);
    return buffer<float>(state, 1) + row * blocks + block_of(state, first_col);
  }

  // ---- factors ---------------------------------------------------------------------------------

  // Where an element is in a factor: here, or (`Global`) in that of the global tensor.
  template <bool Global>
  __device__ __forceinline__ long long factor_position(const Factor& factor, int at) const {
    const Tensor& t = shared.tensor;
    long long position = 0, stride = 1;
    each_axis(at, [&](int axis, long long index) {
      if (factor.axes >> axis & 1) {
        position += stride * (Global ? index + t.offset[axis] : index);
        stride *= Global ? t.global_shape[axis] : t.shape[axis];
      }
    });
    return position;
  }

  // RN(RN(row / mean) column), 0 where the mean is 0.
  __device__ static __forceinline__ float factored_value(float row, float column, float mean) {
    return mean == 0.0f ? 0.0f : __fmul_rn(__fdiv_rn(row, mean), column);
  }

  // v of an element under its factors.
  __device__ inline float decode_factors(int which, int at, Source source) const {
    const State& state = shared.tensor.state[which];
    const Factor* factors = in_table<Factor>(launch, state.codebook);
    const auto value = [&](int f) {
      const long long position = factor_position<false>(factors[f], at);
      return source == Source::statistics ? launch.fresh[factors[f].fresh + position]
                                          : buffer<const float>(state, f)[position];
    };
    return factored_value(value(0), value(1), value(2));
  }

  // ---- codes -----------------------------------------------------------------------------------

  __device__ __forceinline__ unsigned char* code_byte(const State& state, int at) const {
    const long long bytes = (shared.tensor.cols + state.per_byte - 1) / state.per_byte;
    return buffer<unsigned char>(state, 0) + row * bytes + (first_col + at) / state.per_byte;
  }

  // What subtractive dither adds: RN(RN((u - 1/2) spacing) scale).
  __device__ inline float dither(const State& state, int which, int at, float scale) const {
    const unsigned draw = random().dither(which, global_row, block_of(state, global_col + at), scale);
    const float offset = __fadd_rn(uniform(draw), -0.5f);
    return __fmul_rn(__fmul_rn(offset, state.spacing), scale);
  }

  __device__ inline float decode(int which, int at) const {
    const State& state = shared.tensor.state[which];
    if (state.kind == VALUES) {
      return buffer<const float>(state, 0)[element(at)];
    }
    const int bits = 8 / state.per_byte;
    const int shift = static_cast<int>((first_col + at) % state.per_byte) * bits;
    const unsigned code = *code_byte(state, at) >> shift & (0xffu >> (8 - bits));
    const float scale = state.scaling == PER_BLOCK ? block_scales(state)[block_of(state, at)]
                                                   : smallest(state, at, Source::stored);
    const Codebook& book = *in_table<Codebook>(launch, state.codebook);
    const float value = __fmul_rn(book.by_code[code], scale);
    return state.option == SUBTRACTIVE_DITHER
               ? __fadd_rn(value, -dither(state, which, at, scale))
               : value;
  }

  // The code of a value under its scale.
  __device__ inline unsigned code_of(int which, int at, float x, float scale) const {
    const State& state = shared.tensor.state[which];
    const Codebook& book = *in_table<Codebook>(launch, state.codebook);
    const unsigned half = 128u >> (8 - 8 / state.per_byte);
    if (state.option == SUBTRACTIVE_DITHER) {
      x = __fadd_rn(x, dither(state, which, at, scale));
    }
    if (state.rounding == NEAREST) {
      return nearest_code(x, scale, book, half);
    }
    const float u = uniform(random().draw(STATE_DRAW + which, global_row, global_col + at));
    return stochastic_code(x, scale, book, half, state.rounding, shared.scalars, u);
  }

  // Codes and stores a value; all lanes call it together, those with `at` beyond the unit store
  // nothing. `maxima` are those of the unit's blocks.
  __device__ inline void encode(int which, int at, float x, const unsigned* maxima) const {
    const State& state = shared.tensor.state[which];
    const bool here = at < length;
    if (state.kind == VALUES) {
      if (here) {
        buffer<float>(state, 0)[element(at)] = canonical(x);
      }
      return;
    }
    unsigned code = 0;
    if (here) {
      const float scale = state.scaling == PER_BLOCK ? block_scale(maxima[block_of(state, at)])
                                                     : smallest(state, at, Source::statistics);
      code = code_of(which, at, x, scale);
    }
    // The first element of a byte stores it, with 0 for those beyond the row's end.
    unsigned byte = code;
    for (int i = 1; i < state.per_byte; ++i) {
      const int lane = lane_index() / state.per_byte * state.per_byte + i;
      byte |= __shfl_sync(ALL_LANES, code, lane) << i * (8 / state.per_byte);
    }
    if (here && at % state.per_byte == 0) {
      *code_byte(state, at) = static_cast<unsigned char>(byte);
    }
  }

  // The corrected scales of a state's blocks, whose codes are not stored yet
  // (`quant::corrected_scale`): scale sum(x^2) / max(sum(x q), tiny), sums by halving: of 2^n terms
  // the i-th and the (i + 2^(n-1))-th are added, until one is left. `value` gives an element's new
  // value.
  // All lanes call it together.
  template <typename Value>
  __device__ inline void correct_scales(int which, const unsigned* maxima, Correction& correction,
                                        Value value) const {
    const State& state = shared.tensor.state[which];
    for (int begin = 0; begin < length; begin += state.block) {
      const float scale = block_scale(maxima[block_of(state, begin)]);
      const double squares = block_sum(state.block, correction, [&](int i) {
        const float x = begin + i < length ? value(begin + i) : 0.0f;
        return __dmul_rn(static_cast<double>(x), static_cast<double>(x));
      });
      const double products = block_sum(state.block, correction, [&](int i) {
        const int at = begin + i;
        if (at >= length) {
          return 0.0;
        }
        const float x = value(at);
        const unsigned code = code_of(which, at, x, scale);
        const Codebook& book = *in_table<Codebook>(launch, state.codebook);
        const float q = __fmul_rn(book.by_code[code], scale);
        return __dmul_rn(static_cast<double>(x), static_cast<double>(q));
      });
      const double ratio = __ddiv_rn(squares, products > 0x1p-1022 ? products : 0x1p-1022);
      if (lane_index() == 0) {
        correction.scales[which][block_of(state, begin)] =
            __double2float_rn(__dmul_rn(static_cast<double>(scale), ratio));
      }
    }
  }

  // The sum by halving of a block's terms, in every lane. Chunks come in the order in which those
  // that are added first follow each other.
  template <typename Term>
  __device__ inline double block_sum(int block, Correction& correction, Term term) const {
    const int chunks = block / LANES, lane = lane_index();
    double sum = 0.0;
    for (int i = 0; i < chunks; ++i) {
      sum = term(reversed(i, chunks) * LANES + lane);
      int level = 0;
      for (; i >> level & 1; ++level) {
        sum = __dadd_rn(correction.pending[level][lane], sum);
      }
      correction.pending[level][lane] = sum;
    }
    return warp_sum(sum);
  }

  __device__ inline void store_block_scales(const State& state, const unsigned* maxima,
                                            const float* corrected) const {
    if (in_blocks(state)) {
      float* scales = block_scales(state);
      for (int i = lane_index(); i * state.block < length; i += LANES) {
        scales[i] = state.option == SCALE_CORRECTION ? corrected[i] : block_scale(maxima[i]);
      }
    }
  }
};

// Calls `body` with every unit of a launch.
template <ScalarsOf& scalars_of, CompleteFor& complete = nothing_more, typename Body>
__device__ __forceinline__ void each_unit(const Launch& launch, Shared& shared, bool codec,
                                          Body body) {
  WalkerOf<scalars_of, complete> walker(launch, shared);
  for (long long task = blockIdx.x; task < launch.tasks; task += gridDim.x) {
    const Task at = walker.enter(task);
    if (at.kind == APPLY) {
      walker.count_skipped(at);
    }
    const Tensor& t = shared.tensor;
    const int count = units_per_task(t.block);
    const long long first = at.index * count, all = t.rows * t.units;
    Row row;
    for (int i = warp_index(); i < count && first + i < all; i += WARPS) {
      row.follow(t, first + i);
      body(Unit(walker, row, first + i, codec));
    }
  }
}

// Raises the maximum of the block that a chunk lies in by the largest value of all lanes.
__device__ __forceinline__ void raise_block(const State& state, int chunk, unsigned largest,
                                            unsigned* maxima) {
  largest = warp_max(largest);
  if (lane_index() == 0) {
    unsigned& slot = maxima[block_of(state, chunk)];
    // A block's first values replace what the unit before has left.
    slot = (chunk & (state.block - 1)) == 0 || largest > slot ? largest : slot;
  }
}

}  // namespace lowbit
