use super::opcodes as op;
use super::pickle;
use super::testing::{Described, Pickle, archive, one_tensor, with_pickle};
use super::{PtFile, Scalar};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use half::{bf16, f16};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use zip::CompressionMethod;

const GOOD: Described =
    Described { storage: "FloatStorage", key: "0", numel: 6, offset: 0, sizes: &[2, 3], strides: &[3, 1] };

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Opens bytes as a file; the folder is kept for as long as the result is used.
fn open(bytes: &[u8]) -> (tempfile::TempDir, Result<PtFile>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pt");
    std::fs::write(&path, bytes).unwrap();
    let file = PtFile::open(&path);
    (dir, file)
}

fn refused(bytes: &[u8]) -> Error {
    let e = open(bytes).1.err().expect("must be refused");
    assert!(e.file().is_some() && e.remedy().is_some(), "{e}");
    e
}

fn read(bytes: &[u8]) -> Tensor {
    let (_dir, file) = open(bytes);
    file.unwrap().get("w").unwrap()
}

fn load(pkl: Vec<u8>) -> Result<()> {
    pickle::load(Path::new("x.pt"), &pkl).map(|_| ())
}

#[test]
fn a_training_checkpoint_of_torch() {
    let f = PtFile::open(fixture("torch_training.pt")).unwrap();
    let weights: Vec<_> = f.names().filter(|n| n.starts_with("state_dict.")).collect();
    assert_eq!(
        weights,
        [
            "state_dict.module.bn1.bias",
            "state_dict.module.bn1.num_batches_tracked",
            "state_dict.module.bn1.running_mean",
            "state_dict.module.bn1.running_var",
            "state_dict.module.bn1.weight",
            "state_dict.module.conv1.weight",
        ]
    );
    assert_eq!(f.info("state_dict.module.conv1.weight"), Some((DType::F32, Shape::from([4, 3, 3, 3]))));
    let w = f.get("state_dict.module.conv1.weight").unwrap();
    let expected: Vec<f32> = (0..108).map(|i| i as f32 / 4.0 - 1.0).collect();
    assert_eq!(w.f32s().unwrap(), expected);
    let n = f.get("state_dict.module.bn1.num_batches_tracked").unwrap();
    assert_eq!((n.shape(), n.data::<i64>().unwrap()), (Shape::SCALAR, &[0][..]));
    assert_eq!(f.get("optimizer.state.0.momentum_buffer").unwrap().f32s().unwrap(), [1.0; 108]);
    assert_eq!(f.scalars()["epoch"], Scalar::Int(3));
    assert_eq!(f.scalars()["best"], Scalar::Float(0.75));
    assert_eq!(f.scalars()["arch"], Scalar::Str("tiny".into()));
    assert_eq!(f.scalars()["none"], Scalar::None);
    assert_eq!(f.scalars()["optimizer.param_groups.0.lr"], Scalar::Float(0.1));
    assert_eq!(f.scalars()["optimizer.param_groups.0.nesterov"], Scalar::Bool(false));
    let e = f.get("state_dict.absent").unwrap_err();
    assert!(e.is_checkpoint() && e.key() == Some("state_dict.absent"), "{e}");
}

