use super::*;
use crate::data::{ImageFolder, SceneConfig, Scenes};
use image::{Rgb, RgbImage};
use std::collections::BTreeMap;
use std::path::Path;

/// Images whose first value is their index; some are unreadable, one makes the decoder panic.
struct Fake {
    len: usize,
    bad: Vec<usize>,
    panics: Option<usize>,
}

impl ImageSource for Fake {
    fn len(&self) -> usize {
        self.len
    }
    fn load(&self, index: usize, _background: [u8; 3]) -> Result<RgbImage> {
        assert!(self.panics != Some(index), "a decoder bug");
        if self.bad.contains(&index) {
            return Err(Error::format(format!("{index}.png"), "is damaged").with_remedy("remove it"));
        }
        // Work of uneven length, so that threads finish out of order.
        std::thread::sleep(Duration::from_micros((index as u64 * 37 % 11) * 100));
        Ok(RgbImage::from_fn(9, 7, |x, y| Rgb([index as u8, x as u8, y as u8])))
    }
    fn name(&self, index: usize) -> String {
        format!("{index}.png")
    }
    fn label(&self, index: usize) -> Option<u32> {
        Some(index as u32 * 2)
    }
    fn classes(&self) -> &[String] {
        &[]
    }
    fn fingerprint(&self) -> String {
        "fake".into()
    }
}

fn fake(len: usize, bad: &[usize]) -> Arc<dyn ImageSource> {
    Arc::new(Fake { len, bad: bad.to_vec(), panics: None })
}

fn config(batch: usize, workers: usize) -> LoaderConfig {
    let crop = Crop::Random { scale: (0.3, 1.0), ratio: (0.75, 1.33) };
    LoaderConfig {
        batch,
        height: 5,
        width: 6,
        crop,
        seed: 11,
        workers,
        max_bad: 3,
        ..LoaderConfig::default()
    }
}

/// Everything of a batch but the waiting time.
type Content = (u64, Vec<usize>, Vec<Option<u32>>, Vec<f32>);

fn content(b: Batch) -> Content {
    (b.step, b.indices, b.labels, b.images.into_vec::<f32>().unwrap())
}

fn run(source: &Arc<dyn ImageSource>, config: LoaderConfig, start: u64, steps: usize) -> Vec<Content> {
    let mut loader = Loader::new(Arc::clone(source), config, start).unwrap();
    (0..steps).map(|_| content(loader.next_batch().unwrap())).collect()
}

#[test]
fn threads_do_not_matter() {
    let source = fake(13, &[4, 9]);
    let want = run(&source, config(5, 0), 0, 12);
    for (workers, prefetch) in [(1, 1), (1, 3), (3, 0), (3, 2), (8, 5)] {
        let c = LoaderConfig { prefetch, ..config(5, workers) };
        assert_eq!(run(&source, c, 0, 12), want, "{workers} workers, prefetch {prefetch}");
    }
    let other = LoaderConfig { seed: 12, ..config(5, 0) };
    assert_ne!(run(&source, other, 0, 12), want);
}

#[test]
fn bytes_are_the_same_pixels() {
    let source = fake(13, &[4, 9]);
    for workers in [0, 3] {
        let c = LoaderConfig { pixels: Pixels::Bytes, ..config(5, workers) };
        let mut bytes = Loader::new(Arc::clone(&source), c, 2).unwrap();
        let mut signed = Loader::new(Arc::clone(&source), config(5, workers), 2).unwrap();
        for _ in 0..4 {
            let (a, b) = (bytes.next_batch().unwrap(), signed.next_batch().unwrap());
            assert_eq!((a.images.shape(), &a.indices), (b.images.shape(), &b.indices));
            let a: Vec<f32> =
                a.images.data::<u8>().unwrap().iter().map(|&v| f32::from(v) / 127.5 - 1.0).collect();
            assert_eq!(a, b.images.f32s().unwrap());
        }
    }
}

#[test]
fn resume_continues_exactly() {
    let source = fake(13, &[4]);
    let all = run(&source, config(4, 0), 0, 10);
    for start in [1, 3, 7] {
        assert_eq!(run(&source, config(4, 2), start, 10 - start as usize), all[start as usize..]);
    }
}

