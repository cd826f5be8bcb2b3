use super::*;
use crate::data::source::digest;
use std::collections::BTreeSet;

fn scenes(count: usize, height: u32, width: u32) -> Scenes {
    Scenes::new(SceneConfig { count, first: 0, height, width }).unwrap()
}

#[test]
fn scenes_differ_and_repeat() {
    let set = scenes(60, 24, 32);
    let a = set.load(3, [0; 3]).unwrap();
    assert_eq!(a.dimensions(), (32, 24));
    assert_eq!(a, set.load(3, [255; 3]).unwrap());
    assert_ne!(a, set.load(4, [0; 3]).unwrap());
    let labels: BTreeSet<_> = (0..60).map(|i| set.label(i).unwrap()).collect();
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    assert_eq!((set.label(60), set.classes().len(), set.mask_classes().len()), (None, 6, 7));
    assert_eq!(scenes(1, 1, 1).load(0, [0; 3]).unwrap().dimensions(), (1, 1));
}

#[test]
fn sets_are_parts_of_one_sequence() {
    let config = SceneConfig { count: 5, first: 3, height: 16, width: 16 };
    let (all, part) = (scenes(8, 16, 16), Scenes::new(config).unwrap());
    assert_eq!(part.load(2, [0; 3]).unwrap(), all.load(5, [0; 3]).unwrap());
    assert_eq!((part.label(2), part.mask(2).unwrap()), (all.label(5), all.mask(5).unwrap()));
    assert_eq!(part.name(2), all.name(5));
    assert_ne!(part.fingerprint(), all.fingerprint());
    let held_out = Scenes::new(SceneConfig { first: Scenes::HELD_OUT, ..config }).unwrap();
    assert_ne!(held_out.load(0, [0; 3]).unwrap(), part.load(0, [0; 3]).unwrap());
}

#[test]
fn impossible_sets_are_refused() {
    let good = SceneConfig { count: 1, first: 0, height: 8, width: 8 };
    for bad in [
        SceneConfig { count: 0, ..good },
        SceneConfig { height: 0, ..good },
        SceneConfig { width: MAX_SIDE + 1, ..good },
        SceneConfig { first: u64::MAX, ..good },
    ] {
        assert!(Scenes::new(bad).unwrap_err().is_usage(), "{bad:?}");
    }
    let set = Scenes::new(good).unwrap();
    assert!(set.load(1, [0; 3]).unwrap_err().is_data());
    assert!(set.mask(1).unwrap_err().is_data());
    assert!(set.instances(1).unwrap_err().is_data());
}

/// The pixels are part of what a seed promises, so they must not change unnoticed (nor between machines).
#[test]
fn pixels_are_pinned() {
    let set = scenes(6, 48, 48);
    let images: Vec<_> = (0..6).map(|i| set.load(i, [0; 3]).unwrap()).collect();
    assert_eq!(digest(images.iter().map(|i| i.as_raw().as_slice())), "6230202c5b09ff31");
    let ids: Vec<u8> =
        (0..6).flat_map(|i| set.mask(i).unwrap().unwrap().ids().to_vec()).map(|v| v as u8).collect();
    assert_eq!(digest([ids.as_slice()]), "56c4e1999a0e07e0");
}

/// Colours vary within an image: neither flat nor saturated.
#[test]
fn scenes_have_contrast() {
    let set = scenes(16, 64, 64);
    for i in 0..16 {
        let im = set.load(i, [0; 3]).unwrap();
        let v: Vec<f64> = im.as_raw().iter().map(|&b| f64::from(b)).collect();
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        let std = (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64).sqrt();
        assert!((40.0..=220.0).contains(&mean) && std >= 15.0, "scene {i}: mean {mean}, std {std}");
    }
}

/// Mask and instances agree, the label's class is there, and no class is rare.
#[test]
fn masks_say_what_is_painted() {
    let set = scenes(200, 32, 32);
    let mut pixels = [0usize; 7];
    for i in 0..200 {
        let (mask, instances) = (set.mask(i).unwrap().unwrap(), set.instances(i).unwrap());
        let mut class_of = [None; 5];
        for (&id, &object) in mask.ids().iter().zip(instances.ids()) {
            assert_eq!(id == 0, object == 0);
            pixels[id as usize] += 1;
            assert_eq!(*class_of[object as usize].get_or_insert(id), id, "one object, one class");
        }
        let label = set.label(i).unwrap() as u16 + 1;
        let share = mask.ids().iter().filter(|&&id| id == label).count();
        assert!(share >= 10, "scene {i} shows {share} pixels of its label's class");
    }
    let total: usize = pixels.iter().sum();
    let share = pixels.map(|p| p as f64 / total as f64);
    assert!((0.5..0.85).contains(&share[0]), "{share:?}");
    assert!(share[1..].iter().all(|s| (0.02..0.12).contains(s)), "{share:?}");
}

/// An object with no neighbour differs from what is around it where the mask says so: masks and pixels share one
/// geometry. A mask that is moved by a few pixels explains the image less well.
#[test]
fn masks_fit_the_pixels() {
    let set = scenes(40, 64, 64);
    let contrast = |shift: i32| -> f64 {
        let mut sum = 0.0;
        for i in 0..40 {
            let (im, mask) = (set.load(i, [0; 3]).unwrap(), set.instances(i).unwrap());
            let id = |x: i32, y: i32| mask.ids()[(y * 64 + (x + shift).rem_euclid(64)) as usize];
            for y in 0..64 {
                for x in 4..59 {
                    if id(x, y) != id(x + 1, y) {
                        let px = |x: i32| im.get_pixel(x as u32, y as u32).0.map(f64::from);
                        let (a, b) = (px(x), px(x + 1));
                        sum += (0..3).map(|c| (a[c] - b[c]).abs()).sum::<f64>() / 3.0;
                    }
                }
            }
        }
        sum
    };
    let (fit, off) = (contrast(0), contrast(4));
    assert!(fit > 1.5 * off, "{fit} on the edges, {off} beside them");
}

#[test]
fn a_scene_is_the_same_at_any_size() {
    let (small, large) = (scenes(4, 24, 32), scenes(4, 72, 96));
    for i in 0..4 {
        assert_eq!(small.label(i), large.label(i));
        let (a, b) = (small.mask(i).unwrap().unwrap(), large.mask(i).unwrap().unwrap());
        // Pixel (x, y) of the small image has the middle of pixel (3 x + 1, 3 y + 1) of the large one.
        let at = |k: usize| (3 * (k / 32) + 1) * 96 + 3 * (k % 32) + 1;
        let equal = (0..24 * 32).filter(|&k| a.ids()[k] == b.ids()[at(k)]).count();
        assert!(equal >= 24 * 32 - 2, "scene {i}: {equal}");
    }
}
