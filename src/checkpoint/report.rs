//! Which keys of a checkpoint fit a model.

use super::state_dict::StateDict;
use crate::base::Shape;
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

/// How many keys of a kind are listed before the rest is only counted.
const LISTED: usize = 10;

/// The result of [`compare`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReport {
    /// The checkpoint.
    pub file: PathBuf,
    /// How many expected keys are there with the expected shape.
    pub matched: usize,
    /// Expected keys that the checkpoint lacks, in the model's order.
    pub missing: Vec<String>,
    /// Keys of the checkpoint that the model does not have, sorted.
    pub unexpected: Vec<String>,
    /// Keys with the shape that was expected and the one that was found, in the model's order.
    pub misshapen: Vec<(String, Shape, Shape)>,
}

/// Which differences [`KeyReport::into_result`] lets pass. The default lets none pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tolerance {
    /// The checkpoint may lack keys; the model keeps its own values.
    pub missing: bool,
    /// The checkpoint may have further keys, e.g. those of a head.
    pub unexpected: bool,
    /// Tensors of another shape are left out.
    pub misshapen: bool,
}

/// BatchNorm's step counter. PyTorch writes it, FrozenBatchNorm and files older than torch 0.4.1 do not have it, and
/// nothing but a cumulative average (`momentum=None`) reads it; so it never counts as a difference.
fn is_counter(key: &str) -> bool {
    key == "num_batches_tracked" || key.ends_with(".num_batches_tracked")
}

/// Compares the keys and shapes a model expects with those of a checkpoint. BatchNorm's `num_batches_tracked` may be
/// there or not.
pub fn compare(expected: &[(String, Shape)], found: &StateDict) -> KeyReport {
    let mut report = KeyReport {
        file: found.path().to_path_buf(),
        matched: 0,
        missing: Vec::new(),
        unexpected: Vec::new(),
        misshapen: Vec::new(),
    };
    for (key, shape) in expected {
        match found.info(key) {
            Some((_, s)) if s == *shape => report.matched += 1,
            Some((_, s)) => report.misshapen.push((key.clone(), *shape, s)),
            None if is_counter(key) => {}
            None => report.missing.push(key.clone()),
        }
    }
    let known: BTreeSet<&str> = expected.iter().map(|(k, _)| k.as_str()).collect();
    report.unexpected =
        found.names().filter(|n| !known.contains(n) && !is_counter(n)).map(str::to_string).collect();
    report
}

impl KeyReport {
    /// Whether everything fits.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }

    /// Makes an error of the differences that `tolerance` does not let pass.
    ///
    /// # Errors
    /// [`Error::checkpoint`] with the counts and the first keys. Nothing matching at all is an error whatever the
    /// tolerance: it means another model or another naming.
    pub fn into_result(self, tolerance: Tolerance) -> Result<Self> {
        let nothing = self.matched == 0 && !(self.missing.is_empty() && self.misshapen.is_empty());
        let bad = (!tolerance.missing && !self.missing.is_empty())
            || (!tolerance.unexpected && !self.unexpected.is_empty())
            || (!tolerance.misshapen && !self.misshapen.is_empty());
        if !bad && !nothing {
            return Ok(self);
        }
        let remedy = if nothing {
            "no key fits: check that the checkpoint is of this architecture, and give its layout or its prefix"
        } else if !self.misshapen.is_empty() && !tolerance.misshapen {
            "check the size of the model (depth, width, number of classes) against the checkpoint"
        } else {
            "check the architecture, or allow the differences if they are intended (e.g. a head that is not needed)"
        };
        let error = Error::checkpoint(format!("the checkpoint does not fit the model: {self}"));
        Err(error.with_file(&self.file).with_remedy(remedy))
    }
}

impl fmt::Display for KeyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list(
            f: &mut fmt::Formatter<'_>,
            title: &str,
            n: usize,
            keys: impl Iterator<Item = String>,
        ) -> fmt::Result {
            if n == 0 {
                return Ok(());
            }
            write!(f, "\n  {title}:")?;
            for key in keys.take(LISTED) {
                write!(f, "\n    {key}")?;
            }
            if n > LISTED { write!(f, "\n    ... and {} more", n - LISTED) } else { Ok(()) }
        }
        let (m, u, s) = (self.missing.len(), self.unexpected.len(), self.misshapen.len());
        write!(f, "{} keys match, {m} missing, {u} unexpected, {s} misshapen", self.matched)?;
        list(f, "missing", m, self.missing.iter().cloned())?;
        list(f, "unexpected", u, self.unexpected.iter().cloned())?;
        let shapes = self.misshapen.iter().map(|(k, e, g)| format!("{k}: expected {e}, found {g}"));
        list(f, "misshapen", s, shapes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn found(keys: &[(&str, &[usize])]) -> StateDict {
        let t = |s: &[usize]| Tensor::zeros(Shape::from_slice(s).unwrap());
        StateDict::from_tensors("x.pt", keys.iter().map(|(k, s)| (k.to_string(), t(s))).collect())
    }

    fn expected(keys: &[(&str, &[usize])]) -> Vec<(String, Shape)> {
        keys.iter().map(|(k, s)| (k.to_string(), Shape::from_slice(s).unwrap())).collect()
    }

    #[test]
    fn counts_every_kind() {
        let e = expected(&[("a", &[2]), ("b", &[3]), ("c", &[1]), ("bn.num_batches_tracked", &[])]);
        let r =
            compare(&e, &found(&[("a", &[2]), ("b", &[3, 1]), ("d", &[1]), ("x.num_batches_tracked", &[])]));
        assert_eq!(
            (r.matched, &*r.missing, &*r.unexpected),
            (1, &["c".to_string()][..], &["d".to_string()][..])
        );
        assert_eq!(r.misshapen, [("b".to_string(), Shape::from([3]), Shape::from([3, 1]))]);
        assert!(!r.is_clean());
        let text = r.to_string();
        assert!(text.contains("1 keys match, 1 missing, 1 unexpected, 1 misshapen"), "{text}");
        assert!(text.contains("b: expected [3], found [3, 1]"), "{text}");
        let all = Tolerance { missing: true, unexpected: true, misshapen: true };
        assert!(r.clone().into_result(all).is_ok());
        for strict in [
            Tolerance { missing: false, ..all },
            Tolerance { unexpected: false, ..all },
            Tolerance { misshapen: false, ..all },
        ] {
            let e = r.clone().into_result(strict).unwrap_err();
            assert!(e.is_checkpoint() && e.remedy().is_some() && e.file().is_some());
        }
    }

    #[test]
    fn clean_and_empty() {
        let e = expected(&[("a", &[2]), ("bn.num_batches_tracked", &[])]);
        let r = compare(&e, &found(&[("a", &[2])]));
        assert!(r.is_clean() && r.into_result(Tolerance::default()).is_ok());
        let all = Tolerance { missing: true, unexpected: true, misshapen: true };
        let nothing = compare(&e, &found(&[("z", &[2])])).into_result(all).unwrap_err();
        assert!(nothing.to_string().contains("no key fits"), "{nothing}");
    }

    #[test]
    fn long_lists_are_cut() {
        let e: Vec<_> = (0..25).map(|i| (format!("k{i}"), Shape::SCALAR)).collect();
        let text = compare(&e, &found(&[])).to_string();
        assert!(text.contains("k9") && !text.contains("k10") && text.contains("and 15 more"), "{text}");
    }
}
