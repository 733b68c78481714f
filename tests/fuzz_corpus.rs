//! Replays the fuzzers' corpus, and a few thousand alterations of it, without a fuzzer. The long runs
//! are those of `fuzz/README.md`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a test"
)]
#![allow(unsafe_code, reason = "the C ABI is among what is fuzzed")]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::{Path, PathBuf};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The corpus of a target: its own, and for checkpoints the golden and the bad files.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let read = |folder: PathBuf| {
        let mut paths: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        paths.into_iter().map(|path| std::fs::read(path).unwrap())
    };
    let mut all: Vec<_> = read(root("fuzz/corpus").join(target)).collect();
    assert!(!all.is_empty(), "no corpus of {target}");
    if target == "deserialize" {
        for bytes in read(root("tests/golden/v1")).chain(read(root("tests/golden/bad"))) {
            for mode in [0, 1] {
                all.push([&[mode], &bytes[..]].concat());
            }
        }
    }
    all
}

fn alter(bytes: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, b"0123456789\"[]{}:,-"[random.below(18)]),
            4 if !bytes.is_empty() => {
                let end = (at + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let other = &others[random.below(others.len())];
                let start = random.below(other.len());
                let end = (start + random.below(64)).min(other.len());
                bytes.splice(at..at, other[start..end].iter().copied());
            }
        }
    }
}

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = corpus(target);
    for bytes in &corpus {
        run(bytes);
    }
    let runs = match std::env::var("LOWBIT_FUZZ_RUNS") {
        Ok(runs) => runs.parse().unwrap(),
        Err(_) => 5000,
    };
    let mut random = Random(1);
    for _ in 0..runs {
        let mut bytes = corpus[random.below(corpus.len())].clone();
        alter(&mut bytes, &corpus, &mut random);
        run(&bytes);
    }
    println!(
        "{target}: {} of the corpus and {runs} altered, 0 crashes",
        corpus.len()
    );
}

#[test]
fn deserialize() {
    replay("deserialize", targets::deserialize);
}

#[test]
fn spec_json() {
    replay("spec_json", targets::spec_json);
}

#[test]
fn sized_structs() {
    replay("sized_structs", targets::sized_structs);
}
