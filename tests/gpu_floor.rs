//! The CUDA floor on the simulated device, or on a card: kernels are compiled, kept, loaded, launched, and fail as they should.

#[path = "common/gpu.rs"]
mod gpu;

use bytemuck::{Pod, Zeroable};
use dtk::gpu::nvrtc::Nvrtc;
use dtk::gpu::{Arch, Defines, Gpu, Grid, Kernel, KernelCache, Options, Origin, Source, Unit, warm};
use std::path::Path;
use std::process::Command;

/// What [`SCALE`] takes.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    y: u64,
    n: u32,
    factor: f32,
}

const SCALE: &str = r#"
#include "tile/params.cuh"
static_assert(sizeof(Params) == PARAMS_BYTES, "host and device agree");
extern "C" __global__ void scale_fwd(const __grid_constant__ Params p) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.n) p.y[i] = p.factor * p.x[i];
}
extern "C" __global__ void scale_unbounded(const __grid_constant__ Params p) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    p.y[i] = p.factor * p.x[i];
}
extern "C" __global__ void scale_shared(const __grid_constant__ Params p) {
    extern __shared__ float tile[];
    tile[threadIdx.x * (p.n / blockDim.x)] = p.x[threadIdx.x];
    __syncthreads();
    p.y[threadIdx.x] = tile[(blockDim.x - 1 - threadIdx.x) * (p.n / blockDim.x)];
}
extern "C" __global__ void scale_two(float *x, float *y) { *y = *x; }
"#;

const PARAMS: (&str, &str) =
    ("tile/params.cuh", "struct Params { const float *x; float *y; unsigned n; float factor; };\n");

fn scale() -> Source {
    Source::from_text("scale.cu", SCALE, &[PARAMS]).unwrap()
}

/// Another value of `id` is another variant.
fn defines(id: u32) -> Defines {
    Defines::new().set("PARAMS_BYTES", size_of::<Params>()).set("ID", id)
}

fn grid(blocks: u32, block: u32, shared_bytes: u32) -> Grid {
    Grid { grid: [blocks, 1, 1], block, shared_bytes }
}

/// Launches a kernel over `n` numbers 0, 1, 2, ... and gives what it made of them.
fn run(gpu: &Gpu, kernel: &Kernel, n: usize, grid: Grid, count: u32) -> dtk::Result<Vec<f32>> {
    let host: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let (x, y) = (gpu.alloc(n * 4, "x")?, gpu.alloc(n * 4, "y")?);
    gpu.upload(bytemuck::cast_slice(&host), &x)?;
    let params = Params { x: x.ptr(), y: y.ptr(), n: count, factor: -2.0 };
    kernel.launch(gpu.stream(), grid, &params)?;
    let mut out = vec![0f32; n];
    gpu.download(&y, bytemuck::cast_slice_mut(&mut out))?;
    Ok(out)
}

fn check_scale(gpu: &Gpu, id: u32) {
    let kernel = gpu.kernel_of(&scale(), "scale_fwd", &defines(id)).unwrap();
    let y = run(gpu, &kernel, 1000, grid(8, 128, 0), 1000).unwrap();
    assert!(y.iter().enumerate().all(|(i, &y)| y == -2.0 * i as f32));
}

/// The device with a cache of its own.
fn device_at(cache: &Path) -> Option<Gpu> {
    gpu::device_with(Options { cache_dir: Some(cache.to_path_buf()), ..Options::default() })
}

/// Compiled, found in the folder, replaced, not written.
fn counts(gpu: &Gpu) -> [u64; 4] {
    let r = gpu.cache_report();
    [r.compiled, r.cached, r.replaced, r.unwritten]
}

#[test]
fn launches_are_recorded_once_that_is_wanted() {
    let Some(gpu) = gpu::device_with(Options::default()) else { return };
    check_scale(&gpu, 0);
    assert!(gpu.take_launches().is_empty(), "nobody asked yet");
    gpu.record_launches();
    check_scale(&gpu, 1);
    let launches = gpu.take_launches();
    assert_eq!(launches.len(), 1);
    let kernel = &launches[0].kernel;
    assert_eq!((kernel.source.as_str(), kernel.entry.as_str()), ("scale.cu", "scale_fwd"));
    assert_eq!((&kernel.defines, launches[0].grid), (&defines(1), grid(8, 128, 0)));
    assert!(launches[0].resources.registers > 0);
    assert!(gpu.take_launches().is_empty(), "they were taken");
    check_scale(&gpu, 0);
    assert_eq!(gpu.take_launches().len(), 1, "recording goes on");
    gpu::clean(&gpu);
}

