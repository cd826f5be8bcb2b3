//! Instructions and operands, and printing them.

use super::{function, inst, instructions, refused};
use proptest::prelude::*;
use ptxsim::ptx::ast::{Inst, Loc, Operand, Stmt};

fn name(text: &str) -> Operand {
    Operand::Name(text.to_owned())
}

fn names(list: &[&str]) -> Vec<Operand> {
    list.iter().map(|text| name(text)).collect()
}

/// The only operand of an instruction.
fn operand(text: &str) -> Operand {
    let mut inst = inst(&format!("x {text};"));
    assert_eq!(inst.operands.len(), 1, "{text}");
    inst.operands.remove(0)
}

#[test]
fn opcodes_and_modifiers() {
    for (text, opcode, mods) in [
        ("ret;", "ret", vec![]),
        (
            "ld.global.L1::no_allocate.L2::128B.v4.f32 a;",
            "ld",
            vec!["global", "L1::no_allocate", "L2::128B", "v4", "f32"],
        ),
        ("ld .global /* x */ .u8 a;", "ld", vec!["global", "u8"]),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 a;",
            "mma",
            vec!["sync", "aligned", "m16n8k16", "row", "col", "f32", "bf16", "bf16", "f32"],
        ),
        (
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes a;",
            "cp",
            vec![
                "async",
                "bulk",
                "tensor",
                "2d",
                "shared::cluster",
                "global",
                "mbarrier::complete_tx::bytes",
            ],
        ),
        (
            "ldmatrix.sync.aligned.m8n16.x4.shared.b8x16.b6x16_p32 a;",
            "ldmatrix",
            vec!["sync", "aligned", "m8n16", "x4", "shared", "b8x16", "b6x16_p32"],
        ),
    ] {
        let inst = inst(text);
        assert_eq!(
            (inst.opcode.as_str(), inst.mods),
            (opcode, mods.into_iter().map(str::to_owned).collect()),
            "{text}"
        );
    }
}