#[test]
fn every_element_type_and_views() {
    let f = PtFile::open(fixture("torch_kinds.pt")).unwrap();
    let v: Vec<f64> = (0..6).map(|i| f64::from(i) / 4.0 - 1.0).collect();
    let get = |n: &str| f.get(n).unwrap();
    for (name, dtype) in
        [("float32", DType::F32), ("float64", DType::F64), ("float16", DType::F16), ("bfloat16", DType::Bf16)]
    {
        let t = get(name);
        assert_eq!((t.dtype(), &*t.shape()), (dtype, &[2, 3][..]));
        assert_eq!(t.to_dtype(DType::F64).unwrap().data::<f64>().unwrap(), v, "{name}");
        assert_eq!(f.info(name), Some((dtype, t.shape())));
    }
    assert_eq!(get("float16").data::<f16>().unwrap()[5], f16::from_f32(0.25));
    assert_eq!(get("bfloat16").data::<bf16>().unwrap()[0], bf16::from_f32(-1.0));
    for name in ["int64", "int32", "int16", "int8"] {
        assert_eq!(get(name).data::<i64>().unwrap(), [-2, -1, 0, 1, 2], "{name}");
        assert_eq!(f.info(name), Some((DType::I64, Shape::from([5]))));
    }
    assert_eq!(get("uint8").data::<u8>().unwrap(), [0, 1, 2, 3, 4]);
    assert_eq!(get("bool").data::<u8>().unwrap(), [1, 0, 1]);
    let base = |i: usize, j: usize| (i * 6 + j) as f32 / 4.0 - 1.0;
    let view = |n: &str, rows: usize, cols: usize, at: &dyn Fn(usize, usize) -> f32| {
        let t = get(n);
        let expected: Vec<f32> = (0..rows * cols).map(|k| at(k / cols, k % cols)).collect();
        assert_eq!(t.shape(), Shape::from([rows, cols]), "{n}");
        assert_eq!(t.f32s().unwrap(), expected, "{n}");
    };
    view("base", 4, 6, &base);
    view("transposed", 6, 4, &|i, j| base(j, i));
    view("slice", 2, 6, &|i, j| base(i + 1, j));
    view("columns", 4, 3, &|i, j| base(i, 2 * j + 1));
    view("expanded", 2, 3, &|i, _| base(0, i));
    view("empty", 0, 3, &|_, _| 0.0);
    assert_eq!(get("scalar").item().unwrap(), 2.5);
    assert_eq!(get("parameter").f32s().unwrap(), [-1.0, -0.75]);
    assert_eq!(f.scalars()["size.1"], Scalar::Int(2));
}

#[test]
fn compressed_archives_and_byte_orders() {
    let pkl = Pickle::new().op(op::EMPTY_DICT).str("w").tensor(&GOOD).op(op::SETITEM).stop();
    let data: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let with = |order: &[u8], method| {
        archive(&[("n/data.pkl", &pkl), ("n/byteorder", order), ("n/data/0", &data)], method)
    };
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        assert_eq!(read(&with(b"little", method)).f32s().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(refused(&with(b"big", method)).to_string().contains("\"big\""));
    }
    // A part of a compressed storage.
    let part = Described { offset: 2, sizes: &[2], strides: &[2], ..GOOD };
    let pkl = Pickle::new().op(op::EMPTY_DICT).str("w").tensor(&part).op(op::SETITEM).stop();
    let bytes = archive(&[("n/data.pkl", &pkl), ("n/data/0", &data)], CompressionMethod::Deflated);
    assert_eq!(read(&bytes).f32s().unwrap(), [2.0, 4.0]);
}

#[test]
fn views_that_lie_are_refused() {
    assert_eq!(read(&one_tensor(&GOOD)).f32s().unwrap().len(), 6);
    let cases = [
        (Described { offset: 1, ..GOOD }, "outside"),
        (Described { offset: -1, ..GOOD }, "negative"),
        (Described { strides: &[-3, 1], ..GOOD }, "negative"),
        (Described { sizes: &[-2, 3], ..GOOD }, "negative"),
        (Described { strides: &[1], ..GOOD }, "number of strides"),
        (Described { sizes: &[2, 4], ..GOOD }, "outside"),
        (Described { strides: &[i64::MAX, i64::MAX], ..GOOD }, "outside"),
        (Described { offset: 7, sizes: &[0], strides: &[1], ..GOOD }, "outside"),
        (Described { sizes: &[1 << 40], strides: &[0], ..GOOD }, "expanded"),
        (Described { sizes: &[i64::MAX, i64::MAX], strides: &[0, 0], ..GOOD }, "memory can address"),
        (Described { sizes: &[1; 7], strides: &[1; 7], ..GOOD }, "dimensions"),
        (Described { sizes: &[1; 17], strides: &[1; 17], ..GOOD }, "dimensions"),
        (Described { numel: 7, ..GOOD }, "elements of F32 are claimed"),
        (Described { numel: 5, sizes: &[5], strides: &[1], ..GOOD }, "elements of F32 are claimed"),
        (Described { numel: -6, ..GOOD }, "negative length"),
        (Described { numel: i64::MAX, ..GOOD }, "elements of F32 are claimed"),
        (Described { storage: "DoubleStorage", ..GOOD }, "elements of F64 are claimed"),
        (Described { key: "1", ..GOOD }, "missing"),
        (Described { key: "../../version", ..GOOD }, "missing"),
        (Described { storage: "ComplexFloatStorage", ..GOOD }, "torch.ComplexFloatStorage"),
    ];
    for (t, message) in &cases {
        let (_dir, file) = open(&one_tensor(t));
        let e = file.err().expect("must be refused");
        assert!(e.file().is_some() && e.to_string().contains(message), "{message}: {e}");
    }
}

