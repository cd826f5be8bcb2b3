//! The text files beside images: names of classes, labels.

use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The file with the names of the classes in masks, one a line, in the order of their ids.
pub(super) const CLASSES: &str = "classes.txt";

/// The table of labels: `image,label`, with the names of images (relative to `images/`, where there is such a folder)
/// and of classes.
pub(super) const LABELS: &str = "labels.csv";

/// The class of pixels that show no object. No image has it as its label.
pub(super) const BACKGROUND: &str = "background";

/// Reads [`CLASSES`].
///
/// # Errors
/// [`Error::io`]; [`Error::format`]: not UTF-8, no name, an empty one, one that is there twice, more than 65535.
pub(super) fn read_classes(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path)?;
    let bad =
        |m: String| Error::format(path, m).with_remedy("write one name a line, in the order of the ids");
    let names: Vec<String> = text.trim_end().lines().map(|l| l.trim().to_string()).collect();
    if names.is_empty() || names.len() > usize::from(u16::MAX) {
        return Err(bad(format!("names {} classes", names.len())));
    }
    let mut seen = BTreeSet::new();
    for (i, name) in names.iter().enumerate() {
        if name.is_empty() {
            return Err(bad(format!("line {} is empty", i + 1)));
        }
        if !seen.insert(name) {
            return Err(bad(format!("names the class `{name}` twice")));
        }
    }
    Ok(names)
}

/// Reads [`LABELS`]: from image to class.
///
/// # Errors
/// [`Error::io`]; [`Error::format`]: not UTF-8, another header, a line without a comma or with an empty name, an image that
/// is there twice.
pub(super) fn read_labels(path: &Path) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for (line, row) in read_csv(path, &["image", "label"])? {
        let [image, label] = row.as_slice() else { continue };
        if labels.insert(image.clone(), label.clone()).is_some() {
            return Err(Error::format(path, format!("line {line}: a second label for `{image}`"))
                .with_remedy("keep one line for every image"));
        }
    }
    Ok(labels)
}

/// The rows of a table with these columns, with their line numbers. Fields hold no comma but the first, which in a name
/// of a file may stand; there is no quoting.
///
/// # Errors
/// [`Error::io`]; [`Error::format`]: not UTF-8, another header, a line with too few or with empty fields.
pub(super) fn read_csv(path: &Path, columns: &[&str]) -> Result<Vec<(usize, Vec<String>)>> {
    let text = read_text(path)?;
    let header = columns.join(",");
    let bad = |m: String| {
        Error::format(path, m).with_remedy(format!("write the header `{header}`, then one line for each"))
    };
    let mut lines = text.lines().enumerate().map(|(i, l)| (i + 1, l.trim())).filter(|(_, l)| !l.is_empty());
    match lines.next() {
        Some((_, first)) if first.trim_start_matches('\u{feff}') == header => {}
        first => return Err(bad(format!("begins with `{}`", first.map_or("", |(_, l)| l)))),
    }
    let row = |(i, line): (usize, &str)| {
        let mut fields: Vec<String> =
            line.rsplitn(columns.len(), ',').map(|f| f.trim().to_string()).collect();
        fields.reverse();
        if fields.len() != columns.len() || fields.iter().any(String::is_empty) {
            return Err(bad(format!("line {i} is `{line}`")));
        }
        Ok((i, fields))
    };
    lines.map(row).collect()
}

/// A file of text.
///
/// # Errors
/// [`Error::io`]; [`Error::format`]: not UTF-8.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read", e))?;
    String::from_utf8(bytes)
        .map_err(|_| Error::format(path, "is not text in UTF-8").with_remedy("save it as UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_and_mistakes_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("background\r\n a cat \nox\n\n");
        assert_eq!(read_classes(&path).unwrap(), ["background", "a cat", "ox"]);
        for (text, needle) in [("", "0 classes"), ("a\n\nb", "line 2 is empty"), ("a\nb\na\n", "`a` twice")] {
            write(text);
            let e = read_classes(&path).unwrap_err();
            assert!(e.is_format() && e.to_string().contains(needle), "{e}");
        }
        write("\u{feff}image,label\nx,y.png,cat\n\n z.png , ox\r\n");
        let labels = read_labels(&path).unwrap();
        assert_eq!((labels["x,y.png"].as_str(), labels["z.png"].as_str(), labels.len()), ("cat", "ox", 2));
        for (text, needle) in [
            ("", "begins with ``"),
            ("file,class\n", "file,class"),
            ("image,label\nx.png\n", "line 2"),
            ("image,label\nx.png,\n", "line 2"),
            ("image,label\nx,a\nx,b\n", "line 3: a second label"),
        ] {
            write(text);
            let e = read_labels(&path).unwrap_err();
            assert!(e.is_format() && e.to_string().contains(needle) && e.remedy().is_some(), "{e}");
        }
        std::fs::write(&path, [0xFF, 0xFE]).unwrap();
        assert!(read_classes(&path).unwrap_err().is_format());
        assert!(read_labels(&dir.path().join("absent")).unwrap_err().is_io());
    }
}
