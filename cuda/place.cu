// Shards that a step moves: the tensors of a launch at other places in the global tensors than the plan's
// table says. They are written to the scratch, and the launch behind this one finds them there.
//
// Words of this launch: the address of the first tensor to write, then for each its `first_col`, its
// `first_row` and its `offset`.
//
// Bytes moved: twice those of a `Tensor`, for each. Launch: 256 threads, one thread block a tensor.

#include "tasks.cuh"

namespace lowbit {

constexpr int PLACE_WORDS = 2 + MAX_AXES;  // of a tensor (launch.rs)

}  // namespace lowbit

extern "C" __global__ void __launch_bounds__(lowbit::THREADS)
    lowbit_k_place(const lowbit::Launch __grid_constant__ launch) {
  using namespace lowbit;
  constexpr int WORDS = static_cast<int>(sizeof(Tensor) / sizeof(unsigned long long));
  const int which = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const Tensor* from = in_table<Tensor>(launch, launch.tensors) + which;
  Tensor* to = reinterpret_cast<Tensor*>(launch.words[0]) + which;
  for (int i = thread; i < WORDS; i += THREADS) {
    reinterpret_cast<unsigned long long*>(to)[i] =
        reinterpret_cast<const unsigned long long*>(from)[i];
  }
  __syncthreads();
  const unsigned long long* place = launch.words + 1 + which * PLACE_WORDS;
  if (thread == 0) {
    to->first_col = static_cast<long long>(place[0]);
  } else if (thread == 1) {
    to->first_row = static_cast<unsigned>(place[1]);
  } else if (thread < PLACE_WORDS) {
    to->offset[thread - 2] = static_cast<long long>(place[thread]);
  }
}
