//! The CUDA sources in `kernels/`, embedded by `build.rs`, and the headers that each includes.

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Path relative to `kernels/`, and text, sorted by path.
const EMBEDDED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

type Text = Cow<'static, str>;

/// One compilation unit: a `.cu` file with every header that it includes, directly or through others.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    text: Text,
    headers: Vec<(String, Text)>,
    digest: [u8; 32],
}

impl Source {
    /// The source of that name relative to `kernels/`, such as `conv2d.cu`; `None` if there is none, or if its includes
    /// cannot be resolved. [`Source::named`] says why.
    pub fn find(name: &str) -> Option<&'static Source> {
        Self::named(name).ok()
    }

    /// The source of that name relative to `kernels/`.
    ///
    /// # Errors
    /// No such source, or one whose includes cannot be resolved. Where `DTK_KERNELS_DIR` is set: a folder that cannot be
    /// read.
    pub fn named(name: &str) -> Result<&'static Source> {
        let sources = Self::library()?;
        match sources.get(name) {
            Some(Ok(source)) => Ok(source),
            Some(Err(why)) => Err(Error::device(why.clone()).with_op(name)),
            None => {
                let known: Vec<&str> = sources.keys().map(String::as_str).collect();
                Err(Error::device(format!("there is no kernel source `{name}`"))
                    .with_remedy(format!("choose one of: {}", known.join(", "))))
            }
        }
    }

    /// The names of all sources, sorted.
    ///
    /// # Errors
    /// Where `DTK_KERNELS_DIR` is set: a folder that cannot be read.
    pub fn names() -> Result<Vec<&'static str>> {
        Ok(Self::library()?.keys().map(String::as_str).collect())
    }

    /// A source from text, such as a test's own kernel. `headers` are the files that it may include, under the names that
    /// the `#include` lines use.
    ///
    /// # Errors
    /// An include of a file that is not among the headers, or in angle brackets.
    pub fn from_text(name: &str, text: &str, headers: &[(&str, &str)]) -> Result<Source> {
        let files: Files = headers.iter().map(|&(n, t)| (n.to_string(), Cow::Owned(t.to_string()))).collect();
        build(name, Cow::Owned(text.to_string()), &files).map_err(|why| Error::device(why).with_op(name))
    }

    /// The name relative to `kernels/`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text of the `.cu` file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Names and texts of the headers, sorted by name.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.headers.iter().map(|(name, text)| (name.as_str(), text.as_ref()))
    }

    /// SHA-256 over the file and its headers, names and texts. Changes with everything that the compiler will read.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Every `.cu` of the library, or why it cannot be compiled.
    fn library() -> Result<&'static BTreeMap<String, Result<Source, String>>> {
        static LIBRARY: OnceLock<BTreeMap<String, Result<Source, String>>> = OnceLock::new();
        if let Some(library) = LIBRARY.get() {
            return Ok(library);
        }
        let files = match std::env::var_os("DTK_KERNELS_DIR").filter(|d| !d.is_empty()) {
            Some(dir) => read_folder(Path::new(&dir))?,
            None => EMBEDDED.iter().map(|&(n, t)| (n.to_string(), Cow::Borrowed(t))).collect(),
        };
        Ok(LIBRARY.get_or_init(|| {
            let units = files.iter().filter(|(name, _)| name.ends_with(".cu"));
            units.map(|(name, text)| (name.clone(), build(name, text.clone(), &files))).collect()
        }))
    }
}

type Files = BTreeMap<String, Text>;

/// Reads what `build.rs` would embed from a folder.
fn read_folder(root: &Path) -> Result<Files> {
    let failed = |path: &Path, e: std::io::Error| {
        Error::io(path, "cannot be read as a folder of kernels", e).with_remedy(
            "let DTK_KERNELS_DIR name the folder `kernels` of dtk's sources, or unset it to use the built-in kernels",
        )
    };
    let mut files = Files::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let dir = root.join(&folder);
        for entry in std::fs::read_dir(&dir).map_err(|e| failed(&dir, e))? {
            let entry = entry.map_err(|e| failed(&dir, e))?;
            let name = folder.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(name);
            } else if name.extension().is_some_and(|e| e == "cu" || e == "cuh") {
                let text = std::fs::read_to_string(entry.path()).map_err(|e| failed(&entry.path(), e))?;
                files.insert(name.to_string_lossy().replace('\\', "/"), Cow::Owned(text));
            }
        }
    }
    Ok(files)
}

