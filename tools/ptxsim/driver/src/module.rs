//! Modules and libraries: PTX made ready to launch.

use crate::context::{Context, current, initialised};
use crate::error::{Error, Result};
use crate::ffi::{Handle, In, Out, Text};
use crate::function::Function;
use crate::handles;
use crate::image;
use crate::jit::Jit;
use crate::state::{self, lock};
use ptxsim::exec::program::Program;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// A program in memory; its variables go when it is unloaded.
pub struct Loaded {
    /// The program.
    pub program: Program,
    unloaded: AtomicBool,
}

impl Loaded {
    /// Takes the program's variables away; kernels of it can no longer be launched.
    fn unload(&self) {
        if !self.unloaded.swap(true, Ordering::AcqRel)
            && let Ok(driver) = state::driver()
        {
            self.program.unload(&driver.memory);
        }
    }

    /// Whether it can still be launched.
    pub fn check(&self) -> Result {
        if self.unloaded.load(Ordering::Acquire) { Err(Error::INVALID_HANDLE) } else { Ok(()) }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.unload();
    }
}

/// A module of a context, or a library, which belongs to none.
pub struct Module {
    loaded: Arc<Loaded>,
    handle: Handle,
    context: Option<Weak<Context>>,
    functions: Mutex<HashMap<String, Handle>>,
}

impl Drop for Module {
    fn drop(&mut self) {
        self.loaded.unload();
        for handle in lock(&self.functions).values() {
            handles::forget(*handle);
        }
    }
}

impl Module {
    fn new(program: Program, context: Option<&Arc<Context>>) -> Arc<Self> {
        let loaded = Arc::new(Loaded { program, unloaded: AtomicBool::new(false) });
        let handle = handles::reserve();
        let module = Arc::new(Self {
            loaded,
            handle,
            context: context.map(Arc::downgrade),
            functions: Mutex::default(),
        });
        handles::bind(handle, module.clone());
        if let Some(context) = context {
            context.adopt(handle);
        }
        module
    }

    /// The handle of a kernel: the same each time.
    fn function(&self, name: &str) -> Result<Handle> {
        let kernel = self.loaded.program.kernel(name).ok_or(Error::NOT_FOUND)?;
        let mut functions = lock(&self.functions);
        let make = || Function::new(kernel.name(), self.loaded.clone(), self.handle, self.context.clone());
        Ok(*functions.entry(name.to_string()).or_insert_with(|| handles::insert(Arc::new(make()))))
    }
}

/// Highest version of the PTX language that is understood.
const LANGUAGE: (u32, u32) = (9, 0);

/// The number after a directive of the text's head.
fn directive<'a>(ptx: &'a str, name: &str) -> Option<&'a str> {
    ptx.lines()
        .map(str::trim_start)
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split(|c: char| c.is_whitespace() || c == ',').find(|w| !w.is_empty()))
}

/// Whether the card can run the text: `UNSUPPORTED_PTX_VERSION` for a later language, `INVALID_PTX` for another card's.
fn check_head(ptx: &str, card: (u32, u32)) -> std::result::Result<(), (Error, String)> {
    if let Some((major, minor)) = directive(ptx, ".version").and_then(|v| v.split_once('.')) {
        let version = (major.parse().unwrap_or(0), minor.parse().unwrap_or(0));
        if version > LANGUAGE {
            let message = format!("PTX {major}.{minor} is later than {}.{}", LANGUAGE.0, LANGUAGE.1);
            return Err((Error::UNSUPPORTED_PTX_VERSION, message));
        }
    }
    if let Some(target) = directive(ptx, ".target").and_then(|t| t.strip_prefix("sm_")) {
        let digits = target.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let number: u32 = digits.parse().unwrap_or(0);
        let mine = card.0 * 10 + card.1;
        let special = digits.len() < target.len();
        if number > mine || (special && number != mine) {
            let message = format!(
                ".target sm_{target} does not run on a card of compute capability {}.{}",
                card.0, card.1
            );
            return Err((Error::INVALID_PTX, message));
        }
    }
    Ok(())
}

/// Makes a program of a text; says in the log what is wrong.
fn compile(ptx: &str, card: (u32, u32), jit: &mut Jit) -> Result<Program> {
    let fail = |jit: &mut Jit, error: Error, message: String| {
        jit.error(&message);
        if !state::quiet() {
            eprintln!("ptxsim: module not loaded: {message}");
        }
        Err(error)
    };
    if let Err((error, message)) = check_head(ptx, card) {
        return fail(jit, error, message);
    }
    match Program::load(ptx, &state::driver()?.memory) {
        Ok(program) => {
            jit.info(&format!("ptxsim: {} kernels for {}", program.kernels().count(), program.target()));
            Ok(program)
        }
        Err(error) => fail(jit, Error::INVALID_PTX, error.to_string()),
    }
}

fn load_image(out: Out<Handle>, image: usize, mut jit: Jit) -> Result {
    let context = current()?;
    out.needed()?;
    let card = context.device()?.card.compute_capability;
    let program = image::ptx(image, card).and_then(|ptx| compile(&ptx, card, &mut jit));
    jit.finish();
    out.set(Module::new(program?, Some(&context)).handle)
}

/// `cuModuleLoadData` and `cuModuleLoadFatBinary`.
pub fn load_data(out: Out<Handle>, image: usize) -> Result {
    load_image(out, image, Jit::none())
}

