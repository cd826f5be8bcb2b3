//! Finding files in folders, in an order that is the same on every machine.

use super::folder::EXTENSIONS;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The bytes a relative path is sorted and identified by: its parts joined with `/` on every system.
pub(super) fn key(path: &Path) -> Vec<u8> {
    let parts: Vec<&[u8]> = path.components().map(|c| c.as_os_str().as_encoded_bytes()).collect();
    parts.join(&b'/')
}

/// Whether the file's name ends like that of an image.
pub(super) fn is_image(path: &Path) -> bool {
    path.extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| EXTENSIONS.iter().any(|x| x.eq_ignore_ascii_case(e)))
}

/// The files below `root` that are `wanted`, by their relative paths, sorted by the bytes of these. Hidden entries (a
/// leading dot) are left out, links are followed, and a link back to a folder that contains it is not.
///
/// # Errors
/// [`Error::io`]: a folder cannot be listed.
pub(super) fn find_files(root: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let canonical = root.canonicalize().map_err(|e| Error::io(root, "cannot resolve", e))?;
    walk(root, Path::new(""), wanted, &mut vec![canonical], &mut found)?;
    found.sort_by_cached_key(|p| key(p));
    Ok(found)
}

/// The files directly in `root` that are `wanted`, by their names, sorted by the bytes of these; no hidden ones.
///
/// # Errors
/// [`Error::io`]: the folder cannot be listed.
pub(super) fn list_files(root: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let fail = |e| Error::io(root, "cannot list the folder", e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(fail)? {
        let name = PathBuf::from(entry.map_err(fail)?.file_name());
        let hidden = name.as_os_str().as_encoded_bytes().starts_with(b".");
        if !hidden && wanted(&name) && root.join(&name).is_file() {
            found.push(name);
        }
    }
    found.sort_by_cached_key(|p| key(p));
    Ok(found)
}

/// Collects the files below `root/relative`. `above` holds the canonical paths of the folders being visited.
fn walk(
    root: &Path,
    relative: &Path,
    wanted: &dyn Fn(&Path) -> bool,
    above: &mut Vec<PathBuf>,
    found: &mut Vec<PathBuf>,
) -> Result<()> {
    let dir = root.join(relative);
    let fail = |e| Error::io(&dir, "cannot list the folder", e);
    for entry in std::fs::read_dir(&dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let child = relative.join(entry.file_name());
        let mut kind = entry.file_type().map_err(fail)?;
        if kind.is_symlink() {
            match std::fs::metadata(entry.path()) {
                Ok(m) => kind = m.file_type(),
                // A dangling link to such a file stays in the list: loading it reports which file is missing.
                Err(_) if wanted(&child) => {
                    found.push(child);
                    continue;
                }
                Err(_) => continue,
            }
        }
        if kind.is_dir() {
            let canonical =
                entry.path().canonicalize().map_err(|e| Error::io(entry.path(), "cannot resolve", e))?;
            if !above.contains(&canonical) {
                above.push(canonical);
                walk(root, &child, wanted, above, found)?;
                above.pop();
            }
        } else if kind.is_file() && wanted(&child) {
            found.push(child);
        }
    }
    Ok(())
}
