//! Distillation from the teacher's input to the student's weights after several AdamW steps, through the library's own
//! `Teacher`, `Student`, `Distiller` and optimiser.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use common::{Golden, GoldenSet, Tolerance, counts};
use dtk::base::{DType, Philox};
use dtk::diffusion::{BetaSchedule, DiffusionConfig, Schedule};
use dtk::distill::{
    Distiller, LossConfig, Student, StudentConfig, TapsConfig, Teacher, TeacherConfig, TeacherModel,
    feature_loss, mean_of_levels, normalize_imagenet,
};
use dtk::gpu::Gpu;
use dtk::models::adm::{AdmConfig, Tap, TapInfo};
use dtk::models::regressor::RegressorConfig;
use dtk::nn::{Ctx, ParamId, ParamStore, Role};
use dtk::ops::whiten_mse::Whiten;
use dtk::optim::{OptimizerConfig, Slot, weight_decays};
use dtk::tensor::Tensor;
use dtk::train::{DeviceConfig, DeviceDistiller};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Buffers that count steps, which the reference does not record.
const COUNTER: &str = "num_batches_tracked";

/// A recorded run.
struct Run<'a> {
    golden: &'a Golden,
    taps: Vec<Tap>,
    /// The teacher's block of every level's name.
    block_of_level: BTreeMap<String, usize>,
    loss: LossConfig,
}

impl<'a> Run<'a> {
    fn new(golden: &'a Golden) -> Self {
        let entry = &golden.entry;
        let feature = entry["feature"].as_str().unwrap();
        let tap = if feature.starts_with("pre_up") { Tap::pre_up } else { Tap::post_up };
        let levels = entry["block_of_level"].as_object().unwrap();
        Run {
            golden,
            taps: counts(&entry["blocks_zero_based"]).into_iter().map(tap).collect(),
            block_of_level: levels.iter().map(|(l, b)| (l.clone(), b.as_u64().unwrap() as usize)).collect(),
            loss: loss_config(entry["loss"].as_str().unwrap()),
        }
    }

    fn level(&self, tap: Tap) -> &str {
        let found = self.block_of_level.iter().find(|(_, block)| **block == tap.block);
        found.unwrap_or_else(|| panic!("{}: {tap} has no level", self.golden.name)).0
    }

    /// Stride and channels of every tap, from the recorded features.
    fn tap_infos(&self) -> Vec<TapInfo> {
        let image = self.golden.shape("x0")[3];
        let info = |&tap: &Tap| {
            let shape = self.golden.shape(&format!("step0.teacher.{}", self.level(tap)));
            TapInfo { tap, stride: image / shape[2], channels: shape[1] }
        };
        self.taps.iter().map(info).collect()
    }

    /// Batch `i` of `x0` or `noise`, as NHWC.
    fn batch(&self, name: &str, i: usize) -> Tensor {
        let all = self.golden.get(name);
        let [batches, n, c, h, w] = *all.shape() else { panic!("{name} is not [batches, N, C, H, W]") };
        let size = n * c * h * w;
        let part = all.f32s().unwrap()[i % batches * size..][..size].to_vec();
        Tensor::from_vec([n, c, h, w], part).unwrap().nchw_to_nhwc().unwrap()
    }

    fn student(&self) -> Student {
        let (golden, entry) = (self.golden, &self.golden.entry);
        let has = |name: &str| golden.has(&format!("init.{name}"));
        let kind = &entry["student"];
        let backbone = serde_json::from_value(json!({
            "name": "resnet50",
            "block": if has("backbone.layer1.0.conv3.weight") { "bottleneck" } else { "basic" },
            "layers": kind["layers"],
            "channels": kind["channels"],
            "stem_width": golden.shape("init.backbone.conv1.weight")[0],
        }));
        let regressor = &entry["regressor"];
        let regressor = RegressorConfig {
            channels: regressor["channels"].as_u64().unwrap() as usize,
            fpn_conv_on_top: regressor["fpn_conv_on_top"].as_bool().unwrap(),
            pool_scales: match &regressor["pool_scales"] {
                Value::Null => RegressorConfig::default().pool_scales,
                scales => counts(scales),
            },
            ..RegressorConfig::default()
        };
        let config = StudentConfig { backbone: backbone.unwrap(), regressor, weights: None };
        let image = golden.shape("x0");
        Student::new(&config, &self.tap_infos(), [image[3], image[4]], |store| {
            let in_file: BTreeSet<String> = golden.suffixes("init.").into_iter().collect();
            let names: BTreeSet<String> = store.iter().map(|(_, p)| p.name().to_string()).collect();
            let names = names.into_iter().filter(|n| !n.ends_with(COUNTER)).collect();
            assert_eq!(in_file, names, "{}: keys of the file (left) and of the student", golden.name);
            store.init(0)?;
            load(store, golden, "init.")
        })
        .unwrap()
    }

