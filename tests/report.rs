//! The report of a run: what is on the page, and how a real browser draws it.
//!
//! The browser is `chromium` on the PATH or what `DTK_CHROMIUM` names; without one its test is skipped with the reason
//! printed, which is an error where `DTK_REQUIRE_CHROMIUM` is 1.

#[path = "common/tiny.rs"]
mod tiny;

use dtk::eval;
use dtk::train::report;
use dtk::viz::Mosaic;
use dtk::viz::gallery::{Gallery, Picture};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A colour that nothing else on the page has.
const TILE: [u8; 3] = [1, 254, 233];
/// The first line's colour in the light style.
const FIRST: [u8; 3] = [0x28, 0x60, 0xc5];
/// A name that would do harm if it were not escaped.
const NAME: &str = "<script>alert('x')</script> & \"co\"";

fn evaluation() -> eval::Report {
    let row = |protocol: &str, metric: &str, backbone: &str, labels: usize, mean: f64| eval::Row {
        protocol: protocol.into(),
        backbone: backbone.into(),
        metric: metric.into(),
        labels,
        fraction: labels as f64 / 4000.0,
        seeds: vec![0, 1, 2],
        values: vec![mean - 0.01, mean, mean + 0.02],
        classes: ["background", "disc", "<img src=x>"].map(String::from).to_vec(),
        per_class: vec![0.9, 0.4, f64::NAN],
        seconds: 12.0,
    };
    let mut rows = Vec::new();
    for (protocol, metric, base) in
        [("knn", "top1", 0.3), ("linear", "top1", 0.35), ("seg_frozen", "miou", 0.25)]
    {
        for (labels, more) in [(40, 0.0), (400, 0.1)] {
            for (backbone, ahead) in [("pretrained", 0.15), ("scratch", 0.0), ("supervised", 0.2)] {
                rows.push(row(protocol, metric, backbone, labels, base + more + ahead));
            }
        }
    }
    eval::Report { title: "held-out <scenes>".into(), rows }
}

/// A run folder with everything that a page can show.
fn run_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let recipe = tiny::RECIPE.replacen("\"tiny\"", &toml::Value::String(NAME.into()).to_string(), 1);
    std::fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
    let environment = json!({"version": "0.1.0", "device": "cpu", "threads": 2, "images": "<b>f00</b>"});
    std::fs::write(dir.path().join("environment.json"), environment.to_string()).unwrap();
    let mut metrics = String::new();
    for step in 1..=600 {
        let fall = (-f64::from(step) / 150.0).exp();
        let noise = f64::from(step * 7919 % 13) / 130.0;
        let mut row = json!({
            "step": step * 1000, "epoch": 0.1, "loss": 0.05 + 7.0 * fall + noise * fall, "mse": 0.4 + fall, "at": 0.2 + 0.3 * fall + noise,
            "lr": 1e-3 * fall, "grad_norm": 1.0 + 40.0 * fall, "images_per_s": 120.0 + 100.0 * noise, "step_ms": 210.0,
            "data_wait_ms": 4.0, "teacher_ms": 60.0, "student_ms": 120.0,
        });
        for (i, stride) in [4, 8, 16, 32].into_iter().enumerate() {
            let behind = 1.0 - 0.1 * i as f64;
            row[format!("cosine/stride{stride}")] = json!(0.9 * behind * (1.0 - fall));
            row[format!("mse/stride{stride}")] = json!(0.3 + behind * fall);
            row[format!("at/stride{stride}")] = json!(0.1 + 0.4 * behind * fall);
        }
        if step % 100 == 0 {
            row["knn_top1"] = json!(0.3 + 0.3 * (1.0 - fall));
        }
        metrics += &format!("{row}\n");
    }
    std::fs::write(dir.path().join("metrics.jsonl"), metrics).unwrap();
    evaluation().write(dir.path().join(report::EVALUATION)).unwrap();
    let names: Vec<String> =
        ["image", "teacher 4", "student 4", "teacher 8", "student 8", "teacher 16", "student 16"]
            .map(String::from)
            .to_vec();
    for (file, colour) in [("features.png", TILE), ("attention.png", [230, 120, 40])] {
        let tile = RgbImage::from_pixel(8, 8, Rgb(colour));
        let mosaic = Mosaic { columns: names.clone(), rows: vec![vec![tile; 7]; 3], tile: [80, 80] };
        let picture = Picture {
            file: file.into(),
            title: format!("{file} <i>"),
            caption: "What there is to see & how.".into(),
            columns: names.clone(),
            band: Mosaic::BAND,
        };
        Gallery::add(&dir.path().join("viz"), picture, &mosaic.render().unwrap()).unwrap();
    }
    RgbImage::from_pixel(50, 40, Rgb([200, 30, 90])).save(dir.path().join("viz/by_hand.png")).unwrap();
    dir
}

