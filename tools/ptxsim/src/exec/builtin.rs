//! Functions that the driver provides to kernels: `vprintf`, `__assertfail`.

use super::cx::Cx;
use super::format::{Arguments, format};
use super::inst::{Exec, Flow, Inst};
use super::program::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_BASE, SHARED_WINDOW, WINDOW_BYTES};
use crate::check::Kind;

/// Longest string that is read from a kernel's memory.
const LONGEST: usize = 1 << 16;

/// The builtin of the name, or why there is none.
pub(super) fn find(name: &str) -> Result<Exec, String> {
    match name {
        "vprintf" => Ok(vprintf),
        "__assertfail" => Ok(assertfail),
        "malloc" | "free" => Err(format!("{name} on the device heap (also new, delete) is not supported")),
        _ => Err(format!("the function {name} has no body, and the driver provides none")),
    }
}

/// Argument number `n` of the call, for a lane.
fn argument(cx: &Cx<'_>, i: &Inst, lane: u32, n: usize) -> u64 {
    let site = &cx.code.calls[i.aux as usize];
    let Some(&(offset, bytes)) = site.arguments.get(n) else { return 0 };
    let at = lane as usize * cx.code.local_bytes as usize + offset as usize;
    let mut value = [0; 8];
    let bytes = (bytes as usize).min(8);
    value[..bytes].copy_from_slice(&cx.block.warps[cx.warp].local[at..at + bytes]);
    u64::from_le_bytes(value)
}

/// The first result of the call, for a lane.
fn set_result(cx: &mut Cx<'_>, i: &Inst, lane: u32, value: u32) {
    let Some(&(offset, 4)) = cx.code.calls[i.aux as usize].results.first() else { return };
    let at = lane as usize * cx.code.local_bytes as usize + offset as usize;
    cx.block.warps[cx.warp].local[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Reads at a generic address as the driver would: nothing is counted, nothing checked but that the memory is there.
fn read(cx: &Cx<'_>, lane: u32, address: u64, to: &mut [u8]) -> Result<(), u64> {
    let window =
        |base: u64| (base..base + WINDOW_BYTES).contains(&address).then(|| (address - base) as usize);
    let slice = |from: &[u8], offset: usize, to: &mut [u8]| {
        let bytes = offset.checked_add(to.len()).and_then(|end| from.get(offset..end));
        let bytes = bytes.ok_or(address)?;
        to.copy_from_slice(bytes);
        Ok(())
    };
    if let Some(offset) = window(LOCAL_WINDOW) {
        let bytes = cx.code.local_bytes as usize;
        let all = &cx.block.warps[cx.warp].local;
        return slice(&all[lane as usize * bytes..][..bytes], offset, to);
    }
    if let Some(offset) = window(PARAM_WINDOW) {
        return slice(&cx.launch.params, offset, to);
    }
    if let Some(offset) = window(SHARED_WINDOW) {
        let shared = &cx.block.shared;
        // SAFETY: `data` points at so many bytes; the block, and with it this memory, belongs to this host thread.
        let all = unsafe { std::slice::from_raw_parts(shared.data(), shared.bytes() as usize) };
        return slice(all, offset.checked_sub(SHARED_BASE as usize).ok_or(address)?, to);
    }
    cx.launch.memory.read(address, to).map_err(|_| address)
}

/// A string up to its 0.
fn string(cx: &Cx<'_>, lane: u32, address: u64) -> Result<Vec<u8>, u64> {
    let mut text = Vec::new();
    let mut byte = [0];
    while text.len() < LONGEST {
        read(cx, lane, address + text.len() as u64, &mut byte)?;
        if byte[0] == 0 {
            break;
        }
        text.push(byte[0]);
    }
    Ok(text)
}

/// Values in the buffer that the kernel filled; each aligned to its size.
struct Buffer<'c, 'l> {
    cx: &'c Cx<'l>,
    lane: u32,
    at: u64,
    taken: u32,
    /// First address that could not be read.
    missing: Option<u64>,
}

impl Arguments for Buffer<'_, '_> {
    fn next(&mut self, bytes: u32) -> u64 {
        let mut value = [0; 8];
        self.at = self.at.next_multiple_of(u64::from(bytes));
        let read = read(self.cx, self.lane, self.at, &mut value[..bytes as usize]);
        self.missing = self.missing.or(read.err());
        self.at += u64::from(bytes);
        self.taken += 1;
        u64::from_le_bytes(value)
    }

    fn string(&mut self, address: u64) -> Vec<u8> {
        let text = string(self.cx, self.lane, address);
        self.missing = self.missing.or(text.as_ref().err().copied());
        text.unwrap_or_default()
    }
}

fn vprintf(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let mut output = Vec::new();
    for lane in (0..32).filter(|l| mask >> l & 1 != 0) {
        let (text, at) = (argument(cx, i, lane, 0), argument(cx, i, lane, 1));
        let text = match string(cx, lane, text) {
            Ok(text) => text,
            Err(address) => return unreadable(cx, lane, address, "the format of printf"),
        };
        let mut buffer = Buffer { cx, lane, at, taken: 0, missing: None };
        output.extend(format(&text, &mut buffer));
        let Buffer { taken, missing, .. } = buffer;
        if let Some(address) = missing {
            return unreadable(cx, lane, address, "an argument of printf");
        }
        set_result(cx, i, lane, taken);
    }
    cx.launch.print(cx.block.linear, &String::from_utf8_lossy(&output));
    Flow::Next
}

fn unreadable(cx: &mut Cx<'_>, lane: u32, address: u64, what: &str) -> Flow {
    cx.fault(Kind::OutOfBounds, lane, Some(address), || {
        format!("{what} at {address:#x} is not in memory that can be read")
    })
}

fn assertfail(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let lane = mask.trailing_zeros();
    let text = |n: usize| match string(cx, lane, argument(cx, i, lane, n)) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(address) => format!("(unreadable at {address:#x})"),
    };
    let (message, file, function) = (text(0), text(1), text(3));
    let line = argument(cx, i, lane, 2);
    cx.fault(Kind::Trap, lane, None, || {
        format!("assertion `{message}` failed at {file}:{line} in {function}")
    })
}
