//! Images with a mask each, as files.

use super::decode::{decode_file, dimensions};
use super::files::{find_files, is_image, key, list_files};
use super::mask::Mask;
use super::source::{ImageSource, digest};
use super::tables::{BACKGROUND, CLASSES, LABELS, read_classes, read_labels};
use crate::error::{Error, Result};
use image::RgbImage;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The id of pixels that do not count, as in most public sets.
const IGNORE: u16 = 255;

/// Images and masks on disk, in an order that is the same on every machine.
///
/// Two layouts are understood:
/// - folders `images/` and `masks/`: the mask of `images/a/x.jpg` is `masks/a/x.png` or `masks/a/x.npy`;
/// - one folder without sub-folders: the mask of `x.png` or `x.jpg` is `x.npy` (as in the sets of DDPM-seg); or, where
///   there is no NPY file, the mask of `x.jpg` is `x.png`.
///
/// `classes.txt`, one name a line in the order of the ids, names the classes; without it all masks are read once, and
/// classes are called by their ids. `labels.csv` (`image,label`) gives images a class as well: names of `classes.txt`
/// other than `background`. Id 255 is to be ignored, unless there is a class of that number.
#[derive(Debug)]
pub struct MaskFolder {
    root: PathBuf,
    files: Vec<Entry>,
    classes: Vec<String>,
    mask_classes: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    /// Relative to the root.
    image: PathBuf,
    mask: PathBuf,
    label: Option<u32>,
}

impl MaskFolder {
    /// Whether a folder has one of the layouts.
    ///
    /// # Errors
    /// [`Error::io`]: a folder cannot be listed.
    pub fn recognises(root: impl AsRef<Path>) -> Result<bool> {
        let root = root.as_ref();
        Ok(has_folders(root) || (root.is_dir() && beside(root)?.is_some()))
    }

    /// Opens a folder of one of the layouts.
    ///
    /// # Errors
    /// [`Error::data`]: neither layout, no image, an image without a mask, a mask or a label without an image, an unknown
    /// class. [`Error::format`]: `classes.txt` or `labels.csv` is malformed, or a mask where all of them are read.
    /// [`Error::io`].
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let pairs = if has_folders(root) { folders(root)? } else { beside(root)?.unwrap_or_default() };
        if pairs.is_empty() {
            return Err(Error::data("no images with masks found").with_file(root).with_remedy(
                "put images into images/ and masks of the same names into masks/, or x.npy beside x.png",
            ));
        }
        let files: Vec<Entry> =
            pairs.into_iter().map(|(image, mask)| Entry { image, mask, label: None }).collect();
        let mut set =
            MaskFolder { root: root.to_path_buf(), files, classes: Vec::new(), mask_classes: Vec::new() };
        let (names, labels) = (root.join(CLASSES), root.join(LABELS));
        let named = names.is_file();
        if named {
            set.mask_classes = read_classes(&names)?;
        } else {
            set.mask_classes = set.count_classes()?;
        }
        if labels.is_file() {
            set.set_labels(&labels, named)?;
        }
        Ok(set)
    }

    /// Names for the ids up to the highest in any mask.
    fn count_classes(&self) -> Result<Vec<String>> {
        let mut highest = 0;
        for file in &self.files {
            let mask = Mask::read(self.root.join(&file.mask))?;
            highest = mask.ids().iter().copied().filter(|&id| id != IGNORE).fold(highest, u16::max);
        }
        Ok((0..=highest).map(|id| id.to_string()).collect())
    }

    /// Gives every image the label that the table `path` has for it.
    fn set_labels(&mut self, path: &Path, named: bool) -> Result<()> {
        let fail = |m: String| Error::data(m).with_file(path);
        let mut labels = read_labels(path)?;
        self.classes = if named {
            self.mask_classes.iter().filter(|c| *c != BACKGROUND).cloned().collect()
        } else {
            labels.values().cloned().collect::<BTreeSet<_>>().into_iter().collect()
        };
        for file in &mut self.files {
            let relative = file.image.strip_prefix("images").unwrap_or(&file.image);
            let name = String::from_utf8_lossy(&key(relative)).into_owned();
            let label = labels.remove(&name).ok_or_else(|| {
                fail(format!("the image `{name}` has no label"))
                    .with_remedy("add a line for it, or remove it")
            })?;
            let id = self.classes.iter().position(|c| *c == label).ok_or_else(|| {
                fail(format!("the label `{label}` of `{name}` is not a class of {CLASSES}"))
                    .with_remedy(format!("choose one of {}", self.classes.join(", ")))
            })?;
            file.label = Some(id as u32);
        }
        match labels.pop_first() {
            None => Ok(()),
            Some((name, _)) => {
                Err(fail(format!("{} labels have no image, the first is that of `{name}`", labels.len() + 1))
                    .with_remedy("remove these lines, or put the images back"))
            }
        }
    }

    fn entry(&self, index: usize) -> Result<&Entry> {
        self.files.get(index).ok_or_else(|| {
            Error::data(format!("image {index} of {} does not exist", self.len())).with_file(&self.root)
        })
    }
}

