use super::*;
use crate::base::Philox;

fn configs() -> Vec<OptimizerConfig> {
    vec![
        OptimizerConfig::AdamW(AdamWConfig { weight_decay: 0.05, ..AdamWConfig::default() }),
        OptimizerConfig::Lamb(LambConfig { weight_decay: 0.05, ..LambConfig::default() }),
        OptimizerConfig::Lamb(LambConfig {
            bias_correction: false,
            max_grad_norm: None,
            ..LambConfig::default()
        }),
        OptimizerConfig::Lars(LarsConfig { weight_decay: 0.05, nesterov: true, ..LarsConfig::default() }),
        OptimizerConfig::Lars(LarsConfig { apex: true, trust_clip: true, ..LarsConfig::default() }),
        OptimizerConfig::Sgd(SgdConfig { weight_decay: 0.05, dampening: 0.1, ..SgdConfig::default() }),
        OptimizerConfig::Sgd(SgdConfig { nesterov: true, ..SgdConfig::default() }),
    ]
}

/// Sizes around the chunk length: less, exactly, several and a rest, one, none.
const SIZES: [usize; 5] = [7, kernel::CHUNK, 3 * kernel::CHUNK + 5, 1, 0];

fn random(stream: u64, size: usize) -> Tensor {
    let mut v = vec![0.0; size];
    Philox::new(5).fold(stream).fill_normal(&mut v);
    Tensor::from_vec([size], v).unwrap()
}

fn params() -> Vec<(String, Tensor)> {
    SIZES.iter().enumerate().map(|(i, &n)| (format!("p{i}"), random(i as u64, n))).collect()
}

fn train(opt: &mut dyn Optimizer, params: &mut [(String, Tensor)], steps: std::ops::Range<u64>) -> StepStats {
    let mut stats = None;
    for step in steps {
        let grads: Vec<_> =
            SIZES.iter().enumerate().map(|(i, &n)| random(1000 * (step + 1) + i as u64, n)).collect();
        let mut slots: Vec<_> = params
            .iter_mut()
            .zip(&grads)
            .map(|((name, value), grad)| Slot { name, value, grad, decay: grad.elems() > 1, lr_scale: 0.5 })
            .collect();
        stats = Some(opt.step(0.01, &mut slots).unwrap());
    }
    stats.unwrap()
}

fn bits(params: &[(String, Tensor)]) -> Vec<Vec<u32>> {
    params.iter().map(|(_, t)| t.f32s().unwrap().iter().map(|v| v.to_bits()).collect()).collect()
}

#[test]
fn resume_is_bitwise() {
    for config in configs() {
        let (mut whole, mut first, mut second) =
            (config.build().unwrap(), config.build().unwrap(), config.build().unwrap());
        let (mut a, mut b) = (params(), params());
        train(&mut *whole, &mut a, 0..10);
        train(&mut *first, &mut b, 0..5);
        let shapes: Vec<_> = b.iter().map(|(n, t)| (n.as_str(), t.shape())).collect();
        second.load_state(&shapes, &first.state()).unwrap();
        train(&mut *second, &mut b, 5..10);
        assert_eq!(bits(&a), bits(&b), "{config:?}");
        assert_eq!((whole.step_count(), second.step_count()), (10, 10));
        assert_ne!(bits(&a), bits(&params()), "{config:?} did nothing");
    }
}

#[test]
fn thread_count_does_not_matter() {
    for config in configs() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut opt, mut p) = (config.build().unwrap(), params());
                let stats = train(&mut *opt, &mut p, 0..3);
                (bits(&p), stats)
            })
        };
        assert_eq!(run(1), run(3), "{config:?}");
    }
}

#[test]
fn stats_are_norms() {
    let mut opt = OptimizerConfig::Sgd(SgdConfig { momentum: 0.0, ..SgdConfig::default() }).build().unwrap();
    let mut w = Tensor::from_vec([2], vec![1.0f32, 1.0]).unwrap();
    let g = Tensor::from_vec([2], vec![3.0f32, -4.0]).unwrap();
    let slot = Slot { name: "w", value: &mut w, grad: &g, decay: true, lr_scale: 1.0 };
    let s = opt.step(0.5, &mut [slot]).unwrap();
    assert_eq!(w.f32s().unwrap(), [-0.5, 3.0]);
    assert_eq!((s.grad_norm, s.update_norm, s.param_norm), (5.0, 2.5, 9.25f64.sqrt()));
}

