// AdamW on common tensors: the loop that their kernels share. What they differ in, the form of the
// states, is a type with `load` and `store` for the elements of one lane.
//
// A unit of work is one block of at most 128 elements of one row (`layout.rs`), done by one warp:
// lane l has the elements 4 l .. 4 l + 3. Full blocks of aligned tensors use wide accesses.

#pragma once

#include "approx.cuh"
#include "dtypes.cuh"
#include "tasks.cuh"

namespace lowbit {

constexpr int BLOCK = 128;
constexpr int EACH = BLOCK / LANES;  // elements of a lane

// The elements of one lane within one unit.
struct Place {
  long long unit;     // also the index of its scale
  long long element;  // first element
  long long byte;     // of its 4-bit codes
  int count;          // elements that exist, 0 .. 4
};

// One lane's part of a unit.
struct Quad {
  float p[EACH];
  float g[EACH];  // becomes the update
  float m[EACH];
  float v[EACH];
};

// The new moments, and whether root and quotient may be taken without checks: all in range, where an
// m of +0 is too.
__device__ __forceinline__ bool step_moments(Quad& x, const Scalars& s) {
  bool fast = true;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    x.m[i] = first_moment(x.g[i], x.m[i], s);
    x.v[i] = second_moment(x.g[i], x.v[i], s);
    // Without branches.
    fast = fast & (x.v[i] >= LEAST_V) &
           ((fabsf(x.m[i]) >= LEAST_M) | (__float_as_uint(x.m[i]) == 0));
  }
  return fast;
}

// The largest magnitudes of a lane's moments.
struct Largest {
  float m;
  float v;
};

template <bool Wide>
__device__ __forceinline__ Largest largest_of(const Quad& x, int count) {
  Largest largest{0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    // What a lane computes beyond the end of a row has no part in the scale.
    if (Wide || i < count) {
      largest.m = max_nan(largest.m, fabsf(x.m[i]));
      largest.v = max_nan(largest.v, fabsf(x.v[i]));
    }
  }
  return largest;
}

// g becomes the update.
__device__ __forceinline__ void step_updates(Quad& x, bool fast, const Scalars& s) {
  if (fast) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      x.g[i] = update_in_range(x.m[i], x.v[i], __fmul_rn(s.lr_wd, x.p[i]), s);
    }
  } else {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      x.g[i] = update_of(x.m[i], x.v[i], __fmul_rn(s.lr_wd, x.p[i]), s);
    }
  }
}

__device__ __forceinline__ bool is_aligned(const void* data, int bytes) {
  return (reinterpret_cast<unsigned long long>(data) & (bytes - 1)) == 0;
}

// Zero updates for a unit that stays as it is.
template <typename Dtype>
__device__ __forceinline__ void keep(void* to, bool updates, long long element, int count) {
  if (updates) {
    const float zeros[EACH] = {};
    store<Dtype, false>(to, element, count, zeros);
  }
}

// Parameters, gradients and where the result goes: parameters or updates.
template <typename P, typename G>
struct Memory {
  const typename P::Storage* param;
  const typename G::Storage* grad;
  typename P::Storage* to;
  bool updates;

  __device__ __forceinline__ void advance(long long elements) {
    param += elements;
    grad += elements;
    to += elements;
  }

  __device__ __forceinline__ Memory(const Launch& launch, const Tensor& t)
      : param(pointer<const typename P::Storage>(launch, t, PARAM)),
        grad(pointer<const typename G::Storage>(launch, t, GRAD)),
        updates((launch.flags & UPDATES) != 0) {
    to = pointer<typename P::Storage>(launch, t, updates ? UPDATE : PARAM);
  }

  // Whether four elements can be accessed at once.
  __device__ __forceinline__ bool aligned() const {
    constexpr int P_BYTES = EACH * sizeof(*param), G_BYTES = EACH * sizeof(*grad);
    return is_aligned(param, P_BYTES) && is_aligned(to, P_BYTES) && is_aligned(grad, G_BYTES);
  }
};

