//! `shfl`, `vote`, `match`, `redux`, `activemask`, `elect`, lane registers: PTX ISA 9.7.9.6, 9.7.13, 10.

use super::super::case::Target;
use super::super::elementwise::Suite;
use super::super::kernel::{Kernel, words};
use super::super::values::Rng;

/// Warps of a case: one block each.
const WARPS: usize = 24;

/// Family `warp`.
pub fn cases(s: &mut Suite) {
    shuffles(s);
    votes(s);
    matches(s);
    reductions(s);
    divergent(s);
    lane_registers(s);
    elections(s);
}

/// A case whose threads load `a` (and `b`, `c`) and store what the text leaves in `d` and, as 0 or 1, in the predicate `p`.
/// `expect` has one warp's inputs and gives `(d, p)` for each lane.
fn add(
    s: &mut Suite,
    name: &str,
    text: &str,
    inputs: [Vec<u32>; 3],
    expect: impl Fn(usize, &[u32], &[u32], &[u32]) -> Vec<(u32, bool)>,
) {
    let mut body = ".reg .b64 at;\n.reg .b32 a, b, c, d, e, mask;\n.reg .pred p, q;\n".to_string();
    for (k, r) in ["a", "b", "c"].iter().enumerate() {
        body += &format!("mad.wide.u32 at, %i, 4, in{k};\nld.global.b32 {r}, [at];\n");
    }
    body += "mov.b32 d, 0x01234567;\nsetp.ne.u32 p, d, d;\n";
    body += text;
    body += "\nmad.wide.u32 at, %i, 8, out;\nst.global.b32 [at], d;\nselp.b32 e, 1, 0, p;\n";
    body += "st.global.b32 [at+4], e;\n";
    let mut expected = Vec::new();
    for warp in 0..WARPS {
        let part = |k: usize| &inputs[k][32 * warp..32 * warp + 32];
        for (d, p) in expect(warp, part(0), part(1), part(2)) {
            expected.extend([d, u32::from(p)]);
        }
    }
    Kernel {
        name: name.into(),
        body,
        launch: (WARPS as u32, 32),
        inputs: inputs.map(words).into(),
        expected: words(expected),
        ..Kernel::default()
    }
    .add(s);
}

fn random(rng: &mut Rng, f: impl Fn(u64) -> u32) -> Vec<u32> {
    (0..32 * WARPS).map(|_| f(rng.bits())).collect()
}

/// The manual's pseudo-code: source lane and predicate.
fn source(mode: &str, lane: i64, b: u32, c: u32) -> (i64, bool) {
    let bval = i64::from(b & 31);
    let cval = i64::from(c & 31);
    let mask = i64::from(c >> 8 & 31);
    let max_lane = (lane & mask) | (cval & !mask & 31);
    let min_lane = lane & mask;
    let (j, p) = match mode {
        "up" => (lane - bval, lane - bval >= max_lane),
        "down" => (lane + bval, lane + bval <= max_lane),
        "bfly" => (lane ^ bval, lane ^ bval <= max_lane),
        _ => {
            let j = min_lane | (bval & !mask & 31);
            (j, j <= max_lane)
        }
    };
    (if p { j } else { lane }, p)
}

