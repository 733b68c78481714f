// A step on common tensors: the loop that their kernels share. What they differ in is the form of the
// states, and the rule, which the states name:
//
//   struct States {
//     using Rule = ...;
//     static constexpr int PARTS;       // of a unit
//     static constexpr int MOST_AHEAD;  // units on their way to shared memory; 0: read where they are
//     static constexpr int TABLES;      // bytes of shared memory
//     static constexpr bool V_SHOWS_NON_FINITE;  // the largest v is not finite where a gradient is not
//     static constexpr bool GLOBAL;  // need statistics of the whole tensor, which is skipped as a whole
//     static constexpr bool DRAWS;  // states are rounded at random
//     struct Tables;   // what decodes and codes; `fill` is called by all threads
//     struct Fetched;  // of a part, by `fetch` from memory, or after `copy` from shared memory
//     void decode(const Fetched& from, float (&m)[EACH], float (&v)[EACH]) const;
//     struct Scales;  // new ones of a unit, by `of`
//     // Draws: gives those of four elements for a state, to all lanes together.
//     void store<Wide>(const Place& place, const Quad& x, const Scales& scales, bool usual,
//                      Draws draws) const;
//     void store_scales(const Place& place, const Scales& scales) const;
//   };
//
//   struct Rule {
//     static Scalars scalars(const Launch& launch, const float* hyper, int step);  // as in any.cuh
//     static void complete(const Launch& launch, const Tensor& t, Shared& shared);  // likewise
//     // Whether `updates` may be fast, as far as the scalars say.
//     static bool in_range(const Scalars& s);
//     // Adds coupled decay to g, if it is not a part of `moments`.
//     static void couple(Quad& x, const Scalars& s);
//     // The new moments; of g stays what `updates` needs. Returns whether the moments are in the range
//     // of approx.cuh.
//     static bool moments(Quad& x, const Shared& shared, int flags);
//     // g becomes the update. Coupled: the decay was part of the gradient. Fast: all is in range.
//     static void updates(Quad& x, bool coupled, bool fast, const Scalars& s);
//   };
//
// A unit of work is one block of at most PARTS x 128 elements of one row (`layout.rs`), done by one
// warp: of each part lane l has the elements 4 l .. 4 l + 3. Full blocks of aligned tensors use wide
// accesses.

#pragma once

#include "approx.cuh"
#include "dtypes.cuh"
#include "pipeline.cuh"
#include "tasks.cuh"
#include "weights.cuh"

namespace lowbit {

constexpr int SHARED_MEMORY = 48 << 10;  // of a thread block

constexpr int BLOCK = 128;           // elements of a part of a unit
constexpr int EACH = BLOCK / LANES;  // and of a lane

// The elements of one lane within one part of a unit.
struct Place {
  long long unit;     // also the index of its scale
  long long element;  // first element
  long long byte;     // of its 4-bit codes
  int rest;           // elements of the row from the first one on, or less if none are missing
  unsigned row;       // of the unit
  unsigned block;     // within its row

  // Elements that exist, 0 .. 4.
  __device__ __forceinline__ int count() const { return rest >= EACH ? EACH : rest > 0 ? rest : 0; }

  // That of a part, given the first one's.
  __device__ __forceinline__ Place part(int index) const {
    return {unit, element + index * BLOCK, byte + index * (BLOCK / 2), rest - index * BLOCK, row, block};
  }
};

// One lane's part of a unit.
struct Quad {
  float p[EACH];
  float g[EACH];  // becomes the update
  float m[EACH];
  float v[EACH];  // 0 if there is none
};

// The largest magnitudes of a lane's moments.
struct Largest {
  float m;
  float v;
};

template <bool Wide>
__device__ __forceinline__ void raise_largest(Largest& largest, const Quad& x, int count) {
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    // What a lane computes beyond the end of a row has no part in the scale.
    if (Wide || i < count) {
      largest.m = max_nan(largest.m, fabsf(x.m[i]));
      largest.v = max_nan(largest.v, fabsf(x.v[i]));
    }
  }
}

__device__ __forceinline__ bool is_aligned(const void* data, int bytes) {
  return (reinterpret_cast<unsigned long long>(data) & (bytes - 1)) == 0;
}

