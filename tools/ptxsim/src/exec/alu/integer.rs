//! Integer arithmetic.

use super::super::cx::Cx;
use super::super::inst::{Class, Exec, Flow, Inst};
use super::super::lanes::{LANES, Value};
use super::super::lower::{Decoded, Lower};
use super::{Form, divide, for_int, map1, map2, map3, of_class, with_operands};
use crate::ptx::ast::{self, Ty};

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mut form = Form::new(i);
    let inst = match i.opcode.as_str() {
        "add" | "sub" | "min" | "max" => {
            if let Some(packed) = form.one_of(&["u16x2", "s16x2"]) {
                let exec = packed_16(&i.opcode, packed, form.flag("relu"))?;
                form.end()?;
                with_operands(i, lower, exec, Ty::B32, &[Ty::B32; 2])
            } else if matches!(i.opcode.as_str(), "add" | "sub") {
                add_sub(i, lower, form)
            } else {
                min_max(i, lower, form)
            }
        }
        "addc" | "subc" => carried(i, lower, form),
        "madc" => mad_carried(i, lower, form),
        "mad" if form.flag("cc") => mad_carried(i, lower, form),
        "mul" => mul(i, lower, form),
        "mad" => mad(i, lower, form),
        "mul24" | "mad24" => mul24(i, lower, form),
        "sad" => {
            let ty = form.ty()?;
            form.end()?;
            let exec = for_int!(
                ty,
                T,
                [U16: u16, U32: u32, U64: u64, S16: i16, S32: i32, S64: i64],
                map3!(|a: T, b: T, c: T| {
                    let difference = if a < b { b.wrapping_sub(a) } else { a.wrapping_sub(b) };
                    c.wrapping_add(difference)
                })
            );
            with_operands(i, lower, exec, ty, &[ty; 3])
        }
        "div" | "rem" => {
            let ty = form.ty()?;
            form.end()?;
            let exec = divide::pick(i.opcode == "rem", ty)?;
            with_operands(i, lower, exec, ty, &[ty; 2])
        }
        "abs" | "neg" => {
            let ty = form.ty()?;
            form.end()?;
            let negate = i.opcode == "neg";
            let exec = for_int!(
                ty,
                T,
                [S16: i16, S32: i32, S64: i64],
                if negate { map1!(|a: T| a.wrapping_neg()) } else { map1!(|a: T| a.wrapping_abs()) }
            );
            with_operands(i, lower, exec, ty, &[ty])
        }
        "dp4a" | "dp2a" => dot(i, lower, form),
        _ => Err("this form is not known".into()),
    };
    of_class(Class::Integer, inst)
}

fn add_sub(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    if form.mods.contains(&"cc") {
        return carried(i, lower, form);
    }
    let saturate = form.flag("sat");
    let ty = form.ty()?;
    form.end()?;
    let add = i.opcode == "add";
    let exec = match (saturate, ty, add) {
        (true, Ty::S32, true) => map2!(|a: i32, b: i32| a.saturating_add(b)),
        (true, Ty::S32, false) => map2!(|a: i32, b: i32| a.saturating_sub(b)),
        (true, ..) => return Err(".sat is for .s32 only".into()),
        (false, _, true) => for_int!(
            ty,
            T,
            [U16: u16, S16: u16, U32: u32, S32: u32, U64: u64, S64: u64],
            map2!(|a: T, b: T| a.wrapping_add(b))
        ),
        (false, _, false) => for_int!(
            ty,
            T,
            [U16: u16, S16: u16, U32: u32, S32: u32, U64: u64, S64: u64],
            map2!(|a: T, b: T| a.wrapping_sub(b))
        ),
    };
    with_operands(i, lower, exec, ty, &[ty; 2])
}

