//! Modules: directives at the outermost level, and the heads of kernels and functions.

use super::ast::{Function, Inlining, Loc, Module, Variable};
use super::error::ParseError;
use super::lexer::{Lexer, Tok, Token};
use super::scope::{Names, Scopes};
use std::collections::{HashMap, HashSet};

/// Calls inside one another that are followed.
const MAX_INLINED: usize = 31;

/// Parses a module. One pass; the time is that of reading the text, and what the tree takes is in proportion to it.
pub fn parse(text: &str) -> Result<Module, ParseError> {
    if u32::try_from(text.len()).is_err() {
        return Err(ParseError::new(text, 0, 0, "less than 4 GiB of text"));
    }
    let mut parser = Parser::new(text)?;
    parser.module()?;
    Ok(parser.module)
}

/// The state between two words.
pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The word to be looked at.
    pub tok: Token<'a>,
    /// What has been read.
    pub module: Module,
    /// Names at module scope.
    pub globals: Names,
    /// Zero bytes that initialisers have between their elements without writing them.
    pub padding: u64,
    /// Names of functions with a body, and of variables that are more than `.extern`.
    defined: HashSet<String>,
    /// Where the code of a place (file, line, column) was last inlined at.
    callers: HashMap<[u32; 3], Vec<Loc>>,
}

/// `.extern`, `.visible` and the like before a declaration.
#[derive(Clone, Copy, Default)]
pub(super) struct Linking {
    /// `.extern`
    pub external: bool,
}

impl<'a> Parser<'a> {
    /// In front of the first word.
    pub fn new(text: &'a str) -> Result<Parser<'a>, ParseError> {
        let mut lexer = Lexer::new(text);
        let tok = lexer.next()?;
        Ok(Parser {
            lexer,
            tok,
            // PTX without `.address_size` has 32-bit addresses.
            module: Module { address_size: 32, ..Module::default() },
            globals: Names::default(),
            padding: 0,
            defined: HashSet::new(),
            callers: HashMap::new(),
        })
    }

    /// Goes on to the next word.
    pub fn advance(&mut self) -> Result<(), ParseError> {
        self.tok = self.lexer.next()?;
        Ok(())
    }

    /// An error about the current word.
    pub fn error(&self, expected: impl Into<String>) -> ParseError {
        ParseError::new(self.lexer.text(), self.tok.start, self.tok.end, expected)
    }

    /// An error about everything from byte `start` to the current word.
    pub fn error_since(&self, start: usize, expected: impl Into<String>) -> ParseError {
        let text = self.lexer.text();
        let end = text[start..self.tok.start].trim_end().len() + start;
        if end == start {
            return self.error(expected);
        }
        ParseError::new(text, start, end, expected)
    }

    /// An error about the bytes from one position to another.
    pub fn error_at(&self, (start, end): (usize, usize), expected: impl Into<String>) -> ParseError {
        ParseError::new(self.lexer.text(), start, end, expected)
    }

    /// Whether the current word is this punctuation.
    pub fn is(&self, sym: &str) -> bool {
        self.tok.tok == Tok::Sym(sym)
    }

    /// Skips this punctuation if it is there.
    pub fn eat(&mut self, sym: &str) -> Result<bool, ParseError> {
        let there = self.is(sym);
        if there {
            self.advance()?;
        }
        Ok(there)
    }

    /// Skips this punctuation, which has to be there.
    pub fn expect(&mut self, sym: &str) -> Result<(), ParseError> {
        if self.eat(sym)? { Ok(()) } else { Err(self.error(format!("`{sym}`"))) }
    }

    /// An identifier.
    pub fn ident(&mut self, what: &str) -> Result<&'a str, ParseError> {
        let Tok::Ident(word) = self.tok.tok else { return Err(self.error(what)) };
        self.advance()?;
        Ok(word)
    }

    /// A plain integer in 32 bits.
    pub fn number(&mut self, what: &str) -> Result<u32, ParseError> {
        match self.tok.tok {
            Tok::Int { bits, .. } if u32::try_from(bits).is_ok() => {
                self.advance()?;
                Ok(bits as u32)
            }
            _ => Err(self.error(what)),
        }
    }

    fn module(&mut self) -> Result<(), ParseError> {
        self.header()?;
        while self.tok.tok != Tok::End {
            let linking = self.linking()?;
            let Tok::Dot(word) = self.tok.tok else { return Err(self.error("a directive")) };
            match word {
                "entry" | "func" => self.function(word == "entry")?,
                "global" | "const" | "shared" => self.module_variables(linking)?,
                "file" => self.file()?,
                "section" => self.section()?,
                "pragma" => self.pragma()?,
                "alias" => self.alias()?,
                "loc" => {
                    self.loc()?;
                }
                _ => return Err(self.error("a directive of a module")),
            }
        }
        let defined = &self.defined;
        self.module.functions.retain(|function| !function.declaration || !defined.contains(&function.name));
        self.module.vars.retain(|variable| !variable.external || !defined.contains(&variable.name));
        Ok(())
    }

