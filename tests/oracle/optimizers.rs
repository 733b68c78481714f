//! Every optimizer against its published equations, evaluated in f64 over fifty steps with 32-bit
//! states. [`Near`] carries the bound that the roundings of an f32 evaluation must keep; the
//! hyper-parameters are the f32 values that the library is given.

#![allow(
    clippy::needless_range_loop,
    reason = "element j of several arrays, as in the formulas"
)]

use lowbit::dtype::Dtype;
use lowbit::plan::TensorInfo;
use lowbit::spec::Spec;
use lowbit::{Hyper, Variant};

use crate::common::{Model, floats};
use crate::near::Near;

const STEPS: i32 = 50;

const SHAPES: [&[usize]; 4] = [&[64, 65], &[3, 4, 5, 6], &[37], &[6, 2, 7, 3]];

/// Hyper-parameters as f64 numbers with the values of the f32 ones.
struct H {
    lr: Near,
    beta1: Near,
    beta2: Near,
    eps: Near,
    decay: Near,
}

impl H {
    fn new(hyper: &Hyper) -> Self {
        let exact = |x: f32| Near::exact(f64::from(x));
        Self {
            lr: exact(hyper.lr),
            beta1: exact(hyper.beta1),
            beta2: exact(hyper.beta2),
            eps: exact(hyper.eps),
            decay: exact(hyper.weight_decay),
        }
    }
}

/// A tensor with the states of all optimizers, of which each uses some.
struct Tensor {
    shape: Vec<usize>,
    p: Vec<Near>,
    m: Vec<Near>,
    /// What divides: also the products of factors, and the least of an element's maxima.
    v: Vec<Near>,
    vmax: Vec<Near>,
    rows: Vec<Near>,
    columns: Vec<Near>,
    covers: Vec<Vec<Near>>,
}

impl Tensor {
    fn new(shape: &[usize], p: &[f32]) -> Self {
        let zeros = vec![Near::default(); p.len()];
        Self {
            shape: shape.to_vec(),
            p: p.iter().map(|x| Near::exact(f64::from(*x))).collect(),
            m: zeros.clone(),
            v: zeros.clone(),
            vmax: zeros.clone(),
            rows: zeros.clone(),
            columns: zeros,
            covers: shape.iter().map(|n| vec![Near::default(); *n]).collect(),
        }
    }

    fn index(&self, element: usize, axis: usize) -> usize {
        element / self.shape[axis + 1..].iter().product::<usize>() % self.shape[axis]
    }

    /// Which position of a vector over the axes `kept` an element belongs to.
    fn position(&self, element: usize, kept: &[usize]) -> usize {
        kept.iter().fold(0, |position, &axis| {
            position * self.shape[axis] + self.index(element, axis)
        })
    }

    /// `decay old + (1 - decay) mean(values)` over all axes that are not kept.
    fn averaged(&self, old: &[Near], values: &[Near], kept: &[usize], decay: Near) -> Vec<Near> {
        let length: usize = kept.iter().map(|&axis| self.shape[axis]).product();
        let mut terms = vec![Vec::new(); length];
        for (element, value) in values.iter().enumerate() {
            terms[self.position(element, kept)].push(*value);
        }
        let count = Near::exact((values.len() / length) as f64);
        let means = terms.into_iter().map(|t| Near::sum(t.into_iter()) / count);
        let new = means.zip(old).map(|(mean, old)| average(decay, *old, mean));
        new.collect()
    }
}

/// `decay old + (1 - decay) new`.
fn average(decay: Near, old: Near, new: Near) -> Near {
    decay * old + (Near::exact(1.0) - decay) * new
}

/// `1 - beta^t`, which the library has in f64 and rounds with what it multiplies.
fn correction(beta: Near, t: i32) -> Near {
    Near::exact(1.0 - beta.value.powi(t))
}

/// The axes of the row and of the column means, by the definition of each choice.
fn factor_axes(shape: &[usize], choice: &str) -> Option<(Vec<usize>, Vec<usize>)> {
    let n = shape.len();
    if n < 2 {
        return None;
    }
    let without = |axis: usize| (0..n).filter(|a| *a != axis).collect::<Vec<_>>();
    Some(match choice {
        "merged" => {
            let size = |axes: &[usize]| axes.iter().product::<usize>();
            let mut best = 1;
            for split in 2..n {
                let sum = |split: usize| size(&shape[..split]) + size(&shape[split..]);
                if sum(split) < sum(best) {
                    best = split;
                }
            }
            ((0..best).collect(), (best..n).collect())
        }
        // Row means are over the last axis, column means over the one before.
        "last_two" => (without(n - 1), without(n - 2)),
        // optax: row means are over the largest axis, column means over the second largest.
        "largest_two" => {
            let mut axes: Vec<_> = (0..n).collect();
            axes.sort_by_key(|&axis| shape[axis]);
            (without(axes[n - 1]), without(axes[n - 2]))
        }
        other => panic!("{other}"),
    })
}