#[test]
fn guards_and_labels() {
    assert_eq!(inst("@%p1 ret;").guard, Some(("%p1".to_owned(), false)));
    assert_eq!(inst("@ ! p\n bra L;").guard, Some(("p".to_owned(), true)));
    let function = function("L: M : ret; $x: { y: }\n").unwrap();
    let labels: Vec<_> = function
        .body
        .iter()
        .map(|stmt| match stmt {
            Stmt::Label(name) => name.as_str(),
            Stmt::Inst(inst) => inst.opcode.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(labels, ["L", "M", "ret", "$x", "y"]);
}

#[test]
fn operands() {
    let address = |base: Option<&str>, offset| Operand::Address { base: base.map(str::to_owned), offset };
    for (text, expected) in [
        ("%r1", name("%r1")),
        ("%tid.x", name("%tid.x")),
        ("%clock64", name("%clock64")),
        ("%f$1", name("%f$1")),
        ("_", Operand::Sink),
        ("42", Operand::Int(42)),
        ("-1", Operand::Int(-1)),
        ("0xFFFFFFFFFFFFFFFF", Operand::Int(-1)),
        ("017", Operand::Int(15)),
        ("0b11", Operand::Int(3)),
        ("7U", Operand::Int(7)),
        ("(1<<4)|3", Operand::Int(19)),
        ("WARP_SZ", Operand::Int(32)),
        ("WARP_SZ-1", Operand::Int(31)),
        ("!0", Operand::Int(1)),
        ("!5 | 4", Operand::Int(4)),
        ("0f3F800000", Operand::F32(0x3f80_0000)),
        ("0d3FF0000000000000", Operand::F64(1.0_f64.to_bits())),
        ("0d7FF0000000000001", Operand::F64(0x7ff0_0000_0000_0001)),
        ("-1.5", Operand::F64((-1.5_f64).to_bits())),
        ("1e3", Operand::F64(1000.0_f64.to_bits())),
        (".5", Operand::F64(0.5_f64.to_bits())),
        ("[%rd1]", address(Some("%rd1"), 0)),
        ("[%rd1+4]", address(Some("%rd1"), 4)),
        ("[%rd1+-4]", address(Some("%rd1"), -4)),
        ("[%rd1-4]", address(Some("%rd1"), -4)),
        ("[ a + 4*8 - 2 ]", address(Some("a"), 30)),
        ("[16]", address(None, 16)),
        ("[-16+4]", address(None, -12)),
        ("tab+20", Operand::SymbolOffset { symbol: "tab".to_owned(), offset: 20 }),
        ("tab+-4", Operand::SymbolOffset { symbol: "tab".to_owned(), offset: -4 }),
        (
            "{%r1, 5, _, 0f00000000}",
            Operand::Vector(vec![name("%r1"), Operand::Int(5), Operand::Sink, Operand::F32(0)]),
        ),
        ("%r1|%p2", Operand::Pair(Box::new(name("%r1")), Box::new(name("%p2")))),
        ("_|%p2", Operand::Pair(Box::new(Operand::Sink), Box::new(name("%p2")))),
        ("!%p1", Operand::Not(Box::new(name("%p1")))),
        (
            "[map+64, {%r1, 0}]",
            Operand::TensorAddress {
                base: "map".to_owned(),
                offset: 64,
                coordinates: vec![name("%r1"), Operand::Int(0)],
            },
        ),
    ] {
        assert_eq!(operand(text), expected, "{text}");
    }
}

#[test]
fn calls() {
    let list = |of: &[&str]| Operand::List(names(of));
    for (text, expected) in [
        ("call f;", vec![name("f")]),
        ("call f, (a);", vec![name("f"), list(&["a"])]),
        ("call.uni (r), f, (a, b);", vec![list(&["r"]), name("f"), list(&["a", "b"])]),
        ("call (r), %rd1, (a), p;", vec![list(&["r"]), name("%rd1"), list(&["a"]), name("p")]),
        ("call f, ();", vec![name("f"), list(&[])]),
        (
            "call f, (1, (2+3)*2, 0f00000000);",
            vec![name("f"), Operand::List(vec![Operand::Int(1), Operand::Int(10), Operand::F32(0)])],
        ),
        ("call (_), f;", vec![Operand::List(vec![Operand::Sink]), name("f")]),
    ] {
        assert_eq!(inst(text).operands, expected, "{text}");
    }
}

#[test]
fn positions() {
    let function = function("ret; /*\n\n*/ @p\n ret; .loc 4 7 1\nret;\n.loc 4 0 1\nret;").unwrap();
    let places: Vec<_> =
        instructions(&function).iter().map(|inst| (inst.ptx_line, inst.loc.file, inst.loc.line)).collect();
    // The header takes two lines, the head of the function one.
    assert_eq!(places, [(4, 0, 0), (6, 0, 0), (8, 4, 7), (10, 4, 7)]);
}

#[test]
fn what_is_no_instruction() {
    for (text, expected, found) in [
        ("mov.b32 a b;", "`,`", "`b`"),
        ("mov.b32 a,;", "an operand", "`;`"),
        ("mov.b32 a, [b;", "`]`", "`;`"),
        ("mov.b32 a, [%r1+%r2];", "a constant", "`%r2`"),
        ("mov.b32 a, [];", "a name", "`]`"),
        ("mov.b32 a, {};", "an operand", "`}`"),
        ("mov.b32 a, {{b}};", "an operand", "`{`"),
        ("mov.b32 a, -%r1;", "a constant", "`%r1`"),
        ("mov.b32 a, tab[5];", "`+` and bytes (subscripts are not supported)", "`[`"),
        ("mov.b32 a|[b], c;", "a register before it, behind `|`", "`,`"),
        ("mov.b32 a, [16, {b}];", "`]`", "`,`"),
        ("mov.b32 a, [1.5];", "an integer", "`1.5`"),
        ("%mov a;", "an instruction or a label with `:`", "`%mov`"),
        ("@%p1 L: ret;", "an operand", "`:`"),
        ("@%p1 { ret; }", "an instruction", "`{`"),
        ("@5 ret;", "a name", "`5`"),
        ("ret;;", "an instruction, a directive or `}`", "`;`"),
        ("mov.b32 a, tab-4;", "`,`", "`-`"),
        ("mov.b32 a, %tid.x.y;", "`,`", "`.y`"),
        (".reg .b32 x1<5>;", "a prefix that does not end in a digit", "`x1<5>`"),
        (".file 1 \"x\"", "a directive of a body", "`.file`"),
        (".extern .shared .b8 x[];", "a directive of a body", "`.extern`"),
        ("5;", "an instruction, a directive or `}`", "`5`"),
        (".fast;", "a directive of a body", "`.fast`"),
        (".reg .v4 .f32 x;", "a scalar type (vector registers are not supported)", "`.v4`"),
        (".reg x;", "the type of a register", "`x`"),
        (".reg .b32 x<y>;", "a number of registers", "`y`"),
        (".reg .b32 x<1048577>;", "at most 1048576 registers in a function", "`x<1048577>`"),
        (".reg .b32 x<1048576>;\n.reg .b32 y;", "at most 1048576 registers in a function", "`y`"),
        ("L: .calltargets f;", "`.callprototype` (`.calltargets` is not supported)", "`.calltargets`"),
        ("L: L: ret;", "a label that the scope does not declare twice", "`L`"),
    ] {
        assert_eq!(refused(function(text)), (expected.to_owned(), found.to_owned()), "{text}");
    }
    let error = function("mov.u32 a, b;\n\tmov.u32 c, ?;").unwrap_err();
    assert_eq!(error.to_string(), "PTX line 5, column 13: expected an operand, found `?`");
}

fn names_strategy() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["%r1", "%rd12", "x", "$L__BB0_1", "%tid.x", "_Z1aPf_param_0", "%f$2"])
        .prop_map(str::to_owned)
}

