use super::*;
use crate::base::{Philox, Shape};
use crate::checkpoint::backbone::read_backbone;
use crate::models::backbone::BackboneConfig;
use crate::nn::ParamStore;

fn config(text: &str) -> BackboneConfig {
    toml::from_str(text).unwrap_or_else(|e| panic!("{e}"))
}

/// A ResNet and a ConvNeXt of few weights.
fn small() -> [BackboneConfig; 2] {
    [
        config("name = \"resnet50\"\nlayers = [1, 2, 1, 1]\nchannels = [4, 4, 8, 8]\nstem_width = 4"),
        config("name = \"convnext_tiny\"\ndepths = [1, 2, 1, 1]\ndims = [4, 4, 8, 8]"),
    ]
}

/// Random values for every tensor of a backbone, under dtk's names.
fn weights(config: &BackboneConfig) -> BTreeMap<String, Tensor> {
    let mut store = ParamStore::new();
    crate::models::backbone::Backbone::new(&mut store.builder(), config).unwrap();
    let rng = Philox::new(3);
    let value = |name: &str, shape: Shape| {
        let mut v = vec![0.0f32; shape.elems()];
        rng.fold_str(name).fill_normal(&mut v);
        let counter = name.ends_with("num_batches_tracked");
        Tensor::from_vec(shape, v).unwrap().to_dtype(if counter { DType::I64 } else { DType::F32 }).unwrap()
    };
    store.iter().map(|(_, p)| (p.name().to_string(), value(p.name(), p.file_shape()))).collect()
}

fn layouts(config: &BackboneConfig) -> impl Iterator<Item = ExportLayout> {
    let absent = match config.family() {
        keymap::Family::ResNet => ExportLayout::ConvNext,
        keymap::Family::ConvNext => ExportLayout::Detectron2,
    };
    ExportLayout::ALL.into_iter().filter(move |l| *l != absent)
}

/// The lists come from the libraries' own models (`tools/check_export.py --keys`).
#[test]
fn target_keys_are_those_of_the_libraries() {
    let list = |text: &str| -> Vec<String> { text.lines().map(String::from).collect() };
    let fixture = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/keys").join(name);
        list(&std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    };
    let prefixed = |keys: Vec<String>| keys.iter().map(|k| format!("backbone.{k}")).collect::<Vec<_>>();
    let resnet = fixture("torchvision_resnet50.txt");
    assert_eq!(resnet.len(), 318);
    for (layout, model, mut want) in [
        (ExportLayout::Torchvision, "resnet50", resnet.clone()),
        (ExportLayout::Timm, "resnet50", resnet.clone()),
        (ExportLayout::Dtk, "resnet50", resnet.clone()),
        (ExportLayout::Mmseg, "resnet50", prefixed(resnet)),
        (ExportLayout::Detectron2, "resnet50", fixture("detectron2_resnet50.txt")),
        (ExportLayout::Timm, "convnext_tiny", fixture("timm_convnext_tiny.txt")),
        (ExportLayout::Torchvision, "convnext_tiny", fixture("torchvision_convnext_tiny.txt")),
        (ExportLayout::ConvNext, "convnext_tiny", fixture("convnext_convnext_tiny.txt")),
        (ExportLayout::Mmseg, "convnext_tiny", fixture("mmseg_convnext_tiny.txt")),
    ] {
        let arch = BackboneConfig::named(model).unwrap().arch;
        let keys = target_keys(layout, &arch);
        let line = |k: &TargetKey| format!("{} {:?} {}", k.name, &*k.shape, k.dtype);
        let mut got: Vec<String> = keys.iter().map(line).collect();
        got.sort();
        want.sort();
        assert_eq!(got, want, "{layout} {model}");
    }
}

#[test]
fn every_layout_is_written_verified_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    for config in small() {
        let ours = weights(&config);
        for layout in layouts(&config) {
            let target = target_keys(layout, &config.arch);
            let mut tensors = keymap::export(config.family(), layout.names(), &ours).unwrap();
            let added = complete(&mut tensors, &target);
            let norm = config.family() == keymap::Family::ConvNext && layout != ExportLayout::Dtk;
            assert_eq!(added.len(), if norm { 2 } else { 0 }, "{layout} {added:?}");
            for format in [ExportFormat::Safetensors, ExportFormat::Pth] {
                let places = places(&dir.path().join(format!("x.{format:?}")), format);
                write_weights(&places, layout, &tensors, &BTreeMap::new()).unwrap();
                verify(&places, layout, &target, &tensors).unwrap_or_else(|e| panic!("{layout}: {e}"));
                let file = StateDict::open(&places.weights).unwrap().auto_root().unwrap();
                let mut back = read_backbone(&file, config.family()).unwrap();
                back.retain(|k, _| !is_head(k));
                assert!(back.keys().eq(ours.keys()), "{layout}");
                for (name, t) in &ours {
                    let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().into_vec::<f64>().unwrap();
                    assert_eq!((t.shape(), values(t)), (back[name].shape(), values(&back[name])), "{name}");
                }
            }
        }
    }
}

