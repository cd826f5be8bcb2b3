//! Initialisers of variables.

use super::ast::{Init, Ty};
use super::constant::Constant;
use super::error::ParseError;
use super::lexer::Tok;
use super::parser::Parser;
use super::scope::{Found, Scopes};

/// Zero bytes inside initialisers that a module may have without writing them: what the tree takes stays in proportion
/// to the text.
const MAX_PADDING: u64 = 1 << 24;

const UNFINISHED: &str = "the other bytes of the address before it";

/// An initialiser so far.
#[derive(Default)]
struct Pieces {
    pieces: Vec<Init>,
    /// Bytes that `pieces` has.
    written: u64,
    /// Where the next element goes.
    at: u64,
    /// `0xFF(symbol)` and following, bytes of an address one by one.
    run: Option<Run>,
}

/// Bytes of an address that have come so far.
struct Run {
    symbol: String,
    addend: i64,
    bytes: u32,
}

impl<'a> Parser<'a> {
    /// What follows `=`. `strides`: bytes of the whole (of a row, where `open`), of an element of it, .., of the type.
    /// Answers the pieces and how many bytes they reach.
    pub(super) fn initialiser(
        &mut self,
        ty: Ty,
        strides: &[u64],
        open: bool,
        scopes: Option<&Scopes>,
    ) -> Result<(Vec<Init>, u64), ParseError> {
        let mut pieces = Pieces::default();
        let start = self.tok.start;
        if open {
            self.braces(ty, u64::MAX, strides, scopes, &mut pieces)?;
        } else if strides.len() > 1 {
            self.braces(ty, strides[0], &strides[1..], scopes, &mut pieces)?;
        } else {
            self.element(ty, scopes, &mut pieces)?;
        }
        pieces.end_run().ok_or_else(|| self.unfinished(start))?;
        Ok((pieces.pieces, pieces.at))
    }

    /// `{..}` that fills at most `bytes`. `strides`: bytes of an element, of an element of that, .., of the type.
    fn braces(
        &mut self,
        ty: Ty,
        bytes: u64,
        strides: &[u64],
        scopes: Option<&Scopes>,
        pieces: &mut Pieces,
    ) -> Result<(), ParseError> {
        self.expect("{")?;
        let begin = pieces.at;
        while !self.is("}") {
            if pieces.at > begin {
                self.expect(",")?;
            }
            let (size, used) = (strides[0], pieces.at - begin);
            if bytes - used < size {
                return Err(self.error("`}`: there are more values than the array has elements"));
            }
            if strides.len() > 1 {
                self.braces(ty, size, &strides[1..], scopes, pieces)?;
                pieces.at = begin + used + size;
            } else {
                self.element(ty, scopes, pieces)?;
            }
        }
        self.advance()
    }

    /// One number or address.
    fn element(&mut self, ty: Ty, scopes: Option<&Scopes>, pieces: &mut Pieces) -> Result<(), ParseError> {
        let start = self.tok.start;
        if matches!(self.tok.tok, Tok::Ident(_)) && !self.at_constant() {
            let (symbol, addend) = self.symbol(scopes)?;
            let bytes = ty.bytes();
            if !matches!(ty, Ty::B32 | Ty::U32 | Ty::S32 | Ty::B64 | Ty::U64 | Ty::S64) {
                return Err(self.error_since(start, "a number: an address takes 32 or 64 bits"));
            }
            self.pad(pieces, start)?;
            return pieces.address(symbol, addend, bytes).ok_or_else(|| self.unfinished(start));
        }
        let constant = self.constant()?;
        if self.is("(") {
            return self.masked(ty, constant, start, scopes, pieces);
        }
        let Some((bytes, length)) = encode(ty, constant) else {
            return Err(self.error_since(start, format!("a number of type {ty:?}")));
        };
        self.pad(pieces, start)?;
        pieces.bytes(&bytes[..length]).ok_or_else(|| self.unfinished(start))
    }

    fn unfinished(&self, start: usize) -> ParseError {
        self.error_since(start, UNFINISHED)
    }

    /// `name`, `generic(name)`, `name+4`
    fn symbol(&mut self, scopes: Option<&Scopes>) -> Result<(String, i64), ParseError> {
        let mut word = self.tok;
        self.ident("a variable or function")?;
        let mut addend = self.addend()?;
        if word.tok == Tok::Ident("generic") && self.eat("(")? {
            word = self.tok;
            self.ident("a variable or function")?;
            self.expect(")")?;
            addend = self.addend()?;
        }
        let Tok::Ident(name) = word.tok else { return Err(self.error("a variable or function")) };
        let name = match scopes.map(|scopes| scopes.find(name)) {
            None | Some(Found::AsWritten) => name.to_owned(),
            Some(Found::Renamed(unique)) => unique,
            Some(Found::Ended) => {
                return Err(
                    self.error_at((word.start, word.end), "a name declared in this scope or around it")
                );
            }
        };
        Ok((name, addend))
    }

