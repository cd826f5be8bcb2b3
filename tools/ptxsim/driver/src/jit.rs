//! Options of the just-in-time compiler, as far as they have a meaning here: the logs and the time.

use crate::error::{Error, Result};
use crate::ffi::{In, Out};
use std::time::Instant;

const WALL_TIME: u32 = 2;
const INFO: u32 = 3;
const INFO_BYTES: u32 = 4;
const ERROR: u32 = 5;
const ERROR_BYTES: u32 = 6;
/// How many options there are.
const COUNT: u32 = 35;

/// A log buffer of the program.
#[derive(Clone, Copy, Default)]
struct Log {
    address: usize,
    room: usize,
    /// Place of the option that says how much room there is, and is told how much was used.
    index: Option<usize>,
    used: usize,
}

impl Log {
    fn write(&mut self, text: &str) {
        if self.address == 0 || self.room == 0 {
            return;
        }
        let room = self.room - 1;
        let bytes = &text.as_bytes()[..text.len().min(room - self.used.min(room))];
        // SAFETY: the program gave `room` bytes at this address for the log, and one is left for the NUL.
        unsafe {
            crate::ffi::write_host(self.address + self.used, bytes);
            crate::ffi::write_host(self.address + self.used + bytes.len(), &[0]);
        }
        self.used += bytes.len();
    }
}

/// The options of one call.
pub struct Jit {
    info: Log,
    error: Log,
    values: Out<usize>,
    time: Option<usize>,
    began: Instant,
}

impl Jit {
    /// No options.
    pub fn none() -> Self {
        let (info, error) = (Log::default(), Log::default());
        Jit { info, error, values: Out::nowhere(), time: None, began: Instant::now() }
    }

    /// What the program asks for. Options of code generation are accepted and change nothing.
    pub fn new(count: usize, options: In<u32>, values: Out<usize>) -> Result<Self> {
        let mut jit = Self::none();
        if count == 0 {
            return Ok(jit);
        }
        jit.values = values.needed()?;
        for (i, option) in options.list(count)?.into_iter().enumerate() {
            let value = values.get_at(i);
            // A size is a 32-bit number put where a pointer would be.
            let number = value as u32 as usize;
            match option {
                WALL_TIME => jit.time = Some(i),
                INFO => jit.info.address = value,
                INFO_BYTES => (jit.info.room, jit.info.index) = (number, Some(i)),
                ERROR => jit.error.address = value,
                ERROR_BYTES => (jit.error.room, jit.error.index) = (number, Some(i)),
                0..COUNT => {}
                _ => return Err(Error::INVALID_VALUE),
            }
        }
        jit.info.write("");
        jit.error.write("");
        Ok(jit)
    }

    /// Adds to the log of notes.
    pub fn info(&mut self, text: &str) {
        self.info.write(text);
    }

    /// Adds to the log of errors.
    pub fn error(&mut self, text: &str) {
        self.error.write(text);
    }

    /// Tells the program how much was written, and how long it took in milliseconds.
    pub fn finish(&self) {
        for log in [&self.info, &self.error] {
            if let Some(index) = log.index {
                self.values.set_at(index, log.used);
            }
        }
        if let Some(index) = self.time {
            let milliseconds = self.began.elapsed().as_secs_f32() * 1e3;
            self.values.set_at(index, milliseconds.to_bits() as usize);
        }
    }
}
