//! The example on cudarc computes on the simulated device, in the program's own memory, what the CPU computes.

#[path = "common/gpu.rs"]
mod gpu;

#[path = "../examples/embed_cudarc.rs"]
#[allow(dead_code, reason = "its main is not needed here")]
mod example;

use dtk::gpu::Options;
use dtk::tensor::Tensor;
use dtk::train::apply_gradients;

#[test]
fn the_example_computes_what_the_cpu_does() {
    // Loads the driver, which cudarc then finds.
    let Some(device) = gpu::device() else { return };
    let options = Options { cache_dir: Some(gpu::CACHE.into()), ..Options::default() };
    let seen = example::run(options).unwrap();
    gpu::clean(&device);

    let recipe = example::recipe().unwrap();
    let mut distiller = example::distiller(&recipe).unwrap();
    let mut optimizer = recipe.optimizer.build().unwrap();
    let values = example::pixels().iter().map(|&v| f32::from(v) / 127.5 - 1.0).collect();
    let images = Tensor::from_vec([example::BATCH, example::SIDE, example::SIDE, 3], values).unwrap();
    let positions: Vec<u64> = (0..example::BATCH as u64).collect();
    let maps = distiller.teacher().features(&images, 0, &positions).unwrap();
    assert_eq!(seen.maps.len(), maps.len());
    for (got, want) in seen.maps.iter().zip(&maps) {
        let want = want.f32s().unwrap();
        assert_eq!(got.len(), want.len());
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let off = norm(&mut got.iter().zip(want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
        assert!(off < 1e-3, "a map is off by {off}");
    }
    assert_eq!(seen.losses.len(), 3);
    for (step, got) in seen.losses.iter().enumerate() {
        let mut out = distiller.step(&images, step as u64, &positions).unwrap();
        assert!((got - out.loss).abs() < 2e-3 * out.loss, "step {step}: {got}, on the CPU {}", out.loss);
        if let Some(max) = recipe.train.clip_grad {
            let mut grads: Vec<&mut Tensor> = out.grads.iter_mut().map(|(_, g)| g).collect();
            dtk::optim::clip_grad_norm(&mut grads, max).unwrap();
        }
        apply_gradients(&mut *optimizer, distiller.student_mut(), &out.grads, example::LR).unwrap();
        for (id, value) in out.buffers {
            distiller.student_mut().params_mut().set(id, value).unwrap();
        }
    }
}
