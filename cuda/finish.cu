// The new maxima of scales that reach across blocks, and new factors, from the scratch into the states:
// the end of a step, whatever the optimizer.
//
// Bytes moved: 8 for each maximum or mean.
//
// Launch: 256 threads, a task for each FINISHED words of a tensor's largest buffer.

#include "unit.cuh"

namespace lowbit {

// Words that a thread reads before it writes any: a task is as long as it waits for them.
constexpr int AT_ONCE = 8;
constexpr int FINISHED = AT_ONCE * THREADS;

// A tensor's task, and how many it has: each does a part of every buffer.
struct Part {
  long long index, count;
};

// Writes the part's of `count` words that `read` gives.
template <typename Read>
__device__ inline void bring(const Part& part, unsigned* to, long long count, Read read) {
  const long long step = part.count * FINISHED;
  for (long long first = part.index * FINISHED + threadIdx.x; first < count; first += step) {
    unsigned words[AT_ONCE];
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) {
      words[k] = first + k * THREADS < count ? read(first + k * THREADS) : 0;
    }
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) {
      if (first + k * THREADS < count) {
        to[first + k * THREADS] = words[k];
      }
    }
  }
}

// Brings `count` new maxima, of which each is the statistic `word` of its number, into a buffer.
template <typename Word>
__device__ inline void finish_maxima(const Launch& launch, const Part& part, unsigned* to,
                                     long long count, Word word) {
  bring(part, to, count, [&](long long i) {
    return canonical_magnitude(static_cast<unsigned>(launch.statistics[word(i)]));
  });
}

__device__ inline void finish_factors(const Launch& launch, const Part& part, const Tensor& t,
                                      const State& state) {
  const Factor* factors = in_table<Factor>(launch, state.codebook);
  for (int f = 0; f < FACTOR_COUNT; ++f) {
    const float* from = launch.fresh + factors[f].fresh;
    bring(part, pointer<unsigned>(launch, t, state.buffer + f), factor_extent(t, factors[f]),
          [&](long long i) { return __float_as_uint(from[i]); });
  }
}

__device__ inline void finish_state(const Launch& launch, const Part& part, const Tensor& t,
                                    const State& state) {
  if (state.kind == FACTORS) {
    finish_factors(launch, part, t, state);
    return;
  }
  if (!has_maxima(state)) {
    return;
  }
  unsigned* to = pointer<unsigned>(launch, t, first_maxima(state));
  if (state.scaling == PER_TENSOR) {
    finish_maxima(launch, part, to, 1, [&](long long) { return state.word; });
  } else if (state.scaling == PER_ROW) {
    finish_maxima(launch, part, to, t.rows,
                  [&](long long i) { return state.word + global_row_of(t, i); });
  } else if (state.scaling == PER_COLUMN) {
    finish_maxima(launch, part, to, t.cols,
                  [&](long long i) { return state.word + t.first_col + i; });
  } else {
    long long base = state.word;
    for (int axis = 0; axis < t.axes; ++axis) {
      to = pointer<unsigned>(launch, t, first_maxima(state) + axis);
      const long long first = base + t.offset[axis];
      finish_maxima(launch, part, to, t.shape[axis], [&](long long i) { return first + i; });
      base += t.global_shape[axis];
    }
  }
}

}  // namespace lowbit

// The new maxima become the states', unless the tensor is skipped.
extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)
    lowbit_k_finish(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  __shared__ Shared shared;
  Walker walker(launch, shared);
  for (long long task = blockIdx.x; task < launch.tasks; task += gridDim.x) {
    const Part part{walker.enter(task).index, walker.tasks()};
    if (!shared.skip) {
      for (int i = 0; i < shared.tensor.states; ++i) {
        finish_state(launch, part, shared.tensor, shared.tensor.state[i]);
      }
    }
  }
}
