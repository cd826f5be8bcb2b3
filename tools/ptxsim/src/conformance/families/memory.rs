//! `ld`, `st` in every space and width: PTX ISA 9.7.9.

use super::super::elementwise::Suite;
use super::super::kernel::Kernel;
use super::super::values::{Rng, ones};

/// Threads of a case's block.
const THREADS: usize = 64;

/// Family `memory`.
pub fn cases(s: &mut Suite) {
    for space in SPACES {
        for ty in TYPES {
            for register in [16, 32, 64] {
                if register >= bits(ty) {
                    load(s, space, ty, register);
                    if space != Space::Const {
                        store(s, space, ty, register);
                    }
                }
            }
        }
        for ty in ["b8", "b16", "b32", "b64", "f32", "f64", "u8", "s16"] {
            for n in [2, 4] {
                if bits(ty) * n <= 128 {
                    vector(s, space, ty, n as usize);
                }
            }
        }
        offsets(s, space);
    }
    operators(s);
    policies(s);
    wide(s);
    super::address::cases(s);
}

const TYPES: [&str; 14] =
    ["b8", "b16", "b32", "b64", "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f32", "f64"];

fn bits(ty: &str) -> u32 {
    ty[1..].parse().unwrap_or(0)
}

/// Where the bytes are; `Generic*` are reached by a generic address.
#[derive(Clone, Copy, PartialEq)]
enum Space {
    Global,
    Shared,
    Local,
    Const,
    GenericGlobal,
    GenericShared,
    GenericLocal,
}

const SPACES: [Space; 7] = [
    Space::Global,
    Space::Shared,
    Space::Local,
    Space::Const,
    Space::GenericGlobal,
    Space::GenericShared,
    Space::GenericLocal,
];

impl Space {
    /// The word after the opcode, with its dot.
    fn word(self) -> &'static str {
        match self {
            Space::Global => ".global",
            Space::Shared => ".shared",
            Space::Local => ".local",
            Space::Const => ".const",
            _ => "",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Space::GenericGlobal => " generic to global",
            Space::GenericShared => " generic to shared",
            Space::GenericLocal => " generic to local",
            _ => "",
        }
    }

    fn local(self) -> bool {
        matches!(self, Space::Local | Space::GenericLocal)
    }

    /// Declares `buffer` of so many bytes and leaves the address of the thread's part in `at`, the size of which is a
    /// multiple of its alignment. Local memory is the thread's own: its part begins at the same place for all.
    fn place(self, bytes: usize) -> (String, String) {
        let total = bytes * THREADS;
        let part = format!("mad.wide.u32 at, %t, {bytes}, at;\n");
        match self {
            Space::Global | Space::GenericGlobal => {
                (String::new(), format!("add.u64 at, out, {total};\n{part}"))
            }
            Space::Const => (String::new(), format!("mov.u64 at, table;\n{part}")),
            Space::Shared => {
                (format!(".shared .align 16 .b8 buffer[{total}];\n"), format!("mov.u64 at, buffer;\n{part}"))
            }
            Space::GenericShared => (
                format!(".shared .align 16 .b8 buffer[{total}];\n"),
                format!("mov.u64 at, buffer;\n{part}cvta.shared.u64 at, at;\n"),
            ),
            Space::Local => {
                (format!(".local .align 16 .b8 buffer[{}];\n", 16 + bytes), "mov.u64 at, buffer;\n".into())
            }
            Space::GenericLocal => (
                format!(".local .align 16 .b8 buffer[{}];\n", 16 + bytes),
                "mov.u64 at, buffer;\ncvta.local.u64 at, at;\n".into(),
            ),
        }
    }
}

/// Copies the thread's `bytes` bytes from the input to its part of the space, byte by byte.
fn fill(space: Space, bytes: usize) -> String {
    let mut text = format!("mad.wide.u32 from, %t, {bytes}, in0;\n");
    for i in 0..bytes {
        text += &format!("ld.global.b8 byte, [from+{i}];\nst{}.b8 [at+{i}], byte;\n", space.word());
    }
    text
}

