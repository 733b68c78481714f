//! The paper's AdamW: its equations from dequantized states, its codes and scales, and what follows
//! from them.

use std::sync::{Arc, LazyLock};

use lowbit::dtype::Dtype;
use lowbit::plan::TensorInfo;
use lowbit::quant::{Mapping, Table};
use lowbit::spec::{Quantizer, Spec};
use lowbit::{Hyper, Variant, power};

use crate::common::{self, ADAMW, Model, floats, tensors};
use crate::{EPS, f64s};

static DE_SIGNED: LazyLock<Arc<Table>> =
    LazyLock::new(|| Table::of(Mapping::De, 4, true, &[]).unwrap());
static LINEAR: LazyLock<Arc<Table>> =
    LazyLock::new(|| Table::of(Mapping::Linear, 4, false, &[]).unwrap());

#[test]
fn powers_agree_with_repeated_multiplication_and_logarithms() {
    for beta in [0.9_f32, 0.95, 0.98, 0.999, 0.5] {
        let mut product = 1.0_f64;
        for t in 1..=5000_u32 {
            product *= f64::from(beta);
            let found = power(beta, t);
            let relative = (found - product).abs() / product.max(1e-300);
            assert!(
                product < 1e-300 || relative < 1e-12,
                "{beta}^{t}: {found} {product}"
            );
        }
        let by_logarithm = (f64::from(beta).ln() * 777.0).exp();
        assert!((power(beta, 777) - by_logarithm).abs() <= 1e-12 * by_logarithm);
    }
}

/// The paper's equations (Algorithm 3 with Eq. 1, decoupled decay) in f64, and how far f32 may be
/// from them.
struct Exact {
    update: f64,
    update_bound: f64,
    m: f64,
    m_bound: f64,
    v: f64,
    v_bound: f64,
}

fn exact(p: f64, g: f64, m: f64, v: f64, h: &Hyper, t: i32) -> Exact {
    let (b1, b2) = (f64::from(h.beta1), f64::from(h.beta2));
    let (lr, eps, wd) = (f64::from(h.lr), f64::from(h.eps), f64::from(h.weight_decay));
    let m_new = b1 * m + (1.0 - b1) * g;
    let v_new = b2 * v + (1.0 - b2) * g * g;
    let (bc1, bc2) = (1.0 - b1.powi(t), 1.0 - b2.powi(t));
    let denominator = (v_new / bc2).sqrt() + eps;
    let (q, decay) = (m_new / bc1 / denominator, wd * p);
    // Roundings: (1 - beta) g and the fma for m (cancellation between the two is possible, so the
    // bound is absolute); three for v, none of opposite sign; then root, 1/sqrt(bc2), fma, quotient,
    // lr/bc1, lr wd, lr wd p and the last fma.
    let m_bound = EPS * (2.0 * ((1.0 - b1) * g).abs() + m_new.abs());
    let v_bound = 4.0 * EPS * v_new;
    let update_bound =
        lr * (m_bound / bc1 / denominator + EPS * (9.0 * q.abs() + 4.0 * decay.abs()));
    Exact {
        update: -lr * (q + decay),
        update_bound,
        m: m_new,
        m_bound,
        v: v_new,
        v_bound,
    }
}

