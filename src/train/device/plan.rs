//! The plan of a step on a device: what runs, in which order, where its results lie, and how much memory all of it takes.

use super::parts::{Parts, Stage};
use crate::distill::Distiller;
use crate::error::Result;
use crate::gpu::{DeviceInfo, Extent, Gpu, Identity, Place, TagUse, Work};
use crate::recipe::Recipe;
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

impl DevicePlan {
    /// Plans the steps of a recipe. Teacher and student need no values.
    ///
    /// # Errors
    /// Shapes that do not fit, or sizes that no kernel takes.
    pub fn new(recipe: &Recipe, distiller: &Distiller, device: &DeviceInfo) -> Result<Self> {
        let gpu = Gpu::planning(device.clone())?;
        let parts = Parts::new(recipe, distiller, &gpu)?;
        gpu.record_work();
        let (mut part, mut update) = (Vec::new(), Vec::new());
        let accumulate = recipe.train.accumulate;
        let graphs = parts.capture(distiller, accumulate, &mut |stage| {
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
        Ok(DevicePlan {
            device: device.clone(),
            images: recipe.train.batch / accumulate,
            parts: accumulate,
            part,
            update,
            extent: gpu.extent()?,
            tags,
        })
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
