//! `dtk eval` as users run it: scenes and folders, backbones side by side, and what it says about malformed input.

#[path = "common/program.rs"]
mod program;

use dtk::data::{ImageSource, Mask, SceneConfig, Scenes};
use dtk::eval::Report;
use program::tiny;
use program::{Place, fails, ok};
use serde_json::Value;
use std::path::Path;

/// What makes an evaluation short.
const SHORT: &str = r#"
[eval]
protocols = ["knn", "linear", "seg_frozen"]
labels = [12]
seeds = 2
data = { height = 32, width = 32, scenes = 40, test_limit = 20 }
linear.fit.length = 3
seg_frozen = { head = { channels = 8 }, fit = { length = 3, batch = 6 } }
seg_finetune.fit = { length = 2, batch = 6 }
finetune.fit = { length = 2, batch = 6 }
supervised.fit = { length = 3, batch = 6 }
"#;

/// A folder with the recipe `eval.toml`.
fn place() -> Place {
    let p = Place::new();
    std::fs::write(p.path("eval.toml"), format!("{}{SHORT}", tiny::RECIPE)).unwrap();
    p
}

fn eval(p: &Place, args: &[&str]) -> std::process::Output {
    p.dtk(&[&["eval", "--recipe", "eval.toml", "--device", "cpu"], args].concat())
}

/// Scenes as files, in the folders `train` and `test` with images, masks, classes and labels.
fn folder(p: &Place) {
    for (part, first, count) in [("train", 0, 14), ("test", 100, 6)] {
        let set = Scenes::new(SceneConfig { count, first, height: 32, width: 32 }).unwrap();
        let at = p.path("set").join(part);
        for kind in ["images", "masks"] {
            std::fs::create_dir_all(at.join(kind)).unwrap();
        }
        let mut labels = String::from("image,label\n");
        for i in 0..count {
            let name = format!("{i:03}.png");
            set.load(i, [0; 3]).unwrap().save(at.join("images").join(&name)).unwrap();
            set.mask(i).unwrap().unwrap().write_png(at.join("masks").join(&name)).unwrap();
            labels += &format!("{name},{}\n", set.classes()[set.label(i).unwrap() as usize]);
        }
        std::fs::write(at.join("labels.csv"), labels).unwrap();
        std::fs::write(at.join("classes.txt"), set.mask_classes().join("\n") + "\n").unwrap();
    }
}

/// Two backbones side by side, as text and as a report, and the same again.
#[test]
fn compares_backbones() {
    let p = place();
    ok(&p.train(&["--out", "run", "--set", "train.length=2"]));
    let args = ["--backbone", "run", "--against", "scratch", "--out", "eval.json"];
    let text = ok(&eval(&p, &args));
    assert!(text.contains("scratch: seg_frozen, 12 labels, seed 1:"), "{text}");
    let table: Vec<&str> = text.lines().skip_while(|l| !l.starts_with("protocol")).collect();
    let header: Vec<&str> = table[0].split_whitespace().collect();
    assert_eq!(header, ["protocol", "metric", "labels", "seeds", "pretrained", "scratch"]);
    // Top-1 of two protocols, two metrics of the third; then the file.
    assert_eq!(table.len(), 6, "{text}");
    let report = Report::read(p.path("eval.json")).unwrap();
    assert_eq!((report.rows.len(), report.backbones()), (8, vec!["pretrained", "scratch"]));
    let values = |r: &Report| r.rows.iter().map(|r| r.values.clone()).collect::<Vec<_>>();
    ok(&eval(&p, &args));
    assert_eq!(values(&report), values(&Report::read(p.path("eval.json")).unwrap()));
    // Without a recipe, that of the run; its file by name, under a name of one's own.
    let alone = ["eval", "knn", "--device", "cpu", "--backbone", "run/backbone.safetensors"];
    let set = [
        "--labels",
        "100%",
        "--seeds",
        "1",
        "--set",
        "eval.data.scenes=30",
        "--set",
        "eval.data.test_limit=9",
    ];
    let text = ok(&p.dtk(&[&alone[..], &["--against", "mine=run/backbone.safetensors"], &set].concat()));
    let last: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(last[..6], ["knn", "top1", "30", "(100", "%)", "1"]);
    assert_eq!(last[6], last[7], "{text}");
}

/// A supervised backbone is trained on the run's own images, kept, and measured the same from its file.
#[test]
fn a_supervised_backbone_can_be_kept() {
    let p = place();
    let file = p.path("labels.safetensors");
    let file = file.to_str().unwrap();
    ok(&eval(
        &p,
        &["--backbone", "scratch", "--against", "supervised", "--save-supervised", file, "--out", "a.json"],
    ));
    ok(&eval(&p, &["--backbone", "scratch", "--against", &format!("supervised={file}"), "--out", "b.json"]));
    let [a, b] = ["a.json", "b.json"].map(|f| Report::read(p.path(f)).unwrap());
    assert_eq!(a.rows.len(), 8);
    for (a, b) in a.rows.iter().zip(&b.rows) {
        assert_eq!((&a.backbone, &a.values), (&b.backbone, &b.values));
    }
    fails(&eval(&p, &["--backbone", "scratch", "--save-supervised", "x"]), 2, &["--against supervised"]);
}

