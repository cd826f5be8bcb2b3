//! Bodies of functions: declarations, labels, instructions, nested scopes.

use super::ast::{Function, Inst, Loc, Operand, RegDecl, Stmt, Ty};
use super::error::ParseError;
use super::lexer::{Tok, Token};
use super::parser::{Linking, Parser};
use super::scope::{MAX_SCOPES, Scopes};

/// Registers that one function may declare.
const MAX_REGISTERS: u64 = 1 << 20;

/// Which operands of an instruction are labels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Labels {
    /// None.
    No,
    /// `bra L`
    All,
    /// `brx.idx %r1, L`
    Second,
    /// `call (a), %rd1, (b), L`: a name behind the callee.
    BehindCallee,
}

impl<'a> Parser<'a> {
    /// `{ .. }` of a function.
    pub(super) fn body(&mut self, function: &mut Function, scopes: &mut Scopes) -> Result<(), ParseError> {
        self.expect("{")?;
        let mut loc = Loc::default();
        let mut registers = 0;
        loop {
            match self.tok.tok {
                Tok::Sym("}") => {
                    let done = scopes.close();
                    self.advance()?;
                    if done {
                        break;
                    }
                }
                Tok::Sym("{") => {
                    if !scopes.open() {
                        return Err(self.error(format!("at most {MAX_SCOPES} scopes inside one another")));
                    }
                    self.advance()?;
                }
                Tok::Sym("@") => {
                    let line = self.tok.line;
                    self.advance()?;
                    let negated = self.eat("!")?;
                    let guard = Some((self.name(scopes)?, negated));
                    let opcode = self.tok;
                    self.ident("an instruction")?;
                    self.instruction(
                        function,
                        scopes,
                        opcode,
                        Inst { ptx_line: line, loc, guard, ..empty() },
                    )?;
                }
                Tok::Ident(_) => {
                    let first = self.tok;
                    self.advance()?;
                    if self.eat(":")? {
                        self.label(function, scopes, first)?;
                    } else {
                        let inst = Inst { ptx_line: first.line, loc, ..empty() };
                        self.instruction(function, scopes, first, inst)?;
                    }
                }
                Tok::Dot("loc") => {
                    let (file, line) = self.loc()?;
                    // Line 0 is the compiler's "no line of the source".
                    if line != 0 {
                        loc = Loc { file, line };
                    }
                }
                Tok::Dot("pragma") => self.pragma()?,
                Tok::Dot("reg") => self.registers(function, scopes, &mut registers)?,
                Tok::Dot(_) => self.local_variables(function, scopes)?,
                _ => return Err(self.error("an instruction, a directive or `}`")),
            }
        }
        scopes
            .settle_labels(&mut function.body)
            .map_err(|at| self.error_at(at, "a label declared in this scope or around it"))
    }

    fn local_variables(&mut self, function: &mut Function, scopes: &mut Scopes) -> Result<(), ParseError> {
        if !matches!(self.tok.tok, Tok::Dot("global" | "const" | "shared" | "local" | "param")) {
            return Err(self.error("a directive of a body"));
        }
        for (mut variable, at) in self.variables(Linking::default(), Some(scopes))? {
            variable.name = self.declare(scopes, &variable.name, None, at)?;
            function.vars.push(variable);
        }
        Ok(())
    }

    /// `.reg .b32 %r<9>, x;`
    fn registers(
        &mut self,
        function: &mut Function,
        scopes: &mut Scopes,
        total: &mut u64,
    ) -> Result<(), ParseError> {
        self.advance()?;
        let ty = match self.tok.tok {
            Tok::Dot("v2" | "v4" | "v8") => {
                return Err(self.error("a scalar type (vector registers are not supported)"));
            }
            Tok::Dot(word) => Ty::parse(word),
            _ => None,
        };
        let Some(ty) = ty else { return Err(self.error("the type of a register")) };
        self.advance()?;
        loop {
            let start = self.tok.start;
            let name = self.ident("the name of a register")?;
            let mut count = None;
            if self.eat("<")? {
                count = Some(self.number("a number of registers")?);
                self.expect(">")?;
                if name.ends_with(|c: char| c.is_ascii_digit()) {
                    return Err(self.error_since(start, "a prefix that does not end in a digit"));
                }
            }
            *total += u64::from(count.unwrap_or(1));
            if *total > MAX_REGISTERS {
                return Err(
                    self.error_since(start, format!("at most {MAX_REGISTERS} registers in a function"))
                );
            }
            let name = self.declare(scopes, name, count, (start, start + name.len()))?;
            function.regs.push(RegDecl { name, count, ty });
            if !self.eat(",")? {
                return self.expect(";");
            }
        }
    }

