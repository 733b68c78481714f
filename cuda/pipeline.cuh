// What a warp will work on comes to shared memory while it works: more bytes are under way than registers
// could take.

#pragma once

#include "ptx.cuh"
#include "warp.cuh"

namespace lowbit {

// Calls `use` with the stages of `count` items, in their order, each filled by a call of `start`, which
// starts copies (`copy_async`) for the item that is `ahead` behind the one at hand. `stages` are the
// warp's own. All lanes call it together.
template <int AHEAD, typename Stage, typename Start, typename Use>
__device__ __forceinline__ void pipeline(Stage (&stages)[AHEAD + 1], int count, Start start,
                                         Use use) {
#pragma unroll
  for (int item = 0; item < AHEAD; ++item) {
    if (item < count) {
      start(stages[item], item);
    }
    commit_copies();
  }
  int stage = 0;  // of the item at hand
#pragma unroll 1
  for (int left = count; left > 0; --left) {
    await_copies<AHEAD - 1>();
    __syncwarp();  // all lanes' copies have come, and nobody reads the last item's stage any more
    if (left > AHEAD) {
      start(stages[stage == 0 ? AHEAD : stage - 1], AHEAD);
    }
    commit_copies();
    const Stage& at_hand = stages[stage];
    stage = stage == AHEAD ? 0 : stage + 1;
    use(at_hand);
  }
  __syncwarp();  // the stages may be used again
}

}  // namespace lowbit
