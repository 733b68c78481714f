//! The maxima of the grid's rows and columns, several rows at a time: the maxima of their columns are
//! loaded and stored once, and as many streams of memory are read.

#![expect(unsafe_code, reason = "reads the caller's raw buffers")]

use std::marker::PhantomData;

use super::AHEAD;
use super::collect::Part;
use super::elements::{Ahead, Elements, Kind, lanes, with_decay};
use super::factored::Squares;
use super::maxima::{ColumnMaxima, Columns};
use super::rank1::{Memory, Period, Place, RankOne};
use super::registers::Room;
use super::run::Run;
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Compiled, Lanes, Vector, each_few, load_few};
use crate::layout::index;
use crate::numerics::INF_BITS;
use crate::optimizer::Update;
use crate::plan::{Format, Maxima, Pass};

/// Rows that are collected together.
const ROWS: usize = 4;

/// What has maxima of the grid's rows and columns, or of the axes that they are made of, computed from the
/// squares of the gradients.
///
/// # Safety
/// Runs lie in the tensor.
pub(super) trait Slices<L: Lanes>: Copy {
    /// What the values of a run need.
    type Open: Copy;
    /// Of no run.
    const NOWHERE: Self::Open;

    /// Of a run of whole chunks, or of less than one.
    unsafe fn open(&self, run: Run, room: &mut Room) -> Self::Open;
    /// Asks for what the values of a chunk from element `at` of the run on need.
    fn prefetch(&self, open: Self::Open, at: usize);
    /// The squares of gradients.
    #[inline(always)]
    unsafe fn square(&self, g: L::Vector) -> L::Vector {
        // SAFETY: the kernels are used on processors that have the instructions.
        unsafe { g.mul(g) } // R2
    }
    /// What there was of a few registers from element `at` of the run on.
    unsafe fn old(&self, open: Self::Open, at: usize) -> <L::Vector as Vector>::Few;
    /// The values of a register, given what there was and the squares; not finite where these are not.
    unsafe fn value(&self, old: L::Vector, w: L::Vector) -> L::Vector;
    /// Raises the maxima of the axes before a row by its largest value, as an integer; `alone` says that no
    /// one else works on what is in its slice of the first axis.
    fn raise(&self, call: &TensorCall<'_>, row: Run, largest: i32, alone: bool);
    /// Of all axes.
    fn maxima(&self) -> impl Iterator<Item = &Maxima>;
}

/// The new second moment under rank-1.
#[derive(Clone, Copy)]
struct NewMoment<'a, V: Vector> {
    v: RankOne<'a, V>,
    beta2: V,
    one_minus_beta2: V,
}

impl<L: Lanes> Slices<L> for NewMoment<'_, L::Vector> {
    type Open = Place;
    const NOWHERE: Place = Place::NOWHERE;

    #[inline(always)]
    unsafe fn open(&self, run: Run, room: &mut Room) -> Place {
        // SAFETY: the caller's promise.
        unsafe { self.v.place::<L>(self.v.in_row(run.row), run, room) }
    }

    #[inline(always)]
    fn prefetch(&self, place: Place, at: usize) {
        L::prefetch(place.codes.wrapping_add(at / 2));
    }

    #[inline(always)]
    unsafe fn old(&self, place: Place, at: usize) -> <L::Vector as Vector>::Few {
        // SAFETY: the caller's promise.
        unsafe { self.v.old(place, at) }
    }

    #[inline(always)]
    unsafe fn value(&self, old: L::Vector, w: L::Vector) -> L::Vector {
        // SAFETY: the caller's promise.
        unsafe { self.beta2.mul_add(old, self.one_minus_beta2.mul(w)) } // R4
    }

    #[inline(always)]
    fn raise(&self, call: &TensorCall<'_>, row: Run, largest: i32, alone: bool) {
        self.v.raise(call, row.row, largest, alone);
    }

    #[inline(always)]
    fn maxima(&self) -> impl Iterator<Item = &Maxima> {
        self.v.maxima.iter()
    }
}

/// Raises the maxima of v's slices, or of the squares' under a factored v, by a part of the grid; returns
/// whether all maxima are finite, as they are not if a square of a gradient is not, or `None` for a tensor that
/// this is not for. The memory is for the maxima of columns.
///
/// # Safety
/// As for [`super::collect()`]; no other state has maxima.
#[inline(always)]
pub(super) unsafe fn maxima_in_registers<L: Lanes>(
    call: &TensorCall<'_>,
    of: &Part,
    memory: &mut [ColumnMaxima; 2],
) -> Option<bool> {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some((_, factors)) = call.tensor.factored() {
            let squares = Squares::of(call, factors)?;
            return Some(raise::<L, _>(call, squares, None, of, memory));
        }
        let (Update::Adamw(rule), [_, v]) = (&call.rule, call.tensor.states.as_slice()) else {
            return None;
        };
        let Format::Codes(codes) = &v.format else {
            return None;
        };
        let scalars = rule.scalars()?;
        let mut scales = Memory::UNSET;
        let v = RankOne::of::<L>(call, 1, codes, Pass::Maxima, &mut scales)?;
        let moment = NewMoment {
            v,
            beta2: L::Vector::splat(scalars.beta2),
            one_minus_beta2: L::Vector::splat(scalars.one_minus_beta2),
        };
        Some(raise::<L, _>(call, moment, v.period, of, memory))
    }
}

