//! f32 values to states.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use std::marker::PhantomData;

use super::MOST_CHUNKS;
use super::collect::flat;
use super::decode::{Source, dither, levels, smallest};
use super::run::{Run, code_row, draws, largest, scale_row, store_run};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Compiled, Encoder, Lanes, load};
use crate::backend::cpu::reference::block_scale;
use crate::dtype::Dtype;
use crate::layout::index;
use crate::numerics::{INF_BITS, log2};
use crate::plan::{Codes, Format, Scales};
use crate::quant::{self, Lines, Rounding, Table, corrected_scale, uniform};
use crate::rng::Purpose;
use crate::step::Buffer;

/// Codes a unit of a state. States without codes or values of their own are stored by
/// [`super::store_statistics`].
#[inline(always)]
pub(super) unsafe fn encode_unit<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    unit: Run,
    values: &[Chunk],
    source: Source,
) {
    // By itself: it is much, and most kernels come here seldom.
    // SAFETY: the caller's promise.
    unsafe {
        L::run(Encoded::<L> {
            call,
            state,
            unit,
            values,
            source,
            lanes: PhantomData,
        });
    }
}

/// A unit to be coded.
struct Encoded<'a, L> {
    call: &'a TensorCall<'a>,
    state: usize,
    unit: Run,
    values: &'a [Chunk],
    source: Source,
    lanes: PhantomData<L>,
}

impl<L: Lanes> Compiled for Encoded<'_, L> {
    type Output = ();

    #[inline(always)]
    unsafe fn run(self) {
        let Self {
            call,
            state,
            unit,
            values,
            source,
            ..
        } = self;
        let buffers = call.state_buffers(state);
        // SAFETY: the unit lies in the tensor, so its codes and scales lie in the buffers.
        unsafe {
            match &call.tensor.states[state].format {
                Format::F32 => {
                    for (run, values) in unit.parts(CHUNK).zip(values) {
                        store_run::<L>(buffers[0].data.cast(), Dtype::F32, run, values);
                    }
                }
                Format::Codes(codes) => match &codes.scales {
                    Scales::Block(block) => {
                        encode_blocks::<L>(call, state, codes, index(*block), unit, values);
                    }
                    Scales::Maxima(maxima) => {
                        for (run, values) in unit.parts(CHUNK).zip(values) {
                            let mut scales = Chunk::ZERO;
                            smallest(call, maxima, &buffers[1..], run, source, &mut scales);
                            let mut out = [0; CHUNK];
                            if codes.rounding == Rounding::Nearest {
                                nearest_scaled::<L>(&**values, &scales, &codes.table, &mut out);
                            } else {
                                round_randomly::<L>(
                                    call, state, codes, run, values, &scales, &mut out,
                                );
                            }
                            store_codes::<L>(call, codes, buffers[0], run, &mut out);
                        }
                    }
                },
                Format::Factored(_) | Format::Cover(_) => {}
            }
        }
    }
}

/// Codes a unit of a state with block scales.
#[inline(always)]
unsafe fn encode_blocks<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    codes: &Codes,
    block: usize,
    unit: Run,
    values: &[Chunk],
) {
    // SAFETY: the unit lies in the tensor, so its codes and scales lie in the buffers.
    unsafe {
        if block < CHUNK {
            for (run, values) in unit.parts(CHUNK).zip(values) {
                encode_short_blocks::<L>(call, state, codes, block, run, values);
            }
            return;
        }
        let buffers = call.state_buffers(state);
        let scales = scale_row(call.tensor, buffers[1], block, unit.row);
        for (run, chunks) in unit.parts(block).zip(values.chunks(block / CHUNK)) {
            let scale = block_scale(largest(&flat(chunks)[..run.len]));
            let nearest = Nearest::of(codes, scale);
            for (run, values) in run.parts(CHUNK).zip(chunks) {
                let mut out = [0; CHUNK];
                if codes.rounding != Rounding::Nearest {
                    let scales = Chunk([scale; CHUNK]);
                    round_randomly::<L>(call, state, codes, run, values, &scales, &mut out);
                } else if let Some(spacing) = codes.dither {
                    let mut shifted = *values;
                    let offset = dither(call, state, run, block, spacing, scale);
                    shift(&mut *shifted, offset);
                    nearest.find::<L>(&shifted, &mut out);
                } else {
                    nearest.find::<L>(values, &mut out);
                }
                store_codes::<L>(call, codes, buffers[0], run, &mut out);
            }
            let coded = Coded {
                call,
                codes,
                buffer: buffers[0],
                run,
                values: &flat(chunks)[..run.len],
                scale,
            };
            *scales.add(run.col / block) = coded.final_scale::<L>();
        }
    }
}

