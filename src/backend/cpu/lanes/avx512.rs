//! With AVX-512: 16 lanes, a table of 16 floats in one register, comparisons in mask registers.

#![expect(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::portable::add_columns;
use super::random::Rounds;
use super::vector::{CellTable, EvenTable, ONE_AND_HALF_A_DRAW};
use super::{
    Avx2, BesideCodes, CHUNK, Chunk, Compiled, Lanes, PACKED, Portable, Vector, random, repeat,
};
use crate::numerics::{INF_BITS, Limbs, NAN_BITS, Unit};
use crate::quant::{self, Cells};
use crate::rng::{self, Draws};

/// For processors with AVX-512 F, BW, VL and DQ.
pub(in crate::backend::cpu) struct Avx512;

impl Lanes for Avx512 {
    type Vector = __m512;
    const BESIDE_CODES: BesideCodes = BesideCodes::Divisors;

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn run<K: Compiled>(kernel: K) -> K::Output {
        // SAFETY: the caller's promise.
        unsafe { kernel.run() }
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn draw(draws: &Draws<'_>, out: &mut [u16; CHUNK]) {
        let mut groups = Groups::begin(draws);
        for key in draws.keys() {
            groups.next(key);
        }
        groups.end(out);
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn round_block(
        values: &Chunk,
        scale: f32,
        usual: bool,
        table: &quant::Table,
        draws: &Draws<'_>,
        codes: *mut u8,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            random::round_block::<Self::Vector, Groups>(values, scale, usual, table, draws, codes)
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn round_linear(
        values: &Chunk,
        scales: &Chunk,
        table: &quant::Table,
        draws: &Draws<'_>,
        codes: *mut u8,
    ) {
        // SAFETY: the caller's promise.
        unsafe { random::round_linear::<Self::Vector, Groups>(values, scales, table, draws, codes) }
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
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
    unsafe fn count_linear(values: &[f32], scales: &[f32], levels: f32, out: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { count_linear(values, scales, levels, out) }
    }

    #[inline(always)]
    unsafe fn count_linear_block(values: &[f32], scale: f32, levels: f32, out: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { count_linear_block(values, scale, levels, out) }
    }

    #[inline(always)]
    unsafe fn pack(codes: &[u8], out: &mut [u8]) {
        // SAFETY: the caller's promise; AVX-512 has AVX2.
        unsafe { Avx2::pack(codes, out) }
    }

    #[inline(always)]
    unsafe fn sum<const SQUARES: bool>(terms: &[f32], unit: Unit) -> Limbs {
        // SAFETY: the caller's promise.
        unsafe { sum::<SQUARES>(terms, unit) }
    }

    #[inline(always)]
    unsafe fn add_rows(rows: &[&[f32]], units: &[Unit], high: &mut [i64], low: &mut [i64]) {
        // SAFETY: the caller's promise.
        unsafe { add_rows(rows, units, high, low) }
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
    unsafe fn read<const N: usize>(from: *const u8, len: usize, to: *mut u8) {
        // SAFETY: as above.
        unsafe { read::<N>(from, len, to) }
    }

    #[inline(always)]
    unsafe fn write<const N: usize>(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: as above.
        unsafe { write::<N>(from, to, len) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16, out: &mut Chunk) {
        // SAFETY: as above.
        unsafe { load_f16(from, out) }
    }

    #[inline(always)]
    unsafe fn store_f16(values: &Chunk, to: *mut f16) {
        // SAFETY: as above.
        unsafe { store_f16(values, to) }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn load(values: &[f32; 16]) -> __m512 {
    // SAFETY: 16 floats.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn store(values: __m512, out: &mut [f32; 16]) {
    // SAFETY: 16 floats.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
}

/// The bytes of a register that are among the first of memory.
#[inline]
fn first_bytes(len: usize, at: usize) -> __mmask64 {
    let count = len.saturating_sub(at);
    if count < 64 { (1 << count) - 1 } else { !0 }
}

/// Whole registers are written, so that what is read of them next needs not wait for memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn read<const N: usize>(from: *const u8, len: usize, to: *mut u8) {
    for at in (0..N).step_by(64) {
        // SAFETY: the caller's promise; bytes that a mask leaves out are not touched.
        unsafe {
            // Under a mask that leaves out all, a page that is not there still costs hundreds of cycles.
            let bytes = if at < len {
                _mm512_maskz_loadu_epi8(first_bytes(len, at), from.add(at).cast())
            } else {
                _mm512_setzero_si512()
            };
            _mm512_storeu_si512(to.add(at).cast(), bytes);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn write<const N: usize>(from: *const u8, to: *mut u8, len: usize) {
    for at in (0..N).step_by(64) {
        // Even where a mask leaves out all, what is read there next waits for it.
        if at < len {
            // SAFETY: as above.
            unsafe {
                let bytes = _mm512_loadu_si512(from.add(at).cast());
                _mm512_mask_storeu_epi8(to.add(at).cast(), first_bytes(len, at), bytes);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn load_f16(from: *const f16, out: &mut Chunk) {
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let halves = unsafe { _mm256_loadu_si256(from.add(16 * i).cast()) };
        store(_mm512_cvtph_ps(halves), out);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn store_f16(values: &Chunk, to: *mut f16) {
    let nan = _mm512_castsi512_ps(_mm512_set1_epi32(NAN_BITS.cast_signed()));
    for (i, values) in values.as_chunks::<16>().0.iter().enumerate() {
        let values = load(values);
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
        let values = _mm512_mask_mov_ps(values, is_nan, nan);
        let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.add(16 * i).cast(), halves) };
    }
}

/// The bits of numbers, NaN as the canonical one of bf16: its upper half stays, whatever is added to the lower.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn widened_nan(x: __m512) -> __m512i {
    let nan = _mm512_set1_epi32((NAN_BITS >> 16 << 16).cast_signed());
    _mm512_castps_si512(or_nan(x, _mm512_castsi512_ps(nan)))
}

/// Stores the upper halves of the first numbers.
///
/// # Safety
/// `to` has room for them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn store_upper(numbers: __m512i, to: *mut bf16, count: usize) {
    #[repr(align(64))]
    struct Odd([u16; 32]);
    static ODD: Odd = {
        let mut odd = [0; 32];
        let mut i = 0;
        while i < 16 {
            odd[i] = 2 * i as u16 + 1;
            i += 1;
        }
        Odd(odd)
    };
    // SAFETY: the caller's promise; a register's words.
    unsafe {
        let order = hidden(&*(&raw const ODD.0).cast::<__m512i>());
        let words = _mm512_castsi512_si256(_mm512_permutexvar_epi16(order, numbers));
        // As in `write`.
        if count > 0 {
            _mm256_mask_storeu_epi16(to.cast(), first_lanes(count), words);
        }
    }
}

/// At most 16.
#[inline(always)]
fn first_lanes(count: usize) -> __mmask16 {
    debug_assert!(count <= 16);
    ((1_u32 << count) - 1) as __mmask16
}

/// Numbers with another one where they are NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn or_nan(x: __m512, nan: __m512) -> __m512 {
    /// For each class of numbers, what is taken: the first operand for quiet and signaling NaN,
    /// the second for the rest.
    const RESPONSES: i32 = 0x1111_1100;
    _mm512_fixupimm_ps::<0>(nan, x, _mm512_set1_epi32(RESPONSES))
}

/// Eight terms, or their squares, in units, as integers: numbers are rounded to nearest, ties to even, as set
/// for all kernels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn units<const SQUARES: bool>(terms: &[f32; 8], unit: __m512d) -> __m512i {
    // SAFETY: 8 floats.
    let mut terms = unsafe { _mm512_cvtps_pd(_mm256_loadu_ps(terms.as_ptr())) };
    if SQUARES {
        terms = _mm512_mul_pd(terms, terms);
    }
    _mm512_cvtpd_epi64(_mm512_mul_pd(terms, unit))
}

/// The limbs of sums of at most [`Limbs::TERMS`] terms.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn limbs(units: __m512i) -> [__m512i; 2] {
    let low = _mm512_set1_epi64((1 << Limbs::LOW) - 1);
    [
        _mm512_srli_epi64::<{ Limbs::LOW }>(units),
        _mm512_and_si512(units, low),
    ]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn sum<const SQUARES: bool>(terms: &[f32], unit: Unit) -> Limbs {
    let factor = _mm512_set1_pd(unit.factor());
    let (groups, rest) = terms.as_chunks::<{ 8 * Limbs::TERMS }>();
    let [mut high, mut low] = [_mm512_setzero_si512(); 2];
    for group in groups {
        let mut sums = _mm512_setzero_si512();
        for terms in group.as_chunks::<8>().0 {
            sums = _mm512_add_epi64(sums, units::<SQUARES>(terms, factor));
        }
        let more = limbs(sums);
        high = _mm512_add_epi64(high, more[0]);
        low = _mm512_add_epi64(low, more[1]);
    }
    // SAFETY: the caller's promise.
    let mut sum = unsafe { Portable::sum::<SQUARES>(rest, unit) };
    sum.add(Limbs {
        high: _mm512_reduce_add_epi64(high),
        low: _mm512_reduce_add_epi64(low),
    });
    sum
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn add_rows(rows: &[&[f32]], columns: &[Unit], high: &mut [i64], low: &mut [i64]) {
    let whole = columns.len() - columns.len() % 8;
    // SAFETY: slices have one length; a unit is its factor.
    unsafe {
        for at in (0..whole).step_by(8) {
            let factors = _mm512_loadu_pd(columns.as_ptr().add(at).cast());
            let mut sums = _mm512_setzero_si512();
            for row in rows {
                let terms = &*row.as_ptr().add(at).cast();
                sums = _mm512_add_epi64(sums, units::<false>(terms, factors));
            }
            let to = [high.as_mut_ptr().add(at), low.as_mut_ptr().add(at)];
            for (to, more) in to.into_iter().zip(limbs(sums)) {
                let old = _mm512_loadu_si512(to.cast());
                _mm512_storeu_si512(to.cast(), _mm512_add_epi64(old, more));
            }
        }
        add_columns(whole, rows, columns, high, low);
    }
}

/// 16 codes below 256 as bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn store_bytes(codes: __m512i, out: &mut [u8; 16]) {
    // SAFETY: 16 bytes.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(codes)) };
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn lookup(codes: &[u8], values: &[f32; 16], out: &mut [f32]) {
    let table = Table::new(values);
    let groups = codes.as_chunks::<8>().0;
    for (bytes, out) in groups.iter().zip(out.as_chunks_mut::<16>().0) {
        store(table.decode(bytes), out);
    }
}

/// [`Draws::chunk`], eight groups a register in the lower halves of 64 bits: what is above them never
/// counts.
pub(in crate::backend::cpu) struct Groups {
    a: [__m512i; 2],
    b: [__m512i; 2],
    c: [__m512i; 2],
    d: [__m512i; 2],
}

impl Groups {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn begin(draws: &Draws<'_>) -> Self {
        let [group, row, step, last] = draws.counter().map(|x| _mm512_set1_epi32(x.cast_signed()));
        let group = _mm512_add_epi32(group, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
        Self {
            a: [group, _mm512_add_epi32(group, _mm512_set1_epi32(8))],
            b: [row; 2],
            c: [step; 2],
            d: [last; 2],
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn next(&mut self, key: &[u32; 2]) {
        /// The exclusive or of three.
        const XOR: i32 = 0b1001_0110;
        let splat = |x: u32| _mm512_set1_epi32(x.cast_signed());
        let multipliers = [splat(rng::MULTIPLIERS[0]), splat(rng::MULTIPLIERS[1])];
        // One by one, from memory: as a pair they would go through integer registers.
        let key = [splat(key[0]), splat(key[1])];
        let Self { a, b, c, d } = self;
        for i in 0..2 {
            let first = _mm512_mul_epu32(a[i], multipliers[0]);
            let second = _mm512_mul_epu32(c[i], multipliers[1]);
            // On the port that does not shift.
            let high = _mm512_shuffle_epi32::<0b11_11_01_01>(second);
            a[i] = _mm512_ternarylogic_epi32::<XOR>(high, b[i], key[0]);
            let high = _mm512_srli_epi64::<32>(first);
            c[i] = _mm512_ternarylogic_epi32::<XOR>(high, d[i], key[1]);
            (b[i], d[i]) = (second, first);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn end(self, out: &mut [u16; CHUNK]) {
        let Self { a, b, c, d } = self;
        let upper = hidden(&0xaaaa);
        let orders = [
            _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11),
            _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15),
        ];
        for i in 0..2 {
            // Two words of each group, and then the four of four groups.
            let low = _mm512_mask_shuffle_epi32::<0b10_10_00_00>(a[i], upper, b[i]);
            let high = _mm512_mask_shuffle_epi32::<0b10_10_00_00>(c[i], upper, d[i]);
            for (j, order) in orders.into_iter().enumerate() {
                let words = _mm512_permutex2var_epi64(low, order, high);
                let to = &mut out[32 * (2 * i + j)..][..32];
                // SAFETY: 32 numbers of 16 bits each.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) };
            }
        }
    }
}

impl Rounds for Groups {
    #[inline(always)]
    unsafe fn new(draws: &Draws<'_>) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::begin(draws) }
    }

    #[inline(always)]
    unsafe fn round(&mut self, key: &[u32; 2]) {
        // SAFETY: the caller's promise.
        unsafe { self.next(key) }
    }

    #[inline(always)]
    unsafe fn store(self, out: &mut [u16; CHUNK]) {
        // SAFETY: the caller's promise.
        unsafe { self.end(out) }
    }
}

/// A constant that the compiler does not see: of operations under a mask it would make several
/// instructions, and of one permutation of words eight, where it knows their operands.
#[inline(always)]
fn hidden<T: Copy>(constant: &T) -> T {
    // SAFETY: a reference.
    unsafe { std::ptr::from_ref(constant).read_volatile() }
}

/// A table of 16, and what looking it up needs.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Table {
    values: __m512,
    /// The second eight lanes.
    upper: __mmask16,
    one: __m512i,
}

impl Table {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn new(values: &[f32; 16]) -> Self {
        Self {
            values: load(values),
            upper: hidden(&0xff00),
            one: _mm512_set1_epi32(hidden(&1)),
        }
    }

    /// The values of 16 codes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn decode(&self, codes: &[u8; 8]) -> __m512 {
        let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
        // Each lane shifts its own code down, and a permutation looks at the lowest four bits.
        let halves = codes.as_chunks::<4>().0;
        let low = i32::from_le_bytes(halves[0]);
        let high = i32::from_le_bytes(halves[1]);
        let words = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), self.upper, high);
        _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), self.values)
    }
}

/// 16 bytes as integers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn widen(bytes: &[u8; 16]) -> __m512i {
    // SAFETY: 16 bytes.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn select(codes: &[u8], values: &[f32; 16], out: &mut [f32]) {
    let table = load(values);
    let groups = codes.as_chunks::<16>().0;
    for (codes, out) in groups.iter().zip(out.as_chunks_mut::<16>().0) {
        store(_mm512_permutexvar_ps(widen(codes), table), out);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn select_of_256(codes: &[u8], values: &[f32; 256], out: &mut [f32]) {
    let groups = codes.as_chunks::<16>().0;
    for (codes, out) in groups.iter().zip(out.as_chunks_mut::<16>().0) {
        // SAFETY: a byte is an index into the table.
        store(
            unsafe { _mm512_i32gather_ps::<4>(widen(codes), values.as_ptr()) },
            out,
        );
    }
}

/// The second operand's bits where the third has ones, the first's elsewhere.
const SELECT: i32 = 0b1101_1000;

/// The lowest `BITS` bits of the second operand, and above them those of the first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn join<const BITS: u32>(high: __m512i, low: __m512i) -> __m512i {
    let mask = _mm512_set1_epi32((1 << BITS) - 1);
    _mm512_ternarylogic_epi32::<SELECT>(_mm512_slli_epi32::<BITS>(high), low, mask)
}

/// Stores the codes of eight registers, of which each 128 bits have two bytes, register by register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn store_pairs(pairs: __m512i, to: *mut u8) {
    /// Word by word of the result, where it is.
    #[repr(align(64))]
    struct Order([u16; 32]);
    static ORDER: Order = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i % 4 * 8 + i / 4) as u16;
            i += 1;
        }
        Order(order)
    };
    // SAFETY: a register's words; the caller's promise.
    unsafe {
        let order = hidden(&*(&raw const ORDER.0).cast::<__m512i>());
        _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(order, pairs));
    }
}

/// The cells of a table in registers.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct InCells {
    codes: [__m512i; 2],
    thresholds: [__m512; 2],
}

#[expect(
    unsafe_op_in_unsafe_fn,
    reason = "each function is a few instructions, which the caller's processor has"
)]
impl CellTable<__m512> for InCells {
    #[inline(always)]
    unsafe fn new(cells: &Cells) -> Option<Self> {
        let [low, high] = &cells.codes;
        Some(Self {
            codes: [widen(low), widen(high)],
            thresholds: [load(&cells.thresholds[0]), load(&cells.thresholds[1])],
        })
    }

