//! Opening the images of a recipe.

use crate::data::{ImageSource, SceneConfig, Scenes, Split, open_path};
use crate::error::Result;
use crate::recipe::DataConfig;
use std::sync::Arc;

/// The images that a recipe names: what lies at its path (see [`open_path`]; of a set in two splits, the training images), or
/// the built-in scenes if there is no path.
///
/// # Errors
/// The path does not exist, holds no images, or is malformed.
pub fn open_images(config: &DataConfig) -> Result<Arc<dyn ImageSource>> {
    match &config.path {
        Some(path) => open_path(path, Split::Train),
        None => {
            let (height, width) = (config.height, config.width);
            Ok(Arc::new(Scenes::new(SceneConfig { count: config.scenes, first: 0, height, width })?))
        }
    }
}
