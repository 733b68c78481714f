//! `lowbit_spec_t`.

use std::ffi::c_char;

use super::guard::{give, guard, guard_handle, handle, take};
use super::sized::{read, read_element};
use super::types::*;
use super::{array, copy_text, output, text};
use crate::error::{Error, Result, Status, invalid};
use crate::quant::{Mapping, Rounding};
use crate::spec::{
    AdafactorOptions, DEFAULT_BLOCK, FactorAxes, Normalization, Optimizer, Override, Quantizer,
    SgdmOptions, Spec,
};

/// Which optimizer, with which quantizer for each of its states.
pub struct lowbit_spec_t {
    pub(super) spec: Spec,
}

handle!(lowbit_spec_t, "spec", b"lb.spec\0");

/// Makes a spec from its name.
///
/// # Parameters
/// - `name` (in, host, not NULL): "adamw32", "adamw8", "adamw4" (the paper's 4-bit AdamW, rank-1
///   v), "adamw4-block" (both moments in blocks of 128), "adamw4-robust" (rank-1 v under squares, m
///   rounded at random), "factor32", "factor4", "sgdm32", "sgdm8", "sgdm4", "lion32", "lion8",
///   "lion4", "adafactor" or "sm3".
/// - `out` (out, host, not NULL): the spec, or NULL on failure.
/// # Returns
/// OK, NULL_POINTER, INVALID_ARGUMENT (the text lists the names).
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// The caller destroys the spec by lowbit_spec_destroy.
/// # Since
/// ABI 0.1
/// # Safety
/// `name` is NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_spec_create_preset(
    name: *const c_char,
    out: *mut *mut lowbit_spec_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    guard(|| unsafe { create(out, || Spec::preset(text(name, "name")?)) })
}

/// Makes a spec from its JSON form.
///
/// # Parameters
/// - `json` (in, host, not NULL): as printed by lowbit_spec_json. Unknown keys are refused.
/// - `out` (out, host, not NULL): the spec, or NULL on failure.
/// # Returns
/// OK, NULL_POINTER, INVALID_ARGUMENT (the text names the key), UNSUPPORTED.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// The caller destroys the spec by lowbit_spec_destroy.
/// # Since
/// ABI 0.1
/// # Safety
/// `json` is NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_spec_create_json(
    json: *const c_char,
    out: *mut *mut lowbit_spec_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    guard(|| unsafe { create(out, || Spec::from_json(text(json, "json")?)) })
}

/// Makes a spec field by field.
///
/// # Parameters
/// - `info` (in, host, not NULL): fields that are NULL or 0 come from its preset.
/// - `out` (out, host, not NULL): the spec, or NULL on failure.
/// # Returns
/// OK, NULL_POINTER, STRUCT_SIZE, UNKNOWN_FLAG, INVALID_ARGUMENT, UNSUPPORTED.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// The caller destroys the spec by lowbit_spec_destroy; `info` is not kept.
/// # Since
/// ABI 0.1
/// # Safety
/// The pointers in `info` are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_spec_create(
    info: *const lowbit_spec_info_t,
    out: *mut *mut lowbit_spec_t,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    guard(|| unsafe { create(out, || from_info(info)) })
}

/// Prints a spec as JSON: one line, the same text for equal specs.
///
/// # Parameters
/// - `spec` (in, not NULL).
/// - `buf` (out, host): receives the text and a NUL; may be NULL if `cap` is 0.
/// - `cap` (in): bytes of `buf`.
/// - `needed` (out, host): bytes of the text with its NUL; may be NULL.
/// # Returns
/// OK, NULL_POINTER, BUFFER_SIZE if `cap` is too small.
/// # Threads
/// Any.
/// # Stream
/// None.
/// # Ownership
/// None.
/// # Since
/// ABI 0.1
/// # Safety
/// `buf` has `cap` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_spec_json(
    spec: *const lowbit_spec_t,
    buf: *mut c_char,
    cap: usize,
    needed: *mut usize,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe {
        guard_handle(spec, |spec| {
            copy_text(spec.spec.to_json()?.as_bytes(), buf, cap, needed)
        })
    }
}

/// Frees a spec. Plans made from it keep what they need.
///
/// # Parameters
/// - `spec` (in): may be NULL.
/// # Returns
/// Nothing.
/// # Threads
/// No other thread uses `spec`.
/// # Stream
/// None.
/// # Ownership
/// Ends the caller's.
/// # Since
/// ABI 0.1
/// # Safety
/// `spec` was not destroyed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_spec_destroy(spec: *mut lowbit_spec_t) {
    guard(|| {
        // SAFETY: the caller's promise.
        drop(unsafe { take(spec) });
        Ok(())
    });
}

