//! The block grid: where a tensor's codes and scales lie.
//!
//! Blocks run along rows and never cross one. A row is the last axis, merged with the axes before
//! it until it holds at least B elements or the tensor is used up; B is the largest block of the
//! tensor's states, and all of them share the rows. A row's last block may be short. A state has
//! the shape of the unmerged leading axes followed by the bytes of a row's codes or
//! `ceil(row / B)` scales, so a split of the parameter along those axes is the same slice of the
//! state.
//!
//! Scales that reach across blocks, and factors, lie in projections of the tensor onto some of its
//! axes ([`Projection`]).
//!
//! A tensor may be a shard: a box of a global tensor. Its rows and blocks are those of the global
//! tensor, so the box may cut a row only where a block ends.

use crate::error::{Result, invalid};

/// Rows, columns and blocks of one tensor, or of one shard of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Extents of the axes before the row.
    pub lead: Vec<i64>,
    /// Extents of those axes in the global tensor.
    global_lead: Vec<i64>,
    /// Elements between neighbours along each axis of the global row.
    row_strides: Vec<i64>,
    /// Number of rows: the product of `lead`.
    pub rows: i64,
    /// Elements of a row (here, not in the global tensor).
    pub cols: i64,
    /// Elements of a block.
    pub block: i64,
    /// Blocks of a row, the last one perhaps short.
    pub blocks: i64,
}

impl Grid {
    /// The grid of the box at `offset` with extents `shape` in a tensor of shape `global`.
    ///
    /// # Errors
    /// `InvalidArgument` where the box cuts a block, naming the nearest cuts that are allowed.
    pub fn new(global: &[i64], offset: &[i64], shape: &[i64], block: i64) -> Result<Self> {
        let first = Self::lead_axes(global, block);
        let cols: i64 = shape[first..].iter().product();
        let rows: i64 = shape[..first].iter().product();
        if rows * cols > 0 {
            Self::check_cut(global, offset, shape, block)?;
        }
        let row_strides = (first..global.len())
            .map(|axis| global[axis + 1..].iter().product())
            .collect();
        Ok(Self {
            lead: shape[..first].to_vec(),
            global_lead: global[..first].to_vec(),
            row_strides,
            rows,
            cols,
            block,
            blocks: div_ceil(cols, block),
        })
    }

    /// How many axes of a tensor of shape `global` come before the row.
    pub(crate) fn lead_axes(global: &[i64], block: i64) -> usize {
        let (mut first, mut row) = (global.len(), 1_i64);
        while first > 0 && (first == global.len() || row < block) {
            first -= 1;
            row *= global[first];
        }
        first
    }

    /// The axis of a row along which it may be cut, and at multiples of what: the outermost one longer
    /// than 1 (else a box were not one run of elements), between blocks. `None` for a row of one
    /// element.
    pub(crate) fn cut_axis(global: &[i64], block: i64) -> Option<(usize, i64)> {
        let first = Self::lead_axes(global, block);
        let axis = (first..global.len()).find(|&axis| global[axis] > 1)?;
        let stride: i64 = global[axis + 1..].iter().product();
        Some((axis, block / gcd(block, stride)))
    }

    /// Inside a row, cuts are allowed as [`Grid::cut_axis`] says.
    fn check_cut(global: &[i64], offset: &[i64], shape: &[i64], block: i64) -> Result<()> {
        let Some((axis, each)) = Self::cut_axis(global, block) else {
            return Ok(());
        };
        for inner in axis + 1..global.len() {
            let (extent, ends) = (global[inner], [offset[inner], offset[inner] + shape[inner]]);
            if let Some(end) = ends.into_iter().find(|end| ![0, extent].contains(end)) {
                return Err(invalid(format!(
                    "axis {inner} is cut at {end}, but it lies inside a block row that starts at \
                     axis {axis}; the nearest allowed cuts are 0 and {extent}: cut axis {axis} or \
                     the axes before it"
                )));
            }
        }
        for end in [offset[axis], offset[axis] + shape[axis]] {
            if end == global[axis] || end % each == 0 {
                continue;
            }
            let below = end / each * each;
            let above = (below + each).min(global[axis]);
            return Err(invalid(format!(
                "axis {axis} is cut at {end}, inside a block of {block} elements; the nearest \
                 allowed cuts are {below} and {above}"
            )));
        }
        Ok(())
    }

