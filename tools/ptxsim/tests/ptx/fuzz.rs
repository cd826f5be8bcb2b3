//! Text that is not PTX, or no longer: an error with a place in the text, soon, and never a panic.

use super::sample::SAMPLE;
use super::{HEADER, parse};
use proptest::prelude::*;
use ptxsim::ptx::ast::Stmt;
use std::time::{Duration, Instant};

/// Words that mean something to the parser.
const WORDS: [&str; 86] = [
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ",",
    ";",
    ":",
    "+",
    "-",
    "*",
    "/",
    "%",
    "<",
    ">",
    "=",
    "!",
    "&",
    "|",
    "^",
    "~",
    "?",
    "@",
    "<<",
    "&&",
    "//",
    "/*",
    "*/",
    "\"",
    "\"a\"",
    "\\",
    "#",
    "_",
    "0",
    "1",
    "-1",
    "0x7F",
    "0f3F800000",
    "0d3FF0000000000000",
    "1.5",
    "99999999999999999999",
    "18446744073709551615",
    "0xFF",
    "0xFF00",
    "U",
    "%r1",
    "%p2",
    "%tid",
    "x",
    "y2",
    "$L",
    "WARP_SZ",
    "generic",
    "call",
    "bra",
    "brx",
    "mov",
    "ret",
    ".reg",
    ".b32",
    ".pred",
    ".v4",
    ".u64",
    ".global",
    ".shared",
    ".param",
    ".align",
    ".ptr",
    ".extern",
    ".entry",
    ".func",
    ".maxntid",
    ".loc",
    ".file",
    ".section",
    ".pragma",
    ".alias",
    ".attribute",
    ".branchtargets",
    ".callprototype",
    ".version",
    ".target",
    ".idx",
    "\u{e9}",
    "\0",
];

/// Parses, and checks whatever comes of it.
fn check(text: &str) -> Result<(), TestCaseError> {
    match parse(text) {
        Ok(module) => {
            for stmt in module.functions.iter().flat_map(|function| &function.body) {
                if let Stmt::Inst(inst) = stmt {
                    let printed = inst.to_string();
                    let again = parse(&format!("{HEADER}.entry k {{ {printed} }}"));
                    let Ok(again) = again else {
                        return Err(TestCaseError::fail(format!("{printed}: {again:?}")));
                    };
                    let [Stmt::Inst(again)] = again.functions[0].body.as_slice() else {
                        return Err(TestCaseError::fail(printed));
                    };
                    prop_assert_eq!(again.to_string(), printed);
                }
            }
        }
        Err(error) => {
            let line = text.split('\n').nth(error.line as usize - 1);
            let Some(line) = line else { return Err(TestCaseError::fail(format!("{error} in {text:?}"))) };
            prop_assert!(error.column as usize <= line.chars().count() + 1, "{} in {:?}", error, text);
            prop_assert!(error.column > 0 && !error.found.is_empty() && !error.expected.is_empty());
        }
    }
    Ok(())
}

