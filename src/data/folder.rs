//! A folder of images, or a text file that lists them.

use super::decode::decode_file;
use super::files::{find_files, is_image, key};
use super::source::{ImageSource, digest};
use crate::error::{Error, Result};
use image::RgbImage;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// The file name extensions that a folder is searched for, in any case.
pub const EXTENSIONS: [&str; 5] = ["jpg", "jpeg", "png", "webp", "bmp"];

/// Images on disk, in an order that is the same on every machine.
#[derive(Debug)]
pub struct ImageFolder {
    root: PathBuf,
    files: Vec<Entry>,
    classes: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    /// Relative to the root, or as written in the list.
    path: PathBuf,
    class: Option<u32>,
}

impl ImageFolder {
    /// Opens a folder, or a text file with one image path per line.
    ///
    /// A folder is searched recursively for [`EXTENSIONS`]; hidden entries (a leading dot) are left out, links are
    /// followed, and a link back to a folder that contains it is not. Files are sorted by the bytes of their
    /// relative paths. A list keeps its order; its relative paths start at the list's own folder, and blank lines
    /// are ignored.
    ///
    /// Where every image has a first folder in its relative path, these folders are the classes, sorted by name as
    /// torchvision's `ImageFolder` sorts them. Where an image lies outside of all folders, or a list has an absolute
    /// path, no image has a label.
    ///
    /// # Errors
    /// [`Error::data`]: the path does not exist, has no image, or is a file that is not a UTF-8 list.
    /// [`Error::io`]: a folder or the list cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(|e| {
            Error::data("cannot open the images")
                .with_file(path)
                .with_source(e)
                .with_remedy("give a folder of images or a text file with one image path per line")
        })?;
        let (root, paths) = if meta.is_dir() {
            (path.to_path_buf(), find_files(path, &is_image)?)
        } else {
            (path.parent().map(Path::to_path_buf).unwrap_or_default(), read_list(path)?)
        };
        if paths.is_empty() {
            return Err(Error::data(format!(
                "no images found (accepted extensions: {})",
                EXTENSIONS.join(", ")
            ))
            .with_file(path)
            .with_remedy("check the path, or convert the images to JPEG or PNG"));
        }
        let class_of = |p: &Path| {
            let mut parts = p.components();
            match (parts.next(), parts.next()) {
                (Some(Component::Normal(first)), Some(_)) => Some(first.to_string_lossy().into_owned()),
                _ => None,
            }
        };
        let names: Option<Vec<String>> = paths.iter().map(|p| class_of(p)).collect();
        let classes: Vec<String> =
            names.iter().flatten().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let class = |i: usize| classes.binary_search(&names.as_ref()?[i]).ok().map(|c| c as u32);
        let files = paths.into_iter().enumerate().map(|(i, path)| Entry { path, class: class(i) }).collect();
        Ok(ImageFolder { root, files, classes })
    }

    /// The same images, labelled with the classes of another set, so that an id means the same in both.
    ///
    /// # Errors
    /// [`Error::data`]: a class of this set that is not among `classes`.
    pub fn with_classes(mut self, classes: &[String]) -> Result<Self> {
        let find = |name: &String| {
            classes.iter().position(|c| c == name).map(|c| c as u32).ok_or_else(|| {
                Error::data(format!("the class `{name}` is not among those expected: {}", classes.join(", ")))
                    .with_file(&self.root)
                    .with_remedy("name the class folders of all splits alike")
            })
        };
        let ids = self.classes.iter().map(find).collect::<Result<Vec<u32>>>()?;
        for file in &mut self.files {
            file.class = file.class.map(|c| ids[c as usize]);
        }
        self.classes = classes.to_vec();
        Ok(self)
    }

    /// The path of image `index`, or `None` beyond the end.
    pub fn path(&self, index: usize) -> Option<PathBuf> {
        self.files.get(index).map(|f| self.root.join(&f.path))
    }
}

impl ImageSource for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn load(&self, index: usize, background: [u8; 3]) -> Result<RgbImage> {
        let path = self.path(index).ok_or_else(|| {
            Error::data(format!("image {index} of {} does not exist", self.len())).with_file(&self.root)
        })?;
        decode_file(path, background)
    }

    fn name(&self, index: usize) -> String {
        self.files.get(index).map_or_else(|| format!("image {index}"), |f| f.path.display().to_string())
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.files.get(index).and_then(|f| f.class)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Covers the relative paths in their order, not the content of the files.
    fn fingerprint(&self) -> String {
        let keys: Vec<Vec<u8>> = self.files.iter().map(|f| key(&f.path)).collect();
        format!("folder:{}:{}", self.len(), digest(keys.iter().map(Vec::as_slice)))
    }
}

