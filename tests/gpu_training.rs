//! The training loop on a CUDA device: the simulated one, or a card where `DTK_TEST_DEVICE` names one. The same recipe as on
//! the CPU gives the same losses and weights within a tolerance, and the same bytes every time.

#[path = "common/gpu.rs"]
mod gpu;
#[path = "common/runs.rs"]
mod runs;
#[path = "common/tiny.rs"]
mod tiny;

use dtk::distill::{Distiller, Student, Teacher};
use dtk::error::Error;
use dtk::gpu::{DeviceInfo, Gpu};
use dtk::recipe::Recipe;
use dtk::train::{
    DevicePlan, DeviceStep, Observer, Options, Resume, StepReport, Summary, Trainer, fill_backbone,
    fill_teacher, plan_device,
};
use runs::{folders, turn};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tiny::{assert_same_end, checkpoint, recipe};

/// Keeps the reports and asks for a stop after a step.
#[derive(Default)]
struct Watch {
    reports: Vec<StepReport>,
    stop_after: Option<u64>,
    stop: Arc<AtomicBool>,
}

impl Observer for Watch {
    fn on_step(&mut self, r: &StepReport) {
        self.reports.push(r.clone());
        if self.stop_after == Some(r.step) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn train(
    r: Recipe,
    out: &Path,
    resume: Resume,
    device: Option<&Gpu>,
    stop_after: Option<u64>,
) -> (Result<Summary, Error>, Vec<StepReport>) {
    let mut watch = Watch { stop_after, ..Watch::default() };
    let options =
        Options { out: out.to_path_buf(), resume, stop: Arc::clone(&watch.stop), device: device.cloned() };
    let result = Trainer::new(r, options).and_then(|mut t| t.run(&mut watch));
    (result, watch.reports)
}

/// A run from the beginning to the end.
fn whole(r: Recipe, out: &Path, device: Option<&Gpu>) -> Vec<StepReport> {
    let (result, reports) = train(r, out, Resume::No, device, None);
    result.unwrap_or_else(|e| panic!("{e}"));
    reports
}

/// Largest relative difference of losses, levels included.
fn difference(a: &[StepReport], b: &[StepReport]) -> f32 {
    assert!(!a.is_empty() && a.len() == b.len(), "{} and {} reports", a.len(), b.len());
    let numbers = |r: &StepReport| -> Vec<f32> {
        let levels = r.levels.iter().flat_map(|l| [l.mse, l.at, l.cosine + 1.0]);
        [r.loss, r.mse, r.at].into_iter().chain(levels).collect()
    };
    let pairs = a.iter().zip(b).flat_map(|(a, b)| {
        assert_eq!((a.step, a.levels.len()), (b.step, b.levels.len()));
        numbers(a).into_iter().zip(numbers(b)).collect::<Vec<_>>()
    });
    pairs
        .map(|(a, b)| if a.is_finite() && b.is_finite() { (a - b).abs() / b.abs() } else { f32::INFINITY })
        .fold(0.0, f32::max)
}

/// [`runs::distance`] of the backbones of two runs.
fn distance(a: &Path, b: &Path) -> (f32, String) {
    let [a, b] = [a, b].map(|run| run.join("backbone.safetensors"));
    runs::distance(&a, &b)
}

/// Losses and weights of a recipe on the device, in f32, against those of the CPU.
fn agrees(what: &str, overrides: &[&str], losses: f32, weights: f32) {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let (_dir, [cpu, cuda, _]) = folders();
    let with = |more: &[&str]| recipe(&[overrides, &["train.length=4"], more].concat());
    let host = whole(with(&[]), &cpu, None);
    let device = whole(with(&["train.precision=\"f32\""]), &cuda, Some(&gpu));
    let (l, (w, name)) = (difference(&device, &host), distance(&cuda, &cpu));
    println!("{what}: losses differ by {l:.1e}, weights by {w:.1e} ({name})");
    assert!(l <= losses && w <= weights, "{what}: losses differ by {l}, weights by {w} ({name})");
    let norms = device.iter().zip(&host).map(|(a, b)| ((a.grad_norm - b.grad_norm) / b.grad_norm).abs());
    // `f64::max` would let a NaN pass.
    let norm = norms.fold(0.0, |m, n| if n.is_finite() { n.max(m) } else { f64::INFINITY });
    assert!(norm <= f64::from(weights), "{what}: norms of the gradient differ by {norm}");
    gpu::clean_after_launches(&gpu);
}

#[test]
fn the_device_agrees_with_the_cpu() {
    agrees("adamw, average", &["train.ema={ decay = 0.9 }"], 2e-5, 2e-4);
}

#[test]
fn parts_of_a_batch_agree() {
    agrees("lamb, two parts", &["optimizer={ name = \"lamb\" }", "train.accumulate=2"], 2e-5, 2e-4);
}

#[test]
fn clipped_sgd_agrees() {
    agrees("sgd, clipped", &["optimizer={ name = \"sgd\" }", "train.clip_grad=0.5"], 2e-5, 2e-4);
}

#[test]
fn random_depth_agrees() {
    let backbone = "student.backbone={ name = \"convnext_tiny\", depths = [1, 1, 2, 1], dims = [8, 8, 16, 16], \
                    drop_path = 0.5 }";
    let taps = "teacher.taps=[{ block = 1, position = \"pre_up\" }, { block = 3, position = \"pre_up\" }]";
    // Measured: one bias that begins at 0, and with it the norm of the gradient, differs by 1.7e-3; the losses by 5e-6.
    agrees("convnext", &[backbone, taps, "optimizer={ name = \"lars\" }"], 2e-5, 5e-3);
}

#[test]
fn deterministic_encoding_agrees() {
    agrees("ddim", &["diffusion.encoding=\"ddim\"", "diffusion.ddim_steps=[0, 50, 100]"], 1e-3, 1e-2);
}

#[test]
fn bf16_stays_close() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let (_dir, [cpu, cuda, _]) = folders();
    let host = whole(recipe(&[]), &cpu, None);
    let device = whole(recipe(&[]), &cuda, Some(&gpu));
    let l = difference(&device, &host);
    println!("bf16: losses differ by {l:.1e}");
    assert!(l <= 0.05, "losses differ by {l}");
    let fall = |r: &[StepReport]| r[7].loss - r[0].loss;
    assert!((fall(&device) - fall(&host)).abs() <= 0.05 * host[0].loss, "{} {}", fall(&device), fall(&host));
    gpu::clean_after_launches(&gpu);
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let (_dir, [straight, halves, _]) = folders();
    let overrides = ["train.ema={ decay = 0.9 }", "train.length=6", "train.accumulate=2"];
    whole(recipe(&overrides), &straight, Some(&gpu));
    let (stopped, _) = train(recipe(&overrides), &halves, Resume::No, Some(&gpu), Some(2));
    let stopped = stopped.expect_err("stopped");
    assert!(stopped.is_interrupted(), "{stopped}");
    let (done, reports) = train(recipe(&overrides), &halves, Resume::Auto, Some(&gpu), None);
    assert_eq!(done.unwrap().step, 6);
    assert!(reports.first().unwrap().step > 2 && reports.last().unwrap().step == 6);
    assert_same_end("device", &straight, &halves, 6);
    let steps: Vec<u64> = tiny::metrics(&halves).iter().map(|m| m.0).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6], "no step is missing or written twice");
}

