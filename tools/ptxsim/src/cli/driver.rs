//! `ptxsim driver`

use super::{Outcome, say};
use clap::Args;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The driver library, as cargo names it.
const LIBRARY: &str = "libptxsim_driver.so";
/// The names under which programs look for the driver.
const NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];

/// Puts the driver library where programs that call the CUDA driver find it
#[derive(Debug, Args)]
pub(super) struct Driver {
    /// A folder, made if absent, that gets libcuda.so and libcuda.so.1 as links to the library
    #[arg(long, value_name = "DIR")]
    install: PathBuf,
    /// The library [default: libptxsim_driver.so beside this executable]
    #[arg(long, value_name = "FILE")]
    library: Option<PathBuf>,
}

impl Driver {
    pub(super) fn run(self) -> Outcome {
        let library = match self.library {
            Some(file) => file.canonicalize().map_err(|e| format!("{}: {e}", file.display()))?,
            None => beside(&std::env::current_exe()?)?,
        };
        let dir = self.install;
        std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        for name in NAMES {
            link(&library, &dir.join(name))?;
        }
        let dir = dir.canonicalize()?;
        say(format_args!(
            "{} -> {}\nPrograms find it with:\n  export LD_LIBRARY_PATH={}",
            dir.join(NAMES[0]).display(),
            library.display(),
            dir.display()
        ));
        Ok(ExitCode::SUCCESS)
    }
}

/// The library in the executable's folder, or in the `deps` beside it, where cargo puts that of a test.
fn beside(executable: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let dir = executable.parent().unwrap_or(Path::new("."));
    let places = [dir.join(LIBRARY), dir.join("deps").join(LIBRARY)];
    match places.iter().find(|p| p.is_file()) {
        Some(found) => Ok(found.canonicalize()?),
        None => Err(format!(
            "{LIBRARY} is neither {} nor {}; build it with `cargo build --release -p ptxsim-driver`, or name it with \
             --library",
            places[0].display(),
            places[1].display()
        )
        .into()),
    }
}

/// Makes a link. An older one is replaced; anything else, a driver for instance, is left alone.
fn link(library: &Path, at: &Path) -> Result<(), Box<dyn Error>> {
    match at.symlink_metadata() {
        Ok(there) if there.is_symlink() => std::fs::remove_file(at)?,
        Ok(_) => return Err(format!("{} is there and is no link; it is left alone", at.display()).into()),
        Err(_) => {}
    }
    std::os::unix::fs::symlink(library, at).map_err(|e| format!("{}: {e}", at.display()).into())
}
