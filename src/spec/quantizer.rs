//! How one state is kept.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Result, invalid, unsupported};
use crate::quant::{Mapping, Rounding, Table};

/// How the scales of a state are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(i32)]
pub enum Normalization {
    /// The largest magnitude of each block of a row (`layout` says what a row is).
    Block = 1,
    /// The smallest, over the axes, of the slice maxima (paper, Algorithm 4); tensors with at
    /// most one axis use blocks of 128.
    Rank1 = 2,
    /// The largest magnitude of the tensor.
    Tensor = 3,
    /// The largest magnitude of each row of the block grid.
    Row = 4,
    /// The largest magnitude of each column of the block grid.
    Column = 5,
    /// No codes: row and column means, as in Adafactor (the paper's 4-bit Factor). Tensors with at
    /// most one axis, and those whose means would take more bytes, are coded in blocks of 128.
    Factored = 6,
}

/// Which axes a factored v keeps as rows and which as columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(i32)]
pub enum FactorAxes {
    /// The contiguous split of the axes that minimises rows + columns, the smaller left side on
    /// ties.
    #[default]
    Merged = 0,
    /// The last two; the axes before them are a batch (the authors' code).
    LastTwo = 1,
    /// The two largest, the later ones on ties; all others are a batch (optax).
    LargestTwo = 2,
}

/// Block size of the paper, of the one-axis case of rank-1 and factored, and of the grid of states
/// without blocks.
pub const DEFAULT_BLOCK: u32 = 128;

/// Bits, normalization, mapping and rounding of one state.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantizer {
    /// 2 to 8; 32: f32 values without codes.
    pub bits: u32,
    /// `None` for plain f32 values.
    pub normalization: Option<Normalization>,
    /// Elements of a block; [`DEFAULT_BLOCK`] unless `normalization` is `Block`.
    pub block: u32,
    /// `None` if there are no codes.
    pub mapping: Option<Mapping>,
    /// The levels of [`Mapping::Table`], else empty.
    pub levels: Arc<[f32]>,
    /// How a value between two levels becomes one of them.
    pub rounding: Rounding,
    /// Whether block scales are corrected after coding (EDEN): then `sum(x q) = sum(x^2)`.
    pub scale_correction: bool,
    /// Whether one random offset per block is added before coding and subtracted after decoding
    /// (subtractive dither, as in BReD, arXiv 2603.16731); evenly spaced tables only.
    pub dither: bool,
    /// For `Factored`.
    pub factor_axes: FactorAxes,
}

impl Quantizer {
    /// Not quantized.
    #[must_use]
    pub fn f32() -> Self {
        Self {
            bits: 32,
            normalization: None,
            block: DEFAULT_BLOCK,
            mapping: None,
            levels: Arc::from([]),
            rounding: Rounding::Nearest,
            scale_correction: false,
            dither: false,
            factor_axes: FactorAxes::Merged,
        }
    }

    /// Codes of `bits` bits, rounded to nearest.
    #[must_use]
    pub fn codes(bits: u32, normalization: Normalization, mapping: Mapping) -> Self {
        Self {
            bits,
            normalization: Some(normalization),
            mapping: Some(mapping),
            ..Self::f32()
        }
    }

    /// 4 bits in blocks of `block` elements.
    #[must_use]
    pub fn block(block: u32, mapping: Mapping) -> Self {
        Self {
            block,
            ..Self::codes(4, Normalization::Block, mapping)
        }
    }

    /// 4 bits, rank-1 normalization.
    #[must_use]
    pub fn rank1(mapping: Mapping) -> Self {
        Self::codes(4, Normalization::Rank1, mapping)
    }

    /// Whether it is plain f32.
    #[must_use]
    pub fn is_f32(&self) -> bool {
        self.bits == 32 && self.normalization.is_none()
    }

    /// This quantizer for a tensor that its normalization does not fit: in blocks of 128.
    pub(crate) fn in_blocks(&self) -> Self {
        if self.bits == 32 {
            return Self::f32();
        }
        Self {
            normalization: Some(Normalization::Block),
            block: DEFAULT_BLOCK,
            ..self.clone()
        }
    }

    /// The code table of this quantizer for the state `state`, `None` without codes.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported` with the reason where the combination does not exist.
    pub(crate) fn table(&self, state: &str) -> Result<Option<Arc<Table>>> {
        let signed = !is_second_moment(state);
        if self.normalization == Some(Normalization::Factored) && signed {
            return Err(unsupported(format!(
                "normalization factored of the signed state {state}: row and column means are for v"
            )));
        }
        let Some(mapping) = self.mapping else {
            return Ok(None);
        };
        if !(2..=8).contains(&self.bits) {
            return Err(invalid(format!(
                "bits of state {state} is {}; it must be 2 to 8, or 32",
                self.bits
            )));
        }
        if !self.block.is_power_of_two() || !(32..=4096).contains(&self.block) {
            return Err(invalid(format!(
                "block of state {state} is {}; it must be a power of two from 32 to 4096",
                self.block
            )));
        }
        let table = Table::of(mapping, self.bits, signed, &self.levels)
            .map_err(|error| error.within(&format!("state {state}")))?;
        self.check_rounding(state, &table)?;
        Ok(Some(table))
    }