/// # Safety
/// `out` is null or valid.
unsafe fn create(out: *mut *mut lowbit_spec_t, make: impl FnOnce() -> Result<Spec>) -> Result<()> {
    let out = output(out, "out")?;
    // SAFETY: checked above.
    unsafe {
        *out = std::ptr::null_mut();
        give(out, lowbit_spec_t { spec: make()? });
    }
    Ok(())
}

/// # Safety
/// The pointers in `info` are valid.
unsafe fn from_info(info: *const lowbit_spec_info_t) -> Result<Spec> {
    // SAFETY: the caller's promise.
    let info = unsafe { read(info, "info") }?;
    let unknown = info.flags
        & !(LOWBIT_SPEC_THRESHOLD
            | LOWBIT_SPEC_AMSGRAD
            | LOWBIT_SPEC_MAXIMIZE
            | LOWBIT_SPEC_NESTEROV
            | LOWBIT_SPEC_DECOUPLED);
    if unknown != 0 {
        return Err(unknown_flag("info.flags", unknown));
    }
    reserved("info.reserved", info.reserved)?;
    reserved("info.reserved2", info.reserved2)?;
    let mut spec = if info.preset.is_null() {
        Spec::new(optimizer(info.optimizer)?)
    } else {
        // SAFETY: the caller's promise.
        let preset = Spec::preset(unsafe { text(info.preset, "info.preset") }?)?;
        match info.optimizer {
            0 => preset,
            // The preset's quantizers for another optimizer, as far as it has their states.
            other => {
                let mut spec = Spec {
                    m: preset.m,
                    ..Spec::new(optimizer(other)?)
                };
                if spec.states().contains(&"v") && spec.optimizer != Optimizer::Sm3 {
                    spec.v = preset.v;
                }
                if !spec.states().contains(&"m") {
                    spec.m = None;
                }
                spec
            }
        }
    };
    let set = |flag| info.flags & flag != 0;
    if set(LOWBIT_SPEC_THRESHOLD) {
        spec.threshold = info.threshold;
    }
    spec.amsgrad |= set(LOWBIT_SPEC_AMSGRAD);
    spec.maximize |= set(LOWBIT_SPEC_MAXIMIZE);
    spec.seed = info.seed;
    if set(LOWBIT_SPEC_NESTEROV) || set(LOWBIT_SPEC_DECOUPLED) || info.dampening != 0.0 {
        spec.sgdm = Some(SgdmOptions {
            nesterov: set(LOWBIT_SPEC_NESTEROV),
            dampening: info.dampening,
            decoupled: set(LOWBIT_SPEC_DECOUPLED),
        });
    }
    if !info.adafactor.is_null() {
        // SAFETY: the caller's promise.
        spec.adafactor = Some(unsafe { adafactor(info.adafactor) }?);
    }
    // SAFETY: the caller's promise.
    unsafe {
        spec.m = quantizer(info.m, "info.m")?.or(spec.m);
        spec.v = quantizer(info.v, "info.v")?.or(spec.v);
        spec.x = quantizer(info.x, "info.x")?.or(spec.x);
    }
    let count = usize::try_from(info.override_count)
        .map_err(|_| invalid(format!("info.override_count is {}", info.override_count)))?;
    for i in 0..count {
        // SAFETY: the caller's promise.
        unsafe {
            let rule = read_element(info.overrides, i, "info.overrides")?;
            let name = |state: &str| format!("info.overrides[{i}].{state}");
            spec.overrides.push(Override {
                pattern: text(rule.pattern, &name("pattern"))?.to_owned(),
                m: quantizer(rule.m, &name("m"))?,
                v: quantizer(rule.v, &name("v"))?,
                x: quantizer(rule.x, &name("x"))?,
            });
        }
    }
    spec.validate()?;
    Ok(spec)
}

/// # Safety
/// `info` is valid.
unsafe fn adafactor(info: *const lowbit_adafactor_info_t) -> Result<AdafactorOptions> {
    // SAFETY: the caller's promise.
    let info = unsafe { read(info, "info.adafactor") }?;
    let unknown = info.flags & !(LOWBIT_ADAFACTOR_RELATIVE_STEP | LOWBIT_ADAFACTOR_SCALE_PARAMETER);
    if unknown != 0 {
        return Err(unknown_flag("info.adafactor.flags", unknown));
    }
    reserved("info.adafactor.reserved", info.reserved)?;
    Ok(AdafactorOptions {
        relative_step: info.flags & LOWBIT_ADAFACTOR_RELATIVE_STEP != 0,
        scale_parameter: info.flags & LOWBIT_ADAFACTOR_SCALE_PARAMETER != 0,
        clip_threshold: info.clip_threshold,
        decay_rate: info.decay_rate,
        eps2: info.eps2,
    })
}

