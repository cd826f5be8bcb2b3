//! Optimisers and schedules against reference trajectories (PyTorch, timm).

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use common::{Golden, GoldenSet, Tolerance, assert_close_f64, for_section};
use dtk::gpu::Gpu;
use dtk::optim::device::{DeviceOptimizer, DeviceParam};
use dtk::optim::{OptimizerConfig, ScheduleConfig, Slot, Span};
use dtk::tensor::Tensor;
use serde_json::{Map, Value, json};

/// The reference ran in f64; f32 arithmetic stays within 4e-7 of the largest weight, other orders of the same
/// operations within a few times that.
const TOLERANCE: Tolerance = Tolerance { relative: 0.0, of_max: 5e-6, absolute: 0.0 };

/// An optimiser of the manifest: its configuration, learning rate, and for every parameter whether weight decay
/// applies.
fn optimiser(run: &str, hyper: &Value, params: &[String]) -> (OptimizerConfig, f64, Vec<bool>) {
    let mut hyper: Map<String, Value> = hyper.as_object().unwrap().clone();
    let lr = hyper.remove("lr").and_then(|v| v.as_f64()).unwrap_or_else(|| panic!("{run}: no `lr`"));
    let decay = hyper.get("weight_decay").and_then(Value::as_f64).unwrap_or(0.0);
    let groups: Vec<(&str, f64)> = hyper
        .iter()
        .filter_map(|(k, v)| Some((k.strip_prefix("weight_decay_group_")?, v.as_f64()?)))
        .collect();
    let decays = params.iter().map(|p| {
        // A group is named after its parameter, or after what its parameters begin with.
        let group = groups.iter().filter(|(g, _)| p.starts_with(g)).max_by_key(|(g, _)| g.len());
        let own = group.map_or(decay, |(_, v)| *v);
        assert!(
            own == decay || own == 0.0,
            "{run}: {p} has a weight decay of its own, {own} instead of {decay}"
        );
        own != 0.0
    });
    let decays = decays.collect();
    hyper.retain(|k, _| !k.starts_with("weight_decay_group_"));
    hyper.insert("name".into(), json!(run.split('_').next()));
    let config = serde_json::from_value(Value::Object(hyper)).unwrap_or_else(|e| panic!("{run}: {e}"));
    (config, lr, decays)
}

#[test]
fn golden_optim_trajectories() {
    for_section("optimisers", |golden| {
        for (run, hyper) in golden.entry["optimisers"].as_object().unwrap() {
            trajectory(golden, run, hyper);
        }
    });
}

/// The parameters of a run; `None` if a tensor of it is not in the file.
fn params_of(golden: &Golden, run: &str) -> Option<Vec<String>> {
    let params = golden.suffixes("p0.");
    let mut needed = params.iter().flat_map(|p| [format!("grads.{p}"), format!("{run}.traj.{p}")]);
    (!params.is_empty() && needed.all(|n| golden.expect(&n))).then_some(params)
}

/// The gradients of every step of a run, by parameter.
fn gradients(golden: &Golden, run: &str, params: &[String]) -> Vec<Vec<Tensor>> {
    let steps = golden.shape(&format!("{run}.traj.{}", params[0]))[0];
    assert!(steps > 0, "{run}: no steps");
    let all: Vec<Tensor> = params.iter().map(|p| golden.get(&format!("grads.{p}"))).collect();
    let shapes: Vec<_> = params.iter().map(|p| golden.shape(&format!("p0.{p}"))).collect();
    let part = |(g, shape): (&Tensor, &dtk::base::Shape), step: usize| {
        let g = g.f32s().unwrap()[step * shape.elems()..][..shape.elems()].to_vec();
        Tensor::from_vec(*shape, g).unwrap()
    };
    (0..steps).map(|step| all.iter().zip(&shapes).map(|g| part(g, step)).collect()).collect()
}

