//! What test binaries share.

pub mod golden;
