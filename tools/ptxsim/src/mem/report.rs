//! Who makes an access, and telling what is wrong with it.

use super::who::{MAX_SITE, SITE_SHIFT, STRONG, WARP_SHIFT};
use crate::check::{Findings, Kind, Who};

/// The maker of an access, for shadows and findings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    /// Number of the memory instruction among the kernel's.
    pub site: u32,
    /// Instruction, as findings name it.
    pub pc: u32,
    /// Warp of the block.
    pub warp: u32,
    /// An atomic, a relaxed, acquire or release access, a volatile read, or a volatile write after a fence: two such
    /// accesses never race with each other.
    pub strong: bool,
}

impl Access {
    /// The bits above [`super::who::WHO_BITS`] that both shadows share.
    #[inline(always)]
    pub fn flags(&self) -> u32 {
        (self.warp << WARP_SHIFT) | if self.strong { STRONG } else { 0 }
    }

    /// What a shared shadow keeps, but for the lanes.
    #[inline(always)]
    pub fn info(&self) -> u32 {
        self.flags() | self.site.min(MAX_SITE) << SITE_SHIFT
    }
}

/// Names memory instructions by their sites.
pub trait Places {
    /// `line 12`
    fn place(&self, site: u32) -> String;
}

impl<F: Fn(u32) -> String> Places for F {
    fn place(&self, site: u32) -> String {
        self(site)
    }
}

/// Where findings go, and how they name the block and other instructions.
pub struct Reporter<'a> {
    /// Of this host thread.
    pub findings: &'a mut Findings,
    /// Linear number of the block.
    pub block: u64,
    /// `blockIdx`
    pub index: [u32; 3],
    /// `gridDim`
    pub grid: [u32; 3],
    /// Names other instructions.
    pub places: &'a dyn Places,
}

impl Reporter<'_> {
    /// Adds a finding about one lane.
    pub fn add(
        &mut self,
        kind: Kind,
        access: &Access,
        lane: usize,
        address: u64,
        message: impl FnOnce(&dyn Places) -> String,
    ) {
        let who = Who { block: self.index, warp: access.warp, lane: lane as u32 };
        let places = self.places;
        self.findings.add(kind, access.pc, self.block, who, Some(address), || message(places));
    }
}

/// The launch cannot go on: a fault was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop;

/// `1 byte`, `4 bytes`.
pub fn bytes(n: u64) -> String {
    if n == 1 { "1 byte".to_string() } else { format!("{n} bytes") }
}
