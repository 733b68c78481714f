//! Parameters and gradients as kernels of registers see them: where they lie, if both are f32 or both bf16
//! and updated there, or else in copies of a chunk.

#![expect(unsafe_code, reason = "reads and writes the caller's raw buffers")]

use half::bf16;

use super::run::{Run, draws, load_run, store_run};
use super::weights::{load_weights, store_weights};
use super::{AHEAD, LINE, prefetch};
use crate::backend::cpu::call::TensorCall;
use crate::backend::cpu::lanes::{CHUNK, Chunk, Lanes, Random, Vector};
use crate::dtype::Dtype;
use crate::rng::Purpose;
use crate::weights::Weights;

/// What an update alone is taken from: -0 less a number is its negative, exactly.
static NOTHING: Chunk = Chunk([-0.0; CHUNK]);

/// Which [`Elements`] a tensor has.
pub(super) enum Kind {
    F32,
    Bf16,
    Copied,
}

impl Kind {
    pub(super) fn of(call: &TensorCall<'_>) -> Self {
        let info = &call.tensor.info;
        let in_place = call.in_place() && info.param_dtype == info.grad_dtype;
        match (info.param_dtype, call.weight.form) {
            (Dtype::F32, Weights::Plain) if in_place => Self::F32,
            (Dtype::Bf16, Weights::Plain | Weights::Stochastic) if in_place => Self::Bf16,
            _ => Self::Copied,
        }
    }

    /// Where gradients alone are used.
    pub(super) fn of_gradients(call: &TensorCall<'_>) -> Self {
        match call.tensor.info.grad_dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
            _ => Self::Copied,
        }
    }
}

/// Evaluates an expression with the [`Elements`] of a kind.
macro_rules! with_elements {
    ($kind:expr, $elements:ident => $body:expr) => {
        match $kind {
            $crate::backend::cpu::portable::elements::Kind::F32 => {
                type $elements = $crate::backend::cpu::portable::elements::F32;
                $body
            }
            $crate::backend::cpu::portable::elements::Kind::Bf16 => {
                type $elements = $crate::backend::cpu::portable::elements::Bf16;
                $body
            }
            $crate::backend::cpu::portable::elements::Kind::Copied => {
                type $elements = $crate::backend::cpu::portable::elements::Copied;
                $body
            }
        }
    };
}
pub(super) use with_elements;

/// The same for the rule of a call, which may be Adam with its decay.
macro_rules! with_decay {
    ($call:expr, $kind:expr, $elements:ident => $body:expr) => {
        if $call.l2() == 0.0 {
            $crate::backend::cpu::portable::elements::with_elements!($kind, $elements => $body)
        } else {
            type $elements = $crate::backend::cpu::portable::elements::Decayed;
            $body
        }
    };
}
pub(super) use with_decay;

/// The parameters and gradients of a tensor.
///
/// # Safety
/// Runs are of at most a chunk and lie in the tensor; registers begin in the chunk.
pub(super) trait Elements<L: Lanes> {
    /// Where those of a run are.
    type Gradients: Copy;
    type Parameters: Copy;

    /// Whether gradients come scaled and with Adam's decay in them: R1 is done, and R7 has no decay.
    const DECAYED: bool = false;

    /// What gradients are to be multiplied by.
    #[inline(always)]
    fn grad_scale(call: &TensorCall<'_>) -> f32 {
        if Self::DECAYED { 1.0 } else { call.grad_scale }
    }

