// AdamW with m in 4 bits and blocks of 128 and v in 4 bits under rank-1 normalization: the scale of an
// element of v is the smallest of the maxima of its slices, one along every axis. What the kernels
// differ in is the tables:
//
//   struct Tables {
//     using M = ...;  // a table of nibbles.cuh, with `encode` for any scale
//     using V = ...;  // likewise, for scales that differ from element to element
//   };
//
//   m = level_m[c_m] s_m                v = level_v[c_v] min over axes of r_axis[i_axis]
//   m' = beta1 m + (1 - beta1) g        v' = beta2 v + (1 - beta2) g^2
//   p' = p - lr (m' / (1 - beta1^t)) / (sqrt(v' / (1 - beta2^t)) + eps) - lr wd p
//   r'_axis[i] = max v' over the slice i
//
// All of v' must be known before any of it is coded, so there are two passes: one collects the
// maxima (and whether a gradient is not finite), one applies.
//
// Bytes moved per element: parameter read and written, gradient read twice, codes of m read and
// written, of v read twice and written (5 x 1/2), scales of m (8/128): 10.56 for bf16 parameters and
// gradients, of which 2.5, the second reads, come from the L2 cache where it holds a few million
// elements.
//
// Launch: 256 threads a thread block, one dimension, as many thread blocks as the device holds at
// once. Fused, thread blocks take numbered tasks from a counter: those that collect a group of tensors
// come a little before those that apply it (in reverse order, as the tail is still cached), and an
// applying thread block waits for the group's last collecting one. That cannot stop: a task waits
// for smaller numbers only, and whoever has those is running.
// A task is 32 to 256 rows (`Tensor::tile_rows`) of up to 8 blocks of 128 columns; each warp keeps its
// columns' maxima in registers while it goes down the rows, and each lane what belongs to one of 32 of
// them. What the next rows need is on its way while this one is computed.
//
// Rounding steps: as in adamw_block4.cu; codes in nibbles.cuh.

#pragma once

#include "adamw.cuh"
#include "nibbles.cuh"

namespace lowbit {

// Of what lanes have for a row each, what belongs to this one, modulo 32.
__device__ __forceinline__ unsigned of_row(unsigned by_lane, int row) {
  return __shfl_sync(ALL_LANES, by_lane, row);
}

// The tasks of a tensor, as `Kernel::tasks` in table.rs: columns are shared out in groups of blocks, as many
// as there are warps or, if a row has fewer, the power of two below. No device has memory for 2^31 of them.
struct Tiles {
  int log_group;
  int across;
  int count;

  __device__ __forceinline__ explicit Tiles(const Tensor& t)
      : log_group(t.units >= 8 ? 3 : t.units >= 4 ? 2 : t.units >= 2 ? 1 : 0),
        across(static_cast<int>((t.units + group() - 1) >> log_group)),
        count(across * static_cast<int>((t.rows + t.tile_rows - 1) / t.tile_rows)) {}

  __device__ __forceinline__ int group() const { return 1 << log_group; }
};

// What a lane keeps while it goes down the rows of a task: its four columns.
struct Column {
  long long unit;  // of the row
  long long col;
  int count;       // columns that exist
  unsigned group;  // of columns of the global tensor, for random numbers
  unsigned old_maxima[EACH];  // of v, stored

