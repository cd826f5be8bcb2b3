//! What pages need: escaped text, and pictures inside the page.

use crate::error::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::png};

/// Text for an element or a quoted attribute: the five characters that mean something in HTML and SVG are written as
/// references, and control characters other than tab and line feed are dropped.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// A picture as the bytes of a PNG file.
///
/// # Errors
/// A picture of no pixels.
pub fn png_bytes(image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let encoder =
        png::PngEncoder::new_with_quality(&mut bytes, png::CompressionType::Best, png::FilterType::Adaptive);
    encoder
        .write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8)
        .map_err(|e| Error::data("a picture cannot be written as PNG").with_source(e))?;
    Ok(bytes)
}

/// The bytes of a PNG file as an address that holds them, for `src` attributes.
pub fn data_uri(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_markup() {
        assert_eq!(escape("a<b>&\"c\"'d'\u{1b}\u{0}\n"), "a&lt;b&gt;&amp;&quot;c&quot;&#39;d&#39;\n");
        assert_eq!(escape("plain – text ±"), "plain – text ±");
    }

    #[test]
    fn pictures_come_back() {
        let image = RgbImage::from_fn(3, 2, |x, y| image::Rgb([x as u8, y as u8, 9]));
        let uri = data_uri(&png_bytes(&image).unwrap());
        let bytes = STANDARD.decode(uri.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
        assert_eq!(image::load_from_memory(&bytes).unwrap().into_rgb8(), image);
    }
}
