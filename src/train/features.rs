//! Writing feature maps of images to files.

use super::source::open_images;
use super::weights::{fill_backbone, fill_teacher};
use crate::base::DType;
use crate::data::transform::{center_crop, to_tensor};
use crate::distill::{DeviceTeacher, Student, Teacher, normalize_imagenet};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::models::adm::TapInfo;
use crate::nn::{Ctx, DeviceParams};
use crate::recipe::Recipe;
use crate::tape::Var;
use crate::tensor::{Tensor, write_safetensors};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Which features of which images to write.
#[derive(Clone, Debug)]
pub struct FeatureJob {
    /// The safetensors file to write.
    pub out: PathBuf,
    /// Write the student's backbone features instead of the teacher's.
    pub student: bool,
    /// At most this many images, in the order of the set.
    pub limit: usize,
    /// Images per pass.
    pub batch: usize,
    /// Element type in the file.
    pub dtype: DType,
    /// The device to compute on, and the type of the operands of products there; the CPU, in f32, without one.
    pub device: Option<(Gpu, DType)>,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct FeatureReport {
    /// The name of every level in the file, with its stride and channels.
    pub levels: Vec<(String, usize, usize)>,
    /// Names of the images, in the order of the first axis.
    pub images: Vec<String>,
    /// Unreadable images that were left out, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Time in the network.
    pub time: Duration,
}

/// Writes the raw feature maps of the recipe's images, cropped at the centre and not mirrored, to one safetensors
/// file. Tensors are `[images, channels, height, width]`, named `level{log2 stride}`; metadata holds each one's
/// stride, channels and origin, and the images' names.
///
/// # Errors
/// Unreadable weights, no readable image, a file that cannot be written.
pub fn extract_features(
    recipe: &Recipe,
    job: &FeatureJob,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<FeatureReport> {
    recipe.validate()?;
    if job.batch == 0 || job.limit == 0 {
        return Err(
            Error::usage("features of 0 images").with_remedy("give --batch and --limit of at least 1")
        );
    }
    if !job.dtype.is_float() {
        return Err(Error::usage(format!("features cannot be written as {}", job.dtype))
            .with_remedy("choose f32, f16 or bf16"));
    }
    let source = open_images(&recipe.data)?;
    let network = Network::new(recipe, job)?;
    let (h, w) = (recipe.data.height, recipe.data.width);
    let total = source.len().min(job.limit);
    let mut parts: Vec<Vec<Tensor>> = Vec::new();
    let (mut images, mut skipped, mut time) = (Vec::new(), Vec::new(), Duration::ZERO);
    let (mut pending, mut positions) = (Vec::new(), Vec::new());
    for i in 0..total {
        match source.load(i, recipe.data.background).and_then(|im| center_crop(&im, h, w)) {
            Ok(im) => {
                pending.push(im);
                positions.push(i as u64);
                images.push(source.name(i));
            }
            Err(e) => skipped.push((source.name(i), e.to_string())),
        }
        if skipped.len() > recipe.data.max_bad {
            return Err(Error::data(format!(
                "{} images are unreadable; the first: {}",
                skipped.len(),
                skipped[0].1
            ))
            .with_remedy("repair or remove them, or raise data.max_bad"));
        }
        if pending.len() == job.batch || (i + 1 == total && !pending.is_empty()) {
            let start = Instant::now();
            parts.push(network.features(&to_tensor(&pending)?, &positions)?);
            time += start.elapsed();
            pending.clear();
            positions.clear();
            progress(i + 1, total);
        }
    }
    if parts.is_empty() {
        return Err(Error::data("no image could be read").with_remedy("check data.path"));
    }
    let levels = network.levels();
    let mut tensors = BTreeMap::new();
    for (l, (name, _, _)) in levels.iter().enumerate() {
        let maps: Vec<&Tensor> = parts.iter().map(|p| &p[l]).collect();
        tensors.insert(name.clone(), stack(&maps)?.nhwc_to_nchw()?.to_dtype(job.dtype)?);
    }
    write_safetensors(&job.out, &tensors, &network.metadata(recipe, &levels, &images))?;
    Ok(FeatureReport { levels, images, skipped, time })
}

/// Puts batches `[n, h, w, c]` behind one another.
fn stack(maps: &[&Tensor]) -> Result<Tensor> {
    let (_, h, w, c) = maps[0].shape().nhwc("stack")?;
    let mut all = Vec::new();
    for m in maps {
        all.extend_from_slice(m.f32s()?);
    }
    Tensor::from_vec([all.len() / (h * w * c), h, w, c], all)
}

/// What gives the maps.
enum Giver {
    Teacher(Box<Teacher>),
    TeacherThere(Box<DeviceTeacher>),
    Student(Box<Student>),
    /// The parameters are those on the device.
    StudentThere(Box<Student>, DeviceParams, Gpu, DType),
}

struct Network {
    giver: Giver,
    taps: Vec<TapInfo>,
    strides: Vec<(usize, usize)>,
}

impl Network {
    fn new(recipe: &Recipe, job: &FeatureJob) -> Result<Self> {
        let seed = recipe.seed;
        let hw = [recipe.data.height as usize, recipe.data.width as usize];
        if !job.student {
            let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, seed, |s| {
                fill_teacher(s, &recipe.teacher, seed).map(drop)
            })?;
            let taps = teacher.taps().to_vec();
            let strides = taps.iter().map(|t| (t.stride, t.channels)).collect();
            let giver = match &job.device {
                None => Giver::Teacher(Box::new(teacher)),
                Some((gpu, dtype)) => {
                    Giver::TeacherThere(Box::new(DeviceTeacher::new(&teacher, gpu, *dtype)?))
                }
            };
            return Ok(Network { giver, taps, strides });
        }
        // The teacher is needed for its taps' sizes only.
        let teacher = Teacher::new(&recipe.teacher, &recipe.diffusion, seed, |_| Ok(()))?;
        let taps = teacher.taps().to_vec();
        let student = Box::new(Student::new(&recipe.student, &taps, hw, |s| {
            fill_backbone(s, &recipe.student, seed).map(drop)
        })?);
        let b = &recipe.student.backbone;
        let strides = b.strides().into_iter().zip(b.channels()).collect();
        let giver = match &job.device {
            None => Giver::Student(student),
            Some((gpu, dtype)) => {
                let params = DeviceParams::new(student.params(), gpu, *dtype)?;
                Giver::StudentThere(student, params, gpu.clone(), *dtype)
            }
        };
        Ok(Network { giver, taps, strides })
    }

    /// The maps in f32 on the host.
    fn features(&self, images: &Tensor, positions: &[u64]) -> Result<Vec<Tensor>> {
        let tensors = |maps: Vec<Var>| maps.into_iter().map(Var::into_tensor).collect::<Vec<_>>();
        let there = match &self.giver {
            Giver::Teacher(teacher) => return teacher.features(images, 0, positions),
            Giver::Student(student) => {
                let mut ctx = Ctx::inference(student.params());
                return Ok(tensors(student.backbone_features(&mut ctx, images)?));
            }
            Giver::TeacherThere(teacher) => teacher.features(images, 0, positions)?,
            Giver::StudentThere(student, params, gpu, dtype) => {
                let mut ctx = Ctx::inference(&params.store);
                let x = normalize_imagenet(images)?.to_dtype(*dtype)?.to_gpu_tagged(gpu, "images")?;
                let x = ctx.constant(x);
                tensors(student.backbone().features(&mut ctx, &x)?)
            }
        };
        there.iter().map(|map| map.to_cpu()?.to_dtype(DType::F32)).collect()
    }

    /// `level{log2 stride}`; taps that share a stride get a running letter.
    fn levels(&self) -> Vec<(String, usize, usize)> {
        let base = |s: usize| format!("level{}", s.ilog2());
        let mut out: Vec<(String, usize, usize)> = Vec::new();
        for &(stride, channels) in &self.strides {
            let same = self.strides.iter().filter(|(s, _)| *s == stride).count();
            let nth = out.iter().filter(|(_, s, _)| *s == stride).count();
            let name = if same == 1 { base(stride) } else { format!("{}.{nth}", base(stride)) };
            out.push((name, stride, channels));
        }
        out
    }

    fn metadata(
        &self,
        recipe: &Recipe,
        levels: &[(String, usize, usize)],
        images: &[String],
    ) -> BTreeMap<String, String> {
        let mut m = BTreeMap::new();
        for (i, (name, stride, channels)) in levels.iter().enumerate() {
            m.insert(format!("{name}.stride"), stride.to_string());
            m.insert(format!("{name}.channels"), channels.to_string());
            let origin = match &self.giver {
                Giver::Teacher(_) | Giver::TeacherThere(_) => {
                    let tap = self.taps[i].tap;
                    format!("output_blocks.{} {:?}", tap.block, tap.position)
                }
                Giver::Student(_) | Giver::StudentThere(..) => format!("stage {}", i + 1),
            };
            m.insert(format!("{name}.from"), origin);
        }
        m.insert("layout".into(), "NCHW".into());
        m.insert("recipe_fingerprint".into(), recipe.fingerprint());
        m.insert("images".into(), serde_json::to_string(images).expect("a list of names"));
        m
    }
}