// Zero updates for elements that stay as they are.
template <typename Dtype>
__device__ __forceinline__ void keep(void* to, bool updates, long long element, int count) {
  if (updates) {
    const float zeros[EACH] = {};
    store<Dtype, false>(to, element, count, zeros);
  }
}

// Parameters with what is beside them, gradients, and where the result goes: parameters or updates.
template <typename P, typename G>
struct Memory {
  static constexpr bool CORRECTED = P::FORM == CORRECTION8;

  const typename P::Storage* param;
  const typename G::Storage* grad;
  typename P::Storage* to;
  signed char* beside;
  bool updates;

  __device__ __forceinline__ void advance(long long elements) {
    param += elements;
    grad += elements;
    to += elements;
    if (CORRECTED) {
      beside += elements;
    }
  }

  __device__ __forceinline__ Memory(const Launch& launch, const Tensor& t)
      : param(pointer<const typename P::Storage>(launch, t, PARAM)),
        grad(pointer<const typename G::Storage>(launch, t, GRAD)),
        beside(CORRECTED ? pointer<signed char>(launch, t, BESIDE) : nullptr),
        // Of the other forms there are no updates.
        updates(P::FORM == PLAIN && (launch.flags & UPDATES) != 0) {
    to = pointer<typename P::Storage>(launch, t, updates ? UPDATE : PARAM);
  }

  // Whether four elements can be accessed at once.
  __device__ __forceinline__ bool aligned() const {
    return is_aligned(param, P_BYTES) && is_aligned(to, P_BYTES) && is_aligned(grad, G_BYTES) &&
           (!CORRECTED || is_aligned(beside, EACH));
  }

  // Four parameters and gradients as they lie in memory.
  struct Fetched {
    Packed<P> param;
    Packed<G> grad;
    unsigned corrections;
  };

  template <bool Wide>
  __device__ __forceinline__ Fetched fetch(long long at, int count) const {
    return {lowbit::fetch<P, Wide>(param, at, count), lowbit::fetch<G, Wide>(grad, at, count),
            CORRECTED ? load_bytes<Wide>(beside + at, count) : 0};
  }

  // The same of a warp's block in shared memory: parameters, gradients, corrections.
  static constexpr int P_BYTES = EACH * sizeof(typename P::Storage);
  static constexpr int G_BYTES = EACH * sizeof(typename G::Storage);
  static constexpr int GRADS = LANES * P_BYTES;
  static constexpr int CORRECTIONS = GRADS + LANES * G_BYTES;
  static constexpr int STAGE = CORRECTIONS + (CORRECTED ? BLOCK : 0);

  __device__ __forceinline__ void copy(SharedAddress to, long long at) const {
    copy_async<P_BYTES>(to + P_BYTES * lane_index(), param + at);
    copy_async<G_BYTES>(to + GRADS + G_BYTES * lane_index(), grad + at);
    if constexpr (CORRECTED) {
      copy_async<EACH>(to + CORRECTIONS + EACH * lane_index(), beside + at);
    }
  }

  __device__ static __forceinline__ Fetched fetch(SharedAddress from) {
    Fetched fetched{};
    load_shared(from + P_BYTES * lane_index(), fetched.param);
    load_shared(from + GRADS + G_BYTES * lane_index(), fetched.grad);
    if constexpr (CORRECTED) {
      load_shared(from + CORRECTIONS + EACH * lane_index(), fetched.corrections);
    }
    return fetched;
  }

