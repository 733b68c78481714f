//! With AVX2: 8 lanes, tables of 16 floats in two registers.

#![expect(unsafe_code, reason = "intrinsics")]

mod random;
mod sums;

use std::arch::x86_64::*;
use std::convert::Infallible;

use half::{bf16, f16};

use super::vector::{EvenTable, ONE_AND_HALF_A_DRAW};
use super::{BesideCodes, CHUNK, Chunk, Compiled, Lanes, PACKED, Vector, repeat};
use crate::numerics::{INF_BITS, Limbs, NAN_BITS, Unit};
use crate::quant::Table;
use crate::rng::Draws;

/// For processors with AVX2, FMA and F16C.
pub(in crate::backend::cpu) struct Avx2;

impl Lanes for Avx2 {
    type Vector = __m256;
    const BESIDE_CODES: BesideCodes = BesideCodes::Quotients;

    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<K: Compiled>(kernel: K) -> K::Output {
        // SAFETY: the caller's promise.
        unsafe { kernel.run() }
    }

    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn draw(draws: &Draws<'_>, out: &mut [u16; CHUNK]) {
        random::draw(draws, out);
    }

    #[inline(always)]
    unsafe fn round_block(
        values: &Chunk,
        scale: f32,
        _: bool,
        table: &Table,
        draws: &Draws<'_>,
        codes: *mut u8,
    ) {
        // SAFETY: the caller's promise.
        unsafe { random::round_block(values, scale, table, draws, codes) }
    }

    #[inline(always)]
    unsafe fn round_linear(
        values: &Chunk,
        scales: &Chunk,
        table: &Table,
        draws: &Draws<'_>,
        codes: *mut u8,
    ) {
        // SAFETY: the caller's promise.
        unsafe { random::round_linear(values, scales, table, draws, codes) }
    }

    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn repeat(numbers: &[u32], phase: usize, bounds: &[u32], out: &mut [f32]) {
        repeat(numbers, phase, bounds, out);
    }

    #[inline(always)]
    unsafe fn lookup(codes: &[u8], values: &[f32; 16], out: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { lookup(codes, values, out) }
    }

    #[inline(always)]
    unsafe fn select(codes: &[u8], values: &[f32; 16], out: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { select(codes, values, out) }
    }

    #[inline(always)]
    unsafe fn select_of_256(codes: &[u8], values: &[f32; 256], out: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { select_of_256(codes, values, out) }
    }

    #[inline(always)]
    unsafe fn count(values: &[f32], thresholds: &[f32; 16], out: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { count(values, thresholds, out) }
    }

    #[inline(always)]
    unsafe fn count_scaled<const OR_EQUAL: bool>(
        values: &[f32],
        scales: &[f32],
        thresholds: &[f32; 16],
        out: &mut [u8],
    ) {
        // SAFETY: the caller's promise.
        unsafe { count_scaled::<OR_EQUAL>(values, scales, thresholds, out) }
    }

    #[inline(always)]
    unsafe fn count_of_256(values: &[f32], thresholds: &[f32; 256], out: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { count_of_256(values, thresholds, out) }
    }

    #[inline(always)]
    unsafe fn pack(codes: &[u8], out: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { pack(codes, out) }
    }

    #[inline(always)]
    unsafe fn sum<const SQUARES: bool>(terms: &[f32], unit: Unit) -> Limbs {
        // SAFETY: the caller's promise.
        unsafe { sums::sum::<SQUARES>(terms, unit) }
    }

    #[inline(always)]
    unsafe fn add_rows(rows: &[&[f32]], units: &[Unit], high: &mut [i64], low: &mut [i64]) {
        // SAFETY: the caller's promise.
        unsafe { sums::add_rows(rows, units, high, low) }
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a hint; no access takes place.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }

    #[inline(always)]
    fn prefetch_later(address: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16, out: &mut Chunk) {
        // SAFETY: the caller's promise.
        unsafe { load_f16(from, out) }
    }

