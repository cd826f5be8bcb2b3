//! Constant expressions: C's operators on 64-bit integers and doubles.

use super::error::ParseError;
use super::lexer::Tok;
use super::parser::Parser;

/// Parentheses, signs and conditionals inside one another.
const MAX_DEPTH: u32 = 64;

/// What a constant expression comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Constant {
    /// `.s64` or `.u64`
    Int {
        /// Two's complement.
        bits: u64,
        /// `.u64`
        unsigned: bool,
    },
    /// `0f3F800000`, which takes no part in arithmetic.
    Single(u32),
    /// Everything else with a point.
    Double(f64),
}

use Constant::{Double, Int, Single};

impl<'a> Parser<'a> {
    /// Whether the current word can begin a constant expression.
    pub(super) fn at_constant(&self) -> bool {
        match self.tok.tok {
            Tok::Int { .. } | Tok::Single(_) | Tok::Double(_) => true,
            Tok::Ident(name) => name == "WARP_SZ",
            Tok::Sym(sym) => matches!(sym, "(" | "-" | "+" | "~" | "!"),
            Tok::Dot(_) | Tok::Text(_) | Tok::End => false,
        }
    }

    /// A constant expression.
    pub(super) fn constant(&mut self) -> Result<Constant, ParseError> {
        self.conditional(0)
    }

    /// A constant expression that is an integer, in two's complement.
    pub(super) fn integer(&mut self) -> Result<i64, ParseError> {
        let start = self.tok.start;
        match self.constant()? {
            Int { bits, .. } => Ok(bits as i64),
            Single(_) | Double(_) => Err(self.error_since(start, "an integer")),
        }
    }

    /// A constant expression whose first `!` has been read.
    pub(super) fn constant_behind_not(&mut self) -> Result<Constant, ParseError> {
        let start = self.tok.start;
        let operand = self.unary(1)?;
        let left = self.sign("!", operand, start)?;
        self.rest(left, start, 0)
    }

    fn conditional(&mut self, depth: u32) -> Result<Constant, ParseError> {
        let start = self.tok.start;
        let left = self.unary(depth)?;
        self.rest(left, start, depth)
    }

    /// The operators behind a first operand.
    fn rest(&mut self, left: Constant, start: usize, depth: u32) -> Result<Constant, ParseError> {
        let condition = self.binary(left, start, 1, depth)?;
        if !self.eat("?")? {
            return Ok(condition);
        }
        let chosen = truth(condition).ok_or_else(|| self.error_since(start, "an integer before `?`"))?;
        let yes = self.conditional(depth + 1)?;
        self.expect(":")?;
        let no = self.conditional(depth + 1)?;
        match (yes, no) {
            (Int { .. }, Int { .. }) => Ok(if chosen { yes } else { no }),
            _ => Err(self.error_since(start, "integers behind `?`")),
        }
    }

    /// Operators that bind at least as strongly as `least`.
    fn binary(
        &mut self,
        mut left: Constant,
        start: usize,
        least: u8,
        depth: u32,
    ) -> Result<Constant, ParseError> {
        while let Tok::Sym(op) = self.tok.tok {
            let strength = strength(op);
            if strength < least || strength == 0 {
                break;
            }
            self.advance()?;
            let right_start = self.tok.start;
            let mut right = self.unary(depth)?;
            if let Tok::Sym(next) = self.tok.tok
                && self::strength(next) > strength
            {
                right = self.binary(right, right_start, strength + 1, depth)?;
            }
            left = apply(op, left, right)
                .ok_or_else(|| self.error_since(start, "a constant expression that has a value"))?;
        }
        Ok(left)
    }

