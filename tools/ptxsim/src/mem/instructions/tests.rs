use crate::check::Kind;
use crate::exec::inst::Flow;
use crate::exec::launch::{LaunchConfig, Report, launch};
use crate::exec::program::{LOCAL_WINDOW, Program, SHARED_BASE, SHARED_WINDOW};
use crate::exec::test_bench::Bench;
use crate::mem::GlobalMemory;
use crate::mem::access::Memory;
use crate::mem::stats::Traffic;

const FULL: u32 = u32::MAX;

/// A bench with an allocation holding `bytes`; `%rd1` is its address plus `step` for each lane.
fn bench(text: &str, bytes: &[u8], step: u64) -> (Bench, u64) {
    let mut b = Bench::block(text, 64, 4096).unwrap_or_else(|e| panic!("{text}: {e}"));
    let base = b.memory().alloc(bytes.len() as u64).expect("memory");
    b.memory().write(base, bytes).expect("write");
    b.cx.mem = Memory::new(b.cx.launch, b.cx.code.sites as usize);
    b.set("%rd1", std::array::from_fn(|l| base + step * l as u64));
    (b, base)
}

fn counting(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 37 + i / 256) as u8).collect()
}

fn contents(b: &Bench, base: u64, n: usize) -> Vec<u8> {
    let mut all = vec![0; n];
    b.memory().read(base, &mut all).expect("read");
    all
}

fn traffic(b: &Bench) -> Traffic {
    *b.cx.mem.traffic().next().expect("a site")
}

#[test]
fn loads_extend() {
    let data = counting(256);
    let at = |lane: usize, n: usize| (0..n).fold(0u64, |x, k| x | u64::from(data[lane * 8 + k]) << (8 * k));
    type Extension = fn(u64) -> u64;
    let cases: [(&str, &str, Extension, usize); 14] = [
        ("u8", "%r1", |x| x, 1),
        ("b8", "%r1", |x| x, 1),
        ("s8", "%r1", |x| u64::from(x as i8 as u32), 1),
        ("s8", "%rd2", |x| x as i8 as u64, 1),
        ("u8", "%rd2", |x| x, 1),
        ("u16", "%r1", |x| x, 2),
        ("s16", "%r1", |x| u64::from(x as i16 as u32), 2),
        ("s16", "%rd2", |x| x as i16 as u64, 2),
        ("b32", "%r1", |x| x, 4),
        ("f32", "%r1", |x| x, 4),
        ("s32", "%rd2", |x| x as i32 as u64, 4),
        ("u32", "%rd2", |x| x, 4),
        ("u64", "%rd2", |x| x, 8),
        ("f64", "%fd2", |x| x, 8),
    ];
    for (ty, register, extend, n) in cases {
        for space in [".global", ""] {
            let (mut b, _) = bench(&format!("ld{space}.{ty} {register}, [%rd1];"), &data, 8);
            assert_eq!(b.run(FULL), Flow::Next);
            let got: [u64; 32] = if register == "%r1" {
                b.get::<u32>(register).map(u64::from)
            } else {
                b.get::<u64>(register)
            };
            assert_eq!(got, std::array::from_fn(|l| extend(at(l, n))), "{ty} into {register}");
            assert!(b.kinds().is_empty(), "{:?}", b.findings());
        }
    }
}

#[test]
fn vectors_load_and_store() {
    let data = counting(2048);
    let cases = [
        ("v2.b32", "{%r1, %r2}", 8u64),
        ("v4.b32", "{%r1, %r2, %r3, %r4}", 16),
        ("v8.b32", "{%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8}", 32),
        ("v2.u16", "{%r1, %r2}", 4),
        ("v4.u8", "{%r1, %r2, %r3, %r4}", 4),
        ("v2.b64", "{%rd5, %rd6}", 16),
        ("v4.f64", "{%fd1, %fd2, %fd3, %fd4}", 32),
    ];
    for (form, list, width) in cases {
        for stride in [width, 64, 0] {
            for mask in [FULL, 0x8421_F00F] {
                let text = format!("ld.global.{form} {list}, [%rd1]; st.global.{form} [%rd2+32], {list};");
                let (mut b, base) = bench(&text, &data, stride);
                let to = b.memory().alloc(2400).expect("memory");
                b.cx.mem = Memory::new(b.cx.launch, b.cx.code.sites as usize);
                b.set("%rd2", std::array::from_fn(|l| to + 64 * l as u64));
                assert_eq!(b.run(mask), Flow::Next);
                let all = contents(&b, to, 2400);
                for lane in 0..32usize {
                    let mine = &all[32 + 64 * lane..][..width as usize];
                    let wanted = &data[stride as usize * lane..][..width as usize];
                    let wanted = if mask >> lane & 1 == 1 { wanted } else { &vec![0; width as usize][..] };
                    assert_eq!(mine, wanted, "{form}, stride {stride}, lane {lane}");
                }
                assert!(b.kinds().is_empty() && base > 0, "{:?}", b.findings());
            }
        }
    }
}

