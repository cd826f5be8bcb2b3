//! Parameters by dotted path.

use super::Init;
use crate::base::{DType, Philox, Shape};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::collections::HashMap;

/// A handle to a parameter or buffer of one [`ParamStore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(usize);

impl ParamId {
    /// Position in the store.
    pub fn index(self) -> usize {
        self.0
    }
}

/// How a parameter lies in memory compared with files, which use PyTorch's layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same in both.
    Plain,
    /// The same in both: rows that are looked up and never multiplied, which a device keeps in f32.
    Table,
    /// A 2-D convolution weight: `[out, in/groups, kh, kw]` in files, `[out, kh, kw, in/groups]` in memory, so that
    /// the innermost axis is the channels of an NHWC image.
    Conv2d,
    /// A 1x1 1-D convolution used as a linear layer: `[out, in, 1]` in files, `[out, in]` in memory.
    Conv1d,
}

/// What a stored tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Learned.
    Parameter,
    /// Kept and saved, but not learned (running statistics).
    Buffer,
}

/// One parameter or buffer.
#[derive(Clone, Debug)]
pub struct Param {
    name: String,
    file_shape: Shape,
    dtype: DType,
    layout: Layout,
    role: Role,
    init: Init,
    trainable: bool,
    value: Tensor,
}

impl Param {
    /// The dotted path, equal to the public state-dict key.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The shape in files (PyTorch's).
    pub fn file_shape(&self) -> Shape {
        self.file_shape
    }
    /// How it lies in memory compared with files.
    pub fn layout(&self) -> Layout {
        self.layout
    }
    /// Learned or kept.
    pub fn role(&self) -> Role {
        self.role
    }
    /// Whether training updates it. Buffers are never trainable.
    pub fn trainable(&self) -> bool {
        self.trainable && self.role == Role::Parameter
    }
    /// The value in memory layout.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    fn to_memory(&self, t: &Tensor) -> Result<Tensor> {
        match self.layout {
            Layout::Plain | Layout::Table => Ok(t.clone()),
            Layout::Conv2d => t.nchw_to_nhwc(),
            Layout::Conv1d => t.reshape([self.file_shape[0], self.file_shape[1]]),
        }
    }

    fn to_file(&self) -> Result<Tensor> {
        match self.layout {
            Layout::Plain | Layout::Table => Ok(self.value.clone()),
            Layout::Conv2d => self.value.nhwc_to_nchw(),
            Layout::Conv1d => self.value.reshape(self.file_shape),
        }
    }
}

/// All parameters and buffers of a network, in the order of their registration.
///
/// Building a network only registers names, shapes and initial distributions; the values are planning tensors
/// without memory until [`ParamStore::init`] or loading fills them, so that a large network is not initialised in
/// vain and can be planned on any machine.
#[derive(Clone, Debug, Default)]
pub struct ParamStore {
    params: Vec<Param>,
    index: HashMap<String, usize>,
}

impl ParamStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers parameters below the root path.
    pub fn builder(&mut self) -> Builder<'_> {
        Builder { store: self, prefix: String::new() }
    }

    /// Number of parameters and buffers.
    pub fn len(&self) -> usize {
        self.params.len()
    }

    /// Whether nothing is registered.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// One entry.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.params[id.0]
    }

    /// All entries with their handles.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Param)> {
        self.params.iter().enumerate().map(|(i, p)| (ParamId(i), p))
    }

    /// The handle of a name.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.index.get(name).copied().map(ParamId)
    }

    /// Number of elements of all parameters (buffers not counted).
    pub fn parameter_count(&self) -> usize {
        self.params.iter().filter(|p| p.role == Role::Parameter).map(|p| p.file_shape.elems()).sum()
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        self.params.iter().map(|p| p.file_shape.elems() * p.dtype.size()).sum()
    }

    /// Draws every value that is not filled yet from its initial distribution. A value depends only on `seed` and
    /// the parameter's name, not on what else the network contains.
    ///
    /// # Errors
    /// Never for names registered through [`Builder`].
    pub fn init(&mut self, seed: u64) -> Result<()> {
        for p in &mut self.params {
            if p.value.device() == crate::tensor::Device::Meta {
                let t = p.init.make(p.file_shape, p.dtype, Philox::new(seed).fold_str(&p.name));
                p.value = p.to_memory(&t)?;
            }
        }
        Ok(())
    }

    /// Sets a value in memory layout.
    ///
    /// # Errors
    /// The shape differs.
    pub fn set(&mut self, id: ParamId, value: Tensor) -> Result<()> {
        let p = &mut self.params[id.0];
        if value.shape() != p.value.shape() {
            return Err(Error::checkpoint(format!(
                "has shape {}, expected {}",
                value.shape(),
                p.value.shape()
            ))
            .with_key(&p.name));
        }
        p.value = value;
        Ok(())
    }

    /// The value for writing, in memory layout.
    pub fn value_mut(&mut self, id: ParamId) -> &mut Tensor {
        &mut self.params[id.0].value
    }

    /// Every value for writing at once, in the store's order: `(name, trainable, file rank, value)`.
    pub fn values_mut(&mut self) -> impl Iterator<Item = (&str, bool, usize, &mut Tensor)> {
        self.params.iter_mut().map(|p| {
            let trainable = p.trainable();
            (p.name.as_str(), trainable, p.file_shape.len(), &mut p.value)
        })
    }

    /// Sets a value from a tensor in file layout, converting its dtype.
    ///
    /// # Errors
    /// The shape is not the file shape.
    pub fn set_from_file(&mut self, id: ParamId, t: &Tensor) -> Result<()> {
        let p = &mut self.params[id.0];
        if t.shape() != p.file_shape {
            return Err(Error::checkpoint(format!("has shape {}, expected {}", t.shape(), p.file_shape))
                .with_key(&p.name));
        }
        p.value = p.to_memory(&t.to_dtype(p.dtype)?)?;
        Ok(())
    }

    /// A value in file layout.
    ///
    /// # Errors
    /// The value is not on the CPU.
    pub fn to_file(&self, id: ParamId) -> Result<Tensor> {
        self.params[id.0].to_file()
    }

    /// Sets whether training updates the parameters whose name satisfies `which`.
    pub fn set_trainable(&mut self, trainable: bool, which: impl Fn(&str) -> bool) {
        self.params.iter_mut().filter(|p| which(&p.name)).for_each(|p| p.trainable = trainable);
    }
}

