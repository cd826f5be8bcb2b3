//! What is timed: the benchmark cases of all operations, and the convolutions of the teacher.

use super::format::Suite;
use crate::base::{DType, Philox, Shape};
use crate::distill::{Part, Teacher, TeacherConfig, TeacherModel};
use crate::error::{Error, Result};
use crate::ops::conv2d::{Conv2d, Geometry};
use crate::ops::{Case, Fill, Input, REGISTRY};
use crate::recipe;
use crate::tensor::Tensor;
use half::bf16;

/// A case to time, and what the list `conv` knows about it.
pub struct Problem {
    /// Op, label, inputs.
    pub case: Case,
    /// Sizes, and how often the teacher computes it in one pass.
    pub convolution: Option<(Geometry, usize)>,
}

/// The cases of a list whose op or label contains `filter`, for these batch sizes (list `conv`).
///
/// # Errors
/// Nothing fits the filter.
pub fn problems(suite: Suite, filter: &str, batches: &[usize]) -> Result<Vec<Problem>> {
    let mut found = Vec::new();
    match suite {
        Suite::Ops => {
            let all = REGISTRY.iter().flat_map(|e| (e.cases)()).filter(|c| c.bench);
            found.extend(all.map(|case| Problem { case, convolution: None }));
        }
        Suite::Conv => {
            for &n in batches {
                found.extend(teacher_convolutions(n)?.into_iter().map(|(g, count)| convolution(g, count)));
            }
        }
        // Phases of a step are no ops: `step` times them.
        Suite::Step => {}
    }
    found.retain(|p| format!("{}/{}", p.case.op.name(), p.case.label).contains(filter));
    if found.is_empty() {
        return Err(Error::usage(format!("no case's name contains `{filter}`"))
            .with_remedy("leave the filter out, or see all names with --list"));
    }
    Ok(found)
}

/// The distinct convolutions of the early exit of ADM 256x256 on `n` images, traced from the network itself, with how
/// often each is computed; the one that takes the most operations in all first.
pub fn teacher_convolutions(n: usize) -> Result<Vec<(Geometry, usize)>> {
    let recipe = recipe::resolve("imagenet", &[])?;
    let config = TeacherConfig { model: TeacherModel::Name("imagenet256".into()), ..recipe.teacher };
    let teacher = Teacher::new(&config, &recipe.diffusion, 0, |_| Ok(()))?;
    let (plan, _) = Part::of_teacher(&teacher, n, [256, 256])?;
    let mut all: Vec<_> = plan.convolutions.into_iter().collect();
    all.sort_by_key(|(g, count)| std::cmp::Reverse(g.y_len() * g.k() * count));
    Ok(all)
}

fn convolution(g: Geometry, count: usize) -> Problem {
    let label = format!("[{}, {}, {}, {}] -> {}, {}x{}", g.n, g.h, g.w, g.ci, g.co, g.kh, g.kw);
    let op = Conv2d { stride: g.stride, pad: g.pad, dilation: g.dilation, groups: g.groups };
    // Weights of the size they have in a network, so that results have the magnitude of the inputs.
    let weight = Fill::Normal(0.0, 1.0 / (g.k() as f32).sqrt());
    let inputs = vec![
        Input::normal("x", [g.n, g.h, g.w, g.ci]).fixed(),
        Input::filled("w", [g.co, g.kh, g.kw, g.ci / g.groups], weight).fixed(),
        Input::normal("b", [g.co]).fixed(),
    ];
    Problem { case: Case::bench(label, op, inputs), convolution: Some((g, count)) }
}

/// Inputs of more elements than this repeat a piece of so many random numbers: drawing billions would take longer than
/// timing them. A prime, so that the repetition meets no row or channel twice in the same place.
const PIECE: usize = 1_048_573;

/// The input tensors of a case in `dtype` (labels stay integers), different for every `seed`.
///
/// # Errors
/// Never in practice: sizes and lengths agree.
pub fn inputs(case: &Case, dtype: DType, seed: u64) -> Result<Vec<Tensor>> {
    let large = |i: &Input| matches!(i.fill, Fill::Normal(..)) && i.shape.elems() > PIECE;
    if !case.inputs.iter().any(large) {
        let convert = |t: Tensor| if t.dtype() == DType::F32 { t.to_dtype(dtype) } else { Ok(t) };
        return case.tensors(seed).into_iter().map(convert).collect();
    }
    let make = |(i, input): (usize, &Input)| {
        let Fill::Normal(mean, sd) = input.fill else {
            return Err(Error::usage(format!("case `{}`: only normal inputs can be this large", case.label)));
        };
        normal(input.shape, mean, sd, dtype, Philox::new(seed).fold(i as u64))
    };
    case.inputs.iter().enumerate().map(make).collect()
}

