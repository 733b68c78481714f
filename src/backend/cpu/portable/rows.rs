//! The maxima of the grid's rows and columns, several rows at a time: the maxima of their columns are
//! loaded and stored once, and as many streams of memory are read.

#![expect(unsafe_code, reason = "reads the caller's raw buffers")]

use super::collect::Part;
use super::factored::Squares;
use super::maxima::{ColumnMaxima, Columns};
use super::rank1::{Period, Place, RankOne};
use super::registers::{Moment, Room};
use super::run::{Run, first_of_row, is_before_row, load_run};
use super::{AHEAD, prefetch};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Lanes, Vector};
use crate::dtype::Dtype;
use crate::layout::index;
use crate::optimizer::{Adamw, Update};
use crate::plan::{Format, Maxima, Pass};

/// Rows that are collected together.
const ROWS: usize = 4;

/// What has maxima of the grid's rows and columns, or of the axes that they are made of, computed from the
/// squares of the gradients.
///
/// # Safety
/// Runs are of at most a chunk and lie in the tensor.
pub(super) trait Slices<L: Lanes>: Copy {
    /// What the values of a run need.
    type Open: Copy;
    /// Of no run.
    const NOWHERE: Self::Open;

    /// Called for each row.
    unsafe fn enter(&mut self, call: &TensorCall<'_>, row: Run);
    unsafe fn open(&self, run: Run, room: &mut Room) -> Self::Open;
    /// The values of a register from element `at` of the run on, given the squares there, beta2 and
    /// 1 - beta2.
    unsafe fn value(
        &self,
        open: Self::Open,
        at: usize,
        w: L::Vector,
        decay: [L::Vector; 2],
    ) -> L::Vector;
    /// Of all axes.
    fn maxima(&self) -> impl Iterator<Item = &Maxima>;
}

/// The new second moment.
impl<L: Lanes> Slices<L> for RankOne<'_, L::Vector> {
    type Open = Place;
    const NOWHERE: Place = Place::NOWHERE;

    #[inline(always)]
    unsafe fn enter(&mut self, call: &TensorCall<'_>, row: Run) {
        // SAFETY: the caller's promise.
        unsafe { Moment::<L>::enter(self, call, row) };
    }

    #[inline(always)]
    unsafe fn open(&self, run: Run, room: &mut Room) -> Place {
        // SAFETY: the caller's promise.
        unsafe { Moment::<L>::open(self, run, room) }
    }

    #[inline(always)]
    unsafe fn value(
        &self,
        place: Place,
        at: usize,
        w: L::Vector,
        [beta2, one_minus_beta2]: [L::Vector; 2],
    ) -> L::Vector {
        // SAFETY: the caller's promise.
        unsafe {
            let old = Moment::<L>::decode(self, place, at);
            beta2.mul_add(old, one_minus_beta2.mul(w)) // R4
        }
    }

    #[inline(always)]
    fn maxima(&self) -> impl Iterator<Item = &Maxima> {
        self.maxima.iter()
    }
}

/// Raises the maxima of v's slices, or of the squares' under a factored v, by a part of the grid. Returns
/// whether all gradients are finite, or `None` for a tensor that this is not for. The memory is for the
/// maxima of columns.
///
/// # Safety
/// As for [`super::collect()`]; no other state has maxima.
#[inline(always)]
pub(super) unsafe fn maxima_in_registers<L: Lanes>(
    call: &TensorCall<'_>,
    of: &Part,
    memory: &mut [ColumnMaxima; 2],
) -> Option<bool> {
    let Update::Adamw(rule) = &call.rule else {
        return None;
    };
    let [_, v] = call.tensor.states.as_slice() else {
        return None;
    };
    // SAFETY: the caller's promise.
    unsafe {
        match &v.format {
            Format::Codes(codes) => {
                let mut period = Period::MEMORY;
                let v = RankOne::<L::Vector>::of(call, 1, codes, Pass::Maxima, &mut period)?;
                match v.period {
                    Some(period) => raise_slices::<L>(call, rule, v, period, of, memory),
                    None => raise_part::<L, _>(call, rule, v, of, memory),
                }
            }
            Format::Factored(factors) => {
                let squares = Squares::of(call, factors)?;
                raise_part::<L, _>(call, rule, squares, of, memory)
            }
            _ => None,
        }
    }
}

