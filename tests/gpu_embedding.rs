//! dtk on a host program's own context, stream and memory, made with the driver's raw functions.

#[path = "common/gpu.rs"]
mod gpu;

use cudarc::driver::sys;
use dtk::base::{DType, Philox};
use dtk::gpu::{Gpu, Options};
use dtk::ops::{self, linear::Linear};
use dtk::tensor::Tensor;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

fn ok(code: sys::CUresult) {
    assert_eq!(code, sys::CUresult::CUDA_SUCCESS);
}

/// What is current on this thread.
fn current() -> sys::CUcontext {
    let mut now = null_mut();
    // SAFETY: the pointer is to a live handle.
    ok(unsafe { sys::cuCtxGetCurrent(&mut now) });
    now
}

/// A program's own context and stream. Nothing is current on a thread unless a test says so.
struct Host {
    context: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Sync for Host {}

impl Host {
    fn new() -> Host {
        assert!(current().is_null());
        let (mut context, mut stream) = (null_mut(), null_mut());
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointers are to live handles; the new context is current for the stream.
        unsafe {
            ok(sys::cuCtxCreate_v4(&mut context, null_mut(), 0, 0));
            ok(sys::cuStreamCreate(&mut stream, flags));
            ok(sys::cuCtxSetCurrent(null_mut()));
        }
        Host { context, stream }
    }

    /// With the context current, as the program's own code has it.
    fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = current();
        // SAFETY: the context lives as long as this value; what was current is put back.
        ok(unsafe { sys::cuCtxSetCurrent(self.context) });
        let done = work();
        // SAFETY: as above.
        ok(unsafe { sys::cuCtxSetCurrent(before) });
        done
    }

    fn open(&self) -> Gpu {
        let options = Options { cache_dir: Some(gpu::CACHE.into()), ..Options::default() };
        // SAFETY: both live until the end of every test, where this value is dropped last.
        let gpu = unsafe { Gpu::from_raw(self.context.cast(), self.stream.cast(), options) }.unwrap();
        gpu.record_launches();
        gpu
    }

    /// Memory of the program's with these values.
    fn upload(&self, values: &[f32]) -> u64 {
        let mut ptr = 0;
        let bytes = size_of_val(values);
        // SAFETY: both sides have as many bytes as is said, and the copy is waited for.
        self.within(|| unsafe {
            ok(sys::cuMemAlloc_v2(&mut ptr, bytes));
            ok(sys::cuMemcpyHtoDAsync_v2(ptr, values.as_ptr().cast(), bytes, self.stream));
            ok(sys::cuStreamSynchronize(self.stream));
        });
        ptr
    }

    fn download(&self, ptr: u64, len: usize) -> Vec<f32> {
        let mut values = vec![0f32; len];
        // SAFETY: as in `upload`.
        self.within(|| unsafe {
            ok(sys::cuMemcpyDtoHAsync_v2(values.as_mut_ptr().cast(), ptr, 4 * len, self.stream));
            ok(sys::cuStreamSynchronize(self.stream));
        });
        values
    }

    fn free(&self, ptr: u64) {
        // SAFETY: from `upload`, and not used any more.
        self.within(|| ok(unsafe { sys::cuMemFree_v2(ptr) }));
    }

    /// Bytes that the driver has left for this context's device.
    fn left(&self) -> usize {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to live numbers.
        self.within(|| ok(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }));
        free
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and nobody uses them any more.
        self.within(|| ok(unsafe { sys::cuStreamDestroy_v2(self.stream) }));
        // SAFETY: as above.
        ok(unsafe { sys::cuCtxDestroy_v2(self.context) });
    }
}

const ROWS: usize = 6;
const IN: usize = 24;
const OUT: usize = 16;

fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut v = vec![0.0; len];
    Philox::new(seed).fill_normal(&mut v);
    v
}

/// `x w^T` of the CPU.
fn expected(x: &[f32], w: &[f32]) -> Vec<f32> {
    let [x, w] = [([ROWS, IN], x), ([OUT, IN], w)].map(|(s, v)| Tensor::from_vec(s, v.to_vec()).unwrap());
    ops::run(&Linear {}, &[&x, &w]).unwrap().y.into_vec().unwrap()
}

#[track_caller]
fn close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4 && got.iter().all(|g| g.is_finite()), "off by {worst}");
}

/// The program's memory as tensors.
fn tensors(gpu: &Gpu, x: u64, w: u64) -> [Tensor; 2] {
    // SAFETY: `x` and `w` have so many numbers, and the tests free them behind the last use.
    [(x, [ROWS, IN]), (w, [OUT, IN])]
        .map(|(ptr, shape)| unsafe { Tensor::from_cuda_ptr(gpu, ptr, shape, DType::F32) }.unwrap())
}

/// Loads the driver; the device is a second context beside the host's. `None` without one. One test at a time: all share the
/// device whose free memory one of them counts.
fn other() -> Option<(Gpu, MutexGuard<'static, ()>)> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let other = gpu::device()?;
    // SAFETY: takes no context away from anybody; opening the primary one has left it current, which is not wanted here.
    ok(unsafe { sys::cuCtxSetCurrent(null_mut()) });
    Some((other, turn))
}

