//! Packages of Debian and its relatives.

use std::process::Command;

use crate::error::{Error, Result};
use crate::shell::{Shell, announce, find_program};

/// Checks that packages can be fetched and unpacked into a folder, for which nobody need be root.
/// Otherwise the error is `instead`: what is missing and what to do about it.
pub(crate) fn unpacks(instead: &str) -> Result<()> {
    if find_program("apt-get").is_none() || find_program("dpkg-deb").is_none() {
        return Err(Error::failed(instead));
    }
    Ok(())
}

/// Installs a package for the whole machine, if this may and can be done. Otherwise the error says
/// which package is missing and `why` it is needed.
pub(crate) fn install(sh: &Shell, package: &str, why: &str) -> Result<()> {
    let root = sh
        .read(Command::new("id").arg("-u"))
        .is_ok_and(|id| id == "0");
    if !root || find_program("apt-get").is_none() {
        return Err(Error::Failed(format!(
            "{why}: install the package `{package}` (`apt-get install {package}` on Debian and \
             Ubuntu) and run this again"
        )));
    }
    announce(&format!(
        "installing the package {package} on this machine: {why}"
    ));
    let apt = || {
        let mut command = Command::new("apt-get");
        // Wait for another apt instead of failing, and ask nothing.
        command.env("DEBIAN_FRONTEND", "noninteractive").args([
            "-q",
            "-y",
            "-o",
            "DPkg::Lock::Timeout=600",
        ]);
        command
    };
    sh.quiet(apt().arg("update"))?;
    sh.quiet(apt().args(["install", "--no-install-recommends", package]))
}
