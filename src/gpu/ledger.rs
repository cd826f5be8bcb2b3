//! The ledger: how many bytes of device memory are in use, for what, and how many there were at most. Pure counting.

use crate::error::Error;
use std::collections::BTreeMap;
use std::fmt;

/// Lines of the table in an out-of-memory error.
const LARGEST: usize = 10;

/// What one tag uses. Bytes are those that the blocks take, rounded up as the device rounds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagUse {
    /// The tag given to [`super::Gpu::alloc`].
    pub tag: &'static str,
    /// Bytes alive now.
    pub live_bytes: u64,
    /// The most bytes of this tag that were ever alive at once.
    pub peak_bytes: u64,
    /// Allocations alive now.
    pub live_count: u64,
    /// Allocations ever made.
    pub total_count: u64,
    /// The largest single allocation ever made.
    pub largest_bytes: u64,
}

/// Use of a device's memory by this program, as [`super::Gpu::memory`] tells it.
#[derive(Clone, Debug)]
pub struct MemoryReport {
    /// Bytes in use now.
    pub live_bytes: u64,
    /// The most bytes that were ever in use at once.
    pub peak_bytes: u64,
    /// Bytes taken from the driver: in use, free for the next request, or kept for captured graphs.
    pub reserved_bytes: u64,
    /// Reserved bytes that any request may take.
    pub free_bytes: u64,
    /// The largest request that needs no more memory from the driver.
    pub largest_free_bytes: u64,
    /// The most bytes that may be reserved, if a limit is set.
    pub limit_bytes: Option<u64>,
    /// Free and total bytes of the device, of all programs, if the driver tells.
    pub device_bytes: Option<(u64, u64)>,
    /// By tag, the largest live use first.
    pub tags: Vec<TagUse>,
}

impl MemoryReport {
    /// How much of the free memory lies in pieces smaller than the largest: 0 is one piece.
    pub fn fragmentation(&self) -> f64 {
        match self.free_bytes {
            0 => 0.0,
            free => 1.0 - self.largest_free_bytes as f64 / free as f64,
        }
    }

    /// The use of one tag, if it was ever used.
    pub fn tag(&self, tag: &str) -> Option<&TagUse> {
        self.tags.iter().find(|t| t.tag == tag)
    }

    /// The error for a request that cannot be met: what was wanted, what there is, who has it, what to change.
    pub(super) fn out_of_memory(&self, wanted: u64, tag: &str) -> Error {
        let Self { live_bytes, free_bytes, .. } = *self;
        let room = match (self.limit_bytes, self.device_bytes) {
            (Some(limit), _) => format!("of the limit of {}", Bytes(limit)),
            (None, Some((_, total))) => format!("of the device's {}", Bytes(total)),
            (None, None) => "of the device".into(),
        };
        let mut text = format!(
            "out of device memory: `{tag}` asks for {}; {} {room} are in use, {} are free in pieces of at most {} \
             ({:.0} % fragmented)",
            Bytes(wanted),
            Bytes(live_bytes),
            Bytes(free_bytes),
            Bytes(self.largest_free_bytes),
            100.0 * self.fragmentation(),
        );
        if let Some((free, total)) = self.device_bytes {
            text += &format!("; the driver has {} of {} left for all programs", Bytes(free), Bytes(total));
        }
        let live: Vec<&TagUse> = self.tags.iter().filter(|t| t.live_bytes > 0).take(LARGEST).collect();
        if !live.is_empty() {
            text += "\n  the largest users:";
            for t in live {
                text += &format!("\n    {t}");
            }
        }
        let limited = self.limit_bytes.is_some_and(|l| self.device_bytes.is_none_or(|(_, total)| l < total));
        let mut remedy = String::from("reduce the batch (`--set train.batch=...`) or the image size");
        remedy += match (limited, free_bytes >= wanted) {
            (true, _) => ", or raise the memory limit of the device",
            (false, true) => ", or give unused memory back with `Gpu::trim`: the free pieces are too small",
            (false, false) => ", or free the device from other programs (`nvidia-smi` lists them)",
        };
        Error::device(text).with_remedy(remedy)
    }
}

impl fmt::Display for TagUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<24} {:>11} in {} allocations (peak {}, largest {})",
            self.tag,
            Bytes(self.live_bytes).to_string(),
            self.live_count,
            Bytes(self.peak_bytes),
            Bytes(self.largest_bytes),
        )
    }
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} in use, {} at most; {} reserved, {} of it free in pieces of at most {}",
            Bytes(self.live_bytes),
            Bytes(self.peak_bytes),
            Bytes(self.reserved_bytes),
            Bytes(self.free_bytes),
            Bytes(self.largest_free_bytes)
        )?;
        self.tags.iter().try_for_each(|t| writeln!(f, "  {t}"))
    }
}

/// Bytes for people: 1.50 GiB.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB"];
        match (self.0.max(1).ilog2() as usize / 10).min(units.len() - 1) {
            0 => write!(f, "{} B", self.0),
            i => write!(f, "{:.2} {}", self.0 as f64 / (1u64 << (10 * i)) as f64, units[i]),
        }
    }
}

/// Counts allocations by tag.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    live: u64,
    peak: u64,
    tags: BTreeMap<&'static str, TagUse>,
}

