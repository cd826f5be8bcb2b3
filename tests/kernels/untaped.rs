//! The operations without a tape: the check of each, on the device.

use crate::cases::{Ran, launched, with_device};
use dtk::ops::untaped::UNTAPED;
use std::sync::OnceLock;

/// All that the check of an operation launches; computed once. `None` without a device.
pub fn of(name: &'static str) -> Option<&'static [Ran]> {
    static RESULTS: [OnceLock<Option<Vec<Ran>>>; UNTAPED.len()] = [const { OnceLock::new() }; UNTAPED.len()];
    let index = UNTAPED.iter().position(|e| e.name == name).expect("in the list");
    let run = || with_device(|gpu| launched(gpu, name, || (UNTAPED[index].check)(gpu)));
    RESULTS[index].get_or_init(run).as_deref()
}

/// All that all of them launch.
pub fn all() -> Option<Vec<&'static Ran>> {
    let all: Option<Vec<&'static [Ran]>> = UNTAPED.iter().map(|e| of(e.name)).collect();
    Some(all?.into_iter().flatten().collect())
}

macro_rules! tests {
    ($($name:ident,)*) => {
        $(#[test]
        fn $name() {
            let Some(ran) = of(stringify!($name)) else { return };
            for v in (dtk::ops::untaped::$name::variants)() {
                let runs = |r: &Ran| r.kernel.entry == v.entry && r.kernel.defines == v.defines.to_string();
                assert!(ran.iter().any(runs), "the check does not run {} {}", v.entry, v.defines);
            }
        })*
    };
}
dtk::for_each_untaped!(tests);
