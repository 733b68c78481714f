// A step of an optimizer on a tensor whose v is kept as factors: means of v over the rows and over the
// columns that the tensor is split into, and over all of it (Shazeer and Stern 2018). The rule is as
// in any.cuh, with
//
//   // R2, the square that v averages; of x it looks at p and g.
//   static float square(const Input& x, const Shared& shared);
//
// and is given v made of the new factors.
//
// Bytes moved per element: those of any.cuh, and the gradient (with coupled decay the parameter too)
// twice more, for the largest squares and for their sums.
//
// Launch: as any.cuh. Such a rule has four kernels, in the order of their launches: `collect`, which
// finds the largest squares, and with them the units of the sums; `sum`, which adds the squares as
// integers, so that no order of the atomics changes the result; `refresh`, which makes the new means
// in the scratch; and the step. `lowbit_k_finish` brings the new means into the states.
//
// `collect` and `sum` take tiles (tiles.cuh), with 33 kB of shared memory. Where rows have accesses of four,
// and one factor changes along them and the other two do not (with few choices of axes all do), a warp goes
// down its part of a tile with the largest squares or the sums of its columns in registers. Those of rows
// are found by one or three operations of the warp for each, and kept by lane, so that accesses are of 32
// rows; what all rows share is kept to the end. The column sums of a thread block's warps meet in shared
// memory. Thus 256 rows of 128 columns take two atomics for each row and column, 0.023 an element. Other
// tensors take one element a lane, and two atomics of each for the sum of its column.
//
// Rounding steps: R2 in the rule; the mean of squares once, to f32, and R4 in `fresh_mean`.

#pragma once

#include "any.cuh"
#include "exact_sum.cuh"
#include "tiles.cuh"

namespace lowbit {

// Means that a task of `refresh` makes (`REFRESHED` in table.rs).
constexpr int REFRESHED = 4 * THREADS;

template <typename Rule>
__device__ __forceinline__ float square_of(const Unit& unit, int at) {
  Input x{};
  x.p = unit.parameter(at);
  x.g = unit.gradient(at);
  return Rule::square(x, unit.shared);
}

template <typename Rule>
__device__ __forceinline__ const Factor* factors_of(const Launch& launch, const Tensor& t) {
  return in_table<Factor>(launch, t.state[factored_state<Rule>].codebook);
}

template <typename Rule>
__device__ __forceinline__ bool is_factored(const Tensor& t) {
  return factored_state<Rule> < t.states && t.state[factored_state<Rule>].kind == FACTORS;
}

// ---- tiles in registers -------------------------------------------------------------------------

// Which factor changes along a row; the others do not.
struct Roles {
  int column = -1;
  bool regular;  // it is the only one, and rows have accesses of four

  __device__ __forceinline__ Roles(const Shared& shared, const Factor* factors) {
    const Tensor& t = shared.tensor;
    int count = 0;
#pragma unroll
    for (int f = 0; f < FACTOR_COUNT; ++f) {
      if (along_row(t, factors[f])) {
        column = f;
        ++count;
      }
    }
    regular = count == 1 && shared.wide;
  }

  __device__ __forceinline__ int other(int i) const { return i < column ? i : i + 1; }
};

constexpr int OTHERS = FACTOR_COUNT - 1;

// Where the rows of a tile are in a factor of the global tensor: lane r knows it of row r.
struct Places {
  const Factor& factor;
  long long place;  // of the row's first column here
  unsigned ends;    // bits: rows behind which comes another place, or none

  __device__ __forceinline__ Places(const Tile& tile, const Factor& factor)
      : factor(factor), place(-1) {
    const int row = lane_index();
    if (row < tile.rows) {
      place = tile.unit(row).factor_position<true>(factor, 0);
    }
    const long long next = value_of_lane(place, (row + 1) % LANES);
    ends = __ballot_sync(ALL_LANES, row < tile.rows && (row + 1 == tile.rows || next != place));
  }

