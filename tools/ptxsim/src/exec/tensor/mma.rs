//! Which `mma` instructions there are.

use super::float::{Bf16, E4m3, E5m2, F16, Tf32};
use super::int::{Element, Signed, Unsigned};
use super::{double, float, int, quad, results, sources};
use crate::exec::inst::{Class, Exec, Inst};
use crate::exec::lower::{Decoded, Lower};
use crate::ptx::ast::{self, Ty};

/// One shape with its types.
struct Form {
    exec: Exec,
    aux: u32,
    /// Registers of D, A, B, C.
    registers: [usize; 4],
    /// Of a register of D, of A and B, of C.
    types: [Ty; 3],
    /// Multiplications of this shape at once.
    products: u32,
}

/// `mma.sync.aligned.shape.alayout.blayout{.satfinite}.dtype.atype.btype.ctype{.bitOp.popc} d, a, b, c`
pub(crate) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mods: Vec<&str> = i.mods.iter().map(String::as_str).collect();
    if mods.iter().any(|m| m.starts_with("sp")) {
        return Err("sparse mma is not implemented".into());
    }
    let ["sync", "aligned", shape, layout_a, layout_b, types @ ..] = mods.as_slice() else {
        return Err("this form of mma is not implemented".into());
    };
    let form = match (*shape, *layout_a, *layout_b) {
        ("m8n8k4", a, b) if types.len() == 4 && types[1..3] == ["f16"; 2] => quad_form(a, b, types),
        (_, "row", "col") => {
            float_form(shape, types).or_else(|| double_form(shape, types)).or_else(|| int_form(shape, types))
        }
        _ => None,
    }
    .ok_or("this form of mma is not implemented")?;
    let [d, a, b, c] = i.operands.as_slice() else { return Err("D, A, B and C are needed".into()) };
    let ([nd, na, nb, nc], [td, tm, tc]) = (form.registers, form.types);
    let mut slots = results(lower, d, td, nd, "D")?;
    slots.extend(sources(lower, a, tm, na, "A")?);
    slots.extend(sources(lower, b, tm, nb, "B")?);
    slots.extend(sources(lower, c, tc, nc, "C")?);
    let mut inst = Inst::new(form.exec);
    inst.aux = form.aux;
    inst.v = slots.into();
    lower.flops = form.products * operations(shape)?;
    Ok((inst, Class::Matrix))
}

/// Two for each element of the product and each k.
fn operations(shape: &str) -> Result<u32, String> {
    let mut sizes = shape.split(['m', 'n', 'k']).skip(1).map(str::parse::<u32>);
    let (Some(Ok(m)), Some(Ok(n)), Some(Ok(k))) = (sizes.next(), sizes.next(), sizes.next()) else {
        return Err(format!("{shape} is not a shape"));
    };
    Ok(2 * m * n * k)
}

fn quad_form(a: &str, b: &str, types: &[&str]) -> Option<Form> {
    let layout = |l: &str, flag: u32| match l {
        "row" => Some(0),
        "col" => Some(flag),
        _ => None,
    };
    let (c, d) = match (types[0], types[3]) {
        ("f16", "f16") => (4, 4),
        ("f16", "f32") => (8, 4),
        ("f32", "f32") => (8, 8),
        _ => return None,
    };
    let half = |n: usize, flag: u32| if n == 4 { flag } else { 0 };
    let ty = |n: usize| if n == 4 { Ty::B32 } else { Ty::F32 };
    Some(Form {
        exec: quad::mma,
        aux: layout(a, quad::A_COL)?
            | layout(b, quad::B_COL)?
            | half(c, quad::C_HALF)
            | half(d, quad::D_HALF),
        registers: [d, 2, 2, c],
        types: [ty(d), Ty::B32, ty(c)],
        products: 4,
    })
}

fn float_form(shape: &str, types: &[&str]) -> Option<Form> {
    let &[d, a, b, c] = types else { return None };
    if d != c {
        return None;
    }
    let half = match d {
        "f16" => true,
        "f32" => false,
        _ => return None,
    };
    // Blocks of four words along k.
    let (blocks, exec): (usize, Exec) = match (shape, a, b, half) {
        ("m16n8k8", "f16", "f16", true) => (1, float::mma::<F16, F16, 2, 1, true>),
        ("m16n8k8", "f16", "f16", false) => (1, float::mma::<F16, F16, 2, 1, false>),
        ("m16n8k16", "f16", "f16", true) => (2, float::mma::<F16, F16, 2, 2, true>),
        ("m16n8k16", "f16", "f16", false) => (2, float::mma::<F16, F16, 2, 2, false>),
        ("m16n8k8", "bf16", "bf16", false) => (1, float::mma::<Bf16, Bf16, 2, 1, false>),
        ("m16n8k16", "bf16", "bf16", false) => (2, float::mma::<Bf16, Bf16, 2, 2, false>),
        ("m16n8k4", "tf32", "tf32", false) => (1, float::mma::<Tf32, Tf32, 1, 1, false>),
        ("m16n8k8", "tf32", "tf32", false) => (2, float::mma::<Tf32, Tf32, 1, 2, false>),
        ("m16n8k16", "e4m3" | "e5m2", "e4m3" | "e5m2", true) => (1, eight_bits::<1, true>(a, b)),
        ("m16n8k16", "e4m3" | "e5m2", "e4m3" | "e5m2", false) => (1, eight_bits::<1, false>(a, b)),
        ("m16n8k32", "e4m3" | "e5m2", "e4m3" | "e5m2", true) => (2, eight_bits::<2, true>(a, b)),
        ("m16n8k32", "e4m3" | "e5m2", "e4m3" | "e5m2", false) => (2, eight_bits::<2, false>(a, b)),
        _ => return None,
    };
    let (accumulators, ty) = if half { (2, Ty::B32) } else { (4, Ty::F32) };
    Some(Form {
        exec,
        aux: 0,
        registers: [accumulators, 2 * blocks, blocks, accumulators],
        types: [ty, Ty::B32, ty],
        products: 1,
    })
}