    #[inline(always)]
    unsafe fn scale(self, scale: __m512) -> Self {
        let [low, high] = self.thresholds;
        Self {
            thresholds: [_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale)],
            ..self
        }
    }

    #[inline(always)]
    unsafe fn pick<const OR_EQUAL: bool>(self, x: __m512, factor: __m512) -> __m512i {
        let u = _mm512_fmadd_ps(_mm512_abs_ps(x), factor, _mm512_set1_ps(Cells::OFFSET));
        let magnitude = _mm512_srli_epi32::<21>(_mm512_castps_si512(u));
        let sign = _mm512_srli_epi32::<27>(_mm512_castps_si512(x));
        let cell = _mm512_ternarylogic_epi32::<SELECT>(magnitude, sign, _mm512_set1_epi32(16));
        let [low, high] = self.codes;
        let code = _mm512_permutex2var_epi32(low, cell, high);
        let [low, high] = self.thresholds;
        let threshold = _mm512_permutex2var_ps(low, cell, high);
        let above = if OR_EQUAL {
            _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, threshold)
        } else {
            _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, threshold)
        };
        _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(hidden(&1)))
    }
}

/// A binary search in registers: the thresholds that each of four comparisons chooses from, at the
/// index that the comparisons before it have found.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Thresholds {
    middle: __m512,
    quarters: [__m512; 2],
    eighths: __m512,
    sixteenths: __m512,
    one: __m512i,
}

