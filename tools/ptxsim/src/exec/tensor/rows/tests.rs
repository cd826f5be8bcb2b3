use crate::check::Kind;
use crate::exec::inst::{Class, Flow};
use crate::exec::program::{SHARED_BASE, SHARED_WINDOW};
use crate::exec::test_bench::Bench;
use proptest::prelude::*;

/// The manual's layout: row and column of the two elements that a lane holds of each matrix.
fn element(lane: usize, half: usize, trans: bool) -> (usize, usize) {
    let (row, col) = (lane / 4, 2 * (lane % 4) + half);
    if trans { (col, row) } else { (row, col) }
}

/// A different value in every half word.
fn numbered(bytes: usize) -> Vec<u8> {
    (0..bytes as u32 / 2).flat_map(|n| (n as u16 + 1).to_le_bytes()).collect()
}

fn registers(count: usize) -> String {
    let names: Vec<String> = (0..count).map(|n| format!("%m{n}")).collect();
    format!("{{{}}}", names.join(", "))
}

const FORMS: [(&str, usize); 3] = [("x1", 1), ("x2", 2), ("x4", 4)];

/// Rows anywhere, 16 bytes aligned, and no two the same.
fn rows() -> impl Strategy<Value = Vec<u32>> {
    Just((0..64u32).map(|n| 16 * n).collect::<Vec<_>>()).prop_shuffle()
}

proptest! {
    #[test]
    fn every_element_is_loaded(rows in rows(), trans: bool, generic: bool) {
        for (num, count) in FORMS {
            let t = if trans { ".trans" } else { "" };
            let (space, address) = if generic { ("", "%rd1") } else { (".shared", "%r9") };
            let text = format!(
                "ldmatrix.sync.aligned.m8n8.{num}{t}{space}.b16 {}, [{address}+16];", registers(count)
            );
            let mut b = Bench::block(&text, 32, 1024).map_err(TestCaseError::fail)?;
            b.fill_shared(0, &numbered(1024));
            // Lanes whose addresses are not used point nowhere.
            let at = |l: usize| if l < 8 * count { rows[l] + SHARED_BASE - 16 } else { 0xFFFF_0000 };
            if generic {
                b.set("%rd1", std::array::from_fn::<u64, 32, _>(|l| u64::from(at(l)) + SHARED_WINDOW));
            } else {
                b.set("%r9", std::array::from_fn::<u32, 32, _>(at));
            }
            prop_assert_eq!(b.run(u32::MAX), Flow::Next, "{:?}", b.findings());
            for m in 0..count {
                for (lane, word) in b.get::<u32>(&format!("%m{m}")).into_iter().enumerate() {
                    for half in 0..2 {
                        let (row, col) = element(lane, half, trans);
                        let expected = rows[8 * m + row] / 2 + col as u32 + 1;
                        prop_assert_eq!(word >> (16 * half) & 0xFFFF, expected);
                    }
                }
            }
            prop_assert_eq!(b.kinds(), vec![]);
        }
    }

    #[test]
    fn every_element_is_stored(rows in rows(), trans: bool) {
        for (num, count) in FORMS {
            let t = if trans { ".trans" } else { "" };
            let text = format!("stmatrix.sync.aligned.m8n8.{num}{t}.shared.b16 [%r9], {};", registers(count));
            let mut b = Bench::block(&text, 32, 1024).map_err(TestCaseError::fail)?;
            b.fill_shared(0, &[0xEE; 1024]);
            b.set("%r9", std::array::from_fn::<u32, 32, _>(|l| rows[l] + SHARED_BASE));
            let value = |m: usize, row: usize, col: usize| (1000 * m + 10 * row + col) as u32;
            for m in 0..count {
                b.set(&format!("%m{m}"), std::array::from_fn::<u32, 32, _>(|lane| {
                    let [low, high] = [0, 1].map(|half| {
                        let (row, col) = element(lane, half, trans);
                        value(m, row, col)
                    });
                    low | high << 16
                }));
            }
            prop_assert_eq!(b.run(u32::MAX), Flow::Next);
            let mut expected = vec![0xEE; 1024];
            for (m, row) in (0..count).flat_map(|m| (0..8).map(move |row| (m, row))) {
                for col in 0..8 {
                    let at = rows[8 * m + row] as usize + 2 * col;
                    expected[at..at + 2].copy_from_slice(&(value(m, row, col) as u16).to_le_bytes());
                }
            }
            prop_assert_eq!(b.shared(0, 1024), expected);
            prop_assert_eq!(b.kinds(), vec![]);
        }
    }
}

