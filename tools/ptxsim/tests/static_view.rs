//! The static view of real kernels.
#![cfg(feature = "nvrtc")]

mod common;

use ptxsim::nvrtc::Options;
use ptxsim::static_view::{Class, Nvdisasm, Profile};

/// Compiles a kernel of `tests/kernels` and takes its profile; `None` where a tool is missing.
fn profile(file: &str, kernel: &str, arch: &str) -> Option<Profile> {
    let nvrtc = common::nvrtc()?;
    let nvdisasm = common::required(Nvdisasm::find())?;
    let made = nvrtc.compile(&common::kernel_source(file), file, &Options::new(arch)).unwrap();
    let all = nvdisasm.kernels(&made.cubin.unwrap()).unwrap();
    let sass = all.iter().find(|s| s.kernel == kernel).unwrap();
    let profile = Profile::of(sass, &made.resources);
    println!("{profile}");
    Some(profile)
}

#[test]
fn a_tensor_core_loop_is_the_hottest() {
    for arch in ["sm_80", "sm_90a"] {
        let Some(p) = profile("gemm_bf16.cu", "gemm_bf16", arch) else { return };
        let hot = p.hottest_loop.unwrap();
        // A warp's step along K: 2 x 4 x 4 products, 2 x (4 + 2) ldmatrix.x4; a thread copies 2 chunks of A and 2 of B.
        assert_eq!(hot.mix.count(Class::Hmma), 32, "{arch}");
        assert_eq!(hot.mix.count(Class::Ldsm), 12, "{arch}");
        assert_eq!(hot.mix.count(Class::Ldgsts), 4, "{arch}");
        assert_eq!(hot.mix.opcodes.get("BAR"), Some(&1), "{arch}");
        assert_eq!(p.arch, arch);
        let resources = p.resources.unwrap();
        assert_eq!((resources.spill_store_bytes, resources.spill_load_bytes), (0, 0), "{arch}");
        assert_eq!(p.spill_instructions, 0);
    }
}

#[test]
fn a_loop_is_told_by_its_lines() {
    let Some(p) = profile("sgemm.cu", "sgemm", "sm_90a") else { return };
    let hot = p.hottest_loop.unwrap();
    // 8 steps of 8 x 8.
    assert_eq!(hot.mix.count(Class::Ffma), 512);
    // Four 16-byte reads a step.
    assert_eq!(hot.mix.count(Class::Lds), 32);
    let source = common::kernel_source("sgemm.cu");
    let product = source.lines().position(|l| l.contains("acc[i][j] += av[i] * bv[j]")).unwrap() as u32 + 1;
    assert_eq!((hot.lines[0].line, hot.lines[0].instructions >= 512), (product, true), "{:?}", hot.lines);
    assert!(hot.lines[0].file.ends_with("sgemm.cu"), "{:?}", hot.lines);
    assert_eq!(p.resources.unwrap().shared_bytes, 16640);
}

#[test]
fn the_deepest_loop_is_the_hottest() {
    let Some(p) = profile("conv3x3.cu", "conv3x3", "sm_80") else { return };
    let hot = p.hottest_loop.unwrap();
    assert_eq!(hot.depth, 2);
    // One input channel: 9 taps of 8 x 4.
    assert_eq!(hot.mix.count(Class::Ffma), 288);
    assert!(p.loops >= 3, "{} loops", p.loops);
    let json = serde_json::to_value(&hot).unwrap();
    assert_eq!(json["classes"]["ffma"], 288);
}
