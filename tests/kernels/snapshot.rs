//! What the assembler makes of every variant, held against a committed table.

use crate::{blessed, cubin, gpu};
use dtk::gpu::nvrtc::Nvrtc;
use dtk::gpu::{Arch, KernelCache, Resources, Source};
use dtk::ops::{Variant, kernel_variants};
use rayon::prelude::*;
use std::fmt::Write;
use std::path::Path;

const FILE: &str = "tests/snapshots/kernels.tsv";
const ARCHS: [Arch; 2] = [Arch::Sm80, Arch::Sm90a];
const COLUMNS: &str = "source\tentry\tdefines\tarch\tregisters\tstatic shared\tbarriers\tinstructions";

/// A variant compiled for an architecture.
struct Row {
    name: String,
    resources: Resources,
    instructions: u64,
}

fn compile(cache: &KernelCache, variant: &Variant, arch: Arch) -> Result<Row, String> {
    let name = format!("{}\t{}\t{}\t{arch}", variant.source, variant.entry, variant.defines);
    let source = Source::named(variant.source).map_err(|e| e.to_string())?;
    let (image, _) = cache.image(source, &variant.defines, arch).map_err(|e| e.to_string())?;
    // A unit may hold other kernels: none of them may spill either.
    if let Some(r) = image.resources.iter().find(|r| r.spills() || r.stack_bytes > 0) {
        return Err(format!(
            "{name}: {} spills {} and {} bytes and has {} bytes of local memory",
            r.kernel, r.spill_store_bytes, r.spill_load_bytes, r.stack_bytes
        ));
    }
    let resources = image.resources.iter().find(|r| r.kernel == variant.entry);
    let resources = resources.ok_or_else(|| format!("{name}: the log does not tell of this kernel"))?.clone();
    let instructions = cubin::instructions(&image.cubin, variant.entry)
        .ok_or_else(|| format!("{name}: the machine code of this kernel was not found"))?;
    Ok(Row { name, resources, instructions })
}

impl Row {
    fn line(&self) -> String {
        let Resources { registers, static_shared_bytes, barriers, .. } = self.resources;
        format!("{}\t{registers}\t{static_shared_bytes}\t{barriers}\t{}", self.name, self.instructions)
    }
}

/// The NVRTC of this machine, which has to be there where the simulator has to be.
fn nvrtc() -> Option<&'static Nvrtc> {
    match Nvrtc::find() {
        Ok(nvrtc) => Some(nvrtc),
        Err(e) => {
            assert!(
                std::env::var("DTK_REQUIRE_SIMULATOR").is_err(),
                "DTK_REQUIRE_SIMULATOR is set, but: {e}"
            );
            println!("skipped: {e}");
            None
        }
    }
}

#[test]
fn every_variant_compiles_without_spills_as_recorded() {
    let Some(nvrtc) = nvrtc() else { return };
    let variants = kernel_variants();
    assert!(!variants.is_empty(), "there are kernels");
    let jobs: Vec<(&Variant, Arch)> = variants.iter().flat_map(|v| ARCHS.map(|a| (v, a))).collect();
    // Keyed by content: a repeated run compiles what has changed only.
    let cache = KernelCache::at(Some(Path::new(gpu::CACHE)));
    let made: Vec<Result<Row, String>> = jobs.par_iter().map(|(v, arch)| compile(&cache, v, *arch)).collect();
    let wrong: Vec<&String> = made.iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(wrong.is_empty(), "{} of {} do not compile as they should:\n{wrong:#?}", wrong.len(), made.len());
    let mut lines: Vec<String> = made.iter().flatten().map(Row::line).collect();
    lines.sort();
    lines.windows(2).for_each(|w| assert_ne!(w[0], w[1], "listed twice"));
    let (major, minor) = nvrtc.version();
    let mut text = format!("# NVRTC {major}.{minor}; {} writes this file\n{COLUMNS}\n", blessed::COMMAND);
    for line in &lines {
        writeln!(text, "{line}").expect("a string grows");
    }
    println!("{} variants compiled for {ARCHS:?} without spills", variants.len());
    let recorded = blessed::committed(FILE);
    let version = |text: &str| text.lines().next().and_then(|l| l.split(';').next()).map(str::to_string);
    if !blessed::blessing() && !recorded.is_empty() && version(&recorded) != version(&text) {
        println!(
            "skipped: {FILE} is of {:?}: registers of another compiler are not compared",
            version(&recorded)
        );
        return;
    }
    blessed::expect(FILE, &text);
}