fn scalar() -> impl Strategy<Value = Operand> {
    prop_oneof![
        names_strategy().prop_map(Operand::Name),
        any::<i64>().prop_map(Operand::Int),
        any::<u32>().prop_map(Operand::F32),
        any::<u64>().prop_map(Operand::F64),
        Just(Operand::Sink),
        Just(Operand::Int(i64::MIN)),
        (names_strategy(), any::<i64>())
            .prop_map(|(symbol, offset)| Operand::SymbolOffset { symbol, offset }),
    ]
}

fn scalars(least: usize) -> impl Strategy<Value = Vec<Operand>> {
    prop::collection::vec(scalar(), least..5)
}

fn any_operand() -> impl Strategy<Value = Operand> {
    let before_bar = prop_oneof![
        names_strategy().prop_map(Operand::Name),
        Just(Operand::Sink),
        scalars(1).prop_map(Operand::Vector)
    ];
    prop_oneof![
        scalar(),
        (prop::option::of(names_strategy()), any::<i64>())
            .prop_map(|(base, offset)| Operand::Address { base, offset }),
        (names_strategy(), any::<i64>(), scalars(1))
            .prop_map(|(base, offset, coordinates)| Operand::TensorAddress { base, offset, coordinates }),
        scalars(1).prop_map(Operand::Vector),
        (before_bar, names_strategy())
            .prop_map(|(left, right)| Operand::Pair(Box::new(left), Box::new(Operand::Name(right)))),
        names_strategy().prop_map(|name| Operand::Not(Box::new(Operand::Name(name)))),
    ]
}

prop_compose! {
    fn any_inst()(
        guard in prop::option::of((names_strategy(), any::<bool>())),
        opcode in prop::sample::select(vec!["mov", "ld", "mma", "cp", "call"]),
        mods in prop::collection::vec(
            prop::sample::select(vec!["u32", "shared::cta", "m16n8k16", "2d", "mbarrier::complete_tx::bytes"]),
            0..4,
        ),
        mut operands in prop::collection::vec(any_operand(), 0..5),
        list in scalars(0),
    ) -> Inst {
        if opcode == "call" {
            operands = vec![Operand::List(list.clone()), name("f"), Operand::List(list), name("p")];
        }
        Inst {
            ptx_line: 4,
            loc: Loc::default(),
            guard,
            opcode: opcode.to_owned(),
            mods: mods.into_iter().map(str::to_owned).collect(),
            operands,
        }
    }
}

proptest! {
    #[test]
    fn printing_and_parsing_is_nothing(instruction in any_inst()) {
        let text = instruction.to_string();
        prop_assert_eq!(inst(&text), instruction, "{}", text);
    }
}
