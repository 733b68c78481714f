// A step of an optimizer on a tensor whose v is kept as factors: means of v over the rows and over the
// columns that the tensor is split into, and over all of it (Shazeer and Stern 2018). The rule is as
// in any.cuh, with
//
//   // R2, the square that v averages; of x it looks at p and g.
//   static float square(const Input& x, const Shared& shared);
//
// and is given v made of the new factors.
//
// Bytes moved per element: those of any.cuh, and the gradient (with coupled decay the parameter too)
// twice more, for the largest squares and for their sums.
//
// Launch: as any.cuh. Such a rule has four kernels, in the order of their launches: `collect`, which
// finds the largest squares, and with them the units of the sums; `sum`, which adds the squares as
// integers, so that no order of the atomics changes the result; `refresh`, which makes the new means
// in the scratch; and the step. `lowbit_k_finish` brings the new means into the states.
//
// Rounding steps: R2 in the rule; the mean of squares once, to f32, and R4 in `fresh_mean`.

#pragma once

#include "any.cuh"
#include "exact_sum.cuh"

namespace lowbit {

// Means that a task of `refresh` makes (`REFRESHED` in table.rs).
constexpr int REFRESHED = 4 * THREADS;

template <typename Rule>
__device__ __forceinline__ float square_of(const Unit& unit, int at) {
  Input x{};
  x.p = unit.parameter(at);
  x.g = unit.gradient(at);
  return Rule::square(x, unit.shared);
}

// Of four elements; what lies beyond the unit is 0.
template <typename Rule>
__device__ __forceinline__ void squares_of(const WideUnit& unit, int at, float (&squares)[FOUR]) {
  float p[FOUR] = {}, g[FOUR] = {};
  if (at < unit.length) {
    unit.parameters(at, p);
    unit.gradients(at, g);
  }
#pragma unroll
  for (int i = 0; i < FOUR; ++i) {
    Input x{};
    x.p = p[i];
    x.g = g[i];
    squares[i] = at < unit.length ? Rule::square(x, unit.shared) : 0.0f;
  }
}

template <typename Rule>
__device__ __forceinline__ const Factor* factors_of(const Launch& launch, const Tensor& t) {
  return in_table<Factor>(launch, t.state[factored_state<Rule>].codebook);
}

// Raises the statistics, the largest squares among them, by one unit.
template <typename Rule>
__device__ inline void collect_factored(const Unit& unit) {
  collect_unit<Rule>(unit);
  if (!is_factored<Rule>(unit, factored_state<Rule>)) {
    return;
  }
  const Factor* factors = factors_of<Rule>(unit.launch, unit.shared.tensor);
  if (unit.shared.wide) {
    const WideUnit fours(unit);
    for (int chunk = 0; chunk < unit.length; chunk += CHUNK) {
      const int at = chunk + FOUR * lane_index();
      float squares[FOUR];
      squares_of<Rule>(fours, at, squares);
#pragma unroll
      for (int f = 0; f < FACTOR_COUNT; ++f) {
        const long long first = unit.template factor_position<true>(factors[f], at);
        fours.raise_by(unit.launch.statistics + factors[f].word + first, along_row(unit.shared.tensor, factors[f]),
                       at, squares);
      }
    }
    return;
  }
  for (int at = lane_index(); at < unit.length; at += LANES) {
    const int value = static_cast<int>(canonical_magnitude(magnitude(square_of<Rule>(unit, at))));
#pragma unroll
    for (int f = 0; f < FACTOR_COUNT; ++f) {
      const long long position = unit.template factor_position<true>(factors[f], at);
      raise_maximum(unit.launch.statistics + factors[f].word + position, value);
    }
  }
}

// How many units a term of 1 has in a sum; 0: a term is not finite, of which nothing is added.
__device__ __forceinline__ double units_below(int largest) {
  return largest < static_cast<int>(INF_BITS) ? units_of_one(exponent_above(largest)) : 0.0;
}

// Adds the squares of one unit to the sums, four elements a lane: those that a row shares at the end of
// the unit, the others at once.
template <typename Rule>
__device__ __forceinline__ void sum_wide(const WideUnit& unit, const Factor* factors) {
  const Launch& launch = unit.launch;
  Limbs row_sum[FACTOR_COUNT];
#pragma unroll
  for (int f = 0; f < FACTOR_COUNT; ++f) {
    row_sum[f] = Limbs{0, 0};
  }
  for (int chunk = 0; chunk < unit.length; chunk += CHUNK) {
    const int at = chunk + FOUR * lane_index();
    float squares[FOUR];
    squares_of<Rule>(unit, at, squares);
#pragma unroll
    for (int f = 0; f < FACTOR_COUNT; ++f) {
      const long long first = unit.template factor_position<true>(factors[f], at);
      const int* largest = launch.statistics + factors[f].word + first;
      unsigned long long* sums = launch.sums + factors[f].sum + 2 * first;
      const bool along = along_row(unit.shared.tensor, factors[f]);
#pragma unroll
      for (int i = 0; i < FOUR; ++i) {
        const double units = at < unit.length ? units_below(largest[along ? i : 0]) : 0.0;
        if (units == 0.0) {
          continue;
        }
        const Limbs more = limbs_of(static_cast<double>(squares[i]), units);
        if (along) {
          add_limbs(sums + 2 * i, more);
        } else {
          add(row_sum[f], more);
        }
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int f = 0; f < FACTOR_COUNT; ++f) {
    const Limbs all{warp_sum(row_sum[f].high), warp_sum(row_sum[f].low)};
    if (lane_index() == 0 && !along_row(unit.shared.tensor, factors[f])) {
      const long long first = unit.template factor_position<true>(factors[f], 0);
      add_limbs(launch.sums + factors[f].sum + 2 * first, all);
    }
    __syncwarp();
  }
}

// The same one element a lane. A lane adds in registers while elements that follow each
// other have the same sum, and at the end of the unit a warp whose lanes all have the same adds once.
template <typename Rule>
__device__ inline void sum_factored(const Unit& unit) {
  if (!is_factored<Rule>(unit, factored_state<Rule>)) {
    return;
  }
  const Launch& launch = unit.launch;
  const Factor* factors = factors_of<Rule>(launch, unit.shared.tensor);
  if (unit.shared.wide) {
    sum_wide<Rule>(WideUnit(unit), factors);
    return;
  }
  long long place[FACTOR_COUNT];  // of the sum; -1: none yet
  double units[FACTOR_COUNT];
  Limbs sum[FACTOR_COUNT];
#pragma unroll
  for (int f = 0; f < FACTOR_COUNT; ++f) {
    place[f] = -1;
    units[f] = 0.0;
    sum[f] = Limbs{0, 0};
  }
  for (int at = lane_index(); at < unit.length; at += LANES) {
    const double term = static_cast<double>(square_of<Rule>(unit, at));
#pragma unroll
    for (int f = 0; f < FACTOR_COUNT; ++f) {
      const long long position = unit.template factor_position<true>(factors[f], at);
      if (position != place[f]) {
        if (place[f] >= 0) {
          add_limbs(launch.sums + factors[f].sum + 2 * place[f], sum[f]);
        }
        place[f] = position;
        units[f] = units_below(launch.statistics[factors[f].word + position]);
        sum[f] = Limbs{0, 0};
      }
      if (units[f] != 0.0) {
        add(sum[f], limbs_of(term, units[f]));
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int f = 0; f < FACTOR_COUNT; ++f) {
    const long long first = value_of_lane(place[f], 0);
    if (__any_sync(ALL_LANES, place[f] >= 0 && place[f] != first)) {
      if (place[f] >= 0) {
        add_limbs(launch.sums + factors[f].sum + 2 * place[f], sum[f]);
      }
      __syncwarp();
    } else {
      const Limbs all{warp_sum(sum[f].high), warp_sum(sum[f].low)};
      if (lane_index() == 0) {
        add_limbs(launch.sums + factors[f].sum + 2 * first, all);
      }
      __syncwarp();
    }
  }
}

// The place in the global tensor's factor of one here.
__device__ inline long long globalize(const Tensor& t, const Factor& factor, long long position) {
  long long global = 0, stride = 1;
  for (int axis = t.axes - 1; axis >= 0; --axis) {
    if (factor.axes >> axis & 1) {
      global += (position % t.shape[axis] + t.offset[axis]) * stride;
      position /= t.shape[axis];
      stride *= t.global_shape[axis];
    }
  }
  return global;
}

// R4 of the old mean and the exact mean of this step's squares, rounded once to f32.
__device__ inline float fresh_mean(const Launch& launch, const Shared& shared, const Factor& factor,
                                   float old, long long position) {
  const Scalars& s = shared.scalars;
  const long long at = globalize(shared.tensor, factor, position);
  const int largest = launch.statistics[factor.word + at];
  const float mean = mean_of_sum(launch.sums + factor.sum + 2 * at, largest, factor.count);
  return __fmaf_rn(s.beta2, old, __fmul_rn(s.one_minus_beta2, mean));
}

// Makes the new means of the tensors of a launch.
template <typename Rule>
__device__ inline void refresh(const Launch& launch, Shared& shared) {
  WalkerOf<Rule::scalars> walker(launch, shared);
  for (long long task = blockIdx.x; task < launch.tasks; task += gridDim.x) {
    const long long first = walker.enter(task).index * REFRESHED;
    const Tensor& t = shared.tensor;
    const Factor* factors = factors_of<Rule>(launch, t);
    for (long long i = first + threadIdx.x; i < first + REFRESHED; i += THREADS) {
      long long position = i;
      for (int f = 0; f < FACTOR_COUNT; ++f) {
        const long long extent = factor_extent(t, factors[f]);
        if (position < extent) {
          const int from = t.state[factored_state<Rule>].buffer + f;
          const float old = pointer<const float>(launch, t, from)[position];
          launch.fresh[factors[f].fresh + position] =
              fresh_mean(launch, shared, factors[f], old, position);
          break;
        }
        position -= extent;
      }
    }
  }
}

}  // namespace lowbit

// The kernel that makes the new means.
#define LOWBIT_REFRESH(RULE, REFRESH)                                                      \
  extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)                         \
      REFRESH(const lowbit::Launch __grid_constant__ launch) {                             \
    __shared__ lowbit::Shared shared;                                                      \
    lowbit::refresh<RULE>(launch, shared);                                                 \
  }

// The four kernels of a rule with a factored v.
#define LOWBIT_FACTORED(RULE, STEP, COLLECT, SUM, REFRESH)      \
  LOWBIT_STEP(RULE, STEP)                                       \
  LOWBIT_UNITS(RULE, COLLECT, lowbit::collect_factored<RULE>)   \
  LOWBIT_UNITS(RULE, SUM, lowbit::sum_factored<RULE>)           \
  LOWBIT_REFRESH(RULE, REFRESH)
