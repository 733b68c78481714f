//! A moment of eight bits whose codes are computed (`lanes/bytes.rs`), in blocks of whole chunks that are
//! units: new values wait on the stack for the scale of their block.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use super::decode::Source;
use super::elements::Elements;
use super::encode::encode_unit;
use super::run::Run;
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{
    Beside, CHUNK, Chunk, Decoder, Encoder, InChunk, Lanes, Vector, load,
};
use crate::backend::cpu::reference::block_scale;
use crate::layout::index;
use crate::plan::{Codes, Scales};
use crate::quant::{Lines, Rounding};

/// Whether the square of any gradient of a unit is not finite.
#[inline(always)]
pub(super) unsafe fn any_not_finite<L: Lanes, E: Elements<L>>(
    call: &TensorCall<'_>,
    unit: Run,
    g: &mut Chunk,
) -> bool {
    let mut any = false;
    for run in unit.parts(CHUNK) {
        // SAFETY: the run lies in the tensor.
        unsafe {
            let gradients = E::gradients(call, run, g);
            any |= E::any_non_finite(call, run, gradients);
        }
    }
    any
}

/// A moment of eight bits in blocks that are units.
pub(super) struct Bytes<'a, V: Vector> {
    state: usize,
    codes: *mut u8,
    scales: *mut f32,
    in_row: usize,
    block: usize,
    pub(super) decoder: Decoder<V>,
    encoder: Encoder<'a, V>,
}

impl<'a, V: Vector> Bytes<'a, V> {
    #[inline(always)]
    pub(super) unsafe fn of(call: &TensorCall<'_>, state: usize, codes: &'a Codes) -> Option<Self> {
        let grid = &call.tensor.grid;
        if codes.per_byte != 1
            || codes.rounding != Rounding::Nearest
            || codes.scale_correction
            || codes.dither.is_some()
            || codes.table.linear.is_some()
            || codes.scales != Scales::Block(grid.block)
        {
            return None;
        }
        let buffers = call.state_buffers(state);
        // SAFETY: the kernels are used on processors that have the instructions.
        unsafe {
            Some(Self {
                state,
                codes: buffers[0].data.cast(),
                scales: buffers[1].data.cast(),
                in_row: index(grid.blocks),
                block: index(grid.block),
                decoder: Decoder::of(&codes.table)?,
                encoder: Encoder::new(codes.table.lines.as_ref()?, &codes.table.midpoints),
            })
        }
    }

    /// The scale of a unit.
    #[inline(always)]
    pub(super) fn scale(&self, unit: Run) -> *mut f32 {
        let at = unit.row * self.in_row + unit.col / self.block;
        self.scales.wrapping_add(at)
    }

    /// The scale of a unit's new values, stored, given the largest magnitude in each lane. Taken as soon
    /// as that is known: their codes wait for it.
    #[inline(always)]
    pub(super) unsafe fn rescale(&self, unit: Run, largest: V) -> f32 {
        // SAFETY: the caller's unit lies in the tensor.
        unsafe {
            let scale = block_scale(largest.reduce_largest());
            *self.scale(unit) = scale;
            scale
        }
    }

    /// Where the codes of a run can be read, for a whole chunk.
    #[inline(always)]
    pub(super) unsafe fn open(&self, run: Run, room: &mut [u8; CHUNK]) -> *const u8 {
        // SAFETY: the caller's run lies in the tensor.
        unsafe {
            let codes = self.codes.add(run.first).cast_const();
            if run.len == CHUNK {
                return codes;
            }
            std::ptr::copy_nonoverlapping(codes, room.as_mut_ptr(), run.len);
        }
        room.as_ptr()
    }

    /// Stores the new values of a unit, zeros behind them, under their scale. All that is to be done beside its
    /// chunks is.
    #[inline(always)]
    pub(super) unsafe fn close<L: Lanes<Vector = V>>(
        &self,
        call: &TensorCall<'_>,
        unit: Run,
        values: &[Chunk],
        scale: f32,
        mut beside: impl Beside<V>,
    ) {
        // SAFETY: the caller's unit lies in the tensor.
        unsafe {
            if !Lines::cover(scale) {
                beside.all(values.len());
                return encode_unit::<L>(call, self.state, unit, values, Source::Statistics);
            }
            for (c, (run, values)) in unit.parts(CHUNK).zip(values).enumerate() {
                let values = load::<V>(values);
                let (values, beside) = (values.as_ref(), InChunk(c * CHUNK, &mut beside));
                let to = self.codes.add(run.first);
                if run.len == CHUNK {
                    self.encoder.encode(values, scale, beside, to);
                } else {
                    let mut codes = [0; CHUNK];
                    let copy = codes.as_mut_ptr();
                    self.encoder.encode(values, scale, beside, copy);
                    std::ptr::copy_nonoverlapping(copy, to, run.len);
                }
            }
        }
    }
}