#[test]
fn runs_move_between_cpu_and_device() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let (_dir, [cpu, first, second]) = folders();
    let r = || recipe(&["train.length=6", "train.precision=\"f32\"", "train.ema={ decay = 0.9 }"]);
    let host = whole(r(), &cpu, None);
    for (out, devices) in [(&first, [None, Some(&gpu)]), (&second, [Some(&gpu), None])] {
        let (stopped, mut reports) = train(r(), out, Resume::No, devices[0], Some(3));
        assert!(stopped.unwrap_err().is_interrupted());
        let saved = reports.last().unwrap().step;
        assert!(checkpoint(out, saved).is_dir());
        let (done, rest) = train(r(), out, Resume::Auto, devices[1], None);
        done.unwrap_or_else(|e| panic!("{e}"));
        reports.extend(rest);
        let (l, (w, _)) = (difference(&reports, &host), distance(out, &cpu));
        assert!(l <= 5e-4 && w <= 3e-2, "losses differ by {l}, weights by {w}");
    }
}

fn distiller(r: &Recipe) -> Distiller {
    let fill = |s: &mut _| fill_teacher(s, &r.teacher, r.seed).map(drop);
    let teacher = Teacher::new(&r.teacher, &r.diffusion, r.seed, fill).unwrap();
    let hw = [r.data.height as usize, r.data.width as usize];
    let fill = |s: &mut _| fill_backbone(s, &r.student, r.seed).map(drop);
    let student = Student::new(&r.student, teacher.taps(), hw, fill).unwrap();
    Distiller::new(teacher, student, r.loss.clone(), r.seed).unwrap()
}

