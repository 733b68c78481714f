//! State bytes over the shapes of real models, by the plan alone, and the table of them in
//! `README.md`; the plan of a LoRA's adapters.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

mod common;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use common::Model;
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

/// GPT-2 with 124 M parameters (Radford et al. 2019), the embedding also the output.
fn gpt2() -> Vec<TensorInfo> {
    let mut shapes: Vec<(String, Vec<i64>)> = vec![
        ("wte.weight".into(), vec![50257, 768]),
        ("wpe.weight".into(), vec![1024, 768]),
        ("ln_f.weight".into(), vec![768]),
        ("ln_f.bias".into(), vec![768]),
    ];
    for layer in 0..12 {
        for (name, rows, columns) in [
            ("attn.c_attn", 768, 2304),
            ("attn.c_proj", 768, 768),
            ("mlp.c_fc", 768, 3072),
            ("mlp.c_proj", 3072, 768),
        ] {
            shapes.push((format!("h.{layer}.{name}.weight"), vec![rows, columns]));
            shapes.push((format!("h.{layer}.{name}.bias"), vec![columns]));
        }
        for name in ["ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"] {
            shapes.push((format!("h.{layer}.{name}"), vec![768]));
        }
    }
    shapes
        .iter()
        .map(|(name, shape)| TensorInfo::new(name, shape, Dtype::F32))
        .collect()
}

/// ResNet-50 (He et al. 2016) as torchvision has it.
fn resnet50() -> Vec<TensorInfo> {
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[i64]| {
        tensors.push(TensorInfo::new(name, shape, Dtype::F32));
    };
    let mut convolution = |name: &str, to: i64, from: i64, size: i64| {
        add(format!("{name}.weight"), &[to, from, size, size]);
        add(format!("{name}.bn.weight"), &[to]);
        add(format!("{name}.bn.bias"), &[to]);
    };
    convolution("conv1", 64, 3, 7);
    let mut from = 64;
    for (layer, (blocks, width)) in [(3, 64), (4, 128), (6, 256), (3, 512)]
        .into_iter()
        .enumerate()
    {
        for block in 0..blocks {
            let name = |part: &str| format!("layer{layer}.{block}.{part}");
            convolution(&name("conv1"), width, from, 1);
            convolution(&name("conv2"), width, width, 3);
            convolution(&name("conv3"), 4 * width, width, 1);
            if block == 0 {
                convolution(&name("downsample"), 4 * width, from, 1);
            }
            from = 4 * width;
        }
    }
    add("fc.weight".into(), &[1000, 2048]);
    add("fc.bias".into(), &[1000]);
    tensors
}

fn plan(preset: &str, tensors: Vec<TensorInfo>) -> Plan {
    let context = Arc::new(Context::Cpu(CpuContext::new(1, Variant::Auto).unwrap()));
    Plan::new(context, &Spec::preset(preset).unwrap(), tensors).unwrap()
}