#[test]
fn the_page_is_one_file_that_asks_for_nothing() {
    let dir = run_folder();
    let path = report::write(dir.path()).unwrap();
    assert_eq!(path, dir.path().join("report.html"));
    let page = std::fs::read_to_string(&path).unwrap();
    for foreign in [
        "<script",
        "<link",
        "<iframe",
        "@import",
        "url(",
        "http:",
        "https:",
        "//cdn",
        "<b>f00",
        "<i>",
        "<img src=x",
    ] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    for source in page.split("src=\"").skip(1) {
        assert!(source.starts_with("data:image/png;base64,"), "{}", &source[..40]);
    }
    assert!(page.contains("default-src 'none'"));
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;co&quot;"));
    assert_eq!(page.matches("<img ").count(), 3);
    for shown in [
        "Cosine to the teacher",
        "Nearest neighbours",
        "stride 32",
        "40.3 ± 1.5",
        "+15.0",
        "Segmentation, frozen backbone",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
    assert!(page.len() < 600_000, "{} bytes", page.len());
    report::write(dir.path()).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), page, "the same files give the same page");
}

#[test]
fn a_run_that_has_just_begun_has_a_page() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_recipe(dir.path());
    std::fs::rename(dir.path().join("tiny.toml"), dir.path().join("recipe.toml")).unwrap();
    let page = |d: &Path| std::fs::read_to_string(report::write(d).unwrap()).unwrap();
    let first = page(dir.path());
    assert!(first.contains("No step of this run is logged yet") && first.contains("weights are random"));
    std::fs::write(dir.path().join("metrics.jsonl"), "{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"lo").unwrap();
    let second = page(dir.path());
    assert!(second.contains("<svg") && !second.contains("NaN"));
}

#[test]
fn what_is_broken_is_named() {
    let none = tempfile::tempdir().unwrap();
    let e = report::write(none.path()).unwrap_err();
    assert!(e.is_io() && e.to_string().contains("recipe.toml") && e.remedy().is_some(), "{e}");
    for (file, text) in [
        ("recipe.toml", "name = "),
        ("metrics.jsonl", "{}\n"),
        ("environment.json", "{"),
        ("eval.json", "[]"),
        ("viz/pictures.json", "{\"pictures\": 3}"),
        ("viz/by_hand.png", ""),
        ("viz/features.png", "no picture"),
    ] {
        let dir = run_folder();
        std::fs::write(dir.path().join(file), text).unwrap();
        let e = report::write(dir.path()).unwrap_err();
        assert!(e.is_format() && e.to_string().contains(file) && e.remedy().is_some(), "{file}: {e}");
        assert!(!dir.path().join("report.html").exists(), "{file}");
    }
}

// ---- the browser ----

fn browser() -> Option<PathBuf> {
    let named = std::env::var_os("DTK_CHROMIUM").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = ["chromium", "chromium-browser", "google-chrome"]
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |dir| dir.join(name)))
        .find(|p| p.is_file());
    let found = named.or(on_path);
    if found.is_none() {
        let why = "no chromium on the PATH, and DTK_CHROMIUM names none; tools/chromium.sh gets one";
        assert!(
            !std::env::var("DTK_REQUIRE_CHROMIUM").is_ok_and(|v| v == "1"),
            "DTK_REQUIRE_CHROMIUM=1, but: {why}"
        );
        println!("skipped: {why}");
    }
    found
}

