//! PyTorch's zip checkpoints (`torch.save` since 1.6).
//!
//! Such a file is a zip archive of `<prefix>/data.pkl`, a pickle that describes the objects, and one entry
//! `<prefix>/data/<key>` of raw elements per storage. The pickle is read by a machine that can only build data
//! (see the module `pickle`); storages are read one by one when a tensor is asked for.

use super::flatten::{Scalar, flatten};
use super::node::{StorageRef, Stored};
use super::pickle;
use super::view::{View, dtype_of};
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use zip::{CompressionMethod, ZipArchive, result::ZipError};

/// The largest `data.pkl` that is read. Training checkpoints of large models have about one megabyte.
const MAX_PICKLE: u64 = 32 << 20;
/// Deflate cannot do better than 1032 to 1 (258 bytes per two bits); an entry that claims more lies.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// A PyTorch checkpoint (`.pt`, `.pth`, `.ckpt`) of the zip format.
///
/// Nested dicts and lists appear as dotted names (`state_dict.conv1.weight`, `optimizer.state.0.exp_avg`). Opening
/// reads only the description; [`PtFile::get`] reads the bytes of one tensor, so a file never lies in memory twice.
/// No code of the file is ever run: a pickle that asks for anything but tensors, containers, numbers and strings is
/// refused.
pub struct PtFile {
    path: PathBuf,
    archive: Mutex<ZipArchive<BufReader<File>>>,
    tensors: BTreeMap<String, Entry>,
    scalars: BTreeMap<String, Scalar>,
}

struct Entry {
    /// Index in the archive.
    index: usize,
    stored: bool,
    /// Length of the whole storage.
    bytes: u64,
    view: View,
    leaf: usize,
}

impl PtFile {
    /// Opens `path`, reads its description and checks every tensor against its storage.
    ///
    /// # Errors
    /// Unreadable file; not a zip archive (among them the formats before torch 1.6); TorchScript; big-endian data; a
    /// pickle with anything but plain data; storages that are missing or shorter than claimed; views that reach
    /// outside their storage.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |e| Error::io(path, "cannot read", e);
        let mut file = File::open(path).map_err(|e| Error::io(path, "cannot open", e))?;
        let file_len = file.metadata().map_err(io)?.len();
        let mut head = Vec::new();
        file.by_ref().take(512).read_to_end(&mut head).map_err(io)?;
        refuse_other_formats(path, &head)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| zip_error(path, e))?;

        let mut names = HashMap::with_capacity(archive.len());
        for i in 0..archive.len() {
            let name = archive.name_for_index(i).and_then(|n| n.ok()).map(std::borrow::Cow::into_owned);
            names.insert(name.unwrap_or_default(), i);
        }
        let prefix = find_prefix(path, names.keys())?;
        let zip = |archive: &ZipArchive<_>, index| Member::check(path, archive, index, file_len);

        if let Some(&i) = names.get(&format!("{prefix}byteorder")) {
            let member = zip(&archive, i)?;
            let order = member.read(path, &mut archive, 0..member.bytes.min(16))?;
            if order != b"little" {
                let order = String::from_utf8_lossy(&order).escape_debug().to_string();
                return Err(Error::format(
                    path,
                    format!("the byte order is \"{order}\", only \"little\" is read"),
                )
                .with_remedy("save the file again on a little-endian machine"));
            }
        }
        let member = zip(&archive, names[&format!("{prefix}data.pkl")])?;
        if member.bytes > MAX_PICKLE {
            let message = format!("data.pkl has {} bytes, at most {MAX_PICKLE} are read", member.bytes);
            return Err(Error::format(path, message)
                .with_remedy("save a plain state dict: torch.save(model.state_dict(), path)"));
        }
        let bytes = member.read(path, &mut archive, 0..member.bytes)?;
        let arena = pickle::load(path, &bytes)?;
        let leaves = flatten(path, &arena, bytes.len())?;

        let mut storages: HashMap<(&str, u64, usize), Member> = HashMap::new();
        let mut tensors = BTreeMap::new();
        for (name, (leaf, t)) in leaves.tensors {
            let s = &t.storage;
            let id = (&*s.key, s.numel, s.kind.size());
            let member = match storages.get(&id) {
                Some(m) => *m,
                None => {
                    let m = storage_member(path, &archive, &names, &prefix, s, file_len)
                        .map_err(|e| e.with_key(&name))?;
                    storages.insert(id, m);
                    m
                }
            };
            let view = View::check(path, t).map_err(|e| e.with_key(&name))?;
            tensors.insert(
                name,
                Entry { index: member.index, stored: member.stored, bytes: member.bytes, view, leaf },
            );
        }
        Ok(PtFile {
            path: path.to_path_buf(),
            archive: Mutex::new(archive),
            tensors,
            scalars: leaves.scalars,
        })
    }

    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Dotted tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The leaves that are no tensors (steps, learning rates, hyper-parameters), by dotted name.
    pub fn scalars(&self) -> &BTreeMap<String, Scalar> {
        &self.scalars
    }

    /// Dtype and shape of a tensor, as [`PtFile::get`] returns it: int8, int16 and int32 widen to i64, bool becomes u8.
    pub fn info(&self, name: &str) -> Option<(DType, Shape)> {
        self.tensors.get(name).map(|e| (dtype_of(e.view.kind), e.view.shape))
    }

    /// Where the last key begins in a dotted name, i.e. the length of the containers' part of it. Keys may hold dots
    /// themselves, so the name alone does not tell.
    pub(super) fn leaf_start(&self, name: &str) -> usize {
        self.tensors.get(name).map_or(0, |e| e.leaf)
    }

    /// Reads one tensor in its stored layout; non-contiguous views become contiguous.
    ///
    /// # Errors
    /// There is no such tensor, or its bytes cannot be read.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let Some(e) = self.tensors.get(name) else {
            return Err(Error::checkpoint("no such tensor").with_file(&self.path).with_key(name));
        };
        let member = Member { index: e.index, stored: e.stored, bytes: e.bytes };
        // A reader that panicked while it held the lock leaves at most another file position behind.
        let mut archive = self.archive.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = member.read(&self.path, &mut archive, e.view.bytes()).map_err(|e| e.with_key(name))?;
        drop(archive);
        e.view.gather(bytes).map_err(|e| e.with_file(&self.path).with_key(name))
    }
}

