//! The teacher's feature maps of one image.
//!
//! ```text
//! cargo run --release --example extract_features                                   # a built-in scene
//! cargo run --release --example extract_features -- photo.jpg                      # random weights
//! cargo run --release --example extract_features -- photo.jpg imagenet256 256x256_diffusion_uncond.pt
//! ```

use dtk::data::{ImageSource, SceneConfig, Scenes, decode, transform};
use dtk::distill::TeacherModel;
use dtk::prelude::*;
use dtk::train::fill_teacher;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (image, model, weights) = (args.next(), args.next(), args.next());
    let config = TeacherConfig {
        model: TeacherModel::Name(model.unwrap_or_else(|| "tiny".into())),
        weights: weights.unwrap_or_else(|| "random".into()),
        ..Default::default()
    };
    // Built for 64 pixels or for 256; any multiple of the coarsest stride works.
    let side = if config.weights == "random" { 64 } else { 256 };
    let image = match image {
        Some(path) => decode::decode_file(path, [255; 3])?,
        None => {
            Scenes::new(SceneConfig { count: 1, first: 0, height: side, width: side })?.load(0, [255; 3])?
        }
    };
    let image = transform::to_tensor(&[transform::center_crop(&image, side, side)?])?;

    let teacher = Teacher::new(&config, &DiffusionConfig::default(), 0, |params| {
        fill_teacher(params, &config, 0).map(drop)
    })?;
    // The noise follows from the seed, the step and the image's place in the batch.
    let maps = teacher.features(&image, 0, &[0])?;
    for (info, map) in teacher.taps().iter().zip(&maps) {
        let v = map.f32s()?;
        let mean = v.iter().sum::<f32>() / v.len() as f32;
        let var = v.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / v.len() as f32;
        println!(
            "{:24} stride {:2}  {:?}  mean {mean:+.3}  sd {:.3}",
            info.tap.to_string(),
            info.stride,
            map,
            var.sqrt()
        );
    }
    Ok(())
}
