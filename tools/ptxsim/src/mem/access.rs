//! Accesses of the running warp: from addresses to checked places in memory.

use super::global::{Table, epoch};
use super::lanes;
use super::pattern::{By, Class, Key, Offsets, Pattern, Patterns, Shape, Ways};
use super::report::{Access, Places, Reporter, bytes};
use super::shadow::{self, Scene, Stamp};
use super::stats::Traffic;
use super::touched::{Extents, Touched, Use};
use super::who;
use crate::check::Kind;
use crate::exec::cx::Cx;
use crate::exec::inst::{Flow, Inst};
use crate::exec::lanes::{FULL, LANES};
use crate::exec::launch::LaunchState;
use crate::exec::program::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_BASE, SHARED_WINDOW, WINDOW_BYTES};
use std::sync::Arc;

/// What one host thread knows of memory.
#[derive(Debug)]
pub struct Memory {
    table: Arc<Table>,
    sites: Vec<Site>,
    patterns: Patterns,
    epoch: u64,
    touched: Extents,
}

/// One memory instruction.
#[derive(Clone, Copy, Debug, Default)]
struct Site {
    ways: Ways,
    /// Allocation of the last access.
    allocation: u32,
    traffic: Traffic,
}

impl Memory {
    /// At the start of a launch.
    pub fn new(launch: &LaunchState<'_>, sites: usize) -> Memory {
        let table = launch.memory.table();
        Memory {
            touched: Extents::new(table.len()),
            table,
            sites: vec![Site::default(); sites],
            patterns: Patterns::new(),
            epoch: epoch(launch.epoch),
        }
    }

    /// What each memory instruction moved.
    pub fn traffic(&self) -> impl Iterator<Item = &Traffic> {
        self.sites.iter().map(|s| &s.traffic)
    }

    /// What was used of each allocation.
    pub fn take_touched(&mut self) -> Vec<Touched> {
        std::mem::take(&mut self.touched).touched(|n| self.table.get(n).map(|a| a.base()))
    }

    /// What one memory instruction moved, to be added to.
    #[inline(always)]
    pub fn site_mut(&mut self, site: u32) -> &mut Traffic {
        &mut self.sites[site as usize].traffic
    }
}

/// What an instruction does besides moving bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// `.volatile`
    pub volatile: bool,
    /// `.relaxed`, `.acquire`, `.release`, atomics.
    pub strong: bool,
    /// Reads may not be of unwritten bytes, and races count; not for constants.
    pub constant: bool,
    /// Whom races are told about.
    pub by: By,
}

/// A warp's access.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `Inst::site`
    pub site: u32,
    /// Bytes of a lane, a power of two up to 32.
    pub width: u32,
    /// Active lanes, not 0.
    pub mask: u32,
    /// Address of the lowest active lane, in its own space.
    pub base: u64,
    /// Distances of the lanes from it; 0 for inactive lanes.
    pub offsets: &'a Offsets,
    /// Kind of access.
    pub manner: Manner,
}

impl Request<'_> {
    /// Address of a lane.
    pub fn address(&self, lane: usize) -> u64 {
        self.base.wrapping_add_signed(i64::from(self.offsets[lane]))
    }
}

/// Where an access that was found to be possible happens.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Bytes of the lowest active lane; the others lie at their offsets from here.
    pub pointer: *mut u8,
    /// How they lie.
    pub shape: Shape,
}

/// Why there is no place to access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Reported; the launch is over.
    Fault,
    /// The lanes are in different spaces or allocations: see [`Cx::split`].
    Split,
}

/// What is about to be written: a lane's byte, by its offset. `None` where unknown.
pub type Bytes<'a> = &'a dyn Fn(usize, usize) -> Option<u8>;

/// Nobody knows what an atomic writes before it does.
pub const UNKNOWN: Bytes<'static> = &|_, _| None;

