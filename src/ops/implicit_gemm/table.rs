//! Tiles that were measured: a small table in front of the model of [`tile::choose`].
//!
//! `kernels/tiles.json` is part of the program; `DTK_TILES` names another file in its place. `dtk bench --tune` writes
//! one on a card. A product that is not in the table, or whose tile is no candidate any more, gets the model's choice.

use super::tile::{self, Product, Tile, candidates};
use crate::base::DType;
use crate::error::{Error, Result};
use crate::tensor::write_atomically;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::HashMap;
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
        let Row { width, m, n, k, count, multiprocessors, .. } = *self;
        Some(Product { dtype, width, m, n, k, count, multiprocessors })
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

/// The choices in use: those of the file in `DTK_TILES`, else the built-in ones.
fn measured() -> &'static HashMap<Product, Choice> {
    static TABLE: OnceLock<HashMap<Product, Choice>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let given = std::env::var_os("DTK_TILES").map(|file| TileTable::load(Path::new(&file)));
        let table = given.unwrap_or_else(|| TileTable::parse(BUILT_IN, Path::new("kernels/tiles.json")));
        // A table only makes kernels faster: without one the model chooses. `dtk bench --tune` reports a broken file.
        table.map(|t| t.choices()).unwrap_or_default()
    })
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

/// The tile for a product, and into how many parts k is cut: what a [`trial`] says, else what was measured, else
/// [`tile::choose`].
pub(super) fn choose(p: &Product) -> Choice {
    let forced = TRIAL.with_borrow_mut(|t| {
        let trial = t.as_mut()?;
        trial.seen.push(*p);
        trial.forced.get(p).copied()
    });
    forced.or_else(|| measured().get(p).copied()).unwrap_or_else(|| tile::choose(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(m: usize) -> Product {
        Product { dtype: DType::Bf16, width: 8, m, n: 512, k: 4608, count: 1, multiprocessors: 132 }
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
        assert_ne!(choose(&p), forced);
        let (got, seen) = trial(HashMap::from([(p, forced)]), || (choose(&p), choose(&q)));
        assert_eq!((got, seen), ((forced, choose(&q)), vec![p, q]));
        assert_eq!(choose(&p), tile::choose(&p), "only inside");
        let panicked = std::panic::catch_unwind(|| trial(HashMap::from([(p, forced)]), || panic!("x")));
        assert!(panicked.is_err() && choose(&p) == tile::choose(&p));
    }
}
