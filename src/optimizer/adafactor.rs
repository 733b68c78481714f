//! Adafactor (Shazeer and Stern 2018, Algorithms 4 and 5; `eps` is their epsilon_1).
//!
//! ```text
//! beta2_t = RN(1 - t^-decay_rate)       rho = relative_step ? min(lr, 1/sqrt(t)) : lr
//! alpha   = RN(rho max(eps2, RMS(p)))   without scale_parameter: rho
//! R1  g  = RN(g_raw grad_scale)
//! R2  w  = fma(g, g, eps)
//! R4  v' = fma(beta2_t, v, RN((1 - beta2_t) w))
//! R5  d  = RN(sqrt(v'))
//! R6  q  = RN(RN(g / d) clip), clip = RN(1 / max(1, RMS(g / d) / clip_threshold))
//! R3  m' = fma(beta1, m, RN((1 - beta1) q))     with momentum; then q is m'
//! R7  u  = -fma(alpha, q, RN(RN(rho wd) p))
//! ```
//!
//! The momentum averages q as the paper's does; optax averages it after the step size multiplied it,
//! which differs where the step size varies.

use super::{Element, Input, Rule};
use crate::numerics::{Hyper, inverse_power};
use crate::spec::{AdafactorOptions, Spec};

/// See the module's page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adafactor {
    options: AdafactorOptions,
    pub(crate) eps: f32,
    pub(crate) beta1: f32,
    pub(crate) one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    rho: f32,
    pub(crate) alpha: f32,
    /// `RN(1 / max(1, RMS(g / d) / clip_threshold))`.
    pub(crate) clip: f32,
    pub(crate) rho_wd: f32,
    pub(crate) momentum: bool,
    factored: bool,
}

impl Adafactor {
    pub(super) fn new(spec: &Spec, hyper: &Hyper, t: i32, factored: bool) -> Self {
        let options = spec.adafactor.unwrap_or_default();
        let relative = 1.0 / f64::from(t).sqrt();
        let rho = if options.relative_step && relative < f64::from(hyper.lr) {
            relative as f32
        } else {
            hyper.lr
        };
        let forget = inverse_power(t.cast_unsigned(), options.decay_rate) as f32;
        Self {
            options,
            eps: hyper.eps,
            beta1: hyper.beta1,
            one_minus_beta1: 1.0 - hyper.beta1,
            beta2: 1.0 - forget,
            one_minus_beta2: forget,
            rho,
            alpha: rho,
            clip: 1.0,
            rho_wd: rho * hyper.weight_decay,
            momentum: spec.m.is_some(),
            factored,
        }
    }

    pub(super) fn decay(&self) -> (f32, f32) {
        (self.beta2, self.one_minus_beta2)
    }

    /// R2.
    #[inline(always)]
    pub(super) fn square(&self, g: f32) -> f32 {
        g.mul_add(g, self.eps)
    }

    /// Whether the step needs RMS(p), and RMS(g / d).
    pub(crate) fn needs_rms(&self) -> (bool, bool) {
        (
            self.options.scale_parameter,
            self.options.clip_threshold > 0.0,
        )
    }

    /// The root mean squares of parameter and unclipped update, where the options need them.
    pub(crate) fn set_rms(&mut self, param: Option<f64>, update: Option<f64>) {
        if let Some(rms) = param {
            let eps2 = f64::from(self.options.eps2);
            // NaN counts, as it does in every comparison that keeps it.
            let scale = if rms < eps2 { eps2 } else { rms };
            self.alpha = (f64::from(self.rho) * scale) as f32;
        }
        if let Some(rms) = update {
            let ratio = rms / f64::from(self.options.clip_threshold);
            self.clip = if ratio <= 1.0 {
                1.0
            } else {
                (1.0 / ratio) as f32
            };
        }
    }

    /// v' and `RN(g / d)`.
    #[inline(always)]
    pub(crate) fn unclipped(&self, g: f32, v: f32) -> (f32, f32) {
        let v = if self.factored {
            v
        } else {
            self.beta2.mul_add(v, self.one_minus_beta2 * self.square(g)) // R2, R4
        };
        (v, g / v.sqrt()) // R5, R6
    }
}

impl Rule for Adafactor {
    const STATES: usize = 2;

    #[inline(always)]
    fn element(&self, x: Input) -> Element {
        let (v, q) = self.unclipped(x.g, x.old[0]);
        let q = q * self.clip; // R6
        let m = self.beta1.mul_add(x.old[1], self.one_minus_beta1 * q); // R3
        let q = if self.momentum { m } else { q };
        Element {
            update: -self.alpha.mul_add(q, self.rho_wd * x.p), // R7
            new: [v, m, 0.0],
        }
    }
}