/// Copies the thread's part of the space to the output, byte by byte.
fn drain(space: Space, bytes: usize) -> String {
    let mut text = format!("mad.wide.u32 to, %t, {bytes}, out;\n");
    for i in 0..bytes {
        text += &format!("ld{}.b8 byte, [at+{i}];\nst.global.b8 [to+{i}], byte;\n", space.word());
    }
    text
}

const DECLARE: &str = ".reg .b64 at, from, to, other;\n.reg .b16 byte;\n.reg .pred p;\n";

fn contents(name: &str, bytes: usize) -> Vec<u8> {
    let mut rng = Rng::new(name);
    (0..bytes * THREADS).map(|_| rng.bits() as u8).collect()
}

/// `.const` initialised with the data.
fn table(data: &[u8]) -> String {
    let list: Vec<String> = data.iter().map(u8::to_string).collect();
    format!(".const .align 16 .b8 table[{}] = {{{}}};", data.len(), list.join(", "))
}

/// A kernel whose output also holds the scratch space that `Space::Global` means; the scratch ends as the `data`.
fn finish(s: &mut Suite, space: Space, name: String, body: String, data: Vec<u8>, result: Vec<u8>) {
    let mut expected = result;
    if matches!(space, Space::Global | Space::GenericGlobal) {
        // The scratch begins where the result of all threads ends.
        expected.extend(&data);
    }
    let module = if space == Space::Const { table(&data) } else { String::new() };
    Kernel {
        name,
        module,
        body,
        launch: (1, THREADS as u32),
        inputs: vec![data],
        expected,
        element: 1,
        ..Kernel::default()
    }
    .add(s);
}

/// The thread after this one's part, after a barrier: shared memory is the block's.
fn neighbour(space: Space, bytes: usize) -> (usize, String) {
    match space {
        Space::Shared | Space::GenericShared => {
            let step = format!(
                "bar.sync 0;\nsetp.eq.u32 p, %t, {};\nadd.u64 other, at, {bytes};\nsub.u64 at, at, {};\n\
                 selp.u64 at, at, other, p;\n",
                THREADS - 1,
                bytes * (THREADS - 1)
            );
            (1, step)
        }
        _ => (0, String::new()),
    }
}

fn load(s: &mut Suite, space: Space, ty: &str, register: u32) {
    let bytes = bits(ty) as usize / 8;
    // Where the register is as wide as all the others, the output's part of a thread is that wide too.
    let width = register as usize / 8;
    let name = format!("ld{}.{ty} into .b{register}{}", space.word(), space.name());
    let data = contents(&name, bytes.max(width));
    let size = bytes.max(width);
    let (declare, place) = space.place(size);
    let (ahead, step) = neighbour(space, size);
    let mut body = format!("{DECLARE}{declare}.reg .b{register} d;\n{place}");
    if space != Space::Const {
        body += &fill(space, size);
    }
    body += &step;
    body += &format!("ld{}.{ty} d, [at];\n", space.word());
    body += &format!("mad.wide.u32 to, %t, {width}, out;\nst.global.b{register} [to], d;\n");
    let mut expected = Vec::new();
    for thread in 0..THREADS {
        let start = (thread + ahead) % THREADS * size;
        let mut v = (0..bytes).rev().fold(0u64, |v, i| v << 8 | u64::from(data[start + i]));
        if ty.starts_with('s') && v >> (bits(ty) - 1) & 1 != 0 {
            v |= !ones(bits(ty));
        }
        expected.extend_from_slice(&v.to_le_bytes()[..width]);
    }
    // The scratch of global memory is as large as the result.
    finish(s, space, name, body, data, expected);
}

