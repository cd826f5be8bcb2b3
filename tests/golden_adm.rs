//! The ADM U-Net against reference values of guided-diffusion: every file of section `adm_tiny`, and DDIM encoding.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

use common::{
    Golden, GoldenSet, Tolerance, assert_close, counts, diffusion_steps, for_section, for_section_where,
    max_abs,
};
use dtk::base::DType;
use dtk::diffusion::{BetaSchedule, Respacing, Schedule, ddim_encode, space_timesteps};
use dtk::gpu::Gpu;
use dtk::models::adm::{AdmConfig, AdmUnet, DeviceUnet, Tap, Taps, Time, timestep_embedding};
use dtk::nn::{Ctx, ParamStore};
use dtk::ops::Offload;
use dtk::tensor::Tensor;
use std::collections::BTreeSet;

/// A network with the weights of a reference file.
struct Case<'a> {
    golden: &'a Golden,
    config: AdmConfig,
    net: AdmUnet,
    store: ParamStore,
}

impl<'a> Case<'a> {
    fn new(golden: &'a Golden) -> Self {
        let (entry, name) = (&golden.entry, &golden.name);
        let mut config = AdmConfig::from_flags(&entry["config"]).unwrap();
        let derived = &entry["derived"];
        config.conv_resample = derived["conv_resample"].as_bool().unwrap_or(true);
        if let Some(out) = derived["out_channels"].as_u64() {
            assert_eq!(config.out_channels() as u64, out, "{name}: output channels");
        }
        if derived["attention_ds"].is_array() {
            let theirs: BTreeSet<usize> =
                counts(&derived["attention_ds"]).into_iter().filter(|&ds| ds > 0).collect();
            assert_eq!(config.attention_ds.iter().copied().collect::<BTreeSet<_>>(), theirs, "{name}");
        }
        let mut store = ParamStore::new();
        let net = AdmUnet::new(&mut store.builder(), &config).unwrap();
        let ids: Vec<_> = store.iter().map(|(id, p)| (id, p.name().to_string())).collect();
        let ours: BTreeSet<String> = ids.iter().map(|(_, n)| n.clone()).collect();
        assert_eq!(ours, golden.suffixes("model.").into_iter().collect(), "{name}: keys");
        for (id, key) in ids {
            store.set_from_file(id, &golden.get(&format!("model.{key}"))).unwrap();
        }
        Case { golden, config, net, store }
    }

    fn steps(&self) -> Vec<f32> {
        self.golden.counts("t").into_iter().map(|t| t as f32).collect()
    }

    /// What every block gives, under the names of the file; in part on a device.
    fn observe(&self, offload: Option<Offload>) -> Vec<(String, Tensor)> {
        let mut ctx = Ctx::inference(&self.store);
        if let Some(offload) = offload {
            ctx = ctx.offload(offload);
        }
        let x = ctx.constant(self.golden.memory("x"));
        let mut seen = Vec::new();
        let time = self.steps();
        self.net
            .forward_observed(&mut ctx, &x, &Time::Steps(&time), None, &mut |site, v| {
                let key = match site.to_string() {
                    s if s == "emb" || s == "out" => s,
                    s => format!("feat.{s}"),
                };
                seen.push((key, v.tensor().clone()));
            })
            .unwrap();
        let distinct: BTreeSet<&String> = seen.iter().map(|(key, _)| key).collect();
        assert_eq!(distinct.len(), seen.len(), "every site is observed once");
        seen
    }

    /// The decoder's maps and the prediction of [`DeviceUnet`], under the names of the file, in f32 on the host. Every sample
    /// is a pass of its own: a folded time is the same for all.
    fn on_device(&self, gpu: &Gpu, dtype: DType) -> Vec<(String, Tensor)> {
        let decoder = self.config.decoder();
        let of_block =
            |(j, up)| if up { vec![Tap::pre_up(j), Tap::post_up(j)] } else { vec![Tap::post_up(j)] };
        let taps: Vec<Tap> = decoder.iter().map(|b| b.up).enumerate().flat_map(of_block).collect();
        let net =
            DeviceUnet::new(&self.net, &self.store, gpu, dtype, &Taps::new(taps.clone()), false).unwrap();
        let x = self.golden.memory("x");
        let [n, h, w, c] = *x.shape() else { panic!("{}: x is no batch of images", self.golden.name) };
        let mut steps = self.steps();
        steps.resize(n, steps[0]);
        let mut rows: Vec<Vec<Tensor>> = Vec::new();
        for (sample, t) in x.f32s().unwrap().chunks(h * w * c).zip(steps) {
            let x = Tensor::from_vec([1, h, w, c], sample.to_vec()).unwrap().to_dtype(dtype).unwrap();
            let x = x.to_gpu(gpu).unwrap();
            let time = net.fold(&self.net.fold_time(&self.store, t, None).unwrap()).unwrap();
            let mut maps = net.features(&x, &time).unwrap();
            maps.push(net.forward(&x, &time).unwrap());
            rows.push(maps.iter().map(|m| m.to_cpu().unwrap().to_dtype(DType::F32).unwrap()).collect());
        }
        let names = taps.iter().map(|tap| format!("feat.{tap}")).chain(["out".into()]);
        let stack = |(i, name): (usize, String)| {
            let [_, h, w, c] = *rows[0][i].shape() else { panic!("{name} is no map") };
            let all = rows.iter().flat_map(|maps| maps[i].f32s().unwrap().to_vec()).collect();
            (name, Tensor::from_vec([n, h, w, c], all).unwrap())
        };
        names.enumerate().map(stack).collect()
    }

