//! The command line of dtk.

use std::process::ExitCode;

/// Training allocates and frees large tensors at every step; this allocator keeps their pages instead of giving them
/// back to the system each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    dtk::cli::main()
}
