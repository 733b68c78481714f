// Tasks that are tiles of a tensor: a warp goes down up to 32 rows of 128 columns, and where the tensor has
// accesses of four elements (`is_wide`) keeps what a column's elements have in common in registers.
//
// The 8 warps of a thread block are below each other, 256 rows of 128 columns, or for tensors of fewer rows
// side by side as well: 128 rows of 256 columns, 64 of 512, 32 of 1024.

#pragma once

#include "pipeline.cuh"
#include "wide.cuh"

namespace lowbit {

// Rows of a warp; lane r has what belongs to row r.
constexpr int WARP_ROWS = LANES;

// The tiles of a tensor (`Kernel::tasks` in table.rs).
struct Tiling {
  int down;    // warps below each other
  int beside;  // and side by side
  long long across;  // tiles side by side
  long long count;

  __device__ __forceinline__ explicit Tiling(const Tensor& t) {
    const long long parts = (t.rows + WARP_ROWS - 1) / WARP_ROWS;
    down = parts >= 8 ? 8 : parts >= 4 ? 4 : parts >= 2 ? 2 : 1;
    beside = WARPS / down;
    const int width = beside * CHUNK;
    across = (t.cols + width - 1) / width;
    count = across * ((parts + down - 1) / down);
  }
};

// Rows of a warp on their way to shared memory while one is at hand.
constexpr int ROWS_AHEAD = 3;
using RowRing = Ring<ROWS_AHEAD, CHUNK * sizeof(float)>;

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
    row = (below * tiling.down + warp_index() / tiling.beside) * WARP_ROWS;
    col = ((task - below * tiling.across) * tiling.beside + warp_index() % tiling.beside) * CHUNK;
    const long long columns = t.cols - col, left = t.rows - row;
    cols = columns >= CHUNK ? CHUNK : columns > 0 ? static_cast<int>(columns) : 0;
    rows = cols == 0 || left <= 0 ? 0 : left >= WARP_ROWS ? WARP_ROWS : static_cast<int>(left);
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

  // Whether the lane's four columns exist, of a tensor whose rows are whole fours.
  __device__ __forceinline__ bool has_fours() const { return FOUR * lane_index() < cols; }

  // Calls `use` with every row's number and the lane's four elements of it, of the tensor's pointer
  // `which`; those that do not exist are 0. Rows are on their way to shared memory before they are used.
  // For tensors with accesses of four.
  template <typename Use>
  __device__ __forceinline__ void each_row(RowRing& ring, int which, int dtype, Use use) const {
    const Tensor& t = shared.tensor;
    const int size = value_bytes(dtype), own = FOUR * size * lane_index();
    const long long step = t.cols * size;
    const unsigned char* ahead =
        pointer<const unsigned char>(launch, t, which) + row * step + col * size + own;
    const bool here = has_fours();
    int i = 0;
    pipeline(
        ring, rows,
        [&](SharedAddress to, int) {
          if (here && size == 4) {
            copy_async<16>(to + own, ahead);
          } else if (here) {
            copy_async<8>(to + own, ahead);
          }
          ahead += step;
        },
        [&](SharedAddress from) {
          float x[FOUR] = {};
          if (here) {
            load_shared_values(from + own, dtype, x);
          }
          use(i, x);
          ++i;
        });
  }

 private:
  __device__ static __forceinline__ void load_shared_values(SharedAddress from, int dtype,
                                                            float (&x)[FOUR]) {
    if (dtype == DTYPE_F32) {
      uint4 words;
      load_shared(from, words);
      unpack<F32>(words, x);
      return;
    }
    uint2 words;
    load_shared(from, words);
    if (dtype == DTYPE_BF16) {
      unpack<Bf16>(words, x);
    } else {
      unpack<F16>(words, x);
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