fn shuffles(s: &mut Suite) {
    let clamps =
        [0x1f, 0, 0x1c1f, 0x181f, 0x1000, 0x100f, 0x0f10, 0x1f1f, 0x0307, 0x1e01, 0x1807, 0xffff_e01f];
    for mode in ["up", "down", "bfly", "idx"] {
        let text = format!("shfl.sync.{mode}.b32 d|p, a, b, c, -1;");
        let mut rng = Rng::new(mode);
        let a = random(&mut rng, |v| v as u32);
        // Amounts of a warp's own in the first half of the warps, of a lane's own in the second.
        let mut b = random(&mut rng, |v| (v % 40) as u32);
        let mut c = random(&mut rng, |v| clamps[v as usize % clamps.len()]);
        for warp in 0..WARPS {
            let lanes = 32 * warp..32 * warp + 32;
            if warp < clamps.len() {
                c[lanes.clone()].fill(clamps[warp]);
                b[lanes].fill([1, 2, 4, 8, 16, 31, 3, 0][warp % 8]);
            } else if warp % 2 == 0 {
                c[lanes].fill(clamps[warp % clamps.len()]);
            }
        }
        add(s, &format!("shfl.sync.{mode}"), &text, [a.clone(), b.clone(), c.clone()], |_, a, b, c| {
            let lane = |l: usize| {
                let (j, p) = source(mode, l as i64, b[l], c[l]);
                (a[j as usize], p)
            };
            (0..32).map(lane).collect()
        });
        let clamp = if mode == "up" { 0 } else { 31 };
        for amount in [1, 5, 16, 31] {
            let text = format!("shfl.sync.{mode}.b32 d, a, {amount}, {clamp}, 0xffffffff;");
            let name = format!("shfl.sync.{mode}, {amount} and {clamp} immediate");
            add(s, &name, &text, [a.clone(), b.clone(), c.clone()], |_, a, _, _| {
                (0..32).map(|l| (a[source(mode, l, amount, clamp).0 as usize], false)).collect()
            });
        }
        // In place, and under a branch that only the lower half takes.
        let text = format!(
            "setp.lt.u32 q, %lane, 16;\nmov.b32 d, a;\n@!q bra skip;\nshfl.sync.{mode}.b32 d|p, d, b, c, 0xffff;\nskip:"
        );
        let b: Vec<u32> = b.iter().map(|v| v % 16).collect();
        let c = vec![if mode == "up" { 0x1000 } else { 0x100f }; 32 * WARPS];
        add(s, &format!("shfl.sync.{mode} in half a warp"), &text, [a, b, c], |_, a, b, c| {
            let lane = |l: usize| match source(mode, l as i64, b[l], c[l]) {
                (j, p) if l < 16 => (a[j as usize], p),
                _ => (a[l], false),
            };
            (0..32).map(lane).collect()
        });
    }
}

/// Inputs whose lowest bits are all ones, all zeros, mixed, by warps.
fn ballots(rng: &mut Rng) -> Vec<u32> {
    let mut a = random(rng, |v| v as u32 & 1);
    for warp in 0..WARPS {
        match warp % 6 {
            0 => a[32 * warp..32 * warp + 32].fill(1),
            1 => a[32 * warp..32 * warp + 32].fill(0),
            2 => (a[32 * warp..32 * warp + 32].fill(0), a[32 * warp + 31] = 1).1,
            3 => (a[32 * warp..32 * warp + 32].fill(1), a[32 * warp] = 0).1,
            _ => {}
        }
    }
    a
}

/// A lane is in the mask.
fn inside(mask: u32, lane: usize) -> bool {
    mask >> lane & 1 != 0
}

/// Runs a text for the lanes of a mask alone.
fn under(mask: u32, text: &str) -> String {
    if mask == u32::MAX {
        return text.to_string();
    }
    format!(
        "shr.u32 e, {mask:#x}, %lane;\nand.b32 e, e, 1;\nsetp.eq.u32 q, e, 0;\n@q bra skip;\n{text}\nskip:"
    )
}

const MASKS: [u32; 5] = [u32::MAX, 0xffff_fffe, 0x0000_ff00, 0x5555_5555, 0x8000_0001];

