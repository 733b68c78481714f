//! Owned state buffers, for callers who do not bring their own memory.

use std::ffi::c_void;
use std::sync::Arc;

use crate::backend::{Arena, Context};
use crate::error::Result;
use crate::plan::Plan;
use crate::reserve;
use crate::step::Buffer;

/// One zeroed arena with every state buffer of a plan. All-zero bytes are the initial state of
/// every quantizer: scales of 0 decode to 0.
#[derive(Debug)]
pub struct State {
    context: Arc<Context>,
    arena: Arena,
    buffers: Vec<Buffer>,
}

impl State {
    /// Allocates and zeroes the buffers. On a CUDA context both are ordered on `stream`.
    ///
    /// # Errors
    /// `OutOfMemory` or `CudaOutOfMemory`, with the size in the text.
    pub fn new(plan: &Plan, stream: *mut c_void) -> Result<Self> {
        let mut buffers = reserve::list(plan.buffers.len())?;
        let arena = plan.context.allocate(plan.arena_bytes, stream)?;
        buffers.extend(plan.buffers.iter().map(|info| {
            Buffer {
                data: arena
                    .data()
                    .wrapping_byte_offset(info.arena_offset as isize),
                bytes: info.bytes,
            }
        }));
        Ok(Self {
            context: Arc::clone(&plan.context),
            arena,
            buffers,
        })
    }

    /// The buffers, in the plan's order.
    #[must_use]
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Frees the memory; on a CUDA context in the order of `stream`.
    pub fn destroy(self, stream: *mut c_void) {
        self.context.free(self.arena, stream);
    }
}
