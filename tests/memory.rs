//! State bytes over the shapes of real models, by the plan alone: nothing is allocated.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

use std::sync::Arc;

use lowbit::dtype::Dtype;
use lowbit::plan::{Plan, TensorInfo};
use lowbit::spec::Spec;
use lowbit::{Context, CpuContext, Variant};

/// LLaMA-7B (Touvron et al. 2023): 32 layers, width 4096, hidden 11008, vocabulary 32000.
fn llama_7b() -> Vec<TensorInfo> {
    let mut shapes: Vec<(String, Vec<i64>)> = vec![
        ("tok_embeddings.weight".into(), vec![32000, 4096]),
        ("norm.weight".into(), vec![4096]),
        ("output.weight".into(), vec![32000, 4096]),
    ];
    for layer in 0..32 {
        for name in ["wq", "wk", "wv", "wo"] {
            shapes.push((
                format!("layers.{layer}.attention.{name}.weight"),
                vec![4096, 4096],
            ));
        }
        shapes.push((
            format!("layers.{layer}.feed_forward.w1.weight"),
            vec![11008, 4096],
        ));
        shapes.push((
            format!("layers.{layer}.feed_forward.w2.weight"),
            vec![4096, 11008],
        ));
        shapes.push((
            format!("layers.{layer}.feed_forward.w3.weight"),
            vec![11008, 4096],
        ));
        shapes.push((format!("layers.{layer}.attention_norm.weight"), vec![4096]));
        shapes.push((format!("layers.{layer}.ffn_norm.weight"), vec![4096]));
    }
    shapes
        .iter()
        .map(|(name, shape)| TensorInfo::new(name, shape, Dtype::Bf16))
        .collect()
}

fn plan(preset: &str, tensors: Vec<TensorInfo>) -> Plan {
    let context = Arc::new(Context::Cpu(CpuContext::new(1, Variant::Auto).unwrap()));
    Plan::new(context, &Spec::preset(preset).unwrap(), tensors).unwrap()
}

#[test]
fn llama_7b_needs_the_counted_bytes() {
    const PARAMS: i64 = 6_738_415_616;
    for (preset, at_most) in [("adamw32", 8.0), ("adamw4", 1.04), ("adamw4-block", 1.063)] {
        let plan = plan(preset, llama_7b());
        let elements: i64 = plan.tensors().iter().map(|tensor| tensor.numel).sum();
        assert_eq!(elements, PARAMS);
        let per_param = plan.state_bytes() as f64 / PARAMS as f64;
        println!(
            "{preset:13} {:>14} B  {per_param:.4} B/param  {:.2} GiB",
            plan.state_bytes(),
            plan.state_bytes() as f64 / f64::from(1 << 30)
        );
        assert!(per_param <= at_most, "{preset}: {per_param}");
    }
}

#[test]
fn buffers_are_exact_and_disjoint_in_the_arena() {
    for preset in ["adamw32", "adamw4", "adamw4-block"] {
        let plan = plan(preset, llama_7b());
        let mut end = 0;
        for buffer in plan.buffers() {
            let elements: i64 = buffer.shape.iter().product();
            assert_eq!(buffer.bytes, elements * buffer.dtype.size() as i64);
            assert!(buffer.arena_offset >= end && buffer.arena_offset % 256 == 0);
            end = buffer.arena_offset + buffer.bytes;
        }
        assert!(end <= plan.arena_bytes());
        assert!(plan.arena_bytes() - plan.state_bytes() < 256 * plan.buffers().len() as i64);
    }
}

#[test]
fn the_report_names_every_tensor_and_its_reason() {
    let json = r#"{"optimizer":"adamw",
        "m":{"bits":4,"normalization":"block","mapping":"de"},
        "v":{"bits":4,"normalization":"rank1","mapping":"linear"},
        "overrides":[{"match":"*embed*","m":{"bits":32},"v":{"bits":32}},
                     {"match":"tiny","v":{"bits":4,"normalization":"block","mapping":"linear"}}]}"#;
    let context = Arc::new(Context::Cpu(CpuContext::new(1, Variant::Auto).unwrap()));
    let tensors = [
        ("embed.weight", &[100, 200][..]),
        ("w", &[100, 200]),
        ("b", &[64]),
        ("tiny", &[64]),
    ];
    let infos = tensors
        .iter()
        .map(|(name, shape)| TensorInfo::new(*name, shape, Dtype::F32));
    let plan = Plan::new(context, &Spec::from_json(json).unwrap(), infos.collect()).unwrap();
    let report = plan.report();
    println!("{report}");
    for line in [
        "m f32, v f32 (override \"*embed*\")",
        "m 4-bit block(128)/de, v 4-bit rank1/linear (spec)",
        "m f32, v f32 (64 elements <= threshold 4096)",
        "m 4-bit block(128)/de, v 4-bit block(128)/linear (override \"tiny\")",
    ] {
        assert!(report.contains(line), "{line} is missing");
    }
}
