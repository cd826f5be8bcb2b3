//! `dtk teacher convert`.

use crate::base::DType;
use crate::cli::features::among;
use crate::distill::TeacherModel;
use crate::error::Result;
use crate::train::Conversion;
use clap::Args;
use std::path::PathBuf;

/// Convert a checkpoint.
#[derive(Args)]
pub struct Convert {
    /// The checkpoint: PyTorch (.pt, .pth) or safetensors.
    #[arg(value_name = "IN")]
    from: PathBuf,
    /// The safetensors file to write.
    #[arg(value_name = "OUT")]
    to: PathBuf,
    /// Element type in the file: f32, f16 or bf16; as it is if left out.
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<String>,
    /// The architecture (a name of `dtk models`) whose keys the checkpoint has to have; it is noted in the file.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

impl Convert {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let types = [DType::F32, DType::F16, DType::Bf16];
        let conversion = Conversion {
            from: self.from.clone(),
            to: self.to.clone(),
            dtype: self.dtype.as_ref().map(|d| among(d, "--dtype", &types)).transpose()?,
            model: self.model.clone().map(TeacherModel::Name),
        };
        let tensors = conversion.run()?;
        println!("wrote {tensors} tensors to {}", self.to.display());
        Ok(())
    }
}