#[test]
fn work_runs_on_the_programs_context_stream_and_memory() {
    let Some(_other) = other() else { return };
    let host = Host::new();
    let (x, w) = (normal(ROWS * IN, 1), normal(OUT * IN, 2));
    let (px, pw) = (host.upload(&x), host.upload(&w));
    let before = host.left();
    let gpu = host.open();
    assert_eq!(gpu.stream().handle(), host.stream);
    let [tx, tw] = tensors(&gpu, px, pw);
    assert_eq!((tx.cuda_ptr().unwrap(), gpu.memory().live_bytes), (px, 0), "borrowed, not copied");
    let y = ops::run(&Linear {}, &[&tx, &tw]).unwrap().y;
    // The program reads the result where it lies, in the order of its own stream.
    close(&host.download(y.cuda_ptr().unwrap(), ROWS * OUT), &expected(&x, &w));
    close(y.to_cpu().unwrap().f32s().unwrap(), &expected(&x, &w));
    gpu::clean_after_launches(&gpu);
    drop((y, tx, tw, gpu));
    assert_eq!(host.left(), before, "dtk has given its memory back");
    // Memory, stream and context are the program's as before.
    close(&host.download(px, x.len()), &x);
    let more = host.upload(&w);
    close(&host.download(more, w.len()), &w);
    [px, pw, more].into_iter().for_each(|ptr| host.free(ptr));
}

#[test]
fn what_is_current_stays_current() {
    let Some(_other) = other() else { return };
    let (host, bystander) = (Host::new(), Host::new());
    let (x, w) = (normal(ROWS * IN, 3), normal(OUT * IN, 4));
    let (px, pw) = (host.upload(&x), host.upload(&w));
    let step = || {
        let before = current();
        let gpu = host.open();
        assert_eq!(current(), before, "open");
        let [tx, tw] = tensors(&gpu, px, pw);
        let y = ops::run(&Linear {}, &[&tx, &tw]).unwrap().y;
        assert_eq!(current(), before, "launch");
        let up = Tensor::from_vec([4], vec![1.0f32; 4]).unwrap().to_gpu(&gpu).unwrap();
        let wrong = gpu.stream().capture(|| up.to_cpu().map(drop)).unwrap_err();
        assert!(wrong.to_string().contains("captured"), "{wrong}");
        let mut graph = gpu.stream().capture(|| ops::run(&Linear {}, &[&tx, &tw]).map(drop)).unwrap();
        graph.launch(gpu.stream()).unwrap();
        let side = gpu.new_stream().unwrap();
        side.wait(&gpu.stream().record().unwrap()).unwrap();
        y.to_cpu().map(|y| close(y.f32s().unwrap(), &expected(&x, &w))).unwrap();
        let start = gpu.stream().record_timed().unwrap();
        gpu.stream().record_timed().unwrap().elapsed_ms(&start).unwrap();
        gpu.pinned(16).unwrap().upload(&side, &gpu.alloc(16, "test").unwrap()).unwrap();
        gpu.trim().unwrap();
        gpu::clean_after_launches(&gpu);
        assert_eq!(current(), before, "copies, graphs, events");
        drop((graph, side, start, up, y, tx, tw, gpu));
        assert_eq!(current(), before, "drop");
    };
    step();
    host.within(step);
    bystander.within(step);
    std::thread::scope(|s| s.spawn(step).join().unwrap());
    [px, pw].into_iter().for_each(|ptr| host.free(ptr));
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some((other, _turn)) = other() else { return };
    let (host, stranger) = (Host::new(), Host::new());
    let refused = |context: sys::CUcontext, stream: sys::CUstream, needle: &str| {
        // SAFETY: handles that are not live are refused before they are used.
        let e = unsafe { Gpu::from_raw(context.cast(), stream.cast(), Options::default()) }.unwrap_err();
        assert!(e.is_device() && e.remedy().is_some() && e.to_string().contains(needle), "{e}");
    };
    refused(null_mut(), host.stream, "context that was handed over is null");
    for named in 0..3usize {
        refused(host.context, std::ptr::without_provenance_mut(named), "NULL stream");
    }
    refused(host.context, stranger.stream, "another context");
    let gpu = host.open();
    for (ptr, needle) in [(0, "null"), (0x1008, "0x1008")] {
        // SAFETY: an address that is refused is not used.
        let e = unsafe { gpu.borrow(ptr, 64, "test") }.unwrap_err();
        assert!(e.to_string().contains(needle), "{e}");
    }
    // Two contexts of one device share no memory: tensors go by way of the host, operations take them from one only.
    let here = Tensor::full([ROWS, IN], 2.0).to_gpu(&gpu).unwrap();
    let there = here.to_gpu(&other).unwrap();
    assert!(there.gpu().unwrap().is(&other) && there.to_cpu().unwrap().f32s().unwrap()[0] == 2.0);
    let e = ops::run(&Linear {}, &[&here, &there]).err().expect("two contexts");
    assert!(e.to_string().contains("different devices"), "{e}");
    assert!(current() != host.context);
}
