//! The update rules, one file each: what one element's gradient, parameter and old states become.
//! These are the definitions; RN is rounding to nearest even in f32, `fma(a, b, c) = RN(a b + c)`.
//!
//! The update uses the fresh states (paper, Algorithm 1); what is carried on is their coded form.
//! States come in the order of `Spec::states`. A factored v arrives already fresh, as `r c / mean`
//! of the new factors.

mod adafactor;
mod adamw;
mod lion;
mod sgdm;
mod sm3;

use crate::numerics::Hyper;
use crate::plan::TensorPlan;
use crate::spec::{Optimizer, Spec};

pub(crate) use adafactor::Adafactor;
pub(crate) use adamw::Adamw;
pub(crate) use lion::Lion;
pub(crate) use sgdm::Sgdm;
use sm3::Sm3;

/// The most states that a rule has.
pub(crate) const MAX_STATES: usize = 3;

/// One element before the step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input {
    /// Parameter.
    pub(crate) p: f32,
    /// `R1  g = RN(g_raw RN(grad_scale clip_factor))`, negated to maximize.
    pub(crate) g: f32,
    pub(crate) old: [f32; MAX_STATES],
}

/// What the step makes of it; the new parameter is `R8  p' = RN(p + update)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element {
    pub(crate) update: f32,
    pub(crate) new: [f32; MAX_STATES],
}

/// One optimizer with the scalars of one step.
pub(crate) trait Rule {
    /// How many states it reads and writes; the others are not touched.
    const STATES: usize;

    fn element(&self, x: Input) -> Element;
}

/// The rule of one tensor in one step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Update {
    Adamw(Adamw),
    Sgdm(Sgdm),
    Lion(Lion),
    Adafactor(Adafactor),
    Sm3(Sm3),
}

/// Runs `$body` with `$rule` bound to the rule itself, so that loops are compiled for each.
macro_rules! with_rule {
    ($update:expr, $rule:ident => $body:expr) => {
        match $update {
            $crate::optimizer::Update::Adamw($rule) => $body,
            $crate::optimizer::Update::Sgdm($rule) => $body,
            $crate::optimizer::Update::Lion($rule) => $body,
            $crate::optimizer::Update::Adafactor($rule) => $body,
            $crate::optimizer::Update::Sm3($rule) => $body,
        }
    };
}
pub(crate) use with_rule;

impl Update {
    /// The rule of step `t` (counted from 1; anything below counts as 1).
    pub(crate) fn new(spec: &Spec, tensor: &TensorPlan, hyper: &Hyper, t: i32) -> Self {
        let t = t.max(1);
        match spec.optimizer {
            Optimizer::Sgdm => Self::Sgdm(Sgdm::new(&spec.sgdm.unwrap_or_default(), hyper, t)),
            Optimizer::Lion => Self::Lion(Lion::new(hyper)),
            Optimizer::Adafactor => {
                Self::Adafactor(Adafactor::new(spec, hyper, t, tensor.factored().is_some()))
            }
            Optimizer::Sm3 => Self::Sm3(Sm3::new(spec.m.is_some(), hyper)),
            Optimizer::Adamw | Optimizer::Adam | Optimizer::None => {
                Self::Adamw(Adamw::new(spec, hyper, t, tensor.factored().is_some()))
            }
        }
    }

    pub(crate) fn element(&self, x: Input) -> Element {
        with_rule!(self, rule => rule.element(x))
    }

    /// Whether the gradient that enters the states has the parameter in it (L2 decay).
    pub(crate) fn gradient_has_param(&self) -> bool {
        match self {
            Self::Adamw(rule) => rule.gradient_has_param(),
            Self::Sgdm(rule) => rule.gradient_has_param(),
            Self::Lion(_) | Self::Adafactor(_) | Self::Sm3(_) => false,
        }
    }

    /// `R2`, the square that a factored v averages.
    #[inline(always)]
    pub(crate) fn square(&self, p: f32, g: f32) -> f32 {
        match self {
            Self::Adafactor(rule) => rule.square(g),
            Self::Adamw(rule) => {
                let g = rule.gradient(p, g);
                g * g
            }
            Self::Sgdm(_) | Self::Lion(_) | Self::Sm3(_) => g * g,
        }
    }

    /// `R4` for a mean of squares.
    pub(crate) fn average(&self, old: f32, mean: f32) -> f32 {
        let (beta2, one_minus_beta2) = match self {
            Self::Adafactor(rule) => rule.decay(),
            Self::Adamw(rule) => rule.decay(),
            Self::Sgdm(_) | Self::Lion(_) | Self::Sm3(_) => (0.0, 1.0),
        };
        beta2.mul_add(old, one_minus_beta2 * mean)
    }
}