  __device__ __forceinline__ Column(const Launch& launch, const Tensor& t, const Tiles& tiles,
                                    int task) {
    unit = task % tiles.across * tiles.group() + warp_index() % tiles.group();
    col = unit * BLOCK + EACH * lane_index();
    group = static_cast<unsigned>((t.first_col + col) / Stream::GROUP);
    const long long rest = t.cols - col;
    count = rest >= EACH ? EACH : rest > 0 ? static_cast<int>(rest) : 0;
    const unsigned* stored = pointer<const unsigned>(launch, t, t.state[1].buffer + t.axes);
    for (int i = 0; i < EACH; ++i) {
      old_maxima[i] = i < count ? stored[col + i] : 0;
    }
  }
};

// The first word of the column maxima among the statistics.
__device__ __forceinline__ int* column_words(const Launch& launch, const Tensor& t) {
  long long word = t.state[1].word + t.offset[t.axes - 1];
  for (int axis = 0; axis + 1 < t.axes; ++axis) {
    word += t.global_shape[axis];
  }
  return launch.statistics + word;
}

// Calls `body` with every axis before the last, the row's index along it, and the first statistic of
// the axis.
template <typename Body>
__device__ __forceinline__ void each_lead(const Tensor& t, long long row, Body body) {
  long long word = t.state[1].word;
  for (int axis = 0; axis < t.lead; ++axis) {
    word += t.global_shape[axis];
  }
  for (int axis = t.lead - 1; axis >= 0; --axis) {
    const long long index = axis == 0 ? row : row % t.shape[axis];
    row = axis == 0 ? 0 : row / t.shape[axis];
    word -= t.global_shape[axis];
    body(axis, index, word + index + t.offset[axis]);
  }
}

__device__ __forceinline__ unsigned stored_row_maximum(const Launch& launch, const Tensor& t,
                                                       long long row) {
  unsigned least = 0xffffffff;
  each_lead(t, row, [&](int axis, long long index, long long) {
    const unsigned value = pointer<const unsigned>(launch, t, t.state[1].buffer + 1 + axis)[index];
    least = value < least ? value : least;
  });
  return least;
}

// The smallest of the new maxima.
__device__ __forceinline__ unsigned collected_row_maximum(const Launch& launch, const Tensor& t,
                                                          long long row) {
  unsigned least = 0xffffffff;
  each_lead(t, row, [&](int, long long, long long word) {
    const unsigned value =
        canonical_magnitude(static_cast<unsigned>(__ldcg(launch.statistics + word)));
    least = value < least ? value : least;
  });
  return least;
}

// Old values of v.
__device__ __forceinline__ void decode_v(const Column& column, unsigned codes, unsigned row_maximum,
                                         float level, float (&v)[EACH]) {
  decode_nibbles(codes, level, v);
  for (int i = 0; i < EACH; ++i) {
    const unsigned scale = column.old_maxima[i] < row_maximum ? column.old_maxima[i] : row_maximum;
    v[i] = __fmul_rn(v[i], __uint_as_float(scale));
  }
}

// Raises a maximum, unless it is as large already.
__device__ __forceinline__ void raise(int* slot, unsigned bits) {
  const int value = static_cast<int>(canonical_magnitude(bits));
  if (value > __ldcg(slot)) {
    atomicMax(slot, value);
  }
}

// The rows of a task that a warp does: every `step`th from `begin` on.
struct Rows {
  long long first;  // of the task
  int begin, end, step;

  __device__ __forceinline__ Rows(const Tensor& t, const Tiles& tiles, int task)
      : first(static_cast<long long>(task / tiles.across) * t.tile_rows),
        begin(warp_index() >> tiles.log_group),
        end(t.rows - first < t.tile_rows ? static_cast<int>(t.rows - first) : t.tile_rows),
        step(WARPS >> tiles.log_group) {}

  // Where the 32 rows from `some` on end.
  __device__ __forceinline__ int end_of(int some) const {
    return some + LANES < end ? some + LANES : end;
  }
};

// Whether the lane's block is a full one, and each row of it as aligned as the first: codes are copied
// four bytes, eight columns, at a time.
__device__ __forceinline__ bool is_wide(const Tensor& t, const Column& column) {
  return t.cols % 8 == 0 && t.cols - column.unit * BLOCK >= BLOCK;
}

// Rows on their way to shared memory while one is computed: six, as far as a thread block has room, are more
// bytes than device memory delivers within its latency.
template <typename Row>
inline constexpr int AHEAD =
    items_ahead((SHARED_MEMORY - static_cast<int>(sizeof(Shared))) / WARPS, Row::STAGE, 6);
template <typename Row>
using RowsAhead = Ring<AHEAD<Row>, Row::STAGE>;

// Where a lane's gradients and codes of v are in a row.
template <typename G>
struct Collecting {
  const typename G::Storage* grad;
  const unsigned char* v_codes;
  unsigned cols;

  struct Fetched {
    Packed<G> grad;
    unsigned v_codes;
  };

  __device__ __forceinline__ Fetched fetch(int count) const {
    return {lowbit::fetch<G, false>(grad, 0, count), load_nibbles<false>(v_codes, count)};
  }

  // The same of a warp's block in shared memory: codes, gradients.
  static constexpr int G_BYTES = EACH * sizeof(typename G::Storage);
  static constexpr int STAGE = NIBBLES + LANES * G_BYTES;

