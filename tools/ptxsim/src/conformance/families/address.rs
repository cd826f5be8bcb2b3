//! Parameters, module-scope variables and address spaces: PTX ISA 5.1, 5.4, `cvta`, `isspacep`.

use super::super::elementwise::Suite;
use super::super::kernel::{Kernel, words};
use super::super::values::Rng;

/// The part of the family `memory` that is about where things are.
pub fn cases(s: &mut Suite) {
    parameters(s);
    variables(s);
    addresses(s);
    dynamic(s);
}

const DECLARE: &str = ".reg .b64 at, from, to, other;\n.reg .b16 byte;\n.reg .pred p;\n";

/// Pieces of a parameter by `ld.param`; its address by `mov` and a generic load.
fn parameters(s: &mut Suite) {
    let body = format!(
        "{DECLARE}.reg .b32 low, high, d;\n.reg .b64 whole, again;\nld.param.u32 low, [p0];\n\
         ld.param.u32 high, [p0+4];\nmov.b64 whole, {{low, high}};\nsetp.eq.u64 p, whole, in0;\nselp.b32 d, 1, 0, p;\n\
         ld.param.v2.u32 {{low, high}}, [p1];\nmov.b64 whole, {{low, high}};\nsetp.eq.u64 p, whole, out;\n\
         selp.b32 low, 2, 0, p;\nor.b32 d, d, low;\nld.param.u8 byte, [p0+1];\nshr.u64 again, in0, 8;\n\
         cvt.u32.u64 high, again;\nand.b32 high, high, 255;\ncvt.u32.u16 low, byte;\nsetp.eq.u32 p, low, high;\n\
         selp.b32 low, 4, 0, p;\nor.b32 d, d, low;\nmad.wide.u32 to, %t, 4, out;\nst.global.b32 [to], d;\n"
    );
    Kernel {
        name: "ld.param in pieces".into(),
        body,
        inputs: vec![vec![0; 16]],
        expected: words(vec![7; 32]),
        ..Kernel::default()
    }
    .add(s);
}

/// Module-scope variables with initialisers of every form.
fn variables(s: &mut Suite) {
    let module = "\
        .global .align 4 .u32 numbers[4] = {1, 0xFFFFFFFE, -3, 017};\n\
        .global .align 8 .f64 doubles[2] = {0d400921FB54442D18, -2.5};\n\
        .global .align 4 .f32 floats[3] = {0f3F800000, 1.5, -0.25};\n\
        .global .align 2 .s16 grid[2][3] = {{1, 2}, {-4, 5, 6}};\n\
        .global .align 8 .u64 pointers[2] = {numbers, generic(numbers)+8};\n\
        .const .align 4 .b8 letters[8] = {104, 105, 0, 1};\n\
        .global .align 4 .u32 zero[2];\n\
        .global .align 16 .v4 .f32 quad = {1.0, 2.0, 3.0, 4.0};";
    let mut body = format!("{DECLARE}.reg .b32 v<4>;\n.reg .b64 w, q;\nsetp.ne.u32 p, %t, 0;\n@p ret;\n");
    let mut expected = Vec::new();
    let mut at = 0;
    let mut word = |body: &mut String, load: &str, value: u32| {
        *body += &format!("{load}\nst.global.b32 [out+{at}], v0;\n");
        expected.push(value);
        at += 4;
    };
    for (i, value) in [1, 0xffff_fffe, -3i32 as u32, 15].into_iter().enumerate() {
        word(&mut body, &format!("ld.global.u32 v0, [numbers+{}];", 4 * i), value);
    }
    for (i, value) in [std::f64::consts::PI, -2.5].into_iter().enumerate() {
        let load = format!("ld.global.b64 w, [doubles+{}];\nmov.b64 {{v0, v1}}, w;", 8 * i);
        word(&mut body, &load, value.to_bits() as u32);
        word(&mut body, "mov.b32 v0, v1;", (value.to_bits() >> 32) as u32);
    }
    for (i, value) in [1f32, 1.5, -0.25].into_iter().enumerate() {
        word(&mut body, &format!("ld.global.b32 v0, [floats+{}];", 4 * i), value.to_bits());
    }
    for (i, value) in [1i32, 2, 0, -4, 5, 6].into_iter().enumerate() {
        word(&mut body, &format!("ld.global.s16 v0, [grid+{}];", 2 * i), value as u32);
    }
    for (i, value) in [1, -3i32 as u32].into_iter().enumerate() {
        word(&mut body, &format!("ld.global.u64 q, [pointers+{}];\nld.u32 v0, [q];", 8 * i), value);
    }
    word(&mut body, "ld.const.u32 v0, [letters];", u32::from_le_bytes([104, 105, 0, 1]));
    word(&mut body, "ld.const.u32 v0, [letters+4];", 0);
    word(&mut body, "mov.u64 q, letters;\nld.const.u8 v0, [q+1];", 105);
    word(&mut body, "cvta.const.u64 q, letters;\nld.u8 v0, [q];", 104);
    word(&mut body, "ld.global.u32 v0, [zero+4];", 0);
    word(&mut body, "ld.global.v4.b32 {v3, v2, v0, v1}, [quad];", 3f32.to_bits());
    word(&mut body, "cvta.global.u64 q, floats;\nld.b32 v0, [q+4];", 1.5f32.to_bits());
    Kernel {
        name: "module-scope variables".into(),
        module: module.into(),
        body,
        expected: words(expected),
        ..Kernel::default()
    }
    .add(s);
}