#[test]
fn shared_memory_by_every_kind_of_address() {
    for (text, wide) in [
        ("st.shared.b32 [%r1+16], %r2; bar.warp.sync -1; ld.shared.b32 %r3, [%r1+16];", false),
        ("st.shared.b32 [%rd1+16], %r2; bar.warp.sync -1; ld.shared::cta.b32 %r3, [%rd1+16];", true),
        ("st.b32 [%rd2+16], %r2; bar.warp.sync -1; ld.volatile.b32 %r3, [%rd2+16];", true),
    ] {
        let mut b = Bench::block(text, 32, 4096).expect("lowers");
        let address: [u32; 32] = std::array::from_fn(|l| SHARED_BASE + 4 * (l as u32 ^ 5));
        if wide {
            if text.contains("%rd1") {
                b.set("%rd1", address.map(u64::from));
            } else {
                b.set("%rd2", address.map(|a| u64::from(a) + SHARED_WINDOW));
            }
        } else {
            b.set("%r1", address);
        }
        let values: [u32; 32] = std::array::from_fn(|l| 1000 + l as u32);
        b.set("%r2", values);
        assert_eq!(b.run(FULL), Flow::Next);
        assert_eq!(b.get::<u32>("%r3"), values);
        assert!(b.kinds().is_empty(), "{:?}", b.findings());
        let t = traffic(&b);
        assert_eq!((t.requests, t.lanes, t.bytes, t.wavefronts, t.sectors), (1, 32, 128, 1, 0));
    }
}

#[test]
fn lanes_may_address_different_places() {
    let (mut b, base) = bench("ld.b32 %r1, [%rd1]; ld.global.b32 %r2, [%rd2];", &counting(256), 4);
    let other = b.memory().alloc(256).expect("memory");
    b.memory().write(other, &counting(256)).expect("write");
    b.cx.mem = Memory::new(b.cx.launch, b.cx.code.sites as usize);
    let address = |l: usize| if l.is_multiple_of(3) { other + 4 * l as u64 } else { base + 4 * l as u64 };
    b.set::<u64>("%rd1", std::array::from_fn(address));
    b.set::<u64>("%rd2", std::array::from_fn(address));
    assert_eq!(b.run(FULL), Flow::Next);
    let data = counting(256);
    let word = |l: usize| u32::from_le_bytes(data[4 * l..4 * l + 4].try_into().expect("4 bytes"));
    assert_eq!(b.get::<u32>("%r1"), std::array::from_fn(word));
    assert_eq!(b.get::<u32>("%r2"), std::array::from_fn(word));
    let t = traffic(&b);
    assert_eq!((t.requests, t.lanes, t.sectors), (1, 32, 8));
    assert!(b.kinds().is_empty());
}

#[test]
fn generic_lanes_may_be_in_different_spaces() {
    let (mut b, base) = bench("st.b32 [%rd1], %r2; ld.b32 %r1, [%rd1];", &[0; 256], 4);
    let address = |l: usize| {
        if l.is_multiple_of(2) {
            base + 4 * l as u64
        } else {
            SHARED_WINDOW + u64::from(SHARED_BASE) + 4 * l as u64
        }
    };
    b.set::<u64>("%rd1", std::array::from_fn(address));
    let values: [u32; 32] = std::array::from_fn(|l| 7 * l as u32);
    b.set("%r2", values);
    assert_eq!(b.run(FULL), Flow::Next);
    assert_eq!(b.get::<u32>("%r1"), values);
    assert!(b.kinds().is_empty(), "{:?}", b.findings());
}

