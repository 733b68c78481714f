//! Registers of f32, for the kernels that take a chunk through them.

use std::convert::Infallible;

use half::bf16;

use super::CHUNK;
use crate::backend::cpu::reference::block_scale;
use crate::quant::Cells;

/// A register of [`Vector::WIDTH`] f32, with the operations that [`crate::numerics`] allows.
///
/// # Safety
/// Every function needs a processor with the implementation's instructions; pointers are to
/// [`Vector::WIDTH`] elements, aligned for one.
pub(in crate::backend::cpu) trait Vector: Copy {
    const WIDTH: usize;

    /// A chunk in registers.
    type Registers: AsRef<[Self]> + AsMut<[Self]>;
    const ZEROS: Self::Registers;

    /// A table of 16.
    type Table: Copy;

    /// A table of 8.
    type Eight: Copy;

    /// What [`Vector::search`] needs of 15 thresholds, in whatever order it looks at them.
    type Thresholds: Copy;

    /// What [`Vector::decode`] needs of a table of 16.
    type Levels: Copy;

    /// Registers whose codes are decoded together, one where that is as fast.
    type Few: Copy + AsRef<[Self]> + AsMut<[Self]>;
    /// Zeros.
    const FEW: Self::Few;

    /// Thresholds of a linear table of 16, or of its squares.
    type Even: EvenTable<Self>;

    /// Cells in registers; [`Infallible`] where [`Vector::search`] is as fast.
    type Cells: CellTable<Self>;

