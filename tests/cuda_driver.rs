//! The CUDA backend against mock drivers: what goes wrong becomes a status and a text, never a
//! panic or a line on standard error; what goes right makes the driver calls it should, with the
//! bits of the reference.
//!
//! A mock is a `libcuda.so.1` on the search path of a child process: this program again, running
//! the one test [`child`].

#![expect(unsafe_code, reason = "steps on raw buffers; asks the mock driver")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};

use lowbit::dtype::Dtype;
use lowbit::plan::{Plan, TensorInfo};
use lowbit::spec::Spec;
use lowbit::state::State;
use lowbit::step::{Buffer, HyperSource, NonFinite, Stage, StepArgs};
use lowbit::{Context, CpuContext, CudaContext, Variant};

#[path = "cuda_driver/offload.rs"]
mod offload;
#[path = "cuda_driver/states.rs"]
mod states;

// ---- parents: which mock, what is expected -----------------------------------------------------

static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

/// A folder with a `libcuda.so.1`.
fn mock(name: &str, compiler: &str, args: &[&str], source: &Path) -> PathBuf {
    let dir = DIR.path().join(name);
    std::fs::create_dir(&dir).unwrap();
    let status = Command::new(compiler)
        .args(["-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"])
        .args(args)
        .arg("-o")
        .args([&dir.join("libcuda.so.1"), source])
        .status()
        .unwrap();
    assert!(status.success(), "{} does not compile", source.display());
    // The loader is asked for this name first, which a machine with a toolkit may have.
    std::os::unix::fs::symlink("libcuda.so.1", dir.join("libcuda.so")).unwrap();
    dir
}

static DRIVER: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let include = format!("-I{}", root.join("cuda").display());
    let args = [
        "-std=c++17",
        "-O1",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-U_FORTIFY_SOURCE",
        "-Wno-unknown-pragmas",
        &include,
    ];
    mock(
        "driver",
        "g++",
        &args,
        &root.join("tests/cuda/mock_driver.cpp"),
    )
});

/// A library that has the functions `names` and nothing else.
fn library_of(folder: &str, names: &[&str]) -> PathBuf {
    let source = DIR.path().join(format!("{folder}.c"));
    let functions = names
        .iter()
        .map(|name| format!("int {name}(void) {{ return 0; }}\n"));
    // A library must have something in it.
    std::fs::write(
        &source,
        functions.collect::<String>() + "int lowbit_mock;\n",
    )
    .unwrap();
    mock(folder, "cc", &[], &source)
}

/// Runs [`child`] with a mock; it prints one line, which is returned.
fn run(libraries: &Path, task: &str, variables: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env("LD_LIBRARY_PATH", libraries)
        .env("LOWBIT_MOCK_TASK", task)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "",
        "on standard error; standard output is {stdout}"
    );
    assert!(output.status.success(), "{stdout}");
    let (_, line) = stdout.split_once("child says: ").unwrap();
    line.lines().next().unwrap().to_owned()
}

fn assert_unavailable(line: &str, text: &str) {
    assert!(line.starts_with("CudaUnavailable: "), "{line}");
    assert!(line.contains(text), "{line}");
}

#[test]
fn driver_that_cannot_be_loaded_is_named() {
    // Without a driver on the machine an empty folder would do; these hide one that is there.
    let dir = DIR.path().join("absent");
    std::fs::create_dir(&dir).unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::fs::write(dir.join(name), "not a library").unwrap();
    }
    assert_unavailable(&run(&dir, "probe", &[]), "libcuda.so.1 was not found");
}

#[test]
fn library_without_symbols_is_refused() {
    let dir = library_of("empty", &[]);
    assert_unavailable(&run(&dir, "probe", &[]), "no symbol cu");
}

