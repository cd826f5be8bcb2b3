//! Images in: where they come from ([`ImageSource`]), how they are decoded, cropped and normalised, and the
//! [`Loader`] that turns them into a reproducible, endless stream of batches.

mod compose;
pub mod decode;
mod files;
mod folder;
mod idx;
mod inspect;
#[cfg(feature = "lmdb")]
mod lmdb;
mod loader;
mod mask;
mod mask_folder;
mod npy;
mod open;
mod scenes;
mod source;
mod subset;
mod tables;
pub mod transform;
mod write;

pub use compose::{ComposeConfig, Composed, ComposedClass, compose};
pub use folder::{EXTENSIONS, ImageFolder};
pub use idx::{IdxArray, IdxImages};
pub use image::RgbImage;
pub use inspect::{Inspection, Malformed, inspect, mosaic};
#[cfg(feature = "lmdb")]
pub use lmdb::LmdbImages;
pub use loader::{Batch, Loader, LoaderConfig, Pixels, Skipped};
pub use mask::Mask;
pub use mask_folder::MaskFolder;
pub use open::{Split, open_path};
pub use scenes::{SCENE_CLASSES, SceneConfig, Scenes};
pub use source::ImageSource;
pub use subset::{Amount, Subset, balanced_order};
pub use transform::Crop;
pub use write::{Example, Progress};
