//! Noise schedules, the forward process and the algebra of DDIM encoding against guided-diffusion.

mod common;

use common::{assert_close, assert_close_f64, assert_rel_l2, f64s, golden};
use dtk::diffusion::{BetaSchedule, Respacing, Schedule, ddim_encode, space_timesteps};
use dtk::tensor::{SafetensorsFile, Tensor};

const FILE: &str = "diffusion.safetensors";

/// Compares every f64 tensor `<prefix>.<table>` of the file with the table of that name; returns how many.
fn compare_tables(file: &SafetensorsFile, prefix: &str, s: &Schedule) -> usize {
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
    let stored: Vec<_> =
        tables.iter().filter(|(t, _)| file.info(&format!("{prefix}.{t}")).is_some()).collect();
    for (table, got) in &stored {
        let name = format!("{prefix}.{table}");
        assert_close_f64(&name, got, &f64s(file, &name), 1e-12, 0.0);
    }
    stored.len()
}

/// The prefixes `linear<steps>` that the file has tables of.
fn linear_steps(file: &SafetensorsFile) -> Vec<usize> {
    let of = |n: &str| n.strip_prefix("linear")?.strip_suffix(".betas")?.parse().ok();
    file.names().filter_map(of).collect()
}

/// The first axis of `name` as separate image batches, in the network's layout.
fn stack(file: &SafetensorsFile, name: &str) -> Vec<Tensor> {
    let t = file.get(name).unwrap();
    let shape = t.shape();
    let inner = dtk::base::Shape::from_slice(&shape[1..]).unwrap();
    let parts = t.f32s().unwrap().chunks(inner.elems());
    parts.map(|p| Tensor::from_vec(inner, p.to_vec()).unwrap().nchw_to_nhwc().unwrap()).collect()
}

#[test]
fn golden_diffusion_tables() {
    let Some((_, file)) = golden(FILE) else { return };
    let all = linear_steps(&file);
    assert!(!all.is_empty());
    for steps in all {
        let s = Schedule::new(BetaSchedule::Linear, steps).unwrap();
        assert!(compare_tables(&file, &format!("linear{steps}"), &s) >= 4);
    }
}

#[test]
fn golden_diffusion_q_sample() {
    let Some((_, file)) = golden(FILE) else { return };
    let s = Schedule::new(BetaSchedule::Linear, linear_steps(&file)[0]).unwrap();
    let get = |n: &str| file.get(&format!("q_sample.{n}")).unwrap();
    let nhwc = |n: &str| get(n).nchw_to_nhwc().unwrap();
    let t: Vec<usize> =
        get("t").data::<i64>().unwrap().iter().map(|&t| usize::try_from(t).unwrap()).collect();
    let x = s.q_sample(&nhwc("x0"), &t, &nhwc("noise")).unwrap().nhwc_to_nchw().unwrap();
    assert_close("q_sample", x.f32s().unwrap(), get("x_t").f32s().unwrap(), 1e-6, 1e-6);
}

#[test]
fn golden_diffusion_ddim_algebra() {
    let Some((entry, file)) = golden(FILE) else { return };
    let base = Schedule::new(BetaSchedule::Linear, linear_steps(&file)[0]).unwrap();
    let x_start = file.get("ddim.x_start").unwrap().nchw_to_nhwc().unwrap();
    for (run, settings) in entry["ddim"].as_object().unwrap() {
        let clip = settings["clip_denoised"].as_bool().unwrap();
        let kept: Vec<usize> = settings["timestep_map"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_u64().unwrap() as usize)
            .collect();
        let map = file.get(&format!("{run}.timestep_map")).unwrap();
        assert!(map.data::<i64>().unwrap().iter().map(|&t| t as usize).eq(kept.iter().copied()));
        let s =
            base.respace(&space_timesteps(base.steps(), &Respacing::Steps(kept.clone())).unwrap()).unwrap();
        assert_eq!(s.timestep_map, kept);
        assert!(compare_tables(&file, run, &s) >= 3);

        let (samples, preds) =
            (stack(&file, &format!("{run}.samples")), stack(&file, &format!("{run}.pred_xstart")));
        assert_eq!((samples.len(), preds.len()), (s.steps(), s.steps()));
        let inputs: Vec<&Tensor> = std::iter::once(&x_start).chain(&samples).take(s.steps()).collect();
        let mut outputs = Vec::new();
        for i in 0..s.steps() {
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
            s.steps(),
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
        assert_eq!(asked, kept);
        assert_eq!(seen, (0..s.steps()).collect::<Vec<_>>());
        assert_rel_l2(run, last.f32s().unwrap(), samples[s.steps() - 1].f32s().unwrap(), 1e-5);
    }
}
