//! AdamW without options on units of a chunk, in registers from load to store, for the states that most
//! parameters have: f32, and 4 bits, rounded to nearest or at random, in blocks of a chunk or under rank-1
//! scales.
//! What else there is takes the way of [`super::apply_unit`], to the same bits.
//!
//! Rounding steps are numbered as in `optimizer/adamw.rs`.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;

use super::collect::Part;
use super::decode::Source;
use super::encode::encode_unit;
use super::maxima::Columns;
use super::run::{Run, draws, load_run, store_run};
use super::weights::{load_weights, store_weights};
use super::{AHEAD, prefetch, skip};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{
    CHUNK, Chunk, Lanes, PACKED, SHORT_OF_16, Vector, load, registers, store,
};
use crate::backend::cpu::reference::block_scale;
use crate::dtype::Dtype;
use crate::layout::{div_ceil, index};
use crate::numerics::Scalars;
use crate::optimizer::Update;
use crate::plan::{Codes, Format, MAX_AXES, Maxima, Scales, TensorPlan};
use crate::quant::Rounding;
use crate::rng::Purpose;
use crate::step::Buffer;
use crate::weights::Weights;

/// Updates units of at most a chunk; returns how many were skipped, or `None` for a tensor that this is
/// not for.
///
/// # Safety
/// As for [`super::apply`].
#[inline(always)]
pub(super) unsafe fn in_registers<L: Lanes>(
    call: &TensorCall<'_>,
    units: Range<i64>,
) -> Option<i64> {
    let Update::Adamw(rule) = &call.rule else {
        return None;
    };
    let scalars = rule.plain()?;
    let scalars = scalars.scalars();
    let [m, v] = call.tensor.states.as_slice() else {
        return None;
    };
    // SAFETY: the caller's promise; the formats are the states'.
    unsafe {
        match (&m.format, &v.format) {
            (Format::F32, Format::F32) => {
                let (m, v) = (Plain::of(call, 0), Plain::of(call, 1));
                Some(step::<L, _, _>(call, scalars, units, m, v))
            }
            (Format::Codes(m), Format::Codes(v)) => {
                let m = Blocks::<L::Vector>::of(call, 0, m)?;
                if let Some(v) = Blocks::of(call, 1, v) {
                    return Some(step::<L, _, _>(call, scalars, units, m, v));
                }
                let v = RankOne::of(call, 1, v)?;
                Some(step::<L, _, _>(call, scalars, units, m, v))
            }
            _ => None,
        }
    }
}

#[inline(always)]
unsafe fn step<L: Lanes, M: Moment<L>, V: Moment<L>>(
    call: &TensorCall<'_>,
    scalars: &Scalars,
    units: Range<i64>,
    m: M,
    v: V,
) -> i64 {
    let info = &call.tensor.info;
    let f32 = info.param_dtype == Dtype::F32 && info.grad_dtype == Dtype::F32;
    // SAFETY: the caller's promise.
    unsafe {
        if f32 && call.weight.form == Weights::Plain && call.in_place() {
            chunks::<L, M, V, true>(call, scalars, units, m, v)
        } else {
            chunks::<L, M, V, false>(call, scalars, units, m, v)
        }
    }
}

/// See [`chunk`].
#[inline(always)]
unsafe fn chunks<L: Lanes, M: Moment<L>, V: Moment<L>, const F32_IN_PLACE: bool>(
    call: &TensorCall<'_>,
    scalars: &Scalars,
    units: Range<i64>,
    mut m: M,
    mut v: V,
) -> i64 {
    let mut work = Work::EMPTY;
    let mut skipped = 0;
    let mut row = usize::MAX;
    for run in Run::of_units(&call.tensor.grid, units) {
        // SAFETY: the run lies in the tensor.
        skipped += unsafe {
            if run.row != row {
                m.enter(call, run);
                v.enter(call, run);
                row = run.row;
            }
            if run.len == CHUNK {
                // So that the compiler knows it.
                let run = Run { len: CHUNK, ..run };
                chunk::<L, M, V, F32_IN_PLACE>(call, scalars, run, &m, &v, &mut work)
            } else {
                chunk::<L, M, V, false>(call, scalars, run, &m, &v, &mut work)
            }
        };
    }
    skipped
}

