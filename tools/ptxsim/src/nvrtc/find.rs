//! Where NVRTC is looked for, and how it is loaded.

use super::NvrtcError;
use super::api::Api;
use libloading::Library;
use libloading::os::unix::{self, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The one that was loaded.
static LOADED: Mutex<Option<&'static Api>> = Mutex::new(None);

/// Loads the first that there is.
pub(super) fn load() -> Result<&'static Api, NvrtcError> {
    // A panic while the lock is held leaves `None` or a complete value.
    let mut loaded = LOADED.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(api) = *loaded {
        return Ok(api);
    }
    let api = search(std::env::var_os("PTXSIM_NVRTC_DIR").filter(|d| !d.is_empty()).map(PathBuf::from))?;
    *loaded = Some(api);
    Ok(api)
}

fn search(forced: Option<PathBuf>) -> Result<&'static Api, NvrtcError> {
    let mut looked = Vec::new();
    if let Some(dir) = &forced {
        match from_dir(dir) {
            Ok(api) => return Ok(api),
            // Falling back to another one would hide the mistake.
            Err(why) => looked.push(format!("PTXSIM_NVRTC_DIR={}: {why}", dir.display())),
        }
        return Err(NvrtcError::NotFound { looked });
    }
    for dir in library_dirs() {
        match from_dir(&dir) {
            Ok(api) => return Ok(api),
            Err(why) => looked.push(format!("{}: {why}", dir.display())),
        }
    }
    for name in ["libnvrtc.so.13", "libnvrtc.so"] {
        match open(OsStr::new(name)).and_then(|l| Api::new(l, PathBuf::from(name))) {
            Ok(api) => return Ok(Box::leak(Box::new(api))),
            Err(why) => looked.push(format!("the system's loader: {why}")),
        }
    }
    Err(NvrtcError::NotFound { looked })
}

/// The folders that may hold `libnvrtc.so*`, in the order they are searched; those of `.venv`s only where they exist.
pub fn library_dirs() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = python_packages().into_iter().map(|p| p.join("nvidia/cu13/lib")).collect();
    if let Some(home) = std::env::var_os("CUDA_HOME").filter(|h| !h.is_empty()) {
        dirs.push(PathBuf::from(home).join("lib64"));
    }
    dirs.push("/usr/local/cuda/lib64".into());
    dirs
}

/// The `site-packages` folders of every `.venv` at or above the working folder, the executable and the crate's source.
pub fn python_packages() -> Vec<PathBuf> {
    let mut starts = Vec::new();
    starts.extend(std::env::current_dir());
    starts.extend(std::env::current_exe().ok().and_then(|e| e.parent().map(Path::to_path_buf)));
    starts.push(PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    let mut found: Vec<PathBuf> = Vec::new();
    for start in &starts {
        for above in start.ancestors() {
            let Ok(entries) = std::fs::read_dir(above.join(".venv/lib")) else { continue };
            let mut versions: Vec<_> = entries.flatten().map(|e| e.path().join("site-packages")).collect();
            versions.sort();
            for packages in versions {
                if packages.is_dir() && !found.contains(&packages) {
                    found.push(packages);
                }
            }
        }
    }
    found
}

/// Loads NVRTC from one folder.
fn from_dir(dir: &Path) -> Result<&'static Api, String> {
    let dir = dir.canonicalize().map_err(|e| e.to_string())?;
    let Some(library) = newest(&dir, "libnvrtc.so") else {
        return Err("no libnvrtc.so there".into());
    };
    // NVRTC opens its builtins by bare name, which the loader finds once they are loaded. Some versions have none.
    if let Some(builtins) = newest(&dir, "libnvrtc-builtins.so") {
        open(builtins.as_os_str())?;
    }
    let api = Api::new(open(library.as_os_str())?, library)?;
    Ok(Box::leak(Box::new(api)))
}

/// `stem` itself, or the one with the highest version behind it.
fn newest(dir: &Path, stem: &str) -> Option<PathBuf> {
    let mut best: Option<(Vec<u32>, PathBuf)> = None;
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(stem)) else { continue };
        let numbers: Option<Vec<u32>> = match rest.strip_prefix('.') {
            Some(version) => version.split('.').map(|n| n.parse().ok()).collect(),
            None if rest.is_empty() => Some(Vec::new()),
            None => None,
        };
        if let Some(numbers) = numbers
            && best.as_ref().is_none_or(|(b, _)| numbers > *b)
        {
            best = Some((numbers, entry.path()));
        }
    }
    best.map(|(_, path)| path)
}

/// Opens a library for the rest of the process.
fn open(name: &OsStr) -> Result<&'static Library, String> {
    // SAFETY: NVRTC and its builtins are C libraries whose initialisers set up their own data alone. Nothing is ever
    // unloaded, so that no pointer into them, ours or cudarc's, can dangle. Their symbols all have prefixes of their
    // own, so that making them global does not change what another library resolves to.
    let library = unsafe { unix::Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|e| e.to_string())?;
    Ok(Box::leak(Box::new(Library::from(library))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_folder_has_to_have_it() {
        let dir = std::env::temp_dir();
        let Err(NvrtcError::NotFound { looked }) = search(Some(dir.join("no such folder"))) else {
            panic!("found in a folder that does not exist")
        };
        assert_eq!(looked.len(), 1, "{looked:?}");
        let text = NvrtcError::NotFound { looked }.to_string();
        assert!(text.contains("no such folder"), "{text}");
        assert!(text.contains("pip install 'nvidia-cuda-nvrtc==13.0.*'"), "{text}");
    }

    #[test]
    fn the_highest_version_is_taken() {
        let dir = std::env::temp_dir().join(format!("ptxsim-find-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for name in ["libx.so.9.2", "libx.so.13.0", "libx.alt.so.14", "libx.so.13.bak", "libxy.so.15"] {
            std::fs::write(dir.join(name), "").unwrap();
        }
        let best = newest(&dir, "libx.so");
        let none = newest(&dir, "libz.so");
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(best, Some(dir.join("libx.so.13.0")));
        assert_eq!(none, None);
    }
}
