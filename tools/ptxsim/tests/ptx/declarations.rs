//! Directives, variables, initialisers, heads of functions.

use super::{HEADER, function, module, parse, refused};
use ptxsim::ptx::ast::{Init, Space, Stmt, Ty, Variable};

/// The only variable of a module.
fn variable(text: &str) -> Variable {
    let mut module = module(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(module.vars.len(), 1, "{text}");
    module.vars.remove(0)
}

/// Its plain bytes, which are all it has.
fn bytes(text: &str) -> Vec<u8> {
    let variable = variable(text);
    match variable.init.as_slice() {
        [Init::Bytes(bytes)] => bytes.clone(),
        other => panic!("{text}: {other:?}"),
    }
}

fn address(symbol: &str, addend: i64, bytes: u32) -> Init {
    Init::Address { symbol: symbol.to_owned(), addend, bytes }
}

#[test]
fn the_header_comes_first() {
    let module = parse(".version 7.8 // old\n.target sm_70, texmode_unified, debug").unwrap();
    assert_eq!((module.version, module.target.as_str(), module.address_size), ((7, 8), "sm_70", 32));
    for (text, expected) in [
        ("", "`.version`"),
        (".target sm_80", "`.version`"),
        (".version 9 .target sm_80", "a version such as `9.0`"),
        (".version 9.0", "`.target`"),
        (".version 9.0 .target .sm_80", "an architecture such as `sm_80`"),
        (".version 9.0 .target sm_80 .address_size x", "32 or 64"),
        (".version 9.0 .target sm_80 .target sm_90", "a directive of a module"),
        (".version 9.0 .target sm_80 mov", "a directive"),
    ] {
        assert_eq!(refused(parse(text)).0, expected, "{text}");
    }
}

#[test]
fn sizes_and_alignments() {
    for (text, ty, align, size) in [
        (".global .f32 x;", Ty::F32, 4, Some(4)),
        (".global .align 16 .b8 x[3][5];", Ty::B8, 16, Some(15)),
        (".const .v4 .f32 x[2];", Ty::F32, 16, Some(32)),
        (".shared .v2 .u16 x;", Ty::U16, 4, Some(4)),
        (".global .align 1 .b64 x[0x10][2U][WARP_SZ];", Ty::B64, 1, Some(8192)),
        (".extern .shared .align 16 .b8 x[];", Ty::B8, 16, None),
        (".extern .const .u32 x[][4];", Ty::U32, 4, None),
        (".visible .weak .common .global .attribute(.managed) .b128 x;", Ty::B128, 16, Some(16)),
        (".extern .global .b8 x[0];", Ty::B8, 1, None),
        (".global .u8 x[4294967296][2147483648];", Ty::U8, 1, Some(1 << 63)),
    ] {
        let variable = variable(text);
        assert_eq!((variable.ty, variable.align, variable.bytes), (ty, align, size), "{text}");
        assert_eq!(variable.external, text.contains("extern"), "{text}");
    }
    let two = module(".shared .align 8 .b8 a[8], b;").unwrap().vars;
    assert_eq!(
        (two[1].name.as_str(), two[1].align, two[1].bytes, two[1].space),
        ("b", 8, Some(1), Space::Shared)
    );
    for (text, expected) in [
        (".global .u8 x[4294967296][4294967296];", "a size that fits 64 bits"),
        (".global .u8 x[-1];", "a number of elements"),
        (".global .u8 x[];", "a size, an initialiser or `.extern`"),
        (".global .u8 x[0];", "a size, an initialiser or `.extern`"),
        (".global .u8 x[] = {};", "a size, an initialiser or `.extern`"),
        (".global .u8 x[2][];", "a number of elements"),
        (".global .u8 x[2][0];", "a number of elements"),
        (".global .u8 x[1.5];", "a number of elements"),
        (".global .align 3 .u8 x;", "a power of two"),
        (".global .align 0 .u8 x;", "a power of two"),
        (".global .pred x;", "a type of variables"),
        (".global .texref x;", "a type of variables"),
        (".global x;", "a type"),
        (".global .u8 .u8 x;", "a name behind the type"),
        (".global .u8 x", "`;`"),
        (".local .u8 x;", "a directive of a module"),
        (".reg .u8 x;", "a directive of a module"),
        (".global .u8 x; .const .u8 x;", "a name that the module does not define twice"),
    ] {
        assert_eq!(refused(module(text)).0, expected, "{text}");
    }
    let dimensions = format!(".global .u8 x{};", "[1]".repeat(17));
    assert_eq!(refused(module(&dimensions)).0, "at most 16 dimensions");
}

#[test]
fn a_definition_replaces_a_declaration() {
    let merged =
        module(".extern .global .u8 x; .global .u8 x = 3; .func f; .func f { ret; } .func g; .alias g, f;")
            .unwrap();
    assert_eq!((merged.vars.len(), merged.vars[0].external), (1, false));
    let functions: Vec<_> = merged.functions.iter().map(|f| (f.name.as_str(), f.declaration)).collect();
    assert_eq!(functions, [("f", false), ("g", true)]);
    assert_eq!(merged.aliases, [("g".to_owned(), "f".to_owned())]);
    assert_eq!(refused(module(".func f { }\n.func f { }")).1, "`f`");
}

#[test]
fn integers_in_initialisers() {
    assert_eq!(bytes(".global .u32 x = 0x01020304;"), [4, 3, 2, 1]);
    assert_eq!(bytes(".global .b8 x[3] = {255, -1, -128};"), [255, 255, 128]);
    assert_eq!(bytes(".global .s16 x = -2;"), [254, 255]);
    assert_eq!(bytes(".const .u64 x = 18446744052234715256;"), 18446744052234715256_u64.to_le_bytes());
    assert_eq!(bytes(".global .b16 x[2] = {WARP_SZ << 4, ~0};"), [0, 2, 255, 255]);
    assert_eq!(bytes(".global .b128 x = -1;"), [255; 16]);
    assert_eq!(bytes(".global .u8 x[3] = {256, -129, 0xABCD};"), [0, 127, 0xcd]);
    for text in ["f32 x = 1", "f64 x = 0", "f16 x = 0x3C00", "u32 x = 1.0", "u32 x = 0f3F800000"] {
        let (expected, _) = refused(module(&format!(".global .{text};")));
        assert!(expected.starts_with("a number of type"), "{text}: {expected}");
    }
    assert_eq!(refused(module(".shared .u32 x = 1;")).0, "no initialiser here");
    assert_eq!(refused(module(".extern .global .u32 x = 1;")).0, "no initialiser here");
}

#[test]
fn floats_in_initialisers() {
    let one = 1.0_f32.to_le_bytes();
    for value in ["0f3F800000", "0d3FF0000000000000", "1.0", "10e-1", "0.5*2.0"] {
        assert_eq!(bytes(&format!(".global .f32 x = {value};")), one, "{value}");
        assert_eq!(bytes(&format!(".global .f64 x = {value};")), 1.0_f64.to_le_bytes(), "{value}");
    }
    assert_eq!(bytes(".global .f32 x[2] = {0.0, -.5};"), [0, 0, 0, 0, 0, 0, 0, 0xbf]);
    assert_eq!(bytes(".global .b32 x = 0f3F800000;"), one);
    assert_eq!(bytes(".global .b64 x = 0f3F800000;"), 1.0_f64.to_le_bytes());
    assert_eq!(bytes(".global .b16 x[2] = {0x3C00, 15360};"), [0, 0x3c, 0, 0x3c]);
}

#[test]
fn arrays_in_initialisers() {
    let open = variable(".global .s32 x[][2] = {{-1, 0}, {0, -1}, {1}};");
    assert_eq!(open.bytes, Some(24));
    let text = ".global .u8 x[3][2][2] = {{{1}, {2, 3}}, {}, {{4, 5}, {6}}};";
    assert_eq!(bytes(text), [1, 0, 2, 3, 0, 0, 0, 0, 4, 5, 6]);
    assert_eq!(variable(text).bytes, Some(12));
    assert_eq!(bytes(".global .v2 .u8 x[2] = {{1}, {2, 3}};"), [1, 0, 2, 3]);
    assert_eq!(bytes(".global .v4 .u8 x = {1, 2, 3, 4};"), [1, 2, 3, 4]);
    assert_eq!(variable(".global .u16 x[] = {1, 2, 3};").bytes, Some(6));
    let many = "`}`: there are more values than the array has elements";
    for (text, expected) in [
        ("u8 x[2] = {1, 2, 3}", many),
        ("u8 x[2][2] = {{1, 2, 3}}", many),
        ("u8 x[2][2] = {{1}, {2}, {}}", many),
        ("u8 x[2][2] = {1, {2}}", "`{`"),
        ("u8 x[2][2] = {{1}, 2}", "`{`"),
        ("u8 x[2] = {{1}, 2}", "a constant"),
        ("u8 x = {1}", "a constant"),
        ("u8 x[2] = 1", "`{`"),
        ("u8 x[2] = {1 2}", "`,`"),
        ("u8 x[3][16777218] = {{1}, {2}}", "at most 16777216 zero bytes left unwritten in initialisers"),
    ] {
        assert_eq!(refused(module(&format!(".global .{text};"))).0, expected, "{text}");
    }
    // Of a whole module, not of each variable.
    let half = |name| format!(".global .u8 {name}[2][16000000] = {{{{1}}, {{2}}}};");
    assert!(module(&half("a")).is_ok());
    assert!(module(&(half("a") + &half("b"))).is_err());
    // Zeros at the end cost nothing.
    assert_eq!(bytes(".global .u8 x[1000000000000] = {1};"), [1]);
}

#[test]
fn addresses_in_initialisers() {
    let init = |text: &str| {
        module(&format!(".global .u8 tab[9]; .global .{text};")).map(|module| module.vars[1].init.clone())
    };
    assert_eq!(init("u64 x = tab").unwrap(), [address("tab", 0, 8)]);
    assert_eq!(init("u32 x = tab + -4").unwrap(), [address("tab", -4, 4)]);
    assert_eq!(init("u64 x = generic(tab)+2*4").unwrap(), [address("tab", 8, 8)]);
    // A variable may be called so.
    assert_eq!(init("u64 x = generic").unwrap(), [address("generic", 0, 8)]);
    let mixed = init("b64 x[4] = {1, generic(tab), 2}").unwrap();
    let number = |value: u64| Init::Bytes(value.to_le_bytes().to_vec());
    assert_eq!(mixed, [number(1), address("tab", 0, 8), number(2)]);
    let masks = |count: u32| {
        (0..count).map(|byte| format!("{:#X}(tab+1)", 0xff_u64 << (8 * byte))).collect::<Vec<_>>().join(",")
    };
    assert_eq!(init(&format!("u8 x[8] = {{{}}}", masks(8))).unwrap(), [address("tab", 1, 8)]);
    assert_eq!(
        init(&format!("b8 x[9] = {{{}, {}, 7}}", masks(4), masks(4))).unwrap(),
        [address("tab", 1, 4), address("tab", 1, 4), Init::Bytes(vec![7])]
    );
    let missing = "the other bytes of the address before it";
    let order = "the bytes of an address in order";
    for (text, expected) in [
        (format!("u8 x[8] = {{{}}}", masks(7)), missing),
        (format!("u8 x[8] = {{{}, 1}}", masks(3)), missing),
        (format!("u8 x[2][16] = {{{{{}}}, {{1}}}}", masks(3)), missing),
        ("u8 x[8] = {0xFF00(tab)}".to_owned(), order),
        ("u8 x[8] = {0xFF(tab), 0xFF0000(tab)}".to_owned(), order),
        ("u8 x[8] = {0xFF(tab), 0xFF00(x)}".to_owned(), order),
        ("u8 x[8] = {0xFE(tab)}".to_owned(), "a mask of one byte, in an array of bytes"),
        ("u16 x[8] = {0xFF(tab)}".to_owned(), "a mask of one byte, in an array of bytes"),
        ("u16 x = tab".to_owned(), "a number: an address takes 32 or 64 bits"),
        ("u64 x = tab+1.5".to_owned(), "an integer"),
    ] {
        assert_eq!(refused(init(&text)).0, expected, "{text}");
    }
}

#[test]
fn heads_of_functions() {
    let head = ".visible .func .attribute(.unified_func(1, 2)) (.param .align 8 .b8 r[16], .param .f32 s) f (.param .b32 a, .param .align 4 .b8 b[]) .noreturn ;";
    let function = module(head).unwrap().functions.remove(0);
    assert!(function.declaration && !function.kernel);
    assert_eq!((function.returns.len(), function.params[1].bytes), (2, None));
    let kernel = module(
        ".entry k .reqntid 8, 4 .maxntid 64 .maxnreg 32 .maxnctapersm 3 .maxclusterrank 8 .pragma \"a\", \"b\"; .explicitcluster { ret; }",
    )
    .unwrap()
    .functions
    .remove(0);
    assert_eq!((kernel.reqntid, kernel.maxntid), (Some([8, 4, 1]), Some([64, 1, 1])));
    assert_eq!((kernel.maxnreg, kernel.minnctapersm, kernel.cluster), (Some(32), Some(3), Some([0; 3])));
    let sized = module(
        ".entry k .explicitcluster .reqnctapercluster 2, 1, 1 { } .entry l .reqnctapercluster 4 .explicitcluster ;",
    );
    let clusters: Vec<_> = sized.unwrap().functions.iter().map(|kernel| kernel.cluster).collect();
    assert_eq!(clusters, [Some([2, 1, 1]), Some([4, 1, 1])]);
    for (text, expected) in [
        (".entry k (.reg .u32 a) { }", "`.param` (parameters in registers are not supported)"),
        (".entry k (.param .u32 a .param .u32 b) { }", "`,`"),
        (".entry k (.param .u32 a, .param .u32 a) { }", "a name that the scope does not declare twice"),
        (".entry k (.param .b8 a[]) { }", "a parameter with a size"),
        (".entry k .fast { }", "a directive of a function, its body or `;`"),
        (".entry k ret;", "`{`"),
        (".entry k { ", "an instruction, a directive or `}`"),
        (".entry (.param .u32 a) k { }", "the name of a function"),
        (".func (.param .b32 r) .noreturn f;", "the name of a function"),
    ] {
        assert_eq!(refused(module(text)).0, expected, "{text}");
    }
}

#[test]
fn directives_that_say_nothing_to_the_machine() {
    let text = ".pragma \"x\"; .section .debug_info { .b8 1,-2\nL: .b64 L+4, .debug_str\n } .loc 1 2 3\n.file 3 \"f\"\n.func f { .loc 3 1 1, function_name L+12, inlined_at 3 4 5 ret; }";
    let module = module(text).unwrap();
    assert_eq!(module.files, [(3, "f".to_owned())]);
    for (text, expected) in [
        (".section .debug_info { .b8 1", "`}` at the end of the section"),
        (".section .debug_info { { } }", "`}` at the end of the section"),
        (".section { }", "the name of a section"),
        (".pragma x;", "a pragma in quotes"),
        (".file \"x\"", "the index of a file"),
        (".file 1 x", "a path in quotes"),
        (".loc 1 2 3, inlined_by 1 2 3", "`function_name` or `inlined_at`"),
        (".alias f g;", "`,`"),
        (".global .attribute(.managed .u32 x;", "`)`"),
    ] {
        assert_eq!(refused(parse(&format!("{HEADER}{text}"))).0, expected, "{text}");
    }
}

#[test]
fn prototypes() {
    let body = "p: .callprototype (.param .align 4 .b8 _[20]) _ (.param .b64 _, .param .u8 _) .noreturn;\nq: .callprototype _ ();\nr: .callprototype _;";
    let function = function(body).unwrap();
    let sizes: Vec<_> = function
        .body
        .iter()
        .map(|stmt| match stmt {
            Stmt::CallPrototype { name, returns, params } => {
                let bytes =
                    |list: &[Variable]| list.iter().map(|variable| variable.bytes).collect::<Vec<_>>();
                (name.as_str(), bytes(returns), bytes(params))
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        sizes,
        [("p", vec![Some(20)], vec![Some(8), Some(1)]), ("q", vec![], vec![]), ("r", vec![], vec![])]
    );
}
