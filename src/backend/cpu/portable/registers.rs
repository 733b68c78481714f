//! What the kernels have in common that take a chunk a register at a time: parameters and
//! gradients, and states in f32, or in 4 bits in blocks of a chunk, rounded to nearest or at random.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::marker::PhantomData;
use std::ops::Range;

use super::elements::{Elements, Kind, with_elements};
use super::run::{Run, draws};
use super::skip;
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{
    Beside, CHUNK, CellTable, Chunk, Compiled, Decided, EvenTable, Lanes, Picked, Random,
    SHORT_OF_16, Searched, Vector, code, load, load_few,
};
use crate::layout::{div_ceil, index};
use crate::plan::{Codes, Scales, TensorPlan};
use crate::quant::{Cells, Rounding};
use crate::rng::Purpose;
use crate::step::Buffer;

/// Memory for what is not used where it lies: numbers that are not f32, and the end of a row, which
/// goes on in zeros up to a chunk.
pub(super) struct Work {
    pub(super) p: Chunk,
    pub(super) g: Chunk,
    pub(super) random: Random,
    /// The new values of the states, zeros behind the run.
    pub(super) new: [Chunk; 2],
    pub(super) quotients: Chunk,
    pub(super) states: [Room; 2],
}

impl Work {
    pub(super) const EMPTY: Self = Self {
        p: Chunk::ZERO,
        g: Chunk::ZERO,
        random: Random::ZERO,
        new: [Chunk::ZERO; 2],
        quotients: Chunk::ZERO,
        states: [Room::EMPTY; 2],
    };
}

/// The end of a row of a state.
pub(super) struct Room {
    values: Chunk,
    codes: [u8; CHUNK / 2],
    /// Scales of the columns, old and new.
    pub(super) columns: [Chunk; 2],
    /// [`super::inverses::Inverse`] of the new ones.
    pub(super) inverses: Chunk,
}

impl Room {
    pub(super) const EMPTY: Self = Self {
        values: Chunk::ZERO,
        codes: [0; CHUNK / 2],
        columns: [Chunk::ZERO; 2],
        inverses: Chunk::ZERO,
    };

    /// The values of a run, for a whole chunk.
    ///
    /// # Safety
    /// They can be read.
    #[inline(always)]
    pub(super) unsafe fn chunk<L: Lanes>(&mut self, values: *mut f32, run: Run) -> *mut f32 {
        if run.len == CHUNK {
            return values;
        }
        let copy = self.values.as_mut_ptr();
        // SAFETY: the caller's promise.
        unsafe { L::read::<{ 4 * CHUNK }>(values.cast(), run.len * 4, copy.cast()) };
        copy
    }

    /// Where codes of four bits of a run can be read and written, for whole chunks, given those of its row.
    ///
    /// # Safety
    /// The run lies in the row.
    #[inline(always)]
    pub(super) unsafe fn codes<L: Lanes>(&mut self, row: *mut u8, run: Run) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = row.add(run.col / 2);
            if run.len.is_multiple_of(CHUNK) {
                return codes;
            }
            L::read::<{ CHUNK / 2 }>(codes, run.len.div_ceil(2), self.codes.as_mut_ptr());
        }
        self.codes.as_mut_ptr()
    }
}

/// Brings codes of four bits of a run of at most a chunk to where they belong.
///
/// # Safety
/// The run lies in the row; the codes are [`Room::codes`].
#[inline(always)]
pub(super) unsafe fn close_codes<L: Lanes>(row: *mut u8, run: Run, codes: *mut u8) {
    // SAFETY: the caller's promise; the room has a chunk's codes.
    unsafe {
        if run.len < CHUNK {
            if run.len % 2 == 1 {
                // Behind a row's end codes are 0.
                *codes.add(run.len / 2) &= 0xf;
            }
            L::write::<{ CHUNK / 2 }>(codes, row.add(run.col / 2), run.len.div_ceil(2));
        }
    }
}

/// What is done to the chunks of a tensor, in two halves: the first makes a run's new states, and the second
/// stores them under their scales.
///
/// # Safety
/// Runs lie in the tensor and, but for a row's, are of at most a chunk.
pub(super) trait Kernel<L: Lanes> {
    /// What the first half leaves to the second, beside [`Work`].
    type Left: Copy;

