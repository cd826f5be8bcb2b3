//! Copies and memsets.

use crate::context::{Context, current, initialised};
use crate::error::{Error, Result};
use crate::ffi::{Handle, In, Memcpy2d, Memcpy3d, MemsetNodeParams, Side3d, read_host, write_host};
use crate::op::{self, Op};
use crate::order::Moment;
use crate::state::{self, Driver};
use crate::stream::{self, Stream};
use ptxsim::mem::touched::Use;
use std::ops::Range;
use std::sync::Arc;

/// Device addresses, whether or not something is there. The system hardly ever gives a program memory in this range (it does
/// where the stack may grow without limit), so one that is in it and not known is touched as host memory only if it is mapped.
const DEVICE_SPACE: Range<u64> = 0x0A00_0000_0000..0x5000_0000_0000;
/// `CU_MEMORYTYPE_…`
const HOST: u32 = 1;
const DEVICE: u32 = 2;
const UNIFIED: u32 = 4;

/// Where one side of a copy lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    /// Memory that the driver knows, of the device or page-locked.
    Known,
    /// Other memory of the program.
    Pageable,
}

/// One side of a copy.
#[derive(Clone, Copy, Debug)]
struct Place {
    address: u64,
    side: Side,
    /// Bytes from row to row.
    pitch: u64,
    /// Bytes from slice to slice.
    slice: u64,
}

/// A copy of up to three dimensions.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    dst: Place,
    src: Place,
    width: u64,
    height: u64,
    depth: u64,
    /// The call.
    pub what: &'static str,
}

/// Which kind of address a parameter of the interface is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    Host,
    Device,
    Either,
}

fn place(driver: &Driver, address: u64, extent: u64, expect: Expect) -> Result<(u64, Side)> {
    if address == 0 {
        return Err(Error::INVALID_VALUE);
    }
    match driver.memory.find(address) {
        Some(found) => {
            if expect == Expect::Host && DEVICE_SPACE.contains(&found.base) {
                return Err(Error::INVALID_VALUE);
            }
            if extent > found.bytes - (address - found.base) {
                return Err(Error::INVALID_VALUE);
            }
            Ok((address, Side::Known))
        }
        None if expect == Expect::Device => Err(Error::INVALID_VALUE),
        None if DEVICE_SPACE.contains(&address) && !is_mapped(address, extent) => Err(Error::INVALID_VALUE),
        None => Ok((address, Side::Pageable)),
    }
}

/// Whether the program has memory at all of these addresses.
fn is_mapped(address: u64, bytes: u64) -> bool {
    std::fs::read_to_string("/proc/self/maps").is_ok_and(|maps| covers(&maps, address, bytes))
}

/// Whether the lines of `/proc/self/maps`, which are sorted, hold all of these addresses.
fn covers(maps: &str, address: u64, bytes: u64) -> bool {
    let (mut next, end) = (address, address.saturating_add(bytes.max(1)));
    for line in maps.lines() {
        let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-')) else {
            continue;
        };
        let hex = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        if hex(from) <= next && next < hex(to) {
            next = hex(to);
        }
    }
    next >= end
}

impl Copy {
    /// A copy of so many bytes in a row.
    fn linear(dst: (u64, Expect), src: (u64, Expect), bytes: usize, what: &'static str) -> Result<Self> {
        let driver = state::driver()?;
        let bytes = bytes as u64;
        let side = |(address, expect): (u64, Expect)| -> Result<Place> {
            let (address, side) = place(driver, address, bytes, expect)?;
            Ok(Place { address, side, pitch: bytes, slice: bytes })
        };
        Ok(Copy { dst: side(dst)?, src: side(src)?, width: bytes, height: 1, depth: 1, what })
    }