fn trajectory(golden: &Golden, run: &str, hyper: &Value) {
    let Some(params) = params_of(golden, run) else { return };
    let (config, lr, decays) = optimiser(run, hyper, &params);
    let mut opt = config.build().unwrap();
    let mut values: Vec<Tensor> = params.iter().map(|p| golden.get(&format!("p0.{p}"))).collect();
    for (step, grads) in gradients(golden, run, &params).iter().enumerate() {
        let mut slots: Vec<Slot<'_>> = params
            .iter()
            .zip(&mut values)
            .zip(grads)
            .zip(&decays)
            .map(|(((name, value), grad), &decay)| Slot { name, value, grad, decay, lr_scale: 1.0 })
            .collect();
        opt.step(lr, &mut slots).unwrap_or_else(|e| panic!("{run}: {e}"));
        for (p, v) in params.iter().zip(&values) {
            golden.check_part(&format!("{run}.traj.{p}"), step, v.f32s().unwrap(), TOLERANCE);
        }
    }
}

#[test]
fn golden_optim_trajectories_on_a_device() {
    let Some(device) = gpu::device() else { return };
    for_section("optimisers", |golden| {
        for (run, hyper) in golden.entry["optimisers"].as_object().unwrap() {
            trajectory_on(&device, golden, run, hyper);
        }
    });
    gpu::clean_after_launches(&device);
}

fn trajectory_on(gpu: &Gpu, golden: &Golden, run: &str, hyper: &Value) {
    let Some(names) = params_of(golden, run) else { return };
    let (config, lr, decays) = optimiser(run, hyper, &names);
    let param = |(name, &decay): (&String, &bool)| DeviceParam {
        name: name.clone(),
        value: golden.get(&format!("p0.{name}")).to_gpu(gpu).unwrap(),
        shadow: None,
        decay,
        lr_scale: 1.0,
    };
    let params: Vec<DeviceParam> = names.iter().zip(&decays).map(param).collect();
    let mut opt = DeviceOptimizer::new(&config, gpu, params.clone(), None, None).unwrap();
    for (step, grads) in gradients(golden, run, &names).iter().enumerate() {
        let grads: Vec<Tensor> = grads.iter().map(|g| g.to_gpu(gpu).unwrap()).collect();
        let grads: Vec<Option<&Tensor>> = grads.iter().map(Some).collect();
        let scalars = opt.scalars(lr).unwrap();
        opt.upload_scalars(&scalars).unwrap();
        opt.enqueue(gpu, &grads, None).unwrap_or_else(|e| panic!("{run}: {e}"));
        for p in &params {
            let value = p.value.to_cpu().unwrap();
            golden.check_part(&format!("{run}.traj.{}", p.name), step, value.f32s().unwrap(), TOLERANCE);
        }
    }
}

#[test]
fn golden_optim_schedules() {
    for_section("optimisers", |golden| {
        for (run, v) in golden.entry["schedules"].as_object().unwrap() {
            let key = format!("schedule.{run}");
            if !golden.expect(&key) {
                continue;
            }
            let number = |key: &str| v[key].as_f64().unwrap_or_else(|| panic!("{run}: no number `{key}`"));
            let (t_initial, warmup) = (v["t_initial"].as_u64().unwrap(), v["warmup_t"].as_u64().unwrap());
            let prefix = v["warmup_prefix"].as_bool().unwrap();
            let config = ScheduleConfig::Cosine {
                warmup: Span::Steps(warmup),
                warmup_lr_init: number("warmup_lr_init"),
                lr_min: number("lr_min"),
                warmup_prefix: prefix,
            };
            let total = if prefix { t_initial + warmup } else { t_initial };
            let schedule = config.build(number("base_lr"), total, 1).unwrap();
            let want = golden.f64s(&key);
            let got: Vec<f64> = (0..want.len() as u64).map(|t| schedule.lr_at(t)).collect();
            assert_close_f64(run, &got, &want, 1e-12, 1e-15 * number("base_lr"));
            golden.note(&key);
        }
    });
}

#[test]
fn golden_optim_every_tensor_is_known() {
    let Some(set) = GoldenSet::open() else { return };
    for golden in set.section("optimisers") {
        let known = |section: &str, name: &str| golden.entry[section].get(name).is_some();
        for name in golden.names() {
            let ok = match name.split_once('.') {
                Some(("p0" | "grads", _)) => true,
                Some(("schedule", run)) => known("schedules", run),
                Some((run, rest)) => rest.starts_with("traj.") && known("optimisers", run),
                None => false,
            };
            assert!(ok, "`{name}`: nothing checks this tensor");
        }
    }
}
