//! `dtk teacher`.

mod convert;
mod sample;
mod train;

use crate::error::Result;
use clap::Subcommand;

/// Diffusion networks of one's own.
#[derive(Subcommand)]
pub enum Teacher {
    /// Train a diffusion network on images. The result is a teacher for `dtk train`.
    Train(train::Train),
    /// Draw pictures with a diffusion network.
    Sample(sample::Sample),
    /// Write a diffusion network's checkpoint (PyTorch or safetensors) as safetensors, e.g. in half the size.
    Convert(convert::Convert),
}

impl Teacher {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        match self {
            Teacher::Train(c) => c.run(),
            Teacher::Sample(c) => c.run(),
            Teacher::Convert(c) => c.run(),
        }
    }
}
