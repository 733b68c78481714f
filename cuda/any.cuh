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
// Launch: 256 threads, one dimension; each warp does a unit of its task in turn, four elements a lane
// where the tensor allows it (`is_wide`), else one. 42 kB of shared memory. An optimizer has two
// kernels: `collect` comes first where tensors need statistics as a whole (non-finite flags, maxima of
// slices), and the step; `lowbit_k_finish` is last, which brings the new maxima into the states.
//
// Rounding steps: R1 in `gradient` (unit.cuh), R2 to R7 in the rule, R8 here; the rounding of the
// parameter in weights.cuh, codes in codes.cuh.

#pragma once

#include "wide.cuh"

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

// The state that a rule may keep as factors (factored.cuh); -1 for rules that have none.
template <typename Rule>
inline constexpr int factored_state = -1;

// The state that a rule keeps as maxima of its slices alone; -1 for rules that have none.
template <typename Rule>
inline constexpr int cover_state = -1;

// Thread blocks that a multiprocessor shall have registers for, of the kernel that steps.
template <typename Rule>
inline constexpr int resident_blocks = 2;

// What the rule needs of a whole tensor, whose statistics are complete.
template <typename Rule>
__device__ inline void complete(const Launch&, const Tensor&, Shared&) {}

template <typename Rule>
__device__ inline void prepare(const Launch& launch, const Tensor& t, Shared& shared) {
  note_width(launch, t, shared);
  complete<Rule>(launch, t, shared);
}

template <typename Rule>
__device__ __forceinline__ bool is_factored(const Unit& unit, int which) {
  return which == factored_state<Rule> && unit.shared.tensor.state[which].kind == FACTORS;
}

// A state of an element before the step; a factored one is made of the new factors.
template <typename Rule>
__device__ __forceinline__ float old_state(const Unit& unit, int which, int at) {
  if (is_factored<Rule>(unit, which)) {
    return unit.decode_factors(which, at, Source::statistics);
  }
  return which == cover_state<Rule>
             ? unit.smallest(unit.shared.tensor.state[which], at, Source::stored)
             : unit.decode(which, at);
}

// Of four elements.
template <typename Rule>
__device__ __forceinline__ void old_states(const WideUnit& unit, int which, int at,
                                           float (&old)[FOUR]) {
  if (is_factored<Rule>(unit, which)) {
    unit.decode_factors(which, at, Source::statistics, old);
  } else if (which == cover_state<Rule>) {
    unit.smallest_of(unit.shared.tensor.state[which], at, Source::stored, old);
  } else {
    unit.decode(which, at, old);
  }
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
      x.old[i] = old_state<Rule>(unit, i, at);
    }
  }
  e = Rule::element(x, unit.shared, unit.launch.flags);
  e.p = x.p;
  return e;
}

// Four elements, as `step_element`.
template <typename Rule>
__device__ __forceinline__ void step_elements(const WideUnit& unit, int at, Element (&e)[FOUR]) {
#pragma unroll
  for (int i = 0; i < FOUR; ++i) {
    e[i] = Element{};
  }
  if (at >= unit.length) {
    return;
  }
  float p[FOUR], g[FOUR], old[Rule::STATES][FOUR] = {};
  unit.parameters(at, p);
  unit.gradients(at, g);
#pragma unroll
  for (int which = 0; which < Rule::STATES; ++which) {
    if (which < unit.shared.tensor.states) {
      old_states<Rule>(unit, which, at, old[which]);
    }
  }
#pragma unroll
  for (int i = 0; i < FOUR; ++i) {
    Input x{};
    x.p = p[i];
    x.g = g[i];
#pragma unroll
    for (int which = 0; which < Rule::STATES; ++which) {
      x.old[which] = old[which][i];
    }
    e[i] = Rule::element(x, unit.shared, unit.launch.flags);
    e[i].p = x.p;
  }
}

// The new values of one state.
__device__ __forceinline__ void next_of(const Element (&e)[FOUR], int which, float (&x)[FOUR]) {
#pragma unroll
  for (int i = 0; i < FOUR; ++i) {
    x[i] = e[i].next[which];
  }
}

