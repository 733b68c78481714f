//! Rank-1 scales in registers: the maxima of the slices along every axis, an element's scale the smallest
//! of those that it is in.
//!
//! Where rows of the grid have several axes, as the last one is shorter than a block, scales along the
//! trailing axes are brought into one array, which those of a row repeat: once, or as often as it has
//! slices of these axes ([`Period`]).

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::addr_of_mut;

use super::decode::Source;
use super::encode::encode_unit;
use super::inverses::{self, Inverse, Inverses};
use super::registers::{Moment, Room, Rows, Updated, close_codes};
use super::run::{Run, draws};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{
    Beside, CHUNK, Chunk, Coder, EvenTable, Lanes, SHORT_OF_16, Vector, code,
};
use crate::layout::index;
use crate::plan::{Codes, MAX_AXES, Maxima, Pass, Scales, TensorPlan};
use crate::quant::Rounding;
use crate::rng::Purpose;
use crate::step::Buffer;

/// The most elements of a period: 512 channels of 3 x 3. They are on the stack.
const LONGEST: usize = 4608;

/// A period has to repeat so often in a tensor that is not one.
const REPEATED: i64 = 8;

/// The bits of the smallest of no scales.
const NO_SCALE: u32 = u32::MAX;

/// A state of four bits under a linear table or its squares and the maxima of the slices along every axis.
#[derive(Clone, Copy)]
pub(super) struct RankOne<'a, V: Vector> {
    codes: &'a Codes,
    pub(super) maxima: &'a [Maxima],
    state: usize,
    rows: Rows<V>,
    /// Whether levels are squares.
    squares: bool,
    /// Whether the statistics are read: they are complete.
    complete: bool,
    /// The axes before the grid's rows.
    lead: Axes,
    /// The scales along the row's axes, in the state and in the statistics: a row's, or a period's.
    columns: [*const f32; 2],
    /// The same of the end of a row that is not a whole chunk, for one.
    end: [*const f32; 2],
    /// Of the new ones.
    inverses: Inverses,
    /// For rows that have several.
    pub(super) period: Option<&'a Period>,
    row: InRow,
}

/// What is the same in all of a row.
#[derive(Clone, Copy)]
pub(super) struct InRow {
    codes: *mut u8,
    /// The smallest maximum of the axes before it, in the state and in the statistics.
    rest: [f32; 2],
    /// About 1 over the latter.
    inverse: f32,
}

impl InRow {
    const NONE: Self = Self {
        codes: std::ptr::null_mut(),
        rest: [0.0; 2],
        inverse: 0.0,
    };
}

impl<'a, V: Vector> RankOne<'a, V> {
    /// `None` for a state that this is not for.
    #[inline(always)]
    pub(super) unsafe fn of<L: Lanes<Vector = V>>(
        call: &TensorCall<'_>,
        state: usize,
        codes: &'a Codes,
        pass: Pass,
        memory: &'a mut Memory,
    ) -> Option<Self> {
        let tensor = call.tensor;
        let Scales::Maxima(maxima) = &codes.scales else {
            return None;
        };
        let axes = tensor.info.shape.len();
        let mut each = maxima.iter().enumerate();
        let of_each = each.all(|(axis, maxima)| maxima.projection.axes() == [axis]);
        if !of_each || maxima.len() != axes || axes < 2 {
            return None;
        }
        let squares = codes.table.square == Some(16.0) && codes.rounding == Rounding::Nearest;
        let computed = squares || codes.table.linear == Some(16.0);
        if !computed {
            return None;
        }
        let complete = pass == Pass::Apply;
        let buffers = call.state_buffers(state);
        let Memory {
            period: of_period,
            end,
            inverses: of_inverses,
        } = memory;
        // SAFETY: the caller's promise.
        unsafe {
            let mut rank_one = Self {
                codes,
                maxima,
                state,
                rows: Rows::of(tensor, codes, buffers[0])?,
                squares,
                complete,
                lead: Axes::of(call, maxima, &buffers[1..], 0..tensor.grid.lead.len()),
                columns: [std::ptr::null(); 2],
                end: [std::ptr::null(); 2],
                inverses: Inverses::NONE,
                period: None,
                row: InRow::NONE,
            };
            if tensor.info.shape.last() == Some(&tensor.grid.cols) {
                let last = Axis::of(call, maxima, &buffers[1..], axes - 1);
                rank_one.columns = last.maxima.map(<*const u32>::cast);
            } else {
                let period = Period::new(call, maxima, &buffers[1..], complete, of_period);
                rank_one.columns = [period.columns(0), period.columns(1)];
                if period.len < index(tensor.grid.cols) {
                    rank_one.period = Some(period);
                }
            }
            let cols = index(tensor.grid.cols);
            let len = cols % CHUNK;
            if rank_one.period.is_none() && len > 0 {
                let arrays = 1 + usize::from(complete);
                for (columns, end) in rank_one.columns.iter().zip(&mut *end).take(arrays) {
                    let first = columns.add(cols - len).cast();
                    L::read::<{ 4 * CHUNK }>(first, 4 * len, end.as_mut_ptr().cast());
                }
                rank_one.end = end.each_ref().map(|columns| columns.as_ptr().cast());
            }
            if complete && rank_one.period.is_none() {
                let chunk = |c| rank_one.columns(c * CHUNK, cols - c * CHUNK);
                rank_one.inverses = Inverses::of::<L>(cols.div_ceil(CHUNK), chunk, of_inverses);
            }
            Some(rank_one)
        }
    }

