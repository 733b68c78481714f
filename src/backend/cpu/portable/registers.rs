//! What the kernels have in common that keep a chunk in registers from load to store: parameters and
//! gradients, and states in f32, or in 4 bits in blocks of a chunk, rounded to nearest or at random.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;

use super::run::{Run, draws, load_run, store_run};
use super::weights::{load_weights, store_weights};
use super::{AHEAD, prefetch};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{
    CHUNK, CellTable, Chunk, Lanes, PACKED, SHORT_OF_16, Vector, load, store,
};
use crate::backend::cpu::reference::block_scale;
use crate::dtype::Dtype;
use crate::layout::{div_ceil, index};
use crate::plan::{Codes, Scales, TensorPlan};
use crate::quant::{Cells, Rounding};
use crate::rng::Purpose;
use crate::step::Buffer;
use crate::weights::Weights;

/// What an update alone is taken from: -0 less a number is its negative, exactly.
static NOTHING: Chunk = Chunk([-0.0; CHUNK]);

/// Memory for what is not used where it lies: numbers that are not f32, and the end of a row, which
/// goes on in zeros up to a chunk.
pub(super) struct Work {
    pub(super) p: Chunk,
    pub(super) g: Chunk,
    pub(super) states: [Room; 2],
}

impl Work {
    pub(super) const EMPTY: Self = Self {
        p: Chunk::ZERO,
        g: Chunk::ZERO,
        states: [Room::EMPTY; 2],
    };
}

/// The end of a row of a state.
pub(super) struct Room {
    values: Chunk,
    codes: [u8; CHUNK / 2],
    /// Scales of the columns, old and new.
    pub(super) columns: [Chunk; 2],
}

impl Room {
    pub(super) const EMPTY: Self = Self {
        values: Chunk::ZERO,
        codes: [0; CHUNK / 2],
        columns: [Chunk::ZERO; 2],
    };

    /// The values of a run, for a whole chunk.
    ///
    /// # Safety
    /// They can be read.
    #[inline(always)]
    pub(super) unsafe fn chunk(&mut self, values: *mut f32, run: Run) -> *mut f32 {
        if run.len == CHUNK {
            return values;
        }
        // SAFETY: the caller's promise.
        let values = unsafe { std::slice::from_raw_parts(values, run.len) };
        self.values[..run.len].copy_from_slice(values);
        self.values.as_mut_ptr()
    }

    /// Where codes of four bits of a run can be read and written, for whole chunks, given those of its row.
    ///
    /// # Safety
    /// The run lies in the row.
    #[inline(always)]
    pub(super) unsafe fn codes(&mut self, row: *mut u8, run: Run) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = row.add(run.col / 2);
            if run.len.is_multiple_of(CHUNK) {
                return codes;
            }
            std::ptr::copy_nonoverlapping(codes, self.codes.as_mut_ptr(), run.len.div_ceil(2));
        }
        self.codes.as_mut_ptr()
    }
}

/// Brings codes of four bits of a run of at most a chunk to where they belong.
///
/// # Safety
/// The run lies in the row; the codes are [`Room::codes`].
#[inline(always)]
pub(super) unsafe fn close_codes(row: *mut u8, run: Run, codes: *mut u8) {
    // SAFETY: the caller's promise; the room has a chunk's codes.
    unsafe {
        if run.len < CHUNK {
            if run.len % 2 == 1 {
                // Behind a row's end codes are 0.
                *codes.add(run.len / 2) &= 0xf;
            }
            std::ptr::copy_nonoverlapping(codes, row.add(run.col / 2), run.len.div_ceil(2));
        }
    }
}

/// What is done to the chunks of a tensor.
///
/// # Safety
/// Runs are of at most a chunk and lie in the tensor.
pub(super) trait Kernel<L: Lanes> {
    /// Called for the first run of each row.
    unsafe fn enter(&mut self, call: &TensorCall<'_>, run: Run);
    /// Updates a run; returns 1 if it was skipped. `F32_IN_PLACE` as in [`gradient`].
    unsafe fn chunk<const F32_IN_PLACE: bool>(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        work: &mut Work,
    ) -> i64;
}

/// Updates units of at most a chunk; returns how many were skipped.
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
    unsafe {
        if is_f32_in_place(call) {
            chunks::<L, K, true>(call, units, kernel)
        } else {
            chunks::<L, K, false>(call, units, kernel)
        }
    }
}

