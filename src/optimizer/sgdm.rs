//! SGD with momentum (paper, Algorithm 2), with torch's options.
//!
//! ```text
//! R1  g  = RN(g_raw grad_scale)             coupled decay: then fma(wd, p, g)
//! R3  m' = g in step 1, else fma(beta1, m, RN((1 - dampening) g))
//! R6  q  = m'                               nesterov: fma(beta1, m', g)
//! R7  u  = -fma(lr, q, RN(lr wd p))         coupled decay: -RN(lr q)
//! ```

use super::{Element, Input, Rule};
use crate::numerics::Hyper;
use crate::spec::SgdmOptions;

/// See the module's page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sgdm {
    pub(crate) lr: f32,
    pub(crate) momentum: f32,
    pub(crate) one_minus_dampening: f32,
    pub(crate) l2: f32,
    pub(crate) lr_wd: f32,
    pub(crate) nesterov: bool,
    pub(crate) first: bool,
}

impl Sgdm {
    pub(super) fn new(options: &SgdmOptions, hyper: &Hyper, t: i32) -> Self {
        let wd = hyper.weight_decay;
        let (l2, lr_wd) = if options.decoupled {
            (0.0, hyper.lr * wd)
        } else {
            (wd, 0.0)
        };
        Self {
            lr: hyper.lr,
            momentum: hyper.beta1,
            one_minus_dampening: 1.0 - options.dampening,
            l2,
            lr_wd,
            nesterov: options.nesterov,
            first: t == 1,
        }
    }
}

impl Sgdm {
    pub(super) fn gradient_has_param(&self) -> bool {
        self.l2 != 0.0
    }
}

impl Rule for Sgdm {
    const STATES: usize = 1;

    #[inline(always)]
    fn element(&self, x: Input) -> Element {
        let g = if self.l2 == 0.0 {
            x.g
        } else {
            self.l2.mul_add(x.p, x.g)
        };
        let m = if self.first {
            g
        } else {
            self.momentum
                .mul_add(x.old[0], self.one_minus_dampening * g) // R3
        };
        let q = if self.nesterov {
            self.momentum.mul_add(m, g)
        } else {
            m
        }; // R6
        let decay = if self.lr_wd == 0.0 {
            0.0
        } else {
            self.lr_wd * x.p
        };
        Element {
            update: -self.lr.mul_add(q, decay), // R7
            new: [m, 0.0, 0.0],
        }
    }
}
