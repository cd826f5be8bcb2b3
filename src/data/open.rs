//! Opening a set of images by its path.

use super::idx::IdxImages;
use super::{ImageFolder, ImageSource, MaskFolder};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which part of a set, where it has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The images to train on.
    Train,
    /// The images that are held out.
    Test,
}

/// Opens the images at `path`. What it is decides how:
///
/// - an IDX file (`*ubyte`, `*.idx`, with or without `.gz`), with the labels beside it (`images-idx3` in its name becomes
///   `labels-idx1`) if they are there; another file is a list of images ([`ImageFolder`]);
/// - a folder with `train-images-idx3-ubyte` and its like: that split ([`IdxImages::open_split`]);
/// - a folder with `data.mdb`: an LMDB environment, as LSUN comes (needs the feature `lmdb`);
/// - a folder with sub-folders `train` and `test` (or `val`): that sub-folder, the classes of `test` numbered as in `train`;
/// - a folder with masks: a [`MaskFolder`];
/// - any other folder: an [`ImageFolder`].
///
/// Where there are no splits, `split` does not matter.
///
/// # Errors
/// The path does not exist, holds no images, or is malformed; the classes of two splits differ.
pub fn open_path(path: impl AsRef<Path>, split: Split) -> Result<Arc<dyn ImageSource>> {
    let path = path.as_ref();
    let Some((train, test)) = split_folders(path) else { return open_plain(path, split, &[]) };
    if split == Split::Train {
        return open_plain(&train, split, &[]);
    }
    let reference = open_plain(&train, Split::Train, &[])?;
    let set = open_plain(&test, split, reference.classes())?;
    for (what, a, b) in [
        ("label classes", reference.classes(), set.classes()),
        ("mask classes", reference.mask_classes(), set.mask_classes()),
    ] {
        if a != b {
            let shown = |c: &[String]| if c.is_empty() { "none".into() } else { c.join(", ") };
            return Err(Error::data(format!("the {what} of the two splits differ"))
                .with_file(path)
                .with_tensor(train.display().to_string(), shown(a))
                .with_tensor(test.display().to_string(), shown(b))
                .with_remedy("give both the same class folders, or the same classes.txt"));
        }
    }
    Ok(set)
}

/// The folders of the two splits.
fn split_folders(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let train = path.join("train");
    let test = [path.join("test"), path.join("val")].into_iter().find(|p| p.is_dir())?;
    train.is_dir().then_some((train, test))
}

/// Opens one set. Class folders are numbered as in `classes`, if there are any.
fn open_plain(path: &Path, split: Split, classes: &[String]) -> Result<Arc<dyn ImageSource>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    if path.is_file() && (plain.ends_with("ubyte") || plain.ends_with(".idx")) {
        return Ok(Arc::new(IdxImages::open(path, labels_beside(path).as_deref())?));
    }
    if path.is_dir() {
        let idx = |split: &str| {
            [".gz", ""].iter().any(|e| path.join(format!("{split}-images-idx3-ubyte{e}")).is_file())
        };
        if ["train", "t10k", "test"].into_iter().any(idx) {
            let test = if idx("test") { "test" } else { "t10k" };
            return Ok(Arc::new(IdxImages::open_split(
                path,
                if split == Split::Train { "train" } else { test },
            )?));
        }
        if path.join("data.mdb").is_file() {
            return open_lmdb(path);
        }
        if MaskFolder::recognises(path)? {
            return Ok(Arc::new(MaskFolder::open(path)?));
        }
    }
    let folder = ImageFolder::open(path)?;
    let labelled = !folder.classes().is_empty() && !classes.is_empty();
    Ok(Arc::new(if labelled { folder.with_classes(classes)? } else { folder }))
}

/// The labels that belong to a file of images by its name.
fn labels_beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let labels = name.replace("images-idx3", "labels-idx1");
    let plain = labels.trim_end_matches(".gz");
    let places = [path.with_file_name(&labels), path.with_file_name(plain)];
    places.into_iter().find(|p| labels != name && p.is_file())
}

#[cfg(feature = "lmdb")]
fn open_lmdb(path: &Path) -> Result<Arc<dyn ImageSource>> {
    Ok(Arc::new(super::LmdbImages::open(path)?))
}