#[test]
fn globals_outside_the_list_are_refused_by_name() {
    let call = |p: Pickle| p.str("echo").op(op::TUPLE1).op(op::REDUCE).stop();
    let stack = Pickle::new().str("posix").str("system").op(op::STACK_GLOBAL);
    for pkl in [call(Pickle::new().global("posix", "system")), call(stack)] {
        let e = refused(&with_pickle(&pkl));
        assert!(e.is_format(), "{e}");
        let text = e.to_string();
        assert!(text.contains("`posix.system`") && text.contains("nothing was executed"), "{text}");
    }
    for (module, name) in [
        ("builtins", "eval"),
        ("numpy.core.multiarray", "scalar"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "defaultdict"),
    ] {
        let e = refused(&with_pickle(&Pickle::new().global(module, name).stop()));
        assert!(e.to_string().contains(&format!("`{module}.{name}`")), "{e}");
    }
    // Control characters of a hostile name do not reach the terminal.
    let e = refused(&with_pickle(&Pickle::new().global("a\x1b[31m", "b").stop()));
    assert!(!e.to_string().contains('\x1b'), "{e}");
}

#[test]
fn opcodes_outside_the_list_are_refused() {
    for (code, name) in [(b'i', "INST"), (b'o', "OBJ"), (0x81, "NEWOBJ"), (0x92, "NEWOBJ_EX"), (0x82, "EXT")]
    {
        let e = load(Pickle::new().global("collections", "OrderedDict").op(code).stop()).unwrap_err();
        assert!(e.to_string().contains(name) && e.to_string().contains("nothing was executed"), "{e}");
    }
    assert!(load(vec![op::PROTO, 1, op::NONE, op::STOP]).is_err(), "protocol 1");
    assert!(load(vec![op::PROTO, 6, op::NONE, op::STOP]).is_err(), "protocol 6");
    assert!(load(vec![b'I', b'1', b'\n', op::STOP]).is_err(), "text integers of protocol 0");
}

