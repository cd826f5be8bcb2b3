//! Graphs: nodes and what they depend on.

use crate::capture;
use crate::context::initialised;
use crate::error::{Error, Result};
use crate::ffi::{Handle, In, Out};
use crate::handles;
use crate::memory;
use crate::op::Op;
use crate::state::lock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

/// A node of one graph, counted in the order of its making.
pub type NodeId = u32;

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// A node.
#[derive(Clone)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// What it waits for.
    pub after: Vec<NodeId>,
    handle: Option<Handle>,
}

/// What the handle of a node stands for.
pub struct NodeRef {
    /// Its graph.
    pub graph: Weak<Graph>,
    /// Its number there.
    pub id: NodeId,
}

#[derive(Default)]
struct Nodes {
    next: NodeId,
    map: BTreeMap<NodeId, Node>,
}

/// A graph.
pub struct Graph {
    me: Weak<Graph>,
    id: u64,
    handle: OnceLock<Handle>,
    nodes: Mutex<Nodes>,
    /// Memory that allocation nodes refer to; it is the graph's while the graph lives.
    memory: Mutex<Vec<u64>>,
}

impl Drop for Graph {
    fn drop(&mut self) {
        for node in lock(&self.nodes).map.values() {
            if let Some(handle) = node.handle {
                handles::forget(handle);
            }
        }
        for address in lock(&self.memory).drain(..) {
            memory::release(address);
        }
    }
}

impl Graph {
    /// An empty graph without a handle.
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            id: SERIAL.fetch_add(1, Ordering::Relaxed),
            handle: OnceLock::new(),
            nodes: Mutex::default(),
            memory: Mutex::default(),
        })
    }

    /// The graph of a handle.
    pub fn find(handle: Handle) -> Result<Arc<Self>> {
        handles::find(handle).ok_or(Error::INVALID_VALUE)
    }

    /// Its handle, made when it is first asked for.
    pub fn publish(&self) -> Handle {
        *self.handle.get_or_init(|| {
            let handle = handles::reserve();
            if let Some(me) = self.me.upgrade() {
                handles::bind(handle, me);
            }
            handle
        })
    }

    /// Adds a node.
    pub fn add(&self, op: Op, after: &[NodeId]) -> NodeId {
        let mut nodes = lock(&self.nodes);
        let id = nodes.next;
        nodes.next += 1;
        let mut after = after.to_vec();
        after.sort_unstable();
        after.dedup();
        nodes.map.insert(id, Node { op, after, handle: None });
        id
    }

    /// Leaves memory to the graph.
    pub fn keep_memory(&self, address: u64) {
        lock(&self.memory).push(address);
    }

    /// All nodes, by number.
    pub fn nodes(&self) -> BTreeMap<NodeId, Node> {
        lock(&self.nodes).map.clone()
    }

    /// Nodes that no other waits for.
    pub fn leaves(&self) -> Vec<NodeId> {
        let nodes = lock(&self.nodes);
        let waited: BTreeSet<NodeId> = nodes.map.values().flat_map(|n| n.after.iter().copied()).collect();
        nodes.map.keys().copied().filter(|id| !waited.contains(id)).collect()
    }

    /// The handle of a node.
    pub fn handle_of(&self, id: NodeId) -> Handle {
        let mut nodes = lock(&self.nodes);
        let Some(node) = nodes.map.get_mut(&id) else { return Handle::NULL };
        *node.handle.get_or_insert_with(|| handles::insert(Arc::new(NodeRef { graph: self.me.clone(), id })))
    }

    /// The numbers of handles, which must all be nodes of this graph.
    pub fn nodes_of(&self, list: &[Handle]) -> Result<Vec<NodeId>> {
        list.iter().map(|&handle| self.node_of(handle)).collect()
    }

    fn node_of(&self, handle: Handle) -> Result<NodeId> {
        let (graph, id) = node(handle)?;
        if std::ptr::eq(Arc::as_ptr(&graph), self) { Ok(id) } else { Err(Error::INVALID_VALUE) }
    }

    /// What a node does.
    pub fn op(&self, id: NodeId) -> Result<Op> {
        lock(&self.nodes).map.get(&id).map(|n| n.op.clone()).ok_or(Error::INVALID_VALUE)
    }

    /// Gives a node other parameters; its type stays.
    pub fn replace(&self, id: NodeId, op: Op) -> Result {
        let mut nodes = lock(&self.nodes);
        let node = nodes.map.get_mut(&id).ok_or(Error::INVALID_VALUE)?;
        if node.op.node_type() != op.node_type() {
            return Err(Error::INVALID_VALUE);
        }
        node.op = op;
        Ok(())
    }

    /// The nodes in an order in which each comes after those it waits for. `None` if they wait for each other.
    pub fn sorted(&self) -> Option<Vec<(NodeId, Node)>> {
        let mut rest = self.nodes();
        let mut done = BTreeSet::new();
        let mut sorted = Vec::with_capacity(rest.len());
        while !rest.is_empty() {
            let ready: Vec<NodeId> = rest
                .iter()
                .filter(|(_, n)| n.after.iter().all(|a| done.contains(a)))
                .map(|(&id, _)| id)
                .collect();
            if ready.is_empty() {
                return None;
            }
            for id in ready {
                done.insert(id);
                sorted.extend(rest.remove(&id).map(|node| (id, node)));
            }
        }
        Some(sorted)
    }

    /// A copy with the same numbers. Memory stays with the original.
    pub fn copy(&self) -> Arc<Self> {
        let copy = Graph::new();
        {
            let (mine, mut theirs) = (lock(&self.nodes), lock(&copy.nodes));
            theirs.next = mine.next;
            theirs.map = mine.map.iter().map(|(&id, n)| (id, Node { handle: None, ..n.clone() })).collect();
        }
        copy
    }
}

