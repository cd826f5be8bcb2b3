//! One micro-kernel with what it must give.

use super::softfloat::Format;
use sha2::{Digest, Sha256};
use std::fmt;

/// What the kernel is compiled for, and so which cards can run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Compute capability 8.0 and later.
    Sm80,
    /// Compute capability 8.6 and later.
    Sm86,
    /// Compute capability 8.9 and later.
    Sm89,
    /// Compute capability 9.0 and later.
    Sm90,
    /// Compute capability 9.0 alone, with its own features.
    Sm90a,
}

impl Target {
    /// The word after `.target`.
    pub fn name(self) -> &'static str {
        match self {
            Target::Sm80 => "sm_80",
            Target::Sm86 => "sm_86",
            Target::Sm89 => "sm_89",
            Target::Sm90 => "sm_90",
            Target::Sm90a => "sm_90a",
        }
    }

    /// Whether a card of that compute capability runs it.
    pub fn runs_on(self, capability: (u32, u32)) -> bool {
        match self {
            Target::Sm80 => capability >= (8, 0),
            Target::Sm86 => capability >= (8, 6),
            Target::Sm89 => capability >= (8, 9),
            Target::Sm90 => capability >= (9, 0),
            Target::Sm90a => capability == (9, 0),
        }
    }
}

/// How a part of the output is compared.
#[derive(Clone, Debug, PartialEq)]
pub enum Comparison {
    /// Bit by bit.
    Bits,
    /// Bit by bit, except that one NaN is as good as another: the manual does not define the payload.
    Float(Format),
    /// Anywhere from `low` to `high`, inclusive: the error that the manual allows. One pair for each element; a NaN in
    /// the expectation asks for any NaN, and a range of one value for its very bits.
    Within {
        /// Of the elements.
        format: Format,
        /// Smallest values allowed.
        low: Vec<f64>,
        /// Largest values allowed.
        high: Vec<f64>,
    },
}

impl Comparison {
    /// Whether nothing but the expectation's own bits passes, NaNs aside.
    pub fn exact(&self) -> bool {
        !matches!(self, Comparison::Within { .. })
    }
}

/// A run of bytes of the output compared in one way.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Size.
    pub bytes: usize,
    /// Bytes of an element, for messages and for [`Comparison::Within`].
    pub element: usize,
    /// How.
    pub comparison: Comparison,
}

/// A kernel named `k`, its inputs, and its output as the manual defines it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Group of instructions, as in the README's table.
    pub family: &'static str,
    /// Unique within the family.
    pub name: String,
    /// Cards that can run it.
    pub target: Target,
    /// The whole module. The parameters of `k` are one `.u64` pointer for each input, then one to the output.
    pub ptx: String,
    /// Blocks.
    pub grid: u32,
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory.
    pub dynamic_shared: u32,
    /// Contents of the input buffers.
    pub inputs: Vec<Vec<u8>>,
    /// Contents of the output buffer before the launch.
    pub before: Vec<u8>,
    /// Contents of the output buffer after the launch.
    pub expected: Vec<u8>,
    /// Bits that the manual defines; empty for all.
    pub defined: Vec<u8>,
    /// Parts of the output, in order; they cover it.
    pub parts: Vec<Part>,
    /// Element sizes of the inputs where element `i` of the output comes from elements `i` of the inputs; for messages.
    pub operands: Vec<usize>,
}

/// Where and how an output differs from the expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Byte offset of the element.
    pub offset: usize,
    /// What is wrong there.
    pub text: String,
    /// Elements that differ.
    pub count: usize,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.text)?;
        if self.count > 1 {
            write!(f, " ({} elements differ)", self.count)?;
        }
        Ok(())
    }
}

/// Little-endian hexadecimal of an element, as a number.
fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().rev().map(|b| format!("{b:02x}")).collect();
    format!("0x{digits}")
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b))
}

impl Case {
    /// Family and name.
    pub fn title(&self) -> String {
        format!("{}: {}", self.family, self.name)
    }