#[test]
fn missing_symbol_is_named_before_anything_is_called() {
    // A library with all that was asked for up to then: the next that is missing is named.
    let mut names: Vec<String> = Vec::new();
    loop {
        let listed: Vec<_> = names.iter().map(String::as_str).collect();
        let dir = library_of(&format!("{}_symbols", names.len()), &listed);
        let line = run(&dir, "probe", &[]);
        let Some((_, symbol)) = line.split_once("no symbol ") else {
            // `cuDriverGetVersion` returned 0 and stored nothing.
            assert_unavailable(&line, "is for CUDA 0.0");
            break;
        };
        names.push(symbol.to_owned());
    }
    assert!(names.len() > 20, "{names:?}");
}

#[test]
fn failures_of_the_driver_become_unavailable() {
    for (variable, value, text) in [
        (
            "MOCK_VERSION",
            "11040",
            "is for CUDA 11.4; the kernels need CUDA 12.1",
        ),
        (
            "MOCK_VERSION",
            "12000",
            "is for CUDA 12.0; the kernels need CUDA 12.1",
        ),
        (
            "MOCK_FAIL",
            "cuDriverGetVersion=999",
            "cuDriverGetVersion: CUDA error 999",
        ),
        ("MOCK_FAIL", "cuInit=100", "CUDA_ERROR_NO_DEVICE (100)"),
        ("MOCK_FAIL", "cuInit=34", "stub"),
        ("MOCK_FAIL", "cuInit=999", "cuInit: CUDA error 999"),
        ("MOCK_COUNT", "0", "no device"),
        (
            "MOCK_MAJOR",
            "7",
            "compute capability 7.0; the kernels need 8.0",
        ),
    ] {
        for task in ["probe", "open"] {
            assert_unavailable(&run(&DRIVER, task, &[(variable, value)]), text);
        }
    }
    let line = run(&DRIVER, "step", &[("MOCK_FAIL", "cuModuleLoadDataEx=222")]);
    assert_unavailable(&line, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)");
    assert!(
        line.ends_with("line 1; a message of the assembler"),
        "{line}"
    );
}

#[test]
fn device_that_does_not_exist_is_an_invalid_argument() {
    for device in ["1", "-1"] {
        let line = run(&DRIVER, "probe", &[("LOWBIT_MOCK_DEVICE", device)]);
        assert_eq!(
            line,
            format!("InvalidArgument: device is {device}; there are 1, counted from 0")
        );
    }
}

#[test]
fn opening_and_closing_leaves_the_callers_context_current() {
    assert_eq!(run(&DRIVER, "open", &[]), "ok");
}

#[test]
fn step_makes_no_calls_but_launches_and_equals_the_reference() {
    for preset in ["adamw4-block", "adamw4", "adamw4-robust"] {
        // Code for its architecture, and PTX where there is none.
        for major in ["9", "13"] {
            let variables = [("MOCK_MAJOR", major), ("LOWBIT_MOCK_PRESET", preset)];
            assert_eq!(run(&DRIVER, "step", &variables), "ok");
        }
    }
}

#[test]
fn failures_of_calls_are_statuses() {
    for (fail, line) in [
        (
            "cuLaunchKernel=700",
            "CudaError: launch (or earlier work on the device): cuLaunchKernel: \
             CUDA_ERROR_ILLEGAL_ADDRESS (700): the mock was asked to fail",
        ),
        ("cuMemAllocAsync=2", "CudaOutOfMemory: "),
        ("cuMemsetD8Async=700", "CudaError: cuMemsetD8Async: "),
        ("cuCtxPushCurrent_v2=700", "CudaError: cuCtxPushCurrent: "),
    ] {
        let said = run(&DRIVER, "step", &[("MOCK_FAIL", fail)]);
        assert!(said.starts_with(line), "{fail}: {said}");
    }
}

// ---- the child ---------------------------------------------------------------------------------

#[test]
fn child() {
    let Ok(task) = std::env::var("LOWBIT_MOCK_TASK") else {
        return;
    };
    let device = std::env::var("LOWBIT_MOCK_DEVICE").map_or(0, |text| text.parse().unwrap());
    let result = match task.as_str() {
        // The context is where the search for a driver is seen from.
        "probe" => CudaContext::new(device).map(drop),
        "open" => with_caller_context(|| CudaContext::new(device).map(drop)),
        offload if offload.starts_with("offload") => {
            with_caller_context(|| self::offload::child(offload))
        }
        states if states.starts_with("states") => {
            with_caller_context(|| self::states::child(states))
        }
        _ => with_caller_context(step),
    };
    match result {
        Ok(()) => println!("child says: ok"),
        Err(error) => println!("child says: {:?}: {error}", error.status()),
    }
}

