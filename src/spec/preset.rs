//! Specs by name.

use super::{DEFAULT_THRESHOLD, Optimizer, Quantizer, Spec};
use crate::error::{Result, invalid};
use crate::quant::Mapping;

impl Spec {
    /// The names that [`Spec::preset`] knows.
    pub const PRESETS: [&'static str; 3] = ["adamw32", "adamw4", "adamw4-block"];

    /// A spec by name.
    ///
    /// - `adamw32`: f32 states, 8 bytes per parameter.
    /// - `adamw4`: the paper's 4-bit AdamW: m block(128)/de, v rank1/linear.
    /// - `adamw4-block`: both moments in blocks of 128 (the paper's fused variant): one pass.
    ///
    /// # Errors
    /// `InvalidArgument`, listing the names.
    pub fn preset(name: &str) -> Result<Self> {
        let m = Quantizer::block(128, Mapping::De);
        let (m, v) = match name {
            "adamw32" => (Quantizer::F32, Quantizer::F32),
            "adamw4" => (m, Quantizer::rank1(Mapping::Linear)),
            "adamw4-block" => (m, Quantizer::block(128, Mapping::Linear)),
            _ => {
                return Err(invalid(format!(
                    "preset {name:?} is unknown; this version has {}",
                    Self::PRESETS.join(", ")
                )));
            }
        };
        Ok(Self {
            optimizer: Optimizer::Adamw,
            threshold: DEFAULT_THRESHOLD,
            m: Some(m),
            v: Some(v),
            x: None,
            overrides: Vec::new(),
        })
    }
}
