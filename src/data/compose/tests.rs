use super::*;
use crate::data::{Example, Mask, Split, open_path};
use image::{Rgb, Rgba, RgbaImage};
use std::collections::BTreeMap;

/// A square of one colour in the middle of a transparent picture.
fn cutout(path: &Path, colour: [u8; 3]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let [r, g, b] = colour;
    let inside = |v: u32| (6..26).contains(&v);
    let pixel = |x, y| if inside(x) && inside(y) { Rgba([r, g, b, 255]) } else { Rgba([0, 0, 0, 0]) };
    RgbaImage::from_fn(32, 32, pixel).save(path).unwrap();
}

const GROUND: [u8; 3] = [40, 80, 120];

/// Ten red concepts of class `a`, ten green ones of class `b`, two backgrounds.
fn place() -> (tempfile::TempDir, ComposeConfig) {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..10u8 {
        cutout(&dir.path().join(format!("cut/a/r{i}.png")), [200 + i, 0, 0]);
        cutout(&dir.path().join(format!("cut/b/deep/g{i}.webp")), [0, 200 + i, 0]);
    }
    std::fs::create_dir(dir.path().join("bg")).unwrap();
    for i in 0..2 {
        RgbImage::from_pixel(50, 40, Rgb(GROUND)).save(dir.path().join(format!("bg/{i}.png"))).unwrap();
    }
    let config = ComposeConfig {
        train: 12,
        test: 6,
        height: 32,
        width: 40,
        ..ComposeConfig::new(dir.path().join("cut"), dir.path().join("bg"))
    };
    (dir, config)
}

fn refused(config: &ComposeConfig, needles: &[&str]) {
    let e = Composer::open(config).map(|_| ()).unwrap_err();
    let text = e.to_string();
    assert!(needles.iter().all(|n| text.contains(n)) && e.remedy().is_some(), "{text}");
}

#[test]
fn masks_are_exact() {
    let (_dir, config) = place();
    // One object, so that a pixel mixes two colours at most.
    let config = ComposeConfig { objects: (1, 1), ..config };
    let composer = Composer::open(&config).unwrap();
    let mut labels = BTreeSet::new();
    for i in 0..24 {
        let Example { image, mask, instances, label } = composer.render(Split::Train, i).unwrap();
        assert_eq!((image.dimensions(), mask.height(), mask.width()), ((40, 32), 32, 40));
        let mut areas = [0; 3];
        for (k, p) in image.pixels().enumerate() {
            let id = mask.ids()[k];
            areas[id as usize] += 1;
            // Half of a pixel of red on this ground: above, it belongs to the object.
            let share = |c: usize| (f32::from(p[c]) - f32::from(GROUND[c])) / (205.0 - f32::from(GROUND[c]));
            let blue = f32::from(p[2]) / f32::from(GROUND[2]);
            match id {
                0 => assert!(blue >= 0.47, "image {i}, pixel {k}: {p:?}"),
                1 => assert!(share(0) > 0.4 && blue < 0.53, "image {i}, pixel {k}: {p:?}"),
                _ => assert!(share(1) > 0.4 && blue < 0.53, "image {i}, pixel {k}: {p:?}"),
            }
            assert_eq!(id == 0, instances.ids()[k] == 0);
        }
        assert!(areas[label as usize + 1] >= areas[2 - label as usize], "image {i}: {areas:?}");
        labels.insert(label);
        assert!(instances.ids().iter().all(|&o| o <= 1));
    }
    assert_eq!(labels.len(), 2);
}

#[test]
fn every_object_stays_in_sight() {
    let (_dir, config) = place();
    let composer = Composer::open(&config).unwrap();
    let mut counts = BTreeSet::new();
    for i in 0..40 {
        let Example { mask, instances, .. } = composer.render(Split::Train, i).unwrap();
        let mut class_of = [None; 5];
        for (&id, &object) in mask.ids().iter().zip(instances.ids()) {
            assert_eq!(*class_of[object as usize].get_or_insert(id), id, "one object, one class");
        }
        let count = (1..5).filter(|&o| class_of[o].is_some()).count();
        assert!((1..=count).all(|o| class_of[o].is_some()), "image {i}: {class_of:?}");
        counts.insert(count);
    }
    assert_eq!(counts, (1..=4).collect());
}

