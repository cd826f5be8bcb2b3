//! Register allocation: PTX has a fresh virtual register for almost every value; packing them by their lifetimes keeps
//! a warp's file in the first-level cache.
//!
//! Lanes that diverge share rows safely: every lane by itself follows a path of the control-flow graph, and writes are
//! masked, so what holds for one thread holds for each lane.

/// What an instruction reads and writes, and where it can go.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// Virtual registers written.
    pub defs: Vec<u32>,
    /// Virtual registers read.
    pub uses: Vec<u32>,
    /// Virtual registers that hold something only inside this instruction, and those that a part of an instruction has to
    /// leave alone because another part uses them.
    pub held: Vec<u32>,
    /// Whether the write may leave old values in place (a guard).
    pub partial: bool,
    /// Branch targets.
    pub targets: Vec<u32>,
    /// Whether the next instruction can follow.
    pub falls: bool,
}

/// First and last instruction at which a register holds a value; both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interval {
    start: u32,
    end: u32,
}

/// Rows of each virtual register (`None`: never used), and how many rows there are.
pub struct Allocation {
    /// First row by virtual register.
    pub rows: Vec<Option<u32>>,
    /// Rows in all.
    pub count: u32,
    /// Most rows live at one time: the estimate of a kernel's register need.
    pub pressure: u32,
    /// Virtual registers that some path reads before it writes them.
    pub undefined: Vec<u32>,
}

/// Allocates rows for `sizes.len()` virtual registers of one function, whose instructions have the given effects.
pub fn allocate(code: &[Effects], sizes: &[u32]) -> Allocation {
    let (intervals, undefined) = intervals(code, sizes.len());
    let mut order: Vec<u32> = (0..sizes.len() as u32).filter(|&v| intervals[v as usize].is_some()).collect();
    order.sort_by_key(|&v| intervals[v as usize].map(|i| (i.start, i.end)));
    let mut rows = vec![None; sizes.len()];
    let mut active: Vec<(u32, u32, u32)> = Vec::new(); // end, row, size
    let mut free: Vec<(u32, u32)> = Vec::new(); // row, size: disjoint, sorted
    let (mut count, mut used, mut pressure) = (0u32, 0u32, 0u32);
    for v in order {
        let Some(Interval { start, end }) = intervals[v as usize] else { continue };
        let size = sizes[v as usize];
        active.retain(|&(e, row, n)| {
            let over = e < start;
            if over {
                release(&mut free, row, n);
                used -= n;
            }
            !over
        });
        let row = match free.iter().position(|&(_, n)| n >= size) {
            Some(at) => {
                let (row, n) = free[at];
                if n == size {
                    free.remove(at);
                } else {
                    free[at] = (row + size, n - size);
                }
                row
            }
            None => {
                let row = count;
                count += size;
                row
            }
        };
        rows[v as usize] = Some(row);
        active.push((end, row, size));
        used += size;
        pressure = pressure.max(used);
    }
    Allocation { rows, count, pressure, undefined }
}

/// Gives rows back, joining neighbours.
fn release(free: &mut Vec<(u32, u32)>, row: u32, size: u32) {
    let at = free.partition_point(|&(r, _)| r < row);
    free.insert(at, (row, size));
    if at + 1 < free.len() && free[at].0 + free[at].1 == free[at + 1].0 {
        free[at].1 += free[at + 1].1;
        free.remove(at + 1);
    }
    if at > 0 && free[at - 1].0 + free[at - 1].1 == free[at].0 {
        free[at - 1].1 += free[at].1;
        free.remove(at);
    }
}