#[inline(always)]
unsafe fn raise_part<L: Lanes, S: Slices<L>>(
    call: &TensorCall<'_>,
    rule: &Adamw,
    slices: S,
    of: &Part,
    memory: &mut [ColumnMaxima; 2],
) -> Option<bool> {
    let scalars = rule.scalars()?;
    let (start, width) = of.columns();
    let mut columns = Columns::new(memory, start, width);
    let mut finite = true;
    let mut rooms = [const { (Chunk::ZERO, Room::EMPTY) }; ROWS];
    // SAFETY: the rows are the part's.
    unsafe {
        let decay = [scalars.beta2, scalars.one_minus_beta2].map(|x| L::Vector::splat(x));
        for (rows, count) in of.groups::<ROWS>(call.tensor) {
            if count == ROWS {
                finite &=
                    raise_rows::<L, S, ROWS>(call, decay, slices, rows, &mut rooms, &mut columns);
                continue;
            }
            for row in &rows[..count] {
                finite &=
                    raise_rows::<L, S, 1>(call, decay, slices, [*row], &mut rooms, &mut columns);
            }
        }
    }
    let first = call.tensor.grid.lead.len();
    columns.flush_axes(call, slices.maxima(), first, of.is_alone(call.tensor));
    Some(finite)
}

/// [`raise_part`] for rows that have several periods.
#[inline(always)]
unsafe fn raise_slices<L: Lanes>(
    call: &TensorCall<'_>,
    rule: &Adamw,
    v: RankOne<'_, L::Vector>,
    period: &Period,
    of: &Part,
    memory: &mut [ColumnMaxima; 2],
) -> Option<bool> {
    let scalars = rule.scalars()?;
    let mut columns = Columns::new(memory, 0, period.len);
    let mut rooms = [const { (Chunk::ZERO, Room::EMPTY) }; ROWS];
    // SAFETY: the runs lie in the tensor, slices in the period.
    unsafe {
        let decay = [scalars.beta2, scalars.one_minus_beta2].map(|x| L::Vector::splat(x));
        let mut group = Group::<_, _, 1>::of(v);
        for segment in of.segments(call.tensor) {
            Slices::<L>::enter(&mut group.slices[0], call, segment);
            let mut largest_of_row = 0;
            for run in segment.parts(CHUNK) {
                // The largest magnitudes so far are none, so that these become the run's.
                let mut sizes = [0; CHUNK];
                group.raise_chunk::<L>(call, decay, [run], AHEAD, &mut rooms, &mut sizes);
                for slice in period.slices(run) {
                    let sizes = &sizes[slice.at..][..slice.len];
                    let slots = &mut columns.first()[slice.phase..];
                    let mut largest = 0;
                    for (slot, size) in slots.iter_mut().zip(sizes) {
                        *slot = (*size).max(*slot);
                        largest = largest.max(*size);
                    }
                    for word in period.words(slice.number) {
                        call.raise(word, largest);
                    }
                    largest_of_row = largest.max(largest_of_row);
                }
            }
            raise(call, v.maxima.iter(), segment, largest_of_row, false);
        }
        columns.flush_axes(call, v.maxima.iter(), period.axis, false);
        Some(!group.finite.any_nan())
    }
}

/// Raises the maxima by rows; returns whether their gradients are finite.
#[inline(always)]
unsafe fn raise_rows<L: Lanes, S: Slices<L>, const N: usize>(
    call: &TensorCall<'_>,
    decay: [L::Vector; 2],
    slices: S,
    rows: [Run; N],
    rooms: &mut [(Chunk, Room); ROWS],
    columns: &mut Columns<'_>,
) -> bool {
    let len = rows[0].len;
    // SAFETY: the rows lie in the tensor.
    unsafe {
        let mut group = Group::<_, L::Vector, N>::of(slices);
        for (slices, row) in group.slices.iter_mut().zip(rows) {
            slices.enter(call, row);
        }
        for at in (0..len).step_by(CHUNK) {
            let ahead = ahead(call, len, at, N);
            let columns = &mut columns.first()[at..];
            let mut runs = rows;
            if len - at < CHUNK {
                for (run, row) in runs.iter_mut().zip(rows) {
                    *run = row.part(at, CHUNK);
                }
                group.raise_chunk(call, decay, runs, ahead, rooms, columns);
            } else {
                for (run, row) in runs.iter_mut().zip(rows) {
                    // So that the compiler knows the length.
                    *run = Run {
                        len: CHUNK,
                        ..row.part(at, CHUNK)
                    };
                }
                group.raise_chunk(call, decay, runs, ahead, rooms, columns);
            }
        }
        // Nothing else is in the slice that is a row.
        let alone = call.tensor.grid.lead.len() == 1 && len == index(call.tensor.grid.cols);
        for ((slices, row), largest) in group.slices.iter().zip(rows).zip(group.largest) {
            raise(call, slices.maxima(), row, largest.reduce_largest(), alone);
        }
        !group.finite.any_nan()
    }
}

