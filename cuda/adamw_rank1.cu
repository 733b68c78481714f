// AdamW with m in 4 bits and blocks of 128 (de) and v in 4 bits under rank-1 normalization (linear;
// preset `adamw4`, the paper's 4-bit AdamW): the scale of an element of v is the smallest of the
// maxima of its slices, one along every axis.
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
// A task is 32 rows of up to 8 blocks of 128 columns; each warp keeps its columns' maxima in
// registers while it goes down the rows.
//
// Rounding steps: as in adamw_block4.cu; the codes of v here.

#include "adamw.cuh"
#include "nibbles.cuh"

namespace lowbit {

// Rows of a task (`table.rs`).
constexpr int TILE_ROWS = 32;

// The tasks of a tensor: columns are shared out in groups of blocks, as many as there are warps or,
// if a row has fewer, the power of two below.
struct Tiles {
  int group;
  long long across;
  long long count;

  __device__ __forceinline__ explicit Tiles(const Tensor& t)
      : group(t.units >= 8 ? 8 : t.units >= 4 ? 4 : t.units >= 2 ? 2 : 1),
        across((t.units + group - 1) / group),
        count(across * ((t.rows + TILE_ROWS - 1) / TILE_ROWS)) {}
};

// What a lane keeps while it goes down the rows of a task: its four columns.
struct Column {
  long long unit;  // of the row
  long long col;
  int count;       // columns that exist
  unsigned old_maxima[EACH];  // of v, stored

