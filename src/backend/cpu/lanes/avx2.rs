//! With AVX2: 8 lanes, tables of 16 floats in two registers.

#![expect(unsafe_code, reason = "intrinsics, and rows of raw buffers")]

use std::arch::x86_64::*;

use super::{Lanes, Portable};

/// For processors with AVX2, FMA and F16C.
pub(in crate::backend::cpu) struct Avx2;

impl Lanes for Avx2 {
    #[inline(always)]
    unsafe fn lookup(row: *const u8, col: usize, values: &[f32; 16], out: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { lookup(row, col, values, out) }
    }

    #[inline(always)]
    unsafe fn count(values: &[f32], thresholds: &[f32; 16], out: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { count(values, thresholds, out) }
    }

    #[inline(always)]
    unsafe fn count_scaled(values: &[f32], scales: &[f32], midpoints: &[f32; 16], out: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { count_scaled(values, scales, midpoints, out) }
    }

    #[inline(always)]
    unsafe fn count_many(values: &[f32], thresholds: &[f32; 256], out: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { count_many(values, thresholds, out) }
    }

    #[inline(always)]
    unsafe fn pack(codes: &[u8], row: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { pack(codes, row) }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn lookup(row: *const u8, col: usize, values: &[f32; 16], out: &mut [f32]) {
    // From an even column on, 8 bytes are 16 codes.
    let head = (col % 2).min(out.len());
    let (first, rest) = out.split_at_mut(head);
    let body = rest.len() / 16 * 16;
    let (body, last) = rest.split_at_mut(body);
    let at = col + head;
    // SAFETY: the row has the columns; the chunks have 16 elements.
    unsafe {
        Portable::lookup(row, col, values, first);
        let lower = _mm256_loadu_ps(values.as_ptr());
        let upper = _mm256_loadu_ps(values.as_ptr().add(8));
        let low = _mm_set1_epi8(15);
        for (i, out) in body.chunks_exact_mut(16).enumerate() {
            let bytes = _mm_loadl_epi64(row.add(at / 2 + 8 * i).cast());
            let even = _mm_and_si128(bytes, low);
            let odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);
            let codes = _mm_unpacklo_epi8(even, odd);
            let halves = [codes, _mm_unpackhi_epi64(codes, codes)];
            for (codes, out) in halves.into_iter().zip(out.chunks_exact_mut(8)) {
                let codes = _mm256_cvtepu8_epi32(codes);
                // Bit 3 of a code, in the sign, chooses between the halves of the table.
                let choose = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));
                let values = _mm256_blendv_ps(
                    _mm256_permutevar8x32_ps(lower, codes),
                    _mm256_permutevar8x32_ps(upper, codes),
                    choose,
                );
                _mm256_storeu_ps(out.as_mut_ptr(), values);
            }
        }
        Portable::lookup(row, at + body.len(), values, last);
    }
}

/// The thresholds that each of four comparisons chooses from, by the bits found before it.
struct Levels([__m256; 4]);

impl Levels {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn new(thresholds: &[f32; 16]) -> Self {
        Self([8, 4, 2, 1].map(|step| {
            // With the bits j found, the thresholds above j 2 step and below (j + 1) 2 step are left.
            let table: [f32; 8] =
                std::array::from_fn(|j| thresholds[((2 * j + 1) * step - 1).min(15)]);
            // SAFETY: eight floats.
            unsafe { _mm256_loadu_ps(table.as_ptr()) }
        }))
    }

    /// The number of thresholds, each times `scale` if there is one, below x.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn search(&self, x: __m256, scale: Option<__m256>) -> __m256i {
        let mut code = _mm256_setzero_si256();
        for level in self.0 {
            let mut threshold = _mm256_permutevar8x32_ps(level, code);
            if let Some(scale) = scale {
                threshold = _mm256_mul_ps(threshold, scale);
            }
            let above = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(x, threshold));
            // The comparison is 0 or -1.
            code = _mm256_sub_epi32(_mm256_add_epi32(code, code), above);
        }
        code
    }
}

/// Eight codes below 256 as bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store_bytes(codes: __m256i, out: &mut [u8; 8]) {
    let low = _mm256_castsi256_si128(codes);
    let words = _mm_packus_epi32(low, _mm256_extracti128_si256::<1>(codes));
    // SAFETY: eight bytes.
    unsafe { _mm_storel_epi64(out.as_mut_ptr().cast(), _mm_packus_epi16(words, words)) };
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn count(values: &[f32], thresholds: &[f32; 16], out: &mut [u8]) {
    let (chunks, last) = values.as_chunks::<8>();
    let (outs, last_out) = out.as_chunks_mut::<8>();
    // SAFETY: chunks of eight elements.
    unsafe {
        let levels = Levels::new(thresholds);
        for (values, out) in chunks.iter().zip(outs) {
            let x = _mm256_loadu_ps(values.as_ptr());
            store_bytes(levels.search(x, None), out);
        }
        Portable::count(last, thresholds, last_out);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn count_scaled(values: &[f32], scales: &[f32], midpoints: &[f32; 16], out: &mut [u8]) {
    let (chunks, last) = values.as_chunks::<8>();
    let (scale_chunks, last_scales) = scales.as_chunks::<8>();
    let (outs, last_out) = out.as_chunks_mut::<8>();
    // SAFETY: chunks of eight elements.
    unsafe {
        let levels = Levels::new(midpoints);
        for ((values, scales), out) in chunks.iter().zip(scale_chunks).zip(outs) {
            let x = _mm256_loadu_ps(values.as_ptr());
            let scale = _mm256_loadu_ps(scales.as_ptr());
            store_bytes(levels.search(x, Some(scale)), out);
        }
        Portable::count_scaled(last, last_scales, midpoints, last_out);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn count_many(values: &[f32], thresholds: &[f32; 256], out: &mut [u8]) {
    let (chunks, last) = values.as_chunks::<8>();
    let (outs, last_out) = out.as_chunks_mut::<8>();
    // Every sixteenth threshold decides the upper four bits in registers.
    let coarse: [f32; 16] = std::array::from_fn(|i| thresholds[16 * i + 15]);
    // SAFETY: chunks of eight elements; every index is below 256.
    unsafe {
        let levels = Levels::new(&coarse);
        for (values, out) in chunks.iter().zip(outs) {
            let x = _mm256_loadu_ps(values.as_ptr());
            let mut code = _mm256_slli_epi32::<4>(levels.search(x, None));
            for step in [8, 4, 2, 1] {
                let at = _mm256_add_epi32(code, _mm256_set1_epi32(step - 1));
                let threshold = _mm256_i32gather_ps::<4>(thresholds.as_ptr(), at);
                let above = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(x, threshold));
                let gained = _mm256_and_si256(above, _mm256_set1_epi32(step));
                code = _mm256_add_epi32(code, gained);
            }
            store_bytes(code, out);
        }
        Portable::count_many(last, thresholds, last_out);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack(codes: &[u8], row: *mut u8) {
    let (chunks, last) = codes.as_chunks::<32>();
    // SAFETY: the row has room for the codes.
    unsafe {
        // Each pair: even + 16 odd.
        let weights = _mm256_set1_epi16(0x1001);
        for (i, codes) in chunks.iter().enumerate() {
            let codes = _mm256_loadu_si256(codes.as_ptr().cast());
            let words = _mm256_maddubs_epi16(codes, weights);
            let low = _mm256_castsi256_si128(words);
            let bytes = _mm_packus_epi16(low, _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(row.add(16 * i).cast(), bytes);
        }
        Portable::pack(last, row.add(16 * chunks.len()));
    }
}
