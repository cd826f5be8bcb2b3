//! Moves, vectors, clocks.

use super::{refused, verify};
use crate::exec::test_bench::Bench;

fn lanes(seed: u64) -> [u64; 32] {
    std::array::from_fn(|l| (l as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[test]
fn plain_moves() {
    for ty in ["b32", "u32", "s32", "f32"] {
        verify(&format!("mov.{ty} %r0, %r1"), 32, |r| [r.next()], |[a]| a);
    }
    for ty in ["b64", "u64", "s64", "f64"] {
        verify(&format!("mov.{ty} %rd0, %rd1"), 64, |r| [r.next()], |[a]| a);
    }
    verify("mov.b16 %r0, %r1", 16, |r| [r.next()], |[a]| a);
    verify("mov.u32 %r0, -5", 32, |_| [], |[]| -5i64 as u64);
    verify("mov.u64 %rd0, -5", 64, |_| [], |[]| -5i64 as u64);
    verify("mov.u16 %r0, 40000", 16, |_| [], |[]| 40_000);
    let mut b = Bench::new("mov.b128 %rq0, %rq1;").expect("lowers");
    let long = lanes(1).map(|x| u128::from(x) << 64 | u128::from(!x));
    b.set("%rq1", long);
    b.run(u32::MAX);
    assert_eq!(b.get::<u128>("%rq0"), long);
}

#[test]
fn registers_are_packed_lowest_first() {
    let mut b = Bench::new(
        "mov.b32 %r0, {%rs1, %rs2}; mov.b64 %rd0, {%r1, %r2}; mov.b64 %rd1, {%rs1, %rs2, %rs3, 7}; \
         mov.b128 %rq0, {%rd2, %rd3}; mov.b32 %r3, {%rs1, %rs2, %rs3, %rs1}; mov.b128 %rq1, {%r1, %r2, %r1, 1};",
    )
    .expect("lowers");
    let [s1, s2, s3] = [1, 2, 3].map(|k| lanes(k).map(|x| (x >> 20) as u16));
    let [r1, r2] = [4, 5].map(|k| lanes(k).map(|x| (x >> 20) as u32));
    let [d2, d3] = [6, 7].map(lanes);
    b.set("%rs1", s1);
    b.set("%rs2", s2);
    b.set("%rs3", s3);
    b.set("%r1", r1);
    b.set("%r2", r2);
    b.set("%rd2", d2);
    b.set("%rd3", d3);
    b.run(u32::MAX);
    for l in 0..32 {
        let (h, w) = (|x: u16| u64::from(x), |x: u32| u128::from(x));
        assert_eq!(u64::from(b.get::<u32>("%r0")[l]), h(s1[l]) | h(s2[l]) << 16);
        assert_eq!(b.get::<u64>("%rd0")[l], u64::from(r1[l]) | u64::from(r2[l]) << 32);
        assert_eq!(b.get::<u64>("%rd1")[l], h(s1[l]) | h(s2[l]) << 16 | h(s3[l]) << 32 | 7 << 48);
        assert_eq!(b.get::<u128>("%rq0")[l], u128::from(d2[l]) | u128::from(d3[l]) << 64);
        let bytes = [s1[l] as u8, s2[l] as u8, s3[l] as u8, s1[l] as u8];
        assert_eq!(b.get::<u32>("%r3")[l], u32::from_le_bytes(bytes));
        assert_eq!(b.get::<u128>("%rq1")[l], w(r1[l]) | w(r2[l]) << 32 | w(r1[l]) << 64 | 1 << 96);
    }
}

#[test]
fn registers_are_taken_apart_lowest_first() {
    let mut b = Bench::new(
        "mov.b32 {%rs1, %rs2}, %r0; mov.b64 {%r1, %r2}, %rd0; mov.b64 {_, %rs3, _, %rs4}, %rd0; \
         mov.b128 {%rd1, %rd2}, %rq0; mov.b128 {_, _, %r3, _}, %rq0; mov.b16 {%rs5, %rs6}, %rs7;",
    )
    .expect("lowers");
    let (r0, d0) = (lanes(1).map(|x| (x >> 20) as u32), lanes(2));
    let q0 = lanes(3).map(|x| u128::from(x) << 64 | u128::from(x.rotate_left(17)));
    b.set("%r0", r0);
    b.set("%rd0", d0);
    b.set("%rq0", q0);
    b.set("%rs7", [0x1234u16; 32]);
    b.set("%r2", [9u32; 32]);
    b.run(0x7fff_ffff);
    for l in 0..31 {
        assert_eq!((b.get::<u16>("%rs1")[l], b.get::<u16>("%rs2")[l]), (r0[l] as u16, (r0[l] >> 16) as u16));
        assert_eq!((b.get::<u32>("%r1")[l], b.get::<u32>("%r2")[l]), (d0[l] as u32, (d0[l] >> 32) as u32));
        assert_eq!(
            (b.get::<u16>("%rs3")[l], b.get::<u16>("%rs4")[l]),
            ((d0[l] >> 16) as u16, (d0[l] >> 48) as u16)
        );
        assert_eq!((b.get::<u64>("%rd1")[l], b.get::<u64>("%rd2")[l]), (q0[l] as u64, (q0[l] >> 64) as u64));
        assert_eq!(b.get::<u32>("%r3")[l], (q0[l] >> 64) as u32);
        assert_eq!((b.get::<u16>("%rs5")[l], b.get::<u16>("%rs6")[l]), (0x34, 0x12));
    }
    assert_eq!(b.get::<u32>("%r2")[31], 9, "the last lane took no part");
    refused("mov.b32 %r0, {%r1}", "two elements");
    refused("mov.b32 %r0, {%rs1, %rs2, %rs3}", "parts");
}

#[test]
fn special_registers() {
    let mut b =
        Bench::new("mov.u32 %r0, %tid.x; mov.u32 %r1, %laneid; mov.u32 %r2, %ntid.x; mov.u64 %rd0, %gridid;")
            .expect("lowers");
    b.run(u32::MAX);
    assert_eq!(b.get::<u32>("%r0"), std::array::from_fn(|l| l as u32));
    assert_eq!(b.get::<u32>("%r1"), b.get::<u32>("%r0"));
    assert_eq!(b.get::<u32>("%r2"), [32; 32]);
}

#[test]
fn clocks_count_the_instructions_of_the_warp() {
    let mut b = Bench::new(
        "mov.u32 %r0, %clock; mov.u64 %rd0, %clock64; mov.u32 %r1, %clock_hi; mov.u64 %rd1, %globaltimer; \
         mov.u32 %r2, %globaltimer_lo; mov.u32 %r3, %globaltimer_hi;",
    )
    .expect("lowers");
    b.cx.block.warps[0].executed = 0x5_0000_0007;
    b.run(u32::MAX);
    let now = b.cx.clock();
    assert_eq!(now >> 32, 5);
    for (low, high, all) in [("%r0", "%r1", "%rd0"), ("%r2", "%r3", "%rd1")] {
        assert_eq!(b.get::<u32>(low), [now as u32; 32]);
        assert_eq!(b.get::<u32>(high), [5; 32]);
        assert_eq!(b.get::<u64>(all), [now; 32]);
    }
    refused("mov.u64 %rd0, %clock", "bits");
}
