//! Video instructions: vadd, vsub, vabsdiff, vmin, vmax, vset, vshl, vshr on parts of a word, and vadd2 .. vset4 on two
//! halves or four bytes at a time. Cards emulate most of them; here they go lane by lane.

use super::{Form, of_class};
use crate::exec::cx::Cx;
use crate::exec::inst::{Class, Flow, Inst};
use crate::exec::lanes::{LANES, each};
use crate::exec::lower::{Decoded, Lower};
use crate::ptx::ast::{self, Operand, Ty};

const OPERATIONS: [&str; 9] = ["vadd", "vsub", "vabsdiff", "vmin", "vmax", "vset", "vshl", "vshr", "vavrg"];
const COMPARISONS: [&str; 6] = ["eq", "ne", "lt", "le", "gt", "ge"];
const SECOND: [&str; 3] = ["add", "min", "max"];

/// What an instruction does, besides its registers; packed into `Inst::imm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Video {
    /// Index in `OPERATIONS`.
    operation: u32,
    /// Index in `COMPARISONS`.
    comparison: u32,
    /// 1, 2 or 4 parts.
    parts: u32,
    /// Results, first and second source are signed.
    signed: [bool; 3],
    saturate: bool,
    /// Shift amounts wrap around; else they are clamped.
    wrap: bool,
    /// One more than the index in `SECOND`.
    second: u32,
    /// Of 1 part: bits and number of the part that is read of each source, or written.
    part: [(u32, u32); 3],
    /// Of more parts: which part of the pair of sources goes where, lowest first.
    from: [[u32; 4]; 2],
    /// Of more parts: which are written.
    mask: u32,
}

pub(super) fn knows(opcode: &str) -> bool {
    OPERATIONS.contains(&opcode.trim_end_matches(['2', '4']))
}

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    of_class(Class::Integer, instruction(i, lower))
}

fn index(words: &[&str], word: &str) -> Option<u32> {
    words.iter().position(|w| *w == word).map(|at| at as u32)
}

fn instruction(i: &ast::Inst, lower: &mut Lower<'_>) -> Result<Inst, String> {
    let name = i.opcode.trim_end_matches(['2', '4']);
    let parts = i.opcode[name.len()..].parse().unwrap_or(1);
    let operation = index(&OPERATIONS, name).ok_or("this operation is not known")?;
    if parts > 1 && matches!(name, "vshl" | "vshr") || parts == 1 && name == "vavrg" {
        return Err(format!("there is no {}", i.opcode));
    }
    let mut v = Video { operation, parts, ..Video::default() };
    let mut form = Form::new(i);
    let types = if name == "vset" { 2 } else { 3 };
    for slot in &mut v.signed[3 - types..] {
        if form.mods.is_empty() {
            return Err("types are missing".into());
        }
        *slot = match form.mods.remove(0) {
            "s32" => true,
            "u32" => false,
            other => return Err(format!("{other} is not a type that this instruction takes")),
        };
    }
    v.saturate = name != "vset" && form.flag("sat");
    if name == "vset" {
        let word = form.one_of(&COMPARISONS).ok_or("a comparison is needed")?;
        v.comparison = index(&COMPARISONS, word).unwrap_or(0);
    }
    if matches!(name, "vshl" | "vshr") {
        v.wrap = form.one_of(&["wrap", "clamp"]).ok_or("one of .wrap, .clamp is needed")? == "wrap";
    }
    if let Some(word) = form.one_of(if parts == 1 { &SECOND } else { &SECOND[..1] }) {
        v.second = 1 + index(&SECOND, word).unwrap_or(0);
    }
    form.end()?;
    if parts > 1 && v.second > 0 && v.saturate {
        return Err(".sat and .add exclude each other".into());
    }
    let [d, a, b, rest @ ..] = i.operands.as_slice() else { return Err("three operands are needed".into()) };
    let (d, written) = selector(d);
    let (a, first) = selector(a);
    let (b, second) = selector(b);
    if parts == 1 {
        v.part = [part(written)?, part(first)?, part(second)?];
    } else {
        v.mask = mask(written, parts)?;
        v.from = [order(first, parts, 0)?, order(second, parts, parts)?];
    }
    let merges = v.part[0].0 < 32 && parts == 1;
    if merges && v.second > 0 {
        return Err("a result is either merged or goes through a second operation".into());
    }
    let needs_third = parts > 1 || merges || v.second > 0;
    let mut inst = Inst::new(run);
    inst.r[1] = lower.src(&a, Ty::B32)?;
    inst.r[2] = lower.src(&b, Ty::B32)?;
    inst.r[3] = match rest {
        [c] if needs_third => lower.src(c, Ty::B32)?,
        [] if !needs_third => lower.constant(0, 1),
        _ => return Err(format!("{} operands are needed", if needs_third { 4 } else { 3 })),
    };
    inst.r[0] = lower.dst(&d, Ty::B32)?;
    inst.imm = v.pack();
    Ok(inst)
}

