//! How the codes of a chunk are found and stored, a register at a time.

#![expect(unsafe_code, reason = "the functions of registers are unsafe")]

use super::{CHUNK, CellTable, Chunk, EvenTable, PACKED, Vector};

/// How the codes of a register are found: numbers of thresholds that its elements are above, or reach for
/// `OR_EQUAL` where there is such a choice.
///
/// # Safety
/// As for [`Vector`].
pub(in crate::backend::cpu) trait Coder<V: Vector> {
    /// Whether codes have nothing above their four bits.
    const CLEAN: bool;

    /// Of the register from element `at` of the chunk on.
    unsafe fn code(&mut self, x: V, at: usize) -> V::Codes;
}

/// What is done beside coding, which leaves the divider alone.
///
/// # Safety
/// As for [`Vector`].
pub(in crate::backend::cpu) trait Beside<V: Vector>: Sized {
    /// Beside the register from element `at` on.
    unsafe fn register(&mut self, at: usize);

    /// Beside so many chunks of which nothing is coded by the register.
    #[inline(always)]
    unsafe fn all(mut self, chunks: usize) {
        for at in (0..chunks * CHUNK).step_by(V::WIDTH) {
            // SAFETY: the caller's promise.
            unsafe { self.register(at) };
        }
    }
}

/// What is done beside some registers of a chunk, from element FROM up to TO, and not beside the others.
pub(in crate::backend::cpu) struct Part<B, const FROM: usize, const TO: usize>(
    pub(in crate::backend::cpu) B,
);

impl<V: Vector, B: Beside<V>, const FROM: usize, const TO: usize> Beside<V> for Part<B, FROM, TO> {
    #[inline(always)]
    unsafe fn register(&mut self, at: usize) {
        if (FROM..TO).contains(&at) {
            // SAFETY: the caller's promise.
            unsafe { self.0.register(at) };
        }
    }
}

/// What is done beside the registers of a chunk that begins at an element of several.
pub(in crate::backend::cpu) struct InChunk<'a, B>(
    pub(in crate::backend::cpu) usize,
    pub(in crate::backend::cpu) &'a mut B,
);

impl<V: Vector, B: Beside<V>> Beside<V> for InChunk<'_, B> {
    #[inline(always)]
    unsafe fn register(&mut self, at: usize) {
        let Self(first, beside) = self;
        // SAFETY: the caller's promise.
        unsafe { beside.register(*first + at) }
    }
}

/// Nothing.
impl<V: Vector> Beside<V> for () {
    #[inline(always)]
    unsafe fn register(&mut self, _: usize) {}
}

/// Stores the codes of a chunk.
///
/// # Safety
/// As for [`Vector`]; there is room for them.
#[inline(always)]
pub(in crate::backend::cpu) unsafe fn code<V: Vector, C: Coder<V>>(
    values: &Chunk,
    mut coder: C,
    mut beside: impl Beside<V>,
    codes: *mut u8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for i in 0..CHUNK / (PACKED * V::WIDTH) {
            let mut new = [V::NO_CODES; PACKED];
            for (j, new) in new.iter_mut().enumerate() {
                let at = (i * PACKED + j) * V::WIDTH;
                *new = coder.code(V::load(values.as_ptr().add(at)), at);
                beside.register(at);
            }
            store::<V, C>(new, codes.add(i * PACKED * V::WIDTH / 2));
        }
    }
}

/// Stores the codes that a coder has found.
///
/// # Safety
/// As for [`code`].
#[inline(always)]
pub(super) unsafe fn store<V: Vector, C: Coder<V>>(codes: [V::Codes; PACKED], to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        if C::CLEAN {
            V::store_clean_codes(codes, to);
        } else {
            V::store_codes(codes, to);
        }
    }
}

/// Of a linear table: see [`EvenTable::decide`].
pub(in crate::backend::cpu) struct Decided<V: Vector, const OR_EQUAL: bool> {
    pub(in crate::backend::cpu) factor: V,
    pub(in crate::backend::cpu) thresholds: V::Even,
}

impl<V: Vector, const OR_EQUAL: bool> Coder<V> for Decided<V, OR_EQUAL> {
    const CLEAN: bool = false;

    #[inline(always)]
    unsafe fn code(&mut self, x: V, _: usize) -> V::Codes {
        let Self { factor, thresholds } = self;
        // SAFETY: the caller's promise.
        unsafe { thresholds.decide::<OR_EQUAL, false>(x, x, *factor, None) }
    }
}

/// See [`CellTable::pick`].
pub(in crate::backend::cpu) struct Picked<V: Vector, const OR_EQUAL: bool> {
    pub(in crate::backend::cpu) factor: V,
    pub(in crate::backend::cpu) cells: V::Cells,
}

impl<V: Vector, const OR_EQUAL: bool> Coder<V> for Picked<V, OR_EQUAL> {
    const CLEAN: bool = true;

    #[inline(always)]
    unsafe fn code(&mut self, x: V, _: usize) -> V::Codes {
        // SAFETY: the caller's promise.
        unsafe { self.cells.pick::<OR_EQUAL>(x, self.factor) }
    }
}

/// See [`Vector::search`].
pub(in crate::backend::cpu) struct Searched<V: Vector, const OR_EQUAL: bool>(
    pub(in crate::backend::cpu) V::Thresholds,
);

impl<V: Vector, const OR_EQUAL: bool> Coder<V> for Searched<V, OR_EQUAL> {
    const CLEAN: bool = true;

    #[inline(always)]
    unsafe fn code(&mut self, x: V, _: usize) -> V::Codes {
        // SAFETY: the caller's promise.
        unsafe { x.search::<OR_EQUAL>(&self.0) }
    }
}
