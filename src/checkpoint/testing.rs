//! A pickle and archive writer for tests: what `torch.save` writes, and what it never would.

use super::opcodes as op;
use std::io::{Cursor, Write};
use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

/// A pickle under construction.
#[derive(Clone)]
pub(super) struct Pickle(pub Vec<u8>);

/// A tensor as torch describes it.
pub(super) struct Described<'a> {
    pub storage: &'a str,
    pub key: &'a str,
    pub numel: i64,
    pub offset: i64,
    pub sizes: &'a [i64],
    pub strides: &'a [i64],
}

impl Pickle {
    pub(super) fn new() -> Self {
        Pickle(vec![op::PROTO, 2])
    }

    pub(super) fn op(mut self, code: u8) -> Self {
        self.0.push(code);
        self
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn str(self, s: &str) -> Self {
        self.op(op::BINUNICODE).raw(&(s.len() as u32).to_le_bytes()).raw(s.as_bytes())
    }

    pub(super) fn int(self, v: i64) -> Self {
        match i32::try_from(v) {
            Ok(v) => self.op(op::BININT).raw(&v.to_le_bytes()),
            Err(_) => self.op(op::LONG1).op(8).raw(&v.to_le_bytes()),
        }
    }

    pub(super) fn global(self, module: &str, name: &str) -> Self {
        self.op(op::GLOBAL).raw(module.as_bytes()).op(b'\n').raw(name.as_bytes()).op(b'\n')
    }

    pub(super) fn ints(self, v: &[i64]) -> Self {
        v.iter().fold(self.op(op::MARK), |p, &v| p.int(v)).op(op::TUPLE)
    }

    pub(super) fn storage(self, kind: &str, key: &str, numel: i64) -> Self {
        self.op(op::MARK)
            .str("storage")
            .global("torch", kind)
            .str(key)
            .str("cpu")
            .int(numel)
            .op(op::TUPLE)
            .op(op::BINPERSID)
    }

    pub(super) fn tensor(self, t: &Described) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(op::MARK)
            .storage(t.storage, t.key, t.numel)
            .int(t.offset)
            .ints(t.sizes)
            .ints(t.strides)
            .op(op::NEWFALSE)
            .global("collections", "OrderedDict")
            .op(op::EMPTY_TUPLE)
            .op(op::REDUCE)
            .op(op::TUPLE)
            .op(op::REDUCE)
    }

    pub(super) fn stop(self) -> Vec<u8> {
        self.op(op::STOP).0
    }
}

/// A zip archive in memory.
pub(super) fn archive(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut w = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        w.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        w.write_all(bytes).unwrap();
    }
    w.finish().unwrap().into_inner()
}

/// A checkpoint of one f32 tensor `w` over a storage of six elements 0.0, 1.0, ..., described by `t`.
pub(super) fn one_tensor(t: &Described) -> Vec<u8> {
    let pkl = Pickle::new().op(op::EMPTY_DICT).str("w").tensor(t).op(op::SETITEM).stop();
    with_pickle(&pkl)
}

/// The archive of [`one_tensor`] with another pickle.
pub(super) fn with_pickle(pkl: &[u8]) -> Vec<u8> {
    let data: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let entries =
        [("archive/data.pkl", pkl), ("archive/data/0", &data), ("archive/version", b"3\n".as_slice())];
    archive(&entries, CompressionMethod::Stored)
}