fn votes(s: &mut Suite) {
    for mode in ["all", "any", "uni", "ballot"] {
        for not in ["", "!"] {
            for mask in MASKS {
                let mut rng = Rng::new(mode);
                let a = ballots(&mut rng);
                let zero = vec![0; 32 * WARPS];
                let text = match mode {
                    "ballot" => {
                        format!(
                            "setp.ne.u32 p, a, 0;\nvote.sync.ballot.b32 d, {not}p, {mask:#x};\nsetp.ne.u32 p, a, a;"
                        )
                    }
                    _ => format!("setp.ne.u32 p, a, 0;\nvote.sync.{mode}.pred p, {not}p, {mask:#x};"),
                };
                let name = format!("vote.sync.{mode} of {not}a in {mask:#x}");
                add(s, &name, &under(mask, &text), [a, zero.clone(), zero], |_, a, _, _| {
                    let holds = |l: usize| (a[l] != 0) ^ !not.is_empty();
                    let votes: Vec<usize> = (0..32).filter(|&l| inside(mask, l)).collect();
                    let ballot = votes.iter().filter(|&&l| holds(l)).fold(0, |b, l| b | 1u32 << l);
                    let truth = match mode {
                        "all" => ballot == mask,
                        "any" => ballot != 0,
                        "uni" => ballot == mask || ballot == 0,
                        _ => false,
                    };
                    let lane = |l: usize| match (inside(mask, l), mode) {
                        (true, "ballot") => (ballot, false),
                        (true, _) => (0x0123_4567, truth),
                        (false, _) => (0x0123_4567, false),
                    };
                    (0..32).map(lane).collect()
                });
            }
        }
    }
}

fn matches(s: &mut Suite) {
    for mask in MASKS {
        for wide in [false, true] {
            let mut rng = Rng::new("match");
            let mut a = random(&mut rng, |v| (v % 5) as u32);
            for warp in (0..WARPS).step_by(4) {
                a[32 * warp..32 * warp + 32].fill(warp as u32);
            }
            // The high words differ where the low ones agree.
            let b = random(&mut rng, |v| (v % 2) as u32);
            let equal = a.iter().map(|v| v / 3).collect::<Vec<u32>>();
            let high = |l: usize, b: &[u32], c: &[u32]| if wide { b[l] & c[l] } else { 0 };
            let (declare, source) =
                if wide { (".reg .b64 w;\nand.b32 e, b, c;\nmov.b64 w, {a, e};\n", "w") } else { ("", "a") };
            let bits = if wide { 64 } else { 32 };
            let inputs = [a, b, equal];
            let key = |l: usize, a: &[u32], b: &[u32], c: &[u32]| (a[l], high(l, b, c));
            let text = format!("{declare}match.any.sync.b{bits} d, {source}, {mask:#x};");
            add(
                s,
                &format!("match.any.sync.b{bits} in {mask:#x}"),
                &under(mask, &text),
                inputs.clone(),
                |_, a, b, c| {
                    let same = |l: usize| {
                        (0..32)
                            .filter(|&m| inside(mask, m) && key(m, a, b, c) == key(l, a, b, c))
                            .fold(0, |d, m| d | 1u32 << m)
                    };
                    (0..32).map(|l| (if inside(mask, l) { same(l) } else { 0x0123_4567 }, false)).collect()
                },
            );
            let text = format!("{declare}match.all.sync.b{bits} d|p, {source}, {mask:#x};");
            add(
                s,
                &format!("match.all.sync.b{bits} in {mask:#x}"),
                &under(mask, &text),
                inputs,
                |_, a, b, c| {
                    let first = mask.trailing_zeros() as usize;
                    let all = (0..32).all(|m| !inside(mask, m) || key(m, a, b, c) == key(first, a, b, c));
                    let lane = |l: usize| match inside(mask, l) {
                        true => (if all { mask } else { 0 }, all),
                        false => (0x0123_4567, false),
                    };
                    (0..32).map(lane).collect()
                },
            );
        }
    }
}

fn reductions(s: &mut Suite) {
    type Op = fn(u32, u32) -> u32;
    let ops: [(&str, Op); 9] = [
        ("add.u32", u32::wrapping_add),
        ("add.s32", u32::wrapping_add),
        ("min.u32", u32::min),
        ("max.u32", u32::max),
        ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
        ("max.s32", |a, b| (a as i32).max(b as i32) as u32),
        ("and.b32", |a, b| a & b),
        ("or.b32", |a, b| a | b),
        ("xor.b32", |a, b| a ^ b),
    ];
    for (name, op) in ops {
        for mask in MASKS {
            let mut rng = Rng::new(name);
            let a = random(&mut rng, |v| (v >> (v % 32)) as u32);
            let zero = vec![0; 32 * WARPS];
            let text = under(mask, &format!("redux.sync.{name} d, a, {mask:#x};"));
            add(
                s,
                &format!("redux.sync.{name} in {mask:#x}"),
                &text,
                [a, zero.clone(), zero],
                |_, a, _, _| {
                    let parts = (0..32).filter(|&l| inside(mask, l)).map(|l| a[l]);
                    let total = parts.reduce(op).unwrap_or(0);
                    (0..32).map(|l| (if inside(mask, l) { total } else { 0x0123_4567 }, false)).collect()
                },
            );
        }
    }
}