  __device__ __forceinline__ void copy(SharedAddress to) const {
    copy_nibbles(to, v_codes);
    copy_async<G_BYTES>(to + NIBBLES + G_BYTES * lane_index(), grad);
  }

  __device__ static __forceinline__ Fetched fetch(SharedAddress from) {
    Fetched fetched{};
    fetched.v_codes = own_nibbles(from);
    load_shared(from + NIBBLES + G_BYTES * lane_index(), fetched.grad);
    return fetched;
  }

  __device__ __forceinline__ Collecting(const Launch& launch, const Tensor& t)
      : grad(pointer<const typename G::Storage>(launch, t, GRAD)),
        v_codes(pointer<const unsigned char>(launch, t, t.state[1].buffer)),
        cols(static_cast<unsigned>(t.cols)) {}

  __device__ __forceinline__ void advance(long long elements, long long bytes) {
    grad += elements;
    v_codes += bytes;
  }

  __device__ __forceinline__ Collecting down(unsigned rows) const {
    Collecting there = *this;
    there.advance(multiply_wide(rows, cols), multiply_wide(rows, (cols + 1) / 2));
    return there;
  }
};

template <typename G, typename V, bool Wide>
__device__ __forceinline__ void collect_rows(const Launch& launch, const Shared& shared,
                                             const V& v_table, const Column& column,
                                             const Rows& rows, const Collecting<G>& at,
                                             RowsAhead<Collecting<G>>& ring) {
  const Tensor& t = shared.tensor;
  const Scalars s = shared.scalars;
  float maxima[EACH] = {};
  unsigned largest_square = 0;  // of gradients, as bits: NaN is above infinity
  int row = rows.begin;
  // What is ahead of the last row is that once more, and not used.
  const auto start = [&](SharedAddress to, int ahead) {
    if constexpr (Wide) {
      const int there = row + ahead * rows.step;
      at.down(there < rows.end ? there : rows.end - 1).copy(to);
    }
  };
  Pipeline stages(ring, start);
#pragma unroll 1
  for (int some = 0; some < rows.end; some += LANES) {
    const int end = rows.end_of(some), of_lane = some + lane_index();
    const unsigned old_rows =
        of_lane < end ? stored_row_maximum(launch, t, rows.first + of_lane) : 0;
    unsigned new_row = 0;
#pragma unroll 1
    for (; row < end; row += rows.step) {
      typename Collecting<G>::Fetched fetched;
      if constexpr (Wide) {
        fetched = at.fetch(stages.next(start));
      } else {
        fetched = at.down(row).fetch(column.count);
      }
      float g[EACH], v[EACH];
      unpack<G>(fetched.grad, g);
      decode_v(column, fetched.v_codes, of_row(old_rows, row), v_table.level, v);
      float largest = 0.0f;
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        g[i] = scale_gradient(g[i], s);  // R1
        if (Wide || i < column.count) {
          const unsigned square = __float_as_uint(__fmul_rn(g[i], g[i]));
          largest_square = square > largest_square ? square : largest_square;
          const float size = fabsf(second_moment(g[i], v[i], s));
          maxima[i] = max_nan(maxima[i], size);
          largest = max_nan(largest, size);
        }
      }
      const unsigned row_maximum = warp_max(__float_as_uint(largest));
      new_row = of_lane == row ? row_maximum : new_row;
    }
    if (of_lane < end) {
      each_lead(t, rows.first + of_lane, [&](int, long long, long long word) {
        raise(launch.statistics + word, new_row);
      });
    }
  }
  stages.end();
  int* words = column_words(launch, t) + column.col;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    if (i < column.count) {
      raise(words + i, __float_as_uint(maxima[i]));
    }
  }
  if (__any_sync(ALL_LANES, largest_square >= INF_BITS) != 0 && lane_index() == 0) {
    atomicMax(launch.statistics + t.index, 1);
  }
}

template <typename G, typename V>
__device__ __forceinline__ void collect_tile(const Launch& launch, const Shared& shared,
                                             const V& v_table, const Tiles& tiles, int task,
                                             RowsAhead<Collecting<G>>& ring) {
  const Tensor& t = shared.tensor;
  const Column column(launch, t, tiles, task);
  const Rows rows(t, tiles, task);
  if (column.unit >= t.units || rows.begin >= rows.end) {
    return;
  }
  Collecting<G> at(launch, t);
  const bool wide = is_wide(t, column) && is_aligned(at.grad, EACH * sizeof(*at.grad)) &&
                    is_aligned(at.v_codes, 4);
  at.advance(rows.first * t.cols + column.col, rows.first * ((t.cols + 1) / 2) + column.col / 2);
  if (wide) {
    collect_rows<G, V, true>(launch, shared, v_table, column, rows, at, ring);
  } else {
    collect_rows<G, V, false>(launch, shared, v_table, column, rows, at, ring);
  }
}

