//! The training of diffusion networks on a CUDA device: the simulated one, or a card where `DTK_TEST_DEVICE` names one. The same
//! recipe as on the CPU gives the same losses and weights within a tolerance, and the same bytes every time.

#[path = "common/program.rs"]
mod program;
#[path = "common/runs.rs"]
mod runs;
#[path = "common/small_teacher.rs"]
mod small_teacher;

use dtk::base::{DType, Philox};
use dtk::diffusion::Denoiser;
use dtk::error::Error;
use dtk::gpu::{DeviceInfo, Gpu};
use dtk::models::adm::AdmUnet;
use dtk::nn::{DeviceParams, Init, ParamStore};
use dtk::recipe::TeacherRecipe;
use dtk::tensor::{SafetensorsFile, Tensor};
use dtk::train::{
    DevicePlan, Options, Resume, TeacherObserver, TeacherReport, TeacherStep, TeacherSummary, TeacherTrainer,
    plan_teacher,
};
use program::tiny::{checkpoint, metrics, snapshot};
use program::{Place, gpu, ok};
use runs::{distance, folders, turn};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The small teacher on three images of 8 pixels: one part of a batch on the CPU, so that dropout draws the same masks.
///
/// Some gradients are 0 but for rounding, such as those of biases in front of norms with one channel in a group; `eps` keeps
/// AdamW from making steps of full length out of them.
fn recipe(overrides: &[&str]) -> TeacherRecipe {
    let base = [
        "data.height=8",
        "data.width=8",
        "train.batch=3",
        "train.length=3",
        "optimizer={ name = \"adamw\", eps = 1e-3 }",
    ];
    small_teacher::recipe(&[&base, overrides].concat())
}

/// Keeps the reports and asks for a stop after a step.
#[derive(Default)]
struct Watch {
    reports: Vec<TeacherReport>,
    stop_after: Option<u64>,
    stop: Arc<AtomicBool>,
}

