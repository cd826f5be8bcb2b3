//! The program as users run it: exit codes, messages, files, Ctrl-C and sudden death.

#[path = "common/program.rs"]
mod program;

use dtk::base::DType;
use dtk::tensor::{SafetensorsFile, Tensor, write_safetensors};
use program::tiny::{self, assert_same_end, checkpoint, metrics, snapshot};
use program::{Place, fails, ok};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn help_and_version() {
    let p = Place::new();
    let help = ok(&p.dtk(&["--help"]));
    for command in ["train", "features", "models", "check", "bench", "info"] {
        assert!(help.lines().any(|l| l.trim().starts_with(command)), "{command}: {help}");
        assert!(ok(&p.dtk(&[command, "--help"])).contains("Usage"), "{command}");
    }
    assert!(ok(&p.dtk(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_2() {
    let p = Place::new();
    fails(&p.dtk(&[]), 2, &["Usage"]);
    fails(&p.dtk(&["frobnicate"]), 2, &["frobnicate"]);
    fails(&p.dtk(&["train", "--frobnicate"]), 2, &["--frobnicate"]);
    fails(&p.train(&["--set", "train.bach=3"]), 2, &["bach", "->"]);
    fails(&p.train(&["--set", "train.batch"]), 2, &["key.path=value"]);
    fails(&p.train(&["--set", "train.batch=many"]), 2, &["many"]);
    fails(&p.train(&["--set", "train.accumulate=3"]), 2, &["train.accumulate", "divisor"]);
    fails(&p.train(&["--device", "tpu"]), 2, &["tpu", "choose auto, cpu or cuda"]);
    fails(&p.train(&["--resume", "auto", "--overwrite"]), 2, &["--overwrite"]);
    fails(&p.dtk(&["train", "--recipe", "nowhere.toml"]), 2, &["nowhere.toml", "quickstart"]);
    fails(&p.dtk(&["check", "nosuchop"]), 2, &["nosuchop"]);
    fails(&p.dtk(&["models", "resnet51"]), 2, &["resnet51", "resnet50"]);
    fails(&p.dtk(&["features", "--recipe", "tiny.toml", "--dtype", "f8"]), 2, &["f8", "bf16"]);
    fails(&p.dtk(&["features", "--recipe", "tiny.toml", "--limit", "0"]), 2, &["--limit"]);
    std::fs::write(p.path("bad.toml"), "name = \"x\"\nseed = \n").unwrap();
    fails(&p.dtk(&["train", "--recipe", "bad.toml"]), 2, &["bad.toml", "line 2"]);
    assert!(!p.path("runs").exists());
    ok(&p.train(&["--out", "run", "--set", "train.length=3"]));
    let before = snapshot(&p.path("run"));
    fails(&p.train(&["--out", "run"]), 2, &["run", "--resume auto", "--overwrite"]);
    assert!(snapshot(&p.path("run")) == before);
}

#[test]
fn failures_are_1_and_name_the_way_out() {
    let p = Place::new();
    for device in ["cuda", "cuda:1"] {
        fails(&p.train(&["--device", device]), 1, &["CUDA", "--device cpu"]);
        fails(&p.dtk(&["check", "relu", "--device", device]), 1, &["CUDA"]);
    }
    fails(&p.train(&["--data", "no/such/folder"]), 1, &["no/such/folder", "->"]);
    std::fs::create_dir(p.path("empty")).unwrap();
    fails(&p.train(&["--data", "empty"]), 1, &["no images", "jpg", "->"]);
    std::fs::write(p.path("noise.jpg"), "not a picture").unwrap();
    std::fs::create_dir(p.path("broken")).unwrap();
    std::fs::rename(p.path("noise.jpg"), p.path("broken/noise.jpg")).unwrap();
    fails(&p.train(&["--data", "broken", "--out", "broken_run"]), 1, &["noise.jpg"]);
    fails(&p.train(&["--teacher", "absent.pt"]), 1, &["absent.pt"]);
    fails(&p.train(&["--resume", "nowhere"]), 1, &["nowhere", "->"]);
}

#[test]
fn teachers_that_do_not_fit() {
    let p = Place::new();
    let good = p.path("good.safetensors");
    tiny::write_teacher(&good);
    let file = SafetensorsFile::open(&good).unwrap();
    let all: BTreeMap<String, Tensor> = file.names().map(|n| (n.to_string(), file.get(n).unwrap())).collect();
    let write = |name: &str, change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut t = all.clone();
        change(&mut t);
        write_safetensors(p.path(name), &t, &BTreeMap::new()).unwrap();
    };
    let key = "input_blocks.0.0.weight";
    write("missing.safetensors", &|t| drop(t.remove(key)));
    write("extra.safetensors", &|t| drop(t.insert("label_emb.weight".into(), Tensor::zeros([3]))));
    write("shape.safetensors", &|t| drop(t.insert(key.into(), Tensor::zeros([32, 3, 5, 5]))));
    write("nan.safetensors", &|t| {
        let shape = t[key].shape();
        t.insert(key.into(), Tensor::full(shape, f32::NAN));
    });
    let bytes = std::fs::read(&good).unwrap();
    std::fs::write(p.path("cut.safetensors"), &bytes[..bytes.len() - 10]).unwrap();
    std::fs::write(p.path("text.pt"), "hello").unwrap();
    let train = |teacher: &str| p.train(&["--out", "run", "--set", "train.length=3", "--teacher", teacher]);
    fails(&train("missing.safetensors"), 1, &["1 missing", key, "missing.safetensors", "->"]);
    fails(&train("extra.safetensors"), 1, &["1 unexpected", "label_emb.weight", "->"]);
    fails(&train("shape.safetensors"), 1, &["1 misshapen", key, "[32, 3, 3, 3]", "[32, 3, 5, 5]", "->"]);
    fails(&train("nan.safetensors"), 1, &[key, "not finite", "->"]);
    fails(&train("cut.safetensors"), 1, &["cut.safetensors", "safetensors", "->"]);
    fails(&train("text.pt"), 1, &["text.pt", "->"]);

    // What unpickling with Python would execute is named and refused.
    let mut pickle = vec![0x80, 2];
    pickle.extend(b"cposix\nsystem\nX\x0c\x00\x00\x00touch hacked\x85R.");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(p.path("evil.pt")).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, data) in [("archive/data.pkl", &*pickle), ("archive/version", b"3\n")] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap();
    fails(&train("evil.pt"), 1, &["evil.pt", "posix", "system", "->"]);
    assert!(!p.path("hacked").exists() && !p.path("run").exists());

    let text = ok(&train("good.safetensors"));
    assert!(text.contains("good.safetensors") && text.contains("0 missing"), "{text}");
    let allowed = ["--set", "teacher.allow_unexpected=true", "--set", "train.length=3"];
    ok(&p.train(&[&["--out", "run2", "--teacher", "extra.safetensors"], &allowed[..]].concat()));
}

#[test]
fn a_dry_run_tells_everything_and_does_nothing() {
    let p = Place::new();
    let before = snapshot(p.0.path());
    let text = ok(&p.train(&["--dry-run", "--set", "train.batch=6"]));
    for needle in [
        "batch = 6",
        "weight_decay",
        "model_channels = 32",
        "plan of one step",
        "memory at the peak",
        "conv2d",
    ] {
        assert!(text.contains(needle), "`{needle}` is not in: {text}");
    }
    // What it prints as the recipe is one.
    let recipe = text.split("# plan of one step").next().unwrap();
    std::fs::write(p.path("again.toml"), recipe).unwrap();
    let again = dtk::recipe::resolve(p.path("again.toml").to_str().unwrap(), &[]).unwrap();
    assert_eq!(again, tiny::recipe(&["train.batch=6"]));
    std::fs::remove_file(p.path("again.toml")).unwrap();
    assert!(ok(&p.dtk(&["features", "--recipe", "tiny.toml", "--dry-run"])).contains("GFLOP/s"));
    // Planning needs no weights, so the largest network plans anywhere.
    assert!(ok(&p.dtk(&["train", "--recipe", "imagenet", "--dry-run"])).contains("552.8 M"));
    assert!(snapshot(p.0.path()) == before, "nothing is created");
}

#[test]
fn features_are_written() {
    let p = Place::new();
    let features = |args: &[&str]| {
        let base = ["features", "--recipe", "tiny.toml", "--limit", "3", "--batch", "2"];
        ok(&p.dtk(&[&base, args].concat()))
    };
    let shapes = |name: &str| {
        let f = SafetensorsFile::open(p.path(name)).unwrap();
        let list: Vec<_> = f
            .names()
            .map(|n| {
                assert!(f.get(n).unwrap().all_finite().unwrap());
                (n.to_string(), f.info(n).unwrap().0, f.info(n).unwrap().1.to_vec())
            })
            .collect();
        (list, f.metadata().clone())
    };
    let text = features(&["--out", "t.safetensors"]);
    assert!(text.contains("stride 8") && text.contains("3 images"), "{text}");
    let (list, meta) = shapes("t.safetensors");
    let want = |side: usize| vec![3, 32, side, side];
    assert_eq!(
        list,
        [("level1", 16), ("level2", 8), ("level3", 4)].map(|(n, s)| (n.to_string(), DType::F32, want(s)))
    );
    assert_eq!((&*meta["layout"], &*meta["level2.stride"], &*meta["level2.channels"]), ("NCHW", "4", "32"));
    assert!(meta["level3.from"].contains("output_blocks.1"), "{meta:?}");
    let names: Vec<String> = serde_json::from_str(&meta["images"]).unwrap();
    assert_eq!(names.len(), 3);
    // One image at a time gives the same maps.
    ok(&p.dtk(&[
        "features",
        "--recipe",
        "tiny.toml",
        "--limit",
        "3",
        "--batch",
        "1",
        "--out",
        "one.safetensors",
    ]));
    let (a, b) = (p.path("t.safetensors"), p.path("one.safetensors"));
    let (a, b) = (SafetensorsFile::open(a).unwrap(), SafetensorsFile::open(b).unwrap());
    for n in a.names() {
        for (x, y) in a.get(n).unwrap().f32s().unwrap().iter().zip(b.get(n).unwrap().f32s().unwrap()) {
            assert!((x - y).abs() <= 1e-4 * (1.0 + x.abs()), "{n}: {x} {y}");
        }
    }
    features(&["--out", "s.safetensors", "--student", "--dtype", "bf16"]);
    let (list, _) = shapes("s.safetensors");
    let want = [("level1", 8, 16), ("level2", 8, 8), ("level3", 16, 4), ("level4", 16, 2)];
    assert_eq!(list, want.map(|(n, c, s)| (n.to_string(), DType::Bf16, vec![3, c, s, s])));
}

/// The values of every tensor of a file.
fn values(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let f = SafetensorsFile::open(path).unwrap();
    let names: Vec<String> = f.names().map(String::from).collect();
    let wide = |n: &String| f.get(n).unwrap().to_dtype(DType::F32).unwrap().into_vec().unwrap();
    names.iter().map(|n| (n.clone(), wide(n))).collect()
}

#[test]
fn features_of_a_device() {
    let p = Place::new();
    for network in [&[][..], &["--student"]] {
        let base = [&["features", "--recipe", "tiny.toml", "--limit", "2", "--batch", "2", "--out"], network]
            .concat();
        let args = |out: &'static str, more: &[&'static str]| [&base[..8], &[out], &base[8..], more].concat();
        let Some(f32s) = p.on_device(&args("f32.safetensors", &["--precision", "f32"])) else { return };
        ok(&f32s);
        ok(&p.on_device(&args("bf16.safetensors", &[])).unwrap());
        ok(&p.dtk(&args("cpu.safetensors", &[])));
        let want = values(&p.path("cpu.safetensors"));
        for (file, tolerance) in [("f32.safetensors", 1e-4), ("bf16.safetensors", 5e-2)] {
            let got = values(&p.path(file));
            assert!(got.keys().eq(want.keys()), "{file}");
            for (name, want) in &want {
                let norm =
                    |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let error = norm(&mut got[name].iter().zip(want).map(|(g, w)| g - w));
                let size = norm(&mut want.iter().copied());
                assert!(error <= tolerance * size && size > 0.0, "{file}: {name}: {error} of {size}");
            }
        }
    }
}

#[test]
fn a_teacher_is_checked() {
    let p = Place::new();
    tiny::write_teacher(&p.path("teacher.safetensors"));
    let args = ["check", "--recipe", "tiny.toml", "--images", "2", "--teacher"];
    let text = ok(&p.dtk(&args));
    assert!(text.contains("output_blocks.1.pre_up") && text.contains("bf16 on the cpu"), "{text}");
    if let Some(o) = p.on_device(&[&args[..], &["teacher.safetensors"]].concat()) {
        let text = ok(&o);
        assert!(text.contains("bf16 on the device") && text.contains("features are right"), "{text}");
    }
    fails(&p.dtk(&["check", "--images", "2"]), 2, &["--teacher"]);
    fails(&p.dtk(&["check", "relu", "--teacher=random"]), 2, &["--teacher"]);
    fails(&p.dtk(&["check", "--recipe", "tiny.toml", "--images", "0", "--teacher"]), 2, &["--images"]);
    fails(&p.dtk(&["features", "--recipe", "tiny.toml", "--precision", "f16"]), 2, &["--precision", "bf16"]);
}

#[test]
fn models_info_and_check() {
    let p = Place::new();
    let text = ok(&p.dtk(&["models"]));
    for name in ["adm_imagenet256", "resnet50", "convnext_base", "552.8 M"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    let text = ok(&p.dtk(&["models", "adm_imagenet256", "--keys"]));
    let keys =
        text.lines().filter(|l| l.contains('.') && (l.contains(".weight") || l.contains(".bias"))).count();
    assert_eq!(keys, 566, "{text}");
    assert!(text.contains("552814086") && text.contains("time_embed.0.weight"));
    let text = ok(&p.dtk(&["info"]));
    assert!(text.contains(env!("CARGO_PKG_VERSION")) && text.contains("threads"), "{text}");
    let text = ok(&p.dtk(&["check", "relu"]));
    assert!(text.contains("relu") && text.contains("1 operations are right"), "{text}");
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let p = Place::new();
    for args in [&["models"][..], &["info"], &["train", "--recipe", "tiny.toml", "--dry-run"]] {
        let mut child = p.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let o = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&o.stderr);
        assert!(o.status.code() == Some(0) && text.is_empty(), "{args:?}: {:?} {text}", o.status);
    }
}

/// Waits until a run has logged `steps` steps.
fn wait_for(run: &Path, child: &mut Child, steps: usize) {
    let start = Instant::now();
    while metrics(run).len() < steps {
        assert!(start.elapsed() < Duration::from_secs(120), "no step {steps} in two minutes");
        assert!(child.try_wait().unwrap().is_none(), "the run ended too soon");
        std::thread::sleep(Duration::from_millis(2));
    }
}

const LONG: [&str; 4] = ["--set", "train.length=40", "--set", "train.ema={}"];

#[cfg(unix)]
#[test]
fn ctrl_c_and_sudden_death_lose_nothing() {
    let p = Place::new();
    let straight = p.path("straight");
    ok(&p.train(&[&["--out", "straight"], &LONG[..]].concat()));

    let stopped = p.path("stopped");
    let args = [&["--out", "stopped"], &LONG[..]].concat();
    let mut child = p.start(&args);
    wait_for(&stopped, &mut child, 3);
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let o = child.wait_with_output().unwrap();
    fails(&o, 130, &["interrupted", "stopped after step", "--resume auto"]);
    let step = metrics(&stopped).len() as u64;
    assert!(step < 40 && checkpoint(&stopped, step).join("state.json").is_file(), "saved at step {step}");
    fails(&p.train(&args), 2, &["--resume auto"]);
    ok(&p.train(&[&["--resume", "auto"], &args[..]].concat()));
    assert_same_end("stopped by Ctrl-C", &straight, &stopped, 40);

    // Killed without a warning, twice; the second part runs on one thread.
    let killed = p.path("killed");
    let args = [&["--out", "killed", "--resume", "auto", "--set", "run.save_every=3"], &LONG[..]].concat();
    for steps in [5, 12] {
        let mut child = p.start(&args);
        wait_for(&killed, &mut child, steps);
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "killed");
    }
    let full = [&["train", "--recipe", "tiny.toml"], &args[..]].concat();
    ok(&p.command(&full).env("RAYON_NUM_THREADS", "1").output().unwrap());
    assert_same_end("killed", &straight, &killed, 40);
    assert_eq!(metrics(&straight), metrics(&killed));
}