// Where a lane's elements are in a row.
template <typename P, typename G>
struct Applying {
  Memory<P, G> memory;
  unsigned char* m_codes;
  unsigned char* v_codes;
  float* m_scale;
  const unsigned char* codes;  // that an even lane copies of m, an odd one of v: those of both
  unsigned cols, units;

  struct Fetched {
    typename Memory<P, G>::Fetched numbers;
    unsigned m_codes, v_codes;
    float m_scale;
  };

  __device__ __forceinline__ Applying(const Launch& launch, const Tensor& t)
      : memory(launch, t),
        m_codes(pointer<unsigned char>(launch, t, t.state[0].buffer)),
        v_codes(pointer<unsigned char>(launch, t, t.state[1].buffer)),
        m_scale(pointer<float>(launch, t, t.state[0].buffer + 1)),
        codes(lane_index() % 2 == 0 ? m_codes : v_codes - 2),
        cols(static_cast<unsigned>(t.cols)),
        units(static_cast<unsigned>(t.units)) {}

  __device__ __forceinline__ Fetched fetch(int count) const {
    return {memory.template fetch<false>(0, count), load_nibbles<false>(m_codes, count),
            load_nibbles<false>(v_codes, count), *m_scale};
  }

  // The same of a warp's block in shared memory.
  static constexpr int M_CODES = Memory<P, G>::STAGE;
  static constexpr int V_CODES = M_CODES + NIBBLES;
  static constexpr int SCALE = V_CODES + NIBBLES;
  static constexpr int STAGE = SCALE + 16;

  __device__ __forceinline__ void copy(SharedAddress to) const {
    memory.copy(to, 0);
    copy_async<4>(to + 2 * lane_index() + (lane_index() % 2 == 0 ? M_CODES : V_CODES - 2), codes);
    if (lane_index() == 0) {
      copy_async<4>(to + SCALE, m_scale);
    }
  }

  __device__ static __forceinline__ Fetched fetch(SharedAddress from) {
    Fetched fetched{Memory<P, G>::fetch(from), own_nibbles(from + M_CODES),
                    own_nibbles(from + V_CODES), 0.0f};
    load_shared(from + SCALE, fetched.m_scale);
    return fetched;
  }

  __device__ __forceinline__ void advance(long long elements, long long bytes, long long units) {
    memory.advance(elements);
    m_codes += bytes;
    v_codes += bytes;
    codes += bytes;
    m_scale += units;
  }

  __device__ __forceinline__ Applying down(unsigned rows) const {
    Applying there = *this;
    there.advance(multiply_wide(rows, cols), multiply_wide(rows, (cols + 1) / 2),
                  multiply_wide(rows, units));
    return there;
  }
};

