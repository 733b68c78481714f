//! AdamW (Loshchilov and Hutter 2019), Adam (Kingma and Ba 2015), AMSGrad (Reddi et al. 2018), and
//! with a factored v the paper's Factor.
//!
//! ```text
//! R1  g    = RN(g_raw grad_scale)           adam: then fma(wd, p, g)
//! R2  w    = RN(g g)
//! R3  m'   = fma(beta1, m, RN((1 - beta1) g))
//! R4  v'   = fma(beta2, v, RN((1 - beta2) w))      amsgrad: vmax' = max(vmax, v') divides instead
//! R5  d    = fma(RN(sqrt(v')), 1/sqrt(1 - beta2^t), eps)
//! R6  q    = RN(m' / d)
//! R7  u    = -fma(lr/(1 - beta1^t), q, RN(lr wd p))    adam: without the second term
//! ```

use super::{Element, Input, Rule};
use crate::numerics::{Hyper, Scalars};
use crate::spec::{Optimizer, Spec};

/// See the module's page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adamw {
    s: Scalars,
    /// Added to the gradient times p; 0 if the decay is decoupled.
    pub(crate) l2: f32,
    amsgrad: bool,
    factored: bool,
}

impl Adamw {
    pub(super) fn new(spec: &Spec, hyper: &Hyper, t: i32, factored: bool) -> Self {
        let mut s = Scalars::new(hyper, t);
        let l2 = spec.optimizer == Optimizer::Adam;
        if l2 {
            s.lr_wd = 0.0;
        }
        Self {
            s,
            l2: if l2 { hyper.weight_decay } else { 0.0 },
            amsgrad: spec.amsgrad,
            factored,
        }
    }

    pub(super) fn decay(&self) -> (f32, f32) {
        (self.s.beta2, self.s.one_minus_beta2)
    }

    pub(super) fn gradient_has_param(&self) -> bool {
        self.l2 != 0.0
    }

    /// The gradient with its decay.
    #[inline(always)]
    pub(crate) fn gradient(&self, p: f32, g: f32) -> f32 {
        if self.l2 == 0.0 {
            g
        } else {
            self.l2.mul_add(p, g)
        }
    }

    /// What it computes with, but for Adam's decay and unless it is AMSGrad.
    pub(crate) fn scalars(&self) -> Option<&Scalars> {
        (!self.amsgrad).then_some(&self.s)
    }

    /// This rule without options and with v of its own for each element, if it is that.
    pub(crate) fn plain(&self) -> Option<Plain<'_>> {
        let options = self.l2 != 0.0 || self.amsgrad || self.factored;
        (!options).then_some(Plain(self))
    }

    /// R3, R5 to R7: the new m, and the update.
    #[inline(always)]
    fn update(&self, m: f32, g: f32, divisor: f32, decay: f32) -> (f32, f32) {
        let s = &self.s;
        let m = s.beta1.mul_add(m, s.one_minus_beta1 * g); // R3
        let d = divisor.sqrt().mul_add(s.inv_sqrt_bc2, s.eps); // R5
        let q = m / d; // R6
        (m, -s.lr_bc1.mul_add(q, decay)) // R7
    }

    /// R4.
    #[inline(always)]
    pub(crate) fn second_moment(&self, g: f32, v: f32) -> f32 {
        let w = g * g; // R2
        self.s.beta2.mul_add(v, self.s.one_minus_beta2 * w)
    }
}

impl Rule for Adamw {
    const STATES: usize = 3;

    #[inline(always)]
    fn element(&self, x: Input) -> Element {
        let g = self.gradient(x.p, x.g);
        let v = if self.factored {
            x.old[1]
        } else {
            self.second_moment(g, x.old[1]) // R2, R4
        };
        // As integers, so that NaN is the largest.
        let largest = if v.to_bits() > x.old[2].to_bits() {
            v
        } else {
            x.old[2]
        };
        let divisor = if self.amsgrad { largest } else { v };
        let decay = if self.l2 == 0.0 {
            self.s.lr_wd * x.p
        } else {
            0.0
        };
        let (m, update) = self.update(x.old[0], g, divisor, decay);
        Element {
            update,
            new: [m, v, largest],
        }
    }
}

/// AdamW itself, without options: the same bits, and a loop without branches.
#[derive(Clone, Copy)]
pub(crate) struct Plain<'a>(&'a Adamw);

impl Rule for Plain<'_> {
    const STATES: usize = 2;

    #[inline(always)]
    fn element(&self, x: Input) -> Element {
        let v = self.0.second_moment(x.g, x.old[1]); // R2, R4
        let (m, update) = self.0.update(x.old[0], x.g, v, self.0.s.lr_wd * x.p);
        Element {
            update,
            new: [m, v, 0.0],
        }
    }
}
