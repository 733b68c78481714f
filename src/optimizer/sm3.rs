//! SM3-II (Anil et al. 2019, "Memory-Efficient Adaptive Optimization"): v is kept as the maxima of
//! its slices along every axis, and read as the smallest of an element's maxima.
//!
//! ```text
//! R1  g  = RN(g_raw grad_scale)
//! R4  v' = RN(v + RN(g g))
//! R6  q  = RN(g / RN(sqrt(v'))), 0 where v' is 0
//! R3  m' = fma(beta1, m, RN((1 - beta1) q))     with momentum; then q is m'
//! R7  u  = -fma(lr, q, RN(lr wd p))
//! ```

use super::{Element, Input, Rule};
use crate::numerics::Hyper;

/// See the module's page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sm3 {
    lr: f32,
    beta1: f32,
    one_minus_beta1: f32,
    lr_wd: f32,
    momentum: bool,
}

impl Sm3 {
    pub(super) fn new(momentum: bool, hyper: &Hyper) -> Self {
        Self {
            lr: hyper.lr,
            beta1: hyper.beta1,
            one_minus_beta1: 1.0 - hyper.beta1,
            lr_wd: hyper.lr * hyper.weight_decay,
            momentum,
        }
    }
}

impl Sm3 {
    /// R4.
    #[inline(always)]
    pub(crate) fn second_moment(&self, g: f32, v: f32) -> f32 {
        v + g * g
    }
}

impl Rule for Sm3 {
    const STATES: usize = 2;

    #[inline(always)]
    fn element(&self, x: Input) -> Element {
        let v = self.second_moment(x.g, x.old[0]); // R4
        let q = if v == 0.0 { 0.0 } else { x.g / v.sqrt() }; // R6
        let m = self.beta1.mul_add(x.old[1], self.one_minus_beta1 * q); // R3
        let q = if self.momentum { m } else { q };
        Element {
            update: -self.lr.mul_add(q, self.lr_wd * x.p), // R7
            new: [v, m, 0.0],
        }
    }
}