    /// The values of [`Case::observe`] that the file has, or ought to have.
    fn recorded(&self) -> BTreeSet<&str> {
        let wanted = |n: &&str| n.starts_with("feat.") || ["emb", "out"].contains(n);
        let listed = self.golden.entry["shapes"].as_object().into_iter().flat_map(|m| m.keys());
        self.golden.names().chain(listed.map(String::as_str)).filter(wanted).collect()
    }
}

fn of<'s>(seen: &'s [(String, Tensor)], key: &str) -> &'s Tensor {
    &seen.iter().find(|(k, _)| k == key).unwrap_or_else(|| panic!("{key} is not observed")).1
}

#[test]
fn golden_adm_every_block() {
    for_section("adm_tiny", |golden| {
        let case = Case::new(golden);
        let steps = case.steps();
        if golden.expect("t_sinusoid") {
            let sinusoid = timestep_embedding(&steps, case.config.model_channels);
            // A frequency whose last bit is rounded the other way turns the angle by up to t / 2^24.
            let atol = 1e-6 + f64::from(steps.iter().copied().fold(0.0, f32::max)) / f64::from(1 << 24);
            let want = golden.get("t_sinusoid");
            assert_close("t_sinusoid", sinusoid.f32s().unwrap(), want.f32s().unwrap(), 0.0, atol);
            golden.note("t_sinusoid");
        }

        let seen = case.observe(None);
        for key in case.recorded() {
            golden.check(key, of(&seen, key), Tolerance::default());
        }
        assert_eq!(golden.unused(), Vec::<String>::new(), "{}: tensors that no check used", golden.name);
        assert_eq!(seen.len(), 3 + 2 * case.config.decoder().len() + case.config.levels() - 1);
    });
}

#[test]
fn golden_adm_on_a_device() {
    let Some(gpu) = gpu::device() else { return };
    for_section("adm_tiny", |golden| {
        let case = Case::new(golden);
        let seen = case.observe(Some(Offload::to(&gpu, DType::F32)));
        for key in case.recorded() {
            golden.check(key, of(&seen, key), Tolerance::default());
        }
        let kept = |mut seen: Vec<(String, Tensor)>| {
            seen.retain(|(key, _)| case.recorded().contains(key.as_str()) && golden.has(key));
            seen
        };
        let bf16 = kept(case.observe(Some(Offload::to(&gpu, DType::Bf16))));
        golden.check_rounded(&bf16, &kept(case.observe(Some(Offload::rounding(DType::Bf16)))));
        gpu::clean_after_launches(&gpu);
    });
}

#[test]
fn golden_adm_device_network() {
    let Some(gpu) = gpu::device() else { return };
    for_section("adm_tiny", |golden| {
        let case = Case::new(golden);
        let kept = |mut seen: Vec<(String, Tensor)>| {
            seen.retain(|(key, _)| golden.has(key));
            seen
        };
        let f32s = kept(case.on_device(&gpu, DType::F32));
        assert!(f32s.len() > case.config.decoder().len() / 2, "{}: the file has few maps", golden.name);
        for (key, map) in &f32s {
            golden.check(key, map, Tolerance::default());
        }
        let bf16 = kept(case.on_device(&gpu, DType::Bf16));
        let mut rounded = kept(case.observe(Some(Offload::rounding(DType::Bf16))));
        rounded.retain(|(key, _)| bf16.iter().any(|(k, _)| k == key));
        golden.check_rounded(&bf16, &rounded);
        gpu::clean_after_launches(&gpu);
    });
}