/// What an update alone is taken from: -0 less a number is its negative, exactly.
static NOTHING: Chunk = Chunk([-0.0; CHUNK]);

/// Memory for what is not used where it lies: numbers that are not f32, and the end of a row, which
/// goes on in zeros up to a chunk.
struct Work {
    p: Chunk,
    g: Chunk,
    states: [Room; 2],
}

impl Work {
    const EMPTY: Self = Self {
        p: Chunk::ZERO,
        g: Chunk::ZERO,
        states: [Room::EMPTY; 2],
    };
}

/// The end of a row of a state.
struct Room {
    values: Chunk,
    codes: [u8; CHUNK / 2],
    /// Scales of the columns, old and new.
    columns: [Chunk; 2],
}

impl Room {
    const EMPTY: Self = Self {
        values: Chunk::ZERO,
        codes: [0; CHUNK / 2],
        columns: [Chunk::ZERO; 2],
    };
}

/// Updates a run of at most one chunk; returns 1 if it was skipped. `F32_IN_PLACE` says that parameters
/// and gradients are f32 and updated where they are, and that the run is a whole chunk.
#[inline(always)]
unsafe fn chunk<L: Lanes, M: Moment<L>, V: Moment<L>, const F32_IN_PLACE: bool>(
    call: &TensorCall<'_>,
    scalars: &Scalars,
    run: Run,
    m: &M,
    v: &V,
    work: &mut Work,
) -> i64 {
    let info = &call.tensor.info;
    let Work {
        p,
        g,
        states: [room_m, room_v],
    } = work;
    // SAFETY: the run lies in the tensor.
    unsafe {
        let gradient = if F32_IN_PLACE {
            prefetch::<L>(call.weight.data, size_of::<f32>(), run, AHEAD);
            prefetch::<L>(call.grad, size_of::<f32>(), run, AHEAD);
            call.grad.cast::<f32>().add(run.first)
        } else {
            prefetch::<L>(call.weight.data, info.param_dtype.size(), run, AHEAD);
            prefetch::<L>(call.grad, info.grad_dtype.size(), run, AHEAD);
            load_run::<L>(call.grad, info.grad_dtype, run, g);
            g.as_ptr()
        };
        let splat = |x| L::Vector::splat(x);
        let (grad_scale, zero) = (splat(call.grad_scale), splat(0.0));
        let (beta1, one_minus_beta1) = (splat(scalars.beta1), splat(scalars.one_minus_beta1));
        let (beta2, one_minus_beta2) = (splat(scalars.beta2), splat(scalars.one_minus_beta2));
        let (inv_sqrt_bc2, eps) = (splat(scalars.inv_sqrt_bc2), splat(scalars.eps));
        let (lr_bc1, lr_wd) = (splat(scalars.lr_bc1), splat(scalars.lr_wd));
        let (old_m, old_v) = (m.open(run, room_m), v.open(run, room_v));
        let (mut new_m, mut new_v) = (L::Vector::ZEROS, L::Vector::ZEROS);
        let (mut largest_m, mut largest_v) = (zero, zero);
        for j in 0..registers::<L::Vector>() {
            let at = j * L::Vector::WIDTH;
            let g = L::Vector::load(gradient.add(at)).mul(grad_scale); // R1
            let w = g.mul(g); // R2
            let m = beta1.mul_add(m.decode(old_m, at), one_minus_beta1.mul(g)); // R3
            let v = beta2.mul_add(v.decode(old_v, at), one_minus_beta2.mul(w)); // R4
            new_m.as_mut()[j] = m;
            new_v.as_mut()[j] = v;
            largest_m = largest_m.largest(m);
            largest_v = largest_v.highest(v);
        }
        if run.len < CHUNK {
            clear_behind::<L::Vector>(&mut new_m, run.len);
            clear_behind::<L::Vector>(&mut new_v, run.len);
            (largest_m, largest_v) = (zero, zero);
            for (m, v) in new_m.as_ref().iter().zip(new_v.as_ref()) {
                largest_m = largest_m.largest(*m);
                largest_v = largest_v.highest(*v);
            }
        }
        // What a finite square leaves of a v that was not negative is not negative either, and v is not
        // finite where the square is not.
        let usual = largest_v.all_usual();
        if !usual {
            if call.skip_blocks {
                // Zero, or NaN if a square is not finite.
                let mut sum = zero;
                for j in 0..registers::<L::Vector>() {
                    let g = L::Vector::load(gradient.add(j * L::Vector::WIDTH)).mul(grad_scale);
                    sum = g.mul(g).mul_add(zero, sum);
                }
                if sum.any_nan() {
                    skip(call, run);
                    return 1;
                }
            }
            largest_v = zero;
            for v in new_v.as_ref() {
                largest_v = largest_v.largest(*v);
            }
        }

        let (p, base) = if F32_IN_PLACE {
            let p = call.weight.data.cast::<f32>().add(run.first);
            (p, p.cast_const())
        } else {
            load_weights::<L>(call, run, p);
            let p = p.as_mut_ptr();
            let base = if call.in_place() {
                p.cast_const()
            } else {
                NOTHING.as_ptr()
            };
            (p, base)
        };
        for j in 0..registers::<L::Vector>() {
            let at = j * L::Vector::WIDTH;
            let d = new_v.as_ref()[j].sqrt().mul_add(inv_sqrt_bc2, eps); // R5
            let q = new_m.as_ref()[j].div(d); // R6
            let decay = lr_wd.mul(L::Vector::load(p.add(at)));
            let base = L::Vector::load(base.add(at));
            let result = base.sub(lr_bc1.mul_add(q, decay)); // R7, R8
            result.canonical().store(p.add(at));
        }
        if !F32_IN_PLACE {
            let chunk = &*p.cast::<Chunk>();
            if call.in_place() {
                store_weights::<L>(call, run, chunk);
            } else {
                store_run::<L>(call.update, info.param_dtype, run, chunk);
            }
        }
        m.close(call, run, old_m, &new_m, largest_m, false);
        v.close(call, run, old_v, &new_v, largest_v, usual);
    }
    0
}

