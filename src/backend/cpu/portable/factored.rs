//! A factored v in registers: its values, and the squares whose means its factors are.

#![expect(unsafe_code, reason = "reads the caller's raw buffers")]

use super::collect::fresh_values;
use super::registers::{Moment, Room, Updated, Values};
use super::rows::Slices;
use super::run::{Run, first_of_row, is_before_row, is_of_columns};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{Beside, Lanes, Vector, load_few};
use crate::optimizer::Update;
use crate::plan::{Factor, Maxima};

/// The factors, rows' first, columns' next, where these are the columns of the grid.
#[inline(always)]
pub(super) fn by_row<'a>(
    call: &TensorCall<'_>,
    factors: &'a [Factor; 3],
) -> Option<[&'a Factor; 3]> {
    let [rows, columns, means] = factors;
    let fits = is_of_columns(call.tensor, &columns.maxima)
        && is_before_row(call.tensor, &rows.maxima)
        && is_before_row(call.tensor, &means.maxima);
    fits.then_some([rows, columns, means])
}

/// A factored v after the step.
pub(super) struct Factored<'a> {
    factors: [&'a Factor; 3],
    /// The new mean of a row over that of all, or nothing where that is 0.
    quotient: Option<f32>,
    columns: *mut f32,
}

impl<'a> Factored<'a> {
    #[inline(always)]
    pub(super) fn of(call: &TensorCall<'_>, factors: &'a [Factor; 3]) -> Option<Self> {
        Some(Self {
            factors: by_row(call, factors)?,
            quotient: None,
            columns: std::ptr::null_mut(),
        })
    }
}

impl<L: Lanes> Moment<L> for Factored<'_> {
    type Open = *mut f32;
    type Scale = ();

    const IS_NEW: bool = true;
    const COLLECTED: bool = true;

    #[inline(always)]
    unsafe fn enter(&mut self, call: &TensorCall<'_>, run: Run) {
        let position = first_of_row(call, run);
        let position = &position[..call.tensor.info.shape.len()];
        let [row, columns, mean] = self.factors.map(|factor| {
            let at = factor.fresh + factor.maxima.projection.position(position);
            fresh_values(call).wrapping_add(at)
        });
        // SAFETY: the new factors are in the scratch, where no one writes now.
        let (row, mean) = unsafe { (*row, *mean) };
        self.quotient = (mean != 0.0).then(|| row / mean);
        self.columns = columns;
    }

    #[inline(always)]
    unsafe fn open(&self, run: Run, room: &mut Room) -> *mut f32 {
        // SAFETY: the caller's run lies in the row.
        unsafe { room.chunk::<L>(self.columns.add(run.col), run) }
    }

    #[inline(always)]
    unsafe fn decode(&self, columns: *mut f32, at: usize) -> <L::Vector as Vector>::Few {
        let Some(quotient) = self.quotient else {
            return L::Vector::FEW;
        };
        // SAFETY: as above.
        unsafe {
            let mut values = load_few::<L::Vector>(columns.add(at));
            for x in values.as_mut() {
                *x = L::Vector::splat(quotient).mul(*x);
            }
            values
        }
    }

    #[inline(always)]
    unsafe fn rescale(&self, _: Run, _: L::Vector) {}

    #[inline(always)]
    unsafe fn close(
        &self,
        _: &TensorCall<'_>,
        _: Run,
        _: *mut f32,
        _: Updated<'_>,
        (): (),
        beside: impl Beside<L::Vector>,
    ) {
        // SAFETY: the caller's promise.
        unsafe { beside.all(1) };
    }
}

impl<L: Lanes> Values<L> for Factored<'_> {
    #[inline(always)]
    unsafe fn put(&self, _: *mut f32, _: L::Vector, _: usize) {}

    #[inline(always)]
    unsafe fn end(&self, _: Run, _: *mut f32) {}
}

/// The squares of the gradients, and what Adafactor adds to them.
#[derive(Clone, Copy)]
pub(super) struct Squares<'a> {
    factors: [&'a Factor; 3],
    eps: f32,
}

impl<'a> Squares<'a> {
    #[inline(always)]
    pub(super) fn of(call: &TensorCall<'_>, factors: &'a [Factor; 3]) -> Option<Self> {
        let eps = match &call.rule {
            Update::Adamw(_) => 0.0,
            // A square of more than 2^127 is a multiple of 2^80: that of no gradient becomes infinite by this.
            Update::Adafactor(rule) if rule.eps < 1.0 => rule.eps,
            _ => return None,
        };
        let factors = by_row(call, factors)?;
        Some(Self { factors, eps })
    }
}

impl<L: Lanes> Slices<L> for Squares<'_> {
    type Open = ();
    const NOWHERE: () = ();

    #[inline(always)]
    unsafe fn open(&self, _: Run, _: &mut Room) {}

    #[inline(always)]
    fn prefetch(&self, (): (), _: usize) {}

    #[inline(always)]
    unsafe fn square(&self, g: L::Vector) -> L::Vector {
        // SAFETY: the caller's promise. Without eps it is the product, rounded.
        unsafe { g.mul_add(g, L::Vector::splat(self.eps)) } // R2
    }

    #[inline(always)]
    unsafe fn old(&self, (): (), _: usize) -> <L::Vector as Vector>::Few {
        L::Vector::FEW
    }

    #[inline(always)]
    unsafe fn value(&self, _: L::Vector, w: L::Vector) -> L::Vector {
        w
    }

    #[inline(always)]
    fn raise(&self, call: &TensorCall<'_>, row: Run, largest: i32, alone: bool) {
        let position = first_of_row(call, row);
        let position = &position[..call.tensor.grid.lead.len()];
        let [rows, _, means] = self.factors.map(|factor| &factor.maxima);
        let word = |maxima: &Maxima| {
            maxima.word + maxima.projection.global_position(position, call.offset)
        };
        call.raise_by(word(rows), largest, alone);
        call.raise(word(means), largest);
    }

    #[inline(always)]
    fn maxima(&self) -> impl Iterator<Item = &Maxima> {
        self.factors.iter().map(|factor| &factor.maxima)
    }
}
