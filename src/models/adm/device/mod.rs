//! The ADM U-Net of a frozen teacher on a CUDA device.
//!
//! The same network as [`AdmUnet`] in inference at a folded time, as a fixed sequence of few launches:
//!
//! ```text
//! ResBlock   coefficients -> apply (norm, SiLU, 2x2 mean) -> conv 3x3 (doubling folded in; + bias; statistics)
//!            coefficients -> apply (norm, folded FiLM, SiLU) -> conv 3x3 + conv 1x1 of the skip or x (+ bias; statistics)
//! attention  coefficients -> apply (norm) -> 1x1 (qkv) -> attention -> 1x1 (proj) + x (+ bias; statistics)
//! ```
//! What a norm needs to know of its input comes from the epilogue of the convolution that made it. Nothing is concatenated:
//! norm and convolutions of a decoder block read its two inputs where they are. An image that a block doubles is never
//! written: the convolution reads the small one.
//!
//! Everything is enqueued on the compute stream; nothing waits and nothing is copied, so a pass can be captured.

mod layers;

use super::AdmConfig;
use super::taps::{Tap, TapPosition, Taps};
use super::time::{FoldedBlock, FoldedTime};
use super::unet::{AdmUnet, check_folded, check_input};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::nn::ParamStore;
use crate::tensor::{Device, Tensor};
use layers::{Affine, Conv, Layer, Loader, Map};

/// A folded time on a device, made by [`DeviceUnet::fold`].
pub struct DeviceTime {
    config: AdmConfig,
    blocks: Vec<DeviceBlock>,
}

/// The time condition of one ResBlock, f32 on the device.
enum DeviceBlock {
    /// Weight and bias of the second norm.
    Norm(Affine),
    /// Bias of the first convolution.
    Bias(Tensor),
}

/// A block of the decoder.
struct Decoder {
    /// Without the up-sampler.
    body: Vec<Layer>,
    up: Option<Layer>,
}

/// Norm, SiLU and convolution to the prediction.
struct Head {
    norm: Affine,
    conv: Conv,
}

/// An [`AdmUnet`] with its weights on a device: gives the feature maps of taps, or the prediction. Inference only; dropout
/// is off.
pub struct DeviceUnet {
    gpu: Gpu,
    dtype: DType,
    config: AdmConfig,
    encoder: Vec<Vec<Layer>>,
    middle: Vec<Layer>,
    /// As many as are computed.
    decoder: Vec<Decoder>,
    /// Absent where the decoder is not whole.
    head: Option<Head>,
    /// The taps under the names by which the maps are found.
    taps: Vec<Tap>,
    /// The tap behind which features stop.
    stop: Option<Tap>,
}

impl DeviceUnet {
    /// Copies the weights of `net`, whose parameters are `store`, to a device: operands as `dtype`, which is bf16 or f32;
    /// gains and biases as f32. With `early_exit` those behind the last tap stay behind, so [`DeviceUnet::forward`] is
    /// refused; [`DeviceUnet::exit_early`] keeps them. On a planning device the values need not be filled.
    ///
    /// # Errors
    /// As [`Taps::describe`]; another `dtype`, values that are not filled, or no memory.
    pub fn new(
        net: &AdmUnet,
        store: &ParamStore,
        gpu: &Gpu,
        dtype: DType,
        taps: &Taps,
        early_exit: bool,
    ) -> Result<Self> {
        let config = net.config();
        taps.describe(config)?;
        if ![DType::F32, DType::Bf16].contains(&dtype) {
            return Err(Error::dtype("adm", format!("the network does not run in {dtype} on a device"))
                .with_remedy("choose f32 or bf16"));
        }
        let loader = Loader { store, gpu, dtype };
        let load = |layers: &[super::blocks::Layer]| -> Result<Vec<Layer>> {
            layers.iter().map(|l| loader.layer(l)).collect()
        };
        let taps: Vec<Tap> = taps.as_slice().iter().map(|&t| net.canonical(t)).collect();
        // Taps order by block, then pre_up before post_up: the order in which they are computed.
        let last = taps.iter().max().copied().filter(|_| early_exit);
        let computed = last.map_or(net.decoder.len(), |tap| tap.block + 1);
        let decoder = |(j, block): (usize, &super::unet::Decoder)| -> Result<Decoder> {
            let behind = last == Some(Tap::pre_up(j));
            match block.layers.split_last() {
                Some((_, body)) if block.up && behind => Ok(Decoder { body: load(body)?, up: None }),
                Some((up, body)) if block.up => {
                    Ok(Decoder { body: load(body)?, up: Some(loader.layer(up)?) })
                }
                _ => Ok(Decoder { body: load(&block.layers)?, up: None }),
            }
        };
        let head =
            || Ok(Head { norm: loader.affine(&net.out_norm)?, conv: loader.conv(&net.out_conv, None)? });
        Ok(DeviceUnet {
            gpu: gpu.clone(),
            dtype,
            config: config.clone(),
            encoder: net.encoder.iter().map(|block| load(block)).collect::<Result<_>>()?,
            middle: load(&net.middle)?,
            decoder: net.decoder[..computed].iter().enumerate().map(decoder).collect::<Result<_>>()?,
            head: (!early_exit).then(head).transpose()?,
            taps,
            stop: last,
        })
    }

    /// Stops behind the last tap from now on, and keeps the weights that only [`DeviceUnet::forward`] needs.
    pub fn exit_early(mut self) -> Self {
        self.stop = self.taps.iter().max().copied();
        self
    }

