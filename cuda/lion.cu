// Lion (Chen et al. 2023).
//
//   m' = beta2 m + (1 - beta2) g        p' = p - lr sign(beta1 m + (1 - beta1) g) - lr wd p
//
// Bytes moved and launches: any.cuh, and momentum4.cuh, momentum8.cuh for common tensors. Rounding steps: as in
// `src/optimizer/lion.rs`.

#include "momentum4.cuh"
#include "momentum8.cuh"

namespace lowbit {

struct Lion {
  static constexpr int STATES = 1;

  __device__ static Scalars scalars(const Launch& launch, const float* hyper, int step) {
    return uncorrected_scalars(launch, hyper, step);
  }

  __device__ static Element element(const Input& x, const Shared& shared, int) {
    const Scalars& s = shared.scalars;
    const float c = first_moment(x.g, x.old[0], s);
    const float sign = __uint_as_float((__float_as_uint(c) & 0x80000000) | 0x3f800000);
    const float q = c == 0.0f || magnitude(c) > INF_BITS ? c : sign;              // R6
    Element e{};
    e.update = -__fmaf_rn(s.lr_bc1, q, __fmul_rn(s.lr_wd, x.p));                  // R7
    e.next[0] = __fmaf_rn(s.beta2, x.old[0], __fmul_rn(s.one_minus_beta2, x.g));  // R3
    return e;
  }
};

}  // namespace lowbit

LOWBIT_ELEMENT_WISE(lowbit::Lion, lowbit_k_lion, lowbit_k_lion_collect)
LOWBIT_MOMENTUM4(lowbit::Lion, lion)
LOWBIT_MOMENTUM8(lowbit::Lion, lion)
