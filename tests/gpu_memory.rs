//! Memory, streams and graphs of the simulated device, or of a card.

#[path = "common/gpu.rs"]
mod gpu;

use bytemuck::{Pod, Zeroable};
use dtk::gpu::{Buffer, Defines, Gpu, Grid, Kernel, Options, Prefetch, Source, Stream};
use std::sync::{Mutex, MutexGuard, PoisonError};

const SOURCE: &str = r#"
struct Params { const float *x; float *y; unsigned n; float add; };
static_assert(sizeof(Params) == PARAMS_BYTES, "host and device agree");
extern "C" __global__ void copy_add(const __grid_constant__ Params p) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.n) p.y[i] = p.x[i] + p.add;
}
"#;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    y: u64,
    n: u32,
    add: f32,
}

/// Tests share a context, and its list of findings: one at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn copy_add(gpu: &Gpu) -> Kernel {
    let source = Source::from_text("copy_add.cu", SOURCE, &[]).unwrap();
    gpu.kernel_of(&source, "copy_add", &Defines::new().set("PARAMS_BYTES", size_of::<Params>())).unwrap()
}

/// `y = x + add`.
fn launch(kernel: &Kernel, stream: &Stream, x: &Buffer, y: &Buffer, add: f32) -> dtk::Result<()> {
    let n = (x.bytes() / 4) as u32;
    let grid = Grid { grid: [n.div_ceil(64), 1, 1], block: 64, shared_bytes: 0 };
    kernel.launch(stream, grid, &Params { x: x.ptr(), y: y.ptr(), n, add })
}

fn upload(gpu: &Gpu, values: &[f32]) -> Buffer {
    let buffer = gpu.alloc(values.len() * 4, "test").unwrap();
    gpu.upload(bytemuck::cast_slice(values), &buffer).unwrap();
    buffer
}

fn download(gpu: &Gpu, buffer: &Buffer) -> Vec<f32> {
    let mut values = vec![f32::NAN; buffer.bytes() / 4];
    gpu.download(buffer, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

#[test]
fn a_graph_does_its_work_at_every_launch() {
    let _turn = turn();
    for suballocate in [false, true] {
        let options = Options { suballocate: Some(suballocate), ..Options::default() };
        let Some(gpu) = gpu::device_with(options) else { return };
        let kernel = copy_add(&gpu);
        let (x, y) = (upload(&gpu, &[1.0; 100]), upload(&gpu, &[0.0; 100]));
        let live = gpu.memory().live_bytes;
        let before = upload(&gpu, &[0.0; 100]);
        let mut graph = gpu
            .stream()
            .capture(|| {
                // Memory of the capture is the graph's: nobody else gets it while the graph lives.
                let between = gpu.alloc(400, "between")?;
                launch(&kernel, gpu.stream(), &x, &before, 2.0)?;
                launch(&kernel, gpu.stream(), &before, &between, 0.0)?;
                // Nor does anybody get what is given back while the capture uses it.
                drop(before);
                launch(&kernel, gpu.stream(), &between, &y, 0.5)?;
                launch(&kernel, gpu.stream(), &y, &x, 0.0)
            })
            .unwrap();
        graph.keep(&x);
        graph.keep(&y);
        assert_eq!(download(&gpu, &x), vec![1.0; 100], "capturing does nothing");
        let others: Vec<Buffer> = (0..8).map(|_| upload(&gpu, &[7.0; 100])).collect();
        for times in 1..=3 {
            graph.launch(gpu.stream()).unwrap();
            assert_eq!(download(&gpu, &x), vec![1.0 + 2.5 * times as f32; 100]);
        }
        assert!(
            others.iter().all(|b| download(&gpu, b) == vec![7.0; 100]),
            "a graph wrote on another's memory"
        );
        drop((graph, others));
        assert_eq!(gpu.memory().live_bytes, live);
        gpu::clean(&gpu);
    }
}

#[test]
fn what_cannot_be_captured_leaves_the_stream_usable() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let kernel = copy_add(&gpu);
    let (x, y) = (upload(&gpu, &[1.0; 10]), upload(&gpu, &[0.0; 10]));
    let refused = gpu.stream().capture(|| gpu.upload(&[0; 40], &x)).unwrap_err().to_string();
    assert!(refused.contains("cannot be captured") && refused.contains("->"), "{refused}");
    let refused = gpu.stream().capture(|| x.used_on(gpu.stream())).unwrap_err().to_string();
    assert!(refused.contains("Graph::keep"), "{refused}");
    let own = gpu.stream().capture(|| Err(dtk::Error::usage("changed my mind"))).unwrap_err();
    assert!(own.is_usage(), "{own}");
    launch(&kernel, gpu.stream(), &x, &y, 1.0).unwrap();
    assert_eq!(download(&gpu, &y), vec![2.0; 10]);
    gpu::clean(&gpu);
}

#[test]
fn batches_arrive_while_others_are_worked_on() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let kernel = copy_add(&gpu);
    let results: Vec<Buffer> = (0..5).map(|_| upload(&gpu, &[0.0; 64])).collect();
    let mut prefetch = Prefetch::new(&gpu, 256, "batch").unwrap();
    let push = |prefetch: &mut Prefetch, i: usize| {
        prefetch.push(|to| {
            bytemuck::cast_slice_mut::<u8, f32>(to).fill(i as f32);
            Ok(())
        })
    };
    assert!(prefetch.consume(|_| Ok(())).unwrap_err().is_usage());
    push(&mut prefetch, 0).unwrap();
    push(&mut prefetch, 1).unwrap();
    assert!(push(&mut prefetch, 2).unwrap_err().is_usage(), "there is no third place");
    for (i, y) in results.iter().enumerate() {
        prefetch.consume(|x| launch(&kernel, gpu.stream(), x, y, 0.25)).unwrap();
        if i + 2 < results.len() {
            push(&mut prefetch, i + 2).unwrap();
        }
    }
    for (i, y) in results.iter().enumerate() {
        assert_eq!(download(&gpu, y), vec![i as f32 + 0.25; 64], "batch {i}");
    }
    // The simulator knows of every two pieces of work that nothing orders.
    gpu::clean(&gpu);
}

