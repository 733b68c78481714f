// The new maxima of scales that reach across blocks, and new factors, from the scratch into the states:
// the end of a step, whatever the optimizer.
//
// Bytes moved: 8 for each maximum or mean.
//
// Launch: 256 threads, one task for each tensor.

#include "unit.cuh"

namespace lowbit {

// Brings `count` new maxima, of which the first is the statistic `word`, into a buffer.
template <typename Word>
__device__ inline void finish_maxima(const Launch& launch, unsigned* to, long long count,
                                     Word word) {
  for (long long i = threadIdx.x; i < count; i += THREADS) {
    to[i] = canonical_magnitude(static_cast<unsigned>(launch.statistics[word(i)]));
  }
}

__device__ inline void finish_factors(const Launch& launch, const Tensor& t, const State& state) {
  const Factor* factors = in_table<Factor>(launch, state.codebook);
  for (int f = 0; f < FACTOR_COUNT; ++f) {
    float* to = pointer<float>(launch, t, state.buffer + f);
    const float* from = launch.fresh + factors[f].fresh;
    const long long extent = factor_extent(t, factors[f]);
    for (long long i = threadIdx.x; i < extent; i += THREADS) {
      to[i] = from[i];
    }
  }
}

__device__ inline void finish_state(const Launch& launch, const Tensor& t, const State& state) {
  if (state.kind == FACTORS) {
    finish_factors(launch, t, state);
    return;
  }
  if (!has_maxima(state)) {
    return;
  }
  unsigned* to = pointer<unsigned>(launch, t, first_maxima(state));
  if (state.scaling == PER_TENSOR) {
    finish_maxima(launch, to, 1, [&](long long) { return state.word; });
  } else if (state.scaling == PER_ROW) {
    finish_maxima(launch, to, t.rows, [&](long long i) { return state.word + global_row_of(t, i); });
  } else if (state.scaling == PER_COLUMN) {
    finish_maxima(launch, to, t.cols, [&](long long i) { return state.word + t.first_col + i; });
  } else {
    long long base = state.word;
    for (int axis = 0; axis < t.axes; ++axis) {
      to = pointer<unsigned>(launch, t, first_maxima(state) + axis);
      const long long first = base + t.offset[axis];
      finish_maxima(launch, to, t.shape[axis], [&](long long i) { return first + i; });
      base += t.global_shape[axis];
    }
  }
}

}  // namespace lowbit

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
