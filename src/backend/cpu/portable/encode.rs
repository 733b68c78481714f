//! f32 values to states.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use super::RUN;
use super::decode::dither;
use super::run::{Draws, Run, Source, code_row, largest, scale_row, smallest, store_run};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{Lanes, thresholds};
use crate::backend::cpu::memory::load_code;
use crate::backend::cpu::reference::block_scale;
use crate::dtype::Dtype;
use crate::layout::index;
use crate::plan::{Codes, Format, Scales};
use crate::quant::{Rounding, Table, corrected_scale, decode, stochastic, uniform};
use crate::rng::Purpose;
use crate::step::Buffer;

/// Codes a run of a state that begins at a block's first element. States without codes or values
/// of their own are stored by [`super::store_statistics`].
#[inline(always)]
pub(super) unsafe fn encode_run<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    run: Run,
    values: &[f32],
    source: Source,
) {
    let buffers = call.state_buffers(state);
    // SAFETY: the run lies in the tensor, so its codes and scales lie in the buffers.
    unsafe {
        match &call.tensor.states[state].format {
            Format::F32 => store_run(buffers[0].data.cast(), Dtype::F32, run.first, values),
            Format::Codes(codes) => match &codes.scales {
                Scales::Block(block) => encode_blocks::<L>(call, state, codes, *block, run, values),
                Scales::Maxima(maxima) => {
                    for (r, values) in values.chunks(RUN).enumerate() {
                        let part = run.part(r * RUN, RUN);
                        let mut scales = [0.0_f32; RUN];
                        let scales = &mut scales[..part.len];
                        smallest(call, maxima, &buffers[1..], part, source, scales);
                        let mut out = [0_u8; RUN];
                        let out = &mut out[..part.len];
                        if codes.rounding == Rounding::Nearest {
                            nearest_scaled::<L>(values, scales, &codes.table, out);
                        } else {
                            stochastic_run(call, state, codes, part, values, |i| scales[i], out);
                        }
                        store_codes::<L>(call, codes, buffers[0], part, out);
                    }
                }
            },
            Format::Factored(_) | Format::Cover(_) => {}
        }
    }
}

/// Codes a run of a state with block scales.
#[inline(always)]
pub(super) unsafe fn encode_blocks<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    codes: &Codes,
    block: i64,
    run: Run,
    values: &[f32],
) {
    let block = index(block);
    let table = &codes.table;
    let buffers = call.state_buffers(state);
    for (b, values) in values.chunks(block).enumerate() {
        let run = run.part(b * block, block);
        let mut scale = block_scale(largest(values));
        let offset = codes
            .dither
            .map(|spacing| dither(call, state, run, block, spacing, scale));
        // Piece by piece, so that the codes stay in the nearest cache.
        for (r, values) in values.chunks(RUN).enumerate() {
            let part = run.part(r * RUN, RUN);
            let mut out = [0_u8; RUN];
            let out = &mut out[..values.len()];
            if codes.rounding != Rounding::Nearest {
                stochastic_run(call, state, codes, part, values, |_| scale, out);
            } else if let Some(offset) = offset {
                let mut moved = [0.0_f32; RUN];
                let moved = &mut moved[..values.len()];
                moved
                    .iter_mut()
                    .zip(values)
                    .for_each(|(m, x)| *m = x + offset);
                nearest_run::<L>(moved, scale, table, out);
            } else {
                nearest_run::<L>(values, scale, table, out);
            }
            // SAFETY: the run lies in the tensor, so its codes lie in the buffer.
            unsafe { store_codes::<L>(call, codes, buffers[0], part, out) };
        }
        // SAFETY: as above, and for the scales.
        unsafe {
            if codes.scale_correction {
                let row = code_row(call.tensor, codes, buffers[0], run.row);
                let per_byte = index(codes.per_byte);
                scale = corrected_scale(scale, values, |i| {
                    decode(load_code(row, per_byte, run.col + i), scale, table)
                });
            }
            let scales = scale_row(call.tensor, buffers[1], block, run.row).cast_mut();
            *scales.add(run.col / block) = scale;
        }
    }
}

/// The nearest codes under one scale.
#[inline(always)]
pub(super) fn nearest_run<L: Lanes>(values: &[f32], scale: f32, table: &Table, out: &mut [u8]) {
    // SAFETY: the kernels are used on processors that have the instructions.
    unsafe {
        if table.midpoints.len() <= 15 {
            L::count(values, &thresholds(table, scale), out);
            return;
        }
        // Thresholds do not decrease, as rounding is monotonic.
        let mut many = [f32::INFINITY; 256];
        for (threshold, mid) in many.iter_mut().zip(&table.midpoints) {
            *threshold = mid * scale;
        }
        L::count_many(values, &many, out);
    }
}

/// The nearest codes, each under a scale of its own.
#[inline(always)]
pub(super) fn nearest_scaled<L: Lanes>(
    values: &[f32],
    scales: &[f32],
    table: &Table,
    out: &mut [u8],
) {
    if table.midpoints.len() <= 15 {
        // SAFETY: as above. Times 1, the midpoints are themselves.
        unsafe { L::count_scaled(values, scales, &thresholds(table, 1.0), out) };
        return;
    }
    for ((x, scale), out) in values.iter().zip(scales).zip(out) {
        let mut code = 0;
        for step in [128, 64, 32, 16, 8, 4, 2, 1] {
            let mid = table.midpoints.get(code + step - 1);
            let above = mid.is_some_and(|mid| *x > mid * scale);
            code += if above { step } else { 0 };
        }
        *out = code as u8;
    }
}

/// Randomly rounded codes.
#[inline(always)]
pub(super) fn stochastic_run(
    call: &TensorCall<'_>,
    state: usize,
    codes: &Codes,
    run: Run,
    values: &[f32],
    scale: impl Fn(usize) -> f32,
    out: &mut [u8],
) {
    let mut draws = Draws::new(call, Purpose::State(state), run);
    for (i, (x, out)) in values.iter().zip(out).enumerate() {
        let u = uniform(draws.next());
        let (table, rounding) = (&codes.table, codes.rounding);
        *out = stochastic(*x, scale(i), table, rounding, call.preconditioner, u);
    }
}

/// Packs codes. A run begins with a byte's first code and ends with its last, or with the row's,
/// whose pad bits become 0.
#[inline(always)]
pub(super) unsafe fn store_codes<L: Lanes>(
    call: &TensorCall<'_>,
    codes: &Codes,
    buffer: Buffer,
    run: Run,
    values: &[u8],
) {
    // SAFETY: the columns lie in the row.
    unsafe {
        let row = code_row(call.tensor, codes, buffer, run.row).cast_mut();
        macro_rules! pack {
            ($per_byte:literal) => {
                for (i, group) in values.chunks($per_byte).enumerate() {
                    let mut byte = 0;
                    for (k, code) in group.iter().enumerate() {
                        byte |= code << (k * 8 / $per_byte);
                    }
                    *row.add(run.col / $per_byte + i) = byte;
                }
            };
        }
        match codes.per_byte {
            4 => pack!(4),
            2 => L::pack(values, row.add(run.col / 2)),
            _ => pack!(1),
        }
    }
}
