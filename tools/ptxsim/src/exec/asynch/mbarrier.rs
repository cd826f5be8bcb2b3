//! `mbarrier`, and `cp.async.mbarrier.arrive`.
//!
//! The word in shared memory (see `phase.rs`) is kept twice: in memory, where a kernel may look at it or overwrite it, and
//! in a table of the block, together with who arrived and which copies land in a phase. Only addresses in the block's own
//! shared memory are known, also for `.shared::cluster`.

use super::phase::{Phase, Step};
use super::space::{SharedAddress, shared_address};
use crate::check::Kind;
use crate::exec::cx::Cx;
use crate::exec::inst::{Class, Flow, Inst, Slot};
use crate::exec::lanes::{LANES, lane_mask};
use crate::exec::lower::{Decoded, Lower};
use crate::mem::access::{Does, Manner, Request, UNKNOWN};
use crate::mem::data::{B64, Element};
use crate::mem::order::{Token, bits};
use crate::mem::shared::Flight;
use crate::ptx::ast::{self, Operand, Ty};

/// Words that a copy wrote, and the time up to which the issuing warp's work was published with it.
#[derive(Clone, Copy, Debug)]
struct Landing {
    flight: Flight,
    time: u32,
}

#[derive(Debug)]
struct Object {
    address: u32,
    phase: Phase,
    /// Published by all arrivals so far.
    arriving: Token,
    /// Published by the arrivals at phases that are complete.
    complete: Token,
    /// Copies that the current phase waits for.
    landing: Vec<Landing>,
    /// Those of complete phases that nobody has waited for.
    landed: Vec<Landing>,
}

impl Object {
    fn step(&mut self, step: Step) {
        if step == Step::Complete {
            self.complete.merge(&self.arriving);
            self.landed.append(&mut self.landing);
        }
    }
}

/// The objects of a block.
#[derive(Debug, Default)]
pub(super) struct Objects(Vec<Object>);

impl Objects {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Bits of `Inst::aux`.
const RELAXED: u32 = 1;
const DROP: u32 = 2;
const NO_COMPLETE: u32 = 4;
const PARITY: u32 = 8;
const NO_INCREMENT: u32 = 16;

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mods: Vec<&str> = i.mods.iter().map(String::as_str).collect();
    let [what, rest @ .., "b64"] = mods.as_slice() else {
        return Err("this form of mbarrier is not implemented".into());
    };
    let mut words = Words::default();
    for word in rest {
        words.take(word)?;
    }
    lower.features.partial_barriers = true;
    let mut inst = match (*what, i.operands.as_slice()) {
        ("init", [at, count]) => words.with(&[], operate(init, at, count, Ty::U32, &words, lower)?)?,
        ("inval", [at]) => words.with(&[], plain(inval, at, &words, lower)?)?,
        ("expect_tx", [at, bytes]) => {
            words.with(&["relaxed"], operate(expect, at, bytes, Ty::U32, &words, lower)?)?
        }
        ("complete_tx", [at, bytes]) => {
            words.with(&["relaxed"], operate(complete, at, bytes, Ty::U32, &words, lower)?)?
        }
        ("arrive" | "arrive_drop", [state, at, rest @ ..]) => {
            let mut inst = plain(arrive, at, &words, lower)?;
            match rest {
                [] if !words.expect_tx && !words.no_complete => {}
                [bytes] if words.expect_tx => inst.r[3] = lower.src(bytes, Ty::U32)?,
                [count] => inst.r[2] = lower.src(count, Ty::U32)?,
                _ => return Err("a count is needed".into()),
            }
            if *state != Operand::Sink {
                inst.r[0] = lower.dst(state, Ty::B64)?;
            }
            inst.aux |= if *what == "arrive_drop" { DROP } else { 0 };
            words.with(&["release", "relaxed", "expect_tx", "noComplete"], inst)?
        }
        ("test_wait" | "try_wait", [p, at, phase, limit @ ..]) => {
            let ty = if words.parity { Ty::U32 } else { Ty::B64 };
            let mut inst = operate(wait, at, phase, ty, &words, lower)?;
            match limit {
                [] => {}
                [limit] if *what == "try_wait" => {
                    lower.src(limit, Ty::U32)?;
                }
                _ => return Err("too many operands".into()),
            }
            inst.p[0] = lower.pred_dst(p)?;
            words.with(&["acquire", "relaxed", "parity"], inst)?
        }
        ("pending_count", [count, state]) => {
            let state = lower.src(state, Ty::B64)?;
            Inst::with(pending_count, &[lower.dst(count, Ty::U32)?, state])
        }
        _ => return Err("this form of mbarrier is not implemented".into()),
    };
    if *what != "pending_count" {
        inst.site = lower.site();
    }
    Ok((inst, Class::Barrier))
}