  // What a step updates.
  __device__ static __forceinline__ void decode(const Fetched& from, float (&p)[EACH],
                                                float (&g)[EACH]) {
    unpack<P>(from.param, p);
    unpack<G>(from.grad, g);
    if constexpr (CORRECTED) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        p[i] = join_correction(__float_as_uint(p[i]) >> 16,
                               static_cast<signed char>(from.corrections >> 8 * i));
      }
    }
  }

  // The reverse; `draws()` gives the draws of four elements, for stochastic rounding.
  template <bool Wide, typename Draws>
  __device__ __forceinline__ void store_params(long long at, int count, const float (&x)[EACH],
                                               Draws draws) const {
    if constexpr (P::FORM == STOCHASTIC_WEIGHTS) {
      const uint2 drawn = draws();
      const unsigned b[EACH] = {
          stochastic_bf16(x[0], drawn.x & 0xffff), stochastic_bf16(x[1], drawn.x >> 16),
          stochastic_bf16(x[2], drawn.y & 0xffff), stochastic_bf16(x[3], drawn.y >> 16)};
      if constexpr (Wide) {
        *reinterpret_cast<uint2*>(to + at) = make_uint2(b[0] | b[1] << 16, b[2] | b[3] << 16);
      } else {
        for (int i = 0; i < count; ++i) {
          to[at + i] = static_cast<typename P::Storage>(i == 0   ? b[0]
                                                        : i == 1 ? b[1]
                                                        : i == 2 ? b[2]
                                                                 : b[3]);
        }
      }
    } else {
      store<P, Wide>(to, at, count, x);
    }
    if constexpr (CORRECTED) {
      unsigned corrections = 0;
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const int correction = split_correction(x[i], Bf16::encode(x[i]));
        corrections |= (static_cast<unsigned>(correction) & 0xff) << 8 * i;
      }
      store_bytes<Wide>(beside + at, count, corrections);
    }
  }
};

// Elements of a unit.
template <typename States>
inline constexpr int UNIT = States::PARTS * BLOCK;

// Where a warp's unit is in the grid of a tensor; unused, it takes no instructions.
template <typename States, bool USED>
struct Position {
  unsigned row = 0;
  unsigned block = 0;
  int left = 1;    // blocks that the row has here, from this one on
  int blocks = 1;  // and all of them

  // Of a unit of a tensor whose rows are whole blocks, and may have been merged to one (`table.rs`).
  __device__ __forceinline__ Position(const Tensor& t, long long unit) {
    if (USED) {
      const long long columns = columns_of(t);
      // No device has memory for 2^31 of them.
      blocks = columns == 0 ? 1 : static_cast<int>((columns + UNIT<States> - 1) / UNIT<States>);
      const long long before = unit / blocks;
      row = static_cast<unsigned>(before);
      block = static_cast<unsigned>(unit - before * blocks);
      left = blocks - static_cast<int>(block);
    }
  }

  // The same in the grid of the global tensor, for random numbers, which count modulo 2^32. Rows here
  // are consecutive ones of it (`Kernel::of`), and start with a block.
  __device__ __forceinline__ Position in_global(const Tensor& t) const {
    Position there = *this;
    if (USED) {
      there.row += t.first_row;
      there.block += static_cast<unsigned>(t.first_col / UNIT<States>);
    }
    return there;
  }

  __device__ __forceinline__ void advance(int units) {
    if (USED) {
      block += units;
      left -= units;
      if (left <= 0) {
        const int rows = 1 - left / blocks;
        row += rows;
        block -= rows * blocks;
        left += rows * blocks;
      }
    }
  }

  // All lanes of a warp call it together.
  __device__ __forceinline__ uint2 draws(const Stream& stream, unsigned purpose, int part) const {
    const int col = part * BLOCK + EACH * lane_index();
    const unsigned group = block * (UNIT<States> / Stream::GROUP) + col / Stream::GROUP;
    return stream.draws_of_warp(purpose, row, group);
  }

  __device__ static __forceinline__ long long columns_of(const Tensor& t) {
    long long columns = 1;
    for (int axis = t.lead; axis < t.axes; ++axis) {
      columns *= t.shape[axis];
    }
    return columns;
  }
};

// Where it is in the grid of the global tensor, if any random numbers are drawn.
template <typename P, typename States>
using Drawing = Position<States, P::FORM == STOCHASTIC_WEIGHTS || States::DRAWS>;

// What a lane reads of a unit, by part.
template <typename P, typename G, typename States>
struct Fetched {
  typename Memory<P, G>::Fetched numbers[States::PARTS];
  typename States::Fetched states[States::PARTS];
};

template <typename P, typename States, typename G>
__device__ __forceinline__ void keep_unit(const Memory<P, G>& memory, const Place& place) {
#pragma unroll
  for (int i = 0; i < States::PARTS; ++i) {
    const Place part = place.part(i);
    keep<P>(memory.to, memory.updates, part.element, part.count());
  }
}

