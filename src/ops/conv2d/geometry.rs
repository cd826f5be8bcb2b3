//! Sizes of a convolution.

use super::Conv2d;
use crate::base::Shape;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The sizes of one convolution: `x [n, h, w, ci]`, weight `[co, kh, kw, ci/groups]`, `y [n, ho, wo, co]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geometry {
    /// Images.
    pub n: usize,
    /// Height of the input.
    pub h: usize,
    /// Width of the input.
    pub w: usize,
    /// Channels of the input.
    pub ci: usize,
    /// Channels of the result.
    pub co: usize,
    /// Height of the kernel.
    pub kh: usize,
    /// Width of the kernel.
    pub kw: usize,
    /// Height of the result.
    pub ho: usize,
    /// Width of the result.
    pub wo: usize,
    /// Step between outputs: vertical, horizontal.
    pub stride: [usize; 2],
    /// Zeros added on each side: vertical, horizontal.
    pub pad: [usize; 2],
    /// Distance between taps: vertical, horizontal.
    pub dilation: [usize; 2],
    /// Channel groups.
    pub groups: usize,
}

impl Geometry {
    /// The sizes of `op` on inputs `x`, `w` and perhaps `b`.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn new(op: &Conv2d, inputs: &[Shape]) -> Result<Self> {
        let (x, weight, bias) = match inputs {
            [x, w] => (x, w, None),
            [x, w, b] => (x, w, Some(b)),
            _ => {
                return Err(Error::shape(
                    "conv2d",
                    format!("takes x, weight and bias, got {} inputs", inputs.len()),
                ));
            }
        };
        let (n, h, w, ci) = x.nhwc("conv2d")?;
        let [co, kh, kw, per_group] = **weight else {
            return Err(Error::shape(
                "conv2d",
                format!("expects a weight [out, kh, kw, in/groups], got {weight}"),
            ));
        };
        if op.groups == 0 || op.stride.contains(&0) || op.dilation.contains(&0) {
            return Err(Error::shape("conv2d", "groups, stride and dilation must be positive"));
        }
        if per_group * op.groups != ci || !co.is_multiple_of(op.groups) || per_group == 0 {
            return Err(Error::shape(
                "conv2d",
                format!(
                    "{ci} input and {co} output channels do not fit weight {weight} in {} groups",
                    op.groups
                ),
            ));
        }
        if bias.is_some_and(|b| **b != [co]) {
            return Err(Error::shape(
                "conv2d",
                format!("bias must be [{co}], got {}", bias.expect("checked")),
            ));
        }
        let out = |size: usize, k: usize, i: usize| {
            let span = op.dilation[i] * (k.max(1) - 1) + 1;
            (size + 2 * op.pad[i]).checked_sub(span).filter(|_| k > 0).map(|room| room / op.stride[i] + 1)
        };
        let (Some(ho), Some(wo)) = (out(h, kh, 0), out(w, kw, 1)) else {
            return Err(Error::shape(
                "conv2d",
                format!("a {kh}x{kw} kernel does not fit a {h}x{w} image with padding"),
            ));
        };
        Ok(Geometry {
            n,
            h,
            w,
            ci,
            co,
            kh,
            kw,
            ho,
            wo,
            stride: op.stride,
            pad: op.pad,
            dilation: op.dilation,
            groups: op.groups,
        })
    }

    /// Channels per group: input, output.
    pub fn per_group(&self) -> (usize, usize) {
        (self.ci / self.groups, self.co / self.groups)
    }

    /// Length of one output's weight vector: taps times input channels of its group.
    pub fn k(&self) -> usize {
        self.kh * self.kw * self.ci / self.groups
    }

    /// Shape of the result.
    pub fn y_shape(&self) -> Shape {
        [self.n, self.ho, self.wo, self.co].into()
    }

    /// Elements of the input.
    pub fn x_len(&self) -> usize {
        self.n * self.h * self.w * self.ci
    }

    /// Elements of the result.
    pub fn y_len(&self) -> usize {
        self.n * self.ho * self.wo * self.co
    }

    /// Elements of the weight.
    pub fn w_len(&self) -> usize {
        self.co * self.k()
    }

    /// A plain matrix product: every output pixel reads one input pixel.
    pub fn is_pointwise(&self) -> bool {
        self.kh == 1 && self.kw == 1 && self.stride == [1, 1] && self.pad == [0, 0] && self.groups == 1
    }

    /// One input and one output channel per group.
    pub fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.ci && self.ci == self.co
    }

    /// The input row (or column) that output `o` reads through tap `k`, unless it is padding.
    pub fn input_index(&self, axis: usize, o: usize, k: usize) -> Option<usize> {
        let size = if axis == 0 { self.h } else { self.w };
        (o * self.stride[axis] + k * self.dilation[axis]).checked_sub(self.pad[axis]).filter(|&i| i < size)
    }

    /// The convolution that turns the gradient of the result into the gradient of the input, for stride 1: kernel
    /// flipped, channels swapped, padding `dilation * (k - 1) - pad`. `None` if that padding is negative.
    pub fn transposed(&self) -> Option<Geometry> {
        if self.stride != [1, 1] {
            return None;
        }
        let pad = |k: usize, i: usize| (self.dilation[i] * (k - 1)).checked_sub(self.pad[i]);
        Some(Geometry {
            h: self.ho,
            w: self.wo,
            ho: self.h,
            wo: self.w,
            ci: self.co,
            co: self.ci,
            pad: [pad(self.kh, 0)?, pad(self.kw, 1)?],
            ..*self
        })
    }
}
