//! Exact sums: see [`crate::numerics::Limbs`].

use std::arch::x86_64::*;

use crate::backend::cpu::lanes::Lanes;
use crate::backend::cpu::lanes::portable::{Portable, add_columns};
use crate::numerics::{Limbs, Unit};

/// Terms that are added at once.
const WIDTH: usize = 4;

/// What terms are multiplied by for their limbs. A product with a power of two is exact, so that [`Unit::limbs`] is
/// three multiply-adds.
#[derive(Clone, Copy)]
struct Factors {
    high: __m256d,
    all: __m256d,
}

impl Factors {
    /// Of units as factors.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn new(units: __m256d) -> Self {
        Self {
            high: _mm256_mul_pd(units, _mm256_set1_pd(1.0 / Unit::HIGH_LIMB)),
            all: units,
        }
    }
}

/// Sums of limbs, each with a constant more for each term.
#[derive(Clone, Copy)]
struct Sums {
    high: __m256i,
    low: __m256i,
}

impl Sums {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn new() -> Self {
        let zero = _mm256_setzero_si256();
        let (high, low) = (zero, zero);
        Self { high, low }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn add(&mut self, terms: __m256d, factors: Factors) {
        // What the low limb is to be added to once the high one's units are taken off: 33 bits.
        const WITHOUT: f64 = Unit::HIGH * Unit::HIGH_LIMB + Unit::SIGNED;
        let high = _mm256_fmadd_pd(terms, factors.high, _mm256_set1_pd(Unit::HIGH));
        let without = _mm256_fnmadd_pd(
            high,
            _mm256_set1_pd(Unit::HIGH_LIMB),
            _mm256_set1_pd(WITHOUT),
        );
        let low = _mm256_fmadd_pd(terms, factors.all, without);
        self.high = _mm256_add_epi64(self.high, _mm256_castpd_si256(high));
        self.low = _mm256_add_epi64(self.low, _mm256_castpd_si256(low));
    }

    /// The sums of so many terms each.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn of(self, terms: usize) -> [__m256i; 2] {
        let without = |sums, zero: f64| {
            let zeros = zero.to_bits().wrapping_mul(terms as u64);
            _mm256_sub_epi64(sums, _mm256_set1_epi64x(zeros.cast_signed()))
        };
        [
            without(self.high, Unit::HIGH),
            without(self.low, Unit::SIGNED),
        ]
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(terms: &[f32; WIDTH]) -> __m256d {
    // SAFETY: four floats.
    _mm256_cvtps_pd(unsafe { _mm_loadu_ps(terms.as_ptr()) })
}

/// See [`Lanes::sum`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sum<const SQUARES: bool>(terms: &[f32], unit: Unit) -> Limbs {
    let factors = Factors::new(_mm256_set1_pd(unit.factor()));
    let (groups, rest) = terms.as_chunks::<WIDTH>();
    let mut sums = Sums::new();
    for terms in groups {
        let terms = load(terms);
        let terms = if SQUARES {
            _mm256_mul_pd(terms, terms)
        } else {
            terms
        };
        sums.add(terms, factors);
    }
    let [high, low] = sums.of(groups.len()).map(|sums| {
        let mut lanes = [0_i64; WIDTH];
        // SAFETY: four integers.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
        lanes.into_iter().fold(0, i64::wrapping_add)
    });
    // SAFETY: every processor has the instructions.
    let mut sum = unsafe { Portable::sum::<SQUARES>(rest, unit) };
    sum.add(Limbs { high, low });
    sum
}

/// See [`Lanes::add_rows`].
///
/// # Safety
/// Slices have one length.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn add_rows(
    rows: &[&[f32]],
    columns: &[Unit],
    high: &mut [i64],
    low: &mut [i64],
) {
    let whole = columns.len() - columns.len() % WIDTH;
    // SAFETY: the caller's promise; a unit is its factor.
    unsafe {
        for at in (0..whole).step_by(WIDTH) {
            let factors = Factors::new(_mm256_loadu_pd(columns.as_ptr().add(at).cast()));
            let mut sums = Sums::new();
            for row in rows {
                sums.add(load(&*row.as_ptr().add(at).cast()), factors);
            }
            let to = [high.as_mut_ptr().add(at), low.as_mut_ptr().add(at)];
            for (to, more) in to.into_iter().zip(sums.of(rows.len())) {
                let old = _mm256_loadu_si256(to.cast());
                _mm256_storeu_si256(to.cast(), _mm256_add_epi64(old, more));
            }
        }
        add_columns(whole, rows, columns, high, low);
    }
}