/// Resolves the includes of a unit.
fn build(name: &str, text: Text, files: &Files) -> Result<Source, String> {
    let mut headers: BTreeMap<String, Text> = BTreeMap::new();
    let mut open = vec![(name.to_string(), text.clone())];
    while let Some((file, text)) = open.pop() {
        for (line, target) in includes(&text) {
            let target = target.map_err(|what| format!("{file}:{line}: {what}"))?;
            if headers.contains_key(&target) {
                continue;
            }
            let Some(header) = files.get(&target) else {
                return Err(format!("{file}:{line}: there is no file `{target}` in kernels/"));
            };
            headers.insert(target.clone(), header.clone());
            open.push((target, header.clone()));
        }
    }
    let mut hash = Sha256::new();
    let own = (name, &text);
    for (name, text) in std::iter::once(own).chain(headers.iter().map(|(n, t)| (n.as_str(), t))) {
        for part in [name, text] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    let digest = hash.finalize().into();
    Ok(Source { name: name.to_string(), text, headers: headers.into_iter().collect(), digest })
}

/// Line number and target of every `#include "..."`; what is wrong with any other kind of include.
fn includes(text: &str) -> impl Iterator<Item = (usize, Result<String, String>)> {
    text.lines().enumerate().filter_map(|(i, line)| {
        let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?.trim();
        let target = match rest.strip_prefix('"').and_then(|r| r.split_once('"')) {
            Some((target, _)) => Ok(target.to_string()),
            None => Err(format!("`#include {rest}`: kernels include only \"files\" of kernels/")),
        };
        Some((i + 1, target))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "#pragma once\n  # include \"tile/b.cuh\"\n";
    const B: &str = "#pragma once\n#include \"ptx/c.cuh\" // why\n// #include \"nowhere.cuh\"\n";

    fn unit(text: &str) -> Result<Source> {
        let headers =
            [("tile/a.cuh", A), ("tile/b.cuh", B), ("ptx/c.cuh", "int c;\n"), ("ptx/d.cuh", "int d;\n")];
        Source::from_text("x.cu", text, &headers)
    }

    #[test]
    fn headers_of_headers_are_found_and_no_others() {
        let s = unit("#include \"tile/a.cuh\"\n#include \"tile/b.cuh\"\n").unwrap();
        let names: Vec<&str> = s.headers().map(|(n, _)| n).collect();
        assert_eq!(names, ["ptx/c.cuh", "tile/a.cuh", "tile/b.cuh"]);
        assert_eq!(s.headers().next(), Some(("ptx/c.cuh", "int c;\n")));
        assert_eq!(unit("int x;").unwrap().headers().len(), 0);
    }

    #[test]
    fn the_digest_covers_headers_and_names() {
        let text = "#include \"h.cuh\"\n";
        let digest = |name: &str, text: &str, header: &str| {
            *Source::from_text(name, text, &[("h.cuh", header)]).unwrap().digest()
        };
        let base = digest("x.cu", text, "int a;");
        assert_eq!(base, digest("x.cu", text, "int a;"));
        assert_ne!(base, digest("x.cu", text, "int b;"));
        assert_ne!(base, digest("y.cu", text, "int a;"));
        assert_ne!(base, digest("x.cu", "#include \"h.cuh\"\n\n", "int a;"));
        assert_ne!(digest("x.cu", "", "int a;"), digest("x.cu", " ", "int a;"));
        assert_eq!(
            digest("x.cu", "", "int a;"),
            digest("x.cu", "", "int b;"),
            "a header that nobody includes"
        );
    }

    #[test]
    fn what_cannot_be_included_is_named_with_its_line() {
        let text = unit("int x;\n#include <cuda_bf16.h>\n").unwrap_err().to_string();
        assert!(text.contains("x.cu:2") && text.contains("<cuda_bf16.h>"), "{text}");
        let text = unit("#include \"tile/z.cuh\"").unwrap_err().to_string();
        assert!(text.contains("x.cu:1") && text.contains("tile/z.cuh"), "{text}");
        let headers = [("a.cuh", "\n\n#include \"z.cuh\"")];
        let text = Source::from_text("x.cu", "#include \"a.cuh\"", &headers).unwrap_err().to_string();
        assert!(text.contains("a.cuh:3") && text.contains("z.cuh"), "{text}");
    }

    #[test]
    fn circles_end() {
        let headers = [("a.cuh", "#include \"b.cuh\""), ("b.cuh", "#include \"a.cuh\"")];
        let s = Source::from_text("x.cu", "#include \"a.cuh\"", &headers).unwrap();
        assert_eq!(s.headers().len(), 2);
    }

    #[test]
    fn embedded_sources_resolve_and_unknown_ones_are_named() {
        for (name, source) in Source::library().unwrap() {
            assert!(source.is_ok(), "{name}: {source:?}");
        }
        let text = Source::named("no_such.cu").unwrap_err().to_string();
        assert!(text.contains("no_such.cu"), "{text}");
        assert!(Source::find("no_such.cu").is_none());
    }

    #[test]
    fn a_folder_is_read_like_the_embedded_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tile")).unwrap();
        std::fs::write(dir.path().join("x.cu"), "#include \"tile/a.cuh\"\n").unwrap();
        std::fs::write(dir.path().join("tile/a.cuh"), "int a;\n").unwrap();
        std::fs::write(dir.path().join("tile/notes.md"), "no kernel").unwrap();
        let files = read_folder(dir.path()).unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["tile/a.cuh", "x.cu"]);
        let e = read_folder(&dir.path().join("gone")).unwrap_err().to_string();
        assert!(e.contains("gone") && e.contains("DTK_KERNELS_DIR"), "{e}");
    }
}
