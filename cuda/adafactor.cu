// Adafactor (Shazeer and Stern 2018, Algorithms 4 and 5): v as means of its rows and columns, f32 or
// codes; with or without momentum.
//
//   beta2 = 1 - t^-decay_rate           rho = min(lr, 1/sqrt(t)), alpha = rho max(eps2, RMS(p))
//   v' = beta2 v + (1 - beta2) (g^2 + eps)            d = g / sqrt(v')
//   q = d / max(1, RMS(d) / clip_threshold)           p' = p - alpha q - rho wd p
//
// With momentum m' = beta1 m + (1 - beta1) q takes the place of q in the update.
//
// Bytes moved per element: those of factored.cuh, the parameter twice more for RMS(p), and gradient
// and v twice more for RMS(d).
//
// Launch: as factored.cuh; before the step come two more kernels, the largest d and the sum of its
// squares. What the step makes of both RMS is computed where a thread block comes to a tensor.
//
// Rounding steps: R2 to R7 as in `src/optimizer/adafactor.rs`.

#include "factored.cuh"

namespace lowbit {

// `numerics::exp2` and `numerics::inverse_power`.
__device__ inline double exp2_of(double x) {
  const long long whole = __double2ll_rn(x);
  const double t = __dmul_rn(__dadd_rn(x, -static_cast<double>(whole)), 0.693147180559945309417);
  double sum = 1.0;
  for (int k = 16; k >= 1; --k) {
    sum = __dadd_rn(__ddiv_rn(__dmul_rn(sum, t), static_cast<double>(k)), 1.0);
  }
  return __dmul_rn(sum, power_of_two(static_cast<int>(whole)));
}

__device__ inline double inverse_power(unsigned t, float rate) {
  int exponent = 0;
  for (unsigned rest = t; rest > 1; rest /= 2) {
    ++exponent;
  }
  const double f = __ddiv_rn(static_cast<double>(t), static_cast<double>(1u << exponent));
  const double s = __ddiv_rn(__dadd_rn(f, -1.0), __dadd_rn(f, 1.0));
  double series = 0.0;
  for (int k = 20; k >= 0; --k) {
    series = __dadd_rn(__dmul_rn(__dmul_rn(series, s), s),
                       __ddiv_rn(1.0, static_cast<double>(2 * k + 1)));
  }
  const double scaled = __dmul_rn(2.0 * 1.44269504088896340736, s);
  const double log2 = __dadd_rn(static_cast<double>(exponent), __dmul_rn(scaled, series));
  return exp2_of(__dmul_rn(-static_cast<double>(rate), log2));
}

// The root mean square of `numel` values, of which the largest has these bits.
__device__ inline double root_mean_square(int largest, const unsigned long long* limbs,
                                          double numel) {
  if (largest >= static_cast<int>(INF_BITS)) {
    return static_cast<double>(__uint_as_float(NAN_BITS));
  }
  const Limbs sum{static_cast<long long>(limbs[0]), static_cast<long long>(limbs[1])};
  return __dsqrt_rn(__ddiv_rn(value_of_sum(sum, 2 * exponent_above(largest)), numel));
}

struct Adafactor {
  static constexpr int STATES = 2;

  __device__ static Scalars scalars(const Launch& launch, const float* hyper, int step) {
    Scalars s = compute_scalars(hyper, step, launch.flags);
    const unsigned t = step < 1 ? 1 : step;
    const double relative = __ddiv_rn(1.0, __dsqrt_rn(static_cast<double>(t)));
    const bool smaller =
        launch.flags & RELATIVE_STEP && relative < static_cast<double>(hyper[0]);
    const float rho = smaller ? __double2float_rn(relative) : hyper[0];
    const float forget = __double2float_rn(inverse_power(t, launch.decay_rate));
    s.beta2 = __fadd_rn(1.0f, -forget);
    s.one_minus_beta2 = forget;
    s.lr_bc1 = rho;
    s.lr_wd = __fmul_rn(rho, hyper[4]);
    return s;
  }

  __device__ static float square(const Input& x, const Shared& shared) {
    return __fmaf_rn(x.g, x.g, shared.scalars.eps);  // R2
  }

  // v' and d.
  __device__ static float unclipped(const Input& x, const Shared& shared, float& v) {
    const Scalars& s = shared.scalars;
    v = shared.tensor.state[0].kind == FACTORS
            ? x.old[0]
            : __fmaf_rn(s.beta2, x.old[0], __fmul_rn(s.one_minus_beta2, square(x, shared)));  // R4
    return __fdiv_rn(x.g, __fsqrt_rn(v));  // R5, R6
  }

