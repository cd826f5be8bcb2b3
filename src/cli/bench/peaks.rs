//! What a card could do at most: the roofline.

use super::format::Card;
use crate::gpu::DeviceInfo;

/// The limits of a card.
#[derive(Clone, Debug, PartialEq)]
pub struct Peaks {
    /// Dense bf16 products with f32 sums on tensor cores, TFLOP/s.
    pub bf16_tflops: Option<f64>,
    /// f32 multiply-adds, TFLOP/s.
    pub f32_tflops: Option<f64>,
    /// Memory, GB/s.
    pub gbs: f64,
    /// Where the numbers are from.
    pub source: String,
}

/// What limits a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Arithmetic.
    Compute,
    /// Bytes.
    Memory,
}

/// The least time of a pass, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// Milliseconds.
    pub ms: f64,
    /// The longer of the two parts.
    pub bound: Bound,
}

/// Name as the driver gives it, bf16 and f32 TFLOP/s, GB/s, the data sheet. Dense rates: where a sheet gives the rate
/// with sparsity, half of it.
const DATA_SHEETS: &[(&str, f64, f64, f64, &str)] = &[
    ("NVIDIA A100-PCIE-40GB", 312.0, 19.5, 1555.0, "NVIDIA A100 data sheet"),
    ("NVIDIA A100-SXM4-40GB", 312.0, 19.5, 1555.0, "NVIDIA A100 data sheet"),
    ("NVIDIA A100 80GB PCIe", 312.0, 19.5, 1935.0, "NVIDIA A100 data sheet"),
    ("NVIDIA A100-SXM4-80GB", 312.0, 19.5, 2039.0, "NVIDIA A100 data sheet"),
    ("NVIDIA H100 80GB HBM3", 989.0, 67.0, 3350.0, "NVIDIA H100 data sheet, SXM"),
    ("NVIDIA H100 PCIe", 756.0, 51.0, 2000.0, "NVIDIA H100 data sheet, PCIe"),
    ("NVIDIA H200", 989.0, 67.0, 4800.0, "NVIDIA H200 data sheet, SXM"),
];

/// Dense bf16 and f32 multiply-adds of one multiprocessor in a clock, by compute capability (CUDA C++ Programming
/// Guide, arithmetic throughput; architecture white papers). For 8.6 and 8.9 the bf16 rate with f32 sums depends on the
/// product line, so it is left out.
const PER_CLOCK: &[([u32; 2], Option<f64>, f64)] = &[
    ([8, 0], Some(1024.0), 64.0),
    ([8, 6], None, 128.0),
    ([8, 9], None, 128.0),
    ([9, 0], Some(2048.0), 128.0),
];

impl Peaks {
    /// Of a card named `name`: from its data sheet if that is known, else from its attributes.
    pub fn of(name: &str, card: &Card) -> Peaks {
        if let Some(&(_, bf16, f32, gbs, source)) = DATA_SHEETS.iter().find(|s| s.0 == name) {
            let (bf16_tflops, f32_tflops) = (Some(bf16), Some(f32));
            return Peaks { bf16_tflops, f32_tflops, gbs, source: source.into() };
        }
        let rates = PER_CLOCK.iter().find(|r| r.0 == card.compute_capability);
        let tflops = |per_clock: f64| {
            2.0 * per_clock * f64::from(card.multiprocessors) * card.clock_khz as f64 * 1e3 / 1e12
        };
        Peaks {
            bf16_tflops: rates.and_then(|r| r.1).map(tflops),
            f32_tflops: rates.map(|r| tflops(r.2)),
            // Two transfers per clock.
            gbs: 2.0 * card.memory_clock_khz as f64 * 1e3 * f64::from(card.memory_bus_bits) / 8.0 / 1e9,
            source: "worked out from the card's clocks".into(),
        }
    }

    /// Of a device.
    pub fn of_device(info: &DeviceInfo) -> Peaks {
        Peaks::of(&info.name, &Card::of(info))
    }

    /// The least time of a pass over `bytes` with `flops` operations in `dtype`; `None` where a limit is unknown.
    pub fn floor(&self, dtype: &str, flops: u64, bytes: u64) -> Option<Floor> {
        let tflops = if dtype == "bf16" { self.bf16_tflops? } else { self.f32_tflops? };
        let (compute, memory) = (flops as f64 / tflops / 1e9, bytes as f64 / self.gbs / 1e6);
        let bound = if compute >= memory { Bound::Compute } else { Bound::Memory };
        let ms = compute.max(memory);
        (ms > 0.0 && ms.is_finite()).then_some(Floor { ms, bound })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        Card {
            driver: "13.0".into(),
            compute_capability: [9, 0],
            multiprocessors: 132,
            clock_khz: 1_830_000,
            memory_clock_khz: 2_619_000,
            memory_bus_bits: 5120,
            l2_bytes: 50 << 20,
            memory_bytes: 80 << 30,
        }
    }

    #[test]
    fn attributes_agree_with_the_data_sheet() {
        let (sheet, worked) =
            (Peaks::of("NVIDIA H100 80GB HBM3", &card()), Peaks::of("of tomorrow", &card()));
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.1;
        assert!(near(sheet.bf16_tflops.unwrap(), worked.bf16_tflops.unwrap()), "{worked:?}");
        assert!(near(sheet.f32_tflops.unwrap(), worked.f32_tflops.unwrap()), "{worked:?}");
        assert!(near(sheet.gbs, worked.gbs), "{worked:?}");
        let other = Peaks::of("of tomorrow", &Card { compute_capability: [99, 0], ..card() });
        assert_eq!((other.bf16_tflops, other.floor("bf16", 1, 1)), (None, None));
    }

    #[test]
    fn the_longer_part_bounds() {
        let peaks = Peaks::of("NVIDIA H100 80GB HBM3", &card());
        let floor = |flops, bytes| peaks.floor("bf16", flops, bytes);
        assert_eq!(floor(989_000_000_000, 1), Some(Floor { ms: 1.0, bound: Bound::Compute }));
        assert_eq!(floor(1, 3_350_000_000), Some(Floor { ms: 1.0, bound: Bound::Memory }));
        assert_eq!(floor(0, 0), None);
    }
}
