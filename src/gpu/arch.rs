//! Architectures that kernels are compiled for.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A real architecture, for which NVRTC makes machine code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// Compute capability 8.0: A100. The lowest that dtk's kernels run on.
    Sm80,
    /// Compute capability 9.0 with the instructions that only it has: H100, H200.
    Sm90a,
    /// Any other from 8.0 on, by major and minor number; made by [`Arch::of`] only.
    Other(u32, u32),
}

impl Arch {
    /// The architecture of a device of that compute capability.
    ///
    /// # Errors
    /// A capability below 8.0: such a card has neither bf16 tensor cores nor `cp.async`.
    pub fn of((major, minor): (u32, u32)) -> Result<Arch> {
        match (major, minor) {
            (0..8, _) => Err(Error::device(format!(
                "compute capability {major}.{minor} is too old: dtk's kernels need 8.0 (A100, RTX 30) or later, for bf16 \
                 tensor cores and asynchronous copies"
            ))
            .with_remedy("use --device cpu, or another card")),
            (8, 0) => Ok(Arch::Sm80),
            (9, 0) => Ok(Arch::Sm90a),
            _ => Ok(Arch::Other(major, minor)),
        }
    }

    /// Ten times the major number plus the minor one: 80, 90.
    pub fn number(self) -> u32 {
        match self {
            Arch::Sm80 => 80,
            Arch::Sm90a => 90,
            Arch::Other(major, minor) => major * 10 + minor,
        }
    }
}

/// `sm_80`, `sm_90a`
impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.number(), if *self == Arch::Sm90a { "a" } else { "" })
    }
}

/// `sm_80`, `sm_89`, `sm_90a`; `sm_90` means `sm_90a`, which is what dtk uses on such cards.
impl FromStr for Arch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Arch> {
        let number =
            text.strip_prefix("sm_").and_then(|n| if n == "90a" { Some(90) } else { n.parse().ok() });
        match number {
            Some(n @ 10..1000) => Arch::of((n / 10, n % 10)),
            _ => Err(Error::usage(format!("`{text}` is no GPU architecture"))
                .with_remedy("write it like sm_80, sm_89 or sm_90a")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_and_names() {
        for (capability, name) in [
            ((8, 0), "sm_80"),
            ((8, 6), "sm_86"),
            ((9, 0), "sm_90a"),
            ((10, 0), "sm_100"),
            ((12, 1), "sm_121"),
        ] {
            let arch = Arch::of(capability).unwrap();
            assert_eq!(arch.to_string(), name);
            assert_eq!(name.parse::<Arch>().unwrap(), arch);
            assert_eq!(arch.number(), capability.0 * 10 + capability.1);
        }
        assert_eq!("sm_90".parse::<Arch>().unwrap(), Arch::Sm90a);
    }

    #[test]
    fn what_is_too_old_or_no_architecture() {
        for old in [(7, 5), (7, 0), (3, 7)] {
            let e = Arch::of(old).unwrap_err();
            assert!(e.is_device() && e.to_string().contains("8.0"), "{e}");
        }
        assert!("sm_75".parse::<Arch>().unwrap_err().is_device());
        for text in ["", "80", "sm_", "sm_x", "sm_90b", "compute_80", "sm_9", "sm_-80", "sm_99999"] {
            assert!(text.parse::<Arch>().unwrap_err().is_usage(), "{text}");
        }
    }
}
