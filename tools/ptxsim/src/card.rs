//! The model of a card: the numbers that a CUDA program can ask for, and what follows from them (occupancy).
//!
//! Nothing here says how fast a card is. The limits decide which launches are accepted.

use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a program sees of a device. Kept as JSON by those who want another card than the two built in; fields left
/// out of a file take the value of [`Card::sm90`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Card {
    /// Name; holds the word `ptxsim`, so that nobody takes a simulated result for a measured one.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Global memory.
    pub total_memory_bytes: u64,
    /// Shared memory that a block may have without asking.
    pub shared_per_block_bytes: u32,
    /// Shared memory that a block may have after `cuFuncSetAttribute`.
    pub shared_per_block_optin_bytes: u32,
    /// Shared memory of a multiprocessor.
    pub shared_per_multiprocessor_bytes: u32,
    /// Shared memory that the system takes of every block.
    pub reserved_shared_per_block_bytes: u32,
    /// Constant memory of a module.
    pub constant_bytes: u32,
    /// 32-bit registers of a block.
    pub registers_per_block: u32,
    /// 32-bit registers of a multiprocessor.
    pub registers_per_multiprocessor: u32,
    /// 32-bit registers of a thread.
    pub registers_per_thread: u32,
    /// Threads of a block.
    pub threads_per_block: u32,
    /// Resident threads of a multiprocessor.
    pub threads_per_multiprocessor: u32,
    /// Resident blocks of a multiprocessor.
    pub blocks_per_multiprocessor: u32,
    /// Blocks of a cluster that every card of the architecture runs; 1 without clusters.
    pub cluster_blocks: u32,
    /// Blocks of a cluster after asking for a non-portable size; 1 without clusters.
    pub cluster_blocks_non_portable: u32,
    /// Second-level cache.
    pub l2_bytes: u32,
    /// Second-level cache that can be set aside for persisting accesses.
    pub l2_persisting_bytes: u32,
    /// Clock of the multiprocessors.
    pub clock_khz: u32,
    /// Clock of the memory.
    pub memory_clock_khz: u32,
    /// Width of the memory bus.
    pub memory_bus_bits: u32,
    /// Copy engines.
    pub async_engines: u32,
    /// Single-precision operations for each double-precision one.
    pub single_to_double_ratio: u32,
}

impl Default for Card {
    fn default() -> Self {
        Self::sm90()
    }
}

/// Which resource allows no more blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Resident blocks.
    Blocks,
    /// Resident warps.
    Warps,
    /// Registers.
    Registers,
    /// Shared memory.
    Shared,
}

/// Resident blocks of a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Occupancy {
    /// Blocks; 0 when a block does not fit at all.
    pub blocks: u32,
    /// Warps that these blocks hold, of [`Occupancy::warps_possible`].
    pub warps: u32,
    /// Warps that a multiprocessor can hold.
    pub warps_possible: u32,
    /// What stops one more block.
    pub limit: Limit,
}

/// Registers are handed to warps in units of so many.
const REGISTER_UNIT: u32 = 256;
/// Warps of a multiprocessor are spread over so many parts, each with its own registers.
const WARP_UNIT: u32 = 4;
/// Shared memory is handed out in units of so many bytes.
const SHARED_UNIT: u32 = 128;

impl Card {
    /// NVIDIA A100-SXM4-80GB.
    pub fn sm80() -> Self {
        Self {
            name: "NVIDIA A100-SXM4-80GB (ptxsim)".to_string(),
            compute_capability: (8, 0),
            multiprocessors: 108,
            total_memory_bytes: 85_198_045_184,
            shared_per_block_optin_bytes: 166_912,
            shared_per_multiprocessor_bytes: 167_936,
            cluster_blocks: 1,
            cluster_blocks_non_portable: 1,
            l2_bytes: 41_943_040,
            l2_persisting_bytes: 31_457_280,
            clock_khz: 1_410_000,
            memory_clock_khz: 1_593_000,
            ..Self::sm90()
        }
    }

