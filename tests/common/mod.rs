//! What the golden tests share: sets of reference values, their manifest, comparisons.
//!
//! A set is a folder with `manifest.json` and safetensors files: the one that `DTK_GOLDEN` names, else `tests/golden`.
//! Tests find their files by the manifest's `section`, take every size and setting from the manifest and the tensors,
//! and skip what a set does not have.
#![allow(dead_code, reason = "every test binary uses its own part of this module")]

use dtk::base::{DType, Shape};
use dtk::tensor::{SafetensorsFile, Tensor};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How far a result may be off: `relative * |w| + max(of_max, 30 * noise) * max |w| + absolute` for every reference
/// value `w`, where `noise` is what the reference code itself loses in f32 ([`Golden::noise`]).
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Relative to the value.
    pub relative: f64,
    /// Relative to the largest value of the tensor.
    pub of_max: f64,
    /// For tensors that are 0 but for rounding.
    pub absolute: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Tolerance { relative: 1e-4, of_max: 1e-5, absolute: 1e-7 }
    }
}

/// A folder of reference values.
pub struct GoldenSet {
    dir: PathBuf,
    manifest: Value,
}

impl GoldenSet {
    /// The set to test against; `None`, with the reason printed, where the default folder holds none. A folder that
    /// `DTK_GOLDEN` names has to hold one.
    pub fn open() -> Option<Self> {
        if let Some(dir) = std::env::var_os("DTK_GOLDEN").map(PathBuf::from) {
            return Some(Self::read(&dir).unwrap_or_else(|e| panic!("DTK_GOLDEN={}: {e}", dir.display())));
        }
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        if !dir.join("manifest.json").is_file() {
            println!("skipped: manifest.json is not in {}", dir.display());
            return None;
        }
        Some(Self::read(&dir).unwrap_or_else(|e| panic!("{e}")))
    }

    fn read(dir: &Path) -> Result<Self, String> {
        let path = dir.join("manifest.json");
        let name = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = std::fs::read_to_string(&path).map_err(|e| name(&e))?;
        let manifest: Value = serde_json::from_str(&text).map_err(|e| name(&e))?;
        if !manifest["files"].is_object() {
            return Err(name(&"has no object `files`"));
        }
        Ok(GoldenSet { dir: dir.into(), manifest })
    }

    /// One file; `None`, with the reason printed, if the set does not have it.
    pub fn file(&self, name: &str) -> Option<Golden> {
        let entry = &self.manifest["files"][name];
        let path = self.dir.join(name);
        if !entry.is_object() || !path.is_file() {
            println!("skipped: {name} is not in {}", self.dir.display());
            return None;
        }
        Some(Golden::open(name, &path, entry.clone()))
    }

    /// Every file of a section.
    pub fn section(&self, section: &str) -> Vec<Golden> {
        let files = self.manifest["files"].as_object().expect("checked on opening");
        let names: Vec<&String> =
            files.iter().filter(|(_, e)| e["section"] == section).map(|(name, _)| name).collect();
        if names.is_empty() {
            println!("skipped: no file of section {section} is in {}", self.dir.display());
        }
        names.into_iter().filter_map(|name| self.file(name)).collect()
    }
}

/// Runs `check` on every file of a section for which `wanted` holds; each has to check at least one tensor.
pub fn for_section_where(section: &str, wanted: impl Fn(&Golden) -> bool, check: impl Fn(&Golden)) {
    let Some(set) = GoldenSet::open() else { return };
    for golden in set.section(section).iter().filter(|g| wanted(g)) {
        check(golden);
        golden.finish();
    }
}

/// Runs `check` on every file of a section; each has to check at least one tensor.
pub fn for_section(section: &str, check: impl Fn(&Golden)) {
    for_section_where(section, |_| true, check);
}

/// One file of a set. It notes which of its tensors were used and which were compared.
pub struct Golden {
    /// The file's name.
    pub name: String,
    /// What the manifest says about the file.
    pub entry: Value,
    file: SafetensorsFile,
    used: RefCell<BTreeSet<String>>,
    checked: RefCell<BTreeSet<String>>,
}

