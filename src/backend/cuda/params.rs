//! What a kernel is told: the mirror of `cuda/params.cuh`. A test compares the layouts.

use std::ffi::c_void;

use crate::numerics::Scalars;

/// One tensor of one step. Pointers are device addresses, sizes count elements.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct AdamwParams {
    pub(super) param: *mut c_void,
    pub(super) grad: *const c_void,
    /// Null: in place.
    pub(super) update: *mut c_void,
    /// Codes or f32 values.
    pub(super) m: *mut c_void,
    pub(super) v: *mut c_void,
    /// Null for f32 states.
    pub(super) m_scales: *mut c_void,
    pub(super) v_scales: *mut c_void,
    /// Null: `scalars` holds.
    pub(super) hyper: *const f32,
    pub(super) step: *const i32,
    /// Null, or two counters: blocks, tensors.
    pub(super) skipped: *mut i64,
    pub(super) rows: i64,
    pub(super) cols: i64,
    /// Blocks of a row; the last one may be short.
    pub(super) blocks: i64,
    pub(super) scalars: Scalars,
    /// Non-zero: a block with a non-finite gradient stays as it is.
    pub(super) skip_blocks: i32,
    /// Non-zero: every full block may be accessed four elements at a time.
    pub(super) wide: i32,
}