  __device__ __forceinline__ bool ends_at(int row) const { return ends >> row & 1; }
  __device__ __forceinline__ long long of_row(int row) const { return value_of_lane(place, row); }
};

// Calls `use` with every row of a tile, and of the lane's elements the scaled gradients and the squares.
template <typename Rule, typename Use>
__device__ __forceinline__ void each_row_of_squares(const Tile& tile, RowRing& ring, Use use) {
  const Shared& shared = tile.shared;
  const Scalars scalars = shared.scalars;
  tile.each_row(ring, GRAD, shared.tensor.grad_dtype, [&](int row, const float (&loaded)[FOUR]) {
    float p[FOUR] = {}, g[FOUR], squares[FOUR];
    if (scalars.l2 != 0.0f) {
      WideUnit(tile.unit(row)).parameters(tile.lane_column(), p);
    }
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      g[i] = scale_gradient(loaded[i], scalars);  // R1
      Input x{};
      x.p = p[i];
      x.g = g[i];
      squares[i] = Rule::square(x, shared);
    }
    use(row, g, squares);
  });
}

// Raises the largest squares by those of a tile, and flags gradients that are not finite.
template <typename Rule>
__device__ __forceinline__ void collect_tile(const Tile& tile, const Factor* factors,
                                             const Roles& roles, RowRing& ring) {
  const Launch& launch = tile.launch;
  const int lane = lane_index();
  const Places column(tile, factors[roles.column]);
  const Places others[OTHERS] = {Places(tile, factors[roles.other(0)]),
                                 Places(tile, factors[roles.other(1)])};
  // In most tensors the first of them has a place for every row, the rest one for all.
  const unsigned rarely = column.ends | others[1].ends;
  unsigned columns[FOUR] = {}, largest[OTHERS] = {}, of_rows[OTHERS] = {}, gradient = 0;
  const auto end = [&](int o, int row) {
    if (others[o].ends_at(row)) {
      const unsigned of_warp = warp_max(largest[o]);
      of_rows[o] = lane == row ? of_warp : of_rows[o];
      largest[o] = 0;
    }
  };
  each_row_of_squares<Rule>(
      tile, ring, [&](int row, const float (&g)[FOUR], const float (&squares)[FOUR]) {
        unsigned in_row = 0;
#pragma unroll
        for (int i = 0; i < FOUR; ++i) {
          const unsigned of_g = magnitude(g[i]), size = magnitude(squares[i]);
          gradient = of_g > gradient ? of_g : gradient;
          columns[i] = size > columns[i] ? size : columns[i];
          in_row = size > in_row ? size : in_row;
        }
#pragma unroll
        for (int o = 0; o < OTHERS; ++o) {
          largest[o] = in_row > largest[o] ? in_row : largest[o];
        }
        end(0, row);
        if (rarely >> row & 1) {
          end(1, row);
          if (column.ends_at(row)) {
            int* words =
                launch.statistics + column.factor.word + column.of_row(row) + tile.lane_column();
#pragma unroll
            for (int i = 0; i < FOUR; ++i) {
              raise_maximum(words + i, static_cast<int>(canonical_magnitude(columns[i])));
              columns[i] = 0;
            }
          }
        }
      });
#pragma unroll
  for (int o = 0; o < OTHERS; ++o) {
    if (others[o].ends_at(lane)) {
      raise_maximum(launch.statistics + others[o].factor.word + others[o].place,
                    static_cast<int>(canonical_magnitude(of_rows[o])));
    }
  }
  // If any is not, the largest is not.
  const bool bad = non_finite(__uint_as_float(gradient));
  if (__any_sync(ALL_LANES, bad) != 0 && lane == 0) {
    launch.statistics[tile.shared.tensor.index] = 1;
  }
}