/// Registers parameters below a dotted path.
pub struct Builder<'s> {
    store: &'s mut ParamStore,
    prefix: String,
}

impl Builder<'_> {
    /// A builder for the path below `name`, which may be a number. An empty name stays at the same path.
    pub fn pp(&mut self, name: impl std::fmt::Display) -> Builder<'_> {
        let name = name.to_string();
        let prefix = if name.is_empty() { self.prefix.clone() } else { self.path(&name) };
        Builder { store: self.store, prefix }
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    fn add(
        &mut self,
        name: &str,
        shape: Shape,
        dtype: DType,
        layout: Layout,
        role: Role,
        init: Init,
    ) -> ParamId {
        let name = self.path(name);
        let memory = match layout {
            Layout::Plain | Layout::Table => shape,
            Layout::Conv2d => [shape[0], shape[2], shape[3], shape[1]].into(),
            Layout::Conv1d => [shape[0], shape[1]].into(),
        };
        let id = self.store.params.len();
        let value = Tensor::meta(memory, dtype, None);
        let previous = self.store.index.insert(name.clone(), id);
        assert!(previous.is_none(), "parameter `{name}` is registered twice");
        self.store.params.push(Param {
            name,
            file_shape: shape,
            dtype,
            layout,
            role,
            init,
            trainable: true,
            value,
        });
        ParamId(id)
    }

    /// Registers a learned f32 parameter with its shape in files.
    pub fn param(&mut self, name: &str, shape: impl Into<Shape>, layout: Layout, init: Init) -> ParamId {
        self.add(name, shape.into(), DType::F32, layout, Role::Parameter, init)
    }

    /// Registers a buffer.
    pub fn buffer(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType, init: Init) -> ParamId {
        self.add(name, shape.into(), dtype, Layout::Plain, Role::Buffer, init)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_round_trip_and_init_is_by_name() {
        let build = |extra: bool| {
            let mut s = ParamStore::new();
            let mut b = s.builder();
            if extra {
                b.param("other", [3], Layout::Plain, Init::Normal(1.0));
            }
            let id = b.pp("layer1").pp(0).param("weight", [4, 3, 2, 2], Layout::Conv2d, Init::Normal(1.0));
            s.init(9).unwrap();
            (s, id)
        };
        let ((a, ia), (b, ib)) = (build(false), build(true));
        assert_eq!(a.get(ia).name(), "layer1.0.weight");
        assert_eq!(&*a.get(ia).value().shape(), &[4, 2, 2, 3]);
        let (fa, fb) = (a.to_file(ia).unwrap(), b.to_file(ib).unwrap());
        assert_eq!(fa.f32s().unwrap(), fb.f32s().unwrap());
        let mut c = build(false).0;
        c.set_from_file(ia, &fa).unwrap();
        assert_eq!(c.get(ia).value().f32s().unwrap(), a.get(ia).value().f32s().unwrap());
        assert!(c.set_from_file(ia, &Tensor::zeros([4, 2, 2, 3])).unwrap_err().is_checkpoint());
        assert_eq!((b.parameter_count(), b.len(), b.bytes()), (51, 2, 204));
    }
}
