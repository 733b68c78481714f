//! Saving and loading the states of a 7 B model takes a few MiB besides the states.
//!
//! The states are 7 GB of addresses over 16 MiB of shared memory, and the file is a sparse one in
//! memory; what this process has besides is its anonymous and file pages, sampled at every report of
//! progress.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]
#![allow(unsafe_code, reason = "maps memory")]

mod common;

use std::ffi::c_void;
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::sync::Arc;

use lowbit::checkpoint::Checkpoint;
use lowbit::dtype::Dtype;
use lowbit::plan::{Plan, TensorInfo};
use lowbit::spec::Spec;
use lowbit::step::Buffer;
use lowbit::{Context, CpuContext, Variant};

const WINDOW: usize = 16 << 20;

/// The tensors of LLaMA-7B.
fn llama() -> Vec<TensorInfo> {
    let (width, hidden, vocabulary) = (4096, 11008, 32000);
    let mut shapes = vec![
        ("embed".to_owned(), vec![vocabulary, width]),
        ("head".to_owned(), vec![vocabulary, width]),
        ("norm".to_owned(), vec![width]),
    ];
    for layer in 0..32 {
        for part in ["q", "k", "v", "o"] {
            shapes.push((format!("{layer}.{part}"), vec![width, width]));
        }
        for part in ["gate", "up"] {
            shapes.push((format!("{layer}.{part}"), vec![hidden, width]));
        }
        shapes.push((format!("{layer}.down"), vec![width, hidden]));
        for part in ["norm1", "norm2"] {
            shapes.push((format!("{layer}.{part}"), vec![width]));
        }
    }
    shapes
        .into_iter()
        .map(|(name, shape)| TensorInfo::new(name, &shape, Dtype::Bf16))
        .collect()
}

fn memory_file() -> File {
    // SAFETY: a name that ends with NUL; the descriptor is nobody else's.
    unsafe {
        let fd = libc::memfd_create(c"lowbit".as_ptr(), 0);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    }
}

/// `bytes` of addresses over one window of memory.
fn window(bytes: usize) -> *mut u8 {
    let file = memory_file();
    file.set_len(WINDOW as u64).unwrap();
    let length = bytes.next_multiple_of(WINDOW);
    // SAFETY: new mappings; the second ones replace parts of the first.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let all = libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, flags, -1, 0);
        assert!(all != libc::MAP_FAILED);
        for at in (0..length).step_by(WINDOW) {
            let place = all.cast::<u8>().add(at).cast();
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            let mapped = libc::mmap(place, WINDOW, access, flags, file.as_raw_fd(), 0);
            assert!(mapped == place);
        }
        all.cast()
    }
}

/// Skips zeros.
struct Sparse(File);

impl Write for Sparse {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > 4096 && bytes.iter().all(|byte| *byte == 0) {
            self.0.seek(SeekFrom::Current(bytes.len() as i64))?;
            return Ok(bytes.len());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Anonymous and file pages of this process, in bytes.
fn own() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| -> usize {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let number = line.split_whitespace().nth(1).unwrap();
        number.parse::<usize>().unwrap() << 10
    };
    field("RssAnon:") + field("RssFile:")
}

#[test]
fn a_7b_state_is_saved_and_loaded_in_a_few_mib() {
    const MOST: usize = 64 << 20;
    let context = Arc::new(Context::Cpu(CpuContext::new(1, Variant::Auto).unwrap()));
    let plan = Plan::new(context, &Spec::preset("adamw4").unwrap(), llama()).unwrap();
    let bytes = usize::try_from(plan.arena_bytes()).unwrap();
    assert!(bytes > 6_900_000_000, "{bytes}");
    let start = window(bytes);
    let state: Vec<_> = plan
        .buffers()
        .iter()
        .map(|info| Buffer {
            data: start
                .wrapping_add(usize::try_from(info.arena_offset).unwrap())
                .cast::<c_void>(),
            bytes: info.bytes,
        })
        .collect();
    let before = own();
    let (mut peak, mut calls) = (0, 0);
    let mut sample = |_, _| {
        calls += 1;
        // A look takes as long as a MiB.
        if calls % 16 == 0 {
            peak = peak.max(own());
        }
        true
    };
    let mut out = Sparse(memory_file());
    // SAFETY: the memory was mapped above.
    unsafe {
        plan.write_checkpoint(&state, 1, &mut out, Some(&mut sample), std::ptr::null_mut())
            .unwrap();
    }
    let file = out.0;
    let length = file.metadata().unwrap().len();
    assert_eq!(length, plan.checkpoint_bytes(1).unwrap());
    let from = Checkpoint::of(Box::new(&file)).unwrap();
    // SAFETY: the memory was mapped above; that buffers share it is of no matter to a copy.
    unsafe {
        plan.read_checkpoint(
            &from,
            &state,
            false,
            Some(&mut sample),
            std::ptr::null_mut(),
        )
        .unwrap();
    }
    let extra = peak - before;
    println!(
        "{length} bytes saved and loaded, {} KiB besides the states",
        extra >> 10
    );
    assert!(calls > 10_000 && extra < MOST, "{extra} bytes");
}