fn min_max(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let relu = form.flag("relu");
    let ty = form.ty()?;
    form.end()?;
    let min = i.opcode == "min";
    let exec = match (relu, ty, min) {
        (true, Ty::S32, true) => map2!(|a: i32, b: i32| a.min(b).max(0)),
        (true, Ty::S32, false) => map2!(|a: i32, b: i32| a.max(b).max(0)),
        (true, ..) => return Err(".relu is for .s32 and .s16x2 only".into()),
        (false, _, true) => for_int!(
            ty,
            T,
            [U16: u16, S16: i16, U32: u32, S32: i32, U64: u64, S64: i64],
            map2!(|a: T, b: T| a.min(b))
        ),
        (false, _, false) => for_int!(
            ty,
            T,
            [U16: u16, S16: i16, U32: u32, S32: i32, U64: u64, S64: i64],
            map2!(|a: T, b: T| a.max(b))
        ),
    };
    with_operands(i, lower, exec, ty, &[ty; 2])
}

/// Both halves of two words, each by itself.
#[inline(always)]
fn halves(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

#[inline(always)]
fn signed_halves(a: u32, b: u32, f: impl Fn(i16, i16) -> i16) -> u32 {
    halves(a, b, |x, y| f(x as i16, y as i16) as u16)
}

fn packed_16(opcode: &str, ty: &str, relu: bool) -> Result<Exec, String> {
    Ok(match (opcode, ty, relu) {
        ("add", _, false) => map2!(|a: u32, b: u32| halves(a, b, |x, y| x.wrapping_add(y))),
        ("min", "u16x2", false) => map2!(|a: u32, b: u32| halves(a, b, |x, y| x.min(y))),
        ("max", "u16x2", false) => map2!(|a: u32, b: u32| halves(a, b, |x, y| x.max(y))),
        ("min", "s16x2", false) => map2!(|a: u32, b: u32| signed_halves(a, b, |x, y| x.min(y))),
        ("max", "s16x2", false) => map2!(|a: u32, b: u32| signed_halves(a, b, |x, y| x.max(y))),
        ("min", "s16x2", true) => map2!(|a: u32, b: u32| signed_halves(a, b, |x, y| x.min(y).max(0))),
        ("max", "s16x2", true) => map2!(|a: u32, b: u32| signed_halves(a, b, |x, y| x.max(y).max(0))),
        _ => return Err(format!("{opcode} has no such form for .{ty}")),
    })
}

/// Twice as wide an integer, for products.
trait Wide: Value {
    type Double: Value;
    fn product(self, other: Self) -> Self::Double;
    fn low(self, other: Self) -> Self;
    fn high(self, other: Self) -> Self;
}

macro_rules! wide {
    ($($t:ty, $double:ty);*) => {$(
        impl Wide for $t {
            type Double = $double;
            #[inline(always)]
            fn product(self, other: $t) -> $double {
                <$double>::from(self).wrapping_mul(<$double>::from(other))
            }
            #[inline(always)]
            fn low(self, other: $t) -> $t {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn high(self, other: $t) -> $t {
                (self.product(other) >> <$t>::BITS) as $t
            }
        }
    )*};
}
wide!(u16, u32; i16, i32; u32, u64; i32, i64);

impl Wide for u64 {
    type Double = u128;
    #[inline(always)]
    fn product(self, other: u64) -> u128 {
        u128::from(self) * u128::from(other)
    }
    #[inline(always)]
    fn low(self, other: u64) -> u64 {
        self.wrapping_mul(other)
    }
    #[inline(always)]
    fn high(self, other: u64) -> u64 {
        (self.product(other) >> 64) as u64
    }
}

impl Wide for i64 {
    type Double = u128;
    #[inline(always)]
    fn product(self, other: i64) -> u128 {
        (i128::from(self) * i128::from(other)) as u128
    }
    #[inline(always)]
    fn low(self, other: i64) -> i64 {
        self.wrapping_mul(other)
    }
    #[inline(always)]
    fn high(self, other: i64) -> i64 {
        (self.product(other) >> 64) as i64
    }
}

/// The type with twice the bits.
fn double(ty: Ty) -> Result<Ty, String> {
    Ok(match ty {
        Ty::U16 => Ty::U32,
        Ty::S16 => Ty::S32,
        Ty::U32 => Ty::U64,
        Ty::S32 => Ty::S64,
        _ => return Err(format!(".wide does not take {ty:?}")),
    })
}

fn mul(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let mode = form.one_of(&["lo", "hi", "wide"]).ok_or("one of .lo, .hi, .wide is needed")?;
    let ty = form.ty()?;
    form.end()?;
    let (exec, result) = match mode {
        "lo" => (
            for_int!(
                ty,
                T,
                [U16: u16, S16: i16, U32: u32, S32: i32, U64: u64, S64: i64],
                map2!(|a: T, b: T| a.low(b))
            ),
            ty,
        ),
        "hi" => (
            for_int!(
                ty,
                T,
                [U16: u16, S16: i16, U32: u32, S32: i32, U64: u64, S64: i64],
                map2!(|a: T, b: T| a.high(b))
            ),
            ty,
        ),
        _ => (
            for_int!(ty, T, [U16: u16, S16: i16, U32: u32, S32: i32], map2!(|a: T, b: T| a.product(b))),
            double(ty)?,
        ),
    };
    with_operands(i, lower, exec, result, &[ty; 2])
}

fn mad(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let mode = form.one_of(&["lo", "hi", "wide"]).ok_or("one of .lo, .hi, .wide is needed")?;
    let saturate = form.flag("sat");
    let ty = form.ty()?;
    form.end()?;
    let (exec, result) = match (mode, saturate) {
        ("hi", true) if ty == Ty::S32 => (map3!(|a: i32, b: i32, c: i32| a.high(b).saturating_add(c)), ty),
        (_, true) => return Err(".sat is for .hi.s32 only".into()),
        ("lo", _) => (
            for_int!(
                ty,
                T,
                [U16: u16, S16: i16, U32: u32, S32: i32, U64: u64, S64: i64],
                map3!(|a: T, b: T, c: T| a.low(b).wrapping_add(c))
            ),
            ty,
        ),
        ("hi", _) => (
            for_int!(
                ty,
                T,
                [U16: u16, S16: i16, U32: u32, S32: i32, U64: u64, S64: i64],
                map3!(|a: T, b: T, c: T| a.high(b).wrapping_add(c))
            ),
            ty,
        ),
        _ => (
            for_int!(
                ty,
                T,
                [U16: u16, S16: i16, U32: u32, S32: i32],
                map3!(|a: T, b: T, c: <T as Wide>::Double| a.product(b).wrapping_add(c))
            ),
            double(ty)?,
        ),
    };
    with_operands(i, lower, exec, result, &[ty, ty, result])
}

/// The low 24 bits. What lies above is not specified to be ignored; hardware without a 24-bit multiplier gets it ignored
/// by the compiler.
#[inline(always)]
fn low24(x: u32) -> u64 {
    u64::from(x & 0xff_ffff)
}

#[inline(always)]
fn signed24(x: i32) -> i64 {
    i64::from(x << 8 >> 8)
}

fn mul24(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let mode = form.one_of(&["lo", "hi"]).ok_or("one of .lo, .hi is needed")?;
    let saturate = form.flag("sat");
    let ty = form.ty()?;
    form.end()?;
    let add = i.opcode == "mad24";
    if saturate && (!add || mode != "hi" || ty != Ty::S32) {
        return Err(".sat is for mad24.hi.s32 only".into());
    }
    let exec = match (mode, ty, add) {
        ("lo", Ty::U32, false) => map2!(|a: u32, b: u32| (low24(a) * low24(b)) as u32),
        ("lo", Ty::S32, false) => map2!(|a: i32, b: i32| (signed24(a) * signed24(b)) as i32),
        ("hi", Ty::U32, false) => map2!(|a: u32, b: u32| ((low24(a) * low24(b)) >> 16) as u32),
        ("hi", Ty::S32, false) => map2!(|a: i32, b: i32| ((signed24(a) * signed24(b)) >> 16) as i32),
        ("lo", Ty::U32, true) => {
            map3!(|a: u32, b: u32, c: u32| ((low24(a) * low24(b)) as u32).wrapping_add(c))
        }
        ("lo", Ty::S32, true) => {
            map3!(|a: i32, b: i32, c: i32| ((signed24(a) * signed24(b)) as i32).wrapping_add(c))
        }
        ("hi", Ty::U32, true) => {
            map3!(|a: u32, b: u32, c: u32| (((low24(a) * low24(b)) >> 16) as u32).wrapping_add(c))
        }
        ("hi", Ty::S32, true) if saturate => {
            map3!(|a: i32, b: i32, c: i32| (((signed24(a) * signed24(b)) >> 16) as i32).saturating_add(c))
        }
        ("hi", Ty::S32, true) => {
            map3!(|a: i32, b: i32, c: i32| (((signed24(a) * signed24(b)) >> 16) as i32).wrapping_add(c))
        }
        _ => return Err(format!("{ty:?} does not fit")),
    };
    let sources = if add { &[ty; 3][..] } else { &[ty; 2] };
    with_operands(i, lower, exec, ty, sources)
}

/// Sums with a carry: `f` is given whether one comes in, and says whether one goes out. `p[0]` holds the carry that
/// comes in, `p[1]` takes the one that goes out if `OUT`.
#[inline(always)]
fn sums<T: Value + Default, const N: usize, const OUT: bool>(
    cx: &mut Cx<'_>,
    i: &Inst,
    mask: u32,
    f: impl Fn([T; N], bool) -> (T, bool),
) -> Flow {
    let sources: [[T; LANES]; N] = std::array::from_fn(|n| cx.get::<T>(i.r[n + 1]));
    let carry = cx.pred(i.p[0]);
    let mut out = [T::default(); LANES];
    let mut carries = 0;
    for lane in 0..LANES {
        let (value, carried) = f(std::array::from_fn(|n| sources[n][lane]), carry >> lane & 1 != 0);
        out[lane] = value;
        carries |= u32::from(carried) << lane;
    }
    cx.put(i.r[0], mask, &out);
    if OUT {
        cx.set_pred(i.p[1], mask, carries);
    }
    Flow::Next
}

/// An execution function with and without a carry that goes out.
macro_rules! carry {
    ($out:expr, $t:ty, $n:expr, $f:expr) => {
        if $out {
            let exec: Exec = |c, i, m| sums::<$t, $n, true>(c, i, m, $f);
            exec
        } else {
            let exec: Exec = |c, i, m| sums::<$t, $n, false>(c, i, m, $f);
            exec
        }
    };
}

/// `add.cc`, `sub.cc`, `addc`, `subc`. The flag of a subtraction is its borrow.
fn carried(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let out = form.flag("cc");
    let ty = form.ty()?;
    form.end()?;
    let exec = match i.opcode.as_str() {
        "add" => for_int!(ty, T, [U32: u32, S32: u32, U64: u64, S64: u64], {
            carry!(out, T, 2, |[a, b], _| a.overflowing_add(b))
        }),
        "sub" => for_int!(ty, T, [U32: u32, S32: u32, U64: u64, S64: u64], {
            carry!(out, T, 2, |[a, b], _| a.overflowing_sub(b))
        }),
        "addc" => for_int!(ty, T, [U32: u32, S32: u32, U64: u64, S64: u64], {
            carry!(out, T, 2, |[a, b], c| {
                let (s, first) = a.overflowing_add(b);
                let (s, second) = s.overflowing_add(T::from(c));
                (s, first | second)
            })
        }),
        _ => for_int!(ty, T, [U32: u32, S32: u32, U64: u64, S64: u64], {
            carry!(out, T, 2, |[a, b], c| {
                let (s, first) = a.overflowing_sub(b);
                let (s, second) = s.overflowing_sub(T::from(c));
                (s, first | second)
            })
        }),
    };
    with_carry(with_operands(i, lower, exec, ty, &[ty; 2])?, lower)
}

fn with_carry(mut inst: Inst, lower: &mut Lower<'_>) -> Result<Inst, String> {
    inst.p = [lower.carry(); 2];
    Ok(inst)
}

/// `mad.cc` and `madc`.
fn mad_carried(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let take = i.opcode == "madc";
    // `decode` has taken the modifier of `mad.cc`.
    let out = form.flag("cc") || !take;
    let mode = form.one_of(&["lo", "hi"]).ok_or("one of .lo, .hi is needed")?;
    let ty = form.ty()?;
    form.end()?;
    macro_rules! sum {
        ($part:ident) => {
            if take {
                for_int!(ty, T, [U32: u32, S32: i32, U64: u64, S64: i64], {
                    carry!(out, T, 3, |[a, b, c], carry| {
                        let (s, first) = a.$part(b).unsigned().overflowing_add(c.unsigned());
                        let (s, second) = s.overflowing_add(Unsigned::<T>::from(carry));
                        (s as T, first | second)
                    })
                })
            } else {
                for_int!(ty, T, [U32: u32, S32: i32, U64: u64, S64: i64], {
                    carry!(out, T, 3, |[a, b, c], _| {
                        let (s, carried) = a.$part(b).unsigned().overflowing_add(c.unsigned());
                        (s as T, carried)
                    })
                })
            }
        };
    }
    let exec = if mode == "lo" { sum!(low) } else { sum!(high) };
    with_carry(with_operands(i, lower, exec, ty, &[ty; 3])?, lower)
}

/// The same bits without a sign.
trait Bits {
    type Unsigned;
    fn unsigned(self) -> Self::Unsigned;
}
type Unsigned<T> = <T as Bits>::Unsigned;

macro_rules! unsigned {
    ($($t:ty, $u:ty);*) => {$(
        impl Bits for $t {
            type Unsigned = $u;
            #[inline(always)]
            fn unsigned(self) -> $u {
                self as $u
            }
        }
    )*};
}
unsigned!(u32, u32; i32, u32; u64, u64; i64, u64);

#[inline(always)]
fn unsigned_byte(word: u32, n: u32) -> i32 {
    (word >> (8 * n) & 0xff) as i32
}

#[inline(always)]
fn signed_byte(word: u32, n: u32) -> i32 {
    i32::from((word >> (8 * n)) as i8)
}

#[inline(always)]
fn unsigned_half(word: u32, n: u32) -> i32 {
    (word >> (16 * n) & 0xffff) as i32
}

#[inline(always)]
fn signed_half(word: u32, n: u32) -> i32 {
    i32::from((word >> (16 * n)) as i16)
}

fn dot(i: &ast::Inst, lower: &mut Lower<'_>, mut form: Form<'_>) -> Result<Inst, String> {
    let part = if i.opcode == "dp2a" {
        form.one_of(&["lo", "hi"]).ok_or("one of .lo, .hi is needed")?
    } else {
        "all"
    };
    let b = form.ty()?;
    let a = form.ty()?;
    form.end()?;
    macro_rules! four {
        ($fa:ident, $fb:ident) => {
            map3!(|a: u32, b: u32, c: u32| {
                (0..4).fold(c, |sum, n| sum.wrapping_add_signed($fa(a, n) * $fb(b, n)))
            })
        };
    }
    macro_rules! two {
        ($fa:ident, $fb:ident, $first:expr) => {
            map3!(|a: u32, b: u32, c: u32| {
                (0..2).fold(c, |sum, n| sum.wrapping_add_signed($fa(a, n).wrapping_mul($fb(b, $first + n))))
            })
        };
    }
    let exec = match (part, a, b) {
        ("all", Ty::U32, Ty::U32) => four!(unsigned_byte, unsigned_byte),
        ("all", Ty::U32, Ty::S32) => four!(unsigned_byte, signed_byte),
        ("all", Ty::S32, Ty::U32) => four!(signed_byte, unsigned_byte),
        ("all", Ty::S32, Ty::S32) => four!(signed_byte, signed_byte),
        ("lo", Ty::U32, Ty::U32) => two!(unsigned_half, unsigned_byte, 0),
        ("lo", Ty::U32, Ty::S32) => two!(unsigned_half, signed_byte, 0),
        ("lo", Ty::S32, Ty::U32) => two!(signed_half, unsigned_byte, 0),
        ("lo", Ty::S32, Ty::S32) => two!(signed_half, signed_byte, 0),
        ("hi", Ty::U32, Ty::U32) => two!(unsigned_half, unsigned_byte, 2),
        ("hi", Ty::U32, Ty::S32) => two!(unsigned_half, signed_byte, 2),
        ("hi", Ty::S32, Ty::U32) => two!(signed_half, unsigned_byte, 2),
        ("hi", Ty::S32, Ty::S32) => two!(signed_half, signed_byte, 2),
        _ => return Err(".u32 and .s32 are the only types".into()),
    };
    let sum = if a == Ty::U32 && b == Ty::U32 { Ty::U32 } else { Ty::S32 };
    with_operands(i, lower, exec, sum, &[a, b, sum])
}
