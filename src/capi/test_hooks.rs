//! Misbehaviour on request, for the tests of every binding. Not in releases, not in the header.

use super::guard::guard_handle;
use super::plan::lowbit_plan_t;
use super::types::lowbit_status_t;

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
