//! The distillation step of the recipe `benchmark`: the teacher alone, the student alone (forward, loss, backward),
//! and everything with clipping and optimiser. On a card, where there is one (not on the simulator), the phases of the step of
//! `imagenet` with 64 images, random weights, each a captured graph. Throughput is in images ("elem/s").

#[path = "common/card.rs"]
mod card;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dtk::base::Philox;
use dtk::distill::feature_loss;
use dtk::optim::clip_grad_norm;
use dtk::prelude::*;
use dtk::recipe;
use dtk::train::{Phase, StepPhases, apply_gradients, fill_backbone, fill_teacher};
use std::time::Duration;

fn distiller(recipe: &Recipe) -> Result<Distiller> {
    let seed = recipe.seed;
    let hw = [recipe.data.height as usize, recipe.data.width as usize];
    let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, seed, |p| {
        fill_teacher(p, &recipe.teacher, seed).map(drop)
    })?;
    let student = Student::new(&recipe.student, teacher.taps(), hw, |p| {
        fill_backbone(p, &recipe.student, seed).map(drop)
    })?;
    Distiller::new(teacher, student, recipe.loss.clone(), seed)
}

fn student_only(d: &Distiller, images: &Tensor, targets: &[Tensor]) -> Result<usize> {
    let mut ctx = Ctx::training(d.student().params(), Philox::new(0));
    let maps = d.student().forward(&mut ctx, images)?;
    let loss = feature_loss(&mut ctx, &maps, targets, d.loss())?.total;
    drop(maps);
    Ok(ctx.backward(&loss)?.buffers().len())
}

fn step(c: &mut Criterion) {
    let recipe = recipe::resolve("benchmark", &[]).expect("a built-in recipe");
    let mut d = distiller(&recipe).expect("its parts fit");
    let mut optimizer = recipe.optimizer.build().expect("a valid optimiser");
    let (n, h, w) = (recipe.train.batch, recipe.data.height as usize, recipe.data.width as usize);
    let mut pixels = vec![0.0f32; n * h * w * 3];
    Philox::new(0).fill_uniform(&mut pixels);
    pixels.iter_mut().for_each(|p| *p = 2.0 * *p - 1.0);
    let images = Tensor::from_vec([n, h, w, 3], pixels).expect("as many pixels as elements");
    let positions: Vec<u64> = (0..n as u64).collect();

    let mut group = c.benchmark_group("benchmark_step");
    group.sample_size(10).throughput(Throughput::Elements(n as u64));
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    group.bench_function("teacher", |b| {
        b.iter(|| d.teacher().features(&images, 0, &positions).expect("the shapes fit"));
    });
    let maps = d.teacher().features(&images, 0, &positions).expect("the shapes fit");
    let targets: Vec<Tensor> = d.student().pairs().iter().map(|&t| maps[t].clone()).collect();
    group.bench_function("student", |b| {
        b.iter(|| student_only(&d, &images, &targets).expect("the shapes fit"));
    });
    let mut count = 0;
    group.bench_function("whole", |b| {
        b.iter(|| {
            let mut out = d.step(&images, count, &positions).expect("a finite loss");
            let mut grads: Vec<&mut Tensor> = out.grads.iter_mut().map(|(_, g)| g).collect();
            clip_grad_norm(&mut grads, 5.0).expect("finite gradients");
            apply_gradients(&mut *optimizer, d.student_mut(), &out.grads, 1e-4).expect("finite gradients");
            count += 1;
        });
    });
    group.finish();
}

/// Bytes as photographs have them.
fn pixels(shape: [usize; 4]) -> Tensor {
    let mut values = vec![0.0f32; shape.iter().product()];
    Philox::new(0).fill_normal(&mut values);
    let bytes: Vec<u8> = values.into_iter().map(|v| (115.0 + 68.0 * v) as u8).collect();
    Tensor::from_vec(shape, bytes).expect("as many pixels as elements")
}

fn step_on_card(c: &mut Criterion) {
    let Some(gpu) = card::card() else { return };
    let set = ["teacher.weights=\"random\"".to_string(), "train.batch=64".to_string()];
    let recipe = recipe::resolve("imagenet", &set).expect("a built-in recipe");
    let d = distiller(&recipe).expect("its parts fit");
    let images = pixels([64, recipe.data.height as usize, recipe.data.width as usize, 3]);
    let phases = StepPhases::new(&recipe, &d, &gpu, &images, 1e-6).expect("the card has room");
    let mut group = c.benchmark_group("imagenet_step");
    group.sample_size(10).throughput(Throughput::Elements(64));
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5));
    for phase in Phase::ALL {
        let mut work = phases.capture(phase).expect("the phase is captured");
        group.bench_function(phase.name(), |b| {
            b.iter_custom(|n| card::timed(&gpu, n, || work.launch(gpu.stream()).expect("it is launched")));
        });
    }
    group.finish();
    phases.check().expect("a finite loss");
}

criterion_group!(benches, step, step_on_card);
criterion_main!(benches);