    /// Called for each row, before the first half of its first run; `run` is all that is to be updated of it.
    unsafe fn enter(&mut self, call: &TensorCall<'_>, run: Run);
    /// Returns what is left of the run, or `None` if it was skipped.
    unsafe fn first<E: Elements<L>>(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        work: &mut Work,
    ) -> Option<Self::Left>;
    unsafe fn second<E: Elements<L>>(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        work: &mut Work,
        left: Self::Left,
    );
    /// The first half of a run and the second of one before it, if there is one.
    #[inline(always)]
    unsafe fn both<E: Elements<L>>(
        &self,
        call: &TensorCall<'_>,
        (run, work): (Run, &mut Work),
        before: Option<(Run, &mut Work, Self::Left)>,
    ) -> Option<Self::Left> {
        // SAFETY: the caller's promise.
        unsafe {
            let left = self.first::<E>(call, run, work);
            if let Some((run, work, left)) = before {
                self.second::<E>(call, run, work, left);
            }
            left
        }
    }
}

/// Updates units of a chunk; returns how many were skipped.
///
/// # Safety
/// As for [`super::apply`].
#[inline(always)]
pub(super) unsafe fn step<L: Lanes, K: Kernel<L>>(
    call: &TensorCall<'_>,
    units: Range<i64>,
    kernel: K,
) -> i64 {
    // SAFETY: the caller's promise.
    unsafe { with_elements!(Kind::of(call), E => step_on::<L, K, E>(call, units, kernel)) }
}

/// [`step`] on elements of one kind.
///
/// # Safety
/// As for [`super::apply`].
#[inline(always)]
pub(super) unsafe fn step_on<L: Lanes, K: Kernel<L>, E: Elements<L>>(
    call: &TensorCall<'_>,
    units: Range<i64>,
    kernel: K,
) -> i64 {
    // SAFETY: the caller's promise.
    unsafe {
        L::run(Chunks {
            call,
            units,
            kernel,
            kinds: PhantomData::<(L, E)>,
        })
    }
}

/// Units of a tensor that are of a chunk.
struct Chunks<'a, L, K, E> {
    call: &'a TensorCall<'a>,
    units: Range<i64>,
    kernel: K,
    kinds: PhantomData<(L, E)>,
}

impl<L: Lanes, K: Kernel<L>, E: Elements<L>> Compiled for Chunks<'_, L, K, E> {
    type Output = i64;

    /// The second half of a chunk goes with the first one of the next: what waits for a scale, or for a root
    /// and a quotient, has something beside it that does not.
    #[inline(always)]
    unsafe fn run(self) -> i64 {
        let Self {
            call,
            units,
            mut kernel,
            ..
        } = self;
        let mut works = [Work::EMPTY; 2];
        let [mut here, mut there] = works.each_mut();
        // The run before, of no elements if nothing is left of it: the compiler may look at its length first.
        let (mut last, mut before) = (Run::NONE, None);
        let mut skipped = 0;
        for row in Run::of_rows(&call.tensor.grid, units) {
            // SAFETY: the runs lie in the tensor.
            unsafe { kernel.enter(call, row) };
            for run in row.parts(CHUNK) {
                // SAFETY: as above.
                let left = unsafe {
                    match before {
                        Some(left) if run.len == CHUNK && last.len == CHUNK => {
                            // So that the compiler knows it.
                            let first = (Run { len: CHUNK, ..run }, &mut *here);
                            let second = (Run { len: CHUNK, ..last }, &mut *there, left);
                            kernel.both::<E>(call, first, Some(second))
                        }
                        _ => {
                            let second = before.map(|left| (last, &mut *there, left));
                            kernel.both::<E>(call, (run, here), second)
                        }
                    }
                };
                skipped += i64::from(left.is_none());
                last = if left.is_some() { run } else { Run::NONE };
                before = left;
                std::mem::swap(&mut here, &mut there);
            }
        }
        if let Some(left) = before {
            // SAFETY: as above.
            unsafe { kernel.second::<E>(call, last, there, left) };
        }
        skipped
    }
}

