//! A program on the crate `cust`, as one writes it for a card. It is linked against whatever `libcuda.so` is found, here
//! the simulator's; see `run.sh`.

use cust::event::{Event, EventFlags};
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};
use cust::{CudaFlags, device::Device, launch};
use std::error::Error;

/// Numbers in each of the two arrays.
const COUNT: usize = 1000;
/// Threads of a block.
const BLOCK: u32 = 128;

fn main() -> Result<(), Box<dyn Error>> {
    cust::init(CudaFlags::empty())?;
    let device = Device::get_device(0)?;
    println!("device: {}", device.name()?);
    let _context = cust::context::Context::new(device)?;

    let x: Vec<f32> = (0..COUNT).map(|i| i as f32).collect();
    let x_device = DeviceBuffer::from_slice(&x)?;
    let y_device = DeviceBuffer::from_slice(&[1f32; COUNT])?;

    let module = Module::from_ptx(include_str!("../saxpy.ptx"), &[])?;
    let saxpy = module.get_function("saxpy")?;
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let (start, end) = (Event::new(EventFlags::DEFAULT)?, Event::new(EventFlags::DEFAULT)?);
    let blocks = (COUNT as u32).div_ceil(BLOCK);

    start.record(&stream)?;
    // SAFETY: the arguments are those of the kernel, and the arrays have as many numbers as it is told.
    unsafe {
        launch!(saxpy<<<blocks, BLOCK, 0, stream>>>(
            2.0f32,
            x_device.as_device_ptr(),
            y_device.as_device_ptr(),
            COUNT as u32
        ))?;
    }
    end.record(&stream)?;
    stream.synchronize()?;
    if end.elapsed_time_f32(&start)? < 0.0 {
        return Err("the end came before the start".into());
    }

    let mut y = vec![0f32; COUNT];
    y_device.copy_to(&mut y)?;
    match y.iter().enumerate().find(|&(i, &v)| v != 2.0 * i as f32 + 1.0) {
        Some((i, v)) => Err(format!("y[{i}] is {v}").into()),
        None => {
            println!("OK");
            Ok(())
        }
    }
}
