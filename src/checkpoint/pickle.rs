//! A pickle reader that can only build data.
//!
//! Python's pickle is a program for a stack machine which may import and call anything. This machine knows the
//! opcodes that `torch.save` writes (protocols 2 to 5) and a closed list of [`Global`]s; everything else is refused
//! before it has any effect. Values live in an arena and refer to each other by index, so that shared and even cyclic
//! structures need neither deep copies nor recursion, and memory stays proportional to the bytes read.

use super::node::{Global, Id, Node, StorageRef, TensorRef};
use super::opcodes as op;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// The most opcodes a checkpoint may take. A Stable Diffusion training checkpoint needs about 10^5.
const MAX_OPS: usize = 4_000_000;
/// The most marks that may be open at once, i.e. how deep containers may be nested while they are written.
const MAX_MARKS: usize = 1_000;
/// The most dimensions that are read; whether a tensor can have that many is decided where it is named.
const MAX_TENSOR_DIMS: usize = 16;

/// The values of a pickle.
pub(super) struct Arena {
    pub nodes: Vec<Node>,
    pub root: Id,
}

/// Reads the pickle `bytes` of the file `path`.
///
/// # Errors
/// A malformed or truncated pickle, an opcode or a global outside the list, or one of the limits.
pub(super) fn load(path: &Path, bytes: &[u8]) -> Result<Arena> {
    let mut m = Machine {
        path,
        bytes,
        pos: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = m.run()?;
    Ok(Arena { nodes: m.nodes, root })
}

struct Machine<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    pos: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Stack heights; nothing below the last one can be popped.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn bad(&self, what: impl std::fmt::Display) -> Error {
        Error::format(self.path, format!("malformed pickle near byte {}: {what}", self.pos))
            .with_remedy("check that the file was copied completely and was written by torch.save")
    }

    fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::format(self.path, format!("{what}; it was refused and nothing was executed")).with_remedy(
            "if you trust its origin, load it in PyTorch and save a plain state dict: \
             torch.save(model.state_dict(), path)",
        )
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let part = self.pos.checked_add(n).and_then(|end| self.bytes.get(self.pos..end));
        match part {
            Some(p) => {
                self.pos += n;
                Ok(p)
            }
            None => Err(self.bad(format!("{n} more bytes are announced than the file has"))),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// An 8-byte length as a `usize`.
    fn len64(&mut self) -> Result<usize> {
        let n = u64::from_le_bytes(self.array()?);
        usize::try_from(n).map_err(|_| self.bad("a length beyond the address space"))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.pos..];
        let end = rest.iter().take(512).position(|&b| b == b'\n');
        let end = end.ok_or_else(|| self.bad("a name without an end"))?;
        self.pos += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| self.bad("a name that is not UTF-8"))
    }

    fn push(&mut self, node: Node) {
        // At most MAX_OPS nodes exist, so the index fits.
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id> {
        if self.stack.len() <= self.floor() {
            return Err(self.bad("the stack is empty"));
        }
        Ok(self.stack.pop().expect("longer than its floor"))
    }

    fn top(&self) -> Result<Id> {
        if self.stack.len() <= self.floor() {
            return Err(self.bad("the stack is empty"));
        }
        Ok(self.stack[self.stack.len() - 1])
    }

    /// Everything above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let at = self.marks.pop().ok_or_else(|| self.bad("no mark is open"))?;
        Ok(self.stack.split_off(at))
    }

    fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    fn text(&mut self, n: usize) -> Result<()> {
        let bytes = self.take(n)?;
        // Python writes lone surrogates with "surrogatepass"; no key of a checkpoint has them.
        let s = std::str::from_utf8(bytes).map_err(|_| self.bad("a string that is not UTF-8"))?;
        self.push(Node::Str(s.into()));
        Ok(())
    }

    fn skip_bytes(&mut self, n: usize) -> Result<()> {
        self.take(n)?;
        self.push(Node::Opaque);
        Ok(())
    }

    /// A little-endian two's complement integer of `n` bytes.
    fn long(&mut self, n: usize) -> Result<()> {
        let b = self.take(n)?;
        if n > 8 {
            self.push(Node::Opaque);
            return Ok(());
        }
        let negative = b.last().is_some_and(|x| x & 0x80 != 0);
        let mut full = [if negative { 0xff } else { 0 }; 8];
        full[..n].copy_from_slice(b);
        self.push(Node::Int(i64::from_le_bytes(full)));
        Ok(())
    }

    fn remember(&mut self, index: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        let id = *self.memo.get(&index).ok_or_else(|| self.bad(format!("memo {index} was never set")))?;
        self.stack.push(id);
        Ok(())
    }

    fn tuple(&mut self, n: usize) -> Result<()> {
        let at = self.stack.len().checked_sub(n).filter(|&at| at >= self.floor());
        let at = at.ok_or_else(|| self.bad("the stack is too short for a tuple"))?;
        let items = self.stack.split_off(at);
        self.push(Node::Tuple(items));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let id = self.top()?;
        match &mut self.nodes[id as usize] {
            Node::List(l) => l.extend(items),
            _ => return Err(self.bad("an append to something that is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<()> {
        if !items.len().is_multiple_of(2) {
            return Err(self.bad("a key without a value"));
        }
        let id = self.top()?;
        match &mut self.nodes[id as usize] {
            Node::Dict(d) => d.extend(items.chunks_exact(2).map(|kv| (kv[0], kv[1]))),
            _ => return Err(self.bad("an item is set in something that is no dict")),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let Some(g) = Global::find(module, name) else {
            let full: String = format!("{module}.{name}").chars().take(200).collect();
            return Err(self.refuse(format!(
                "the pickle asks for `{}`, which is not among the things a checkpoint may contain",
                full.escape_debug()
            )));
        };
        self.push(Node::Global(g));
        Ok(())
    }

    fn reduce(&mut self) -> Result<()> {
        let args = self.pop()?;
        let callee = self.pop()?;
        let (Node::Global(g), Node::Tuple(args)) = (self.node(callee), self.node(args)) else {
            return Err(self.bad("a call of something that is no known constructor"));
        };
        match (*g, args.as_slice()) {
            (Global::OrderedDict, []) => self.push(Node::Dict(Vec::new())),
            (Global::Size, [t]) | (Global::RebuildParameter, [t, _, _]) => {
                let t = *t;
                if !matches!(self.node(t), Node::Tuple(_) | Node::Tensor(_)) {
                    return Err(self.bad("a torch.Size or a parameter of something else"));
                }
                self.stack.push(t);
            }
            (Global::Device, _) => self.push(Node::Opaque),
            (Global::RebuildTensor, [storage, offset, sizes, strides, ..]) => {
                let (Node::Storage(s), Node::Int(offset)) = (self.node(*storage), self.node(*offset)) else {
                    return Err(self.bad("a tensor without a storage or an offset"));
                };
                let tensor = TensorRef {
                    storage: (**s).clone(),
                    offset: *offset,
                    sizes: self.ints(*sizes)?,
                    strides: self.ints(*strides)?,
                };
                self.push(Node::Tensor(Box::new(tensor)));
            }
            (g, args) => return Err(self.bad(format!("{g:?} with {} arguments", args.len()))),
        }
        Ok(())
    }

    /// A tuple of integers, e.g. sizes or strides.
    fn ints(&self, id: Id) -> Result<Vec<i64>> {
        let (Node::Tuple(items) | Node::List(items)) = self.node(id) else {
            return Err(self.bad("sizes or strides that are no tuple"));
        };
        if items.len() > MAX_TENSOR_DIMS {
            return Err(self.bad(format!("a tensor of {} dimensions", items.len())));
        }
        items
            .iter()
            .map(|&i| match self.node(i) {
                Node::Int(v) => Ok(*v),
                _ => Err(self.bad("a size or a stride that is no integer")),
            })
            .collect()
    }

    /// `("storage", type, key, location, numel)`, torch's reference to an archive entry.
    fn persistent_id(&mut self) -> Result<()> {
        let id = self.pop()?;
        if let Node::Tuple(t) = self.node(id)
            && let [tag, kind, key, _location, numel] = t.as_slice()
            && let (Node::Str(tag), Node::Global(Global::Storage(kind)), Node::Str(key), Node::Int(numel)) =
                (self.node(*tag), self.node(*kind), self.node(*key), self.node(*numel))
            && &**tag == "storage"
        {
            let numel = u64::try_from(*numel).map_err(|_| self.bad("a storage of negative length"))?;
            let storage = StorageRef { kind: *kind, key: Arc::clone(key), numel };
            self.push(Node::Storage(Box::new(storage)));
            return Ok(());
        }
        Err(self.bad("a persistent id that is no torch storage"))
    }

    /// Objects get attributes by BUILD. An `OrderedDict` of a module carries `_metadata` (versions of the modules)
    /// there, a tensor may carry Python attributes; neither matters to a loader.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        match self.node(self.top()?) {
            Node::Dict(_) | Node::Tensor(_) => Ok(()),
            _ => Err(self.bad("attributes for something that is neither dict nor tensor")),
        }
    }

    fn run(&mut self) -> Result<Id> {
        for _ in 0..MAX_OPS {
            match self.u8()? {
                op::PROTO => {
                    let v = self.u8()?;
                    if !(2..=5).contains(&v) {
                        return Err(self.bad(format!("protocol {v} instead of 2 to 5")));
                    }
                }
                op::FRAME => {
                    let n = self.len64()?;
                    if n > self.bytes.len() - self.pos {
                        return Err(
                            self.bad(format!("a frame of {n} bytes is announced, the file has fewer"))
                        );
                    }
                }
                op::STOP => {
                    let root = self.pop()?;
                    if !self.stack.is_empty() || !self.marks.is_empty() {
                        return Err(self.bad("values are left over at the end"));
                    }
                    return Ok(root);
                }
                op::MARK => {
                    if self.marks.len() >= MAX_MARKS {
                        return Err(self.bad(format!("containers nested more than {MAX_MARKS} deep")));
                    }
                    self.marks.push(self.stack.len());
                }
                op::NONE => self.push(Node::None),
                op::NEWTRUE => self.push(Node::Bool(true)),
                op::NEWFALSE => self.push(Node::Bool(false)),
                op::BININT => {
                    let v = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(v.into()));
                }
                op::BININT1 => {
                    let v = self.u8()?;
                    self.push(Node::Int(v.into()));
                }
                op::BININT2 => {
                    let v = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(v.into()));
                }
                op::LONG1 => {
                    let n = self.u8()?;
                    self.long(n.into())?;
                }
                op::LONG4 => {
                    let n = self.u32()?;
                    self.long(n as usize)?;
                }
                op::BINFLOAT => {
                    let v = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(v));
                }
                op::BINUNICODE => {
                    let n = self.u32()?;
                    self.text(n as usize)?;
                }
                op::SHORT_BINUNICODE => {
                    let n = self.u8()?;
                    self.text(n.into())?;
                }
                op::BINUNICODE8 => {
                    let n = self.len64()?;
                    self.text(n)?;
                }
                op::BINBYTES => {
                    let n = self.u32()?;
                    self.skip_bytes(n as usize)?;
                }
                op::SHORT_BINBYTES => {
                    let n = self.u8()?;
                    self.skip_bytes(n.into())?;
                }
                op::EMPTY_DICT => self.push(Node::Dict(Vec::new())),
                op::EMPTY_LIST => self.push(Node::List(Vec::new())),
                op::EMPTY_TUPLE => self.push(Node::Tuple(Vec::new())),
                op::TUPLE => {
                    let items = self.pop_mark()?;
                    self.push(Node::Tuple(items));
                }
                op::TUPLE1 => self.tuple(1)?,
                op::TUPLE2 => self.tuple(2)?,
                op::TUPLE3 => self.tuple(3)?,
                op::APPEND => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                op::APPENDS => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                op::SETITEM => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set_items(vec![key, value])?;
                }
                op::SETITEMS => {
                    let items = self.pop_mark()?;
                    self.set_items(items)?;
                }
                op::BINPUT => {
                    let i = self.u8()?;
                    self.remember(i.into())?;
                }
                op::LONG_BINPUT => {
                    let i = self.u32()?;
                    self.remember(i)?;
                }
                op::MEMOIZE => self.remember(self.memo.len() as u32)?,
                op::BINGET => {
                    let i = self.u8()?;
                    self.recall(i.into())?;
                }
                op::LONG_BINGET => {
                    let i = self.u32()?;
                    self.recall(i)?;
                }
                op::GLOBAL => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                op::STACK_GLOBAL => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Node::Str(module), Node::Str(name)) = (self.node(module), self.node(name)) else {
                        return Err(self.bad("a global whose name is no string"));
                    };
                    let (module, name) = (Arc::clone(module), Arc::clone(name));
                    self.global(&module, &name)?;
                }
                op::REDUCE => self.reduce()?,
                op::BUILD => self.build()?,
                op::BINPERSID => self.persistent_id()?,
                other => return Err(self.unknown(other)),
            }
        }
        Err(self.bad(format!("more than {MAX_OPS} opcodes")))
    }

    fn unknown(&self, code: u8) -> Error {
        let name = match code {
            b'i' => "INST",
            b'o' => "OBJ",
            b'P' => "PERSID",
            0x81 => "NEWOBJ",
            0x92 => "NEWOBJ_EX",
            0x82..=0x84 => "EXT",
            0x8f..=0x91 => "a set",
            _ => return self.bad(format!("opcode {code:#04x} is none that torch.save writes")),
        };
        self.refuse(format!("the pickle uses opcode {code:#04x} ({name}), which no plain state dict needs"))
    }
}
