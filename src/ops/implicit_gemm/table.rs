//! Tiles that were measured: a small table in front of the model of [`tile::choose`].
//!
//! `kernels/tiles.json` is part of the program; `DTK_TILES` names another file in its place. `dtk bench --tune` writes
//! one on a card. A product that is not in the table, or whose tile is no candidate any more, gets the model's choice.
//! `DTK_TILE=128x64` gives all products that have a tile of these rows and columns that one, for testing and measuring.

use super::tile::{self, Kind, Product, Tile, candidates};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::tensor::write_atomically;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::OnceLock;

const FORMAT: &str = "dtk-tiles";
const VERSION: u32 = 1;
const BUILT_IN: &str = include_str!("../../../kernels/tiles.json");
/// The most parts that k is cut into.
pub const MOST_SPLITS: usize = 32;

/// A tile, and into how many parts k is cut.
pub type Choice = (Tile, usize);

/// Measured choices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TileTable {
    format: String,
    version: u32,
    rows: Vec<Row>,
}

/// One product and its fastest tile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    card: String,
    kind: Kind,
    dtype: String,
    width: usize,
    m: usize,
    n: usize,
    k: usize,
    count: usize,
    multiprocessors: usize,
    /// bm, bn, bk, wm, wn, stages, blocks.
    tile: [usize; 7],
    splits: usize,
    /// Milliseconds of the call it was measured in.
    ms: f64,
}

impl Row {
    fn product(&self) -> Option<Product> {
        let dtype = [DType::Bf16, DType::F32].into_iter().find(|d| d.to_string() == self.dtype)?;
        let Row { kind, width, m, n, k, count, multiprocessors, .. } = *self;
        Some(Product { kind, dtype, width, m, n, k, count, multiprocessors })
    }

    fn choice(&self) -> Choice {
        let [bm, bn, bk, wm, wn, stages, blocks] = self.tile;
        (Tile { bm, bn, bk, wm, wn, stages, blocks }, self.splits)
    }

    /// Product and choice, unless the kernels have moved on.
    fn valid(&self) -> Option<(Product, Choice)> {
        let (product, choice) = (self.product()?, self.choice());
        let known = candidates(&product).iter().any(|(t, _)| *t == choice.0);
        (known && (1..=MOST_SPLITS).contains(&choice.1)).then_some((product, choice))
    }
}

impl TileTable {
    /// A table without rows.
    pub fn new() -> Self {
        TileTable { format: FORMAT.into(), version: VERSION, rows: Vec::new() }
    }

    fn parse(text: &str, name: &Path) -> Result<Self> {
        let table: TileTable =
            serde_json::from_str(text).map_err(|e| Error::format(name, format!("no table of tiles: {e}")))?;
        if (&*table.format, table.version) != (FORMAT, VERSION) {
            let found = format!("{} of version {}", table.format, table.version);
            return Err(Error::format(
                name,
                format!("{found}, but this dtk reads {FORMAT} of version {VERSION}"),
            )
            .with_remedy("make a new one with `dtk bench --tune`"));
        }
        Ok(table)
    }

    /// Reads a table.
    ///
    /// # Errors
    /// The file cannot be read, or is no table of this version.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "cannot read the tiles", e))?;
        Self::parse(&text, path)
    }

    /// Writes the table, a row a line.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_atomically(path, |w| {
            write!(w, "{{\n  \"format\": \"{FORMAT}\",\n  \"version\": {VERSION},\n  \"rows\": [")?;
            for (i, row) in self.rows.iter().enumerate() {
                write!(w, "{}\n    {}", if i == 0 { "" } else { "," }, serde_json::to_string(row)?)?;
            }
            w.write_all(if self.rows.is_empty() { b"]\n}\n" } else { b"\n  ]\n}\n" })
        })
    }

    /// Puts in a measured choice, in place of what the table had for this product.
    pub fn put(&mut self, card: &str, p: &Product, (tile, splits): Choice, ms: f64) {
        let Tile { bm, bn, bk, wm, wn, stages, blocks } = tile;
        self.rows.retain(|r| r.product() != Some(*p));
        self.rows.push(Row {
            card: card.into(),
            kind: p.kind,
            dtype: p.dtype.to_string(),
            width: p.width,
            m: p.m,
            n: p.n,
            k: p.k,
            count: p.count,
            multiprocessors: p.multiprocessors,
            tile: [bm, bn, bk, wm, wn, stages, blocks],
            splits,
            ms,
        });
    }

    /// The valid rows.
    pub fn choices(&self) -> HashMap<Product, Choice> {
        self.rows.iter().filter_map(Row::valid).collect()
    }
}

