//! Typed access to the caller's raw memory. No slices are made over it: inputs and outputs may be
//! the same buffer (JAX and torch alias them by design), and two live slices would be undefined
//! behaviour.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use half::bf16;

use crate::dtype::Dtype;
use crate::numerics::canonical;

/// Element `index` of a parameter or gradient, as f32.
///
/// # Safety
/// `data` holds more than `index` elements of `dtype` and is aligned for it.
#[inline(always)]
pub(super) unsafe fn load(data: *const u8, dtype: Dtype, index: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            Dtype::Bf16 => (*data.cast::<bf16>().add(index)).to_f32(),
            _ => *data.cast::<f32>().add(index),
        }
    }
}

/// Rounds `value` to `dtype` (nearest even) and stores it, NaN in canonical form.
///
/// # Safety
/// As for [`load`], and writable.
#[inline(always)]
pub(super) unsafe fn store(data: *mut u8, dtype: Dtype, index: usize, value: f32) {
    let value = canonical(value);
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            Dtype::Bf16 => *data.cast::<bf16>().add(index) = bf16::from_f32(value),
            _ => *data.cast::<f32>().add(index) = value,
        }
    }
}

/// The 4-bit code of column `col`: the even element is in the low nibble.
///
/// # Safety
/// `row` holds at least `col / 2 + 1` bytes.
#[inline(always)]
pub(super) unsafe fn load_code(row: *const u8, col: usize) -> u8 {
    // SAFETY: the caller's promise.
    let byte = unsafe { *row.add(col / 2) };
    if col.is_multiple_of(2) {
        byte & 15
    } else {
        byte >> 4
    }
}
