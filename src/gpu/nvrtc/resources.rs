//! What a compiled kernel takes of a multiprocessor, as the assembler reports it.

use serde::{Deserialize, Serialize};

/// Registers and memory of one kernel, from the assembler's report in NVRTC's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// The kernel's entry name.
    pub kernel: String,
    /// 32-bit registers of a thread.
    pub registers: u32,
    /// Bytes that a thread writes to local memory because registers ran out. Above 0 the kernel is slow.
    pub spill_store_bytes: u32,
    /// Bytes that it reads back.
    pub spill_load_bytes: u32,
    /// Local memory of a thread, spills and arrays.
    pub stack_bytes: u32,
    /// Shared memory of a block that is declared in the source, without what a launch adds.
    pub static_shared_bytes: u32,
    /// Named barriers.
    pub barriers: u32,
}

impl Resources {
    /// Whether registers ran out.
    pub fn spills(&self) -> bool {
        self.spill_store_bytes > 0 || self.spill_load_bytes > 0
    }
}

/// The kernels of a log, in its order. Functions that kernels call have reports of their own, which are left out.
pub(super) fn parse(log: &str) -> Vec<Resources> {
    let mut kernels: Vec<Resources> = Vec::new();
    let mut of_kernel = false;
    for line in log.lines() {
        if let Some(name) = between(line, "Compiling entry function '", "'") {
            kernels.push(Resources { kernel: name.to_string(), ..Resources::default() });
            of_kernel = true;
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            of_kernel = kernels.last().is_some_and(|k| k.kernel == name.trim());
        } else if let Some(k) = kernels.last_mut().filter(|_| of_kernel) {
            let read = |what: &str, into: &mut u32| *into = before(line, what).unwrap_or(*into);
            read(" registers", &mut k.registers);
            read(" bytes spill stores", &mut k.spill_store_bytes);
            read(" bytes spill loads", &mut k.spill_load_bytes);
            read(" bytes stack frame", &mut k.stack_bytes);
            read(" bytes smem", &mut k.static_shared_bytes);
            read(" barriers", &mut k.barriers);
        }
    }
    kernels
}

fn between<'a>(line: &'a str, start: &str, end: &str) -> Option<&'a str> {
    line.split_once(start)?.1.split_once(end).map(|(inside, _)| inside)
}

/// The number in front of a phrase.
fn before(line: &str, phrase: &str) -> Option<u32> {
    line.split_once(phrase)?.0.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // What NVRTC 13.0 prints for two kernels, of which the second calls a function.
    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'conv2d_fwd' for 'sm_90a'
ptxas info    : Function properties for conv2d_fwd
ptxas         .     8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 168 registers, used 3 barriers, 8 bytes cumulative stack size, 49152 bytes smem
ptxas info    : Compile time = 51.825 ms
ptxas info    : Compiling entry function 'conv2d_wgrad' for 'sm_90a'
ptxas info    : Function properties for conv2d_wgrad
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
ptxas info    : Function properties for helper
    64 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
";

    #[test]
    fn every_number_is_read_and_called_functions_are_not() {
        let fwd = Resources {
            kernel: "conv2d_fwd".into(),
            registers: 168,
            spill_store_bytes: 12,
            spill_load_bytes: 16,
            stack_bytes: 8,
            static_shared_bytes: 49152,
            barriers: 3,
        };
        let wgrad = Resources { kernel: "conv2d_wgrad".into(), registers: 40, ..Resources::default() };
        assert!(fwd.spills() && !wgrad.spills());
        assert_eq!(parse(LOG), [fwd, wgrad]);
        assert_eq!(parse("a warning\n"), []);
    }
}