    /// # Safety
    /// It is a row of the grid.
    #[inline(always)]
    pub(super) unsafe fn in_row(&self, row: usize) -> InRow {
        // SAFETY: the caller's promise; statistics are read once they are complete.
        let rest = unsafe {
            let old = self.lead.smallest(row, 0);
            let new = if self.complete {
                self.lead.smallest(row, 1)
            } else {
                NO_SCALE
            };
            [old, new]
        };
        let rest = rest.map(f32::from_bits);
        InRow {
            codes: self.rows.at(row),
            rest,
            // 0 for NaN, which is the largest.
            inverse: (1.0 / rest[1]).max(0.0),
        }
    }

    /// The scales of columns from one on, of so many at most: those of the end of a row are a copy.
    #[inline(always)]
    fn columns(&self, col: usize, len: usize) -> [*const f32; 2] {
        if len < CHUNK {
            self.end
        } else {
            self.columns.map(|columns| columns.wrapping_add(col))
        }
    }

    /// Where the codes of a run are, and the scales of its columns, for whole chunks.
    ///
    /// # Safety
    /// The run is of whole chunks of the row, or its end of less than one; where the row has several periods, it
    /// is of at most a chunk.
    #[inline(always)]
    pub(super) unsafe fn place<L: Lanes>(&self, row: InRow, run: Run, room: &mut Room) -> Place {
        // SAFETY: the caller's promise.
        unsafe {
            let columns = if let Some(period) = self.period {
                period.spread::<L>(run, self.complete, &mut room.columns);
                room.columns.each_ref().map(|columns| columns.as_ptr())
            } else {
                self.columns(run.col, run.len)
            };
            let inverse = match self.inverses.get(run.col / CHUNK) {
                Some(inverse) => inverse,
                None if self.complete => Inverse::of::<L>(columns, &mut room.inverses),
                None => Inverse::NOWHERE,
            };
            Place {
                of_row: row,
                codes: room.codes::<L>(row.codes, run),
                columns,
                inverse,
            }
        }
    }

    /// The old values of a few registers from element `at` of a place on.
    ///
    /// # Safety
    /// They lie there.
    #[inline(always)]
    pub(super) unsafe fn old(&self, place: Place, at: usize) -> V::Few {
        // SAFETY: the caller's promise.
        unsafe {
            let mut old = V::decode(self.rows.levels, place.codes.add(at / 2));
            for (j, x) in old.as_mut().iter_mut().enumerate() {
                let columns = V::load(place.columns[0].add(at + j * V::WIDTH));
                *x = x.mul(V::splat(place.of_row.rest[0]).smallest(columns));
            }
            old
        }
    }

    /// Raises the maxima of a row's slices along the axes before it; `alone` says that no other thread
    /// does.
    #[inline(always)]
    pub(super) fn raise(&self, call: &TensorCall<'_>, row: usize, largest: i32, alone: bool) {
        self.lead.raise(call, row, largest, alone);
    }
}

/// A run's codes and scales.
#[derive(Clone, Copy)]
pub(super) struct Place {
    of_row: InRow,
    pub(super) codes: *mut u8,
    /// Of the columns, old and new.
    columns: [*const f32; 2],
    /// Of the new ones.
    inverse: Inverse,
}

impl Place {
    pub(super) const NOWHERE: Self = Self {
        of_row: InRow::NONE,
        codes: std::ptr::null_mut(),
        columns: [std::ptr::null(); 2],
        inverse: Inverse::NOWHERE,
    };
}

