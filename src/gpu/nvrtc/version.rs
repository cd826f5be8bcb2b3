//! Which versions of NVRTC, driver and architecture go together.

use crate::error::{Error, Result};
use crate::gpu::Arch;

/// The oldest NVRTC that dtk's kernels are written for: C++17 and every instruction of sm_90a.
pub(super) const OLDEST: (u32, u32) = (12, 0);

/// Why a version is too old; `None` if it is not.
pub(super) fn too_old(version: (u32, u32)) -> Option<String> {
    let ((major, minor), (oldest, from)) = (version, OLDEST);
    (version < OLDEST)
        .then(|| format!("NVRTC {major}.{minor} is too old: {oldest}.{from} or later is needed"))
}

/// Checks that a version compiles for an architecture. `supported` are ten times the compute capabilities it knows.
pub(super) fn check_arch((major, minor): (u32, u32), supported: &[u32], arch: Arch) -> Result<()> {
    if supported.contains(&arch.number()) {
        return Ok(());
    }
    let known: Vec<String> = supported.iter().map(|a| format!("sm_{a}")).collect();
    let e = Error::device(format!(
        "NVRTC {major}.{minor} does not compile for {arch}; it knows {}",
        known.join(", ")
    ));
    let newer = supported.iter().max().is_some_and(|&most| arch.number() > most);
    Err(e.with_remedy(if newer {
        "install a newer NVRTC (`pip install nvidia-cuda-nvrtc`) and let DTK_NVRTC_DIR name its folder"
    } else {
        "install an NVRTC that still has this architecture and let DTK_NVRTC_DIR name its folder"
    }))
}

/// Checks that a driver loads what an NVRTC makes: machine code runs on drivers of the same major version of CUDA, whatever
/// the minor one, and on later ones. `driver` is the highest version of CUDA that the driver knows.
pub(crate) fn check_driver(driver: (u32, u32), nvrtc: (u32, u32)) -> Result<()> {
    if driver.0 >= nvrtc.0 {
        return Ok(());
    }
    Err(Error::device(format!(
        "the driver knows CUDA {}.{}, but NVRTC {}.{} makes kernels for CUDA {}.0 and later",
        driver.0, driver.1, nvrtc.0, nvrtc.1, nvrtc.0
    ))
    .with_remedy(format!(
        "update the driver (CUDA {} needs {}), or install NVRTC {} (`pip install nvidia-cuda-nvrtc-cu{}`) and let \
         DTK_NVRTC_DIR name its folder",
        nvrtc.0,
        if nvrtc.0 == 13 { "580 or later" } else { "a later one" },
        driver.0,
        driver.0
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_are_refused() {
        for (version, fine) in [
            ((11, 8), false),
            ((9, 0), false),
            ((12, 0), true),
            ((12, 9), true),
            ((13, 0), true),
            ((14, 2), true),
        ] {
            assert_eq!(too_old(version).is_none(), fine, "{version:?}");
        }
        let why = too_old((11, 8)).unwrap();
        assert!(why.contains("11.8") && why.contains("12.0"), "{why}");
    }

    #[test]
    fn architectures_that_a_version_does_not_know() {
        let known = [75, 80, 86, 90];
        assert!(check_arch((12, 0), &known, Arch::Sm80).is_ok());
        assert!(check_arch((12, 0), &known, Arch::Sm90a).is_ok());
        let e = check_arch((12, 0), &known, Arch::Other(10, 0)).unwrap_err().to_string();
        assert!(e.contains("12.0") && e.contains("sm_100") && e.contains("newer NVRTC"), "{e}");
        let e = check_arch((14, 0), &[90, 100], Arch::Sm80).unwrap_err().to_string();
        assert!(e.contains("sm_80") && e.contains("still has"), "{e}");
    }

    #[test]
    fn drivers_load_kernels_of_their_own_major_version_and_before() {
        for (driver, nvrtc, fine) in [
            ((13, 0), (13, 0), true),
            ((13, 0), (13, 5), true),
            ((13, 1), (12, 2), true),
            ((12, 9), (13, 0), false),
            ((12, 2), (12, 8), true),
            ((11, 8), (12, 0), false),
        ] {
            assert_eq!(check_driver(driver, nvrtc).is_ok(), fine, "{driver:?} {nvrtc:?}");
        }
        let e = check_driver((12, 4), (13, 0)).unwrap_err().to_string();
        assert!(e.contains("CUDA 12.4") && e.contains("580") && e.contains("nvidia-cuda-nvrtc-cu12"), "{e}");
    }
}
