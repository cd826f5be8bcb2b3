//! `dtk export` as users run it: files, what lies beside them, refusals.

#[path = "common/program.rs"]
mod program;

use dtk::base::DType;
use dtk::checkpoint::{PtFile, StateDict};
use dtk::models::backbone::{Backbone, BackboneConfig};
use dtk::nn::ParamStore;
use dtk::tensor::{SafetensorsFile, Tensor, write_safetensors};
use program::{Place, fails, ok};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Output;

fn export(p: &Place, args: &[&str]) -> Output {
    p.dtk(&[&["export"], args].concat())
}

fn read(p: &Place, name: &str) -> String {
    std::fs::read_to_string(p.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A run's result: initial weights with the metadata that a run writes.
fn backbone(p: &Place, name: &str, config: &str) -> BTreeMap<String, Tensor> {
    let config: BackboneConfig = toml::from_str(config).unwrap();
    let mut store = ParamStore::new();
    Backbone::new(&mut store.builder(), &config).unwrap();
    store.init(4).unwrap();
    let metadata = [
        ("dtk", "0.1.0".to_string()),
        ("recipe", "nice | recipe".to_string()),
        ("step", "1234".to_string()),
        ("backbone", config.name().to_string()),
        ("backbone_config", serde_json::to_string(&config).unwrap()),
        ("image_size", "64x128".to_string()),
    ];
    let metadata = metadata.map(|(k, v)| (k.to_string(), v)).into();
    let named = |(id, p): (_, &dtk::nn::Param)| (p.name().to_string(), store.to_file(id).unwrap());
    let tensors: BTreeMap<String, Tensor> = store.iter().map(named).collect();
    std::fs::create_dir_all(p.path(name).parent().unwrap()).unwrap();
    write_safetensors(p.path(name), &tensors, &metadata).unwrap();
    tensors
}

fn names(dir: &Path) -> BTreeSet<String> {
    std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_resnet_for_everybody() {
    let p = Place::new();
    let ours = backbone(&p, "run/backbone.safetensors", "name = \"resnet18\"");

    let text = ok(&export(&p, &["--backbone", "run", "--layout", "timm", "--out", "timm", "--verify"]));
    assert!(text.contains("resnet18 for timm: 120 tensors") && text.contains("verified"), "{text}");
    assert_eq!(
        names(&p.path("timm")),
        ["README.md", "config.json", "model.safetensors"].map(String::from).into()
    );
    let file = SafetensorsFile::open(p.path("timm/model.safetensors")).unwrap();
    assert!(file.names().eq(ours.keys().map(String::as_str)));
    assert_eq!((&*file.metadata()["layout"], &*file.metadata()["step"]), ("timm", "1234"));
    let config: serde_json::Value = serde_json::from_str(&read(&p, "timm/config.json")).unwrap();
    assert_eq!((&config["architecture"], &config["num_features"]), (&"resnet18".into(), &512.into()));
    let cfg = &config["pretrained_cfg"];
    assert_eq!(cfg["input_size"], serde_json::json!([3, 64, 128]));
    assert_eq!(cfg["mean"], serde_json::json!([0.485, 0.456, 0.406]));
    assert_eq!(cfg["pool_size"], serde_json::json!([2, 4]));
    let card = read(&p, "timm/README.md");
    for needle in
        ["library_name: timm", "local-dir:", "| Steps | 1234 |", "nice \\| recipe", "0.485, 0.456, 0.406"]
    {
        assert!(card.contains(needle), "`{needle}` is not in: {card}");
    }

    ok(&export(
        &p,
        &["--backbone", "run/backbone.safetensors", "--layout", "detectron2", "--out", "d2", "--verify"],
    ));
    let expected = ["README.md", "config.json", "resnet18.pth", "resnet18.yaml"];
    assert_eq!(names(&p.path("d2")), expected.map(String::from).into());
    let yaml = read(&p, "d2/resnet18.yaml");
    for needle in
        ["PIXEL_MEAN: [123.675, 116.280, 103.530]", "DEPTH: 18", "RES2_OUT_CHANNELS: 64", "\"RGB\"", "False"]
    {
        assert!(yaml.contains(needle), "`{needle}` is not in: {yaml}");
    }
    let file = PtFile::open(p.path("d2/resnet18.pth")).unwrap();
    let w = file.get("model.res3.0.shortcut.weight").unwrap();
    assert_eq!(w.f32s().unwrap(), ours["layer2.0.downsample.0.weight"].f32s().unwrap());
    assert!(file.info("model.stem.conv1.norm.num_batches_tracked").is_some());

    // What was exported can be exported again: the layout is found by the keys.
    let args =
        ["--backbone", "d2/resnet18.pth", "--layout", "torchvision", "--out", "sub/tv.pth", "--verify"];
    ok(&export(&p, &args));
    assert_eq!(names(&p.path("sub")), ["tv.json", "tv.md", "tv.pth"].map(String::from).into());
    let back = StateDict::open(p.path("sub/tv.pth")).unwrap();
    assert!(back.names().eq(ours.keys().map(String::as_str)));
    let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().into_vec::<f64>().unwrap();
    for (name, t) in &ours {
        let read = back.get(name).unwrap();
        assert!(
            (read.dtype(), read.shape()) == (t.dtype(), t.shape()) && values(&read) == values(t),
            "{name}"
        );
    }
    assert_eq!(back.get("fc.weight").err().unwrap().key(), Some("fc.weight"));
    let first = std::fs::read(p.path("sub/tv.pth")).unwrap();
    fails(&export(&p, &args), 2, &["tv.pth", "exists already", "--overwrite"]);
    ok(&export(&p, &[&args[..], &["--overwrite"]].concat()));
    assert!(std::fs::read(p.path("sub/tv.pth")).unwrap() == first, "the same input gives the same bytes");
}

#[test]
fn a_convnext_gets_the_norm_that_the_libraries_want() {
    let p = Place::new();
    let ours = backbone(&p, "b.safetensors", "name = \"convnext_tiny\"\nlayer_scale = 0.5");
    for (layout, out, norm, wrapper) in [
        ("timm", "timm/model.safetensors", "head.norm", ""),
        ("convnext", "convnext/convnext_tiny.pth", "norm", "model."),
    ] {
        let dir = out.split('/').next().unwrap();
        let text =
            ok(&export(&p, &["--backbone", "b.safetensors", "--layout", layout, "--out", dir, "--verify"]));
        assert!(text.contains("180 tensors") && text.contains(&format!("`{norm}`")), "{text}");
        let file = StateDict::open(p.path(out)).unwrap();
        assert_eq!(file.len(), ours.len() + 2);
        for (leaf, value) in [("weight", 1.0), ("bias", 0.0)] {
            let t = file.get(&format!("{wrapper}{norm}.{leaf}")).unwrap();
            assert!(t.elems() == 768 && t.f32s().unwrap().iter().all(|v| *v == value), "{layout} {leaf}");
        }
        assert!(read(&p, &format!("{dir}/README.md")).contains("is not trained"));
    }
    fails(
        &export(&p, &["--backbone", "b.safetensors", "--layout", "detectron2", "--out", "x"]),
        2,
        &["Detectron2 has no ConvNeXt", "->"],
    );
    assert!(!p.path("x").exists());
}

#[test]
fn small_backbones_stay_with_dtk() {
    let p = Place::new();
    let small = "name = \"resnet_small\"\nchannels = [8, 8, 16, 16]\nstem_width = 8\nlayers = [1, 1, 1, 1]";
    let ours = backbone(&p, "run/backbone.safetensors", small);
    let args =
        |layout: &'static str, out: &'static str| ["--backbone", "run", "--layout", layout, "--out", out];
    fails(&export(&p, &args("timm", "t")), 2, &["no public model", "resnet_small", "--layout dtk"]);
    for out in ["dtk", "dtk.pth"] {
        ok(&export(&p, &[&args("dtk", out)[..], &["--verify"]].concat()));
    }
    let file = StateDict::open(p.path("dtk.pth")).unwrap();
    assert!(file.names().eq(ours.keys().map(String::as_str)));
    assert!(p.path("dtk/resnet_small.safetensors").is_file());
}

#[test]
fn wrong_requests_and_files_are_named() {
    let p = Place::new();
    let small = "name = \"resnet_small\"\nchannels = [8, 8, 16, 16]\nstem_width = 8\nlayers = [1, 1, 1, 1]";
    let all = backbone(&p, "good.safetensors", small);
    let run = |backbone: &str, more: &[&str]| {
        export(&p, &[&["--backbone", backbone, "--out", "out", "--layout"], more].concat())
    };
    fails(&run("good.safetensors", &["keras"]), 2, &["keras", "--layout", "torchvision"]);
    fails(&run("good.safetensors", &["dtk", "--format", "onnx"]), 2, &["onnx", "--format", "pth"]);
    fails(&run("absent.safetensors", &["dtk"]), 2, &["absent.safetensors", "no such file", "->"]);
    fails(&export(&p, &["--layout", "dtk", "--out", "x"]), 2, &["--backbone"]);
    let args =
        ["--backbone", "good.safetensors", "--layout", "dtk", "--out", "x.pth", "--format", "safetensors"];
    fails(&export(&p, &args), 2, &["x.pth", "extension"]);

    std::fs::write(p.path("empty.pth"), "").unwrap();
    fails(&run("empty.pth", &["dtk"]), 1, &["empty.pth", "->"]);
    std::fs::write(p.path("text.safetensors"), "hello, this is no checkpoint").unwrap();
    fails(&run("text.safetensors", &["dtk"]), 1, &["text.safetensors", "->"]);
    std::fs::create_dir(p.path("folder")).unwrap();
    fails(&run("folder", &["dtk"]), 1, &["folder", "model.safetensors"]);
    std::fs::write(p.path("folder/recipe.toml"), "").unwrap();
    fails(&run("folder", &["dtk"]), 2, &["no backbone.safetensors yet", "--resume auto"]);

    let metadata = SafetensorsFile::open(p.path("good.safetensors")).unwrap().metadata().clone();
    let write = |name: &str, change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut t = all.clone();
        change(&mut t);
        write_safetensors(p.path(name), &t, &metadata).unwrap();
    };
    let key = "layer1.0.conv1.weight";
    write("missing.safetensors", &|t| drop(t.remove(key)));
    write("shape.safetensors", &|t| drop(t.insert(key.into(), Tensor::zeros([8, 8, 1, 1]))));
    write("nan.safetensors", &|t| drop(t.insert(key.into(), Tensor::full([8, 8, 3, 3], f32::NAN))));
    write("none.safetensors", &|t| {
        t.clear();
        t.insert("encoder.weight".into(), Tensor::zeros([1]));
    });
    fails(&run("missing.safetensors", &["dtk"]), 1, &["1 missing", key, "missing.safetensors", "->"]);
    fails(&run("shape.safetensors", &["dtk"]), 1, &["1 misshapen", key, "[8, 8, 1, 1]", "->"]);
    fails(&run("nan.safetensors", &["dtk"]), 1, &[key, "not finite", "->"]);
    fails(&run("none.safetensors", &["dtk"]), 1, &["no known layout", "->"]);
    assert!(!p.path("out").exists(), "nothing is written for a wrong request");
}
