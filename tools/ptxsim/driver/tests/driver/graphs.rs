//! Graphs that a program builds itself, and executable graphs.

use crate::support::*;
use cudarc::driver::sys::*;
use std::ffi::c_void;
use std::ptr::null_mut;

fn graph() -> CUgraph {
    start();
    // SAFETY: writes the graph.
    get(|g| unsafe { cuGraphCreate(g, 0) })
}

fn memset_params(dst: CUdeviceptr, value: u32, count: usize) -> CUDA_MEMSET_NODE_PARAMS {
    // SAFETY: plain numbers.
    let mut params: CUDA_MEMSET_NODE_PARAMS = unsafe { std::mem::zeroed() };
    (params.dst, params.value, params.elementSize, params.width, params.height) = (dst, value, 4, count, 1);
    params
}

fn memset(
    graph: CUgraph,
    after: &[CUgraphNode],
    context: CUcontext,
    dst: CUdeviceptr,
    value: u32,
) -> CUgraphNode {
    let params = memset_params(dst, value, 1);
    // SAFETY: writes the node.
    get(|n| unsafe { cuGraphAddMemsetNode(n, graph, after.as_ptr(), after.len(), &params, context) })
}

fn instantiate(graph: CUgraph) -> CUgraphExec {
    // SAFETY: writes the executable graph.
    get(|e| unsafe { cuGraphInstantiateWithFlags(e, graph, 0) })
}

unsafe extern "C" fn add_one(data: *mut c_void) {
    // SAFETY: the tests pass a number that outlives the graph's launches.
    unsafe { *data.cast::<u32>() += 1 };
}

fn kernel_params(f: CUfunction, params: &mut [*mut c_void]) -> CUDA_KERNEL_NODE_PARAMS {
    // SAFETY: plain numbers and pointers.
    let mut node: CUDA_KERNEL_NODE_PARAMS = unsafe { std::mem::zeroed() };
    node.func = f;
    (node.gridDimX, node.gridDimY, node.gridDimZ) = (1, 1, 1);
    (node.blockDimX, node.blockDimY, node.blockDimZ) = (32, 1, 1);
    node.kernelParams = params.as_mut_ptr();
    node
}