  __device__ static Element element(const Input& x, const Shared& shared, int) {
    const Scalars& s = shared.scalars;
    Element e{};
    const float clipped = __fmul_rn(unclipped(x, shared, e.next[0]), shared.clip);  // R6
    e.next[1] = first_moment(clipped, x.old[1], s);                                 // R3
    const float q = shared.tensor.states == 2 ? e.next[1] : clipped;
    e.update = -__fmaf_rn(shared.alpha, q, __fmul_rn(s.lr_wd, x.p));                // R7
    return e;
  }
};

template <>
inline constexpr int factored_state<Adafactor> = 0;

// With registers for two thread blocks it spills on some architectures.
template <>
inline constexpr int resident_blocks<Adafactor> = 1;

// alpha and clip.
template <>
__device__ inline void complete<Adafactor>(const Launch& launch, const Tensor& t, Shared& shared) {
  long long count = 1;
  for (int axis = 0; axis < t.axes; ++axis) {
    count *= t.global_shape[axis];
  }
  const double numel = static_cast<double>(count < 1 ? 1 : count);
  const float rho = shared.scalars.lr_bc1;
  shared.alpha = rho;
  shared.clip = 1.0f;
  if (launch.flags & SCALE_PARAMETER) {
    const double rms =
        root_mean_square(launch.statistics[t.param_max], launch.sums + t.param_sum, numel);
    const double least = static_cast<double>(launch.eps2);
    // NaN counts.
    shared.alpha =
        __double2float_rn(__dmul_rn(static_cast<double>(rho), rms < least ? least : rms));
  }
  if (launch.clip_threshold > 0.0f) {
    const double rms = root_mean_square(launch.update_maxima[t.update_max],
                                        launch.update_sums + t.update_sum, numel);
    const double ratio = __ddiv_rn(rms, static_cast<double>(launch.clip_threshold));
    shared.clip = ratio <= 1.0 ? 1.0f : __double2float_rn(__ddiv_rn(1.0, ratio));
  }
}

// Raises a maximum by the values of one unit; beyond it they are 0.
template <typename Value>
__device__ inline void raise_unit(const Unit& unit, int* maximum, Value value) {
  unsigned largest = 0;
  for (int at = lane_index(); at < unit.length; at += LANES) {
    const unsigned size = canonical_magnitude(magnitude(value(at)));
    largest = size > largest ? size : largest;
  }
  __syncwarp();
  largest = warp_max(largest);
  if (lane_index() == 0) {
    raise_maximum(maximum, static_cast<int>(largest));
  }
}

// Adds the squares of the values of one unit to a sum, unless one of its values is not finite.
template <typename Value>
__device__ inline void sum_unit_squares(const Unit& unit, int largest, unsigned long long* to,
                                        Value value) {
  if (largest >= static_cast<int>(INF_BITS)) {
    return;
  }
  const double units = units_of_one(2 * exponent_above(largest));
  Limbs sum{0, 0};
  for (int at = lane_index(); at < unit.length; at += LANES) {
    const double x = static_cast<double>(value(at));
    add(sum, limbs_of(__dmul_rn(x, x), units));
  }
  __syncwarp();
  const Limbs all{warp_sum(sum.high), warp_sum(sum.low)};
  if (lane_index() == 0) {
    add_limbs(to, all);
  }
}

__device__ inline void collect_adafactor(const Unit& unit) {
  collect_factored<Adafactor>(unit);
  raise_unit(unit, unit.launch.statistics + unit.shared.tensor.param_max,
             [&](int at) { return unit.parameter(at); });
}

__device__ inline void sum_adafactor(const Unit& unit) {
  const Tensor& t = unit.shared.tensor;
  sum_factored<Adafactor>(unit);
  sum_unit_squares(unit, unit.launch.statistics[t.param_max], unit.launch.sums + t.param_sum,
                   [&](int at) { return unit.parameter(at); });
}

__device__ inline float unclipped_update(const Unit& unit, int at) {
  Input x{};
  x.g = unit.gradient(at);
  x.old[0] = old_state<Adafactor>(unit, 0, at);
  float v;
  return Adafactor::unclipped(x, unit.shared, v);
}

__device__ inline void raise_update(const Unit& unit) {
  raise_unit(unit, unit.launch.update_maxima + unit.shared.tensor.update_max,
             [&](int at) { return unclipped_update(unit, at); });
}

__device__ inline void sum_update(const Unit& unit) {
  const Tensor& t = unit.shared.tensor;
  sum_unit_squares(unit, unit.launch.update_maxima[t.update_max],
                   unit.launch.update_sums + t.update_sum,
                   [&](int at) { return unclipped_update(unit, at); });
}

}  // namespace lowbit

LOWBIT_STEP(lowbit::Adafactor, lowbit_k_adafactor)
LOWBIT_UNITS(lowbit::Adafactor, lowbit_k_adafactor_collect, lowbit::collect_adafactor)
LOWBIT_UNITS(lowbit::Adafactor, lowbit_k_adafactor_sum, lowbit::sum_adafactor)
LOWBIT_REFRESH(lowbit::Adafactor, lowbit_k_adafactor_refresh)
LOWBIT_UNITS(lowbit::Adafactor, lowbit_k_adafactor_update_maxima, lowbit::raise_update)
LOWBIT_UNITS(lowbit::Adafactor, lowbit_k_adafactor_update_sums, lowbit::sum_update)