/// `cuModuleLoadDataEx`.
pub fn load_data_ex(
    out: Out<Handle>,
    image: usize,
    count: u32,
    options: In<u32>,
    values: Out<usize>,
) -> Result {
    current()?;
    load_image(out, image, Jit::new(count as usize, options, values)?)
}

/// A file's contents with a NUL behind them, as an image in memory would have.
fn read_file(path: Text) -> Result<Vec<u8>> {
    let mut bytes = std::fs::read(path.get()?).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::FILE_NOT_FOUND,
        _ => Error::INVALID_SOURCE,
    })?;
    bytes.push(0);
    Ok(bytes)
}

/// `cuModuleLoad`.
pub fn load(out: Out<Handle>, path: Text) -> Result {
    current()?;
    let bytes = read_file(path)?;
    load_data(out, bytes.as_ptr() as usize)
}

fn module(handle: Handle) -> Result<Arc<Module>> {
    current()?;
    handles::get(handle)
}

/// `cuModuleUnload`.
pub fn unload(handle: Handle) -> Result {
    let context = current()?;
    let found: Arc<Module> = handles::get(handle)?;
    if found.context.is_none() {
        return Err(Error::INVALID_HANDLE);
    }
    for stream in context.streams() {
        stream.drain();
    }
    let _turn = context.turn();
    handles::take::<Module>(handle)?;
    context.disown(handle);
    Ok(())
}

/// `cuModuleGetFunction`.
pub fn get_function(out: Out<Handle>, handle: Handle, name: Text) -> Result {
    let module = module(handle)?;
    out.needed()?;
    out.set(module.function(&name.get()?)?)
}

impl Module {
    fn kernel_count(&self) -> u32 {
        self.loaded.program.kernels().count() as u32
    }

    /// Hands out the first `count` kernels.
    fn enumerate(&self, out: Out<Handle>, count: u32) -> Result {
        if count > 0 {
            out.needed()?;
        }
        for (i, kernel) in self.loaded.program.kernels().take(count as usize).enumerate() {
            out.set_at(i, self.function(kernel.name())?);
        }
        Ok(())
    }
}

/// `cuModuleGetFunctionCount`.
pub fn function_count(out: Out<u32>, handle: Handle) -> Result {
    out.set(module(handle)?.kernel_count())
}

/// `cuModuleEnumerateFunctions`.
pub fn functions(out: Out<Handle>, count: u32, handle: Handle) -> Result {
    module(handle)?.enumerate(out, count)
}

/// `cuLibraryGetKernelCount`.
pub fn library_kernel_count(out: Out<u32>, handle: Handle) -> Result {
    out.set(library(handle)?.kernel_count())
}

/// `cuLibraryEnumerateKernels`.
pub fn library_kernels(out: Out<Handle>, count: u32, handle: Handle) -> Result {
    library(handle)?.enumerate(out, count)
}

/// `cuModuleGetGlobal_v2` and `cuLibraryGetGlobal`.
pub fn global(address: Out<u64>, bytes: Out<usize>, handle: Handle, name: Text) -> Result {
    let module = module(handle)?;
    let (at, size) = module.loaded.program.global(&name.get()?).ok_or(Error::NOT_FOUND)?;
    address.set_if(at);
    bytes.set_if(size as usize);
    Ok(())
}

/// `cuModuleGetLoadingMode`: eager.
pub fn loading_mode(out: Out<u32>) -> Result {
    initialised()?;
    out.set(1)
}

/// `cuLibraryLoadData`: the code is the same for every context, as is memory.
pub fn library_load_data(
    out: Out<Handle>,
    image: usize,
    options: In<u32>,
    values: Out<usize>,
    count: u32,
) -> Result {
    let driver = initialised()?;
    out.needed()?;
    let mut jit = Jit::new(count as usize, options, values)?;
    let card = driver.device(0)?.card.compute_capability;
    let program = image::ptx(image, card).and_then(|ptx| compile(&ptx, card, &mut jit));
    jit.finish();
    out.set(Module::new(program?, None).handle)
}

/// `cuLibraryLoadFromFile`.
pub fn library_load_file(
    out: Out<Handle>,
    path: Text,
    options: In<u32>,
    values: Out<usize>,
    count: u32,
) -> Result {
    initialised()?;
    let bytes = read_file(path)?;
    library_load_data(out, bytes.as_ptr() as usize, options, values, count)
}

fn library(handle: Handle) -> Result<Arc<Module>> {
    initialised()?;
    let library: Arc<Module> = handles::get(handle)?;
    if library.context.is_some() { Err(Error::INVALID_HANDLE) } else { Ok(library) }
}

/// `cuLibraryUnload`.
pub fn library_unload(handle: Handle) -> Result {
    library(handle)?;
    handles::take::<Module>(handle).map(|_| ())
}

/// `cuLibraryGetKernel`.
pub fn library_kernel(out: Out<Handle>, handle: Handle, name: Text) -> Result {
    let library = library(handle)?;
    out.needed()?;
    out.set(library.function(&name.get()?)?)
}

/// `cuLibraryGetModule`: in any context it is the same.
pub fn library_module(out: Out<Handle>, handle: Handle) -> Result {
    current()?;
    library(handle)?;
    out.set(handle)
}
