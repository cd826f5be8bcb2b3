//! What the assembler makes of every variant, held against a committed table.

use crate::cases::Name;
use crate::{blessed, gpu};
use dtk::gpu::nvrtc::Image;
use dtk::gpu::nvrtc::Nvrtc;
use dtk::gpu::{Arch, KernelCache, Resources, Source};
use dtk::ops::{Variant, kernel_variants};
use rayon::prelude::*;
use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

const FILE: &str = "tests/snapshots/kernels.tsv";
const ARCHS: [Arch; 2] = [Arch::Sm80, Arch::Sm90a];
const COLUMNS: &str = "source\tentry\tdefines\tarch\tregisters\tstatic shared\tbarriers";
/// How often a variant is compiled that does not come out as recorded.
const ATTEMPTS: usize = 5;

/// The line of a variant for an architecture.
fn line(variant: &Variant, arch: Arch, image: &Image) -> Result<String, String> {
    let name = format!("{}\t{}\t{}\t{arch}", variant.source, variant.entry, variant.defines);
    // A unit may hold other kernels: none of them may spill either.
    if let Some(r) = image.resources.iter().find(|r| r.spills() || r.stack_bytes > 0) {
        return Err(format!(
            "{name}: {} spills {} and {} bytes and has {} bytes of local memory",
            r.kernel, r.spill_store_bytes, r.spill_load_bytes, r.stack_bytes
        ));
    }
    let resources = image.resources.iter().find(|r| r.kernel == variant.entry);
    let resources = resources.ok_or_else(|| format!("{name}: the log does not tell of this kernel"))?;
    let Resources { registers, static_shared_bytes, barriers, .. } = resources;
    Ok(format!("{name}\t{registers}\t{static_shared_bytes}\t{barriers}"))
}

/// Compiles a variant. The assembler does not make the same code of the same input every time: what differs from the record
/// is given more chances.
fn compile(
    nvrtc: &Nvrtc,
    cache: &KernelCache,
    variant: &Variant,
    arch: Arch,
    recorded: &HashSet<&str>,
) -> Result<String, String> {
    let source = Source::named(variant.source).map_err(|e| e.to_string())?;
    let (image, _) = cache.image(source, &variant.defines, arch).map_err(|e| e.to_string())?;
    let first = line(variant, arch, &image);
    let known = |line: &Result<String, String>| line.as_ref().is_ok_and(|l| recorded.contains(l.as_str()));
    if known(&first) || recorded.is_empty() || blessed::blessing() {
        return first;
    }
    for _ in 1..ATTEMPTS {
        let image = nvrtc.compile(source, &variant.defines, arch).map_err(|e| e.to_string())?;
        let again = line(variant, arch, &image);
        if known(&again) {
            return again;
        }
    }
    first
}

/// Registers of a variant for sm_90a as they are recorded; `None` if they are not.
pub fn recorded_registers(kernel: &Name) -> Option<u32> {
    let start = format!("{}\t{}\t{}\t{}\t", kernel.source, kernel.entry, kernel.defines, Arch::Sm90a);
    let text = blessed::committed(FILE);
    let rest = text.lines().find_map(|l| l.strip_prefix(&start))?;
    rest.split('\t').next()?.parse().ok()
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
    let recorded = blessed::committed(FILE);
    let lines: HashSet<&str> = recorded.lines().collect();
    let made: Vec<Result<String, String>> =
        jobs.par_iter().map(|(v, arch)| compile(nvrtc, &cache, v, *arch, &lines)).collect();
    let wrong: Vec<&String> = made.iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(wrong.is_empty(), "{} of {} do not compile as they should:\n{wrong:#?}", wrong.len(), made.len());
    let mut lines: Vec<&String> = made.iter().flatten().collect();
    lines.sort();
    lines.windows(2).for_each(|w| assert_ne!(w[0], w[1], "listed twice"));
    let (major, minor) = nvrtc.version();
    let mut text = format!("# NVRTC {major}.{minor}; {} writes this file\n{COLUMNS}\n", blessed::COMMAND);
    for line in &lines {
        writeln!(text, "{line}").expect("a string grows");
    }
    println!("{} variants compiled for {ARCHS:?} without spills", variants.len());
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