/// [`encode_blocks`] for a run of at most a chunk of blocks that are shorter.
#[inline(always)]
unsafe fn encode_short_blocks<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    codes: &Codes,
    block: usize,
    run: Run,
    values: &Chunk,
) {
    let mut scales = Chunk::ZERO;
    let mut shifted = *values;
    for (part, scales) in run.parts(block).zip(scales.chunks_exact_mut(block)) {
        let values = &mut shifted[part.col - run.col..][..block];
        let scale = block_scale(largest(values));
        scales.fill(scale);
        if let Some(spacing) = codes.dither {
            shift(values, dither(call, state, part, block, spacing, scale));
        }
    }
    let mut out = [0; CHUNK];
    if codes.rounding == Rounding::Nearest {
        nearest_scaled::<L>(&*shifted, &scales, &codes.table, &mut out);
    } else {
        round_randomly::<L>(call, state, codes, run, values, &scales, &mut out);
    }
    let buffers = call.state_buffers(state);
    // SAFETY: the caller's run lies in the tensor, so its codes and scales lie in the buffers.
    unsafe {
        store_codes::<L>(call, codes, buffers[0], run, &mut out);
        let to = scale_row(call.tensor, buffers[1], block, run.row);
        for part in run.parts(block) {
            let at = part.col - run.col;
            let coded = Coded {
                call,
                codes,
                buffer: buffers[0],
                run: part,
                values: &values[at..][..part.len],
                scale: scales[at],
            };
            *to.add(part.col / block) = coded.final_scale::<L>();
        }
    }
}

#[inline(always)]
fn shift(values: &mut [f32], offset: f32) {
    for x in values {
        *x += offset;
    }
}

/// A block whose codes are stored.
#[derive(Clone, Copy)]
struct Coded<'a> {
    call: &'a TensorCall<'a>,
    codes: &'a Codes,
    buffer: Buffer,
    run: Run,
    values: &'a [f32],
    scale: f32,
}

/// The scale that corrects that of a block of at most `N` elements.
struct Corrected<'a, L, const N: usize>(Coded<'a>, PhantomData<L>);

impl<L: Lanes, const N: usize> Compiled for Corrected<'_, L, N> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run(self) -> f32 {
        let Self(block, _) = self;
        let mut decoded = [0.0; N];
        for (run, decoded) in block.run.parts(CHUNK).zip(decoded.chunks_mut(CHUNK)) {
            let mut chunk = Chunk::ZERO;
            // SAFETY: the caller's block lies in the tensor.
            unsafe { levels::<L>(block.call, block.codes, block.buffer, run, &mut chunk) };
            decoded.copy_from_slice(&*chunk);
        }
        corrected_scale::<N>(block.scale, block.values, |i| decoded[i] * block.scale)
    }
}

impl Coded<'_> {
    /// The scale to be stored.
    #[inline(always)]
    unsafe fn final_scale<L: Lanes>(self) -> f32 {
        if !self.codes.scale_correction {
            return self.scale;
        }
        // By itself: it has much memory on the stack.
        // SAFETY: the caller's block lies in the tensor.
        unsafe {
            if self.run.len <= CHUNK {
                L::run(Corrected::<L, CHUNK>(self, PhantomData))
            } else {
                L::run(Corrected::<L, { MOST_CHUNKS * CHUNK }>(self, PhantomData))
            }
        }
    }
}