/// What the mock tells about itself.
struct Mock {
    calls: unsafe extern "C" fn() -> *const c_char,
    forget_calls: unsafe extern "C" fn(),
    last_stream: unsafe extern "C" fn() -> *mut c_void,
    current_context: unsafe extern "C" fn() -> *mut c_void,
    set_context: unsafe extern "C" fn(*mut c_void),
    /// Streams, events and pieces of pinned memory that were not given back.
    left: unsafe extern "C" fn() -> i32,
    /// Copies bytes to memory in the order of a stream.
    copy: unsafe extern "C" fn(*mut c_void, *const c_void, usize, *mut c_void),
    /// `cuStreamSynchronize`.
    synchronize: unsafe extern "C" fn(*mut c_void) -> i32,
}

static MOCK: LazyLock<Mock> = LazyLock::new(|| {
    // SAFETY: the mock is on the search path; the types are those of mock_driver.cpp.
    unsafe {
        let handle = libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null());
        let symbol = |name: &CStr| {
            let address = libc::dlsym(handle, name.as_ptr());
            assert!(!address.is_null(), "no symbol {name:?}");
            address
        };
        Mock {
            calls: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(
                symbol(c"mock_calls"),
            ),
            forget_calls: std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(symbol(
                c"mock_forget_calls",
            )),
            last_stream: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *mut c_void>(
                symbol(c"mock_last_stream"),
            ),
            current_context: std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn() -> *mut c_void,
            >(symbol(c"mock_current_context")),
            left: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> i32>(symbol(
                c"mock_left",
            )),
            copy: std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*mut c_void, *const c_void, usize, *mut c_void),
            >(symbol(c"mock_copy")),
            synchronize: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> i32>(
                symbol(c"cuStreamSynchronize"),
            ),
            set_context: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(
                symbol(c"mock_set_context"),
            ),
        }
    }
});

/// Some addresses that are only compared.
fn caller_context() -> *mut c_void {
    std::ptr::without_provenance_mut(0xc0)
}

fn stream() -> *mut c_void {
    std::ptr::without_provenance_mut(0x57)
}

/// The caller's context is current before and must be after.
fn with_caller_context<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: functions of the mock.
    unsafe {
        (MOCK.set_context)(caller_context());
        let result = body();
        assert_eq!((MOCK.current_context)(), caller_context());
        result
    }
}

/// The driver calls that `body` makes.
fn calls<T>(body: impl FnOnce() -> T) -> (T, String) {
    // SAFETY: functions of the mock.
    unsafe {
        (MOCK.forget_calls)();
        let result = body();
        let calls = CStr::from_ptr((MOCK.calls)()).to_str().unwrap();
        (result, calls.trim().to_owned())
    }
}