    /// What follows `label :`.
    fn label(
        &mut self,
        function: &mut Function,
        scopes: &mut Scopes,
        label: Token<'a>,
    ) -> Result<(), ParseError> {
        let Tok::Ident(name) = label.tok else { return Err(self.error("a label")) };
        let name = scopes.declare_label(&self.globals, name).ok_or_else(|| {
            self.error_at((label.start, label.end), "a label that the scope does not declare twice")
        })?;
        match self.tok.tok {
            Tok::Dot("branchtargets") => {
                self.advance()?;
                let mut targets = Vec::new();
                loop {
                    let at = (self.tok.start, self.tok.end);
                    scopes.use_label(function.body.len(), targets.len(), at);
                    targets.push(self.ident("a label")?.to_owned());
                    if !self.eat(",")? {
                        break;
                    }
                }
                self.expect(";")?;
                function.body.push(Stmt::BranchTargets(name, targets));
            }
            Tok::Dot("callprototype") => {
                self.advance()?;
                let returns = if self.is("(") { self.parameters(None, false)? } else { Vec::new() };
                if self.tok.tok != Tok::Ident("_") {
                    return Err(self.error("`_`"));
                }
                self.advance()?;
                let params = if self.is("(") { self.parameters(None, false)? } else { Vec::new() };
                // Nothing that the call depends on.
                self.tuning(&mut Function::default())?;
                self.expect(";")?;
                function.body.push(Stmt::CallPrototype { name, returns, params });
            }
            Tok::Dot("calltargets") => {
                return Err(self.error("`.callprototype` (`.calltargets` is not supported)"));
            }
            _ => function.body.push(Stmt::Label(name)),
        }
        Ok(())
    }

    /// Modifiers and operands behind an opcode.
    fn instruction(
        &mut self,
        function: &mut Function,
        scopes: &mut Scopes,
        opcode: Token<'a>,
        mut inst: Inst,
    ) -> Result<(), ParseError> {
        let word = match opcode.tok {
            Tok::Ident(word) if word.as_bytes()[0].is_ascii_alphabetic() => word,
            _ => return Err(self.error_at((opcode.start, opcode.end), "an instruction or a label with `:`")),
        };
        inst.opcode = word.to_owned();
        while let Tok::Dot(modifier) = self.tok.tok {
            inst.mods.push(modifier.to_owned());
            self.advance()?;
        }
        let labels = match word {
            "bra" => Labels::All,
            "brx" => Labels::Second,
            "call" => Labels::BehindCallee,
            _ => Labels::No,
        };
        let mut callee = false;
        while !self.is(";") {
            if !inst.operands.is_empty() {
                self.expect(",")?;
            }
            let slot = inst.operands.len();
            let label = match labels {
                Labels::No => false,
                Labels::All => true,
                Labels::Second => slot == 1,
                Labels::BehindCallee => callee,
            };
            let operand = match self.tok.tok {
                Tok::Sym("(") if labels == Labels::BehindCallee => self.call_list(scopes)?,
                Tok::Ident(name) if label => {
                    scopes.use_label(function.body.len(), slot, (self.tok.start, self.tok.end));
                    self.advance()?;
                    Operand::Name(name.to_owned())
                }
                _ => self.operand(scopes)?,
            };
            callee |= matches!(operand, Operand::Name(_));
            inst.operands.push(operand);
        }
        self.advance()?;
        function.body.push(Stmt::Inst(inst));
        Ok(())
    }
}

fn empty() -> Inst {
    Inst {
        ptx_line: 0,
        loc: Loc::default(),
        guard: None,
        opcode: String::new(),
        mods: Vec::new(),
        operands: Vec::new(),
    }
}