/// `cp.async.mbarrier.arrive{.noinc}{.shared{::cta}}.b64 [addr]`
pub(super) fn decode_copies(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mods: Vec<&str> = i.mods.iter().map(String::as_str).collect();
    let (["async", "mbarrier", "arrive", rest @ .., "b64"], [at]) = (mods.as_slice(), i.operands.as_slice())
    else {
        return Err("this form of cp.async.mbarrier is not implemented".into());
    };
    let (no_increment, rest) = match rest {
        ["noinc", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut words = Words::default();
    for word in rest {
        words.take(word)?;
    }
    lower.features.partial_barriers = true;
    let mut inst = words.with(&[], plain(copies_arrive, at, &words, lower)?)?;
    inst.aux |= if no_increment { NO_INCREMENT } else { 0 };
    inst.site = lower.site();
    Ok((inst, Class::AsyncCopy))
}

/// Modifiers between the operation and the type.
#[derive(Default)]
struct Words {
    shared: bool,
    expect_tx: bool,
    no_complete: bool,
    parity: bool,
    relaxed: bool,
    seen: Vec<String>,
}

impl Words {
    fn take(&mut self, word: &str) -> Result<(), String> {
        match word {
            "shared" | "shared::cta" | "shared::cluster" => self.shared = true,
            "cta" | "cluster" => {}
            "expect_tx" => self.expect_tx = true,
            "noComplete" => self.no_complete = true,
            "parity" => self.parity = true,
            "relaxed" => self.relaxed = true,
            "acquire" | "release" => {}
            _ => return Err(format!("the modifier .{word} is not implemented")),
        }
        if !matches!(word, "shared" | "shared::cta" | "shared::cluster" | "cta" | "cluster") {
            self.seen.push(word.into());
        }
        Ok(())
    }

    /// The instruction with its flags, if it has none but the allowed modifiers.
    fn with(&self, allowed: &[&str], mut inst: Inst) -> Result<Inst, String> {
        if let Some(word) = self.seen.iter().find(|w| !allowed.contains(&w.as_str())) {
            return Err(format!("the modifier .{word} is not implemented here"));
        }
        for (is, flag) in [(self.relaxed, RELAXED), (self.no_complete, NO_COMPLETE), (self.parity, PARITY)] {
            inst.aux |= if is { flag } else { 0 };
        }
        Ok(inst)
    }
}

/// With the address in `r[1]`.
fn plain(
    exec: crate::exec::inst::Exec,
    at: &Operand,
    words: &Words,
    lower: &mut Lower<'_>,
) -> Result<Inst, String> {
    let mut inst = Inst::new(exec);
    SharedAddress::decode(at, words.shared, lower)?.place(&mut inst);
    Ok(inst)
}

/// With the address in `r[1]` and another source in `r[2]`.
fn operate(
    exec: crate::exec::inst::Exec,
    at: &Operand,
    source: &Operand,
    ty: Ty,
    words: &Words,
    lower: &mut Lower<'_>,
) -> Result<Inst, String> {
    let mut inst = plain(exec, at, words, lower)?;
    inst.r[2] = lower.src(source, ty)?;
    Ok(inst)
}

/// The address of each lane's object, in the shared window, and where its word is.
struct Places {
    base: u64,
    offsets: [i32; LANES],
    pointer: *mut u8,
}

impl Places {
    fn address(&self, lane: usize) -> u32 {
        (self.base as u32).wrapping_add_signed(self.offsets[lane])
    }

    fn load(&self, lane: usize) -> u64 {
        // SAFETY: `places` found the word of each of its lanes inside shared memory, aligned.
        unsafe { B64::load::<false>(self.pointer.offset(self.offsets[lane] as isize)) }
    }

    fn store(&self, lane: usize, word: u64) {
        // SAFETY: as above.
        unsafe { B64::store::<false>(self.pointer.offset(self.offsets[lane] as isize), word) }
    }
}

fn places(cx: &mut Cx<'_>, i: &Inst, mask: u32, does: Does<'_>) -> Option<Places> {
    let (base, offsets) = shared_address(cx, i, mask, 8)?;
    places_at(cx, i.site, mask, base, offsets, does)
}

fn places_at(
    cx: &mut Cx<'_>,
    site: u32,
    mask: u32,
    base: u64,
    offsets: [i32; LANES],
    does: Does<'_>,
) -> Option<Places> {
    let manner = Manner { strong: !matches!(does, Does::Write(_)), ..Manner::default() };
    // Where there is no object, that is told, and not that nobody wrote its word.
    let known = |lane| {
        let address = (base as u32).wrapping_add_signed(offsets[lane]);
        cx.block.asynch.objects.0.iter().any(|o| o.address == address)
    };
    let does = if bits(mask).all(known) { does } else { Does::Write(UNKNOWN) };
    let request = Request { site, width: 8, mask, base, offsets: &offsets, manner };
    let place = cx.shared_access(request, does).ok()?;
    Some(Places { base, offsets, pointer: place.pointer })
}

/// The object of a lane, by its number in the table; tells if there is none, or if its word is not what it was.
fn object(cx: &mut Cx<'_>, places: &Places, lane: usize) -> Option<usize> {
    let address = places.address(lane);
    let Some(n) = cx.block.asynch.objects.0.iter().position(|o| o.address == address) else {
        misuse(cx, lane, address, || "there is no mbarrier here: it was not initialised".into());
        return None;
    };
    let word = cx.block.asynch.objects.0[n].phase.word();
    if places.load(lane) != word {
        misuse(cx, lane, address, || "the mbarrier was overwritten by something else".into());
        places.store(lane, word);
    }
    Some(n)
}

#[cold]
fn misuse(cx: &mut Cx<'_>, lane: usize, address: u32, message: impl FnOnce() -> String) {
    let at = u64::from(address.wrapping_sub(crate::exec::program::SHARED_BASE));
    cx.find(Kind::MbarrierMisuse, lane as u32, Some(at), message);
}

/// One operation of a lane on its object: what it did is told or written back.
fn step(
    cx: &mut Cx<'_>,
    places: &Places,
    lane: usize,
    n: usize,
    f: impl FnOnce(&mut Phase) -> Result<Step, String>,
) -> Option<Step> {
    let object = &mut cx.block.asynch.objects.0[n];
    let mut phase = object.phase;
    match f(&mut phase) {
        Ok(step) => {
            object.phase = phase;
            object.step(step);
            places.store(lane, phase.word());
            cx.block.progress += 1;
            Some(step)
        }
        Err(message) => {
            misuse(cx, lane, places.address(lane), || message);
            None
        }
    }
}

fn init(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let counts = cx.get::<u32>(i.r[2]);
    let Some(places) = places(cx, i, mask, Does::Write(UNKNOWN)) else { return Flow::Stop };
    for lane in bits(mask) {
        let address = places.address(lane);
        let phase = match Phase::new(counts[lane]) {
            Ok(phase) => phase,
            Err(message) => {
                misuse(cx, lane, address, || message);
                continue;
            }
        };
        if cx.block.asynch.objects.0.iter().any(|o| o.address == address) {
            misuse(cx, lane, address, || "an mbarrier is initialised again without mbarrier.inval".into());
            cx.block.asynch.objects.0.retain(|o| o.address != address);
        }
        let (arriving, complete) = (Token::NOTHING, Token::NOTHING);
        let (landing, landed) = (Vec::new(), Vec::new());
        cx.block.asynch.objects.0.push(Object { address, phase, arriving, complete, landing, landed });
        places.store(lane, phase.word());
    }
    Flow::Next
}

fn inval(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let Some(places) = places(cx, i, mask, Does::Write(UNKNOWN)) else { return Flow::Stop };
    for lane in bits(mask) {
        if object(cx, &places, lane).is_some() {
            let address = places.address(lane);
            cx.block.asynch.objects.0.retain(|o| o.address != address);
            places.store(lane, 0);
        }
    }
    Flow::Next
}

fn expect(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let bytes = cx.get::<u32>(i.r[2]);
    let Some(places) = places(cx, i, mask, Does::Atomic) else { return Flow::Stop };
    for lane in bits(mask) {
        if let Some(n) = object(cx, &places, lane) {
            step(cx, &places, lane, n, |p| p.expect(bytes[lane]).map(|()| Step::Open));
        }
    }
    Flow::Next
}

fn complete(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let bytes = cx.get::<u32>(i.r[2]);
    let Some(places) = places(cx, i, mask, Does::Atomic) else { return Flow::Stop };
    for lane in bits(mask) {
        if let Some(n) = object(cx, &places, lane) {
            step(cx, &places, lane, n, |p| p.complete(bytes[lane]));
        }
    }
    Flow::Next
}

fn arrive(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let one = |slot: Slot, cx: &Cx<'_>, default: u32| {
        if slot == Slot::NONE { [default; LANES] } else { cx.get::<u32>(slot) }
    };
    let (counts, bytes) = (one(i.r[2], cx, 1), one(i.r[3], cx, 0));
    let Some(places) = places(cx, i, mask, Does::Atomic) else { return Flow::Stop };
    let warp = cx.warp;
    let token = (i.aux & RELAXED == 0).then(|| cx.block.order.release(warp));
    let mut states = [0u64; LANES];
    for lane in bits(mask) {
        let Some(n) = object(cx, &places, lane) else { continue };
        let object = &mut cx.block.asynch.objects.0[n];
        states[lane] = object.phase.word();
        if let Some(token) = &token {
            object.arriving.merge(token);
        }
        let done = step(cx, &places, lane, n, |p| {
            p.expect(bytes[lane])?;
            p.arrive(counts[lane], i.aux & DROP != 0)
        });
        if done == Some(Step::Complete) && i.aux & NO_COMPLETE != 0 {
            misuse(cx, lane, places.address(lane), || {
                "an arrival with .noComplete completes the phase".into()
            });
        }
    }
    if i.r[0] != Slot::NONE {
        cx.put(i.r[0], mask, &states);
    }
    Flow::Next
}

fn copies_arrive(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let Some(places) = places(cx, i, mask, Does::Atomic) else { return Flow::Stop };
    let (warp, time) = (cx.warp, cx.block.order.now());
    let token = cx.block.order.release(warp);
    // Where all lanes mean one object, their copies stay together.
    let first = mask.trailing_zeros() as usize & 31;
    let uniform = bits(mask).all(|l| places.offsets[l] == places.offsets[first]);
    for lane in bits(mask) {
        let Some(n) = object(cx, &places, lane) else { continue };
        if !uniform || lane == first {
            let taken = if uniform { mask } else { 1 << lane };
            let state = &mut cx.block.asynch;
            state.flights.clear();
            state.copies[warp].take(taken, &mut state.flights);
            let landings = state.flights.iter().map(|&flight| Landing { flight, time });
            state.objects.0[n].landing.extend(landings);
        }
        cx.block.asynch.objects.0[n].arriving.merge(&token);
        step(cx, &places, lane, n, |p| {
            if i.aux & NO_INCREMENT == 0 {
                p.increment()?;
            }
            p.arrive(1, false)
        });
    }
    Flow::Next
}

/// A bulk copy by a lane has written these words: it completes its bytes at the object.
pub(super) fn landed(cx: &mut Cx<'_>, site: u32, lane: usize, address: u64, flight: Flight) -> Option<()> {
    let places = places_at(cx, site, 1 << lane, address, [0; LANES], Does::Atomic)?;
    let (warp, time) = (cx.warp, cx.block.order.now());
    let token = cx.block.order.release(warp);
    if let Some(n) = object(cx, &places, lane) {
        let object = &mut cx.block.asynch.objects.0[n];
        object.landing.push(Landing { flight, time });
        object.arriving.merge(&token);
        step(cx, &places, lane, n, |p| p.complete(4 * flight.count));
    }
    Some(())
}

fn wait(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    let parity = i.aux & PARITY != 0;
    let odd = if parity {
        let parities = cx.get::<u32>(i.r[2]);
        lane_mask(|l| parities[l] & 1 != 0)
    } else {
        let states = cx.get::<u64>(i.r[2]);
        lane_mask(|l| Phase::of(states[l]).is_some_and(|p| p.odd))
    };
    let Some(places) = places(cx, i, mask, Does::Read) else { return Flow::Stop };
    let mut over = 0u32;
    let mut acquired = usize::MAX;
    for lane in bits(mask) {
        let Some(n) = object(cx, &places, lane) else {
            // Nothing will ever complete: the lane goes on.
            over |= 1 << lane;
            continue;
        };
        if cx.block.asynch.objects.0[n].phase.odd == (odd >> lane & 1 != 0) {
            continue;
        }
        over |= 1 << lane;
        if n != acquired {
            acquire(cx, n, i.aux & RELAXED == 0);
            acquired = n;
        }
    }
    cx.set_pred(i.p[0], mask, over);
    if over == mask { Flow::Next } else { cx.poll() }
}

/// The running warp has seen a phase complete: copies that landed may be read, and what arrivals published is known.
fn acquire(cx: &mut Cx<'_>, n: usize, order: bool) {
    let block = &mut cx.block;
    let object = &mut block.asynch.objects.0[n];
    for landing in object.landed.drain(..) {
        block.shared.async_complete(landing.time, &[landing.flight]);
    }
    if order {
        block.order.acquire(cx.warp, &object.complete);
    }
}

fn pending_count(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    cx.map1(i, mask, |state: u64| Phase::of(state).map_or(0, |p| p.pending))
}

#[cfg(test)]
mod tests;
