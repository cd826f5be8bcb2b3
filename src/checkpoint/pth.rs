//! Writing PyTorch's zip checkpoints.
//!
//! The file is what `torch.save` writes: an uncompressed zip archive of a pickle (protocol 2) that describes the objects,
//! and one entry of raw elements per tensor, each beginning at a multiple of 64 bytes. The pickle holds dicts, strings,
//! numbers and tensors only, so `torch.load(path, weights_only=True)` reads it. The bytes depend on the content alone: no
//! date, no name of the file.

use super::opcodes as op;
use crate::base::DType;
use crate::error::{Error, Result};
use crate::tensor::{CpuBuffer, Storage, Tensor, write_atomically};
use std::io::{self, Write};
use std::path::Path;

/// Where the elements of a tensor begin, in bytes; `torch.load(mmap=True)` profits from it.
const ALIGNMENT: u64 = 64;
/// The largest archive: its directory has 32-bit offsets. 64 MiB of them are left to names and headers.
const MAX_BYTES: u64 = (4 << 30) - (64 << 20);
/// The most tensors: the directory counts its entries in 16 bits, and there are three more.
const MAX_TENSORS: usize = u16::MAX as usize - 3;

/// A value of a PyTorch checkpoint.
#[derive(Clone, Debug)]
pub enum PthValue<'a> {
    /// A contiguous tensor with a storage of its own.
    Tensor(&'a Tensor),
    /// A string.
    Str(&'a str),
    /// An integer.
    Int(i64),
    /// A boolean.
    Bool(bool),
    /// A dict in the given order.
    Dict(Vec<(&'a str, PthValue<'a>)>),
}

impl<'a> PthValue<'a> {
    /// A flat dict of tensors: a state dict.
    pub fn state_dict(tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) -> Self {
        PthValue::Dict(tensors.into_iter().map(|(k, t)| (k.as_str(), PthValue::Tensor(t))).collect())
    }
}

/// Writes `value` as a PyTorch checkpoint, through a temporary name and a rename. The same value gives the same bytes.
///
/// # Errors
/// A tensor is not on the CPU; the file would exceed the 4 GiB or 65,532 tensors of a plain zip archive; the file cannot
/// be written.
pub fn write_pth(path: impl AsRef<Path>, value: &PthValue<'_>) -> Result<()> {
    let path = path.as_ref();
    let mut storages = Vec::new();
    let pickle = Pickle::new().value(value, &mut storages)?.stop();
    let total = storages.iter().map(|s| s.as_bytes().len() as u64).sum::<u64>() + pickle.len() as u64;
    if total > MAX_BYTES || storages.len() > MAX_TENSORS {
        return Err(Error::usage(format!(
            "{} tensors of {total} bytes do not fit into a plain zip archive",
            storages.len()
        ))
        .with_file(path)
        .with_remedy("write safetensors instead"));
    }
    write_atomically(path, |out| {
        let mut zip = Zip { out, at: 0, directory: Vec::new(), entries: 0 };
        zip.entry("archive/data.pkl", &pickle)?;
        zip.entry("archive/byteorder", b"little")?;
        for (i, storage) in storages.iter().enumerate() {
            zip.entry(&format!("archive/data/{i}"), storage.as_bytes())?;
        }
        zip.entry("archive/version", b"3\n")?;
        zip.finish()
    })
}

/// The storage class of an element type, in the module `torch`.
fn storage_class(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "FloatStorage",
        DType::F64 => "DoubleStorage",
        DType::F16 => "HalfStorage",
        DType::Bf16 => "BFloat16Storage",
        DType::U8 => "ByteStorage",
        DType::I64 => "LongStorage",
    }
}

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

    /// Appends `value`, and its tensors' elements to `storages`.
    fn value<'a>(self, value: &PthValue<'a>, storages: &mut Vec<&'a CpuBuffer>) -> Result<Self> {
        Ok(match value {
            PthValue::Str(s) => self.str(s),
            PthValue::Int(v) => self.int(*v),
            PthValue::Bool(true) => self.op(op::NEWTRUE),
            PthValue::Bool(false) => self.op(op::NEWFALSE),
            PthValue::Dict(items) => {
                let mut p = self.op(op::EMPTY_DICT).op(op::MARK);
                for (key, value) in items {
                    p = p.str(key).value(value, storages).map_err(|e| e.with_key(*key))?;
                }
                p.op(op::SETITEMS)
            }
            PthValue::Tensor(t) => {
                let Storage::Cpu(elements) = t.storage() else {
                    return Err(Error::device(format!("{t:?} is not in host memory and cannot be written"))
                        .with_remedy("copy it to the CPU first"));
                };
                let sizes: Vec<i64> = t.shape().iter().map(|&n| n as i64).collect();
                let mut strides = vec![1; sizes.len()];
                for i in (1..sizes.len()).rev() {
                    strides[i - 1] = strides[i] * sizes[i].max(1);
                }
                let key = storages.len().to_string();
                storages.push(elements);
                self.tensor(&Described {
                    storage: storage_class(t.dtype()),
                    key: &key,
                    numel: t.elems() as i64,
                    offset: 0,
                    sizes: &sizes,
                    strides: &strides,
                })
            }
        })
    }
}