    /// Bytes of one row of codes, `per_byte` of them in a byte; the pad bits of a row are 0.
    #[must_use]
    pub fn code_bytes(&self, per_byte: i64) -> i64 {
        div_ceil(self.cols, per_byte)
    }

    /// Shape of the codes.
    #[must_use]
    pub fn code_shape(&self, per_byte: i64) -> Vec<i64> {
        self.with_row(self.code_bytes(per_byte))
    }

    /// Shape of the scales of a state with blocks of `block` elements.
    #[must_use]
    pub fn scale_shape(&self, block: i64) -> Vec<i64> {
        self.with_row(div_ceil(self.cols, block))
    }

    /// The unit of work, and of `SKIP_BLOCK`: one block of one row, counted row by row.
    #[must_use]
    pub fn units(&self) -> i64 {
        self.rows * self.blocks
    }

    /// Row, first column and length of a unit.
    #[inline]
    #[must_use]
    pub fn unit(&self, unit: i64) -> (i64, i64, i64) {
        let (row, col) = (unit / self.blocks, unit % self.blocks * self.block);
        (row, col, self.block.min(self.cols - col))
    }

    /// Row and column, in the grid of the global tensor, of an element of this grid.
    #[inline]
    pub(crate) fn global(&self, row: i64, col: i64, offset: &[i64]) -> (i64, i64) {
        let (lead, rest) = offset.split_at(self.lead.len());
        let (mut row, mut global_row, mut stride) = (row, 0, 1);
        for axis in (1..lead.len()).rev() {
            global_row += (row % self.lead[axis] + lead[axis]) * stride;
            row /= self.lead[axis];
            stride *= self.global_lead[axis];
        }
        // No division where there is one axis.
        if let Some(start) = lead.first() {
            global_row += (row + start) * stride;
        }
        (global_row, col + self.row_start(rest))
    }

    /// Row and column of the first element.
    pub(crate) fn first(&self, offset: &[i64]) -> (i64, i64) {
        let (lead, rest) = offset.split_at(self.lead.len());
        let axes = lead.iter().zip(&self.global_lead);
        let row = axes.fold(0, |row, (start, extent)| row * extent + start);
        (row, self.row_start(rest))
    }

    /// Whether the rows follow each other in the grid of the global tensor, wherever this one lies in
    /// it: of the axes before the row, those behind the first one longer than 1 are whole.
    pub(crate) fn has_consecutive_rows(&self) -> bool {
        let axes = self.lead.iter().zip(&self.global_lead);
        let mut behind = axes.skip_while(|(extent, _)| **extent == 1).skip(1);
        behind.all(|(extent, global)| extent == global)
    }

    /// First element, in the row of the global tensor, of a row of this grid; `rest` is the offset
    /// along the row's axes.
    pub(crate) fn row_start(&self, rest: &[i64]) -> i64 {
        rest.iter().zip(&self.row_strides).map(|(o, s)| o * s).sum()
    }

    fn with_row(&self, extent: i64) -> Vec<i64> {
        let mut shape = self.lead.clone();
        shape.push(extent);
        shape
    }
}

/// A tensor reduced to some of its axes: row maxima, column means, one number. Position 0 of all
/// kept axes comes first, the last kept axis runs fastest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Extents of the kept axes here.
    pub shape: Vec<i64>,
    /// The kept axes.
    axes: Vec<usize>,
    /// For every axis of the tensor: distance of neighbours in the projection, 0 where reduced.
    strides: Vec<i64>,
    /// The same in the projection of the global tensor.
    global_strides: Vec<i64>,
    /// Length of the projection of the global tensor.
    pub global_len: i64,
}

