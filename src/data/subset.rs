//! A part of a set of images, and how many labelled images to take.

use super::{ImageSource, Mask};
use crate::base::Philox;
use crate::error::{Error, Result};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Some images of a set, in an order of their own.
pub struct Subset {
    source: Arc<dyn ImageSource>,
    indices: Vec<usize>,
}

impl Subset {
    /// The images `indices` of `source`.
    ///
    /// # Errors
    /// [`Error::usage`]: no index, or one out of range.
    pub fn new(source: Arc<dyn ImageSource>, indices: Vec<usize>) -> Result<Self> {
        if indices.is_empty() {
            return Err(Error::usage("a subset of no images").with_remedy("take at least one image"));
        }
        if let Some(i) = indices.iter().find(|&&i| i >= source.len()) {
            return Err(Error::usage(format!("a set of {} images has no image {i}", source.len())));
        }
        Ok(Subset { source, indices })
    }

    /// Which images of the whole set they are.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }

    /// The index in the whole set; beyond its end for an index out of range.
    fn inner(&self, index: usize) -> usize {
        self.indices.get(index).copied().unwrap_or(usize::MAX)
    }
}

impl ImageSource for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn load(&self, index: usize, background: [u8; 3]) -> Result<RgbImage> {
        match self.indices.get(index) {
            Some(&i) => self.source.load(i, background),
            None => Err(Error::data(format!("image {index} of {} does not exist", self.len()))),
        }
    }

    fn name(&self, index: usize) -> String {
        self.source.name(self.inner(index))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.source.label(self.inner(index))
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }

    fn mask(&self, index: usize) -> Result<Option<Mask>> {
        self.source.mask(self.inner(index))
    }

    fn mask_classes(&self) -> &[String] {
        self.source.mask_classes()
    }

    fn ignore_index(&self) -> Option<u16> {
        self.source.ignore_index()
    }

    fn fingerprint(&self) -> String {
        let bytes: Vec<u8> = self.indices.iter().flat_map(|i| (*i as u64).to_le_bytes()).collect();
        format!("subset:{}:{}", super::source::digest([bytes.as_slice()]), self.source.fingerprint())
    }
}

/// A number of labelled images: a count, or a share of all. In a recipe `40` or `"10 %"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "AmountText", into = "AmountText")]
pub enum Amount {
    /// This many.
    Count(usize),
    /// This share of all, in percent, above 0 and at most 100.
    Percent(f64),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number of images, or a share such as \"10 %\"")]
enum AmountText {
    Count(usize),
    Text(String),
}

impl TryFrom<AmountText> for Amount {
    type Error = Error;
    fn try_from(text: AmountText) -> Result<Self> {
        match text {
            AmountText::Count(n) => n.to_string().parse(),
            AmountText::Text(t) => t.parse(),
        }
    }
}

impl From<Amount> for AmountText {
    fn from(a: Amount) -> Self {
        match a {
            Amount::Count(n) => AmountText::Count(n),
            Amount::Percent(_) => AmountText::Text(a.to_string()),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Count(n) => write!(f, "{n}"),
            Amount::Percent(p) => write!(f, "{p} %"),
        }
    }
}

impl FromStr for Amount {
    type Err = Error;

    /// Reads `40`, `10 %` or `10%`.
    fn from_str(text: &str) -> Result<Self> {
        let amount = match text.trim().strip_suffix('%') {
            Some(percent) => percent.trim().parse().ok().map(Amount::Percent),
            None => text.trim().parse().ok().map(Amount::Count),
        };
        let valid = |a: &Amount| match *a {
            Amount::Count(n) => n > 0,
            Amount::Percent(p) => p > 0.0 && p <= 100.0,
        };
        amount.filter(valid).ok_or_else(|| {
            Error::usage(format!("`{text}` is no number of labelled images"))
                .with_remedy("write a count such as 40, or a share such as \"10 %\"")
        })
    }
}

