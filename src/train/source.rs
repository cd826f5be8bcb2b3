//! Opening the images of a recipe.

use crate::data::{BuiltinScenes, IdxImages, ImageFolder, ImageSource};
use crate::error::Result;
use crate::recipe::DataConfig;
use std::sync::Arc;

/// The images that a recipe names: an IDX file (`*ubyte`, `*.idx`, with or without `.gz`), a folder or list of
/// images, or the built-in scenes if there is no path.
///
/// # Errors
/// The path does not exist, holds no images, or is malformed.
pub fn open_images(config: &DataConfig) -> Result<Arc<dyn ImageSource>> {
    let Some(path) = &config.path else {
        return Ok(Arc::new(BuiltinScenes::new(config.scenes, config.height, config.width)?));
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    if path.is_file() && (plain.ends_with("ubyte") || plain.ends_with(".idx")) {
        return Ok(Arc::new(IdxImages::open(path, None)?));
    }
    Ok(Arc::new(ImageFolder::open(path)?))
}