/// Makes values from an element on zero.
#[inline(always)]
unsafe fn clear_behind<V: Vector>(values: &mut V::Registers, len: usize) {
    // SAFETY: the caller's processor has the instructions.
    unsafe {
        let mut chunk = store::<V>(values);
        chunk[len..].fill(0.0);
        *values = load::<V>(&chunk);
    }
}

/// Raises the maxima of v's slices by a part of the grid: those of the last axis in `columns`, the
/// others in the statistics. Returns whether all gradients are finite, or `None` for a tensor that this
/// is not for.
///
/// # Safety
/// As for [`super::collect()`].
#[inline(always)]
pub(super) unsafe fn maxima_in_registers<L: Lanes>(
    call: &TensorCall<'_>,
    part: &Part,
    columns: &mut Columns<'_>,
) -> Option<bool> {
    let Update::Adamw(rule) = &call.rule else {
        return None;
    };
    let scalars = rule.plain()?;
    let scalars = scalars.scalars();
    let [_, state] = call.tensor.states.as_slice() else {
        return None;
    };
    let Format::Codes(codes) = &state.format else {
        return None;
    };
    // SAFETY: the caller's promise; the rows are the part's.
    unsafe {
        let v = RankOne::of(call, 1, codes)?;
        let mut finite = true;
        let mut rooms = [const { (Chunk::ZERO, Room::EMPTY) }; ROWS];
        let (mut rows, mut count) = ([Run::at(&call.tensor.grid, 0, 0, 0); ROWS], 0);
        for row in part.rows(call.tensor) {
            rows[count] = row;
            count += 1;
            if count == ROWS {
                finite &= raise_rows::<L, ROWS>(call, scalars, v, rows, &mut rooms, columns);
                count = 0;
            }
        }
        for row in &rows[..count] {
            finite &= raise_rows::<L, 1>(call, scalars, v, [*row], &mut rooms, columns);
        }
        Some(finite)
    }
}

/// Rows that are collected together: the maxima of their columns are loaded and stored once, and as
/// many streams of memory are read.
const ROWS: usize = 4;

