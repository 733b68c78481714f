// One step of an element-wise optimizer on any tensor: every dtype, weight form, quantizer, rounding
// and policy. What happens to one element is the optimizer's rule, in a file of its own
// (adamw_any.cu, sgdm.cu, lion.cu): the mirror of `Rule` in `src/optimizer/mod.rs`,
//
//   struct Rule {
//     static constexpr int STATES;  // the most that it has
//     // The scalars of a step whose hyper-parameters lie in device memory; on the host they are
//     // those of `Scalars::new` in `src/backend/cuda/params.rs`.
//     static Scalars scalars(const Launch& launch, const float* hyper, int step);
//     static Element element(const Input& x, const Shared& shared, int flags);
//   };
//
// Bytes moved per element: those of parameter (twice), gradient, states (twice) and what is kept
// beside the parameter (twice). States with block scales read everything once more, as their largest
// values must be known first, and twice more for each with corrected scales; for units of up to 4096
// elements that comes from the L1 cache.
//
// Launch: 256 threads, one dimension; each warp does a unit of its task in turn, one element a lane.
// 42 kB of shared memory. An optimizer has two kernels: `collect` comes first where tensors need
// statistics as a whole (non-finite flags, maxima of slices), and the step; `lowbit_k_finish` is
// last, which brings the new maxima into the states.
//
// Rounding steps: R1 in `gradient` (unit.cuh), R2 to R7 in the rule, R8 here; the rounding of the
// parameter in weights.cuh, codes in codes.cuh.

#pragma once

#include "unit.cuh"

