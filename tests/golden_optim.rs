//! Optimisers and schedules against reference trajectories (PyTorch, timm).

mod common;

use common::{assert_close, assert_close_f64, f32s, f64s, golden, max_abs};
use dtk::optim::{OptimizerConfig, ScheduleConfig, Slot, Span, weight_decays};
use dtk::tensor::Tensor;
use serde_json::{Value, json};

/// The reference ran in f64; f32 arithmetic stays within 4e-7 of the largest weight, other orders of the same
/// operations within a few times that.
const TOLERANCE: f64 = 5e-6;

/// The `i`-th of the tensors stacked along the first axis of `name`.
fn part(stack: &[f32], i: usize, size: usize) -> &[f32] {
    &stack[i * size..][..size]
}

#[test]
fn golden_optim_trajectories() {
    let Some((entry, file)) = golden("optim.safetensors") else { return };
    let params: Vec<String> = file.names().filter_map(|n| n.strip_prefix("p0.")).map(String::from).collect();
    assert!(!params.is_empty());
    for (run, hyper) in entry["optimisers"].as_object().unwrap() {
        let mut hyper = hyper.as_object().unwrap().clone();
        let lr = hyper.remove("lr").unwrap().as_f64().unwrap();
        // The parameters of the second group have no weight decay: exactly those that the usual rule exempts.
        hyper.retain(|k, v| {
            let group = k.starts_with("weight_decay_group");
            assert!(!group || v.as_f64() == Some(0.0), "{run}: only groups without weight decay are known");
            !group
        });
        let kind = run.split('_').next().unwrap();
        hyper.insert("name".into(), json!(kind));
        let config: OptimizerConfig =
            serde_json::from_value(Value::Object(hyper)).unwrap_or_else(|e| panic!("{run}: {e}"));
        let mut opt = config.build().unwrap();

        let mut values: Vec<Tensor> = params.iter().map(|p| file.get(&format!("p0.{p}")).unwrap()).collect();
        let grads: Vec<_> = params.iter().map(|p| f32s(&file, &format!("grads.{p}"))).collect();
        let traj: Vec<_> = params.iter().map(|p| f32s(&file, &format!("{run}.traj.{p}"))).collect();
        let steps = file.info(&format!("{run}.traj.{}", params[0])).unwrap().1[0];
        assert!(steps > 0);
        for step in 0..steps {
            let now: Vec<Tensor> = values
                .iter()
                .zip(&grads)
                .map(|(v, g)| Tensor::from_vec(v.shape(), part(g, step, v.elems()).to_vec()).unwrap())
                .collect();
            let mut slots: Vec<_> = params
                .iter()
                .zip(&mut values)
                .zip(&now)
                .map(|((name, value), grad)| {
                    let decay = weight_decays(name, value.shape().len());
                    Slot { name, value, grad, decay, lr_scale: 1.0 }
                })
                .collect();
            opt.step(lr, &mut slots).unwrap_or_else(|e| panic!("{run}: {e}"));
            for ((p, v), t) in params.iter().zip(&values).zip(&traj) {
                let name = format!("{run}.traj.{p}[{step}]");
                assert_close(&name, v.f32s().unwrap(), part(t, step, v.elems()), 0.0, TOLERANCE * max_abs(t));
            }
        }
        println!("{run}: {steps} steps of {} parameters agree", params.len());
    }
}

#[test]
fn golden_optim_schedules() {
    let Some((entry, file)) = golden("optim.safetensors") else { return };
    for (run, v) in entry["schedules"].as_object().unwrap() {
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
        let want = f64s(&file, &format!("schedule.{run}"));
        let got: Vec<f64> = (0..want.len() as u64).map(|t| schedule.lr_at(t)).collect();
        assert_close_f64(run, &got, &want, 1e-12, 1e-15 * number("base_lr"));
    }
}
