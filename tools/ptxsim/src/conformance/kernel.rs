//! Kernels written by hand.

use super::case::{Case, Comparison, Part, Target};
use super::elementwise::Suite;

/// Module directives and the head of `k`, up to its opening brace: pointers `p0`, `p1`, .. to the inputs, the last to the
/// output.
pub fn header(target: Target, inputs: usize) -> String {
    let params: Vec<String> = (0..=inputs).map(|k| format!(".param .u64 p{k}")).collect();
    format!(
        ".version 9.0\n.target {}\n.address_size 64\n.visible .entry k({})\n{{",
        target.name(),
        params.join(", ")
    )
}

/// A case of its own making.
pub struct Kernel {
    /// Unique within the family.
    pub name: String,
    /// Text before the entry: module-scope variables, functions.
    pub module: String,
    /// Statements of the entry. Beside its own registers it has `%t` (thread of the block), `%lane`, `%i` (thread of the
    /// grid) in `.b32`, `in0`, `in1`, .. and `out` (pointers) in `.b64`.
    pub body: String,
    /// Blocks and threads of a block.
    pub launch: (u32, u32),
    /// Dynamic shared memory.
    pub dynamic_shared: u32,
    /// Contents of the inputs.
    pub inputs: Vec<Vec<u8>>,
    /// Contents of the output.
    pub expected: Vec<u8>,
    /// Bytes of an element of the output.
    pub element: usize,
    /// How the output is compared.
    pub comparison: Comparison,
    /// Bits of the output that the manual defines; empty for all.
    pub defined: Vec<u8>,
}

impl Default for Kernel {
    fn default() -> Kernel {
        Kernel {
            name: String::new(),
            module: String::new(),
            body: String::new(),
            launch: (1, 32),
            dynamic_shared: 0,
            inputs: Vec::new(),
            expected: Vec::new(),
            element: 4,
            comparison: Comparison::Bits,
            defined: Vec::new(),
        }
    }
}

impl Kernel {
    /// Adds it to a suite.
    pub fn add(self, suite: &mut Suite) {
        let n = self.inputs.len();
        let head = header(suite.current_target(), n);
        let (directives, entry) = head.split_at(head.find(".visible").unwrap_or(0));
        let mut ptx = format!("{directives}{}\n{entry}\n", self.module);
        ptx += "  .reg .b32 %t, %lane, %i, %block;\n  .reg .b64 out;\n";
        for k in 0..n {
            ptx += &format!("  .reg .b64 in{k};\n  ld.param.u64 in{k}, [p{k}];\n");
        }
        ptx += &format!("  ld.param.u64 out, [p{n}];\n");
        ptx += "  mov.u32 %t, %tid.x;\n  mov.u32 %lane, %laneid;\n  mov.u32 %i, %ntid.x;\n";
        ptx += "  mov.u32 %block, %ctaid.x;\n  mad.lo.u32 %i, %block, %i, %t;\n";
        for l in self.body.lines() {
            ptx += &format!("  {}\n", l.trim());
        }
        ptx += "  ret;\n}\n";
        suite.push(Case {
            family: suite.family(),
            name: self.name,
            target: suite.current_target(),
            ptx,
            grid: self.launch.0,
            block: self.launch.1,
            dynamic_shared: self.dynamic_shared,
            inputs: self.inputs,
            before: vec![0; self.expected.len()],
            parts: vec![Part {
                bytes: self.expected.len(),
                element: self.element,
                comparison: self.comparison,
            }],
            expected: self.expected,
            defined: self.defined,
            operands: Vec::new(),
        });
    }
}

/// The bytes of values, in order.
pub fn bytes<const N: usize>(values: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
    values.into_iter().flatten().collect()
}

/// The bytes of 32-bit words, in order.
pub fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    bytes(values.into_iter().map(u32::to_le_bytes))
}
