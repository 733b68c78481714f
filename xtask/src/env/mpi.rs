//! MPI: the machine's own, or else Debian's OpenMPI.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Install, apt, script};
use crate::error::Result;
use crate::shell::{Shell, find_program};

/// The recipe is the stamp as well: another recipe is another install.
const RECIPE: &str = concat!(
    include_str!("../../scripts/mpi.sh"),
    include_str!("../../scripts/apt.sh")
);

/// The two programs that trainers with MPI are made and started by.
pub(crate) struct Mpi {
    /// A C++ compiler that finds MPI's headers and libraries.
    pub(crate) compiler: PathBuf,
    pub(crate) launcher: PathBuf,
}

impl Mpi {
    /// Returns a command that starts so many processes, to which the caller adds what.
    pub(crate) fn run(&self, processes: u32) -> Command {
        let mut command = Command::new(&self.launcher);
        command.args(["-np", &processes.to_string()]);
        // OpenMPI asks twice whether root may, and for leave to start more processes than cores.
        command
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
            .env("OMPI_MCA_mpi_yield_when_idle", "1")
            .env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe");
        command
    }

    fn in_folder(bin: &Path) -> Self {
        Self {
            compiler: bin.join("mpicxx"),
            launcher: bin.join("mpirun"),
        }
    }

    fn works(&self, sh: &Shell) -> Result<()> {
        sh.read(Command::new(&self.compiler).arg("--version"))?;
        sh.read(self.run(2).arg("true")).map(drop)
    }
}

/// Returns a compiler and a launcher.
pub(crate) fn ensure(sh: &Shell) -> Result<Mpi> {
    if let (Some(compiler), Some(launcher)) = (find_program("mpicxx"), find_program("mpirun")) {
        let mpi = Mpi { compiler, launcher };
        if mpi.works(sh).is_ok() {
            return Ok(mpi);
        }
    }
    apt::unpacks(
        "no working mpicxx and mpirun on PATH, and no apt-get to fetch Debian's with: install \
        an MPI and run this again",
    )?;
    let install = Install {
        name: "mpi",
        what: "Debian's OpenMPI 4.1 (6 MB from the machine's Debian mirror, 25 MB on disk)",
        stamp: RECIPE,
    };
    let dir = install.ensure(
        sh,
        |dir| script(sh, "mpi.sh", dir),
        |dir| Mpi::in_folder(&dir.join("bin")).works(sh),
    )?;
    Ok(Mpi::in_folder(&dir.join("bin")))
}