/// Lifetimes, and what is live before the first instruction.
fn intervals(code: &[Effects], registers: usize) -> (Vec<Option<Interval>>, Vec<u32>) {
    // Basic blocks.
    let mut leader = vec![false; code.len() + 1];
    leader[0] = true;
    for (pc, e) in code.iter().enumerate() {
        for &t in &e.targets {
            leader[t as usize] = true;
        }
        if !e.targets.is_empty() || !e.falls {
            leader[pc + 1] = true;
        }
    }
    let starts: Vec<usize> = (0..code.len()).filter(|&pc| leader[pc]).collect();
    let mut block_of = vec![0usize; code.len()];
    for (b, &start) in starts.iter().enumerate() {
        let end = starts.get(b + 1).copied().unwrap_or(code.len());
        block_of[start..end].fill(b);
    }
    let words = registers.div_ceil(64);
    let blocks = starts.len();
    let mut reads = vec![0u64; blocks * words]; // read before written
    let mut kills = vec![0u64; blocks * words];
    let mut successors: Vec<Vec<usize>> = vec![Vec::new(); blocks];
    for (b, &start) in starts.iter().enumerate() {
        let end = starts.get(b + 1).copied().unwrap_or(code.len());
        for e in &code[start..end] {
            for &u in &e.uses {
                let (w, bit) = (b * words + u as usize / 64, 1u64 << (u % 64));
                if kills[w] & bit == 0 {
                    reads[w] |= bit;
                }
            }
            for &d in &e.defs {
                let (w, bit) = (b * words + d as usize / 64, 1u64 << (d % 64));
                if e.partial {
                    if kills[w] & bit == 0 {
                        reads[w] |= bit;
                    }
                } else {
                    kills[w] |= bit;
                }
            }
        }
        let last = &code[end - 1];
        successors[b] = last.targets.iter().map(|&t| block_of[t as usize]).collect();
        if last.falls && end < code.len() {
            successors[b].push(block_of[end]);
        }
    }
    let mut live_in = reads.clone();
    let mut live_out = vec![0u64; blocks * words];
    let mut changed = true;
    while changed {
        changed = false;
        for b in (0..blocks).rev() {
            for w in 0..words {
                let out = successors[b].iter().fold(0, |acc, &s| acc | live_in[s * words + w]);
                let input = reads[b * words + w] | (out & !kills[b * words + w]);
                changed |= input != live_in[b * words + w];
                live_out[b * words + w] = out;
                live_in[b * words + w] = input;
            }
        }
    }
    let mut intervals: Vec<Option<Interval>> = vec![None; registers];
    let mut extend = |v: u32, pc: usize| {
        let pc = pc as u32;
        let slot = &mut intervals[v as usize];
        *slot = Some(match *slot {
            None => Interval { start: pc, end: pc },
            Some(i) => Interval { start: i.start.min(pc), end: i.end.max(pc) },
        });
    };
    for (b, &start) in starts.iter().enumerate() {
        let end = starts.get(b + 1).copied().unwrap_or(code.len());
        for (set, pc) in [(&live_in, start), (&live_out, end - 1)] {
            for w in 0..words {
                let mut bits = set[b * words + w];
                while bits != 0 {
                    extend((w * 64) as u32 + bits.trailing_zeros(), pc);
                    bits &= bits - 1;
                }
            }
        }
        for (pc, e) in code[start..end].iter().enumerate() {
            for &v in e.uses.iter().chain(&e.defs).chain(&e.held) {
                extend(v, start + pc);
            }
        }
    }
    let undefined = (0..registers as u32)
        .filter(|&v| live_in.get(v as usize / 64).is_some_and(|w| w >> (v % 64) & 1 != 0));
    (intervals, undefined.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(defs: &[u32], uses: &[u32]) -> Effects {
        Effects { defs: defs.to_vec(), uses: uses.to_vec(), falls: true, ..Effects::default() }
    }

    #[test]
    fn values_that_do_not_meet_share_rows() {
        let code = [step(&[0], &[]), step(&[1], &[0]), step(&[2], &[1]), step(&[3], &[2])];
        let a = allocate(&code, &[1, 1, 1, 1]);
        assert_eq!(a.count, 2);
        assert_ne!(a.rows[0], a.rows[1]);
        assert_eq!(a.pressure, 2);
    }

    #[test]
    fn a_value_read_in_a_loop_lives_through_all_of_it() {
        // 0: a = ; 1: b = a ; 2: c = b ; 3: if .. goto 1
        let mut back = step(&[], &[2]);
        back.targets = vec![1];
        let code = [step(&[0], &[]), step(&[1], &[0]), step(&[2], &[1]), back];
        let a = allocate(&code, &[1, 1, 1]);
        assert_ne!(a.rows[0], a.rows[1]);
        assert_ne!(a.rows[0], a.rows[2]);
        assert_ne!(a.rows[1], a.rows[2], "closed intervals touch");
    }

    #[test]
    fn a_guarded_write_keeps_the_old_value_alive() {
        // 0: a = ; 1: x = ; use x ; 3: @p a = ; 4: use a
        let mut guarded = step(&[0], &[]);
        guarded.partial = true;
        let code = [step(&[0], &[]), step(&[1], &[]), step(&[], &[1]), guarded, step(&[], &[0])];
        let a = allocate(&code, &[1, 1]);
        assert_ne!(a.rows[0], a.rows[1]);
    }

    #[test]
    fn what_an_instruction_holds_lives_in_it_only() {
        // 0: b = ; 1: holds t ; 2: a = ; 3: use a, b
        let mut holder = step(&[], &[]);
        holder.held = vec![2];
        let code = [step(&[1], &[]), holder, step(&[0], &[]), step(&[], &[0, 1])];
        let a = allocate(&code, &[1, 1, 1]);
        assert_eq!(a.rows[2], a.rows[0]);
        assert_ne!(a.rows[2], a.rows[1]);
        assert!(a.undefined.is_empty());
    }

    #[test]
    fn registers_that_some_path_never_wrote_are_told() {
        // 0: if .. goto 2 ; 1: a = ; 2: use a
        let mut branch = step(&[], &[]);
        branch.targets = vec![2];
        let code = [branch, step(&[0], &[]), step(&[1], &[0])];
        assert_eq!(allocate(&code, &[1, 1]).undefined, [0]);
    }

    #[test]
    fn wide_registers_get_neighbouring_rows_that_nobody_else_has() {
        let code = [step(&[0], &[]), step(&[1], &[]), step(&[2], &[0]), step(&[3], &[1, 2]), step(&[], &[3])];
        let sizes = [1, 2, 4, 2];
        let a = allocate(&code, &sizes);
        let range = |v: usize| a.rows[v].map(|r| r..r + sizes[v]).expect("used");
        for (x, y) in [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)] {
            assert!(range(x).end <= range(y).start || range(y).end <= range(x).start, "{x} and {y}");
        }
    }
}
