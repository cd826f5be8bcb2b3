//! Pictures that a diffusion network draws.

use crate::base::Philox;
use crate::checkpoint::{KeyReport, StateDict, Tolerance};
use crate::diffusion::{BetaSchedule, Sampler, Schedule, sample};
use crate::distill::TeacherModel;
use crate::error::{Error, Result};
use crate::models::adm::{AdmConfig, AdmUnet, Time};
use crate::nn::{Ctx, ParamStore};
use crate::tensor::{Tensor, write_safetensors};
use crate::train::load_params;
use crate::viz::enlarge;
use image::{Rgb, RgbImage};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Pictures are shown at least this large, pixels.
const SHOWN: u32 = 64;
/// Pixels between the pictures of a grid.
const MARGIN: u32 = 2;
/// Key of the architecture in the metadata of a file.
pub(super) const MODEL_KEY: &str = "adm_config";
/// Key of the height and width that a network was trained on.
pub(super) const SIZE_KEY: &str = "image_size";
/// Key of the number of diffusion steps.
pub(super) const STEPS_KEY: &str = "diffusion_steps";
/// Key of the noise schedule.
pub(super) const SCHEDULE_KEY: &str = "noise_schedule";

/// Which pictures are drawn, and how.
#[derive(Clone, Copy, Debug)]
pub struct Drawing {
    /// How many.
    pub count: usize,
    /// Steps of the sampler.
    pub steps: usize,
    /// The sampler.
    pub sampler: Sampler,
    /// Root of the noise: the same pictures for the same seed.
    pub seed: u64,
    /// Height and width in pixels.
    pub size: [u32; 2],
    /// The class of every picture, for a class-conditional network; one class after another if absent.
    pub label: Option<usize>,
}

/// A diffusion network out of a file.
pub struct TeacherFile {
    net: AdmUnet,
    store: ParamStore,
    schedule: Schedule,
    size: Option<[u32; 2]>,
    /// How the file's keys fitted.
    pub keys: KeyReport,
}

impl TeacherFile {
    /// Opens a checkpoint (safetensors or PyTorch, guided-diffusion's keys). `model` is its architecture where the file does
    /// not say it, as those of `dtk teacher train` do.
    ///
    /// # Errors
    /// The file cannot be opened, its architecture is not known, or its keys are those of another one.
    pub fn open(path: &Path, model: Option<&TeacherModel>) -> Result<Self> {
        let file = StateDict::open(path)?.auto_root()?;
        let about = file.metadata().clone();
        let config = architecture(path, &about, model)?;
        let (net, store, keys) = load(&config, &file)?;
        let bad = |key: &str| {
            Error::format(path, "the metadata is not that of a teacher")
                .with_key(key)
                .with_remedy("use the file as dtk wrote it")
        };
        let steps = match about.get(STEPS_KEY) {
            Some(text) => text.parse().map_err(|e: std::num::ParseIntError| bad(STEPS_KEY).with_source(e))?,
            None => 1000,
        };
        let betas = match about.get(SCHEDULE_KEY) {
            Some(text) => serde_json::from_str(text).map_err(|e| bad(SCHEDULE_KEY).with_source(e))?,
            None => BetaSchedule::Linear,
        };
        let size = match about.get(SIZE_KEY) {
            Some(text) => Some(parse_size(text).ok_or_else(|| bad(SIZE_KEY))?),
            None => None,
        };
        Ok(TeacherFile { net, store, schedule: Schedule::new(betas, steps)?, size, keys })
    }

    /// The architecture.
    pub fn model(&self) -> &AdmConfig {
        self.net.config()
    }

    /// Height and width that the network was trained on, if the file says so.
    pub fn size(&self) -> Option<[u32; 2]> {
        self.size
    }

    /// Draws pictures in a grid. `on_step` sees how many steps are done.
    ///
    /// # Errors
    /// As sampling anywhere: a step that is not finite, or a shape that does not fit.
    pub fn draw(&self, drawing: &Drawing, on_step: &mut dyn FnMut(usize) -> Result<()>) -> Result<RgbImage> {
        draw(&self.net, &self.store, &self.schedule, drawing, on_step)
    }
}

