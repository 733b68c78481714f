//! With AVX-512 (F, BW, VL, DQ): 16 lanes, tables of 16 floats in one register.

#![expect(unsafe_code, reason = "intrinsics, and rows of raw buffers")]

use std::arch::x86_64::*;

use super::{Lanes, Portable, avx2};

/// For processors with AVX-512.
pub(in crate::backend::cpu) struct Avx512;

impl Lanes for Avx512 {
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
        // SAFETY: the caller's promise; AVX-512 has AVX2.
        unsafe { avx2::Avx2::pack(codes, row) }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn lookup(row: *const u8, col: usize, values: &[f32; 16], out: &mut [f32]) {
    // From an even column on, 16 bytes are 32 codes.
    let head = (col % 2).min(out.len());
    let (first, rest) = out.split_at_mut(head);
    let body = rest.len() / 32 * 32;
    let (body, last) = rest.split_at_mut(body);
    let at = col + head;
    // SAFETY: the row has the columns; the chunks have 32 elements.
    unsafe {
        Portable::lookup(row, col, values, first);
        let table = _mm512_loadu_ps(values.as_ptr());
        let low = _mm_set1_epi8(15);
        for (i, out) in body.chunks_exact_mut(32).enumerate() {
            let bytes = _mm_loadu_si128(row.add(at / 2 + 16 * i).cast());
            let even = _mm_and_si128(bytes, low);
            let odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);
            let codes = [_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)];
            for (codes, out) in codes.into_iter().zip(out.chunks_exact_mut(16)) {
                let values = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), table);
                _mm512_storeu_ps(out.as_mut_ptr(), values);
            }
        }
        Portable::lookup(row, at + body.len(), values, last);
    }
}

/// A binary search in a register: after each comparison the index gains a bit.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn search(x: __m512, threshold: impl Fn(__m512i) -> __m512) -> __m512i {
    let mut code = _mm512_setzero_si512();
    for step in [8, 4, 2, 1] {
        let at = _mm512_add_epi32(code, _mm512_set1_epi32(step - 1));
        let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, threshold(at));
        code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(step));
    }
    code
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn count(values: &[f32], thresholds: &[f32; 16], out: &mut [u8]) {
    let (chunks, last) = values.as_chunks::<16>();
    let (outs, last_out) = out.as_chunks_mut::<16>();
    // SAFETY: chunks of 16 elements.
    unsafe {
        let table = _mm512_loadu_ps(thresholds.as_ptr());
        for (values, out) in chunks.iter().zip(outs) {
            let x = _mm512_loadu_ps(values.as_ptr());
            let code = search(x, |at| _mm512_permutexvar_ps(at, table));
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(code));
        }
        Portable::count(last, thresholds, last_out);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn count_scaled(values: &[f32], scales: &[f32], midpoints: &[f32; 16], out: &mut [u8]) {
    let (chunks, last) = values.as_chunks::<16>();
    let (scale_chunks, last_scales) = scales.as_chunks::<16>();
    let (outs, last_out) = out.as_chunks_mut::<16>();
    // SAFETY: chunks of 16 elements.
    unsafe {
        let table = _mm512_loadu_ps(midpoints.as_ptr());
        for ((values, scales), out) in chunks.iter().zip(scale_chunks).zip(outs) {
            let x = _mm512_loadu_ps(values.as_ptr());
            let scale = _mm512_loadu_ps(scales.as_ptr());
            let threshold = |at| _mm512_mul_ps(_mm512_permutexvar_ps(at, table), scale);
            let code = search(x, threshold);
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(code));
        }
        Portable::count_scaled(last, last_scales, midpoints, last_out);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn count_many(values: &[f32], thresholds: &[f32; 256], out: &mut [u8]) {
    let (chunks, last) = values.as_chunks::<16>();
    let (outs, last_out) = out.as_chunks_mut::<16>();
    // Every sixteenth threshold decides the upper four bits in a register.
    let coarse: [f32; 16] = std::array::from_fn(|i| thresholds[16 * i + 15]);
    // SAFETY: chunks of 16 elements; every index is below 256.
    unsafe {
        let table = _mm512_loadu_ps(coarse.as_ptr());
        for (values, out) in chunks.iter().zip(outs) {
            let x = _mm512_loadu_ps(values.as_ptr());
            let upper = search(x, |at| _mm512_permutexvar_ps(at, table));
            let base = _mm512_slli_epi32::<4>(upper);
            let lower = search(x, |at| {
                _mm512_i32gather_ps::<4>(_mm512_add_epi32(base, at), thresholds.as_ptr())
            });
            let code = _mm512_add_epi32(base, lower);
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(code));
        }
        Portable::count_many(last, thresholds, last_out);
    }
}
