//! Arguments of a kernel as written on the command line.

use super::npy;
use super::value::Type;
use std::path::PathBuf;
use std::str::FromStr;

/// How the forms are explained when one is not understood.
pub(super) const FORMS: &str = "\
Arguments of the kernel, in order:
  TYPE:VALUE           f32:1.5  i32:-7  u64:0xff  bf16:2
  buf:TYPE[N]=INIT     buf:f32[64*128]=random(1)
  ref:ARGUMENT[+BYTES] a pointer into the buffer of another argument, by name or number
  hex:BYTES            anything else
Each may have NAME= in front. Types: u8 i8 u16 i16 u32 i32 u64 i64 f16 bf16 f32 f64.
INIT: zeros, iota, uninit, fill(V), random(SEED), random(SEED,LOW,HIGH), freed, file(PATH): .npy or raw, [N] may be left
out.";

/// What a buffer holds before the launch.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// Nothing: a read of it is a finding.
    Uninit,
    /// 0
    Zeros,
    /// 0, 1, 2, ..; wraps around in integers too small for it.
    Iota,
    /// One value everywhere, as bytes.
    Fill(Vec<u8>),
    /// Floats in [-1, 1), integers of the whole range; or within the bounds.
    Random(u64, Option<(f64, f64)>),
    /// `.npy`, or raw bytes.
    File(PathBuf),
    /// The buffer is freed before the launch.
    Freed,
}

/// What is passed.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A value, little endian.
    Bytes(Vec<u8>),
    /// A pointer to a new buffer.
    Buffer {
        /// Of an element.
        ty: Type,
        /// Elements; `None`: as many as the file has.
        count: Option<usize>,
        /// Contents.
        init: Init,
    },
    /// A pointer into the buffer of another argument.
    Pointer {
        /// Name or number.
        to: String,
        /// Added.
        offset: u64,
    },
}

/// One argument.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Given by `NAME=` in front.
    pub name: Option<String>,
    /// What is passed.
    pub what: What,
    /// As written.
    pub text: String,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Spec, String> {
        let explain = |why: String| format!("{why}\n{FORMS}");
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) if is_name(name) => (Some(name.to_string()), rest),
            _ => (None, text),
        };
        let (kind, body) =
            rest.split_once(':').ok_or_else(|| explain(format!("{rest} is no argument: it has no colon")))?;
        let what = match kind {
            "buf" => buffer(body),
            "ref" => pointer(body),
            "hex" => hex(body).map(What::Bytes),
            _ => kind.parse::<Type>().and_then(|ty| ty.encode(body)).map(What::Bytes),
        };
        Ok(Spec { name, what: what.map_err(explain)?, text: text.to_string() })
    }
}

/// `n`, `in_0`; not `0`, which is a number, nor anything with a colon.
fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `f32[64*128]=random(1)`
fn buffer(text: &str) -> Result<What, String> {
    let (shape, init) = text.split_once('=').ok_or_else(|| format!("buf:{text} does not say =INIT"))?;
    let (ty, count) = match shape.split_once('[') {
        None => (shape, None),
        Some((ty, count)) => {
            let count =
                count.strip_suffix(']').ok_or_else(|| format!("{shape}: the bracket is not closed"))?;
            let mut product = 1usize;
            for factor in count.split(['*', 'x']) {
                let n: usize =
                    factor.trim().parse().map_err(|_| format!("{count} is no number of elements"))?;
                product = product.checked_mul(n).ok_or_else(|| format!("{count} is too large"))?;
            }
            (ty, Some(product))
        }
    };
    let ty: Type = ty.parse()?;
    let init = initial(init, ty)?;
    if count.is_none() && !matches!(init, Init::File(_)) {
        return Err(format!("buf:{text} does not say how many elements: buf:{ty}[N]=.."));
    }
    Ok(What::Buffer { ty, count, init })
}

fn initial(text: &str, ty: Type) -> Result<Init, String> {
    let (word, arguments) = match text.split_once('(') {
        None => (text, None),
        Some((word, rest)) => (
            word,
            Some(rest.strip_suffix(')').ok_or_else(|| format!("{text}: the parenthesis is not closed"))?),
        ),
    };
    Ok(match (word, arguments) {
        ("uninit", None) => Init::Uninit,
        ("zeros", None) => Init::Zeros,
        ("iota", None) => Init::Iota,
        ("freed", None) => Init::Freed,
        ("fill", Some(value)) => Init::Fill(ty.encode(value.trim())?),
        ("file", Some(path)) => Init::File(path.into()),
        ("random", Some(list)) => {
            let parts: Vec<&str> = list.split(',').map(str::trim).collect();
            let number = |s: &str| s.parse::<f64>().map_err(|e| format!("{s}: {e}"));
            let seed = parts[0].parse().map_err(|e| format!("{}: {e}", parts[0]))?;
            match parts[1..] {
                [] => Init::Random(seed, None),
                [low, high] => Init::Random(seed, Some((number(low)?, number(high)?))),
                _ => return Err(format!("{text}: random(SEED) or random(SEED,LOW,HIGH)")),
            }
        }
        _ => return Err(format!("{text} is no way to fill a buffer")),
    })
}

/// `x+16`
fn pointer(text: &str) -> Result<What, String> {
    let (to, offset) = text.split_once('+').unwrap_or((text, "0"));
    let offset = offset.trim().parse().map_err(|e| format!("{offset}: {e}"))?;
    Ok(What::Pointer { to: to.trim().to_string(), offset })
}

fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|d| d.len() % 2 == 0).ok_or_else(|| format!("{text} is no row of bytes"))?;
    Ok(digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect())
}

/// The bytes a buffer begins with; `None` for one without.
pub(super) fn contents(
    ty: Type,
    count: Option<usize>,
    init: &Init,
) -> Result<(usize, Option<Vec<u8>>), String> {
    let wanted = |bytes: Vec<u8>, what: &str| match count {
        Some(count) if bytes.len() != count * ty.bytes() => Err(format!(
            "{what} has {} elements of {ty}, not {count}",
            bytes.len() as f64 / ty.bytes() as f64
        )),
        _ => Ok(bytes),
    };
    let n = count.unwrap_or(0);
    n.checked_mul(ty.bytes()).filter(|&b| b <= isize::MAX as usize).ok_or("the buffer is too large")?;
    let bytes = match init {
        Init::Uninit | Init::Freed => return Ok((n * ty.bytes(), None)),
        Init::Zeros => vec![0; n * ty.bytes()],
        Init::Iota if ty.is_float() => (0..n).flat_map(|i| ty.encode_float(i as f64)).collect(),
        Init::Iota => (0..n as u64).flat_map(|i| i.to_le_bytes().into_iter().take(ty.bytes())).collect(),
        Init::Fill(value) => value.repeat(n),
        Init::Random(seed, bounds) => random(ty, n, *seed, *bounds),
        Init::File(path) => {
            let file = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
            let is_npy = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy"));
            let bytes = if is_npy { npy::read(&file, ty) } else { Ok(file) };
            let bytes = bytes.map_err(|e| format!("{}: {e}", path.display()))?;
            if bytes.len() % ty.bytes() != 0 {
                return Err(format!("{}: {} bytes are no whole {ty}s", path.display(), bytes.len()));
            }
            wanted(bytes, &path.display().to_string())?
        }
    };
    Ok((bytes.len(), Some(bytes)))
}

/// Splitmix64: the same numbers everywhere.
fn random(ty: Type, count: usize, seed: u64, bounds: Option<(f64, f64)>) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    let mut bytes = Vec::with_capacity(count * ty.bytes());
    for _ in 0..count {
        let bits = next();
        match bounds.or(ty.is_float().then_some((-1.0, 1.0))) {
            None => bytes.extend(&bits.to_le_bytes()[..ty.bytes()]),
            Some((low, high)) => {
                let unit = (bits >> 11) as f64 / (1u64 << 53) as f64;
                bytes.extend(ty.encode_float(low + (high - low) * unit));
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(spec("i32:-2").what, What::Bytes(vec![0xfe, 0xff, 0xff, 0xff]));
        assert_eq!(spec("alpha=f32:1").name.as_deref(), Some("alpha"));
        assert_eq!(spec("hex:00fF10").what, What::Bytes(vec![0, 255, 16]));
        assert_eq!(spec("ref:x+16").what, What::Pointer { to: "x".into(), offset: 16 });
        let buffer = |ty, count, init| What::Buffer { ty, count, init };
        assert_eq!(spec("x=buf:f32[4*8]=iota").what, buffer(Type::F32, Some(32), Init::Iota));
        assert_eq!(
            spec("buf:bf16[3]=fill(1)").what,
            buffer(Type::Bf16, Some(3), Init::Fill(vec![0x80, 0x3f]))
        );
        assert_eq!(
            spec("buf:i32[3]=random(7, 0, 10)").what,
            buffer(Type::I32, Some(3), Init::Random(7, Some((0.0, 10.0))))
        );
        assert_eq!(spec("buf:u8=file(a=b.bin)").what, buffer(Type::U8, None, Init::File("a=b.bin".into())));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, why) in [
            ("7", "no colon"),
            ("float:7", "float is no type"),
            ("i32:x", "x is no i32"),
            ("buf:f32[3]", "=INIT"),
            ("buf:f32=zeros", "how many"),
            ("buf:f32[x]=zeros", "x is no number"),
            ("buf:f32[3=zeros", "not closed"),
            ("buf:f32[3]=ones", "ones is no way"),
            ("buf:f32[3]=random(1,2)", "random(SEED,LOW,HIGH)"),
            ("hex:123", "no row of bytes"),
        ] {
            let error = text.parse::<Spec>().unwrap_err();
            assert!(error.contains(why) && error.contains("buf:TYPE[N]"), "{text}: {error}");
        }
    }

    #[test]
    fn contents_follow_their_words() {
        assert_eq!(contents(Type::U8, Some(3), &Init::Iota).unwrap(), (3, Some(vec![0, 1, 2])));
        assert_eq!(contents(Type::U16, Some(2), &Init::Uninit).unwrap(), (4, None));
        let (_, bytes) = contents(Type::F32, Some(1000), &Init::Random(3, None)).unwrap();
        let bytes = bytes.unwrap();
        let values: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)));
        assert!(values.iter().sum::<f32>().abs() < 60.0);
        assert_eq!(Some(bytes), contents(Type::F32, Some(1000), &Init::Random(3, None)).unwrap().1);
        let (_, bytes) = contents(Type::I32, Some(50), &Init::Random(3, Some((5.0, 8.0)))).unwrap();
        let values = bytes.unwrap();
        assert!(values.chunks(4).all(|b| (5..8).contains(&b[0])));
    }
}
