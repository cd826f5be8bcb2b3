//! Times the whole distillation step of the recipe `benchmark` on images in memory: teacher, student forward and
//! backward, clipping, optimiser. `tools/bench_torch.py` times the same step in PyTorch.
//!
//! ```text
//! cargo run --release --example step_time -- 10         # measured steps, after 2 that warm up
//! ```

use dtk::base::Philox;
use dtk::error::{Error, Result};
use dtk::optim::clip_grad_norm;
use dtk::prelude::*;
use dtk::recipe;
use dtk::train::{apply_gradients, fill_backbone, fill_teacher};
use std::time::Instant;

const WARM_UP: u64 = 2;

fn main() -> Result<()> {
    let steps = match std::env::args().nth(1) {
        None => 10,
        Some(n) => n.parse::<u64>().ok().filter(|n| *n > 0).ok_or_else(|| {
            Error::usage(format!("`{n}` is no number of steps")).with_remedy("give a number of at least 1")
        })?,
    };
    let recipe = recipe::resolve("benchmark", &[])?;
    let (seed, batch) = (recipe.seed, recipe.train.batch);
    let hw = [recipe.data.height as usize, recipe.data.width as usize];
    let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, seed, |p| {
        fill_teacher(p, &recipe.teacher, seed).map(drop)
    })?;
    let student = Student::new(&recipe.student, teacher.taps(), hw, |p| {
        fill_backbone(p, &recipe.student, seed).map(drop)
    })?;
    let mut distiller = Distiller::new(teacher, student, recipe.loss.clone(), seed)?;
    let mut optimizer = recipe.optimizer.build()?;
    let mut pixels = vec![0.0f32; batch * hw[0] * hw[1] * 3];
    Philox::new(seed).fill_uniform(&mut pixels);
    pixels.iter_mut().for_each(|p| *p = 2.0 * *p - 1.0);
    let images = Tensor::from_vec([batch, hw[0], hw[1], 3], pixels)?;
    let positions: Vec<u64> = (0..batch as u64).collect();

    let mut times = Vec::new();
    for step in 0..WARM_UP + steps {
        let start = Instant::now();
        let mut out = distiller.step(&images, step, &positions)?;
        for (id, value) in &out.buffers {
            distiller.student_mut().params_mut().set(*id, value.clone())?;
        }
        if let Some(max) = recipe.train.clip_grad {
            clip_grad_norm(&mut out.grads.iter_mut().map(|(_, g)| g).collect::<Vec<_>>(), max)?;
        }
        apply_gradients(&mut *optimizer, distiller.student_mut(), &out.grads, 1e-3)?;
        if step >= WARM_UP {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "dtk: {:.1} ms/step, {:.1} img/s ({} threads, median of {steps})",
        1e3 * median,
        batch as f64 / median,
        dtk::cpu::threads()
    );
    Ok(())
}
