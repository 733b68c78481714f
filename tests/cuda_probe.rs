//! Drivers that cannot be used: each gives CUDA_UNAVAILABLE and the reason, never a panic, and
//! nothing is printed. A process of its own loads each mock as `libcuda.so.1`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

use std::path::Path;
use std::process::Command;

use lowbit::CudaContext;

/// Set in the process that loads the mock.
const CHILD: &str = "LOWBIT_TEST_PROBE";

#[test]
fn a_driver_that_cannot_be_used_is_a_status_with_a_reason() {
    if std::env::var_os(CHILD).is_some() {
        match CudaContext::new(0) {
            Ok(_) => println!("opened"),
            Err(error) => println!("{:?}: {error}", error.status()),
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let whole = folder.path().join("whole");
    let compile = |source: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        let status = Command::new("g++")
            .args(["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared"])
            .arg("-I")
            .arg(root.join("cuda"))
            .arg(source)
            .arg("-o")
            .arg(to.join("libcuda.so.1"))
            .arg("-ldl")
            .status()
            .unwrap();
        assert!(status.success());
    };
    compile(&root.join("tests/cuda/mock_driver.cpp"), &whole);
    // A library of that name with one symbol.
    let source = folder.path().join("stub.cpp");
    std::fs::write(&source, "extern \"C\" int cuInit(unsigned) { return 0; }\n").unwrap();
    let stub = folder.path().join("stub");
    compile(&source, &stub);

    let empty = folder.path().to_path_buf();
    for (what, library, environment, reason) in [
        ("no libcuda", &empty, None, "libcuda"),
        ("missing symbols", &stub, None, "cu"),
        ("no device", &whole, Some(("MOCK_FAIL", "cuInit=100")), ""),
        (
            "stub library",
            &whole,
            Some(("MOCK_FAIL", "cuInit=34")),
            "stub",
        ),
        ("no devices", &whole, Some(("MOCK_COUNT", "0")), "device"),
        (
            "driver too old",
            &whole,
            Some(("MOCK_VERSION", "11040")),
            "11.4",
        ),
        ("device too old", &whole, Some(("MOCK_MAJOR", "7")), "7."),
    ] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "--nocapture", "-q"])
            .arg("a_driver_that_cannot_be_used_is_a_status_with_a_reason")
            .env(CHILD, "1")
            .env("LD_LIBRARY_PATH", library);
        if let Some((name, value)) = environment {
            child.env(name, value);
        }
        let output = child.output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let line = stdout
            .lines()
            .find(|line| line.starts_with("CudaUnavailable: "));
        println!("{what}: {}", line.unwrap_or("?"));
        assert!(output.status.success(), "{what}: {stdout}");
        assert!(
            line.is_some_and(|line| line.contains(reason)),
            "{what}: {stdout}"
        );
        assert!(
            output.stderr.is_empty(),
            "{what}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
