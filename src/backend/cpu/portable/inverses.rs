//! About 1 over the new scales of a row's columns under rank-1, for the codes under the smaller of a column's
//! scale and the row's: made once for all rows of a task.

#![expect(unsafe_code, reason = "the functions of registers are unsafe")]

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::backend::cpu::lanes::{CHUNK, Chunk, Compiled, Lanes, Least, Vector};

/// 2^125: reciprocals of larger numbers may be flushed to zero.
const HUGE: f32 = (1_u128 << 125) as f32;

/// Of the new scales of a chunk of columns.
#[derive(Clone, Copy)]
pub(super) struct Inverse {
    pub(super) each: *const f32,
    /// Whether each new scale is 0, or neither subnormal nor huge, and no old one negative or not finite.
    pub(super) usual: bool,
}

impl Inverse {
    pub(super) const NOWHERE: Self = Self {
        each: std::ptr::null(),
        usual: false,
    };

    /// Of a chunk's scales, old and new.
    ///
    /// # Safety
    /// There are so many, and room for as many inverses.
    #[inline(always)]
    pub(super) unsafe fn of<L: Lanes>(scales: [*const f32; 2], each: *mut Chunk) -> Self {
        let to = each.cast();
        let invert = Invert {
            scales,
            to,
            vector: PhantomData::<L::Vector>,
        };
        Self {
            each: to,
            // SAFETY: the caller's promise.
            usual: unsafe { L::run(invert) },
        }
    }
}

struct Invert<V> {
    scales: [*const f32; 2],
    to: *mut f32,
    vector: PhantomData<V>,
}

impl<V: Vector> Compiled for Invert<V> {
    type Output = bool;

    #[inline(always)]
    unsafe fn run(self) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let (mut least, mut highest) = (Least::none(), [V::splat(0.0); 2]);
            for at in (0..CHUNK).step_by(V::WIDTH) {
                let [old, new] = self.scales.map(|scales| V::load(scales.add(at)));
                new.reciprocal().store(self.to.add(at));
                least.see(new);
                highest = [highest[0].highest(old), highest[1].largest(new)];
            }
            let largest = f32::from_bits(highest[1].reduce_largest().cast_unsigned());
            highest[0].all_usual() && !least.is_subnormal() && largest < HUGE
        }
    }
}

/// Memory for [`Inverses`]: of 8192 columns.
pub(super) type Room = MaybeUninit<[Chunk; CHUNKS]>;

/// As many as [`Inverses::usual`] has bits.
const CHUNKS: usize = u64::BITS as usize;

/// Of the first columns of a row.
#[derive(Clone, Copy)]
pub(super) struct Inverses {
    each: *const Chunk,
    /// [`Inverse::usual`] of each chunk.
    usual: u64,
    set: usize,
}

impl Inverses {
    /// Of no columns.
    pub(super) const NONE: Self = Self {
        each: std::ptr::null(),
        usual: 0,
        set: 0,
    };

    /// Of so many chunks of columns, or of as many as there is room for, given where each one's scales are.
    ///
    /// # Safety
    /// As for [`Inverse::of`].
    #[inline(always)]
    pub(super) unsafe fn of<L: Lanes>(
        chunks: usize,
        scales: impl Fn(usize) -> [*const f32; 2],
        room: &mut Room,
    ) -> Self {
        let each = room.as_mut_ptr().cast::<Chunk>();
        let (mut usual, set) = (0, chunks.min(CHUNKS));
        for chunk in 0..set {
            // SAFETY: there is room for it; the caller's promise.
            let inverse = unsafe { Inverse::of::<L>(scales(chunk), each.add(chunk)) };
            usual |= u64::from(inverse.usual) << chunk;
        }
        Self { each, usual, set }
    }

    /// Of a chunk, if it is there.
    #[inline(always)]
    pub(super) fn get(&self, chunk: usize) -> Option<Inverse> {
        (chunk < self.set).then(|| Inverse {
            each: self.each.wrapping_add(chunk).cast(),
            usual: self.usual >> chunk & 1 != 0,
        })
    }
}
