//! The hashes of `tests/common/conformance.txt`, from Rust; C, C++, JAX and Julia compare with the
//! same file.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

mod common;

use common::{Model, tensors, variants};
use lowbit::{Hyper, Variant};
use sha2::{Digest, Sha256};

fn lines(variant: Variant, threads: usize) -> String {
    let mut text = String::new();
    for case in common::cases() {
        let mut tensors = tensors(case.param, case.grad);
        tensors
            .iter_mut()
            .for_each(|tensor| tensor.weights = case.weights);
        let mut model = Model::new(variant, threads, &case.spec, tensors);
        model.hyper = Hyper {
            lr: 1.0 / 1024.0,
            ..Hyper::default()
        };
        model.fill_params();
        for t in 1..=case.steps {
            model.fill_grads(t);
            model.run().unwrap();
        }
        let mut hasher = Sha256::new();
        for memory in model.params.iter().chain(&model.state) {
            hasher.update(memory.as_ref());
        }
        let hash = hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>();
        text += &format!("{} {hash}\n", case.name);
    }
    text
}

fn expected() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/conformance.txt");
    if std::env::var_os("LOWBIT_BLESS").is_some() {
        std::fs::write(path, lines(Variant::Reference, 1)).unwrap();
    }
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn reference_gives_the_expected_hashes() {
    let text = lines(Variant::Reference, 1);
    print!("{text}");
    assert_eq!(text, expected());
}

#[test]
fn every_variant_gives_them_with_any_number_of_threads() {
    // The reference has one thread and its own test.
    for variant in variants()
        .into_iter()
        .filter(|variant| *variant != Variant::Reference)
    {
        for threads in [1, 2, 3, 8] {
            assert_eq!(
                lines(variant, threads),
                expected(),
                "{variant:?}, {threads} threads"
            );
        }
    }
}
