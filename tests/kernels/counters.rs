//! What the simulator counts, as far as tests look at it.

use dtk::gpu::Gpu;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Counters of one launch.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// The kernel's entry.
    pub kernel: String,
    /// Passes through shared memory in the main loop, and as few as they could be.
    pub main_loop: Waves,
    /// The same outside of it.
    pub elsewhere: Waves,
    /// Distinct bytes loaded from global memory, and bytes of the sectors that moved.
    pub loads: Bytes,
    /// The same for stores.
    pub stores: Bytes,
    /// Warp accesses to global memory by bytes of a lane: (bytes, accesses).
    pub widths: Vec<(u64, u64)>,
    /// Lines with accesses of less than 16 bytes: `tile/x.cuh:7 (4 bytes)`.
    pub narrow: Vec<String>,
    /// Operations of matrix instructions.
    pub tensor_flops: u64,
    /// Shared memory of a block, declared and given by the launch.
    pub shared_bytes: u32,
}

/// Passes through the banks of shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Waves {
    /// As they are.
    pub real: u64,
    /// Without conflicts.
    pub ideal: u64,
}

/// Bytes of global memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bytes {
    /// Asked for.
    pub useful: u64,
    /// In the sectors that moved.
    pub moved: u64,
}

/// Main loops: code that was inlined through this file, and not through one of the others, is part of one.
const MAIN_LOOP: &str = "mainloop.cuh";
/// Parts of main loop files that serve the epilogue.
const NOT_MAIN_LOOP: &str = "epilogue.cuh";

impl Waves {
    /// 1 where there is nothing to do.
    pub fn factor(self) -> f64 {
        if self.ideal == 0 { 1.0 } else { self.real as f64 / self.ideal as f64 }
    }
}

impl Bytes {
    /// 1 where nothing moved in vain, or at all.
    pub fn efficiency(self) -> f64 {
        if self.moved == 0 { 1.0 } else { self.useful as f64 / self.moved as f64 }
    }
}

fn number(v: &Value) -> u64 {
    v.as_u64().unwrap_or_else(|| panic!("{v} is no count"))
}

impl Counters {
    fn of(launch: &Value) -> Counters {
        let c = &launch["counters"];
        let m = &c["memory"];
        let bytes = |parts: &[&str]| Bytes {
            useful: parts.iter().map(|p| number(&m[p]["distinct_bytes"])).sum(),
            moved: parts.iter().map(|p| 32 * number(&m[p]["sectors"])).sum(),
        };
        let (mut main_loop, mut elsewhere) = (Waves::default(), Waves::default());
        for chain in c["chains"].as_array().expect("a list of chains") {
            let through = |name: &str| {
                chain["files"]
                    .as_array()
                    .expect("a list")
                    .iter()
                    .any(|f| f.as_str().unwrap_or("").ends_with(name))
            };
            let waves =
                if through(MAIN_LOOP) && !through(NOT_MAIN_LOOP) { &mut main_loop } else { &mut elsewhere };
            waves.real += number(&chain["wavefronts"]);
            waves.ideal += number(&chain["ideal_wavefronts"]);
        }
        let narrow = c["lines"].as_array().expect("a list of lines").iter().filter_map(|l| {
            let width = l["narrowest_global"].as_u64().filter(|&w| w < 16)?;
            Some(format!("{}:{} ({width} bytes)", l["file"].as_str()?, l["line"]))
        });
        let widths = m["global_widths"].as_object().expect("widths").iter();
        let r = &c["resources"];
        Counters {
            kernel: launch["kernel"].as_str().expect("a name").to_string(),
            main_loop,
            elsewhere,
            loads: bytes(&["global_load", "async_copy"]),
            stores: bytes(&["global_store"]),
            widths: widths.map(|(w, n)| (w.parse().expect("bytes"), number(n))).collect(),
            narrow: narrow.collect(),
            tensor_flops: number(&c["flops"]["tensor"]),
            shared_bytes: (number(&r["static_shared_bytes"]) + number(&r["dynamic_shared_bytes"])) as u32,
        }
    }
}

/// The launches that the simulator has counted since it was last cleared; clears it. `None` on a card.
///
/// Panics if it found anything.
pub fn take(gpu: &Gpu, what: &str) -> Option<Vec<Counters>> {
    let report: Value = serde_json::from_str(&gpu.report_json()?).expect("the simulator writes JSON");
    let findings = |l: &Value| l["findings"].as_array().cloned().unwrap_or_default();
    let launches = report["launches"].as_array().expect("a list of launches");
    let found: Vec<Value> = launches.iter().flat_map(findings).collect();
    assert!(report["findings"] == 0, "{what}: {found:#?} {:#?}", report["stream_findings"]);
    assert!(report["dropped_launches"] == 0, "{what}: more launches than the simulator keeps");
    gpu.report_clear();
    Some(launches.iter().map(Counters::of).collect())
}