/// Raises the maxima by rows; returns whether their gradients are finite.
#[inline(always)]
unsafe fn raise_rows<L: Lanes, const N: usize>(
    call: &TensorCall<'_>,
    scalars: &Scalars,
    v: RankOne<'_, L::Vector>,
    rows: [Run; N],
    rooms: &mut [(Chunk, Room); ROWS],
    columns: &mut Columns<'_>,
) -> bool {
    let len = rows[0].len;
    // SAFETY: the rows lie in the tensor.
    unsafe {
        let zero = L::Vector::splat(0.0);
        let mut group = Group {
            states: [v; N],
            largest: [zero; N],
            finite: zero,
        };
        for (v, row) in group.states.iter_mut().zip(rows) {
            Moment::<L>::enter(v, call, row);
        }
        for at in (0..len).step_by(CHUNK) {
            // What is ahead of a row's last chunks is in the next group.
            let ahead = if at + AHEAD < len {
                AHEAD
            } else {
                N * index(call.tensor.grid.cols) + AHEAD - len
            };
            let columns = &mut columns.first()[at..];
            let mut runs = rows;
            if len - at < CHUNK {
                for (run, row) in runs.iter_mut().zip(rows) {
                    *run = row.part(at, CHUNK);
                }
                group.raise_chunk::<L>(call, scalars, runs, ahead, rooms, columns);
            } else {
                for (run, row) in runs.iter_mut().zip(rows) {
                    // So that the compiler knows the length.
                    *run = Run {
                        len: CHUNK,
                        ..row.part(at, CHUNK)
                    };
                }
                group.raise_chunk::<L>(call, scalars, runs, ahead, rooms, columns);
            }
        }
        // Nothing else is in the slice that is a matrix's row.
        let alone = call.tensor.info.shape.len() == 2 && len == index(call.tensor.grid.cols);
        for ((v, row), largest) in group.states.iter().zip(rows).zip(group.largest) {
            v.raise(call, row, largest.reduce_largest(), alone);
        }
        !group.finite.any_nan()
    }
}

/// Rows that are collected together.
struct Group<'a, V: Vector, const N: usize> {
    states: [RankOne<'a, V>; N],
    /// The largest values of each row.
    largest: [V; N],
    /// Zero, or NaN where a gradient was not finite.
    finite: V,
}

