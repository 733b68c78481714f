//! `cargo xtask header`.

use crate::error::{Error, Result};
use crate::shell::Shell;

pub(crate) fn run(_sh: &Shell, _args: &[String]) -> Result<()> {
    Err(Error::failed("`cargo xtask header` is not written yet"))
}