fn load_x4() -> Result<Bench, String> {
    let mut b =
        Bench::block("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%m0, %m1, %m2, %m3}, [%r9];", 64, 8192)?;
    b.set("%r9", std::array::from_fn::<u32, 32, _>(|l| SHARED_BASE + 16 * l as u32));
    Ok(b)
}

#[test]
fn bank_passes_are_counted() -> Result<(), String> {
    let mut b = load_x4()?;
    b.fill_shared(0, &[0; 8192]);
    let before = b.traffic(0);
    b.run(u32::MAX);
    let t = b.traffic(0);
    assert_eq!(t.requests - before.requests, 1);
    assert_eq!((t.wavefronts - before.wavefronts, t.ideal_wavefronts - before.ideal_wavefronts), (4, 4));
    assert_eq!(t.bytes - before.bytes, 512);
    // Rows 128 bytes apart lie in the same banks.
    b.set("%r9", std::array::from_fn::<u32, 32, _>(|l| SHARED_BASE + 128 * l as u32));
    b.run(u32::MAX);
    let u = b.traffic(0);
    assert_eq!((u.wavefronts - t.wavefronts, u.ideal_wavefronts - t.ideal_wavefronts), (32, 4));
    assert_eq!((b.class().0, b.kinds()), (Class::MatrixMove, vec![]));
    Ok(())
}

#[test]
fn mistakes_are_told() -> Result<(), String> {
    let mut b = load_x4()?;
    b.run(u32::MAX);
    assert_eq!(b.kinds(), [Kind::UninitialisedShared]);
    let mut b = load_x4()?;
    b.fill_shared(0, &[0; 8192]);
    b.run(0x0000_FFFF);
    assert_eq!(b.kinds(), [Kind::PartialWarp]);
    for (address, kind) in
        [(8192 - 8, Kind::Misaligned), (8192, Kind::OutOfBounds), (u32::MAX - 15, Kind::OutOfBounds)]
    {
        let mut b = load_x4()?;
        b.fill_shared(0, &[0; 8192]);
        b.set(
            "%r9",
            std::array::from_fn::<u32, 32, _>(|l| {
                SHARED_BASE.wrapping_add(if l == 9 { address } else { 16 * l as u32 })
            }),
        );
        assert_eq!(b.run(u32::MAX), Flow::Stop);
        assert_eq!(b.kinds(), [kind]);
        assert_eq!(b.findings()[0].who.lane, 9);
    }
    let mut b = Bench::block("ldmatrix.sync.aligned.m8n8.x1.b16 {%m0}, [%rd1];", 32, 1024)?;
    b.set("%rd1", [0x0A00_0000_0000u64; 32]);
    assert_eq!((b.run(u32::MAX), b.kinds()), (Flow::Stop, vec![Kind::OutOfBounds]));
    Ok(())
}

#[test]
fn the_whole_warp_reads_each_row() -> Result<(), String> {
    // Every lane writes the row whose address it gives: the others read it, too.
    let text = "st.shared.v4.b32 [%r9], {%m0, %m1, %m2, %m3}; bar.warp.sync -1;
                ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%m4, %m5, %m6, %m7}, [%r9];";
    for synchronised in [false, true] {
        let mut b = Bench::block(text, 32, 512)?;
        b.set("%r9", std::array::from_fn::<u32, 32, _>(|l| SHARED_BASE + 16 * l as u32));
        b.line(0, u32::MAX);
        if synchronised {
            b.line(1, u32::MAX);
        }
        b.line(2, u32::MAX);
        assert_eq!(b.kinds(), if synchronised { vec![] } else { vec![Kind::LaneHazard] });
    }
    Ok(())
}

#[test]
fn another_warp_needs_a_barrier() -> Result<(), String> {
    let text = "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r9], {%m0};
                ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%m4}, [%r9];";
    for synchronised in [false, true] {
        let mut b = Bench::block(text, 64, 512)?;
        for warp in 0..2 {
            b.cx.enter(warp);
            b.set("%r9", std::array::from_fn::<u32, 32, _>(|l| SHARED_BASE + 16 * (l as u32 % 8)));
        }
        b.line_in(0, 0, u32::MAX);
        if synchronised {
            b.barrier();
        }
        b.line_in(1, 1, u32::MAX);
        assert_eq!(b.kinds(), if synchronised { vec![] } else { vec![Kind::SharedRace] });
    }
    Ok(())
}

#[test]
fn unknown_forms_are_refused() {
    for text in [
        "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%r1, %r2}, [%r3];",
        "ldmatrix.sync.aligned.m8n8.x3.shared.b16 {%r1, %r2, %r4}, [%r3];",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2}, [%r3];",
        "stmatrix.sync.aligned.m16n8.x1.trans.shared.b8 [%r3], {%r1};",
    ] {
        assert!(Bench::block(text, 32, 64).is_err(), "{text}");
    }
}
