//! Modules, libraries, kernels.

use super::entries;
use crate::ffi::{Handle, In, Out, Text};
use crate::{function, module};
use std::ffi::{c_char, c_int, c_uint};

entries! {
    cuModuleLoad(out: Out<Handle>, path: Text) => module::load(out, path);
    cuModuleLoadData(out: Out<Handle>, image: usize) => module::load_data(out, image);
    cuModuleLoadFatBinary(out: Out<Handle>, image: usize) => module::load_data(out, image);
    cuModuleLoadDataEx(
        out: Out<Handle>, image: usize, count: c_uint, options: In<c_uint>, values: Out<usize>,
    ) => module::load_data_ex(out, image, count, options, values);
    cuModuleUnload(module: Handle) => module::unload(module);
    cuModuleGetFunction(out: Out<Handle>, module: Handle, name: Text) => module::get_function(out, module, name);
    cuModuleGetFunctionCount(out: Out<c_uint>, module: Handle) => module::function_count(out, module);
    cuModuleEnumerateFunctions(out: Out<Handle>, count: c_uint, module: Handle) =>
        module::functions(out, count, module);
    cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: Handle, name: Text) =>
        module::global(address, bytes, module, name);
    cuModuleGetLoadingMode(out: Out<c_uint>) => module::loading_mode(out);

    cuLibraryLoadData(
        out: Out<Handle>, image: usize, jit: In<c_uint>, jit_values: Out<usize>, jit_count: c_uint,
        _options: usize, _values: usize, _count: c_uint,
    ) => module::library_load_data(out, image, jit, jit_values, jit_count);
    cuLibraryLoadFromFile(
        out: Out<Handle>, path: Text, jit: In<c_uint>, jit_values: Out<usize>, jit_count: c_uint,
        _options: usize, _values: usize, _count: c_uint,
    ) => module::library_load_file(out, path, jit, jit_values, jit_count);
    cuLibraryUnload(library: Handle) => module::library_unload(library);
    cuLibraryGetKernel(out: Out<Handle>, library: Handle, name: Text) => module::library_kernel(out, library, name);
    cuLibraryGetModule(out: Out<Handle>, library: Handle) => module::library_module(out, library);
    cuLibraryGetGlobal(address: Out<u64>, bytes: Out<usize>, library: Handle, name: Text) =>
        module::global(address, bytes, library, name);
    cuLibraryGetKernelCount(out: Out<c_uint>, library: Handle) => module::library_kernel_count(out, library);
    cuLibraryEnumerateKernels(out: Out<Handle>, count: c_uint, library: Handle) =>
        module::library_kernels(out, count, library);

    cuKernelGetFunction(out: Out<Handle>, kernel: Handle) => function::kernel_function(out, kernel);
    cuKernelGetLibrary(out: Out<Handle>, kernel: Handle) => function::get_module(out, kernel);
    cuKernelGetName(out: Out<*const c_char>, kernel: Handle) => function::get_name(out, kernel);
    cuKernelGetParamInfo(kernel: Handle, index: usize, offset: Out<usize>, bytes: Out<usize>) =>
        function::param_info(kernel, index, offset, bytes);
    cuKernelGetParamCount(kernel: Handle, out: Out<usize>) => function::param_count(kernel, out);
    cuKernelGetAttribute(out: Out<c_int>, attribute: c_uint, kernel: Handle, device: c_int) =>
        function::kernel_get_attribute(out, attribute, kernel, device);
    cuKernelSetAttribute(attribute: c_uint, value: c_int, kernel: Handle, device: c_int) =>
        function::kernel_set_attribute(attribute, value, kernel, device);
    cuKernelSetCacheConfig(kernel: Handle, config: c_uint, device: c_int) =>
        function::kernel_set_cache_config(kernel, config, device);

    cuFuncGetAttribute(out: Out<c_int>, attribute: c_uint, function: Handle) =>
        function::get_attribute(out, attribute, function);
    cuFuncSetAttribute(function: Handle, attribute: c_uint, value: c_int) =>
        function::set_attribute(function, attribute, value);
    cuFuncSetCacheConfig(function: Handle, config: c_uint) => function::set_cache_config(function, config);
    cuFuncSetSharedMemConfig(function: Handle, config: c_uint) => function::set_shared_config(function, config);
    cuFuncGetModule(out: Out<Handle>, function: Handle) => function::get_module(out, function);
    cuFuncGetName(out: Out<*const c_char>, function: Handle) => function::get_name(out, function);
    cuFuncGetParamInfo(function: Handle, index: usize, offset: Out<usize>, bytes: Out<usize>) =>
        function::param_info(function, index, offset, bytes);
    cuFuncGetParamCount(function: Handle, out: Out<usize>) => function::param_count(function, out);
    cuFuncIsLoaded(out: Out<c_uint>, function: Handle) => function::is_loaded(out, function);
    cuFuncLoad(function: Handle) => function::load(function);
}
