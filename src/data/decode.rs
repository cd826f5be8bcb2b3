//! Decoding of image files to 8-bit RGB, with limits that hold against hostile files.

use crate::error::{Error, Result};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, Rgb, RgbImage, RgbaImage};
use std::io::{Cursor, Read};
use std::path::Path;

/// The largest width or height that is decoded, in pixels.
pub const MAX_SIDE: u32 = 16384;

/// The most bytes that a file, or its decoded pixels, may take: 1 GiB.
pub const MAX_BYTES: u64 = 1 << 30;

/// Decodes the image file `path`. See [`decode`].
///
/// # Errors
/// The file cannot be read ([`Error::io`]) or decoded ([`Error::format`]); both name it.
pub fn decode_file(path: impl AsRef<Path>, background: [u8; 3]) -> Result<RgbImage> {
    decode(&read(path.as_ref())?, background, path)
}

/// Decodes the image file `path` with its straight alpha (255 where it has none). See [`decode`].
///
/// # Errors
/// As [`decode_file`].
pub fn decode_file_rgba(path: impl AsRef<Path>) -> Result<RgbaImage> {
    Ok(decode_any(&read(path.as_ref())?, path.as_ref())?.into_rgba8())
}

/// Height and width of the image that [`decode_file`] gives, in pixels; only the header is decoded.
///
/// # Errors
/// As [`decode_file`], as far as the header shows it.
pub fn dimensions(path: impl AsRef<Path>) -> Result<(u32, u32)> {
    let bytes = read(path.as_ref())?;
    let (decoder, orientation) = open(&bytes, path.as_ref())?;
    let (w, h) = decoder.dimensions();
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    let turned = matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH);
    Ok(if turned { (w, h) } else { (h, w) })
}

/// The bytes of a file, but no more than one too many for [`decode`].
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, "cannot open", e))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, "cannot read", e))?;
    Ok(bytes)
}

/// Decodes a JPEG, PNG, WebP or BMP, recognised by its content, to 8-bit RGB.
///
/// Grey becomes three equal channels, 16 bits are rounded to 8, palettes are expanded, an EXIF orientation is
/// applied. Straight alpha is composited over `background` in f32, rounding to nearest. Of an animation the first
/// frame is taken. Colour profiles are not applied. `name` is what errors call the image.
///
/// # Errors
/// [`Error::format`]: an unknown format, damaged or truncated data, sides above [`MAX_SIDE`], or more than
/// [`MAX_BYTES`] of pixels.
pub fn decode(bytes: &[u8], background: [u8; 3], name: impl AsRef<Path>) -> Result<RgbImage> {
    Ok(flatten(decode_any(bytes, name.as_ref())?, background))
}

fn bad(name: &Path, message: String) -> Error {
    Error::format(name, message).with_remedy("remove the file or replace it with an intact copy")
}

fn decode_any(bytes: &[u8], name: &Path) -> Result<DynamicImage> {
    let (decoder, orientation) = open(bytes, name)?;
    let fail = |e: image::ImageError| bad(name, format!("cannot be decoded: {e}"));
    let mut image = DynamicImage::from_decoder(decoder).map_err(fail)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// A decoder that has read the header, within the limits of [`decode`].
fn open<'a>(bytes: &'a [u8], name: &Path) -> Result<(impl ImageDecoder + 'a, Orientation)> {
    let bad = |m: String| bad(name, m);
    if bytes.len() as u64 > MAX_BYTES {
        return Err(bad(format!("is larger than the {} MiB an image file may have", MAX_BYTES >> 20)));
    }
    if bytes.is_empty() {
        return Err(bad("is empty".into()));
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| bad(format!("cannot be read as an image: {e}")))?;
    reader.limits(limits);
    match reader.format() {
        None => return Err(bad("is not a JPEG, PNG, WebP or BMP image".into())),
        // The decoder fills the missing part of a truncated JPEG with grey and reports success.
        Some(ImageFormat::Jpeg) if !jpeg_is_complete(bytes) => {
            return Err(bad("is a truncated JPEG: it has no end-of-image marker".into()));
        }
        Some(_) => {}
    }
    let fail = |e: image::ImageError| bad(format!("cannot be decoded: {e}"));
    let mut decoder = reader.into_decoder().map_err(fail)?;
    let (w, h) = decoder.dimensions();
    if w == 0 || h == 0 || decoder.total_bytes() > MAX_BYTES {
        return Err(bad(format!(
            "has {w}x{h} pixels, which cannot be decoded within {} MiB",
            MAX_BYTES >> 20
        )));
    }
    // Damaged EXIF data is no reason to refuse the pixels.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, orientation))
}

