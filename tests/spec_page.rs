//! Every spec on the page `include/SPEC.md` is one that the library reads.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

use lowbit::spec::{Normalization, Spec};

const PAGE: &str = include_str!("../include/SPEC.md");

#[test]
fn every_spec_of_the_page_is_read() {
    let blocks = PAGE.split("```json\n").skip(1);
    let blocks: Vec<_> = blocks
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    for block in &blocks {
        Spec::from_json(block).unwrap_or_else(|error| panic!("{block}: {error}"));
    }
    assert!(blocks.len() >= 4);
}

#[test]
fn every_row_of_the_papers_ablation_is_a_spec() {
    let rows: Vec<_> = PAGE
        .lines()
        .filter_map(|line| {
            line.strip_suffix("` |")?
                .split_once(" | `{\"optimizer\":\"adamw\"")
        })
        .map(|(row, rest)| (row, format!("{{\"optimizer\":\"adamw\"{rest}")))
        .collect();
    assert_eq!(rows.len(), 11);
    for (row, json) in rows {
        let spec = Spec::from_json(&json).unwrap_or_else(|error| panic!("{row}: {error}"));
        let v = spec.v.as_ref().unwrap();
        let described = v.describe();
        let factored = v.normalization == Some(Normalization::Factored);
        assert_eq!(row.contains("factorized"), factored, "{row}");
        assert_eq!(
            row.contains("stable embed"),
            !spec.overrides.is_empty(),
            "{row}"
        );
        assert_eq!(
            row.contains("SR"),
            described.contains("stochastic"),
            "{row}"
        );
        assert_eq!(row.contains("DE-0"), described.contains("de0"), "{row}");
        assert_eq!(row.contains("B2048"), v.block == 2048, "{row}");
        // The page's text is the text that the library prints, so that it can be searched for.
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&spec.to_json().unwrap()).unwrap()["v"],
            serde_json::from_str::<serde_json::Value>(&json).unwrap()["v"],
            "{row}"
        );
    }
}