template <bool Wide, typename P, typename G, typename States>
__device__ __forceinline__ Fetched<P, G, States> fetch_unit(const States& states,
                                                            const Memory<P, G>& memory,
                                                            const Place& place) {
  Fetched<P, G, States> fetched{};
#pragma unroll
  for (int i = 0; i < States::PARTS; ++i) {
    const Place part = place.part(i);
    fetched.numbers[i] = memory.template fetch<Wide>(part.element, part.count());
    fetched.states[i] = states.template fetch<Wide>(part);
  }
  return fetched;
}

template <typename P, typename G, typename States, bool Wide>
__device__ __forceinline__ void step_unit(const Launch& launch, const Shared& shared,
                                          const States& states, const Memory<P, G>& memory,
                                          const Place& place,
                                          const Fetched<P, G, States>& fetched,
                                          const Drawing<P, States>& position, bool in_range,
                                          bool skip_blocks) {
  using Rule = typename States::Rule;
  const Scalars& s = shared.scalars;
  // Coupled decay is part of the gradient, and may hide that that is not finite.
  const bool coupled = s.l2 != 0.0f;
  Quad all[States::PARTS];
  Largest largest{0.0f, 0.0f};
  float largest_square = 0.0f;
  bool bad = false, usual = true;
#pragma unroll
  for (int part = 0; part < States::PARTS; ++part) {
    Quad& x = all[part];
    memory.decode(fetched.numbers[part], x.p, x.g);
    states.decode(fetched.states[part], x.m, x.v);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      x.g[i] = scale_gradient(x.g[i], s);  // R1
      if (!States::V_SHOWS_NON_FINITE) {
        largest_square = max_nan(largest_square, __fmul_rn(x.g[i], x.g[i]));
      }
    }
    if (coupled) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        bad = bad || non_finite(x.g[i]);
      }
      Rule::couple(x, s);
    }
    usual = Rule::moments(x, shared, launch.flags) && usual;
    raise_largest<Wide>(largest, x, place.part(part).count());
  }
  const bool fast =
      usual && in_range && largest.m <= LARGEST_MOMENT && largest.v <= LARGEST_MOMENT;
  unsigned v_maximum = 0;
  if constexpr (States::V_SHOWS_NON_FINITE) {
    v_maximum = warp_max(__float_as_uint(largest.v));
  }
  if (skip_blocks) {
    if (!States::V_SHOWS_NON_FINITE) {
      bad = __any_sync(ALL_LANES, magnitude(largest_square) >= INF_BITS) != 0;
    } else if (coupled) {
      bad = __any_sync(ALL_LANES, bad) != 0;
    } else if (v_maximum >= INF_BITS) {
      // A gradient whose square is not finite makes v so, which may have been so before.
      for (int part = 0; part < States::PARTS; ++part) {
        const Place at = place.part(part);
        float g[EACH];
        load<G, Wide>(memory.grad, at.element, at.count(), g);
        for (int i = 0; i < EACH; ++i) {
          bad = bad || non_finite(scale_gradient(g[i], s));
        }
      }
      bad = __any_sync(ALL_LANES, bad) != 0;
    }
    if (bad) {
      if (lane_index() == 0 && launch.skipped != nullptr) {
        atomicAdd(launch.skipped, 1ull);
      }
      keep_unit<P, States>(memory, place);
      return;
    }
  }
  const auto scales = States::Scales::of(largest.m, v_maximum);
#pragma unroll
  for (int part = 0; part < States::PARTS; ++part) {
    Quad& x = all[part];
    const Place at = place.part(part);
    Rule::updates(x, coupled, fast, s);
    if (!memory.updates) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        x.g[i] = __fadd_rn(x.p[i], x.g[i]);  // R8
      }
    }
    const auto draws = [&](unsigned purpose) {
      return position.draws(stream_of(launch, shared), purpose, part);
    };
    memory.template store_params<Wide>(at.element, at.count(), x.g,
                                       [&] { return draws(WEIGHT_DRAW); });
    states.template store<Wide>(at, x, scales, usual,
                                [&](int state) { return draws(STATE_DRAW + state); });
  }
  states.store_scales(place, scales);
}

