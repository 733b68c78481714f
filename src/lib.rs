//! Optimizer state in 4 bits, stepped by fused kernels, for trainers written in any language.
//!
//! # Architecture
//!
//! ```text
//!  bindings/{cpp,jax,julia}   examples/   tests/
//!         |         only include/lowbit.h (and the XLA handlers) is theirs to call
//!  ------ C ABI ------------------------------------------------------------------------------
//!  capi/     the C functions: guard, validate, convert, call, convert back
//!  xla/      XLA FFI handlers (JAX custom calls) on XLA's C structs, declaring API 0.1
//!         |
//!  spec -> plan -> step, norm, codec, diagnose,   what is kept, where it lies, what moves it
//!                  state, offload, checkpoint
//!  optimizer  quant  weights  rng  counts         what is computed, element by element
//!  layout  numerics  dtype  reserve  error        the pieces they are made of; no FFI, no GPU
//!         |
//!  backend/cpu/{reference, portable, lanes, pool} backend/cuda/{driver, kernels, params}
//!                                                        |
//!  cuda/     *.cu, *.cuh: kernels know raw pointers and parameters, nothing of handles or files
//! ```
//!
//! A caller only ever calls downwards. [`spec::Spec`] says which optimizer and how each state is
//! quantized; [`plan::Plan`] lays the states of a list of tensors out and says what each got and
//! why; a step runs a plan on pointers. Parameters, gradients, states and scratch are the
//! caller's memory; [`state::State`] owns buffers for those who have none.
//!
//! `backend/cpu/reference.rs` defines every operation, element by element. All other code gives
//! the same bits: other instruction sets, any number of threads, any sharding, the GPU.
//!
//! Rust programs use the modules below; everybody else uses the C ABI, whose header is
//! `include/lowbit.h`.

#![warn(missing_docs)]

pub mod checkpoint;
pub mod codec;
pub mod diagnose;
pub mod dtype;
pub mod error;
pub mod layout;
pub mod norm;
pub mod offload;
pub mod plan;
pub mod quant;
pub mod spec;
pub mod state;
pub mod step;
pub mod weights;

mod backend;
mod capi;
mod counts;
mod numerics;
mod optimizer;
mod reserve;
mod rng;
mod xla;

pub use backend::{Context, CpuContext, CudaContext, ParallelFor, Variant};
pub use numerics::{Hyper, Scalars, power};
