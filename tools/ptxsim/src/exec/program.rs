//! A loaded module: variables placed, kernels lowered.

use super::build::build;
use super::control::CallSite;
use super::inst::{Class, Inst};
use super::lower::Features;
use super::place::{initialise, place_globals};
use super::special::Special;
use crate::mem::GlobalMemory;
use crate::ptx::ast::{self, Loc};
use crate::ptx::{self, ParseError};
use std::collections::HashMap;

/// Generic addresses of the shared window begin here.
pub const SHARED_WINDOW: u64 = 0x0200_0000_0000;
/// Generic addresses of a lane's local memory begin here.
pub const LOCAL_WINDOW: u64 = 0x0300_0000_0000;
/// Generic addresses of the kernel's parameters begin here.
pub const PARAM_WINDOW: u64 = 0x0400_0000_0000;
/// Addresses of functions begin here, 16 apart.
pub const FUNCTION_WINDOW: u64 = 0x0500_0000_0000;
/// Size of each window.
pub const WINDOW_BYTES: u64 = 0x0100_0000_0000;
/// Shared memory begins here, as on cards of compute capability 8.0 and later: the first KiB of every block is reserved.
pub const SHARED_BASE: u32 = 1024;

/// Why a module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not PTX.
    #[error("{0}")]
    Parse(#[from] ParseError),
    /// An instruction that cannot be executed.
    #[error("{function}: PTX line {line}: `{text}`: {reason}")]
    Instruction {
        /// Kernel or function.
        function: String,
        /// Line in the PTX text.
        line: u32,
        /// The instruction.
        text: String,
        /// Why not.
        reason: String,
    },
    /// Anything else about a function or variable.
    #[error("{name}: {reason}")]
    Symbol {
        /// Kernel, function or variable.
        name: String,
        /// Why not.
        reason: String,
    },
}

/// Where a variable lives, seen from a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Address in global memory (also constants).
    Global(u64),
    /// Address in the block's shared memory.
    Shared(u32),
    /// Offset in the lane's local memory: `.local` variables.
    Local(u32),
    /// Offset in the lane's local memory of a `.param` variable: a device function's parameter or result, or the
    /// argument of a call.
    Frame {
        /// Offset.
        offset: u32,
        /// Size.
        bytes: u32,
    },
    /// Offset among the kernel's parameters.
    Param(u32),
}

impl Place {
    /// The address in the variable's own space.
    pub fn address(self) -> u64 {
        match self {
            Place::Global(a) => a,
            Place::Shared(a) | Place::Local(a) | Place::Param(a) => u64::from(a),
            Place::Frame { offset, .. } => u64::from(offset),
        }
    }
}

/// A parsed module with its module-scope variables placed.
pub struct Linked {
    /// The tree.
    pub module: ast::Module,
    pub(super) globals: HashMap<String, (u64, u64)>,
    functions: HashMap<String, usize>,
}

impl Linked {
    /// A module without variables.
    #[cfg(test)]
    pub(super) fn bare(module: ast::Module) -> Linked {
        Linked { module, globals: HashMap::new(), functions: HashMap::new() }
    }

    /// Address of a module-scope `.global`/`.const` variable or of a function.
    pub fn address(&self, name: &str) -> Option<u64> {
        if let Some(&(address, _)) = self.globals.get(name) {
            return Some(address);
        }
        self.functions.get(name).map(|&i| FUNCTION_WINDOW + 16 * i as u64)
    }

    /// Index of a function in `module.functions`.
    pub fn function(&self, name: &str) -> Option<usize> {
        self.functions.get(name).copied()
    }
}

/// One parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Byte offset in the parameter block.
    pub offset: u32,
    /// Size.
    pub bytes: u32,
    /// Alignment.
    pub align: u32,
}

/// Offset and bytes of variables in a lane's frame.
pub type Extents = Vec<(u32, u32)>;

/// Where an instruction came from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// `.cu` place.
    pub loc: Loc,
    /// Line in the PTX text.
    pub ptx_line: u32,
    /// PTX text; empty for a conversion that the lowering added.
    pub text: String,
    /// For the counters.
    pub class: Class,
    /// Operations of one execution by a whole warp, for matrix instructions (`Class::Matrix`).
    pub flops: u32,
}

impl Origin {
    /// Opcode with its modifiers: `fma.rn.f32` of `@%p1 fma.rn.f32 %f1, ..`; empty for an added conversion.
    pub fn opcode(&self) -> &str {
        let text = match self.text.strip_prefix('@') {
            Some(rest) => rest.split_once(' ').map_or("", |(_, rest)| rest),
            None => &self.text,
        };
        text.split([' ', ';']).next().unwrap_or("")
    }

    /// Whether the instruction shows what other threads did since it was last executed: a loop around it may wait.
    pub(super) fn observes(&self) -> bool {
        let mut words = self.opcode().split('.');
        match words.next() {
            Some("atom") => true,
            Some("ld") => words.any(|w| matches!(w, "volatile" | "relaxed" | "acquire" | "mmio")),
            Some("mbarrier") => words.any(|w| matches!(w, "test_wait" | "try_wait")),
            _ => false,
        }
    }
}