impl<V: Vector, const N: usize> Group<'_, V, N> {
    /// Raises the maxima by a run of at most a chunk of each row, in the same columns.
    #[inline(always)]
    unsafe fn raise_chunk<L: Lanes<Vector = V>>(
        &mut self,
        call: &TensorCall<'_>,
        scalars: &Scalars,
        runs: [Run; N],
        ahead: usize,
        rooms: &mut [(Chunk, Room); ROWS],
        columns: &mut [i32],
    ) {
        let dtype = call.tensor.info.grad_dtype;
        // SAFETY: the runs lie in the tensor; there are slots for a chunk's columns.
        unsafe {
            let splat = |x| V::splat(x);
            let (beta2, one_minus_beta2) = (splat(scalars.beta2), splat(scalars.one_minus_beta2));
            let (grad_scale, zero) = (splat(call.grad_scale), splat(0.0));
            let mut gradients = [std::ptr::null(); N];
            let mut states = [Place::NOWHERE; N];
            for (r, (copy, room)) in rooms[..N].iter_mut().enumerate() {
                let run = runs[r];
                prefetch::<L>(call.grad, dtype.size(), run, ahead);
                gradients[r] = if dtype == Dtype::F32 && run.len == CHUNK {
                    call.grad.cast::<f32>().add(run.first)
                } else {
                    load_run::<L>(call.grad, dtype, run, copy);
                    copy.as_ptr()
                };
                states[r] = Moment::<L>::open(&self.states[r], run, room);
            }
            let columns = columns[..CHUNK].as_mut_ptr().cast::<f32>();
            // Of their own, to stay in registers.
            let (mut largest, mut finite) = (self.largest, self.finite);
            for at in (0..CHUNK).step_by(V::WIDTH) {
                let mut column = V::load(columns.add(at));
                for r in 0..N {
                    let g = V::load(gradients[r].add(at)).mul(grad_scale); // R1
                    let w = g.mul(g); // R2
                    let old = Moment::<L>::decode(&self.states[r], states[r], at);
                    let new = beta2.mul_add(old, one_minus_beta2.mul(w)); // R4
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

/// 2^125.
const HUGE: f32 = (1_u128 << 125) as f32;

/// A state of the tensor as a kernel sees it.
///
/// # Safety
/// Runs are of at most a chunk and lie in the tensor.
trait Moment<L: Lanes> {
    /// What decoding a run needs.
    type Open: Copy;

    /// Called for the first run of each row.
    unsafe fn enter(&mut self, call: &TensorCall<'_>, run: Run);
    /// A run that is not a whole chunk is read from the room.
    unsafe fn open(&self, run: Run, room: &mut Room) -> Self::Open;
    /// The values of a register from element `at` of the run on. Those behind the run are of any
    /// finite value.
    unsafe fn decode(&self, open: Self::Open, at: usize) -> L::Vector;
    /// Stores the new values, given the largest magnitude in each lane, and whether it is known that
    /// none is negative, infinite or NaN. Those behind the run are zero.
    unsafe fn close(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        open: Self::Open,
        values: &<L::Vector as Vector>::Registers,
        largest: L::Vector,
        usual: bool,
    );
}

/// A state in f32.
struct Plain(*mut f32);

impl Plain {
    fn of(call: &TensorCall<'_>, state: usize) -> Self {
        Self(call.state_buffers(state)[0].data.cast())
    }
}

impl<L: Lanes> Moment<L> for Plain {
    type Open = *mut f32;

    #[inline(always)]
    unsafe fn enter(&mut self, _: &TensorCall<'_>, _: Run) {}

    #[inline(always)]
    unsafe fn open(&self, run: Run, room: &mut Room) -> *mut f32 {
        // SAFETY: the caller's run lies in the tensor.
        unsafe {
            let values = self.0.add(run.first);
            if run.len == CHUNK {
                return values;
            }
            let values = std::slice::from_raw_parts(values, run.len);
            room.values[..run.len].copy_from_slice(values);
        }
        room.values.as_mut_ptr()
    }

    #[inline(always)]
    unsafe fn decode(&self, values: *mut f32, at: usize) -> L::Vector {
        // SAFETY: as above.
        unsafe { L::Vector::load(values.add(at)) }
    }

    #[inline(always)]
    unsafe fn close(
        &self,
        _: &TensorCall<'_>,
        run: Run,
        to: *mut f32,
        values: &<L::Vector as Vector>::Registers,
        _: L::Vector,
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

/// The codes of a row, and what they stand for.
#[derive(Clone, Copy)]
struct Row<V: Vector> {
    /// Of the tensor's first row.
    first: *mut u8,
    bytes: usize,
    codes: *mut u8,
    levels: V::Table,
    midpoints: V::Table,
    /// The midpoint below each code, and one below everything.
    below: V::Table,
}

impl<V: Vector> Row<V> {
    /// `None` unless the codes are of four bits and rounded to nearest or at random without more.
    #[inline(always)]
    unsafe fn of(tensor: &TensorPlan, codes: &Codes, buffer: Buffer) -> Option<Self> {
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
                codes: std::ptr::null_mut(),
                levels: V::table(&codes.table.first()),
                midpoints: V::table(&midpoints),
                below: V::table(&below),
            })
        }
    }

    #[inline(always)]
    fn enter(&mut self, row: usize) {
        self.codes = self.first.wrapping_add(row * self.bytes);
    }

    /// Where the codes of a run can be read and written, for a whole chunk.
    #[inline(always)]
    unsafe fn open(&self, run: Run, room: &mut [u8; CHUNK / 2]) -> *mut u8 {
        // SAFETY: the caller's run lies in the row.
        unsafe {
            let codes = self.codes.add(run.col / 2);
            if run.len == CHUNK {
                return codes;
            }
            std::ptr::copy_nonoverlapping(codes, room.as_mut_ptr(), run.len.div_ceil(2));
        }
        room.as_mut_ptr()
    }

    /// Brings the codes of a run to where they belong.
    #[inline(always)]
    unsafe fn close(&self, run: Run, codes: *mut u8) {
        // SAFETY: as above; the room has a chunk's codes.
        unsafe {
            if run.len < CHUNK {
                if run.len % 2 == 1 {
                    // Behind a row's end codes are 0.
                    *codes.add(run.len / 2) &= 0xf;
                }
                let to = self.codes.add(run.col / 2);
                std::ptr::copy_nonoverlapping(codes, to, run.len.div_ceil(2));
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
struct Blocks<'a, V: Vector> {
    codes: &'a Codes,
    state: usize,
    row: Row<V>,
    /// Of the tensor's first row.
    first: *mut f32,
    in_row: usize,
    scales: *mut f32,
}

impl<'a, V: Vector> Blocks<'a, V> {
    #[inline(always)]
    unsafe fn of(call: &TensorCall<'_>, state: usize, codes: &'a Codes) -> Option<Self> {
        if codes.scales != Scales::Block(CHUNK as i64) {
            return None;
        }
        let buffers = call.state_buffers(state);
        Some(Self {
            codes,
            state,
            // SAFETY: the caller's promise.
            row: unsafe { Row::of(call.tensor, codes, buffers[0]) }?,
            first: buffers[1].data.cast(),
            in_row: index(div_ceil(call.tensor.grid.cols, CHUNK as i64)),
            scales: std::ptr::null_mut(),
        })
    }
}

impl<L: Lanes> Moment<L> for Blocks<'_, L::Vector> {
    /// The codes, and what they stand for.
    type Open = (*mut u8, <L::Vector as Vector>::Table);

    #[inline(always)]
    unsafe fn enter(&mut self, _: &TensorCall<'_>, run: Run) {
        self.row.enter(run.row);
        self.scales = self.first.wrapping_add(run.row * self.in_row);
    }

    #[inline(always)]
    unsafe fn open(&self, run: Run, room: &mut Room) -> Self::Open {
        // SAFETY: the caller's run lies in the row.
        unsafe {
            let scale = L::Vector::splat(*self.scales.add(run.col / CHUNK));
            let levels = L::Vector::scale(self.row.levels, scale);
            (self.row.open(run, &mut room.codes), levels)
        }
    }

    #[inline(always)]
    unsafe fn decode(&self, (codes, levels): Self::Open, at: usize) -> L::Vector {
        // SAFETY: as above.
        unsafe { L::Vector::decode(levels, codes.add(at / 2)) }
    }

    #[inline(always)]
    unsafe fn close(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        (codes, _): Self::Open,
        values: &<L::Vector as Vector>::Registers,
        largest: L::Vector,
        usual: bool,
    ) {
        // SAFETY: as above.
        unsafe {
            let scale = block_scale(largest.reduce_largest());
            *self.scales.add(run.col / CHUNK) = scale;
            if self.codes.rounding == Rounding::Stochastic {
                let draws = draws(call, Purpose::State(self.state), run);
                let values = store::<L::Vector>(values);
                L::round_block(&values, scale, usual, &self.codes.table, &draws, codes);
                return self.row.close(run, codes);
            }
            let scale_all = L::Vector::splat(scale);
            // Where all values are 0, so is their code.
            let factor = if scale == 0.0 {
                0.0
            } else {
                SHORT_OF_16 / scale
            };
            if usual && self.codes.table.linear == Some(16.0) && factor.is_finite() {
                // As in `RankOne`; a finite factor means a scale that is not subnormal.
                let factor = L::Vector::splat(factor);
                let below = L::Vector::scale(self.row.below, scale_all);
                for (i, values) in values.as_ref().chunks_exact(PACKED).enumerate() {
                    let mut packed = L::Vector::unpacked();
                    for x in values {
                        packed =
                            L::Vector::pack(packed, x.decide::<false>(*x, factor, below, None));
                    }
                    let to = codes.add(i * PACKED * L::Vector::WIDTH / 2);
                    L::Vector::store_packed(packed, to);
                }
            } else {
                let scaled = L::Vector::scale(self.row.midpoints, scale_all);
                let thresholds = L::Vector::thresholds(scaled);
                Row::<L::Vector>::search(values, &thresholds, codes);
            }
            self.row.close(run, codes);
        }
    }
}

/// A state of four bits under a linear table or its squares and the maxima of the slices along every axis,
/// where rows of the grid are rows of the last axis.
#[derive(Clone, Copy)]
struct RankOne<'a, V: Vector> {
    codes: &'a Codes,
    maxima: &'a [Maxima],
    state: usize,
    row: Row<V>,
    /// Whether levels are squares.
    squares: bool,
    /// The smallest of the other axes' maxima, in the state and in the statistics.
    rest: [f32; 2],
    /// The last axis's.
    columns: [*const f32; 2],
}

impl<'a, V: Vector> RankOne<'a, V> {
    #[inline(always)]
    unsafe fn of(call: &TensorCall<'_>, state: usize, codes: &'a Codes) -> Option<Self> {
        let tensor = call.tensor;
        let Scales::Maxima(maxima) = &codes.scales else {
            return None;
        };
        let (last, others) = maxima.split_last()?;
        let rows = tensor.info.shape.last() == Some(&tensor.grid.cols)
            && last.projection.is_last_axis()
            && others.iter().all(|maxima| !maxima.projection.varies());
        let squares = codes.table.square == Some(16.0);
        let computed = match codes.rounding {
            Rounding::Nearest => squares || codes.table.linear == Some(16.0),
            _ => codes.table.linear == Some(16.0),
        };
        if !rows || others.is_empty() || !computed {
            return None;
        }
        Some(Self {
            codes,
            maxima,
            state,
            // SAFETY: the caller's promise.
            row: unsafe { Row::of(tensor, codes, call.state_buffers(state)[0]) }?,
            squares,
            rest: [0.0; 2],
            columns: [std::ptr::null(); 2],
        })
    }
}

impl<V: Vector> RankOne<'_, V> {
    /// Index of a row's first element.
    #[inline(always)]
    fn position(call: &TensorCall<'_>, run: Run) -> [i64; MAX_AXES] {
        let mut position = [0; MAX_AXES];
        let mut row = run.row as i64;
        let shape = &call.tensor.info.shape;
        for axis in (1..shape.len() - 1).rev() {
            position[axis] = row % shape[axis];
            row /= shape[axis];
        }
        position[0] = row;
        position
    }

    /// Raises the statistics of a row by the bits of its largest value; `alone` says that no one else
    /// works on what is in its slice of a matrix.
    #[inline(always)]
    fn raise(&self, call: &TensorCall<'_>, run: Run, largest: i32, alone: bool) {
        let position = Self::position(call, run);
        let position = &position[..call.tensor.info.shape.len()];
        for maxima in self.maxima {
            if !maxima.projection.is_last_axis() {
                let at = maxima.projection.global_position(position, call.offset);
                if alone && maxima.projection.axes() == [0] {
                    call.raise_alone(maxima.word + at, largest);
                } else {
                    call.raise(maxima.word + at, largest);
                }
            }
        }
    }
}

/// Where the codes of a run are, and the scales of its columns, old and new.
#[derive(Clone, Copy)]
struct Place {
    codes: *mut u8,
    columns: [*const f32; 2],
}

impl Place {
    const NOWHERE: Self = Self {
        codes: std::ptr::null_mut(),
        columns: [std::ptr::null(); 2],
    };
}

impl<L: Lanes> Moment<L> for RankOne<'_, L::Vector> {
    type Open = Place;

    #[inline(always)]
    unsafe fn enter(&mut self, call: &TensorCall<'_>, run: Run) {
        let position = Self::position(call, run);
        let position = &position[..call.tensor.info.shape.len()];
        let buffers = call.state_buffers(self.state);
        // As integers, so that NaN is the largest.
        let mut rest = [i32::MAX; 2];
        // SAFETY: the caller's run lies in the tensor; positions lie in buffers and statistics, which
        // no one writes now.
        unsafe {
            self.row.enter(run.row);
            for (maxima, buffer) in self.maxima.iter().zip(&buffers[1..]) {
                let places = places(call, maxima, *buffer, position);
                if maxima.projection.is_last_axis() {
                    self.columns = places.map(<*const i32>::cast);
                } else {
                    rest[0] = rest[0].min(*places[0]);
                    rest[1] = rest[1].min(*places[1]);
                }
            }
        }
        self.rest = rest.map(|bits| f32::from_bits(bits.cast_unsigned()));
    }

    #[inline(always)]
    unsafe fn open(&self, run: Run, room: &mut Room) -> Place {
        // SAFETY: the caller's run lies in the row.
        unsafe {
            let [old, new] = self.columns;
            let mut columns = [old.add(run.col), new.add(run.col)];
            if run.len < CHUNK {
                for (columns, room) in columns.iter_mut().zip(&mut room.columns) {
                    let scales = std::slice::from_raw_parts(*columns, run.len);
                    room[..run.len].copy_from_slice(scales);
                    *columns = room.as_ptr();
                }
            }
            let codes = self.row.open(run, &mut room.codes);
            Place { codes, columns }
        }
    }

    #[inline(always)]
    unsafe fn decode(&self, place: Place, at: usize) -> L::Vector {
        // SAFETY: as above.
        unsafe {
            let columns = L::Vector::load(place.columns[0].add(at));
            let scale = L::Vector::splat(self.rest[0]).smallest(columns);
            L::Vector::decode(self.row.levels, place.codes.add(at / 2)).mul(scale)
        }
    }

    #[inline(always)]
    unsafe fn close(
        &self,
        call: &TensorCall<'_>,
        run: Run,
        Place { codes, columns }: Place,
        values: &<L::Vector as Vector>::Registers,
        _: L::Vector,
        usual: bool,
    ) {
        // SAFETY: as above.
        unsafe {
            let rest = L::Vector::splat(self.rest[1]);
            let factor = L::Vector::splat(SHORT_OF_16);
            // Beyond, reciprocals may be flushed to zero.
            let mut usual = usual && self.rest[1] < HUGE;
            if self.codes.rounding == Rounding::Stochastic {
                let mut scales = Chunk::ZERO;
                for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                    let scale = rest.smallest(L::Vector::load(columns[1].add(at)));
                    usual &= !scale.any_subnormal();
                    scale.store(scales.as_mut_ptr().add(at));
                }
                if usual {
                    let chunk = store::<L::Vector>(values);
                    let draws = draws(call, Purpose::State(self.state), run);
                    L::round_linear(&chunk, &scales, &self.codes.table, &draws, codes);
                }
            } else {
                for (i, values) in values.as_ref().chunks_exact(PACKED).enumerate() {
                    let mut packed = L::Vector::unpacked();
                    for (j, x) in values.iter().enumerate() {
                        let at = (i * PACKED + j) * L::Vector::WIDTH;
                        let scale = rest.smallest(L::Vector::load(columns[1].add(at)));
                        usual &= !scale.any_subnormal();
                        let q = x.mul(scale.reciprocal());
                        let q = if self.squares { q.sqrt() } else { q };
                        let code = x.decide::<false>(q, factor, self.row.below, Some(scale));
                        packed = L::Vector::pack(packed, code);
                    }
                    let to = codes.add(i * PACKED * L::Vector::WIDTH / 2);
                    L::Vector::store_packed(packed, to);
                }
            }
            if usual {
                self.row.close(run, codes);
            } else {
                let chunk = [store::<L::Vector>(values)];
                encode_unit::<L>(call, self.state, run, &chunk, Source::Statistics);
            }
        }
    }
}

/// Where the maximum of a position is in the state and in the statistics.
#[inline(always)]
unsafe fn places(
    call: &TensorCall<'_>,
    maxima: &Maxima,
    buffer: Buffer,
    position: &[i64],
) -> [*const i32; 2] {
    let projection = &maxima.projection;
    let new = maxima.word + projection.global_position(position, call.offset);
    // SAFETY: the caller's position lies in both.
    unsafe {
        let stored = buffer.data.cast_const().cast::<i32>();
        let words = call.scratch[0].cast_const().cast::<i32>();
        [stored.add(projection.position(position)), words.add(new)]
    }
}