impl Golden {
    fn open(name: &str, path: &Path, entry: Value) -> Self {
        let data = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let bytes = entry["bytes"].as_u64().unwrap_or_else(|| panic!("{name}: the manifest has no `bytes`"));
        assert_eq!(data.len() as u64, bytes, "{name}: bytes of the file (left) and in the manifest (right)");
        let sum: String = Sha256::digest(&data).iter().map(|b| format!("{b:02x}")).collect();
        let listed =
            entry["sha256"].as_str().unwrap_or_else(|| panic!("{name}: the manifest has no `sha256`"));
        assert_eq!(sum, listed, "{name}: sha256 of the file (left) and in the manifest (right)");
        let file = SafetensorsFile::open(path).unwrap_or_else(|e| panic!("{e}"));
        if let Some(tensors) = entry["tensors"].as_u64() {
            assert_eq!(file.names().count() as u64, tensors, "{name}: number of tensors");
        }
        let none = || RefCell::new(BTreeSet::new());
        Golden { name: name.into(), entry, file, used: none(), checked: none() }
    }

    /// Whether the file holds only some tensors of the original one.
    pub fn is_subset(&self) -> bool {
        self.entry["subset"] == true
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file.names()
    }

    /// What follows `prefix` in the names that begin with it.
    pub fn suffixes(&self, prefix: &str) -> Vec<String> {
        self.names().filter_map(|n| n.strip_prefix(prefix)).map(String::from).collect()
    }

    /// Whether the file holds the tensor.
    pub fn has(&self, name: &str) -> bool {
        self.file.info(name).is_some()
    }

