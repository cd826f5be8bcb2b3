//! What is ordered after what. Work runs when it is enqueued, one piece after the other, so a result cannot show that a
//! program forgot to make one stream wait for another. Vector clocks show it: every stream (and every branch of a graph)
//! is a timeline that counts its pieces of work, and carries the counts of other timelines it is ordered after.
//!
//! The host is one more clock: what it has waited for, everything enqueued later is ordered after. All host threads share
//! it, since how they synchronise among themselves cannot be seen; this may hide a race, but never invents one.

use ptxsim::mem::touched::Use;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// A stream, or a branch of a graph.
pub type Timeline = u32;

/// How far other timelines are known to have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock(HashMap<Timeline, u64>);

impl Clock {
    fn at(&self, timeline: Timeline) -> u64 {
        self.0.get(&timeline).copied().unwrap_or(0)
    }

    /// Later of the two, timeline by timeline.
    pub fn join(&mut self, other: &Clock) {
        for (&timeline, &epoch) in &other.0 {
            let mine = self.0.entry(timeline).or_insert(0);
            *mine = epoch.max(*mine);
        }
    }
}

/// One piece of work, at the moment it is enqueued.
#[derive(Clone, Debug)]
pub struct Moment {
    timeline: Timeline,
    epoch: u64,
    clock: Clock,
    /// What it is, for messages: `kernel saxpy`, `cuMemcpyHtoDAsync`.
    what: Arc<str>,
}

impl Moment {
    /// What came before it and itself.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What it is.
    pub fn what(&self) -> &str {
        &self.what
    }
}

/// Someone's use of a range of memory.
#[derive(Clone, Debug)]
struct Access {
    timeline: Timeline,
    epoch: u64,
    what: Arc<str>,
}

#[derive(Clone, Debug, Default)]
struct Segment {
    end: u64,
    write: Option<Access>,
    reads: Vec<Access>,
    strong: Vec<Access>,
}

impl Segment {
    /// The earlier uses that one of the given kind would race with.
    fn rivals(&self, usage: Use) -> impl Iterator<Item = (&Access, Use)> {
        let reads = self.reads.iter().filter(move |_| usage != Use::Read).map(|a| (a, Use::Read));
        let strong = self.strong.iter().filter(move |_| usage != Use::Strong).map(|a| (a, Use::Strong));
        self.write.iter().map(|a| (a, Use::Write)).chain(reads).chain(strong)
    }

    fn kept(&mut self, usage: Use) -> &mut Vec<Access> {
        if usage == Use::Strong { &mut self.strong } else { &mut self.reads }
    }
}

/// Two uses of the same memory, at least one a write, that nothing orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The earlier one in the order of enqueueing.
    pub other: Arc<str>,
    /// What that one did.
    pub other_use: Use,
    /// Its timeline.
    pub other_timeline: Timeline,
    /// First bytes that both use.
    pub range: Range<u64>,
}

/// All clocks, and the last uses of all memory.
#[derive(Default)]
pub struct Order {
    next: Timeline,
    epochs: HashMap<Timeline, u64>,
    clocks: HashMap<Timeline, Clock>,
    host: Clock,
    memory: BTreeMap<u64, Segment>,
}

impl Order {
    /// A timeline that starts ordered after everything the host has waited for.
    pub fn timeline(&mut self) -> Timeline {
        self.next += 1;
        self.clocks.insert(self.next, Clock::default());
        self.next
    }

    /// The timeline takes no more work. What it did stays on record.
    pub fn retire(&mut self, timeline: Timeline) {
        self.clocks.remove(&timeline);
        self.epochs.remove(&timeline);
    }

    /// Whether more than one timeline has had work, so that it matters which words a kernel used.
    pub fn has_company(&self) -> bool {
        self.epochs.len() > 1
    }

    /// Everything up to now on a timeline.
    pub fn clock(&self, timeline: Timeline) -> Clock {
        self.clocks.get(&timeline).cloned().unwrap_or_default()
    }