#[inline(always)]
unsafe fn chunks<L: Lanes, K: Kernel<L>, const F32_IN_PLACE: bool>(
    call: &TensorCall<'_>,
    units: Range<i64>,
    mut kernel: K,
) -> i64 {
    let mut work = Work::EMPTY;
    let mut skipped = 0;
    let mut row = usize::MAX;
    for run in Run::of_units(&call.tensor.grid, units) {
        // SAFETY: the run lies in the tensor.
        skipped += unsafe {
            if run.row != row {
                kernel.enter(call, run);
                row = run.row;
            }
            if run.len == CHUNK {
                // So that the compiler knows it.
                let run = Run { len: CHUNK, ..run };
                kernel.chunk::<F32_IN_PLACE>(call, run, &mut work)
            } else {
                kernel.chunk::<false>(call, run, &mut work)
            }
        };
    }
    skipped
}

/// Whether parameters and gradients are f32 and updated where they are.
pub(super) fn is_f32_in_place(call: &TensorCall<'_>) -> bool {
    let info = &call.tensor.info;
    let f32 = info.param_dtype == Dtype::F32 && info.grad_dtype == Dtype::F32;
    f32 && call.weight.form == Weights::Plain && call.in_place()
}

/// Where the gradient of a run of at most a chunk is. `f32_in_place` says that it is used where it lies
/// ([`is_f32_in_place`]), and that the run is a whole chunk.
#[inline(always)]
pub(super) unsafe fn gradient<L: Lanes>(
    call: &TensorCall<'_>,
    run: Run,
    g: &mut Chunk,
    f32_in_place: bool,
) -> *const f32 {
    let info = &call.tensor.info;
    // SAFETY: the caller's run lies in the tensor.
    unsafe {
        if f32_in_place {
            prefetch::<L>(call.weight.data, size_of::<f32>(), run, AHEAD);
            prefetch::<L>(call.grad, size_of::<f32>(), run, AHEAD);
            return call.grad.cast::<f32>().add(run.first);
        }
        prefetch::<L>(call.weight.data, info.param_dtype.size(), run, AHEAD);
        prefetch::<L>(call.grad, info.grad_dtype.size(), run, AHEAD);
        load_run::<L>(call.grad, info.grad_dtype, run, g);
    }
    g.as_ptr()
}

/// Whether the square of any gradient of a chunk is not finite.
#[inline(always)]
pub(super) unsafe fn any_square_not_finite<V: Vector>(gradient: *const f32, grad_scale: V) -> bool {
    // SAFETY: the caller's gradients.
    unsafe {
        // Zero, or NaN if a square is not finite.
        let zero = V::splat(0.0);
        let mut sum = zero;
        for at in (0..CHUNK).step_by(V::WIDTH) {
            let g = V::load(gradient.add(at)).mul(grad_scale);
            sum = g.mul(g).mul_add(zero, sum);
        }
        sum.any_nan()
    }
}

/// Where a run's parameters are, to be replaced by the result, and what the update is taken from.
#[inline(always)]
pub(super) unsafe fn parameters<L: Lanes>(
    call: &TensorCall<'_>,
    run: Run,
    p: &mut Chunk,
    f32_in_place: bool,
) -> (*mut f32, *const f32) {
    // SAFETY: the caller's run lies in the tensor.
    unsafe {
        if f32_in_place {
            let p = call.weight.data.cast::<f32>().add(run.first);
            return (p, p.cast_const());
        }
        load_weights::<L>(call, run, p);
        let p = p.as_mut_ptr();
        let base = if call.in_place() {
            p.cast_const()
        } else {
            NOTHING.as_ptr()
        };
        (p, base)
    }
}