/// The graph of a node and its number there.
pub fn node(handle: Handle) -> Result<(Arc<Graph>, NodeId)> {
    initialised()?;
    let node: Arc<NodeRef> = handles::find(handle).ok_or(Error::INVALID_VALUE)?;
    let graph = node.graph.upgrade().ok_or(Error::INVALID_VALUE)?;
    Ok((graph, node.id))
}

/// The graph of a handle, for calls that need nothing else.
pub fn graph(handle: Handle) -> Result<Arc<Graph>> {
    initialised()?;
    Graph::find(handle)
}

/// `cuGraphCreate`.
pub fn create(out: Out<Handle>, flags: u32) -> Result {
    initialised()?;
    out.needed()?;
    if flags != 0 {
        return Err(Error::INVALID_VALUE);
    }
    out.set(Graph::new().publish())
}

/// `cuGraphDestroy`.
pub fn destroy(handle: Handle) -> Result {
    let graph = graph(handle)?;
    if capture::fills(&graph) {
        return Err(Error::INVALID_VALUE);
    }
    handles::take::<Graph>(handle).map(|_| ())
}

/// `cuGraphClone`.
pub fn clone(out: Out<Handle>, original: Handle) -> Result {
    let original = graph(original)?;
    out.needed()?;
    out.set(original.copy().publish())
}

/// `cuGraphNodeFindInClone`.
pub fn find_in_clone(out: Out<Handle>, original: Handle, copy: Handle) -> Result {
    let (_, id) = node(original)?;
    let copy = graph(copy)?;
    copy.op(id)?;
    out.set(copy.handle_of(id))
}

/// `cuGraphGetId`.
pub fn id(handle: Handle, out: Out<u32>) -> Result {
    out.set(graph(handle)?.id as u32)
}

/// Hands a list out: with no array, its length; else as many as there is room for, the rest as NULL.
fn put_list(list: &[Handle], out: Out<Handle>, count: Out<usize>) -> Result {
    if out.is_null() {
        return count.set(list.len());
    }
    let room = count.get()?;
    for i in 0..room {
        out.set_at(i, list.get(i).copied().unwrap_or(Handle::NULL));
    }
    count.set(room.min(list.len()))
}

/// `cuGraphGetNodes`.
pub fn get_nodes(handle: Handle, out: Out<Handle>, count: Out<usize>) -> Result {
    let graph = graph(handle)?;
    let list: Vec<Handle> = graph.nodes().keys().map(|&id| graph.handle_of(id)).collect();
    put_list(&list, out, count)
}

/// `cuGraphGetRootNodes`.
pub fn get_roots(handle: Handle, out: Out<Handle>, count: Out<usize>) -> Result {
    let graph = graph(handle)?;
    let nodes = graph.nodes();
    let roots = nodes.iter().filter(|(_, n)| n.after.is_empty());
    let list: Vec<Handle> = roots.map(|(&id, _)| graph.handle_of(id)).collect();
    put_list(&list, out, count)
}