/// How the nearest codes under one scale are found.
#[expect(
    clippy::large_enum_variant,
    reason = "on the stack, one for each block; no step allocates"
)]
enum Nearest<'a> {
    Linear(f32, f32),
    Lines(&'a Lines, &'a [f32], f32),
    Few([f32; 16]),
    Many([f32; 256]),
}

impl<'a> Nearest<'a> {
    #[inline(always)]
    fn of(codes: &'a Codes, scale: f32) -> Self {
        let table = &codes.table;
        if let Some(levels) = table.linear
            && !scale.is_subnormal()
        {
            return Self::Linear(levels, scale);
        }
        match &table.lines {
            // For values whose magnitudes are at most the scale.
            Some(lines)
                if table.linear.is_none() && codes.dither.is_none() && Lines::cover(scale) =>
            {
                Self::Lines(lines, &table.midpoints, scale)
            }
            // Thresholds do not decrease, as rounding is monotonic.
            _ if table.midpoints.len() <= 15 => {
                Self::Few(padded(&table.midpoints, f32::INFINITY, scale))
            }
            _ => Self::Many(padded(&table.midpoints, f32::INFINITY, scale)),
        }
    }

    #[inline(always)]
    fn find<L: Lanes>(&self, values: &Chunk, out: &mut [u8; CHUNK]) {
        // SAFETY: the kernels are used on processors that have the instructions.
        unsafe {
            match self {
                Self::Lines(lines, midpoints, scale) => {
                    let values = load::<L::Vector>(values);
                    let encoder = Encoder::<L::Vector>::new(lines, midpoints);
                    encoder.encode(values.as_ref(), *scale, (), out.as_mut_ptr());
                }
                Self::Linear(levels, scale) => {
                    L::count_linear_block(&**values, *scale, *levels, out)
                }
                Self::Few(thresholds) => L::count(&**values, thresholds, out),
                Self::Many(thresholds) => L::count_of_256(&**values, thresholds, out),
            }
        }
    }
}

/// A list of numbers times a scale, with `pad` behind it.
#[inline(always)]
fn padded<const N: usize>(values: &[f32], pad: f32, scale: f32) -> [f32; N] {
    let mut list = [pad; N];
    for (slot, value) in list.iter_mut().zip(values) {
        *slot = value * scale;
    }
    list
}

/// The nearest codes, each under a scale of its own.
#[inline(always)]
fn nearest_scaled<L: Lanes>(values: &[f32], scales: &Chunk, table: &Table, out: &mut [u8]) {
    let mut any_subnormal = false;
    for scale in &**scales {
        any_subnormal |= scale.is_subnormal();
    }
    // SAFETY: the kernels are used on processors that have the instructions.
    unsafe {
        if let Some(levels) = table.linear
            && !any_subnormal
        {
            L::count_linear(values, &**scales, levels, out);
        } else if table.midpoints.len() <= 15 {
            let thresholds = padded(&table.midpoints, f32::INFINITY, 1.0);
            L::count_scaled::<false>(values, &**scales, &thresholds, out);
        } else {
            for ((x, scale), out) in values.iter().zip(&**scales).zip(out) {
                *out = find(&table.midpoints, |mid| *x > mid * scale);
            }
        }
    }
}

/// The number of values from the first on that are passed, by halving.
#[inline(always)]
fn find(values: &[f32], passed: impl Fn(f32) -> bool) -> u8 {
    let mut code = 0;
    for step in [128, 64, 32, 16, 8, 4, 2, 1] {
        let value = values.get(code + step - 1);
        code += if value.is_some_and(|value| passed(*value)) {
            step
        } else {
            0
        };
    }
    code as u8
}