/// The Rust value whose discriminant a C constant is.
macro_rules! choose {
    ($raw:expr, $name:expr, $type:ident { $($variant:ident),* $(,)? }) => {
        match $raw {
            $(raw if raw == $type::$variant as i32 => Ok($type::$variant),)*
            raw => Err(invalid(format!(
                "{} is {raw}; there are {}",
                $name,
                [$(format!("{} ({})", $type::$variant as i32, stringify!($variant))),*].join(", ")
            ))),
        }
    };
}

fn optimizer(raw: i32) -> Result<Optimizer> {
    choose!(
        raw,
        "info.optimizer",
        Optimizer {
            Adamw,
            None,
            Adam,
            Sgdm,
            Lion,
            Adafactor,
            Sm3
        }
    )
}

/// # Safety
/// `info` is null or valid.
unsafe fn quantizer(info: *const lowbit_quantizer_info_t, name: &str) -> Result<Option<Quantizer>> {
    if info.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let info = unsafe { read(info, name) }?;
    let field = |field: &str| format!("{name}.{field}");
    let unknown = info.flags & !(LOWBIT_QUANTIZER_SCALE_CORRECTION | LOWBIT_QUANTIZER_DITHER);
    if unknown != 0 {
        return Err(unknown_flag(&field("flags"), unknown));
    }
    reserved(&field("reserved"), info.reserved)?;
    let factored = info.normalization == LOWBIT_NORMALIZATION_FACTORED;
    if info.bits == 32 && !factored {
        return Ok(Some(Quantizer::f32()));
    }
    let normalization = choose!(
        info.normalization,
        field("normalization"),
        Normalization {
            Block,
            Rank1,
            Tensor,
            Row,
            Column,
            Factored
        }
    )?;
    let factor_axes = choose!(
        info.factor_axes,
        field("factor_axes"),
        FactorAxes {
            Merged,
            LastTwo,
            LargestTwo
        }
    )?;
    if info.bits == 32 {
        return Ok(Some(Quantizer {
            normalization: Some(normalization),
            factor_axes,
            ..Quantizer::f32()
        }));
    }
    let mapping = choose!(
        info.mapping,
        field("mapping"),
        Mapping {
            De,
            Linear,
            De0,
            LinearWithZero,
            Power2,
            Power3,
            Nf4,
            Geometric,
            Table
        }
    )?;
    let rounding = choose!(
        info.rounding,
        field("rounding"),
        Rounding {
            Nearest,
            Stochastic,
            StochasticLog,
            StochasticPreconditioner
        }
    )?;
    // Out-of-range values are reported by validation, with the state's name.
    let bits = u32::try_from(info.bits)
        .map_err(|_| invalid(format!("{} is {}", field("bits"), info.bits)))?;
    let block = match info.block {
        0 => DEFAULT_BLOCK,
        block => u32::try_from(block)
            .map_err(|_| invalid(format!("{name}.block is {block}; 32 to 4096")))?,
    };
    if normalization != Normalization::Block && block != DEFAULT_BLOCK {
        return Err(invalid(format!(
            "{name}.block is {block}, but only normalization block has a block size"
        )));
    }
    Ok(Some(Quantizer {
        block,
        // SAFETY: the caller's promise.
        levels: unsafe { array(info.levels, info.level_count, &field("levels")) }?.into(),
        rounding,
        scale_correction: info.flags & LOWBIT_QUANTIZER_SCALE_CORRECTION != 0,
        dither: info.flags & LOWBIT_QUANTIZER_DITHER != 0,
        factor_axes,
        ..Quantizer::codes(bits, normalization, mapping)
    }))
}

/// The error for a flag bit from the future.
pub(super) fn unknown_flag(name: &str, bits: u64) -> Error {
    Error::new(
        Status::UnknownFlag,
        format!("{name} has the unknown bits {bits:#x}"),
    )
}

/// Padding that a later version may give a meaning.
pub(super) fn reserved(name: &str, value: i32) -> Result<()> {
    if value == 0 {
        Ok(())
    } else {
        Err(invalid(format!("{name} is {value}; it must be 0")))
    }
}