impl Thresholds {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn new(table: Table) -> Self {
        let sixteenths = table.values;
        let ahead = _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15);
        Self {
            middle: _mm512_permutexvar_ps(_mm512_set1_epi32(7), sixteenths),
            quarters: [
                _mm512_permutexvar_ps(_mm512_set1_epi32(3), sixteenths),
                _mm512_permutexvar_ps(_mm512_set1_epi32(11), sixteenths),
            ],
            eighths: _mm512_permutexvar_ps(ahead, sixteenths),
            sixteenths,
            one: table.one,
        }
    }

    /// The number of thresholds, each times `scale` if there is one, that x is above.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn search<const OR_EQUAL: bool>(&self, x: __m512, scale: Option<__m512>) -> __m512i {
        let upper = above::<OR_EQUAL>(x, self.middle, scale);
        let code = _mm512_maskz_set1_epi32(upper, 8);
        let quarter = _mm512_mask_blend_ps(upper, self.quarters[0], self.quarters[1]);
        let bit = above::<OR_EQUAL>(x, quarter, scale);
        let code = _mm512_mask_or_epi32(code, bit, code, _mm512_set1_epi32(4));
        let eighth = _mm512_permutexvar_ps(code, self.eighths);
        let bit = above::<OR_EQUAL>(x, eighth, scale);
        let code = _mm512_mask_or_epi32(code, bit, code, _mm512_set1_epi32(2));
        let sixteenth = _mm512_permutexvar_ps(code, self.sixteenths);
        let bit = above::<OR_EQUAL>(x, sixteenth, scale);
        _mm512_mask_or_epi32(code, bit, code, self.one)
    }
}

