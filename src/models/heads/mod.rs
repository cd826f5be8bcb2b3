//! Segmentation heads on a backbone's features, in mmsegmentation's arithmetic and under its keys.

mod fcn;
mod upernet;

pub use fcn::{FcnConfig, FcnHead};
pub use upernet::{UperConfig, UperHead};

use crate::error::{Error, Result};
use crate::nn::{Builder, Conv2d, Ctx, Init};
use crate::ops;
use crate::tape::Var;

/// What mmsegmentation calls `conv_seg`: a 1x1 convolution with bias to the classes, normal with deviation 0.01.
fn conv_seg(b: &mut Builder<'_>, channels: usize, classes: usize) -> Conv2d {
    let op = ops::conv2d::Conv2d { stride: [1; 2], pad: [0; 2], dilation: [1; 2], groups: 1 };
    Conv2d::with_op(&mut b.pp("conv_seg"), channels, classes, 1, op, Init::Normal(0.01), true)
}

/// Drops whole channels in training (`Dropout2d`).
fn dropout(ctx: &mut Ctx<'_>, x: Var, rate: f32) -> Result<Var> {
    if !ctx.is_training() || rate == 0.0 {
        return Ok(x);
    }
    let rng = ctx.next_rng();
    ctx.apply(ops::dropout::Dropout { rate, rng, channels: true, key: ctx.last_key() }, &[&x])
}

/// What both heads ask of their configuration.
fn check(head: &str, channels: &[usize], classes: usize, rate: f32) -> Result<()> {
    super::backbone::check_sizes(head, "channels", channels)?;
    super::backbone::check_sizes(head, "classes", [&classes])?;
    if channels.is_empty() {
        return Err(Error::usage(format!("{head}: there is no feature level")));
    }
    if !(0.0..1.0).contains(&rate) {
        return Err(Error::usage(format!("{head}: the dropout rate {rate} is not from 0 to below 1"))
            .with_key("dropout")
            .with_remedy("choose a rate such as 0.1, or 0 for none"));
    }
    Ok(())
}

/// Checks that there is one map for every level.
fn check_maps(head: &str, maps: &[Var], levels: usize) -> Result<()> {
    if maps.len() == levels {
        return Ok(());
    }
    Err(Error::shape(head, format!("expects {levels} feature maps, got {}", maps.len())))
}

#[cfg(test)]
mod tests;
