//! Basic blocks of machine code, and the loops in them.

use super::sass::{Instruction, Sass};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// A natural loop: a header, and everything that can come back to it without leaving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    /// First instruction of the header.
    pub header: usize,
    /// Instructions, loops inside included, in order.
    pub body: Vec<usize>,
    /// 1 for a loop that is in no other.
    pub depth: u32,
}

/// How control flows through a kernel.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    /// Every loop, by its header's place.
    pub loops: Vec<Loop>,
    /// Number of loops around each instruction.
    pub depth: Vec<u32>,
    /// Whether each instruction can be reached; padding behind the last `EXIT` cannot.
    pub reachable: Vec<bool>,
}

impl Flow {
    /// Of one kernel.
    pub fn of(sass: &Sass) -> Flow {
        let code = &sass.instructions;
        let mut flow =
            Flow { loops: Vec::new(), depth: vec![0; code.len()], reachable: vec![false; code.len()] };
        if code.is_empty() {
            return flow;
        }
        let graph = Graph::of(code);
        let order = graph.reverse_postorder();
        for &block in &order {
            flow.reachable[graph.blocks[block].clone()].fill(true);
        }
        for (header, members) in graph.loops(&order) {
            let mut body: Vec<usize> = members.iter().flat_map(|&b| graph.blocks[b].clone()).collect();
            body.sort_unstable();
            for &i in &body {
                flow.depth[i] += 1;
            }
            flow.loops.push(Loop { header: graph.blocks[header].start, body, depth: 0 });
        }
        for l in &mut flow.loops {
            l.depth = flow.depth[l.header];
        }
        flow.loops.sort_by_key(|l| l.header);
        flow
    }

    /// The deepest loop; of several, the one with the most instructions, and of those the first.
    pub fn hottest(&self) -> Option<&Loop> {
        self.loops.iter().rev().max_by_key(|l| (l.depth, l.body.len()))
    }
}

/// Where control can go from an instruction, and whether also to the next one. Empty for one that ends the thread.
fn successors(code: &[Instruction], at: usize) -> (Vec<usize>, bool) {
    let i = &code[at];
    let guarded = !i.guard.is_empty() && i.guard != "PT";
    let base = i.opcode.split('.').next().unwrap_or("");
    match base {
        "EXIT" | "RET" | "KILL" => (Vec::new(), guarded),
        // The way for warps that have diverged where they should not: cold, and back in the loop in the end.
        "BRA" if i.opcode.contains(".DIV") => (Vec::new(), true),
        "BRA" | "JMP" => {
            // `BRA UP0, target` has its condition among the operands.
            let conditional = guarded || i.operands.contains(',');
            (i.targets.clone(), conditional)
        }
        "BRX" | "JMX" | "BRXU" | "JMXU" => (i.targets.clone(), guarded),
        // Lanes meet at BSYNC and go on at the place that BSSY has named, as a rule the next instruction.
        "BSYNC" => {
            let register = i.operands.split(',').next_back().unwrap_or("").trim();
            let named = code[..at].iter().rev().find(|b| {
                b.opcode.starts_with("BSSY") && b.operands.split(',').next().unwrap_or("").trim() == register
            });
            match named {
                Some(b) if !b.targets.is_empty() => (b.targets.clone(), guarded),
                _ => (Vec::new(), true),
            }
        }
        "BSSY" => (Vec::new(), true),
        // A call that does not return (NOINC to a label of the kernel itself) is a branch.
        _ => (i.targets.clone(), true),
    }
}

/// Basic blocks and the edges between them.
struct Graph {
    blocks: Vec<Range<usize>>,
    next: Vec<Vec<usize>>,
}

impl Graph {
    fn of(code: &[Instruction]) -> Graph {
        let mut starts = vec![false; code.len() + 1];
        starts[0] = true;
        let mut flows: HashMap<usize, (Vec<usize>, bool)> = HashMap::new();
        for at in 0..code.len() {
            let (targets, falls) = successors(code, at);
            if !targets.is_empty() || !falls {
                targets.iter().for_each(|&t| starts[t] = true);
                starts[at + 1] = true;
                flows.insert(at, (targets, falls));
            }
        }
        let firsts: Vec<usize> = (0..code.len()).filter(|&i| starts[i]).collect();
        let block_of: HashMap<usize, usize> = firsts.iter().enumerate().map(|(b, &i)| (i, b)).collect();
        let ends = firsts.iter().skip(1).copied().chain([code.len()]);
        let blocks: Vec<Range<usize>> = firsts.iter().copied().zip(ends).map(|(a, b)| a..b).collect();
        let next = blocks
            .iter()
            .map(|block| {
                let (targets, falls) = flows.get(&(block.end - 1)).cloned().unwrap_or((Vec::new(), true));
                let after = falls.then_some(block.end);
                let mut to: Vec<usize> =
                    targets.into_iter().chain(after).filter_map(|i| block_of.get(&i).copied()).collect();
                to.sort_unstable();
                to.dedup();
                to
            })
            .collect();
        Graph { blocks, next }
    }

