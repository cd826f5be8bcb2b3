//! Nodes that a program adds to a graph itself, and their parameters.

use crate::context::initialised;
use crate::copy::{Copy, Fill};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ffi::{
    Handle, HostNodeParams, In, KernelNodeParams, KernelNodeParams2, Memcpy3d, MemsetNodeParams, Out,
};
use crate::graph::{self, Graph};
use crate::graph_exec;
use crate::handles;
use crate::launch::{self, Options};
use crate::op::{HostCall, Op};
use std::sync::Arc;

fn add(out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, op: Op) -> Result {
    let graph = graph::graph(graph)?;
    out.needed()?;
    let after = graph.nodes_of(&after.list(count)?)?;
    out.set(graph.handle_of(graph.add(op, &after)))
}

fn kernel(params: KernelNodeParams) -> Result<Op> {
    let options =
        Options { grid: params.grid, block: params.block, shared: params.shared, ..Options::default() };
    launch::prepare(params.function, options, params.params, params.extra).map(|k| Op::Kernel(Arc::new(k)))
}

fn kernel_v2(mut params: KernelNodeParams2) -> Result<Op> {
    if params.base.function.is_null() {
        params.base.function = params.kernel;
    }
    kernel(params.base)
}

fn host(params: HostNodeParams) -> Result<Op> {
    let function = params.function.ok_or(Error::INVALID_VALUE)?;
    Ok(Op::Host(HostCall { function, data: params.data }))
}

fn memset(params: MemsetNodeParams) -> Result<Op> {
    let element = u8::try_from(params.element).map_err(|_| Error::INVALID_VALUE)?;
    Fill::new(
        params.dst,
        params.pitch as u64,
        element,
        params.value,
        params.width as u64,
        params.height as u64,
    )
    .map(Op::Fill)
}

/// `cuGraphAddEmptyNode`.
pub fn add_empty(out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize) -> Result {
    add(out, graph, after, count, Op::Empty)
}

/// `cuGraphAddKernelNode`.
pub fn add_kernel(
    out: Out<Handle>,
    graph: Handle,
    after: In<Handle>,
    count: usize,
    params: In<KernelNodeParams>,
) -> Result {
    initialised()?;
    add(out, graph, after, count, kernel(params.get()?)?)
}

/// `cuGraphAddKernelNode_v2`.
pub fn add_kernel_v2(
    out: Out<Handle>,
    graph: Handle,
    after: In<Handle>,
    count: usize,
    params: In<KernelNodeParams2>,
) -> Result {
    initialised()?;
    add(out, graph, after, count, kernel_v2(params.get()?)?)
}

/// `cuGraphAddHostNode`.
pub fn add_host(
    out: Out<Handle>,
    graph: Handle,
    after: In<Handle>,
    count: usize,
    params: In<HostNodeParams>,
) -> Result {
    initialised()?;
    add(out, graph, after, count, host(params.get()?)?)
}

/// `cuGraphAddMemsetNode`.
pub fn add_memset(
    out: Out<Handle>,
    graph: Handle,
    after: In<Handle>,
    count: usize,
    params: In<MemsetNodeParams>,
    _context: Handle,
) -> Result {
    initialised()?;
    add(out, graph, after, count, memset(params.get()?)?)
}

/// `cuGraphAddMemcpyNode`.
pub fn add_memcpy(
    out: Out<Handle>,
    graph: Handle,
    after: In<Handle>,
    count: usize,
    params: In<Memcpy3d>,
    _context: Handle,
) -> Result {
    initialised()?;
    add(out, graph, after, count, Op::Copy(Copy::from_3d(&params.get()?, "memcpy node")?))
}

/// `cuGraphAddChildGraphNode`: a copy of the graph as it is now.
pub fn add_child(out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, child: Handle) -> Result {
    let child = graph::graph(child)?.copy();
    add(out, graph, after, count, Op::Child(child))
}

/// `cuGraphChildGraphNodeGetGraph`.
pub fn child(node: Handle, out: Out<Handle>) -> Result {
    match op(node)? {
        Op::Child(graph) => out.set(graph.publish()),
        _ => Err(Error::INVALID_VALUE),
    }
}

/// `cuGraphAddEventRecordNode`.
pub fn add_event_record(
    out: Out<Handle>,
    graph: Handle,
    after: In<Handle>,
    count: usize,
    event: Handle,
) -> Result {
    initialised()?;
    add(out, graph, after, count, Op::RecordEvent(handles::get::<Event>(event)?))
}

