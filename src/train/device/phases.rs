//! The phases of a step on a device, each captured apart: to be timed on a card, and to be planned without one.

use super::parts::Parts;
use super::plan::DevicePlan;
use crate::distill::Distiller;
use crate::error::{Error, Result};
use crate::gpu::{DeviceInfo, Gpu, Graph, Stream};
use crate::recipe::Recipe;
use crate::tensor::Tensor;
use std::marker::PhantomData;

/// A part of a step that can run alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Inputs and features of the teacher, of a part of a batch.
    Teacher,
    /// All that a part of a batch takes: inputs, teacher, student, loss, gradients.
    Part,
    /// The update of the parameters.
    Update,
    /// The whole step: all parts of the batch, and the update.
    Step,
}

impl Phase {
    /// All, in the order of the declaration.
    pub const ALL: [Phase; 4] = [Phase::Teacher, Phase::Part, Phase::Update, Phase::Step];

    /// For people and files of measurements.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Teacher => "teacher",
            Phase::Part => "teacher, student, loss, gradients",
            Phase::Update => "update",
            Phase::Step => "whole step",
        }
    }
}

/// What a phase takes by its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseCost {
    /// The phase.
    pub phase: Phase,
    /// Floating-point operations of the definitions; a multiply-add counts two.
    pub flops: u64,
    /// Bytes that its operations read and write, each tensor of each of them once.
    pub bytes: u64,
    /// Kernels launched.
    pub launches: usize,
}

/// A step on a device whose phases run alone, on the same images over and over.
pub struct StepPhases<'a> {
    distiller: &'a Distiller,
    parts: Parts,
    accumulate: usize,
}

impl<'a> StepPhases<'a> {
    /// Puts teacher, student and optimiser on a device, with the memory of a step in one piece, and the inputs of the first part
    /// of a batch: `pixels`, u8 `[n, H, W, 3]`. Every update has the learning rate `lr`. Where the teacher's input comes from
    /// passes of its own over the network (`noise = "ddim"`), it is made here, and no phase has those passes.
    ///
    /// # Errors
    /// As [`super::DeviceStep::new`]; images of another size, or a learning rate that is none.
    pub fn new(
        recipe: &Recipe,
        distiller: &'a Distiller,
        gpu: &Gpu,
        pixels: &Tensor,
        lr: f64,
    ) -> Result<Self> {
        DevicePlan::new(recipe, distiller, gpu.info())?.prepare(gpu)?;
        let mut parts = Parts::new(recipe, distiller, gpu)?;
        let mut bytes = vec![0; parts.inputs.bytes()];
        parts.inputs.write(&mut bytes, distiller, pixels, 0, 0)?;
        let arrived = Tensor::from_vec([bytes.len()], bytes)?.to_gpu_tagged(gpu, "input")?;
        parts.inputs.unpack(gpu, arrived.cuda_buffer()?)?;
        parts.encode(pixels, 0, 0)?;
        parts.distiller.begin(lr)?;
        Ok(StepPhases { distiller, parts, accumulate: recipe.train.accumulate })
    }

    /// Plans the phases of a recipe's step on a device, without the device. Teacher and student need no values.
    ///
    /// # Errors
    /// Shapes that do not fit, or sizes that no kernel takes.
    pub fn plan(recipe: &Recipe, distiller: &Distiller, device: &DeviceInfo) -> Result<Vec<PhaseCost>> {
        let gpu = Gpu::planning(device.clone())?;
        let phases = StepPhases {
            distiller,
            parts: Parts::new(recipe, distiller, &gpu)?,
            accumulate: recipe.train.accumulate,
        };
        gpu.record_work();
        let cost = |phase| {
            let (mut cost, mut taken) = (PhaseCost { phase, flops: 0, bytes: 0, launches: 0 }, 0);
            let captured = phases.capture_each(phase, &mut |times| {
                for work in gpu.take_work() {
                    cost.flops += work.flops * times as u64;
                    cost.bytes += work.bytes * times as u64;
                    cost.launches += work.launches.len() * times;
                }
                taken += 1;
            })?;
            debug_assert_eq!(captured.len(), taken);
            Ok(cost)
        };
        Phase::ALL.into_iter().map(cost).collect()
    }

