// AdamW with f32 moments: for small tensors, which keep them, and as the yardstick (`adamw32`).
//
//   m' = beta1 m + (1 - beta1) g        v' = beta2 v + (1 - beta2) g^2
//   p' = p - lr (m' / (1 - beta1^t)) / (sqrt(v' / (1 - beta2^t)) + eps) - lr wd p
//
// Bytes moved per element: parameter read and written, gradient read, moments read and written
// (4 x 4): 22 for bf16 parameters and gradients, 28 for f32.
//
// Launch, unit of work and rounding steps are those of adamw_block4.cu; blocks of 128 matter here
// only to what a non-finite gradient holds back.

#include "adamw.cuh"

namespace lowbit {

struct F32States {
  template <bool Wide>
  __device__ __forceinline__ void load(const AdamwParams& a, const Place& place, float (&m)[4],
                                       float (&v)[4]) const {
    lowbit::load<F32, Wide>(a.m, place.element, place.count, m);
    lowbit::load<F32, Wide>(a.v, place.element, place.count, v);
  }

  template <bool Wide>
  __device__ __forceinline__ void store(const AdamwParams& a, const Place& place,
                                        const float (&m)[4], const float (&v)[4]) const {
    lowbit::store<F32, Wide>(a.m, place.element, place.count, m);
    lowbit::store<F32, Wide>(a.v, place.element, place.count, v);
  }
};

}  // namespace lowbit

LOWBIT_ADAMW_KERNELS(f32, F32States)