#[test]
fn kernels_run_are_kept_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(first) = device_at(dir.path()) else { return };
    check_scale(&first, 0);
    check_scale(&first, 0);
    assert_eq!(counts(&first), [1, 0, 0, 0], "once for a device");
    let second = device_at(dir.path()).unwrap();
    check_scale(&second, 0);
    assert_eq!(counts(&second), [0, 1, 0, 0]);
    let of_disk = second.kernel_of(&scale(), "scale_fwd", &defines(0)).unwrap();
    let of_nvrtc = first.kernel_of(&scale(), "scale_fwd", &defines(0)).unwrap();
    assert_eq!(of_disk.resources(), of_nvrtc.resources());
    assert!(of_disk.resources().registers > 0 && !of_disk.resources().spills());

    let files = || std::fs::read_dir(dir.path().join("kernels")).unwrap().map(|f| f.unwrap().path());
    assert_eq!(files().count(), 1);
    let file = files().next().unwrap();
    let good = std::fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for bad in [&good[..good.len() / 2], &[], &flipped] {
        std::fs::write(&file, bad).unwrap();
        let third = device_at(dir.path()).unwrap();
        check_scale(&third, 0);
        assert_eq!(counts(&third), [1, 0, 1, 0], "{} bytes", bad.len());
        assert!(std::fs::read(&file).unwrap() == good, "the same image, whole again");
    }
    check_scale(&first, 1);
    assert_eq!((counts(&first)[0], files().count()), (2, 2), "another variant");
    gpu::clean(&first);
}

#[test]
fn a_cache_that_cannot_be_written_costs_time_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a_file");
    std::fs::write(&file, "").unwrap();
    let Some(gpu) = device_at(&file) else { return };
    check_scale(&gpu, 0);
    assert_eq!(counts(&gpu)[3], 1);
    assert!(gpu.cache_report().problem.unwrap().contains("a_file"));
}

#[test]
fn threads_share_one_compilation() {
    let dir = tempfile::tempdir().unwrap();
    let Some(gpu) = device_at(dir.path()) else { return };
    std::thread::scope(|scope| {
        for i in 0..8 {
            let gpu = &gpu;
            scope.spawn(move || check_scale(gpu, i % 2));
        }
    });
    assert_eq!(counts(&gpu), [2, 0, 0, 0]);
    gpu::clean(&gpu);
}

#[test]
fn warming_needs_no_device() {
    if let Err(e) = Nvrtc::find() {
        assert!(std::env::var("DTK_REQUIRE_SIMULATOR").is_err(), "{e}");
        println!("skipped: {e}");
        return;
    }
    let (dir, scale) = (tempfile::tempdir().unwrap(), scale());
    let wrong = Source::from_text("wrong.cu", "#error not today", &[]).unwrap();
    let unit = |source, arch| Unit { source, defines: defines(0), arch };
    let units = [unit(&scale, Arch::Sm80), unit(&wrong, Arch::Sm80), unit(&scale, Arch::Sm90a)];
    for (jobs, expected) in [(2, Origin::Compiled), (8, Origin::Cached)] {
        let cache = KernelCache::at(Some(dir.path()));
        let results = std::sync::Mutex::new(vec![None, None, None]);
        warm(&cache, &units, jobs, |i, result, _| {
            assert!(results.lock().unwrap()[i].replace(result).is_none(), "{i} is done once");
        });
        let results: Vec<_> = results.into_inner().unwrap().into_iter().map(Option::unwrap).collect();
        assert!(results[1].as_ref().unwrap_err().to_string().contains("not today"));
        for i in [0, 2] {
            assert_eq!(results[i].as_ref().unwrap(), &expected);
        }
        assert_eq!(cache.contents().0, 2);
    }
}

/// Whether this process is one that [`again`] started, and with what.
fn told() -> Option<String> {
    std::env::var("DTK_FLOOR_CHILD").ok()
}

/// The same test in a process of its own.
fn again(test: &str, what: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env("DTK_FLOOR_CHILD", what).env("PTXSIM_QUIET", "1");
    command
}

#[test]
fn processes_share_a_cache() {
    if let Some(dir) = told() {
        let gpu = device_at(Path::new(&dir)).unwrap();
        (0..3).for_each(|id| check_scale(&gpu, id));
        assert_eq!(gpu.cache_report().unwritten, 0);
        return;
    }
    if gpu::device().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..3)
        .map(|_| again("processes_share_a_cache", dir.path().to_str().unwrap()).spawn().unwrap())
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let names: Vec<_> =
        std::fs::read_dir(dir.path().join("kernels")).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

// The context does not survive the fault, so it is made in another process.
#[test]
fn a_fault_names_kernel_file_and_line() {
    if told().is_some() {
        let gpu = gpu::device().unwrap();
        let kernel = gpu.kernel_of(&scale(), "scale_unbounded", &defines(0)).unwrap();
        let e = run(&gpu, &kernel, 100, grid(1, 128, 0), 100).unwrap_err();
        println!("{e}");
        println!("again: {}", gpu.stream().synchronize().unwrap_err());
        drop((kernel, gpu));
        return;
    }
    if !gpu::device().is_some_and(|g| g.info().simulated) {
        return;
    }
    let out = again("a_fault_names_kernel_file_and_line", "1").output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && !text.contains("panicked"), "{text}");
    for needle in [
        "scale.cu: scale_unbounded -DID=0",
        "CUDA_ERROR_ILLEGAL_ADDRESS (700)",
        "out_of_bounds",
        "scale.cu:10",
        "again: ",
    ] {
        assert!(text.contains(needle), "`{needle}` is not in: {text}");
    }
}