/// What the environment says of tiles, and the table in use.
#[derive(Debug)]
struct Settings {
    /// Rows and columns of the tile that `DTK_TILE` asks for.
    asked: Option<(usize, usize)>,
    /// The choices of the file in `DTK_TILES`, else the built-in ones.
    measured: HashMap<Product, Choice>,
}

impl Settings {
    fn read(tile: Option<OsString>, table: Option<OsString>) -> Result<Settings> {
        let asked = match &tile {
            None => None,
            Some(text) => Some(rows_and_columns(text).ok_or_else(|| {
                Error::usage(format!("{} names no tile", text.display()))
                    .with_key("DTK_TILE")
                    .with_remedy("write rows x columns of a block, such as 128x64")
            })?),
        };
        let table = match table {
            Some(file) => TileTable::load(Path::new(&file)).map_err(|e| e.with_key("DTK_TILES"))?,
            None => TileTable::parse(BUILT_IN, Path::new("kernels/tiles.json"))?,
        };
        Ok(Settings { asked, measured: table.choices() })
    }

    /// Those of this process, read once.
    fn get() -> Result<&'static Settings> {
        static SETTINGS: OnceLock<Result<Settings>> = OnceLock::new();
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let settings = SETTINGS.get_or_init(|| Settings::read(var("DTK_TILE"), var("DTK_TILES")));
        settings.as_ref().map_err(|e| Error::usage(e.to_string()))
    }

    fn choose(&self, p: &Product) -> Choice {
        let is_asked = |t: &Tile| self.asked == Some((t.bm, t.bn));
        if let Some(asked) = candidates(p).iter().find(|(t, _)| is_asked(t)) {
            return tile::choose_among(p, std::slice::from_ref(asked));
        }
        self.measured.get(p).copied().unwrap_or_else(|| tile::choose(p))
    }
}

/// `128x64`
fn rows_and_columns(text: &OsStr) -> Option<(usize, usize)> {
    let (bm, bn) = text.to_str()?.split_once('x')?;
    Some((bm.parse().ok()?, bn.parse().ok()?))
}

#[derive(Default)]
struct Trial {
    forced: HashMap<Product, Choice>,
    seen: Vec<Product>,
}

thread_local! {
    static TRIAL: RefCell<Option<Trial>> = const { RefCell::new(None) };
}

/// Runs `work` with these choices, on this thread, and lists the products that were chosen for.
pub fn trial<T>(forced: HashMap<Product, Choice>, work: impl FnOnce() -> T) -> (T, Vec<Product>) {
    /// Puts back what was there, also when `work` panics.
    struct Restore(Option<Trial>);
    impl Drop for Restore {
        fn drop(&mut self) {
            TRIAL.set(self.0.take());
        }
    }
    let _before = Restore(TRIAL.replace(Some(Trial { forced, seen: Vec::new() })));
    let result = work();
    let seen = TRIAL.with_borrow_mut(|t| t.take()).map_or(Vec::new(), |t| t.seen);
    (result, seen)
}