/// Height and width out of `HxW`.
pub fn parse_size(text: &str) -> Option<[u32; 2]> {
    let (h, w) = text.split_once('x')?;
    Some([h.trim().parse().ok()?, w.trim().parse().ok()?])
}

fn architecture(
    path: &Path,
    about: &BTreeMap<String, String>,
    model: Option<&TeacherModel>,
) -> Result<AdmConfig> {
    match (model, about.get(MODEL_KEY)) {
        (Some(model), _) => model.resolve(),
        (None, Some(text)) => serde_json::from_str(text).map_err(|e| {
            Error::format(path, "the architecture in the metadata is malformed")
                .with_key(MODEL_KEY)
                .with_source(e)
                .with_remedy("name the architecture")
        }),
        (None, None) => {
            let known: Vec<&str> = AdmConfig::NAMED.iter().map(|(n, _)| *n).collect();
            Err(Error::usage("the file does not say what network its weights are of")
                .with_file(path)
                .with_key("--model")
                .with_remedy(format!("name it with --model, e.g. one of {}", known.join(", "))))
        }
    }
}

fn load(config: &AdmConfig, file: &StateDict) -> Result<(AdmUnet, ParamStore, KeyReport)> {
    let mut store = ParamStore::new();
    let net = AdmUnet::new(&mut store.builder(), config)?;
    let keys = load_params(&mut store, "", file, Tolerance::default())?;
    Ok((net, store, keys))
}

/// Draws pictures with a network, in a grid whose rows are about as many as its columns.
///
/// # Errors
/// No picture, a size that does not fit the network, a label that is missing or unknown, an error of `on_step`.
pub(super) fn draw(
    net: &AdmUnet,
    store: &ParamStore,
    schedule: &Schedule,
    drawing: &Drawing,
    on_step: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<RgbImage> {
    let classes = net.config().num_classes;
    if drawing.count == 0 {
        return Err(Error::usage("no picture is asked for")
            .with_key("count")
            .with_remedy("ask for 1 or more"));
    }
    if drawing.label.is_some_and(|l| l >= classes.unwrap_or(0)) {
        return Err(Error::usage(format!("there is no class {}", drawing.label.unwrap_or(0)))
            .with_key("label")
            .with_remedy(match classes {
                Some(k) => format!("choose one of 0 to {}", k - 1),
                None => "leave it out: the network is not class-conditional".into(),
            }));
    }
    let labels = classes.map(|k| {
        let of = |i: usize| drawing.label.unwrap_or(i % k) as i64;
        Tensor::from_vec([drawing.count], (0..drawing.count).map(of).collect())
    });
    let labels = labels.transpose()?;
    let [h, w] = drawing.size.map(|s| s as usize);
    let positions: Vec<u64> = (0..drawing.count as u64).collect();
    let mut model = |x: &Tensor, t: usize| {
        let mut ctx = Ctx::inference(store);
        let x = ctx.constant(x.clone());
        let labels = labels.as_ref().map(|l| ctx.constant(l.clone()));
        Ok(net.forward(&mut ctx, &x, &Time::Steps(&[t as f32]), labels.as_ref())?.into_tensor())
    };
    let root = Philox::new(drawing.seed).fold_str("pictures");
    let schedule = schedule.for_sampling(drawing.steps)?;
    let picture = [h, w, net.config().in_channels];
    let x = sample(&schedule, drawing.sampler, root, &positions, picture, &mut model, on_step)?;
    grid(&x)
}

/// Images `[N, H, W, 3]` in -1..1 side by side, small ones enlarged.
fn grid(x: &Tensor) -> Result<RgbImage> {
    let (n, h, w, c) = x.shape().nhwc("grid")?;
    if c != 3 {
        return Err(Error::shape("grid", "pictures have three channels").with_tensor("pictures", x));
    }
    let (h, w) = (h as u32, w as u32);
    let scale = SHOWN.div_ceil(h.min(w).max(1)).max(1);
    let columns = (n as f64).sqrt().ceil() as u32;
    let rows = (n as u32).div_ceil(columns);
    let [cell_w, cell_h] = [w * scale + MARGIN, h * scale + MARGIN];
    let mut out = RgbImage::from_pixel(columns * cell_w + MARGIN, rows * cell_h + MARGIN, Rgb([255; 3]));
    for (i, pixels) in x.f32s()?.chunks_exact((h * w * 3) as usize).enumerate() {
        let bytes = pixels.iter().map(|v| ((v + 1.0) * 127.5 + 0.5).clamp(0.0, 255.0) as u8).collect();
        let picture = RgbImage::from_raw(w, h, bytes).expect("as many bytes as the picture has");
        let (column, row) = (i as u32 % columns, i as u32 / columns);
        let (left, top) = (i64::from(MARGIN + column * cell_w), i64::from(MARGIN + row * cell_h));
        image::imageops::replace(&mut out, &enlarge(&picture, w * scale, h * scale), left, top);
    }
    Ok(out)
}

/// Writes a picture as PNG under a temporary name first.
///
/// # Errors
/// The file cannot be written.
pub fn write_png(image: &RgbImage, path: &Path) -> Result<()> {
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot create the folder", e))?;
    }
    let bytes = crate::viz::html::png_bytes(image)?;
    crate::tensor::write_atomically(path, |f| f.write_all(&bytes))
}

