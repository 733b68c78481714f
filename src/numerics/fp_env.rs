//! Guards the rounding mode and the treatment of subnormals against the host's settings.
//!
//! XLA calls its CPU handlers with flush-to-zero and denormals-are-zero set, and threads made
//! there inherit both; either would change stored states. Inline assembly, because reading or
//! writing MXCSR through intrinsics is undefined behaviour in Rust.

#![expect(
    unsafe_code,
    reason = "control registers are reached by inline assembly only"
)]

/// While it lives, this thread computes by IEEE-754 defaults; dropping it restores the host's.
pub(crate) struct FpEnv {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    saved: Control,
}

#[cfg(target_arch = "x86_64")]
type Control = u32;
#[cfg(target_arch = "aarch64")]
type Control = u64;

impl FpEnv {
    /// Sets round-to-nearest-even with subnormals kept and exceptions masked.
    #[inline]
    pub(crate) fn ieee() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let saved = read();
            // All exceptions masked, sticky flags clear, nearest even, FTZ and DAZ off.
            write(0x1f80);
            Self { saved }
        }
        #[cfg(target_arch = "aarch64")]
        {
            let saved = read();
            write(0);
            Self { saved }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            Self {}
        }
    }
}

impl Drop for FpEnv {
    #[inline]
    fn drop(&mut self) {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        write(self.saved);
    }
}

// The asm blocks are not marked `nomem`: they may not be moved across the loads and stores of the
// tensors, which is what keeps the arithmetic between them.

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn read() -> Control {
    let mut value: Control = 0;
    // SAFETY: stmxcsr writes four bytes to a live local.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags));
    }
    value
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn write(value: Control) {
    // SAFETY: ldmxcsr reads four bytes of a live local; the value has no reserved bits, as it is
    // either the constant above or was read from the register.
    unsafe {
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, preserves_flags));
    }
}

#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn read() -> Control {
    let value: Control;
    // SAFETY: reads the calling thread's FPCR.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) value, options(nostack, preserves_flags)) };
    value
}

#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn write(value: Control) {
    // SAFETY: zero is the default environment; any other value was read from the register.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) value, options(nostack, preserves_flags)) };
}