/// An archive entry whose claimed sizes are possible.
#[derive(Clone, Copy)]
struct Member {
    index: usize,
    stored: bool,
    bytes: u64,
}

impl Member {
    fn check<R: Read + Seek>(
        path: &Path,
        archive: &ZipArchive<R>,
        index: usize,
        file_len: u64,
    ) -> Result<Self> {
        let entry = archive.by_index_data(index).map_err(|e| zip_error(path, e))?;
        let (bytes, packed) = (entry.size(), entry.compressed_size());
        let stored = match entry.compression() {
            CompressionMethod::Stored => true,
            CompressionMethod::Deflated => false,
            other => {
                return Err(Error::format(path, format!("zip compression {other:?} is not supported"))
                    .with_remedy("save the file again with torch.save, which does not compress"));
            }
        };
        let most = if stored { packed } else { packed.saturating_mul(MAX_DEFLATE_RATIO) };
        if packed > file_len || bytes > most || (stored && bytes != packed) {
            let what = format!("a zip entry claims {bytes} bytes ({packed} packed) in a file of {file_len}");
            return Err(Error::format(path, what).with_remedy("copy the file again, it is damaged"));
        }
        Ok(Member { index, stored, bytes })
    }

    /// Reads `range` of the entry. The whole of an entry is compared with its checksum; a part cannot be.
    fn read<R: Read + Seek>(
        self,
        path: &Path,
        archive: &mut ZipArchive<R>,
        range: std::ops::Range<u64>,
    ) -> Result<Vec<u8>> {
        let short = || {
            Error::format(path, "a zip entry ends before its claimed length")
                .with_remedy("copy the file again, it is damaged")
        };
        let io = |e| {
            Error::io(path, "cannot read a zip entry", e).with_remedy("copy the file again, it is damaged")
        };
        let want = range.end - range.start;
        // A stored entry cannot be longer than the file; a deflated one grows only as far as it really goes.
        let room = if self.stored { want } else { 0 };
        let mut out = Vec::with_capacity(usize::try_from(room).map_err(|_| short())?);
        if self.stored && want < self.bytes {
            let mut entry = archive.by_index_seek(self.index).map_err(|e| zip_error(path, e))?;
            entry.seek(SeekFrom::Start(range.start)).map_err(io)?;
            entry.take(want).read_to_end(&mut out).map_err(io)?;
        } else {
            let mut entry = archive.by_index(self.index).map_err(|e| zip_error(path, e))?;
            std::io::copy(&mut entry.by_ref().take(range.start), &mut std::io::sink()).map_err(io)?;
            entry.by_ref().take(want).read_to_end(&mut out).map_err(io)?;
            if want == self.bytes && entry.read(&mut [0]).map_err(io)? != 0 {
                return Err(Error::format(path, "a zip entry goes on after its claimed length")
                    .with_remedy("copy the file again, it is damaged"));
            }
        }
        if out.len() as u64 == want { Ok(out) } else { Err(short()) }
    }
}