    /// Bytes of a parameter and of a gradient.
    fn sizes(call: &TensorCall<'_>) -> [usize; 2];
    unsafe fn gradients(call: &TensorCall<'_>, run: Run, copy: &mut Chunk) -> Self::Gradients;
    /// Asks for what is ahead of the register from element `at` of a run on.
    fn ask<const N: usize, const LATER: bool>(ahead: [Ahead<LATER>; N], at: usize);
    /// The gradients from element `at` of the run on, zeros behind it. Here and below, `lanes` are how many
    /// are the run's ([`lanes()`]).
    unsafe fn gradient(from: Self::Gradients, at: usize, lanes: usize) -> L::Vector;

    /// Whether the square of a gradient is not finite and that may not show in the states.
    #[inline(always)]
    fn hides_non_finite(gradients: Self::Gradients) -> bool {
        let _ = gradients;
        false
    }

    /// Whether the square of any gradient of a run is not finite.
    #[inline(always)]
    unsafe fn any_non_finite(call: &TensorCall<'_>, run: Run, gradients: Self::Gradients) -> bool {
        if Self::DECAYED {
            return Self::hides_non_finite(gradients);
        }
        // SAFETY: the caller's promise.
        unsafe {
            // The largest magnitude has the largest square, and NaN is the largest.
            let mut largest = L::Vector::splat(0.0);
            for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                let lanes = lanes::<L::Vector>(run, at);
                if lanes == 0 {
                    break;
                }
                largest = largest.largest(Self::gradient(gradients, at, lanes));
            }
            let g = f32::from_bits(largest.reduce_largest().cast_unsigned()) * call.grad_scale;
            !(g * g).is_finite()
        }
    }

    /// Draws for a run, before its parameters are asked for.
    #[inline(always)]
    unsafe fn draw(call: &TensorCall<'_>, run: Run, random: &mut Random) {
        let _ = (call, run, random);
    }
    unsafe fn parameters(
        call: &TensorCall<'_>,
        run: Run,
        copy: &mut Chunk,
        random: &Random,
    ) -> Self::Parameters;
    /// The parameters from element `at` of the run on, zeros behind it.
    unsafe fn parameter(from: Self::Parameters, at: usize, lanes: usize) -> L::Vector;
    /// What the update is taken from, given the parameters.
    #[inline(always)]
    unsafe fn base(from: Self::Parameters, at: usize, parameters: L::Vector) -> L::Vector {
        let _ = (from, at);
        parameters
    }
    /// Stores the result from element `at` of the run on.
    unsafe fn replace(to: Self::Parameters, at: usize, lanes: usize, result: L::Vector);
    /// Ends a run whose results are all stored.
    #[inline(always)]
    unsafe fn end(call: &TensorCall<'_>, run: Run, to: Self::Parameters) {
        let _ = (call, run, to);
    }
}

/// Elements ahead of a run, or those that a `LATER` pass reads. Found before its loop, which would read anew what it
/// reads through references: what it stores could have changed that.
#[derive(Clone, Copy)]
pub(super) struct Ahead<const LATER: bool = false> {
    first: *const u8,
    /// Of an element, in bytes.
    size: usize,
}

impl<const LATER: bool> Ahead<LATER> {
    #[inline(always)]
    fn of(data: *const u8, size: usize, run: Run, elements: usize) -> Self {
        let first = data.wrapping_add((run.first + elements) * size);
        Self { first, size }
    }

    /// Asks for the line that begins `at` elements after the first one, if one does.
    #[inline(always)]
    fn line<L: Lanes, T>(self, at: usize) {
        let at = at * size_of::<T>();
        if !at.is_multiple_of(LINE) {
            return;
        }
        let address = self.first.wrapping_add(at);
        if LATER {
            L::prefetch_later(address);
        } else {
            L::prefetch(address);
        }
    }
}

impl Ahead {
    /// So many gradients.
    #[inline(always)]
    pub(super) fn of_gradients<L: Lanes, E: Elements<L>>(
        call: &TensorCall<'_>,
        run: Run,
        elements: usize,
    ) -> Self {
        Self::of(call.grad, E::sizes(call)[1], run, elements)
    }

    /// So many parameters.
    #[inline(always)]
    pub(super) fn of_parameters<L: Lanes, E: Elements<L>>(
        call: &TensorCall<'_>,
        run: Run,
        elements: usize,
    ) -> Self {
        Self::of(call.weight.data, E::sizes(call)[0], run, elements)
    }

