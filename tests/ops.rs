//! Every op of the registry against its f64 reference and central differences; one test per op, named after it.

use dtk::ops::{self, check};

fn check_op(name: &str) {
    let entry = ops::REGISTRY.iter().find(|e| e.name == name).expect("in the registry");
    let cases = (entry.cases)();
    let small: Vec<_> = cases.iter().filter(|c| !c.bench).collect();
    assert!(!small.is_empty(), "{name} has no test case");
    for case in small {
        for seed in [1, 2] {
            if let Err(e) = check::check(case, seed) {
                panic!("{e}");
            }
        }
    }
}

macro_rules! tests {
    ($($op:ident,)*) => {
        $(#[test]
        fn $op() {
            check_op(stringify!($op));
        })*
    };
}
dtk::for_each_op!(tests);
