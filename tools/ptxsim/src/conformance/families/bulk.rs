//! Bulk copies: `cp.async.bulk` both ways, `cp.reduce.async.bulk`, prefetch. PTX ISA 9.7.9.25.4, compute capability 9.0.

use super::super::case::{Comparison, Target};
use super::super::elementwise::Suite;
use super::super::kernel::Kernel;
use super::super::softfloat::Format;
use super::super::values::{Rng, floats, integers, ones};
use rustc_apfloat::Round;

/// Family `bulk`.
pub fn cases(s: &mut Suite) {
    s.target(Target::Sm90);
    for bytes in [16, 64, 1024, 2048] {
        load(s, "shared::cluster", bytes);
        store(s, bytes);
    }
    load(s, "shared::cta", 512);
    groups(s);
    reductions(s);
    prefetch(s);
}

const THREADS: u32 = 64;
const DECLARE: &str = ".shared .align 128 .b8 buffer[2048];\n.shared .align 8 .b64 bar;\n.reg .b64 at, from, to;\n\
                       .reg .b32 x, n, size, generic;\n.reg .pred p, q;\n";

fn contents(name: &str, bytes: usize) -> Vec<u8> {
    let mut rng = Rng::new(name);
    (0..bytes).map(|_| rng.bits() as u8).collect()
}

/// Copies words between the buffer and global memory, all threads together; `{n}` counts bytes.
fn words(label: &str, bytes: usize, step: &str) -> String {
    format!(
        "shl.b32 n, %t, 2;\n{label}:\nsetp.ge.u32 p, n, {bytes};\n@p bra {label}_end;\n{step}add.u32 n, n, {};\n\
         bra {label};\n{label}_end:\n",
        4 * THREADS
    )
}

const TO_BUFFER: &str = "cvt.u64.u32 at, n;\nadd.u64 from, at, in0;\nld.global.b32 x, [from];\nmov.u64 from, buffer;\n\
                         add.u64 at, at, from;\nst.shared.b32 [at], x;\n";
const FROM_BUFFER: &str = "cvt.u64.u32 at, n;\nadd.u64 to, at, out;\nmov.u64 from, buffer;\nadd.u64 at, at, from;\n\
                           ld.shared.b32 x, [at];\nst.global.b32 [to], x;\n";

fn kernel(
    s: &mut Suite,
    name: String,
    body: String,
    inputs: Vec<Vec<u8>>,
    expected: Vec<u8>,
    f: Option<Format>,
) {
    Kernel {
        name,
        body,
        launch: (1, THREADS),
        inputs,
        expected,
        element: f.map_or(4, Format::bytes),
        comparison: f.map_or(Comparison::Bits, Comparison::Float),
        ..Kernel::default()
    }
    .add(s);
}

/// Global to shared, in two copies that one barrier's transaction count covers.
fn load(s: &mut Suite, dst: &str, bytes: usize) {
    let name = format!("cp.async.bulk.{dst}.global of {bytes} bytes");
    let data = contents(&name, 2 * bytes.max(16));
    let first = (bytes / 2).next_multiple_of(16);
    let text = format!("cp.async.bulk.{dst}.global.mbarrier::complete_tx::bytes");
    let mut body = format!(
        "{DECLARE}setp.ne.u32 q, %t, 0;\n@q bra ready;\nmbarrier.init.shared::cta.b64 [bar], 1;\n\
         fence.mbarrier_init.release.cluster;\nready:\nbar.sync 0;\n@q bra wait;\nmov.u64 at, buffer;\n\
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {bytes};\nadd.u64 from, in0, 16;\n\
         {text} [at], [from], {first}, [bar];\n"
    );
    if bytes > first {
        body +=
            &format!("mov.u32 size, {};\n{text} [at+{first}], [from+{first}], size, [bar];\n", bytes - first);
    }
    body += "wait:\nmbarrier.try_wait.parity.shared::cta.b64 p, [bar], 0;\n@!p bra wait;\n";
    body += &words("copy", bytes, FROM_BUFFER);
    let expected = data[16..16 + bytes].to_vec();
    kernel(s, name, body, vec![data], expected, None);
}

/// Shared to global.
fn store(s: &mut Suite, bytes: usize) {
    let name = format!("cp.async.bulk.global.shared::cta of {bytes} bytes");
    let data = contents(&name, bytes);
    let mut body = DECLARE.to_string();
    body += &words("fill", bytes, TO_BUFFER);
    body += &format!(
        "fence.proxy.async.shared::cta;\nbar.sync 0;\nsetp.ne.u32 q, %t, 0;\n@q ret;\nmov.u64 at, buffer;\n\
         cp.async.bulk.global.shared::cta.bulk_group [out], [at], {bytes};\ncp.async.bulk.commit_group;\n\
         cp.async.bulk.wait_group 0;\n"
    );
    kernel(s, name, body, vec![data.clone()], data, None);
}

/// Groups and `.read`: the source may be overwritten once it has been read.
fn groups(s: &mut Suite) {
    let data = contents("groups", 256);
    let mut body = DECLARE.to_string();
    body += &words("fill", 256, TO_BUFFER);
    body += "fence.proxy.async.shared::cta;\nbar.sync 0;\nsetp.ne.u32 q, %t, 0;\n@q ret;\nmov.u64 at, buffer;\n\
             cp.async.bulk.global.shared::cta.bulk_group [out], [at], 128;\ncp.async.bulk.commit_group;\n\
             cp.async.bulk.global.shared::cta.bulk_group [out+128], [at+128], 128;\ncp.async.bulk.commit_group;\n\
             cp.async.bulk.wait_group.read 1;\nst.shared.b32 [at], 0;\ncp.async.bulk.wait_group.read 0;\n\
             st.shared.b32 [at+128], 0;\ncp.async.bulk.wait_group 0;\n";
    kernel(s, "cp.async.bulk.commit_group, wait_group, .read".into(), body, vec![data.clone()], data, None);
}

