use crate::check::Kind;
use crate::exec::test_bench::Bench;
use proptest::prelude::*;

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| mask >> l & 1 != 0)
}

proptest! {
    #[test]
    fn votes(yes: u32, mask in 1..=u32::MAX, negated: bool) {
        let not = if negated { "!" } else { "" };
        let text = format!(
            "vote.sync.ballot.b32 %r1, {not}%p1, %r2; vote.sync.all.pred %p2, {not}%p1, %r2; \
             vote.sync.any.pred %p3, {not}%p1, %r2; vote.sync.uni.pred %p4, {not}%p1, %r2;"
        );
        let mut b = Bench::new(&text).map_err(TestCaseError::fail)?;
        b.set("%r1", [5u32; 32]);
        b.set("%r2", [mask; 32]);
        b.set_pred("%p1", yes);
        b.run(mask);
        let votes: Vec<bool> = lanes(mask).map(|l| (yes >> l & 1 != 0) != negated).collect();
        let ballot = lanes(mask).zip(&votes).map(|(l, v)| u32::from(*v) << l).sum::<u32>();
        for l in 0..32 {
            prop_assert_eq!(b.get::<u32>("%r1")[l], if mask >> l & 1 != 0 { ballot } else { 5 });
        }
        let expect = |truth: bool| if truth { mask } else { 0 };
        prop_assert_eq!(b.pred("%p2"), expect(votes.iter().all(|v| *v)));
        prop_assert_eq!(b.pred("%p3"), expect(votes.iter().any(|v| *v)));
        prop_assert_eq!(b.pred("%p4"), expect(votes.iter().all(|v| *v == votes[0])));
        prop_assert_eq!(b.kinds(), vec![]);
    }

    #[test]
    fn matches(a in prop::array::uniform32(0u32..3), high: bool, mask in 1..=u32::MAX) {
        let text = "match.any.sync.b32 %r1, %r2, %r9; match.all.sync.b32 %r3|%p1, %r2, %r9;
                    match.any.sync.b64 %r4, %rd1, %r9; match.all.sync.b64 %r5|%p2, %rd1, %r9;";
        let mut b = Bench::new(text).map_err(TestCaseError::fail)?;
        let wide = a.map(|x| if high { u64::from(x) << 40 } else { u64::from(x) });
        b.set("%r2", a);
        b.set("%rd1", wide);
        b.set("%r9", [mask; 32]);
        b.run(mask);
        let (any, all) = (b.get::<u32>("%r1"), b.get::<u32>("%r3"));
        let unanimous = lanes(mask).all(|l| lanes(mask).all(|k| a[l] == a[k]));
        for l in lanes(mask) {
            let same: u32 = lanes(mask).filter(|&k| a[k] == a[l]).map(|k| 1 << k).sum();
            prop_assert_eq!(any[l], same);
            prop_assert_eq!(all[l], if unanimous { mask } else { 0 });
            prop_assert_eq!((b.get::<u32>("%r4")[l], b.get::<u32>("%r5")[l]), (any[l], all[l]));
        }
        prop_assert_eq!((b.pred("%p1"), b.pred("%p2")), if unanimous { (mask, mask) } else { (0, 0) });
        prop_assert_eq!(b.kinds(), vec![]);
    }
}

#[test]
fn the_active_lanes() -> Result<(), String> {
    let mut b = Bench::new("activemask.b32 %r1;")?;
    b.run(0x0F0F);
    assert_eq!(b.get::<u32>("%r1")[3], 0x0F0F);
    assert!(b.kinds().is_empty());
    Ok(())
}

#[test]
fn absent_lanes_are_told() -> Result<(), String> {
    for text in [
        "vote.sync.ballot.b32 %r1, %p1, -1;",
        "vote.sync.any.pred %p1, %p2, 0xFF;",
        "match.any.sync.b32 %r1, %r2, -1;",
        "match.all.sync.b32 %r1, %r2, -1;",
    ] {
        let mut b = Bench::new(text)?;
        b.run(0x0F);
        assert_eq!(b.kinds(), [Kind::AbsentLane], "{text}");
    }
    Ok(())
}

#[test]
fn unknown_forms_are_refused() {
    for text in
        ["vote.ballot.b32 %r1, %p1;", "match.any.sync.b16 %r1, %r2, -1;", "vote.sync.all.b32 %r1, %p1, -1;"]
    {
        assert!(Bench::new(text).is_err(), "{text}");
    }
}
