//! Text of `printf`: the conversions that CUDA documents for device code, with C's rules.

/// Where values come from.
pub trait Arguments {
    /// The next value of so many bytes, 4 or 8, from the argument buffer.
    fn next(&mut self, bytes: u32) -> u64;
    /// The string at a generic address, up to its 0.
    fn string(&mut self, address: u64) -> Vec<u8>;
}

/// One conversion: `%-08.3lld`.
#[derive(Clone, Copy, Debug, Default)]
struct Spec {
    minus: bool,
    plus: bool,
    space: bool,
    hash: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

/// Widest field and longest precision; C allows more, nobody means it.
const MOST: usize = 4096;

/// Size of an integer argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Char,
    Short,
    Int,
    Long,
}

impl Size {
    fn bits(self) -> u32 {
        match self {
            Size::Char => 8,
            Size::Short => 16,
            Size::Int => 32,
            Size::Long => 64,
        }
    }

    /// Bytes in the argument buffer: C passes nothing narrower than an `int`.
    fn passed(self) -> u32 {
        if self == Size::Long { 8 } else { 4 }
    }
}

/// Formats; a conversion that is none of CUDA's is copied as it stands and takes no argument.
pub fn format(text: &[u8], arguments: &mut dyn Arguments) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&b| b == b'%') {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        match conversion(rest, arguments, &mut out) {
            Some(length) => rest = &rest[length..],
            None => {
                out.push(b'%');
                rest = &rest[1..];
            }
        }
    }
    out.extend_from_slice(rest);
    out
}

/// A number in the text, or `*` for an argument.
fn number(text: &[u8], at: &mut usize) -> Option<Number> {
    if text.get(*at) == Some(&b'*') {
        *at += 1;
        return Some(Number::Argument);
    }
    let start = *at;
    let mut value = 0usize;
    while let Some(digit) = text.get(*at).filter(|b| b.is_ascii_digit()) {
        value = (value * 10 + usize::from(digit - b'0')).min(MOST);
        *at += 1;
    }
    (*at != start).then_some(Number::Plain(value))
}

#[derive(Clone, Copy)]
enum Number {
    Plain(usize),
    Argument,
}

/// The conversion at the beginning of the text: writes it and returns its length.
fn conversion(text: &[u8], arguments: &mut dyn Arguments, out: &mut Vec<u8>) -> Option<usize> {
    let mut spec = Spec::default();
    let mut at = 1;
    while let Some(flag) = text.get(at) {
        match flag {
            b'-' => spec.minus = true,
            b'+' => spec.plus = true,
            b' ' => spec.space = true,
            b'#' => spec.hash = true,
            b'0' => spec.zero = true,
            _ => break,
        }
        at += 1;
    }
    let width = number(text, &mut at);
    let precision = (text.get(at) == Some(&b'.')).then(|| {
        at += 1;
        number(text, &mut at).unwrap_or(Number::Plain(0))
    });
    let (size, length) = match (text.get(at), text.get(at + 1)) {
        (Some(b'h'), Some(b'h')) => (Size::Char, 2),
        (Some(b'l'), Some(b'l')) => (Size::Long, 2),
        (Some(b'h'), _) => (Size::Short, 1),
        (Some(b'l' | b'j' | b'z' | b't'), _) => (Size::Long, 1),
        _ => (Size::Int, 0),
    };
    at += length;
    let &letter = text.get(at)?;
    if !b"diouxXcspfFeEgGaA%".contains(&letter) {
        return None;
    }
    // Only now is it certain that arguments are taken.
    let mut star = || arguments.next(4) as u32 as i32;
    match width {
        Some(Number::Plain(n)) => spec.width = n,
        Some(Number::Argument) => {
            let n = star();
            spec.minus |= n < 0;
            spec.width = (n.unsigned_abs() as usize).min(MOST);
        }
        None => {}
    }
    spec.precision = match precision {
        Some(Number::Plain(n)) => Some(n),
        Some(Number::Argument) => usize::try_from(star()).ok().map(|n| n.min(MOST)),
        None => None,
    };
    write(letter, size, spec, arguments, out);
    Some(at + 1)
}