    /// `.version`, `.target`, `.address_size`
    fn header(&mut self) -> Result<(), ParseError> {
        if self.tok.tok != Tok::Dot("version") {
            return Err(self.error("`.version`"));
        }
        self.advance()?;
        let text = &self.lexer.text()[self.tok.start..self.tok.end];
        let version =
            text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        self.module.version = version.ok_or_else(|| self.error("a version such as `9.0`"))?;
        self.advance()?;
        if self.tok.tok != Tok::Dot("target") {
            return Err(self.error("`.target`"));
        }
        self.advance()?;
        self.module.target = self.ident("an architecture such as `sm_80`")?.to_owned();
        while self.eat(",")? {
            self.ident("an option of `.target`")?;
        }
        if self.tok.tok == Tok::Dot("address_size") {
            self.advance()?;
            self.module.address_size = self.number("32 or 64")?;
        }
        Ok(())
    }

    /// `.visible` and the like, all that are there.
    fn linking(&mut self) -> Result<Linking, ParseError> {
        let mut linking = Linking::default();
        while let Tok::Dot(word @ ("visible" | "extern" | "weak" | "common")) = self.tok.tok {
            linking.external |= word == "extern";
            self.advance()?;
        }
        Ok(linking)
    }

    fn module_variables(&mut self, linking: Linking) -> Result<(), ParseError> {
        for (variable, at) in self.variables(linking, None)? {
            self.define(&variable.name, !variable.external, at)?;
            self.module.vars.push(variable);
        }
        Ok(())
    }

    /// Enters a name of module scope. It may be declared again and again, but defined once.
    fn define(&mut self, name: &str, definition: bool, at: (usize, usize)) -> Result<(), ParseError> {
        self.globals.add(name);
        if definition && !self.defined.insert(name.to_owned()) {
            return Err(self.error_at(at, "a name that the module does not define twice"));
        }
        Ok(())
    }

    /// `.file 1 "path", timestamp, size`
    fn file(&mut self) -> Result<(), ParseError> {
        self.advance()?;
        let index = self.number("the index of a file")?;
        let Tok::Text(path) = self.tok.tok else { return Err(self.error("a path in quotes")) };
        self.advance()?;
        while self.eat(",")? {
            if !matches!(self.tok.tok, Tok::Int { .. }) {
                return Err(self.error("a time stamp or a size"));
            }
            self.advance()?;
        }
        let path = path.replace("\\\"", "\"").replace("\\\\", "\\");
        self.module.files.push((index, path));
        Ok(())
    }

    /// `.loc file line column, function_name label+offset, inlined_at file line column`: answers file and line. Where the
    /// code was inlined at goes into the module's list; the place of that call was itself told by a `.loc` before.
    pub(super) fn loc(&mut self) -> Result<(u32, u32), ParseError> {
        let ptx_line = self.tok.line;
        self.advance()?;
        let place = |parser: &mut Self| -> Result<[u32; 3], ParseError> {
            let file = parser.number("the index of a file")?;
            let line = parser.number("a line")?;
            let column = parser.number("a column")?;
            Ok([file, line, column])
        };
        let here = place(self)?;
        let mut callers = Vec::new();
        while self.eat(",")? {
            match self.tok.tok {
                Tok::Ident("function_name") => {
                    self.advance()?;
                    self.ident("a label")?;
                    if self.is("+") || self.is("-") {
                        self.integer()?;
                    }
                }
                Tok::Ident("inlined_at") => {
                    self.advance()?;
                    let call = place(self)?;
                    callers = vec![Loc { file: call[0], line: call[1] }];
                    callers.extend(self.callers.get(&call).into_iter().flatten().take(MAX_INLINED));
                }
                _ => return Err(self.error("`function_name` or `inlined_at`")),
            }
        }
        // Line 0 is the compiler's "no line of the source": the place before it goes on.
        if here[1] != 0 {
            let known = self.module.inlining.last().map_or(&[][..], |i| &i.callers);
            if known != callers {
                self.module.inlining.push(Inlining { ptx_line, callers: callers.clone() });
            }
            self.callers.insert(here, callers);
        }
        Ok((here[0], here[1]))
    }

    /// `.pragma "a", "b";`
    pub(super) fn pragma(&mut self) -> Result<(), ParseError> {
        loop {
            self.advance()?;
            if !matches!(self.tok.tok, Tok::Text(_)) {
                return Err(self.error("a pragma in quotes"));
            }
            self.advance()?;
            if !self.is(",") {
                return self.expect(";");
            }
        }
    }

    /// `.section .debug_str { .. }`: nothing in there is for the machine.
    fn section(&mut self) -> Result<(), ParseError> {
        self.advance()?;
        if !matches!(self.tok.tok, Tok::Dot(_) | Tok::Ident(_)) {
            return Err(self.error("the name of a section"));
        }
        self.advance()?;
        self.expect("{")?;
        while !self.is("}") {
            if self.is("{") || self.tok.tok == Tok::End {
                return Err(self.error("`}` at the end of the section"));
            }
            self.advance()?;
        }
        self.advance()
    }

