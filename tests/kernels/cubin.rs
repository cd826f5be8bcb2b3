//! The few facts about a cubin that need no disassembler. A cubin is an ELF file of 64 bits.

/// Bytes of a machine instruction since Volta.
const INSTRUCTION_BYTES: u64 = 16;

/// Number of machine instructions of a kernel, padding included: the size of its section `.text.<kernel>`.
pub fn instructions(cubin: &[u8], kernel: &str) -> Option<u64> {
    let wanted = format!(".text.{kernel}");
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let field = cubin.get(at..at.checked_add(bytes)?)?;
        Some(field.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    };
    let at = |n: u64| usize::try_from(n).ok();
    if cubin.get(..4) != Some(b"\x7fELF") {
        return None;
    }
    let (table, entry) = (at(number(0x28, 8)?)?, at(number(0x3A, 2)?)?);
    let (count, names) = (at(number(0x3C, 2)?)?, at(number(0x3E, 2)?)?);
    let field = |section: usize, offset: usize, bytes: usize| {
        number(table.checked_add(section.checked_mul(entry)?)?.checked_add(offset)?, bytes)
    };
    let strings = at(field(names, 0x18, 8)?)?;
    (0..count).find_map(|section| {
        let name = strings.checked_add(at(field(section, 0, 4)?)?)?;
        let text = cubin.get(name..name.checked_add(wanted.len() + 1)?)?;
        let same = text.strip_suffix(&[0]) == Some(wanted.as_bytes());
        same.then(|| field(section, 0x20, 8)).flatten().map(|bytes| bytes / INSTRUCTION_BYTES)
    })
}

#[test]
fn what_is_no_cubin_has_no_instructions() {
    assert_eq!(instructions(b"", "k"), None);
    assert_eq!(instructions(b"\x7fELF", "k"), None);
    assert_eq!(instructions(&[0x7f; 200], "k"), None);
    let mut cut = b"\x7fELF".to_vec();
    cut.resize(64, 0xff);
    assert_eq!(instructions(&cut, "k"), None);
}
