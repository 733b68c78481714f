//! The few inner loops that a compiler does not find the instructions for: table lookups, the search
//! for a code, packing, f16. Everything else in `portable/` becomes vectors by itself.
//!
//! One implementation per instruction set, all with the same bits. What a set has no better
//! instructions for, it takes from the trait: plain loops, which are compiled with its instructions.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bytes;
mod coding;
mod portable;
mod random;
#[cfg(test)]
mod tests;
mod vector;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
pub(super) use bytes::{Decoder, Encoder};
pub(super) use coding::{Beside, Coder, Decided, InChunk, Part, Picked, Searched, code};
pub(super) use portable::Portable;
pub(super) use random::Random;
pub(super) use vector::{
    CellTable, EvenTable, Least, PACKED, SHORT_OF_16, Vector, each_few, few, load, load_few,
    registers,
};

use std::ops::{Deref, DerefMut};

use half::f16;

use crate::numerics::{Limbs, Unit, canonical};
use crate::quant::Table;
use crate::rng::Draws;

/// Elements that are handled at a time: one block of the default size.
pub(super) const CHUNK: usize = 128;

/// Slices given to [`Lanes`] are multiples of this long.
#[cfg(test)]
pub(super) const STEP: usize = 32;

/// The values of up to [`CHUNK`] elements of a row; those behind a row's end are zeros.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Chunk(pub(super) [f32; CHUNK]);

impl Chunk {
    pub(super) const ZERO: Self = Self([0.0; CHUNK]);
}

impl Deref for Chunk {
    type Target = [f32; CHUNK];

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Chunk {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// What is compiled by itself: beside other kernels in one function the compiler has less to spend on each.
///
/// # Safety
/// What the kernel's pointers need.
pub(super) trait Compiled {
    type Output;

    /// To be inlined always.
    unsafe fn run(self) -> Self::Output;
}

/// See [`Lanes::BESIDE_CODES`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum BesideCodes {
    Nothing,
    /// What moments are divided by: roots.
    Divisors,
    /// The quotients, too.
    Quotients,
}

/// See the module's page. Slices of one call have one length, a multiple of 32 unless it says otherwise.
///
/// # Safety
/// Every function needs a processor with the implementation's instructions.
pub(super) trait Lanes {
    /// Registers, for kernels that keep a chunk in them.
    type Vector: Vector;

    /// What is made beside the codes of a chunk, and not beside the states of the next one: a processor may not look
    /// far enough ahead for a root and a quotient to pass while it does so much else.
    const BESIDE_CODES: BesideCodes = BesideCodes::Nothing;

    /// Runs a kernel in a function of its own, compiled for the implementation's instructions.
    unsafe fn run<K: Compiled>(kernel: K) -> K::Output;

    /// `out[i] = values[code i]` for two codes a byte, the even one in the low nibble.
    unsafe fn lookup(codes: &[u8], values: &[f32; 16], out: &mut [f32]);

    /// `out[i] = values[codes[i]]` for codes below 16.
    unsafe fn select(codes: &[u8], values: &[f32; 16], out: &mut [f32]);

    /// `out[i] = values[codes[i]]`.
    #[inline(always)]
    unsafe fn select_of_256(codes: &[u8], values: &[f32; 256], out: &mut [f32]) {
        for (out, code) in out.iter_mut().zip(codes) {
            *out = values[usize::from(*code)];
        }
    }

    /// `out[i] = #{k : values[i] > thresholds[k]}` for thresholds that do not decrease; those that
    /// a short table does not have are infinite.
    unsafe fn count(values: &[f32], thresholds: &[f32; 16], out: &mut [u8]);

    /// `out[i] = #{k : values[i] > RN(thresholds[k] scales[i])}`, or `>=` for `OR_EQUAL`.
    unsafe fn count_scaled<const OR_EQUAL: bool>(
        values: &[f32],
        scales: &[f32],
        thresholds: &[f32; 16],
        out: &mut [u8],
    );

    /// As [`Lanes::count`] for 256 thresholds.
    #[inline(always)]
    unsafe fn count_of_256(values: &[f32], thresholds: &[f32; 256], out: &mut [u8]) {
        for (x, out) in values.iter().zip(out) {
            let mut code = 0;
            for step in [128, 64, 32, 16, 8, 4, 2, 1] {
                let above = *x > thresholds[code + step - 1];
                code += if above { step } else { 0 };
            }
            *out = code as u8;
        }
    }

    /// `out[i] = #{k : values[i] > RN((k + 3/2) / n scales[i])}`, `k < n - 1`: the codes of the
    /// linear table of n levels, 16 or another power of two up to 256. No scale is subnormal (there
    /// products with neighbouring midpoints may round to the same number).
    ///
    /// The quotient tells the code but for one comparison: `q = values[i] / scales[i] n - 1` is
    /// within 2^-15 of the exact one, and thresholds lie in the middle between integers; so those
    /// below `floor(q)` are passed and those above it are not. `(floor(q) + 3/2) / n` is an f32.
    #[inline(always)]
    unsafe fn count_linear(values: &[f32], scales: &[f32], levels: f32, out: &mut [u8]) {
        for ((x, scale), out) in values.iter().zip(scales).zip(out) {
            let q = (x / scale).mul_add(levels, -1.0);
            // NaN counts as 0.
            let q = if q > 0.0 { q } else { 0.0 };
            let most = levels - 2.0;
            let floor = if q < most { q } else { most }.floor();
            let threshold = (floor + 1.5) * (1.0 / levels) * scale;
            let code = if *x > threshold { floor + 1.0 } else { floor };
            // SAFETY: between 0 and 255.
            *out = unsafe { code.to_int_unchecked::<i32>() } as u8;
        }
    }

