use super::opcodes as op;
use super::testing::{Described, Pickle, one_tensor, with_pickle};
use super::{StateDict, Tolerance, compare};
use crate::base::{DType, Shape};
use crate::tensor::{Tensor, write_safetensors};
use std::collections::BTreeMap;
use std::path::Path;

const W: Described =
    Described { storage: "FloatStorage", key: "0", numel: 6, offset: 0, sizes: &[6], strides: &[1] };

fn names(s: &StateDict) -> Vec<&str> {
    s.names().collect()
}

/// A checkpoint of nested dicts: `a/b` means the key `b` in the dict `a`; dots belong to the keys.
fn nested(paths: &[&str]) -> (tempfile::TempDir, StateDict) {
    let mut tree: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for p in paths {
        let (dict, key) = p.split_once('/').unwrap_or(("", p));
        tree.entry(dict).or_default().push(key);
    }
    let mut p = Pickle::new().op(op::EMPTY_DICT);
    for (dict, keys) in tree {
        if !dict.is_empty() {
            p = p.str(dict).op(op::EMPTY_DICT);
        }
        for key in keys {
            p = p.str(key).tensor(&W).op(op::SETITEM);
        }
        if !dict.is_empty() {
            p = p.op(op::SETITEM);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.bin");
    std::fs::write(&path, with_pickle(&p.stop())).unwrap();
    let s = StateDict::open(&path).unwrap();
    (dir, s)
}

#[test]
fn the_content_decides_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = BTreeMap::from([("w".to_string(), Tensor::zeros([2]))]);
    let meta = BTreeMap::from([("k".to_string(), "v".to_string())]);
    let st = dir.path().join("a.pt");
    write_safetensors(&st, &tensors, &meta).unwrap();
    let s = StateDict::open(&st).unwrap();
    assert_eq!((names(&s), s.metadata(), s.len()), (vec!["w"], &meta, 1));
    assert_eq!(s.info("w"), Some((DType::F32, Shape::from([2]))));
    assert_eq!(s.get("w").unwrap().f32s().unwrap(), [0.0, 0.0]);
    assert!(s.get("v").unwrap_err().is_checkpoint());
    let pt = dir.path().join("b.safetensors");
    std::fs::write(&pt, one_tensor(&W)).unwrap();
    let s = StateDict::open(&pt).unwrap();
    assert_eq!(s.get("w").unwrap().f32s().unwrap()[5], 5.0);
    for (file, text) in [("c.safetensors", "copied completely"), ("c.pt", "no PyTorch zip archive")] {
        let path = dir.path().join(file);
        std::fs::write(&path, b"hello world").unwrap();
        let e = StateDict::open(&path).err().unwrap();
        assert!(e.is_format() && e.to_string().contains(text), "{e}");
    }
    assert!(StateDict::open(dir.path().join("absent")).err().unwrap().is_io());
}

#[test]
fn auto_root_descends_and_strips() {
    let root = |paths: &[&str]| nested(paths).1.auto_root().map(|s| names(&s).join(" "));
    assert_eq!(root(&["conv.weight", "bn.bias"]).unwrap(), "bn.bias conv.weight");
    // Keys with dots look like nested dicts and are none.
    assert_eq!(root(&["model.conv", "model.bn"]).unwrap(), "model.bn model.conv");
    assert_eq!(root(&["state_dict/module.a.w", "state_dict/module.b", "optimizer/0"]).unwrap(), "a.w b");
    assert_eq!(root(&["model/_orig_mod.module.a", "other/x"]).unwrap(), "a");
    assert_eq!(root(&["generator/a", "generator/b"]).unwrap(), "a b");
    assert_eq!(root(&["module.a", "b"]).unwrap(), "b module.a");
    // A tensor at the top level means that the top level is the state dict.
    assert_eq!(root(&["model/a", "b"]).unwrap(), "b model.a");
    for paths in [["model/a", "ema/a"], ["generator/a", "discriminator/a"]] {
        let e = root(&paths).unwrap_err();
        assert!(e.is_checkpoint() && e.remedy().unwrap().contains("prefix"), "{e}");
        for p in paths {
            assert!(e.to_string().contains(p.split_once('/').unwrap().0), "{e}");
        }
    }
    assert!(StateDict::from_tensors("x", BTreeMap::new()).auto_root().unwrap().is_empty());
}

#[test]
fn prefixes_choose_a_part() {
    let (_dir, s) = nested(&["model/a", "ema/module.a", "ema/module.b"]);
    let ema = s.with_prefix("ema.").unwrap();
    assert_eq!(names(&ema), ["module.a", "module.b"]);
    assert_eq!(names(&ema.auto_root().unwrap()), ["a", "b"]);
    assert_eq!(ema.get("module.b").unwrap().elems(), 6);
    let e = s.with_prefix("nothing.").err().unwrap();
    assert!(e.is_checkpoint() && e.remedy().unwrap().contains("ema.module.a"), "{e}");
}

#[test]
fn a_real_training_checkpoint_fits() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch_training.pt");
    let s = StateDict::open(path).unwrap().auto_root().unwrap();
    let bn =
        ["weight", "bias", "running_mean", "running_var"].map(|l| (format!("bn1.{l}"), Shape::from([4])));
    let mut expected = bn.to_vec();
    expected.push(("conv1.weight".into(), [4, 3, 3, 3].into()));
    let report = compare(&expected, &s).into_result(Tolerance::default()).unwrap();
    assert_eq!(report.matched, 5);
}

#[test]
fn sharded_folders() {
    let dir = tempfile::tempdir().unwrap();
    let write = |file: &str, key: &str, v: f32| {
        let t = BTreeMap::from([(key.to_string(), Tensor::full([2], v))]);
        write_safetensors(dir.path().join(file), &t, &BTreeMap::new()).unwrap();
    };
    write("m-1.safetensors", "a", 1.0);
    write("m-2.safetensors", "b", 2.0);
    let index = |json: &str| {
        std::fs::write(dir.path().join("model.safetensors.index.json"), json).unwrap();
        StateDict::open(dir.path())
    };
    let s = index(r#"{"weight_map": {"b": "m-2.safetensors", "a": "m-1.safetensors"}}"#).unwrap();
    assert_eq!(names(&s), ["a", "b"]);
    assert_eq!(s.get("b").unwrap().f32s().unwrap(), [2.0, 2.0]);
    assert_eq!(s.info("a"), Some((DType::F32, Shape::from([2]))));
    for json in [
        r#"{"weight_map": {"a": "../m-1.safetensors"}}"#,
        r#"{"weight_map": {"a": ".."}}"#,
        r#"{"weight_map": {"a": "m-2.safetensors"}}"#,
        r#"{"weight_map": {"a": 3}}"#,
        r#"{"weight_map": {"a": "absent.safetensors"}}"#,
        r#"{}"#,
        r#"not json"#,
    ] {
        assert!(index(json).is_err(), "{json}");
    }
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    assert!(StateDict::open(dir.path()).err().unwrap().is_format());
    write("model.safetensors", "c", 3.0);
    assert_eq!(names(&StateDict::open(dir.path()).unwrap()), ["c"]);
}