    /// The type of activations and weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Copies a folded time to the device.
    ///
    /// # Errors
    /// It was folded for a network of another configuration; no memory.
    pub fn fold(&self, folded: &FoldedTime) -> Result<DeviceTime> {
        check_folded(&folded.config, &self.config)?;
        let there = |t: &Tensor| t.to_gpu_tagged(&self.gpu, "folded time");
        let block = |block: &FoldedBlock| -> Result<DeviceBlock> {
            Ok(match block {
                FoldedBlock::Norm { weight, bias } => {
                    DeviceBlock::Norm(Affine { weight: there(weight)?, bias: there(bias)? })
                }
                FoldedBlock::Bias(bias) => DeviceBlock::Bias(there(bias)?),
            })
        };
        let blocks = folded.blocks.iter().map(block).collect::<Result<_>>()?;
        Ok(DeviceTime { config: self.config.clone(), blocks })
    }

    /// The raw feature maps `[N, H/stride, W/stride, channels]` of the taps, in their order and of the network's type, for
    /// noisy images `x [N, H, W, in_channels]` of that type on the device.
    ///
    /// # Errors
    /// Wrong channels, a height or width that [`AdmConfig::max_stride`] does not divide, another type or device, a time
    /// folded for another network, no memory, or a failed launch.
    pub fn features(&self, x: &Tensor, time: &DeviceTime) -> Result<Vec<Tensor>> {
        let mut found: Vec<Option<Tensor>> = vec![None; self.taps.len()];
        let mut take = |site: Tap, map: &Map| {
            for (_, slot) in self.taps.iter().zip(&mut found).filter(|(tap, _)| **tap == site) {
                *slot = Some(map.y.clone());
            }
        };
        let h = self.trunk(x, time, self.stop, &mut take)?;
        if self.stop.is_none() {
            self.predict(h)?;
        }
        Ok(found.into_iter().map(|map| map.expect("every tap is computed")).collect())
    }

    /// The prediction `[N, H, W, out_channels]`, of the network's type, for noisy images as in [`DeviceUnet::features`].
    ///
    /// # Errors
    /// As [`DeviceUnet::features`]; the network was made without the weights behind the last tap.
    pub fn forward(&self, x: &Tensor, time: &DeviceTime) -> Result<Tensor> {
        if self.head.is_none() {
            return Err(Error::usage("the weights behind the last tap are not on the device")
                .with_op("adm")
                .with_remedy("make the network with `early_exit` off, then call `exit_early`"));
        }
        let h = self.trunk(x, time, None, &mut |_, _| {})?;
        self.predict(h)
    }

    /// Everything up to the last decoder block, or up to the tap `stop`.
    fn trunk(
        &self,
        x: &Tensor,
        time: &DeviceTime,
        stop: Option<Tap>,
        observe: &mut dyn FnMut(Tap, &Map),
    ) -> Result<Map> {
        self.check(x, time)?;
        // Decoder block j reads the output of encoder block (number - 1 - j).
        let computed = stop.map_or(self.decoder.len(), |tap| tap.block + 1);
        let first_skip = self.encoder.len() - computed;
        let mut skips = Vec::with_capacity(computed);
        let mut h = Map::new(x.clone());
        for (i, block) in self.encoder.iter().enumerate() {
            for layer in block {
                h = layer.forward(&self.gpu, vec![h], time, true)?;
            }
            if i >= first_skip {
                skips.push(h.clone());
            }
        }
        for layer in &self.middle {
            h = layer.forward(&self.gpu, vec![h], time, true)?;
        }
        for (j, block) in self.decoder[..computed].iter().enumerate() {
            let mut inputs = vec![h, skips.pop().expect("one skip per computed block")];
            let is_last = |position| stop == Some(Tap { block: j, position });
            // A block without an up-sampler is known by its output alone.
            let end = if is_last(TapPosition::PreUp) { TapPosition::PreUp } else { TapPosition::PostUp };
            let up = block.up.as_ref().filter(|_| end == TapPosition::PostUp);
            for (i, layer) in block.body.iter().enumerate() {
                // Nobody asks for the statistics of the last map.
                let ends = i + 1 == block.body.len() && up.is_none() && is_last(end);
                inputs = vec![layer.forward(&self.gpu, inputs, time, !ends)?];
            }
            h = inputs.pop().expect("the output of the last layer");
            if block.up.is_some() || end == TapPosition::PreUp {
                observe(Tap::pre_up(j), &h);
            }
            if let Some(up) = up {
                h = up.forward(&self.gpu, vec![h], time, !is_last(end))?;
            }
            if end == TapPosition::PostUp {
                observe(Tap::post_up(j), &h);
            }
        }
        Ok(h)
    }

    fn predict(&self, h: Map) -> Result<Tensor> {
        let head = self.head.as_ref().expect("only a whole network gets here");
        let normed = head.norm.apply(&self.gpu, &[h], true, false)?;
        Ok(head.conv.fused(&normed).run(&self.gpu)?.y)
    }

    fn check(&self, x: &Tensor, time: &DeviceTime) -> Result<()> {
        check_input(&self.config, x)?;
        check_folded(&time.config, &self.config)?;
        let here = Device::Cuda(self.gpu.info().ordinal);
        if x.device() != here || x.dtype() != self.dtype {
            let message = format!("the network takes {} images on {here}", self.dtype);
            return Err(Error::device(message)
                .with_op("adm")
                .with_tensor("x", x)
                .with_remedy("convert the images and copy them with `.to_gpu(&gpu)` first"));
        }
        Ok(())
    }
}
