//! Declarations of variables and parameters.

use super::ast::{Space, Ty, Variable};
use super::error::ParseError;
use super::lexer::Tok;
use super::parser::{Linking, Parser};
use super::scope::Scopes;

/// Dimensions of an array.
const MAX_DIMENSIONS: usize = 16;

/// What stands before the names of a declaration.
struct Head {
    space: Space,
    align: u32,
    ty: Ty,
    /// 1, or 2, 4, 8 of `.v2`, `.v4`, `.v8`
    vector: u32,
}

/// A declared variable and where its name stands.
type Placed = (Variable, (usize, usize));

impl<'a> Parser<'a> {
    /// `.global .align 4 .b8 a[4][2] = {..}, b;` with the semicolon.
    pub(super) fn variables(
        &mut self,
        linking: Linking,
        scopes: Option<&Scopes>,
    ) -> Result<Vec<Placed>, ParseError> {
        let head = self.head()?;
        let mut variables = Vec::new();
        loop {
            variables.push(self.declarator(&head, linking, scopes)?);
            if !self.eat(",")? {
                self.expect(";")?;
                return Ok(variables);
            }
        }
    }

    /// `.param .align 8 .b8 a[16]` in a list of parameters.
    pub(super) fn parameter(&mut self) -> Result<Placed, ParseError> {
        let head = self.head()?;
        self.declarator(&head, Linking::default(), None)
    }

    fn head(&mut self) -> Result<Head, ParseError> {
        let space = match self.tok.tok {
            Tok::Dot("global") => Space::Global,
            Tok::Dot("const") => Space::Const,
            Tok::Dot("shared") => Space::Shared,
            Tok::Dot("local") => Space::Local,
            Tok::Dot("param") => Space::Param,
            _ => return Err(self.error("a state space")),
        };
        self.advance()?;
        let (mut align, mut ty, mut vector) = (None, None, 1);
        // Behind `.ptr` stands what the pointer points to.
        let mut pointer = false;
        while let Tok::Dot(word) = self.tok.tok {
            match word {
                "align" => {
                    self.advance()?;
                    let at = (self.tok.start, self.tok.end);
                    let bytes = self.number("an alignment")?;
                    if !bytes.is_power_of_two() {
                        return Err(self.error_at(at, "a power of two"));
                    }
                    if !pointer {
                        align = Some(bytes);
                    }
                    continue;
                }
                "attribute" => {
                    self.attribute()?;
                    continue;
                }
                "ptr" if space == Space::Param && ty.is_some() => pointer = true,
                "global" | "const" | "shared" | "local" if pointer => {}
                "v2" if ty.is_none() => vector = 2,
                "v4" if ty.is_none() => vector = 4,
                "v8" if ty.is_none() => vector = 8,
                _ => match Ty::parse(word) {
                    Some(Ty::Pred) | None => return Err(self.error("a type of variables")),
                    Some(parsed) if ty.is_none() => ty = Some(parsed),
                    Some(_) => return Err(self.error("a name behind the type")),
                },
            }
            self.advance()?;
        }
        let Some(ty) = ty else { return Err(self.error("a type")) };
        Ok(Head { space, align: align.unwrap_or(ty.bytes() * vector), ty, vector })
    }

    fn declarator(
        &mut self,
        head: &Head,
        linking: Linking,
        scopes: Option<&Scopes>,
    ) -> Result<Placed, ParseError> {
        let (start, end) = (self.tok.start, self.tok.end);
        let name = self.ident("a name")?.to_owned();
        let (dimensions, open) = self.dimensions()?;
        let too_large = |parser: &Self| parser.error_since(start, "a size that fits 64 bits");
        // Bytes of an element of the first dimension, of the second, .., of the type.
        let mut strides = vec![u64::from(head.ty.bytes())];
        if head.vector > 1 {
            strides.push(strides[0] * u64::from(head.vector));
        }
        for &size in dimensions.iter().skip(usize::from(open)).rev() {
            let bytes = strides[strides.len() - 1].checked_mul(size);
            strides.push(bytes.ok_or_else(|| too_large(self))?);
        }
        strides.reverse();
        let mut bytes = if open { None } else { Some(strides[0]) };
        let mut init = Vec::new();
        if self.is("=") {
            if !matches!(head.space, Space::Global | Space::Const) || linking.external {
                return Err(self.error("no initialiser here"));
            }
            self.advance()?;
            let written = self.initialiser(head.ty, &strides, open, scopes)?;
            init = written.0;
            if open {
                let rows = written.1.div_ceil(strides[0]);
                let size = rows.checked_mul(strides[0]).ok_or_else(|| too_large(self))?;
                bytes = Some(size).filter(|&size| size > 0);
            }
        }
        if bytes.is_none() && !linking.external && head.space != Space::Param {
            return Err(self.error_since(start, "a size, an initialiser or `.extern`"));
        }
        let variable = Variable {
            space: head.space,
            align: head.align,
            ty: head.ty,
            name,
            bytes,
            external: linking.external,
            init,
        };
        Ok((variable, (start, end)))
    }

    /// `[4][2]`; whether the first is `[]` or `[0]`, which counts as one of the dimensions.
    fn dimensions(&mut self) -> Result<(Vec<u64>, bool), ParseError> {
        let mut dimensions = Vec::new();
        let mut open = false;
        while self.is("[") {
            if dimensions.len() == MAX_DIMENSIONS {
                return Err(self.error(format!("at most {MAX_DIMENSIONS} dimensions")));
            }
            self.advance()?;
            let size = match self.tok.tok {
                Tok::Sym("]") if dimensions.is_empty() => 0,
                Tok::Int { bits, .. } if bits > 0 || dimensions.is_empty() => {
                    self.advance()?;
                    bits
                }
                Tok::Ident("WARP_SZ") => {
                    self.advance()?;
                    32
                }
                _ => return Err(self.error("a number of elements")),
            };
            open |= size == 0;
            dimensions.push(size);
            self.expect("]")?;
        }
        Ok((dimensions, open))
    }
}