namespace lowbit {

// One element before the step.
struct Input {
  float p;
  float g;
  float old[MAX_STATES];  // 0 for states that the tensor does not have
};

// What the step makes of it.
struct Element {
  float p;  // as it was
  float update;
  float next[MAX_STATES];
};

// The gradient with weight decay, where that is part of it.
__device__ __forceinline__ float coupled_gradient(const Input& x, const Scalars& s) {
  return s.l2 == 0.0f ? x.g : __fmaf_rn(s.l2, x.p, x.g);
}

// The scalars of rules without bias correction.
__device__ inline Scalars uncorrected_scalars(const Launch& launch, const float* hyper, int step) {
  Scalars s = compute_scalars(hyper, step, launch.flags);
  s.lr_bc1 = hyper[0];
  return s;
}

// One element; what lies beyond the unit is 0.
template <typename Rule>
__device__ inline Element step_element(const Unit& unit, int at) {
  Element e{};
  if (at >= unit.length) {
    return e;
  }
  Input x{};
  x.p = unit.parameter(at);
  x.g = unit.gradient(at);
#pragma unroll
  for (int i = 0; i < Rule::STATES; ++i) {
    if (i < unit.shared.tensor.states) {
      x.old[i] = unit.decode(i, at);
    }
  }
  e = Rule::element(x, unit.shared, unit.launch.flags);
  e.p = x.p;
  return e;
}

// Stores a parameter or its update.
__device__ inline void store_element(const Unit& unit, int at, const Element& e) {
  const Tensor& t = unit.shared.tensor;
  if (unit.launch.flags & UPDATES) {
    store_value(pointer<void>(unit.launch, t, UPDATE), t.param_dtype, unit.element(at), e.update);
    return;
  }
  const unsigned draw = t.weights == STOCHASTIC_WEIGHTS
                            ? unit.random.draw(WEIGHT_DRAW, unit.global_row, unit.global_col + at)
                            : 0;
  store_weight(pointer<void>(unit.launch, t, PARAM), pointer<void>(unit.launch, t, BESIDE),
               t.param_dtype, t.weights, unit.element(at), __fadd_rn(e.p, e.update), draw);  // R8
}

// Leaves a unit as it is: its updates are 0.
__device__ inline void keep_unit(const Unit& unit) {
  if (unit.launch.flags & UPDATES) {
    const Tensor& t = unit.shared.tensor;
    void* update = pointer<void>(unit.launch, t, UPDATE);
    for (int at = lane_index(); at < unit.length; at += LANES) {
      store_value(update, t.param_dtype, unit.element(at), 0.0f);
    }
  }
}

__device__ inline bool any_non_finite(const Unit& unit) {
  bool bad = false;
  for (int at = lane_index(); at < unit.length; at += LANES) {
    bad = bad || non_finite(unit.gradient(at));
  }
  return __any_sync(ALL_LANES, bad) != 0;
}

template <typename Rule>
__device__ inline void step_unit(const Unit& unit, Maxima& maxima, Correction& correction) {
  const Tensor& t = unit.shared.tensor;
  if (unit.shared.skip) {
    keep_unit(unit);
    return;
  }
  if (unit.launch.flags & SKIP_BLOCKS && !t.global && any_non_finite(unit)) {
    if (lane_index() == 0 && unit.launch.skipped != nullptr) {
      atomicAdd(unit.launch.skipped, 1ull);
    }
    keep_unit(unit);
    return;
  }
  bool in_blocks = false;
  for (int i = 0; i < t.states; ++i) {
    in_blocks = in_blocks || (t.state[i].kind == CODES && t.state[i].scaling == PER_BLOCK);
  }
  if (in_blocks) {
    for (int chunk = 0; chunk < unit.length; chunk += LANES) {
      const Element e = step_element<Rule>(unit, chunk + lane_index());
#pragma unroll
      for (int i = 0; i < Rule::STATES; ++i) {
        if (i < t.states && t.state[i].kind == CODES && t.state[i].scaling == PER_BLOCK) {
          raise_block(t.state[i], chunk, e.next[i], maxima[i]);
        }
      }
    }
    __syncwarp();
    for (int i = 0; i < t.states; ++i) {
      if (t.state[i].option == SCALE_CORRECTION) {
        unit.correct_scales(i, maxima[i], correction, [&](int at) {
          const Element e = step_element<Rule>(unit, at);
          return i == 0 ? e.next[0] : i == 1 ? e.next[1] : e.next[2];
        });
      }
    }
    __syncwarp();
  }
  for (int chunk = 0; chunk < unit.length; chunk += LANES) {
    const int at = chunk + lane_index();
    const Element e = step_element<Rule>(unit, at);
    __syncwarp();  // codes that share a byte are read before it is written
    if (at < unit.length) {
      store_element(unit, at, e);
    }
#pragma unroll
    for (int i = 0; i < Rule::STATES; ++i) {
      if (i < t.states) {
        unit.encode(i, at, e.next[i], maxima[i]);
      }
    }
  }
  __syncwarp();  // the old scales are read before they are written
  for (int i = 0; i < t.states; ++i) {
    unit.store_block_scales(t.state[i], maxima[i], correction.scales[i]);
  }
  __syncwarp();  // and the maxima before they are those of the next unit
}

// Raises the statistics by one unit.
template <typename Rule>
__device__ inline void collect_unit(const Unit& unit) {
  const Tensor& t = unit.shared.tensor;
  if (any_non_finite(unit) && lane_index() == 0) {
    unit.launch.statistics[t.index] = 1;
  }
  bool wanted[Rule::STATES] = {};
  bool any = false;
#pragma unroll
  for (int i = 0; i < Rule::STATES; ++i) {
    wanted[i] = i < t.states && t.state[i].kind == CODES && t.state[i].scaling != PER_BLOCK;
    any = any || wanted[i];
  }
  if (!any) {
    return;
  }
  for (int at = lane_index(); at < unit.length; at += LANES) {
    const Element e = step_element<Rule>(unit, at);
#pragma unroll
    for (int i = 0; i < Rule::STATES; ++i) {
      if (wanted[i]) {
        unit.raise_maxima(t.state[i], at, e.next[i]);
      }
    }
  }
}

}  // namespace lowbit

// The two kernels of an optimizer.
#define LOWBIT_ELEMENT_WISE(RULE, STEP, COLLECT)                                          \
  extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)                        \
      STEP(const lowbit::Launch __grid_constant__ launch) {                               \
    __shared__ lowbit::Shared shared;                                                     \
    __shared__ lowbit::Maxima maxima[lowbit::WARPS];                                      \
    __shared__ lowbit::Correction correction[lowbit::WARPS];                              \
    lowbit::each_unit<RULE::scalars>(launch, shared, false, [&](const lowbit::Unit& unit) {\
      const int warp = lowbit::warp_index();                                              \
      lowbit::step_unit<RULE>(unit, maxima[warp], correction[warp]);                      \
    });                                                                                   \
  }                                                                                       \
  extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)                        \
      COLLECT(const lowbit::Launch __grid_constant__ launch) {                            \
    __shared__ lowbit::Shared shared;                                                     \
    lowbit::each_unit<RULE::scalars>(launch, shared, false, [&](const lowbit::Unit& unit) {\
      lowbit::collect_unit<RULE>(unit);                                                   \
    });                                                                                   \
  }