impl TeacherObserver for Watch {
    fn on_step(&mut self, r: &TeacherReport) {
        self.reports.push(r.clone());
        if self.stop_after == Some(r.step) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn train(
    r: TeacherRecipe,
    out: &Path,
    resume: Resume,
    device: Option<&Gpu>,
    stop_after: Option<u64>,
) -> (Result<TeacherSummary, Error>, Vec<TeacherReport>) {
    let mut watch = Watch { stop_after, ..Watch::default() };
    let options =
        Options { out: out.to_path_buf(), resume, stop: Arc::clone(&watch.stop), device: device.cloned() };
    let result = TeacherTrainer::new(r, options).and_then(|mut t| t.run(&mut watch));
    (result, watch.reports)
}

/// A run from the beginning to the end.
fn whole(r: TeacherRecipe, out: &Path, device: Option<&Gpu>) -> Vec<TeacherReport> {
    let (result, reports) = train(r, out, Resume::No, device, None);
    result.unwrap_or_else(|e| panic!("{e}"));
    reports
}

/// Largest relative difference of the losses and norms of two runs. What is not finite differs infinitely.
fn difference(a: &[TeacherReport], b: &[TeacherReport]) -> f64 {
    assert!(!a.is_empty() && a.len() == b.len(), "{} and {} reports", a.len(), b.len());
    let numbers = |r: &TeacherReport| -> Vec<f64> {
        let floats = [r.loss, r.mse, r.vlb].into_iter().chain(r.quarters.iter().flatten().copied());
        floats.map(f64::from).chain([r.grad_norm]).collect()
    };
    let mut worst = 0.0f64;
    for (a, b) in a.iter().zip(b) {
        assert_eq!((a.step, a.quarters.map(|q| q.is_some())), (b.step, b.quarters.map(|q| q.is_some())));
        assert_eq!((a.lr, a.images, a.epoch), (b.lr, b.images, b.epoch));
        for (a, b) in numbers(a).into_iter().zip(numbers(b)) {
            let off = if a == b { 0.0 } else { (a - b).abs() / b.abs() };
            worst = if off.is_finite() { worst.max(off) } else { f64::INFINITY };
        }
    }
    worst
}

/// The largest distance of networks, averages and results of two runs after `step` steps.
fn ends_apart(a: &Path, b: &Path, step: u64) -> (f32, String) {
    let of = |run: &Path, name: &str| match name {
        "teacher.safetensors" => run.join(name),
        _ => checkpoint(run, step).join(name),
    };
    let files = ["network.safetensors", "ema.safetensors", "teacher.safetensors"];
    let there = files.iter().filter(|f| of(a, f).exists());
    let apart = there.map(|f| distance(&of(a, f), &of(b, f)));
    apart.max_by(|a, b| a.0.total_cmp(&b.0)).expect("a result")
}

/// Losses and weights of a recipe on the device, in f32, against those of the CPU.
fn agrees(what: &str, overrides: &[&str], losses: f64, weights: f32) {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let (_dir, [cpu, cuda, _]) = folders();
    let host = whole(recipe(overrides), &cpu, None);
    let device = whole(recipe(&[overrides, &["train.precision=\"f32\""]].concat()), &cuda, Some(&gpu));
    let (l, (w, name)) = (difference(&device, &host), ends_apart(&cuda, &cpu, 3));
    println!("{what}: losses differ by {l:.1e}, weights by {w:.1e} ({name})");
    assert!(l <= losses && w <= weights, "{what}: losses differ by {l}, weights by {w} ({name})");
    let start = ParamsOf::start(overrides);
    let moved = start.distance(&checkpoint(&cuda, 3).join("network.safetensors"));
    assert!(moved > 20.0 * w, "{what}: the weights have moved by {moved} alone");
    gpu::clean_after_launches(&gpu);
}

/// The parameters that a run starts with.
struct ParamsOf(ParamStore);

impl ParamsOf {
    fn start(overrides: &[&str]) -> Self {
        ParamsOf(denoiser(&recipe(overrides)).params().clone())
    }

    /// How far the parameters of a file are from these at most, by the largest magnitude of each.
    fn distance(&self, file: &Path) -> f32 {
        let file = SafetensorsFile::open(file).unwrap();
        let off = self.0.iter().map(|(id, p)| {
            let (a, b) = (self.0.to_file(id).unwrap(), file.get(p.name()).unwrap());
            let (a, b) = (a.f32s().unwrap(), b.f32s().unwrap());
            let largest = a.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
            a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
        });
        off.fold(0.0, f32::max)
    }
}

fn denoiser(r: &TeacherRecipe) -> Denoiser {
    let mut store = ParamStore::new();
    let net = AdmUnet::new(&mut store.builder(), &r.model().unwrap()).unwrap();
    store.init(r.seed).unwrap();
    Denoiser::new(net, store, &r.diffusion, r.seed).unwrap()
}

/// The denoiser of a recipe with random values everywhere: what starts at zero would hide everything behind it.
fn randomised(r: &TeacherRecipe) -> Denoiser {
    let mut d = denoiser(r);
    let ids: Vec<_> = d.params().iter().map(|(id, p)| (id, p.name().to_string())).collect();
    for (id, name) in ids {
        let value = d.params_mut().value_mut(id);
        let noise = Init::Normal(0.05).make(value.shape(), DType::F32, Philox::new(9).fold_str(&name));
        let values = value.data_mut::<f32>().unwrap();
        values.iter_mut().zip(noise.f32s().unwrap()).for_each(|(v, n)| *v += n);
    }
    d
}

/// The gradient of every parameter on the device, which is the step of SGD with the learning rate 1, against that of the CPU.
/// Elements may be off by `limits[0]` of the largest of their parameter, or of a thousandth of the largest of all; the whole
/// gradient by `limits[1]` in the L2 norm. Some elements are 0 but for rounding: in bf16 only the second says something.
fn gradients_agree(what: &str, overrides: &[&str], limits: [f32; 2]) {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let sgd = ["optimizer={ name = \"sgd\", momentum = 0.0, weight_decay = 0.0 }"];
    let mut r = recipe(&[&sgd, overrides].concat());
    (r.train.clip_grad, r.train.ema) = (None, None);
    let d = randomised(&r);
    let n = r.train.batch;
    let bytes = pixels(n, 8);
    let signed = bytes.data::<u8>().unwrap().iter().map(|&p| f32::from(p) / 127.5 - 1.0).collect();
    let signed = Tensor::from_vec(bytes.shape(), signed).unwrap();
    let classes = d.net().config().num_classes;
    let labels =
        classes.map(|k| Tensor::from_vec([n], (0..n).map(|i| (i * i % k) as i64).collect()).unwrap());
    let host = d.step(&signed, labels.as_ref(), 3).unwrap();

    let mut step = TeacherStep::new(&r, &d, &gpu).unwrap();
    step.launch(&d, 3, 1.0, &bytes, labels.as_ref()).unwrap();
    let out = step.finished(&d).unwrap().expect("a step is under way");
    let mut after = d.params().clone();
    step.download(&mut after).unwrap();
    let largest = |v: &[f32]| v.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let floor = host.grads.iter().map(|(_, g)| largest(g.f32s().unwrap())).fold(0.0, f32::max) / 1e3;
    assert_eq!(host.grads.len(), d.params().len(), "the loss reaches all");
    let (mut worst, mut squares) = ((0.0f32, ""), [0.0f64; 2]);
    for (id, want) in &host.grads {
        let (p, want) = (d.params().get(*id), want.f32s().unwrap());
        let size = largest(want).max(floor);
        let moved = p.value().f32s().unwrap().iter().zip(after.get(*id).value().f32s().unwrap());
        let mut off = 0.0f32;
        for ((before, after), want) in moved.zip(want) {
            let error = (before - after - want).abs();
            off = if error.is_finite() { off.max(error / size) } else { f32::INFINITY };
            squares[0] += f64::from(error) * f64::from(error);
            squares[1] += f64::from(*want) * f64::from(*want);
        }
        if off > worst.0 {
            worst = (off, p.name());
        }
    }
    let loss = (out.numbers.loss - host.loss).abs() / host.loss.abs();
    let whole = (squares[0] / squares[1]).sqrt() as f32;
    println!("{what}: loss {loss:.1e}, the gradient {whole:.1e}, at worst {:.1e} ({})", worst.0, worst.1);
    // Written so that a NaN fails.
    assert!(
        worst.0 <= limits[0] && whole <= limits[1] && loss <= limits[1],
        "{what}: {worst:?} {whole} {loss}"
    );
    gpu::clean_after_launches(&gpu);
}

#[test]
fn gradients_of_every_parameter_agree() {
    let (f32s, f32_limits) = ("train.precision=\"f32\"", [1e-3, 1e-4]);
    gradients_agree("f32, scale and shift", &[f32s, "train.dropout=0.3"], f32_limits);
    // More samples than a part of a batch on the CPU has.
    let set = [f32s, "train.dropout=0.0", "train.batch=10", "model.learn_sigma=false"];
    gradients_agree("f32, two parts", &set, f32_limits);
    let others = ["model.num_classes=7", "model.use_scale_shift_norm=false", "model.resblock_updown=false"];
    gradients_agree("f32, classes", &[&[f32s], &others[..]].concat(), f32_limits);
}

#[test]
fn gradients_in_bf16_stay_close() {
    gradients_agree("bf16, scale and shift", &["model.num_classes=7"], [f32::MAX, 0.05]);
    gradients_agree("bf16, added", &["model.use_scale_shift_norm=false"], [f32::MAX, 0.05]);
}

#[test]
fn learned_variances_dropout_clipping_and_average_agree() {
    agrees("learned variances", &["train.clip_grad=0.05"], 1e-5, 1e-4);
}

#[test]
fn networks_of_noise_alone_agree() {
    let set = ["model.learn_sigma=false", "model.use_scale_shift_norm=false", "optimizer={ name = \"sgd\" }"];
    agrees("noise alone", &set, 1e-5, 1e-4);
}

#[test]
fn class_conditional_networks_agree() {
    let set = ["model.num_classes=7", "data.scenes=200", "model.resblock_updown=false"];
    agrees("classes", &set, 1e-5, 1e-4);
}

#[test]
fn bf16_stays_close() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let (_dir, [cpu, cuda, _]) = folders();
    let set = ["model.num_classes=7", "data.scenes=200", "train.length=4"];
    let (host, device) = (whole(recipe(&set), &cpu, None), whole(recipe(&set), &cuda, Some(&gpu)));
    let (l, (w, name)) = (difference(&device, &host), ends_apart(&cuda, &cpu, 4));
    println!("bf16: losses differ by {l:.1e}, weights by {w:.1e} ({name})");
    assert!(l <= 0.05 && w <= 0.1, "losses differ by {l}, weights by {w} ({name})");
    assert!(l > 1e-5, "nothing was rounded");
    gpu::clean_after_launches(&gpu);
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let (_dir, [straight, halves, _]) = folders();
    let set = ["train.length=4", "model.num_classes=7", "data.scenes=200"];
    whole(recipe(&set), &straight, Some(&gpu));
    let (stopped, _) = train(recipe(&set), &halves, Resume::No, Some(&gpu), Some(1));
    let stopped = stopped.expect_err("stopped");
    assert!(stopped.is_interrupted(), "{stopped}");
    let (done, reports) = train(recipe(&set), &halves, Resume::Auto, Some(&gpu), None);
    assert_eq!(done.unwrap().step, 4);
    assert!(reports.first().unwrap().step > 1 && reports.last().unwrap().step == 4);
    let files = |run: &Path| {
        let mut all = snapshot(&checkpoint(run, 4));
        all.insert("teacher.safetensors".into(), std::fs::read(run.join("teacher.safetensors")).unwrap());
        all
    };
    let (a, b) = (files(&straight), files(&halves));
    assert!(a.len() == 5 && a.keys().eq(b.keys()), "{:?} and {:?}", a.keys(), b.keys());
    for (name, bytes) in &a {
        assert!(*bytes == b[name], "{} differs", name.display());
    }
    assert_eq!(metrics(&straight), metrics(&halves));
    assert!(metrics(&straight).iter().map(|m| m.0).eq(1..=4), "no step is missing or written twice");
}

#[test]
fn runs_move_between_cpu_and_device() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let (_dir, [cpu, first, second]) = folders();
    let r = || recipe(&["train.length=4", "train.precision=\"f32\""]);
    let host = whole(r(), &cpu, None);
    for (out, devices) in [(&first, [None, Some(&gpu)]), (&second, [Some(&gpu), None])] {
        let (stopped, mut reports) = train(r(), out, Resume::No, devices[0], Some(2));
        assert!(stopped.unwrap_err().is_interrupted());
        let (done, rest) = train(r(), out, Resume::Auto, devices[1], None);
        done.unwrap_or_else(|e| panic!("{e}"));
        assert!(!rest.is_empty());
        reports.extend(rest);
        let (l, (w, name)) = (difference(&reports, &host), ends_apart(out, &cpu, 4));
        println!("moved: losses differ by {l:.1e}, weights by {w:.1e} ({name})");
        assert!(l <= 1e-5 && w <= 1e-4, "losses differ by {l}, weights by {w} ({name})");
    }
}

