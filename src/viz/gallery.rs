//! Pictures in a folder, with what is to be said about them.

use crate::error::{Error, Result};
use crate::tensor::write_atomically;
use image::RgbImage;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The folder of a run's pictures.
pub const FOLDER: &str = "viz";
/// The list of a folder's pictures.
pub const LIST: &str = "pictures.json";

/// One picture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    /// The PNG's name in the folder.
    pub file: String,
    /// What it shows.
    pub title: String,
    /// How to read it.
    #[serde(default)]
    pub caption: String,
    /// Names of its columns of equal width; empty for a plain picture.
    #[serde(default)]
    pub columns: Vec<String>,
    /// Height in pixels of the band at the top in which these names are drawn.
    #[serde(default)]
    pub band: u32,
}

/// The pictures of a folder, in the order in which they are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gallery {
    /// The pictures.
    pub pictures: Vec<Picture>,
}

impl Gallery {
    /// The pictures in a folder: those of its list, then every other PNG by name. Nothing without the folder; listed
    /// pictures that are gone are left out.
    ///
    /// # Errors
    /// The list is malformed or names a file outside the folder.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut gallery = Self::read_list(dir)?;
        gallery.pictures.retain(|p| dir.join(&p.file).is_file());
        let mut others: Vec<String> = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|n| n.ends_with(".png") && gallery.pictures.iter().all(|p| p.file != *n))
            .collect();
        others.sort();
        for file in others {
            let title = file.trim_end_matches(".png").replace('_', " ");
            gallery.pictures.push(Picture { file, title, ..Picture::default() });
        }
        Ok(gallery)
    }

    fn read_list(dir: &Path) -> Result<Self> {
        let path = dir.join(LIST);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Gallery::default()),
            Err(e) => return Err(Error::io(&path, "cannot read the list of pictures", e)),
        };
        let bad = |what: &str| {
            Error::format(&path, what).with_remedy("remove the file; the pictures are then shown by name")
        };
        let gallery: Gallery =
            serde_json::from_str(&text).map_err(|e| bad("is no list of pictures").with_source(e))?;
        let plain = |f: &str| Path::new(f).file_name().is_some_and(|n| n == f);
        match gallery.pictures.iter().find(|p| !plain(&p.file)) {
            Some(p) => Err(bad("names a file that is not in its folder").with_key(p.file.clone())),
            None => Ok(gallery),
        }
    }

    /// Writes a picture into a folder, which is created if need be, and puts it on the folder's list: in the place of
    /// the one of the same name, or at the end.
    ///
    /// # Errors
    /// A file cannot be written, or the folder's list is malformed.
    pub fn add(dir: &Path, picture: Picture, image: &RgbImage) -> Result<()> {
        std::fs::create_dir_all(dir)
            .map_err(|e| Error::io(dir, "cannot create the folder of pictures", e))?;
        let mut gallery = Self::read_list(dir)?;
        let bytes = super::html::png_bytes(image)?;
        write_atomically(dir.join(&picture.file), |f| f.write_all(&bytes))?;
        match gallery.pictures.iter_mut().find(|p| p.file == picture.file) {
            Some(old) => *old = picture,
            None => gallery.pictures.push(picture),
        }
        let text = serde_json::to_string_pretty(&gallery).expect("a list of pictures is plain data");
        write_atomically(dir.join(LIST), |f| writeln!(f, "{text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_keep_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("viz");
        assert_eq!(Gallery::read(&at).unwrap(), Gallery::default());
        let image = RgbImage::new(2, 2);
        let named = |file: &str, title: &str| Picture {
            file: file.into(),
            title: title.into(),
            ..Picture::default()
        };
        for (file, title) in [("b.png", "B"), ("a.png", "A"), ("b.png", "B again")] {
            Gallery::add(&at, named(file, title), &image).unwrap();
        }
        std::fs::write(at.join("by_hand.png"), "x").unwrap();
        let titles: Vec<String> = Gallery::read(&at).unwrap().pictures.into_iter().map(|p| p.title).collect();
        assert_eq!(titles, ["B again", "A", "by hand"]);
        std::fs::remove_file(at.join("a.png")).unwrap();
        assert_eq!(Gallery::read(&at).unwrap().pictures.len(), 2);
    }

    #[test]
    fn a_list_does_not_reach_outside() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["../secret.png", "/etc/x.png", "..", "a/b.png"] {
            let text = format!("{{\"pictures\":[{{\"file\":\"{file}\",\"title\":\"x\"}}]}}");
            std::fs::write(dir.path().join(LIST), text).unwrap();
            let e = Gallery::read(dir.path()).unwrap_err();
            assert!(e.is_format() && e.to_string().contains(file), "{e}");
        }
        std::fs::write(dir.path().join(LIST), "[").unwrap();
        assert!(Gallery::read(dir.path()).unwrap_err().is_format());
    }
}