// The units `first` .. `end` - 1 of any tensor.
template <typename P, typename G, typename States>
__device__ __forceinline__ void step_ragged(const Launch& launch, const Shared& shared,
                                            const typename States::Tables& tables,
                                            long long first, long long end, bool in_range,
                                            bool skip_blocks) {
  const Tensor& t = shared.tensor;
  const Memory<P, G> memory(launch, t);
  const States states(launch, shared, tables);
#pragma unroll 1
  for (long long unit = first + warp_index(); unit < end; unit += WARPS) {
    const long long row = unit / t.units, block = unit - row * t.units;
    const long long col = block * UNIT<States> + EACH * lane_index();
    const long long rest = t.cols - col;
    const Position<States, true> here(t, unit);
    Place place;
    place.unit = unit;
    place.element = row * t.cols + col;
    place.byte = row * ((t.cols + 1) / 2) + col / 2;
    place.rest = rest < UNIT<States> ? static_cast<int>(rest) : UNIT<States>;
    place.row = here.row;
    place.block = here.block;
    if (shared.skip) {
      keep_unit<P, States>(memory, place);
    } else {
      step_unit<P, G, States, false>(launch, shared, states, memory, place,
                                     fetch_unit<false>(states, memory, place),
                                     Drawing<P, States>(t, unit).in_global(t), in_range,
                                     skip_blocks);
    }
  }
}

// Units on their way to shared memory while one is computed, as many as a thread block has room for.
template <typename P, typename G, typename States>
__device__ constexpr int units_ahead() {
  if constexpr (States::MOST_AHEAD == 0) {
    return 0;
  } else {
    constexpr int ROOM = (SHARED_MEMORY - States::TABLES - sizeof(Shared)) / WARPS;
    constexpr int UNITS = ROOM / (States::PARTS * (Memory<P, G>::STAGE + States::STAGE));
    static_assert(UNITS > 0, "a thread block has no room for the units at hand");
    return UNITS > States::MOST_AHEAD ? States::MOST_AHEAD : UNITS - 1;
  }
}

// `count` full units, every WARPS-th from `first` on; pointers are those of the lane's first element.
template <typename P, typename G, typename States>
__device__ __forceinline__ void step_full(const Launch& launch, const Shared& shared, States states,
                                          Memory<P, G> memory, long long first, int count,
                                          bool in_range, bool skip_blocks) {
  const Tensor& t = shared.tensor;
  Drawing<P, States> position = Drawing<P, States>(t, first).in_global(t);
  // The unit that is fetched next, so many units from the pointers.
  Position<States, true> next(t, first);
  const auto place_of_next = [&](int units) {
    const int elements = units * UNIT<States>;
    const Place place{units, elements, elements / 2, UNIT<States>, next.row, next.block};
    next.advance(WARPS);
    return place;
  };
  const Place at_hand{0, 0, 0, UNIT<States>, 0, 0};
  const auto step = [&](const Fetched<P, G, States>& fetched) {
    step_unit<P, G, States, true>(launch, shared, states, memory, at_hand, fetched, position,
                                  in_range, skip_blocks);
    memory.advance(WARPS * UNIT<States>);
    states.advance(WARPS, 0);
    position.advance(WARPS);
  };
  constexpr int AHEAD = units_ahead<P, G, States>();
  if constexpr (AHEAD == 0) {
#pragma unroll 1
    for (int left = count; left > 0; --left) {
      step(fetch_unit<true>(states, memory, place_of_next(0)));
    }
  } else {
    constexpr int NUMBERS = Memory<P, G>::STAGE, PART = NUMBERS + States::STAGE;
    __shared__ Ring<AHEAD, States::PARTS * PART> rings[WARPS];
    pipeline(
        rings[warp_index()], count,
        [&](SharedAddress to, int ahead) {
          const Place place = place_of_next(ahead * WARPS);
#pragma unroll
          for (int i = 0; i < States::PARTS; ++i) {
            const Place part = place.part(i);
            memory.copy(to + i * PART, part.element);
            states.copy(to + i * PART + NUMBERS, part);
          }
        },
        [&](SharedAddress from) {
          Fetched<P, G, States> fetched{};
#pragma unroll
          for (int i = 0; i < States::PARTS; ++i) {
            fetched.numbers[i] = memory.fetch(from + i * PART);
            fetched.states[i] = states.fetch(from + i * PART + NUMBERS);
          }
          step(fetched);
        });
  }
}