#[test]
fn launches_that_cannot_be() {
    let Some(gpu) = gpu::device() else { return };
    let kernel = gpu.kernel_of(&scale(), "scale_fwd", &defines(0)).unwrap();
    let fails = |grid, needles: &[&str]| {
        let e = run(&gpu, &kernel, 128, grid, 128).unwrap_err().to_string();
        for needle in needles.iter().chain(&["scale.cu: scale_fwd -DID=0 -DPARAMS_BYTES=24"]) {
            assert!(e.contains(needle), "`{needle}` is not in: {e}");
        }
    };
    let most = gpu.info().shared_per_block_optin_bytes;
    fails(
        grid(1, 128, most + 1),
        &["more shared memory", &most.to_string(), "1 x 1 x 1 blocks of 128 threads"],
    );
    fails(grid(0, 128, 0), &["nothing to launch"]);
    fails(grid(1, 1056, 0), &["1024 threads"]);
    let e = kernel.launch(gpu.stream(), grid(1, 32, 0), &[0u64; 2]).unwrap_err().to_string();
    assert!(e.contains("16 bytes") && e.contains("24"), "{e}");
    let other = gpu::device().unwrap();
    let params = Params { x: 0, y: 0, n: 0, factor: 0.0 };
    let e = kernel.launch(other.stream(), grid(1, 32, 0), &params).unwrap_err().to_string();
    assert!(e.contains("stream"), "{e}");
    run(&gpu, &kernel, 128, grid(1, 128, 0), 128).expect("none of that does harm");
    gpu::clean(&gpu);
}

#[test]
fn as_much_shared_memory_as_there_is() {
    let Some(gpu) = gpu::device() else { return };
    let kernel = gpu.kernel_of(&scale(), "scale_shared", &defines(0)).unwrap();
    for bytes in [1024, 48 * 1024, 48 * 1024 + 128, gpu.info().shared_per_block_optin_bytes / 128 * 128] {
        let y = run(&gpu, &kernel, 32, grid(1, 32, bytes), bytes / 4).unwrap();
        assert!(y.iter().enumerate().all(|(i, &y)| y == 31.0 - i as f32), "{bytes}: {y:?}");
    }
    gpu::clean(&gpu);
}

#[test]
fn kernels_that_are_not_there() {
    let Some(gpu) = gpu::device() else { return };
    let e = gpu.kernel_of(&scale(), "scale_bwd", &defines(0)).unwrap_err().to_string();
    assert!(e.contains("scale_bwd") && e.contains("scale_fwd") && e.contains("extern \"C\""), "{e}");
    let e = gpu.kernel_of(&scale(), "scale_two", &defines(0)).unwrap_err().to_string();
    assert!(e.contains("2 parameters"), "{e}");
    let e = gpu.kernel("no_such.cu", "no_such_fwd", &Defines::new()).unwrap_err().to_string();
    assert!(e.contains("no_such.cu"), "{e}");
    assert!(gpu.kernel_of(&scale(), "scale\0fwd", &defines(0)).is_err());
}

#[test]
fn what_does_not_compile_names_its_own_lines() {
    let Some(gpu) = gpu::device() else { return };
    let compile = |text: &str, header: &str| {
        let source = Source::from_text("wrong.cu", text, &[("tile/h.cuh", header)]).unwrap();
        gpu.kernel_of(&source, "wrong_fwd", &Defines::new().set("BM", 7)).unwrap_err().to_string()
    };
    let e = compile("\nint f() {\n    return \"x\";\n}\n", "");
    assert!(e.contains("wrong.cu(3): error") && e.contains("-DBM=7") && e.contains("return \"x\";"), "{e}");
    let e = compile("#include \"tile/h.cuh\"\n", "\nint g() { return nothing; }\n");
    assert!(e.contains("tile/h.cuh(2): error") && e.contains("nothing"), "{e}");
    assert!(!e.contains("\\n") && !e.contains("\\\""), "{e}");
}

#[test]
fn spills_are_told() {
    let Some(gpu) = gpu::device() else { return };
    let text = r#"
struct Params { const float *x; float *y; unsigned n; float factor; };
extern "C" __global__ void __launch_bounds__(1024, 2) spill_fwd(const __grid_constant__ Params p) {
    float v[96];
    for (int i = 0; i < 96; i++) v[i] = p.x[i * 1024 + threadIdx.x];
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < 96; i++) v[i] = v[i] * v[(i * 7 + 1) % 96] + p.factor;
    for (int i = 0; i < 96; i++) p.y[i * 1024 + threadIdx.x] = v[i];
}
"#;
    let source = Source::from_text("spill.cu", text, &[]).unwrap();
    let kernel = gpu.kernel_of(&source, "spill_fwd", &Defines::new()).unwrap();
    let resources = kernel.resources();
    assert!(resources.spills() && resources.stack_bytes > 0 && resources.registers <= 32, "{resources:?}");
}
