//! Builds the shared library as its users get it: release profile, from the working tree. One with other
//! features has a target folder of its own, as it has the same name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What one build leaves.
#[allow(dead_code, reason = "tests/abi.rs needs the shared library only")]
pub(crate) struct Library {
    pub(crate) shared: PathBuf,
    #[allow(dead_code, reason = "tests/abi.rs links nothing")]
    pub(crate) archive: PathBuf,
}

/// Without features: what is released.
pub(crate) fn released() -> &'static Library {
    static BUILT: OnceLock<Library> = OnceLock::new();
    BUILT.get_or_init(|| build("", &[]))
}

/// With the functions that misbehave on request.
#[allow(dead_code, reason = "tests/abi.rs needs what is released only")]
pub(crate) fn with_test_hooks() -> &'static Library {
    static BUILT: OnceLock<Library> = OnceLock::new();
    BUILT.get_or_init(|| build("capi-hooks", &["--features", "test-hooks"]))
}

/// In a folder of the target folder, or in that itself, where it usually lies already.
fn build(folder: &str, arguments: &[&str]) -> Library {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let target = tmp.parent().unwrap().join(folder);
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--release", "--package", "lowbit", "--lib"])
        .arg("--target-dir")
        .arg(&target)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("CARGO_BUILD_TARGET");
    let output = cargo.output().unwrap();
    assert!(
        output.status.success(),
        "{cargo:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let release = target.join("release");
    Library {
        shared: release.join("liblowbit.so"),
        archive: release.join("liblowbit.a"),
    }
}
