//! Graphs made ready to run.

use crate::context::{Context, initialised};
use crate::error::{Error, Result};
use crate::ffi::{Handle, InstantiateParams, Out, UpdateResult};
use crate::graph::{self, Graph, NodeId};
use crate::handles;
use crate::op::{self, Op};
use crate::order::{Clock, Moment, Timeline};
use crate::state::{self, Driver, lock};
use crate::stream::{self, Stream};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Flags of instantiation that are accepted: freeing on launch, upload, node priorities.
const FLAGS: u64 = 1 | 2 | 8;
/// `CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD`
const UPLOAD: u64 = 2;
/// `CUDA_GRAPH_INSTANTIATE_INVALID_STRUCTURE`
const INVALID_STRUCTURE: u32 = 2;

/// A node that is ready to run.
#[derive(Clone)]
struct ExecNode {
    op: Op,
    /// Positions in the list.
    after: Vec<usize>,
    /// The node it was made from; by address of the graph, since that is only compared.
    source: (usize, NodeId),
    enabled: bool,
}

/// An executable graph.
pub struct GraphExec {
    nodes: Mutex<Vec<ExecNode>>,
    /// The graph and its children, whose memory must live on.
    graphs: Mutex<Vec<Arc<Graph>>>,
    /// Branches besides the stream's own line; kept, since one launch of an executable graph waits for the last.
    branches: Mutex<Vec<Timeline>>,
    /// End of the last launch.
    last: Mutex<Clock>,
    flags: u64,
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        if let Ok(driver) = state::driver() {
            let mut order = lock(&driver.order);
            for branch in lock(&self.branches).drain(..) {
                order.retire(branch);
            }
        }
    }
}

/// Lays a graph and its children out in one list; returns the positions of the last nodes.
fn flatten(
    graph: &Arc<Graph>,
    first_after: &[usize],
    list: &mut Vec<ExecNode>,
    graphs: &mut Vec<Arc<Graph>>,
) -> Result<Vec<usize>> {
    graphs.push(graph.clone());
    let address = Arc::as_ptr(graph) as usize;
    let mut places: HashMap<NodeId, usize> = HashMap::new();
    for (id, node) in graph.sorted().ok_or(Error::INVALID_VALUE)? {
        let mut after: Vec<usize> = node.after.iter().map(|a| places[a]).collect();
        if after.is_empty() {
            after = first_after.to_vec();
        }
        if let Op::Child(child) = &node.op {
            let ends = flatten(child, &after, list, graphs)?;
            if !ends.is_empty() {
                after = ends;
            }
        }
        places.insert(id, list.len());
        list.push(ExecNode { op: node.op, after, source: (address, id), enabled: true });
    }
    Ok(graph.leaves().iter().map(|id| places[id]).collect())
}

fn make(graph: &Arc<Graph>, flags: u64) -> Result<Handle> {
    if flags & !FLAGS != 0 {
        return Err(if flags & 4 != 0 { Error::NOT_SUPPORTED } else { Error::INVALID_VALUE });
    }
    let (mut nodes, mut graphs) = (Vec::new(), Vec::new());
    flatten(graph, &[], &mut nodes, &mut graphs)?;
    Ok(handles::insert(Arc::new(GraphExec {
        nodes: Mutex::new(nodes),
        graphs: Mutex::new(graphs),
        branches: Mutex::default(),
        last: Mutex::default(),
        flags,
    })))
}

fn exec(handle: Handle) -> Result<Arc<GraphExec>> {
    initialised()?;
    handles::find(handle).ok_or(Error::INVALID_VALUE)
}

/// `cuGraphInstantiateWithFlags`.
pub fn instantiate(out: Out<Handle>, graph: Handle, flags: u64) -> Result {
    let graph = graph::graph(graph)?;
    out.needed()?;
    out.set(make(&graph, flags)?)
}

/// `cuGraphInstantiate_v2`, with its log.
pub fn instantiate_v2(
    out: Out<Handle>,
    graph: Handle,
    node: Out<Handle>,
    log: Out<u8>,
    room: usize,
) -> Result {
    node.set_if(Handle::NULL);
    if room > 0 {
        log.set_if(0);
    }
    instantiate(out, graph, 0)
}

