//! Copies that go on beside the program, and the barriers that wait for them.
//!
//! All bytes are copied when the instruction is executed; what is modelled is from when on a program may rely on them.
//! Until the issuing lane (`cp.async`, bulk groups) or anybody (`mbarrier`) has waited, the destination in shared memory
//! counts as in flight: reading or writing it is told as `AsyncInFlight`. Waiting makes the copies writes of the issuing
//! warp; another warp needs a barrier after that, or waits for the `mbarrier` itself. The order between the proxies of
//! memory (`fence.proxy.async`) is not modelled.

mod bulk;
mod copies;
mod cp_async;
mod mbarrier;
mod phase;
mod reduce;
pub(crate) mod space;

use super::cx::Cx;
use super::inst::{Class, Flow, Inst};
use super::lower::{Decoded, Lower};
use crate::check::Kind;
use crate::mem::shared::Flight;
use crate::ptx::ast;
use copies::Copies;
use mbarrier::Objects;

/// What is under way in a block.
#[derive(Default)]
pub struct State {
    copies: Vec<Copies>,
    bulk: Vec<bulk::Groups>,
    objects: Objects,
    /// For reuse of its space.
    flights: Vec<Flight>,
}

impl State {
    /// At the start of a block.
    pub(super) fn new_block(&mut self, warps: usize) {
        self.copies.resize_with(warps, Copies::default);
        self.bulk.resize_with(warps, bulk::Groups::default);
        self.copies.iter_mut().for_each(Copies::clear);
        self.bulk.iter_mut().for_each(bulk::Groups::clear);
        self.objects.clear();
    }
}

impl Cx<'_> {
    /// Lanes that end must have waited for their copies.
    pub(super) fn exiting_with_copies(&mut self, mask: u32) {
        let state = &mut self.block.asynch;
        let copies = state.copies[self.warp].drop(mask);
        let reading = state.bulk[self.warp].drop(mask);
        self.unwaited(&copies, "end without having waited for this copy");
        self.unwaited(&reading, "end without having waited for this copy to read shared memory");
    }

    /// Told at the copies, which is where something is missing behind.
    fn unwaited(&mut self, copies: &[(u32, u32)], what: &str) {
        let end = self.pc;
        for &(pc, lanes) in copies {
            self.pc = pc;
            self.find(Kind::ExitWithPendingCopies, lanes.trailing_zeros(), None, || {
                format!("lanes {lanes:#010x} {what}")
            });
        }
        self.pc = end;
    }
}

/// Opcodes that [`decode`] takes.
pub(super) const OPCODES: [&str; 9] = [
    "cp",
    "mbarrier",
    "griddepcontrol",
    "setmaxnreg",
    "mapa",
    "getctarank",
    "tensormap",
    "multimem",
    "tcgen05",
];

pub(super) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let mods: Vec<&str> = i.mods.iter().map(String::as_str).collect();
    match (i.opcode.as_str(), mods.as_slice()) {
        ("mbarrier", _) => mbarrier::decode(i, lower),
        // Copies of tensors through tensor maps (compute capability 9.0) belong here.
        ("cp", ["async", "bulk", rest @ ..] | ["reduce", "async", "bulk", rest @ ..])
            if rest.contains(&"tensor") =>
        {
            Err("Hopper's copies through tensor maps are not implemented".into())
        }
        ("cp", ["async", "bulk", ..]) => bulk::decode(i, lower),
        ("cp", ["reduce", "async", "bulk", ..]) => reduce::decode(i, lower),
        ("cp", ["async", "mbarrier", ..]) => mbarrier::decode_copies(i, lower),
        ("cp", ["async", ..]) => cp_async::decode(i, lower),
        // Launches are executed one after the other: what came before is over.
        ("griddepcontrol", ["wait"] | ["launch_dependents"]) => Ok((Inst::new(nothing), Class::Control)),
        // Registers are not distributed among warps here; clusters have no addresses of other blocks yet.
        ("setmaxnreg" | "mapa" | "getctarank" | "tensormap" | "multimem", _) => {
            Err(format!("Hopper's {} is not implemented", i.opcode))
        }
        _ => Err(format!("this form of {} is not implemented", i.opcode)),
    }
}

fn nothing(_: &mut Cx<'_>, _: &Inst, _: u32) -> Flow {
    Flow::Next
}
