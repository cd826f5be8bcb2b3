//! Images in: where they come from ([`ImageSource`]), how they are decoded, cropped and normalised, and the
//! [`Loader`] that turns them into a reproducible, endless stream of batches.

mod builtin;
pub mod decode;
mod folder;
mod idx;
mod loader;
mod source;
pub mod transform;

pub use builtin::{BUILTIN_CLASSES, BuiltinScenes};
pub use folder::{EXTENSIONS, ImageFolder};
pub use idx::{IdxArray, IdxImages};
pub use image::RgbImage;
pub use loader::{Batch, Loader, LoaderConfig, Pixels, Skipped};
pub use source::ImageSource;
pub use transform::Crop;
