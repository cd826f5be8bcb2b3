//! The families of the suite, in the order of the README's table.

mod address;
mod approximate;
mod atomic;
mod barrier;
mod bulk;
mod compare;
mod control;
mod convert;
mod copy;
mod float;
mod half;
mod integer;
mod logic;
mod matrix;
mod memory;
mod mma;
mod warp;

use super::case::Case;
use super::elementwise::Suite;

/// A group of instructions with its cases.
#[derive(Clone, Copy)]
pub struct Family {
    /// As in the README's table, and after `--family`.
    pub name: &'static str,
    /// What is in it.
    pub about: &'static str,
    make: fn(&mut Suite),
}

impl Family {
    /// Makes its cases; they are the same every time.
    pub fn cases(&self) -> Vec<Case> {
        let mut suite = Suite::new(self.name);
        (self.make)(&mut suite);
        suite.finish()
    }
}

/// All families.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "integer",
        about: "add .. sad, div, rem, mul and mad in every mode, bfe, bfi, fns, dp4a, carry chains; 16 to 64 bits",
        make: integer::cases,
    },
    Family {
        name: "logic",
        about: "and .. cnot, lop3 with all 256 tables, shifts, shf, prmt in every mode, predicates, selp, slct",
        make: logic::cases,
    },
    Family { name: "compare", about: "setp, set, testp: every operator and type", make: compare::cases },
    Family {
        name: "float",
        about: "f32 and f64 add .. fma, div, rcp, sqrt in all roundings, .ftz, .sat; min, max, copysign",
        make: float::cases,
    },
    Family {
        name: "approximate",
        about: "rcp, sqrt, rsqrt, sin, cos, lg2, ex2, tanh, div: within the manual's error",
        make: approximate::cases,
    },
    Family { name: "half", about: "f16, bf16 and their pairs", make: half::cases },
    Family {
        name: "convert",
        about: "cvt between all types in all roundings, tf32, e4m3, e5m2, cvt.pack, mov of vectors",
        make: convert::cases,
    },
    Family {
        name: "memory",
        about: "ld and st of every width and vector in every space, cvta, isspacep, module-scope variables",
        make: memory::cases,
    },
    Family {
        name: "atomic",
        about: "atom and red: every operation and type on global, shared and generic addresses",
        make: atomic::cases,
    },
    Family {
        name: "warp",
        about: "shfl in every mode, vote, match, redux, elect, lane masks; whole and partial warps",
        make: warp::cases,
    },
    Family {
        name: "matrix",
        about: "ldmatrix, stmatrix: every count, .trans; movmatrix",
        make: matrix::cases,
    },
    Family { name: "mma", about: "mma.sync: every shape and type, element by element", make: mma::cases },
    Family {
        name: "copy",
        about: "cp.async: sizes, zero fill, groups, completion by mbarrier",
        make: copy::cases,
    },
    Family {
        name: "barrier",
        about: "bar, barrier, bar.red, bar.warp.sync, fences, mbarrier phases and transaction counts",
        make: barrier::cases,
    },
    Family { name: "bulk", about: "cp.async.bulk both ways, cp.reduce.async.bulk", make: bulk::cases },
    Family {
        name: "control",
        about: "bra, loops, brx.idx, call, function pointers, exit, special registers",
        make: control::cases,
    },
];

/// The family of a name.
pub fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|f| f.name == name)
}
