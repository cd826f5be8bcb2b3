//! Cost of single warp accesses to shared memory: finding the pattern, checking, recording, moving the bytes.

use criterion::{Criterion, criterion_group, criterion_main};
use ptxsim::check::Findings;
use ptxsim::mem::order::OrderState;
use ptxsim::mem::pattern::{By, Class, Key, Offsets, Patterns, Ways};
use ptxsim::mem::report::{Access, Reporter};
use ptxsim::mem::shared::SharedMemory;
use std::hint::black_box;

struct Bench {
    patterns: Patterns,
    ways: Ways,
    order: OrderState,
    shared: SharedMemory,
    findings: Findings,
}

impl Bench {
    fn new() -> Bench {
        let mut order = OrderState::new();
        order.new_block(8);
        let mut shared = SharedMemory::new(32768, 8, false);
        shared.new_block(false);
        Bench {
            patterns: Patterns::new(),
            ways: Ways::default(),
            order,
            shared,
            findings: Findings::default(),
        }
    }

    #[inline(never)]
    fn access(&mut self, warp: u32, width: u32, offsets: &Offsets, base: u32, write: bool) {
        let key = Key::new(Class::Shared, By::Lane, u64::from(base), width, u32::MAX);
        let index = match self.patterns.find(&mut self.ways, key, offsets) {
            Some(index) => index,
            None => self.patterns.insert(&mut self.ways, key, offsets),
        };
        let pattern = self.patterns.get(index);
        assert!(self.shared.contains(base, pattern));
        let access = Access { site: 1, pc: 1, warp, ..Access::default() };
        let place = |_: u32| String::new();
        let reporter = &mut Reporter {
            findings: &mut self.findings,
            block: 0,
            index: [0; 3],
            grid: [1; 3],
            places: &place,
        };
        if write {
            self.shared.write(&self.order, &access, base, pattern, &|_, _| None, reporter);
        } else {
            self.shared.read(&self.order, &access, base, pattern, reporter);
        }
    }
}

fn shared(c: &mut Criterion) {
    let offsets = |f: &dyn Fn(i32) -> i32| -> Offsets { std::array::from_fn(|l| f(l as i32)) };
    let cases: [(&str, u32, Offsets); 7] = [
        ("contiguous", 4, offsets(&|l| 4 * l)),
        ("broadcast", 4, offsets(&|_| 0)),
        ("two rows", 4, offsets(&|l| 4 * (l % 16) + 256 * (l / 16))),
        ("stride 33", 4, offsets(&|l| 132 * l)),
        ("v4 contiguous", 16, offsets(&|l| 16 * l)),
        ("v4 of 8", 16, offsets(&|l| 16 * (l % 8))),
        ("v4 of 2", 16, offsets(&|l| 16 * (l / 16))),
    ];
    for (name, width, o) in &cases {
        for write in [false, true] {
            let mut b = Bench::new();
            for at in (0..32768 - 8192).step_by(128) {
                b.access(0, *width, o, at, true);
                b.order.full_barrier();
            }
            b.findings = Findings::default();
            let what = if write { "store" } else { "load" };
            let mut at = 0;
            c.bench_function(&format!("shared {what}, {name}"), |bench| {
                bench.iter(|| {
                    at = (at + 512) % 16384;
                    if write {
                        b.order.full_barrier();
                    }
                    b.access(1, *width, black_box(o), at, write);
                });
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(200)).measurement_time(std::time::Duration::from_millis(500));
    targets = shared
}
criterion_main!(benches);