fn fault(text: &str, address: impl Fn(u64, usize) -> u64, mask: u32) -> (Kind, u32, Option<u64>, String) {
    let (mut b, base) = bench(text, &counting(256), 4);
    let gone = b.memory().alloc(64).expect("memory");
    b.memory().free(gone).expect("free");
    b.set::<u64>(
        "%rd1",
        std::array::from_fn(|l| address(if text.contains("gone") { gone } else { base }, l)),
    );
    assert_eq!(b.run(mask), Flow::Stop, "{text}");
    let f = b.findings().remove(0);
    (f.kind, f.who.lane, f.address.map(|a| a - base.min(a)), f.message)
}

#[test]
fn faults_stop_and_say_where() {
    let (kind, lane, at, message) = fault("ld.global.b32 %r1, [%rd1];", |b, l| b + 8 * l as u64 + 16, FULL);
    assert_eq!((kind, lane, at), (Kind::OutOfBounds, 30, Some(256)));
    assert!(message.contains("right behind the allocation of 256 bytes"), "{message}");
    let (kind, lane, ..) = fault("st.global.v2.b32 [%rd1], {%r1, %r2};", |b, l| b + 8 * l as u64 + 8, FULL);
    assert_eq!((kind, lane), (Kind::OutOfBounds, 31));
    let (kind, lane, _, message) = fault("ld.b32 %r1, [%rd1+4];", |_, _| 0, 0xF0);
    assert_eq!((kind, lane), (Kind::OutOfBounds, 4));
    assert!(message.contains("null pointer"), "{message}");
    let (kind, lane, at, message) = fault("ld.global.b64 %rd2, [%rd1];", |b, l| b + 4 * l as u64, FULL);
    assert_eq!((kind, lane, at), (Kind::Misaligned, 1, Some(4)));
    assert!(message.contains("not a multiple of 8"), "{message}");
    let (kind, ..) = fault("ld.global.b32 %r1, [%rd1+2];", |b, _| b, FULL);
    assert_eq!(kind, Kind::Misaligned);
    let (kind, lane, _, message) =
        fault("atom.global.add.u32 %r1, [%rd1], 1;", |b, l| b + 1024 * l as u64, FULL);
    assert_eq!((kind, lane), (Kind::OutOfBounds, 1));
    assert!(message.contains("768 bytes behind the end"), "{message}");
    // One lane far away.
    let far = |b: u64, l: usize| if l == 9 { b + (1 << 40) } else { b };
    assert_eq!(fault("ld.global.b32 %r1, [%rd1];", far, FULL).1, 9);
    // An address of another space is none of global memory.
    let (kind, ..) = fault("ld.global.b32 %r1, [%rd1];", |_, _| SHARED_WINDOW + 2048, FULL);
    assert_eq!(kind, Kind::OutOfBounds);
}

#[test]
fn freed_memory_is_known() {
    let (mut b, _) = bench("ld.global.b32 %r1, [%rd1];", &counting(256), 4);
    let gone = b.memory().alloc(64).expect("memory");
    b.memory().free(gone).expect("free");
    b.set("%rd1", [gone + 8; 32]);
    assert_eq!(b.run(FULL), Flow::Stop);
    let f = &b.findings()[0];
    assert_eq!(f.kind, Kind::UseAfterFree);
    assert!(f.message.contains("8 bytes into an allocation of 64 bytes"), "{}", f.message);
}

#[test]
fn shared_memory_has_an_end() {
    for (offset, kind, part) in [
        (4096, Kind::OutOfBounds, "4 bytes beyond the block's 4096 bytes"),
        (-4, Kind::OutOfBounds, "reserved part"),
        (2, Kind::Misaligned, "not a multiple of 4"),
    ] {
        let mut b = Bench::block("ld.shared.b32 %r1, [%r2];", 32, 4096).expect("lowers");
        b.set("%r2", [SHARED_BASE.wrapping_add_signed(offset); 32]);
        assert_eq!(b.run(FULL), Flow::Stop);
        let f = &b.findings()[0];
        assert_eq!(f.kind, kind);
        assert!(f.message.contains(part), "{}", f.message);
    }
}

