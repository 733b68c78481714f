// The global norm of gradients and the factor that clips it (`src/norm.rs`), by an exact sum: its
// unit follows from the largest magnitude, the terms are added as integers.
//
// Bytes moved per element: the gradient, twice.
//
// Launch: as adamw_any.cu, a thread takes every 256th element of a task; `lowbit_k_norm_finish` is
// one thread. The scratch (`statistics` of the launch) has the largest magnitude, then two limbs.

#include "dtypes.cuh"
#include "exact_sum.cuh"
#include "tasks.cuh"

namespace lowbit {

// Of the power of two above the squares of values whose largest magnitude has these bits.
__device__ __forceinline__ int squared_exponent(int largest) {
  return 2 * exponent_above(largest);
}

// Calls `body` with every scaled gradient of a launch.
template <typename Body>
__device__ __forceinline__ void each_gradient(const Launch& launch, Shared& shared, Body body) {
  Walker walker(launch, shared);
  for (long long task = blockIdx.x; task < launch.tasks; task += gridDim.x) {
    const Task at = walker.enter(task);
    const Tensor& t = shared.tensor;
    const void* grad = pointer<const void>(launch, t, GRAD);
    if (grad == nullptr) {
      continue;  // another shard counts it
    }
    const long long numel = t.rows * t.cols;
    const long long count = static_cast<long long>(units_per_task(t.block)) * t.block;
    const long long first = at.index * count;
    const long long end = first + count < numel ? first + count : numel;
    for (long long i = first + threadIdx.x; i < end; i += THREADS) {
      body(__fmul_rn(launch.grad_scale, load_value(grad, t.grad_dtype, i)));
    }
  }
}

}  // namespace lowbit

extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)
    lowbit_k_norm_max(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  __shared__ Shared shared;
  unsigned largest = 0;
  each_gradient(launch, shared, [&](float g) {
    const unsigned size = magnitude(g);
    largest = size > largest ? size : largest;
  });
  __syncwarp();
  largest = warp_max(largest);
  if (lane_index() == 0) {
    atomicMax(launch.statistics, static_cast<int>(largest));
  }
}

extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)
    lowbit_k_norm_sum(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  __shared__ Shared shared;
  __shared__ unsigned long long sums[2];
  if (threadIdx.x < 2) {
    sums[threadIdx.x] = 0;
  }
  const int largest = *launch.statistics;
  if (largest >= static_cast<int>(INF_BITS)) {
    return;
  }
  const double units = units_of_one(squared_exponent(largest));
  Limbs sum{};
  each_gradient(launch, shared, [&](float g) {
    const Limbs term =
        limbs_of(__dmul_rn(static_cast<double>(g), static_cast<double>(g)), units);
    sum.high += term.high;
    sum.low += term.low;
  });
  __syncthreads();
  add_limbs(sums, sum);
  __syncthreads();
  if (threadIdx.x < 2) {
    unsigned long long* to = reinterpret_cast<unsigned long long*>(launch.statistics) + 1;
    atomicAdd(to + threadIdx.x, sums[threadIdx.x]);
  }
}

extern "C" __global__ void lowbit_k_norm_finish(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  if (threadIdx.x != 0) {
    return;
  }
  const long long* scratch = reinterpret_cast<const long long*>(launch.statistics);
  // The words of several shards may have been reduced as 64-bit integers.
  const long long largest = scratch[0];
  float norm = __uint_as_float(largest == INF_BITS ? INF_BITS : NAN_BITS);
  if (largest < INF_BITS) {
    const int exponent = squared_exponent(static_cast<int>(largest));
    norm = __double2float_rn(__dsqrt_rn(value_of_sum(Limbs{scratch[1], scratch[2]}, exponent)));
  }
  const float ratio = __fdiv_rn(launch.max_norm, norm);
  if (launch.norm != nullptr) {
    *launch.norm = norm;
  }
  if (launch.clip_factor != nullptr) {
    *launch.clip_factor = magnitude(norm) < INF_BITS && ratio < 1.0f ? ratio : 1.0f;
  }
}

// The step counter of device memory goes on, unless the whole step was skipped.
extern "C" __global__ void __launch_bounds__(lowbit::THREADS)
    lowbit_k_count_step(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  if (!skips_all(launch) && threadIdx.x == 0) {
    *const_cast<int*>(launch.step_number) += 1;
  }
}