#[test]
fn splits_share_no_concept_and_repeat() {
    let (dir, config) = place();
    // One object, so that no two greens are mixed.
    let config = ComposeConfig { objects: (1, 1), ..config };
    let out = dir.path().join("out");
    let report = compose(&config, &out, &|_| ()).unwrap();
    let of = |f: &dyn Fn(&ComposedClass) -> &[String]| -> BTreeSet<String> {
        report.classes.iter().flat_map(|c| f(c).to_vec()).collect()
    };
    let (train, test) = (of(&|c| &c.train), of(&|c| &c.test));
    assert_eq!(train.len() + test.len(), 20);
    assert!(train.is_disjoint(&test) && !test.is_empty());
    assert!(report.backgrounds[0] != report.backgrounds[1]);
    // Colours name the concept: no held-out one is seen in training.
    let greens = |split: &str| -> BTreeSet<u8> {
        let set = open_path(out.join(split), Split::Train).unwrap();
        let mut found = BTreeSet::new();
        for i in 0..set.len() {
            let image = set.load(i, [0; 3]).unwrap();
            found
                .extend(image.pixels().filter(|p| p[0] == 0 && p[2] == 0 && p[1] >= 200).map(|p| p[1] - 200));
        }
        found
    };
    let (a, b) = (greens("train"), greens("test"));
    assert!(!a.is_empty() && !b.is_empty() && a.is_disjoint(&b), "{a:?} {b:?}");
    assert!(b.iter().all(|i| test.contains(&format!("g{i}"))));

    let set = open_path(&out, Split::Test).unwrap();
    assert_eq!((set.len(), set.classes().len(), set.mask_classes()[0].as_str()), (6, 2, "background"));
    assert!(set.mask(5).unwrap().is_some() && set.label(5).is_some());
    let read = |root: &Path| -> BTreeMap<Vec<u8>, Vec<u8>> {
        let files = find_files(root, &|_| true).unwrap();
        files.into_iter().map(|f| (key(&f), std::fs::read(root.join(f)).unwrap())).collect()
    };
    let again = dir.path().join("again");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    pool.install(|| compose(&config, &again, &|_| ())).unwrap();
    assert!(read(&out) == read(&again));
    assert!(compose(&config, &out, &|_| ()).unwrap_err().is_usage());
    let other = dir.path().join("other");
    compose(&ComposeConfig { seed: 1, ..config }, &other, &|_| ()).unwrap();
    assert!(read(&out) != read(&other));
}