#[test]
fn unwritten_memory_is_told_once_for_each_instruction() {
    let (mut b, _) =
        bench("ld.global.b32 %r1, [%rd1]; st.global.b32 [%rd1], %r1; ld.global.b32 %r1, [%rd1];", &[0], 0);
    let fresh = b.memory().alloc(256).expect("memory");
    b.cx.mem = Memory::new(b.cx.launch, b.cx.code.sites as usize);
    b.set("%rd1", std::array::from_fn(|l| fresh + 4 * l as u64));
    assert_eq!(b.run(FULL), Flow::Next);
    let all = b.findings();
    assert_eq!(b.kinds(), [Kind::UninitialisedGlobal]);
    assert_eq!(all[0].count, 32);
    assert!(all[0].message.contains("byte 0 of the allocation of 256 bytes"), "{}", all[0].message);
}

#[test]
fn sectors_are_counted() {
    let cases = [(4, 4), (8, 8), (32, 32), (0, 1), (2048, 32)];
    for (stride, sectors) in cases {
        let (mut b, _) = bench("ld.global.b32 %r1, [%rd1];", &counting(70_000), stride);
        b.run(FULL);
        b.run(FULL);
        let t = traffic(&b);
        assert_eq!((t.requests, t.sectors, t.sector_bytes(), t.bytes), (2, 2 * sectors, 64 * sectors, 256));
    }
}

#[test]
fn atomics_return_the_old_value_lane_after_lane() {
    let (mut b, base) = bench("atom.global.add.u32 %r1, [%rd1], %r2;", &[0; 64], 0);
    b.set("%r2", [3u32; 32]);
    assert_eq!(b.run(0xFFFF_0FFF), Flow::Next);
    let got = b.get::<u32>("%r1");
    assert_eq!((got[0], got[1], got[11], got[16], got[31]), (0, 3, 33, 36, 81));
    assert_eq!(contents(&b, base, 4), 84u32.to_le_bytes());
    let t = traffic(&b);
    assert_eq!((t.atomics, t.max_collisions), (28, 28));
    assert!(b.kinds().is_empty());
}

#[test]
fn every_width_of_atomics() {
    let half = |x: f32| half::f16::from_f32(x).to_bits();
    // Instruction, result, its value; the bytes before, the bytes after.
    type Case<'a> = (&'a str, &'a str, u64, &'a [u8], &'a [u8]);
    let cases: [Case<'_>; 7] = [
        ("atom.global.cas.b16 %r1, [%rd1], 7, 9;", "%r1", 7, &[7, 0], &[9, 0]),
        (
            "atom.global.exch.b64 %rd2, [%rd1], 5;",
            "%rd2",
            1,
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[5, 0, 0, 0, 0, 0, 0, 0],
        ),
        ("atom.relaxed.gpu.global.min.s32 %r1, [%rd1], -2;", "%r1", 1, &[1, 0, 0, 0], &[254, 255, 255, 255]),
        ("atom.cas.b32 %r1, [%rd1], 2, 9;", "%r1", 1, &[1, 0, 0, 0], &[1, 0, 0, 0]),
        (
            "atom.add.noftz.f16 %r1, [%rd1], 15360;",
            "%r1",
            0x3C00,
            &half(1.0).to_le_bytes(),
            &half(2.0).to_le_bytes(),
        ),
        ("atom.sys.inc.u32 %r1, [%rd1], 7;", "%r1", 7, &[7, 0, 0, 0], &[0, 0, 0, 0]),
        ("atom.acq_rel.gpu.global.or.b32 %r1, [%rd1], 6;", "%r1", 1, &[1, 0, 0, 0], &[7, 0, 0, 0]),
    ];
    for (text, register, old, before, after) in cases {
        let (mut b, base) = bench(text, before, 0);
        assert_eq!(b.run(1), Flow::Next, "{text}");
        let got =
            if register == "%r1" { u64::from(b.get::<u32>(register)[0]) } else { b.get::<u64>(register)[0] };
        assert_eq!(got, old, "{text}");
        assert_eq!(contents(&b, base, after.len()), after, "{text}");
        assert!(b.kinds().is_empty(), "{:?}", b.findings());
    }
}