    #[inline(always)]
    unsafe fn store_f16(values: &Chunk, to: *mut f16) {
        // SAFETY: the caller's promise.
        unsafe { store_f16(values, to) }
    }
}

/// A table of 16 in two registers.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Halves(__m256, __m256);

impl Halves {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn new(values: &[f32; 16]) -> Self {
        // SAFETY: 16 floats.
        unsafe {
            Self(
                _mm256_loadu_ps(values.as_ptr()),
                _mm256_loadu_ps(values.as_ptr().add(8)),
            )
        }
    }

    /// The values of codes whose other bits but the lowest four are anything.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn at(self, codes: __m256i) -> __m256 {
        // Bit 3 of a code, in the sign, chooses between the halves.
        let choose = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
        _mm256_blendv_ps(
            _mm256_permutevar8x32_ps(self.0, codes),
            _mm256_permutevar8x32_ps(self.1, codes),
            choose,
        )
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn lookup(codes: &[u8], values: &[f32; 16], out: &mut [f32]) {
    let table = Halves::new(values);
    let groups = codes.as_chunks::<4>().0;
    for (bytes, out) in groups.iter().zip(out.as_chunks_mut::<8>().0) {
        let values = decode(table, i32::from_le_bytes(*bytes));
        // SAFETY: eight floats.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
    }
}

/// The values of eight codes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn decode(table: Halves, codes: i32) -> __m256 {
    let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    // Each lane shifts its own code down.
    table.at(_mm256_srlv_epi32(_mm256_set1_epi32(codes), shifts))
}

/// Eight bytes as integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen(bytes: &[u8; 8]) -> __m256i {
    // SAFETY: eight bytes.
    _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn select(codes: &[u8], values: &[f32; 16], out: &mut [f32]) {
    let table = Halves::new(values);
    let groups = codes.as_chunks::<8>().0;
    for (codes, out) in groups.iter().zip(out.as_chunks_mut::<8>().0) {
        // SAFETY: eight floats.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), table.at(widen(codes))) };
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn select_of_256(codes: &[u8], values: &[f32; 256], out: &mut [f32]) {
    let groups = codes.as_chunks::<8>().0;
    for (codes, out) in groups.iter().zip(out.as_chunks_mut::<8>().0) {
        // SAFETY: a byte is an index into the table; eight floats.
        unsafe {
            let values = _mm256_i32gather_ps::<4>(values.as_ptr(), widen(codes));
            _mm256_storeu_ps(out.as_mut_ptr(), values);
        }
    }
}

/// The four bytes of each value of a table of 16, the lowest ones first, in both halves of a register each.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Planes {
    bytes: [__m256i; 4],
    /// Whether the lower two are zero, as of a linear table and of its squares.
    upper: bool,
    /// What values are to be multiplied by.
    scale: Option<__m256>,
}

impl Planes {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn new(values: &[f32; 16]) -> Self {
        let mut bytes = [_mm256_setzero_si256(); 4];
        for (i, plane) in bytes.iter_mut().enumerate() {
            let mut of_each = [0; 16];
            for (byte, value) in of_each.iter_mut().zip(values) {
                *byte = value.to_bits().to_le_bytes()[i];
            }
            // SAFETY: 16 bytes.
            *plane =
                _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(of_each.as_ptr().cast()) });
        }
        Self {
            bytes,
            upper: values.iter().all(|x| x.to_bits().trailing_zeros() >= 16),
            scale: None,
        }
    }

    /// The values of 32 codes, two a byte: their bytes are looked up for all at a time, within 128 bits.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn at(self, pairs: __m128i) -> [__m256; 4] {
        // In each half four codes of every register, each pair's byte twice.
        let order = _mm256_setr_epi8(
            0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, //
            2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15,
        );
        let pairs = _mm256_broadcastsi128_si256(pairs);
        let even = _mm256_shuffle_epi8(pairs, order);
        let odd = _mm256_and_si256(_mm256_srli_epi16::<4>(even), _mm256_set1_epi16(0x0f00));
        let even = _mm256_and_si256(even, _mm256_set1_epi16(0x000f));
        let codes = _mm256_or_si256(even, odd);
        let [a, b, c, d] = self.bytes;
        let mut lower = [_mm256_setzero_si256(); 2];
        if !self.upper {
            let (a, b) = (_mm256_shuffle_epi8(a, codes), _mm256_shuffle_epi8(b, codes));
            lower = [_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)];
        }
        let (c, d) = (_mm256_shuffle_epi8(c, codes), _mm256_shuffle_epi8(d, codes));
        let upper = [_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d)];
        let mut values = [
            _mm256_castsi256_ps(_mm256_unpacklo_epi16(lower[0], upper[0])),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(lower[0], upper[0])),
            _mm256_castsi256_ps(_mm256_unpacklo_epi16(lower[1], upper[1])),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(lower[1], upper[1])),
        ];
        if let Some(scale) = self.scale {
            for value in &mut values {
                *value = _mm256_mul_ps(*value, scale);
            }
        }
        values
    }
}