#[test]
fn every_epoch_shows_every_image_once() {
    let source = fake(10, &[]);
    // 20 batches of 3 are 6 epochs of 10.
    let seen: Vec<usize> = run(&source, config(3, 2), 0, 20).into_iter().flat_map(|b| b.1).collect();
    let epochs: Vec<&[usize]> = seen.chunks(10).collect();
    for e in &epochs {
        let mut sorted = e.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
    }
    assert_ne!(epochs[0], epochs[1]);
    // A set smaller than the batch wraps, and labels follow the images.
    let (_, indices, labels, pixels) = run(&fake(2, &[]), config(7, 1), 5, 1).remove(0);
    assert_eq!((indices.len(), pixels.len()), (7, 7 * 5 * 6 * 3));
    assert!(indices.iter().zip(&labels).all(|(i, l)| *l == Some(*i as u32 * 2)));
    let first: Vec<f32> = pixels.chunks(90).map(|p| p[0]).collect();
    assert_eq!(first, indices.iter().map(|&i| i as f32 / 127.5 - 1.0).collect::<Vec<_>>());
}

#[test]
fn flips_are_half_and_can_be_turned_off() {
    let source = fake(1, &[]);
    // Green rises to the right in the source.
    let rising = |c: &Content| c.3.chunks(5 * 6 * 3).map(|p| p[1] < p[16]).collect::<Vec<_>>();
    let on = LoaderConfig { crop: Crop::Center, ..config(200, 0) };
    let flips = rising(&run(&source, on.clone(), 0, 1)[0]).into_iter().filter(|r| !r).count();
    assert!((70..=130).contains(&flips), "{flips} of 200");
    let off = LoaderConfig { flip: false, ..on };
    assert!(rising(&run(&source, off, 0, 1)[0]).into_iter().all(|r| r));
}

#[test]
fn processes_share_the_global_batch() {
    let source = fake(11, &[5]);
    let whole = run(&source, config(6, 0), 2, 3);
    let parts: Vec<_> =
        (0..3).map(|rank| run(&source, LoaderConfig { rank, world: 3, ..config(2, 1) }, 2, 3)).collect();
    for (s, want) in whole.iter().enumerate() {
        let indices: Vec<usize> = parts.iter().flat_map(|p| p[s].1.clone()).collect();
        let pixels: Vec<f32> = parts.iter().flat_map(|p| p[s].3.clone()).collect();
        assert_eq!((&indices, &pixels), (&want.1, &want.3));
    }
}

#[test]
fn bad_images_are_replaced_and_listed() {
    let bad = [2, 6, 7];
    for workers in [0, 3] {
        let mut loader = Loader::new(fake(8, &bad), config(8, workers), 0).unwrap();
        let first = loader.next_batch().unwrap();
        assert!(first.indices.iter().all(|i| !bad.contains(i)));
        let mut names: Vec<_> = loader.skipped().iter().map(|s| s.name.clone()).collect();
        names.sort();
        assert_eq!(names, ["2.png", "6.png", "7.png"]);
        assert!(loader.skipped()[0].error.contains("is damaged"));
        loader.next_batch().unwrap();
        assert_eq!(loader.skipped().len(), 3, "an image is counted once");
    }
}

#[test]
fn too_many_bad_images_end_the_run() {
    let mut messages = Vec::new();
    for workers in [0, 1, 4] {
        let c = LoaderConfig { max_bad: 2, prefetch: 4, ..config(2, workers) };
        let mut loader = Loader::new(fake(10, &[1, 4, 8]), c, 0).unwrap();
        let e = loop {
            match loader.next_batch() {
                Ok(b) => assert!(b.step < 5, "the whole epoch was read"),
                Err(e) => break e,
            }
        };
        assert!(e.is_data() && e.to_string().contains("3 of 10") && e.to_string().contains("4.png"), "{e}");
        assert!(loader.next_batch().unwrap_err().is_data(), "the error stays");
        messages.push((loader.step(), e.to_string()));
    }
    assert!(messages.iter().all(|m| *m == messages[0]), "{messages:?}");
}

#[test]
fn nothing_readable_is_an_error_not_a_loop() {
    for workers in [0, 2] {
        let c = LoaderConfig { max_bad: 1000, ..config(3, workers) };
        let e = Loader::new(fake(4, &[0, 1, 2, 3]), c, 0).unwrap().next_batch().unwrap_err();
        assert!(e.is_data() && e.to_string().contains("4 of 4"), "{e}");
    }
}

#[test]
fn a_panicking_decoder_is_a_bad_image() {
    let source: Arc<dyn ImageSource> = Arc::new(Fake { len: 4, bad: vec![], panics: Some(2) });
    let mut loader = Loader::new(source, config(4, 2), 0).unwrap();
    assert!(!loader.next_batch().unwrap().indices.contains(&2));
    assert_eq!((loader.skipped()[0].index, loader.skipped().len()), (2, 1));
}

/// Panics where no file can be blamed.
struct Nameless;