#[test]
fn lists_name_files_classes_and_concepts() {
    let (dir, config) = place();
    let p = |n: &str| dir.path().join(n);
    let lines: String = (0..10).map(|i| format!("cut/a/r{i}.png,red\n")).collect();
    std::fs::write(p("list.csv"), format!("file,class\n{lines}")).unwrap();
    let csv = Composer::open(&ComposeConfig { cutouts: p("list.csv"), ..config.clone() }).unwrap();
    assert_eq!(csv.classes, ["red"]);
    let objects: Vec<String> = (0..10)
        .map(|i| format!(r#"{{"file": "cut/a/r{i}.png", "class": "red", "concept": "{}"}}"#, i / 2))
        .collect();
    std::fs::write(p("list.json"), format!("[{}]", objects.join(","))).unwrap();
    let json = Composer::open(&ComposeConfig { cutouts: p("list.json"), ..config.clone() }).unwrap();
    let class = &json.report().classes[0];
    assert_eq!(class.train.len() + class.test.len(), 5);
    std::fs::write(p("list.json"), r#"[{"file": "a.png"}]"#).unwrap();
    refused(&ComposeConfig { cutouts: p("list.json"), ..config.clone() }, &["list.json", "class"]);
    std::fs::write(p("list.csv"), "file,class\nnowhere.png,red\n").unwrap();
    refused_file(&ComposeConfig { cutouts: p("list.csv"), ..config }, "nowhere.png");
}

fn refused_file(config: &ComposeConfig, name: &str) {
    let e = Composer::open(config).map(|_| ()).unwrap_err();
    assert!(e.to_string().contains(name), "{e}");
}

#[test]
fn unusable_cutouts_are_refused_or_left_out() {
    let (dir, config) = place();
    let p = |n: &str| dir.path().join(n);
    let skip = ComposeConfig { skip_unusable: true, ..config.clone() };
    RgbImage::from_pixel(9, 9, Rgb([1, 2, 3])).save(p("cut/a/opaque.png")).unwrap();
    refused(&config, &["opaque.png", "no background"]);
    RgbaImage::from_pixel(9, 9, Rgba([1, 2, 3, 90])).save(p("cut/a/opaque.png")).unwrap();
    refused(&config, &["opaque.png", "shows nothing"]);
    std::fs::write(p("cut/a/opaque.png"), "").unwrap();
    refused(&config, &["opaque.png", "empty"]);
    let left = Composer::open(&skip).unwrap().skipped;
    assert!(left.len() == 1 && left[0].contains("opaque.png"), "{left:?}");
}

#[test]
fn what_cannot_be_composed_is_refused() {
    let (dir, config) = place();
    let p = |n: &str| dir.path().join(n);
    for (bad, needle) in [
        (ComposeConfig { height: 4, ..config.clone() }, "size"),
        (ComposeConfig { test: 0, ..config.clone() }, "train"),
        (ComposeConfig { test_fraction: 1.0, ..config.clone() }, "test_fraction"),
        (ComposeConfig { objects: (3, 2), ..config.clone() }, "objects"),
        (ComposeConfig { objects: (0, 2), ..config.clone() }, "objects"),
        (ComposeConfig { scale: (0.0, 0.5), ..config.clone() }, "scale"),
        (ComposeConfig { scale: (f32::NAN, 0.5), ..config.clone() }, "scale"),
        (ComposeConfig { rotation: 270.0, ..config.clone() }, "rotation"),
    ] {
        let e = Composer::open(&bad).map(|_| ()).unwrap_err();
        assert!(e.is_usage() && e.key() == Some(needle) && e.remedy().is_some(), "{e}");
    }
    refused(
        &ComposeConfig { backgrounds: p("cut/a/r0.png"), ..config.clone() },
        &["no folder of backgrounds"],
    );
    std::fs::create_dir(p("nothing")).unwrap();
    refused(&ComposeConfig { backgrounds: p("nothing"), ..config.clone() }, &["no backgrounds found"]);
    refused(&ComposeConfig { cutouts: p("nothing"), ..config.clone() }, &["no cut-outs found"]);
    std::fs::create_dir(p("cut/c")).unwrap();
    refused(&config, &["class `c` has no cut-outs"]);
    cutout(&p("cut/c/one.png"), [0; 3]);
    refused(&config, &["class `c`", "each split needs one"]);
    std::fs::rename(p("cut/c"), p("cut/background")).unwrap();
    refused(&config, &["`background`", "another name"]);
    std::fs::remove_dir_all(p("cut/background")).unwrap();
    cutout(&p("cut/top.png"), [0; 3]);
    refused(&config, &["top.png", "outside of all class folders"]);
}

/// A cut-out at its own size, upright, is pasted as it is.
#[test]
fn a_paste_keeps_shape_and_colour() {
    let (_dir, config) = place();
    let config = ComposeConfig { rotation: 0.0, flip: false, objects: (1, 1), scale: (0.5, 0.5), ..config };
    let composer = Composer::open(&config).unwrap();
    for i in 0..8 {
        let e = composer.render(Split::Test, i).unwrap();
        let area = e.mask.ids().iter().filter(|&&id| id > 0).count();
        // A square of 16 pixels a side, of which the border may be cut off or fall between pixels.
        assert!((7 * 7..=17 * 17).contains(&area), "image {i}: {area}");
        let full = e.image.pixels().zip(e.mask.ids()).filter(|(p, id)| **id > 0 && p[2] == 0).count();
        assert!(full >= area / 2, "image {i}: {full} of {area}");
        assert_eq!(e.mask, Mask::new(32, 40, e.mask.ids().to_vec()).unwrap());
    }
}