/// The sample cut into words and what is between them; joined, it is the sample.
fn pieces() -> Vec<&'static str> {
    let word = |c: char| c.is_ascii_alphanumeric() || "_$%.".contains(c);
    let mut pieces = Vec::new();
    let mut rest = SAMPLE;
    while let Some(first) = rest.chars().next() {
        let end = if word(first) { rest.find(|c| !word(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
        let (piece, behind) = rest.split_at(end);
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

#[derive(Clone, Debug)]
enum Mutation {
    Delete(usize),
    Duplicate(usize),
    Swap(usize, usize),
    Replace(usize, &'static str),
    Cut(usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = || 0_usize..10_000;
    prop_oneof![
        at().prop_map(Mutation::Delete),
        at().prop_map(Mutation::Duplicate),
        (at(), at()).prop_map(|(a, b)| Mutation::Swap(a, b)),
        (at(), prop::sample::select(WORDS.to_vec())).prop_map(|(at, word)| Mutation::Replace(at, word)),
        at().prop_map(Mutation::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), header in any::<bool>()) {
        let text = String::from_utf8_lossy(&bytes);
        check(&format!("{}{text}", if header { HEADER } else { "" }))?;
    }

    #[test]
    fn soup(
        words in prop::collection::vec((prop::sample::select(WORDS.to_vec()), prop::sample::select(vec!["", " ", "\n"])), 0..60),
        frame in 0..3,
    ) {
        let soup: String = words.iter().flat_map(|&(word, blank)| [word, blank]).collect();
        check(&match frame {
            0 => soup,
            1 => format!("{HEADER}{soup}"),
            _ => format!("{HEADER}.entry k {{ {soup}"),
        })?;
    }

    #[test]
    fn mutations(mutations in prop::collection::vec(mutation(), 1..4)) {
        let mut pieces = pieces();
        for mutation in mutations {
            let length = pieces.len().max(1);
            if pieces.is_empty() {
                break;
            }
            match mutation {
                Mutation::Delete(at) => {
                    pieces.remove(at % length);
                }
                Mutation::Duplicate(at) => pieces.insert(at % length, pieces[at % length]),
                Mutation::Swap(a, b) => pieces.swap(a % length, b % length),
                Mutation::Replace(at, word) => pieces[at % length] = word,
                Mutation::Cut(at) => pieces.truncate(at % length),
            }
        }
        check(&pieces.concat())?;
    }
}

#[test]
fn the_sample_is_its_pieces() {
    assert_eq!(pieces().concat(), SAMPLE);
    check(SAMPLE).unwrap();
}

/// Inputs that a careless parser answers with a stack overflow or in quadratic time. Each is some megabytes.
#[test]
fn much_of_the_same() {
    let body = |text: String| format!("{HEADER}.entry k {{{text}");
    let inputs = [
        body("{".repeat(1_000_000)),
        body(format!("mov.b32 {}", "[".repeat(1_000_000))),
        body(format!("mov.b32 {}", "{".repeat(1_000_000))),
        body(format!("mov.b32 {}", "(".repeat(1_000_000))),
        body(format!("mov.b32 {}", "!".repeat(1_000_000))),
        body(format!("mov.b32 {}", "a|".repeat(1_000_000))),
        body(format!("call {}", "(".repeat(1_000_000))),
        body(format!("mov.b32 1{}; }}", "+1".repeat(1_000_000))),
        body(format!(
            "{}mov.b32 t, t;}}",
            "{ .reg .b32 t<9>; mov.b32 t1, t11111; L: @p bra L; }\n".repeat(40_000)
        )),
        body(format!("{}{}", "{ .reg .b32 t; ".repeat(63), "mov.b32 t, u;".repeat(100_000))),
        body((0..40_000).map(|n| format!("{{ L{n}: bra L{n}; }}\n")).collect()),
        body((0..40_000).map(|n| format!(".reg .b32 t{n}_<9>;\n")).collect()),
        body(format!("mov.{};", "a".repeat(3_000_000))),
        format!("{HEADER}.global .u32 x = {}", "{".repeat(1_000_000)),
        format!("{HEADER}.global .u32 x{}", "[1]".repeat(1_000_000)),
        format!("{HEADER}.global .b8 x[1000000000][1000000000] = {{{}{{1}}}};", "{},".repeat(500_000)),
        format!("{HEADER}.global .f64 x = {}.5;", "1".repeat(1_000_000)),
        format!("{HEADER}{}", "/* */ // x\n".repeat(300_000)),
        format!("{HEADER}{}", "/*".repeat(1_000_000)),
    ];
    for text in inputs {
        let start = Instant::now();
        let outcome = parse(&text).map(|module| module.functions.len());
        // The slowest takes a fifth of a second; quadratic time would be hours.
        let took = start.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?} {:?}: {outcome:?}", &text[..100.min(text.len())]);
    }
}
