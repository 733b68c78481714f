//! For the tests of the C ABI and of every binding: misbehaviour on request, and layouts as Rust
//! sees them. Not in releases, not in the header.

use std::ffi::c_char;
use std::fmt::Write as _;

use super::copy_text;
use super::guard::{guard, guard_handle};
use super::plan::lowbit_plan_t;
use super::types::*;

/// Panics inside the guard; the plan is poisoned.
///
/// # Safety
/// `plan` is a plan.
#[unsafe(no_mangle)]
#[expect(clippy::panic, reason = "that is what it is for")]
pub unsafe extern "C" fn lowbit_test_panic(plan: *const lowbit_plan_t) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    unsafe { guard_handle(plan, |_| panic!("a planned panic")) }
}

/// The layout of every struct of the C ABI: lines `type size alignment`, each followed by its
/// fields' `type.field offset size`.
///
/// # Safety
/// `buf` has `cap` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_test_layout(
    buf: *mut c_char,
    cap: usize,
    needed: *mut usize,
) -> lowbit_status_t {
    // SAFETY: the caller's promise.
    guard(|| unsafe { copy_text(layouts().as_bytes(), buf, cap, needed) })
}

fn size_of_field<T, F>(_: impl Fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! layouts {
    ($($type:ident { $($field:ident),* $(,)? })*) => {
        fn layouts() -> String {
            let mut text = String::new();
            $(
                // A field that is missing in the list is an error here.
                let _ = |value: $type| {
                    let $type { $($field: _),* } = value;
                };
                let _ = writeln!(
                    text,
                    "{} {} {}",
                    stringify!($type),
                    size_of::<$type>(),
                    align_of::<$type>()
                );
                $(
                    let _ = writeln!(
                        text,
                        "{}.{} {} {}",
                        stringify!($type),
                        stringify!($field),
                        std::mem::offset_of!($type, $field),
                        size_of_field(|value: &$type| &value.$field)
                    );
                )*
            )*
            text
        }
    };
}

layouts! {
    lowbit_buffer_t { data, bytes }
    lowbit_quantizer_info_t {
        struct_size, bits, normalization, mapping, rounding, block, flags, levels, level_count,
        factor_axes, reserved,
    }
    lowbit_override_info_t { struct_size, pattern, m, v, x }
    lowbit_spec_info_t {
        struct_size, flags, preset, optimizer, reserved, threshold, m, v, x, overrides,
        override_count, seed, dampening, reserved2, adafactor,
    }
    lowbit_adafactor_info_t {
        struct_size, flags, clip_threshold, decay_rate, eps2, reserved,
    }
    lowbit_cpu_info_t {
        struct_size, flags, threads, variant, reserved, parallel_for, parallel_for_user,
    }
    lowbit_cuda_info_t { struct_size, flags, device, reserved }
    lowbit_tensor_info_t {
        struct_size, flags, name, shape, ndim, param_dtype, grad_dtype, weights, global_shape,
        offset, group,
    }
    lowbit_plan_info_t {
        struct_size, tensor_count, buffer_count, state_bytes, arena_bytes, arena_align,
        scratch_bytes, stage_count, group_count,
    }
    lowbit_tensor_report_t {
        struct_size, name, quantizers, reason, numel, state_bytes, first_buffer, buffer_count,
    }
    lowbit_buffer_info_t {
        struct_size, tensor, state, part, dtype, ndim, shape, bytes, arena_offset,
    }
    lowbit_stage_info_t { struct_size, dtype, reduce, offset, count }
    lowbit_step_args_t {
        struct_size, flags, tensor_count, params, grads, updates, buffer_count, state, scratch, lr,
        beta1, beta2, eps, weight_decay, grad_scale, clip_factor, skip, step, nonfinite, hyper,
        step_number, offsets, skipped,
    }
    lowbit_offload_info_t {
        struct_size, on_host, reserved, chunk_count, staging_bytes, host_bytes, bytes_to_device,
        bytes_to_host, stepped,
    }
    lowbit_ema_args_t {
        struct_size, flags, state_name, tensor_count, inputs, outputs, buffer_count, state, decay,
        weight, step, reserved,
    }
    lowbit_norm_args_t {
        struct_size, flags, tensor_count, grads, scratch, grad_scale, max_norm,
    }
    lowbit_checkpoint_info_t { struct_size, step }
    lowbit_save_args_t {
        struct_size, flags, buffer_count, state, step, path, write, write_user, fd, keep, progress,
        progress_user,
    }
    lowbit_load_args_t {
        struct_size, flags, buffer_count, state, path, read, read_user, bytes, fd, reserved,
        progress, progress_user,
    }
}