fn store(s: &mut Suite, space: Space, ty: &str, register: u32) {
    let size = register as usize / 8;
    let bytes = bits(ty) as usize / 8;
    let name = format!("st{}.{ty} from .b{register}{}", space.word(), space.name());
    let data = contents(&name, size);
    let (declare, place) = space.place(size);
    // The part is filled with the data's complement, then the store covers its first bytes.
    let mut body = format!("{DECLARE}{declare}.reg .b{register} d;\n{place}");
    body += &format!("mad.wide.u32 from, %t, {size}, in0;\n");
    for i in 0..size {
        body += &format!(
            "ld.global.b8 byte, [from+{i}];\nnot.b16 byte, byte;\nst{}.b8 [at+{i}], byte;\n",
            space.word()
        );
    }
    body += &format!("ld.global.b{register} d, [from];\nst{}.{ty} [at], d;\n", space.word());
    body += &drain(space, size);
    let result: Vec<u8> =
        data.iter().enumerate().map(|(i, &b)| if i % size < bytes { b } else { !b }).collect();
    let mut expected = result.clone();
    if matches!(space, Space::Global | Space::GenericGlobal) {
        expected.extend(&result);
    }
    Kernel {
        name,
        body,
        launch: (1, THREADS as u32),
        inputs: vec![data],
        expected,
        element: 1,
        ..Kernel::default()
    }
    .add(s);
}

fn vector(s: &mut Suite, space: Space, ty: &str, n: usize) {
    let bytes = bits(ty) as usize / 8;
    let size = bytes * n;
    let register = bits(ty).max(16);
    let name = format!("ld, st{}.v{n}.{ty}{}", space.word(), space.name());
    let data = contents(&name, size);
    let (declare, place) = space.place(size);
    let list: Vec<String> = (0..n).map(|i| format!("d{i}")).collect();
    let list = list.join(", ");
    let mut body = format!("{DECLARE}{declare}.reg .b{register} d<{n}>;\n{place}");
    if space != Space::Const {
        // In by a vector, out of the space by a vector.
        body += &format!("mad.wide.u32 from, %t, {size}, in0;\nld.global.v{n}.{ty} {{{list}}}, [from];\n");
        body += &format!("st{}.v{n}.{ty} [at], {{{list}}};\n", space.word());
        for i in 0..n {
            body += &format!("mov.b{register} d{i}, 0;\n");
        }
    }
    body += &format!("ld{}.v{n}.{ty} {{{list}}}, [at];\n", space.word());
    // Element after element, reversed, so that an exchange of two of them shows.
    body += &format!("mad.wide.u32 to, %t, {size}, out;\n");
    for i in 0..n {
        body += &format!("st.global.b{} [to+{}], d{i};\n", 8 * bytes, (n - 1 - i) * bytes);
    }
    let mut expected = Vec::new();
    for part in data.chunks(size) {
        part.chunks(bytes).rev().for_each(|e| expected.extend_from_slice(e));
    }
    finish(s, space, name, body, data, expected);
}

/// Address operands: a register with a positive and a negative offset, a variable with an offset.
fn offsets(s: &mut Suite, space: Space) {
    if space.local() || space == Space::Const {
        return;
    }
    let size = 16;
    let name = format!("ld{} with offsets{}", space.word(), space.name());
    let data = contents(&name, size);
    let (declare, place) = space.place(size);
    let mut body = format!("{DECLARE}{declare}.reg .b32 d<4>;\n{place}{}", fill(space, size));
    body += &format!("ld{0}.b32 d3, [at];\nld{0}.b32 d2, [at+4];\nadd.u64 at, at, 32;\n", space.word());
    body += &format!("ld{0}.b32 d1, [at+-24];\nld{0}.b32 d0, [at+-20];\n", space.word());
    body += "mad.wide.u32 to, %t, 16, out;\nst.global.v4.b32 [to], {d0, d1, d2, d3};\n";
    let expected = data
        .chunks(size)
        .flat_map(|part| part.chunks(4).rev().flatten().copied().collect::<Vec<u8>>())
        .collect();
    finish(s, space, name, body, data, expected);
}

