use crate::check::Kind;
use crate::exec::test_bench::Bench;
use proptest::prelude::*;

proptest! {
    #[test]
    fn reductions(a: [u32; 32], mask in 1..=u32::MAX) {
        type Rule = (&'static str, fn(u32, u32) -> u32);
        let rules: [Rule; 9] = [
            ("add.u32", u32::wrapping_add),
            ("add.s32", |x, y| (x as i32).wrapping_add(y as i32) as u32),
            ("min.u32", u32::min),
            ("max.u32", u32::max),
            ("min.s32", |x, y| (x as i32).min(y as i32) as u32),
            ("max.s32", |x, y| (x as i32).max(y as i32) as u32),
            ("and.b32", |x, y| x & y),
            ("or.b32", |x, y| x | y),
            ("xor.b32", |x, y| x ^ y),
        ];
        for (op, f) in rules {
            let mut b = Bench::new(&format!("redux.sync.{op} %r1, %r2, %r3;")).map_err(TestCaseError::fail)?;
            b.set("%r1", [9u32; 32]);
            b.set("%r2", a);
            b.set("%r3", [mask; 32]);
            b.run(mask);
            let expected = (0..32).filter(|l| mask >> l & 1 != 0).map(|l| a[l]).reduce(f).unwrap_or(0);
            for l in 0..32 {
                prop_assert_eq!(b.get::<u32>("%r1")[l], if mask >> l & 1 != 0 { expected } else { 9 }, "{}", op);
            }
            prop_assert_eq!(b.kinds(), vec![]);
        }
    }
}

#[test]
fn absent_lanes_and_unknown_forms() -> Result<(), String> {
    let mut b = Bench::new("redux.sync.add.u32 %r1, %r2, -1;")?;
    b.run(0xFF);
    assert_eq!(b.kinds(), [Kind::AbsentLane]);
    for text in ["redux.sync.min.f32 %r1, %r2, -1;", "redux.sync.and.u32 %r1, %r2, -1;"] {
        assert!(Bench::new(text).is_err(), "{text}");
    }
    Ok(())
}
