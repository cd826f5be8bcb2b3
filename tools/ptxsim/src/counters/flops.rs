//! Floating-point operations by opcode.

use serde::Serialize;

/// Floating-point operations. `add`, `sub` and `mul` count one for each lane, `fma` and `mad` two, packed types twice
/// that; a matrix instruction of shape m, n, k counts 2 m n k. Everything else (minimum, division, square root,
/// exponential, conversion) counts nothing here; see the classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Flops {
    /// Single precision.
    pub f32: u64,
    /// Double precision.
    pub f64: u64,
    /// `f16` and `bf16`, packed or not.
    pub half: u64,
    /// Operations of matrix instructions.
    pub tensor: u64,
    /// Matrix instructions: once for each warp.
    pub tensor_instructions: u64,
}

impl Flops {
    /// Adds the executions of one instruction; `matrix` is its number of operations if it is a matrix instruction.
    pub(super) fn add(&mut self, opcode: &str, matrix: u32, issued: u64, lanes: u64) {
        if matrix != 0 {
            self.tensor += issued * u64::from(matrix);
            self.tensor_instructions += issued;
            return;
        }
        let mut words = opcode.split('.');
        let name = words.next().unwrap_or("");
        match name {
            "add" | "sub" | "mul" | "fma" | "mad" => {
                let each = if matches!(name, "fma" | "mad") { 2 } else { 1 };
                for word in words {
                    match word {
                        "f32" => self.f32 += each * lanes,
                        "f32x2" => self.f32 += 2 * each * lanes,
                        "f64" => self.f64 += each * lanes,
                        "f16" | "bf16" => self.half += each * lanes,
                        "f16x2" | "bf16x2" => self.half += 2 * each * lanes,
                        _ => continue,
                    }
                    break;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(opcode: &str) -> Flops {
        let mut f = Flops::default();
        f.add(opcode, 0, 3, 80);
        f
    }

    #[test]
    fn additions_count_one_and_fused_ones_two() {
        assert_eq!(of("add.f32"), Flops { f32: 80, ..Flops::default() });
        assert_eq!(of("fma.rn.ftz.f32"), Flops { f32: 160, ..Flops::default() });
        assert_eq!(of("fma.rn.bf16x2"), Flops { half: 320, ..Flops::default() });
        assert_eq!(of("mul.rn.f64"), Flops { f64: 80, ..Flops::default() });
    }

    #[test]
    fn integers_and_other_functions_count_nothing() {
        for text in ["add.s32", "mad.lo.s32", "div.rn.f32"] {
            assert_eq!(of(text), Flops::default(), "{text}");
        }
    }

    #[test]
    fn matrix_instructions_count_what_their_decoder_says() {
        let mut f = Flops::default();
        f.add("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 4096, 3, 96);
        assert_eq!(f, Flops { tensor: 3 * 4096, tensor_instructions: 3, ..Flops::default() });
    }
}