/// The rank-1 factorization of the averages of `squares` (Shazeer and Stern 2018, Algorithm 4):
/// `v_ij = r_i c_j / mean(r)`, the mean over what the columns do not keep; 0 where that is 0.
fn factored_v(w: &mut Tensor, squares: &[Near], decay: Near, rows: &[usize], columns: &[usize]) {
    w.rows = w.averaged(&w.rows, squares, rows, decay);
    w.columns = w.averaged(&w.columns, squares, columns, decay);
    let batch: Vec<_> = rows
        .iter()
        .filter(|a| columns.contains(a))
        .copied()
        .collect();
    let length: usize = batch.iter().map(|&axis| w.shape[axis]).product();
    let mut sums = vec![Vec::new(); length];
    let mut seen = vec![false; w.rows.len()];
    for element in 0..squares.len() {
        let row = w.position(element, rows);
        if !std::mem::replace(&mut seen[row], true) {
            sums[w.position(element, &batch)].push(w.rows[row]);
        }
    }
    let count = Near::exact((seen.iter().filter(|s| **s).count() / length) as f64);
    let means: Vec<_> = sums
        .into_iter()
        .map(|terms| Near::sum(terms.into_iter()) / count)
        .collect();
    for element in 0..squares.len() {
        let mean = means[w.position(element, &batch)];
        w.v[element] = if mean.value == 0.0 {
            Near::default()
        } else {
            w.rows[w.position(element, rows)] / mean * w.columns[w.position(element, columns)]
        };
    }
}

/// AdamW (Loshchilov and Hutter 2019, Algorithm 2, the decay multiplied by lr as everybody does),
/// Adam with the decay in the gradient, AMSGrad (Reddi et al. 2018, Algorithm 2, bias-corrected as
/// in torch), and AdamW with Adafactor's v.
struct Adamw {
    l2: bool,
    amsgrad: bool,
    factored: Option<&'static str>,
}

impl Adamw {
    fn step(&self, w: &mut Tensor, g: &[Near], t: i32, h: &H) {
        let decayed = |p: &Near, g: &Near| if self.l2 { *g + h.decay * *p } else { *g };
        let g: Vec<_> = w.p.iter().zip(g).map(|(p, g)| decayed(p, g)).collect();
        let squares: Vec<_> = g.iter().map(|g| *g * *g).collect();
        match self
            .factored
            .and_then(|choice| factor_axes(&w.shape, choice))
        {
            Some((rows, columns)) => factored_v(w, &squares, h.beta2, &rows, &columns),
            None => {
                for (v, square) in w.v.iter_mut().zip(&squares) {
                    *v = average(h.beta2, *v, *square);
                }
            }
        }
        for j in 0..g.len() {
            w.m[j] = average(h.beta1, w.m[j], g[j]);
            w.vmax[j] = w.vmax[j].max(w.v[j]);
            let v = if self.amsgrad { w.vmax[j] } else { w.v[j] };
            let divisor = v.sqrt() / correction(h.beta2, t).sqrt() + h.eps;
            let mut step = h.lr * (w.m[j] / correction(h.beta1, t) / divisor);
            if !self.l2 {
                step = step + h.lr * h.decay * w.p[j];
            }
            w.p[j] = w.p[j] - step;
        }
    }
}

/// SGD with momentum, dampening and Nesterov's look-ahead as in torch's documentation: the buffer
/// starts as the first gradient, not dampened.
struct Sgdm {
    dampening: f32,
    nesterov: bool,
    decoupled: bool,
}

impl Sgdm {
    fn step(&self, w: &mut Tensor, g: &[Near], t: i32, h: &H) {
        let dampening = Near::exact(f64::from(self.dampening));
        for j in 0..g.len() {
            let p = w.p[j];
            let g = if self.decoupled {
                g[j]
            } else {
                g[j] + h.decay * p
            };
            w.m[j] = if t == 1 {
                g
            } else {
                h.beta1 * w.m[j] + (Near::exact(1.0) - dampening) * g
            };
            let direction = if self.nesterov {
                g + h.beta1 * w.m[j]
            } else {
                w.m[j]
            };
            let mut step = h.lr * direction;
            if self.decoupled {
                step = step + h.lr * h.decay * p;
            }
            w.p[j] = p - step;
        }
    }
}

