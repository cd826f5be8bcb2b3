//! IDX files, plain or gzipped: the format of MNIST and Fashion-MNIST (<http://yann.lecun.com/exdb/mnist/>).

use super::decode::MAX_SIDE;
use super::source::{ImageSource, digest};
use crate::error::{Error, Result};
use image::RgbImage;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// The most data bytes an IDX file may announce: 4 GiB.
const MAX_DATA: u64 = 4 << 30;

/// An IDX array of unsigned bytes.
#[derive(Debug)]
pub struct IdxArray {
    dims: Vec<usize>,
    data: Vec<u8>,
}

impl IdxArray {
    /// Reads an IDX file of type u8 (`00 00 08 rank`, big-endian u32 dimensions, data). Gzip is recognised by
    /// content. Memory grows with what the file really holds, never with what its header claims.
    ///
    /// # Errors
    /// [`Error::io`]: unreadable. [`Error::format`]: another type, zero or too large dimensions, less or more data
    /// than the header announces, damaged gzip.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let read = |e: std::io::Error| Error::io(path, "cannot read the IDX file", e);
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, "cannot open", e))?;
        let mut start = Vec::new();
        let mut file = BufReader::new(file);
        file.by_ref().take(2).read_to_end(&mut start).map_err(read)?;
        let whole = std::io::Cursor::new(start.clone()).chain(file);
        if start == [0x1F, 0x8B] {
            Self::read(flate2::bufread::MultiGzDecoder::new(whole), path)
        } else {
            Self::read(whole, path)
        }
    }

    fn read(mut r: impl Read, path: &Path) -> Result<Self> {
        let bad = |m: String| {
            Error::format(path, m).with_remedy("check that the file is an intact IDX file of unsigned bytes")
        };
        // With gzip, a read error usually means damaged data rather than a failing disk.
        let cut = |e: std::io::Error| bad(format!("cannot be read to the end of its header: {e}"));
        let mut magic = [0u8; 4];
        r.read_exact(&mut magic).map_err(cut)?;
        let rank = usize::from(magic[3]);
        if magic[..3] != [0, 0, 8] || !(1..=4).contains(&rank) {
            return Err(bad(format!("is not an IDX array of unsigned bytes (it starts with {magic:02x?})")));
        }
        let mut dims = Vec::with_capacity(rank);
        for _ in 0..rank {
            let mut d = [0u8; 4];
            r.read_exact(&mut d).map_err(cut)?;
            dims.push(u32::from_be_bytes(d));
        }
        let total =
            dims.iter().try_fold(1u64, |p, &d| p.checked_mul(u64::from(d)).filter(|&p| p <= MAX_DATA));
        let Some(total) = total.filter(|&t| t > 0) else {
            return Err(bad(format!("announces the shape {dims:?}, which is empty or above 4 GiB")));
        };
        let mut data = Vec::new();
        r.take(total + 1)
            .read_to_end(&mut data)
            .map_err(|e| bad(format!("cannot be read to its end: {e}")))?;
        if data.len() as u64 != total {
            let have = if data.len() as u64 > total { "more".into() } else { format!("only {}", data.len()) };
            return Err(bad(format!("announces {total} bytes of data (shape {dims:?}) but holds {have}")));
        }
        Ok(IdxArray { dims: dims.into_iter().map(|d| d as usize).collect(), data })
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The bytes, row-major.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

/// Images `[N, H, W]` (grey) or `[N, H, W, 3]` (RGB) of an IDX file, with labels `[N]` of another one.
#[derive(Debug)]
pub struct IdxImages {
    path: PathBuf,
    images: IdxArray,
    labels: Option<IdxArray>,
    classes: Vec<String>,
}

impl IdxImages {
    /// Reads the images and, where given, the labels.
    ///
    /// # Errors
    /// As [`IdxArray::open`]; also shapes that are not those of images or labels, or that do not fit together.
    pub fn open(images: impl AsRef<Path>, labels: Option<&Path>) -> Result<Self> {
        let path = images.as_ref();
        let array = IdxArray::open(path)?;
        let side = |d: usize| d <= MAX_SIDE as usize;
        let n = match *array.dims() {
            [n, h, w] | [n, h, w, 3] if side(h) && side(w) => n,
            _ => {
                return Err(Error::format(path, "expects images [N, H, W] or [N, H, W, 3]")
                    .with_tensor("images", format!("u8 {:?}", array.dims()))
                    .with_remedy("check that this is the file of images and not the file of labels"));
            }
        };
        let labels = labels.map(|p| IdxArray::open(p).map(|a| (p, a))).transpose()?;
        if let Some((p, a)) = labels.as_ref().filter(|(_, a)| a.dims() != [n]) {
            return Err(Error::format(p, format!("expects {n} labels for the images of {}", path.display()))
                .with_tensor("labels", format!("u8 {:?}", a.dims()))
                .with_remedy("pair the images with the labels of the same split"));
        }
        let labels = labels.map(|(_, a)| a);
        let count = labels.iter().flat_map(|a| a.data()).max().map_or(0, |&m| u32::from(m) + 1);
        let classes = (0..count).map(|c| c.to_string()).collect();
        Ok(IdxImages { path: path.to_path_buf(), images: array, labels, classes })
    }

    /// Opens one split of a folder with the usual file names: `<split>-images-idx3-ubyte` and
    /// `<split>-labels-idx1-ubyte`, with or without `.gz`. MNIST's splits are `train` and `t10k`. Labels may be absent.
    ///
    /// # Errors
    /// The images are absent, or as [`IdxImages::open`].
    pub fn open_split(dir: impl AsRef<Path>, split: &str) -> Result<Self> {
        let dir = dir.as_ref();
        let find = |what: &str| {
            let plain = dir.join(format!("{split}-{what}-ubyte"));
            let gz = dir.join(format!("{split}-{what}-ubyte.gz"));
            [plain, gz].into_iter().find(|p| p.is_file())
        };
        let images = find("images-idx3").ok_or_else(|| {
            Error::data(format!("no IDX images of the split `{split}`"))
                .with_file(dir)
                .with_remedy(format!("put `{split}-images-idx3-ubyte` or its .gz there"))
        })?;
        Self::open(images, find("labels-idx1").as_deref())
    }
}

impl ImageSource for IdxImages {
    fn len(&self) -> usize {
        self.images.dims()[0]
    }

    fn load(&self, index: usize, _background: [u8; 3]) -> Result<RgbImage> {
        let absent =
            || Error::data(format!("image {index} of {} does not exist", self.len())).with_file(&self.path);
        let d = self.images.dims();
        let size: usize = d[1..].iter().product();
        let px = self.images.data().chunks_exact(size).nth(index).ok_or_else(absent)?;
        let rgb = if d.len() == 4 { px.to_vec() } else { px.iter().flat_map(|&v| [v; 3]).collect() };
        RgbImage::from_raw(d[2] as u32, d[1] as u32, rgb).ok_or_else(absent)
    }

    fn name(&self, index: usize) -> String {
        format!("{}#{index}", self.path.display())
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.as_ref().and_then(|l| l.data().get(index)).map(|&l| u32::from(l))
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn fingerprint(&self) -> String {
        format!("idx:{}:{}", self.len(), digest([self.images.data()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
        let mut b = vec![0, 0, 8, dims.len() as u8];
        for d in dims {
            b.extend(d.to_be_bytes());
        }
        b.extend(data);
        b
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    }

    #[test]
    fn reads_grey_rgb_gz_and_labels() {
        let dir = tempfile::tempdir().unwrap();
        let p = |n: &str| dir.path().join(n);
        let grey = idx(&[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
        std::fs::write(p("train-images-idx3-ubyte"), &grey).unwrap();
        std::fs::write(p("t10k-images-idx3-ubyte.gz"), gz(&grey)).unwrap();
        std::fs::write(p("t10k-labels-idx1-ubyte.gz"), gz(&idx(&[2], &[7, 0]))).unwrap();
        let train = IdxImages::open_split(dir.path(), "train").unwrap();
        let test = IdxImages::open_split(dir.path(), "t10k").unwrap();
        let one = test.load(1, [0; 3]).unwrap();
        assert_eq!((one.dimensions(), one.as_raw().as_slice()), ((3, 1), &[4, 4, 4, 5, 5, 5, 6, 6, 6][..]));
        assert_eq!(train.fingerprint(), test.fingerprint());
        assert_eq!(
            (train.label(0), test.label(0), test.label(1), test.label(2)),
            (None, Some(7), Some(0), None)
        );
        assert_eq!((train.classes().len(), test.classes().len()), (0, 8));
        assert!(test.load(2, [0; 3]).unwrap_err().is_data());
        std::fs::write(p("rgb"), idx(&[1, 1, 2, 3], &[1, 2, 3, 4, 5, 6])).unwrap();
        let rgb = IdxImages::open(p("rgb"), None).unwrap();
        assert_eq!(rgb.load(0, [0; 3]).unwrap().as_raw(), &[1, 2, 3, 4, 5, 6]);
        assert!(IdxImages::open_split(dir.path(), "val").unwrap_err().is_data());
    }

    #[test]
    fn lies_are_errors_and_allocate_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let huge = u32::MAX;
        let cases: [Vec<u8>; 12] = [
            vec![],
            vec![0, 0, 8],
            vec![0, 0, 9, 1, 0, 0, 0, 1, 5],
            vec![0, 0, 8, 0],
            vec![0, 0, 8, 3, 0, 0],
            idx(&[2, 2, 2], &[0; 7]),
            idx(&[2, 2, 2], &[0; 9]),
            idx(&[huge, huge, huge], &[0; 8]),
            idx(&[4_000_000, 28, 28], &[0; 8]),
            idx(&[0, 28, 28], &[]),
            idx(&[2, 2, 2, 2], &[0; 16]),
            idx(&[4], &[0; 4]),
        ];
        for (i, bytes) in cases.iter().enumerate() {
            for bytes in [bytes.clone(), gz(bytes)] {
                std::fs::write(&path, bytes).unwrap();
                let e = IdxImages::open(&path, None).expect_err(&format!("case {i}"));
                assert!(e.is_format(), "case {i}: {e:?}");
            }
        }
        let whole = gz(&idx(&[2, 16, 16], &(0..512).map(|v| (v * v / 7) as u8).collect::<Vec<_>>()));
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(IdxImages::open(&path, None).unwrap_err().is_format());
        assert!(IdxImages::open(dir.path().join("absent"), None).unwrap_err().is_io());
    }

    #[test]
    fn labels_must_match() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("images"), dir.path().join("labels"));
        std::fs::write(&a, idx(&[2, 1, 1], &[1, 2])).unwrap();
        std::fs::write(&b, idx(&[3], &[1, 2, 3])).unwrap();
        let e = IdxImages::open(&a, Some(&b)).unwrap_err();
        assert!(e.is_format() && e.to_string().contains("[3]"), "{e}");
    }
}