    /// What `CUDA_MEMCPY3D` says.
    pub fn from_3d(params: &Memcpy3d, what: &'static str) -> Result<Self> {
        let driver = initialised()?;
        let (width, height, depth) = (params.width as u64, params.height as u64, params.depth as u64);
        let side = |side: &Side3d| -> Result<Place> {
            let (address, expect) = match side.memory {
                HOST => (side.host as u64, Expect::Host),
                DEVICE => (side.device, Expect::Device),
                UNIFIED => (side.device, Expect::Either),
                _ => return Err(Error::INVALID_VALUE),
            };
            // A pitch or height of 0 stands for a tight one.
            let pitch = if side.pitch == 0 { width } else { side.pitch as u64 };
            let rows = if side.rows == 0 { height } else { side.rows as u64 };
            if side.lod != 0 || pitch < side.x as u64 + width || (depth > 1 && rows < side.y as u64 + height)
            {
                return Err(Error::INVALID_VALUE);
            }
            let offset = |x: u64, y: u64, z: u64| -> Option<u64> {
                z.checked_mul(rows)?.checked_add(y)?.checked_mul(pitch)?.checked_add(x)
            };
            let start = offset(side.x as u64, side.y as u64, side.z as u64).ok_or(Error::INVALID_VALUE)?;
            let extent = if width == 0 || height == 0 || depth == 0 {
                0
            } else {
                offset(width, height - 1, depth - 1).ok_or(Error::INVALID_VALUE)?
            };
            let start = address.checked_add(start).filter(|_| address != 0).ok_or(Error::INVALID_VALUE)?;
            let (address, side) = place(driver, start, extent, expect)?;
            Ok(Place { address, side, pitch, slice: rows.checked_mul(pitch).ok_or(Error::INVALID_VALUE)? })
        };
        Ok(Copy { dst: side(&params.dst)?, src: side(&params.src)?, width, height, depth, what })
    }

    /// What `CUDA_MEMCPY2D` says.
    fn from_2d(params: &Memcpy2d, what: &'static str) -> Result<Self> {
        let side = |s: &crate::ffi::Side2d| Side3d {
            x: s.x,
            y: s.y,
            z: 0,
            lod: 0,
            memory: s.memory,
            host: s.host,
            device: s.device,
            array: s.array,
            reserved: 0,
            pitch: s.pitch,
            rows: 0,
        };
        let (width, height) = (params.width, params.height);
        Self::from_3d(
            &Memcpy3d { src: side(&params.src), dst: side(&params.dst), width, height, depth: 1 },
            what,
        )
    }

    /// Whether the program's own memory is on either side.
    fn touches_pageable(&self) -> bool {
        self.dst.side == Side::Pageable || self.src.side == Side::Pageable
    }

    /// Offsets of the rows on either side; tight rows count as one.
    fn rows(&self) -> (Vec<(u64, u64)>, u64) {
        let tight =
            |p: &Place| p.pitch == self.width && (self.depth == 1 || p.slice == self.width * self.height);
        if tight(&self.dst) && tight(&self.src) {
            return (vec![(0, 0)], self.width * self.height * self.depth);
        }
        let row = |z: u64, y: u64| {
            (z * self.dst.slice + y * self.dst.pitch, z * self.src.slice + y * self.src.pitch)
        };
        ((0..self.depth).flat_map(|z| (0..self.height).map(move |y| row(z, y))).collect(), self.width)
    }

    /// Does it.
    pub fn perform(&self, driver: &Driver, context: &Arc<Context>, moment: &Moment) -> Result {
        if self.width == 0 || self.height == 0 || self.depth == 0 {
            return Ok(());
        }
        let (rows, bytes) = self.rows();
        let mut used = Vec::new();
        for &(to, from) in &rows {
            for (place, offset, usage) in [(&self.src, from, Use::Read), (&self.dst, to, Use::Write)] {
                if place.side == Side::Known {
                    let start = place.address + offset;
                    used.push((start..start + bytes, usage));
                }
            }
        }
        op::uses(driver, context, moment, &used)?;
        let mut buffer = Vec::new();
        for (to, from) in rows {
            let (to, from) = (self.dst.address + to, self.src.address + from);
            let done = match (self.dst.side, self.src.side) {
                (Side::Known, Side::Known) => driver.memory.copy(to, from, bytes),
                (dst, src) => {
                    buffer.resize(bytes as usize, 0);
                    let read = match src {
                        Side::Known => driver.memory.read(from, &mut buffer),
                        Side::Pageable => {
                            // SAFETY: the program named this range of its own memory as the source of the copy.
                            unsafe { read_host(from as usize, &mut buffer) };
                            Ok(())
                        }
                    };
                    read.and_then(|()| match dst {
                        Side::Known => driver.memory.write(to, &buffer),
                        Side::Pageable => {
                            // SAFETY: the program named this range of its own memory as the target of the copy.
                            unsafe { write_host(to as usize, &buffer) };
                            Ok(())
                        }
                    })
                }
            };
            // Checked when it was enqueued: a graph's copy of memory that was freed since.
            done.map_err(|_| context.fail(Error::ILLEGAL_ADDRESS))?;
        }
        Ok(())
    }
}

