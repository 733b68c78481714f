// AdamW with f32 moments: for small tensors, which keep them, and as the yardstick (`adamw32`).
//
//   m' = beta1 m + (1 - beta1) g        v' = beta2 v + (1 - beta2) g^2
//   p' = p - lr (m' / (1 - beta1^t)) / (sqrt(v' / (1 - beta2^t)) + eps) - lr wd p
//
// Bytes moved per element: parameter read and written, gradient read, moments read and written
// (4 x 4): 22 for bf16 parameters and gradients, 28 for f32.
//
// Launch, unit of work and rounding steps are those of adamw_block4.cu, but nothing is fetched ahead: its
// loads are wide enough to keep the memory busy. Blocks of 128 matter here only to what a non-finite
// gradient holds back.

#include "adamw.cuh"

namespace lowbit {

struct F32States {
  using Rule = AdamwOfFour;

  using OfOneBlock = F32States;

  static constexpr int PARTS = 1;
  static constexpr int SHARING = 1;
  static constexpr int MOST_AHEAD = 0;
  // v may be infinite from before.
  static constexpr bool V_SHOWS_NON_FINITE = false;
  static constexpr bool GLOBAL = false;
  static constexpr bool DRAWS = false;

  struct Tables {
    __device__ __forceinline__ void fill(const Launch&, const Tensor&) {}
  };

  float* m_values;
  float* v_values;

  __device__ __forceinline__ F32States(const Launch& launch, const Shared& shared, const Tables&)
      : m_values(pointer<float>(launch, shared.tensor, shared.tensor.state[0].buffer)),
        v_values(pointer<float>(launch, shared.tensor, shared.tensor.state[1].buffer)) {}

  __device__ __forceinline__ bool aligned() const {
    return ((reinterpret_cast<unsigned long long>(m_values) |
             reinterpret_cast<unsigned long long>(v_values)) & 15) == 0;
  }

  // Blocks, and lanes, of a single row on.
  __device__ __forceinline__ void advance(long long blocks, int lanes) {
    m_values += blocks * BLOCK + lanes * EACH;
    v_values += blocks * BLOCK + lanes * EACH;
  }

  struct Fetched {
    Packed<F32> m, v;
  };

  template <bool Wide>
  __device__ __forceinline__ Fetched fetch(const Place& place) const {
    return {lowbit::fetch<F32, Wide>(m_values, place.element, place.count()),
            lowbit::fetch<F32, Wide>(v_values, place.element, place.count())};
  }

  __device__ static __forceinline__ void decode(const Fetched& from, float (&m)[EACH],
                                                float (&v)[EACH]) {
    unpack<F32>(from.m, m);
    unpack<F32>(from.v, v);
  }

  struct Scales {
    __device__ static __forceinline__ Scales of(float, unsigned) { return {}; }
  };

  template <bool Wide, typename Draws>
  __device__ __forceinline__ void store(const Place& place, const Quad (&all)[1],
                                        const Scales (&)[1], Staying staying, bool, Draws) const {
    if (!staying.has(0)) {
      lowbit::store<F32, Wide>(m_values, place.element, place.count(), all[0].m);
      lowbit::store<F32, Wide>(v_values, place.element, place.count(), all[0].v);
    }
  }
};

}  // namespace lowbit

LOWBIT_COMMON_KERNELS(adamw, f32, step_tensors, lowbit::F32States, 3)
