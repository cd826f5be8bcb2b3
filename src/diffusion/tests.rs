use super::*;
use crate::base::Philox;
use crate::tensor::Tensor;

fn close(name: &str, got: f64, want: f64, tol: f64) {
    assert!((got - want).abs() <= tol * want.abs(), "{name}: {got} is not {want}");
}

/// (t, beta, abar, sqrt(abar), sqrt(1 - abar)) of the linear schedule, ten digits.
const LINEAR: [(usize, f64, f64, f64, f64); 8] = [
    (0, 1e-4, 0.9999, 0.9999499987, 0.01),
    (49, 0.001076076076, 0.9710157229, 0.9854013005, 0.1702476933),
    (50, 0.001095995996, 0.9699514936, 0.9848611545, 0.1733450501),
    (149, 0.003068068068, 0.7883213509, 0.8878746257, 0.4600854802),
    (150, 0.003087987988, 0.785887024, 0.8865026926, 0.4627234336),
    (250, 0.00507997998, 0.5214230306, 0.7220962752, 0.6917925768),
    (350, 0.007071971972, 0.2831825843, 0.5321490245, 0.8466507047),
    (999, 0.02, 4.035829765e-05, 0.006352818088, 0.9999798206),
];

#[test]
fn linear_table() {
    let s = Schedule::new(BetaSchedule::Linear, 1000).unwrap();
    for (t, beta, bar, a, b) in LINEAR {
        close("beta", s.betas[t], beta, 1e-9);
        close("abar", s.alphas_cumprod[t], bar, 1e-9);
        close("sqrt", s.sqrt_alphas_cumprod[t], a, 1e-9);
        close("rest", s.sqrt_one_minus_alphas_cumprod[t], b, 1e-9);
    }
    assert_eq!((s.alphas_cumprod_prev[0], s.alphas_cumprod_next[999]), (1.0, 0.0));
    assert_eq!(s.timestep_map, (0..1000).collect::<Vec<_>>());
    let half = Schedule::new(BetaSchedule::Linear, 500).unwrap();
    close("scaled beta", half.betas[0], 2e-4, 1e-12);
}

#[test]
fn scaled_linear_table() {
    let s = Schedule::new(BetaSchedule::ScaledLinear, 1000).unwrap();
    for (t, bar) in [(0, 0.99915), (50, 0.9515769), (150, 0.8278116), (350, 0.5064873), (999, 0.0046601)] {
        close("abar", s.alphas_cumprod[t], bar, 2e-6);
    }
}

#[test]
fn q_sample_by_hand() {
    let s = Schedule::new(BetaSchedule::Linear, 1000).unwrap();
    let t: Vec<usize> = LINEAR.iter().map(|r| r.0).collect();
    let shape = [t.len(), 1, 3, 1];
    let x0 = Tensor::from_vec(shape, [1.0f32, 0.0, -0.5].repeat(t.len())).unwrap();
    let noise = Tensor::from_vec(shape, [0.0f32, 1.0, 2.0].repeat(t.len())).unwrap();
    let x = s.q_sample(&x0, &t, &noise).unwrap();
    for (row, (_, _, _, a, b)) in x.f32s().unwrap().chunks(3).zip(LINEAR) {
        for (got, want) in row.iter().zip([a, b, -0.5 * a + 2.0 * b]) {
            close("x_t", f64::from(*got), want, 2e-7);
        }
    }
    let e = s.q_sample(&x0, &[0; 7], &noise).unwrap_err();
    assert!(e.is_shape(), "{e}");
    let e = s.q_sample(&x0, &[1000; 8], &noise).unwrap_err();
    assert!(e.is_usage() && e.remedy().unwrap().contains("999"), "{e}");
    assert!(s.q_sample(&x0, &t, &Tensor::zeros([8, 3, 1, 1])).unwrap_err().is_shape());
    assert!(s.q_sample(&Tensor::zeros([3]), &t, &noise).unwrap_err().is_shape());
    assert_eq!(
        s.q_sample(&Tensor::zeros([0, 2, 2, 3]), &[], &Tensor::zeros([0, 2, 2, 3])).unwrap().elems(),
        0
    );
}