/// Drops alpha by compositing over `background`, and converts to 8-bit RGB.
fn flatten(image: DynamicImage, background: [u8; 3]) -> RgbImage {
    // `max` is the value of an opaque pixel, so the result is in units of 1/255 for either depth.
    let over = |px: [f32; 4], max: f32| {
        let a = px[3] / max;
        Rgb(std::array::from_fn(|c| {
            let v = px[c] * (255.0 / max) * a + f32::from(background[c]) * (1.0 - a);
            v.round() as u8
        }))
    };
    let (w, h) = (image.width(), image.height());
    match image {
        DynamicImage::ImageRgba8(_) | DynamicImage::ImageLumaA8(_) => {
            let rgba = image.into_rgba8();
            RgbImage::from_fn(w, h, |x, y| over(rgba.get_pixel(x, y).0.map(f32::from), 255.0))
        }
        DynamicImage::ImageRgba16(_) | DynamicImage::ImageLumaA16(_) => {
            let rgba = image.into_rgba16();
            RgbImage::from_fn(w, h, |x, y| over(rgba.get_pixel(x, y).0.map(f32::from), 65535.0))
        }
        opaque => opaque.into_rgb8(),
    }
}

/// Whether an end-of-image marker follows the first scan header. Header segments are stepped over, because an EXIF
/// thumbnail contains a marker of its own; in scan data 0xFF is always escaped, so what is found there is real.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        match bytes.get(at..at + 4) {
            Some(&[0xFF, 0xDA, _, _]) => return bytes[at..].windows(2).any(|w| w == [0xFF, 0xD9]),
            // Fill bytes before a marker.
            Some(&[0xFF, 0xFF, _, _]) => at += 1,
            Some(&[0xFF, _, hi, lo]) => at += 2 + usize::from(u16::from_be_bytes([hi, lo])),
            // Not a marker: leave the judgement to the decoder, unless nothing is left.
            Some(_) => return bytes[at..].windows(2).any(|w| w == [0xFF, 0xD9]),
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, ImageBuffer, Luma, LumaA, Rgba};

    const WHITE: [u8; 3] = [255; 3];

    fn load(bytes: &[u8], background: [u8; 3]) -> Result<RgbImage> {
        decode(bytes, background, "test image")
    }

    fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        image.into().write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    #[test]
    fn alpha_is_composited() {
        let im = ImageBuffer::from_fn(3, 1, |x, _| Rgba([200u8, 100, 0, [0, 51, 255][x as usize]]));
        let bytes = encode(im, ImageFormat::Png);
        let got = load(&bytes, WHITE).unwrap();
        // 51/255 = 0.2: 200*0.2 + 255*0.8 = 244, 100*0.2 + 204 = 224, 204.
        assert_eq!(got.as_raw(), &[255, 255, 255, 244, 224, 204, 200, 100, 0]);
        let got = load(&bytes, [0, 10, 20]).unwrap();
        assert_eq!(got.as_raw(), &[0, 10, 20, 40, 28, 16, 200, 100, 0]);
    }

    #[test]
    fn grey_and_sixteen_bits() {
        let grey = encode(GrayImage::from_pixel(2, 1, Luma([77])), ImageFormat::Png);
        assert_eq!(load(&grey, WHITE).unwrap().as_raw(), &[77; 6]);
        let la = encode(ImageBuffer::from_pixel(1, 1, LumaA([100u8, 51])), ImageFormat::Png);
        assert_eq!(load(&la, WHITE).unwrap().as_raw(), &[224; 3]);
        let deep = encode(ImageBuffer::from_pixel(1, 1, Rgb([65535u16, 257 * 100, 0])), ImageFormat::Png);
        assert_eq!(load(&deep, WHITE).unwrap().as_raw(), &[255, 100, 0]);
        let deep = encode(ImageBuffer::from_pixel(1, 1, Rgba([65535u16, 25700, 0, 13107])), ImageFormat::Png);
        assert_eq!(load(&deep, WHITE).unwrap().as_raw(), &[255, 224, 204]);
    }

    #[test]
    fn every_format_is_recognised_by_content() {
        let im = RgbImage::from_fn(9, 5, |x, y| Rgb([(x * 20) as u8, (y * 40) as u8, 90]));
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
            assert_eq!(load(&encode(im.clone(), format), WHITE).unwrap(), im, "{format:?}");
        }
        let jpeg = load(&encode(im.clone(), ImageFormat::Jpeg), WHITE).unwrap();
        assert_eq!(jpeg.dimensions(), (9, 5));
        let dir = tempfile::tempdir().unwrap();
        let misnamed = dir.path().join("really-a-png.jpg");
        std::fs::write(&misnamed, encode(im.clone(), ImageFormat::Png)).unwrap();
        assert_eq!(decode_file(&misnamed, WHITE).unwrap(), im);
    }

    /// A palette PNG cannot be written by the encoder of the `image` crate, a palette BMP is a few bytes.
    #[test]
    fn palette() {
        let mut b = b"BM".to_vec();
        for v in [66u32, 0, 62, 40, 2, 1] {
            b.extend(v.to_le_bytes()); // file size, reserved, offset of pixels; header size, width, height
        }
        b.extend([1, 0, 8, 0]); // planes, bits per pixel
        for v in [0u32, 0, 0, 0, 2, 0] {
            b.extend(v.to_le_bytes()); // compression, size, resolution x2, colours used, important
        }
        b.extend([10, 20, 30, 0, 40, 50, 60, 0]); // two colours, BGR0
        b.extend([1, 0, 0, 0]); // one padded row
        assert_eq!(load(&b, WHITE).unwrap().as_raw(), &[60, 50, 40, 30, 20, 10]);
    }

    #[test]
    fn orientation_is_applied() {
        let im = RgbImage::from_fn(16, 8, |x, _| if x < 8 { Rgb([250, 0, 0]) } else { Rgb([0, 0, 250]) });
        let jpeg = encode(im, ImageFormat::Jpeg);
        let mut exif = b"Exif\0\0II*\0".to_vec();
        exif.extend([8, 0, 0, 0, 1, 0, 0x12, 0x01, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
        let mut bytes = jpeg[..2].to_vec();
        bytes.extend([0xFF, 0xE1]);
        bytes.extend((exif.len() as u16 + 2).to_be_bytes());
        bytes.extend(exif);
        bytes.extend(&jpeg[2..]);
        // Orientation 6: the camera was turned, show it rotated by 90 degrees clockwise; the left becomes the top.
        let got = load(&bytes, WHITE).unwrap();
        assert_eq!(got.dimensions(), (8, 16));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("turned.jpg");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(dimensions(&path).unwrap(), (16, 8));
        assert!(got.get_pixel(4, 2)[0] > 200 && got.get_pixel(4, 13)[2] > 200);
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broken.png");
        let im =
            RgbImage::from_fn(64, 48, |x, y| Rgb([(x * y) as u8, (x * 31 + y * 17) as u8, (y * y) as u8]));
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::WebP] {
            let whole = encode(im.clone(), format);
            assert!(load(&whole, WHITE).is_ok());
            for cut in [0, 1, 3, 20, whole.len() / 2, whole.len() - whole.len() / 8] {
                std::fs::write(&path, &whole[..cut]).unwrap();
                let e = decode_file(&path, WHITE).expect_err(&format!("{format:?} cut at {cut}"));
                assert!(e.is_format() && e.to_string().contains("broken.png"), "{e}");
            }
        }
        std::fs::write(&path, b"just some text, not an image at all").unwrap();
        assert!(decode_file(&path, WHITE).unwrap_err().to_string().contains("JPEG, PNG, WebP or BMP"));
        assert!(decode_file(dir.path().join("absent.png"), WHITE).unwrap_err().is_io());
    }

    #[test]
    fn a_thumbnail_does_not_hide_truncation() {
        let jpeg = encode(RgbImage::from_pixel(16, 16, Rgb([9, 8, 7])), ImageFormat::Jpeg);
        let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xE1, 0, 6, 0xFF, 0xD9, 0, 0];
        bytes.extend(&jpeg[2..]);
        assert!(jpeg_is_complete(&bytes));
        assert!(!jpeg_is_complete(&bytes[..bytes.len() - 2]));
    }

    #[test]
    fn bombs_are_refused() {
        // A PNG header that claims 60000 x 60000 pixels, with valid checksums.
        let mut header = b"IHDR".to_vec();
        header.extend(60000u32.to_be_bytes());
        header.extend(60000u32.to_be_bytes());
        header.extend([8, 2, 0, 0, 0]);
        let mut crc = flate2::Crc::new();
        crc.update(&header);
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
        png.extend(&header);
        png.extend(crc.sum().to_be_bytes());
        png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        assert!(load(&png, WHITE).unwrap_err().is_format());
        // A BMP of 16384 x 16384 pixels in 32 bits is within the side limit, but exactly 1 GiB; a row more is not.
        for (h, limit) in [(60_000i32, "limit"), (16_385, "limit")] {
            let mut bmp = b"BM".to_vec();
            for v in [54u32, 0, 54, 40, 16384, h as u32] {
                bmp.extend(v.to_le_bytes());
            }
            bmp.extend([1, 0, 32, 0]);
            bmp.extend([0; 24]);
            let e = load(&bmp, WHITE).unwrap_err();
            assert!(e.to_string().to_lowercase().contains(limit), "{e}");
        }
    }
}
