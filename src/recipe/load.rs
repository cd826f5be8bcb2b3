//! Reading recipes: a built-in name or a file, then `--set` overrides.

use super::Recipe;
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::Path;
use toml::{Table, Value};

/// The recipes inside the program: name and TOML text.
pub const BUILTIN: &[(&str, &str)] = &[
    ("quickstart", include_str!("../../recipes/quickstart.toml")),
    ("benchmark", include_str!("../../recipes/benchmark.toml")),
    ("imagenet", include_str!("../../recipes/imagenet.toml")),
    ("imagenet_convnext", include_str!("../../recipes/imagenet_convnext.toml")),
    ("lsun", include_str!("../../recipes/lsun.toml")),
    ("ffhq", include_str!("../../recipes/ffhq.toml")),
    ("bdd100k", include_str!("../../recipes/bdd100k.toml")),
];

/// The recipe of a built-in name or a TOML file, changed by `key.path=value` overrides in order. Values are TOML;
/// what is not valid TOML is taken as a string, so that paths and names need no quotes.
///
/// # Errors
/// [`Error::usage`]: no such name or file, a syntax error (with line and column), an unknown or missing key, a value
/// of a wrong type or out of range, an override that is not `key=value`.
pub fn resolve(name_or_file: &str, overrides: &[String]) -> Result<Recipe> {
    let (recipe, file): (Recipe, _) = read(BUILTIN, "dtk train", name_or_file, overrides)?;
    recipe.validate().map_err(|e| in_file(e, file))?;
    Ok(recipe)
}

/// Names the file that an error is in, unless the text was built in.
pub(super) fn in_file(e: Error, file: Option<&Path>) -> Error {
    match file {
        Some(f) => e.with_file(f),
        None => e,
    }
}

/// The text of a built-in name or a file, changed by overrides, as a recipe that is not validated yet; and the file.
/// `command` prints every key with `--dry-run`.
pub(super) fn read<'n, R: DeserializeOwned>(
    builtin: &[(&str, &str)],
    command: &str,
    name_or_file: &'n str,
    overrides: &[String],
) -> Result<(R, Option<&'n Path>)> {
    let known = builtin;
    let builtin = known.iter().find(|(n, _)| *n == name_or_file);
    let (text, file) = match builtin {
        Some((_, text)) => ((*text).to_string(), None),
        None => {
            let names: Vec<&str> = known.iter().map(|(n, _)| *n).collect();
            let text = std::fs::read_to_string(name_or_file).map_err(|e| {
                Error::usage("cannot read the recipe")
                    .with_file(name_or_file)
                    .with_source(e)
                    .with_remedy(format!("give a TOML file or one of {}", names.join(", ")))
            })?;
            (text, Some(Path::new(name_or_file)))
        }
    };
    let bad = |e: &toml::de::Error| in_file(Error::usage(e.to_string().trim_end().to_string()), file);
    let mut table: Table = text.parse().map_err(|e| bad(&e))?;
    if overrides.is_empty() {
        // Deserialised from the text itself, so that an error can point at line and column.
        return Ok((toml::from_str(&text).map_err(|e| bad(&e))?, file));
    }
    for o in overrides {
        set(&mut table, o)?;
    }
    let recipe = Value::Table(table).try_into().map_err(|e: toml::de::Error| {
        let remedy =
            format!("check the --set overrides against `{command} --dry-run`, which prints every key");
        bad(&e).with_remedy(remedy)
    })?;
    Ok((recipe, file))
}

/// Applies one `key.path=value`. Only an empty key path or a path through a value that is no table is refused here;
/// unknown keys are found when the whole recipe is read.
fn set(table: &mut Table, text: &str) -> Result<()> {
    let wrong = |what: &str| {
        Error::usage(format!("--set {text}: {what}"))
            .with_remedy("write --set key.path=value, e.g. train.batch=64")
    };
    let (path, value) = text.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
    let keys: Vec<&str> = path.trim().split('.').map(str::trim).collect();
    if keys.iter().any(|k| k.is_empty()) {
        return Err(wrong("the key is empty"));
    }
    let value = value.trim();
    let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
    let value = parsed.unwrap_or_else(|| Value::String(value.to_string()));
    let (last, parents) = keys.split_last().expect("split gives at least one");
    let mut at = table;
    for key in parents {
        at = at
            .entry((*key).to_string())
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| wrong(&format!("`{key}` is not a table")))?;
    }
    at.insert((*last).to_string(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_recipes_are_valid_and_survive_a_round_trip() {
        for (name, _) in BUILTIN {
            let r = resolve(name, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(&r.name, name);
            let again: Recipe = toml::from_str(&r.to_toml()).unwrap();
            assert_eq!(r, again, "{name}");
        }
    }

    #[test]
    fn overrides() {
        let o =
            ["train.batch=12", "data.path=/some/folder", "teacher.weights = \"x.pt\"", "loss.whiten=channel"];
        let r = resolve("quickstart", &o.map(String::from)).unwrap();
        assert_eq!(r.train.batch, 12);
        assert_eq!(r.data.path.as_deref(), Some(Path::new("/some/folder")));
        assert_eq!(r.teacher.weights, "x.pt");
        let base = resolve("quickstart", &[]).unwrap();
        let elsewhere = resolve("quickstart", &["data.path=/x".into(), "data.workers=7".into()]).unwrap();
        assert_eq!(base.fingerprint(), elsewhere.fingerprint());
        assert_ne!(base.fingerprint(), r.fingerprint());
    }

    #[test]
    fn evaluations_see_images_of_the_size_of_the_run() {
        let size = |o: &[&str]| {
            let o: Vec<String> = o.iter().map(|s| s.to_string()).collect();
            let data = resolve("quickstart", &o).unwrap().evaluation().data;
            (data.size(), data.behind())
        };
        assert_eq!(size(&[]), ([32, 32], [255; 3]));
        let larger = ["data.height=64", "data.width=96", "data.background=[1,2,3]"];
        assert_eq!(size(&larger), ([64, 96], [1, 2, 3]));
        assert_eq!(size(&[&larger[..], &["eval.data.width=48"]].concat()), ([64, 48], [1, 2, 3]));
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for (o, needle) in [
            ("train.bach=12", "bach"),
            ("train.batch=twelve", "invalid type"),
            ("train.batch", "no `=`"),
            ("=3", "empty"),
            ("seed.x=3", "not a table"),
            ("train.accumulate=7", "equal parts"),
            ("train.batch=1", "one image at a time"),
            ("data.height=63", "multiples"),
            ("diffusion.t=1000", "1000"),
            ("teacher.model=adm-900", "adm-900"),
            ("loss.p=0.5", "exponent"),
            ("student.backbone.name=resnet51", "resnet51"),
            ("run.keep=0", "at least 1"),
            ("lr.peak=-1", "lr"),
        ] {
            let e = resolve("quickstart", &[o.to_string()])
                .err()
                .unwrap_or_else(|| panic!("{o} must be refused"));
            assert!(e.is_usage(), "{o}: {e:?}");
            assert!(e.to_string().contains(needle), "{o}: {e}");
        }
        let e = resolve("no/such/file.toml", &[]).unwrap_err();
        assert!(e.is_usage() && e.to_string().contains("quickstart"), "{e}");
    }

    #[test]
    fn syntax_errors_name_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, "name = \"x\"\nseed = = 3\n").unwrap();
        let e = resolve(path.to_str().unwrap(), &[]).unwrap_err();
        assert!(e.is_usage() && e.to_string().contains("line 2"), "{e}");
        assert_eq!(e.file(), Some(path.as_path()));
    }
}