/// `cuGraphInstantiateWithParams`.
pub fn instantiate_with_params(out: Out<Handle>, graph: Handle, params: Out<InstantiateParams>) -> Result {
    let graph = graph::graph(graph)?;
    out.needed()?;
    let mut given = params.get()?;
    if given.flags & UPLOAD != 0 {
        stream::resolve(given.stream)?;
    }
    let made = make(&graph, given.flags);
    given.error_node = Handle::NULL;
    given.result = if made.is_ok() { 0 } else { INVALID_STRUCTURE };
    params.set(given)?;
    out.set(made?)
}

/// `cuGraphExecDestroy`.
pub fn destroy(handle: Handle) -> Result {
    exec(handle)?;
    handles::take::<GraphExec>(handle).map(|_| ())
}

/// `cuGraphExecGetFlags`.
pub fn flags(handle: Handle, out: Out<u64>) -> Result {
    out.set(exec(handle)?.flags)
}

/// `cuGraphUpload`: everything is where it is needed.
pub fn upload(handle: Handle, stream: Handle) -> Result {
    exec(handle)?;
    let stream = stream::resolve(stream)?;
    crate::capture::refuse_on(&stream)
}

/// `cuGraphLaunch`.
pub fn launch(handle: Handle, stream: Handle) -> Result {
    let exec = exec(handle)?;
    let stream = stream::resolve(stream)?;
    let context = stream.context()?;
    let nodes = lock(&exec.nodes).clone();
    if crate::capture::is_active(&stream) {
        let graph = Graph::new();
        for node in &nodes {
            let after: Vec<NodeId> = node.after.iter().map(|&a| a as NodeId).collect();
            graph.add(node.op.clone(), &after);
        }
        return op::enqueue(&stream, Op::Child(graph)).map(|_| ());
    }
    let driver = state::driver()?;
    crate::capture::refuse_implicit(&stream)?;
    let before = stream.blockers(&context);
    let moments = exec.plan(driver, &context, &stream, &nodes);
    if nodes.iter().any(|n| n.enabled && matches!(n.op, Op::Host(_))) {
        // Beside the program, since a host function may wait for it. A fault stays with the context.
        return stream::spawn(&stream, before, move || {
            let _ = run(driver, &context, &nodes, &moments);
        });
    }
    for ticket in before {
        ticket.wait();
    }
    run(driver, &context, &nodes, &moments)
}

/// Does the nodes' work, one after the other.
fn run(driver: &'static Driver, context: &Arc<Context>, nodes: &[ExecNode], moments: &[Moment]) -> Result {
    for (node, moment) in nodes.iter().zip(moments).filter(|(n, _)| n.enabled) {
        match &node.op {
            Op::WaitEvent(event) => event.recorded().1.iter().for_each(|ticket| ticket.wait()),
            Op::Host(_) => lock(&driver.order).host_waited(moment.clock()),
            _ => {}
        }
        op::perform(driver, context, &node.op, moment)?;
    }
    Ok(())
}

impl GraphExec {
    /// Places the nodes in the order of things. A node goes on in the line of one that it waits for, the first in the
    /// stream's own; where lines fork there are branches.
    fn plan(&self, driver: &Driver, context: &Context, stream: &Stream, nodes: &[ExecNode]) -> Vec<Moment> {
        let mut last = lock(&self.last);
        lock(&driver.order).wait(stream.timeline, std::slice::from_ref(&*last));
        let launch = stream.moment(driver, context, "graph launch");
        let mut order = lock(&driver.order);
        let mut branches = lock(&self.branches);
        let mut next_branch = 0;
        let mut lines: Vec<Timeline> = Vec::with_capacity(nodes.len());
        let mut continued = vec![false; nodes.len()];
        let mut waited = vec![false; nodes.len()];
        let mut stream_taken = false;
        let mut moments: Vec<Moment> = Vec::with_capacity(nodes.len());
        for node in nodes {
            let mut line = None;
            if let Some(&before) = node.after.iter().find(|&&a| !continued[a]) {
                continued[before] = true;
                line = Some(lines[before]);
            } else if node.after.is_empty() && !stream_taken {
                stream_taken = true;
                line = Some(stream.timeline);
            }
            let line = line.unwrap_or_else(|| {
                if next_branch == branches.len() {
                    branches.push(order.timeline());
                }
                next_branch += 1;
                branches[next_branch - 1]
            });
            node.after.iter().for_each(|&a| waited[a] = true);
            let mut after: Vec<Clock> = node.after.iter().map(|&a| moments[a].clock().clone()).collect();
            after.push(launch.clock().clone());
            if let Op::WaitEvent(event) = &node.op {
                after.push(event.recorded().0);
            }
            moments.push(order.enqueue(line, &after, node.op.what().into()));
            lines.push(line);
        }
        let ends = moments.iter().zip(&waited).filter(|(_, waited)| !**waited);
        let ends: Vec<Clock> = ends.map(|(m, _)| m.clock().clone()).collect();
        order.wait(stream.timeline, &ends);
        *last = order.clock(stream.timeline);
        moments
    }
}

