//! Copies between host and device beside the caller's stream: two streams, the events that order
//! them with it, and the pinned memory that they copy from and to.

use std::ffi::c_void;
use std::sync::Arc;

use super::driver::Device;
use crate::error::Result;

/// Zeroed page-locked host memory; freed on drop.
#[derive(Debug)]
pub(crate) struct Pinned {
    device: Arc<Device>,
    data: *mut c_void,
}

// SAFETY: an address in host memory.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(super) fn zeroed(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let data = device.with(|active| active.allocate_pinned(bytes))?;
        // SAFETY: as many bytes, made just now.
        unsafe { data.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self {
            device: Arc::clone(device),
            data,
        })
    }

    pub(crate) fn data(&self) -> *mut c_void {
        self.data
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A failure is dropped: the device is then beyond use anyway.
        let _ = self.device.with(|active| {
            // SAFETY: made by `zeroed`; whoever drops it has waited for the lanes.
            unsafe { active.free_pinned(self.data) }
        });
    }
}

/// A point of the pipeline; of each slot of the staging memory the last one counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mark {
    /// The caller's stream has reached the call.
    Start,
    /// A slot has been filled.
    Loaded(usize),
    /// A slot's tensors have been stepped.
    Stepped(usize),
    /// What was stepped in a slot is back where it belongs.
    Stored(usize),
}

impl Mark {
    const COUNT: usize = 7;

    fn index(self) -> usize {
        match self {
            Self::Start => 0,
            Self::Loaded(slot) => 1 + slot,
            Self::Stepped(slot) => 3 + slot,
            Self::Stored(slot) => 5 + slot,
        }
    }
}

/// Two streams of their own, for what comes and what goes, so that both directions of the bus are
/// used at once; they are ordered with nothing but what they wait for.
#[derive(Debug)]
pub(crate) struct Lanes {
    device: Arc<Device>,
    streams: [*mut c_void; 2],
    events: [*mut c_void; Mark::COUNT],
}

// SAFETY: driver handles may be used from any thread.
unsafe impl Send for Lanes {}
// SAFETY: as above.
unsafe impl Sync for Lanes {}

impl Lanes {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self> {
        // Null until made, so that dropping destroys what there is.
        let mut lanes = Self {
            device: Arc::clone(device),
            streams: [std::ptr::null_mut(); 2],
            events: [std::ptr::null_mut(); Mark::COUNT],
        };
        device.with(|active| {
            for stream in &mut lanes.streams {
                *stream = active.create_stream()?;
            }
            for event in &mut lanes.events {
                *event = active.create_event()?;
            }
            Ok(())
        })?;
        Ok(lanes)
    }

    /// The stream of copies into the staging memory.
    pub(crate) fn load(&self) -> *mut c_void {
        self.streams[0]
    }

    /// The stream of copies back.
    pub(crate) fn store(&self) -> *mut c_void {
        self.streams[1]
    }

    /// Lets `mark` stand for what `stream` has got so far.
    ///
    /// # Safety
    /// `stream` is one of these or belongs to the device's primary context.
    pub(crate) unsafe fn record(&self, mark: Mark, stream: *mut c_void) -> Result<()> {
        // SAFETY: an event of these; the caller's promise.
        self.device
            .with(|active| unsafe { active.record(self.events[mark.index()], stream) })
    }

    /// Lets `stream` wait for `mark` as it was recorded last.
    ///
    /// # Safety
    /// As for [`Lanes::record`].
    pub(crate) unsafe fn wait(&self, stream: *mut c_void, mark: Mark) -> Result<()> {
        // SAFETY: as above.
        self.device
            .with(|active| unsafe { active.wait(stream, self.events[mark.index()]) })
    }

    /// Waits for `mark` on the host.
    pub(crate) fn wait_on_host(&self, mark: Mark) -> Result<()> {
        // SAFETY: an event of these.
        self.device
            .with(|active| unsafe { active.wait_on_host(self.events[mark.index()]) })
    }

    /// Enqueues a copy from device memory to host memory.
    ///
    /// # Safety
    /// Both ranges are valid until the work is done; `stream` as for [`Lanes::record`].
    pub(crate) unsafe fn to_host(
        &self,
        from: *const c_void,
        to: *mut c_void,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        self.device
            .with(|active| unsafe { active.copy_to_host(from.cast(), to.cast(), bytes, stream) })
    }

    /// Enqueues a copy from host memory to device memory.
    ///
    /// # Safety
    /// As for [`Lanes::to_host`].
    pub(crate) unsafe fn to_device(
        &self,
        from: *const c_void,
        to: *mut c_void,
        bytes: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        self.device
            .with(|active| unsafe { active.copy_from_host(from.cast(), to.cast(), bytes, stream) })
    }

    /// Waits on the host until `stream` has no work.
    pub(crate) fn synchronize(&self, stream: *mut c_void) -> Result<()> {
        self.device.with(|active| active.synchronize(stream))
    }

    /// Waits on the host until both streams, and `stream`, have no work. Failures are dropped: a
    /// device that fails here does no more work either.
    pub(crate) fn drain(&self, stream: Option<*mut c_void>) {
        for stream in self.streams.into_iter().chain(stream) {
            let _ = self.synchronize(stream);
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        let _ = self.device.with(|active| {
            for event in self.events.into_iter().filter(|event| !event.is_null()) {
                // SAFETY: made by `new`, used no more.
                let _ = unsafe { active.destroy_event(event) };
            }
            for stream in self.streams.into_iter().filter(|stream| !stream.is_null()) {
                // SAFETY: as above.
                let _ = unsafe { active.destroy_stream(stream) };
            }
            Ok(())
        });
    }
}