#[inline(always)]
unsafe fn raise<L: Lanes, S: Slices<L>>(
    call: &TensorCall<'_>,
    slices: S,
    period: Option<&Period>,
    of: &Part,
    memory: &mut [ColumnMaxima; 2],
) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        with_decay!(call, Kind::of_gradients(call), E => L::run(Raise::<L, S, E> {
            call,
            slices,
            period,
            of,
            memory,
            kinds: PhantomData,
        }))
    }
}

/// Maxima to be raised by a part of the grid.
struct Raise<'a, L, S, E> {
    call: &'a TensorCall<'a>,
    slices: S,
    /// For rows that have several.
    period: Option<&'a Period>,
    of: &'a Part,
    memory: &'a mut [ColumnMaxima; 2],
    kinds: PhantomData<(L, E)>,
}

impl<L: Lanes, S: Slices<L>, E: Elements<L>> Compiled for Raise<'_, L, S, E> {
    type Output = bool;

    /// Returns whether all maxima are finite.
    #[inline(always)]
    unsafe fn run(self) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            match self.period {
                Some(period) => self.by_slices(period),
                None => self.by_rows(),
            }
        }
    }
}

impl<L: Lanes, S: Slices<L>, E: Elements<L>> Raise<'_, L, S, E> {
    #[inline(always)]
    unsafe fn by_rows(self) -> bool {
        let (call, of) = (self.call, self.of);
        let (start, width) = of.columns();
        let mut columns = Columns::new(self.memory, start, width);
        // SAFETY: the rows are the part's.
        let finite = unsafe {
            let mut collector = Collector::<L, S, E>::of(call, self.slices);
            for (rows, count) in of.groups::<ROWS>(call.tensor) {
                if count == ROWS {
                    collector.raise_rows::<ROWS>(rows, &mut columns);
                    continue;
                }
                for row in &rows[..count] {
                    collector.raise_rows::<1>([*row], &mut columns);
                }
            }
            collector.all_finite()
        };
        let first = call.tensor.grid.lead.len();
        columns.flush_axes(call, self.slices.maxima(), first, of.is_alone(call.tensor));
        finite
    }

    #[inline(always)]
    unsafe fn by_slices(self, period: &Period) -> bool {
        let Self {
            call, slices, of, ..
        } = self;
        let (start, width) = of.columns();
        let mut columns = Columns::new(self.memory, 0, period.len);
        // SAFETY: the runs lie in the tensor, slices in the period.
        unsafe {
            let mut collector = Collector::<L, S, E>::of(call, slices);
            for segment in of.segments(call.tensor) {
                let mut largest_of_row = 0;
                for run in segment.parts(CHUNK) {
                    // The largest magnitudes so far are none, so that these become the run's.
                    let mut sizes = [0; CHUNK];
                    if run.len == CHUNK {
                        collector.raise_chunks::<1, true>([run], AHEAD, &mut sizes);
                    } else {
                        collector.raise_chunks::<1, false>([run], AHEAD, &mut sizes);
                    }
                    for slice in period.slices(run) {
                        let sizes = &sizes[slice.at..][..slice.len];
                        let slots = &mut columns.first()[slice.phase..];
                        let mut largest = 0;
                        for (slot, size) in slots.iter_mut().zip(sizes) {
                            *slot = (*size).max(*slot);
                            largest = largest.max(*size);
                        }
                        let place = slice.number * period.len;
                        let alone = start <= place && place + period.len <= start + width;
                        period.raise(call, slice.number, largest, alone);
                        largest_of_row = largest.max(largest_of_row);
                    }
                }
                slices.raise(call, segment, largest_of_row, false);
            }
            columns.flush_axes(call, slices.maxima(), period.axis, false);
            collector.all_finite()
        }
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

/// The same part of each row.
#[inline(always)]
fn parts<const N: usize>(mut rows: [Run; N], at: usize, len: usize) -> [Run; N] {
    for run in &mut rows {
        *run = run.part(at, len);
    }
    rows
}

/// Collects maxima of a part.
struct Collector<'c, L: Lanes, S, E> {
    call: &'c TensorCall<'c>,
    slices: S,
    /// The largest values so far.
    largest: L::Vector,
    /// Whether a gradient was found that these do not show.
    hides_non_finite: bool,
    /// For each of the rows that are collected together.
    rooms: [(Chunk, Room); ROWS],
    elements: PhantomData<E>,
}