/// Why an update was refused: `CUgraphExecUpdateResult` and the node of the new graph.
fn update_exec(exec: &GraphExec, graph: &Arc<Graph>) -> std::result::Result<(), (u32, Handle)> {
    const ERROR: u32 = 1;
    const TOPOLOGY: u32 = 2;
    const TYPE: u32 = 3;
    let (mut new, mut graphs) = (Vec::new(), Vec::new());
    flatten(graph, &[], &mut new, &mut graphs).map_err(|_| (ERROR, Handle::NULL))?;
    let mut old = lock(&exec.nodes);
    if old.len() != new.len() {
        return Err((TOPOLOGY, Handle::NULL));
    }
    for (mine, theirs) in old.iter().zip(&new) {
        let node = || graphs.iter().find(|g| Arc::as_ptr(g) as usize == theirs.source.0);
        let handle = || node().map_or(Handle::NULL, |g| g.handle_of(theirs.source.1));
        if mine.op.node_type() != theirs.op.node_type() {
            return Err((TYPE, handle()));
        }
        if mine.after != theirs.after {
            return Err((TOPOLOGY, handle()));
        }
    }
    for (mine, theirs) in old.iter_mut().zip(new) {
        // The nodes that a program addresses it by stay those of the first graph.
        mine.op = theirs.op;
    }
    lock(&exec.graphs).extend(graphs);
    Ok(())
}

/// `cuGraphExecUpdate_v2`.
pub fn update_v2(handle: Handle, graph: Handle, out: Out<UpdateResult>) -> Result {
    let (exec, graph) = (exec(handle)?, graph::graph(graph)?);
    let (result, node) = update_exec(&exec, &graph).err().unwrap_or_default();
    out.set(UpdateResult { result, node, from: Handle::NULL })?;
    if result == 0 { Ok(()) } else { Err(Error::GRAPH_EXEC_UPDATE_FAILURE) }
}

/// `cuGraphExecUpdate`.
pub fn update(handle: Handle, graph: Handle, node_out: Out<Handle>, out: Out<u32>) -> Result {
    let (exec, graph) = (exec(handle)?, graph::graph(graph)?);
    let (result, node) = update_exec(&exec, &graph).err().unwrap_or_default();
    node_out.set_if(node);
    out.set(result)?;
    if result == 0 { Ok(()) } else { Err(Error::GRAPH_EXEC_UPDATE_FAILURE) }
}

fn with_node<T>(exec: Handle, node: Handle, f: impl FnOnce(&mut ExecNode) -> Result<T>) -> Result<T> {
    let exec = self::exec(exec)?;
    let (graph, id) = graph::node(node)?;
    let source = (Arc::as_ptr(&graph) as usize, id);
    let mut nodes = lock(&exec.nodes);
    f(nodes.iter_mut().find(|n| n.source == source).ok_or(Error::INVALID_VALUE)?)
}

/// Gives a node of an executable graph other parameters; its type stays.
pub fn replace(exec: Handle, node: Handle, op: Op) -> Result {
    with_node(exec, node, |n| {
        if n.op.node_type() != op.node_type() {
            return Err(Error::INVALID_VALUE);
        }
        n.op = op;
        Ok(())
    })
}

/// `cuGraphNodeSetEnabled`: of kernels, memsets and copies.
pub fn set_enabled(exec: Handle, node: Handle, enabled: u32) -> Result {
    with_node(exec, node, |n| {
        if n.op.node_type() > 2 {
            return Err(Error::INVALID_VALUE);
        }
        n.enabled = enabled != 0;
        Ok(())
    })
}

/// `cuGraphNodeGetEnabled`.
pub fn get_enabled(exec: Handle, node: Handle, out: Out<u32>) -> Result {
    out.set(with_node(exec, node, |n| Ok(u32::from(n.enabled)))?)
}
