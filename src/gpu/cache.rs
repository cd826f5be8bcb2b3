//! Compiled kernels on disk.
//!
//! One file for each variant, named after source, architecture and a hash over everything that decides what the compiler
//! makes. A file is written under another name and renamed, so that processes that share the folder see whole files only; a
//! file that is damaged all the same is noticed by its checksum, and made again.

use super::arch::Arch;
use super::defines::Defines;
use super::entry;
use super::nvrtc::{Image, Nvrtc, OPTIONS};
use super::source::Source;
use crate::error::Result;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How the name of an entry's file ends.
const EXTENSION: &str = "dtkkernel";

/// Where an image came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The folder had it.
    Cached,
    /// It was compiled, and written to the folder if that can be.
    Compiled,
    /// The folder's file was no good, for this reason; it was compiled, and the file replaced.
    Replaced(String),
}

/// What a cache did so far, and what ails it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// Images that the folder had.
    pub cached: u64,
    /// Images that were compiled, with those of [`CacheReport::replaced`].
    pub compiled: u64,
    /// Damaged files that were replaced.
    pub replaced: u64,
    /// Images that could not be written.
    pub unwritten: u64,
    /// Why the last of those was not.
    pub problem: Option<String>,
}

/// A folder of compiled kernels. Without one, or where it cannot be written, everything still works, and is compiled by every
/// process.
pub struct KernelCache {
    dir: Result<PathBuf, String>,
    cached: AtomicU64,
    compiled: AtomicU64,
    replaced: AtomicU64,
    unwritten: AtomicU64,
    problem: Mutex<Option<String>>,
}

impl KernelCache {
    /// The folder `kernels` of `root`; of `DTK_CACHE_DIR`, `$XDG_CACHE_HOME/dtk` or `~/.cache/dtk` if that is `None`. Nothing is
    /// made or read yet.
    pub fn at(root: Option<&Path>) -> KernelCache {
        let root = match root {
            Some(root) => Ok(root.to_path_buf()),
            None => default_root(|name| std::env::var_os(name)),
        };
        KernelCache {
            dir: root.map(|r| r.join("kernels")),
            cached: AtomicU64::new(0),
            compiled: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            problem: Mutex::new(None),
        }
    }

    /// The folder.
    ///
    /// # Errors
    /// Why there is none.
    pub fn dir(&self) -> Result<&Path, &str> {
        self.dir.as_deref().map_err(String::as_str)
    }

    /// One variant of a source: from the folder, or compiled and put there.
    ///
    /// # Errors
    /// NVRTC is missing or the source does not compile. A folder that cannot be read or written is none:
    /// [`KernelCache::report`] tells of it.
    pub fn image(&self, source: &Source, defines: &Defines, arch: Arch) -> Result<(Image, Origin)> {
        let nvrtc = Nvrtc::find()?;
        nvrtc.check_arch(arch)?;
        let key = key(source, defines, arch, nvrtc.version());
        let path = self.dir().ok().map(|dir| dir.join(file_name(source, arch, &key)));
        let read = path.as_deref().map(|p| read(p, &key));
        if let Some(Read::Good(image)) = read {
            self.cached.fetch_add(1, Ordering::Relaxed);
            return Ok((image, Origin::Cached));
        }
        let image = nvrtc.compile(source, defines, arch)?;
        self.compiled.fetch_add(1, Ordering::Relaxed);
        let what = format!("{} for {arch} by NVRTC {:?}: {defines}", source.name(), nvrtc.version());
        let written = match &path {
            Some(path) => write(path, &entry::encode(&key, &what, &image))
                .map_err(|e| format!("{}: {e}", path.display())),
            None => Err(self.dir().err().unwrap_or_default().to_string()),
        };
        if let Err(why) = written {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
            *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        }
        match read {
            Some(Read::Bad(why)) => {
                self.replaced.fetch_add(1, Ordering::Relaxed);
                Ok((image, Origin::Replaced(why)))
            }
            _ => Ok((image, Origin::Compiled)),
        }
    }

