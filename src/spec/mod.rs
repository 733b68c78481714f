//! What is kept per tensor: the optimizer and the quantizer of each of its states.
//!
//! A [`Spec`] is a value. It is made from a preset, from JSON ([`Spec::from_json`]), or field by
//! field; JSON is the form that configuration files, checkpoints and every language share.

mod preset;
mod quantizer;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, invalid, unsupported};
use crate::numerics::FpEnv;
use crate::quant::Rounding;

use quantizer::is_default;
pub use quantizer::{DEFAULT_BLOCK, FactorAxes, Normalization, Quantizer};

/// Which update the states belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(i32)]
pub enum Optimizer {
    /// AdamW (Loshchilov and Hutter 2019): m (signed), v; with amsgrad vmax.
    Adamw = 1,
    /// No update: one signed state `x`, for trainers with an optimizer of their own that only
    /// compress, decompress and average (the paper's Algorithm 1 around any optimizer).
    None = 2,
    /// Adam (Kingma and Ba 2015): as AdamW, but the decay is part of the gradient (L2).
    Adam = 3,
    /// SGD with momentum (paper, Algorithm 2): m.
    Sgdm = 4,
    /// Lion (Chen et al. 2023): m.
    Lion = 5,
    /// Adafactor (Shazeer and Stern 2018): v, usually factored, and m if the spec has one.
    Adafactor = 6,
    /// SM3 (Anil et al. 2019): v as one vector of maxima per axis, and m if the spec has one.
    Sm3 = 7,
}

impl Optimizer {
    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
            Self::None => "none",
            Self::Adam => "adam",
            Self::Sgdm => "sgdm",
            Self::Lion => "lion",
            Self::Adafactor => "adafactor",
            Self::Sm3 => "sm3",
        }
    }
}

/// Options of SGD with momentum, as torch defines them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SgdmOptions {
    /// The step follows `g + beta1 m` instead of m.
    pub nesterov: bool,
    /// From the second step on the gradient enters m times `1 - dampening`.
    pub dampening: f32,
    /// Weight decay is decoupled, as in AdamW, instead of part of the gradient.
    pub decoupled: bool,
}

/// Options of Adafactor; the defaults are the paper's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdafactorOptions {
    /// The step size is `min(lr, 1/sqrt(t))` instead of lr.
    pub relative_step: bool,
    /// The step size is multiplied by `max(eps2, RMS(parameter))`.
    pub scale_parameter: bool,
    /// The update is divided by `max(1, RMS(update) / clip_threshold)`; 0: no clipping.
    pub clip_threshold: f32,
    /// v decays by `1 - t^-decay_rate`.
    pub decay_rate: f32,
    /// The smallest RMS that a parameter counts with.
    pub eps2: f32,
}

impl Default for AdafactorOptions {
    fn default() -> Self {
        Self {
            relative_step: true,
            scale_parameter: true,
            clip_threshold: 1.0,
            decay_rate: 0.8,
            eps2: 1e-3,
        }
    }
}