/// A zip archive of stored entries under construction (PKWARE's APPNOTE 6.3, sections 4.3 and 4.4).
struct Zip<'w> {
    out: &'w mut dyn Write,
    /// Bytes written.
    at: u64,
    /// The central directory so far.
    directory: Vec<u8>,
    entries: u16,
}

/// Version 1.0, no flags, stored, at midnight, on 1 January 1980: what stands in both headers of an entry before its
/// checksum.
const COMMON: [u8; 10] = [10, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];

impl Zip<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn entry(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let begin = u32::try_from(self.at).map_err(io::Error::other)?;
        let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let mut common = COMMON.to_vec();
        common.extend([crc.sum(), size, size].iter().flat_map(|v| v.to_le_bytes()));
        common.extend((name.len() as u16).to_le_bytes());

        // A field that readers skip, as long as it takes to align the elements; its own head has four bytes.
        let data = self.at + 30 + name.len() as u64 + 4;
        let pad = data.next_multiple_of(ALIGNMENT) - data;
        self.put(b"PK\x03\x04")?;
        self.put(&common)?;
        self.put(&(pad as u16 + 4).to_le_bytes())?;
        self.put(name.as_bytes())?;
        self.put(b"FB")?;
        self.put(&(pad as u16).to_le_bytes())?;
        self.put(&vec![b'Z'; pad as usize])?;
        self.put(bytes)?;

        self.directory.extend(b"PK\x01\x02\x0a\x00");
        self.directory.extend(common);
        // No extra field, no comment, disk 0, no attributes.
        self.directory.extend([0; 12]);
        self.directory.extend(begin.to_le_bytes());
        self.directory.extend(name.as_bytes());
        self.entries += 1;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        let begin = u32::try_from(self.at).map_err(io::Error::other)?;
        let directory = std::mem::take(&mut self.directory);
        self.put(&directory)?;
        self.put(b"PK\x05\x06\x00\x00\x00\x00")?;
        let entries = self.entries.to_le_bytes();
        self.put(&entries)?;
        self.put(&entries)?;
        self.put(&(directory.len() as u32).to_le_bytes())?;
        self.put(&begin.to_le_bytes())?;
        self.put(&[0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PtFile, Scalar};
    use super::*;
    use std::collections::BTreeMap;

    fn sample() -> BTreeMap<String, Tensor> {
        let values = Tensor::from_vec([3, 1, 2], vec![1.0f32, -2.5, 0.0, 7.0, 250.0, 3.0]).unwrap();
        let mut all: BTreeMap<String, Tensor> = [DType::F32, DType::F16, DType::Bf16, DType::F64, DType::I64]
            .map(|d| (d.to_string(), values.to_dtype(d).unwrap()))
            .into();
        all.insert("a.b.c".into(), Tensor::from_vec([2], vec![3u8, 255]).unwrap());
        all.insert("scalar".into(), Tensor::from_vec([], vec![i64::MIN]).unwrap());
        all.insert("empty".into(), Tensor::zeros([0, 4]));
        all
    }

    fn bytes(t: &Tensor) -> Vec<u8> {
        let Storage::Cpu(b) = t.storage() else { panic!("not on the CPU") };
        b.as_bytes().to_vec()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pth");
        let all = sample();
        let value = PthValue::Dict(vec![
            ("state_dict", PthValue::state_dict(&all)),
            ("author", PthValue::Str("dtk, naïve")),
            ("meta", PthValue::Dict(vec![("big", PthValue::Int(i64::MAX)), ("small", PthValue::Int(-7))])),
            ("yes", PthValue::Bool(true)),
            ("no", PthValue::Bool(false)),
            ("nothing", PthValue::Dict(Vec::new())),
        ]);
        write_pth(&path, &value).unwrap();
        let file = PtFile::open(&path).unwrap();
        assert_eq!(file.names().count(), all.len());
        for (name, t) in &all {
            let name = format!("state_dict.{name}");
            assert_eq!(file.info(&name), Some((t.dtype(), t.shape())), "{name}");
            assert_eq!(bytes(&file.get(&name).unwrap()), bytes(t), "{name}");
        }
        let scalars = [
            ("author", Scalar::Str("dtk, naïve".into())),
            ("meta.big", Scalar::Int(i64::MAX)),
            ("meta.small", Scalar::Int(-7)),
            ("no", Scalar::Bool(false)),
            ("yes", Scalar::Bool(true)),
        ];
        assert_eq!(file.scalars(), &scalars.map(|(k, v)| (k.to_string(), v)).into());
        // Another name, the same bytes; and nothing else is left in the folder.
        let again = dir.path().join("other.pt");
        write_pth(&again, &value).unwrap();
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&again).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    /// Another implementation of the zip format agrees, down to checksums; elements begin where they should.
    #[test]
    fn the_archive_is_a_plain_aligned_zip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pth");
        let all = sample();
        write_pth(&path, &PthValue::state_dict(&all)).unwrap();
        let mut zip = zip::ZipArchive::new(std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(zip.len(), all.len() + 3);
        for i in 0..zip.len() {
            let mut entry = zip.by_index(i).unwrap();
            assert_eq!(entry.compression(), zip::CompressionMethod::Stored);
            assert_eq!(entry.data_start().unwrap() % ALIGNMENT, 0, "{i}");
            let mut data = Vec::new();
            io::copy(&mut entry, &mut data).unwrap();
            if entry.name().unwrap() == "archive/version" {
                assert_eq!(data, b"3\n");
            }
        }
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pth");
        let planned = BTreeMap::from([("conv.weight".to_string(), Tensor::meta([2], DType::F32, None))]);
        let e = write_pth(&path, &PthValue::state_dict(&planned)).unwrap_err();
        assert!(e.is_device() && e.key() == Some("conv.weight"), "{e}");
        let one = Tensor::zeros([1]);
        let names: Vec<String> = (0..=MAX_TENSORS).map(|i| i.to_string()).collect();
        let e = write_pth(&path, &PthValue::state_dict(names.iter().map(|n| (n, &one)))).unwrap_err();
        assert!(e.is_usage() && e.remedy().unwrap().contains("safetensors"), "{e}");
        assert!(!path.exists());
        let e = write_pth(dir.path().join("no/such/folder.pth"), &PthValue::Int(1)).unwrap_err();
        assert!(e.is_io(), "{e}");
    }
}
