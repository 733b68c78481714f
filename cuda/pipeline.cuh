// What a warp will work on comes to shared memory while it works: more bytes are under way than registers
// could take.

#pragma once

#include "ptx.cuh"
#include "warp.cuh"

namespace lowbit {

constexpr int SHARED_MEMORY = 48 << 10;  // of a thread block

// Items on their way, at most `most`, if a warp has `room` bytes for them and the one at hand.
__device__ constexpr int items_ahead(int room, int stage, int most) {
  return room / stage > most ? most : room / stage - 1;
}

// Of AHEAD items on their way and the one at hand, STAGE bytes each, for a warp.
template <int AHEAD, int STAGE>
struct Ring {
  static_assert(AHEAD >= 0, "a thread block has no room for the items at hand");
  static_assert(STAGE % 16 == 0, "the widest copies are of 16 bytes");
  uint4 words[(AHEAD + 1) * STAGE / 16];
};

// The stages of items one after the other, each filled by a call of `start`, which starts copies
// (`copy_async`) for the item that is `ahead` behind the one at hand. All lanes of a warp call these
// functions together.
template <int AHEAD, int STAGE>
struct Pipeline {
  SharedAddress first;
  SharedAddress at_hand;  // when it has come
  SharedAddress before;   // to be filled again

  template <typename Start>
  __device__ __forceinline__ Pipeline(Ring<AHEAD, STAGE>& ring, Start start)
      : first(shared_address(&ring)), at_hand(first), before(first + AHEAD * STAGE) {
#pragma unroll
    for (int item = 0; item < AHEAD; ++item) {
      start(first + item * STAGE, item);
      commit_copies();
    }
  }

  // The next item's stage.
  template <typename Start>
  __device__ __forceinline__ SharedAddress next(Start start) {
    await_copies<AHEAD - 1>();
    __syncwarp();  // all lanes' copies have come, and nobody reads the last item's stage any more
    start(before, AHEAD);
    commit_copies();
    before = at_hand;
    at_hand = before == first + AHEAD * STAGE ? first : before + STAGE;
    return before;
  }

  // The ring may be used again.
  __device__ __forceinline__ void end() const {
    await_copies<0>();
    __syncwarp();
  }
};

// Calls `use` with the stages of `count` items, in their order; nothing is started for others.
template <int AHEAD, int STAGE, typename Start, typename Use>
__device__ __forceinline__ void pipeline(Ring<AHEAD, STAGE>& ring, int count, Start start, Use use) {
  int left = count;
  const auto start_more = [&](SharedAddress to, int ahead) {
    if (ahead < left) {
      start(to, ahead);
    }
  };
  Pipeline<AHEAD, STAGE> stages(ring, start_more);
#pragma unroll 1
  for (; left > 0; --left) {
    use(stages.next(start_more));
  }
  stages.end();
}

}  // namespace lowbit