#[test]
fn streams_wait_for_events() {
    let _turn = turn();
    let Some(gpu) = gpu::device() else { return };
    let kernel = copy_add(&gpu);
    let side = gpu.new_stream().unwrap();
    let (x, y, z) = (upload(&gpu, &[3.0; 33]), upload(&gpu, &[0.0; 33]), upload(&gpu, &[0.0; 33]));
    side.wait(&gpu.stream().record().unwrap()).unwrap();
    launch(&kernel, &side, &x, &y, 1.0).unwrap();
    let done = side.record_timed().unwrap();
    gpu.stream().wait(&done).unwrap();
    launch(&kernel, gpu.stream(), &y, &z, 1.0).unwrap();
    assert_eq!(download(&gpu, &z), vec![5.0; 33]);
    let end = gpu.stream().record_timed().unwrap();
    assert!(end.elapsed_ms(&done).unwrap() >= 0.0 && done.is_done().unwrap());
    for buffer in [&x, &y] {
        buffer.used_on(&side).unwrap();
    }
    gpu::clean(&gpu);
}

#[test]
fn running_out_of_memory_says_who_has_it_and_what_to_change() {
    let _turn = turn();
    for suballocate in [false, true] {
        let options = Options {
            memory_limit_bytes: Some(1 << 20),
            chunk_bytes: Some(64 << 10),
            suballocate: Some(suballocate),
            ..Options::default()
        };
        let Some(gpu) = gpu::device_with(options) else { return };
        let teacher: Vec<Buffer> = (0..3).map(|_| gpu.alloc(200_000, "teacher").unwrap()).collect();
        let student = gpu.alloc(100_000, "student").unwrap();
        let e = gpu.alloc(500_000, "gradients").unwrap_err();
        let text = e.to_string();
        assert!(e.is_device() && e.exit_code() == 1, "{text}");
        for needle in
            ["`gradients` asks for 488", "1.00 MiB", "teacher", "in 3 allocations", "student", "train.batch"]
        {
            assert!(text.contains(needle), "`{needle}` is not in: {text}");
        }
        assert!(text.find("teacher") < text.find("student"), "largest first: {text}");
        // Nothing is lost: what is given back can be had again.
        drop(teacher);
        assert_eq!(gpu.alloc(500_000, "gradients").unwrap().bytes(), 500_000);
        assert_eq!(student.tag(), "student");
        // More than any device has.
        let e = gpu.alloc(usize::MAX / 2, "everything").unwrap_err();
        assert!(e.to_string().contains("everything"), "{e}");
    }
}

#[test]
fn buffers_of_the_arena_do_not_touch_and_come_back() {
    let _turn = turn();
    let options = Options { chunk_bytes: Some(64 << 10), suballocate: Some(true), ..Options::default() };
    let Some(gpu) = gpu::device_with(options) else { return };
    let sizes = [1, 100, 256, 1000, 4096, 5000, 70_000, 0, 12, 300_000];
    let mut buffers: Vec<(usize, Buffer)> = Vec::new();
    for round in 0..4usize {
        for (i, &bytes) in sizes.iter().enumerate() {
            let buffer = gpu.alloc(bytes, "arena").unwrap();
            assert!(buffer.ptr().is_multiple_of(256), "{buffer:?}");
            gpu.fill_byte(&buffer, (round * sizes.len() + i) as u8).unwrap();
            buffers.push((round * sizes.len() + i, buffer));
        }
        // Every third goes, so that later ones fill holes.
        buffers.retain(|(i, _)| !(i + round).is_multiple_of(3));
    }
    for (i, buffer) in &buffers {
        let mut bytes = vec![0u8; buffer.bytes()];
        gpu.download(buffer, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&b| usize::from(b) == *i), "{buffer:?} was written over");
    }
    let report = gpu.memory();
    let used = report.tag("arena").expect("in the ledger");
    assert_eq!(used.live_count, buffers.len() as u64);
    assert!(used.live_bytes >= buffers.iter().map(|(_, b)| b.bytes() as u64).sum());
    assert!(report.reserved_bytes >= report.live_bytes && report.peak_bytes >= report.live_bytes);
    drop(buffers);
    assert_eq!(gpu.memory().live_bytes, 0);
    assert!(gpu.trim().unwrap() > 0);
    assert_eq!(gpu.memory().reserved_bytes, 0);
    gpu::clean(&gpu);
}