/// One step by hand: |w| = 5, |g| = 10, coefficient 0.1, decay 0.2: ratio = 0.5 / (10 + 1) without eps.
#[test]
fn lars_ratios_by_hand() {
    let step = |c: LarsConfig, w: [f32; 2], g: [f32; 2], lr: f64, decay: bool| {
        let mut value = Tensor::from_vec([2], w.to_vec()).unwrap();
        let grad = Tensor::from_vec([2], g.to_vec()).unwrap();
        let mut opt = Lars::new(c).unwrap();
        opt.step(lr, &mut [Slot { name: "w", value: &mut value, grad: &grad, decay, lr_scale: 1.0 }])
            .unwrap();
        [value.f32s().unwrap()[0], value.f32s().unwrap()[1]]
    };
    let c = LarsConfig { trust_coeff: 0.1, weight_decay: 0.2, eps: 0.0, ..LarsConfig::default() };
    let near = |a: [f32; 2], b: [f32; 2]| {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6), "{a:?} {b:?}")
    };
    let ratio = 0.5 / 11.0;
    near(step(c.clone(), [3.0, 4.0], [10.0, 0.0], 1.0, true), [3.0 - ratio * 10.6, 4.0 - ratio * 0.8]);
    // Without decay timm takes the plain step, apex adapts: ratio = 0.1 * 5 / 10.
    near(step(c.clone(), [3.0, 4.0], [10.0, 0.0], 0.1, false), [2.0, 4.0]);
    let apex = LarsConfig { apex: true, ..c.clone() };
    near(step(apex.clone(), [3.0, 4.0], [10.0, 0.0], 0.1, false), [3.0 - 0.05, 4.0]);
    // A zero gradient: timm decays with ratio 1, apex does nothing.
    near(step(c, [3.0, 4.0], [0.0, 0.0], 1.0, true), [2.4, 3.2]);
    near(step(apex.clone(), [3.0, 4.0], [0.0, 0.0], 1.0, true), [3.0, 4.0]);
    // Zero weights at a learning rate above 1: apex does not clip a ratio that it does not take.
    let larc = LarsConfig { trust_clip: true, ..apex };
    near(step(larc, [0.0, 0.0], [1.0, 0.0], 2.0, true), [-2.0, 0.0]);
}

#[test]
fn lamb_options_by_hand() {
    let step = |c: LambConfig, decay: bool| {
        let mut value = Tensor::from_vec([2], vec![3.0f32, 4.0]).unwrap();
        let grad = Tensor::from_vec([2], vec![1.0f32, 1.0]).unwrap();
        let mut opt = Lamb::new(c).unwrap();
        opt.step(0.1, &mut [Slot { name: "w", value: &mut value, grad: &grad, decay, lr_scale: 1.0 }])
            .unwrap();
        [value.f32s().unwrap()[0], value.f32s().unwrap()[1]]
    };
    let near = |a: [f32; 2], b: [f32; 2]| {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6), "{a:?} {b:?}")
    };
    // The first corrected Adam update is the sign of the gradient: (1, 1), whatever the clip.
    let c = LambConfig { eps: 0.0, weight_decay: 0.0, ..LambConfig::default() };
    near(step(c.clone(), true), [2.9, 3.9]);
    let step_size = 0.1 * 5.0 / 2f32.sqrt();
    let adapt = LambConfig { always_adapt: true, ..c.clone() };
    near(step(adapt.clone(), false), [3.0 - step_size, 4.0 - step_size]);
    near(step(LambConfig { trust_clip: true, ..adapt.clone() }, false), [2.9, 3.9]);
    // Uncorrected: m = 0.1 g, sqrt(v) = sqrt(0.001) g.
    let u = 0.1 * (0.1 / 0.001f32.sqrt());
    near(step(LambConfig { bias_correction: false, ..c }, true), [3.0 - u, 4.0 - u]);
}

#[test]
fn a_bad_gradient_changes_nothing() {
    for config in configs() {
        let mut opt = config.build().unwrap();
        let mut p = params();
        train(&mut *opt, &mut p, 0..2);
        let (before, state) = (bits(&p), opt.state().len());
        let mut grads: Vec<_> = SIZES.iter().map(|&n| Tensor::full([n], 1.0)).collect();
        grads[2].data_mut::<f32>().unwrap()[kernel::CHUNK + 3] = f32::INFINITY;
        let mut slots: Vec<_> = p
            .iter_mut()
            .zip(&grads)
            .map(|((name, value), grad)| Slot { name, value, grad, decay: true, lr_scale: 1.0 })
            .collect();
        let e = opt.step(0.1, &mut slots).unwrap_err();
        assert!(e.is_numeric() && e.key() == Some("p2"), "{e}");
        assert_eq!((bits(&p), opt.step_count(), opt.state().len()), (before, 2, state));
    }
}

