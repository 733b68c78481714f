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
// Launch: as factored.cuh; before the step come two more kernels that take tiles, the largest d and the sum
// of its squares. What the step makes of both RMS is computed where a thread block comes to a tensor. Maxima
// and sums of whole tensors take one access of a warp for its part of a tile, up to 16384 elements.
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

  __device__ static float square(const Input& x, const Scalars& s) {
    return __fmaf_rn(x.g, x.g, s.eps);  // R2
  }

  // v' and d.
  __device__ static float unclipped(const Input& x, const Shared& shared, float& v) {
    const Scalars& s = shared.scalars;
    v = shared.tensor.state[0].kind == FACTORS
            ? x.old[0]
            : __fmaf_rn(s.beta2, x.old[0], __fmul_rn(s.one_minus_beta2, square(x, s)));  // R4
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

// Raises a maximum by the largest magnitude that a lane has found; all lanes call it together.
__device__ inline void raise_by_lanes(int* maximum, unsigned largest) {
  __syncwarp();
  largest = canonical_magnitude(warp_max(largest));
  if (lane_index() == 0) {
    raise_maximum(maximum, static_cast<int>(largest));
  }
}

// Adds what the lanes have to a sum; all lanes call it together.
__device__ inline void add_by_lanes(unsigned long long* to, const Limbs& sum) {
  __syncwarp();
  const Limbs all{warp_sum(sum.high), warp_sum(sum.low)};
  if (lane_index() == 0) {
    add_limbs(to, all);
  }
}

// A sum of the squares of values, none of which are infinite or NaN, the largest of them with these bits.
struct SumOfSquares {
  double units;
  Limbs sum{0, 0};

  __device__ __forceinline__ explicit SumOfSquares(int largest)
      : units(units_of_one(2 * exponent_above(largest))) {}

  __device__ __forceinline__ void add(float value) {
    const double x = static_cast<double>(value);
    lowbit::add(sum, limbs_of(__dmul_rn(x, x), units));
  }
};

// Calls `use` with the parameters of a tile.
template <typename Use>
__device__ __forceinline__ void each_parameter(const Tile& tile, RowRing* rings, Use use) {
  const Tensor& t = tile.shared.tensor;
  if (tile.shared.wide && beside_bytes(t.weights) == 0) {
    tile.each_rows(rings[warp_index()], PARAM, t.param_dtype, [&](int, const float (&p)[ROWS][FOUR]) {
#pragma unroll
      for (int i = 0; i < ROWS * FOUR; ++i) {
        use(p[i / FOUR][i % FOUR]);
      }
    });
    return;
  }
  tile.each_unit([&](const Unit& unit) {
    for (int at = lane_index(); at < unit.length; at += LANES) {
      use(unit.parameter(at));
    }
  });
}

__device__ inline void collect_adafactor(const Tile& tile, RowRing* rings) {
  collect_factored<Adafactor>(tile, rings);
  unsigned largest = 0;
  each_parameter(tile, rings, [&](float p) {
    largest = magnitude(p) > largest ? magnitude(p) : largest;
  });
  raise_by_lanes(tile.launch.statistics + tile.shared.tensor.param_max, largest);
}

__device__ inline void sum_adafactor(const Tile& tile, RowRing* rings) {
  const Launch& launch = tile.launch;
  const Tensor& t = tile.shared.tensor;
  sum_factored<Adafactor>(tile, rings);
  const int largest = launch.statistics[t.param_max];
  if (largest < static_cast<int>(INF_BITS)) {
    SumOfSquares squares(largest);
    each_parameter(tile, rings, [&](float p) { squares.add(p); });
    add_by_lanes(launch.sums + t.param_sum, squares.sum);
  }
}

__device__ __forceinline__ float unclipped_of(const Unit& unit, float g, float v) {
  Input x{};
  x.g = g;
  x.old[0] = v;
  float new_v;
  return Adafactor::unclipped(x, unit.shared, new_v);
}

// Calls `use` with the updates of a tile before they are clipped.
template <typename Use>
__device__ __forceinline__ void each_unclipped(const Tile& tile, Use use) {
  tile.each_unit([&](const Unit& unit) {
    if (!unit.shared.wide) {
      for (int at = lane_index(); at < unit.length; at += LANES) {
        use(unclipped_of(unit, unit.gradient(at), old_state<Adafactor>(unit, 0, at)));
      }
      return;
    }
    const WideUnit fours(unit);
    const int at = FOUR * lane_index();
    if (at < unit.length) {
      float g[FOUR], v[FOUR];
      fours.gradients(at, g);
      old_states<Adafactor>(fours, 0, at, v);
#pragma unroll
      for (int i = 0; i < FOUR; ++i) {
        use(unclipped_of(unit, g[i], v[i]));
      }
    }
  });
}

__device__ inline void raise_update(const Tile& tile, RowRing*) {
  unsigned largest = 0;
  each_unclipped(tile, [&](float d) {
    largest = magnitude(d) > largest ? magnitude(d) : largest;
  });
  raise_by_lanes(tile.launch.update_maxima + tile.shared.tensor.update_max, largest);
}

__device__ inline void sum_update(const Tile& tile, RowRing*) {
  const Launch& launch = tile.launch;
  const Tensor& t = tile.shared.tensor;
  const int largest = launch.update_maxima[t.update_max];
  if (largest < static_cast<int>(INF_BITS)) {
    SumOfSquares squares(largest);
    each_unclipped(tile, [&](float d) { squares.add(d); });
    add_by_lanes(launch.update_sums + t.update_sum, squares.sum);
  }
}

}  // namespace lowbit

LOWBIT_STEP(lowbit::Adafactor, lowbit_k_adafactor)
LOWBIT_TILES(lowbit::Adafactor, lowbit_k_adafactor_collect, lowbit::collect_adafactor)
LOWBIT_TILES(lowbit::Adafactor, lowbit_k_adafactor_sum, lowbit::sum_adafactor)
LOWBIT_REFRESH(lowbit::Adafactor, lowbit_k_adafactor_refresh)
LOWBIT_TILES(lowbit::Adafactor, lowbit_k_adafactor_update_maxima, lowbit::raise_update)
LOWBIT_TILES(lowbit::Adafactor, lowbit_k_adafactor_update_sums, lowbit::sum_update)
