//! The plan of a step on a device: what runs, in which order, where its results lie, and how much memory all of it takes.

use super::parts::Parts;
use crate::distill::Distiller;
use crate::error::Result;
use crate::gpu::{DeviceInfo, Extent, Gpu, Graph, Identity, Place, TagUse, Work};
use crate::recipe::Recipe;
use rayon::prelude::*;
use std::collections::BTreeSet;

/// One operation of a planned step.
#[derive(Clone, Debug)]
pub struct PlannedWork {
    /// What, on which shape, by which kernels.
    pub work: Work,
    /// Where its first result lies.
    pub result: Option<Place>,
}

/// A step on a device, as plain data. It comes from the code that runs the step: on a planning device that notes what the
/// code does.
#[derive(Clone, Debug)]
pub struct DevicePlan {
    /// The device it is for.
    pub device: DeviceInfo,
    /// Images of a part of the batch.
    pub images: usize,
    /// Parts of a batch.
    pub parts: usize,
    /// What a part of a batch launches.
    pub part: Vec<PlannedWork>,
    /// What the update of the parameters launches, once a batch.
    pub update: Vec<PlannedWork>,
    /// The memory that is reserved.
    pub extent: Extent,
    /// The uses of memory, largest peak first.
    pub tags: Vec<TagUse>,
}

/// What was just enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::train) enum Stage {
    /// A part of a batch.
    Part,
    /// The update of the parameters.
    Update,
}

impl DevicePlan {
    /// Plans the steps of a recipe. Teacher and student need no values.
    ///
    /// # Errors
    /// Shapes that do not fit, or sizes that no kernel takes.
    pub fn new(recipe: &Recipe, distiller: &Distiller, device: &DeviceInfo) -> Result<Self> {
        let parts = recipe.train.accumulate;
        Self::of(
            device,
            [recipe.train.batch / parts, parts],
            |gpu| Parts::new(recipe, distiller, gpu),
            |there, after| there.capture(distiller, parts, after),
        )
    }

    /// Plans the steps that `capture` captures of what `make` puts on a device. A batch is `parts` times `images`.
    pub(in crate::train) fn of<T>(
        device: &DeviceInfo,
        [images, parts]: [usize; 2],
        make: impl FnOnce(&Gpu) -> Result<T>,
        capture: impl FnOnce(&T, &mut dyn FnMut(Stage)) -> Result<(Graph, Option<Graph>)>,
    ) -> Result<Self> {
        let gpu = Gpu::planning(device.clone())?;
        let there = make(&gpu)?;
        gpu.record_work();
        let (mut part, mut update) = (Vec::new(), Vec::new());
        let graphs = capture(&there, &mut |stage| {
            let place = |work: Work| {
                let result = (work.result != 0).then(|| gpu.place(work.result));
                PlannedWork { work, result }
            };
            let works = gpu.take_work().into_iter().map(place).collect();
            match stage {
                Stage::Part => part = works,
                Stage::Update => update = works,
            }
        })?;
        drop(graphs);
        let mut tags = gpu.memory().tags;
        tags.sort_by(|a, b| b.peak_bytes.cmp(&a.peak_bytes).then(a.tag.cmp(b.tag)));
        Ok(DevicePlan { device: device.clone(), images, parts, part, update, extent: gpu.extent()?, tags })
    }

    /// Takes the memory that the plan says in one piece, and compiles the kernels that it names.
    pub(in crate::train) fn prepare(&self, gpu: &Gpu) -> Result<()> {
        gpu.reserve(self.extent)?;
        let kernels = self.kernels().into_par_iter();
        kernels.try_for_each(|k| gpu.kernel(&k.source, &k.entry, &k.defines).map(drop))
    }

    /// The kernels of a step, each once.
    pub fn kernels(&self) -> BTreeSet<&Identity> {
        let works = self.part.iter().chain(&self.update);
        works.flat_map(|w| &w.work.launches).map(|l| &l.kernel).collect()
    }

    /// Floating-point operations of a batch.
    pub fn flops(&self) -> u64 {
        self.part.iter().map(|w| w.work.flops).sum::<u64>() * self.parts as u64
            + self.update.iter().map(|w| w.work.flops).sum::<u64>()
    }
}
