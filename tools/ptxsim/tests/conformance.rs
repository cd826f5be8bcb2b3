//! The conformance suite in the simulator: every family a test.

use ptxsim::conformance::backend::{Backend, Simulator, check};
use ptxsim::conformance::families::family;
use ptxsim::conformance::recording::{Answer, Header, Recording};
use ptxsim::conformance::replay::replay;
use ptxsim::conformance::{Case, FAMILIES, table};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Failures that are shown.
const SHOWN: usize = 40;

fn run(name: &str) {
    let cases = family(name).expect("a family of the suite").cases();
    assert!(!cases.is_empty(), "{name} has no cases");
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(why) = check(&Simulator, case) {
                        failures.lock().unwrap().push(format!("{}\n    {why}", case.title()));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    let shown = failures[..failures.len().min(SHOWN)].join("\n");
    assert!(failures.is_empty(), "{} of {} cases fail:\n{shown}", failures.len(), cases.len());
}

macro_rules! families {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*
        /// A family without a test of its own would go unnoticed.
        #[test]
        fn every_family_is_tested() {
            let tested = [$(stringify!($name)),*];
            let all: Vec<&str> = ptxsim::conformance::FAMILIES.iter().map(|f| f.name).collect();
            assert_eq!(all, tested);
        }
    };
}

families! { integer logic compare float approximate half convert memory atomic warp matrix mma copy barrier bulk control }

fn recordings() -> Vec<Recording> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    Recording::read_all(&dir).expect("the recordings can be read")
}

/// Every family says in the README whether a card has run it.
#[test]
fn the_readme_has_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(path).expect("the README");
    let wanted = table::markdown(&recordings());
    assert_eq!(
        table::between(&readme),
        Some(wanted.trim_matches('\n')),
        "bring the README up to date with `ptxsim conformance --table --replay tools/ptxsim/conformance`"
    );
}

/// The simulator's answers replayed against itself, then with one that differs and one that nobody knows; and, with the
/// same rules, against every card that has been recorded.
#[test]
fn recordings_are_replayed() {
    let cases = family("control").expect("a family").cases();
    let answers = cases.iter().map(|c| Answer::new(c, &Simulator.run(c))).collect();
    let header = Header {
        card: "simulator".into(),
        capability: "9.0".into(),
        driver: "13.0".into(),
        date: "2026-01-01".into(),
    };
    let mut recording = Recording { header, answers };
    let result = replay(&recording, &cases, &[]);
    assert!(result.passed() && result.same == cases.len(), "{result:?}");
    let mut wrong = cases[0].expected.clone();
    wrong[0] ^= 1;
    recording.answers[0] = Answer::new(&cases[0], &Ok(wrong));
    recording.answers[1].hash = "0".repeat(64);
    let result = replay(&recording, &cases, &[]);
    assert_eq!((result.different.len(), result.stale.len(), result.missing.len()), (1, 1, 1), "{result:?}");
    let all: Vec<Case> = FAMILIES.iter().flat_map(|f| f.cases()).collect();
    for recording in recordings() {
        let result = replay(&recording, &all, &[]);
        assert!(result.passed(), "{}: {:?} {:?}", recording.header.card, result.different, result.stale);
    }
}

/// A comparison that overlooks a wrong bit would let everything pass: bits of each part are flipped.
#[test]
fn a_wrong_bit_is_noticed() {
    let mut names = HashSet::new();
    for case in FAMILIES.iter().flat_map(|f| f.cases()) {
        assert!(names.insert(case.title()), "two cases are called {}", case.title());
        let mut start = 0;
        for part in &case.parts {
            let defined = |i: &usize| case.defined.is_empty() || case.defined[*i] == 0xff;
            let places: Vec<usize> = (start..start + part.bytes).filter(defined).take(256).collect();
            start += part.bytes;
            assert!(!places.is_empty(), "{}: a part is not defined at all", case.title());
            // A bit of a NaN may be wrong; one of the next number may not.
            let noticed = places.iter().any(|&at| {
                let mut output = case.expected.clone();
                output[at] ^= 1;
                case.compare(&output).is_some()
            });
            assert!(noticed || !part.comparison.exact(), "{}: part before byte {start}", case.title());
        }
    }
}
