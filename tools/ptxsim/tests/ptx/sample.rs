//! A module as a whole.

use super::{instructions, parse};
use ptxsim::ptx::ast::{Init, Inst, Loc, Module, Space, Stmt, Ty};

/// The text.
pub const SAMPLE: &str = include_str!("sample.ptx");

fn sample() -> Module {
    parse(SAMPLE).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn head_and_tables() {
    let module = sample();
    assert_eq!(module.version, (9, 0));
    assert_eq!(module.target, "sm_90a");
    assert_eq!(module.address_size, 64);
    let files = [(1, "/home/me/kernels/scale.cu"), (2, "a \"quoted\" name.cuh")];
    assert_eq!(module.files, files.map(|(index, path)| (index, path.to_owned())));
    let names: Vec<_> = module.vars.iter().map(|variable| variable.name.as_str()).collect();
    assert_eq!(names, ["table", "tab", "pointer", "packed", "counter", "$str", "dyn"]);
    let address = |symbol: &str, addend| Init::Address { symbol: symbol.to_owned(), addend, bytes: 8 };
    assert_eq!(module.vars[0].init, [address("twice", 0), Init::Bytes(vec![0; 8])]);
    assert_eq!((module.vars[1].space, module.vars[1].bytes), (Space::Const, Some(12)));
    assert_eq!(module.vars[2].init, [address("tab", 4)]);
    let packed = [Init::Bytes(vec![1]), address("tab", 8), Init::Bytes(vec![254, 255])];
    assert_eq!(module.vars[3].init, packed);
    assert_eq!(module.vars[4].init, [Init::Bytes(vec![7, 0, 0, 0])]);
    let dynamic = &module.vars[6];
    assert!(dynamic.external && dynamic.bytes.is_none() && dynamic.align == 16);
}

#[test]
fn functions_and_their_heads() {
    let module = sample();
    let heads: Vec<_> =
        module.functions.iter().map(|f| (f.name.as_str(), f.kernel, f.declaration, f.ptx_line)).collect();
    // The declaration of `twice` gives way to its definition.
    let expected = [
        ("vprintf", false, true, 15),
        ("stop", false, true, 21),
        ("scale", true, false, 34),
        ("twice", false, false, 136),
    ];
    assert_eq!(heads, expected);
    let kernel = &module.functions[2];
    assert_eq!(
        (kernel.maxntid, kernel.minnctapersm, kernel.cluster),
        (Some([256, 1, 1]), Some(2), Some([2, 1, 1]))
    );
    assert_eq!((kernel.reqntid, kernel.maxnreg), (None, None));
    let params: Vec<_> = kernel.params.iter().map(|p| (p.ty, p.align, p.bytes)).collect();
    assert_eq!(params, [(Ty::U64, 8, Some(8)), (Ty::B8, 64, Some(128)), (Ty::U32, 4, Some(4))]);
    assert_eq!(module.functions[3].returns[0].name, "func_retval0");
    let regs: Vec<_> = kernel.regs.iter().map(|reg| (reg.name.as_str(), reg.count, reg.ty)).collect();
    assert_eq!(
        regs,
        [
            ("%SP", None, Ty::B64),
            ("%SPL", None, Ty::B64),
            ("%p", Some(6), Ty::Pred),
            ("%f", Some(9), Ty::F32),
            ("%r", Some(20), Ty::B32),
            ("%rd", Some(12), Ty::B64),
            ("temp_param_reg", None, Ty::B32),
            ("temp_param_reg@2", None, Ty::B32),
            ("P1", None, Ty::Pred),
            ("P1@2", None, Ty::Pred),
        ]
    );
    let vars: Vec<_> = kernel.vars.iter().map(|variable| (variable.name.as_str(), variable.space)).collect();
    assert_eq!(
        vars,
        [
            ("__local_depot0", Space::Local),
            ("_ZZ5scalePfE1s", Space::Shared),
            ("param0", Space::Param),
            ("retval0", Space::Param),
            ("param0@2", Space::Param),
            ("retval0@2", Space::Param),
        ]
    );
}

#[test]
fn lines_of_the_source() {
    let module = sample();
    let kernel = instructions(&module.functions[2]);
    let of = |text: &str| -> &Inst { kernel.iter().find(|inst| inst.to_string().starts_with(text)).unwrap() };
    assert_eq!(of("mov.u64 %SPL").loc, Loc { file: 1, line: 5 });
    assert_eq!(of("mov.f32 %f1").loc, Loc { file: 1, line: 7 });
    // It was inlined at line 9; the prologue before it was not.
    assert_eq!(module.inlining[0].callers, [Loc { file: 1, line: 9 }]);
    // `.loc 1 0 5` says nothing.
    assert_eq!(of("add.f32").loc, Loc { file: 1, line: 7 });
    assert_eq!(
        of("add.f32").ptx_line,
        SAMPLE.lines().position(|line| line.contains("add.f32")).unwrap() as u32 + 1
    );
    assert_eq!(instructions(&module.functions[3])[0].loc, Loc { file: 2, line: 12 });
}

#[test]
fn waits_of_inline_assembly_stay_apart() {
    let module = sample();
    let body = &module.functions[2].body;
    let label = |name: &str| body.iter().position(|stmt| *stmt == Stmt::Label(name.to_owned())).unwrap();
    assert!(
        label("WAIT") < label("DONE") && label("DONE") < label("WAIT@2") && label("WAIT@2") < label("DONE@2")
    );
    let branches: Vec<_> = instructions(&module.functions[2])
        .into_iter()
        .filter(|inst| inst.opcode == "bra")
        .map(|inst| (inst.guard.as_ref().map(|(name, _)| name.as_str()), format!("{:?}", inst.operands[0])))
        .collect();
    let expected = [
        (Some("%p1"), "$L__BB0_2"),
        (Some("P1"), "DONE"),
        (None, "WAIT"),
        (Some("P1@2"), "DONE@2"),
        (None, "WAIT@2"),
        (Some("%p5"), "$L__BB0_4"),
    ];
    assert_eq!(branches, expected.map(|(guard, to)| (guard, format!("Name({to:?})"))));
    let targets = ["$L__BB0_2", "$L__BB0_4"].map(str::to_owned).to_vec();
    assert!(body.contains(&Stmt::BranchTargets("$L_brx_0".to_owned(), targets)));
}

#[test]
fn instructions_print_as_they_stand() {
    let module = sample();
    let squeezed = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    let printed: Vec<_> = instructions(&module.functions[2]).iter().map(|inst| inst.to_string()).collect();
    for line in [
        "@%p1 bra $L__BB0_2;",
        "@!%p2 st.global.f32 [%rd1+4], %f2;",
        "ld.shared.v4.f32 {%f3, %f4, %f5, %f6}, [%rd1+-16];",
        "add.f32 %f2, %f1, 0fBF800000;",
        "call.uni (retval0), twice, (param0);",
        "call (retval0), %rd3, (param0), prototype_1;",
        "shfl.sync.bfly.b32 %r16|%p3, %r5, 16, 31, -1;",
        "vote.sync.any.pred %p5, !%p4, -1;",
        "mbarrier.try_wait.parity.shared::cta.b64 P1, [%r13], %r15;",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r10], [%rd5, {%r8, %r9}], [%r12];",
    ] {
        assert!(printed.iter().any(|text| text == line), "{line}");
        assert!(squeezed(SAMPLE).contains(&squeezed(line)), "{line}");
    }
    // What the text writes otherwise: an offset of 0, and numbers.
    for line in [
        "st.param.b32 [param0], %r1;",
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r12], 19;",
        "elect.sync _|%p4, 4294967295;",
    ] {
        assert!(printed.iter().any(|text| text == line), "{line}");
    }
}