/// Skips a run if that is wanted and the square of a gradient is not finite; returns whether it did.
#[inline(always)]
pub(super) unsafe fn skips<L: Lanes, E: Elements<L>>(
    call: &TensorCall<'_>,
    run: Run,
    gradients: E::Gradients,
) -> bool {
    // SAFETY: the caller's run lies in the tensor.
    unsafe {
        let skips = call.skip_blocks && E::any_non_finite(call, run, gradients);
        if skips {
            skip(call, run);
        }
        skips
    }
}

/// The largest magnitudes of a chunk in each lane.
#[inline(always)]
pub(super) unsafe fn largest_of<V: Vector>(values: &Chunk) -> V {
    // SAFETY: as above.
    unsafe {
        let mut largest = V::splat(0.0);
        for x in load::<V>(values).as_ref() {
            largest = largest.largest(*x);
        }
        largest
    }
}

/// A state of the tensor as a kernel sees it.
///
/// # Safety
/// As for [`Kernel`].
pub(super) trait Moment<L: Lanes> {
    /// What decoding a run needs.
    type Open: Copy;

    /// Of a run's new values.
    type Scale: Copy;

    /// Whether the values are the new ones already.
    const IS_NEW: bool = false;

    /// Whether a pass over the gradients has gone before.
    const COLLECTED: bool = false;

    /// Called for each row, as [`Kernel::enter`].
    unsafe fn enter(&mut self, call: &TensorCall<'_>, run: Run);
    /// A run that is not a whole chunk is read from the room.
    unsafe fn open(&self, run: Run, room: &mut Room) -> Self::Open;
    /// The values of a few registers from element `at` of the run on. Those behind the run are of any
    /// finite value.
    unsafe fn decode(&self, open: Self::Open, at: usize) -> <L::Vector as Vector>::Few;
    /// Whether no new value is negative, infinite or NaN, as far as is known, given the highest one in each lane.
    #[inline(always)]
    unsafe fn is_usual(&self, open: Self::Open, highest: L::Vector) -> bool {
        let _ = open;
        // SAFETY: the kernels are used on processors that have the instructions.
        unsafe { highest.all_usual() }
    }
    /// The scale of the new values, stored, given the largest magnitude in each lane. Taken as soon as
    /// that is known: their codes wait for it.
    unsafe fn rescale(&self, run: Run, largest: L::Vector) -> Self::Scale;
    /// Stores the new values under their scale. Another row may have been entered. All that is to be done
    /// beside is.
    unsafe fn close(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        open: Self::Open,
        values: Updated<'_>,
        scale: Self::Scale,
        beside: impl Beside<L::Vector>,
    );
}

/// A run's new values.
#[derive(Clone, Copy)]
pub(super) struct Updated<'a> {
    /// Those behind the run are zero.
    pub(super) values: &'a Chunk,
    /// Whether none is negative, infinite or NaN, as far as is known.
    pub(super) usual: bool,
}

impl<'a> Updated<'a> {
    /// Of which nothing is known.
    pub(super) fn any(values: &'a Chunk) -> Self {
        let usual = false;
        Self { values, usual }
    }
}

/// A state without scales.
///
/// # Safety
/// As for [`Moment`].
pub(super) trait Values<L: Lanes>: Moment<L> {
    /// Stores new values from element `at` of the run on.
    unsafe fn put(&self, open: Self::Open, x: L::Vector, at: usize);
    /// Ends a run whose values are all stored.
    unsafe fn end(&self, run: Run, open: Self::Open);
}

/// A state in f32.
pub(super) struct Plain(*mut f32);

impl Plain {
    pub(super) fn of(call: &TensorCall<'_>, state: usize) -> Self {
        Self(call.state_buffers(state)[0].data.cast())
    }
}

impl<L: Lanes> Moment<L> for Plain {
    type Open = *mut f32;
    type Scale = ();

