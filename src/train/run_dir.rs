//! The folder of a run.
//!
//! ```text
//! out/
//!   recipe.toml            the resolved recipe
//!   environment.json       program version, processor, threads
//!   metrics.jsonl          one line per logged step
//!   events.out.tfevents.*  the same for TensorBoard
//!   checkpoints/step_00000100/{student,optimizer,ema}.safetensors, state.json
//!   backbone.safetensors   the result, under timm's names
//!   viz/*.png              pictures, where some were drawn
//!   report.html            all of it on one page
//! ```
//! A teacher's training has `network.safetensors` in its checkpoints, and beside them:
//! ```text
//!   samples/step_00001000.png  pictures that the network draws
//!   teacher.safetensors        the result, under guided-diffusion's names
//! ```

use super::Resume;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::tensor::{SafetensorsFile, Tensor, write_atomically};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A run's folder.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
}

/// What a checkpoint knows beside its tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Steps done.
    pub step: u64,
    /// The recipe's fingerprint; another recipe cannot resume.
    pub recipe: String,
    /// The images' fingerprint; other images cannot resume.
    pub data: String,
    /// Version of dtk that wrote it.
    pub version: String,
}

const STATE: &str = "state.json";

impl Checkpoint {
    /// Refuses a checkpoint of another run than one with these fingerprints (recipe, images) and this length. `instead` ends
    /// the remedy where there is another way.
    pub(super) fn expect(
        &self,
        path: &Path,
        [recipe, data]: &[String; 2],
        total_steps: u64,
        instead: &str,
    ) -> Result<()> {
        let refuse = |what: &str, remedy: &str| {
            let text = format!("the checkpoint is of {what}");
            Err(Error::checkpoint(text).with_file(path).with_remedy(format!("{remedy}{instead}")))
        };
        if self.recipe != *recipe {
            return refuse("another recipe", "resume with the recipe.toml of its run folder");
        }
        if self.data != *data {
            return refuse("a run on other images", "give the same images");
        }
        if self.step > total_steps {
            return refuse("a longer run", "give the same length");
        }
        Ok(())
    }
}

/// Every tensor of a safetensors file.
pub(super) fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let f = SafetensorsFile::open(path)?;
    f.names().map(|n| Ok((n.to_string(), f.get(n)?))).collect()
}

impl RunDir {
    /// The run in `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        RunDir { root: root.into() }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Whether a run has begun here.
    pub fn has_run(&self) -> bool {
        self.file("recipe.toml").exists() || self.file("checkpoints").exists()
    }

    /// Whether `path` is or lies in the folder; false if either does not exist.
    pub fn contains(&self, path: &Path) -> bool {
        let real = |p: &Path| p.canonicalize();
        matches!((real(path), real(&self.root)), (Ok(p), Ok(root)) if p.starts_with(&root))
    }

    /// The checkpoint that a run begins from; `None` for the beginning.
    ///
    /// # Errors
    /// The folder holds a run that is neither to be continued nor to be removed, or cannot be listed.
    pub(super) fn start(&self, resume: &Resume) -> Result<Option<PathBuf>> {
        Ok(match resume {
            Resume::From(path) if self.has_run() && !self.contains(path) => {
                return Err(Error::usage("there is already another run in this folder")
                    .with_file(self.path())
                    .with_remedy("give the folder of the checkpoint's own run, or choose another --out"));
            }
            Resume::No if self.has_run() => {
                return Err(Error::usage("there is already a run in this folder")
                    .with_file(self.path())
                    .with_remedy(
                        "continue it with --resume auto, start again with --overwrite, or choose another --out",
                    ));
            }
            Resume::No | Resume::Overwrite => None,
            Resume::Auto => self.checkpoints()?.pop().map(|(_, path)| path),
            Resume::From(path) => Some(path.clone()),
        })
    }

