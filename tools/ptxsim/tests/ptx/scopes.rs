//! Names of nested scopes.

use super::{function, instructions, module, refused};
use ptxsim::ptx::ast::{Operand, Stmt};

/// Operands of every instruction, as the tree has them.
fn operands(body: &str) -> Vec<Vec<String>> {
    let function = function(body).unwrap_or_else(|error| panic!("{body}: {error}"));
    let name = |operand: &Operand| match operand {
        Operand::Name(name) | Operand::Address { base: Some(name), .. } => name.clone(),
        other => format!("{other:?}"),
    };
    instructions(&function).iter().map(|inst| inst.operands.iter().map(name).collect()).collect()
}

#[test]
fn registers_of_a_scope_hide_outer_ones() {
    let uses = operands(
        ".reg .b32 t, u<4>;
         mov.b32 t, u1;
         { .reg .b32 t; mov.b32 t, u1; { .reg .b32 t, u<2>; mov.b32 t, u1; mov.b32 u2, u3; } mov.b32 t, u1; }
         { .reg .b32 t, v; mov.b32 t, v; }
         mov.b32 t, u1;",
    );
    let expected = [
        ["t", "u1"],
        ["t@2", "u1"],
        ["t@3", "u@2@1"],
        ["u2", "u3"],
        ["t@2", "u1"],
        ["t@4", "v"],
        ["t", "u1"],
    ];
    assert_eq!(uses, expected);
}

#[test]
fn every_kind_of_use_is_renamed() {
    let function = function(
        ".reg .pred p; .reg .b32 a; .shared .b32 s; .global .u64 g;
         { .reg .pred p; .reg .b32 a; .shared .b32 s; .global .u32 g = 1; .global .u64 h = g+4;
           @!p ld.v2.b32 {a, a}, [s+4]; cp [s, {a}], !p, a|p, s+8; call (a), a, (s); }",
    )
    .unwrap();
    let seen = format!("{:?}", instructions(&function));
    for name in ["p", "a", "s"] {
        assert!(seen.contains(&format!("\"{name}@2\"")) && !seen.contains(&format!("\"{name}\"")), "{seen}");
    }
    assert!(format!("{:?}", function.vars).contains(r#"symbol: "g@2", addend: 4"#));
    // Reports show the text.
    let printed: Vec<_> = instructions(&function).iter().map(|inst| inst.to_string()).collect();
    assert_eq!(printed, ["@!p ld.v2.b32 {a, a}, [s+4];", "cp [s, {a}], !p, a|p, s+8;", "call (a), a, (s);"]);
}

#[test]
fn labels_are_seen_before_they_stand() {
    let body = "{ bra L; L: ret; bra O; }\n{ bra L; { bra L; } L: }\nO: { { bra L; L: } L: bra L; brx.idx %r1, T; T: .branchtargets L, O; }";
    let uses = operands(body);
    let targets: Vec<_> = uses.iter().filter_map(|operands| operands.last().map(String::as_str)).collect();
    assert_eq!(targets, ["L", "O", "L@2", "L@2", "L@3", "L@4", "T"]);
    let function = function(body).unwrap();
    let list = ["L@4", "O"].map(str::to_owned).to_vec();
    assert!(function.body.contains(&Stmt::BranchTargets("T".to_owned(), list)));
}

#[test]
fn a_label_is_no_register() {
    let uses = operands(
        ".reg .b32 a; { .reg .b32 a; { a: bra a; mov.b32 b, a; } mov.b32 b, a; }\n{ a: .callprototype _; call %r, a; }",
    );
    assert_eq!(uses[..3], [vec!["a@3"], vec!["b", "a@3"], vec!["b", "a@2"]]);
    assert_eq!(uses[3][1], "a@4");
}

#[test]
fn parameters_are_names_of_the_function() {
    let body = ".func (.param .b32 r) f (.param .b32 a) { ld.param.b32 %x, [a]; { .param .b32 a, r; st.param.b32 [a], 1; ld.param.b32 %x, [r]; } st.param.b32 [r], 0; }";
    let function = module(body).unwrap().functions.remove(0);
    let vars: Vec<_> = function.vars.iter().map(|variable| variable.name.as_str()).collect();
    assert_eq!(vars, ["a@2", "r@2"]);
    let text = format!("{:?}", instructions(&function).iter().map(|inst| &inst.operands).collect::<Vec<_>>());
    assert_eq!(text.matches("\"a@2\"").count() + text.matches("\"r@2\"").count(), 2);
    assert_eq!(text.matches("\"a\"").count() + text.matches("\"r\"").count(), 2);
    assert!(module(".entry k (.param .b32 a) { .reg .b32 a; }").is_err());
}

#[test]
fn globals_are_not_hidden_outside_of_a_scope() {
    let text = ".global .u32 tab; .entry k { { .shared .u32 tab; mov.u64 %rd1, tab; } mov.u64 %rd1, tab; }";
    let function = module(text).unwrap().functions.remove(0);
    assert_eq!(function.vars[0].name, "tab@2");
    let names: Vec<_> = instructions(&function).iter().map(|inst| inst.operands[1].clone()).collect();
    assert_eq!(names, [Operand::Name("tab@2".to_owned()), Operand::Name("tab".to_owned())]);
}

#[test]
fn names_end_with_their_scope() {
    let around = "a name declared in this scope or around it";
    let label = "a label declared in this scope or around it";
    for (body, expected, found) in [
        ("{ .reg .b32 t; } mov.b32 t, 1;", around, "`t`"),
        ("{ .reg .b32 t<5>; } mov.b32 a, [t4];", around, "`t4`"),
        ("{ .reg .pred p; } @p ret;", around, "`p`"),
        ("{ .global .u32 g; }\n{ .global .u64 h = g; }", around, "`g`"),
        ("{ L: } bra L;", label, "`L`"),
        ("bra L; { { L: } }", label, "`L`"),
        ("{ L: } T: .branchtargets L;", label, "`L`"),
        ("{ .reg .b32 t; .reg .b32 t<1>, t0; }", "a name that the scope does not declare twice", "`t0`"),
        ("{ a: .reg .b32 a; }", "a name that the scope does not declare twice", "`a`"),
    ] {
        assert_eq!(refused(function(body)), (expected.to_owned(), found.to_owned()), "{body}");
    }
    // A range reaches no further than its count, and names that nobody declares are for later.
    assert!(function("{ .reg .b32 t<5>; } mov.b32 t5, [u]; bra M;").is_ok());
}

#[test]
fn scopes_have_a_depth() {
    let nested = |depth: usize| function(&format!("{}{}", "{".repeat(depth), "}".repeat(depth)));
    assert!(nested(63).is_ok());
    assert_eq!(refused(nested(64)).0, "at most 64 scopes inside one another");
    assert!(nested(1_000_000).is_err());
}
