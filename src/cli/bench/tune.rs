//! `dtk bench --tune`: which tile is the fastest for each product, on this card.

use super::card::OnCard;
use super::cases::Problem;
use super::format::{Pass, spread};
use crate::base::DType;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::implicit_gemm::table::{Choice, MOST_SPLITS, TileTable, trial};
use crate::ops::implicit_gemm::tile::{Product, candidates, choose};
use std::collections::{HashMap, HashSet};

/// Another choice must be faster than the model's by this factor: less is noise, and a row in the table for nothing.
const GAIN: f64 = 0.98;

/// What tuning one product found.
pub struct Found {
    /// The product.
    pub product: Product,
    /// The model's choice and its time in milliseconds.
    pub model: (Choice, f64),
    /// The fastest choice and its time.
    pub best: (Choice, f64),
}

impl Found {
    /// For people: the product, the model's choice, and a faster one.
    pub fn line(&self) -> String {
        let Product { kind, dtype, m, n, k, count, .. } = self.product;
        let name = |((t, splits), ms): (Choice, f64)| {
            format!("{}x{}x{}/{} {splits:2} {ms:8.4} ms", t.bm, t.bn, t.bk, t.stages)
        };
        let better = match self.best == self.model {
            true => "fastest".into(),
            false => format!("{}, {:.2} times as fast", name(self.best), self.model.1 / self.best.1),
        };
        format!("{kind:?} {dtype} {m} x {n} x {k}, {count} times: {}: {better}", name(self.model))
    }
}

/// Every choice worth trying for a product: all tiles, and cuts of k that leave each part some steps.
fn choices(p: &Product) -> Vec<Choice> {
    let splits = |bk: usize| {
        let most = (p.k.div_ceil(bk) / 2).clamp(1, MOST_SPLITS);
        [1, 2, 3, 4, 6, 8, 12, 16, 24, 32].into_iter().filter(move |s| *s <= most)
    };
    candidates(p).iter().flat_map(|(t, _)| splits(t.bk).map(move |s| (*t, s))).collect()
}

/// Times the model's choice and all others, and gives the fastest; the model's unless another gains clearly.
fn fastest(p: &Product, mut time: impl FnMut(Choice) -> Result<f64>) -> Result<Found> {
    let model = choose(p);
    let model = (model, time(model)?);
    let mut best = model;
    for choice in choices(p).into_iter().filter(|c| *c != model.0) {
        let ms = time(choice)?;
        if ms < best.1 && ms < GAIN * model.1 {
            best = (choice, ms);
        }
    }
    Ok(Found { product: *p, model, best })
}

/// Tunes the products of a pass that `done` does not hold yet, and puts what is faster than the model into `table`.
///
/// # Errors
/// Memory runs out, or a launch fails.
pub fn tune(
    gpu: &Gpu,
    problem: &Problem,
    pass: Pass,
    dtype: DType,
    seconds: f64,
    done: &mut HashSet<Product>,
    table: &mut TileTable,
) -> Result<Vec<Found>> {
    let ready = OnCard::new(gpu, problem, pass, dtype)?;
    let (ran, products) = trial(HashMap::new(), || ready.enqueue(1));
    ran?;
    let mut found = Vec::new();
    for p in products {
        if !done.insert(p) {
            continue;
        }
        let one = fastest(&p, |choice| {
            let times = trial(HashMap::from([(p, choice)]), || ready.times(seconds)).0?;
            Ok(spread(&times).map_or(f64::INFINITY, |s| s[1]))
        })?;
        if one.best.0 != one.model.0 {
            table.put(&gpu.info().name, &p, one.best.0, one.best.1);
        }
        found.push(one);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::implicit_gemm::tile::Kind;

    #[test]
    fn the_fastest_wins_if_it_gains_clearly() {
        let p = Product {
            kind: Kind::Forward,
            dtype: DType::Bf16,
            width: 8,
            m: 512,
            n: 1024,
            k: 9216,
            count: 1,
            multiprocessors: 132,
        };
        let model = choose(&p);
        let all = choices(&p);
        assert!(all.len() > 20 && all.iter().all(|c| c.1 <= MOST_SPLITS) && all.iter().any(|c| c.1 == 1));
        let other = *all.iter().rev().find(|c| **c != model).unwrap();
        let with = |ms: f64| fastest(&p, |c| Ok(if c == other { ms } else { 2.0 })).unwrap();
        assert_eq!((with(1.0).best, with(1.0).model), ((other, 1.0), (model, 2.0)));
        assert_eq!(with(1.99).best, (model, 2.0), "half a percent is noise");
        let mut tried = Vec::new();
        let time = |c| {
            tried.push(c);
            Ok(1.0)
        };
        fastest(&p, time).unwrap();
        assert_eq!(tried.iter().collect::<HashSet<_>>().len(), tried.len(), "nothing is timed twice");
        let short = Product { k: 64, ..p };
        assert!(choices(&short).iter().all(|c| c.1 == 1), "one step of k has no parts");
    }
}