    /// SHA-256 of everything that decides the output: the text, the launch, the buffers before it.
    pub fn hash(&self) -> String {
        let mut sha = Sha256::new();
        let mut feed = |bytes: &[u8]| {
            sha.update((bytes.len() as u64).to_le_bytes());
            sha.update(bytes);
        };
        feed(self.ptx.as_bytes());
        for n in [self.grid, self.block, self.dynamic_shared] {
            feed(&n.to_le_bytes());
        }
        for input in &self.inputs {
            feed(input);
        }
        feed(&self.before);
        sha.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Whether nothing but the expectation's bits passes, NaNs aside.
    pub fn exact(&self) -> bool {
        self.parts.iter().all(|p| p.comparison.exact())
    }

    /// The output with undefined bits cleared: what is recorded of a card.
    pub fn masked(&self, output: &[u8]) -> Vec<u8> {
        if self.defined.is_empty() {
            return output.to_vec();
        }
        output.iter().zip(&self.defined).map(|(o, d)| o & d).collect()
    }

    /// First disagreement of an output with the expectation.
    pub fn compare(&self, output: &[u8]) -> Option<Difference> {
        self.differ(output, &self.expected, true)
    }

    /// First disagreement of an output with one that a card gave: as [`Case::compare`], but where the manual allows an
    /// error both may have it.
    pub fn compare_with_card(&self, output: &[u8], card: &[u8]) -> Option<Difference> {
        self.differ(output, card, false)
    }

    fn differ(&self, output: &[u8], wanted: &[u8], own: bool) -> Option<Difference> {
        if output.len() != wanted.len() || wanted.len() != self.expected.len() {
            let text = format!("{} bytes of output; expected {}", output.len(), self.expected.len());
            return Some(Difference { offset: 0, text, count: 1 });
        }
        let (output, wanted) = (self.masked(output), self.masked(wanted));
        let mut first: Option<Difference> = None;
        let mut at = 0;
        for part in &self.parts {
            let elements = part.bytes / part.element;
            for i in 0..elements {
                let here = at + i * part.element;
                let (got, want) = (&output[here..here + part.element], &wanted[here..here + part.element]);
                if got == want || agree(&part.comparison, i, word(got), word(want), own) {
                    continue;
                }
                match &mut first {
                    Some(d) => d.count += 1,
                    None => {
                        let text = self.describe(part, at, i, got, want, own);
                        first = Some(Difference { offset: here, text, count: 1 });
                    }
                }
            }
            at += part.bytes;
        }
        first
    }

    fn describe(&self, part: &Part, at: usize, i: usize, got: &[u8], want: &[u8], own: bool) -> String {
        let mut text =
            format!("byte {} (element {i} of the part at {at}): got {}", at + i * part.element, hex(got));
        let format = match &part.comparison {
            Comparison::Bits => None,
            Comparison::Float(format) | Comparison::Within { format, .. } => Some(*format),
        };
        let value = |bytes: &[u8]| match format {
            Some(f) if f.bytes() == part.element => format!(" ({})", f.to_f64(word(bytes))),
            _ => String::new(),
        };
        text += &value(got);
        text += &format!(", {} {}{}", if own { "expected" } else { "the card gave" }, hex(want), value(want));
        if let Comparison::Within { low, high, .. } = &part.comparison {
            text += &format!(", allowed {} to {}", low[i], high[i]);
        }
        let operands: Vec<String> = self
            .operands
            .iter()
            .zip(&self.inputs)
            .filter_map(|(&n, input)| {
                let row = i * part.element * (input.len() / n) / part.bytes;
                input.get(row * n..(row + 1) * n).map(hex)
            })
            .collect();
        if !operands.is_empty() {
            text += &format!("; operands {}", operands.join(", "));
        }
        text
    }
}

/// Whether a value that differs from the wanted one in its bits passes all the same.
fn agree(comparison: &Comparison, i: usize, got: u64, want: u64, own: bool) -> bool {
    match comparison {
        Comparison::Bits => false,
        Comparison::Float(format) => both_nan(*format, got, want),
        Comparison::Within { format, low, high } => {
            if both_nan(*format, got, want) {
                return true;
            }
            let (low, high, value) = (low[i], high[i], format.to_f64(got));
            // The card's own value is inside the range or was reported when it was recorded.
            low < high && low <= value && value <= high && (own || !format.to_f64(want).is_nan())
        }
    }
}

fn both_nan(format: Format, a: u64, b: u64) -> bool {
    format.is_nan(a) && format.is_nan(b)
}
