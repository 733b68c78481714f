//! `lowbit_spec_t`.

use std::ffi::c_char;

use super::guard::{give, guard, guard_handle, handle, take};
use super::sized::{read, read_element};
use super::types::*;
use super::{copy_text, output, text};
use crate::error::{Error, Result, Status, invalid, unsupported};
use crate::quant::Mapping;
use crate::spec::{
    DEFAULT_BLOCK, DEFAULT_THRESHOLD, Normalization, Optimizer, Override, Quantizer, Spec,
};

/// Which optimizer, with which quantizer for each of its states.
pub struct lowbit_spec_t {
    pub(super) spec: Spec,
}

handle!(lowbit_spec_t, "spec", b"lb.spec\0");

/// Makes a spec from its name.
///
/// # Parameters
/// - `name` (in, host, not NULL): "adamw32", "adamw4" (the paper's 4-bit AdamW, rank-1 v) or
///   "adamw4-block" (both moments in blocks of 128).
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
    if info.flags & !LOWBIT_SPEC_THRESHOLD != 0 {
        return Err(unknown_flag(
            "info.flags",
            info.flags & !LOWBIT_SPEC_THRESHOLD,
        ));
    }
    reserved("info.reserved", info.reserved)?;
    let mut spec = if info.preset.is_null() {
        Spec {
            optimizer: Optimizer::Adamw,
            threshold: DEFAULT_THRESHOLD,
            m: None,
            v: None,
            x: None,
            overrides: Vec::new(),
        }
    } else {
        // SAFETY: the caller's promise.
        Spec::preset(unsafe { text(info.preset, "info.preset") }?)?
    };
    match info.optimizer {
        0 if !info.preset.is_null() => {}
        LOWBIT_OPTIMIZER_ADAMW => spec.optimizer = Optimizer::Adamw,
        LOWBIT_OPTIMIZER_NONE => {
            spec.optimizer = Optimizer::None;
            (spec.m, spec.v) = (None, None);
        }
        other => {
            return Err(invalid(format!(
                "info.optimizer is {other}; 1 is adamw, 2 is none, 0 needs a preset"
            )));
        }
    }
    if info.flags & LOWBIT_SPEC_THRESHOLD != 0 {
        spec.threshold = info.threshold;
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
/// `info` is null or valid.
unsafe fn quantizer(info: *const lowbit_quantizer_info_t, name: &str) -> Result<Option<Quantizer>> {
    if info.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let info = unsafe { read(info, name) }?;
    if info.bits == 32 {
        return Ok(Some(Quantizer::F32));
    }
    if info.bits != 4 {
        return Err(unsupported(format!(
            "{name}.bits is {}; this version has 4 and 32",
            info.bits
        )));
    }
    if info.rounding != LOWBIT_ROUNDING_NEAREST {
        return Err(unsupported(format!(
            "{name}.rounding is {}; this version has 0 (nearest)",
            info.rounding
        )));
    }
    let normalization = match info.normalization {
        LOWBIT_NORMALIZATION_BLOCK => Normalization::Block,
        LOWBIT_NORMALIZATION_RANK1 => Normalization::Rank1,
        other => {
            return Err(invalid(format!(
                "{name}.normalization is {other}; 1 is block, 2 rank-1"
            )));
        }
    };
    let mapping = match info.mapping {
        LOWBIT_MAPPING_DE => Mapping::De,
        LOWBIT_MAPPING_LINEAR => Mapping::Linear,
        other => {
            return Err(invalid(format!(
                "{name}.mapping is {other}; 1 is de, 2 linear"
            )));
        }
    };
    let block = match info.block {
        0 => DEFAULT_BLOCK,
        // Out-of-range values are reported by validation, with the state's name.
        block => u32::try_from(block)
            .map_err(|_| invalid(format!("{name}.block is {block}; 32 to 4096")))?,
    };
    if normalization == Normalization::Rank1 && block != DEFAULT_BLOCK {
        return Err(invalid(format!(
            "{name}.block is {block}, but rank-1 has no block size"
        )));
    }
    Ok(Some(Quantizer::Bits4 {
        normalization,
        block,
        mapping,
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