    #[inline(always)]
    unsafe fn enter(&mut self, _: &TensorCall<'_>, _: Run) {}

    #[inline(always)]
    unsafe fn open(&self, run: Run, room: &mut Room) -> *mut f32 {
        // SAFETY: the caller's run lies in the tensor.
        unsafe { room.chunk::<L>(self.0.add(run.first), run) }
    }

    #[inline(always)]
    unsafe fn decode(&self, values: *mut f32, at: usize) -> <L::Vector as Vector>::Few {
        // SAFETY: as above.
        unsafe { load_few::<L::Vector>(values.add(at)) }
    }

    #[inline(always)]
    unsafe fn rescale(&self, _: Run, _: L::Vector) {}

    #[inline(always)]
    unsafe fn close(
        &self,
        _: &TensorCall<'_>,
        run: Run,
        to: *mut f32,
        Updated { values, .. }: Updated<'_>,
        (): (),
        beside: impl Beside<L::Vector>,
    ) {
        // SAFETY: as above.
        unsafe {
            beside.all(1);
            for (j, x) in load::<L::Vector>(values).as_ref().iter().enumerate() {
                Values::<L>::put(self, to, *x, j * L::Vector::WIDTH);
            }
            Values::<L>::end(self, run, to);
        }
    }
}

impl<L: Lanes> Values<L> for Plain {
    #[inline(always)]
    unsafe fn put(&self, to: *mut f32, x: L::Vector, at: usize) {
        // SAFETY: the caller's register lies in the chunk.
        unsafe { x.canonical().store(to.add(at)) };
    }

    #[inline(always)]
    unsafe fn end(&self, run: Run, to: *mut f32) {
        if run.len < CHUNK {
            // SAFETY: the caller's run lies in the tensor.
            unsafe {
                L::write::<{ 4 * CHUNK }>(to.cast(), self.0.add(run.first).cast(), run.len * 4)
            };
        }
    }
}

/// The codes of a tensor's rows, and what they stand for.
#[derive(Clone, Copy)]
pub(super) struct Rows<V: Vector> {
    /// Of the tensor's first row.
    first: *mut u8,
    bytes: usize,
    pub(super) levels: V::Levels,
    midpoints: V::Thresholds,
    /// The midpoint below each code, and one below everything.
    pub(super) below: V::Even,
    cells: Option<V::Cells>,
}

impl<V: Vector> Rows<V> {
    /// `None` unless the codes are of four bits and rounded to nearest or at random without more.
    #[inline(always)]
    pub(super) unsafe fn of(tensor: &TensorPlan, codes: &Codes, buffer: Buffer) -> Option<Self> {
        if codes.per_byte != 2
            || !matches!(codes.rounding, Rounding::Nearest | Rounding::Stochastic)
            || codes.scale_correction
            || codes.dither.is_some()
        {
            return None;
        }
        let mut midpoints = [f32::INFINITY; 16];
        midpoints[..codes.table.midpoints.len()].copy_from_slice(&codes.table.midpoints);
        let mut below = [f32::NEG_INFINITY; 16];
        below[1..].copy_from_slice(&midpoints[..15]);
        // SAFETY: the kernels are used on processors that have the instructions.
        unsafe {
            Some(Self {
                first: buffer.data.cast(),
                bytes: index(tensor.grid.code_bytes(codes.per_byte)),
                levels: V::levels(&codes.table.first()),
                midpoints: V::thresholds(&midpoints),
                below: V::Even::new(&below),
                cells: match &codes.table.cells {
                    Some(cells) => V::Cells::new(cells),
                    None => None,
                },
            })
        }
    }

    /// The codes of a row.
    #[inline(always)]
    pub(super) fn at(&self, row: usize) -> *mut u8 {
        self.first.wrapping_add(row * self.bytes)
    }
}

/// A state of four bits in blocks of a chunk.
pub(super) struct Blocks<'a, V: Vector> {
    codes: &'a Codes,
    state: usize,
    rows: Rows<V>,
    /// The scales of the tensor's first row, and how many a row has.
    first: *mut f32,
    in_row: usize,
    /// Codes and scales of the row.
    row: *mut u8,
    scales: *mut f32,
}

