//! What the parser makes of PTX text (PTX ISA 9.0): names and numbers, nothing resolved.

/// A `.cu` position, from `.loc` and `.file`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Loc {
    /// Index given by `.file`; 0 where no `.loc` came before.
    pub file: u32,
    /// Line in that file, from 1; 0 where none is known.
    pub line: u32,
}

/// State spaces of variables and of memory instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// `.global`
    Global,
    /// `.const`
    Const,
    /// `.shared` (of the block; `.shared::cluster` is a modifier of instructions)
    Shared,
    /// `.local`
    Local,
    /// `.param`
    Param,
}

/// Fundamental types.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ty {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
}

impl Ty {
    /// The word after the dot: `Ty::parse("u32")`.
    pub fn parse(word: &str) -> Option<Ty> {
        Some(match word {
            "pred" => Ty::Pred,
            "b8" => Ty::B8,
            "b16" => Ty::B16,
            "b32" => Ty::B32,
            "b64" => Ty::B64,
            "b128" => Ty::B128,
            "u8" => Ty::U8,
            "u16" => Ty::U16,
            "u32" => Ty::U32,
            "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::Bf16,
            "bf16x2" => Ty::Bf16x2,
            "tf32" => Ty::Tf32,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            _ => return None,
        })
    }

    /// Bytes of one value; a predicate counts 1.
    pub fn bytes(self) -> u32 {
        match self {
            Ty::Pred | Ty::B8 | Ty::U8 | Ty::S8 => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 2,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32 | Ty::F32 => 4,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
            Ty::B128 => 16,
        }
    }
}

/// One piece of a variable's initialiser, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// Plain bytes, little endian.
    Bytes(Vec<u8>),
    /// The address of a symbol plus an offset; `generic(..)` or not (both are the same number here).
    Address {
        /// Name of the variable or function.
        symbol: String,
        /// Added to its address.
        addend: i64,
        /// Bytes of the field: 4 or 8.
        bytes: u32,
    },
}

/// `.global/.const/.shared/.local/.param` declaration.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// Where it lives.
    pub space: Space,
    /// Alignment in bytes (explicit, or the type's own).
    pub align: u32,
    /// Element type.
    pub ty: Ty,
    /// As written.
    pub name: String,
    /// Size in bytes; `None` for `.extern ... name[]`, whose size the launch gives.
    pub bytes: Option<u64>,
    /// `.extern`
    pub external: bool,
    /// Empty: zero (global, const) or uninitialised (shared, local).
    pub init: Vec<Init>,
}

/// `.reg .b32 %r<9>;` (count 9) or `.reg .b64 %SP;` (count `None`).
#[derive(Clone, Debug, PartialEq)]
pub struct RegDecl {
    /// Prefix with the percent sign, or the whole name.
    pub name: String,
    /// `Some(n)`: names `name0 .. name(n-1)`.
    pub count: Option<u32>,
    /// Declared type.
    pub ty: Ty,
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// `%r1`, `%tid.x`, `%clock64`, a label, a variable, a function: everything that is a name.
    Name(String),
    /// An integer; negative ones in two's complement.
    Int(i64),
    /// `0f3F800000`
    F32(u32),
    /// `0d3FF0000000000000`, and decimal floating-point literals
    F64(u64),
    /// `[base + offset]`; `base` `None` for `[16]`.
    Address {
        /// Register or symbol.
        base: Option<String>,
        /// Bytes.
        offset: i64,
    },
    /// `tab+20`: the address of a variable and something added to it, as `mov` takes it.
    SymbolOffset {
        /// Variable.
        symbol: String,
        /// Bytes.
        offset: i64,
    },
    /// `[tensorMap, {c0, c1}]`: an address followed by coordinates.
    TensorAddress {
        /// Register or symbol.
        base: String,
        /// Bytes.
        offset: i64,
        /// Coordinate vector.
        coordinates: Vec<Operand>,
    },
    /// `{a, b, c, d}`
    Vector(Vec<Operand>),
    /// `%r10|%p11`
    Pair(Box<Operand>, Box<Operand>),
    /// `!%p1`
    Not(Box<Operand>),
    /// `-%f1` is not PTX; `%r1.x` style selectors and video selectors come as `Name`. The parenthesised lists of `call`.
    List(Vec<Operand>),
    /// `_`
    Sink,
}