    /// Enqueues work on a timeline, after what the timeline already has and what `after` says.
    pub fn enqueue(&mut self, timeline: Timeline, after: &[Clock], what: Arc<str>) -> Moment {
        self.wait(timeline, after);
        let epoch = self.epochs.entry(timeline).or_insert(0);
        *epoch += 1;
        let clock = self.clocks.entry(timeline).or_default();
        clock.0.insert(timeline, *epoch);
        Moment { timeline, epoch: *epoch, clock: clock.clone(), what }
    }

    /// Makes later work of a timeline wait.
    pub fn wait(&mut self, timeline: Timeline, after: &[Clock]) {
        let clock = self.clocks.entry(timeline).or_default();
        for other in after {
            clock.join(other);
        }
        // What the host has waited for is behind everything to come; no need to carry it.
        let host = &self.host;
        clock.0.retain(|&t, &mut epoch| epoch > host.at(t));
    }

    /// The host has waited for this.
    pub fn host_waited(&mut self, clock: &Clock) {
        self.host.join(clock);
    }

    fn ordered(&self, access: &Access, now: &Moment) -> bool {
        access.epoch <= self.host.at(access.timeline)
            || access.epoch <= now.clock.at(access.timeline)
            || access.timeline == now.timeline
    }

    /// Notes that a piece of work uses a range; returns the first use that conflicts with it.
    pub fn access(&mut self, now: &Moment, range: Range<u64>, usage: Use) -> Option<Conflict> {
        if range.is_empty() {
            return None;
        }
        self.split(range.start);
        self.split(range.end);
        let mut conflict = None;
        for (&start, segment) in self.memory.range(range.clone()) {
            let rival = segment.rivals(usage).find(|(access, _)| !self.ordered(access, now));
            if let Some((access, other_use)) = rival {
                conflict = Some(Conflict {
                    other: access.what.clone(),
                    other_use,
                    other_timeline: access.timeline,
                    range: start..segment.end,
                });
                break;
            }
        }
        let mine = Access { timeline: now.timeline, epoch: now.epoch, what: now.what.clone() };
        if usage == Use::Write {
            self.forget(range.clone());
            self.memory
                .insert(range.start, Segment { end: range.end, write: Some(mine), ..Segment::default() });
        } else {
            self.note(now, range, usage, &mine);
        }
        conflict
    }

    /// Adds a use that leaves earlier ones in memory.
    fn note(&mut self, now: &Moment, range: Range<u64>, usage: Use, mine: &Access) {
        let fresh = |end: u64| {
            let mut segment = Segment { end, ..Segment::default() };
            segment.kept(usage).push(mine.clone());
            segment
        };
        let starts: Vec<u64> = self.memory.range(range.clone()).map(|(&s, _)| s).collect();
        let mut at = range.start;
        for start in starts {
            if at < start {
                self.memory.insert(at, fresh(start));
            }
            if let Some(mut segment) = self.memory.remove(&start) {
                // Whoever must be ordered after this use is then ordered after those before it.
                segment.kept(usage).retain(|a| !self.ordered(a, now));
                segment.kept(usage).push(mine.clone());
                at = segment.end;
                self.memory.insert(start, segment);
            }
        }
        if at < range.end {
            self.memory.insert(at, fresh(range.end));
        }
    }

    /// Cuts the segment across an address in two.
    fn split(&mut self, at: u64) {
        let Some((_, segment)) = self.memory.range_mut(..at).next_back() else { return };
        if segment.end > at {
            let upper = segment.clone();
            segment.end = at;
            self.memory.insert(at, upper);
        }
    }