// Adds what the warps of a thread block have of the sums of a tile's columns. All of them call it together;
// each may use its ring.
__device__ __forceinline__ void add_columns(const Tile& tile, const Factor& factor,
                                            const Words (&columns)[FOUR], RowRing* rings) {
  static_assert(sizeof(RowRing) >= 2 * CHUNK * sizeof(unsigned long long) && 2 * CHUNK == THREADS,
                "a ring takes the limbs of 128 columns, one for each thread");
  const Tensor& t = tile.shared.tensor;
  const auto limbs = [&](int warp) {
    return reinterpret_cast<unsigned long long*>(rings + warp);
  };
#pragma unroll
  for (int i = 0; i < FOUR; ++i) {
    const Limbs sum = limbs_of(columns[i]);
    unsigned long long* to = limbs(warp_index()) + 2 * (FOUR * lane_index() + i);
    to[0] = static_cast<unsigned long long>(sum.high);
    to[1] = static_cast<unsigned long long>(sum.low);
  }
  __syncthreads();
  const Tiling& tiling = tile.tiling;
  const int thread = static_cast<int>(threadIdx.x);
  const long long first = tile.col - warp_index() % tiling.beside * CHUNK;
  for (int part = 0; part < tiling.beside; ++part) {
    const long long at = first + part * CHUNK + thread / 2;
    unsigned long long sum = 0;
    for (int warp = part; warp < WARPS; warp += tiling.beside) {
      sum += limbs(warp)[thread];
    }
    if (at < t.cols && sum != 0) {
      atomicAdd(tile.launch.sums + factor.sum + 2 * (t.offset[t.axes - 1] + at) + thread % 2, sum);
    }
  }
  __syncthreads();  // the rings may be used again
}

// Adds the squares of a tile to the sums.
template <typename Rule>
__device__ __forceinline__ void sum_tile(const Tile& tile, const Factor* factors,
                                         const Roles& roles, RowRing* rings) {
  const Launch& launch = tile.launch;
  const Tensor& t = tile.shared.tensor;
  const int lane = lane_index();
  const bool here = tile.has_fours();
  const Places column(tile, factors[roles.column]);
  const Places others[OTHERS] = {Places(tile, factors[roles.other(0)]),
                                 Places(tile, factors[roles.other(1)])};
  // All rows of the tensor have the same columns, whose sums are added at the end of the tile.
  const bool common = column.factor.axes == 1u << (t.axes - 1);
  // In most tensors the first of the others has a place for every row, the second one for all.
  const unsigned rarely = (common ? 0 : column.ends) | others[1].ends;
  int by_row[OTHERS];  // places that terms move up by: lane r has those of row r
  bool all_zero = false;
#pragma unroll
  for (int o = 0; o < OTHERS; ++o) {
    const int largest =
        lane < tile.rows ? launch.statistics[others[o].factor.word + others[o].place] : 0;
    by_row[o] = places_below(largest);
    all_zero = all_zero || largest == 0;
  }
  const unsigned zero_rows = __ballot_sync(ALL_LANES, all_zero);
  int by_column[FOUR];
  const auto begin = [&](int row) {
    const int* largest =
        launch.statistics + column.factor.word + column.of_row(row) + tile.lane_column();
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      by_column[i] = row < tile.rows ? places_below(largest[i]) : 0;
    }
  };
  Words columns[FOUR], rows[OTHERS];
  WarpSum of_rows[OTHERS] = {};
  const auto end = [&](int o, int row) {
    if (others[o].ends_at(row)) {
      const WarpSum sum = warp_sum(rows[o]);
      if (lane == row) {
        of_rows[o] = sum;
      }
      rows[o] = Words{};
    }
  };
  begin(0);
  each_row_of_squares<Rule>(
      tile, rings[warp_index()], [&](int row, const float (&)[FOUR], const float (&squares)[FOUR]) {
        Term terms[FOUR];
        int places[OTHERS];
#pragma unroll
        for (int o = 0; o < OTHERS; ++o) {
          const int of_row = __shfl_sync(ALL_LANES, by_row[o], row);
          places[o] = here ? of_row : NO_PLACES;
        }
        int lowest = 0;  // negative if any term moves down
#pragma unroll
        for (int i = 0; i < FOUR; ++i) {
          terms[i] = term_of(squares[i]);
          const int exponent = terms[i].exponent;
          lowest |= exponent + by_column[i];
          add(columns[i], terms[i], exponent + by_column[i]);
#pragma unroll
          for (int o = 0; o < OTHERS; ++o) {
            lowest |= exponent + places[o];
            add(rows[o], terms[i], exponent + places[o]);
          }
        }
        // Zeros do, to no effect.
        if (lowest < 0 && (zero_rows >> row & 1) == 0) {
#pragma unroll
          for (int i = 0; i < FOUR; ++i) {
            const int exponent = terms[i].exponent;
            add_rounded(columns[i], terms[i], exponent + by_column[i]);
#pragma unroll
            for (int o = 0; o < OTHERS; ++o) {
              add_rounded(rows[o], terms[i], exponent + places[o]);
            }
          }
        }
        end(0, row);
        if (rarely >> row & 1) {
          end(1, row);
          if (!common && column.ends_at(row)) {
            unsigned long long* sums =
                launch.sums + column.factor.sum + 2 * (column.of_row(row) + FOUR * lane);
#pragma unroll
            for (int i = 0; i < FOUR; ++i) {
              if (here) {
                add_limbs(sums + 2 * i, limbs_of(columns[i]));
              }
              columns[i] = Words{};
            }
            begin(row + 1);
          }
        }
      });
