//! Random keys that change from step to step under a captured graph: a table in the memory of the device, written before
//! each step, that kernels read.

use crate::base::{DType, Philox};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use bytemuck::{Pod, Zeroable};

/// Bytes of an entry of a table: key, then stream, two 32-bit words each, little endian.
pub const KEY_BYTES: usize = 16;

/// One entry of a table of random streams on the device.
#[derive(Clone, Debug)]
pub struct DeviceKey {
    /// The table, u8 `[n, 16]`; an entry holds the words of [`Philox::words`].
    pub table: Tensor,
    /// Which entry.
    pub index: usize,
}

/// `philox::Key` of `kernels/tile/philox.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct KeyParams {
    entry: u64,
    pad: u64,
    words: [u32; 4],
}

impl DeviceKey {
    /// The bytes of a table for these streams.
    pub fn bytes(streams: &[Philox]) -> Vec<u8> {
        streams.iter().flat_map(|s| s.words()).flat_map(u32::to_le_bytes).collect()
    }

    fn address(&self) -> Result<u64> {
        let shape = self.table.shape();
        if self.table.dtype() == DType::U8 && matches!(*shape, [n, KEY_BYTES] if self.index < n) {
            return Ok(self.table.cuda_ptr()? + (self.index * KEY_BYTES) as u64);
        }
        let what = format!("there is no random key {} in {:?}", self.index, self.table);
        Err(Error::shape("device key", what)
            .with_remedy("make the table u8 [n, 16] with an entry for every draw"))
    }
}

impl KeyParams {
    /// The entry where there is one, else the stream itself.
    ///
    /// # Errors
    /// The table has no such entry or does not lie on a device.
    pub fn new(key: Option<&DeviceKey>, stream: &Philox) -> Result<KeyParams> {
        let entry = key.map_or(Ok(0), DeviceKey::address)?;
        let words = if entry == 0 { stream.words() } else { [0; 4] };
        Ok(KeyParams { entry, pad: 0, words })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_words_in_order() {
        let streams = [Philox::new(0x0102_0304_0506_0708), Philox::new(9).fold(1)];
        let bytes = DeviceKey::bytes(&streams);
        assert_eq!(bytes.len(), 2 * KEY_BYTES);
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[KEY_BYTES..][..4], streams[1].words()[0].to_le_bytes());
    }

    #[test]
    fn entries_that_are_not_there_are_errors() {
        let table = Tensor::from_vec([2, 16], vec![0u8; 32]).unwrap();
        let e =
            KeyParams::new(Some(&DeviceKey { table: table.clone(), index: 2 }), &Philox::new(1)).unwrap_err();
        assert!(e.is_shape() && e.remedy().is_some(), "{e}");
        assert!(
            KeyParams::new(Some(&DeviceKey { table, index: 1 }), &Philox::new(1)).is_err(),
            "on the host"
        );
        assert_eq!(KeyParams::new(None, &Philox::new(7)).unwrap().words, Philox::new(7).words());
    }
}
