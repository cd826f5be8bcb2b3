//! Sum of two tensors, the second possibly broadcast, with an optional ReLU: `y = a + b`. Gradients: `ga = gy` (where
//! `y > 0` with the ReLU), `gb` the same, summed over the axes that `b` was spread over.

use super::elementwise::rows::{RowMapParams, RowSumParams, Rows, map_variants, sum_call};
use super::elementwise::{DTYPES, MapParams, map};
use super::implicit_gemm::operand_dtype;
use super::kernel::Call;
use super::*;
use crate::cpu::{for_each_chunk, math, rows};
use crate::error::Error;

/// `y = a + b`, then a ReLU if `relu`.
///
/// Inputs: `a [N, .., C]` and `b` of the same shape; or `[N, C]` or `[N, 1, .., 1, C]`, spread over the pixels of each
/// sample; or `[C]`, spread over all rows.
#[derive(Clone, Debug, Default)]
pub struct Add {
    /// Whether a ReLU follows.
    pub relu: bool,
}

/// How `b` lies on `a`: `b` holds `samples` rows of `width`, each spread over `rows` rows of `a`.
#[derive(Clone, Copy)]
struct Spread {
    samples: usize,
    rows: usize,
    width: usize,
}

fn spread(a: &Shape, b: &Shape) -> Option<Spread> {
    let (count, width) = (a.rows(), a.last());
    if a == b {
        return Some(Spread { samples: count, rows: 1, width });
    }
    let (&[n, .., _], Some((&last, inner))) = (&**a, b.split_last()) else {
        return (**b == [width] && !a.is_empty()).then_some(Spread { samples: 1, rows: count, width });
    };
    let per_sample = matches!(inner, [m, ones @ ..] if *m == n && ones.iter().all(|&d| d == 1))
        && (b.len() == 2 || b.len() == a.len());
    match inner {
        _ if last != width => None,
        [] => Some(Spread { samples: 1, rows: count, width }),
        _ if per_sample => Some(Spread { samples: n, rows: count.checked_div(n).unwrap_or(0), width }),
        _ => None,
    }
}

fn call(entry: &'static str, pass: u8) -> Call {
    Call::new("add.cu", entry).set("PASS", pass)
}

fn fwd(relu: bool) -> Call {
    call("add_fwd", 0).set("RELU", u8::from(relu))
}

fn spread_rows(relu: bool) -> Call {
    call("add_rows", 1).set("RELU", u8::from(relu))
}

fn gate() -> Call {
    call("add_gate", 0)
}

fn sum() -> Call {
    call("add_sum", 2)
}

/// Every variant that may be launched.
pub(super) fn variants() -> Vec<Variant> {
    let mut all: Vec<Variant> =
        [false, true].iter().flat_map(|&relu| map_variants::<RowMapParams>(&spread_rows(relu))).collect();
    for dtype in DTYPES {
        all.push(gate().dtype(dtype).variant::<MapParams>());
        for relu in [false, true] {
            all.push(fwd(relu).dtype(dtype).variant::<MapParams>());
        }
        for wide in [false, true] {
            for out in DTYPES {
                all.push(sum_call(sum(), dtype, out, wide).variant::<RowSumParams>());
            }
        }
    }
    all
}