__device__ __forceinline__ bool any_in_blocks(const Tensor& t) {
  bool any = false;
  for (int i = 0; i < t.states; ++i) {
    any = any || in_blocks(t.state[i]);
  }
  return any;
}

// Stores a parameter or its update.
__device__ inline void store_element(const Unit& unit, int at, const Element& e) {
  const Tensor& t = unit.shared.tensor;
  if (unit.launch.flags & UPDATES) {
    store_value(pointer<void>(unit.launch, t, UPDATE), t.param_dtype, unit.element(at), e.update);
    return;
  }
  const unsigned draw = t.weights == STOCHASTIC_WEIGHTS
                            ? unit.random().draw(WEIGHT_DRAW, unit.global_row, unit.global_col + at)
                            : 0;
  const Stored stored = split_weight(__fadd_rn(e.p, e.update), t.param_dtype, t.weights, draw);  // R8
  store_bits(pointer<void>(unit.launch, t, PARAM), value_bytes(t.param_dtype), unit.element(at),
             stored.param);
  store_bits(pointer<void>(unit.launch, t, BESIDE), beside_bytes(t.weights), unit.element(at),
             stored.beside);
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
  if (unit.shared.wide) {
    const WideUnit fours(unit);
    for (int at = FOUR * lane_index(); at < unit.length; at += CHUNK) {
      float g[FOUR];
      fours.gradients(at, g);
      for (int i = 0; i < FOUR; ++i) {
        bad = bad || non_finite(g[i]);
      }
    }
  } else {
    for (int at = lane_index(); at < unit.length; at += LANES) {
      bad = bad || non_finite(unit.gradient(at));
    }
  }
  return __any_sync(ALL_LANES, bad) != 0;
}

// Raises the maxima of blocks by 128 elements.
template <typename Rule>
__device__ __forceinline__ void raise_all_blocks(const Tensor& t, int chunk,
                                                 const Element (&e)[FOUR], Maxima& maxima) {
#pragma unroll
  for (int which = 0; which < Rule::STATES; ++which) {
    if (which < t.states && in_blocks(t.state[which])) {
      float x[FOUR];
      next_of(e, which, x);
      raise_blocks(t.state[which], chunk, x, maxima[which]);
    }
  }
}

// Stores 128 elements, and all of their states but the scales.
template <typename Rule>
__device__ __forceinline__ void store_elements(const WideUnit& unit, int at,
                                               const Element (&e)[FOUR], const Maxima& maxima) {
  if (at >= unit.length) {
    return;
  }
  float p[FOUR], update[FOUR];
#pragma unroll
  for (int i = 0; i < FOUR; ++i) {
    p[i] = e[i].p;
    update[i] = e[i].update;
  }
  unit.store(at, p, update);
#pragma unroll
  for (int which = 0; which < Rule::STATES; ++which) {
    if (which < unit.shared.tensor.states && which != cover_state<Rule> &&
        !is_factored<Rule>(unit, which)) {
      float x[FOUR];
      next_of(e, which, x);
      unit.encode(which, at, x, maxima[which]);
    }
  }
}

