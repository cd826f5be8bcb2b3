//! Pictures of what teacher and student see.

use super::run_dir::RunDir;
use super::source::open_images;
use super::weights::{fill_backbone, fill_teacher, load_params};
use crate::checkpoint::{StateDict, Tolerance};
use crate::data::transform::{center_crop, to_tensor};
use crate::data::{ImageSource, Mask, SceneConfig, Scenes};
use crate::distill::{Student, Teacher};
use crate::error::{Error, Result};
use crate::nn::Ctx;
use crate::recipe::Recipe;
use crate::tape::Var;
use crate::tensor::Tensor;
use crate::viz::gallery::{Gallery, Picture};
use crate::viz::{KMeans, Mosaic, Pca, Segments, attention, colour};
use image::{Rgb, RgbImage};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the student's weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StudentFrom {
    /// Those that the recipe names, or random ones: there is no trained regressor.
    Recipe,
    /// A checkpoint's folder: backbone and regressor.
    Checkpoint(PathBuf),
}

impl StudentFrom {
    /// What a run folder offers: its last checkpoint, else its `backbone.safetensors`, which `recipe` is made to name.
    ///
    /// # Errors
    /// The run has neither.
    pub fn run(dir: &Path, recipe: &mut Recipe) -> Result<Self> {
        let run = RunDir::new(dir);
        if let Some((_, path)) = run.checkpoints()?.pop() {
            return Ok(StudentFrom::Checkpoint(path));
        }
        let backbone = run.file("backbone.safetensors");
        if !backbone.is_file() {
            return Err(Error::usage("the run has neither a checkpoint nor a backbone")
                .with_file(dir)
                .with_remedy(
                    "give the folder of a run that has saved something, or --recipe and --backbone",
                ));
        }
        recipe.student.weights = Some(backbone.to_string_lossy().into_owned());
        Ok(StudentFrom::Recipe)
    }
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct View {
    /// The folder of the pictures.
    pub out: PathBuf,
    /// Number of images: the first ones of the recipe's set, or held-out scenes where it has no path.
    pub images: usize,
    /// Strides of the levels; all if empty.
    pub levels: Vec<usize>,
    /// Times at which the teacher looks; the recipe's is always among them.
    pub times: Vec<usize>,
    /// Width of a tile, in pixels.
    pub tile: u32,
}

impl Default for View {
    fn default() -> Self {
        View {
            out: crate::viz::gallery::FOLDER.into(),
            images: 6,
            levels: Vec::new(),
            times: Vec::new(),
            tile: 80,
        }
    }
}

/// One level of a set of images. All maps `[N, h, w, C]`.
struct Level {
    stride: usize,
    /// The teacher's raw maps at every time, ascending.
    teacher: Vec<(usize, Tensor)>,
    /// The regressor's map, if it is trained.
    student: Option<Tensor>,
    backbone: Tensor,
}

/// The images, and what teacher and student make of them.
pub struct Looks {
    recipe: Recipe,
    view: View,
    images: Vec<RgbImage>,
    masks: Vec<Option<Mask>>,
    levels: Vec<Level>,
}

/// The images to look at: of the recipe, but held-out ones where it renders them.
fn open_held_out(recipe: &Recipe, count: usize) -> Result<Arc<dyn ImageSource>> {
    let data = &recipe.data;
    match &data.path {
        Some(_) => open_images(data),
        None => Ok(Arc::new(Scenes::new(SceneConfig {
            count,
            first: Scenes::TEST,
            height: data.height,
            width: data.width,
        })?)),
    }
}

/// Runs `features` on one image after another and puts the maps behind one another, level by level.
fn one_by_one(x: &[Tensor], features: impl Fn(usize, &Tensor) -> Result<Vec<Tensor>>) -> Result<Vec<Tensor>> {
    let per_image: Vec<Vec<Tensor>> =
        x.iter().enumerate().map(|(i, x)| features(i, x)).collect::<Result<_>>()?;
    let levels = per_image.first().map_or(0, Vec::len);
    let stacked = |l: usize| -> Result<Tensor> {
        let (_, h, w, c) = per_image[0][l].shape().nhwc("pictures")?;
        let mut all = Vec::new();
        for maps in &per_image {
            all.extend_from_slice(maps[l].f32s()?);
        }
        Tensor::from_vec([per_image.len(), h, w, c], all)
    };
    (0..levels).map(stacked).collect()
}

impl Looks {
    /// Loads images and networks, and computes all maps. `progress` is told what is being done.
    ///
    /// # Errors
    /// An invalid recipe, unreadable images or weights, a level or time that does not exist.
    pub fn new(
        recipe: &Recipe,
        from: &StudentFrom,
        view: View,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        recipe.validate()?;
        if view.images == 0 || view.tile == 0 || view.tile > 4096 {
            return Err(Error::usage("pictures of 0 images, or of no size")
                .with_remedy("give at least 1 image, and tiles of 1 to 4096 pixels"));
        }
        let source = open_held_out(recipe, view.images)?;
        let (h, w) = (recipe.data.height, recipe.data.width);
        let (mut images, mut masks) = (Vec::new(), Vec::new());
        for i in 0..source.len().min(view.images) {
            let image = source.load(i, recipe.data.background)?;
            // A mask has the size of its image; where that is cropped, the mask would no longer lie over it.
            let mask = if image.dimensions() == (w, h) { source.mask(i)? } else { None };
            images.push(center_crop(&image, h, w)?);
            masks.push(mask);
        }
        let x: Vec<Tensor> =
            images.iter().map(|im| to_tensor(std::slice::from_ref(im))).collect::<Result<_>>()?;
        let mut times = view.times.clone();
        times.push(recipe.diffusion.t);
        times.sort_unstable();
        times.dedup();
        let mut teacher = Vec::new();
        let mut taps = Vec::new();
        for &t in &times {
            progress(&format!("the teacher at t = {t}"));
            let diffusion = crate::diffusion::DiffusionConfig { t, ..recipe.diffusion.clone() };
            let network = Teacher::new(&recipe.teacher, &diffusion, recipe.seed, |s| {
                fill_teacher(s, &recipe.teacher, recipe.seed).map(drop)
            })?;
            taps = network.taps().to_vec();
            teacher.push((t, one_by_one(&x, |i, x| network.features(x, 0, &[i as u64]))?));
        }
        progress("the student");
        let student = Student::new(&recipe.student, &taps, [h as usize, w as usize], |s| match from {
            StudentFrom::Recipe => fill_backbone(s, &recipe.student, recipe.seed).map(drop),
            StudentFrom::Checkpoint(dir) => {
                let file = StateDict::open(dir.join("student.safetensors"))?;
                load_params(s, "", &file, Tolerance::default()).map(drop)
            }
        })?;
        let tensors = |maps: Vec<Var>| maps.into_iter().map(Var::into_tensor).collect::<Vec<_>>();
        let run = |regressor: bool| {
            one_by_one(&x, |_, x| {
                let mut ctx = Ctx::inference(student.params());
                let maps = if regressor {
                    student.forward(&mut ctx, x)
                } else {
                    student.backbone_features(&mut ctx, x)
                };
                maps.map(tensors)
            })
        };
        let backbone = run(false)?;
        let regressed = match from {
            StudentFrom::Recipe => None,
            StudentFrom::Checkpoint(_) => Some(run(true)?),
        };
        let mut levels = Vec::new();
        for (i, &tap) in student.pairs().iter().enumerate() {
            let size = |t: &Tensor| t.shape().nhwc("pictures").map(|(_, h, w, _)| [h, w]);
            let wanted = size(&teacher[0].1[tap])?;
            let own = backbone.iter().find(|b| size(b).is_ok_and(|s| s == wanted));
            let own = own
                .ok_or_else(|| Error::shape("pictures", "no level of the backbone has the teacher's size"))?;
            levels.push(Level {
                stride: taps[tap].stride,
                teacher: teacher.iter().map(|(t, maps)| (*t, maps[tap].clone())).collect(),
                student: regressed.as_ref().map(|maps| maps[i].clone()),
                backbone: own.clone(),
            });
        }
        levels.sort_by_key(|l| l.stride);
        let there: Vec<usize> = levels.iter().map(|l| l.stride).collect();
        if let Some(absent) = view.levels.iter().find(|l| !there.contains(l)) {
            return Err(Error::usage(format!("there is no level of stride {absent}"))
                .with_key("--levels")
                .with_remedy(format!("choose from {there:?}")));
        }
        levels.retain(|l| view.levels.is_empty() || view.levels.contains(&l.stride));
        Ok(Looks { recipe: recipe.clone(), view, images, masks, levels })
    }