// draws: gives those of the row for a purpose, to all lanes together.
template <typename P, typename G, typename Tables, bool Wide, typename Draws>
__device__ __forceinline__ void apply_row(Draws draws, const Scalars& s,
                                          const typename Tables::M& m_table,
                                          const typename Tables::V& v_table,
                                          const Codebook& m_book, const Codebook& v_book,
                                          const Column& column,
                                          const unsigned (&new_columns)[EACH],
                                          const Applying<P, G>& at,
                                          const typename Applying<P, G>::Fetched& fetched,
                                          unsigned old_row, unsigned new_row, bool in_range) {
  Quad x;
  at.memory.decode(fetched.numbers, x.p, x.g);
  decode_nibbles(fetched.m_codes, m_table.scaled_levels(fetched.m_scale), x.m);
  decode_v(column, fetched.v_codes, old_row, v_table.level, x.v);
  for (int i = 0; i < EACH; ++i) {
    x.g[i] = scale_gradient(x.g[i], s);  // R1
  }
  const bool usual = step_moments(x, s);
  Largest largest{0.0f, 0.0f};
  raise_largest<Wide>(largest, x, column.count);
  const float m_new = block_scale(warp_max(__float_as_uint(largest.m)));
  const unsigned m_new_codes =
      m_table.encode(x.m, m_new, m_book, [&] { return draws(STATE_DRAW); });
  unsigned scales[EACH];
  for (int i = 0; i < EACH; ++i) {
    scales[i] = new_columns[i] < new_row ? new_columns[i] : new_row;
  }
  // No scale is above the row's, nor a value, which the maxima are over, above its scale.
  static_assert(LEAST_V == 0x1p-100f, "what the values of usual scales are");
  const unsigned v_new_codes =
      v_table.encode(x.v, scales, usual && __uint_as_float(new_row) <= 0x1p100f, v_book);
  const bool fast =
      usual && in_range && largest.m <= LARGEST_MOMENT && largest.v <= LARGEST_MOMENT;
  step_updates<false>(x, fast, s);
  store_nibbles<Wide>(at.m_codes, column.count, m_new_codes);
  store_nibbles<Wide>(at.v_codes, column.count, v_new_codes);
  if (lane_index() == 0) {
    *at.m_scale = m_new;
  }
  if (!at.memory.updates) {
    for (int i = 0; i < EACH; ++i) {
      x.g[i] = __fadd_rn(x.p[i], x.g[i]);  // R8
    }
  }
  const uint2 of_weights = P::FORM == STOCHASTIC_WEIGHTS ? draws(WEIGHT_DRAW) : make_uint2(0, 0);
  at.memory.template store_params<Wide>(0, column.count, x.g, of_weights);
}

template <typename P, typename G, typename Tables, bool Wide>
__device__ __forceinline__ void apply_rows(const Walker& walker, const typename Tables::M& m_table,
                                           const typename Tables::V& v_table, const Column& column,
                                           const Rows& rows, const Applying<P, G>& at,
                                           RowsAhead<Applying<P, G>>& ring) {
  const Launch& launch = walker.launch;
  const Tensor& t = walker.shared.tensor;
  const Scalars& s = walker.shared.scalars;
  const bool in_range = scalars_in_range(s);
  const Codebook& m_book = *in_table<Codebook>(launch, t.state[0].codebook);
  const Codebook& v_book = *in_table<Codebook>(launch, t.state[1].codebook);
  unsigned new_columns[EACH];
  const int* words = column_words(launch, t) + column.col;
  for (int i = 0; i < EACH; ++i) {
    new_columns[i] =
        i < column.count ? canonical_magnitude(static_cast<unsigned>(__ldcg(words + i))) : 0;
  }
  // Where random numbers are drawn, rows here are consecutive ones of the global tensor (`Kernel::of`).
  const Stream stream = walker.stream();
  const unsigned first_row = t.first_row + static_cast<unsigned>(rows.first);
  DrawsAhead ahead[2];  // of weights and of m
  int row = rows.begin;
  const auto draws = [&](unsigned purpose) {
    return ahead[purpose].draw(stream, purpose, [&](unsigned (&there)[2], unsigned (&groups)[2]) {
      there[0] = first_row + row, there[1] = first_row + row + rows.step;
      groups[0] = groups[1] = column.group;
    });
  };
  // What is ahead of the last row is that once more, and not used.
  const auto start = [&](SharedAddress to, int ahead) {
    if constexpr (Wide) {
      const int there = row + ahead * rows.step;
      at.down(there < rows.end ? there : rows.end - 1).copy(to);
    }
  };
  Applying<P, G> here = at.down(row);
  const unsigned elements = rows.step * at.cols, bytes = rows.step * ((at.cols + 1) / 2);
  const unsigned units = rows.step * at.units;
  Pipeline stages(ring, start);
#pragma unroll 1
  for (int some = 0; some < rows.end; some += LANES) {
    const int end = rows.end_of(some), of_lane = some + lane_index();
    unsigned old_rows = 0, new_rows = 0;
    if (of_lane < end) {
      old_rows = stored_row_maximum(launch, t, rows.first + of_lane);
      new_rows = collected_row_maximum(launch, t, rows.first + of_lane);
    }
#pragma unroll 1
    for (; row < end; row += rows.step) {
      typename Applying<P, G>::Fetched fetched;
      if constexpr (Wide) {
        fetched = at.fetch(stages.next(start));
      } else {
        fetched = here.fetch(column.count);
      }
      apply_row<P, G, Tables, Wide>(draws, s, m_table, v_table, m_book, v_book, column,
                                    new_columns, here, fetched, of_row(old_rows, row),
                                    of_row(new_rows, row), in_range);
      here.advance(elements, bytes, units);
    }
  }
  stages.end();
}

