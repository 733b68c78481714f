// AdamW over one tensor: the loop that the kernels share. What they differ in, the form of the
// states, is a type with `load` and `store` for the elements of one lane.
//
// A unit of work is one block of at most 128 elements of one row (`layout.rs`), done by one warp:
// lane l has the elements 4 l .. 4 l + 3. Full blocks of aligned tensors use wide accesses.

#pragma once

#include "dtypes.cuh"
#include "numerics.cuh"
#include "warp.cuh"

namespace lowbit {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / LANES;
constexpr int BLOCK = 128;

// The elements of one lane within one unit.
struct Place {
  long long unit;     // also the index of its scale
  long long element;  // first element, in the tensor
  long long byte;     // its byte of 4-bit codes
  int count;          // elements that exist, 0 .. 4
  bool full;          // the unit has BLOCK elements
};

__device__ __forceinline__ Place find_place(const AdamwParams& a, long long unit) {
  // Most tensors are a single row to a kernel, and 64-bit division is dear.
  const long long row = a.rows == 1 ? 0 : unit / a.blocks;
  const long long start = (unit - row * a.blocks) * BLOCK;
  const long long col = start + 4 * lane_index();
  const long long left = a.cols - col;
  Place place;
  place.unit = unit;
  place.element = row * a.cols + col;
  place.byte = row * ((a.cols + 1) / 2) + col / 2;
  place.count = left >= 4 ? 4 : left > 0 ? static_cast<int>(left) : 0;
  place.full = a.cols - start >= BLOCK;
  return place;
}

template <typename P, typename G, typename States, bool Wide>
__device__ __forceinline__ void step_unit(const AdamwParams& a, const Scalars& s,
                                          const States& states, const Place& place) {
  float p[4], g[4], m[4], v[4], result[4];
  load<P, Wide>(a.param, place.element, place.count, p);
  load<G, Wide>(a.grad, place.element, place.count, g);
  states.template load<Wide>(a, place, m, v);

  bool bad = false;
  for (int i = 0; i < 4; ++i) {
    g[i] = scale_gradient(g[i], s);  // R1
    bad = bad || non_finite(g[i]);
  }
  if (a.skip_blocks && __any_sync(ALL_LANES, bad)) {
    if (lane_index() == 0 && a.skipped != nullptr) {
      atomicAdd(a.skipped, 1ull);
    }
    if (a.update != nullptr) {
      const float zeros[4] = {};
      store<P, Wide>(a.update, place.element, place.count, zeros);
    }
    return;
  }

  for (int i = 0; i < 4; ++i) {
    const Element e = adamw(p[i], g[i], m[i], v[i], s);  // R2 .. R8
    result[i] = a.update == nullptr ? e.param : e.update;
    m[i] = e.m;
    v[i] = e.v;
  }
  void* to = a.update == nullptr ? a.param : a.update;
  store<P, Wide>(to, place.element, place.count, result);
  states.template store<Wide>(a, place, m, v);
}

// One tensor, by all warps of the grid in turn: any number of thread blocks does the whole.
template <typename P, typename G, typename States>
__device__ __forceinline__ void step_tensor(const AdamwParams& a) {
  __shared__ Scalars shared;
  if (threadIdx.x == 0) {
    shared = a.hyper == nullptr ? a.scalars : compute_scalars(a.hyper, *a.step);
  }
  __syncthreads();
  const Scalars s = shared;
  if (s.skip && blockIdx.x == 0 && threadIdx.x == 0 && a.skipped != nullptr) {
    atomicAdd(a.skipped + 1, 1ull);
  }
  if (s.skip && a.update == nullptr) {
    return;
  }

  const States states{};
  const long long units = a.rows * a.blocks;
  const long long warps = static_cast<long long>(gridDim.x) * WARPS;
  const long long first = static_cast<long long>(blockIdx.x) * WARPS + threadIdx.x / LANES;
  for (long long unit = first; unit < units; unit += warps) {
    const Place place = find_place(a, unit);
    if (s.skip) {
      const float zeros[4] = {};
      store<P, false>(a.update, place.element, place.count, zeros);
    } else if (a.wide && place.full) {
      step_unit<P, G, States, true>(a, s, states, place);
    } else {
      step_unit<P, G, States, false>(a, s, states, place);
    }
  }
}

}  // namespace lowbit

// The four kernels of one form of the states: parameter and gradient are each f32 or bf16.
#define LOWBIT_ADAMW_KERNEL(NAME, P, G, STATES)                                \
  extern "C" __global__ void __launch_bounds__(lowbit::THREADS)                \
      NAME(const __grid_constant__ lowbit::AdamwParams params) {               \
    lowbit::step_tensor<lowbit::P, lowbit::G, lowbit::STATES>(params);         \
  }
#define LOWBIT_ADAMW_KERNELS(SUFFIX, STATES)                                   \
  LOWBIT_ADAMW_KERNEL(lowbit_k_adamw_f32_f32_##SUFFIX, F32, F32, STATES)       \
  LOWBIT_ADAMW_KERNEL(lowbit_k_adamw_f32_bf16_##SUFFIX, F32, Bf16, STATES)     \
  LOWBIT_ADAMW_KERNEL(lowbit_k_adamw_bf16_f32_##SUFFIX, Bf16, F32, STATES)     \
  LOWBIT_ADAMW_KERNEL(lowbit_k_adamw_bf16_bf16_##SUFFIX, Bf16, Bf16, STATES)
