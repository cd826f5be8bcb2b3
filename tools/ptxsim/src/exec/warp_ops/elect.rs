//! `elect.sync`: hardware may choose any member; here it is the lowest.

use super::members;
use crate::exec::cx::Cx;
use crate::exec::inst::{Class, Flow, Inst};
use crate::exec::lanes::LANES;
use crate::exec::lower::{Decoded, Lower};
use crate::ptx::ast::{self, Operand, Ty};

/// `elect.sync d|p, membermask`
pub(crate) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let [Operand::Pair(d, p), members] = i.operands.as_slice() else {
        return Err("two results and a member mask are needed".into());
    };
    if i.mods != ["sync"] {
        return Err("this form of elect is not implemented".into());
    }
    let members = lower.src(members, Ty::B32)?;
    let mut inst = Inst::with(elect, &[lower.dst(d, Ty::B32)?, members]);
    inst.p[0] = lower.pred_dst(p)?;
    Ok((inst, Class::Warp))
}

fn elect(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    if members::still_to_come(cx, i.r[1], mask) {
        return cx.again();
    }
    members::groups(cx, i.r[1], mask, |cx, group| {
        let leader = group.trailing_zeros();
        cx.put(i.r[0], group, &[leader; LANES]);
        cx.set_pred(i.p[0], group, 1 << leader);
    });
    Flow::Next
}

#[cfg(test)]
mod tests {
    use crate::check::Kind;
    use crate::exec::test_bench::Bench;

    #[test]
    fn the_lowest_member_leads() -> Result<(), String> {
        let mut b = Bench::new("elect.sync %r1|%p1, -1;")?;
        b.run(u32::MAX);
        assert_eq!((b.get::<u32>("%r1"), b.pred("%p1")), ([0; 32], 1));
        let mut b = Bench::new("elect.sync _|%p1, 0xF0;")?;
        b.run(0xF0);
        assert_eq!((b.pred("%p1"), b.kinds()), (0x10, vec![]));
        b.run(0xE0);
        assert_eq!((b.pred("%p1") & 0xE0, b.kinds()), (0x20, vec![Kind::AbsentLane]));
        Ok(())
    }
}