template <typename P, typename G, typename States>
__device__ __forceinline__ void step_tensors(const Launch& launch) {
  __shared__ Shared shared;
  WalkerOf<States::Rule::scalars, States::Rule::complete> walker(launch, shared);
  typename States::Tables tables;
  bool first_task = true;
#pragma unroll 1
  for (long long task = blockIdx.x; task < launch.tasks; task += gridDim.x) {
    const Task at = walker.enter(task);
    walker.count_skipped(at);
    const Tensor& t = shared.tensor;
    if (first_task) {
      // All tensors of the launch have the same codebooks.
      tables.fill(launch, t);
      first_task = false;
    }
    const bool in_range = States::Rule::in_range(shared.scalars);
    const bool skip_blocks = !States::GLOBAL && (launch.flags & SKIP_BLOCKS) != 0;
    const int count = units_per_task(UNIT<States>);
    const long long first = at.index * count;
    const long long left = t.rows * t.units - first;
    const int here = left < count ? static_cast<int>(left) : count;
    // From here on pointers are those of the lane.
    Memory<P, G> memory(launch, t);
    States states(launch, shared, tables);
    // A tensor whose rows are whole blocks is a single row here (`table.rs`).
    const bool wide = t.rows == 1 && !shared.skip && states.aligned() && memory.aligned();
    const long long elements = t.cols - first * UNIT<States>;
    const int full = !wide ? 0 : elements < here * UNIT<States> ? here - 1 : here;
    memory.advance((first + warp_index()) * UNIT<States> + EACH * lane_index());
    states.advance(first + warp_index(), lane_index());
    const int of_warp = (full - warp_index() + WARPS - 1) / WARPS;
    step_full(launch, shared, states, memory, first + warp_index(), of_warp, in_range, skip_blocks);
    step_ragged<P, G, States>(launch, shared, tables, first + full, first + here, in_range,
                              skip_blocks);
  }
}

}  // namespace lowbit

// The kernels of an optimizer and one form of its states, by parameter and gradient, in the order of
// `FORMS`; RESIDENT thread blocks are to fit a multiprocessor, FEWER with weights that are not plain,
// which take more registers.
#define LOWBIT_COMMON_KERNEL(OPTIMIZER, SUFFIX, STEP, STATES, RESIDENT, FEWER, NAMES, P, G)      \
  extern "C" __global__ void __launch_bounds__(                                                  \
      lowbit::THREADS, lowbit::P::FORM == lowbit::PLAIN ? RESIDENT : FEWER)                      \
      lowbit_k_##OPTIMIZER##_##NAMES##_##SUFFIX(const lowbit::Launch __grid_constant__ launch) { \
    lowbit::STEP<lowbit::P, lowbit::G, STATES>(launch);                                          \
  }
#define LOWBIT_COMMON_KERNELS(...)                                            \
  LOWBIT_COMMON_KERNEL(__VA_ARGS__, f32_f32, F32, F32)                        \
  LOWBIT_COMMON_KERNEL(__VA_ARGS__, f32_bf16, F32, Bf16)                      \
  LOWBIT_COMMON_KERNEL(__VA_ARGS__, bf16_f32, Bf16, F32)                      \
  LOWBIT_COMMON_KERNEL(__VA_ARGS__, bf16_bf16, Bf16, Bf16)                    \
  LOWBIT_COMMON_KERNEL(__VA_ARGS__, f16_f32, F16, F32)                        \
  LOWBIT_COMMON_KERNEL(__VA_ARGS__, f16_f16, F16, F16)                        \
  LOWBIT_COMMON_KERNEL(__VA_ARGS__, bf16stochastic_f32, Bf16Stochastic, F32)  \
  LOWBIT_COMMON_KERNEL(__VA_ARGS__, bf16stochastic_bf16, Bf16Stochastic, Bf16) \
  LOWBIT_COMMON_KERNEL(__VA_ARGS__, bf16correction8_f32, Bf16Correction8, F32) \
  LOWBIT_COMMON_KERNEL(__VA_ARGS__, bf16correction8_bf16, Bf16Correction8, Bf16)
