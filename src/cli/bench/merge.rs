//! Parts of one run become one file.

use super::format::{Results, Torch, TorchRow, TorchStep};
use crate::error::{Error, Result};

impl Results {
    /// Adds another part: the times of a case that both have follow one another.
    ///
    /// # Errors
    /// The parts come from different machines or programs.
    pub fn merge(&mut self, part: Results) -> Result<()> {
        fn unite<T: PartialEq>(mine: &mut Option<T>, other: Option<T>, what: &str) -> Result<()> {
            if mine.is_some() && other.is_some() && *mine != other {
                return Err(Error::data(format!("the parts name different {what}"))
                    .with_remedy("merge only parts of one run"));
            }
            if mine.is_none() {
                *mine = other;
            }
            Ok(())
        }
        unite(&mut self.dtk, part.dtk, "programs")?;
        unite(&mut self.machine, part.machine, "machines")?;
        unite(&mut self.clocks, part.clocks, "clocks")?;
        self.date = match (self.date.take(), part.date) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.stages.extend(part.stages);
        self.profiles.extend(part.profiles);
        for row in part.rows {
            match self.rows.iter_mut().find(|r| r.key() == row.key()) {
                Some(mine) => mine.ms.extend(row.ms),
                None => self.rows.push(row),
            }
        }
        let Some(theirs) = part.torch else { return Ok(()) };
        let Some(mine) = &mut self.torch else {
            self.torch = Some(theirs);
            return Ok(());
        };
        let program = |t: &Torch| (t.torch.clone(), t.cuda.clone(), t.cudnn, t.device.clone());
        unite(&mut Some(program(mine)), Some(program(&theirs)), "PyTorch versions or cards")?;
        mine.errors.extend(theirs.errors);
        for row in theirs.rows {
            let same = |r: &&mut TorchRow| (r.convolution, &r.dtype) == (row.convolution, &row.dtype);
            match mine.rows.iter_mut().find(same) {
                Some(mine) => {
                    mine.ms.extend(row.ms);
                    mine.no_bias_ms.extend(row.no_bias_ms);
                }
                None => mine.rows.push(row),
            }
        }
        for step in theirs.steps {
            let same = |s: &&mut TorchStep| {
                (&s.case, &s.variant, &s.dtype) == (&step.case, &step.variant, &step.dtype)
            };
            match mine.steps.iter_mut().find(same) {
                Some(mine) => mine.ms.extend(step.ms),
                None => mine.steps.push(step),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::format::tests::{results, row};
    use crate::ops::conv2d::Geometry;

    #[test]
    fn parts_of_one_machine_merge() {
        let mut all = results("x", vec![row("a", &[1.0, 2.0])]);
        all.date = Some("2026-02-01T00:00:00Z".into());
        let mut part = results("x", vec![row("b", &[5.0]), row("a", &[3.0])]);
        part.date = Some("2026-01-31T00:00:00Z".into());
        let g = Geometry {
            n: 1,
            h: 2,
            w: 2,
            ci: 3,
            co: 4,
            kh: 1,
            kw: 1,
            ho: 2,
            wo: 2,
            stride: [1; 2],
            pad: [0; 2],
            dilation: [1; 2],
            groups: 1,
        };
        let torch = |ms: f64| Torch {
            torch: "2".into(),
            cuda: "13".into(),
            cudnn: 9,
            device: "x".into(),
            rows: vec![TorchRow { convolution: g, dtype: "bf16".into(), ms: vec![ms], no_bias_ms: vec![ms] }],
            steps: vec![TorchStep {
                case: "a step".into(),
                variant: "eager".into(),
                dtype: "bf16".into(),
                images: 2,
                ms: vec![ms],
            }],
            errors: vec![],
        };
        part.torch = Some(torch(7.0));
        all.merge(part).unwrap();
        all.merge(Results { torch: Some(torch(8.0)), ..Results::default() }).unwrap();
        assert_eq!((&*all.rows[0].ms, &*all.rows[1].ms), (&[1.0, 2.0, 3.0][..], &[5.0][..]));
        let both = all.torch.as_ref().unwrap();
        assert_eq!((&*both.rows[0].ms, &*both.steps[0].ms), (&[7.0, 8.0][..], &[7.0, 8.0][..]));
        assert_eq!(all.date.as_deref(), Some("2026-01-31T00:00:00Z"));
        assert!(all.merge(results("y", vec![])).unwrap_err().to_string().contains("different machines"));
        let other = Torch { cudnn: 8, ..torch(1.0) };
        assert!(all.merge(Results { torch: Some(other), ..Results::default() }).is_err());
    }
}