/// A register and what stands behind its dot.
fn selector(operand: &Operand) -> (Operand, &str) {
    if let Operand::Name(name) = operand
        && let Some((register, part)) = name.split_once('.')
    {
        return (Operand::Name(register.into()), part);
    }
    (operand.clone(), "")
}

/// Bits and number of `b0` .. `b3`, `h0`, `h1` or a whole word.
fn part(selector: &str) -> Result<(u32, u32), String> {
    Ok(match selector {
        "" => (32, 0),
        "h0" => (16, 0),
        "h1" => (16, 1),
        "b0" => (8, 0),
        "b1" => (8, 1),
        "b2" => (8, 2),
        "b3" => (8, 3),
        other => return Err(format!(".{other} is not a part of a register")),
    })
}

/// The digits of `h10` or `b3210`, lowest part first.
fn digits(selector: &str, parts: u32) -> Result<Vec<u32>, String> {
    let wrong = || format!(".{selector} is not known here");
    let letter = if parts == 2 { 'h' } else { 'b' };
    let digits = selector.strip_prefix(letter).ok_or_else(wrong)?;
    digits.chars().rev().map(|c| c.to_digit(2 * parts).ok_or_else(wrong)).collect()
}

fn mask(selector: &str, parts: u32) -> Result<u32, String> {
    if selector.is_empty() {
        return Ok((1 << parts) - 1);
    }
    let all = digits(selector, parts)?;
    if all.iter().any(|&n| n >= parts) {
        return Err(format!(".{selector} is not known here"));
    }
    Ok(all.iter().fold(0u32, |mask, &n| mask | 1u32 << n))
}

fn order(selector: &str, parts: u32, first: u32) -> Result<[u32; 4], String> {
    let mut order = [0; 4];
    if selector.is_empty() {
        (0..parts).for_each(|n| order[n as usize] = first + n);
        return Ok(order);
    }
    let all = digits(selector, parts)?;
    if all.len() != parts as usize {
        return Err(format!(".{selector} names {} parts", all.len()));
    }
    order[..all.len()].copy_from_slice(&all);
    Ok(order)
}

/// Reads and writes the fields of `Video` in a fixed order.
struct Fields {
    bits: u64,
    at: u32,
}

impl Fields {
    fn take(&mut self, width: u32) -> u32 {
        let value = self.bits >> self.at & ((1 << width) - 1);
        self.at += width;
        value as u32
    }

    fn put(&mut self, value: u32, width: u32) {
        self.bits |= u64::from(value) << self.at;
        self.at += width;
    }
}

impl Video {
    fn pack(&self) -> i64 {
        let mut f = Fields { bits: 0, at: 0 };
        f.put(self.operation, 4);
        f.put(self.comparison, 3);
        f.put(self.parts, 3);
        self.signed.into_iter().chain([self.saturate, self.wrap]).for_each(|b| f.put(b.into(), 1));
        f.put(self.second, 2);
        if self.parts == 1 {
            self.part.into_iter().for_each(|(bits, n)| {
                f.put(bits / 8, 3);
                f.put(n, 2);
            });
        } else {
            self.from.into_iter().flatten().for_each(|n| f.put(n, 3));
            f.put(self.mask, 4);
        }
        f.bits as i64
    }