/// How far ahead elements are asked for at `at` of rows of this length, of which so many are taken
/// together: what is ahead of a row's last chunks is in the next group.
#[inline(always)]
pub(super) fn ahead(call: &TensorCall<'_>, len: usize, at: usize, rows: usize) -> usize {
    if at + AHEAD < len {
        AHEAD
    } else {
        rows * index(call.tensor.grid.cols) + AHEAD - len
    }
}

/// Raises the statistics of a row by the bits of its largest value; `alone` says that no one else
/// works on what is in its slice of the first axis.
#[inline(always)]
fn raise<'a>(
    call: &TensorCall<'_>,
    maxima: impl Iterator<Item = &'a Maxima>,
    row: Run,
    largest: i32,
    alone: bool,
) {
    let position = first_of_row(call, row);
    let position = &position[..call.tensor.info.shape.len()];
    for maxima in maxima {
        if is_before_row(call.tensor, maxima) {
            let at = maxima.projection.global_position(position, call.offset);
            if alone && maxima.projection.axes() == [0] {
                call.raise_alone(maxima.word + at, largest);
            } else {
                call.raise(maxima.word + at, largest);
            }
        }
    }
}

/// Rows that are collected together.
struct Group<S, V: Vector, const N: usize> {
    slices: [S; N],
    /// The largest values of each row.
    largest: [V; N],
    /// Zero, or NaN where a gradient was not finite.
    finite: V,
}

impl<S, V: Vector, const N: usize> Group<S, V, N> {
    #[inline(always)]
    unsafe fn of(slices: S) -> Self
    where
        S: Copy,
    {
        // SAFETY: the kernels are used on processors that have the instructions.
        let zero = unsafe { V::splat(0.0) };
        Self {
            slices: [slices; N],
            largest: [zero; N],
            finite: zero,
        }
    }

    /// Raises the maxima by a run of at most a chunk of each row, in the same columns.
    #[inline(always)]
    unsafe fn raise_chunk<L: Lanes<Vector = V>>(
        &mut self,
        call: &TensorCall<'_>,
        decay: [V; 2],
        runs: [Run; N],
        ahead: usize,
        rooms: &mut [(Chunk, Room); ROWS],
        columns: &mut [i32],
    ) where
        S: Slices<L>,
    {
        let dtype = call.tensor.info.grad_dtype;
        // SAFETY: the runs lie in the tensor; there are slots for a chunk's columns.
        unsafe {
            let (grad_scale, zero) = (V::splat(call.grad_scale), V::splat(0.0));
            let mut gradients = [std::ptr::null(); N];
            let mut open = [S::NOWHERE; N];
            for (r, (copy, room)) in rooms[..N].iter_mut().enumerate() {
                prefetch::<L>(call.grad, dtype.size(), runs[r], ahead);
                gradients[r] = if dtype == Dtype::F32 && runs[r].len == CHUNK {
                    call.grad.cast::<f32>().add(runs[r].first)
                } else {
                    load_run::<L>(call.grad, dtype, runs[r], copy);
                    copy.as_ptr()
                };
                open[r] = self.slices[r].open(runs[r], room);
            }
            let columns = columns[..CHUNK].as_mut_ptr().cast::<f32>();
            // Of their own, to stay in registers.
            let (mut largest, mut finite) = (self.largest, self.finite);
            for at in (0..CHUNK).step_by(V::WIDTH) {
                let mut column = V::load(columns.add(at));
                for r in 0..N {
                    let g = V::load(gradients[r].add(at)).mul(grad_scale); // R1
                    let w = g.mul(g); // R2
                    let new = self.slices[r].value(open[r], at, w, decay);
                    finite = w.mul_add(zero, finite);
                    largest[r] = largest[r].largest(new);
                    column = column.largest(new);
                }
                column.store(columns.add(at));
            }
            (self.largest, self.finite) = (largest, finite);
        }
    }
}