    /// An integer for each element.
    type Codes: Copy;
    const NO_CODES: Self::Codes;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn sqrt(self) -> Self;
    /// `1 / self` within 2^-11 of it, for 0 and numbers from 2^-126 to 2^125.
    unsafe fn reciprocal(self) -> Self;
    /// 1 over the square root within 2^-11 of it, for numbers from 2^-126 on.
    unsafe fn reciprocal_sqrt(self) -> Self;
    /// The square root within 2^-11 of it, for numbers from 2^-126 on; for those from 0 to it, and for NaN, at most
    /// 2^-62.
    #[inline(always)]
    unsafe fn near_sqrt(self) -> Self {
        // SAFETY: the caller's promise. The divider is left alone.
        unsafe {
            let x = self.max(Self::splat(f32::MIN_POSITIVE));
            x.mul(x.reciprocal_sqrt())
        }
    }
    unsafe fn abs(self) -> Self;
    /// The magnitude of `self` with the sign of another number.
    unsafe fn copysign(self, sign: Self) -> Self;
    /// 1 with the number's sign; 0 and NaN stay as they are.
    unsafe fn sign(self) -> Self;
    /// The smaller of two numbers; the other one if either is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// The larger of two numbers; the other one if either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// `RN(self a + b)`.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// The first lanes, zeros behind them. Here and below, as many as there are at most.
    unsafe fn keep(self, count: usize) -> Self;
    /// [`Vector::load`] of the first lanes, zeros behind them.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    /// [`Vector::store`] of the first lanes.
    unsafe fn store_first(self, to: *mut f32, count: usize);
    /// The first lanes of bf16, zeros behind them.
    unsafe fn load_bf16(from: *const bf16, count: usize) -> Self;
    /// Stores the first lanes rounded to bf16, NaN in canonical form.
    unsafe fn store_bf16(self, to: *mut bf16, count: usize);
    /// The same, rounded by a draw each.
    unsafe fn round_bf16(self, draws: *const u16, to: *mut bf16, count: usize);
    /// With every NaN made the canonical one.
    unsafe fn canonical(self) -> Self;
    /// The larger magnitudes, as integers, so that NaN is the largest.
    unsafe fn largest(self, other: Self) -> Self;
    /// The larger ones as unsigned integers: what is negative or NaN is above all other numbers.
    unsafe fn highest(self, other: Self) -> Self;
    /// Whether no number is negative, infinite or NaN.
    unsafe fn all_usual(self) -> bool;
    /// The smaller ones as unsigned integers, with the same above all others.
    unsafe fn smallest(self, other: Self) -> Self;
    /// The bits of the largest of the register's magnitudes.
    unsafe fn reduce_largest(self) -> i32;
    /// The scale of a block in every lane, given the largest magnitudes: the largest of them, or NaN if that
    /// is not finite.
    #[inline(always)]
    unsafe fn block_scale(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::splat(block_scale(self.reduce_largest())) }
    }
    /// 1 over a number that is the same in every lane.
    #[inline(always)]
    unsafe fn inverse(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::splat(1.0).div(self) }
    }
    /// The first lane.
    unsafe fn first(self) -> f32;
    /// The smaller ones of `self` and the bits of other numbers less one, as unsigned integers: those of 0 are the
    /// largest.
    unsafe fn least_bits(self, other: Self) -> Self;
    /// Whether any lane is less, as unsigned integers.
    unsafe fn any_less(self, bound: u32) -> bool;
    /// The smaller of `self`, which is not negative, and the distance of a number from an integer.
    unsafe fn closest(self, number: Self) -> Self;
    /// A bit for each element, the first one the lowest: whether it is below a bound.
    unsafe fn below(self, bound: Self) -> u32;

    unsafe fn table(values: &[f32; 16]) -> Self::Table;
    /// The values of codes below 16.
    unsafe fn at(table: Self::Table, codes: Self::Codes) -> Self;
    unsafe fn eight(values: &[f32; 8]) -> Self::Eight;
    /// The values at the lowest three bits of the exponents, as they are stored.
    unsafe fn by_exponent(self, table: Self::Eight) -> Self;
    unsafe fn levels(table: &[f32; 16]) -> Self::Levels;
    /// With every value times a scale.
    unsafe fn scale_levels(levels: Self::Levels, scale: Self) -> Self::Levels;
    /// The values of a few registers' codes of four bits, the even ones in the low nibbles.
    unsafe fn decode(levels: Self::Levels, codes: *const u8) -> Self::Few;
    unsafe fn thresholds(values: &[f32; 16]) -> Self::Thresholds;
    /// All of them times a scale.
    unsafe fn scale_thresholds(thresholds: Self::Thresholds, scale: Self) -> Self::Thresholds;
    /// The number of thresholds that `self` is above, or reaches for `OR_EQUAL`; the sixteenth of the
    /// table is infinite.
    unsafe fn search<const OR_EQUAL: bool>(self, thresholds: &Self::Thresholds) -> Self::Codes;
    /// Codes, each one more where `RN(u rise)` is below `self`, u being [`crate::quant::uniform`] of a
    /// draw.
    unsafe fn step_up(self, rise: Self, draws: *const u16, codes: Self::Codes) -> Self::Codes;
    /// Stores codes that other functions have found, the even ones in the low nibbles.
    unsafe fn store_codes(codes: [Self::Codes; PACKED], to: *mut u8);
    /// The same of codes that have nothing above their four bits.
    #[inline(always)]
    unsafe fn store_clean_codes(codes: [Self::Codes; PACKED], to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { Self::store_codes(codes, to) };
    }
    /// [`Vector::WIDTH`] bytes as numbers.
    unsafe fn load_bytes(from: *const u8) -> Self;
    /// Stores each number without its fraction, plus `zero`, as a byte; 0 if that is negative. It is
    /// at most 255.
    unsafe fn store_bytes(self, zero: i32, to: *mut u8);
}

/// The thresholds of a linear table of 16, or of its squares.
///
/// # Safety
/// As for [`Vector`].
pub(in crate::backend::cpu) trait EvenTable<V: Vector>: Copy {
    /// Given the threshold below each code, the first one below all numbers.
    unsafe fn new(below: &[f32; 16]) -> Self;
    /// With every threshold times a scale.
    unsafe fn scale(self, scale: V) -> Self;
    /// The codes of numbers x, as numbers of thresholds that they are above, or reach for `OR_EQUAL` (levels of a
    /// linear table), the thresholds times `scale` if there is one, given `q factor` as [`SHORT_OF_16`] describes it,
    /// for a linear table or for its `SQUARES`. Where q is NaN the code is 0.
    unsafe fn decide<const OR_EQUAL: bool, const SQUARES: bool>(
        self,
        x: V,
        q: V,
        factor: V,
        scale: Option<V>,
    ) -> V::Codes;
}

