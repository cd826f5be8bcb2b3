//! Class masks: one id a pixel.

use super::decode::{MAX_BYTES, MAX_SIDE, read};
use super::npy;
use crate::error::{Error, Result};
use std::io::{BufWriter, Cursor};
use std::path::Path;

/// An image of ids, of classes or of objects. Resized only by taking the nearest pixel: ids are names, not amounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    height: u32,
    width: u32,
    ids: Vec<u16>,
}

impl Mask {
    /// A mask of `height` x `width` ids, row by row.
    ///
    /// # Errors
    /// [`Error::data`]: a side of zero or above [`MAX_SIDE`], or another number of ids than pixels.
    pub fn new(height: u32, width: u32, ids: Vec<u16>) -> Result<Self> {
        let sides = 1..=MAX_SIDE;
        let pixels = height as usize * width as usize;
        if !sides.contains(&height) || !sides.contains(&width) || ids.len() != pixels {
            return Err(Error::data(format!(
                "{} ids do not make a mask of {height}x{width} pixels",
                ids.len()
            ))
            .with_remedy(format!("give one id for every pixel, and sides of 1 to {MAX_SIDE}")));
        }
        Ok(Mask { height, width, ids })
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// The ids, row by row.
    pub fn ids(&self) -> &[u16] {
        &self.ids
    }

    /// The mask at another size: every pixel takes the id of the pixel that its middle falls on.
    ///
    /// # Errors
    /// [`Error::data`]: a side of zero or above [`MAX_SIDE`].
    pub fn resize_nearest(&self, height: u32, width: u32) -> Result<Mask> {
        let source = |to: u32, from: u32| -> Vec<usize> {
            // (2 i + 1) / 2 pixels of the target, in pixels of the source, rounded down.
            let middle = |i: u64| ((2 * i + 1) * u64::from(from) / (2 * u64::from(to))) as usize;
            (0..u64::from(to)).map(middle).collect()
        };
        if height == 0 || width == 0 {
            return Mask::new(height, width, Vec::new());
        }
        let (rows, columns) = (source(height, self.height), source(width, self.width));
        let at = |y: usize, x: usize| self.ids[y * self.width as usize + x];
        let ids = rows.iter().flat_map(|&y| columns.iter().map(move |&x| at(y, x))).collect();
        Mask::new(height, width, ids)
    }

    /// Reads a mask: a grey or palette PNG, whose values or palette indices are the ids, or a two-dimensional NPY array
    /// of u8, u16, i32 or i64. What it is decides its content, not its name.
    ///
    /// # Errors
    /// [`Error::io`]: the file cannot be read. [`Error::format`]: it is empty, damaged, or has colours or ids outside of
    /// 0..=65535.
    pub fn read(path: impl AsRef<Path>) -> Result<Mask> {
        let path = path.as_ref();
        Self::decode(&read(path)?, path)
    }

    /// As [`Mask::read`], from bytes; `name` is what errors call them.
    ///
    /// # Errors
    /// As [`Mask::read`].
    pub fn decode(bytes: &[u8], name: impl AsRef<Path>) -> Result<Mask> {
        let name = name.as_ref();
        let bad =
            |m: String| Error::format(name, m).with_remedy("give masks as grey or palette PNG, or as NPY");
        if bytes.is_empty() {
            return Err(bad("is empty".into()));
        }
        if bytes.len() as u64 > MAX_BYTES {
            return Err(bad(format!("is larger than the {} MiB a mask may have", MAX_BYTES >> 20)));
        }
        if bytes.starts_with(b"\x89PNG") {
            return decode_png(bytes, name);
        }
        if !bytes.starts_with(b"\x93NUMPY") {
            return Err(bad("is neither a PNG nor an NPY file".into()));
        }
        let array = npy::parse(bytes, name)?;
        let id =
            |&v: &i64| u16::try_from(v).map_err(|_| bad(format!("holds the id {v}, outside of 0..=65535")));
        let ids = array.values.iter().map(id).collect::<Result<_>>()?;
        let side = |v: usize| u32::try_from(v).unwrap_or(u32::MAX);
        Mask::new(side(array.rows), side(array.columns), ids).map_err(|e| e.with_file(name))
    }

    /// Writes a grey PNG: of 8 bits where all ids fit, else of 16.
    ///
    /// # Errors
    /// [`Error::io`].
    pub fn write_png(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let fail = |e: std::io::Error| Error::io(path, "cannot write the mask", e);
        let file = std::fs::File::create(path).map_err(fail)?;
        let mut encoder = png::Encoder::new(BufWriter::new(file), self.width, self.height);
        encoder.set_color(png::ColorType::Grayscale);
        let deep = self.ids.iter().any(|&id| id > 255);
        let data: Vec<u8> = if deep {
            encoder.set_depth(png::BitDepth::Sixteen);
            self.ids.iter().flat_map(|id| id.to_be_bytes()).collect()
        } else {
            encoder.set_depth(png::BitDepth::Eight);
            self.ids.iter().map(|&id| id as u8).collect()
        };
        let write = || -> Result<(), png::EncodingError> {
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&data)?;
            writer.finish()
        };
        write().map_err(|e| fail(std::io::Error::other(e)))
    }
}

