// What a warp will work on comes to shared memory while it works: more bytes are under way than registers
// could take.

#pragma once

#include "ptx.cuh"
#include "warp.cuh"

namespace lowbit {

// Of AHEAD items on their way and the one at hand, STAGE bytes each, for a warp.
template <int AHEAD, int STAGE>
struct Ring {
  static_assert(STAGE % 16 == 0, "the widest copies are of 16 bytes");
  uint4 words[(AHEAD + 1) * STAGE / 16];
};

// Calls `use` with the stages of `count` items, in their order, each filled by a call of `start`, which
// starts copies (`copy_async`) for the item that is `ahead` behind the one at hand. All lanes of a warp
// call it together.
template <int AHEAD, int STAGE, typename Start, typename Use>
__device__ __forceinline__ void pipeline(Ring<AHEAD, STAGE>& ring, int count, Start start, Use use) {
  const SharedAddress first = shared_address(&ring), last = first + AHEAD * STAGE;
#pragma unroll
  for (int item = 0; item < AHEAD; ++item) {
    if (item < count) {
      start(first + item * STAGE, item);
    }
    commit_copies();
  }
  SharedAddress at_hand = first;
#pragma unroll 1
  for (int left = count; left > 0; --left) {
    await_copies<AHEAD - 1>();
    __syncwarp();  // all lanes' copies have come, and nobody reads the last item's stage any more
    if (left > AHEAD) {
      start(at_hand == first ? last : at_hand - STAGE, AHEAD);
    }
    commit_copies();
    use(at_hand);
    at_hand = at_hand == last ? first : at_hand + STAGE;
  }
  __syncwarp();  // the ring may be used again
}

}  // namespace lowbit
