use super::*;
use crate::data::npy::tests::npy;

fn image(path: &Path, h: u32, w: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(w, h, image::Rgb([7, 8, 9])).save(path).unwrap();
}

fn mask(path: &Path, h: u32, w: u32, ids: &[u16]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    Mask::new(h, w, ids.to_vec()).unwrap().write_png(path).unwrap();
}

/// A folder with images `a.png` and `b/c.jpg` of 2x3 pixels in the layout of two folders.
fn two() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let p = |n: &str| dir.path().join(n);
    image(&p("images/a.png"), 2, 3);
    image(&p("images/b/c.jpg"), 2, 3);
    mask(&p("masks/a.png"), 2, 3, &[0, 1, 2, 2, 1, 255]);
    std::fs::create_dir_all(p("masks/b")).unwrap();
    std::fs::write(p("masks/b/c.npy"), npy("|u1", false, "(2, 3)", &[1; 6])).unwrap();
    std::fs::write(p("classes.txt"), "background\ncat\nox\n").unwrap();
    dir
}

fn refused(dir: &Path, needles: &[&str]) {
    let e = MaskFolder::open(dir).map(|_| ()).unwrap_err();
    let text = e.to_string();
    assert!(needles.iter().all(|n| text.contains(n)) && e.remedy().is_some(), "{text}");
}

#[test]
fn folders_with_names_and_labels() {
    let dir = two();
    assert!(MaskFolder::recognises(dir.path()).unwrap());
    let set = MaskFolder::open(dir.path()).unwrap();
    assert_eq!((set.len(), set.name(0)), (2, "images/a.png".into()));
    assert_eq!(set.load(1, [0; 3]).unwrap().dimensions(), (3, 2));
    assert_eq!(set.mask(0).unwrap().unwrap().ids(), [0, 1, 2, 2, 1, 255]);
    assert_eq!(set.mask(1).unwrap().unwrap().ids(), [1; 6]);
    assert_eq!((set.mask_classes().len(), set.classes().len(), set.ignore_index()), (3, 0, Some(255)));
    assert_eq!((set.label(0), set.label(2)), (None, None));
    assert!(set.mask(2).unwrap_err().is_data() && set.load(2, [0; 3]).unwrap_err().is_data());
    let before = set.fingerprint();
    std::fs::write(dir.path().join("labels.csv"), "image,label\nb/c.jpg,ox\na.png,cat\n").unwrap();
    let set = MaskFolder::open(dir.path()).unwrap();
    assert_eq!((set.label(0), set.label(1)), (Some(0), Some(1)));
    assert_eq!(set.classes(), ["cat", "ox"]);
    assert_ne!(set.fingerprint(), before);
}

#[test]
fn masks_beside_the_images() {
    let dir = tempfile::tempdir().unwrap();
    let p = |n: &str| dir.path().join(n);
    image(&p("0.png"), 1, 2);
    image(&p("1.jpg"), 1, 2);
    assert!(!MaskFolder::recognises(dir.path()).unwrap());
    refused(dir.path(), &["no images with masks"]);
    let int64 = |ids: [i64; 2]| npy("<i8", false, "(1, 2)", &ids.map(i64::to_le_bytes).concat());
    std::fs::write(p("0.npy"), int64([4, 255])).unwrap();
    refused(dir.path(), &["1 images have no mask", "1.jpg"]);
    std::fs::write(p("1.npy"), int64([0, 1])).unwrap();
    assert!(MaskFolder::recognises(dir.path()).unwrap());
    let set = MaskFolder::open(dir.path()).unwrap();
    assert_eq!(set.mask_classes(), ["0", "1", "2", "3", "4"]);
    assert_eq!(set.mask(0).unwrap().unwrap().ids(), [4, 255]);

    let dir = tempfile::tempdir().unwrap();
    for i in 0..2 {
        image(&dir.path().join(format!("{i}.jpg")), 1, 1);
        mask(&dir.path().join(format!("{i}.png")), 1, 1, &[i]);
    }
    assert_eq!(MaskFolder::open(dir.path()).unwrap().mask(1).unwrap().unwrap().ids(), [1]);
    image(&dir.path().join("2.jpg"), 1, 1);
    assert!(!MaskFolder::recognises(dir.path()).unwrap());
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let broken = |change: &dyn Fn(&Path), needles: &[&str]| {
        let dir = two();
        change(dir.path());
        refused(dir.path(), needles);
    };
    broken(&|d| std::fs::remove_file(d.join("masks/a.png")).unwrap(), &["1 images have no mask", "a.png"]);
    broken(&|d| std::fs::remove_file(d.join("images/b/c.jpg")).unwrap(), &["1 masks have no image", "c.npy"]);
    broken(&|d| image(&d.join("images/a.jpg"), 1, 1), &["a.jpg and a.png", "same name"]);
    broken(&|d| std::fs::write(d.join("classes.txt"), "").unwrap(), &["classes.txt", "0 classes"]);
    let labels = |text: &'static str| move |d: &Path| std::fs::write(d.join("labels.csv"), text).unwrap();
    broken(&labels("image,label\na.png,cat\n"), &["labels.csv", "`b/c.jpg` has no label"]);
    broken(&labels("image,label\na.png,cat\nb/c.jpg,cow\n"), &["`cow`", "cat, ox"]);
    broken(&labels("image,label\na.png,background\nb/c.jpg,ox\n"), &["`background`"]);
    broken(&labels("image,label\na.png,cat\nb/c.jpg,ox\nd.png,ox\n"), &["1 labels have no image", "d.png"]);
    let empty = |d: &Path| {
        std::fs::remove_dir_all(d).unwrap();
        std::fs::create_dir_all(d.join("images")).unwrap();
        std::fs::create_dir_all(d.join("masks")).unwrap();
    };
    broken(&empty, &["no images with masks"]);
    // Without names every mask is read at once.
    let zero = |d: &Path| {
        std::fs::remove_file(d.join("classes.txt")).unwrap();
        std::fs::write(d.join("masks/b/c.npy"), "").unwrap();
    };
    broken(&zero, &["c.npy", "empty"]);
}

#[test]
fn a_bad_mask_is_named_when_it_is_read() {
    let dir = two();
    let set = MaskFolder::open(dir.path()).unwrap();
    let fails = |needles: &[&str]| {
        let e = set.mask(0).unwrap_err();
        let text = e.to_string();
        assert!(text.contains("a.png") && needles.iter().all(|n| text.contains(n)), "{text}");
        assert!(e.remedy().is_some());
    };
    let path = dir.path().join("masks/a.png");
    mask(&path, 3, 2, &[0; 6]);
    fails(&["another size", "mask = 3x2", "image = 2x3"]);
    mask(&path, 2, 3, &[0, 1, 2, 3, 0, 0]);
    fails(&["the id 3", "3 classes"]);
    image(&path, 2, 3);
    fails(&["Rgb"]);
    std::fs::write(&path, "").unwrap();
    fails(&["empty"]);
    assert!(set.mask(1).is_ok());
}
