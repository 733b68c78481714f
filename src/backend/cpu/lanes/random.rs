//! A chunk rounded at random to codes of four bits, as [`crate::quant::stochastic`] does it, in registers.
//!
//! For each instruction set these are functions that are not inlined: the draws alone are more than a
//! hundred instructions, and the kernels' loops are compiled many times over. AVX2 has its own
//! (`avx2/random.rs`).

#![expect(unsafe_code, reason = "the functions of registers are unsafe")]

use super::coding::store;
use super::{
    CHUNK, CellTable, Chunk, Coder, Decided, EvenTable, Lanes, PACKED, Picked, SHORT_OF_16,
    Searched, Vector,
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
/// As for [`Lanes`].
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
        let steps = [V::table(&low), V::table(&rise)];
        let factor = SHORT_OF_16 / scale;
        // A finite factor means a scale that is not subnormal.
        if usual && table.linear == Some(16.0) && factor.is_finite() {
            let reached = Decided::<V, true> {
                factor: V::splat(factor),
                thresholds: V::Even::new(&table.reached).scale(all),
            };
            round::<V, R, _>(values, reached, steps, draws, codes);
        } else if let Some(cells) = &table.level_cells
            && let Some(cells) = V::Cells::new(cells)
            && factor.is_finite()
        {
            let reached = Picked::<V, true> {
                factor: V::splat(Cells::FACTOR * (1.0 / scale)),
                cells: cells.scale(all),
            };
            round::<V, R, _>(values, reached, steps, draws, codes);
        } else {
            let levels = V::scale_thresholds(V::thresholds(&table.next), all);
            let reached = Searched::<V, true>(levels);
            round::<V, R, _>(values, reached, steps, draws, codes);
        }
    }
}

/// Rounds a chunk, given the levels and how far it is to the next ones.
#[inline(always)]
unsafe fn round<V: Vector, R: Rounds, C: Coder<V>>(
    values: &Chunk,
    mut reached: C,
    [low, rise]: [V::Table; 2],
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
                let part = x.sub(V::at(low, *code));
                *code = part.step_up(V::at(rise, *code), random.0.as_ptr().add(at), *code);
            }
            store::<V, C>(new, codes.add(i * PACKED * V::WIDTH / 2));
        }
    }
}

/// See [`super::Lanes::round_linear`].
#[inline(always)]
pub(super) unsafe fn round_linear<L: Lanes<Vector = V>, V: Vector>(
    values: &Chunk,
    scales: &Chunk,
    table: &Table,
    draws: &Draws<'_>,
    codes: *mut u8,
) {
    let mut random = Random::ZERO;
    // SAFETY: the caller's promise.
    unsafe {
        L::draw(draws, &mut random.0);
        let (low, next) = (V::table(&table.first()), V::table(&table.next));
        let (factor, reached) = (V::splat(SHORT_OF_16), V::Even::new(&table.reached));
        for i in 0..CHUNK / (PACKED * V::WIDTH) {
            let mut new = [V::NO_CODES; PACKED];
            for (j, new) in new.iter_mut().enumerate() {
                let at = (i * PACKED + j) * V::WIDTH;
                let x = V::load(values.as_ptr().add(at));
                let scale = V::load(scales.as_ptr().add(at));
                let code = reached.decide::<true, false>(
                    x,
                    x.mul(scale.reciprocal()),
                    factor,
                    Some(scale),
                );
                let low = V::at(low, code).mul(scale);
                let rise = V::at(next, code).mul(scale).sub(low);
                *new = x.sub(low).step_up(rise, random.0.as_ptr().add(at), code);
            }
            V::store_codes(new, codes.add(i * PACKED * V::WIDTH / 2));
        }
    }
}