/// The ids of a grey or palette PNG. The `image` crate would give a palette's colours in place of its indices.
fn decode_png(bytes: &[u8], name: &Path) -> Result<Mask> {
    let bad = |m: String| Error::format(name, m).with_remedy("save the mask as a grey or palette PNG");
    let fail = |e: png::DecodingError| bad(format!("cannot be decoded: {e}"));
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(fail)?;
    let (height, width) = (reader.info().height, reader.info().width);
    let (colour, depth) = reader.output_color_type();
    if !matches!(colour, png::ColorType::Grayscale | png::ColorType::Indexed) {
        return Err(bad(format!("has {colour:?} pixels, from which no class ids can be told")));
    }
    let size = reader.output_buffer_size().filter(|&n| n as u64 <= MAX_BYTES);
    let too_large = || bad(format!("has {height}x{width} pixels, more than can be decoded"));
    if height > MAX_SIDE || width > MAX_SIDE {
        return Err(too_large());
    }
    let mut data = vec![0; size.ok_or_else(too_large)?];
    let frame = reader.next_frame(&mut data).map_err(fail)?;
    let bits = depth as usize;
    let ids = data.chunks_exact(frame.line_size).take(height as usize).flat_map(|line| {
        (0..width as usize).map(move |x| match bits {
            16 => u16::from_be_bytes([line[2 * x], line[2 * x + 1]]),
            8 => u16::from(line[x]),
            // Several pixels a byte, the first in the highest bits.
            n => {
                let shift = 8 - n - x * n % 8;
                u16::from(line[x * n / 8] >> shift) & ((1 << n) - 1)
            }
        })
    });
    Mask::new(height, width, ids.collect()).map_err(|e| e.with_file(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::npy::tests::npy;

    fn png_of(colour: png::ColorType, depth: png::BitDepth, width: u32, height: u32, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut e = png::Encoder::new(&mut out, width, height);
        e.set_color(colour);
        e.set_depth(depth);
        if colour == png::ColorType::Indexed {
            e.set_palette((0..48).collect::<Vec<u8>>());
        }
        let mut w = e.write_header().unwrap();
        w.write_image_data(data).unwrap();
        w.finish().unwrap();
        out
    }

    #[test]
    fn wrong_sizes_are_refused() {
        for (h, w, n) in [(0, 3, 0), (2, 2, 3), (2, 2, 5), (MAX_SIDE + 1, 1, 16385)] {
            assert!(Mask::new(h, w, vec![0; n]).unwrap_err().is_data());
        }
    }

    #[test]
    fn nearest_takes_the_pixel_under_the_middle() {
        let m = Mask::new(2, 3, vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(m.resize_nearest(2, 3).unwrap(), m);
        assert_eq!(m.resize_nearest(4, 3).unwrap().ids(), [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]);
        assert_eq!(m.resize_nearest(1, 1).unwrap().ids(), [5]);
        assert_eq!(m.resize_nearest(1, 5).unwrap().ids(), [4, 4, 5, 6, 6]);
        assert!(m.resize_nearest(0, 5).unwrap_err().is_data());
    }

    #[test]
    fn png_round_trip_in_both_depths() {
        let dir = tempfile::tempdir().unwrap();
        for (name, ids) in [("a.png", vec![0, 255, 7, 1, 2, 3]), ("b.png", vec![0, 256, 65535, 1, 2, 3])] {
            let (path, m) = (dir.path().join(name), Mask::new(2, 3, ids).unwrap());
            m.write_png(&path).unwrap();
            assert_eq!(Mask::read(&path).unwrap(), m);
        }
        let absent = dir.path().join("no/folder/x.png");
        assert!(Mask::new(1, 1, vec![0]).unwrap().write_png(&absent).unwrap_err().is_io());
        assert!(Mask::read(&absent).unwrap_err().is_io());
    }

    #[test]
    fn palettes_and_few_bits_give_indices() {
        use png::{BitDepth, ColorType};
        let read = |b: &[u8]| Mask::decode(b, "x.png").unwrap().ids().to_vec();
        let indexed = png_of(ColorType::Indexed, BitDepth::Eight, 2, 2, &[3, 0, 15, 1]);
        assert_eq!(read(&indexed), [3, 0, 15, 1]);
        // Rows begin at whole bytes.
        let four = png_of(ColorType::Indexed, BitDepth::Four, 3, 2, &[0x12, 0x30, 0x45, 0x60]);
        assert_eq!(read(&four), [1, 2, 3, 4, 5, 6]);
        let one = png_of(ColorType::Grayscale, BitDepth::One, 9, 1, &[0b1010_0001, 0b1000_0000]);
        assert_eq!(read(&one), [1, 0, 1, 0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn npy_and_its_limits() {
        let m = Mask::decode(
            &npy("<i8", false, "(1, 2)", &[7, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0]),
            "m",
        );
        assert_eq!(m.unwrap(), Mask::new(1, 2, vec![7, 255]).unwrap());
        for v in [-1i32, 65536] {
            let e = Mask::decode(&npy("<i4", false, "(1, 1)", &v.to_le_bytes()), "m.npy").unwrap_err();
            assert!(e.is_format() && e.to_string().contains(&format!("the id {v}")), "{e}");
        }
        assert!(Mask::decode(&npy("|u1", false, "(0, 4)", &[]), "m.npy").unwrap_err().is_data());
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        use png::{BitDepth, ColorType};
        let rgb = png_of(ColorType::Rgb, BitDepth::Eight, 1, 1, &[1, 2, 3]);
        let grey = png_of(ColorType::Grayscale, BitDepth::Eight, 40, 40, &[9; 1600]);
        for (bytes, needle) in [
            (&b""[..], "empty"),
            (b"hello", "neither"),
            (&rgb, "Rgb"),
            (&grey[..20], "decoded"),
            (&grey[..grey.len() / 2], "decoded"),
        ] {
            let e = Mask::decode(bytes, "dir/x.png").unwrap_err();
            let text = e.to_string();
            assert!(e.is_format() && text.contains("dir/x.png") && text.contains(needle), "{text}");
        }
    }
}
