//! `ldmatrix`, `stmatrix`, `movmatrix`: PTX ISA 9.7.14.5.15 to 17, element by element.

use super::super::case::Target;
use super::super::elementwise::Suite;
use super::super::kernel::{Kernel, words};
use super::super::values::Rng;

/// Family `matrix`.
pub fn cases(s: &mut Suite) {
    for num in [1usize, 2, 4] {
        for trans in [false, true] {
            for generic in [false, true] {
                load(s, num, trans, generic);
            }
        }
    }
    movmatrix(s);
    s.target(Target::Sm90);
    for num in [1usize, 2, 4] {
        for trans in [false, true] {
            for generic in [false, true] {
                store(s, num, trans, generic);
            }
        }
    }
    s.target(Target::Sm80);
}

/// Element pair of a lane in an 8x8 matrix of 16 bits: row of four lanes each, two elements a lane; transposed with `.trans`.
fn pair(lane: usize, trans: bool) -> [(usize, usize); 2] {
    [0, 1].map(|h| {
        let (row, column) = (lane / 4, 2 * (lane % 4) + h);
        if trans { (column, row) } else { (row, column) }
    })
}

/// 32 rows of 16 bytes at shuffled places.
fn places(rng: &mut Rng) -> Vec<u32> {
    let mut order: Vec<u32> = (0..32).collect();
    for i in (1..32).rev() {
        order.swap(i, rng.below(i as u64 + 1) as usize);
    }
    order.iter().map(|i| 16 * i).collect()
}

fn text(op: &str, num: usize, trans: bool, generic: bool) -> String {
    format!(
        "{op}.sync.aligned.m8n8.x{num}{}{}.b16",
        if trans { ".trans" } else { "" },
        if generic { "" } else { ".shared" }
    )
}

fn list(r: &str, n: usize) -> String {
    let names: Vec<String> = (0..n).map(|i| format!("{r}{i}")).collect();
    names.join(", ")
}

/// Shared memory `rows` and its address plus the lane's offset in `at`: generic or not.
fn address(generic: bool) -> &'static str {
    if generic {
        "mov.u64 at, rows;\ncvta.shared.u64 at, at;\ncvt.u64.u32 wide, offset;\nadd.u64 at, at, wide;\n"
    } else {
        "mov.u64 at, rows;\ncvt.u64.u32 wide, offset;\nadd.u64 at, at, wide;\n"
    }
}

const DECLARE: &str =
    ".shared .align 128 .b8 rows[512];\n.reg .b64 at, wide, to;\n.reg .b32 offset, r<4>, x;\n";

fn load(s: &mut Suite, num: usize, trans: bool, generic: bool) {
    let text = text("ldmatrix", num, trans, generic);
    let mut rng = Rng::new(&text);
    let contents: Vec<u16> = (0..256).map(|_| rng.bits() as u16).collect();
    let rows = places(&mut rng);
    // Each warp of the launch takes other data and other places.
    let mut body = DECLARE.to_string();
    for word in 0..4 {
        body += &format!(
            "mad.wide.u32 at, %t, 16, in0;\nld.global.b32 x, [at+{0}];\nmov.u64 at, rows;\n\
             mad.wide.u32 at, %t, 16, at;\nst.shared.b32 [at+{0}], x;\n",
            4 * word
        );
    }
    body += "bar.sync 0;\nmad.wide.u32 at, %t, 4, in1;\nld.global.b32 offset, [at];\n";
    body += address(generic);
    body += &format!("{text} {{{}}}, [at];\n", list("r", num));
    body += &format!("mad.wide.u32 to, %t, {}, out;\n", 4 * num);
    for i in 0..num {
        body += &format!("st.global.b32 [to+{}], r{i};\n", 4 * i);
    }
    let mut expected = Vec::new();
    for lane in 0..32 {
        for matrix in 0..num {
            let halves = pair(lane, trans).map(|(row, column)| {
                let start = rows[8 * matrix + row] as usize / 2;
                u32::from(contents[start + column])
            });
            expected.push(halves[0] | halves[1] << 16);
        }
    }
    let data: Vec<u8> = contents.iter().flat_map(|v| v.to_le_bytes()).collect();
    Kernel {
        name: text,
        body,
        inputs: vec![data, words(rows)],
        expected: words(expected),
        ..Kernel::default()
    }
    .add(s);
}

fn store(s: &mut Suite, num: usize, trans: bool, generic: bool) {
    let text = text("stmatrix", num, trans, generic);
    let mut rng = Rng::new(&text);
    let registers: Vec<u32> = (0..32 * num).map(|_| rng.bits() as u32).collect();
    let rows = places(&mut rng);
    let mut body = DECLARE.to_string();
    body += "mov.u64 at, rows;\nmad.wide.u32 at, %t, 16, at;\n";
    for word in 0..4 {
        body += &format!("st.shared.b32 [at+{}], 0x5a5a5a5a;\n", 4 * word);
    }
    body += &format!("bar.sync 0;\nmad.wide.u32 at, %t, {}, in0;\n", 4 * num);
    for i in 0..num {
        body += &format!("ld.global.b32 r{i}, [at+{}];\n", 4 * i);
    }
    body += "mad.wide.u32 at, %t, 4, in1;\nld.global.b32 offset, [at];\n";
    body += address(generic);
    body += &format!("{text} [at], {{{}}};\nbar.sync 0;\n", list("r", num));
    for word in 0..4 {
        body += &format!(
            "mov.u64 at, rows;\nmad.wide.u32 at, %t, 16, at;\nld.shared.b32 x, [at+{0}];\n\
             mad.wide.u32 to, %t, 16, out;\nst.global.b32 [to+{0}], x;\n",
            4 * word
        );
    }
    let mut expected = vec![0x5a5a_u16; 256];
    for lane in 0..32 {
        for matrix in 0..num {
            for (h, (row, column)) in pair(lane, trans).into_iter().enumerate() {
                let start = rows[8 * matrix + row] as usize / 2;
                expected[start + column] = (registers[lane * num + matrix] >> (16 * h)) as u16;
            }
        }
    }
    Kernel {
        name: text,
        body,
        inputs: vec![words(registers), words(rows)],
        expected: expected.iter().flat_map(|v| v.to_le_bytes()).collect(),
        element: 2,
        ..Kernel::default()
    }
    .add(s);
}

fn movmatrix(s: &mut Suite) {
    let name = "movmatrix.sync.aligned.m8n8.trans.b16";
    let mut rng = Rng::new(name);
    let source: Vec<u32> = (0..32).map(|_| rng.bits() as u32).collect();
    let element =
        |(row, column): (usize, usize)| source[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
    let expected = (0..32).map(|lane| {
        let [low, high] = pair(lane, true).map(element);
        low | high << 16
    });
    let expected = words(expected);
    let body = format!(
        ".reg .b64 at;\n.reg .b32 a, d;\nmad.wide.u32 at, %t, 4, in0;\nld.global.b32 a, [at];\n{name} d, a;\n\
         mad.wide.u32 at, %t, 4, out;\nst.global.b32 [at], d;\n"
    );
    Kernel { name: name.into(), body, inputs: vec![words(source)], expected, ..Kernel::default() }.add(s);
}
