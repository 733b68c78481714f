//! The first pass of a step: non-finite flags, and the maxima of whatever has one.

#![expect(unsafe_code, reason = "reads the caller's raw buffers")]

use std::mem::MaybeUninit;
use std::sync::atomic::Ordering;

use super::collect::{MAXIMA_COLUMNS, Part, SEGMENT, flat};
use super::decode::{Factors, decode_run};
use super::rows::maxima_in_registers;
use super::run::{Run, Stretch, Stretches, any_non_finite, largest};
use super::weights::load_weights;
use super::{AHEAD, any_of_runs_non_finite, load_gradient, prefetch, update};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Lanes};
use crate::layout::index;
use crate::numerics::magnitude;
use crate::optimizer::{MAX_STATES, Update};
use crate::plan::{Format, Maxima, TensorPlan};

/// The chunks of a segment whose maxima are wanted.
struct Segment {
    p: [Chunk; SEGMENT],
    states: [[Chunk; SEGMENT]; MAX_STATES],
    /// What a factored v averages.
    squares: [Chunk; SEGMENT],
}

impl Segment {
    const ZERO: Self = Self {
        p: [Chunk::ZERO; SEGMENT],
        states: [[Chunk::ZERO; SEGMENT]; MAX_STATES],
        squares: [Chunk::ZERO; SEGMENT],
    };
}

/// # Safety
/// As for [`super::collect()`].
#[inline(always)]
pub(super) unsafe fn collect_maxima<L: Lanes>(call: &TensorCall<'_>, of: &Part) {
    let tensor = call.tensor;
    let wanted = Wanted::of(call);
    let mut memory = Columns::MEMORY;
    // SAFETY: the caller's promise; the runs lie in the tensor.
    let all_finite = unsafe {
        let registers = if wanted.of_squares() {
            maxima_in_registers::<L>(call, of, &mut memory)
        } else {
            None
        };
        match registers {
            Some(finite) => {
                if let Some(rms) = call.tensor.rms {
                    call.raise(rms.param_max, largest_weight::<L>(call, of));
                }
                // A state that is not finite spoils maxima, too.
                finite || !any_of_runs_non_finite::<L>(call, of.segments(tensor))
            }
            None => {
                let last_axis = of.last_axis(tensor);
                let width = index(last_axis.end - last_axis.start);
                let mut columns = Columns::new(&mut memory, index(last_axis.start), width);
                let mut segment = Segment::ZERO;
                let mut all_finite = true;
                for run in of.segments(tensor) {
                    all_finite &= collect_run::<L>(call, wanted, run, &mut segment, &mut columns);
                }
                columns.flush(call, of.is_alone(tensor));
                all_finite
            }
        }
    };
    if !all_finite {
        call.flag().store(1, Ordering::Relaxed);
    }
}

/// The largest magnitude of the parameters, as an integer.
///
/// # Safety
/// As for [`super::collect()`].
#[inline(always)]
unsafe fn largest_weight<L: Lanes>(call: &TensorCall<'_>, of: &Part) -> i32 {
    let (mut p, mut highest) = (Chunk::ZERO, 0);
    for segment in of.segments(call.tensor) {
        for run in segment.parts(CHUNK) {
            let size = call.tensor.info.param_dtype.size();
            prefetch::<L>(call.weight.data, size, run, AHEAD);
            // SAFETY: the run lies in the tensor.
            unsafe { load_weights::<L>(call, run, &mut p) };
            highest = largest(&p[..run.len]).max(highest);
        }
    }
    highest
}

/// Raises the maxima by a run of at most a segment; returns whether all gradients are finite.
///
/// # Safety
/// As for [`super::collect()`].
#[inline(always)]
unsafe fn collect_run<L: Lanes>(
    call: &TensorCall<'_>,
    wanted: Wanted,
    run: Run,
    segment: &mut Segment,
    columns: &mut Columns<'_>,
) -> bool {
    let info = &call.tensor.info;
    let mut g = Chunk::ZERO;
    let mut all_finite = true;
    for (c, part) in run.parts(CHUNK).enumerate() {
        // SAFETY: the run lies in the tensor.
        unsafe {
            prefetch::<L>(call.grad, info.grad_dtype.size(), part, AHEAD);
            load_gradient::<L>(call, part, &mut g);
            all_finite &= !any_non_finite(&*g);
            if wanted.weights {
                prefetch::<L>(call.weight.data, info.param_dtype.size(), part, AHEAD);
                load_weights::<L>(call, part, &mut segment.p[c]);
            }
            new_states::<L>(call, wanted, part, c, &mut g, segment);
        }
    }
    let shape = &call.tensor.info.shape;
    for Stretch { at, len, position } in Stretches::of(shape, run) {
        raise(call, at, len, &position[..shape.len()], segment, columns);
    }
    all_finite
}

