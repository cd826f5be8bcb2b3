//! Noise schedules, the forward process and the algebra of DDIM encoding against guided-diffusion.

mod common;

use common::{
    Golden, Tolerance, assert_close, assert_close_f64, assert_rel_l2, counts, diffusion_steps, for_section,
};
use dtk::diffusion::{BetaSchedule, Respacing, Schedule, ddim_encode, space_timesteps};
use dtk::tensor::Tensor;
use serde_json::Value;
use std::collections::BTreeSet;

/// Compares every tensor `<prefix>.<table>` of the file, but those in `others`, with the table of that name.
fn compare_tables(golden: &Golden, prefix: &str, s: &Schedule, others: &[&str]) {
    let tables = [
        ("betas", &s.betas),
        ("alphas_cumprod", &s.alphas_cumprod),
        ("alphas_cumprod_prev", &s.alphas_cumprod_prev),
        ("alphas_cumprod_next", &s.alphas_cumprod_next),
        ("sqrt_alphas_cumprod", &s.sqrt_alphas_cumprod),
        ("sqrt_one_minus_alphas_cumprod", &s.sqrt_one_minus_alphas_cumprod),
        ("log_one_minus_alphas_cumprod", &s.log_one_minus_alphas_cumprod),
        ("sqrt_recip_alphas_cumprod", &s.sqrt_recip_alphas_cumprod),
        ("sqrt_recipm1_alphas_cumprod", &s.sqrt_recipm1_alphas_cumprod),
        ("posterior_variance", &s.posterior_variance),
        ("posterior_log_variance_clipped", &s.posterior_log_variance_clipped),
        ("posterior_mean_coef1", &s.posterior_mean_coef1),
        ("posterior_mean_coef2", &s.posterior_mean_coef2),
    ];
    for table in golden.suffixes(&format!("{prefix}.")).iter().filter(|t| !others.contains(&t.as_str())) {
        let name = format!("{prefix}.{table}");
        let found = tables.iter().find(|(t, _)| t == table);
        let (_, got) = found.unwrap_or_else(|| panic!("`{name}`: nothing checks this tensor"));
        assert_close_f64(&name, got, &golden.f64s(&name), 1e-12, 0.0);
        golden.note(&name);
    }
}

/// The first axis of `name` as separate image batches, in the network's layout.
fn stack(golden: &Golden, name: &str) -> Vec<Tensor> {
    let t = golden.get(name);
    let shape = t.shape();
    let inner = dtk::base::Shape::from_slice(&shape[1..]).unwrap();
    let parts = t.f32s().unwrap().chunks(inner.elems());
    parts.map(|p| Tensor::from_vec(inner, p.to_vec()).unwrap().nchw_to_nhwc().unwrap()).collect()
}

#[test]
fn golden_diffusion_tables() {
    for_section("diffusion", |golden| {
        let steps = |n: &str| n.strip_prefix("linear")?.split_once('.')?.0.parse::<usize>().ok();
        for steps in golden.names().filter_map(steps).collect::<BTreeSet<_>>() {
            let s = Schedule::new(BetaSchedule::Linear, steps).unwrap();
            compare_tables(golden, &format!("linear{steps}"), &s, &[]);
        }
    });
}

#[test]
fn golden_diffusion_q_sample() {
    for_section("diffusion", |golden| {
        let s = Schedule::new(BetaSchedule::Linear, diffusion_steps(golden)).unwrap();
        if !golden.expect("q_sample.x_t") {
            return;
        }
        let (x0, noise) = (golden.memory("q_sample.x0"), golden.memory("q_sample.noise"));
        let x = s.q_sample(&x0, &golden.counts("q_sample.t"), &noise).unwrap();
        golden.check("q_sample.x_t", &x, Tolerance { relative: 1e-6, of_max: 1e-6, absolute: 0.0 });
    });
}

#[test]
fn golden_diffusion_ddim_algebra() {
    for_section("diffusion", |golden| {
        for (run, settings) in golden.entry["ddim"].as_object().into_iter().flatten() {
            ddim_run(golden, run, settings);
        }
    });
}

