//! What a step will cost, worked out on shapes alone.

use super::{LossConfig, Student, Teacher, feature_loss};
use crate::base::{DType, Philox};
use crate::error::Result;
use crate::nn::{Ctx, ParamStore};
use crate::ops::conv2d::Geometry;
use crate::tape::Step;
use crate::tensor::{Ledger, Tensor};
use std::collections::BTreeMap;

/// One network in a [`Plan`].
#[derive(Clone, Debug)]
pub struct Part {
    /// Number of parameters.
    pub parameters: usize,
    /// Bytes of parameters and buffers.
    pub parameter_bytes: usize,
    /// Bytes of the largest parameter: loading it needs as much again, for the copy in file layout.
    pub largest_parameter_bytes: usize,
    /// Floating-point operations of one forward pass of the batch.
    pub flops: u64,
    /// Most bytes of activations, gradients and scratch alive at once, parameters not counted.
    pub peak_bytes: usize,
    /// Operations by kind: how many, and their FLOPs.
    pub ops: BTreeMap<&'static str, (usize, u64)>,
    /// The distinct convolutions (linear layers are some of 1x1) and how often each is computed.
    pub convolutions: BTreeMap<Geometry, usize>,
}

impl Part {
    /// Plans one pass of a teacher over `[batch, h, w, 3]` images. Also gives its maps as planning tensors.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn of_teacher(teacher: &Teacher, batch: usize, hw: [usize; 2]) -> Result<(Self, Vec<Tensor>)> {
        let images = Tensor::meta([batch, hw[0], hw[1], 3], DType::F32, None);
        let ledger = Ledger::new();
        let (maps, steps) = teacher.plan(&images, &ledger)?;
        // Outside the ledger, so that whoever uses them has a peak of his own.
        let maps = maps.iter().map(|m| Tensor::meta(m.shape(), DType::F32, None)).collect();
        Ok((Part::new(teacher.params(), &steps, &ledger), maps))
    }

    fn new(store: &ParamStore, steps: &[Step], ledger: &Ledger) -> Self {
        let mut ops: BTreeMap<&'static str, (usize, u64)> = BTreeMap::new();
        let mut convolutions: BTreeMap<Geometry, usize> = BTreeMap::new();
        for s in steps {
            s.convolution.iter().for_each(|c| *convolutions.entry(*c).or_default() += 1);
            let entry = ops.entry(s.op).or_default();
            *entry = (entry.0 + 1, entry.1 + s.flops);
        }
        Part {
            parameters: store.parameter_count(),
            parameter_bytes: store.bytes(),
            largest_parameter_bytes: store.iter().map(|(_, p)| p.value().bytes()).max().unwrap_or(0),
            flops: steps.iter().map(|s| s.flops).sum(),
            peak_bytes: ledger.peak_bytes(),
            ops,
            convolutions,
        }
    }
}

/// The cost of one step on a batch.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The teacher's forward pass.
    pub teacher: Part,
    /// The student's pass, forward and backward; FLOPs of the forward pass only.
    pub student: Part,
    /// Bytes of the teacher's maps, which are alive together with the student's activations.
    pub target_bytes: usize,
    /// Bytes of the batch itself.
    pub input_bytes: usize,
}

impl Plan {
    /// Plans a step on `[batch, h, w, 3]` images. The parts need no parameter values.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn new(
        teacher: &Teacher,
        student: &Student,
        loss: &LossConfig,
        batch: usize,
        hw: [usize; 2],
    ) -> Result<Self> {
        let images = Tensor::meta([batch, hw[0], hw[1], 3], DType::F32, None);
        let (teacher_part, maps) = Part::of_teacher(teacher, batch, hw)?;
        let target_bytes = maps.iter().map(Tensor::bytes).sum();
        let targets: Vec<Tensor> = student.pairs().iter().map(|&t| maps[t].clone()).collect();

        let ledger = Ledger::new();
        let mut ctx = Ctx::training(student.params(), Philox::new(0)).planning(&ledger).trace();
        let out = student.forward(&mut ctx, &images)?;
        let total = feature_loss(&mut ctx, &out, &targets, loss)?.total;
        let steps = ctx.steps().to_vec();
        drop(out);
        let grads = ctx.backward(&total)?;
        drop(grads);
        let student_part = Part::new(student.params(), &steps, &ledger);
        Ok(Plan { teacher: teacher_part, student: student_part, target_bytes, input_bytes: images.bytes() })
    }

    /// Bytes that the whole step needs at its peak: all parameters, `optimizer_slots` further copies of the student's,
    /// and the larger of the two networks' activations, where the student's come on top of the teacher's maps.
    pub fn total_bytes(&self, optimizer_slots: usize) -> usize {
        let parameters = self.teacher.parameter_bytes + self.student.parameter_bytes * (1 + optimizer_slots);
        // Input twice: the student's normalised or the teacher's noisy copy beside it.
        let student = self.student.peak_bytes + self.target_bytes;
        parameters + 2 * self.input_bytes + self.teacher.peak_bytes.max(student)
    }
}
