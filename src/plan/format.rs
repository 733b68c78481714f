//! How one state of one tensor is kept.

use std::sync::Arc;

use crate::layout::Projection;
use crate::quant::{Rounding, Table};
use crate::spec::Quantizer;

/// How a state is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Plain f32; one buffer, `value`.
    F32,
    /// Codes with scales; buffers `codes`, then `scales` or one per maximum.
    Codes(Codes),
    /// No codes: means of v over rows and columns; buffers `rows`, `columns`, `mean`.
    Factored(Box<[Factor; 3]>),
    /// No codes: maxima of the slices along every axis (SM3); one buffer per axis.
    Cover(Vec<Maxima>),
}

/// Codes of a state.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// Levels of the codes.
    pub table: Arc<Table>,
    /// Codes in a byte: 1, 2 or 4.
    pub per_byte: i64,
    /// Where an element's scale comes from.
    pub scales: Scales,
    /// How a value between two levels becomes one of them.
    pub rounding: Rounding,
    /// Whether block scales are corrected after coding.
    pub scale_correction: bool,
    /// For subtractive dither: the distance of levels.
    pub dither: Option<f32>,
}

/// Where the scales of codes come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// One for each block of this many elements of a row.
    Block(i64),
    /// The smallest of the maxima of the slices that an element lies in.
    Maxima(Vec<Maxima>),
}

/// Maxima of a state's magnitudes over the axes that a projection drops.
#[derive(Clone, Debug, PartialEq)]
pub struct Maxima {
    /// Name of the buffer.
    pub part: String,
    /// Which axes are kept.
    pub projection: Projection,
    /// First word of the new maxima in the statistics (global extents).
    pub word: usize,
}

/// Means of a factored v over the axes that a projection drops.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// Largest squares, from which the unit of the exact sums follows.
    pub maxima: Maxima,
    /// Elements of the global tensor that a mean is over.
    pub count: i64,
    /// First of the sums, two i64 limbs each (global extents).
    pub sum: usize,
    /// First of the new means among the fresh values (extents here).
    pub fresh: usize,
}

/// Where Adafactor's sums over a whole tensor are in the scratch.
#[derive(Clone, Copy, Debug)]
pub struct RmsPlan {
    /// Word of the largest magnitude of the parameter.
    pub(crate) param_max: usize,
    /// Its squares' sum.
    pub(crate) param_sum: usize,
    /// Word of the largest magnitude of the update.
    pub(crate) update_max: usize,
    /// Its squares' sum.
    pub(crate) update_sum: usize,
}

/// One state of one tensor.
#[derive(Clone, Debug)]
pub struct StatePlan {
    /// `m`, `v`, `vmax` or `x`.
    pub name: &'static str,
    /// The quantizer after threshold and overrides.
    pub quantizer: Quantizer,
    /// How it is kept.
    pub format: Format,
    /// Its first buffer, counted from the tensor's first.
    pub first_buffer: usize,
    /// How many buffers it has.
    pub buffer_count: usize,
}

impl StatePlan {
    /// The maxima that decide its scales, or that it consists of.
    pub(crate) fn maxima(&self) -> &[Maxima] {
        match &self.format {
            Format::Codes(Codes {
                scales: Scales::Maxima(maxima),
                ..
            })
            | Format::Cover(maxima) => maxima,
            _ => &[],
        }
    }

    /// Whether its scales or factors belong to the whole (global) tensor.
    pub(crate) fn is_global(&self) -> bool {
        !self.maxima().is_empty() || matches!(self.format, Format::Factored(_))
    }

    /// For reports: as the quantizer says, but for SM3's v.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.format {
            Format::Cover(_) => "f32 axis maxima".to_owned(),
            _ => self.quantizer.describe(),
        }
    }
}