    /// The teacher's raw map at the recipe's time.
    fn main<'a>(&self, level: &'a Level) -> &'a Tensor {
        let at = level.teacher.iter().find(|(t, _)| *t == self.recipe.diffusion.t);
        &at.unwrap_or(&level.teacher[0]).1
    }

    /// Writes feature maps as colours and attention maps: teacher beside student level by level, the backbone, and the
    /// teacher at several times. Gives the names of the files.
    ///
    /// # Errors
    /// Maps that are not finite, or a file that cannot be written.
    pub fn features(&self) -> Result<Vec<String>> {
        let target = |map: &Tensor| self.recipe.loss.target(map);
        let t = self.recipe.diffusion.t;
        let mut written = Vec::new();
        let (mut colours, mut heats, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for level in &self.levels {
            let stride = level.stride;
            let raw = self.main(level);
            let whitened = target(raw)?;
            let basis = Pca::fit(&[&whitened])?;
            colours.push((format!("teacher {stride}"), basis.rgb(&whitened)?));
            heats.push((format!("teacher {stride}"), attention(raw, self.recipe.loss.p)?));
            if let Some(student) = &level.student {
                colours.push((format!("student {stride}"), basis.ranged(student)?.rgb(student)?));
                heats.push((format!("student {stride}"), attention(student, self.recipe.loss.p)?));
            }
            let basis = Pca::fit(&[&level.backbone])?;
            own.push((format!("stride {stride}"), basis.rgb(&level.backbone)?));
        }
        let beside = if self.levels.iter().any(|l| l.student.is_some()) {
            " The student's are what its regressor makes of its own, in the same directions, stretched to their own range: \
             the more alike the two, the better it has learnt."
        } else {
            ""
        };
        written.push(self.write(
            "features",
            "What teacher and student see",
            &format!(
                "Feature maps at t = {t}, finest level first; the number is the stride. The three principal components of \
                 each level's teacher maps are red, green and blue, with one basis for all images.{beside}"
            ),
            colours,
        )?);
        written.push(self.write(
            "attention",
            "Where they look",
            &format!(
                "Attention maps at t = {t}: the sum of |feature|^{} over channels, bright where it is large.",
                self.recipe.loss.p
            ),
            heats,
        )?);
        written.push(self.write(
            "backbone",
            "The backbone's own features",
            "What is used later: the maps of the backbone alone, each level with a basis of its own.",
            own,
        )?);
        for level in self.levels.iter().filter(|l| l.teacher.len() > 1) {
            let whitened: Vec<Tensor> =
                level.teacher.iter().map(|(_, m)| target(m)).collect::<Result<_>>()?;
            let basis = Pca::fit(&whitened.iter().collect::<Vec<_>>())?;
            let named = level.teacher.iter().zip(&whitened);
            let columns = named
                .map(|((t, _), m)| Ok((format!("t = {t}"), basis.rgb(m)?)))
                .collect::<Result<Vec<_>>>()?;
            written.push(self.write(
                &format!("times_stride{}", level.stride),
                &format!("The teacher at several times, stride {}", level.stride),
                "More noise leaves the coarse outlines. One basis for all times.",
                columns,
            )?);
        }
        Ok(written)
    }

    /// Writes segments: the pixels of each level, grouped by features with one set of groups for all images, so that a colour
    /// means the same in all of them. Gives the names of the files.
    ///
    /// # Errors
    /// More groups than pixels, maps that are not finite, or a file that cannot be written.
    pub fn segments(&self, kmeans: &KMeans) -> Result<Vec<String>> {
        let mut columns = Vec::new();
        if self.masks.iter().all(Option::is_some) {
            let truth = |m: &Mask| painted(m.ids(), m.width(), m.height());
            columns.push(("truth".to_string(), self.masks.iter().flatten().map(truth).collect()));
        }
        let mut own = Vec::new();
        for level in &self.levels {
            let stride = level.stride;
            let whitened = self.recipe.loss.target(self.main(level))?;
            let groups = kmeans.fit(&[&whitened])?;
            columns.push((format!("teacher {stride}"), coloured(&groups, &whitened)?));
            if let Some(student) = &level.student {
                columns.push((format!("student {stride}"), coloured(&groups, student)?));
            }
            let groups = kmeans.fit(&[&level.backbone])?;
            own.push((format!("stride {stride}"), coloured(&groups, &level.backbone)?));
        }
        let caption = format!(
            "k-means with k = {} on the features of all images together: one colour is one group in all of them. Nobody \
             told the networks what belongs together.",
            kmeans.k
        );
        Ok(vec![
            self.write("kmeans", "Segments without labels", &caption, columns)?,
            self.write("kmeans_backbone", "Segments of the backbone", &caption, own)?,
        ])
    }

    /// Writes a mosaic of the images and these columns; gives the file's name.
    fn write(
        &self,
        name: &str,
        title: &str,
        caption: &str,
        columns: Vec<(String, Vec<RgbImage>)>,
    ) -> Result<String> {
        let height = (u64::from(self.view.tile) * u64::from(self.recipe.data.height)
            / u64::from(self.recipe.data.width))
        .max(1);
        let mut names = vec!["image".to_string()];
        names.extend(columns.iter().map(|(n, _)| n.clone()));
        let row = |i: usize| {
            std::iter::once(&self.images[i])
                .chain(columns.iter().map(|(_, tiles)| &tiles[i]))
                .cloned()
                .collect()
        };
        let mosaic = Mosaic {
            columns: names.clone(),
            rows: (0..self.images.len()).map(row).collect(),
            tile: [self.view.tile, height as u32],
        };
        let file = format!("{name}.png");
        let picture = Picture {
            file: file.clone(),
            title: title.into(),
            caption: caption.into(),
            columns: names,
            band: Mosaic::BAND,
        };
        Gallery::add(&self.view.out, picture, &mosaic.render()?)?;
        Ok(file)
    }
}

/// Groups as colours.
fn coloured(groups: &Segments, maps: &Tensor) -> Result<Vec<RgbImage>> {
    let (_, h, w, _) = maps.shape().nhwc("segments")?;
    Ok(groups.ids(maps)?.iter().map(|ids| painted(ids, w as u32, h as u32)).collect())
}

/// Classes or groups as colours.
fn painted(ids: &[u16], width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb(colour::class(ids[(y * width + x) as usize].into())))
}
