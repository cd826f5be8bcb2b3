//! safetensors in and out.

use super::{CpuBuffer, Storage, Tensor};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use safetensors::{Dtype as StDtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The bytes of a file.
enum Bytes {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

/// A memory-mapped safetensors file. Nothing is read before it is asked for, and the header is validated on opening:
/// a truncated file, an oversized or malformed header and overlapping or missing data are errors.
pub struct SafetensorsFile {
    path: PathBuf,
    map: Bytes,
    entries: BTreeMap<String, (DType, Shape, std::ops::Range<usize>)>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Opens and validates `path`.
    ///
    /// # Errors
    /// Unreadable file, malformed header, unsupported dtype or shape.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, "cannot open", e))?;
        let len = file.metadata().map_err(|e| Error::io(path, "cannot stat", e))?.len();
        if len < 8 {
            return Err(malformed(path, &format!("{len} bytes are too few for a header")));
        }
        // SAFETY: the map is read-only. dtk never writes a checkpoint in place (temp name, then rename), so the file
        // behind the map does not change; if another program truncates it, access faults as with any mapped file.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, "cannot map", e))?;
        Self::read(path, Bytes::Mapped(map))
    }

    /// Validates a file that is part of the program; `label` stands where errors name the file.
    ///
    /// # Errors
    /// As [`SafetensorsFile::open`].
    pub fn from_static(label: impl AsRef<Path>, bytes: &'static [u8]) -> Result<Self> {
        Self::read(label.as_ref(), Bytes::Static(bytes))
    }

    fn read(path: &Path, map: Bytes) -> Result<Self> {
        let (header_len, header) = SafeTensors::read_metadata(&map).map_err(|e| malformed(path, &e))?;
        let base = 8 + header_len;
        let mut entries = BTreeMap::new();
        for (name, info) in header.tensors() {
            let dtype = match info.dtype {
                StDtype::F32 => DType::F32,
                StDtype::F64 => DType::F64,
                StDtype::F16 => DType::F16,
                StDtype::BF16 => DType::Bf16,
                StDtype::U8 => DType::U8,
                StDtype::I64 => DType::I64,
                other => {
                    return Err(Error::format(path, format!("dtype {other:?} is not supported"))
                        .with_key(name)
                        .with_remedy("convert the tensor to f32, f16, bf16, f64, u8 or i64"));
                }
            };
            let shape = Shape::from_slice(&info.shape).map_err(|e| e.with_file(path).with_key(&name))?;
            let (a, b) = info.data_offsets;
            entries.insert(name, (dtype, shape, base + a..base + b));
        }
        let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(SafetensorsFile { path: path.to_path_buf(), map, entries, metadata })
    }

    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The free-form metadata of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Dtype and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<(DType, Shape)> {
        self.entries.get(name).map(|(d, s, _)| (*d, *s))
    }

    /// Reads one tensor in its stored dtype and layout.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let Some((dtype, shape, range)) = self.entries.get(name) else {
            return Err(Error::checkpoint("no such tensor").with_file(&self.path).with_key(name));
        };
        let bytes = &self.map[range.clone()];
        CpuBuffer::from_bytes(*dtype, bytes)
            .ok_or_else(|| {
                Error::format(&self.path, "data length is no multiple of the element size").with_key(name)
            })
            .and_then(|b| {
                Tensor::new(*shape, Storage::Cpu(b)).map_err(|e| e.with_file(&self.path).with_key(name))
            })
    }
}

fn malformed(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::format(path, format!("not a valid safetensors file ({e})"))
        .with_remedy("check that the file was copied completely and is in the safetensors format")
}