    fn unpack(imm: i64) -> Video {
        let mut f = Fields { bits: imm as u64, at: 0 };
        let mut v =
            Video { operation: f.take(4), comparison: f.take(3), parts: f.take(3), ..Video::default() };
        v.signed = [0; 3].map(|_| f.take(1) != 0);
        v.saturate = f.take(1) != 0;
        v.wrap = f.take(1) != 0;
        v.second = f.take(2);
        if v.parts == 1 {
            v.part = [0; 3].map(|_| (f.take(3) * 8, f.take(2)));
        } else {
            v.from = [0; 2].map(|_| [0; 4].map(|_| f.take(3)));
            v.mask = f.take(4);
        }
        v
    }

    /// One part.
    fn operate(&self, a: i64, b: i64) -> i64 {
        let amount = if self.wrap { b & 31 } else { b.clamp(0, 32) };
        match OPERATIONS[self.operation as usize] {
            "vadd" => a + b,
            "vsub" => a - b,
            "vabsdiff" => (a - b).abs(),
            "vmin" => a.min(b),
            "vmax" => a.max(b),
            "vshl" => a << amount,
            "vshr" => a >> amount,
            "vavrg" if a + b >= 0 => (a + b + 1) >> 1,
            "vavrg" => (a + b) >> 1,
            _ => i64::from(match COMPARISONS[self.comparison as usize] {
                "eq" => a == b,
                "ne" => a != b,
                "lt" => a < b,
                "le" => a <= b,
                "gt" => a > b,
                _ => a >= b,
            }),
        }
    }

    /// Clamps to the result's type of so many bits, if asked to.
    fn saturated(&self, x: i64, bits: u32) -> i64 {
        match (self.saturate, self.signed[0]) {
            (false, _) => x,
            (true, true) => x.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
            (true, false) => x.clamp(0, (1 << bits) - 1),
        }
    }

    fn whole(&self, a: u32, b: u32, c: u32) -> u32 {
        let [(bits, n), first, second] = self.part;
        let read = |x: u32, (bits, n): (u32, u32), signed| extend(x.into(), bits, n, signed);
        let x = self.operate(read(a, first, self.signed[1]), read(b, second, self.signed[2]));
        let x = self.saturated(x, bits);
        let third = read(c, (32, 0), self.signed[0]);
        let x = match self.second {
            1 => x + third,
            2 => read(x as u32, (32, 0), self.signed[0]).min(third),
            3 => read(x as u32, (32, 0), self.signed[0]).max(third),
            _ => x,
        };
        merged(c, x as u32, bits, n)
    }

    fn several(&self, a: u32, b: u32, c: u32) -> u32 {
        let bits = 32 / self.parts;
        let pair = u64::from(a) | u64::from(b) << 32;
        (0..self.parts).fold(c, |d, n| {
            if self.mask >> n & 1 == 0 {
                return d;
            }
            let read = |k: usize| extend(pair, bits, self.from[k][n as usize], self.signed[k + 1]);
            let x = self.saturated(self.operate(read(0), read(1)), bits);
            if self.second > 0 { d.wrapping_add(x as u32) } else { merged(d, x as u32, bits, n) }
        })
    }
}

/// Part `n` of so many bits.
fn extend(x: u64, bits: u32, n: u32, signed: bool) -> i64 {
    let cut = x >> (bits * n) << (64 - bits);
    if signed { cut as i64 >> (64 - bits) } else { (cut >> (64 - bits)) as i64 }
}

/// `c` with part `n` replaced.
fn merged(c: u32, x: u32, bits: u32, n: u32) -> u32 {
    let field = (u32::MAX >> (32 - bits)) << (bits * n);
    c & !field | x << (bits * n) & field
}

fn run(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let v = Video::unpack(i.imm);
    let [a, b, c] = [1, 2, 3].map(|n| cx.get::<u32>(i.r[n]));
    let out: [u32; LANES] =
        each(|l| if v.parts == 1 { v.whole(a[l], b[l], c[l]) } else { v.several(a[l], b[l], c[l]) });
    cx.put(i.r[0], mask, &out);
    Flow::Next
}