  __device__ __forceinline__ Column(const Launch& launch, const Tensor& t, const Tiles& tiles,
                                    long long task) {
    unit = task % tiles.across * tiles.group + warp_index() % tiles.group;
    col = unit * BLOCK + EACH * lane_index();
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

// Old values of v.
__device__ __forceinline__ void decode_v(const Column& column, unsigned codes, unsigned row_maximum,
                                         float level, float (&v)[EACH]) {
  decode_nibbles(codes, level, v);
  for (int i = 0; i < EACH; ++i) {
    const unsigned scale = column.old_maxima[i] < row_maximum ? column.old_maxima[i] : row_maximum;
    v[i] = __fmul_rn(v[i], __uint_as_float(scale));
  }
}

// Codes of new values of v, each under its own scale; as `LinearTable::encode`, without the shuffles.
__device__ __forceinline__ unsigned encode_v(const float (&v)[EACH], const unsigned (&scales)[EACH],
                                             const Codebook& book) {
  unsigned codes = 0u - 0x1111u;
  bool usual = true;
  for (int i = 0; i < EACH; ++i) {
    const float scale = __uint_as_float(scales[i]);
    usual = usual & is_usual_scale(scale) & (v[i] >= 0.0f);
    const float over_scale = __fmul_rn(approximate_reciprocal(scale), 16.0f);
    const unsigned found = __float_as_uint(__fmaf_rz(v[i], over_scale, 8388608.0f));
    // The code of everything below the first midpoint is 0.
    const unsigned t = found > 0x4b000001 ? found : 0x4b000001;
    const float floor = __fadd_rn(__uint_as_float(t), -8388608.0f);
    const float tested = __fmul_rn(__fmaf_rn(floor, 0.0625f, 0.03125f), scale);
    codes += t << 4 * i;
    codes = add_if_greater(codes, 1u << 4 * i, v[i], tested);
  }
  if (!usual) {
    codes = 0;
#pragma unroll 1
    for (int k = 0; k < 15; ++k) {
      const float midpoint = book.midpoints[k];
      for (int i = 0; i < EACH; ++i) {
        const float tested = __fmul_rn(midpoint, __uint_as_float(scales[i]));
        codes += v[i] > tested ? 1u << 4 * i : 0;
      }
    }
  }
  return codes;
}

// Raises a maximum, unless it is as large already.
__device__ __forceinline__ void raise(int* slot, unsigned bits) {
  const int value = static_cast<int>(canonical_magnitude(bits));
  if (value > __ldcg(slot)) {
    atomicMax(slot, value);
  }
}

template <typename P, typename G>
__device__ __forceinline__ void collect_tile(const Launch& launch, const Shared& shared,
                                             const LinearTable& v_table, long long task) {
  const Tensor& t = shared.tensor;
  const Scalars& s = shared.scalars;
  const Tiles tiles(t);
  const Column column(launch, t, tiles, task);
  if (column.unit >= t.units) {
    return;
  }
  const typename G::Storage* grad = pointer<const typename G::Storage>(launch, t, GRAD);
  const unsigned char* codes = pointer<const unsigned char>(launch, t, t.state[1].buffer);
  const bool wide = t.cols % EACH == 0 && t.cols - column.unit * BLOCK >= BLOCK &&
                    is_aligned(grad, EACH * sizeof(*grad)) && is_aligned(codes, 2);
  unsigned maxima[EACH] = {};
  bool bad = false;
  const long long first = task / tiles.across * TILE_ROWS;
  const long long end = first + TILE_ROWS < t.rows ? first + TILE_ROWS : t.rows;
  const int step = WARPS / tiles.group;
#pragma unroll 1
  for (long long row = first + warp_index() / tiles.group; row < end; row += step) {
    const long long element = row * t.cols + column.col;
    const unsigned char* at = codes + row * ((t.cols + 1) / 2) + column.col / 2;
    float g[EACH], v[EACH];
    unsigned v_codes;
    if (wide) {
      load<G, true>(grad, element, EACH, g);
      v_codes = load_nibbles<true>(at, EACH);
    } else {
      load<G, false>(grad, element, column.count, g);
      v_codes = load_nibbles<false>(at, column.count);
    }
    decode_v(column, v_codes, stored_row_maximum(launch, t, row), v_table.level, v);
    unsigned row_maximum = 0;
    for (int i = 0; i < EACH; ++i) {
      g[i] = scale_gradient(g[i], s);  // R1
      const unsigned size = i < column.count ? magnitude(second_moment(g[i], v[i], s)) : 0;
      bad = bad | (i < column.count && non_finite(g[i]));
      maxima[i] = size > maxima[i] ? size : maxima[i];
      row_maximum = size > row_maximum ? size : row_maximum;
    }
    row_maximum = warp_max(row_maximum);
    if (lane_index() == 0) {
      each_lead(t, row, [&](int, long long, long long word) {
        raise(launch.statistics + word, row_maximum);
      });
    }
  }
  int* words = column_words(launch, t) + column.col;
  for (int i = 0; i < column.count; ++i) {
    raise(words + i, i == 0 ? maxima[0] : i == 1 ? maxima[1] : i == 2 ? maxima[2] : maxima[3]);
  }
  if (__any_sync(ALL_LANES, bad) != 0 && lane_index() == 0) {
    atomicMax(launch.statistics + t.index, 1);
  }
}

template <typename P, typename G, bool Wide>
__device__ __forceinline__ void apply_row(const Walker& walker, const SignedTable& m_table,
                                          const LinearTable& v_table,
                                          const Column& column, const unsigned (&new_columns)[EACH],
                                          const Memory<P, G>& memory, unsigned char* m_codes,
                                          float* m_scale, unsigned char* v_codes, long long row,
                                          bool in_range) {
  const Launch& launch = walker.launch;
  const Tensor& t = walker.shared.tensor;
  const Scalars& s = walker.shared.scalars;
  Quad x;
  memory.template load_params<Wide>(0, column.count, x.p);
  load<G, Wide>(memory.grad, 0, column.count, x.g);
  const unsigned m_code = load_nibbles<Wide>(m_codes, column.count);
  const unsigned v_code = load_nibbles<Wide>(v_codes, column.count);
  decode_nibbles(m_code, m_table.scaled_levels(*m_scale), x.m);
  decode_v(column, v_code, stored_row_maximum(launch, t, row), v_table.level, x.v);
  unsigned row_maximum = 0xffffffff;
  each_lead(t, row, [&](int, long long, long long word) {
    const unsigned value = canonical_magnitude(static_cast<unsigned>(__ldcg(launch.statistics + word)));
    row_maximum = value < row_maximum ? value : row_maximum;
  });
  for (int i = 0; i < EACH; ++i) {
    x.g[i] = scale_gradient(x.g[i], s);  // R1
  }
  const bool usual = step_moments(x, s);
  const Largest largest = largest_of<Wide>(x, column.count);
  const float m_new = block_scale(warp_max(__float_as_uint(largest.m)));
  unsigned m_new_codes = m_table.encode(x.m, m_new);
  if (!is_usual_scale(m_new)) {
    m_new_codes = count_midpoints(x.m, m_new, *in_table<Codebook>(launch, t.state[0].codebook));
  }
  unsigned scales[EACH];
  for (int i = 0; i < EACH; ++i) {
    scales[i] = new_columns[i] < row_maximum ? new_columns[i] : row_maximum;
  }
  const Codebook& book = *in_table<Codebook>(launch, t.state[1].codebook);
  const unsigned v_new_codes = encode_v(x.v, scales, book);
  const bool fast =
      usual && in_range && largest.m <= LARGEST_MOMENT && largest.v <= LARGEST_MOMENT;
  step_updates<false>(x, fast, s);
  __syncwarp();  // the old scale is read before it is written
  store_nibbles<Wide>(m_codes, column.count, m_new_codes);
  store_nibbles<Wide>(v_codes, column.count, v_new_codes);
  if (lane_index() == 0) {
    *m_scale = m_new;
  }
  if (!memory.updates) {
    for (int i = 0; i < EACH; ++i) {
      x.g[i] = __fadd_rn(x.p[i], x.g[i]);  // R8
    }
  }
  memory.template store_params<Wide>(0, column.count, x.g, [&] {
    // The tensor is no shard.
    return walker.stream().draws(WEIGHT_DRAW, row, column.col);
  });
}

template <typename P, typename G>
__device__ __forceinline__ void apply_tile(const Walker& walker, const SignedTable& m_table,
                                           const LinearTable& v_table, long long task) {
  const Launch& launch = walker.launch;
  const Shared& shared = walker.shared;
  const Tensor& t = shared.tensor;
  const Tiles tiles(t);
  const Column column(launch, t, tiles, task);
  if (column.unit >= t.units) {
    return;
  }
  const bool in_range = scalars_in_range(shared.scalars);
  unsigned new_columns[EACH];
  const int* words = column_words(launch, t) + column.col;
  for (int i = 0; i < EACH; ++i) {
    new_columns[i] =
        i < column.count ? canonical_magnitude(static_cast<unsigned>(__ldcg(words + i))) : 0;
  }
  const long long first = task / tiles.across * TILE_ROWS + warp_index() / tiles.group;
  const long long limit = (task / tiles.across + 1) * TILE_ROWS;
  const long long end = limit < t.rows ? limit : t.rows;
  const int step = WARPS / tiles.group;
  const long long row_bytes = (t.cols + 1) / 2;
  // Pointers are those of the lane, and go from row to row.
  Memory<P, G> memory(launch, t);
  unsigned char* m_codes = pointer<unsigned char>(launch, t, t.state[0].buffer);
  float* m_scales = pointer<float>(launch, t, t.state[0].buffer + 1);
  unsigned char* v_codes = pointer<unsigned char>(launch, t, t.state[1].buffer);
  const bool wide = t.cols % EACH == 0 && t.cols - column.unit * BLOCK >= BLOCK &&
                    memory.aligned() && is_aligned(m_codes, 2) && is_aligned(v_codes, 2);
  memory.advance(first * t.cols + column.col);
  m_codes += first * row_bytes + column.col / 2;
  v_codes += first * row_bytes + column.col / 2;
  m_scales += first * t.units + column.unit;
#pragma unroll 1
  for (long long row = first; row < end; row += step) {
    if (shared.skip) {
      keep<P>(memory.to, memory.updates, 0, column.count);
    } else if (wide) {
      apply_row<P, G, true>(walker, m_table, v_table, column, new_columns, memory, m_codes,
                            m_scales, v_codes, row, in_range);
    } else {
      apply_row<P, G, false>(walker, m_table, v_table, column, new_columns, memory, m_codes,
                             m_scales, v_codes, row, in_range);
    }
    memory.advance(step * t.cols);
    m_codes += step * row_bytes;
    v_codes += step * row_bytes;
    m_scales += step * t.units;
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
__device__ __forceinline__ void await_statistics(const Launch& launch, Shared& shared,
                                                 bool skip_all) {
  const Tensor& t = shared.tensor;
  if (threadIdx.x == 0) {
    const long long count = Tiles(t).count;
    while (__ldcg(launch.done + t.index) < count) {
      __nanosleep(100);
    }
    __threadfence();
    shared.skip = skip_all || (launch.flags & SKIP_GLOBAL && __ldcg(launch.statistics + t.index));
  }
  __syncthreads();
}

template <typename P, typename G, typename>
__device__ __forceinline__ void step_tiles(const Launch& launch) {
  __shared__ Shared shared;
  Walker walker(launch, shared);
  SignedTable m_table;
  LinearTable v_table;
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
    const long long tiles = Tiles(t).count;
    if (at.kind == COLLECT) {
      if (at.index < tiles) {
        collect_tile<P, G>(launch, shared, v_table, at.index);
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
        await_statistics(launch, shared, walker.skip_all);
      }
      walker.count_skipped(at);
      if (at.index < tiles) {
        apply_tile<P, G>(walker, m_table, v_table, fused ? tiles - 1 - at.index : at.index);
      }
    }
    task = fused ? next_ticket(launch, shared) : task + gridDim.x;
  }
}

}  // namespace lowbit

LOWBIT_ADAMW_KERNELS(rank1, step_tiles, void, 2)