    fn unary(&mut self, depth: u32) -> Result<Constant, ParseError> {
        if depth >= MAX_DEPTH {
            return Err(self.error("a constant expression less deeply nested"));
        }
        let start = self.tok.start;
        match self.tok.tok {
            Tok::Int { bits, unsigned } => {
                self.advance()?;
                Ok(Int { bits, unsigned })
            }
            Tok::Single(bits) => {
                self.advance()?;
                Ok(Single(bits))
            }
            Tok::Double(value) => {
                self.advance()?;
                Ok(Double(value))
            }
            Tok::Ident("WARP_SZ") => {
                self.advance()?;
                Ok(Int { bits: 32, unsigned: false })
            }
            Tok::Sym("(") => {
                self.advance()?;
                if let Tok::Dot(to) = self.tok.tok {
                    return self.cast(to, start, depth);
                }
                let value = self.conditional(depth + 1)?;
                self.expect(")")?;
                Ok(value)
            }
            Tok::Sym(op @ ("-" | "+" | "~" | "!")) => {
                self.advance()?;
                let operand = self.unary(depth + 1)?;
                self.sign(op, operand, start)
            }
            _ => Err(self.error("a constant")),
        }
    }

    /// `(.u64)` and `(.s64)`, read up to the type.
    fn cast(&mut self, to: &str, start: usize, depth: u32) -> Result<Constant, ParseError> {
        let unsigned = match to {
            "u64" => true,
            "s64" => false,
            _ => return Err(self.error("`.s64` or `.u64`")),
        };
        self.advance()?;
        self.expect(")")?;
        match self.unary(depth + 1)? {
            Int { bits, .. } => Ok(Int { bits, unsigned }),
            Single(_) | Double(_) => Err(self.error_since(start, "an integer behind the cast")),
        }
    }

    fn sign(&self, op: &str, operand: Constant, start: usize) -> Result<Constant, ParseError> {
        match (op, operand) {
            ("+", Int { .. } | Double(_)) => Ok(operand),
            ("-", Int { bits, unsigned }) => Ok(Int { bits: bits.wrapping_neg(), unsigned }),
            ("-", Double(value)) => Ok(Double(-value)),
            ("~", Int { bits, unsigned }) => Ok(Int { bits: !bits, unsigned }),
            ("!", Int { bits, .. }) => Ok(boolean(bits == 0)),
            _ => Err(self.error_since(start, "an operand that the sign applies to")),
        }
    }
}

/// How strongly an operator binds; 0 where it is none.
fn strength(op: &str) -> u8 {
    match op {
        "*" | "/" | "%" => 10,
        "+" | "-" => 9,
        "<<" | ">>" => 8,
        "<" | "<=" | ">" | ">=" => 7,
        "==" | "!=" => 6,
        "&" => 5,
        "^" => 4,
        "|" => 3,
        "&&" => 2,
        "||" => 1,
        _ => 0,
    }
}

fn boolean(value: bool) -> Constant {
    Int { bits: u64::from(value), unsigned: false }
}

fn truth(value: Constant) -> Option<bool> {
    match value {
        Int { bits, .. } => Some(bits != 0),
        Single(_) | Double(_) => None,
    }
}

fn apply(op: &str, left: Constant, right: Constant) -> Option<Constant> {
    match (left, right) {
        (Int { bits: a, unsigned: left }, Int { bits: b, unsigned: right }) => {
            if matches!(op, "<<" | ">>") {
                return Some(Int { bits: shift(op, a, b, left), unsigned: left });
            }
            integers(op, a, b, left || right)
        }
        (Double(a), Double(b)) => doubles(op, a, b),
        _ => None,
    }
}

/// Shifts by 64 and more leave nothing but the sign.
fn shift(op: &str, bits: u64, by: u64, unsigned: bool) -> u64 {
    match (op, unsigned) {
        ("<<", _) if by < 64 => bits << by,
        ("<<", _) => 0,
        (_, false) => ((bits as i64) >> by.min(63)) as u64,
        (_, true) if by < 64 => bits >> by,
        (_, true) => 0,
    }
}

fn integers(op: &str, a: u64, b: u64, unsigned: bool) -> Option<Constant> {
    let (x, y) = (a as i64, b as i64);
    let less = if unsigned { a < b } else { x < y };
    let bits = match op {
        "*" => a.wrapping_mul(b),
        "+" => a.wrapping_add(b),
        "-" => a.wrapping_sub(b),
        "/" | "%" if b == 0 => return None,
        "/" if unsigned => a / b,
        "/" => x.wrapping_div(y) as u64,
        "%" if unsigned => a % b,
        "%" => x.wrapping_rem(y) as u64,
        "&" => a & b,
        "^" => a ^ b,
        "|" => a | b,
        "<" => return Some(boolean(less)),
        "<=" => return Some(boolean(less || a == b)),
        ">" => return Some(boolean(!less && a != b)),
        ">=" => return Some(boolean(!less)),
        "==" => return Some(boolean(a == b)),
        "!=" => return Some(boolean(a != b)),
        "&&" => return Some(boolean(a != 0 && b != 0)),
        "||" => return Some(boolean(a != 0 || b != 0)),
        _ => return None,
    };
    Some(Int { bits, unsigned })
}