/// Brings a run's result to where it belongs.
#[inline(always)]
pub(super) unsafe fn store_result<L: Lanes>(
    call: &TensorCall<'_>,
    run: Run,
    result: *const f32,
    f32_in_place: bool,
) {
    if f32_in_place {
        return;
    }
    // SAFETY: the caller's run lies in the tensor; the result is in a chunk.
    unsafe {
        let chunk = &*result.cast::<Chunk>();
        if call.in_place() {
            store_weights::<L>(call, run, chunk);
        } else {
            store_run::<L>(call.update, call.tensor.info.param_dtype, run, chunk);
        }
    }
}

/// Makes values from an element on zero.
#[inline(always)]
pub(super) unsafe fn clear_behind<V: Vector>(values: &mut V::Registers, len: usize) {
    // SAFETY: the caller's processor has the instructions.
    unsafe {
        let mut chunk = store::<V>(values);
        chunk[len..].fill(0.0);
        *values = load::<V>(&chunk);
    }
}

/// A state of the tensor as a kernel sees it.
///
/// # Safety
/// Runs are of at most a chunk and lie in the tensor.
pub(super) trait Moment<L: Lanes> {
    /// What decoding a run needs.
    type Open: Copy;

    /// Of a run's new values.
    type Scale: Copy;

    /// Whether the values are the new ones already.
    const IS_NEW: bool = false;

    /// Called for the first run of each row.
    unsafe fn enter(&mut self, call: &TensorCall<'_>, run: Run);
    /// A run that is not a whole chunk is read from the room.
    unsafe fn open(&self, run: Run, room: &mut Room) -> Self::Open;
    /// The values of a register from element `at` of the run on. Those behind the run are of any
    /// finite value.
    unsafe fn decode(&self, open: Self::Open, at: usize) -> L::Vector;
    /// The scale of the new values, stored, given the largest magnitude in each lane. Taken as soon as
    /// that is known: their codes wait for it.
    unsafe fn rescale(&self, run: Run, largest: L::Vector) -> Self::Scale;
    /// Stores the new values under their scale; `usual` says that none is negative, infinite or NaN. Those
    /// behind the run are zero.
    unsafe fn close(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        open: Self::Open,
        values: &<L::Vector as Vector>::Registers,
        scale: Self::Scale,
        usual: bool,
    );
}

/// Stores a first moment, given the largest magnitudes of its registers' lanes.
///
/// # Safety
/// The run lies in the tensor; `open` is of it.
#[inline(always)]
pub(super) unsafe fn close_moment<L: Lanes, M: Moment<L>>(
    call: &TensorCall<'_>,
    run: Run,
    m: &M,
    open: M::Open,
    new: &mut <L::Vector as Vector>::Registers,
    mut largest: L::Vector,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if run.len < CHUNK {
            clear_behind::<L::Vector>(new, run.len);
            largest = L::Vector::splat(0.0);
            for m in new.as_ref() {
                largest = largest.largest(*m);
            }
        }
        let scale = m.rescale(run, largest);
        m.close(call, run, open, new, scale, false);
    }
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
        unsafe { room.chunk(self.0.add(run.first), run) }
    }

    #[inline(always)]
    unsafe fn decode(&self, values: *mut f32, at: usize) -> L::Vector {
        // SAFETY: as above.
        unsafe { L::Vector::load(values.add(at)) }
    }

    #[inline(always)]
    unsafe fn rescale(&self, _: Run, _: L::Vector) {}

    #[inline(always)]
    unsafe fn close(
        &self,
        _: &TensorCall<'_>,
        run: Run,
        to: *mut f32,
        values: &<L::Vector as Vector>::Registers,
        (): (),
        _: bool,
    ) {
        // SAFETY: as above.
        unsafe {
            for (j, value) in values.as_ref().iter().enumerate() {
                value.canonical().store(to.add(j * L::Vector::WIDTH));
            }
            if run.len < CHUNK {
                std::ptr::copy_nonoverlapping(to, self.0.add(run.first), run.len);
            }
        }
    }
}

/// The codes of a tensor's rows, and what they stand for.
#[derive(Clone, Copy)]
pub(super) struct Rows<V: Vector> {
    /// Of the tensor's first row.
    first: *mut u8,
    bytes: usize,
    pub(super) levels: V::Table,
    midpoints: V::Table,
    /// The midpoint below each code, and one below everything.
    pub(super) below: V::Table,
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
                levels: V::table(&codes.table.first()),
                midpoints: V::table(&midpoints),
                below: V::table(&below),
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