/// Tensors with at most this many elements keep f32 states unless the spec says otherwise
/// (paper, appendix D.1).
pub const DEFAULT_THRESHOLD: i64 = 4096;

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
    pub(crate) fn quantizer(&self, state: &str) -> Option<&Quantizer> {
        match state {
            "m" => self.m.as_ref(),
            "x" => self.x.as_ref(),
            _ => self.v.as_ref(),
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
    /// AMSGrad (Reddi et al. 2018) for adam and adamw: the largest v so far divides.
    #[serde(default, skip_serializing_if = "is_default")]
    pub amsgrad: bool,
    /// Gradients are negated.
    #[serde(default, skip_serializing_if = "is_default")]
    pub maximize: bool,
    /// Options of sgdm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sgdm: Option<SgdmOptions>,
    /// Options of adafactor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adafactor: Option<AdafactorOptions>,
    /// Seed of stochastic rounding and dither.
    #[serde(default, skip_serializing_if = "is_default")]
    pub seed: u64,
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
        // Numbers are read by arithmetic.
        let _env = FpEnv::ieee();
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

    /// Names of the states, in the order of their buffers.
    #[must_use]
    pub fn states(&self) -> &'static [&'static str] {
        match self.optimizer {
            Optimizer::Adamw | Optimizer::Adam if self.amsgrad => &["m", "v", "vmax"],
            Optimizer::Adamw | Optimizer::Adam => &["m", "v"],
            Optimizer::Sgdm | Optimizer::Lion => &["m"],
            Optimizer::Adafactor | Optimizer::Sm3 if self.m.is_some() => &["v", "m"],
            Optimizer::Adafactor | Optimizer::Sm3 => &["v"],
            Optimizer::None => &["x"],
        }
    }

    /// The quantizer of a state before overrides; vmax has v's. SM3's v has none.
    pub(crate) fn quantizer(&self, state: &str) -> Option<&Quantizer> {
        match state {
            "m" => self.m.as_ref(),
            "x" => self.x.as_ref(),
            _ => self.v.as_ref(),
        }
    }

    /// Checks that every state has a quantizer that exists, and nothing else has.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, with the state or pattern in the text.
    pub fn validate(&self) -> Result<()> {
        // What a table allows is found by arithmetic.
        let _env = FpEnv::ieee();
        if self.threshold < 0 {
            return Err(invalid(format!(
                "threshold is {}; it must be >= 0",
                self.threshold
            )));
        }
        self.check_options()?;
        for state in ["m", "v", "x"] {
            let wanted = self.states().contains(&state)
                && !(self.optimizer == Optimizer::Sm3 && state == "v");
            match self.quantizer(state) {
                Some(quantizer) if wanted => self.check_quantizer(state, quantizer)?,
                None if !wanted => {}
                Some(_) => {
                    return Err(invalid(format!(
                        "{} has no choice of a quantizer for a state {state}",
                        self.optimizer.name()
                    )));
                }
                None => {
                    return Err(invalid(format!(
                        "{} needs a quantizer for its state {state}",
                        self.optimizer.name()
                    )));
                }
            }
            for rule in &self.overrides {
                if let Some(quantizer) = rule.quantizer(state) {
                    let place = format!("override {:?}", rule.pattern);
                    if !wanted {
                        return Err(invalid(format!("{place}: no state {state} here")));
                    }
                    self.check_quantizer(state, quantizer)
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

    fn check_options(&self) -> Result<()> {
        let name = self.optimizer.name();
        let adam = matches!(self.optimizer, Optimizer::Adamw | Optimizer::Adam);
        for (key, given, wanted) in [
            ("amsgrad", self.amsgrad, adam),
            (
                "sgdm",
                self.sgdm.is_some(),
                self.optimizer == Optimizer::Sgdm,
            ),
            (
                "adafactor",
                self.adafactor.is_some(),
                self.optimizer == Optimizer::Adafactor,
            ),
            ("maximize", self.maximize, self.optimizer != Optimizer::None),
        ] {
            if given && !wanted {
                return Err(invalid(format!("{name} has no option {key}")));
            }
        }
        if let Some(sgdm) = self.sgdm {
            if !(0.0..1.0).contains(&sgdm.dampening) {
                return Err(invalid(format!(
                    "sgdm.dampening is {}; it must be in [0, 1)",
                    sgdm.dampening
                )));
            }
            if sgdm.nesterov && sgdm.dampening != 0.0 {
                return Err(invalid("sgdm.nesterov needs a dampening of 0"));
            }
        }
        if let Some(options) = self.adafactor {
            for (key, value, most) in [
                ("clip_threshold", options.clip_threshold, f32::MAX),
                ("decay_rate", options.decay_rate, 1.0),
                ("eps2", options.eps2, f32::MAX),
            ] {
                if !(0.0..=most).contains(&value) {
                    return Err(invalid(format!(
                        "adafactor.{key} is {value}; it must be in [0, {most}]"
                    )));
                }
            }
        }
        Ok(())
    }

    fn check_quantizer(&self, state: &str, quantizer: &Quantizer) -> Result<()> {
        quantizer.table(state)?;
        let refuse = |text: &str| Err(unsupported(format!("{}: {text}", self.optimizer.name())));
        let wide = matches!(
            quantizer.normalization,
            Some(
                Normalization::Rank1
                    | Normalization::Tensor
                    | Normalization::Row
                    | Normalization::Column
            )
        );
        if self.optimizer == Optimizer::Adafactor && wide {
            return refuse(
                "scales that reach across blocks would need one more pass over the clipped update; \
                 use normalization block or factored",
            );
        }
        let factored = quantizer.normalization == Some(Normalization::Factored);
        if self.amsgrad && factored {
            return refuse("amsgrad needs every v, which factored does not keep");
        }
        if self.optimizer == Optimizer::Adafactor
            && quantizer.rounding == Rounding::StochasticPreconditioner
        {
            return refuse("rounding stochastic-preconditioner belongs to adam's bias correction");
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
                r#"{"optimizer":"adamw","m":{"bits":9,"normalization":"block","mapping":"de"},"v":{"bits":32}}"#,
                "bits of state m is 9",
            ),
            (
                r#"{"optimizer":"adamw","m":{"bits":4},"v":{"bits":32}}"#,
                "normalization",
            ),
            (r#"{"optimizer":"adamw","m":{"bits":32}}"#, "state v"),
            (
                r#"{"optimizer":"adamw","m":{"bits":4,"normalization":"block","mapping":"geometric"},"v":{"bits":32}}"#,
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
