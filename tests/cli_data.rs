//! `dtk data` as users run it: what is made, what is found, what is refused.

#[path = "common/program.rs"]
mod program;

use dtk::data::{ImageSource, MaskFolder, SceneConfig, Scenes, Split, open_path};
use image::{Rgb, RgbImage, Rgba, RgbaImage};
use program::{Place, fails, ok};
use serde_json::Value;
use std::path::Path;

#[test]
fn synth_then_inspect() {
    let p = Place::new();
    let text =
        ok(&p.dtk(&["data", "synth", "--out", "set", "--count", "12", "--size", "16x24", "--first", "5"]));
    assert!(text.contains("12 scenes of 16x24") && text.contains("12/12 images"), "{text}");
    let scenes = Scenes::new(SceneConfig { count: 12, first: 5, height: 16, width: 24 }).unwrap();
    let set = MaskFolder::open(p.path("set")).unwrap();
    assert_eq!(set.load(11, [0; 3]).unwrap(), scenes.load(11, [0; 3]).unwrap());
    assert_eq!(set.mask(11).unwrap(), scenes.mask(11).unwrap());
    assert!(p.path("set/instances/000011.png").is_file());
    assert!(!p.path(".set.partial").exists());

    let text = ok(&p.dtk(&["data", "inspect", "set", "--mosaic", "mosaic.png"]));
    for needle in ["12 (12 looked at)", "16x24: 12 images", "6 classes", "background", "malformed    0"] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    // Two rows of eight pairs of 64 pixels.
    assert_eq!(image::open(p.path("mosaic.png")).unwrap().into_rgb8().dimensions(), (1024, 128));
    let found: Value =
        serde_json::from_str(&ok(&p.dtk(&["data", "inspect", "set", "--json", "--limit", "4"]))).unwrap();
    assert_eq!((&found["images"], &found["inspected"], &found["masks"]), (&12.into(), &4.into(), &4.into()));
    let pixels: u64 = found["mask_pixels"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).sum();
    assert_eq!(pixels, 4 * 16 * 24);

    // What is made can be trained on.
    ok(&p.train(&["--data", "set", "--out", "run", "--set", "train.length=2"]));

    fails(&p.dtk(&["data", "synth", "--out", "set"]), 2, &["set", "not empty", "->"]);
    fails(&p.dtk(&["data", "synth", "--out", "x", "--size", "0x5"]), 2, &["0x5", "->"]);
    fails(&p.dtk(&["data", "synth", "--out", "x", "--size", "big"]), 2, &["--size", "big"]);
    fails(&p.dtk(&["data", "synth", "--out", "x", "--count", "0"]), 2, &["at least one scene"]);
    fails(&p.dtk(&["data", "synth", "--out", "x", "--first", "last"]), 2, &["--first", "held_out"]);
    assert!(!p.path("x").exists());
}

#[test]
fn inspect_names_what_is_malformed() {
    let p = Place::new();
    ok(&p.dtk(&["data", "synth", "--out", "set", "--count", "6", "--size", "8", "--first", "test"]));
    let mask = |h, w, id| dtk::data::Mask::new(h, w, vec![id; (h * w) as usize]).unwrap();
    std::fs::write(p.path("set/images/000000.png"), "").unwrap();
    mask(4, 4, 0).write_png(p.path("set/masks/000001.png")).unwrap();
    mask(8, 8, 9).write_png(p.path("set/masks/000002.png")).unwrap();
    std::fs::write(p.path("set/masks/000003.png"), "noise").unwrap();
    let o = p.dtk(&["data", "inspect", "set"]);
    fails(&o, 1, &["4 of 6 images are malformed", "->"]);
    let text = program::out(&o);
    for needle in ["000000.png: is empty", "another size", "the id 9", "neither a PNG nor an NPY"] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    fails(&p.dtk(&["data", "inspect", "nowhere"]), 1, &["nowhere", "->"]);
    std::fs::create_dir(p.path("empty")).unwrap();
    fails(&p.dtk(&["data", "inspect", "empty"]), 1, &["no images", "->"]);
    fails(&p.dtk(&["data", "inspect", "set", "--limit", "0"]), 2, &["--limit"]);
    std::fs::remove_file(p.path("set/images/000005.png")).unwrap();
    fails(&p.dtk(&["data", "inspect", "set"]), 1, &["1 masks have no image", "000005.png"]);
    std::fs::remove_file(p.path("set/masks/000005.png")).unwrap();
    fails(&p.dtk(&["data", "inspect", "set"]), 1, &["labels.csv", "000005.png"]);
}

