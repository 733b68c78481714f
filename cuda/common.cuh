// A step on common tensors: the loop that their kernels share. What they differ in is the form of the
// states, and the rule, which the states name:
//
//   struct States {
//     using Rule = ...;
//     static constexpr int PARTS;       // of a unit
//     static constexpr int SHARING;     // parts that share a scale: all of a unit, or one
//     using OfOneBlock = ...;           // the same with units that are single blocks
//     static constexpr int MOST_AHEAD;  // units on their way to shared memory; 0: read where they are
//     static constexpr int TABLES;      // bytes of shared memory
//     static constexpr bool V_SHOWS_NON_FINITE;  // the largest v is not finite where a gradient is not
//     static constexpr bool GLOBAL;  // need statistics of the whole tensor, which is skipped as a whole
//     static constexpr bool DRAWS;  // states are rounded at random
//     struct Tables;   // what decodes and codes; `fill` is called by all threads
//     struct Fetched;  // of a part, by `fetch` from memory, or after `copy` of a unit from shared memory
//     void decode(const Fetched& from, float (&m)[EACH], float (&v)[EACH]) const;
//     struct Scales;  // new ones of a block, by `of`
//     // Of blocks that are not among those that stay. Draws: gives those of four elements of each part for
//     // a state, to all lanes together, and is called for every unit.
//     void store<Wide>(const Place& place, const Quad (&all)[PARTS], const Scales (&scales)[BLOCKS_OF],
//                      Staying staying, bool usual, Draws draws) const;
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
//     // g of all parts becomes the update. Coupled: the decay was part of the gradient. Fast: all is in
//     // range.
//     static void updates(Quad (&all)[PARTS], bool coupled, bool fast, const Scalars& s);
//   };
//
// A unit of work is PARTS x 128 elements, which one warp does at once: of each part lane l has the elements
// 4 l .. 4 l + 3. A block, which has a scale (`layout.rs`), is a unit, or a part of one where warps do two
// blocks at once, so that what a unit costs is shared by twice the elements, and one hides the other's
// latencies. Full blocks of aligned tensors use wide accesses; all others are units by themselves.

#pragma once

#include "approx.cuh"
#include "dtypes.cuh"
#include "pipeline.cuh"
#include "tasks.cuh"
#include "weights.cuh"

namespace lowbit {

constexpr int BLOCK = 128;           // elements of a part of a unit
constexpr int EACH = BLOCK / LANES;  // and of a lane

// The elements of one lane within one part of a unit.
struct Place {
  long long block_at;  // its first block: the index of its scale
  long long element;  // first element
  long long byte;     // of its 4-bit codes
  int rest;           // elements of the row from the first one on, or less if none are missing
  unsigned row;       // of the unit
  unsigned block;     // within its row

  // Elements that exist, 0 .. 4.
  __device__ __forceinline__ int count() const { return rest >= EACH ? EACH : rest > 0 ? rest : 0; }