fn signed(bits: u32, v: u64) -> i64 {
    ((v << (64 - bits)) as i64) >> (64 - bits)
}

/// Shared onto global, element by element.
fn reductions(s: &mut Suite) {
    type Op = Box<dyn Fn(u64, u64) -> u64>;
    let rn = Round::NearestTiesToEven;
    let mut all: Vec<(String, u32, Option<Format>, Op)> = Vec::new();
    for n in [32u32, 64] {
        all.push((format!("and.b{n}"), n, None, Box::new(|r, b| r & b)));
        all.push((format!("or.b{n}"), n, None, Box::new(|r, b| r | b)));
        all.push((format!("xor.b{n}"), n, None, Box::new(|r, b| r ^ b)));
        all.push((format!("add.u{n}"), n, None, Box::new(move |r, b| r.wrapping_add(b) & ones(n))));
        all.push((format!("min.u{n}"), n, None, Box::new(|r, b| r.min(b))));
        all.push((format!("max.u{n}"), n, None, Box::new(|r, b| r.max(b))));
        let less = move |r: u64, b: u64| signed(n, r) < signed(n, b);
        all.push((format!("min.s{n}"), n, None, Box::new(move |r, b| if less(r, b) { r } else { b })));
        all.push((format!("max.s{n}"), n, None, Box::new(move |r, b| if less(r, b) { b } else { r })));
    }
    all.push(("add.s32".into(), 32, None, Box::new(|r, b| r.wrapping_add(b) & ones(32))));
    all.push(("inc.u32".into(), 32, None, Box::new(|r, b| if r >= b { 0 } else { r + 1 })));
    all.push(("dec.u32".into(), 32, None, Box::new(|r, b| if r == 0 || r > b { b } else { r - 1 })));
    let single = Format::F32;
    let flushed = move |r: u64, b: u64| single.flush(single.add(rn, single.flush(r), single.flush(b)));
    all.push(("add.f32".into(), 32, Some(single), Box::new(flushed)));
    all.push(("add.f64".into(), 64, Some(Format::F64), Box::new(move |r, b| Format::F64.add(rn, r, b))));
    for f in [Format::F16, Format::Bf16] {
        all.push((format!("add.noftz.{}", f.name()), 16, Some(f), Box::new(move |r, b| f.add(rn, r, b))));
        for (op, max) in [("min", false), ("max", true)] {
            let pick = move |r, b| super::float::extreme(f, max, false, false, r, b);
            all.push((format!("{op}.{}", f.name()), 16, Some(f), Box::new(pick)));
        }
    }
    for (text, bits, format, op) in all {
        let name = format!("cp.reduce.async.bulk.global.shared::cta.bulk_group.{text}");
        let size = bits as usize / 8;
        let values = format.map_or_else(|| integers(bits), floats);
        let mut rng = Rng::new(&name);
        let count = 2048 / size;
        let draw = |rng: &mut Rng| {
            let n = values.special.len() as u64;
            match (rng.below(2), values.random) {
                (0, Some(random)) => random(rng) & ones(bits),
                _ => values.special[rng.below(n) as usize],
            }
        };
        let source: Vec<u64> = (0..count).map(|_| draw(&mut rng)).collect();
        let target: Vec<u64> = (0..count).map(|_| draw(&mut rng)).collect();
        let bytes = |v: &[u64]| v.iter().flat_map(|x| x.to_le_bytes()[..size].to_vec()).collect::<Vec<u8>>();
        let result: Vec<u64> = target.iter().zip(&source).map(|(&r, &b)| op(r, b)).collect();
        let mut body = DECLARE.to_string();
        body += &words("fill", 2048, TO_BUFFER);
        // The destination first gets its values, from the second input.
        body += &words(
            "set",
            2048,
            "cvt.u64.u32 at, n;\nadd.u64 from, at, in1;\nld.global.b32 x, [from];\nadd.u64 to, at, out;\n\
             st.global.b32 [to], x;\n",
        );
        body += &format!(
            "fence.proxy.async;\nbar.sync 0;\nsetp.ne.u32 q, %t, 0;\n@q ret;\nmov.u64 at, buffer;\n\
             {name} [out], [at], 2048;\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\n"
        );
        kernel(s, name, body, vec![bytes(&source), bytes(&target)], bytes(&result), format);
    }
}

/// A hint: nothing changes.
fn prefetch(s: &mut Suite) {
    let data = contents("prefetch", 256);
    let body = format!(
        "{DECLARE}cp.async.bulk.prefetch.L2.global [in0], 256;\nprefetch.global.L2 [in0];\nprefetch.global.L1 [in0+128];\n{}",
        words(
            "copy",
            256,
            "cvt.u64.u32 at, n;\nadd.u64 from, at, in0;\nld.global.b32 x, [from];\nadd.u64 to, at, out;\n\
                            st.global.b32 [to], x;\n"
        )
    );
    kernel(s, "cp.async.bulk.prefetch.L2, prefetch".into(), body, vec![data.clone()], data, None);
}