/// Randomly rounded codes: [`quant::stochastic`] for a run of at most a chunk.
#[inline(always)]
fn round_randomly<L: Lanes>(
    call: &TensorCall<'_>,
    state: usize,
    codes: &Codes,
    run: Run,
    values: &Chunk,
    scales: &Chunk,
    out: &mut [u8; CHUNK],
) {
    let mut random = [0; CHUNK];
    // SAFETY: the kernels are used on processors that have the instructions.
    unsafe { L::draw(&draws(call, Purpose::State(state), run), &mut random) };
    let table = &codes.table;
    if largest(&**scales) >= INF_BITS.cast_signed() {
        // Products with an infinite scale have no order that a search could rely on.
        for (i, out) in out[..run.len].iter_mut().enumerate() {
            let u = uniform(random[i]);
            let (rounding, preconditioner) = (codes.rounding, call.preconditioner);
            *out = quant::stochastic(values[i], scales[i], table, rounding, preconditioner, u);
        }
        return;
    }
    let mut low = Chunk::ZERO;
    let mut high = Chunk::ZERO;
    // Above the highest level there is nothing: every comparison with NaN is false.
    // SAFETY: the kernels are used on processors that have the instructions.
    unsafe {
        if table.levels.len() <= 16 {
            let above: [f32; 16] = padded(&table.levels[1..], f32::NAN, 1.0);
            L::count_scaled::<true>(&**values, &**scales, &above, out);
            L::select(out, &padded(&table.levels, f32::NAN, 1.0), &mut *low);
            L::select(out, &above, &mut *high);
        } else {
            for ((x, scale), out) in values.iter().zip(&**scales).zip(&mut *out) {
                *out = find(&table.levels[1..], |level| *x >= level * scale);
            }
            L::select_of_256(out, &table.by_code, &mut *low);
            let above = padded(&table.levels[1..], f32::NAN, 1.0);
            L::select_of_256(out, &above, &mut *high);
        }
    }
    for ((low, high), scale) in low.iter_mut().zip(&mut *high).zip(&**scales) {
        *low *= scale;
        *high *= scale;
    }
    // How far a value is from the lower level, and how far the upper one is.
    let (mut part, mut whole) = (Chunk::ZERO, Chunk::ZERO);
    match codes.rounding {
        Rounding::StochasticLog => {
            for i in 0..CHUNK {
                let base = log2(low[i]);
                (part[i], whole[i]) = (log2(values[i]) - base, log2(high[i]) - base);
            }
        }
        Rounding::StochasticPreconditioner => {
            let to = call.preconditioner;
            for i in 0..CHUNK {
                let base = to.of(low[i]);
                (part[i], whole[i]) = (base - to.of(values[i]), base - to.of(high[i]));
            }
        }
        Rounding::Nearest | Rounding::Stochastic => {
            for i in 0..CHUNK {
                (part[i], whole[i]) = (values[i] - low[i], high[i] - low[i]);
            }
        }
    }
    for i in 0..CHUNK {
        let up = u8::from(uniform(random[i]) * whole[i] < part[i]);
        out[i] = if scales[i] > 0.0 { out[i] + up } else { 0 };
    }
}

/// Stores a run of at most a chunk of codes. It begins with a byte's first code and ends with its
/// last, or with the row's, whose pad bits become 0.
#[inline(always)]
unsafe fn store_codes<L: Lanes>(
    call: &TensorCall<'_>,
    codes: &Codes,
    buffer: Buffer,
    run: Run,
    values: &mut [u8; CHUNK],
) {
    values[run.len..].fill(0);
    let per_byte = index(codes.per_byte);
    let mut bytes = [0; CHUNK];
    match per_byte {
        4 => {
            for (byte, codes) in bytes.iter_mut().zip(values.as_chunks::<4>().0) {
                *byte = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6;
            }
        }
        // SAFETY: the kernels are used on processors that have the instructions.
        2 => unsafe { L::pack(values, &mut bytes[..CHUNK / 2]) },
        _ => bytes = *values,
    }
    // SAFETY: the columns lie in the row.
    unsafe {
        let to = code_row(call.tensor, codes, buffer, run.row).add(run.col / per_byte);
        if run.len == CHUNK && per_byte == 2 {
            // Of a known length, so that this is two stores.
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, CHUNK / 2);
        } else {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, run.len.div_ceil(per_byte));
        }
    }
}