/// 15 thresholds in the order of a search: three that part them in quarters, and the three within each of these. What is
/// looked up lies within 128 bits, as across them takes some processors more than twice as long, and a search by halves
/// has to wait for twice as many comparisons.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Thresholds {
    quarters: [__m256; 3],
    within: [Quartet; 3],
}

impl Thresholds {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn new(thresholds: &[f32; 16]) -> Self {
        Self::and_last(thresholds).0
    }

    /// And the last of each quarter.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn and_last(thresholds: &[f32; 16]) -> (Self, Quartet) {
        let [a, b, c, last] = Quartet::all(thresholds);
        let thresholds = Self {
            quarters: [3, 7, 11].map(|i| _mm256_set1_ps(thresholds[i])),
            within: [a, b, c],
        };
        (thresholds, last)
    }

    /// All of them times a scale.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn scale(self, scale: __m256) -> Self {
        Self {
            quarters: self.quarters.map(|quarter| _mm256_mul_ps(quarter, scale)),
            within: self.within.map(|within| within.scale(scale)),
        }
    }

    /// The number of thresholds, each times `scale` if there is one, that x is above.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn search<const OR_EQUAL: bool>(&self, x: __m256, scale: Option<__m256>) -> __m256i {
        let above = |threshold| above::<OR_EQUAL>(x, scaled(threshold, scale));
        let quarter = sum(self.quarters.map(above));
        let within = self.within.map(|within| above(within.at(quarter)));
        code(quarter, sum(within))
    }
}

/// A value for each quarter of a table of 16.
#[derive(Clone, Copy)]
struct Quartet(__m256);

impl Quartet {
    /// The first value of each quarter, the second, and so on: in each half of a register those of quarters 0, 3, 2 and
    /// 1, which is where the lowest bits of their negative numbers point to.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn all(values: &[f32; 16]) -> [Self; 4] {
        let [a, d, c, b] = [0, 4, 8, 12].map(|first| {
            // SAFETY: four of the 16.
            let four = unsafe { _mm_loadu_ps(values.as_ptr().add(first)) };
            _mm256_set_m128(four, four)
        });
        let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
        let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
        let first = [_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd)];
        let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
        let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
        let last = [_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd)];
        [first[0], first[1], last[0], last[1]].map(|four| Self(_mm256_castpd_ps(four)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn scale(self, scale: __m256) -> Self {
        Self(_mm256_mul_ps(self.0, scale))
    }

    /// Those of quarters from 0 to -3, as [`sum`] counts them.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn at(self, quarter: __m256i) -> __m256 {
        _mm256_permutevar_ps(self.0, quarter)
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scaled(threshold: __m256, scale: Option<__m256>) -> __m256 {
    match scale {
        Some(scale) => _mm256_mul_ps(threshold, scale),
        None => threshold,
    }
}

/// Whether x is above a threshold, or reaches it: all bits or none.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn above<const OR_EQUAL: bool>(x: __m256, threshold: __m256) -> __m256 {
    if OR_EQUAL {
        _mm256_cmp_ps::<_CMP_GE_OQ>(x, threshold)
    } else {
        _mm256_cmp_ps::<_CMP_GT_OQ>(x, threshold)
    }
}

/// The negative number of comparisons that are true.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum(comparisons: [__m256; 3]) -> __m256i {
    let [a, b, c] = comparisons.map(|x| _mm256_castps_si256(x));
    _mm256_add_epi32(_mm256_add_epi32(a, b), c)
}