    /// Parameters and gradients that are [`AHEAD`].
    #[inline(always)]
    pub(super) fn of_both<L: Lanes, E: Elements<L>>(call: &TensorCall<'_>, run: Run) -> [Self; 2] {
        [
            Self::of_parameters::<L, E>(call, run, AHEAD),
            Self::of_gradients::<L, E>(call, run, AHEAD),
        ]
    }
}

impl Ahead<true> {
    /// [`TensorCall::next_grad`], or, behind its end, what was asked for before.
    #[inline(always)]
    pub(super) fn of_next<L: Lanes, E: Elements<L>>(call: &TensorCall<'_>, run: Run) -> Self {
        let size = E::sizes(call)[1];
        let next = Self::of(call.next_grad.start, size, run, 0);
        if next.first < call.next_grad.end {
            next
        } else {
            Self::of(call.grad, size, run, 0)
        }
    }
}

/// How many lanes of the register at an element of a run are the run's.
#[inline(always)]
pub(super) fn lanes<V: Vector>(run: Run, at: usize) -> usize {
    if run.len == CHUNK {
        return V::WIDTH;
    }
    run.len.saturating_sub(at).min(V::WIDTH)
}

/// Both in f32.
pub(super) struct F32;

impl<L: Lanes> Elements<L> for F32 {
    type Gradients = *const f32;
    type Parameters = *mut f32;

    #[inline(always)]
    fn sizes(_: &TensorCall<'_>) -> [usize; 2] {
        [size_of::<f32>(); 2]
    }

    #[inline(always)]
    unsafe fn gradients(call: &TensorCall<'_>, run: Run, _: &mut Chunk) -> *const f32 {
        call.grad.cast::<f32>().wrapping_add(run.first)
    }

    #[inline(always)]
    fn ask<const N: usize, const LATER: bool>(ahead: [Ahead<LATER>; N], at: usize) {
        for ahead in ahead {
            ahead.line::<L, f32>(at);
        }
    }

    #[inline(always)]
    unsafe fn gradient(from: *const f32, at: usize, lanes: usize) -> L::Vector {
        // SAFETY: the caller's promise.
        unsafe { L::Vector::load_first(from.wrapping_add(at), lanes) }
    }

    #[inline(always)]
    unsafe fn parameters(call: &TensorCall<'_>, run: Run, _: &mut Chunk, _: &Random) -> *mut f32 {
        call.weight.data.cast::<f32>().wrapping_add(run.first)
    }

    #[inline(always)]
    unsafe fn parameter(from: *mut f32, at: usize, lanes: usize) -> L::Vector {
        // SAFETY: the caller's promise.
        unsafe { L::Vector::load_first(from.wrapping_add(at), lanes) }
    }

    #[inline(always)]
    unsafe fn replace(to: *mut f32, at: usize, lanes: usize, result: L::Vector) {
        // SAFETY: the caller's promise.
        unsafe { result.canonical().store_first(to.wrapping_add(at), lanes) };
    }
}

/// Both in bf16, to nearest or by draws.
pub(super) struct Bf16;

/// The parameters of a run, and their draws, or null.
#[derive(Clone, Copy)]
pub(super) struct Bf16Parameters {
    data: *mut bf16,
    draws: *const u16,
}

impl<L: Lanes> Elements<L> for Bf16 {
    type Gradients = *const bf16;
    type Parameters = Bf16Parameters;

    #[inline(always)]
    fn sizes(_: &TensorCall<'_>) -> [usize; 2] {
        [size_of::<bf16>(); 2]
    }

    #[inline(always)]
    unsafe fn gradients(call: &TensorCall<'_>, run: Run, _: &mut Chunk) -> *const bf16 {
        call.grad.cast::<bf16>().wrapping_add(run.first)
    }

    #[inline(always)]
    fn ask<const N: usize, const LATER: bool>(ahead: [Ahead<LATER>; N], at: usize) {
        for ahead in ahead {
            ahead.line::<L, bf16>(at);
        }
    }

