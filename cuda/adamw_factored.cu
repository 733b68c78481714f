// AdamW and Adam with a factored v (paper, "4-bit Factor"): m as any state, v as means r of its rows, c
// of its columns and a of all.
//
//   m' = beta1 m + (1 - beta1) g        r', c', a' = beta2 (r, c, a) + (1 - beta2) mean(g^2)
//   v' = r' c' / a'                     p' as in adamw_any.cu
//
// Bytes moved and launches: factored.cuh. Rounding steps: R2 to R7 in numerics.cuh.

#include "factored.cuh"

namespace lowbit {

struct AdamwFactored {
  static constexpr int STATES = 2;

  __device__ static Scalars scalars(const Launch& launch, const float* hyper, int step) {
    return adamw_scalars(launch, hyper, step);
  }

  __device__ static float square(const Input& x, const Scalars& s) {
    const float g = coupled_gradient(x, s);
    return __fmul_rn(g, g);
  }

  __device__ static Element element(const Input& x, const Shared& shared, int) {
    const Scalars& s = shared.scalars;
    const float m = first_moment(coupled_gradient(x, s), x.old[0], s);
    const float decay = s.l2 == 0.0f ? __fmul_rn(s.lr_wd, x.p) : 0.0f;
    Element e{};
    e.update = update_of(m, x.old[1], decay, s);
    e.next[0] = m;
    e.next[1] = x.old[1];
    return e;
  }
};

template <>
inline constexpr int factored_state<AdamwFactored> = 1;

}  // namespace lowbit

LOWBIT_FACTORED(lowbit::AdamwFactored, lowbit_k_adamw_factored, lowbit_k_adamw_factored_collect,
                lowbit_k_adamw_factored_sum, lowbit_k_adamw_factored_refresh)