/// Writes tensors to a safetensors file: to a temporary name beside it, flushed to disk, then renamed, so that the
/// file is either the old one or the whole new one. Tensors are written in the given order of names (sorted).
///
/// # Errors
/// A tensor is not on the CPU, or the file cannot be written.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    // Larger elements first keeps every tensor aligned to its element size, which the format asks for.
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by(|a, b| b.1.dtype().size().cmp(&a.1.dtype().size()).then(a.0.cmp(b.0)));
    let mut offset = 0usize;
    for (name, t) in &order {
        let dtype = match t.dtype() {
            DType::F32 => "F32",
            DType::F64 => "F64",
            DType::F16 => "F16",
            DType::Bf16 => "BF16",
            DType::U8 => "U8",
            DType::I64 => "I64",
        };
        let end = offset + t.bytes();
        header.insert(
            (*name).clone(),
            serde_json::json!({"dtype": dtype, "shape": &*t.shape(), "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut text = serde_json::to_vec(&header).expect("a JSON map of strings and numbers serialises");
    text.resize(text.len().next_multiple_of(8), b' ');
    write_atomically(path, |f| {
        f.write_all(&(text.len() as u64).to_le_bytes())?;
        f.write_all(&text)?;
        for (_, t) in &order {
            match t.storage() {
                Storage::Cpu(b) => f.write_all(b.as_bytes())?,
                Storage::Meta { .. } | Storage::Cuda(_) => {
                    let what = format!("{t:?} is not in host memory and cannot be written");
                    return Err(std::io::Error::other(what));
                }
            }
        }
        Ok(())
    })
}

/// Writes a file through a temporary name in the same folder, `fsync`, and a rename.
///
/// # Errors
/// The file cannot be written; the temporary file is removed.
pub fn write_atomically(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temp = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut w = std::io::BufWriter::with_capacity(1 << 20, File::create(&temp)?);
        fill(&mut w)?;
        let file = w.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(&temp, path)?;
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            // Makes the rename itself durable. Folders cannot be opened on every system; then the rename stands.
            if let Ok(d) = File::open(dir) {
                d.sync_all().ok();
            }
        }
        Ok(())
    };
    write().map_err(|e| {
        std::fs::remove_file(&temp).ok();
        Error::io(path, "cannot write", e)
            .with_remedy("check the free space and the permissions of the folder")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> BTreeMap<String, Tensor> {
        let t = |d| Tensor::from_vec([3], vec![1.0f32, -2.5, 0.0]).unwrap().to_dtype(d).unwrap();
        [DType::U8, DType::F32, DType::F16, DType::Bf16, DType::F64, DType::I64]
            .into_iter()
            .map(|d| (d.to_string(), t(d)))
            .collect()
    }

    #[test]
    fn round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let meta = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        write_safetensors(&path, &sample(), &meta).unwrap();
        let f = SafetensorsFile::open(&path).unwrap();
        assert_eq!(f.metadata(), &meta);
        for (name, t) in sample() {
            let (Storage::Cpu(a), b) = (t.storage(), f.get(&name).unwrap()) else { panic!() };
            let Storage::Cpu(b) = b.storage() else { panic!() };
            assert_eq!(a.as_bytes(), b.as_bytes(), "{name}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays behind");
    }

    #[test]
    fn lying_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        write_safetensors(&path, &sample(), &BTreeMap::new()).unwrap();
        let good = std::fs::read(&path).unwrap();
        let cut = |n: usize| good[..n].to_vec();
        let huge = {
            let mut v = good.clone();
            v[..8].copy_from_slice(&u64::MAX.to_le_bytes());
            v
        };
        let header = |json: &str, data: usize| {
            let mut v = (json.len() as u64).to_le_bytes().to_vec();
            v.extend(json.as_bytes());
            v.resize(v.len() + data, 0);
            v
        };
        let overlap = header(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
            12,
        );
        let lying_shape = header(r#"{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,8]}}"#, 8);
        let rank = header(r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#, 4);
        let dtype = header(r#"{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#, 4);
        for bytes in [cut(0), cut(7), cut(20), cut(good.len() - 1), huge, overlap, lying_shape, rank, dtype] {
            std::fs::write(&path, bytes).unwrap();
            let e = SafetensorsFile::open(&path).err().expect("must be refused");
            assert!(e.file().is_some(), "{e}");
        }
        assert!(SafetensorsFile::open(dir.path().join("absent")).err().unwrap().is_io());
    }
}
