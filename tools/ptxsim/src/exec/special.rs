//! Special registers (`%tid.x`, `%laneid`, ...). Those that stand still while a block runs are rows of the register file,
//! filled when the block starts; clocks are read by `mov` (see `control`).

use super::lanes::LANES;

/// A special register.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NwarpId,
    SmId,
    NsmId,
    GridId,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    TotalSharedSize,
    DynamicSharedSize,
    ClusterId(u8),
    NclusterId(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
    EnvReg,
}

/// Facts of a launch and a block that special registers tell.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// `blockDim`
    pub block_dim: [u32; 3],
    /// `gridDim`
    pub grid_dim: [u32; 3],
    /// `blockIdx`
    pub block: [u32; 3],
    /// Cluster shape; ones without clusters.
    pub cluster: [u32; 3],
    /// Static and dynamic shared memory.
    pub shared_bytes: u32,
    /// Dynamic part.
    pub dynamic_shared_bytes: u32,
    /// Multiprocessors of the card.
    pub multiprocessors: u32,
    /// Number of the launch.
    pub grid_id: u64,
}

impl Special {
    /// `%tid.x`; `%tid` alone is a vector and is not taken.
    pub fn parse(name: &str) -> Option<Special> {
        if let Some(n) = name.strip_prefix("%envreg") {
            return n.parse::<u32>().ok().filter(|&n| n < 32).map(|_| Special::EnvReg);
        }
        if let Some((base, axis)) = name.rsplit_once('.') {
            let axis = match axis {
                "x" => 0,
                "y" => 1,
                "z" => 2,
                _ => return None,
            };
            return Some(match base {
                "%tid" => Special::Tid(axis),
                "%ntid" => Special::Ntid(axis),
                "%ctaid" => Special::Ctaid(axis),
                "%nctaid" => Special::Nctaid(axis),
                "%clusterid" => Special::ClusterId(axis),
                "%nclusterid" => Special::NclusterId(axis),
                "%cluster_ctaid" => Special::ClusterCtaid(axis),
                "%cluster_nctaid" => Special::ClusterNctaid(axis),
                _ => return None,
            });
        }
        Some(match name {
            "%laneid" => Special::LaneId,
            "%warpid" => Special::WarpId,
            "%nwarpid" => Special::NwarpId,
            "%smid" => Special::SmId,
            "%nsmid" => Special::NsmId,
            "%gridid" => Special::GridId,
            "%lanemask_eq" => Special::LaneMaskEq,
            "%lanemask_lt" => Special::LaneMaskLt,
            "%lanemask_le" => Special::LaneMaskLe,
            "%lanemask_gt" => Special::LaneMaskGt,
            "%lanemask_ge" => Special::LaneMaskGe,
            "%total_smem_size" => Special::TotalSharedSize,
            "%dynamic_smem_size" => Special::DynamicSharedSize,
            "%cluster_ctarank" => Special::ClusterCtarank,
            "%cluster_nctarank" => Special::ClusterNctarank,
            _ => return None,
        })
    }

    /// Rows of the register.
    pub fn rows(self) -> u32 {
        if self == Special::GridId { 2 } else { 1 }
    }

    /// Value in a lane of a warp.
    pub fn value(self, facts: &Facts, warp: u32, lane: u32) -> u64 {
        let [bx, by, _] = facts.block_dim;
        let thread = warp * LANES as u32 + lane;
        let axis = |v: [u32; 3], a: u8| v[usize::from(a)];
        let threads: u32 = facts.block_dim.iter().product();
        u64::from(match self {
            Special::Tid(0) => thread % bx,
            Special::Tid(1) => thread / bx % by,
            Special::Tid(_) => thread / bx / by,
            Special::Ntid(a) => axis(facts.block_dim, a),
            Special::Ctaid(a) => axis(facts.block, a),
            Special::Nctaid(a) => axis(facts.grid_dim, a),
            Special::LaneId => lane,
            Special::WarpId => warp,
            Special::NwarpId => threads.div_ceil(LANES as u32),
            // Which multiprocessor a block runs on is not modelled: blocks go round in order.
            Special::SmId => {
                let linear = facts.block[0]
                    + facts.grid_dim[0] * (facts.block[1] + facts.grid_dim[1] * facts.block[2]);
                linear % facts.multiprocessors.max(1)
            }
            Special::NsmId => facts.multiprocessors,
            Special::GridId => return facts.grid_id,
            Special::LaneMaskEq => 1 << lane,
            Special::LaneMaskLt => (1u32 << lane) - 1,
            Special::LaneMaskLe => u32::MAX >> (31 - lane),
            Special::LaneMaskGt => !(u32::MAX >> (31 - lane)),
            Special::LaneMaskGe => !((1u32 << lane) - 1),
            Special::TotalSharedSize => facts.shared_bytes,
            Special::DynamicSharedSize => facts.dynamic_shared_bytes,
            Special::ClusterId(a) => axis(facts.block, a) / axis(facts.cluster, a).max(1),
            Special::NclusterId(a) => axis(facts.grid_dim, a).div_ceil(axis(facts.cluster, a).max(1)),
            Special::ClusterCtaid(a) => axis(facts.block, a) % axis(facts.cluster, a).max(1),
            Special::ClusterNctaid(a) => axis(facts.cluster, a),
            Special::ClusterCtarank => {
                let c = facts.cluster.map(|n| n.max(1));
                let r: [u32; 3] = std::array::from_fn(|a| facts.block[a] % c[a]);
                r[0] + c[0] * (r[1] + c[1] * r[2])
            }
            Special::ClusterNctarank => facts.cluster.iter().map(|n| n.max(&1)).product(),
            Special::EnvReg => 0,
        })
    }
}