/// The tile for a product, and into how many parts k is cut: what a [`trial`] says, else `DTK_TILE`, else what was measured,
/// else [`tile::choose`].
///
/// # Errors
/// `DTK_TILE` names no tile, or `DTK_TILES` no table.
pub(super) fn choose(p: &Product) -> Result<Choice> {
    let forced = TRIAL.with_borrow_mut(|t| {
        let trial = t.as_mut()?;
        trial.seen.push(*p);
        trial.forced.get(p).copied()
    });
    match forced {
        Some(choice) => Ok(choice),
        None => Ok(Settings::get()?.choose(p)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(m: usize) -> Product {
        let kind = Kind::Forward;
        Product { kind, dtype: DType::Bf16, width: 8, m, n: 512, k: 4608, count: 1, multiprocessors: 132 }
    }

    #[test]
    fn the_built_in_table_is_valid() {
        let table = TileTable::parse(BUILT_IN, Path::new("kernels/tiles.json")).unwrap();
        assert_eq!(
            table.choices().len(),
            table.rows.len(),
            "rows of tiles that are no candidates, or double"
        );
    }

    #[test]
    fn tables_come_back_and_new_rows_replace_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiles.json");
        let mut table = TileTable::new();
        let tiles = candidates(&product(1));
        for (m, tile, splits) in [(1, 0, 1), (2, 1, 4), (1, 2, 3)] {
            table.save(&path).unwrap();
            assert_eq!(TileTable::load(&path).unwrap(), table);
            table.put("card", &product(m), (tiles[tile].0, splits), 0.5);
        }
        let choices = table.choices();
        assert_eq!(choices.len(), 2);
        let gradient = Product { kind: Kind::InputGradient, ..product(1) };
        assert!(!choices.contains_key(&gradient), "another pass is another product");
        assert_eq!((choices[&product(1)], choices[&product(2)]), ((tiles[2].0, 3), (tiles[1].0, 4)));
        // Tiles that are no candidates any more are passed over.
        let gone = Tile { bm: 7, ..tiles[0].0 };
        table.put("card", &product(3), (gone, 1), 0.5);
        table.put("card", &product(4), (tiles[0].0, 99), 0.5);
        assert_eq!(table.choices(), choices);
        std::fs::write(&path, r#"{"format": "dtk-tiles", "version": 9, "rows": []}"#).unwrap();
        assert!(TileTable::load(&path).unwrap_err().to_string().contains("version 9"));
        std::fs::write(&path, "{}").unwrap();
        assert!(TileTable::load(&path).unwrap_err().is_format());
    }

    #[test]
    fn trials_force_and_list() {
        let (p, q) = (product(64), product(4096));
        let forced = (candidates(&p)[4].0, 7);
        let choose = |p| choose(p).unwrap();
        assert_ne!(choose(&p), forced);
        let (got, seen) = trial(HashMap::from([(p, forced)]), || (choose(&p), choose(&q)));
        assert_eq!((got, seen), ((forced, choose(&q)), vec![p, q]));
        assert_eq!(choose(&p), tile::choose(&p), "only inside");
        let panicked = std::panic::catch_unwind(|| trial(HashMap::from([(p, forced)]), || panic!("x")));
        assert!(panicked.is_err() && choose(&p) == tile::choose(&p));
    }

    #[test]
    fn the_environment_comes_before_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiles.json");
        let (p, q) = (product(64), product(4096));
        let mut table = TileTable::new();
        let measured = (candidates(&p)[3].0, 5);
        table.put("card", &p, measured, 0.5);
        table.save(&path).unwrap();
        let read = |tile: Option<&str>| Settings::read(tile.map(OsString::from), Some(path.clone().into()));
        let settings = read(None).unwrap();
        assert_eq!((settings.choose(&p), settings.choose(&q)), (measured, tile::choose(&q)));
        let asked = read(Some("64x32")).unwrap().choose(&p).0;
        assert_eq!((asked.bm, asked.bn), (64, 32), "what is asked for comes before what was measured");
        assert_eq!(read(Some("7x9")).unwrap().choose(&p), measured, "no product has that tile");
        for wrong in ["64", "x", "64x", "axb", "64x-1"] {
            let e = read(Some(wrong)).unwrap_err();
            assert!(e.is_usage() && e.to_string().contains("DTK_TILE"), "{e}");
        }
        let gone = Settings::read(None, Some(dir.path().join("gone").into())).unwrap_err();
        assert!(gone.is_io() && gone.to_string().contains("DTK_TILES"), "{gone}");
    }
}
