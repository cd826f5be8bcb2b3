//! Reading and writing two-dimensional integer arrays in NumPy's `.npy` format.

use crate::error::{Error, Result};
use std::path::Path;

const MAGIC: &[u8] = b"\x93NUMPY";

/// A two-dimensional integer array, row by row.
pub(super) struct Array2 {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: Vec<i64>,
}

/// Parses the bytes of a `.npy` file: 2-D, of dtype u1, u2, i4 or i8 (little-endian), in C or Fortran order. `file` is
/// what errors call it.
///
/// # Errors
/// [`Error::format`]: no NPY data, another dtype or number of dimensions, or less or more data than the header says.
pub(super) fn parse(bytes: &[u8], file: &Path) -> Result<Array2> {
    let bad = |m: String| {
        Error::format(file, m)
            .with_remedy("save a 2-D array of uint8, uint16, int32 or int64 with numpy.save")
    };
    let short = || bad("is truncated: the NPY header is incomplete".into());
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("is not a NumPy array file".into()))?;
    // One byte each of major and minor version; the length of the header has two bytes before version 2, then four.
    let (length, start) = match *rest {
        [1, _, a, b, ..] => (usize::from(u16::from_le_bytes([a, b])), 4),
        [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([a, b, c, d]) as usize, 6),
        [v, _, ..] => return Err(bad(format!("has version {v} of the NPY format, known are 1 to 3"))),
        _ => return Err(short()),
    };
    let header = rest.get(start..).and_then(|r| r.get(..length)).ok_or_else(short)?;
    let data = &rest[start + length..];
    let header = std::str::from_utf8(header).map_err(|_| bad("has a header that is not text".into()))?;
    let missing = |key: &str| bad(format!("has a header without `{key}`: {}", header.trim()));
    let descr = field(header, "descr").ok_or_else(|| missing("descr"))?;
    let descr = descr.trim_matches(['\'', '"']);
    let fortran = match field(header, "fortran_order") {
        Some("False") => false,
        Some("True") => true,
        _ => return Err(missing("fortran_order")),
    };
    let shape = field(header, "shape").ok_or_else(|| missing("shape"))?;
    let sizes: Option<Vec<usize>> = shape
        .trim_matches(['(', ')'])
        .split(',')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(|s| s.parse().ok())
        .collect();
    let Some([rows, columns]) = sizes.as_deref().and_then(|s| <[usize; 2]>::try_from(s).ok()) else {
        return Err(bad(format!("holds an array of shape {shape}, which has to have two dimensions")));
    };
    let size = match descr {
        "|u1" | "<u1" => 1,
        "<u2" => 2,
        "<i4" => 4,
        "<i8" => 8,
        other => return Err(bad(format!("holds elements of the type `{other}`"))),
    };
    if rows.checked_mul(columns).and_then(|n| n.checked_mul(size)) != Some(data.len()) {
        return Err(bad(format!(
            "promises {rows} x {columns} elements of {size} bytes, but {} bytes follow",
            data.len()
        )));
    }
    let value = |b: &[u8]| match *b {
        [a] => i64::from(a),
        [a, b] => i64::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
        _ => b.try_into().map_or(0, i64::from_le_bytes),
    };
    let element = |k: usize| value(&data[k * size..][..size]);
    let values = if fortran {
        (0..rows * columns).map(|i| element(i % columns * rows + i / columns)).collect()
    } else {
        (0..rows * columns).map(element).collect()
    };
    Ok(Array2 { rows, columns, values })
}

/// The text of one value in the header, which is a Python dictionary of strings, truth values and one tuple.
fn field<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let after = [format!("'{key}'"), format!("\"{key}\"")]
        .iter()
        .find_map(|k| header.split_once(k.as_str()))
        .map(|(_, rest)| rest)?;
    let value = after.trim_start().strip_prefix(':')?.trim_start();
    let end = if value.starts_with('(') { value.find(')')? + 1 } else { value.find([',', '}'])? };
    Some(value[..end].trim_end())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file as NumPy writes it.
    pub fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
        let order = if fortran { "True" } else { "False" };
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
        while (header.len() + 11) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut out = MAGIC.to_vec();
        out.extend([1, 0]);
        out.extend((header.len() as u16).to_le_bytes());
        out.extend(header.as_bytes());
        out.extend(data);
        out
    }

    fn values(bytes: &[u8]) -> (usize, usize, Vec<i64>) {
        let a = parse(bytes, Path::new("x.npy")).unwrap();
        (a.rows, a.columns, a.values)
    }

    #[test]
    fn types_and_orders() {
        let want = (2, 3, vec![1, 2, 3, 4, 5, 255]);
        assert_eq!(values(&npy("|u1", false, "(2, 3)", &[1, 2, 3, 4, 5, 255])), want);
        assert_eq!(values(&npy("|u1", true, "(2, 3)", &[1, 4, 2, 5, 3, 255])), want);
        let wide =
            |n: usize| -> Vec<u8> { want.2.iter().flat_map(|v| v.to_le_bytes()[..n].to_vec()).collect() };
        assert_eq!(values(&npy("<u2", false, "(2, 3)", &wide(2))), want);
        assert_eq!(values(&npy("<i4", false, "(2, 3)", &wide(4))), want);
        assert_eq!(values(&npy("<i8", false, "(2, 3)", &wide(8))), want);
        assert_eq!(values(&npy("<i4", false, "(1, 1)", &(-7i32).to_le_bytes())), (1, 1, vec![-7]));
    }

    #[test]
    fn lies_are_errors() {
        let good = npy("|u1", false, "(2, 2)", &[1, 2, 3, 4]);
        for cut in 0..good.len() {
            assert!(parse(&good[..cut], Path::new("x.npy")).err().unwrap().is_format(), "cut at {cut}");
        }
        for (bytes, needle) in [
            (npy("<f4", false, "(1, 1)", &[0; 4]), "<f4"),
            (npy(">i4", false, "(1, 1)", &[0; 4]), ">i4"),
            (npy("|O", false, "(1, 1)", &[0; 4]), "|O"),
            (npy("|u1", false, "(4,)", &[0; 4]), "two dimensions"),
            (npy("|u1", false, "(1, 2, 2)", &[0; 4]), "two dimensions"),
            (npy("|u1", false, "(2, 2)", &[0; 5]), "5 bytes follow"),
            (npy("<i8", false, "(4294967296, 4294967296)", &[0; 8]), "8 bytes follow"),
        ] {
            let e = parse(&bytes, Path::new("x.npy")).err().unwrap();
            assert!(e.is_format() && e.to_string().contains(needle) && e.remedy().is_some(), "{e}");
        }
    }
}
