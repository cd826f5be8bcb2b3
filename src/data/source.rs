//! What a set of images has to offer.

use super::Mask;
use crate::error::Result;
use image::RgbImage;

/// An indexed set of colour images, with labels where the set has them.
///
/// `load` must depend on nothing but its arguments and the data: loaders call it from several threads and promise
/// the same batches for any number of them.
pub trait ImageSource: Send + Sync {
    /// Number of images. Sources are never empty.
    fn len(&self) -> usize;

    /// Whether there is no image; always false for dtk's own sources.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Image `index` as 8-bit RGB in its own size. Transparent parts show `background` (RGB, 0..=255).
    ///
    /// # Errors
    /// The image cannot be read or decoded; the error names it. Also for an index out of range.
    fn load(&self, index: usize, background: [u8; 3]) -> Result<RgbImage>;

    /// A name for messages: a relative path, or the set's name and the index.
    fn name(&self, index: usize) -> String;

    /// The class of image `index`, an index into [`ImageSource::classes`]; `None` without labels.
    fn label(&self, index: usize) -> Option<u32>;

    /// The class names; empty for a set without labels.
    fn classes(&self) -> &[String];

    /// The class of every pixel of image `index`, as large as the image that [`ImageSource::load`] gives; ids index
    /// [`ImageSource::mask_classes`] or are the [`ImageSource::ignore_index`]. `None` without masks.
    ///
    /// # Errors
    /// The mask is absent, cannot be read, has another size than the image or an id out of range; also for an index
    /// out of range.
    fn mask(&self, _index: usize) -> Result<Option<Mask>> {
        Ok(None)
    }

    /// The classes of the ids in masks; empty for a set without masks.
    fn mask_classes(&self) -> &[String] {
        &[]
    }

    /// The id of pixels that belong to no class and do not count.
    fn ignore_index(&self) -> Option<u16> {
        None
    }

    /// Identifies the set and its order, to notice that a resumed run continues with other data. Cheap: it does not
    /// read the pixels of a folder of images.
    fn fingerprint(&self) -> String;
}

/// The first 16 hexadecimal digits of a SHA-256 over length-prefixed parts.
pub(super) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    use sha2::{Digest, Sha256};
    let mut h = Sha256::new();
    for p in parts {
        h.update((p.len() as u64).to_le_bytes());
        h.update(p);
    }
    h.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
}
