// A step of an optimizer on a tensor whose v is kept as factors: means of v over the rows and over the
// columns that the tensor is split into, and over all of it (Shazeer and Stern 2018). The rule is as
// in any.cuh, with
//
//   // R2, the square that v averages; of x it looks at p and g.
//   static float square(const Input& x, const Scalars& s);
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
// rows; what all rows share is found of them. The column sums of a thread block's warps meet in shared
// memory. Thus 256 rows of 128 columns take two atomics for each row and column, 0.023 an element. Other
// tensors take one element a lane, and two atomics of each for the sum of its column.
//
// Sums of rows, of columns and of all have units of their own, but most terms are whole in the largest, that
// of all: rows of such terms are added in it alone, and what they add up to is brought to other units once, by
// a shift. Rows with other terms (of 67 million normal numbers one in 900), and gradients with coupled decay,
// are added term by term in each sum's unit, one row after the other.
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
  return Rule::square(x, unit.shared.scalars);
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

  // The last factor keeps the axes that both others do, so it never is the only one.
  __device__ __forceinline__ int row() const { return 1 - column; }
  static constexpr int MEAN = 2;
};

// Where a unit's first column is in a factor of the global tensor; mostly it takes no divisions.
__device__ __forceinline__ long long place_of(const Unit& unit, const Factor& factor) {
  const unsigned lead = (1u << unit.shared.tensor.lead) - 1;
  return factor.axes == 0      ? 0
         : factor.axes == lead ? unit.global_row
                               : unit.template factor_position<true>(factor, 0);
}

// Whether all rows of a tensor have the same means over columns, and so the same mean of all, and follow each
// other among the means over rows.
__device__ __forceinline__ bool is_whole(const Tensor& t, const Factor& column) {
  bool whole = column.axes == 1u << (t.axes - 1);
  for (int axis = 1; axis < t.lead; ++axis) {
    whole = whole && t.shape[axis] == t.global_shape[axis];
  }
  return whole;
}

// Calls `body` with the parts of a tile that are whole as above, up to 32 rows if not all of it is.
template <typename Body>
__device__ __forceinline__ void each_part(const Tile& tile, bool whole, const Factor& column,
                                          const Factor& row, Body body) {
  for (int first = 0; first < tile.rows;) {
    int count = tile.rows;
    if (!whole) {
      const int own = first + lane_index(), next = (lane_index() + 1) % LANES;
      long long of_column = -1, of_row = 0;
      if (own < tile.rows) {
        of_column = place_of(tile.unit(own), column);
        of_row = place_of(tile.unit(own), row);
      }
      __syncwarp();
      const long long next_column = value_of_lane(of_column, next);
      const long long next_row = value_of_lane(of_row, next);
      const bool ends =
          lane_index() == LANES - 1 || next_column != of_column || next_row != of_row + 1;
      count = __ffs(static_cast<int>(__ballot_sync(ALL_LANES, ends)));
    }
    body(tile.part(first, count));
    first += count;
  }
}

// Whether the rows from one on, four of them at most, are the last of 32, or of the tile.
__device__ __forceinline__ bool ends_band(const Tile& tile, int row) {
  return (row + ROWS) % LANES == 0 || row + ROWS >= tile.rows;
}

// The squares of the lane's elements of a row, and the largest magnitude of their gradients; 0 for those that
// do not exist.
template <typename Rule>
__device__ __forceinline__ unsigned squares_of_row(const Tile& tile, int row,
                                                   float (&squares)[FOUR]) {
  const Scalars scalars = tile.shared.scalars;
  const WideUnit unit(tile.unit(row));
  const int at = FOUR * lane_index();
  unsigned gradient = 0;
#pragma unroll
  for (int i = 0; i < FOUR; ++i) {
    squares[i] = 0.0f;
  }
  if (tile.has_fours()) {
    float p[FOUR] = {}, g[FOUR];
    if (scalars.l2 != 0.0f) {
      unit.parameters(at, p);
    }
    unit.gradients(at, g);
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      Input x{};
      x.p = p[i];
      x.g = g[i];
      squares[i] = Rule::square(x, scalars);
      gradient = magnitude(g[i]) > gradient ? magnitude(g[i]) : gradient;
    }
  }
  __syncwarp();
  return gradient;
}