impl<L: Lanes> Moment<L> for RankOne<'_, L::Vector> {
    type Open = Place;
    type Scale = ();

    const COLLECTED: bool = true;

    #[inline(always)]
    unsafe fn enter(&mut self, _: &TensorCall<'_>, run: Run) {
        // SAFETY: the caller's run lies in the tensor.
        self.row = unsafe { self.in_row(run.row) };
    }

    #[inline(always)]
    unsafe fn open(&self, run: Run, room: &mut Room) -> Place {
        // SAFETY: the caller's run lies in the row.
        unsafe { self.place::<L>(self.row, run, room) }
    }

    #[inline(always)]
    unsafe fn decode(&self, place: Place, at: usize) -> <L::Vector as Vector>::Few {
        // SAFETY: as above.
        unsafe { self.old(place, at) }
    }

    #[inline(always)]
    unsafe fn is_usual(&self, place: Place, _: L::Vector) -> bool {
        // Values under scales that are not negative are not, and where the largest new ones are finite all are.
        place.inverse.usual && !place.of_row.rest[1].is_subnormal()
    }

    #[inline(always)]
    unsafe fn rescale(&self, _: Run, _: L::Vector) {}

    #[inline(always)]
    unsafe fn close(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        place: Place,
        Updated { values, usual }: Updated<'_>,
        (): (),
        beside: impl Beside<L::Vector>,
    ) {
        // SAFETY: as above.
        unsafe {
            let Place {
                of_row,
                codes,
                columns,
                inverse,
            } = place;
            let scales = SmallerOf {
                row: L::Vector::splat(of_row.rest[1]),
                inverse_row: L::Vector::splat(of_row.inverse),
                columns: columns[1],
                inverse_columns: inverse.each,
            };
            if self.codes.rounding == Rounding::Stochastic {
                beside.all(1);
                if usual {
                    let mut under = Chunk::ZERO;
                    for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                        scales.scale(at).store(under.as_mut_ptr().add(at));
                    }
                    let draws = draws(call, Purpose::State(self.state), run);
                    L::round_linear(values, &under, &self.codes.table, &draws, codes);
                }
            } else {
                macro_rules! under_maxima {
                    ($squares:literal) => {
                        code::<L::Vector, _>(
                            values,
                            UnderMaxima::<_, $squares> {
                                thresholds: self.rows.below,
                                scales,
                            },
                            beside,
                            codes,
                        )
                    };
                }
                if self.squares {
                    under_maxima!(true);
                } else {
                    under_maxima!(false);
                }
            }
            if usual {
                close_codes::<L>(of_row.codes, run, codes);
            } else {
                encode_unit::<L>(call, self.state, run, &[*values], Source::Statistics);
            }
        }
    }
}

/// The new scales of a chunk: the smaller of the row's and a column's each.
#[derive(Clone, Copy)]
struct SmallerOf<V> {
    row: V,
    inverse_row: V,
    columns: *const f32,
    inverse_columns: *const f32,
}

impl<V: Vector> SmallerOf<V> {
    /// Of the register from element `at` on. A column's is not NaN, where it matters.
    #[inline(always)]
    unsafe fn scale(&self, at: usize) -> V {
        // SAFETY: a chunk has so many columns.
        unsafe { self.row.min(V::load(self.columns.add(at))) }
    }

    /// About 1 over it.
    #[inline(always)]
    unsafe fn inverse(&self, at: usize) -> V {
        // SAFETY: as above.
        unsafe { self.inverse_row.max(V::load(self.inverse_columns.add(at))) }
    }
}

/// Codes of a linear table or of its squares.
struct UnderMaxima<V: Vector, const SQUARES: bool> {
    thresholds: V::Even,
    scales: SmallerOf<V>,
}

impl<V: Vector, const SQUARES: bool> Coder<V> for UnderMaxima<V, SQUARES> {
    const CLEAN: bool = false;

    #[inline(always)]
    unsafe fn code(&mut self, x: V, at: usize) -> V::Codes {
        // SAFETY: the caller's register lies in the chunk.
        unsafe {
            let q = x.mul(self.scales.inverse(at));
            let q = if SQUARES { q.near_sqrt() } else { q };
            let (factor, scale) = (V::splat(SHORT_OF_16), self.scales.scale(at));
            self.thresholds
                .decide::<false, SQUARES>(x, q, factor, Some(scale))
        }
    }
}

/// Memory for scales that are not used where they lie.
pub(super) struct Memory {
    period: MaybeUninit<Period>,
    /// Of the end of a row, old and new.
    end: [MaybeUninit<Chunk>; 2],
    inverses: inverses::Room,
}

