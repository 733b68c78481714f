//! Link settings of the shared library.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    link_settings(&out_dir)
}

fn link_settings(out_dir: &Path) -> Result<(), String> {
    let target = |key| env::var(key).unwrap_or_default();
    if target("CARGO_CFG_TARGET_OS") != "linux" {
        return Ok(());
    }
    // Only our own symbols leave the library, not the C symbols of its dependencies.
    println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    if target("CARGO_CFG_TARGET_ENV") != "gnu" {
        return Ok(());
    }
    // The unwinder is linked statically. Hosts that load with RTLD_DEEPBIND (Julia) would bind a
    // shared one to their own copy of libgcc_s, whose tables their JIT upsets: a panic on its way
    // to the guard at the C boundary would then abort the process. std asks for `-lgcc_s`; this
    // linker script, found first, answers with the static archives.
    let dir = out_dir.join("static-unwinder");
    let script = dir.join("libgcc_s.so");
    fs::create_dir_all(&dir)
        .and_then(|()| fs::write(&script, "GROUP ( -lgcc_eh -lgcc )\n"))
        .map_err(|error| format!("{}: {error}", script.display()))?;
    println!("cargo::rustc-link-search=native={}", dir.display());
    Ok(())
}