    fn teacher(&self, weights: &Golden) -> Teacher {
        let mut model = AdmConfig::from_flags(&weights.entry["config"]).unwrap();
        model.conv_resample = weights.entry["derived"]["conv_resample"].as_bool().unwrap_or(true);
        let config = TeacherConfig {
            model: TeacherModel::Config(Box::new(model)),
            taps: TapsConfig::List(self.taps.clone()),
            ..TeacherConfig::default()
        };
        let t = self.golden.entry["t"].as_u64().unwrap() as usize;
        let diffusion = DiffusionConfig { t, ..DiffusionConfig::default() };
        let teacher = Teacher::new(&config, &diffusion, 0, |store| load(store, weights, "model.")).unwrap();
        assert_eq!(teacher.taps(), self.tap_infos(), "taps of the network (left) and recorded features");
        teacher
    }

    /// Row `step` of `loss`: total, mean squared error, attention transfer. The tolerance is 3 times what a jitter of
    /// the initial weights does, or `least` if that is more.
    fn check_loss(&self, step: usize, got: [f32; 3], least: f64) {
        if !self.golden.expect("loss") {
            return;
        }
        let sensitivity = &self.golden.entry["sensitivity"]["loss_rel_per_step"][step];
        let tolerance = f64::max(least, 3.0 * sensitivity.as_f64().unwrap());
        let want = &self.golden.f64s("loss")[3 * step..][..3];
        common::assert_close_f64(&format!("loss of step {step}"), &got.map(f64::from), want, tolerance, 0.0);
        self.golden.note("loss");
    }

    /// Every student map and every gradient of step 0.
    fn check_step0(&self, student: &Student, maps: &[Tensor], grads: &[(ParamId, Tensor)]) {
        let golden = self.golden;
        assert_eq!(maps.len(), self.taps.len(), "student maps");
        for (&tap, map) in student.pairs().iter().zip(maps) {
            golden.check(&format!("step0.student.{}", self.level(self.taps[tap])), map, Tolerance::default());
        }
        let store = student.params();
        let trained = store.iter().filter(|(_, p)| p.role() == Role::Parameter).count();
        assert_eq!(grads.len(), trained, "gradients");
        for (id, grad) in grads {
            golden.check(&format!("step0.grad.{}", store.get(*id).name()), grad, Tolerance::default());
        }
    }

    /// All steps, from the teacher's weights.
    fn with_teacher(&self, weights: &Golden) {
        let golden = self.golden;
        let (config, lr) = optimizer(&golden.entry["optimiser"]);
        let mut optimizer = config.build().unwrap();
        let mut distiller =
            Distiller::new(self.teacher(weights), self.student(), self.loss.clone(), 0).unwrap();
        let schedule = Schedule::new(BetaSchedule::Linear, DiffusionConfig::default().steps).unwrap();
        let t = golden.entry["t"].as_u64().unwrap() as usize;
        for step in 0..golden.shape("loss")[0] {
            let (x0, noise) = (self.batch("x0", step), self.batch("noise", step));
            let noisy = schedule.q_sample(&x0, &vec![t; x0.shape()[0]], &noise).unwrap();
            let out = distiller.step_with_noisy(&x0, &noisy, step as u64).unwrap();
            if step == 0 {
                let maps = distiller.teacher().features_of_noisy(&noisy).unwrap();
                for (&tap, map) in self.taps.iter().zip(&maps) {
                    golden.check(&format!("step0.teacher.{}", self.level(tap)), map, Tolerance::default());
                }
                let student = distiller.student();
                let mut ctx = Ctx::training(student.params(), Philox::new(0));
                let maps = student.forward(&mut ctx, &x0).unwrap();
                let maps: Vec<Tensor> = maps.iter().map(|v| v.tensor().clone()).collect();
                self.check_step0(student, &maps, &out.grads);
            }
            self.check_loss(step, [out.loss, out.mse, out.at], 1e-6);
            let store = distiller.student_mut().params_mut();
            for (id, value) in out.buffers {
                store.set(id, value).unwrap();
            }
            let mut grads: BTreeMap<usize, Tensor> =
                out.grads.into_iter().map(|(id, g)| (id.index(), g)).collect();
            let with_grad: Vec<_> = store
                .values_mut()
                .enumerate()
                .filter_map(|(i, (name, _, rank, value))| Some((name, rank, value, grads.remove(&i)?)))
                .collect();
            let (mut parts, mut slots) = (with_grad, Vec::new());
            for (name, rank, value, grad) in &mut parts {
                let decay = weight_decays(name, *rank);
                assert_eq!(decay, *rank > 1, "{name}: the reference decays all but vectors");
                slots.push(Slot { name, value, grad, decay, lr_scale: 1.0 });
            }
            optimizer.step(lr, &mut slots).unwrap();
        }
        self.check_final(distiller.student().params(), lr);
        assert_eq!(golden.unused(), Vec::<String>::new(), "{}: tensors that no check used", golden.name);
    }

