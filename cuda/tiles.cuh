// Tasks that are tiles of a tensor: a warp goes down up to 32 rows of 128 columns, of large tensors 64 or 128,
// and where the tensor has accesses of four elements (`is_wide`) keeps what a column's elements have in common
// in registers.
//
// The 8 warps of a thread block are below each other, 256 rows of 128 columns, or for tensors of fewer rows
// side by side as well: 128 rows of 256 columns, 64 of 512, 32 of 1024.

#pragma once

#include "pipeline.cuh"
#include "wide.cuh"

namespace lowbit {

// Rows of a warp in the shortest tiles.
constexpr int WARP_ROWS = LANES;
// With as many tiles they are twice as tall if rows fill them, with four times as many four times; sooner in the
// emulation, which has no large tensors.
#ifdef LOWBIT_SHIM
constexpr int TALL_TILES = 3;
#else
constexpr int TALL_TILES = 512;
#endif

// The tiles of a tensor (`Kernel::tasks` in table.rs).
struct Tiling {
  int down;    // warps below each other
  int beside;  // and side by side
  int height;  // rows of a warp
  long long across;  // tiles side by side
  long long count;

  __device__ __forceinline__ explicit Tiling(const Tensor& t) {
    const long long parts = (t.rows + WARP_ROWS - 1) / WARP_ROWS;
    down = parts >= 8 ? 8 : parts >= 4 ? 4 : parts >= 2 ? 2 : 1;
    beside = WARPS / down;
    const int width = beside * CHUNK;
    across = (t.cols + width - 1) / width;
    const long long tiles = across * ((parts + down - 1) / down);
    const auto fills = [&](int times) {
      return parts >= times * WARPS && tiles >= times * times / 4 * TALL_TILES;
    };
    height = WARP_ROWS * (fills(4) ? 4 : fills(2) ? 2 : 1);
    count = across * ((t.rows + down * height - 1) / (down * height));
  }
};

// Rows that a warp has at hand at once, and the shared memory that it has for them and for those on their way:
// once as many of f32, three times as many of 16 bits. Of the 16 warps that a multiprocessor has at least
// that is 32 kB or 48 kB on their way.
constexpr int ROWS = 4;
template <int ROW_BYTES>
using RingOf = Ring<4096 / (ROWS * ROW_BYTES) - 1, ROWS * ROW_BYTES>;
using RowRing = RingOf<CHUNK * sizeof(float)>;

// What a warp does of a tile.
struct Tile {
  const Launch& launch;
  const Shared& shared;
  const Tiling& tiling;
  long long row;  // its first
  int rows;       // that exist
  long long col;
  int cols;

  __device__ __forceinline__ Tile(const Launch& launch, const Shared& shared, const Tiling& tiling,
                                  long long task)
      : launch(launch), shared(shared), tiling(tiling) {
    const Tensor& t = shared.tensor;
    const long long below = quotient(task, tiling.across);
    row = (below * tiling.down + warp_index() / tiling.beside) * tiling.height;
    col = ((task - below * tiling.across) * tiling.beside + warp_index() % tiling.beside) * CHUNK;
    const long long columns = t.cols - col, left = t.rows - row;
    cols = columns >= CHUNK ? CHUNK : columns > 0 ? static_cast<int>(columns) : 0;
    rows = cols == 0 || left <= 0 ? 0 : left >= tiling.height ? tiling.height : static_cast<int>(left);
  }

  // Some of its rows.
  __device__ __forceinline__ Tile part(int first, int count) const {
    Tile tile = *this;
    tile.row += first;
    tile.rows = count;
    return tile;
  }

  // A row.
  __device__ __forceinline__ Unit unit(int i) const {
    return Unit(launch, shared, row + i, col, cols);
  }

  // Calls `body` with every row.
  template <typename Body>
  __device__ __forceinline__ void each_unit(Body body) const {
#pragma unroll 1
    for (int i = 0; i < rows; ++i) {
      body(unit(i));
    }
  }

  // ---- of tensors with accesses of four ----------------------------------------------------------

  // Whether the lane's four columns exist.
  __device__ __forceinline__ bool has_fours() const { return FOUR * lane_index() < cols; }

  // The lane's first column; if it does not exist, the first lane's, whose four it reads again.
  __device__ __forceinline__ int lane_column() const {
    return has_fours() ? FOUR * lane_index() : 0;
  }

  // Calls `use` with the number of the first of every four rows and the lane's four elements of each, of the
  // tensor's pointer `which`; elements that do not exist are 0. Rows are on their way to shared memory
  // before they are used.
  template <typename Dtype, typename Use>
  __device__ __forceinline__ void each_rows(RowRing& ring, int which, Use use) const {
    constexpr int BYTES = FOUR * sizeof(typename Dtype::Storage), ROW = LANES * BYTES;
    const long long step = shared.tensor.cols;
    const typename Dtype::Storage* ahead =
        pointer<const typename Dtype::Storage>(launch, shared.tensor, which) + row * step + col +
        lane_column();
    const int own = BYTES * lane_index();
    int left = has_fours() ? rows : 0;  // of those to start
    int i = 0;
    pipeline(
        reinterpret_cast<RingOf<ROW>&>(ring), (rows + ROWS - 1) / ROWS,
        [&](SharedAddress to, int) {
#pragma unroll
          for (int r = 0; r < ROWS; ++r) {
            copy_or_zero_async<BYTES>(to + own + r * ROW, ahead, r < left);
            ahead += step;
          }
          left -= ROWS;
        },
        [&](SharedAddress from) {
          float x[ROWS][FOUR];
#pragma unroll
          for (int r = 0; r < ROWS; ++r) {
            Packed<Dtype> packed;
            load_shared(from + own + r * ROW, packed);
            unpack<Dtype>(packed, x[r]);
          }
          use(i, x);
          i += ROWS;
        });
  }

  // The same with a dtype that is known when the kernel runs.
  template <typename Use>
  __device__ __forceinline__ void each_rows(RowRing& ring, int which, int dtype, Use use) const {
    if (dtype == DTYPE_F32) {
      each_rows<F32>(ring, which, use);
    } else if (dtype == DTYPE_BF16) {
      each_rows<Bf16>(ring, which, use);
    } else {
      each_rows<F16>(ring, which, use);
    }
  }
};

// Calls `body` with the calling warp's part of every tile of a launch; all warps of a thread block call it
// together, those that have no part with no rows.
template <ScalarsOf& scalars_of, CompleteFor& complete, typename Body>
__device__ __forceinline__ void each_tile(const Launch& launch, Shared& shared, Body body) {
  WalkerOf<scalars_of, complete> walker(launch, shared);
  for (long long task = blockIdx.x; task < launch.tasks; task += gridDim.x) {
    const Task at = walker.enter(task);
    const Tiling tiling(shared.tensor);
    if (at.index < tiling.count) {
      body(Tile(launch, shared, tiling, at.index));
    }
  }
}

}  // namespace lowbit

// A kernel that calls BODY with every tile, and with what the warps of the thread block have of shared
// memory.
#define LOWBIT_TILES(RULE, NAME, BODY)                                                     \
  extern "C" __global__ void __launch_bounds__(lowbit::THREADS, 2)                         \
      NAME(const lowbit::Launch __grid_constant__ launch) {                                \
    __shared__ lowbit::Shared shared;                                                      \
    __shared__ lowbit::RowRing rings[lowbit::WARPS];                                       \
    lowbit::each_tile<RULE::scalars, lowbit::note_width>(                                  \
        launch, shared, [&](const lowbit::Tile& tile) { BODY(tile, rings); });             \
  }