impl Amount {
    /// How many of `total` images; at least one for a share.
    ///
    /// # Errors
    /// More than there are.
    pub fn of(self, total: usize) -> Result<usize> {
        match self {
            Amount::Percent(p) => Ok(((p / 100.0 * total as f64).round() as usize).clamp(1, total.max(1))),
            Amount::Count(n) if n <= total => Ok(n),
            Amount::Count(n) => {
                Err(Error::usage(format!("{n} labelled images are asked for, and the set has {total}"))
                    .with_key("labels")
                    .with_remedy("ask for fewer, or write \"100 %\""))
            }
        }
    }
}

/// All images `0..len` in an order whose beginnings are balanced: the images of every class (`class(i)`; all of one class
/// where there are no labels) are shuffled by `seed`, then classes take turns, in an order that is shuffled in every round.
/// The first n of it are the labelled images of a run with n labels, so that fewer labels are a part of more labels.
pub fn balanced_order(len: usize, seed: u64, class: impl Fn(usize) -> Option<u32>) -> Vec<usize> {
    let rng = Philox::new(seed).fold_str("labelled images");
    let mut by_class: std::collections::BTreeMap<Option<u32>, Vec<usize>> = Default::default();
    (0..len).for_each(|i| by_class.entry(class(i)).or_default().push(i));
    for (class, members) in &mut by_class {
        let stream = class.map_or(u64::MAX, u64::from);
        rng.fold(stream).sequence().shuffle(members);
        // Taken from the end.
        members.reverse();
    }
    let mut groups: Vec<Vec<usize>> = by_class.into_values().collect();
    let mut turns = rng.fold_str("turns").sequence();
    let mut order = Vec::with_capacity(len);
    while !groups.is_empty() {
        turns.shuffle(&mut groups);
        order.extend(groups.iter_mut().filter_map(Vec::pop));
        groups.retain(|g| !g.is_empty());
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_balanced_and_nested() {
        // 60 of class 0, 30 of class 1, 10 of class 2.
        let class = |i: usize| Some(if i < 60 { 0 } else { u32::from(i >= 90) + 1 });
        let order = balanced_order(100, 3, class);
        let count = |n: usize, c: u32| order[..n].iter().filter(|&&i| class(i) == Some(c)).count();
        for n in [3, 9, 30] {
            assert_eq!([count(n, 0), count(n, 1), count(n, 2)], [n / 3; 3]);
        }
        assert_eq!([count(50, 0), count(50, 1), count(50, 2)], [20, 20, 10]);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order, balanced_order(100, 3, class));
        assert_ne!(order[..9], balanced_order(100, 4, class)[..9]);
        let unlabelled = balanced_order(5, 0, |_| None);
        assert_eq!(unlabelled.iter().sum::<usize>(), 10);
    }

    #[test]
    fn amounts() {
        let amount = |t: &str| t.parse::<Amount>();
        assert_eq!(amount("40").unwrap(), Amount::Count(40));
        assert_eq!(amount(" 10 %").unwrap(), Amount::Percent(10.0));
        assert_eq!(amount("1%").unwrap().of(60_000).unwrap(), 600);
        assert_eq!((amount("100 %").unwrap().of(7).unwrap(), amount("1 %").unwrap().of(7).unwrap()), (7, 1));
        assert_eq!(Amount::Count(8).of(7).unwrap_err().key(), Some("labels"));
        for wrong in ["0", "-3", "0 %", "101 %", "ten", "", "%", "nan %"] {
            assert!(amount(wrong).unwrap_err().is_usage(), "{wrong}");
        }
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        struct Labels {
            labels: Vec<Amount>,
        }
        let text = "labels = [40, \"10 %\"]";
        let l: Labels = toml::from_str(text).unwrap();
        assert_eq!(l.labels, [Amount::Count(40), Amount::Percent(10.0)]);
        assert_eq!(toml::from_str::<Labels>(&toml::to_string(&l).unwrap()).unwrap(), l);
        assert!(toml::from_str::<Labels>("labels = [0]").is_err());
    }
}
