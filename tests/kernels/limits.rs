//! Counters on shapes that fill the kernels' tiles, held against limits. Odd shapes waste what they must; these must waste
//! nothing.

use crate::cases::{DTYPES, Ran, run, with_device};
use crate::counters::{Bytes, Waves};
use crate::tiles;
use dtk::base::DType;
use dtk::ops::conv2d::Conv2d;
use dtk::ops::linear::Linear;
use dtk::ops::{Case, Input};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Most passes through shared memory in a main loop, of those without bank conflicts.
const MAIN_LOOP_WAVES: f64 = 1.1;
/// Least share of the bytes moved by loads from global memory that somebody asked for.
const LOAD_EFFICIENCY: f64 = 0.9;
/// Most operations of tensor cores, of those that the definition needs.
const TENSOR_FLOPS: f64 = 1.1;
/// Passes that are products, and so have the operations of the definition.
const PRODUCTS: [&str; 3] = ["_fwd", "_dgrad", "_wgrad"];
/// Kernels that give depthwise convolutions, whose products have no common operand, to tensor cores all the same: they
/// multiply with many zeros, and are bound by memory.
const BANDED: &str = "depthwise";

/// Cases whose sizes are multiples of every tile.
pub fn cases() -> Vec<(&'static str, Case)> {
    let conv = |label: &str, op: Conv2d, x: [usize; 4], co: usize, k: usize| {
        let w = [co, k, k, x[3] / op.groups];
        let inputs = vec![Input::normal("x", x), Input::normal("w", w), Input::normal("b", [co])];
        ("conv2d", Case::new(format!("tiles: {label}"), op, inputs))
    };
    let linear = |rows: usize, features: usize, out: usize| {
        let inputs = vec![
            Input::normal("x", [rows, features]),
            Input::normal("w", [out, features]),
            Input::normal("b", [out]),
        ];
        ("linear", Case::new(format!("tiles: {rows} x {features} -> {out}"), Linear {}, inputs))
    };
    let depthwise = Conv2d { stride: [1, 1], pad: [3, 3], dilation: [1, 1], groups: 64 };
    vec![
        conv("3x3", Conv2d::square(1, 1), [1, 16, 16, 256], 256, 3),
        conv("3x3, small map", Conv2d::square(1, 1), [2, 8, 8, 256], 256, 3),
        conv("3x3, stride 2", Conv2d::square(2, 1), [1, 32, 32, 256], 256, 3),
        conv("1x1", Conv2d::square(1, 0), [2, 16, 16, 256], 256, 1),
        conv("depthwise 7x7", depthwise, [1, 16, 16, 64], 64, 7),
        linear(256, 256, 256),
    ]
}

/// A case, its op, the type of its operands, and what it launched.
pub type Tiled = (Case, &'static str, DType, Vec<Ran>);

/// Runs the cases; `None` without a device.
pub fn compute() -> Option<Vec<Tiled>> {
    with_device(|gpu| {
        let jobs = DTYPES.iter().flat_map(|&d| cases().into_iter().map(move |(op, case)| (op, case, d)));
        let jobs = jobs.filter(|(_, case, _)| case.op.has_kernel());
        jobs.map(|(op, case, dtype)| {
            let ran = run(gpu, op, &case, dtype);
            (case, op, dtype, ran)
        })
        .collect()
    })
}

/// As [`compute`], once.
pub fn ran() -> Option<&'static [Tiled]> {
    static RAN: OnceLock<Option<Vec<Tiled>>> = OnceLock::new();
    RAN.get_or_init(compute).as_deref()
}

/// What is wrong with the launches of one kernel entry in a case; `useful` are the operations of one pass.
fn violations(entry: &str, launches: &[&Ran], useful: u64) -> Vec<String> {
    let counters = || launches.iter().filter_map(|r| r.counters.as_ref());
    let waves = counters().fold(Waves::default(), |a, c| Waves {
        real: a.real + c.main_loop.real,
        ideal: a.ideal + c.main_loop.ideal,
    });
    let loads = counters().fold(Bytes::default(), |a, c| Bytes {
        useful: a.useful + c.loads.useful,
        moved: a.moved + c.loads.moved,
    });
    let mut wrong = Vec::new();
    if waves.factor() > MAIN_LOOP_WAVES {
        wrong.push(format!("{:.2} passes through shared memory for 1 in the main loop", waves.factor()));
    }
    if loads.efficiency() < LOAD_EFFICIENCY {
        wrong.push(format!("{:.0} % of the bytes loaded are used", 100.0 * loads.efficiency()));
    }
    let narrow: std::collections::BTreeSet<&String> = counters().flat_map(|c| &c.narrow).collect();
    if !narrow.is_empty() {
        wrong.push(format!("accesses to global memory of less than 16 bytes: {narrow:?}"));
    }
    // Every case runs twice.
    let tensor = counters().map(|c| c.tensor_flops).sum::<u64>() as f64 / 2.0 / useful.max(1) as f64;
    let is_product = PRODUCTS.iter().any(|p| entry.ends_with(p));
    if is_product && !entry.contains(BANDED) && tensor > TENSOR_FLOPS {
        wrong.push(format!("{tensor:.2} operations of tensor cores for 1"));
    }
    wrong
}

/// What is wrong with the launches of one case.
fn violations_of(what: &str, ran: &[Ran], useful: u64) -> Vec<String> {
    let mut entries: BTreeMap<&str, Vec<&Ran>> = BTreeMap::new();
    for r in ran {
        entries.entry(&r.kernel.entry).or_default().push(r);
    }
    let found = entries.into_iter().flat_map(|(entry, launches)| {
        let found = violations(entry, &launches, useful);
        found.into_iter().map(move |text| format!("{entry}: {text}"))
    });
    found.map(|text| format!("{what}, {text}")).collect()
}

#[test]
fn counters_are_within_their_limits_where_shapes_fill_the_tiles() {
    let Some(all) = ran() else { return };
    let mut wrong: Vec<String> = Vec::new();
    for (case, op, dtype, ran) in all {
        wrong.extend(violations_of(
            &format!("{op} `{}` {dtype}", case.label),
            ran,
            case.op.flops(&case.shapes()),
        ));
    }
    for (tile, launched) in tiles::ran().unwrap_or_default() {
        for (case, useful, ran) in &launched.tiled {
            wrong.extend(violations_of(&format!("tile {tile}, `{case}`"), ran, *useful));
        }
    }
    assert!(wrong.is_empty(), "{} limits do not hold:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_exceeds_a_limit_is_told() {
    use crate::cases::Name;
    use crate::counters::Counters;
    let ran = |counters: Counters| Ran {
        case: String::new(),
        kernel: Name { source: String::new(), entry: String::new(), defines: String::new() },
        threads: 32,
        registers: 32,
        counters: Some(counters),
    };
    let good = Counters {
        main_loop: Waves { real: 105, ideal: 100 },
        loads: Bytes { useful: 95, moved: 100 },
        tensor_flops: 200,
        ..Counters::default()
    };
    let of = |c: Counters, entry: &str| violations(entry, &[&ran(c)], 100).len();
    assert_eq!(of(good.clone(), "conv2d_fwd"), 0);
    let bad = [
        Counters { main_loop: Waves { real: 120, ideal: 100 }, ..good.clone() },
        Counters { loads: Bytes { useful: 80, moved: 100 }, ..good.clone() },
        Counters { tensor_flops: 230, ..good.clone() },
        Counters { narrow: vec!["x.cu:1 (4 bytes)".into()], ..good },
    ];
    for c in bad {
        assert_eq!(of(c.clone(), "conv2d_fwd"), 1, "{c:?}");
    }
}
