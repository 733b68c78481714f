// AdamW and Adam on common tensors: the rule of adamw_block4.cu, adamw_block8.cu, adamw_f32.cu,
// adamw_factor4.cu and adamw_rank1.cu.
//
// Rounding steps: R2 to R4 in numerics.cuh, R5 to R7 in approx.cuh where all is in its range, else in
// numerics.cuh.

#pragma once

#include "codes.cuh"
#include "common.cuh"

namespace lowbit {

// Whether root and quotient of new moments may be taken without checks, as far as the smallest say; an m
// of +0 is in range, too. Without branches.
__device__ __forceinline__ bool are_in_range(const float (&m)[EACH], const float (&v)[EACH]) {
  bool all = true;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    all = all & (v[i] >= LEAST_V) & ((fabsf(m[i]) >= LEAST_M) | (__float_as_uint(m[i]) == 0));
  }
  return all;
}

// The new moments, and whether they are in range.
__device__ __forceinline__ bool step_moments(Quad& x, const Scalars& s) {
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    x.m[i] = first_moment(x.g[i], x.m[i], s);
    x.v[i] = second_moment(x.g[i], x.v[i], s);
  }
  return are_in_range(x.m, x.v);
}

// g becomes the update. L2: the decay was part of the gradient. Fast: all is in range.
template <bool L2, bool FAST>
__device__ __forceinline__ void step_updates_of(Quad& x, const Scalars& s) {
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const float decay = L2 ? 0.0f : __fmul_rn(s.lr_wd, x.p[i]);
    x.g[i] = FAST ? update_in_range(x.m[i], x.v[i], decay, s) : update_of(x.m[i], x.v[i], decay, s);
  }
}

template <bool L2>
__device__ __forceinline__ void step_updates(Quad& x, bool fast, const Scalars& s) {
  if (fast) {
    step_updates_of<L2, true>(x, s);
  } else {
    step_updates_of<L2, false>(x, s);
  }
}

// The same of several, with one branch.
template <bool L2, int PARTS>
__device__ __forceinline__ void step_updates(Quad (&all)[PARTS], bool fast, const Scalars& s) {
  if (fast) {
#pragma unroll
    for (Quad& x : all) {
      step_updates_of<L2, true>(x, s);
    }
  } else {
#pragma unroll
    for (Quad& x : all) {
      step_updates_of<L2, false>(x, s);
    }
  }
}

// New scales of a block, of its largest m in each lane and the bits of its largest v.
struct BlockScales {
  float m, v;

  __device__ static __forceinline__ BlockScales of(float largest_m, unsigned v_maximum) {
    return {block_scale(warp_max(__float_as_uint(largest_m))), block_scale(v_maximum)};
  }
};

struct AdamwOfFour {
  __device__ static Scalars scalars(const Launch& launch, const float* hyper, int step) {
    return adamw_scalars(launch, hyper, step);
  }

  __device__ static __forceinline__ void complete(const Launch&, const Tensor&, Shared&) {}

  __device__ static __forceinline__ bool in_range(const Scalars& s) { return scalars_in_range(s); }

  __device__ static __forceinline__ void couple(Quad& x, const Scalars& s) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      x.g[i] = __fmaf_rn(s.l2, x.p[i], x.g[i]);
    }
  }

  __device__ static __forceinline__ bool moments(Quad& x, const Shared& shared, int) {
    return step_moments(x, shared.scalars);
  }

  template <int PARTS>
  __device__ static __forceinline__ void updates(Quad (&all)[PARTS], bool coupled, bool fast,
                                                 const Scalars& s) {
    if (coupled) {
      step_updates<true>(all, fast, s);
    } else {
      step_updates<false>(all, fast, s);
    }
  }
};

}  // namespace lowbit
