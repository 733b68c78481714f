//! States to f32 values.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::marker::PhantomData;

use super::collect::fresh_values;
use super::run::{Run, Stretch, Stretches, code_row, global, load_run, scale_row};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Compiled, Decoder, Lanes, Vector, registers};
use crate::backend::cpu::reference::factored;
use crate::dtype::Dtype;
use crate::layout::index;
use crate::numerics::canonical;
use crate::plan::{Codes, Factor, Format, Maxima, Scales};
use crate::quant::uniform;
use crate::step::Buffer;

/// Which factors of a factored state are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Factors {
    /// Those of the state.
    Stored,
    /// Those of this step, in the scratch.
    Fresh,
}

/// Where the maxima of a state are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// In the statistics of this step.
    Statistics,
    /// In the state's buffers.
    Stored,
}

/// Decodes a run of at most a chunk of a state, zeros behind it. It begins where a byte of codes
/// does.
#[inline(always)]
pub(super) unsafe fn decode_run<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    run: Run,
    factors: Factors,
    out: &mut Chunk,
) {
    // By itself, as in `encode.rs`.
    // SAFETY: the caller's promise.
    unsafe {
        L::run(Decoded::<L> {
            call,
            state,
            run,
            factors,
            out,
            lanes: PhantomData,
        });
    }
}

/// A run to be decoded.
struct Decoded<'a, L> {
    call: &'a TensorCall<'a>,
    state: usize,
    run: Run,
    factors: Factors,
    out: &'a mut Chunk,
    lanes: PhantomData<L>,
}

impl<L: Lanes> Compiled for Decoded<'_, L> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Self {
            call,
            state,
            run,
            factors,
            out,
            ..
        } = self;
        let buffers = call.state_buffers(state);
        // SAFETY: the run lies in the tensor, so its codes and scales lie in the buffers.
        unsafe {
            match &call.tensor.states[state].format {
                Format::F32 => load_run::<L>(buffers[0].data.cast(), Dtype::F32, run, out),
                Format::Codes(codes) => {
                    match &codes.scales {
                        Scales::Block(block) => {
                            decode_blocks::<L>(call, state, codes, index(*block), run, out);
                        }
                        Scales::Maxima(maxima) => {
                            let mut scales = Chunk::ZERO;
                            smallest(
                                call,
                                maxima,
                                &buffers[1..],
                                run,
                                Source::Stored,
                                &mut scales,
                            );
                            levels::<L>(call, codes, buffers[0], run, out);
                            for (x, scale) in out.iter_mut().zip(&*scales) {
                                *x *= scale;
                            }
                        }
                    }
                    out[run.len..].fill(0.0);
                }
                Format::Cover(maxima) => smallest(call, maxima, buffers, run, Source::Stored, out),
                Format::Factored(all) => decode_factors(call, all, buffers, factors, run, out),
            }
        }
    }
}

/// Decodes a run of a state with block scales; it begins where a block of the state does.
#[inline(always)]
unsafe fn decode_blocks<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    codes: &Codes,
    block: usize,
    run: Run,
    out: &mut Chunk,
) {
    let buffers = call.state_buffers(state);
    // SAFETY: the run lies in the tensor, so its codes and scales lie in the buffers.
    unsafe {
        let scales = scale_row(call.tensor, buffers[1], block, run.row).cast_const();
        if codes.per_byte == 2 && block >= CHUNK {
            let scale = *scales.add(run.col / block);
            let mut values = codes.table.first();
            for level in &mut values {
                *level *= scale;
            }
            let mut copy = [0; CHUNK / 2];
            L::lookup(
                code_bytes(call, codes, buffers[0], run, &mut copy),
                &values,
                &mut **out,
            );
        } else {
            levels::<L>(call, codes, buffers[0], run, out);
            for part in run.parts(block.min(CHUNK)) {
                let scale = *scales.add(part.col / block);
                let at = part.col - run.col;
                for x in &mut out[at..at + part.len] {
                    *x *= scale;
                }
            }
        }
        if let Some(spacing) = codes.dither {
            for part in run.parts(block.min(CHUNK)) {
                let scale = *scales.add(part.col / block);
                let offset = dither(call, state, part, block, spacing, scale);
                let at = part.col - run.col;
                for x in &mut out[at..at + part.len] {
                    *x -= offset;
                }
            }
        }
    }
}

/// The bytes with a run's codes: where they are, or, for part of a chunk, a copy with zeros behind.
#[inline(always)]
unsafe fn code_bytes<'a, const BYTES: usize>(
    call: &TensorCall<'_>,
    codes: &Codes,
    buffer: Buffer,
    run: Run,
    copy: &'a mut [u8; BYTES],
) -> &'a [u8; BYTES] {
    let per_byte = CHUNK / BYTES;
    // SAFETY: the run's codes lie in the buffer; no one writes them while they are borrowed.
    unsafe {
        let from = code_row(call.tensor, codes, buffer, run.row).add(run.col / per_byte);
        if run.len == CHUNK {
            return &*from.cast_const().cast();
        }
        std::ptr::copy_nonoverlapping(from, copy.as_mut_ptr(), run.len.div_ceil(per_byte));
    }
    copy
}