/// What the maxima of a tensor depend on.
#[derive(Clone, Copy)]
struct Wanted {
    /// The parameters: one read less of the tensor in most steps.
    weights: bool,
    squares: bool,
    states: States,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum States {
    None,
    /// The second moment alone, as in the paper's 4-bit AdamW, and in SM3.
    SecondMoment,
    All,
}

impl Wanted {
    /// Whether v and the squares of gradients are all that is wanted, but for the largest parameter.
    fn of_squares(self) -> bool {
        let squares = self.squares && self.states == States::None;
        squares || self.states == States::SecondMoment
    }

    fn of(call: &TensorCall<'_>) -> Self {
        let tensor = call.tensor;
        let has = |state: usize| {
            let state = tensor.states.get(state);
            state.is_some_and(|state| !state.maxima().is_empty())
        };
        let states = match &call.rule {
            _ if !(0..MAX_STATES).any(has) => States::None,
            Update::Adamw(_) if has(1) && !has(0) && !has(2) => States::SecondMoment,
            Update::Sm3(_) if !has(1) => States::SecondMoment,
            _ => States::All,
        };
        Self {
            weights: call.needs_weights() || states == States::All,
            squares: tensor.factored().is_some(),
            states,
        }
    }
}

/// The states after the step of chunk `c` of a segment, as far as their maxima are needed. `g` is
/// used up.
///
/// # Safety
/// As for [`super::collect()`].
#[inline(always)]
unsafe fn new_states<L: Lanes>(
    call: &TensorCall<'_>,
    wanted: Wanted,
    run: Run,
    c: usize,
    g: &mut Chunk,
    segment: &mut Segment,
) {
    let p = &segment.p[c];
    if wanted.squares {
        for ((w, p), g) in segment.squares[c].iter_mut().zip(&**p).zip(&**g) {
            *w = call.rule.square(*p, *g);
        }
    }
    // SAFETY: the run lies in the tensor.
    unsafe {
        match (&call.rule, wanted.states) {
            (_, States::None) => {}
            (Update::Sm3(rule), States::SecondMoment) => {
                let v = &mut segment.states[0][c];
                decode_run::<L>(call, 0, run, Factors::Stored, v);
                for (v, g) in v.iter_mut().zip(&**g) {
                    *v = rule.second_moment(*g, *v);
                }
            }
            (Update::Adamw(rule), States::SecondMoment) => {
                let v = &mut segment.states[1][c];
                decode_run::<L>(call, 1, run, Factors::Stored, v);
                for ((v, g), p) in v.iter_mut().zip(&**g).zip(&**p) {
                    *v = rule.second_moment(rule.gradient(*p, *g), *v);
                }
            }
            _ => {
                for (state, plan) in call.tensor.states.iter().enumerate() {
                    // A factored state's maxima are its squares'; no other state depends on it.
                    if !matches!(plan.format, Format::Factored(_)) {
                        let values = &mut segment.states[state][c];
                        decode_run::<L>(call, state, run, Factors::Stored, values);
                    }
                }
                let states = segment.states.each_mut().map(|state| &mut state[c]);
                update(&call.rule, p, g, states);
            }
        }
    }
}

/// What is reduced to a maximum.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    State(usize),
    Squares,
}

/// All maxima of a tensor but its RMS's, in a fixed order.
#[inline(always)]
fn all_maxima(tensor: &TensorPlan) -> impl Iterator<Item = (Of, &Maxima)> {
    let states = tensor.states.iter().enumerate().flat_map(|(state, plan)| {
        let maxima = plan.maxima().iter();
        maxima.map(move |maxima| (Of::State(state), maxima))
    });
    let factors = tensor.factored().into_iter();
    let factors = factors.flat_map(|(_, factors)| factors.iter());
    states.chain(factors.map(|factor| (Of::Squares, &factor.maxima)))
}

/// Raises all maxima by a stretch of the last axis that begins at `position`, `at` in the segment.
#[inline(always)]
fn raise(
    call: &TensorCall<'_>,
    at: usize,
    len: usize,
    position: &[i64],
    segment: &Segment,
    columns: &mut Columns<'_>,
) {
    let column = position.last().map_or(0, |column| index(*column));
    columns.used = 0;
    for (of, maxima) in all_maxima(call.tensor) {
        let chunks = match of {
            Of::State(state) => &segment.states[state],
            Of::Squares => &segment.squares,
        };
        let values = &flat(chunks)[at..at + len];
        if maxima.projection.is_last_axis()
            && let Some(slots) = columns.next(column)
        {
            for (slot, value) in slots.iter_mut().zip(values) {
                *slot = magnitude(*value).max(*slot);
            }
            continue;
        }
        let first = maxima.word + maxima.projection.global_position(position, call.offset);
        if maxima.projection.varies() {
            for (i, value) in values.iter().enumerate() {
                call.raise(first + i, magnitude(*value));
            }
        } else {
            call.raise(first, largest(values));
        }
    }
    if let Some(rms) = call.tensor.rms {
        call.raise(rms.param_max, largest(&flat(&segment.p)[at..at + len]));
    }
}