    /// Like [`Golden::has`], but only a subset may lack the tensor.
    pub fn expect(&self, name: &str) -> bool {
        assert!(self.has(name) || self.is_subset(), "{}: there is no tensor {name}", self.name);
        self.has(name)
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Shape {
        self.file.info(name).unwrap_or_else(|| panic!("{}: there is no tensor {name}", self.name)).1
    }

    /// A tensor as it is stored, but floats as f32.
    pub fn get(&self, name: &str) -> Tensor {
        let t = self.raw(name);
        if t.dtype() == DType::I64 { t } else { t.to_dtype(DType::F32).unwrap() }
    }

    /// A tensor with images as NHWC, everything else as it is stored.
    pub fn memory(&self, name: &str) -> Tensor {
        let t = self.get(name);
        if t.shape().len() == 4 { t.nchw_to_nhwc().unwrap() } else { t }
    }

    /// The values of a tensor in f64.
    pub fn f64s(&self, name: &str) -> Vec<f64> {
        self.raw(name)
            .to_dtype(DType::F64)
            .and_then(Tensor::into_vec)
            .unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The values of an integer tensor as counts.
    pub fn counts(&self, name: &str) -> Vec<usize> {
        let t = self.raw(name);
        let values = t.data::<i64>().unwrap_or_else(|e| panic!("{name}: {e}"));
        values.iter().map(|&v| usize::try_from(v).unwrap_or_else(|e| panic!("{name}: {v}: {e}"))).collect()
    }

    fn raw(&self, name: &str) -> Tensor {
        self.used.borrow_mut().insert(name.into());
        self.file.get(name).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Relative to the tensor's largest value, what the reference code itself loses in f32. The manifest names the
    /// worst tensors; the least of these bounds all others.
    pub fn noise(&self, name: &str) -> f64 {
        let of = |key: &str| self.entry[key]["worst"].as_array();
        let Some(worst) = of("f32_vs_f64").or_else(|| of("f32_vs_f64_step0")) else { return 0.0 };
        let entry = worst.iter().find(|w| w["name"] == name).or(worst.last());
        entry.map_or(0.0, |e| e["rel_to_max"].as_f64().unwrap_or_else(|| panic!("{}: rel_to_max", self.name)))
    }

    /// Compares a tensor in memory layout: one of four dimensions is NHWC here and NCHW (or a convolution weight in
    /// PyTorch's layout) in the file.
    pub fn check(&self, name: &str, got: &Tensor, tolerance: Tolerance) {
        if self.expect(name) {
            let got = if got.shape().len() == 4 { got.nhwc_to_nchw().unwrap() } else { got.clone() };
            self.check_stored(name, &got, tolerance);
        }
    }

    /// Compares a tensor in the layout of the file. A scalar is a tensor of one element there.
    pub fn check_stored(&self, name: &str, got: &Tensor, tolerance: Tolerance) {
        if !self.expect(name) {
            return;
        }
        let want = self.get(name);
        let scalars = got.elems() == 1 && want.elems() == 1;
        assert!(
            got.shape() == want.shape() || scalars,
            "{}: {name}: {} {}",
            self.name,
            got.shape(),
            want.shape()
        );
        match want.data::<i64>() {
            Ok(want) => assert_eq!(got.data::<i64>().unwrap(), want, "{}: {name}", self.name),
            Err(_) => self.compare(name, name, got.f32s().unwrap(), want.f32s().unwrap(), tolerance),
        }
        self.note(name);
    }

    /// Compares part `i` of a tensor, of those stacked along its first axis, with values in the file's layout.
    pub fn check_part(&self, name: &str, i: usize, got: &[f32], tolerance: Tolerance) {
        if !self.expect(name) {
            return;
        }
        let all = self.get(name);
        let (all, parts) = (all.f32s().unwrap(), all.shape()[0]);
        assert!(i < parts && got.len() * parts == all.len(), "{}: {name}[{i}]: shape", self.name);
        let limit = self.limit(name, all, tolerance);
        let want = &all[i * got.len()..][..got.len()];
        assert_close(&format!("{}: {name}[{i}]", self.name), got, want, tolerance.relative, limit);
        self.note(name);
    }

    fn compare(&self, name: &str, shown: &str, got: &[f32], want: &[f32], tolerance: Tolerance) {
        let limit = self.limit(name, want, tolerance);
        assert_close(&format!("{}: {shown}", self.name), got, want, tolerance.relative, limit);
    }

    fn limit(&self, name: &str, want: &[f32], tolerance: Tolerance) -> f64 {
        f64::max(tolerance.of_max, 30.0 * self.noise(name)) * max_abs(want) + tolerance.absolute
    }

    /// Compares values that were computed with narrow operands on a device. Each may be off, in the L2 norm and in its worst
    /// element, by twice as much as the same value of the same computation on the host with the same operands rounded, or
    /// as the median of these, where chance made that one better. Images are NHWC.
    pub fn check_rounded(&self, device: &[(String, Tensor)], host: &[(String, Tensor)]) {
        let errors = |values: &[(String, Tensor)]| -> Vec<[f64; 2]> {
            values.iter().map(|(name, t)| self.errors(name, t)).collect()
        };
        assert!(!device.is_empty() && device.len() == host.len(), "{}: nothing to compare", self.name);
        let (got, limits) = (errors(device), errors(host));
        for (which, norm) in ["L2 norm", "largest element"].into_iter().enumerate() {
            let mut sorted: Vec<f64> = limits.iter().map(|e| e[which]).collect();
            sorted.sort_by(f64::total_cmp);
            let median = sorted[sorted.len() / 2];
            assert!(median > 0.0, "{}: nothing was rounded", self.name);
            for (i, (name, _)) in device.iter().enumerate() {
                assert_eq!(*name, host[i].0, "{}: order of the values", self.name);
                let (error, limit) = (got[i][which], 2.0 * limits[i][which].max(median));
                assert!(
                    error <= limit,
                    "{}: {name}: error {error:.2e} relative to the {norm}; operands rounded on the host give {:.2e} \
                     (median {median:.2e})",
                    self.name,
                    limits[i][which]
                );
                self.note(name);
            }
        }
    }

    /// Error of a value relative to the reference, in the L2 norm and of the largest element; NaN if it is not finite.
    fn errors(&self, name: &str, got: &Tensor) -> [f64; 2] {
        let want = self.get(name);
        let got = if got.shape().len() == 4 { got.nhwc_to_nchw().unwrap() } else { got.clone() };
        assert_eq!(got.elems(), want.elems(), "{}: {name}: {} {}", self.name, got.shape(), want.shape());
        let (mut error, mut size, mut worst, mut largest) = (0.0, 0.0, 0.0f64, 1e-30f64);
        for (&g, &w) in got.f32s().unwrap().iter().zip(want.f32s().unwrap()) {
            let (d, w) = (f64::from(g) - f64::from(w), f64::from(w));
            error += d * d;
            size += w * w;
            // Once NaN, always NaN: `max` would forget it.
            worst = if d.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(d.abs()) };
            largest = largest.max(w.abs());
        }
        [(error / f64::max(size, 1e-60)).sqrt(), worst / largest]
    }

    /// Notes that a tensor was compared by other means.
    pub fn note(&self, name: &str) {
        self.used.borrow_mut().insert(name.into());
        self.checked.borrow_mut().insert(name.into());
    }

    /// Tensors that nothing has read so far.
    pub fn unused(&self) -> Vec<String> {
        self.names().filter(|n| !self.used.borrow().contains(*n)).map(String::from).collect()
    }

    /// Prints how many tensors were compared.
    ///
    /// Panics if there were none.
    pub fn finish(&self) {
        let checked = self.checked.borrow().len();
        assert!(checked > 0, "{}: no tensor was checked", self.name);
        println!("{}: {checked} tensors checked", self.name);
    }
}

/// Number of steps of the diffusion process that a file of section `diffusion` is about, from its `linear<steps>.*`.
pub fn diffusion_steps(golden: &Golden) -> usize {
    let steps = |n: &str| n.strip_prefix("linear")?.split_once('.')?.0.parse().ok();
    golden.names().find_map(steps).unwrap_or_else(|| panic!("{}: no tensor `linear<steps>.*`", golden.name))
}

/// The numbers of a list in the manifest.
pub fn counts(list: &Value) -> Vec<usize> {
    let list = list.as_array().unwrap_or_else(|| panic!("{list} is no list"));
    list.iter().map(|v| v.as_u64().unwrap_or_else(|| panic!("{v} is no count")) as usize).collect()
}

/// Asserts `|got - want| <= atol + rtol |want|` for every element, all of them finite; reports the worst one.
pub fn assert_close(name: &str, got: &[f32], want: &[f32], rtol: f64, atol: f64) {
    let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    assert_close_f64(name, &wide(got), &wide(want), rtol, atol);
}

/// As [`assert_close`], in f64.
pub fn assert_close_f64(name: &str, got: &[f64], want: &[f64], rtol: f64, atol: f64) {
    assert_comparable(name, got, want);
    let mut worst = (0, 0.0);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let (error, limit) = ((g - w).abs(), atol + rtol * w.abs());
        // 0 <= 0 passes, so exact comparisons work too.
        let ratio = if error <= limit {
            if limit > 0.0 { error / limit } else { 0.0 }
        } else {
            f64::MAX.min(error / limit)
        };
        if ratio > worst.1 {
            worst = (i, ratio);
        }
    }
    let (i, ratio) = worst;
    assert!(
        ratio <= 1.0,
        "{name}: element {i} is {:e}, expected {:e}: {ratio:.3} times the tolerance (rtol {rtol:e}, atol {atol:e})",
        got[i],
        want[i]
    );
}

/// Asserts `||got - want|| <= tol ||want||`, all elements finite.
pub fn assert_rel_l2(name: &str, got: &[f32], want: &[f32], tol: f64) {
    let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let (got, want) = (wide(got), wide(want));
    assert_comparable(name, &got, &want);
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w));
    let size = norm(&mut want.iter().copied());
    assert!(error <= tol * size, "{name}: relative L2 error {:e} exceeds {tol:e}", error / size);
}

fn assert_comparable(name: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{name}: number of elements");
    assert!(!want.is_empty(), "{name}: there is nothing to compare");
    for (what, v) in [("computed", got), ("reference", want)] {
        if let Some(i) = v.iter().position(|x| !x.is_finite()) {
            panic!("{name}: {what} element {i} is {}", v[i]);
        }
    }
}

/// The largest absolute value; 0 for no values.
pub fn max_abs(v: &[f32]) -> f64 {
    v.iter().fold(0.0, |m, x| f64::max(m, f64::from(x.abs())))
}