/// Bytes of as many images as the batch has.
fn pixels(n: usize, side: usize) -> Tensor {
    let bytes = (0..n * side * side * 3).map(|i| (i * 37 % 256) as u8).collect();
    Tensor::from_vec([n, side, side, 3], bytes).unwrap()
}

#[test]
fn a_loss_that_is_not_finite_changes_nothing() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let r = recipe(&[]);
    let good = denoiser(&r);
    let mut bad = denoiser(&r);
    let id = bad.params().find("out.2.bias").unwrap();
    bad.params_mut().value_mut(id).data_mut::<f32>().unwrap()[0] = f32::NAN;
    let mut step = TeacherStep::new(&r, &bad, &gpu).unwrap();
    step.launch(&bad, 0, 1e-2, &pixels(3, 8), None).unwrap();
    let e = step.finished(&bad).err().expect("the loss is NaN");
    assert!(e.is_numeric() && e.to_string().contains("changed no parameter") && e.remedy().is_some(), "{e}");
    let same = |a: &ParamStore, b: &ParamStore| {
        let bits = |s: &ParamStore| -> Vec<u32> {
            s.iter().flat_map(|(_, p)| p.value().f32s().unwrap().to_vec()).map(f32::to_bits).collect()
        };
        bits(a) == bits(b)
    };
    let mut after = bad.params().clone();
    step.download(&mut after).unwrap();
    assert!(same(&after, bad.params()));
    let average = step.average_state().unwrap().expect("the recipe keeps one");
    for (_, p) in bad.params().iter() {
        let (a, b) = (average[&format!("average.{}", p.name())].f32s().unwrap(), p.value().f32s().unwrap());
        assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", p.name());
    }
    let state = step.optimizer_state().unwrap();
    assert_eq!(state["step"].data::<i64>().unwrap(), [0], "the step is not counted");

    // With good weights it goes on.
    step.load(good.params(), &state, None).unwrap();
    step.launch(&good, 0, 1e-2, &pixels(3, 8), None).unwrap();
    let out = step.finished(&good).unwrap().expect("a step is under way");
    assert!(out.numbers.loss.is_finite() && out.grad_norm > 0.0 && step.under_way() == 0);
    step.download(&mut after).unwrap();
    assert!(!same(&after, good.params()));

    for (wrong, labels) in
        [(pixels(2, 8), None), (pixels(3, 10), None), (pixels(3, 8), Some(Tensor::zeros([3])))]
    {
        let e = step.launch(&good, 1, 1e-2, &wrong, labels.as_ref()).unwrap_err();
        assert!(e.is_shape() && e.remedy().is_some(), "{e}");
    }
    assert!(step.launch(&good, 1, -1.0, &pixels(3, 8), None).unwrap_err().is_usage());
    gpu::clean_after_launches(&gpu);
}

