//! The conformance suite: micro-kernels, one for each instruction and layout, with results that come from elsewhere than
//! the interpreter (`i128` and soft-float arithmetic, the manual's tables, pseudo-code and layout formulas).
//!
//! The same cases run in the simulator and, through the CUDA driver, on a card; what a card answers is recorded, and
//! replayed against the simulator from then on. A case that simulator and suite both read wrongly out of the manual is
//! found only by a card: until one has run a family, the README's table says so.

pub mod backend;
pub mod card;
pub mod case;
pub mod elementwise;
pub mod families;
pub mod kernel;
pub mod recording;
pub mod replay;
pub mod softfloat;
pub mod table;
pub mod values;

pub use case::{Case, Comparison, Difference, Part, Target};
pub use families::{FAMILIES, Family};