#[test]
fn reductions_and_vectors() {
    let ones: Vec<u8> = [1f32; 64].iter().flat_map(|x| x.to_le_bytes()).collect();
    let floats = |b: &Bench, base: u64, n: usize| -> Vec<f32> {
        contents(b, base, 4 * n)
            .chunks_exact(4)
            .map(|c| f32::from_le_bytes(c.try_into().expect("4")))
            .collect()
    };
    let (mut b, base) = bench("red.global.add.f32 [%rd1], %r1;", &ones, 4);
    b.set("%r1", std::array::from_fn(|l| l as f32));
    assert_eq!(b.run(FULL), Flow::Next);
    assert_eq!(floats(&b, base, 32), (0..32).map(|l| 1.0 + l as f32).collect::<Vec<_>>());
    let text = "atom.global.v2.f32.add {%r3, %r4}, [%rd1], {%r1, %r2};";
    let (mut b, base) = bench(text, &ones, 8);
    b.set("%r1", [2f32; 32]);
    b.set("%r2", [4f32; 32]);
    assert_eq!(b.run(FULL), Flow::Next);
    assert_eq!(floats(&b, base, 64), [3.0, 5.0].repeat(32));
    assert_eq!(b.get::<f32>("%r4"), [1.0; 32]);
    let (mut b, base) = bench("red.global.v4.f32.add [%rd1], {%r1, %r1, %r1, %r1};", &ones, 16);
    b.set("%r1", [1f32; 32]);
    assert_eq!(b.run(0xFFFF), Flow::Next);
    assert_eq!(floats(&b, base, 64), [2.0; 64]);
    let h = |x: f32| u32::from(half::f16::from_f32(x).to_bits());
    let (mut b, base) = bench("red.global.v2.f16x2.max.noftz [%rd1], {%r1, %r2};", &[0; 8], 0);
    b.set("%r1", [h(1.0) | h(-1.0) << 16; 32]);
    b.set("%r2", [h(-3.0) | h(2.0) << 16; 32]);
    assert_eq!(b.run(1), Flow::Next);
    let wanted: Vec<u8> = [h(1.0), h(2.0) << 16].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(contents(&b, base, 8), wanted);
}

#[test]
fn shared_atomics() {
    let text = "st.shared.b32 [%r1], 5; bar.warp.sync -1; atom.shared.max.u32 %r3, [%r1], %r2; ld.shared.u32 %r4, [%r1];";
    let mut b = Bench::block(text, 32, 64).expect("lowers");
    b.set("%r1", std::array::from_fn(|l| SHARED_BASE + 4 * (l as u32 % 2)));
    b.set("%r2", std::array::from_fn(|l| l as u32));
    assert_eq!(b.run(FULL), Flow::Next);
    let old = b.get::<u32>("%r3");
    assert_eq!((old[0], old[30], old[31]), (5, 28, 29));
    let new = b.get::<u32>("%r4");
    assert_eq!((new[0], new[1]), (30, 31));
}

#[test]
fn addresses_convert() {
    let text = "cvta.shared.u64 %rd2, %rd1; cvta.to.shared.u64 %rd3, %rd2; isspacep.shared %p1, %rd2; \
                isspacep.global %p2, %rd2; isspacep.local %p3, %rd4; isspacep.global %p4, %rd5;";
    let mut b = Bench::new(text).expect("lowers");
    b.set("%rd1", [1040u64; 32]);
    b.set("%rd4", [LOCAL_WINDOW + 8; 32]);
    b.set("%rd5", [0x0A00_0000_1000u64; 32]);
    assert_eq!(b.run(FULL), Flow::Next);
    assert_eq!((b.get::<u64>("%rd2")[3], b.get::<u64>("%rd3")[3]), (SHARED_WINDOW + 1040, 1040));
    assert_eq!((b.pred("%p1"), b.pred("%p2"), b.pred("%p3"), b.pred("%p4")), (FULL, 0, FULL, FULL));
}