fn read_list(path: &Path) -> Result<Vec<PathBuf>> {
    let not_a_list = |what: &str| {
        Error::data(what)
            .with_file(path)
            .with_remedy("give a folder of images or a text file with one image path per line")
    };
    if is_image(path) {
        return Err(not_a_list("is a single image, not a set of images"));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read the list of images", e))?;
    let text = String::from_utf8(bytes).map_err(|_| not_a_list("is not a list of images in UTF-8"))?;
    Ok(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn write(dir: &Path, name: &str, grey: u8) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(2, 2, Rgb([grey; 3])).save(path).unwrap();
    }

    fn names(set: &ImageFolder) -> Vec<String> {
        (0..set.len()).map(|i| set.name(i)).collect()
    }

    #[test]
    fn lists_sorted_with_classes() {
        let dir = tempfile::tempdir().unwrap();
        for (i, n) in ["dog/b.png", "cat/x/deep.BMP", "top.PNG", "cat/a.png", "Z/1.png"].iter().enumerate() {
            write(dir.path(), n, i as u8);
        }
        write(dir.path(), ".hidden/a.png", 9);
        std::fs::write(dir.path().join("cat/notes.txt"), "no image").unwrap();
        let set = ImageFolder::open(dir.path()).unwrap();
        assert_eq!(names(&set), ["Z/1.png", "cat/a.png", "cat/x/deep.BMP", "dog/b.png", "top.PNG"]);
        assert!(set.classes().is_empty());
        assert!((0..4).all(|i| set.label(i).is_none()), "an image has no class");
        assert_eq!(set.load(2, [255; 3]).unwrap().as_raw()[0], 1);
        assert!(set.load(5, [255; 3]).unwrap_err().is_data());
        let before = set.fingerprint();
        assert_eq!(before, ImageFolder::open(dir.path()).unwrap().fingerprint());
        write(dir.path(), "dog/c.png", 0);
        assert_ne!(before, ImageFolder::open(dir.path()).unwrap().fingerprint());

        std::fs::remove_file(dir.path().join("top.PNG")).unwrap();
        std::fs::create_dir(dir.path().join("without images")).unwrap();
        let set = ImageFolder::open(dir.path()).unwrap();
        assert_eq!(set.classes(), ["Z", "cat", "dog"]);
        let labels: Vec<_> = (0..6).map(|i| set.label(i)).collect();
        assert_eq!(labels, [Some(0), Some(1), Some(1), Some(2), Some(2), None]);
        let other = ["cat", "dog", "ox", "Z"].map(String::from);
        let set = set.with_classes(&other).unwrap();
        assert_eq!((set.label(0), set.label(1), set.classes()), (Some(3), Some(0), &other[..]));
        let e = set.with_classes(&other[1..]).unwrap_err();
        assert!(e.is_data() && e.to_string().contains("`cat`"), "{e}");
    }

    #[cfg(unix)]
    #[test]
    fn follows_links_but_no_loops() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        write(outside.path(), "far.png", 3);
        write(dir.path(), "a/one.png", 1);
        symlink(dir.path(), dir.path().join("a/loop")).unwrap();
        symlink(outside.path().join("far.png"), dir.path().join("a/two.png")).unwrap();
        symlink(outside.path(), dir.path().join("b")).unwrap();
        symlink("/nowhere/at-all.png", dir.path().join("gone.png")).unwrap();
        let set = ImageFolder::open(dir.path()).unwrap();
        assert_eq!(names(&set), ["a/one.png", "a/two.png", "b/far.png", "gone.png"]);
        assert_eq!(set.load(2, [0; 3]).unwrap().as_raw()[0], 3);
        assert!(set.load(3, [0; 3]).unwrap_err().to_string().contains("gone.png"));
    }

    #[test]
    fn reads_a_list() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "img/cat/a.png", 5);
        let list = dir.path().join("train.txt");
        let absolute = dir.path().join("img/cat/a.png");
        std::fs::write(&list, "img/cat/a.png\n").unwrap();
        assert_eq!(ImageFolder::open(&list).unwrap().label(0), Some(0));
        std::fs::write(&list, format!("img/cat/a.png\r\n\n{}\n", absolute.display())).unwrap();
        let set = ImageFolder::open(&list).unwrap();
        assert_eq!((set.len(), set.label(0), set.label(1)), (2, None, None));
        assert_eq!(set.load(0, [0; 3]).unwrap(), set.load(1, [0; 3]).unwrap());
    }

    #[test]
    fn says_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let e = ImageFolder::open(dir.path()).unwrap_err();
        let shown = e.to_string();
        assert!(
            e.is_data() && shown.contains("webp") && shown.contains(&*dir.path().to_string_lossy()),
            "{e}"
        );
        assert!(ImageFolder::open(dir.path().join("absent")).unwrap_err().is_data());
        write(dir.path(), "one.png", 0);
        assert!(
            ImageFolder::open(dir.path().join("one.png")).unwrap_err().to_string().contains("single image")
        );
        std::fs::write(dir.path().join("bin"), [0xFFu8, 0xFE, 0x00]).unwrap();
        assert!(ImageFolder::open(dir.path().join("bin")).unwrap_err().is_data());
        std::fs::write(dir.path().join("empty.txt"), "\n \n").unwrap();
        assert!(ImageFolder::open(dir.path().join("empty.txt")).unwrap_err().is_data());
    }
}
