//! Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms").
//!
//! ```text
//! R1  g  = RN(g_raw grad_scale)
//! R3  m' = fma(beta2, m, RN((1 - beta2) g))
//! R6  q  = sign(fma(beta1, m, RN((1 - beta1) g)))     0 for 0, NaN for NaN
//! R7  u  = -fma(lr, q, RN(lr wd p))
//! ```

use super::{Element, Input, Rule};
use crate::numerics::Hyper;

/// See the module's page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lion {
    pub(crate) lr: f32,
    pub(crate) beta1: f32,
    pub(crate) one_minus_beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) one_minus_beta2: f32,
    pub(crate) lr_wd: f32,
}

impl Lion {
    pub(super) fn new(hyper: &Hyper) -> Self {
        Self {
            lr: hyper.lr,
            beta1: hyper.beta1,
            one_minus_beta1: 1.0 - hyper.beta1,
            beta2: hyper.beta2,
            one_minus_beta2: 1.0 - hyper.beta2,
            lr_wd: hyper.lr * hyper.weight_decay,
        }
    }
}

impl Rule for Lion {
    const STATES: usize = 1;

    #[inline(always)]
    fn element(&self, x: Input) -> Element {
        let m = self.beta2.mul_add(x.old[0], self.one_minus_beta2 * x.g); // R3
        let c = self.beta1.mul_add(x.old[0], self.one_minus_beta1 * x.g);
        let q = if c == 0.0 || c.is_nan() {
            c
        } else {
            1_f32.copysign(c)
        }; // R6
        Element {
            update: -self.lr.mul_add(q, self.lr_wd * x.p), // R7
            new: [m, 0.0, 0.0],
        }
    }
}
