//! The ADM U-Net against reference values of guided-diffusion: every file of section `adm_tiny`, and DDIM encoding.

mod common;

use common::{Manifest, assert_close, load, max_abs};
use dtk::base::DType;
use dtk::diffusion::{BetaSchedule, Respacing, Schedule, ddim_encode, space_timesteps};
use dtk::models::adm::{AdmConfig, AdmUnet, Tap, Taps, Time, timestep_embedding};
use dtk::nn::{Ctx, ParamStore};
use dtk::tensor::{SafetensorsFile, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A network with the weights of a reference file, and what else the file holds.
struct Case {
    name: String,
    entry: Value,
    file: SafetensorsFile,
    config: AdmConfig,
    net: AdmUnet,
    store: ParamStore,
}

impl Case {
    fn open(name: &str, entry: &Value) -> Option<Case> {
        let file = load(name)?;
        let mut config = AdmConfig::from_flags(&entry["config"]).unwrap();
        let derived = &entry["derived"];
        config.conv_resample = derived["conv_resample"].as_bool().unwrap_or(true);
        assert_eq!(derived["out_channels"], config.out_channels(), "{name}");
        assert_eq!(derived["attention_ds"], serde_json::json!(config.attention_ds), "{name}");
        let mut store = ParamStore::new();
        let net = AdmUnet::new(&mut store.builder(), &config).unwrap();
        let ids: Vec<_> = store.iter().map(|(id, p)| (id, p.name().to_string())).collect();
        let ours: BTreeSet<String> = ids.iter().map(|(_, n)| format!("model.{n}")).collect();
        let theirs: BTreeSet<String> =
            file.names().filter(|n| n.starts_with("model.")).map(String::from).collect();
        assert_eq!(ours, theirs, "{name}: keys");
        for (id, key) in ids {
            let weight = file.get(&format!("model.{key}")).unwrap().to_dtype(DType::F32).unwrap();
            store.set_from_file(id, &weight).unwrap();
        }
        Some(Case { name: name.into(), entry: entry.clone(), file, config, net, store })
    }

    /// Every file of the section; empty, with the reason printed, where there is no golden set.
    fn all() -> Vec<Case> {
        let Some(manifest) = Manifest::open() else { return Vec::new() };
        let files = manifest.0["files"].as_object().unwrap();
        let of_section = files.iter().filter(|(_, e)| e["section"] == "adm_tiny");
        let cases: Vec<Case> = of_section.filter_map(|(name, e)| Case::open(name, e)).collect();
        assert!(!cases.is_empty(), "the manifest has files of section adm_tiny");
        cases
    }

    fn images(&self, key: &str) -> Tensor {
        let t = self.file.get(key).unwrap().to_dtype(DType::F32).unwrap();
        t.nchw_to_nhwc().unwrap()
    }

    fn steps(&self) -> Vec<f32> {
        self.file.get("t").unwrap().data::<i64>().unwrap().iter().map(|&t| t as f32).collect()
    }

    /// Tolerance relative to the largest value: 30 times what f32 costs the reference code itself, or 1e-5 + 1e-4.
    fn compare(&self, name: &str, got: &Tensor) {
        let want = self.file.get(name).unwrap();
        let want = if want.shape().len() == 4 { want.nchw_to_nhwc().unwrap() } else { want };
        assert_eq!(got.shape(), want.shape(), "{}: {name}", self.name);
        let (got, want) = (got.f32s().unwrap(), want.f32s().unwrap());
        let noise = self.entry["f32_vs_f64"]["worst"][0]["rel_to_max"].as_f64().unwrap();
        let max = max_abs(want);
        let (rtol, atol) = if 30.0 * noise > 1e-4 { (0.0, 30.0 * noise * max) } else { (1e-4, 1e-5 * max) };
        assert_close(&format!("{}: {name}", self.name), got, want, rtol, atol);
    }
}

#[test]
fn golden_adm_every_block() {
    for case in Case::all() {
        let steps = case.steps();
        let sinusoid = timestep_embedding(&steps, case.config.model_channels);
        let want = case.file.get("t_sinusoid").unwrap();
        // A frequency whose last bit is rounded the other way turns the angle by up to t / 2^24.
        let atol = 1e-6 + f64::from(steps.iter().copied().fold(0.0, f32::max)) / f64::from(1 << 24);
        assert_close("t_sinusoid", sinusoid.f32s().unwrap(), want.f32s().unwrap(), 0.0, atol);

        let mut ctx = Ctx::inference(&case.store);
        let x = ctx.constant(case.images("x"));
        let mut seen = BTreeMap::new();
        case.net
            .forward_observed(&mut ctx, &x, &Time::Steps(&steps), None, &mut |site, v| {
                let key = match site.to_string() {
                    s if s == "emb" || s == "out" => s,
                    s => format!("feat.{s}"),
                };
                assert!(seen.insert(key, v.tensor().clone()).is_none(), "{site} is observed once");
            })
            .unwrap();
        let mut compared = 0;
        for key in case.file.names().filter(|n| n.starts_with("feat.") || ["emb", "out"].contains(n)) {
            case.compare(
                key,
                seen.get(key).unwrap_or_else(|| panic!("{}: {key} is not observed", case.name)),
            );
            compared += 1;
        }
        assert_eq!(compared, case.entry["shapes"].as_object().unwrap().len(), "{}", case.name);
        let shown: BTreeSet<&str> = seen.keys().map(String::as_str).collect();
        assert_eq!(shown.len(), 3 + 2 * case.config.decoder().len() + case.config.levels() - 1);
    }
}

#[test]
fn golden_adm_folded_time() {
    for case in Case::all() {
        let x = case.images("x");
        let [n, h, w, c] = *x.shape() else { unreachable!("nchw_to_nhwc returns four dimensions") };
        for (i, t) in case.steps().into_iter().enumerate() {
            let row = x.f32s().unwrap()[i * h * w * c..(i + 1) * h * w * c].to_vec();
            let mut ctx = Ctx::inference(&case.store);
            let x = ctx.constant(Tensor::from_vec([1, h, w, c], row).unwrap());
            let folded = case.net.fold_time(&case.store, t, None).unwrap();
            let got = case.net.forward(&mut ctx, &x, &Time::Folded(&folded), None).unwrap();
            let plain = case.net.forward(&mut ctx, &x, &Time::Steps(&[t]), None).unwrap();
            let plain = plain.tensor().f32s().unwrap();
            let atol = 1e-5 * max_abs(plain);
            assert_close(&case.name, got.tensor().f32s().unwrap(), plain, 1e-5, atol);
            if n == 1 {
                case.compare("out", got.tensor());
            }
        }
    }
}

#[test]
fn golden_adm_taps() {
    for case in Case::all() {
        let steps = case.steps();
        let mut ctx = Ctx::inference(&case.store);
        let x = ctx.constant(case.images("x"));
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
            case.compare(&key, e.tensor());
        }
    }
}

