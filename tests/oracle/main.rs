//! The reference against things that are not itself: closed formulas and printed tables, published
//! equations evaluated in f64, the published rules of torchao and lpmm, and what random rounding
//! must do on average.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

#[path = "../common/mod.rs"]
mod common;

mod near;
mod optimizers;
mod paper;
mod rounding;
mod tables;
mod zero_point;

/// Half a unit in the last place of 1: the relative error of one rounding to f32.
const EPS: f64 = 1.0 / 16_777_216.0;

fn f64s(memory: &common::Memory) -> Vec<f64> {
    let floats = common::floats(memory.as_ref());
    floats.into_iter().map(f64::from).collect()
}