/// Cache operators, eviction hints, ordering: they change no value.
fn operators(s: &mut Suite) {
    let loads = [
        "ld.global.ca",
        "ld.global.cg",
        "ld.global.cs",
        "ld.global.lu",
        "ld.global.cv",
        "ld.global.nc",
        "ld.global.nc.L1::no_allocate",
        "ld.global.nc.L1::evict_last",
        "ld.global.nc.L1::no_allocate.L2::128B",
        "ld.global.L1::evict_first",
        "ld.global.L2::64B",
        "ld.global.L2::256B",
        "ldu.global",
        "ld.volatile.global",
        "ld.volatile",
        "ld.weak.global",
        "ld.relaxed.cta.global",
        "ld.relaxed.gpu.global",
        "ld.relaxed.sys",
        "ld.acquire.gpu.global",
        "ld.acquire.sys.global",
    ];
    for text in loads {
        let data = contents(text, 4);
        let body = format!(
            "{DECLARE}.reg .b32 d;\nmad.wide.u32 at, %t, 4, in0;\n{text}.b32 d, [at];\n\
             mad.wide.u32 to, %t, 4, out;\nst.global.b32 [to], d;\n"
        );
        let name = format!("{text}.b32");
        Kernel {
            name,
            body,
            launch: (1, 64),
            expected: data.clone(),
            inputs: vec![data],
            ..Kernel::default()
        }
        .add(s);
    }
    let stores = [
        "st.global.wb",
        "st.global.cg",
        "st.global.cs",
        "st.global.wt",
        "st.global.L1::no_allocate",
        "st.global.L1::evict_last",
        "st.volatile.global",
        "st.volatile",
        "st.weak.global",
        "st.relaxed.cta.global",
        "st.relaxed.gpu.global",
        "st.release.gpu.global",
        "st.release.sys",
    ];
    for text in stores {
        let data = contents(text, 4);
        let body = format!(
            "{DECLARE}.reg .b32 d;\nmad.wide.u32 at, %t, 4, in0;\nld.global.b32 d, [at];\n\
             mad.wide.u32 to, %t, 4, out;\n{text}.b32 [to], d;\n"
        );
        let name = format!("{text}.b32");
        Kernel {
            name,
            body,
            launch: (1, 64),
            expected: data.clone(),
            inputs: vec![data],
            ..Kernel::default()
        }
        .add(s);
    }
}

/// A cache policy, given to loads and stores.
fn policies(s: &mut Suite) {
    let data = contents("policy", 4);
    let body = format!(
        "{DECLARE}.reg .b32 d;\n.reg .b64 policy;\ncreatepolicy.fractional.L2::evict_first.b64 policy, 0.5;\n\
         mad.wide.u32 at, %t, 4, in0;\nld.global.L2::cache_hint.b32 d, [at], policy;\n\
         mad.wide.u32 to, %t, 4, out;\nst.global.L2::cache_hint.b32 [to], d, policy;\n"
    );
    let name = "createpolicy, .L2::cache_hint".into();
    Kernel { name, body, launch: (1, 64), expected: data.clone(), inputs: vec![data], ..Kernel::default() }
        .add(s);
}

/// `.b128`
fn wide(s: &mut Suite) {
    let data = contents("b128", 16);
    let body = format!(
        "{DECLARE}.reg .b128 d;\n.reg .b64 low, high;\nmad.wide.u32 at, %t, 16, in0;\nld.global.b128 d, [at];\n\
         mov.b128 {{low, high}}, d;\nmov.b128 d, {{high, low}};\nmad.wide.u32 to, %t, 16, out;\n\
         st.global.b128 [to], d;\n"
    );
    let expected = data.chunks(16).flat_map(|p| [&p[8..], &p[..8]].concat()).collect();
    let name = "ld, st.global.b128, mov.b128".into();
    Kernel { name, body, launch: (1, 64), expected, inputs: vec![data], ..Kernel::default() }.add(s);
}
