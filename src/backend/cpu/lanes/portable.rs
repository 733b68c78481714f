//! In plain Rust, for any processor.

#![expect(unsafe_code, reason = "the trait's functions are unsafe")]

use std::convert::Infallible;

use half::bf16;

use super::{CHUNK, Chunk, Compiled, EvenTable, Lanes, PACKED, Vector, random, repeat};
use crate::numerics::{INF_BITS, Limbs, Unit, canonical, magnitude};
use crate::quant::{Table, uniform};
use crate::rng::Draws;
use crate::weights::{narrow_bf16, stochastic_bf16, widen_bf16};

/// See the module's page.
pub(in crate::backend::cpu) struct Portable;

/// [`Lanes::add_rows`] of the columns from one on: those behind the last whole register.
#[inline]
pub(super) fn add_columns(
    first: usize,
    rows: &[&[f32]],
    columns: &[Unit],
    high: &mut [i64],
    low: &mut [i64],
) {
    let mut rest = [&[][..]; Limbs::TERMS];
    for (rest, row) in rest.iter_mut().zip(rows) {
        *rest = &row[first..];
    }
    let (high, low) = (&mut high[first..], &mut low[first..]);
    // SAFETY: every processor has the instructions.
    unsafe { Portable::add_rows(&rest[..rows.len()], &columns[first..], high, low) };
}

impl Lanes for Portable {
    type Vector = [f32; 8];

    #[inline(never)]
    unsafe fn run<K: Compiled>(kernel: K) -> K::Output {
        // SAFETY: the caller's promise.
        unsafe { kernel.run() }
    }

    #[inline(never)]
    unsafe fn draw(draws: &Draws<'_>, out: &mut [u16; CHUNK]) {
        draws.chunk(out);
    }

    #[inline(never)]
    unsafe fn round_block(
        values: &Chunk,
        scale: f32,
        usual: bool,
        table: &Table,
        draws: &Draws<'_>,
        codes: *mut u8,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            random::round_block::<Self::Vector, random::Drawn>(
                values, scale, usual, table, draws, codes,
            )
        }
    }

    #[inline(never)]
    unsafe fn round_linear(
        values: &Chunk,
        scales: &Chunk,
        table: &Table,
        draws: &Draws<'_>,
        codes: *mut u8,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            random::round_linear::<Self::Vector, random::Drawn>(values, scales, table, draws, codes)
        }
    }

    #[inline(never)]
    unsafe fn repeat(numbers: &[u32], phase: usize, bounds: &[u32], out: &mut [f32]) {
        repeat(numbers, phase, bounds, out);
    }

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

/// Element by element of two arrays.
#[inline(always)]
fn zip<T: Copy + Default>(a: [f32; 8], b: [f32; 8], of: impl Fn(f32, f32) -> T) -> [T; 8] {
    let mut out = [T::default(); 8];
    for i in 0..8 {
        out[i] = of(a[i], b[i]);
    }
    out
}

