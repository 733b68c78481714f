//! In plain Rust, for any processor.

#![expect(unsafe_code, reason = "the trait's functions are unsafe")]

use super::{CHUNK, Lanes};

/// See the module's page.
pub(in crate::backend::cpu) struct Portable;

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn lookup(codes: &[u8], values: &[f32; 16], out: &mut [f32]) {
        for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
            *pair = [
                values[usize::from(byte & 15)],
                values[usize::from(byte >> 4)],
            ];
        }
    }

    #[inline(always)]
    unsafe fn select(codes: &[u8], values: &[f32; 16], out: &mut [f32]) {
        for (out, code) in out.iter_mut().zip(codes) {
            *out = values[usize::from(code & 15)];
        }
    }

    #[inline(always)]
    unsafe fn count(values: &[f32], thresholds: &[f32; 16], out: &mut [u8]) {
        for (values, out) in values.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
            // Threshold by threshold, so that each loop is one of vectors.
            let mut counts = [0_i32; CHUNK];
            for threshold in thresholds {
                for (count, x) in counts.iter_mut().zip(values) {
                    *count += i32::from(x > threshold);
                }
            }
            narrow(&counts, out);
        }
    }

    #[inline(always)]
    unsafe fn count_scaled<const OR_EQUAL: bool>(
        values: &[f32],
        scales: &[f32],
        thresholds: &[f32; 16],
        out: &mut [u8],
    ) {
        let chunks = values.chunks(CHUNK).zip(scales.chunks(CHUNK));
        for ((values, scales), out) in chunks.zip(out.chunks_mut(CHUNK)) {
            let mut counts = [0_i32; CHUNK];
            for threshold in thresholds {
                for ((count, x), scale) in counts.iter_mut().zip(values).zip(scales) {
                    let threshold = threshold * scale;
                    let above = if OR_EQUAL {
                        *x >= threshold
                    } else {
                        *x > threshold
                    };
                    *count += i32::from(above);
                }
            }
            narrow(&counts, out);
        }
    }
}

/// Counts of at most 16.
#[inline(always)]
fn narrow(counts: &[i32; CHUNK], out: &mut [u8]) {
    for (out, count) in out.iter_mut().zip(counts) {
        *out = *count as u8;
    }
}