/// `cuGraphAddEventWaitNode`.
pub fn add_event_wait(
    out: Out<Handle>,
    graph: Handle,
    after: In<Handle>,
    count: usize,
    event: Handle,
) -> Result {
    initialised()?;
    add(out, graph, after, count, Op::WaitEvent(handles::get::<Event>(event)?))
}

fn op(node: Handle) -> Result<Op> {
    let (graph, id) = graph::node(node)?;
    graph.op(id)
}

fn set(node: Handle, op: Op) -> Result {
    let (graph, id): (Arc<Graph>, _) = graph::node(node)?;
    graph.replace(id, op)
}

/// `cuGraphKernelNodeGetParams`. The pointers are the node's and live as long as it has these parameters.
pub fn get_kernel(node: Handle, out: Out<KernelNodeParams>) -> Result {
    match op(node)? {
        Op::Kernel(launch) => out.set(launch.node_params()),
        _ => Err(Error::INVALID_VALUE),
    }
}

/// `cuGraphKernelNodeGetParams_v2`.
pub fn get_kernel_v2(node: Handle, out: Out<KernelNodeParams2>) -> Result {
    match op(node)? {
        Op::Kernel(launch) => out.set(KernelNodeParams2 {
            base: launch.node_params(),
            kernel: Handle::NULL,
            context: launch.function.context_handle(),
        }),
        _ => Err(Error::INVALID_VALUE),
    }
}

/// `cuGraphKernelNodeSetParams`.
pub fn set_kernel(node: Handle, params: In<KernelNodeParams>) -> Result {
    initialised()?;
    set(node, kernel(params.get()?)?)
}

/// `cuGraphKernelNodeSetParams_v2`.
pub fn set_kernel_v2(node: Handle, params: In<KernelNodeParams2>) -> Result {
    initialised()?;
    set(node, kernel_v2(params.get()?)?)
}

/// `cuGraphHostNodeGetParams`.
pub fn get_host(node: Handle, out: Out<HostNodeParams>) -> Result {
    match op(node)? {
        Op::Host(call) => out.set(HostNodeParams { function: Some(call.function), data: call.data }),
        _ => Err(Error::INVALID_VALUE),
    }
}

/// `cuGraphHostNodeSetParams`.
pub fn set_host(node: Handle, params: In<HostNodeParams>) -> Result {
    initialised()?;
    set(node, host(params.get()?)?)
}

/// `cuGraphMemsetNodeGetParams`.
pub fn get_memset(node: Handle, out: Out<MemsetNodeParams>) -> Result {
    match op(node)? {
        Op::Fill(fill) => out.set(fill.node_params()),
        _ => Err(Error::INVALID_VALUE),
    }
}

/// `cuGraphMemsetNodeSetParams`.
pub fn set_memset(node: Handle, params: In<MemsetNodeParams>) -> Result {
    initialised()?;
    set(node, memset(params.get()?)?)
}

/// `cuGraphMemcpyNodeSetParams`.
pub fn set_memcpy(node: Handle, params: In<Memcpy3d>) -> Result {
    initialised()?;
    set(node, Op::Copy(Copy::from_3d(&params.get()?, "memcpy node")?))
}

/// `cuGraphExecKernelNodeSetParams`.
pub fn exec_set_kernel(exec: Handle, node: Handle, params: In<KernelNodeParams>) -> Result {
    initialised()?;
    graph_exec::replace(exec, node, kernel(params.get()?)?)
}

/// `cuGraphExecKernelNodeSetParams_v2`.
pub fn exec_set_kernel_v2(exec: Handle, node: Handle, params: In<KernelNodeParams2>) -> Result {
    initialised()?;
    graph_exec::replace(exec, node, kernel_v2(params.get()?)?)
}

/// `cuGraphExecHostNodeSetParams`.
pub fn exec_set_host(exec: Handle, node: Handle, params: In<HostNodeParams>) -> Result {
    initialised()?;
    graph_exec::replace(exec, node, host(params.get()?)?)
}

/// `cuGraphExecMemsetNodeSetParams`.
pub fn exec_set_memset(exec: Handle, node: Handle, params: In<MemsetNodeParams>, _context: Handle) -> Result {
    initialised()?;
    graph_exec::replace(exec, node, memset(params.get()?)?)
}

/// `cuGraphExecMemcpyNodeSetParams`.
pub fn exec_set_memcpy(exec: Handle, node: Handle, params: In<Memcpy3d>, _context: Handle) -> Result {
    initialised()?;
    graph_exec::replace(exec, node, Op::Copy(Copy::from_3d(&params.get()?, "memcpy node")?))
}
