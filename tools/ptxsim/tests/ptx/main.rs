//! The parser of PTX, construct by construct, and under text that is not PTX.

mod declarations;
mod fuzz;
mod instructions;
mod sample;
mod scopes;

use ptxsim::ptx::ast::{Function, Inst, Module, Stmt};
use ptxsim::ptx::{ParseError, parse};

/// Two lines.
const HEADER: &str = ".version 9.0 .target sm_80\n.address_size 64\n";

/// A module of these declarations.
fn module(text: &str) -> Result<Module, ParseError> {
    parse(&format!("{HEADER}{text}"))
}

/// The function with this body.
fn function(body: &str) -> Result<Function, ParseError> {
    Ok(module(&format!(".entry k {{\n{body}\n}}"))?.functions.remove(0))
}

fn instructions(function: &Function) -> Vec<&Inst> {
    let mut instructions = Vec::new();
    for stmt in &function.body {
        if let Stmt::Inst(inst) = stmt {
            instructions.push(inst);
        }
    }
    instructions
}

/// The only instruction.
fn inst(text: &str) -> Inst {
    let function = function(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(function.body.len(), 1, "{text}");
    instructions(&function)[0].clone()
}

/// What was expected and what was there instead.
fn refused<T>(outcome: Result<T, ParseError>) -> (String, String) {
    match outcome {
        Ok(_) => panic!("parsed"),
        Err(error) => (error.expected, error.found),
    }
}