impl ImageSource for MaskFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn load(&self, index: usize, background: [u8; 3]) -> Result<RgbImage> {
        decode_file(self.root.join(&self.entry(index)?.image), background)
    }

    fn name(&self, index: usize) -> String {
        self.files.get(index).map_or_else(|| format!("image {index}"), |f| f.image.display().to_string())
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.files.get(index).and_then(|f| f.label)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn mask(&self, index: usize) -> Result<Option<Mask>> {
        let entry = self.entry(index)?;
        let path = self.root.join(&entry.mask);
        let mask = Mask::read(&path)?;
        let size = dimensions(self.root.join(&entry.image))?;
        if (mask.height(), mask.width()) != size {
            return Err(Error::data("the mask has another size than its image")
                .with_file(path)
                .with_tensor("mask", format!("{}x{}", mask.height(), mask.width()))
                .with_tensor("image", format!("{}x{}", size.0, size.1))
                .with_remedy("make them the same size, ids being taken from the nearest pixel"));
        }
        let (count, ignore) = (self.mask_classes.len(), self.ignore_index());
        match mask.ids().iter().find(|&&id| usize::from(id) >= count && Some(id) != ignore) {
            None => Ok(Some(mask)),
            Some(id) => Err(Error::data(format!("the mask has the id {id}, but there are {count} classes"))
                .with_file(path)
                .with_remedy(format!("correct the mask, or name every class in {CLASSES}"))),
        }
    }

    fn mask_classes(&self) -> &[String] {
        &self.mask_classes
    }

    fn ignore_index(&self) -> Option<u16> {
        (self.mask_classes.len() <= usize::from(IGNORE)).then_some(IGNORE)
    }

    /// Covers the relative paths in their order, the names of classes and the labels, not the content of images and masks.
    fn fingerprint(&self) -> String {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for f in &self.files {
            parts.extend([
                key(&f.image),
                key(&f.mask),
                f.label.map_or(Vec::new(), |l| l.to_le_bytes().into()),
            ]);
        }
        parts.extend(self.mask_classes.iter().map(|c| c.clone().into_bytes()));
        format!("masks:{}:{}", self.len(), digest(parts.iter().map(Vec::as_slice)))
    }
}

fn has_folders(root: &Path) -> bool {
    root.join("images").is_dir() && root.join("masks").is_dir()
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

/// Files by their paths without the extension. Two of the same name cannot be told apart.
fn by_stem(root: &Path, paths: impl IntoIterator<Item = PathBuf>) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut map: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for path in paths {
        if let Some(other) = map.insert(path.with_extension(""), path.clone()) {
            let m = format!("{} and {} have the same name", other.display(), path.display());
            return Err(Error::data(m).with_file(root).with_remedy("rename one of them, with its mask"));
        }
    }
    Ok(map)
}

/// Matches images with masks of the same stem; each needs the other. In the order of the images.
fn pair(root: &Path, images: Vec<PathBuf>, masks: Vec<PathBuf>) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut masks = by_stem(root, masks)?;
    let mut pairs = Vec::new();
    let mut lonely = Vec::new();
    for (stem, image) in by_stem(root, images)? {
        match masks.remove(&stem) {
            Some(mask) => pairs.push((image, mask)),
            None => lonely.push(image),
        }
    }
    let fail = |what: &str, paths: Vec<PathBuf>, first: &Path| {
        let count = paths.len();
        let m = format!("{count} {what}, the first is {}", first.display());
        Err(Error::data(m).with_file(root).with_remedy("give every image one mask of the same name"))
    };
    if let Some(first) = lonely.first().cloned() {
        return fail("images have no mask", lonely, &first);
    }
    if let Some(first) = masks.values().next().cloned() {
        return fail("masks have no image", masks.into_values().collect(), &first);
    }
    pairs.sort_by_cached_key(|(image, _)| key(image));
    Ok(pairs)
}

/// The layout of two folders.
fn folders(root: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let images = find_files(&root.join("images"), &is_image)?;
    let is_mask = |p: &Path| has_extension(p, "png") || has_extension(p, "npy");
    let masks = find_files(&root.join("masks"), &is_mask)?;
    let pairs = pair(root, images, masks)?;
    Ok(pairs.into_iter().map(|(i, m)| (Path::new("images").join(i), Path::new("masks").join(m))).collect())
}

/// The layout of one folder; `None` if the folder does not have it.
fn beside(root: &Path) -> Result<Option<Vec<(PathBuf, PathBuf)>>> {
    let all = list_files(root, &|p| is_image(p) || has_extension(p, "npy"))?;
    if all.iter().any(|p| has_extension(p, "npy")) {
        let (masks, images) = all.into_iter().partition(|p| has_extension(p, "npy"));
        return pair(root, images, masks).map(Some);
    }
    let (masks, images): (Vec<_>, Vec<_>) = all.into_iter().partition(|p| has_extension(p, "png"));
    // A folder of images in several formats is no set of pairs.
    let stems = |paths: &[PathBuf]| paths.iter().map(|p| p.with_extension("")).collect::<BTreeSet<_>>();
    if masks.is_empty() || masks.len() != images.len() || stems(&masks) != stems(&images) {
        return Ok(None);
    }
    pair(root, images, masks).map(Some)
}

#[cfg(test)]
mod tests;