  // That of a part, given the first one's.
  __device__ __forceinline__ Place part(int index) const {
    return {block_at, element + index * BLOCK, byte + index * (BLOCK / 2), rest - index * BLOCK, row, block};
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

  // The reverse; `drawn` is for stochastic rounding.
  template <bool Wide>
  __device__ __forceinline__ void store_params(long long at, int count, const float (&x)[EACH],
                                               uint2 drawn) const {
    if constexpr (P::FORM == STOCHASTIC_WEIGHTS) {
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

// Elements of a unit, and of a block; blocks of a unit.
template <typename States>
inline constexpr int UNIT = States::PARTS * BLOCK;
template <typename States>
inline constexpr int SCALED = States::SHARING * BLOCK;
template <typename States>
inline constexpr int BLOCKS_OF = States::PARTS / States::SHARING;

// Blocks of a unit that a gradient that is not finite leaves as they are: bits.
struct Staying {
  unsigned bits = 0;

  __device__ __forceinline__ bool has(int block) const { return bits >> block & 1; }
};

// Where a warp's block, or the first of its unit, is in the grid of a tensor; unused, it takes no
// instructions.
template <typename States, bool USED>
struct Position {
  unsigned row = 0;
  unsigned block = 0;
  int left = 1;    // blocks that the row has here, from this one on
  int blocks = 1;  // and all of them

  // Of a tensor whose rows are whole blocks, and may have been merged to one (`table.rs`).
  __device__ __forceinline__ Position(const Tensor& t, long long at) {
    if (USED) {
      const long long columns = columns_of(t);
      // No device has memory for 2^31 of them.
      blocks = columns == 0 ? 1 : static_cast<int>((columns + SCALED<States> - 1) / SCALED<States>);
      const long long before = at / blocks;
      row = static_cast<unsigned>(before);
      block = static_cast<unsigned>(at - before * blocks);
      left = blocks - static_cast<int>(block);
    }
  }

  // The same in the grid of the global tensor, for random numbers, which count modulo 2^32. Rows here
  // are consecutive ones of it (`Kernel::of`), and start with a block.
  __device__ __forceinline__ Position in_global(const Tensor& t) const {
    Position there = *this;
    if (USED) {
      there.row += t.first_row;
      there.block += static_cast<unsigned>(t.first_col / SCALED<States>);
    }
    return there;
  }

  __device__ __forceinline__ void advance(int count) {
    if (USED) {
      block += count;
      left -= count;
      if (left <= 0) {
        const int rows = 1 - left / blocks;
        row += rows;
        block -= rows * blocks;
        left += rows * blocks;
      }
    }
  }

  // The group of the lane's columns in a part of the block.
  __device__ __forceinline__ unsigned group(int part = 0) const {
    const int col = part * BLOCK + EACH * lane_index();
    return block * (SCALED<States> / Stream::GROUP) + col / Stream::GROUP;
  }

  __device__ static __forceinline__ long long columns_of(const Tensor& t) {
    long long columns = 1;
    for (int axis = t.lead; axis < t.axes; ++axis) {
      columns *= t.shape[axis];
    }
    return columns;
  }
};

// Random numbers of a warp's units, each `STEP` blocks from the one before; without any, it takes no
// instructions.
template <typename P, typename States, int STEP>
struct Drawing {
  static constexpr bool USED = P::FORM == STOCHASTIC_WEIGHTS || States::DRAWS;

  Position<States, USED> position;  // in the grid of the global tensor
  DrawsAhead ahead[2];  // of weights and of the state, where units are of one part

  __device__ __forceinline__ Drawing(const Tensor& t, long long first)
      : position(Position<States, USED>(t, first).in_global(t)) {}

  __device__ __forceinline__ void advance() { position.advance(STEP); }

  // Those of every part. All lanes of a warp call it together, for every unit.
  __device__ __forceinline__ void draw(const Stream& stream, unsigned purpose,
                                       uint2 (&drawn)[States::PARTS]) {
    static_assert(States::PARTS <= 2, "the places that are drawn for at once");
    if constexpr (States::PARTS == 2) {
      Position<States, USED> second = position;
      if constexpr (States::SHARING == 1) {
        second.advance(1);
      }
      const unsigned rows[2] = {position.row, second.row};
      const unsigned groups[2] = {position.group(), second.group(States::SHARING - 1)};
      stream.draws_of_warp(purpose, rows, groups, drawn);
    } else {
      drawn[0] = ahead[purpose].draw(
          stream, purpose, [&](unsigned (&rows)[2], unsigned (&groups)[2]) {
            Position<States, USED> next = position;
            next.advance(STEP);
            rows[0] = position.row, rows[1] = next.row;
            groups[0] = position.group(), groups[1] = next.group();
          });
    }
  }
};

// What a lane reads of a unit, by part.
template <typename P, typename G, typename States>
struct Fetched {
  typename Memory<P, G>::Fetched numbers[States::PARTS];
  typename States::Fetched states[States::PARTS];
};

// Zero updates for the blocks of a unit that stay as they are.
template <typename P, typename States, typename G>
__device__ __forceinline__ void keep_blocks(const Memory<P, G>& memory, const Place& place,
                                            Staying staying) {
#pragma unroll
  for (int i = 0; i < States::PARTS; ++i) {
    if (staying.has(i / States::SHARING)) {
      const Place part = place.part(i);
      keep<P>(memory.to, memory.updates, part.element, part.count());
    }
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

// The blocks of a unit with a gradient that is not finite, whose squares, or v, have such maxima.
template <typename P, typename G, typename States, bool Wide>
__device__ __forceinline__ Staying find_non_finite(const Memory<P, G>& memory, const Place& place,
                                                   const unsigned (&maxima)[BLOCKS_OF<States>],
                                                   const Scalars& s) {
  Staying staying;
#pragma unroll
  for (int block = 0; block < BLOCKS_OF<States>; ++block) {
    bool bad = maxima[block] >= INF_BITS;
    if (States::V_SHOWS_NON_FINITE && bad) {
      // A gradient whose square is not finite makes v so, which may have been so before.
      bad = false;
      for (int i = 0; i < States::SHARING; ++i) {
        const Place at = place.part(block * States::SHARING + i);
        float g[EACH];
        load<G, Wide>(memory.grad, at.element, at.count(), g);
        for (int k = 0; k < EACH; ++k) {
          bad = bad || non_finite(scale_gradient(g[k], s));
        }
      }
      bad = __any_sync(ALL_LANES, bad) != 0;
    }
    staying.bits |= bad ? 1u << block : 0u;
  }
  return staying;
}

template <typename P, typename G, typename States, bool Wide, int STEP>
__device__ __forceinline__ void step_unit(const Launch& launch, const Shared& shared,
                                          const States& states, const Memory<P, G>& memory,
                                          const Place& place,
                                          const Fetched<P, G, States>& fetched,
                                          Drawing<P, States, STEP>& drawing, bool in_range,
                                          bool skip_blocks) {
  using Rule = typename States::Rule;
  constexpr int BLOCKS = BLOCKS_OF<States>;
  const Scalars& s = shared.scalars;
  // Coupled decay is part of the gradient, and may hide that that is not finite.
  const bool coupled = s.l2 != 0.0f;
  Quad all[States::PARTS];
  Largest largest[BLOCKS] = {};
  float largest_square[BLOCKS] = {};
  Staying staying;
  bool usual = true;
#pragma unroll
  for (int part = 0; part < States::PARTS; ++part) {
    Quad& x = all[part];
    memory.decode(fetched.numbers[part], x.p, x.g);
    states.decode(fetched.states[part], x.m, x.v);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      x.g[i] = scale_gradient(x.g[i], s);  // R1
    }
  }
  if (!States::V_SHOWS_NON_FINITE) {
#pragma unroll
    for (int part = 0; part < States::PARTS; ++part) {
      float& most = largest_square[part / States::SHARING];
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        most = max_nan(most, __fmul_rn(all[part].g[i], all[part].g[i]));
      }
    }
  }
  if (coupled) {
#pragma unroll
    for (int part = 0; part < States::PARTS; ++part) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        staying.bits |= non_finite(all[part].g[i]) ? 1u << part / States::SHARING : 0u;
      }
      Rule::couple(all[part], s);
    }
  }
#pragma unroll
  for (int part = 0; part < States::PARTS; ++part) {
    usual = Rule::moments(all[part], shared, launch.flags) & usual;
    raise_largest<Wide>(largest[part / States::SHARING], all[part], place.part(part).count());
  }
  bool fast = usual & in_range;
  unsigned v_maxima[BLOCKS] = {};
#pragma unroll
  for (int block = 0; block < BLOCKS; ++block) {
    fast = fast & (largest[block].m <= LARGEST_MOMENT) & (largest[block].v <= LARGEST_MOMENT);
    if constexpr (States::V_SHOWS_NON_FINITE) {
      v_maxima[block] = warp_max(__float_as_uint(largest[block].v));
    }
  }
  if (skip_blocks) {
    if (States::V_SHOWS_NON_FINITE && coupled) {
      Staying of_lane = staying;
      staying.bits = 0;
#pragma unroll
      for (int block = 0; block < BLOCKS; ++block) {
        staying.bits |= __any_sync(ALL_LANES, of_lane.has(block)) != 0 ? 1u << block : 0u;
      }
    } else {
      unsigned maxima[BLOCKS], most = 0;
#pragma unroll
      for (int block = 0; block < BLOCKS; ++block) {
        maxima[block] = States::V_SHOWS_NON_FINITE
                            ? v_maxima[block]
                            : warp_max(magnitude(largest_square[block]));
        most = maxima[block] > most ? maxima[block] : most;
      }
      staying.bits = 0;
      if (most >= INF_BITS) {
        staying = find_non_finite<P, G, States, Wide>(memory, place, maxima, s);
      }
    }
    if (staying.bits != 0) {
      if (lane_index() == 0 && launch.skipped != nullptr) {
        atomicAdd(launch.skipped, static_cast<unsigned long long>(__popc(staying.bits)));
      }
      keep_blocks<P, States>(memory, place, staying);
    }
  } else {
    staying.bits = 0;
  }
  typename States::Scales scales[BLOCKS];
#pragma unroll
  for (int block = 0; block < BLOCKS; ++block) {
    scales[block] = States::Scales::of(largest[block].m, v_maxima[block]);
  }
  Rule::updates(all, coupled, fast, s);
  uint2 of_weights[States::PARTS] = {};
  if constexpr (P::FORM == STOCHASTIC_WEIGHTS) {
    drawing.draw(stream_of(launch, shared), WEIGHT_DRAW, of_weights);
  }
#pragma unroll
  for (int part = 0; part < States::PARTS; ++part) {
    Quad& x = all[part];
    const Place at = place.part(part);
    if (!memory.updates) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        x.g[i] = __fadd_rn(x.p[i], x.g[i]);  // R8
      }
    }
    if (!staying.has(part / States::SHARING)) {
      memory.template store_params<Wide>(at.element, at.count(), x.g, of_weights[part]);
    }
  }
  states.template store<Wide>(place, all, scales, staying, usual,
                              [&](int state, uint2 (&drawn)[States::PARTS]) {
                                drawing.draw(stream_of(launch, shared), STATE_DRAW + state, drawn);
                              });
}

// The blocks `first` .. `end` - 1 of any tensor.
template <typename P, typename G, typename States>
__device__ __forceinline__ void step_ragged(const Launch& launch, const Shared& shared,
                                            const typename States::Tables& tables,
                                            long long first, long long end, bool in_range,
                                            bool skip_blocks) {
  const Tensor& t = shared.tensor;
  const Memory<P, G> memory(launch, t);
  const States states(launch, shared, tables);
  Drawing<P, States, WARPS> drawing(t, first + warp_index());
#pragma unroll 1
  for (long long at = first + warp_index(); at < end; at += WARPS) {
    const long long row = at / t.units, block = at - row * t.units;
    const long long col = block * UNIT<States> + EACH * lane_index();
    const long long rest = t.cols - col;
    const Position<States, true> here(t, at);
    Place place;
    place.block_at = at;
    place.element = row * t.cols + col;
    place.byte = row * ((t.cols + 1) / 2) + col / 2;
    place.rest = rest < UNIT<States> ? static_cast<int>(rest) : UNIT<States>;
    place.row = here.row;
    place.block = here.block;
    if (shared.skip) {
      keep_blocks<P, States>(memory, place, Staying{1});
    } else {
      step_unit<P, G, States, false>(launch, shared, states, memory, place,
                                     fetch_unit<false>(states, memory, place), drawing, in_range,
                                     skip_blocks);
    }
    drawing.advance();
  }
}

// Units on their way to shared memory while one is computed, as many as a thread block has room for.
template <typename P, typename G, typename States>
__device__ constexpr int units_ahead() {
  if constexpr (States::MOST_AHEAD == 0) {
    return 0;
  } else {
    constexpr int ROOM = (SHARED_MEMORY - States::TABLES - sizeof(Shared)) / WARPS;
    return items_ahead(ROOM, States::PARTS * Memory<P, G>::STAGE + States::STAGE, States::MOST_AHEAD);
  }
}

// `count` full units, every WARPS-th from that of block `first` on; pointers are those of the lane's first
// element.
template <typename P, typename G, typename States>
__device__ __forceinline__ void step_full(const Launch& launch, const Shared& shared, States states,
                                          Memory<P, G> memory, long long first, int count,
                                          bool in_range, bool skip_blocks) {
  constexpr int BLOCKS = BLOCKS_OF<States>;
  const Tensor& t = shared.tensor;
  Drawing<P, States, WARPS * BLOCKS> drawing(t, first);
  // The unit that is fetched next, so many units from the pointers.
  Position<States, true> next(t, first);
  const auto place_of_next = [&](int units) {
    const int elements = units * UNIT<States>;
    const Place place{units * BLOCKS, elements, elements / 2, UNIT<States>, next.row, next.block};
    next.advance(WARPS * BLOCKS);
    return place;
  };
  const Place at_hand{0, 0, 0, UNIT<States>, 0, 0};
  const auto step = [&](const Fetched<P, G, States>& fetched) {
    step_unit<P, G, States, true>(launch, shared, states, memory, at_hand, fetched, drawing,
                                  in_range, skip_blocks);
    memory.advance(WARPS * UNIT<States>);
    states.advance(WARPS * BLOCKS, 0);
    drawing.advance();
  };
  constexpr int AHEAD = units_ahead<P, G, States>();
  static_assert(AHEAD > 0 || BLOCKS == 1, "`fetch` from memory knows one scale");
  if constexpr (AHEAD == 0) {
#pragma unroll 1
    for (int left = count; left > 0; --left) {
      step(fetch_unit<true>(states, memory, place_of_next(0)));
    }
  } else {
    constexpr int NUMBERS = Memory<P, G>::STAGE, STATES = States::PARTS * NUMBERS;
    __shared__ Ring<AHEAD, STATES + States::STAGE> rings[WARPS];
    pipeline(
        rings[warp_index()], count,
        [&](SharedAddress to, int ahead) {
          const Place place = place_of_next(ahead * WARPS);
#pragma unroll
          for (int i = 0; i < States::PARTS; ++i) {
            memory.copy(to + i * NUMBERS, place.part(i).element);
          }
          states.copy(to + STATES, place);
        },
        [&](SharedAddress from) {
          Fetched<P, G, States> fetched{};
#pragma unroll
          for (int i = 0; i < States::PARTS; ++i) {
            fetched.numbers[i] = memory.fetch(from + i * NUMBERS);
            fetched.states[i] = states.fetch(from + STATES, i);
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
  Share share(launch);
#pragma unroll 1
  while (share.begin < share.end) {
    const Task at = walker.enter(share.begin);
    walker.count_skipped(at);
    const Tensor& t = shared.tensor;
    if (first_task) {
      // All tensors of the launch have the same codebooks.
      tables.fill(launch, t);
      first_task = false;
    }
    const bool in_range = States::Rule::in_range(shared.scalars);
    const bool skip_blocks = !States::GLOBAL && (launch.flags & SKIP_BLOCKS) != 0;
    // In blocks.
    const int per_task = units_per_task(SCALED<States>);
    const long long first = at.index * per_task;
    const long long left = t.rows * t.units - first;
    const long long most = share.take(walker.end_of_segment()) * per_task;
    const long long here = left < most ? left : most;
    // From here on pointers are those of the lane.
    Memory<P, G> memory(launch, t);
    States states(launch, shared, tables);
    // A tensor whose rows are whole blocks is a single row here (`table.rs`).
    const bool wide = t.rows == 1 && !shared.skip && states.aligned() && memory.aligned();
    const long long elements = t.cols - first * SCALED<States>;
    const long long full = !wide ? 0 : elements < here * SCALED<States> ? here - 1 : here;
    // No device has memory for 2^31 of them.
    const int units = static_cast<int>(full / BLOCKS_OF<States>);
    const long long own = first + warp_index() * BLOCKS_OF<States>;
    memory.advance(own * SCALED<States> + EACH * lane_index());
    states.advance(own, lane_index());
    step_full(launch, shared, states, memory, own, (units - warp_index() + WARPS - 1) / WARPS,
              in_range, skip_blocks);
    step_ragged<P, G, typename States::OfOneBlock>(
        launch, shared, tables, first + units * BLOCKS_OF<States>, first + here, in_range,
        skip_blocks);
  }
}

}  // namespace lowbit

// The kernels of an optimizer and one form of its states, by parameter and gradient, in the order of
// `FORMS`; RESIDENT thread blocks are to fit a multiprocessor.
#define LOWBIT_COMMON_KERNEL(OPTIMIZER, SUFFIX, STEP, STATES, RESIDENT, NAMES, P, G)             \
  extern "C" __global__ void __launch_bounds__(lowbit::THREADS, RESIDENT)                        \
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
