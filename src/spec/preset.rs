//! Specs by name.

use super::{DEFAULT_THRESHOLD, Normalization, Optimizer, Quantizer, Spec};
use crate::error::{Result, invalid};
use crate::quant::{Mapping, Rounding};

impl Spec {
    /// The names that [`Spec::preset`] knows.
    pub const PRESETS: [&'static str; 15] = [
        "adamw32",
        "adamw8",
        "adamw4",
        "adamw4-block",
        "adamw4-robust",
        "factor32",
        "factor4",
        "sgdm32",
        "sgdm8",
        "sgdm4",
        "lion32",
        "lion8",
        "lion4",
        "adafactor",
        "sm3",
    ];

    /// A spec by name.
    ///
    /// - `adamw32`: f32 states, 8 bytes per parameter.
    /// - `adamw8`: both moments 8-bit block(256)/de (Dettmers et al. 2022, with today's block).
    /// - `adamw4`: the paper's 4-bit AdamW: m block(128)/de, v rank1/linear.
    /// - `adamw4-block`: both moments in blocks of 128 (the paper's fused variant): one pass.
    /// - `adamw4-robust`: m block(128)/nf4 rounded at random, v rank1/power2: the closest to 32 bits in
    ///   `examples/experiments`.
    /// - `factor32`, `factor4`: AdamW with a factored v (as in the paper's 4-bit Factor), m in f32 or as in
    ///   `adamw4-robust`.
    /// - `sgdm32`, `sgdm8`, `sgdm4`, `lion32`, `lion8`, `lion4`: m in f32, 8-bit block(256)/de or as in
    ///   `adamw4-robust`.
    /// - `adafactor`: without momentum, the paper's defaults.
    /// - `sm3`: with an f32 momentum.
    ///
    /// # Errors
    /// `InvalidArgument`, listing the names.
    pub fn preset(name: &str) -> Result<Self> {
        let (f32, four) = (Quantizer::f32, || Quantizer::block(128, Mapping::De));
        let at_random = || Quantizer {
            rounding: Rounding::Stochastic,
            ..Quantizer::block(128, Mapping::Nf4)
        };
        let eight = || Quantizer {
            block: 256,
            ..Quantizer::codes(8, Normalization::Block, Mapping::De)
        };
        let factored = || Quantizer::codes(4, Normalization::Factored, Mapping::Linear);
        let factored_f32 = || Quantizer {
            normalization: Some(Normalization::Factored),
            ..Quantizer::f32()
        };
        let (optimizer, m, v) = match name {
            "adamw32" => (Optimizer::Adamw, Some(f32()), Some(f32())),
            "adamw8" => (Optimizer::Adamw, Some(eight()), Some(eight())),
            "adamw4" => (
                Optimizer::Adamw,
                Some(four()),
                Some(Quantizer::rank1(Mapping::Linear)),
            ),
            "adamw4-block" => (
                Optimizer::Adamw,
                Some(four()),
                Some(Quantizer::block(128, Mapping::Linear)),
            ),
            "adamw4-robust" => (
                Optimizer::Adamw,
                Some(at_random()),
                Some(Quantizer::rank1(Mapping::Power2)),
            ),
            "factor32" => (Optimizer::Adamw, Some(f32()), Some(factored_f32())),
            "factor4" => (Optimizer::Adamw, Some(at_random()), Some(factored())),
            "sgdm32" => (Optimizer::Sgdm, Some(f32()), None),
            "sgdm8" => (Optimizer::Sgdm, Some(eight()), None),
            "sgdm4" => (Optimizer::Sgdm, Some(at_random()), None),
            "lion32" => (Optimizer::Lion, Some(f32()), None),
            "lion8" => (Optimizer::Lion, Some(eight()), None),
            "lion4" => (Optimizer::Lion, Some(at_random()), None),
            "adafactor" => (Optimizer::Adafactor, None, Some(factored_f32())),
            "sm3" => (Optimizer::Sm3, Some(f32()), None),
            _ => {
                return Err(invalid(format!(
                    "preset {name:?} is unknown; this version has {}",
                    Self::PRESETS.join(", ")
                )));
            }
        };
        Ok(Self {
            m,
            v,
            ..Self::new(optimizer)
        })
    }

    /// An optimizer without quantizers yet.
    #[must_use]
    pub fn new(optimizer: Optimizer) -> Self {
        Self {
            optimizer,
            threshold: DEFAULT_THRESHOLD,
            m: None,
            v: None,
            x: None,
            amsgrad: false,
            maximize: false,
            sgdm: None,
            adafactor: None,
            seed: 0,
            overrides: Vec::new(),
        }
    }
}