    /// All steps on a device, with operands of a type. In bf16 losses may be off by what rounding does to a forward pass;
    /// the weights then follow other gradients, and are not compared.
    fn on_device(&self, weights: &Golden, gpu: &Gpu, dtype: DType) {
        let golden = self.golden;
        let (optimizer, lr) = optimizer(&golden.entry["optimiser"]);
        let distiller = Distiller::new(self.teacher(weights), self.student(), self.loss.clone(), 0).unwrap();
        let config = DeviceConfig { dtype, optimizer, clip_grad: None, ema: None };
        let mut device = DeviceDistiller::new(config, &distiller, gpu).unwrap();
        let schedule = Schedule::new(BetaSchedule::Linear, DiffusionConfig::default().steps).unwrap();
        let t = golden.entry["t"].as_u64().unwrap() as usize;
        let there = |x: &Tensor| x.to_dtype(dtype).unwrap().to_gpu(gpu).unwrap();
        for step in 0..golden.shape("loss")[0] {
            let (x0, noise) = (self.batch("x0", step), self.batch("noise", step));
            let noisy = schedule.q_sample(&x0, &vec![t; x0.shape()[0]], &noise).unwrap();
            device.begin(lr).unwrap();
            let images = normalize_imagenet(&x0).unwrap();
            device.enqueue_part(&distiller, there(&images), there(&noisy), None, true).unwrap();
            device.enqueue_update(1).unwrap();
            let levels = device.level_metrics().to_cpu().unwrap();
            let mean = |i: usize| {
                levels.f32s().unwrap().iter().skip(i).step_by(3).sum::<f32>() / levels.shape()[0] as f32
            };
            let got = [device.loss().item().unwrap(), mean(0), mean(1)];
            println!("{} {dtype} step {step}: {got:?}", golden.name);
            self.check_loss(step, got, if dtype == DType::F32 { 1e-5 } else { 2e-2 });
        }
        if dtype == DType::F32 {
            let mut store = distiller.student().params().clone();
            device.student().download(&mut store).unwrap();
            self.check_final(&store, lr);
        }
        gpu::clean_after_launches(gpu);
    }

