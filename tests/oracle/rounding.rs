//! Random rounding on average, with fixed seeds: no bias in the domain where it claims to have
//! none, no correlation between elements, steps, tensors, states and seeds; and the two corrections
//! that are not random, EDEN's scale and subtractive dither.
//!
//! A step with beta = 0 makes m the gradient and v its square, so that the rounded values are known.
//! All bounds are standard scores; 4.5 is left by chance once in 150,000 times.

use lowbit::dtype::Dtype;
use lowbit::plan::{Format, TensorInfo};
use lowbit::quant::{Rounding, Table};
use lowbit::spec::Spec;
use lowbit::weights::Weights;
use lowbit::{Hyper, Variant};

use crate::EPS;
use crate::common::{Model, bytes, word};

const ROWS: usize = 1024;
const COLS: usize = 1024;
const COUNT: usize = ROWS * COLS;
const MOST: f64 = 4.5;
/// Large, so that a level of 0 has a preconditioner that other levels are comparable with.
const PRECONDITIONER_EPS: f32 = 1e-3;

/// In (0, 1).
fn random(stream: u64, index: usize) -> f64 {
    ((word(stream, index as u64) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

/// Every block, row and column of a matrix has the largest magnitude 1, so that all scales are 1.
fn is_scale(index: usize) -> bool {
    index.is_multiple_of(64) || index < COLS
}

/// Gradients whose values (m) lie between the ends of a signed table.
fn signed_gradients(table: &Table) -> Vec<f32> {
    let lowest = f64::from(table.levels[0]);
    let value = |i| (lowest + (1.0 - lowest) * random(900, i)) as f32;
    (0..COUNT)
        .map(|i| if is_scale(i) { 1.0 } else { value(i) })
        .collect()
}

/// Gradients whose squares (v) lie between the lowest level above 0 and 1, log-uniform, or below it
/// in a quarter of the cases if there is a zero.
fn unsigned_gradients(table: &Table) -> Vec<f32> {
    let lowest = f64::from(table.levels[usize::from(table.has_zero())]);
    let root = |i| {
        if table.has_zero() && i % 4 == 0 {
            return (lowest * random(901, i)).sqrt();
        }
        // A little above, so that the rounded square is not below.
        lowest.powf(0.9999 * random(901, i)).sqrt()
    };
    (0..COUNT)
        .map(|i| if is_scale(i) { 1.0 } else { root(i) as f32 })
        .collect()
}

/// One step, numbered `step`, of tensors named `names` with the given gradients.
fn step(spec: &str, names: &[&str], grads: &[f32], weights: (Dtype, Weights), step: i32) -> Model {
    let spec = Spec {
        threshold: 0,
        ..Spec::from_json(spec).unwrap()
    };
    let info = |name: &&str| TensorInfo {
        param_dtype: weights.0,
        weights: weights.1,
        grad_dtype: Dtype::F32,
        ..TensorInfo::new(*name, &[ROWS as i64, COLS as i64], Dtype::F32)
    };
    let mut model = Model::new(Variant::Auto, 2, &spec, names.iter().map(info).collect());
    model.hyper = Hyper {
        lr: 1.0,
        beta1: 0.0,
        beta2: 0.0,
        eps: PRECONDITIONER_EPS,
        weight_decay: 0.0,
        ..Hyper::default()
    };
    for memory in &mut model.grads {
        let grads = bytes(grads.iter().copied(), Dtype::F32);
        memory.as_mut().copy_from_slice(&grads);
    }
    model.step = step - 1;
    model.run().unwrap();
    model
}

const F32: (Dtype, Weights) = (Dtype::F32, Weights::Plain);

/// Where a rounding has no bias.
fn domain(rounding: Rounding, x: f64, eps: f32) -> f64 {
    match rounding {
        Rounding::StochasticLog => x.ln(),
        Rounding::StochasticPreconditioner => 1.0 / (x.sqrt() + f64::from(eps)),
        Rounding::Nearest | Rounding::Stochastic => x,
    }
}

/// One rounded value: the level below it, the probability of the one above, and what happened.
struct Draw {
    level: usize,
    p: f64,
    up: bool,
}

impl Draw {
    /// The standard score, 0 where rare events dominate it.
    fn residual(&self) -> f64 {
        if self.p < 0.05 || self.p > 0.95 {
            return 0.0;
        }
        (f64::from(u8::from(self.up)) - self.p) / (self.p * (1.0 - self.p)).sqrt()
    }
}

/// What became of the values of a state whose scales are all 1.
fn draws(model: &Model, tensor: usize, state: usize, values: &[f32]) -> Vec<Draw> {
    let Format::Codes(codes) = &model.plan.tensors()[tensor].states[state].format else {
        panic!("no codes");
    };
    let levels = &codes.table.levels;
    let decoded = &model.decompress(state)[tensor];
    let draw = |(x, decoded): (&f32, &f32)| {
        let level = levels.partition_point(|l| l <= x) - 1;
        let Some(next) = levels.get(level + 1) else {
            assert_eq!(decoded, x);
            return Draw {
                level,
                p: 0.0,
                up: false,
            };
        };
        assert!(
            decoded == &levels[level] || decoded == next,
            "{x} became {decoded}"
        );
        let f = |x: f32| domain(codes.rounding, f64::from(x), model.hyper.eps);
        Draw {
            level,
            p: (f(*x) - f(levels[level])) / (f(*next) - f(levels[level])),
            up: decoded == next,
        }
    };
    values.iter().zip(decoded).map(draw).collect()
}

/// `sum(up - p)` in standard deviations.
fn score<'a>(draws: impl Iterator<Item = &'a Draw>) -> f64 {
    let (mut sum, mut variance) = (0.0, 0.0);
    for draw in draws {
        sum += f64::from(u8::from(draw.up)) - draw.p;
        variance += draw.p * (1.0 - draw.p);
    }
    if variance == 0.0 {
        0.0
    } else {
        sum / variance.sqrt()
    }
}

/// The gap of the domain between neighbouring levels weighs each draw: the bias of the mean.
fn bias(draws: &[Draw], table: &Table, rounding: Rounding, eps: f32) -> f64 {
    let (mut sum, mut variance) = (0.0, 0.0);
    for draw in draws.iter().filter(|draw| draw.p > 0.0) {
        let f = |level: usize| domain(rounding, f64::from(table.levels[level]), eps);
        let gap = f(draw.level + 1) - f(draw.level);
        sum += gap * (f64::from(u8::from(draw.up)) - draw.p);
        variance += gap * gap * draw.p * (1.0 - draw.p);
    }
    sum / variance.sqrt()
}

fn squares(grads: &[f32]) -> Vec<f32> {
    grads.iter().map(|g| g * g).collect()
}

#[test]
fn states_are_unbiased_in_their_domain() {
    for quantizer in [
        r#""m":{"bits":4,"normalization":"block","block":128,"mapping":"de","rounding":"stochastic"}"#,
        r#""m":{"bits":8,"normalization":"block","block":128,"mapping":"de","rounding":"stochastic"}"#,
        r#""m":{"bits":4,"normalization":"rank1","mapping":"nf4","rounding":"stochastic"}"#,
        r#""m":{"bits":2,"normalization":"tensor","mapping":"linear","rounding":"stochastic"}"#,
        r#""v":{"bits":4,"normalization":"rank1","mapping":"linear","rounding":"stochastic"}"#,
        r#""v":{"bits":4,"normalization":"block","block":64,"mapping":"de","rounding":"stochastic"}"#,
        r#""v":{"bits":4,"normalization":"rank1","mapping":"geometric","rounding":"stochastic-log"}"#,
        r#""v":{"bits":4,"normalization":"block","block":128,"mapping":"de0","rounding":"stochastic-log"}"#,
        r#""v":{"bits":8,"normalization":"block","block":128,"mapping":"geometric","rounding":"stochastic-log"}"#,
        r#""v":{"bits":4,"normalization":"block","block":128,"mapping":"de","rounding":"stochastic-preconditioner"}"#,
        r#""v":{"bits":4,"normalization":"row","mapping":"linear","rounding":"stochastic-preconditioner"}"#,
    ] {
        let first = quantizer.starts_with(r#""m""#);
        let other = if first {
            r#""v":{"bits":32}"#
        } else {
            r#""m":{"bits":32}"#
        };
        let json = format!(r#"{{"optimizer":"adamw",{quantizer},{other},"seed":20}}"#);
        let state = usize::from(!first);
        let spec = Spec::from_json(&json).unwrap();
        let quantizer = if first { spec.m } else { spec.v }.unwrap();
        let table = Table::of(quantizer.mapping.unwrap(), quantizer.bits, first, &[]).unwrap();
        let grads = if first {
            signed_gradients(&table)
        } else {
            unsigned_gradients(&table)
        };
        let values = if first {
            grads.clone()
        } else {
            squares(&grads)
        };
        let model = step(&json, &["w"], &grads, F32, 3);
        let draws = draws(&model, 0, state, &values);
        let random = draws.iter().filter(|draw| draw.p > 0.0).count();
        assert!(random >= 1_000_000, "{random}");
        check(
            &quantizer.describe(),
            &draws,
            &table,
            quantizer.rounding,
            PRECONDITIONER_EPS,
        );
    }
}

fn check(name: &str, draws: &[Draw], table: &Table, rounding: Rounding, eps: f32) {
    let bias = bias(draws, table, rounding, eps);
    let all = score(draws.iter());
    let each = (0..table.levels.len() - 1)
        .map(|level| score(draws.iter().filter(|draw| draw.level == level)).abs())
        .fold(0.0, f64::max);
    let count = draws.len();
    println!(
        "{name}: {count} draws, bias {bias:+.2} sd, ups {all:+.2} sd, at most {each:.2} sd in an interval"
    );
    assert!(
        bias.abs() < MOST && all.abs() < MOST && each < MOST,
        "{name}"
    );
}

#[test]
fn compressing_is_unbiased_too() {
    for (mapping, rounding) in [
        ("de0", "stochastic"),
        ("geometric", "stochastic-log"),
        ("linear", "stochastic-preconditioner"),
    ] {
        let json = format!(
            r#"{{"optimizer":"adamw","m":{{"bits":32}},"v":{{"bits":4,"normalization":"rank1","mapping":"{mapping}","rounding":"{rounding}"}},"seed":21}}"#
        );
        let quantizer = Spec::from_json(&json).unwrap().v.unwrap();
        let table = Table::of(quantizer.mapping.unwrap(), 4, false, &[]).unwrap();
        let grads = unsigned_gradients(&table);
        let mut model = step(&json, &["w"], &grads, F32, 1);
        let values = squares(&grads);
        model.compress(1, std::slice::from_ref(&values)).unwrap();
        // There is no step here: without bias correction, and with the usual eps.
        model.hyper.eps = Hyper::default().eps;
        let draws = draws(&model, 0, 1, &values);
        check(
            &format!("compress {mapping}"),
            &draws,
            &table,
            quantizer.rounding,
            model.hyper.eps,
        );
    }
}

/// `sum(a b)` of two lists of standard scores, in standard deviations.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let products = a.iter().zip(b).filter(|(a, b)| **a != 0.0 && **b != 0.0);
    let (sum, count) = products.fold((0.0, 0.0), |(sum, count), (a, b)| {
        (sum + a * b, count + 1.0)
    });
    assert!(count > 0.5 * COUNT as f64, "{count}");
    sum / f64::sqrt(count)
}

#[test]
fn draws_are_independent() {
    let json = |seed: u64| {
        format!(
            r#"{{"optimizer":"adamw","seed":{seed},"m":{{"bits":4,"normalization":"block","block":128,"mapping":"nf4","rounding":"stochastic"}},"v":{{"bits":4,"normalization":"block","block":128,"mapping":"linear","rounding":"stochastic"}}}}"#
        )
    };
    let spec = Spec::from_json(&json(0)).unwrap();
    let v = spec.v.unwrap();
    let table = Table::of(v.mapping.unwrap(), v.bits, false, &[]).unwrap();
    let grads = unsigned_gradients(&table);
    let squares = squares(&grads);
    let scores = |model: &Model, tensor, state| -> Vec<f64> {
        let values = if state == 0 { &grads } else { &squares };
        let draws = draws(model, tensor, state, values);
        draws.iter().map(Draw::residual).collect()
    };
    let model = step(&json(0), &["a", "b"], &grads, F32, 1);
    let (m, v) = (scores(&model, 0, 0), scores(&model, 0, 1));
    let check = |what: &str, a: &[f64], b: &[f64]| {
        let z = correlation(a, b);
        println!("{what}: {z:+.2} sd");
        assert!(z.abs() < MOST, "{what}: {z}");
    };
    // Eight draws come from one call of the generator, two from each of its words.
    for lag in [1, 2, 3, 4, 5, 6, 7, 8, 9, 128, COLS, COLS + 1] {
        check(
            &format!("elements {lag} apart"),
            &m[lag..],
            &m[..COUNT - lag],
        );
    }
    check("m and v", &m, &v);
    check("two tensors", &m, &scores(&model, 1, 0));
    for t in [2, 3, 65537] {
        let later = step(&json(0), &["a"], &grads, F32, t);
        check(&format!("steps 1 and {t}"), &m, &scores(&later, 0, 0));
        check(&format!("v in steps 1 and {t}"), &v, &scores(&later, 0, 1));
    }
    for seed in [1, 1 << 32] {
        let other = step(&json(seed), &["a"], &grads, F32, 1);
        check(&format!("seeds 0 and {seed}"), &m, &scores(&other, 0, 0));
    }
    // The same seed, step and tensor give the same draws.
    let again = step(&json(0), &["a"], &grads, F32, 1);
    assert!(scores(&again, 0, 0) == m);
}

/// Parameters after one step from 0 with lr = 1: the rounded negative gradients.
fn rounded_weights(dtype: Dtype, grads: &[f32]) -> (Model, Vec<f64>) {
    let json = r#"{"optimizer":"sgdm","seed":5,"m":{"bits":4,"normalization":"block","block":128,"mapping":"nf4","rounding":"stochastic"}}"#;
    let model = step(json, &["w"], grads, (dtype, Weights::Stochastic), 2);
    let halves = model.params[0].as_ref().chunks(2);
    let bits = halves.map(|b| u16::from_le_bytes(b.try_into().unwrap()));
    let values = match dtype {
        Dtype::Bf16 => bits
            .map(|b| f64::from(f32::from_bits(u32::from(b) << 16)))
            .collect(),
        _ => bits.map(half).collect(),
    };
    (model, values)
}

/// The value of an f16.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = if exponent == 0 {
        fraction * 2_f64.powi(-24)
    } else {
        (1024.0 + fraction) * 2_f64.powi(exponent - 25)
    };
    if bits >> 15 == 1 {
        -magnitude
    } else {
        magnitude
    }
}

#[test]
fn weights_are_unbiased() {
    // Bits of the significand, and the distance of the subnormals.
    for (dtype, bits, least) in [(Dtype::Bf16, 8, -133), (Dtype::F16, 11, -24)] {
        // f16: a third is subnormal.
        let magnitude = |i| 2_f64.powf(random(903, i) * 12.0 - 18.0);
        let sign = |i| {
            if word(904, i as u64) & 1 == 0 {
                1.0
            } else {
                -1.0
            }
        };
        let grads: Vec<f32> = (0..COUNT)
            .map(|i| (sign(i) * magnitude(i)) as f32)
            .collect();
        let (model, found) = rounded_weights(dtype, &grads);
        let (mut sum, mut variance, mut random) = (0.0, 0.0, 0);
        let mut scores = Vec::with_capacity(COUNT);
        for (g, found) in grads.iter().zip(&found) {
            let exact = -f64::from(*g);
            let exponent = exact.abs().log2().floor() as i32;
            let gap = 2_f64.powi((exponent + 1 - bits).max(least));
            let low = (exact / gap).floor() * gap;
            let p = (exact - low) / gap;
            assert!(
                *found == low || *found == low + gap,
                "{exact:e} became {found:e}"
            );
            // Relative, so that all magnitudes count.
            sum += (found - exact) / gap;
            variance += p * (1.0 - p);
            random += usize::from(p > 0.0);
            let draw = Draw {
                level: 0,
                p,
                up: *found > low,
            };
            scores.push(draw.residual());
        }
        assert!(random >= 1_000_000, "{random}");
        let z = sum / f64::sqrt(variance);
        // Of the state's draws for the same elements in the same step, by their signs alone.
        let restored = &model.decompress(0)[0];
        let errors = restored.iter().zip(&grads).map(|(a, b)| f64::from(a - b));
        let errors: Vec<_> = errors
            .map(|e| if e == 0.0 { 0.0 } else { e.signum() })
            .collect();
        let with_state = correlation(&scores, &errors);
        let lag = correlation(&scores[1..], &scores[..COUNT - 1]);
        println!(
            "{dtype:?}: {random} draws, bias {z:+.2} sd; with m {with_state:+.2}, with the neighbour {lag:+.2}"
        );
        assert!(
            z.abs() < MOST && with_state.abs() < MOST && lag.abs() < MOST,
            "{dtype:?}"
        );
    }
}

#[test]
fn corrected_scales_keep_the_inner_product() {
    let values: Vec<f32> = (0..1 << 16)
        .map(|i| {
            // Blocks of very different magnitudes, with heavy tails.
            let block = 10_f64.powf(random(906, i / 128) * 30.0 - 20.0);
            (block * (2.0 * random(907, i) - 1.0) / (0.01 + random(908, i))) as f32
        })
        .collect();
    let mut blocks = 0;
    for (mapping, bits) in [
        ("de", 4),
        ("nf4", 4),
        ("linear", 2),
        ("de", 8),
        ("linear-with-zero", 5),
    ] {
        for (state, block) in [("m", 32), ("m", 4096), ("v", 128)] {
            if state == "v" && mapping == "nf4" {
                continue;
            }
            let quantizer = format!(
                r#"{{"bits":{bits},"normalization":"block","block":{block},"mapping":"{mapping}","scale_correction":true}}"#
            );
            let other = if state == "m" { "v" } else { "m" };
            let json = format!(
                r#"{{"optimizer":"adamw","threshold":0,"{state}":{quantizer},"{other}":{{"bits":32}}}}"#
            );
            let spec = Spec::from_json(&json).unwrap();
            let info = TensorInfo::new("w", &[values.len() as i64], Dtype::F32);
            let mut model = Model::new(Variant::Auto, 1, &spec, vec![info]);
            let values: Vec<f32> = if state == "m" {
                values.clone()
            } else {
                values.iter().map(|x| x.abs()).collect()
            };
            let index = usize::from(state == "v");
            model
                .compress(index, std::slice::from_ref(&values))
                .unwrap();
            let decoded = &model.decompress(index)[0];
            for (x, q) in values.chunks(block).zip(decoded.chunks(block)) {
                let pairs = || x.iter().zip(q).map(|(x, q)| (f64::from(*x), f64::from(*q)));
                let squares: f64 = pairs().map(|(x, _)| x * x).sum();
                let products: f64 = pairs().map(|(x, q)| x * q).sum();
                // The scale is rounded before and after the correction, and every product with a
                // level.
                let off = (products - squares).abs();
                assert!(
                    off <= 3.0 * EPS * squares,
                    "{json}: {products:e} {squares:e}"
                );
                blocks += 1;
            }
        }
    }
    println!("sum(x q) = sum(x^2) in {blocks} blocks");
    assert!(blocks > 10_000);
}

#[test]
fn dither_makes_uniform_errors_without_bias() {
    // One draw a block, so a million blocks; of each, the scale and one value count.
    const BLOCK: usize = 32;
    for (state, mapping, spacing, lowest) in [
        ("m", "linear-with-zero", 1.0 / 7.0, -1.0),
        ("v", "linear", 1.0 / 16.0, 1.0 / 16.0),
    ] {
        let other = if state == "m" { "v" } else { "m" };
        let json = format!(
            r#"{{"optimizer":"adamw","threshold":0,"{state}":{{"bits":4,"normalization":"block","block":32,"mapping":"{mapping}","dither":true}},"{other}":{{"bits":4,"normalization":"tensor","mapping":"linear"}}}}"#
        );
        let spec = Spec::from_json(&json).unwrap();
        let info = TensorInfo::new("w", &[(COUNT * BLOCK) as i64], Dtype::F32);
        let mut model = Model::new(Variant::Auto, 2, &spec, vec![info]);
        // Away from the ends, beyond which no level is.
        let (least, most) = (lowest + spacing / 2.0, 1.0 - spacing / 2.0);
        let value = |i| (least + (most - least) * random(909, i)) as f32;
        let mut values = vec![0.0; COUNT * BLOCK];
        for (i, block) in values.chunks_mut(BLOCK).enumerate() {
            (block[0], block[1 + i % 31]) = (1.0, value(i));
        }
        let index = usize::from(state == "v");
        model
            .compress(index, std::slice::from_ref(&values))
            .unwrap();
        let decoded = model.decompress(index).swap_remove(0);
        let error = |i: usize| {
            let at = i * BLOCK + 1 + i % 31;
            (f64::from(decoded[at]) - f64::from(values[at])) / spacing
        };
        let mut errors: Vec<f64> = (0..COUNT).map(error).collect();
        let largest = errors.iter().map(|e| e.abs()).fold(0.0, f64::max);
        assert!(largest <= 0.5 + 1e-5, "{state}: {largest}");
        // A uniform number in (-1/2, 1/2) has the variance 1/12.
        let deviation = (COUNT as f64 / 12.0).sqrt();
        let bias = errors.iter().sum::<f64>() / deviation;
        let with_value: f64 = errors
            .iter()
            .enumerate()
            .map(|(i, e)| e * (2.0 * random(909, i) - 1.0))
            .sum();
        let with_value = with_value / (COUNT as f64 / 36.0).sqrt();
        let neighbours: f64 = errors.windows(2).map(|pair| pair[0] * pair[1]).sum();
        let neighbours = neighbours / (COUNT as f64 / 144.0).sqrt();
        errors.sort_by(f64::total_cmp);
        // Kolmogorov and Smirnov: 1.95 is left once in 1000 times.
        let distance = |(i, e): (usize, &f64)| ((i as f64 + 0.5) / COUNT as f64 - (e + 0.5)).abs();
        let distance = errors.iter().enumerate().map(distance).fold(0.0, f64::max);
        let uniform = distance * (COUNT as f64).sqrt();
        println!(
            "{state} {mapping}: {COUNT} blocks, largest error {largest:.5} spacings, bias {bias:+.2} sd, \
             with the value {with_value:+.2}, with the next block {neighbours:+.2}, KS {uniform:.2}"
        );
        assert!(bias.abs() < MOST && with_value.abs() < MOST && neighbours.abs() < MOST);
        assert!(uniform < 1.95);
    }
}
