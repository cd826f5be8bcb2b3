//! The core of the executor, by PTX text: divergence, calls, barriers, scheduling, register allocation, counters.

mod allocation;
mod barriers;
mod builtins;
mod calls;
mod counters;
mod divergence;
mod harness;
mod scheduling;
mod special;