#[test]
fn golden_adm_folded_time() {
    for_section("adm_tiny", |golden| {
        let case = Case::new(golden);
        let x = golden.memory("x");
        let [n, h, w, c] = *x.shape() else { panic!("{}: x is no batch of images", golden.name) };
        let size = h * w * c;
        for (i, t) in case.steps().into_iter().enumerate() {
            let row = x.f32s().unwrap()[i * size..(i + 1) * size].to_vec();
            let mut ctx = Ctx::inference(&case.store);
            let x = ctx.constant(Tensor::from_vec([1, h, w, c], row).unwrap());
            let folded = case.net.fold_time(&case.store, t, None).unwrap();
            let got = case.net.forward(&mut ctx, &x, &Time::Folded(&folded), None).unwrap();
            let plain = case.net.forward(&mut ctx, &x, &Time::Steps(&[t]), None).unwrap();
            let plain = plain.tensor().f32s().unwrap();
            let atol = 1e-5 * max_abs(plain);
            assert_close(&golden.name, got.tensor().f32s().unwrap(), plain, 1e-5, atol);
            let got = got.tensor().nhwc_to_nchw().unwrap();
            assert_eq!(golden.shape("out")[0], n, "{}: batch of `out`", golden.name);
            golden.check_part("out", i, got.f32s().unwrap(), Tolerance::default());
        }
    });
}

#[test]
fn golden_adm_taps() {
    for_section_where(
        "adm_tiny",
        |g| g.suffixes("feat.").iter().any(|n| n.ends_with(".pre_up")),
        |golden| {
            let case = Case::new(golden);
            let steps = case.steps();
            let mut ctx = Ctx::inference(&case.store);
            let x = ctx.constant(golden.memory("x"));
            // Not in the order of computation, one of them twice, and one before the up-sampler of a block without one.
            let mut taps = Taps::dreamteacher(&case.config).unwrap().as_slice().to_vec();
            taps.reverse();
            taps.extend([Tap::post_up(0), Tap::pre_up(0), taps[0]]);
            let taps = Taps::new(taps);
            let described = taps.describe(&case.config).unwrap();
            let mut run = |early_exit| {
                case.net.features(&mut ctx, &x, &Time::Steps(&steps), None, &taps, early_exit).unwrap()
            };
            let (early, full) = (run(true), run(false));
            assert_eq!(early.len(), described.len());
            for ((info, e), f) in described.iter().zip(&early).zip(&full) {
                assert_eq!(e.tensor().f32s().unwrap(), f.tensor().f32s().unwrap(), "{}", info.tap);
                let (height, channels) = (x.shape()[1], e.shape().last());
                assert_eq!((height / e.shape()[1], channels), (info.stride, info.channels));
                let key = match info.tap {
                    tap if case.config.decoder()[tap.block].up => format!("feat.{tap}"),
                    tap => format!("feat.{}", Tap::post_up(tap.block)),
                };
                // Large features may be left out of a file.
                if golden.has(&key) {
                    golden.check(&key, e.tensor(), Tolerance::default());
                }
            }
        },
    );
}

#[test]
fn golden_adm_ddim_encoding() {
    let Some(set) = GoldenSet::open() else { return };
    for golden in set.section("diffusion") {
        let mut runs = 0;
        let settings = golden.entry["ddim"].as_object().into_iter().flatten();
        for (run, settings) in settings.filter(|(run, _)| golden.expect(&format!("{run}.samples"))) {
            let Some(model) = set.file(settings["model"].as_str().unwrap()) else { continue };
            let case = Case::new(&model);
            let x_start = golden.memory("ddim.x_start");
            let steps = diffusion_steps(&golden);
            let kept = space_timesteps(steps, &Respacing::Steps(counts(&settings["timestep_map"]))).unwrap();
            let schedule = Schedule::new(BetaSchedule::Linear, steps).unwrap().respace(&kept).unwrap();
            let compare = |what: &str, i: usize, got: &Tensor| {
                let got = got.nhwc_to_nchw().unwrap();
                let tolerance = Tolerance { relative: 0.0, ..Tolerance::default() };
                golden.check_part(&format!("{run}.{what}"), i, got.f32s().unwrap(), tolerance);
            };
            ddim_encode(
                &schedule,
                &x_start,
                golden.shape(&format!("{run}.samples"))[0],
                settings["clip_denoised"].as_bool().unwrap(),
                &mut |x, t| {
                    let mut ctx = Ctx::inference(&case.store);
                    let x = ctx.constant(x.clone());
                    let out = case.net.forward(&mut ctx, &x, &Time::Steps(&[t as f32]), None)?;
                    Ok(out.into_tensor())
                },
                &mut |i, step| {
                    compare("samples", i, &step.sample);
                    compare("pred_xstart", i, &step.pred_xstart);
                    Ok(())
                },
            )
            .unwrap();
            runs += 1;
        }
        if runs > 0 {
            golden.finish();
        } else {
            println!("skipped: {} has no encoding whose network is in the set", golden.name);
        }
    }
}