    fn check_rounding(&self, state: &str, table: &Table) -> Result<()> {
        let refuse = |what: &str, why: &str| {
            Err(unsupported(format!("{what} of state {state} needs {why}")))
        };
        match self.rounding {
            Rounding::StochasticLog if !is_second_moment(state) || table.has_zero() => {
                return refuse("rounding stochastic-log", "an unsigned table without zero");
            }
            Rounding::StochasticPreconditioner if !is_second_moment(state) => {
                return refuse("rounding stochastic-preconditioner", "a second moment");
            }
            _ => {}
        }
        let blocks = self.normalization == Some(Normalization::Block);
        if self.scale_correction && !blocks {
            return refuse("scale_correction", "normalization block");
        }
        if self.dither {
            if !blocks {
                return refuse("dither", "normalization block");
            }
            if table.spacing().is_none() {
                return refuse(
                    "dither",
                    "an evenly spaced table (linear-with-zero, or linear for v)",
                );
            }
            if self.rounding != Rounding::Nearest || self.scale_correction {
                return refuse("dither", "rounding nearest and no scale_correction");
            }
        }
        Ok(())
    }

    /// For reports: `f32`, `4-bit block(128)/de`, `4-bit rank1/linear/stochastic`.
    #[must_use]
    pub fn describe(&self) -> String {
        let normalization = match self.normalization {
            None => return "f32".to_owned(),
            Some(Normalization::Factored) => return "factored f32".to_owned(),
            Some(Normalization::Block) => format!("block({})", self.block),
            Some(Normalization::Rank1) => "rank1".to_owned(),
            Some(Normalization::Tensor) => "tensor".to_owned(),
            Some(Normalization::Row) => "row".to_owned(),
            Some(Normalization::Column) => "column".to_owned(),
        };
        let mapping = self.mapping.map_or("", Mapping::name);
        let mut text = format!("{}-bit {normalization}/{mapping}", self.bits);
        match self.rounding {
            Rounding::Nearest => {}
            Rounding::Stochastic => text += "/stochastic",
            Rounding::StochasticLog => text += "/stochastic-log",
            Rounding::StochasticPreconditioner => text += "/stochastic-preconditioner",
        }
        if self.scale_correction {
            text += "/scale-correction";
        }
        if self.dither {
            text += "/dither";
        }
        text
    }
}

/// Whether a state is never negative.
fn is_second_moment(state: &str) -> bool {
    state.starts_with('v')
}

/// The JSON form: every key optional but `bits`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantizerJson {
    bits: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    normalization: Option<Normalization>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    block: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mapping: Option<Mapping>,
    #[serde(default, skip_serializing_if = "<[f32]>::is_empty")]
    levels: Vec<f32>,
    #[serde(default, skip_serializing_if = "is_default")]
    rounding: Rounding,
    #[serde(default, skip_serializing_if = "is_default")]
    scale_correction: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    dither: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    factor_axes: FactorAxes,
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Serialize for Quantizer {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        let blocks = self.normalization == Some(Normalization::Block);
        QuantizerJson {
            bits: self.bits,
            normalization: self.normalization,
            block: blocks.then_some(self.block),
            mapping: self.mapping,
            levels: self.levels.to_vec(),
            rounding: self.rounding,
            scale_correction: self.scale_correction,
            dither: self.dither,
            factor_axes: self.factor_axes,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Quantizer {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        use serde::de::Error as _;
        let json = QuantizerJson::deserialize(deserializer)?;
        let factored = json.normalization == Some(Normalization::Factored);
        let coded = json.bits != 32;
        let complaint = if !coded && json.normalization.is_some() && !factored {
            "bits 32 takes no normalization but factored"
        } else if !coded
            && (json.mapping.is_some()
                || json.block.is_some()
                || !json.levels.is_empty()
                || json.rounding != Rounding::Nearest
                || json.scale_correction
                || json.dither)
        {
            "bits 32 has no codes: it takes no block, mapping, levels, rounding, scale_correction \
             or dither"
        } else if coded && json.normalization.is_none() {
            "fewer than 32 bits need the key normalization"
        } else if coded && json.mapping.is_none() {
            "fewer than 32 bits need the key mapping"
        } else if json.block.is_some() && json.normalization != Some(Normalization::Block) {
            "the key block belongs to normalization block"
        } else if json.factor_axes != FactorAxes::Merged && !factored {
            "the key factor_axes belongs to normalization factored"
        } else {
            return Ok(Self {
                bits: json.bits,
                normalization: json.normalization,
                block: json.block.unwrap_or(DEFAULT_BLOCK),
                mapping: json.mapping,
                levels: json.levels.into(),
                rounding: json.rounding,
                scale_correction: json.scale_correction,
                dither: json.dither,
                factor_axes: json.factor_axes,
            });
        };
        Err(D::Error::custom(complaint))
    }
}
