//! Writing sets of images with masks, in the layout that [`super::MaskFolder`] reads.

use super::mask::Mask;
use super::tables::{CLASSES, LABELS};
use crate::error::{Error, Result};
use image::RgbImage;
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// An image with all that is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The pixels.
    pub image: RgbImage,
    /// The class of every pixel: 0 is the background, `k + 1` an object of class `k`.
    pub mask: Mask,
    /// The object of every pixel: 0 where there is none, 1 for the frontmost, 2 for the one behind it, and so on. An
    /// object that is hidden completely leaves its number out.
    pub instances: Mask,
    /// The class of the image.
    pub label: u32,
}

/// Makes example `i` of a set.
pub(super) type Render<'a> = &'a (dyn Fn(usize) -> Result<Example> + Sync);

/// Told how many examples are written.
pub type Progress<'a> = &'a (dyn Fn(usize) + Sync);

/// Writes `count` examples into the folder `dir`: `images/`, `masks/` and `instances/` with `000000.png` and so on, then
/// `labels.csv` and `classes.txt`. Works on all threads.
///
/// # Errors
/// The first of `render`'s; [`Error::io`].
pub(super) fn write_examples(
    dir: &Path,
    count: usize,
    classes: &[String],
    mask_classes: &[String],
    render: Render,
    progress: Progress,
) -> Result<()> {
    for folder in ["images", "masks", "instances"] {
        let folder = dir.join(folder);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "cannot make the folder", e))?;
    }
    let done = AtomicUsize::new(0);
    let write = |i: usize| -> Result<String> {
        let name = format!("{i:06}.png");
        let example = render(i)?;
        let path = dir.join("images").join(&name);
        example
            .image
            .save(&path)
            .map_err(|e| Error::io(&path, "cannot write the image", std::io::Error::other(e)))?;
        example.mask.write_png(dir.join("masks").join(&name))?;
        example.instances.write_png(dir.join("instances").join(&name))?;
        progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        let class = classes.get(example.label as usize).ok_or_else(|| {
            Error::data(format!(
                "example {i} has the label {}, but there are {} classes",
                example.label,
                classes.len()
            ))
        })?;
        Ok(format!("{name},{class}\n"))
    };
    let lines: Vec<String> = (0..count).into_par_iter().map(write).collect::<Result<_>>()?;
    write_text(&dir.join(LABELS), &format!("image,label\n{}", lines.concat()))?;
    write_text(&dir.join(CLASSES), &(mask_classes.join("\n") + "\n"))
}

/// Writes a file of text.
///
/// # Errors
/// [`Error::io`].
pub(super) fn write_text(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::io(path, "cannot write", e))
}

/// Makes the folder `out` appear at once when it is complete: `write` fills a hidden folder beside it, which is renamed in
/// the end. What an earlier attempt left there is removed.
///
/// # Errors
/// [`Error::usage`]: `out` has no name, is a file, or is not empty. [`Error::io`]. Those of `write`.
pub(super) fn staged(out: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let refuse = |m: &str| Error::usage(m).with_file(out).with_remedy("give the name of a new folder");
    let name = out.file_name().ok_or_else(|| refuse("is no name for a folder"))?;
    if out.is_file() {
        return Err(refuse("is a file"));
    }
    let exists = out.is_dir();
    if exists
        && std::fs::read_dir(out).map_err(|e| Error::io(out, "cannot list the folder", e))?.next().is_some()
    {
        return Err(refuse("is not empty"));
    }
    let partial: PathBuf = out.with_file_name(format!(".{}.partial", name.to_string_lossy()));
    let fail = |what: &str, e: std::io::Error| Error::io(&partial, what, e);
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(|e| fail("cannot remove what an earlier run left", e))?;
    }
    std::fs::create_dir_all(&partial).map_err(|e| fail("cannot make the folder", e))?;
    let done = write(&partial);
    if done.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_dir_all(&partial);
        return done;
    }
    if exists {
        std::fs::remove_dir(out).map_err(|e| Error::io(out, "cannot replace the empty folder", e))?;
    }
    std::fs::rename(&partial, out).map_err(|e| fail("cannot rename the finished folder", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ImageSource, MaskFolder, SceneConfig, Scenes};

    #[test]
    fn what_is_written_is_what_was_rendered() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("set");
        let set = Scenes::new(SceneConfig { count: 7, first: 3, height: 20, width: 24 }).unwrap();
        let most = AtomicUsize::new(0);
        set.write(&out, &|n| {
            most.fetch_max(n, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(most.into_inner(), 7);
        let read = MaskFolder::open(&out).unwrap();
        assert_eq!((read.len(), read.classes(), read.mask_classes()), (7, set.classes(), set.mask_classes()));
        for i in 0..7 {
            assert_eq!(read.load(i, [0; 3]).unwrap(), set.load(i, [0; 3]).unwrap());
            assert_eq!(read.mask(i).unwrap(), set.mask(i).unwrap());
            assert_eq!(read.label(i), set.label(i));
            let instances = Mask::read(out.join(format!("instances/{i:06}.png"))).unwrap();
            assert_eq!(instances, set.instances(i).unwrap());
        }
        let e = set.write(&out, &|_| ()).unwrap_err();
        assert!(e.is_usage() && e.to_string().contains("not empty"), "{e}");
        assert!(set.write(&out.join("classes.txt"), &|_| ()).unwrap_err().is_usage());
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("set");
        std::fs::create_dir(&out).unwrap();
        let e = staged(&out, |d| {
            write_text(&d.join("half"), "x")?;
            Err(Error::data("no more"))
        });
        assert!(e.unwrap_err().is_data());
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
        std::fs::create_dir(dir.path().join(".set.partial")).unwrap();
        staged(&out, |d| write_text(&d.join("whole"), "x")).unwrap();
        assert!(out.join("whole").is_file() && !dir.path().join(".set.partial").exists());
        assert!(staged(Path::new("/"), |_| Ok(())).unwrap_err().is_usage());
    }
}