/// How a copy's call relates to the host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The call returns when the copy is done.
    Always,
    /// The call returns at once, unless pageable memory is involved.
    ForPageable,
    /// Never: a copy within the device.
    Never,
}

fn submit(stream: &Arc<Stream>, copy: Copy, wait: Wait) -> Result {
    let captured = op::enqueue(stream, Op::Copy(copy))?;
    let waits = match wait {
        Wait::Always => true,
        // A copy from pageable memory only waits until it is staged.
        Wait::ForPageable => copy.dst.side == Side::Pageable,
        Wait::Never => false,
    };
    if waits && !captured { stream.wait() } else { Ok(()) }
}

fn null_stream() -> Result<Arc<Stream>> {
    stream::resolve(Handle::NULL)
}

/// `cuMemcpyHtoD_v2`.
pub fn htod(dst: u64, src: usize, bytes: usize) -> Result {
    let stream = null_stream()?;
    if bytes == 0 {
        return Ok(());
    }
    let copy = Copy::linear((dst, Expect::Device), (src as u64, Expect::Host), bytes, "cuMemcpyHtoD")?;
    submit(&stream, copy, Wait::Always)
}

/// `cuMemcpyDtoH_v2`.
pub fn dtoh(dst: usize, src: u64, bytes: usize) -> Result {
    let stream = null_stream()?;
    if bytes == 0 {
        return Ok(());
    }
    let copy = Copy::linear((dst as u64, Expect::Host), (src, Expect::Device), bytes, "cuMemcpyDtoH")?;
    submit(&stream, copy, Wait::Always)
}

/// `cuMemcpyDtoD_v2`: the host does not wait.
pub fn dtod(dst: u64, src: u64, bytes: usize) -> Result {
    let stream = null_stream()?;
    if bytes == 0 {
        return Ok(());
    }
    let copy = Copy::linear((dst, Expect::Device), (src, Expect::Device), bytes, "cuMemcpyDtoD")?;
    submit(&stream, copy, Wait::Never)
}

/// `cuMemcpyHtoDAsync_v2`.
pub fn htod_async(dst: u64, src: usize, bytes: usize, stream: Handle) -> Result {
    let stream = stream::resolve(stream)?;
    if bytes == 0 {
        return Ok(());
    }
    let copy = Copy::linear((dst, Expect::Device), (src as u64, Expect::Host), bytes, "cuMemcpyHtoDAsync")?;
    submit(&stream, copy, Wait::ForPageable)
}

/// `cuMemcpyDtoHAsync_v2`.
pub fn dtoh_async(dst: usize, src: u64, bytes: usize, stream: Handle) -> Result {
    let stream = stream::resolve(stream)?;
    if bytes == 0 {
        return Ok(());
    }
    let copy = Copy::linear((dst as u64, Expect::Host), (src, Expect::Device), bytes, "cuMemcpyDtoHAsync")?;
    submit(&stream, copy, Wait::ForPageable)
}