    /// NVIDIA H100 80GB HBM3 (SXM).
    pub fn sm90() -> Self {
        Self {
            name: "NVIDIA H100 80GB HBM3 (ptxsim)".to_string(),
            compute_capability: (9, 0),
            multiprocessors: 132,
            total_memory_bytes: 85_029_158_912,
            shared_per_block_bytes: 49_152,
            shared_per_block_optin_bytes: 232_448,
            shared_per_multiprocessor_bytes: 233_472,
            reserved_shared_per_block_bytes: 1024,
            constant_bytes: 65_536,
            registers_per_block: 65_536,
            registers_per_multiprocessor: 65_536,
            registers_per_thread: 255,
            threads_per_block: 1024,
            threads_per_multiprocessor: 2048,
            blocks_per_multiprocessor: 32,
            cluster_blocks: 8,
            cluster_blocks_non_portable: 16,
            l2_bytes: 52_428_800,
            l2_persisting_bytes: 32_768_000,
            clock_khz: 1_980_000,
            memory_clock_khz: 2_619_000,
            memory_bus_bits: 5120,
            async_engines: 3,
            single_to_double_ratio: 2,
        }
    }

    /// A built-in card: `sm_80` (also `a100`) or `sm_90` (also `sm_90a`, `h100`).
    pub fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "sm_80" | "sm80" | "a100" => Some(Self::sm80()),
            "sm_90" | "sm_90a" | "sm90" | "h100" => Some(Self::sm90()),
            _ => None,
        }
    }

    /// Reads a card from JSON text; fields left out are those of [`Card::sm90`].
    pub fn from_json(text: &str) -> Result<Self, String> {
        let mut card: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if card.multiprocessors == 0 || card.threads_per_block == 0 || card.total_memory_bytes == 0 {
            return Err(
                "multiprocessors, threads_per_block and total_memory_bytes must be above 0".to_string()
            );
        }
        if !card.name.contains("ptxsim") {
            card.name.push_str(" (ptxsim)");
        }
        Ok(card)
    }

    /// What `PTXSIM_CARD` holds: the name of a built-in card, or the path of a JSON file.
    pub fn from_setting(setting: &str) -> Result<Self, String> {
        if let Some(card) = Self::named(setting) {
            return Ok(card);
        }
        let path = Path::new(setting);
        match std::fs::read_to_string(path) {
            Ok(text) => Self::from_json(&text).map_err(|e| format!("{}: {e}", path.display())),
            Err(e) => Err(format!("`{setting}` is neither sm_80, sm_90 nor a readable JSON file ({e})")),
        }
    }

    /// The cards of this process: `PTXSIM_CARD` (`sm_90` when unset), `PTXSIM_DEVICES` times (1 when unset).
    pub fn from_environment() -> Result<Vec<Self>, String> {
        let card = match std::env::var("PTXSIM_CARD") {
            Ok(setting) if !setting.is_empty() => {
                Self::from_setting(&setting).map_err(|e| format!("PTXSIM_CARD: {e}"))?
            }
            _ => Self::sm90(),
        };
        let devices = match std::env::var("PTXSIM_DEVICES") {
            Ok(text) if !text.is_empty() => match text.parse::<usize>() {
                Ok(n) if n <= 64 => n,
                _ => return Err(format!("PTXSIM_DEVICES: `{text}` is not a number of devices (0 to 64)")),
            },
            _ => 1,
        };
        Ok(vec![card; devices])
    }

    /// Resident warps of a multiprocessor.
    pub fn warps_per_multiprocessor(&self) -> u32 {
        self.threads_per_multiprocessor / 32
    }

    /// Most threads of a block of which each has so many registers; a multiple of the warp.
    pub fn threads_for_registers(&self, registers: u32) -> u32 {
        let per_warp = (registers.max(1) * 32).next_multiple_of(REGISTER_UNIT);
        let warps = self.registers_per_block / per_warp / WARP_UNIT * WARP_UNIT;
        (warps * 32).min(self.threads_per_block)
    }

    /// How many blocks are resident on a multiprocessor at once: blocks of `threads` threads with `registers` registers
    /// each and `shared` bytes of shared memory (static and dynamic).
    pub fn occupancy(&self, threads: u32, registers: u32, shared: u32) -> Occupancy {
        let warps = threads.max(1).div_ceil(32);
        let mut blocks = self.blocks_per_multiprocessor;
        let mut limit = Limit::Blocks;
        let mut lower = |most: u32, why: Limit| {
            if most < blocks {
                (blocks, limit) = (most, why);
            }
        };
        lower(self.warps_per_multiprocessor() / warps, Limit::Warps);
        let per_warp = (registers.max(1) * 32).next_multiple_of(REGISTER_UNIT);
        let resident = self.registers_per_multiprocessor / per_warp / WARP_UNIT * WARP_UNIT;
        lower(resident / warps, Limit::Registers);
        let per_block = (shared + self.reserved_shared_per_block_bytes).next_multiple_of(SHARED_UNIT);
        lower(self.shared_per_multiprocessor_bytes / per_block.max(1), Limit::Shared);
        if threads > self.threads_per_block {
            lower(0, Limit::Warps);
        }
        if shared > self.shared_per_block_optin_bytes {
            lower(0, Limit::Shared);
        }
        Occupancy { blocks, warps: blocks * warps, warps_possible: self.warps_per_multiprocessor(), limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_cards_have_names_that_say_so() {
        for (name, cc) in [("sm_80", (8, 0)), ("sm_90", (9, 0)), ("SM_90a", (9, 0))] {
            let card = Card::named(name).expect("built in");
            assert_eq!(card.compute_capability, cc);
            assert!(card.name.contains("ptxsim"), "{}", card.name);
        }
        assert_eq!(Card::named("sm_75"), None);
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let card = Card::from_json(r#"{"name": "half a card", "multiprocessors": 66}"#).expect("valid");
        assert_eq!(card.name, "half a card (ptxsim)");
        assert_eq!(card.multiprocessors, 66);
        assert_eq!(card.l2_bytes, Card::sm90().l2_bytes);
        assert!(Card::from_json(r#"{"multiprocesors": 66}"#).is_err(), "a misspelt field");
        assert!(Card::from_json(r#"{"multiprocessors": 0}"#).is_err());
        let there_and_back = Card::from_json(&serde_json::to_string(&Card::sm80()).expect("plain data"));
        assert_eq!(there_and_back.expect("valid"), Card::sm80());
    }

    // Values of NVIDIA's occupancy calculator for compute capability 8.0 and 9.0.
    #[test]
    fn occupancy_by_each_limit() {
        let h100 = Card::sm90();
        let at = |threads, registers, shared| {
            let o = h100.occupancy(threads, registers, shared);
            (o.blocks, o.warps, o.limit)
        };
        assert_eq!(at(32, 16, 0), (32, 32, Limit::Blocks));
        assert_eq!(at(256, 32, 0), (8, 64, Limit::Warps));
        assert_eq!(at(256, 64, 0), (4, 32, Limit::Registers));
        assert_eq!(at(128, 255, 0), (2, 8, Limit::Registers));
        assert_eq!(at(128, 32, 48 * 1024), (4, 16, Limit::Shared));
        assert_eq!(at(128, 32, 232_448), (1, 4, Limit::Shared));
        assert_eq!(at(128, 32, 232_449).0, 0);
        assert_eq!(at(1024, 65, 0).0, 0);
        assert_eq!(at(1056, 16, 0).0, 0);
        assert_eq!(Card::sm80().occupancy(128, 32, 48 * 1024).blocks, 3);
    }

    #[test]
    fn registers_limit_the_block() {
        let card = Card::sm90();
        assert_eq!(card.threads_for_registers(32), 1024);
        assert_eq!(card.threads_for_registers(64), 1024);
        assert_eq!(card.threads_for_registers(65), 896);
        assert_eq!(card.threads_for_registers(128), 512);
        assert_eq!(card.threads_for_registers(255), 256);
    }
}
