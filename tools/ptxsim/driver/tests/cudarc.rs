//! A program as one writes it with the crate `cudarc`, unchanged but for loading the simulator first.

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use std::path::{Path, PathBuf};

/// Beside the test's executable, where cargo puts it.
fn simulator() -> PathBuf {
    let executable = std::env::current_exe().expect("a path");
    let folder = executable.parent().expect("a folder");
    let places = [folder.join("libptxsim_driver.so"), folder.join("../libptxsim_driver.so")];
    places.into_iter().find(|p| p.is_file()).expect("the library is built with its tests")
}

fn preload(path: &Path) {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: a driver library, whose loading has no effect but that.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    std::mem::forget(library.unwrap_or_else(|e| panic!("{}: {e}", path.display())));
}

const SOURCE: &str = r#"
extern "C" __global__ void saxpy(float a, const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
extern "C" __global__ void block_sums(const float* x, float* sums, int n) {
    __shared__ float part[256];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    part[threadIdx.x] = i < n ? x[i] : 0.f;
    __syncthreads();
    for (int step = 128; step > 0; step /= 2) {
        if (threadIdx.x < step) part[threadIdx.x] += part[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}
"#;

#[test]
fn a_cudarc_program() {
    preload(&simulator());
    // Loads NVRTC from where it is found; cudarc then finds it by its name.
    let _nvrtc = ptxsim::nvrtc::Nvrtc::find().expect("NVRTC: see tools/ptxsim/setup.sh");

    let context = CudaContext::new(0).expect("a context");
    assert_eq!(context.name().expect("a name"), "NVIDIA H100 80GB HBM3 (ptxsim)");
    assert_eq!(context.compute_capability().expect("a version"), (9, 0));
    let stream = context.default_stream();

    let n = 1000;
    let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let x_dev = stream.clone_htod(&x).expect("copied");
    let mut y_dev = stream.alloc_zeros::<f32>(n).expect("allocated");
    stream.memcpy_htod(&vec![1f32; n], &mut y_dev).expect("copied");

    let options = CompileOptions {
        arch: Some("compute_80"),
        options: vec!["-lineinfo".to_string()],
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(SOURCE, options).expect("compiles");
    let module = context.load_module(ptx).expect("loads");
    let saxpy = module.load_function("saxpy").expect("is there");
    assert!(module.load_function("no_such_kernel").is_err());

    let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(timing).expect("recorded");
    let (a, count) = (2f32, n as i32);
    let mut launch = stream.launch_builder(&saxpy);
    launch.arg(&a).arg(&x_dev).arg(&mut y_dev).arg(&count);
    // SAFETY: the arguments are those of the kernel.
    unsafe { launch.launch(LaunchConfig::for_num_elems(n as u32)) }.expect("launched");
    let end = stream.record_event(timing).expect("recorded");
    end.synchronize().expect("done");
    assert!(start.elapsed_ms(&end).expect("a time") >= 0.0);
    let y = stream.clone_dtoh(&y_dev).expect("copied");
    assert!(y.iter().enumerate().all(|(i, &v)| v == 2.0 * i as f32 + 1.0));

    // A second stream, which cudarc orders by events of its own.
    let side = context.new_stream().expect("a stream");
    let blocks = n.div_ceil(256);
    let mut sums = side.alloc_zeros::<f32>(blocks).expect("allocated");
    let block_sums = module.load_function("block_sums").expect("is there");
    let config =
        LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
    let mut launch = side.launch_builder(&block_sums);
    launch.arg(&y_dev).arg(&mut sums).arg(&count);
    // SAFETY: the arguments are those of the kernel.
    unsafe { launch.launch(config) }.expect("launched");
    let total: f32 = side.clone_dtoh(&sums).expect("copied").iter().sum();
    assert_eq!(total, y.iter().sum::<f32>());
    stream.join(&side).expect("joined");
    context.synchronize().expect("done");

    // A graph: captured once, replayed. Events from before the capture must not be waited for in it.
    // SAFETY: from here on one stream is used at a time.
    unsafe { context.disable_event_tracking() };
    side.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("begun");
    side.memset_zeros(&mut y_dev).expect("captured");
    for _ in 0..3 {
        let mut launch = side.launch_builder(&saxpy);
        launch.arg(&a).arg(&x_dev).arg(&mut y_dev).arg(&count);
        // SAFETY: the arguments are those of the kernel.
        unsafe { launch.launch(LaunchConfig::for_num_elems(n as u32)) }.expect("captured");
    }
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = side.end_capture(flags).expect("ended").expect("a graph");
    for _ in 0..2 {
        graph.launch().expect("launched");
        let y = side.clone_dtoh(&y_dev).expect("copied");
        assert!(y.iter().enumerate().all(|(i, &v)| v == 6.0 * i as f32));
    }

    drop((graph, y_dev, x_dev, sums, module, saxpy, block_sums, start, end));
    context.check_err().expect("nothing failed on the way out");
    context.synchronize().expect("done");
}
