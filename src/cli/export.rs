//! `dtk export`.

use crate::checkpoint::export::{ExportFormat, ExportJob, ExportLayout, export};
use crate::error::Result;
use clap::Args;
use std::path::PathBuf;

/// Write a backbone for another library, with its configuration and a model card.
#[derive(Args)]
pub struct Export {
    /// The backbone: a run's folder, its backbone.safetensors, or a checkpoint in any layout that dtk reads.
    #[arg(long, value_name = "FILE|DIR")]
    backbone: PathBuf,
    /// Whose model to write for: timm, torchvision, convnext (the official repository), detectron2, mmseg or dtk.
    #[arg(long, value_name = "LAYOUT")]
    layout: String,
    /// A folder, or a file that ends in .safetensors, .pth, .pt or .bin.
    #[arg(long, value_name = "DIR|FILE")]
    out: PathBuf,
    /// safetensors or pth; if left out, what the file's name says, else what the library reads.
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Replace files that exist.
    #[arg(long)]
    overwrite: bool,
    /// Read the written file again, and hold it to the list of keys that the library's model has.
    #[arg(long)]
    verify: bool,
}

impl Export {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let layout: ExportLayout = self.layout.parse().map_err(|e: crate::Error| e.with_key("--layout"))?;
        let format = self.format.as_deref().map(str::parse::<ExportFormat>).transpose();
        let job = ExportJob {
            backbone: self.backbone.clone(),
            layout,
            out: self.out.clone(),
            format: format.map_err(|e| e.with_key("--format"))?,
            overwrite: self.overwrite,
            verify: self.verify,
        };
        let report = export(&job)?;
        println!("{} for {layout}: {} tensors", report.model, report.tensors);
        if !report.left_out.is_empty() {
            println!("left out: {}", report.left_out.join(", "));
        }
        for note in &report.notes {
            println!("note: {note}");
        }
        if report.verified {
            println!("verified: every key of the model is there with its shape and values, and no other");
        }
        for file in &report.files {
            println!("wrote {}", file.display());
        }
        Ok(())
    }
}