fn write(letter: u8, size: Size, spec: Spec, arguments: &mut dyn Arguments, out: &mut Vec<u8>) {
    match letter {
        b'%' => out.push(b'%'),
        b'c' => pad(&spec, "", &[arguments.next(4) as u8], false, out),
        b's' => {
            let address = arguments.next(8);
            let mut text = if address == 0 { b"(null)".to_vec() } else { arguments.string(address) };
            text.truncate(spec.precision.unwrap_or(usize::MAX));
            pad(&spec, "", &text, false, out);
        }
        b'p' => {
            let address = arguments.next(8);
            let text = if address == 0 { "(nil)".to_string() } else { format!("{address:#x}") };
            pad(&spec, "", text.as_bytes(), false, out);
        }
        b'd' | b'i' => {
            let unused = 64 - size.bits();
            let value = ((arguments.next(size.passed()) << unused) as i64) >> unused;
            let digits = value.unsigned_abs().to_string();
            integer(&spec, sign(&spec, value < 0), digits, false, out);
        }
        b'o' | b'u' | b'x' | b'X' => {
            let value = arguments.next(size.passed()) & (u64::MAX >> (64 - size.bits()));
            let (prefix, digits) = match letter {
                b'o' => ("", format!("{value:o}")),
                b'x' => (if spec.hash && value != 0 { "0x" } else { "" }, format!("{value:x}")),
                b'X' => (if spec.hash && value != 0 { "0X" } else { "" }, format!("{value:X}")),
                _ => ("", value.to_string()),
            };
            integer(&spec, prefix, digits, letter == b'o' && spec.hash, out);
        }
        _ => float(letter, &spec, f64::from_bits(arguments.next(8)), out),
    }
}

fn sign(spec: &Spec, negative: bool) -> &'static str {
    match (negative, spec.plus, spec.space) {
        (true, ..) => "-",
        (_, true, _) => "+",
        (_, _, true) => " ",
        _ => "",
    }
}

/// Sign or prefix, filling, text; zeros go between.
fn pad(spec: &Spec, prefix: &str, text: &[u8], zeros: bool, out: &mut Vec<u8>) {
    let fill = spec.width.saturating_sub(prefix.len() + text.len());
    if !spec.minus && !zeros {
        out.resize(out.len() + fill, b' ');
    }
    out.extend_from_slice(prefix.as_bytes());
    if zeros && !spec.minus {
        out.resize(out.len() + fill, b'0');
    }
    out.extend_from_slice(text);
    if spec.minus {
        out.resize(out.len() + fill, b' ');
    }
}

/// `zero_first`: the first digit has to be 0 (`%#o`).
fn integer(spec: &Spec, prefix: &str, mut digits: String, zero_first: bool, out: &mut Vec<u8>) {
    if let Some(least) = spec.precision {
        if least == 0 && digits == "0" {
            digits.clear();
        }
        if digits.len() < least {
            digits.insert_str(0, &"0".repeat(least - digits.len()));
        }
    }
    if zero_first && !digits.starts_with('0') {
        digits.insert(0, '0');
    }
    pad(spec, prefix, digits.as_bytes(), spec.zero && spec.precision.is_none(), out);
}

fn float(letter: u8, spec: &Spec, value: f64, out: &mut Vec<u8>) {
    let upper = letter.is_ascii_uppercase();
    let mut prefix = sign(spec, value.is_sign_negative()).to_string();
    let magnitude = value.abs();
    let mut text = if magnitude.is_nan() {
        "nan".to_string()
    } else if magnitude.is_infinite() {
        "inf".to_string()
    } else {
        match letter.to_ascii_lowercase() {
            b'f' => fixed(magnitude, spec.precision.unwrap_or(6), spec.hash),
            b'e' => exponential(magnitude, spec.precision.unwrap_or(6), spec.hash),
            b'g' => general(magnitude, spec.precision.unwrap_or(6).max(1), spec.hash),
            _ => {
                prefix.push_str("0x");
                hexadecimal(magnitude, spec.precision, spec.hash)
            }
        }
    };
    if upper {
        text.make_ascii_uppercase();
        prefix.make_ascii_uppercase();
    }
    pad(spec, &prefix, text.as_bytes(), spec.zero && magnitude.is_finite(), out);
}

fn fixed(x: f64, precision: usize, point: bool) -> String {
    let mut text = format!("{x:.precision$}");
    if point && precision == 0 {
        text.push('.');
    }
    text
}

