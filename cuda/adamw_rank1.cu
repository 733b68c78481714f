// AdamW with m in 4 bits and blocks of 128 (de) and v in 4 bits under rank-1 normalization (linear;
// preset `adamw4`, the paper's 4-bit AdamW). Formula, bytes, launch: adamw_rank1.cuh.
//
// Rounding steps: as there; both codes are the nearest.

#include "adamw_rank1.cuh"

namespace lowbit {

struct Rank1 {
  using M = SignedTable;
  using V = LinearTable;
};

}  // namespace lowbit

LOWBIT_COMMON_KERNELS(adamw, rank1, step_tiles, lowbit::Rank1, 2)
