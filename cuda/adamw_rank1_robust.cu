// AdamW with m in 4 bits and blocks of 128 (nf4, rounded at random) and v in 4 bits under rank-1
// normalization (power2; preset `adamw4-robust`). Formula, bytes, launch: adamw_rank1.cuh.
//
// Rounding steps: as there; a code of m is one of the two neighbours, by a draw, and that of v the
// nearest.

#include "adamw_rank1.cuh"

namespace lowbit {

struct Rank1Robust {
  using M = Nf4Table;
  using V = SquareTable;
};

}  // namespace lowbit

LOWBIT_COMMON_KERNELS(adamw, robust, step_tiles, lowbit::Rank1Robust, 2)