    /// Stores the codes of a chunk by cells.
    #[inline(always)]
    unsafe fn pick(values: &V::Registers, factor: V, cells: V::Cells, codes: *mut u8) {
        // SAFETY: the caller's memory has room for them.
        unsafe {
            for (i, values) in values.as_ref().chunks_exact(PACKED).enumerate() {
                let mut packed = V::unpacked();
                for x in values {
                    packed = V::pack(packed, cells.pick::<false>(*x, factor));
                }
                V::store_packed(packed, codes.add(i * PACKED * V::WIDTH / 2));
            }
        }
    }

    /// Stores the codes of a chunk that are the numbers of thresholds passed.
    #[inline(always)]
    unsafe fn search(values: &V::Registers, thresholds: &V::Thresholds, codes: *mut u8) {
        // SAFETY: the caller's memory has room for them.
        unsafe {
            for (i, values) in values.as_ref().chunks_exact(PACKED).enumerate() {
                let mut packed = V::unpacked();
                for x in values {
                    packed = V::pack(packed, x.search::<false>(thresholds));
                }
                V::store_packed(packed, codes.add(i * PACKED * V::WIDTH / 2));
            }
        }
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
    /// The codes, and what they stand for.
    type Open = (*mut u8, <L::Vector as Vector>::Table);

    /// And its reciprocal, 0 if it is 0.
    type Scale = (f32, f32);

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
            let levels = L::Vector::scale(self.rows.levels, scale);
            (room.codes(self.row, run), levels)
        }
    }

    #[inline(always)]
    unsafe fn decode(&self, (codes, levels): Self::Open, at: usize) -> L::Vector {
        // SAFETY: as above.
        unsafe { L::Vector::decode(levels, codes.add(at / 2)) }
    }

    #[inline(always)]
    unsafe fn rescale(&self, run: Run, largest: L::Vector) -> (f32, f32) {
        // SAFETY: as above.
        let scale = unsafe {
            let scale = block_scale(largest.reduce_largest());
            *self.scales.add(run.col / CHUNK) = scale;
            scale
        };
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        (scale, inverse)
    }

    #[inline(always)]
    unsafe fn close(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        (codes, _): Self::Open,
        values: &<L::Vector as Vector>::Registers,
        (scale, inverse): (f32, f32),
        usual: bool,
    ) {
        // SAFETY: as above.
        unsafe {
            if self.codes.rounding == Rounding::Stochastic {
                let draws = draws(call, Purpose::State(self.state), run);
                let values = store::<L::Vector>(values);
                L::round_block(&values, scale, usual, &self.codes.table, &draws, codes);
                return close_codes(self.row, run, codes);
            }
            let scale_all = L::Vector::splat(scale);
            let factor = SHORT_OF_16 * inverse;
            if usual && self.codes.table.linear == Some(16.0) && factor.is_finite() {
                // As in `RankOne`; a finite factor means a scale that is not subnormal. Where all values are 0,
                // so are their codes.
                let factor = L::Vector::splat(factor);
                let below = L::Vector::scale(self.rows.below, scale_all);
                for (i, values) in values.as_ref().chunks_exact(PACKED).enumerate() {
                    let mut packed = L::Vector::unpacked();
                    for x in values {
                        packed =
                            L::Vector::pack(packed, x.decide::<false>(*x, factor, below, None));
                    }
                    let to = codes.add(i * PACKED * L::Vector::WIDTH / 2);
                    L::Vector::store_packed(packed, to);
                }
            } else if let Some(cells) = self.rows.cells
                && inverse > 0.0
                && factor.is_finite()
            {
                let cells = cells.scale(scale_all);
                let factor = L::Vector::splat(Cells::FACTOR * inverse);
                Rows::<L::Vector>::pick(values, factor, cells, codes);
            } else {
                let scaled = L::Vector::scale(self.rows.midpoints, scale_all);
                let thresholds = L::Vector::thresholds(scaled);
                Rows::<L::Vector>::search(values, &thresholds, codes);
            }
            close_codes(self.row, run, codes);
        }
    }
}