/// Reading or writing.
#[derive(Clone, Copy)]
pub enum Does<'a> {
    /// Reads.
    Read,
    /// Writes these bytes.
    Write(Bytes<'a>),
    /// Reads and writes in one.
    Atomic,
    /// A copy that goes on beside the program begins to write. In shared memory only its passes through the banks are
    /// counted: the bytes count where they are read.
    Copy,
}

/// Offsets of 32-bit addresses from that of the lowest active lane.
#[inline(always)]
pub fn offsets32(addresses: &[u32; LANES], mask: u32) -> (u32, Offsets) {
    let first = addresses[mask.trailing_zeros() as usize & 31];
    let mut offsets = [0; LANES];
    for lane in 0..LANES {
        offsets[lane] = addresses[lane].wrapping_sub(first) as i32;
    }
    if mask != FULL {
        clear_inactive(&mut offsets, mask);
    }
    (first, offsets)
}

/// Offsets of 64-bit addresses; `false` where one is too far from the lowest active lane's.
#[inline(always)]
pub fn offsets64(addresses: &[u64; LANES], mask: u32) -> (u64, Offsets, bool) {
    let first = addresses[mask.trailing_zeros() as usize & 31];
    let mut offsets = [0; LANES];
    let mut far = 0;
    for lane in 0..LANES {
        let distance = addresses[lane].wrapping_sub(first) as i64;
        offsets[lane] = distance as i32;
        let active = if mask == FULL { -1 } else { -i64::from(mask >> lane & 1) };
        far |= (distance ^ i64::from(distance as i32)) & active;
    }
    if mask != FULL {
        clear_inactive(&mut offsets, mask);
    }
    (first, offsets, far == 0)
}

#[inline(always)]
fn clear_inactive(offsets: &mut Offsets, mask: u32) {
    for (lane, offset) in offsets.iter_mut().enumerate() {
        *offset &= -((mask >> lane & 1) as i32);
    }
}

/// Space of a generic address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Global memory and everything that is none of the others.
    Global,
    /// Shared memory of the block.
    Shared,
    /// The lane's own.
    Local,
    /// Parameters of the kernel.
    Param,
}

impl Window {
    /// By address.
    #[inline(always)]
    pub fn of(address: u64) -> Window {
        match address.wrapping_sub(SHARED_WINDOW) / WINDOW_BYTES {
            0 => Window::Shared,
            n if n == (LOCAL_WINDOW - SHARED_WINDOW) / WINDOW_BYTES => Window::Local,
            n if n == (PARAM_WINDOW - SHARED_WINDOW) / WINDOW_BYTES => Window::Param,
            _ => Window::Global,
        }
    }

    /// Where its generic addresses begin.
    pub fn base(self) -> u64 {
        match self {
            Window::Global => 0,
            Window::Shared => SHARED_WINDOW,
            Window::Local => LOCAL_WINDOW,
            Window::Param => PARAM_WINDOW,
        }
    }
}

impl Places for LaunchState<'_> {
    fn place(&self, site: u32) -> String {
        let code = self.kernel.code();
        match code.site_pc.get(site as usize).map(|&pc| &code.origins[pc as usize]) {
            Some(o) if site < who::MAX_SITE && o.loc.line > 0 => format!("line {}", o.loc.line),
            Some(o) if site < who::MAX_SITE => format!("PTX line {}", o.ptx_line),
            _ => "an unknown line".to_string(),
        }
    }
}