impl<'a, V: Vector> Blocks<'a, V> {
    #[inline(always)]
    pub(super) unsafe fn of(call: &TensorCall<'_>, state: usize, codes: &'a Codes) -> Option<Self> {
        if codes.scales != Scales::Block(CHUNK as i64) {
            return None;
        }
        let buffers = call.state_buffers(state);
        Some(Self {
            codes,
            state,
            // SAFETY: the caller's promise.
            rows: unsafe { Rows::of(call.tensor, codes, buffers[0]) }?,
            first: buffers[1].data.cast(),
            in_row: index(div_ceil(call.tensor.grid.cols, CHUNK as i64)),
            row: std::ptr::null_mut(),
            scales: std::ptr::null_mut(),
        })
    }
}

impl<L: Lanes> Moment<L> for Blocks<'_, L::Vector> {
    type Open = Opened<L::Vector>;

    /// In every lane, and its reciprocal.
    type Scale = (L::Vector, L::Vector);

    #[inline(always)]
    unsafe fn enter(&mut self, _: &TensorCall<'_>, run: Run) {
        self.row = self.rows.at(run.row);
        self.scales = self.first.wrapping_add(run.row * self.in_row);
    }

    #[inline(always)]
    unsafe fn open(&self, run: Run, room: &mut Room) -> Self::Open {
        // SAFETY: the caller's run lies in the row.
        unsafe {
            let scale = L::Vector::splat(*self.scales.add(run.col / CHUNK));
            Opened {
                row: self.row,
                codes: room.codes::<L>(self.row, run),
                levels: L::Vector::scale_levels(self.rows.levels, scale),
            }
        }
    }

    #[inline(always)]
    unsafe fn decode(&self, open: Self::Open, at: usize) -> <L::Vector as Vector>::Few {
        // SAFETY: as above.
        unsafe { L::Vector::decode(open.levels, open.codes.add(at / 2)) }
    }

    #[inline(always)]
    unsafe fn rescale(&self, run: Run, largest: L::Vector) -> Self::Scale {
        // SAFETY: as above.
        unsafe {
            let scale = largest.block_scale();
            *self.scales.add(run.col / CHUNK) = scale.first();
            (scale, scale.inverse())
        }
    }

    #[inline(always)]
    unsafe fn close(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        Opened { row, codes, .. }: Self::Open,
        Updated { values, usual }: Updated<'_>,
        (scale, inverse): Self::Scale,
        beside: impl Beside<L::Vector>,
    ) {
        // SAFETY: as above.
        unsafe {
            if self.codes.rounding == Rounding::Stochastic {
                let draws = draws(call, Purpose::State(self.state), run);
                let table = &self.codes.table;
                beside.all(1);
                let scale = scale.first();
                if scale > 0.0 {
                    L::round_block(values, scale, usual, table, &draws, codes);
                } else {
                    // 0 or NaN.
                    std::ptr::write_bytes(codes, 0, CHUNK / 2);
                }
                return close_codes::<L>(row, run, codes);
            }
            let factor = L::Vector::splat(SHORT_OF_16).mul(inverse);
            // Of a scale that is neither 0 nor subnormal.
            let finite = factor.first().is_finite();
            if finite && usual && self.codes.table.linear == Some(16.0) {
                let thresholds = self.rows.below.scale(scale);
                let decided = Decided::<_, false> { factor, thresholds };
                code::<L::Vector, _>(values, decided, beside, codes);
            } else if let Some(cells) = self.rows.cells
                && finite
            {
                let factor = L::Vector::splat(Cells::FACTOR).mul(inverse);
                let cells = cells.scale(scale);
                code::<L::Vector, _>(values, Picked::<_, false> { factor, cells }, beside, codes);
            } else {
                let midpoints = L::Vector::scale_thresholds(self.rows.midpoints, scale);
                let searched = Searched::<_, false>(midpoints);
                code::<L::Vector, _>(values, searched, beside, codes);
            }
            close_codes::<L>(row, run, codes);
        }
    }
}

/// A run's codes.
#[derive(Clone, Copy)]
pub(super) struct Opened<V: Vector> {
    /// Those of its row.
    row: *mut u8,
    /// Its own, for whole chunks, and what they stand for.
    codes: *mut u8,
    levels: V::Levels,
}