impl ImageSource for Nameless {
    fn len(&self) -> usize {
        1
    }
    fn load(&self, _: usize, _: [u8; 3]) -> Result<RgbImage> {
        Ok(RgbImage::new(3, 3))
    }
    fn name(&self, _: usize) -> String {
        String::new()
    }
    fn label(&self, _: usize) -> Option<u32> {
        panic!("a bug in a source")
    }
    fn classes(&self) -> &[String] {
        &[]
    }
    fn fingerprint(&self) -> String {
        String::new()
    }
}

#[test]
fn a_dead_worker_does_not_hang_the_caller() {
    let e = Loader::new(Arc::new(Nameless), config(2, 2), 0).unwrap().next_batch().unwrap_err();
    assert!(e.to_string().contains("panicked"), "{e}");
}

#[test]
fn dropping_stops_the_threads() {
    let source = fake(50, &[]);
    for steps in [0, 1, 3] {
        let mut loader = Loader::new(Arc::clone(&source), config(16, 4), 0).unwrap();
        for _ in 0..steps {
            loader.next_batch().unwrap();
        }
        let start = Instant::now();
        drop(loader);
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    assert_eq!(Arc::strong_count(&source), 1, "no thread holds the source any longer");
}

#[test]
fn wrong_configurations_are_refused() {
    let ok = config(2, 0);
    let wrong = [
        LoaderConfig { batch: 0, ..ok.clone() },
        LoaderConfig { height: 0, ..ok.clone() },
        LoaderConfig { width: 20_000, ..ok.clone() },
        LoaderConfig { rank: 1, ..ok.clone() },
        LoaderConfig { batch: usize::MAX / 4, ..ok.clone() },
        LoaderConfig { crop: Crop::Random { scale: (0.0, 1.0), ratio: (1.0, 1.0) }, ..ok.clone() },
    ];
    for c in wrong {
        let e = Loader::new(fake(3, &[]), c.clone(), 0).err().unwrap();
        assert!(e.is_usage(), "{c:?}: {e}");
    }
    assert!(Loader::new(fake(3, &[]), ok.clone(), u64::MAX).err().unwrap().is_usage());
    assert!(Loader::new(fake(0, &[]), ok.clone(), 0).err().unwrap().is_data());
    let loader = Loader::new(fake(4, &[]), ok, 3).unwrap();
    assert_eq!((loader.step(), loader.epoch()), (3, 1.5));
}

/// Real files: a folder with damaged ones among the good.
#[test]
fn loads_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let save = |name: &str, grey: u8| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(12, 10, Rgb([grey; 3])).save(&path).unwrap();
        path
    };
    let mut greys = BTreeMap::new();
    for i in 0..6u8 {
        save(&format!("c{}/{i}.png", i % 2), i * 40);
        greys.insert(
            format!("{}", Path::new(&format!("c{}", i % 2)).join(format!("{i}.png")).display()),
            i * 40,
        );
    }
    std::fs::write(dir.path().join("c0/zero.jpg"), []).unwrap();
    let cut = save("c1/cut.png", 9);
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let folder = Arc::new(ImageFolder::open(dir.path()).unwrap());
    let source: Arc<dyn ImageSource> = Arc::clone(&folder) as _;
    let c = LoaderConfig { crop: Crop::Center, ..config(8, 2) };
    let mut loader = Loader::new(Arc::clone(&source), c.clone(), 0).unwrap();
    let b = loader.next_batch().unwrap();
    for (i, px) in b.indices.iter().zip(b.images.f32s().unwrap().chunks(90)) {
        let want = f32::from(greys[&folder.name(*i)]) / 127.5 - 1.0;
        assert!((px[0] - want).abs() <= 1e-6 && (px[89] - want).abs() <= 1e-6);
    }
    let mut names: Vec<&str> =
        loader.skipped().iter().map(|s| s.name.rsplit(['/', '\\']).next().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["cut.png", "zero.jpg"]);
    assert_eq!(run(&source, LoaderConfig { workers: 0, ..c.clone() }, 0, 4), run(&source, c, 0, 4));
}

#[test]
fn loads_scenes() {
    let scenes = Scenes::new(SceneConfig { count: 6, first: 0, height: 12, width: 12 }).unwrap();
    let source: Arc<dyn ImageSource> = Arc::new(scenes);
    let got = run(&source, LoaderConfig { height: 8, width: 8, crop: Crop::Center, ..config(4, 2) }, 0, 3);
    assert!(got.iter().all(|b| b.3.iter().all(|v| (-1.0..=1.0).contains(v))));
    assert!(got.iter().all(|b| b.2.iter().all(Option::is_some)));
}