    /// Checksums of parameters and running statistics after all steps.
    fn check_final(&self, store: &ParamStore, lr: f64) {
        let entry = &self.golden.entry;
        let sums = entry["final_checksums"].as_object().unwrap();
        let limit = |key: &str| 3.0 * entry["sensitivity"]["final_checksums"][key].as_f64().unwrap();
        let names: BTreeSet<&str> = sums.keys().map(String::as_str).collect();
        let ours = store.iter().map(|(_, p)| p.name()).filter(|n| !n.ends_with(COUNTER)).collect();
        assert_eq!(names, ours, "{}: final tensors (left) and those of the student", self.golden.name);
        for (name, want) in sums {
            let value = store.to_file(store.find(name).unwrap()).unwrap();
            let v: Vec<f64> = value.f32s().unwrap().iter().map(|&x| f64::from(x)).collect();
            let n = v.len() as f64;
            let mean = v.iter().sum::<f64>() / n;
            let std = (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
            let l2 = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            let close = |what: &str, got: f64, rtol: f64, atol: f64| {
                let want = want[what].as_f64().unwrap();
                common::assert_close_f64(&format!("final {name}: {what}"), &[got], &[want], rtol, atol);
            };
            close("mean", mean, 0.0, limit("mean_abs"));
            close("std", std, limit("std_rel"), 1e-6 * mean.abs());
            close("l2", l2, limit("l2_rel"), 1e-6);
            let first: Vec<f64> =
                want["first"].as_array().unwrap().iter().map(|f| f.as_f64().unwrap()).collect();
            // Where a gradient is close to 0, its sign decides which way AdamW goes by almost `lr`.
            let atol = limit("mean_abs") + lr;
            let (name, got) = (format!("final {name}: first"), &v[..first.len()]);
            common::assert_close_f64(&name, got, &first, 0.0, atol);
        }
        println!("{}: {} final tensors agree", self.golden.name, sums.len());
    }

    /// Step 0 of the student against the recorded features of the teacher.
    fn without_teacher(&self) {
        let golden = self.golden;
        let student = self.student();
        let mut ctx = Ctx::training(student.params(), Philox::new(0));
        let maps = student.forward(&mut ctx, &self.batch("x0", 0)).unwrap();
        let target = |&tap: &usize| golden.memory(&format!("step0.teacher.{}", self.level(self.taps[tap])));
        let targets: Vec<Tensor> = student.pairs().iter().map(target).collect();
        let loss = feature_loss(&mut ctx, &maps, &targets, &self.loss).unwrap();
        let [mse, at] = mean_of_levels(&loss.level_losses().unwrap());
        self.check_loss(0, [loss.total.tensor().item().unwrap(), mse, at], 1e-6);
        let maps: Vec<Tensor> = maps.into_iter().map(|v| v.into_tensor()).collect();
        let mut grads = ctx.backward(&loss.total).unwrap();
        let ids: Vec<ParamId> = student.params().iter().map(|(id, _)| id).collect();
        let grads: Vec<_> = ids.into_iter().filter_map(|id| Some((id, grads.take_param(id)?))).collect();
        self.check_step0(&student, &maps, &grads);
    }
}

/// Sets every tensor of the store that the file has under `prefix`.
fn load(store: &mut ParamStore, golden: &Golden, prefix: &str) -> dtk::error::Result<()> {
    for name in golden.suffixes(prefix) {
        let id = store.find(&name).unwrap_or_else(|| panic!("{}: the network has no {name}", golden.name));
        store.set_from_file(id, &golden.get(&format!("{prefix}{name}")))?;
    }
    Ok(())
}

/// The loss that the manifest describes, e.g. `feat_c: mse_c (..) + 10*at; ..`.
fn loss_config(text: &str) -> LossConfig {
    let whiten = match text {
        _ if text.contains("mse_chw") => Whiten::Sample,
        _ if text.contains("mse_c") => Whiten::Channel,
        _ => panic!("unknown loss `{text}`"),
    };
    let factor = text.split_once("*at").and_then(|(before, _)| before.rsplit([' ', '+']).next());
    let at_weight =
        factor.and_then(|f| f.parse().ok()).unwrap_or_else(|| panic!("no `<number>*at` in `{text}`"));
    LossConfig { whiten, at_weight, ..LossConfig::default() }
}

/// The manifest's optimiser and its learning rate.
fn optimizer(settings: &Value) -> (OptimizerConfig, f64) {
    let mut settings = settings.as_object().unwrap().clone();
    let lr = settings.remove("lr").unwrap().as_f64().unwrap();
    let no_decay = settings.remove("no_decay");
    assert_eq!(no_decay, Some(json!("all 1-D parameters")), "which parameters have no weight decay");
    let name = settings["name"].as_str().unwrap().to_lowercase();
    settings.insert("name".into(), json!(name));
    let config: OptimizerConfig = serde_json::from_value(Value::Object(settings)).unwrap();
    (config, lr)
}

/// The teacher's file, unless a subset has left out what the steps after the first need.
fn teacher_of(set: &GoldenSet, golden: &Golden) -> Option<Golden> {
    let complete = golden.expect("noise");
    set.file(golden.entry["teacher"].as_str().unwrap()).filter(|_| complete)
}

#[test]
fn golden_end_to_end_steps() {
    let Some(set) = GoldenSet::open() else { return };
    for golden in set.section("end_to_end") {
        if let Some(teacher) = teacher_of(&set, &golden) {
            Run::new(&golden).with_teacher(&teacher);
            golden.finish();
        }
    }
}

#[test]
fn golden_end_to_end_on_device() {
    let Some(set) = GoldenSet::open() else { return };
    for golden in set.section("end_to_end") {
        let Some(teacher) = teacher_of(&set, &golden) else { continue };
        for dtype in [DType::F32, DType::Bf16] {
            let Some(gpu) = gpu::device() else { return };
            Run::new(&golden).on_device(&teacher, &gpu, dtype);
        }
    }
}

#[test]
fn golden_end_to_end_student() {
    common::for_section("end_to_end", |golden| Run::new(golden).without_teacher());
}
