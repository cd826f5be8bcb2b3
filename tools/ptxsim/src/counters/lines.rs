//! Counts by source line.

use super::Tally;
use crate::exec::inst::Class;
use crate::exec::program::Kernel;
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
        let sectors = if code.origins[pc as usize].class == Class::LoadConstant { 0 } else { t.sectors };
        if let Some(line) = lines.get_mut(&key(pc as usize)) {
            line.sectors += sectors;
            line.wavefronts += t.wavefronts;
            line.ideal_wavefronts += t.ideal_wavefronts;
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
