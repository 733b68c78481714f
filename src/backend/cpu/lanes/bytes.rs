//! Codes of eight bits by arithmetic, for the tables that have it: see `quant/bytes.rs`.

#![expect(unsafe_code, reason = "the functions of registers are unsafe")]

use super::{Beside, CHUNK, Vector};
use crate::quant::{Lines, Quotients, Table};

/// Finds the nearest codes under one scale.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Encoder<'a, V: Vector> {
    midpoints: &'a [f32],
    breaks: V::Thresholds,
    slopes: V::Table,
    offsets: V::Table,
    zero: Option<u8>,
}

impl<'a, V: Vector> Encoder<'a, V> {
    /// For a table with these lines and midpoints.
    ///
    /// # Safety
    /// As for [`Vector`], here and below.
    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn new(lines: &Lines, midpoints: &'a [f32]) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Self {
                midpoints,
                breaks: V::thresholds(&lines.breaks),
                slopes: V::table(&lines.slopes),
                offsets: V::table(&lines.offsets),
                zero: lines.zero,
            }
        }
    }

    /// Codes a chunk of values whose magnitudes are at most the scale. It is one that
    /// [`Lines::cover`] is true for.
    ///
    /// # Safety
    /// `to` has room for a chunk's codes.
    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn encode(
        &self,
        values: &[V],
        scale: f32,
        beside: impl Beside<V>,
        to: *mut u8,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.zero.is_some() {
                self.encode_as::<true>(values, scale, beside, to);
            } else {
                self.encode_as::<false>(values, scale, beside, to);
            }
        }
    }

    #[inline(always)]
    unsafe fn encode_as<const SIGNED: bool>(
        &self,
        values: &[V],
        scale: f32,
        mut beside: impl Beside<V>,
        to: *mut u8,
    ) {
        debug_assert!(Lines::cover(scale));
        let zero = i32::from(self.zero.unwrap_or(0));
        // SAFETY: the caller's promise.
        unsafe {
            let (reciprocal, near) = (V::splat(1.0 / scale), V::splat(Lines::NEAR));
            let half = V::splat(0.5);
            let mut closest = half;
            for (j, x) in values.iter().enumerate() {
                let position = self.position::<SIGNED>(x.mul(reciprocal));
                closest = closest.closest(position);
                let from_zero = if SIGNED {
                    position.copysign(*x)
                } else {
                    position
                };
                from_zero.store_bytes(zero, to.add(j * V::WIDTH));
                beside.register(j * V::WIDTH);
            }
            if closest.below(near) == 0 {
                return;
            }
            // One element of 2^12 is so near that the definition decides.
            for (j, x) in values.iter().enumerate() {
                let position = self.position::<SIGNED>(x.mul(reciprocal));
                let mut lanes = half.closest(position).below(near);
                if lanes == 0 {
                    continue;
                }
                let mut copy = [0.0; CHUNK];
                x.store(copy.as_mut_ptr());
                while lanes != 0 {
                    let lane = lanes.trailing_zeros() as usize;
                    let x = copy[lane];
                    let code = self.midpoints.partition_point(|mid| x > mid * scale);
                    *to.add(j * V::WIDTH + lane) = code as u8;
                    lanes &= lanes - 1;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn position<const SIGNED: bool>(&self, y: V) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            let y = if SIGNED { y.abs() } else { y };
            let line = y.search::<false>(&self.breaks);
            y.mul_add(V::at(self.slopes, line), V::at(self.offsets, line))
        }
    }
}

/// Restores the levels of codes.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Decoder<V: Vector> {
    zero: V,
    offsets: V::Eight,
    /// With the other sign.
    divisors: V::Eight,
    reciprocals: V::Eight,
    signed: bool,
}

impl<V: Vector> Decoder<V> {
    /// `None` for a table whose levels are not quotients.
    ///
    /// # Safety
    /// As for [`Vector`], here and below.
    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn of(table: &Table) -> Option<Self> {
        let quotients: &Quotients = table.quotients.as_ref()?;
        // SAFETY: the caller's promise.
        unsafe {
            Some(Self {
                zero: V::splat(quotients.zero),
                offsets: V::eight(&quotients.offsets),
                divisors: V::eight(&quotients.divisors.map(|divisor| -divisor)),
                reciprocals: V::eight(&quotients.reciprocals),
                signed: quotients.zero > 0.0,
            })
        }
    }

    /// The levels of [`Vector::WIDTH`] codes: [`Quotients`] tells how.
    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn decode(&self, codes: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            let distance = V::load_bytes(codes).sub(self.zero);
            let a = if self.signed {
                distance.abs()
            } else {
                distance
            };
            let integer = a.mul_add(V::splat(18.0), a.by_exponent(self.offsets));
            let integer = integer.max(V::splat(0.0));
            let reciprocal = a.by_exponent(self.reciprocals);
            let quotient = integer.mul(reciprocal);
            let rest = quotient.mul_add(a.by_exponent(self.divisors), integer);
            let level = rest.mul_add(reciprocal, quotient);
            if self.signed {
                level.copysign(distance)
            } else {
                level
            }
        }
    }
}
