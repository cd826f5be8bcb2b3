//! What a program hands over as a module: PTX text, or a binary that may hold PTX.
//!
//! A cubin is machine code, which the simulator does not run. A fat binary is a container of cubins and PTX texts; its
//! PTX is taken if it is not compressed.

use crate::error::{Error, Result};
use crate::state;

const ELF: u32 = u32::from_le_bytes(*b"\x7fELF");
/// A structure that points to a fat binary, as compiled into programs.
const WRAPPER: u32 = 0x4662_43b1;
const FAT_BINARY: u32 = 0xba55_ed50;
/// Kind of an entry of a fat binary that holds PTX.
const PTX_ENTRY: u16 = 1;
/// Flags of compressed entries: LZ4 and Zstandard.
const COMPRESSED: u64 = 0x2000 | 0x8000;
/// Largest image that is believed.
const MOST: u64 = 1 << 32;

const ADVICE: &str = "ptxsim runs PTX, not machine code. Hand PTX over to cuModuleLoadData: compile with NVRTC for \
                      compute_XX and pass its PTX, choosing so where dlsym finds the symbol `ptxsim_version`; or pass \
                      a fat binary that holds PTX uncompressed (fatbinary --compress=false, nvcc --no-compress).";

/// Little-endian numbers at an address of the program's.
struct Reader {
    address: usize,
}

impl Reader {
    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        // SAFETY: the program handed this image over; its headers say how long it is, and `offset` stays within.
        unsafe { crate::ffi::read_host(self.address + offset, &mut bytes) };
        bytes
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.bytes(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset))
    }

    fn text(&self, offset: usize, length: usize) -> String {
        let mut bytes = vec![0; length];
        // SAFETY: as above.
        unsafe { crate::ffi::read_host(self.address + offset, &mut bytes) };
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(length);
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }
}

fn refuse(what: &str) -> Error {
    if !state::quiet() {
        eprintln!("ptxsim: {what} cannot be loaded. {ADVICE}");
    }
    Error::NO_BINARY_FOR_GPU
}

/// The PTX of an image in memory.
pub fn ptx(address: usize, compute_capability: (u32, u32)) -> Result<String> {
    if address == 0 {
        return Err(Error::INVALID_VALUE);
    }
    let image = Reader { address };
    // A text may be shorter than a number; it ends with NUL.
    let mut start = [0u8; 4];
    for (i, byte) in start.iter_mut().enumerate() {
        *byte = image.bytes::<1>(i)[0];
        if *byte == 0 {
            break;
        }
    }
    match u32::from_le_bytes(start) {
        ELF => Err(refuse("a cubin")),
        WRAPPER => {
            let inner = image.u64(8) as usize;
            if inner == 0 { Err(Error::INVALID_IMAGE) } else { ptx(inner, compute_capability) }
        }
        FAT_BINARY => fat_binary(&image, compute_capability),
        _ => {
            let length = (0..).take_while(|&i| image.bytes::<1>(i)[0] != 0).count();
            Ok(image.text(0, length))
        }
    }
}

/// The best PTX of a fat binary: for the highest architecture that the card has.
fn fat_binary(image: &Reader, (major, minor): (u32, u32)) -> Result<String> {
    let header = u64::from(image.u16(6));
    let total = image.u64(8);
    if header < 16 || total > MOST {
        return Err(Error::INVALID_IMAGE);
    }
    let (mut at, end) = (header as usize, (header + total) as usize);
    let mut best: Option<(u32, String)> = None;
    let mut compressed = false;
    while at + 64 <= end {
        let (kind, entry_header, size) =
            (image.u16(at), image.u32(at + 4) as usize, image.u64(at + 8) as usize);
        if entry_header < 64 || at.checked_add(entry_header + size).is_none_or(|n| n > end) {
            return Err(Error::INVALID_IMAGE);
        }
        let (architecture, flags) = (image.u32(at + 28), image.u64(at + 40));
        if kind == PTX_ENTRY && architecture <= major * 10 + minor {
            if flags & COMPRESSED != 0 {
                compressed = true;
            } else if best.as_ref().is_none_or(|b| b.0 < architecture) {
                best = Some((architecture, image.text(at + entry_header, size)));
            }
        }
        at += entry_header + size;
    }
    match best {
        Some((_, text)) => Ok(text),
        None if compressed => Err(refuse("a fat binary whose PTX is compressed")),
        None => Err(refuse("a fat binary without PTX for this card")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fat binary of entries: kind, architecture, flags, contents.
    fn container(entries: &[(u16, u32, u64, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for &(kind, architecture, flags, contents) in entries {
            let mut header = vec![0u8; 64];
            header[0..2].copy_from_slice(&kind.to_le_bytes());
            header[4..8].copy_from_slice(&64u32.to_le_bytes());
            let padded = contents.len().next_multiple_of(8);
            header[8..16].copy_from_slice(&(padded as u64).to_le_bytes());
            header[28..32].copy_from_slice(&architecture.to_le_bytes());
            header[40..48].copy_from_slice(&flags.to_le_bytes());
            body.extend(header);
            body.extend(contents);
            body.resize(body.len() + padded - contents.len(), 0);
        }
        let mut all = FAT_BINARY.to_le_bytes().to_vec();
        all.extend(1u16.to_le_bytes());
        all.extend(16u16.to_le_bytes());
        all.extend((body.len() as u64).to_le_bytes());
        all.extend(body);
        all
    }

    fn load(bytes: &[u8]) -> Result<String> {
        ptx(bytes.as_ptr() as usize, (9, 0))
    }

    #[test]
    fn text_cubin_and_containers() {
        assert_eq!(load(b".version 9.0\0").as_deref(), Ok(".version 9.0"));
        assert_eq!(load(b"\0").as_deref(), Ok(""));
        assert_eq!(load(b"\x7fELF\x02\x01"), Err(Error::NO_BINARY_FOR_GPU));
        let both = container(&[
            (2, 90, 0x11, b"\x7fELF"),
            (1, 80, 0x11, b".target sm_80"),
            (1, 90, 0x11, b".target sm_90"),
        ]);
        assert_eq!(load(&both).as_deref(), Ok(".target sm_90"));
        let newer = container(&[(1, 100, 0, b".target sm_100"), (1, 80, 0, b".target sm_80")]);
        assert_eq!(load(&newer).as_deref(), Ok(".target sm_80"));
        assert_eq!(load(&container(&[(1, 90, 0x2011, b"xxxx")])), Err(Error::NO_BINARY_FOR_GPU));
        assert_eq!(load(&container(&[(2, 90, 0x11, b"\x7fELF")])), Err(Error::NO_BINARY_FOR_GPU));
        let mut wrapper = WRAPPER.to_le_bytes().to_vec();
        wrapper.extend(1u32.to_le_bytes());
        wrapper.extend((both.as_ptr() as u64).to_le_bytes());
        assert_eq!(load(&wrapper).as_deref(), Ok(".target sm_90"));
        let mut cut = both.clone();
        cut[8] = 70;
        assert_eq!(load(&cut), Err(Error::INVALID_IMAGE));
    }
}