#[test]
fn llama_7b_needs_the_counted_bytes() {
    const PARAMS: i64 = 6_738_415_616;
    for (preset, at_most) in [
        ("adamw32", 8.0),
        ("adamw4", 1.04),
        ("adamw4-robust", 1.04),
        ("adamw4-block", 1.063),
    ] {
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

const BEGIN: &str = "<!-- LOWBIT_BLESS=1 cargo test --test memory -->\n";
const END: &str = "<!-- end -->";

#[test]
fn the_readme_has_the_bytes_of_every_preset() {
    type Tensors = fn() -> Vec<TensorInfo>;
    let models: [(&str, Tensors, i64); 3] = [
        ("LLaMA-7B", llama_7b, 6_738_415_616),
        ("GPT-2 124M", gpt2, 124_439_808),
        ("ResNet-50", resnet50, 25_557_032),
    ];
    let mut table = String::from("\n| preset |");
    for (name, tensors, count) in models {
        let numel = |tensor: &TensorInfo| tensor.shape.iter().product::<i64>();
        assert_eq!(tensors().iter().map(numel).sum::<i64>(), count, "{name}");
        let _ = write!(table, " {name} |");
    }
    table += "\n|---|---:|---:|---:|\n";
    for preset in Spec::PRESETS {
        let _ = write!(table, "| `{preset}` |");
        for (_, tensors, count) in models {
            let bytes = plan(preset, tensors()).state_bytes();
            if preset == "adamw32" {
                assert_eq!(bytes, 8 * count);
            }
            let mib = bytes as f64 / f64::from(1 << 20);
            let size = if mib < 1024.0 {
                format!("{mib:.1} MiB")
            } else {
                format!("{:.2} GiB", mib / 1024.0)
            };
            let _ = write!(table, " {:.4} ({size}) |", bytes as f64 / count as f64);
        }
        table += "\n";
    }
    table += "\n";
    println!("{table}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    if std::env::var_os("LOWBIT_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    } else {
        assert_eq!(
            found, table,
            "README.md is stale; run: LOWBIT_BLESS=1 cargo test --test memory"
        );
    }
}

/// The adapters of one layer; the frozen weight beside them is in no plan.
fn adapters() -> Vec<TensorInfo> {
    vec![
        TensorInfo::new("q.lora_a", &[16, 4096], Dtype::F32),
        TensorInfo::new("q.lora_b", &[4096, 16], Dtype::F32),
    ]
}

#[test]
fn the_adapters_of_a_lora_are_a_plan_of_their_own() {
    const PARAMS: i64 = 2 * 16 * 4096;
    // Codes of two moments, m's scales, and v's scales or row and column maxima.
    let codes = PARAMS / 2;
    for (preset, bytes) in [
        ("adamw32", 8 * PARAMS),
        ("adamw4", 2 * codes + PARAMS / 128 * 4 + 2 * 4 * (16 + 4096)),
        ("adamw4-block", 2 * codes + 2 * PARAMS / 128 * 4),
        ("adamw8", 2 * PARAMS + 2 * PARAMS / 256 * 4),
        ("lion4", codes + PARAMS / 128 * 4),
        // Row and column means, and their mean.
        (
            "factor4",
            codes + PARAMS / 128 * 4 + 2 * 4 * (16 + 4096 + 1),
        ),
    ] {
        let plan = plan(preset, adapters());
        println!(
            "{preset:13} {:>8} B  {:.4} B/param",
            plan.state_bytes(),
            plan.state_bytes() as f64 / PARAMS as f64
        );
        assert_eq!(plan.state_bytes(), bytes, "{preset}");
        let grids: Vec<_> = plan
            .tensors()
            .iter()
            .map(|tensor| {
                (
                    tensor.grid.lead.clone(),
                    tensor.grid.cols,
                    tensor.grid.units(),
                )
            })
            .collect();
        let block = plan.tensors()[0].grid.block;
        // Rows of 4096 stay; rows of 16 are merged into one, so that no block is short.
        assert_eq!(grids[0], (vec![16], 4096, 65536 / block), "{preset}");
        assert_eq!(grids[1], (vec![], 65536, 65536 / block), "{preset}");
    }
}

#[test]
fn adapters_step_alike_everywhere() {
    for preset in Spec::PRESETS {
        let spec = Spec::preset(preset).unwrap();
        let run = |variant, threads| {
            let mut model = Model::new(variant, threads, &spec, adapters());
            model.fill_params();
            // A fresh adapter's second factor is zero.
            model.params[1].as_mut().fill(0);
            for t in 1..=3 {
                model.fill_grads(t);
                model.run().unwrap();
            }
            (model.params, model.state)
        };
        let (params, state) = run(Variant::Reference, 1);
        assert!(params[1].as_ref().iter().any(|byte| *byte != 0), "{preset}");
        assert!(run(Variant::Auto, 3) == (params, state), "{preset}");
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