fn zip_error(path: &Path, e: ZipError) -> Error {
    match e {
        ZipError::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => {
            Error::io(path, "cannot read the zip archive", e)
        }
        e => Error::format(path, "not a valid zip archive").with_source(e),
    }
    .with_remedy("check that the file was copied completely and was written by torch.save")
}

/// The entry of a storage, if it has exactly the bytes that the pickle claims.
fn storage_member(
    path: &Path,
    archive: &ZipArchive<BufReader<File>>,
    names: &HashMap<String, usize>,
    prefix: &str,
    s: &StorageRef,
    file_len: u64,
) -> Result<Member> {
    let key: String = s.key.chars().take(200).collect();
    let Some(&index) = names.get(&format!("{prefix}data/{}", s.key)) else {
        return Err(Error::format(path, format!("the storage data/{} is missing", key.escape_debug())));
    };
    let member = Member::check(path, archive, index, file_len)?;
    let claimed = s.numel.checked_mul(s.kind.size() as u64);
    if claimed != Some(member.bytes) {
        let kind: Stored = s.kind;
        return Err(Error::format(
            path,
            format!(
                "the storage data/{} has {} bytes, but {} elements of {kind:?} are claimed",
                key.escape_debug(),
                member.bytes,
                s.numel
            ),
        )
        .with_remedy("copy the file again, it is damaged"));
    }
    Ok(member)
}

/// The folder in the archive, with its slash. `torch.save` names it after the file, or `archive`.
fn find_prefix<'a>(path: &Path, names: impl Iterator<Item = &'a String> + Clone) -> Result<String> {
    let mut found = names.clone().filter_map(|n| n.strip_suffix("data.pkl")).filter(|p| p.ends_with('/'));
    let (Some(prefix), None) = (found.next(), found.next()) else {
        return Err(Error::format(
            path,
            "the zip archive is no PyTorch checkpoint: it has not exactly one data.pkl",
        )
        .with_remedy("give a file written by torch.save, or a safetensors file"));
    };
    if names.clone().any(|n| n.strip_prefix(prefix) == Some("constants.pkl")) {
        return Err(Error::format(path, "this is a TorchScript archive, i.e. a program, not a state dict")
            .with_remedy(
                "save the weights in PyTorch: torch.save(torch.jit.load(path).state_dict(), new_path)",
            ));
    }
    Ok(prefix.to_string())
}

/// Names the older formats of `torch.save`, which are no zip archives.
fn refuse_other_formats(path: &Path, head: &[u8]) -> Result<()> {
    // The magic number 0x1950a86a20f9469cfc6c as a pickled LONG1.
    const LEGACY: &[u8] = &[0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    if head.starts_with(b"PK") {
        return Ok(());
    }
    let what = if head.get(2..).is_some_and(|h| h.starts_with(LEGACY)) {
        "this is a checkpoint of torch before 1.6 (no zip archive), which is not read"
    } else if head.get(257..262) == Some(b"ustar") {
        "this is a tar archive, as the first versions of torch wrote, which is not read"
    } else if head.first() == Some(&0x80) {
        "this is a bare pickle and no PyTorch zip archive"
    } else {
        "this is no PyTorch zip archive"
    };
    Err(Error::format(path, what).with_remedy(
        "save it again with a current PyTorch: torch.save(torch.load(path, map_location=\"cpu\"), new_path)",
    ))
}