/// Digits with a point, and the exponent.
fn scientific(x: f64, precision: usize) -> (String, i32) {
    let text = format!("{x:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    (digits.to_string(), exponent.parse().unwrap_or(0))
}

/// C writes at least two digits of the exponent, and its sign.
fn with_exponent(digits: &str, exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn exponential(x: f64, precision: usize, point: bool) -> String {
    let (mut digits, exponent) = scientific(x, precision);
    if point && precision == 0 {
        digits.push('.');
    }
    with_exponent(&digits, exponent)
}

fn general(x: f64, precision: usize, keep: bool) -> String {
    let (digits, exponent) = scientific(x, precision - 1);
    let trim = |mut text: String| {
        if keep {
            if !text.contains('.') {
                text.push('.');
            }
        } else if text.contains('.') {
            text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
        }
        text
    };
    if exponent < -4 || exponent >= precision as i32 {
        with_exponent(&trim(digits), exponent)
    } else {
        trim(fixed(x, (precision as i32 - 1 - exponent) as usize, false))
    }
}

/// Behind `0x`: `1.8p+0`, as glibc normalises it.
fn hexadecimal(x: f64, precision: Option<usize>, point: bool) -> String {
    let bits = x.to_bits();
    let (mut mantissa, mut exponent) = (bits & ((1 << 52) - 1), (bits >> 52) as i32 - 1023);
    let mut lead = 1;
    if bits >> 52 == 0 {
        (lead, exponent) = (0, if mantissa == 0 { 0 } else { -1022 });
    }
    if let Some(digits) = precision.filter(|&p| p < 13) {
        // Rounds half to even at the last digit shown.
        let unit = 1u64 << (52 - 4 * digits);
        let whole = lead << 52 | mantissa;
        let (below, half) = (whole & (unit - 1), unit / 2);
        let mut rounded = whole & !(unit - 1);
        if below > half || (below == half && rounded & unit != 0) {
            rounded += unit;
        }
        (lead, mantissa) = (rounded >> 52, rounded & ((1 << 52) - 1));
    }
    let mut fraction = format!("{mantissa:013x}");
    match precision {
        Some(digits) if digits <= 13 => fraction.truncate(digits),
        Some(digits) => fraction.push_str(&"0".repeat(digits - 13)),
        None => fraction.truncate(fraction.trim_end_matches('0').len()),
    }
    let dot = if point || !fraction.is_empty() { "." } else { "" };
    format!("{lead}{dot}{fraction}p{exponent:+}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::{CString, c_char, c_int};

    struct Values<'a>(&'a [u64], Vec<(u64, &'static str)>);

    impl Arguments for Values<'_> {
        fn next(&mut self, bytes: u32) -> u64 {
            let (first, rest) = self.0.split_first().expect("an argument is left");
            self.0 = rest;
            if bytes == 4 { first & 0xFFFF_FFFF } else { *first }
        }
        fn string(&mut self, address: u64) -> Vec<u8> {
            self.1.iter().find(|s| s.0 == address).expect("a string is there").1.as_bytes().to_vec()
        }
    }

    fn print(text: &str, values: &[u64]) -> String {
        let mut arguments = Values(values, vec![(0x100, "abc"), (0x200, "")]);
        let out = format(text.as_bytes(), &mut arguments);
        assert!(arguments.0.is_empty(), "{text} left arguments");
        String::from_utf8(out).expect("ASCII")
    }

    unsafe extern "C" {
        fn snprintf(to: *mut c_char, bytes: usize, format: *const c_char, ...) -> c_int;
    }

    /// What the C library makes of one value.
    fn expected<T>(format: &str, call: impl Fn(*mut c_char, usize, *const c_char) -> T) -> String {
        let mut to = vec![0u8; 8192];
        let format = CString::new(format).expect("no 0 inside");
        call(to.as_mut_ptr().cast(), to.len(), format.as_ptr());
        let end = to.iter().position(|&b| b == 0).expect("terminated");
        String::from_utf8(to[..end].to_vec()).expect("ASCII")
    }

    fn c_double(format: &str, x: f64) -> String {
        // SAFETY: the format takes one double; the buffer's size is given.
        expected(format, |to, bytes, format| unsafe { snprintf(to, bytes, format, x) })
    }

    fn c_long(format: &str, x: u64) -> String {
        // SAFETY: the format takes one 64-bit integer; the buffer's size is given.
        expected(format, |to, bytes, format| unsafe { snprintf(to, bytes, format, x) })
    }

    fn c_int(format: &str, x: u32) -> String {
        // SAFETY: the format takes one 32-bit integer; the buffer's size is given.
        expected(format, |to, bytes, format| unsafe { snprintf(to, bytes, format, x) })
    }

    /// Flags, width, precision.
    fn spec() -> impl Strategy<Value = String> {
        let precision =
            prop_oneof![Just(String::new()), Just(".".into()), (0..20u32).prop_map(|n| format!(".{n}"))];
        ("[-+ #0]{0,3}", prop_oneof![Just(String::new()), (1..30u32).prop_map(|n| n.to_string())], precision)
            .prop_map(|(flags, width, precision)| format!("%{flags}{width}{precision}"))
    }

    fn doubles() -> impl Strategy<Value = f64> {
        let special =
            [0.0, -0.0, 0.5, 1.5, 2.5, 0.125, 9.5, 99.5, 999_999.5, 1e-5, 9.9999e-5, f64::NAN, -f64::NAN];
        let edge =
            [f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE, 5e-324, f64::MAX, 1e15, 123_456.0, 0.1];
        prop_oneof![
            any::<u64>().prop_map(f64::from_bits),
            (-1e6..1e6f64),
            proptest::sample::select([special.as_slice(), &edge].concat()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn doubles_come_out_as_in_c(
            spec in spec(), letter in proptest::sample::select(&b"fFeEgGaA"[..]), x in doubles(),
        ) {
            // Versions of glibc drop digits of `%#g` where rounding carries into the exponent.
            let spec = if letter.eq_ignore_ascii_case(&b'g') { spec.replace('#', "") } else { spec };
            let format = format!("[{spec}{}]", letter as char);
            prop_assert_eq!(print(&format, &[x.to_bits()]), c_double(&format, x), "{} of {}", format, x);
        }

        #[test]
        fn integers_come_out_as_in_c(
            spec in spec(), letter in proptest::sample::select(&b"dioxXu"[..]),
            size in proptest::sample::select(&["", "h", "hh", "l", "ll", "z", "j"][..]),
            x in prop_oneof![any::<u64>(), 0..3u64],
        ) {
            let format = format!("[{spec}{size}{}]", letter as char);
            let wide = matches!(size, "l" | "ll" | "z" | "j");
            let want = if wide { c_long(&format, x) } else { c_int(&format, x as u32) };
            prop_assert_eq!(print(&format, &[x]), want, "{} of {}", format, x);
        }
    }

    #[test]
    fn text_goes_through() {
        assert_eq!(print("no conversion\n", &[]), "no conversion\n");
        assert_eq!(print("100%% of %c%c", &[u64::from(b'a'), u64::from(b'b')]), "100% of ab");
        assert_eq!(print("[%s] [%5s] [%-5s] [%.2s] [%s]", &[0x100; 5]), "[abc] [  abc] [abc  ] [ab] [abc]");
        assert_eq!(print("[%s] [%s]", &[0x200, 0]), "[] [(null)]");
        assert_eq!(print("%p %p", &[0xAB0, 0]), "0xab0 (nil)");
    }

    #[test]
    fn an_alternative_general_form_keeps_its_zeros() {
        let values = [1.5f64, 999_999.5, 1e-7, 100_000.0].map(f64::to_bits);
        assert_eq!(print("%#g %#g %#.2g %#.6g", &values), "1.50000 1.00000e+06 1.0e-07 100000.");
    }

    #[test]
    fn widths_come_from_arguments() {
        assert_eq!(print("[%*d] [%-*d] [%.*f]", &[4, 7, 4, 7, 2, 1.0f64.to_bits()]), "[   7] [7   ] [1.00]");
        assert_eq!(print("[%*d]", &[-4i32 as u32 as u64, 7]), "[7   ]");
    }

    #[test]
    fn what_is_no_conversion_is_copied_and_takes_nothing() {
        assert_eq!(print("%y %d %", &[5]), "%y 5 %");
        assert_eq!(print("%5", &[]), "%5");
        assert_eq!(print("%*q", &[]), "%*q");
        assert_eq!(print("%lld", &[u64::MAX]), "-1");
    }
}