#pragma unroll
  for (int o = 0; o < OTHERS; ++o) {
    if (others[o].ends_at(lane)) {
      add_limbs(launch.sums + others[o].factor.sum + 2 * others[o].place,
                limbs_of(words_of(of_rows[o])));
    }
  }
  __syncwarp();
  if (common) {
    add_columns(tile, column.factor, columns, rings);
  }
}

// ---- tensors without accesses of four, and any other choice of axes -------------------------------

// Raises the largest squares by those of one unit, one element a lane.
template <typename Rule>
__device__ inline void collect_squares(const Unit& unit, const Factor* factors) {
  for (int at = lane_index(); at < unit.length; at += LANES) {
    const int value = static_cast<int>(canonical_magnitude(magnitude(square_of<Rule>(unit, at))));
#pragma unroll
    for (int f = 0; f < FACTOR_COUNT; ++f) {
      const long long position = unit.template factor_position<true>(factors[f], at);
      raise_maximum(unit.launch.statistics + factors[f].word + position, value);
    }
  }
}

// How many units a term of 1 has in a sum; 0: a term is not finite, of which nothing is added.
__device__ __forceinline__ double units_below(int largest) {
  return largest < static_cast<int>(INF_BITS) ? units_of_one(exponent_above(largest)) : 0.0;
}

