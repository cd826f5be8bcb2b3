//! Dotted names for the leaves of a nested checkpoint.

use super::node::{Id, Node, TensorRef};
use super::pickle::Arena;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// How deep dicts and lists may be nested.
const MAX_DEPTH: usize = 64;
/// Visits and name bytes per byte of pickle. Shared containers are visited once per place they appear in, which a
/// hostile file can make exponential; honest ones stay far below.
const BUDGET_PER_BYTE: usize = 64;

/// A leaf that is no tensor: a step count, a learning rate, a name.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// `None`.
    None,
    /// A boolean.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Str(Arc<str>),
}

/// The leaves of a pickle. The number beside a tensor is where its own key begins in the dotted name, i.e. the length
/// of the path of the container that holds it.
pub(super) struct Leaves<'a> {
    pub tensors: BTreeMap<String, (usize, &'a TensorRef)>,
    pub scalars: BTreeMap<String, Scalar>,
}

/// Names every tensor and every scalar of `arena`.
///
/// # Errors
/// Nesting beyond the limits (or a cycle), keys that have no name, two tensors with one name.
pub(super) fn flatten<'a>(path: &Path, arena: &'a Arena, pickle_len: usize) -> Result<Leaves<'a>> {
    let leaves = Leaves { tensors: BTreeMap::new(), scalars: BTreeMap::new() };
    let budget = pickle_len.saturating_mul(BUDGET_PER_BYTE).saturating_add(1 << 16);
    let mut w = Walk { path, arena, budget, name: String::new(), leaves };
    w.visit(arena.root, 0, 0)?;
    Ok(w.leaves)
}

struct Walk<'a, 'p> {
    path: &'p Path,
    arena: &'a Arena,
    budget: usize,
    name: String,
    leaves: Leaves<'a>,
}

impl<'a> Walk<'a, '_> {
    fn bad(&self, what: impl Into<String>) -> Error {
        let shown: String = self.name.chars().take(200).collect();
        Error::format(self.path, what).with_key(shown).with_remedy("save a plain state dict of tensors")
    }

    fn spend(&mut self, n: usize) -> Result<()> {
        match self.budget.checked_sub(n) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => {
                Err(self.bad("the containers refer to each other so often that naming all leaves has no end"))
            }
        }
    }

    /// Visits `id`, whose own key begins at `own` in the current name.
    fn visit(&mut self, id: Id, own: usize, depth: usize) -> Result<()> {
        self.spend(1)?;
        if depth > MAX_DEPTH {
            return Err(self.bad(format!("containers are nested more than {MAX_DEPTH} deep")));
        }
        let arena = self.arena;
        let scalar = match &arena.nodes[id as usize] {
            Node::Dict(items) => {
                for &(key, value) in items {
                    let key: std::borrow::Cow<str> = match &arena.nodes[key as usize] {
                        Node::Str(s) => (&**s).into(),
                        Node::Int(i) => i.to_string().into(),
                        Node::Float(v) => v.to_string().into(),
                        Node::Bool(true) => "True".into(),
                        Node::Bool(false) => "False".into(),
                        Node::None => "None".into(),
                        _ => return Err(self.bad("a dict key is neither a string nor a number")),
                    };
                    self.child(&key, value, depth)?;
                }
                return Ok(());
            }
            Node::List(items) | Node::Tuple(items) => {
                for (i, &value) in items.iter().enumerate() {
                    self.child(&i.to_string(), value, depth)?;
                }
                return Ok(());
            }
            Node::Tensor(t) => {
                self.spend(self.name.len())?;
                // The same tensor under the same name is a repeated key, which Python overwrites as well.
                if let Some((_, old)) = self.leaves.tensors.insert(self.name.clone(), (own, t))
                    && !std::ptr::eq(old, &**t)
                {
                    return Err(self.bad("two tensors have this name"));
                }
                return Ok(());
            }
            Node::None => Scalar::None,
            Node::Bool(v) => Scalar::Bool(*v),
            Node::Int(v) => Scalar::Int(*v),
            Node::Float(v) => Scalar::Float(*v),
            Node::Str(s) => Scalar::Str(Arc::clone(s)),
            Node::Opaque | Node::Global(_) | Node::Storage(_) => return Ok(()),
        };
        self.spend(self.name.len())?;
        self.leaves.scalars.insert(self.name.clone(), scalar);
        Ok(())
    }

    fn child(&mut self, key: &str, value: Id, depth: usize) -> Result<()> {
        self.spend(key.len())?;
        let before = self.name.len();
        if before > 0 {
            self.name.push('.');
        }
        let own = self.name.len();
        self.name.push_str(key);
        self.visit(value, own, depth + 1)?;
        self.name.truncate(before);
        Ok(())
    }
}