#[test]
fn real_files_of_every_kind() {
    let p = Place::new();
    tiny::write_images(&p.path("images/a"), "x", 8, &["jpg", "png", "webp", "bmp"]);
    tiny::write_images(&p.path("images/b"), "y", 4, &["JPEG", "PNG"]);
    let whole = std::fs::read(p.path("images/a/x00.jpg")).unwrap();
    std::fs::write(p.path("images/b/cut.jpg"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(p.path("images/notes.txt"), "no image").unwrap();
    std::fs::write(p.path("images/.hidden.png"), "no image").unwrap();
    let text = ok(&p.train(&["--data", "images", "--out", "run"]));
    assert!(text.contains("13 images"), "{text}");
    let skipped: Vec<&str> = text.lines().filter(|l| l.contains("skipped unreadable image")).collect();
    assert!(skipped.len() == 1 && skipped[0].contains("cut.jpg"), "{text}");
    assert!(text.contains("1 unreadable images were replaced") && text.contains("step 8/8"), "{text}");
    let last = metrics(&p.path("run"));
    assert!(last.len() == 8 && last.iter().all(|(_, l)| l.is_finite()));
    fails(
        &p.train(&["--data", "images", "--out", "strict", "--set", "data.max_bad=0"]),
        1,
        &["cut.jpg", "max_bad"],
    );
    let args =
        ["features", "--recipe", "tiny.toml", "--data", "images", "--limit", "99", "--out", "f.safetensors"];
    let text = ok(&p.dtk(&args));
    assert!(text.contains("12 images") && text.contains("cut.jpg"), "{text}");
}