#[test]
fn respacing_rules() {
    let text = |n: usize, t: &str| space_timesteps(n, &Respacing::Text(t.into()));
    assert_eq!(text(1000, "ddim20").unwrap(), (0..1000).step_by(50).collect::<Vec<_>>());
    assert_eq!(text(1000, "ddim25").unwrap(), (0..1000).step_by(40).collect::<Vec<_>>());
    assert_eq!(text(10, "").unwrap(), (0..10).collect::<Vec<_>>());
    // Strides 2.5 and 1.5: Python rounds 2.5 to 2, 7.5 to 8, 1.5 to 2, 4.5 to 4.
    assert_eq!(text(11, "5").unwrap(), [0, 2, 5, 8, 10]);
    assert_eq!(text(7, "5").unwrap(), [0, 2, 3, 4, 6]);
    // Sections of 6 and 5 steps.
    assert_eq!(text(11, "3, 2").unwrap(), [0, 2, 5, 6, 10]);
    assert_eq!(text(300, "10,15,20").unwrap().len(), 45);
    assert_eq!(text(10, "1,0").unwrap(), [0]);
    assert_eq!(space_timesteps(9, &Respacing::Steps(vec![4, 2, 4])).unwrap(), [2, 4]);
    for (n, bad) in
        [(1000, "ddim999"), (1000, "ddimx"), (10, "11"), (10, "a,b"), (10, "0"), (1, "ddim1"), (2, "1,1,1")]
    {
        let e = text(n, bad).unwrap_err();
        assert!(e.is_usage() && e.remedy().is_some(), "{bad}: {e}");
    }
    assert!(text(1000, "ddim999").unwrap_err().remedy().unwrap().contains("ddim1000"));
    assert!(space_timesteps(9, &Respacing::Steps(vec![9])).unwrap_err().is_usage());
}

#[test]
fn respaced_schedule_keeps_the_products() {
    let s = Schedule::new(BetaSchedule::Linear, 1000).unwrap();
    let kept = [3, 50, 51, 999];
    let r = s.respace(&kept).unwrap();
    assert_eq!(r.timestep_map, kept);
    for (i, &k) in kept.iter().enumerate() {
        close("abar", r.alphas_cumprod[i], s.alphas_cumprod[k], 1e-12);
    }
    assert_eq!(r.respace(&[1, 3]).unwrap().timestep_map, [50, 999]);
    assert!(s.respace(&[5, 5]).unwrap_err().is_usage());
    assert!(s.respace(&[1000]).unwrap_err().is_usage());
    assert!(s.respace(&[]).unwrap_err().is_usage());
    let one = s.respace(&[0]).unwrap();
    assert!(one.posterior_log_variance_clipped[0].is_finite());
}

#[test]
fn impossible_schedules() {
    assert!(Schedule::new(BetaSchedule::Linear, 0).unwrap_err().is_usage());
    assert!(Schedule::new(BetaSchedule::Linear, 20).unwrap_err().remedy().is_some());
    Schedule::new(BetaSchedule::Linear, 21).unwrap();
    assert!(Schedule::from_betas(vec![0.1, f64::NAN]).unwrap_err().is_usage());
}

/// A network that always answers with the true noise of a point mass leads exactly along `q(x_t | x_0)`.
#[test]
fn encoding_follows_a_perfect_network() {
    let s = Schedule::new(BetaSchedule::Linear, 1000).unwrap().respace(&[0, 50, 100, 150, 200]).unwrap();
    let shape = [2, 3, 1, 3];
    let mut v = vec![0.0f32; 18];
    Philox::new(1).fill_normal(&mut v);
    let noise = Tensor::from_vec(shape, v.clone()).unwrap();
    let image = Tensor::full(shape, 0.25);
    let start = s.q_sample(&image, &[0, 0], &noise).unwrap();
    let mut asked = Vec::new();
    let mut seen = Vec::new();
    let mut model = |x: &Tensor, t: usize| {
        asked.push(t);
        // Learned variances in the second half of the channels must not matter.
        let both = v.chunks(3).flat_map(|e| [e, &[1e9; 3]].concat()).collect();
        assert_eq!(x.elems(), 18);
        Tensor::from_vec([2, 3, 1, 6], both)
    };
    let x = ddim_encode(&s, &start, 3, true, &mut model, &mut |i, step| {
        seen.push((i, step.pred_xstart.clone()));
        Ok(())
    })
    .unwrap();
    assert_eq!(asked, [0, 50, 100]);
    let want = s.q_sample(&image, &[3, 3], &noise).unwrap();
    for (a, b) in x.f32s().unwrap().iter().zip(want.f32s().unwrap()) {
        assert!((a - b).abs() <= 1e-6, "{a} {b}");
    }
    for (i, (at, pred)) in seen.iter().enumerate() {
        assert_eq!(*at, i);
        assert!(pred.f32s().unwrap().iter().all(|p| (p - 0.25).abs() <= 1e-6));
    }
}