    /// Forgets all uses of a range, which is no longer an allocation.
    pub fn forget(&mut self, range: Range<u64>) {
        self.split(range.start);
        self.split(range.end);
        let starts: Vec<u64> = self.memory.range(range).map(|(&s, _)| s).collect();
        for start in starts {
            self.memory.remove(&start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(order: &mut Order, timeline: Timeline, what: &str) -> Moment {
        order.enqueue(timeline, &[], Arc::from(what))
    }

    #[test]
    fn streams_race_unless_ordered() {
        let mut order = Order::default();
        let (a, b) = (order.timeline(), order.timeline());
        let write = work(&mut order, a, "write");
        assert_eq!(order.access(&write, 100..200, Use::Write), None);
        let read = work(&mut order, b, "read");
        let conflict = order.access(&read, 150..160, Use::Read).expect("a race");
        assert_eq!((&*conflict.other, conflict.other_use, conflict.range), ("write", Use::Write, 150..160));
        assert_eq!(order.access(&read, 200..300, Use::Write), None, "beside it");
        // An event recorded on a, waited for on b.
        let event = order.clock(a);
        order.wait(b, &[event]);
        let read = work(&mut order, b, "read");
        assert_eq!(order.access(&read, 100..200, Use::Read), None);
        // Now a overwrites what b reads.
        let again = work(&mut order, a, "write");
        let conflict = order.access(&again, 100..110, Use::Write).expect("a race");
        assert_eq!(conflict.other_use, Use::Read);
    }

    #[test]
    fn the_host_orders_what_comes_later() {
        let mut order = Order::default();
        let (a, b) = (order.timeline(), order.timeline());
        let write = work(&mut order, a, "write");
        order.access(&write, 0..64, Use::Write);
        order.host_waited(&order.clock(a));
        let write = work(&mut order, b, "write");
        assert_eq!(order.access(&write, 0..64, Use::Write), None);
        assert!(order.clock(b).at(a) == 0, "not carried along");
        let late = work(&mut order, a, "late");
        assert!(order.access(&late, 63..64, Use::Read).is_some(), "a knows nothing of b");
    }

    #[test]
    fn readers_do_not_race_with_each_other() {
        let mut order = Order::default();
        let (a, b, c) = (order.timeline(), order.timeline(), order.timeline());
        for t in [a, b] {
            let read = work(&mut order, t, "read");
            assert_eq!(order.access(&read, 0..64, Use::Read), None);
        }
        let after_a = order.clock(a);
        order.wait(c, &[after_a]);
        let write = work(&mut order, c, "write");
        assert_eq!(order.access(&write, 0..64, Use::Write).expect("b still reads").other_timeline, b);
    }

    #[test]
    fn strong_uses_do_not_race_with_each_other() {
        let mut order = Order::default();
        let (a, b, c) = (order.timeline(), order.timeline(), order.timeline());
        for t in [a, b] {
            let add = work(&mut order, t, "add");
            assert_eq!(order.access(&add, 0..4, Use::Strong), None);
        }
        let read = work(&mut order, c, "read");
        assert!(order.access(&read, 0..4, Use::Read).is_some());
        let add = work(&mut order, a, "add");
        assert_eq!(order.access(&add, 0..4, Use::Strong).expect("c reads").other_use, Use::Read);
    }

    #[test]
    fn ordering_is_transitive() {
        let mut order = Order::default();
        let (a, b, c) = (order.timeline(), order.timeline(), order.timeline());
        let write = work(&mut order, a, "write");
        order.access(&write, 0..8, Use::Write);
        let clock = order.clock(a);
        order.wait(b, &[clock]);
        work(&mut order, b, "between");
        let clock = order.clock(b);
        order.wait(c, &[clock]);
        let read = work(&mut order, c, "read");
        assert_eq!(order.access(&read, 0..8, Use::Read), None);
    }

    #[test]
    fn a_new_allocation_has_no_past() {
        let mut order = Order::default();
        let (a, b) = (order.timeline(), order.timeline());
        let write = work(&mut order, a, "write");
        order.access(&write, 0..100, Use::Write);
        order.forget(20..40);
        let write = work(&mut order, b, "write");
        assert_eq!(order.access(&write, 20..40, Use::Write), None);
        assert!(order.access(&write, 40..41, Use::Write).is_some());
        assert!(order.access(&write, 19..20, Use::Write).is_some());
    }
}