    fn addend(&mut self) -> Result<i64, ParseError> {
        if self.is("+") { self.integer() } else { Ok(0) }
    }

    /// `(symbol)` behind a mask: one byte of the symbol's address. The bytes have to come in order and make an address.
    fn masked(
        &mut self,
        ty: Ty,
        mask: Constant,
        start: usize,
        scopes: Option<&Scopes>,
        pieces: &mut Pieces,
    ) -> Result<(), ParseError> {
        let byte = match mask {
            Constant::Int { bits, .. } => (0..8).find(|byte| bits == 0xff << (8 * byte)),
            Constant::Single(_) | Constant::Double(_) => None,
        };
        let Some(byte) = byte.filter(|_| ty.bytes() == 1) else {
            return Err(self.error_since(start, "a mask of one byte, in an array of bytes"));
        };
        self.expect("(")?;
        let (symbol, addend) = self.symbol(scopes)?;
        self.expect(")")?;
        self.pad(pieces, start)?;
        pieces
            .masked(symbol, addend, byte)
            .ok_or_else(|| self.error_since(start, "the bytes of an address in order"))
    }

    /// Zeros up to where the element that stands at byte `start` of the text goes.
    fn pad(&mut self, pieces: &mut Pieces, start: usize) -> Result<(), ParseError> {
        let zeros = pieces.at - pieces.written;
        if zeros == 0 {
            return Ok(());
        }
        self.padding = self.padding.saturating_add(zeros);
        if self.padding > MAX_PADDING {
            return Err(
                self.error(format!("at most {MAX_PADDING} zero bytes left unwritten in initialisers"))
            );
        }
        pieces.end_run().ok_or_else(|| self.unfinished(start))?;
        // Bounded by `MAX_PADDING`.
        pieces.plain(&vec![0; zeros as usize]);
        pieces.written = pieces.at;
        Ok(())
    }
}

/// `None` everywhere: there is an address of which some bytes are missing.
impl Pieces {
    fn plain(&mut self, more: &[u8]) {
        match self.pieces.last_mut() {
            Some(Init::Bytes(bytes)) => bytes.extend_from_slice(more),
            _ => self.pieces.push(Init::Bytes(more.to_vec())),
        }
    }

    fn advance(&mut self, bytes: u32) {
        self.at += u64::from(bytes);
        self.written = self.at;
    }

    fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        self.end_run()?;
        self.plain(bytes);
        self.advance(bytes.len() as u32);
        Some(())
    }

    fn address(&mut self, symbol: String, addend: i64, bytes: u32) -> Option<()> {
        self.end_run()?;
        self.pieces.push(Init::Address { symbol, addend, bytes });
        self.advance(bytes);
        Some(())
    }

    /// Byte number `byte` of an address.
    fn masked(&mut self, symbol: String, addend: i64, byte: u32) -> Option<()> {
        if byte == 0 {
            self.end_run()?;
            self.run = Some(Run { symbol, addend, bytes: 1 });
        } else {
            let run = self.run.as_mut()?;
            if (&run.symbol, run.addend, run.bytes) != (&symbol, addend, byte) {
                return None;
            }
            run.bytes += 1;
        }
        self.advance(1);
        Some(())
    }

    fn end_run(&mut self) -> Option<()> {
        match self.run.take() {
            None => {}
            Some(Run { symbol, addend, bytes: bytes @ (4 | 8) }) => {
                self.pieces.push(Init::Address { symbol, addend, bytes });
            }
            Some(_) => return None,
        }
        Some(())
    }
}

/// Little-endian bytes of a value in a variable of type `ty`, and how many they are; `None` where the type does not take
/// the value. Integers lose what does not fit.
fn encode(ty: Ty, value: Constant) -> Option<([u8; 16], usize)> {
    let bits = match (ty, value) {
        (Ty::F32 | Ty::B32, Constant::Single(bits)) => u128::from(bits),
        (Ty::F32 | Ty::B32, Constant::Double(value)) => u128::from((value as f32).to_bits()),
        (Ty::F64 | Ty::B64, Constant::Single(bits)) => u128::from(f64::from(f32::from_bits(bits)).to_bits()),
        (Ty::F64 | Ty::B64, Constant::Double(value)) => u128::from(value.to_bits()),
        (Ty::F32 | Ty::F64 | Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 | Ty::Tf32, _) => return None,
        (_, Constant::Int { bits, unsigned: true }) => u128::from(bits),
        (_, Constant::Int { bits, unsigned: false }) => i128::from(bits as i64) as u128,
        (_, Constant::Single(_) | Constant::Double(_)) => return None,
    };
    Some((bits.to_le_bytes(), ty.bytes() as usize))
}
