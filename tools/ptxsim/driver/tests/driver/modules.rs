//! Modules, libraries, kernels' attributes.

use crate::support::*;
use cudarc::driver::sys::*;
use std::ffi::{CStr, c_void};
use std::io::Write;
use std::ptr::null_mut;

fn load_text(text: &CStr) -> R {
    let mut module = null_mut();
    // SAFETY: writes the module; the text ends with NUL.
    unsafe { cuModuleLoadData(&mut module, text.as_ptr().cast()) }
}

#[test]
fn functions_and_variables() {
    let _context = Context::new();
    let module = module();
    let mut f = null_mut();
    fails!(cuModuleGetFunction(&mut f, module, c"no_such_kernel".as_ptr()), CUDA_ERROR_NOT_FOUND);
    fails!(cuModuleGetFunction(&mut f, module, std::ptr::null()), CUDA_ERROR_INVALID_VALUE);
    fails!(cuModuleGetFunction(&mut f, 0x40 as CUmodule, c"scale".as_ptr()), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(function(module, "scale"), function(module, "scale"));
    let (mut address, mut bytes) = (0, 0);
    ok!(cuModuleGetGlobal_v2(&mut address, &mut bytes, module, c"table".as_ptr()));
    assert_eq!((bytes, download::<u32>(address, 4)), (16, vec![1, 2, 3, 4]));
    fails!(cuModuleGetGlobal_v2(&mut address, &mut bytes, module, c"no".as_ptr()), CUDA_ERROR_NOT_FOUND);
    let mut count = 0;
    ok!(cuModuleGetFunctionCount(&mut count, module));
    let mut all = vec![null_mut(); count as usize];
    ok!(cuModuleEnumerateFunctions(all.as_mut_ptr(), count, module));
    let mut name = std::ptr::null();
    ok!(cuFuncGetName(&mut name, all[0]));
    // SAFETY: a text of the library's.
    assert_eq!(unsafe { CStr::from_ptr(name) }, c"scale");
    let mut owner = null_mut();
    ok!(cuFuncGetModule(&mut owner, all[0]));
    assert_eq!(owner, module);
    let (mut offset, mut size) = (0, 0);
    ok!(cuFuncGetParamInfo(function(module, "by_value"), 1, &mut offset, &mut size));
    assert_eq!((offset, size), (8, 16));
    fails!(cuFuncGetParamInfo(all[0], 3, &mut offset, &mut size), CUDA_ERROR_INVALID_VALUE);
    ok!(cuModuleUnload(module));
    fails!(cuModuleUnload(module), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(launch(all[0], 1, 1, 0, null_mut(), &[0, 0, 0]), R::CUDA_ERROR_INVALID_HANDLE);
    fails!(cuMemsetD8_v2(address, 0, 4), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn what_cannot_be_loaded() {
    let _context = Context::new();
    assert_eq!(load_text(c"this is no PTX"), R::CUDA_ERROR_INVALID_PTX);
    assert_eq!(
        load_text(c".version 9.1\n.target sm_90\n.address_size 64\n"),
        R::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    );
    assert_eq!(load_text(c".version 9.0\n.target sm_100\n.address_size 64\n"), R::CUDA_ERROR_INVALID_PTX);
    assert_eq!(load_text(c"\x7fELF\x02\x01\x01"), R::CUDA_ERROR_NO_BINARY_FOR_GPU);
    let mut module = null_mut();
    fails!(cuModuleLoadData(&mut module, std::ptr::null()), CUDA_ERROR_INVALID_VALUE);
    fails!(cuModuleLoad(&mut module, c"/no/such/file.ptx".as_ptr()), CUDA_ERROR_FILE_NOT_FOUND);
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&KERNELS.as_bytes()[..KERNELS.len() - 1]).expect("written");
    let path = std::ffi::CString::new(file.path().to_str().expect("UTF-8")).expect("no NUL");
    ok!(cuModuleLoad(&mut module, path.as_ptr()));
    function(module, "scale");
}

#[test]
fn the_log_of_the_compiler() {
    let _context = Context::new();
    let mut log = vec![b'x'; 300];
    let mut options = [
        CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        CUjit_option::CU_JIT_WALL_TIME,
        CUjit_option::CU_JIT_MAX_REGISTERS,
    ];
    let mut values: [*mut c_void; 4] =
        [log.as_mut_ptr().cast(), 300 as *mut c_void, null_mut(), 32 as *mut c_void];
    let text = c".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry broken()\n{\n    frobnicate.u32 %r1;\n    ret;\n}\n";
    let mut module = null_mut();
    fails!(
        cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 4, options.as_mut_ptr(), values.as_mut_ptr()),
        CUDA_ERROR_INVALID_PTX
    );
    let message = CStr::from_bytes_until_nul(&log).expect("a NUL").to_string_lossy().into_owned();
    assert!(message.contains("frobnicate") && message.contains('6'), "{message}");
    assert_eq!(values[1] as usize, message.len());
    // A buffer that is too small holds the beginning.
    let mut short = [b'x'; 8];
    values[0] = short.as_mut_ptr().cast();
    values[1] = 8 as *mut c_void;
    fails!(
        cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr()),
        CUDA_ERROR_INVALID_PTX
    );
    assert_eq!((short[7], short[..7] == message.as_bytes()[..7]), (0, true));
    ok!(cuModuleLoadDataEx(
        &mut module,
        KERNELS.as_ptr().cast(),
        2,
        options.as_mut_ptr(),
        values.as_mut_ptr()
    ));
    assert_eq!((values[1] as usize, short[0]), (0, 0));
}

#[test]
fn libraries() {
    let _context = Context::new();
    let mut library = null_mut();
    ok!(cuLibraryLoadData(
        &mut library,
        KERNELS.as_ptr().cast(),
        null_mut(),
        null_mut(),
        0,
        null_mut(),
        null_mut(),
        0
    ));
    let (mut kernel, mut f, mut count) = (null_mut(), null_mut(), 0);
    ok!(
        cuLibraryGetKernel(&mut kernel, library, c"store".as_ptr()),
        cuKernelGetFunction(&mut f, kernel),
        cuLibraryGetKernelCount(&mut count, library)
    );
    assert!(count > 5);
    let p = alloc(128);
    assert_eq!(launch(f, 1, 32, 0, null_mut(), &[p]), R::CUDA_SUCCESS);
    // A kernel handle serves as a function handle.
    assert_eq!(launch(kernel.cast(), 1, 32, 0, null_mut(), &[p]), R::CUDA_SUCCESS);
    assert_eq!(download::<f32>(p, 32), [1.0; 32]);
    fails!(cuLibraryGetKernel(&mut kernel, library, c"no".as_ptr()), CUDA_ERROR_NOT_FOUND);
    fails!(cuModuleUnload(library.cast()), CUDA_ERROR_INVALID_HANDLE);
    ok!(cuLibraryUnload(library));
    fails!(cuLibraryUnload(library), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(launch(f, 1, 32, 0, null_mut(), &[p]), R::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn attributes_of_kernels() {
    use CUfunction_attribute as A;
    let _context = Context::new();
    let module = module();
    let f = function(module, "shared_both");
    let read = |f, id| {
        let mut value = -1;
        ok!(cuFuncGetAttribute(&mut value, id, f));
        value
    };
    assert_eq!(read(f, A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES), 4096);
    assert_eq!(read(f, A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES), 49_152 - 4096);
    assert_eq!(read(f, A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK), 1024);
    assert_eq!(read(function(module, "bounded"), A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK), 128);
    assert_eq!(read(f, A::CU_FUNC_ATTRIBUTE_PTX_VERSION), 80);
    assert_eq!(read(f, A::CU_FUNC_ATTRIBUTE_BINARY_VERSION), 90);
    assert_eq!(read(f, A::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES), 0);
    assert!((1..=32).contains(&read(f, A::CU_FUNC_ATTRIBUTE_NUM_REGS)));
    let dynamic = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    ok!(cuFuncSetAttribute(f, dynamic, 232_448 - 4096));
    assert_eq!(read(f, dynamic), 232_448 - 4096);
    fails!(cuFuncSetAttribute(f, dynamic, 232_448 - 4095), CUDA_ERROR_INVALID_VALUE);
    fails!(cuFuncSetAttribute(f, dynamic, -1), CUDA_ERROR_INVALID_VALUE);
    fails!(cuFuncSetAttribute(f, A::CU_FUNC_ATTRIBUTE_NUM_REGS, 4), CUDA_ERROR_INVALID_VALUE);
    ok!(cuFuncSetAttribute(f, A::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100));
    fails!(
        cuFuncSetAttribute(f, A::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 101),
        CUDA_ERROR_INVALID_VALUE
    );
    ok!(cuFuncSetCacheConfig(f, CUfunc_cache::CU_FUNC_CACHE_PREFER_SHARED));
    fails!(
        cuFuncGetAttribute(&mut 0, A::CU_FUNC_ATTRIBUTE_NUM_REGS, 0x77 as CUfunction),
        CUDA_ERROR_INVALID_HANDLE
    );
}