#[test]
fn malformed_pickles_are_errors() {
    let p = Pickle::new;
    let cases: Vec<(&str, Pickle)> = vec![
        ("nothing on the stack", p()),
        ("pop below a mark", p().op(op::NONE).op(op::MARK).op(op::APPEND)),
        ("no mark", p().op(op::NONE).op(op::TUPLE)),
        ("open mark", p().op(op::MARK).op(op::NONE)),
        ("left over", p().op(op::NONE).op(op::NONE)),
        ("tuple below a mark", p().op(op::NONE).op(op::MARK).op(op::NONE).op(op::TUPLE2)),
        ("unset memo", p().op(op::BINGET).op(0)),
        ("memo of nothing", p().op(op::BINPUT).op(0)),
        ("huge memo index", p().op(op::LONG_BINGET).raw(&u32::MAX.to_le_bytes())),
        ("append to a dict", p().op(op::EMPTY_DICT).op(op::NONE).op(op::APPEND)),
        ("item of a list", p().op(op::EMPTY_LIST).op(op::NONE).op(op::NONE).op(op::SETITEM)),
        ("odd items", p().op(op::EMPTY_DICT).op(op::MARK).op(op::NONE).op(op::SETITEMS)),
        ("call of a string", p().str("a").op(op::EMPTY_TUPLE).op(op::REDUCE)),
        ("call without a tuple", p().global("torch", "Size").op(op::NONE).op(op::REDUCE)),
        (
            "dict of pairs",
            p().global("collections", "OrderedDict").op(op::EMPTY_LIST).op(op::TUPLE1).op(op::REDUCE),
        ),
        ("call of a constant", p().global("torch", "float32").op(op::EMPTY_TUPLE).op(op::REDUCE)),
        ("attributes of a string", p().str("a").op(op::EMPTY_DICT).op(op::BUILD)),
        ("persistent id of a string", p().str("a").op(op::BINPERSID)),
        ("global of numbers", p().int(1).int(2).op(op::STACK_GLOBAL)),
        ("not UTF-8", p().op(op::SHORT_BINUNICODE).op(1).op(0xff)),
        ("long name", p().op(op::GLOBAL).raw(&[b'a'; 600])),
    ];
    for (what, pickle) in cases {
        let e = load(pickle.stop()).expect_err(what);
        assert!(e.is_format() && e.remedy().is_some(), "{what}: {e}");
    }
    // Lengths beyond the file, before anything of that length is allocated.
    for (code, length) in [
        (op::LONG4, &u32::MAX.to_le_bytes()[..]),
        (op::LONG1, &[255]),
        (op::BINUNICODE, &u32::MAX.to_le_bytes()),
        (op::BINUNICODE8, &u64::MAX.to_le_bytes()),
        (op::SHORT_BINUNICODE, &[200]),
        (op::BINBYTES, &u32::MAX.to_le_bytes()),
        (op::FRAME, &u64::MAX.to_le_bytes()),
    ] {
        let e = load(p().op(code).raw(length).stop()).unwrap_err();
        assert!(e.to_string().contains("announced"), "{e}");
    }
    let whole = Pickle::new().op(op::EMPTY_DICT).str("w").tensor(&GOOD).op(op::SETITEM).stop();
    for n in 0..whole.len() {
        assert!(load(whole[..n].to_vec()).is_err(), "cut at {n}");
    }
}

#[test]
fn integers_of_every_width() {
    let p = Pickle::new()
        .op(op::EMPTY_LIST)
        .op(op::MARK)
        .raw(&[op::LONG1, 0, op::LONG1, 1, 0xff, op::LONG1, 2, 0, 1, op::BININT2, 0xff, 0xff])
        .raw(&[op::LONG1, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0])
        .int(i64::MIN)
        .op(op::APPENDS)
        .stop();
    let (_dir, file) = open(&with_pickle(&p));
    let file = file.unwrap();
    let expected = [("0", 0), ("1", -1), ("2", 256), ("3", 65535), ("5", i64::MIN)];
    let expected: Vec<_> = expected.iter().map(|(n, v)| (n.to_string(), Scalar::Int(*v))).collect();
    assert_eq!(file.scalars().clone().into_iter().collect::<Vec<_>>(), expected);
}

/// Structures that are small as a file and endless as a tree.
#[test]
fn bombs_are_refused() {
    // A dict that contains itself.
    let cycle =
        Pickle::new().op(op::EMPTY_DICT).raw(&[op::BINPUT, 0]).str("a").raw(&[op::BINGET, 0]).op(op::SETITEM);
    assert!(refused(&with_pickle(&cycle.stop())).to_string().contains("nested"));
    // The same with fan-out, and a pyramid of shared lists with 10^40 leaves.
    let mut fan = Pickle::new().op(op::EMPTY_LIST).raw(&[op::BINPUT, 0]).op(op::MARK);
    let mut pyramid = Pickle::new().op(op::NONE).raw(&[op::BINPUT, 0]).op(b'\x85');
    for _ in 0..10 {
        fan = fan.raw(&[op::BINGET, 0]);
    }
    for level in 0..40 {
        pyramid = pyramid.raw(&[op::BINPUT, level + 1]);
        let ten = [op::BINGET, level + 1].repeat(9);
        pyramid =
            pyramid.op(op::EMPTY_LIST).op(op::MARK).raw(&[op::BINGET, level + 1]).raw(&ten).op(op::APPENDS);
        // Keeps one value on the stack: the new list, in a tuple with the old one.
        pyramid = pyramid.op(op::TUPLE2);
    }
    for bomb in [fan.op(op::APPENDS).stop(), pyramid.stop()] {
        let e = refused(&with_pickle(&bomb)).to_string();
        assert!(e.contains("no end") || e.contains("nested"), "{e}");
    }
    // One long key, used again and again.
    let mut keys = Pickle::new().op(op::EMPTY_LIST).op(op::MARK).op(op::EMPTY_DICT).str(&"k".repeat(100_000));
    keys = keys.raw(&[op::BINPUT, 0]).op(op::NONE).op(op::SETITEM);
    for _ in 0..10_000 {
        keys = keys.op(op::EMPTY_DICT).raw(&[op::BINGET, 0]).op(op::NONE).op(op::SETITEM);
    }
    assert!(refused(&with_pickle(&keys.op(op::APPENDS).stop())).to_string().contains("no end"));
    // Depth, as marks and as finished containers.
    let marks = Pickle::new().raw(&[op::MARK; 100_000]).stop();
    assert!(load(marks).unwrap_err().to_string().contains("deep"));
    let mut deep = Pickle::new().op(op::NONE);
    for _ in 0..100_000 {
        deep = deep.op(op::TUPLE1);
    }
    assert!(refused(&with_pickle(&deep.stop())).to_string().contains("deep"));
    // Length.
    let long = Pickle::new().raw(&[op::FRAME, 0, 0, 0, 0, 0, 0, 0, 0].repeat(4_000_001)).op(op::NONE).stop();
    assert!(load(long).unwrap_err().to_string().contains("opcodes"));
}