impl Add {
    fn spread_of(shapes: &[Shape]) -> Rows {
        let s = spread(&shapes[0], &shapes[1]).expect("output_shape accepted the shapes");
        Rows { segments: s.samples, rows: s.rows, columns: s.width }
    }
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn output_shape(&self, inputs: &[Shape]) -> Result<Shape> {
        let [a, b] = inputs else {
            return Err(Error::shape("add", format!("takes two inputs (a, b), got {}", inputs.len())));
        };
        match spread(a, b) {
            Some(_) => Ok(*a),
            None => Err(Error::shape("add", format!("{b} cannot be added to {a}")).with_remedy(
                "b needs the shape of a, or one row of channels per sample [N, C], or one row for all [C]",
            )),
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Forward> {
        let shape = inputs[0].shape();
        let (a, b) = (inputs[0].f32s()?, inputs[1].f32s()?);
        let s = spread(&shape, &inputs[1].shape()).expect("output_shape accepted the shapes");
        let y = match (s.rows == 1, self.relu) {
            (true, false) => rows::map2(a, b, |a, b| a + b),
            (true, true) => rows::map2(a, b, |a, b| math::relu(a + b)),
            (false, relu) => {
                let mut y = vec![0.0; a.len()];
                for_each_chunk(&mut y, s.width, |r, y| {
                    let rows = y.iter_mut().zip(&a[r * s.width..]).zip(&b[r / s.rows * s.width..]);
                    if relu {
                        rows.for_each(|((y, &a), &b)| *y = math::relu(a + b));
                    } else {
                        rows.for_each(|((y, &a), &b)| *y = a + b);
                    }
                });
                y
            }
        };
        Ok(Tensor::from_vec(shape, y)?.into())
    }

    fn save(&self, _inputs: &[&Tensor], y: &Tensor) -> Vec<Tensor> {
        if self.relu { vec![y.clone()] } else { Vec::new() }
    }

    fn backward(&self, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let g = if self.relu {
            let gate = |gy: f32, y: f32| if y <= 0.0 { 0.0 } else { gy };
            Tensor::from_vec(ctx.inputs[0], rows::map2(ctx.gy.f32s()?, ctx.saved[0].f32s()?, gate))?
        } else {
            ctx.gy.clone()
        };
        let gb = if !ctx.needs[1] {
            None
        } else if ctx.inputs[0] == ctx.inputs[1] {
            Some(g.clone())
        } else {
            let Spread { samples, rows, width } =
                spread(&ctx.inputs[0], &ctx.inputs[1]).expect("output_shape accepted the shapes");
            let g = g.f32s()?;
            let sums = rows::sum_rows([samples, rows, width], width, |n, range, sums| {
                for row in
                    g[(n * rows + range.start) * width..(n * rows + range.end) * width].chunks_exact(width)
                {
                    sums.iter_mut().zip(row).for_each(|(s, &g)| *s += f64::from(g));
                }
            });
            Some(Tensor::from_vec(ctx.inputs[1], sums.into_iter().map(|v| v as f32).collect())?)
        };
        Ok(vec![ctx.needs[0].then_some(g), gb])
    }

    fn has_kernel(&self) -> bool {
        true
    }

    fn is_operand(&self, _input: usize) -> bool {
        true
    }

    fn launch(&self, gpu: &Gpu, inputs: &[&Tensor]) -> Result<Forward> {
        operand_dtype("add", inputs)?;
        let y = if inputs[0].shape() == inputs[1].shape() {
            map(gpu, fwd(self.relu), inputs, "add")?
        } else {
            let rows = Self::spread_of(&[inputs[0].shape(), inputs[1].shape()]);
            rows.map(gpu, "add", spread_rows(self.relu), inputs[0], inputs[1])?
        };
        Ok(y.into())
    }

    fn launch_backward(&self, gpu: &Gpu, ctx: &Backward<'_>) -> Result<Vec<Option<Tensor>>> {
        let g = match ctx.saved {
            [y] => {
                operand_dtype("add", &[ctx.gy, y])?;
                map(gpu, gate(), &[ctx.gy, y], "gradient of add")?
            }
            _ => ctx.gy.clone(),
        };
        let gb = if !ctx.needs[1] {
            None
        } else if ctx.inputs[0] == ctx.inputs[1] {
            Some(g.clone())
        } else {
            let dtype = operand_dtype("add", &[&g])?;
            let gb = Tensor::empty_gpu(ctx.inputs[1], dtype, gpu, "gradient of add")?;
            if gb.elems() > 0 {
                Self::spread_of(ctx.inputs).sum(gpu, "add", sum(), &g, &gb, 1.0)?;
            }
            Some(gb)
        };
        Ok(vec![ctx.needs[0].then_some(g), gb])
    }

    fn reference(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (shape, b) = (inputs[0].shape(), inputs[1].data::<f64>()?);
        let (pixels, c) = (shape.elems() / shape.first().map_or(1, |n| (*n).max(1)), shape.last());
        let y = inputs[0].data::<f64>()?.iter().enumerate().map(|(i, a)| {
            let j = match inputs[1].shape().len() {
                _ if inputs[1].shape() == shape => i,
                1 => i % c,
                _ => i / pixels * c + i % c,
            };
            let y = a + b[j];
            if self.relu { y.max(0.0) } else { y }
        });
        Tensor::from_vec(shape, y.collect())
    }

    fn reference_gradients(&self, inputs: &[&Tensor], gy: &Tensor) -> Result<Option<Vec<Option<Tensor>>>> {
        let (shape, b_shape) = (inputs[0].shape(), inputs[1].shape());
        let y = self.reference(inputs)?;
        let gate = |(&g, &y): (&f64, &f64)| if self.relu && y <= 0.0 { 0.0 } else { g };
        let ga: Vec<f64> = gy.data::<f64>()?.iter().zip(y.data::<f64>()?).map(gate).collect();
        let (pixels, c) = (shape.elems() / shape.first().map_or(1, |n| (*n).max(1)), shape.last());
        let mut gb = vec![0.0; b_shape.elems()];
        for (i, g) in ga.iter().enumerate() {
            gb[if b_shape == shape { i } else { i / pixels * c + i % c } % b_shape.elems()] += g;
        }
        Ok(Some(vec![Some(Tensor::from_vec(shape, ga)?), Some(Tensor::from_vec(b_shape, gb)?)]))
    }

    fn flops(&self, inputs: &[Shape]) -> u64 {
        inputs[0].elems() as u64 * if self.relu { 2 } else { 1 }
    }
}

/// Every way of spreading `b`, with and without the ReLU. The values of `a` lie at odd multiples of 1/80 and those of
/// `b` are small, so that no sum comes near the kink.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, a: &[usize], b: &[usize], relu: bool, bench: bool| {
        let shape = |s: &[usize]| Shape::from_slice(s).expect("a small shape");
        let inputs = vec![
            Input::filled("a", shape(a), Fill::Distinct),
            Input::filled("b", shape(b), Fill::Uniform(-0.01, 0.01)),
        ];
        Case { bench, ..Case::new(label, Add { relu }, inputs) }
    };
    vec![
        case("one element", &[1], &[1], false, false),
        case("scalars", &[], &[], false, false),
        case("same shape", &[2, 3, 5, 7], &[2, 3, 5, 7], false, false),
        case("same shape, relu", &[2, 3, 5, 7], &[2, 3, 5, 7], true, false),
        case("per sample", &[3, 2, 5, 7], &[3, 7], false, false),
        case("per sample, relu", &[3, 5, 2, 9], &[3, 1, 1, 9], true, false),
        case("per sample, whole chunks", &[3, 2, 5, 16], &[3, 16], false, false),
        case("per sample, whole chunks, relu", &[3, 2, 5, 16], &[3, 16], true, false),
        case("per sample, several parts", &[2, 24, 23, 8], &[2, 8], false, false),
        case("per sample, several parts, odd", &[2, 24, 23, 3], &[2, 3], false, false),
        case("per sample of tokens", &[3, 5, 9], &[3, 9], false, false),
        case("per channel", &[3, 2, 5, 9], &[9], true, false),
        case("per channel of a matrix", &[4, 3], &[3], false, false),
        case("residual", &[8, 64, 64, 64], &[8, 64, 64, 64], true, true),
        case("timestep embedding", &[8, 64, 64, 64], &[8, 64], false, true),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_does_not_spread() {
        let a = Tensor::zeros([2, 3, 4, 5]);
        for b in [vec![5, 1], vec![3, 5], vec![1, 3, 4, 5], vec![2, 1, 5], vec![], vec![2, 3, 4, 1], vec![1]]
        {
            let b = Tensor::zeros(Shape::from_slice(&b).unwrap());
            let e = run(&Add { relu: false }, &[&a, &b]).err().unwrap();
            assert!(e.is_shape() && e.remedy().is_some(), "{e}");
        }
        assert!(run(&Add { relu: false }, &[&a]).err().unwrap().is_shape());
        assert!(run(&Add { relu: false }, &[&Tensor::scalar(1.0), &a]).err().unwrap().is_shape());
    }

    #[test]
    fn the_plain_gradient_is_shared_not_copied() {
        let gy = Tensor::zeros([2, 3]);
        let shapes = [gy.shape(); 2];
        let ctx = Backward { gy: &gy, saved: &[], inputs: &shapes, needs: &[true, true] };
        let grads = Add { relu: false }.backward(&ctx).unwrap();
        for g in grads {
            assert_eq!(g.unwrap().f32s().unwrap().as_ptr(), gy.f32s().unwrap().as_ptr());
        }
    }
}