impl Memory {
    pub(super) const UNSET: Self = Self {
        period: MaybeUninit::uninit(),
        end: [const { MaybeUninit::uninit() }; 2],
        inverses: MaybeUninit::uninit(),
    };
}

/// The scales along the trailing axes of a tensor, in the order of its elements. A row has them again and
/// again, each time under the maxima of other slices of its axes before them.
pub(super) struct Period {
    pub(super) len: usize,
    /// The first of its axes.
    pub(super) axis: usize,
    /// The row's axes before it.
    outer: Axes,
    /// In the state and in the statistics.
    scales: [[MaybeUninit<u32>; LONGEST]; 2],
}

/// Consecutive axes of a tensor, before a row's or a period's.
#[derive(Clone, Copy)]
struct Axes {
    each: [Axis; MAX_AXES],
    count: usize,
}

/// One axis.
#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    /// Its maxima in the state and in the statistics.
    maxima: [*const u32; 2],
    /// The first one's number among the statistics.
    word: usize,
}

impl Axes {
    /// Of the maxima and buffers of all axes. Nothing is read.
    #[inline(always)]
    unsafe fn of(
        call: &TensorCall<'_>,
        maxima: &[Maxima],
        buffers: &[Buffer],
        axes: Range<usize>,
    ) -> Self {
        let mut each = [Axis::NONE; MAX_AXES];
        let count = axes.len();
        for (each, axis) in each.iter_mut().zip(axes) {
            // SAFETY: the caller's promise.
            *each = unsafe { Axis::of(call, maxima, buffers, axis) };
        }
        Self { each, count }
    }

    /// The axes, the last one first, each with the index of a slice of all of them.
    #[inline(always)]
    fn at(&self, slice: usize) -> impl Iterator<Item = (&Axis, usize)> {
        let mut rest = slice;
        let each = self.each[..self.count].iter().enumerate().rev();
        each.map(move |(number, axis)| {
            // The first axis has what is left.
            let at = if number == 0 {
                rest
            } else {
                rest % axis.extent
            };
            rest = if number == 0 { 0 } else { rest / axis.extent };
            (axis, at)
        })
    }

    /// Raises the maxima of a slice; `alone` says that no other thread does.
    #[inline(always)]
    fn raise(&self, call: &TensorCall<'_>, slice: usize, largest: i32, alone: bool) {
        for (axis, at) in self.at(slice) {
            call.raise_by(axis.word + at, largest, alone);
        }
    }

    /// The smallest maximum of a slice, as an integer, so that NaN is the largest: in the state, or in the
    /// statistics.
    ///
    /// # Safety
    /// There is such a slice, and its maxima can be read.
    #[inline(always)]
    unsafe fn smallest(&self, slice: usize, array: usize) -> u32 {
        let mut smallest = NO_SCALE;
        for (axis, at) in self.at(slice) {
            // SAFETY: the caller's promise.
            smallest = smallest.min(unsafe { *axis.maxima[array].add(at) });
        }
        smallest
    }
}

impl Axis {
    const NONE: Self = Self {
        extent: 1,
        maxima: [std::ptr::null(); 2],
        word: 0,
    };

    #[inline(always)]
    unsafe fn of(
        call: &TensorCall<'_>,
        maxima: &[Maxima],
        buffers: &[Buffer],
        axis: usize,
    ) -> Self {
        let first = [0; MAX_AXES];
        let axes = call.tensor.info.shape.len();
        let of_axis = &maxima[axis];
        let word = of_axis
            .projection
            .global_position(&first[..axes], call.offset);
        let word = of_axis.word + word;
        // SAFETY: the statistics have the word.
        let new = unsafe { call.scratch[0].cast_const().cast::<u32>().add(word) };
        Self {
            extent: index(call.tensor.info.shape[axis]),
            maxima: [buffers[axis].data.cast_const().cast(), new],
            word,
        }
    }
}

/// A part of a run that lies in one slice of the period's axes.
pub(super) struct Slice {
    /// Where it begins in the run, and in the period.
    pub(super) at: usize,
    pub(super) phase: usize,
    pub(super) len: usize,
    /// Its number in the row.
    pub(super) number: usize,
}

impl Period {
    /// The first axis of a tensor's period, and its length.
    #[inline(always)]
    pub(super) fn axes(tensor: &TensorPlan) -> (usize, usize) {
        let (shape, lead) = (&tensor.info.shape, tensor.grid.lead.len());
        let mut axis = shape.len() - 1;
        let mut len = shape[axis];
        while axis > lead {
            let longer = len * shape[axis - 1];
            if longer > LONGEST as i64 || longer * REPEATED > tensor.numel {
                break;
            }
            axis -= 1;
            len = longer;
        }
        (axis, index(len))
    }

