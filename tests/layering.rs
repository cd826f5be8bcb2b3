//! The rules of the source tree that the compiler does not check: which module may import which, which kernel file may
//! include which, where `unsafe` and printing are allowed, and how long a file may get.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The layers, lowest first. A module imports from itself and from lower rows; modules of one row are independent.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["base"],
    &["cpu"],
    &["gpu"],
    &["tensor"],
    &["ops"],
    &["tape"],
    &["nn"],
    &["models"],
    &["diffusion"],
    &["distill", "optim", "data", "checkpoint"],
    &["dist"],
    &["eval", "viz"],
    &["recipe"],
    &["train"],
    &["cli"],
];

/// What the crate's root offers beside its modules, and the module it comes from.
const ROOT_ITEMS: &[(&str, &str)] =
    &[("Error", "error"), ("Result", "error"), ("for_each_op", "ops"), ("for_each_untaped", "ops")];

/// The most lines of a Rust file.
const MAX_LINES: usize = 600;

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

// ---- tokens ----

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Ident(String),
    Text(String),
    Punct(char),
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    line: usize,
}

impl Token {
    fn is(&self, text: &str) -> bool {
        match &self.kind {
            Kind::Ident(s) => s == text,
            Kind::Punct(c) => text.len() == 1 && text.starts_with(*c),
            Kind::Text(_) => false,
        }
    }

    fn ident(&self) -> Option<&str> {
        match &self.kind {
            Kind::Ident(s) => Some(s),
            _ => None,
        }
    }
}