impl Cx<'_> {
    /// Finds or works out the pattern of a request, and counts the request.
    #[inline(always)]
    fn pattern(&mut self, class: Class, request: &Request<'_>) -> Result<u32, Miss> {
        if request.base & u64::from(request.width - 1) != 0 {
            return Err(self.misaligned(request));
        }
        let key = Key::new(class, request.manner.by, request.base, request.width, request.mask);
        let site = &mut self.mem.sites[request.site as usize];
        let index = match self.mem.patterns.find(&mut site.ways, key, request.offsets) {
            Some(index) => index,
            None => self.new_pattern(key, request)?,
        };
        let site = &mut self.mem.sites[request.site as usize];
        site.traffic.add(&self.mem.patterns.get(index).counts);
        Ok(index)
    }

    #[cold]
    #[inline(never)]
    fn new_pattern(&mut self, key: Key, request: &Request<'_>) -> Result<u32, Miss> {
        let low = request.width as i32 - 1;
        if request.offsets.iter().any(|o| o & low != 0) {
            return Err(self.misaligned(request));
        }
        let site = &mut self.mem.sites[request.site as usize];
        Ok(self.mem.patterns.insert(&mut site.ways, key, request.offsets))
    }

    #[cold]
    #[inline(never)]
    fn misaligned(&mut self, request: &Request<'_>) -> Miss {
        let wrong = |lane: &usize| request.address(*lane) & u64::from(request.width - 1) != 0;
        let lane = super::order::bits(request.mask).find(wrong).unwrap_or(0);
        let address = request.address(lane);
        self.fault(Kind::Misaligned, lane as u32, Some(address), || {
            format!("address {address:#x} is not a multiple of {}", request.width)
        });
        Miss::Fault
    }

    #[inline(always)]
    fn access_of(&self, request: &Request<'_>, reads: bool) -> Access {
        let manner = request.manner;
        let flag = manner.volatile && (reads || self.block.fences.has_fenced(self.warp));
        Access { site: request.site, pc: self.pc, warp: self.warp as u32, strong: manner.strong || flag }
    }

    /// Checks, counts and records an access to shared memory; gives where the lowest active lane's bytes are. Addresses
    /// are those of the shared window: the block's memory begins at [`SHARED_BASE`].
    #[inline(never)]
    pub fn shared_access(&mut self, mut request: Request<'_>, does: Does<'_>) -> Result<Place, Miss> {
        let base = (request.base as u32).wrapping_sub(SHARED_BASE);
        request.base = u64::from(base);
        let index = self.pattern(Class::Shared, &request)?;
        if !self.block.shared.contains(base, self.mem.patterns.get(index)) {
            return Err(self.outside_shared(&request));
        }
        let access = self.access_of(&request, matches!(does, Does::Read));
        if self.block.fences.enabled() {
            self.block.fences.settle(&mut self.block.order);
        }
        let reporter = &mut Reporter {
            findings: &mut self.findings,
            block: self.block.linear,
            index: self.block.index,
            grid: self.launch.facts.grid_dim,
            places: self.launch,
        };
        let (order, shared) = (&self.block.order, &mut self.block.shared);
        let pattern = self.mem.patterns.get(index);
        match does {
            Does::Read => shared.read(order, &access, base, pattern, reporter),
            Does::Write(value) => shared.write(order, &access, base, pattern, value, reporter),
            Does::Atomic => {
                self.mem.sites[request.site as usize].traffic.add_atomic(&pattern.counts);
                shared.atomic(order, &access, base, pattern, reporter);
            }
            Does::Copy => {
                self.mem.sites[request.site as usize].traffic.undo_but_passes(&pattern.counts);
                shared.async_write(order, &access, base, pattern, reporter);
            }
        }
        Ok(Place { pointer: shared.data_mut().wrapping_add(base as usize), shape: pattern.shape })
    }

    #[cold]
    #[inline(never)]
    fn outside_shared(&mut self, request: &Request<'_>) -> Miss {
        let size = u64::from(self.block.shared.bytes());
        let width = u64::from(request.width);
        let offset = |lane: usize| i64::from(request.base as u32) + i64::from(request.offsets[lane]);
        let outside = |lane: &usize| {
            let at = offset(*lane);
            at < 0 || at as u64 + width > size
        };
        let lane = super::order::bits(request.mask).find(outside).unwrap_or(0);
        let at = offset(lane) as u32;
        // Addresses in the reserved KiB in front wrap around to the top.
        let address = at.wrapping_add(SHARED_BASE);
        self.fault(Kind::OutOfBounds, lane as u32, Some(u64::from(at)), || {
            let what = bytes(width);
            if address < SHARED_BASE {
                format!(
                    "{what} at shared address {address:#x}, in the reserved part before the block's memory"
                )
            } else {
                let over = u64::from(at) + width - size;
                format!("{what} at shared address {at:#x}: {} beyond the block's {size} bytes", bytes(over))
            }
        });
        Miss::Fault
    }

    /// Checks, counts and records an access to global memory; gives where the lowest active lane's bytes are.
    #[inline(never)]
    pub fn global_access(&mut self, request: &Request<'_>, does: Does<'_>) -> Result<Place, Miss> {
        let site = &mut self.mem.sites[request.site as usize];
        let mut number = site.allocation as usize;
        let inside = |a: &super::allocation::Allocation| request.base.wrapping_sub(a.base()) < a.info().bytes;
        if !self.mem.table.get(number).is_some_and(inside) {
            number = self.mem.table.index_of(request.base).ok_or(Miss::Split)?;
            site.allocation = number as u32;
        }
        let index = self.pattern(Class::Global, request)?;
        let pattern = self.mem.patterns.get(index);
        let a = self.mem.table.get(number).ok_or(Miss::Split)?;
        let at = (request.base - a.base()) as i64;
        if at + i64::from(pattern.min) < 0 || at + i64::from(pattern.end) > a.info().bytes as i64 {
            let site = &mut self.mem.sites[request.site as usize];
            site.traffic.undo(&pattern.counts);
            return Err(Miss::Split);
        }
        let found = Place { pointer: a.pointer(request.base), shape: pattern.shape };
        if request.manner.constant {
            return Ok(found);
        }
        let access = self.access_of(request, matches!(does, Does::Read));
        let usage = match does {
            _ if access.strong => Use::Strong,
            Does::Read => Use::Read,
            Does::Write(_) | Does::Copy => Use::Write,
            Does::Atomic => Use::Strong,
        };
        let low = request.base.wrapping_add_signed(i64::from(pattern.min));
        let end = request.base.wrapping_add_signed(i64::from(pattern.end));
        self.mem.touched.note(number, usage, low, end);
        if self.block.fences.enabled() {
            self.block.fences.settle(&mut self.block.order);
        }
        let reporter = &mut Reporter {
            findings: &mut self.findings,
            block: self.block.linear,
            index: self.block.index,
            grid: self.launch.facts.grid_dim,
            places: self.launch,
        };
        let scene = Scene {
            stamp: Stamp::new(self.mem.epoch, self.block.linear),
            order: &self.block.order,
            fences: &self.block.fences,
        };
        let word0 = a.word_of(request.base);
        if matches!(does, Does::Read | Does::Atomic)
            && let Some(init) = a.init()
        {
            let written = |r: &super::pattern::Range| {
                let at = word0.wrapping_add_signed(r.word as isize);
                if pattern.whole_words {
                    return init.words_set(at, r.count as usize);
                }
                let who = pattern.who_of(*r);
                (0..who.len()).all(|k| u32::from(who[k]) & 15 & !init.word(at + k) == 0)
            };
            if !pattern.ranges().iter().all(written) {
                uninitialised(a, init, &access, word0, pattern, reporter);
            }
        }
        match does {
            Does::Read => shadow::read(&scene, a, &access, word0, pattern, reporter),
            Does::Write(value) => shadow::write(&scene, a, &access, word0, pattern, value, reporter),
            Does::Atomic => {
                self.mem.sites[request.site as usize].traffic.add_atomic(&pattern.counts);
                shadow::write(&scene, a, &access, word0, pattern, UNKNOWN, reporter);
            }
            Does::Copy => shadow::write(&scene, a, &access, word0, pattern, UNKNOWN, reporter),
        }
        if !matches!(does, Does::Read)
            && let Some(init) = a.init()
        {
            for &r in pattern.ranges() {
                let at = word0.wrapping_add_signed(r.word as isize);
                if pattern.whole_words {
                    init.set_words(at, r.count as usize);
                } else {
                    let who = pattern.who_of(r);
                    (0..who.len()).for_each(|k| init.set_word(at + k, u32::from(who[k]) & 15));
                }
            }
        }
        Ok(found)
    }

    /// Executes an instruction in parts: lanes that are in the same allocation or window together, in the order of their
    /// first lanes. A lane that is nowhere ends the launch. `addresses` are global, or `generic`; `width` is the lane's.
    #[cold]
    #[inline(never)]
    pub fn split(
        &mut self,
        i: &Inst,
        mask: u32,
        addresses: &[u64; LANES],
        width: u32,
        generic: bool,
    ) -> Flow {
        let window = |lane: usize| if generic { Window::of(addresses[lane]) } else { Window::Global };
        let home = |cx: &Self, lane: usize| match window(lane) {
            Window::Global => cx.mem.table.index_of(addresses[lane]).map(|n| (Window::Global, n)),
            window => Some((window, 0)),
        };
        for lane in super::order::bits(mask) {
            let address = addresses[lane];
            let Some((window, n)) = home(self, lane) else { return self.nowhere(lane, address, width) };
            if window == Window::Global
                && let Some(a) = self.mem.table.get(n)
                && a.end() - address < u64::from(width)
            {
                return self.nowhere(lane, address, width);
            }
        }
        let (mut left, mut parts) = (mask, 0);
        let mut result = Flow::Next;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let mine = home(self, first);
            let near = |lane: usize| {
                i32::try_from(addresses[lane].wrapping_sub(addresses[first]) as i64).is_ok()
                    && home(self, lane) == mine
            };
            let part = super::order::bits(left).filter(|&l| near(l)).fold(0, |m, l| m | 1 << l);
            left &= !part;
            parts += 1;
            result = (i.exec)(self, i, part);
            if result == Flow::Stop {
                return result;
            }
        }
        // It was one request.
        if let Some(site) = self.mem.sites.get_mut(i.site as usize) {
            site.traffic.requests -= parts - 1;
        }
        result
    }

    /// Tells where a stretch of global memory that does not lie inside one allocation leaves it.
    #[cold]
    pub fn outside_global(&mut self, lane: usize, address: u64, bytes: u64) -> Flow {
        let outside =
            (address..address.saturating_add(bytes)).find(|&a| self.mem.table.index_of(a).is_none());
        self.nowhere(lane, outside.unwrap_or(address), 1)
    }

    #[cold]
    fn nowhere(&mut self, lane: usize, address: u64, width: u32) -> Flow {
        let memory = self.launch.memory;
        let kind = if memory.freed(address) { Kind::UseAfterFree } else { Kind::OutOfBounds };
        // What runs over the end of an allocation begins inside it.
        let over = match self.mem.table.index_of(address).and_then(|n| self.mem.table.get(n)) {
            Some(a) => a.end(),
            None => address,
        };
        self.fault(kind, lane as u32, Some(address), || {
            format!("{} at {address:#x}: {}", bytes(u64::from(width)), memory.describe(over))
        })
    }
}

#[cold]
#[inline(never)]
fn uninitialised(
    a: &super::allocation::Allocation,
    init: super::allocation::InitBits<'_>,
    access: &Access,
    word0: usize,
    pattern: &Pattern,
    reporter: &mut Reporter<'_>,
) {
    for &r in pattern.ranges() {
        let at = word0.wrapping_add_signed(r.word as isize);
        for (k, who) in pattern.who_of(r).iter().enumerate() {
            let missing = u32::from(*who) & 15 & !init.word(at + k);
            if missing == 0 {
                continue;
            }
            let address = a.origin() + 4 * (at + k) as u64 + u64::from(missing.trailing_zeros());
            let lane = lanes::name_lane(u32::from(*who), missing);
            reporter.add(Kind::UninitialisedGlobal, access, lane, address, |_| {
                format!(
                    "reads {} at {address:#x} that nobody wrote: byte {} of the allocation of {} at {:#x}",
                    bytes(u64::from(missing.count_ones())),
                    address - a.base(),
                    bytes(a.info().bytes),
                    a.base()
                )
            });
        }
    }
}
