//! CMake and pkg-config, packages of every Linux distribution.

use std::path::PathBuf;

use super::apt;
use crate::error::{Error, Result};
use crate::shell::{Shell, find_program};

/// Returns `cmake`, and sees to `pkg-config`.
pub(crate) fn ensure(sh: &Shell) -> Result<PathBuf> {
    let why = "the tests of the installed package need CMake and pkg-config (90 MB)";
    for program in ["cmake", "pkg-config"] {
        if find_program(program).is_none() {
            apt::install(sh, program, why)?;
        }
    }
    find_program("cmake").ok_or_else(|| Error::failed("cmake is installed but not on PATH"))
}
