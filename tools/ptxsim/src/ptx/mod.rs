//! PTX text: the tree and its parser.

pub mod ast;
mod body;
mod constant;
mod error;
mod init;
mod lexer;
mod operand;
mod parser;
mod print;
mod scope;
mod variable;

pub use error::ParseError;
pub use parser::parse;
