//! Data types of tensors and state buffers.

use serde::{Deserialize, Serialize};

/// The type of one element. The discriminants are those of the C constants `LOWBIT_DTYPE_…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(i32)]
pub enum Dtype {
    /// IEEE-754 binary32.
    F32 = 1,
    /// The upper half of a binary32.
    Bf16 = 2,
    /// IEEE-754 binary16.
    F16 = 3,
    /// Packed codes: one of 5 to 8 bits, two of 3 or 4, or four of 2 bits in a byte, the first
    /// element in the lowest bits.
    U8 = 4,
    /// Statistics whose maximum is taken as integers.
    I32 = 5,
    /// Statistics that are added as integers.
    I64 = 6,
    /// The lower half of a parameter's f32 value.
    U16 = 7,
    /// The correction of a bf16 parameter, in 254ths of its last place.
    I8 = 8,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::Bf16 | Self::F16 | Self::U16 => 2,
            Self::U8 | Self::I8 => 1,
        }
    }

    /// The name used in JSON, in reports and by the bindings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U16 => "u16",
            Self::I8 => "i8",
        }
    }

    /// The type of a C constant.
    #[must_use]
    pub const fn from_raw(raw: i32) -> Option<Self> {
        match raw {
            1 => Some(Self::F32),
            2 => Some(Self::Bf16),
            3 => Some(Self::F16),
            4 => Some(Self::U8),
            5 => Some(Self::I32),
            6 => Some(Self::I64),
            7 => Some(Self::U16),
            8 => Some(Self::I8),
            _ => None,
        }
    }
}