/// A disc of one colour on a transparent ground.
fn disc(path: &Path, colour: [u8; 3]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let [r, g, b] = colour;
    let inside = |x: u32, y: u32| (x as i32 - 20).pow(2) + (y as i32 - 20).pow(2) < 300;
    let alpha = |x, y| if inside(x, y) { 255 } else { 0 };
    RgbaImage::from_fn(40, 40, |x, y| Rgba([r, g, b, alpha(x, y)])).save(path).unwrap();
}

#[test]
fn compose_makes_two_splits() {
    let p = Place::new();
    for i in 0..8 {
        disc(&p.path(&format!("cut/apple/a{i}.png")), [200, 0, 0]);
        disc(&p.path(&format!("cut/pear/p{i}.png")), [0, 200, 0]);
    }
    std::fs::create_dir(p.path("bg")).unwrap();
    RgbImage::from_pixel(60, 60, Rgb([0, 0, 90])).save(p.path("bg/sky.jpg")).unwrap();
    let args = ["data", "compose", "--cutouts", "cut", "--backgrounds", "bg", "--size", "24"];
    let run = |more: &[&str]| p.dtk(&[&args, more].concat());
    let text = ok(&run(&["--out", "set", "--train", "8", "--test", "4", "--objects", "1-2"]));
    assert!(text.contains("apple") && text.contains("shared") && text.contains("12/12"), "{text}");
    let (train, test) =
        (open_path(p.path("set"), Split::Train).unwrap(), open_path(p.path("set"), Split::Test).unwrap());
    assert_eq!((train.len(), test.len(), train.classes()), (8, 4, test.classes()));
    assert_eq!(train.mask_classes(), ["background", "apple", "pear"]);
    let report: Value =
        serde_json::from_str(&std::fs::read_to_string(p.path("set/compose.json")).unwrap()).unwrap();
    assert_eq!((&report["config"]["seed"], report["classes"].as_array().unwrap().len()), (&0.into(), 2));
    let text = ok(&p.dtk(&["data", "inspect", "set", "--split", "test"]));
    assert!(text.contains("4 (4 looked at)") && text.contains("pear"), "{text}");

    RgbImage::new(5, 5).save(p.path("cut/pear/opaque.png")).unwrap();
    fails(&run(&["--out", "no"]), 1, &["opaque.png", "->"]);
    let text = ok(&run(&["--out", "set2", "--train", "2", "--test", "1", "--skip-unusable"]));
    assert!(text.contains("left out") && text.contains("opaque.png"), "{text}");
    fails(&run(&["--out", "set", "--skip-unusable"]), 2, &["not empty"]);
    fails(&run(&["--out", "no", "--objects", "none"]), 2, &["--objects", "1-4"]);
    fails(&run(&["--out", "no", "--scale", "0-1", "--skip-unusable"]), 2, &["scale", "->"]);
    std::fs::create_dir(p.path("cut/plum")).unwrap();
    fails(&run(&["--out", "no", "--skip-unusable"]), 1, &["`plum` has no cut-outs", "->"]);
    fails(&p.dtk(&["data", "compose", "--cutouts", "cut"]), 2, &["--backgrounds"]);
    assert!(!p.path("no").exists());
}