template <typename P, typename G, typename States, bool Wide>
__device__ __forceinline__ void step_unit(const Launch& launch, const Shared& shared,
                                          const States& states, const Memory<P, G>& memory,
                                          const Place& place, bool in_range, bool skip_blocks) {
  const Scalars& s = shared.scalars;
  Quad x;
  load<P, Wide>(memory.param, place.element, place.count, x.p);
  load<G, Wide>(memory.grad, place.element, place.count, x.g);
  states.template load<Wide>(place, x.m, x.v);
  float largest_square = 0.0f;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    x.g[i] = scale_gradient(x.g[i], s);  // R1
    if (!States::V_SHOWS_NON_FINITE) {
      largest_square = max_nan(largest_square, __fmul_rn(x.g[i], x.g[i]));
    }
  }
  const bool usual = step_moments(x, s);
  const Largest largest = largest_of<Wide>(x, place.count);
  const bool fast =
      usual && in_range && largest.m <= LARGEST_MOMENT && largest.v <= LARGEST_MOMENT;
  const unsigned v_maximum =
      States::V_SHOWS_NON_FINITE ? warp_max(__float_as_uint(largest.v)) : 0;
  if (skip_blocks) {
    bool bad = false;
    if (!States::V_SHOWS_NON_FINITE) {
      bad = __any_sync(ALL_LANES, magnitude(largest_square) >= INF_BITS) != 0;
    } else if (v_maximum >= INF_BITS) {
      // A gradient whose square is not finite makes v so, but v may have been so before.
      float g[EACH];
      load<G, Wide>(memory.grad, place.element, place.count, g);
      for (int i = 0; i < EACH; ++i) {
        bad = bad || non_finite(scale_gradient(g[i], s));
      }
      bad = __any_sync(ALL_LANES, bad) != 0;
    }
    if (bad) {
      if (lane_index() == 0 && launch.skipped != nullptr) {
        atomicAdd(launch.skipped, 1ull);
      }
      keep<P>(memory.to, memory.updates, place.element, place.count);
      return;
    }
  }
  step_updates(x, fast, s);
  states.template store<Wide>(place, x, largest.m, v_maximum, usual);
  if (!memory.updates) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      x.g[i] = __fadd_rn(x.p[i], x.g[i]);  // R8
    }
  }
  store<P, Wide>(memory.to, place.element, place.count, x.g);
}

// The units `first` .. `end` - 1 of any tensor.
template <typename P, typename G, typename States>
__device__ __forceinline__ void step_ragged(const Launch& launch, const Shared& shared,
                                            const typename States::Tables& tables,
                                            long long first, long long end, bool in_range,
                                            bool skip_blocks) {
  const Tensor& t = shared.tensor;
  const Memory<P, G> memory(launch, t);
  const States states(launch, t, tables);
#pragma unroll 1
  for (long long unit = first + warp_index(); unit < end; unit += WARPS) {
    const long long row = unit / t.units;
    const long long col = (unit - row * t.units) * BLOCK + EACH * lane_index();
    const long long rest = t.cols - col;
    Place place;
    place.unit = unit;
    place.element = row * t.cols + col;
    place.byte = row * ((t.cols + 1) / 2) + col / 2;
    place.count = rest >= EACH ? EACH : rest > 0 ? static_cast<int>(rest) : 0;
    if (shared.skip) {
      keep<P>(memory.to, memory.updates, place.element, place.count);
    } else {
      step_unit<P, G, States, false>(launch, shared, states, memory, place, in_range,
                                     skip_blocks);
    }
  }
}

template <typename P, typename G, typename States>
__device__ __forceinline__ void step_tensors(const Launch& launch) {
  __shared__ Shared shared;
  Walker walker(launch, shared);
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
    const bool in_range = scalars_in_range(shared.scalars);
    const bool skip_blocks = (launch.flags & SKIP_BLOCKS) != 0;
    const int count = units_per_task(BLOCK);
    const long long first = at.index * count;
    const long long left = t.rows * t.units - first;
    const int here = left < count ? static_cast<int>(left) : count;
    // From here on pointers are those of the lane, and go from unit to unit.
    Memory<P, G> memory(launch, t);
    States states(launch, t, tables);
    // A tensor whose rows are whole blocks is a single row here (`table.rs`).
    const bool wide = t.rows == 1 && !shared.skip && states.aligned() && memory.aligned();
    const long long elements = t.cols - first * BLOCK;
    const int full = !wide ? 0 : elements < here * BLOCK ? here - 1 : here;
    memory.advance((first + warp_index()) * BLOCK + EACH * lane_index());
    states.advance(first + warp_index(), lane_index());
    const Place place{0, 0, 0, EACH};
#pragma unroll 1
    for (int unit = warp_index(); unit < full; unit += WARPS) {
      step_unit<P, G, States, true>(launch, shared, states, memory, place, in_range, skip_blocks);
      memory.advance(WARPS * BLOCK);
      states.advance(WARPS, 0);
    }
    step_ragged<P, G, States>(launch, shared, tables, first + full, first + here, in_range,
                              skip_blocks);
  }
}

}  // namespace lowbit

// The four kernels of one form of the states: parameter and gradient are each f32 or bf16.
#define LOWBIT_ADAMW_KERNEL(NAME, P, G, STATES)                          \
  extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 3)       \
      NAME(const lowbit::Launch __grid_constant__ launch) {              \
    lowbit::step_tensors<lowbit::P, lowbit::G, lowbit::STATES>(launch);  \
  }
#define LOWBIT_ADAMW_KERNELS(SUFFIX, STATES)                                  \
  LOWBIT_ADAMW_KERNEL(lowbit_k_adamw_f32_f32_##SUFFIX, F32, F32, STATES)      \
  LOWBIT_ADAMW_KERNEL(lowbit_k_adamw_f32_bf16_##SUFFIX, F32, Bf16, STATES)    \
  LOWBIT_ADAMW_KERNEL(lowbit_k_adamw_bf16_f32_##SUFFIX, Bf16, F32, STATES)    \
  LOWBIT_ADAMW_KERNEL(lowbit_k_adamw_bf16_bf16_##SUFFIX, Bf16, Bf16, STATES)