template <typename P, typename G, typename Tables>
__device__ __forceinline__ void apply_tile(const Walker& walker, const typename Tables::M& m_table,
                                           const typename Tables::V& v_table, const Tiles& tiles,
                                           int task,
                                           RowsAhead<Applying<P, G>>& ring) {
  const Launch& launch = walker.launch;
  const Tensor& t = walker.shared.tensor;
  const Column column(launch, t, tiles, task);
  const Rows rows(t, tiles, task);
  if (column.unit >= t.units || rows.begin >= rows.end) {
    return;
  }
  Applying<P, G> at(launch, t);
  const bool wide = is_wide(t, column) && at.memory.aligned() && is_aligned(at.m_codes, 4) &&
                    is_aligned(at.v_codes, 4);
  at.advance(rows.first * t.cols + column.col, rows.first * ((t.cols + 1) / 2) + column.col / 2,
             rows.first * t.units + column.unit);
  if (walker.shared.skip) {
    for (int row = rows.begin; row < rows.end; row += rows.step) {
      keep<P>(at.down(row).memory.to, at.memory.updates, 0, column.count);
    }
  } else if (wide) {
    apply_rows<P, G, Tables, true>(walker, m_table, v_table, column, rows, at, ring);
  } else {
    apply_rows<P, G, Tables, false>(walker, m_table, v_table, column, rows, at, ring);
  }
}

// The number of the thread block's next task.
__device__ __forceinline__ long long next_ticket(const Launch& launch, Shared& shared) {
  __syncthreads();  // nobody needs the last one any more
  if (threadIdx.x == 0) {
    shared.ticket = atomicAdd(launch.ticket, 1);
  }
  __syncthreads();
  return shared.ticket;
}

// Waits until all tasks that collect the statistics of the tensor at hand are done, and decides
// whether it is skipped.
__device__ __forceinline__ void await_statistics(const Launch& launch, Shared& shared, int tasks,
                                                 bool skip_all) {
  const Tensor& t = shared.tensor;
  if (threadIdx.x == 0) {
    while (__ldcg(launch.done + t.index) < tasks) {
      __nanosleep(100);
    }
    __threadfence();
    shared.skip = skip_all || (launch.flags & SKIP_GLOBAL && __ldcg(launch.statistics + t.index));
  }
  __syncthreads();
}

// Of a warp, for one kind of task at a time.
template <typename P, typename G>
union Rings {
  RowsAhead<Collecting<G>> collecting;
  RowsAhead<Applying<P, G>> applying;
};

template <typename P, typename G, typename Tables>
__device__ __forceinline__ void step_tiles(const Launch& launch) {
  __shared__ Shared shared;
  __shared__ Rings<P, G> rings[WARPS];
  Walker walker(launch, shared);
  typename Tables::M m_table;
  typename Tables::V v_table;
  bool first_task = true;
  const bool fused = (launch.flags & FUSED) != 0;
  long long task = fused ? next_ticket(launch, shared) : blockIdx.x;
#pragma unroll 1
  while (task < launch.tasks) {
    Task at = walker.enter(task);
    const Tensor& t = shared.tensor;
    if (first_task) {
      // All tensors of the launch have the same codebooks.
      m_table.fill(*in_table<Codebook>(launch, t.state[0].codebook));
      v_table.fill(*in_table<Codebook>(launch, t.state[1].codebook));
      first_task = false;
    }
    const Tiles tiles(t);
    const int index = static_cast<int>(at.index);
    if (at.kind == COLLECT) {
      if (index < tiles.count) {
        collect_tile<G>(launch, shared, v_table, tiles, index, rings[warp_index()].collecting);
      }
      if (fused) {
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
          atomicAdd(launch.done + t.index, 1);
        }
      }
    } else {
      if (fused) {
        await_statistics(launch, shared, tiles.count, walker.skip_all);
      }
      walker.count_skipped(at);
      if (index < tiles.count) {
        apply_tile<P, G, Tables>(walker, m_table, v_table, tiles,
                                 fused ? tiles.count - 1 - index : index,
                                 rings[warp_index()].applying);
      }
    }
    task = fused ? next_ticket(launch, shared) : task + gridDim.x;
  }
}

}  // namespace lowbit
