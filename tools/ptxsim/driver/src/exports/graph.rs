//! Graphs.

use super::entries;
use crate::ffi::{
    Handle, HostNodeParams, In, InstantiateParams, KernelNodeParams, KernelNodeParams2, Memcpy3d,
    MemsetNodeParams, Out, UpdateResult,
};
use crate::{graph, graph_exec, graph_nodes};
use std::ffi::c_uint;

entries! {
    cuGraphCreate(out: Out<Handle>, flags: c_uint) => graph::create(out, flags);
    cuGraphDestroy(graph: Handle) => graph::destroy(graph);
    cuGraphClone(out: Out<Handle>, graph: Handle) => graph::clone(out, graph);
    cuGraphNodeFindInClone(out: Out<Handle>, node: Handle, clone: Handle) => graph::find_in_clone(out, node, clone);
    cuGraphGetId(graph: Handle, out: Out<c_uint>) => graph::id(graph, out);
    cuGraphGetNodes(graph: Handle, out: Out<Handle>, count: Out<usize>) => graph::get_nodes(graph, out, count);
    cuGraphGetRootNodes(graph: Handle, out: Out<Handle>, count: Out<usize>) => graph::get_roots(graph, out, count);
    cuGraphGetEdges(graph: Handle, from: Out<Handle>, to: Out<Handle>, count: Out<usize>) =>
        graph::get_edges(graph, from, to, count);
    cuGraphGetEdges_v2(graph: Handle, from: Out<Handle>, to: Out<Handle>, data: Out<u64>, count: Out<usize>) =>
        graph::get_edges_v2(graph, from, to, data, count);
    cuGraphAddDependencies(graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) =>
        graph::add_dependencies(graph, from, to, count);
    cuGraphAddDependencies_v2(graph: Handle, from: In<Handle>, to: In<Handle>, data: In<u64>, count: usize) =>
        graph::add_dependencies_v2(graph, from, to, data, count);
    cuGraphRemoveDependencies(graph: Handle, from: In<Handle>, to: In<Handle>, count: usize) =>
        graph::remove_dependencies(graph, from, to, count);
    cuGraphDestroyNode(node: Handle) => graph::destroy_node(node);
    cuGraphNodeGetType(node: Handle, out: Out<c_uint>) => graph::node_type(node, out);
    cuGraphNodeGetDependencies(node: Handle, out: Out<Handle>, count: Out<usize>) =>
        graph::dependencies(node, out, count);
    cuGraphNodeGetDependentNodes(node: Handle, out: Out<Handle>, count: Out<usize>) =>
        graph::dependents(node, out, count);

    cuGraphAddEmptyNode(out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize) =>
        graph_nodes::add_empty(out, graph, after, count);
    cuGraphAddKernelNode(
        out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<KernelNodeParams>,
    ) => graph_nodes::add_kernel(out, graph, after, count, params);
    cuGraphAddKernelNode_v2(
        out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<KernelNodeParams2>,
    ) => graph_nodes::add_kernel_v2(out, graph, after, count, params);
    cuGraphAddHostNode(
        out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<HostNodeParams>,
    ) => graph_nodes::add_host(out, graph, after, count, params);
    cuGraphAddMemsetNode(
        out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<MemsetNodeParams>, context: Handle,
    ) => graph_nodes::add_memset(out, graph, after, count, params, context);
    cuGraphAddMemcpyNode(
        out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, params: In<Memcpy3d>, context: Handle,
    ) => graph_nodes::add_memcpy(out, graph, after, count, params, context);
    cuGraphAddChildGraphNode(
        out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, child: Handle,
    ) => graph_nodes::add_child(out, graph, after, count, child);
    cuGraphChildGraphNodeGetGraph(node: Handle, out: Out<Handle>) => graph_nodes::child(node, out);
    cuGraphAddEventRecordNode(
        out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, event: Handle,
    ) => graph_nodes::add_event_record(out, graph, after, count, event);
    cuGraphAddEventWaitNode(
        out: Out<Handle>, graph: Handle, after: In<Handle>, count: usize, event: Handle,
    ) => graph_nodes::add_event_wait(out, graph, after, count, event);
    cuGraphKernelNodeGetParams(node: Handle, out: Out<KernelNodeParams>) => graph_nodes::get_kernel(node, out);
    cuGraphKernelNodeGetParams_v2(node: Handle, out: Out<KernelNodeParams2>) => graph_nodes::get_kernel_v2(node, out);
    cuGraphKernelNodeSetParams(node: Handle, params: In<KernelNodeParams>) => graph_nodes::set_kernel(node, params);
    cuGraphKernelNodeSetParams_v2(node: Handle, params: In<KernelNodeParams2>) =>
        graph_nodes::set_kernel_v2(node, params);
    cuGraphHostNodeGetParams(node: Handle, out: Out<HostNodeParams>) => graph_nodes::get_host(node, out);
    cuGraphHostNodeSetParams(node: Handle, params: In<HostNodeParams>) => graph_nodes::set_host(node, params);
    cuGraphMemsetNodeGetParams(node: Handle, out: Out<MemsetNodeParams>) => graph_nodes::get_memset(node, out);
    cuGraphMemsetNodeSetParams(node: Handle, params: In<MemsetNodeParams>) => graph_nodes::set_memset(node, params);
    cuGraphMemcpyNodeSetParams(node: Handle, params: In<Memcpy3d>) => graph_nodes::set_memcpy(node, params);

    cuGraphInstantiate_v2(
        out: Out<Handle>, graph: Handle, node: Out<Handle>, log: Out<u8>, room: usize,
    ) => graph_exec::instantiate_v2(out, graph, node, log, room);
    cuGraphInstantiateWithFlags(out: Out<Handle>, graph: Handle, flags: u64) =>
        graph_exec::instantiate(out, graph, flags);
    cuGraphInstantiateWithParams(out: Out<Handle>, graph: Handle, params: Out<InstantiateParams>) =>
        graph_exec::instantiate_with_params(out, graph, params);
    cuGraphExecDestroy(exec: Handle) => graph_exec::destroy(exec);
    cuGraphExecGetFlags(exec: Handle, out: Out<u64>) => graph_exec::flags(exec, out);
    cuGraphUpload(exec: Handle, stream: Handle) => graph_exec::upload(exec, stream);
    cuGraphLaunch(exec: Handle, stream: Handle) => graph_exec::launch(exec, stream);
    cuGraphExecUpdate(exec: Handle, graph: Handle, node: Out<Handle>, out: Out<c_uint>) =>
        graph_exec::update(exec, graph, node, out);
    cuGraphExecUpdate_v2(exec: Handle, graph: Handle, out: Out<UpdateResult>) =>
        graph_exec::update_v2(exec, graph, out);
    cuGraphNodeSetEnabled(exec: Handle, node: Handle, enabled: c_uint) => graph_exec::set_enabled(exec, node, enabled);
    cuGraphNodeGetEnabled(exec: Handle, node: Handle, out: Out<c_uint>) => graph_exec::get_enabled(exec, node, out);
    cuGraphExecKernelNodeSetParams(exec: Handle, node: Handle, params: In<KernelNodeParams>) =>
        graph_nodes::exec_set_kernel(exec, node, params);
    cuGraphExecKernelNodeSetParams_v2(exec: Handle, node: Handle, params: In<KernelNodeParams2>) =>
        graph_nodes::exec_set_kernel_v2(exec, node, params);
    cuGraphExecHostNodeSetParams(exec: Handle, node: Handle, params: In<HostNodeParams>) =>
        graph_nodes::exec_set_host(exec, node, params);
    cuGraphExecMemsetNodeSetParams(exec: Handle, node: Handle, params: In<MemsetNodeParams>, context: Handle) =>
        graph_nodes::exec_set_memset(exec, node, params, context);
    cuGraphExecMemcpyNodeSetParams(exec: Handle, node: Handle, params: In<Memcpy3d>, context: Handle) =>
        graph_nodes::exec_set_memcpy(exec, node, params, context);
}
