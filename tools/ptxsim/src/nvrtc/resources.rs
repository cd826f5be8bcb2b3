//! What `--ptxas-options=-v` says in the log.

use serde::{Deserialize, Serialize};

/// What one kernel takes, as ptxas counts it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// The kernel.
    pub kernel: String,
    /// `sm_90a`
    pub arch: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Named barriers used.
    pub barriers: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
    /// Frame in local memory, without what it calls.
    pub stack_bytes: u32,
    /// Registers put aside in the frame.
    pub spill_store_bytes: u32,
    /// And fetched again.
    pub spill_load_bytes: u32,
    /// Constant bank 0, where the parameters are; 0 where ptxas does not say (sm_90).
    pub constant_bytes: u32,
}

/// One for every `Compiling entry function`; the functions that kernels call have no account of their own.
pub(super) fn parse(log: &str) -> Vec<Resources> {
    let mut all: Vec<Resources> = Vec::new();
    let mut in_kernel = false;
    for line in log.lines() {
        if let Some(rest) = after(line, "Compiling entry function '") {
            let mut words = rest.split('\'');
            let kernel = words.next().unwrap_or("").to_string();
            let arch = words.nth(1).unwrap_or("").to_string();
            all.push(Resources { kernel, arch, ..Resources::default() });
        } else if let Some(name) = after(line, "Function properties for ") {
            in_kernel = all.last().is_some_and(|r| r.kernel == name.trim());
        } else if let (true, Some(last)) = (in_kernel, all.last_mut()) {
            account(line, last);
        }
    }
    all
}

fn after<'a>(line: &'a str, text: &str) -> Option<&'a str> {
    line.find(text).map(|at| &line[at + text.len()..])
}

/// `Used 64 registers, used 1 barriers, 312 bytes cumulative stack size, 1024 bytes smem, 360 bytes cmem[0]` and
/// `0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads`, with whatever stands before.
fn account(line: &str, into: &mut Resources) {
    for part in line.split(',') {
        let words: Vec<&str> = part.split_whitespace().collect();
        for (i, word) in words.iter().enumerate() {
            let Ok(number) = word.parse::<u32>() else { continue };
            match words[i + 1..] {
                ["registers"] => into.registers = number,
                ["barriers"] => into.barriers = number,
                ["bytes", "smem"] => into.shared_bytes = number,
                ["bytes", "stack", "frame"] => into.stack_bytes = number,
                ["bytes", "spill", "stores"] => into.spill_store_bytes = number,
                ["bytes", "spill", "loads"] => into.spill_load_bytes = number,
                ["bytes", "cmem[0]"] => into.constant_bytes = number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_the_log_is_read() {
        let log = "\
ptxas info    : 24 bytes gmem, 400 bytes cmem[3], 8 bytes cmem[4]
ptxas info    : Compiling entry function 'spill' for 'sm_80'
ptxas info    : Function properties for spill
ptxas         .     312 bytes stack frame, 352 bytes spill stores, 364 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 312 bytes cumulative stack size, 1024 bytes smem, 360 bytes cmem[0]
ptxas info    : Compile time = 51.825 ms
ptxas info    : Compiling entry function '_Z1kPf' for 'sm_80'
ptxas info    : Function properties for _Z1kPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers
ptxas info    : Function properties for helper
ptxas         .     16 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
";
        let spill = Resources {
            kernel: "spill".into(),
            arch: "sm_80".into(),
            registers: 64,
            barriers: 1,
            shared_bytes: 1024,
            stack_bytes: 312,
            spill_store_bytes: 352,
            spill_load_bytes: 364,
            constant_bytes: 360,
        };
        let plain = Resources {
            kernel: "_Z1kPf".into(),
            arch: "sm_80".into(),
            registers: 32,
            ..Resources::default()
        };
        assert_eq!(parse(log), [spill, plain]);
    }
}
