//! Operands of instructions.

use super::ast::Operand;
use super::constant::Constant;
use super::error::ParseError;
use super::lexer::Tok;
use super::parser::Parser;
use super::scope::{Found, Scopes};

impl<'a> Parser<'a> {
    /// The current word as a name, `x` and `%tid.x` alike, called what the scopes call it.
    pub(super) fn name(&mut self, scopes: &Scopes) -> Result<String, ParseError> {
        let token = self.tok;
        let Tok::Ident(word) = token.tok else { return Err(self.error("a name")) };
        let mut name = match scopes.find(word) {
            Found::AsWritten => word.to_owned(),
            Found::Renamed(unique) => unique,
            Found::Ended => return Err(self.error("a name declared in this scope or around it")),
        };
        self.advance()?;
        if let Tok::Dot(selector) = self.tok.tok {
            name.push('.');
            name.push_str(selector);
            self.advance()?;
        }
        Ok(name)
    }

    /// An operand; parentheses are a constant expression.
    pub(super) fn operand(&mut self, scopes: &Scopes) -> Result<Operand, ParseError> {
        let first = self.simple_operand(scopes)?;
        if matches!(first, Operand::Name(_) | Operand::Sink | Operand::Vector(_)) && self.eat("|")? {
            let second = self.simple_operand(scopes)?;
            if !matches!(second, Operand::Name(_) | Operand::Sink) {
                return Err(self.error("a register before it, behind `|`"));
            }
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn simple_operand(&mut self, scopes: &Scopes) -> Result<Operand, ParseError> {
        match self.tok.tok {
            Tok::Sym("!") => {
                self.advance()?;
                if self.at_constant() {
                    return Ok(value(self.constant_behind_not()?));
                }
                Ok(Operand::Not(Box::new(Operand::Name(self.name(scopes)?))))
            }
            Tok::Sym("[") => self.address(scopes),
            Tok::Sym("{") => self.vector(scopes),
            _ => self.scalar(scopes),
        }
    }

    /// What may stand in a vector too.
    fn scalar(&mut self, scopes: &Scopes) -> Result<Operand, ParseError> {
        if self.at_constant() {
            return Ok(value(self.constant()?));
        }
        if self.tok.tok == Tok::Ident("_") {
            self.advance()?;
            return Ok(Operand::Sink);
        }
        if !matches!(self.tok.tok, Tok::Ident(_)) {
            return Err(self.error("an operand"));
        }
        let name = self.name(scopes)?;
        if self.is("+") {
            return Ok(Operand::SymbolOffset { symbol: name, offset: self.integer()? });
        }
        if self.is("[") {
            return Err(self.error("`+` and bytes (subscripts are not supported)"));
        }
        Ok(Operand::Name(name))
    }

    /// `{a, b}`
    fn vector(&mut self, scopes: &Scopes) -> Result<Operand, ParseError> {
        Ok(Operand::Vector(self.separated("{", "}", |parser| parser.scalar(scopes))?))
    }

    /// `[a]`, `[a+4]`, `[16]`, `[map, {a, b}]`
    fn address(&mut self, scopes: &Scopes) -> Result<Operand, ParseError> {
        self.expect("[")?;
        let operand = if self.at_constant() {
            Operand::Address { base: None, offset: self.integer()? }
        } else {
            let base = self.name(scopes)?;
            let offset = if matches!(self.tok.tok, Tok::Sym("+" | "-")) { self.integer()? } else { 0 };
            if self.eat(",")? {
                let coordinates = self.separated("{", "}", |parser| parser.scalar(scopes))?;
                Operand::TensorAddress { base, offset, coordinates }
            } else {
                Operand::Address { base: Some(base), offset }
            }
        };
        self.expect("]")?;
        Ok(operand)
    }

    /// `(a, b)` of a call; may be empty.
    pub(super) fn call_list(&mut self, scopes: &Scopes) -> Result<Operand, ParseError> {
        self.expect("(")?;
        if self.eat(")")? {
            return Ok(Operand::List(Vec::new()));
        }
        let mut items = vec![self.scalar(scopes)?];
        while self.eat(",")? {
            items.push(self.scalar(scopes)?);
        }
        self.expect(")")?;
        Ok(Operand::List(items))
    }

    /// One or more of `item` between two words, with commas.
    pub(super) fn separated<T>(
        &mut self,
        open: &str,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        self.expect(open)?;
        let mut items = vec![item(self)?];
        while self.eat(",")? {
            items.push(item(self)?);
        }
        self.expect(close)?;
        Ok(items)
    }
}

fn value(constant: Constant) -> Operand {
    match constant {
        Constant::Int { bits, .. } => Operand::Int(bits as i64),
        Constant::Single(bits) => Operand::F32(bits),
        Constant::Double(value) => Operand::F64(value.to_bits()),
    }
}