fn doubles(op: &str, a: f64, b: f64) -> Option<Constant> {
    Some(match op {
        "*" => Double(a * b),
        "/" => Double(a / b),
        "+" => Double(a + b),
        "-" => Double(a - b),
        "<" => boolean(a < b),
        "<=" => boolean(a <= b),
        ">" => boolean(a > b),
        ">=" => boolean(a >= b),
        "==" => boolean(a == b),
        "!=" => boolean(a != b),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result<Constant, ParseError> {
        let mut parser = Parser::new(text)?;
        let value = parser.constant()?;
        assert_eq!(parser.tok.tok, Tok::End, "{text}");
        Ok(value)
    }

    fn signed(text: &str) -> i64 {
        match value(text) {
            Ok(Int { bits, unsigned: false }) => bits as i64,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn binds_like_c() {
        for (text, expected) in [
            ("(1<<4)|3", 19),
            ("1<<4|3", 19),
            ("2+3*4", 14),
            ("(2+3)*4", 20),
            ("10-3-2", 5),
            ("100/5/2", 10),
            ("7 % 4", 3),
            ("-7/2", -3),
            ("-7 % 4", -3),
            ("~0", -1),
            ("!5 + !0", 1),
            ("- - 3", 3),
            ("1 | 2 ^ 2 & 0", 3),
            ("3 < 4 == 1", 1),
            ("1 << 2 + 1", 8),
            ("5 > 4 > 3", 0),
            ("0 || 1 && 0", 0),
            ("1 ? 2 : 0 ? 3 : 4", 2),
            ("0 ? 2 : 0 ? 3 : 4", 4),
            ("WARP_SZ*2-1", 63),
            ("-1 >> 70", -1),
            ("1 << 64", 0),
            ("-9223372036854775807 - 1", i64::MIN),
            ("(-9223372036854775807 - 1) / -1", i64::MIN),
            ("1.5 < 2.0", 1),
        ] {
            assert_eq!(signed(text), expected, "{text}");
        }
    }

    #[test]
    fn unsigned_spreads() {
        assert_eq!(value("-1U / 2"), Ok(Int { bits: u64::MAX / 2, unsigned: true }));
        assert_eq!(value("(.u64)-1 > 0"), Ok(boolean(true)));
        assert_eq!(value("0x8000000000000000 >> 63"), Ok(Int { bits: 1, unsigned: true }));
        assert_eq!(value("(.s64)0x8000000000000000 >> 63"), Ok(Int { bits: u64::MAX, unsigned: false }));
        assert_eq!(value("1U >> 64"), Ok(Int { bits: 0, unsigned: true }));
    }

    #[test]
    fn floats() {
        assert_eq!(value("-1.5*2.0 + 1.0"), Ok(Double(-2.0)));
        assert_eq!(value("0f3F800000"), Ok(Single(0x3f80_0000)));
        assert!(value("1.5 + 1").is_err());
        assert!(value("(.u64)3.0").is_err());
        assert!(value("1 ? 1.0 : 2.0").is_err());
        assert!(value("0f3F800000 + 1").is_err());
        assert!(value("-0f3F800000").is_err());
        assert!(value("~1.0").is_err());
        assert!(value("1.0 & 1").is_err());
        assert!(value("1.0 ? 1 : 2").is_err());
    }

    #[test]
    fn refuses() {
        for text in ["1/0", "1 % 0", "()", "(1", "1 +", "(.u32)1", "1 ? 2", "-"] {
            assert!(value(text).is_err(), "{text}");
        }
        for open in ["(", "-", "~", "1?", "1?2:", "(.s64)"] {
            let error = value(&open.repeat(100_000)).unwrap_err();
            assert_eq!(error.expected, "a constant expression less deeply nested", "{open}");
        }
    }
}
