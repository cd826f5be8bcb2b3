//! Random programs: whatever is told is there in the naive model, and what only one lane of each warp does is found.

use super::tests::{Sim, Touch};
use crate::check::Kind;
use crate::mem::model::{Model, Part};
use crate::mem::order::Token;
use proptest::prelude::*;

const WARPS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Access { warp: usize, shape: u8, at: u32, mask: u32, writes: bool, strong: bool },
    Full,
    Among(u32),
    Release(usize),
    Acquire(usize),
    Sync(usize, u32),
}

fn step(named: bool, one_lane: bool) -> impl Strategy<Value = Step> {
    let mask = if one_lane {
        Just(1u32).boxed()
    } else {
        prop_oneof![2 => Just(u32::MAX), 1 => 1u32..=u32::MAX, 1 => (0u32..32).prop_map(|l| 1 << l)].boxed()
    };
    let access = (0..WARPS, 0u8..6, 0u32..4, mask, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
        move |(warp, shape, at, mask, writes, strong)| Step::Access {
            warp,
            shape: if one_lane { 0 } else { shape },
            at,
            mask,
            writes,
            strong: strong && !one_lane,
        },
    );
    let sync = (0..WARPS, prop_oneof![3 => Just(u32::MAX), 1 => any::<u32>()]);
    if named {
        prop_oneof![
            12 => access,
            1 => Just(Step::Full),
            2 => (1u32..1 << WARPS).prop_map(Step::Among),
            1 => (0..WARPS).prop_map(Step::Release),
            1 => (0..WARPS).prop_map(Step::Acquire),
            2 => sync.prop_map(|(w, m)| Step::Sync(w, m)),
        ]
        .boxed()
    } else {
        prop_oneof![8 => access, 2 => Just(Step::Full), 2 => sync.prop_map(|(w, m)| Step::Sync(w, m))].boxed()
    }
}

/// Places that overlap in many ways: whole words in and against the order of lanes, one word for all, halves and bytes.
fn touch(shape: u8, at: u32, mask: u32) -> Touch {
    match shape {
        0 => Touch::new(mask, 4, |l| 4 * (l + at)),
        1 => Touch::new(mask, 4, |l| 4 * (31 - l)),
        2 => Touch::new(mask, 4, |_| 4 * at),
        3 => Touch::new(mask, 2, |l| 2 * (l + at)),
        4 => Touch::new(mask, 1, |l| l + at),
        _ => Touch::new(mask, 8, |l| 8 * (l / 2 + at)),
    }
}

fn lanes(warp: usize, mask: u32) -> Vec<usize> {
    crate::mem::order::bits(mask).map(|l| 32 * warp + l).collect()
}

/// Runs a program; gives whether anything was told and whether the model knows of a conflict.
fn run(steps: &[Step], precise: bool) -> Result<(bool, bool), TestCaseError> {
    let mut sim = Sim::new(WARPS, precise);
    let mut model = Model::new(32 * WARPS);
    let (mut token, mut model_token) = (Token::NOTHING, vec![0; 32 * WARPS]);
    let (mut told, mut known) = (false, false);
    let all = || (0..WARPS).flat_map(|w| lanes(w, u32::MAX));
    // Everything is written first, so that only order is at stake.
    for word in 0..64 {
        sim.write(0, &Touch::new(1, 4, |_| 4 * word));
    }
    sim.order.full_barrier();
    sim.kinds();
    for (n, step) in steps.iter().enumerate() {
        match step {
            &Step::Access { warp, shape, at, mask, writes, strong } => {
                let t = Touch { strong, value: 6 * n as u32, ..touch(shape, at, mask) };
                let part = |l: usize| Part {
                    thread: 32 * warp + l,
                    address: u64::from(t.address[l]),
                    bytes: (0..t.width)
                        .map(|b| if b == 0 { (t.value + l as u32) as u8 } else { 0 })
                        .collect(),
                };
                let parts: Vec<Part> = crate::mem::order::bits(mask).map(part).collect();
                let conflicts = model.access(&parts, writes, strong);
                if writes && strong {
                    sim.atomic(warp, &t);
                } else if writes {
                    sim.write(warp, &t);
                } else {
                    sim.read(warp, &t);
                }
                for (kind, message) in sim.found() {
                    let same_warp = kind == Kind::LaneHazard;
                    prop_assert!(same_warp || kind == Kind::SharedRace, "{message}");
                    let real = conflicts.iter().any(|&(a, b)| (a / 32 == b / 32) == same_warp);
                    prop_assert!(real, "step {n}: {message}; conflicts: {conflicts:?}");
                    told = true;
                }
                known |= !conflicts.is_empty();
            }
            Step::Full => {
                sim.order.full_barrier();
                model.meet(&all().collect::<Vec<_>>());
            }
            &Step::Among(warps) => {
                sim.order.barrier_among(warps);
                let members = crate::mem::order::bits(warps).flat_map(|w| lanes(w, u32::MAX));
                model.meet(&members.collect::<Vec<_>>());
            }
            &Step::Release(warp) => {
                token = sim.order.release(warp);
                model_token = model.release(&lanes(warp, u32::MAX));
            }
            &Step::Acquire(warp) => {
                sim.order.acquire(warp, &token);
                model.acquire(&lanes(warp, u32::MAX), &model_token);
            }
            &Step::Sync(warp, mask) => {
                sim.order.syncwarp(warp, mask);
                model.meet(&lanes(warp, mask));
            }
        }
    }
    Ok((told, known))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_made_up(steps in prop::collection::vec(step(false, false), 1..40)) {
        run(&steps, false)?;
        run(&steps, true)?;
    }

    #[test]
    fn nothing_is_made_up_with_named_barriers(steps in prop::collection::vec(step(true, false), 1..40)) {
        run(&steps, true)?;
    }

    #[test]
    fn the_first_race_between_warps_is_found(steps in prop::collection::vec(step(false, true), 1..40)) {
        for precise in [false, true] {
            let (told, known) = run(&steps, precise)?;
            prop_assert_eq!(told, known);
        }
    }

    #[test]
    fn the_first_race_is_found_with_named_barriers(steps in prop::collection::vec(step(true, true), 1..40)) {
        let (told, known) = run(&steps, true)?;
        prop_assert_eq!(told, known);
    }
}