/// Lion (Chen et al. 2023, Algorithm 2): the sign of one average, the state another.
fn lion(w: &mut Tensor, g: &[Near], h: &H) {
    for j in 0..g.len() {
        let c = average(h.beta1, w.m[j], g[j]);
        w.p[j] = w.p[j] - (h.lr * c.sign() + h.lr * h.decay * w.p[j]);
        w.m[j] = average(h.beta2, w.m[j], g[j]);
    }
}

/// Adafactor (Shazeer and Stern 2018, Algorithms 4 to 6), with decoupled decay by rho. Momentum,
/// for which the paper has no formula, averages the clipped update before the step size multiplies
/// it (fairseq and optax average after).
struct Adafactor {
    relative: bool,
    scale: bool,
    clip: f32,
    rate: f32,
    eps2: f32,
    momentum: bool,
    factored: bool,
}

fn mean_square(values: &[Near]) -> Near {
    let count = Near::exact(values.len() as f64);
    (Near::sum(values.iter().map(|x| *x * *x)) / count).sqrt()
}

impl Adafactor {
    fn step(&self, w: &mut Tensor, g: &[Near], t: i32, h: &H) {
        let exact = |x: f32| Near::exact(f64::from(x));
        let forget = Near::rounded(f64::from(t).powf(-f64::from(self.rate)), 0.0);
        let decay = Near::exact(1.0) - forget;
        let mut rho = h.lr;
        if self.relative {
            rho = rho.min(Near::rounded(1.0 / f64::from(t).sqrt(), 0.0));
        }
        let alpha = if self.scale {
            rho * mean_square(&w.p).max(exact(self.eps2))
        } else {
            rho
        };
        let squares: Vec<_> = g.iter().map(|g| *g * *g + h.eps).collect();
        match factor_axes(&w.shape, "merged").filter(|_| self.factored) {
            Some((rows, columns)) => factored_v(w, &squares, decay, &rows, &columns),
            None => {
                for (v, square) in w.v.iter_mut().zip(&squares) {
                    // As decay + forget, not 1 - decay: 1 - (1 - x) loses bits of a small x.
                    *v = decay * *v + forget * *square;
                }
            }
        }
        let mut update: Vec<_> = g.iter().zip(&w.v).map(|(g, v)| *g / v.sqrt()).collect();
        if self.clip > 0.0 {
            let ratio = (mean_square(&update) / exact(self.clip)).max(Near::exact(1.0));
            update.iter_mut().for_each(|u| *u = *u / ratio);
        }
        for (j, u) in update.into_iter().enumerate() {
            w.m[j] = average(h.beta1, w.m[j], u);
            let u = if self.momentum { w.m[j] } else { u };
            w.p[j] = w.p[j] - (alpha * u + rho * h.decay * w.p[j]);
        }
    }
}

/// SM3-II (Anil et al. 2019): `v_i = min_r mu_r + g_i^2`, `mu_r = max_(i in r) v_i`; 0/0 is 0.
fn sm3(w: &mut Tensor, g: &[Near], h: &H, momentum: bool) {
    let mut covers: Vec<_> = w
        .covers
        .iter()
        .map(|c| vec![Near::default(); c.len()])
        .collect();
    for j in 0..g.len() {
        let axes = 0..w.shape.len();
        let old = axes.clone().map(|a| w.covers[a][w.index(j, a)]);
        let old = old.reduce(Near::min).unwrap();
        let v = old + g[j] * g[j];
        for a in axes {
            let slot = &mut covers[a][w.index(j, a)];
            *slot = slot.max(v);
        }
        let u = if v.value == 0.0 {
            Near::default()
        } else {
            g[j] / v.sqrt()
        };
        w.m[j] = average(h.beta1, w.m[j], u);
        let u = if momentum { w.m[j] } else { u };
        w.p[j] = w.p[j] - (h.lr * u + h.lr * h.decay * w.p[j]);
    }
    w.covers = covers;
    for j in 0..g.len() {
        let least = (0..w.shape.len()).map(|a| w.covers[a][w.index(j, a)]);
        w.v[j] = least.reduce(Near::min).unwrap();
    }
}

