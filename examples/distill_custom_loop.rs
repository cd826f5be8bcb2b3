//! A training loop of one's own: images from memory, three steps, features of the trained backbone.
//!
//! ```text
//! cargo run --release --example distill_custom_loop
//! ```

use dtk::data::{ImageSource, SceneConfig, Scenes, transform};
use dtk::optim::{AdamWConfig, clip_grad_norm};
use dtk::prelude::*;
use dtk::train::{apply_gradients, fill_backbone, fill_teacher};

const SIDE: usize = 64;
const BATCH: usize = 4;
const SEED: u64 = 0;

fn main() -> Result<()> {
    // The images: here the built-in scenes, but any `[N, H, W, 3]` tensor with values in -1..1 will do.
    let (height, width) = (SIDE as u32, SIDE as u32);
    let scenes = Scenes::new(SceneConfig { count: 3 * BATCH, first: 0, height, width })?;
    let batch = |step: usize| {
        let images: Result<Vec<_>> =
            (step * BATCH..(step + 1) * BATCH).map(|i| scenes.load(i, [255; 3])).collect();
        transform::to_tensor(&images?)
    };

    // The default teacher is the small ADM U-Net with random weights, read at t = 150 of 1000.
    let config = TeacherConfig::default();
    let teacher = Teacher::new(&config, &DiffusionConfig::default(), SEED, |params| {
        fill_teacher(params, &config, SEED).map(drop)
    })?;
    let config = StudentConfig {
        backbone: BackboneConfig::named("resnet18")?,
        regressor: RegressorConfig { channels: 64, ..Default::default() },
        weights: None,
    };
    let student = Student::new(&config, teacher.taps(), [SIDE; 2], |params| {
        fill_backbone(params, &config, SEED).map(drop)
    })?;
    let mut distiller = Distiller::new(teacher, student, LossConfig::default(), SEED)?;
    let mut optimizer =
        OptimizerConfig::AdamW(AdamWConfig { weight_decay: 0.05, ..Default::default() }).build()?;

    let positions: Vec<u64> = (0..BATCH as u64).collect();
    for step in 0..3 {
        let mut out = distiller.step(&batch(step)?, step as u64, &positions)?;
        // Running statistics of the batch norms are results of the step, too.
        for (id, value) in &out.buffers {
            distiller.student_mut().params_mut().set(*id, value.clone())?;
        }
        let mut grads: Vec<&mut Tensor> = out.grads.iter_mut().map(|(_, g)| g).collect();
        let norm = clip_grad_norm(&mut grads, 5.0)?;
        apply_gradients(&mut *optimizer, distiller.student_mut(), &out.grads, 1e-3)?;
        println!("step {}: loss {:.4}, gradient norm {norm:.3}", step + 1, out.loss);
    }

    // The regressor has done its work; the backbone is what is wanted.
    let student = distiller.into_student();
    let mut ctx = Ctx::inference(student.params());
    for map in student.backbone_features(&mut ctx, &batch(0)?)? {
        println!("backbone feature {:?}", map.tensor());
    }
    Ok(())
}