/// Reference code in f32 against f64: the worst error of a tensor relative to its largest value.
fn noise(entry: &Value, name: &str) -> f64 {
    let worst = entry["f32_vs_f64"]["worst"].as_array().unwrap();
    let of = worst.iter().find(|w| w["name"] == name).unwrap_or_else(|| panic!("no f32_vs_f64 of {name}"));
    of["rel_to_max"].as_f64().unwrap()
}

#[test]
fn golden_adm_ddim_encoding() {
    let Some(manifest) = Manifest::open() else { return };
    for (name, entry) in manifest.0["files"].as_object().unwrap() {
        if entry["section"] != "diffusion" {
            continue;
        }
        let Some(file) = load(name) else { return };
        let x_start = file.get("ddim.x_start").unwrap().nchw_to_nhwc().unwrap();
        for (run, settings) in entry["ddim"].as_object().unwrap() {
            let model = settings["model"].as_str().unwrap();
            let Some(case) = Case::open(model, manifest.file(model)) else { return };
            let kept = settings["timestep_map"].as_array().unwrap();
            let kept = kept.iter().map(|v| v.as_u64().unwrap() as usize).collect();
            let base = Schedule::new(BetaSchedule::Linear, 1000).unwrap();
            let schedule = base.respace(&space_timesteps(1000, &Respacing::Steps(kept)).unwrap()).unwrap();
            let compare = |what: &str, i: usize, got: &Tensor| {
                let key = format!("{run}.{what}");
                let all = file.get(&key).unwrap();
                let got = got.nhwc_to_nchw().unwrap();
                let want = &all.f32s().unwrap()[i * got.elems()..(i + 1) * got.elems()];
                let atol = 30.0 * noise(entry, &key) * max_abs(all.f32s().unwrap());
                assert_close(&format!("{key}[{i}]"), got.f32s().unwrap(), want, 0.0, atol);
            };
            ddim_encode(
                &schedule,
                &x_start,
                schedule.steps(),
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
        }
    }
}