#[test]
fn hints_are_taken_and_the_unknown_is_not() {
    for text in [
        "ld.global.nc.L1::evict_last.L2::cache_hint.L2::128B.b32 %r1, [%rd1], %rd2;",
        "ld.weak.global.ca.b32 %r1, [%rd1];",
        "st.global.wt.L1::no_allocate.b32 [%rd1], %r1;",
        "ldu.global.f32 %r1, [%rd1];",
        "prefetch.global.L2 [%rd1];",
        "prefetchu.L1 [%rd1];",
        "createpolicy.fractional.L2::evict_last.b64 %rd2, 1;",
        "membar.gl;",
        "fence.acq_rel.gpu;",
        "fence.proxy.async;",
        "fence.sc.cta;",
    ] {
        let (mut b, _) = bench(&format!("{text} ld.global.b32 %r9, [%rd1];"), &counting(128), 4);
        assert_eq!(b.run(FULL), Flow::Next, "{text}");
        assert!(b.kinds().is_empty(), "{text}: {:?}", b.findings());
    }
    for text in [
        "ld.global.L3::evict.b32 %r1, [%rd1];",
        "ld.shared::cluster.b32 %r1, [%r2];",
        "ld.global.v3.b32 {%r1, %r2, %r3}, [%rd1];",
        "ld.global.v8.b64 {%rd1, %rd2, %rd3, %rd4, %rd5, %rd6, %rd7, %rd8}, [%rd1];",
        "ld.mmio.relaxed.sys.global.b32 %r1, [%rd1];",
        "ld.b32 %r1, [%r2];",
        "st.const.b32 [%rd1], %r1;",
        "st.param.b32 [0], %r1;",
        "atom.global.mul.u32 %r1, [%rd1], 2;",
        "atom.global.add.b32 %r1, [%rd1], 2;",
        "atom.global.min.noftz.f16x2 %r1, [%rd1], %r2;",
        "red.shared.v2.f32.add [%r1], {%r2, %r3};",
        "atom.local.add.u32 %r1, [%rd1], 2;",
        "fence.sc;",
        "cvta.global.u32 %r1, %r2;",
    ] {
        assert!(Bench::new(text).is_err(), "{text}");
    }
}

#[test]
fn only_acquire_release_and_fences_make_blocks_order() {
    for (text, fences) in [
        ("ld.global.b32 %r1, [%rd1];", false),
        ("ld.volatile.global.b32 %r1, [%rd1];", false),
        ("atom.relaxed.gpu.global.add.u32 %r1, [%rd1], 1;", false),
        ("ld.acquire.gpu.global.b32 %r1, [%rd1];", true),
        ("st.release.sys.global.b32 [%rd1], %r1;", true),
        ("fence.acq_rel.gpu;", true),
    ] {
        let b = Bench::new(text).expect("lowers");
        assert_eq!(b.cx.code.features.fences, fences, "{text}");
    }
}

/// Runs a whole kernel over `%rd_out`, its one parameter besides `n`.
fn run(body: &str, module: &str, grid: u32, n: usize) -> (Report, Vec<u32>) {
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n{module}\n.visible .entry k(.param .u64 k_param_0, .param .align 8 \
         .b8 k_param_1[16]) {{\n.reg .b32 %r<20>;\n.reg .b64 %rd<20>;\n.reg .pred %p<4>;\n{body}\nret;\n}}\n"
    );
    let memory = GlobalMemory::new(1 << 30);
    let program = Program::load(&text, &memory).unwrap_or_else(|e| panic!("{e}"));
    let out = memory.alloc(4 * n as u64).expect("memory");
    let mut params = out.to_le_bytes().to_vec();
    params.extend([5u32, 6, 7, 8].iter().flat_map(|x| x.to_le_bytes()));
    let config =
        LaunchConfig { grid: [grid, 1, 1], block: [32, 1, 1], host_threads: 1, ..LaunchConfig::default() };
    let kernel = program.kernel("k").expect("k");
    let report = launch(&memory, kernel, &config, &params).unwrap_or_else(|e| panic!("{e}"));
    let mut bytes = vec![0; 4 * n];
    memory.read(out, &mut bytes).expect("read");
    let words = bytes.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().expect("4 bytes"))).collect();
    (report, words)
}

/// `%rd1`: address of the thread's own word.
const MINE: &str = "ld.param.u64 %rd0, [k_param_0];\nmov.u32 %r0, %tid.x;\nmul.wide.u32 %rd1, %r0, 4;\n\
                    add.s64 %rd1, %rd0, %rd1;\n";

