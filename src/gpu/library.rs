//! Shared libraries that are found at run time.

use libloading::Library;
use std::error::Error as _;
use std::ffi::OsStr;
use std::path::PathBuf;

/// Opens a library for the rest of the process, with its symbols visible to libraries that are opened later.
///
/// `name` is a path, or a bare name that the system's loader looks up.
pub(super) fn open(name: &OsStr) -> Result<&'static Library, String> {
    // SAFETY: only CUDA's driver and NVRTC are opened, by their own names or from folders that the user named: C libraries
    // whose initialisers set up data of their own. Nothing is ever unloaded, so no pointer into them dangles. Their symbols
    // bear prefixes of their own, so that making them global changes nothing that another library resolves to.
    #[cfg(unix)]
    let library = unsafe {
        use libloading::os::unix;
        unix::Library::open(Some(name), unix::RTLD_NOW | unix::RTLD_GLOBAL).map(Library::from)
    };
    #[cfg(not(unix))]
    // SAFETY: as above.
    let library = unsafe { Library::new(name) };
    match library {
        Ok(library) => Ok(Box::leak(Box::new(library))),
        // The loader's own words, which name the file, are the source.
        Err(e) => Err(e.source().map_or_else(|| e.to_string(), ToString::to_string)),
    }
}

/// The address of a symbol; `None` if the library has no such symbol.
pub(super) fn address(library: &Library, symbol: &str) -> Option<usize> {
    // SAFETY: the symbol is not used as anything but a number here.
    let found = unsafe { library.get::<*const ()>(symbol.as_bytes()) }.ok()?;
    // SAFETY: as above; the pointer is not followed.
    unsafe { found.try_as_raw_ptr() }.map(|p| p as usize)
}

/// The file that the code at an address was loaded from, as the kernel of the system knows it.
pub(super) fn file_of(address: usize) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| mapped_file(line, address))
}

/// The file of one line of `/proc/self/maps` if the address lies in its range.
fn mapped_file(line: &str, address: usize) -> Option<PathBuf> {
    let (range, rest) = line.split_once(' ')?;
    let (from, to) = range.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    let inside = (hex(from)?..hex(to)?).contains(&address);
    let path = rest.find('/').map(|at| PathBuf::from(&rest[at..]));
    path.filter(|_| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_map() {
        let line = "7f10-7f20 r-xp 00000000 fe:00 1234          /usr/lib/a b.so.1";
        assert_eq!(mapped_file(line, 0x7f1f), Some(PathBuf::from("/usr/lib/a b.so.1")));
        assert_eq!(mapped_file(line, 0x7f20), None);
        assert_eq!(mapped_file("7f10-7f20 rw-p 00000000 00:00 0", 0x7f10), None);
        assert_eq!(mapped_file("nonsense", 1), None);
    }

    #[test]
    fn what_is_no_library() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libx.so");
        assert!(open(path.as_os_str()).is_err(), "a missing file");
        std::fs::write(&path, "not a library").unwrap();
        let why = open(path.as_os_str()).err().unwrap();
        assert!(why.contains("libx.so"), "{why}");
    }
}
