//! A chunk rounded at random to codes of four bits, as [`crate::quant::stochastic`] does it, in registers.
//!
//! For each instruction set these are functions that are not inlined: the draws alone are more than a
//! hundred instructions, and the kernels' loops are compiled many times over. AVX2 has its own
//! (`avx2/random.rs`).

#![expect(unsafe_code, reason = "the functions of registers are unsafe")]

use super::coding::store;
use super::{
    CHUNK, CellTable, Chunk, Coder, Decided, EvenTable, PACKED, Picked, SHORT_OF_16, Searched,
    Vector,
};
use crate::quant::{Cells, Table};
use crate::rng::Draws;

/// The random numbers of a chunk, in few cache lines.
#[repr(align(64))]
pub(in crate::backend::cpu) struct Random(pub(in crate::backend::cpu) [u16; CHUNK]);

impl Random {
    pub(in crate::backend::cpu) const ZERO: Self = Self([0; CHUNK]);
}

/// The random numbers of a chunk in the making. A round waits for the one before, so that others do well to
/// work in between.
///
/// # Safety
/// As for [`super::Lanes`].
pub(super) trait Rounds {
    unsafe fn new(draws: &Draws<'_>) -> Self;
    /// To be called with each of [`Draws::keys`].
    unsafe fn round(&mut self, key: &[u32; 2]);
    unsafe fn store(self, out: &mut [u16; CHUNK]);
}

/// All rounds at once, where there are too few registers to keep them in.
pub(super) struct Drawn([u16; CHUNK]);

impl Rounds for Drawn {
    #[inline(always)]
    unsafe fn new(draws: &Draws<'_>) -> Self {
        let mut drawn = Self([0; CHUNK]);
        draws.chunk(&mut drawn.0);
        drawn
    }

    #[inline(always)]
    unsafe fn round(&mut self, _: &[u32; 2]) {}

    #[inline(always)]
    unsafe fn store(self, out: &mut [u16; CHUNK]) {
        *out = self.0;
    }
}

/// See [`super::Lanes::round_block`].
#[inline(always)]
pub(super) unsafe fn round_block<V: Vector, R: Rounds>(
    values: &Chunk,
    scale: f32,
    usual: bool,
    table: &Table,
    draws: &Draws<'_>,
    codes: *mut u8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let all = V::splat(scale);
        let (mut low, mut rise) = (table.first(), table.next);
        for (low, rise) in low.iter_mut().zip(&mut rise) {
            *low *= scale;
            *rise = *rise * scale - *low;
        }
        let levels = UnderOne {
            low: V::table(&low),
            rise: V::table(&rise),
        };
        let factor = SHORT_OF_16 / scale;
        // A finite factor means a scale that is not subnormal.
        if usual && table.linear == Some(16.0) && factor.is_finite() {
            let reached = Decided::<V, true> {
                factor: V::splat(factor),
                thresholds: V::Even::new(&table.reached).scale(all),
            };
            round::<V, R, _>(values, reached, levels, draws, codes);
        } else if let Some(cells) = &table.level_cells
            && let Some(cells) = V::Cells::new(cells)
            && factor.is_finite()
        {
            let reached = Picked::<V, true> {
                factor: V::splat(Cells::FACTOR * (1.0 / scale)),
                cells: cells.scale(all),
            };
            round::<V, R, _>(values, reached, levels, draws, codes);
        } else {
            let thresholds = V::scale_thresholds(V::thresholds(&table.next), all);
            let reached = Searched::<V, true>(thresholds);
            round::<V, R, _>(values, reached, levels, draws, codes);
        }
    }
}

/// Rounds a chunk, given how the levels that are reached are found, and the levels.
#[inline(always)]
unsafe fn round<V: Vector, R: Rounds, C: Coder<V>>(
    values: &Chunk,
    mut reached: C,
    levels: impl Levels<V>,
    draws: &Draws<'_>,
    codes: *mut u8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut random = Random::ZERO;
        let mut rounds = R::new(draws);
        let keys = draws.keys();
        let mut new = [V::NO_CODES; PACKED];
        // As a loop it is not unrolled, and keeps all that it works on in memory.
        macro_rules! in_turn {
            ($($j:literal)*) => {
                $(
                    rounds.round(&keys[$j]);
                    let at = $j * V::WIDTH;
                    new[$j] = reached.code(V::load(values.as_ptr().add(at)), at);
                )*
            };
        }
        in_turn!(0 1 2 3 4 5 6 7);
        rounds.round(&keys[8]);
        rounds.round(&keys[9]);
        rounds.store(&mut random.0);
        for i in 0..CHUNK / (PACKED * V::WIDTH) {
            for (j, code) in new.iter_mut().enumerate() {
                let at = (i * PACKED + j) * V::WIDTH;
                let x = V::load(values.as_ptr().add(at));
                if i > 0 {
                    *code = reached.code(x, at);
                }
                let (low, rise) = levels.step(*code, at);
                *code = x.sub(low).step_up(rise, random.0.as_ptr().add(at), *code);
            }
            store::<V, C>(new, codes.add(i * PACKED * V::WIDTH / 2));
        }
    }
}

/// The levels of a chunk's elements.
///
/// # Safety
/// As for [`Vector`].
trait Levels<V: Vector> {
    /// Those of codes, and how far it is to the next ones, for the register from element `at` of the chunk on.
    unsafe fn step(&self, codes: V::Codes, at: usize) -> (V, V);
}

/// Under one scale, which they are times.
struct UnderOne<V: Vector> {
    low: V::Table,
    rise: V::Table,
}

impl<V: Vector> Levels<V> for UnderOne<V> {
    #[inline(always)]
    unsafe fn step(&self, codes: V::Codes, _: usize) -> (V, V) {
        // SAFETY: the caller's promise.
        unsafe { (V::at(self.low, codes), V::at(self.rise, codes)) }
    }
}

/// Of a linear table, under a scale of its own for each element.
struct UnderEach<'a, V: Vector> {
    scales: &'a Chunk,
    low: V::Table,
    next: V::Table,
    reached: V::Even,
}

impl<V: Vector> UnderEach<'_, V> {
    #[inline(always)]
    unsafe fn scale(&self, at: usize) -> V {
        // SAFETY: the caller's register lies in the chunk.
        unsafe { V::load(self.scales.as_ptr().add(at)) }
    }
}

impl<V: Vector> Levels<V> for &UnderEach<'_, V> {
    #[inline(always)]
    unsafe fn step(&self, codes: V::Codes, at: usize) -> (V, V) {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = self.scale(at);
            let low = V::at(self.low, codes).mul(scale);
            (low, V::at(self.next, codes).mul(scale).sub(low))
        }
    }
}

impl<V: Vector> Coder<V> for &UnderEach<'_, V> {
    const CLEAN: bool = false;

    #[inline(always)]
    unsafe fn code(&mut self, x: V, at: usize) -> V::Codes {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = self.scale(at);
            let (q, factor) = (x.mul(scale.reciprocal()), V::splat(SHORT_OF_16));
            self.reached
                .decide::<true, false>(x, q, factor, Some(scale))
        }
    }
}

/// See [`super::Lanes::round_linear`].
#[inline(always)]
pub(super) unsafe fn round_linear<V: Vector, R: Rounds>(
    values: &Chunk,
    scales: &Chunk,
    table: &Table,
    draws: &Draws<'_>,
    codes: *mut u8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let under = UnderEach {
            scales,
            low: V::table(&table.first()),
            next: V::table(&table.next),
            reached: V::Even::new(&table.reached),
        };
        round::<V, R, _>(values, &under, &under, draws, codes);
    }
}
