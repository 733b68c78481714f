// AdamW and Adam with m in 4 bits, one scale for each block of 128, and a factored v, on common tensors: m
// block(128)/nf4, rounded at random, v as means r of rows, c of columns and a of all (preset `factor4`).
//
//   m = level[c_m] s                    s = max |m'| over the block; c_m = one of the two neighbours, by a draw
//   m' = beta1 m + (1 - beta1) g        v' = r' / a' c'
//   p' = p - lr (m' / (1 - beta1^t)) / (sqrt(v' / (1 - beta2^t)) + eps) - lr wd p
//
// r', c' and a' are made before, by the kernels of adamw_factored.cu. A row of the means is a row of the grid
// (`Kernel::of`): a unit has one r', and a lane four c'.
//
// Bytes moved per element: as momentum4.cuh, 7.0625 for bf16 parameters and gradients, 13.0625 for f32; and c',
// 4, from the L2 cache.
//
// Launch: as adamw_block4.cu.
//
// Rounding steps: R1 and R8 in common.cuh, R3 in numerics.cuh, R5 to R7 as in adamw.cuh; codes in nibbles.cuh.

#include "adamw.cuh"
#include "momentum4.cuh"

namespace lowbit {

// v comes as it shall be.
struct FactoredAdamwOfFour : AdamwOfFour {
  __device__ static __forceinline__ void complete(const Launch& launch, const Tensor& t,
                                                  Shared& shared) {
    shared.mean = launch.fresh[in_table<Factor>(launch, t.state[1].codebook)[2].fresh];
  }

  __device__ static __forceinline__ bool moments(Quad& x, const Shared& shared, int) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      x.m[i] = first_moment(x.g[i], x.m[i], shared.scalars);
    }
    return are_in_range(x.m, x.v);
  }
};

struct Factor4States : Momentum4States<FactoredAdamwOfFour, 1> {
  using Momentum = Momentum4States<FactoredAdamwOfFour, 1>;
  using OfOneBlock = Factor4States;

  static constexpr bool GLOBAL = true;

  const float* rows;     // means
  const float* columns;  // those of the lane, in the first block of a row
  float mean;            // of all
  float most;            // the largest mean of a row whose quotient by that is taken without checks; 0: none is

  // Of means in this range.
  static constexpr float LEAST_MEAN = 0x1p-77f;
  static constexpr float LARGEST_MEAN = 0x1p40f;

  __device__ __forceinline__ Factor4States(const Launch& launch, const Shared& shared,
                                           const Tables& tables)
      : Momentum(launch, shared, tables),
        mean(shared.mean),
        most(mean >= LEAST_MEAN && mean <= LARGEST_MEAN ? LARGEST_MEAN : 0.0f) {
    const Factor* factors = in_table<Factor>(launch, tensor.state[1].codebook);
    rows = launch.fresh + factors[0].fresh;
    columns = launch.fresh + factors[1].fresh + EACH * lane_index();
  }

  __device__ __forceinline__ bool aligned() const {
    return Momentum::aligned() && is_aligned(columns, EACH * sizeof(float));
  }

  struct Fetched {
    Momentum::Fetched m;
    float row;
    Packed<F32> columns;
  };

  template <bool Wide>
  __device__ __forceinline__ Fetched fetch(const Place& place) const {
    return {Momentum::fetch<Wide>(place), rows[place.row],
            lowbit::fetch<F32, Wide>(columns, column(place), place.count())};
  }

  // The same of a warp's block in shared memory: codes and scale, the row's mean, those of columns.
  static constexpr int ROW = Momentum::STAGE - 4;
  static constexpr int COLUMNS = Momentum::STAGE;
  static constexpr int STAGE = COLUMNS + BLOCK * sizeof(float);

  __device__ __forceinline__ void copy(SharedAddress to, const Place& place) const {
    Momentum::copy(to, place);
    if (lane_index() == 0) {
      copy_async<4>(to + ROW, rows + place.row);
    }
    copy_async<16>(to + COLUMNS + 16 * lane_index(), columns + column(place));
  }

  __device__ static __forceinline__ Fetched fetch(SharedAddress from, int part) {
    Fetched fetched{Momentum::fetch(from, part), 0.0f, {}};
    load_shared(from + ROW, fetched.row);
    load_shared(from + COLUMNS + 16 * lane_index(), fetched.columns);
    return fetched;
  }

  __device__ static __forceinline__ long long column(const Place& place) {
    return static_cast<long long>(place.block) * BLOCK;
  }

  __device__ __forceinline__ void decode(const Fetched& from, float (&m)[EACH],
                                         float (&v)[EACH]) const {
    Momentum::decode(from.m, m, v);
    float means[EACH];
    unpack<F32>(from.columns, means);
    if (from.row >= LEAST_MEAN && from.row <= most) {
      const float row = quotient_in_range(from.row, mean);
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        v[i] = __fmul_rn(row, means[i]);
      }
    } else {
      unsigned bits[EACH] = {};
      for_each_of_four([&](int i) {
        return __float_as_uint(Unit::factored_value(from.row, chosen(means, i), mean));
      }, bits);
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        v[i] = __uint_as_float(bits[i]);
      }
    }
  }
};

}  // namespace lowbit

LOWBIT_COMMON_KERNELS(adamw, factor4, step_tensors, lowbit::Factor4States, 2)