    #[inline(always)]
    unsafe fn gradient(from: *const bf16, at: usize, lanes: usize) -> L::Vector {
        // SAFETY: the caller's promise.
        unsafe { L::Vector::load_bf16(from.wrapping_add(at), lanes) }
    }

    #[inline(always)]
    unsafe fn draw(call: &TensorCall<'_>, run: Run, random: &mut Random) {
        if call.weight.form == Weights::Stochastic {
            // SAFETY: the kernels are used on processors that have the instructions.
            unsafe { L::draw(&draws(call, Purpose::Weight, run), &mut random.0) };
        }
    }

    #[inline(always)]
    unsafe fn parameters(
        call: &TensorCall<'_>,
        run: Run,
        _: &mut Chunk,
        random: &Random,
    ) -> Bf16Parameters {
        Bf16Parameters {
            data: call.weight.data.cast::<bf16>().wrapping_add(run.first),
            draws: if call.weight.form == Weights::Stochastic {
                random.0.as_ptr()
            } else {
                std::ptr::null()
            },
        }
    }

    #[inline(always)]
    unsafe fn parameter(from: Bf16Parameters, at: usize, lanes: usize) -> L::Vector {
        // SAFETY: the caller's promise.
        unsafe { L::Vector::load_bf16(from.data.wrapping_add(at), lanes) }
    }

    #[inline(always)]
    unsafe fn replace(to: Bf16Parameters, at: usize, lanes: usize, result: L::Vector) {
        let data = to.data.wrapping_add(at);
        // SAFETY: the caller's promise; there are draws for a chunk.
        unsafe {
            if to.draws.is_null() {
                result.store_bf16(data, lanes);
            } else {
                result.round_bf16(to.draws.wrapping_add(at), data, lanes);
            }
        }
    }
}

/// Whatever they are, in copies that go on in zeros up to a chunk, but for f32 of whole chunks.
pub(super) type Copied = Copies<false>;

/// The same with Adam's decay in gradients, all of which are copied.
pub(super) type Decayed = Copies<true>;

/// [`Copied`] or [`Decayed`].
pub(super) struct Copies<const DECAYED: bool>;

impl<const DECAYED: bool> Copies<DECAYED> {
    /// The f32 values of a run's gradients.
    #[inline(always)]
    unsafe fn gradients<L: Lanes>(call: &TensorCall<'_>, run: Run, copy: &mut Chunk) -> *const f32 {
        let dtype = call.tensor.info.grad_dtype;
        if dtype == Dtype::F32 && run.len == CHUNK {
            return call.grad.cast::<f32>().wrapping_add(run.first);
        }
        // SAFETY: the caller's run lies in the tensor.
        unsafe { load_run::<L>(call.grad, dtype, run, copy) };
        copy.as_ptr()
    }

    /// Whether the parameters of a run are read and replaced where they lie.
    #[inline(always)]
    fn in_place(call: &TensorCall<'_>, run: Run) -> bool {
        let weight = &call.weight;
        let are_f32 = weight.dtype == Dtype::F32 && weight.form == Weights::Plain;
        are_f32 && call.in_place() && run.len == CHUNK
    }

    /// The f32 values of a run's parameters.
    #[inline(always)]
    unsafe fn parameters<L: Lanes>(call: &TensorCall<'_>, run: Run, copy: &mut Chunk) -> *mut f32 {
        if Self::in_place(call, run) {
            return call.weight.data.cast::<f32>().wrapping_add(run.first);
        }
        // SAFETY: the caller's run lies in the tensor.
        unsafe { load_weights::<L>(call, run, copy) };
        copy.as_mut_ptr()
    }
}

/// The gradients of a run, and whether the squares of all were finite without the decay.
#[derive(Clone, Copy)]
pub(super) struct CopiedGradients {
    data: *const f32,
    finite: bool,
}

/// The parameters of a run, to be replaced by the result, and what the update is taken from.
#[derive(Clone, Copy)]
pub(super) struct CopiedParameters {
    data: *mut f32,
    base: *const f32,
}

impl<L: Lanes, const DECAYED: bool> Elements<L> for Copies<DECAYED> {
    type Gradients = CopiedGradients;
    type Parameters = CopiedParameters;