impl Vector for [f32; 8] {
    const WIDTH: usize = 8;
    type Registers = [Self; 16];
    const ZEROS: [Self; 16] = [[0.0; 8]; 16];
    type Table = [f32; 16];
    type Eight = [f32; 8];
    type Thresholds = [f32; 16];
    type Levels = [f32; 16];
    type Few = [Self; 1];
    const FEW: [Self; 1] = [[0.0; 8]];
    type Even = [f32; 16];
    type Cells = Infallible;
    type Codes = [u8; 8];
    const NO_CODES: [u8; 8] = [0; 8];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { *from.cast() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { *to.cast() = self };
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        zip(self, other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        zip(self, other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        zip(self, other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        zip(self, self, |a, _| a.sqrt())
    }

    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        zip(self, self, |a, _| 1.0 / a)
    }

    #[inline(always)]
    unsafe fn reciprocal_sqrt(self) -> Self {
        zip(self, self, |a, _| 1.0 / a.sqrt())
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        zip(self, self, |a, _| a.abs())
    }

    #[inline(always)]
    unsafe fn copysign(self, sign: Self) -> Self {
        zip(self, sign, f32::copysign)
    }

    #[inline(always)]
    unsafe fn sign(self) -> Self {
        zip(self, self, |a, _| {
            if a == 0.0 || a.is_nan() {
                a
            } else {
                1_f32.copysign(a)
            }
        })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        zip(self, other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        zip(self, other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        let mut out = b;
        for i in 0..8 {
            out[i] = self[i].mul_add(a[i], b[i]);
        }
        out
    }

    #[inline(always)]
    unsafe fn canonical(self) -> Self {
        zip(self, self, |a, _| canonical(a))
    }

    #[inline(always)]
    unsafe fn keep(self, count: usize) -> Self {
        std::array::from_fn(|i| if i < count { self[i] } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        let mut first = [0.0; 8];
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, first.as_mut_ptr(), count) };
        first
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(self.as_ptr(), to, count) };
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16, count: usize) -> Self {
        let mut first = [bf16::ZERO; 8];
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, first.as_mut_ptr(), count) };
        let mut wide = [0.0; 8];
        for (wide, narrow) in wide.iter_mut().zip(first) {
            *wide = widen_bf16(narrow);
        }
        wide
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, count: usize) {
        let mut narrow = [bf16::ZERO; 8];
        for (narrow, x) in narrow.iter_mut().zip(self) {
            *narrow = narrow_bf16(x);
        }
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(narrow.as_ptr(), to, count) };
    }

    #[inline(always)]
    unsafe fn round_bf16(self, draws: *const u16, to: *mut bf16, count: usize) {
        let mut narrow = [bf16::ZERO; 8];
        // SAFETY: the caller's promise.
        unsafe {
            for (i, (narrow, x)) in narrow.iter_mut().zip(self).enumerate() {
                *narrow = stochastic_bf16(x, *draws.add(i));
            }
            std::ptr::copy_nonoverlapping(narrow.as_ptr(), to, count);
        }
    }

    #[inline(always)]
    unsafe fn largest(self, other: Self) -> Self {
        zip(self, other, |a, b| {
            f32::from_bits(magnitude(b).max(a.to_bits().cast_signed()).cast_unsigned())
        })
    }

    #[inline(always)]
    unsafe fn highest(self, other: Self) -> Self {
        zip(self, other, |a, b| {
            f32::from_bits(a.to_bits().max(b.to_bits()))
        })
    }

    #[inline(always)]
    unsafe fn all_usual(self) -> bool {
        let inf = INF_BITS;
        self.iter().fold(true, |all, x| all & (x.to_bits() < inf))
    }

    #[inline(always)]
    unsafe fn smallest(self, other: Self) -> Self {
        zip(self, other, |a, b| {
            f32::from_bits(a.to_bits().min(b.to_bits()))
        })
    }

    #[inline(always)]
    unsafe fn reduce_largest(self) -> i32 {
        self.iter().fold(0, |largest, x| magnitude(*x).max(largest))
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        self[0]
    }

    #[inline(always)]
    unsafe fn least_bits(self, other: Self) -> Self {
        zip(self, other, |a, x| {
            f32::from_bits(a.to_bits().min(x.to_bits().wrapping_sub(1)))
        })
    }

    #[inline(always)]
    unsafe fn any_less(self, bound: u32) -> bool {
        self.iter()
            .fold(false, |any, x| any | (x.to_bits() < bound))
    }

    #[inline(always)]
    unsafe fn closest(self, number: Self) -> Self {
        // Added to a number below 2^22, this leaves no bits of a fraction.
        const WHOLE: f32 = 1.5 * (1_u32 << 23) as f32;
        zip(self, number, |a, x| {
            let distance = (x - ((x + WHOLE) - WHOLE)).abs();
            if distance < a { distance } else { a }
        })
    }

    #[inline(always)]
    unsafe fn below(self, bound: Self) -> u32 {
        let mut bits = 0;
        for i in 0..8 {
            bits |= u32::from(self[i] < bound[i]) << i;
        }
        bits
    }

    #[inline(always)]
    unsafe fn table(values: &[f32; 16]) -> [f32; 16] {
        *values
    }

    #[inline(always)]
    unsafe fn at(table: [f32; 16], codes: [u8; 8]) -> Self {
        codes.map(|code| table[usize::from(code & 15)])
    }

    #[inline(always)]
    unsafe fn eight(values: &[f32; 8]) -> [f32; 8] {
        *values
    }

    #[inline(always)]
    unsafe fn by_exponent(self, table: [f32; 8]) -> Self {
        self.map(|a| table[(a.to_bits() >> 23 & 7) as usize])
    }

    #[inline(always)]
    unsafe fn levels(table: &[f32; 16]) -> [f32; 16] {
        *table
    }

    #[inline(always)]
    unsafe fn scale_levels(levels: [f32; 16], scale: Self) -> [f32; 16] {
        // SAFETY: the caller's promise.
        unsafe { levels.scale(scale) }
    }

    #[inline(always)]
    unsafe fn decode(levels: [f32; 16], codes: *const u8) -> [Self; 1] {
        let mut out = [0.0; 8];
        // SAFETY: the caller's promise.
        let bytes = unsafe { *codes.cast::<[u8; 4]>() };
        for (i, out) in out.iter_mut().enumerate() {
            *out = levels[usize::from(bytes[i / 2] >> (4 * (i % 2)) & 15)];
        }
        [out]
    }

    #[inline(always)]
    unsafe fn thresholds(values: &[f32; 16]) -> [f32; 16] {
        *values
    }

    #[inline(always)]
    unsafe fn scale_thresholds(thresholds: [f32; 16], scale: Self) -> [f32; 16] {
        // SAFETY: the caller's promise.
        unsafe { thresholds.scale(scale) }
    }

    #[inline(always)]
    unsafe fn search<const OR_EQUAL: bool>(self, thresholds: &[f32; 16]) -> [u8; 8] {
        let mut counts = [0_i32; 8];
        for threshold in thresholds {
            for (count, x) in counts.iter_mut().zip(&self) {
                *count += i32::from(if OR_EQUAL {
                    x >= threshold
                } else {
                    x > threshold
                });
            }
        }
        counts.map(|count| count as u8)
    }

    #[inline(always)]
    unsafe fn step_up(self, rise: Self, draws: *const u16, mut codes: [u8; 8]) -> [u8; 8] {
        // SAFETY: the caller's promise.
        let draws = unsafe { *draws.cast::<[u16; 8]>() };
        for (i, code) in codes.iter_mut().enumerate() {
            *code += u8::from(uniform(draws[i]) * rise[i] < self[i]);
        }
        codes
    }

    #[inline(always)]
    unsafe fn store_codes(codes: [[u8; 8]; PACKED], to: *mut u8) {
        let mut packed = [0_u32; 8];
        for codes in codes {
            for (packed, code) in packed.iter_mut().zip(codes) {
                *packed = *packed << 4 | u32::from(code);
            }
        }
        let mut bytes = [[0; 4]; PACKED];
        for (j, bytes) in bytes.iter_mut().rev().enumerate() {
            for (byte, [even, odd]) in bytes.iter_mut().zip(packed.as_chunks().0) {
                *byte = (even >> (4 * j) & 15 | (odd >> (4 * j) & 15) << 4) as u8;
            }
        }
        // SAFETY: the caller's promise.
        unsafe { *to.cast() = bytes };
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { *from.cast::<[u8; 8]>() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn store_bytes(self, zero: i32, to: *mut u8) {
        let bytes = self.map(|x| (x as i32 + zero).max(0) as u8);
        // SAFETY: the caller's promise.
        unsafe { *to.cast() = bytes };
    }
}

impl EvenTable<[f32; 8]> for [f32; 16] {
    #[inline(always)]
    unsafe fn new(below: &[f32; 16]) -> Self {
        *below
    }

    #[inline(always)]
    unsafe fn scale(self, scale: [f32; 8]) -> Self {
        self.map(|x| x * scale[0])
    }

    #[inline(always)]
    unsafe fn decide<const OR_EQUAL: bool, const SQUARES: bool>(
        self,
        x: [f32; 8],
        q: [f32; 8],
        factor: [f32; 8],
        scale: Option<[f32; 8]>,
    ) -> [u8; 8] {
        let mut codes = [0; 8];
        for (i, code) in codes.iter_mut().enumerate() {
            // NaN becomes 0.
            let floor = (q[i] * factor[i]) as u8 & 15;
            let mut threshold = self[usize::from(floor)];
            if let Some(scale) = scale {
                threshold *= scale[i];
            }
            let below = if OR_EQUAL {
                x[i] < threshold
            } else {
                x[i] <= threshold
            };
            *code = floor - u8::from(below);
        }
        codes
    }
}
