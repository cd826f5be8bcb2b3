//! `dtk data`.

mod compose;
mod inspect;
mod synth;

use crate::error::{Error, Result};
use clap::{Args, Subcommand};
use std::io::IsTerminal;
use std::sync::Mutex;

/// Make and examine sets of images.
#[derive(Args)]
pub struct Data {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Subcommand)]
enum DataCommand {
    /// Render scenes with exact masks, instance masks and labels.
    Synth(synth::Synth),
    /// Paste cut-outs with alpha on backgrounds: exact masks, no concept in both splits.
    Compose(compose::Compose),
    /// Count images, sizes, classes and pixels of a set, and list what is malformed.
    Inspect(inspect::Inspect),
}

impl Data {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        match &self.command {
            DataCommand::Synth(c) => c.run(),
            DataCommand::Compose(c) => c.run(),
            DataCommand::Inspect(c) => c.run(),
        }
    }
}

/// Parses `HxW`, or one number for both.
fn size(text: &str) -> Result<(u32, u32)> {
    let (height, width) = text.split_once(['x', 'X']).unwrap_or((text, text));
    match (height.trim().parse(), width.trim().parse()) {
        (Ok(height), Ok(width)) => Ok((height, width)),
        _ => Err(Error::usage(format!("`{text}` is no size"))
            .with_key("--size")
            .with_remedy("write HEIGHTxWIDTH, e.g. 64x64, or one number for both")),
    }
}

/// Parses `FROM-TO`, or one number for both.
fn range<T: std::str::FromStr + Copy>(text: &str, option: &str) -> Result<(T, T)> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    match (from.trim().parse(), to.trim().parse()) {
        (Ok(from), Ok(to)) => Ok((from, to)),
        _ => Err(Error::usage(format!("`{text}` is no range"))
            .with_key(option)
            .with_remedy("write FROM-TO, e.g. 1-4, or one number for both")),
    }
}

/// Says how many of `total` images are done: on a terminal in one line that changes, elsewhere at every tenth.
struct Counter {
    total: usize,
    /// Tenths, or on a terminal hundredths, that were reported.
    reported: Mutex<usize>,
}

impl Counter {
    fn new(total: usize) -> Self {
        Counter { total: total.max(1), reported: Mutex::new(0) }
    }

    /// May be called from any thread, with counts in any order.
    fn report(&self, done: usize) {
        let terminal = std::io::stderr().is_terminal();
        let parts = if terminal { 100 } else { 10 };
        let part = done * parts / self.total;
        let mut reported = self.reported.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if part <= *reported {
            return;
        }
        *reported = part;
        if terminal {
            use std::io::Write;
            let end = if done >= self.total { "\n" } else { "" };
            write!(std::io::stderr(), "\r{done}/{} images{end}", self.total).ok();
        } else {
            println!("{done}/{} images", self.total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ranges() {
        assert_eq!((size("48x64").unwrap(), size("32").unwrap()), ((48, 64), (32, 32)));
        assert_eq!(range::<u32>("1-4", "--objects").unwrap(), (1, 4));
        assert_eq!(range::<f32>("0.5", "--scale").unwrap(), (0.5, 0.5));
        for wrong in ["", "x", "3x", "-1", "64*64"] {
            assert!(size(wrong).unwrap_err().is_usage(), "{wrong}");
            assert!(range::<u32>(wrong, "--objects").unwrap_err().is_usage(), "{wrong}");
        }
    }
}