    /// # Safety
    /// No one writes the state, nor the statistics if they are `complete`; others are not read.
    #[inline(never)]
    unsafe fn new<'a>(
        call: &TensorCall<'_>,
        maxima: &[Maxima],
        buffers: &[Buffer],
        complete: bool,
        memory: &'a mut MaybeUninit<Self>,
    ) -> &'a Self {
        let (axis, len) = Self::axes(call.tensor);
        let (shape, lead) = (&call.tensor.info.shape, call.tensor.grid.lead.len());
        let period = memory.as_mut_ptr();
        // SAFETY: everything but the scales is set, which may be unset; a period has at most so many.
        unsafe {
            addr_of_mut!((*period).len).write(len);
            addr_of_mut!((*period).axis).write(axis);
            let outer = Axes::of(call, maxima, buffers, lead..axis);
            addr_of_mut!((*period).outer).write(outer);
            let period = memory.assume_init_mut();
            let mut set = [0; 2];
            for at in (axis..shape.len()).rev() {
                let Axis { extent, maxima, .. } = Axis::of(call, maxima, buffers, at);
                for s in 0..1 + usize::from(complete) {
                    set[s] = expand(&mut period.scales[s], set[s], maxima[s], extent);
                }
            }
            period
        }
    }

    fn columns(&self, array: usize) -> *const f32 {
        self.scales[array].as_ptr().cast()
    }

    /// The slices of a run of a row.
    #[inline(always)]
    pub(super) fn slices(&self, run: Run) -> impl Iterator<Item = Slice> {
        let (mut number, mut phase, mut at) = (run.col / self.len, run.col % self.len, 0);
        let period = self.len;
        std::iter::from_fn(move || {
            let len = (period - phase).min(run.len - at);
            let slice = Slice {
                at,
                phase,
                len,
                number,
            };
            (at, phase, number) = (at + len, 0, number + 1);
            (len > 0).then_some(slice)
        })
    }

    /// Raises the maxima of the row's axes before the period's by a slice's largest value; `alone` says that
    /// no other thread works on the slice.
    #[inline(always)]
    pub(super) fn raise(&self, call: &TensorCall<'_>, slice: usize, largest: i32, alone: bool) {
        let alone = alone && self.outer.count == 1 && call.tensor.grid.lead.is_empty();
        self.outer.raise(call, slice, largest, alone);
    }

    /// The scales of a run of at most a chunk. Not inlined, nor are those that make a period: beside them the
    /// loops of rows that have one axis take a twentieth longer.
    #[inline(never)]
    unsafe fn spread<L: Lanes>(&self, run: Run, complete: bool, columns: &mut [Chunk; 2]) {
        let (first, phase) = (run.col / self.len, run.col % self.len);
        let mut bounds = [NO_SCALE; CHUNK];
        let bounds = &mut bounds[..(phase + run.len).div_ceil(self.len)];
        let columns = columns.iter_mut().zip(&self.scales).enumerate();
        for (s, (columns, scales)) in columns.take(1 + usize::from(complete)) {
            // SAFETY: the period's scales are set; slices' indices along axes of the row.
            unsafe {
                for (slice, bound) in (first..).zip(&mut *bounds) {
                    *bound = self.outer.smallest(slice, s);
                }
                let scales = std::slice::from_raw_parts(scales.as_ptr().cast(), self.len);
                L::repeat(scales, phase, bounds, &mut columns[..run.len]);
            }
        }
    }
}

/// Makes the scales of `set` elements those of all slices along one more axis, before theirs; of no elements,
/// the axis's own. Returns how many there are.
#[inline(always)]
unsafe fn expand(
    scales: &mut [MaybeUninit<u32>],
    set: usize,
    maxima: *const u32,
    extent: usize,
) -> usize {
    // SAFETY: the axis has so many maxima; from the last slice on, the first one is read before it is
    // written.
    unsafe {
        if set == 0 {
            for (i, scale) in scales[..extent].iter_mut().enumerate() {
                scale.write(*maxima.add(i));
            }
            return extent;
        }
        for slice in (0..extent).rev() {
            let largest = *maxima.add(slice);
            for i in 0..set {
                let scale = scales[i].assume_init().min(largest);
                scales[slice * set + i].write(scale);
            }
        }
    }
    set * extent
}
