// AdamW, Adam and AMSGrad on any tensor that has no kernel of its own.
//
//   m' = beta1 m + (1 - beta1) g        v' = beta2 v + (1 - beta2) g^2
//   p' = p - lr (m' / (1 - beta1^t)) / (sqrt(v' / (1 - beta2^t)) + eps) - lr wd p
//
// Bytes moved, launches and what else there is: any.cuh. Rounding steps: R2 to R7 in numerics.cuh.

#include "any.cuh"

namespace lowbit {

struct Adamw {
  static constexpr int STATES = 3;

  __device__ static Scalars scalars(const Launch& launch, const float* hyper, int step) {
    return adamw_scalars(launch, hyper, step);
  }

  __device__ static Element element(const Input& x, const Shared& shared, int flags) {
    const Scalars& s = shared.scalars;
    const float g = coupled_gradient(x, s);
    const float m = first_moment(g, x.old[0], s);
    const float v = second_moment(g, x.old[1], s);
    // As integers, so that NaN is the largest.
    const float largest = __float_as_uint(v) > __float_as_uint(x.old[2]) ? v : x.old[2];
    const float decay = s.l2 == 0.0f ? __fmul_rn(s.lr_wd, x.p) : 0.0f;
    Element e{};
    e.update = update_of(m, flags & AMSGRAD ? largest : v, decay, s);
    e.next[0] = m;
    e.next[1] = v;
    e.next[2] = largest;
    return e;
  }
};

}  // namespace lowbit

LOWBIT_ELEMENT_WISE(lowbit::Adamw, lowbit_k_adamw_any, lowbit_k_adamw_collect)
