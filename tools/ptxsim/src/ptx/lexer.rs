//! PTX text to words. Streaming: the parser holds one word of lookahead and nothing is stored.

use super::error::ParseError;

/// Kinds of words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Tok<'a> {
    /// `%r1`, `$L__BB0_2`, `ld`, `_`
    Ident(&'a str),
    /// `.global`, `.shared::cta`, `.m16n8k16`, without the dot
    Dot(&'a str),
    /// An integer literal; unsigned where it ends in `U` or does not fit a signed one.
    Int {
        /// Value.
        bits: u64,
        /// `.u64` instead of `.s64` in constant expressions.
        unsigned: bool,
    },
    /// `0f3F800000`
    Single(u32),
    /// `0d3FF0000000000000`, `1.5`, `1e-3`
    Double(f64),
    /// Between the quotes, escapes untouched.
    Text(&'a str),
    /// Punctuation and operators.
    Sym(&'a str),
    /// Behind the last word.
    End,
}

/// A word and its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    /// The word.
    pub tok: Tok<'a>,
    /// First byte.
    pub start: usize,
    /// Byte behind the last.
    pub end: usize,
    /// Line of the first byte, from 1.
    pub line: u32,
}

/// Reads words off a text.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

/// Operators of two characters; everything else is a word of one.
const PAIRS: [&str; 8] = ["<<", ">>", "<=", ">=", "==", "!=", "&&", "||"];

impl<'a> Lexer<'a> {
    /// At the beginning of `text`.
    pub fn new(text: &'a str) -> Lexer<'a> {
        Lexer { text, at: 0, line: 1 }
    }

    /// The text that is being read.
    pub fn text(&self) -> &'a str {
        self.text
    }

    fn byte(&self, ahead: usize) -> u8 {
        // NUL is no PTX: as good as the end of the text for every comparison made here.
        self.text.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    fn error(&self, start: usize, end: usize, expected: &str) -> ParseError {
        ParseError::new(self.text, start, end, expected)
    }

    /// Position behind the word characters from `from` on.
    fn word_end(&self, from: usize) -> usize {
        let rest = &self.text.as_bytes()[from..];
        from + rest.iter().position(|&byte| !is_word(byte)).unwrap_or(rest.len())
    }

    fn skip_blank(&mut self) -> Result<(), ParseError> {
        loop {
            match self.byte(0) {
                b'\n' => {
                    self.line += 1;
                    self.at += 1;
                }
                b' ' | b'\t' | b'\r' | 0x0b | 0x0c => self.at += 1,
                b'/' if self.byte(1) == b'/' => {
                    let rest = &self.text.as_bytes()[self.at..];
                    self.at += rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
                }
                b'/' if self.byte(1) == b'*' => {
                    let inside = &self.text[self.at + 2..];
                    let Some(length) = inside.find("*/") else {
                        return Err(self.error(self.at, self.at + 2, "`*/` behind it"));
                    };
                    self.line +=
                        inside.as_bytes()[..length].iter().filter(|&&byte| byte == b'\n').count() as u32;
                    self.at += length + 4;
                }
                _ => return Ok(()),
            }
        }
    }

    /// The next word; `Tok::End` again and again behind the last.
    pub fn next(&mut self) -> Result<Token<'a>, ParseError> {
        self.skip_blank()?;
        let (start, line) = (self.at, self.line);
        let tok = match self.byte(0) {
            _ if start >= self.text.len() => Tok::End,
            b'0'..=b'9' => self.number()?,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$' => {
                self.at = self.word_end(start);
                Tok::Ident(&self.text[start..self.at])
            }
            b'%' if is_word(self.byte(1)) => {
                self.at = self.word_end(start + 1);
                Tok::Ident(&self.text[start..self.at])
            }
            b'.' => match self.fraction() {
                Some(value) => value,
                None => self.dot()?,
            },
            b'"' => self.quoted()?,
            b'{' | b'}' | b'(' | b')' | b'[' | b']' | b',' | b';' | b':' | b'+' | b'-' | b'*' | b'/'
            | b'%' | b'<' | b'>' | b'=' | b'!' | b'&' | b'|' | b'^' | b'~' | b'?' | b'@' => {
                let pair = self.text.get(start..start + 2).is_some_and(|two| PAIRS.contains(&two));
                self.at += if pair { 2 } else { 1 };
                Tok::Sym(&self.text[start..self.at])
            }
            _ => return Err(self.error(start, start + 1, "PTX")),
        };
        Ok(Token { tok, start, end: self.at, line })
    }

    /// `.5`, unless it goes on as `.5x`.
    fn fraction(&mut self) -> Option<Tok<'a>> {
        let end = self.decimal_float(self.at)?;
        if is_word(self.text.as_bytes().get(end).copied().unwrap_or(0)) {
            return None;
        }
        let value = self.text[self.at..end].parse().ok()?;
        self.at = end;
        Some(Tok::Double(value))
    }

    /// `.word`, `.word::word`
    fn dot(&mut self) -> Result<Tok<'a>, ParseError> {
        let start = self.at + 1;
        let mut end = self.word_end(start);
        while end > start && self.text[end..].starts_with("::") && self.word_end(end + 2) > end + 2 {
            end = self.word_end(end + 2);
        }
        if end == start {
            return Err(self.error(self.at, start, "a word behind the dot"));
        }
        self.at = end;
        Ok(Tok::Dot(&self.text[start..end]))
    }

    fn quoted(&mut self) -> Result<Tok<'a>, ParseError> {
        let start = self.at + 1;
        let bytes = self.text.as_bytes();
        let mut end = start;
        loop {
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\n') | None => {
                    return Err(self.error(self.at, end, "`\"` before the end of the line"));
                }
                // Only an escaped quote matters here; an escaped line end does not hide the line end.
                Some(b'\\') if bytes.get(end + 1).is_some_and(|&byte| byte != b'\n') => end += 2,
                Some(_) => end += 1,
            }
        }
        self.at = end + 1;
        Ok(Tok::Text(&self.text[start..end]))
    }

    fn number(&mut self) -> Result<Tok<'a>, ParseError> {
        let start = self.at;
        let end = self.word_end(start);
        let word = &self.text[start..end];
        let bad = |expected: &str| Err(self.error(start, end, expected));
        let bytes = word.as_bytes();
        let second = bytes.get(1).map(u8::to_ascii_lowercase);
        let (digits, radix) = match (bytes[0], second) {
            (b'0', Some(b'f')) => {
                let bits = if bytes.len() == 10 { hexadecimal(&word[2..]) } else { None };
                let Some(bits) = bits else { return bad("8 hexadecimal digits behind `0f`") };
                self.at = end;
                // Eight digits: 32 bits.
                return Ok(Tok::Single(bits as u32));
            }
            (b'0', Some(b'd')) => {
                let bits = if bytes.len() == 18 { hexadecimal(&word[2..]) } else { None };
                let Some(bits) = bits else { return bad("16 hexadecimal digits behind `0d`") };
                self.at = end;
                return Ok(Tok::Double(f64::from_bits(bits)));
            }
            (b'0', Some(b'x')) => (&word[2..], 16),
            (b'0', Some(b'b')) => (&word[2..], 2),
            _ => {
                if let Some(end) = self.decimal_float(start) {
                    let Ok(value) = self.text[start..end].parse() else {
                        return Err(self.error(start, end, "a floating-point number"));
                    };
                    if is_word(self.text.as_bytes().get(end).copied().unwrap_or(0)) {
                        return Err(self.error(start, self.word_end(end), "a floating-point number"));
                    }
                    self.at = end;
                    return Ok(Tok::Double(value));
                }
                if bytes[0] == b'0' { (word, 8) } else { (word, 10) }
            }
        };
        let (digits, suffix) = match digits.strip_suffix('U') {
            Some(digits) => (digits, true),
            None => (digits, false),
        };
        match u64::from_str_radix(digits, radix) {
            Ok(bits) => {
                self.at = end;
                Ok(Tok::Int { bits, unsigned: suffix || bits > i64::MAX as u64 })
            }
            Err(_) => bad("an integer of at most 64 bits"),
        }
    }

    /// Where the decimal floating-point number at `start` ends; `None` where an integer stands there.
    fn decimal_float(&self, start: usize) -> Option<usize> {
        let bytes = self.text.as_bytes();
        let digits = |from: usize| {
            from + bytes[from..].iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(bytes.len() - from)
        };
        let mut end = digits(start);
        let mut float = false;
        // `1.` counts, `1.x` does not: a modifier or a selector is not part of a number.
        if bytes.get(end) == Some(&b'.') {
            let fraction = digits(end + 1);
            let exponent = matches!(bytes.get(fraction), Some(b'e' | b'E'));
            if fraction > end + 1 || exponent || !bytes.get(fraction).is_some_and(|&byte| is_word(byte)) {
                (end, float) = (fraction, true);
            }
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let exponent = end + 1 + sign;
            if bytes.get(exponent).is_some_and(u8::is_ascii_digit) {
                (end, float) = (digits(exponent), true);
            }
        }
        float.then_some(end)
    }
}

