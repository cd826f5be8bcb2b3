//! Streams and capture.

use super::entries;
use crate::ffi::{Handle, HostFn, In, Out, StreamCallback};
use crate::{capture, stream};
use std::ffi::{c_int, c_uint};

entries! {
    cuStreamCreate(out: Out<Handle>, flags: c_uint) => stream::create(out, flags);
    cuStreamCreateWithPriority(out: Out<Handle>, flags: c_uint, priority: c_int) =>
        stream::create_with_priority(out, flags, priority);
    cuStreamDestroy_v2(stream: Handle) => stream::destroy(stream);
    cuStreamSynchronize(stream: Handle) => stream::synchronize(stream);
    cuStreamQuery(stream: Handle) => stream::query(stream);
    cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint) => stream::wait_event(stream, event, flags);
    cuStreamGetPriority(stream: Handle, out: Out<c_int>) => stream::priority(stream, out);
    cuStreamGetFlags(stream: Handle, out: Out<c_uint>) => stream::flags(stream, out);
    cuStreamGetId(stream: Handle, out: Out<u64>) => stream::id(stream, out);
    cuStreamGetCtx(stream: Handle, out: Out<Handle>) => stream::get_context(stream, out);
    cuStreamGetCtx_v2(stream: Handle, out: Out<Handle>, green: Out<Handle>) =>
        stream::get_context_v2(stream, out, green);
    cuStreamGetDevice(stream: Handle, out: Out<c_int>) => stream::get_device(stream, out);
    cuStreamGetGreenCtx(stream: Handle, out: Out<Handle>) => stream::get_green_context(stream, out);
    cuStreamAttachMemAsync(stream: Handle, address: u64, bytes: usize, flags: c_uint) =>
        stream::attach_memory(stream, address, bytes, flags);
    cuLaunchHostFunc(stream: Handle, function: Option<HostFn>, data: usize) =>
        stream::host_function(stream, function, data);
    cuStreamAddCallback(stream: Handle, callback: Option<StreamCallback>, data: usize, flags: c_uint) =>
        stream::add_callback(stream, callback, data, flags);
    cuStreamBeginCapture_v2(stream: Handle, mode: c_uint) => capture::begin(stream, mode);
    cuStreamBeginCaptureToGraph(
        stream: Handle, graph: Handle, after: In<Handle>, edges: usize, count: usize, mode: c_uint,
    ) => capture::begin_to_graph(stream, graph, after, edges, count, mode);
    cuStreamEndCapture(stream: Handle, out: Out<Handle>) => capture::end(stream, out);
    cuStreamIsCapturing(stream: Handle, out: Out<c_uint>) => capture::is_capturing(stream, out);
    cuStreamGetCaptureInfo(stream: Handle, state: Out<c_uint>, id: Out<u64>) => capture::info(stream, state, id);
    cuStreamGetCaptureInfo_v2(
        stream: Handle, state: Out<c_uint>, id: Out<u64>, graph: Out<Handle>, nodes: Out<usize>, count: Out<usize>,
    ) => capture::info_v2(stream, state, id, graph, nodes, count);
    cuStreamGetCaptureInfo_v3(
        stream: Handle, state: Out<c_uint>, id: Out<u64>, graph: Out<Handle>, nodes: Out<usize>, edges: Out<usize>,
        count: Out<usize>,
    ) => capture::info_v3(stream, state, id, graph, nodes, edges, count);
    cuStreamUpdateCaptureDependencies(stream: Handle, nodes: In<Handle>, count: usize, flags: c_uint) =>
        capture::update(stream, nodes, count, flags);
    cuStreamUpdateCaptureDependencies_v2(
        stream: Handle, nodes: In<Handle>, edges: usize, count: usize, flags: c_uint,
    ) => capture::update_v2(stream, nodes, edges, count, flags);
    cuThreadExchangeStreamCaptureMode(mode: Out<c_uint>) => capture::exchange_mode(mode);
}
