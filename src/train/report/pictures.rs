//! The pictures of a run.

use crate::error::Result;
use crate::viz::gallery::{Gallery, Picture};
use crate::viz::html::{data_uri, escape, png_bytes};
use std::fmt::Write;
use std::path::Path;

/// A picture ready to be put into the page.
pub(super) struct Shown {
    picture: Picture,
    /// Width of the picture in pixels.
    width: u32,
    /// Height without the band of labels, which the page writes itself.
    height: u32,
    uri: String,
}

/// The pictures of a folder; none without the folder.
///
/// # Errors
/// The folder's list or a picture is malformed.
pub(super) fn read(dir: &Path) -> Result<Vec<Shown>> {
    let mut out = Vec::new();
    for picture in Gallery::read(dir)?.pictures {
        let path = dir.join(&picture.file);
        let image = crate::data::decode::decode_file(&path, [255; 3])?;
        let (width, all) = image.dimensions();
        let band = if picture.columns.is_empty() { 0 } else { picture.band.min(all - 1) };
        let height = all - band;
        let bare = image::imageops::crop_imm(&image, 0, band, width, height).to_image();
        out.push(Shown { picture, width, height, uri: data_uri(&png_bytes(&bare)?) });
    }
    Ok(out)
}

/// All pictures as figures; empty without any.
pub(super) fn html(pictures: &[Shown]) -> String {
    if pictures.is_empty() {
        return String::new();
    }
    let mut out = String::from("<div class=\"pictures\">\n");
    for s in pictures {
        let p = &s.picture;
        let n = p.columns.len();
        // Below this width labels would not be readable: the picture scrolls sideways instead.
        let least = (n * 68).max(200).min(s.width.max(200) as usize);
        let _ = write!(
            out,
            "<figure class=\"card\"><figcaption><b>{}</b></figcaption><div class=\"scroll\">\
             <div class=\"mosaic\" style=\"min-width:{least}px;max-width:{}px\">",
            escape(&p.title),
            s.width
        );
        if n > 0 {
            let _ = write!(out, "<div class=\"columns\" style=\"grid-template-columns:repeat({n},1fr)\">");
            for column in &p.columns {
                let _ = write!(out, "<span>{}</span>", escape(column));
            }
            out.push_str("</div>");
        }
        let _ = write!(
            out,
            "<img src=\"{}\" width=\"{}\" height=\"{}\" alt=\"{}\"></div></div>",
            s.uri,
            s.width,
            s.height,
            escape(&p.title)
        );
        if !p.caption.is_empty() {
            let _ = write!(out, "<p class=\"says\">{}</p>", escape(&p.caption));
        }
        out.push_str("</figure>\n");
    }
    out.push_str("</div>\n");
    out
}
