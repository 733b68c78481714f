//! States to f32 values.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use super::RUN;
use super::collect::fresh_values;
use super::run::{Run, Source, code_row, for_each_stretch, global, load_run, scale_row, smallest};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::Lanes;
use crate::backend::cpu::memory::load_code;
use crate::backend::cpu::reference::factored;
use crate::dtype::Dtype;
use crate::layout::index;
use crate::plan::{Codes, Format, Scales};
use crate::quant::{decode, uniform};

/// Which factors of a factored state are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Factors {
    /// Those of the state.
    Stored,
    /// Those of this step, in the scratch.
    Fresh,
}

/// Decodes a run of a state.
#[inline(always)]
pub(super) unsafe fn decode_run<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    run: Run,
    factors: Factors,
    out: &mut [f32],
) {
    let buffers = call.state_buffers(state);
    // SAFETY: the run lies in the tensor, so its codes and scales lie in the buffers.
    unsafe {
        match &call.tensor.states[state].format {
            Format::F32 => load_run(buffers[0].data.cast(), Dtype::F32, run.first, out),
            Format::Codes(codes) => match &codes.scales {
                Scales::Block(block) => decode_blocks::<L>(call, state, codes, *block, run, out),
                Scales::Maxima(maxima) => {
                    smallest(call, maxima, &buffers[1..], run, Source::Stored, out);
                    let row = code_row(call.tensor, codes, buffers[0], run.row);
                    if codes.per_byte == 2 {
                        let mut levels = [0.0_f32; 16];
                        levels.copy_from_slice(&codes.table.by_code[..16]);
                        let mut values = [0.0_f32; RUN];
                        for (r, out) in out.chunks_mut(RUN).enumerate() {
                            let values = &mut values[..out.len()];
                            L::lookup(row, run.col + r * RUN, &levels, values);
                            out.iter_mut()
                                .zip(values)
                                .for_each(|(out, level)| *out *= *level);
                        }
                    } else {
                        each_code(row, codes, run.col, out, |code, out| {
                            *out = decode(code, *out, &codes.table);
                        });
                    }
                }
            },
            Format::Cover(maxima) => smallest(call, maxima, buffers, run, Source::Stored, out),
            Format::Factored(all) => {
                for_each_stretch(call, run, |at, len, position| {
                    let sources = [0, 1, 2].map(|f| {
                        let projection = &all[f].maxima.projection;
                        let values = match factors {
                            Factors::Fresh => fresh_values(call).add(all[f].fresh).cast_const(),
                            Factors::Stored => buffers[f].data.cast_const().cast::<f32>(),
                        };
                        let step = usize::from(projection.varies());
                        (values.add(projection.position(position)), step)
                    });
                    let [(rows, r), (columns, c), (means, m)] = sources;
                    for (i, out) in out[at..at + len].iter_mut().enumerate() {
                        let (row, column) = (*rows.add(i * r), *columns.add(i * c));
                        *out = factored(row, column, *means.add(i * m));
                    }
                });
            }
        }
    }
}

/// Decodes a run of a state with block scales.
#[inline(always)]
pub(super) unsafe fn decode_blocks<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    codes: &Codes,
    block: i64,
    run: Run,
    out: &mut [f32],
) {
    let tensor = call.tensor;
    let buffers = call.state_buffers(state);
    let block = index(block);
    let mut at = 0;
    // SAFETY: the run lies in the tensor, so its codes and scales lie in the buffers.
    unsafe {
        let scales = scale_row(tensor, buffers[1], block, run.row);
        let row = code_row(tensor, codes, buffers[0], run.row);
        while at < run.len {
            // Runs of `collect` may begin inside a block; those of units never do.
            let part = run.part(at, block - (run.col + at) % block);
            let scale = *scales.add(part.col / block);
            let out = &mut out[at..at + part.len];
            if codes.per_byte == 2 {
                let mut values = [0.0_f32; 16];
                for (value, level) in values.iter_mut().zip(&codes.table.by_code) {
                    *value = level * scale;
                }
                L::lookup(row, part.col, &values, out);
            } else {
                each_code(row, codes, part.col, out, |code, out| {
                    *out = decode(code, scale, &codes.table);
                });
            }
            if let Some(spacing) = codes.dither {
                let offset = dither(call, state, part, block, spacing, scale);
                out.iter_mut().for_each(|x| *x -= offset);
            }
            at += part.len;
        }
    }
}

/// Calls `body` with the code of every column from `col` on.
#[inline(always)]
pub(super) unsafe fn each_code(
    row: *const u8,
    codes: &Codes,
    col: usize,
    out: &mut [f32],
    body: impl Fn(u8, &mut f32),
) {
    // The width is matched outside the loop, so that each loop has constant shifts.
    macro_rules! each {
        ($per_byte:literal) => {
            for (i, out) in out.iter_mut().enumerate() {
                // SAFETY: the columns lie in the row.
                body(unsafe { load_code(row, $per_byte, col + i) }, out);
            }
        };
    }
    match codes.per_byte {
        4 => each!(4),
        2 => each!(2),
        _ => each!(1),
    }
}

/// What subtractive dither adds to a block, of which `run` is a part.
pub(super) fn dither(
    call: &TensorCall<'_>,
    state: usize,
    run: Run,
    block: usize,
    spacing: f32,
    scale: f32,
) -> f32 {
    let (row, col) = global(call, run);
    let draw = call.rng.dither(state, row, col / block, scale);
    (uniform(draw) - 0.5) * spacing * scale
}