#[test]
fn clipping_enters_the_next_sample() {
    let s = Schedule::from_betas(vec![0.5, 0.5]).unwrap();
    let x = Tensor::full([1, 1, 1, 1], 4.0);
    let eps = Tensor::zeros([1, 1, 1, 1]);
    let step = s.ddim_reverse_sample(&x, &eps, 0, true).unwrap();
    assert_eq!(step.pred_xstart.item().unwrap(), 1.0);
    // eps = (sqrt(2) 4 - 1) / 1; x = 0.5 * 1 + sqrt(0.75) eps.
    close(
        "clipped",
        f64::from(step.sample.item().unwrap()),
        0.5 + 0.75f64.sqrt() * (4.0 * 2f64.sqrt() - 1.0),
        1e-6,
    );
    let free = s.ddim_reverse_sample(&x, &eps, 0, false).unwrap();
    close("free", f64::from(free.sample.item().unwrap()), 0.5 * 4.0 * 2f64.sqrt(), 1e-6);
}

#[test]
fn encoding_errors() {
    let s = Schedule::new(BetaSchedule::Linear, 100).unwrap();
    let x = Tensor::zeros([1, 2, 2, 3]);
    let encode = |steps: usize, channels: usize| {
        ddim_encode(&s, &x, steps, true, &mut |_, _| Ok(Tensor::zeros([1, 2, 2, channels])), &mut |_, _| {
            Ok(())
        })
    };
    assert!(encode(101, 3).unwrap_err().is_usage());
    assert!(encode(1, 4).unwrap_err().is_shape());
    encode(1, 6).unwrap();
    assert_eq!(encode(0, 4).unwrap().f32s().unwrap(), x.f32s().unwrap());
    assert!(s.ddim_reverse_sample(&x, &x, 100, true).unwrap_err().is_usage());
    assert!(s.ddim_reverse_from(&x, &Tensor::zeros([1, 2, 2, 1]), 0).unwrap_err().is_shape());
}

#[test]
fn noise_policies() {
    let base = Philox::new(3).fold_str("noise");
    let draw = |n: Noise, step: u64, at: &[u64]| n.draw(base, step, at, [3, 5, 3]).unwrap();
    let all = draw(Noise::Fresh, 7, &[0, 1, 2]);
    let part = draw(Noise::Fresh, 7, &[2]);
    assert_eq!(all.f32s().unwrap()[90..], *part.f32s().unwrap());
    assert_ne!(part.f32s().unwrap(), draw(Noise::Fresh, 8, &[2]).f32s().unwrap());
    assert_ne!(part.f32s().unwrap(), draw(Noise::Fresh, 7, &[1]).f32s().unwrap());
    let shared = draw(Noise::Shared, 1, &[0, 4]);
    let (a, b) = shared.f32s().unwrap().split_at(45);
    assert_eq!(a, b);
    assert_eq!(a, draw(Noise::Shared, 9, &[8]).f32s().unwrap());
    assert!(Noise::Fresh.draw(base, 0, &[], [1, 1, 1]).unwrap_err().is_shape());
}

#[test]
fn config() {
    let parse = |t: &str| toml::from_str::<DiffusionConfig>(t);
    let d = parse("").unwrap();
    assert_eq!(d, DiffusionConfig::default());
    assert_eq!(parse(&toml::to_string(&d).unwrap()).unwrap(), d);
    let (schedule, steps) = d.build_ddim().unwrap();
    assert_eq!((steps, schedule.timestep_map[steps]), (3, 150));
    let c = parse(
        "schedule = \"scaled_linear\"\nnoise = \"shared\"\nencoding = \"ddim\"\nddim_steps = [0, 80, 150]",
    )
    .unwrap();
    assert_eq!((c.noise, c.encoding, c.build_ddim().unwrap().1), (Noise::Shared, Encoding::Ddim, 2));
    let odd = parse("t = 160").unwrap();
    odd.build().unwrap();
    let e = odd.build_ddim().unwrap_err();
    assert!(e.remedy().unwrap().contains("150 or 200"), "{e}");
    assert!(parse("t = 999").unwrap().build_ddim().unwrap_err().remedy().unwrap().contains("950"));
    assert_eq!(parse("t = 1000").unwrap().build().unwrap_err().key(), Some("t"));
    assert_eq!(
        parse("ddim_steps = \"ddim7000\"").unwrap().build_ddim().unwrap_err().key(),
        Some("ddim_steps")
    );
    assert!(parse("T = 3").unwrap_err().to_string().contains('T'));
}
