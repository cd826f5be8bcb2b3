//! Metrics of classification and segmentation.

use crate::error::{Error, Result};

/// How often each class was predicted where each class was true. Pixels whose truth is the ignored id do not count.
///
/// Intersection over union of a class is `TP / (TP + FP + FN)` over all pixels of the set together (not per image). A
/// class that is absent, neither true nor predicted anywhere, has no value and takes no part in the mean; a class that is
/// predicted somewhere but true nowhere counts as 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfusionMatrix {
    classes: usize,
    ignore: Option<u16>,
    /// `[truth][prediction]`, row-major.
    counts: Vec<u64>,
}

impl ConfusionMatrix {
    /// Nothing counted yet.
    pub fn new(classes: usize, ignore: Option<u16>) -> Self {
        ConfusionMatrix { classes, ignore, counts: vec![0; classes * classes] }
    }

    /// Counts pixels, or images of a classification.
    ///
    /// # Errors
    /// The lists differ in length, or an id is no class (and not the ignored one).
    pub fn add(&mut self, truth: &[u16], predicted: &[u16]) -> Result<()> {
        if truth.len() != predicted.len() {
            return Err(Error::shape(
                "confusion matrix",
                format!("{} true ids and {} predicted ones", truth.len(), predicted.len()),
            ));
        }
        let outside = |what: &str, id: u16| {
            Err(Error::data(format!("the {what} id {id} is none of {} classes", self.classes))
                .with_op("confusion matrix")
                .with_remedy("check the masks against the list of classes and the ignored id"))
        };
        for (&t, &p) in truth.iter().zip(predicted) {
            if self.ignore == Some(t) {
                continue;
            }
            if usize::from(t) >= self.classes {
                return outside("true", t);
            }
            if usize::from(p) >= self.classes {
                return outside("predicted", p);
            }
            self.counts[usize::from(t) * self.classes + usize::from(p)] += 1;
        }
        Ok(())
    }

    /// How often `predicted` was said where `truth` held.
    pub fn count(&self, truth: usize, predicted: usize) -> u64 {
        self.counts[truth * self.classes + predicted]
    }

    /// Pixels counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn truths(&self, class: usize) -> u64 {
        self.counts[class * self.classes..][..self.classes].iter().sum()
    }

    /// The share of pixels whose class was predicted; 0 if none was counted.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.classes).map(|c| self.count(c, c)).sum();
        right as f64 / self.total().max(1) as f64
    }

    /// Intersection over union of every class; NaN for absent ones.
    pub fn iou(&self) -> Vec<f64> {
        (0..self.classes)
            .map(|c| {
                let predicted: u64 = (0..self.classes).map(|t| self.count(t, c)).sum();
                let both = self.count(c, c);
                // 0 / 0 is the NaN of a class that is absent.
                both as f64 / (self.truths(c) + predicted - both) as f64
            })
            .collect()
    }

    /// The share of every class' pixels that was found; NaN for classes that are true nowhere.
    pub fn recall(&self) -> Vec<f64> {
        (0..self.classes).map(|c| self.count(c, c) as f64 / self.truths(c) as f64).collect()
    }

    /// Mean of the classes' intersection over union, absent classes left out; 0 if all are absent.
    pub fn miou(&self) -> f64 {
        let present: Vec<f64> = self.iou().into_iter().filter(|v| !v.is_nan()).collect();
        present.iter().sum::<f64>() / present.len().max(1) as f64
    }
}

/// The mean of every class over seeds, of the values that are numbers; NaN where none is.
pub fn mean_per_class(seeds: &[Vec<f64>]) -> Vec<f64> {
    let classes = seeds.first().map_or(0, Vec::len);
    let mean = |class: usize| {
        let known: Vec<f64> = seeds.iter().map(|s| s[class]).filter(|v| !v.is_nan()).collect();
        known.iter().sum::<f64>() / known.len() as f64
    };
    (0..classes).map(mean).collect()
}

/// The class of the largest value in every row of `classes` values; the first of equal ones.
pub fn argmax(logits: &[f32], classes: usize) -> Vec<u16> {
    let of_row = |row: &[f32]| {
        let mut best = 0;
        for (i, v) in row.iter().enumerate() {
            if *v > row[best] {
                best = i;
            }
        }
        best as u16
    };
    logits.chunks_exact(classes.max(1)).map(of_row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three classes of which the last is absent, ids that are ignored, counted by hand.
    #[test]
    fn by_hand() {
        let mut m = ConfusionMatrix::new(3, Some(255));
        m.add(&[0, 0, 0, 1, 1, 255, 255], &[0, 0, 1, 1, 0, 2, 0]).unwrap();
        assert_eq!((m.total(), m.count(0, 1), m.count(1, 0)), (5, 1, 1));
        assert_eq!(m.accuracy(), 0.6);
        let iou = m.iou();
        assert_eq!((iou[0], iou[1]), (0.5, 1.0 / 3.0));
        assert!(iou[2].is_nan());
        assert!((m.miou() - (0.5 + 1.0 / 3.0) / 2.0).abs() < 1e-12);
        assert_eq!((m.recall()[0], m.recall()[1]), (2.0 / 3.0, 0.5));
        // Predicted, though true nowhere: it counts as 0 now.
        m.add(&[0], &[2]).unwrap();
        assert_eq!(m.iou()[2], 0.0);
        assert!(m.recall()[2].is_nan());
        assert!((m.miou() - (2.0 / 5.0 + 1.0 / 3.0) / 3.0).abs() < 1e-12);
    }

    #[test]
    fn perfect_and_empty() {
        let mut m = ConfusionMatrix::new(2, None);
        assert_eq!((m.accuracy(), m.miou(), m.total()), (0.0, 0.0, 0));
        m.add(&[0, 1, 1], &[0, 1, 1]).unwrap();
        assert_eq!((m.accuracy(), m.miou()), (1.0, 1.0));
    }

    #[test]
    fn ids_out_of_range_are_errors() {
        let mut m = ConfusionMatrix::new(2, Some(255));
        assert!(m.add(&[2], &[0]).unwrap_err().to_string().contains("true id 2"));
        assert!(m.add(&[0], &[255]).unwrap_err().to_string().contains("predicted id 255"));
        assert!(m.add(&[0, 1], &[0]).unwrap_err().is_shape());
        assert_eq!(m.total(), 0);
    }

    #[test]
    fn largest_of_rows() {
        assert_eq!(argmax(&[0.0, 2.0, 1.0, 5.0, 5.0, -1.0], 3), [1, 0]);
        assert_eq!(argmax(&[], 3), [0u16; 0]);
        let mean = mean_per_class(&[vec![0.25, f64::NAN, f64::NAN], vec![0.5, f64::NAN, 1.0]]);
        assert_eq!((mean[0], mean[2]), (0.375, 1.0));
        assert!(mean[1].is_nan());
    }
}
