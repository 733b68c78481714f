//! A small thread pool: one job at a time, indices handed out by a counter, no allocation per
//! job. Its threads are joined when the context is destroyed.
//!
//! A step is several jobs, of some hundred microseconds each where its tensors are small. To wake a thread takes
//! a good part of that, so threads look for what they wait for a while before they sleep.

#![expect(
    unsafe_code,
    reason = "a borrowed closure is lent to the workers while run() waits"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// The work of one index.
type Body<'a> = dyn Fn(i64) + Sync + 'a;

/// A job as the workers see it.
#[derive(Clone, Copy)]
struct Job {
    body: *const Body<'static>,
    count: i64,
}

// SAFETY: the pointer is only dereferenced while `Pool::run`, which owns the borrow, waits.
unsafe impl Send for Job {}

struct Shared {
    slot: Mutex<Slot>,
    wake: Condvar,
    done: Condvar,
    next: AtomicI64,
    panicked: AtomicBool,
    /// Rises with every job, so that a worker takes each job once. Changed with the slot locked.
    generation: AtomicU64,
    /// Workers that have not finished the current job.
    running: AtomicUsize,
    /// [`looks`].
    looks: u32,
}

impl Shared {
    /// Returns when something holds, or after a while.
    fn look_for(&self, holds: impl Fn() -> bool) {
        for _ in 0..self.looks {
            if holds() {
                return;
            }
            std::hint::spin_loop();
        }
    }
}

struct Slot {
    job: Option<Job>,
    stop: bool,
}

/// See the module's page.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the call that uses the workers; another call that comes meanwhile does its work on
    /// its own thread.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("workers", &self.workers.len())
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often threads look before they sleep, some 10 to 25 microseconds: no more than it takes to wake one, as
/// what they look for may wait for the processor that they look on. Where there are more of them than
/// processors it surely does.
fn looks(threads: usize) -> u32 {
    if threads <= processors() { 512 } else { 0 }
}

/// The processors that this process may use.
#[cfg(target_os = "linux")]
fn processors() -> usize {
    // Not std's `available_parallelism`, which reads files: where memory ends, it ends the process.
    // SAFETY: a set is bits, of which none need be set; it is as large as is said.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        match libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) {
            0 => usize::try_from(libc::CPU_COUNT(&set)).unwrap_or(1),
            _ => 1,
        }
    }
}

/// The processors of the machine.
#[cfg(not(target_os = "linux"))]
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Pool {
    /// A pool that works with `threads` threads, the caller's among them.
    pub(super) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            slot: Mutex::new(Slot {
                job: None,
                stop: false,
            }),
            wake: Condvar::new(),
            done: Condvar::new(),
            next: AtomicI64::new(0),
            panicked: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            looks: looks(threads),
        });
        let mut pool = Self {
            shared,
            workers: Vec::new(),
            turn: Mutex::new(()),
        };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("lowbit-{index}"))
                .spawn(move || work(&shared))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// How many threads work, the caller's among them.
    pub(super) fn threads(&self) -> usize {
        1 + self.workers.len()
    }

    /// Calls `body(0) … body(count - 1)`, each once, on any thread, and returns when all are done.
    pub(super) fn run(&self, count: i64, body: &Body<'_>) {
        let turn = self.turn.try_lock();
        if count <= 1 || self.workers.is_empty() || turn.is_err() {
            (0..count).for_each(body);
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; no worker holds the job when this function returns.
        let body_for_workers =
            unsafe { std::mem::transmute::<*const Body<'_>, *const Body<'static>>(body) };
        let job = Job {
            body: body_for_workers,
            count,
        };
        shared.next.store(0, Ordering::Relaxed);
        {
            let mut slot = lock(&shared.slot);
            slot.job = Some(job);
            shared.running.store(self.workers.len(), Ordering::Relaxed);
            shared.generation.fetch_add(1, Ordering::Release);
        }
        shared.wake.notify_all();
        let own = catch_unwind(AssertUnwindSafe(|| drain(shared, body, count)));
        let is_done = || shared.running.load(Ordering::Acquire) == 0;
        shared.look_for(is_done);
        let mut slot = lock(&shared.slot);
        while !is_done() {
            slot = shared
                .done
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
        slot.job = None;
        drop(slot);
        let worker_panicked = shared.panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!worker_panicked, "a worker thread panicked");
    }
}

fn drain(shared: &Shared, body: &Body<'_>, count: i64) {
    loop {
        let index = shared.next.fetch_add(1, Ordering::Relaxed);
        if index >= count {
            return;
        }
        body(index);
    }
}

fn work(shared: &Shared) {
    let mut seen = 0;
    loop {
        let is_new = || shared.generation.load(Ordering::Acquire) != seen;
        shared.look_for(is_new);
        let job = {
            let mut slot = lock(&shared.slot);
            while !is_new() && !slot.stop {
                slot = shared
                    .wake
                    .wait(slot)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if slot.stop {
                return;
            }
            seen = shared.generation.load(Ordering::Relaxed);
            slot.job
        };
        if let Some(job) = job {
            // SAFETY: `run` keeps the closure borrowed until `running` is 0, which is below.
            let body = unsafe { &*job.body };
            if catch_unwind(AssertUnwindSafe(|| drain(shared, body, job.count))).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        if shared.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The caller looks with the slot locked before it sleeps.
            let _slot = lock(&shared.slot);
            shared.done.notify_one();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.slot).stop = true;
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker cannot end by panic: its jobs are caught.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_runs_once_in_every_job() {
        let pool = Pool::new(4).unwrap();
        for count in [0, 1, 2, 7, 1000] {
            let hits: Vec<_> = (0..count).map(|_| AtomicI64::new(0)).collect();
            pool.run(count, &|i| {
                hits[usize::try_from(i).unwrap()].fetch_add(1, Ordering::Relaxed);
            });
            assert!(hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_in_a_job_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|i| assert!(i != 50, "planned"));
        }));
        assert!(panic.is_err());
        let sum = AtomicI64::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }

    #[test]
    fn a_second_caller_works_on_its_own_thread() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicI64::new(0);
        pool.run(4, &|_| {
            pool.run(5, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.load(Ordering::Relaxed), 40);
    }
}