    const DECAYED: bool = DECAYED;

    #[inline(always)]
    fn sizes(call: &TensorCall<'_>) -> [usize; 2] {
        let info = &call.tensor.info;
        [info.param_dtype.size(), info.grad_dtype.size()]
    }

    #[inline(always)]
    unsafe fn gradients(call: &TensorCall<'_>, run: Run, copy: &mut Chunk) -> CopiedGradients {
        // SAFETY: the caller's promise.
        unsafe {
            let g = Self::gradients::<L>(call, run, copy);
            if !DECAYED {
                return CopiedGradients {
                    data: g,
                    finite: true,
                };
            }
            let mut weights = Chunk::ZERO;
            let p = Self::parameters::<L>(call, run, &mut weights);
            let (scale, decay) = (
                L::Vector::splat(call.grad_scale),
                L::Vector::splat(call.l2()),
            );
            let to = copy.as_mut_ptr();
            let mut largest = L::Vector::splat(0.0);
            for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                let g = L::Vector::load(g.add(at)).mul(scale); // R1
                largest = largest.largest(g);
                let p = L::Vector::load(p.add(at));
                decay.mul_add(p, g).store(to.add(at));
            }
            CopiedGradients {
                data: to,
                finite: largest.mul(largest).all_usual(),
            }
        }
    }

    #[inline(always)]
    fn ask<const N: usize, const LATER: bool>(ahead: [Ahead<LATER>; N], at: usize) {
        for ahead in ahead {
            ahead.line::<L, u8>(at * ahead.size);
        }
    }

    #[inline(always)]
    unsafe fn gradient(from: CopiedGradients, at: usize, _: usize) -> L::Vector {
        // SAFETY: a register of a chunk.
        unsafe { L::Vector::load(from.data.add(at)) }
    }

    #[inline(always)]
    fn hides_non_finite(gradients: CopiedGradients) -> bool {
        !gradients.finite
    }

    #[inline(always)]
    unsafe fn parameters(
        call: &TensorCall<'_>,
        run: Run,
        copy: &mut Chunk,
        _: &Random,
    ) -> CopiedParameters {
        if let Some((_, dtype)) = call.weight.form.beside() {
            prefetch::<L>(call.weight.beside, dtype.size(), run, AHEAD);
        }
        // SAFETY: the caller's promise.
        let data = unsafe { Self::parameters::<L>(call, run, copy) };
        let base = if call.in_place() {
            data.cast_const()
        } else {
            NOTHING.as_ptr()
        };
        CopiedParameters { data, base }
    }

    #[inline(always)]
    unsafe fn parameter(from: CopiedParameters, at: usize, _: usize) -> L::Vector {
        // SAFETY: a register of a chunk.
        unsafe { L::Vector::load(from.data.add(at)) }
    }

    #[inline(always)]
    unsafe fn base(from: CopiedParameters, at: usize, _: L::Vector) -> L::Vector {
        // SAFETY: a register of a chunk.
        unsafe { L::Vector::load(from.base.add(at)) }
    }

    #[inline(always)]
    unsafe fn replace(to: CopiedParameters, at: usize, _: usize, result: L::Vector) {
        // SAFETY: a register of a chunk.
        unsafe { result.canonical().store(to.data.add(at)) };
    }

    #[inline(always)]
    unsafe fn end(call: &TensorCall<'_>, run: Run, to: CopiedParameters) {
        if Self::in_place(call, run) {
            return;
        }
        // SAFETY: the caller's promise; the result is in a chunk.
        unsafe {
            let result = &*to.data.cast::<Chunk>();
            if call.in_place() {
                store_weights::<L>(call, run, result);
            } else {
                store_run::<L>(call.update, call.tensor.info.param_dtype, run, result);
            }
        }
    }
}
