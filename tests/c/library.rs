//! Builds the shared library as its users get it: release profile, from the working tree. In target
//! folders of their own, so that neither a debug build nor one with other features is ever taken
//! for it.

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
    BUILT.get_or_init(|| build("capi", &[]))
}

/// With the functions that misbehave on request.
#[allow(dead_code, reason = "tests/abi.rs needs what is released only")]
pub(crate) fn with_test_hooks() -> &'static Library {
    static BUILT: OnceLock<Library> = OnceLock::new();
    BUILT.get_or_init(|| build("capi-hooks", &["--features", "test-hooks"]))
}

fn build(folder: &str, arguments: &[&str]) -> Library {
    // .../target/tmp -> .../target/<folder>
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name(folder);
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
