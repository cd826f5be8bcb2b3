//! Classes of machine instructions.

use serde::Serialize;

/// What an instruction is for. The order is that of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// `HMMA`: mma.sync on f16, bf16, tf32.
    Hmma,
    /// `HGMMA`: wgmma on them.
    Hgmma,
    /// Other tensor-core instructions: integers, f64, fp8.
    OtherMma,
    /// `FFMA`
    Ffma,
    /// Other f32 arithmetic, comparisons and selections.
    Fp32,
    /// f64 arithmetic.
    Fp64,
    /// f16 and bf16 arithmetic.
    Half,
    /// `MUFU`: reciprocal, square root, exponential, sine and the like.
    Mufu,
    /// Conversions between types.
    Convert,
    /// Integer, address and logic arithmetic.
    Integer,
    /// Moves, special registers, predicates.
    Move,
    /// Shuffles, votes, matches, warp reductions.
    Shuffle,
    /// `LDG`: global loads.
    Ldg,
    /// `STG`: global stores.
    Stg,
    /// `LDGSTS`: cp.async.
    Ldgsts,
    /// Bulk and tensor-map copies.
    Bulk,
    /// `LDS`: shared loads.
    Lds,
    /// `STS`: shared stores.
    Sts,
    /// `LDSM`: ldmatrix.
    Ldsm,
    /// `STSM`: stmatrix.
    Stsm,
    /// `LDL`: local loads; spills and stack arrays.
    Ldl,
    /// `STL`: local stores.
    Stl,
    /// `LDC`: constants and parameters.
    Ldc,
    /// Loads and stores by generic addresses.
    Generic,
    /// Atomics and reductions on memory.
    Atomic,
    /// Barriers, fences, waits for copies.
    Barrier,
    /// Branches, calls, convergence, exit.
    Control,
    /// `NOP`
    Nop,
    /// Anything else.
    Other,
}

impl Class {
    /// Of `LDG.E.128` or `LDG`.
    pub fn of(opcode: &str) -> Class {
        let base = opcode.split('.').next().unwrap_or("");
        match base {
            "HMMA" => return Class::Hmma,
            "HGMMA" => return Class::Hgmma,
            "IMMA" | "IGMMA" | "DMMA" | "BMMA" | "BGMMA" | "QMMA" | "QGMMA" | "OMMA" => {
                return Class::OtherMma;
            }
            "FFMA" | "FFMA32I" | "FFMA2" => return Class::Ffma,
            "FADD" | "FADD2" | "FADD32I" | "FMUL" | "FMUL2" | "FMUL32I" | "FMNMX" | "FMNMX3" | "FSEL"
            | "FSETP" | "FSET" | "FCHK" | "FSWZADD" | "FCMP" => return Class::Fp32,
            "DFMA" | "DADD" | "DMUL" | "DMNMX" | "DSETP" | "DSET" => return Class::Fp64,
            "HFMA2" | "HADD2" | "HMUL2" | "HSET2" | "HSETP2" | "HMNMX2" | "HADD2_32I" | "HFMA2_32I"
            | "HMUL2_32I" => return Class::Half,
            "MUFU" => return Class::Mufu,
            "F2F" | "F2FP" | "F2I" | "F2IP" | "I2F" | "I2FP" | "I2I" | "I2IP" | "FRND" => {
                return Class::Convert;
            }
            "MOV" | "MOV32I" | "MOVM" | "SEL" | "CS2R" | "CS2UR" | "S2R" | "S2UR" | "P2R" | "R2P"
            | "R2UR" | "R2B" | "B2R" | "PLOP3" | "PSETP" | "UMOV" | "USEL" | "UP2UR" | "UR2UP" | "UPLOP3"
            | "UPSETP" | "SETLMEMBASE" | "GETLMEMBASE" | "LEPC" => return Class::Move,
            "SHFL" | "VOTE" | "VOTEU" | "MATCH" | "REDUX" | "CREDUX" | "ELECT" => return Class::Shuffle,
            "LDG" => return Class::Ldg,
            "STG" => return Class::Stg,
            "LDGSTS" => return Class::Ldgsts,
            "LDS" => return Class::Lds,
            "STS" => return Class::Sts,
            "LDSM" => return Class::Ldsm,
            "STSM" => return Class::Stsm,
            "LDL" => return Class::Ldl,
            "STL" => return Class::Stl,
            "LDC" | "ULDC" | "LDCU" => return Class::Ldc,
            "LD" | "ST" | "QSPC" => return Class::Generic,
            "ATOM" | "ATOMG" | "ATOMS" | "RED" | "REDG" | "REDS" => return Class::Atomic,
            "BAR" | "DEPBAR" | "LDGDEPBAR" | "ARRIVES" | "SYNCS" | "MEMBAR" | "ERRBAR" | "FENCE" | "CCTL"
            | "CCTLL" | "WARPGROUP" | "UCGABAR_ARV" | "UCGABAR_WAIT" | "USETMAXREG" | "ACQBULK"
            | "CGAERRBAR" => {
                return Class::Barrier;
            }
            "BRA" | "BRX" | "BRXU" | "JMP" | "JMX" | "JMXU" | "CALL" | "RET" | "EXIT" | "BSSY" | "BSYNC"
            | "BREAK" | "BMOV" | "WARPSYNC" | "YIELD" | "NANOSLEEP" | "KILL" | "BPT" | "RTT" | "RPCMOV"
            | "PREEXIT" | "ENDCOLLECTIVE" | "PMTRIG" => return Class::Control,
            "NOP" => return Class::Nop,
            "VIADD" | "VIADDMNMX" | "VIMNMX" | "VIMNMX3" | "VABSDIFF" | "VABSDIFF4" | "VHMNMX" => {
                return Class::Integer;
            }
            "SHF" | "SHL" | "SHR" | "LEA" | "LOP" | "LOP3" | "LOP32I" | "PRMT" | "SGXT" | "BMSK" | "FLO"
            | "POPC" | "BREV" | "IABS" | "ISCADD" | "ISETP" | "ISET" => return Class::Integer,
            _ => {}
        }
        // Bulk copies: UBLKCP, UTMALDG, UTMASTG, UTMAREDG, UTMACMDFLUSH, UTMAPF, UTMACCTL, UBLKPF, UBLKRED.
        if base.starts_with("UTMA") || base.starts_with("UBLK") {
            return Class::Bulk;
        }
        let integer = |b: &str| b.starts_with("IADD") || b.starts_with("IMAD") || b.starts_with("IMNMX");
        if integer(base) || base.starts_with("IDP") || base.starts_with("IMUL") {
            return Class::Integer;
        }
        // The uniform datapath: an integer instruction with a U in front.
        match base.strip_prefix('U') {
            Some(rest) if !rest.is_empty() && Class::of(rest) == Class::Integer => Class::Integer,
            _ => Class::Other,
        }
    }