fn places(weights: &Path, format: ExportFormat) -> Places {
    let of = |e: &str| weights.with_extension(e);
    Places {
        weights: weights.into(),
        config: of("json"),
        card: of("md"),
        yaml: None,
        format,
        is_folder: false,
    }
}

/// Whatever a writer could get wrong is found, counters and element types included.
#[test]
fn verification_finds_what_strict_loading_would() {
    let dir = tempfile::tempdir().unwrap();
    let [config, _] = small();
    let good = weights(&config);
    let target = target_keys(ExportLayout::Dtk, &config.arch);
    let places = places(&dir.path().join("x.safetensors"), ExportFormat::Safetensors);
    let refused = |what: &str, change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut t = good.clone();
        change(&mut t);
        write_weights(&places, ExportLayout::Dtk, &t, &BTreeMap::new()).unwrap();
        let e = verify(&places, ExportLayout::Dtk, &target, &good).unwrap_err();
        assert!(e.is_checkpoint() && e.to_string().contains(what), "{what}: {e}");
    };
    refused("conv1.weight", &|t| drop(t.remove("conv1.weight")));
    refused("bn1.num_batches_tracked", &|t| drop(t.remove("bn1.num_batches_tracked")));
    refused("extra.bias", &|t| drop(t.insert("extra.bias".into(), Tensor::zeros([1]))));
    refused("x.num_batches_tracked", &|t| drop(t.insert("x.num_batches_tracked".into(), Tensor::zeros([]))));
    refused("bn1.bias", &|t| drop(t.insert("bn1.bias".into(), Tensor::zeros([5]))));
    refused("bn1.bias", &|t| drop(t.insert("bn1.bias".into(), Tensor::zeros([4]))));
    refused("bn1.bias", &|t| {
        let half = t["bn1.bias"].to_dtype(DType::F16).unwrap();
        t.insert("bn1.bias".into(), half);
    });
}

#[test]
fn models_are_found_by_structure() {
    let named = |n: &str| BackboneConfig::named(n).unwrap();
    for name in ["resnet18", "resnet101", "convnext_large"] {
        for layout in layouts(&named(name)) {
            let model = Model::find(layout, &named(name)).unwrap();
            assert_eq!((model.name.as_str(), model.without_pooling), (name, false));
        }
    }
    // What only training reads does not change the model; sizes do.
    let same =
        config("name = \"resnet50\"\nlayers = [3, 4, 23, 3]\nzero_init_last = false\nrecompute = true");
    assert_eq!(Model::find(ExportLayout::Timm, &same).unwrap().name, "resnet101");
    let same = config("name = \"convnext_base\"\ndrop_path = 0.3\nlayer_scale = 1.0");
    assert_eq!(Model::find(ExportLayout::Mmseg, &same).unwrap().name, "convnext_base");
    let flat = config("name = \"resnet18\"\nstem = \"no_maxpool\"");
    assert!(Model::find(ExportLayout::Torchvision, &flat).unwrap().without_pooling);
    for (layout, config, says) in [
        (ExportLayout::Detectron2, flat, "no_maxpool"),
        (ExportLayout::Detectron2, named("convnext_tiny"), "no ConvNeXt"),
        (ExportLayout::ConvNext, named("resnet50"), "no ResNet"),
        (ExportLayout::Timm, named("resnet_small"), "no public model"),
    ] {
        let e = Model::find(layout, &config).unwrap_err();
        assert!(e.is_usage() && e.to_string().contains(says) && e.remedy().is_some(), "{e}");
    }
    assert_eq!(Model::find(ExportLayout::Dtk, &named("resnet_small")).unwrap().name, "resnet_small");
}

#[test]
fn checkpoints_without_metadata_are_recognised() {
    let config = BackboneConfig::named("resnet18").unwrap();
    let ours = weights(&config);
    let mut theirs = keymap::export(config.family(), keymap::Layout::Detectron2, &ours).unwrap();
    let found = identify(&StateDict::from_tensors("x.pth", theirs.clone())).unwrap();
    assert_eq!((found.config.name(), found.tensors.len()), ("resnet18", ours.len()));
    theirs.remove("res3.1.conv2.weight");
    let e = identify(&StateDict::from_tensors("x.pth", theirs)).err().unwrap().to_string();
    assert!(e.contains("resnet18") && e.contains("1 missing") && e.contains("layer2.1.conv2.weight"), "{e}");
    let other = BTreeMap::from([("encoder.weight".to_string(), Tensor::zeros([1]))]);
    let e = identify(&StateDict::from_tensors("x.pth", other)).err().unwrap().to_string();
    assert!(e.contains("encoder.weight") && e.contains("->"), "{e}");
}

#[test]
fn names_round_trip() {
    for layout in ExportLayout::ALL {
        assert_eq!(layout.to_string().parse::<ExportLayout>().unwrap(), layout);
    }
    assert!("keras".parse::<ExportLayout>().unwrap_err().remedy().unwrap().contains("mmseg"));
    assert!("onnx".parse::<ExportFormat>().unwrap_err().is_usage());
}