fn eight_bits<const KB: usize, const HALF: bool>(a: &str, b: &str) -> Exec {
    match (a, b) {
        ("e4m3", "e4m3") => float::mma::<E4m3, E4m3, 4, KB, HALF>,
        ("e4m3", _) => float::mma::<E4m3, E5m2, 4, KB, HALF>,
        (_, "e4m3") => float::mma::<E5m2, E4m3, 4, KB, HALF>,
        _ => float::mma::<E5m2, E5m2, 4, KB, HALF>,
    }
}

fn double_form(shape: &str, types: &[&str]) -> Option<Form> {
    // Rounding to nearest even may be spelled out.
    let types = types.strip_prefix(&["rn"]).unwrap_or(types);
    if types != ["f64"; 4] {
        return None;
    }
    let (rows, blocks, exec): (usize, usize, Exec) = match shape {
        "m8n8k4" => (1, 1, double::mma::<1, 1>),
        "m16n8k4" => (2, 1, double::mma::<2, 1>),
        "m16n8k8" => (2, 2, double::mma::<2, 2>),
        "m16n8k16" => (2, 4, double::mma::<2, 4>),
        _ => return None,
    };
    Some(Form {
        exec,
        aux: 0,
        registers: [2 * rows, rows * blocks, blocks, 2 * rows],
        types: [Ty::F64; 3],
        products: 1,
    })
}

fn int_form(shape: &str, types: &[&str]) -> Option<Form> {
    let (types, clamp) = match types {
        ["satfinite", rest @ ..] => (rest, true),
        all => (all, false),
    };
    let ["s32", a, b, "s32", bits @ ..] = types else { return None };
    let (rows, blocks, exec): (usize, usize, Exec) = match (shape, *a, *b, bits) {
        ("m8n8k128", "b1", "b1", ["xor", "popc"]) if !clamp => (1, 1, int::bits::<false, 1, 1>),
        ("m16n8k128", "b1", "b1", ["xor", "popc"]) if !clamp => (2, 1, int::bits::<false, 2, 1>),
        ("m16n8k256", "b1", "b1", ["xor", "popc"]) if !clamp => (2, 2, int::bits::<false, 2, 2>),
        ("m8n8k128", "b1", "b1", ["and", "popc"]) if !clamp => (1, 1, int::bits::<true, 1, 1>),
        ("m16n8k128", "b1", "b1", ["and", "popc"]) if !clamp => (2, 1, int::bits::<true, 2, 1>),
        ("m16n8k256", "b1", "b1", ["and", "popc"]) if !clamp => (2, 2, int::bits::<true, 2, 2>),
        ("m8n8k16", "s8" | "u8", "s8" | "u8", []) => (1, 1, by_sign::<4, 1, 1>(a, b)),
        ("m16n8k16", "s8" | "u8", "s8" | "u8", []) => (2, 1, by_sign::<4, 2, 1>(a, b)),
        ("m16n8k32", "s8" | "u8", "s8" | "u8", []) => (2, 2, by_sign::<4, 2, 2>(a, b)),
        ("m8n8k32", "s4" | "u4", "s4" | "u4", []) => (1, 1, by_sign::<8, 1, 1>(a, b)),
        ("m16n8k32", "s4" | "u4", "s4" | "u4", []) => (2, 1, by_sign::<8, 2, 1>(a, b)),
        ("m16n8k64", "s4" | "u4", "s4" | "u4", []) => (2, 2, by_sign::<8, 2, 2>(a, b)),
        _ => return None,
    };
    Some(Form {
        exec,
        aux: u32::from(clamp),
        registers: [2 * rows, rows * blocks, blocks, 2 * rows],
        types: [Ty::S32, Ty::B32, Ty::S32],
        products: 1,
    })
}

fn by_sign<const PER: usize, const RB: usize, const KB: usize>(a: &str, b: &str) -> Exec
where
    Signed: Element<PER>,
{
    match (a.starts_with('s'), b.starts_with('s')) {
        (true, true) => int::mma::<Signed, Signed, PER, RB, KB>,
        (true, false) => int::mma::<Signed, Unsigned, PER, RB, KB>,
        (false, true) => int::mma::<Unsigned, Signed, PER, RB, KB>,
        (false, false) => int::mma::<Unsigned, Unsigned, PER, RB, KB>,
    }
}

#[cfg(test)]
mod tests;
