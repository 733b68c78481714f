//! Valgrind, a package of every Linux distribution.

use std::path::PathBuf;

use super::apt;
use crate::error::{Error, Result};
use crate::shell::{Shell, find_program};

/// Returns `valgrind`.
pub(crate) fn ensure(sh: &Shell) -> Result<PathBuf> {
    if let Some(path) = find_program("valgrind") {
        return Ok(path);
    }
    apt::install(sh, "valgrind", "the memory checks need Valgrind (90 MB)")?;
    find_program("valgrind").ok_or_else(|| Error::failed("valgrind is installed but not on PATH"))
}