/// The decoded instructions of a kernel and all it calls.
pub struct Code {
    /// Instructions.
    pub insts: Vec<Inst>,
    /// One for each.
    pub origins: Vec<Origin>,
    /// Instructions that show what others did.
    pub observers: Vec<u32>,
    /// Rows of the register file.
    pub rows: u32,
    /// Predicates.
    pub predicates: u32,
    /// Rows that hold constants: row, bits, rows.
    pub constants: Vec<(u32, u128, u32)>,
    /// Rows of registers that are read before they are written: row, rows.
    pub undefined: Vec<(u32, u32)>,
    /// Rows that hold special registers.
    pub specials: Vec<(u32, Special)>,
    /// Memory sites.
    pub sites: u32,
    /// Instruction of each memory site.
    pub site_pc: Vec<u32>,
    /// Local memory of a lane, call parameters included.
    pub local_bytes: u32,
    /// Call sites.
    pub calls: Vec<CallSite>,
    /// Tables of `brx.idx`.
    pub branch_tables: Vec<Vec<u32>>,
    /// First instruction of each function of the module that is here.
    pub entries: HashMap<usize, u32>,
    /// Formal parameters of those functions: results, then parameters.
    pub formals: HashMap<usize, (Extents, Extents)>,
    /// What decides the checker's mode.
    pub features: Features,
}

/// A kernel ready to be launched.
pub struct Kernel {
    pub(super) name: String,
    pub(super) code: Code,
    pub(super) params: Vec<Param>,
    pub(super) param_bytes: u32,
    pub(super) static_shared_bytes: u32,
    /// Where dynamic shared memory begins, if the kernel has an `extern .shared` array.
    pub(super) registers: u32,
    pub(super) stack_bytes: u32,
    pub(super) maxntid: Option<[u32; 3]>,
    pub(super) reqntid: Option<[u32; 3]>,
    pub(super) minnctapersm: Option<u32>,
    pub(super) cluster: Option<[u32; 3]>,
    pub(super) files: Vec<(u32, String)>,
    pub(super) inlining: Vec<ast::Inlining>,
}

impl Kernel {
    /// As in the PTX text.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// In order, with their offsets in the parameter block.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Size of the parameter block.
    pub fn param_bytes(&self) -> u32 {
        self.param_bytes
    }

    /// Statically declared shared memory.
    pub fn static_shared_bytes(&self) -> u32 {
        self.static_shared_bytes
    }

    /// `.local` memory of a thread.
    pub fn local_bytes(&self) -> u32 {
        self.stack_bytes
    }

    /// Size limit of a block: `.maxntid`, or 1024.
    pub fn max_threads(&self) -> u32 {
        self.maxntid.or(self.reqntid).map_or(1024, |n| n.iter().product())
    }

    /// `.reqntid`
    pub fn reqntid(&self) -> Option<[u32; 3]> {
        self.reqntid
    }

    /// `.minnctapersm`
    pub fn min_blocks(&self) -> Option<u32> {
        self.minnctapersm
    }

    /// `.reqnctapercluster`
    pub fn cluster(&self) -> Option<[u32; 3]> {
        self.cluster
    }

    /// Registers of a thread, estimated: the most 32-bit values live at one time in the PTX. `ptxas` may need more or less.
    pub fn registers(&self) -> u32 {
        self.registers
    }

    /// The decoded instructions.
    pub fn code(&self) -> &Code {
        &self.code
    }

    /// The places that the code at a line of the PTX text was inlined at, from the nearest call outwards.
    pub fn callers(&self, ptx_line: u32) -> &[Loc] {
        let after = self.inlining.partition_point(|i| i.ptx_line <= ptx_line);
        after.checked_sub(1).map_or(&[], |i| &self.inlining[i].callers)
    }

    /// Path of a `.file` entry.
    pub fn file(&self, index: u32) -> &str {
        self.files.iter().find(|f| f.0 == index).map_or("", |f| f.1.as_str())
    }
}

/// A loaded module.
pub struct Program {
    target: String,
    kernels: Vec<Kernel>,
    globals: Vec<(String, u64, u64)>,
}

impl Program {
    /// Parses and lowers PTX text; its variables are allocated in `memory`.
    pub fn load(text: &str, memory: &GlobalMemory) -> Result<Program, LoadError> {
        let module = ptx::parse(text)?;
        let globals = place_globals(&module, memory)?;
        let functions = module.functions.iter().enumerate().map(|(i, f)| (f.name.clone(), i)).collect();
        let linked = Linked { module, globals, functions };
        initialise(&linked, memory)?;
        let mut kernels = Vec::new();
        for (index, f) in linked.module.functions.iter().enumerate() {
            if f.kernel && !f.declaration {
                kernels.push(build(&linked, index)?);
            }
        }
        let mut globals: Vec<_> = linked.globals.iter().map(|(n, &(a, b))| (n.clone(), a, b)).collect();
        globals.sort();
        Ok(Program { target: linked.module.target.clone(), kernels, globals })
    }

    /// By its name in the PTX text.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }

    /// All, in order.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter()
    }

    /// Address and size of a `.global` or `.const` variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.globals.iter().find(|g| g.0 == name).map(|g| (g.1, g.2))
    }

    /// `sm_90a`
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Frees the module's variables. Addresses that are gone already are left alone.
    pub fn unload(&self, memory: &GlobalMemory) {
        for g in &self.globals {
            // Already freed with the whole memory: nothing to do.
            let _ = memory.free(g.1);
        }
    }
}

pub(super) fn symbol_error(name: &str, reason: impl Into<String>) -> LoadError {
    LoadError::Symbol { name: name.to_string(), reason: reason.into() }
}
