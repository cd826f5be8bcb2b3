//! The `ptxsim` command.

fn main() -> std::process::ExitCode {
    ptxsim::cli::main()
}
