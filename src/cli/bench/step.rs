//! `dtk bench step`: the whole distillation step of a recipe, by phase.

use super::format::{Pass, Row, Suite};
use super::time::{repeat, rounded};
use crate::base::Philox;
use crate::distill::{Distiller, Student, Teacher};
use crate::error::{Error, Result};
use crate::gpu::{DeviceInfo, Gpu};
use crate::optim::clip_grad_norm;
use crate::recipe::{self, Precision, Recipe};
use crate::tensor::Tensor;
use crate::train::{Phase, StepPhases, apply_gradients, fill_backbone, fill_teacher};
use std::time::Instant;

/// So small that the weights stay what they are however often a step is repeated.
const LEARNING_RATE: f64 = 1e-6;

/// The steps of one recipe with one batch.
pub struct Step {
    recipe: Recipe,
    /// A row for each phase.
    rows: Vec<Row>,
}

impl Step {
    /// A step of a recipe with changes as `--set` takes them, with random weights of the teacher unless they name others, of
    /// `batch` images. Without `device`, on the CPU: in f32 then, with the FLOPs and bytes of the same operations on a card.
    /// Rows are those whose case contains `filter`.
    ///
    /// # Errors
    /// A recipe that is none, or whose parts do not fit; on the CPU, a batch in several parts.
    pub fn new(
        name: &str,
        set: &[String],
        batch: Option<usize>,
        device: Option<&DeviceInfo>,
        filter: &str,
    ) -> Result<Step> {
        let default = if device.is_some() { 64 } else { 2 };
        let mut all = vec!["teacher.weights=\"random\"".to_string(), format!("train.batch={default}")];
        all.extend_from_slice(set);
        all.extend(batch.map(|n| format!("train.batch={n}")));
        let mut recipe = recipe::resolve(name, &all)?;
        if device.is_none() {
            recipe.train.precision = Precision::F32;
            if recipe.train.accumulate > 1 {
                return Err(Error::usage("on a CPU the step of a batch in one part is timed")
                    .with_key("train.accumulate")
                    .with_remedy("leave it out, and choose the batch with --batch"));
            }
        }
        let distiller = distiller(&recipe, false)?;
        let any = DeviceInfo::h100();
        let costs = StepPhases::plan(&recipe, &distiller, device.unwrap_or(&any))?;
        let images = recipe.train.batch;
        let rows = costs.into_iter().map(|cost| Row {
            suite: Suite::Step,
            op: "step".into(),
            case: format!("{}, {images} images: {}", recipe.name, cost.phase.name()),
            pass: Pass::Whole,
            dtype: recipe.train.precision.dtype().to_string(),
            convolution: None,
            count: None,
            images: Some(images),
            launches: device.map(|_| cost.launches),
            flops: cost.flops,
            bytes: cost.bytes,
            ms: Vec::new(),
        });
        let rows: Vec<Row> = rows.filter(|r| r.case.contains(filter)).collect();
        if rows.is_empty() {
            return Err(Error::usage(format!("no phase's name contains `{filter}`"))
                .with_remedy("leave the filter out, or see all names with --list"));
        }
        Ok(Step { recipe, rows })
    }

    /// The rows, without times.
    pub fn rows(self) -> Vec<Row> {
        self.rows
    }

    /// Times the phases on a card, each captured as a graph, for about `seconds` each. `done` gets every row as soon as it is
    /// measured.
    ///
    /// # Errors
    /// Not enough memory, a failed launch, a loss that is not finite; those of `done`.
    pub fn on_card(self, gpu: &Gpu, seconds: f64, mut done: impl FnMut(Row) -> Result<()>) -> Result<()> {
        let distiller = distiller(&self.recipe, true)?;
        // What a step before this one took.
        gpu.trim()?;
        let phases = StepPhases::new(&self.recipe, &distiller, gpu, &pixels(&self.recipe)?, LEARNING_RATE)?;
        // The update has gradients then.
        phases.capture(Phase::Step)?.launch(gpu.stream())?;
        phases.check()?;
        for mut row in self.rows {
            let Some(phase) = Phase::ALL.into_iter().find(|p| row.case.ends_with(p.name())) else { continue };
            let mut work = phases.capture(phase)?;
            let mut timed = || {
                let start = gpu.stream().record_timed()?;
                work.launch(gpu.stream())?;
                Ok(f64::from(gpu.stream().record_timed()?.elapsed_ms(&start)?))
            };
            timed()?;
            row.ms = repeat(seconds, timed)?;
            phases.check()?;
            done(row)?;
        }
        Ok(())
    }