/// A checkpoint that is to be written anew.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// A checkpoint: safetensors or PyTorch.
    pub from: PathBuf,
    /// The safetensors file to write.
    pub to: PathBuf,
    /// Element type of floating-point tensors; as they are if absent.
    pub dtype: Option<crate::base::DType>,
    /// The architecture whose keys the checkpoint has to have; without it, and where the file does not say it, keys are
    /// not looked at.
    pub model: Option<TeacherModel>,
}

impl Conversion {
    /// Converts. The metadata of the file stay, and the architecture is added. Gives the number of tensors.
    ///
    /// # Errors
    /// An unreadable file, keys of another architecture, values that are not finite, a file that cannot be written.
    pub fn run(&self) -> Result<usize> {
        let file = StateDict::open(&self.from)?.auto_root()?;
        let mut about = file.metadata().clone();
        if self.model.is_some() || about.contains_key(MODEL_KEY) {
            let config = architecture(&self.from, &about, self.model.as_ref())?;
            load(&config, &file)?;
            let text = serde_json::to_string(&config).expect("a configuration is plain data");
            about.insert(MODEL_KEY.into(), text);
        }
        about.insert("format".into(), "pt".into());
        let mut tensors = BTreeMap::new();
        for name in file.names() {
            let t = file.get(name)?;
            let dtype = self.dtype.filter(|_| t.dtype().is_float()).unwrap_or(t.dtype());
            tensors.insert(name.to_string(), t.to_dtype(dtype)?);
        }
        if tensors.is_empty() {
            return Err(Error::checkpoint("holds no tensor")
                .with_file(&self.from)
                .with_remedy("give a checkpoint of a diffusion network"));
        }
        write_safetensors(&self.to, &tensors, &about)?;
        Ok(tensors.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_has_a_place_for_every_picture() {
        let mut v = vec![-1.0f32; 5 * 2 * 4 * 3];
        v[4 * 24..].fill(1.0);
        let x = Tensor::from_vec([5, 2, 4, 3], v).unwrap();
        let image = grid(&x).unwrap();
        // Two pixels become 64: three columns of 128 pixels, two rows of 64.
        assert_eq!((image.width(), image.height()), (3 * 130 + 2, 2 * 66 + 2));
        assert_eq!((image.get_pixel(2, 2).0, image.get_pixel(0, 0).0), ([0; 3], [255; 3]));
        assert_eq!(image.get_pixel(132, 68).0, [255; 3], "the fifth picture");
        assert!(grid(&Tensor::zeros([1, 2, 2, 1])).unwrap_err().is_shape());
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("32x64"), Some([32, 64]));
        for wrong in ["", "32", "x", "32x", "ax3", "-1x3"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }
}
