//! The values that a checkpoint's pickle can build.

use std::sync::Arc;

/// Index of a value in the arena.
pub(super) type Id = u32;

/// The element type of a torch storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    F32,
    F64,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Stored {
    /// Bytes per element in the file.
    pub(super) const fn size(self) -> usize {
        match self {
            Stored::I8 | Stored::U8 | Stored::Bool => 1,
            Stored::F16 | Stored::Bf16 | Stored::I16 => 2,
            Stored::F32 | Stored::I32 => 4,
            Stored::F64 | Stored::I64 => 8,
        }
    }
}

/// What a checkpoint may name. None of them runs code: each is only a rule for building a [`Node`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Device,
    /// A constant such as `torch.float32`.
    Constant,
    Storage(Stored),
}

impl Global {
    /// The global `module.name`, or `None` for everything outside the list.
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "Size") => Global::Size,
            ("torch", "device") => Global::Device,
            (
                "torch",
                "float32" | "float64" | "float16" | "bfloat16" | "int64" | "int32" | "int16" | "int8"
                | "uint8" | "bool",
            ) => Global::Constant,
            ("torch", "FloatStorage") => Global::Storage(Stored::F32),
            ("torch", "DoubleStorage") => Global::Storage(Stored::F64),
            ("torch", "HalfStorage") => Global::Storage(Stored::F16),
            ("torch", "BFloat16Storage") => Global::Storage(Stored::Bf16),
            ("torch", "LongStorage") => Global::Storage(Stored::I64),
            ("torch", "IntStorage") => Global::Storage(Stored::I32),
            ("torch", "ShortStorage") => Global::Storage(Stored::I16),
            ("torch", "CharStorage") => Global::Storage(Stored::I8),
            ("torch", "ByteStorage") | ("torch.storage" | "torch", "UntypedStorage") => {
                Global::Storage(Stored::U8)
            }
            ("torch", "BoolStorage") => Global::Storage(Stored::Bool),
            _ => return None,
        })
    }
}

/// A storage: `numel` elements of `kind` in the archive entry `data/<key>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StorageRef {
    pub kind: Stored,
    pub key: Arc<str>,
    pub numel: u64,
}

/// A strided view of a storage, as written; nothing is checked yet.
#[derive(Clone, Debug)]
pub(super) struct TensorRef {
    pub storage: StorageRef,
    pub offset: i64,
    pub sizes: Vec<i64>,
    pub strides: Vec<i64>,
}

/// A value.
#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    /// Bytes, integers beyond 64 bits, devices: present, but of no use to a loader.
    Opaque,
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Box<StorageRef>),
    Tensor(Box<TensorRef>),
}
