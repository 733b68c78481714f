//! `cargo xtask demo`.

use crate::error::{Error, Result};
use crate::shell::Shell;

pub(crate) fn run(_sh: &Shell, _args: &[String]) -> Result<()> {
    Err(Error::failed("`cargo xtask demo` is not written yet"))
}
