//! Weights that are part of the program.

use crate::error::{Error, Result};

/// What stands before the name of built-in weights, where a file is expected.
pub const PREFIX: &str = "builtin:";

/// Names and safetensors files. Each was made by `dtk teacher train`; what it was trained on is in its metadata.
const WEIGHTS: &[(&str, &[u8])] =
    &[("scenes32", include_bytes!("../../assets/teacher_scenes32.safetensors"))];

/// The safetensors file of `builtin:NAME`; `None` if `path` does not begin so.
///
/// # Errors
/// There are no such weights.
pub(super) fn find(path: &str) -> Result<Option<&'static [u8]>> {
    let Some(name) = path.strip_prefix(PREFIX) else { return Ok(None) };
    let found = WEIGHTS.iter().find(|(n, _)| *n == name).map(|(_, bytes)| *bytes);
    found.map(Some).ok_or_else(|| {
        let names: Vec<String> = WEIGHTS.iter().map(|(n, _)| format!("{PREFIX}{n}")).collect();
        Error::usage(format!("there are no weights `{path}`"))
            .with_remedy(format!("choose {}, or give a file", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::super::StateDict;
    use super::*;
    use crate::models::adm::{AdmConfig, AdmUnet};
    use crate::nn::ParamStore;

    #[test]
    fn built_in_teachers_fit_the_networks_of_their_names() {
        for (name, bytes) in WEIGHTS {
            assert!(bytes.len() <= 4 << 20, "{name}: {} bytes", bytes.len());
            let file = StateDict::open(format!("{PREFIX}{name}")).unwrap();
            let mut store = ParamStore::new();
            AdmUnet::new(&mut store.builder(), &AdmConfig::named(name).unwrap()).unwrap();
            let expected: Vec<_> =
                store.iter().map(|(_, p)| (p.name().to_string(), p.file_shape())).collect();
            assert!(super::super::compare(&expected, &file).is_clean(), "{name}");
            for key in ["recipe", "recipe_fingerprint", "data_fingerprint", "seed", "step"] {
                assert!(file.metadata().contains_key(key), "{name} does not say its {key}");
            }
        }
        let e = StateDict::open("builtin:scenes33").err().unwrap();
        assert!(e.is_usage() && e.remedy().unwrap().contains("builtin:scenes32"), "{e}");
    }
}
