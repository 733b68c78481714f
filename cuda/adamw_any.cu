// AdamW, Adam and AMSGrad on any tensor: every dtype, weight form, quantizer and rounding that has
// no kernel of its own.
//
//   m' = beta1 m + (1 - beta1) g        v' = beta2 v + (1 - beta2) g^2
//   p' = p - lr (m' / (1 - beta1^t)) / (sqrt(v' / (1 - beta2^t)) + eps) - lr wd p
//
// Bytes moved per element: those of parameter (twice), gradient, states (twice) and what is kept
// beside the parameter (twice). States with block scales read everything once more, as their largest
// values must be known first; for units of up to 4096 elements that comes from the L1 cache.
//
// Launch: 256 threads, one dimension; each warp does a unit of its task in turn, one element a lane.
// 13 KiB of shared memory. `lowbit_k_collect` comes first where tensors need statistics as a whole:
// non-finite flags, and maxima of slices; `lowbit_k_finish` last, which brings the new maxima into
// the states.
//
// Rounding steps: R1 in `gradient` (unit.cuh), R2 to R7 in numerics.cuh, R8 here; the rounding of the
// parameter in weights.cuh, codes in codes.cuh.

#include "unit.cuh"

namespace lowbit {

struct Element {
  float p;
  float update;
  float next[MAX_STATES];
};

// One element; what lies beyond the unit is 0.
__device__ inline Element step_element(const Unit& unit, int at) {
  const Scalars& s = unit.shared.scalars;
  Element e{};
  if (at >= unit.length) {
    return e;
  }
  const bool amsgrad = (unit.launch.flags & AMSGRAD) != 0;
  e.p = unit.parameter(at);
  float g = unit.gradient(at);
  if (s.l2 != 0.0f) {
    g = __fmaf_rn(s.l2, e.p, g);
  }
  const float m = first_moment(g, unit.decode(0, at), s);
  const float v = second_moment(g, unit.decode(1, at), s);
  float divisor = v;
  if (amsgrad) {
    // As integers, so that NaN is the largest.
    const float before = unit.decode(2, at);
    divisor = __float_as_uint(v) > __float_as_uint(before) ? v : before;
  }
  const float decay = s.l2 == 0.0f ? __fmul_rn(s.lr_wd, e.p) : 0.0f;
  e.update = update_of(m, divisor, decay, s);
  e.next[0] = m;
  e.next[1] = v;
  e.next[2] = divisor;
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

__device__ inline void step_unit(const Unit& unit, Maxima& maxima) {
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
      const Element e = step_element(unit, chunk + lane_index());
#pragma unroll
      for (int i = 0; i < MAX_STATES; ++i) {
        if (i < t.states && t.state[i].kind == CODES && t.state[i].scaling == PER_BLOCK) {
          raise_block(t.state[i], chunk, e.next[i], maxima[i]);
        }
      }
    }
    __syncwarp();
  }
  for (int chunk = 0; chunk < unit.length; chunk += LANES) {
    const int at = chunk + lane_index();
    const Element e = step_element(unit, at);
    __syncwarp();  // codes that share a byte are read before it is written
    if (at < unit.length) {
      store_element(unit, at, e);
    }
#pragma unroll
    for (int i = 0; i < MAX_STATES; ++i) {
      if (i < t.states) {
        unit.encode(i, at, e.next[i], maxima[i]);
      }
    }
  }
  __syncwarp();  // the old scales are read before they are written
  for (int i = 0; i < t.states; ++i) {
    unit.store_block_scales(t.state[i], maxima[i]);
  }
  __syncwarp();  // and the maxima before they are those of the next unit
}

// Raises the statistics by one unit.
__device__ inline void collect_unit(const Unit& unit) {
  const Tensor& t = unit.shared.tensor;
  if (any_non_finite(unit) && lane_index() == 0) {
    unit.launch.statistics[t.index] = 1;
  }
  bool wanted[MAX_STATES] = {};
  bool any = false;
#pragma unroll
  for (int i = 0; i < MAX_STATES; ++i) {
    wanted[i] = i < t.states && t.state[i].kind == CODES && t.state[i].scaling != PER_BLOCK;
    any = any || wanted[i];
  }
  if (!any) {
    return;
  }
  for (int at = lane_index(); at < unit.length; at += LANES) {
    const Element e = step_element(unit, at);
#pragma unroll
    for (int i = 0; i < MAX_STATES; ++i) {
      if (wanted[i]) {
        unit.raise_maxima(t.state[i], at, e.next[i]);
      }
    }
  }
}

// Brings `count` new maxima, of which the first is the statistic `word`, into a buffer.
template <typename Word>
__device__ inline void finish_maxima(const Launch& launch, unsigned* to, long long count,
                                     Word word) {
  for (long long i = threadIdx.x; i < count; i += THREADS) {
    to[i] = canonical_magnitude(static_cast<unsigned>(launch.statistics[word(i)]));
  }
}

__device__ inline void finish_state(const Launch& launch, const Tensor& t, const State& state) {
  if (state.kind != CODES || state.scaling == PER_BLOCK) {
    return;
  }
  unsigned* to = pointer<unsigned>(launch, t, state.buffer + 1);
  if (state.scaling == PER_TENSOR) {
    finish_maxima(launch, to, 1, [&](long long) { return state.word; });
  } else if (state.scaling == PER_ROW) {
    finish_maxima(launch, to, t.rows, [&](long long i) { return state.word + global_row_of(t, i); });
  } else if (state.scaling == PER_COLUMN) {
    finish_maxima(launch, to, t.cols, [&](long long i) { return state.word + t.first_col + i; });
  } else {
    long long base = state.word;
    for (int axis = 0; axis < t.axes; ++axis) {
      to = pointer<unsigned>(launch, t, state.buffer + 1 + axis);
      const long long first = base + t.offset[axis];
      finish_maxima(launch, to, t.shape[axis], [&](long long i) { return first + i; });
      base += t.global_shape[axis];
    }
  }
}

}  // namespace lowbit

extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)
    lowbit_k_adamw_any(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  __shared__ Shared shared;
  __shared__ Maxima maxima[WARPS];
  Walker walker(launch, shared);
  for (long long task = blockIdx.x; task < launch.tasks; task += gridDim.x) {
    const Task at = walker.enter(task);
    walker.count_skipped(at);
    const Tensor& t = shared.tensor;
    const int count = units_per_task(t.block);
    const long long first = at.index * count, all = t.rows * t.units;
    for (int i = warp_index(); i < count && first + i < all; i += WARPS) {
      step_unit(Unit(walker, first + i, false), maxima[warp_index()]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)
    lowbit_k_collect(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  __shared__ Shared shared;
  Walker walker(launch, shared);
  for (long long task = blockIdx.x; task < launch.tasks; task += gridDim.x) {
    const Task at = walker.enter(task);
    const Tensor& t = shared.tensor;
    const int count = units_per_task(t.block);
    const long long first = at.index * count, all = t.rows * t.units;
    for (int i = warp_index(); i < count && first + i < all; i += WARPS) {
      collect_unit(Unit(walker, first + i, false));
    }
  }
}

// One task for each tensor: the new maxima become the states', unless the tensor is skipped.
extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)
    lowbit_k_finish(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  __shared__ Shared shared;
  Walker walker(launch, shared);
  for (long long task = blockIdx.x; task < launch.tasks; task += gridDim.x) {
    walker.enter(task);
    if (!shared.skip) {
      for (int i = 0; i < shared.tensor.states; ++i) {
        finish_state(launch, shared.tensor, shared.tensor.state[i]);
      }
    }
  }
}