impl Ledger {
    /// Counts a new allocation.
    pub fn add(&mut self, tag: &'static str, bytes: u64) {
        let new =
            TagUse { tag, live_bytes: 0, peak_bytes: 0, live_count: 0, total_count: 0, largest_bytes: 0 };
        let t = self.tags.entry(tag).or_insert(new);
        t.live_bytes += bytes;
        t.peak_bytes = t.peak_bytes.max(t.live_bytes);
        t.live_count += 1;
        t.total_count += 1;
        t.largest_bytes = t.largest_bytes.max(bytes);
        self.live += bytes;
        self.peak = self.peak.max(self.live);
    }

    /// Counts its end.
    pub fn remove(&mut self, tag: &'static str, bytes: u64) {
        let Some(t) = self.tags.get_mut(tag) else { return };
        t.live_bytes = t.live_bytes.saturating_sub(bytes);
        t.live_count = t.live_count.saturating_sub(1);
        self.live = self.live.saturating_sub(bytes);
    }

    /// Begins the peaks anew at what is alive now.
    pub fn reset_peaks(&mut self) {
        self.peak = self.live;
        self.tags.values_mut().for_each(|t| t.peak_bytes = t.live_bytes);
    }

    /// Bytes alive now.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// The most bytes that were ever alive at once.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// All tags, the largest live use first, then the largest peak, then by name.
    pub fn tags(&self) -> Vec<TagUse> {
        let mut tags: Vec<TagUse> = self.tags.values().cloned().collect();
        tags.sort_by_key(|t| (std::cmp::Reverse((t.live_bytes, t.peak_bytes)), t.tag));
        tags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAGS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

    fn report(ledger: &Ledger, free: &[u64], limit: Option<u64>) -> MemoryReport {
        MemoryReport {
            live_bytes: ledger.live(),
            peak_bytes: ledger.peak(),
            reserved_bytes: ledger.live() + free.iter().sum::<u64>(),
            free_bytes: free.iter().sum(),
            largest_free_bytes: free.iter().copied().max().unwrap_or(0),
            limit_bytes: limit,
            device_bytes: Some((1 << 20, 80 << 30)),
            tags: ledger.tags(),
        }
    }

    #[test]
    fn the_error_names_the_ten_largest_and_what_to_change() {
        let mut ledger = Ledger::default();
        for (i, tag) in TAGS.into_iter().enumerate() {
            ledger.add(tag, 512 << i);
        }
        ledger.add("l", 3 << 20);
        ledger.remove("b", 1024);
        let r = report(&ledger, &[1024, 3072], Some(8 << 20));
        assert_eq!(r.fragmentation(), 0.25);
        let text = r.out_of_memory(1536 << 20, "activations").to_string();
        for part in [
            "`activations` asks for 1.50 GiB",
            "of the limit of 8.00 MiB are in use",
            "4.00 KiB are free in pieces of at most 3.00 KiB (25 % fragmented)",
            "1.00 MiB of 80.00 GiB left",
            "4.00 MiB in 2 allocations (peak 4.00 MiB, largest 3.00 MiB)",
            "train.batch",
            "raise the memory limit",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        // l .. c without the freed b; a is the eleventh.
        let listed: Vec<&str> =
            text.lines().filter_map(|l| l.strip_prefix("    ")).map(|l| &l[..1]).collect();
        assert_eq!(listed, ["l", "k", "j", "i", "h", "g", "f", "e", "d", "c"]);
        let text = report(&ledger, &[1024, 1024], None).out_of_memory(2048, "x").to_string();
        assert!(text.contains("of the device's 80.00 GiB") && text.contains("Gpu::trim"), "{text}");
    }

    proptest! {
        #[test]
        fn counts_as_the_list_of_living_allocations(calls in proptest::collection::vec((0usize..4, 0u64..5000, any::<bool>()), 0..100)) {
            let mut ledger = Ledger::default();
            let mut living: Vec<(usize, u64)> = Vec::new();
            let (mut peak, mut peaks) = (0, [0u64; 4]);
            for (tag, bytes, end) in calls {
                if end && !living.is_empty() {
                    let (tag, bytes) = living.swap_remove(bytes as usize % living.len());
                    ledger.remove(TAGS[tag], bytes);
                } else {
                    ledger.add(TAGS[tag], bytes);
                    living.push((tag, bytes));
                }
                peak = peak.max(living.iter().map(|l| l.1).sum());
                for t in 0..4 {
                    let live = living.iter().filter(|l| l.0 == t).map(|l| l.1).sum();
                    peaks[t] = peaks[t].max(live);
                    let told = ledger.tags().into_iter().find(|u| u.tag == TAGS[t]);
                    let count = living.iter().filter(|l| l.0 == t).count() as u64;
                    prop_assert_eq!(told.map_or((0, 0, 0), |u| (u.live_bytes, u.peak_bytes, u.live_count)), (live, peaks[t], count));
                }
                prop_assert_eq!((ledger.live(), ledger.peak()), (living.iter().map(|l| l.1).sum(), peak));
            }
            ledger.reset_peaks();
            prop_assert_eq!(ledger.peak(), ledger.live());
            prop_assert!(ledger.tags().is_sorted_by(|a, b| a.live_bytes >= b.live_bytes));
        }
    }
}