/// `cuGraphGetEdges`.
pub fn get_edges(handle: Handle, from: Out<Handle>, to: Out<Handle>, count: Out<usize>) -> Result {
    let graph = graph(handle)?;
    let mut edges = Vec::new();
    for (id, node) in graph.nodes() {
        edges.extend(node.after.iter().map(|&a| (graph.handle_of(a), graph.handle_of(id))));
    }
    if from.is_null() != to.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    let room = if from.is_null() { 0 } else { count.get()? };
    let (sources, targets): (Vec<Handle>, Vec<Handle>) = edges.into_iter().unzip();
    put_list(&sources, from, count)?;
    for i in 0..room {
        to.set_at(i, targets.get(i).copied().unwrap_or(Handle::NULL));
    }
    Ok(())
}

/// `cuGraphGetEdges_v2`: every edge is a plain one.
pub fn get_edges_v2(
    handle: Handle,
    from: Out<Handle>,
    to: Out<Handle>,
    data: Out<u64>,
    count: Out<usize>,
) -> Result {
    let room = if data.is_null() || from.is_null() { 0 } else { count.get()? };
    for i in 0..room {
        data.set_at(i, 0);
    }
    get_edges(handle, from, to, count)
}

/// `cuGraphNodeGetType`.
pub fn node_type(handle: Handle, out: Out<u32>) -> Result {
    let (graph, id) = node(handle)?;
    out.set(graph.op(id)?.node_type())
}

/// `cuGraphNodeGetDependencies`.
pub fn dependencies(handle: Handle, out: Out<Handle>, count: Out<usize>) -> Result {
    let (graph, id) = node(handle)?;
    let after = graph.nodes().remove(&id).map_or(Vec::new(), |n| n.after);
    let list: Vec<Handle> = after.into_iter().map(|a| graph.handle_of(a)).collect();
    put_list(&list, out, count)
}

/// `cuGraphNodeGetDependentNodes`.
pub fn dependents(handle: Handle, out: Out<Handle>, count: Out<usize>) -> Result {
    let (graph, id) = node(handle)?;
    let nodes = graph.nodes();
    let waiting = nodes.iter().filter(|(_, n)| n.after.contains(&id));
    let list: Vec<Handle> = waiting.map(|(&n, _)| graph.handle_of(n)).collect();
    put_list(&list, out, count)
}

fn edges(graph: &Graph, from: In<Handle>, to: In<Handle>, count: usize) -> Result<Vec<(NodeId, NodeId)>> {
    let from = graph.nodes_of(&from.list(count)?)?;
    let to = graph.nodes_of(&to.list(count)?)?;
    if from.iter().zip(&to).any(|(a, b)| a == b) {
        return Err(Error::INVALID_VALUE);
    }
    Ok(from.into_iter().zip(to).collect())
}

/// `cuGraphAddDependencies`.
pub fn add_dependencies(handle: Handle, from: In<Handle>, to: In<Handle>, count: usize) -> Result {
    let graph = graph(handle)?;
    let edges = edges(&graph, from, to, count)?;
    let mut nodes = lock(&graph.nodes);
    let known = |nodes: &Nodes, a, b| nodes.map.get(&b).is_none_or(|n| n.after.contains(&a));
    if edges.iter().any(|&(a, b)| known(&nodes, a, b)) {
        return Err(Error::INVALID_VALUE);
    }
    for (a, b) in edges {
        if let Some(node) = nodes.map.get_mut(&b) {
            node.after.push(a);
        }
    }
    Ok(())
}

/// `cuGraphAddDependencies_v2`: edges with data are for programmatic launches, which there are none of.
pub fn add_dependencies_v2(
    handle: Handle,
    from: In<Handle>,
    to: In<Handle>,
    data: In<u64>,
    count: usize,
) -> Result {
    if !data.is_null() && data.list(count)?.iter().any(|&d| d != 0) {
        return Err(Error::NOT_SUPPORTED);
    }
    add_dependencies(handle, from, to, count)
}

/// `cuGraphRemoveDependencies`.
pub fn remove_dependencies(handle: Handle, from: In<Handle>, to: In<Handle>, count: usize) -> Result {
    let graph = graph(handle)?;
    let edges = edges(&graph, from, to, count)?;
    let mut nodes = lock(&graph.nodes);
    for (a, b) in edges {
        let node = nodes.map.get_mut(&b).filter(|n| n.after.contains(&a)).ok_or(Error::INVALID_VALUE)?;
        node.after.retain(|&n| n != a);
    }
    Ok(())
}

/// `cuGraphDestroyNode`.
pub fn destroy_node(handle: Handle) -> Result {
    let (graph, id) = node(handle)?;
    let mut nodes = lock(&graph.nodes);
    nodes.map.remove(&id);
    for node in nodes.map.values_mut() {
        node.after.retain(|&n| n != id);
    }
    drop(nodes);
    handles::forget(handle);
    Ok(())
}
