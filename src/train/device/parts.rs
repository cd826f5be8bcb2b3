//! What lies on the device from the first step of a run to the last.

use super::distiller::{self, DeviceDistiller};
use super::inputs::Inputs;
use super::plan::Stage;
use crate::base::{DType, Philox};
use crate::distill::{Distiller, IMAGENET_MEAN, IMAGENET_STD};
use crate::error::Result;
use crate::gpu::{Gpu, Graph};
use crate::nn::Ctx;
use crate::ops::untaped::encode_images::EncodeImages;
use crate::recipe::Recipe;
use crate::tensor::{Ledger, Tensor};

/// A distillation on a device, and what its steps start from.
pub(super) struct Parts {
    pub distiller: DeviceDistiller,
    pub inputs: Inputs,
    /// The teacher's input where it is not made of the pixels inside the step.
    pub encoded: Option<Tensor>,
}

impl Parts {
    pub fn new(recipe: &Recipe, distiller: &Distiller, gpu: &Gpu) -> Result<Self> {
        let n = recipe.train.batch / recipe.train.accumulate;
        let (h, w) = (recipe.data.height as usize, recipe.data.width as usize);
        let there = DeviceDistiller::new(recipe.into(), distiller, gpu)?;
        let inputs = Inputs::new(gpu, [n, h, w], draws(distiller, [n, h, w])?)?;
        let encoded = match distiller.teacher().noise_level() {
            Some(_) => None,
            None => Some(Tensor::empty_gpu([n, h, w, 3], there.dtype(), gpu, "noisy images")?),
        };
        if recipe.train.accumulate > 1 {
            there.optimizer().clear_gradients(gpu)?;
        }
        Ok(Parts { distiller: there, inputs, encoded })
    }

    /// Captures a step: as one graph, or where a batch comes in several parts as one that is launched for each of them and one
    /// for the update behind them, which also clears the sums of the gradients for the next step. `after` hears what has just
    /// been enqueued.
    pub fn capture(
        &self,
        distiller: &Distiller,
        parts: usize,
        after: &mut dyn FnMut(Stage),
    ) -> Result<(Graph, Option<Graph>)> {
        let (gpu, there) = (self.distiller.gpu(), &self.distiller);
        let part = gpu.stream().capture(|| {
            self.enqueue_part(distiller, parts == 1)?;
            after(Stage::Part);
            if parts == 1 {
                there.enqueue_update(1)?;
                after(Stage::Update);
            }
            Ok(())
        })?;
        if parts == 1 {
            return Ok((part, None));
        }
        let update = gpu.stream().capture(|| {
            there.enqueue_update(parts)?;
            after(Stage::Update);
            there.optimizer().clear_gradients(gpu)
        })?;
        Ok((part, Some(update)))
    }

    /// Enqueues one part of a batch, from the inputs on.
    pub fn enqueue_part(&self, distiller: &Distiller, first: bool) -> Result<()> {
        let (images, noisy) = self.enqueue_inputs(distiller)?;
        self.distiller.enqueue_part(distiller, images, noisy, self.inputs.draws.as_ref(), first)
    }

    /// Enqueues inputs and teacher alone.
    pub fn enqueue_teacher(&self, distiller: &Distiller) -> Result<()> {
        let (_, noisy) = self.enqueue_inputs(distiller)?;
        self.distiller.teacher().features_of_noisy(&noisy).map(drop)
    }

    /// Enqueues what makes the inputs of student and teacher.
    fn enqueue_inputs(&self, distiller: &Distiller) -> Result<(Tensor, Tensor)> {
        let [_, height, width] = self.inputs.size;
        let level = distiller.teacher().noise_level();
        let encode = EncodeImages {
            height,
            width,
            dtype: self.distiller.dtype(),
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
            signal: level.map_or(1.0, |l| l.signal),
            noise: level.map_or(0.0, |l| l.noise),
        };
        let keys = level.is_some().then_some(&self.inputs.noise);
        let (images, made) = encode.run(self.distiller.gpu(), &self.inputs.pixels, None, keys)?;
        Ok((images, self.encoded.clone().unwrap_or(made)))
    }

    /// Makes the teacher's input of the samples from `first` on where no kernel of the step does; waits for the device then.
    pub fn encode(&self, pixels: &Tensor, step: u64, first: u64) -> Result<()> {
        let Some(encoded) = &self.encoded else { return Ok(()) };
        let values = pixels.data::<u8>()?.iter().map(|&v| f32::from(v) / 127.5 - 1.0).collect();
        let signed = Tensor::from_vec(pixels.shape(), values)?;
        let positions: Vec<u64> = (first..first + self.inputs.size[0] as u64).collect();
        let noisy = self.distiller.teacher().encode(&signed, step, &positions)?;
        distiller::copy(self.distiller.gpu(), &noisy, encoded)
    }
}

/// How many random streams one pass of the student uses (dropout, drop path): counted on shapes.
pub(super) fn draws(distiller: &Distiller, [n, h, w]: [usize; 3]) -> Result<usize> {
    let student = distiller.student();
    let ledger = Ledger::new();
    let mut ctx = Ctx::training(student.params(), Philox::new(0)).planning(&ledger);
    let x = ctx.constant(Tensor::meta([n, h, w, 3], DType::F32, Some(&ledger)));
    student.forward_normalized(&mut ctx, &x)?;
    Ok(ctx.draws() as usize)
}