/// Raises statistics from a word on; `alone` says that no other thread does.
#[inline(always)]
fn raise_all(call: &TensorCall<'_>, word: usize, values: &[i32], alone: bool) {
    for (i, largest) in values.iter().enumerate() {
        call.raise_by(word + i, *largest, alone);
    }
}

/// Maxima of the columns of a box, for the projections that keep the last axis alone, or of the elements
/// of a row: raised here row by row, and in the shared statistics once.
pub(super) struct Columns<'a> {
    /// Of each array as much is set as the chunks of `width` columns need. Borrowed, as to move them takes
    /// longer than to collect a small tensor.
    maxima: &'a mut [ColumnMaxima; 2],
    /// The index, along the last axis or the row's, that comes first.
    start: usize,
    width: usize,
    used: usize,
}

/// A maximum for each column of a box.
pub(super) type ColumnMaxima = MaybeUninit<[i32; MAXIMA_COLUMNS as usize]>;

impl<'a> Columns<'a> {
    /// Arrays for as many projections as v and m under rank-1 have.
    const MEMORY: [ColumnMaxima; 2] = [const { MaybeUninit::uninit() }; 2];

    #[inline(always)]
    pub(super) fn new(maxima: &'a mut [ColumnMaxima; 2], start: usize, width: usize) -> Self {
        for array in &mut *maxima {
            let len = width.next_multiple_of(CHUNK);
            assert!(len <= MAXIMA_COLUMNS as usize);
            // SAFETY: an array is as long.
            unsafe { std::ptr::write_bytes(array.as_mut_ptr().cast::<i32>(), 0, len) };
        }
        Self {
            maxima,
            start,
            width,
            used: 0,
        }
    }

    /// The slots of an array, up to the end of the last column's chunk.
    #[inline(always)]
    fn slots(&mut self, array: usize) -> Option<&mut [i32]> {
        let len = self.width.next_multiple_of(CHUNK);
        let array = self.maxima.get_mut(array)?;
        // SAFETY: so many were set.
        Some(unsafe { std::slice::from_raw_parts_mut(array.as_mut_ptr().cast(), len) })
    }

    /// The first array, from the box's first column on, up to the end of the last one's chunk.
    #[inline(always)]
    pub(super) fn first(&mut self) -> &mut [i32] {
        let first = self.slots(0);
        first.unwrap_or_default()
    }

    /// The next array from a column on, as long as there is one; callers ask in the same order for
    /// every stretch.
    #[inline(always)]
    fn next(&mut self, column: usize) -> Option<&mut [i32]> {
        self.used += 1;
        let (used, start) = (self.used, self.start);
        let slots = self.slots(used - 1);
        slots.map(|slots| &mut slots[column - start..])
    }

    /// Brings what was collected in the first array, of elements of a tensor's axes from `first` on, to the
    /// shared statistics: of all these axes together, and of each. `alone` as in [`Columns::flush`].
    #[inline(always)]
    pub(super) fn flush_axes<'m>(
        &mut self,
        call: &TensorCall<'_>,
        maxima: impl Iterator<Item = &'m Maxima>,
        first: usize,
        alone: bool,
    ) {
        let (start, width) = (self.start, self.width);
        let shape = &call.tensor.info.shape;
        let values = &self.first()[..width];
        for maxima in maxima {
            let axes = maxima.projection.axes();
            let word = |position| maxima.word + maxima.projection.globalize(position, call.offset);
            if axes.iter().copied().eq(first..shape.len()) {
                let word = word(start as i64);
                raise_all(call, word, values, alone);
            } else if let [axis] = *axes
                && axis >= first
            {
                let word = word(0);
                let each = index(shape[axis + 1..].iter().product());
                for i in 0..index(shape[axis]) {
                    let slices = values[i * each..].chunks(each).step_by(index(shape[axis]));
                    let largest = slices.flatten().copied().max().unwrap_or(0);
                    raise_all(call, word + i, &[largest], alone);
                }
            }
        }
    }

    /// Brings what was collected to the shared statistics; `alone` says that there is no other box
    /// with these columns.
    #[inline(always)]
    fn flush(&mut self, call: &TensorCall<'_>, alone: bool) {
        self.used = 0;
        let (start, width) = (self.start, self.width);
        for (_, maxima) in all_maxima(call.tensor) {
            if maxima.projection.is_last_axis()
                && let Some(slots) = self.next(start)
            {
                let first = maxima.word + call.on_columns(&maxima.projection, start);
                raise_all(call, first, &slots[..width], alone);
            }
        }
    }
}