/// One instruction as written.
#[derive(Clone, Debug, PartialEq)]
pub struct Inst {
    /// Line in the PTX text, from 1.
    pub ptx_line: u32,
    /// Nearest `.loc` above. A `.loc` with line 0 keeps the line before it.
    pub loc: Loc,
    /// `@%p1` is `Some(("%p1", false))`, `@!%p1` is `Some(("%p1", true))`.
    pub guard: Option<(String, bool)>,
    /// `ld` of `ld.global.v4.f32`.
    pub opcode: String,
    /// `["global", "v4", "f32"]`; `::` stays inside a word: `shared::cta`, `mbarrier::complete_tx::bytes`.
    pub mods: Vec<String>,
    /// In order.
    pub operands: Vec<Operand>,
}

/// One line of a body.
#[derive(Clone, Debug, PartialEq)]
pub enum Stmt {
    /// `$L__BB0_2:`
    Label(String),
    /// An instruction.
    Inst(Inst),
    /// `$L_tab: .branchtargets a, b, c;`
    BranchTargets(String, Vec<String>),
    /// `proto: .callprototype (...) _ (...);` sizes in bytes of results and parameters
    CallPrototype {
        /// Label.
        name: String,
        /// Results.
        returns: Vec<Variable>,
        /// Parameters.
        params: Vec<Variable>,
    },
}

/// `.entry` or `.func`. Names declared in nested `{ }` scopes are made unique by the parser: where a name is declared a
/// second time in a function, or is one of the module, the later one gets the suffix `@2`, `@3`, .. and every use inside
/// its scope is renamed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Function {
    /// As written.
    pub name: String,
    /// `.entry`
    pub kernel: bool,
    /// `.func` without a body (`vprintf`, `__assertfail`).
    pub declaration: bool,
    /// `.param` results of a `.func`.
    pub returns: Vec<Variable>,
    /// `.param` parameters, in order.
    pub params: Vec<Variable>,
    /// Registers of every scope.
    pub regs: Vec<RegDecl>,
    /// `.shared`, `.local`, `.param`, `.global`, `.const` variables declared inside, of every scope.
    pub vars: Vec<Variable>,
    /// Body.
    pub body: Vec<Stmt>,
    /// `.maxntid`
    pub maxntid: Option<[u32; 3]>,
    /// `.reqntid`
    pub reqntid: Option<[u32; 3]>,
    /// `.minnctapersm`
    pub minnctapersm: Option<u32>,
    /// `.maxnreg`
    pub maxnreg: Option<u32>,
    /// `.reqnctapercluster` (or `.explicitcluster` without numbers: `[0, 0, 0]`)
    pub cluster: Option<[u32; 3]>,
    /// Lines of the `.entry`/`.func` in the PTX text.
    pub ptx_line: u32,
}

/// Code that a compiler inlined, from this line of the PTX text to the next such entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inlining {
    /// Line of the `.loc` in the PTX text.
    pub ptx_line: u32,
    /// The places it was inlined at, from the nearest call outwards; empty for code that stands where it was written.
    pub callers: Vec<Loc>,
}

/// A whole translation unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module {
    /// `(9, 0)`
    pub version: (u32, u32),
    /// `sm_90a`
    pub target: String,
    /// 64
    pub address_size: u32,
    /// `.file` table: index and path.
    pub files: Vec<(u32, String)>,
    /// What `inlined_at` of the `.loc` lines says, in the order of the text; an entry where it changes.
    pub inlining: Vec<Inlining>,
    /// Module-scope variables.
    pub vars: Vec<Variable>,
    /// Kernels and functions, in order. A declaration whose definition is here too is left out.
    pub functions: Vec<Function>,
    /// `.alias name, of;`
    pub aliases: Vec<(String, String)>,
}