/// `cuMemcpyDtoDAsync_v2`.
pub fn dtod_async(dst: u64, src: u64, bytes: usize, stream: Handle) -> Result {
    let stream = stream::resolve(stream)?;
    if bytes == 0 {
        return Ok(());
    }
    let copy = Copy::linear((dst, Expect::Device), (src, Expect::Device), bytes, "cuMemcpyDtoDAsync")?;
    submit(&stream, copy, Wait::Never)
}

/// `cuMemcpy`: either side is of either kind.
pub fn unified(dst: u64, src: u64, bytes: usize) -> Result {
    let stream = null_stream()?;
    if bytes == 0 {
        return Ok(());
    }
    let copy = Copy::linear((dst, Expect::Either), (src, Expect::Either), bytes, "cuMemcpy")?;
    let wait = if copy.touches_pageable() { Wait::Always } else { Wait::Never };
    submit(&stream, copy, wait)
}

/// `cuMemcpyAsync`.
pub fn unified_async(dst: u64, src: u64, bytes: usize, stream: Handle) -> Result {
    let stream = stream::resolve(stream)?;
    if bytes == 0 {
        return Ok(());
    }
    let copy = Copy::linear((dst, Expect::Either), (src, Expect::Either), bytes, "cuMemcpyAsync")?;
    submit(&stream, copy, Wait::ForPageable)
}

fn peers(first: Handle, second: Handle) -> Result {
    for handle in [first, second] {
        crate::handles::find::<Context>(handle).ok_or(Error::INVALID_CONTEXT)?.check()?;
    }
    Ok(())
}

/// `cuMemcpyPeer`.
pub fn peer(dst: u64, dst_context: Handle, src: u64, src_context: Handle, bytes: usize) -> Result {
    current()?;
    peers(dst_context, src_context)?;
    dtod(dst, src, bytes)
}

/// `cuMemcpyPeerAsync`.
pub fn peer_async(
    dst: u64,
    dst_context: Handle,
    src: u64,
    src_context: Handle,
    bytes: usize,
    stream: Handle,
) -> Result {
    initialised()?;
    peers(dst_context, src_context)?;
    dtod_async(dst, src, bytes, stream)
}

/// `cuMemcpy2D_v2` and `cuMemcpy2DUnaligned_v2`.
pub fn copy_2d(params: In<Memcpy2d>) -> Result {
    let stream = null_stream()?;
    let copy = Copy::from_2d(&params.get()?, "cuMemcpy2D")?;
    let wait = if copy.touches_pageable() { Wait::Always } else { Wait::Never };
    submit(&stream, copy, wait)
}

/// `cuMemcpy2DAsync_v2`.
pub fn copy_2d_async(params: In<Memcpy2d>, stream: Handle) -> Result {
    let stream = stream::resolve(stream)?;
    submit(&stream, Copy::from_2d(&params.get()?, "cuMemcpy2DAsync")?, Wait::ForPageable)
}

/// `cuMemcpy3D_v2`.
pub fn copy_3d(params: In<Memcpy3d>) -> Result {
    let stream = null_stream()?;
    let copy = Copy::from_3d(&params.get()?, "cuMemcpy3D")?;
    let wait = if copy.touches_pageable() { Wait::Always } else { Wait::Never };
    submit(&stream, copy, wait)
}

/// `cuMemcpy3DAsync_v2`.
pub fn copy_3d_async(params: In<Memcpy3d>, stream: Handle) -> Result {
    let stream = stream::resolve(stream)?;
    submit(&stream, Copy::from_3d(&params.get()?, "cuMemcpy3DAsync")?, Wait::ForPageable)
}

/// A memset of up to two dimensions.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    address: u64,
    pitch: u64,
    element: u8,
    value: u32,
    /// In elements.
    width: u64,
    height: u64,
}