    /// What happened so far.
    pub fn report(&self) -> CacheReport {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheReport {
            cached: of(&self.cached),
            compiled: of(&self.compiled),
            replaced: of(&self.replaced),
            unwritten: of(&self.unwritten),
            problem: self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// The number of entries in the folder, and their bytes.
    pub fn contents(&self) -> (usize, u64) {
        let files = self.dir().ok().and_then(|d| fs::read_dir(d).ok()).into_iter().flatten().flatten();
        let entries = files.filter(|f| f.path().extension().is_some_and(|e| e == EXTENSION));
        entries.fold((0, 0), |(n, bytes), f| (n + 1, bytes + f.metadata().map_or(0, |m| m.len())))
    }

    /// Whether files can be made in the folder, or in the one that it would be made in.
    ///
    /// # Errors
    /// Why not.
    pub fn writable(&self) -> Result<(), String> {
        let dir = self.dir()?;
        let mut nearest = dir;
        while !nearest.exists() {
            nearest = nearest.parent().ok_or("no part of the path exists")?;
        }
        let tried = create_temporary(&nearest.join("probe")).and_then(|(_, path)| fs::remove_file(path));
        tried.map_err(|e| format!("{}: {e}", nearest.display()))
    }
}

/// Where things are kept if nobody says otherwise.
fn default_root(var: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
    let set = |name: &str| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("DTK_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("dtk")))
        .or_else(|| set("HOME").map(|d| d.join(".cache/dtk")))
        .ok_or_else(|| "none of DTK_CACHE_DIR, XDG_CACHE_HOME and HOME is set".to_string())
}

type Key = [u8; 32];

/// Everything that decides what the compiler makes. The version of this crate is not among it: what it changes is in the
/// source or in the options.
fn key(source: &Source, defines: &Defines, arch: Arch, (major, minor): (u32, u32)) -> Key {
    let mut hash = Sha256::new();
    hash.update([entry::FORMAT]);
    hash.update(source.digest());
    for part in [defines.to_string(), arch.to_string(), format!("{major}.{minor}"), OPTIONS.join(" ")] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// `conv2d-sm_90a-0123456789abcdef0123456789abcdef.dtkkernel`
fn file_name(source: &Source, arch: Arch, key: &Key) -> String {
    let stem = source.name().trim_end_matches(".cu").replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let mut name = format!("{stem}-{arch}-");
    for byte in &key[..16] {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name + "." + EXTENSION
}

enum Read {
    Good(Image),
    Missing,
    Bad(String),
}

fn read(path: &Path, key: &Key) -> Read {
    match fs::read(path) {
        Ok(bytes) => entry::decode(&bytes, key).map_or_else(|why| Read::Bad(why.to_string()), Read::Good),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Read::Missing,
        Err(e) => Read::Bad(e.to_string()),
    }
}

/// Makes the file appear at once with all its bytes.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let (mut file, temporary) = create_temporary(path)?;
    let done =
        file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        // What failed is what the caller hears of.
        let _ = fs::remove_file(&temporary);
    }
    done
}

/// A new file beside `path` that no other process or thread has.
fn create_temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    let id = std::process::id();
    for n in 0u32.. {
        let mut name = path.as_os_str().to_os_string();
        name.push(format!(".{id}-{n}.tmp"));
        match OpenOptions::new().write(true).create_new(true).open(&name) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map(|file| (file, name.into())),
        }
    }
    Err(io::Error::other("there are too many temporary files"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_that_the_environment_names() {
        let root = |set: &[(&str, &str)]| {
            default_root(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)))
        };
        let (dtk, xdg, home) = (("DTK_CACHE_DIR", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c"));
        assert_eq!(root(&[dtk, xdg, home]), Ok("/a".into()));
        assert_eq!(root(&[("DTK_CACHE_DIR", ""), xdg, home]), Ok("/b/dtk".into()));
        assert_eq!(root(&[home]), Ok("/c/.cache/dtk".into()));
        assert!(root(&[]).unwrap_err().contains("DTK_CACHE_DIR"));
    }

    #[test]
    fn the_key_covers_everything() {
        let source = |text| Source::from_text("conv2d.cu", text, &[]).unwrap();
        let defines = Defines::new().set("BM", 128);
        let base = key(&source("a"), &defines, Arch::Sm80, (13, 0));
        assert_eq!(base, key(&source("a"), &defines.clone(), Arch::Sm80, (13, 0)));
        for other in [
            key(&source("b"), &defines, Arch::Sm80, (13, 0)),
            key(&source("a"), &defines.clone().set("BN", 1), Arch::Sm80, (13, 0)),
            key(&source("a"), &defines, Arch::Sm90a, (13, 0)),
            key(&source("a"), &defines, Arch::Sm80, (13, 1)),
        ] {
            assert_ne!(base, other);
        }
        let name = file_name(&source("a"), Arch::Sm90a, &[0xab; 32]);
        assert_eq!(name, format!("conv2d-sm_90a-{}.dtkkernel", "ab".repeat(16)));
    }

    #[test]
    fn files_appear_whole_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/down/x");
        std::thread::scope(|s| {
            for n in 0..4u8 {
                let path = &path;
                s.spawn(move || (0..20).for_each(|_| write(path, &vec![n; 100_000]).unwrap()));
            }
            for _ in 0..200 {
                if let Ok(bytes) = fs::read(&path) {
                    assert!(bytes.len() == 100_000 && bytes.iter().all(|b| *b == bytes[0]));
                }
            }
        });
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(KernelCache::at(Some(&file)).writable().unwrap_err().contains("file"));
        let cache = KernelCache::at(Some(&dir.path().join("new/one")));
        assert_eq!(cache.writable(), Ok(()));
        assert_eq!((cache.contents(), dir.path().join("new").exists()), ((0, 0), false));
    }
}