/// Dynamic shared memory, after the static one; more of it than a block has unasked.
fn dynamic(s: &mut Suite) {
    for bytes in [256u32, 64 * 1024] {
        let mut rng = Rng::new("dynamic");
        let data: Vec<u32> = (0..32).map(|_| rng.bits() as u32).collect();
        // The last 128 bytes, written by one thread and read by another.
        let body = format!(
            "{DECLARE}.shared .align 16 .b8 fixed[48];\n.reg .b32 x, n;\nmad.wide.u32 from, %t, 4, in0;\n\
             ld.global.b32 x, [from];\nmov.u64 at, fixed;\nsetp.eq.u32 p, %t, 0;\n@p st.shared.b32 [at], 0;\n\
             mov.u64 at, extended;\nmad.wide.u32 at, %t, 4, at;\nst.shared.b32 [at+{0}], x;\nbar.sync 0;\nxor.b32 n, %t, 31;\n\
             mov.u64 at, extended;\nmad.wide.u32 at, n, 4, at;\nld.shared.b32 x, [at+{0}];\n\
             mad.wide.u32 to, %t, 8, out;\nst.global.b32 [to], x;\nmov.u32 n, %dynamic_smem_size;\n\
             st.global.b32 [to+4], n;\n",
            bytes - 128
        );
        let expected = (0..32).flat_map(|t| [data[t ^ 31], bytes]).collect::<Vec<u32>>();
        Kernel {
            name: format!("extern .shared of {bytes} bytes, %dynamic_smem_size"),
            module: ".extern .shared .align 16 .b8 extended[];".into(),
            body,
            dynamic_shared: bytes,
            inputs: vec![words(data.iter().copied())],
            expected: words(expected),
            ..Kernel::default()
        }
        .add(s);
    }
}

/// `cvta`, `isspacep`: to generic and back, and which window an address is in.
fn addresses(s: &mut Suite) {
    let module = ".const .align 4 .b8 table[4] = {1, 2, 3, 4};\n.global .align 4 .b32 cell;";
    let mut body = format!(
        "{DECLARE}.shared .align 16 .b8 sh[64];\n.local .align 16 .b8 lo[64];\n.reg .b64 g<4>, b;\n.reg .b32 d, one;\n\
         mov.u64 at, sh;\nadd.u64 at, at, 12;\ncvta.shared.u64 g0, at;\nmov.u64 at, lo;\nadd.u64 at, at, 4;\n\
         cvta.local.u64 g1, at;\ncvta.global.u64 g2, cell;\ncvta.const.u64 g3, table;\nmov.b32 d, 0;\n"
    );
    // Bit 4 * window + pointer.
    let mut expected = 0u32;
    for (window, space) in ["shared", "local", "global", "const"].into_iter().enumerate() {
        for pointer in 0..4 {
            // Whether constants and global memory have windows of their own is left to the card.
            if window >= 2 && pointer >= 2 && (window, pointer) != (2, 2) {
                continue;
            }
            let bit = 4 * window + pointer;
            body += &format!(
                "isspacep.{space} p, g{pointer};\nselp.b32 one, {}, 0, p;\nor.b32 d, d, one;\n",
                1 << bit
            );
            if window == pointer {
                expected |= 1 << bit;
            }
        }
    }
    // Back again.
    for (bit, (space, g, variable)) in
        [("shared", 0, "sh+12"), ("local", 1, "lo+4"), ("global", 2, "cell"), ("const", 3, "table")]
            .into_iter()
            .enumerate()
    {
        body += &format!(
            "cvta.to.{space}.u64 b, g{g};\nmov.u64 at, {variable};\nsetp.eq.u64 p, b, at;\nselp.b32 one, {}, 0, p;\n\
             or.b32 d, d, one;\n",
            1 << (16 + bit)
        );
        expected |= 1 << (16 + bit);
    }
    body += "mad.wide.u32 to, %t, 4, out;\nst.global.b32 [to], d;\n";
    Kernel {
        name: "cvta, isspacep".into(),
        module: module.into(),
        body,
        expected: words(vec![expected; 32]),
        ..Kernel::default()
    }
    .add(s);
}