    /// Reachable blocks, each before its successors except along edges that go back.
    fn reverse_postorder(&self) -> Vec<usize> {
        let mut seen = vec![false; self.blocks.len()];
        let mut post = Vec::new();
        let mut stack = vec![(0usize, 0usize)];
        seen[0] = true;
        while let Some((block, edge)) = stack.pop() {
            match self.next[block].get(edge) {
                Some(&to) => {
                    stack.push((block, edge + 1));
                    if !seen[to] {
                        seen[to] = true;
                        stack.push((to, 0));
                    }
                }
                None => post.push(block),
            }
        }
        post.reverse();
        post
    }

    /// Headers and members of the natural loops. Back edges to the same header make one loop.
    fn loops(&self, order: &[usize]) -> BTreeMap<usize, Vec<usize>> {
        let mut rank = vec![usize::MAX; self.blocks.len()];
        order.iter().enumerate().for_each(|(r, &b)| rank[b] = r);
        let mut before: Vec<Vec<usize>> = vec![Vec::new(); self.blocks.len()];
        for &b in order {
            self.next[b].iter().for_each(|&to| before[to].push(b));
        }
        let dominator = dominators(order, &rank, &before);
        let dominates = |a: usize, mut b: usize| {
            while rank[b] > rank[a] {
                b = dominator[b];
            }
            a == b
        };
        let mut all: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &tail in order {
            for &header in &self.next[tail] {
                if !dominates(header, tail) {
                    continue;
                }
                let members = all.entry(header).or_insert_with(|| vec![header]);
                let mut work = vec![tail];
                while let Some(block) = work.pop() {
                    if !members.contains(&block) {
                        members.push(block);
                        work.extend(&before[block]);
                    }
                }
            }
        }
        all
    }
}

/// Immediate dominator of every reachable block, by Cooper, Harvey and Kennedy's iteration; the entry's is itself.
fn dominators(order: &[usize], rank: &[usize], before: &[Vec<usize>]) -> Vec<usize> {
    const NONE: usize = usize::MAX;
    let mut dominator = vec![NONE; rank.len()];
    dominator[order[0]] = order[0];
    let mut changed = true;
    while changed {
        changed = false;
        for &block in &order[1..] {
            let mut new = NONE;
            for &p in &before[block] {
                if dominator[p] == NONE {
                    continue;
                }
                if new == NONE {
                    new = p;
                    continue;
                }
                let (mut a, mut b) = (p, new);
                while a != b {
                    while rank[a] > rank[b] {
                        a = dominator[a];
                    }
                    while rank[b] > rank[a] {
                        b = dominator[b];
                    }
                }
                new = a;
            }
            if dominator[block] != new {
                dominator[block] = new;
                changed = true;
            }
        }
    }
    dominator
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::static_view::sass::parse;

    /// Code with labels on lines of their own; offsets are made up.
    fn flow(code: &str) -> Flow {
        let mut text = String::from(".section .text.k,\"ax\"\n");
        for (i, line) in code.lines().map(str::trim).filter(|l| !l.is_empty()).enumerate() {
            if line.ends_with(':') {
                text.push_str(line);
            } else {
                text.push_str(&format!("/*{:04x}*/ {line} ;", i * 16));
            }
            text.push('\n');
        }
        Flow::of(&parse(&text).unwrap()[0])
    }

    #[test]
    fn loops_nest() {
        let flow = flow(
            "MOV R1, R2
             .A:
             FADD R1, R1, R2
             .B:
             FFMA R1, R1, R2, R3
             @P0 BRA `(.B)
             @!P1 BRA `(.A)
             EXIT
             .C:
             BRA `(.C)
             NOP",
        );
        let seen: Vec<_> = flow.loops.iter().map(|l| (l.header, l.depth, l.body.clone())).collect();
        assert_eq!(seen, [(1, 1, vec![1, 2, 3, 4]), (2, 2, vec![2, 3])]);
        assert_eq!(flow.depth, [0, 1, 2, 2, 1, 0, 0, 0]);
        assert_eq!(flow.reachable, [true, true, true, true, true, true, false, false]);
        assert_eq!(flow.hottest().unwrap().header, 2);
    }

    #[test]
    fn the_larger_of_two_equally_deep_loops_is_hottest() {
        let flow = flow(
            ".A:
             LDS R1, [R2]
             @P0 BRA `(.A)
             .B:
             FFMA R1, R1, R2, R3
             FFMA R1, R1, R2, R3
             BRA UP0, `(.B)
             EXIT",
        );
        assert_eq!(flow.loops.len(), 2);
        assert_eq!(flow.hottest().unwrap().header, 2);
    }

    /// ptxas ends a loop by a call that never returns, converges lanes, and keeps a way for diverged warps outside.
    #[test]
    fn convergence_calls_and_cold_ways() {
        let flow = flow(
            ".A:
             BSSY B0, `(.S)
             @P0 BRA `(.T)
             FADD R1, R1, R2
             .T:
             BSYNC B0
             .S:
             BRA.DIV ~URZ, `(.COLD)
             .BACK:
             @P1 CALL.REL.NOINC `(.OUT)
             BRA `(.A)
             .OUT:
             EXIT
             .COLD:
             SHFL.BFLY PT, R1, R1, R2, R3
             BRA `(.BACK)",
        );
        let seen: Vec<_> = flow.loops.iter().map(|l| (l.header, l.body.clone())).collect();
        assert_eq!(seen, [(0, vec![0, 1, 2, 3, 4, 5, 6])]);
        assert!(!flow.reachable[8]);
    }
}
