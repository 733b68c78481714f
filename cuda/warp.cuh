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

// The sum of all lanes' values, in every lane.
__device__ __forceinline__ unsigned warp_add(unsigned value) {
  return __reduce_add_sync(ALL_LANES, value);
}

// The value of another lane.
__device__ __forceinline__ long long value_of_lane(long long x, int lane) {
  const unsigned long long bits = static_cast<unsigned long long>(x);
  const unsigned low = __shfl_sync(ALL_LANES, static_cast<unsigned>(bits), lane);
  const unsigned high = __shfl_sync(ALL_LANES, static_cast<unsigned>(bits >> 32), lane);
  return static_cast<long long>(static_cast<unsigned long long>(high) << 32 | low);
}

// The sum of all lanes' values: every lane's and that of the lane 16 behind it, then 8, 4, 2, 1.
__device__ inline double warp_sum(double x) {
  for (int half = LANES / 2; half != 0; half /= 2) {
    const long long other = value_of_lane(__double_as_longlong(x), lane_index() ^ half);
    x = __dadd_rn(x, __longlong_as_double(other));
  }
  return x;
}

__device__ inline long long warp_sum(long long x) {
  for (int half = LANES / 2; half != 0; half /= 2) {
    x += value_of_lane(x, lane_index() ^ half);
  }
  return x;
}

}  // namespace lowbit
