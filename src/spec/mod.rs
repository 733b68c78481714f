//! What is kept per tensor: the optimizer and the quantizer of each of its states.
//!
//! A [`Spec`] is a value. It is made from a preset, from JSON ([`Spec::from_json`]), or field by
//! field; JSON is the form that configuration files, checkpoints and every language share.

mod preset;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, invalid, unsupported};
use crate::quant::{self, Mapping, Table};

/// Which update the states belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(i32)]
pub enum Optimizer {
    /// AdamW (Loshchilov and Hutter 2019) with the states m (signed) and v.
    Adamw = 1,
    /// No update: one signed state `x`, for trainers with an optimizer of their own that only
    /// compress and decompress (the paper's Algorithm 1 around any optimizer).
    None = 2,
}

impl Optimizer {
    /// Names of the states, in the order of their buffers.
    #[must_use]
    pub const fn states(self) -> &'static [&'static str] {
        match self {
            Self::Adamw => &["m", "v"],
            Self::None => &["x"],
        }
    }
}

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
}

/// Bits, normalization, mapping and rounding of one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantizer {
    /// Not quantized: f32.
    F32,
    /// 4-bit codes, rounded to the nearest level.
    Bits4 {
        /// How the scales are found.
        normalization: Normalization,
        /// Elements of a block; 128 for rank-1, where it is the block of one-axis tensors.
        block: u32,
        /// Which levels the codes stand for.
        mapping: Mapping,
    },
}

/// Block size of the paper, of rank-1's one-axis case and of the grid of unquantized states.
pub const DEFAULT_BLOCK: u32 = 128;

/// Tensors with at most this many elements keep f32 states unless the spec says otherwise
/// (paper, appendix D.1).
pub const DEFAULT_THRESHOLD: i64 = 4096;

impl Quantizer {
    /// Blocks of `block` elements.
    #[must_use]
    pub const fn block(block: u32, mapping: Mapping) -> Self {
        Self::Bits4 {
            normalization: Normalization::Block,
            block,
            mapping,
        }
    }

    /// Rank-1 normalization.
    #[must_use]
    pub const fn rank1(mapping: Mapping) -> Self {
        Self::Bits4 {
            normalization: Normalization::Rank1,
            block: DEFAULT_BLOCK,
            mapping,
        }
    }

    /// The code table of this quantizer for the state `state`.
    ///
    /// # Errors
    /// Unsupported where the combination does not exist.
    pub(crate) fn table(self, state: &str) -> Result<Option<&'static Table>> {
        let Self::Bits4 {
            normalization,
            block,
            mapping,
        } = self
        else {
            return Ok(None);
        };
        let signed = state != "v";
        if !block.is_power_of_two() || !(32..=4096).contains(&block) {
            return Err(invalid(format!(
                "block of state {state} is {block}; it must be a power of two from 32 to 4096"
            )));
        }
        if signed && normalization == Normalization::Rank1 {
            return Err(unsupported(format!(
                "rank-1 normalization of the signed state {state} is not implemented; use block"
            )));
        }
        quant::table(mapping, signed).map(Some).ok_or_else(|| {
            unsupported(format!(
                "mapping {mapping:?} of state {state} is zero-free and has no signed form; use de"
            ))
        })
    }

    /// For reports: `f32`, `4-bit block(128)/de`, `4-bit rank1/linear`.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::F32 => "f32".to_owned(),
            Self::Bits4 {
                normalization,
                block,
                mapping,
            } => {
                let mapping = match mapping {
                    Mapping::De => "de",
                    Mapping::Linear => "linear",
                };
                match normalization {
                    Normalization::Block => format!("4-bit block({block})/{mapping}"),
                    Normalization::Rank1 => format!("4-bit rank1/{mapping}"),
                }
            }
        }
    }
}

/// The JSON form of a quantizer: every key optional but `bits`.
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
}

impl Serialize for Quantizer {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        let json = match *self {
            Self::F32 => QuantizerJson {
                bits: 32,
                normalization: None,
                block: None,
                mapping: None,
            },
            Self::Bits4 {
                normalization,
                block,
                mapping,
            } => QuantizerJson {
                bits: 4,
                normalization: Some(normalization),
                block: (normalization == Normalization::Block).then_some(block),
                mapping: Some(mapping),
            },
        };
        json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Quantizer {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        use serde::de::Error as _;
        let json = QuantizerJson::deserialize(deserializer)?;
        match (json.bits, json.normalization, json.mapping) {
            (32, None, None) if json.block.is_none() => Ok(Self::F32),
            (32, ..) => Err(D::Error::custom(
                "bits 32 takes no normalization, block or mapping",
            )),
            (4, Some(Normalization::Rank1), _) if json.block.is_some() => {
                Err(D::Error::custom("normalization rank1 takes no block"))
            }
            (4, Some(Normalization::Rank1), Some(mapping)) => Ok(Self::rank1(mapping)),
            (4, Some(Normalization::Block), Some(mapping)) => {
                Ok(Self::block(json.block.unwrap_or(DEFAULT_BLOCK), mapping))
            }
            (4, None, _) => Err(D::Error::custom("bits 4 needs the key normalization")),
            (4, _, None) => Err(D::Error::custom("bits 4 needs the key mapping")),
            (bits, ..) => Err(D::Error::custom(format!(
                "bits is {bits}; this version knows 4 and 32"
            ))),
        }
    }
}