/// Runs the browser on a page of `place` with further options; gives what it prints.
fn browse(browser: &Path, place: &Path, page: &str, options: &[&str]) -> String {
    let output = place.join("dom.txt");
    let mut child = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
        .args(["--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking"])
        // The page that measures may look into the one that is measured.
        .arg("--allow-file-access-from-files")
        .arg(format!("--user-data-dir={}", place.join("profile").display()))
        .args(options)
        .arg(format!("file://{}", place.join(page).display()))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&output).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}", browser.display()));
    let start = Instant::now();
    loop {
        match child.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success(), "{}: {status}", browser.display());
                return std::fs::read_to_string(output).unwrap();
            }
            None if start.elapsed() > Duration::from_secs(300) => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{} takes more than five minutes for {page}", browser.display());
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A page that shows the report in frames of these widths and writes down what is really drawn in each.
fn measuring_page(widths: &[u32]) -> String {
    let frames: String = widths
        .iter()
        .map(|w| format!("<iframe src=\"report.html\" width=\"{w}\" height=\"800\"></iframe>"))
        .collect();
    let script = r#"
addEventListener('load', () => {
  const results = [...document.querySelectorAll('iframe')].map(frame => {
    const page = frame.contentDocument, view = frame.contentWindow;
    const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
    const lines = [...page.querySelectorAll('path.line')];
    const texts = [...page.querySelectorAll('.chart > text')];
    const box = e => e.getBoundingClientRect();
    return {
      width: page.documentElement.clientWidth,
      needed: page.documentElement.scrollWidth,
      pictures: [...page.images].map(i => i.complete && i.naturalWidth > 0 && box(i).width > 40 && box(i).height > 30),
      lines: lines.map(l => l.getTotalLength()),
      drawn: lines.filter(l => view.getComputedStyle(l).stroke.startsWith('rgb') && inside(box(l), box(l.ownerSVGElement))).length,
      outside: texts.filter(t => !inside(box(t), box(t.ownerSVGElement))).map(t => t.textContent),
      smallest: Math.min(...texts.map(t => parseFloat(view.getComputedStyle(t).fontSize) * box(t.ownerSVGElement).width / 360)),
      bars: [...page.querySelectorAll('.track i')].map(b => box(b).width),
      asked: view.performance.getEntriesByType('resource').length,
    };
  });
  document.getElementById('result').textContent = JSON.stringify(results);
});"#;
    format!("<!doctype html><body><pre id=\"result\">[]</pre><script>{script}</script>{frames}")
}

fn measured(browser: &Path, place: &Path, widths: &[u32]) -> Vec<Value> {
    std::fs::write(place.join("measure.html"), measuring_page(widths)).unwrap();
    let page = browse(browser, place, "measure.html", &["--virtual-time-budget=10000", "--dump-dom"]);
    let text = page.split("<pre id=\"result\">").nth(1).and_then(|t| t.split("</pre>").next());
    let text =
        text.unwrap_or_else(|| panic!("no result in {page}")).replace("&amp;", "&").replace("&lt;", "<");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn a_browser_draws_curves_and_pictures() {
    let Some(browser) = browser() else { return };
    let dir = run_folder();
    report::write(dir.path()).unwrap();
    let numbers = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>();
    let widths = [360, 768, 1200];
    let results = measured(&browser, dir.path(), &widths);
    assert_eq!(results.len(), widths.len());
    for (width, r) in widths.into_iter().zip(&results) {
        assert!(r["needed"].as_f64().unwrap() <= f64::from(width), "sideways at {width}: {r}");
        assert_eq!(r["pictures"], json!([true, true, true]), "{r}");
        let lines = numbers(&r["lines"]);
        // Four levels three times, and loss, two terms, kNN, learning rate, gradient norm, throughput.
        assert_eq!(lines.len(), 19, "{r}");
        assert!(lines.iter().all(|l| *l > 100.0), "{r}");
        assert_eq!(r["drawn"], json!(lines.len()), "{r}");
        assert_eq!(r["outside"], json!([]), "cut off at {width}");
        assert!(r["smallest"].as_f64().unwrap() >= 9.0, "too small to read at {width}: {r}");
        let bars = numbers(&r["bars"]);
        assert!(bars.len() == 18 && bars.iter().all(|b| *b > 20.0), "{r}");
        assert_eq!(r["asked"], json!(0), "{r}");
    }
    let shot = format!("--screenshot={}", dir.path().join("shot.png").display());
    browse(&browser, dir.path(), "report.html", &["--window-size=1200,2400", &shot]);
    let shot = image::open(dir.path().join("shot.png")).unwrap().into_rgb8();
    let count = |c: [u8; 3]| shot.pixels().filter(|p| (0..3).all(|i| p[i].abs_diff(c[i]) <= 2)).count();
    assert!(count(TILE) > 20 * 40 * 40, "{} pixels of the picture", count(TILE));
    assert!(count(FIRST) > 1000, "{} pixels of the first colour", count(FIRST));
}