/// The code, given the negative numbers of quarters and of thresholds within them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn code(quarter: __m256i, within: __m256i) -> __m256i {
    // The lower 16 bits times -4.
    let before = _mm256_madd_epi16(quarter, _mm256_set1_epi32(0xfffc));
    _mm256_sub_epi32(before, within)
}

/// Eight codes below 256 as bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store_bytes(codes: __m256i, out: &mut [u8; 8]) {
    let low = _mm256_castsi256_si128(codes);
    let words = _mm_packus_epi32(low, _mm256_extracti128_si256::<1>(codes));
    // SAFETY: eight bytes.
    unsafe { _mm_storel_epi64(out.as_mut_ptr().cast(), _mm_packus_epi16(words, words)) };
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn count(values: &[f32], thresholds: &[f32; 16], out: &mut [u8]) {
    let thresholds = Thresholds::new(thresholds);
    let groups = values.as_chunks::<8>().0;
    for (values, out) in groups.iter().zip(out.as_chunks_mut::<8>().0) {
        // SAFETY: eight floats.
        let x = unsafe { _mm256_loadu_ps(values.as_ptr()) };
        store_bytes(thresholds.search::<false>(x, None), out);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn count_scaled<const OR_EQUAL: bool>(
    values: &[f32],
    scales: &[f32],
    thresholds: &[f32; 16],
    out: &mut [u8],
) {
    let thresholds = Thresholds::new(thresholds);
    let groups = values.as_chunks::<8>().0.iter();
    let groups = groups.zip(scales.as_chunks::<8>().0);
    for ((values, scales), out) in groups.zip(out.as_chunks_mut::<8>().0) {
        // SAFETY: eight floats.
        let (x, scale) = unsafe {
            (
                _mm256_loadu_ps(values.as_ptr()),
                _mm256_loadu_ps(scales.as_ptr()),
            )
        };
        store_bytes(thresholds.search::<OR_EQUAL>(x, Some(scale)), out);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn count_of_256(values: &[f32], thresholds: &[f32; 256], out: &mut [u8]) {
    // Every sixteenth threshold decides the upper four bits in registers.
    let mut coarse = [0.0; 16];
    for (coarse, group) in coarse.iter_mut().zip(thresholds.as_chunks::<16>().0) {
        *coarse = group[15];
    }
    let coarse = Thresholds::new(&coarse);
    let groups = values.as_chunks::<8>().0;
    for (values, out) in groups.iter().zip(out.as_chunks_mut::<8>().0) {
        // SAFETY: eight floats.
        let x = unsafe { _mm256_loadu_ps(values.as_ptr()) };
        let mut code = _mm256_slli_epi32::<4>(coarse.search::<false>(x, None));
        for step in [8, 4, 2, 1] {
            let at = _mm256_add_epi32(code, _mm256_set1_epi32(step - 1));
            // SAFETY: every index is below 256.
            let threshold = unsafe { _mm256_i32gather_ps::<4>(thresholds.as_ptr(), at) };
            let above = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(x, threshold));
            let gained = _mm256_and_si256(above, _mm256_set1_epi32(step));
            code = _mm256_add_epi32(code, gained);
        }
        store_bytes(code, out);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pack(codes: &[u8], out: &mut [u8]) {
    // Each pair: even + 16 odd.
    let weights = _mm256_set1_epi16(0x1001);
    let groups = codes.as_chunks::<32>().0;
    for (codes, out) in groups.iter().zip(out.as_chunks_mut::<16>().0) {
        // SAFETY: 32 bytes become 16.
        unsafe {
            let codes = _mm256_loadu_si256(codes.as_ptr().cast());
            let words = _mm256_maddubs_epi16(codes, weights);
            let low = _mm256_castsi256_si128(words);
            let bytes = _mm_packus_epi16(low, _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_f16(from: *const f16, out: &mut Chunk) {
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let halves = _mm_loadu_si128(from.add(8 * i).cast());
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(halves));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store_f16(values: &Chunk, to: *mut f16) {
    let nan = _mm256_castsi256_ps(_mm256_set1_epi32(NAN_BITS.cast_signed()));
    for (i, values) in values.as_chunks::<8>().0.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let values = _mm256_loadu_ps(values.as_ptr());
            let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(values, values);
            let values = _mm256_blendv_ps(values, nan, is_nan);
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
            _mm_storeu_si128(to.add(8 * i).cast(), halves);
        }
    }
}

/// The pairs of four registers of codes below 16: even + 16 odd.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pairs([a, b, c, d]: [__m256i; 4]) -> __m256i {
    let words = (_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    let bytes = _mm256_packs_epi16(words.0, words.1);
    _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x1001))
}

/// At most eight.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn first_lanes(count: usize) -> __m256i {
    let count = _mm256_set1_epi32(count as i32);
    _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// Stores the upper halves of the first numbers plus what may carry into them; of NaN, the canonical one.
///
/// # Safety
/// `to` has room for them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store_upper(x: __m256, carry: __m256i, to: *mut bf16, count: usize) {
    let sum = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), carry));
    let nan = _mm256_castsi256_ps(_mm256_set1_epi32(NAN_BITS.cast_signed()));
    let sum = _mm256_blendv_ps(sum, nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    let upper = _mm256_srli_epi32::<16>(_mm256_castps_si256(sum));
    let words = _mm_packus_epi32(
        _mm256_castsi256_si128(upper),
        _mm256_extracti128_si256::<1>(upper),
    );
    // SAFETY: the caller's promise.
    unsafe {
        if count == 8 {
            _mm_storeu_si128(to.cast(), words);
        } else {
            let mut narrow = [bf16::ZERO; 8];
            _mm_storeu_si128(narrow.as_mut_ptr().cast(), words);
            std::ptr::copy_nonoverlapping(narrow.as_ptr(), to, count);
        }
    }
}

#[expect(
    unsafe_op_in_unsafe_fn,
    reason = "each function is an instruction or a few, which the caller's processor has"
)]
impl Vector for __m256 {
    const WIDTH: usize = 8;
    type Registers = [Self; 16];
    // SAFETY: zero bits are zeros.
    const ZEROS: [Self; 16] = [unsafe { std::mem::zeroed() }; 16];
    type Table = Halves;
    type Eight = Self;
    type Thresholds = Thresholds;
    type Levels = Planes;
    type Few = [Self; 4];
    // SAFETY: zero bits are zeros.
    const FEW: [Self; 4] = [unsafe { std::mem::zeroed() }; 4];
    type Even = Even;
    type Cells = Infallible;
    type Codes = __m256i;
    // SAFETY: zero bits are zeros.
    const NO_CODES: __m256i = unsafe { std::mem::zeroed() };

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        _mm256_set1_ps(x)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        _mm256_loadu_ps(from)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm256_storeu_ps(to, self);
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        _mm256_sub_ps(self, other)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        _mm256_mul_ps(self, other)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        _mm256_div_ps(self, other)
    }

    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        _mm256_sqrt_ps(self)
    }

    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        _mm256_rcp_ps(self)
    }

    #[inline(always)]
    unsafe fn reciprocal_sqrt(self) -> Self {
        _mm256_rsqrt_ps(self)
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        _mm256_andnot_ps(_mm256_set1_ps(-0.0), self)
    }

    #[inline(always)]
    unsafe fn copysign(self, sign: Self) -> Self {
        let bit = _mm256_set1_ps(-0.0);
        _mm256_or_ps(_mm256_andnot_ps(bit, self), _mm256_and_ps(bit, sign))
    }

    #[inline(always)]
    unsafe fn sign(self) -> Self {
        // Neither 0 nor NaN.
        let other = _mm256_cmp_ps::<_CMP_NEQ_OQ>(self, _mm256_setzero_ps());
        _mm256_blendv_ps(self, _mm256_set1_ps(1.0).copysign(self), other)
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        _mm256_min_ps(self, other)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        _mm256_max_ps(self, other)
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        _mm256_fmadd_ps(self, a, b)
    }

    #[inline(always)]
    unsafe fn canonical(self) -> Self {
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(self, self);
        let canonical = _mm256_set1_epi32(NAN_BITS.cast_signed());
        _mm256_blendv_ps(self, _mm256_castsi256_ps(canonical), nan)
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        _mm256_maskload_ps(from, first_lanes(count))
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // Some processors take long under a mask.
        if count == 8 {
            return self.store(to);
        }
        _mm256_maskstore_ps(to, first_lanes(count), self);
    }

    #[inline(always)]
    unsafe fn keep(self, count: usize) -> Self {
        _mm256_and_ps(self, _mm256_castsi256_ps(first_lanes(count)))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16, count: usize) -> Self {
        let narrow = if count == 8 {
            _mm_loadu_si128(from.cast())
        } else {
            let mut first = [bf16::ZERO; 8];
            std::ptr::copy_nonoverlapping(from, first.as_mut_ptr(), count);
            _mm_loadu_si128(first.as_ptr().cast())
        };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(narrow)))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, count: usize) {
        let x = _mm256_castps_si256(self);
        // A carry into the upper half, on ties only where that is odd.
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(x), _mm256_set1_epi32(1));
        let carry = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        store_upper(self, carry, to, count);
    }

    #[inline(always)]
    unsafe fn round_bf16(self, draws: *const u16, to: *mut bf16, count: usize) {
        let carry = _mm256_cvtepu16_epi32(_mm_loadu_si128(draws.cast()));
        store_upper(self, carry, to, count);
    }

    #[inline(always)]
    unsafe fn largest(self, other: Self) -> Self {
        let bits = _mm256_castps_si256(other);
        let magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(i32::MAX));
        let larger = _mm256_max_epi32(_mm256_castps_si256(self), magnitude);
        _mm256_castsi256_ps(larger)
    }

    #[inline(always)]
    unsafe fn highest(self, other: Self) -> Self {
        let (a, b) = (_mm256_castps_si256(self), _mm256_castps_si256(other));
        _mm256_castsi256_ps(_mm256_max_epu32(a, b))
    }

    #[inline(always)]
    unsafe fn all_usual(self) -> bool {
        let bits = _mm256_castps_si256(self);
        let least = _mm256_set1_epi32(INF_BITS.cast_signed());
        let unusual = _mm256_cmpeq_epi32(_mm256_max_epu32(bits, least), bits);
        _mm256_testz_si256(unusual, unusual) != 0
    }

    #[inline(always)]
    unsafe fn smallest(self, other: Self) -> Self {
        let (a, b) = (_mm256_castps_si256(self), _mm256_castps_si256(other));
        _mm256_castsi256_ps(_mm256_min_epu32(a, b))
    }

    #[inline(always)]
    unsafe fn reduce_largest(self) -> i32 {
        let bits = _mm256_castps_si256(self);
        let upper = _mm256_extracti128_si256::<1>(bits);
        let four = _mm_max_epi32(_mm256_castsi256_si128(bits), upper);
        let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
        _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32::<1>(two)))
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        _mm256_cvtss_f32(self)
    }

    #[inline(always)]
    unsafe fn least_bits(self, other: Self) -> Self {
        let less = _mm256_sub_epi32(_mm256_castps_si256(other), _mm256_set1_epi32(1));
        _mm256_castsi256_ps(_mm256_min_epu32(_mm256_castps_si256(self), less))
    }

    #[inline(always)]
    unsafe fn any_less(self, bound: u32) -> bool {
        let (bits, bound) = (
            _mm256_castps_si256(self),
            _mm256_set1_epi32(bound.cast_signed()),
        );
        let not_less = _mm256_cmpeq_epi32(_mm256_max_epu32(bits, bound), bits);
        _mm256_movemask_ps(_mm256_castsi256_ps(not_less)) != 0xff
    }

    #[inline(always)]
    unsafe fn closest(self, number: Self) -> Self {
        let integer = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(number);
        _mm256_min_ps(self, _mm256_sub_ps(number, integer).abs())
    }

    #[inline(always)]
    unsafe fn below(self, bound: Self) -> u32 {
        _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(self, bound)).cast_unsigned()
    }

    #[inline(always)]
    unsafe fn table(values: &[f32; 16]) -> Halves {
        Halves::new(values)
    }

    #[inline(always)]
    unsafe fn at(table: Halves, codes: __m256i) -> Self {
        table.at(codes)
    }

    #[inline(always)]
    unsafe fn eight(values: &[f32; 8]) -> Self {
        Self::load(values.as_ptr())
    }

    #[inline(always)]
    unsafe fn by_exponent(self, table: Self) -> Self {
        let exponents = _mm256_srli_epi32::<23>(_mm256_castps_si256(self));
        _mm256_permutevar8x32_ps(table, exponents)
    }

    #[inline(always)]
    unsafe fn levels(table: &[f32; 16]) -> Planes {
        Planes::new(table)
    }

    #[inline(always)]
    unsafe fn scale_levels(levels: Planes, scale: Self) -> Planes {
        Planes {
            scale: Some(scale),
            ..levels
        }
    }

    #[inline(always)]
    unsafe fn decode(levels: Planes, codes: *const u8) -> [Self; 4] {
        levels.at(_mm_loadu_si128(codes.cast()))
    }

    #[inline(always)]
    unsafe fn thresholds(values: &[f32; 16]) -> Thresholds {
        Thresholds::new(values)
    }

    #[inline(always)]
    unsafe fn scale_thresholds(thresholds: Thresholds, scale: Self) -> Thresholds {
        thresholds.scale(scale)
    }

    #[inline(always)]
    unsafe fn search<const OR_EQUAL: bool>(self, thresholds: &Thresholds) -> __m256i {
        thresholds.search::<OR_EQUAL>(self, None)
    }

    #[inline(always)]
    unsafe fn step_up(self, rise: Self, draws: *const u16, codes: __m256i) -> __m256i {
        // As with AVX-512.
        let draws = _mm256_cvtepu16_epi32(_mm_loadu_si128(draws.cast()));
        let fraction = _mm256_slli_epi32::<7>(draws);
        let one_more = _mm256_or_si256(fraction, _mm256_set1_epi32(ONE_AND_HALF_A_DRAW));
        let bound = _mm256_fmsub_ps(_mm256_castsi256_ps(one_more), rise, rise);
        let up = _mm256_cmp_ps::<_CMP_GT_OQ>(self, bound);
        // The comparison is 0 or -1.
        _mm256_sub_epi32(codes, _mm256_castps_si256(up))
    }

    #[inline(always)]
    unsafe fn store_codes(codes: [__m256i; PACKED], to: *mut u8) {
        let [a, b, c, d, e, f, g, h] = codes;
        let (first, last) = (pairs([a, b, c, d]), pairs([e, f, g, h]));
        // Of each register in turn, its first four codes in one half, and the others in the other.
        let pairs = _mm256_packus_epi16(first, last);
        let (low, high) = (
            _mm256_castsi256_si128(pairs),
            _mm256_extracti128_si256::<1>(pairs),
        );
        _mm_storeu_si128(to.cast(), _mm_unpacklo_epi16(low, high));
        _mm_storeu_si128(to.add(16).cast(), _mm_unpackhi_epi16(low, high));
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self {
        _mm256_cvtepi32_ps(widen(&*from.cast()))
    }

    #[inline(always)]
    unsafe fn store_bytes(self, zero: i32, to: *mut u8) {
        let codes = _mm256_add_epi32(_mm256_cvttps_epi32(self), _mm256_set1_epi32(zero));
        // Which makes 0 of what is negative.
        store_bytes(codes, &mut *to.cast());
    }
}

