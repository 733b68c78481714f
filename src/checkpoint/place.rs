//! Boxes: where a buffer of a shard lies in the buffer of the whole tensor.

use crate::layout::{Grid, div_ceil};
use crate::plan::{BufferInfo, Codes, Format, Plan, Scales, TensorPlan};

/// A box of an n-dimensional array.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Index of its first element along each axis.
    pub(super) offset: Vec<i64>,
    /// Its extents.
    pub(super) shape: Vec<i64>,
}

impl Place {
    pub(super) fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// What two boxes share; `None` if that is nothing.
    pub(super) fn intersection(&self, other: &Self) -> Option<Self> {
        let mut shared = Self {
            offset: Vec::with_capacity(self.offset.len()),
            shape: Vec::with_capacity(self.shape.len()),
        };
        for axis in 0..self.offset.len() {
            let start = self.offset[axis].max(other.offset[axis]);
            let end = self.end(axis).min(other.end(axis));
            if end <= start {
                return None;
            }
            shared.offset.push(start);
            shared.shape.push(end - start);
        }
        Some(shared)
    }

    /// What is left of this box without `other`, which lies in it: at most two boxes per axis.
    pub(super) fn without(&self, other: &Self) -> Vec<Self> {
        let (mut left, mut rest) = (Vec::new(), self.clone());
        for axis in 0..self.offset.len() {
            for (start, end) in [
                (rest.offset[axis], other.offset[axis]),
                (other.end(axis), rest.end(axis)),
            ] {
                if start < end {
                    let mut slab = rest.clone();
                    slab.offset[axis] = start;
                    slab.shape[axis] = end - start;
                    left.push(slab);
                }
            }
            rest.offset[axis] = other.offset[axis];
            rest.shape[axis] = other.shape[axis];
        }
        left
    }

    fn end(&self, axis: usize) -> i64 {
        self.offset[axis] + self.shape[axis]
    }

    /// The same box in bytes: with a last axis along the bytes of an element.
    pub(super) fn in_bytes(mut self, element: i64) -> Self {
        self.offset.push(0);
        self.shape.push(element);
        self
    }
}

/// Where buffer `info` of `plan` lies in the buffer that the whole tensor would have.
pub(super) fn of(plan: &Plan, info: &BufferInfo) -> Place {
    let tensor = &plan.tensors[info.tensor];
    let shape = info.shape.clone();
    if info.part == "codes" || info.part == "scales" {
        // Positions of a row count bytes of codes, or blocks.
        let codes = codes(tensor, info.state);
        let each = match (info.part.as_str(), codes.map(|codes| &codes.scales)) {
            ("scales", Some(Scales::Block(block))) => *block,
            _ => codes.map_or(1, |codes| codes.per_byte),
        };
        let (lead, rest) = tensor.offset.split_at(tensor.grid.lead.len());
        let mut offset = lead.to_vec();
        offset.push(tensor.grid.row_start(rest) / each);
        return Place { offset, shape };
    }
    let offset = match kept_axes(tensor, info) {
        Some(axes) => axes.iter().map(|&axis| tensor.offset[axis]).collect(),
        None => tensor.offset.clone(),
    };
    Place { offset, shape }
}

fn codes<'a>(tensor: &'a TensorPlan, state: &str) -> Option<&'a Codes> {
    let state = tensor.states.iter().find(|other| other.name == state)?;
    match &state.format {
        Format::Codes(codes) => Some(codes),
        _ => None,
    }
}

/// The axes that a vector of maxima or means keeps; `None` for a value per element.
fn kept_axes<'a>(tensor: &'a TensorPlan, info: &BufferInfo) -> Option<&'a [usize]> {
    let state = tensor
        .states
        .iter()
        .find(|state| state.name == info.state)?;
    let mut maxima = state.maxima().iter();
    if let Some(found) = maxima.find(|maxima| maxima.part == info.part) {
        return Some(found.projection.axes());
    }
    let Format::Factored(factors) = &state.format else {
        return None;
    };
    let mut factors = factors.iter().map(|factor| &factor.maxima);
    let found = factors.find(|maxima| maxima.part == info.part)?;
    Some(found.projection.axes())
}

/// The smallest box that holds `wanted` and that a shard may have: inside a row it begins and ends
/// where blocks do.
pub(super) fn enclosing(global: &[i64], wanted: &Place, block: i64) -> Place {
    let mut place = wanted.clone();
    let Some((cut, each)) = Grid::cut_axis(global, block) else {
        return place;
    };
    place.offset[cut + 1..].fill(0);
    place.shape[cut + 1..].copy_from_slice(&global[cut + 1..]);
    let end = div_ceil(wanted.end(cut), each) * each;
    place.offset[cut] = wanted.offset[cut] / each * each;
    place.shape[cut] = end.min(global[cut]) - place.offset[cut];
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: &[i64], shape: &[i64]) -> Place {
        Place {
            offset: offset.to_vec(),
            shape: shape.to_vec(),
        }
    }

    #[test]
    fn what_is_left_and_what_was_taken_are_the_whole() {
        let whole = place(&[1, 2, 0], &[4, 5, 3]);
        let taken = place(&[2, 4, 1], &[2, 3, 1]);
        let left = whole.without(&taken);
        let volume = |place: &Place| place.shape.iter().product::<i64>();
        assert_eq!(left.iter().map(volume).sum::<i64>() + 6, 60);
        for (i, a) in left.iter().enumerate() {
            assert_eq!(a.intersection(&taken), None);
            assert_eq!(whole.intersection(a).as_ref(), Some(a));
            for b in &left[i + 1..] {
                assert_eq!(a.intersection(b), None);
            }
        }
        assert!(whole.without(&whole).is_empty());
    }

    #[test]
    fn slices_grow_to_where_blocks_end() {
        // One merged row of 300 * 64: cuts at even rows.
        assert_eq!(
            enclosing(&[300, 64], &place(&[3, 5], &[2, 7]), 128),
            place(&[2, 0], &[4, 64])
        );
        assert_eq!(
            enclosing(&[300, 64], &place(&[299, 0], &[1, 64]), 128),
            place(&[298, 0], &[2, 64])
        );
        // Rows of 520: any row, columns in blocks.
        assert_eq!(
            enclosing(&[8, 520], &place(&[3, 130], &[1, 2]), 128),
            place(&[3, 128], &[1, 128])
        );
        assert_eq!(
            enclosing(&[8, 520], &place(&[3, 500], &[1, 20]), 128),
            place(&[3, 384], &[1, 136])
        );
        assert_eq!(enclosing(&[], &place(&[], &[]), 128), place(&[], &[]));
    }
}
