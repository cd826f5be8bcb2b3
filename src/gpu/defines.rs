//! Preprocessor definitions: what makes a variant of a kernel.

use std::collections::BTreeMap;
use std::fmt;

/// Names and values of `-D` options, in alphabetical order whatever the order of setting.
///
/// ```
/// use dtk::gpu::Defines;
/// let defines = Defines::new().set("BM", 128).set("BF16", 1);
/// assert_eq!(defines.to_string(), "-DBF16=1 -DBM=128");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Defines(BTreeMap<String, String>);

impl Defines {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a name to a value, in place of an earlier one.
    pub fn set(mut self, name: impl Into<String>, value: impl fmt::Display) -> Self {
        self.0.insert(name.into(), value.to_string());
        self
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Names and values, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// `-DNAME=VALUE` for each, separated by blanks: stable, so that it can be part of a key.
impl fmt::Display for Defines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.iter().enumerate() {
            write!(f, "{}-D{name}={value}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_repetition_do_not_matter() {
        let a = Defines::new().set("B", 2).set("A", 0).set("A", 1);
        let b = Defines::new().set("A", 1).set("B", 2);
        assert_eq!(a, b);
        assert_eq!(a.to_string(), "-DA=1 -DB=2");
        assert_eq!((a.get("A"), a.get("C")), (Some("1"), None));
        assert_eq!(Defines::new().to_string(), "");
    }
}
