//! Typed access to the caller's raw memory. No slices are made over it: inputs and outputs may be
//! the same buffer (JAX and torch alias them by design), and two live slices would be undefined
//! behaviour.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::numerics::canonical;
use crate::weights::{
    Weights, from_master, join_correction, join_remainder, split_correction, split_remainder,
    stochastic_bf16, stochastic_f16,
};

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
            Dtype::F16 => (*data.cast::<f16>().add(index)).to_f32(),
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
            Dtype::F16 => *data.cast::<f16>().add(index) = f16::from_f32(value),
            _ => *data.cast::<f32>().add(index) = value,
        }
    }
}

/// A parameter and what is kept beside it.
#[derive(Clone, Copy)]
pub(super) struct Weight {
    pub(super) data: *mut u8,
    pub(super) dtype: Dtype,
    pub(super) form: Weights,
    /// Null unless the form keeps something.
    pub(super) beside: *mut u8,
}

impl Weight {
    /// The f32 value of element `index`.
    ///
    /// # Safety
    /// As for [`load`], for both buffers.
    #[inline(always)]
    pub(super) unsafe fn load(&self, index: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            match self.form {
                Weights::Plain | Weights::Stochastic => load(self.data, self.dtype, index),
                Weights::Master => {
                    let master = *self.beside.cast::<f32>().add(index);
                    let rounded = match self.dtype {
                        Dtype::F16 => f16::from_f32(canonical(master)).to_f32(),
                        _ => bf16::from_f32(canonical(master)).to_f32(),
                    };
                    from_master(load(self.data, self.dtype, index), master, rounded)
                }
                Weights::Remainder16 => join_remainder(
                    *self.data.cast::<bf16>().add(index),
                    *self.beside.cast::<u16>().add(index),
                ),
                Weights::Correction8 => join_correction(
                    *self.data.cast::<bf16>().add(index),
                    *self.beside.cast::<i8>().add(index),
                ),
            }
        }
    }

    /// Stores the f32 value of element `index`; `draw` is for stochastic rounding.
    ///
    /// # Safety
    /// As for [`store`], for both buffers.
    #[inline(always)]
    pub(super) unsafe fn store(&self, index: usize, value: f32, draw: u16) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.form {
                Weights::Plain => store(self.data, self.dtype, index, value),
                Weights::Stochastic if self.dtype == Dtype::F16 => {
                    *self.data.cast::<f16>().add(index) = stochastic_f16(value, draw);
                }
                Weights::Stochastic => {
                    *self.data.cast::<bf16>().add(index) = stochastic_bf16(value, draw);
                }
                Weights::Master => {
                    store(self.data, self.dtype, index, value);
                    store(self.beside, Dtype::F32, index, value);
                }
                Weights::Remainder16 => {
                    let (b, low) = split_remainder(value);
                    *self.data.cast::<bf16>().add(index) = b;
                    *self.beside.cast::<u16>().add(index) = low;
                }
                Weights::Correction8 => {
                    let (b, correction) = split_correction(value);
                    *self.data.cast::<bf16>().add(index) = b;
                    *self.beside.cast::<i8>().add(index) = correction;
                }
            }
        }
    }
}

/// The code of column `col` of a row with `per_byte` codes in a byte, the first in the lowest bits.
///
/// # Safety
/// `row` holds at least `col / per_byte + 1` bytes.
#[inline(always)]
pub(super) unsafe fn load_code(row: *const u8, per_byte: usize, col: usize) -> u8 {
    // SAFETY: the caller's promise.
    let byte = unsafe { *row.add(col / per_byte) };
    let bits = 8 / per_byte;
    // 8 bits of a byte are all of it; the mask of 2 or 4 bits fits.
    let mask = (0xff_u16 >> (8 - bits)) as u8;
    (byte >> (col % per_byte * bits)) & mask
}