    /// [`Lanes::count_linear`] under one scale.
    #[inline(always)]
    unsafe fn count_linear_block(values: &[f32], scale: f32, levels: f32, out: &mut [u8]) {
        for (values, out) in values.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
            let scales = Chunk([scale; CHUNK]);
            // SAFETY: the caller's promise.
            unsafe { Self::count_linear(values, &scales[..values.len()], levels, out) };
        }
    }

    /// Packs codes below 16 two a byte, the even one in the low nibble.
    #[inline(always)]
    unsafe fn pack(codes: &[u8], out: &mut [u8]) {
        for (pair, out) in codes.as_chunks::<2>().0.iter().zip(out) {
            *out = pair[0] | (pair[1] << 4);
        }
    }

    /// The random numbers of a chunk.
    unsafe fn draw(draws: &Draws<'_>, out: &mut [u16; CHUNK]);

    /// A chunk rounded at random to codes of four bits under the scale of its block, which is positive, packed.
    /// `usual` says that no value is negative.
    ///
    /// # Safety
    /// `codes` has room for a chunk's.
    unsafe fn round_block(
        values: &Chunk,
        scale: f32,
        usual: bool,
        table: &Table,
        draws: &Draws<'_>,
        codes: *mut u8,
    );

    /// The same for values from 0 to a scale of their own each, under the linear table of 16 levels. No
    /// scale is subnormal or above 2^125.
    ///
    /// # Safety
    /// As for [`Lanes::round_block`].
    unsafe fn round_linear(
        values: &Chunk,
        scales: &Chunk,
        table: &Table,
        draws: &Draws<'_>,
        codes: *mut u8,
    );

    /// Numbers that repeat, from number `phase` of the first repetition on, each under its repetition's bound:
    /// the smaller of the two, as bits of a number. There are as many bounds as repetitions begin.
    unsafe fn repeat(numbers: &[u32], phase: usize, bounds: &[u32], out: &mut [f32]);

    /// The sum of terms, which may be any number and are not negative, or of the squares of any numbers, in
    /// limbs of [`Unit::limbs`].
    #[inline(always)]
    unsafe fn sum<const SQUARES: bool>(terms: &[f32], unit: Unit) -> Limbs {
        let mut sum = Limbs::ZERO;
        for x in terms {
            let x = f64::from(*x);
            sum.add(unit.limbs(if SQUARES { x * x } else { x }));
        }
        sum
    }

    /// Adds rows of terms, up to [`Limbs::TERMS`] of any length, to the limbs of their columns' sums.
    #[inline(always)]
    unsafe fn add_rows(rows: &[&[f32]], units: &[Unit], high: &mut [i64], low: &mut [i64]) {
        for row in rows {
            let sums = high.iter_mut().zip(low.iter_mut());
            for ((x, unit), (high, low)) in row.iter().zip(units).zip(sums) {
                let term = unit.limbs(f64::from(*x));
                *high = high.wrapping_add(term.high);
                *low = low.wrapping_add(term.low);
            }
        }
    }

    /// Asks for the cache line of an address, which may lie anywhere.
    #[inline(always)]
    fn prefetch(address: *const u8) {
        let _ = address;
    }

    /// The same of what is used later, which the nearest cache has no room for.
    #[inline(always)]
    fn prefetch_later(address: *const u8) {
        let _ = address;
    }

    /// Up to N bytes, a multiple of 64, from elsewhere, and zeros behind them.
    ///
    /// # Safety
    /// There are so many, and room for N.
    #[inline(always)]
    unsafe fn read<const N: usize>(from: *const u8, len: usize, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            std::ptr::write_bytes(to, 0, N);
            std::ptr::copy_nonoverlapping(from, to, len);
        }
    }

    /// The first of N bytes to elsewhere.
    ///
    /// # Safety
    /// There are N, and room for so many.
    #[inline(always)]
    unsafe fn write<const N: usize>(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
    }

    /// A chunk of f16 from memory, aligned for it.
    ///
    /// # Safety
    /// `from` has a chunk's elements.
    #[inline(always)]
    unsafe fn load_f16(from: *const f16, out: &mut Chunk) {
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *out = unsafe { *from.add(i) }.to_f32();
        }
    }

    /// A chunk of values rounded to f16, NaN in canonical form.
    ///
    /// # Safety
    /// `to` has room for a chunk's elements.
    #[inline(always)]
    unsafe fn store_f16(values: &Chunk, to: *mut f16) {
        for (i, value) in values.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *to.add(i) = f16::from_f32(canonical(*value)) };
        }
    }
}

/// [`Lanes::repeat`].
#[inline(always)]
fn repeat(numbers: &[u32], phase: usize, bounds: &[u32], out: &mut [f32]) {
    let (mut phase, mut rest) = (phase, out);
    for bound in bounds {
        let numbers = &numbers[phase..];
        let len = numbers.len().min(rest.len());
        let (out, behind) = rest.split_at_mut(len);
        for (out, number) in out.iter_mut().zip(numbers) {
            *out = f32::from_bits((*number).min(*bound));
        }
        (phase, rest) = (0, behind);
    }
}
