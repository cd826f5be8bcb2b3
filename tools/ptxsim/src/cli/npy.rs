//! NumPy's file format, as far as one-dimensional buffers need it.

use super::value::Type;

const MAGIC: &[u8] = b"\x93NUMPY";

/// The elements of a `.npy`, which have to be of that type and in C order. Any shape will do.
pub(super) fn read(file: &[u8], ty: Type) -> Result<Vec<u8>, String> {
    let rest = file.strip_prefix(MAGIC).ok_or("it is no .npy file")?;
    let (length_bytes, at) = match rest.first() {
        Some(1) => (2, 2),
        Some(2 | 3) => (4, 2),
        _ => return Err("this version of the .npy format is not known".into()),
    };
    let length = rest.get(at..at + length_bytes).ok_or("it is cut short")?;
    let length = length.iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b));
    let start = at + length_bytes;
    let header = rest.get(start..start.saturating_add(length)).ok_or("it is cut short")?;
    let header = std::str::from_utf8(header).map_err(|e| e.to_string())?;
    let data = &rest[start + length..];
    let descr = field(header, "descr")?.trim_matches(['\'', '"']);
    if descr != ty.numpy() {
        return Err(format!("its elements are {descr}, not {} ({ty})", ty.numpy()));
    }
    if field(header, "fortran_order")? != "False" {
        return Err("it is in Fortran's order; save it with numpy.ascontiguousarray".into());
    }
    let shape = field(header, "shape")?.trim_matches(['(', ')']);
    let mut elements = 1usize;
    for n in shape.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        let n: usize = n.parse().map_err(|_| format!("its shape is ({shape})"))?;
        elements = elements.checked_mul(n).ok_or("its shape is too large")?;
    }
    let bytes = elements.checked_mul(ty.bytes()).ok_or("its shape is too large")?;
    match data.get(..bytes) {
        Some(data) => Ok(data.to_vec()),
        None => Err(format!("it has {} bytes of data, its shape ({shape}) wants {bytes}", data.len())),
    }
}

/// The text of a value in the header's dictionary.
fn field<'h>(header: &'h str, name: &str) -> Result<&'h str, String> {
    let missing = || format!("its header has no {name}");
    let (_, after) = header.split_once(&format!("'{name}':")).ok_or_else(missing)?;
    let after = after.trim_start();
    let end = if after.starts_with('(') { after.find(')').map(|e| e + 1) } else { after.find([',', '}']) };
    Ok(after[..end.ok_or_else(missing)?].trim())
}

/// A one-dimensional `.npy`.
pub(super) fn write(data: &[u8], ty: Type) -> Vec<u8> {
    let mut header = format!(
        "{{'descr': '{}', 'fortran_order': False, 'shape': ({},), }}",
        ty.numpy(),
        data.len() / ty.bytes()
    );
    // The data begin at a multiple of 64.
    while !(MAGIC.len() + 4 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut file = MAGIC.to_vec();
    file.extend([1, 0]);
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let data: Vec<u8> = (0..40).collect();
        let file = write(&data, Type::F32);
        assert_eq!((file.len() - 40) % 64, 0);
        assert_eq!(read(&file, Type::F32).unwrap(), data);
        assert!(read(&file, Type::I32).unwrap_err().contains("<f4"));
        assert!(read(&file[..file.len() - 1], Type::F32).unwrap_err().contains("wants 40"));
        assert!(read(&file[..8], Type::F32).unwrap_err().contains("cut short"));
        assert!(read(b"hello", Type::F32).is_err());
    }

    #[test]
    fn shapes_of_numpy_are_read() {
        let made = |shape: &str, order: &str| {
            let header = format!("{{'descr': '<i2', 'fortran_order': {order}, 'shape': {shape}, }}\n");
            let mut file = MAGIC.to_vec();
            file.extend([2, 0]);
            file.extend((header.len() as u32).to_le_bytes());
            file.extend(header.as_bytes());
            file.extend([7u8; 12]);
            file
        };
        assert_eq!(read(&made("(2, 3)", "False"), Type::I16).unwrap(), [7; 12]);
        assert_eq!(read(&made("()", "False"), Type::I16).unwrap(), [7; 2]);
        assert!(read(&made("(2, 3)", "True"), Type::I16).unwrap_err().contains("Fortran"));
    }
}