    /// Times the step on the CPU for about `seconds`; all phases at once.
    ///
    /// # Errors
    /// A loss or gradient that is not finite.
    pub fn on_cpu(self, seconds: f64) -> Result<Vec<Row>> {
        let recipe = &self.recipe;
        let mut distiller = distiller(recipe, true)?;
        let mut optimizer = recipe.optimizer.build()?;
        let signed = pixels(recipe)?.data::<u8>()?.iter().map(|&v| f32::from(v) / 127.5 - 1.0).collect();
        let images = Tensor::from_vec(input_shape(recipe), signed)?;
        let positions: Vec<u64> = (0..recipe.train.batch as u64).collect();
        let (mut step, mut samples) = (0, Vec::new());
        let mut timed = || {
            let start = Instant::now();
            let mut out = distiller.step(&images, step, &positions)?;
            let part = start.elapsed();
            if let Some(most) = recipe.train.clip_grad {
                let mut grads: Vec<&mut Tensor> = out.grads.iter_mut().map(|(_, g)| g).collect();
                clip_grad_norm(&mut grads, most)?;
            }
            apply_gradients(&mut *optimizer, distiller.student_mut(), &out.grads, LEARNING_RATE)?;
            let whole = start.elapsed();
            step += 1;
            let ms = [out.teacher_time, part, whole - part, whole].map(|t| rounded(t.as_secs_f64() * 1e3));
            samples.push(ms);
            Ok(ms[3])
        };
        timed()?;
        repeat(seconds, timed)?;
        let mut rows = self.rows;
        for row in &mut rows {
            let phase = Phase::ALL.into_iter().position(|p| row.case.ends_with(p.name()));
            // The first has warmed up the machine.
            row.ms = phase.map_or(Vec::new(), |i| samples[1..].iter().map(|ms| ms[i]).collect());
        }
        Ok(rows)
    }
}

/// Teacher, student and loss; with values only where they are needed.
fn distiller(recipe: &Recipe, fill: bool) -> Result<Distiller> {
    let seed = recipe.seed;
    let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, seed, |store| match fill {
        true => fill_teacher(store, &recipe.teacher, seed).map(drop),
        false => Ok(()),
    })?;
    let hw = [recipe.data.height as usize, recipe.data.width as usize];
    let student = Student::new(&recipe.student, teacher.taps(), hw, |store| match fill {
        true => fill_backbone(store, &recipe.student, seed).map(drop),
        false => Ok(()),
    })?;
    Distiller::new(teacher, student, recipe.loss.clone(), seed)
}

/// Shape of a part of a batch.
fn input_shape(recipe: &Recipe) -> [usize; 4] {
    let n = recipe.train.batch / recipe.train.accumulate;
    [n, recipe.data.height as usize, recipe.data.width as usize, 3]
}

/// Bytes with the mean and the spread of photographs; zeros would let a card run faster than it does.
fn pixels(recipe: &Recipe) -> Result<Tensor> {
    let shape = input_shape(recipe);
    let mut values = vec![0.0f32; shape.iter().product()];
    Philox::new(recipe.seed).fold_str("bench pixels").fill_normal(&mut values);
    Tensor::from_vec(shape, values.into_iter().map(|v| (115.0 + 68.0 * v) as u8).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_named_apart() {
        let of = |batch, device: Option<&DeviceInfo>| {
            Step::new("benchmark", &[], batch, device, "").unwrap().rows()
        };
        let (card, cpu) = (of(None, Some(&DeviceInfo::h100())), of(Some(3), None));
        assert_eq!(card[3].case, "benchmark, 64 images: whole step");
        assert_eq!((card[0].images, &*card[0].dtype, &*cpu[0].dtype), (Some(64), "bf16", "f32"));
        assert!(card.iter().all(|r| r.launches.is_some_and(|n| n > 0)));
        assert!(cpu.iter().all(|r| r.launches.is_none() && r.images == Some(3)));
        // The case alone says which phase a row is of.
        for r in &card {
            assert_eq!(Phase::ALL.iter().filter(|p| r.case.ends_with(p.name())).count(), 1, "{}", r.case);
        }
        assert!(card[1].flops > card[0].flops && card[3].bytes == card[1].bytes + card[2].bytes);
    }

    #[test]
    fn what_cannot_be_timed_is_told() {
        let new = |set: &[&str], filter: &str| {
            let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
            Step::new("benchmark", &set, Some(4), None, filter).err().unwrap().to_string()
        };
        assert!(new(&["train.accumulate=2"], "").contains("train.accumulate"));
        assert!(new(&[], "nosuchphase").contains("nosuchphase"));
    }

    #[test]
    fn the_cpu_is_timed_in_phases_that_add_up() {
        let set = ["data.height=32".to_string(), "data.width=32".to_string()];
        let rows = Step::new("benchmark", &set, Some(2), None, "").unwrap().on_cpu(0.0).unwrap();
        let ms: Vec<&[f64]> = rows.iter().map(|r| &*r.ms).collect();
        assert!(ms.iter().all(|m| m.len() == 3), "{ms:?}");
        for i in 0..3 {
            assert!(
                ms[0][i] < ms[1][i] && (ms[1][i] + ms[2][i] - ms[3][i]).abs() < 0.01 * ms[3][i],
                "{ms:?}"
            );
        }
    }
}