/// The cells of a table.
///
/// # Safety
/// As for [`Vector`].
pub(in crate::backend::cpu) trait CellTable<V: Vector>: Copy {
    /// `None` if there is no such implementation.
    unsafe fn new(cells: &Cells) -> Option<Self>;
    /// With every threshold times a scale.
    unsafe fn scale(self, scale: V) -> Self;
    /// The codes, under a scale, of numbers of at most it, as numbers of thresholds that they are above, or
    /// reach for `OR_EQUAL`; `factor` is [`Cells::FACTOR`] by the scale.
    unsafe fn pick<const OR_EQUAL: bool>(self, x: V, factor: V) -> V::Codes;
}

impl<V: Vector> CellTable<V> for Infallible {
    #[inline(always)]
    unsafe fn new(_: &Cells) -> Option<Self> {
        None
    }

    #[inline(always)]
    unsafe fn scale(self, _: V) -> Self {
        self
    }

    #[inline(always)]
    unsafe fn pick<const OR_EQUAL: bool>(self, _: V, _: V) -> V::Codes {
        match self {}
    }
}

/// The least of numbers that are not negative, but for 0, in each lane.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Least<V>(V);

impl<V: Vector> Least<V> {
    /// Of no number.
    ///
    /// # Safety
    /// As for [`Vector`], here and below.
    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn none() -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { V::splat(f32::from_bits(u32::MAX)) })
    }

    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn see(&mut self, x: V) {
        // SAFETY: the caller's promise.
        self.0 = unsafe { self.0.least_bits(x) };
    }

    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn is_subnormal(self) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.0.any_less(f32::MIN_POSITIVE.to_bits() - 1) }
    }
}

/// Registers whose codes are stored together, as many as 32 bits have nibbles.
pub(in crate::backend::cpu) const PACKED: usize = 8;

/// How codes under a linear table of 16 are computed, for values x from 0 to the scale s: the threshold
/// between codes k - 1 and k lies where `y = 16 x / s` is k + 1/2, but for a few last places, so that the
/// code is below y - 1/2 and at least y - 3/2, or 0 or 15 at the ends. This number times the quotient,
/// even if that was taken with an estimate of `1 / s`, is less than y, and by 2^-5 at most. So its floor is
/// the code or one more, and at most 15: the threshold between the two decides ([`EvenTable::decide`]). Of
/// levels that are reached, the one of code k is where y is k + 1, and the same holds. It holds of every
/// integer from that number less one to that number, too, if those below 0 are 0.
/// A subnormal s is not for this, as its products with neighbouring thresholds may be one number.
///
/// Under the table of the squares of these levels, y is `16 sqrt(x / s)`, and the threshold between codes
/// k - 1 and k lies where it is `sqrt((k + 1/2)^2 + 1/4)`: above k + 1/2, by 1/12 at most. So the same holds
/// of this number times the quotient's root, even if that is an estimate, too: it is too large by 3/2 2^-11 of it
/// at most, less than the 2^-10 that this is short of 16.
pub(in crate::backend::cpu) const SHORT_OF_16: f32 = 16.0 - 1.0 / 64.0;

/// The bits of 1 and half a step of [`crate::quant::uniform`].
pub(super) const ONE_AND_HALF_A_DRAW: i32 = 0x3f80_0040;

/// Registers of a chunk.
pub(in crate::backend::cpu) const fn registers<V: Vector>() -> usize {
    CHUNK / V::WIDTH
}

/// Registers whose codes are decoded together.
pub(in crate::backend::cpu) const fn few<V: Vector>() -> usize {
    size_of::<V::Few>() / size_of::<V>()
}

/// The first element of each few registers of a chunk.
#[inline(always)]
pub(in crate::backend::cpu) fn each_few<V: Vector>() -> impl Iterator<Item = usize> {
    (0..CHUNK).step_by(few::<V>() * V::WIDTH)
}

/// A few registers.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub(in crate::backend::cpu) unsafe fn load_few<V: Vector>(from: *const f32) -> V::Few {
    let mut values = V::FEW;
    for (j, x) in values.as_mut().iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *x = unsafe { V::load(from.add(j * V::WIDTH)) };
    }
    values
}

/// The registers of a chunk.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub(in crate::backend::cpu) unsafe fn load<V: Vector>(chunk: &[f32; CHUNK]) -> V::Registers {
    let mut values = V::ZEROS;
    for j in 0..registers::<V>() {
        // SAFETY: the caller's promise.
        values.as_mut()[j] = unsafe { V::load(chunk.as_ptr().add(j * V::WIDTH)) };
    }
    values
}