#[test]
fn local_memory_is_each_threads_own() {
    let module = "";
    let body = format!(
        "{MINE}.local .align 16 .b8 depot[32];\nmov.u64 %rd2, depot;\ncvta.local.u64 %rd3, %rd2;\n\
         st.local.v2.u32 [%rd2+8], {{%r0, %r0}};\nadd.u32 %r1, %r0, 100;\nst.u32 [%rd3+12], %r1;\n\
         ld.local.u32 %r2, [%rd2+12];\nld.u32 %r3, [%rd3+8];\nadd.u32 %r4, %r2, %r3;\nst.global.u32 [%rd1], %r4;"
    );
    let (report, out) = run(&body, module, 1, 32);
    assert!(report.clean(), "{:?}", report.findings);
    assert_eq!(out, (0..32).map(|t| 100 + 2 * t).collect::<Vec<_>>());
    let body = format!("{MINE}.local .align 16 .b8 depot[32];\nld.local.u32 %r1, [depot+32];");
    let (report, _) = run(&body, module, 1, 32);
    let fault = report.faulted().expect("a fault");
    assert_eq!(fault.kind, Kind::OutOfBounds);
    assert!(fault.message.contains("local memory"), "{}", fault.message);
}

#[test]
fn parameters_and_constants_are_read() {
    let module = ".const .align 4 .u32 table[4] = {10, 20, 30, 40};";
    let body = format!(
        "{MINE}and.b32 %r1, %r0, 3;\nmul.wide.u32 %rd2, %r1, 4;\nmov.u64 %rd3, table;\nadd.s64 %rd3, %rd3, %rd2;\n\
         ld.const.u32 %r2, [%rd3];\nmov.b64 %rd4, k_param_1;\nadd.s64 %rd4, %rd4, %rd2;\nld.param.u32 %r3, [%rd4];\n\
         ld.param.v2.u32 {{%r4, %r5}}, [k_param_1+8];\nadd.u32 %r6, %r2, %r3;\nadd.u32 %r6, %r6, %r5;\n\
         st.global.u32 [%rd1], %r6;"
    );
    let (report, out) = run(&body, module, 1, 32);
    assert!(report.clean(), "{:?}", report.findings);
    let wanted = |t: u32| 10 * (t % 4 + 1) + 5 + t % 4 + 8;
    assert_eq!(out, (0..32).map(wanted).collect::<Vec<_>>());
}

/// Every block adds its number to a word and counts itself; the last one sums up. See CUDA's threadFenceReduction.
fn last_block(fence: &str) -> (Report, Vec<u32>) {
    let module = ".global .align 4 .u32 count;";
    let body = format!(
        "ld.param.u64 %rd0, [k_param_0];\nmov.u32 %r0, %tid.x;\nmov.u32 %r1, %ctaid.x;\nmul.wide.u32 %rd1, %r1, 4;\n\
         add.s64 %rd1, %rd0, %rd1;\nsetp.ne.u32 %p1, %r0, 0;\n@%p1 bra done;\nst.global.u32 [%rd1], %r1;\n{fence}\n\
         atom.global.inc.u32 %r2, [count], 7;\nsetp.ne.u32 %p1, %r2, 7;\n@%p1 bra done;\n{fence}\n\
         mov.u32 %r3, 0;\nmov.u32 %r4, 0;\nmov.u64 %rd2, %rd0;\nloop:\nld.global.u32 %r5, [%rd2];\nadd.u32 %r3, %r3, %r5;\n\
         add.s64 %rd2, %rd2, 4;\nadd.u32 %r4, %r4, 1;\nsetp.lt.u32 %p2, %r4, 8;\n@%p2 bra loop;\n\
         st.global.u32 [%rd0+32], %r3;\ndone:"
    );
    run(&body, module, 8, 9)
}

#[test]
fn the_last_block_needs_fences() {
    let (report, out) = last_block("membar.gl;");
    assert!(report.clean(), "{:?}", report.findings);
    assert_eq!(out[8], 28);
    let (report, _) = last_block("");
    let kinds: Vec<Kind> = report.findings.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [Kind::GlobalRace]);
}