fn ddim_run(golden: &Golden, run: &str, settings: &Value) {
    let base = Schedule::new(BetaSchedule::Linear, diffusion_steps(golden)).unwrap();
    let clip = settings["clip_denoised"].as_bool().unwrap();
    let kept = counts(&settings["timestep_map"]);
    let s = base.respace(&space_timesteps(base.steps(), &Respacing::Steps(kept.clone())).unwrap()).unwrap();
    assert_eq!(s.timestep_map, kept);
    compare_tables(golden, run, &s, &["timestep_map", "samples", "pred_xstart"]);
    let name = |what: &str| format!("{run}.{what}");
    if golden.expect(&name("timestep_map")) {
        assert_eq!(golden.counts(&name("timestep_map")), kept, "{run}");
        golden.note(&name("timestep_map"));
    }
    if !(golden.expect(&name("samples")) && golden.expect(&name("pred_xstart"))) {
        return;
    }

    let x_start = golden.memory("ddim.x_start");
    let (samples, preds) = (stack(golden, &name("samples")), stack(golden, &name("pred_xstart")));
    let steps = samples.len();
    assert_eq!(preds.len(), steps, "{run}");
    assert!((1..=s.steps()).contains(&steps), "{run}: {steps} steps of {}", s.steps());
    let inputs: Vec<&Tensor> = std::iter::once(&x_start).chain(&samples).take(steps).collect();
    let mut outputs = Vec::new();
    for i in 0..steps {
        let name = format!("{run}[{i}]");
        // Inputs and prediction were rounded to f32; dividing their difference by sqrt(1/abar - 1) enlarges that.
        let gain = 1.0 + s.sqrt_recip_alphas_cumprod[i] / s.sqrt_recipm1_alphas_cumprod[i];
        let next = s.ddim_reverse_from(inputs[i], &preds[i], i).unwrap();
        assert_close(&name, next.f32s().unwrap(), samples[i].f32s().unwrap(), 1e-6, 3e-7 * gain);

        // The network output that the step implies, with arbitrary learned variances beside it.
        let (a, b) = (s.sqrt_recip_alphas_cumprod[i], s.sqrt_recipm1_alphas_cumprod[i]);
        let c = x_start.shape().last();
        let (x, p) = (inputs[i].f32s().unwrap(), preds[i].f32s().unwrap());
        let eps: Vec<f32> =
            x.iter().zip(p).map(|(&x, &p)| ((a * f64::from(x) - f64::from(p)) / b) as f32).collect();
        let both: Vec<f32> = eps.chunks(c).flat_map(|e| [e, &vec![7.0; c][..]].concat()).collect();
        let [n, h, w, _] = *x_start.shape() else { unreachable!("nchw_to_nhwc returns four dimensions") };
        let out = Tensor::from_vec([n, h, w, 2 * c], both).unwrap();
        let step = s.ddim_reverse_sample(inputs[i], &out, i, clip).unwrap();
        // eps was rounded to f32 and comes back times sqrt(1/abar - 1).
        let tol = 3e-7 * (1.0 + 4.0 * b);
        assert_close(&format!("{name}.pred"), step.pred_xstart.f32s().unwrap(), p, 1e-6, tol);
        outputs.push(out);
    }

    // The whole loop with these outputs: the right indices in the right order, and no drift.
    let mut asked = Vec::new();
    let mut seen = Vec::new();
    let last = ddim_encode(
        &s,
        &x_start,
        steps,
        clip,
        &mut |_, t| {
            asked.push(t);
            Ok(outputs[asked.len() - 1].clone())
        },
        &mut |i, step| {
            assert_rel_l2(
                &format!("{run} loop [{i}]"),
                step.sample.f32s().unwrap(),
                samples[i].f32s().unwrap(),
                1e-5,
            );
            seen.push(i);
            Ok(())
        },
    )
    .unwrap();
    assert_eq!(asked, kept[..steps]);
    assert_eq!(seen, (0..steps).collect::<Vec<_>>());
    assert_rel_l2(run, last.f32s().unwrap(), samples[steps - 1].f32s().unwrap(), 1e-5);
    golden.note(&name("samples"));
    golden.note(&name("pred_xstart"));
}