/// Masks that differ from lane to lane: each half of the warp, in the same instruction or in turn.
fn divergent(s: &mut Suite) {
    let mut rng = Rng::new("divergent");
    let a = random(&mut rng, |v| v as u32);
    let zero = vec![0; 32 * WARPS];
    let inputs = [a, zero.clone(), zero];
    let text = "setp.lt.u32 q, %lane, 12;\n@q bra low;\nmov.b32 mask, 0xfffff000;\nredux.sync.add.u32 d, a, mask;\n\
                bra end;\nlow:\nmov.b32 mask, 0xfff;\nredux.sync.xor.b32 d, a, mask;\nend:\nbar.warp.sync -1;";
    add(s, "redux.sync in both sides of a branch", text, inputs.clone(), |_, a, _, _| {
        let low = a[..12].iter().fold(0, |x, v| x ^ v);
        let high = a[12..].iter().fold(0u32, |x, v| x.wrapping_add(*v));
        (0..32).map(|l| (if l < 12 { low } else { high }, false)).collect()
    });
    let text = "and.b32 e, a, 1;\nsetp.ne.u32 q, e, 0;\nvote.sync.ballot.b32 mask, q, -1;\nmov.b32 d, 0;\n@!q bra end;\n\
                redux.sync.max.u32 d, a, mask;\nend:";
    add(s, "redux.sync among the lanes of a ballot", text, inputs, |_, a, _, _| {
        let top = a.iter().filter(|&v| v & 1 != 0).max().copied().unwrap_or(0);
        a.iter().map(|v| (if v & 1 != 0 { top } else { 0 }, false)).collect()
    });
}

fn lane_registers(s: &mut Suite) {
    type Value = fn(u32) -> u32;
    let registers: [(&str, Value); 6] = [
        ("laneid", |l| l),
        ("lanemask_eq", |l| 1 << l),
        ("lanemask_lt", |l| (1 << l) - 1),
        ("lanemask_le", |l| ((1u64 << (l + 1)) - 1) as u32),
        ("lanemask_gt", |l| !((1u64 << (l + 1)) - 1) as u32),
        ("lanemask_ge", |l| !((1u64 << l) - 1) as u32),
    ];
    for (name, value) in registers {
        let zero = vec![0; 32 * WARPS];
        let text = format!("mov.u32 d, %{name};");
        add(s, &format!("mov.u32 d, %{name}"), &text, [zero.clone(), zero.clone(), zero], |_, _, _, _| {
            (0..32).map(|l| (value(l), false)).collect()
        });
    }
    let zero = vec![0; 32 * WARPS];
    add(
        s,
        "activemask of a whole warp",
        "activemask.b32 d;",
        [zero.clone(), zero.clone(), zero],
        |_, _, _, _| vec![(u32::MAX, false); 32],
    );
}

/// One lane of the mask is elected, the same for all; which one is left open, so only that is asked.
fn elections(s: &mut Suite) {
    s.target(Target::Sm90);
    for mask in MASKS {
        let zero = vec![0; 32 * WARPS];
        let text = format!(
            "elect.sync d|p, {mask:#x};\nsetp.eq.u32 q, d, %lane;\nxor.pred p, p, q;\nmov.b32 e, {mask:#x};\n\
             shr.u32 d, e, d;\nand.b32 d, d, 1;"
        );
        let name = format!("elect.sync in {mask:#x}");
        add(s, &name, &under(mask, &text), [zero.clone(), zero.clone(), zero], |_, _, _, _| {
            (0..32).map(|l| (if inside(mask, l) { 1 } else { 0x0123_4567 }, false)).collect()
        });
    }
    s.target(Target::Sm80);
}