/// Rust source as words, string literals and punctuation; comments, numbers' signs, characters and lifetimes vanish.
fn lex(source: &str) -> Vec<Token> {
    let c: Vec<char> = source.chars().collect();
    let (mut i, mut line, mut out) = (0, 1, Vec::new());
    let at = |i: usize| c.get(i).copied().unwrap_or('\0');
    while i < c.len() {
        let start = i;
        match c[i] {
            '/' if at(i + 1) == '/' => {
                while i < c.len() && c[i] != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                while i < c.len() {
                    match (c[i], at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            '"' => {
                i += 1;
                while i < c.len() && c[i] != '"' {
                    i += if c[i] == '\\' { 2 } else { 1 };
                }
                let text = c[start + 1..i.min(c.len())].iter().collect();
                out.push(Token { kind: Kind::Text(text), line });
                i += 1;
            }
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < c.len() && c[i] != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            ch if ch.is_alphanumeric() || ch == '_' => {
                while at(i).is_alphanumeric() || at(i) == '_' {
                    i += 1;
                }
                let word: String = c[start..i].iter().collect();
                let hashes = (i..).take_while(|&j| at(j) == '#').count();
                if matches!(&*word, "r" | "br" | "cr") && at(i + hashes) == '"' {
                    let first = i + hashes + 1;
                    let closes = |j: usize| c[j] == '"' && (1..=hashes).all(|k| at(j + k) == '#');
                    let end = (first..c.len()).find(|&j| closes(j)).unwrap_or(c.len());
                    out.push(Token { kind: Kind::Text(c[first..end].iter().collect()), line });
                    i = end + 1 + hashes;
                } else if !ch.is_numeric() {
                    out.push(Token { kind: Kind::Ident(word), line });
                }
            }
            ch => {
                if !ch.is_whitespace() {
                    out.push(Token { kind: Kind::Punct(ch), line });
                }
                i += 1;
            }
        }
        line += c[start..i.min(c.len())].iter().filter(|&&ch| ch == '\n').count();
    }
    out
}

/// The index behind the bracket that closes the one at `open`.
fn behind(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (i, t) in tokens.iter().enumerate().skip(open) {
        match t.kind {
            Kind::Punct('(' | '[' | '{') => depth += 1,
            Kind::Punct(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    tokens.len()
}

/// Splits off items under `#[cfg(test)]`; also gives the names (or `#[path]`s) of modules in files of their own.
fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    let (mut kept, mut modules, mut i) = (Vec::new(), Vec::new(), 0);
    while i < tokens.len() {
        let attribute = tokens[i].is("#") && tokens.get(i + 1).is_some_and(|t| t.is("["));
        let end = if attribute { behind(tokens, i + 1) } else { i };
        let inside = &tokens[i..end];
        let has = |w: &str| inside.iter().any(|t| t.is(w));
        if !(has("cfg") && has("test") && !has("not")) {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        // Further attributes, then the item up to its `;` or its closing brace.
        i = end;
        let mut path = None;
        while tokens.get(i).is_some_and(|t| t.is("#")) {
            let end = behind(tokens, i + 1);
            if let [_, _, name, _, Token { kind: Kind::Text(p), .. }, ..] = &tokens[i..end]
                && name.is("path")
            {
                path = Some(p.clone());
            }
            i = end;
        }
        let item = i;
        while i < tokens.len() && !tokens[i].is(";") && !tokens[i].is("{") {
            i = if tokens[i].is("(") || tokens[i].is("[") { behind(tokens, i) } else { i + 1 };
        }
        let words = &tokens[item..i.min(tokens.len())];
        if tokens.get(i).is_some_and(|t| t.is(";"))
            && let Some(m) = words.iter().position(|t| t.is("mod"))
            && let Some(name) = words.get(m + 1).and_then(Token::ident)
        {
            modules.push(path.unwrap_or_else(|| name.to_string()));
        }
        i = if tokens.get(i).is_some_and(|t| t.is("{")) { behind(tokens, i) } else { i + 1 };
    }
    (kept, modules)
}

/// The first names behind `crate::`, or behind as many `super::` as lead to the crate's root. `depth` is the number
/// of modules around the file's items, 1 for `src/x.rs`.
fn imports(tokens: &[Token], depth: usize) -> Vec<(String, usize)> {
    let path_sep =
        |i: usize| tokens.get(i).is_some_and(|t| t.is(":")) && tokens.get(i + 1).is_some_and(|t| t.is(":"));
    let (mut found, mut i) = (Vec::new(), 0);
    while i < tokens.len() {
        let mut ups = 0;
        if tokens[i].is("crate") && path_sep(i + 1) {
            (ups, i) = (depth, i + 3);
        } else {
            while tokens.get(i).is_some_and(|t| t.is("super")) && path_sep(i + 1) {
                (ups, i) = (ups + 1, i + 3);
            }
        }
        if ups < depth || ups == 0 {
            i += usize::from(ups == 0);
            continue;
        }
        match tokens.get(i) {
            Some(t) if t.is("{") => {
                let end = behind(tokens, i);
                let (mut level, mut fresh) = (0, true);
                for t in &tokens[i + 1..end - 1] {
                    match &t.kind {
                        Kind::Ident(name) if level == 0 && fresh => {
                            found.push((name.clone(), t.line));
                            fresh = false;
                        }
                        Kind::Punct('{') => level += 1,
                        Kind::Punct('}') => level -= 1,
                        Kind::Punct(',') if level == 0 => fresh = true,
                        Kind::Punct('*') if level == 0 && fresh => found.push(("*".into(), t.line)),
                        _ => {}
                    }
                }
            }
            Some(t) if t.is("*") => found.push(("*".into(), t.line)),
            Some(t) => found.extend(t.ident().map(|name| (name.to_string(), t.line))),
            None => {}
        }
    }
    found
}

// ---- rules ----

/// What is wrong in one source file; `path` is relative to `src`. `is_test` marks files that belong to `#[cfg(test)]`.
fn violations(path: &str, source: &str, is_test: bool) -> Vec<String> {
    let all = lex(source);
    let (kept, _) = without_tests(&all);
    let mut bad = Vec::new();
    let parts: Vec<&str> = path.trim_end_matches(".rs").split('/').filter(|p| *p != "mod").collect();
    let root = matches!(path, "lib.rs" | "main.rs");
    let own = parts[0];
    if !root && layer(own).is_none() {
        bad.push(format!("{path}: module `{own}` has no layer"));
    }
    if !root && !is_test {
        for (name, line) in imports(&kept, parts.len()) {
            let module = ROOT_ITEMS.iter().find(|(item, _)| *item == name).map_or(&*name, |(_, m)| m);
            match (layer(own), layer(module)) {
                _ if own == module => {}
                (Some(mine), Some(other)) if other < mine => {}
                (_, None) => bad.push(format!("{path}:{line}: `crate::{name}` belongs to no layer")),
                _ => bad.push(format!("{path}:{line}: `{own}` must not import from `{module}`")),
            }
        }
    }
    let may_be_unsafe = path.starts_with("cpu/")
        || path.starts_with("gpu/")
        || ["gpu.rs", "tensor/io.rs", "tensor/cuda.rs", "data/lmdb.rs"].contains(&path);
    for t in all.iter().filter(|t| t.is("unsafe") && !may_be_unsafe) {
        bad.push(format!(
            "{path}:{}: `unsafe` outside cpu, gpu, tensor/io.rs, tensor/cuda.rs and data/lmdb.rs",
            t.line
        ));
    }
    let may_print = path.starts_with("cli/") || path == "main.rs";
    for (i, t) in kept.iter().enumerate().filter(|_| !may_print && !is_test) {
        let next = |k: usize, text: &str| kept.get(i + k).is_some_and(|t| t.is(text));
        let prints =
            t.ident().is_some_and(|n| ["println", "eprintln", "print", "eprint", "dbg"].contains(&n));
        if prints && next(1, "!") {
            bad.push(format!("{path}:{}: only the command line prints", t.line));
        }
        if t.is("process") && next(1, ":") && next(3, "exit") {
            bad.push(format!("{path}:{}: only the command line ends the process", t.line));
        }
    }
    bad
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.map(|e| e.unwrap().path()) {
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn tree(names: &[&str]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for name in names {
        rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(name), &mut files);
    }
    files.sort();
    files
}

#[test]
fn modules_import_from_lower_layers_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = tree(&["src"]);
    assert!(files.len() > 50, "only {} files found", files.len());
    let read = |p: &Path| std::fs::read_to_string(p).unwrap();
    let mut test_files = BTreeSet::new();
    for path in &files {
        let dir = path.parent().unwrap();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let home = if ["mod", "lib", "main"].contains(&stem) { dir.to_path_buf() } else { dir.join(stem) };
        for name in without_tests(&lex(&read(path))).1 {
            let options = [dir.join(&name), home.join(format!("{name}.rs")), home.join(&name).join("mod.rs")];
            let found = options.into_iter().find(|p| p.is_file());
            test_files.insert(found.unwrap_or_else(|| panic!("{}: no file for {name}", path.display())));
        }
    }
    let mut bad = Vec::new();
    for path in &files {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
        bad.extend(violations(&name, &read(path), test_files.contains(path)));
    }
    assert!(bad.is_empty(), "{} violations:\n{}", bad.len(), bad.join("\n"));
}

/// What is wrong with the includes of one kernel file; `path` is relative to `kernels`. `ptx` includes `ptx`, `tile` includes
/// `ptx` and `tile`, an operation's file both and no other operation's; nobody includes a header of a toolkit or library.
fn kernel_violations(path: &str, text: &str) -> Vec<String> {
    let floor = |path: &str| match path.split_once('/') {
        Some(("ptx", file)) if !file.contains('/') && file.ends_with(".cuh") => Some(0),
        Some(("tile", file)) if !file.contains('/') && file.ends_with(".cuh") => Some(1),
        None if path.ends_with(".cu") => Some(2),
        _ => None,
    };
    let Some(own) = floor(path) else {
        return vec![format!("{path}: kernels are ptx/*.cuh, tile/*.cuh and <op>.cu")];
    };
    let mut bad = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let directive = line.trim_start().strip_prefix('#').map(str::trim_start);
        let Some(target) = directive.and_then(|d| d.strip_prefix("include")) else { continue };
        let target = target.trim_start();
        match target.strip_prefix('"').and_then(|t| t.split_once('"')) {
            None => bad.push(format!("{path}:{}: include {target}: only \"ptx/..\" and \"tile/..\"", i + 1)),
            Some((header, _)) => match floor(header) {
                Some(other @ 0..=1) if other <= own => {}
                _ => bad.push(format!("{path}:{}: must not include {header}", i + 1)),
            },
        }
    }
    bad
}

#[test]
fn kernels_include_from_lower_floors_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut folders = vec![root.clone()];
    let mut bad = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e != "md" && e != "json") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
                bad.extend(kernel_violations(&name, &std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(bad.is_empty(), "{} violations:\n{}", bad.len(), bad.join("\n"));
}

#[test]
fn the_scanner_of_kernels_finds_violations() {
    let one = |path: &str, text: &str, needle: &str| {
        let bad = kernel_violations(path, text);
        assert!(bad.len() == 1 && bad[0].contains(needle), "{path}: {text}\n{bad:?}");
    };
    one("conv2d.cu", "\n#include \"linear.cu\"", "conv2d.cu:2: must not include linear.cu");
    one("conv2d.cu", "#include <cuda_bf16.h>", "<cuda_bf16.h>");
    one("conv2d.cu", "  #  include \"cuda_bf16.h\"", "must not include cuda_bf16.h");
    one("ptx/mma.cuh", "#include \"tile/gemm.cuh\"", "must not include tile/gemm.cuh");
    one("tile/gemm.cuh", "#include \"conv2d.cu\"", "must not include conv2d.cu");
    one("tile/gemm.cuh", "#include \"../ptx/mma.cuh\"", "must not include");
    one("norm/group.cu", "", "kernels are");
    one("conv2d.cuh", "", "kernels are");
    let fine =
        "// #include <x>\n#include \"ptx/mma.cuh\"\n#include \"tile/gemm.cuh\" // why\n#define INCLUDE";
    for path in ["conv2d.cu", "tile/gemm.cuh"] {
        assert_eq!(kernel_violations(path, fine), Vec::<String>::new(), "{path}");
    }
}

#[test]
fn files_stay_readable() {
    let lines = |p: &PathBuf| std::fs::read_to_string(p).unwrap().lines().count();
    let long: Vec<String> = tree(&["src", "tests", "benches"])
        .iter()
        .map(|p| (lines(p), p))
        .filter(|(n, _)| *n > MAX_LINES)
        .map(|(n, p)| format!("{}: {n} lines", p.display()))
        .collect();
    assert!(long.is_empty(), "files of more than {MAX_LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn the_scanner_finds_violations() {
    let one = |path: &str, source: &str, needle: &str| {
        let bad = violations(path, source, false);
        assert!(bad.len() == 1 && bad[0].contains(needle), "{path}: {source}\n{bad:?}");
    };
    one(
        "tape/mod.rs",
        "use crate::ops;\nuse crate::nn::Ctx;",
        "tape/mod.rs:2: `tape` must not import from `nn`",
    );
    one("ops/relu.rs", "use crate::{base::Shape, tape::{Var, Tape}, error};", "from `tape`");
    one("ops/conv2d/mod.rs", "fn f() { let x = crate::nn::Init::ZEROS; }", "from `nn`");
    one("optim/ema.rs", "use crate::data::{Loader};", "from `data`");
    one("cpu/gemm.rs", "pub(crate) use super::super::tensor::Tensor;", "from `tensor`");
    one("cpu/mod.rs", "use super::tensor::Tensor;", "from `tensor`");
    one("cpu/mod.rs", "use crate::*;", "no layer");
    one("error.rs", "use crate::base::Shape;", "from `base`");
    one("newcomer.rs", "", "has no layer");
    one("nn/a.rs", "fn f<'a>(x: &'a u8) { let q = '\\''; unsafe { g() } }", "`unsafe`");
    one("train/a.rs", "fn f() { eprintln!(\"x\"); }", "prints");
    one("train/a.rs", "fn f() { std::process::exit(1) }", "ends the process");
    one("nn/a.rs", "#[cfg(test)]\nmod tests { use crate::cli; }\nuse crate::train::X;", "from `train`");
    one("nn/a.rs", "#[cfg(not(test))]\nuse crate::train::X;", "from `train`");
    for fine in [
        "// use crate::cli::X; unsafe\n/* crate::cli /* nested */ println!() */",
        "const A: &str = \"use crate::cli; \\\" unsafe\"; const B: &str = r#\"crate::cli \" unsafe\"#;",
        "#[cfg(test)]\n#[rustfmt::skip]\nmod tests { use crate::cli::X; fn f() { println!(\"{}\", 1); } }",
        "#[cfg(test)]\nmod tests;\n#[cfg(test)]\nuse crate::cli::X;",
        "pub(crate) fn f() {} use crate::{Error, Result}; use crate::nn::Ctx; use super::params::X;",
        "const C: [char; 3] = ['\"', '\\'', '{']; use crate::tensor::{self, Tensor};",
    ] {
        assert_eq!(violations("nn/layers.rs", fine, false), Vec::<String>::new(), "{fine}");
    }
    assert_eq!(violations("nn/tests.rs", "use crate::cli;", true), Vec::<String>::new());
    assert_eq!(
        violations("cli/a.rs", "fn f() { println!(); std::process::exit(1) }", false),
        Vec::<String>::new()
    );
    assert_eq!(violations("cpu/a.rs", "unsafe fn f() {}", false), Vec::<String>::new());
}
