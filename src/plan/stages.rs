//! The passes of a step, and where their statistics lie in the scratch.

use crate::dtype::Dtype;

/// How shards combine statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Reduce {
    /// Element-wise maximum, as signed integers.
    Max = 1,
    /// Element-wise sum, as signed integers.
    Sum = 2,
}

/// The passes of a step over its tensors, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pass {
    /// Non-finite flags, and maxima of everything whose maximum is needed.
    Maxima,
    /// Exact sums, with the units that the maxima decide.
    Sums,
    /// Adafactor: the largest unclipped update.
    UpdateMaxima,
    /// Adafactor: its sum of squares.
    UpdateSums,
    /// Parameters (or updates) and states.
    Apply,
}

/// Statistics that one stage of a step collects and shards combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageInfo {
    /// i32 or i64.
    pub dtype: Dtype,
    /// How shards combine them.
    pub reduce: Reduce,
    /// Where they begin in the scratch, in bytes.
    pub offset: i64,
    /// How many, the same for all shards of a model.
    pub count: i64,
}

/// The regions of a step's scratch, in the order of the stages that fill them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scratch {
    /// i32: one non-finite flag per tensor, then maxima.
    pub(crate) maxima: usize,
    /// i64 limbs: sums.
    pub(crate) sums: usize,
    /// i32: maxima of updates.
    pub(crate) update_maxima: usize,
    /// i64 limbs: sums of updates.
    pub(crate) update_sums: usize,
    /// f32, not combined: new factors, each at a multiple of [`FACTOR_ALIGN`].
    pub(crate) fresh: usize,
}

/// Values that the kernels read at once.
pub(super) const FACTOR_ALIGN: usize = 4;

impl Scratch {
    /// First bytes of the regions, all multiples of 8, of the factors of 16, and the end.
    pub(crate) fn offsets(&self) -> [usize; 6] {
        let mut at = 0_usize;
        let regions = [
            (4 * self.maxima, 8),
            (8 * self.sums, 8),
            (4 * self.update_maxima, 8),
            (8 * self.update_sums, 8),
            (4 * self.fresh, 4 * FACTOR_ALIGN),
        ];
        let starts = regions.map(|(size, align)| {
            if size > 0 {
                at = at.next_multiple_of(align);
            }
            let start = at;
            at += size.next_multiple_of(8);
            start
        });
        [starts[0], starts[1], starts[2], starts[3], starts[4], at]
    }
}