    /// Captures a phase. One at a time: each takes the memory of a step.
    ///
    /// # Errors
    /// A failed compilation, capture or launch, or no memory.
    pub fn capture(&self, phase: Phase) -> Result<CapturedPhase<'_>> {
        Ok(CapturedPhase { graphs: self.capture_each(phase, &mut |_| ())?, uses: PhantomData })
    }

    /// The graphs of a phase, and how often each is launched; `after` hears the latter behind each capture.
    fn capture_each(&self, phase: Phase, after: &mut dyn FnMut(usize)) -> Result<Vec<(Graph, usize)>> {
        let StepPhases { distiller, parts, accumulate } = self;
        let there = &parts.distiller;
        let first = *accumulate == 1;
        let mut graph = |times: usize, work: &dyn Fn() -> Result<()>| {
            let graph = there.gpu().stream().capture(work)?;
            after(times);
            Ok((graph, times))
        };
        let part = || parts.enqueue_part(distiller, first);
        match phase {
            Phase::Teacher => Ok(vec![graph(1, &|| parts.enqueue_teacher(distiller))?]),
            Phase::Part => Ok(vec![graph(1, &part)?]),
            Phase::Update => Ok(vec![graph(1, &|| there.enqueue_update(*accumulate))?]),
            // As a run captures it.
            Phase::Step if first => Ok(vec![graph(1, &|| part().and_then(|()| there.enqueue_update(1)))?]),
            Phase::Step => {
                let update = || {
                    there.enqueue_update(*accumulate)?;
                    there.optimizer().clear_gradients(there.gpu())
                };
                Ok(vec![graph(*accumulate, &part)?, graph(1, &update)?])
            }
        }
    }

    /// Waits for the device and checks what the last step gave.
    ///
    /// # Errors
    /// Its loss or gradient was not finite, so that less was done than in a step of a run; or work on the device has failed.
    pub fn check(&self) -> Result<()> {
        let there = &self.parts.distiller;
        let (loss, norms) = (there.loss().to_cpu()?, there.optimizer().norms().to_cpu()?);
        let (loss, norms) = (loss.f32s()?[0], norms.f32s()?);
        if !loss.is_finite() || norms[3] == 0.0 {
            return Err(Error::numeric(
                "step",
                format!("the loss is {loss}, the gradient's norm {}", norms[0]),
            )
            .with_remedy("time the step with other weights"));
        }
        Ok(())
    }
}

/// A phase, ready to run.
pub struct CapturedPhase<'a> {
    graphs: Vec<(Graph, usize)>,
    /// What the graphs use was allocated before them.
    uses: PhantomData<&'a Parts>,
}

impl CapturedPhase<'_> {
    /// Enqueues the phase once.
    ///
    /// # Errors
    /// The driver refuses, or earlier work has failed.
    pub fn launch(&mut self, stream: &Stream) -> Result<()> {
        for (graph, times) in &mut self.graphs {
            for _ in 0..*times {
                graph.launch(stream)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::{Student, Teacher};
    use crate::recipe;

    #[test]
    fn the_whole_is_its_parts() {
        for accumulate in [1, 2] {
            let set = ["train.batch=4".to_string(), format!("train.accumulate={accumulate}")];
            let recipe = recipe::resolve("benchmark", &set).unwrap();
            let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, 0, |_| Ok(())).unwrap();
            let student = Student::new(&recipe.student, teacher.taps(), [64, 64], |_| Ok(())).unwrap();
            let distiller = Distiller::new(teacher, student, recipe.loss.clone(), 0).unwrap();
            let [teacher, part, update, step]: [PhaseCost; 4] =
                StepPhases::plan(&recipe, &distiller, &DeviceInfo::h100()).unwrap().try_into().unwrap();
            assert!(teacher.flops > 0 && part.flops > teacher.flops && part.bytes > teacher.bytes);
            assert!(update.launches > 0 && update.bytes > 0);
            let times = accumulate as u64;
            assert_eq!(step.flops, times * part.flops + update.flops);
            assert_eq!(step.bytes, times * part.bytes + update.bytes);
            assert_eq!(step.launches, accumulate * part.launches + update.launches);
        }
    }
}
