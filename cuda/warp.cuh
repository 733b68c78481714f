// A warp, and what its lanes do together.

#pragma once

namespace lowbit {

constexpr int LANES = 32;
constexpr unsigned ALL_LANES = 0xffffffff;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x % LANES); }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x / LANES); }

// The largest value of any lane, in every lane.
__device__ __forceinline__ unsigned warp_max(unsigned value) {
  return __reduce_max_sync(ALL_LANES, value);
}

}  // namespace lowbit