/// Three steps of two tensors, of which one has f32 states, on the mock and on the CPU.
fn step() -> lowbit::error::Result<()> {
    let cuda = Arc::new(Context::Cuda(CudaContext::new(0)?));
    let cpu = CpuContext::new(1, Variant::Reference)?;
    let preset = std::env::var("LOWBIT_MOCK_PRESET").unwrap_or("adamw4-block".into());
    let spec = Spec::preset(&preset)?;
    // What a step and its collecting stage call, and what they skip of a gradient that has a NaN.
    let fused = ["adamw4", "adamw4-robust"].contains(&preset.as_str());
    let (step_calls, collect_calls, skipped_in_all) = if fused {
        let step = "cuMemsetD8Async cuLaunchKernel cuLaunchKernel cuLaunchKernel";
        (step, "cuMemsetD8Async cuLaunchKernel", [0, 3])
    } else {
        ("cuLaunchKernel cuLaunchKernel", "cuMemsetD8Async", [1, 2])
    };
    let in_context = |calls: &str| format!("cuCtxPushCurrent_v2 {calls} cuCtxPopCurrent_v2");
    let plan = |context: Arc<Context>| {
        let tensors = [("w", vec![25, 202]), ("b", vec![101])].map(|(name, shape)| TensorInfo {
            grad_dtype: Dtype::F32,
            ..TensorInfo::new(name, &shape, Dtype::Bf16)
        });
        Plan::new(context, &spec, tensors.into())
    };
    let numels = [5050_i64, 101];
    // Counters of skipped blocks and tensors, parameters and state bytes of either side.
    let mut results = Vec::new();
    for plan in [plan(cuda)?, plan(Arc::new(Context::Cpu(cpu)))?] {
        let on_device = results.is_empty();
        let expect_calls = |got: &str, want: &str| {
            assert_eq!(got, if on_device { want } else { "" });
        };
        let (state, made) = calls(|| State::new(&plan, stream()));
        let state = state?;
        expect_calls(
            &made,
            "cuCtxPushCurrent_v2 cuMemAllocAsync cuMemsetD8Async cuCtxPopCurrent_v2",
        );
        let mut params =
            numels.map(|n| (0..n).map(|i| (i * 37) as u16 & 0xbfff).collect::<Vec<_>>());
        let mut skipped = [0_i64; 2];
        for t in 1..=3 {
            let mut grads = numels.map(|n| {
                let value = |i: i64| ((i * 7919 + t * 31) % 2003 - 1001) as f32 * 1e-4;
                (0..n).map(value).collect::<Vec<_>>()
            });
            if t == 2 {
                grads[0][777] = f32::NAN;
            }
            let mut hyper = [1e-2, 0.9, 0.99, 1e-8, 0.1, 0.5, 0.5, 0.0_f32];
            hyper[7] = f32::from(u8::from(t == 3));
            let step = t as i32;
            let mut scratch = vec![0_i64; plan.scratch_bytes() as usize / 8];
            let param_buffers = params.each_mut().map(|values| Buffer {
                data: values.as_mut_ptr().cast(),
                bytes: 2 * values.len() as i64,
            });
            let grad_buffers = grads.each_mut().map(|values| Buffer {
                data: values.as_mut_ptr().cast(),
                bytes: 4 * values.len() as i64,
            });
            let args = StepArgs {
                params: &param_buffers,
                grads: &grad_buffers,
                updates: None,
                state: state.buffers(),
                scratch: Buffer {
                    data: scratch.as_mut_ptr().cast(),
                    bytes: 8 * scratch.len() as i64,
                },
                hyper: HyperSource::Memory {
                    hyper: hyper.as_ptr(),
                    step: &raw const step,
                },
                nonfinite: NonFinite::Default,
                offsets: None,
                skipped: skipped.as_mut_ptr(),
            };
            // SAFETY: live host memory, which is what the mock's device has too.
            let (done, made) = calls(|| unsafe { plan.step(&args, Stage::All, stream()) });
            done?;
            expect_calls(&made, &in_context(step_calls));
            // SAFETY: as above.
            let (done, made) = calls(|| unsafe { plan.step(&args, Stage::Collect(0), stream()) });
            done?;
            expect_calls(&made, &in_context(collect_calls));
            if on_device {
                // SAFETY: a function of the mock.
                assert_eq!(unsafe { (MOCK.last_stream)() }, stream());
            }
        }
        let bytes: Vec<u8> = state
            .buffers()
            .iter()
            // SAFETY: the state's own memory.
            .flat_map(|buffer| unsafe {
                std::slice::from_raw_parts(buffer.data.cast::<u8>(), buffer.bytes as usize)
            })
            .copied()
            .collect();
        results.push((skipped, params, bytes));
        let ((), made) = calls(|| state.destroy(stream()));
        expect_calls(
            &made,
            "cuCtxPushCurrent_v2 cuMemFreeAsync cuCtxPopCurrent_v2",
        );
    }
    assert_eq!(results[0].0, skipped_in_all);
    assert!(results[0] == results[1], "the bits differ");
    Ok(())
}
