//! The one error type of dtk.
//!
//! An [`Error`] says what went wrong, where (operation, file, key), with which shapes and dtypes, and what to do
//! about it. It is built in the order in which it is read:
//!
//! ```
//! use dtk::Error;
//! let e = Error::shape("conv2d", "the input has 3 channels but the weight expects 4")
//!     .with_tensor("x", "f32 [1, 8, 8, 3]")
//!     .with_remedy("check `in_channels` of the model's configuration");
//! assert!(e.is_shape());
//! assert!(e.to_string().contains("conv2d"));
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

/// `Result` with dtk's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What family an [`Error`] belongs to. It decides the exit code of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Usage,
    Shape,
    Dtype,
    Device,
    Io,
    Format,
    Checkpoint,
    Data,
    Numeric,
    Interrupted,
}

/// Everything that can go wrong in dtk, with its context.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    op: Option<String>,
    message: String,
    tensors: Vec<(String, String)>,
    file: Option<PathBuf>,
    key: Option<String>,
    remedy: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    fn new(kind: Kind, op: Option<String>, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            op,
            message: message.into(),
            tensors: Vec::new(),
            file: None,
            key: None,
            remedy: None,
            source: None,
        }))
    }

    /// A wrong request: an unknown option, an invalid value, a recipe that contradicts itself. Exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, None, message)
    }

    /// Shapes that do not fit together in operation `op`.
    pub fn shape(op: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Shape, Some(op.into()), message)
    }

    /// A dtype that operation `op` does not take.
    pub fn dtype(op: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Dtype, Some(op.into()), message)
    }

    /// A device that is absent, or that cannot do what was asked of it.
    pub fn device(message: impl Into<String>) -> Self {
        Self::new(Kind::Device, None, message)
    }

    /// A failed read or write of `file`.
    pub fn io(file: impl AsRef<Path>, what: impl Into<String>, source: std::io::Error) -> Self {
        Self::new(Kind::Io, None, what).with_file(file).with_source(source)
    }

    /// A file whose content is not what its format promises: truncated, lying, of another version.
    pub fn format(file: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::new(Kind::Format, None, message).with_file(file)
    }

    /// A checkpoint that does not fit the model: missing, unexpected or misshapen keys, another recipe.
    pub fn checkpoint(message: impl Into<String>) -> Self {
        Self::new(Kind::Checkpoint, None, message)
    }

    /// A data set that is empty, unreadable or inconsistent.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Kind::Data, None, message)
    }

    /// A number that is no longer one: a NaN or infinite loss, a failed comparison.
    pub fn numeric(op: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Numeric, Some(op.into()), message)
    }

    /// The user asked to stop (Ctrl-C) and everything was saved. Exit code 130.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted, None, message)
    }

    /// Adds a tensor (or any described value) that takes part in the error, e.g. `("x", "f32 [2, 8, 8, 3]")`.
    pub fn with_tensor(mut self, name: impl Into<String>, description: impl fmt::Display) -> Self {
        self.0.tensors.push((name.into(), description.to_string()));
        self
    }

    /// Names the file concerned.
    pub fn with_file(mut self, file: impl AsRef<Path>) -> Self {
        self.0.file = Some(file.as_ref().to_path_buf());
        self
    }

    /// Names the key concerned: a state-dict key, a recipe key, a header field.
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.0.key = Some(key.into());
        self
    }

    /// Says what the user can do about it. One imperative sentence without a full stop.
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// Keeps the lower-level error that caused this one.
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Names the operation if none is named yet.
    pub fn with_op(mut self, op: impl Into<String>) -> Self {
        self.0.op.get_or_insert(op.into());
        self
    }

    /// A wrong request ([`Error::usage`]).
    pub fn is_usage(&self) -> bool {
        self.0.kind == Kind::Usage
    }
    /// Shapes that do not fit ([`Error::shape`]).
    pub fn is_shape(&self) -> bool {
        self.0.kind == Kind::Shape
    }
    /// An unsupported dtype ([`Error::dtype`]).
    pub fn is_dtype(&self) -> bool {
        self.0.kind == Kind::Dtype
    }
    /// An absent or unfit device ([`Error::device`]).
    pub fn is_device(&self) -> bool {
        self.0.kind == Kind::Device
    }
    /// A failed read or write ([`Error::io`]).
    pub fn is_io(&self) -> bool {
        self.0.kind == Kind::Io
    }
    /// A malformed file ([`Error::format`]).
    pub fn is_format(&self) -> bool {
        self.0.kind == Kind::Format
    }
    /// A checkpoint that does not fit ([`Error::checkpoint`]).
    pub fn is_checkpoint(&self) -> bool {
        self.0.kind == Kind::Checkpoint
    }
    /// A bad data set ([`Error::data`]).
    pub fn is_data(&self) -> bool {
        self.0.kind == Kind::Data
    }
    /// A number that is no longer one ([`Error::numeric`]).
    pub fn is_numeric(&self) -> bool {
        self.0.kind == Kind::Numeric
    }
    /// A stop that the user asked for ([`Error::interrupted`]).
    pub fn is_interrupted(&self) -> bool {
        self.0.kind == Kind::Interrupted
    }

    /// The exit code the command line ends with: 2 for a wrong request, 130 for an interrupt, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self.0.kind {
            Kind::Usage => 2,
            Kind::Interrupted => 130,
            _ => 1,
        }
    }

    /// The suggested next step, if there is one.
    pub fn remedy(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }

    /// The file concerned, if there is one.
    pub fn file(&self) -> Option<&Path> {
        self.0.file.as_deref()
    }

    /// The key concerned, if there is one.
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &self.0;
        if let Some(op) = &e.op {
            write!(f, "{op}: ")?;
        }
        if let Some(file) = &e.file {
            write!(f, "{}: ", file.display())?;
        }
        if let Some(key) = &e.key {
            write!(f, "`{key}`: ")?;
        }
        f.write_str(&e.message)?;
        if let Some(source) = &e.source {
            write!(f, ": {source}")?;
        }
        for (i, (name, what)) in e.tensors.iter().enumerate() {
            write!(f, "{}{name} = {what}", if i == 0 { "; " } else { ", " })?;
        }
        if let Some(remedy) = &e.remedy {
            write!(f, "\n  -> {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:?}] {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|s| &**s as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_everything() {
        let e = Error::shape("conv2d", "channels differ")
            .with_file("a/b.safetensors")
            .with_key("conv1.weight")
            .with_tensor("x", "f32 [1, 2]")
            .with_tensor("w", "f32 [3]")
            .with_remedy("transpose it");
        assert_eq!(
            e.to_string(),
            "conv2d: a/b.safetensors: `conv1.weight`: channels differ; x = f32 [1, 2], w = f32 [3]\n  -> transpose it"
        );
        assert_eq!(e.exit_code(), 1);
    }

    #[test]
    fn exit_codes() {
        assert_eq!(Error::usage("x").exit_code(), 2);
        assert_eq!(Error::interrupted("x").exit_code(), 130);
        let io = Error::io("f", "cannot read", std::io::Error::other("gone"));
        assert_eq!((io.exit_code(), io.is_io()), (1, true));
        assert!(io.to_string().contains("gone"));
    }
}