/// Normal numbers, in repeated pieces if there are very many. Never zeros: they would hide wrong indices, and cards
/// compute with them at less power and higher clocks.
pub fn normal(shape: Shape, mean: f32, sd: f32, dtype: DType, rng: Philox) -> Result<Tensor> {
    fn fill<T: Copy>(n: usize, piece: &[T]) -> Vec<T> {
        let mut v = Vec::with_capacity(n);
        while v.len() < n {
            v.extend_from_slice(&piece[..piece.len().min(n - v.len())]);
        }
        v
    }
    let n = shape.elems();
    let mut piece = vec![0.0f32; n.min(PIECE)];
    rng.fill_normal(&mut piece);
    piece.iter_mut().for_each(|x| *x = mean + sd * *x);
    match dtype {
        DType::Bf16 => {
            let piece: Vec<bf16> = piece.into_iter().map(bf16::from_f32).collect();
            Tensor::from_vec(shape, fill(n, &piece))
        }
        _ => Tensor::from_vec(shape, fill(n, &piece))?.to_dtype(dtype),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// The multiplicities that an independent count over the published model gave.
    #[test]
    fn the_teacher_has_34_distinct_convolutions() {
        let all = teacher_convolutions(8).unwrap();
        assert_eq!(all.len(), 34);
        let square = |g: &Geometry| g.n == 8 && g.h == g.w && [g.ho, g.wo] == [g.h, g.w] && g.kh == g.kw;
        assert!(all.iter().all(|(g, _)| square(g) && g.groups == 1 && g.pad == [g.kh / 2; 2]));
        let counts: BTreeMap<_, _> = all.iter().map(|(g, n)| ((g.ci, g.co, g.kh, g.h), *n)).collect();
        for (sizes, count) in [
            ((256, 256, 3, 256), 4),
            ((512, 512, 3, 64), 8),
            ((256, 256, 3, 128), 6),
            ((1024, 512, 3, 64), 2),
            ((512, 512, 3, 32), 9),
            ((1024, 1024, 3, 16), 8),
            ((1024, 1024, 3, 32), 2),
            ((768, 512, 3, 64), 1),
            ((2048, 1024, 3, 16), 2),
            ((1024, 512, 3, 32), 2),
            ((1024, 1024, 3, 8), 13),
            ((1536, 512, 3, 32), 1),
        ] {
            assert_eq!(counts.get(&sizes), Some(&count), "{sizes:?}");
        }
        let gmac = |k: usize| -> f64 {
            let of = |(g, n): &&(Geometry, usize)| g.kh == k && *n > 0;
            all.iter().filter(of).map(|(g, n)| (g.y_len() / 8 * g.k() * n) as f64 / 1e9).sum()
        };
        assert!((gmac(3) - 457.7).abs() < 0.1 && (gmac(1) - 22.7).abs() < 0.1, "{} {}", gmac(3), gmac(1));
        assert_eq!((all[0].0.ci, all[0].0.h), (256, 256), "the costliest comes first");
    }

    #[test]
    fn large_inputs_repeat_a_piece_and_small_ones_do_not() {
        let make = |n: usize, dtype| normal([n].into(), 0.0, 1.0, dtype, Philox::new(1)).unwrap();
        let v = make(2 * PIECE + 5, DType::F32);
        let v = v.f32s().unwrap();
        assert!(v.len() == 2 * PIECE + 5 && v[PIECE..2 * PIECE] == v[..PIECE] && v[2 * PIECE..] == v[..5]);
        let mean = v.iter().map(|x| f64::from(*x)).sum::<f64>() / v.len() as f64;
        let square = v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / v.len() as f64;
        assert!(mean.abs() < 0.01 && (square - 1.0).abs() < 0.01, "{mean} {square}");
        let half = make(100, DType::Bf16).to_dtype(DType::F32).unwrap();
        assert!(half.f32s().unwrap().iter().zip(v).all(|(h, v)| (h - v).abs() <= v.abs() / 128.0));
    }

    #[test]
    fn filters_choose_and_misses_are_told() {
        let names = |filter| -> Vec<&str> {
            problems(Suite::Ops, filter, &[]).unwrap().iter().map(|p| p.case.op.name()).collect()
        };
        assert!(names("").len() > 25 && names("relu").iter().all(|n| *n == "relu"));
        let two = problems(Suite::Conv, "256, 256, 256] -> 256", &[1, 2]).unwrap();
        assert!(two.len() == 2 && two.iter().all(|p| p.convolution.as_ref().unwrap().1 == 4));
        assert!(problems(Suite::Ops, "nosuchop", &[]).err().unwrap().is_usage());
    }
}
