//! Counts by source line, and by the files that inlined code came through.

use super::Tally;
use super::memory::global_width;
use crate::exec::inst::Class;
use crate::exec::program::Kernel;
use crate::mem::stats::Traffic;
use serde::Serialize;
use std::collections::BTreeMap;

/// What one source line did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Line {
    /// `.cu` file; empty where the PTX has no source lines.
    pub file: String,
    /// Line of that file, or of the PTX text where `file` is empty.
    pub line: u32,
    /// Warp instructions.
    pub warp_instructions: u64,
    /// Lane instructions.
    pub lane_instructions: u64,
    /// Branches at which lanes went different ways.
    pub divergent_branches: u64,
    /// Sectors of global and local memory.
    pub sectors: u64,
    /// Passes through the banks of shared memory.
    pub wavefronts: u64,
    /// The same without bank conflicts.
    pub ideal_wavefronts: u64,
    /// Bytes of a lane in the narrowest access to global memory; none without one.
    pub narrowest_global: Option<u64>,
}

/// What the code did that got where it is through the same source files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// Paths in the line information: the file it was written in, then those of the calls that it was inlined at, outwards.
    /// A file that follows itself is told once.
    pub files: Vec<String>,
    /// Warp instructions.
    pub warp_instructions: u64,
    /// Sectors of global and local memory.
    pub sectors: u64,
    /// Passes through the banks of shared memory.
    pub wavefronts: u64,
    /// The same without bank conflicts.
    pub ideal_wavefronts: u64,
}

/// Chains that were executed, by their files. Instructions without a source line belong to none.
pub(super) fn chains(kernel: &Kernel, tally: &Tally) -> Vec<Chain> {
    let code = kernel.code();
    let files = |pc: usize| -> Vec<u32> {
        let o = &code.origins[pc];
        if o.loc.line == 0 {
            return Vec::new();
        }
        let mut files: Vec<u32> =
            std::iter::once(&o.loc).chain(kernel.callers(o.ptx_line)).map(|l| l.file).collect();
        files.dedup();
        files
    };
    let mut chains: BTreeMap<Vec<u32>, Chain> = BTreeMap::new();
    for pc in (0..code.insts.len()).filter(|&pc| tally.issued(pc) != 0) {
        chains.entry(files(pc)).or_default().warp_instructions += tally.issued(pc);
    }
    for (site, &pc) in code.site_pc.iter().enumerate() {
        let t = &tally.traffic[site];
        if let Some(chain) = chains.get_mut(&files(pc as usize)) {
            chain.sectors += sectors(code.origins[pc as usize].class, t);
            chain.wavefronts += t.wavefronts;
            chain.ideal_wavefronts += t.ideal_wavefronts;
        }
    }
    chains.remove(&Vec::new());
    let name = |index: u32| kernel.file(index).to_string();
    let mut chains: Vec<Chain> = chains
        .into_iter()
        .map(|(files, chain)| Chain { files: files.into_iter().map(name).collect(), ..chain })
        .collect();
    chains.sort_by(|a, b| a.files.cmp(&b.files));
    chains
}

/// Sectors of global and local memory; constants have none.
fn sectors(class: Class, t: &Traffic) -> u64 {
    if class == Class::LoadConstant { 0 } else { t.sectors }
}

/// Lines that were executed, by file and line.
pub(super) fn collect(kernel: &Kernel, tally: &Tally) -> Vec<Line> {
    let code = kernel.code();
    let key = |pc: usize| {
        let o = &code.origins[pc];
        if o.loc.line == 0 { (0, o.ptx_line) } else { (o.loc.file, o.loc.line) }
    };
    let mut lines: BTreeMap<(u32, u32), Line> = BTreeMap::new();
    for pc in 0..code.insts.len() {
        if tally.issued(pc) != 0 {
            let line = lines.entry(key(pc)).or_default();
            line.warp_instructions += tally.issued(pc);
            line.lane_instructions += tally.lanes(pc);
            line.divergent_branches += tally.divergent(pc);
        }
    }
    for (site, &pc) in code.site_pc.iter().enumerate() {
        let t = &tally.traffic[site];
        let class = code.origins[pc as usize].class;
        if let Some(line) = lines.get_mut(&key(pc as usize)) {
            line.sectors += sectors(class, t);
            line.wavefronts += t.wavefronts;
            line.ideal_wavefronts += t.ideal_wavefronts;
            if let Some(width) = global_width(class, t) {
                line.narrowest_global = Some(line.narrowest_global.map_or(width, |w| w.min(width)));
            }
        }
    }
    let named = |((file, number), line): ((u32, u32), Line)| Line {
        file: if file == 0 { String::new() } else { kernel.file(file).to_string() },
        line: number,
        ..line
    };
    let mut lines: Vec<Line> = lines.into_iter().map(named).collect();
    lines.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    lines
}