/// Where x is above a threshold, times `scale` if there is one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn above<const OR_EQUAL: bool>(x: __m512, threshold: __m512, scale: Option<__m512>) -> __mmask16 {
    let threshold = match scale {
        Some(scale) => _mm512_mul_ps(threshold, scale),
        None => threshold,
    };
    if OR_EQUAL {
        _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, threshold)
    } else {
        _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, threshold)
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn count(values: &[f32], thresholds: &[f32; 16], out: &mut [u8]) {
    let thresholds = Thresholds::new(Table::new(thresholds));
    let groups = values.as_chunks::<16>().0;
    for (values, out) in groups.iter().zip(out.as_chunks_mut::<16>().0) {
        store_bytes(thresholds.search::<false>(load(values), None), out);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn count_scaled<const OR_EQUAL: bool>(
    values: &[f32],
    scales: &[f32],
    thresholds: &[f32; 16],
    out: &mut [u8],
) {
    let thresholds = Thresholds::new(Table::new(thresholds));
    let groups = values.as_chunks::<16>().0.iter();
    let groups = groups.zip(scales.as_chunks::<16>().0);
    for ((values, scales), out) in groups.zip(out.as_chunks_mut::<16>().0) {
        let code = thresholds.search::<OR_EQUAL>(load(values), Some(load(scales)));
        store_bytes(code, out);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn count_of_256(values: &[f32], thresholds: &[f32; 256], out: &mut [u8]) {
    // Every sixteenth threshold decides the upper four bits in registers.
    let mut coarse = [0.0; 16];
    for (coarse, group) in coarse.iter_mut().zip(thresholds.as_chunks::<16>().0) {
        *coarse = group[15];
    }
    let coarse = Thresholds::new(Table::new(&coarse));
    let groups = values.as_chunks::<16>().0;
    for (values, out) in groups.iter().zip(out.as_chunks_mut::<16>().0) {
        let x = load(values);
        let mut code = _mm512_slli_epi32::<4>(coarse.search::<false>(x, None));
        for step in [8, 4, 2, 1] {
            let at = _mm512_add_epi32(code, _mm512_set1_epi32(step - 1));
            // SAFETY: every index is below 256.
            let threshold = unsafe { _mm512_i32gather_ps::<4>(at, thresholds.as_ptr()) };
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, threshold);
            code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(step));
        }
        store_bytes(code, out);
    }
}

/// `q` of [`Lanes::count_linear`] to the code: the one comparison.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn decide(x: __m512, q: __m512, scale: __m512, levels: f32) -> __m512i {
    let most = _mm512_set1_ps(levels - 2.0);
    // The second operand is taken where q is NaN.
    let q = _mm512_min_ps(_mm512_max_ps(q, _mm512_setzero_ps()), most);
    let floor = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(q);
    let step = 1.0 / levels;
    let threshold = _mm512_fmadd_ps(floor, _mm512_set1_ps(step), _mm512_set1_ps(1.5 * step));
    let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_mul_ps(threshold, scale));
    let code = _mm512_cvttps_epi32(floor);
    _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(1))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn count_linear(values: &[f32], scales: &[f32], levels: f32, out: &mut [u8]) {
    let (n, minus_one) = (_mm512_set1_ps(levels), _mm512_set1_ps(-1.0));
    let groups = values.as_chunks::<16>().0.iter();
    let groups = groups.zip(scales.as_chunks::<16>().0);
    for ((values, scales), out) in groups.zip(out.as_chunks_mut::<16>().0) {
        let (x, scale) = (load(values), load(scales));
        let q = _mm512_fmadd_ps(_mm512_div_ps(x, scale), n, minus_one);
        store_bytes(decide(x, q, scale, levels), out);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn count_linear_block(values: &[f32], scale: f32, levels: f32, out: &mut [u8]) {
    let factor = levels / scale;
    if factor.is_infinite() {
        // SAFETY: this function's own instructions.
        return unsafe { Portable::count_linear_block(values, scale, levels, out) };
    }
    let (factor, minus_one) = (_mm512_set1_ps(factor), _mm512_set1_ps(-1.0));
    let groups = values.as_chunks::<16>().0;
    for (values, out) in groups.iter().zip(out.as_chunks_mut::<16>().0) {
        let x = load(values);
        let q = _mm512_fmadd_ps(x, factor, minus_one);
        store_bytes(decide(x, q, _mm512_set1_ps(scale), levels), out);
    }
}

#[expect(
    unsafe_op_in_unsafe_fn,
    reason = "each function is an instruction or a few, which the caller's processor has"
)]
impl Vector for __m512 {
    const WIDTH: usize = 16;
    type Registers = [Self; 8];
    // SAFETY: zero bits are zeros.
    const ZEROS: [Self; 8] = [unsafe { std::mem::zeroed() }; 8];
    type Table = Table;
    type Eight = Self;
    type Thresholds = Thresholds;
    type Levels = Table;
    type Few = [Self; 1];
    // SAFETY: zero bits are zeros.
    const FEW: [Self; 1] = [unsafe { std::mem::zeroed() }];
    type Even = Table;
    type Cells = InCells;
    type Codes = __m512i;
    // SAFETY: zero bits are zeros.
    const NO_CODES: __m512i = unsafe { std::mem::zeroed() };

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        _mm512_set1_ps(x)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        _mm512_loadu_ps(from)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        _mm512_storeu_ps(to, self);
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        _mm512_sub_ps(self, other)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        _mm512_mul_ps(self, other)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        _mm512_div_ps(self, other)
    }

    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        _mm512_sqrt_ps(self)
    }

    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        _mm512_rcp14_ps(self)
    }

    #[inline(always)]
    unsafe fn reciprocal_sqrt(self) -> Self {
        _mm512_rsqrt14_ps(self)
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        _mm512_abs_ps(self)
    }

    #[inline(always)]
    unsafe fn copysign(self, sign: Self) -> Self {
        // The bits of `sign` where the first operand has ones, of `self` elsewhere.
        const SELECT: i32 = 0b1100_1010;
        let bit = _mm512_castps_si512(_mm512_set1_ps(-0.0));
        let (sign, magnitude) = (_mm512_castps_si512(sign), _mm512_castps_si512(self));
        _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<SELECT>(bit, sign, magnitude))
    }

    #[inline(always)]
    unsafe fn sign(self) -> Self {
        // Neither 0 nor NaN.
        let other = _mm512_cmp_ps_mask::<_CMP_NEQ_OQ>(self, _mm512_setzero_ps());
        _mm512_mask_blend_ps(other, self, _mm512_set1_ps(1.0).copysign(self))
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        _mm512_min_ps(self, other)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        _mm512_max_ps(self, other)
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        _mm512_fmadd_ps(self, a, b)
    }

    #[inline(always)]
    unsafe fn canonical(self) -> Self {
        let nan = _mm512_castsi512_ps(_mm512_set1_epi32(NAN_BITS.cast_signed()));
        // SAFETY: the caller's promise.
        unsafe { or_nan(self, nan) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        _mm512_maskz_loadu_ps(first_lanes(count), from)
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // As in `write`.
        if count > 0 {
            _mm512_mask_storeu_ps(to, first_lanes(count), self);
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16, count: usize) -> Self {
        let narrow = _mm256_maskz_loadu_epi16(first_lanes(count), from.cast());
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, count: usize) {
        let x = widened_nan(self);
        // A carry into the upper half, on ties only where that is odd.
        let is_odd = _mm512_test_epi32_mask(x, _mm512_set1_epi32(1 << 16));
        let (half, below) = (_mm512_set1_epi32(0x8000), _mm512_set1_epi32(0x7fff));
        let carry = _mm512_mask_mov_epi32(below, is_odd, half);
        store_upper(_mm512_add_epi32(x, carry), to, count);
    }

    #[inline(always)]
    unsafe fn round_bf16(self, draws: *const u16, to: *mut bf16, count: usize) {
        let draws = _mm512_cvtepu16_epi32(_mm256_loadu_si256(draws.cast()));
        store_upper(_mm512_add_epi32(widened_nan(self), draws), to, count);
    }

    #[inline(always)]
    unsafe fn keep(self, count: usize) -> Self {
        _mm512_maskz_mov_ps(first_lanes(count), self)
    }

    #[inline(always)]
    unsafe fn largest(self, other: Self) -> Self {
        let magnitude = _mm512_castps_si512(_mm512_abs_ps(other));
        let larger = _mm512_max_epi32(_mm512_castps_si512(self), magnitude);
        _mm512_castsi512_ps(larger)
    }

    #[inline(always)]
    unsafe fn highest(self, other: Self) -> Self {
        let (a, b) = (_mm512_castps_si512(self), _mm512_castps_si512(other));
        _mm512_castsi512_ps(_mm512_max_epu32(a, b))
    }

    #[inline(always)]
    unsafe fn all_usual(self) -> bool {
        let infinity = _mm512_set1_epi32(INF_BITS.cast_signed());
        _mm512_cmpge_epu32_mask(_mm512_castps_si512(self), infinity) == 0
    }

    #[inline(always)]
    unsafe fn smallest(self, other: Self) -> Self {
        let (a, b) = (_mm512_castps_si512(self), _mm512_castps_si512(other));
        _mm512_castsi512_ps(_mm512_min_epu32(a, b))
    }

    #[inline(always)]
    unsafe fn reduce_largest(self) -> i32 {
        _mm512_reduce_max_epi32(_mm512_castps_si512(self))
    }

    #[inline(always)]
    unsafe fn block_scale(self) -> Self {
        /// For each class of numbers, what is taken: the first operand for NaN and infinity, the second
        /// for the rest.
        const RESPONSES: i32 = 0x1100_1100;
        // In every lane, so that nothing goes through a register of one number.
        let x = _mm512_castps_si512(self);
        let x = _mm512_max_epi32(x, _mm512_shuffle_i64x2::<0b01_00_11_10>(x, x));
        let x = _mm512_max_epi32(x, _mm512_shuffle_i64x2::<0b10_11_00_01>(x, x));
        let x = _mm512_max_epi32(x, _mm512_shuffle_epi32::<0b01_00_11_10>(x));
        let x = _mm512_max_epi32(x, _mm512_shuffle_epi32::<0b10_11_00_01>(x));
        let nan = _mm512_castsi512_ps(_mm512_set1_epi32(NAN_BITS.cast_signed()));
        let responses = _mm512_set1_epi32(RESPONSES);
        _mm512_fixupimm_ps::<0>(nan, _mm512_castsi512_ps(x), responses)
    }

    #[inline(always)]
    unsafe fn inverse(self) -> Self {
        // Of one number: the divider takes a third of the time.
        Self::splat(1.0 / self.first())
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        _mm512_cvtss_f32(self)
    }

    #[inline(always)]
    unsafe fn least_bits(self, other: Self) -> Self {
        let less = _mm512_sub_epi32(_mm512_castps_si512(other), _mm512_set1_epi32(1));
        _mm512_castsi512_ps(_mm512_min_epu32(_mm512_castps_si512(self), less))
    }

    #[inline(always)]
    unsafe fn any_less(self, bound: u32) -> bool {
        let bound = _mm512_set1_epi32(bound.cast_signed());
        _mm512_cmplt_epu32_mask(_mm512_castps_si512(self), bound) != 0
    }

    #[inline(always)]
    unsafe fn closest(self, number: Self) -> Self {
        /// The smaller magnitude, without its sign.
        const LEAST_MAGNITUDE: i32 = 0b1010;
        // The distance with its sign.
        let distance = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEAREST_INT }>(number);
        _mm512_range_ps::<LEAST_MAGNITUDE>(self, distance)
    }

    #[inline(always)]
    unsafe fn below(self, bound: Self) -> u32 {
        u32::from(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self, bound))
    }

    #[inline(always)]
    unsafe fn table(values: &[f32; 16]) -> Table {
        Table::new(values)
    }

    #[inline(always)]
    unsafe fn at(table: Table, codes: __m512i) -> Self {
        _mm512_permutexvar_ps(codes, table.values)
    }

    #[inline(always)]
    unsafe fn eight(values: &[f32; 8]) -> Self {
        // Twice, so that the fourth bit of an index does not matter.
        _mm512_broadcast_f32x8(_mm256_loadu_ps(values.as_ptr()))
    }

    #[inline(always)]
    unsafe fn by_exponent(self, table: Self) -> Self {
        let exponents = _mm512_srli_epi32::<23>(_mm512_castps_si512(self));
        _mm512_permutexvar_ps(exponents, table)
    }

    #[inline(always)]
    unsafe fn levels(table: &[f32; 16]) -> Table {
        Self::table(table)
    }

    #[inline(always)]
    unsafe fn scale_levels(levels: Table, scale: Self) -> Table {
        levels.scale(scale)
    }

    #[inline(always)]
    unsafe fn decode(levels: Table, codes: *const u8) -> [Self; 1] {
        [levels.decode(&*codes.cast())]
    }

    #[inline(always)]
    unsafe fn thresholds(values: &[f32; 16]) -> Thresholds {
        Thresholds::new(Self::table(values))
    }

    #[inline(always)]
    unsafe fn scale_thresholds(thresholds: Thresholds, scale: Self) -> Thresholds {
        let [low, high] = thresholds.quarters;
        Thresholds {
            middle: _mm512_mul_ps(thresholds.middle, scale),
            quarters: [_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale)],
            eighths: _mm512_mul_ps(thresholds.eighths, scale),
            sixteenths: _mm512_mul_ps(thresholds.sixteenths, scale),
            ..thresholds
        }
    }

    #[inline(always)]
    unsafe fn search<const OR_EQUAL: bool>(self, thresholds: &Thresholds) -> __m512i {
        thresholds.search::<OR_EQUAL>(self, None)
    }

    #[inline(always)]
    unsafe fn step_up(self, rise: Self, draws: *const u16, codes: __m512i) -> __m512i {
        // 1 + u, whose fraction begins with the draw: of it times a number, less the number, nothing is
        // rounded but the result.
        let draws = _mm512_cvtepu16_epi32(_mm256_loadu_si256(draws.cast()));
        let fraction = _mm512_slli_epi32::<7>(draws);
        let one_more = _mm512_or_si512(fraction, _mm512_set1_epi32(ONE_AND_HALF_A_DRAW));
        let bound = _mm512_fmsub_ps(_mm512_castsi512_ps(one_more), rise, rise);
        let up = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self, bound);
        _mm512_mask_add_epi32(codes, up, codes, _mm512_set1_epi32(hidden(&1)))
    }

    #[inline(always)]
    unsafe fn store_codes(codes: [__m512i; PACKED], to: *mut u8) {
        // Two registers' codes become one's, then four, then eight: a lane's, the last one's lowest.
        let [a, b, c, d, e, f, g, h] = codes;
        let high = join::<8>(join::<4>(a, b), join::<4>(c, d));
        let low = join::<8>(join::<4>(e, f), join::<4>(g, h));
        let packed = join::<16>(high, low);
        // Each 64 bits have the even codes of eight registers, the last one's lowest, and above them
        // the odd ones: they become the pairs of registers 7, 5, 3, 1 and then of 6, 4, 2, 0.
        let nibbles = _mm512_set1_epi64(0xf0f0_f0f0_0f0f_0f0f_u64.cast_signed());
        let swapped = _mm512_shuffle_epi32::<0b10_11_00_01>(packed);
        let moved = _mm512_rolv_epi32(swapped, _mm512_set1_epi64(28 << 32 | 4));
        let pairs = _mm512_ternarylogic_epi32::<SELECT>(moved, packed, nibbles);
        // Register by register, two bytes.
        let order = _mm_setr_epi8(7, 15, 3, 11, 6, 14, 2, 10, 5, 13, 1, 9, 4, 12, 0, 8);
        let pairs = _mm512_shuffle_epi8(pairs, _mm512_broadcast_i32x4(order));
        store_pairs(pairs, to);
    }

    #[inline(always)]
    unsafe fn store_clean_codes(codes: [__m512i; PACKED], to: *mut u8) {
        let [a, b, c, d, e, f, g, h] = codes;
        let [ab, cd] = [_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d)];
        let [ef, gh] = [_mm512_packus_epi32(e, f), _mm512_packus_epi32(g, h)];
        let [low, high] = [_mm512_packus_epi16(ab, cd), _mm512_packus_epi16(ef, gh)];
        // Of two bytes, the first and sixteen times the second.
        let places = _mm512_set1_epi16(16 << 8 | 1);
        let [low, high] = [low, high].map(|codes| _mm512_maddubs_epi16(codes, places));
        store_pairs(_mm512_packus_epi16(low, high), to);
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self {
        _mm512_cvtepi32_ps(widen(&*from.cast()))
    }

    #[inline(always)]
    unsafe fn store_bytes(self, zero: i32, to: *mut u8) {
        let codes = _mm512_add_epi32(_mm512_cvttps_epi32(self), _mm512_set1_epi32(zero));
        store_bytes(
            _mm512_max_epi32(codes, _mm512_setzero_si512()),
            &mut *to.cast(),
        );
    }
}