    /// `.alias name, of;`
    fn alias(&mut self) -> Result<(), ParseError> {
        self.advance()?;
        let name = self.ident("a function")?.to_owned();
        self.expect(",")?;
        let of = self.ident("a function")?.to_owned();
        self.expect(";")?;
        self.module.aliases.push((name, of));
        Ok(())
    }

    /// `.attribute(..)`, up to the closing parenthesis.
    pub(super) fn attribute(&mut self) -> Result<(), ParseError> {
        self.advance()?;
        self.expect("(")?;
        let mut depth = 1;
        while depth > 0 {
            match self.tok.tok {
                Tok::Sym("(") => depth += 1,
                Tok::Sym(")") => depth -= 1,
                Tok::End | Tok::Sym(";" | "{" | "}") => return Err(self.error("`)`")),
                _ => {}
            }
            self.advance()?;
        }
        Ok(())
    }

    /// `.entry name (..) .. { .. }`, `.func (..) name (..) .. ;`
    fn function(&mut self, kernel: bool) -> Result<(), ParseError> {
        let mut function = Function { kernel, ptx_line: self.tok.line, ..Function::default() };
        let mut scopes = Scopes::new();
        self.advance()?;
        while !kernel && self.tok.tok == Tok::Dot("attribute") {
            self.attribute()?;
        }
        self.tuning(&mut function)?;
        if !kernel && self.is("(") {
            function.returns = self.parameters(Some(&mut scopes), false)?;
        }
        let at = (self.tok.start, self.tok.end);
        function.name = self.ident("the name of a function")?.to_owned();
        if self.is("(") {
            function.params = self.parameters(Some(&mut scopes), kernel)?;
        }
        self.tuning(&mut function)?;
        function.declaration = self.eat(";")?;
        self.define(&function.name, !function.declaration, at)?;
        if !function.declaration {
            self.body(&mut function, &mut scopes)?;
        }
        self.module.functions.push(function);
        Ok(())
    }

    /// `(.param .b32 a, .param .b64 b)`; declared in `scopes` unless those are of a prototype. A kernel has
    /// no parameter without a size.
    pub(super) fn parameters(
        &mut self,
        mut scopes: Option<&mut Scopes>,
        sized: bool,
    ) -> Result<Vec<Variable>, ParseError> {
        self.expect("(")?;
        let mut parameters = Vec::new();
        while !self.is(")") {
            if !parameters.is_empty() {
                self.expect(",")?;
            }
            if self.tok.tok != Tok::Dot("param") {
                return Err(self.error("`.param` (parameters in registers are not supported)"));
            }
            let (mut variable, at) = self.parameter()?;
            if sized && variable.bytes.is_none() {
                return Err(self.error_at(at, "a parameter with a size"));
            }
            if let Some(scopes) = scopes.as_deref_mut() {
                variable.name = self.declare(scopes, &variable.name, None, at)?;
            }
            parameters.push(variable);
        }
        self.advance()?;
        Ok(parameters)
    }

    /// A declaration in a function: what the tree calls it.
    pub(super) fn declare(
        &self,
        scopes: &mut Scopes,
        name: &str,
        count: Option<u32>,
        at: (usize, usize),
    ) -> Result<String, ParseError> {
        scopes
            .declare(&self.globals, name, count)
            .ok_or_else(|| self.error_at(at, "a name that the scope does not declare twice"))
    }

    /// `.maxntid` and the like, all that are there.
    pub(super) fn tuning(&mut self, function: &mut Function) -> Result<(), ParseError> {
        while let Tok::Dot(word) = self.tok.tok {
            match word {
                "maxntid" | "reqntid" | "reqnctapercluster" => {
                    self.advance()?;
                    let mut sizes = [1; 3];
                    sizes[0] = self.number("a number of threads or blocks")?;
                    for size in &mut sizes[1..] {
                        if !self.eat(",")? {
                            break;
                        }
                        *size = self.number("a number of threads or blocks")?;
                    }
                    *match word {
                        "maxntid" => &mut function.maxntid,
                        "reqntid" => &mut function.reqntid,
                        _ => &mut function.cluster,
                    } = Some(sizes);
                }
                "minnctapersm"
                | "maxnreg"
                | "maxclusterrank"
                | "maxnctapersm"
                | "abi_preserve"
                | "abi_preserve_control" => {
                    self.advance()?;
                    let number = self.number("a number")?;
                    match word {
                        // An old spelling of the same.
                        "minnctapersm" | "maxnctapersm" => function.minnctapersm = Some(number),
                        "maxnreg" => function.maxnreg = Some(number),
                        _ => {}
                    }
                }
                "explicitcluster" => {
                    self.advance()?;
                    function.cluster.get_or_insert([0; 3]);
                }
                "noreturn" | "blocksareclusters" => self.advance()?,
                "pragma" => self.pragma()?,
                _ => return Err(self.error("a directive of a function, its body or `;`")),
            }
        }
        Ok(())
    }
}
