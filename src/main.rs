//! The command line of dtk.

fn main() {}