#[test]
fn ambiguous_and_nameless_keys_are_refused() {
    let two = Pickle::new()
        .op(op::EMPTY_DICT)
        .op(op::MARK)
        .str("a.b")
        .tensor(&GOOD)
        .str("a")
        .op(op::EMPTY_DICT)
        .str("b")
        .tensor(&GOOD)
        .op(op::SETITEM)
        .op(op::SETITEMS)
        .stop();
    let e = refused(&with_pickle(&two));
    assert!(e.key() == Some("a.b") && e.to_string().contains("two tensors"), "{e}");
    let tuple = Pickle::new().op(op::EMPTY_DICT).op(op::EMPTY_TUPLE).tensor(&GOOD).op(op::SETITEM).stop();
    assert!(refused(&with_pickle(&tuple)).to_string().contains("dict key"));
}

#[test]
fn other_files_are_refused_by_name() {
    let mut legacy =
        vec![0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
    legacy.resize(100, 0);
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let script = archive(&[("m/data.pkl", b"x"), ("m/constants.pkl", b"x")], CompressionMethod::Stored);
    let plain = archive(&[("hello.txt", b"x")], CompressionMethod::Stored);
    let two = archive(&[("a/data.pkl", b"x"), ("b/data.pkl", b"x")], CompressionMethod::Stored);
    for (bytes, message) in [
        (legacy, "before 1.6"),
        (tar, "tar"),
        (b"\x80\x02}.".to_vec(), "bare pickle"),
        (b"hello".to_vec(), "no PyTorch zip archive"),
        (Vec::new(), "no PyTorch zip archive"),
        (script, "TorchScript"),
        (plain, "data.pkl"),
        (two, "data.pkl"),
        (b"PK\x03\x04".to_vec(), "zip"),
    ] {
        let e = refused(&bytes);
        assert!(e.is_format() && e.to_string().contains(message), "{message}: {e}");
    }
    assert!(PtFile::open("/nonexistent/x.pt").err().unwrap().is_io());
}

#[test]
fn truncated_and_damaged_archives_are_errors() {
    let good = one_tensor(&GOOD);
    for n in 0..good.len() {
        let (_dir, file) = open(&good[..n]);
        assert!(file.is_err(), "cut at {n}");
    }
    // A flipped bit in the elements fails the checksum.
    let at = good.windows(4).position(|w| w == 5f32.to_le_bytes()).unwrap();
    let mut bad = good.clone();
    bad[at] ^= 1;
    let (_dir, file) = open(&bad);
    let e = file.unwrap().get("w").unwrap_err();
    assert!(e.file().is_some() && e.key() == Some("w"), "{e}");
    // The central directory claims 4 GiB for an entry.
    let mut bad = good.clone();
    let at = bad.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    let entry =
        bad.windows(4).enumerate().filter(|(_, w)| w == b"PK\x01\x02").map(|(i, _)| i).nth(1).unwrap();
    assert!(entry < at);
    for field in [entry + 20, entry + 24] {
        bad[field..field + 4].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    }
    let (_dir, file) = open(&bad);
    assert!(file.err().expect("must be refused").is_format());
}

/// Opens and reads everything; only that it ends without a panic counts.
fn exercise(bytes: &[u8]) {
    let (_dir, file) = open(bytes);
    if let Ok(file) = file {
        for name in file.names() {
            let (dtype, shape) = file.info(name).unwrap();
            if let Ok(t) = file.get(name) {
                assert_eq!((t.dtype(), t.shape()), (dtype, shape));
                assert!(t.elems() <= bytes.len().max(1 << 16), "{name} is larger than its file");
            }
        }
    }
}

/// Changes some bytes of a file.
fn mutate(bytes: &mut [u8], changes: &[(prop::sample::Index, u8)]) {
    for (at, value) in changes {
        let i = at.index(bytes.len());
        bytes[i] = *value;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_pickles_never_panic(body in prop::collection::vec(any::<u8>(), 0..400)) {
        load(Pickle::new().raw(&body).stop()).ok();
    }

    #[test]
    fn random_opcodes_never_panic(body in prop::collection::vec(prop::sample::select(vec![
        op::MARK, op::NONE, op::REDUCE, op::EMPTY_DICT, op::EMPTY_LIST, op::EMPTY_TUPLE, op::TUPLE, op::TUPLE1,
        op::TUPLE3, op::APPEND, op::APPENDS, op::SETITEM, op::SETITEMS, op::BUILD, op::BINPERSID, op::MEMOIZE,
        op::BINGET, op::BINPUT, op::STACK_GLOBAL, 0, 1, 2,
    ]), 0..200)) {
        exercise(&with_pickle(&Pickle::new().raw(&body).stop()));
    }

    #[test]
    fn random_files_never_panic(body in prop::collection::vec(any::<u8>(), 0..600), zip in any::<bool>()) {
        let mut bytes = if zip { b"PK\x03\x04".to_vec() } else { Vec::new() };
        bytes.extend(body);
        exercise(&bytes);
    }

    #[test]
    fn mutated_pickles_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut pkl = Pickle::new().op(op::EMPTY_DICT).str("w").tensor(&GOOD).op(op::SETITEM).stop();
        mutate(&mut pkl, &changes);
        exercise(&with_pickle(&pkl));
    }

    #[test]
    fn mutated_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        shorten in any::<bool>(),
        training in any::<bool>(),
    ) {
        let name = if training { "torch_training.pt" } else { "torch_kinds.pt" };
        let mut bytes = std::fs::read(fixture(name)).unwrap();
        mutate(&mut bytes, &changes);
        if shorten {
            bytes.truncate(cut.index(bytes.len()));
        }
        exercise(&bytes);
    }
}