/// What is planned without a device is what is launched on one.
#[test]
fn the_plan_is_what_runs() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let r = recipe(&[]);
    let plan = plan_teacher(&r, gpu.info()).unwrap();
    let step = TeacherStep::new(&r, &denoiser(&r), &gpu).unwrap();
    let names = |p: &DevicePlan| -> Vec<String> {
        let works = p.part.iter().chain(&p.update);
        works.flat_map(|w| &w.work.launches).map(|l| format!("{} {:?}", l.kernel, l.grid)).collect()
    };
    assert_eq!(names(step.plan()), names(&plan));
    assert!(plan.part.len() > 50 && !plan.update.is_empty() && plan.flops() > 0 && plan.images == 3);
}

/// Neither a device nor values are needed for a plan.
#[test]
fn steps_are_planned_without_a_device() {
    let device = DeviceInfo::h100();
    let quick = dtk::recipe::teacher::resolve("quickstart_teacher", &[]).unwrap();
    let quick = plan_teacher(&quick, &device).unwrap();
    assert!(quick.images == 32 && quick.extent.bytes() < 4 << 30, "{} bytes", quick.extent.bytes());
    let classes = plan_teacher(&recipe(&["model.num_classes=7"]), &device).unwrap();
    let embeddings = |p: &DevicePlan| p.part.iter().filter(|w| w.work.op == "embedding").count();
    assert_eq!((embeddings(&quick), embeddings(&classes)), (0, 2), "forward and backward");
}