fn hexadecimal(digits: &str) -> Option<u64> {
    // `from_str_radix` alone would take a sign.
    if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        u64::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<Tok<'_>> {
        let mut lexer = Lexer::new(text);
        let mut words = Vec::new();
        loop {
            match lexer.next().unwrap().tok {
                Tok::End => return words,
                tok => words.push(tok),
            }
        }
    }

    fn int(bits: u64) -> Tok<'static> {
        Tok::Int { bits, unsigned: bits > i64::MAX as u64 }
    }

    #[test]
    fn integers_of_every_radix() {
        assert_eq!(words("0 7 017 0x1F 0XfF 0b101 42"), [0, 7, 15, 31, 255, 5, 42].map(int));
        assert_eq!(words("5U 0x10U"), [5, 16].map(|bits| Tok::Int { bits, unsigned: true }));
        assert_eq!(words("18446744073709551615"), [int(u64::MAX)]);
        for bad in ["08", "0x", "0b2", "12ab", "18446744073709551616", "0x10000000000000000", "5UU"] {
            assert_eq!(Lexer::new(bad).next().unwrap_err().found, format!("`{bad}`"));
        }
    }

    #[test]
    fn floats() {
        assert_eq!(words("0f3F800000 0FBF800000"), [Tok::Single(0x3f80_0000), Tok::Single(0xbf80_0000)]);
        assert_eq!(words("0d3FF0000000000000"), [Tok::Double(1.0)]);
        assert_eq!(words(".5 .25e1"), [0.5, 2.5].map(Tok::Double));
        assert_eq!(words(".2d .5x"), [Tok::Dot("2d"), Tok::Dot("5x")]);
        assert_eq!(words("1.5 1e3 2.5E-2 0. 00.25"), [1.5, 1000.0, 0.025, 0.0, 0.25].map(Tok::Double));
        for bad in ["0f3F80000", "0f3F8000000", "0d3FF", "0f+F800000", "1.5x", "1e"] {
            assert!(Lexer::new(bad).next().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_modifiers_and_selectors() {
        use Tok::{Dot, Ident};
        assert_eq!(
            words("ld.shared::cta.v4 %tid.x $L_1 _ a$b %$x"),
            [
                Ident("ld"),
                Dot("shared::cta"),
                Dot("v4"),
                Ident("%tid"),
                Dot("x"),
                Ident("$L_1"),
                Ident("_"),
                Ident("a$b"),
                Ident("%$x")
            ]
        );
        assert_eq!(
            words(".2d.mbarrier::complete_tx::bytes.m16n8k16"),
            [Dot("2d"), Dot("mbarrier::complete_tx::bytes"), Dot("m16n8k16")]
        );
        assert!(Lexer::new(". x").next().is_err());
    }

    #[test]
    fn comments_and_lines() {
        let mut lexer = Lexer::new("a // b\n/* c\n d */ e\n\"x\\\"y\" %");
        let mut seen = Vec::new();
        loop {
            let token = lexer.next().unwrap();
            if token.tok == Tok::End {
                break;
            }
            seen.push((token.tok, token.line));
        }
        assert_eq!(
            seen,
            [(Tok::Ident("a"), 1), (Tok::Ident("e"), 3), (Tok::Text("x\\\"y"), 4), (Tok::Sym("%"), 4)]
        );
        assert_eq!(Lexer::new("\n /* x").next().unwrap_err().line, 2);
        assert!(Lexer::new("\"x\n\"").next().is_err());
    }

    #[test]
    fn operators() {
        assert_eq!(words("a<<1>>2<=>=").len(), 7);
        assert_eq!(words("%p<9>;")[1..], [Tok::Sym("<"), int(9), Tok::Sym(">"), Tok::Sym(";")]);
        assert!(Lexer::new("#").next().is_err());
        assert!(Lexer::new("\u{e9}").next().is_err());
        assert!(Lexer::new("\0").next().is_err());
    }
}
