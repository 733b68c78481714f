//! Draws, and a chunk rounded by them: see [`crate::backend::cpu::lanes::random`].
//!
//! The search for the level that a number reaches passes by it and by the next one, as they are the thresholds: so
//! neither is looked up, which would take permutations across 128 bits.

use std::arch::x86_64::*;

use super::{Quartet, Thresholds, above, code, scaled, sum};
use crate::backend::cpu::lanes::random::Random;
use crate::backend::cpu::lanes::{CHUNK, Chunk, PACKED, Vector};
use crate::quant::Table;
use crate::rng::{Draws, MULTIPLIERS};

/// See [`crate::backend::cpu::lanes::Lanes::draw`]. Eight groups at a time: the registers hold no more of them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn draw(draws: &Draws<'_>, out: &mut [u16; CHUNK]) {
    let multipliers = MULTIPLIERS.map(|by| _mm256_set1_epi64x(i64::from(by)));
    // Words in 64 bits, of which the lower 32 count.
    let [group, row, step, last] = draws
        .counter()
        .map(|word| _mm256_set1_epi64x(i64::from(word)));
    for (half, out) in out
        .as_chunks_mut::<{ CHUNK / 2 }>()
        .0
        .iter_mut()
        .enumerate()
    {
        let group = _mm256_add_epi64(group, _mm256_set1_epi64x(8 * half as i64));
        // Four groups each, in the order in which they are stored.
        let mut words = [[0, 2, 1, 3], [4, 6, 5, 7]].map(|[i, j, k, l]| {
            let group = _mm256_add_epi64(group, _mm256_setr_epi64x(i, j, k, l));
            [group, row, step, last]
        });
        for key in draws.keys() {
            // Floats, so that each is a load, and not both in one that is taken apart.
            let key = key.each_ref().map(|key| {
                // SAFETY: 32 bits.
                let key = unsafe { _mm256_broadcast_ss(&*std::ptr::from_ref(key).cast()) };
                _mm256_castps_si256(key)
            });
            for [a, b, c, d] in &mut words {
                let first = _mm256_mul_epu32(*a, multipliers[0]);
                let second = _mm256_mul_epu32(*c, multipliers[1]);
                let (u, v) = (_mm256_xor_si256(*b, key[0]), _mm256_xor_si256(*d, key[1]));
                *a = _mm256_xor_si256(_mm256_srli_epi64::<32>(second), u);
                *c = _mm256_xor_si256(_mm256_srli_epi64::<32>(first), v);
                (*b, *d) = (second, first);
            }
        }
        for (words, out) in words.iter().zip(out.as_chunks_mut::<{ CHUNK / 4 }>().0) {
            // Two words of two groups in each half of a register, and then the four of one.
            let [a, b, c, d] = words.map(|words| _mm256_castsi256_ps(words));
            let low = _mm256_shuffle_ps::<0b10_00_10_00>(a, b);
            let high = _mm256_shuffle_ps::<0b10_00_10_00>(c, d);
            let groups = [
                _mm256_shuffle_ps::<0b10_00_10_00>(low, high),
                _mm256_shuffle_ps::<0b11_01_11_01>(low, high),
            ];
            for (groups, out) in groups.iter().zip(out.as_chunks_mut::<16>().0) {
                // SAFETY: 16 draws.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr().cast(), *groups) };
            }
        }
    }
}

/// The levels above the lowest as thresholds, and for each quarter of them the level below and the one above.
#[derive(Clone, Copy)]
struct Levels {
    thresholds: Thresholds,
    below: Quartet,
    above: Quartet,
}

impl Levels {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn of(table: &Table) -> Self {
        let [below, ..] = Quartet::all(&table.first());
        let (thresholds, above) = Thresholds::and_last(&table.next);
        Self {
            thresholds,
            below,
            above,
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn scale(self, scale: __m256) -> Self {
        Self {
            thresholds: self.thresholds.scale(scale),
            below: self.below.scale(scale),
            above: self.above.scale(scale),
        }
    }

    /// The code that each number reaches, its level and the next one, all levels times `scale` if there is one.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn search(&self, x: __m256, scale: Option<__m256>) -> (__m256i, [__m256; 2]) {
        let Thresholds { quarters, within } = self.thresholds;
        let quarter = sum(quarters.map(|level| above::<true>(x, scaled(level, scale))));
        let of_quarter = |levels: Quartet| scaled(levels.at(quarter), scale);
        let [a, b, c] = within.map(of_quarter);
        let reached = [a, b, c].map(|level| above::<true>(x, level));
        let [is_a, is_b, is_c] = reached;
        let low = _mm256_blendv_ps(
            _mm256_blendv_ps(of_quarter(self.below), a, is_a),
            _mm256_blendv_ps(b, c, is_c),
            is_b,
        );
        let next = _mm256_blendv_ps(
            _mm256_blendv_ps(a, b, is_a),
            _mm256_blendv_ps(c, of_quarter(self.above), is_c),
            is_b,
        );
        (code(quarter, sum(reached)), [low, next])
    }
}

/// See [`crate::backend::cpu::lanes::Lanes::round_block`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn round_block(
    values: &Chunk,
    scale: f32,
    table: &Table,
    draws: &Draws<'_>,
    codes: *mut u8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let levels = Levels::of(table).scale(_mm256_set1_ps(scale));
        round(values, None, levels, draws, codes);
    }
}

/// See [`crate::backend::cpu::lanes::Lanes::round_linear`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn round_linear(
    values: &Chunk,
    scales: &Chunk,
    table: &Table,
    draws: &Draws<'_>,
    codes: *mut u8,
) {
    // SAFETY: the caller's promise.
    unsafe { round(values, Some(scales), Levels::of(table), draws, codes) };
}

/// Rounds a chunk, each level times the scale of its element if there are scales. Under one of 0 the code is 0.
#[inline(always)]
unsafe fn round(
    values: &Chunk,
    scales: Option<&Chunk>,
    levels: Levels,
    draws: &Draws<'_>,
    codes: *mut u8,
) {
    let mut random = Random::ZERO;
    // SAFETY: the caller's promise.
    unsafe {
        draw(draws, &mut random.0);
        for i in 0..CHUNK / (PACKED * __m256::WIDTH) {
            let mut new = [__m256::NO_CODES; PACKED];
            for (j, new) in new.iter_mut().enumerate() {
                let at = (i * PACKED + j) * __m256::WIDTH;
                let mut x = __m256::load(values.as_ptr().add(at));
                let scale = match scales {
                    Some(scales) => {
                        let scale = __m256::load(scales.as_ptr().add(at));
                        // A NaN, which reaches no level.
                        let none = _mm256_cmp_ps::<_CMP_EQ_OQ>(scale, _mm256_setzero_ps());
                        x = _mm256_or_ps(x, none);
                        Some(scale)
                    }
                    None => None,
                };
                let (code, [low, next]) = levels.search(x, scale);
                let draws = random.0.as_ptr().add(at);
                *new = x.sub(low).step_up(next.sub(low), draws, code);
            }
            __m256::store_codes(new, codes.add(i * PACKED * __m256::WIDTH / 2));
        }
    }
}
