//! One interface to the weights of a file, whatever its format.

use super::builtin;
use super::pt::PtFile;
use crate::base::{DType, Shape};
use crate::error::{Error, Result};
use crate::tensor::{SafetensorsFile, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The index file of a sharded safetensors folder.
const INDEX: &str = "model.safetensors.index.json";
/// Keys under which training programs put the weights.
const ROOTS: [&str; 8] =
    ["state_dict", "model", "model_state", "model_state_dict", "ema", "model_ema", "params_ema", "params"];
/// Prefixes that wrappers put before every key: `DataParallel` and `torch.compile`.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

enum Source {
    Safetensors(SafetensorsFile),
    Pt(PtFile),
    Shards { files: Vec<SafetensorsFile>, of: BTreeMap<String, usize> },
    Memory(BTreeMap<String, Tensor>),
}

/// Named tensors of a file, or a part of them under shorter names. Tensors are read when they are asked for.
///
/// Cloning and narrowing ([`StateDict::with_prefix`], [`StateDict::auto_root`]) share the open file.
#[derive(Clone)]
pub struct StateDict {
    path: PathBuf,
    source: Arc<Source>,
    entries: BTreeMap<String, Stored>,
    metadata: Arc<BTreeMap<String, String>>,
}

/// Where a visible name comes from.
#[derive(Clone)]
struct Stored {
    name: String,
    /// Where the last key of a nested dict begins in the visible name; 0 if no container is left above it.
    leaf: usize,
}

impl StateDict {
    /// Opens a safetensors file, a PyTorch zip file, or a folder with `model.safetensors.index.json` (or a single
    /// `model.safetensors`). The content decides, not the extension. `builtin:NAME` are weights within the program.
    ///
    /// # Errors
    /// Unreadable or malformed files, and files of another format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if let Some(bytes) = builtin::find(&path.to_string_lossy())? {
            return Ok(Self::of_safetensors(path, SafetensorsFile::from_static(path, bytes)?));
        }
        if path.is_dir() {
            return Self::open_folder(path);
        }
        let mut head = Vec::new();
        let file = File::open(path).map_err(|e| Error::io(path, "cannot open", e))?;
        file.take(9).read_to_end(&mut head).map_err(|e| Error::io(path, "cannot read", e))?;
        // safetensors: an 8-byte header length, then JSON.
        if head.len() == 9 && head[8] == b'{' && !head.starts_with(b"PK") {
            return Ok(Self::of_safetensors(path, SafetensorsFile::open(path)?));
        }
        if head.starts_with(b"PK") || head.first() == Some(&0x80) || !is_named_safetensors(path) {
            let file = PtFile::open(path)?;
            let stored = |n: &str| Stored { name: n.to_string(), leaf: file.leaf_start(n) };
            let entries = file.names().map(|n| (n.to_string(), stored(n))).collect();
            return Ok(StateDict {
                path: path.to_path_buf(),
                source: Arc::new(Source::Pt(file)),
                entries,
                metadata: Arc::default(),
            });
        }
        Err(Error::format(path, "named .safetensors, but it does not begin like one")
            .with_remedy("check that the file was copied completely"))
    }

    fn of_safetensors(path: &Path, file: SafetensorsFile) -> Self {
        let entries =
            file.names().map(|n| (n.to_string(), Stored { name: n.to_string(), leaf: 0 })).collect();
        let metadata = Arc::new(file.metadata().clone());
        StateDict { path: path.to_path_buf(), source: Arc::new(Source::Safetensors(file)), entries, metadata }
    }

    fn open_folder(dir: &Path) -> Result<Self> {
        let index = dir.join(INDEX);
        if !index.exists() {
            let single = dir.join("model.safetensors");
            return if single.exists() {
                Self::open(single)
            } else {
                Err(Error::format(dir, format!("the folder has neither {INDEX} nor model.safetensors"))
                    .with_remedy("give the checkpoint file itself"))
            };
        }
        let bad = |what: String| {
            Error::format(&index, what).with_remedy("copy the folder again with its index and all shards")
        };
        let text = std::fs::read(&index).map_err(|e| Error::io(&index, "cannot read", e))?;
        let json: serde_json::Value =
            serde_json::from_slice(&text).map_err(|e| bad(format!("not valid JSON: {e}")))?;
        let map = json.get("weight_map").and_then(|m| m.as_object());
        let map = map.ok_or_else(|| bad("there is no weight_map".into()))?;
        let mut files = Vec::new();
        let mut opened: BTreeMap<&str, usize> = BTreeMap::new();
        let mut of = BTreeMap::new();
        for (name, shard) in map {
            let shard = shard.as_str().ok_or_else(|| bad(format!("the shard of `{name}` is no string")))?;
            // A shard lies beside its index; a path would let an index name any file of the machine.
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(bad(format!("the shard {shard:?} of `{name}` is no plain file name")));
            }
            let i = match opened.get(shard) {
                Some(&i) => i,
                None => {
                    files.push(SafetensorsFile::open(dir.join(shard))?);
                    opened.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            if files[i].info(name).is_none() {
                return Err(bad(format!("{shard} does not hold `{name}`")));
            }
            of.insert(name.clone(), i);
        }
        let entries = of.keys().map(|n| (n.clone(), Stored { name: n.clone(), leaf: 0 })).collect();
        let metadata = Arc::new(files.first().map(|f| f.metadata().clone()).unwrap_or_default());
        Ok(StateDict {
            path: dir.to_path_buf(),
            source: Arc::new(Source::Shards { files, of }),
            entries,
            metadata,
        })
    }

    /// Tensors that are already in memory; `label` stands where errors name the file.
    pub fn from_tensors(label: impl AsRef<Path>, tensors: BTreeMap<String, Tensor>) -> Self {
        StateDict {
            path: label.as_ref().to_path_buf(),
            entries: tensors.keys().map(|n| (n.clone(), Stored { name: n.clone(), leaf: 0 })).collect(),
            source: Arc::new(Source::Memory(tensors)),
            metadata: Arc::default(),
        }
    }

    /// The file or folder it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The free-form metadata of a safetensors header; empty for other formats.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Dtype and shape of a tensor, as [`StateDict::get`] returns it.
    pub fn info(&self, name: &str) -> Option<(DType, Shape)> {
        let stored = &self.entries.get(name)?.name;
        match &*self.source {
            Source::Safetensors(f) => f.info(stored),
            Source::Pt(f) => f.info(stored),
            Source::Shards { files, of } => files[*of.get(stored)?].info(stored),
            Source::Memory(m) => m.get(stored).map(|t| (t.dtype(), t.shape())),
        }
    }

    /// Reads one tensor in its stored dtype and layout.
    ///
    /// # Errors
    /// There is no such tensor, or its bytes cannot be read.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let absent = || {
            Error::checkpoint(format!("no such tensor among {}", self.entries.len()))
                .with_file(&self.path)
                .with_key(name)
        };
        let stored = &self.entries.get(name).ok_or_else(absent)?.name;
        match &*self.source {
            Source::Safetensors(f) => f.get(stored),
            Source::Pt(f) => f.get(stored),
            Source::Shards { files, of } => files[*of.get(stored).ok_or_else(absent)?].get(stored),
            Source::Memory(m) => m.get(stored).cloned().ok_or_else(absent),
        }
    }

    /// The tensors whose names begin with `prefix`, under the names without it.
    ///
    /// # Errors
    /// No name begins with `prefix`.
    pub fn with_prefix(&self, prefix: &str) -> Result<Self> {
        let part = self.strip(prefix);
        if part.is_empty() && !self.is_empty() {
            let first: Vec<_> = self.names().take(3).collect();
            return Err(Error::checkpoint(format!("no tensor name begins with {prefix:?}"))
                .with_file(&self.path)
                .with_remedy(format!("the names look like {}", first.join(", "))));
        }
        Ok(part)
    }

    fn strip(&self, prefix: &str) -> Self {
        let cut = |(n, s): (&String, &Stored)| {
            let rest = n.strip_prefix(prefix).filter(|r| !r.is_empty())?;
            Some((
                rest.to_string(),
                Stored { name: s.name.clone(), leaf: s.leaf.saturating_sub(prefix.len()) },
            ))
        };
        StateDict {
            path: self.path.clone(),
            source: Arc::clone(&self.source),
            entries: self.entries.iter().filter_map(cut).collect(),
            metadata: Arc::clone(&self.metadata),
        }
    }

    /// Finds the weights in a training checkpoint: if no tensor lies at the top level, descends into the one dict
    /// that is known to hold weights (`state_dict`, `model`, `model_state`, `ema`, ...) or into the only dict there is;
    /// then removes a `module.` or `_orig_mod.` that all names begin with.
    ///
    /// # Errors
    /// Several dicts could be meant, e.g. `model` and `ema`; [`StateDict::with_prefix`] chooses one.
    pub fn auto_root(&self) -> Result<Self> {
        let mut part = self.clone();
        if !self.is_empty() && self.entries.values().all(|s| s.leaf > 0) {
            let tops: BTreeSet<&str> =
                self.entries.iter().map(|(n, s)| n[..s.leaf].split('.').next().unwrap_or_default()).collect();
            let known: Vec<&str> = tops.iter().copied().filter(|t| ROOTS.contains(t)).collect();
            let root = match (known.as_slice(), tops.first()) {
                ([one], _) => *one,
                ([], Some(one)) if tops.len() == 1 => *one,
                _ => {
                    let list = if known.is_empty() { tops.into_iter().collect() } else { known };
                    return Err(Error::checkpoint(format!(
                        "the weights may be in any of: {}",
                        list.join(", ")
                    ))
                    .with_file(&self.path)
                    .with_remedy(format!("choose one by its prefix, e.g. \"{}.\"", list[0])));
                }
            };
            part = part.strip(&format!("{root}."));
        }
        while let Some(w) =
            WRAPPERS.iter().find(|w| !part.is_empty() && part.names().all(|n| n.starts_with(**w)))
        {
            let inner = part.strip(w);
            if inner.len() < part.len() {
                break;
            }
            part = inner;
        }
        Ok(part)
    }
}

fn is_named_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
}
