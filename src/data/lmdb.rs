//! Images in an LMDB environment, the form in which LSUN comes.

use super::decode::decode;
use super::source::{ImageSource, digest};
use crate::error::{Error, Result};
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, WithoutTls};
use image::RgbImage;
use std::path::{Path, PathBuf};

/// A folder with `data.mdb`, whose values are encoded images, in the order of their keys. Without labels.
#[derive(Debug)]
pub struct LmdbImages {
    path: PathBuf,
    env: Env<WithoutTls>,
    database: Database<Bytes, Bytes>,
    /// All keys one after another, and where each ends.
    keys: Vec<u8>,
    ends: Vec<usize>,
}

impl LmdbImages {
    /// Opens an environment without writing to it. The keys are read once.
    ///
    /// The file must not be changed while it is open, which nobody does with a finished data set.
    ///
    /// # Errors
    /// [`Error::format`]: no LMDB environment, or a truncated one. [`Error::data`]: no image.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bad = |e: heed::Error| {
            Error::format(path, "cannot be read as an LMDB environment")
                .with_source(e)
                .with_remedy("give the folder with an intact data.mdb, or fetch it again")
        };
        let file = path.join("data.mdb");
        let size = std::fs::metadata(&file).map_err(|e| Error::io(&file, "cannot open", e))?.len();
        if size == 0 {
            return Err(Error::format(&file, "is empty").with_remedy("fetch the data set again"));
        }
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.max_readers(1024);
        // Without this much address space for the map, LMDB refuses a larger file.
        options.map_size(usize::try_from(size.next_multiple_of(1 << 16)).unwrap_or(usize::MAX));
        // SAFETY: the file is mapped read-only and, as documented, changed by nobody while it is open, which is also what
        // makes reading without a lock file sound. That it is as long as its header says is checked below, before any
        // page but the two of the header is read.
        let env =
            unsafe { options.flags(EnvFlags::READ_ONLY | EnvFlags::NO_LOCK).open(path) }.map_err(bad)?;
        let pages = env.info().last_page_number as u64 + 1;
        let txn = env.read_txn().map_err(bad)?;
        let database: Option<Database<Bytes, Bytes>> = env.open_database(&txn, None).map_err(bad)?;
        let none = || Error::data("holds no images").with_file(path).with_remedy("check the path");
        let database = database.ok_or_else(none)?;
        let page = u64::from(database.stat(&txn).map_err(bad)?.page_size);
        if pages * page > size {
            return Err(Error::format(&file, format!("is truncated: {size} of {} bytes", pages * page))
                .with_remedy("fetch the data set again"));
        }
        let (mut keys, mut ends) = (Vec::new(), Vec::new());
        for entry in database.iter(&txn).map_err(bad)? {
            keys.extend(entry.map_err(bad)?.0);
            ends.push(keys.len());
        }
        // Keeps the handle of the database valid beyond this transaction.
        txn.commit().map_err(bad)?;
        if ends.is_empty() {
            return Err(none());
        }
        Ok(LmdbImages { path: path.to_path_buf(), env, database, keys, ends })
    }

    fn key(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        self.keys.get(start..end)
    }
}

impl ImageSource for LmdbImages {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn load(&self, index: usize, background: [u8; 3]) -> Result<RgbImage> {
        let absent =
            || Error::data(format!("image {index} of {} does not exist", self.len())).with_file(&self.path);
        let key = self.key(index).ok_or_else(absent)?;
        let fail = |e: heed::Error| {
            Error::data(format!("cannot read image {index}")).with_file(&self.path).with_source(e)
        };
        let txn = self.env.read_txn().map_err(fail)?;
        let bytes = self.database.get(&txn, key).map_err(fail)?.ok_or_else(absent)?;
        decode(bytes, background, self.name(index))
    }

    fn name(&self, index: usize) -> String {
        let key =
            self.key(index).map_or_else(|| index.to_string(), |k| String::from_utf8_lossy(k).into_owned());
        format!("{}#{key}", self.path.display())
    }

    fn label(&self, _index: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    /// Covers the keys, not the images.
    fn fingerprint(&self) -> String {
        format!("lmdb:{}:{}", self.len(), digest([self.keys.as_slice()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Split, open_path};
    use image::{ImageFormat, Rgb};
    use std::io::Cursor;

    /// An environment with these entries.
    fn write(path: &Path, entries: &[(&str, &[u8])]) {
        std::fs::create_dir_all(path).unwrap();
        // SAFETY: a fresh folder that only this test uses.
        let env = unsafe { EnvOpenOptions::new().map_size(1 << 20).open(path) }.unwrap();
        let mut txn = env.write_txn().unwrap();
        let database: Database<Bytes, Bytes> = env.create_database(&mut txn, None).unwrap();
        for (key, value) in entries {
            database.put(&mut txn, key.as_bytes(), value).unwrap();
        }
        txn.commit().unwrap();
        env.prepare_for_closing().wait();
    }

    fn encoded(grey: u8, format: ImageFormat) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        RgbImage::from_pixel(40, 30, Rgb([grey; 3])).write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    #[test]
    fn reads_images_in_the_order_of_keys() {
        let dir = tempfile::tempdir().unwrap();
        let (webp, png) = (encoded(9, ImageFormat::WebP), encoded(5, ImageFormat::Png));
        write(dir.path(), &[("b", &webp), ("a", &png), ("c", b"no image")]);
        let set = open_path(dir.path(), Split::Train).unwrap();
        assert_eq!((set.len(), set.label(0), set.classes().len()), (3, None, 0));
        let greys: Vec<u8> = (0..2).map(|i| set.load(i, [0; 3]).unwrap().as_raw()[0]).collect();
        assert_eq!(greys, [5, 9]);
        assert!(set.name(1).ends_with("#b"));
        let e = set.load(2, [0; 3]).unwrap_err();
        assert!(e.is_format() && e.to_string().contains("#c"), "{e}");
        assert!(set.load(3, [0; 3]).unwrap_err().is_data());
        // Several threads read at once.
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..50).for_each(|i| drop(set.load(i % 2, [0; 3]).unwrap())));
            }
        });
    }

    #[test]
    fn damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        let images: Vec<(String, Vec<u8>)> =
            (0..40).map(|i| (format!("{i:02}"), encoded(i, ImageFormat::Bmp))).collect();
        let entries: Vec<(&str, &[u8])> = images.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
        write(&whole, &entries);
        let bytes = std::fs::read(whole.join("data.mdb")).unwrap();
        let cut = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("data.mdb"), bytes).unwrap();
            LmdbImages::open(&path).map(|_| ()).unwrap_err()
        };
        assert!(cut("zero", b"").is_format());
        assert!(cut("text", &[b'x'; 9000]).is_format());
        assert!(cut("short", &bytes[..100]).is_format());
        let e = cut("half", &bytes[..bytes.len() / 2]);
        assert!(e.is_format() && e.to_string().contains("truncated"), "{e}");
        let none = dir.path().join("none");
        write(&none, &[]);
        assert!(LmdbImages::open(&none).map(|_| ()).unwrap_err().is_data());
        assert!(LmdbImages::open(dir.path().join("absent")).map(|_| ()).unwrap_err().is_io());
    }
}