#[test]
fn every_kind_of_node() {
    let context = Context::new();
    let (graph, s, p, f) = (graph(), stream(), alloc(256), function(module(), "count"));
    let zero = memset(graph, &[], context.0, p, 0);
    let mut place = p;
    let mut list = [std::ptr::from_mut(&mut place).cast()];
    let params = kernel_params(f, &mut list);
    let mut calls = 0u32;
    let host = CUDA_HOST_NODE_PARAMS { fn_: Some(add_one), userData: std::ptr::from_mut(&mut calls).cast() };
    let device = CUmemorytype::CU_MEMORYTYPE_DEVICE;
    let mut copy = copy_3d(device, device);
    copy.srcDevice = p;
    copy.dstDevice = p + 64;
    (copy.WidthInBytes, copy.Height, copy.Depth) = (4, 1, 1);
    let (mut kernel, mut called, mut copied, mut last, mut recorded) =
        (null_mut(), null_mut(), null_mut(), null_mut(), null_mut());
    let e = event();
    ok!(
        cuGraphAddKernelNode_v2(&mut kernel, graph, &zero, 1, &params),
        cuGraphAddHostNode(&mut called, graph, &kernel, 1, &host),
        cuGraphAddMemcpyNode(&mut copied, graph, &kernel, 1, &copy, context.0),
        cuGraphAddEmptyNode(&mut last, graph, [called, copied].as_ptr(), 2),
        cuGraphAddEventRecordNode(&mut recorded, graph, &last, 1, e)
    );
    let types = [zero, kernel, called, copied, last, recorded].map(|n| {
        // SAFETY: writes the type.
        get(|t| unsafe { cuGraphNodeGetType(n, t) }) as u32
    });
    assert_eq!(types, [2, 0, 3, 1, 5, 7]);
    // The pointers of a kernel's node are to its own copies.
    place = 0;
    // SAFETY: plain numbers and pointers.
    let mut kept: CUDA_KERNEL_NODE_PARAMS = unsafe { std::mem::zeroed() };
    ok!(cuGraphKernelNodeGetParams_v2(kernel, &mut kept));
    // SAFETY: the kernel has one parameter, an address.
    assert_eq!((unsafe { **kept.kernelParams.cast::<*const u64>() }, kept.blockDimX, place), (p, 32, 0));
    let (mut roots, mut count) = ([null_mut(); 4], 4);
    ok!(cuGraphGetRootNodes(graph, roots.as_mut_ptr(), &mut count));
    assert_eq!((roots, count), ([zero, null_mut(), null_mut(), null_mut()], 1));
    let exec = instantiate(graph);
    ok!(cuGraphLaunch(exec, s), cuGraphLaunch(exec, s), cuStreamSynchronize(s), cuEventQuery(e));
    assert_eq!((calls, download::<u32>(p + 64, 1)), (2, vec![32]));
    ok!(cuGraphNodeSetEnabled(exec, copied, 0));
    upload(p + 64, &[7u32]);
    ok!(cuGraphLaunch(exec, s), cuStreamSynchronize(s));
    assert_eq!(download::<u32>(p + 64, 1), [7]);
    let mut enabled = 9;
    ok!(cuGraphNodeGetEnabled(exec, copied, &mut enabled));
    assert_eq!(enabled, 0);
    fails!(cuGraphNodeSetEnabled(exec, called, 0), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn edges() {
    let context = Context::new();
    let (graph, p) = (graph(), alloc(8));
    let (a, b) = (memset(graph, &[], context.0, p, 1), memset(graph, &[], context.0, p, 2));
    ok!(cuGraphAddDependencies_v2(graph, &a, &b, std::ptr::null(), 1));
    fails!(cuGraphAddDependencies_v2(graph, &a, &b, std::ptr::null(), 1), CUDA_ERROR_INVALID_VALUE);
    fails!(cuGraphAddDependencies_v2(graph, &a, &a, std::ptr::null(), 1), CUDA_ERROR_INVALID_VALUE);
    let (mut from, mut to, mut count) = ([null_mut(); 2], [null_mut(); 2], 2);
    ok!(cuGraphGetEdges_v2(graph, from.as_mut_ptr(), to.as_mut_ptr(), null_mut(), &mut count));
    assert_eq!((count, from[0], to[0], from[1]), (1, a, b, null_mut()));
    let s = stream();
    ok!(cuGraphLaunch(instantiate(graph), s), cuStreamSynchronize(s));
    assert_eq!(download::<u32>(p, 1), [2]);
    // In a circle nothing can begin.
    ok!(cuGraphAddDependencies_v2(graph, &b, &a, std::ptr::null(), 1));
    fails!(cuGraphInstantiateWithFlags(&mut null_mut(), graph, 0), CUDA_ERROR_INVALID_VALUE);
    ok!(cuGraphDestroyNode(b), cuGraphLaunch(instantiate(graph), s), cuStreamSynchronize(s));
    assert_eq!(download::<u32>(p, 1), [1]);
    fails!(cuGraphDestroyNode(b), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn children_and_clones() {
    let context = Context::new();
    let (inner, outer, p, s) = (graph(), graph(), alloc(8), stream());
    let first = memset(inner, &[], context.0, p, 5);
    memset(inner, &[first], context.0, p + 4, 6);
    let (mut child, mut clone, mut found, mut count) = (null_mut(), null_mut(), null_mut(), 0);
    let before = memset(outer, &[], context.0, p, 1);
    ok!(cuGraphAddChildGraphNode(&mut child, outer, &before, 1, inner));
    memset(outer, &[child], context.0, p + 4, 9);
    ok!(cuGraphClone(&mut clone, inner), cuGraphNodeFindInClone(&mut found, first, clone));
    assert_ne!(found, first);
    ok!(cuGraphDestroy(inner), cuGraphGetNodes(clone, null_mut(), &mut count));
    assert_eq!(count, 2);
    ok!(cuGraphLaunch(instantiate(outer), s), cuStreamSynchronize(s));
    assert_eq!(download::<u32>(p, 2), [5, 9]);
}

#[test]
fn updates() {
    let context = Context::new();
    let (p, s, g, other, third) = (alloc(8), stream(), graph(), graph(), graph());
    let node = memset(g, &[], context.0, p, 1);
    memset(other, &[], context.0, p, 2);
    let exec = instantiate(g);
    // SAFETY: plain numbers and pointers.
    let mut result: CUgraphExecUpdateResultInfo = unsafe { std::mem::zeroed() };
    ok!(cuGraphExecUpdate_v2(exec, other, &mut result), cuGraphLaunch(exec, s), cuStreamSynchronize(s));
    assert_eq!((result.result as u32, download::<u32>(p, 1)), (0, vec![2]));
    ok!(cuGraphExecMemsetNodeSetParams(exec, node, &memset_params(p, 3, 1), context.0));
    ok!(cuGraphLaunch(exec, s), cuStreamSynchronize(s));
    assert_eq!(download::<u32>(p, 1), [3]);
    let mut empty = null_mut();
    ok!(cuGraphAddEmptyNode(&mut empty, third, std::ptr::null(), 0));
    fails!(cuGraphExecUpdate_v2(exec, third, &mut result), CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
    assert_eq!((result.result as u32, result.errorNode), (3, empty));
    memset(other, &[], context.0, p + 4, 2);
    fails!(cuGraphExecUpdate_v2(exec, other, &mut result), CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
    assert_eq!(result.result as u32, 2);
}

#[test]
fn what_is_refused() {
    let context = Context::new();
    let (g, mut node) = (graph(), null_mut());
    fails!(cuGraphCreate(&mut null_mut(), 1), CUDA_ERROR_INVALID_VALUE);
    fails!(cuGraphDestroy(null_mut()), CUDA_ERROR_INVALID_VALUE);
    fails!(cuGraphInstantiateWithFlags(&mut null_mut(), null_mut(), 0), CUDA_ERROR_INVALID_VALUE);
    fails!(cuGraphInstantiateWithFlags(&mut null_mut(), g, 4), CUDA_ERROR_NOT_SUPPORTED);
    fails!(cuGraphInstantiateWithFlags(&mut null_mut(), g, 1 << 20), CUDA_ERROR_INVALID_VALUE);
    fails!(cuGraphLaunch(0x60 as CUgraphExec, null_mut()), CUDA_ERROR_INVALID_VALUE);
    fails!(cuGraphAddEmptyNode(&mut node, g, &(0x60 as CUgraphNode), 1), CUDA_ERROR_INVALID_VALUE);
    let params = memset_params(0x99, 0, 1);
    fails!(
        cuGraphAddMemsetNode(&mut node, g, std::ptr::null(), 0, &params, context.0),
        CUDA_ERROR_INVALID_VALUE
    );
    // SAFETY: plain numbers and pointers.
    let mut params: CUDA_GRAPH_INSTANTIATE_PARAMS = unsafe { std::mem::zeroed() };
    let mut exec = null_mut();
    ok!(cuGraphInstantiateWithParams(&mut exec, g, &mut params), cuGraphLaunch(exec, null_mut()));
    assert_eq!(params.result_out as u32, 0);
}

#[test]
fn memory_that_was_freed_since() {
    let context = Context::new();
    let (g, p) = (graph(), alloc(8));
    memset(g, &[], context.0, p, 1);
    let exec = instantiate(g);
    ok!(cuMemFree_v2(p));
    fails!(cuGraphLaunch(exec, null_mut()), CUDA_ERROR_ILLEGAL_ADDRESS);
    fails!(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
}

#[test]
fn a_kernel_that_was_unloaded_since() {
    let _context = Context::new();
    let (g, module) = (graph(), module());
    let mut none = [];
    let params = kernel_params(function(module, "bounded"), &mut none);
    let mut node = null_mut();
    ok!(cuGraphAddKernelNode_v2(&mut node, g, std::ptr::null(), 0, &params));
    let exec = instantiate(g);
    ok!(cuModuleUnload(module));
    fails!(cuGraphLaunch(exec, null_mut()), CUDA_ERROR_INVALID_HANDLE);
}
