// SGD with momentum, with torch's options (paper, Algorithm 2).
//
//   m' = g in step 1, else beta1 m + (1 - dampening) g        p' = p - lr m' - lr wd p
//
// Coupled decay: g + wd p takes the place of g, and the last term is 0. Nesterov: beta1 m' + g takes
// that of m' in the update.
//
// Bytes moved and launches: any.cuh, and momentum4.cuh, momentum8.cuh for common tensors. Rounding steps: as in
// `src/optimizer/sgdm.rs`.

#include "momentum4.cuh"
#include "momentum8.cuh"

namespace lowbit {

struct Sgdm {
  static constexpr int STATES = 1;

  __device__ static Scalars scalars(const Launch& launch, const float* hyper, int step) {
    Scalars s = uncorrected_scalars(launch, hyper, step);
    s.one_minus_beta1 = __fadd_rn(1.0f, -launch.dampening);
    return s;
  }

  __device__ static Element element(const Input& x, const Shared& shared, int flags) {
    const Scalars& s = shared.scalars;
    const float g = coupled_gradient(x, s);
    const float m = shared.step <= 1 ? g : first_moment(g, x.old[0], s);          // R3
    const float q = flags & NESTEROV ? __fmaf_rn(s.beta1, m, g) : m;              // R6
    const float decay = s.lr_wd == 0.0f ? 0.0f : __fmul_rn(s.lr_wd, x.p);
    Element e{};
    e.update = -__fmaf_rn(s.lr_bc1, q, decay);                                    // R7
    e.next[0] = m;
    return e;
  }
};

}  // namespace lowbit

LOWBIT_ELEMENT_WISE(lowbit::Sgdm, lowbit_k_sgdm, lowbit_k_sgdm_collect)
LOWBIT_MOMENTUM4(lowbit::Sgdm, sgdm)
LOWBIT_MOMENTUM8(lowbit::Sgdm, sgdm)