/// Another choice of quantizers for the tensors whose name matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Shell pattern of tensor names: `*`, `?`, `[abc]`.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Replaces m's quantizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub m: Option<Quantizer>,
    /// Replaces v's quantizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v: Option<Quantizer>,
    /// Replaces x's quantizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<Quantizer>,
}

impl Override {
    /// The replacement for one state.
    pub(crate) fn quantizer(&self, state: &str) -> Option<Quantizer> {
        match state {
            "m" => self.m,
            "v" => self.v,
            _ => self.x,
        }
    }
}

/// Which optimizer, with which quantizer for each of its states.
///
/// Hyper-parameters are not here: they are data of each step, because trainers schedule them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The update.
    pub optimizer: Optimizer,
    /// Tensors with at most this many elements (of the global tensor) keep f32 states.
    #[serde(default = "default_threshold")]
    pub threshold: i64,
    /// First moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub m: Option<Quantizer>,
    /// Second moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v: Option<Quantizer>,
    /// The state of [`Optimizer::None`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<Quantizer>,
    /// The first override whose pattern matches a tensor's name wins; it also lifts the threshold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

fn default_threshold() -> i64 {
    DEFAULT_THRESHOLD
}

impl Spec {
    /// Reads the JSON form and checks it.
    ///
    /// # Errors
    /// `InvalidArgument` naming the key, `Unsupported` for what this version does not implement.
    pub fn from_json(text: &str) -> Result<Self> {
        let spec: Self =
            serde_json::from_str(text).map_err(|error| invalid(format!("spec JSON: {error}")))?;
        spec.validate()?;
        Ok(spec)
    }

    /// The JSON form: one line, keys in a fixed order, so that equal specs have equal texts.
    ///
    /// # Errors
    /// None in practice; serialization is fallible in type only.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|error| Error::new(crate::error::Status::Internal, error.to_string()))
    }

    /// The quantizer of a state before overrides.
    pub(crate) fn quantizer(&self, state: &str) -> Option<Quantizer> {
        match state {
            "m" => self.m,
            "v" => self.v,
            _ => self.x,
        }
    }

    /// Checks that every state has a quantizer that exists, and nothing else has.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, with the state or pattern in the text.
    pub fn validate(&self) -> Result<()> {
        if self.threshold < 0 {
            return Err(invalid(format!(
                "threshold is {}; it must be >= 0",
                self.threshold
            )));
        }
        for state in ["m", "v", "x"] {
            let wanted = self.optimizer.states().contains(&state);
            match self.quantizer(state) {
                Some(quantizer) if wanted => {
                    quantizer.table(state)?;
                }
                None if !wanted => {}
                Some(_) => {
                    return Err(invalid(format!(
                        "{:?} has no state {state}",
                        self.optimizer
                    )));
                }
                None => {
                    return Err(invalid(format!(
                        "{:?} needs a quantizer for its state {state}",
                        self.optimizer
                    )));
                }
            }
            for rule in &self.overrides {
                if let Some(quantizer) = rule.quantizer(state) {
                    let place = format!("override {:?}", rule.pattern);
                    if !wanted {
                        return Err(invalid(format!("{place}: no state {state} here")));
                    }
                    quantizer
                        .table(state)
                        .map_err(|error| error.within(&place))?;
                }
            }
        }
        for rule in &self.overrides {
            glob::Pattern::new(&rule.pattern)
                .map_err(|error| invalid(format!("override {:?}: {error}", rule.pattern)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_every_preset_reads_back() {
        for name in Spec::PRESETS {
            let spec = Spec::preset(name).unwrap();
            assert_eq!(
                Spec::from_json(&spec.to_json().unwrap()).unwrap(),
                spec,
                "{name}"
            );
        }
    }

    #[test]
    fn json_errors_name_the_key() {
        for (text, key) in [
            (
                r#"{"optimizer":"adamw","m":{"bits":32},"v":{"bits":32},"betas":[0,1]}"#,
                "betas",
            ),
            (
                r#"{"optimizer":"adamw","m":{"bits":5},"v":{"bits":32}}"#,
                "bits is 5",
            ),
            (
                r#"{"optimizer":"adamw","m":{"bits":4},"v":{"bits":32}}"#,
                "normalization",
            ),
            (r#"{"optimizer":"adamw","m":{"bits":32}}"#, "state v"),
            (
                r#"{"optimizer":"adamw","m":{"bits":4,"normalization":"block","mapping":"linear"},"v":{"bits":32}}"#,
                "state m",
            ),
            (
                r#"{"optimizer":"adamw","m":{"bits":4,"normalization":"block","block":100,"mapping":"de"},"v":{"bits":32}}"#,
                "block of state m is 100",
            ),
            (
                r#"{"optimizer":"adamw","m":{"bits":32},"v":{"bits":32},"threshold":-1}"#,
                "threshold",
            ),
        ] {
            let error = Spec::from_json(text).unwrap_err().to_string();
            assert!(error.contains(key), "{error} should contain {key}");
        }
    }
}