    /// Creates the folder, and writes the resolved recipe and what else tells how it is run: where, and the fingerprints of
    /// images and recipe.
    ///
    /// # Errors
    /// Something cannot be written.
    pub(super) fn begin(
        &self,
        recipe: &str,
        device: Option<&Gpu>,
        images: &str,
        fingerprint: &str,
    ) -> Result<()> {
        self.create()?;
        write_atomically(self.file("recipe.toml"), |f| f.write_all(recipe.as_bytes()))?;
        let environment = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
            "threads": crate::cpu::threads(),
            "device": device.map_or("cpu".to_string(), |gpu| format!("{gpu:?}")),
            "images": images,
            "recipe": fingerprint,
        });
        let text = format!("{environment:#}\n");
        write_atomically(self.file("environment.json"), |f| f.write_all(text.as_bytes()))
    }

    /// Creates the folder.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn create(&self) -> Result<()> {
        let dir = self.file("checkpoints");
        std::fs::create_dir_all(&dir).map_err(|e| {
            Error::io(&dir, "cannot create the run folder", e).with_remedy("choose another folder with --out")
        })?;
        // What a killed run was writing is incomplete and of no use.
        for path in std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(".step_") && name.ends_with(".tmp") {
                std::fs::remove_dir_all(&path)
                    .map_err(|e| Error::io(&path, "cannot remove an incomplete checkpoint", e))?;
            }
        }
        Ok(())
    }

    /// Removes what an earlier run left: its checkpoints, metrics, events and results, and nothing else.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn clear(&self) -> Result<()> {
        let failed = |p: &Path, e| Error::io(p, "cannot remove what an earlier run left", e);
        let Ok(entries) = std::fs::read_dir(&self.root) else { return Ok(()) };
        for path in entries.flatten().map(|e| e.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let ours = [
                "recipe.toml",
                "environment.json",
                "metrics.jsonl",
                "eval.json",
                "report.html",
                "backbone.safetensors",
                "backbone_ema.safetensors",
                "teacher.safetensors",
            ];
            if ours.contains(&name.as_str()) || name.starts_with("events.out.tfevents.") {
                std::fs::remove_file(&path).map_err(|e| failed(&path, e))?;
            }
        }
        for dir in ["checkpoints", "samples"].map(|name| self.file(name)).iter().filter(|d| d.exists()) {
            std::fs::remove_dir_all(dir).map_err(|e| failed(dir, e))?;
        }
        Ok(())
    }

    /// Complete checkpoints, oldest first.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>> {
        let dir = self.file("checkpoints");
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(&dir).map_err(|e| Error::io(&dir, "cannot list", e))?;
        let mut found: Vec<(u64, PathBuf)> = entries
            .flatten()
            .filter_map(|e| {
                let step = e.file_name().to_str()?.strip_prefix("step_")?.parse().ok()?;
                e.path().join(STATE).is_file().then(|| (step, e.path()))
            })
            .collect();
        found.sort();
        Ok(found)
    }

    /// Writes a checkpoint: `fill` puts its files into a temporary folder, which is renamed once everything in it is
    /// on disk. Then all but the last `keep` are removed.
    ///
    /// # Errors
    /// Something cannot be written; the earlier checkpoints are untouched.
    pub fn save(
        &self,
        state: &Checkpoint,
        keep: usize,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let dir = self.file("checkpoints");
        let (temp, done) =
            (dir.join(format!(".step_{:08}.tmp", state.step)), dir.join(format!("step_{:08}", state.step)));
        let failed = |p: &Path, e| {
            Error::io(p, "cannot write the checkpoint", e)
                .with_remedy("check the free space of the run folder's disk")
        };
        if temp.exists() {
            std::fs::remove_dir_all(&temp).map_err(|e| failed(&temp, e))?;
        }
        std::fs::create_dir_all(&temp).map_err(|e| failed(&temp, e))?;
        let write = || {
            fill(&temp)?;
            let text = serde_json::to_string_pretty(state).expect("a checkpoint's state is plain data");
            write_atomically(temp.join(STATE), |f| f.write_all(text.as_bytes()))
        };
        if let Err(e) = write() {
            std::fs::remove_dir_all(&temp).ok();
            return Err(e);
        }
        if done.exists() && Self::read_state(&done).is_ok_and(|old| old == *state) {
            // The same step of the same run again, after a resume: its bytes are the same. What is there stays, so that
            // at no time there is no complete checkpoint.
            std::fs::remove_dir_all(&temp).map_err(|e| failed(&temp, e))?;
            return Ok(done);
        }
        if done.exists() {
            std::fs::remove_dir_all(&done).map_err(|e| failed(&done, e))?;
        }
        std::fs::rename(&temp, &done).map_err(|e| failed(&done, e))?;
        let all = self.checkpoints()?;
        for (_, old) in &all[..all.len().saturating_sub(keep.max(1))] {
            std::fs::remove_dir_all(old).map_err(|e| Error::io(old, "cannot remove an old checkpoint", e))?;
        }
        Ok(done)
    }

    /// The state in a checkpoint's folder.
    ///
    /// # Errors
    /// The file is absent or malformed.
    pub fn read_state(checkpoint: &Path) -> Result<Checkpoint> {
        let path = checkpoint.join(STATE);
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Error::io(&path, "cannot read the checkpoint", e).with_remedy("give the folder of a checkpoint")
        })?;
        serde_json::from_str(&text).map_err(|e| {
            Error::format(&path, "is not a checkpoint's state")
                .with_source(e)
                .with_remedy("resume from an older one")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64) -> Checkpoint {
        Checkpoint { step, recipe: "r".into(), data: "d".into(), version: "v".into() }
    }

    #[test]
    fn keeps_the_last_and_never_a_half() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path().join("run"));
        assert!(!run.has_run());
        run.create().unwrap();
        for step in [1, 2, 3] {
            run.save(&state(step), 2, |p| {
                std::fs::write(p.join("x"), "y").unwrap();
                Ok(())
            })
            .unwrap();
        }
        let steps = |r: &RunDir| r.checkpoints().unwrap().into_iter().map(|(s, _)| s).collect::<Vec<_>>();
        assert_eq!(steps(&run), [2, 3]);
        let again = run.save(&state(3), 2, |p| {
            std::fs::write(p.join("x"), "z").unwrap();
            Ok(())
        });
        assert_eq!(
            std::fs::read(again.unwrap().join("x")).unwrap(),
            b"y",
            "an equal checkpoint stays as it is"
        );
        std::fs::create_dir(run.file("checkpoints/.step_00000009.tmp")).unwrap();
        run.create().unwrap();
        assert!(!run.file("checkpoints/.step_00000009.tmp").exists());
        let e = run.save(&state(4), 2, |_| Err(Error::data("disk full"))).unwrap_err();
        assert!(e.is_data());
        assert_eq!(steps(&run), [2, 3]);
        assert_eq!(RunDir::read_state(&run.checkpoints().unwrap()[1].1).unwrap(), state(3));
        std::fs::write(run.file("mine.txt"), "kept").unwrap();
        std::fs::write(run.file("metrics.jsonl"), "").unwrap();
        run.clear().unwrap();
        assert!(!run.has_run() && run.file("mine.txt").exists() && !run.file("metrics.jsonl").exists());
    }

    #[test]
    fn a_damaged_state_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(RunDir::read_state(dir.path()).unwrap_err().is_io());
        std::fs::write(dir.path().join(STATE), "{\"step\": 1").unwrap();
        assert!(RunDir::read_state(dir.path()).unwrap_err().is_format());
    }
}
