//! Committed files that tests generate: they must not change unnoticed.

use std::fmt::Write;
use std::path::Path;

/// Set to `1`, generated files are written instead of compared.
const BLESS: &str = "DTK_BLESS";
/// What writes them.
pub const COMMAND: &str = "DTK_BLESS=1 cargo test --release --test kernels";
/// Most lines of a difference that are shown.
const SHOWN: usize = 40;

/// Whether files are written instead of compared.
pub fn blessing() -> bool {
    std::env::var_os(BLESS).is_some_and(|v| v == "1")
}

/// What is committed; nothing if there is no such file yet.
pub fn committed(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap_or_default()
}

/// Compares a generated text with the committed file, a path below the repository's root; writes the file when blessing.
///
/// Panics if they differ, with the lines that do.
pub fn expect(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if blessing() {
        let failed = |e: std::io::Error| panic!("{}: {e}", path.display());
        std::fs::create_dir_all(path.parent().expect("a file has a folder")).unwrap_or_else(failed);
        std::fs::write(&path, text).unwrap_or_else(failed);
        println!("wrote {file}");
        return;
    }
    let committed = committed(file);
    assert!(
        committed == text,
        "{file} (-) is not what this tree makes (+):\n{}if that is meant, write it: {COMMAND}",
        difference(&committed, text)
    );
}

/// The lines that only one of two texts has.
pub fn difference(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let only = |these: &[&'_ str], those: &[&str], sign: char| -> Vec<String> {
        these.iter().filter(|l| !those.contains(l)).map(|l| format!("{sign} {l}")).collect()
    };
    let lines = [only(&old, &new, '-'), only(&new, &old, '+')].concat();
    let mut text = String::new();
    for line in lines.iter().take(SHOWN) {
        writeln!(text, "{line}").expect("a string grows");
    }
    if lines.len() > SHOWN {
        writeln!(text, ".. and {} lines more", lines.len() - SHOWN).expect("a string grows");
    }
    if lines.is_empty() {
        text.push_str("the same lines in another order, or another end of the file\n");
    }
    text
}

#[test]
fn differences_name_the_lines() {
    assert_eq!(difference("a\nb\nc\n", "a\nB\nc\n"), "- b\n+ B\n");
    assert!(difference("a\nb\n", "b\na\n").contains("order"));
    let long: String = (0..100).map(|i| format!("{i}\n")).collect();
    assert!(difference("", &long).ends_with(".. and 60 lines more\n"));
}