#[cfg(not(feature = "lmdb"))]
fn open_lmdb(path: &Path) -> Result<Arc<dyn ImageSource>> {
    Err(Error::data("is an LMDB environment, which this build cannot read")
        .with_file(path)
        .with_remedy("build with `--features lmdb`, or export the images to a folder"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;

    fn image(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(2, 2, image::Rgb([7, 8, 9])).save(path).unwrap();
    }

    fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
        let mut b = vec![0, 0, 8, dims.len() as u8];
        b.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
        b.extend(data);
        b
    }

    fn error(path: &Path, split: Split) -> Error {
        open_path(path, split).err().expect("must be refused")
    }

    #[test]
    fn splits_share_their_classes() {
        let dir = tempfile::tempdir().unwrap();
        let p = |n: &str| dir.path().join(n);
        for n in ["train/ant/0.png", "train/bee/1.png", "train/cow/2.png", "val/cow/3.png"] {
            image(&p(n));
        }
        let train = open_path(dir.path(), Split::Train).unwrap();
        let test = open_path(dir.path(), Split::Test).unwrap();
        assert_eq!((train.len(), test.len()), (3, 1));
        assert_eq!((test.label(0), test.classes()), (Some(2), train.classes()));
        image(&p("test/dog/4.png"));
        let e = error(dir.path(), Split::Test);
        assert!(e.is_data() && e.to_string().contains("`dog`"), "{e}");
        std::fs::remove_dir_all(p("test/dog")).unwrap();
        image(&p("test/5.png"));
        let e = error(dir.path(), Split::Test);
        assert!(e.to_string().contains("label classes") && e.to_string().contains("none"), "{e}");
        // Without a folder of held-out images, `train` is a class like any other.
        std::fs::remove_dir_all(p("test")).unwrap();
        std::fs::remove_dir_all(p("val")).unwrap();
        assert_eq!(open_path(dir.path(), Split::Test).unwrap().classes(), ["train"]);
    }

    #[test]
    fn idx_folders_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let p = |n: &str| dir.path().join(n);
        std::fs::write(p("train-images-idx3-ubyte"), idx(&[2, 1, 1], &[1, 2])).unwrap();
        std::fs::write(p("train-labels-idx1-ubyte"), idx(&[2], &[0, 3])).unwrap();
        std::fs::write(p("t10k-images-idx3-ubyte"), idx(&[1, 1, 1], &[9])).unwrap();
        let train = open_path(dir.path(), Split::Train).unwrap();
        assert_eq!((train.len(), train.label(1)), (2, Some(3)));
        assert_eq!(open_path(dir.path(), Split::Test).unwrap().len(), 1);
        let file = open_path(p("train-images-idx3-ubyte"), Split::Test).unwrap();
        assert_eq!((file.len(), file.label(1)), (2, Some(3)));
        assert_eq!(open_path(p("t10k-images-idx3-ubyte"), Split::Test).unwrap().label(0), None);
        std::fs::remove_file(p("t10k-images-idx3-ubyte")).unwrap();
        assert!(error(dir.path(), Split::Test).to_string().contains("t10k"));
        std::fs::write(p("train-images-idx3-ubyte"), "").unwrap();
        assert!(error(dir.path(), Split::Train).is_format());
    }

    #[test]
    fn masks_are_recognised_and_nothing_is_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let p = |n: &str| dir.path().join(n);
        image(&p("images/a.png"));
        std::fs::create_dir(p("masks")).unwrap();
        assert!(error(dir.path(), Split::Train).to_string().contains("no mask"));
        super::super::Mask::new(2, 2, vec![0; 4]).unwrap().write_png(p("masks/a.png")).unwrap();
        assert_eq!(open_path(dir.path(), Split::Train).unwrap().mask_classes(), ["0"]);
        let empty = p("empty");
        std::fs::create_dir(&empty).unwrap();
        assert!(error(&empty, Split::Train).is_data());
        assert!(error(&p("absent"), Split::Test).is_data());
    }

    #[cfg(not(feature = "lmdb"))]
    #[test]
    fn an_lmdb_environment_says_what_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("data.mdb"), "").unwrap();
        assert!(error(dir.path(), Split::Train).remedy().unwrap().contains("--features lmdb"));
    }
}