impl Fill {
    /// Checked as the driver would: known memory, aligned to the element.
    pub fn new(address: u64, pitch: u64, element: u8, value: u32, width: u64, height: u64) -> Result<Self> {
        let driver = initialised()?;
        if !matches!(element, 1 | 2 | 4) {
            return Err(Error::INVALID_VALUE);
        }
        let row = width.checked_mul(u64::from(element)).ok_or(Error::INVALID_VALUE)?;
        let aligned = |n: u64| n.is_multiple_of(u64::from(element));
        if !aligned(address) || (height > 1 && (pitch < row || !aligned(pitch))) {
            return Err(Error::INVALID_VALUE);
        }
        if row > 0 && height > 0 {
            let extent =
                pitch.checked_mul(height - 1).and_then(|n| n.checked_add(row)).ok_or(Error::INVALID_VALUE)?;
            place(driver, address, if height == 1 { row } else { extent }, Expect::Device)?;
        }
        Ok(Self { address, pitch, element, value, width, height })
    }

    /// What `cuGraphMemsetNodeGetParams` answers.
    pub fn node_params(&self) -> MemsetNodeParams {
        MemsetNodeParams {
            dst: self.address,
            pitch: self.pitch as usize,
            value: self.value,
            element: u32::from(self.element),
            width: self.width as usize,
            height: self.height as usize,
        }
    }

    /// Does it.
    pub fn perform(&self, driver: &Driver, context: &Arc<Context>, moment: &Moment) -> Result {
        if self.width == 0 || self.height == 0 {
            return Ok(());
        }
        let row = self.width * u64::from(self.element);
        let (rows, count) = match self.pitch == row {
            true => (1, self.width * self.height),
            false => (self.height, self.width),
        };
        let start = |y: u64| self.address + y * self.pitch;
        let bytes = count * u64::from(self.element);
        let used: Vec<_> = (0..rows).map(|y| (start(y)..start(y) + bytes, Use::Write)).collect();
        op::uses(driver, context, moment, &used)?;
        let value = self.value.to_le_bytes();
        for y in 0..rows {
            let done = driver.memory.fill(start(y), &value[..usize::from(self.element)], count);
            done.map_err(|_| context.fail(Error::ILLEGAL_ADDRESS))?;
        }
        Ok(())
    }
}

/// `cuMemsetD8`, `D16`, `D32` and their forms: on the NULL stream; the host does not wait.
pub fn fill(address: u64, element: u8, value: u32, count: usize) -> Result {
    fill_async(address, element, value, count, Handle::NULL)
}

/// `cuMemsetD8Async` and so on.
pub fn fill_async(address: u64, element: u8, value: u32, count: usize, stream: Handle) -> Result {
    let stream = stream::resolve(stream)?;
    if count == 0 {
        return Ok(());
    }
    let fill = Fill::new(address, 0, element, value, count as u64, 1)?;
    op::enqueue(&stream, Op::Fill(fill)).map(|_| ())
}

/// `cuMemsetD2D8` and so on.
pub fn fill_2d(address: u64, pitch: usize, element: u8, value: u32, width: usize, height: usize) -> Result {
    fill_2d_async(address, pitch, element, value, width, height, Handle::NULL)
}

/// `cuMemsetD2D8Async` and so on.
pub fn fill_2d_async(
    address: u64,
    pitch: usize,
    element: u8,
    value: u32,
    width: usize,
    height: usize,
    stream: Handle,
) -> Result {
    let stream = stream::resolve(stream)?;
    let fill = Fill::new(address, pitch as u64, element, value, width as u64, height as u64)?;
    op::enqueue(&stream, Op::Fill(fill)).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mapped() {
        let maps =
            "1000-2000 rw-p 0 00:00 0\n2000-3000 r--p 0 00:00 0 /lib/x y\n5000-6000 rw-p 0 00:00 0 [heap]\n";
        for (address, bytes, mapped) in [
            (0x1000, 0x2000, true),
            (0x1ff0, 0x20, true),
            (0x1000, 0x2001, false),
            (0x2fff, 0, true),
            (0x3000, 0, false),
            (0x4fff, 2, false),
            (0x5000, u64::MAX, false),
        ] {
            assert_eq!(covers(maps, address, bytes), mapped, "{address:#x} {bytes:#x}");
        }
        let here = [0u8; 64];
        assert!(is_mapped(here.as_ptr() as u64, 64) && !is_mapped(16, 1));
    }
}