#[expect(
    unsafe_op_in_unsafe_fn,
    reason = "each function is an instruction or a few, which the caller's processor has"
)]
impl EvenTable<__m512> for Table {
    #[inline(always)]
    unsafe fn new(below: &[f32; 16]) -> Self {
        __m512::table(below)
    }

    #[inline(always)]
    unsafe fn scale(self, scale: __m512) -> Self {
        Self {
            values: _mm512_mul_ps(self.values, scale),
            ..self
        }
    }

    #[inline(always)]
    unsafe fn decide<const OR_EQUAL: bool, const SQUARES: bool>(
        self,
        x: __m512,
        q: __m512,
        factor: __m512,
        scale: Option<__m512>,
    ) -> __m512i {
        // Added to 2^23 and rounded down, a number leaves its integer in the lowest bits; NaN has
        // zeros there if it comes of 0 times infinity.
        let whole = _mm512_set1_ps((1_u32 << 23) as f32);
        let floor = _mm512_fmadd_round_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(
            q, factor, whole,
        );
        let floor = _mm512_castps_si512(floor);
        let mut threshold = _mm512_permutexvar_ps(floor, self.values);
        if let Some(scale) = scale {
            threshold = _mm512_mul_ps(threshold, scale);
        }
        let not_above = if OR_EQUAL {
            _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, threshold)
        } else {
            _mm512_cmp_ps_mask::<_CMP_LE_OQ>(x, threshold)
        };
        _mm512_mask_sub_epi32(floor, not_above, floor, self.one)
    }
}
