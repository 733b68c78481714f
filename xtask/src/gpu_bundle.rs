//! `cargo xtask gpu-bundle`.

use crate::error::{Error, Result};
use crate::shell::Shell;

pub(crate) fn run(_sh: &Shell, _args: &[String]) -> Result<()> {
    Err(Error::failed("`cargo xtask gpu-bundle` is not written yet"))
}