/// A zip64 end record that claims more entries than a file of this size can have must not reserve memory for them.
#[test]
fn claimed_entry_counts_are_not_believed() {
    let good = one_tensor(&GOOD);
    let end = good.len() - 22;
    let directory = u64::from(u32::from_le_bytes(good[end + 16..end + 20].try_into().unwrap()));
    let size = u64::from(u32::from_le_bytes(good[end + 12..end + 16].try_into().unwrap()));
    for (count, size, offset) in [
        (1u64 << 40, 1u64 << 50, 1u64 << 60),
        (1 << 40, 1 << 50, directory),
        (1 << 40, size, directory),
        (1 << 40, 1 << 50, 1 << 41),
        (u64::MAX, u64::MAX, u64::MAX),
        (200, 1 << 50, directory),
    ] {
        let mut bytes = good[..end].to_vec();
        bytes.extend(b"PK\x06\x06");
        bytes.extend(44u64.to_le_bytes());
        bytes.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for v in [count, count, size, offset] {
            bytes.extend(v.to_le_bytes());
        }
        bytes.extend(b"PK\x06\x07\0\0\0\0");
        bytes.extend((end as u64).to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(b"PK\x05\x06\0\0\0\0");
        bytes.extend([0xff; 12]);
        bytes.extend([0, 0]);
        let (_dir, file) = open(&bytes);
        assert!(file.err().expect("must be refused").is_format(), "{count} entries");
    }
}