impl<'c, L: Lanes, S: Slices<L>, E: Elements<L>> Collector<'c, L, S, E> {
    #[inline(always)]
    unsafe fn of(call: &'c TensorCall<'c>, slices: S) -> Self {
        Self {
            call,
            slices,
            // SAFETY: the kernels are used on processors that have the instructions.
            largest: unsafe { L::Vector::splat(0.0) },
            hides_non_finite: false,
            rooms: [const { (Chunk::ZERO, Room::EMPTY) }; ROWS],
            elements: PhantomData,
        }
    }

    #[inline(always)]
    unsafe fn all_finite(&self) -> bool {
        // SAFETY: as in `of`.
        !self.hides_non_finite && unsafe { self.largest.reduce_largest() < INF_BITS.cast_signed() }
    }

    /// Raises the maxima by rows.
    #[inline(always)]
    unsafe fn raise_rows<const N: usize>(&mut self, rows: [Run; N], columns: &mut Columns<'_>) {
        let (call, len) = (self.call, rows[0].len);
        let whole = len - len % CHUNK;
        let columns = columns.first();
        // SAFETY: the rows lie in the tensor.
        unsafe {
            let mut largest = [L::Vector::splat(0.0); N];
            let ahead = ahead(call, len, len, N);
            if whole > 0 {
                let runs = parts(rows, 0, whole);
                largest = self.raise_chunks::<N, true>(runs, ahead, columns);
            }
            if whole < len {
                let runs = parts(rows, whole, len - whole);
                let columns = &mut columns[whole..];
                let found = self.raise_chunks::<N, false>(runs, ahead, columns);
                for (largest, found) in largest.iter_mut().zip(found) {
                    *largest = largest.largest(found);
                }
            }
            // Nothing else is in the slice that is a row.
            let alone = call.tensor.grid.lead.len() == 1 && len == index(call.tensor.grid.cols);
            for (row, largest) in rows.into_iter().zip(largest) {
                let largest = largest.reduce_largest();
                self.slices.raise(call, row, largest, alone);
            }
        }
    }

    /// Raises the maxima of columns by runs of one length in them, of whole chunks if that is so, or of less
    /// than one; returns the largest values of each run. What follows their last chunks is `ahead` of them.
    #[inline(always)]
    unsafe fn raise_chunks<const N: usize, const WHOLE: bool>(
        &mut self,
        runs: [Run; N],
        ahead: usize,
        columns: &mut [i32],
    ) -> [L::Vector; N] {
        let (call, len) = (self.call, runs[0].len);
        // SAFETY: the runs lie in the tensor; there are slots for their chunks' columns.
        unsafe {
            let grad_scale = L::Vector::splat(E::grad_scale(call));
            let slices = self.slices; // A copy, which what is stored cannot change.
            let mut open = [S::NOWHERE; N];
            for (r, open) in open.iter_mut().enumerate() {
                *open = slices.open(runs[r], &mut self.rooms[r].1);
            }
            let mut largest = [L::Vector::splat(0.0); N];
            for at in (0..len).step_by(CHUNK) {
                let ahead = if at + AHEAD < len { AHEAD } else { ahead };
                let chunks = parts(runs, at, CHUNK);
                let mut gradients = [E::gradients(call, chunks[0], &mut self.rooms[0].0); N];
                let asked = chunks.map(|run| Ahead::of_gradients::<L, E>(call, run, ahead));
                let parameters = chunks.map(|run| Ahead::of_parameters::<L, E>(call, run, ahead));
                for r in 0..N {
                    slices.prefetch(open[r], at + ahead);
                    if r > 0 {
                        gradients[r] = E::gradients(call, chunks[r], &mut self.rooms[r].0);
                    }
                    self.hides_non_finite |= E::hides_non_finite(gradients[r]);
                }
                let columns = columns[at..][..CHUNK].as_mut_ptr().cast::<f32>();
                for first in each_few::<L::Vector>() {
                    let mut of_columns = load_few::<L::Vector>(columns.add(first));
                    for r in 0..N {
                        let old = slices.old(open[r], at + first);
                        let registers = of_columns.as_mut().iter_mut().zip(old.as_ref());
                        for (j, (column, old)) in registers.enumerate() {
                            let i = first + j * L::Vector::WIDTH;
                            let lanes = if WHOLE {
                                L::Vector::WIDTH
                            } else {
                                lanes::<L::Vector>(runs[0], i)
                            };
                            if lanes == 0 {
                                break;
                            }
                            E::ask([asked[r]], i);
                            if E::DECAYED {
                                E::ask([parameters[r]], i);
                            }
                            let g = E::gradient(gradients[r], i, lanes).mul(grad_scale); // R1
                            let new = slices.value(*old, slices.square(g));
                            largest[r] = largest[r].largest(new);
                            *column = column.largest(new);
                        }
                    }
                    for (j, column) in of_columns.as_ref().iter().enumerate() {
                        column.store(columns.add(first + j * L::Vector::WIDTH));
                    }
                }
            }
            for largest in largest {
                self.largest = self.largest.largest(largest);
            }
            largest
        }
    }
}