/// The thresholds below codes k of a linear table, `slope (2^23 + k) + offset`, or of its squares,
/// `(slope (2^23 + k) + offset)^2 + rest`, all of which are exact. To look them up would take permutations across 128
/// bits.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Even {
    slope: __m256,
    offset: __m256,
    rest: __m256,
    scale: Option<__m256>,
}

impl Even {
    /// From here on the lowest bits of a number are its integer.
    const WHOLE: f32 = (1_u32 << 23) as f32;
}

#[expect(
    unsafe_op_in_unsafe_fn,
    reason = "each function is an instruction or a few, which the caller's processor has"
)]
impl EvenTable<__m256> for Even {
    #[inline(always)]
    unsafe fn new(below: &[f32; 16]) -> Self {
        let steps = [below[2] - below[1], below[3] - below[2]];
        let (slope, offset, rest) = if steps[0] == steps[1] {
            (steps[0], below[1] - (Self::WHOLE + 1.0) * steps[0], 0.0)
        } else {
            // Of (k + 1/2)^2 the second difference is 2.
            let slope = ((steps[1] - steps[0]) / 2.0).sqrt();
            let root = 1.5 * slope;
            (slope, (0.5 - Self::WHOLE) * slope, below[1] - root * root)
        };
        let [slope, offset, rest] = [slope, offset, rest].map(|x| _mm256_set1_ps(x));
        let scale = None;
        Self {
            slope,
            offset,
            rest,
            scale,
        }
    }