impl Projection {
    /// Keeps `axes` (increasing) of a tensor, or of a shard, of these shapes.
    #[must_use]
    pub fn new(global: &[i64], shape: &[i64], axes: &[usize]) -> Self {
        let strides = |extents: &[i64]| {
            let (mut strides, mut stride) = (vec![0; extents.len()], 1);
            for &axis in axes.iter().rev() {
                strides[axis] = stride;
                stride *= extents[axis];
            }
            (strides, stride)
        };
        let (global_strides, global_len) = strides(global);
        Self {
            shape: axes.iter().map(|&axis| shape[axis]).collect(),
            axes: axes.to_vec(),
            strides: strides(shape).0,
            global_strides,
            global_len,
        }
    }

    /// Length here.
    #[must_use]
    pub fn extent(&self) -> i64 {
        self.shape.iter().product()
    }

    /// Where the element with this index (here) is.
    #[inline(always)]
    pub(crate) fn position(&self, index: &[i64]) -> usize {
        let terms = index.iter().zip(&self.strides);
        self::index(terms.map(|(i, stride)| i * stride).sum())
    }

    /// Where it is in the projection of the global tensor.
    #[inline(always)]
    pub(crate) fn global_position(&self, index: &[i64], offset: &[i64]) -> usize {
        let terms = index.iter().zip(offset).zip(&self.global_strides);
        self::index(terms.map(|((i, start), stride)| (i + start) * stride).sum())
    }

    /// The position in the global projection of a position here.
    pub(crate) fn globalize(&self, position: i64, offset: &[i64]) -> usize {
        let (mut rest, mut global) = (position, 0);
        for (&axis, extent) in self.axes.iter().zip(&self.shape).rev() {
            global += (rest % extent + offset[axis]) * self.global_strides[axis];
            rest /= extent;
        }
        index(global)
    }

    /// The kept axes.
    pub(crate) fn axes(&self) -> &[usize] {
        &self.axes
    }

    /// Whether neighbours along the tensor's last axis have neighbouring positions (else they
    /// have the same).
    #[inline(always)]
    pub(crate) fn varies(&self) -> bool {
        self.strides.last().is_some_and(|stride| *stride != 0)
    }