/// One step by a published equation.
type Equations<'a> = &'a dyn Fn(&mut Tensor, &[Near], i32, &H);

/// Every parameter and state must be within its bound.
fn check(name: &str, json: &str, hyper: Hyper, equations: Equations<'_>) {
    match compare(json, hyper, equations) {
        Ok(text) => println!("{name}: {text}"),
        Err(text) => panic!("{name}: {text}"),
    }
}

/// Runs the library and the equations side by side. All but a few bounds must be small: at most
/// `2^-12` of what fifty steps of lr can move a parameter, or of a state's largest value.
fn compare(json: &str, hyper: Hyper, equations: Equations<'_>) -> Result<String, String> {
    let spec = Spec {
        threshold: 0,
        ..Spec::from_json(json).unwrap()
    };
    let infos = SHAPES.iter().enumerate().map(|(i, shape)| {
        let shape: Vec<_> = shape.iter().map(|n| *n as i64).collect();
        TensorInfo::new(format!("t{i}"), &shape, Dtype::F32)
    });
    let mut model = Model::new(Variant::Reference, 1, &spec, infos.collect());
    model.hyper = hyper;
    model.fill_params();
    let tensors = SHAPES.iter().zip(&model.params);
    let mut tensors: Vec<_> = tensors
        .map(|(shape, p)| Tensor::new(shape, &floats(p.as_ref())))
        .collect();
    let h = H::new(&hyper);
    let scale = f64::from(hyper.grad_scale) * f64::from(hyper.clip_factor);
    let sign = if spec.maximize { -1.0 } else { 1.0 };
    for t in 1..=STEPS {
        model.fill_grads(t as u64);
        for (w, g) in tensors.iter_mut().zip(&model.grads) {
            let g: Vec<_> = floats(g.as_ref())
                .into_iter()
                // Scales that are powers of two are exact; others round the factor and the product.
                .map(|g| Near::exact(f64::from(g)) * Near::rounded(sign * scale, 0.0))
                .collect();
            equations(w, &g, t, &h);
        }
        model.run().unwrap();
    }
    let (mut worst, mut loose, mut compared) = (0.0_f64, 0, 0);
    let mut compare = |what: &str, found: &[f32], want: &[Near], unit: f64| {
        for (j, (found, want)) in found.iter().zip(want).enumerate() {
            let (off, bound) = ((f64::from(*found) - want.value).abs(), want.error);
            if off > bound || off.is_nan() {
                let want = want.value;
                return Err(format!(
                    "element {j} of {what} is {found:e}, not {want:e} (off {off:e}, bound {bound:e})"
                ));
            }
            worst = worst.max(off / bound.max(1e-300));
            loose += usize::from(bound > unit / 4096.0);
            compared += 1;
        }
        Ok(())
    };
    for (i, w) in tensors.iter().enumerate() {
        let p = floats(model.params[i].as_ref());
        compare(&format!("p{i}"), &p, &w.p, 50.0 * h.lr.value)?;
        for (state, name) in spec.states().iter().enumerate() {
            let want = match *name {
                "m" => &w.m,
                "vmax" => &w.vmax,
                _ => &w.v,
            };
            let largest = want.iter().map(|x| x.value.abs()).fold(0.0, f64::max);
            compare(
                &format!("{name}{i}"),
                &model.decompress(state)[i],
                want,
                largest,
            )?;
        }
    }
    if loose * 100 > compared {
        return Err(format!("{loose} of {compared} bounds are loose"));
    }
    Ok(format!(
        "{compared} values, worst {worst:.3} of the bound, {loose} loose bounds"
    ))
}

fn adam_family() -> Hyper {
    Hyper {
        // Where the decay is the whole gradient, Adam steps past p = 0 and the errors of p grow
        // without bound; with a small lr few elements get there.
        lr: 1e-4,
        grad_scale: 0.3,
        clip_factor: 0.7,
        ..Hyper::default()
    }
}

const M: &str = r#""m":{"bits":32}"#;
const V: &str = r#""v":{"bits":32}"#;

#[test]
fn adamw_adam_and_amsgrad_follow_their_equations() {
    for maximize in [false, true] {
        for (optimizer, l2) in [("adamw", false), ("adam", true)] {
            for amsgrad in [false, true] {
                let json = format!(
                    r#"{{"optimizer":"{optimizer}",{M},{V},"amsgrad":{amsgrad},"maximize":{maximize}}}"#
                );
                let rule = Adamw {
                    l2,
                    amsgrad,
                    factored: None,
                };
                let equations = |w: &mut Tensor, g: &[Near], t: i32, h: &H| rule.step(w, g, t, h);
                check(&json, &json, adam_family(), &equations);
            }
        }
    }
}