/// What is planned without a device is what is launched on one.
#[test]
fn the_plan_is_what_runs() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let r = recipe(&["train.accumulate=2"]);
    let d = distiller(&r);
    let plan = plan_device(&r, gpu.info()).unwrap();
    let mut step = DeviceStep::new(&r, &d, &gpu).unwrap();
    let pixels = |_| dtk::tensor::Tensor::from_vec([2, 32, 32, 3], vec![100u8; 2 * 32 * 32 * 3]);
    step.launch(&d, 0, 1e-3, pixels).unwrap();
    let outcome = step.finished(&d).unwrap().unwrap();
    assert!(outcome.loss.is_finite() && outcome.levels.len() == 3 && step.under_way() == 0);
    let names = |p: &DevicePlan| -> Vec<String> {
        let works = p.part.iter().chain(&p.update);
        works.flat_map(|w| &w.work.launches).map(|l| format!("{} {:?}", l.kernel, l.grid)).collect()
    };
    assert_eq!(names(step.plan()), names(&plan));
    assert!(plan.part.len() > 50 && !plan.update.is_empty() && plan.flops() > 0);
    gpu::clean_after_launches(&gpu);
}

/// A loss that is not finite ends the run, and the parameters are those of before.
#[test]
fn a_loss_that_is_not_finite_changes_nothing() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let (_dir, [out, ..]) = folders();
    let r = recipe(&["train.length=6", "lr.peak=1e30", "optimizer={ name = \"sgd\" }", "run.save_every=1"]);
    let (result, reports) = train(r, &out, Resume::No, Some(&gpu), None);
    let e = result.expect_err("diverges");
    assert!(e.is_numeric() && e.remedy().is_some(), "{e}");
    assert!(reports.len() < 6);
}

/// The plan of the largest recipe: ADM-256 and ResNet-50, 64 images at once, on an H100.
#[test]
fn the_full_step_fits_an_h100() {
    let dir = tempfile::tempdir().unwrap();
    let set = ["train.batch=64", "train.accumulate=1"].map(String::from);
    let r = dtk::recipe::resolve("imagenet", &set).unwrap();
    let device = DeviceInfo::h100();
    let plan = plan_device(&r, &device).unwrap();
    drop(dir);
    assert!(plan.extent.bytes() < device.total_memory_bytes, "{} bytes", plan.extent.bytes());
    // Early exit of ADM-256 and three times ResNet-50 with its regressor: 62.3 and 3.9 TFLOP.
    let tflop = plan.flops() as f64 / 1e12;
    assert!((60.0..75.0).contains(&tflop), "{tflop} TFLOP");
    assert_eq!(plan.images, 64);
    // Twice the same plan, byte for byte.
    let again = plan_device(&r, &device).unwrap();
    assert_eq!(format!("{plan:?}"), format!("{again:?}"));
}