    /// The word in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Class::Hmma => "hmma",
            Class::Hgmma => "hgmma",
            Class::OtherMma => "other_mma",
            Class::Ffma => "ffma",
            Class::Fp32 => "fp32",
            Class::Fp64 => "fp64",
            Class::Half => "half",
            Class::Mufu => "mufu",
            Class::Convert => "convert",
            Class::Integer => "integer",
            Class::Move => "move",
            Class::Shuffle => "shuffle",
            Class::Ldg => "ldg",
            Class::Stg => "stg",
            Class::Ldgsts => "ldgsts",
            Class::Bulk => "bulk",
            Class::Lds => "lds",
            Class::Sts => "sts",
            Class::Ldsm => "ldsm",
            Class::Stsm => "stsm",
            Class::Ldl => "ldl",
            Class::Stl => "stl",
            Class::Ldc => "ldc",
            Class::Generic => "generic",
            Class::Atomic => "atomic",
            Class::Barrier => "barrier",
            Class::Control => "control",
            Class::Nop => "nop",
            Class::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_fall_into_their_classes() {
        for (opcode, class) in [
            ("HMMA.16816.F32.BF16", Class::Hmma),
            ("HGMMA.64x8x16.F32.BF16", Class::Hgmma),
            ("FFMA.FTZ", Class::Ffma),
            ("IMAD.WIDE.U32", Class::Integer),
            ("UIADD3.X", Class::Integer),
            ("ULEA", Class::Integer),
            ("USHF.R.S32.HI", Class::Integer),
            ("ULDC.64", Class::Ldc),
            ("LDGSTS.E.BYPASS.128", Class::Ldgsts),
            ("LDGDEPBAR", Class::Barrier),
            ("UTMALDG.2D", Class::Bulk),
            ("UBLKCP.S.G", Class::Bulk),
            ("LDSM.16.MT88.4", Class::Ldsm),
            ("U", Class::Other),
            ("", Class::Other),
        ] {
            assert_eq!(Class::of(opcode), class, "{opcode}");
        }
    }

    #[test]
    fn names_are_those_of_the_json() {
        for class in [Class::Hmma, Class::OtherMma, Class::Fp64, Class::Ldgsts, Class::Control] {
            assert_eq!(serde_json::to_value(class).unwrap(), class.name());
        }
    }
}
