//! `dtk models`.

use crate::error::{Error, Result};
use crate::models::zoo::{self, Kind};
use crate::nn::ParamStore;
use clap::Args;

/// List the networks dtk knows.
#[derive(Args)]
pub struct Models {
    /// One network in detail.
    name: Option<String>,
    /// With a name: every parameter with its shape in files.
    #[arg(long, requires = "name")]
    keys: bool,
}

impl Models {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let Some(name) = &self.name else {
            println!("{:18} {:8} {:>12}  {:18} stride x channels", "name", "kind", "parameters", "recipe");
            for e in zoo::ZOO {
                let levels: Vec<String> =
                    e.levels.iter().map(|l| format!("{}x{}", l.stride, l.channels)).collect();
                let parameters = super::count(e.parameters as u64);
                println!(
                    "{:18} {:8} {parameters:>12}  {:18} {}",
                    e.name,
                    kind(e.kind),
                    e.recipe,
                    levels.join(" ")
                );
            }
            return Ok(());
        };
        let e = zoo::find(name).ok_or_else(|| {
            let names: Vec<&str> = zoo::ZOO.iter().map(|e| e.name).collect();
            Error::usage(format!("unknown network `{name}`"))
                .with_remedy(format!("choose one of {}", names.join(", ")))
        })?;
        println!("{} ({})", e.name, kind(e.kind));
        println!("parameters      {}", e.parameters);
        println!("default recipe  {}", e.recipe);
        println!("public weights  {}", e.weights);
        println!("licence         {}", e.licence);
        for l in &e.levels {
            println!("stride {:2}       {} channels, from {}", l.stride, l.channels, l.from);
        }
        if self.keys {
            let mut store = ParamStore::new();
            e.register(&mut store.builder())?;
            for (_, p) in store.iter() {
                println!("{} {}", p.name(), p.file_shape());
            }
        }
        Ok(())
    }
}

fn kind(k: Kind) -> &'static str {
    match k {
        Kind::Teacher => "teacher",
        Kind::Student => "student",
    }
}