#[test]
fn a_step_follows_the_equations_from_dequantized_states() {
    for preset in ADAMW {
        let spec = Spec::preset(preset).unwrap();
        let mut model = Model::new(
            Variant::Reference,
            1,
            &spec,
            tensors(Dtype::F32, Dtype::F32),
        )
        .with_updates();
        model.hyper.lr = 1e-3;
        model.fill_params();
        let mut compared = 0;
        for t in 1..=10 {
            model.fill_grads(t);
            let (old_m, old_v) = (model.decompress(0), model.decompress(1));
            model.run().unwrap();
            let updates = model.updates.as_ref().unwrap();
            for (i, update) in updates.iter().enumerate() {
                let (p, g) = (f64s(&model.params[i]), f64s(&model.grads[i]));
                let found = f64s(update);
                for j in 0..p.len() {
                    let (m, v) = (f64::from(old_m[i][j]), f64::from(old_v[i][j]));
                    let want = exact(p[j], g[j], m, v, &model.hyper, model.step);
                    let off = (found[j] - want.update).abs();
                    assert!(
                        off <= want.update_bound + 1e-45,
                        "{preset} step {t} tensor {i} element {j}: {} {} (bound {})",
                        found[j],
                        want.update,
                        want.update_bound
                    );
                    compared += 1;
                }
            }
            check_codes(&model, t, &old_m, &old_v);
        }
        println!("{preset}: {compared} updates within their bounds");
    }
}

/// The new codes are the nearest levels to the f64 states, up to the states' own f32 error.
fn check_codes(model: &Model, t: u64, old_m: &[Vec<f32>], old_v: &[Vec<f32>]) {
    for (i, tensor) in model.plan.tensors().iter().enumerate() {
        if tensor.info.name != "t3" && tensor.info.name != "t6" {
            continue;
        }
        let g = f64s(&model.grads[i]);
        let news: Vec<Exact> = (0..g.len())
            .map(|j| {
                let (m, v) = (f64::from(old_m[i][j]), f64::from(old_v[i][j]));
                exact(0.0, g[j], m, v, &model.hyper, model.step)
            })
            .collect();
        let states: [(usize, &Table, Vec<_>); 2] = [
            (
                0,
                &DE_SIGNED,
                news.iter().map(|e| (e.m, e.m_bound)).collect(),
            ),
            (1, &LINEAR, news.iter().map(|e| (e.v, e.v_bound)).collect()),
        ];
        for (state, table, values) in states {
            let scales = exact_scales(tensor, state, &values);
            let restored = &model.decompress(state)[i];
            for (j, ((value, bound), scale)) in values.iter().zip(scales).enumerate() {
                let off = (f64::from(restored[j]) - value).abs();
                if tensor.states[state].quantizer.is_f32() {
                    assert!(off <= *bound + 1e-45, "step {t} state {state} element {j}");
                    continue;
                }
                let nearest = table
                    .levels
                    .iter()
                    .map(|l| (f64::from(*l) * scale - value).abs());
                let nearest = nearest.fold(f64::INFINITY, f64::min);
                assert!(
                    off <= nearest + 2.0 * bound + 8.0 * EPS * scale + 1e-44,
                    "step {t} state {state} element {j}: {value} became {}, scale {scale}",
                    restored[j]
                );
            }
        }
    }
}

/// Scales by their definition: block maxima, or the least of row and column maxima.
fn exact_scales(
    tensor: &lowbit::plan::TensorPlan,
    state: usize,
    values: &[(f64, f64)],
) -> Vec<f64> {
    let shape: Vec<usize> = tensor.info.shape.iter().map(|e| *e as usize).collect();
    match &tensor.states[state].quantizer {
        quantizer if quantizer.is_f32() => vec![0.0; values.len()],
        quantizer if *quantizer == Quantizer::rank1(Mapping::Linear) => {
            let position = |j: usize, axis: usize| {
                j / shape[axis + 1..].iter().product::<usize>() % shape[axis]
            };
            let mut maxima: Vec<Vec<f64>> = shape.iter().map(|e| vec![0.0; *e]).collect();
            for (j, (value, _)) in values.iter().enumerate() {
                for (axis, maxima) in maxima.iter_mut().enumerate() {
                    let slot = &mut maxima[position(j, axis)];
                    *slot = slot.max(value.abs());
                }
            }
            let least = |j| {
                (0..shape.len())
                    .map(|a| maxima[a][position(j, a)])
                    .fold(f64::MAX, f64::min)
            };
            (0..values.len()).map(least).collect()
        }
        _ => {
            let cols = tensor.grid.cols as usize;
            let rows = values.chunks(cols).flat_map(|row| row.chunks(128));
            rows.flat_map(|block| {
                let largest = block.iter().map(|(x, _)| x.abs()).fold(0.0, f64::max);
                vec![largest; block.len()]
            })
            .collect()
        }
    }
}

