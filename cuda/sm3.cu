// SM3-II (Anil et al. 2019, "Memory-Efficient Adaptive Optimization"): v is kept as the maxima of its
// slices along every axis, and read as the smallest of an element's maxima.
//
//   v' = v + g^2        q = g / sqrt(v'), 0 where v' is 0        p' = p - lr q - lr wd p
//
// With momentum m' = beta1 m + (1 - beta1) q takes the place of q in the update.
//
// Bytes moved and launches: any.cuh. Rounding steps: as in `src/optimizer/sm3.rs`.

#include "any.cuh"

namespace lowbit {

struct Sm3 {
  static constexpr int STATES = 2;

  __device__ static Scalars scalars(const Launch& launch, const float* hyper, int step) {
    return uncorrected_scalars(launch, hyper, step);
  }

  __device__ static Element element(const Input& x, const Shared& shared, int) {
    const Scalars& s = shared.scalars;
    const bool momentum = shared.tensor.states == 2;
    const float v = __fadd_rn(x.old[0], __fmul_rn(x.g, x.g));                 // R4
    const float ratio = v == 0.0f ? 0.0f : __fdiv_rn(x.g, __fsqrt_rn(v));     // R6
    const float m = first_moment(ratio, x.old[1], s);                         // R3
    const float q = momentum ? m : ratio;
    Element e{};
    e.update = -__fmaf_rn(s.lr_bc1, q, __fmul_rn(s.lr_wd, x.p));              // R7
    e.next[0] = v;
    e.next[1] = m;
    return e;
  }
};

template <>
inline constexpr int cover_state<Sm3> = 0;

}  // namespace lowbit

LOWBIT_ELEMENT_WISE(lowbit::Sm3, lowbit_k_sm3, lowbit_k_sm3_collect)
