// One state of every tensor to f32 values and back: `compress`, `decompress`, and `ema`, which is
// decompression, x' = fma(decay, x, RN(weight input)), and compression.
//
// Bytes moved per element: 4 for the value, and the state's; block scales read the values twice (the
// second time from the L1 cache), scales that reach across blocks take a launch of their own for the
// maxima, as has clearing them. Factors read the values six times, twice for each mean: for the largest,
// which decides the unit of the exact sum, and for the sum.
//
// Launch and unit of work are those of adamw_any.cu, but for factors: a thread block makes a mean of
// elements that follow each other, or as many neighbouring means as a warp has lanes, so the mean of all
// is the work of one. The value of an element is in the place of the
// parameter, the input of `ema` in that of the gradient.

#include "exact_sum.cuh"
#include "unit.cuh"

namespace lowbit {

__device__ __forceinline__ float* value_of(const Unit& unit, int at) {
  return pointer<float>(unit.launch, unit.shared.tensor, PARAM) + unit.element(at);
}

__device__ inline void compress_unit(const Unit& unit, Maxima& maxima, Correction& correction) {
  const int which = unit.launch.state;
  const State& state = unit.shared.tensor.state[which];
  if (state.kind == COVER || state.kind == FACTORS) {
    return;  // its maxima, or its means, are all there is
  }
  if (in_blocks(state)) {
    for (int chunk = 0; chunk < unit.length; chunk += LANES) {
      const int at = chunk + lane_index();
      raise_block(state, chunk, magnitude(at < unit.length ? *value_of(unit, at) : 0.0f), maxima[0]);
    }
    __syncwarp();
    if (state.option == SCALE_CORRECTION) {
      unit.correct_scales(which, maxima[0], correction,
                          [&](int at) { return *value_of(unit, at); });
      __syncwarp();
    }
  }
  for (int chunk = 0; chunk < unit.length; chunk += LANES) {
    const int at = chunk + lane_index();
    unit.encode(which, at, at < unit.length ? *value_of(unit, at) : 0.0f, maxima[0]);
  }
  unit.store_block_scales(state, maxima[0], correction.scales[which]);
  __syncwarp();  // the maxima are read before they are those of the next unit
}

__device__ inline void decompress_unit(const Unit& unit) {
  const Tensor& t = unit.shared.tensor;
  const void* input = pointer<const void>(unit.launch, t, GRAD);
  for (int at = lane_index(); at < unit.length; at += LANES) {
    const int which = unit.launch.state;
    const State& state = t.state[which];
    float x = canonical(state.kind == FACTORS ? unit.decode_factors(which, at, Source::stored)
                        : state.kind == COVER ? unit.smallest(state, at, Source::stored)
                                              : unit.decode(which, at));
    if (input != nullptr) {
      const float in = load_value(input, t.grad_dtype, unit.element(at));
      x = canonical(__fmaf_rn(unit.launch.decay, x, __fmul_rn(unit.launch.weight, in)));
    }
    *value_of(unit, at) = x;
  }
}

// ---- factors -----------------------------------------------------------------------------------

// Element `number` of those that differ along `axes` alone, the last of which runs fastest.
__device__ inline long long element_along(const Tensor& t, unsigned axes, long long number) {
  long long element = 0, stride = 1;
  for (int axis = t.axes - 1; axis >= 0; --axis) {
    if (axes >> axis & 1) {
      const unsigned rest = axes & ((2u << axis) - 1);
      // What is left of the axes follow each other: as one, which needs no division.
      if (rest + (rest & (0u - rest)) == 2u << axis) {
        return element + number * stride;
      }
      element += number % t.shape[axis] * stride;
      number /= t.shape[axis];
    }
    stride *= t.shape[axis];
  }
  return element;
}

// Neighbouring means that a task makes (`Kernel::tasks`): one, or of factors that keep the last axis as
// many as a warp has lanes, whose elements are neighbours then.
__device__ __forceinline__ int means_of_task(const Tensor& t, const Factor& factor) {
  return along_row(t, factor) ? LANES : 1;
}

// What the threads of a block share about the means of a task.
struct Means {
  int largest[LANES];
  unsigned long long sums[LANES][2];
};

// Calls `body` with the thread's share of the values of mean `at`; `width` means are made at once.
template <typename Body>
__device__ __forceinline__ void each_value(const Launch& launch, const Tensor& t,
                                           const Factor& factor, long long at, int width,
                                           Body body) {
  const unsigned dropped = ((1u << t.axes) - 1) & ~factor.axes;
  const float* values =
      pointer<const float>(launch, t, PARAM) + element_along(t, factor.axes, at);
  for (long long i = threadIdx.x / width; i < factor.count; i += THREADS / width) {
    body(values[element_along(t, dropped, i)]);
  }
}

// Makes the means of a factor from `first` on, as many as a task does, and stores them at `to`.
__device__ inline void make_means(const Launch& launch, const Tensor& t, const Factor& factor,
                                  long long first, float* to, Means& means) {
  const int width = means_of_task(t, factor);
  const int which = static_cast<int>(threadIdx.x) % width;
  const long long at = first + which;
  const bool here = at < factor_extent(t, factor);
  if (threadIdx.x < LANES) {
    means.largest[threadIdx.x] = 0;
    means.sums[threadIdx.x][0] = means.sums[threadIdx.x][1] = 0;
  }
  __syncthreads();
  if (here) {
    int largest = 0;
    each_value(launch, t, factor, at, width, [&](float x) {
      const int bits = static_cast<int>(magnitude(x));
      largest = bits > largest ? bits : largest;
    });
    raise_maximum(&means.largest[which], largest);
  }
  __syncthreads();
  const int largest = means.largest[which];
  if (here && largest < static_cast<int>(INF_BITS)) {
    const double units = units_of_one(exponent_above(largest));
    Limbs sum{0, 0};
    each_value(launch, t, factor, at, width, [&](float x) {
      add(sum, limbs_of(static_cast<double>(x), units));
    });
    add_limbs(means.sums[which], sum);
  }
  __syncthreads();
  if (here && static_cast<int>(threadIdx.x) < width) {
    to[at] = mean_of_sum(means.sums[which], largest, factor.count);
  }
  __syncthreads();  // what is shared is read before it is that of the next task
}

}  // namespace lowbit

