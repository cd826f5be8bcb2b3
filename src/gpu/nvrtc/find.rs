//! Where NVRTC is looked for.

use super::Nvrtc;
use super::api::Api;
use super::version::too_old;
use crate::error::{Error, Result};
use crate::gpu::library;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// How to get NVRTC where there is none.
const REMEDY: &str = "install it with `pip install 'nvidia-cuda-nvrtc==13.0.*'` into a .venv at or above the working folder, \
                      or with the CUDA toolkit (`apt install cuda-nvrtc-13-0` from NVIDIA's repository), or let DTK_NVRTC_DIR \
                      name a folder that holds libnvrtc.so";

/// What of the environment decides where to look.
#[derive(Debug, Default)]
struct Surroundings {
    /// `DTK_NVRTC_DIR`
    forced: Option<PathBuf>,
    /// `CUDA_HOME`, `CUDA_PATH`
    homes: Vec<PathBuf>,
    /// Where `/usr/local/cuda*` are.
    local: PathBuf,
    /// `VIRTUAL_ENV`
    venv: Option<PathBuf>,
    /// The working folder.
    here: Option<PathBuf>,
}

impl Surroundings {
    fn of_process() -> Self {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Surroundings {
            forced: var("DTK_NVRTC_DIR"),
            homes: ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(var).collect(),
            local: "/usr/local".into(),
            venv: var("VIRTUAL_ENV"),
            here: std::env::current_dir().ok(),
        }
    }

    /// Toolkits, then what the system's loader finds, then Python packages.
    fn places(&self) -> Vec<Place> {
        let mut toolkits: Vec<PathBuf> = self.homes.iter().map(|h| h.join("lib64")).collect();
        toolkits.push(self.local.join("cuda/lib64"));
        toolkits.extend(versions(&self.local, "cuda-").into_iter().map(|d| d.join("lib64")));
        let mut places: Vec<Place> = toolkits.into_iter().map(Place::Folder).collect();
        places.extend(["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"].map(Place::Loader));
        let above = self.here.iter().flat_map(|h| h.ancestors()).map(|d| d.join(".venv"));
        for venv in self.venv.iter().cloned().chain(above) {
            for python in versions(&venv.join("lib"), "python3.") {
                for package in ["cu13", "cuda_nvrtc"] {
                    let dir = python.join("site-packages/nvidia").join(package).join("lib");
                    if dir.is_dir() {
                        places.push(Place::Folder(dir));
                    }
                }
            }
        }
        places
    }
}

enum Place {
    Folder(PathBuf),
    /// A name that the system's loader looks up, with `LD_LIBRARY_PATH`.
    Loader(&'static str),
}

/// NVRTC, loaded at the first call that finds one.
pub(super) fn find() -> Result<&'static Nvrtc> {
    static FOUND: OnceLock<Nvrtc> = OnceLock::new();
    match FOUND.get() {
        Some(nvrtc) => Ok(nvrtc),
        None => search(&Surroundings::of_process()).map(|nvrtc| FOUND.get_or_init(|| nvrtc)),
    }
}

fn search(around: &Surroundings) -> Result<Nvrtc> {
    let mut looked = Vec::new();
    let places = match &around.forced {
        // Falling back to another one would hide the mistake.
        Some(dir) => vec![Place::Folder(dir.clone())],
        None => around.places(),
    };
    for place in places {
        let (name, found) = match &place {
            Place::Folder(dir) => (dir.display().to_string(), from_folder(dir)),
            Place::Loader(name) => (format!("{name} by the system's loader"), from_loader(name)),
        };
        match found.and_then(|api| too_old(api.version).map_or(Ok(api), Err)) {
            Ok(api) => return Ok(Nvrtc { api }),
            Err(why) => looked.push(format!("\n  {name}: {why}")),
        }
    }
    let what = if around.forced.is_some() { "as DTK_NVRTC_DIR says, in" } else { "in" };
    Err(Error::device(format!(
        "NVRTC, the CUDA run-time compiler, is missing: looked {what}{}",
        looked.concat()
    ))
    .with_remedy(REMEDY))
}

fn from_folder(dir: &Path) -> Result<Api, String> {
    let dir = dir.canonicalize().map_err(|_| "no such folder".to_string())?;
    let file = newest(&dir, "libnvrtc.so").ok_or("no libnvrtc.so in it")?;
    // NVRTC opens its builtins by bare name, which the system's loader knows once they are loaded.
    if let Some(builtins) = newest(&dir, "libnvrtc-builtins.so") {
        library::open(builtins.as_os_str())?;
    }
    Api::new(library::open(file.as_os_str())?, file)
}

