//! The bytes of one entry of the kernel cache.
//!
//! ```text
//! 0   8  "DTKKERN" and the format's number
//! 8   8  length of what follows behind the checksum, little-endian
//! 16 32  its SHA-256
//! 48     key (32 bytes), then four parts, each with its length in 8 bytes before it:
//!        for whom it may concern (text), log and resources (JSON), PTX, cubin
//! ```

use super::nvrtc::{Image, Resources};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Changes with everything in this file.
pub(super) const FORMAT: u8 = 1;

const MAGIC: [u8; 8] = *b"DTKKERN\x01";
const HEAD: usize = 48;

#[derive(Serialize, Deserialize)]
struct Report {
    log: String,
    resources: Vec<Resources>,
}

/// The file of an image. `what` is for those who look into it.
pub(super) fn encode(key: &[u8; 32], what: &str, image: &Image) -> Vec<u8> {
    let report = Report { log: image.log.clone(), resources: image.resources.clone() };
    // Strings and numbers have no way to fail.
    let report = serde_json::to_vec(&report).unwrap_or_default();
    let mut payload = key.to_vec();
    for part in [what.as_bytes(), &report, image.ptx.as_bytes(), &image.cubin] {
        payload.extend((part.len() as u64).to_le_bytes());
        payload.extend(part);
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(Sha256::digest(&payload));
    bytes.extend(payload);
    bytes
}

/// The image of a file; why it is no good.
pub(super) fn decode(bytes: &[u8], key: &[u8; 32]) -> Result<Image, &'static str> {
    let (head, payload) = bytes.split_at_checked(HEAD).ok_or("shorter than its head")?;
    if head[..8] != MAGIC {
        return Err("no entry of a kernel cache, or one of another version");
    }
    if head[8..16] != (payload.len() as u64).to_le_bytes() {
        return Err("shorter or longer than it says");
    }
    if head[16..] != *Sha256::digest(payload) {
        return Err("its checksum does not fit");
    }
    let broken = "its parts do not fit together";
    let (of, mut rest) = payload.split_at_checked(key.len()).ok_or(broken)?;
    if of != key {
        return Err("it belongs to another kernel");
    }
    let mut part = || {
        let (length, behind) = rest.split_first_chunk::<8>()?;
        let (part, behind) = behind.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        rest = behind;
        Some(part)
    };
    let (_what, report) = (part().ok_or(broken)?, part().ok_or(broken)?);
    let (ptx, cubin) = (part().ok_or(broken)?, part().ok_or(broken)?);
    let Report { log, resources } = serde_json::from_slice(report).map_err(|_| broken)?;
    let ptx = String::from_utf8(ptx.to_vec()).map_err(|_| broken)?;
    Ok(Image { ptx, cubin: cubin.to_vec(), log, resources })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image {
            ptx: ".version 9.0\n".into(),
            cubin: vec![0x7f, b'E', b'L', b'F', 0],
            log: "ptxas info\n".into(),
            resources: vec![Resources { kernel: "k".into(), registers: 40, ..Resources::default() }],
        }
    }

    #[test]
    fn there_and_back() {
        assert_eq!(MAGIC[7], FORMAT);
        let bytes = encode(&[7; 32], "k.cu for sm_80", &image());
        assert_eq!(decode(&bytes, &[7; 32]), Ok(image()));
        assert_eq!(decode(&bytes, &[8; 32]), Err("it belongs to another kernel"));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_noticed() {
        let bytes = encode(&[7; 32], "k", &image());
        for n in 0..bytes.len() {
            assert!(decode(&bytes[..n], &[7; 32]).is_err(), "cut to {n}");
            let mut changed = bytes.clone();
            changed[n] ^= 0x10;
            assert!(decode(&changed, &[7; 32]).is_err(), "byte {n}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(decode(&longer, &[7; 32]).is_err());
        assert!(decode(b"", &[7; 32]).is_err());
    }
}
