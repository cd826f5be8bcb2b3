//! Archives for tests: what `torch.save` writes, and what it never would.

use super::opcodes as op;
pub(super) use super::pth::{Described, Pickle};
use std::io::{Cursor, Write};
use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

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
