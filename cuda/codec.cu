// One state of every tensor to f32 values and back: `compress`, `decompress`, and `ema`, which is
// decompression, x' = fma(decay, x, RN(weight input)), and compression.
//
// Bytes moved per element: 4 for the value, and the state's; block scales read the values twice (the
// second time from the L1 cache), scales that reach across blocks take a launch of their own for the
// maxima, as has clearing them.
//
// Launch and unit of work are those of adamw_any.cu. The value of an element is in the place of the
// parameter, the input of `ema` in that of the gradient.

#include "unit.cuh"

namespace lowbit {

__device__ __forceinline__ float* value_of(const Unit& unit, int at) {
  return pointer<float>(unit.launch, unit.shared.tensor, PARAM) + unit.element(at);
}

__device__ inline void compress_unit(const Unit& unit, Maxima& maxima, Correction& correction) {
  const int which = unit.launch.state;
  const State& state = unit.shared.tensor.state[which];
  if (state.kind == COVER) {
    return;  // its maxima are all there is
  }
  if (state.kind == CODES && state.scaling == PER_BLOCK) {
    for (int chunk = 0; chunk < unit.length; chunk += LANES) {
      const int at = chunk + lane_index();
      raise_block(state, chunk, at < unit.length ? *value_of(unit, at) : 0.0f, maxima[0]);
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

extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)
    lowbit_k_decompress(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  __shared__ Shared shared;
  each_unit<adamw_scalars>(launch, shared, true, [&](const Unit& unit) { decompress_unit(unit); });
}
