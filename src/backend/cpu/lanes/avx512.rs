//! With AVX-512: 16 lanes, a table of 16 floats in one register, comparisons in mask registers.

#![expect(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use half::f16;

use super::{Avx2, Chunk, Lanes, Portable};

/// For processors with AVX-512 F, BW, VL and DQ.
pub(in crate::backend::cpu) struct Avx512;

impl Lanes for Avx512 {
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
    unsafe fn load_f16(from: *const f16, out: &mut Chunk) {
        // SAFETY: as above.
        unsafe { Avx2::load_f16(from, out) }
    }

    #[inline(always)]
    unsafe fn store_f16(values: &Chunk, to: *mut f16) {
        // SAFETY: as above.
        unsafe { Avx2::store_f16(values, to) }
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
    let table = load(values);
    let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    // Eight bytes are 16 codes: each lane shifts its own down, and a permutation looks at the lowest
    // four bits of an index.
    let groups = codes.as_chunks::<8>().0;
    for (bytes, out) in groups.iter().zip(out.as_chunks_mut::<16>().0) {
        let [low, high] = [0, 4].map(|at| i32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i])));
        let words = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high);
        let codes = _mm512_srlv_epi32(words, shifts);
        store(_mm512_permutexvar_ps(codes, table), out);
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

/// A binary search in registers: the thresholds that each of four comparisons chooses from, at the
/// index that the comparisons before it have found.
#[derive(Clone, Copy)]
struct Levels {
    middle: __m512,
    quarters: [__m512; 2],
    eighths: __m512,
    sixteenths: __m512,
}

impl Levels {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn new(thresholds: &[f32; 16]) -> Self {
        let ahead = |by: usize| std::array::from_fn(|i| thresholds[(i + by).min(15)]);
        Self {
            middle: _mm512_set1_ps(thresholds[7]),
            quarters: [3, 11].map(|i| _mm512_set1_ps(thresholds[i])),
            eighths: load(&ahead(1)),
            sixteenths: load(thresholds),
        }
    }

    /// The number of thresholds, each times `scale` if there is one, that x is above.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn search<const OR_EQUAL: bool>(&self, x: __m512, scale: Option<__m512>) -> __m512i {
        let above = |threshold: __m512| {
            let threshold = match scale {
                Some(scale) => _mm512_mul_ps(threshold, scale),
                None => threshold,
            };
            if OR_EQUAL {
                _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, threshold)
            } else {
                _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, threshold)
            }
        };
        let bit = |code: __m512i, above: __mmask16, bit: i32| {
            _mm512_mask_or_epi32(code, above, code, _mm512_set1_epi32(bit))
        };
        let upper = above(self.middle);
        let code = _mm512_maskz_set1_epi32(upper, 8);
        let quarter = _mm512_mask_blend_ps(upper, self.quarters[0], self.quarters[1]);
        let code = bit(code, above(quarter), 4);
        let code = bit(code, above(_mm512_permutexvar_ps(code, self.eighths)), 2);
        bit(code, above(_mm512_permutexvar_ps(code, self.sixteenths)), 1)
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn count(values: &[f32], thresholds: &[f32; 16], out: &mut [u8]) {
    let levels = Levels::new(thresholds);
    let groups = values.as_chunks::<16>().0;
    for (values, out) in groups.iter().zip(out.as_chunks_mut::<16>().0) {
        store_bytes(levels.search::<false>(load(values), None), out);
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
    let levels = Levels::new(thresholds);
    let groups = values.as_chunks::<16>().0.iter();
    let groups = groups.zip(scales.as_chunks::<16>().0);
    for ((values, scales), out) in groups.zip(out.as_chunks_mut::<16>().0) {
        let code = levels.search::<OR_EQUAL>(load(values), Some(load(scales)));
        store_bytes(code, out);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn count_of_256(values: &[f32], thresholds: &[f32; 256], out: &mut [u8]) {
    // Every sixteenth threshold decides the upper four bits in registers.
    let coarse: [f32; 16] = std::array::from_fn(|i| thresholds[16 * i + 15]);
    let levels = Levels::new(&coarse);
    let groups = values.as_chunks::<16>().0;
    for (values, out) in groups.iter().zip(out.as_chunks_mut::<16>().0) {
        let x = load(values);
        let mut code = _mm512_slli_epi32::<4>(levels.search::<false>(x, None));
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