// A unit with finite gradients, or one whose gradients do not matter.
template <typename Rule>
__device__ __forceinline__ void step_wide(const WideUnit& unit, Maxima& maxima) {
  const Tensor& t = unit.shared.tensor;
  const int chunks = (unit.length + CHUNK - 1) / CHUNK;
  // Larger blocks than a chunk are computed twice: their largest values must be known first.
  const bool twice = chunks > 1 && any_in_blocks(t);
#pragma unroll 1
  for (int i = twice ? -chunks : 0; i < chunks; ++i) {
    const int chunk = (i < 0 ? i + chunks : i) * CHUNK;
    const int at = chunk + FOUR * lane_index();
    Element e[FOUR];
    step_elements<Rule>(unit, at, e);
    if (i < 0 || !twice) {
      raise_all_blocks<Rule>(t, chunk, e, maxima);
      __syncwarp();
    }
    if (i >= 0) {
      store_elements<Rule>(unit, at, e, maxima);
    }
  }
  __syncwarp();  // the old scales are read before they are written
  for (int i = 0; i < t.states; ++i) {
    unit.store_block_scales(t.state[i], maxima[i], nullptr);
  }
  __syncwarp();  // and the maxima before they are those of the next unit
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
  if (unit.shared.wide) {
    step_wide<Rule>(WideUnit(unit), maxima);
    return;
  }
  if (any_in_blocks(t)) {
    for (int chunk = 0; chunk < unit.length; chunk += LANES) {
      const Element e = step_element<Rule>(unit, chunk + lane_index());
#pragma unroll
      for (int i = 0; i < Rule::STATES; ++i) {
        if (i < t.states && in_blocks(t.state[i])) {
          raise_block(t.state[i], chunk, magnitude(e.next[i]), maxima[i]);
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
      if (i < t.states && i != cover_state<Rule> && !is_factored<Rule>(unit, i)) {
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

// Whether a state has maxima of its new values, which are collected before the step.
template <typename Rule>
__device__ __forceinline__ bool has_collected_maxima(const Tensor& t, int which) {
  return which != factored_state<Rule> && which < t.states && has_maxima(t.state[which]);
}

// Whether any state has.
template <typename Rule>
__device__ __forceinline__ bool has_collected_maxima(const Tensor& t) {
  bool any = false;
#pragma unroll
  for (int i = 0; i < Rule::STATES; ++i) {
    any = any || has_collected_maxima<Rule>(t, i);
  }
  return any;
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
    wanted[i] = has_collected_maxima<Rule>(t, i);
    any = any || wanted[i];
  }
  if (!any) {
    return;
  }
  if (unit.shared.wide) {
    const WideUnit fours(unit);
    for (int chunk = 0; chunk < unit.length; chunk += CHUNK) {
      const int at = chunk + FOUR * lane_index();
      Element e[FOUR];
      step_elements<Rule>(fours, at, e);
#pragma unroll
      for (int i = 0; i < Rule::STATES; ++i) {
        if (wanted[i]) {
          float x[FOUR];
          next_of(e, i, x);
          fours.raise_maxima_of(t.state[i], at, x);
        }
      }
    }
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

// The kernel that steps.
#define LOWBIT_STEP(RULE, STEP)                                                            \
  extern "C" __global__ void                                                               \
      __launch_bounds__(lowbit::THREADS, lowbit::resident_blocks<RULE>)                    \
      STEP(const lowbit::Launch __grid_constant__ launch) {                                \
    __shared__ lowbit::Shared shared;                                                      \
    __shared__ lowbit::Maxima maxima[lowbit::WARPS];                                       \
    __shared__ lowbit::Correction correction[lowbit::WARPS];                               \
    lowbit::each_unit<RULE::scalars, lowbit::prepare<RULE>>(                               \
        launch, shared, false, [&](const lowbit::Unit& unit) {                             \
          const int warp = lowbit::warp_index();                                           \
          lowbit::step_unit<RULE>(unit, maxima[warp], correction[warp]);                   \
        });                                                                                \
  }

// A kernel that calls BODY with every unit.
#define LOWBIT_UNITS(RULE, NAME, BODY)                                                     \
  extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)                         \
      NAME(const lowbit::Launch __grid_constant__ launch) {                                \
    __shared__ lowbit::Shared shared;                                                      \
    lowbit::each_unit<RULE::scalars, lowbit::note_width>(                                  \
        launch, shared, false, [&](const lowbit::Unit& unit) { BODY(unit); });             \
  }

// The two kernels of an optimizer.
#define LOWBIT_ELEMENT_WISE(RULE, STEP, COLLECT) \
  LOWBIT_STEP(RULE, STEP)                        \
  LOWBIT_UNITS(RULE, COLLECT, lowbit::collect_unit<RULE>)