#[test]
fn wrong_steps_are_errors() {
    let mut opt = OptimizerConfig::default().build().unwrap();
    let (mut a, mut b) = (Tensor::zeros([2]), Tensor::zeros([2]));
    let (g, g3) = (Tensor::zeros([2]), Tensor::zeros([3]));
    fn slot<'a>(value: &'a mut Tensor, grad: &'a Tensor) -> Slot<'a> {
        Slot { name: "w", value, grad, decay: false, lr_scale: 1.0 }
    }
    assert!(opt.step(0.1, &mut [slot(&mut a, &g3)]).unwrap_err().is_shape());
    assert!(opt.step(f64::NAN, &mut [slot(&mut a, &g)]).unwrap_err().is_usage());
    assert!(opt.step(-1.0, &mut [slot(&mut a, &g)]).unwrap_err().is_usage());
    assert!(opt.step(0.1, &mut [slot(&mut a, &g), slot(&mut b, &g)]).unwrap_err().is_usage());
    let half = g.to_dtype(crate::base::DType::F16).unwrap();
    assert!(opt.step(0.1, &mut [slot(&mut a, &half)]).unwrap_err().is_dtype());
    assert_eq!(opt.step_count(), 0);
    opt.step(0.1, &mut [slot(&mut a, &g)]).unwrap();
    let mut c = Tensor::zeros([3]);
    assert!(opt.step(0.1, &mut [slot(&mut c, &g3)]).unwrap_err().is_shape());
}

#[test]
fn states_that_do_not_fit_are_named() {
    for config in configs() {
        let mut opt = config.build().unwrap();
        let mut p = params();
        let shapes: Vec<_> = params().iter().map(|(n, t)| (n.clone(), t.shape())).collect();
        let shapes: Vec<_> = shapes.iter().map(|(n, s)| (n.as_str(), *s)).collect();
        opt.load_state(&shapes, &opt.state()).unwrap();
        train(&mut *opt, &mut p, 0..1);
        let good = opt.state();
        for key in good.keys() {
            let mut bad = good.clone();
            bad.remove(key);
            let e = opt.load_state(&shapes, &bad).unwrap_err();
            assert!(e.is_checkpoint() && e.key() == Some(key) && e.remedy().is_some(), "{e}");
            bad.insert(key.clone(), Tensor::zeros([2, 2]));
            let e = opt.load_state(&shapes, &bad).unwrap_err();
            assert!(e.is_checkpoint() && e.key() == Some(key), "{e}");
        }
        let mut more = good.clone();
        more.insert("exp_avg.unknown".into(), Tensor::zeros([1]));
        assert_eq!(opt.load_state(&shapes, &more).unwrap_err().key(), Some("exp_avg.unknown"));
        opt.load_state(&shapes, &good).unwrap();
    }
}

#[test]
fn configs_round_trip_and_are_checked() {
    for config in configs() {
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<OptimizerConfig>(&text).unwrap(), config, "{text}");
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<OptimizerConfig>(&json).unwrap(), config, "{json}");
    }
    let parse = |t: &str| toml::from_str::<OptimizerConfig>(t);
    assert_eq!(parse("name = \"lamb\"").unwrap(), OptimizerConfig::Lamb(LambConfig::default()));
    let clip = |t: &str| match parse(t).unwrap() {
        OptimizerConfig::Lamb(c) => c.max_grad_norm,
        other => panic!("{other:?}"),
    };
    assert_eq!(clip("name = \"lamb\"\nmax_grad_norm = 5"), Some(5.0));
    assert_eq!(clip("name = \"lamb\"\nmax_grad_norm = \"none\""), None);
    assert!(parse("name = \"lamb\"\nmax_grad_norm = \"off\"").unwrap_err().to_string().contains("none"));
    assert!(parse("name = \"lamb\"\nmomentum = 0.9").unwrap_err().to_string().contains("momentum"));
    assert!(parse("name = \"adam\"").unwrap_err().to_string().contains("adamw"));
    for (text, key) in [
        ("name = \"adamw\"\nbetas = [0.9, 1.0]", "betas"),
        ("name = \"adamw\"\neps = -1.0", "eps"),
        ("name = \"lamb\"\nmax_grad_norm = 0.0", "max_grad_norm"),
        ("name = \"lars\"\ntrust_coeff = nan", "trust_coeff"),
        ("name = \"sgd\"\nmomentum = 0.0\nnesterov = true", "nesterov"),
    ] {
        assert_eq!(parse(text).unwrap().build().err().unwrap().key(), Some(key));
    }
}
