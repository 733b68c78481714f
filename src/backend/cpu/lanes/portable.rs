//! In plain Rust.

#![expect(unsafe_code, reason = "reads and writes rows of raw buffers")]

use super::Lanes;
use crate::backend::cpu::memory::load_code;

/// For any processor.
pub(in crate::backend::cpu) struct Portable;

/// Elements of one run: short enough for the counts to stay in registers and L1.
const RUN: usize = 128;

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn lookup(row: *const u8, col: usize, values: &[f32; 16], out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let code = unsafe { load_code(row, 2, col + i) };
            *out = values[usize::from(code & 15)];
        }
    }

    #[inline(always)]
    unsafe fn count(values: &[f32], thresholds: &[f32; 16], out: &mut [u8]) {
        for (values, out) in values.chunks(RUN).zip(out.chunks_mut(RUN)) {
            let mut counts = [0_i32; RUN];
            for threshold in thresholds {
                for (count, x) in counts.iter_mut().zip(values) {
                    *count += i32::from(x > threshold);
                }
            }
            narrow(&counts, out);
        }
    }

    #[inline(always)]
    unsafe fn count_scaled(values: &[f32], scales: &[f32], midpoints: &[f32; 16], out: &mut [u8]) {
        let runs = values.chunks(RUN).zip(scales.chunks(RUN));
        for ((values, scales), out) in runs.zip(out.chunks_mut(RUN)) {
            let mut counts = [0_i32; RUN];
            for mid in midpoints {
                for ((count, x), scale) in counts.iter_mut().zip(values).zip(scales) {
                    *count += i32::from(*x > mid * scale);
                }
            }
            narrow(&counts, out);
        }
    }

    #[inline(always)]
    unsafe fn count_many(values: &[f32], thresholds: &[f32; 256], out: &mut [u8]) {
        for (x, out) in values.iter().zip(out) {
            let mut code = 0;
            for step in [128, 64, 32, 16, 8, 4, 2, 1] {
                code += if *x > thresholds[code + step - 1] {
                    step
                } else {
                    0
                };
            }
            *out = code as u8;
        }
    }

    #[inline(always)]
    unsafe fn pack(codes: &[u8], row: *mut u8) {
        for (i, pair) in codes.chunks(2).enumerate() {
            let high = pair.get(1).copied().unwrap_or(0);
            // SAFETY: the caller's promise.
            unsafe { *row.add(i) = pair[0] | (high << 4) };
        }
    }
}

/// Counts of at most 16.
#[inline(always)]
fn narrow(counts: &[i32; RUN], out: &mut [u8]) {
    for (out, count) in out.iter_mut().zip(counts) {
        *out = *count as u8;
    }
}