fn from_loader(name: &str) -> Result<Api, String> {
    let library = library::open(OsStr::new(name)).map_err(|_| "not found".to_string())?;
    let path = library::address(library, "nvrtcVersion").and_then(library::file_of);
    Api::new(library, path.unwrap_or_else(|| name.into()))
}

/// The file `stem`, or `stem.13.0` and so on, with the highest number.
fn newest(dir: &Path, stem: &str) -> Option<PathBuf> {
    let version = |name: &str| {
        let rest = name.strip_prefix(stem)?;
        if rest.is_empty() { Some(Vec::new()) } else { numbers(rest.strip_prefix('.')?) }
    };
    highest(dir, version).pop()
}

/// The folders whose names are a prefix and a version, the newest first.
fn versions(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found = highest(dir, |name| numbers(name.strip_prefix(prefix)?));
    found.reverse();
    found
}

/// The entries of a folder whose names have a version, the newest last.
fn highest(dir: &Path, version: impl Fn(&str) -> Option<Vec<u32>>) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<(Vec<u32>, PathBuf)> =
        entries.filter_map(|e| Some((version(e.file_name().to_str()?)?, e.path()))).collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// `13.0.1` as numbers.
fn numbers(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "no library").unwrap();
        }
    }

    #[test]
    fn the_newest_file_of_a_folder_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        touch(
            dir.path(),
            &["libx.so.9.2", "libx.so.13.0", "libx.alt.so.14", "libx.so.15.bak", "libxy.so.16"],
        );
        assert_eq!(newest(dir.path(), "libx.so"), Some(dir.path().join("libx.so.13.0")));
        touch(dir.path(), &["libz.so"]);
        assert_eq!(newest(dir.path(), "libz.so"), Some(dir.path().join("libz.so")));
        assert_eq!(newest(dir.path(), "liby.so"), None);
    }

    #[test]
    fn the_order_of_places() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        touch(
            dir.path(),
            &[
                "local/cuda-12.9/lib64/x",
                "local/cuda-13.0/lib64/x",
                "active/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib/x",
                "work/.venv/lib/python3.9/site-packages/nvidia/cu13/lib/x",
                "work/.venv/lib/python3.11/site-packages/nvidia/cu13/lib/x",
            ],
        );
        let around = Surroundings {
            forced: None,
            homes: vec![at("home")],
            local: at("local"),
            venv: Some(at("active")),
            here: Some(at("work/deep/down")),
        };
        let packages = |venv: &str, python: &str, package: &str| {
            at(&format!("{venv}/lib/{python}/site-packages/nvidia/{package}/lib"))
        };
        let mut loaders = 0;
        let folders: Vec<PathBuf> = around
            .places()
            .into_iter()
            .filter_map(|p| match p {
                Place::Folder(dir) => Some(dir),
                Place::Loader(_) => {
                    loaders += 1;
                    None
                }
            })
            .filter(|p| p.starts_with(dir.path()))
            .collect();
        assert_eq!(loaders, 3);
        assert_eq!(
            folders,
            [
                at("home/lib64"),
                at("local/cuda/lib64"),
                at("local/cuda-13.0/lib64"),
                at("local/cuda-12.9/lib64"),
                packages("active", "python3.12", "cuda_nvrtc"),
                packages("work/.venv", "python3.11", "cu13"),
                packages("work/.venv", "python3.9", "cu13"),
            ]
        );
    }

    #[test]
    fn a_forced_folder_has_to_hold_a_library() {
        let dir = tempfile::tempdir().unwrap();
        let search = |name: &str| {
            let forced = Some(dir.path().join(name));
            let e = search(&Surroundings { forced, ..Surroundings::default() }).err().unwrap();
            assert!(e.is_device() && e.remedy().unwrap().contains("DTK_NVRTC_DIR"), "{e}");
            assert!(
                e.remedy().unwrap().contains("pip install") && e.remedy().unwrap().contains("apt"),
                "{e}"
            );
            e.to_string()
        };
        assert!(search("gone").contains("gone: no such folder"));
        touch(dir.path(), &["empty/readme", "fake/libnvrtc.so.13"]);
        assert!(search("empty").contains("empty: no libnvrtc.so in it"));
        let text = search("fake");
        assert!(text.contains("DTK_NVRTC_DIR says") && text.contains("libnvrtc.so.13"), "{text}");
    }
}
