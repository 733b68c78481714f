//! AdamW without options on units of a chunk, in registers from load to store, for the states of
//! `registers.rs`. What else there is takes the way of [`super::apply_unit`], to the same bits.
//!
//! Rounding steps are numbered as in `optimizer/adamw.rs`.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::ops::Range;

use super::collect::Part;
use super::maxima::Columns;
use super::registers::{
    Blocks, Moment, Place, Plain, RankOne, Room, Work, any_square_not_finite, clear_behind,
    gradient, is_f32_in_place, parameters, store_result,
};
use super::run::{Run, load_run};
use super::{AHEAD, prefetch, skip};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Lanes, Vector, registers};
use crate::dtype::Dtype;
use crate::layout::index;
use crate::numerics::Scalars;
use crate::optimizer::Update;
use crate::plan::Format;

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
    // SAFETY: the caller's promise.
    unsafe {
        if is_f32_in_place(call) {
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

/// Updates a run of at most one chunk; returns 1 if it was skipped. `F32_IN_PLACE` as in [`gradient`].
#[inline(always)]
unsafe fn chunk<L: Lanes, M: Moment<L>, V: Moment<L>, const F32_IN_PLACE: bool>(
    call: &TensorCall<'_>,
    scalars: &Scalars,
    run: Run,
    m: &M,
    v: &V,
    work: &mut Work,
) -> i64 {
    let Work {
        p,
        g,
        states: [room_m, room_v],
    } = work;
    // SAFETY: the run lies in the tensor.
    unsafe {
        let gradient = gradient::<L, F32_IN_PLACE>(call, run, g);
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
            if call.skip_blocks && any_square_not_finite(gradient, grad_scale) {
                skip(call, run);
                return 1;
            }
            largest_v = zero;
            for v in new_v.as_ref() {
                largest_v = largest_v.largest(*v);
            }
        }

        let (p, base) = parameters::<L, F32_IN_PLACE>(call, run, p);
        for j in 0..registers::<L::Vector>() {
            let at = j * L::Vector::WIDTH;
            let d = new_v.as_ref()[j].sqrt().mul_add(inv_sqrt_bc2, eps); // R5
            let q = new_m.as_ref()[j].div(d); // R6
            let decay = lr_wd.mul(L::Vector::load(p.add(at)));
            let base = L::Vector::load(base.add(at));
            let result = base.sub(lr_bc1.mul_add(q, decay)); // R7, R8
            result.canonical().store(p.add(at));
        }
        store_result::<L, F32_IN_PLACE>(call, run, p);
        m.close(call, run, old_m, &new_m, largest_m, false);
        v.close(call, run, old_v, &new_v, largest_v, usual);
    }
    0
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