    #[inline(always)]
    unsafe fn scale(self, scale: __m256) -> Self {
        Self {
            scale: Some(scale),
            ..self
        }
    }

    #[inline(always)]
    unsafe fn decide<const OR_EQUAL: bool, const SQUARES: bool>(
        self,
        x: __m256,
        q: __m256,
        factor: __m256,
        scale: Option<__m256>,
    ) -> __m256i {
        let whole = _mm256_set1_ps(Self::WHOLE);
        let number = _mm256_fmadd_ps(q, factor, _mm256_set1_ps(Self::WHOLE - 0.5));
        // Code 1's threshold tells it from code 0; but 0 reaches it under a scale of 0.
        let least = Self::WHOLE + if OR_EQUAL { 0.0 } else { 1.0 };
        // The second operand is taken where q is NaN.
        let number = _mm256_max_ps(number, _mm256_set1_ps(least));
        let mut threshold = _mm256_fmadd_ps(number, self.slope, self.offset);
        if SQUARES {
            threshold = _mm256_fmadd_ps(threshold, threshold, self.rest);
        }
        if let Some(scale) = scale.or(self.scale) {
            threshold = _mm256_mul_ps(threshold, scale);
        }
        let not_above = if OR_EQUAL {
            _mm256_cmp_ps::<_CMP_LT_OQ>(x, threshold)
        } else {
            _mm256_cmp_ps::<_CMP_LE_OQ>(x, threshold)
        };
        // The comparison is 0 or -1.
        let code = _mm256_add_epi32(_mm256_castps_si256(number), _mm256_castps_si256(not_above));
        let code = _mm256_sub_epi32(code, _mm256_castps_si256(whole));
        if OR_EQUAL {
            _mm256_max_epi32(code, _mm256_setzero_si256())
        } else {
            code
        }
    }
}