/// Tables are looked up, not multiplied: they stay f32, whatever the type of operands.
#[test]
fn tables_are_not_narrowed() {
    let device = Gpu::planning(DeviceInfo::h100()).unwrap();
    let d = denoiser(&recipe(&["model.num_classes=7", "data.scenes=200"]));
    let there = DeviceParams::new(d.params(), &device, DType::Bf16).unwrap();
    let dtype = |name: &str| there.store.get(there.store.find(name).unwrap()).value().dtype();
    assert_eq!(dtype("label_emb.weight"), DType::F32);
    assert_eq!(dtype("time_embed.0.weight"), DType::Bf16);
    assert_eq!(dtype("time_embed.0.bias"), DType::F32);
}

#[test]
fn the_program_trains_on_a_device() {
    let _turn = turn();
    let p = Place::new();
    small_teacher::write_recipe(p.0.path());
    let train = ["teacher", "train", "--recipe", "small_teacher.toml", "--out", "run"];
    let small = ["data.height=8", "data.width=8", "train.batch=2", "train.length=2"];
    let small = small.iter().chain(&["sample={ every = 2, count = 1, steps = 2 }"]);
    let set: Vec<&str> = small.flat_map(|s| ["--set", *s]).collect();
    let Some(o) = p.on_device(&[&train[..], &set[..]].concat()) else { return };
    let said = ok(&o);
    assert!(said.contains("step 2/2") && said.contains("device cuda:"), "{said}");
    assert!(p.path("run/teacher.safetensors").is_file() && p.path("run/samples/step_00000002.png").is_file());
    let plan = ok(&p.on_device(&[&train[..], &set[..], &["--dry-run"]].concat()).unwrap());
    for what in ["q_sample", "diffusion_loss bwd", "optimizer update", "parameters", "arena"] {
        assert!(plan.contains(what), "`{what}` is not in {plan}");
    }
}
