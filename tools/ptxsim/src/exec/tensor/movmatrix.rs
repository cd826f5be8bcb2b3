//! `movmatrix`: the transpose of an 8x8 matrix that lies across the warp.

use super::rows::transposed;
use super::whole_warp;
use crate::exec::cx::Cx;
use crate::exec::inst::{Class, Flow, Inst};
use crate::exec::lower::{Decoded, Lower};
use crate::ptx::ast::{self, Ty};

pub(crate) fn decode(i: &ast::Inst, lower: &mut Lower<'_>) -> Decoded {
    let [d, a] = i.operands.as_slice() else { return Err("a result and a source are needed".into()) };
    if i.mods != ["sync", "aligned", "m8n8", "trans", "b16"] {
        return Err("this form of movmatrix is not implemented".into());
    }
    let a = lower.src(a, Ty::B32)?;
    Ok((Inst::with(movmatrix, &[lower.dst(d, Ty::B32)?, a]), Class::MatrixMove))
}

fn movmatrix(cx: &mut Cx<'_>, i: &Inst, mask: u32) -> Flow {
    whole_warp(cx, mask);
    let a = cx.get::<u32>(i.r[1]);
    cx.put(i.r[0], mask, &transposed(&a));
    Flow::Next
}

#[cfg(test)]
mod tests {
    use crate::check::Kind;
    use crate::exec::inst::Class;
    use crate::exec::test_bench::Bench;

    #[test]
    fn transposes() -> Result<(), String> {
        let mut b = Bench::new("movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r2;")?;
        // Element (row, col) is 16 row + col.
        let word = |l: u32| (16 * (l / 4) + 2 * (l % 4)) * 0x1_0001 + 0x1_0000;
        b.set("%r2", std::array::from_fn::<u32, 32, _>(|l| word(l as u32)));
        b.run(u32::MAX);
        for (lane, got) in b.get::<u32>("%r1").into_iter().enumerate() {
            let (row, col) = (lane as u32 / 4, 2 * (lane as u32 % 4));
            assert_eq!((got & 0xFFFF, got >> 16), (16 * col + row, 16 * (col + 1) + row));
        }
        assert_eq!((b.kinds(), b.class().0), (vec![], Class::MatrixMove));
        b.run(1);
        assert_eq!(b.kinds(), [Kind::PartialWarp]);
        Ok(())
    }
}