// Adds the squares of one unit to the sums, one element a lane. A lane adds in registers while elements that
// follow each other have the same sum, and at the end of the unit a warp whose lanes all have the same adds
// once.
template <typename Rule>
__device__ inline void sum_squares(const Unit& unit, const Factor* factors) {
  const Launch& launch = unit.launch;
  long long place[FACTOR_COUNT];  // of the sum; -1: none yet
  double units[FACTOR_COUNT];
  Limbs sum[FACTOR_COUNT];
#pragma unroll
  for (int f = 0; f < FACTOR_COUNT; ++f) {
    place[f] = -1;
    units[f] = 0.0;
    sum[f] = Limbs{0, 0};
  }
  for (int at = lane_index(); at < unit.length; at += LANES) {
    const double term = static_cast<double>(square_of<Rule>(unit, at));
#pragma unroll
    for (int f = 0; f < FACTOR_COUNT; ++f) {
      const long long position = unit.template factor_position<true>(factors[f], at);
      if (position != place[f]) {
        if (place[f] >= 0) {
          add_limbs(launch.sums + factors[f].sum + 2 * place[f], sum[f]);
        }
        place[f] = position;
        units[f] = units_below(launch.statistics[factors[f].word + position]);
        sum[f] = Limbs{0, 0};
      }
      if (units[f] != 0.0) {
        add(sum[f], limbs_of(term, units[f]));
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int f = 0; f < FACTOR_COUNT; ++f) {
    const long long first = value_of_lane(place[f], 0);
    if (__any_sync(ALL_LANES, place[f] >= 0 && place[f] != first)) {
      if (place[f] >= 0) {
        add_limbs(launch.sums + factors[f].sum + 2 * place[f], sum[f]);
      }
      __syncwarp();
    } else {
      const Limbs all{warp_sum(sum[f].high), warp_sum(sum[f].low)};
      if (lane_index() == 0) {
        add_limbs(launch.sums + factors[f].sum + 2 * first, all);
      }
      __syncwarp();
    }
  }
}

// ---- kernels --------------------------------------------------------------------------------------

// Raises the statistics, the largest squares among them, by one tile.
template <typename Rule>
__device__ inline void collect_factored(const Tile& tile, RowRing* rings) {
  const Tensor& t = tile.shared.tensor;
  if (!is_factored<Rule>(t)) {
    tile.each_unit([](const Unit& unit) { collect_unit<Rule>(unit); });
    return;
  }
  const Factor* factors = factors_of<Rule>(tile.launch, t);
  const Roles roles(tile.shared, factors);
  if (!roles.regular || has_collected_maxima<Rule>(t)) {
    tile.each_unit([](const Unit& unit) { collect_unit<Rule>(unit); });
  }
  if (roles.regular) {
    collect_tile<Rule>(tile, factors, roles, rings[warp_index()]);
  } else {
    tile.each_unit([&](const Unit& unit) { collect_squares<Rule>(unit, factors); });
  }
}

// Adds the squares of one tile to the sums.
template <typename Rule>
__device__ inline void sum_factored(const Tile& tile, RowRing* rings) {
  const Tensor& t = tile.shared.tensor;
  if (!is_factored<Rule>(t)) {
    return;
  }
  const Factor* factors = factors_of<Rule>(tile.launch, t);
  const Roles roles(tile.shared, factors);
  if (roles.regular) {
    sum_tile<Rule>(tile, factors, roles, rings);
  } else {
    tile.each_unit([&](const Unit& unit) { sum_squares<Rule>(unit, factors); });
  }
}

// The place in the global tensor's factor of one here.
__device__ inline long long globalize(const Tensor& t, const Factor& factor, long long position) {
  long long global = 0, stride = 1;
  for (int axis = t.axes - 1; axis >= 0; --axis) {
    if (factor.axes >> axis & 1) {
      global += (position % t.shape[axis] + t.offset[axis]) * stride;
      position /= t.shape[axis];
      stride *= t.global_shape[axis];
    }
  }
  return global;
}

// R4 of the old mean and the exact mean of this step's squares, rounded once to f32.
__device__ inline float fresh_mean(const Launch& launch, const Shared& shared, const Factor& factor,
                                   float old, long long position) {
  const Scalars& s = shared.scalars;
  const long long at = globalize(shared.tensor, factor, position);
  const int largest = launch.statistics[factor.word + at];
  const float mean = mean_of_sum(launch.sums + factor.sum + 2 * at, largest, factor.count);
  return __fmaf_rn(s.beta2, old, __fmul_rn(s.one_minus_beta2, mean));
}

// Makes the new means of the tensors of a launch.
template <typename Rule>
__device__ inline void refresh(const Launch& launch, Shared& shared) {
  WalkerOf<Rule::scalars> walker(launch, shared);
  for (long long task = blockIdx.x; task < launch.tasks; task += gridDim.x) {
    const long long first = walker.enter(task).index * REFRESHED;
    const Tensor& t = shared.tensor;
    const Factor* factors = factors_of<Rule>(launch, t);
    for (long long i = first + threadIdx.x; i < first + REFRESHED; i += THREADS) {
      long long position = i;
      for (int f = 0; f < FACTOR_COUNT; ++f) {
        const long long extent = factor_extent(t, factors[f]);
        if (position < extent) {
          const int from = t.state[factored_state<Rule>].buffer + f;
          const float old = pointer<const float>(launch, t, from)[position];
          launch.fresh[factors[f].fresh + position] =
              fresh_mean(launch, shared, factors[f], old, position);
          break;
        }
        position -= extent;
      }
    }
  }
}

}  // namespace lowbit

// The kernel that makes the new means.
#define LOWBIT_REFRESH(RULE, REFRESH)                                                      \
  extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)                         \
      REFRESH(const lowbit::Launch __grid_constant__ launch) {                             \
    __shared__ lowbit::Shared shared;                                                      \
    lowbit::refresh<RULE>(launch, shared);                                                 \
  }

// The four kernels of a rule with a factored v.
#define LOWBIT_FACTORED(RULE, STEP, COLLECT, SUM, REFRESH)      \
  LOWBIT_STEP(RULE, STEP)                                       \
  LOWBIT_TILES(RULE, COLLECT, lowbit::collect_factored<RULE>)   \
  LOWBIT_TILES(RULE, SUM, lowbit::sum_factored<RULE>)           \
  LOWBIT_REFRESH(RULE, REFRESH)