/// What torchao and lpmm publish: divide by the block's maximum in f32, take the nearest level.
fn peer_code(x: f32, scale: f32, table: &Table) -> Option<usize> {
    let n = x / scale;
    let tie = table
        .midpoints
        .iter()
        .any(|mid| (n - mid).abs() <= 4.0 * f32::EPSILON * n.abs());
    // Ties are decided differently by each of them: left out.
    (!tie).then(|| table.midpoints.iter().filter(|mid| n > **mid).count())
}

#[test]
fn block_codes_are_those_of_torchao_and_lpmm_away_from_ties() {
    let spec = Spec::preset("adamw4-block").unwrap();
    let n = 256 * 128;
    let mut model = Model::new(
        Variant::Reference,
        1,
        &spec,
        vec![TensorInfo::new("w", &[n], Dtype::F32)],
    );
    let m: Vec<f32> = (0..n as u64).map(|i| common::grad(5, i)).collect();
    let v: Vec<f32> = m.iter().map(|x| x * x).collect();
    let mut compared = 0;
    for (state, values, table) in [(0, &m, &DE_SIGNED), (1, &v, &LINEAR)] {
        model.compress(state, std::slice::from_ref(values)).unwrap();
        let name = ["m", "v"][state];
        let codes = model.buffer(0, name, "codes").to_vec();
        // lpmm packs the even element in the low nibble, as here; torchao in the high one.
        let lpmm: Vec<u8> = codes
            .iter()
            .flat_map(|byte| [byte & 15, byte >> 4])
            .collect();
        let torchao: Vec<u8> = codes.iter().map(|byte| byte.rotate_left(4)).collect();
        let torchao: Vec<u8> = torchao
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .collect();
        let scales = floats(model.buffer(0, name, "scales"));
        for (b, block) in values.chunks(128).enumerate() {
            let largest = block.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
            assert_eq!(scales[b].to_bits(), largest.to_bits());
            if largest == 0.0 {
                continue;
            }
            for (j, x) in block.iter().enumerate() {
                if let Some(code) = peer_code(*x, largest, table) {
                    assert_eq!(
                        usize::from(lpmm[128 * b + j]),
                        code,
                        "{name} {x} / {largest}"
                    );
                    assert_eq!(usize::from(torchao[128 * b + j]), code);
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 50_000, "{compared}");
    println!("{compared} codes equal to the published rules");
}

#[test]
fn ties_and_their_neighbours_round_as_defined() {
    // For every midpoint and scales from huge to subnormal: the scaled midpoint itself goes to the
    // lower level, the next f32 above it to the upper one.
    let spec = Spec {
        threshold: 0,
        ..Spec::preset("adamw4-block").unwrap()
    };
    for scale in [1.0_f32, 0.3, 1e30, 3e-38, 1e-40, 2.5e-44] {
        for (state, table) in [(0, &DE_SIGNED), (1, &LINEAR)] {
            let mut values = vec![scale];
            for mid in &table.midpoints {
                let tie = mid * scale;
                values.extend([tie, tie.next_up()]);
            }
            let tensor = TensorInfo::new("w", &[values.len() as i64], Dtype::F32);
            let mut model = Model::new(Variant::Reference, 1, &spec, vec![tensor]);
            model
                .compress(state, std::slice::from_ref(&values))
                .unwrap();
            let codes = model.buffer(0, ["m", "v"][state], "codes");
            let code = |j: usize| usize::from(codes[j / 2] >> (4 * (j % 2)) & 15);
            assert_eq!(code(0), 15);
            for i in 0..15 {
                let tie = values[1 + 2 * i];
                let below = table
                    .midpoints
                    .iter()
                    .filter(|mid| **mid * scale < tie)
                    .count();
                assert_eq!(code(1 + 2 * i), below, "scale {scale:e} midpoint {i}");
                let above = table
                    .midpoints
                    .iter()
                    .filter(|mid| **mid * scale <= tie)
                    .count();
                assert_eq!(code(2 + 2 * i), above, "scale {scale:e} above midpoint {i}");
            }
        }
    }
}

#[test]
fn codes_do_not_depend_on_a_power_of_two_in_the_gradients() {
    for preset in ["adamw4", "adamw4-block"] {
        let run = |exponent: i32| {
            let spec = Spec::preset(preset).unwrap();
            let tensors = vec![TensorInfo::new("w", &[80, 300], Dtype::F32)];
            let mut model = Model::new(Variant::Auto, 2, &spec, tensors);
            let scale = f64::from(exponent).exp2();
            for t in 1..=5 {
                // Squares of the smallest of these times 2^-80 are still normal.
                let values = (0..80 * 300).map(|i| {
                    let x = common::grad(t, i);
                    let x = if x.abs() < 1e-4 { 0.0 } else { x };
                    (f64::from(x) * scale) as f32
                });
                let bytes = common::bytes(values, Dtype::F32);
                model.grads[0].as_mut().copy_from_slice(&bytes);
                model.run().unwrap();
            }
            (
                model.buffer(0, "m", "codes").to_vec(),
                model.buffer(0, "v", "codes").to_vec(),
            )
        };
        let (m, v) = run(0);
        assert!(m.iter().any(|byte| *byte != m[0]) && v.iter().any(|byte| *byte != v[0]));
        assert!(run(-40) == (m.clone(), v), "{preset}: 2^-40");
        assert!(run(-100).0 == m, "{preset}: 2^-100");
    }
}

#[test]
fn zero_states_decode_to_zero_and_zero_gradients_are_harmless() {
    for preset in ADAMW {
        let spec = Spec {
            threshold: 0,
            ..Spec::preset(preset).unwrap()
        };
        let mut model = Model::new(Variant::Auto, 1, &spec, tensors(Dtype::F32, Dtype::F32));
        model.hyper.weight_decay = 0.0;
        model.fill_params();
        let before = model.params.clone();
        for _ in 0..3 {
            model.run().unwrap();
        }
        assert!(model.params == before, "{preset}");
        for state in 0..2 {
            assert!(
                model.decompress(state).iter().flatten().all(|x| *x == 0.0),
                "{preset}"
            );
        }
        for (buffer, memory) in model.plan.buffers().iter().zip(&model.state) {
            assert!(
                memory.as_ref().iter().all(|byte| *byte == 0),
                "{}",
                buffer.part
            );
        }
    }
}

#[test]
fn the_update_door_gives_the_parameters_of_the_in_place_door() {
    for preset in ADAMW {
        let spec = Spec::preset(preset).unwrap();
        let make = || Model::new(Variant::Auto, 2, &spec, tensors(Dtype::F32, Dtype::F32));
        let (mut place, mut door) = (make(), make().with_updates());
        place.fill_params();
        door.fill_params();
        for t in 1..=5 {
            for model in [&mut place, &mut door] {
                model.fill_grads(t);
                model.run().unwrap();
            }
            for (p, u) in door.params.iter_mut().zip(door.updates.as_ref().unwrap()) {
                let sums = floats(p.as_ref()).into_iter().zip(floats(u.as_ref()));
                let bytes = common::bytes(sums.map(|(p, u)| p + u), Dtype::F32);
                p.as_mut().copy_from_slice(&bytes);
            }
            assert!(
                place.params == door.params && place.state == door.state,
                "{preset} {t}"
            );
        }
    }
}
