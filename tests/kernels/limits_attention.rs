//! Counters of attention, softmax and embedding on shapes that fill their tiles.

use crate::cases::{DTYPES, Ran, run, with_device};
use crate::counters::Counters;
use dtk::base::DType;
use dtk::ops::attention::{Attention, QkvOrder};
use dtk::ops::embedding::Embedding;
use dtk::ops::softmax::Softmax;
use dtk::ops::{Case, Input};

/// Most passes through shared memory in a main loop, of those without bank conflicts.
const MAIN_LOOP_WAVES: f64 = 1.1;
/// Most bytes moved, of those that inputs and results have.
const MOVED: f64 = 1.15;

/// What does not hold of the launches of a case; `needed` gives the bytes that a pass has to move, where each is moved once.
fn violations(ran: &[Ran], needed: impl Fn(&str) -> Option<f64>) -> Vec<String> {
    let counted = ran.iter().filter_map(|r| Some((r, r.counters.as_ref()?)));
    let wrong = counted.flat_map(|(r, c): (&Ran, &Counters)| {
        let mut wrong = Vec::new();
        if c.main_loop.factor() > MAIN_LOOP_WAVES {
            wrong.push(format!("{:.2} passes through shared memory for 1", c.main_loop.factor()));
        }
        if !c.narrow.is_empty() {
            wrong.push(format!("accesses to global memory of less than 16 bytes: {:?}", c.narrow));
        }
        let moved = (c.loads.moved + c.stores.moved) as f64;
        if let Some(needed) = needed(&r.kernel.entry).filter(|n| moved > MOVED * n) {
            wrong.push(format!("{moved} bytes moved of {needed}"));
        }
        let told =
            wrong.into_iter().map(|w| format!("{}, {} {}: {w}", r.case, r.kernel.entry, r.kernel.defines));
        told.collect::<Vec<_>>()
    });
    wrong.collect()
}

#[test]
fn attention_reads_shared_memory_without_conflicts_and_16_bytes_at_a_time() {
    let mut wrong = Vec::new();
    let ran = with_device(|gpu| {
        for (tokens, dim, order) in [
            (128, 32, QkvOrder::New),
            (128, 64, QkvOrder::Legacy),
            (64, 64, QkvOrder::New),
            (64, 128, QkvOrder::New),
        ] {
            let qkv = Input::normal("qkv", [1, tokens, 3 * dim]);
            let case =
                Case::new(format!("tiles: {tokens} x {dim}"), Attention { heads: 1, order }, vec![qkv]);
            for dtype in DTYPES {
                let bytes = (tokens * dim * dtype.size()) as f64;
                // One pass over keys, or queries, from one or two blocks: rows of the block, and the stream.
                let streams = |rows: usize| tokens.div_ceil(rows) as f64;
                let needed = |entry: &str| match entry {
                    "attention_fwd" => Some(bytes * (2.0 + 2.0 * streams(64))),
                    _ => Some(bytes * (4.0 + 2.0 * streams(64))),
                };
                wrong.extend(violations(&run(gpu, "attention", &case, dtype), needed));
            }
        }
    });
    if ran.is_some() {
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[test]
fn softmax_and_embedding_move_every_byte_once() {
    let mut wrong = Vec::new();
    let ran = with_device(|gpu| {
        for width in [64usize, 512, 4096] {
            let case = Case::new("tiles", Softmax {}, vec![Input::normal("x", [16, width])]);
            for dtype in DTYPES {
                let bytes = (16 * width * dtype.size()) as f64;
                let needed = |entry: &str| Some(if entry == "softmax_fwd" { 2.0 } else { 3.0 } * bytes);
                wrong.extend(violations(&run(gpu, "softmax", &case, dtype), needed));
            }
        }
        let inputs = vec![Input::normal("weight", [64, 128]), Input::labels("index", [32], 64, 0)];
        let case = Case::new("tiles", Embedding { dtype: DType::F32 }, inputs);
        let ran = run(gpu, "embedding", &case, DType::F32);
        // Indices are 8 bytes.
        let only_indices = |r: &Ran| r.counters.as_ref().is_none_or(|c| c.narrow.len() == 1);
        assert!(ran.iter().all(only_indices), "{ran:?}");
    });
    if ran.is_some() {
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