/// The levels of a run's codes, without their scales.
#[inline(always)]
pub(super) unsafe fn levels<L: Lanes>(
    call: &TensorCall<'_>,
    codes: &Codes,
    buffer: Buffer,
    run: Run,
    out: &mut Chunk,
) {
    let values = codes.table.first();
    // SAFETY: the run lies in the tensor, so its codes lie in the buffer.
    unsafe {
        match codes.per_byte {
            4 => {
                let mut copy = [0; CHUNK / 4];
                let bytes = code_bytes(call, codes, buffer, run, &mut copy);
                for (out, byte) in out.as_chunks_mut::<4>().0.iter_mut().zip(bytes) {
                    *out = [0, 2, 4, 6].map(|shift| values[usize::from(byte >> shift & 3)]);
                }
            }
            2 => {
                let mut copy = [0; CHUNK / 2];
                let bytes = code_bytes(call, codes, buffer, run, &mut copy);
                L::lookup(bytes, &values, &mut **out);
            }
            _ => {
                let mut copy = [0; CHUNK];
                let bytes = code_bytes(call, codes, buffer, run, &mut copy);
                if let Some(decoder) = Decoder::<L::Vector>::of(&codes.table) {
                    for j in 0..registers::<L::Vector>() {
                        let at = j * L::Vector::WIDTH;
                        let levels = decoder.decode(bytes.as_ptr().add(at));
                        levels.store(out.as_mut_ptr().add(at));
                    }
                } else {
                    L::select_of_256(bytes, &codes.table.by_code, &mut **out);
                }
            }
        }
    }
}

/// v under its factors.
#[inline(always)]
unsafe fn decode_factors(
    call: &TensorCall<'_>,
    all: &[Factor; 3],
    buffers: &[Buffer],
    factors: Factors,
    run: Run,
    out: &mut Chunk,
) {
    **out = [0.0; CHUNK];
    let shape = &call.tensor.info.shape;
    for Stretch { at, len, position } in Stretches::of(shape, run) {
        let [rows, columns, means] = [0, 1, 2].map(|f| {
            let projection = &all[f].maxima.projection;
            // SAFETY: the positions lie in the buffers, which no one writes now.
            unsafe {
                let values = match factors {
                    Factors::Fresh => fresh_values(call).add(all[f].fresh).cast_const(),
                    Factors::Stored => buffers[f].data.cast_const().cast::<f32>(),
                };
                let first = values.add(projection.position(&position[..shape.len()]));
                (first, projection.varies())
            }
        });
        let out = &mut out[at..at + len];
        // SAFETY: as above.
        unsafe {
            match (rows, columns, means) {
                ((rows, false), (columns, true), (means, false)) => {
                    let (row, mean) = (*rows, *means);
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = factored(row, *columns.add(i), mean);
                    }
                }
                _ => {
                    for (i, out) in out.iter_mut().enumerate() {
                        let [row, column, mean] = [rows, columns, means]
                            .map(|(values, varies)| *values.add(if varies { i } else { 0 }));
                        *out = factored(row, column, mean);
                    }
                }
            }
        }
    }
}

/// For every element of a run of at most a chunk the smallest of its slices' maxima, zeros behind.
#[inline(always)]
pub(super) unsafe fn smallest(
    call: &TensorCall<'_>,
    maxima: &[Maxima],
    buffers: &[Buffer],
    run: Run,
    source: Source,
    out: &mut Chunk,
) {
    // As unsigned integers, so that NaN is the largest.
    let mut least = [u32::MAX; CHUNK];
    let shape = &call.tensor.info.shape;
    for Stretch { at, len, position } in Stretches::of(shape, run) {
        let position = &position[..shape.len()];
        let least = &mut least[at..at + len];
        for (maxima, buffer) in maxima.iter().zip(buffers) {
            let projection = &maxima.projection;
            // SAFETY: the positions lie in the buffers. No statistic changes while it is read.
            unsafe {
                let values = match source {
                    Source::Stored => {
                        let values = buffer.data.cast_const().cast::<u32>();
                        values.add(projection.position(position))
                    }
                    Source::Statistics => {
                        let words = call.scratch[0].cast_const().cast::<u32>();
                        let at = projection.global_position(position, call.offset);
                        words.add(maxima.word + at)
                    }
                };
                if projection.varies() {
                    for (i, least) in least.iter_mut().enumerate() {
                        *least = (*values.add(i)).min(*least);
                    }
                } else {
                    let value = *values;
                    for least in least.iter_mut() {
                        *least = value.min(*least);
                    }
                }
            }
        }
    }
    for (out, bits) in out.iter_mut().zip(least) {
        *out = canonical(f32::from_bits(bits));
    }
    out[run.len..].fill(0.0);
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