/// Folders with train and test parts, every protocol.
#[test]
fn folders_of_images() {
    let p = place();
    folder(&p);
    let all = "knn,linear,seg,seg_finetune,finetune";
    let text = ok(&eval(&p, &[all, "--backbone", "scratch", "--data", "set", "--labels", "50%,14"]));
    for protocol in ["knn", "linear", "seg_frozen", "seg_finetune", "finetune"] {
        let start = format!("scratch: {protocol}, ");
        let results = text.lines().filter(|l| l.starts_with(&start) && l.ends_with(" %"));
        assert_eq!(results.count(), 4, "{text}");
    }
    // Parts that are given one by one are the same parts.
    let rows = |args: &[&str]| {
        ok(&eval(&p, &[&["knn", "--backbone", "scratch", "--out", "x.json"], args].concat()));
        Report::read(p.path("x.json")).unwrap().rows.into_iter().map(|r| r.values).collect::<Vec<_>>()
    };
    assert_eq!(rows(&["--data", "set"]), rows(&["--data", "set/train", "--test", "set/test"]));
}

/// A label file in a folder, a mask, an image: each in turn is broken.
#[test]
fn malformed_input_is_named() {
    let says = |what: &str, args: &[&str], spoil: &dyn Fn(&Path), needles: &[&str]| {
        let p = place();
        folder(&p);
        spoil(&p.path("set"));
        let o = eval(&p, &[&["--backbone", "scratch", "--data", "set"], args].concat());
        assert!(matches!(o.status.code(), Some(1 | 2)), "{what}");
        fails(&o, o.status.code().unwrap(), needles);
    };
    let remove = |name: &'static str| move |set: &Path| std::fs::remove_file(set.join(name)).unwrap();
    let write = |name: &'static str, bytes: &'static [u8]| {
        move |set: &Path| std::fs::write(set.join(name), bytes).unwrap()
    };
    says("label without image", &[], &remove("train/images/003.png"), &["003"]);
    says("image without mask", &["seg"], &remove("test/masks/002.png"), &["002"]);
    says("empty image", &["knn"], &write("test/images/002.png", b""), &["002.png", "is empty"]);
    says("empty mask", &["seg"], &write("test/masks/002.png", b""), &["002.png", "is empty"]);
    says("no image", &["seg"], &write("test/images/002.png", b"GIF89a"), &["002.png"]);
    says("other classes", &["seg"], &write("test/classes.txt", b"background\nberry\n"), &["class"]);
    let other_size = |set: &Path| {
        Mask::new(16, 32, vec![0; 512]).unwrap().write_png(set.join("test/masks/001.png")).unwrap();
    };
    says("mask of another size", &["seg"], &other_size, &["001.png", "16x32", "32x32"]);
    let unknown_class = |set: &Path| {
        Mask::new(32, 32, vec![7; 1024]).unwrap().write_png(set.join("test/masks/001.png")).unwrap();
    };
    says("class out of range", &["seg"], &unknown_class, &["001.png", "7"]);
    let empty = |set: &Path| {
        std::fs::remove_dir_all(set).unwrap();
        std::fs::create_dir(set).unwrap();
    };
    says("empty folder", &[], &empty, &["no images"]);
    let one_part = |set: &Path| std::fs::remove_dir_all(set.join("test")).unwrap();
    says("no test part", &["seg"], &one_part, &["the same", "test"]);
}

#[test]
fn wrong_usage_is_2() {
    let p = place();
    fails(&p.dtk(&["eval"]), 2, &["--backbone"]);
    fails(&eval(&p, &["knnn", "--backbone", "scratch"]), 2, &["knnn", "seg_frozen"]);
    fails(&eval(&p, &["--backbone", "scratch", "--labels", "0"]), 2, &["labelled images"]);
    fails(&eval(&p, &["--backbone", "scratch", "--labels", "41"]), 2, &["41", "40"]);
    fails(&eval(&p, &["--backbone", "scratch", "--against", "mine"]), 2, &["--against", "NAME=FILE"]);
    fails(&eval(&p, &["--backbone", "scratch", "--set", "eval.knn.k=0"]), 2, &["eval.knn"]);
    fails(&eval(&p, &["--backbone", "scratch", "--set", "eval.seg_frozen.haed=0"]), 2, &["haed"]);
    fails(&eval(&p, &["--backbone", "none.safetensors"]), 1, &["none.safetensors"]);
}

/// Nearest neighbours during training: in the metrics after every so many steps and at the end, and no change to the result.
#[test]
fn training_measures_neighbours() {
    let p = place();
    let train = |out: &str, every: &str| {
        let set = format!("eval.online_knn_every={every}");
        ok(&p.dtk(&["train", "--recipe", "eval.toml", "--device", "cpu", "--out", out, "--set", &set]))
    };
    let text = train("with", "3");
    train("without", "0");
    let lines = std::fs::read_to_string(p.path("with/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let measured: Vec<u64> =
        lines.iter().filter(|l| l.get("knn_top1").is_some()).map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(measured, [3, 6, 8]);
    assert!(
        lines.iter().filter_map(|l| l.get("knn_top1")).all(|v| (0.0..=1.0).contains(&v.as_f64().unwrap()))
    );
    assert!(text.contains("knn "), "{text}");
    let read = |run: &str| std::fs::read(p.path(run).join("backbone.safetensors")).unwrap();
    assert_eq!(read("with"), read("without"));
}