#[test]
fn factor_follows_its_equations_for_every_choice_of_axes() {
    for choice in ["merged", "last_two", "largest_two"] {
        let json = format!(
            r#"{{"optimizer":"adamw",{M},"v":{{"bits":32,"normalization":"factored","factor_axes":"{choice}"}}}}"#
        );
        let rule = Adamw {
            l2: false,
            amsgrad: false,
            factored: Some(choice),
        };
        check(choice, &json, Hyper::default(), &|w, g, t, h| {
            rule.step(w, g, t, h)
        });
    }
}

#[test]
fn sgdm_follows_its_equations_with_every_option() {
    for (dampening, nesterov) in [(0.0, false), (0.25, false), (0.0, true)] {
        for decoupled in [false, true] {
            for maximize in [false, true] {
                let json = format!(
                    r#"{{"optimizer":"sgdm",{M},"maximize":{maximize},"sgdm":{{"dampening":{dampening},"nesterov":{nesterov},"decoupled":{decoupled}}}}}"#
                );
                let rule = Sgdm {
                    dampening,
                    nesterov,
                    decoupled,
                };
                let hyper = Hyper {
                    lr: 0.05,
                    weight_decay: 0.1,
                    ..Hyper::default()
                };
                check(&json, &json, hyper, &|w, g, t, h| rule.step(w, g, t, h));
            }
        }
    }
}

#[test]
fn lion_follows_its_equations() {
    for maximize in ["false", "true"] {
        let json = format!(r#"{{"optimizer":"lion",{M},"maximize":{maximize}}}"#);
        let hyper = Hyper {
            lr: 1e-4,
            beta2: 0.99,
            weight_decay: 0.1,
            ..Hyper::default()
        };
        check(&json, &json, hyper, &|w, g, _, h| lion(w, g, h));
    }
}

#[test]
fn adafactor_follows_its_equations_with_every_option() {
    let mut cases = Vec::new();
    for bits in 0..32_u8 {
        let on = |bit: u8| bits >> bit & 1 == 1;
        cases.push(Adafactor {
            relative: on(0),
            scale: on(1),
            clip: if on(2) { 1.0 } else { 0.0 },
            rate: if on(0) { 0.8 } else { 0.5 },
            eps2: 1e-3,
            momentum: on(3),
            factored: on(4),
        });
    }
    for rule in cases {
        let m = if rule.momentum {
            format!("{M},")
        } else {
            String::new()
        };
        let normalization = if rule.factored {
            r#","normalization":"factored""#
        } else {
            ""
        };
        let json = format!(
            r#"{{"optimizer":"adafactor",{m}"v":{{"bits":32{normalization}}},"adafactor":{{"relative_step":{},"scale_parameter":{},"clip_threshold":{},"decay_rate":{},"eps2":{}}}}}"#,
            rule.relative, rule.scale, rule.clip, rule.rate, rule.eps2
        );
        let hyper = Hyper {
            // Both sides of min(lr, 1/sqrt(t)) occur in fifty steps.
            lr: if rule.relative { 0.3 } else { 0.01 },
            eps: 1e-30,
            ..Hyper::default()
        };
        check(&json, &json, hyper, &|w, g, t, h| rule.step(w, g, t, h));
    }
}

#[test]
fn sm3_follows_its_equations() {
    for momentum in [false, true] {
        let m = if momentum {
            format!(",{M}")
        } else {
            String::new()
        };
        let json = format!(r#"{{"optimizer":"sm3"{m}}}"#);
        let hyper = Hyper {
            lr: 0.01,
            ..Hyper::default()
        };
        check(&json, &json, hyper, &|w, g, _, h| sm3(w, g, h, momentum));
    }
}

#[test]
fn a_wrong_equation_is_noticed() {
    // The bounds mean something: a bias correction that is off by one step leaves them.
    let json = format!(r#"{{"optimizer":"adamw",{M},{V}}}"#);
    let rule = Adamw {
        l2: false,
        amsgrad: false,
        factored: None,
    };
    let wrong = |w: &mut Tensor, g: &[Near], t: i32, h: &H| rule.step(w, g, t + 1, h);
    let error = compare(&json, Hyper::default(), &wrong).unwrap_err();
    assert!(error.contains("of p0 is"), "{error}");
}