    /// Whether it keeps the last axis alone.
    pub(crate) fn is_last_axis(&self) -> bool {
        self.axes == [self.strides.len().wrapping_sub(1)]
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// `ceil(count / by)` for a count that is not negative.
#[inline]
pub(crate) const fn div_ceil(count: i64, by: i64) -> i64 {
    count
        .unsigned_abs()
        .div_ceil(by.unsigned_abs())
        .cast_signed()
}

/// A count that was checked not to be negative, as an index.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a tensor in memory fits the address space"
)]
pub(crate) const fn index(count: i64) -> usize {
    count.cast_unsigned() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(shape: &[i64], block: i64) -> Grid {
        Grid::new(shape, &vec![0; shape.len()], shape, block).unwrap()
    }

    #[test]
    fn rows_are_merged_until_they_hold_a_block() {
        for (shape, lead, cols) in [
            (&[300, 64][..], &[][..], 19200),
            (&[4096, 16], &[], 65536),
            (&[512, 512, 3, 3], &[512], 4608),
            (&[300, 257], &[300], 257),
            (&[64, 3, 3, 3], &[], 1728),
            (&[2, 3, 5, 7, 11], &[2, 3], 385),
            (&[4097], &[], 4097),
            (&[], &[], 1),
            (&[1], &[], 1),
            (&[3, 128], &[3], 128),
        ] {
            let grid = whole(shape, 128);
            assert_eq!((grid.lead.as_slice(), grid.cols), (lead, cols), "{shape:?}");
            assert_eq!(grid.blocks, (cols + 127) / 128);
        }
    }

    #[test]
    fn projections_of_shards_are_parts_of_the_global_ones() {
        let (global, shape, offset) = ([4, 3, 5], [2, 3, 4], [1, 0, 1]);
        for axes in [&[][..], &[0], &[1], &[2], &[0, 2], &[0, 1, 2]] {
            let projection = Projection::new(&global, &shape, axes);
            let whole = Projection::new(&global, &global, axes);
            assert_eq!(projection.global_len, whole.extent());
            for element in 0..24 {
                let index = [element / 12, element / 4 % 3, element % 4];
                let at = projection.position(&index);
                let there: Vec<_> = index.iter().zip(offset).map(|(i, o)| i + o).collect();
                assert_eq!(
                    projection.global_position(&index, &offset),
                    whole.position(&there)
                );
                assert_eq!(
                    projection.globalize(at as i64, &offset),
                    whole.position(&there)
                );
            }
        }
    }

    #[test]
    fn rows_and_columns_of_shards_are_those_of_the_global_grid() {
        let grid = Grid::new(&[4, 3, 200], &[1, 1, 128], &[2, 2, 72], 128).unwrap();
        assert_eq!(grid.global(0, 0, &[1, 1, 128]), (4, 128));
        assert_eq!(grid.global(3, 5, &[1, 1, 128]), (8, 133));
        let merged = Grid::new(&[300, 64], &[100, 0], &[100, 64], 128).unwrap();
        assert_eq!(merged.global(0, 7, &[100, 0]), (0, 6407));
    }

    #[test]
    fn rows_of_a_box_are_consecutive_or_not() {
        for (global, offset, shape, consecutive) in [
            (&[8, 300][..], &[3, 0][..], &[5, 300][..], true),
            (&[8, 512], &[3, 128], &[5, 256], true),
            (&[4096], &[1024], &[1024], true),
            (&[], &[], &[], true),
            (&[4, 6, 300], &[1, 0, 0], &[2, 6, 300], true),
            (&[4, 6, 300], &[1, 2, 0], &[1, 3, 300], true),
            (&[4, 6, 300], &[1, 2, 0], &[2, 3, 300], false),
            (&[4, 6, 5, 300], &[1, 2, 0, 0], &[1, 3, 5, 300], true),
            (&[4, 6, 5, 300], &[1, 2, 1, 0], &[1, 3, 4, 300], false),
            (&[4, 6, 300], &[1, 0, 128], &[0, 6, 128], true),
        ] {
            let grid = Grid::new(global, offset, shape, 128).unwrap();
            assert_eq!(grid.has_consecutive_rows(), consecutive, "{shape:?}");
            let (first, col) = grid.first(offset);
            let mut rows = 0..grid.rows;
            let follow = rows.all(|row| grid.global(row, 0, offset) == (first + row, col));
            assert_eq!(follow, consecutive, "{shape:?}");
        }
    }

    #[test]
    fn empty_tensors_have_no_units() {
        for shape in [&[0][..], &[0, 300], &[300, 0], &[3, 0, 5]] {
            assert_eq!(whole(shape, 128).units(), 0, "{shape:?}");
        }
    }

    #[test]
    fn a_cut_inside_a_block_names_its_neighbours() {
        let cut = |offset, rows| Grid::new(&[300, 64], &[offset, 0], &[rows, 64], 128);
        assert!(cut(0, 100).is_ok());
        assert!(cut(100, 200).is_ok());
        let error = cut(0, 99).unwrap_err().to_string();
        assert!(
            error.contains("nearest allowed cuts are 98 and 100"),
            "{error}"
        );
        let error = Grid::new(&[8, 512], &[0, 0], &[8, 200], 128)
            .unwrap_err()
            .to_string();
        assert!(error.contains("128 and 256"), "{error}");
        assert!(Grid::new(&[8, 520], &[0, 384], &[8, 136], 128).is_ok());
        let error = Grid::new(&[64, 3, 3], &[0, 0, 1], &[64, 3, 2], 128)
            .unwrap_err()
            .to_string();
        assert!(error.contains("axis 2"), "{error}");
    }

    #[test]
    fn positions_beyond_2_to_31_do_not_wrap() {
        let grid = whole(&[70_000, 70_001], 128);
        assert_eq!(grid.units(), 70_000 * 547);
        assert_eq!(
            grid.unit(grid.units() - 1),
            (69_999, 546 * 128, 70_001 - 546 * 128)
        );
        assert_eq!(whole(&[5_000_000_000], 128).blocks, 39_062_500);
    }
}