// One task for each tensor.
extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)
    lowbit_k_clear_maxima(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  __shared__ Shared shared;
  Walker walker(launch, shared);
  for (long long task = blockIdx.x; task < launch.tasks; task += gridDim.x) {
    walker.enter(task);
    const Tensor& t = shared.tensor;
    const State& state = t.state[launch.state];
    if (!has_maxima(state)) {
      continue;
    }
    const int parts = state.scaling == PER_AXES ? t.axes : 1;
    for (int part = 0; part < parts; ++part) {
      const long long count = state.scaling == PER_AXES   ? t.shape[part]
                              : state.scaling == PER_ROW    ? t.rows
                              : state.scaling == PER_COLUMN ? t.cols
                                                            : 1;
      unsigned* words = pointer<unsigned>(launch, t, first_maxima(state) + part);
      for (long long i = threadIdx.x; i < count; i += THREADS) {
        words[i] = 0;
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)
    lowbit_k_raise_maxima(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  __shared__ Shared shared;
  each_unit<adamw_scalars>(launch, shared, true, [&](const Unit& unit) {
    const State& state = shared.tensor.state[launch.state];
    if (has_maxima(state)) {
      for (int at = lane_index(); at < unit.length; at += LANES) {
        unit.raise_maxima(state, at, *value_of(unit, at));
      }
    }
  });
}

extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)
    lowbit_k_compress(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  __shared__ Shared shared;
  __shared__ Maxima maxima[WARPS];
  __shared__ Correction correction[WARPS];
  each_unit<adamw_scalars>(launch, shared, true, [&](const Unit& unit) {
    compress_unit(unit, maxima[warp_index()], correction[warp_index()]);
  });
}

// Of tensors that keep the state as factors.
extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)
    lowbit_k_compress_means(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  __shared__ Shared shared;
  __shared__ Means means;
  Walker walker(launch, shared);
  for (long long task = blockIdx.x; task < launch.tasks; task += gridDim.x) {
    long long number = walker.enter(task).index;
    const Tensor& t = shared.tensor;
    const State& state = t.state[launch.state];
    const Factor* factors = in_table<Factor>(launch, state.codebook);
    for (int f = 0; f < FACTOR_COUNT; ++f) {
      const int width = means_of_task(t, factors[f]);
      const long long tasks = (factor_extent(t, factors[f]) + width - 1) / width;
      if (number >= 0 && number < tasks) {
        make_means(launch, t, factors[f], number * width, pointer<float>(launch, t, state.buffer + f),
                   means);
      }
      number -= tasks;
    }
  }
}

extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)
    lowbit_k_decompress(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  __shared__ Shared shared;
  each_unit<adamw_scalars>(launch, shared, true, [&](const Unit& unit) { decompress_unit(unit); });
}