// Whether squares are of gradients alone.
__device__ __forceinline__ bool uncoupled(const Tile& tile) {
  return tile.shared.scalars.l2 == 0.0f;
}

// Calls `use` with the number of the first of every four rows of a tile, and the squares of the lane's
// elements, which are of gradients alone; 0 for those that do not exist.
template <typename Rule, typename Use>
__device__ __forceinline__ void each_rows_of_squares(const Tile& tile, RowRing& ring, Use use) {
  Scalars scalars = tile.shared.scalars;
  scalars.l2 = 0.0f;
  const float eps = scalars.eps;
  const int rows = tile.has_fours() ? tile.rows : 0;
  const auto square = [&](int row, const float (&loaded)[ROWS][FOUR]) {
    float squares[ROWS][FOUR];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      scalars.eps = row + r < rows ? eps : 0.0f;
#pragma unroll
      for (int i = 0; i < FOUR; ++i) {
        Input x{};
        x.g = scale_gradient(loaded[r][i], scalars);  // R1
        squares[r][i] = Rule::square(x, scalars);
      }
    }
    use(row, squares);
  };
  tile.each_rows(ring, GRAD, tile.shared.tensor.grad_dtype, square);
}

// Raises the largest squares by those of a tile, and flags gradients that are not finite.
template <typename Rule>
__device__ __forceinline__ void collect_tile(const Tile& tile, const Factor* factors,
                                             const Roles& roles, RowRing& ring) {
  int* const statistics = tile.launch.statistics;
  const Factor &column = factors[roles.column], &row = factors[roles.row()],
               &mean = factors[Roles::MEAN];
  const int lane = lane_index();
  unsigned gradient = 0;
  const bool whole = is_whole(tile.shared.tensor, column);
  each_part(tile, whole, column, row, [&](const Tile& part) {
    const Unit first = part.unit(0);
    int* const of_rows = statistics + row.word + place_of(first, row);
    unsigned columns[FOUR] = {}, of_all = 0;
    unsigned of_row = 0;  // of 32 rows, lane r has that of row r
    // Squares have no sign, unless they are NaN: as integers the largest of all.
    const auto raise = [&](int at, const float (&squares)[FOUR]) {
      unsigned in_row = 0;
#pragma unroll
      for (int i = 0; i < FOUR; ++i) {
        const unsigned size = __float_as_uint(squares[i]);
        columns[i] = size > columns[i] ? size : columns[i];
        in_row = size > in_row ? size : in_row;
      }
      const unsigned of_warp = warp_max(in_row);
      of_row = lane == at % LANES ? of_warp : of_row;
    };
    const auto raise_rows = [&](int band) {
      of_row = canonical_magnitude(of_row);
      of_all = of_row > of_all ? of_row : of_all;
      if (band + lane < part.rows) {
        raise_maximum(of_rows + band + lane, static_cast<int>(of_row));
      }
      of_row = 0;
      __syncwarp();
    };
    if (uncoupled(part)) {
      each_rows_of_squares<Rule>(part, ring, [&](int at, const float (&squares)[ROWS][FOUR]) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          raise(at + r, squares[r]);
        }
        if (ends_band(part, at)) {
          raise_rows(at / LANES * LANES);
        }
      });
    }
    // Without a parameter in it, a square that is finite is of a gradient that is.
    if (!uncoupled(part) || __any_sync(ALL_LANES, of_all >= INF_BITS)) {
#pragma unroll 1
      for (int at = 0; at < part.rows; ++at) {
        float squares[FOUR];
        const unsigned largest = squares_of_row<Rule>(part, at, squares);
        gradient = largest > gradient ? largest : gradient;
        raise(at, squares);
        if (at % LANES == LANES - 1 || at + 1 == part.rows) {
          raise_rows(at / LANES * LANES);
        }
      }
    }
    if (part.has_fours()) {
      int* words = statistics + column.word + place_of(first, column) + FOUR * lane;
      int before[FOUR];  // most values are no new maximum
#pragma unroll
      for (int i = 0; i < FOUR; ++i) {
        before[i] = words[i];
      }
#pragma unroll
      for (int i = 0; i < FOUR; ++i) {
        const int value = static_cast<int>(canonical_magnitude(columns[i]));
        if (value > before[i]) {
          atomicMax(words + i, value);
        }
      }
    }
    __syncwarp();
    of_all = warp_max(of_all);
    if (lane == 0) {
      raise_maximum(statistics + mean.word + place_of(first, mean), static_cast<int>(of_all));
    }
    __syncwarp();
  });
  // If any is not, the largest is not.
  const bool bad = non_finite(__uint_as_float(gradient));
  if (__any_sync(ALL_LANES, bad) != 0 && lane == 0) {
    statistics[tile.shared.tensor.index] = 1;
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

// The sums of a part of a tile. A row's terms that are whole units of the sum of all, the largest units, need
// no rounding in any: what a row or a column adds up to in them is exact, needs only to move up to its own
// units at the end, and rows add up to their share of all. Rows with other terms are left apart, to be added
// term by term in the units of each sum.
struct PartSums {
  Words columns[FOUR];  // first in units of all, then in their own
  Limbs all{0, 0};      // the lane's share
  unsigned apart = 0;   // bits, lane b has those of the rows from 32 b on: those left apart
};

// What means over rows are made of, of a part's rows.
struct OfRows {
  const int* largest;
  unsigned long long* sums;
};

// Adds the squares of rows of whole units; terms move up by `below_all`.
template <typename Rule>
__device__ __forceinline__ void sum_whole_rows(const Tile& part, const OfRows& rows, int below_all,
                                               RowRing& ring, PartSums& sums) {
  const int lane = lane_index();
  // The least normal number that is whole. What is not normal has the exponent 0, which moves it down: it adds
  // nothing, as 0 should, and the others leave their row apart.
  const unsigned least_whole = static_cast<unsigned>(-below_all) << 23;
  unsigned apart = 0;  // of 32 rows
  WarpSum of_row{};    // lane r has that of row r
  const auto sum = [&](int at, const float (&squares)[ROWS][FOUR]) {
    unsigned bits[ROWS][FOUR], least = INF_BITS;
#pragma unroll
    for (int i = 0; i < ROWS * FOUR; ++i) {
      const unsigned x = __float_as_uint(squares[i / FOUR][i % FOUR]);
      bits[i / FOUR][i % FOUR] = x;
      least = x < least ? x : least;
    }
    if (__any_sync(ALL_LANES, least < least_whole)) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        bool rounds = false;
#pragma unroll
        for (int i = 0; i < FOUR; ++i) {
          rounds = rounds || (bits[r][i] != 0 && bits[r][i] < least_whole);
        }
        if (__any_sync(ALL_LANES, rounds)) {
          apart |= 1u << (at + r) % LANES;
#pragma unroll
          for (int i = 0; i < FOUR; ++i) {
            bits[r][i] = 0;
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      unsigned long long in_row = 0;  // four terms below 2^61
#pragma unroll
      for (int i = 0; i < FOUR; ++i) {
        const unsigned x = bits[r][i];
        const unsigned long long units =
            shift_left(significand_of(x), static_cast<int>(x >> 23) + below_all);
        add(sums.columns[i], words_of(units));
        in_row += units;
      }
      const WarpSum of_warp = warp_sum(words_of(in_row));
      if (lane == (at + r) % LANES) {
        of_row = of_warp;
      }
    }
    if (ends_band(part, at)) {
      const int band = at / LANES, own = band * LANES + lane;
      if (own < part.rows) {
        const Words whole = words_of(of_row);
        add(sums.all, limbs_of(whole));
        const int places = places_below(rows.largest[own]) - below_all;
        add_limbs(rows.sums + 2 * own, limbs_of(moved_up(whole, places)));
      }
      sums.apart = lane == band ? apart : sums.apart;
      apart = 0;
      __syncwarp();
    }
  };
  each_rows_of_squares<Rule>(part, ring, sum);
}

// Adds the squares of a row that is left apart.
template <typename Rule>
__device__ __forceinline__ void sum_row_apart(const Tile& part, int at, const OfRows& rows,
                                              int below_all, const int (&below_column)[FOUR],
                                              PartSums& sums) {
  const auto add_term = [](Words& sum, const Term& term, int places) {
    add(sum, term, places);
    add_rounded(sum, term, places);
  };
  const int below_row = places_below(rows.largest[at]);
  float squares[FOUR];
  squares_of_row<Rule>(part, at, squares);
  Words in_row, all;
#pragma unroll
  for (int i = 0; i < FOUR; ++i) {
    const Term term = term_of(squares[i]);
    add_term(sums.columns[i], term, term.exponent + below_column[i]);
    add_term(in_row, term, term.exponent + below_row);
    add_term(all, term, term.exponent + below_all);
  }
  add(sums.all, limbs_of(all));
  const Words of_row = words_of(warp_sum(in_row));
  if (lane_index() == 0) {
    add_limbs(rows.sums + 2 * at, limbs_of(of_row));
  }
  __syncwarp();
}

// Adds the squares of a tile to the sums.
template <typename Rule>
__device__ __forceinline__ void sum_tile(const Tile& tile, const Factor* factors,
                                         const Roles& roles, RowRing* rings) {
  const Launch& launch = tile.launch;
  const Factor &column = factors[roles.column], &row = factors[roles.row()],
               &mean = factors[Roles::MEAN];
  const int lane = lane_index();
  // Then sums of columns are added at the end of the tile, by the thread block.
  const bool whole = is_whole(tile.shared.tensor, column);
  PartSums sums;
  each_part(tile, whole, column, row, [&](const Tile& part) {
    const Unit first = part.unit(0);
    const long long of_columns = place_of(first, column) + FOUR * lane;
    const long long of_rows = place_of(first, row), of_all = place_of(first, mean);
    const OfRows rows{launch.statistics + row.word + of_rows, launch.sums + row.sum + 2 * of_rows};
    const int below_all = places_below(launch.statistics[mean.word + of_all]);
    sums.all = Limbs{0, 0};
    sums.apart = ALL_LANES;
    const bool quick = uncoupled(part) && below_all < 0 && below_all != NO_PLACES;
    if (quick) {
      sum_whole_rows<Rule>(part, rows, below_all, rings[warp_index()], sums);
    }
    int below_column[FOUR] = {};
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      if (part.has_fours()) {
        below_column[i] = places_below(launch.statistics[column.word + of_columns + i]);
      }
      if (quick) {
        sums.columns[i] = moved_up(sums.columns[i], below_column[i] - below_all);
      }
    }
#pragma unroll 1
    for (int begin = 0; begin < part.rows; begin += LANES) {
      unsigned apart = __shfl_sync(ALL_LANES, sums.apart, begin / LANES);
#pragma unroll 1
      for (; apart != 0; apart &= apart - 1) {
        const int at = begin + __ffs(static_cast<int>(apart)) - 1;
        if (at < part.rows) {
          sum_row_apart<Rule>(part, at, rows, below_all, below_column, sums);
        }
      }
    }
    const Limbs all{warp_sum(sums.all.high), warp_sum(sums.all.low)};
    if (lane == 0) {
      add_limbs(launch.sums + mean.sum + 2 * of_all, all);
    }
    if (!whole) {
#pragma unroll
      for (int i = 0; i < FOUR; ++i) {
        if (part.has_fours()) {
          add_limbs(launch.sums + column.sum + 2 * (of_columns + i), limbs_of(sums.columns[i]));
        }
        sums.columns[i] = Words{};
      }
    }
    __syncwarp();
  });
  if (whole) {
    add_columns(tile, column, sums.columns, rings);
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
