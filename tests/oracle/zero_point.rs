//! The paper's ablation of the zero point (section 4.1 and table 1) in miniature: v with a level at
//! 0 and beta2 = 0.999 takes steps that are far too large, whatever the map; the same maps without
//! that level do not.
//!
//! The problem is a quadratic in n coordinates of different units, observed with noise:
//!
//! ```text
//! f(x) = 1/2 sum s_j x_j^2,  g_j = s_j (x_j + xi_j) a_j,  xi ~ N(0, 1),  s_j = 10^(-3 U), x_0 = 1
//! ```
//!
//! where a_j is 1 (dense), or 1 with probability 1/2 and else 0 (sparse: the feature is absent).
//! AdamW does not see the units: every coordinate should walk to 0 and jitter there. But in a block
//! of 128 most v are below a hundredth of the largest, and where such a v is stored as 0, the next
//! step divides by `sqrt(1 - beta2) |g|` alone, or by eps if g is 0. m stays in f32, so that v alone
//! differs.

use lowbit::dtype::Dtype;
use lowbit::plan::TensorInfo;
use lowbit::spec::Spec;
use lowbit::{Hyper, Variant};

use crate::common::{Model, bytes, floats, word};

const N: usize = 8192;
const STEPS: u64 = 600;
const LR: f64 = 0.01;

fn uniform(stream: u64, index: usize) -> f64 {
    ((word(stream, index as u64) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

fn normal(stream: u64, index: usize) -> f64 {
    let radius = (-2.0 * uniform(stream, 2 * index).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(stream, 2 * index + 1)).cos()
}

struct Outcome {
    /// Root mean square of the coordinates at the end; 1 at the beginning.
    distance: f64,
    /// Root mean square step in the second half, in units of lr.
    step: f64,
}

fn train(v: &str, sparse: bool) -> Outcome {
    let json = format!(r#"{{"optimizer":"adamw","m":{{"bits":32}},"v":{v}}}"#);
    let spec = Spec::from_json(&json).unwrap();
    let info = TensorInfo::new("x", &[N as i64], Dtype::F32);
    let mut model = Model::new(Variant::Auto, 1, &spec, vec![info]);
    model.hyper = Hyper {
        lr: LR as f32,
        weight_decay: 0.0,
        ..Hyper::default()
    };
    let ones = bytes((0..N).map(|_| 1.0), Dtype::F32);
    model.params[0].as_mut().copy_from_slice(&ones);
    let units: Vec<f64> = (0..N).map(|j| 10_f64.powf(-3.0 * uniform(1, j))).collect();
    let mut steps = 0.0;
    for t in 0..STEPS {
        let before = floats(model.params[0].as_ref());
        let grads = (0..N).map(|j| {
            if sparse && word(5000 + t, j as u64) & 1 == 0 {
                return 0.0;
            }
            (units[j] * (f64::from(before[j]) + normal(10_000 + t, j))) as f32
        });
        let grads = bytes(grads, Dtype::F32);
        model.grads[0].as_mut().copy_from_slice(&grads);
        model.run().unwrap();
        if t >= STEPS / 2 {
            let after = floats(model.params[0].as_ref());
            let moved = after.iter().zip(&before).map(|(a, b)| f64::from(a - b));
            steps += moved.map(|d| d * d).sum::<f64>();
        }
    }
    let squares = floats(model.params[0].as_ref()).into_iter();
    let squares: f64 = squares.map(|x| f64::from(x) * f64::from(x)).sum();
    Outcome {
        distance: (squares / N as f64).sqrt(),
        step: (steps / (N as f64 * (STEPS / 2) as f64)).sqrt() / LR,
    }
}

fn block(mapping: &str) -> String {
    format!(r#"{{"bits":4,"normalization":"block","block":128,"mapping":"{mapping}"}}"#)
}

#[test]
fn a_zero_point_in_v_makes_steps_too_large() {
    println!("problem  v                 distance   rms step / lr");
    for sparse in [false, true] {
        let show = |name: &str, outcome: &Outcome| {
            let problem = if sparse { "sparse" } else { "dense" };
            let Outcome { distance, step } = outcome;
            println!("{problem:8} {name:17} {distance:8.3e}   {step:8.3e}");
        };
        let exact = train(r#"{"bits":32}"#, sparse);
        show("f32", &exact);
        assert!(exact.distance < 0.15 && exact.step < 0.5);
        for mapping in ["de", "linear-with-zero"] {
            let found = train(&block(mapping), sparse);
            show(mapping, &found);
            // Measured: 380 and 1700 at least, further away than it began.
            assert!(found.distance > 20.0 && found.step > 100.0, "{mapping}");
        }
        for mapping in ["de0", "linear"] {
            let found = train(&block(mapping), sparse);
            show(mapping, &found);
            // Measured: 0.66 and 0.18 at most. What v is rounded up to makes steps smaller, never
            // larger than those of f32.
            assert!(found.distance < 0.8 && found.step < exact.step, "{mapping}");
        }
    }
}
